"""Gradients of the conv stack on gathered rows under the plan *direct*: for few windows, and rows that occur once.

With ``g`` the gradient of window ``(n, q, o)``, and ``r[k]`` the row that tap ``k`` reads at the position of the
window's maximum,

    dW[o, k] += g * table[r[k]]        dtable[r[k]] += g * W[o, k]        db[o] += g

For the table's gradient each thread owns some of the table's rows: it looks at all windows and adds to its own rows
alone, so that no two threads write the same number. For the other gradients each thread takes some of the samples, and
the threads' sums are added in a fixed order.

TextCNN's backward pass (10,000 x 128 numbers, 128 samples of 500 tokens, 3 x 100 outputs) takes 6.7 ms with one thread
and 4.8 with two on a Zen 4 that shares its third-level cache with others: the rows come from there, in random order.
With the channels shared among threads for all gradients, and lists of single samples, it took 11.9 and 13.3 ms.
"""
# ruff: noqa: ARG001  (an intrinsic's parameters are types)

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from math import gcd, isfinite
from typing import Any

import numpy as np
import torch
from llvmlite import ir
from numba import njit, types
from torch import Tensor

from .conv_pool_backward_blocking import outputs_at_once
from .dense import DTYPES, padded_outputs
from .gathered import Descriptor, Index, row_of
from .micro.channel_blocks import carry_sums
from .micro.control import chosen, of_size, repeat
from .micro.memory import keep
from .micro.simd import (
    DOUBLE,
    add,
    byte_pointer,
    bytes_of,
    first_lanes,
    fmuladd,
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
    vector_of,
    write,
    write_masked,
)
from .occurrences import reads_finite
from .runtime.compilation import compiled, intrinsic
from .runtime.threads import run, share, thread_count

__all__ = ["backward_direct"]

# Vectors of a row, and entries of a list, that are computed at once: the sums of a single vector would wait for each
# other.
TURNS = 4

# Average number of terms of a position up to which they are added to the table's gradient one by one.
MANY = 2

# The same number for a row of the table.
OFTEN = 64

# Windows that are listed together, of several samples where one has fewer: a weight is loaded once a list. A list spans
# at most POSITIONS positions, whose rows stay in the second-level cache.
LISTED = 16
POSITIONS = 16384


