"""Products of listed rows: the gradients of a convolution of which few positions have a gradient.

A list names rows ``r`` and factors ``f``. The weight's gradient gathers, ``dw += f * x[r]``; the input's gradient
scatters, ``dx[r] += f * weight``. Each is a run of numbers, which may overlap the next row's. Computed together, they
share the list and overlap on the CPU: a Zen 4 stores 64 bytes every second cycle, and loads and multiplies meanwhile.
With everything in the first-level cache it takes 1.3 cycles a vector for the weight's gradient, 2.4 for the input's and
3.1 for both. Weights and sums stay in registers, 14 vectors of each.
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

# A run is cut into pieces of so many vectors.
SIZES = (14, 12, 10, 8, 7, 6, 5, 4, 3, 2, 1)

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
        add_run(dw, weight, x, dx, rows, factors, count, step, numbers, zero, 1)
    elif dx:
        add_run(dw, weight, x, dx, rows, factors, count, step, numbers, zero, 2)


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
    """Cut the run into pieces of about equal size, each as large as registers allow at most."""
    width, most = lanes(zero), MOST_SUMS if kinds == GATHER else MOST_VECTORS
    rest = (numbers + width - 1) // width
    last = numbers - (rest - 1) * width
    done = 0
    while rest:
        pieces = (rest + most - 1) // most
        size = (rest + pieces - 1) // pieces
        if size > 8 and size % 2:
            size = size + 1 if size < rest else (size + 1) // 2
        tail = last if size == rest else width
        add_vectors(
            dw + done, weight + done, x + done, dx + done, rows, factors, count, step, tail, zero, size, kinds
        )  # fmt: skip
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
    """Add the gradients, of those kinds, a literal, of ``vectors`` of a run. Of the last, ``tail`` numbers change."""
    if not isinstance(kinds, types.IntegerLiteral):
        return None
    kind, wanted = llvm_vector(vector_of(like)), kinds.literal_value
    most = MOST_SUMS if wanted == GATHER else MOST_VECTORS

    def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        sizes = [size for size in SIZES if size <= most]
        of_size(builder, arguments[10], sizes, partial(emit_products, builder, kind, arguments[:9], kinds=wanted))
        return context.get_dummy_value()

    return types.void(*(types.int64,) * 9, like, types.int64, kinds), generate


def emit_products(builder: Any, kind: Any, given: Sequence[Any], vectors: int, *, kinds: int) -> None:
    """Emit the products of ``vectors`` of a run; ``given`` are the first arguments of :func:`add_vectors`."""
    size, number = size_of(kind.element), ir.IntType(64)
    dw, weight, x, dx, rows, factors = (byte_pointer(builder, one) for one in given[:6])
    count, step, tail = given[6:]
    steps = [ir.Constant(number, v * kind.count * size) for v in range(vectors)]
    mask, zeros = first_lanes(builder, tail, kind.count), ir.Constant(kind, [0.0] * kind.count)
    kept = [read(builder, builder.gep(weight, [at]), kind, size) for at in steps] if kinds & SCATTER else []
    none, one, most = (ir.Constant(number, i) for i in (0, 1, TURNS - 1))
    # Neighbours in the list write to the same numbers, and would wait for each other: they are taken in turns.
    stride = builder.lshr(builder.add(count, most), ir.Constant(number, TURNS.bit_length() - 1))

    def add_row(done: Any, e: Any, lap: Any, *sums: Any) -> tuple[list[Any], Any]:
        row = read(builder, builder.gep(rows, [builder.mul(e, ir.Constant(number, 4))]), ir.IntType(32), 4)
        offset = builder.mul(builder.sext(row, number), step)
        place = builder.gep(factors, [builder.mul(e, ir.Constant(number, size))])
        factor = splat(builder, read(builder, place, kind.element, size), kind.count)
        source, target = builder.gep(x, [offset]), builder.gep(dx, [offset])
        totals = []
        for v, at in enumerate(steps):
            if kinds & GATHER:
                totals.append(fmuladd(builder, factor, read(builder, builder.gep(source, [at]), kind, size), sums[v]))
            if kinds & SCATTER:
                goal = builder.gep(target, [at])
                old = read(builder, goal, kind, size)
                new = fmuladd(builder, factor, kept[v], old)
                if v == vectors - 1:  # weights of 0 behind the run would not do: an infinite factor makes them NaN
                    new = builder.select(mask, new, old)
                write(builder, new, goal, size)
        following, ahead, next_lap = builder.add(done, one), builder.add(e, stride), builder.add(lap, one)
        over = builder.icmp_signed(">=", ahead, count)
        laps = [builder.select(over, next_lap, ahead), builder.select(over, next_lap, lap)]
        return [following, *laps, *totals], builder.icmp_signed("<", following, count)

    starts = [none] * 3 + [zeros] * (vectors if kinds & GATHER else 0)
    for v, total in enumerate(repeat(builder, starts, add_row)[3:]):
        goal = builder.gep(dw, [steps[v]])
        old = read(builder, goal, kind, size)
        new = builder.fadd(old, total)
        write(builder, builder.select(mask, new, old) if v == vectors - 1 else new, goal, size)
