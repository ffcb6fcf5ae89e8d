"""The sums of the forward pass of the fused conv stack: a chunk's convolution, block of taps by block of taps."""

from __future__ import annotations

from typing import Any

from .conv_pool_inputs import sample_at
from .micro.igemm import igemm, igemm_few_outputs
from .micro.memory import LINE, prefetch
from .micro.packing import copy_padded_rows
from .micro.simd import REGISTERS, bytes_of, lanes, store_number
from .micro.tile import TILE, VECTORS
from .micro.transposition import transpose
from .runtime.compilation import inner

__all__ = ["ask_for", "block_of", "convolve", "convolve_few_outputs"]

# Greatest number of taps summed in registers before the sum is added to the total, in blocks of equal size. A single
# sum over imdb1's 896 taps has three times the rounding error of torch's. The largest error of 4 x 32 x 60 results
# against float64 was 0.6 to 1.6 times torch's (medians of 40 draws, 70 to 896 taps); with blocks of up to 128 it was
# 1.0 to 2.4 times, in 1 % less time. A block's weights, 12 KiB, stay in the first cache for a whole chunk.
TAPS = 96

# Positions that are convolved between two bursts of prefetches: the CPU stalls when too many are under way at once.
# jena1 on windows at random places in 24 MB took 4.8 ms on one core of a Zen 1, 4.9 with twice as many, 5.5 with a
# whole chunk's input prefetched at once, and 4.4 to 4.6 where all windows were the same.
AT_ONCE = TILE


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
