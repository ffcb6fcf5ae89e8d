"""A table folded into a convolution: every row's products with every kernel position, computed once, on a GPU.

``conv(table[tok])[t] = sum_k folded[tok[t + k], k]``: with ``folded`` at hand a position costs ``K`` additions of rows.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .configurations import forward_configuration
from .forward import describe, launch_over_weights
from .groups import Blocks, Filters
from .launch import VECTOR_BYTES, device_code, on_device
from .replay import empty, launch, replayed
from .rows import Rows, layout_of_rows
from .transposition import columns_together

__all__ = ["fold", "folded_shape"]


def folded_shape(rows: int, weight: Tensor, dtype: torch.dtype | None = None) -> tuple[int, int, int]:
    """Return the shape of ``rows`` rows folded into ``dtype``: ``(rows + 1, K, O)``, ``O`` in whole vectors.

    The last row is one of zeros folded, for positions without a row: zeros, but NaN where weights are not finite.
    """
    numbers = VECTOR_BYTES // (dtype or torch.float32).itemsize
    return rows + 1, weight.size(2), -(-weight.size(0) // numbers) * numbers


@replayed
def fold(table: Tensor, weight: Tensor, rows: Tensor | None = None, *, dtype: torch.dtype | None = None) -> Tensor:
    """Return ``folded[v, k, o] = sum_c table[v, c] * weight[o, c, k]``, zeros behind the last ``o``.

    ``table`` ``(V, C)``, of any strides, and ``weight`` ``(O, C, K)`` share a dtype, float32, float16 or bfloat16;
    products and sums are those of the forward pass. Given ``rows``, int64, ``folded[i]`` is that of row ``rows[i]``.
    See :func:`folded_shape`. ``dtype`` is the result's, float32 if ``None``, whatever the table's: sums are rounded to
    it once, so that a position of a float16 or bfloat16 folded table is off by at most ``eps / 2 * sum_k
    |folded[tok[t + k], k]|`` before the forward pass rounds its own result, where float32 is not off at all.
    """
    table, weight = table.detach(), weight.detach()
    table = columns_together(table if rows is None else table[rows])
    dtype = torch.float32 if dtype is None else dtype
    folded = empty(table, folded_shape(table.size(0), weight, dtype), dtype)
    if not folded.numel():
        return folded
    outputs, channels, size = weight.shape
    layout = layout_of_rows(table, 0)
    source = Rows("own", table, layout, None, 0, 0, 0, table.size(0), 1)  # V samples of one position
    layer = describe(source, weight[:, :, :1], 1, False)
    tile = forward_configuration(layer)
    with on_device(table):
        packed = launch_over_weights(weight, True)
        assert packed is not None
        weights = Filters(channels, outputs, size, packed.size(1))
        tiles = -(-folded.size(0) // tile.block_m)
        launch(
            device_code("gather").fold_kernel, (tiles * size * -(-outputs // tile.block_o),),
            table, packed, folded, table.size(0), layout.stride_n,
            W=weights, TAP=weights._replace(K=1), ALIGN=layout.align, WIDTH=folded.size(2),
            TILE=Blocks(tile.block_m, tile.block_o, tile.block_r), PRODUCTS=layer.products,
            num_warps=tile.num_warps, num_stages=tile.num_stages,
        )  # fmt: skip
    return folded
