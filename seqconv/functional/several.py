"""Convolutions of several kernel sizes over the same embedded tokens, as one function: the first layer of TextCNN."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from seqconv import backends
from seqconv.functional import arguments, kernels, several_library
from seqconv.functional.arguments import IntOrTuple
from seqconv.functional.autograd import called, recorded, underivable
from seqconv.functional.conv import Call, embedding_call
from seqconv.functional.following import active, in_plain_memory, unfollowed
from seqconv.functional.recent import Recent
from seqconv.functional.several_library import gather, gather_backward, undifferentiated
from seqconv.functional.tracing import Proxy, TracedCall
from seqconv.kernels.reference import conv_pool as reference
from seqconv.kernels.source import Tokens

__all__ = ["embedding_conv1ds_call", "embedding_conv1ds_relu_global_max_pool1d", "run_recent"]

OPERATION = "embedding_conv1ds_relu_global_max_pool1d"


def embedding_conv1ds_relu_global_max_pool1d(
    tokens: Tensor,
    table: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None] | None = None,
    *,
    padding_idx: int | None = None,
    stride: IntOrTuple = 1,
    padding: IntOrTuple | str = 0,
    dilation: IntOrTuple = 1,
    groups: int = 1,
    folded_dtype: torch.dtype | None = None,
    lengths: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """Return :func:`embedding_conv1d_relu_global_max_pool1d` for each weight on the same tokens, side by side.

    Shapes: ``tokens`` ``(N, L)`` or ``(L,)``, ``table`` ``(V, C)``, ``weights`` one or more of ``(O_i, C / groups,
    K_i)``, ``biases`` as many of ``(O_i,)`` or ``None``; the result is ``(N, O_0 + O_1 + ...)`` or without ``N``. The
    other arguments, ``lengths`` too, hold for every convolution. The tokens are read, and the gradients of the table
    added up, once for all. In torch: ``torch.cat([F.relu(F.conv1d(x, w, b)).max(-1).values for w, b in zip(weights,
    biases)], -1)`` with ``x = F.embedding(tokens, table).transpose(-1, -2)``. ``folded_dtype`` is that of
    :func:`~seqconv.functional.embedding_conv1d_relu_max_pool1d`, of each weight's folded table. Source: Kim,
    "Convolutional Neural Networks for Sentence Classification", 2014.
    """
    options = (stride, padding, dilation, groups)
    call = embedding_conv1ds_call(tokens, table, lengths, weights, biases, padding_idx, options, folded_dtype)
    return call.run(backend)


def embedding_conv1ds_call(
    tokens: Tensor,
    table: Tensor,
    lengths: Tensor | None,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None] | None,
    padding_idx: int | None,
    convolution: tuple[Any, ...],
    folded_dtype: torch.dtype | None = None,
) -> Call:
    """Check a call on embedded tokens with several weights."""
    if isinstance(tokens, Proxy) or isinstance(table, Proxy):
        options = dict(zip(("stride", "padding", "dilation", "groups"), convolution, strict=True))
        options |= {"padding_idx": padding_idx, "folded_dtype": folded_dtype, "lengths": lengths}
        traced: Any = TracedCall(embedding_conv1ds_relu_global_max_pool1d, (tokens, table, weights, biases), options)
        return traced  # type: ignore[no-any-return]
    weights = _sequence("weights", weights)
    if not weights:
        raise ValueError("weights must hold at least one tensor, got none")
    biases = [None] * len(weights) if biases is None else _sequence("biases", biases)
    if len(biases) != len(weights):
        raise ValueError(f"biases must hold one tensor or None for each of {len(weights)} weights, got {len(biases)}")
    calls = []
    for number, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        try:
            one = (tokens, table, lengths, weight, bias, padding_idx, convolution, None, folded_dtype)
            calls.append(embedding_call(*one, is_known=number > 0))
        except (TypeError, ValueError) as error:
            message = str(error)
            for name in ("weight", "bias", "kernel_size"):
                if message.startswith(f"{name} "):
                    raise type(error)(f"{message} (of weights[{number}])") from None
            raise
    given = (calls[0].arguments[0], weights, biases, [call.arguments[3] for call in calls])
    return Call(OPERATION, given, calls[0].batched, calls[0].folded_dtype)


def run_recent(
    operands: tuple[Any, ...],
    count: int,
    padding_idx: int | None,
    convolution: tuple[Any, ...],
    recent: Recent,
) -> Tensor:
    """Run the call on tokens, a table, ``count`` weights and as many biases, as it was run of late."""
    is_compiling = torch.compiler.is_compiling()
    if not is_compiling and (known := recent.find(operands)) is not None:
        return known(*operands)
    tokens, table, *tensors = operands
    call = embedding_conv1ds_call(tokens, table, None, tensors[:count], tensors[count:], padding_idx, convolution)
    chosen, kernel = backends.choose_named(call.operation, "auto", call.arguments)
    output = call.run_on(kernel)
    is_own = chosen != "reference" and kernel.__module__ == __name__
    if not is_compiling and call.batched and is_own and active(tokens.device.type) is None:
        rows, convolutions = call.arguments[0].padding_idx, call.arguments[3]  # no tensor is kept

        def again(tokens: Tensor, table: Tensor, *tensors: Any) -> Tensor:
            arguments.row_index("tokens", tokens, "table", table)
            own = Tokens(tokens, table, rows)
            result: Tensor = kernel(own, [*tensors[:count]], [*tensors[count:]], convolutions)
            return result

        recent.add(operands, again)
    return output


def _sequence(name: str, value: Any) -> list[Any]:
    if isinstance(value, Tensor) or not isinstance(value, Sequence | torch.nn.ParameterList):
        raise TypeError(f"{name} must be a list or tuple of tensors, got {type(value).__name__}")
    return list(value)


def one_by_one(backend: str) -> Callable[..., Tensor]:
    """Return a function that calls a backend's kernel for one weight after the other."""
    single = kernels.fused_on_gpus() if backend == "triton" else kernels.fused(backend)

    def run(
        source: Tokens,
        weights: Any,
        biases: Any,
        convolutions: Any,
        *,
        folded_dtype: torch.dtype | None = None,
    ) -> Tensor:
        layers = zip(weights, biases, convolutions, strict=True)
        return torch.cat([single(source, *layer, None, folded_dtype=folded_dtype) for layer in layers], 1)

    return run


