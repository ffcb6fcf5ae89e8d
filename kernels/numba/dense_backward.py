"""The fused conv stack's gradients on the CPU, from the argmax positions alone: no other position has a gradient.

With ``g`` the gradient of window ``(n, o, q)`` and ``t`` the first input position under the kernel at its argmax,

    dW[o] += g * x[n, t : t + K]        dx[n, t : t + K] += g * W[o]        db[o] += g

which is ``P`` times less arithmetic than a convolution's gradients. A sample's windows that have a gradient are listed
for every output channel (:mod:`.argmax_lists`). A block of the sample's channels is copied to dense rows, so that both
products are sums over contiguous runs of numbers (:mod:`.micro.sparse_products`); the input's gradient is copied back
into the tensor's layout (:mod:`.micro.channel_blocks`). A block's run fits into registers, its rows and lists into the
first two cache levels.

On one core of a Zen 4 the products of imdb1 (128 channels, 7 taps, 389,000 listed windows) take 22 ms, 3.4 cycles a
vector where 3.1 is the most that the core does from its first cache; copies of rows add 8 ms, zeros and lists 0.3.

Threads share the samples, or the channels where there are fewer samples than threads. Each thread sums weight gradients
of its own, which are then added in a fixed order: the same bits on every run with the same number of threads.

torch's dense gradients also multiply inputs and weights by the zero gradients of all other positions, which gives NaN
where those hold an infinity or a NaN. The kernel checks the numbers that it reads for these. Where it finds one it
returns no gradients, and the caller takes the reference's, which are torch's.
"""

from __future__ import annotations

from array import array
from functools import partial as partial_call
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..geometry import Convolution, Pool
from .argmax_lists import list_windows
from .conv_pool_backward_blocking import BackwardBlocking, backward_blocking
from .dense import empty
from .micro.channel_blocks import all_finite, carry_sums, clear_vectors, load_rows, store_rows
from .micro.memory import keep, prefetch
from .micro.simd import (
    DOUBLE,
    REGISTERS,
    add,
    broadcast,
    bytes_of,
    horizontal_sum,
    lanes,
    load,
    load_number,
    store,
    store_number,
)
from .micro.sparse_products import add_products
from .micro.transposition import transpose
from .runtime.compilation import compiled, inner
from .runtime.threads import run, share, thread_count

__all__ = ["backward"]

# A load waits for an earlier store at the same offset within a page: the two tensors' rows lie half a page apart.
PAGE = 4096

# Rows of channels-last memory that are copied for all blocks, before the next rows.
STRIP = 4

LIKE: dict[torch.dtype, Any] = {
    torch.float32: np.float32(0),
    torch.float64: np.float64(0),
    torch.int8: np.int8(0),
    torch.int16: np.int16(0),
    torch.int32: np.int32(0),
}

Gradients = tuple[Tensor | None, Tensor | None, Tensor | None]