def backward_direct(
    gradient: Tensor,
    argmax: Tensor,
    layer: Descriptor,
    index: Index,
    table: Tensor,
    weight: Tensor,
    padding_idx: int | None,
    wanted: tuple[bool, bool, bool],
    others: Tensor | None = None,
) -> tuple[Tensor | None, Tensor | None, Tensor | None] | None:
    """Return the gradients of ``table``, ``weight`` and ``bias`` that are wanted; ``gradient`` is ``(N, O, Q)``.

    The table's gradient is contiguous, with zeros for rows that no window's maximum reads and for row ``padding_idx``;
    if ``others`` are given, it is added to them in place. Return ``None`` alone where a factor is infinite or a NaN.
    """
    like, itemsize, channels = DTYPES[table.dtype], table.element_size(), table.size(1)
    source = table if table.stride(1) == 1 or channels == 1 else table.contiguous()
    rows = (source.data_ptr(), source.stride(0) * itemsize, itemsize, channels)
    if wanted[1]:
        # The sum of all numbers shows faster that they are finite than a search of the rows in use, unless those are
        # few.
        surely = table.size(0) <= layer.samples * layer.length and isfinite(table.detach().sum())
        if not surely and not reads_finite(index, layer.samples, rows, np.zeros(table.size(0), np.uint8), like):
            return None
    if wanted[0] and not isfinite(weight.detach().sum()) and not weight.isfinite().all():
        return None
    filters = weight.detach().permute(0, 2, 1).contiguous()
    threads = thread_count(2 * layer.samples, gradient.numel() * channels * layer.size * sum(wanted[:2]))
    shares = threads if wanted[0] else 0
    sections = min(threads, layer.samples) if wanted[1] or wanted[2] else 0
    positions = (layer.positions - 1) * layer.stride + (layer.size - 1) * layer.dilation + 1
    group, summed = 1, sums_first(layer, positions, table.size(0))
    if not summed:
        group = max(1, min(LISTED // layer.windows, POSITIONS // positions, layer.samples))
    dtable = (table.new_zeros(table.shape) if others is None else others) if wanted[0] else None
    dw = weight.new_zeros(sections, *filters.shape) if wanted[1] else None
    db = weight.new_zeros(sections, layer.outputs, dtype=torch.float64) if wanted[2] else None
    places = (
        source.data_ptr(), filters.data_ptr(), gradient.data_ptr(), argmax.data_ptr(),
        0 if dtable is None else dtable.data_ptr(), 0 if dw is None else dw.data_ptr(),
        0 if db is None else db.data_ptr(),
    )  # fmt: skip
    width = padded_outputs(layer.outputs, like)
    skipped = -1 if padding_idx is None else padding_idx
    reached = -(-positions // gcd(layer.stride, layer.dilation))
    at_once = outputs_at_once(layer.outputs, layer.size, layer.windows, layer.pool_size, reached)
    numbers = (channels, source.stride(0) * itemsize, width, shares, sections, group, skipped, at_once, summed)
    argmax_zero = argmax.new_zeros(()).numpy()[()]

    def add(begin: int, end: int, threads: int, launch: int) -> None:
        add_parts(layer, index, places, numbers, like, argmax_zero, begin, end, threads, launch)

    if any(wanted):
        run(add, shares + sections, min(threads, shares + sections))
    return (
        dtable,
        None if dw is None else dw.sum(0).permute(0, 2, 1).contiguous(),
        None if db is None else db.sum(0).to(weight.dtype),
    )


@compiled
def add_parts(
    layer: Descriptor,
    index: Index,
    places: Any,
    numbers: Any,
    zero: Any,
    argmax_zero: Any,
    begin: int,
    end: int,
    threads: int,
    launch: int,
) -> None:
    """Do the parts ``begin`` to ``end``; see :func:`add_part`."""
    share(begin, end, threads, launch, add_part, (layer, index, places, numbers, zero, argmax_zero))


@njit
def add_part(
    part: int, layer: Descriptor, index: Index, places: Any, numbers: Any, zero: Any, argmax_zero: Any
) -> None:
    """Add all windows' terms to one share of the table's rows or, from part ``shares`` on, a section's to dW and db.

    ``places`` are the addresses of table, weights ``(O, K, C)``, upstream gradient, argmax and the gradients of table,
    weight and bias; 0 is not wanted. ``numbers`` are the number of channels, the bytes between rows, the outputs in
    whole vectors, the number of shares of the rows and of sections of the samples, the number of samples whose windows
    are listed together, the row that gets no gradient, the number of outputs whose terms are added to a position's
    gradient one by one, and the result of :func:`sums_first`.
    """
    table, filters, gradient, argmax, dtable, dw, db = places
    channels, row_stride, width, shares, sections, group, skipped, at_once, sums_first = numbers
    size, begin, end, mine = bytes_of(zero), 0, layer.samples, part
    if part < shares:
        dw, db = 0, 0
    else:
        part -= shares
        begin, end = layer.samples * part // sections, layer.samples * (part + 1) // sections
        dtable = 0
        dw += part * layer.outputs * layer.size * channels * size if dw else 0
        db += part * layer.outputs * 8 if db else 0
    line, reach = channels * size, (layer.size - 1) * layer.dilation
    rows = (layer.positions - 1) * layer.stride + reach + 1
    # The row that padding reads, and that takes its gradient. Entries that fill up a turn read it, too: their addresses
    # stand behind those of the input's rows.
    spare = np.zeros(line + 1, np.uint8)
    nowhere = spare.ctypes.data
    addresses = np.full(group * rows + reach + 1, nowhere, np.int64)
    summed = dtable != 0 and sums_first
    sums = np.zeros(rows * line if summed else 1, np.uint8)
    totals = np.zeros(rows * line if summed and at_once < layer.outputs else 1, np.uint8)
    entries = np.empty((2, group * layer.windows + TURNS), np.int64)
    factors = np.zeros((2, (group * layer.windows + TURNS) * size), np.uint8)
    chosen, their_factors = entries[1].ctypes.data, factors[1].ctypes.data
    for first in range(begin, end, group):
        number = min(group, end - first)
        for i in range(number):
            place, at = addresses.ctypes.data + i * rows * 8, sums.ctypes.data if summed else 0
            if dtable:
                write_table_indirection(
                    layer, index, first + i, rows, (dtable, line, nowhere, at), (skipped, mine, shares), place
                )
            else:
                write_table_indirection(
                    layer, index, first + i, rows, (table, row_stride, nowhere, 0), (-1, 0, 1), place
                )
        for o in range(layer.outputs):
            if summed and o and o % at_once == 0:
                for j in range(rows):
                    if addresses[j] != nowhere:
                        carry_sums(sums.ctypes.data + j * line, totals.ctypes.data + j * line, line, zero)
            count = 0
            for i in range(number):
                n = first + i
                argmax_at = argmax + (n * layer.windows * width + o) * bytes_of(argmax_zero)
                factor_at = gradient + n * layer.sample_stride + o * layer.channel_stride
                for q in range(layer.windows):
                    p = load_number(argmax_at, argmax_zero)
                    start = q * layer.pool_stride - layer.pool_padding
                    entries[0, count] = i * rows + (start + p * layer.pool_dilation) * layer.stride
                    store_number(load_number(factor_at, zero), factors.ctypes.data + count * size, zero)
                    count += p >= 0  # no branch: whether a window has a gradient is unpredictable
                    argmax_at += width * bytes_of(argmax_zero)
                    factor_at += layer.window_stride
            if not count:
                continue
            if db:
                total = load_number(db + o * 8, DOUBLE)
                for e in range(count):
                    total += load_number(factors.ctypes.data + e * size, zero)
                store_number(total, db + o * 8, DOUBLE)
            while dw and count >= TURNS and count % TURNS:
                entries[0, count] = group * rows
                store_number(zero, factors.ctypes.data + count * size, zero)
                count += 1
            for k in range(layer.size):
                weights, tap = (o * layer.size + k) * line, k * layer.dilation
                if dw:
                    listed = (entries.ctypes.data, factors.ctypes.data, count)
                    gather_run(dw + weights, addresses.ctypes.data + tap * 8, listed, channels, zero)
                if dtable:
                    owned = 0
                    for e in range(count):
                        entries[1, owned] = entries[0, e]
                        factor = load_number(factors.ctypes.data + e * size, zero)
                        store_number(factor, their_factors + owned * size, zero)
                        owned += addresses[entries[0, e] + tap] != nowhere
                    if owned:
                        listed = (chosen, their_factors, owned)
                        scatter_run(filters + weights, addresses.ctypes.data + tap * 8, listed, channels, zero)
        if summed:
            for j in range(rows):
                if addresses[j] != nowhere:
                    place, at = dtable + row_of(index, first, j - layer.left) * line, sums.ctypes.data + j * line
                    if at_once < layer.outputs:
                        carry_sums(at, totals.ctypes.data + j * line, line, zero)
                        at = totals.ctypes.data + j * line
                    add_row(place, at, channels, zero)
            sums[:] = 0
            totals[:] = 0
    keep(spare)
    keep(addresses)
    keep(sums)
    keep(totals)
    keep(entries)
    keep(factors)


@njit
def write_table_indirection(
    layer: Descriptor, index: Index, n: int, count: int, places: Any, whose: Any, addresses: int
) -> None:
    """Write the address of the row at each of ``count`` positions of sample ``n``, padding in front included.

    ``places`` are the table's address, the bytes between its rows, the address for padding and for rows that are left
    out, and the address of a buffer of one row a position that takes the table's place, 0 for none. ``whose`` are the
    row to leave out, the share whose rows are kept, and the number of shares.
    """
    table, line, nowhere, own = places
    skipped, mine, shares = whose
    begin = min(layer.left, count)
    end = max(min(layer.left + layer.length, count), begin)
    for j in range(begin):
        store_number(nowhere, addresses + j * 8, 0)
    for j in range(end, count):
        store_number(nowhere, addresses + j * 8, 0)
    if index.itemsize == 8 and index.position_stride == 8 and not index.step:
        first = index.address + n * index.sample_stride - layer.left * 8
        for j in range(begin, end):  # as the other loop, in a form that the compiler vectorises
            row = load_number(first + j * 8, 0)
            place = own + j * line if own else table + row * line
            kept = (row != skipped) & (owner_of(row, shares) == mine)
            store_number(place if kept else nowhere, addresses + j * 8, 0)
    else:
        for j in range(begin, end):
            row = row_of(index, n, j - layer.left)
            place = own + j * line if own else table + row * line
            kept = (row != skipped) & (owner_of(row, shares) == mine)
            store_number(place if kept else nowhere, addresses + j * 8, 0)


def sums_first(layer: Descriptor, positions: int, rows: int) -> bool:
    """Tell whether a sample's gradients are summed position by position before they go to the table's rows.

    That is so where many windows' maxima read one of the ``positions``, or one of the table's ``rows``: the gradient
    of a frequent row would else be a sum of thousands of terms and round worse than torch's. Of 64 x 200 maxima in 5
    rows it had 3 to 7 times torch's error.
    """
    terms = layer.windows * layer.outputs * layer.size
    return terms > MANY * positions or layer.samples * terms > OFTEN * rows


@njit(inline="always")
def owner_of(row: int, shares: int) -> Any:
    """Return the share that owns a row of the table: adjacent rows, often used alike, belong to different ones."""
    mixed = np.uint64(row) * np.uint64(0x9E3779B1) & np.uint64(0xFFFFFFFF)
    return np.int64(mixed * np.uint64(shares) >> np.uint64(32))


@njit
def add_row(target: int, source: int, count: int, zero: Any) -> None:
    """Add ``count`` numbers at ``source`` to those at ``target``."""
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
        rest = (count - done + vector - 1) // vector
        size = 8 if rest >= 8 else 4 if rest >= 4 else 2 if rest >= 2 else 1
        place, offset = target + done * bytes_of(zero), done * bytes_of(zero)
        tail = min(count - done - (size - 1) * vector, vector)
        gather_products(place, rows, offset, listed, tail, zero, size)
        done += size * vector


@njit
def scatter_run(weight: int, rows: int, listed: Any, count: int, zero: Any) -> None:
    """Add ``count`` numbers at ``weight``, times each listed row's factor, to that row."""
    vector = lanes(zero)
    done = 0
    while done < count:
        rest = count - done
        place, offset = weight + done * bytes_of(zero), done * bytes_of(zero)
        size = 8 if rest >= 8 * vector else 4 if rest >= 4 * vector else 1
        scatter_products(place, rows, offset, listed, min(rest, vector), zero, size)
        done += size * vector


@intrinsic
def gather_products(
    _typing: Any, target: Any, rows: Any, offset: Any, listed: Any, tail: Any, like: Any, vectors: Any
) -> Any:
    """Add to ``target[v]`` the sum over entries ``e`` of ``factors[e] * row[v]``, ``row`` that of entry ``e``.

    ``listed`` are the addresses of the entries' numbers, int64, and of their factors, and their count: at least one,
    and a multiple of ``TURNS`` unless it is smaller. An entry's row begins at the address that ``rows[number]`` holds,
    ``offset`` bytes on. Of ``vectors``, one of :data:`GATHERED`, the last one's ``tail`` numbers are read and written.
    """
    kind = llvm_vector(vector_of(like))

    def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        of_size(builder, arguments[6], GATHERED, partial(emit_gather, builder, kind, arguments[:5]))
        return context.get_dummy_value()

    return types.void(*FORM, like, types.int64), generate


@intrinsic
def scatter_products(
    _typing: Any, weight: Any, rows: Any, offset: Any, listed: Any, tail: Any, like: Any, vectors: Any
) -> Any:
    """Add ``factors[e] * weight[v]`` to the row of entry ``e``, one after the other: rows may be the same.

    The arguments are those of :func:`gather_products`; ``vectors`` is one of :data:`SCATTERED`. With more than one
    vector ``tail`` is all of the last.
    """
    kind = llvm_vector(vector_of(like))

    def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        of_size(builder, arguments[6], SCATTERED, partial(emit_scatter, builder, kind, arguments[:5]))
        return context.get_dummy_value()

    return types.void(*FORM, like, types.int64), generate


GATHERED, SCATTERED = (8, 4, 2, 1), (8, 4, 1)
FORM = (*(types.int64,) * 3, types.UniTuple(types.int64, 3), types.int64)


def entry_of(builder: Any, kind: Any, given: Sequence[Any], e: Any) -> tuple[Any, Any]:
    """Emit the look-up of entry ``e``: return its row and, in all lanes, its factor."""
    _, rows, offset, listed, _ = given
    size, number = size_of(kind.element), ir.IntType(64)
    entries, factors = (byte_pointer(builder, builder.extract_value(listed, i)) for i in (0, 1))
    entry = read(builder, builder.gep(entries, [builder.mul(e, ir.Constant(number, 8))]), number, 8)
    places = builder.gep(byte_pointer(builder, rows), [builder.mul(entry, ir.Constant(number, 8))])
    row = builder.gep(byte_pointer(builder, read(builder, places, number, 8)), [offset])
    factor = read(builder, builder.gep(factors, [builder.mul(e, ir.Constant(number, size))]), kind.element, size)
    return row, splat(builder, factor, kind.count)


def emit_gather(builder: Any, kind: Any, given: Sequence[Any], vectors: int) -> None:
    """Emit the sums of ``vectors``; ``given`` are the first arguments of :func:`gather_products`."""
    size, number, sets = size_of(kind.element), ir.IntType(64), TURNS if vectors < TURNS else 1
    target, count, tail = byte_pointer(builder, given[0]), builder.extract_value(given[3], 2), given[4]
    steps = [ir.Constant(number, v * kind.count * size) for v in range(vectors)]
    none, zeros = ir.Constant(number, 0), ir.Constant(kind, [0.0] * kind.count)

    def get(pointer: Any, v: int) -> Any:
        place = builder.gep(pointer, [steps[v]])
        return read_first(builder, place, tail, kind) if v == vectors - 1 else read(builder, place, kind, size)

    def products(e: Any, sums: Sequence[Any]) -> list[Any]:
        row, factor = entry_of(builder, kind, given, e)
        return [fmuladd(builder, factor, get(row, v), sums[v]) for v in range(vectors)]

    def add_entry(e: Any, *sums: Any) -> tuple[list[Any], Any]:
        following = builder.add(e, ir.Constant(number, 1))
        return [following, *products(e, sums)], builder.icmp_signed("<", following, count)

    def add_turns(e: Any, *sums: Any) -> tuple[list[Any], Any]:
        totals = list(sums)
        for turn in range(TURNS):
            at = turn % sets * vectors
            totals[at : at + vectors] = products(builder.add(e, ir.Constant(number, turn)), totals[at : at + vectors])
        following = builder.add(e, ir.Constant(number, TURNS))
        return [following, *totals], builder.icmp_signed("<", following, count)

    def several() -> list[Any]:
        sums = repeat(builder, [none, *[zeros] * (vectors * sets)], add_turns)[1:]
        merged = sums[:vectors]
        for turn in range(1, sets):
            merged = [builder.fadd(merged[v], sums[turn * vectors + v]) for v in range(vectors)]
        return merged

    def few() -> list[Any]:
        return repeat(builder, [none, *[zeros] * vectors], add_entry)[1:]

    many = builder.icmp_signed(">=", count, ir.Constant(number, TURNS))
    mask = first_lanes(builder, tail, kind.count)
    for v, total in enumerate(chosen(builder, many, several, few)):
        content, place = builder.fadd(get(target, v), total), builder.gep(target, [steps[v]])
        if v == vectors - 1:
            write_masked(builder, content, place, mask)
        else:
            write(builder, content, place, size)


def emit_scatter(builder: Any, kind: Any, given: Sequence[Any], vectors: int) -> None:
    """Emit the products of ``vectors``; ``given`` are the first arguments of :func:`scatter_products`."""
    size, number, tail = size_of(kind.element), ir.IntType(64), given[4]
    weight, count = byte_pointer(builder, given[0]), builder.extract_value(given[3], 2)
    steps = [ir.Constant(number, v * kind.count * size) for v in range(vectors)]
    mask = first_lanes(builder, tail, kind.count)

    def get(pointer: Any, v: int) -> Any:
        place = builder.gep(pointer, [steps[v]])
        return read_first(builder, place, tail, kind) if vectors == 1 else read(builder, place, kind, size)

    held = [get(weight, v) for v in range(vectors)]

    def add_entry(e: Any) -> tuple[list[Any], Any]:
        row, factor = entry_of(builder, kind, given, e)
        for v in range(vectors):
            content, place = fmuladd(builder, factor, held[v], get(row, v)), builder.gep(row, [steps[v]])
            if vectors == 1:
                write_masked(builder, content, place, mask)
            else:
                write(builder, content, place, size)
        following = builder.add(e, ir.Constant(number, 1))
        return [following], builder.icmp_signed("<", following, count)

    repeat(builder, [ir.Constant(number, 0)], add_entry)
