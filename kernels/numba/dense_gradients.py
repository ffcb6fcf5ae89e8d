"""The fused conv stack's gradients as torch computes them, from every position's gradient: P times the arithmetic.

For what the sparse gradients cannot give: the NaN that 0 times an infinity is, at positions that lost.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..geometry import Convolution, Pool

__all__ = ["dense_gradients"]


def dense_gradients(
    gradient: Tensor,
    argmax: Tensor,
    input: Tensor,
    weight: Tensor,
    convolution: Convolution,
    pool: Pool | None,
    wanted: tuple[bool, bool, bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Return the gradients of ``input``, ``weight`` and ``bias`` that are wanted.

    Arguments as in :func:`~.conv_pool_backward.conv1d_relu_max_pool1d_backward`; ``pool`` is ``None`` for the global
    maximum, whose ``gradient`` is ``(N, O, 1)``.
    """
    outputs, _, size = weight.shape
    stride, (left, right), dilation, groups = convolution
    positions = convolution.output_length(input.size(2), size)
    won = argmax[..., :outputs].transpose(1, 2).long()
    alive = won >= 0
    if pool is not None:
        starts = torch.arange(gradient.size(2), device=won.device) * pool.stride - pool.padding
        won = won * pool.dilation + starts
    at_positions = gradient.new_zeros(gradient.size(0), outputs, positions)
    at_positions.scatter_add_(2, won.where(alive, 0), gradient.where(alive, 0))
    common = min(left, right)
    padded = F.pad(input, (left - common, right - common)) if left != right else input
    dx, dw, db = torch.ops.aten.convolution_backward(
        at_positions, padded, weight.detach(), [outputs], [stride], [common], [dilation], False, [0], groups,
        list(wanted),
    )  # fmt: skip
    if dx is not None:
        dx = dx[..., left - common : left - common + input.size(2)]
        dx = dx.contiguous() if input.is_contiguous() else dx.transpose(1, 2).contiguous().transpose(1, 2)
    return dx, dw, db
