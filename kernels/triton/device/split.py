"""The forward pass in two steps, for layers whose windows are too few to keep a GPU busy.

First the convolution's sums of all positions, each shared by ``splits`` programs that have a part of the reduction;
then, of their parts, the pooling windows' maxima. Where one program would go through all of a window's positions, all
taps and all channels one behind the other, all of these are side by side here. Naming and arguments are as in
:mod:`.conv_pool`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .conv_pool import INTERPRETED, rows_of
from .convolution import below, convolve_one
from .maxima import NOWHERE, later_phase, later_position, store_greatest, store_windows

__all__ = ["INTERPRETED", "pool_sums_globally_kernel", "pool_sums_kernel", "sums_kernel"]

SIZES = [
    "rows", "samples", "windows", "length", "positions", "splits", "part",
    "stride_n", "stride_l", "index_n", "index_l", "count",
]  # fmt: skip


@triton.jit(do_not_specialize=SIZES)
def sums_kernel(
    x: tl.tensor,  # (N, C, L), or (V, C) whose windows begin at the index, strides as given
    w: tl.tensor,  # as in forward_windows_kernel
    sums: tl.tensor,  # (splits, N * positions, O) float32
    rows: tl.int64,  # N * positions
    length: tl.int32,  # L
    positions: tl.int32,  # the convolution's
    part: tl.int32,  # of the reduction, for a program: a multiple of BLOCK_R
    stride_n: tl.int64,
    stride_l: tl.int64,
    index: tl.tensor,  # (N,) starts, or None
    index_n: tl.int64,
    count: tl.int64,
    C: tl.constexpr,
    O: tl.constexpr,  # noqa: E741
    K: tl.constexpr,
    START: tl.constexpr,  # the first position's first input position, not positive
    STEP: tl.constexpr,  # input positions from position to position
    TAP_STEP: tl.constexpr,  # input positions from tap to tap
    PITCH: tl.constexpr,
    COLUMNS: tl.constexpr,
    ALIGN: tl.constexpr,
    CHECK: tl.constexpr,  # positions may lie outside the input
    ROWS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_R: tl.constexpr,
    PRECISION: tl.constexpr,
    ROUND: tl.constexpr,
    REGISTERS: tl.constexpr,
    INTERPRETED: tl.constexpr,
) -> tl.tensor:
    """Sum one part of the reduction for ``BLOCK_M`` positions, of whichever samples, and ``BLOCK_O`` outputs."""
    TILES_O: tl.constexpr = (O + BLOCK_O - 1) // BLOCK_O
    tiles = (rows + BLOCK_M - 1) // BLOCK_M
    i_tile = (tl.program_id(0) // TILES_O).to(tl.int64)
    i_split, i_row = i_tile // tiles, i_tile % tiles * BLOCK_M
    b_o = tl.program_id(0) % TILES_O * BLOCK_O + tl.arange(0, BLOCK_O)
    m_o = below(b_o, O, BLOCK_O)
    b_t = (i_row % positions).to(tl.int32) + tl.arange(0, BLOCK_M)
    b_n = i_row // positions + (b_t // positions).to(tl.int64)
    b_t = b_t % positions
    m_t = i_row + tl.arange(0, BLOCK_M) < rows
    p_x, m_x = rows_of(x, index, b_n, m_t, stride_n * ALIGN, index_n, count, ROWS)
    b_at = START + b_t * STEP
    stride_l = stride_l * ALIGN
    p_w = w + b_o.to(tl.int64) * (1 if COLUMNS else PITCH if PITCH else C * K)
    first = i_split.to(tl.int32) * part
    acc = convolve_one(
        p_x + b_at.to(tl.int64) * stride_l, b_at, m_x, p_w, m_o, length, TAP_STEP * stride_l, None, None, None, None,
        C, K, TAP_STEP, PITCH > 0, COLUMNS, BLOCK_M, BLOCK_O, BLOCK_R, CHECK, False,
        PRECISION, ROUND, REGISTERS, INTERPRETED, first, tl.minimum(first + part, K * C),
    )  # fmt: skip
    p_sums = sums + (i_split * rows + i_row) * O + (tl.arange(0, BLOCK_M) * O)[:, None] + b_o[None, :]
    tl.store(p_sums, acc, mask=m_t[:, None] & m_o[None, :])


@triton.jit
def summed(
    p_sums: tl.tensor,  # (BLOCK_M, BLOCK_O) where the first parts are
    m: tl.tensor,  # (BLOCK_M, BLOCK_O)
    b_bias: tl.tensor,  # (BLOCK_O,) or None
    numbers: tl.tensor,  # from part to part
    splits: tl.tensor,
    HAS_BIAS: tl.constexpr,
) -> tl.tensor:
    """Return the convolution's results, the sums of all parts."""
    b_value = tl.load(p_sums, mask=m, other=0.0)
    for i_split in range(1, splits):
        b_value += tl.load(p_sums + i_split * numbers, mask=m, other=0.0)
    if HAS_BIAS:
        b_value += b_bias[None, :]
    return b_value


