"""A user's function in the training loop, and the state that it may have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = ["Callback", "callback_state", "restore_callback"]

Callback = Callable[[dict[str, float]], Any]
"""``callback(record)``, called after each epoch with its line of the history; what it returns is not looked at."""


def is_stateful(callback: Callback | None) -> bool:
    return hasattr(callback, "state_dict") and hasattr(callback, "load_state_dict")


def callback_state(callback: Any) -> Any:
    """Return the callback's ``state_dict()``, ``None`` where it has none."""
    return callback.state_dict() if is_stateful(callback) else None


def restore_callback(callback: Any, state: Any) -> None:
    """Hand the state back. Raises ``ValueError`` where only one side has any."""
    if is_stateful(callback) != (state is not None):
        raise ValueError(
            f"the callback {callback!r} {'has' if is_stateful(callback) else 'lacks'} state_dict, unlike the one saved"
        )
    if state is not None:
        callback.load_state_dict(state)
