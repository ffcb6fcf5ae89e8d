"""The gradient of a convolution from that of its pooled maxima, backwards in time, with zeros around every sample.

This is the first step of :mod:`~seqconv.kernels.numba.gather_backward_folded`. One thread meanwhile sorts the positions
at which the table's rows occur.
"""
# ruff: noqa: ARG001  (an intrinsic's parameters are types)

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types

from .gathered import Descriptor, Index, window_range
from .micro.control import repeat
from .micro.memory import aligned, keep
from .micro.packing import clear, copy_row
from .micro.simd import (
    DOUBLE,
    add_doubles,
    byte_pointer,
    bytes_of,
    element_of,
    lanes,
    llvm_number,
    llvm_vector,
    load_number,
    read,
    size_of,
    splat,
    store_number,
    vector_of,
    write,
)
from .micro.transposition import transpose
from .occurrences import sort_positions
from .runtime.compilation import compiled, intrinsic
from .runtime.threads import share

__all__ = ["spread_parts"]

# Windows of up to this many positions write all of them, a vector of channels at a time; larger ones write their argmax
# positions, one by one.
FEW = 32


@compiled
def spread_parts(
    layer: Descriptor,
    index: Index,
    places: Any,
    width: int,
    sort: bool,
    given: Any,
    zero: Any,
    argmax_zero: Any,
    begin: int,
    end: int,
    threads: int,
    launch: int,
) -> None:
    """Do the parts ``begin`` to ``end``; see :func:`spread_part`."""
    share(begin, end, threads, launch, spread_part, (layer, index, places, width, sort, given, zero, argmax_zero))


@njit
def spread_part(
    part: int,
    layer: Descriptor,
    index: Index,
    places: Any,
    width: int,
    sort: bool,
    given: Any,
    zero: Any,
    argmax_zero: Any,
) -> None:
    """Sort the occurrences of rows as part 0, then write one sample's ``dy`` and its sum, the bias' gradient."""
    size = bytes_of(zero)
    reach = (layer.size - 1) * layer.dilation
    end = (layer.positions - 1) * layer.stride + reach
    row, sample = width * size, (end + reach + 1) * width * size
    if part == 0:
        if sort:
            counts, rows, begins, order, found = given
            steps = (sample, row)
            found[0] = sort_positions(index, layer.samples, end - layer.left, steps, counts, rows, begins, order)
        return
    gradient, argmax, dy, db = places
    n = part - 1
    dy += n * sample
    clear(dy, sample // size, zero)
    scratch = np.empty(width * 8 + layer.windows * row + 128, np.uint8)
    sums = db + n * width * 8 if db else aligned(scratch.ctypes.data)
    clear(sums, width, DOUBLE)
    source, source_step = gradient + n * layer.sample_stride, layer.window_stride
    if layer.channel_stride != size or layer.outputs != width:
        rows_of = aligned(scratch.ctypes.data) + width * 8
        clear(rows_of, layer.windows * width, zero)
        if layer.window_stride == size:
            transpose(source, layer.channel_stride, rows_of, row, layer.outputs, layer.windows, zero)
        else:
            for q in range(layer.windows):
                place = source + q * layer.window_stride
                copy_row(rows_of + q * row, place, layer.channel_stride, layer.outputs, zero)
        source, source_step = rows_of, row
    step = layer.pool_dilation * layer.stride * row
    argmax_itemsize = bytes_of(argmax_zero)
    for q in range(layer.windows):
        argmax_at = argmax + (n * layer.windows + q) * width * argmax_itemsize
        values = source + q * source_step
        start, skipped, ending = window_range(layer, layer.positions, q)
        place = dy + (end - start * layer.stride) * row
        if ending - skipped <= FEW:
            for o in range(0, width, lanes(zero)):
                at = o * size
                goal, total = place - skipped * step + at, sums + o * 8
                add_at_argmax(
                    goal, step, total, values + at, argmax_at + o * argmax_itemsize, skipped, ending, zero, argmax_zero
                )
            continue
        for o in range(layer.outputs):
            p = load_number(argmax_at + o * argmax_itemsize, argmax_zero)
            if p >= 0:
                goal, factor = place - p * step + o * size, load_number(values + o * size, zero)
                store_number(load_number(goal, zero) + factor, goal, zero)
                store_number(load_number(sums + o * 8, DOUBLE) + factor, sums + o * 8, DOUBLE)
    keep(scratch)


@intrinsic
def add_at_argmax(
    _typing: Any,
    target: Any,
    step: Any,
    sums: Any,
    values: Any,
    argmax: Any,
    first: Any,
    last: Any,
    like: Any,
    argmax_zero: Any,
) -> Any:
    """Add a vector of ``values`` to the rows, of ``first`` to ``last``, that argmax names.

    Values of windows with an argmax of at least 0 are also added to ``sums``, in float64. The row of ``first`` is at
    ``target``, each next one ``step`` bytes before it; there is at least one.
    """
    kind, argmax_type = llvm_vector(vector_of(like)), llvm_number(element_of(argmax_zero))

    def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        size, number = size_of(kind.element), ir.IntType(64)
        target, sums, values, argmax_at = (byte_pointer(builder, arguments[i]) for i in (0, 2, 3, 4))
        step, first, last = builder.neg(arguments[1]), arguments[5], arguments[6]
        content, zeros = read(builder, values, kind, size), ir.Constant(kind, [0.0] * kind.count)
        argmax = read(builder, argmax_at, ir.VectorType(argmax_type, kind.count), size_of(argmax_type))

        def add_position(p: Any, place: Any) -> tuple[list[Any], Any]:
            here = builder.icmp_signed("==", argmax, splat(builder, builder.trunc(p, argmax_type), kind.count))
            total = builder.fadd(read(builder, place, kind, size), builder.select(here, content, zeros))
            write(builder, total, place, size)
            following = builder.add(p, ir.Constant(number, 1))
            return [following, builder.gep(place, [step])], builder.icmp_signed("<", following, last)

        repeat(builder, [first, target], add_position)
        first_position = ir.Constant(argmax.type, [0] * kind.count)
        alive = builder.select(builder.icmp_signed(">=", argmax, first_position), content, zeros)
        add_doubles(builder, alive, sums)
        return context.get_dummy_value()

    return types.void(*(types.int64,) * 7, like, argmax_zero), generate
