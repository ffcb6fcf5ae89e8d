"""Gradients of layers whose pooling windows lie side by side, on the device: a tile's row is one window's positions.

Where windows do not overlap, position ``u = q * P + j`` of the padded input (``P`` is the pool's stride) meets tap
``k`` in window ``q - d`` at phase ``p``, and ``d`` and ``p`` depend on ``j`` and ``k`` alone:

    d = ceil((k * dilation - j) / P),    p = j - k * dilation + d * P
    dx[n, u, c] = sum over k, o of where(argmax[n, q - d, o] == p, g[n, q - d, o], 0) * W[o, k, c]
    dW[o, k, c] = sum over n, q, j of where(argmax[n, q - d, o] == p, g[n, q - d, o], 0) * x[n, u, c]

So a tile of ``BLOCK_M`` spans of ``P`` positions reads each window that it meets once, and each row of the input once,
where the kernels of :mod:`.conv_pool_backward` read both once a tap. Loops over ``j``, ``k`` are unrolled.
Programs keep what they can (the weights; the sums of their gradients) and go from tile to tile. Naming and arguments
are as in :mod:`.conv_pool`.

The zeros of every position of a tile are multiplied, also at positions ``u - k * dilation`` that the convolution does
not have: near a sample's ends NaN and infinities would spread further than in torch. A program that meets one computes
its part again, tap by tap, and leaves those positions out.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .conv_pool import INTERPRETED
from .convolution import look_up, rounded

__all__ = ["INTERPRETED", "phase_input_gradient_kernel", "phase_weight_gradient_kernel"]

# Numbers that differ from call to call.
SIZES = [
    "rows",
    "spans",
    "windows",
    "length",
    "shift",
    "begin",
    "end",
    "gradient_n",
    "gradient_q",
    "stride_n",
    "stride_l",
    "index_n",
    "index_l",
    "count",
]


@triton.jit
def tile_of_spans(
    i_tile: tl.tensor,
    rows: tl.tensor,
    spans: tl.tensor,
    BLOCK_M: tl.constexpr,
) -> tl.tensor:
    """Return a tile's first sample and span, and of each row the samples behind the first, its span, and whether it is.

    Whatever lies in a tile is told from its first row in 32 bits.
    """
    i_row = (tl.full((), 0, tl.int64) + i_tile) * BLOCK_M
    i_n = i_row // spans
    i_q = (i_row % spans).to(tl.int32)
    b_q = i_q + tl.arange(0, BLOCK_M)
    b_dn = b_q // spans
    return i_n, i_q, b_dn, b_q - b_dn * spans, i_row + tl.arange(0, BLOCK_M) < rows


@triton.jit
def load_windows(
    gradient: tl.tensor,
    argmax: tl.tensor,
    w: tl.tensor,  # of whose dtype products are
    i_n: tl.tensor,
    i_q: tl.tensor,
    b_dn: tl.tensor,  # (BLOCK_M,) samples behind the first
    b_q: tl.tensor,  # (BLOCK_M,) spans
    m_n: tl.tensor,  # (BLOCK_M,)
    b_o: tl.tensor,  # (BLOCK_O,)
    m_o: tl.tensor,  # (BLOCK_O,)
    windows: tl.tensor,
    gradient_n: tl.tensor,
    gradient_q: tl.tensor,
    O: tl.constexpr,  # noqa: E741
    P: tl.constexpr,
    BEHIND: tl.constexpr,  # positions from the first tap to the last
    SAME: tl.constexpr,
    INTERPRETED: tl.constexpr,
) -> tl.tensor:
    """Return the gradients of a span's window and of those before it that its taps meet, and their argmax.

    A tuple of ``(BLOCK_M, BLOCK_O)``: gradient and argmax of the span's own window, of the one before it, and so on.
    """
    seen: tl.tuple = ()
    for back in tl.static_range((BEHIND + P - 1) // P + 1):
        b_window = b_q - back
        m = (m_n & (b_window >= 0) & (b_window < windows))[:, None] & m_o[None, :]
        b_w = b_dn * windows + b_window - i_q  # windows behind the tile's first
        b_place = (b_w * O)[:, None] + b_o[None, :]
        # Where there is no window, its gradient is 0 and its argmax does not matter.
        b_argmax = tl.load(argmax + (i_n * windows + i_q) * O + b_place, mask=m, other=0).to(tl.int32)
        if SAME:
            p_g = gradient + (i_n * windows + i_q) * O + b_place
        else:
            p_g = gradient + i_n * gradient_n + i_q * gradient_q
            p_g = p_g + (b_dn * gradient_n + (b_window - i_q) * gradient_q)[:, None] + b_o[None, :]
        b_g = tl.load(p_g, mask=m, other=0.0).to(w.dtype.element_ty)
        if INTERPRETED:
            b_g = b_g.to(tl.float32)
        seen = seen + (b_g, b_argmax)  # noqa: RUF005
    return seen


@triton.jit
def arriving_at(
    seen: tl.tuple,  # what load_windows returns
    position: tl.constexpr,
    P: tl.constexpr,
    ROUND: tl.constexpr,
) -> tl.tensor:
    """Return the gradient that arrives at a span's ``position``, a negative one before it, ``(BLOCK_M, BLOCK_O)``."""
    back: tl.constexpr = (P - 1 - position) // P
    b_g = seen[2 * back]
    return rounded(tl.where(seen[2 * back + 1] == position + back * P, b_g, 0.0).to(b_g.dtype), ROUND)


