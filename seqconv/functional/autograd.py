"""The kernels as differentiable functions of eager tensors.

``torch.library`` would do the same for 30 microseconds more a call; under ``torch.compile``, where calls cost nothing,
the kernels are its operators (``library.py``).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd import profiler

from seqconv.functional.folded import forward
from seqconv.functional.following import in_plain_memory
from seqconv.functional.passes import passes

__all__ = ["called", "differentiable", "fused", "recorded", "underivable"]

_is_profiled: Callable[[], bool] = torch.autograd._profiler_enabled  # type: ignore[attr-defined]


def fused(
    backend: str,
    operation: str,
    inputs: tuple[Tensor, ...],
    weight: Tensor,
    bias: Tensor | None,
    options: Any,
    folded_dtype: torch.dtype | None = None,
) -> Tensor:
    """Run ``operation`` on ``backend``; see :class:`~seqconv.functional.passes.Passes` for what the kernel is given.

    ``folded_dtype`` is that of the table that a call without gradients may keep.
    """
    if torch.is_grad_enabled() and (
        inputs[0].requires_grad
        or weight.requires_grad
        or (bias is not None and bias.requires_grad)
        or inputs[-1].requires_grad
    ):
        return differentiable(backend, operation, (*inputs, weight, bias), options)
    return recorded(operation, forward, backend, operation, inputs, weight, bias, options, folded_dtype)


def differentiable(backend: str, operation: str, operands: tuple[Tensor | None, ...], options: Any) -> Tensor:
    """Run ``operation`` on inputs, weight and bias as autograd's function, whether or not one of them needs that."""
    output: Tensor = called(_Fused, operation).apply(backend, operation, options, *operands)
    return output


@cache
def called(function: type[torch.autograd.Function], operation: str) -> Any:
    """Return ``function`` under the name of ``operation``, by which profilers and ``grad_fn`` call it."""
    return type(f"seqconv::{operation}", (function,), {"__module__": function.__module__})


def recorded(operation: str, function: Callable[..., Tensor], *arguments: Any) -> Tensor:
    """Call ``function``, as ``operation`` where a profiler looks: an idle ``record_function`` takes 9 microseconds."""
    if not _is_profiled():
        return function(*arguments)
    with profiler.record_function(f"seqconv::{operation}"):
        return function(*arguments)


class _Fused(torch.autograd.Function):
    """Saves the inputs, the weight and a small integer for every output."""

    @staticmethod
    def forward(ctx: Any, backend: str, operation: str, options: Any, *tensors: Any) -> Tensor:
        *inputs, weight, bias = tensors
        output, argmax = passes(backend, operation).forward(*inputs, weight, bias, *options, want_argmax=True)
        ctx.save_for_backward(*inputs, weight, argmax)
        ctx.kernel, ctx.options = (backend, operation), options
        return output

    @staticmethod
    def backward(ctx: Any, *gradient: Tensor) -> tuple[Tensor | None, ...]:
        *inputs, weight, argmax = ctx.saved_tensors
        needed = ctx.needs_input_grad[3:]
        wanted = (any(needed[:-2]), *needed[-2:])
        with torch.no_grad():
            given = in_plain_memory(*gradient)
            gradients: tuple[Tensor | None, ...] = passes(*ctx.kernel).backward(
                given, argmax, *inputs, weight, *ctx.options, wanted=wanted
            )
        source = next(number for number, one in enumerate(inputs) if one.is_floating_point())
        if torch.is_grad_enabled():  # somebody may differentiate again
            backend, operation = ctx.kernel
            gradients = underivable(backend, operation, (*gradient, inputs[source], weight), gradients)
        to_inputs = (gradients[0] if number == source else None for number in range(len(inputs)))
        return None, None, None, *to_inputs, *gradients[1:]


def underivable(
    backend: str, operation: str, sources: tuple[Tensor, ...], gradients: tuple[Tensor | None, ...]
) -> tuple[Tensor | None, ...]:
    """Return the gradients, tied to what they were computed from; an error if they are to be differentiated."""
    tied: tuple[Tensor | None, ...] = _Underivable.apply(backend, operation, len(sources), *sources, *gradients)
    return tied


class _Underivable(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, backend: str, operation: str, sources: int, *tensors: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        ctx.kernel = backend, operation
        return tuple(None if one is None else one.view_as(one) for one in tensors[sources:])

    @staticmethod
    def backward(ctx: Any, *_gradients: Tensor | None) -> tuple[None, ...]:
        backend, operation = ctx.kernel
        raise RuntimeError(
            f"{operation} has no second derivative on backend {backend!r}: "
            "pass backend='reference', which torch can differentiate any number of times"
        )
