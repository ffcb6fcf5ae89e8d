"""Gradients of the conv stack on rows of a table through the folded table, on a GPU.

Five steps, each a launch or two: the occurrences of every row are found by sorting the tokens; the gradients that meet
at a row's taps are added up; the result is multiplied with the table and summed over its rows to the weights'
gradient; weights are repacked; and it is multiplied with the weights to the table's. See
:mod:`.device.folded_backward`. No atomics: the same bits on every run. A row's sums are float32, and so is what is
multiplied, in products of TF32 or, of exact float32, by multiply-adds.

Where a weight or a row is infinite, what torch has as NaN or infinity is not finite here either, but may be infinite
where torch has a NaN: zeros that torch multiplies one by one were added to other numbers before.

Where this is slow: every row of the table is visited, and ``(V + 1) * K * O`` numbers of memory are taken, though only
written where rows occur.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..geometry import Convolution, Pool
from .backward import Gradients, launch_backward, new_gradient, overlap
from .configurations import Layer, power_of_two, shared_phases
from .forward import describe, launch_over_weights
from .groups import Blocks, Filters, Products, taps_of
from .launch import device_code, layout_of, on_device, processors
from .occurrences import join_spans, sorted_tokens, spans_of
from .phase_backward import is_packed
from .replay import compute, empty, launch
from .rows import Rows
from .transposition import channels_together

__all__ = ["backward", "whole_tap"]

# Occurrences whose gradients are on their way at once, half as many where these are numbers one by one or many, and
# sums of taps x outputs that a warp holds of each.
STEP, SUMS = 8, 512
SPANS = 2048  # at most so many spans of occurrences
ROWS = 64  # of the table's gradient in a tile
# Rows that are multiplied at a time for the weights' gradient, taps that a program serves, and programs for each
# multiprocessor. One of four taps waited: 45 us, where its instructions take 6 (imdb1, H200).
TERMS, TAPS, PROGRAMS = 32, 2, 3


def backward(
    gradient: Tensor,
    argmax: Tensor,
    rows: Rows,
    step: int,
    padding_idx: int | None,
    weight: Tensor,
    convolution: Convolution,
    pool: Pool | None,
    wanted: tuple[bool, bool, bool],
) -> Gradients:
    """Return the gradients of table, weight and bias that are wanted; ``gradient`` ``(N, O, Q)`` has elements.

    ``step`` is that of windows.
    """
    (outputs, channels, size), table = weight.shape, rows.source
    count, skipped = table.size(0), -1 if padding_idx is None else padding_idx
    whole = whole_tap(rows.length, size, convolution) if wanted[2] else None
    dtable = empty(table, (count, channels)) if wanted[0] else None
    dw = new_gradient(gradient, weight, weight.shape) if wanted[1] else None
    db = None if whole is None else new_gradient(gradient, weight, weight.shape[:1])
    layer = describe(rows, weight, 1, convolution.padding != (0, 0))
    blocks = min(max(power_of_two(channels), 16), 64), min(max(power_of_two(outputs), 16), 32)
    multiplied = products_of(layer)
    with on_device(table):
        dfolded, seen = _sum_occurrences(gradient, argmax, rows, step, (size, outputs), convolution, pool)
        partials = None
        if dw is not None or db is not None:
            taken = -1 if whole is None else whole
            partials = _launch_weight_gradient(dfolded, seen, rows, layer, blocks, multiplied, taken, dw is not None)
        splits = 0 if partials is None else len(partials)
        columns = layer.gradient_columns
        packed = launch_over_weights(weight, dtable is not None, partials, splits, dw, db, columns=columns)
        if packed is not None and dtable is not None:
            launch(
                device_code("folded_backward").table_gradient_kernel,
                (-(-count // ROWS) * -(-channels // blocks[0]),),
                dfolded, seen, packed, dtable, count, skipped,
                W=Filters(channels, outputs, size, packed.size(1), columns * packed.size(1)),
                TILE=Blocks(ROWS, blocks[1], C=blocks[0]), PRODUCTS=multiplied,
                num_warps=8 if multiplied.precision == "ieee" else 4, num_stages=3,
            )  # fmt: skip
        if wanted[2] and whole is None:
            _, db = launch_backward(gradient, argmax, rows, weight, convolution, pool, (False, True), None)
    return dtable, dw, db


def whole_tap(length: int, size: int, convolution: Convolution) -> int | None:
    """Return a tap that meets no padding at any position, so that its gradients are the bias', or ``None``."""
    last = (convolution.output_length(length, size) - 1) * convolution.stride
    starts = ((tap, tap * convolution.dilation - convolution.padding[0]) for tap in range(size))
    return next((tap for tap, start in starts if start >= 0 and start + last < length), None)


