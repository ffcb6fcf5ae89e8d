"""A tile's convolution on the device, at one phase of its pooling windows or at several that share their input.

Naming and arguments are as in :mod:`.conv_pool`. Where ``TOKENS``, positions hold numbers of rows of a table,
and the rows are looked up: a block of the reduction then is of one tap, whose tokens are read once.
"""

from __future__ import annotations

import triton
import triton.language as tl

__all__ = ["below", "convolve", "load_filters", "look_up", "rounded", "through_registers"]


GROWTH = tl.constexpr(1 + 0.72 * 2**-11)


@triton.jit
def rounded(b: tl.tensor, ROUND: tl.constexpr) -> tl.tensor:
    """Return float32 numbers that the tensor cores' cutting to TF32 rounds, if ``ROUND``; they cut what they are given.

    Cutting has 2.6 times the error of rounding, all of it towards zero. A number grown by 0.72 of half the distance to
    the next TF32 number at the beginning of its octave, 0.36 to 0.72 of the distance, is cut without a bias, to 1.06
    times the error of rounding; TF32 numbers stay what they are, infinities and NaN too. One multiplication, where
    ``cvt.rna.tf32`` takes four instructions on sm_90.
    """
    if ROUND:
        b = b * GROWTH
    return b


@triton.jit
def through_registers(b: tl.tensor, REGISTERS: tl.constexpr) -> tl.tensor:
    """Return a block as it is; if ``REGISTERS``, the compiler cannot see that, and has to hold it in registers.

    Tensor cores then take it from there, where they would read shared memory again for every product: imdb1 in
    bfloat16 took 282 instead of 370 us on an H100.
    """
    if REGISTERS:
        PACK: tl.constexpr = 32 // b.dtype.primitive_bitwidth
        b = tl.inline_asm_elementwise("mov.b32 $0, $1;", "=r,r", [b], b.dtype, is_pure=True, pack=PACK)
    return b


@triton.jit
def below(b: tl.tensor, END: tl.constexpr, BLOCK: tl.constexpr) -> tl.tensor:
    """Return which of a block's numbers are below ``END``, where the blocks tile a range from 0: all, if they fit."""
    return b < END if END % BLOCK else tl.full((BLOCK,), 1, tl.int1)


@triton.jit
def look_up(
    p_index: tl.tensor,  # (BLOCK_M,) where the tokens lie
    m: tl.tensor,  # (BLOCK_M,)
    count: tl.tensor,  # rows of the table
) -> tl.tensor:
    """Return the tokens that the table has a row for, and the mask of those."""
    b_row = tl.load(p_index, mask=m, other=0).to(tl.int64)
    return b_row, m & (b_row >= 0) & (b_row < count)


@triton.jit
def load_block(
    p_w: tl.tensor,  # (BLOCK_O,) where each output's weights begin
    b_weight: tl.tensor,  # (BLOCK_R,) their numbers
    m_o: tl.tensor,  # (BLOCK_O,)
    m_r: tl.tensor,  # (BLOCK_R,)
    COLUMNS: tl.constexpr,  # of packed weights in whose columns outputs lie, (K * C, COLUMNS); 0 where in rows
) -> tl.tensor:
    """Return weights, ``(BLOCK_R, BLOCK_O)``."""
    if COLUMNS:
        p = p_w[None, :] + b_weight.to(tl.int64)[:, None] * COLUMNS
        return tl.load(p, mask=m_r[:, None] & m_o[None, :], other=0.0)
    else:  # noqa: RET505
        b_w = tl.load(p_w[:, None] + b_weight[None, :], mask=m_o[:, None] & m_r[None, :], other=0.0)
        return tl.trans(b_w)


