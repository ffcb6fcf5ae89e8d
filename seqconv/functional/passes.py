"""Where the kernels' forward and backward passes stand: by backend and operation, looked up at the first call."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = ["Passes", "gathers", "passes"]


class Passes(NamedTuple):
    """One kernel's two passes.

    ``forward(*inputs, weight, bias, *options, want_argmax=...)`` returns the result and, if wanted, what the backward
    pass needs to know of the winners; ``backward(gradient, argmax, *inputs, weight, *options, wanted=...)`` the
    gradients of source, weight and bias, ``None`` for those that are not wanted. ``inputs`` are the input alone, or
    tokens and table, or series and starts; the source is the one of them that holds numbers.
    ``argmax_format(samples, outputs, windows, greatest, dtype)`` tells the shape and dtype of what is kept of the
    winners, none of whose numbers is above ``greatest``. ``fold(table, weight, dtype=None)`` returns a folded table,
    which the forward pass of an embedding takes as ``folded``, ``folded_shape(rows, weight)`` its shape; ``None`` for
    other operations. Kernels of several
    convolutions take lists of weights, biases and folded tables, and have ``argmax_format(samples, outputs, greatest,
    dtype)``.
    """

    forward: Callable[..., tuple[Tensor, Tensor | None]]
    backward: Callable[..., tuple[Tensor | None, Tensor | None, Tensor | None]]
    argmax_format: Callable[[int, int, int, int, torch.dtype], tuple[tuple[int, ...], torch.dtype]]
    fold: Callable[..., Tensor] | None = None
    folded_shape: Callable[[int, Tensor], tuple[int, int, int]] | None = None


@cache
def passes(backend: str, operation: str) -> Passes:
    """Return the passes of ``operation`` on a backend's floor."""

    def find(module: str, name: str) -> Any:
        return getattr(importlib.import_module(f"seqconv.kernels.{backend}.{module}"), name)

    module = "gather" if gathers(operation) else "conv_pool"
    return Passes(
        find(module, f"{operation}_forward"),
        find(f"{module}_backward", f"{operation}_backward"),
        find(module, "argmaxes_format") if "conv1ds" in operation else find("conv_pool", "argmax_format"),
        *((find(module, "fold"), find(module, "folded_shape")) if operation.startswith("embedding") else ()),
    )


def gathers(operation: str) -> bool:
    """Tell whether an operation's input is rows that are read through an index."""
    return operation.startswith(("embedding", "window"))
