"""A check of arguments that the loaders share."""

from __future__ import annotations

import operator
from typing import Any

__all__ = ["integer"]


def integer(name: str, value: Any, least: int, most: int | None = None) -> int:
    """Return ``value`` as an ``int``. Raises ``TypeError`` for other types, ``ValueError`` out of range."""
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or isinstance(value, bool):
        raise TypeError(f"{name} must be an int, got {value!r}")
    if number < least or (most is not None and number > most):
        limits = f"at least {least}" if most is None else f"within {least} to {most}"
        raise ValueError(f"{name} must be {limits}, got {value}")
    return number
