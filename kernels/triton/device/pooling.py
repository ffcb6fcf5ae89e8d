"""Maxima of overlapping windows, from an activation in memory.

Naming and arguments are as in :mod:`.conv_pool`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .convolution import below

__all__ = ["pool_activation_kernel"]


@triton.jit(do_not_specialize=["rows", "windows", "positions"])
def pool_activation_kernel(
    activation: tl.tensor,  # (N, positions, O), not negative; or maxima of so many elements from each position on
    numbers: tl.tensor,  # (N, positions, O) which of its elements each of these maxima is, or None
    out: tl.tensor,  # (N, Q, O) or (N, O, Q), contiguous
    argmax: tl.tensor,  # (N, Q, O), or None
    rows: tl.int64,  # N * Q
    windows: tl.int32,  # Q
    positions: tl.int32,
    O: tl.constexpr,  # noqa: E741
    POOL: tl.constexpr,
    EACH: tl.constexpr,  # elements of a maximum in ``activation``
    OUT_LAST: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_O: tl.constexpr,
) -> tl.tensor:
    """Pool ``BLOCK_M`` windows, of whichever samples, for ``BLOCK_O`` outputs.

    A window is covered by maxima that begin ``EACH`` elements apart; the last one may overlap the one before. Without a
    position a window is minus infinity.
    """
    TILES_O: tl.constexpr = (O + BLOCK_O - 1) // BLOCK_O
    i_row = (tl.program_id(0) // TILES_O).to(tl.int64) * BLOCK_M
    b_o = tl.program_id(0) % TILES_O * BLOCK_O + tl.arange(0, BLOCK_O)
    m_o = below(b_o, O, BLOCK_O)
    b_q = (i_row % windows).to(tl.int32) + tl.arange(0, BLOCK_M)
    b_n = i_row // windows + (b_q // windows).to(tl.int64)
    b_q = b_q % windows
    m_q = i_row + tl.arange(0, BLOCK_M) < rows
    b_best = tl.full((BLOCK_M, BLOCK_O), float("-inf"), tl.float32)
    b_argmax = tl.full((BLOCK_M, BLOCK_O), -1, tl.int32)
    for i_first in range(0, POOL.size, EACH):
        i_element = tl.minimum(i_first, POOL.size - EACH)
        b_t = b_q * POOL.stride - POOL.padding + i_element * POOL.dilation
        m = (m_q & (b_t >= 0) & (b_t < positions))[:, None] & m_o[None, :]
        p = ((b_n * positions + b_t) * O)[:, None] + b_o[None, :]
        b_value = tl.load(activation + p, mask=m, other=float("-inf")).to(tl.float32)
        replaces = (b_value > b_best) | (b_value != b_value)  # of several NaN the last one, as in torch
        b_best = tl.where(replaces, b_value, b_best)
        if argmax is not None:
            b_number = tl.full((BLOCK_M, BLOCK_O), 0, tl.int32)
            if numbers is not None:
                b_number = tl.load(numbers + p, mask=m, other=0).to(tl.int32)
            b_argmax = tl.where(replaces, i_element + b_number, b_argmax)
    m = m_q[:, None] & m_o[None, :]
    p_last = (i_row + tl.arange(0, BLOCK_M))[:, None] * O + b_o[None, :]
    b_out = b_best.to(out.dtype.element_ty)
    if OUT_LAST:
        tl.store(out + p_last, b_out, mask=m)
    else:
        tl.store(out + ((b_n * O)[:, None] + b_o[None, :]) * windows + b_q[:, None], b_out, mask=m)
    if argmax is not None:
        alive = (b_best > 0) | (b_best != b_best)
        tl.store(argmax + p_last, tl.where(alive, b_argmax, -1).to(argmax.dtype.element_ty), mask=m)
