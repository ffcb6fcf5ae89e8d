"""Gradients of layers whose pooling windows lie side by side, on the device: a tile's row is one window's positions.

Where windows do not overlap, position ``u = q * P + j`` of the padded input (``P`` is the pool's stride) meets tap
``k`` in window ``q - d`` at phase ``p``, and ``d`` and ``p`` depend on ``j`` and ``k`` alone:

    d = ceil((k * dilation - j) / P),    p = j - k * dilation + d * P
    dx[n, u, c] = sum over k, o of where(argmax[n, q - d, o] == p, g[n, q - d, o], 0) * W[o, k, c]
    dW[o, k, c] = sum over n, q, j of where(argmax[n, q - d, o] == p, g[n, q - d, o], 0) * x[n, u, c]

So a tile of ``M`` spans of ``P`` positions reads each window that it meets once, and each row of the input once,
where the kernels of :mod:`.conv_pool_backward` read both once a tap. Loops over ``j``, ``k`` are unrolled.
Programs keep what they can (the weights; the sums of their gradients) and go from tile to tile. Naming and arguments
are as in :mod:`.conv_pool`.

The zeros of every position of a tile are multiplied, also at positions ``u - k * dilation`` that the convolution does
not have: near a sample's ends NaN and infinities would spread further than in torch. A program that meets one computes
its part again, tap by tap, and leaves those positions out.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from ..groups import Input, Upstream
from .convolution import factor, load_tap, look_up

__all__ = ["phase_input_gradient_kernel", "phase_weight_gradient_kernel"]

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


class Spans(NamedTuple):
    """A tile's rows: its first sample and span, and of each the samples behind the first, its span, and whether it is.

    Whatever lies in a tile is told from its first row in 32 bits.
    """

    i_n: Any
    i_q: Any
    b_dn: Any  # (M,)
    b_q: Any  # (M,)
    m: Any  # (M,)


@triton.jit
def tile_of_spans(
    i_tile: tl.tensor,
    rows: tl.tensor,
    spans: tl.tensor,
    M: tl.constexpr,
) -> Spans:
    """Return the rows of a tile."""
    i_row = (tl.full((), 0, tl.int64) + i_tile) * M
    i_q = (i_row % spans).to(tl.int32)
    b_q = i_q + tl.arange(0, M)
    b_dn = b_q // spans
    m = i_row + tl.arange(0, M) < rows
    return Spans(i_n=i_row // spans, i_q=i_q, b_dn=b_dn, b_q=b_q - b_dn * spans, m=m)


@triton.jit
def load_windows(
    upstream: Upstream,
    w: tl.tensor,  # of whose dtype products are
    tile: Spans,
    b_o: tl.tensor,  # (O,)
    m_o: tl.tensor,  # (O,)
    W: tl.constexpr,
    P: tl.constexpr,
    BEHIND: tl.constexpr,  # positions from the first tap to the last
    SAME: tl.constexpr,
) -> tl.tensor:
    """Return the gradients of a span's window and of those before it that its taps meet, and their argmax.

    A tuple of ``(M, O)``: gradient and argmax of the span's own window, of the one before it, and so on.
    """
    seen: tl.tuple = ()
    i_first = (tile.i_n * upstream.windows + tile.i_q) * W.O
    for back in tl.static_range((BEHIND + P - 1) // P + 1):
        b_window = tile.b_q - back
        m = (tile.m & (b_window >= 0) & (b_window < upstream.windows))[:, None] & m_o[None, :]
        b_w = tile.b_dn * upstream.windows + b_window - tile.i_q  # windows behind the tile's first
        b_place = (b_w * W.O)[:, None] + b_o[None, :]
        # Where there is no window, its gradient is 0 and its argmax does not matter.
        b_argmax = tl.load(upstream.argmax + i_first + b_place, mask=m, other=0).to(tl.int32)
        if SAME:
            p_g = upstream.gradient + i_first + b_place
        else:
            b_g = tile.b_dn * upstream.stride_n + (b_window - tile.i_q) * upstream.stride_q
            p_g = upstream.gradient + tile.i_n * upstream.stride_n + tile.i_q * upstream.stride_q
            p_g = p_g + b_g[:, None] + b_o[None, :]
        b_g = factor(tl.load(p_g, mask=m, other=0.0).to(w.dtype.element_ty), False)
        seen = seen + (b_g, b_argmax)  # noqa: RUF005
    return seen


@triton.jit
def arriving_at(
    seen: tl.tuple,  # what load_windows returns
    position: tl.constexpr,
    P: tl.constexpr,
    ROUND: tl.constexpr,
) -> tl.tensor:
    """Return the gradient that arrives at a span's ``position``, a negative one before it, ``(M, O)``."""
    back: tl.constexpr = (P - 1 - position) // P
    b_g = seen[2 * back]
    return factor(tl.where(seen[2 * back + 1] == position + back * P, b_g, 0.0).to(b_g.dtype), ROUND)


