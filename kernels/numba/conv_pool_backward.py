"""The fused conv stack's gradients on the CPU, without the positions that lost: at most one in a window has any.

With ``t`` the first input position that a window's winner ``(n, o, q)`` saw and ``g`` the window's gradient,

    dW[o] += g * x[n, t : t + K]        dx[n, t : t + K] += g * W[o]        db[o] += g

which is ``P`` times less arithmetic than a convolution's gradients. Channels are neighbours in memory here, so that
``x[n, t : t + K]`` is one run of numbers (``K`` runs under a dilation): a contiguous ``(N, C, L)`` input is copied.

Threads share the samples, or the channels where there are fewer samples than threads. Each sums weight gradients of its
own, which are then added in a fixed order: the same bits on every run with the same number of threads.

Where torch's dense gradients multiply infinite inputs or weights by the zeros of the positions that lost, and so get
NaN, these do not: an infinity reaches the gradients through winners alone.
"""
# ruff: noqa: ARG001  (an intrinsic's parameters are types)

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from torch import Tensor

from ..geometry import Convolution, Pool
from .compilation import compiled, intrinsic
from .conv_pool import DTYPES, Layer, describe, pad
from .simd import (
    broadcast,
    byte_pointer,
    bytes_of,
    call,
    first_lanes,
    fused,
    lanes,
    llvm_vector,
    load_first,
    load_number,
    multiply_add,
    read,
    read_first,
    size_of,
    splat,
    store_first,
    store_number,
    suffix,
    vector_of,
    write,
)
from .threads import run, share, thread_count

__all__ = ["conv1d_relu_global_max_pool1d_backward", "conv1d_relu_max_pool1d_backward"]

# So many bytes of input, or of its gradient, are served for every output channel before the next: half a first cache.
GROUP = 24 * 1024

Gradients = tuple[Tensor | None, Tensor | None, Tensor | None]


def conv1d_relu_max_pool1d_backward(
    gradient: Tensor,
    argmax: Tensor,
    input: Tensor,
    weight: Tensor,
    convolution: Convolution,
    pool: Pool,
    *,
    wanted: tuple[bool, bool, bool],
) -> Gradients:
    """Return the gradients of ``input``, ``weight`` and ``bias``, of those that are wanted, ``None`` for the others.

    ``gradient`` ``(N, O, Q)``, of any strides, is that of the forward pass' result, ``argmax`` what it kept. The
    input's gradient is channels-last, unless a contiguous one is what the input was.
    """
    return _backward(gradient, argmax, input, weight, convolution, pool, wanted)


def conv1d_relu_global_max_pool1d_backward(
    gradient: Tensor,
    argmax: Tensor,
    input: Tensor,
    weight: Tensor,
    convolution: Convolution,
    *,
    wanted: tuple[bool, bool, bool],
) -> Gradients:
    """Return the global layer's gradients, as :func:`conv1d_relu_max_pool1d_backward` does; ``gradient`` ``(N, O)``."""
    return _backward(gradient.unsqueeze(2), argmax, input, weight, convolution, None, wanted)


def _backward(
    gradient: Tensor,
    argmax: Tensor,
    input: Tensor,
    weight: Tensor,
    convolution: Convolution,
    pool: Pool | None,
    wanted: tuple[bool, bool, bool],
) -> Gradients:
    channels, (outputs, _, size) = input.size(1), weight.shape
    source = pad(input, convolution)
    in_place = source.stride(1) == 1 or channels == 1
    rows = source.transpose(1, 2) if in_place else source.transpose(1, 2).contiguous()
    positions = convolution.output_length(input.size(2), size)
    layer = describe(rows.transpose(1, 2), weight, convolution, pool, positions, gradient)
    filters = weight.detach().transpose(1, 2).contiguous()
    threads = thread_count(max(len(input), channels), gradient.numel() * channels * size)
    by_samples = len(input) >= threads
    dx = input.new_zeros(rows.shape) if wanted[0] else None
    # Threads that share channels write different numbers of the same partial sums.
    dw = input.new_zeros(threads if by_samples else 1, *filters.shape) if wanted[1] else None
    db = input.new_zeros(threads if by_samples else 1, outputs) if wanted[2] else None
    itemsize = input.element_size()
    places = tuple(0 if one is None else one.data_ptr() for one in (rows, filters, gradient, argmax, dx, dw, db))
    row_strides = tuple(0 if one is None else one.stride(1) * itemsize for one in (rows, dx))
    sample_strides = tuple(0 if one is None else one.stride(0) * itemsize for one in (rows, dx))
    code = argmax.new_zeros(()).numpy()[()]
    like = DTYPES[input.dtype]

    def call(begin: int, end: int, helpers: int, launch: int) -> None:
        backward_windows(
            layer, convolution.dilation, convolution.stride, size, channels, places, row_strides, sample_strides,
            argmax.size(2), threads, by_samples, like, code, begin, end, helpers, launch,
        )  # fmt: skip

    if gradient.numel() and any(wanted):
        run(call, threads, threads)
    return (
        None if dx is None else _like_input(dx, input, convolution),
        None if dw is None else dw.sum(0).transpose(1, 2).contiguous(),
        None if db is None else db.sum(0),
    )


