"""The fused conv stack's gradients on a GPU; see :mod:`.conv_pool_backward_kernels` for how.

A call is at most three launches: partial gradients of weights and bias; their sums, together with the weights repacked
for the last; the input's gradient. Products are of the input's dtype, sums float32, as in the forward pass.
"""

from __future__ import annotations

import functools
from types import ModuleType

import torch
from torch import Tensor

from ..geometry import Convolution, Pool
from .configurations import input_gradient_configuration, weight_gradient_configuration
from .conv_pool import describe, launch_over_weights
from .launch import layout_of, on_device, precision, processors
from .rows import Rows, of_input

__all__ = ["conv1d_relu_global_max_pool1d_backward", "conv1d_relu_max_pool1d_backward", "launch_backward"]

# Programs of the weight gradient for each multiprocessor: enough that some compute while others wait.
PROGRAMS = 4

Gradients = tuple[Tensor | None, Tensor | None, Tensor | None]


def conv1d_relu_max_pool1d_backward(
    gradient: Tensor,
    argmax: Tensor,
    input: Tensor,
    weight: Tensor,
    convolution: Convolution,
    pool: Pool,
    *,
    wanted: tuple[bool, bool, bool],
) -> Gradients:
    """Return the gradients of ``input``, ``weight`` and ``bias``, of those that are wanted, ``None`` for the others.

    ``gradient`` ``(N, O, Q)``, of any strides, is that of the forward pass' result, ``argmax`` what it kept. The
    input's gradient is channels-last, unless a contiguous one is what the input was.
    """
    return _backward(gradient, argmax, input, weight, convolution, pool, wanted)


def conv1d_relu_global_max_pool1d_backward(
    gradient: Tensor,
    argmax: Tensor,
    input: Tensor,
    weight: Tensor,
    convolution: Convolution,
    *,
    wanted: tuple[bool, bool, bool],
) -> Gradients:
    """Return the global layer's gradients, as :func:`conv1d_relu_max_pool1d_backward` does; ``gradient`` ``(N, O)``."""
    positions = convolution.output_length(input.size(2), weight.size(2))
    whole = Pool(positions, positions)
    return _backward(gradient.unsqueeze(2), argmax, input, weight, convolution, whole, wanted)


def _backward(
    gradient: Tensor,
    argmax: Tensor,
    input: Tensor,
    weight: Tensor,
    convolution: Convolution,
    pool: Pool,
    wanted: tuple[bool, bool, bool],
) -> Gradients:
    (samples, channels, length), last = input.shape, not input.is_contiguous()
    new = input.new_empty if gradient.numel() else input.new_zeros
    dx = new(samples, *((length, channels) if last else (channels, length))) if wanted[0] else None
    dw, db = launch_backward(gradient, argmax, of_input(input), weight, convolution, pool, wanted[1:], dx, last=last)
    return None if dx is None else dx.transpose(1, 2) if last else dx, dw, db


def launch_backward(
    gradient: Tensor,
    argmax: Tensor,
    rows: Rows,
    weight: Tensor,
    convolution: Convolution,
    pool: Pool,
    wanted: tuple[bool, bool],
    dx: Tensor | None,
    *,
    last: bool,
) -> tuple[Tensor | None, Tensor | None]:
    """Return the gradients of weight and bias that are wanted; write those of all rows to ``dx`` unless it is ``None``.

    ``dx`` is ``(N, L, C)`` if ``last``, else ``(N, C, L)``, contiguous, of any dtype; it is not written if ``gradient``
    has no elements.
    """
    (outputs, channels, size), windows = weight.shape, gradient.size(2)
    source, layout = rows.source, rows.layout
    new = weight.new_empty if gradient.numel() else weight.new_zeros
    dw = new(outputs, channels, size) if wanted[0] else None
    db = new(outputs) if wanted[1] else None
    if not gradient.numel():
        return dw, db
    positions = convolution.output_length(rows.length, size)
    kind, kernels = precision(source.dtype), _kernels()
    upstream = layout_of(gradient)
    layer = describe(rows, weight, 1, convolution.padding != (0, 0))
    upstream_strides = (upstream.stride_n, upstream.stride_l, upstream.stride_c)
    overlap = -(-(pool.dilation * (pool.size - 1) + 1) // pool.stride)
    pooling = (pool.size, pool.stride, pool.padding, pool.dilation)
    with on_device(source):
        partials, splits = None, 0
        if wanted[0] or wanted[1]:
            tile = weight_gradient_configuration(layer)
            taps, channels_of = (size, channels) if layer.tokens else (1, channels * size)
            blocks = (taps * -(-channels_of // tile.block_r) if wanted[0] else 1) * -(-outputs // tile.block_o)
            tiles = -(-rows.samples * positions // tile.block_m)
            tiles_of_split = -(-tiles // min(tiles, max(1, PROGRAMS * processors(source.device) // blocks)))
            splits = -(-tiles // tiles_of_split)
            partials = source.new_empty((splits, outputs * (channels * size + 1)), dtype=torch.float32)
            kernels.weight_gradient_kernel[(splits * blocks,)](
                gradient, argmax, source, partials, rows.samples * positions, tiles_of_split * tile.block_m,
                windows, rows.length, positions, *upstream_strides, layout.stride_n, layout.stride_l, layout.stride_c,
                rows.numbers, rows.index_n, rows.index_l, rows.below,
                convolution.padding[0], convolution.stride, convolution.dilation, *pooling,
                C=channels, O=outputs, K=size, OVERLAP=overlap, GRADIENT_ALIGN=upstream.align, UNIT_O=upstream.unit_c,
                ALIGN=layout.align, UNIT_C=layout.unit_c, UNIT_L=layout.unit_l,
                CHECK=convolution.padding != (0, 0), ROWS=rows.mode, WANT_W=wanted[0], WANT_B=wanted[1],
                BLOCK_M=tile.block_m, BLOCK_R=tile.block_r, BLOCK_O=tile.block_o,
                PRECISION=kind, ROUND=layer.rounds, INTERPRETED=kernels.INTERPRETED,
                num_warps=tile.num_warps, num_stages=tile.num_stages,
            )  # fmt: skip
        packed = launch_over_weights(weight, dx is not None, partials, splits, dw, db)
        if packed is not None:
            step = input_gradient_configuration(layer._replace(tokens=False))
            count = rows.samples * rows.length
            kernels.input_gradient_kernel[(-(-count // step.block_m) * -(-channels // step.block_c),)](
                gradient, argmax, packed, dx, count, windows, rows.length, positions, *upstream_strides,
                convolution.padding[0], convolution.stride, convolution.dilation, *pooling,
                C=channels, O=outputs, K=size, PITCH=packed.size(1), OVERLAP=overlap,
                ALIGN=upstream.align, UNIT_O=upstream.unit_c, OUT_LAST=last,
                BLOCK_M=step.block_m, BLOCK_C=step.block_c, BLOCK_O=step.block_o,
                PRECISION=kind, ROUND=layer.rounds, INTERPRETED=kernels.INTERPRETED,
                num_warps=step.num_warps, num_stages=step.num_stages,
            )  # fmt: skip
    return dw, db


@functools.cache
def _kernels() -> ModuleType:
    from . import conv_pool_backward_kernels

    return conv_pool_backward_kernels
