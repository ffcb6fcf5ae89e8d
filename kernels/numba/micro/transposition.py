"""Transposition in Numba kernels: squares of a vector's width are transposed in registers, the borders by masks.

A square of ``W x W`` numbers is read as ``W`` vectors and transposed by ``log2(W)`` rounds of shuffles: first within
lanes of 16 bytes, for which every CPU has unpack instructions, then by moving whole lanes. On a Zen 4, a 512-bit
shuffle and half a store a cycle, that is 64 shuffles for 256 float32.
"""
# ruff: noqa: ARG001  (an intrinsic's parameters are types)

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import njit, types

from ..runtime.compilation import intrinsic
from .simd import (
    byte_pointer,
    bytes_of,
    first_lanes,
    lanes,
    llvm_vector,
    read,
    read_first,
    size_of,
    vector_of,
    write,
    write_masked,
)

__all__ = ["transpose", "transpose_to_vectors"]

# Bytes of a lane: shuffles of every CPU stay within such lanes, or move whole ones.
LANE = 16


@njit
def transpose(
    source: int, source_stride: int, target: int, target_stride: int, rows: int, columns: int, zero: Any
) -> None:
    """Write number ``c`` of row ``r`` at ``source`` as number ``r`` of row ``c`` at ``target``.

    Each row's numbers, of the type of ``zero``, are contiguous; strides are in bytes. Only the ``rows`` x ``columns``
    numbers of ``source`` are read, and only theirs in ``target`` are written.
    """
    width, size = lanes(zero), bytes_of(zero)
    for c in range(0, columns, width):
        wide = min(width, columns - c)
        for r in range(0, rows, width):
            high = min(width, rows - r)
            place, goal = source + r * source_stride + c * size, target + c * target_stride + r * size
            if wide == width and high == width:
                transpose_square(place, source_stride, goal, target_stride, zero)
            else:
                transpose_part(place, source_stride, goal, target_stride, high, wide, zero)


@intrinsic
def transpose_square(_typing: Any, source: Any, source_stride: Any, target: Any, target_stride: Any, like: Any) -> Any:
    """Transpose a square of as many rows and columns as a vector has lanes."""
    kind = llvm_vector(vector_of(like))

    def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        size = size_of(kind.element)
        source, target = (byte_pointer(builder, arguments[i]) for i in (0, 2))
        rows = [read(builder, _row(builder, source, i, arguments[1]), kind, size) for i in range(kind.count)]
        for i, row in enumerate(_turn(builder, rows, kind)):
            write(builder, row, _row(builder, target, i, arguments[3]), size)
        return context.get_dummy_value()

    return types.void(*(types.int64,) * 4, like), generate


@intrinsic
def transpose_to_vectors(
    _typing: Any, source: Any, source_stride: Any, rows: Any, target: Any, target_stride: Any, like: Any
) -> Any:
    """Write a vector of columns as vectors: the first ``rows`` lanes of each are a column's, the others undefined.

    At least one row, and at most as many as a vector has lanes, are read, whole vectors of each.
    """
    kind = llvm_vector(vector_of(like))

    def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        source, stride, rows, target, target_stride = arguments[:5]
        size, number = size_of(kind.element), ir.IntType(64)
        first, goal = byte_pointer(builder, source), byte_pointer(builder, target)
        have = []
        for i in range(kind.count):
            exists = builder.icmp_signed("<", ir.Constant(number, i), rows)  # the first row is read again for others
            have.append(read(builder, builder.select(exists, _row(builder, first, i, stride), first), kind, size))
        for i, column in enumerate(_turn(builder, have, kind)):
            write(builder, column, _row(builder, goal, i, target_stride), size)
        return context.get_dummy_value()

    return types.void(*(types.int64,) * 5, like), generate


