"""Blocks of a sample's channels, copied so that positions are dense rows of numbers, and copied back.

The taps of a convolution then read one contiguous run of numbers, aligned to vectors, whichever layout the tensor has:
rows of channels-last memory are copied, those of contiguous memory transposed.
"""

from __future__ import annotations

from typing import Any

from ..runtime.compilation import inner
from .simd import (
    add,
    broadcast,
    bytes_of,
    horizontal_sum,
    is_nan,
    lanes,
    load,
    load_first,
    multiply_add,
    select,
    store,
    store_first,
)
from .transposition import transpose

__all__ = ["all_finite", "carry_sums", "clear_vectors", "load_rows", "store_rows"]


@inner
def clear_vectors(target: int, size: int, zero: Any) -> None:
    """Write zeros to ``size`` bytes, rounded up to whole vectors."""
    step = lanes(zero) * bytes_of(zero)
    for at in range(0, size, step):
        store(broadcast(zero, zero), target + at)


@inner
def carry_sums(source: int, target: int, size: int, zero: Any) -> None:
    """Add ``size`` bytes of numbers at ``source`` to those at ``target``; leave the rounding errors at ``source``.

    Terms are then added on top of these errors, so that a total of many sums rounds about as a single addition does.
    """
    step = lanes(zero) * bytes_of(zero)
    full, rest = size // step * step, size % step // bytes_of(zero)
    for at in range(0, full, step):
        total, cut = sum_of_two(load(target + at, zero), load(source + at, zero), zero)
        store(total, target + at)
        store(cut, source + at)
    if rest:
        total, cut = sum_of_two(load_first(target + full, rest, zero), load_first(source + full, rest, zero), zero)
        store_first(total, target + full, rest)
        store_first(cut, source + full, rest)


@inner(inline="always")
def sum_of_two(one: Any, other: Any, zero: Any) -> Any:
    """Return a sum and its rounding error (Knuth's 2Sum), 0 where the sum is not finite."""
    minus, total = broadcast(-1.0, zero), add(one, other)
    added = multiply_add(one, minus, total)
    kept = multiply_add(added, minus, total)
    cut = add(multiply_add(kept, minus, one), multiply_add(added, minus, other))
    return total, select(is_nan(cut), broadcast(zero, zero), cut)


@inner
def all_finite(source: int, size: int, zero: Any) -> bool:
    """Tell whether ``size`` bytes of numbers hold no infinity and no NaN: 0 times one of these is NaN."""
    step = lanes(zero) * bytes_of(zero)
    nothing = broadcast(zero, zero)
    one = other = nothing
    full = size // (2 * step) * 2 * step
    for at in range(0, full, 2 * step):
        one = multiply_add(load(source + at, zero), nothing, one)
        other = multiply_add(load(source + at + step, zero), nothing, other)
    for at in range(full, size, step):
        rest = min(step, size - at) // bytes_of(zero)
        one = multiply_add(load_first(source + at, rest, zero), nothing, one)
    finite: bool = horizontal_sum(add(one, other)) == zero
    return finite


@inner
def load_rows(
    target: int, row: int, source: int, channel_stride: int, position_stride: int, channels: int, count: int, zero: Any
) -> None:
    """Copy ``channels`` numbers of each of ``count`` positions to rows ``row`` bytes apart.

    One of the two strides, in bytes, must be the size of a number. Where a row has room for its last vector, the lanes
    behind ``channels`` are set to zero or left alone.
    """
    width, size = lanes(zero), bytes_of(zero)
    if channel_stride != size:
        for c in range(0, channels, width):  # a vector's lanes are as many streams of memory, each read in order
            place, goal = source + c * channel_stride, target + c * size
            transpose(place, channel_stride, goal, row, min(width, channels - c), count, zero)
        return
    if position_stride == row and row == channels * size:
        channels, count = channels * count, 1
    full, rest = channels // width * width * size, channels % width
    padded = row >= full + width * size
    for _ in range(count):
        for at in range(0, full, width * size):
            store(load(source + at, zero), target + at)
        if rest and padded:
            store(load_first(source + full, rest, zero), target + full)
        elif rest:
            store_first(load_first(source + full, rest, zero), target + full, rest)
        source, target = source + position_stride, target + row


@inner
def store_rows(
    source: int, row: int, target: int, channel_stride: int, position_stride: int, channels: int, count: int, zero: Any
) -> None:
    """Copy rows back to where :func:`load_rows` took them from; nothing else is written."""
    width, size = lanes(zero), bytes_of(zero)
    if channel_stride != size:
        for c in range(0, channels, width):
            place, goal = source + c * size, target + c * channel_stride
            transpose(place, row, goal, channel_stride, count, min(width, channels - c), zero)
        return
    if position_stride == row and row == channels * size:
        channels, count = channels * count, 1
    full, rest = channels // width * width * size, channels % width
    for _ in range(count):
        for at in range(0, full, width * size):
            store(load(source + at, zero), target + at)
        if rest:
            store_first(load_first(source + full, rest, zero), target + full, rest)
        source, target = source + row, target + position_stride
