"""Gradients of the global maximum on a GPU; see :mod:`.device.global_backward` for how."""

from __future__ import annotations

import torch
from torch import Tensor

from ..geometry import Convolution, Pool
from .configurations import Layer, power_of_two, shared_phases
from .groups import Access, Blocks, Filters, Products, taps_of
from .launch import Layout, device_code, processors
from .replay import empty, launch
from .rows import Rows

__all__ = ["launch_input_gradient", "launch_weight_gradient", "serves", "serves_weights"]

POSITIONS = 64  # of a sample in a tile
SUMS = 14 * 1024  # that four warps hold in registers, 112 numbers a thread
MOST_TAPS = 16  # of a program: of 31, unrolled, Triton spills sums
FEW = 8  # channels that fill half of a tile: where taps do not fit into one program, they had better be its rows, too
# Bytes of weights that all programs of a multiprocessor read through its L1 cache. Copies to shared memory, which more
# than one stage takes, pass it by: the second cache would give imdb2's 28 KB to each of 8,192 programs.
CACHED = 96 * 1024
PROGRAMS = 2  # programs of the weights' gradient for each multiprocessor


def serves(layer: Layer) -> bool:
    """Tell whether the kernels serve a layer.

    Not exact products: their multiply-adds take the time, which tiles of one sample fill with zeros where it is short.
    """
    return layer.kind != "ieee"


def serves_weights(layer: Layer) -> bool:
    """Tell whether they serve the weights' gradient."""
    return serves(layer) and (layer.channels > FEW or layer.size <= MOST_TAPS)


def launch_input_gradient(
    gradient: Tensor,
    argmax: Tensor,
    packed: Tensor,
    dx: Tensor,
    samples: int,
    length: int,
    layer: Layer,
    upstream: Layout,
    convolution: Convolution,
    pool: Pool,  # noqa: ARG001  (as long as a sample)
) -> None:
    """Write the input's gradient to ``dx``, ``(N, L, C)``."""
    block_c = min(max(power_of_two(layer.channels), 16), 64)
    tiles = samples * -(-length // POSITIONS) * -(-layer.channels // block_c)
    cached = layer.size * block_c * layer.outputs * (2 if layer.kind == "16" else 4)
    launch(
        device_code("global_backward").global_input_gradient_kernel, (tiles,),
        gradient, argmax, packed, dx, length, convolution.output_length(length, layer.size),
        upstream.stride_n * upstream.align,
        W=Filters(layer.channels, layer.outputs, layer.size, packed.size(1), packed.size(1)), TAPS=taps_of(convolution),
        TILE=Blocks(POSITIONS, min(max(power_of_two(layer.outputs), 16), 32), C=block_c),
        PRODUCTS=Products(layer.precision, layer.rounds), APART=layer.apart,
        num_warps=4, num_stages=1 if cached <= CACHED else 4,
    )  # fmt: skip


def launch_weight_gradient(
    gradient: Tensor,
    argmax: Tensor,
    rows: Rows,
    layer: Layer,
    upstream: Layout,
    convolution: Convolution,
    pool: Pool,  # noqa: ARG001
    wanted: tuple[bool, bool],  # noqa: ARG001  (both are computed at once)
) -> Tensor:
    """Return partial gradients of weights and bias, ``(splits, O * K * C + O)``.

    Every position of the input meets every tap, whatever the convolution's stride.
    """
    source, layout = rows.source, rows.layout
    block_c = 16 if layer.channels <= 16 else 64  # 64 rows make the larger matrix instructions
    block_o = min(max(power_of_two(layer.outputs), 16), 32)
    taps = shared_phases(layer.size, min(SUMS // (block_c * block_o), MOST_TAPS))
    blocks = -(-layer.channels // block_c) * -(-layer.outputs // block_o) * -(-layer.size // taps)
    block_m = POSITIONS if layer.kind == "16" else POSITIONS // 2
    tiles = rows.samples * -(-rows.length // block_m)
    splits = min(tiles, max(1, PROGRAMS * processors(source.device) // blocks))
    numbers = layer.outputs * (layer.channels * layer.size + 1)
    partials = empty(source, (splits, numbers), torch.float32)
    launch(
        device_code("global_backward").global_weight_gradient_kernel, (splits * blocks,),
        gradient, argmax, source, partials, rows.samples, convolution.output_length(rows.length, layer.size),
        upstream.stride_n * upstream.align, *rows.arguments(layout),
        W=Filters(layer.channels, layer.outputs, layer.size), TAPS=taps_of(convolution),
        ROWS=Access(rows.mode, layout.align), SHARED=taps, TILE=Blocks(block_m, block_o, C=block_c),
        PRODUCTS=Products(layer.precision, layer.rounds), APART=layer.apart,
        num_warps=4, num_stages=2 if layer.kind == "16" else 1,
    )  # fmt: skip
    return partials
