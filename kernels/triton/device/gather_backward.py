"""Gradients that meet at the rows of a table, summed on the device in an order that depends on the tokens alone.

The tokens of all positions come sorted, each with the number of its position; equal ones follow each other in the order
of their positions. A program goes through a span of them, and writes a sum where a token ends. What belongs to a token
that goes on in the next span, or comes from the last one, is kept as the span's tail or head, and summed behind: no
atomics, the same bits on every run, and a token that fills half of a batch, as padding does, is shared among many
programs. Naming is as in :mod:`.conv_pool`.
"""

from __future__ import annotations

import triton
import triton.language as tl

__all__ = ["join_spans_kernel", "sum_spans_kernel"]

# Numbers that differ from call to call.
SIZES = ["total", "span", "count", "skipped"]

NONE = tl.constexpr(-2)  # no token: -1 is what a number out of range may have become


@triton.jit(do_not_specialize=SIZES)
def sum_spans_kernel(
    dx: tl.tensor,  # (T, C), contiguous: the gradients of all positions' rows
    tokens: tl.tensor,  # (T,), ascending
    order: tl.tensor,  # (T,), where each token's position is
    dtable: tl.tensor,  # (V, C), contiguous, zeros
    partials: tl.tensor,  # (spans, 2, C) float32: of every span the head and the tail
    total: tl.int64,  # T
    span: tl.int32,  # tokens of a span, a multiple of STEP
    count: tl.int64,  # V
    skipped: tl.int64,  # the row that gets no gradient
    C: tl.constexpr,
    STEP: tl.constexpr,
    BLOCK_C: tl.constexpr,
) -> tl.tensor:
    """Sum a span's gradients of ``BLOCK_C`` channels, row by row; ``STEP`` rows are on their way at once."""
    TILES_C: tl.constexpr = (C + BLOCK_C - 1) // BLOCK_C
    i_span = (tl.program_id(0) // TILES_C).to(tl.int64)
    b_c = tl.program_id(0) % TILES_C * BLOCK_C + tl.arange(0, BLOCK_C)
    m_c = b_c < C
    i_first = i_span * span
    i_end = tl.minimum(i_first + span, total)
    p_head = partials + i_span * 2 * C + b_c
    i_v = tl.load(tokens + i_first).to(tl.int64)
    goes_on = (i_first > 0) & (tl.load(tokens + i_first - 1, mask=i_first > 0, other=NONE).to(tl.int64) == i_v)
    b_sum = tl.zeros((BLOCK_C,), tl.float32)
    for i_step in range(i_first, i_end, STEP):
        rows: tl.tuple = ()
        following: tl.tuple = ()
        for j in tl.static_range(STEP):
            i = i_step + j
            i_at = tl.load(order + i, mask=i < i_end, other=0).to(tl.int64)
            rows = rows + (tl.load(dx + i_at * C + b_c, mask=m_c & (i < i_end), other=0.0),)  # noqa: RUF005
            i_next = tl.load(tokens + i + 1, mask=i + 1 < total, other=NONE).to(tl.int64)
            following = following + (i_next,)  # noqa: RUF005
        for j in tl.static_range(STEP):
            b_sum += rows[j].to(tl.float32)
            is_last = following[j] != i_v
            ends = (i_step + j < i_end) & (is_last | (i_step + j + 1 == i_end))
            whole = ends & is_last & (goes_on == 0) & (i_v >= 0) & (i_v < count) & (i_v != skipped)
            tl.store(dtable + i_v * C + b_c, b_sum.to(dtable.dtype.element_ty), mask=m_c & whole)
            tl.store(p_head, b_sum, mask=m_c & ends & goes_on)
            tl.store(p_head + C, b_sum, mask=m_c & ends & (goes_on == 0) & (is_last == 0))
            b_sum = tl.where(ends, 0.0, b_sum)
            goes_on = goes_on & (ends == 0)
            i_v = following[j]


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
