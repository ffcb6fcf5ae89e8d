"""A tile's convolution on the device, at one phase of its pooling windows or at several that share their input.

Naming and arguments are as in :mod:`.conv_pool`. Where positions hold tokens, numbers of rows of a table, the rows are
looked up: a block of the reduction then is of one tap, whose tokens are read once.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton import knobs

from ..groups import Input, Outputs

__all__ = [
    "INTERPRETED",
    "below",
    "convolve",
    "convolve_one",
    "factor",
    "load_filters",
    "load_tap",
    "look_up",
    "outputs_of",
]

# Whether Triton's interpreter runs the kernels, on CPU tensors: decided when a kernel is decorated.
INTERPRETED = tl.constexpr(bool(knobs.runtime.interpret))
GROWTH = tl.constexpr(1 + 0.72 * 2**-11)


@triton.jit
def factor(b: tl.tensor, ROUND: tl.constexpr) -> tl.tensor:
    """Return a product's factor: float32 numbers that the tensor cores' cutting to TF32 rounds, if ``ROUND``.

    Cutting has 2.6 times the error of rounding, all of it towards zero. A number grown by 0.72 of half the distance to
    the next TF32 number at the beginning of its octave, 0.36 to 0.72 of the distance, is cut without a bias, to 1.06
    times the error of rounding; TF32 numbers stay what they are, infinities and NaN too. One multiplication, where
    ``cvt.rna.tf32`` takes four instructions on sm_90.
    """
    if INTERPRETED:  # NumPy, by which it multiplies, has no bfloat16
        b = b.to(tl.float32)
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
    p_index: tl.tensor,  # (M,) where the tokens lie
    m: tl.tensor,  # (M,)
    count: tl.tensor,  # rows of the table
) -> tl.tensor:
    """Return the tokens that the table has a row for, and the mask of those."""
    b_row = tl.load(p_index, mask=m, other=0).to(tl.int64)
    return b_row, m & (b_row >= 0) & (b_row < count)


@triton.jit
def outputs_of(i_o: tl.tensor, w: tl.tensor, W: tl.constexpr, TILE: tl.constexpr) -> Outputs:
    """Return the ``i_o``-th tile's outputs."""
    b_o = i_o * TILE.O + tl.arange(0, TILE.O)
    p_w = w + b_o.to(tl.int64) * (1 if W.columns else W.pitch if W.pitch else W.C * W.K)
    return Outputs(p_w=p_w, b=b_o, m=below(b_o, W.O, TILE.O))


@triton.jit
def load_block(
    outputs: Outputs,
    b_weight: tl.tensor,  # (R,) numbers of weights in an output's
    m_r: tl.tensor,  # (R,)
    W: tl.constexpr,
    ROUND: tl.constexpr,
) -> tl.tensor:
    """Return weights, ``(R, O)``."""
    if W.columns:
        p_w = outputs.p_w[None, :] + b_weight.to(tl.int64)[:, None] * W.columns
        b_w = tl.load(p_w, mask=m_r[:, None] & outputs.m[None, :], other=0.0)
    else:
        p_w = outputs.p_w[:, None] + b_weight[None, :]
        b_w = tl.trans(tl.load(p_w, mask=outputs.m[:, None] & m_r[None, :], other=0.0))
    return factor(b_w, ROUND and not W.pitch)


@triton.jit
def load_filters(
    outputs: Outputs,
    b_c: tl.tensor,  # (R,) channels
    W: tl.constexpr,
    TILE: tl.constexpr,
    PRODUCTS: tl.constexpr,
) -> tl.tensor:
    """Return the weights of every tap, a tuple of ``(R, O)``."""
    filters: tl.tuple = ()
    m_c = below(b_c, W.C, TILE.R)
    for k in tl.static_range(W.K):
        b_weight = k * W.C + b_c if W.pitch else b_c * W.K + k
        filters = filters + (load_block(outputs, b_weight, m_c, W, PRODUCTS.rounds),)  # noqa: RUF005
    return filters


