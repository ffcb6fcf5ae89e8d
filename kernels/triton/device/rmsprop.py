"""One step of RMSprop on the device, for several tensors in one launch; naming is as in :mod:`.conv_pool`."""

from __future__ import annotations

import triton
import triton.language as tl

__all__ = ["rmsprop_kernel"]


@triton.jit
def rounded_to(b: tl.tensor, like: tl.tensor) -> tl.tensor:
    """Return numbers as memory of a pointer's dtype would hold them, in float32."""
    return b.to(like.dtype.element_ty).to(tl.float32)


@triton.jit
def rmsprop_kernel(
    parameters: tl.tuple,  # pointers, and so are gradients and mean squares
    gradients: tl.tuple,
    mean_squares: tl.tuple,
    sizes: tl.tuple,  # numbers of each tensor
    begins: tl.tuple,  # the first program of each tensor, and behind the last
    rate: tl.float32,
    decay: tl.float32,
    rest: tl.float32,  # 1 - decay
    epsilon: tl.float32,
    COUNT: tl.constexpr,
    BLOCK: tl.constexpr,
) -> tl.tensor:
    """Update ``BLOCK`` numbers of one tensor; every result is rounded to its dtype, as where torch writes it."""
    i_program = tl.program_id(0)
    for i in tl.static_range(COUNT):
        if (i_program >= begins[i]) & (i_program < begins[i + 1]):
            b_i = (i_program - begins[i]).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
            m = b_i < sizes[i]
            p, v = parameters[i] + b_i, mean_squares[i] + b_i
            b_g = tl.load(gradients[i] + b_i, mask=m, other=0.0).to(tl.float32)
            b_v = rounded_to(tl.load(v, mask=m, other=0.0).to(tl.float32) * decay, v)
            b_v = rounded_to(b_v + rest * (b_g * b_g), v)
            tl.store(v, b_v.to(v.dtype.element_ty), mask=m)
            b_root = rounded_to(rounded_to(tl.sqrt_rn(b_v), v) + epsilon, v)
            b_p = tl.load(p, mask=m, other=0.0).to(tl.float32) - rate * tl.div_rn(b_g, b_root)
            tl.store(p, b_p.to(p.dtype.element_ty), mask=m)
