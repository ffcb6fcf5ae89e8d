"""The conv stack on gathered rows under the plan *folded*: a position's convolution is ``K`` additions of rows.

Sums, bias, ReLU, maximum and argmax stay in registers from the first row to the pooled number. Windows that overlap are
pooled from a scratch in the first-level cache instead, so that no position is summed twice but at the borders of the
threads' blocks. On a Zen 4 the bound is one
vector load a cycle while the rows that a batch uses fit into the second-level cache, else the bandwidth of the
third-level cache.

The folded table may be float16 or bfloat16: its numbers are widened in registers, sums are float32. The notebook's
layer (128 x 500 tokens, 10,000 words, 32 x 7 weights, pool 5) takes 1.72 ms from float32, 1.30 from bfloat16, 1.26 from
float16 with one thread of a Zen 4. int8 with one scale per channel took 1.06, with an error of up to ``K * max
|folded[:, :, o]| / 254``: it is not offered.
"""
# ruff: noqa: ARG001  (an intrinsic's parameters are types)

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types

from .conv_pool_inputs import limits_of
from .gathered import Descriptor, Index, row_of, window_range
from .micro.control import of_size, repeat
from .micro.half_floats import stored_as
from .micro.memory import aligned, keep
from .micro.simd import (
    byte_pointer,
    bytes_of,
    element_of,
    first_lanes,
    lanes,
    llvm_number,
    llvm_vector,
    load,
    load_number,
    read,
    size_of,
    splat,
    store,
    store_number,
    vector_of,
    write,
    write_masked,
)
from .pooling import pool_rows
from .runtime.compilation import compiled, intrinsic
from .runtime.threads import share

__all__ = ["forward_folded"]

# Vectors that are summed at once: more share the load of a row's address, fewer leave registers for sums and maxima.
SIZES = (4, 2, 1)


@compiled
def forward_folded(
    layer: Descriptor,
    index: Index,
    places: Any,
    blocks: int,
    is_global: bool,
    zero: Any,
    argmax_zero: Any,
    kept: Any,
    begin: int,
    end: int,
    threads: int,
    launch: int,
) -> None:
    """Compute the blocks ``begin`` to ``end``; see :func:`folded_block`."""
    share(begin, end, threads, launch, folded_block, (layer, index, places, blocks, is_global, zero, argmax_zero, kept))


