"""The conv stack on rows of a folded table, on the device: no products, ``K`` rows added at every position.

    acc[m, o] = sum over k of folded[row of window m at position p + k, k, o]

Bias, maxima, argmax, naming and arguments are as in :mod:`.conv_pool`. Positions that are padding, or whose
row the table has not, read the folded table's last row, that of zeros: its products are NaN where weights are infinite.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ..groups import Input, Outputs
from .convolution import convolve_one, look_up
from .maxima import NOWHERE, later_phase, later_position, store_greatest, store_windows

__all__ = ["fold_kernel", "folded_global_kernel", "folded_windows_kernel"]

# Numbers that differ from call to call.
SIZES = [
    "rows",
    "windows",
    "length",
    "positions",
    "stride_v",
    "index_n",
    "index_l",
    "count",
    "step",
    "empty",
    "window_step",
    "window_start",
    "phase_step",
    "tap_step",
    "pool_stride",
    "pool_padding",
    "pool_dilation",
]


@triton.jit(do_not_specialize=SIZES)
def fold_kernel(
    table: tl.tensor,  # (V, C), strides as given
    w: tl.tensor,  # packed
    folded: tl.tensor,  # (V + 1, K, WIDTH), contiguous
    rows: tl.int64,  # V
    stride_v: tl.int64,
    W: tl.constexpr,
    TAP: tl.constexpr,  # the weights of one tap, as W
    ALIGN: tl.constexpr,
    WIDTH: tl.constexpr,  # O, rounded up to whole vectors
    TILE: tl.constexpr,
    PRODUCTS: tl.constexpr,
) -> tl.tensor:
    """Multiply ``M`` rows with one tap's weights of ``O`` outputs."""
    TILES_O: tl.constexpr = (W.O + TILE.O - 1) // TILE.O
    b_o = tl.program_id(0) % TILES_O * TILE.O + tl.arange(0, TILE.O)
    k = tl.program_id(0) // TILES_O % W.K
    b_v = (tl.program_id(0) // (TILES_O * W.K)).to(tl.int64) * TILE.M + tl.arange(0, TILE.M)
    outputs = Outputs(p_w=w + b_o.to(tl.int64) * W.pitch + k * W.C, b=b_o, m=b_o < W.O)
    input = Input(x=table, length=0, stride_n=0, stride_l=0, index=None, index_n=0, index_l=0, count=0)
    acc = convolve_one(
        input, table + b_v * (stride_v * ALIGN), None, None, b_v < rows, outputs, TAP, 1, TILE, PRODUCTS, False
    )  # fmt: skip
    p = folded + (b_v * (W.K * WIDTH) + k * WIDTH)[:, None] + b_o[None, :]
    tl.store(p, acc.to(folded.dtype.element_ty), mask=(b_v <= rows)[:, None] & (b_o < WIDTH)[None, :])


@triton.jit
def add_rows(
    folded: tl.tensor,
    p_index: tl.tensor,  # (BLOCK_M,) or one: where the samples' tokens lie, or their starts
    b_at: tl.tensor,  # (BLOCK_M,) the position of tap 0
    m_x: tl.tensor,  # (BLOCK_M,)
    b_o: tl.tensor,  # (BLOCK_O,)
    length: tl.tensor,
    index_l: tl.tensor,
    count: tl.tensor,
    step: tl.tensor,
    empty: tl.tensor,  # the row of zeros
    tap_step: tl.tensor,
    K: tl.constexpr,
    WIDTH: tl.constexpr,
    CHECK: tl.constexpr,
    TOKENS: tl.constexpr,
    UNROLL: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_O: tl.constexpr,
) -> tl.tensor:
    """Return the sums of ``K`` rows, ``(BLOCK_M, BLOCK_O)`` in float32, of which ``UNROLL`` are loaded together."""
    acc = tl.full((BLOCK_M, BLOCK_O), 0.0, tl.float32)
    for k0 in range(0, K, UNROLL):
        for i in tl.static_range(UNROLL):
            k = k0 + i
            b_i = b_at + k * tap_step
            m_k = m_x
            if K % UNROLL:  # there may be no token behind the last tap's
                m_k = m_k & (k < K)
            m = m_k
            if CHECK:
                m = m & (b_i >= 0) & (b_i < length)
            if TOKENS:
                b_row, m = look_up(p_index + b_i.to(tl.int64) * index_l, m, count)
            else:
                b_row, m = look_up(p_index, m, count)
                b_row += b_i.to(tl.int64) * step
            b_row = tl.where(m, b_row, empty)
            p = folded + (b_row * (K * WIDTH) + k * WIDTH)[:, None] + b_o[None, :]
            acc += tl.load(p, mask=m_k[:, None] & (b_o < WIDTH)[None, :], other=0.0).to(tl.float32)
    return acc


@triton.jit(do_not_specialize=SIZES)
def folded_windows_kernel(
    folded: tl.tensor,  # (V + 1, K, WIDTH), contiguous
    bias: tl.tensor,  # (O,), contiguous, or None
    out: tl.tensor,  # (N, Q, O), contiguous
    argmax: tl.tensor,  # (N, Q, O), or None
    rows: tl.int64,  # N * Q
    windows: tl.int32,  # Q
    length: tl.int32,  # L
    positions: tl.int32,  # the convolution's
    index: tl.tensor,  # (N, L) tokens or (N,) starts, strides as given
    index_n: tl.int64,
    index_l: tl.int64,
    count: tl.int64,  # numbers in the index are below it
    step: tl.int64,  # rows from position to position of a window
    empty: tl.int64,  # V
    window_step: tl.int32,  # input positions from window to window
    window_start: tl.int32,  # the first window's first input position, not positive
    phase_step: tl.int32,  # input positions from phase to phase
    tap_step: tl.int32,  # input positions from tap to tap
    pool_stride: tl.int32,
    pool_padding: tl.int32,
    pool_dilation: tl.int32,
    O: tl.constexpr,  # noqa: E741
    K: tl.constexpr,
    P: tl.constexpr,
    WIDTH: tl.constexpr,
    CHECK: tl.constexpr,
    TOKENS: tl.constexpr,
    UNROLL: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_O: tl.constexpr,
) -> tl.tensor:
    """Pool ``BLOCK_M`` windows, of whichever samples, for ``BLOCK_O`` outputs."""
    TILES_O: tl.constexpr = (O + BLOCK_O - 1) // BLOCK_O
    b_o = (tl.program_id(0) % TILES_O) * BLOCK_O + tl.arange(0, BLOCK_O)
    m_o = b_o < O
    if bias is not None:
        b_bias = tl.load(bias + b_o, mask=m_o, other=0.0).to(tl.float32)
    i_row = (tl.program_id(0) // TILES_O).to(tl.int64) * BLOCK_M
    b_q = (i_row % windows).to(tl.int32) + tl.arange(0, BLOCK_M)
    b_n = i_row // windows + (b_q // windows).to(tl.int64)
    b_q = b_q % windows
    m_q = i_row + tl.arange(0, BLOCK_M) < rows
    p_index = index + b_n * index_n
    b_start = window_start + b_q * window_step
    b_first = b_q * pool_stride - pool_padding  # the convolution's position at phase 0
    b_best = tl.full((BLOCK_M, BLOCK_O), float("-inf"), tl.float32)
    b_argmax = tl.full((BLOCK_M, BLOCK_O), -1, tl.int32)
    for p in range(P):
        b_value = add_rows(
            folded, p_index, b_start + p * phase_step, m_q, b_o, length, index_l, count, step, empty, tap_step,
            K, WIDTH, CHECK, TOKENS, UNROLL, BLOCK_M, BLOCK_O,
        )  # fmt: skip
        if bias is not None:
            b_value += b_bias[None, :]
        b_t = b_first + p * pool_dilation
        b_best, b_argmax = later_phase(b_best, b_argmax, b_value, p, b_t, positions, P, CHECK)
    store_windows(
        out, argmax, b_best, b_argmax, i_row, b_n, b_q, b_first, m_q, b_o, m_o, windows, positions, pool_dilation,
        O, P, CHECK, True,
    )  # fmt: skip


@triton.jit(do_not_specialize=SIZES)
def folded_global_kernel(
    folded: tl.tensor,  # (V + 1, K, WIDTH), contiguous
    bias: tl.tensor,  # (O,), contiguous, or None
    out: tl.tensor,  # (N, O), contiguous
    argmax: tl.tensor,  # (N, O), or None
    length: tl.int32,  # L
    positions: tl.int32,  # the convolution's
    index: tl.tensor,  # (N, L) tokens or (N,) starts, strides as given
    index_n: tl.int64,
    index_l: tl.int64,
    count: tl.int64,  # numbers in the index are below it
    step: tl.int64,  # rows from position to position of a window
    empty: tl.int64,  # V
    window_start: tl.int32,  # the first input position, not positive
    phase_step: tl.int32,  # input positions from position to position: the convolution's stride
    tap_step: tl.int32,  # input positions from tap to tap
    O: tl.constexpr,  # noqa: E741
    K: tl.constexpr,
    WIDTH: tl.constexpr,
    CHECK: tl.constexpr,
    TOKENS: tl.constexpr,
    UNROLL: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_O: tl.constexpr,
) -> tl.tensor:
    """Find one sample's greatest activations of ``BLOCK_O`` outputs, ``BLOCK_M`` positions at a time."""
    TILES_O: tl.constexpr = (O + BLOCK_O - 1) // BLOCK_O
    i_n = (tl.program_id(0) // TILES_O).to(tl.int64)
    b_o = (tl.program_id(0) % TILES_O) * BLOCK_O + tl.arange(0, BLOCK_O)
    m_o = b_o < O
    if bias is not None:
        b_bias = tl.load(bias + b_o, mask=m_o, other=0.0).to(tl.float32)
    p_index = index + i_n * index_n + tl.zeros((BLOCK_M,), tl.int64)
    b_best = tl.full((BLOCK_M, BLOCK_O), float("-inf"), tl.float32)
    b_argmax = tl.full((BLOCK_M, BLOCK_O), NOWHERE, tl.int32)
    for t0 in range(0, positions, BLOCK_M):
        b_t = t0 + tl.arange(0, BLOCK_M)
        b_value = add_rows(
            folded, p_index, window_start + b_t * phase_step, b_t < positions, b_o, length,
            index_l, count, step, empty, tap_step, K, WIDTH, CHECK, TOKENS, UNROLL, BLOCK_M, BLOCK_O,
        )  # fmt: skip
        if bias is not None:
            b_value += b_bias[None, :]
        b_best, b_argmax = later_position(b_best, b_argmax, b_value, b_t, positions)
    store_greatest(out, argmax, b_best, b_argmax, i_n, b_o, m_o, i_n + 1, O, BLOCK_M)
