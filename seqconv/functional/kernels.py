"""The kernels of the conv stack, floor by floor, and their registration with :mod:`seqconv.backends`."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from seqconv import backends
from seqconv.functional import autograd, folded
from seqconv.functional.following import unfollowed
from seqconv.kernels.geometry import Convolution, Pool
from seqconv.kernels.numba import support
from seqconv.kernels.reference import conv_pool as reference
from seqconv.kernels.source import NAMES, Source, Tokens, tensors_of
from seqconv.kernels.triton import support as gpu_support

__all__ = ["explain_embedding", "fused", "fused_on_gpus", "is_own", "refuse", "refuse_on_gpus", "register"]


def is_own(kernel: Callable[..., Tensor]) -> bool:
    """Tell whether a kernel is one of a floor's, not one that somebody else has registered under its name."""
    return kernel is fused("numba") or kernel is fused_on_gpus()


@cache
def fused(backend: str) -> Callable[..., Tensor]:
    """Return a floor's kernel, differentiable, for eager calls and under ``torch.compile``."""
    return partial(autograd.fused, backend)


@cache
def fused_on_gpus() -> Callable[..., Tensor]:
    """Return the kernel for GPUs, which under autocast computes in the dtype that torch's convolution would have."""
    kernel = fused("triton")

    def cast(
        source: Source,
        weight: Tensor,
        bias: Tensor | None,
        convolution: Convolution,
        pool: Pool | None,
        *,
        folded_dtype: torch.dtype | None = None,
    ) -> Tensor:
        device = source.values.device.type
        if torch.is_autocast_enabled(device):
            dtype = torch.get_autocast_dtype(device)
            source, weight = source._replace(values=source.values.to(dtype)), weight.to(dtype)
            bias = None if bias is None else bias.to(dtype)
            with torch.autocast(device, enabled=False):  # whose dtype the folded table has, too
                return kernel(source, weight, bias, convolution, pool)
        return kernel(source, weight, bias, convolution, pool, folded_dtype=folded_dtype)

    return cast


def composed(
    source: Source,
    weight: Tensor,
    bias: Tensor | None,
    convolution: Convolution,
    pool: Pool | None,
    *,
    folded_dtype: torch.dtype | None = None,  # noqa: ARG001  (nothing is folded here)
) -> Tensor:
    """Return torch's own composition, which torch can follow."""
    return reference.compose(source, weight, bias, convolution, pool)


def refuse(
    source: Source,
    weight: Tensor,
    bias: Tensor | None,
    convolution: Convolution,
    pool: Pool | None,  # noqa: ARG001
) -> str | None:
    """Return why Numba's floor cannot serve a call, or ``None``."""
    return (
        support.refuse(source, convolution)
        or unfollowed(source.values, *tensors_of(source), weight, bias)
        # last: reading the length would bound it in an exported program
        or support.refuse_length(source, convolution)
    )


def refuse_on_gpus(
    source: Source, weight: Tensor, bias: Tensor | None, convolution: Convolution, pool: Pool | None
) -> str | None:
    """Return why Triton's floor cannot serve a call, or ``None``."""
    values = source.values
    return (
        # a GPU is checked with the shapes
        (None if values.is_cuda else gpu_support.refuse_device(values.device))
        or unfollowed(values, *tensors_of(source), weight, bias, autocast=True)
        or gpu_support.refuse(source, weight, convolution, pool)
    )


def explain_embedding(
    backend: str,
    source: Source,
    weight: Tensor,
    bias: Tensor | None,
    convolution: Convolution,
    pool: Pool | None,  # noqa: ARG001
    *,
    folded_dtype: torch.dtype | None = None,
) -> str:
    """Return how an embedding in front of a convolution is computed, and why."""
    assert isinstance(source, Tokens)
    tokens, table = source.tokens, source.values
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


def explain_dense(*arguments: Any, **_options: Any) -> str:
    """Return how Numba's floor computes the sums of a convolution on a dense input or on windows, and why so."""
    found: str = backends.load("seqconv.kernels.numba.dense").explain(*arguments)
    return found


def register() -> None:
    """Register the kernels of all floors: one for all sources and pools, under every name that users know it by."""
    for source, operations in NAMES.items():
        cpu, gpu = (partial(explain_embedding, one) for one in ("numba", "triton"))
        plans = (cpu, gpu) if source is Tokens else (None, None)
        for operation in operations:
            backends.register(operation, "reference", lambda: composed)
            backends.register(operation, "numba", partial(fused, "numba"), refuse, plan=plans[0] or explain_dense)
            backends.register(operation, "triton", fused_on_gpus, refuse_on_gpus, plan=plans[1])
