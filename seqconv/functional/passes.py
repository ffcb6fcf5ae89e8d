"""Where the kernels' forward and backward passes stand: by backend and operation, looked up at the first call."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = ["Passes", "passes"]


class Passes(NamedTuple):
    """One kernel's two passes.

    ``forward(input, weight, bias, *geometry, want_argmax=...)`` returns the result and, if wanted, what the backward
    pass needs to know of the winners; ``backward(gradient, argmax, input, weight, *geometry, wanted=...)`` the
    gradients of input, weight and bias, ``None`` for those that are not wanted.
    ``argmax_format(samples, outputs, windows, greatest, dtype)`` tells the shape and dtype of what is kept of the
    winners, none of whose numbers is above ``greatest``.
    """

    forward: Callable[..., tuple[Tensor, Tensor | None]]
    backward: Callable[..., tuple[Tensor | None, Tensor | None, Tensor | None]]
    argmax_format: Callable[[int, int, int, int, torch.dtype], tuple[tuple[int, ...], torch.dtype]]


@cache
def passes(backend: str, operation: str) -> Passes:
    """Return the passes of ``operation`` on a backend's floor."""

    def find(module: str, name: str) -> Any:
        return getattr(importlib.import_module(f"seqconv.kernels.{backend}.{module}"), name)

    return Passes(
        find("conv_pool", f"{operation}_forward"),
        find("conv_pool_backward", f"{operation}_backward"),
        find("conv_pool", "argmax_format"),
    )
