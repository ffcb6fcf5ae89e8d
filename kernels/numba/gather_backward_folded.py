"""Gradients of the conv stack on gathered rows under the plan *folded*: those of a row's occurrences are summed first.

With ``dy`` the gradient of the convolution, 0 at positions that are no window's argmax, and ``dF`` that of the folded
table,

    dF[v, k] = sum of dy[n, t] over all (n, t) whose tap k read row v      dtable = dF @ weight      dW = table @ dF

so that a row that occurs a hundred times is multiplied once. ``dy`` is written sample by sample, backwards in time and
with zeros around it: then the ``K`` rows of it that one occurrence needs are contiguous. Occurrences are sorted by row.
``dF`` is summed in registers for a block of rows, and multiplied at once: it never leaves the second-level cache.

Each thread owns some of the table's rows and sums weight gradients of its own, which are then added in a fixed order.
"""
# ruff: noqa: ARG001  (an intrinsic's parameters are types)

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from llvmlite import ir
from numba import njit, types
from numpy.typing import NDArray
from torch import Tensor

from .dense import DTYPES, padded_outputs
from .gather_backward_spread import spread_parts
from .gathered import Descriptor, Index
from .micro.channel_blocks import carry_sums
from .micro.control import of_size, repeat
from .micro.gemm import IN_ROWS, TAPS, gemm, odd_lines
from .micro.memory import aligned, keep
from .micro.packing import clear, copy_row
from .micro.simd import (
    REGISTERS,
    byte_pointer,
    bytes_of,
    lanes,
    llvm_vector,
    read,
    size_of,
    store_number,
    vector_of,
)
from .micro.tile import TILE, store_sums
from .occurrences import row_is_finite
from .runtime.compilation import compiled, intrinsic
from .runtime.threads import run, share, thread_count

__all__ = ["backward_folded"]

# Rows of the table whose gradients are multiplied at a time: whole tiles, and no more terms than a sum may have.
ROWS = TAPS // TILE * TILE

# Vectors that are summed at a time over a row's occurrences.
WIDE = 14 if REGISTERS.number == 32 else 7

# Terms of the table's gradient that are summed at a time where outputs are few: half of gemm's own block, since torch
# sums over outputs, then over taps, and its sums are as short. For 8 outputs x 17 taps, blocks of 128 had 2.4 times
# torch's largest error, blocks of 64 have 1.6; for 256 outputs the longer blocks have 1.5 and are 5 % faster.
TERMS = TAPS // 2

# Rows of the weights' gradient that are summed at a time where both they and the outputs are few: torch sums the
# positions of one sample, then the samples. Two samples of 60 positions and 8 outputs x 17 taps: with blocks of 128 up
# to 2.5 times torch's largest error, of 64 2.3, of 32 1.5; of 64 samples 0.7 (Zen 5).
SHORT, FEW = TAPS // 4, 8 * TAPS

# Terms after which sums are carried with what rounding has cut off (:func:`.carry_sums`): for 1,024 outputs x 31 taps,
# plain addition of the blocks has twice torch's error.
COLUMNS = 16 * TAPS

# Occurrences that are summed in registers before their sum is added to the total: longer sums round worse.
RUN = 128

# Parts of the table per thread: when the system delays one thread, the others take its parts.
PARTS = 4


