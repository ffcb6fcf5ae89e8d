"""Sliding evaluation, compiled for the CPU: a program's steps on one block of rows after the other.

A map's last rows lie in a buffer of whole vectors. New rows are appended; where they have no room, the rows that are
still needed move to the front. A block's rows go through all steps while they are in the caches.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from .conv_pool_sums import block_of
from .micro.igemm import igemm
from .micro.memory import LINE, aligned, keep
from .micro.packing import copy_row
from .micro.simd import (
    broadcast,
    bytes_of,
    greatest,
    lanes,
    load,
    load_first,
    load_number,
    maximum,
    positive,
    store,
    store_number,
)
from .micro.tile import TILE, VECTORS
from .runtime.compilation import compiled, inner
from .runtime.threads import share

__all__ = [
    "ADDRESS",
    "CAPACITY",
    "CONVOLVE",
    "DONE",
    "FIRST",
    "GREATEST",
    "LARGEST",
    "MAXIMUM",
    "TOTAL",
    "Block",
    "StepRow",
    "advance_float32",
    "advance_float64",
]

# The columns of the table of maps: the address of stream 0's buffer and the bytes of a row, the row number at the
# buffer's front, the number of rows done, the rows that a buffer holds, the last rows that later ones need, and how
# many rows of the series a row needs behind its own.
ADDRESS, ROW, FIRST, DONE, CAPACITY, TAIL, REACH = range(7)

# Those of the table of outputs: the map, the address of stream 0's results, how many numbers a row has, the bytes from
# a stream's results to those of the next, the number of the row that comes first there, and of the next to be written.
OUTPUT, TARGET, COLUMNS, APART, BEGIN, WRITTEN = range(6)

CONVOLVE, MAXIMUM, GREATEST, TOTAL = range(4)  # kinds of steps: of the maxima, the second one is of positive parts

# Rows that are convolved before the next panel of weights is read: with 128 bytes a row they fill half a first cache.
ROWS = 8 * TILE

LARGEST = 4  # most taps of a maximum that one pass reads


class StepRow(NamedTuple):
    """A row of the table of steps: ``taps`` rows of the table of taps, from ``first`` on, make ``map``."""

    kind: int
    map: int
    first: int
    taps: int
    columns: int  # of each tap's map, that of a convolution reads
    weight: int  # address of the packed weights, panel by panel
    bias: int  # address of the biases, whole vectors
    relu: int


class Block(NamedTuple):
    """What a call works on. Strides are in bytes; ``rows`` of the series are given, or none to go on with steps."""

    stream: int  # from a stream's buffers to those of the next
    rows: int
    block: int  # rows at a time
    source: int
    source_stream: int
    source_row: int
    source_column: int
    columns: int
    taps: int  # most of a convolution, columns counted
    begin: int  # steps
    end: int
    streams: int
    parts: int


@inner
def make_room(maps: Any, m: int, count: int, streams: Any, block: Block, zero: Any) -> None:
    """Make room for ``count`` more rows of map ``m``."""
    done, first = maps[m, DONE], maps[m, FIRST]
    if done + count - first <= maps[m, CAPACITY]:
        return
    kept = min(maps[m, TAIL], done - first)
    row = maps[m, ROW]
    step = lanes(zero) * bytes_of(zero)
    for s in range(streams[0], streams[1]):
        target = maps[m, ADDRESS] + s * block.stream
        source = target + (done - kept - first) * row
        for i in range(0, kept * row, step):
            store(load(source + i, zero), target + i)
    maps[m, FIRST] = done - kept


@inner(inline="always")
def place_of(maps: Any, m: int, row: int) -> Any:
    """Return the address of stream 0's row of a map."""
    return maps[m, ADDRESS] + (row - maps[m, FIRST]) * maps[m, ROW]


@inner
def copy_source(maps: Any, at: int, count: int, streams: Any, block: Block, zero: Any) -> None:
    """Append ``count`` rows of the series, from row ``at`` of the given ones on, to map 0."""
    make_room(maps, 0, count, streams, block, zero)
    size, width = bytes_of(zero), lanes(zero)
    dense = block.source_column == size and block.columns <= width
    for s in range(streams[0], streams[1]):
        source = block.source + s * block.source_stream + at * block.source_row
        target = place_of(maps, 0, maps[0, DONE]) + s * block.stream
        if dense:
            for i in range(count):
                store(load_first(source + i * block.source_row, block.columns, zero), target + i * maps[0, ROW])
        else:
            for i in range(count):
                copy_row(
                    target + i * maps[0, ROW], source + i * block.source_row, block.source_column, block.columns, zero
                )
    maps[0, DONE] += count


