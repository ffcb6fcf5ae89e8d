"""The recurrent kernels of a floor as one differentiable operator of ``torch.library``, in graphs and outside.

A layer is what :mod:`seqconv.kernels.recurrence` describes. An operator has tensors and numbers alone: the weights of
all directions follow each other in one list, and a state or bias that is not there is an empty tensor or left out.
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
from seqconv.functional.operators import operator, refuse_to_differentiate
from seqconv.kernels.recurrence import EVERYTHING, NOTHING, STATES, Masks, Weights

__all__ = ["recurrent_layer"]

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
        given = cell, input, states, weights, masks, lengths
        found: list[tuple[Tensor, ...]] = []

        def run() -> Tensor:
            output, last, _ = floor(backend).forward(*given, keep=NOTHING)
            found.append(last)
            return output  # type: ignore[no-any-return]

        return autograd.recorded("recurrent_layer", run), found[0]
    keep = NOTHING if not differentiable else STATES if recompute else EVERYTHING
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
    groups = [input], states, weights
    return [
        one.new_empty(one.shape if want else (0,)) for group, want in zip(groups, wanted, strict=True) for one in group
    ]


@operator("recurrent_layer_backward", fake=_empty_gradients, differentiate=refuse_to_differentiate)
def _backward(
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


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
    backend, cell, input, h0, c0, weights, directions, input_mask, recurrent_mask, lengths, _ = inputs
    ctx.save_for_backward(input, h0, c0, input_mask, recurrent_mask, lengths, output[0], output[3], *weights)
    ctx.mark_non_differentiable(output[3])
    ctx.set_materialize_grads(False)
    ctx.options = backend, cell, directions


def _differentiate(
    ctx: Any, gradient: Tensor | None, h_gradient: Tensor | None, c_gradient: Tensor | None, _: Any
) -> tuple[Any, ...]:
    backend, cell, directions = ctx.options
    input, h0, c0, input_mask, recurrent_mask, lengths, output, saved, *weights = ctx.saved_tensors
    _, _, wants_input, wants_h0, wants_c0, want_weights, *_ = ctx.needs_input_grad
    wanted = [wants_input, wants_h0 or wants_c0, any(want_weights)]
    if gradient is h_gradient is c_gradient is None:
        return *(None,) * 5, [None] * len(weights), *(None,) * 5
    upstream = gradient, h_gradient, c_gradient if c0 is not None else None
    dx, *rest = _backward(
        backend, cell, *upstream, input, h0, c0, weights, directions, input_mask, recurrent_mask, lengths, output,
        saved, wanted,
    )  # fmt: skip
    dh0, *rest = rest
    dc0 = rest.pop(0) if c0 is not None else None
    dweights = [one if want else None for one, want in zip(rest, want_weights, strict=True)]
    states = dh0 if wants_h0 else None, dc0 if wants_c0 else None
    return None, None, dx if wants_input else None, *states, dweights, None, None, None, None, None


_differentiable = operator(
    "recurrent_layer_with_saved", fake=_empty_results, differentiate=_differentiate, setup_context=_setup_context
)(_run)


def _each(weights: Sequence[Tensor], directions: int) -> tuple[Weights, ...]:
    """Return the weights of every direction."""
    own = len(weights) // directions
    parts = (weights[d * own : (d + 1) * own] for d in range(directions))
    return tuple(Weights(*part) if own == 4 else Weights(*part, None, None) for part in parts)