@triton.jit(do_not_specialize=SIZES)
def pool_sums_kernel(
    sums: tl.tensor,  # (splits, N * positions, O) float32
    bias: tl.tensor,  # (O,), contiguous
    out: tl.tensor,  # (N, Q, O) or (N, O, Q), contiguous
    argmax: tl.tensor,  # (N, Q, O)
    rows: tl.int64,  # N * Q
    samples: tl.int64,  # N
    windows: tl.int32,  # Q
    positions: tl.int32,
    splits: tl.int32,
    O: tl.constexpr,  # noqa: E741
    P: tl.constexpr,
    POOL_STRIDE: tl.constexpr,
    POOL_PADDING: tl.constexpr,
    POOL_DILATION: tl.constexpr,
    OUT_LAST: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    WANT_ARGMAX: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_O: tl.constexpr,
) -> tl.tensor:
    """Pool ``BLOCK_M`` windows, of whichever samples, for ``BLOCK_O`` outputs."""
    TILES_O: tl.constexpr = (O + BLOCK_O - 1) // BLOCK_O
    i_row = (tl.program_id(0) // TILES_O).to(tl.int64) * BLOCK_M
    b_o = tl.program_id(0) % TILES_O * BLOCK_O + tl.arange(0, BLOCK_O)
    m_o = below(b_o, O, BLOCK_O)
    b_q = (i_row % windows).to(tl.int32) + tl.arange(0, BLOCK_M)
    b_n = i_row // windows + (b_q // windows).to(tl.int64)
    b_q = b_q % windows
    m_q = i_row + tl.arange(0, BLOCK_M) < rows
    b_first = b_q * POOL_STRIDE - POOL_PADDING  # the convolution's position at phase 0
    b_bias = tl.load(bias + b_o, mask=m_o, other=0.0).to(tl.float32) if HAS_BIAS else None
    b_best = tl.full((BLOCK_M, BLOCK_O), float("-inf"), tl.float32)
    b_argmax = tl.full((BLOCK_M, BLOCK_O), -1, tl.int32)
    for p in range(P):
        b_t = b_first + p * POOL_DILATION
        m_t = m_q & (b_t >= 0) & (b_t < positions)
        p_sums = sums + ((b_n * positions + b_t) * O)[:, None] + b_o[None, :]
        b_value = summed(p_sums, m_t[:, None] & m_o[None, :], b_bias, samples * positions * O, splits, HAS_BIAS)
        b_best, b_argmax = later_phase(b_best, b_argmax, b_value, p, b_t, positions, P, True)
    store_windows(
        out, argmax, b_best, b_argmax, i_row, b_n, b_q, b_first, m_q, b_o, m_o, windows, positions, POOL_DILATION,
        O, P, True, OUT_LAST, WANT_ARGMAX, BLOCK_M,
    )  # fmt: skip


@triton.jit(do_not_specialize=SIZES)
def pool_sums_globally_kernel(
    sums: tl.tensor,  # (splits, N * positions, O) float32
    bias: tl.tensor,  # (O,), contiguous
    out: tl.tensor,  # (N, O), contiguous
    argmax: tl.tensor,  # (N, O)
    samples: tl.int64,  # N
    positions: tl.int32,
    splits: tl.int32,
    O: tl.constexpr,  # noqa: E741
    HAS_BIAS: tl.constexpr,
    WANT_ARGMAX: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_O: tl.constexpr,
) -> tl.tensor:
    """Find the greatest activations of ``BLOCK_O`` outputs of one sample, ``BLOCK_M`` positions at a time."""
    TILES_O: tl.constexpr = (O + BLOCK_O - 1) // BLOCK_O
    i_n = (tl.program_id(0) // TILES_O).to(tl.int64)
    b_o = tl.program_id(0) % TILES_O * BLOCK_O + tl.arange(0, BLOCK_O)
    m_o = below(b_o, O, BLOCK_O)
    b_bias = tl.load(bias + b_o, mask=m_o, other=0.0).to(tl.float32) if HAS_BIAS else None
    b_best = tl.full((BLOCK_M, BLOCK_O), float("-inf"), tl.float32)
    b_argmax = tl.full((BLOCK_M, BLOCK_O), NOWHERE, tl.int32)
    for t0 in range(0, positions, BLOCK_M):
        b_t = t0 + tl.arange(0, BLOCK_M)
        p_sums = sums + ((i_n * positions + b_t) * O)[:, None] + b_o[None, :]
        m = (b_t < positions)[:, None] & m_o[None, :]
        b_value = summed(p_sums, m, b_bias, samples * positions * O, splits, HAS_BIAS)
        b_best, b_argmax = later_position(b_best, b_argmax, b_value, b_t, positions)
    store_greatest(out, argmax, b_best, b_argmax, i_n, b_o, m_o, samples, O, WANT_ARGMAX, BLOCK_M, BLOCK_M, BLOCK_O)
