"""Tensors for the kernels to read and write with channels next to each other, whatever memory format they come in.

A contiguous ``(N, C, L)`` tensor is copied, once there and once back: that costs its bytes twice, where reading it in
place wasted most of every load. Copies live as long as the call.
"""

from __future__ import annotations

import math

from torch import Tensor

from .configurations import power_of_two
from .launch import VECTOR_BYTES, device_code, on_device
from .replay import compute, empty, launch

__all__ = ["channels_together", "columns_together", "positions_together"]

BLOCK = 64
NUMBERS = 4096  # of a tile: 32 for each of 128 threads


def channels_together(tensor: Tensor) -> Tensor:
    """Return an ``(N, C, L)`` tensor whose channels are neighbours in memory: itself, or a copy."""
    samples, channels, length = tensor.shape
    if tensor.stride(1) == 1 or channels == 1 or not tensor.numel():
        return tensor
    out = empty(tensor, (samples, length, channels))
    _transpose(tensor, out)
    return out.transpose(1, 2)


def columns_together(table: Tensor) -> Tensor:
    """Return a table ``(V, C)`` the numbers of whose rows are neighbours in memory: itself, or a copy."""
    return table if table.stride(1) == 1 or table.size(1) == 1 else compute(Tensor.contiguous, table)


def positions_together(rows: Tensor) -> Tensor:
    """Return contiguous rows ``(N, L, C)`` as a contiguous ``(N, C, L)`` tensor."""
    samples, length, channels = rows.shape
    if channels == 1 or length == 1 or not rows.numel():
        return rows.view(samples, channels, length)
    out = empty(rows, (samples, channels, length))
    _transpose(rows, out)
    return out


def _transpose(tensor: Tensor, out: Tensor) -> None:
    """Write ``(N, I, J)`` to ``out`` ``(N, J, I)``, contiguous."""
    samples, rows, columns = tensor.shape
    stride_n, stride_i, stride_j = tensor.stride()
    vector = VECTOR_BYTES // tensor.element_size()
    align = math.gcd(vector, stride_i, stride_n if samples > 1 else 0) if stride_j == 1 else 1
    out_align = math.gcd(vector, rows)
    block_i = min(power_of_two(rows), NUMBERS // min(power_of_two(columns), BLOCK))
    block_j = min(power_of_two(columns), NUMBERS // block_i)
    tiles = samples * -(-rows // block_i) * -(-columns // block_j)
    with on_device(tensor):
        launch(
            device_code("transposition").transpose_kernel, (tiles,),
            tensor, out, rows // out_align, columns, stride_n // align, stride_i // align, stride_j,
            ALIGN=align, OUT_ALIGN=out_align, UNIT_J=stride_j == 1, BLOCK_I=block_i, BLOCK_J=block_j, num_warps=4,
        )  # fmt: skip
