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

from .conv_pool import INTERPRETED
from .convolution import look_up, rounded

__all__ = ["INTERPRETED", "input_gradient_kernel", "weight_gradient_kernel"]

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
    "left",
    "stride",
    "dilation",
    "pool_size",
    "pool_stride",
    "pool_padding",
    "pool_dilation",
]


@triton.jit
def arriving(
    gradient: tl.tensor,
    argmax: tl.tensor,
    b_n: tl.tensor,  # (BLOCK_M,) samples
    b_t: tl.tensor,  # (BLOCK_M,) the convolution's positions
    m_t: tl.tensor,  # (BLOCK_M,)
    b_o: tl.tensor,  # (BLOCK_O,)
    m_o: tl.tensor,  # (BLOCK_O,)
    windows: tl.tensor,
    gradient_n: tl.tensor,
    gradient_q: tl.tensor,
    pool_size: tl.tensor,
    pool_stride: tl.tensor,
    pool_padding: tl.tensor,
    pool_dilation: tl.tensor,
    O: tl.constexpr,  # noqa: E741
    OVERLAP: tl.constexpr,  # how many windows may see a position
    BLOCK_M: tl.constexpr,
    BLOCK_O: tl.constexpr,
) -> tl.tensor:
    """Return the gradient that arrives at the convolution's results, ``(BLOCK_M, BLOCK_O)`` in float32."""
    b_from = b_t + pool_padding
    b_last = b_from // pool_stride
    b_dy = tl.full((BLOCK_M, BLOCK_O), 0.0, tl.float32)
    for i in range(OVERLAP):
        b_q = b_last - i
        b_rest = b_from - b_q * pool_stride
        b_p = b_rest // pool_dilation
        seen = m_t & (b_q >= 0) & (b_q < windows) & (b_p * pool_dilation == b_rest) & (b_p < pool_size)
        m = seen[:, None] & m_o[None, :]
        b_argmax = tl.load(argmax + ((b_n * windows + b_q) * O)[:, None] + b_o[None, :], mask=m, other=-1)
        b_offset = (b_n * gradient_n + b_q.to(tl.int64) * gradient_q)[:, None]
        b_g = tl.load(gradient + b_offset + b_o[None, :], mask=m, other=0.0)
        b_dy += tl.where(b_argmax.to(tl.int32) == b_p[:, None], b_g.to(tl.float32), 0.0)
    return b_dy


@triton.jit
def store_apart(
    gradient: tl.tensor,
    argmax: tl.tensor,
    w: tl.tensor,
    dx: tl.tensor,
    i_row: tl.tensor,
    b_n: tl.tensor,  # (BLOCK_M,) samples
    b_i: tl.tensor,  # (BLOCK_M,) the input's positions
    m_i: tl.tensor,  # (BLOCK_M,)
    i_c: tl.tensor,
    windows: tl.tensor,
    positions: tl.tensor,
    gradient_n: tl.tensor,
    gradient_q: tl.tensor,
    left: tl.tensor,
    stride: tl.tensor,
    dilation: tl.tensor,
    pool_size: tl.tensor,
    pool_stride: tl.tensor,
    pool_padding: tl.tensor,
    pool_dilation: tl.tensor,
    C: tl.constexpr,
    O: tl.constexpr,  # noqa: E741
    K: tl.constexpr,
    PITCH: tl.constexpr,
    OVERLAP: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_O: tl.constexpr,
    PRECISION: tl.constexpr,
    ROUND: tl.constexpr,
    INTERPRETED: tl.constexpr,
) -> tl.tensor:
    """Store the gradient of 16 channels from ``i_c`` on; a tap counts only where the convolution has it."""
    TILES_O: tl.constexpr = (O + BLOCK_O - 1) // BLOCK_O
    b_c = i_c + tl.arange(0, 16)
    m_c = b_c < C
    acc = tl.full((BLOCK_M, 16), 0.0, tl.float32)
    for step in range(K * TILES_O):
        k = step // TILES_O
        b_o = (step % TILES_O) * BLOCK_O + tl.arange(0, BLOCK_O)
        m_o = b_o < O
        b_from = b_i + left - k * dilation
        b_t = b_from // stride
        m_t = m_i & (b_from >= 0) & (b_t * stride == b_from) & (b_t < positions)
        b_dy = arriving(
            gradient, argmax, b_n, b_t, m_t, b_o, m_o, windows, gradient_n, gradient_q,
            pool_size, pool_stride, pool_padding, pool_dilation, O, OVERLAP, BLOCK_M, BLOCK_O,
        ).to(w.dtype.element_ty)  # fmt: skip
        p_w = w + (b_o.to(tl.int64) * PITCH)[:, None] + (k * C + b_c)[None, :]
        b_w = tl.load(p_w, mask=m_o[:, None] & m_c[None, :], other=0.0)
        if INTERPRETED:
            b_dy, b_w = b_dy.to(tl.float32), b_w.to(tl.float32)
        b_part = tl.dot(rounded(b_dy, ROUND), rounded(b_w, ROUND), input_precision=PRECISION)
        acc += tl.where(m_t[:, None], b_part, 0.0)
    p_dx = dx + ((i_row + tl.arange(0, BLOCK_M)) * C)[:, None] + b_c[None, :]
    tl.store(p_dx, acc.to(dx.dtype.element_ty), mask=m_i[:, None] & m_c[None, :])


