"""The compiled forward pass of the fused conv stack: it computes the parts that the blocking has cut the work into."""
# ruff: noqa: ARG001  (an intrinsic's parameters are types)

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types

from .conv_pool_blocking import KernelArguments
from .micro.argmaxpool import clear_windows, finish_whole, pool_some, pool_whole
from .micro.igemm import igemm, igemm_few_outputs
from .micro.memory import LINE, aligned, keep, prefetch
from .micro.packing import copy_padded_rows, pack_bias, pack_panel
from .micro.simd import REGISTERS, broadcast, bytes_of, lanes, load, load_number, store, store_integers, store_number
from .micro.tile import TILE, VECTORS
from .micro.transposition import transpose
from .runtime.compilation import compiled, inner, intrinsic
from .runtime.threads import share

__all__ = ["COMPUTE", "FINISH", "PACK", "forward_float32", "forward_float64", "limits_of"]

# Purposes of a call of the kernel. COMPUTE packs the weights itself, unless a call with PACK has done so.
COMPUTE, PACK, FINISH = 0, 1, 2

# Greatest number of taps summed in registers before the sum is added to the total, in blocks of equal size. A single
# sum over imdb1's 896 taps has three times the rounding error of torch's. The largest error of 4 x 32 x 60 results
# against float64 was 0.6 to 1.6 times torch's (medians of 40 draws, 70 to 896 taps); with blocks of up to 128 it was
# 1.0 to 2.4 times, in 1 % less time. A block's weights, 12 KiB, stay in the first cache for a whole chunk.
TAPS = 96

# Positions that are convolved between two bursts of prefetches: the CPU stalls when too many are under way at once.
# jena1 on windows at random places in 24 MB took 4.8 ms on one core of a Zen 1, 4.9 with twice as many, 5.5 with a
# whole chunk's input prefetched at once, and 4.4 to 4.6 where all windows were the same.
AT_ONCE = TILE

# Greatest number of cache lines prefetched of the next part's input: a quarter of a second-level cache.
FARTHEST = 4096


@intrinsic
def load_arguments(_typing: Any, address: Any) -> Any:
    """Return the arguments that are stored at ``address``."""
    result = types.NamedUniTuple(types.int64, len(KernelArguments._fields), KernelArguments)

    def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.load(builder.inttoptr(arguments[0], context.get_value_type(result).as_pointer()), align=8)

    return result(types.int64), generate


@inner(inline="always")
def sample_at(args: Any, n: int) -> Any:
    """Return the address of sample ``n``."""
    return load_number(args.places + n * 8, 0) if args.places else args.x + n * args.sample_stride


@inner(inline="always")
def limits_of(call: Any, n: int) -> tuple[int, int]:
    """Return how many positions and windows sample ``n`` of a call has: KernelArguments, or a Descriptor."""
    if call.limits:
        return load_number(call.limits + n * 16, 0), load_number(call.limits + n * 16 + 8, 0)
    return call.positions, call.windows


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


@inner
def pack_block(panel: int, table: int, zero: Any) -> None:
    """Pack one panel."""
    args = load_arguments(table)
    pack_all(args, panel, panel + 1, args.packed, zero)


@inner
def write_indirection(args: Any, table: int, samples: Any, first: int, count: int, place: int, zero: Any) -> int:
    """Write the addresses of ``count`` positions of each sample, from position ``first`` on, to ``table``.

    Where one of them sees padding, the samples' rows are copied to ``place``, zeros around them, and the addresses are
    those of the copies. Return the bytes between the copies' channels, 0 without copies.
    """
    begin = first * args.stride - args.padding
    seen = (count - 1) * args.stride + args.reach
    copied = begin < 0 or begin + seen > args.length
    size = bytes_of(zero)
    at = table
    for n in range(samples[0], samples[1]):
        source = sample_at(args, n)
        step = args.position_stride
        if copied:
            copy_padded_rows(
                source, args.channel_stride, args.row_stride, args.channels, begin, args.length, seen, place,
                args.by_channel != 0, zero,
            )  # fmt: skip
            source, step = place, args.stride * size * (1 if args.by_channel else args.channels)
            place += seen * args.channels * size
        else:
            source += begin * args.row_stride
        for i in range(count):
            store_number(source + i * step, at, 0)
            at += 8
    return seen * size if copied else 0


