"""Gradients of layers whose pooling windows lie side by side, on a GPU; see :mod:`.device.phase_backward` for how.

Served are convolutions of stride 1 whose windows do not overlap, where the unrolled loops stay short (see
:func:`serves`); :mod:`.backward` has kernels for everything else.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import torch
from torch import Tensor

from ..geometry import Convolution, Pool
from .configurations import Layer, power_of_two
from .groups import Access, Blocks, Filters, Products
from .launch import Layout, device_code, processors
from .replay import empty, launch
from .rows import Rows

__all__ = ["Tile", "input_tile", "launch_input_gradient", "launch_weight_gradient", "serves", "weight_tile"]

MOST_PRODUCTS = 64  # products that a tile's unrolled loops hold: code grows with them, and so does compiling
MOST_WINDOWS = 5  # windows that meet a span: each takes registers
ARCHITECTURES = ("sm_90", "cpu")  # where they were timed, and the interpreter
RESIDENT = 60 * 1024  # bytes of weights that a program keeps
STAGED = 200 * 1024  # bytes of the input's rows that wait on a multiprocessor, in two stages
# Numbers that a thread holds without spilling (see numbers_held), as Triton compiled some thirty tiles; where rows are
# read a number or two at a time, less.
HELD, HELD_APART = 210, 150
# Of these, where rows begin at no multiples of four numbers: the most that leaves room for the input's gradient. With
# 64 and 128 the main loops of 17 of 200 random shapes spilled, up to 581 times a turn.
SCATTERED = {"16": 32, "tf32": 16}


class Tile(NamedTuple):
    """Spans x channels x outputs of a tile, its warps and stages, and programs for each multiprocessor."""

    block_m: int
    block_c: int
    block_o: int
    num_warps: int
    num_stages: int
    programs: int


def serves(layer: Layer, convolution: Convolution, pool: Pool) -> bool:
    """Tell whether the kernels serve a layer.

    Exact float32 products are no matrix instructions: unrolled, they would be tens of thousands of instructions.
    """
    back = windows_back(layer.size, convolution.dilation, pool.stride)
    return (
        layer.kind != "ieee"
        and layer.architecture in ARCHITECTURES
        and convolution.stride == 1
        and pool.dilation == 1
        and pool.stride >= pool.size
        and layer.size * pool.stride <= MOST_PRODUCTS
        and back <= MOST_WINDOWS
        and weight_tile(layer, pool.stride, convolution.dilation) is not None
        and input_tile(layer, pool.stride, convolution.dilation) is not None
    )


def windows_back(size: int, dilation: int, pool_stride: int) -> int:
    """Return how many windows meet the positions of a span."""
    return -(-(size - 1) * dilation // pool_stride) + 1


@functools.cache
def input_tile(layer: Layer, pool_stride: int, dilation: int) -> Tile | None:
    """Return the tile of the input's gradient, ``None`` where none fits into the registers.

    H100, N 4096, microseconds: imdb1 bfloat16 (64, 128, 32, 4, 2, 2) 252, 64 channels and 3 programs 252, 8 warps 496;
    TF32 (64, 64, 32, 4, 2, 2) 491, one stage 539, 128 channels and 8 warps 1212; jena1 (64, 16, 32, 4, 2, 4) 61 and 75,
    one stage 56 and 101.
    """
    width = 2 if layer.kind == "16" else 4
    widest = min(max(power_of_two(layer.channels), 16), 256 // width)
    for block_o in (min(max(power_of_two(layer.outputs), 16), 32), 16):
        resident = layer.outputs <= block_o
        for block_c in (one for one in (128, 64, 32, 16) if one <= widest):
            tile = Tile(64, block_c, block_o, 4, 2, 2 if block_c > 32 else 4)
            # Where outputs come one block after the other, the sums of all phases wait for the next.
            phases = 1 if resident else pool_stride
            fits = layer.size * block_o * block_c * width <= RESIDENT if resident else phases * block_c <= 192
            held = (phases * block_c + reach(layer, pool_stride, dilation) * block_o * width / 4) * 64 / 128
            apart = 0 if layer.vectors else addresses(layer, tile)
            if fits and apart <= SCATTERED[layer.kind] and held + apart <= (256 if resident else 224):
                return tile
    return None


@functools.cache
def weight_tile(layer: Layer, pool_stride: int, dilation: int) -> Tile | None:
    """Return the tile of the weights' gradient, ``None`` where none fits into the registers.

    H100, N 4096, microseconds: imdb1 bfloat16 (64, 128, 32, 8, 2, 1) 391, 32 spans and 3 stages 452, 64 channels, 4
    warps and 2 programs 489; TF32 (32, 64, 32, 4, 1, 2) 833 to 933, (32, 128, 32, 8, 1, 1) 823, two stages 1076, 16
    spans 1176; jena1 (32, 16, 32, 4, 2, 3) 72 and 119, 64 spans 73 and 143.
    """
    block_o = min(max(power_of_two(layer.outputs), 16), 32)
    block_m = 64 if layer.kind == "16" else 32
    if layer.channels <= 16:
        tiles = [Tile(m, 16, block_o, 4, 2, 3) for m in (32, 16)]
    else:
        # A product of fewer than 64 rows is none of Hopper's: 32 channels took twice as long as 64, half of them empty.
        tiles = [Tile(m, 64, o, 4, 1, 2) for m, o in ((block_m, block_o), (block_m, 16), (block_m // 2, 16))]
        if layer.kind == "16":
            tiles = [one._replace(num_stages=stages_of(one, pool_stride)) for one in tiles]
            if layer.channels > 64:
                widest = Tile(64, 128, block_o, 8, 1, 1)
                tiles.insert(0, widest._replace(num_stages=stages_of(widest, pool_stride)))
    if layer.kind == "16" and layer.channels % 2:  # two bytes at a time, which no copy can: they wait in registers
        tiles = [one for one in tiles if one.block_m * one.block_c <= 512 * one.num_warps] or tiles[-1:]
    for tile in tiles:
        sums = layer.size * tile.block_c * tile.block_o
        if numbers_held(layer, tile, sums, pool_stride, dilation) <= (HELD if layer.vectors else HELD_APART):
            return tile
    return None


def stages_of(tile: Tile, pool_stride: int) -> int:
    """Return how many tiles' rows of 16-bit numbers wait at once."""
    return 2 if 2 * pool_stride * tile.block_m * tile.block_c * 2 * tile.programs <= STAGED else 1


