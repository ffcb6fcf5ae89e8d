"""Indirect matrix products, the core of a convolution: a register tile of sums, whose rows a table of addresses names.

    target[i, v] = start[i, v] + sum over taps t of numbers[i, t] * vectors[t, v]

Rows ``i`` are positions and vectors hold output channels or, where output channels are few, the other way round. A
table (the indirection) has the rows' addresses, so that a tile may span several samples. A second table has the taps'
offsets, so that one loop, without a short inner one, serves all memory formats.
"""
# ruff: noqa: ARG001  (an intrinsic's parameters are types)

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import njit, types

from ..runtime.compilation import intrinsic
from .simd import REGISTERS, byte_pointer, bytes_of, fmuladd, lanes, llvm_vector, read, size_of, splat, vector_of, write

__all__ = ["TILE", "VECTORS", "igemm", "igemm_few_outputs", "igemm_tile"]

# Positions of a register tile two vectors wide. With 32 registers 14 x 2 sums, 2 weights and the input fill all but
# one: 250 of 258 GFLOP/s on one core of a Zen 5, whose multiply-adds need 2 x 4 sums under way. With 16, 6 x 2.
TILE = 14 if REGISTERS.number == 32 else 6
VECTORS = 2

# Vectors of positions in a tile of 1, 2, 4 and 8 output channels.
WIDE_1, WIDE_2, WIDE_4, WIDE_8 = (8, 6, 4, 3) if REGISTERS.number == 32 else (6, 4, 2, 1)


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
    more: bool,
    zero: Any,
    vectors: int,
) -> None:
    """Compute a block of taps for the ``count`` rows in ``table``, in tiles; ``vectors``, a literal, hold the outputs.

    The rest is as in :func:`igemm_tile`.
    """
    row = vectors * REGISTERS.width
    done = 0
    while done < count:
        rest = count - done
        place, rows = target + done * row, table + done * 8
        if TILE >= 14 and rest >= 14:
            igemm_tile(
                rows, offsets, taps, weights, row, start, 0, start_step, place, row, more, zero, 14, vectors, False
            )
            done += 14
        elif TILE >= 10 and rest >= 10:
            igemm_tile(
                rows, offsets, taps, weights, row, start, 0, start_step, place, row, more, zero, 10, vectors, False
            )
            done += 10
        elif rest >= 6:
            igemm_tile(
                rows, offsets, taps, weights, row, start, 0, start_step, place, row, more, zero, 6, vectors, False
            )
            done += 6
        elif rest >= 4:
            igemm_tile(
                rows, offsets, taps, weights, row, start, 0, start_step, place, row, more, zero, 4, vectors, False
            )
            done += 4
        elif rest >= 2:
            igemm_tile(
                rows, offsets, taps, weights, row, start, 0, start_step, place, row, more, zero, 2, vectors, False
            )
            done += 2
        else:
            igemm_tile(
                rows, offsets, taps, weights, row, start, 0, start_step, place, row, more, zero, 1, vectors, False
            )
            done += 1


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
    last are read. The rest is as in :func:`igemm_tile`.
    """
    lane, size, step, done = lanes(zero), bytes_of(zero), REGISTERS.width, 0
    if rows == 1:
        while count - done >= WIDE_1 * lane:
            place, goal = x + done * size, target + done * size
            igemm_tile(table, offsets, taps, place, size, start, step, 0, goal, row, more, zero, 1, WIDE_1, True)
            done += WIDE_1 * lane
        while done < count:
            place, goal = x + min(done, max(count - lane, 0)) * size, target + done * size
            igemm_tile(table, offsets, taps, place, size, start, step, 0, goal, row, more, zero, 1, 1, True)
            done += lane
    elif rows == 2:
        while count - done >= WIDE_2 * lane:
            place, goal = x + done * size, target + done * size
            igemm_tile(table, offsets, taps, place, size, start, step, 0, goal, row, more, zero, 2, WIDE_2, True)
            done += WIDE_2 * lane
        while done < count:
            place, goal = x + min(done, max(count - lane, 0)) * size, target + done * size
            igemm_tile(table, offsets, taps, place, size, start, step, 0, goal, row, more, zero, 2, 1, True)
            done += lane
    elif rows == 4:
        while count - done >= WIDE_4 * lane:
            place, goal = x + done * size, target + done * size
            igemm_tile(table, offsets, taps, place, size, start, step, 0, goal, row, more, zero, 4, WIDE_4, True)
            done += WIDE_4 * lane
        while done < count:
            place, goal = x + min(done, max(count - lane, 0)) * size, target + done * size
            igemm_tile(table, offsets, taps, place, size, start, step, 0, goal, row, more, zero, 4, 1, True)
            done += lane
    elif rows == 8:
        while count - done >= WIDE_8 * lane:
            place, goal = x + done * size, target + done * size
            igemm_tile(table, offsets, taps, place, size, start, step, 0, goal, row, more, zero, 8, WIDE_8, True)
            done += WIDE_8 * lane
        while done < count:
            place, goal = x + min(done, max(count - lane, 0)) * size, target + done * size
            igemm_tile(table, offsets, taps, place, size, start, step, 0, goal, row, more, zero, 8, 1, True)
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
    start_row: Any,
    start_step: Any,
    target: Any,
    target_row: Any,
    more: Any,
    like: Any,
    rows: Any,
    vectors: Any,
    swapped: Any,
) -> Any:
    """Compute a tile of ``rows`` x ``vectors`` sums, both literals, over ``taps``, of which there is at least one.

    ``table`` has the rows' addresses and ``offsets`` the taps' offsets: number ``(i, t)`` is at the sum of the two.
    Vector ``(t, v)`` is the ``v``-th at ``t * step`` bytes behind ``operand``. If ``swapped``, a literal, the offsets
    are those of the vectors, and a row's numbers are ``step`` bytes apart. ``offsets`` must have one readable entry
    behind the last. A row's vectors are contiguous in ``target``, rows ``target_row`` bytes apart. All sums start at 0.
    In the end they are added to what ``target`` holds if ``more``, else to the vectors at ``i * start_row + v *
    start_step`` bytes behind ``start``.
    """
    literals = (rows, vectors, swapped)
    if not all(isinstance(one, types.IntegerLiteral | types.BooleanLiteral) for one in literals):
        return None
    kind, height, width = llvm_vector(vector_of(like)), rows.literal_value, vectors.literal_value

    def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        number, size = ir.IntType(64), size_of(kind.element)
        table, offsets, taps, operand, step, start, start_row, start_step, target, target_row, more = arguments[:11]

        def listed(place: Any, i: Any) -> Any:
            return read(builder, builder.gep(place, [builder.mul(i, ir.Constant(number, 8))]), number, 8)

        def times(stride: Any, i: int) -> Any:
            return builder.mul(stride, ir.Constant(number, i))

        place = byte_pointer(builder, table)
        sources = [byte_pointer(builder, listed(place, ir.Constant(number, i))) for i in range(height)]
        place, content = byte_pointer(builder, offsets), byte_pointer(builder, operand)
        along = ir.Constant(number, 0) if swapped.literal_value else content
        begin, first_offset = builder.block, listed(place, ir.Constant(number, 0))
        loop, adding, starting, done = (
            builder.append_basic_block(f"tile.{name}") for name in ("loop", "add", "start", "done")
        )
        builder.branch(loop)
        builder.position_at_end(loop)
        state = [builder.phi(one.type) for one in (taps, taps, along)]
        sums = [builder.phi(kind) for _ in range(height * width)]
        tap, behind, here = state  # the next offset is loaded one tap ahead, there is one behind the last
        offset = _opaque(builder, behind)
        vector = builder.gep(content, [offset]) if swapped.literal_value else here
        panel = [
            read(builder, builder.gep(vector, [ir.Constant(number, v * kind.count * size)]), kind, size)
            for v in range(width)
        ]
        products = []
        for i in range(height):
            scalar = read(
                builder, builder.gep(sources[i], [here if swapped.literal_value else offset]), kind.element, size
            )
            everywhere = splat(builder, scalar, kind.count)
            products += [fmuladd(builder, everywhere, panel[v], sums[i * width + v]) for v in range(width)]
        ahead = builder.add(tap, ir.Constant(number, 1))
        further = builder.add(here, step) if swapped.literal_value else builder.gep(here, [step])
        following = [_opaque(builder, ahead), listed(place, ahead), further, *products]
        zeros = [ir.Constant(kind, [0.0] * kind.count)] * len(sums)
        for node, first, later in zip(
            [*state, *sums], [ir.Constant(number, 0), first_offset, along, *zeros], following, strict=True
        ):
            node.add_incoming(first, begin)
            node.add_incoming(later, loop)
        leave = builder.append_basic_block("tile.leave")
        builder.cbranch(builder.icmp_signed("<", following[0], taps), loop, leave)

        builder.position_at_end(leave)
        goal = byte_pointer(builder, target)
        places = [
            builder.gep(goal, [builder.add(times(target_row, i), ir.Constant(number, v * kind.count * size))])
            for i in range(height)
            for v in range(width)
        ]
        builder.cbranch(more, adding, starting)
        builder.position_at_end(adding)
        for place, total in zip(places, products, strict=True):
            write(builder, builder.fadd(read(builder, place, kind, size), total), place, size)
        builder.branch(done)
        builder.position_at_end(starting)
        first = byte_pointer(builder, start)
        for i, (place, total) in enumerate(zip(places, products, strict=True)):
            behind = builder.add(times(start_row, i // width), times(start_step, i % width))
            write(builder, builder.fadd(read(builder, builder.gep(first, [behind]), kind, size), total), place, size)
        builder.branch(done)
        builder.position_at_end(done)
        return context.get_dummy_value()

    integer = types.int64
    return types.void(*(integer,) * 10, types.boolean, like, rows, vectors, swapped), generate


def _opaque(builder: Any, number: Any) -> Any:
    """Return a number whose origin is hidden from LLVM.

    Otherwise LLVM unrolls the loop, loads numbers far ahead of their use and spills the sums, which halves the speed. A
    test checks that it does not.
    """
    form = ir.FunctionType(number.type, [number.type])
    return builder.call(ir.InlineAsm(form, "", "=r,0", False), [number])
