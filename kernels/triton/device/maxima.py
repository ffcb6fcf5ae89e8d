"""Running maxima on the device, with their argmax: of pooling windows, tile by tile, and of all positions of a sample.

Naming and arguments are as in :mod:`.conv_pool`.
"""

from __future__ import annotations

import triton
import triton.language as tl

__all__ = ["NOWHERE", "later_phase", "later_position", "store_greatest", "store_windows"]

NOWHERE = tl.constexpr(2**31 - 1)  # a position that none has


@triton.jit
def later_phase(
    b_best: tl.tensor,  # (M, O)
    b_argmax: tl.tensor,  # (M, O)
    b_value: tl.tensor,  # (M, O)
    phase: tl.tensor,
    b_t: tl.tensor,  # (M,) the convolution's positions
    positions: tl.tensor,
    P: tl.constexpr,
    CHECK: tl.constexpr,
) -> tl.tensor:
    """Return the maxima of windows, and their argmax, after one more phase."""
    replaces = (b_value > b_best) | (b_value != b_value)  # of several NaN the last one, as in torch
    if CHECK:
        replaces = replaces & ((b_t >= 0) & (b_t < positions) & (phase < P))[:, None]
    return tl.where(replaces, b_value, b_best), tl.where(replaces, phase, b_argmax)


@triton.jit
def store_windows(
    out: tl.tensor,
    argmax: tl.tensor,  # or None
    b_best: tl.tensor,  # (M, O)
    b_argmax: tl.tensor,  # (M, O)
    i_row: tl.tensor,
    b_n: tl.tensor,  # (M,)
    b_q: tl.tensor,  # (M,)
    b_first: tl.tensor,  # (M,) the convolution's position at phase 0
    m_q: tl.tensor,  # (M,)
    b_o: tl.tensor,  # (O,)
    m_o: tl.tensor,  # (O,)
    windows: tl.tensor,
    positions: tl.tensor,
    pool_dilation: tl.tensor,
    O: tl.constexpr,  # noqa: E741
    P: tl.constexpr,
    CHECK: tl.constexpr,
    OUT_LAST: tl.constexpr,
) -> tl.tensor:
    """Store the positive parts of a tile's maxima and their argmax."""
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
    p_last = (i_row + tl.arange(0, b_best.shape[0]))[:, None] * O + b_o[None, :]
    if OUT_LAST:
        tl.store(out + p_last, b_out, mask=m)
    else:
        tl.store(out + ((b_n * O)[:, None] + b_o[None, :]) * windows + b_q[:, None], b_out, mask=m)
    if argmax is not None:
        tl.store(argmax + p_last, tl.where(alive, b_argmax, -1).to(argmax.dtype.element_ty), mask=m)


@triton.jit
def later_position(
    b_best: tl.tensor,  # (M, O)
    b_argmax: tl.tensor,  # (M, O)
    b_value: tl.tensor,  # (M, O)
    b_t: tl.tensor,  # (M,) the convolution's positions
    positions: tl.tensor,
) -> tl.tensor:
    """Return every row's maxima, and their argmax, after one more position of each row."""
    # A row's positions ascend: its first NaN stays, and so does the first of equal values.
    replaces = (b_value > b_best) | ((b_value != b_value) & (b_best == b_best))
    replaces = replaces & (b_t < positions)[:, None]
    return tl.where(replaces, b_value, b_best), tl.where(replaces, b_t[:, None], b_argmax)


@triton.jit
def store_greatest(
    out: tl.tensor,
    argmax: tl.tensor,  # or None
    b_best: tl.tensor,  # (M, O)
    b_argmax: tl.tensor,  # (M, O)
    i_n: tl.tensor,  # the first of the samples
    b_o: tl.tensor,  # (O,)
    m_o: tl.tensor,  # (O,)
    samples: tl.tensor,
    O: tl.constexpr,  # noqa: E741
    GROUP: tl.constexpr,
) -> tl.tensor:
    """Store the positive parts of the greatest of each ``GROUP`` of rows' maxima, a sample's, and their positions."""
    # Of all rows' maxima the first NaN is taken, else the first of the greatest.
    SAMPLES: tl.constexpr = b_best.shape[0] // GROUP
    b_best = tl.reshape(b_best, (SAMPLES, GROUP, b_o.shape[0]))
    b_argmax = tl.reshape(b_argmax, (SAMPLES, GROUP, b_o.shape[0]))
    is_nan = b_best != b_best
    b_nan_at = tl.min(tl.where(is_nan, b_argmax, NOWHERE), axis=1)
    b_most = tl.max(tl.where(is_nan, float("-inf"), b_best), axis=1)
    b_argmax = tl.min(tl.where(b_best == b_most[:, None, :], b_argmax, NOWHERE), axis=1)
    b_argmax = tl.where(b_nan_at < NOWHERE, b_nan_at, b_argmax)
    b_out = tl.where(b_nan_at < NOWHERE, float("nan"), b_most).to(out.dtype.element_ty)
    b_rounded = b_out.to(tl.float32)
    alive = (b_rounded > 0) | (b_rounded != b_rounded)
    b_n = i_n + tl.arange(0, SAMPLES)
    m = (b_n < samples)[:, None] & m_o[None, :]
    p = (b_n * O)[:, None] + b_o[None, :]
    tl.store(out + p, tl.where(alive, b_out, 0.0), mask=m)
    if argmax is not None:
        tl.store(argmax + p, tl.where(alive, b_argmax, -1).to(argmax.dtype.element_ty), mask=m)