def backward_folded(
    gradient: Tensor,
    argmax: Tensor,
    layer: Descriptor,
    index: Index,
    table: Tensor,
    weight: Tensor,
    padding_idx: int | None,
    wanted: tuple[bool, bool, bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None] | None:
    """Return the gradients of ``table``, ``weight`` and ``bias`` that are wanted; ``gradient`` is ``(N, O, Q)``.

    The table's gradient is contiguous, with zeros for rows that do not occur and for row ``padding_idx``. Return
    ``None`` alone where a factor is infinite or a NaN.
    """
    if wanted[0] and not weight.isfinite().all():
        return None
    like, itemsize = DTYPES[table.dtype], table.element_size()
    (rows, channels), width = table.shape, padded_outputs(layer.outputs, like)
    reach = (layer.size - 1) * layer.dilation
    end = (layer.positions - 1) * layer.stride + reach
    dy = table.new_empty(layer.samples, end + reach + 1, width)
    db = table.new_empty(layer.samples, width, dtype=torch.float64) if wanted[2] else None
    most = min(rows, layer.samples * layer.length)
    counts = np.zeros(rows, np.int32 if layer.samples * layer.length < 2**31 else np.int64)
    used, begins = np.empty(most, np.int64), np.empty(most + 1, np.int64)
    order, found = np.empty(layer.samples * layer.length, np.int64), np.zeros(1, np.int64)
    places = (gradient.data_ptr(), argmax.data_ptr(), dy.data_ptr(), 0 if db is None else db.data_ptr())
    argmax_zero = argmax.new_zeros(()).numpy()[()]
    threads = thread_count(layer.samples + 1, gradient.numel() * 16)
    needed = wanted[0] or wanted[1]

    def spread(begin: int, stop: int, threads: int, launch: int) -> None:
        given = (counts, used, begins, order, found)
        spread_parts(layer, index, places, width, needed, given, like, argmax_zero, begin, stop, threads, launch)

    run(spread, layer.samples + 1, threads)
    bias = None if db is None else db.sum(0)[: layer.outputs].to(table.dtype)
    if not needed:
        return None, None, bias
    count = int(found[0])
    if not count:  # all positions that the convolution reads are padding
        dtable = table.new_zeros(table.shape) if wanted[0] else None
        return dtable, (weight.new_zeros(weight.shape) if wanted[1] else None), bias
    columns = layer.size * width
    threads = thread_count(max(count, 1), 2 * count * channels * columns)
    parts = threads * PARTS if threads > 1 else 1
    # Parts of equal cost, which is that of a row's products and of the sums over its occurrences, two cycles a vector.
    cost = np.arange(count + 1) * (sum(wanted[:2]) * channels) + 2 * begins[: count + 1]
    bounds = np.searchsorted(cost, np.arange(1, parts) * (cost[-1] / parts))
    bounds = np.concatenate(([0], bounds, [count])).astype(np.int64)
    dtable = table.new_empty(table.shape) if wanted[0] else None
    dw = table.new_zeros(parts, channels, layer.size, width) if wanted[1] else None
    per_line = odd_lines(channels * itemsize) // itemsize
    filters = weight.new_zeros(layer.size, width, per_line)
    filters[:, : layer.outputs, :channels] = weight.detach().permute(2, 0, 1)
    sources = (table.data_ptr(), table.stride(0) * itemsize, table.stride(1) * itemsize, channels, rows)
    targets = (0 if one is None else one.data_ptr() for one in (dtable, dw))
    non_finite = np.zeros(1, np.int64)
    operands = (dy.data_ptr(), filters.data_ptr(), *targets, non_finite.ctypes.data)
    skipped = -1 if padding_idx is None else padding_idx

    def multiply_all(begin: int, stop: int, threads: int, launch: int) -> None:
        given = (used, begins, order, bounds)
        multiply_parts(layer, sources, operands, width, per_line, skipped, given, like, begin, stop, threads, launch)

    run(multiply_all, parts, threads)
    if non_finite[0]:
        return None
    dweight = None if dw is None else dw.sum(0)[..., : layer.outputs].permute(2, 0, 1).contiguous()
    return dtable, dweight, bias


@compiled
def multiply_parts(
    layer: Descriptor,
    sources: Any,
    places: Any,
    width: int,
    per_line: int,
    skipped: int,
    given: Any,
    zero: Any,
    begin: int,
    end: int,
    threads: int,
    launch: int,
) -> None:
    """Do the parts ``begin`` to ``end``; see :func:`multiply_part`."""
    share(begin, end, threads, launch, multiply_part, (layer, sources, places, width, per_line, skipped, given, zero))


@njit
def multiply_part(
    part: int,
    layer: Descriptor,
    sources: Any,
    places: Any,
    width: int,
    per_line: int,
    skipped: int,
    given: Any,
    zero: Any,
) -> None:
    """Multiply the gradients of one part's rows in use, and write zeros for the rows between them.

    ``width`` is the length of ``dy``'s rows, ``per_line`` that of the filters' rows, ``skipped`` the row that gets no
    gradient. The last of ``places`` is an int64 that becomes 1 where a row holds an infinity or a NaN.
    """
    table, row_stride, channel_stride, channels, all_rows = sources
    dy, filters, dtable, dw, non_finite = places
    rows, begins, order, bounds = given
    size = bytes_of(zero)
    vector = lanes(zero)
    columns = layer.size * width
    stride = (columns * size + 63) // 64 // 2 * 128 + 64
    line = per_line * size
    scratch = np.empty(ROWS * (stride + 3 * line) + 128, np.uint8)
    folded = aligned(scratch.ctypes.data)
    products = folded + ROWS * stride
    copies = products + ROWS * line
    totals = copies + ROWS * line if columns > COLUMNS else products
    if dw:
        dw += part * channels * columns * size
    following = 0 if bounds[part] == 0 else all_rows if bounds[part] == bounds[-1] else rows[bounds[part]]
    for first in range(bounds[part], bounds[part + 1], ROWS):
        count = min(ROWS, bounds[part + 1] - first)
        sum_occurrences(layer, dy, folded, stride, first, count, begins, order, width, zero)
        if dtable:
            wide = (channels + vector - 1) // vector
            if columns > COLUMNS:
                clear(totals, count * per_line, zero)
            terms = TERMS if width < 4 * TERMS else TAPS
            for column in range(0, columns, terms):
                taps = (1, 0, min(terms, columns - column), size)
                source, panel = folded + column * size, filters + column * line
                gemm(products, line, source, stride, count, taps, panel, line, IN_ROWS, wide, column == 0, zero)
                if columns > COLUMNS and ((column + terms) % COLUMNS == 0 or column + terms >= columns):
                    carry_sums(products, totals, count * line, zero)
            for i in range(count):
                row = rows[first + i]
                clear(dtable + following * channels * size, (row - following) * channels, zero)
                following = row + 1
                if row == skipped:
                    clear(dtable + row * channels * size, channels, zero)
                else:
                    copy_row(dtable + row * channels * size, totals + i * line, size, channels, zero)
        if dw:
            for i in range(count):
                if not row_is_finite(table + rows[first + i] * row_stride, channel_stride, channels, zero):
                    store_number(1, non_finite, 0)
            source, step, number = table + rows[first] * row_stride, row_stride, channel_stride
            if rows[first + count - 1] - rows[first] != count - 1:
                source, step, number = copies, line, size
                for i in range(count):
                    place = table + rows[first + i] * row_stride
                    copy_row(copies + i * line, place, channel_stride, channels, zero)
            terms = SHORT if bounds[-1] <= FEW and width < 4 * TERMS else ROWS
            for row in range(0, count, terms):
                taps = (1, 0, min(terms, count - row), step)
                rows_from, met = source + row * step, folded + row * stride
                gemm(
                    dw, columns * size, rows_from, number, channels, taps, met, stride, IN_ROWS, columns // vector,
                    False, zero,
                )  # fmt: skip
    if dtable:
        end = bounds[part + 1]
        stop = 0 if end == 0 else all_rows if end == bounds[-1] else rows[end]
        clear(dtable + following * channels * size, (stop - following) * channels, zero)
    keep(scratch)


@njit
def sum_occurrences(
    layer: Descriptor,
    dy: int,
    folded: int,
    stride: int,
    first: int,
    count: int,
    begins: NDArray[Any],
    order: NDArray[Any],
    width: int,
    zero: Any,
) -> None:
    """Write the folded table's gradient of ``count`` rows from ``first`` on, ``stride`` bytes apart."""
    vector = lanes(zero) * bytes_of(zero)
    # The kernel's positions are contiguous in dy, unless there is a dilation.
    runs, wide, step = 1, layer.size * width // lanes(zero), 0
    if layer.dilation > 1:
        runs, wide, step = layer.size, width // lanes(zero), layer.dilation * width * bytes_of(zero)
    for i in range(count):
        begin, end = begins[first + i], begins[first + i + 1]
        for k in range(runs):
            v = 0
            while v < wide:
                target = folded + i * stride + (k * wide + v) * vector
                source = dy + k * step + v * vector
                taken = WIDE if wide - v >= WIDE else 4 if wide - v >= 4 else 2 if wide - v >= 2 else 1
                for e in range(begin, end, RUN):
                    sum_listed(target, source, order.ctypes.data + e * 8, min(RUN, end - e), e == begin, zero, taken)
                v += taken


@intrinsic
def sum_listed(
    _typing: Any, target: Any, source: Any, offsets: Any, count: Any, fresh: Any, like: Any, vectors: Any
) -> Any:
    """Write to ``target``, or add unless ``fresh``, the sum of the ``vectors`` at all listed places.

    ``offsets`` is the address of ``count`` >= 1 int64: each place's distance from ``source`` in bytes.
    """
    kind = llvm_vector(vector_of(like))

    def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        size, number = size_of(kind.element), ir.IntType(64)
        target, source, offsets = (byte_pointer(builder, one) for one in arguments[:3])

        def emit(vectors: int) -> None:
            steps = [ir.Constant(number, v * kind.count * size) for v in range(vectors)]

            def add_row(left: Any, place: Any, *sums: Any) -> tuple[list[Any], Any]:
                row = builder.gep(source, [read(builder, place, number, 8)])
                content = [read(builder, builder.gep(row, [step]), kind, size) for step in steps]
                totals = [builder.fadd(total, more) for total, more in zip(sums, content, strict=True)]
                rest = builder.sub(left, ir.Constant(number, 1))
                following = [rest, builder.gep(place, [ir.Constant(number, 8)]), *totals]
                return following, builder.icmp_signed(">", rest, ir.Constant(number, 0))

            zeros = [ir.Constant(kind, [0.0] * kind.count)] * vectors
            totals = repeat(builder, [arguments[3], offsets, *zeros], add_row)[2:]
            store_sums(builder, kind, totals, [builder.gep(target, [step]) for step in steps], arguments[4])

        of_size(builder, arguments[6], (WIDE, 4, 2, 1), emit)
        return context.get_dummy_value()

    return types.void(*(types.int64,) * 4, types.boolean, like, types.int64), generate
