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
    layer: Layer, rows: int, row_stride: int, first: int, windows: Any, bias: int, places: Any, zero: Any, code: Any
) -> None:
    """Write the maxima of all channels in some windows, from the first to before the second of ``windows``.

    ``rows`` holds whole vectors of channels of the positions from ``first`` on, ``row_stride`` bytes apart; ``bias``,
    a row like them, is added to each. ``places`` are where the first window's maxima go, and its winners' numbers
    unless that is 0. Where no position is inside a window its maximum is minus infinity.
    """
    width, size = lanes(zero), bytes_of(zero)
    padded = (layer.outputs + width - 1) // width * width
    step = layer.pool_dilation * row_stride
    for o in range(0, layer.outputs, width):
        shift = load(bias + o * size, zero)
        out = places[0] + o * size
        argmax = places[1] + o * bytes_of(code) if places[1] else 0
        outputs = min(width, layer.outputs - o)
        for q in range(windows[0], windows[1]):
            start, skipped, ending = window_range(layer, q)
            best = broadcast(0.0 if ending > skipped else -np.inf, zero)
            at = broadcast(np.int32(-1), zero)
            row = rows + (start + skipped * layer.pool_dilation - first) * row_stride + o * size
            for p in range(skipped, ending):
                value = add(load(row, zero), shift)
                wins = either(greater(value, best), is_nan(value))
                best = select(wins, value, best)
                at = select(wins, broadcast(np.int32(p), zero), at)
                row += step
            if outputs == width:
                store(best, out)
            else:
                store_first(best, out, outputs)
            out += layer.window_stride
            if argmax:
                store_codes(at, argmax, code)
                argmax += padded * bytes_of(code)


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