def at_once() -> Callable[..., Tensor]:
    """Return the CPU kernel for all weights at once."""

    def run(
        source: Tokens,
        weights: Any,
        biases: Any,
        convolutions: Any,
        *,
        folded_dtype: torch.dtype | None = None,
    ) -> Tensor:
        tensors = (source.values, *weights, *biases)
        differentiable = torch.is_grad_enabled() and any(one is not None and one.requires_grad for one in tensors)
        if torch.compiler.is_compiling():
            return several_library.fused(source, weights, biases, convolutions, folded_dtype, differentiable)
        if differentiable:
            function = called(_Several, OPERATION)
            given = source.tokens, source.lengths
            output: Tensor = function.apply(convolutions, source.padding_idx, *given, *tensors)
            return output
        return recorded(OPERATION, undifferentiated, source, weights, biases, convolutions, folded_dtype)

    return run


class _Several(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, convolutions: Any, padding_idx: int | None, tokens: Tensor, lengths: Tensor | None, *tensors: Any
    ) -> Tensor:
        source, count = Tokens(tokens, tensors[0], padding_idx, lengths), len(convolutions)
        weights, biases = list(tensors[1 : count + 1]), list(tensors[count + 1 :])
        output: Tensor
        output, argmax = gather().forward_several(source, weights, biases, convolutions, want_argmax=True)
        ctx.save_for_backward(tokens, lengths, argmax, source.values, *weights)
        ctx.options = convolutions, padding_idx
        return output

    @staticmethod
    def backward(ctx: Any, *gradient: Tensor) -> tuple[Tensor | None, ...]:
        tokens, lengths, argmax, table, *weights = ctx.saved_tensors
        convolutions, padding_idx = ctx.options
        needed, count = ctx.needs_input_grad[4:], len(weights)
        wanted = needed[0], any(needed[1 : count + 1]), any(needed[count + 1 :])
        with torch.no_grad():
            source, upstream = Tokens(tokens, table, padding_idx, lengths), in_plain_memory(*gradient)
            dtable, dweights, dbiases = gather_backward().backward_several(
                upstream, argmax, source, weights, convolutions, wanted=wanted
            )
        flat = (dtable, *(dweights or [None] * count), *(dbiases or [None] * count))
        gradients = tuple(one if want else None for one, want in zip(flat, needed, strict=True))
        if torch.is_grad_enabled():  # somebody may differentiate again
            gradients = underivable("numba", OPERATION, (*gradient, table, *weights), gradients)
        return None, None, None, None, *gradients


def refuse(backend: str) -> Callable[..., str | None]:
    """Return a function that returns why a backend cannot serve a call, or ``None``."""
    refuse_one = kernels.refuse_on_gpus if backend == "triton" else kernels.refuse

    def refuse_call(source: Tokens, weights: Any, biases: Any, convolutions: Any) -> str | None:
        # What does not depend on a single weight is checked once.
        reason = refuse_one(source, weights[0], biases[0], convolutions[0], None)
        return reason or unfollowed(source.values, *weights[1:], *biases[1:], autocast=backend == "triton")

    return refuse_call


def explain_several(
    backend: str,
    source: Tokens,
    weights: Any,
    biases: Any,
    convolutions: Any,
    *,
    folded_dtype: torch.dtype | None = None,
) -> str:
    """Return how each weight's convolution is computed, and why."""
    layers = zip(weights, biases, convolutions, strict=True)
    one = partial(kernels.explain_embedding, backend, source, folded_dtype=folded_dtype)
    return "; ".join(one(*layer, None) for layer in layers)


def _compose(
    source: Tokens,
    weights: Any,
    biases: Any,
    convolutions: Any,
    *,
    folded_dtype: torch.dtype | None = None,  # noqa: ARG001  (nothing is folded here)
) -> Tensor:
    return reference.compose_several(source, weights, biases, convolutions)


def register() -> None:
    """Register the kernels of all floors."""
    backends.register(OPERATION, "reference", lambda: _compose)
    backends.register(OPERATION, "numba", at_once, refuse("numba"), plan=partial(explain_several, "numba"))
    on_gpus = partial(one_by_one, "triton")
    backends.register(OPERATION, "triton", on_gpus, refuse("triton"), plan=partial(explain_several, "triton"))


register()
