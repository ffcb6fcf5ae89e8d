"""The blocking of the forward pass of the fused conv stack: it depends on shapes and strides alone.

The work is cut into parts: panels of output channels x groups of samples x pieces of the positions. Samples with few
positions are grouped, so that a block of weights in the first-level cache serves several of them, and so that register
tiles are full. A piece is a chunk, but of a global maximum and of windows that overlap it is many: what a chunk leaves
to the next one stays in the scratch.
"""

from __future__ import annotations

from typing import NamedTuple

from ..geometry import Convolution, Pool
from ..plans import PANELS_AT_ONCE, POSITIONS_AT_ONCE, Plan, fast_plan, products_at_once, products_of
from .micro.simd import REGISTERS
from .micro.tile import TILE, VECTORS
from .runtime.threads import thread_count

__all__ = ["BORDER", "ForwardBlocking", "KernelArguments", "forward_blocking", "running_maxima", "sums_plan"]

# Blocks per thread where threads share the work: when the system delays one thread, the others take its blocks.
BLOCKS = 8

# Approximate number of positions of a chunk: 16 KiB of scratch.
CHUNK = 128

# Of few outputs that read a contiguous input in place, at most so many positions, and bytes of the input: runs of
# memory are longer. 81 channels to 2, one tap, 3,870 positions: 362 microseconds on one core of a Zen 4, 514 with
# chunks of 128; 502 channels with chunks of 512, a MiB, 818 instead of 581.
LONG_CHUNK, STREAMED = 512, 256 * 1024

# Least number of windows' spans in a piece of a sample that threads share, where windows overlap: on both sides of a
# border a span is convolved, which then is a sixteenth of the work, by count. Two will do where threads were idle.
BORDER, IDLE_BORDER = 16, 2

# What running maxima cost a position, in elements of windows that are pooled one by one, and what it costs so to keep a
# position for the next chunk. On one core of a Zen 5 (16 channels to 32, 5 taps, stride 1) running maxima took 1.05,
# 0.98 and 0.85 times as long for 12, 16 and 24 elements, with argmax 1.04, 0.91 and 0.73; at a dilation of 54 0.97,
# 0.90 and 0.81 for 6, 8 and 10; at one of 150 1.00 and 0.84 for 3 and 6.
SLIDING, KEEPING = 14, 3


# Bytes of the weight panels that one part reads: they should stay in the second-level cache, beside the input.
RESIDENT = 512 * 1024

# Least number of taps for tiles of few outputs, of an input that is copied and of one that is read in place. Output
# channels that fill at most half a vector waste its other lanes; vectors then hold positions instead. With fewer taps,
# transposing the sums costs more than the wasted lanes: in place 1.1 to 1.5 times as fast with 8 to 12 taps, 0.8 to 1.1
# with 1 to 3; copied 0.8 to 1.2 with 8 to 12.
FEW_OUTPUTS_TAPS = (16, 8)

# Weights of more bytes are packed by several threads.
PACKED_ALONE = 256 * 1024


