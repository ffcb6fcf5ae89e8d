"""Which calls the GPU kernels can serve. Told without Triton: a call which they cannot serve does not load it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..geometry import Convolution, Pool
from ..recurrence import Masks, Weights
from ..sliding import SlidingProgram
from ..source import Dense, Source, Tokens
from .launch import architecture, precision, refuse_device

__all__ = [
    "avoid_norm",
    "avoid_recurrent",
    "refuse",
    "refuse_device",
    "refuse_norm",
    "refuse_recurrent",
    "refuse_sliding",
]

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
INEXACT = ("sm_100", "sm_101", "sm_103")  # seen in the code that Triton 3.7 makes for sm_100: tcgen05.mma.kind::tf32
LONGEST = 2**31 - 2**20  # positions are 32-bit numbers, and a tile's may run past the last
MOST_HIDDEN = 1024  # units of a recurrent layer


def refuse(source: Source, weight: Tensor, convolution: Convolution, pool: Pool | None) -> str | None:
    """Return why the kernels cannot serve a call, or ``None``."""
    return _refuse_numbers(source) or _refuse_geometry(source.length, weight, convolution, pool)


def refuse_norm(source: Dense, weight: Tensor, convolution: Convolution, pool: Pool | None) -> str | None:
    """Return why the conv stack with a norm by the batch's statistics cannot serve a call, or ``None``."""
    if (reason := refuse_device(source.values.device)) is not None:
        return reason
    if source.values.dtype not in DTYPES:
        return f"it serves float32, float16 and bfloat16, got {source.values.dtype}"
    left, right = convolution.padding
    if left != right:  # functions pad the input themselves
        return f"it serves the same padding on both sides, got {convolution.padding}"
    if pool is not None and pool.padding and pool.dilation > 1:  # windows without a position could be
        return f"it serves a pool with padding or with dilation, got {pool.padding} and {pool.dilation}"
    if source.samples == 0 or not weight.numel():
        return f"it serves at least one sample and channel, got {source.samples} and a weight {tuple(weight.shape)}"
    return _refuse_geometry(source.length, weight, convolution._replace(groups=1), pool)  # torch convolves


def avoid_norm(*_arguments: object) -> str:
    """Return why torch's composition is taken for that stack unless these kernels are asked for."""
    return "not yet measured on a GPU"


def refuse_recurrent(
    cell: str,  # noqa: ARG001
    input: Tensor,
    states: Sequence[Tensor],
    weights: Sequence[Weights],
    masks: Masks,
    lengths: Tensor | None,
) -> str | None:
    """Return why the recurrent kernels cannot serve a layer, or ``None``."""
    if (reason := _refuse_dtype(input)) is not None:
        return reason
    given = [*states, *(one for own in weights for one in own), *masks]
    tensors = [one for one in given if one is not None]
    if (other := next((one for one in tensors if one.dtype != input.dtype), None)) is not None:
        return f"it serves states, weights and masks of the input's dtype, {input.dtype}, got {other.dtype}"
    if (other := next((one for one in tensors if one.device != input.device), None)) is not None:
        return f"it serves states, weights and masks on the input's device, {input.device}, got one on {other.device}"
    if any(own.weight_hr is not None for own in weights):
        return "it serves no projection, got weight_hr"
    if not 0 < (hidden := weights[0].weight_hh.size(1)) <= MOST_HIDDEN:
        return f"it serves 1 to {MOST_HIDDEN} hidden units, got {hidden}"
    if not input.size(0) or not input.size(2):
        return f"it serves at least one step and feature, got an input {tuple(input.shape)}"
    if input.size(0) > LONGEST:
        return f"it serves at most {LONGEST} steps, got {input.size(0)}"
    if torch.is_grad_enabled() and any(one.requires_grad for one in masks if one is not None):
        return "it serves masks without gradients, got one that requires them"
    if lengths is not None and (lengths.dtype != torch.int64 or lengths.device.type != "cpu"):
        return f"it serves lengths of int64 on the CPU, got {lengths.dtype} on {lengths.device}"
    return None


def avoid_recurrent(*_arguments: object) -> str:
    """Return why another backend runs a recurrent layer unless these kernels are asked for."""
    return "not yet measured on a GPU"


def refuse_sliding(program: SlidingProgram, like: Tensor) -> str | None:
    """Return why a program cannot be evaluated, or ``None``; ``like`` has its dtype and device."""
    if (reason := _refuse_dtype(like)) is not None:
        return reason
    farthest = max((tap.offset for step in program.steps for tap in step.taps), default=0)
    return None if farthest <= LONGEST else f"it serves windows over at most {LONGEST} rows, got {farthest}"


def _refuse_numbers(source: Source) -> str | None:
    values = source.values
    if (reason := refuse_device(values.device)) is not None:
        return reason
    if source.lengths is not None:
        return "it serves whole samples, got lengths"
    if (reason := _refuse_dtype(values)) is not None:
        return reason
    if isinstance(source, Dense):
        return None
    index, name = (source.tokens, "tokens") if isinstance(source, Tokens) else (source.starts, "starts")
    if index.device != values.device:
        return f"it serves {name} on the rows' device, {values.device}, got them on {index.device}"
    if index.dtype not in (torch.int32, torch.int64):
        return f"it serves {name} of int32 and int64, got {index.dtype}"
    return None


def _refuse_dtype(values: Tensor) -> str | None:
    """Return why tensors on a device, of a dtype, cannot be multiplied as torch's switch for products says."""
    if (reason := refuse_device(values.device)) is not None:
        return reason
    if values.dtype not in DTYPES:
        return f"it serves float32, float16 and bfloat16, got {values.dtype}"
    if values.dtype == torch.float32 and architecture(values.device) in INEXACT and precision(values.dtype) == "ieee":
        return f"it serves float32 without TF32 on other GPUs: Triton computes it in TF32 on {values.device}"
    return None


def _refuse_geometry(length: int, weight: Tensor, convolution: Convolution, pool: Pool | None) -> str | None:
    """Return why samples of ``length`` positions cannot be convolved, or ``None``; strides have 32 bits."""
    steps = [convolution.stride, convolution.dilation]
    if pool is not None:
        steps += [pool.size, pool.stride * convolution.stride, pool.dilation * convolution.stride]
    if max(steps) > LONGEST:
        return f"it serves sizes, strides and dilations of at most {LONGEST} positions, got {max(steps)}"
    if convolution.groups != 1:
        return f"it serves one group, got {convolution.groups}"
    if not weight.numel():
        return f"it serves at least one channel, got a weight of shape {tuple(weight.shape)}"
    if length + sum(convolution.padding) > LONGEST:
        return f"it serves at most {LONGEST} positions, got {length}"
    return None
