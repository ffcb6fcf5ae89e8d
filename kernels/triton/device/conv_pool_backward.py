"""The fused conv stack's gradients on the device. The gradient of the convolution never exists in memory.

At a convolution's position ``t`` it is ``g[n, o, q]`` where window ``q``'s maximum is at ``t``, and 0 elsewhere (a sum
over windows where they overlap). Both kernels make tiles of it, positions x outputs, from the pooled gradient and
``argmax``:

    dx[n, i, c] = sum over k, o of dY[n, (i + left - k * dilation) / stride, o] * W[o, k, c]
    dW[o, k, c] = sum over n, t of dY[n, t, o] * x[n, t * stride - left + k * dilation, c]

Sums over samples are cut into splits, each of which writes a partial sum of its own: no atomics, the same bits on every
run. Zeros are multiplied, too, so that NaN and infinities reach the gradients that they reach in torch; an input's
gradient that meets one is computed again without the taps that the convolution has at no position. Naming and arguments
are as in :mod:`.conv_pool`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ..groups import Upstream
from .convolution import factor, load_tap, look_up

__all__ = ["input_gradient_kernel", "weight_gradient_kernel"]

# Numbers that differ from call to call.
SIZES = [
    "rows",
    "rows_of_split",
    "windows",
    "length",
    "positions",
    "gradient_n",
    "gradient_q",
    "stride_n",
    "stride_l",
    "index_n",
    "index_l",
    "count",
]


@triton.jit
def arriving(
    upstream: Upstream,
    b_n: tl.tensor,  # (M,) samples
    b_t: tl.tensor,  # (M,) the convolution's positions
    m_t: tl.tensor,  # (M,)
    b_o: tl.tensor,  # (O,)
    m_o: tl.tensor,  # (O,)
    W: tl.constexpr,
    POOL: tl.constexpr,
    OVERLAP: tl.constexpr,  # how many windows may see a position
) -> tl.tensor:
    """Return the gradient that arrives at the convolution's results, ``(M, O)`` in float32."""
    b_from = b_t + POOL.padding
    b_last = b_from // POOL.stride
    b_dy = tl.full((b_t.shape[0], b_o.shape[0]), 0.0, tl.float32)
    for i in range(OVERLAP):
        b_q = b_last - i
        b_rest = b_from - b_q * POOL.stride
        b_p = b_rest // POOL.dilation
        seen = m_t & (b_q >= 0) & (b_q < upstream.windows) & (b_p * POOL.dilation == b_rest) & (b_p < POOL.size)
        m = seen[:, None] & m_o[None, :]
        p_argmax = upstream.argmax + ((b_n * upstream.windows + b_q) * W.O)[:, None] + b_o[None, :]
        b_argmax = tl.load(p_argmax, mask=m, other=-1)
        b_offset = (b_n * upstream.stride_n + b_q.to(tl.int64) * upstream.stride_q)[:, None]
        b_g = tl.load(upstream.gradient + b_offset + b_o[None, :], mask=m, other=0.0)
        b_dy += tl.where(b_argmax.to(tl.int32) == b_p[:, None], b_g.to(tl.float32), 0.0)
    return b_dy


@triton.jit
def meeting(
    b_i: tl.tensor,  # (M,) the input's positions
    m_i: tl.tensor,  # (M,)
    k: tl.tensor,
    positions: tl.tensor,
    TAPS: tl.constexpr,
) -> tl.tensor:
    """Return at which positions of the convolution tap ``k`` meets the input's, and where there is one."""
    b_from = b_i + TAPS.left - k * TAPS.dilation
    b_t = b_from // TAPS.stride
    return b_t, m_i & (b_from >= 0) & (b_t * TAPS.stride == b_from) & (b_t < positions)


@triton.jit
def store_apart(
    upstream: Upstream,
    w: tl.tensor,
    dx: tl.tensor,
    i_row: tl.tensor,
    b_n: tl.tensor,  # (M,) samples
    b_i: tl.tensor,  # (M,) the input's positions
    m_i: tl.tensor,  # (M,)
    i_c: tl.tensor,
    positions: tl.tensor,
    W: tl.constexpr,
    TAPS: tl.constexpr,
    POOL: tl.constexpr,
    OVERLAP: tl.constexpr,
    TILE: tl.constexpr,
    PRODUCTS: tl.constexpr,
) -> tl.tensor:
    """Store the gradient of 16 channels from ``i_c`` on; a tap counts only where the convolution has it."""
    TILES_O: tl.constexpr = (W.O + TILE.O - 1) // TILE.O
    b_c = i_c + tl.arange(0, 16)
    m_c = b_c < W.C
    acc = tl.full((TILE.M, 16), 0.0, tl.float32)
    for step in range(W.K * TILES_O):
        k = step // TILES_O
        b_o = (step % TILES_O) * TILE.O + tl.arange(0, TILE.O)
        m_o = b_o < W.O
        b_t, m_t = meeting(b_i, m_i, k, positions, TAPS)
        b_dy = arriving(upstream, b_n, b_t, m_t, b_o, m_o, W, POOL, OVERLAP).to(w.dtype.element_ty)
        b_dy, b_w = factor(b_dy, PRODUCTS.rounds), load_tap(w, b_o, b_c, m_c, k, W, TILE)
        acc += tl.where(m_t[:, None], tl.dot(b_dy, b_w, input_precision=PRODUCTS.precision), 0.0)
    p_dx = dx + ((i_row + tl.arange(0, TILE.M)) * W.C)[:, None] + b_c[None, :]
    tl.store(p_dx, acc.to(dx.dtype.element_ty), mask=m_i[:, None] & m_c[None, :])


