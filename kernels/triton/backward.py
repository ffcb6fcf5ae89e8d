"""The fused conv stack's gradients on a GPU; see :mod:`.device.conv_pool_backward` for how.

A call is at most three launches: partial gradients of weights and bias; their sums, together with the weights repacked
for the last; the input's gradient. Products are of the input's dtype, sums float32, as in the forward pass.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..geometry import Convolution, Pool
from ..source import Dense
from . import global_backward, phase_backward
from .configurations import Layer, input_gradient_configuration, weight_gradient_configuration
from .forward import describe, launch_over_weights
from .groups import Access, Blocks, Filters, Products, taps_of, windows_alone
from .launch import Layout, device_code, imagined, layout_of, on_device, processors
from .replay import empty, launch
from .rows import Rows, rows_of
from .transposition import channels_together, positions_together

__all__ = ["Gradients", "backward", "launch_backward"]

# Programs of the weight gradient for each multiprocessor: enough that some compute while others wait.
PROGRAMS = 4
UNBOUNDED = 2**31 - 1  # positions of a global maximum's window: of any length, so that kernels are compiled for none

Gradients = tuple[Tensor | None, Tensor | None, Tensor | None]


def backward(
    gradient: Tensor,
    argmax: Tensor,
    input: Tensor,
    weight: Tensor,
    convolution: Convolution,
    pool: Pool | None,
    wanted: tuple[bool, bool, bool],
) -> Gradients:
    """Return the gradients of ``input``, ``weight`` and ``bias`` that are wanted; ``gradient`` ``(N, O, Q)``.

    The input's gradient is channels-last, unless a contiguous one is what the input was.
    """
    (samples, channels, length), last = input.shape, not input.is_contiguous()
    dx = new_gradient(gradient, input, (samples, length, channels)) if wanted[0] else None
    dw, db = launch_backward(gradient, argmax, rows_of(Dense(input)), weight, convolution, pool, wanted[1:], dx)
    if dx is not None:
        dx = dx.transpose(1, 2) if last else positions_together(dx)
    return dx, dw, db


def launch_backward(
    gradient: Tensor,
    argmax: Tensor,
    rows: Rows,
    weight: Tensor,
    convolution: Convolution,
    pool: Pool | None,
    wanted: tuple[bool, bool],
    dx: Tensor | None,
) -> tuple[Tensor | None, Tensor | None]:
    """Return the gradients of weight and bias that are wanted; write those of all rows to ``dx`` unless it is ``None``.

    ``dx`` is ``(N, L, C)``, contiguous, of any dtype; it is not written if ``gradient`` has no elements. ``pool`` is
    ``None`` for the global maximum.
    """
    source = rows.source
    dw = new_gradient(gradient, weight, weight.shape) if wanted[0] else None
    db = new_gradient(gradient, weight, weight.shape[:1]) if wanted[1] else None
    if not gradient.numel():
        return dw, db
    gradient = channels_together(gradient)
    upstream = layout_of(gradient)
    layer = describe(rows, weight, 1, convolution.padding != (0, 0))
    weight_launch: Any = _launch_weight_gradient
    input_launch: Any = _launch_input_gradient
    if pool is None:
        pool = Pool(UNBOUNDED, UNBOUNDED)
        if global_backward.serves(layer):
            input_launch = global_backward.launch_input_gradient
        if global_backward.serves_weights(layer):
            weight_launch = global_backward.launch_weight_gradient
    elif phase_backward.serves(layer, convolution, pool):
        weight_launch = phase_backward.launch_weight_gradient
        input_launch = phase_backward.launch_input_gradient
    shared = (layer, upstream, convolution, pool)
    with on_device(source):
        partials = weight_launch(gradient, argmax, rows, *shared, wanted) if wanted[0] or wanted[1] else None
        splits = 0 if partials is None else len(partials)
        packed = launch_over_weights(weight, dx is not None, partials, splits, dw, db, columns=layer.gradient_columns)
        if packed is not None and dx is not None:
            input_launch(gradient, argmax, packed, dx, rows.samples, rows.length, *shared)
    return dw, db


def _launch_weight_gradient(
    gradient: Tensor,
    argmax: Tensor,
    rows: Rows,
    layer: Layer,
    upstream: Layout,
    convolution: Convolution,
    pool: Pool,
    wanted: tuple[bool, bool],
) -> Tensor:
    """Return partial gradients of weights and bias, of those that are wanted, ``(splits, O * K * C + O)``."""
    tile = weight_gradient_configuration(layer)
    source, layout, positions = rows.source, rows.layout, convolution.output_length(rows.length, layer.size)
    taps, channels_of = (layer.size, layer.channels) if layer.tokens else (1, layer.channels * layer.size)
    blocks = (taps * -(-channels_of // tile.block_r) if wanted[0] else 1) * -(-layer.outputs // tile.block_o)
    tiles = -(-rows.samples * positions // tile.block_m)
    tiles_of_split = -(-tiles // min(tiles, max(1, PROGRAMS * processors(source.device) // blocks)))
    splits = -(-tiles // tiles_of_split)
    partials = empty(source, (splits, layer.outputs * (layer.channels * layer.size + 1)), torch.float32)
    launch(
        device_code("conv_pool_backward").weight_gradient_kernel, (splits * blocks,),
        gradient, argmax, source, partials, rows.samples * positions, tiles_of_split * tile.block_m,
        gradient.size(2), positions, upstream.stride_n, upstream.stride_l, *rows.arguments(layout),
        W=Filters(layer.channels, layer.outputs, layer.size), TAPS=taps_of(convolution), POOL=windows_alone(pool),
        OVERLAP=overlap(pool), ALIGN=upstream.align, ROWS=Access(rows.mode, layout.align),
        WANT_W=wanted[0], WANT_B=wanted[1], TILE=Blocks(tile.block_m, tile.block_o, tile.block_r),
        PRODUCTS=Products(layer.precision, layer.rounds), CHECK=convolution.padding != (0, 0),
        num_warps=tile.num_warps, num_stages=tile.num_stages,
    )  # fmt: skip
    return partials


def _launch_input_gradient(
    gradient: Tensor,
    argmax: Tensor,
    packed: Tensor,
    dx: Tensor,
    samples: int,
    length: int,
    layer: Layer,
    upstream: Layout,
    convolution: Convolution,
    pool: Pool,
) -> None:
    """Write the input's gradient to ``dx``, ``(N, L, C)``."""
    tile = input_gradient_configuration(layer._replace(tokens=False))
    blocks = -(-layer.channels // tile.block_c)
    if leaves_room(-(-samples * length // tile.block_m) * blocks, gradient.device):
        tile = tile._replace(block_m=32, num_warps=8)
    launch(
        device_code("conv_pool_backward").input_gradient_kernel, (-(-samples * length // tile.block_m) * blocks,),
        gradient, argmax, packed, dx, samples * length, gradient.size(2), length,
        convolution.output_length(length, layer.size), upstream.stride_n, upstream.stride_l,
        W=Filters(layer.channels, layer.outputs, layer.size, packed.size(1), layer.gradient_columns * packed.size(1)),
        TAPS=taps_of(convolution), POOL=windows_alone(pool), OVERLAP=overlap(pool), ALIGN=upstream.align,
        TILE=Blocks(tile.block_m, tile.block_o, C=tile.block_c), PRODUCTS=Products(layer.precision, layer.rounds),
        APART=layer.apart, num_warps=tile.num_warps, num_stages=tile.num_stages,
    )  # fmt: skip


def leaves_room(tiles: int, device: torch.device) -> bool:
    """Tell whether twice as many tiles would still run at once, each on a multiprocessor of its own."""
    gpu = imagined()
    return 2 * tiles <= processors(device) if gpu is None else gpu.few


def new_gradient(upstream: Tensor, like: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return memory for a gradient: zeros where ``upstream`` has no elements and no kernel runs."""
    return empty(like, shape) if upstream.numel() else like.new_zeros(shape)


def overlap(pool: Pool) -> int:
    """Return how many windows may see a position."""
    return -(-(pool.dilation * (pool.size - 1) + 1) // pool.stride)
