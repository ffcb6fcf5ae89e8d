"""Whether this process was forked: libraries' threads do not survive a fork and must not be used then."""

from __future__ import annotations

import os

__all__ = ["is_child"]

_child = False


def is_child() -> bool:
    """Tell whether this process was forked from one that had imported this module."""
    return _child


def _note() -> None:
    global _child
    _child = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_note)
