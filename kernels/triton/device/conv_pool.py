"""The fused conv stack's forward pass on the device: one accumulator per pooling phase, nothing reshaped or padded.

A tile is ``BLOCK_M`` pooling windows (rows) by ``BLOCK_O`` output channels. Its convolution at pooling phase ``p``, the
window's ``p``-th position, is a matrix product over ``r = (k, c)``, the kernel's positions and channels as one axis:

    acc_p[m, o] = sum over r of x[window m, position p + k, c] * W[o, k, c]

Then come the bias and the running maximum over ``p`` with its argmax, the phase. The same rows of the input
serve phase ``p`` at ``k + 1`` and phase ``p + 1`` at ``k`` where a phase is as long a step as the kernel's dilation, so
``PHASES`` of them are computed together: row ``j = p + k`` is loaded once and multiplied by every ``W_k`` it meets.

``ROWS`` says where a position's row is: in the input itself (``"own"``); in a table, at the number that the position's
token is (``"tokens"``); in a series, so many rows behind its window's start (``"windows"``). Numbers that the table has
no row for are read as rows of zeros.

Names: ``i_`` a scalar index, ``b_`` a block, ``m_`` a mask, ``p_`` a block of pointers; shapes stand beside the blocks.
Numbers of samples, windows and positions and strides in memory are run-time numbers that no compilation depends on;
channels, window sizes and steps from window to window and from tap to tap are compile-time ones. Strides are given in
units of ``ALIGN`` elements, so that the compiler knows how far loads may be vectorised.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton import knobs

from .convolution import below, convolve, load_filters, look_up
from .maxima import NOWHERE, later_phase, later_position, store_greatest, store_windows

__all__ = ["INTERPRETED", "forward_global_kernel", "forward_windows_kernel"]

# Whether Triton's interpreter runs the kernels, on CPU tensors: decided when a kernel is decorated.
INTERPRETED = bool(knobs.runtime.interpret)

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
    index: tl.tensor,
    index_n: tl.tensor,
    index_l: tl.tensor,
    count: tl.tensor,
    C: tl.constexpr,
    O: tl.constexpr,  # noqa: E741
    K: tl.constexpr,
    P: tl.constexpr,
    WINDOW_STEP: tl.constexpr,
    WINDOW_START: tl.constexpr,
    PHASE_STEP: tl.constexpr,
    TAP_STEP: tl.constexpr,
    POOL_STRIDE: tl.constexpr,
    POOL_PADDING: tl.constexpr,
    POOL_DILATION: tl.constexpr,
    PACKED: tl.constexpr,
    COLUMNS: tl.constexpr,
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
    REGISTERS: tl.constexpr,
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
    b_start = WINDOW_START + b_q * WINDOW_STEP
    b_first = b_q * POOL_STRIDE - POOL_PADDING  # the convolution's position at phase 0
    b_best = tl.full((BLOCK_M, BLOCK_O), float("-inf"), tl.float32)
    b_argmax = tl.full((BLOCK_M, BLOCK_O), -1, tl.int32)
    for p0 in range(0, P, PHASES):
        b_at = b_start + p0 * PHASE_STEP
        accs = convolve(
            p_x if ROWS == "tokens" else p_x + b_at.to(tl.int64) * stride_l, b_at, m_x, p_w, m_o, resident,
            length, TAP_STEP * stride_l,
            index + b_n * index_n + b_at.to(tl.int64) * index_l if ROWS == "tokens" else None,
            TAP_STEP * index_l, stride_n * ALIGN, count,
            C, K, TAP_STEP, PACKED, COLUMNS, RESIDENT, PHASES, BLOCK_M, BLOCK_O, BLOCK_R, CHECK, ROWS == "tokens",
            PRECISION, ROUND, REGISTERS, INTERPRETED,
        )  # fmt: skip
        for i in tl.static_range(PHASES):
            b_value = accs[i]
            if HAS_BIAS:
                b_value += b_bias[None, :]
            b_t = b_first + (p0 + i) * POOL_DILATION
            b_best, b_argmax = later_phase(b_best, b_argmax, b_value, p0 + i, b_t, positions, P, CHECK)
    store_windows(
        out, argmax, b_best, b_argmax, i_row, b_n, b_q, b_first, m_q, b_o, m_o, windows, positions, POOL_DILATION,
        O, P, CHECK, OUT_LAST, WANT_ARGMAX, BLOCK_M,
    )  # fmt: skip


@triton.jit(do_not_specialize=SIZES)
def forward_windows_kernel(
    x: tl.tensor,  # (N, C, L), or (V, C) whose rows are found through the index, strides as given
    w: tl.tensor,  # (O, PITCH), of which K * C are used; (K * C, COLUMNS) of which O are; or (O, C, K), contiguous
    bias: tl.tensor,  # (O,), contiguous
    out: tl.tensor,  # (N, Q, O) or (N, O, Q), contiguous
    argmax: tl.tensor,  # (N, Q, O)
    rows: tl.int64,  # N * Q
    windows: tl.int32,  # Q
    length: tl.int32,  # L
    positions: tl.int32,  # the convolution's
    stride_n: tl.int64,  # from row to row of a table or a series
    stride_l: tl.int64,
    index: tl.tensor,  # (N, L) tokens or (N,) starts, strides as given, or None
    index_n: tl.int64,
    index_l: tl.int64,
    count: tl.int64,  # numbers in the index are below it
    C: tl.constexpr,
    O: tl.constexpr,  # noqa: E741
    K: tl.constexpr,
    P: tl.constexpr,
    WINDOW_STEP: tl.constexpr,  # input positions from window to window
    WINDOW_START: tl.constexpr,  # the first window's first input position, not positive
    PHASE_STEP: tl.constexpr,  # input positions from phase to phase
    TAP_STEP: tl.constexpr,  # input positions from tap to tap
    POOL_STRIDE: tl.constexpr,
    POOL_PADDING: tl.constexpr,
    POOL_DILATION: tl.constexpr,
    PITCH: tl.constexpr,  # of packed weights, else 0
    COLUMNS: tl.constexpr,  # their pitch again where outputs lie in columns, else 0
    ALIGN: tl.constexpr,
    DENSE: tl.constexpr,  # a position's channels begin behind those of the one before
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
    REGISTERS: tl.constexpr,
    INTERPRETED: tl.constexpr,
) -> tl.tensor:
    """Pool tiles of ``BLOCK_M`` windows, of whichever samples, for ``BLOCK_O`` outputs."""
    TILES_O: tl.constexpr = (O + BLOCK_O - 1) // BLOCK_O
    b_o = (tl.program_id(0) % TILES_O) * BLOCK_O + tl.arange(0, BLOCK_O)
    m_o = below(b_o, O, BLOCK_O)
    stride_l = C if DENSE else stride_l * ALIGN
    p_w = w + b_o.to(tl.int64) * (1 if COLUMNS else PITCH if PITCH else C * K)
    resident: tl.tuple = ()
    i_first = tl.program_id(0) // TILES_O
    b_bias = tl.load(bias + b_o, mask=m_o, other=0.0).to(tl.float32) if HAS_BIAS else None
    if RESIDENT:
        resident = load_filters(
            p_w, m_o, tl.arange(0, BLOCK_R), C, K, PITCH > 0, COLUMNS, BLOCK_R, ROUND, INTERPRETED
        )  # fmt: skip
        i_end = ((rows + BLOCK_M - 1) // BLOCK_M).to(tl.int32)
        for i_tile in range(i_first, i_end, tl.num_programs(0) // TILES_O):
            pool_tile(
                i_tile, x, out, argmax, p_w, b_o, m_o, b_bias, resident, rows, windows, length, positions,
                stride_n, stride_l, index, index_n, index_l, count,
                C, O, K, P, WINDOW_STEP, WINDOW_START, PHASE_STEP, TAP_STEP, POOL_STRIDE, POOL_PADDING, POOL_DILATION,
                PITCH > 0, COLUMNS, ALIGN, CHECK, ROWS, OUT_LAST, HAS_BIAS, WANT_ARGMAX, PHASES, RESIDENT,
                BLOCK_M, BLOCK_O, BLOCK_R, PRECISION, ROUND, REGISTERS, INTERPRETED,
            )  # fmt: skip
    else:
        pool_tile(
            i_first, x, out, argmax, p_w, b_o, m_o, b_bias, resident, rows, windows, length, positions,
            stride_n, stride_l, index, index_n, index_l, count,
            C, O, K, P, WINDOW_STEP, WINDOW_START, PHASE_STEP, TAP_STEP, POOL_STRIDE, POOL_PADDING, POOL_DILATION,
            PITCH > 0, COLUMNS, ALIGN, CHECK, ROWS, OUT_LAST, HAS_BIAS, WANT_ARGMAX, PHASES, RESIDENT,
            BLOCK_M, BLOCK_O, BLOCK_R, PRECISION, ROUND, REGISTERS, INTERPRETED,
        )  # fmt: skip


@triton.jit
def greatest_tile(
    i_tile: tl.tensor,
    x: tl.tensor,
    out: tl.tensor,
    argmax: tl.tensor,
    p_w: tl.tensor,  # (BLOCK_O,) each output's weights
    b_o: tl.tensor,  # (BLOCK_O,)
    m_o: tl.tensor,  # (BLOCK_O,)
    b_bias: tl.tensor,  # (BLOCK_O,)
    resident: tl.tuple,
    samples: tl.tensor,  # from here on as in forward_global_kernel, strides in elements
    length: tl.tensor,
    positions: tl.tensor,
    stride_n: tl.tensor,
    stride_l: tl.tensor,
    index: tl.tensor,
    index_n: tl.tensor,
    index_l: tl.tensor,
    count: tl.tensor,
    C: tl.constexpr,
    O: tl.constexpr,  # noqa: E741
    K: tl.constexpr,
    WINDOW_START: tl.constexpr,
    PHASE_STEP: tl.constexpr,
    TAP_STEP: tl.constexpr,
    PACKED: tl.constexpr,
    COLUMNS: tl.constexpr,
    ALIGN: tl.constexpr,
    ROWS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    WANT_ARGMAX: tl.constexpr,
    PHASES: tl.constexpr,
    RESIDENT: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_R: tl.constexpr,
    PRECISION: tl.constexpr,
    ROUND: tl.constexpr,
    REGISTERS: tl.constexpr,
    INTERPRETED: tl.constexpr,
) -> tl.tensor:
    """Find the greatest activations of one tile of samples."""
    i_n = (tl.full((), 0, tl.int64) + i_tile) * (BLOCK_M // GROUP)
    b_n = i_n + tl.arange(0, BLOCK_M) // GROUP if BLOCK_M > GROUP else i_n
    b_best = tl.full((BLOCK_M, BLOCK_O), float("-inf"), tl.float32)
    b_argmax = tl.full((BLOCK_M, BLOCK_O), NOWHERE, tl.int32)
    p_x, m_n = rows_of(x, index, b_n, b_n < samples, stride_n * ALIGN, index_n, count, ROWS)
    for t0 in range(0, positions, GROUP * PHASES):
        b_t = t0 + tl.arange(0, BLOCK_M) % GROUP * PHASES
        b_at = WINDOW_START + b_t * PHASE_STEP
        m_t = b_t < positions
        if ROWS == "windows" or BLOCK_M > GROUP:
            m_t = m_t & m_n
        accs = convolve(
            p_x if ROWS == "tokens" else p_x + b_at.to(tl.int64) * stride_l, b_at, m_t, p_w, m_o, resident,
            length, TAP_STEP * stride_l,
            index + b_n * index_n + b_at.to(tl.int64) * index_l if ROWS == "tokens" else None,
            TAP_STEP * index_l, stride_n * ALIGN, count,
            C, K, TAP_STEP, PACKED, COLUMNS, RESIDENT, PHASES, BLOCK_M, BLOCK_O, BLOCK_R, True, ROWS == "tokens",
            PRECISION, ROUND, REGISTERS, INTERPRETED,
        )  # fmt: skip
        for i in tl.static_range(PHASES):
            b_value = accs[i]
            if HAS_BIAS:
                b_value += b_bias[None, :]
            b_best, b_argmax = later_position(b_best, b_argmax, b_value, b_t + i, positions)
    store_greatest(out, argmax, b_best, b_argmax, i_n, b_o, m_o, samples, O, WANT_ARGMAX, GROUP, BLOCK_M, BLOCK_O)


@triton.jit(do_not_specialize=SIZES)
def forward_global_kernel(
    x: tl.tensor,  # (N, C, L), or (V, C) whose rows are found through the index, strides as given
    w: tl.tensor,  # (O, PITCH), of which K * C are used; (K * C, COLUMNS) of which O are; or (O, C, K), contiguous
    bias: tl.tensor,  # (O,), contiguous
    out: tl.tensor,  # (N, O), contiguous
    argmax: tl.tensor,  # (N, O)
    samples: tl.int64,  # N
    length: tl.int32,  # L
    positions: tl.int32,  # the convolution's
    stride_n: tl.int64,  # from row to row of a table or a series
    stride_l: tl.int64,
    index: tl.tensor,  # (N, L) tokens or (N,) starts, strides as given, or None
    index_n: tl.int64,
    index_l: tl.int64,
    count: tl.int64,  # numbers in the index are below it
    C: tl.constexpr,
    O: tl.constexpr,  # noqa: E741
    K: tl.constexpr,
    WINDOW_START: tl.constexpr,  # the first input position, not positive
    PHASE_STEP: tl.constexpr,  # input positions from position to position: the convolution's stride
    TAP_STEP: tl.constexpr,  # input positions from tap to tap
    PITCH: tl.constexpr,
    COLUMNS: tl.constexpr,
    ALIGN: tl.constexpr,
    DENSE: tl.constexpr,
    ROWS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    WANT_ARGMAX: tl.constexpr,
    PHASES: tl.constexpr,
    RESIDENT: tl.constexpr,  # a program keeps the weights and goes from tile to tile
    GROUP: tl.constexpr,  # rows of a tile that are of one sample
    BLOCK_M: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_R: tl.constexpr,
    PRECISION: tl.constexpr,
    ROUND: tl.constexpr,
    REGISTERS: tl.constexpr,
    INTERPRETED: tl.constexpr,
) -> tl.tensor:
    """Find the greatest activations of ``BLOCK_O`` outputs of ``BLOCK_M / GROUP`` samples at a time.

    Of each, a tile computes ``GROUP * PHASES`` positions, and goes on to the next ones.
    """
    TILES_O: tl.constexpr = (O + BLOCK_O - 1) // BLOCK_O
    SAMPLES: tl.constexpr = BLOCK_M // GROUP
    b_o = (tl.program_id(0) % TILES_O) * BLOCK_O + tl.arange(0, BLOCK_O)
    m_o = below(b_o, O, BLOCK_O)
    stride_l = C if DENSE else stride_l * ALIGN
    p_w = w + b_o.to(tl.int64) * (1 if COLUMNS else PITCH if PITCH else C * K)
    resident: tl.tuple = ()
    i_first = tl.program_id(0) // TILES_O
    b_bias = tl.load(bias + b_o, mask=m_o, other=0.0).to(tl.float32) if HAS_BIAS else None
    if RESIDENT:
        resident = load_filters(
            p_w, m_o, tl.arange(0, BLOCK_R), C, K, PITCH > 0, COLUMNS, BLOCK_R, ROUND, INTERPRETED
        )  # fmt: skip
        i_end = ((samples + SAMPLES - 1) // SAMPLES).to(tl.int32)
        for i_tile in range(i_first, i_end, tl.num_programs(0) // TILES_O):
            greatest_tile(
                i_tile, x, out, argmax, p_w, b_o, m_o, b_bias, resident, samples, length, positions,
                stride_n, stride_l, index, index_n, index_l, count,
                C, O, K, WINDOW_START, PHASE_STEP, TAP_STEP, PITCH > 0, COLUMNS, ALIGN, ROWS, HAS_BIAS,
                WANT_ARGMAX, PHASES, RESIDENT, GROUP, BLOCK_M, BLOCK_O, BLOCK_R,
                PRECISION, ROUND, REGISTERS, INTERPRETED,
            )  # fmt: skip
    else:
        greatest_tile(
            i_first, x, out, argmax, p_w, b_o, m_o, b_bias, resident, samples, length, positions,
            stride_n, stride_l, index, index_n, index_l, count,
            C, O, K, WINDOW_START, PHASE_STEP, TAP_STEP, PITCH > 0, COLUMNS, ALIGN, ROWS, HAS_BIAS, WANT_ARGMAX,
            PHASES, RESIDENT, GROUP, BLOCK_M, BLOCK_O, BLOCK_R, PRECISION, ROUND, REGISTERS, INTERPRETED,
        )  # fmt: skip