@triton.jit
def arriving_from(
    gradient: tl.tensor,
    argmax: tl.tensor,
    w: tl.tensor,  # of whose dtype products are
    b_n: tl.tensor,  # (BLOCK_M,) samples
    b_u: tl.tensor,  # (BLOCK_M,) positions as the pool sees them, its padding's included
    m_u: tl.tensor,  # (BLOCK_M,) not of the padding
    b_o: tl.tensor,  # (BLOCK_O,)
    m_o: tl.tensor,  # (BLOCK_O,)
    windows: tl.tensor,
    gradient_n: tl.tensor,
    gradient_q: tl.tensor,
    O: tl.constexpr,  # noqa: E741
    P: tl.constexpr,
    ROUND: tl.constexpr,
    INTERPRETED: tl.constexpr,
) -> tl.tensor:
    """Return the gradient that arrives at positions of any phases, ``(BLOCK_M, BLOCK_O)``."""
    b_window = b_u // P
    m = (m_u & (b_window < windows))[:, None] & m_o[None, :]
    b_argmax = tl.load(argmax + ((b_n * windows + b_window) * O)[:, None] + b_o[None, :], mask=m, other=-1).to(tl.int32)
    p_g = gradient + (b_n * gradient_n + b_window * gradient_q)[:, None] + b_o[None, :]
    b_g = tl.load(p_g, mask=m, other=0.0).to(w.dtype.element_ty)
    if INTERPRETED:
        b_g = b_g.to(tl.float32)
    return rounded(tl.where(b_argmax == (b_u - b_window * P)[:, None], b_g, 0.0).to(b_g.dtype), ROUND)


@triton.jit
def phase_of_input(
    acc: tl.tensor,  # (BLOCK_M, BLOCK_C)
    arriving: tl.tuple,  # the gradients that arrive at positions from the first tap's on, (BLOCK_M, BLOCK_O)
    filters: tl.tuple,  # of each tap, (BLOCK_O, BLOCK_C)
    j: tl.constexpr,
    K: tl.constexpr,
    DILATION: tl.constexpr,
    PRECISION: tl.constexpr,
) -> tl.tensor:
    """Return the sums of one phase's positions after all taps of a block of outputs."""
    for k in tl.static_range(K):
        acc = tl.dot(arriving[j + (K - 1 - k) * DILATION], filters[k], acc, input_precision=PRECISION)
    return acc