class KernelArguments(NamedTuple):
    """The kernel's arguments, a table of 64-bit numbers. Strides are in bytes."""

    x: int = 0
    weight: int = 0
    bias: int = 0
    bias_stride: int = 0
    out: int = 0
    argmax: int = 0  # 0: not wanted
    packed: int = 0  # 0: the kernel packs the weights itself
    partial: int = 0  # maxima and argmax of each piece, where parts share a global maximum
    places: int = 0  # the samples' own addresses, where they are not sample_stride apart
    limits: int = 0  # int64 number of positions and of windows per sample, where these differ
    samples: int = 0
    channels: int = 0
    length: int = 0
    positions: int = 0
    outputs: int = 0
    windows: int = 0
    sample_stride: int = 0
    channel_stride: int = 0
    row_stride: int = 0
    position_stride: int = 0
    outer: int = 0
    outer_stride: int = 0
    inner: int = 0
    inner_stride: int = 0
    stride: int = 0
    dilation: int = 0
    padding: int = 0  # on the left; positions accounts for the right
    size: int = 0  # of the kernel
    reach: int = 0  # input rows from a position's first tap to its last
    copies: int = 0  # bytes of a padded copy of a part's input rows, 0 without padding
    by_channel: int = 0  # taps are visited channel by channel
    products: int = 0  # of a pair of positions, all channels together; 0 where sums are direct
    products_each: int = 0  # of a pair and a channel
    channels_at_once: int = 0  # of fast products: whose products are summed in registers, whole vectors
    positions_at_once: int = 0  # of fast products: of a sample, whose input is transformed
    plane_rows: int = 0  # most rows that are transformed at once
    pair_bytes: int = 0  # of the tables of pairs and offsets
    slack: int = 0  # rows beside a chunk that a pair may write to, on either side
    few_outputs: int = 0  # rows of the tile whose vectors hold positions, 0 where they hold output channels
    in_place: int = 0  # a tile of few outputs can read the input in place
    channels_inside: int = 0  # the weights' channels are contiguous
    weight_stride: int = 0
    period: int = 0
    whole: int = 0
    pool_size: int = 0
    pool_stride: int = 0
    pool_padding: int = 0
    pool_dilation: int = 0
    argmax_itemsize: int = 0
    out_sample_stride: int = 0
    out_channel_stride: int = 0
    out_window_stride: int = 0
    slides: int = 0  # running maxima of a vector of outputs, see slide_windows; 0 where windows are pooled one by one
    chunk: int = 0  # positions of a sample that are convolved before they are pooled
    rows: int = 0  # most positions of a chunk, over all samples of a group
    kept: int = 0  # most positions that a chunk keeps for the windows of the next one
    piece_windows: int = 0
    most: int = 0  # windows that a chunk completes
    group: int = 0
    groups: int = 0
    pieces: int = 0
    panels: int = 0  # of a part
    panel_groups: int = 0
    parts: int = 0
    blocks: int = 0


ADDRESSES = 10  # of the arguments, those that differ from call to call


class ForwardBlocking(NamedTuple):
    """What a call allocates, how many threads it runs on, and the kernel's arguments except for the addresses."""

    out_shape: tuple[int, ...]
    out_strides: tuple[int, ...]
    argmax_shape: tuple[int, int, int]
    packable_bytes: int  # of the packed weights, 0 where they are read as they are
    packed_bytes: int  # 0: the kernel packs the weights itself
    partial_bytes: int
    threads: int
    panels: int  # of all outputs
    args: KernelArguments
    numbers: tuple[int, ...]


def out_format(
    samples: int, outputs: int, windows: int, *, channels_last: bool
) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """Return the shape and strides of ``(N, O, Q)`` results."""
    shape = (samples, outputs, windows)
    if channels_last:
        return shape, (windows * outputs, 1, max(outputs, 1))
    return shape, (outputs * windows, max(windows, 1), 1)


