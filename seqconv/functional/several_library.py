"""Several convolutions over one embedding as operators of ``torch.library``, as :mod:`.library` has a single one.

``convolutions`` are the numbers of each convolution, one after the other; ``padding_idx`` is -1 for none.
"""

# ruff: noqa: ARG001  (a description of a result takes what its computation takes)

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from seqconv import backends
from seqconv.functional import arguments, folded
from seqconv.functional.library import geometry_of, numbers_of
from seqconv.functional.operators import operator, refuse_to_differentiate
from seqconv.kernels.geometry import Convolution
from seqconv.kernels.source import Tokens

__all__ = ["fused", "gather", "gather_backward", "undifferentiated"]


def fused(
    source: Tokens,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    convolutions: Sequence[Convolution],
    folded_dtype: torch.dtype | None,
    differentiable: bool,
) -> Tensor:
    """Run the CPU kernel for all weights at once, as an operator."""
    numbers = [number for one in convolutions for number in numbers_of(one, None)[0]]
    padding_idx = -1 if source.padding_idx is None else source.padding_idx
    there = [one for one in biases if one is not None]
    flags = [one is not None for one in biases]
    operands = source.values, source.tokens, source.lengths, [*weights], there, flags, padding_idx, numbers
    output: Tensor = _differentiable(*operands)[0] if differentiable else _undifferentiated(*operands, folded_dtype)
    return output


def undifferentiated(
    source: Tokens, weights: Any, biases: Any, convolutions: Any, folded_dtype: torch.dtype | None
) -> Tensor:
    """Return the CPU kernel's result, from folded tables where these are kept."""
    pairs = zip(weights, convolutions, strict=True)
    kept = [
        folded.find_or_fold("numba", source.tokens, source.values, weight, one, folded_dtype) for weight, one in pairs
    ]
    ready = {} if None in kept else {"folded": kept}
    output: Tensor = gather().forward_several(source, weights, biases, convolutions, want_argmax=False, **ready)[0]
    return output


def gather() -> Any:
    """Return the module of the forward pass."""
    return backends.load("seqconv.kernels.numba.gather")


def gather_backward() -> Any:
    """Return the module of the backward pass."""
    return backends.load("seqconv.kernels.numba.gather_backward")


def _empty_output(
    table: Tensor,
    tokens: Tensor,
    lengths: Tensor | None,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    biased: Sequence[bool],
    padding_idx: int,
    convolutions: Sequence[int],
    folded_dtype: torch.dtype | None = None,
) -> Tensor:
    return table.new_empty(tokens.size(0), sum(weight.size(0) for weight in weights))


@operator("embedding_convs_relu_max_pool", fake=_empty_output)
def _undifferentiated(
    table: Tensor,
    tokens: Tensor,
    lengths: Tensor | None,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    biased: Sequence[bool],
    padding_idx: int,
    convolutions: Sequence[int],
    folded_dtype: torch.dtype | None = None,
) -> Tensor:
    source = _checked(table, tokens, lengths, padding_idx)
    return undifferentiated(source, weights, _placed(biases, biased), _each(convolutions), folded_dtype)


