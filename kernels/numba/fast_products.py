"""Convolutions by fewer products: Winograd's F(2,3), on groups of three kernel positions, for a stride of 1.

Two positions one dilation apart are a pair. Of three kernel positions ``g0``, ``g1``, ``g2`` and the four input rows
``x0`` to ``x3`` that a pair sees through them, four products make both positions' sums, where six would::

    y0 = m1 + m2 + m0        m0 = (x0 - x2) g0        m1 = (x1 + x2) (g0 + g1 + g2) / 2
    y1 = m1 - m2 + m3        m3 = (x1 - x3) -g2       m2 = (x2 - x1) (g0 - g1 + g2) / 2

Longer kernels are cut into groups of three. Two positions that are left over take three products, one takes two::

    y0 = m1 + m0             m0 = (x1 - x0) -g0       y0 = m0        m0 = x0 g0
    y1 = m1 + m3             m3 = (x2 - x1) g1        y1 = m3        m3 = x1 g0
                             m1 = x1 (g0 + g1)

A block of channels of few positions is transformed: differences of rows two dilations apart, sums and differences of
neighbours are three planes in the first-level cache, which all panels of outputs share. Then come its products, see
:mod:`.micro.pair_tile`.

Where a number is infinite or no number, or a sum leaves float32's range, differences are NaN where the convolution has
a number. It shows in the result, and such results are convolved directly. All others depend on the rows that their
positions see, and on nothing else.

S. Winograd, Arithmetic Complexity of Computations (1980); A. Lavin and S. Gray, arXiv:1509.09308.
"""

from __future__ import annotations

from typing import Any

from .conv_pool_inputs import sample_at, write_indirection, write_offsets
from .conv_pool_sums import ask_for, convolve
from .micro.packing import copy_padded_rows
from .micro.pair_tile import PAIRS, pair_tile
from .micro.simd import (
    REGISTERS,
    any_of,
    broadcast,
    bytes_of,
    is_nan,
    lanes,
    load,
    load_part,
    select,
    store,
    store_number,
)
from .micro.tile import VECTORS
from .micro.transposition import transpose_to_vectors
from .runtime.compilation import inner

__all__ = ["PLANES", "convolve_pairs", "has_odd", "list_pairs", "mend", "pack_factors"]

PLANES = 3


