"""Pooling of a chunk of convolved rows, for all output channels of a layer on gathered rows."""

from __future__ import annotations

from typing import Any

from numba import njit

from .gathered import Descriptor
from .micro.argmaxpool import clear_windows, pool_some
from .micro.simd import bytes_of, lanes

__all__ = ["pool_rows"]


@njit
def pool_rows(
    layer: Descriptor,
    rows: int,
    step: int,
    first: int,
    behind: int,
    positions: int,
    windows: Any,
    places: Any,
    running: Any,
    zero: Any,
    argmax_zero: Any,
) -> None:
    """Write the maxima of the windows from ``windows[0]`` to before ``windows[1]``, and 0 to before ``windows[2]``.

    ``rows`` holds the sample's positions from ``first`` to before ``behind``, rows of whole vectors ``step`` bytes
    apart, as long as a row of ``argmax``; the sample has ``positions`` in all. ``places`` are the addresses for the
    first window's maxima and argmax, 0 where that is not wanted; ``running`` those of running maxima and their argmax,
    if windows are pooled by them. Where no position is inside one of the first windows its maximum is minus infinity.
    """
    width, size, argmax_itemsize = lanes(zero), bytes_of(zero), bytes_of(argmax_zero)
    pool = (layer.pool_size, layer.pool_stride, layer.pool_padding, layer.pool_dilation)
    begin, end, all_end = windows
    for o in range(0, layer.outputs, width):
        target, argmax = places[0] + o * size, places[1] + o * argmax_itemsize if places[1] else 0
        hop, some, jump = layer.window_stride, min(width, layer.outputs - o), step // size * argmax_itemsize
        held = (running[0] + layer.slides * o * size, running[1] + layer.slides * o * 4) if layer.slides else (0, 0)
        given = (rows + o * size, step, first, behind, positions, (begin, end), pool, held)
        if end > begin:
            pool_some(*given, target, hop, some, argmax, jump, argmax_itemsize, zero)
        clear_windows(begin, end, all_end, target, hop, some, argmax, jump, argmax_itemsize, zero)