@inner
def convolve_rows(
    maps: Any, taps: Any, step: Any, done: int, count: int, streams: Any, block: Block, listed: int, offsets: int,
    zero: Any,
) -> None:  # fmt: skip
    """Compute rows of a convolution; rows of one stream, or one row of several, are a product's rows."""
    size, width = bytes_of(zero), lanes(zero)
    _, target_map, first, number, columns, weight, bias, relu = step
    tap = taps[first]
    row, target_row = maps[tap[0], ROW], maps[target_map, ROW]
    reference = place_of(maps, tap[0], done + tap[1])
    at = offsets
    for k in range(first, first + number):
        place = place_of(maps, taps[k, 0], done + taps[k, 1]) - reference
        for c in range(columns):
            store_number(place + c * size, at, 0)
            at += 8
    many, some_streams, lines, step_in, step_out = 1, streams[1] - streams[0], count, row, target_row
    if count == 1:
        lines, step_in, step_out = some_streams, block.stream, block.stream
    else:
        many = some_streams
    length = number * columns
    summed = block_of(length)
    vectors_out = target_row // (width * size)
    floor = broadcast(zero, zero)
    goal_first = place_of(maps, target_map, done)
    for s in range(streams[0], streams[0] + many):
        for begin in range(0, lines, ROWS):
            some = min(ROWS, lines - begin)
            source = reference + s * block.stream + begin * step_in
            for i in range(some):
                store_number(source + i * step_in, listed + i * 8, 0)
            goal = goal_first + s * block.stream + begin * step_out
            for v in range(0, vectors_out, VECTORS):
                vectors = min(VECTORS, vectors_out - v)
                panel = weight + v * width * length * size
                starts, target = bias + v * width * size, goal + v * width * size
                for t in range(0, length, summed):
                    block_taps, more = min(summed, length - t), t > 0
                    weights = panel + t * vectors * width * size
                    if vectors == VECTORS:
                        igemm(
                            listed, some, offsets + t * 8, block_taps, weights, starts, width * size, target, step_out,
                            more, zero, VECTORS,
                        )  # fmt: skip
                    else:
                        igemm(
                            listed, some, offsets + t * 8, block_taps, weights, starts, width * size, target, step_out,
                            more, zero, 1,
                        )  # fmt: skip
            if relu:
                for i in range(some):
                    for v in range(vectors_out):
                        at = goal + i * step_out + v * width * size
                        store(maximum(load(at, zero), floor), at)


@inner
def greatest_of(target: int, places: Any, length: int, zero: Any) -> None:
    """Write the maxima of two, three or four runs of ``length`` bytes of positive parts; the last may be repeated."""
    a, b, c, d = places
    step = lanes(zero) * bytes_of(zero)
    if b == c == d:
        for i in range(0, length, step):
            store(greatest(load(a + i, zero), load(b + i, zero)), target + i)
    elif c == d:
        for i in range(0, length, step):
            store(greatest(greatest(load(a + i, zero), load(b + i, zero)), load(c + i, zero)), target + i)
    else:
        for i in range(0, length, step):
            low = greatest(load(a + i, zero), load(b + i, zero))
            high = greatest(load(c + i, zero), load(d + i, zero))
            store(greatest(low, high), target + i)


@inner
def maximum_of(target: int, places: Any, length: int, relu: bool, zero: Any) -> None:
    """Write the maxima of two, three or four runs of ``length`` bytes; the last may be repeated.

    With ReLU they are positive parts, as :func:`greatest_of` takes them.
    """
    a, b, c, d = places
    step = lanes(zero) * bytes_of(zero)
    if b == c == d:
        for i in range(0, length, step):
            best = maximum(load(a + i, zero), load(b + i, zero))
            store(positive(best) if relu else best, target + i)
    elif c == d:
        for i in range(0, length, step):
            best = maximum(maximum(load(a + i, zero), load(b + i, zero)), load(c + i, zero))
            store(positive(best) if relu else best, target + i)
    else:
        for i in range(0, length, step):
            low = maximum(load(a + i, zero), load(b + i, zero))
            high = maximum(load(c + i, zero), load(d + i, zero))
            best = maximum(low, high)
            store(positive(best) if relu else best, target + i)


@inner
def maximum_rows(maps: Any, taps: Any, step: Any, done: int, count: int, streams: Any, block: Block, zero: Any) -> None:
    """Compute rows of a maximum, up to four taps in a pass."""
    kind, target_map, first, number, _, _, _, relu = step
    length = count * maps[target_map, ROW]
    last = first + number - 1
    for s in range(streams[0], streams[1]):
        ahead = s * block.stream
        target = place_of(maps, target_map, done) + ahead
        k = first
        while k <= last:
            if k == first:
                begin, following = place_of(maps, taps[k, 0], done + taps[k, 1]) + ahead, k + 1
            else:
                begin, following = target, k
            second, third, fourth = min(following, last), min(following + 1, last), min(following + 2, last)
            k = max(following + 3, k + 1)
            places = (
                begin,
                place_of(maps, taps[second, 0], done + taps[second, 1]) + ahead,
                place_of(maps, taps[third, 0], done + taps[third, 1]) + ahead,
                place_of(maps, taps[fourth, 0], done + taps[fourth, 1]) + ahead,
            )
            if kind == GREATEST:
                greatest_of(target, places, length, zero)
            else:
                maximum_of(target, places, length, relu != 0 and k > last, zero)


