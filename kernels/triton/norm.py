"""A batch norm's running statistics folded into a convolution on a GPU, in one launch instead of torch's seven."""

from __future__ import annotations

import torch
from torch import Tensor

from .launch import INSTALLED, device_code, on_device
from .replay import NVIDIA, empty, launch, replayed

__all__ = ["DTYPES", "MOST", "SERVES", "folded"]

SERVES = INSTALLED and NVIDIA

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
MOST = 2**40  # numbers of a weight that it serves: all
AT_ONCE = 1024  # of an output's


@replayed
def folded(
    weight: Tensor,
    bias: Tensor | None,
    mean: Tensor,
    var: Tensor,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """Return what :func:`seqconv.kernels.norm.folded` does, computed in float32.

    ``weight`` is ``(O, C / groups, K)``, contiguous, the others are ``(O,)``, contiguous or ``None``, all of
    :data:`DTYPES`.
    """
    outputs, numbers = weight.size(0), weight[0].numel()
    scaled, shift = empty(weight, tuple(weight.shape)), empty(weight, (outputs,))
    with on_device(weight):
        launch(
            device_code("norm").fold_norm_kernel, (outputs,),
            weight, bias, mean, var, norm_weight, norm_bias, scaled, shift, numbers, eps,
            BLOCK=min(AT_ONCE, 1 << max(numbers - 1, 15).bit_length()), num_warps=4,
        )  # fmt: skip
    return scaled, shift
