"""Convolution, bias, ReLU and maximum pooling in plain torch: the specification of the fused kernels.

``N`` samples, ``C`` input and ``O`` output channels, ``L`` positions, kernel size ``K``, ``Q`` pooled positions, ``V``
rows of a table. :func:`compose` is differentiable, any number of times; :func:`forward` and :func:`backward` are its
two passes as all floors have them. The memory format follows the input, unless the pool asks for contiguous results: a
channels-last input (an ``(N, L, C)`` tensor seen through ``.transpose(1, 2)``) gives a channels-last result, any other
input a contiguous one. Gathered rows are channels-last.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..geometry import Convolution, Pool
from ..source import Dense, Source, Tokens, limits

__all__ = [
    "argmax_format",
    "backward",
    "behind",
    "compose",
    "compose_several",
    "convolved",
    "dense_gradients",
    "forward",
    "gathered",
    "is_channels_last",
    "maxima",
]

Gradients = tuple[Tensor | None, Tensor | None, Tensor | None]


def compose(source: Source, weight: Tensor, bias: Tensor | None, convolution: Convolution, pool: Pool | None) -> Tensor:
    """Return ``max_pool1d(relu(conv1d(input, weight, bias)))``, or the maximum over all positions without a ``pool``.

    ``weight`` is ``(O, C / groups, K)``, ``bias`` ``(O,)`` or ``None``, the result ``(N, O, Q)``, or ``(N, O)`` without
    a ``pool``. Of equal values in a window the first one gets the gradient; a NaN in a window is its maximum.
    """
    input = gathered(source)
    activation = _activation(input, source, weight, bias, convolution, pool)
    if pool is None:
        return activation.max(dim=2).values
    pooled = maxima(activation, pool)
    if source.lengths is not None:
        windows = limits(source.lengths, weight.size(2), convolution, pool)[1]
        pooled = pooled.masked_fill(behind(windows, pooled.size(2)), 0)
    if is_channels_last(source.values if isinstance(source, Dense) else input) and not pool.contiguous:
        return pooled.transpose(1, 2).contiguous().transpose(1, 2)
    return pooled


def maxima(activation: Tensor, pool: Pool) -> Tensor:
    """Return the maxima of windows; windows of one position are it."""
    if pool[:4] == (1, 1, 0, 1):
        return activation
    found: Tensor = F.max_pool1d(activation, *pool[:5])
    return found


def compose_several(
    source: Tokens,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    convolutions: Sequence[Convolution],
) -> Tensor:
    """Return several layers' global maxima on the same tokens, side by side: ``(N, O_0 + O_1 + ..)``."""
    rows = Dense(gathered(source), source.lengths)
    return torch.cat([compose(rows, *layer, None) for layer in zip(weights, biases, convolutions, strict=True)], 1)


def forward(
    source: Source,
    weight: Tensor,
    bias: Tensor | None,
    convolution: Convolution,
    pool: Pool | None,
    *,
    want_argmax: bool,
) -> tuple[Tensor, Tensor | None]:
    """Return :func:`compose`'s result and, if wanted, ``argmax``, ``(N, Q, O)``.

    ``argmax`` is the position of a window's maximum, counted from the window's beginning in steps of its dilation, or
    -1 where the activation is 0 and no gradient flows.
    """
    with torch.no_grad():
        output = compose(source, weight, bias, convolution, pool)
        if not want_argmax:
            return output, None
        activation = _activation(gathered(source), source, weight, bias, convolution, pool)
        if pool is None:
            at = activation.max(dim=2, keepdim=True).indices
        else:
            _, positions = F.max_pool1d(activation, *pool[:5], return_indices=True)
            starts = torch.arange(positions.size(2), device=positions.device) * pool.stride - pool.padding
            at = (positions - starts) // pool.dilation
        highest = output.unsqueeze(2) if pool is None else output
        shape, dtype = argmax_format(*_sizes(source, weight, convolution, pool), output.dtype)
        argmax = at.masked_fill(highest <= 0, -1).transpose(1, 2).to(dtype).contiguous()
        assert argmax.shape == shape
        return output, argmax


def backward(
    gradient: Tensor,
    argmax: Tensor,
    source: Source,
    weight: Tensor,
    convolution: Convolution,
    pool: Pool | None,
    *,
    wanted: tuple[bool, bool, bool],
) -> Gradients:
    """Return the gradients of the source's values, of weight and bias that are wanted, ``None`` for the others.

    ``gradient``, of any strides, is the gradient of the forward pass's result; ``argmax`` is what that pass returned.
    The gradients are torch's own, computed at every position: NaN where a row or a weight is not finite, also at
    positions that are no window's argmax.
    """
    with torch.no_grad():
        upstream = gradient.unsqueeze(2) if pool is None else gradient
        dx, dw, db = dense_gradients(upstream, argmax, gathered(source), weight, convolution, pool, wanted)
        if dx is not None and source.lengths is not None:
            dx = dx.masked_fill(behind(source.lengths, dx.size(2)), 0)  # where a weight that is not finite made a NaN
        if dx is None or isinstance(source, Dense):
            return dx, dw, db
        skipped = source.padding_idx if isinstance(source, Tokens) else None
        at_rows = dx.transpose(1, 2).contiguous()
        rows = source.values.size(0)
        dtable = torch.ops.aten.embedding_dense_backward(
            at_rows, _rows(source), rows, -1 if skipped is None else skipped, False
        )
        return dtable, dw, db


