"""The compiled forward pass of the fused conv stack: it computes the parts that the blocking has cut the work into."""

from __future__ import annotations

from typing import Any

import numpy as np

from .conv_pool_inputs import limits_of, load_arguments, sample_at, write_indirection, write_offsets
from .conv_pool_sums import convolve, convolve_few_outputs
from .fast_products import PLANES, convolve_pairs, has_odd, list_pairs, mend, pack_factors
from .micro.argmaxpool import clear_windows, finish_whole, pool_some, pool_whole
from .micro.memory import LINE, aligned, keep
from .micro.packing import pack_bias, pack_panel
from .micro.simd import REGISTERS, broadcast, bytes_of, lanes, load, load_number, store, store_integers
from .micro.tile import VECTORS
from .micro.transposition import transpose
from .runtime.compilation import compiled, inner
from .runtime.threads import share

__all__ = ["COMPUTE", "FINISH", "PACK", "forward_float32", "forward_float64"]

# Purposes of a call of the kernel. COMPUTE packs the weights itself, unless a call with PACK has done so.
COMPUTE, PACK, FINISH = 0, 1, 2

# Greatest number of cache lines prefetched of the next part's input: a quarter of a second-level cache.
FARTHEST = 4096


@inner
def pack_all(args: Any, begin: int, end: int, packed: int, zero: Any) -> None:
    """Pack the panels ``begin`` to ``end``, and with the first of them the biases."""
    width, size = lanes(zero), bytes_of(zero)
    padded = (args.outputs + width - 1) // width * width
    taps = args.outer * args.inner
    if begin == 0:
        pack_bias(args.bias, args.bias_stride, args.outputs, padded, packed, zero)
    for panel in range(begin, end):
        o = panel * VECTORS * width
        vectors = min(VECTORS, (padded - o) // width)
        target = packed + (width + padded + o * taps) * size
        outputs = min(VECTORS * width, args.outputs - o)
        pack_panel(
            args.weight + o * args.weight_stride, args.weight_stride, taps, args.period, outputs, vectors, target, zero
        )
        if args.products:
            pack_factors(args, target, vectors, factors_at(args, packed, zero) + o * args.products * size, zero)


@inner(inline="always")
def factors_at(args: Any, packed: int, zero: Any) -> int:
    """Return where the factors of fast products are, behind all packed weights."""
    width, size = lanes(zero), bytes_of(zero)
    padded = (args.outputs + width - 1) // width * width
    at: int = packed + (width + padded * (1 + args.outer * args.inner)) * size
    return at


@inner
def pack_block(panel: int, table: int, zero: Any) -> None:
    """Pack one panel."""
    args = load_arguments(table)
    pack_all(args, panel, panel + 1, args.packed, zero)


@inner
def first_position(args: Any, piece: int) -> int:
    """Return the first position of a piece of a sample."""
    first: int = args.positions * piece // args.pieces
    if not args.whole:
        first = max(piece * args.piece_windows * args.pool_stride - args.pool_padding, 0)
        if args.products and args.kept:  # a pair that began before a chunk would be written over rows that it keeps
            first = first // (2 * args.dilation) * (2 * args.dilation)
    return first


@inner
def needed_next(args: Any, n: int, first: int, seen: int) -> Any:
    """Return input rows of sample ``n`` from position ``first`` on as :func:`ask_for` takes them.

    These are their address, the number of lines, lines of a run, and runs' distance.
    """
    row = max(first * args.stride - args.padding, 0)
    place = sample_at(args, n) + row * args.row_stride
    run = (seen * args.row_stride + LINE - 1) // LINE + 1
    runs, apart = (args.channels, args.channel_stride) if args.channel_stride > args.row_stride else (1, 0)
    dense = args.channels * args.channel_stride
    if dense + LINE < args.row_stride:
        run, runs, apart = (dense + LINE - 1) // LINE + 1, seen, args.row_stride
    elif args.group > 1 and args.sample_stride == args.channels * args.channel_stride:
        runs *= args.group
    return place, min(runs * run, FARTHEST), run, apart


@inner
def forward_block(block: int, table: int, packed: int, zero: Any) -> None:
    """Compute one block of a call's parts."""
    args = load_arguments(table)
    width, size = lanes(zero), bytes_of(zero)
    padded = (args.outputs + width - 1) // width * width
    taps, factors = args.outer * args.inner, factors_at(args, packed, zero)
    panel_row = VECTORS * width * size
    local = args.group * args.panels * VECTORS * width
    span = (args.pool_size - 1) * args.pool_dilation + 1
    sliding = args.slides * VECTORS * width
    panel_bytes = (args.kept + args.rows + 2 * args.slack) * panel_row
    planes_bytes = PLANES * args.plane_rows * args.channels_at_once * size
    sizes = (
        panel_bytes * max(args.panels * (args.products > 0), 1), args.most * panel_row, max(args.rows, 8) * 8,
        local * size, local * 4, args.copies, (taps + 1) * 8, args.few_outputs * width * size,
        args.few_outputs * (args.rows + width) * size, sliding * size, sliding * 4 if args.argmax else 0,
        args.pair_bytes, planes_bytes, args.rows * panel_row if args.products else 0,
        args.panels * width * size if args.products else 0,
    )  # fmt: skip
    total = 0
    for one in sizes:
        total += one + LINE
    scratch = np.empty(total, np.uint8)
    rows = aligned(scratch.ctypes.data)
    pooled = aligned(rows + sizes[0])
    rows += args.slack * panel_row
    listed = aligned(pooled + sizes[1])
    maxima = aligned(listed + sizes[2])
    running_argmax = aligned(maxima + sizes[3])
    place = aligned(running_argmax + sizes[4])
    offsets = aligned(place + sizes[5])
    starts = aligned(offsets + sizes[6])
    sums = aligned(starts + sizes[7])
    held = aligned(sums + sizes[8])
    running = (held, aligned(held + sizes[9]) if args.argmax else 0)
    pairs = aligned(aligned(held + sizes[9]) + sizes[10])
    planes = aligned(pairs + sizes[11])
    spare = aligned(planes + sizes[12])
    flags = aligned(spare + sizes[13])
    if args.products:
        list_pairs(args, pairs, zero)
    listed_for = -1
    for i in range(args.few_outputs):
        shift = zero
        if args.bias and i < args.outputs:
            shift = load_number(args.bias + i * args.bias_stride, zero)
        store(broadcast(shift, zero), starts + i * width * size)
    if args.few_outputs:  # lanes beyond the outputs stay 0
        for i in range(args.kept + args.rows):
            store(broadcast(zero, zero), rows + i * width * size)
    begin, end = args.parts * block // args.blocks, args.parts * (block + 1) // args.blocks
    for part in range(begin, end):
        piece, rest = part % args.pieces, part // args.pieces
        samples = (rest % args.groups * args.group, min((rest % args.groups + 1) * args.group, args.samples))
        outputs = rest // args.groups * args.panels * VECTORS * width
        outputs_end = min(outputs + args.panels * VECTORS * width, padded)
        from_position = first_position(args, piece)
        if args.whole:
            to_position = args.positions * (piece + 1) // args.pieces
            if args.pieces > 1:
                maxima = args.partial + ((samples[0] * args.pieces + piece) * padded + outputs) * size
                running_argmax = args.partial + args.samples * args.pieces * padded * size
                running_argmax += ((samples[0] * args.pieces + piece) * padded + outputs) * 4
            apart = args.pieces * padded if args.pieces > 1 else args.panels * VECTORS * width
            for n in range(samples[1] - samples[0]):
                for o in range(0, outputs_end - outputs, width):
                    store(broadcast(-np.inf, zero), maxima + (n * apart + o) * size)
                    store_integers(broadcast(np.int32(-1), zero), running_argmax + (n * apart + o) * 4, np.int32(0))
            piece_end = 0
        else:
            piece_end = min((piece + 1) * args.piece_windows, args.windows)
            to_position = min((piece_end - 1) * args.pool_stride - args.pool_padding + span, args.positions)
            apart = 0
        longest = to_position
        if args.limits:  # no position beyond the length of every sample is convolved
            longest = 0
            for n in range(samples[0], samples[1]):
                longest = max(longest, limits_of(args, n)[0])
        window, kept = (0, piece * args.piece_windows), 0
        # A window of padding alone has no positions, but is pooled all the same.
        for first in range(from_position, max(to_position, from_position + 1), args.chunk):
            behind = first + args.chunk
            count = max(min(behind, to_position, longest) - first, 0)
            number = count * (samples[1] - samples[0])
            # Windows whose last position is among these, in the last step all others.
            complete = (behind + args.pool_padding - span) // args.pool_stride + 1
            complete = piece_end if behind >= to_position else max(min(complete, piece_end), window[1])
            window = (window[1], complete)
            if args.few_outputs:
                for n in range(samples[0], samples[1] if count else samples[0]):
                    goal = rows + (kept + (n - samples[0]) * count) * width * size
                    listed_for = convolve_few_outputs(
                        args, n, first, count, place, listed, offsets, listed_for, starts, sums, goal, zero
                    )
            elif number and not args.products:
                gap = write_indirection(args, listed, samples, first, count, place, zero)
                if gap != listed_for:
                    write_offsets(args, offsets, gap, zero)
                    listed_for = gap
            seen = (count - 1) * args.stride + args.reach
            first_next, n_next = behind, samples[0]
            if behind >= to_position:
                first_next = first_position(args, (part + 1) % args.pieces)
                n_next = (part + 1) // args.pieces % args.groups * args.group
            place_next, lines, run, run_apart = needed_next(args, n_next, first_next, seen)
            if part + 1 == end and behind >= to_position:
                lines = 0
            some = lines // args.panels + 1
            line = 0
            if args.products and number:
                convolve_pairs(
                    args, samples, first, count, (outputs, outputs_end), (packed + width * size, factors), place,
                    planes, pairs, rows, kept, panel_bytes, flags,
                    (place_next, 0, lines, run, run_apart), zero,
                )  # fmt: skip
            for o in range(outputs, outputs_end, VECTORS * width):
                ahead = (place_next, line, min(line + some, lines), run, run_apart)
                line += some
                panel = (o - outputs) // (VECTORS * width)
                vectors = min(VECTORS, (padded - o) // width)
                weights = packed + (width + padded + o * taps) * size
                bias = packed + (width + o) * size
                own = rows + (panel * panel_bytes if args.products else 0)
                goal = own + kept * vectors * width * size
                if args.products:
                    if number and has_odd(flags + panel * width * size, zero):
                        mend(
                            args, samples, first, count, place, listed, offsets, weights, bias, vectors, spare, goal,
                            zero,
                        )  # fmt: skip
                elif not args.few_outputs:
                    convolve(listed, number, offsets, taps, weights, bias, vectors, goal, ahead, zero)
                for n in range(samples[0], samples[1]):
                    source = own + (n - samples[0]) * count * vectors * width * size
                    if args.whole:
                        for v in range(vectors):
                            local = (n - samples[0]) * apart + o - outputs + v * width
                            some_positions = max(min(count, limits_of(args, n)[0] - first), 0)
                            pool_whole(
                                source + v * width * size, vectors * width * size, first, some_positions,
                                maxima + local * size, running_argmax + local * 4, zero,
                            )  # fmt: skip
                    else:
                        write_windows(args, source, first - kept, behind, window, n, o, vectors, pooled, running, zero)
            if args.kept and behind < to_position:
                kept = keep_rows(args, rows, first - kept, behind, window[1], padded - outputs, zero)
        if args.whole and args.pieces == 1:
            for n in range(samples[0], samples[1]):
                for o in range(outputs, outputs_end, width):
                    local = (n - samples[0]) * apart + o - outputs
                    finish(args, n, o, padded, maxima + local * size, running_argmax + local * 4, zero)
    keep(scratch)


@inner
def keep_rows(args: Any, rows: int, first: int, behind: int, window: int, outputs: int, zero: Any) -> int:
    """Move the positions that ``window`` and later ones see, of those from ``first`` on, to the beginning of ``rows``.

    Return their number.
    """
    begin: int = max(window * args.pool_stride - args.pool_padding, first)
    row = min(VECTORS * REGISTERS.width, (outputs + lanes(zero) - 1) // lanes(zero) * REGISTERS.width)
    for at in range(0, (behind - begin) * row, REGISTERS.width):
        store(load(rows + (begin - first) * row + at, zero), rows + at)
    return max(behind - begin, 0)


@inner
def write_windows(
    args: Any,
    rows: int,
    first: int,
    behind: int,
    window: Any,
    n: int,
    o: int,
    vectors: int,
    pooled: int,
    running: Any,
    zero: Any,
) -> None:
    """Pool the windows of one sample and one panel, whose positions from ``first`` to ``behind`` are in ``rows``."""
    width, size = lanes(zero), bytes_of(zero)
    padded = (args.outputs + width - 1) // width * width
    pool = (args.pool_size, args.pool_stride, args.pool_padding, args.pool_dilation)
    target = args.out + n * args.out_sample_stride + o * args.out_channel_stride + window[0] * args.out_window_stride
    itemsize, jump = args.argmax_itemsize, padded * args.argmax_itemsize
    direct = args.out_channel_stride == size
    positions, windows = limits_of(args, n)
    end = max(min(window[1], windows), window[0])
    for v in range(vectors):
        of = o + v * width
        argmax = args.argmax + ((n * args.windows + window[0]) * padded + of) * itemsize if args.argmax else 0
        goal, hop, count = pooled + v * width * size, vectors * width * size, width
        if direct:
            goal, hop, count = target + v * width * size, args.out_window_stride, min(width, args.outputs - of)
        source, own = rows + v * width * size, args.slides * v * width
        held = (running[0] + own * size, running[1] + own * 4) if args.slides else (0, 0)
        pool_some(
            source, vectors * width * size, first, behind, positions, (window[0], end), pool, held, goal, hop, count,
            argmax, jump, itemsize, zero,
        )  # fmt: skip
        clear_windows(window[0], end, window[1], goal, hop, count, argmax, jump, itemsize, zero)
    if not direct:
        columns = min(vectors * width, args.outputs - o)
        hop = vectors * width * size
        transpose(pooled, hop, target, args.out_channel_stride, window[1] - window[0], columns, zero)


@inner
def finish(args: Any, n: int, o: int, padded: int, maxima: int, running_argmax: int, zero: Any) -> None:
    """Write the maxima of one sample and one vector of outputs, over all pieces."""
    size = bytes_of(zero)
    argmax = args.argmax + (n * padded + o) * args.argmax_itemsize if args.argmax else 0
    outputs = min(lanes(zero), args.outputs - o)
    target = args.out + n * args.out_sample_stride + o * size
    finish_whole(maxima, running_argmax, args.pieces, padded, target, outputs, argmax, args.argmax_itemsize, zero)


@inner(inline="always")
def forward(table: int, purpose: int, begin: int, end: int, threads: int, launch: int, zero: Any) -> None:
    """Pack the panels or compute the blocks ``begin`` to ``end``, or reduce the pieces of a global maximum."""
    args = load_arguments(table)
    width, size = lanes(zero), bytes_of(zero)
    padded = (args.outputs + width - 1) // width * width
    if purpose == PACK:
        share(begin, end, threads, launch, pack_block, (table, zero))
    elif purpose == COMPUTE:
        own = 0 if args.packed else (padded * (args.outer * args.inner + args.products + 1) + width) * size + LINE
        memory = np.empty(own + 1, np.uint8)
        packed = args.packed
        if not packed and not args.few_outputs:
            packed = aligned(memory.ctypes.data)
            pack_all(args, 0, (padded + VECTORS * width - 1) // (VECTORS * width), packed, zero)
        share(begin, end, threads, launch, forward_block, (table, packed, zero))
        keep(memory)
    else:
        for n in range(args.samples):
            for o in range(0, padded, width):
                at = n * args.pieces * padded + o
                running_argmax = args.partial + (args.samples * args.pieces * padded) * size
                finish(args, n, o, padded, args.partial + at * size, running_argmax + at * 4, zero)


@compiled
def forward_float32(table: int, purpose: int, begin: int, end: int, threads: int, launch: int) -> None:
    """Run the kernel with the arguments at ``table`` on float32; see :func:`forward`."""
    forward(table, purpose, begin, end, threads, launch, np.float32(0))


@compiled
def forward_float64(table: int, purpose: int, begin: int, end: int, threads: int, launch: int) -> None:
    """Run the kernel with the arguments at ``table`` on float64; see :func:`forward`."""
    forward(table, purpose, begin, end, threads, launch, np.float64(0))