@triton.jit
def load_tap(
    w: tl.tensor,  # packed, and rounded
    b_o: tl.tensor,  # (O,)
    b_c: tl.tensor,  # (C,)
    m_c: tl.tensor,  # (C,)
    k: tl.tensor,
    W: tl.constexpr,
    TILE: tl.constexpr,
) -> tl.tensor:
    """Return a tap's weights for a product with gradients, ``(O, C)``."""
    if W.columns:
        i_k = tl.full((), 0, tl.int64) + k
        p_w = w + b_o[:, None] + (b_c.to(tl.int64) * W.columns)[None, :] + i_k * (W.C * W.columns)
        m_o = below(b_o, W.columns, TILE.O)  # zeros behind the last output
    else:
        p_w = w + (b_o.to(tl.int64) * W.pitch)[:, None] + (k * W.C + b_c)[None, :]
        m_o = b_o < W.O
    return factor(tl.load(p_w, mask=m_o[:, None] & m_c[None, :], other=0.0), False)


@triton.jit
def convolve_one(
    input: Input,
    p_x: tl.tensor,  # (M,) where each row's sample would have tap 0, channel 0, or where the table lies
    p_index: tl.tensor,  # (M,) where each row's sample would have the token of tap 0, or None
    b_at: tl.tensor,  # (M,) the position of that tap in its sample
    m_x: tl.tensor,  # (M,)
    outputs: Outputs,
    W: tl.constexpr,
    TAP_STEP: tl.constexpr,
    TILE: tl.constexpr,
    PRODUCTS: tl.constexpr,
    CHECK: tl.constexpr,  # positions may lie outside the input
    r_first: tl.tensor = 0,  # a multiple of R: a part of the reduction begins there, unless there are tokens,
    r_last: tl.tensor = None,  # and ends there or, if None, with the whole
) -> tl.tensor:
    """Return one phase's sums, ``(M, O)`` in float32, block by block of the reduction ``r = (k, c)``."""
    acc = tl.full((TILE.M, TILE.O), 0.0, tl.float32)
    if p_index is not None:
        TILES_C: tl.constexpr = (W.C + TILE.R - 1) // TILE.R
        for step in range(W.K * TILES_C):
            k = step // TILES_C
            b_c = (step % TILES_C) * TILE.R + tl.arange(0, TILE.R)
            m = m_x
            if CHECK:
                b_seen = b_at + k * TAP_STEP
                m = m & (b_seen >= 0) & (b_seen < input.length)
            b_row, m = look_up(p_index + k * (TAP_STEP * input.index_l), m, input.count)
            p_r = (p_x + b_row * input.stride_n)[:, None] + b_c.to(tl.int64)[None, :]
            m_c = below(b_c, W.C, TILE.R)
            b_x = tl.load(p_r, mask=m[:, None] & m_c[None, :], other=0.0)  # (M, R)
            b_x = through_registers(factor(b_x, PRODUCTS.rounds), PRODUCTS.registers)
            b_w = load_block(outputs, k * W.C + b_c if W.pitch else b_c * W.K + k, m_c, W, PRODUCTS.rounds)
            acc = tl.dot(b_x, b_w, acc, input_precision=PRODUCTS.precision)
    else:
        R: tl.constexpr = W.K * W.C
        for r0 in range(r_first, R if r_last is None else r_last, TILE.R):
            b_r = r0 + tl.arange(0, TILE.R)
            b_k = b_r // W.C
            m_r = below(b_r, R, TILE.R)
            m = m_x[:, None] & m_r[None, :]
            if CHECK:
                b_seen = b_at[:, None] + (b_k * TAP_STEP)[None, :]
                m = m & (b_seen >= 0) & (b_seen < input.length)
            b_offset = b_k.to(tl.int64) * (TAP_STEP * input.stride_l) + (b_r % W.C).to(tl.int64)
            b_x = tl.load(p_x[:, None] + b_offset[None, :], mask=m, other=0.0)  # (M, R)
            b_x = through_registers(factor(b_x, PRODUCTS.rounds), PRODUCTS.registers)
            b_w = load_block(outputs, b_r if W.pitch else b_r % W.C * W.K + b_k, m_r, W, PRODUCTS.rounds)
            acc = tl.dot(b_x, b_w, acc, input_precision=PRODUCTS.precision)
    return acc


