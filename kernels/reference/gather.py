"""First layers whose input is rows gathered from a table, in plain torch: the specification of the fused kernels.

A batch of token sequences and a batch of windows are both rows of a table, read through an index. ``V`` rows of ``C``
values, ``N`` samples, ``L`` positions; the other letters as in :mod:`~seqconv.kernels.reference.conv_pool`. The
gathered tensor is channels-last, and so is a pooled result.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..geometry import Convolution, Pool
from .conv_pool import conv1d_relu_global_max_pool1d, conv1d_relu_max_pool1d

__all__ = [
    "embed",
    "embedding_conv1d_relu_global_max_pool1d",
    "embedding_conv1d_relu_max_pool1d",
    "embedding_conv1ds_relu_global_max_pool1d",
    "window_conv1d_relu_global_max_pool1d",
    "window_conv1d_relu_max_pool1d",
    "windows",
]


def embedding_conv1d_relu_max_pool1d(
    tokens: Tensor,
    table: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    convolution: Convolution,
    pool: Pool,
    padding_idx: int | None,
    *,
    folded_dtype: torch.dtype | None = None,  # noqa: ARG001  (nothing is folded here)
) -> Tensor:
    """Return the conv stack's result on ``embedding(tokens, table)``.

    Shapes: ``tokens`` ``(N, L)`` int32 or int64, ``table`` ``(V, C)``, ``weight`` ``(O, C / groups, K)``, result
    ``(N, O, Q)``. Row ``padding_idx`` of the table is read like any other and gets no gradient.
    """
    return conv1d_relu_max_pool1d(embed(tokens, table, padding_idx), weight, bias, convolution, pool)


def embedding_conv1d_relu_global_max_pool1d(
    tokens: Tensor,
    table: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    convolution: Convolution,
    padding_idx: int | None,
    *,
    folded_dtype: torch.dtype | None = None,  # noqa: ARG001
) -> Tensor:
    """Return ``(N, O)``, the maximum over all positions; else as :func:`embedding_conv1d_relu_max_pool1d`."""
    return conv1d_relu_global_max_pool1d(embed(tokens, table, padding_idx), weight, bias, convolution)


def embedding_conv1ds_relu_global_max_pool1d(
    tokens: Tensor,
    table: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    convolutions: Sequence[Convolution],
    padding_idx: int | None,
    *,
    folded_dtype: torch.dtype | None = None,  # noqa: ARG001
) -> Tensor:
    """Return several layers' :func:`embedding_conv1d_relu_global_max_pool1d` on the same tokens, side by side.

    One or more weights ``(O_i, C / groups, K_i)``, for each a bias or ``None`` and a convolution; the result is
    ``(N, O_0 + O_1 + ..)``.
    """
    rows = embed(tokens, table, padding_idx)
    layers = zip(weights, biases, convolutions, strict=True)
    return torch.cat([conv1d_relu_global_max_pool1d(rows, *layer) for layer in layers], 1)


def window_conv1d_relu_max_pool1d(
    series: Tensor,
    starts: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    convolution: Convolution,
    pool: Pool,
    length: int,
    step: int,
) -> Tensor:
    """Return the conv stack's result on the windows ``series[starts[n] + step * l]``, ``l = 0 .. length - 1``.

    Shapes: ``series`` ``(V, C)``, ``starts`` ``(N,)`` int32 or int64, ``weight`` ``(O, C / groups, K)``, result
    ``(N, O, Q)``.
    """
    return conv1d_relu_max_pool1d(windows(series, starts, length, step), weight, bias, convolution, pool)


def window_conv1d_relu_global_max_pool1d(
    series: Tensor,
    starts: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    convolution: Convolution,
    length: int,
    step: int,
) -> Tensor:
    """Return ``(N, O)``, the maximum over all positions; else as :func:`window_conv1d_relu_max_pool1d`."""
    return conv1d_relu_global_max_pool1d(windows(series, starts, length, step), weight, bias, convolution)


def embed(tokens: Tensor, table: Tensor, padding_idx: int | None) -> Tensor:
    """Return the tokens' rows, ``(N, C, L)``."""
    return F.embedding(tokens, table, padding_idx).transpose(1, 2)


def windows(series: Tensor, starts: Tensor, length: int, step: int) -> Tensor:
    """Return the windows' rows, ``(N, C, L)``."""
    rows = starts.unsqueeze(1) + step * torch.arange(length, device=starts.device)
    return F.embedding(rows, series).transpose(1, 2)  # which takes no row from the end for a negative number
