"""The kernels as differentiable functions of eager tensors.

``torch.library`` would do the same for 30 microseconds more a call; under ``torch.compile``, where calls cost nothing,
the kernels are its operators (``library.py``).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from seqconv.functional.following import in_plain_memory
from seqconv.functional.passes import passes

__all__ = ["fused"]


def fused(
    backend: str, operation: str, input: Tensor, weight: Tensor, bias: Tensor | None, *geometry: tuple[int, ...]
) -> Tensor:
    """Run ``operation`` on ``backend``; ``geometry`` is a ``Convolution`` and, but for a global pool, a ``Pool``."""
    if torch.is_grad_enabled() and (
        input.requires_grad or weight.requires_grad or (bias is not None and bias.requires_grad)
    ):
        output: Tensor = _Fused.apply(backend, operation, input, weight, bias, geometry)
        return output
    return passes(backend, operation).forward(input, weight, bias, *geometry, want_argmax=False)[0]


class _Fused(torch.autograd.Function):
    """Saves the input, the weight and a small integer for every output."""

    @staticmethod
    def forward(
        ctx: Any,
        backend: str,
        operation: str,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        geometry: tuple[Any, ...],
    ) -> Tensor:
        output, argmax = passes(backend, operation).forward(input, weight, bias, *geometry, want_argmax=True)
        ctx.save_for_backward(input, weight, argmax)
        ctx.kernel, ctx.geometry = (backend, operation), geometry
        return output

    @staticmethod
    def backward(ctx: Any, *gradient: Tensor) -> tuple[Tensor | None, ...]:
        input, weight, argmax = ctx.saved_tensors
        wanted = ctx.needs_input_grad[2:5]
        with torch.no_grad():
            given = in_plain_memory(*gradient)
            gradients = passes(*ctx.kernel).backward(given, argmax, input, weight, *ctx.geometry, wanted=wanted)
        if torch.is_grad_enabled():  # somebody may differentiate again
            gradients = _Underivable.apply(ctx.kernel, *gradient, input, weight, *gradients)
        return None, None, *gradients, None


class _Underivable(torch.autograd.Function):
    """Passes gradients on, tied to what they were computed from; says so if they are to be differentiated."""

    @staticmethod
    def forward(ctx: Any, kernel: tuple[str, str], *tensors: Tensor | None) -> tuple[Tensor | None, ...]:
        ctx.kernel = kernel
        return tuple(None if one is None else one.view_as(one) for one in tensors[3:])

    @staticmethod
    def backward(ctx: Any, *_gradients: Tensor | None) -> tuple[None, ...]:
        backend, operation = ctx.kernel
        raise RuntimeError(
            f"{operation} has no second derivative on backend {backend!r}: "
            "pass backend='reference', which torch can differentiate any number of times"
        )