@triton.jit
def convolve_several(
    input: Input,  # as in convolve_one, at phase 0
    p_x: tl.tensor,
    p_index: tl.tensor,
    b_at: tl.tensor,
    m_x: tl.tensor,
    outputs: Outputs,
    resident: tl.tuple,  # what load_filters returns, if they are
    W: tl.constexpr,
    TAP_STEP: tl.constexpr,
    TILE: tl.constexpr,
    PRODUCTS: tl.constexpr,
    CHECK: tl.constexpr,
) -> tl.tensor:
    """Return the sums of a tile's phases, a tuple of ``(M, O)``; phases are one tap step apart.

    Weights are never extended by zeros to phases that do not see a position: zero times infinity would be NaN there.
    """
    accs: tl.tuple = ()
    for _ in tl.static_range(TILE.phases):
        accs = accs + (tl.full((TILE.M, TILE.O), 0.0, tl.float32),)  # noqa: RUF005
    for c0 in range(0, W.C, TILE.R):
        b_c = c0 + tl.arange(0, TILE.R)
        m_c = below(b_c, W.C, TILE.R)[None, :]
        filters = resident
        if not TILE.resident:
            filters = load_filters(outputs, b_c, W, TILE, PRODUCTS)
        b_channel = b_c.to(tl.int64)[None, :]
        for j in tl.static_range(W.K + TILE.phases - 1):
            m = m_x
            if CHECK:
                b_seen = b_at + j * TAP_STEP
                m = m & (b_seen >= 0) & (b_seen < input.length)
            if p_index is not None:
                b_row, m = look_up(p_index + j * (TAP_STEP * input.index_l), m, input.count)
                p_r = (p_x + b_row * input.stride_n)[:, None] + b_channel
            else:
                p_r = p_x[:, None] + b_channel + j * (TAP_STEP * input.stride_l)
            b_x = tl.load(p_r, mask=m[:, None] & m_c, other=0.0)  # (M, R)
            b_x = through_registers(factor(b_x, PRODUCTS.rounds), PRODUCTS.registers)
            sums: tl.tuple = ()
            for i in tl.static_range(TILE.phases):
                if j >= i and j - i < W.K:
                    product = tl.dot(b_x, filters[j - i], accs[i], input_precision=PRODUCTS.precision)
                    sums = sums + (product,)  # noqa: RUF005
                else:
                    sums = sums + (accs[i],)  # noqa: RUF005
            accs = sums
    return accs


@triton.jit
def convolve(
    input: Input,
    p_x: tl.tensor,  # (M,) where each row's sample begins, or the table
    b_n: tl.tensor,  # (M,) samples, or one
    b_at: tl.tensor,  # (M,) the position of tap 0 at phase 0
    m_x: tl.tensor,  # (M,)
    outputs: Outputs,
    resident: tl.tuple,
    W: tl.constexpr,
    TAP_STEP: tl.constexpr,
    TILE: tl.constexpr,
    PRODUCTS: tl.constexpr,
    ROWS: tl.constexpr,
    CHECK: tl.constexpr,
) -> tl.tensor:
    """Return the sums of a tile's phases as a tuple."""
    p_index = None
    if ROWS.mode == "tokens":
        p_index = input.index + b_n * input.index_n + b_at.to(tl.int64) * input.index_l
    else:
        p_x = p_x + b_at.to(tl.int64) * input.stride_l
    if TILE.phases == 1:
        accs = (convolve_one(input, p_x, p_index, b_at, m_x, outputs, W, TAP_STEP, TILE, PRODUCTS, CHECK),)
    else:
        accs = convolve_several(
            input, p_x, p_index, b_at, m_x, outputs, resident, W, TAP_STEP, TILE, PRODUCTS, CHECK
        )  # fmt: skip
    return accs