def numbers_held(layer: Layer, tile: Tile, sums: int, pool_stride: int, dilation: int) -> float:
    """Return how many numbers a thread holds, about: sums, the gradients that arrive, and where rows are."""
    arriving = reach(layer, pool_stride, dilation) * tile.block_m * tile.block_o
    return (sums + arriving * (0.5 if layer.kind == "16" else 1)) / (32 * tile.num_warps) + addresses(layer, tile)


def addresses(layer: Layer, tile: Tile) -> float:
    """Return the numbers in which a thread holds where a tile's rows are, two for each address."""
    together = math.gcd(layer.channels, 4)
    return 2 * tile.block_m * tile.block_c / together / (32 * tile.num_warps)


def reach(layer: Layer, pool_stride: int, dilation: int) -> int:
    """Return of how many positions a span's sums need the gradients that arrive."""
    return (layer.size - 1) * dilation + pool_stride


def splits_of(tile: Tile, spans: int, blocks: int, device_processors: int) -> int:
    """Return how many programs share the sum over ``spans`` for each of ``blocks`` blocks of weights."""
    return min(-(-spans // tile.block_m), max(1, tile.programs * device_processors // blocks))


def spans_of(length: int, windows: int, convolution: Convolution, pool: Pool) -> tuple[int, int]:
    """Return a sample's spans, those of windows over padding alone too, and the padding before its first position."""
    shift = convolution.padding[0] + pool.padding
    return max((length - 1 + shift) // pool.stride + 1, windows), shift


def positions_seen(length: int, size: int, convolution: Convolution, pool: Pool) -> tuple[int, int]:
    """Return the convolution's first position and the one behind its last, counted with the pool's padding."""
    return pool.padding, pool.padding + convolution.output_length(length, size)


def is_packed(layout: Layout, channels: int, positions: int) -> bool:
    """Tell whether an ``(N, C, L)`` tensor is ``(N, L, C)`` in memory, without room between rows or samples."""
    row = layout.stride_l * layout.align
    return row == channels and layout.stride_n * layout.align == positions * row


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
    pool: Pool,
) -> None:
    """Write the input's gradient to ``dx``, ``(N, L, C)``."""
    tile, windows = input_tile(layer, pool.stride, convolution.dilation), gradient.size(2)
    assert tile is not None
    spans, shift = spans_of(length, windows, convolution, pool)
    tiles_c = -(-layer.channels // tile.block_c)
    programs = min(-(-samples * spans // tile.block_m), max(1, tile.programs * processors(gradient.device) // tiles_c))
    launch(
        device_code("phase_backward").phase_input_gradient_kernel, (programs * tiles_c,),
        gradient, argmax, packed, dx, samples * spans, spans, windows, shift,
        *positions_seen(length, layer.size, convolution, pool), upstream.stride_n, upstream.stride_l, length,
        W=Filters(layer.channels, layer.outputs, layer.size, packed.size(1), packed.size(1)), P=pool.stride,
        DILATION=convolution.dilation, SAME=is_packed(upstream, layer.outputs, windows), ALIGN=upstream.align,
        TILE=Blocks(tile.block_m, tile.block_o, C=tile.block_c),
        PRODUCTS=Products(layer.precision, layer.rounds),
        num_warps=tile.num_warps, num_stages=tile.num_stages,
    )  # fmt: skip


def launch_weight_gradient(
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
    windows = gradient.size(2)
    spans, shift = spans_of(rows.length, windows, convolution, pool)
    source, layout = rows.source, rows.layout
    packed = rows.mode == "own" and is_packed(layout, layer.channels, rows.length)
    numbers = layer.outputs * (layer.channels * layer.size + 1)
    tile = weight_tile(layer, pool.stride, convolution.dilation)
    assert tile is not None
    blocks = (-(-layer.channels // tile.block_c) if wanted[0] else 1) * -(-layer.outputs // tile.block_o)
    splits = splits_of(tile, rows.samples * spans, blocks, processors(source.device))
    partials = empty(source, (splits, numbers), torch.float32)
    launch(
        device_code("phase_backward").phase_weight_gradient_kernel, (splits * blocks,),
        gradient, argmax, source, partials, rows.samples * spans, spans, windows, shift,
        *positions_seen(rows.length, layer.size, convolution, pool),
        upstream.stride_n, upstream.stride_l, *rows.arguments(layout),
        W=Filters(layer.channels, layer.outputs, layer.size), P=pool.stride, DILATION=convolution.dilation,
        SAME=is_packed(upstream, layer.outputs, windows), ALIGN=upstream.align,
        ROWS=Access(rows.mode, layout.align, packed=packed),
        WANT_W=wanted[0], WANT_B=wanted[1], TILE=Blocks(tile.block_m, tile.block_o, C=tile.block_c),
        PRODUCTS=Products(layer.precision, layer.rounds),
        num_warps=tile.num_warps, num_stages=tile.num_stages,
    )  # fmt: skip
    return partials
