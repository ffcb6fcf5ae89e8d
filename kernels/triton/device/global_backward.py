"""Gradients of the global maximum on the device: of a sample and an output, one position has a gradient.

    dx[n, i, c] = sum over o, k of where(from[n, o] + k * dilation == i, g[n, o], 0) * W[o, k, c]
    dW[o, k, c] = sum over n, i of where(from[n, o] + k * dilation == i, g[n, o], 0) * x[n, i, c]

``from[n, o] = argmax[n, o] * stride - left`` is where the first tap of the maximum lies. A tile is positions of one
sample: it reads the sample's argmax once, and each row of the input once. Zeros are multiplied, too, so that NaN and
infinities reach the gradients that they reach in torch; a sum that meets one is computed again without the taps that
the convolution has at no position. Naming and arguments are as in :mod:`.conv_pool`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .conv_pool import INTERPRETED
from .convolution import look_up, rounded

__all__ = ["INTERPRETED", "global_input_gradient_kernel", "global_weight_gradient_kernel"]

NOWHERE = tl.constexpr(-(2**30))  # out of every tap's reach
# Numbers that differ from call to call.
SIZES = [
    "samples",
    "length",
    "positions",
    "gradient_n",
    "stride_n",
    "stride_l",
    "index_n",
    "index_l",
    "count",
]


@triton.jit
def load_maxima(
    gradient: tl.tensor,
    argmax: tl.tensor,
    w: tl.tensor,  # of whose dtype products are
    i_n: tl.tensor,
    b_o: tl.tensor,  # (BLOCK_O,)
    m_o: tl.tensor,  # (BLOCK_O,)
    gradient_n: tl.tensor,
    O: tl.constexpr,  # noqa: E741
    LEFT: tl.constexpr,
    STRIDE: tl.constexpr,
    INTERPRETED: tl.constexpr,
) -> tl.tensor:
    """Return where the first taps of a sample's maxima lie, out of reach where argmax is -1, and their gradients."""
    b_argmax = tl.load(argmax + i_n * O + b_o, mask=m_o, other=-1).to(tl.int32)
    b_g = tl.load(gradient + i_n * gradient_n + b_o, mask=m_o, other=0.0).to(w.dtype.element_ty)
    if INTERPRETED:
        b_g = b_g.to(tl.float32)
    return tl.where(b_argmax >= 0, b_argmax * STRIDE - LEFT, NOWHERE), b_g


