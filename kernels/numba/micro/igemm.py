"""Indirect matrix products, the core of a convolution: a register tile of sums, whose rows a table of addresses names.

    target[i, v] = start[i, v] + sum over taps t of numbers[i, t] * vectors[t, v]

Rows ``i`` are positions and vectors hold output channels or, where output channels are few, the other way round. A
table (the indirection) has the rows' addresses, so that a tile may span several samples. A second table has the taps'
offsets, so that one loop, without a short inner one, serves all memory formats.
"""
# ruff: noqa: ARG001  (an intrinsic's parameters are types)

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from llvmlite import ir
from numba import njit, types

from ..runtime.compilation import intrinsic
from .control import of_size, repeat
from .simd import REGISTERS, byte_pointer, bytes_of, lanes, llvm_vector, read, vector_of
from .tile import TILE, Step, emit_sums, store_sums, vector_places

__all__ = ["igemm", "igemm_few_outputs", "opaque"]

TILES = (14, 10, 6, 4, 2, 1) if TILE == 14 else (6, 4, 2, 1)  # a rest is cut into these

# Vectors of positions in a tile of 1, 2, 4 and 8 output channels.
FEW = {1: 8, 2: 6, 4: 4, 8: 3} if REGISTERS.number == 32 else {1: 6, 2: 4, 4: 2, 8: 1}
FEW_1, FEW_2, FEW_4, FEW_8 = FEW.values()  # as compiled code reads them


@njit(inline="always")
def igemm(
    table: int,
    count: int,
    offsets: int,
    taps: int,
    weights: int,
    start: int,
    start_step: int,
    target: int,
    target_row: int,
    more: bool,
    zero: Any,
    vectors: int,
) -> None:
    """Compute a block of taps for the ``count`` rows in ``table``, in tiles; ``vectors``, a literal, hold the outputs.

    The rest is as in :func:`emit_tile`.
    """
    row = vectors * REGISTERS.width
    done = 0
    while done < count:
        tile = 1
        for size in TILES[::-1]:
            tile = size if size <= count - done else tile
        rows, place = table + done * 8, target + done * target_row
        igemm_tile(rows, offsets, taps, weights, row, start, start_step, place, target_row, more, zero, tile, vectors)
        done += tile


@njit(inline="always")
def igemm_few_outputs(
    table: int,
    rows: int,
    offsets: int,
    taps: int,
    x: int,
    count: int,
    start: int,
    target: int,
    row: int,
    more: bool,
    zero: Any,
) -> None:
    """Compute a block of taps for ``count`` neighbouring positions at ``x``, of 1, 2, 4 or 8 ``rows`` of weights.

    ``target`` has rows of whole vectors, ``row`` bytes apart, ``start`` a vector for each. The last vector ends with
    the last position and so overlaps the one before, unless ``count`` is less than a vector: then positions behind the
    last are read. The rest is as in :func:`emit_tile`.
    """
    lane, size, step, done = lanes(zero), bytes_of(zero), REGISTERS.width, 0
    wide = FEW_1 if rows == 1 else FEW_2 if rows == 2 else FEW_4 if rows == 4 else FEW_8
    while count - done >= wide * lane:
        place, goal = x + done * size, target + done * size
        igemm_few_tile(table, offsets, taps, place, size, start, step, goal, row, more, zero, rows, True)
        done += wide * lane
    while done < count:
        place, goal = x + min(done, max(count - lane, 0)) * size, target + done * size
        igemm_few_tile(table, offsets, taps, place, size, start, step, goal, row, more, zero, rows, False)
        done += lane


@intrinsic
def igemm_tile(
    _typing: Any,
    table: Any,
    offsets: Any,
    taps: Any,
    operand: Any,
    step: Any,
    start: Any,
    start_step: Any,
    target: Any,
    target_row: Any,
    more: Any,
    like: Any,
    rows: Any,
    vectors: Any,
) -> Any:
    """Compute a tile of ``rows`` positions, one of :data:`TILES`, x ``vectors`` of output channels, a literal."""
    if not isinstance(vectors, types.IntegerLiteral):
        return None
    kind, width = llvm_vector(vector_of(like)), vectors.literal_value

    def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        emit = partial(emit_tile, builder, kind, arguments[:10], width=width, few=False)
        of_size(builder, arguments[11], TILES, emit)
        return context.get_dummy_value()

    return types.void(*FORM, like, types.int64, vectors), generate


