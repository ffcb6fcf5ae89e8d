"""Convolution, bias, ReLU and maximum pooling in plain torch: the specification of the fused kernels.

``N`` samples, ``C`` input and ``O`` output channels, ``L`` positions, kernel size ``K``, ``Q`` pooled positions.
Gradients come from torch's autograd. The memory format follows the input, unless the pool asks for contiguous results:
a channels-last input (an ``(N, L, C)`` tensor seen through ``.transpose(1, 2)``) gives a channels-last result, any
other input a contiguous one.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from ..geometry import Convolution, Pool

__all__ = ["conv1d_relu_global_max_pool1d", "conv1d_relu_max_pool1d", "is_channels_last"]


def conv1d_relu_max_pool1d(
    input: Tensor, weight: Tensor, bias: Tensor | None, convolution: Convolution, pool: Pool
) -> Tensor:
    """Return ``max_pool1d(relu(conv1d(input, weight, bias)))``.

    Shapes: ``input`` ``(N, C, L)``, ``weight`` ``(O, C / groups, K)``, ``bias`` ``(O,)`` or ``None``, result
    ``(N, O, Q)``. Of equal values in a window the first one gets the gradient; a NaN in a window is its maximum.
    """
    activation = F.relu(_conv1d(input, weight, bias, convolution))
    pooled = F.max_pool1d(activation, pool.size, pool.stride, pool.padding, pool.dilation, pool.ceil_mode)
    if is_channels_last(input) and not pool.contiguous:
        return pooled.transpose(1, 2).contiguous().transpose(1, 2)
    return pooled


def conv1d_relu_global_max_pool1d(
    input: Tensor, weight: Tensor, bias: Tensor | None, convolution: Convolution
) -> Tensor:
    """Return ``relu(conv1d(input, weight, bias))``'s maximum over all positions.

    Shapes: as in :func:`conv1d_relu_max_pool1d`, result ``(N, O)``. Of equal values the first one gets the gradient.
    """
    return F.relu(_conv1d(input, weight, bias, convolution)).max(dim=2).values


def is_channels_last(input: Tensor) -> bool:
    """Tell whether the channels of ``(N, C, L)`` are neighbours in memory; where both readings fit, they are not."""
    return input.stride(1) == 1 and input.stride(2) >= input.size(1) and not input.is_contiguous()


def _conv1d(input: Tensor, weight: Tensor, bias: Tensor | None, convolution: Convolution) -> Tensor:
    left, right = convolution.padding
    if left != right:
        common = min(left, right)
        input, left = F.pad(input, (left - common, right - common)), common
    return F.conv1d(input, weight, bias, convolution.stride, left, convolution.dilation, convolution.groups)
