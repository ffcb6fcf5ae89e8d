"""A batch norm behind a convolution: what it is given beside the convolution, and its fold into it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Norm", "folded"]


class Norm(NamedTuple):
    """The tensors, each ``(O,)`` or ``None``, and numbers of a batch norm over ``O`` channels, as in ``F.batch_norm``.

    The running statistics are both given or both ``None``. ``momentum`` is the share of a new batch in them.
    """

    running_mean: Tensor | None
    running_var: Tensor | None
    weight: Tensor | None
    bias: Tensor | None
    momentum: float = 0.1
    eps: float = 1e-5


def folded(weight: Tensor, bias: Tensor | None, norm: Norm) -> tuple[Tensor, Tensor]:
    """Return weight and bias of the convolution that gives a convolution's result normalised by running statistics.

    ``weight`` is ``(O, C / groups, K)``, ``bias`` ``(O,)`` or ``None``. Differentiable with respect to all
    tensors. Half floats beside a norm of float32 are folded in that.
    """
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = torch.rsqrt(norm.running_var + norm.eps)
    if norm.weight is not None:
        scale = scale * norm.weight
    centre = norm.running_mean if bias is None else norm.running_mean - bias
    shift = -centre * scale if norm.bias is None else torch.addcmul(norm.bias, centre, scale, value=-1)
    scaled = weight * scale[:, None, None]
    if scaled.dtype != weight.dtype or shift.dtype != weight.dtype:
        scaled, shift = scaled.to(weight.dtype), shift.to(weight.dtype)
    return scaled, shift
