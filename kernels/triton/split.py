"""The forward pass of layers with few windows, in two steps; see :mod:`.device.split`."""

from __future__ import annotations

import torch
from torch import Tensor

from ..geometry import Convolution, Pool
from .configurations import Forward, Layer, forward_configuration
from .groups import Access, Blocks, Filters, Steps, windows_alone
from .launch import Layout, device_code, imagined, processors
from .replay import empty, launch
from .rows import Rows

__all__ = ["launch_pool", "launch_pool_globally", "launch_sums", "serves", "steps_of"]

LONG = (
    80  # products that a program goes through one behind the other, from which on two steps take less time (see below)
)
LEAST = 4  # products of a part
PROGRAMS = 2  # for each multiprocessor
WINDOWS = 16  # x outputs of a tile that pools; few, so that there are many
OUTPUTS = 32
POSITIONS = 64  # of a tile that pools globally


def steps_of(tile: Forward, layer: Layer, positions: int) -> int:
    """Return how many products a forward program computes one behind the other, for so many positions of each row."""
    if tile.phases == 1:
        return positions * -(-layer.size * layer.channels // tile.block_r)
    return -(-positions // tile.phases) * -(-layer.channels // tile.block_r) * (layer.size + tile.phases - 1)


def serves(programs: int, steps: int, device: torch.device) -> bool:
    """Tell whether a forward pass of so many programs is better done in two steps."""
    if (gpu := imagined()) is not None:
        return gpu.few
    return programs < processors(device) and steps >= LONG


def launch_sums(
    rows: Rows, filters: Tensor, weights: Filters, layer: Layer, layout: Layout, convolution: Convolution
) -> Tensor:
    """Return the parts of the convolution's sums, ``(splits, N * positions, O)`` in float32."""
    padded = convolution.padding != (0, 0)
    tile = forward_configuration(layer._replace(phases=1, padded=padded))
    positions = convolution.output_length(rows.length, layer.size)
    total, reduction = rows.samples * positions, layer.size * layer.channels
    tiles = -(-total // tile.block_m) * -(-layer.outputs // tile.block_o)
    steps = -(-reduction // tile.block_r)
    splits = max(min(PROGRAMS * processors(rows.source.device) // tiles, steps // LEAST), 1)
    part = -(-steps // splits)
    splits = -(-steps // part)
    sums = empty(rows.source, (splits, total, layer.outputs), torch.float32)
    launch(
        device_code("split").sums_kernel, (splits * tiles,),
        rows.source, filters, sums, total, positions, part, *rows.arguments(layout),
        W=weights, STEPS=Steps(-convolution.padding[0], convolution.stride, convolution.dilation),
        ROWS=Access(rows.mode, layout.align), TILE=Blocks(tile.block_m, tile.block_o, tile.block_r),
        PRODUCTS=layer.products, CHECK=padded,
        num_warps=tile.num_warps, num_stages=tile.num_stages,
    )  # fmt: skip
    return sums


def launch_pool(
    sums: Tensor, bias: Tensor | None, out: Tensor, argmax: Tensor | None, positions: int, pool: Pool, *, last: bool
) -> None:
    """Write the pooled activations ``(N, O, Q)``, channels-last if ``last``, and ``argmax`` unless it is ``None``."""
    samples, outputs, windows = out.shape
    launch(
        device_code("split").pool_sums_kernel, (-(-samples * windows // WINDOWS) * -(-outputs // OUTPUTS),),
        sums, bias, out, argmax, samples * windows, samples, windows, positions, sums.size(0),
        O=outputs, POOL=windows_alone(pool), OUT_LAST=last,
        BLOCK_M=WINDOWS, BLOCK_O=OUTPUTS, num_warps=2,
    )  # fmt: skip


def launch_pool_globally(sums: Tensor, bias: Tensor | None, out: Tensor, argmax: Tensor | None, positions: int) -> None:
    """Write the greatest activations ``(N, O)``, and ``argmax`` unless it is ``None``."""
    samples, outputs = out.shape
    launch(
        device_code("split").pool_sums_globally_kernel, (samples * -(-outputs // OUTPUTS),),
        sums, bias, out, argmax, samples, positions, sums.size(0),
        O=outputs, BLOCK_M=POSITIONS, BLOCK_O=OUTPUTS, num_warps=4,
    )  # fmt: skip
