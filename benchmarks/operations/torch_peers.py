"""The peers that every torch computation has: torch as it is, and torch.compile in its modes."""

from __future__ import annotations

import importlib.util
import itertools
import os
import shutil
import types
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.registry import Case, Provider

__all__ = ["COMPILE_MODES", "cannot_compile", "no_device", "torch_providers"]

Function = Callable[..., Any]
COMPILE_MODES = {
    "torch.compile": "default",
    "torch.compile max-autotune": "max-autotune-no-cudagraphs",
}
GPU_ONLY = ("torch.compile max-autotune",)
copies = itertools.count()


def torch_providers(function: Function) -> list[Provider]:
    """Return torch eager, the baseline, and torch.compile's modes on a plain torch ``function``."""
    return [
        Provider("torch eager", lambda _case: function, unavailable=no_device, baseline=True),
        *(compiled(name, mode, function) for name, mode in COMPILE_MODES.items()),
    ]


def compiled(name: str, mode: str, function: Function) -> Provider:
    """Return torch.compile in one of its modes as a provider."""

    def make(_case: Case) -> Function:
        made: Function = torch.compile(own_code(function), mode=mode, dynamic=False)
        return made

    def unavailable(case: Case) -> str | None:
        if reason := no_device(case):
            return reason
        if name in GPU_ONLY and case.device == "cpu":
            return "is for GPUs"
        return cannot_compile(case)

    return Provider(name, make, unavailable=unavailable, slow=name in GPU_ONLY, one_batch=True)


def cannot_compile(case: Case) -> str | None:
    """Return what torch.compile lacks for the case's device, or ``None``."""
    if case.device == "cpu" and not shutil.which(os.environ.get("CXX", "g++")):
        return "torch.compile needs a C++ compiler"
    if case.device != "cpu" and importlib.util.find_spec("triton") is None:
        return "torch.compile needs Triton on a GPU"
    return None


def own_code(function: Function) -> Function:
    """Return ``function`` with a code object of its own.

    torch.compile keeps what it compiled by code object: after eight cases that share one it would quietly run eagerly,
    and every call would look through the other cases' guards first.
    """
    assert isinstance(function, types.FunctionType)
    code = function.__code__.replace(co_name=f"{function.__name__}_{next(copies)}")
    copy = types.FunctionType(code, function.__globals__, code.co_name, function.__defaults__, function.__closure__)
    copy.__kwdefaults__ = function.__kwdefaults__
    return copy


def no_device(case: Case) -> str | None:
    """Return why the case's device cannot be used, or ``None``."""
    if case.device.startswith("cuda") and not torch.cuda.is_available():
        return "there is no CUDA device"
    return None