def _empty_gradients(
    gradient: Tensor,
    argmax: Tensor,
    table: Tensor,
    tokens: Tensor,
    lengths: Tensor | None,
    weights: Sequence[Tensor],
    padding_idx: int,
    convolutions: Sequence[int],
    wanted: Sequence[bool],
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    dtable = table.new_empty(table.shape if wanted[0] else (0,))
    dweights = [one.new_empty(one.shape if wanted[1] else (0,)) for one in weights]
    return dtable, dweights, [one.new_empty(one.size(0) if wanted[2] else 0) for one in weights]


@operator("embedding_convs_relu_max_pool_backward", fake=_empty_gradients, differentiate=refuse_to_differentiate)
def _backward(
    gradient: Tensor,
    argmax: Tensor,
    table: Tensor,
    tokens: Tensor,
    lengths: Tensor | None,
    weights: Sequence[Tensor],
    padding_idx: int,
    convolutions: Sequence[int],
    wanted: Sequence[bool],
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    source = Tokens(tokens, table, None if padding_idx < 0 else padding_idx, lengths)
    given = gradient, argmax.contiguous(), source, weights, _each(convolutions)
    dtable, dweights, dbiases = gather_backward().backward_several(*given, wanted=tuple(wanted))
    dweights, dbiases = (one or [table.new_empty(0) for _ in weights] for one in (dweights, dbiases))
    return table.new_empty(0) if dtable is None else dtable, dweights, dbiases


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    table, tokens, lengths, weights, _, biased, padding_idx, convolutions = inputs
    ctx.save_for_backward(output[1], table, tokens, lengths, *weights)
    ctx.mark_non_differentiable(output[1])
    ctx.biased, ctx.options = biased, (padding_idx, convolutions)


def _differentiate(ctx: Any, gradient: Tensor, _: Any) -> tuple[Any, ...]:
    argmax, table, tokens, lengths, *weights = ctx.saved_tensors
    wants_table, _, _, want_weights, want_biases, *_ = ctx.needs_input_grad
    wanted = [wants_table, any(want_weights), any(want_biases)]
    dtable, dweights, every = _backward(gradient, argmax, table, tokens, lengths, weights, *ctx.options, wanted)
    lists = dweights, [one for one, is_there in zip(every, ctx.biased, strict=True) if is_there]
    dweights, dbiases = (
        [one if want else None for one, want in zip(found, wants, strict=True)]
        for found, wants in zip(lists, (want_weights, want_biases), strict=True)
    )
    return dtable if wants_table else None, None, None, dweights, dbiases, None, None, None


def _empty_results(
    table: Tensor,
    tokens: Tensor,
    lengths: Tensor | None,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    biased: Sequence[bool],
    padding_idx: int,
    convolutions: Sequence[int],
) -> tuple[Tensor, Tensor]:
    output = _empty_output(table, tokens, lengths, weights, biases, biased, padding_idx, convolutions)
    each = zip(weights, _each(convolutions), strict=True)
    positions = max(one.output_length(tokens.size(1), weight.size(2)) for weight, one in each)
    outputs = [weight.size(0) for weight in weights]
    shape, dtype = gather().argmaxes_format(tokens.size(0), outputs, positions, table.dtype)
    return output, table.new_empty(shape, dtype=dtype)


@operator(
    "embedding_convs_relu_max_pool_with_argmax",
    fake=_empty_results,
    differentiate=_differentiate,
    setup_context=_setup_context,
)
def _differentiable(
    table: Tensor,
    tokens: Tensor,
    lengths: Tensor | None,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    biased: Sequence[bool],
    padding_idx: int,
    convolutions: Sequence[int],
) -> tuple[Tensor, Tensor]:
    source = _checked(table, tokens, lengths, padding_idx)
    given = source, weights, _placed(biases, biased), _each(convolutions)
    found: tuple[Tensor, Tensor] = gather().forward_several(*given, want_argmax=True)
    return found


def _checked(table: Tensor, tokens: Tensor, lengths: Tensor | None, padding_idx: int) -> Tokens:
    """Return the tokens, what the graph did not know of them checked."""
    arguments.row_index("tokens", tokens, "table", table)
    if lengths is not None:
        arguments.lengths(lengths, table.device, tokens.size(0), tokens.size(1))
    return Tokens(tokens, table, None if padding_idx < 0 else padding_idx, lengths)


def _placed(biases: Sequence[Tensor], biased: Sequence[bool]) -> list[Tensor | None]:
    """Return each convolution's bias. An operator's list with ``None`` in it would get no gradients."""
    there = iter(biases)
    return [next(there) if is_there else None for is_there in biased]


def _each(numbers: Sequence[int]) -> list[Convolution]:
    """Return the convolutions that the numbers of an operator stand for, four for each."""
    return [geometry_of(numbers[i : i + 4], ())[0] for i in range(0, len(numbers), 4)]
