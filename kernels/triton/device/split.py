"""The forward pass in two steps, for layers whose windows are too few to keep a GPU busy.

First the convolution's sums of all positions, each shared by ``splits`` programs that have a part of the reduction;
then, of their parts, the pooling windows' maxima. Where one program would go through all of a window's positions, all
taps and all channels one behind the other, all of these are side by side here. Naming and arguments are as in
:mod:`.conv_pool`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ..groups import Input
from .conv_pool import rows_of
from .convolution import below, convolve_one, outputs_of
from .maxima import NOWHERE, later_phase, later_position, store_greatest, store_windows

__all__ = ["pool_sums_globally_kernel", "pool_sums_kernel", "sums_kernel"]

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
    positions: tl.int32,  # the convolution's
    part: tl.int32,  # of the reduction, for a program: blocks of R
    length: tl.int32,  # L
    stride_n: tl.int64,
    stride_l: tl.int64,
    index: tl.tensor,  # (N,) starts, or None
    index_n: tl.int64,
    index_l: tl.int64,
    count: tl.int64,
    W: tl.constexpr,
    STEPS: tl.constexpr,
    ROWS: tl.constexpr,
    TILE: tl.constexpr,
    PRODUCTS: tl.constexpr,
    CHECK: tl.constexpr,  # positions may lie outside the input
) -> tl.tensor:
    """Sum one part of the reduction for ``M`` positions, of whichever samples, and ``O`` outputs."""
    TILES_O: tl.constexpr = (W.O + TILE.O - 1) // TILE.O
    tiles = (rows + TILE.M - 1) // TILE.M
    i_tile = (tl.program_id(0) // TILES_O).to(tl.int64)
    i_split, i_row = i_tile // tiles, i_tile % tiles * TILE.M
    outputs = outputs_of(tl.program_id(0) % TILES_O, w, W, TILE)
    input = Input(
        x=x, length=length, stride_n=stride_n * ROWS.align, stride_l=stride_l * ROWS.align,
        index=index, index_n=index_n, index_l=index_l, count=count,
    )  # fmt: skip
    b_t = (i_row % positions).to(tl.int32) + tl.arange(0, TILE.M)
    b_n = i_row // positions + (b_t // positions).to(tl.int64)
    b_t = b_t % positions
    m_t = i_row + tl.arange(0, TILE.M) < rows
    p_x, m_x = rows_of(input, b_n, m_t, ROWS)
    b_at = STEPS.start + b_t * STEPS.phase
    part = part * TILE.R  # known to be a multiple: loads are as wide as the rows allow
    first = i_split.to(tl.int32) * part
    acc = convolve_one(
        input, p_x + b_at.to(tl.int64) * input.stride_l, None, b_at, m_x, outputs,
        W, STEPS.tap, TILE, PRODUCTS, CHECK, first, tl.minimum(first + part, W.K * W.C),
    )  # fmt: skip
    p_sums = sums + (i_split * rows + i_row) * W.O + (tl.arange(0, TILE.M) * W.O)[:, None] + outputs.b[None, :]
    tl.store(p_sums, acc, mask=m_t[:, None] & outputs.m[None, :])


@triton.jit
def summed(
    p_sums: tl.tensor,  # (BLOCK_M, BLOCK_O) where the first parts are
    m: tl.tensor,  # (BLOCK_M, BLOCK_O)
    b_bias: tl.tensor,  # (BLOCK_O,) or None
    numbers: tl.tensor,  # from part to part
    splits: tl.tensor,
) -> tl.tensor:
    """Return the convolution's results, the sums of all parts."""
    b_value = tl.load(p_sums, mask=m, other=0.0)
    for i_split in range(1, splits):
        b_value += tl.load(p_sums + i_split * numbers, mask=m, other=0.0)
    if b_bias is not None:
        b_value += b_bias[None, :]
    return b_value


@triton.jit(do_not_specialize=SIZES)
def pool_sums_kernel(
    sums: tl.tensor,  # (splits, N * positions, O) float32
    bias: tl.tensor,  # (O,), contiguous, or None
    out: tl.tensor,  # (N, Q, O) or (N, O, Q), contiguous
    argmax: tl.tensor,  # (N, Q, O), or None
    rows: tl.int64,  # N * Q
    samples: tl.int64,  # N
    windows: tl.int32,  # Q
    positions: tl.int32,
    splits: tl.int32,
    O: tl.constexpr,  # noqa: E741
    POOL: tl.constexpr,
    OUT_LAST: tl.constexpr,
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
    b_first = b_q * POOL.stride - POOL.padding  # the convolution's position at phase 0
    b_bias = tl.load(bias + b_o, mask=m_o, other=0.0).to(tl.float32) if bias is not None else None
    b_best = tl.full((BLOCK_M, BLOCK_O), float("-inf"), tl.float32)
    b_argmax = tl.full((BLOCK_M, BLOCK_O), -1, tl.int32)
    for p in range(POOL.size):
        b_t = b_first + p * POOL.dilation
        m_t = m_q & (b_t >= 0) & (b_t < positions)
        p_sums = sums + ((b_n * positions + b_t) * O)[:, None] + b_o[None, :]
        b_value = summed(p_sums, m_t[:, None] & m_o[None, :], b_bias, samples * positions * O, splits)
        b_best, b_argmax = later_phase(b_best, b_argmax, b_value, p, b_t, positions, POOL.size, True)
    store_windows(
        out, argmax, b_best, b_argmax, i_row, b_n, b_q, b_first, m_q, b_o, m_o, windows, positions, POOL.dilation,
        O, POOL.size, True, OUT_LAST,
    )  # fmt: skip


@triton.jit(do_not_specialize=SIZES)
def pool_sums_globally_kernel(
    sums: tl.tensor,  # (splits, N * positions, O) float32
    bias: tl.tensor,  # (O,), contiguous, or None
    out: tl.tensor,  # (N, O), contiguous
    argmax: tl.tensor,  # (N, O), or None
    samples: tl.int64,  # N
    positions: tl.int32,
    splits: tl.int32,
    O: tl.constexpr,  # noqa: E741
    BLOCK_M: tl.constexpr,
    BLOCK_O: tl.constexpr,
) -> tl.tensor:
    """Find the greatest activations of ``BLOCK_O`` outputs of one sample, ``BLOCK_M`` positions at a time."""
    TILES_O: tl.constexpr = (O + BLOCK_O - 1) // BLOCK_O
    i_n = (tl.program_id(0) // TILES_O).to(tl.int64)
    b_o = tl.program_id(0) % TILES_O * BLOCK_O + tl.arange(0, BLOCK_O)
    m_o = below(b_o, O, BLOCK_O)
    b_bias = tl.load(bias + b_o, mask=m_o, other=0.0).to(tl.float32) if bias is not None else None
    b_best = tl.full((BLOCK_M, BLOCK_O), float("-inf"), tl.float32)
    b_argmax = tl.full((BLOCK_M, BLOCK_O), NOWHERE, tl.int32)
    for t0 in range(0, positions, BLOCK_M):
        b_t = t0 + tl.arange(0, BLOCK_M)
        p_sums = sums + ((i_n * positions + b_t) * O)[:, None] + b_o[None, :]
        m = (b_t < positions)[:, None] & m_o[None, :]
        b_value = summed(p_sums, m, b_bias, samples * positions * O, splits)
        b_best, b_argmax = later_position(b_best, b_argmax, b_value, b_t, positions)
    store_greatest(out, argmax, b_best, b_argmax, i_n, b_o, m_o, samples, O, BLOCK_M)