def backward(
    gradient: Tensor,
    argmax: Tensor,
    input: Tensor,
    weight: Tensor,
    convolution: Convolution,
    pool: Pool | None,
    wanted: tuple[bool, bool, bool],
    places: Tensor | None = None,
) -> Gradients | None:
    """Return the gradients of ``input``, ``weight`` and ``bias`` that are wanted, ``None`` for the others.

    Return ``None`` alone where an infinity or a NaN was read. ``gradient`` is ``(N, O, Q)``, ``(N, O, 1)`` without a
    pool, of any strides. The input's gradient is contiguous where the input is, or where neither the input's channels
    nor its positions are adjacent in memory; else it is channels-last. With ``places`` (see :func:`.dense.forward`) the
    input's gradient must not be wanted.
    """
    if not gradient.numel() or not any(wanted):
        zeros = (one.new_zeros(one.shape) if want else None for one, want in zip((input, weight), wanted, strict=False))
        return next(zeros), next(zeros), input.new_zeros(weight.size(0)) if wanted[2] else None
    if places is None and input.stride(1) != 1 and input.stride(2) != 1:
        input = input.contiguous()
    filters, dtype = weight if weight.is_contiguous() else weight.contiguous(), input.dtype
    (samples, channels, length), (outputs, _, size) = input.shape, filters.shape
    dx = None
    if wanted[0]:
        strides = (channels * length, length, 1) if input.is_contiguous() else (channels * length, 1, channels)
        dx = empty((samples, channels, length), strides, dtype)
    like = LIKE[input.dtype]
    vector = REGISTERS.width // like.itemsize
    blocking = backward_blocking(
        input.shape, filters.shape, input.stride(), None if dx is None else dx.stride(), gradient.shape,
        gradient.stride(), argmax.size(2), convolution, pool, like.itemsize,
        thread_count(max(samples, -(-channels // vector)), gradient.numel() * channels * size),
    )  # fmt: skip
    partials = blocking.shares if blocking.by_samples else 1
    partial = empty((partials * outputs * blocking.run,), (1,), dtype) if wanted[1] else None
    sums = empty((partials * outputs * vector,), (1,), torch.float64) if wanted[2] else None
    dw = empty((outputs, channels, size), (channels * size, size, 1), dtype) if wanted[1] else None
    db = empty((outputs,), (1,), dtype) if wanted[2] else None
    non_finite = array("q", (0,))
    addresses = (
        *(0 if one is None else one.data_ptr() for one in (input, filters, gradient, argmax, dx, partial, sums)),
        non_finite.buffer_info()[0],
        0 if places is None else places.data_ptr(),
    )
    run(partial_call(backward_shares, blocking, addresses, like, LIKE[argmax.dtype]), blocking.shares, blocking.shares)
    if non_finite[0]:
        return None
    if dw is not None or db is not None:
        goals = tuple(0 if one is None else one.data_ptr() for one in (dw, db))
        add_shares(blocking, addresses[5], addresses[6], *goals, like)
    return dx, dw, db


@compiled
def backward_shares(
    blocking: BackwardBlocking,
    places: Any,
    zero: Any,
    argmax_zero: Any,
    begin: int,
    end: int,
    threads: int,
    launch: int,
) -> None:
    """Compute the shares ``begin`` to ``end`` of all; see :func:`backward_share`."""
    share(begin, end, threads, launch, backward_share, (blocking, places, zero, argmax_zero))


@inner
def last_row(blocking: BackwardBlocking, windows: int) -> int:
    """Return the end of the rows that the first ``windows`` windows see; if these are all windows, of all rows."""
    if windows == blocking.windows:
        return blocking.padded
    position = (windows - 1) * blocking.pool_stride - blocking.pool_padding + blocking.pool_span
    return min(max(position * blocking.stride + (blocking.size - 1) * blocking.dilation + 1, 0), blocking.padded)


@inner
def first_row(blocking: BackwardBlocking, window: int) -> int:
    """Return where the rows of the windows from ``window`` on begin, at most the end of the rows of those before."""
    row = (window * blocking.pool_stride - blocking.pool_padding) * blocking.stride
    return max(min(row, last_row(blocking, window)), 0) if window else 0


@inner
def backward_share(part: int, blocking: BackwardBlocking, places: Any, zero: Any, argmax_zero: Any) -> None:
    """Compute one share of the samples, or else of the blocks of channels.

    ``places`` are addresses, 0 of what is not wanted: of the input, the weights ``(O, C, K)``, the upstream gradient,
    argmax, the input's gradient, the weight's gradient as one sum a share ``(shares, O, run)``, the bias's as one
    float64 sum a lane ``(shares, O, lanes)``, an int64 that becomes 1 where a number read is infinite or a NaN, and the
    samples' own addresses, 0 where samples lie a stride apart. ``zero`` and ``argmax_zero`` are zeros of the tensors'
    and of argmax's type.
    """
    x, weight, gradient, argmax, dx, dw, db, non_finite, samples_at = places
    width, size = lanes(zero), bytes_of(zero)
    blocks = (blocking.width + blocking.row - 1) // blocking.row
    begin, end, first, last = 0, blocking.samples, 0, blocks
    run = blocking.run * size
    if blocking.by_samples:
        begin, end = blocking.samples * part // blocking.shares, blocking.samples * (part + 1) // blocking.shares
        dw += part * blocking.outputs * run if dw else 0
        db += part * blocking.outputs * width * 8 if db else 0
    else:
        first, last = blocks * part // blocking.shares, blocks * (part + 1) // blocking.shares
        db = 0 if first else db
    rows = 0
    for window in range(0, blocking.windows, blocking.segment):
        ending = last_row(blocking, min(window + blocking.segment, blocking.windows))
        rows = max(rows, whole_phases(blocking, ending - first_row(blocking, window)))
    capacity = blocking.segment + width
    bounds = np.empty((blocking.outputs, blocking.segment // blocking.group + 2), np.int64)
    line, row = 64, blocking.row * size
    weights = (blocking.outputs * run if dx else 0) + line
    block_bytes = rows * row // line * line + 2 * line
    copies = (last - first) * block_bytes // PAGE * PAGE + PAGE + PAGE // 2
    lists = (blocking.outputs * capacity * size // line + 1) * line
    tile = capacity * width * (8 + size) + line
    part_sums = block_bytes + PAGE if blocking.summed < blocking.outputs else 0
    scratch = np.empty(2 * line + weights + 2 * copies + PAGE + 2 * lists + tile + part_sums + width * 8, np.uint8)
    packed = (scratch.ctypes.data + line - 1) // line * line
    x_copy = packed + weights // line * line + line
    dx_copy = x_copy + copies
    factors = dx_copy + copies + PAGE
    listed = factors + lists
    turned = listed + lists
    spare = turned + tile // line * line
    sums = db if db else spare + part_sums
    if dx:
        pack(blocking, packed, weight, first * blocking.row, min(last * blocking.row, blocking.width), zero)
        if not all_finite(packed, blocking.outputs * run, zero):
            store_number(1, non_finite, 0)
    if dw:
        for o in range(blocking.outputs):
            at = first * blocking.row * blocking.size * size
            ending = min(last * blocking.row, blocking.width) * blocking.size * size if blocks > 1 else run
            clear_vectors(dw + o * run + at, ending - at, zero)
    clear_vectors(sums, (blocking.outputs if db else 1) * width * 8, zero)
    clear_vectors(x_copy, 2 * copies, zero)
    clear_vectors(spare, part_sums, zero)
    for n in range(begin, end):
        for window in range(0, blocking.windows, blocking.segment):
            windows = min(blocking.segment, blocking.windows - window)
            top, bottom = first_row(blocking, window), last_row(blocking, window + windows)
            list_windows(
                argmax + (n * blocking.windows + window) * blocking.argmax_width * bytes_of(argmax_zero),
                blocking.argmax_width * bytes_of(argmax_zero),
                gradient + n * blocking.gradient_strides[0] + window * blocking.gradient_strides[2],
                blocking.gradient_strides[1],
                blocking.gradient_strides[2],
                blocking.outputs,
                windows,
                blocking.group,
                (window * blocking.pool_stride - blocking.pool_padding) * blocking.stride - top,
                blocking.pool_stride * blocking.stride,
                blocking.pool_dilation * blocking.stride,
                capacity,
                listed,
                factors,
                bounds,
                sums,
                width * 8 if db else 0,
                turned,
                zero,
                argmax_zero,
            )
            if not dw and not dx:
                continue
            seen = whole_phases(blocking, bottom - top)
            if blocking.phases > 1:
                for o in range(blocking.outputs):
                    entry = listed + o * capacity * 4
                    for i in range(bounds[o, 0], bounds[o, (windows + blocking.group - 1) // blocking.group]):
                        at = row_of(blocking, load_number(entry + i * 4, np.int32(0)), seen)
                        store_number(np.int32(at), entry + i * 4, np.int32(0))
            done = last_row(blocking, window) if window else 0
            source, target = x + n * blocking.x_strides[0], dx + n * blocking.dx_strides[0]
            if samples_at:
                source = load_number(samples_at + n * 8, 0)
            x_rows, dx_rows = x_copy, dx_copy
            if dx and blocking.direct[1]:
                dx_rows = target + top * row
                clear_vectors(target + done * row, (bottom - done) * row, zero)
                x_rows += (dx_rows + PAGE // 2 - x_copy) % PAGE // line * line
            elif dx:
                copy_blocks(
                    blocking, dx_rows, block_bytes, target, blocking.dx_strides, first, last, top, done, bottom, zero
                )
            if dw and blocking.direct[0]:
                x_rows = source + top * row
            elif dw:
                copy_blocks(
                    blocking, x_rows, block_bytes, source, blocking.x_strides, first, last, top, bottom, bottom, zero
                )
            for block in range(first, last):
                at = block * blocking.row * blocking.size * size
                shift = (block - first) * block_bytes
                step = min(blocking.row, blocking.width - block * blocking.row) * size
                if dw and not all_finite(x_rows + shift, seen * step, zero):
                    store_number(1, non_finite, 0)
                # Samples at addresses of their own, which the CPU cannot predict, are prefetched while another is
                # summed.
                following = 0
                if samples_at and dw and block == first and n + 1 < end and window + windows == blocking.windows:
                    following = load_number(samples_at + (n + 1) * 8, 0)
                goal = dx_rows + shift if dx else 0
                add_block(
                    blocking, following, dw + at if dw else 0, packed + at, x_rows + shift, goal,
                    spare + (goal - spare) % PAGE, seen, listed, factors, bounds, capacity, windows, step, zero,
                )  # fmt: skip
            if dx and not blocking.direct[1]:
                copy_back(blocking, dx_rows, block_bytes, target, blocking.dx_strides, first, last, top, bottom, zero)
    keep(scratch)


@inner(inline="always")
def whole_phases(blocking: BackwardBlocking, rows: int) -> int:
    """Return the rows of a copy: each of the phases has as many."""
    return (rows + blocking.phases - 1) // blocking.phases * blocking.phases


@inner(inline="always")
def row_of(blocking: BackwardBlocking, row: int, rows: int) -> int:
    """Return where a row is in a copy of so many :func:`whole_phases`."""
    return row % blocking.phases * (rows // blocking.phases) + row // blocking.phases


@inner
def copy_blocks(
    blocking: BackwardBlocking,
    target: int,
    block_bytes: int,
    source: int,
    strides: Any,
    first: int,
    last: int,
    top: int,
    known: int,
    bottom: int,
    zero: Any,
) -> None:
    """Fill the rows ``top`` to ``bottom`` of some blocks: from the tensor up to row ``known``, the rest with zeros.

    Where there are several blocks, a few rows are copied at a time for all of them, so that memory is read in order.
    """
    size = bytes_of(zero)
    low = min(max(top, blocking.left), bottom)
    high = max(min(known, blocking.left + blocking.length), low)
    if blocking.phases > 1:  # of a single block
        step, rows = blocking.row * size, whole_phases(blocking, bottom - top)
        clear_vectors(target, rows * step, zero)
        for row in range(low - top, high - top):
            goal = target + row_of(blocking, row, rows) * step
            place = source + (top + row - blocking.left) * strides[2]
            for c in range(blocking.channels):
                store_number(load_number(place + c * strides[1], zero), goal + c * size, zero)
        return
    for block in range(first, last):
        step = min(blocking.row, blocking.width - block * blocking.row) * size
        goal = target + (block - first) * block_bytes
        clear_vectors(goal, (low - top) * step, zero)
        clear_vectors(goal + (high - top) * step, (bottom - high) * step, zero)
    strip = STRIP if strides[1] == size and last - first > 1 else max(high - low, 1)
    for begin in range(low, high, strip):
        for block in range(first, last):
            channel = block * blocking.row
            step = min(blocking.row, blocking.width - channel) * size
            load_rows(
                target + (block - first) * block_bytes + (begin - top) * step,
                step,
                source + channel * strides[1] + (begin - blocking.left) * strides[2],
                strides[1],
                strides[2],
                min(blocking.row, blocking.channels - channel),
                min(strip, high - begin),
                zero,
            )


@inner
def copy_back(
    blocking: BackwardBlocking,
    source: int,
    block_bytes: int,
    target: int,
    strides: Any,
    first: int,
    last: int,
    top: int,
    bottom: int,
    zero: Any,
) -> None:
    """Write the rows ``top`` to ``bottom`` of the blocks ``first`` to ``last``, without padding, to the tensor."""
    size = bytes_of(zero)
    low, high = max(top, blocking.left), min(bottom, blocking.left + blocking.length)
    if blocking.phases > 1:
        step, rows = blocking.row * size, whole_phases(blocking, bottom - top)
        for row in range(low - top, high - top):
            place = source + row_of(blocking, row, rows) * step
            goal = target + (top + row - blocking.left) * strides[2]
            for c in range(blocking.channels):
                store_number(load_number(place + c * size, zero), goal + c * strides[1], zero)
        return
    strip = STRIP if strides[1] == size and last - first > 1 else max(high - low, 1)
    for begin in range(low, high, strip):
        for block in range(first, last):
            channel = block * blocking.row
            step = min(blocking.row, blocking.width - channel) * size
            store_rows(
                source + (block - first) * block_bytes + (begin - top) * step,
                step,
                target + channel * strides[1] + (begin - blocking.left) * strides[2],
                strides[1],
                strides[2],
                min(blocking.row, blocking.channels - channel),
                min(strip, high - begin),
                zero,
            )


@inner
def add_block(
    blocking: BackwardBlocking,
    following: int,
    dw: int,
    weights: int,
    x: int,
    dx: int,
    part: int,
    rows: int,
    listed: int,
    factors: int,
    bounds: Any,
    capacity: int,
    windows: int,
    step: int,
    zero: Any,
) -> None:
    """Add the products of a list of windows to the gradients of a block, whose ``rows`` rows are ``step`` bytes apart.

    The terms of the first ``blocking.summed`` outputs are added to ``dx`` one by one. Those of each further group of as
    many outputs are summed in ``part``, as large as ``dx`` and zero before and after the call, and then carried into
    ``dx``. Meanwhile the sample at address ``following`` is prefetched, unless that is 0.
    """
    size, run = bytes_of(zero), blocking.run * bytes_of(zero)
    is_run = blocking.dilation == blocking.phases
    runs, numbers = (1, blocking.size * step // size) if is_run else (blocking.size, step // size)
    for first in range(0, blocking.outputs, blocking.summed):
        goal = part if first else dx
        for group in range((windows + blocking.group - 1) // blocking.group):
            for o in range(first, min(first + blocking.summed, blocking.outputs)):
                if following and group == 0:
                    for r in range(
                        blocking.length * o // blocking.outputs, blocking.length * (o + 1) // blocking.outputs
                    ):
                        prefetch(following + r * blocking.x_strides[2], 2)
                        prefetch(following + r * blocking.x_strides[2] + (blocking.channels - 1) * size, 2)
                count = bounds[o, group + 1] - bounds[o, group]
                if not count:
                    continue
                entry = o * capacity + bounds[o, group]
                for k in range(runs):
                    at, shift = o * run + k * step, k * blocking.dilation * step
                    add_products(
                        dw + at if dw else 0, weights + at, x + shift, goal + shift if dx else 0, listed + entry * 4,
                        factors + entry * size, count, step, numbers, zero,
                    )  # fmt: skip
        if first:
            carry_sums(part, dx, rows * step, zero)
    if blocking.summed < blocking.outputs:
        clear_vectors(part, rows * step, zero)


@inner
def pack(blocking: BackwardBlocking, packed: int, weight: int, first: int, last: int, zero: Any) -> None:
    """Copy the weights of the channels ``first`` to ``last`` block by block, a kernel position's channels in a row."""
    size = bytes_of(zero)
    clear_vectors(packed, blocking.outputs * blocking.run * size, zero)
    for o in range(blocking.outputs):
        for channel in range(first, last, blocking.row):
            source = weight + (o * blocking.channels + channel) * blocking.size * size
            target = packed + (o * blocking.run + channel * blocking.size) * size
            step = min(blocking.row, blocking.width - channel) * size
            count = min(blocking.row, blocking.channels - channel)
            transpose(source, blocking.size * size, target, step, count, blocking.size, zero)


@compiled
def add_shares(blocking: BackwardBlocking, partial: int, sums: int, dw: int, db: int, zero: Any) -> None:
    """Write the sums of all shares' gradients to ``dw`` ``(O, C, K)`` and ``db`` ``(O,)``; 0 is not wanted."""
    size, vector = bytes_of(zero), lanes(zero) * bytes_of(zero)
    shares = blocking.shares if blocking.by_samples else 1
    if dw:
        whole = blocking.outputs * blocking.run * size
        for other in range(1, shares):
            for at in range(0, whole, vector):
                total = add(load(partial + at, zero), load(partial + other * whole + at, zero))
                store(total, partial + at)
        for o in range(blocking.outputs):
            for channel in range(0, blocking.channels, blocking.row):
                source = partial + (o * blocking.run + channel * blocking.size) * size
                target = dw + (o * blocking.channels + channel) * blocking.size * size
                step = min(blocking.row, blocking.width - channel) * size
                count = min(blocking.row, blocking.channels - channel)
                transpose(source, step, target, blocking.size * size, blocking.size, count, zero)
    if db:
        for o in range(blocking.outputs):
            total = broadcast(DOUBLE, DOUBLE)
            for other in range(shares):
                place = sums + (other * blocking.outputs + o) * lanes(zero) * 8
                for lane in range(0, lanes(zero), lanes(DOUBLE)):
                    total = add(total, load(place + lane * 8, DOUBLE))
            store_number(horizontal_sum(total), db + o * size, zero)
