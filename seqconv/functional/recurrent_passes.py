"""The recurrent kernels of a floor as one differentiable function: eager, and as operators of graphs.

The second would do for the first, but that an operator's lists of tensors cost 100 microseconds a step. A layer is what
:mod:`seqconv.kernels.recurrence` describes. An operator has tensors and numbers alone: the weights of all directions
follow each other in one list, and a state or bias that is not there is an empty tensor or left out.
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
from seqconv.functional.operators import operator, refuse_to_differentiate
from seqconv.kernels.recurrence import EVERYTHING, NOTHING, STATES, Masks, Weights

__all__ = ["floor", "recurrent_layer"]

HALVES = (torch.float16, torch.bfloat16)


def recurrent_layer(
    backend: str,
    cell: str,
    input: Tensor,
    states: tuple[Tensor, ...],
    weights: Sequence[Weights],
    masks: Masks,
    lengths: Tensor | None,
    recompute: bool,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Run a backend's kernels; return the output ``(L, N, D * H)`` and the last states, each ``(D, N, H)``.

    The CPU's kernels compute half floats in float32.
    """
    dtype = input.dtype
    if backend == "numba" and dtype in HALVES:
        given = [*states, *(one for own in weights for one in own), *masks]
        wide = iter([None if one is None else one.float() for one in given])
        states = tuple(next(wide) for _ in states)  # type: ignore[misc]
        weights = [Weights(*(next(wide) for _ in own)) for own in weights]  # type: ignore[arg-type]
        result, last = recurrent_layer(backend, cell, input.float(), states, weights, Masks(*wide), lengths, recompute)
        return result.to(dtype), tuple(one.to(dtype) for one in last)
    tensors = [one for own in weights for one in own if one is not None]
    operands = [input, states[0], states[1] if len(states) > 1 else None, tensors, len(weights), *masks, lengths]
    differentiable = torch.is_grad_enabled() and any(one.requires_grad for one in (input, *states, *tensors))
    if not differentiable and not torch.compiler.is_compiling():  # an operator would cost as much as a short sequence
        call = cell, input, states, weights, masks, lengths
        found: list[tuple[Tensor, ...]] = []

        def run() -> Tensor:
            output, last, _ = floor(backend).forward(*call, keep=NOTHING)
            found.append(last)
            return output  # type: ignore[no-any-return]

        return autograd.recorded("recurrent_layer", run), found[0]
    keep = NOTHING if not differentiable else STATES if recompute else EVERYTHING
    if not torch.compiler.is_compiling():
        options = backend, cell, len(weights)
        output, *last = _Layer.apply(options, keep, *operands[:3], *masks, lengths, *tensors)
        return output, tuple(last[: len(states)])
    operator = _differentiable if differentiable else _undifferentiated
    output, h, c, _ = operator(backend, cell, *operands, keep)
    return output, (h, c)[: len(states)]


@cache
def floor(backend: str) -> Any:
    """Return a backend's kernels."""
    return backends.load(f"seqconv.kernels.{backend}.recurrent")


