"""The fused conv stack's forward pass on the device: one accumulator per pooling phase, nothing reshaped or padded.

A tile is ``TILE.M`` pooling windows (rows) by ``TILE.O`` output channels. Its convolution at pooling phase ``p``, the
window's ``p``-th position, is a matrix product over ``r = (k, c)``, the kernel's positions and channels as one axis:

    acc_p[m, o] = sum over r of x[window m, position p + k, c] * W[o, k, c]

Then come the bias and the running maximum over ``p`` with its argmax, the phase. Where a phase is as long a step as
the kernel's dilation, the same rows of the input serve phase ``p`` at ``k + 1`` and phase ``p + 1`` at ``k``.
``TILE.phases`` of them are computed together then: row ``j = p + k`` is loaded once, and multiplied by every ``W_k``
that it meets.

``ROWS.mode`` says where a position's row is: in the input itself (``"own"``); in a table, at the number that the
position's token is (``"tokens"``); in a series, so many rows behind its window's start (``"windows"``). Numbers that
the table has no row for are read as rows of zeros.

Names: ``i_`` a scalar index, ``b_`` a block, ``m_`` a mask, ``p_`` a block of pointers; shapes stand beside the blocks,
of the tile's ``M``, ``O``, ``R`` and ``C``. Numbers of samples, windows and positions and strides in memory are
run-time numbers that no compilation depends on. Channels, window sizes and steps from window to window and from tap to
tap are compile-time ones: they have names in capitals and come in groups, see :mod:`..groups`. Strides are given in
units of ``ROWS.align`` elements, so that the compiler knows how far loads may be vectorised.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ..groups import Input, Outputs
from .convolution import convolve, load_filters, look_up, outputs_of
from .maxima import NOWHERE, later_phase, later_position, store_greatest, store_windows

__all__ = ["forward_global_kernel", "forward_windows_kernel", "rows_of"]

# Numbers that differ from call to call.
SIZES = [
    "rows",
    "samples",
    "windows",
    "length",
    "positions",
    "stride_n",
    "stride_l",
    "index_n",
    "index_l",
    "count",
]


@triton.jit
def rows_of(
    input: Input,
    b_n: tl.tensor,  # samples, a block or one
    m: tl.tensor,
    ROWS: tl.constexpr,
) -> tl.tensor:
    """Return where the samples' rows begin (or the table), and which samples have all their rows.

    A window whose start is not below ``count`` would run over the end of its series.
    """
    p_x = input.x
    if ROWS.mode == "windows":
        b_start, m = look_up(input.index + b_n * input.index_n, m, input.count)
        p_x = input.x + b_start * input.stride_n
    elif ROWS.mode == "own":
        p_x = input.x + b_n * input.stride_n
    return p_x, m


@triton.jit
def pool_tile(
    i_tile: tl.tensor,
    input: Input,
    outputs: Outputs,
    resident: tl.tuple,
    b_bias: tl.tensor,  # (O,), or None
    out: tl.tensor,  # from here on as in forward_windows_kernel
    argmax: tl.tensor,
    rows: tl.tensor,
    windows: tl.tensor,
    positions: tl.tensor,
    W: tl.constexpr,
    STEPS: tl.constexpr,
    POOL: tl.constexpr,
    ROWS: tl.constexpr,
    TILE: tl.constexpr,
    PRODUCTS: tl.constexpr,
    CHECK: tl.constexpr,
    OUT_LAST: tl.constexpr,
) -> tl.tensor:
    """Pool one tile of windows."""
    i_row = (tl.full((), 0, tl.int64) + i_tile) * TILE.M
    # One division in 64 bits for the tile, the others in 32.
    b_q = (i_row % windows).to(tl.int32) + tl.arange(0, TILE.M)
    b_n = i_row // windows + (b_q // windows).to(tl.int64)
    b_q = b_q % windows
    m_q = i_row + tl.arange(0, TILE.M) < rows
    p_x, m_x = rows_of(input, b_n, m_q, ROWS)
    b_start = STEPS.start + b_q * STEPS.window
    b_first = b_q * POOL.stride - POOL.padding  # the convolution's position at phase 0
    b_best = tl.full((TILE.M, TILE.O), float("-inf"), tl.float32)
    b_argmax = tl.full((TILE.M, TILE.O), -1, tl.int32)
    for p0 in range(0, POOL.size, TILE.phases):
        b_at = b_start + p0 * STEPS.phase
        accs = convolve(
            input, p_x, b_n, b_at, m_x, outputs, resident, W, STEPS.tap, TILE, PRODUCTS, ROWS, CHECK
        )  # fmt: skip
        for i in tl.static_range(TILE.phases):
            b_value = accs[i]
            if b_bias is not None:
                b_value += b_bias[None, :]
            b_t = b_first + (p0 + i) * POOL.dilation
            b_best, b_argmax = later_phase(b_best, b_argmax, b_value, p0 + i, b_t, positions, POOL.size, CHECK)
    store_windows(
        out, argmax, b_best, b_argmax, i_row, b_n, b_q, b_first, m_q, outputs.b, outputs.m, windows, positions,
        POOL.dilation, W.O, POOL.size, CHECK, OUT_LAST,
    )  # fmt: skip


@triton.jit(do_not_specialize=SIZES)
def forward_windows_kernel(
    x: tl.tensor,  # (N, C, L), or (V, C) whose rows are found through the index, strides as given
    w: tl.tensor,  # see Filters
    bias: tl.tensor,  # (O,), contiguous, or None
    out: tl.tensor,  # (N, Q, O) or (N, O, Q), contiguous
    argmax: tl.tensor,  # (N, Q, O), or None
    rows: tl.int64,  # N * Q
    windows: tl.int32,  # Q
    positions: tl.int32,  # the convolution's
    length: tl.int32,  # L
    stride_n: tl.int64,  # from row to row of a table or a series
    stride_l: tl.int64,
    index: tl.tensor,  # (N, L) tokens or (N,) starts, strides as given, or None
    index_n: tl.int64,
    index_l: tl.int64,
    count: tl.int64,  # numbers in the index are below it
    W: tl.constexpr,
    STEPS: tl.constexpr,
    POOL: tl.constexpr,  # a geometry.Pool
    ROWS: tl.constexpr,
    TILE: tl.constexpr,
    PRODUCTS: tl.constexpr,
    CHECK: tl.constexpr,  # positions may lie outside the input, or phases outside the window
    OUT_LAST: tl.constexpr,
) -> tl.tensor:
    """Pool tiles of ``M`` windows, of whichever samples, for ``O`` outputs."""
    TILES_O: tl.constexpr = (W.O + TILE.O - 1) // TILE.O
    outputs = outputs_of(tl.program_id(0) % TILES_O, w, W, TILE)
    stride_l = W.C if ROWS.dense else stride_l * ROWS.align
    input = Input(
        x=x, length=length, stride_n=stride_n * ROWS.align, stride_l=stride_l,
        index=index, index_n=index_n, index_l=index_l, count=count,
    )  # fmt: skip
    b_bias = tl.load(bias + outputs.b, mask=outputs.m, other=0.0).to(tl.float32) if bias is not None else None
    resident: tl.tuple = ()
    i_first = tl.program_id(0) // TILES_O
    if TILE.resident:
        resident = load_filters(outputs, tl.arange(0, TILE.R), W, TILE, PRODUCTS)
        i_end = ((rows + TILE.M - 1) // TILE.M).to(tl.int32)
        for i_tile in range(i_first, i_end, tl.num_programs(0) // TILES_O):
            pool_tile(
                i_tile, input, outputs, resident, b_bias, out, argmax, rows, windows, positions,
                W, STEPS, POOL, ROWS, TILE, PRODUCTS, CHECK, OUT_LAST,
            )  # fmt: skip
    else:
        pool_tile(
            i_first, input, outputs, resident, b_bias, out, argmax, rows, windows, positions,
            W, STEPS, POOL, ROWS, TILE, PRODUCTS, CHECK, OUT_LAST,
        )  # fmt: skip


@triton.jit
def greatest_tile(
    i_tile: tl.tensor,
    input: Input,
    outputs: Outputs,
    resident: tl.tuple,
    b_bias: tl.tensor,  # (O,), or None
    out: tl.tensor,  # from here on as in forward_global_kernel
    argmax: tl.tensor,
    samples: tl.tensor,
    positions: tl.tensor,
    W: tl.constexpr,
    STEPS: tl.constexpr,
    ROWS: tl.constexpr,
    TILE: tl.constexpr,
    PRODUCTS: tl.constexpr,
) -> tl.tensor:
    """Find the greatest activations of one tile of samples."""
    i_n = (tl.full((), 0, tl.int64) + i_tile) * (TILE.M // TILE.group)
    b_n = i_n + tl.arange(0, TILE.M) // TILE.group if TILE.group < TILE.M else i_n
    b_best = tl.full((TILE.M, TILE.O), float("-inf"), tl.float32)
    b_argmax = tl.full((TILE.M, TILE.O), NOWHERE, tl.int32)
    p_x, m_n = rows_of(input, b_n, b_n < samples, ROWS)
    for t0 in range(0, positions, TILE.group * TILE.phases):
        b_t = t0 + tl.arange(0, TILE.M) % TILE.group * TILE.phases
        b_at = STEPS.start + b_t * STEPS.phase
        m_t = b_t < positions
        if ROWS.mode == "windows" or TILE.group < TILE.M:
            m_t = m_t & m_n
        accs = convolve(
            input, p_x, b_n, b_at, m_t, outputs, resident, W, STEPS.tap, TILE, PRODUCTS, ROWS, True
        )  # fmt: skip
        for i in tl.static_range(TILE.phases):
            b_value = accs[i]
            if b_bias is not None:
                b_value += b_bias[None, :]
            b_best, b_argmax = later_position(b_best, b_argmax, b_value, b_t + i, positions)
    store_greatest(out, argmax, b_best, b_argmax, i_n, outputs.b, outputs.m, samples, W.O, TILE.group)


@triton.jit(do_not_specialize=SIZES)
def forward_global_kernel(
    x: tl.tensor,  # (N, C, L), or (V, C) whose rows are found through the index, strides as given
    w: tl.tensor,  # see Filters
    bias: tl.tensor,  # (O,), contiguous, or None
    out: tl.tensor,  # (N, O), contiguous
    argmax: tl.tensor,  # (N, O), or None
    samples: tl.int64,  # N
    positions: tl.int32,  # the convolution's
    length: tl.int32,  # L
    stride_n: tl.int64,  # from row to row of a table or a series
    stride_l: tl.int64,
    index: tl.tensor,  # (N, L) tokens or (N,) starts, strides as given, or None
    index_n: tl.int64,
    index_l: tl.int64,
    count: tl.int64,  # numbers in the index are below it
    W: tl.constexpr,
    STEPS: tl.constexpr,
    ROWS: tl.constexpr,
    TILE: tl.constexpr,
    PRODUCTS: tl.constexpr,
) -> tl.tensor:
    """Find the greatest activations of ``O`` outputs of ``M / group`` samples at a time.

    Of each, a tile computes ``group * phases`` positions, and goes on to the next ones.
    """
    TILES_O: tl.constexpr = (W.O + TILE.O - 1) // TILE.O
    SAMPLES: tl.constexpr = TILE.M // TILE.group
    outputs = outputs_of(tl.program_id(0) % TILES_O, w, W, TILE)
    stride_l = W.C if ROWS.dense else stride_l * ROWS.align
    input = Input(
        x=x, length=length, stride_n=stride_n * ROWS.align, stride_l=stride_l,
        index=index, index_n=index_n, index_l=index_l, count=count,
    )  # fmt: skip
    b_bias = tl.load(bias + outputs.b, mask=outputs.m, other=0.0).to(tl.float32) if bias is not None else None
    resident: tl.tuple = ()
    i_first = tl.program_id(0) // TILES_O
    if TILE.resident:
        resident = load_filters(outputs, tl.arange(0, TILE.R), W, TILE, PRODUCTS)
        i_end = ((samples + SAMPLES - 1) // SAMPLES).to(tl.int32)
        for i_tile in range(i_first, i_end, tl.num_programs(0) // TILES_O):
            greatest_tile(
                i_tile, input, outputs, resident, b_bias, out, argmax, samples, positions,
                W, STEPS, ROWS, TILE, PRODUCTS,
            )  # fmt: skip
    else:
        greatest_tile(
            i_first, input, outputs, resident, b_bias, out, argmax, samples, positions,
            W, STEPS, ROWS, TILE, PRODUCTS,
        )  # fmt: skip
