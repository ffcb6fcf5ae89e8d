"""An index on the device: whether its numbers are rows of the table, and these as keys of a sort.

A number out of range stops the device with a message, as torch's own look-ups do: telling the host sooner would mean
to wait for the device.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .convolution import INTERPRETED

__all__ = ["INTERPRETED", "check_index_kernel", "keys_kernel"]

SIZES = ["numbers", "length", "index_n", "index_l", "count", "below", "step"]


@triton.jit
def places(length: tl.tensor, BLOCK: tl.constexpr) -> tl.tensor:
    """Return the numbers of a program's ``BLOCK`` places among those of all samples, their samples and positions."""
    i_first = tl.program_id(0).to(tl.int64) * BLOCK
    b_l = (i_first % length).to(tl.int32) + tl.arange(0, BLOCK)
    b_n = i_first // length + (b_l // length).to(tl.int64)
    return i_first + tl.arange(0, BLOCK), b_n, b_l % length


# Assertions are compiled into kernels of which it is asked.
@triton.jit(do_not_specialize=SIZES[:5], debug=True)
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
    b_at, b_n, b_l = places(length, BLOCK)
    m = b_at < numbers
    b = tl.load(index + b_n * index_n + b_l.to(tl.int64) * index_l, mask=m, other=0).to(tl.int64)
    tl.device_assert((b >= 0) & (b < count), "tokens or starts must be rows of the table or series", mask=m)


@triton.jit(do_not_specialize=SIZES)
def keys_kernel(
    index: tl.tensor,  # (N, L) tokens or (N,) starts, strides as given
    keys: tl.tensor,  # (N * L,)
    numbers: tl.int64,  # N * L
    length: tl.int32,  # L
    index_n: tl.int64,
    index_l: tl.int64,
    below: tl.int64,  # numbers in the index are
    count: tl.int64,  # the key of the others
    step: tl.int64,  # rows from position to position of a window
    WINDOWS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> tl.tensor:
    """Write the number of every position's row, ``BLOCK`` of them."""
    b_at, b_n, b_l = places(length, BLOCK)
    m = b_at < numbers
    p_index = index + b_n * index_n
    if not WINDOWS:
        p_index = p_index + b_l.to(tl.int64) * index_l
    b = tl.load(p_index, mask=m, other=0).to(tl.int64)
    b_row = b
    if WINDOWS:
        b_row = b + b_l.to(tl.int64) * step
    tl.store(keys + b_at, tl.where((b >= 0) & (b < below), b_row, count).to(keys.dtype.element_ty), mask=m)