def _empty_results(
    backend: str,
    cell: str,
    input: Tensor,
    h0: Tensor,
    c0: Tensor | None,
    weights: Sequence[Tensor],
    directions: int,
    input_mask: Tensor | None,
    recurrent_mask: Tensor | None,
    lengths: Tensor | None,
    keep: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    output = input.new_empty(input.size(0), input.size(1), directions * h0.size(2))
    shape, dtype = floor(backend).saved_format(cell, input, _each(weights, directions), keep)
    saved = input.new_empty(shape, dtype=dtype)
    return output, torch.empty_like(h0), input.new_empty(0) if c0 is None else torch.empty_like(c0), saved


def _run(
    backend: str,
    cell: str,
    input: Tensor,
    h0: Tensor,
    c0: Tensor | None,
    weights: Sequence[Tensor],
    directions: int,
    input_mask: Tensor | None,
    recurrent_mask: Tensor | None,
    lengths: Tensor | None,
    keep: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Run the forward pass."""
    states, masks = (h0,) if c0 is None else (h0, c0), Masks(input_mask, recurrent_mask)
    given = cell, input, states, _each(weights, directions), masks, lengths
    output, last, saved = floor(backend).forward(*given, keep=keep)
    return output, last[0], input.new_empty(0) if c0 is None else last[1], saved


_undifferentiated = operator("recurrent_layer", fake=_empty_results)(_run)


def _empty_gradients(
    backend: str,
    cell: str,
    gradient: Tensor | None,
    h_gradient: Tensor | None,
    c_gradient: Tensor | None,
    input: Tensor,
    h0: Tensor,
    c0: Tensor | None,
    weights: Sequence[Tensor],
    directions: int,
    input_mask: Tensor | None,
    recurrent_mask: Tensor | None,
    lengths: Tensor | None,
    output: Tensor,
    saved: Tensor,
    wanted: Sequence[bool],
) -> list[Tensor]:
    states = [h0] if c0 is None else [h0, c0]
    found = [floor(backend).empty_gradient(input) if wanted[0] else input.new_empty(0)]
    for group, want in zip((states, weights), wanted[1:], strict=True):
        found += [one.new_empty(one.shape if want else (0,)) for one in group]
    return found


def _run_backward(
    backend: str,
    cell: str,
    gradient: Tensor | None,
    h_gradient: Tensor | None,
    c_gradient: Tensor | None,
    input: Tensor,
    h0: Tensor,
    c0: Tensor | None,
    weights: Sequence[Tensor],
    directions: int,
    input_mask: Tensor | None,
    recurrent_mask: Tensor | None,
    lengths: Tensor | None,
    output: Tensor,
    saved: Tensor,
    wanted: Sequence[bool],
) -> list[Tensor]:
    """Run the backward pass; what is not wanted is an empty tensor."""
    states = (h0,) if c0 is None else (h0, c0)
    given = zip((h_gradient, c_gradient), states, strict=False)
    last = tuple(torch.zeros_like(state) if one is None else one for one, state in given)
    found = floor(backend).backward(
        cell, gradient, None if h_gradient is c_gradient is None else last, input, states, _each(weights, directions),
        Masks(input_mask, recurrent_mask), lengths, output, saved, wanted=tuple(wanted),
    )  # fmt: skip
    nothing = [input.new_empty(0) for _ in (input, *states, *weights)]
    every = [found.input] if wanted[0] else nothing[:1]
    every += found.states if wanted[1] else nothing[1 : 1 + len(states)]
    own = [one for some in found.weights for one in some if one is not None] if wanted[2] else []
    return [*every, *(own or nothing[1 + len(states) :])]


_backward = operator("recurrent_layer_backward", fake=_empty_gradients, differentiate=refuse_to_differentiate)(
    _run_backward
)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
    backend, cell, input, h0, c0, weights, directions, input_mask, recurrent_mask, lengths, _ = inputs
    ctx.save_for_backward(input, h0, c0, input_mask, recurrent_mask, lengths, output[0], output[3], *weights)
    ctx.mark_non_differentiable(output[3])
    ctx.set_materialize_grads(False)
    ctx.options = backend, cell, directions


def _differentiate(ctx: Any, *gradients: Tensor | None) -> tuple[Any, ...]:
    _, _, wants_input, wants_h0, wants_c0, want_weights, *_ = ctx.needs_input_grad
    dx, dh0, dc0, dweights = _gradients(ctx, _backward, gradients[:3], (wants_input, wants_h0, wants_c0, want_weights))
    return None, None, dx, dh0, dc0, dweights, None, None, None, None, None


def _gradients(
    ctx: Any, run: Any, upstream: tuple[Tensor | None, ...], wants: tuple[bool, bool, bool, Sequence[bool]]
) -> tuple[Tensor | None, Tensor | None, Tensor | None, list[Tensor | None]]:
    """Return the gradients of input, states and weights that are wanted."""
    backend, cell, directions = ctx.options
    input, h0, c0, input_mask, recurrent_mask, lengths, output, saved, *weights = ctx.saved_tensors
    wants_input, wants_h0, wants_c0, want_weights = wants
    if all(one is None for one in upstream):
        return None, None, None, [None] * len(weights)
    gradient, dh, dc = (None if one is None else in_plain_memory(one) for one in upstream)
    wanted = [wants_input, wants_h0 or wants_c0, any(want_weights)]
    dx, dh0, *rest = run(
        backend, cell, gradient, dh, None if c0 is None else dc, input, h0, c0, weights, directions, input_mask,
        recurrent_mask, lengths, output, saved, wanted,
    )  # fmt: skip
    dc0 = None if c0 is None else rest.pop(0)
    dweights = [one if want else None for one, want in zip(rest, want_weights, strict=True)]
    return dx if wants_input else None, dh0 if wants_h0 else None, dc0 if wants_c0 else None, dweights


class _Layer(torch.autograd.Function):
    """A layer outside graphs."""

    @staticmethod
    def forward(
        ctx: Any,
        options: tuple[str, str, int],
        keep: int,
        input: Tensor,
        h0: Tensor,
        c0: Tensor | None,
        input_mask: Tensor | None,
        recurrent_mask: Tensor | None,
        lengths: Tensor | None,
        *weights: Tensor,
    ) -> tuple[Tensor, ...]:
        backend, cell, directions = options
        masks = input_mask, recurrent_mask

        def run() -> Tensor:
            results.extend(_run(backend, cell, input, h0, c0, weights, directions, *masks, lengths, keep))
            return results[0]

        results: list[Tensor] = []
        autograd.recorded("recurrent_layer", run)
        output, h, c, saved = results
        ctx.save_for_backward(input, h0, c0, *masks, lengths, output, saved, *weights)
        ctx.set_materialize_grads(False)
        ctx.options = options
        return output, h, c

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Any, ...]:
        run = _backward if torch.is_grad_enabled() else _run_backward  # the operator refuses to be differentiated
        _, _, wants_input, wants_h0, wants_c0, _, _, _, *want_weights = ctx.needs_input_grad
        wants = wants_input, wants_h0, wants_c0, want_weights
        dx, dh0, dc0, dweights = _gradients(ctx, run, gradients, wants)
        return None, None, dx, dh0, dc0, None, None, None, *dweights


_differentiable = operator(
    "recurrent_layer_with_saved", fake=_empty_results, differentiate=_differentiate, setup_context=_setup_context
)(_run)


def _each(weights: Sequence[Tensor], directions: int) -> tuple[Weights, ...]:
    """Return the weights of every direction."""
    own = len(weights) // directions
    parts: Any = (weights[d * own : (d + 1) * own] for d in range(directions))
    return tuple(Weights(*part, *[None] * (4 - own)) for part in parts)
