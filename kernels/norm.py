"""A batch norm behind a convolution: what it is given beside the convolution, and its fold into it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Norm", "NormSaved", "folded"]


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


class NormSaved(NamedTuple):
    """What the backward pass of a conv stack with a batch norm in training mode needs of the forward pass.

    ``values`` are the windows' values before the norm, ``argmax`` their places in the windows, ``statistics`` the rows
    mean, variance, rstd, ``a`` and ``b`` of every channel (which the norm makes ``a y + b`` of ``y``), ``activation``
    is the convolution. Each floor says how they lie in memory, and which have no element.
    """

    values: Tensor
    argmax: Tensor
    statistics: Tensor
    activation: Tensor


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
