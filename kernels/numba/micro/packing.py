"""Weights and inputs laid out as the register tiles read them.

Packed weights are panels of :data:`.tiles.VECTORS` vectors of output channels, tap by tap, the last panel a single
vector if that holds the rest; a vector of zeros and all biases come first. Lanes behind the last output are zero.

Weights are packed in every call. On one core of a Zen 4 that takes 0.01 to 0.3 % of a call for imdb1, jena1 and jena2,
and 6 to 10 % of one for 512 x 512 x 7 weights and 4 samples of 64 positions, where threads share it. Packed weights are
not kept from call to call: ``weight.data.mul_()`` leaves no trace, so that only a comparison with a copy would show a
change, and that would read twice as much as packing does.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from .memory import keep
from .simd import REGISTERS, broadcast, bytes_of, lanes, load, load_first, load_number, store, store_first, store_number
from .transposition import transpose

__all__ = ["clear", "copy_padded_rows", "copy_row", "pack_bias", "pack_panel"]

# Taps that are transposed at a time, before they are moved to their places in the other order.
BLOCK = 64


@njit
def pack_bias(bias: int, stride: int, outputs: int, padded: int, packed: int, zero: Any) -> None:
    """Write a vector of zeros, then ``outputs`` biases (``stride`` bytes apart; address 0: none), then zeros."""
    width, size = lanes(zero), bytes_of(zero)
    for o in range(0, padded + width, width):
        store(broadcast(zero, zero), packed + o * size)
    if bias:
        for o in range(outputs):
            store_number(load_number(bias + o * stride, zero), packed + (width + o) * size, zero)


@njit
def pack_panel(
    weight: int, stride: int, taps: int, period: int, outputs: int, vectors: int, packed: int, zero: Any
) -> None:
    """Write a panel of ``outputs`` rows of ``taps`` weights, ``stride`` bytes apart, as ``vectors`` vectors per tap.

    A row's number ``a * period + b`` becomes tap ``b * (taps / period) + a``: the other order of channels and kernel
    positions, or, with a ``period`` of 1, the same.
    """
    size = bytes_of(zero)
    row = vectors * REGISTERS.width
    if outputs * size < row:
        for i in range(0, taps * row, REGISTERS.width):
            store(broadcast(zero, zero), packed + i)
    if period == 1 or period == taps:
        transpose(weight, stride, packed, row, outputs, taps, zero)
        return
    scratch = np.empty(BLOCK * row, np.uint8)
    place, apart = scratch.ctypes.data, taps // period
    for i in range(0, BLOCK * row, REGISTERS.width):
        store(broadcast(zero, zero), place + i)
    for begin in range(0, taps, BLOCK):
        count = min(BLOCK, taps - begin)
        transpose(weight + begin * size, stride, place, row, outputs, count, zero)
        a, b = begin // period, begin % period
        for i in range(count):
            target = packed + (b * apart + a) * row
            for v in range(vectors):
                store(load(place + i * row + v * REGISTERS.width, zero), target + v * REGISTERS.width)
            b += 1
            if b == period:
                a, b = a + 1, 0
    keep(scratch)


@njit
def copy_padded_rows(
    source: int,
    channel_stride: int,
    row_stride: int,
    channels: int,
    begin: int,
    length: int,
    rows: int,
    target: int,
    by_channel: bool,
    zero: Any,
) -> None:
    """Copy the rows ``begin`` to ``begin + rows`` of a sample, with zeros for rows below 0 or from ``length`` on.

    The copy is dense, ``(channels, rows)`` if ``by_channel``, else ``(rows, channels)``.
    """
    size = bytes_of(zero)
    low, high = min(max(0, -begin), rows), max(0, min(rows, length - begin))
    high = max(low, high)
    if by_channel:
        for c in range(channels):
            place = target + c * rows * size
            clear(place, low, zero)
            if channel_stride != size:
                begins = source + c * channel_stride + (begin + low) * row_stride
                copy_row(place + low * size, begins, row_stride, high - low, zero)
            clear(place + high * size, rows - high, zero)
        if channel_stride == size:
            begins = source + (begin + low) * row_stride
            transpose(begins, row_stride, target + low * size, rows * size, high - low, channels, zero)
    else:
        clear(target, low * channels, zero)
        row = channels * size
        if row_stride == size and channel_stride != size:
            transpose(
                source + (begin + low) * size, channel_stride, target + low * row, row, channels, high - low, zero
            )
        else:
            for r in range(low, high):
                copy_row(target + r * row, source + (begin + r) * row_stride, channel_stride, channels, zero)
        clear(target + high * channels * size, (rows - high) * channels, zero)


@njit
def copy_row(target: int, source: int, stride: int, count: int, zero: Any) -> None:
    """Copy ``count`` numbers, ``stride`` bytes apart, to neighbouring places."""
    width, size = lanes(zero), bytes_of(zero)
    if stride != size:
        for i in range(count):
            store_number(load_number(source + i * stride, zero), target + i * size, zero)
        return
    for i in range(0, count - width + 1, width):
        store(load(source + i * size, zero), target + i * size)
    rest = count % width
    if rest:
        done = (count - rest) * size
        store_first(load_first(source + done, rest, zero), target + done, rest)


@njit
def clear(target: int, count: int, zero: Any) -> None:
    """Write ``count`` zeros."""
    zeros, width = broadcast(zero, zero), lanes(zero)
    for i in range(0, count - width + 1, width):
        store(zeros, target + i * bytes_of(zero))
    if count % width:
        store_first(zeros, target + count // width * width * bytes_of(zero), count % width)
