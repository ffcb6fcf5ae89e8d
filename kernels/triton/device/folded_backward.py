"""Gradients through the folded table on the device: what meets at a row is added up before anything is multiplied.

With ``dY`` the gradient of the convolution, see :mod:`.conv_pool_backward`, and ``dF`` that of the folded
table,

    dF[v, k, o] = sum of dY[n, t, o] over all (n, t) whose tap k reads row v
    dtable[v, c] = sum over k, o of dF[v, k, o] * W[o, k, c]
    dW[o, k, c] = sum over v of dF[v, k, o] * table[v, c]

so that a row that occurs a hundred times is multiplied once. ``seen[v, k]`` tells whether tap ``k`` reads row ``v`` at
all: only there is ``dF`` written, and only there do zeros meet infinite weights and rows, as in torch. Naming and
arguments are as in :mod:`.conv_pool`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .convolution import below, factor, load_tap

__all__ = ["sum_occurrences_kernel", "table_gradient_kernel", "table_weight_gradient_kernel"]

# Numbers that differ from call to call.
SIZES = [
    "total",
    "span",
    "count",
    "skipped",
    "windows",
    "length",
    "positions",
    "gradient_n",
    "gradient_q",
    "rows",
    "stride",
    "pool_size",
    "pool_stride",
]

NONE = tl.constexpr(-2)  # no token
NOTHING = tl.constexpr(-(2**31))  # the bits of -0.0, which Triton's constants know as 0.0


@triton.jit(do_not_specialize=SIZES)
def sum_occurrences_kernel(
    gradient: tl.tensor,  # (N, O, Q), strides as given
    argmax: tl.tensor,  # (N, Q, O)
    tokens: tl.tensor,  # (T,), ascending
    order: tl.tensor,  # (T,), where each token's position is
    dfolded: tl.tensor,  # (V + 1, K, O) float32
    seen: tl.tensor,  # (V + 1, K), zeros
    partials: tl.tensor,  # (spans, 2, K, O) float32: of every span the head and the tail
    total: tl.int64,  # T
    span: tl.int32,  # tokens of a span, a multiple of STEP
    windows: tl.int32,  # Q
    length: tl.int32,  # L
    positions: tl.int32,  # the convolution's
    gradient_n: tl.int64,
    gradient_q: tl.int64,
    pool_size: tl.int32,
    pool_stride: tl.int32,
    TAPS: tl.constexpr,
    P: tl.constexpr,  # the size of windows that lie side by side; 0 for others
    POOL_PADDING: tl.constexpr,
    POOL_DILATION: tl.constexpr,
    O: tl.constexpr,  # noqa: E741
    K: tl.constexpr,
    OVERLAP: tl.constexpr,  # how many windows may see a position
    ALIGN: tl.constexpr,
    SAME: tl.constexpr,  # the gradient lies in memory as argmax does
    NARROW: tl.constexpr,  # T is an int32: a wider division takes many times as long
    STEP: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_O: tl.constexpr,
) -> tl.tensor:
    """Sum what arrives at a span's occurrences, of all taps and ``BLOCK_O`` outputs; ``STEP`` are on their way at once.

    A sum is written where a token ends. A token may go on in the next span, or come from the one before. Its sum is
    then the span's tail or head, and is joined behind, see :mod:`.gather_backward`. Sums begin at -0.0. A tap that the
    convolution does not have at a position adds -0.0, every other tap a gradient or +0.0: where -0.0 is left, no
    position had the tap.
    """
    TILES_O: tl.constexpr = (O + BLOCK_O - 1) // BLOCK_O
    i_span = (tl.program_id(0) // TILES_O).to(tl.int64)
    b_o = tl.program_id(0) % TILES_O * BLOCK_O + tl.arange(0, BLOCK_O)
    b_k = tl.arange(0, BLOCK_K)
    m_o, m_k = below(b_o, O, BLOCK_O), below(b_k, K, BLOCK_K)
    b_place = (b_k * O)[:, None] + b_o[None, :]
    size, step = pool_size, pool_stride
    if P:
        size, step = P, P
    i_first = i_span * span
    i_end = tl.minimum(i_first + span, total)
    p_head = partials + i_span * 2 * K * O
    i_v = tl.load(tokens + i_first).to(tl.int64)
    goes_on = (i_first > 0) & (tl.load(tokens + i_first - 1, mask=i_first > 0, other=NONE).to(tl.int64) == i_v)
    b_none = tl.full((BLOCK_K, BLOCK_O), NOTHING, tl.int32).to(tl.float32, bitcast=True)
    b_sum = b_none
    for i_step in range(i_first, i_end, STEP):
        arrived: tl.tuple = ()
        following: tl.tuple = ()
        for j in tl.static_range(STEP):
            m = i_step + j < i_end
            i_at = tl.load(order + i_step + j, mask=m, other=0)
            if NARROW:
                i_at = i_at.to(tl.int32)
            i_n = i_at // length
            b_from = (i_at - i_n * length).to(tl.int32) + TAPS.left - b_k * TAPS.dilation
            i_n = i_n.to(tl.int64)
            b_t = b_from // TAPS.stride
            m_t = m & m_k & (b_from >= 0) & (b_t * TAPS.stride == b_from) & (b_t < positions)
            b_u = b_t + POOL_PADDING
            p_argmax = argmax + i_n * windows * O
            p_g = gradient + (i_n * windows * O if SAME else i_n * (gradient_n * ALIGN))
            b_dy = b_none
            for i in range(OVERLAP):
                b_q = b_u // step - i
                b_rest = b_u - b_q * step
                b_p = b_rest // POOL_DILATION
                m_q = m_t & (b_q >= 0) & (b_q < windows)
                if not P:
                    m_q = m_q & (b_p * POOL_DILATION == b_rest) & (b_p < size)
                m_load = m_q[:, None] & m_o[None, :]
                b_argmax = tl.load(p_argmax + (b_q * O)[:, None] + b_o[None, :], mask=m_load, other=-1).to(tl.int32)
                if SAME:
                    b_place_g = (b_q * O)[:, None] + b_o[None, :]
                else:
                    b_place_g = (b_q.to(tl.int64) * (gradient_q * ALIGN))[:, None] + b_o[None, :]
                b_g = tl.load(p_g + b_place_g, mask=m_load, other=0.0).to(tl.float32)
                b_dy += tl.where(m_t[:, None], tl.where(b_argmax == b_p[:, None], b_g, 0.0), b_none)
            arrived = arrived + (b_dy,)  # noqa: RUF005
            i_next = tl.load(tokens + i_step + j + 1, mask=i_step + j + 1 < total, other=NONE).to(tl.int64)
            following = following + (i_next,)  # noqa: RUF005
        for j in tl.static_range(STEP):
            b_sum += arrived[j]
            is_last = following[j] != i_v
            ends = (i_step + j < i_end) & (is_last | (i_step + j + 1 == i_end))
            if ends:
                p_whole = tl.where(is_last, dfolded + i_v * K * O, p_head + K * O)
                p_sum = tl.where(goes_on, p_head, p_whole) + b_place
                tl.store(p_sum, b_sum, mask=m_k[:, None] & m_o[None, :])
                # Whichever span of a token's, and whichever block of outputs, writes it: it is the same.
                b_bits = b_sum.to(tl.int32, bitcast=True)
                b_seen = tl.max((b_bits != NOTHING).to(tl.int32), axis=1)
                tl.store(seen + i_v * K + b_k, tl.full((BLOCK_K,), 1, tl.int8), mask=m_k & (b_seen != 0))
                b_sum = b_none
            goes_on = goes_on & (ends == 0)
            i_v = following[j]


@triton.jit(do_not_specialize=SIZES)
def table_gradient_kernel(
    dfolded: tl.tensor,  # (V + 1, K, O) float32
    seen: tl.tensor,  # (V + 1, K)
    w: tl.tensor,  # packed
    dtable: tl.tensor,  # (V, C), contiguous
    count: tl.int64,  # V
    skipped: tl.int64,  # the row that gets no gradient
    W: tl.constexpr,
    TILE: tl.constexpr,
    PRODUCTS: tl.constexpr,
) -> tl.tensor:
    """Multiply ``M`` rows' gradients with the weights of ``C`` channels."""
    TILES_C: tl.constexpr = (W.C + TILE.C - 1) // TILE.C
    TILES_O: tl.constexpr = (W.O + TILE.O - 1) // TILE.O
    b_v = (tl.program_id(0) // TILES_C).to(tl.int64) * TILE.M + tl.arange(0, TILE.M)
    b_c = tl.program_id(0) % TILES_C * TILE.C + tl.arange(0, TILE.C)
    m_v, m_c = b_v < count, below(b_c, W.C, TILE.C)
    acc = tl.full((TILE.M, TILE.C), 0.0, tl.float32)
    for step in range(W.K * TILES_O):
        k = step // TILES_O
        b_o = (step % TILES_O) * TILE.O + tl.arange(0, TILE.O)
        m_o = below(b_o, W.O, TILE.O)
        m_seen = tl.load(seen + b_v * W.K + k, mask=m_v, other=0) != 0
        p_f = dfolded + ((b_v * W.K + k) * W.O)[:, None] + b_o[None, :]
        b_f = tl.load(p_f, mask=m_v[:, None] & m_o[None, :], other=0.0)  # before it is known what was written
        b_f = tl.where(m_seen[:, None], b_f, 0.0)
        b_w = load_tap(w, b_o, b_c, m_c, k, W, TILE).to(tl.float32)
        b_product = tl.dot(factor(b_f, PRODUCTS.rounds), b_w, input_precision=PRODUCTS.precision)
        acc += tl.where(m_seen[:, None], b_product, 0.0)
    acc = tl.where((b_v == skipped)[:, None], 0.0, acc)
    p = dtable + (b_v * W.C)[:, None] + b_c[None, :]
    tl.store(p, acc.to(dtable.dtype.element_ty), mask=m_v[:, None] & m_c[None, :])


@triton.jit(do_not_specialize=SIZES)
def table_weight_gradient_kernel(
    dfolded: tl.tensor,  # (V + 1, K, O) float32
    seen: tl.tensor,  # (V + 1, K)
    table: tl.tensor,  # (V, C), rows as given
    partials: tl.tensor,  # (splits, O * K * C + O), of the weights as (O, K, C), then of the bias
    count: tl.int64,  # V
    rows: tl.int64,  # of a split, a multiple of TILE.M
    stride: tl.int64,  # between rows of the table
    W: tl.constexpr,
    ALIGN: tl.constexpr,
    WHOLE: tl.constexpr,  # a tap that reads a row at every position, or -1 if there is none
    WANT_W: tl.constexpr,
    SHARED: tl.constexpr,  # that a program serves
    TILE: tl.constexpr,
    PRODUCTS: tl.constexpr,
) -> tl.tensor:
    """Sum one split's gradient of ``SHARED`` taps x ``C`` weights of ``O`` outputs, and of their bias."""
    TILES_C: tl.constexpr = (W.C + TILE.C - 1) // TILE.C if WANT_W else 1
    TILES_K: tl.constexpr = (W.K + SHARED - 1) // SHARED if WANT_W else 1
    TILES_O: tl.constexpr = (W.O + TILE.O - 1) // TILE.O
    i_split = (tl.program_id(0) // (TILES_C * TILES_K * TILES_O)).to(tl.int64)
    i_c = tl.program_id(0) % TILES_C
    i_k = tl.program_id(0) // TILES_C % TILES_K
    b_o = tl.program_id(0) // (TILES_C * TILES_K) % TILES_O * TILE.O + tl.arange(0, TILE.O)
    b_c = i_c * TILE.C + tl.arange(0, TILE.C)
    m_o, m_c = below(b_o, W.O, TILE.O), below(b_c, W.C, TILE.C)
    b_db = tl.full((TILE.O,), 0.0, tl.float32)
    accs: tl.tuple = ()
    for _ in tl.static_range(SHARED):
        accs = accs + (tl.full((TILE.O, TILE.C), 0.0, tl.float32),)  # noqa: RUF005
    first = i_split * rows
    for i_v in range(first, tl.minimum(first + rows, count + 1), TILE.M):
        b_v = i_v + tl.arange(0, TILE.M)
        if WHOLE >= 0:
            m_whole = (b_v <= count) & (i_c == 0) & (i_k == 0)
            m_f = tl.load(seen + b_v * W.K + WHOLE, mask=m_whole, other=0) != 0
            p_f = dfolded + ((b_v * W.K + WHOLE) * W.O)[:, None] + b_o[None, :]
            b_f = tl.load(p_f, mask=m_whole[:, None] & m_o[None, :], other=0.0)
            b_db += tl.sum(tl.where(m_f[:, None], b_f, 0.0), axis=0)
        if WANT_W:
            p_x = table + (b_v * (stride * ALIGN))[:, None] + b_c[None, :]
            b_x = tl.load(p_x, mask=(b_v < count)[:, None] & m_c[None, :], other=0.0).to(tl.float32)
            b_x = factor(b_x, PRODUCTS.rounds)
            seen_of: tl.tuple = ()
            sums_of: tl.tuple = ()
            for j in tl.static_range(SHARED):  # all loads are on their way before one is waited for
                k = i_k * SHARED + j
                m_k = (b_v < count) & (k < W.K)
                seen_of = seen_of + (tl.load(seen + b_v * W.K + k, mask=m_k, other=0) != 0,)  # noqa: RUF005
                p_f = dfolded + ((b_v * W.K + k) * W.O)[:, None] + b_o[None, :]
                sums_of = sums_of + (tl.load(p_f, mask=m_k[:, None] & m_o[None, :], other=0.0),)  # noqa: RUF005
            products: tl.tuple = ()
            for j in tl.static_range(SHARED):
                b_f = tl.where(seen_of[j][:, None], sums_of[j], 0.0)
                b_row = tl.where(seen_of[j][:, None], b_x, 0.0)
                product = tl.dot(
                    tl.trans(factor(b_f, PRODUCTS.rounds)), b_row, accs[j], input_precision=PRODUCTS.precision
                )
                products = products + (product,)  # noqa: RUF005
            accs = products
    p_split = partials + i_split * (W.O * W.K * W.C + W.O)
    if WANT_W:
        for j in tl.static_range(SHARED):
            k = i_k * SHARED + j
            p = p_split + (b_o * (W.K * W.C))[:, None] + (k * W.C + b_c)[None, :]
            tl.store(p, accs[j], mask=m_o[:, None] & m_c[None, :] & (k < W.K))
    if WHOLE >= 0:
        tl.store(p_split + W.O * W.K * W.C + b_o, b_db, mask=m_o & (i_c == 0) & (i_k == 0))