@triton.jit
def load_tap(
    w: tl.tensor,
    b_o: tl.tensor,  # (BLOCK_O,)
    m_o: tl.tensor,  # (BLOCK_O,)
    b_c: tl.tensor,  # (BLOCK_C,)
    m_c: tl.tensor,  # (BLOCK_C,)
    k: tl.tensor,
    C: tl.constexpr,
    PITCH: tl.constexpr,
    ROUND: tl.constexpr,
    INTERPRETED: tl.constexpr,
) -> tl.tensor:
    """Return a tap's weights, ``(BLOCK_O, BLOCK_C)``."""
    p_w = w + (b_o.to(tl.int64) * PITCH)[:, None] + (k * C + b_c)[None, :]
    b_w = tl.load(p_w, mask=m_o[:, None] & m_c[None, :], other=0.0)
    if INTERPRETED:
        b_w = b_w.to(tl.float32)
    return rounded(b_w, ROUND)


@triton.jit
def load_taps(
    w: tl.tensor,
    b_o: tl.tensor,  # (BLOCK_O,)
    m_o: tl.tensor,  # (BLOCK_O,)
    b_c: tl.tensor,  # (BLOCK_C,)
    m_c: tl.tensor,  # (BLOCK_C,)
    C: tl.constexpr,
    K: tl.constexpr,
    PITCH: tl.constexpr,
    ROUND: tl.constexpr,
    INTERPRETED: tl.constexpr,
) -> tl.tensor:
    """Return every tap's weights, a tuple of ``(BLOCK_O, BLOCK_C)``."""
    filters: tl.tuple = ()
    for k in tl.static_range(K):
        filters = filters + (load_tap(w, b_o, m_o, b_c, m_c, k, C, PITCH, ROUND, INTERPRETED),)  # noqa: RUF005
    return filters


@triton.jit
def all_finite(
    blocks: tl.tuple,  # of (ROWS, COLUMNS)
    COUNT: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
) -> tl.tensor:
    """Tell whether all numbers of all blocks are finite: 0 times one of them is 0."""
    b = tl.full((ROWS, COLUMNS), 0.0, tl.float32)
    for i in tl.static_range(COUNT):
        b += blocks[i].to(tl.float32) * 0.0
    return tl.max(tl.max((b != 0.0).to(tl.int32), axis=1), axis=0) == 0


