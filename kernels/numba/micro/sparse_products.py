"""Products of listed rows: the gradients of a convolution of which few positions have a gradient.

A list names rows ``r`` and factors ``f``. The weight's gradient gathers, ``dw += f * x[r]``; the input's gradient
scatters, ``dx[r] += f * weight``. Each is a run of numbers, which may overlap the next row's. Computed together, they
share the list and overlap on the CPU: a Zen 4 stores 64 bytes every second cycle, and loads and multiplies meanwhile.
With everything in the first-level cache it takes 1.3 cycles a vector for the weight's gradient, 2.4 for the input's and
3.1 for both. Weights and sums stay in registers, 14 vectors of each.
"""
# ruff: noqa: ARG001  (an intrinsic's parameters are types)

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import njit, types

from ..runtime.compilation import intrinsic
from .simd import (
    REGISTERS,
    byte_pointer,
    bytes_of,
    first_lanes,
    fmuladd,
    lanes,
    llvm_vector,
    read,
    size_of,
    splat,
    vector_of,
    write,
)

__all__ = ["MOST_SUMS", "MOST_VECTORS", "add_products"]

# Vectors of a run that are computed at a time: they take twice as many registers, and the factor one.
MOST_VECTORS = 14 if REGISTERS.number == 32 else 6

# The same where only the weight's gradient is wanted, whose sums alone take registers. jena1's backward pass took 3.6
# ms on one core of a Zen 1 in one pass of 10 vectors, 4.1 in two passes of 5; 1.3 of each are lists and the bias'
# gradient.
MOST_SUMS = 14 if REGISTERS.number == 32 else 12

# Turns in which a list is taken, a power of two: in a single one, overlapping runs of 5 vectors took 5.2 cycles a
# vector.
TURNS = 4

# Values of the literal that says which gradients are wanted; 3 is both.
GATHER, SCATTER = 1, 2


@njit
def add_products(
    dw: int,
    weight: int,
    x: int,
    dx: int,
    rows: int,
    factors: int,
    count: int,
    step: int,
    numbers: int,
    zero: Any,
) -> None:
    """Add the gradients of a run of ``numbers`` of ``weight`` that ``count`` >= 1 listed rows give; see the module.

    ``dw`` or ``dx`` is 0 where not wanted. ``rows`` is the address of int32 row numbers, rows being ``step`` bytes
    apart. Of a run's last vector all numbers are read and written, but only those of the run are changed.
    """
    if dw and dx:
        add_run(dw, weight, x, dx, rows, factors, count, step, numbers, zero, 3)
    elif dw:
        done = add_sums(dw, weight, x, dx, rows, factors, count, step, numbers, zero) if MOST_SUMS > MOST_VECTORS else 0
        if done < numbers:
            at = done * bytes_of(zero)
            add_run(dw + at, weight, x + at, dx, rows, factors, count, step, numbers - done, zero, 1)
    elif dx:
        add_run(dw, weight, x, dx, rows, factors, count, step, numbers, zero, 2)


