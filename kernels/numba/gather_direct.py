"""The conv stack on gathered rows under the plan *direct*: for calls that use most of their rows only once.

The rows of a chunk of positions are copied to a scratch that stays in the second-level cache, while the next chunk's
rows are prefetched: a register tile that read them in place would wait for each. The activation is pooled from a
scratch, too.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from .conv_pool_kernel import limits_of
from .gathered import CHUNK, Descriptor, Index, row_of
from .micro.argmaxpool import finish_whole, pool_whole
from .micro.gemm import gemm
from .micro.memory import aligned, keep
from .micro.packing import copy_row
from .micro.simd import bytes_of, lanes, load, store, store_number
from .pooling import pool_rows
from .runtime.compilation import compiled
from .runtime.threads import share
from .windows import move_row

__all__ = ["forward_direct"]


@compiled
def forward_direct(
    layer: Descriptor,
    index: Index,
    table: Any,
    places: Any,
    blocks: int,
    is_global: bool,
    zero: Any,
    argmax_zero: Any,
    begin: int,
    end: int,
    threads: int,
    launch: int,
) -> None:
    """Compute the blocks ``begin`` to ``end``; see :func:`direct_block`."""
    share(
        begin, end, threads, launch, direct_block, (layer, index, table, places, blocks, is_global, zero, argmax_zero)
    )


@njit
def direct_block(
    block: int,
    layer: Descriptor,
    index: Index,
    table: Any,
    places: Any,
    blocks: int,
    is_global: bool,
    zero: Any,
    argmax_zero: Any,
) -> None:
    """Compute one of the ``blocks`` of all samples' chunks of windows.

    ``table`` are the table's address, the bytes between its rows and channels and the number of channels; ``places``
    the addresses of the weights ``(K, C, O)`` and the bias, both in whole vectors of outputs, of the result and of
    ``argmax`` (0: not wanted). ``zero`` and ``argmax_zero`` are zeros of the tensor's and the argmax's type.
    """
    weights, bias, out, argmax = places
    chunks = (layer.windows + layer.chunk - 1) // layer.chunk
    begin, end = layer.samples * chunks * block // blocks, layer.samples * chunks * (block + 1) // blocks
    size = bytes_of(zero)
    width = lanes(zero)
    padded = (layer.outputs + width - 1) // width * width * size
    span = (layer.pool_size - 1) * layer.pool_dilation
    most = min((layer.chunk - 1) * layer.pool_stride + span + 1, layer.positions)
    most = min(CHUNK, most) if is_global else most
    copied = ((most - 1) * layer.stride + (layer.size - 1) * layer.dilation + 1) * table[3] * size
    scratch = np.empty(most * padded + padded + padded // size * 4 + copied + 256, np.uint8)
    sums = aligned(scratch.ctypes.data)
    maxima = aligned(sums + most * padded)
    running_argmax = aligned(maxima + padded)
    rows = aligned(running_argmax + padded // size * 4)
    for part in range(begin, end):
        n = part // chunks
        from_window = part % chunks * layer.chunk
        to_window = min(from_window + layer.chunk, layer.windows)
        positions, windows = limits_of(layer, n)
        windows = max(min(to_window, windows), from_window)
        first = max(from_window * layer.pool_stride - layer.pool_padding, 0)
        last = min((windows - 1) * layer.pool_stride - layer.pool_padding + span + 1, positions)
        if not is_global:
            following = min(part + 1, layer.samples * chunks - 1)
            ahead = following % chunks * layer.chunk * layer.pool_stride - layer.pool_padding
            ahead = max(ahead, 0) * layer.stride - layer.left
            if last > first:
                chunk = (n, first, last - first, following // chunks, ahead)
                convolve_gathered(layer, index, table, chunk, (weights, bias), rows, sums, zero)
            place = out + n * layer.sample_stride + from_window * layer.window_stride
            at = (n * layer.windows + from_window) * padded // size * bytes_of(argmax_zero)
            argmax_at = argmax + at if argmax else 0
            mine = (from_window, windows, to_window)
            pool_rows(layer, sums, padded, first, positions, mine, (place, argmax_at), zero, argmax_zero)
            continue
        for i in range(padded // size):
            store_number(zero, maxima + i * size, zero)
            store_number(np.int32(-1), running_argmax + i * 4, np.int32(0))
        for p in range(0, positions, most):
            count = min(most, positions - p)
            chunk = (n, p, count, n, (p + count) * layer.stride - layer.left)
            convolve_gathered(layer, index, table, chunk, (weights, bias), rows, sums, zero)
            for o in range(0, padded // size, width):
                pool_whole(sums + o * size, padded, p, count, maxima + o * size, running_argmax + o * 4, zero)
        for o in range(0, layer.outputs, width):
            outputs, argmax_itemsize = min(width, layer.outputs - o), bytes_of(argmax_zero)
            argmax_at = argmax + (n * padded // size + o) * argmax_itemsize if argmax else 0
            place = out + n * layer.sample_stride + o * size
            found = (maxima + o * size, running_argmax + o * 4)
            finish_whole(*found, 1, 0, place, outputs, argmax_at, argmax_itemsize, zero)
    keep(scratch)


@njit
def convolve_gathered(
    layer: Descriptor, index: Index, table: Any, chunk: Any, filters: Any, rows: int, sums: int, zero: Any
) -> None:
    """Fill ``sums`` with the convolution and bias at some positions of a sample; ``rows`` is room for their rows.

    ``chunk`` are the sample, its first position and the number of positions, then the sample and the input position
    from which rows are prefetched.
    """
    address, row_stride, channel_stride, channels = table
    n, first, count, next_n, ahead = chunk
    size, width = bytes_of(zero), lanes(zero)
    vectors = (layer.outputs + width - 1) // width
    reach = (layer.size - 1) * layer.dilation
    begin = first * layer.stride - layer.left
    for i in range((count - 1) * layer.stride + reach + 1):
        place = rows + i * channels * size
        if 0 <= begin + i < layer.length:
            later = address + row_of(index, next_n, min(max(ahead + i, 0), layer.length - 1)) * row_stride
            row = address + row_of(index, n, begin + i) * row_stride
            if channel_stride == size:
                move_row(place, row, later, channels * size)
            else:
                copy_row(place, row, channel_stride, channels, zero)
        else:
            for c in range(channels):
                store_number(zero, place + c * size, zero)
    row = channels * size
    taps = (layer.size, layer.dilation * row, channels, size)
    if layer.dilation == 1:  # all taps of a position are neighbours
        taps = (1, 0, layer.size * channels, size)
    weights, bias = filters
    goal = vectors * width * size
    for i in range(count):
        for o in range(0, goal, width * size):
            store(load(bias + o, zero), sums + i * goal + o)
    gemm(sums, goal, rows, layer.stride * row, count, taps, weights, goal, vectors, False, zero)