def argmax_format(
    samples: int,
    outputs: int,
    windows: int,
    greatest: int,
    dtype: torch.dtype,  # noqa: ARG001  (other floors pad rows to whole vectors)
) -> tuple[tuple[int, int, int], torch.dtype]:
    """Return the shape and dtype of ``argmax`` for tensors of ``dtype``; none of its numbers exceeds ``greatest``."""
    kinds = torch.int8, torch.int16, torch.int32
    return (samples, windows, outputs), next(kind for kind in kinds if greatest <= torch.iinfo(kind).max)


def dense_gradients(
    gradient: Tensor,
    argmax: Tensor,
    input: Tensor,
    weight: Tensor,
    convolution: Convolution,
    pool: Pool | None,
    wanted: tuple[bool, bool, bool],
) -> Gradients:
    """Return the gradients of ``input`` ``(N, C, L)``, ``weight`` and ``bias`` that are wanted, as torch computes them.

    They are computed from every position's gradient, with ``P`` times the arithmetic of the argmax positions alone.
    Only so they have the NaN that 0 times an infinity gives at other positions. ``gradient`` is ``(N, O, Q)``, ``(N, O,
    1)`` without a pool; rows of ``argmax`` may be longer than ``O``.
    """
    outputs, _, size = weight.shape
    stride, (left, right), dilation, groups = convolution
    positions = convolution.output_length(input.size(2), size)
    at = argmax[..., :outputs].transpose(1, 2).long()
    alive = at >= 0
    if pool is not None:
        starts = torch.arange(gradient.size(2), device=at.device) * pool.stride - pool.padding
        at = at * pool.dilation + starts
    at_positions = gradient.new_zeros(gradient.size(0), outputs, positions)
    at_positions.scatter_add_(2, at.where(alive, 0), gradient.where(alive, 0))
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


def gathered(source: Source) -> Tensor:
    """Return the source's rows as an input ``(N, C, L)``, 0 beyond a sample's length."""
    if isinstance(source, Dense):
        input = source.values
    else:
        skipped = source.padding_idx if isinstance(source, Tokens) else None
        # F.embedding, unlike indexing, does not count negative numbers from the end.
        input = F.embedding(_rows(source), source.values, skipped).transpose(1, 2)
    return input if source.lengths is None else input.masked_fill(behind(source.lengths, input.size(2)), 0)


def is_channels_last(input: Tensor) -> bool:
    """Tell whether ``(N, C, L)`` is channels-last in memory; a tensor that is contiguous as well is not."""
    return input.stride(1) == 1 and input.stride(2) >= input.size(1) and not input.is_contiguous()


def _activation(
    input: Tensor, source: Source, weight: Tensor, bias: Tensor | None, convolution: Convolution, pool: Pool | None
) -> Tensor:
    """Return the activation of the source's rows, with the least value possible beyond a cut sample's positions.

    That is minus infinity for a pool, as its padding has, and 0 for the global maximum.
    """
    activation = F.relu(convolved(input, weight, bias, convolution))
    if source.lengths is None:
        return activation
    positions, _ = limits(source.lengths, weight.size(2), convolution, None)
    return activation.masked_fill(behind(positions, activation.size(2)), 0 if pool is None else -torch.inf)


def behind(counts: Tensor, size: int) -> Tensor:
    """Return a mask ``(N, 1, size)`` of the positions from ``counts`` ``(N,)`` on."""
    return (torch.arange(size, device=counts.device) >= counts.unsqueeze(1)).unsqueeze(1)


def _rows(source: Source) -> Tensor:
    """Return the row numbers of a source that gathers, ``(N, L)``."""
    assert not isinstance(source, Dense)
    if isinstance(source, Tokens):
        return source.tokens
    return source.starts.unsqueeze(1) + source.step * torch.arange(source.length, device=source.starts.device)


def _sizes(source: Source, weight: Tensor, convolution: Convolution, pool: Pool | None) -> tuple[int, int, int, int]:
    """Return samples, outputs, windows and the greatest possible argmax."""
    outputs, _, size = weight.shape
    positions = convolution.output_length(source.length, size)
    if pool is None:
        return source.samples, outputs, 1, positions - 1
    return source.samples, outputs, pool.output_length(positions), pool.size - 1


def convolved(input: Tensor, weight: Tensor, bias: Tensor | None, convolution: Convolution) -> Tensor:
    """Return the convolution, ``(N, O, L)``; what ``F.conv1d`` cannot say is padding of two sizes."""
    left, right = convolution.padding
    if left != right:
        common = min(left, right)
        input, left = F.pad(input, (left - common, right - common)), common
    return F.conv1d(input, weight, bias, convolution.stride, left, convolution.dilation, convolution.groups)
