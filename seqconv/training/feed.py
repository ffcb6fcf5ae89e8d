"""An endless stream of batches out of a loader of passes, whose position can be saved and found again."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from seqconv.training.randomness import random_state, restore_random_state

__all__ = ["Batches", "Feed", "to_device"]

Batches = Iterable[tuple[Tensor | tuple[Tensor, ...], Tensor]]
"""A loader: each ``iter()`` is a pass that yields ``(inputs, targets)``, the batch in the first dimension.

Inputs of a model that takes several are a tuple or a list.
"""


class Feed:
    """The batches of ``loader``, pass after pass, one ``next()`` at a time.

    A loader with ``state_dict`` and ``load_state_dict`` is asked for its position. Any other loader is replayed: its
    pass begins again from the random states that held when it began, and the batches already received are skipped.
    That is exact where the order is drawn when the pass begins, as in a list or a torch ``DataLoader``, and not where a
    ``DataLoader`` wraps a dataset that counts its passes, as ``SlidingWindows`` does: that is a loader by itself.
    """

    def __init__(self, loader: Batches) -> None:
        self.loader: Any = loader
        self.stateful = hasattr(loader, "state_dict") and hasattr(loader, "load_state_dict")
        self.iterator: Iterator[tuple[Tensor, Tensor]] | None = None
        self.received = 0
        self.random_at_start: dict[str, Any] = {}

    def __next__(self) -> tuple[Tensor, Tensor]:
        iterator = self.iterator or self.begin_pass()
        batch = next(iterator, None)
        if batch is None:
            batch = next(self.begin_pass(), None)
        if batch is None:
            raise ValueError(f"train must yield at least one batch in a pass, got none from {type(self.loader)}")
        self.received += 1
        return batch

    def begin_pass(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Ask the loader for its next pass."""
        self.received = 0
        if not self.stateful:
            self.random_at_start = random_state(torch.device("cpu"))
        iterator: Iterator[tuple[Tensor, Tensor]] = iter(self.loader)
        self.iterator = iterator
        return iterator

    def state_dict(self) -> dict[str, Any]:
        """Return the position behind the last batch received."""
        if self.stateful:
            return {"loader": self.loader.state_dict()}
        return {"received": self.received, "random_at_start": self.random_at_start}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue behind the batch at which ``state`` was taken; the random states are left changed."""
        if self.stateful != ("loader" in state):
            raise ValueError(
                f"the loader {type(self.loader)} {'has' if self.stateful else 'lacks'} state_dict, unlike the one saved"
            )
        if self.stateful:
            self.loader.load_state_dict(state["loader"])
        elif state["received"]:
            restore_random_state(state["random_at_start"], torch.device("cpu"))
            iterator = self.begin_pass()
            skipped = sum(1 for _ in itertools.islice(iterator, state["received"]))
            if skipped < state["received"]:
                raise ValueError(f"train must yield the {state['received']} batches received before, got {skipped}")
            self.received = state["received"]

    def close(self) -> None:
        """Let go of the pass under way, with the threads or files it may hold."""
        close = getattr(self.iterator, "close", None)
        self.iterator = None
        if close is not None:
            close()


def to_device(batch: tuple[Any, Tensor], device: torch.device) -> tuple[tuple[Tensor, ...], Tensor]:
    """Return ``(inputs, targets)`` on ``device``: a model's inputs, most models' is one, in a tuple."""
    try:
        inputs, targets = batch
        given = inputs if type(inputs) in (tuple, list) else (inputs,)  # a DataLoader makes lists of tuples
        moved = tuple(one.to(device, non_blocking=True) for one in given)
        return moved, targets.to(device, non_blocking=True)
    except (TypeError, ValueError, AttributeError):
        raise TypeError(f"a loader must yield pairs (inputs, targets) of tensors, got {type(batch)}") from None
