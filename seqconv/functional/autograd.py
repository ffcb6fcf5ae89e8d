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
from seqconv.functional.floors import Replayable, floor, tape_of
from seqconv.functional.following import in_plain_memory
from seqconv.kernels.geometry import Convolution, Pool
from seqconv.kernels.source import Source, name_of, options_of, source_of, tensors_of
from seqconv.kernels.triton.replay import layouts

__all__ = ["FusedPasses", "called", "fused", "needs_gradient", "recorded", "underivable", "undifferentiated"]

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
    if needs_gradient(source, weight, bias):
        passes = FusedPasses(backend, type(source), options_of(source), convolution, pool)
        output: Tensor = passes.apply(passes, *tensors_of(source), weight, bias)
        return output
    return undifferentiated(backend, source, weight, bias, convolution, pool, folded_dtype)


def needs_gradient(source: Source, weight: Tensor, bias: Tensor | None) -> bool:
    """Tell whether the result of a call is to be differentiable."""
    if not torch.is_grad_enabled():
        return False
    return source.values.requires_grad or weight.requires_grad or (bias is not None and bias.requires_grad)


def undifferentiated(
    backend: str,
    source: Source,
    weight: Tensor,
    bias: Tensor | None,
    convolution: Convolution,
    pool: Pool | None,
    folded_dtype: torch.dtype | None,
) -> Tensor:
    """Run the forward pass of eager tensors of which nobody wants gradients."""
    given = backend, source, weight, bias, convolution, pool, folded_dtype
    return recorded(name_of(type(source), pool), folded.forward, *given) if _is_profiled() else folded.forward(*given)


class FusedPasses:
    """The two passes of a backend's kernel on a source's tensors, a weight and a bias: what a call is besides these.

    ``apply(passes, *tensors)`` runs them as autograd's function, whether or not one of the tensors needs that.
    ``tape`` is what the kernel's forward pass did, where that can be replayed; Triton's backward pass is then, too.
    """

    def __init__(
        self,
        backend: str,
        kind: type[Source],
        options: tuple[int | None, ...],
        convolution: Convolution,
        pool: Pool | None,
        tape: Replayable | None = None,
    ) -> None:
        self.backend, self.kind, self.options, self.geometry = backend, kind, options, (convolution, pool)
        self.tape, self.is_replayed = tape, tape is not None and backend == "triton"
        self.backward_tapes: dict[tuple[Any, ...], Replayable] = {}
        self.place = 1 + kind._fields.index("values")  # of the source's values among the arguments of ``apply``
        self.operation = name_of(kind, pool)
        self.apply = _applied(self.operation)

    def forward(self, tensors: tuple[Any, ...]) -> tuple[Tensor, Tensor]:
        """Return the result and ``argmax``."""
        found: tuple[Tensor, Tensor]
        if self.tape is not None and self.tape.may_replay:
            found = self.tape.replay([one for one in tensors if one is not None])
            return found
        *given, weight, bias = tensors
        source = source_of(self.kind, given, self.options)
        found = floor(self.backend).forward(source, weight, bias, *self.geometry, want_argmax=True)
        return found

    def backward(
        self, gradient: Tensor, saved: tuple[Any, ...], wanted: tuple[bool, bool, bool]
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Return the gradients of the source's values, of weight and bias that are wanted.

        ``saved`` are the source's tensors, the weight and ``argmax``.
        """
        *given, weight, argmax = saved
        argmax = argmax.contiguous()  # hooks on saved tensors may have laid it out anew
        found: tuple[Tensor | None, Tensor | None, Tensor | None]
        if self.is_replayed:
            tensors = [gradient, argmax, *[one for one in given if one is not None], weight]
            kind = wanted, *layouts(tensors)
            tape = self.backward_tapes.get(kind)
            if tape is not None and tape.may_replay:
                found = tape.replay(tensors)
                return found
        passed = gradient, argmax, source_of(self.kind, given, self.options), weight, *self.geometry
        run = floor(self.backend).backward
        found = run(*passed, wanted=wanted)
        if self.is_replayed and (tape := tape_of(run, *passed, wanted=wanted)) is not None:
            self.backward_tapes[kind] = tape
        return found


@cache
def _applied(operation: str) -> Any:
    # Function.apply sees to transforms of functions besides, which no call with kernels is under: 5 microseconds.
    return super(torch.autograd.Function, called(_Fused, operation)).apply


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
    def forward(ctx: Any, passes: FusedPasses, *tensors: Any) -> Tensor:
        output, argmax = passes.forward(tensors)
        ctx.save_for_backward(*tensors[:-1], argmax)
        ctx.passes = passes
        return output

    @staticmethod
    def backward(ctx: Any, *gradient: Tensor) -> tuple[Tensor | None, ...]:
        passes, saved = ctx.passes, ctx.saved_tensors
        if not torch.is_grad_enabled():
            return _gradients(passes, gradient[0], saved, ctx.needs_input_grad)
        with torch.no_grad():
            gradients = _gradients(passes, gradient[0], saved, ctx.needs_input_grad)
        sources = (*gradient, saved[passes.place - 1], saved[-2])  # somebody may differentiate again
        return underivable(passes.backend, passes.operation, sources, gradients)


def _gradients(
    passes: FusedPasses, gradient: Tensor, saved: tuple[Any, ...], needed: tuple[bool, ...]
) -> tuple[Tensor | None, ...]:
    """Return a gradient, or ``None``, for every argument of ``passes.apply``."""
    place = passes.place
    wanted = needed[place], needed[-2], needed[-1]
    dvalues, dweight, dbias = passes.backward(in_plain_memory(gradient), saved, wanted)
    return *(None,) * place, dvalues, *(None,) * (len(needed) - place - 3), dweight, dbias


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
            "pass backend='reference', or seqconv.unfuse a fused model, to have torch's own operations"
        )