@njit
def add_sums(
    dw: int,
    weight: int,
    x: int,
    dx: int,
    rows: int,
    factors: int,
    count: int,
    step: int,
    numbers: int,
    zero: Any,
) -> int:
    """Compute pieces of the run that are too large for :func:`add_run`; return the number of elements done."""
    width = lanes(zero)
    done = 0
    while numbers - done > 7 * width:
        rest = (numbers - done + width - 1) // width
        pieces = (rest + MOST_SUMS - 1) // MOST_SUMS
        size = min((rest + pieces - 1) // pieces + 1, rest) // 2 * 2
        tail = min(numbers - done - (size - 1) * width, width)
        a, c = dw + done * bytes_of(zero), x + done * bytes_of(zero)
        if size == 12:
            add_vectors(a, weight, c, dx, rows, factors, count, step, tail, zero, 12, 1)
        elif size == 10:
            add_vectors(a, weight, c, dx, rows, factors, count, step, tail, zero, 10, 1)
        elif size == 8:
            add_vectors(a, weight, c, dx, rows, factors, count, step, tail, zero, 8, 1)
        else:
            size = 6
            add_vectors(a, weight, c, dx, rows, factors, count, step, width, zero, 6, 1)
        done += size * width
    return done


@njit(inline="always")
def add_run(
    dw: int,
    weight: int,
    x: int,
    dx: int,
    rows: int,
    factors: int,
    count: int,
    step: int,
    numbers: int,
    zero: Any,
    kinds: int,
) -> None:
    """Cut the run into pieces of about equal size, at most ``MOST_VECTORS`` each."""
    width = lanes(zero)
    rest = (numbers + width - 1) // width
    last = numbers - (rest - 1) * width
    done = 0
    while rest:
        pieces = (rest + MOST_VECTORS - 1) // MOST_VECTORS
        size = (rest + pieces - 1) // pieces
        if size > 8 and size % 2:
            size = size + 1 if size < rest else (size + 1) // 2
        tail = last if size == rest else width
        a, b, c, d = dw + done, weight + done, x + done, dx + done
        if MOST_VECTORS >= 14 and size == 14:
            add_vectors(a, b, c, d, rows, factors, count, step, tail, zero, 14, kinds)
        elif MOST_VECTORS >= 12 and size == 12:
            add_vectors(a, b, c, d, rows, factors, count, step, tail, zero, 12, kinds)
        elif MOST_VECTORS >= 10 and size == 10:
            add_vectors(a, b, c, d, rows, factors, count, step, tail, zero, 10, kinds)
        elif MOST_VECTORS >= 8 and size == 8:
            add_vectors(a, b, c, d, rows, factors, count, step, tail, zero, 8, kinds)
        elif MOST_VECTORS >= 7 and size == 7:
            add_vectors(a, b, c, d, rows, factors, count, step, tail, zero, 7, kinds)
        elif size == 6:
            add_vectors(a, b, c, d, rows, factors, count, step, tail, zero, 6, kinds)
        elif size == 5:
            add_vectors(a, b, c, d, rows, factors, count, step, tail, zero, 5, kinds)
        elif size == 4:
            add_vectors(a, b, c, d, rows, factors, count, step, tail, zero, 4, kinds)
        elif size == 3:
            add_vectors(a, b, c, d, rows, factors, count, step, tail, zero, 3, kinds)
        elif size == 2:
            add_vectors(a, b, c, d, rows, factors, count, step, tail, zero, 2, kinds)
        else:
            add_vectors(a, b, c, d, rows, factors, count, step, tail, zero, 1, kinds)
        rest -= size
        done += size * width * bytes_of(zero)


@intrinsic
def add_vectors(
    _typing: Any,
    dw: Any,
    weight: Any,
    x: Any,
    dx: Any,
    rows: Any,
    factors: Any,
    count: Any,
    step: Any,
    tail: Any,
    like: Any,
    vectors: Any,
    kinds: Any,
) -> Any:
    """Add the gradients, of those kinds, of ``vectors`` of a run; both are literals. Of the last, ``tail`` numbers are
    changed.
    """
    if not isinstance(vectors, types.IntegerLiteral) or not isinstance(kinds, types.IntegerLiteral):
        return None
    kind, columns, chosen = llvm_vector(vector_of(like)), vectors.literal_value, kinds.literal_value

    def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        size, number = size_of(kind.element), ir.IntType(64)
        dw, weight, x, dx, rows, factors = (byte_pointer(builder, argument) for argument in arguments[:6])
        count, step, tail = arguments[6:9]
        steps = [ir.Constant(number, v * kind.count * size) for v in range(columns)]
        mask, zeros = first_lanes(builder, tail, kind.count), ir.Constant(kind, [0.0] * kind.count)
        kept = [read(builder, builder.gep(weight, [at]), kind, size) for at in steps] if chosen & SCATTER else []
        # Neighbours in the list write to the same numbers, and would wait for each other: they are taken in turns.
        stride = builder.lshr(
            builder.add(count, ir.Constant(number, TURNS - 1)), ir.Constant(number, TURNS.bit_length() - 1)
        )
        begin = builder.block
        loop, done = builder.append_basic_block("listed"), builder.append_basic_block("listed.done")
        builder.branch(loop)

        builder.position_at_end(loop)
        done_before, e, lap = (builder.phi(number) for _ in range(3))
        for node in (done_before, e, lap):
            node.add_incoming(ir.Constant(number, 0), begin)
        sums = [builder.phi(kind) for _ in range(columns)] if chosen & GATHER else []
        for node in sums:
            node.add_incoming(zeros, begin)
        row = read(builder, builder.gep(rows, [builder.mul(e, ir.Constant(number, 4))]), ir.IntType(32), 4)
        offset = builder.mul(builder.sext(row, number), step)
        place = builder.gep(factors, [builder.mul(e, ir.Constant(number, size))])
        factor = splat(builder, read(builder, place, kind.element, size), kind.count)
        source, target = builder.gep(x, [offset]), builder.gep(dx, [offset])
        totals = []
        for v, at in enumerate(steps):
            if chosen & GATHER:
                totals.append(fmuladd(builder, factor, read(builder, builder.gep(source, [at]), kind, size), sums[v]))
            if chosen & SCATTER:
                goal = builder.gep(target, [at])
                old = read(builder, goal, kind, size)
                new = fmuladd(builder, factor, kept[v], old)
                if v == columns - 1:  # weights of 0 behind the run would not do: an infinite factor makes them NaN
                    new = builder.select(mask, new, old)
                write(builder, new, goal, size)
        one = ir.Constant(number, 1)
        following, ahead, next_lap = builder.add(done_before, one), builder.add(e, stride), builder.add(lap, one)
        over = builder.icmp_signed(">=", ahead, count)
        done_before.add_incoming(following, loop)
        e.add_incoming(builder.select(over, next_lap, ahead), loop)
        lap.add_incoming(builder.select(over, next_lap, lap), loop)
        for node, total in zip(sums, totals, strict=True):
            node.add_incoming(total, loop)
        builder.cbranch(builder.icmp_signed("<", following, count), loop, done)

        builder.position_at_end(done)
        for v, total in enumerate(totals):
            goal = builder.gep(dw, [steps[v]])
            old = read(builder, goal, kind, size)
            new = builder.fadd(old, total)
            write(builder, builder.select(mask, new, old) if v == columns - 1 else new, goal, size)
        return context.get_dummy_value()

    return types.void(*(types.int64,) * 9, like, vectors, kinds), generate
