"""The fused conv stack's forward pass on the device: one accumulator per pooling phase, nothing reshaped or padded.

A tile is ``BLOCK_M`` pooling windows (rows) by ``BLOCK_O`` output channels. Its convolution at pooling phase ``p``, the
window's ``p``-th position, is a matrix product over ``r = (k, c)``, the kernel's positions and channels as one axis:

    acc_p[m, o] = sum over r of x[window m, position p + k, c] * W[o, k, c]

Then come the bias and the running maximum over ``p`` with the number of the phase that won. The same rows of the input
serve phase ``p`` at ``k + 1`` and phase ``p + 1`` at ``k`` where a phase is as long a step as the kernel's dilation, so
``PHASES`` of them are computed together: row ``j = p + k`` is loaded once and multiplied by every ``W_k`` it meets.

Names: ``i_`` a scalar index, ``b_`` a block, ``m_`` a mask, ``p_`` a block of pointers; shapes stand beside the blocks.
Sizes and strides are run-time numbers that no compilation depends on, channels and window sizes are compile-time ones.
Strides are given in units of ``ALIGN`` elements, so that the compiler knows how far loads may be vectorised.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton import knobs

from .convolution_kernels import convolve, load_filters

__all__ = ["INTERPRETED", "forward_global_kernel", "forward_windows_kernel"]

# Whether Triton's interpreter runs the kernels, on CPU tensors: decided when a kernel is decorated.
INTERPRETED = bool(knobs.runtime.interpret)

NOWHERE = tl.constexpr(2**31 - 1)  # a position that none has

# Numbers that differ from call to call.
SIZES = [
    "rows",
    "windows",
    "length",
    "positions",
    "stride_n",
    "stride_l",
    "stride_c",
    "window_step",
    "window_start",
    "phase_step",
    "tap_step",
    "pool_stride",
    "pool_padding",
    "pool_dilation",
]


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
    p_x = x + b_n * (stride_n * ALIGN)
    b_start = window_start + b_q * window_step
    b_first = b_q * pool_stride - pool_padding  # the convolution's position at phase 0
    b_best = tl.full((BLOCK_M, BLOCK_O), float("-inf"), tl.float32)
    b_won = tl.full((BLOCK_M, BLOCK_O), -1, tl.int32)
    for p0 in range(0, P, PHASES):
        b_at = b_start + p0 * phase_step
        accs = convolve(
            p_x + b_at.to(tl.int64) * stride_l, b_at, m_q, p_w, m_o, resident,
            length, tap_step, tap_step * stride_l, stride_c,
            C, K, PACKED, RESIDENT, PHASES, BLOCK_M, BLOCK_O, BLOCK_R, CHECK, PRECISION, ROUND, INTERPRETED,
        )  # fmt: skip
        for i in tl.static_range(PHASES):
            b_value = accs[i]
            if HAS_BIAS:
                b_value += b_bias[None, :]
            wins = (b_value > b_best) | (b_value != b_value)  # of several NaN the last one, as in torch
            if CHECK:
                b_t = b_first + (p0 + i) * pool_dilation
                wins = wins & ((b_t >= 0) & (b_t < positions) & (p0 + i < P))[:, None]
            b_best = tl.where(wins, b_value, b_best)
            b_won = tl.where(wins, p0 + i, b_won)
    b_out = b_best.to(out.dtype.element_ty)
    b_rounded = b_out.to(tl.float32)
    alive = (b_rounded > 0) | (b_rounded != b_rounded)
    if CHECK:  # a window without a position has no activation whose positive part it could be
        b_skipped = tl.maximum(-b_first + pool_dilation - 1, 0) // pool_dilation
        seen = (b_skipped < P) & (b_first + b_skipped * pool_dilation < positions)
        b_out = tl.where(alive | (seen == 0)[:, None], b_out, 0.0)
    else:
        b_out = tl.where(alive, b_out, 0.0)
    m = m_q[:, None] & m_o[None, :]
    p_last = (i_row + tl.arange(0, BLOCK_M))[:, None] * O + b_o[None, :]
    if OUT_LAST:
        tl.store(out + p_last, b_out, mask=m)
    else:
        tl.store(out + ((b_n * O)[:, None] + b_o[None, :]) * windows + b_q[:, None], b_out, mask=m)
    if WANT_ARGMAX:
        tl.store(argmax + p_last, tl.where(alive, b_won, -1).to(argmax.dtype.element_ty), mask=m)


@triton.jit(do_not_specialize=SIZES)
def forward_windows_kernel(
    x: tl.tensor,  # (N, C, L), strides as given
    w: tl.tensor,  # (O, PITCH), of which K * C are used, or (O, C, K), contiguous
    bias: tl.tensor,  # (O,)
    out: tl.tensor,  # (N, Q, O) or (N, O, Q), contiguous
    argmax: tl.tensor,  # (N, Q, O)
    rows: tl.int64,  # N * Q
    windows: tl.int32,  # Q
    length: tl.int32,  # L
    positions: tl.int32,  # the convolution's
    stride_n: tl.int64,
    stride_l: tl.int64,
    stride_c: tl.int64,
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
                stride_n, stride_l, stride_c, window_step, window_start, phase_step, tap_step,
                pool_stride, pool_padding, pool_dilation,
                C, O, K, P, PITCH > 0, ALIGN, CHECK, OUT_LAST, HAS_BIAS, WANT_ARGMAX, PHASES, RESIDENT,
                BLOCK_M, BLOCK_O, BLOCK_R, PRECISION, ROUND, INTERPRETED,
            )  # fmt: skip
    else:
        pool_tile(
            i_first, x, out, argmax, p_w, b_o, m_o, b_bias, resident, rows, windows, length, positions,
            stride_n, stride_l, stride_c, window_step, window_start, phase_step, tap_step,
            pool_stride, pool_padding, pool_dilation,
            C, O, K, P, PITCH > 0, ALIGN, CHECK, OUT_LAST, HAS_BIAS, WANT_ARGMAX, PHASES, RESIDENT,
            BLOCK_M, BLOCK_O, BLOCK_R, PRECISION, ROUND, INTERPRETED,
        )  # fmt: skip


@triton.jit(do_not_specialize=SIZES)
def forward_global_kernel(
    x: tl.tensor,  # (N, C, L), strides as given
    w: tl.tensor,  # (O, PITCH), of which K * C are used, or (O, C, K), contiguous
    bias: tl.tensor,  # (O,)
    out: tl.tensor,  # (N, O), contiguous
    argmax: tl.tensor,  # (N, O)
    length: tl.int32,  # L
    positions: tl.int32,  # the convolution's
    stride_n: tl.int64,
    stride_l: tl.int64,
    stride_c: tl.int64,
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
    for t0 in range(0, positions, BLOCK_M * PHASES):
        b_t = t0 + tl.arange(0, BLOCK_M) * PHASES
        b_at = window_start + b_t * phase_step
        accs = convolve(
            x + i_n * (stride_n * ALIGN) + b_at.to(tl.int64) * stride_l, b_at, b_t < positions, p_w, m_o, resident,
            length, tap_step, tap_step * stride_l, stride_c,
            C, K, PITCH > 0, RESIDENT, PHASES, BLOCK_M, BLOCK_O, BLOCK_R, True, PRECISION, ROUND, INTERPRETED,
        )  # fmt: skip
        for i in tl.static_range(PHASES):
            b_value = accs[i]
            if HAS_BIAS:
                b_value += b_bias[None, :]
            # A row's positions ascend: its first NaN stays, and so does the first of equal values.
            wins = (b_value > b_best) | ((b_value != b_value) & (b_best == b_best))
            wins = wins & (b_t + i < positions)[:, None]
            b_best = tl.where(wins, b_value, b_best)
            b_won = tl.where(wins, (b_t + i)[:, None], b_won)
    # Of all rows' maxima the first NaN wins, else the first of the greatest.
    is_nan = b_best != b_best
    b_nan_at = tl.min(tl.where(is_nan, b_won, NOWHERE), axis=0)
    b_most = tl.max(tl.where(is_nan, float("-inf"), b_best), axis=0)
    b_won = tl.min(tl.where(b_best == b_most[None, :], b_won, NOWHERE), axis=0)
    b_won = tl.where(b_nan_at < NOWHERE, b_nan_at, b_won)
    b_out = tl.where(b_nan_at < NOWHERE, float("nan"), b_most).to(out.dtype.element_ty)
    b_rounded = b_out.to(tl.float32)
    alive = (b_rounded > 0) | (b_rounded != b_rounded)
    tl.store(out + i_n * O + b_o, tl.where(alive, b_out, 0.0), mask=m_o)
    if WANT_ARGMAX:
        tl.store(argmax + i_n * O + b_o, tl.where(alive, b_won, -1).to(argmax.dtype.element_ty), mask=m_o)