@intrinsic
def transpose_part(
    _typing: Any, source: Any, source_stride: Any, target: Any, target_stride: Any, rows: Any, columns: Any, like: Any
) -> Any:
    """Transpose ``rows`` x ``columns`` numbers, at least one and at most a vector's lanes of each."""
    kind = llvm_vector(vector_of(like))

    def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        source, stride, target, target_stride, rows, columns = arguments[:6]
        number = ir.IntType(64)
        first, goal = byte_pointer(builder, source), byte_pointer(builder, target)
        have = []
        for i in range(kind.count):
            exists = builder.icmp_signed("<", ir.Constant(number, i), rows)  # the first row is read again for others
            place = builder.select(exists, _row(builder, first, i, stride), first)
            have.append(read_first(builder, place, columns, kind))
        turned, mask = _turn(builder, have, kind), first_lanes(builder, rows, kind.count)
        done = builder.append_basic_block("transposed")
        for i, row in enumerate(turned):
            write_masked(builder, row, _row(builder, goal, i, target_stride), mask)
            following = builder.append_basic_block("column") if i + 1 < kind.count else done
            more = builder.icmp_signed("<", ir.Constant(number, i + 1), columns)
            builder.cbranch(more, following, done)
            builder.position_at_end(following)
        return context.get_dummy_value()

    return types.void(*(types.int64,) * 6, like), generate


def _row(builder: Any, base: Any, i: int, stride: Any) -> Any:
    """Return the pointer to row ``i``."""
    return builder.gep(base, [builder.mul(stride, ir.Constant(ir.IntType(64), i))])


def _turn(builder: Any, rows: list[Any], kind: ir.VectorType) -> list[Any]:
    """Return the columns of the square whose rows are given."""
    lane = LANE // size_of(kind.element)
    groups = [_unpack(builder, rows[i : i + lane], kind, lane) for i in range(0, kind.count, lane)]
    # Vector j of group g holds column l * lane + j of the group's rows in its 16-byte lane l.
    columns: list[Any] = [None] * kind.count
    for j in range(lane):
        for place, vector in enumerate(_gather_lanes(builder, [group[j] for group in groups], kind, lane)):
            columns[place * lane + j] = vector
    return columns


def _unpack(builder: Any, rows: list[Any], kind: ir.VectorType, lane: int) -> list[Any]:
    """Transpose the squares of ``lane`` rows and as many numbers, in every 16-byte lane at once."""
    run = 1
    while run < lane:
        low: list[int] = []
        high: list[int] = []
        for begin in range(0, kind.count, lane):
            for half, indices in ((0, low), (lane // 2, high)):
                for at in range(begin + half, begin + half + lane // 2, run):
                    indices += [*range(at, at + run), *range(kind.count + at, kind.count + at + run)]
        # Runs of this length stand in order; rows a run's length apart belong together.
        pairs = [(i, i + run) for i in range(lane) if not i & run]
        turned: list[Any] = [None] * lane
        for i, k in pairs:
            turned[i] = _shuffle(builder, rows[i], rows[k], low)
            turned[k] = _shuffle(builder, rows[i], rows[k], high)
        rows, run = turned, 2 * run
    # High halves went to the later row of a pair in every round: the bits of a column's number are reversed.
    bits = lane.bit_length() - 1
    return [rows[int(f"{j:0{bits}b}"[::-1], 2)] for j in range(lane)]


def _gather_lanes(builder: Any, rows: list[Any], kind: ir.VectorType, lane: int) -> list[Any]:
    """Return a vector for every 16-byte lane: that lane of all rows, which are as many as a vector has lanes."""
    if len(rows) == 1:
        return rows

    def lanes_of(first: Any, second: Any, chosen: list[int]) -> Any:
        return _shuffle(builder, first, second, [i for c in chosen for i in range(c * lane, (c + 1) * lane)])

    if len(rows) == 2:
        return [lanes_of(rows[0], rows[1], chosen) for chosen in ([0, 2], [1, 3])]
    near = [lanes_of(rows[i], rows[i + 1], chosen) for chosen in ([0, 1, 4, 5], [2, 3, 6, 7]) for i in (0, 2)]
    return [lanes_of(near[i], near[i + 1], chosen) for i in (0, 2) for chosen in ([0, 2, 4, 6], [1, 3, 5, 7])]


def _shuffle(builder: Any, first: Any, second: Any, indices: list[int]) -> Any:
    """Return the vector of the numbers at ``indices`` of two vectors, the second's counted on from the first's."""
    return builder.shuffle_vector(first, second, ir.Constant(ir.VectorType(ir.IntType(32), len(indices)), indices))