@triton.jit
def convolve_one(
    p_x: tl.tensor,  # (BLOCK_M,) where each row's sample would have tap 0, channel 0, or where the table lies
    b_start: tl.tensor,  # (BLOCK_M,) the position of that number in its sample
    m_x: tl.tensor,  # (BLOCK_M,)
    p_w: tl.tensor,  # (BLOCK_O,) each output's weights
    m_o: tl.tensor,  # (BLOCK_O,)
    length: tl.tensor,
    tap_stride: tl.tensor,  # elements from tap to tap
    p_index: tl.tensor,  # (BLOCK_M,) where each row's sample would have the token of tap 0, if TOKENS
    tap_index: tl.tensor,  # numbers from tap to tap there
    row_stride: tl.tensor,  # elements from row to row of the table
    count: tl.tensor,  # rows of the table
    C: tl.constexpr,
    K: tl.constexpr,
    TAP_STEP: tl.constexpr,
    PACKED: tl.constexpr,  # in the order of the reduction, and rounded if ROUND; else (O, C, K)
    COLUMNS: tl.constexpr,  # see load_block
    BLOCK_M: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_R: tl.constexpr,
    CHECK: tl.constexpr,
    TOKENS: tl.constexpr,
    PRECISION: tl.constexpr,
    ROUND: tl.constexpr,
    REGISTERS: tl.constexpr,  # the input passes through them, see through_registers
    INTERPRETED: tl.constexpr,
    r_first: tl.tensor = 0,  # a multiple of BLOCK_R: a part of the reduction begins there, unless TOKENS,
    r_last: tl.tensor = None,  # and ends there or, if None, with the whole
) -> tl.tensor:
    """Return one phase's sums, ``(BLOCK_M, BLOCK_O)`` in float32, block by block of the reduction ``r = (k, c)``."""
    R: tl.constexpr = K * C
    acc = tl.full((BLOCK_M, BLOCK_O), 0.0, tl.float32)
    if TOKENS:
        TILES_C: tl.constexpr = (C + BLOCK_R - 1) // BLOCK_R
        for step in range(K * TILES_C):
            k = step // TILES_C
            b_c = (step % TILES_C) * BLOCK_R + tl.arange(0, BLOCK_R)
            m = m_x
            if CHECK:
                b_at = b_start + k * TAP_STEP
                m = m & (b_at >= 0) & (b_at < length)
            b_row, m = look_up(p_index + k * tap_index, m, count)
            p_r = (p_x + b_row * row_stride)[:, None] + b_c.to(tl.int64)[None, :]
            m_c = below(b_c, C, BLOCK_R)
            b_x = tl.load(p_r, mask=m[:, None] & m_c[None, :], other=0.0)  # (BLOCK_M, BLOCK_R)
            b_weight = k * C + b_c if PACKED else b_c * K + k
            b_w = load_block(p_w, b_weight, m_o, m_c, COLUMNS)
            if INTERPRETED:
                b_x, b_w = b_x.to(tl.float32), b_w.to(tl.float32)
            b_x, b_w = through_registers(rounded(b_x, ROUND), REGISTERS), rounded(b_w, ROUND and not PACKED)
            acc = tl.dot(b_x, b_w, acc, input_precision=PRECISION)
    else:
        for r0 in range(r_first, R if r_last is None else r_last, BLOCK_R):
            b_r = r0 + tl.arange(0, BLOCK_R)
            b_k = b_r // C
            m_r = below(b_r, R, BLOCK_R)
            m = m_x[:, None] & m_r[None, :]
            if CHECK:
                b_at = b_start[:, None] + (b_k * TAP_STEP)[None, :]
                m = m & (b_at >= 0) & (b_at < length)
            b_offset = b_k.to(tl.int64) * tap_stride + (b_r % C).to(tl.int64)
            b_x = tl.load(p_x[:, None] + b_offset[None, :], mask=m, other=0.0)  # (BLOCK_M, BLOCK_R)
            b_weight = b_r if PACKED else b_r % C * K + b_k
            b_w = load_block(p_w, b_weight, m_o, m_r, COLUMNS)
            if INTERPRETED:
                b_x, b_w = b_x.to(tl.float32), b_w.to(tl.float32)
            b_x, b_w = through_registers(rounded(b_x, ROUND), REGISTERS), rounded(b_w, ROUND and not PACKED)
            acc = tl.dot(b_x, b_w, acc, input_precision=PRECISION)
    return acc


@triton.jit
def load_filters(
    p_w: tl.tensor,  # (BLOCK_O,) each output's weights
    m_o: tl.tensor,  # (BLOCK_O,)
    b_c: tl.tensor,  # (BLOCK_R,) channels
    C: tl.constexpr,
    K: tl.constexpr,
    PACKED: tl.constexpr,
    COLUMNS: tl.constexpr,
    BLOCK_R: tl.constexpr,
    ROUND: tl.constexpr,
    INTERPRETED: tl.constexpr,
) -> tl.tensor:
    """Return the weights of every tap, a tuple of ``(BLOCK_R, BLOCK_O)``."""
    filters: tl.tuple = ()
    m_c = below(b_c, C, BLOCK_R)
    for k in tl.static_range(K):
        b_w = load_block(p_w, k * C + b_c if PACKED else b_c * K + k, m_o, m_c, COLUMNS)
        if INTERPRETED:
            b_w = b_w.to(tl.float32)
        filters = filters + (rounded(b_w, ROUND and not PACKED),)  # noqa: RUF005
    return filters


