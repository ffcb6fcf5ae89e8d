"""Small work over the weights on the device: to repack them for matrix products, to add up their partial gradients.

``(O, C, K)`` weights have a kernel's positions next to each other, which no product sums over first: a tile of them
would be gathered number by number, again in every program. Repacked once a call to ``(O, K, C)``, a row's ``K * C``
numbers lie in the order of the reduction, and load as vectors. The gradient of the input sums over outputs: for it they
are ``(K, C, O)``.
"""

from __future__ import annotations

import triton
import triton.language as tl

__all__ = ["weights_kernel"]


@triton.jit(do_not_specialize=["stride_o", "stride_c", "stride_k", "splits"])
def weights_kernel(
    w: tl.tensor,  # (O, C, K), strides as given
    packed: tl.tensor,  # (O, PITCH): (K, C), rounded if ROUND, and PITCH - K * C unused numbers, or transposed
    partials: tl.tensor,  # (splits, O * K * C + O) float32: of the weights as (O, K, C), then of the bias
    dw: tl.tensor,  # (O, C, K), contiguous
    db: tl.tensor,  # (O,)
    stride_o: tl.int64,
    stride_c: tl.int64,
    stride_k: tl.int64,
    splits: tl.int32,
    C: tl.constexpr,
    O: tl.constexpr,  # noqa: E741
    K: tl.constexpr,
    PITCH: tl.constexpr,
    PACK: tl.constexpr,
    COLUMNS: tl.constexpr,  # (K * C, PITCH), outputs and PITCH - O zeros in the rows
    ROUND: tl.constexpr,  # to TF32, so that no tile has to; rounding again changes nothing
    WANT_W: tl.constexpr,
    WANT_B: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_S: tl.constexpr,
) -> tl.tensor:
    """Serve ``BLOCK`` numbers: repack weights (``PACK``), sum partials into ``dw`` (``WANT_W``), ``db`` (``WANT_B``).

    The sum runs over splits in a fixed order, so that its bits are the same on every run.
    """
    WEIGHTS: tl.constexpr = O * K * C
    b_e = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    b_o = b_e // (K * C)
    b_k = b_e % (K * C) // C
    b_c = b_e % C
    m_w = b_e < WEIGHTS
    if PACK:
        # Columns are written apart from each other in any case: then neighbours are read.
        b_r = b_e % K * C + b_e // K % C if COLUMNS else b_e % (K * C)
        b_w = tl.load(w + b_o * stride_o + b_r % C * stride_c + b_r // C * stride_k, mask=m_w, other=0.0)
        if ROUND:
            b_w = tl.inline_asm_elementwise("cvt.rna.tf32.f32 $0, $1;", "=r,r", [b_w], tl.float32, is_pure=True, pack=1)
        m_packed = b_e < K * C * PITCH if COLUMNS else m_w
        tl.store(packed + (b_r * PITCH + b_o if COLUMNS else b_o * PITCH + b_r), b_w, mask=m_packed)
    if WANT_W or WANT_B:
        b_sum = tl.zeros((BLOCK,), tl.float32)
        for s0 in range(0, splits, BLOCK_S):
            b_s = s0 + tl.arange(0, BLOCK_S)
            m = (b_s < splits)[:, None] & (b_e < WEIGHTS + O)[None, :]
            p = partials + b_s.to(tl.int64)[:, None] * (WEIGHTS + O) + b_e[None, :]
            b_sum += tl.sum(tl.load(p, mask=m, other=0.0), axis=0)
        if WANT_W:
            tl.store(dw + (b_o * C + b_c) * K + b_k, b_sum.to(dw.dtype.element_ty), mask=m_w)
        if WANT_B:
            m_b = (b_e >= WEIGHTS) & (b_e < WEIGHTS + O)
            tl.store(db + b_e - WEIGHTS, b_sum.to(db.dtype.element_ty), mask=m_b)
