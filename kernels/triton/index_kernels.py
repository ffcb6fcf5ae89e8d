"""The check of an index on the device: whether its numbers are rows of the table.

A number out of range stops the device with a message, as torch's own look-ups do: telling the host sooner would mean
to wait for the device.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .conv_pool_kernels import INTERPRETED

__all__ = ["INTERPRETED", "check_index_kernel"]

SIZES = ["numbers", "length", "index_n", "index_l", "count"]


# Assertions are compiled into kernels of which it is asked.
@triton.jit(do_not_specialize=SIZES, debug=True)
def check_index_kernel(
    index: tl.tensor,  # (N, L) tokens or (N, 1) starts, strides as given
    numbers: tl.int64,  # N * L
    length: tl.int32,  # L
    index_n: tl.int64,
    index_l: tl.int64,
    count: tl.int64,
    BLOCK: tl.constexpr,
) -> tl.tensor:
    """Check ``BLOCK`` numbers."""
    i_first = tl.program_id(0).to(tl.int64) * BLOCK
    b_l = (i_first % length).to(tl.int32) + tl.arange(0, BLOCK)
    b_n = i_first // length + (b_l // length).to(tl.int64)
    b_l = b_l % length
    m = i_first + tl.arange(0, BLOCK) < numbers
    b = tl.load(index + b_n * index_n + b_l.to(tl.int64) * index_l, mask=m, other=0).to(tl.int64)
    tl.device_assert((b >= 0) & (b < count), "tokens or starts must be rows of the table or series", mask=m)