@njit
def folded_block(
    block: int,
    layer: Descriptor,
    index: Index,
    places: Any,
    blocks: int,
    is_global: bool,
    zero: Any,
    argmax_zero: Any,
    kept: Any,
) -> None:
    """Compute one of the ``blocks`` of all samples' chunks of windows.

    ``places`` are the addresses of the folded table, of the int32 that name each row's place in it (0: its own number),
    of the bias, padded to whole vectors, of the result and of ``argmax`` (0: not wanted). ``zero`` and ``argmax_zero``
    are zeros of the tensor's and the argmax's type, ``kept`` is what :data:`KEPT` has for the folded table's.
    """
    folded, moved, bias, out, argmax = places
    chunks = (layer.windows + layer.chunk - 1) // layer.chunk
    begin, end = layer.samples * chunks * block // blocks, layer.samples * chunks * (block + 1) // blocks
    size = bytes_of(zero)
    width = lanes(zero)
    padded = (layer.outputs + width - 1) // width * width * size
    tap_size = padded // size * bytes_of(kept)
    row_size = layer.size * tap_size
    argmax_row = padded // size * bytes_of(argmax_zero)
    span = (layer.pool_size - 1) * layer.pool_dilation
    reach = (layer.size - 1) * layer.dilation
    most = min((layer.chunk - 1) * layer.pool_stride + span + 1, layer.positions)
    rows = np.empty((most - 1) * layer.stride + reach + 1, np.int64)
    addresses = rows.ctypes.data
    overlap = layer.pool_stride <= span and not is_global
    held = layer.slides * (padded // size)
    scratch = np.empty((most * padded if overlap else 0) + row_size + held * (size + 4) + 64, np.uint8)
    empty = aligned(scratch.ctypes.data)
    running = (empty + row_size, empty + row_size + held * size)
    sums = running[1] + held * 4
    for i in range(0, row_size, bytes_of(kept)):
        store_number(kept, empty + i, kept)
    position = layer.stride * 8
    tap = layer.dilation * 8
    steps = (
        layer.pool_stride * position, layer.pool_dilation * position, tap, tap_size, layer.window_stride, argmax_row
    )  # fmt: skip
    single = (position, position, tap, tap_size, padded, 0)
    first = behind = 0  # of a sample's positions in ``sums``
    for part in range(begin, end):
        n = part // chunks
        from_window = part % chunks * layer.chunk
        all_end = min(from_window + layer.chunk, layer.windows)
        positions, to_window = limits_of(layer, n)
        to_window = max(min(all_end, to_window), from_window)
        begun = max(from_window * layer.pool_stride - layer.pool_padding, 0)
        last = max(min((to_window - 1) * layer.pool_stride - layer.pool_padding + span + 1, positions), begun)
        if not overlap or part == begin or part % chunks == 0:
            first = behind = begun
        elif layer.slides:
            first = behind
        else:
            for at in range(0, (behind - begun) * padded, bytes_of(zero) * width):
                store(load(sums + (begun - first) * padded + at, zero), sums + at)
            first, behind = begun, max(behind, begun)
        last, done = max(last, behind), behind
        count = (last - done - 1) * layer.stride + reach + 1
        write_folded_indirection(
            layer, index, n, done * layer.stride - layer.left, count, (folded, moved, row_size, empty), addresses
        )
        if overlap and last > done:
            sum_rows(
                layer, last - done, sums + (done - first) * padded, 0, addresses, 0, 1, padded // size, bias, single,
                zero, argmax_zero, kept, 0,
            )  # fmt: skip
            behind = last
        full = (positions - 1 - span + layer.pool_padding) // layer.pool_stride  # the last full window
        q = from_window
        while q < to_window:
            start, skipped, ending = window_range(layer, positions, q)
            place = out + n * layer.sample_stride + q * layer.window_stride
            argmax_at = argmax + (n * layer.windows + q) * argmax_row if argmax else 0
            windows = 1
            if overlap or skipped >= ending:
                windows = to_window - q if overlap else 1
                mine, places_of = (q, q + windows, q + windows), (place, argmax_at)
                pool_rows(layer, sums, padded, first, last, positions, mine, places_of, running, zero, argmax_zero)
            else:
                if ending - skipped == layer.pool_size:
                    windows = min(full + 1, to_window) - q
                at = addresses + (start + skipped * layer.pool_dilation - first) * position
                if is_global:
                    sum_rows(
                        layer, 1, place, argmax_at, at, skipped, ending, layer.outputs, bias, steps, zero, argmax_zero,
                        kept, 1,
                    )  # fmt: skip
                else:
                    sum_rows(
                        layer, windows, place, argmax_at, at, skipped, ending, layer.outputs, bias, steps, zero,
                        argmax_zero, kept, 0,
                    )  # fmt: skip
            q += windows
        if q < all_end:
            place = out + n * layer.sample_stride + q * layer.window_stride
            argmax_at = argmax + (n * layer.windows + q) * argmax_row if argmax else 0
            mine, places_of = (q, q, all_end), (place, argmax_at)
            pool_rows(layer, sums, padded, first, last, positions, mine, places_of, running, zero, argmax_zero)
    keep(rows)
    keep(scratch)


@njit
def write_folded_indirection(
    layer: Descriptor, index: Index, n: int, first: int, count: int, table: Any, addresses: int
) -> None:
    """Write the addresses of the rows of ``count`` positions of sample ``n``, from the input's position ``first`` on.

    ``table`` are the addresses of the folded table and of the rows' places in it, as in :func:`folded_block`, the bytes
    of a row and the address of the row that padding has.
    """
    folded, moved, row_size, empty = table
    begin = min(max(-first, 0), count)
    end = max(min(layer.length - first, count), begin)
    for i in range(begin):
        store_number(empty, addresses + i * 8, 0)
    for i in range(end, count):
        store_number(empty, addresses + i * 8, 0)
    if moved:
        for i in range(begin, end):
            row = np.int64(load_number(moved + row_of(index, n, first + i) * 4, np.int32(0)))
            store_number(folded + row * row_size, addresses + i * 8, 0)
    elif index.itemsize == 8 and index.position_stride == 8 and not index.step:
        place = index.address + n * index.sample_stride + first * 8
        for i in range(begin, end):  # as the other loops, in a form that the compiler vectorises
            store_number(folded + load_number(place + i * 8, 0) * row_size, addresses + i * 8, 0)
    else:
        for i in range(begin, end):
            store_number(folded + row_of(index, n, first + i) * row_size, addresses + i * 8, 0)


@njit
def sum_rows(
    layer: Descriptor,
    windows: int,
    out: int,
    argmax: int,
    addresses: int,
    first: int,
    last: int,
    outputs: int,
    bias: int,
    steps: Any,
    zero: Any,
    argmax_zero: Any,
    kept: Any,
    is_global: int,
) -> None:
    """Pool the positions ``first`` to ``last`` of ``windows``, the first of which begins at ``addresses``.

    ``outputs`` is the number of channels, of which the last vector may hold fewer than its lanes; the rest is as in
    :func:`pool_sums`.
    """
    width = lanes(zero)
    vector = width * bytes_of(zero)
    vectors = (outputs + width - 1) // width
    v = 0
    while v < vectors:
        goal, shift = out + v * vector, bias + v * vector
        argmax_at = argmax + v * width * bytes_of(argmax_zero) if argmax else 0
        offset, taps = v * width * bytes_of(kept), layer.size
        taken = 4 if vectors - v >= 4 else 2 if vectors - v >= 2 else 1
        tail = min(outputs - (v + taken - 1) * width, width)
        pool_sums(
            goal, tail, argmax_at, addresses, offset, steps, windows, first, last, taps, shift, zero, argmax_zero, kept,
            taken, is_global,
        )  # fmt: skip
        v += taken


@intrinsic
def pool_sums(
    _typing: Any,
    out: Any,
    tail: Any,
    argmax: Any,
    addresses: Any,
    offset: Any,
    steps: Any,
    windows: Any,
    first: Any,
    last: Any,
    taps: Any,
    bias: Any,
    like: Any,
    argmax_zero: Any,
    kept: Any,
    vectors: Any,
    is_global: Any,
) -> Any:
    """Write the maximum of 0 and the sums of the positions ``first`` to ``last``, and its argmax, for ``vectors``.

    That is done for each of ``windows`` windows. ``addresses`` holds the address of the row that tap 0 of position
    ``first`` reads; its numbers are ``offset`` bytes on. ``steps`` are bytes: in ``addresses`` from one window,
    position and tap to the next; within a row from a tap's numbers to the next tap's; from one window to the next in
    ``out`` and in ``argmax``. Every sum starts from ``bias``. ``is_global``, 0 or 1, is a literal; of
    the last vector ``tail`` numbers are written to ``out``. Without a position the maximum is minus infinity.
    """
    if not isinstance(is_global, types.IntegerLiteral):
        return None
    kind, argmax_type, stored = llvm_vector(vector_of(like)), llvm_number(element_of(argmax_zero)), stored_as(kept)
    emitted = partial(
        emit_pool, kind=kind, argmax_type=argmax_type, stored=stored, is_global=bool(is_global.literal_value)
    )

    def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        of_size(builder, arguments[14], SIZES, partial(emitted, builder, arguments[:11]))
        return context.get_dummy_value()

    integer = types.int64
    form = (integer,) * 5 + (types.UniTuple(integer, 6),) + (integer,) * 5
    return types.void(*form, like, argmax_zero, kept, integer, is_global), generate


def emit_pool(
    builder: Any, given: Sequence[Any], vectors: int, *, kind: Any, argmax_type: Any, stored: Any, is_global: bool
) -> None:
    """Emit the sums of ``vectors`` and their maxima; ``given`` are the first arguments of :func:`pool_sums`."""
    out, tail, argmax, addresses, offset, steps, windows, first, last, taps, bias = given
    size, number, short = size_of(kind.element), ir.IntType(64), ir.IntType(32)
    integers, one = ir.VectorType(short, kind.count), ir.Constant(number, 1)
    window_step, position_step, tap_step, row_step, out_step, argmax_step = (
        builder.extract_value(steps, i) for i in range(6)
    )
    columns = [ir.Constant(number, v * kind.count * size) for v in range(vectors)]
    places = [ir.Constant(number, v * kind.count * stored.size) for v in range(vectors)]
    shift = byte_pointer(builder, bias)
    shifts = [read(builder, builder.gep(shift, [column]), kind, size) for column in columns]
    zero, infinity = ir.Constant(kind.element, 0.0), ir.Constant(kind.element, float("-inf"))
    inside = builder.icmp_signed("<", first, last)
    lowest = splat(builder, builder.select(inside, zero, infinity), kind.count)
    full = builder.icmp_signed("==", tail, ir.Constant(number, kind.count))
    mask = first_lanes(builder, tail, kind.count)
    want_argmax = builder.icmp_signed("!=", argmax, ir.Constant(number, 0))
    nowhere = ir.Constant(integers, [-1] * kind.count)
    earliest = splat(builder, builder.trunc(first, short), kind.count)

    def after(value: Any, step: Any) -> Any:
        return builder.gep(value, [step]) if value.type.is_pointer else builder.add(value, step)

    def is_left(number_left: Any) -> Any:
        return builder.icmp_signed(">", number_left, ir.Constant(number, 0))

    def add_tap(k: Any, near: Any, within: Any, *totals: Any) -> tuple[list[Any], Any]:
        row = builder.gep(byte_pointer(builder, read(builder, near, number, 8)), [within])
        rows = [stored.load(builder, builder.gep(row, [place]), kind) for place in places]
        sums = [builder.fadd(total, content) for total, content in zip(totals, rows, strict=True)]
        left = builder.sub(k, one)
        return [left, after(near, tap_step), after(within, row_step), *sums], is_left(left)

    def pool_position(p: Any, place: Any, p_lanes: Any, *found: Any) -> tuple[list[Any], Any]:
        best, at = found[:vectors], found[vectors:]
        totals = repeat(builder, [taps, place, offset, *shifts], add_tap)[3:]
        greatest, greatest_at = [], []
        for total, old, other in zip(totals, best, at, strict=True):
            special = builder.fcmp_unordered("uno", total, total)
            if is_global:
                special = builder.and_(special, builder.fcmp_ordered("ord", old, old))
            replaces = builder.or_(builder.fcmp_ordered(">", total, old), special)
            greatest.append(builder.select(replaces, total, old))
            greatest_at.append(builder.select(replaces, p_lanes, other))
        ahead = builder.add(p, one)
        p_lanes = builder.add(p_lanes, ir.Constant(integers, [1] * kind.count))
        values = [ahead, after(place, position_step), p_lanes, *greatest, *greatest_at]
        return values, builder.icmp_signed("<", ahead, last)

    def pool_window(remaining: Any, window: Any, goal: Any, argmax_at: Any) -> tuple[list[Any], Any]:
        # The loop over positions runs at least once; where there is no position, its sums are ignored.
        start = [first, window, earliest, *[lowest] * vectors, *[nowhere] * vectors]
        found = repeat(builder, start, pool_position)[3:]
        for v, vector in enumerate(found[:vectors]):
            target = builder.gep(goal, [columns[v]])
            if v < vectors - 1:
                write(builder, vector, target, size)
                continue
            with builder.if_else(full, likely=True) as (whole, part):
                with whole:
                    write(builder, vector, target, size)
                with part:
                    write_masked(builder, vector, target, mask)
        with builder.if_then(want_argmax):
            for v, vector in enumerate(found[vectors:]):
                target = builder.gep(argmax_at, [ir.Constant(number, v * kind.count * size_of(argmax_type))])
                fitting = ir.VectorType(argmax_type, kind.count)
                content = builder.trunc(vector, fitting) if vector.type != fitting else vector
                write(builder, content, target, size_of(argmax_type))
        left = builder.sub(remaining, one)
        ahead = [left, after(window, window_step), after(goal, out_step), after(argmax_at, argmax_step)]
        return ahead, is_left(left)

    repeat(builder, [windows, *(byte_pointer(builder, one) for one in (addresses, out, argmax))], pool_window)
