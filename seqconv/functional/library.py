"""The kernels as operators of ``torch.library``: what ``torch.compile`` puts into its graphs.

An operator takes plain numbers: ``convolution`` is ``(stride, left padding, right padding, dilation)``, ``pool`` the
fields of a ``Pool``, empty for the global maximum. What is not wanted is an empty tensor.
"""

# ruff: noqa: ARG001  (a description of a result takes what its computation takes)

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from seqconv.functional.passes import passes
from seqconv.kernels.geometry import Convolution, Pool
from seqconv.kernels.reference.conv_pool import is_channels_last

__all__ = ["fused"]


def fused(backend: str, input: Tensor, weight: Tensor, bias: Tensor | None, *geometry: tuple[Any, ...]) -> Tensor:
    """Do what :func:`seqconv.functional.autograd.fused` does, as an operator; the geometry tells which operation."""
    stride, (left, right), dilation, _ = geometry[0]
    pool = [int(number) for number in geometry[1]] if len(geometry) > 1 else []
    differentiable = torch.is_grad_enabled() and any(
        one is not None and one.requires_grad for one in (input, weight, bias)
    )
    numbers = [stride, left, right, dilation]
    output: Tensor = _conv_relu_pool(input, weight, bias, backend, numbers, pool, differentiable)[0]
    return output


@torch.library.custom_op("seqconv::conv_relu_max_pool", mutates_args=())
def _conv_relu_pool(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    backend: str,
    convolution: Sequence[int],
    pool: Sequence[int],
    want_argmax: bool,
) -> tuple[Tensor, Tensor]:
    operation, geometry = _geometry(convolution, pool)
    output, argmax = passes(backend, operation).forward(input, weight, bias, *geometry, want_argmax=want_argmax)
    return output, output.new_empty(0, dtype=torch.int8) if argmax is None else argmax


@_conv_relu_pool.register_fake
def _(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    backend: str,
    convolution: Sequence[int],
    pool: Sequence[int],
    want_argmax: bool,
) -> tuple[Tensor, Tensor]:
    operation, geometry = _geometry(convolution, pool)
    samples, outputs = input.size(0), weight.size(0)
    positions = geometry[0].output_length(input.size(2), weight.size(2))
    if not pool:
        output = input.new_empty(samples, outputs)
        windows, largest = 1, positions - 1
    else:
        windows, largest = geometry[1].output_length(positions), geometry[1].size - 1
        if is_channels_last(input):
            output = input.new_empty(samples, windows, outputs).transpose(1, 2)
        else:
            output = input.new_empty(samples, outputs, windows)
    if not want_argmax:
        return output, input.new_empty(0, dtype=torch.int8)
    shape, dtype = passes(backend, operation).argmax_format(samples, outputs, windows, largest, input.dtype)
    return output, input.new_empty(shape, dtype=dtype)


@torch.library.custom_op("seqconv::conv_relu_max_pool_backward", mutates_args=())
def _conv_relu_pool_backward(
    gradient: Tensor,
    argmax: Tensor,
    input: Tensor,
    weight: Tensor,
    backend: str,
    convolution: Sequence[int],
    pool: Sequence[int],
    wanted: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    operation, geometry = _geometry(convolution, pool)
    want = (wanted[0], wanted[1], wanted[2])
    gradients = passes(backend, operation).backward(gradient, argmax, input, weight, *geometry, wanted=want)
    dx, dw, db = (gradient.new_empty(0) if one is None else one for one in gradients)
    if wanted[0]:  # in the memory format that the graph was promised, whatever the kernel finds convenient
        dx = dx.contiguous() if input.is_contiguous() else dx.transpose(1, 2).contiguous().transpose(1, 2)
    return dx, dw, db


@_conv_relu_pool_backward.register_fake
def _(
    gradient: Tensor,
    argmax: Tensor,
    input: Tensor,
    weight: Tensor,
    backend: str,
    convolution: Sequence[int],
    pool: Sequence[int],
    wanted: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    samples, channels, length = input.shape
    if input.is_contiguous():
        dx = input.new_empty(samples, channels, length)
    else:
        dx = input.new_empty(samples, length, channels).transpose(1, 2)
    shapes = (weight.shape, (weight.size(0),))
    dw, db = (weight.new_empty(shape if want else (0,)) for shape, want in zip(shapes, wanted[1:], strict=True))
    return dx if wanted[0] else input.new_empty(0), dw, db


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    input, weight, _, backend, convolution, pool, _ = inputs
    ctx.save_for_backward(input, weight, output[1])
    ctx.mark_non_differentiable(output[1])
    ctx.options = backend, convolution, pool


def _differentiate(ctx: Any, gradient: Tensor, _: Any) -> tuple[Tensor | None, ...]:
    input, weight, argmax = ctx.saved_tensors
    wanted = list(ctx.needs_input_grad[:3])
    gradients = _conv_relu_pool_backward(gradient, argmax, input, weight, *ctx.options, wanted)
    given = (one if want else None for one, want in zip(gradients, wanted, strict=True))
    return *given, None, None, None, None


_conv_relu_pool.register_autograd(_differentiate, setup_context=_setup_context)


def _geometry(convolution: Sequence[int], pool: Sequence[int]) -> tuple[str, tuple[Any, ...]]:
    stride, left, right, dilation = convolution
    geometry = Convolution(stride, (left, right), dilation)
    if not pool:
        return "conv1d_relu_global_max_pool1d", (geometry,)
    size, pool_stride, padding, pool_dilation, ceil_mode = pool
    return "conv1d_relu_max_pool1d", (geometry, Pool(size, pool_stride, padding, pool_dilation, bool(ceil_mode)))