def products_of(layer: Layer) -> Products:
    """Return how sums of gradients are multiplied with 16-bit numbers, too: as TF32, which holds all of these.

    Exactly where the tensor cores are not NVIDIA's, of which only some know TF32.
    """
    if layer.kind == "16":
        rounds = layer.architecture.startswith("sm_")
        return Products("tf32" if rounds else "ieee", rounds)
    return Products(layer.precision, layer.rounds)


def _sum_occurrences(
    gradient: Tensor,
    argmax: Tensor,
    rows: Rows,
    step: int,
    sums: tuple[int, int],
    convolution: Convolution,
    pool: Pool | None,
) -> tuple[Tensor, Tensor]:
    """Return the folded table's gradient, ``(V + 1, K, O)`` float32, and ``(V + 1, K)``, 1 where it was written."""
    (size, outputs), count = sums, rows.source.size(0)
    in_order, order = sorted_tokens(rows, step)
    gradient = channels_together(gradient)
    upstream, positions = layout_of(gradient), convolution.output_length(rows.length, size)
    side_by_side = 0 if pool is None or pool.stride != pool.size else pool.size
    pool = Pool(positions, positions) if pool is None else pool
    dfolded = empty(rows.source, (count + 1, size, outputs), torch.float32)
    seen = compute(_unseen, rows.source, (count + 1, size))
    block_k = power_of_two(size)
    block_o = min(power_of_two(outputs), max(SUMS // block_k, 16))
    span, spans = spans_of(in_order.numel(), STEP, SPANS)
    partials = empty(dfolded, (spans, 2, size * outputs))
    launch(
        device_code("folded_backward").sum_occurrences_kernel, (spans * -(-outputs // block_o),),
        gradient, argmax, in_order, order, dfolded, seen, partials, in_order.numel(), span,
        gradient.size(2), rows.length, positions, upstream.stride_n, upstream.stride_l, pool.size, pool.stride,
        TAPS=taps_of(convolution), P=side_by_side, POOL_PADDING=pool.padding, POOL_DILATION=pool.dilation,
        O=outputs, K=size, OVERLAP=overlap(pool), ALIGN=upstream.align,
        SAME=is_packed(upstream, outputs, gradient.size(2)), NARROW=in_order.numel() < 2**31,
        STEP=STEP // 2 if outputs % 4 or block_k * block_o > SUMS // 2 else STEP,
        BLOCK_K=block_k, BLOCK_O=block_o, num_warps=1,
    )  # fmt: skip
    join_spans(in_order, dfolded.view(count + 1, size * outputs), partials, span, count + 1, -1)
    return dfolded, seen


def _launch_weight_gradient(
    dfolded: Tensor,
    seen: Tensor,
    rows: Rows,
    layer: Layer,
    blocks_of: tuple[int, int],
    multiplied: Products,
    whole: int,
    want_w: bool,
) -> Tensor:
    """Return partial gradients of weights and, if there is a ``whole`` tap, bias, ``(splits, O * K * C + O)``.

    ``blocks_of`` are the channels and outputs of a tile, ``multiplied`` is what :func:`products_of` tells.
    """
    table, (block_c, block_o) = rows.source, blocks_of
    taps = shared_phases(layer.size, TAPS) if want_w else 1
    blocks = -(-layer.outputs // block_o)
    blocks *= -(-layer.channels // block_c) * -(-layer.size // taps) if want_w else 1
    tiles = -(-(table.size(0) + 1) // TERMS)
    tiles_of_split = -(-tiles // min(tiles, max(1, PROGRAMS * processors(table.device) // blocks)))
    splits = -(-tiles // tiles_of_split)
    partials = empty(dfolded, (splits, layer.outputs * (layer.channels * layer.size + 1)))
    launch(
        device_code("folded_backward").table_weight_gradient_kernel, (splits * blocks,),
        dfolded, seen, table, partials, table.size(0), tiles_of_split * TERMS, rows.layout.stride_n,
        W=Filters(layer.channels, layer.outputs, layer.size), ALIGN=rows.layout.align, WHOLE=whole, WANT_W=want_w,
        SHARED=taps, TILE=Blocks(TERMS, block_o, C=block_c),
        PRODUCTS=multiplied, num_warps=8 if multiplied.precision == "ieee" else 4, num_stages=1,
    )  # fmt: skip
    return partials


def _unseen(like: Tensor, shape: tuple[int, ...]) -> Tensor:
    return like.new_zeros(shape, dtype=torch.int8)
