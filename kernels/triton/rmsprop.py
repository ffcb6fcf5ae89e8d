"""One step of RMSprop on a GPU: each number is read once and written once, for up to :data:`MOST` tensors in a launch.

torch goes over the tensors five times. Every result is rounded to the tensors' dtype as there; products and sums may
be joined into one operation of one rounding, so that float32 differs in the last bits. Served are contiguous float32,
float16 and bfloat16 tensors on a GPU; memory is written behind torch's back, which is told so.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from .launch import device_code, on_device

__all__ = ["DTYPES", "rmsprop_step"]

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
MOST = 16
BLOCK = 1024


def rmsprop_step(
    parameters: Sequence[Tensor],
    gradients: Sequence[Tensor],
    mean_squares: Sequence[Tensor],
    *,
    rate: float,
    decay: float,
    epsilon: float,
) -> None:
    """Change, in place, every ``mean_square`` ``v`` and ``parameter`` ``p`` by its gradient ``g``.

    ``v = decay * v + (1 - decay) * g**2``, then ``p = p - rate * g / (sqrt(v) + epsilon)``: as the reference does. All
    tensors are on one device.
    """
    three = [one for one in zip(parameters, gradients, mean_squares, strict=True) if one[0].numel()]
    for some in (three[first : first + MOST] for first in range(0, len(three), MOST)):
        sizes = tuple(parameter.numel() for parameter, _, _ in some)
        begins = (0, *itertools.accumulate(-(-size // BLOCK) for size in sizes))
        with on_device(some[0][0]):
            device_code("rmsprop").rmsprop_kernel[(begins[-1],)](
                *zip(*some, strict=True), sizes, begins, rate, decay, 1 - decay, epsilon,
                COUNT=len(some), BLOCK=BLOCK, num_warps=4,
            )  # fmt: skip
    torch.autograd.graph.increment_version([*parameters, *mean_squares])
