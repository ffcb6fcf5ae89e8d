"""Lists of the windows that have a gradient: for every output channel, the rows of their maxima, and the gradients.

An argmax ``(N, Q, O)`` is transposed in squares of windows x output channels, so that a channel's windows are
contiguous; the lanes of windows that have a gradient are then compressed in the register (``vpcompressd``) and stored.
That takes 2 cycles a window on a Zen 4; one by one it takes 8, as much as a small convolution's multiply-adds. CPUs
without such an instruction store lane after lane, without a branch: whether a window has a gradient is unpredictable.
"""
# ruff: noqa: ARG001  (an intrinsic's parameters are types)

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import binding, ir
from numba import njit, types

from .micro.simd import (
    REGISTERS,
    Vector,
    add_doubles,
    broadcast,
    byte_pointer,
    bytes_of,
    call,
    lanes,
    llvm_number,
    llvm_vector,
    load_number,
    read,
    read_first,
    size_of,
    splat,
    store_integers,
    store_number,
    suffix,
    vector_of,
    write,
)
from .micro.transposition import transpose
from .runtime.compilation import intrinsic

__all__ = ["list_windows", "load_argmax"]

# LLVM has an intrinsic that compresses lanes since version 19. Without AVX-512 it works through memory, more slowly.
COMPRESSES = REGISTERS.width == 64 and binding.llvm_version_info[0] >= 19

INTEGER = np.int32(0)


@njit
def list_windows(
    argmax: int,
    argmax_stride: int,
    gradient: int,
    channel_stride: int,
    window_stride: int,
    outputs: int,
    windows: int,
    group: int,
    base: int,
    window_step: int,
    argmax_step: int,
    capacity: int,
    rows: int,
    factors: int,
    bounds: Any,
    sums: int,
    sum_stride: int,
    scratch: int,
    zero: Any,
    argmax_zero: Any,
) -> None:
    """List the windows of every output channel that have a gradient, and add the gradients to ``sums``.

    ``argmax`` and ``gradient`` are the addresses of the first window's numbers, strides are in bytes. The maximum
    of window ``q`` with argmax ``p`` lies in row ``base + q * window_step + p * argmax_step``. Channel ``o``'s list
    begins at number ``o * capacity`` of ``rows`` (int32) and ``factors``; ``bounds[o, g]`` counts its entries before
    group ``g`` of windows, a multiple of the lanes. A sum is as many float64 as a vector has lanes, still to be added.
    ``capacity`` is a vector more than the windows, rounded up to whole vectors; ``scratch`` has three such rows for
    each lane.
    """
    width, size = lanes(zero), bytes_of(zero)
    whole = (windows + width - 1) // width * width
    turned_argmax = scratch + capacity * width * 4
    turned = turned_argmax + capacity * width * 4
    for first in range(0, outputs, width):
        high = min(width, outputs - first)
        for q in range(windows):
            place = argmax + q * argmax_stride + first * bytes_of(argmax_zero)
            store_integers(load_argmax(place, argmax_zero, zero), scratch + q * width * 4, INTEGER)
        for q in range(windows, whole):
            store_integers(broadcast(np.int32(-1), zero), scratch + q * width * 4, INTEGER)
        transpose(scratch, width * 4, turned_argmax, capacity * 4, whole, width, np.float32(0))
        source, stride = gradient + first * channel_stride, channel_stride
        if window_stride != size:
            if channel_stride == size:
                transpose(source, window_stride, turned, capacity * size, windows, high, zero)
            else:
                for i in range(high):
                    for q in range(windows):
                        number = load_number(source + i * channel_stride + q * window_stride, zero)
                        store_number(number, turned + (i * capacity + q) * size, zero)
            source, stride = turned, capacity * size
        for i in range(high):
            o = first + i
            count = 0
            for q in range(0, windows, width):
                if q % group == 0:
                    bounds[o, q // group] = count
                at = o * capacity + count
                count += list_vector(
                    turned_argmax + (i * capacity + q) * 4,
                    source + i * stride + q * size,
                    windows - q,
                    base + q * window_step,
                    window_step,
                    argmax_step,
                    rows + at * 4,
                    factors + at * size,
                    sums + o * sum_stride,
                    zero,
                )
            bounds[o, (windows + group - 1) // group] = count


@intrinsic
def load_argmax(_typing: Any, address: Any, argmax_zero: Any, like: Any) -> Any:
    """Return as many integers of ``argmax_zero``'s type as a vector of ``like`` has lanes, widened to int32."""
    kind = llvm_vector(vector_of(like))
    argmax_type = ir.VectorType(llvm_number(types.unliteral(argmax_zero)), kind.count)

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        argmax = read(builder, byte_pointer(builder, arguments[0]), argmax_type, size_of(argmax_type.element))
        wide = ir.VectorType(ir.IntType(32), kind.count)
        return argmax if argmax_type == wide else builder.sext(argmax, wide)

    return Vector(types.int32, kind.count)(address, argmax_zero, like), generate


@intrinsic
def list_vector(
    _typing: Any,
    argmax: Any,
    gradient: Any,
    rest: Any,
    base: Any,
    window_step: Any,
    argmax_step: Any,
    rows: Any,
    factors: Any,
    sums: Any,
    like: Any,
) -> Any:
    """Append the windows of a vector that have a gradient to a list, of the first ``rest``; return their number."""
    kind = llvm_vector(vector_of(like))

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        integers = ir.VectorType(ir.IntType(32), kind.count)
        argmax_at, gradient, rows, factors, sums = (byte_pointer(builder, arguments[i]) for i in (0, 1, 6, 7, 8))
        base, window_step, argmax_step = (
            splat(builder, builder.trunc(arguments[i], integers.element), kind.count) for i in (3, 4, 5)
        )
        size = size_of(kind.element)
        argmax = read(builder, argmax_at, integers, 4)
        alive = builder.icmp_signed(">", argmax, ir.Constant(integers, [-1] * kind.count))
        factor = read_first(builder, gradient, arguments[2], kind)
        number = builder.mul(ir.Constant(integers, list(range(kind.count))), window_step)
        row = builder.add(builder.add(base, number), builder.mul(argmax, argmax_step))
        active = builder.select(alive, factor, ir.Constant(kind, [0.0] * kind.count))
        add_doubles(builder, active, sums)
        if COMPRESSES:
            for content, place, step in ((row, rows, 4), (factor, factors, size)):
                name = f"llvm.experimental.vector.compress.{suffix(content.type)}"
                undefined = ir.Constant(content.type, ir.Undefined)
                write(builder, call(builder, name, content.type, [content, alive, undefined]), place, step)
            mask = builder.bitcast(alive, ir.IntType(kind.count))
            count = call(builder, f"llvm.ctpop.i{kind.count}", mask.type, [mask])
            return builder.zext(count, ir.IntType(64))
        at = ir.Constant(ir.IntType(64), 0)
        for i in range(kind.count):
            lane = ir.Constant(ir.IntType(32), i)
            for content, place, step in ((row, rows, 4), (factor, factors, size)):
                target = builder.gep(place, [builder.mul(at, ir.Constant(at.type, step))])
                write(builder, builder.extract_element(content, lane), target, step)
            at = builder.add(at, builder.zext(builder.extract_element(alive, lane), at.type))
        return at

    return types.int64(*(types.int64,) * 9, like), generate
