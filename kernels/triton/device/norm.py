"""A batch norm folded into a convolution on the device; naming is as in :mod:`.conv_pool`."""

from __future__ import annotations

import triton
import triton.language as tl

__all__ = ["fold_norm_kernel"]


@triton.jit(do_not_specialize=["numbers", "eps"])
def fold_norm_kernel(
    w: tl.tensor,  # (O, R), contiguous, and so is all else
    bias: tl.tensor,  # (O,) or None
    mean: tl.tensor,  # (O,)
    var: tl.tensor,  # (O,)
    norm_weight: tl.tensor,  # (O,) or None
    norm_bias: tl.tensor,  # (O,) or None
    scaled: tl.tensor,  # (O, R)
    shift: tl.tensor,  # (O,)
    numbers: tl.int32,  # R
    eps: tl.float32,
    BLOCK: tl.constexpr,
) -> tl.tensor:
    """Fold one output's norm into its weights and bias."""
    i_o = tl.program_id(0)
    scale = tl.div_rn(1.0, tl.sqrt_rn(tl.load(var + i_o).to(tl.float32) + eps))
    if norm_weight is not None:
        scale *= tl.load(norm_weight + i_o).to(tl.float32)
    moved = -tl.load(mean + i_o).to(tl.float32)
    if bias is not None:
        moved += tl.load(bias + i_o).to(tl.float32)
    moved *= scale
    if norm_bias is not None:
        moved += tl.load(norm_bias + i_o).to(tl.float32)
    tl.store(shift + i_o, moved.to(shift.dtype.element_ty))
    i_w = i_o.to(tl.int64) * numbers
    for start in range(0, numbers, BLOCK):
        b_r = start + tl.arange(0, BLOCK)
        b_w = tl.load(w + i_w + b_r, mask=b_r < numbers, other=0.0).to(tl.float32)
        tl.store(scaled + i_w + b_r, (b_w * scale).to(scaled.dtype.element_ty), mask=b_r < numbers)