def _like_input(dx: Tensor, input: Tensor, convolution: Convolution) -> Tensor:
    left = convolution.padding[0]
    cut = dx[:, left : left + input.size(2)].transpose(1, 2)
    return cut.contiguous() if input.is_contiguous() else cut


@compiled
def backward_windows(
    layer: Layer,
    dilation: int,
    stride: int,
    size: int,
    channels: int,
    places: Any,
    row_strides: Any,
    sample_strides: Any,
    codes: int,
    shares: int,
    by_samples: bool,
    zero: Any,
    code: Any,
    begin: int,
    end: int,
    threads: int,
    launch: int,
) -> None:
    """Add what the winners give in the shares ``begin`` to ``end`` of all; see :func:`backward_share`."""
    arguments = (
        layer, dilation, stride, size, channels, places, row_strides, sample_strides, codes, shares, by_samples,
        zero, code,
    )  # fmt: skip
    share(begin, end, threads, launch, backward_share, arguments)


@njit
def backward_share(
    number_of_share: int,
    layer: Layer,
    dilation: int,
    stride: int,
    size: int,
    channels: int,
    places: Any,
    row_strides: Any,
    sample_strides: Any,
    codes: int,
    shares: int,
    by_samples: bool,
    zero: Any,
    code: Any,
) -> None:
    """Add what the winners of one of ``shares`` of the samples, or else of the channels, give.

    ``places`` are the addresses of input, weights ``(O, K, C)``, upstream gradient, argmax and the gradients of input,
    weight and bias; 0 is not wanted. ``zero`` and ``code`` are zeros of their types.
    """
    x, weight, gradient, argmax, dx, dw, db = places
    begin, end, first, last = 0, layer.samples, 0, channels
    if by_samples:
        begin, end = layer.samples * number_of_share // shares, layer.samples * (number_of_share + 1) // shares
        dw += (number_of_share * layer.outputs * size * channels * bytes_of(zero)) if dw else 0
        db += (number_of_share * layer.outputs * bytes_of(zero)) if db else 0
    else:
        first, last = channels * number_of_share // shares, channels * (number_of_share + 1) // shares
        db = 0 if first else db
    number = bytes_of(zero)
    # Neighbouring kernel positions are one run of numbers where nothing lies between their rows.
    merged_x = dilation == 1 and last - first == channels and row_strides[0] == channels * number
    merged_dx = dilation == 1 and last - first == channels and row_strides[1] == channels * number
    group = max(4, min(GROUP // max(layer.pool_stride * layer.position_stride, 1), 128))
    winners = np.empty(group, np.int64)
    offsets = np.empty(group, np.int64)
    factors = np.empty(group * number, np.uint8)
    for n in range(begin, end):
        for from_window in range(0, layer.windows, group):
            to_window = min(from_window + group, layer.windows)
            for o in range(layer.outputs):
                count = 0
                code_at = argmax + ((n * layer.windows + from_window) * codes + o) * bytes_of(code)
                factor_at = gradient + n * layer.out_sample_stride + o * layer.out_channel_stride
                factor_at += from_window * layer.out_window_stride
                for q in range(from_window, to_window):
                    won = load_number(code_at, code)
                    position = q * layer.pool_stride - layer.pool_padding + won * layer.pool_dilation
                    winners[count] = position * stride
                    store_number(load_number(factor_at, zero), factors.ctypes.data + count * number, zero)
                    count += won >= 0  # whether a window is active cannot be foreseen: a branch would cost more
                    code_at += codes * bytes_of(code)
                    factor_at += layer.out_window_stride
                if not count:
                    continue
                if db:
                    total = zero
                    for e in range(count):
                        total += load_number(factors.ctypes.data + e * number, zero)
                    store_number(load_number(db + o * number, zero) + total, db + o * number, zero)
                if dw:
                    for e in range(count):
                        offsets[e] = winners[e] * row_strides[0]
                    source = x + n * sample_strides[0] + first * number
                    target = dw + (o * size * channels + first) * number
                    runs, width = (1, size * channels) if merged_x else (size, last - first)
                    for k in range(runs):
                        accumulate_run(
                            target + k * channels * number,
                            source + k * dilation * row_strides[0],
                            offsets.ctypes.data,
                            factors.ctypes.data,
                            count,
                            width,
                            zero,
                        )
                if dx:
                    for e in range(count):
                        offsets[e] = winners[e] * row_strides[1]
                    target = dx + n * sample_strides[1] + first * number
                    source = weight + (o * size * channels + first) * number
                    runs, width = (1, size * channels) if merged_dx else (size, last - first)
                    for k in range(runs):
                        scatter_run(
                            target + k * dilation * row_strides[1],
                            source + k * channels * number,
                            offsets.ctypes.data,
                            factors.ctypes.data,
                            count,
                            width,
                            zero,
                        )


@njit
def accumulate_run(target: int, x: int, offsets: int, factors: int, count: int, width: int, zero: Any) -> None:
    """Add to ``width`` numbers at ``target`` the sum of the rows of ``x`` at ``offsets``, each times its factor."""
    vector = lanes(zero)
    step = vector * bytes_of(zero)
    while width > 8 * vector:
        accumulate_rows(target, x, offsets, factors, count, zero, 8, vector)
        target, x, width = target + 8 * step, x + 8 * step, width - 8 * vector
    if width > 4 * vector:
        accumulate_rows(target, x, offsets, factors, count, zero, 4, vector)
        target, x, width = target + 4 * step, x + 4 * step, width - 4 * vector
    if width > 2 * vector:
        accumulate_rows(target, x, offsets, factors, count, zero, 2, vector)
        target, x, width = target + 2 * step, x + 2 * step, width - 2 * vector
    if width > vector:
        accumulate_rows(target, x, offsets, factors, count, zero, 2, width - vector)
    else:
        accumulate_rows(target, x, offsets, factors, count, zero, 1, width)


@njit
def scatter_run(target: int, weight: int, offsets: int, factors: int, count: int, width: int, zero: Any) -> None:
    """Add to the rows of ``target`` at ``offsets`` the ``width`` numbers at ``weight``, each time times a factor."""
    vector = lanes(zero)
    number = bytes_of(zero)
    step = vector * number
    while width >= 8 * vector:
        scatter_rows(target, weight, offsets, factors, count, zero, 8)
        target, weight, width = target + 8 * step, weight + 8 * step, width - 8 * vector
    if width >= 4 * vector:
        scatter_rows(target, weight, offsets, factors, count, zero, 4)
        target, weight, width = target + 4 * step, weight + 4 * step, width - 4 * vector
    while width >= vector:
        scatter_rows(target, weight, offsets, factors, count, zero, 1)
        target, weight, width = target + step, weight + step, width - vector
    if width:
        row = load_first(weight, width, zero)
        for e in range(count):
            place = target + load_number(offsets + e * 8, 0)
            factor = broadcast(load_number(factors + e * number, zero), zero)
            store_first(multiply_add(factor, row, load_first(place, width, zero)), place, width)


@intrinsic
def accumulate_rows(
    _typing: Any, target: Any, x: Any, offsets: Any, factors: Any, count: Any, like: Any, vectors: Any, tail: Any
) -> Any:
    """Add to ``target[v]`` the sum over ``e`` of ``factors[e] * x[offsets[e] + v]``: the core of a sparse gradient.

    ``v`` runs over the lanes of ``vectors``, a literal, each with a register that starts at 0; of a last vector only
    ``tail`` numbers are read and written. ``offsets`` is the address of ``count`` >= 1 int64, in bytes, ``factors``
    that of as many numbers.
    """
    if not isinstance(vectors, types.IntegerLiteral):
        return None
    kind, columns = llvm_vector(vector_of(like)), vectors.literal_value

    def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        size, number = size_of(kind.element), ir.IntType(64)
        target, x, offsets, factors = (byte_pointer(builder, argument) for argument in arguments[:4])
        count, rest = arguments[4], arguments[7]
        begin = builder.block
        loop, done = builder.append_basic_block("rows.loop"), builder.append_basic_block("rows.done")

        def get(pointer: Any, v: int) -> Any:
            place = builder.gep(pointer, [ir.Constant(number, v * kind.count * size)])
            if v == columns - 1:
                return read_first(builder, place, rest, kind)
            return read(builder, place, kind, size)

        builder.branch(loop)
        builder.position_at_end(loop)
        e = builder.phi(number)
        e.add_incoming(ir.Constant(number, 0), begin)
        sums = [builder.phi(kind) for _ in range(columns)]
        for node in sums:
            node.add_incoming(ir.Constant(kind, [0.0] * kind.count), begin)
        offset = read(builder, builder.gep(offsets, [builder.mul(e, ir.Constant(number, 8))]), number, 8)
        place = builder.gep(factors, [builder.mul(e, ir.Constant(number, size))])
        factor = splat(builder, read(builder, place, kind.element, size), kind.count)
        row = builder.gep(x, [offset])
        totals = [fused(builder, factor, get(row, v), sums[v]) for v in range(columns)]
        following = builder.add(e, ir.Constant(number, 1))
        e.add_incoming(following, loop)
        for node, total in zip(sums, totals, strict=True):
            node.add_incoming(total, loop)
        builder.cbranch(builder.icmp_signed("<", following, count), loop, done)

        builder.position_at_end(done)
        mask = first_lanes(builder, rest, kind.count)
        for v, total in enumerate(totals):
            place = builder.gep(target, [ir.Constant(number, v * kind.count * size)])
            content = builder.fadd(get(target, v), total)
            if v == columns - 1:
                typed = builder.bitcast(place, kind.as_pointer())
                alignment = ir.Constant(ir.IntType(32), size)
                name = f"llvm.masked.store.{suffix(kind)}.p0"
                call(builder, name, ir.VoidType(), [content, typed, alignment, mask])
            else:
                write(builder, content, place, size)
        return context.get_dummy_value()

    integer = types.int64
    return types.void(*(integer,) * 5, like, vectors, integer), generate


@intrinsic
def scatter_rows(
    _typing: Any, target: Any, weight: Any, offsets: Any, factors: Any, count: Any, like: Any, vectors: Any
) -> Any:
    """Add to ``target[offsets[e] + v]`` ``factors[e] * weight[v]``, event after event: rows may overlap.

    ``v`` runs over the lanes of ``vectors``, a literal, whose weights stay in registers; the rest is as in
    :func:`accumulate_rows`.
    """
    if not isinstance(vectors, types.IntegerLiteral):
        return None
    kind, columns = llvm_vector(vector_of(like)), vectors.literal_value

    def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        size, number = size_of(kind.element), ir.IntType(64)
        target, weight, offsets, factors = (byte_pointer(builder, argument) for argument in arguments[:4])
        steps = [ir.Constant(number, v * kind.count * size) for v in range(columns)]
        row = [read(builder, builder.gep(weight, [step]), kind, size) for step in steps]
        with cgutils.for_range(builder, arguments[4], intp=number) as loop:
            offset = read(builder, builder.gep(offsets, [builder.mul(loop.index, ir.Constant(number, 8))]), number, 8)
            place = builder.gep(factors, [builder.mul(loop.index, ir.Constant(number, size))])
            factor = splat(builder, read(builder, place, kind.element, size), kind.count)
            base = builder.gep(target, [offset])
            for v in range(columns):
                place = builder.gep(base, [steps[v]])
                write(builder, fused(builder, factor, row[v], read(builder, place, kind, size)), place, size)
        return context.get_dummy_value()

    return types.void(*(types.int64,) * 5, like, vectors), generate
