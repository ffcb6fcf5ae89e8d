"""The kernels of the conv stack, floor by floor, and their registration with :mod:`seqconv.backends`.

A floor that has no kernels of its own for gathered rows gathers them first and runs its kernels on the result.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from seqconv import backends
from seqconv.functional import autograd, library
from seqconv.functional.following import unfollowed
from seqconv.kernels.geometry import Convolution
from seqconv.kernels.numba.limits import refuse_conv_pool, refuse_length
from seqconv.kernels.reference import gather

__all__ = ["register"]

OPERATIONS = ("conv1d_relu_max_pool1d", "conv1d_relu_global_max_pool1d")

NO_NUMBA = "the package numba is not installed" if importlib.util.find_spec("numba") is None else None


def fused(backend: str, operation: str) -> Callable[..., Tensor]:
    """Return a floor's kernel of ``operation``, differentiable, for eager calls and under ``torch.compile``."""

    def kernel(input: Tensor, weight: Tensor, bias: Tensor | None, *geometry: tuple[Any, ...]) -> Tensor:
        if torch.compiler.is_compiling():
            return library.fused(backend, input, weight, bias, *geometry)
        return autograd.fused(backend, operation, input, weight, bias, *geometry)

    return kernel


def fused_embedding(backend: str, operation: str) -> Callable[..., Tensor]:
    """Return a floor's kernel of ``operation`` on embedded tokens."""
    kernel = fused(backend, operation)

    def embed(tokens: Tensor, table: Tensor, weight: Tensor, bias: Tensor | None, *options: Any) -> Tensor:
        *geometry, padding_idx = options
        return kernel(gather.embed(tokens, table, padding_idx), weight, bias, *geometry)

    return embed


def fused_window(backend: str, operation: str) -> Callable[..., Tensor]:
    """Return a floor's kernel of ``operation`` on windows of a series."""
    kernel = fused(backend, operation)

    def cut(series: Tensor, starts: Tensor, weight: Tensor, bias: Tensor | None, *options: Any) -> Tensor:
        *geometry, length, step = options
        return kernel(gather.windows(series, starts, length, step), weight, bias, *geometry)

    return cut


def refuse(input: Tensor, weight: Tensor, bias: Tensor | None, convolution: Convolution, *_pool: Any) -> str | None:
    """Return why Numba's floor cannot serve a call on a tensor, or ``None``."""
    return _refuse(convolution, input.size(2), input, weight, bias)


def refuse_embedding(
    tokens: Tensor, table: Tensor, weight: Tensor, bias: Tensor | None, convolution: Convolution, *_options: Any
) -> str | None:
    """Return why Numba's floor cannot serve a call on embedded tokens, or ``None``."""
    return _refuse(convolution, tokens.size(1), table, tokens, weight, bias)


def refuse_window(
    series: Tensor, starts: Tensor, weight: Tensor, bias: Tensor | None, convolution: Convolution, *options: Any
) -> str | None:
    """Return why Numba's floor cannot serve a call on windows of a series, or ``None``."""
    return _refuse(convolution, options[-2], series, starts, weight, bias)


def _refuse(convolution: Convolution, length: int, source: Tensor, *others: Tensor | None) -> str | None:
    return (
        NO_NUMBA
        or refuse_conv_pool(source, convolution)
        or unfollowed(source, *others)
        or refuse_length(length, convolution)  # last: looking at it would bound it in an exported program
    )


def register() -> None:
    """Register the kernels of all floors for all operations of the conv stack."""
    inputs: dict[str, tuple[Any, Any]] = {
        "": (fused, refuse),
        "embedding_": (fused_embedding, refuse_embedding),
        "window_": (fused_window, refuse_window),
    }
    for operation in OPERATIONS:
        for prefix, (build, refuse_call) in inputs.items():
            module = "seqconv.kernels.reference." + ("gather" if prefix else "conv_pool")
            name = prefix + operation
            backends.register(name, "reference", backends.attribute(module, name))
            backends.register(name, "numba", partial(build, "numba", operation), refuse_call)