@triton.jit
def has_tap(
    b_i: tl.tensor,  # (BLOCK_M,) the input's positions
    k: tl.tensor,
    positions: tl.tensor,
    LEFT: tl.constexpr,
    STRIDE: tl.constexpr,
    DILATION: tl.constexpr,
) -> tl.tensor:
    """Tell where tap ``k`` meets the input at some position of the convolution."""
    b_from = b_i + LEFT - k * DILATION
    return (b_from >= 0) & (b_from % STRIDE == 0) & (b_from // STRIDE < positions)


@triton.jit(do_not_specialize=SIZES)
def global_input_gradient_kernel(
    gradient: tl.tensor,  # (N, O), strides as given
    argmax: tl.tensor,  # (N, O)
    w: tl.tensor,  # (O, PITCH), of which K * C are used
    dx: tl.tensor,  # (N, L, C), contiguous
    length: tl.int32,  # L
    positions: tl.int32,  # the convolution's
    gradient_n: tl.int64,
    C: tl.constexpr,
    O: tl.constexpr,  # noqa: E741
    K: tl.constexpr,
    LEFT: tl.constexpr,  # the convolution's padding
    STRIDE: tl.constexpr,  # the convolution's
    DILATION: tl.constexpr,  # the convolution's
    PITCH: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_O: tl.constexpr,
    PRECISION: tl.constexpr,
    ROUND: tl.constexpr,
    INTERPRETED: tl.constexpr,
    APART: tl.constexpr,  # see Layer.apart
) -> tl.tensor:
    """Compute the gradient of ``BLOCK_M`` positions of one sample, and ``BLOCK_C`` channels."""
    TILES_C: tl.constexpr = (C + BLOCK_C - 1) // BLOCK_C
    tiles_m = (length + BLOCK_M - 1) // BLOCK_M
    b_c = tl.program_id(0) % TILES_C * BLOCK_C + tl.arange(0, BLOCK_C)
    m_c = b_c < C
    i_tile = tl.program_id(0) // TILES_C
    i_n = (i_tile // tiles_m).to(tl.int64)
    i_first = i_tile % tiles_m * BLOCK_M
    b_i = i_first + tl.arange(0, BLOCK_M)
    acc = tl.full((BLOCK_M, BLOCK_C), 0.0, tl.float32)
    for o0 in range(0, O, BLOCK_O):
        b_o = o0 + tl.arange(0, BLOCK_O)
        m_o = b_o < O
        b_from, b_g = load_maxima(gradient, argmax, w, i_n, b_o, m_o, gradient_n, O, LEFT, STRIDE, INTERPRETED)
        b_g = rounded(b_g, ROUND)
        for k in range(K):
            p_w = w + (b_o.to(tl.int64) * PITCH)[:, None] + (k * C + b_c)[None, :]
            b_w = tl.load(p_w, mask=m_o[:, None] & m_c[None, :], other=0.0)  # (BLOCK_O, BLOCK_C)
            if INTERPRETED:
                b_w = b_w.to(tl.float32)
            b_dy = tl.where((b_from + k * DILATION)[None, :] == b_i[:, None], b_g[None, :], 0.0).to(b_g.dtype)
            acc = tl.dot(b_dy, rounded(b_w, ROUND), acc, input_precision=PRECISION)
    p_dx = dx + (i_n * length + i_first) * C + ((b_i - i_first) * C)[:, None] + b_c[None, :]
    m_dx = (b_i < length)[:, None] & m_c[None, :]
    tl.store(p_dx, acc.to(dx.dtype.element_ty), mask=m_dx)
    if APART:  # noqa: SIM102  (told when it is compiled)
        if tl.max(tl.max((acc != acc).to(tl.int32), axis=1), axis=0) > 0:
            tl.debug_barrier()  # what was stored is stored again, by other threads
            total = tl.full((BLOCK_M, BLOCK_C), 0.0, tl.float32)
            for step in range(O * K):
                i_o, i_k = tl.full((), 0, tl.int64) + step // K, step % K
                i_from, i_g = load_maxima(
                    gradient, argmax, w, i_n, i_o, i_o < O, gradient_n, O, LEFT, STRIDE, INTERPRETED
                )
                b_w = tl.load(w + i_o * PITCH + i_k * C + b_c, mask=m_c, other=0.0).to(tl.float32)
                b_dy = tl.where(b_i == i_from + i_k * DILATION, i_g.to(tl.float32), 0.0)
                m_t = has_tap(b_i, i_k, positions, LEFT, STRIDE, DILATION)
                total += tl.where(m_t[:, None], b_dy[:, None] * b_w[None, :], 0.0)
            tl.store(p_dx, total.to(dx.dtype.element_ty), mask=m_dx)


@triton.jit
def load_rows(
    x: tl.tensor,
    i_n: tl.tensor,
    b_i: tl.tensor,  # (BLOCK_M,)
    m_i: tl.tensor,  # (BLOCK_M,)
    b_c: tl.tensor,  # (BLOCK_C,)
    m_c: tl.tensor,  # (BLOCK_C,)
    stride_n: tl.tensor,
    stride_l: tl.tensor,
    index: tl.tensor,
    index_n: tl.tensor,
    index_l: tl.tensor,
    count: tl.tensor,
    ROWS: tl.constexpr,
    ROUND: tl.constexpr,
    INTERPRETED: tl.constexpr,
) -> tl.tensor:
    """Return a sample's input at some positions, ``(BLOCK_C, BLOCK_M)``, 0 where the mask has none."""
    i_row = i_n
    if ROWS == "windows":
        i_row, m_n = look_up(index + i_n * index_n, i_n >= 0, count)
        m_i = m_i & m_n
    if ROWS == "tokens":
        b_row, m_i = look_up(index + i_n * index_n + b_i * index_l, m_i, count)
        p_x = x + b_row * stride_n
    else:
        p_x = x + i_row * stride_n + b_i * stride_l
    b_x = tl.load(p_x[:, None] + b_c.to(tl.int64)[None, :], mask=m_i[:, None] & m_c[None, :], other=0.0)
    if INTERPRETED:
        b_x = b_x.to(tl.float32)
    return tl.trans(rounded(b_x, ROUND))


@triton.jit(do_not_specialize=SIZES)
def global_weight_gradient_kernel(
    gradient: tl.tensor,  # (N, O), strides as given
    argmax: tl.tensor,  # (N, O)
    x: tl.tensor,  # (N, C, L), or (V, C) whose rows are found through the index, strides as given
    partials: tl.tensor,  # (splits, O * K * C + O), of the weights as (O, K, C), then of the bias
    samples: tl.int32,  # N
    length: tl.int32,  # L
    positions: tl.int32,  # the convolution's
    gradient_n: tl.int64,
    stride_n: tl.int64,
    stride_l: tl.int64,
    index: tl.tensor,  # (N, L) tokens or (N,) starts, strides as given, or None
    index_n: tl.int64,
    index_l: tl.int64,
    count: tl.int64,  # numbers in the index are below it
    C: tl.constexpr,
    O: tl.constexpr,  # noqa: E741
    K: tl.constexpr,
    LEFT: tl.constexpr,
    STRIDE: tl.constexpr,
    DILATION: tl.constexpr,
    ALIGN: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_O: tl.constexpr,
    PRECISION: tl.constexpr,
    ROUND: tl.constexpr,
    INTERPRETED: tl.constexpr,
    APART: tl.constexpr,  # see Layer.apart
) -> tl.tensor:
    """Sum one split's gradient of all taps' weights, ``BLOCK_C`` channels x ``BLOCK_O`` outputs, and of the bias."""
    TILES_C: tl.constexpr = (C + BLOCK_C - 1) // BLOCK_C
    TILES_O: tl.constexpr = (O + BLOCK_O - 1) // BLOCK_O
    i_c = tl.program_id(0) % TILES_C
    b_c = i_c * BLOCK_C + tl.arange(0, BLOCK_C)
    m_c = b_c < C
    b_o = tl.program_id(0) // TILES_C % TILES_O * BLOCK_O + tl.arange(0, BLOCK_O)
    m_o = b_o < O
    i_split = tl.program_id(0) // (TILES_C * TILES_O)
    stride_n = stride_n * ALIGN
    stride_l = stride_l * ALIGN
    accs: tl.tuple = ()
    for _ in tl.static_range(K):
        accs = accs + (tl.full((BLOCK_C, BLOCK_O), 0.0, tl.float32),)  # noqa: RUF005
    b_db = tl.full((BLOCK_O,), 0.0, tl.float32)
    tiles = (length + BLOCK_M - 1) // BLOCK_M
    total = tiles.to(tl.int64) * samples
    for i_tile in range(i_split.to(tl.int64), total, tl.num_programs(0) // (TILES_C * TILES_O)):
        i_n = i_tile // tiles
        i_first = (i_tile % tiles).to(tl.int32) * BLOCK_M
        b_i = i_first + tl.arange(0, BLOCK_M)
        m_i = b_i < length
        b_from, b_g = load_maxima(gradient, argmax, x, i_n, b_o, m_o, gradient_n, O, LEFT, STRIDE, INTERPRETED)
        if i_first == 0:
            b_db += tl.where(b_from > NOWHERE, b_g.to(tl.float32), 0.0)
        b_x = load_rows(
            x, i_n, b_i, m_i, b_c, m_c, stride_n, stride_l, index, index_n, index_l, count, ROWS, ROUND, INTERPRETED
        )
        b_g = rounded(b_g, ROUND)
        sums: tl.tuple = ()
        for k in tl.static_range(K):
            b_dy = tl.where((b_from + k * DILATION)[None, :] == b_i[:, None], b_g[None, :], 0.0).to(b_g.dtype)
            sums = sums + (tl.dot(b_x, b_dy, accs[k], input_precision=PRECISION),)  # noqa: RUF005
        accs = sums
    p_split = partials + i_split.to(tl.int64) * (O * K * C + O)
    tl.store(p_split + O * K * C + b_o, b_db, mask=m_o & (i_c == 0))
    m_dw = m_c[:, None] & m_o[None, :]
    b_nan = tl.full((BLOCK_C, BLOCK_O), 0, tl.int32)
    for k in tl.static_range(K):
        tl.store(p_split + (b_o * (K * C))[None, :] + (k * C + b_c)[:, None], accs[k], mask=m_dw)
        b_nan = b_nan | (accs[k] != accs[k]).to(tl.int32)
    if APART:  # noqa: SIM102  (told when it is compiled)
        if tl.max(tl.max(b_nan, axis=1), axis=0) > 0:
            tl.debug_barrier()  # what was stored is stored again, by other threads
            for i_k in range(K):
                acc = tl.full((BLOCK_C, BLOCK_O), 0.0, tl.float32)
                for i_tile in range(i_split.to(tl.int64), total, tl.num_programs(0) // (TILES_C * TILES_O)):
                    i_n = i_tile // tiles
                    b_i = (i_tile % tiles).to(tl.int32) * BLOCK_M + tl.arange(0, BLOCK_M)
                    m_i = (b_i < length) & has_tap(b_i, i_k, positions, LEFT, STRIDE, DILATION)
                    b_x = load_rows(
                        x, i_n, b_i, m_i, b_c, m_c, stride_n, stride_l, index, index_n, index_l, count,
                        ROWS, ROUND, INTERPRETED,
                    )  # fmt: skip
                    b_from, b_g = load_maxima(
                        gradient, argmax, x, i_n, b_o, m_o, gradient_n, O, LEFT, STRIDE, INTERPRETED
                    )
                    b_g = rounded(b_g, ROUND)
                    b_dy = tl.where((b_from + i_k * DILATION)[None, :] == b_i[:, None], b_g[None, :], 0.0).to(b_g.dtype)
                    acc = tl.dot(b_x, b_dy, acc, input_precision=PRECISION)
                tl.store(p_split + (b_o * (K * C))[None, :] + (i_k * C + b_c)[:, None], acc, mask=m_dw)
