"""The floors of kernels: modules with the same functions, imported at the first call that one of them serves."""

from __future__ import annotations

from functools import cache
from typing import Any

from seqconv import backends

__all__ = ["floor"]


@cache
def floor(backend: str) -> Any:
    """Return a backend's module ``conv_pool``: ``forward``, ``backward`` and their formats."""
    return backends.load(f"seqconv.kernels.{backend}.conv_pool")
