"""A batch norm's running statistics folded into a convolution on the CPU, in one pass instead of torch's seven."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .dense import DTYPES, empty
from .micro.simd import bytes_of, load_number, store_number
from .runtime.compilation import compiled, inner

__all__ = ["DTYPES", "MOST", "SERVES", "folded"]

SERVES = True
# Numbers of a weight. Medians beside torch's passes on two threads, microseconds: 10,240 numbers 3.7 and 8.6, 65,536
# 11.3 and 10.9, 131,072 20.7 and 13.7.
MOST = 2**16


def folded(
    weight: Tensor,
    bias: Tensor | None,
    mean: Tensor,
    var: Tensor,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """Return what :func:`seqconv.kernels.norm.folded` does.

    ``weight`` is ``(O, C / groups, K)``, contiguous, the others are ``(O,)``, contiguous or ``None``, all of one of
    :data:`DTYPES`.
    """
    given = [one for one in (weight, bias, mean, var, norm_weight, norm_bias) if one is not None]
    return tape_of(weight, bias, mean, var, norm_weight, norm_bias, eps).replay(given)


class Fold:
    """A fold of tensors of one format: all but their addresses."""

    may_replay = True

    def __init__(self, weight: Tensor, places: Sequence[int], eps: float) -> None:
        self.places, self.eps, self.kernel = places, eps, KERNELS[weight.dtype]
        self.scaled = tuple(weight.shape), weight.stride(), weight.dtype
        self.shift = (weight.size(0),), (1,), weight.dtype
        self.numbers = array("q", (*[0] * ADDRESSES, weight.size(0), weight[0].numel()))

    def replay(self, tensors: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Return weight and bias, of those among :func:`folded`'s tensors that are not ``None``."""
        scaled, shift, numbers = empty(*self.scaled), empty(*self.shift), self.numbers[:]
        for place, one in zip(self.places, tensors, strict=True):
            numbers[place] = one.data_ptr()
        numbers[ADDRESSES - 2], numbers[ADDRESSES - 1] = scaled.data_ptr(), shift.data_ptr()
        self.kernel(numbers.buffer_info()[0], self.eps)
        return scaled, shift


def tape_of(weight: Tensor, *rest: Any) -> Fold:
    """Return what runs :func:`folded`, whose arguments it takes, again on other tensors of the same formats."""
    *others, eps = rest
    return Fold(weight, [place for place, one in enumerate((weight, *others)) if one is not None], eps)


folded.tape_of = tape_of  # type: ignore[attr-defined]

ADDRESSES = 8  # of the six tensors given and the two results; behind them stand O and the numbers of an output


@inner
def number(table: int, place: int) -> int:
    """Return one of the integers at ``table``."""
    return load_number(table + 8 * place, np.int64(0))  # type: ignore[no-any-return]


@inner
def fold_norm(table: int, eps: Any, one: Any) -> None:
    """Fold the tensors whose addresses are at ``table``; 0 stands for one that there is not."""
    weight, bias, mean, var = number(table, 0), number(table, 1), number(table, 2), number(table, 3)
    norm_weight, norm_bias, scaled, shift = number(table, 4), number(table, 5), number(table, 6), number(table, 7)
    size, row = bytes_of(one), number(table, 9) * bytes_of(one)
    for o in range(number(table, 8)):
        at, begin = o * size, o * row
        scale = one / np.sqrt(load_number(var + at, one) + eps)
        if norm_weight:
            scale *= load_number(norm_weight + at, one)
        centre = load_number(mean + at, one)
        if bias:
            centre -= load_number(bias + at, one)
        moved = -centre * scale
        if norm_bias:
            moved += load_number(norm_bias + at, one)
        store_number(moved, shift + at, one)
        for i in range(begin, begin + row, size):
            store_number(load_number(weight + i, one) * scale, scaled + i, one)


@compiled
def fold_norm_float32(table: int, eps: float) -> None:
    """Fold tensors of float32; see :func:`fold_norm`."""
    fold_norm(table, np.float32(eps), np.float32(1))


@compiled
def fold_norm_float64(table: int, eps: float) -> None:
    """Fold tensors of float64; see :func:`fold_norm`."""
    fold_norm(table, eps, np.float64(1))


KERNELS = {torch.float32: fold_norm_float32, torch.float64: fold_norm_float64}
