"""Gradients that meet at the rows of a table, summed on the device in an order that depends on the tokens alone.

The tokens of all positions come sorted, each with the number of its position; equal ones follow each other in the order
of their positions. A span of them is summed token by token, ``BLOCK_S`` at a time; what belongs to a token that goes on
in the next span, or comes from the last one, is kept as the span's tail or head, and summed behind: no atomics, the
same bits on every run, and a token that fills half of a batch, as padding does, is shared among many programs. Naming
is as in :mod:`.conv_pool_kernels`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .conv_pool_kernels import INTERPRETED

__all__ = ["INTERPRETED", "join_spans_kernel", "sum_spans_kernel"]

# Numbers that differ from call to call.
SIZES = ["total", "span", "count", "skipped"]


@triton.jit
def sum_of_equals(b_left: tl.tensor, begins_left: tl.tensor, b_right: tl.tensor, begins_right: tl.tensor) -> tl.tensor:
    """Join two neighbouring sums, of which the right one begins anew where it has another token."""
    return tl.where(begins_right != 0, b_right, b_left + b_right), begins_left | begins_right


@triton.jit
def sums_by_rows(b_x: tl.tensor, b_first: tl.tensor) -> tl.tensor:
    """Return :func:`sums_of_equals`, row by row."""
    b_begins = tl.broadcast_to(b_first.to(tl.int32)[:, None], b_x.shape)
    b_sum, _ = tl.associative_scan((b_x.to(tl.float32), b_begins), 0, sum_of_equals)
    return b_sum


@triton.jit
def sums_of_equals(
    b_x: tl.tensor,  # (BLOCK_S, BLOCK_C)
    b_v: tl.tensor,  # (BLOCK_S,) their tokens, ascending
    m_i: tl.tensor,  # (BLOCK_S,)
    b_first: tl.tensor,  # (BLOCK_S,) tokens begin there
    INTERPRETED: tl.constexpr,
) -> tl.tensor:
    """Return the sums of equal tokens' rows in float32, right at every token's last row.

    Tensor cores sum 16-bit numbers exactly, by ones where tokens are equal, in two thirds of the instructions; what is
    not finite would go to all tokens. float32, which would be cut into several numbers, gains nothing.
    """
    if b_x.dtype.primitive_bitwidth == 16:
        b_same = (b_v[:, None] == b_v[None, :]) & m_i[None, :]
        b_y = b_x.to(tl.float32) if INTERPRETED else b_x  # the interpreter's products of bfloat16 are none
        b_sum = tl.dot(b_same.to(b_y.dtype), b_y)
        all_of_them = tl.sum(tl.sum(b_sum, axis=1), axis=0)
        if all_of_them - all_of_them != 0:  # something is not finite
            b_sum = sums_by_rows(b_x, b_first)
    else:
        b_sum = sums_by_rows(b_x, b_first)
    return b_sum


@triton.jit(do_not_specialize=SIZES)
def sum_spans_kernel(
    dx: tl.tensor,  # (T, C), contiguous: the gradients of all positions' rows
    tokens: tl.tensor,  # (T,), ascending
    order: tl.tensor,  # (T,), where each token's position is
    dtable: tl.tensor,  # (V, C), contiguous, zeros
    partials: tl.tensor,  # (spans, 2, C) float32: of every span the head and the tail
    total: tl.int64,  # T
    span: tl.int32,  # tokens of a span, a multiple of BLOCK_S
    count: tl.int64,  # V
    skipped: tl.int64,  # the row that gets no gradient
    C: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_C: tl.constexpr,
    INTERPRETED: tl.constexpr,
) -> tl.tensor:
    """Sum a span's gradients of ``BLOCK_C`` channels, token by token."""
    TILES_C: tl.constexpr = (C + BLOCK_C - 1) // BLOCK_C
    i_span = (tl.program_id(0) // TILES_C).to(tl.int64)
    b_c = tl.program_id(0) % TILES_C * BLOCK_C + tl.arange(0, BLOCK_C)
    m_c = (b_c < C)[None, :]
    b_s = tl.arange(0, BLOCK_S)
    i_first = i_span * span
    i_before = tl.load(tokens + i_first - 1, mask=i_first > 0, other=0)
    p_head = partials + (i_span * 2 * C + b_c)[None, :] + tl.zeros((BLOCK_S, 1), tl.int32)
    b_carried = tl.zeros((BLOCK_C,), tl.float32)  # the sum so far of the token that goes on
    for i_step in range(0, span, BLOCK_S):
        b_i = i_first + i_step + b_s
        m_i = b_i < total
        b_v = tl.load(tokens + b_i, mask=m_i, other=0)
        has_before, has_next = (b_i > 0) & m_i, b_i + 1 < total
        b_before = tl.load(tokens + b_i - 1, mask=has_before, other=0)
        b_next = tl.load(tokens + b_i + 1, mask=has_next, other=0)
        is_first = (has_before == 0) | (b_before != b_v)
        is_last = (has_next == 0) | (b_next != b_v)
        continues = (i_first > 0) & (b_v == i_before)  # a token whose first one lies in an earlier span
        b_at = tl.load(order + b_i, mask=m_i, other=0).to(tl.int64)
        b_x = tl.load(dx + (b_at * C)[:, None] + b_c[None, :], mask=m_i[:, None] & m_c, other=0.0)
        b_sum = sums_of_equals(b_x, b_v, m_i, is_first | (b_s == 0), INTERPRETED)  # (BLOCK_S, BLOCK_C)
        i_last = tl.load(tokens + i_first + i_step - 1, mask=i_step > 0, other=-1)
        b_sum += tl.where(((i_step > 0) & (b_v == i_last))[:, None], b_carried[None, :], 0.0)
        whole = m_i & is_last & (continues == 0) & (b_v >= 0) & (b_v < count) & (b_v != skipped)
        p_whole = dtable + (b_v.to(tl.int64) * C)[:, None] + b_c[None, :]
        tl.store(p_whole, b_sum.to(dtable.dtype.element_ty), mask=whole[:, None] & m_c)
        # At most one sum is the span's head, and one its tail.
        ends = m_i & (is_last | (i_step + b_s == span - 1))
        tl.store(p_head, b_sum, mask=(ends & continues)[:, None] & m_c)
        tl.store(p_head + C, b_sum, mask=(ends & (continues == 0) & (is_last == 0))[:, None] & m_c)
        b_carried = tl.sum(tl.where((b_s == BLOCK_S - 1)[:, None], b_sum, 0.0), axis=0)


@triton.jit(do_not_specialize=SIZES)
def join_spans_kernel(
    tokens: tl.tensor,  # (T,), ascending
    dtable: tl.tensor,  # (V, C), contiguous
    partials: tl.tensor,  # (spans, 2, C) float32
    total: tl.int64,  # T
    span: tl.int32,  # tokens of a span
    count: tl.int64,  # V
    skipped: tl.int64,  # the row that gets no gradient
    C: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_C: tl.constexpr,
) -> tl.tensor:
    """Add the heads of later spans to a span's tail, where it has one, ``BLOCK_G`` at a time."""
    TILES_C: tl.constexpr = (C + BLOCK_C - 1) // BLOCK_C
    i_span = (tl.program_id(0) // TILES_C).to(tl.int64)
    b_c = tl.program_id(0) % TILES_C * BLOCK_C + tl.arange(0, BLOCK_C)
    m_c = b_c < C
    i_next = (i_span + 1) * span
    # No other span has tokens behind it.
    i_v = tl.load(tokens + i_next - 1, mask=i_next - 1 < total, other=-1).to(tl.int64)
    i_after = tl.load(tokens + i_next, mask=i_next < total, other=-1).to(tl.int64)
    i_before = tl.load(tokens + i_next - span - 1, mask=i_span > 0, other=-1).to(tl.int64)
    if (i_v >= 0) & (i_v < count) & (i_v != skipped) & (i_after == i_v) & (i_before != i_v):
        b_sum = tl.load(partials + (i_span * 2 + 1) * C + b_c, mask=m_c, other=0.0)  # (BLOCK_C,)
        i_from = i_span + 1
        more = 1
        while more > 0:
            b_span = i_from + tl.arange(0, BLOCK_G)
            m_span = b_span * span < total
            b_v = tl.load(tokens + b_span * span, mask=m_span, other=-1).to(tl.int64)
            m_span = m_span & (b_v == i_v)
            p_heads = partials + (b_span * 2 * C)[:, None] + b_c[None, :]
            b_sum += tl.sum(tl.load(p_heads, mask=m_span[:, None] & m_c[None, :], other=0.0), axis=0)
            more = tl.min(m_span.to(tl.int32), axis=0)
            i_from += BLOCK_G
        tl.store(dtable + i_v * C + b_c, b_sum.to(dtable.dtype.element_ty), mask=m_c)
