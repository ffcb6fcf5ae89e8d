"""Convolution, batch norm, ReLU and maximum pooling in plain torch: the specification of the normalised conv stack.

Letters and memory formats are those of :mod:`.conv_pool`.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from ..geometry import Convolution, Pool
from ..norm import Norm
from ..source import Dense
from .conv_pool import convolved, is_channels_last, maxima

__all__ = ["compose", "pooled"]


def compose(
    source: Dense, weight: Tensor, bias: Tensor | None, norm: Norm, convolution: Convolution, pool: Pool | None
) -> Tensor:
    """Return ``max_pool1d(relu(batch_norm(conv1d(input, weight, bias), training=True)))``.

    Mean and variance are those of the batch, over samples and positions; the running statistics are updated in place,
    as ``F.batch_norm`` does. Without a ``pool`` the maximum is over all positions. Shapes: as in
    :func:`.conv_pool.compose`.
    """
    activation = convolved(source.values, weight, bias, convolution)
    normalised = F.batch_norm(activation, *norm[:4], training=True, momentum=norm.momentum, eps=norm.eps)
    return pooled(F.relu(normalised), pool, is_channels_last(source.values))


def pooled(activation: Tensor, pool: Pool | None, channels_last: bool) -> Tensor:
    """Return the maxima of ``(N, O, L)``, ``channels_last`` unless the pool asks for contiguous results."""
    if pool is None:
        return activation.max(dim=2).values
    output = maxima(activation, pool)
    if channels_last and not pool.contiguous:
        return output.transpose(1, 2).contiguous().transpose(1, 2)
    return output.contiguous()
