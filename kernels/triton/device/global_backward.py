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

from ..groups import Input
from .convolution import factor, load_tap, look_up

__all__ = ["global_input_gradient_kernel", "global_weight_gradient_kernel"]

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
    b_o: tl.tensor,  # (O,)
    m_o: tl.tensor,  # (O,)
    gradient_n: tl.tensor,
    W: tl.constexpr,
    TAPS: tl.constexpr,
) -> tl.tensor:
    """Return where the first taps of a sample's maxima lie, out of reach where argmax is -1, and their gradients."""
    b_argmax = tl.load(argmax + i_n * W.O + b_o, mask=m_o, other=-1).to(tl.int32)
    b_g = tl.load(gradient + i_n * gradient_n + b_o, mask=m_o, other=0.0).to(w.dtype.element_ty)
    return tl.where(b_argmax >= 0, b_argmax * TAPS.stride - TAPS.left, NOWHERE), factor(b_g, False)


@triton.jit
def arriving(
    b_from: tl.tensor,  # (O,)
    b_g: tl.tensor,  # (O,)
    b_i: tl.tensor,  # (M,)
    k: tl.tensor,
    TAPS: tl.constexpr,
) -> tl.tensor:
    """Return the gradients that tap ``k`` passes on to a sample's positions, ``(M, O)``."""
    return tl.where((b_from + k * TAPS.dilation)[None, :] == b_i[:, None], b_g[None, :], 0.0).to(b_g.dtype)


