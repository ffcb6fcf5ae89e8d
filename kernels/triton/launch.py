"""What every launch needs: the device, the precision that torch asks for, and how a tensor lies in memory."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import math
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = [
    "Imagined",
    "Layout",
    "architecture",
    "argmax_dtype",
    "device_code",
    "imagined",
    "imagining",
    "interpreted",
    "kind_of",
    "layout_of",
    "on_device",
    "precision",
    "processors",
    "refuse_device",
]

VECTOR_BYTES = 16  # no load of one thread is wider
OLDEST = 80  # the architecture from which on bfloat16 and TF32 products exist
INSTALLED = importlib.util.find_spec("triton") is not None  # looked up here: Dynamo cannot trace it


class Layout(NamedTuple):
    """How an ``(N, C, L)`` tensor whose channels are neighbours lies in memory; strides are in units of ``align``.

    ``align``, in elements, depends on the number of channels, never on lengths, where the tensor is packed.
    """

    stride_n: int
    stride_l: int
    align: int


def layout_of(tensor: Tensor) -> Layout:
    """Return the layout of a tensor whose channels are neighbours in memory."""
    stride_n, _, stride_l = tensor.stride()
    if tensor.size(2) == 1:
        stride_l = tensor.size(1)  # as the next position's would be
    align = math.gcd(VECTOR_BYTES // tensor.element_size(), stride_l, stride_n if tensor.size(0) > 1 else 0)
    return Layout(stride_n // align, stride_l // align, align)


@functools.cache
def device_code(name: str) -> ModuleType:
    """Return a module of :mod:`.device`, which loads Triton."""
    return importlib.import_module(f".device.{name}", __package__)


def interpreted() -> bool:
    """Tell whether Triton's interpreter is asked for: it takes tensors on the CPU."""
    return os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "on", "yes", "y")


def refuse_device(device: torch.device) -> str | None:
    """Return why kernels cannot run on a device, or ``None``. Triton is looked for, not imported."""
    if device.type != ("cpu" if interpreted() else "cuda"):
        return f"it serves tensors on a GPU (or, under TRITON_INTERPRET=1, on the CPU), got one on {device}"
    if not INSTALLED:
        return "the package triton is not installed"
    found = architecture(device)
    if found.startswith("sm_") and int(found.removeprefix("sm_")) < OLDEST:
        return f"it serves GPUs of architecture sm_{OLDEST} or later, got {found}"
    return None


class Imagined(NamedTuple):
    """A GPU that need not be there, of which launches are noted, not made: for those who compile and count."""

    architecture: str
    precision: str  # of float32 products
    processors: int
    few: bool  # its calls have few windows, see :func:`.split.serves`
    note: Callable[[Any, tuple[int, ...], tuple[Any, ...], dict[str, Any]], None]


_imagined: Imagined | None = None


def imagined() -> Imagined | None:
    """Return the GPU that is imagined now."""
    return _imagined


@contextmanager
def imagining(gpu: Imagined) -> Iterator[None]:
    """Have all calls of this process, on tensors without memory, go on as if that GPU were there."""
    global _imagined
    _imagined = gpu
    try:
        yield
    finally:
        _imagined = None


def precision(dtype: torch.dtype) -> str:
    """Return what a float32 product is computed in, ``"tf32"`` or ``"ieee"``, by torch's switch for convolutions."""
    if _imagined is not None:
        return _imagined.precision
    if dtype == torch.float32 and torch.backends.cudnn.conv.fp32_precision == "tf32":  # type: ignore[attr-defined]
        return "tf32"
    return "ieee"


def kind_of(dtype: torch.dtype) -> str:
    """Return the kind of number that products of ``dtype`` are, as :class:`.configurations.Layer` has it."""
    return precision(dtype) if dtype == torch.float32 else "16"


def argmax_dtype(greatest: int, windows: int) -> torch.dtype:
    """Return the narrowest dtype of numbers from -1 to ``greatest``.

    Where one window sees everything, ``greatest`` is a length, and kernels are compiled anew for another dtype: int16
    serves all short ones.
    """
    if windows == 1:
        greatest = max(greatest, 2**15 - 1)
    return next(kind for kind in (torch.int8, torch.int16, torch.int32) if greatest <= torch.iinfo(kind).max)


def on_device(tensor: Tensor) -> AbstractContextManager[object]:
    """Return a context in which kernels are launched on the tensor's device, and on that device's current stream."""
    if tensor.device.type != "cuda" or tensor.device.index == torch.cuda.current_device():
        return nullcontext()
    return torch.cuda.device(tensor.device)


def processors(device: torch.device) -> int:
    """Return the number of the device's multiprocessors."""
    return _processors(device) if _imagined is None else _imagined.processors


@functools.cache
def _processors(device: torch.device) -> int:
    return int(torch.cuda.get_device_properties(device).multi_processor_count) if device.type == "cuda" else 1


def architecture(device: torch.device) -> str:
    """Return the device's architecture as configurations name it: ``sm_90``, ``gfx942``, ``cpu``."""
    if _imagined is not None:
        return _imagined.architecture
    return _architecture(device) if torch.compiler.is_compiling() else _remembered(device)


def _architecture(device: torch.device) -> str:
    if device.type != "cuda":
        return "cpu"
    properties = torch.cuda.get_device_properties(device)  # which Dynamo calls and takes for constant
    if torch.version.hip is not None:
        return str(properties.gcnArchName).partition(":")[0]
    return f"sm_{properties.major}{properties.minor}"


_remembered = functools.cache(_architecture)  # whose cache Dynamo would pass by, with a warning