@triton.jit(do_not_specialize=SIZES)
def input_gradient_kernel(
    gradient: tl.tensor,  # (N, O, Q), strides as given
    argmax: tl.tensor,  # (N, Q, O)
    w: tl.tensor,  # (O, PITCH), of which K * C are used
    dx: tl.tensor,  # (N, L, C), contiguous
    rows: tl.int64,  # N * L
    windows: tl.int32,  # Q
    length: tl.int32,  # L
    positions: tl.int32,  # the convolution's
    gradient_n: tl.int64,
    gradient_q: tl.int64,
    left: tl.int32,  # the convolution's padding
    stride: tl.int32,  # the convolution's
    dilation: tl.int32,  # the convolution's
    pool_size: tl.int32,
    pool_stride: tl.int32,
    pool_padding: tl.int32,
    pool_dilation: tl.int32,
    C: tl.constexpr,
    O: tl.constexpr,  # noqa: E741
    K: tl.constexpr,
    PITCH: tl.constexpr,
    OVERLAP: tl.constexpr,
    ALIGN: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_O: tl.constexpr,
    PRECISION: tl.constexpr,
    ROUND: tl.constexpr,
    INTERPRETED: tl.constexpr,
    APART: tl.constexpr,  # see Layer.apart
) -> tl.tensor:
    """Compute the gradient of ``BLOCK_M`` input positions, of whichever samples, and ``BLOCK_C`` channels."""
    TILES_C: tl.constexpr = (C + BLOCK_C - 1) // BLOCK_C
    TILES_O: tl.constexpr = (O + BLOCK_O - 1) // BLOCK_O
    # Exact products are added up as torch does: a tap's, then the taps. One sum over 1,024 outputs x 7 taps has twice
    # torch's error.
    BY_TAP: tl.constexpr = PRECISION == "ieee" and TILES_O > 1
    i_row = (tl.program_id(0) // TILES_C).to(tl.int64) * BLOCK_M
    b_c = (tl.program_id(0) % TILES_C) * BLOCK_C + tl.arange(0, BLOCK_C)
    m_c = b_c < C
    b_i = (i_row % length).to(tl.int32) + tl.arange(0, BLOCK_M)
    b_n = i_row // length + (b_i // length).to(tl.int64)
    b_i = b_i % length
    m_i = i_row + tl.arange(0, BLOCK_M) < rows
    gradient_n, gradient_q = gradient_n * ALIGN, gradient_q * ALIGN
    acc = tl.full((BLOCK_M, BLOCK_C), 0.0, tl.float32)
    total = acc
    for step in range(K * TILES_O):
        k = step // TILES_O
        b_o = (step % TILES_O) * BLOCK_O + tl.arange(0, BLOCK_O)
        m_o = b_o < O
        b_from = b_i + left - k * dilation
        b_t = b_from // stride
        m_t = m_i & (b_from >= 0) & (b_t * stride == b_from) & (b_t < positions)
        b_dy = arriving(
            gradient, argmax, b_n, b_t, m_t, b_o, m_o, windows, gradient_n, gradient_q,
            pool_size, pool_stride, pool_padding, pool_dilation, O, OVERLAP, BLOCK_M, BLOCK_O,
        ).to(w.dtype.element_ty)  # fmt: skip
        p_w = w + (b_o.to(tl.int64) * PITCH)[:, None] + (k * C + b_c)[None, :]
        b_w = tl.load(p_w, mask=m_o[:, None] & m_c[None, :], other=0.0)  # (BLOCK_O, BLOCK_C)
        if INTERPRETED:
            b_dy, b_w = b_dy.to(tl.float32), b_w.to(tl.float32)
        b_dy, b_w = rounded(b_dy, ROUND), rounded(b_w, ROUND)
        acc = tl.dot(b_dy, b_w, acc, input_precision=PRECISION)
        if BY_TAP:  # noqa: SIM102  (told when it is compiled)
            if step % TILES_O == TILES_O - 1:
                total += acc
                acc = tl.full((BLOCK_M, BLOCK_C), 0.0, tl.float32)
    if BY_TAP:
        acc = total
    m = m_i[:, None] & m_c[None, :]
    p_dx = dx + ((i_row + tl.arange(0, BLOCK_M)) * C)[:, None] + b_c[None, :]
    tl.store(p_dx, acc.to(dx.dtype.element_ty), mask=m)
    if APART:  # noqa: SIM102  (told when it is compiled)
        if tl.max(tl.max((acc != acc).to(tl.int32), axis=1), axis=0) > 0:
            tl.debug_barrier()  # what was stored is stored again, by other threads
            for i_c in range(0, BLOCK_C, 16):  # few at once, whose sums take no registers from the others
                store_apart(
                    gradient, argmax, w, dx, i_row, b_n, b_i, m_i, tl.program_id(0) % TILES_C * BLOCK_C + i_c, windows,
                    positions, gradient_n, gradient_q, left, stride, dilation, pool_size, pool_stride, pool_padding,
                    pool_dilation, C, O, K, PITCH, OVERLAP, BLOCK_M, BLOCK_O, PRECISION, ROUND, INTERPRETED,
                )  # fmt: skip


@triton.jit(do_not_specialize=SIZES)
def weight_gradient_kernel(
    gradient: tl.tensor,  # (N, O, Q), strides as given
    argmax: tl.tensor,  # (N, Q, O)
    x: tl.tensor,  # (N, C, L), or (V, C) whose rows are found through the index, strides as given
    partials: tl.tensor,  # (splits, O * K * C + O), of the weights as (O, K, C), then of the bias
    rows: tl.int64,  # N * positions
    rows_of_split: tl.int64,  # a multiple of BLOCK_M
    windows: tl.int32,  # Q
    length: tl.int32,  # L
    positions: tl.int32,  # the convolution's
    gradient_n: tl.int64,
    gradient_q: tl.int64,
    stride_n: tl.int64,
    stride_l: tl.int64,
    index: tl.tensor,  # (N, L) tokens or (N,) starts, strides as given, or None
    index_n: tl.int64,
    index_l: tl.int64,
    count: tl.int64,  # numbers in the index are below it
    left: tl.int32,
    stride: tl.int32,
    dilation: tl.int32,
    pool_size: tl.int32,
    pool_stride: tl.int32,
    pool_padding: tl.int32,
    pool_dilation: tl.int32,
    C: tl.constexpr,
    O: tl.constexpr,  # noqa: E741
    K: tl.constexpr,
    OVERLAP: tl.constexpr,
    GRADIENT_ALIGN: tl.constexpr,
    ALIGN: tl.constexpr,
    CHECK: tl.constexpr,  # positions may lie outside the input
    ROWS: tl.constexpr,
    WANT_W: tl.constexpr,
    WANT_B: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_O: tl.constexpr,
    PRECISION: tl.constexpr,
    ROUND: tl.constexpr,
    INTERPRETED: tl.constexpr,
) -> tl.tensor:
    """Sum one split's gradient of ``BLOCK_R`` weights, ``r = (k, c)``, of ``BLOCK_O`` outputs, and of their bias."""
    R: tl.constexpr = K * C
    # Rows that are looked up are one tap's in a block.
    TILES_C: tl.constexpr = (C + BLOCK_R - 1) // BLOCK_R
    TILES_R: tl.constexpr = (K * TILES_C if ROWS == "tokens" else (R + BLOCK_R - 1) // BLOCK_R) if WANT_W else 1
    TILES_O: tl.constexpr = (O + BLOCK_O - 1) // BLOCK_O
    i_split = (tl.program_id(0) // (TILES_R * TILES_O)).to(tl.int64)
    i_r = tl.program_id(0) % TILES_R
    i_k = i_r // TILES_C
    if ROWS == "tokens":
        b_c = i_r % TILES_C * BLOCK_R + tl.arange(0, BLOCK_R)
        b_r = i_k * C + b_c
        m_r = b_c < C
    else:
        b_r = i_r * BLOCK_R + tl.arange(0, BLOCK_R)
        m_r = b_r < R
    b_o = tl.program_id(0) // TILES_R % TILES_O * BLOCK_O + tl.arange(0, BLOCK_O)
    m_o = b_o < O
    b_k = b_r // C
    gradient_n, gradient_q = gradient_n * GRADIENT_ALIGN, gradient_q * GRADIENT_ALIGN
    stride_l = stride_l * ALIGN
    b_tap = (b_k * dilation).to(tl.int64) * stride_l + (b_r % C).to(tl.int64)
    acc = tl.full((BLOCK_R, BLOCK_O), 0.0, tl.float32)
    b_db = tl.full((BLOCK_O,), 0.0, tl.float32)
    first = i_split * rows_of_split
    for i_row in range(first, tl.minimum(first + rows_of_split, rows), BLOCK_M):
        b_t = (i_row % positions).to(tl.int32) + tl.arange(0, BLOCK_M)
        b_n = i_row // positions + (b_t // positions).to(tl.int64)
        b_t = b_t % positions
        m_t = i_row + tl.arange(0, BLOCK_M) < rows
        b_dy = arriving(
            gradient, argmax, b_n, b_t, m_t, b_o, m_o, windows, gradient_n, gradient_q,
            pool_size, pool_stride, pool_padding, pool_dilation, O, OVERLAP, BLOCK_M, BLOCK_O,
        )  # fmt: skip
        if WANT_B:
            b_db += tl.sum(b_dy, axis=0)
        if WANT_W:
            b_at = b_t * stride - left
            if ROWS == "tokens":
                b_at += i_k * dilation
                m_x = m_t & (b_at >= 0) & (b_at < length) if CHECK else m_t
                b_row, m_x = look_up(index + b_n * index_n + b_at.to(tl.int64) * index_l, m_x, count)
                p_x = (x + b_row * (stride_n * ALIGN))[:, None] + b_c.to(tl.int64)[None, :]
                m = m_x[:, None] & m_r[None, :]
            else:
                b_first, m_x = b_n, m_t
                if ROWS == "windows":
                    b_first, m_x = look_up(index + b_n * index_n, m_t, count)
                m = m_x[:, None] & m_r[None, :]
                if CHECK:
                    b_seen = b_at[:, None] + (b_k * dilation)[None, :]
                    m = m & (b_seen >= 0) & (b_seen < length)
                p_x = x + (b_first * (stride_n * ALIGN) + b_at.to(tl.int64) * stride_l)[:, None] + b_tap[None, :]
            b_x = tl.load(p_x, mask=m, other=0.0)  # (BLOCK_M, BLOCK_R)
            b_dy = b_dy.to(x.dtype.element_ty)
            if INTERPRETED:
                b_dy, b_x = b_dy.to(tl.float32), b_x.to(tl.float32)
            b_dy, b_x = rounded(b_dy, ROUND), rounded(b_x, ROUND)
            acc = tl.dot(tl.trans(b_x), b_dy, acc, input_precision=PRECISION)
    p_split = partials + i_split * (O * R + O)
    if WANT_W:
        tl.store(p_split + (b_o * R)[None, :] + b_r[:, None], acc, mask=m_r[:, None] & m_o[None, :])
    if WANT_B:
        tl.store(p_split + O * R + b_o, b_db, mask=m_o & (i_r == 0))