@inner
def write_offsets(args: Any, table: int, apart: int, zero: Any) -> None:
    """Write each tap's offset from its position, in bytes: in the input or, unless ``apart`` is 0, in a copy."""
    size = bytes_of(zero)
    outer_stride, inner_stride = args.outer_stride, args.inner_stride
    if apart and args.by_channel:
        outer_stride, inner_stride = apart, args.dilation * size
    elif apart:
        outer_stride, inner_stride = args.dilation * args.channels * size, size
    at = table
    for a in range(args.outer):
        for b in range(args.inner):
            store_number(a * outer_stride + b * inner_stride, at, 0)
            at += 8


@inner
def convolve_few_outputs(
    args: Any,
    n: int,
    first: int,
    count: int,
    place: int,
    table: int,
    offsets: int,
    listed_for: int,
    starts: int,
    sums: int,
    rows: int,
    zero: Any,
) -> int:
    """Fill ``rows`` with a sample's convolution at ``count`` positions, for outputs that fill at most half a vector.

    Vectors hold positions; the sums are transposed into the rows that :func:`convolve` would write. ``starts`` has a
    vector of each output's bias. Return the bytes between channels for which the taps' ``offsets`` were written.
    """
    width, size = lanes(zero), bytes_of(zero)
    begin, seen = first - args.padding, count - 1 + args.reach
    source: int = sample_at(args, n) + begin * args.row_stride
    apart: int = args.channel_stride
    if not args.in_place or count < width or begin < 0 or begin + seen > args.length:
        copy_padded_rows(
            sample_at(args, n), args.channel_stride, args.row_stride, args.channels, begin, args.length, seen, place,
            True, zero,
        )  # fmt: skip
        source, apart = place, seen * size
    kernels = args.reach // args.dilation + (args.reach % args.dilation > 0)
    if apart != listed_for:
        at = offsets
        for a in range(kernels if args.channels_inside else args.channels):
            for b in range(args.channels if args.channels_inside else kernels):
                channel, kernel = (b, a) if args.channels_inside else (a, b)
                store_number(channel * apart + kernel * args.dilation * size, at, 0)
                at += 8
    row = (count + width - 1) // width * width * size
    taps = args.channels * kernels
    block = block_of(taps)
    for tap in range(0, taps, block):
        for i in range(args.few_outputs):
            store_number(args.weight + min(i, args.outputs - 1) * args.weight_stride + tap * size, table + i * 8, 0)
        some = min(block, taps - tap)
        igemm_few_outputs(
            table, args.few_outputs, offsets + tap * 8, some, source, count, starts, sums, row, tap > 0, zero
        )
    done = count // width * width
    transpose(sums, row, rows, REGISTERS.width, args.outputs, done, zero)
    if done < count:
        repeated = done - count + width if done else 0
        last = sums + (done + repeated) * size
        transpose(last, row, rows + done * REGISTERS.width, REGISTERS.width, args.outputs, count - done, zero)
    return apart


@inner
def block_of(taps: int) -> int:
    """Return how many of ``taps`` are summed at a time."""
    blocks = (taps + TAPS - 1) // TAPS
    return (taps + blocks - 1) // blocks


