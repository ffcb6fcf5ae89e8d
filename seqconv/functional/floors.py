"""The floors of kernels: modules with the same functions, imported at the first call that one of them serves."""

from __future__ import annotations

from functools import cache
from typing import Any, Protocol

from torch import Tensor

from seqconv import backends

__all__ = ["Replayable", "floor", "tape_of"]


class Replayable(Protocol):
    """A call of a floor, to be run again on other tensors of the same formats, while it ``may_replay``."""

    @property
    def may_replay(self) -> bool:
        """Whether :meth:`replay` does now what the call would."""

    def replay(self, tensors: list[Tensor]) -> Any:
        """Return what the call returned, of these tensors."""


def tape_of(function: Any, *arguments: Any, **options: Any) -> Replayable | None:
    """Return the tape of a call of a floor's function, ``None`` where there is none."""
    found: Replayable | None = function.tape_of(*arguments, **options) if hasattr(function, "tape_of") else None
    return found


@cache
def floor(backend: str) -> Any:
    """Return a backend's module ``conv_pool``: ``forward``, ``backward`` and their formats."""
    return backends.load(f"seqconv.kernels.{backend}.conv_pool")
