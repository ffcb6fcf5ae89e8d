"""The kernels of the conv stack, floor by floor, and their registration with :mod:`seqconv.backends`."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from seqconv import backends
from seqconv.functional import autograd, folded, library
from seqconv.functional.following import unfollowed
from seqconv.functional.passes import gathers
from seqconv.kernels.geometry import Convolution
from seqconv.kernels.numba.limits import refuse_conv_pool, refuse_length
from seqconv.kernels.triton import conv_pool as triton
from seqconv.kernels.triton import gather as triton_gather
from seqconv.kernels.triton.launch import refuse_device

__all__ = ["register"]

OPERATIONS = tuple(
    prefix + pool
    for prefix in ("conv1d_relu_", "embedding_conv1d_relu_", "window_conv1d_relu_")
    for pool in ("max_pool1d", "global_max_pool1d")
)

NO_NUMBA = "the package numba is not installed" if importlib.util.find_spec("numba") is None else None


def fused(backend: str, operation: str) -> Callable[..., Tensor]:
    """Return a floor's kernel of ``operation``, differentiable, for eager calls and under ``torch.compile``."""
    count = 2 if gathers(operation) else 1

    def kernel(*arguments: Any, folded_dtype: torch.dtype | None = None) -> Tensor:
        inputs, (weight, bias), options = arguments[:count], arguments[count : count + 2], arguments[count + 2 :]
        run = library.fused if torch.compiler.is_compiling() else autograd.fused
        return run(backend, operation, inputs, weight, bias, options, folded_dtype)

    return kernel


def fused_on_gpus(operation: str) -> Callable[..., Tensor]:
    """Return the kernel for GPUs, which under autocast computes in the dtype that torch's convolution would have."""
    count, kernel = (2 if gathers(operation) else 1), fused("triton", operation)

    def cast(*arguments: Any, folded_dtype: torch.dtype | None = None) -> Tensor:
        device = arguments[0].device.type
        if not torch.is_autocast_enabled(device):
            return kernel(*arguments, folded_dtype=folded_dtype)
        dtype = torch.get_autocast_dtype(device)
        tensors = (
            one.to(dtype) if isinstance(one, Tensor) and one.is_floating_point() else one
            for one in arguments[: count + 2]
        )
        with torch.autocast(device, enabled=False):  # whose dtype the folded table has, too
            return kernel(*tensors, *arguments[count + 2 :])

    return cast


def refuse(operation: str) -> Callable[..., str | None]:
    """Return what tells why Numba's floor cannot serve a call of ``operation``, or ``None``."""
    source, count = source_of(operation)

    def refuse_call(*arguments: Any) -> str | None:
        convolution: Convolution = arguments[count + 2]
        return (
            NO_NUMBA
            or refuse_conv_pool(arguments[source], convolution)
            or unfollowed(arguments[source], *arguments[: count + 2])
            # last: looking at it would bound it in an exported program
            or refuse_length(length_of(operation, arguments), convolution)
        )

    return refuse_call


def refuse_on_gpus(operation: str) -> Callable[..., str | None]:
    """Return what tells why Triton's floor cannot serve a call of ``operation``, or ``None``."""
    source, count = source_of(operation)
    prefix = operation.partition("_")[0]
    refuse_shape = {"embedding": triton_gather.refuse_embedding, "window": triton_gather.refuse_window}.get(
        prefix, triton.refuse
    )

    def refuse_call(*arguments: Any) -> str | None:
        return (
            # that of a GPU is looked at with the shapes
            (None if arguments[source].is_cuda else refuse_device(arguments[source].device))
            or unfollowed(arguments[source], *arguments[: count + 2], autocast=True)
            or refuse_shape(*arguments)
        )

    return refuse_call


def source_of(operation: str) -> tuple[int, int]:
    """Return which of an operation's inputs holds the numbers, and how many inputs it has."""
    return int(operation.startswith("embedding")), 2 if gathers(operation) else 1


def length_of(operation: str, arguments: tuple[Any, ...]) -> int:
    """Return how many positions a call's input has."""
    if operation.startswith("window"):
        return int(arguments[-2])
    return arguments[0].size(-1)  # type: ignore[no-any-return]  # a symbol, in a graph


def explain_embedding(backend: str, *arguments: Any, folded_dtype: torch.dtype | None = None) -> str:
    """Return how an embedding in front of a convolution is computed, and why."""
    tokens, table, weight, bias, convolution = arguments[:5]
    differentiable = torch.is_grad_enabled() and any(
        one is not None and one.requires_grad for one in (table, weight, bias)
    )
    if not differentiable and folded.is_kept(backend, table, weight, folded_dtype):
        plan = folded.plan(backend, tokens, table, weight, convolution, ready=True, rows=0)
        return f"{plan.name}: {plan.reason}" + (f", in {folded_dtype} (folded_dtype)" if folded_dtype else "")
    if not differentiable and folded_dtype is not None and folded.may_keep(backend, table, weight, folded_dtype):
        return f"folded: the table is folded at once and kept, in {folded_dtype} (folded_dtype)"
    rows = table.size(0) if backend == "triton" else int(torch.unique(tokens).numel())
    plan = folded.plan(backend, tokens, table, weight, convolution, ready=False, rows=rows)
    hint = "" if differentiable or folded.is_frozen(table, weight) else "; seqconv.frozen keeps the folded table"
    return f"{plan.name}: {plan.reason}{hint}"


def register() -> None:
    """Register the kernels of all floors for all operations of the conv stack."""
    for operation in OPERATIONS:
        module = "seqconv.kernels.reference." + ("gather" if gathers(operation) else "conv_pool")
        backends.register(operation, "reference", backends.attribute(module, operation))
        cpu, gpu = (partial(explain_embedding, one) for one in ("numba", "triton"))
        plans = (cpu, gpu) if operation.startswith("embedding") else (None, None)
        backends.register(operation, "numba", partial(fused, "numba", operation), refuse(operation), plan=plans[0])
        on_gpus = partial(fused_on_gpus, operation)
        backends.register(operation, "triton", on_gpus, refuse_on_gpus(operation), plan=plans[1])
