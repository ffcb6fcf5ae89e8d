"""Which calls the CPU kernels can serve. Told without Numba: a call which they cannot serve does not load it."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import forks  # noqa: F401  (a fork must be noticed before the first call, which loads the rest)
from ..geometry import Convolution

__all__ = ["refuse_conv_pool", "refuse_length"]

DTYPES = (torch.float32, torch.float64)
MOST_POSITIONS = 2**31 - 1  # argmax and the kernels' vectors count positions in 32 bits


def refuse_conv_pool(source: Tensor, convolution: Convolution) -> str | None:
    """Return why the fused conv stack cannot serve a call of whatever size, or ``None``.

    ``source`` is the input, or the table that its rows are gathered from.
    """
    if source.device.type != "cpu":
        return f"it serves tensors on the CPU, got one on {source.device}"
    if source.dtype not in DTYPES:
        return f"it serves float32 and float64, got {source.dtype}"
    if convolution.groups != 1:
        return f"it serves one group, got {convolution.groups}"
    return None


def refuse_length(length: int, convolution: Convolution) -> str | None:
    """Return why the fused conv stack cannot serve so many positions, or ``None``."""
    if length + sum(convolution.padding) > MOST_POSITIONS:
        return f"it serves fewer than 2**31 positions, got {length}"
    return None
