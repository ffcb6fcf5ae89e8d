"""Samples turned over on the device: from a row for each channel to a row for each position, and back.

Tiles are read along one axis and written along the other, so that both are neighbours in memory; naming is as in
:mod:`.conv_pool`.
"""

from __future__ import annotations

import triton
import triton.language as tl

__all__ = ["transpose_kernel"]

# Numbers that differ from call to call.
SIZES = ["rows", "columns", "stride_n", "stride_i", "stride_j"]


@triton.jit(do_not_specialize=SIZES)
def transpose_kernel(
    x: tl.tensor,  # (N, I, J), strides as given
    out: tl.tensor,  # (N, J, I), contiguous
    rows: tl.int64,  # I, in units of OUT_ALIGN
    columns: tl.int64,  # J
    stride_n: tl.int64,  # those of samples and rows in units of ALIGN
    stride_i: tl.int64,
    stride_j: tl.int64,
    ALIGN: tl.constexpr,
    OUT_ALIGN: tl.constexpr,
    UNIT_J: tl.constexpr,  # neighbours of a row are neighbours in memory
    BLOCK_I: tl.constexpr,
    BLOCK_J: tl.constexpr,
) -> tl.tensor:
    """Turn one tile over."""
    rows = rows * OUT_ALIGN
    stride_j = 1 if UNIT_J else stride_j
    tiles_i, tiles_j = tl.cdiv(rows, BLOCK_I), tl.cdiv(columns, BLOCK_J)
    i_tile = tl.program_id(0).to(tl.int64)
    i_n = i_tile // (tiles_i * tiles_j)
    b_i = i_tile // tiles_j % tiles_i * BLOCK_I + tl.arange(0, BLOCK_I)
    b_j = i_tile % tiles_j * BLOCK_J + tl.arange(0, BLOCK_J)
    m = (b_i < rows)[:, None] & (b_j < columns)[None, :]
    p_x = x + i_n * (stride_n * ALIGN) + (b_i * (stride_i * ALIGN))[:, None] + (b_j * stride_j)[None, :]
    b_x = tl.load(p_x, mask=m)  # (BLOCK_I, BLOCK_J)
    p_out = out + i_n * rows * columns + (b_j * rows)[:, None] + b_i[None, :]
    tl.store(p_out, tl.trans(b_x), mask=tl.trans(m))