@triton.jit
def store_apart(
    gradient: tl.tensor,
    argmax: tl.tensor,
    w: tl.tensor,
    dx: tl.tensor,
    i_tile: tl.tensor,
    i_c: tl.tensor,
    rows: tl.tensor,
    spans: tl.tensor,
    windows: tl.tensor,
    length: tl.tensor,
    shift: tl.tensor,
    begin: tl.tensor,
    end: tl.tensor,
    gradient_n: tl.tensor,
    gradient_q: tl.tensor,
    C: tl.constexpr,
    O: tl.constexpr,  # noqa: E741
    K: tl.constexpr,
    P: tl.constexpr,
    DILATION: tl.constexpr,
    PITCH: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_O: tl.constexpr,
    PRECISION: tl.constexpr,
    ROUND: tl.constexpr,
    INTERPRETED: tl.constexpr,
) -> tl.tensor:
    """Store a tile's gradient of 16 channels from ``i_c`` on; a tap counts only where the convolution has it."""
    i_n, i_q, b_dn, b_q, m_n = tile_of_spans(i_tile, rows, spans, BLOCK_M)
    b_c = i_c + tl.arange(0, 16)
    m_c = b_c < C
    for j in range(P):
        acc = tl.full((BLOCK_M, 16), 0.0, tl.float32)
        for step in range(K * ((O + BLOCK_O - 1) // BLOCK_O)):
            k, b_o = step % K, step // K * BLOCK_O + tl.arange(0, BLOCK_O)
            m_o = b_o < O
            b_u = b_q * P + j - k * DILATION
            m_u = m_n & (b_u >= begin) & (b_u < end)
            b_dy = arriving_from(
                gradient, argmax, w, i_n + b_dn, b_u, m_u, b_o, m_o, windows,
                gradient_n, gradient_q, O, P, ROUND, INTERPRETED,
            )  # fmt: skip
            b_w = load_tap(w, b_o, m_o, b_c, m_c, k, C, PITCH, ROUND, INTERPRETED)
            acc += tl.where(m_u[:, None], tl.dot(b_dy, b_w, input_precision=PRECISION), 0.0)
        store_phase(dx, acc, i_n, i_q, b_dn, b_q, m_n, b_c, m_c, length, shift, j, C, P)


@triton.jit(do_not_specialize=SIZES)
def phase_input_gradient_kernel(
    gradient: tl.tensor,  # (N, O, Q), strides as given
    argmax: tl.tensor,  # (N, Q, O)
    w: tl.tensor,  # (O, PITCH), of which K * C are used
    dx: tl.tensor,  # (N, L, C), contiguous
    rows: tl.int64,  # N * spans
    spans: tl.int32,  # of P positions in a padded sample
    windows: tl.int32,  # Q
    length: tl.int32,  # L
    shift: tl.int32,  # positions of padding before the input's first
    begin: tl.int32,  # the convolution's first position as the pool sees it, behind its padding
    end: tl.int32,  # and the one behind its last
    gradient_n: tl.int64,
    gradient_q: tl.int64,
    C: tl.constexpr,
    O: tl.constexpr,  # noqa: E741
    K: tl.constexpr,
    P: tl.constexpr,
    DILATION: tl.constexpr,
    PITCH: tl.constexpr,
    SAME: tl.constexpr,  # the pooled gradient lies in memory as argmax does
    GRADIENT_ALIGN: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_O: tl.constexpr,
    PRECISION: tl.constexpr,
    ROUND: tl.constexpr,
    INTERPRETED: tl.constexpr,
) -> tl.tensor:
    """Compute the gradient of tiles of ``BLOCK_M`` spans, of whichever samples, and ``BLOCK_C`` channels."""
    TILES_C: tl.constexpr = (C + BLOCK_C - 1) // BLOCK_C
    BEHIND: tl.constexpr = (K - 1) * DILATION
    RESIDENT: tl.constexpr = O <= BLOCK_O
    b_c = tl.program_id(0) % TILES_C * BLOCK_C + tl.arange(0, BLOCK_C)
    m_c = b_c < C
    b_o = tl.arange(0, BLOCK_O)
    gradient_n, gradient_q = gradient_n * GRADIENT_ALIGN, gradient_q * GRADIENT_ALIGN
    resident: tl.tuple = ()
    is_finite = 1
    if RESIDENT:
        resident = load_taps(w, b_o, b_o < O, b_c, m_c, C, K, PITCH, ROUND, INTERPRETED)
        is_finite = all_finite(resident, K, BLOCK_O, BLOCK_C)
    b_nan = tl.full((BLOCK_M,), 0, tl.int32)
    tiles = ((rows + BLOCK_M - 1) // BLOCK_M).to(tl.int32)
    for i_tile in range(tl.program_id(0) // TILES_C, tiles, tl.num_programs(0) // TILES_C):
        i_n, i_q, b_dn, b_q, m_n = tile_of_spans(i_tile, rows, spans, BLOCK_M)
        accs: tl.tuple = ()
        if RESIDENT == 0:
            for _ in tl.static_range(P):
                accs = accs + (tl.full((BLOCK_M, BLOCK_C), 0.0, tl.float32),)  # noqa: RUF005
        for o0 in range(0, O, BLOCK_O):
            m_o = o0 + b_o < O
            seen = load_windows(
                gradient, argmax, w, i_n, i_q, b_dn, b_q, m_n, o0 + b_o, m_o, windows,
                gradient_n, gradient_q, O, P, BEHIND, SAME, INTERPRETED,
            )  # fmt: skip
            arriving: tl.tuple = ()
            for j in tl.static_range(BEHIND):
                arriving = arriving + (arriving_at(seen, j - BEHIND, P, ROUND),)  # noqa: RUF005
            if RESIDENT:
                for j in tl.static_range(P):
                    arriving = arriving + (arriving_at(seen, j, P, ROUND),)  # noqa: RUF005
                    acc = tl.full((BLOCK_M, BLOCK_C), 0.0, tl.float32)
                    acc = phase_of_input(acc, arriving, resident, j, K, DILATION, PRECISION)
                    store_phase(dx, acc, i_n, i_q, b_dn, b_q, m_n, b_c, m_c, length, shift, j, C, P)
            else:
                filters = load_taps(w, o0 + b_o, m_o, b_c, m_c, C, K, PITCH, ROUND, INTERPRETED)
                sums: tl.tuple = ()
                for j in tl.static_range(P):
                    arriving = arriving + (arriving_at(seen, j, P, ROUND),)  # noqa: RUF005
                    acc = phase_of_input(accs[j], arriving, filters, j, K, DILATION, PRECISION)
                    sums = sums + (acc,)  # noqa: RUF005
                accs = sums
        if RESIDENT == 0:
            for j in tl.static_range(P):
                b_nan += tl.sum((accs[j] != accs[j]).to(tl.int32), axis=1)
                store_phase(dx, accs[j], i_n, i_q, b_dn, b_q, m_n, b_c, m_c, length, shift, j, C, P)
    if RESIDENT == 0:
        is_finite = tl.max(b_nan, axis=0) == 0
    if is_finite == 0:
        tl.debug_barrier()  # what was stored is stored again, by other threads
        for i_tile in range(tl.program_id(0) // TILES_C, tiles, tl.num_programs(0) // TILES_C):
            for i_c in range(0, BLOCK_C, 16):  # few at once, whose sums take no registers from the others
                store_apart(
                    gradient, argmax, w, dx, i_tile, tl.program_id(0) % TILES_C * BLOCK_C + i_c, rows, spans, windows,
                    length, shift, begin, end, gradient_n, gradient_q, C, O, K, P, DILATION, PITCH, BLOCK_M, BLOCK_O,
                    PRECISION, ROUND, INTERPRETED,
                )  # fmt: skip


@triton.jit
def store_phase(
    dx: tl.tensor,
    acc: tl.tensor,  # (BLOCK_M, BLOCK_C)
    i_n: tl.tensor,
    i_q: tl.tensor,
    b_dn: tl.tensor,  # (BLOCK_M,) samples behind the first
    b_q: tl.tensor,  # (BLOCK_M,) spans
    m_n: tl.tensor,  # (BLOCK_M,)
    b_c: tl.tensor,  # (BLOCK_C,)
    m_c: tl.tensor,  # (BLOCK_C,)
    length: tl.tensor,
    shift: tl.tensor,
    j: tl.tensor,
    C: tl.constexpr,
    P: tl.constexpr,
) -> tl.tensor:
    """Store the gradient of phase ``j``'s positions, of those that are there."""
    b_i = b_q * P + j - shift
    m = (m_n & (b_i >= 0) & (b_i < length))[:, None] & m_c[None, :]
    i_first = i_n * length + i_q * P
    p_dx = dx + i_first * C + ((b_dn * length + b_i - i_q * P) * C)[:, None] + b_c[None, :]
    tl.store(p_dx, acc.to(dx.dtype.element_ty), mask=m)


@triton.jit
def first_rows(
    b_n: tl.tensor,  # (BLOCK_M,) samples
    m_n: tl.tensor,  # (BLOCK_M,)
    index: tl.tensor,
    index_n: tl.tensor,
    count: tl.tensor,
    ROWS: tl.constexpr,
) -> tl.tensor:
    """Return where samples begin, in rows of the series for windows, and the mask of those that are there."""
    if ROWS == "windows":
        b_n, m_n = look_up(index + b_n * index_n, m_n, count)
    return b_n, m_n


@triton.jit
def load_phase(
    x: tl.tensor,
    i_n: tl.tensor,
    i_q: tl.tensor,
    b_dn: tl.tensor,  # (BLOCK_M,) samples behind the first
    b_q: tl.tensor,  # (BLOCK_M,) spans
    b_first: tl.tensor,  # (BLOCK_M,) what first_rows returns
    m_x: tl.tensor,  # (BLOCK_M,)
    b_c: tl.tensor,  # (BLOCK_C,)
    m_c: tl.tensor,  # (BLOCK_C,)
    length: tl.tensor,
    shift: tl.tensor,
    stride_n: tl.tensor,
    stride_l: tl.tensor,
    index: tl.tensor,
    index_n: tl.tensor,
    index_l: tl.tensor,
    count: tl.tensor,
    j: tl.tensor,
    C: tl.constexpr,
    P: tl.constexpr,
    PACKED: tl.constexpr,
    ROWS: tl.constexpr,
    ROUND: tl.constexpr,
    INTERPRETED: tl.constexpr,
) -> tl.tensor:
    """Return the input at phase ``j``'s positions, ``(BLOCK_C, BLOCK_M)``, 0 where it has none."""
    b_i = b_q * P + j - shift
    m_i = m_x & (b_i >= 0) & (b_i < length)
    if ROWS == "tokens":
        b_row, m_i = look_up(index + b_first * index_n + b_i * index_l, m_i, count)
        p_x = x + b_row * stride_n
    elif PACKED:
        p_x = x + (i_n * length + i_q * P) * C + (b_dn * length + b_i - i_q * P) * C
    else:
        p_x = x + b_first * stride_n + b_i * stride_l
    b_x = tl.load(p_x[:, None] + b_c.to(tl.int64)[None, :], mask=m_i[:, None] & m_c[None, :], other=0.0)
    if INTERPRETED:
        b_x = b_x.to(tl.float32)
    return tl.trans(rounded(b_x, ROUND))


@triton.jit(do_not_specialize=SIZES)
def phase_weight_gradient_kernel(
    gradient: tl.tensor,  # (N, O, Q), strides as given
    argmax: tl.tensor,  # (N, Q, O)
    x: tl.tensor,  # (N, C, L), or (V, C) whose rows are found through the index, strides as given
    partials: tl.tensor,  # (splits, O * K * C + O), of the weights as (O, K, C), then of the bias
    rows: tl.int64,  # N * spans
    spans: tl.int32,  # of P positions in a padded sample
    windows: tl.int32,  # Q
    length: tl.int32,  # L
    shift: tl.int32,  # positions of padding before the input's first
    begin: tl.int32,  # the convolution's first position as the pool sees it, behind its padding
    end: tl.int32,  # and the one behind its last
    gradient_n: tl.int64,
    gradient_q: tl.int64,
    stride_n: tl.int64,
    stride_l: tl.int64,
    index: tl.tensor,  # (N, L) tokens or (N,) starts, strides as given, or None
    index_n: tl.int64,
    index_l: tl.int64,
    count: tl.int64,  # numbers in the index are below it
    C: tl.constexpr,
    O: tl.constexpr,  # noqa: E741
    K: tl.constexpr,
    P: tl.constexpr,
    DILATION: tl.constexpr,
    SAME: tl.constexpr,
    GRADIENT_ALIGN: tl.constexpr,
    ALIGN: tl.constexpr,
    PACKED: tl.constexpr,  # the input is (N, L, C), contiguous
    ROWS: tl.constexpr,
    WANT_W: tl.constexpr,
    WANT_B: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_O: tl.constexpr,
    PRECISION: tl.constexpr,
    ROUND: tl.constexpr,
    INTERPRETED: tl.constexpr,
) -> tl.tensor:
    """Sum one split's gradient of all taps' weights, ``BLOCK_C`` channels x ``BLOCK_O`` outputs, and of the bias."""
    TILES_C: tl.constexpr = (C + BLOCK_C - 1) // BLOCK_C if WANT_W else 1
    TILES_O: tl.constexpr = (O + BLOCK_O - 1) // BLOCK_O
    BEHIND: tl.constexpr = (K - 1) * DILATION if WANT_W else 0
    i_c = tl.program_id(0) % TILES_C
    b_c = i_c * BLOCK_C + tl.arange(0, BLOCK_C)
    m_c = b_c < C
    b_o = tl.program_id(0) // TILES_C % TILES_O * BLOCK_O + tl.arange(0, BLOCK_O)
    m_o = b_o < O
    i_split = tl.program_id(0) // (TILES_C * TILES_O)
    gradient_n, gradient_q = gradient_n * GRADIENT_ALIGN, gradient_q * GRADIENT_ALIGN
    stride_n = stride_n * ALIGN
    stride_l = stride_l * ALIGN
    accs: tl.tuple = ()
    if WANT_W:
        for _ in tl.static_range(K):
            accs = accs + (tl.full((BLOCK_C, BLOCK_O), 0.0, tl.float32),)  # noqa: RUF005
    b_db = tl.full((BLOCK_M, BLOCK_O), 0.0, tl.float32)
    tiles = ((rows + BLOCK_M - 1) // BLOCK_M).to(tl.int32)
    for i_tile in range(i_split, tiles, tl.num_programs(0) // (TILES_C * TILES_O)):
        i_n, i_q, b_dn, b_q, m_n = tile_of_spans(i_tile, rows, spans, BLOCK_M)
        seen = load_windows(
            gradient, argmax, x, i_n, i_q, b_dn, b_q, m_n, b_o, m_o, windows,
            gradient_n, gradient_q, O, P, BEHIND, SAME, INTERPRETED,
        )  # fmt: skip
        if WANT_B:
            b_db += tl.where(seen[1] >= 0, seen[0].to(tl.float32), 0.0)
        if WANT_W:
            b_first, m_x = first_rows(i_n + b_dn, m_n, index, index_n, count, ROWS)
            arriving: tl.tuple = ()
            for j in tl.static_range(BEHIND):
                arriving = arriving + (arriving_at(seen, j - BEHIND, P, ROUND),)  # noqa: RUF005
            for j in tl.static_range(P):
                arriving = arriving + (arriving_at(seen, j, P, ROUND),)  # noqa: RUF005
                b_x = load_phase(
                    x, i_n, i_q, b_dn, b_q, b_first, m_x, b_c, m_c, length, shift, stride_n, stride_l,
                    index, index_n, index_l, count, j, C, P, PACKED, ROWS, ROUND, INTERPRETED,
                )  # fmt: skip
                sums: tl.tuple = ()
                for k in tl.static_range(K):
                    b_dy = arriving[j + (K - 1 - k) * DILATION]
                    sums = sums + (tl.dot(b_x, b_dy, accs[k], input_precision=PRECISION),)  # noqa: RUF005
                accs = sums
    p_split = partials + i_split.to(tl.int64) * (O * K * C + O)
    if WANT_B:
        tl.store(p_split + O * K * C + b_o, tl.sum(b_db, axis=0), mask=m_o & (i_c == 0))
    if WANT_W:
        m_dw = m_c[:, None] & m_o[None, :]
        b_nan = tl.full((BLOCK_C, BLOCK_O), 0, tl.int32)
        for k in tl.static_range(K):
            tl.store(p_split + (b_o * (K * C))[None, :] + (k * C + b_c)[:, None], accs[k], mask=m_dw)
            b_nan = b_nan | (accs[k] != accs[k]).to(tl.int32)
        if tl.max(tl.max(b_nan, axis=1), axis=0) > 0:
            tl.debug_barrier()  # what was stored is stored again, by other threads
            for i_k in range(K):
                acc = tl.full((BLOCK_C, BLOCK_O), 0.0, tl.float32)
                for i_tile in range(i_split, tiles, tl.num_programs(0) // (TILES_C * TILES_O)):
                    i_n, i_q, b_dn, b_q, m_n = tile_of_spans(i_tile, rows, spans, BLOCK_M)
                    b_first, m_x = first_rows(i_n + b_dn, m_n, index, index_n, count, ROWS)
                    for i_j in range(P):
                        b_u = b_q * P + i_j - i_k * DILATION
                        m_u = m_n & (b_u >= begin) & (b_u < end)
                        b_x = load_phase(
                            x, i_n, i_q, b_dn, b_q, b_first, m_x & m_u, b_c, m_c, length, shift, stride_n, stride_l,
                            index, index_n, index_l, count, i_j, C, P, PACKED, ROWS, ROUND, INTERPRETED,
                        )  # fmt: skip
                        b_dy = arriving_from(
                            gradient, argmax, x, i_n + b_dn, b_u, m_u, b_o, m_o, windows,
                            gradient_n, gradient_q, O, P, ROUND, INTERPRETED,
                        )  # fmt: skip
                        acc = tl.dot(b_x, b_dy, acc, input_precision=PRECISION)
                tl.store(p_split + (b_o * (K * C))[None, :] + (i_k * C + b_c)[:, None], acc, mask=m_dw)
