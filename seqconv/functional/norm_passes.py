"""The kernels of the conv stack with a batch norm as differentiable functions: eager, and as operators of graphs.

Why there are two forms, :mod:`.autograd` tells, and how an operator's numbers stand for a geometry, :mod:`.library`.
``norm`` stands for a norm that takes mean and variance over the batch; the running statistics are updated in plain
torch behind the kernel.
"""

# ruff: noqa: ARG001  (a description of a result takes what its computation takes)

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from seqconv import backends
from seqconv.functional import autograd
from seqconv.functional.following import in_plain_memory
from seqconv.functional.library import geometry_of, numbers_of
from seqconv.functional.operators import operator, refuse_to_differentiate
from seqconv.kernels.geometry import Convolution, Pool
from seqconv.kernels.norm import Norm
from seqconv.kernels.source import Dense

__all__ = ["normalised"]

Passed = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


def normalised(
    backend: str,
    operation: str,
    source: Dense,
    weight: Tensor,
    bias: Tensor | None,
    norm: Norm,
    convolution: Convolution,
    pool: Pool | None,
) -> Tensor:
    """Run a backend's kernel and update the running statistics."""
    tensors = source.values, weight, bias, norm.weight, norm.bias
    differentiable = torch.is_grad_enabled() and any(one is not None and one.requires_grad for one in tensors)
    output: Tensor
    if torch.compiler.is_compiling():
        output, _, _, statistics, _ = _conv_norm_relu_pool(
            *tensors, backend, *numbers_of(convolution, pool), convolution.groups, norm.eps, differentiable
        )
    elif differentiable:
        passes = NormPasses(backend, operation, norm, convolution, pool)
        output, statistics = _applied(operation)(passes, *tensors)
    else:
        output, statistics = _undifferentiated(operation, backend, source, weight, bias, norm, convolution, pool)
    if norm.running_mean is not None and norm.running_var is not None:
        count = output.size(0) * convolution.output_length(source.values.size(2), weight.size(2))
        _update(norm.running_mean, statistics[0], norm.momentum, 1)
        _update(norm.running_var, statistics[1], norm.momentum, count / (count - 1))
    return output


def _update(running: Tensor, batch: Tensor, momentum: float, factor: float) -> None:
    """Take the share ``momentum`` of the batch's statistics, times ``factor``, into the running ones."""
    with torch.no_grad():
        running.mul_(1 - momentum).add_(batch[: running.size(0)], alpha=momentum * factor)


def _undifferentiated(operation: str, backend: str, *given: Any) -> tuple[Tensor, Tensor]:
    found: list[Tensor] = []

    def run() -> Tensor:
        with torch.no_grad():
            source, *rest = given
            output, saved = _floor(backend).forward(source.values, *rest, want_argmax=False)
        found.append(saved.statistics)
        return output  # type: ignore[no-any-return]

    return autograd.recorded(operation, run), found[0]


@cache
def _floor(backend: str) -> Any:
    return backends.load(f"seqconv.kernels.{backend}.conv_norm_pool")


class NormPasses:
    """The two passes of a backend's kernel: what a call is besides its tensors."""

    def __init__(self, backend: str, operation: str, norm: Norm, convolution: Convolution, pool: Pool | None) -> None:
        self.backend, self.operation, self.geometry = backend, operation, (convolution, pool)
        self.norm = norm._replace(weight=None, bias=None)

    def forward(self, tensors: tuple[Any, ...]) -> tuple[Tensor, Any]:
        """Return the result and what the backward pass needs."""
        *operands, weight, bias = tensors
        norm = self.norm._replace(weight=weight, bias=bias)
        found: tuple[Tensor, Any] = _floor(self.backend).forward(*operands, norm, *self.geometry, want_argmax=True)
        return found

    def backward(self, gradient: Tensor, tensors: tuple[Any, ...], wanted: tuple[bool, ...]) -> tuple[Any, ...]:
        """Return the gradients that are wanted; ``tensors`` are input, weight and bias, and what the kernel saved."""
        floor, gradient = _floor(self.backend), in_plain_memory(gradient)
        saved = floor.NormSaved(*(one.contiguous() for one in tensors[3:]))  # hooks may have laid them out anew
        found: tuple[Any, ...] = floor.backward(gradient, saved, *tensors[:3], *self.geometry, wanted=wanted)
        return found


@cache
def _applied(operation: str) -> Any:
    return super(torch.autograd.Function, autograd.called(_Normalised, operation)).apply  # see autograd.py


def _needed(operands: Sequence[Tensor | None], activation: Tensor, wanted: Sequence[bool]) -> Sequence[Tensor | None]:
    """Return input, weight and bias, each ``None`` where the backward pass does not read it: torch saves no more."""
    dx, dw, db = wanted
    if (dx or dw or db) and not activation.numel():
        return operands
    return operands[0] if dw else None, operands[1] if dx else None, None


def _filled(saved: Sequence[Tensor | None], shapes: Sequence[Sequence[int]], like: Tensor) -> list[Tensor | None]:
    """Return what :func:`_needed` did, with memory that nobody reads in place of an input or weight that it left out.

    The memory is laid out as kernels take it, so that none is copied.
    """
    operands = [
        like.new_empty(shape[0], shape[2], shape[1]).transpose(1, 2) if one is None else one
        for one, shape in zip(saved, shapes, strict=False)
    ]
    return [*operands, saved[2]]