@intrinsic
def igemm_few_tile(
    _typing: Any,
    table: Any,
    offsets: Any,
    taps: Any,
    operand: Any,
    step: Any,
    start: Any,
    start_step: Any,
    target: Any,
    target_row: Any,
    more: Any,
    like: Any,
    rows: Any,
    wide: Any,
) -> Any:
    """Compute a tile of ``rows`` output channels, one of :data:`FEW`, x vectors of positions, one unless ``wide``."""
    if not isinstance(wide, types.BooleanLiteral):
        return None
    kind = llvm_vector(vector_of(like))

    def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        def emit(rows: int) -> None:
            emit_tile(builder, kind, arguments[:10], rows, width=FEW[rows] if wide.literal_value else 1, few=True)

        of_size(builder, arguments[11], tuple(FEW), emit)
        return context.get_dummy_value()

    return types.void(*FORM, like, types.int64, wide), generate


FORM = (*(types.int64,) * 9, types.boolean)


def emit_tile(builder: Any, kind: Any, given: Sequence[Any], rows: int, *, width: int, few: bool) -> None:
    """Emit a tile of ``rows`` x ``width`` vectors of sums over ``taps``, of which there is at least one.

    ``given`` are the first arguments of :func:`igemm_tile`. ``table`` has the rows' addresses and ``offsets`` the taps'
    offsets: number ``(i, t)`` is at the sum of the two. Vector ``(t, v)`` is the ``v``-th at ``t * step`` bytes behind
    ``operand``. If ``few``, the offsets are those of the vectors, and a row's numbers are ``step`` bytes apart.
    ``offsets`` must have one readable entry behind the last. A row's vectors are contiguous in ``target``, rows
    ``target_row`` bytes apart. All sums start at 0. In the end they are added to what ``target`` holds if ``more``,
    else to the vectors behind ``start``, ``start_step`` bytes apart: one for each column, or for each row if ``few``.
    """
    table, offsets, taps, operand, step, start, start_step, target, target_row, more = given
    number = ir.IntType(64)

    def listed(place: Any, i: Any) -> Any:
        return read(builder, builder.gep(place, [builder.mul(i, ir.Constant(number, 8))]), number, 8)

    addresses = byte_pointer(builder, table)
    sources = [byte_pointer(builder, listed(addresses, ir.Constant(number, i))) for i in range(rows)]
    behind, content, nothing = byte_pointer(builder, offsets), byte_pointer(builder, operand), ir.Constant(number, 0)

    def walk(add_tap: Step, zeros: list[Any]) -> list[Any]:
        def follow(tap: Any, hidden: Any, here: Any, *sums: Any) -> tuple[list[Any], Any]:
            offset = opaque(builder, hidden)  # loaded one tap ahead, there is one behind the last
            vectors = builder.gep(content, [offset]) if few else here
            totals = add_tap([builder.gep(row, [here if few else offset]) for row in sources], vectors, sums)
            ahead = builder.add(tap, ir.Constant(number, 1))
            further = builder.add(here, step) if few else builder.gep(here, [step])
            seen = opaque(builder, ahead)
            return [seen, listed(behind, ahead), further, *totals], builder.icmp_signed("<", seen, taps)

        starts = [nothing, listed(behind, nothing), nothing if few else content, *zeros]
        return repeat(builder, starts, follow)[3:]

    sums = emit_sums(builder, kind, rows, width, walk)
    goals = vector_places(builder, kind, target, target_row, rows, width)
    begins = [
        builder.gep(byte_pointer(builder, start), [builder.mul(start_step, ir.Constant(number, i if few else v))])
        for i in range(rows)
        for v in range(width)
    ]
    store_sums(builder, kind, sums, goals, builder.not_(more), begins)


# How inline assembly names a vector register.
VECTOR_PLACE = {64: "v", 32: "x"}.get(REGISTERS.width, "w" if REGISTERS.number == 32 else "x")


def opaque(builder: Any, number: Any) -> Any:
    """Return a number whose origin is hidden from LLVM.

    Otherwise LLVM unrolls the loop, loads numbers far ahead of their use and spills the sums, which halves the speed. A
    test checks that it does not.
    """
    form = ir.FunctionType(number.type, [number.type])
    place = VECTOR_PLACE if isinstance(number.type, ir.VectorType) else "r"
    return builder.call(ir.InlineAsm(form, "", f"={place},0", False), [number])