@triton.jit
def has_tap(
    b_i: tl.tensor,  # (M,) the input's positions
    k: tl.tensor,
    positions: tl.tensor,
    TAPS: tl.constexpr,
) -> tl.tensor:
    """Tell where tap ``k`` meets the input at some position of the convolution."""
    b_from = b_i + TAPS.left - k * TAPS.dilation
    return (b_from >= 0) & (b_from % TAPS.stride == 0) & (b_from // TAPS.stride < positions)


@triton.jit(do_not_specialize=SIZES)
def global_input_gradient_kernel(
    gradient: tl.tensor,  # (N, O), strides as given
    argmax: tl.tensor,  # (N, O)
    w: tl.tensor,  # packed
    dx: tl.tensor,  # (N, L, C), contiguous
    length: tl.int32,  # L
    positions: tl.int32,  # the convolution's
    gradient_n: tl.int64,
    W: tl.constexpr,
    TAPS: tl.constexpr,
    TILE: tl.constexpr,
    PRODUCTS: tl.constexpr,
    APART: tl.constexpr,  # see Layer.apart
) -> tl.tensor:
    """Compute the gradient of ``M`` positions of one sample, and ``C`` channels."""
    TILES_C: tl.constexpr = (W.C + TILE.C - 1) // TILE.C
    tiles_m = (length + TILE.M - 1) // TILE.M
    b_c = tl.program_id(0) % TILES_C * TILE.C + tl.arange(0, TILE.C)
    m_c = b_c < W.C
    i_tile = tl.program_id(0) // TILES_C
    i_n = (i_tile // tiles_m).to(tl.int64)
    i_first = i_tile % tiles_m * TILE.M
    b_i = i_first + tl.arange(0, TILE.M)
    acc = tl.full((TILE.M, TILE.C), 0.0, tl.float32)
    for o0 in range(0, W.O, TILE.O):
        b_o = o0 + tl.arange(0, TILE.O)
        m_o = b_o < W.O
        b_from, b_g = load_maxima(gradient, argmax, w, i_n, b_o, m_o, gradient_n, W, TAPS)
        b_g = factor(b_g, PRODUCTS.rounds)
        for k in range(W.K):
            b_w, b_dy = load_tap(w, b_o, b_c, m_c, k, W, TILE), arriving(b_from, b_g, b_i, k, TAPS)
            acc = tl.dot(b_dy, b_w, acc, input_precision=PRODUCTS.precision)
    p_dx = dx + (i_n * length + i_first) * W.C + ((b_i - i_first) * W.C)[:, None] + b_c[None, :]
    m_dx = (b_i < length)[:, None] & m_c[None, :]
    tl.store(p_dx, acc.to(dx.dtype.element_ty), mask=m_dx)
    if APART:  # noqa: SIM102  (told when it is compiled)
        if tl.max(tl.max((acc != acc).to(tl.int32), axis=1), axis=0) > 0:
            tl.debug_barrier()  # what was stored is stored again, by other threads
            total = tl.full((TILE.M, TILE.C), 0.0, tl.float32)
            for step in range(W.O * W.K):
                i_o, i_k = tl.full((), 0, tl.int64) + step // W.K, step % W.K
                i_from, i_g = load_maxima(gradient, argmax, w, i_n, i_o, i_o < W.O, gradient_n, W, TAPS)
                b_w = tl.load(w + i_o + (i_k * W.C + b_c) * W.columns, mask=m_c, other=0.0).to(tl.float32)
                b_dy = tl.where(b_i == i_from + i_k * TAPS.dilation, i_g.to(tl.float32), 0.0)
                m_t = has_tap(b_i, i_k, positions, TAPS)
                total += tl.where(m_t[:, None], b_dy[:, None] * b_w[None, :], 0.0)
            tl.store(p_dx, total.to(dx.dtype.element_ty), mask=m_dx)


@triton.jit
def load_rows(
    input: Input,
    i_n: tl.tensor,
    b_i: tl.tensor,  # (M,)
    m_i: tl.tensor,  # (M,)
    b_c: tl.tensor,  # (C,)
    m_c: tl.tensor,  # (C,)
    ROWS: tl.constexpr,
    ROUND: tl.constexpr,
) -> tl.tensor:
    """Return a sample's input at some positions, ``(C, M)``, 0 where the mask has none."""
    i_row = i_n
    if ROWS.mode == "windows":
        i_row, m_n = look_up(input.index + i_n * input.index_n, i_n >= 0, input.count)
        m_i = m_i & m_n
    if ROWS.mode == "tokens":
        b_row, m_i = look_up(input.index + i_n * input.index_n + b_i * input.index_l, m_i, input.count)
        p_x = input.x + b_row * input.stride_n
    else:
        p_x = input.x + i_row * input.stride_n + b_i * input.stride_l
    b_x = tl.load(p_x[:, None] + b_c.to(tl.int64)[None, :], mask=m_i[:, None] & m_c[None, :], other=0.0)
    return tl.trans(factor(b_x, ROUND))


@triton.jit(do_not_specialize=SIZES)
def global_weight_gradient_kernel(
    gradient: tl.tensor,  # (N, O), strides as given
    argmax: tl.tensor,  # (N, O)
    x: tl.tensor,  # (N, C, L), or (V, C) whose rows are found through the index, strides as given
    partials: tl.tensor,  # (splits, O * K * C + O), of the weights as (O, K, C), then of the bias
    samples: tl.int32,  # N
    positions: tl.int32,  # the convolution's
    gradient_n: tl.int64,
    length: tl.int32,  # L
    stride_n: tl.int64,
    stride_l: tl.int64,
    index: tl.tensor,  # (N, L) tokens or (N,) starts, strides as given, or None
    index_n: tl.int64,
    index_l: tl.int64,
    count: tl.int64,  # numbers in the index are below it
    W: tl.constexpr,
    TAPS: tl.constexpr,
    ROWS: tl.constexpr,
    SHARED: tl.constexpr,  # taps that a program serves
    TILE: tl.constexpr,
    PRODUCTS: tl.constexpr,
    APART: tl.constexpr,  # see Layer.apart
) -> tl.tensor:
    """Sum one split's gradient of ``SHARED`` taps' weights, ``C`` channels x ``O`` outputs, and of the bias."""
    TILES_C: tl.constexpr = (W.C + TILE.C - 1) // TILE.C
    TILES_O: tl.constexpr = (W.O + TILE.O - 1) // TILE.O
    TILES_K: tl.constexpr = (W.K + SHARED - 1) // SHARED
    TILES: tl.constexpr = TILES_C * TILES_O * TILES_K
    i_c = tl.program_id(0) % TILES_C
    b_c = i_c * TILE.C + tl.arange(0, TILE.C)
    m_c = b_c < W.C
    b_o = tl.program_id(0) // TILES_C % TILES_O * TILE.O + tl.arange(0, TILE.O)
    m_o = b_o < W.O
    i_first_k = tl.program_id(0) // (TILES_C * TILES_O) % TILES_K * SHARED
    i_split = tl.program_id(0) // TILES
    input = Input(
        x=x, length=length, stride_n=stride_n * ROWS.align, stride_l=stride_l * ROWS.align,
        index=index, index_n=index_n, index_l=index_l, count=count,
    )  # fmt: skip
    accs: tl.tuple = ()
    for _ in tl.static_range(SHARED):
        accs = accs + (tl.full((TILE.C, TILE.O), 0.0, tl.float32),)  # noqa: RUF005
    b_db = tl.full((TILE.O,), 0.0, tl.float32)
    tiles = (length + TILE.M - 1) // TILE.M
    total = tiles.to(tl.int64) * samples
    for i_tile in range(i_split.to(tl.int64), total, tl.num_programs(0) // TILES):
        i_n = i_tile // tiles
        i_first = (i_tile % tiles).to(tl.int32) * TILE.M
        b_i = i_first + tl.arange(0, TILE.M)
        b_from, b_g = load_maxima(gradient, argmax, x, i_n, b_o, m_o, gradient_n, W, TAPS)
        if i_first == 0:
            b_db += tl.where(b_from > NOWHERE, b_g.to(tl.float32), 0.0)
        b_x = load_rows(input, i_n, b_i, b_i < length, b_c, m_c, ROWS, PRODUCTS.rounds)
        b_g = factor(b_g, PRODUCTS.rounds)
        sums: tl.tuple = ()
        for j in tl.static_range(SHARED):
            b_dy = arriving(b_from, b_g, b_i, i_first_k + j, TAPS)
            sums = sums + (tl.dot(b_x, b_dy, accs[j], input_precision=PRODUCTS.precision),)  # noqa: RUF005
        accs = sums
    p_split = partials + i_split.to(tl.int64) * (W.O * W.K * W.C + W.O)
    tl.store(p_split + W.O * W.K * W.C + b_o, b_db, mask=m_o & (i_c == 0) & (i_first_k == 0))
    m_dw = m_c[:, None] & m_o[None, :]
    b_nan = tl.full((TILE.C, TILE.O), 0, tl.int32)
    for j in tl.static_range(SHARED):
        k = i_first_k + j
        m_k = m_dw & (k < W.K)
        tl.store(p_split + (b_o * (W.K * W.C))[None, :] + (k * W.C + b_c)[:, None], accs[j], mask=m_k)
        b_nan = b_nan | (accs[j] != accs[j]).to(tl.int32)
    if APART:  # noqa: SIM102  (told when it is compiled)
        if tl.max(tl.max(b_nan, axis=1), axis=0) > 0:
            tl.debug_barrier()  # what was stored is stored again, by other threads
            for i_k in range(i_first_k, tl.minimum(i_first_k + SHARED, W.K)):
                acc = tl.full((TILE.C, TILE.O), 0.0, tl.float32)
                for i_tile in range(i_split.to(tl.int64), total, tl.num_programs(0) // TILES):
                    i_n = i_tile // tiles
                    b_i = (i_tile % tiles).to(tl.int32) * TILE.M + tl.arange(0, TILE.M)
                    m_i = (b_i < length) & has_tap(b_i, i_k, positions, TAPS)
                    b_x = load_rows(input, i_n, b_i, m_i, b_c, m_c, ROWS, PRODUCTS.rounds)
                    b_from, b_g = load_maxima(gradient, argmax, x, i_n, b_o, m_o, gradient_n, W, TAPS)
                    b_dy = arriving(b_from, factor(b_g, PRODUCTS.rounds), b_i, i_k, TAPS)
                    acc = tl.dot(b_x, b_dy, acc, input_precision=PRODUCTS.precision)
                tl.store(p_split + (b_o * (W.K * W.C))[None, :] + (i_k * W.C + b_c)[:, None], acc, mask=m_dw)