@triton.jit
def arriving_from(
    upstream: Upstream,
    w: tl.tensor,  # of whose dtype products are
    b_n: tl.tensor,  # (M,) samples
    b_u: tl.tensor,  # (M,) positions as the pool sees them, its padding's included
    m_u: tl.tensor,  # (M,) not of the padding
    b_o: tl.tensor,  # (O,)
    m_o: tl.tensor,  # (O,)
    W: tl.constexpr,
    P: tl.constexpr,
    ROUND: tl.constexpr,
) -> tl.tensor:
    """Return the gradient that arrives at positions of any phases, ``(M, O)``."""
    b_window = b_u // P
    m = (m_u & (b_window < upstream.windows))[:, None] & m_o[None, :]
    p_argmax = upstream.argmax + ((b_n * upstream.windows + b_window) * W.O)[:, None] + b_o[None, :]
    b_argmax = tl.load(p_argmax, mask=m, other=-1).to(tl.int32)
    p_g = upstream.gradient + (b_n * upstream.stride_n + b_window * upstream.stride_q)[:, None] + b_o[None, :]
    b_g = factor(tl.load(p_g, mask=m, other=0.0).to(w.dtype.element_ty), False)
    return factor(tl.where(b_argmax == (b_u - b_window * P)[:, None], b_g, 0.0).to(b_g.dtype), ROUND)


