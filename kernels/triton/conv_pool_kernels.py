"""The fused conv stack's forward pass on the device: one accumulator per pooling phase, nothing reshaped or padded.

A tile is ``BLOCK_M`` pooling windows (rows) by ``BLOCK_O`` output channels. Its convolution at pooling phase ``p``, the
window's ``p``-th position, is a matrix product over ``r = (k, c)``, the kernel's positions and channels as one axis:

    acc_p[m, o] = sum over r of x[window m, position p + k, c] * W[o, k, c]

Then come the bias and the running maximum over ``p`` with the number of the phase that won. The same rows of the input
serve phase ``p`` at ``k + 1`` and phase ``p + 1`` at ``k`` where a phase is as long a step as the kernel's dilation, so
``PHASES`` of them are computed together: row ``j = p + k`` is loaded once and multiplied by every ``W_k`` it meets.

``ROWS`` says where a position's row is: in the input itself (``"own"``); in a table, at the number that the position's
token is (``"tokens"``); in a series, so many rows behind its window's start (``"windows"``). Numbers that the table has
no row for are read as rows of zeros.

Names: ``i_`` a scalar index, ``b_`` a block, ``m_`` a mask, ``p_`` a block of pointers; shapes stand beside the blocks.
Sizes and strides are run-time numbers that no compilation depends on, channels and window sizes are compile-time ones.
Strides are given in units of ``ALIGN`` elements, so that the compiler knows how far loads may be vectorised.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton import knobs

from .convolution_kernels import convolve, load_filters, look_up
from .maxima_kernels import NOWHERE, later_phase, later_position, store_greatest, store_windows

__all__ = ["INTERPRETED", "forward_global_kernel", "forward_windows_kernel"]

# Whether Triton's interpreter runs the kernels, on CPU tensors: decided when a kernel is decorated.
INTERPRETED = bool(knobs.runtime.interpret)

# Numbers that differ from call to call.
SIZES = [
    "rows",
    "windows",
    "length",
    "positions",
    "stride_n",
    "stride_l",
    "stride_c",
    "index_n",
    "index_l",
    "count",
    "window_step",
    "window_start",
    "phase_step",
    "tap_step",
    "pool_stride",
    "pool_padding",
    "pool_dilation",
]


@triton.jit
def rows_of(
    x: tl.tensor,
    index: tl.tensor,
    b_n: tl.tensor,  # samples, a block or one
    m: tl.tensor,
    row_stride: tl.tensor,  # elements
    index_n: tl.tensor,
    count: tl.tensor,
    ROWS: tl.constexpr,
) -> tl.tensor:
    """Return where the samples' rows begin (or the table), and which samples have all their rows.

    A window whose start is not below ``count`` would run over the end of its series.
    """
    p_x = x
    if ROWS == "windows":
        b_start, m = look_up(index + b_n * index_n, m, count)
        p_x = x + b_start * row_stride
    elif ROWS == "own":
        p_x = x + b_n * row_stride
    return p_x, m


@triton.jit
def pool_tile(
    i_tile: tl.tensor,
    x: tl.tensor,
    out: tl.tensor,
    argmax: tl.tensor,
    p_w: tl.tensor,  # (BLOCK_O,) each output's weights
    b_o: tl.tensor,  # (BLOCK_O,)
    m_o: tl.tensor,  # (BLOCK_O,)
    b_bias: tl.tensor,  # (BLOCK_O,)
    resident: tl.tuple,
    rows: tl.tensor,  # from here on as in forward_windows_kernel, strides in elements
    windows: tl.tensor,
    length: tl.tensor,
    positions: tl.tensor,
    stride_n: tl.tensor,
    stride_l: tl.tensor,
    stride_c: tl.tensor,
    index: tl.tensor,
    index_n: tl.tensor,
    index_l: tl.tensor,
    count: tl.tensor,
    window_step: tl.tensor,
    window_start: tl.tensor,
    phase_step: tl.tensor,
    tap_step: tl.tensor,
    pool_stride: tl.tensor,
    pool_padding: tl.tensor,
    pool_dilation: tl.tensor,
    C: tl.constexpr,
    O: tl.constexpr,  # noqa: E741
    K: tl.constexpr,
    P: tl.constexpr,
    PACKED: tl.constexpr,
    ALIGN: tl.constexpr,
    CHECK: tl.constexpr,
    ROWS: tl.constexpr,
    OUT_LAST: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    WANT_ARGMAX: tl.constexpr,
    PHASES: tl.constexpr,
    RESIDENT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_R: tl.constexpr,
    PRECISION: tl.constexpr,
    ROUND: tl.constexpr,
    INTERPRETED: tl.constexpr,
) -> tl.tensor:
    """Pool one tile of windows."""
    i_row = (tl.full((), 0, tl.int64) + i_tile) * BLOCK_M
    # One division in 64 bits for the tile, the others in 32.
    b_q = (i_row % windows).to(tl.int32) + tl.arange(0, BLOCK_M)
    b_n = i_row // windows + (b_q // windows).to(tl.int64)
    b_q = b_q % windows
    m_q = i_row + tl.arange(0, BLOCK_M) < rows
    p_x, m_x = rows_of(x, index, b_n, m_q, stride_n * ALIGN, index_n, count, ROWS)
    b_start = window_start + b_q * window_step
    b_first = b_q * pool_stride - pool_padding  # the convolution's position at phase 0
    b_best = tl.full((BLOCK_M, BLOCK_O), float("-inf"), tl.float32)
    b_won = tl.full((BLOCK_M, BLOCK_O), -1, tl.int32)
    for p0 in range(0, P, PHASES):
        b_at = b_start + p0 * phase_step
        accs = convolve(
            p_x if ROWS == "tokens" else p_x + b_at.to(tl.int64) * stride_l, b_at, m_x, p_w, m_o, resident,
            length, tap_step, tap_step * stride_l, stride_c,
            index + b_n * index_n + b_at.to(tl.int64) * index_l if ROWS == "tokens" else None,
            tap_step * index_l, stride_n * ALIGN, count,
            C, K, PACKED, RESIDENT, PHASES, BLOCK_M, BLOCK_O, BLOCK_R, CHECK, ROWS == "tokens",
            PRECISION, ROUND, INTERPRETED,
        )  # fmt: skip
        for i in tl.static_range(PHASES):
            b_value = accs[i]
            if HAS_BIAS:
                b_value += b_bias[None, :]
            b_t = b_first + (p0 + i) * pool_dilation
            b_best, b_won = later_phase(b_best, b_won, b_value, p0 + i, b_t, positions, P, CHECK)
    store_windows(
        out, argmax, b_best, b_won, i_row, b_n, b_q, b_first, m_q, b_o, m_o, windows, positions, pool_dilation,
        O, P, CHECK, OUT_LAST, WANT_ARGMAX, BLOCK_M,
    )  # fmt: skip


@triton.jit(do_not_specialize=SIZES)
def forward_windows_kernel(
    x: tl.tensor,  # (N, C, L), or (V, C) whose rows are found through the index, strides as given
    w: tl.tensor,  # (O, PITCH), of which K * C are used, or (O, C, K), contiguous
    bias: tl.tensor,  # (O,), contiguous
    out: tl.tensor,  # (N, Q, O) or (N, O, Q), contiguous
    argmax: tl.tensor,  # (N, Q, O)
    rows: tl.int64,  # N * Q
    windows: tl.int32,  # Q
    length: tl.int32,  # L
    positions: tl.int32,  # the convolution's
    stride_n: tl.int64,  # from row to row of a table or a series
    stride_l: tl.int64,
    stride_c: tl.int64,
    index: tl.tensor,  # (N, L) tokens or (N,) starts, strides as given, or None
    index_n: tl.int64,
    index_l: tl.int64,
    count: tl.int64,  # numbers in the index are below it
    window_step: tl.int32,  # input positions from window to window
    window_start: tl.int32,  # the first window's first input position, not positive
    phase_step: tl.int32,  # input positions from phase to phase
    tap_step: tl.int32,  # input positions from tap to tap
    pool_stride: tl.int32,
    pool_padding: tl.int32,
    pool_dilation: tl.int32,
    C: tl.constexpr,
    O: tl.constexpr,  # noqa: E741
    K: tl.constexpr,
    P: tl.constexpr,
    PITCH: tl.constexpr,  # of packed weights, else 0
    ALIGN: tl.constexpr,
    UNIT_C: tl.constexpr,  # neighbouring channels are neighbours in memory
    UNIT_L: tl.constexpr,  # neighbouring positions are
    CHECK: tl.constexpr,  # positions may lie outside the input, or phases outside the window
    ROWS: tl.constexpr,
    OUT_LAST: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    WANT_ARGMAX: tl.constexpr,
    PHASES: tl.constexpr,
    RESIDENT: tl.constexpr,  # a program keeps the weights and goes from tile to tile
    BLOCK_M: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_R: tl.constexpr,
    PRECISION: tl.constexpr,
    ROUND: tl.constexpr,
    INTERPRETED: tl.constexpr,
) -> tl.tensor:
    """Pool tiles of ``BLOCK_M`` windows, of whichever samples, for ``BLOCK_O`` outputs."""
    TILES_O: tl.constexpr = (O + BLOCK_O - 1) // BLOCK_O
    b_o = (tl.program_id(0) % TILES_O) * BLOCK_O + tl.arange(0, BLOCK_O)
    m_o = b_o < O
    stride_l = 1 if UNIT_L else stride_l * ALIGN
    stride_c = 1 if UNIT_C else stride_c
    p_w = w + b_o.to(tl.int64) * (PITCH if PITCH else C * K)
    resident: tl.tuple = ()
    i_first = tl.program_id(0) // TILES_O
    b_bias = tl.load(bias + b_o, mask=m_o, other=0.0).to(tl.float32) if HAS_BIAS else None
    if RESIDENT:
        resident = load_filters(p_w, m_o, tl.arange(0, BLOCK_R), C, K, PITCH > 0, ROUND, INTERPRETED)
        i_end = ((rows + BLOCK_M - 1) // BLOCK_M).to(tl.int32)
        for i_tile in range(i_first, i_end, tl.num_programs(0) // TILES_O):
            pool_tile(
                i_tile, x, out, argmax, p_w, b_o, m_o, b_bias, resident, rows, windows, length, positions,
                stride_n, stride_l, stride_c, index, index_n, index_l, count,
                window_step, window_start, phase_step, tap_step,
                pool_stride, pool_padding, pool_dilation,
                C, O, K, P, PITCH > 0, ALIGN, CHECK, ROWS, OUT_LAST, HAS_BIAS, WANT_ARGMAX, PHASES, RESIDENT,
                BLOCK_M, BLOCK_O, BLOCK_R, PRECISION, ROUND, INTERPRETED,
            )  # fmt: skip
    else:
        pool_tile(
            i_first, x, out, argmax, p_w, b_o, m_o, b_bias, resident, rows, windows, length, positions,
            stride_n, stride_l, stride_c, index, index_n, index_l, count,
            window_step, window_start, phase_step, tap_step,
            pool_stride, pool_padding, pool_dilation,
            C, O, K, P, PITCH > 0, ALIGN, CHECK, ROWS, OUT_LAST, HAS_BIAS, WANT_ARGMAX, PHASES, RESIDENT,
            BLOCK_M, BLOCK_O, BLOCK_R, PRECISION, ROUND, INTERPRETED,
        )  # fmt: skip


@triton.jit(do_not_specialize=SIZES)
def forward_global_kernel(
    x: tl.tensor,  # (N, C, L), or (V, C) whose rows are found through the index, strides as given
    w: tl.tensor,  # (O, PITCH), of which K * C are used, or (O, C, K), contiguous
    bias: tl.tensor,  # (O,), contiguous
    out: tl.tensor,  # (N, O), contiguous
    argmax: tl.tensor,  # (N, O)
    length: tl.int32,  # L
    positions: tl.int32,  # the convolution's
    stride_n: tl.int64,  # from row to row of a table or a series
    stride_l: tl.int64,
    stride_c: tl.int64,
    index: tl.tensor,  # (N, L) tokens or (N,) starts, strides as given, or None
    index_n: tl.int64,
    index_l: tl.int64,
    count: tl.int64,  # numbers in the index are below it
    window_start: tl.int32,  # the first input position, not positive
    phase_step: tl.int32,  # input positions from position to position: the convolution's stride
    tap_step: tl.int32,  # input positions from tap to tap
    C: tl.constexpr,
    O: tl.constexpr,  # noqa: E741
    K: tl.constexpr,
    PITCH: tl.constexpr,
    ALIGN: tl.constexpr,
    UNIT_C: tl.constexpr,
    UNIT_L: tl.constexpr,
    ROWS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    WANT_ARGMAX: tl.constexpr,
    PHASES: tl.constexpr,
    RESIDENT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_R: tl.constexpr,
    PRECISION: tl.constexpr,
    ROUND: tl.constexpr,
    INTERPRETED: tl.constexpr,
) -> tl.tensor:
    """Find one sample's greatest activations of ``BLOCK_O`` outputs, ``BLOCK_M`` windows of ``PHASES`` at a time."""
    TILES_O: tl.constexpr = (O + BLOCK_O - 1) // BLOCK_O
    i_n = (tl.program_id(0) // TILES_O).to(tl.int64)
    b_o = (tl.program_id(0) % TILES_O) * BLOCK_O + tl.arange(0, BLOCK_O)
    m_o = b_o < O
    stride_l = 1 if UNIT_L else stride_l * ALIGN
    stride_c = 1 if UNIT_C else stride_c
    p_w = w + b_o.to(tl.int64) * (PITCH if PITCH else C * K)
    resident: tl.tuple = ()
    if RESIDENT:
        resident = load_filters(p_w, m_o, tl.arange(0, BLOCK_R), C, K, PITCH > 0, ROUND, INTERPRETED)
    b_best = tl.full((BLOCK_M, BLOCK_O), float("-inf"), tl.float32)
    b_won = tl.full((BLOCK_M, BLOCK_O), NOWHERE, tl.int32)
    if HAS_BIAS:
        b_bias = tl.load(bias + b_o, mask=m_o, other=0.0).to(tl.float32)
    p_x, m_n = rows_of(x, index, i_n, i_n >= 0, stride_n * ALIGN, index_n, count, ROWS)
    for t0 in range(0, positions, BLOCK_M * PHASES):
        b_t = t0 + tl.arange(0, BLOCK_M) * PHASES
        b_at = window_start + b_t * phase_step
        m_t = b_t < positions
        if ROWS == "windows":
            m_t = m_t & m_n
        accs = convolve(
            p_x if ROWS == "tokens" else p_x + b_at.to(tl.int64) * stride_l, b_at, m_t, p_w, m_o, resident,
            length, tap_step, tap_step * stride_l, stride_c,
            index + i_n * index_n + b_at.to(tl.int64) * index_l if ROWS == "tokens" else None,
            tap_step * index_l, stride_n * ALIGN, count,
            C, K, PITCH > 0, RESIDENT, PHASES, BLOCK_M, BLOCK_O, BLOCK_R, True, ROWS == "tokens",
            PRECISION, ROUND, INTERPRETED,
        )  # fmt: skip
        for i in tl.static_range(PHASES):
            b_value = accs[i]
            if HAS_BIAS:
                b_value += b_bias[None, :]
            b_best, b_won = later_position(b_best, b_won, b_value, b_t + i, positions)
    store_greatest(out, argmax, b_best, b_won, i_n, b_o, m_o, O, WANT_ARGMAX)