@triton.jit(do_not_specialize=SIZES)
def input_gradient_kernel(
    gradient: tl.tensor,  # (N, O, Q), strides as given
    argmax: tl.tensor,  # (N, Q, O)
    w: tl.tensor,  # packed
    dx: tl.tensor,  # (N, L, C), contiguous
    rows: tl.int64,  # N * L
    windows: tl.int32,  # Q
    length: tl.int32,  # L
    positions: tl.int32,  # the convolution's
    gradient_n: tl.int64,
    gradient_q: tl.int64,
    W: tl.constexpr,
    TAPS: tl.constexpr,
    POOL: tl.constexpr,
    OVERLAP: tl.constexpr,
    ALIGN: tl.constexpr,
    TILE: tl.constexpr,
    PRODUCTS: tl.constexpr,
    APART: tl.constexpr,  # see Layer.apart
) -> tl.tensor:
    """Compute the gradient of ``M`` input positions, of whichever samples, and ``C`` channels."""
    TILES_C: tl.constexpr = (W.C + TILE.C - 1) // TILE.C
    TILES_O: tl.constexpr = (W.O + TILE.O - 1) // TILE.O
    # Exact products are added up as torch does: a tap's, then the taps. One sum over 1,024 outputs x 7 taps has twice
    # torch's error.
    BY_TAP: tl.constexpr = PRODUCTS.precision == "ieee" and TILES_O > 1
    upstream = Upstream(
        gradient=gradient, argmax=argmax, windows=windows, stride_n=gradient_n * ALIGN, stride_q=gradient_q * ALIGN
    )  # fmt: skip
    i_row = (tl.program_id(0) // TILES_C).to(tl.int64) * TILE.M
    b_c = (tl.program_id(0) % TILES_C) * TILE.C + tl.arange(0, TILE.C)
    m_c = b_c < W.C
    b_i = (i_row % length).to(tl.int32) + tl.arange(0, TILE.M)
    b_n = i_row // length + (b_i // length).to(tl.int64)
    b_i = b_i % length
    m_i = i_row + tl.arange(0, TILE.M) < rows
    acc = tl.full((TILE.M, TILE.C), 0.0, tl.float32)
    total = acc
    for k in range(W.K):
        b_t, m_t = meeting(b_i, m_i, k, positions, TAPS)
        for o0 in range(0, W.O, TILE.O):
            b_o = o0 + tl.arange(0, TILE.O)
            b_dy = arriving(upstream, b_n, b_t, m_t, b_o, b_o < W.O, W, POOL, OVERLAP).to(w.dtype.element_ty)
            b_dy, b_w = factor(b_dy, PRODUCTS.rounds), load_tap(w, b_o, b_c, m_c, k, W, TILE)
            acc = tl.dot(b_dy, b_w, acc, input_precision=PRODUCTS.precision)
        if BY_TAP:
            total += acc
            acc = tl.full((TILE.M, TILE.C), 0.0, tl.float32)
    if BY_TAP:
        acc = total
    m = m_i[:, None] & m_c[None, :]
    p_dx = dx + ((i_row + tl.arange(0, TILE.M)) * W.C)[:, None] + b_c[None, :]
    tl.store(p_dx, acc.to(dx.dtype.element_ty), mask=m)
    if APART:  # noqa: SIM102  (told when it is compiled)
        if tl.max(tl.max((acc != acc).to(tl.int32), axis=1), axis=0) > 0:
            tl.debug_barrier()  # what was stored is stored again, by other threads
            for i_c in range(0, TILE.C, 16):  # few at once, whose sums take no registers from the others
                store_apart(
                    upstream, w, dx, i_row, b_n, b_i, m_i, tl.program_id(0) % TILES_C * TILE.C + i_c,
                    positions, W, TAPS, POOL, OVERLAP, TILE, PRODUCTS,
                )  # fmt: skip


@triton.jit(do_not_specialize=SIZES)
def weight_gradient_kernel(
    gradient: tl.tensor,  # (N, O, Q), strides as given
    argmax: tl.tensor,  # (N, Q, O)
    x: tl.tensor,  # (N, C, L), or (V, C) whose rows are found through the index, strides as given
    partials: tl.tensor,  # (splits, O * K * C + O), of the weights as (O, K, C), then of the bias
    rows: tl.int64,  # N * positions
    rows_of_split: tl.int64,  # a multiple of M
    windows: tl.int32,  # Q
    positions: tl.int32,  # the convolution's
    gradient_n: tl.int64,
    gradient_q: tl.int64,
    length: tl.int32,  # L
    stride_n: tl.int64,
    stride_l: tl.int64,
    index: tl.tensor,  # (N, L) tokens or (N,) starts, strides as given, or None
    index_n: tl.int64,
    index_l: tl.int64,
    count: tl.int64,  # numbers in the index are below it
    W: tl.constexpr,
    TAPS: tl.constexpr,
    POOL: tl.constexpr,
    OVERLAP: tl.constexpr,
    ALIGN: tl.constexpr,  # the gradient's
    ROWS: tl.constexpr,
    WANT_W: tl.constexpr,
    WANT_B: tl.constexpr,
    TILE: tl.constexpr,
    PRODUCTS: tl.constexpr,
    CHECK: tl.constexpr,  # positions may lie outside the input
) -> tl.tensor:
    """Sum one split's gradient of ``R`` weights, ``r = (k, c)``, of ``O`` outputs, and of their bias."""
    R: tl.constexpr = W.K * W.C
    # Rows that are looked up are one tap's in a block.
    TILES_C: tl.constexpr = (W.C + TILE.R - 1) // TILE.R
    TILES_R: tl.constexpr = (W.K * TILES_C if ROWS.mode == "tokens" else (R + TILE.R - 1) // TILE.R) if WANT_W else 1
    TILES_O: tl.constexpr = (W.O + TILE.O - 1) // TILE.O
    i_split = (tl.program_id(0) // (TILES_R * TILES_O)).to(tl.int64)
    i_r = tl.program_id(0) % TILES_R
    i_k = i_r // TILES_C
    if ROWS.mode == "tokens":
        b_c = i_r % TILES_C * TILE.R + tl.arange(0, TILE.R)
        b_r = i_k * W.C + b_c
        m_r = b_c < W.C
    else:
        b_r = i_r * TILE.R + tl.arange(0, TILE.R)
        m_r = b_r < R
    b_o = tl.program_id(0) // TILES_R % TILES_O * TILE.O + tl.arange(0, TILE.O)
    m_o = b_o < W.O
    b_k = b_r // W.C
    upstream = Upstream(
        gradient=gradient, argmax=argmax, windows=windows, stride_n=gradient_n * ALIGN, stride_q=gradient_q * ALIGN
    )  # fmt: skip
    stride_l = stride_l * ROWS.align
    b_tap = (b_k * TAPS.dilation).to(tl.int64) * stride_l + (b_r % W.C).to(tl.int64)
    acc = tl.full((TILE.R, TILE.O), 0.0, tl.float32)
    b_db = tl.full((TILE.O,), 0.0, tl.float32)
    first = i_split * rows_of_split
    for i_row in range(first, tl.minimum(first + rows_of_split, rows), TILE.M):
        b_t = (i_row % positions).to(tl.int32) + tl.arange(0, TILE.M)
        b_n = i_row // positions + (b_t // positions).to(tl.int64)
        b_t = b_t % positions
        m_t = i_row + tl.arange(0, TILE.M) < rows
        b_dy = arriving(upstream, b_n, b_t, m_t, b_o, m_o, W, POOL, OVERLAP)
        if WANT_B:
            b_db += tl.sum(b_dy, axis=0)
        if WANT_W:
            b_at = b_t * TAPS.stride - TAPS.left
            if ROWS.mode == "tokens":
                b_at += i_k * TAPS.dilation
                m_x = m_t & (b_at >= 0) & (b_at < length) if CHECK else m_t
                b_row, m_x = look_up(index + b_n * index_n + b_at.to(tl.int64) * index_l, m_x, count)
                p_x = (x + b_row * (stride_n * ROWS.align))[:, None] + b_c.to(tl.int64)[None, :]
                m = m_x[:, None] & m_r[None, :]
            else:
                b_first, m_x = b_n, m_t
                if ROWS.mode == "windows":
                    b_first, m_x = look_up(index + b_n * index_n, m_t, count)
                m = m_x[:, None] & m_r[None, :]
                if CHECK:
                    b_seen = b_at[:, None] + (b_k * TAPS.dilation)[None, :]
                    m = m & (b_seen >= 0) & (b_seen < length)
                p_x = x + (b_first * (stride_n * ROWS.align) + b_at.to(tl.int64) * stride_l)[:, None] + b_tap[None, :]
            b_x = factor(tl.load(p_x, mask=m, other=0.0), PRODUCTS.rounds)  # (M, R)
            b_dy = factor(b_dy.to(x.dtype.element_ty), PRODUCTS.rounds)
            acc = tl.dot(tl.trans(b_x), b_dy, acc, input_precision=PRODUCTS.precision)
    p_split = partials + i_split * (W.O * R + W.O)
    if WANT_W:
        tl.store(p_split + (b_o * R)[None, :] + b_r[:, None], acc, mask=m_r[:, None] & m_o[None, :])
    if WANT_B:
        tl.store(p_split + W.O * R + b_o, b_db, mask=m_o & (i_r == 0))
