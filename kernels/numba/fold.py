"""A table folded into a convolution: every row's products with every kernel position, computed once.

A convolution of gathered rows is a sum of such products, ``conv(table[tok])[t] = sum_k folded[tok[t + k], k]``: with
``folded`` at hand, a position costs ``K`` additions of rows instead of ``K * C`` multiply-adds for every output.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numba import njit
from torch import Tensor

from .dense import DTYPES, lane_count, padded_outputs
from .micro.gemm import IN_ROWS, gemm, odd_lines
from .micro.memory import keep
from .micro.packing import copy_row
from .micro.simd import bytes_of, lanes, load_number
from .micro.tile import TILE
from .runtime.compilation import compiled
from .runtime.threads import run, share, thread_count

__all__ = ["KEPT", "fold", "folded_shape"]

# A folded table's dtypes, each with a zero whose type tells the kernels the dtype: Numba has no 16-bit floats.
KEPT = {**DTYPES, torch.float16: np.uint16(0), torch.bfloat16: np.int16(0)}

# Rows of the table that a thread takes at a time: with their results they stay in the second cache.
ROWS = 8 * TILE


def folded_shape(
    rows: int,
    weight: Tensor,
    dtype: torch.dtype | None = None,  # noqa: ARG001  (rows of 16-bit numbers are as long)
) -> tuple[int, int, int]:
    """Return the shape of ``rows`` rows folded into ``dtype``: ``(rows, K, O)``, ``O`` rounded up to whole vectors."""
    return rows, weight.size(2), padded_outputs(weight.size(0), DTYPES[weight.dtype])


def fold(table: Tensor, weight: Tensor, rows: Tensor | None = None, *, dtype: torch.dtype | None = None) -> Tensor:
    """Return ``folded[v, k, o] = sum_c table[v, c] * weight[o, c, k]``, zeros behind the last ``o``.

    ``table`` ``(V, C)``, of any strides, and ``weight`` ``(O, C, K)`` share a dtype, float32 or float64. Given
    ``rows``, int64 and contiguous, ``folded[i]`` is that of row ``rows[i]``. See :func:`folded_shape`. ``dtype`` is
    that of the result, by default the table's. For a float32 table it may also be float16 or bfloat16, to which every
    sum is rounded.
    """
    if dtype is not None and dtype != table.dtype:
        return fold(table, weight, rows).to(dtype)
    count = table.size(0) if rows is None else rows.size(0)
    folded = table.new_empty(folded_shape(count, weight))
    channels, columns = table.size(1), folded.size(1) * folded.size(2)
    if not folded.numel() or not channels:
        return folded.zero_()
    packed = pack_by_channel(weight)
    like, itemsize = DTYPES[table.dtype], table.element_size()
    parts = -(-count // ROWS)
    threads = thread_count(parts, count * channels * columns)
    places = (table.data_ptr(), 0 if rows is None else rows.data_ptr(), packed.data_ptr(), folded.data_ptr())
    strides = (
        table.stride(0) * itemsize,
        table.stride(1) * itemsize,
        packed.stride(0) * itemsize,
        odd_lines(channels * itemsize),
    )

    def call(begin: int, end: int, threads: int, launch: int) -> None:
        fold_rows(places, strides, count, channels, columns // lane_count(like), like, begin, end, threads, launch)

    run(call, parts, threads)
    return folded


def pack_by_channel(weight: Tensor) -> Tensor:
    """Return ``(C, K, O)``, zeros behind the last ``o``, from ``(O, C, K)``."""
    outputs, channels, _ = weight.shape
    packed = weight.new_zeros(channels, *folded_shape(1, weight)[1:])
    packed[..., :outputs] = weight.detach().permute(1, 2, 0)
    return packed


@njit
def fold_part(part: int, places: Any, strides: Any, count: int, channels: int, columns: int, zero: Any) -> None:
    """Fold the rows of one part, gathered first if they are listed; ``columns`` counts vectors."""
    table, listed, packed, folded = places
    begin = part * ROWS
    rows = min(ROWS, count - begin)
    width = columns * lanes(zero) * bytes_of(zero)
    source, row_stride, tap_stride = table + begin * strides[0], strides[0], strides[1]
    scratch = np.empty(rows * strides[3] if listed else 1, np.uint8)
    if listed:
        source, row_stride, tap_stride = scratch.ctypes.data, strides[3], bytes_of(zero)
        for i in range(rows):
            row = load_number(listed + (begin + i) * 8, np.int64(0))
            copy_row(source + i * row_stride, table + row * strides[0], strides[1], channels, zero)
    goal = folded + begin * width
    taps = (1, 0, channels, tap_stride)
    gemm(goal, width, source, row_stride, rows, taps, packed, strides[2], IN_ROWS, columns, True, zero)
    keep(scratch)


@compiled
def fold_rows(
    places: Any,
    strides: Any,
    count: int,
    channels: int,
    columns: int,
    zero: Any,
    begin: int,
    end: int,
    threads: int,
    launch: int,
) -> None:
    """Fold the parts ``begin`` to ``end``; see :func:`fold_part`."""
    share(begin, end, threads, launch, fold_part, (places, strides, count, channels, columns, zero))