class _Normalised(torch.autograd.Function):
    """Saves what :func:`_needed` tells, a number and a small integer for every window, and mostly the convolution."""

    @staticmethod
    def forward(ctx: Any, passes: NormPasses, *tensors: Any) -> tuple[Tensor, Tensor]:
        output, saved = passes.forward(tensors)
        operands, wanted = tensors[:3], ctx.needs_input_grad[1:4]
        needed = _needed(operands, saved.activation, wanted)
        ctx.save_for_backward(*needed, *saved)
        ctx.mark_non_differentiable(saved.statistics)
        ctx.passes, ctx.shapes = passes, (tensors[0].shape, tensors[1].shape)
        # Somebody may differentiate again, also with respect to what is not saved.
        ctx.others = [operands[i] for i in range(3) if wanted[i] and needed[i] is None]
        return output, saved.statistics

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, _statistics: Any) -> tuple[Tensor | None, ...]:
        passes, saved = ctx.passes, ctx.saved_tensors
        wanted = tuple(ctx.needs_input_grad[1:])
        tensors = (*_filled(saved[:3], ctx.shapes, gradient), *saved[3:])
        if not torch.is_grad_enabled():
            return None, *passes.backward(gradient, tensors, wanted)
        with torch.no_grad():
            gradients = passes.backward(gradient, tensors, wanted)
        sources = (gradient, *(one for one in saved[:3] if one is not None), *ctx.others)
        return None, *autograd.underivable(passes.backend, passes.operation, sources, gradients)


def _empty_gradients(
    gradient: Tensor,
    values: Tensor,
    argmax: Tensor,
    statistics: Tensor,
    activation: Tensor,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    backend: str,
    convolution: Sequence[int],
    pool: Sequence[int],
    groups: int,
    wanted: Sequence[bool],
) -> Passed:
    samples, channels, length = input.shape
    dx = input.new_empty(samples, length, channels).transpose(1, 2) if wanted[0] else input.new_empty(0)
    dw = weight.new_empty(weight.shape if wanted[1] else (0,))
    db = weight.new_empty(weight.size(0) if wanted[2] else 0)
    dgamma, dbeta = (statistics.new_empty(weight.size(0) if want else 0) for want in wanted[3:])
    return dx, dw, db, dgamma, dbeta


@operator("conv_batch_norm_relu_max_pool_backward", fake=_empty_gradients, differentiate=refuse_to_differentiate)
def _conv_norm_relu_pool_backward(
    gradient: Tensor,
    values: Tensor,
    argmax: Tensor,
    statistics: Tensor,
    activation: Tensor,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    backend: str,
    convolution: Sequence[int],
    pool: Sequence[int],
    groups: int,
    wanted: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    floor, geometry = _floor(backend), geometry_of(convolution, pool, groups)
    saved = floor.NormSaved(*(one.contiguous() for one in (values, argmax, statistics, activation)))
    found = floor.backward(gradient, saved, input, weight, bias, *geometry, wanted=tuple(wanted))
    likes = gradient, gradient, gradient, statistics, statistics
    dx, dw, db, dgamma, dbeta = (
        like.new_empty(0) if one is None else one for one, like in zip(found, likes, strict=True)
    )
    return dx, dw, db, dgamma, dbeta


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Passed) -> None:
    input, weight, bias, _, _, backend, convolution, pool, groups, *_ = inputs
    ctx.save_for_backward(*output[1:], *_needed((input, weight, bias), output[4], ctx.needs_input_grad[:3]))
    ctx.mark_non_differentiable(*output[1:])
    ctx.shapes, ctx.options = (input.shape, weight.shape), (backend, convolution, pool, groups)


def _differentiate(ctx: Any, gradient: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    wanted = list(ctx.needs_input_grad[:5])
    *saved, input, weight, bias = ctx.saved_tensors
    operands = _filled((input, weight, bias), ctx.shapes, gradient)
    gradients = _conv_norm_relu_pool_backward(gradient, *saved, *operands, *ctx.options, wanted)
    return *(one if want else None for one, want in zip(gradients, wanted, strict=True)), *(None,) * 6


def _empty_results(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    backend: str,
    convolution: Sequence[int],
    pool: Sequence[int],
    groups: int,
    eps: float,
    want_argmax: bool,
) -> Passed:
    output, saved = _floor(backend).empty_results(
        input, weight, *geometry_of(convolution, pool, groups), want_argmax=want_argmax
    )
    return output, *saved


@operator(
    "conv_batch_norm_relu_max_pool", fake=_empty_results, differentiate=_differentiate, setup_context=_setup_context
)
def _conv_norm_relu_pool(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    backend: str,
    convolution: Sequence[int],
    pool: Sequence[int],
    groups: int,
    eps: float,
    want_argmax: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    norm, geometry = Norm(None, None, norm_weight, norm_bias, 0.0, eps), geometry_of(convolution, pool, groups)
    output, saved = _floor(backend).forward(input, weight, bias, norm, *geometry, want_argmax=want_argmax)
    return output, *saved
