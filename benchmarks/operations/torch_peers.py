"""The peers that every torch computation has: torch as it is, and torch.compile in its modes."""

from __future__ import annotations

import importlib.util
import itertools
import os
import shutil
import types
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from benchmarks.registry import Case, Provider

Function = Callable[..., Any]
TUNED = "torch.compile max-autotune"  # for GPUs; takes minutes to get ready
COMPILE_MODES = {"torch.compile": "default", TUNED: "max-autotune-no-cudagraphs"}
copies = itertools.count()


def torch_providers(function: Function) -> list[Provider]:
    """Return torch eager, the baseline, and torch.compile's modes on a plain torch ``function``."""

    def compiled(mode: str, _case: Case) -> Function:
        made: Function = torch.compile(own_code(function), mode=mode, dynamic=False)
        return made

    return [
        Provider("torch eager", lambda _case: function, unavailable=no_device, baseline=True),
        *(
            Provider(name, partial(compiled, mode), partial(cannot_compile, name), slow=name == TUNED, one_batch=True)
            for name, mode in COMPILE_MODES.items()
        ),
    ]


def cannot_compile(name: str, case: Case) -> str | None:
    """Return why the case's device cannot be used by a mode of torch.compile, or ``None``."""
    if reason := no_device(case):
        return reason
    if case.device == "cpu":
        if name == TUNED:
            return "is for GPUs"
        return None if shutil.which(os.environ.get("CXX", "g++")) else "torch.compile needs a C++ compiler"
    return None if importlib.util.find_spec("triton") else "torch.compile needs Triton on a GPU"


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
    absent = case.device.startswith("cuda") and not torch.cuda.is_available()
    return "there is no CUDA device" if absent else None


def on_cpu(case: Case) -> str | None:
    """Return why a case is not on the CPU, where alone some sides are at home; or ``None``."""
    return None if case.device == "cpu" else "is for CPUs"