@triton.jit
def phase_of_input(
    acc: tl.tensor,  # (M, C)
    arriving: tl.tuple,  # the gradients that arrive at positions from the first tap's on, (M, O)
    filters: tl.tuple,  # of each tap, (O, C)
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
def load_taps(
    w: tl.tensor,
    b_o: tl.tensor,  # (O,)
    b_c: tl.tensor,  # (C,)
    m_c: tl.tensor,  # (C,)
    W: tl.constexpr,
    TILE: tl.constexpr,
) -> tl.tensor:
    """Return every tap's weights, a tuple of ``(O, C)``."""
    filters: tl.tuple = ()
    for k in tl.static_range(W.K):
        filters = filters + (load_tap(w, b_o, b_c, m_c, k, W, TILE),)  # noqa: RUF005
    return filters


@triton.jit
def all_finite(blocks: tl.tuple, COUNT: tl.constexpr) -> tl.tensor:
    """Tell whether all numbers of all blocks, of one shape, are finite: 0 times one of them is 0."""
    b = tl.full(blocks[0].shape, 0.0, tl.float32)
    for i in tl.static_range(COUNT):
        b += blocks[i].to(tl.float32) * 0.0
    return tl.max(tl.max((b != 0.0).to(tl.int32), axis=1), axis=0) == 0


@triton.jit
def store_apart(
    upstream: Upstream,
    w: tl.tensor,
    dx: tl.tensor,
    tile: Spans,
    i_c: tl.tensor,
    length: tl.tensor,
    shift: tl.tensor,
    begin: tl.tensor,
    end: tl.tensor,
    W: tl.constexpr,
    P: tl.constexpr,
    DILATION: tl.constexpr,
    TILE: tl.constexpr,
    PRODUCTS: tl.constexpr,
) -> tl.tensor:
    """Store a tile's gradient of 16 channels from ``i_c`` on; a tap counts only where the convolution has it."""
    b_c = i_c + tl.arange(0, 16)
    m_c = b_c < W.C
    for j in range(P):
        acc = tl.full((TILE.M, 16), 0.0, tl.float32)
        for step in range(W.K * ((W.O + TILE.O - 1) // TILE.O)):
            k, b_o = step % W.K, step // W.K * TILE.O + tl.arange(0, TILE.O)
            m_o = b_o < W.O
            b_u = tile.b_q * P + j - k * DILATION
            m_u = tile.m & (b_u >= begin) & (b_u < end)
            b_dy = arriving_from(upstream, w, tile.i_n + tile.b_dn, b_u, m_u, b_o, m_o, W, P, PRODUCTS.rounds)
            b_w = load_tap(w, b_o, b_c, m_c, k, W, TILE)
            acc += tl.where(m_u[:, None], tl.dot(b_dy, b_w, input_precision=PRODUCTS.precision), 0.0)
        store_phase(dx, acc, tile, b_c, m_c, length, shift, j, W, P)


@triton.jit
def store_phase(
    dx: tl.tensor,
    acc: tl.tensor,  # (M, C)
    tile: Spans,
    b_c: tl.tensor,  # (C,)
    m_c: tl.tensor,  # (C,)
    length: tl.tensor,
    shift: tl.tensor,
    j: tl.tensor,
    W: tl.constexpr,
    P: tl.constexpr,
) -> tl.tensor:
    """Store the gradient of phase ``j``'s positions, of those that are there."""
    b_i = tile.b_q * P + j - shift
    m = (tile.m & (b_i >= 0) & (b_i < length))[:, None] & m_c[None, :]
    i_first = tile.i_n * length + tile.i_q * P
    p_dx = dx + i_first * W.C + ((tile.b_dn * length + b_i - tile.i_q * P) * W.C)[:, None] + b_c[None, :]
    tl.store(p_dx, acc.to(dx.dtype.element_ty), mask=m)


@triton.jit(do_not_specialize=SIZES)
def phase_input_gradient_kernel(
    gradient: tl.tensor,  # (N, O, Q), strides as given
    argmax: tl.tensor,  # (N, Q, O)
    w: tl.tensor,  # packed
    dx: tl.tensor,  # (N, L, C), contiguous
    rows: tl.int64,  # N * spans
    spans: tl.int32,  # of P positions in a padded sample
    windows: tl.int32,  # Q
    shift: tl.int32,  # positions of padding before the input's first
    begin: tl.int32,  # the convolution's first position as the pool sees it, behind its padding
    end: tl.int32,  # and the one behind its last
    gradient_n: tl.int64,
    gradient_q: tl.int64,
    length: tl.int32,  # L
    W: tl.constexpr,
    P: tl.constexpr,
    DILATION: tl.constexpr,
    SAME: tl.constexpr,  # the pooled gradient lies in memory as argmax does
    ALIGN: tl.constexpr,  # the gradient's
    TILE: tl.constexpr,
    PRODUCTS: tl.constexpr,
) -> tl.tensor:
    """Compute the gradient of tiles of ``M`` spans, of whichever samples, and ``C`` channels."""
    TILES_C: tl.constexpr = (W.C + TILE.C - 1) // TILE.C
    BEHIND: tl.constexpr = (W.K - 1) * DILATION
    RESIDENT: tl.constexpr = W.O <= TILE.O
    b_c = tl.program_id(0) % TILES_C * TILE.C + tl.arange(0, TILE.C)
    m_c = b_c < W.C
    b_o = tl.arange(0, TILE.O)
    upstream = Upstream(
        gradient=gradient, argmax=argmax, windows=windows, stride_n=gradient_n * ALIGN, stride_q=gradient_q * ALIGN
    )  # fmt: skip
    resident: tl.tuple = ()
    is_finite = 1
    if RESIDENT:
        resident = load_taps(w, b_o, b_c, m_c, W, TILE)
        is_finite = all_finite(resident, W.K)
    b_nan = tl.full((TILE.M,), 0, tl.int32)
    tiles = ((rows + TILE.M - 1) // TILE.M).to(tl.int32)
    for i_tile in range(tl.program_id(0) // TILES_C, tiles, tl.num_programs(0) // TILES_C):
        tile = tile_of_spans(i_tile, rows, spans, TILE.M)
        accs: tl.tuple = ()
        if RESIDENT == 0:
            for _ in tl.static_range(P):
                accs = accs + (tl.full((TILE.M, TILE.C), 0.0, tl.float32),)  # noqa: RUF005
        for o0 in range(0, W.O, TILE.O):
            m_o = o0 + b_o < W.O
            seen = load_windows(upstream, w, tile, o0 + b_o, m_o, W, P, BEHIND, SAME)
            arriving: tl.tuple = ()
            for j in tl.static_range(BEHIND):
                arriving = arriving + (arriving_at(seen, j - BEHIND, P, PRODUCTS.rounds),)  # noqa: RUF005
            if RESIDENT:
                for j in tl.static_range(P):
                    arriving = arriving + (arriving_at(seen, j, P, PRODUCTS.rounds),)  # noqa: RUF005
                    acc = tl.full((TILE.M, TILE.C), 0.0, tl.float32)
                    acc = phase_of_input(acc, arriving, resident, j, W.K, DILATION, PRODUCTS.precision)
                    store_phase(dx, acc, tile, b_c, m_c, length, shift, j, W, P)
            else:
                filters = load_taps(w, o0 + b_o, b_c, m_c, W, TILE)
                sums: tl.tuple = ()
                for j in tl.static_range(P):
                    arriving = arriving + (arriving_at(seen, j, P, PRODUCTS.rounds),)  # noqa: RUF005
                    acc = phase_of_input(accs[j], arriving, filters, j, W.K, DILATION, PRODUCTS.precision)
                    sums = sums + (acc,)  # noqa: RUF005
                accs = sums
        if RESIDENT == 0:
            for j in tl.static_range(P):
                b_nan += tl.sum((accs[j] != accs[j]).to(tl.int32), axis=1)
                store_phase(dx, accs[j], tile, b_c, m_c, length, shift, j, W, P)
    if RESIDENT == 0:
        is_finite = tl.max(b_nan, axis=0) == 0
    if is_finite == 0:
        tl.debug_barrier()  # what was stored is stored again, by other threads
        for i_tile in range(tl.program_id(0) // TILES_C, tiles, tl.num_programs(0) // TILES_C):
            tile = tile_of_spans(i_tile, rows, spans, TILE.M)
            for i_c in range(0, TILE.C, 16):  # few at once, whose sums take no registers from the others
                store_apart(
                    upstream, w, dx, tile, tl.program_id(0) % TILES_C * TILE.C + i_c, length, shift, begin, end,
                    W, P, DILATION, TILE, PRODUCTS,
                )  # fmt: skip


@triton.jit
def first_rows(input: Input, tile: Spans, ROWS: tl.constexpr) -> tl.tensor:
    """Return where samples begin, in rows of the series for windows, and the mask of those that are there."""
    b_n, m_n = tile.i_n + tile.b_dn, tile.m
    if ROWS.mode == "windows":
        b_n, m_n = look_up(input.index + b_n * input.index_n, m_n, input.count)
    return b_n, m_n


@triton.jit
def load_phase(
    input: Input,
    tile: Spans,
    b_first: tl.tensor,  # (M,) what first_rows returns
    m_x: tl.tensor,  # (M,)
    b_c: tl.tensor,  # (C,)
    m_c: tl.tensor,  # (C,)
    shift: tl.tensor,
    j: tl.tensor,
    C: tl.constexpr,
    P: tl.constexpr,
    ROWS: tl.constexpr,
    ROUND: tl.constexpr,
) -> tl.tensor:
    """Return the input at phase ``j``'s positions, ``(C, M)``, 0 where it has none."""
    b_i = tile.b_q * P + j - shift
    m_i = m_x & (b_i >= 0) & (b_i < input.length)
    if ROWS.mode == "tokens":
        b_row, m_i = look_up(input.index + b_first * input.index_n + b_i * input.index_l, m_i, input.count)
        p_x = input.x + b_row * input.stride_n
    elif ROWS.packed:
        b_behind = tile.b_dn * input.length + b_i - tile.i_q * P
        p_x = input.x + (tile.i_n * input.length + tile.i_q * P) * C + b_behind * C
    else:
        p_x = input.x + b_first * input.stride_n + b_i * input.stride_l
    b_x = tl.load(p_x[:, None] + b_c.to(tl.int64)[None, :], mask=m_i[:, None] & m_c[None, :], other=0.0)
    return tl.trans(factor(b_x, ROUND))


@triton.jit(do_not_specialize=SIZES)
def phase_weight_gradient_kernel(
    gradient: tl.tensor,  # (N, O, Q), strides as given
    argmax: tl.tensor,  # (N, Q, O)
    x: tl.tensor,  # (N, C, L), or (V, C) whose rows are found through the index, strides as given
    partials: tl.tensor,  # (splits, O * K * C + O), of the weights as (O, K, C), then of the bias
    rows: tl.int64,  # N * spans
    spans: tl.int32,  # of P positions in a padded sample
    windows: tl.int32,  # Q
    shift: tl.int32,  # positions of padding before the input's first
    begin: tl.int32,  # the convolution's first position as the pool sees it, behind its padding
    end: tl.int32,  # and the one behind its last
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
    P: tl.constexpr,
    DILATION: tl.constexpr,
    SAME: tl.constexpr,  # the pooled gradient lies in memory as argmax does
    ALIGN: tl.constexpr,  # the gradient's
    ROWS: tl.constexpr,
    WANT_W: tl.constexpr,
    WANT_B: tl.constexpr,
    TILE: tl.constexpr,
    PRODUCTS: tl.constexpr,
) -> tl.tensor:
    """Sum one split's gradient of all taps' weights, ``C`` channels x ``O`` outputs, and of the bias."""
    TILES_C: tl.constexpr = (W.C + TILE.C - 1) // TILE.C if WANT_W else 1
    TILES_O: tl.constexpr = (W.O + TILE.O - 1) // TILE.O
    BEHIND: tl.constexpr = (W.K - 1) * DILATION if WANT_W else 0
    i_c = tl.program_id(0) % TILES_C
    b_c = i_c * TILE.C + tl.arange(0, TILE.C)
    m_c = b_c < W.C
    b_o = tl.program_id(0) // TILES_C % TILES_O * TILE.O + tl.arange(0, TILE.O)
    m_o = b_o < W.O
    i_split = tl.program_id(0) // (TILES_C * TILES_O)
    upstream = Upstream(
        gradient=gradient, argmax=argmax, windows=windows, stride_n=gradient_n * ALIGN, stride_q=gradient_q * ALIGN
    )  # fmt: skip
    input = Input(
        x=x, length=length, stride_n=stride_n * ROWS.align, stride_l=stride_l * ROWS.align,
        index=index, index_n=index_n, index_l=index_l, count=count,
    )  # fmt: skip
    accs: tl.tuple = ()
    if WANT_W:
        for _ in tl.static_range(W.K):
            accs = accs + (tl.full((TILE.C, TILE.O), 0.0, tl.float32),)  # noqa: RUF005
    b_db = tl.full((TILE.M, TILE.O), 0.0, tl.float32)
    tiles = ((rows + TILE.M - 1) // TILE.M).to(tl.int32)
    for i_tile in range(i_split, tiles, tl.num_programs(0) // (TILES_C * TILES_O)):
        tile = tile_of_spans(i_tile, rows, spans, TILE.M)
        seen = load_windows(upstream, x, tile, b_o, m_o, W, P, BEHIND, SAME)
        if WANT_B:
            b_db += tl.where(seen[1] >= 0, seen[0].to(tl.float32), 0.0)
        if WANT_W:
            b_first, m_x = first_rows(input, tile, ROWS)
            arriving: tl.tuple = ()
            for j in tl.static_range(BEHIND):
                arriving = arriving + (arriving_at(seen, j - BEHIND, P, PRODUCTS.rounds),)  # noqa: RUF005
            for j in tl.static_range(P):
                arriving = arriving + (arriving_at(seen, j, P, PRODUCTS.rounds),)  # noqa: RUF005
                b_x = load_phase(input, tile, b_first, m_x, b_c, m_c, shift, j, W.C, P, ROWS, PRODUCTS.rounds)
                sums: tl.tuple = ()
                for k in tl.static_range(W.K):
                    b_dy = arriving[j + (W.K - 1 - k) * DILATION]
                    sums = sums + (tl.dot(b_x, b_dy, accs[k], input_precision=PRODUCTS.precision),)  # noqa: RUF005
                accs = sums
    p_split = partials + i_split.to(tl.int64) * (W.O * W.K * W.C + W.O)
    if WANT_B:
        tl.store(p_split + W.O * W.K * W.C + b_o, tl.sum(b_db, axis=0), mask=m_o & (i_c == 0))
    if WANT_W:
        m_dw = m_c[:, None] & m_o[None, :]
        b_nan = tl.full((TILE.C, TILE.O), 0, tl.int32)
        for k in tl.static_range(W.K):
            tl.store(p_split + (b_o * (W.K * W.C))[None, :] + (k * W.C + b_c)[:, None], accs[k], mask=m_dw)
            b_nan = b_nan | (accs[k] != accs[k]).to(tl.int32)
        if tl.max(tl.max(b_nan, axis=1), axis=0) > 0:
            tl.debug_barrier()  # what was stored is stored again, by other threads
            for i_k in range(W.K):
                acc = tl.full((TILE.C, TILE.O), 0.0, tl.float32)
                for i_tile in range(i_split, tiles, tl.num_programs(0) // (TILES_C * TILES_O)):
                    tile = tile_of_spans(i_tile, rows, spans, TILE.M)
                    b_first, m_x = first_rows(input, tile, ROWS)
                    for i_j in range(P):
                        b_u = tile.b_q * P + i_j - i_k * DILATION
                        m_u = tile.m & (b_u >= begin) & (b_u < end)
                        b_x = load_phase(
                            input, tile, b_first, m_x & m_u, b_c, m_c, shift, i_j, W.C, P, ROWS, PRODUCTS.rounds
                        )  # fmt: skip
                        b_dy = arriving_from(
                            upstream, x, tile.i_n + tile.b_dn, b_u, m_u, b_o, m_o, W, P, PRODUCTS.rounds
                        )  # fmt: skip
                        acc = tl.dot(b_x, b_dy, acc, input_precision=PRODUCTS.precision)
                tl.store(p_split + (b_o * (W.K * W.C))[None, :] + (i_k * W.C + b_c)[:, None], acc, mask=m_dw)
