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

from seqconv.functional import folded, library
from seqconv.functional.floors import floor
from seqconv.functional.following import in_plain_memory
from seqconv.kernels.geometry import Convolution, Pool
from seqconv.kernels.source import NAMES, Source, name_of, options_of, source_of, tensors_of

__all__ = ["called", "differentiable", "fused", "recorded", "underivable"]

_is_profiled: Callable[[], bool] = torch.autograd._profiler_enabled  # type: ignore[attr-defined]


def fused(
    backend: str,
    source: Source,
    weight: Tensor,
    bias: Tensor | None,
    convolution: Convolution,
    pool: Pool | None,
    *,
    folded_dtype: torch.dtype | None = None,
) -> Tensor:
    """Run a backend's kernel; ``folded_dtype`` is that of the table that a call without gradients may keep."""
    if torch.compiler.is_compiling():
        return library.fused(backend, source, weight, bias, convolution, pool, folded_dtype)
    if torch.is_grad_enabled() and (
        source.values.requires_grad or weight.requires_grad or (bias is not None and bias.requires_grad)
    ):
        return differentiable(backend, source, weight, bias, convolution, pool)
    if _is_profiled():
        given = backend, source, weight, bias, convolution, pool, folded_dtype
        return recorded(name_of(type(source), pool), folded.forward, *given)
    return folded.forward(backend, source, weight, bias, convolution, pool, folded_dtype)


def differentiable(
    backend: str, source: Source, weight: Tensor, bias: Tensor | None, convolution: Convolution, pool: Pool | None
) -> Tensor:
    """Run the kernel as autograd's function, whether or not one of the tensors needs that."""
    kind: Any = type(source)
    function, tensors = _operation(kind, pool is None), (*tensors_of(source), weight, bias)
    output: Tensor = function.apply(backend, source, convolution, pool, *tensors)
    return output


@cache
def _operation(kind: type[Source], is_global: bool) -> Any:
    return called(_Fused, NAMES[kind][is_global])


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
    """Saves the source's tensors, the weight and a small integer for every output."""

    @staticmethod
    def forward(
        ctx: Any, backend: str, source: Source, convolution: Convolution, pool: Pool | None, *tensors: Any
    ) -> Tensor:
        *given, weight, bias = tensors
        output: Tensor
        output, argmax = floor(backend).forward(source, weight, bias, convolution, pool, want_argmax=True)
        ctx.save_for_backward(*given, weight, argmax)
        ctx.call = backend, type(source), options_of(source), convolution, pool
        return output

    @staticmethod
    def backward(ctx: Any, *gradient: Tensor) -> tuple[Tensor | None, ...]:
        *given, weight, argmax = ctx.saved_tensors
        backend, kind, options, convolution, pool = ctx.call
        source = source_of(kind, given, options)
        needed = ctx.needs_input_grad[4:]
        wanted = (any(needed[:-2]), *needed[-2:])
        with torch.no_grad():
            upstream = in_plain_memory(*gradient)
            gradients: tuple[Tensor | None, ...] = floor(backend).backward(
                upstream, argmax, source, weight, convolution, pool, wanted=wanted
            )
        if torch.is_grad_enabled():  # somebody may differentiate again
            gradients = underivable(backend, name_of(type(source), pool), (*gradient, source.values, weight), gradients)
        # Behind the other tensors come the lengths.
        to_source = [gradients[0] if name == "values" else None for name in (*kind._fields[: len(given) - 1], None)]
        return None, None, None, None, *to_source, *gradients[1:]


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
