"""The processes that ``torchrun`` starts side by side to train one model."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from seqconv.training.ranks import Ranks

__all__ = ["process_group", "world_size"]


def world_size() -> int:
    """Return the number of processes that were started together with this one, itself included."""
    return int(os.environ.get("WORLD_SIZE", "1"))


@contextlib.contextmanager
def process_group() -> Iterator[Ranks]:
    """Join the processes started together, for as long as the block lasts; yield which of them this is.

    They talk through gloo, since the command trains on the CPU.
    """
    from torch import distributed

    from seqconv.training.ranks import Ranks

    if world_size() == 1:
        yield Ranks()
        return
    distributed.init_process_group("gloo")
    try:
        yield Ranks()
    finally:
        distributed.destroy_process_group()
