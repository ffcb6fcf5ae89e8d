"""Pooling of convolved rows that lie in a scratch: ReLU, the maximum of a window and the position that won.

A maximum starts at 0, which is ReLU; of equal values the first wins, of several NaN the last, but the first under the
global maximum, as in torch.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from .gathered import Layer, window_range
from .simd import (
    add,
    broadcast,
    bytes_of,
    either,
    greater,
    is_nan,
    lanes,
    load,
    load_codes,
    select,
    store,
    store_codes,
    store_first,
)

__all__ = ["finish_rows", "merge_rows", "pool_rows"]


@njit
def pool_rows(
    layer: Layer,
    rows: int,
    row_stride: int,
    first: int,
    q: int,
    bias: int,
    out: int,
    argmax: int,
    zero: Any,
    code: Any,
) -> None:
    """Write window ``q``'s maxima of all channels to ``out`` and their positions to ``argmax`` unless that is 0.

    ``rows`` holds whole vectors of channels of the positions from ``first`` on, ``row_stride`` bytes apart; ``bias``,
    a row like them, is added to each. Where no position is inside the window the maximum is minus infinity.
    """
    width, size = lanes(zero), bytes_of(zero)
    start, skipped, ending = window_range(layer, q)
    for o in range(0, layer.outputs, width):
        shift = load(bias + o * size, zero)
        best = broadcast(0.0 if ending > skipped else -np.inf, zero)
        at = broadcast(np.int32(-1), zero)
        row = rows + (start + skipped * layer.pool_dilation - first) * row_stride + o * size
        for p in range(skipped, ending):
            value = add(load(row, zero), shift)
            wins = either(greater(value, best), is_nan(value))
            best = select(wins, value, best)
            at = select(wins, broadcast(np.int32(p), zero), at)
            row += layer.pool_dilation * row_stride
        store_first(best, out + o * size, min(width, layer.outputs - o))
        if argmax:
            store_codes(at, argmax + o * bytes_of(code), code)


@njit
def merge_rows(
    rows: int, row_stride: int, first: int, count: int, bias: int, maxima: int, winners: int, zero: Any
) -> None:
    """Merge ``count`` positions from ``first`` on into the global maxima so far and the int32 that name them.

    All are whole vectors of channels; ``maxima`` start at 0, ``winners`` at -1; else as in :func:`pool_rows`.
    """
    width = lanes(zero) * bytes_of(zero)
    for v in range(row_stride // width):
        shift = load(bias + v * width, zero)
        best = load(maxima + v * width, zero)
        at = load_codes(winners + v * lanes(zero) * 4, zero)
        row = rows + v * width
        for p in range(first, first + count):
            value = add(load(row, zero), shift)
            wins = select(is_nan(best), greater(best, best), either(greater(value, best), is_nan(value)))
            best = select(wins, value, best)
            at = select(wins, broadcast(np.int32(p), zero), at)
            row += row_stride
        store(best, maxima + v * width)
        store_codes(at, winners + v * lanes(zero) * 4, np.int32(0))


@njit
def finish_rows(maxima: int, winners: int, outputs: int, out: int, argmax: int, zero: Any, code: Any) -> None:
    """Write the global maxima of ``outputs`` channels and their positions to where they belong."""
    width, size = lanes(zero), bytes_of(zero)
    for o in range(0, outputs, width):
        store_first(load(maxima + o * size, zero), out + o * size, min(width, outputs - o))
        if argmax:
            store_codes(load_codes(winners + o * 4, zero), argmax + o * bytes_of(code), code)
