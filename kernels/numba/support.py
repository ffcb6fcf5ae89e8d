"""Which calls the CPU kernels can serve. It imports no Numba: a call that they cannot serve does not load it."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence

import torch
from torch import Tensor

from .. import forks  # noqa: F401  (a fork must be noticed before the first call, which loads the rest)
from ..geometry import Convolution, Pool
from ..recurrence import Masks, Weights
from ..sliding import SlidingProgram
from ..source import Dense, Source

__all__ = [
    "MISSING",
    "avoid_norm",
    "avoid_recurrent",
    "refuse",
    "refuse_length",
    "refuse_norm",
    "refuse_recurrent",
    "refuse_sliding",
]

MISSING = "the package numba is not installed" if importlib.util.find_spec("numba") is None else None
DTYPES = (torch.float32, torch.float64)

# The least numbers of a convolution with a batch norm behind it, and the dtypes, for which the kernels are faster than
# torch. A training step costs 0.15 ms beside the passes over memory: on one core of a Zen 5, 32,000 numbers are 0.95
# times as fast as in torch, 65,000 1.2 times, 131,000 1.4 times. In float64 torch's convolution takes most of the time
# and is slower in channels-last memory: 0.9 to 1.0 times.
WORTH_A_NORM = 2**17
NORM_DTYPES: tuple[torch.dtype, ...] = (torch.float32,)

# torch's own LSTM (oneDNN), a whole stack of layers without dropout of the state, is faster in bfloat16 (1.2 to 1.8
# times on one core of a Zen 5) and where hidden sizes are large (1024: 1.1 to 1.3 times; 512: 0.8 to 1.0 times). Its
# GRU never is: it is composed of operations.
MOST_HIDDEN = 512

MOST_POSITIONS = 2**31 - 1  # argmax and the kernels' vectors count positions in 32 bits


def refuse(source: Source, convolution: Convolution) -> str | None:
    """Return why the fused conv stack cannot serve a call, its number of positions aside, or ``None``."""
    values = source.values
    if MISSING is not None:
        return MISSING
    if values.device.type != "cpu":
        return f"it serves tensors on the CPU, got one on {values.device}"
    if values.dtype not in DTYPES:
        return f"it serves float32 and float64, got {values.dtype}"
    if convolution.groups != 1:
        return f"it serves one group, got {convolution.groups}"
    if source.lengths is not None and convolution.padding != (0, 0):
        return f"it serves lengths without padding, got padding {convolution.padding}"
    return None


def refuse_sliding(_program: SlidingProgram, like: Tensor) -> str | None:
    """Return why a program cannot be evaluated, or ``None``; ``like`` has its dtype and device."""
    if MISSING is not None:
        return MISSING
    if like.device.type != "cpu":
        return f"it serves tensors on the CPU, got one on {like.device}"
    return None if like.dtype in DTYPES else f"it serves float32 and float64, got {like.dtype}"


def refuse_norm(source: Dense, weight: Tensor, convolution: Convolution, pool: Pool | None) -> str | None:
    """Return why the conv stack with a batch norm cannot serve a call, its number of positions aside, or ``None``."""
    if (reason := refuse(source, convolution._replace(groups=1))) is not None:  # torch convolves, any groups
        return reason
    left, right = convolution.padding
    if left != right:  # functions pad the input themselves
        return f"it serves the same padding on both sides, got {convolution.padding}"
    if weight.size(2) == 1 and convolution.stride > 1:
        # In channels-last memory torch's (2.13, oneDNN) gradient of such a weight writes where it may not: loops over
        # random shapes of these ended in segmentation faults, those over others did not.
        return f"it serves a stride of 1 where a kernel has one position, got {convolution.stride}"
    if pool is not None and pool.padding and pool.dilation > 1:
        return f"it serves a pool with padding or with dilation, got {pool.padding} and {pool.dilation}"
    if source.samples == 0 or weight.size(0) == 0:
        return f"it serves at least one sample and output channel, got {source.samples} and {weight.size(0)}"
    return None


def avoid_norm(source: Dense, weight: Tensor, convolution: Convolution) -> str | None:
    """Return why torch is faster on the conv stack with a batch norm, or ``None``."""
    if source.values.dtype not in NORM_DTYPES:
        return f"torch's composition is as fast in {source.values.dtype}"
    numbers = source.samples * weight.size(0) * convolution.output_length(source.length, weight.size(2))
    if numbers < WORTH_A_NORM:  # a number that may be a symbol of a graph, which takes no format
        return f"torch's composition is faster on a convolution of fewer than {WORTH_A_NORM:,} numbers, got {numbers}"
    return None


def refuse_length(source: Source, convolution: Convolution) -> str | None:
    """Return why the fused conv stack cannot serve a call's number of positions, or ``None``."""
    if source.length + sum(convolution.padding) > MOST_POSITIONS:
        return f"it serves fewer than 2**31 positions, got {source.length}"
    return None


def refuse_recurrent(input: Tensor, states: Sequence[Tensor], weights: Sequence[Weights], masks: Masks) -> str | None:
    """Return why the recurrent kernels cannot serve a call, or ``None``."""
    if MISSING is not None:
        return MISSING
    if input.device.type != "cpu":
        return f"it serves tensors on the CPU, got one on {input.device}"
    if input.dtype not in (*DTYPES, torch.float16, torch.bfloat16):
        return f"it serves float32, float64, float16 and bfloat16, got {input.dtype}"
    for one in (*states, *(one for own in weights for one in own), *masks):
        if one is not None and one.dtype != input.dtype:  # under autocast
            return f"it serves states, weights and masks of the input's dtype, {input.dtype}, got {one.dtype}"
    if weights[0].weight_hr is not None:
        return f"it serves layers without a projection, got proj_size {weights[0].weight_hr.size(0)}"
    for name, mask in zip(("input_mask", "recurrent_mask"), masks, strict=True):
        if mask is not None and mask.requires_grad:
            return f"it serves masks without gradients, got {name} with requires_grad=True"
    return None


def avoid_recurrent(cell: str, input: Tensor, weights: Sequence[Weights], masks: Masks) -> str | None:
    """Return why torch's own kernel is faster on a recurrent layer, or ``None``."""
    if cell != "lstm" or masks.recurrent is not None or (masks.input is not None and masks.input.size(0) > 1):
        return None  # torch has none
    if input.dtype == torch.bfloat16:
        return f"torch's LSTM is faster in {input.dtype}"
    hidden = weights[0].weight_hh.size(1)
    if input.dtype == torch.float32 and hidden > MOST_HIDDEN:
        return f"torch's LSTM is faster with more than {MOST_HIDDEN} hidden units, got {hidden}"
    return None