@triton.jit
def convolve_several(
    p_x: tl.tensor,  # the arguments are those of convolve_one, at phase 0
    b_start: tl.tensor,
    m_x: tl.tensor,
    p_w: tl.tensor,
    m_o: tl.tensor,
    resident: tl.tuple,  # what load_filters returns, if RESIDENT
    length: tl.tensor,
    tap_stride: tl.tensor,
    p_index: tl.tensor,
    tap_index: tl.tensor,
    row_stride: tl.tensor,
    count: tl.tensor,
    C: tl.constexpr,
    K: tl.constexpr,
    TAP_STEP: tl.constexpr,
    PACKED: tl.constexpr,
    COLUMNS: tl.constexpr,
    RESIDENT: tl.constexpr,
    PHASES: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_R: tl.constexpr,
    CHECK: tl.constexpr,
    TOKENS: tl.constexpr,
    PRECISION: tl.constexpr,
    ROUND: tl.constexpr,
    REGISTERS: tl.constexpr,
    INTERPRETED: tl.constexpr,
) -> tl.tensor:
    """Return the sums of ``PHASES`` neighbouring phases, a tuple of ``(BLOCK_M, BLOCK_O)``, one tap step apart.

    Weights are never extended by zeros to phases that do not see a position: zero times infinity would be NaN there.
    """
    accs: tl.tuple = ()
    for _ in tl.static_range(PHASES):
        accs = accs + (tl.full((BLOCK_M, BLOCK_O), 0.0, tl.float32),)  # noqa: RUF005
    for c0 in range(0, C, BLOCK_R):
        b_c = c0 + tl.arange(0, BLOCK_R)
        m_c = below(b_c, C, BLOCK_R)[None, :]
        filters = resident
        if not RESIDENT:
            filters = load_filters(p_w, m_o, b_c, C, K, PACKED, COLUMNS, BLOCK_R, ROUND, INTERPRETED)
        b_channel = b_c.to(tl.int64)[None, :]
        for j in tl.static_range(K + PHASES - 1):
            m = m_x
            if CHECK:
                b_at = b_start + j * TAP_STEP
                m = m & (b_at >= 0) & (b_at < length)
            if TOKENS:
                b_row, m = look_up(p_index + j * tap_index, m, count)
                p_r = (p_x + b_row * row_stride)[:, None] + b_channel
            else:
                p_r = p_x[:, None] + b_channel + j * tap_stride
            b_x = tl.load(p_r, mask=m[:, None] & m_c, other=0.0)  # (BLOCK_M, BLOCK_R)
            if INTERPRETED:
                b_x = b_x.to(tl.float32)
            b_x = through_registers(rounded(b_x, ROUND), REGISTERS)
            sums: tl.tuple = ()
            for i in tl.static_range(PHASES):
                if j >= i and j - i < K:
                    sums = sums + (tl.dot(b_x, filters[j - i], accs[i], input_precision=PRECISION),)  # noqa: RUF005
                else:
                    sums = sums + (accs[i],)  # noqa: RUF005
            accs = sums
    return accs


@triton.jit
def convolve(
    p_x: tl.tensor,
    b_start: tl.tensor,
    m_x: tl.tensor,
    p_w: tl.tensor,
    m_o: tl.tensor,
    resident: tl.tuple,
    length: tl.tensor,
    tap_stride: tl.tensor,
    p_index: tl.tensor,
    tap_index: tl.tensor,
    row_stride: tl.tensor,
    count: tl.tensor,
    C: tl.constexpr,
    K: tl.constexpr,
    TAP_STEP: tl.constexpr,
    PACKED: tl.constexpr,
    COLUMNS: tl.constexpr,
    RESIDENT: tl.constexpr,
    PHASES: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_R: tl.constexpr,
    CHECK: tl.constexpr,
    TOKENS: tl.constexpr,
    PRECISION: tl.constexpr,
    ROUND: tl.constexpr,
    REGISTERS: tl.constexpr,
    INTERPRETED: tl.constexpr,
) -> tl.tensor:
    """Return the sums of ``PHASES`` phases as a tuple."""
    if PHASES == 1:
        acc = convolve_one(
            p_x, b_start, m_x, p_w, m_o, length, tap_stride,
            p_index, tap_index, row_stride, count,
            C, K, TAP_STEP, PACKED, COLUMNS, BLOCK_M, BLOCK_O, BLOCK_R, CHECK, TOKENS,
            PRECISION, ROUND, REGISTERS, INTERPRETED,
        )  # fmt: skip
        accs = (acc,)
    else:
        accs = convolve_several(
            p_x, b_start, m_x, p_w, m_o, resident, length, tap_stride,
            p_index, tap_index, row_stride, count,
            C, K, TAP_STEP, PACKED, COLUMNS, RESIDENT, PHASES, BLOCK_M, BLOCK_O, BLOCK_R, CHECK, TOKENS,
            PRECISION, ROUND, REGISTERS, INTERPRETED,
        )  # fmt: skip
    return accs