@inner
def pack_factors(args: Any, direct: int, vectors: int, target: int, zero: Any) -> None:
    """Write the factors of a panel of weights, whose packed weights are at ``direct``, block by block of channels."""
    if bytes_of(zero) != 4:  # as in convolve_pairs
        return
    row = vectors * REGISTERS.width
    half, nothing = broadcast(zero + 0.5, zero), broadcast(zero, zero)
    by_kernel, by_channel = args.channels * row, row
    if args.by_channel:
        by_kernel, by_channel = row, args.size * row
    groups, rest = args.size // 3, args.size % 3
    for begin in range(0, args.channels, args.channels_at_once):
        end = min(begin + args.channels_at_once, args.channels)
        for kind in range(4):  # those of the tile, one after the other
            many = groups if kind % 2 == 0 else 1
            if (kind == 1 and rest != 2) or (kind == 3 and rest == 0):
                many = 0
            for i in range((end - begin) * many):
                group = i % many if kind % 2 == 0 else groups
                first = direct + 3 * group * by_kernel + (begin + i // many) * by_channel
                for at in range(first, first + row, REGISTERS.width):
                    left = right = load(at, zero)
                    if kind % 2 == 0:
                        last = load(at + 2 * by_kernel, zero)
                        right = nothing - last
                        if kind == 0:
                            middle, outer = load(at + by_kernel, zero), left + last
                            left, right = (outer + middle) * half, (outer - middle) * half
                    elif rest == 2:
                        right = load(at + by_kernel, zero)
                        left = left + right if kind == 1 else nothing - left
                    store(left, target + at - first)
                    if kind != 1:
                        store(right, target + row + at - first)
                target += row if kind == 1 else 2 * row


@inner
def list_pairs(args: Any, table: int, zero: Any) -> None:
    """Write the pairs of ``positions_at_once``, and the offsets of products of ``channels_at_once`` behind them.

    A pair is the row of its first position, twice: as input and as result.
    """
    apart, size = args.dilation, bytes_of(zero)
    for block in range(0, args.positions_at_once, 2 * apart):
        for row in range(block, block + apart):
            store_number(row, table, 0)
            store_number(row, table + 8, 0)
            table += 16
    groups, row = args.size // 3, args.channels_at_once * size
    for channel in range(args.channels_at_once):
        for group in range(groups):
            store_number(3 * group * apart * row + channel * size, table, 0)
            table += 8
    for channel in range(args.channels_at_once + 1):
        store_number(channel * size, table, 0)
        table += 8


@inner
def transform(args: Any, source: int, row: int, seen: int, channels: int, planes: int, zero: Any) -> None:
    """Write the planes of ``seen`` rows, ``row`` bytes apart, of ``channels``."""
    size, width, apart = bytes_of(zero), lanes(zero), args.dilation
    step, hop, rest = args.channels_at_once * size, apart * row, args.size % 3
    plane = args.plane_rows * step
    # Of a single group of taps every other row takes part in m1 and m2.
    every, differences = apart > 1 or args.size > 5, apart > 1 or args.size > 5 or rest == 2
    for c in range(0, channels, width):
        at, goal, some = source + c * size, planes + c * size, min(width, channels - c)
        if row == step:  # of whole vectors
            some = width
        done = 0
        if apart == 1:
            x0, x1 = load_part(at, some, zero), load_part(at + row, some, zero)
            for _ in range((seen - 2) // 2):
                x2, x3 = load_part(at + 2 * row, some, zero), load_part(at + 3 * row, some, zero)
                store(x0 - x2, goal)
                store(x1 - x3, goal + step)
                if every:
                    store(x0 + x1, goal + plane)
                store(x1 + x2, goal + plane + step)
                if differences:
                    store(x1 - x0, goal + 2 * plane)
                store(x2 - x1, goal + 2 * plane + step)
                x0, x1 = x2, x3
                at, goal = at + 2 * row, goal + 2 * step
            done = (seen - 2) // 2 * 2
        for _ in range(done, seen - 2 * apart):
            x0, x1, x2 = load_part(at, some, zero), load_part(at + hop, some, zero), load_part(at + 2 * hop, some, zero)
            store(x0 - x2, goal)
            store(x0 + x1, goal + plane)
            store(x1 - x0, goal + 2 * plane)
            at, goal = at + row, goal + step
        if rest == 2:
            for _ in range(apart):
                store(load_part(at + hop, some, zero) - load_part(at, some, zero), goal + 2 * plane)
                at, goal = at + row, goal + step


@inner
def turn(source: int, stride: int, channels: int, rows: int, target: int, step: int, zero: Any) -> None:
    """Write ``rows``, of channels ``stride`` bytes apart, as vectors of channels, rows ``step`` bytes apart.

    There is at least a vector of rows: the last ones are turned with some before them.
    """
    width, size = lanes(zero), bytes_of(zero)
    for c in range(0, channels, width):
        for r in range(0, rows, width):
            at = min(r, rows - width)
            place, goal = source + c * stride + at * size, target + at * step + c * size
            transpose_to_vectors(place, stride, min(width, channels - c), goal, step, zero)


@inner
def convolve_pairs(
    args: Any,
    samples: Any,
    first: int,
    count: int,
    outputs: Any,
    packed: Any,
    place: int,
    planes: int,
    pairs: int,
    rows: int,
    kept: int,
    panel_bytes: int,
    flags: int,
    ahead: Any,
    zero: Any,
) -> None:
    """Fill ``rows`` with convolution and bias at ``count`` positions of each sample, from position ``first`` on.

    The ``kept`` first rows are those of earlier positions.
    ``outputs`` are computed, from one to before another, in panels ``panel_bytes`` apart; so many rows in front of
    ``rows`` and behind are written to, too, as a pair has beside those that are wanted. ``packed`` are the addresses of
    biases and factors. ``flags`` has a vector for each panel, which is infinite or no number if one of its results is.
    ``ahead`` is as in :func:`.convolve`.
    """
    width, size, apart = lanes(zero), bytes_of(zero), args.dilation
    if size != 4:  # never: it saves the time to compile what follows
        return
    padded = (args.outputs + width - 1) // width * width
    groups, rest = args.size // 3, args.size % 3
    step, numbers = args.channels_at_once * size, pairs + args.positions_at_once * 8
    hop, plane = apart * step, args.plane_rows * step
    place_next, line, last_line, run, gap = ahead
    begin, behind = first // (2 * apart) * (2 * apart), first + count
    blocks = (args.channels + args.channels_at_once - 1) // args.channels_at_once
    pieces = (behind - begin + args.positions_at_once - 1) // args.positions_at_once
    steps = (samples[1] - samples[0]) * pieces * blocks
    share_of_lines = (max(last_line - line, 0) + steps - 1) // max(steps, 1)
    for o in range(outputs[0], outputs[1], VECTORS * width):
        store(broadcast(zero, zero), flags + (o - outputs[0]) // (VECTORS * width) * REGISTERS.width)
    for n in range(samples[0], samples[1]):
        sample = sample_at(args, n)
        for position in range(begin, behind, args.positions_at_once):
            some = min(args.positions_at_once, behind - position)
            beyond = some % (2 * apart)
            number = some // (2 * apart) * apart + min(beyond, apart)
            covered = some + (apart if 0 < beyond < apart else 2 * apart - beyond if beyond else 0)
            seen, low = covered + args.reach - 1, position - args.padding
            for c in range(0, args.channels, args.channels_at_once):
                channels = min(args.channels_at_once, args.channels - c)
                source, row = sample + c * args.channel_stride, args.row_stride
                if low >= 0 and low + seen <= args.length and row == size and seen >= width:
                    turn(source + low * size, args.channel_stride, channels, seen, place, step, zero)
                    source, row = place, step
                elif low < 0 or low + seen > args.length or args.channel_stride != size:
                    copy_padded_rows(
                        source, args.channel_stride, row, channels, low, args.length, seen, place, False, zero
                    )
                    source, row = place, channels * size
                else:
                    source += low * row
                transform(args, source, row, seen, channels, planes, zero)
                ask_for(place_next, line, min(line + share_of_lines, last_line), run, gap)
                line += share_of_lines
                lone = numbers + args.channels_at_once * groups * 8
                far = source + 3 * groups * apart * row
                rest_base, rest_row = planes + 2 * plane + 3 * groups * hop, step
                if rest == 1:
                    rest_base, rest_row = far, row
                inputs = (
                    (groups * channels, numbers, planes + plane + hop, step, plane),
                    (channels if rest == 2 else 0, lone, far + apart * row, row, 0),
                    (groups * channels, numbers, planes, step, hop),
                    (channels if rest else 0, lone, rest_base, rest_row, apart * rest_row),
                )
                last = c + channels == args.channels
                for o in range(outputs[0], outputs[1], VECTORS * width):
                    vectors, panel = min(VECTORS, (padded - o) // width), (o - outputs[0]) // (VECTORS * width)
                    factors = packed[1] + (o * args.products + c * args.products_each * vectors * width) * size
                    bias, flag = packed[0] + o * size, flags + panel * REGISTERS.width
                    goal = rows + panel * panel_bytes
                    goal += (kept + (n - samples[0]) * count + position - first) * vectors * REGISTERS.width
                    done = 0
                    while done < number:
                        at, many = pairs + done * 16, 1
                        for most in PAIRS[::-1]:
                            many = most if most <= number - done else many
                        if vectors == VECTORS:
                            pair_tile(at, apart, inputs, factors, bias, goal, flag, c > 0, last, zero, many, VECTORS)
                        else:
                            pair_tile(at, apart, inputs, factors, bias, goal, flag, c > 0, last, zero, many, 1)
                        done += many


@inner(inline="always")
def has_odd(flag: int, zero: Any) -> bool:
    """Tell whether the vector at ``flag`` has a number that is infinite or none."""
    total = load(flag, zero)
    found: bool = any_of(is_nan(total - total))
    return found


@inner
def mend(
    args: Any,
    samples: Any,
    first: int,
    count: int,
    place: int,
    listed: int,
    offsets: int,
    weights: int,
    bias: int,
    vectors: int,
    spare: int,
    rows: int,
    zero: Any,
) -> None:
    """Replace what is infinite or no number in ``rows`` by direct sums, which ``spare`` has room for."""
    gap = write_indirection(args, listed, samples, first, count, place, zero)
    write_offsets(args, offsets, gap, zero)
    number = count * (samples[1] - samples[0])
    taps = args.outer * args.inner
    convolve(listed, number, offsets, taps, weights, bias, vectors, spare, (0, 0, 0, 1, 0), zero)
    for at in range(0, number * vectors * REGISTERS.width, REGISTERS.width):
        have = load(rows + at, zero)
        store(select(is_nan(have - have), load(spare + at, zero), have), rows + at)
