"""Batches of arrays that lie in memory."""

from __future__ import annotations

from collections.abc import Callable, Generator
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from seqconv.data.arguments import integer
from seqconv.data.passes import Passes

__all__ = ["ArrayBatches"]


Samples = NDArray[Any] | Tensor
Inputs = Tensor | tuple[Tensor, ...]


class ArrayBatches(Passes[tuple[Inputs, Tensor]]):
    """Batches ``(inputs, targets)`` of two arrays of N rows: CPU tensors of ``batch_size`` rows, newly allocated.

    Each ``iter()`` starts a pass in which every row comes once; the last batch is smaller where ``batch_size`` does
    not divide N, or left out with ``drop_last``. ``shuffle=True`` draws a new order for every pass from ``(seed,
    number of the pass)``; ``seed=None`` draws the seed from torch's global generator. ``len()`` is the number of
    batches in a pass. ``rank``, ``world_size`` and ``uneven`` share a pass's rows out, as those of
    :class:`SlidingWindows` do its windows; ``batch_size`` and ``len()`` are then those of one rank.

    :meth:`state_dict` holds the position of what has been handed out so far and JSON can hold it; after
    :meth:`load_state_dict` the next ``iter()`` finishes the interrupted pass.

    Inputs may be a tuple of arrays, ``(tokens, lengths)`` say; then those of a batch are one of tensors.

    Arrays are NumPy arrays of numbers or CPU tensors, with rows along their first axis. They are read in place, so
    changes to them show; only arrays that no tensor can share (read-only, negative strides, foreign byte order) are
    copied once. Raises ``TypeError`` for anything else and for numbers that are no integers, ``ValueError`` where the
    numbers of rows differ, ``batch_size`` is below 1 or ``seed`` below 0, and for ranks as :class:`SlidingWindows`
    does.
    """

    def __init__(
        self,
        inputs: Samples | tuple[Samples, ...],
        targets: Samples,
        *,
        batch_size: int = 128,
        shuffle: bool = False,
        seed: int | None = None,
        drop_last: bool = False,
        rank: int = 0,
        world_size: int = 1,
        uneven: str = "pad",
    ) -> None:
        given = inputs if isinstance(inputs, tuple) else (inputs,)
        if not given:
            raise ValueError("inputs must hold at least one array, got ()")
        tensors = tuple(
            rows_of(one, f"inputs[{number}]" if given is inputs else "inputs") for number, one in enumerate(given)
        )
        self.inputs: Inputs = tensors if given is inputs else tensors[0]
        self.targets = rows_of(targets, "targets")
        for rows in map(len, tensors):
            if rows != len(self.targets):
                raise ValueError(f"targets must have as many rows as inputs ({rows}), got {len(self.targets)}")
        super().__init__(shuffle=shuffle, seed=seed, rank=rank, world_size=world_size, uneven=uneven)
        self._require_share("row")
        self.batch_size = integer("batch_size", batch_size, 1)
        self.drop_last = bool(drop_last)

    def split(self, share: float) -> tuple[ArrayBatches, ArrayBatches]:
        """Return batches to train on and batches to validate with: the last ``share`` of the rows, as in Keras.

        The rows are split as they stand, before any shuffling, and those for validation are not shuffled; ranks have
        each of these once (``uneven="keep"``). Raises ``ValueError`` where ``share`` leaves either part empty.
        """
        kept = int(len(self.targets) * (1 - share))
        if not 0 < kept < len(self.targets):
            raise ValueError(f"share must leave some of {len(self.targets)} rows on either side, got {share}")
        part = partial(ArrayBatches, batch_size=self.batch_size, rank=self.rank, world_size=self.world_size)
        train = part(
            mapped(lambda one: one[:kept], self.inputs),
            self.targets[:kept],
            shuffle=self.shuffle,
            seed=self.seed if self.seed_given else None,
            drop_last=self.drop_last,
            uneven=self.uneven,
        )
        rest = mapped(lambda one: one[kept:], self.inputs)
        return train, part(rest, self.targets[kept:], uneven="keep")

    @property
    def _total(self) -> int:
        return len(self.targets)

    def __len__(self) -> int:
        return self._share // self.batch_size if self.drop_last else -(-self._share // self.batch_size)

    def _batches(self, number: int, first: int) -> Generator[tuple[Inputs, Tensor], None, None]:
        order = torch.from_numpy(self._order(number))
        for batch in range(first, len(self)):
            rows = order[batch * self.batch_size : (batch + 1) * self.batch_size]
            take = partial(torch.index_select, dim=0, index=rows)
            yield mapped(take, self.inputs), take(self.targets)

    def _config(self) -> dict[str, Any]:
        return {
            "rows": len(self.targets),
            "batch_size": self.batch_size,
            "shuffle": self.shuffle,
            "drop_last": self.drop_last,
        }


def mapped(function: Callable[[Tensor], Tensor], inputs: Inputs) -> Inputs:
    """Return what ``function`` makes of a batch's input, or of each of several."""
    return tuple(map(function, inputs)) if isinstance(inputs, tuple) else function(inputs)


def rows_of(array: Samples, name: str) -> Tensor:
    """Return the array as a tensor that shares its memory where it may."""
    if isinstance(array, np.ndarray):
        if array.dtype.kind not in "biufc":
            ragged = " (ragged sequences: pad them first)" if array.dtype == object else ""
            raise TypeError(f"{name} must be a numeric array, got dtype {array.dtype}{ragged}")
        shared = array.flags.writeable and array.dtype.isnative and min(array.strides, default=0) >= 0
        tensor = torch.from_numpy(array if shared else array.astype(array.dtype.newbyteorder("=")))
    elif isinstance(array, Tensor):
        tensor = array.detach()
    else:
        raise TypeError(f"{name} must be a NumPy array or a tensor, got {type(array).__name__}")
    if tensor.dim() == 0 or tensor.device.type != "cpu":
        raise ValueError(f"{name} must be on the CPU and have rows, got shape {tuple(tensor.shape)} on {tensor.device}")
    return tensor