def forward_blocking(
    shape: tuple[int, int, int],
    strides: tuple[int, int, int],
    weight_shape: tuple[int, int, int],
    weight_strides: tuple[int, int, int],
    convolution: Convolution,
    pool: Pool | None,
    itemsize: int,
    argmax_itemsize: int,
    channels_last: bool,
    fast_products: bool,
) -> ForwardBlocking:
    """Return a call's blocking; ``pool`` is ``None`` for the global maximum.

    ``strides`` count numbers of ``itemsize`` bytes; those of argmax have ``argmax_itemsize`` bytes. The weights of an
    output channel must be dense.
    """
    samples, channels, length = shape
    outputs, _, size = weight_shape
    stride, padding, dilation = convolution.stride, convolution.padding, convolution.dilation
    positions = convolution.output_length(length, size)
    windows = 1 if pool is None else pool.output_length(positions)
    taps, lanes = channels * size, REGISTERS.width // itemsize
    padded = -(-outputs // lanes) * lanes
    sample_stride, channel_stride, row_stride = (one * itemsize for one in strides)
    by_channel = channel_stride > row_stride * dilation
    order = ((size, row_stride * dilation), (channels, channel_stride))
    (outer, outer_stride), (inner, inner_stride) = order[::-1] if by_channel else order
    # Taps that are contiguous are one run, provided that they are contiguous in a padded copy, too.
    if outer_stride == inner * inner_stride and not (any(padding) and (by_channel or dilation > 1)):
        outer, inner = 1, outer * inner
    rows_are_kernels = weight_strides[2] == 1 or size == 1
    few_outputs = has_few_outputs(positions, outputs, taps, stride, lanes, in_place=row_stride == itemsize)
    if few_outputs:  # taps are visited in the order of the weights
        by_channel = True
    natural = by_channel == rows_are_kernels
    fast = not few_outputs and fast_products
    fast = fast and sums_plan(shape, strides, weight_shape, convolution, itemsize).name == "fast"
    products = channels * products_of(size) if fast else 0
    pool_numbers = (positions, 1, 0, 1) if pool is None else pool[:4]
    span = pool_numbers[3] * (pool_numbers[0] - 1) + 1

    threads = thread_count(2**31, samples * positions * outputs * taps)
    panels = -(-padded // (VECTORS * lanes))
    panel_bytes = taps * VECTORS * REGISTERS.width
    overlaps = pool is not None and pool_numbers[1] < span
    seen = max(min((windows - 1) * pool_numbers[1] + span, positions), 1)
    chunk = CHUNK
    if few_outputs and row_stride == itemsize:
        chunk = max(CHUNK, min(LONG_CHUNK, STREAMED // (channels * itemsize)) // TILE * TILE)
    piece_windows, pieces, rows = windows, 1, min(chunk // TILE * TILE, seen)
    if pool is not None and not overlaps:
        piece_windows = _windows_at_once(
            pool_numbers[1], span, windows, -(-2 * threads // max(samples * panels, 1)), chunk, lanes if fast else TILE
        )
        rows = min((piece_windows - 1) * pool_numbers[1] + span, positions)
        pieces = max(1, -(-windows // piece_windows))
    single = pieces == 1 and seen <= rows
    group = min(max(1, CHUNK // max(rows, 1)), max(samples, 1)) if single else 1
    enough = threads * 4 if threads > 1 else 1
    while group > 1 and -(-samples // group) * panels < enough:
        group = (group + 1) // 2
    groups = -(-samples // group)
    per = panels if panels * panel_bytes <= RESIDENT else max(1, RESIDENT // panel_bytes)
    per = max(per, min(panels, PANELS_AT_ONCE)) if fast else per
    per = 1 if overlaps else max(1, min(per, panels * groups * pieces // enough))
    panel_groups = -(-panels // per)
    if (pool is None or overlaps) and groups * panel_groups < enough:
        shares, idle = (-(-some // max(groups * panel_groups, 1)) for some in (enough, threads))
        pieces = min(shares, positions // (2 * TILE))
        if overlaps:
            pieces = max(min(pieces, positions // (BORDER * span)), min(idle, positions // (IDLE_BORDER * span)))
            piece_windows = max(-(-windows // max(pieces, 1)), 1)
            pieces = -(-windows // piece_windows)
        pieces = max(1, pieces)
        rows = max(1, min(rows, -(-positions // pieces)))
    parts = panel_groups * groups * pieces
    slides = 0 if pool is None else running_maxima(pool)
    kept = span - 1 if overlaps and not slides else 0
    reach = dilation * (size - 1) + 1
    blocks, pairs_apart = -(-products // products_at_once(size)), 2 * dilation
    channels_at_once = positions_at_once = plane_rows = 0
    if fast:
        rows = -(-rows // pairs_apart) * pairs_apart
    copies = group * ((rows - 1) * stride + reach) * channels * itemsize if any(padding) else 0
    if fast:
        channels_at_once = -(-channels // (max(blocks, 1) * lanes)) * lanes
        positions_at_once = max(POSITIONS_AT_ONCE // pairs_apart, 1) * pairs_apart
        plane_rows = positions_at_once + reach
        copies = max(copies, plane_rows * channels_at_once * itemsize)
    if few_outputs:
        copies = (rows - 1 + reach) * channels * itemsize + REGISTERS.width
    threads = max(1, min(threads, parts))
    out_shape, out_strides = out_format(samples, outputs, windows, channels_last=channels_last or pool is None)
    packed_bytes = padded * (taps + products + 2) * itemsize + REGISTERS.width
    args = KernelArguments(
        samples=samples, channels=channels, length=length, positions=positions, outputs=outputs, windows=windows,
        sample_stride=sample_stride, channel_stride=channel_stride, row_stride=row_stride,
        position_stride=row_stride * stride, outer=outer, outer_stride=outer_stride, inner=inner,
        inner_stride=inner_stride, stride=stride, dilation=dilation, padding=padding[0], size=size, reach=reach,
        copies=copies, products=products, products_each=products_of(size) if fast else 0,
        channels_at_once=channels_at_once, positions_at_once=positions_at_once, plane_rows=plane_rows,
        pair_bytes=8 * (positions_at_once + channels_at_once * (size // 3 + 1) + 1) if fast else 0,
        slack=pairs_apart if fast else 0,
        by_channel=by_channel, few_outputs=1 << (outputs - 1).bit_length() if few_outputs else 0,
        in_place=row_stride == itemsize,
        channels_inside=not rows_are_kernels,
        weight_stride=weight_strides[0] * itemsize,
        period=1 if natural else (size if rows_are_kernels else channels), whole=pool is None,
        pool_size=pool_numbers[0], pool_stride=pool_numbers[1], pool_padding=pool_numbers[2],
        pool_dilation=pool_numbers[3], argmax_itemsize=argmax_itemsize, out_sample_stride=out_strides[0] * itemsize,
        out_channel_stride=out_strides[1] * itemsize, out_window_stride=out_strides[2] * itemsize,
        slides=slides,
        chunk=rows, rows=rows * group, kept=kept, piece_windows=piece_windows,
        most=min(piece_windows, (rows + pool_numbers[2]) // pool_numbers[1] + 2) if overlaps else piece_windows,
        group=group, groups=groups, pieces=pieces, panels=per, panel_groups=panel_groups, parts=parts,
        blocks=min(parts, threads * BLOCKS) if threads > 1 else 1,
    )  # fmt: skip
    return ForwardBlocking(
        out_shape=out_shape[:2] if pool is None else out_shape,
        out_strides=out_strides[:2] if pool is None else out_strides,
        argmax_shape=(samples, windows, padded),
        packable_bytes=0 if few_outputs else packed_bytes,
        packed_bytes=packed_bytes if packed_bytes > PACKED_ALONE and threads > 1 and not few_outputs else 0,
        partial_bytes=samples * pieces * padded * (itemsize + 4) if pool is None and pieces > 1 else 0,
        threads=threads,
        panels=panels,
        args=args,
        numbers=tuple(map(int, args[ADDRESSES:])),
    )


def has_few_outputs(positions: int, outputs: int, taps: int, stride: int, lanes: int, *, in_place: bool) -> bool:
    """Tell whether vectors hold positions instead of output channels."""
    least = FEW_OUTPUTS_TAPS[in_place]
    return stride == 1 and taps >= least and 2 * outputs <= lanes <= positions


def sums_plan(
    shape: tuple[int, int, int],
    strides: tuple[int, int, int],
    weight_shape: tuple[int, int, int],
    convolution: Convolution,
    itemsize: int,
) -> Plan:
    """Return the plan of the sums: ``fast`` or ``direct``, see :func:`~seqconv.kernels.plans.fast_plan`."""
    (samples, channels, length), (outputs, _, size) = shape, weight_shape
    positions, lanes = convolution.output_length(length, size), REGISTERS.width // itemsize
    for reason in (
        f"fast products serve float32, got numbers of {itemsize} bytes" if itemsize != 4 else None,
        f"fast products serve a stride of 1, got {convolution.stride}" if convolution.stride != 1 else None,
        "fast products serve kernels of at least two positions, got one" if size < 2 else None,
        f"{outputs} outputs are fewer than half a vector"
        if has_few_outputs(positions, outputs, channels * size, convolution.stride, lanes, in_place=strides[2] == 1)
        else None,
        "the input is empty" if 0 in shape else None,
    ):
        if reason is not None:
            return Plan("direct", reason, {})
    sizes = channels, -(-outputs // lanes), size, convolution.dilation, lanes
    return fast_plan(samples, positions, *sizes, turned=strides[1] != 1)


def running_maxima(pool: Pool) -> int:
    """Return the number of running maxima that windows are pooled by, see slide_windows; 0 if they are one by one."""
    span = pool.dilation * (pool.size - 1) + 1
    slides = pool.stride < span and pool.size / pool.stride + KEEPING * span / CHUNK > SLIDING
    return pool.dilation * (pool.size + 1) if slides else 0


def _windows_at_once(stride: int, span: int, windows: int, shares: int, positions: int, tile: int) -> int:
    """Return how many windows that do not overlap are pooled at a time, about so many ``positions``.

    They are fewer where there are fewer samples than threads to share them.
    """
    whole_tiles = tile * max(1, round(positions / (tile * stride)))
    chunk = whole_tiles if stride * TILE <= 2 * CHUNK else max(1, 4 * span // stride)
    if shares > 1:
        chunk = min(chunk, max(-(-windows // shares), -(-TILE // stride)))
    return max(1, min(chunk, windows))