@inner
def total_rows(
    maps: Any, taps: Any, step: Any, factor: float, done: int, count: int, streams: Any, block: Block, zero: Any
) -> None:
    """Compute rows of a sum."""
    _, target_map, first, number, _, _, _, relu = step
    length, width = count * maps[target_map, ROW], lanes(zero) * bytes_of(zero)
    scale = broadcast(factor, zero)
    floor = broadcast(zero, zero) if relu else broadcast(-np.inf, zero)
    for s in range(streams[0], streams[1]):
        ahead = s * block.stream
        target = place_of(maps, target_map, done) + ahead
        for k in range(first, first + number):
            place = place_of(maps, taps[k, 0], done + taps[k, 1]) + ahead
            if k == first:
                for i in range(0, length, width):
                    store(load(place + i, zero), target + i)
            else:
                for i in range(0, length, width):
                    store(load(target + i, zero) + load(place + i, zero), target + i)
        for i in range(0, length, width):
            store(maximum(load(target + i, zero) * scale, floor), target + i)


@inner
def write_outputs(maps: Any, outputs: Any, streams: Any, block: Block, zero: Any) -> None:
    """Copy the rows of the outputs that are done and not yet written."""
    size = bytes_of(zero)
    for o in range(outputs.shape[0]):
        m, columns, written = outputs[o, OUTPUT], outputs[o, COLUMNS], outputs[o, WRITTEN]
        count = maps[m, DONE] - written
        for s in range(streams[0], streams[1]):
            source = place_of(maps, m, written) + s * block.stream
            target = outputs[o, TARGET] + s * outputs[o, APART] + (written - outputs[o, BEGIN]) * columns * size
            row = maps[m, ROW]
            if columns == 1:
                for i in range(count):
                    store_number(load_number(source + i * row, zero), target + i * size, zero)
            else:
                for i in range(count):
                    copy_row(target + i * columns * size, source + i * row, size, columns, zero)
        outputs[o, WRITTEN] += count


@inner
def advance_part(
    part: int,
    maps_before: Any,
    maps_after: Any,
    steps: Any,
    taps: Any,
    factors: Any,
    outputs_given: Any,
    block: Block,
    zero: Any,
) -> None:
    """Advance one part of the streams, block by block. The first part writes down where all are then."""
    maps, outputs = maps_before.copy(), outputs_given.copy()
    streams = (block.streams * part // block.parts, block.streams * (part + 1) // block.parts)
    scratch = np.empty((ROWS + block.taps + 1) * 8 + 2 * LINE, np.uint8)
    listed = aligned(scratch.ctypes.data)
    offsets = aligned(listed + ROWS * 8)
    at = 0
    while True:
        count = min(block.block, block.rows - at)
        if block.rows:
            copy_source(maps, at, count, streams, block, zero)
        for k in range(block.begin, block.end):
            step = (
                steps[k, 0], steps[k, 1], steps[k, 2], steps[k, 3], steps[k, 4], steps[k, 5], steps[k, 6], steps[k, 7],
            )  # fmt: skip
            m = step[1]
            done = maps[m, DONE]
            number = max(maps[0, DONE] - maps[m, REACH], 0) - done
            if number <= 0:
                continue
            make_room(maps, m, number, streams, block, zero)
            if step[0] == CONVOLVE:
                convolve_rows(maps, taps, step, done, number, streams, block, listed, offsets, zero)
            elif step[0] != TOTAL:
                maximum_rows(maps, taps, step, done, number, streams, block, zero)
            else:
                total_rows(maps, taps, step, factors[k], done, number, streams, block, zero)
            maps[m, DONE] += number
        if block.end == steps.shape[0]:
            write_outputs(maps, outputs, streams, block, zero)
        at += count
        if at >= block.rows:
            break
    keep(scratch)
    if part == 0:
        maps_after[:] = maps


@compiled
def advance_float32(
    maps: Any, after: Any, steps: Any, taps: Any, factors: Any, outputs: Any, block: Block, begin: int, end: int,
    threads: int, launch: int,
) -> None:  # fmt: skip
    """Advance float32 streams through the steps of a block; see :func:`advance_part`."""
    zero = np.float32(0)
    share(begin, end, threads, launch, advance_part, (maps, after, steps, taps, factors, outputs, block, zero))


@compiled
def advance_float64(
    maps: Any, after: Any, steps: Any, taps: Any, factors: Any, outputs: Any, block: Block, begin: int, end: int,
    threads: int, launch: int,
) -> None:  # fmt: skip
    """Advance float64 streams through the steps of a block; see :func:`advance_part`."""
    zero = np.float64(0)
    share(begin, end, threads, launch, advance_part, (maps, after, steps, taps, factors, outputs, block, zero))
