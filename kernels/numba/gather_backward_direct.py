"""Gradients of the conv stack on gathered rows, winner by winner: for few winners, and for rows that occur once.

With ``g`` the gradient of window ``(n, q, o)`` and ``r[k]`` the row that tap ``k`` of its winner read,

    dW[o, k] += g * table[r[k]]        dtable[r[k]] += g * W[o, k]        db[o] += g

Where the table's gradient is wanted threads share the channels, so that no two write the same number; a few channels
keep one thread busy. Else they share the samples, and their weight gradients are added in a fixed order.
"""
# ruff: noqa: ARG001  (an intrinsic's parameters are types)

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from torch import Tensor

from .compilation import compiled, intrinsic
from .conv_pool import DTYPES, lane_count, padded_outputs
from .gathered import Index, Layer, row_of
from .occurrences import reads_finite
from .simd import (
    add,
    byte_pointer,
    bytes_of,
    call,
    first_lanes,
    fused,
    lanes,
    llvm_vector,
    load_first,
    load_number,
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

__all__ = ["backward_direct"]

# Vectors of a row that are served at once, and winners: sums of a single vector would wait for each other.
WIDE = 8
TURNS = 4

# Winners' taps that a position may have on average and still be added to the table's gradient one by one.
MANY = 2


def backward_direct(
    gradient: Tensor,
    argmax: Tensor,
    layer: Layer,
    index: Index,
    table: Tensor,
    weight: Tensor,
    padding_idx: int | None,
    wanted: tuple[bool, bool, bool],
    others: Tensor | None = None,
) -> tuple[Tensor | None, Tensor | None, Tensor | None] | None:
    """Return the gradients of ``table``, ``weight`` and ``bias`` that are wanted; ``gradient`` is ``(N, O, Q)``.

    The table's is contiguous, with zeros for rows that no winner read and for row ``padding_idx``; it is added to
    ``others``, in place, if there are. ``None`` where a number to multiply with is infinite or a NaN.
    """
    like, itemsize, channels = DTYPES[table.dtype], table.element_size(), table.size(1)
    source = table if table.stride(1) == 1 or channels == 1 else table.contiguous()
    rows = (source.data_ptr(), source.stride(0) * itemsize, itemsize, channels)
    if wanted[1] and not reads_finite(index, layer.samples, rows, np.zeros(table.size(0), np.uint8), like):
        return None
    if wanted[0] and not weight.isfinite().all():
        return None
    filters = weight.detach().permute(0, 2, 1).contiguous()
    by_channels = wanted[0]
    pieces = -(-channels // lane_count(like)) if by_channels else layer.samples
    parts = thread_count(max(1, pieces), gradient.numel() * channels * layer.size)
    partial = 1 if by_channels else parts
    dtable = (table.new_zeros(table.shape) if others is None else others) if wanted[0] else None
    dw = weight.new_zeros(partial, *filters.shape) if wanted[1] else None
    db = weight.new_zeros(partial, layer.outputs) if wanted[2] else None
    results = tuple(0 if one is None else one.data_ptr() for one in (dtable, dw, db))
    places = (source.data_ptr(), filters.data_ptr(), gradient.data_ptr(), argmax.data_ptr(), *results)
    width = padded_outputs(layer.outputs, like)
    numbers = (channels, source.stride(0) * itemsize, width, parts, -1 if padding_idx is None else padding_idx)
    code = argmax.new_zeros(()).numpy()[()]

    def add(begin: int, end: int, threads: int, launch: int) -> None:
        add_parts(layer, index, places, numbers, by_channels, like, code, begin, end, threads, launch)

    if any(wanted):
        run(add, parts, parts)
    return (
        dtable,
        None if dw is None else dw.sum(0).permute(0, 2, 1).contiguous(),
        None if db is None else db.sum(0),
    )


@compiled
def add_parts(
    layer: Layer,
    index: Index,
    places: Any,
    numbers: Any,
    by_channels: bool,
    zero: Any,
    code: Any,
    begin: int,
    end: int,
    threads: int,
    launch: int,
) -> None:
    """Do the parts ``begin`` to ``end``; see :func:`add_part`."""
    share(begin, end, threads, launch, add_part, (layer, index, places, numbers, by_channels, zero, code))


@njit
def add_part(
    part: int, layer: Layer, index: Index, places: Any, numbers: Any, by_channels: bool, zero: Any, code: Any
) -> None:
    """Add what the winners give in one of the parts of the channels, or of the samples.

    ``places`` are the addresses of table, weights ``(O, K, C)``, upstream gradient, argmax and the gradients of table,
    weight and bias; 0 is not wanted.
    """
    table, filters, gradient, argmax, dtable, dw, db = places
    channels, row_stride, width, parts, skipped = numbers
    size = bytes_of(zero)
    begin, end, low, high = 0, layer.samples, 0, channels
    if by_channels:
        pieces = (channels + lanes(zero) - 1) // lanes(zero)
        low = pieces * part // parts * lanes(zero)
        high = min(pieces * (part + 1) // parts * lanes(zero), channels)
        db = 0 if part else db
    else:
        begin, end = layer.samples * part // parts, layer.samples * (part + 1) // parts
        dw += part * layer.outputs * layer.size * channels * size if dw else 0
        db += part * layer.outputs * size if db else 0
    reach = (layer.size - 1) * layer.dilation
    rows = (layer.positions - 1) * layer.stride + reach + 1
    empty = np.zeros(channels * size + 1, np.uint8)
    nowhere = np.zeros(channels * size + 1, np.uint8)
    # Behind the rows of the input, as many of zeros: those of the winners that fill a last turn.
    sources = np.full(rows + reach + 1, empty.ctypes.data, np.int64)
    targets = np.full(rows + reach + 1, nowhere.ctypes.data, np.int64)
    # Where many winners read a position their gradients are summed there before they go to the table's row: a row that
    # occurs often would else be a sum of thousands, and round worse than torch's.
    summed = dtable != 0 and layer.windows * layer.outputs * layer.size > MANY * rows
    line = (high - low) * size
    sums = np.zeros(rows * line if summed else 1, np.uint8)
    winners = np.empty(layer.windows + TURNS, np.int64)
    factors = np.zeros((layer.windows + TURNS) * size, np.uint8)
    for n in range(begin, end):
        for i in range(rows):
            position = i - layer.left
            sources[i] = empty.ctypes.data
            targets[i] = nowhere.ctypes.data
            if 0 <= position < layer.length:
                row = row_of(index, n, position)
                sources[i] = table + row * row_stride + low * size
                if row != skipped:
                    targets[i] = sums.ctypes.data + i * line if summed else dtable + (row * channels + low) * size
        for o in range(layer.outputs):
            count = 0
            code_at = argmax + (n * layer.windows * width + o) * bytes_of(code)
            factor_at = gradient + n * layer.sample_stride + o * layer.channel_stride
            for q in range(layer.windows):
                won = load_number(code_at, code)
                winners[count] = (q * layer.pool_stride - layer.pool_padding + won * layer.pool_dilation) * layer.stride
                store_number(load_number(factor_at, zero), factors.ctypes.data + count * size, zero)
                count += won >= 0  # whether a window has a winner cannot be foreseen: a branch would cost more
                code_at += width * bytes_of(code)
                factor_at += layer.window_stride
            if not count:
                continue
            if db:
                total = zero
                for e in range(count):
                    total += load_number(factors.ctypes.data + e * size, zero)
                store_number(load_number(db + o * size, zero) + total, db + o * size, zero)
            while count >= TURNS and count % TURNS:
                winners[count] = rows
                store_number(zero, factors.ctypes.data + count * size, zero)
                count += 1
            for k in range(layer.size):
                listed = (winners.ctypes.data, factors.ctypes.data, count)
                weights = ((o * layer.size + k) * channels + low) * size
                if dw:
                    places_of = sources.ctypes.data + k * layer.dilation * 8
                    gather_run(dw + weights, places_of, listed, high - low, zero)
                if dtable:
                    places_of = targets.ctypes.data + k * layer.dilation * 8
                    scatter_run(filters + weights, places_of, listed, high - low, zero)
        for i in range(rows if summed else 0):
            position = i - layer.left
            if 0 <= position < layer.length and row_of(index, n, position) != skipped:
                place = dtable + (row_of(index, n, position) * channels + low) * size
                add_row(place, sums.ctypes.data + i * line, high - low, zero)
        sums[:] = 0
    empty[0] = nowhere[0]  # Numba frees an array after the last use of its name, whoever still has its address
    sources[0] = targets[0]
    winners[0] = factors[0] + sums[0]


@njit
def add_row(target: int, source: int, count: int, zero: Any) -> None:
    """Add ``count`` numbers to others."""
    width, size = lanes(zero), bytes_of(zero)
    for c in range(0, count, width):
        rest, place = min(width, count - c), target + c * size
        store_first(add(load_first(place, rest, zero), load_first(source + c * size, rest, zero)), place, rest)


@njit
def gather_run(target: int, rows: int, listed: Any, count: int, zero: Any) -> None:
    """Add to ``count`` numbers at ``target`` the sum of the listed rows, each times its factor."""
    vector = lanes(zero)
    done = 0
    while done < count:
        rest = count - done
        place, offset = target + done * bytes_of(zero), done * bytes_of(zero)
        if rest > 4 * vector:
            taken = min(rest, WIDE * vector)
            tail = rest - 7 * vector if rest > 7 * vector else 0
            if tail > 0:
                gather_rows(place, rows, offset, listed, min(tail, vector), zero, 8)
            else:
                taken = 4 * vector
                gather_rows(place, rows, offset, listed, vector, zero, 4)
        elif rest > 3 * vector:
            taken = rest
            gather_rows(place, rows, offset, listed, rest - 3 * vector, zero, 4)
        elif rest > vector:
            taken = min(rest, 2 * vector)
            gather_rows(place, rows, offset, listed, taken - vector, zero, 2)
        else:
            taken = rest
            gather_rows(place, rows, offset, listed, rest, zero, 1)
        done += taken


@njit
def scatter_run(weight: int, rows: int, listed: Any, count: int, zero: Any) -> None:
    """Add ``count`` numbers at ``weight`` to the listed rows, each time times a factor."""
    vector = lanes(zero)
    done = 0
    while done < count:
        rest = count - done
        place, offset = weight + done * bytes_of(zero), done * bytes_of(zero)
        if rest >= WIDE * vector:
            taken = WIDE * vector
            scatter_rows(place, rows, offset, listed, vector, zero, 8)
        elif rest >= 4 * vector:
            taken = 4 * vector
            scatter_rows(place, rows, offset, listed, vector, zero, 4)
        else:
            taken = min(rest, vector)
            scatter_rows(place, rows, offset, listed, taken, zero, 1)
        done += taken


@intrinsic
def gather_rows(
    _typing: Any, target: Any, rows: Any, offset: Any, listed: Any, tail: Any, like: Any, vectors: Any
) -> Any:
    """Add to ``target[v]`` the sum over winners ``e`` of ``factors[e] * row[v]``, ``row`` that of winner ``e``.

    ``listed`` are the addresses of the winners' numbers, int64, and of their factors, and their count: at least one,
    and a multiple of ``TURNS`` unless it is smaller. A winner's row begins at the address that ``rows[winner]`` holds,
    ``offset`` bytes on. ``vectors`` is a literal; of the last one ``tail`` numbers are read and written.
    """
    if not isinstance(vectors, types.IntegerLiteral):
        return None
    kind, wide = llvm_vector(vector_of(like)), vectors.literal_value
    sets = TURNS if wide < TURNS else 1

    def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        size, number = size_of(kind.element), ir.IntType(64)
        target, rows = byte_pointer(builder, arguments[0]), byte_pointer(builder, arguments[1])
        offset, tail = arguments[2], arguments[4]
        winners, factors, count = (builder.extract_value(arguments[3], i) for i in range(3))
        winners, factors = byte_pointer(builder, winners), byte_pointer(builder, factors)
        steps = [ir.Constant(number, v * kind.count * size) for v in range(wide)]
        zeros = ir.Constant(kind, [0.0] * kind.count)

        def products(e: Any, sums: list[Any]) -> list[Any]:
            winner = read(builder, builder.gep(winners, [builder.mul(e, ir.Constant(number, 8))]), number, 8)
            row = read(builder, builder.gep(rows, [builder.mul(winner, ir.Constant(number, 8))]), number, 8)
            row = builder.gep(byte_pointer(builder, row), [offset])
            factor = read(
                builder, builder.gep(factors, [builder.mul(e, ir.Constant(number, size))]), kind.element, size
            )
            factor = splat(builder, factor, kind.count)
            return [fused(builder, factor, get(row, v), sums[v]) for v in range(wide)]

        def get(pointer: Any, v: int) -> Any:
            place = builder.gep(pointer, [steps[v]])
            return read_first(builder, place, tail, kind) if v == wide - 1 else read(builder, place, kind, size)

        def loop(start: list[Any], step: int, values: Any) -> list[Any]:
            """Run over the winners, ``step`` at a time; ``values(e, sums)`` are the sums behind winner ``e``."""
            before, block, done = (
                builder.block,
                builder.append_basic_block("gather"),
                builder.append_basic_block("done"),
            )
            builder.branch(block)
            builder.position_at_end(block)
            state = [builder.phi(value.type) for value in (ir.Constant(number, 0), *start)]
            for node, value in zip(state, (ir.Constant(number, 0), *start), strict=True):
                node.add_incoming(value, before)
            totals = values(state[0], state[1:])
            following = builder.add(state[0], ir.Constant(number, step))
            for node, value in zip(state, (following, *totals), strict=True):
                node.add_incoming(value, builder.block)
            builder.cbranch(builder.icmp_signed("<", following, count), block, done)
            builder.position_at_end(done)
            return list(totals)

        def turns(e: Any, sums: list[Any]) -> list[Any]:
            totals = list(sums)
            for turn in range(TURNS):
                at = turn % sets * wide
                totals[at : at + wide] = products(builder.add(e, ir.Constant(number, turn)), totals[at : at + wide])
            return totals

        many = builder.icmp_signed(">=", count, ir.Constant(number, TURNS))
        results = []
        with builder.if_else(many) as (several, few):
            with several:
                sums = loop([zeros] * (wide * sets), TURNS, turns)
                merged = [sums[v] for v in range(wide)]
                for turn in range(1, sets):
                    merged = [builder.fadd(merged[v], sums[turn * wide + v]) for v in range(wide)]
                results.append((merged, builder.block))
            with few:
                results.append((loop([zeros] * wide, 1, products), builder.block))
        totals = [builder.phi(kind) for _ in range(wide)]
        for values, block in results:
            for node, value in zip(totals, values, strict=True):
                node.add_incoming(value, block)
        mask = first_lanes(builder, tail, kind.count)
        for v, total in enumerate(totals):
            content = builder.fadd(get(target, v), total)
            put(builder, content, builder.gep(target, [steps[v]]), size, mask if v == wide - 1 else None)
        return context.get_dummy_value()

    integer = types.int64
    return types.void(integer, integer, integer, types.UniTuple(integer, 3), integer, like, vectors), generate


def put(builder: Any, content: Any, place: Any, size: int, mask: Any) -> None:
    """Store a vector, or its lanes in a mask."""
    if mask is None:
        write(builder, content, place, size)
        return
    typed, alignment = builder.bitcast(place, content.type.as_pointer()), ir.Constant(ir.IntType(32), size)
    name = f"llvm.masked.store.{suffix(content.type)}.p0"
    call(builder, name, ir.VoidType(), [content, typed, alignment, mask])


@intrinsic
def scatter_rows(
    _typing: Any, weight: Any, rows: Any, offset: Any, listed: Any, tail: Any, like: Any, vectors: Any
) -> Any:
    """Add ``factors[e] * weight[v]`` to the row of winner ``e``, one after the other: rows may be the same.

    The arguments are those of :func:`gather_rows`; with more than one vector ``tail`` is all of the last.
    """
    if not isinstance(vectors, types.IntegerLiteral):
        return None
    kind, wide = llvm_vector(vector_of(like)), vectors.literal_value

    def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        size, number = size_of(kind.element), ir.IntType(64)
        weight, rows = byte_pointer(builder, arguments[0]), byte_pointer(builder, arguments[1])
        offset, tail = arguments[2], arguments[4]
        winners, factors, count = (builder.extract_value(arguments[3], i) for i in range(3))
        winners, factors = byte_pointer(builder, winners), byte_pointer(builder, factors)
        steps = [ir.Constant(number, v * kind.count * size) for v in range(wide)]

        def get(pointer: Any, v: int) -> Any:
            place = builder.gep(pointer, [steps[v]])
            return read_first(builder, place, tail, kind) if wide == 1 else read(builder, place, kind, size)

        mask = first_lanes(builder, tail, kind.count) if wide == 1 else None
        held = [get(weight, v) for v in range(wide)]
        with cgutils.for_range(builder, count, intp=number) as loop:
            winner = read(builder, builder.gep(winners, [builder.mul(loop.index, ir.Constant(number, 8))]), number, 8)
            row = read(builder, builder.gep(rows, [builder.mul(winner, ir.Constant(number, 8))]), number, 8)
            row = builder.gep(byte_pointer(builder, row), [offset])
            place = builder.gep(factors, [builder.mul(loop.index, ir.Constant(number, size))])
            factor = splat(builder, read(builder, place, kind.element, size), kind.count)
            for v in range(wide):
                content = fused(builder, factor, held[v], get(row, v))
                put(builder, content, builder.gep(row, [steps[v]]), size, mask)
        return context.get_dummy_value()

    integer = types.int64
    return types.void(integer, integer, integer, types.UniTuple(integer, 3), integer, like, vectors), generate