@inner
def convolve(
    table: int,
    count: int,
    offsets: int,
    taps: int,
    weights: int,
    bias: int,
    vectors: int,
    rows: int,
    ahead: Any,
    zero: Any,
) -> None:
    """Fill ``rows``, dense, with convolution and bias at ``count`` listed positions, for ``vectors`` of outputs.

    Each block of taps is summed in registers before it is added to the total, which keeps rounding errors small.
    ``ahead`` describes the memory to prefetch meanwhile by the arguments of :func:`ask_for`.
    """
    width = REGISTERS.width
    row = vectors * width
    place, line, last, run, apart = ahead
    block = block_of(taps)
    blocks = (taps + block - 1) // block
    pieces = blocks * ((count + AT_ONCE - 1) // AT_ONCE)
    share_of_lines = (max(last - line, 0) + pieces - 1) // max(pieces, 1)
    for tap in range(0, taps, block):
        more = tap > 0
        panel, some = weights + tap * vectors * width, min(block, taps - tap)
        for first in range(0, count, AT_ONCE):
            number, at, goal = min(AT_ONCE, count - first), table + first * 8, rows + first * vectors * width
            ask_for(place, line, min(line + share_of_lines, last), run, apart)
            line += share_of_lines
            if vectors == VECTORS:
                igemm(at, number, offsets + tap * 8, some, panel, bias, width, goal, row, more, zero, VECTORS)
            else:
                igemm(at, number, offsets + tap * 8, some, panel, bias, width, goal, row, more, zero, 1)


@inner
def ask_for(place: int, line: int, last: int, run: int, apart: int) -> None:
    """Prefetch the cache lines ``line`` to ``last`` of the memory at ``place``.

    That memory is runs of ``run`` contiguous lines, which begin ``apart`` bytes apart.
    """
    if line >= last:
        return
    base, column = place + line // run * apart, line % run
    for _ in range(line, last):
        prefetch(base + column * LINE, 2)
        column += 1
        if column == run:
            base, column = base + apart, 0


@inner
def first_position(args: Any, piece: int) -> int:
    """Return the first position of a piece of a sample."""
    first: int = args.positions * piece // args.pieces
    if not args.whole:
        first = max(piece * args.piece_windows * args.pool_stride - args.pool_padding, 0)
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
    taps = args.outer * args.inner
    panel_row = VECTORS * width * size
    local = args.group * args.panels * VECTORS * width
    span = (args.pool_size - 1) * args.pool_dilation + 1
    sliding = args.slides * VECTORS * width
    sizes = (
        (args.kept + args.rows) * panel_row, args.most * panel_row, max(args.rows, 8) * 8, local * size, local * 4,
        args.copies, (taps + 1) * 8, args.few_outputs * width * size, args.few_outputs * (args.rows + width) * size,
        sliding * size, sliding * 4 if args.argmax else 0,
    )  # fmt: skip
    total = 0
    for one in sizes:
        total += one + LINE
    scratch = np.empty(total, np.uint8)
    rows = aligned(scratch.ctypes.data)
    pooled = aligned(rows + sizes[0])
    listed = aligned(pooled + sizes[1])
    maxima = aligned(listed + sizes[2])
    running_argmax = aligned(maxima + sizes[3])
    place = aligned(running_argmax + sizes[4])
    offsets = aligned(place + sizes[5])
    starts = aligned(offsets + sizes[6])
    sums = aligned(starts + sizes[7])
    held = aligned(sums + sizes[8])
    running = (held, aligned(held + sizes[9]) if args.argmax else 0)
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
            elif number:
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
            for o in range(outputs, outputs_end, VECTORS * width):
                ahead = (place_next, line, min(line + some, lines), run, run_apart)
                line += some
                vectors = min(VECTORS, (padded - o) // width)
                weights = packed + (width + padded + o * taps) * size
                if not args.few_outputs:
                    bias = packed + (width + o) * size
                    goal = rows + kept * vectors * width * size
                    convolve(listed, number, offsets, taps, weights, bias, vectors, goal, ahead, zero)
                for n in range(samples[0], samples[1]):
                    source = rows + (n - samples[0]) * count * vectors * width * size
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
        own = 0 if args.packed else (padded * (args.outer * args.inner + 1) + width) * size + LINE
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
