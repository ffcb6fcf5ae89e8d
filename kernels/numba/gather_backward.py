"""The conv stack on gathered rows: gradients of table, weight and bias on the CPU.

Two plans, see :mod:`~seqconv.kernels.numba.gather_plans`: *folded* sums the gradients that meet at a row of the table
and multiplies once a row, *direct* multiplies for every winner. Duplicate rows are summed in a fixed order, without
atomics: the same bits on every run with the same number of threads.

torch's dense gradients multiply rows and weights by the zeros of the positions that lost, too, and so get NaN from an
infinity or a NaN there. Such numbers are looked for on the way, and where there are any the rows are gathered for
torch's own gradients (:mod:`.dense_gradients`).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..geometry import Convolution, Pool
from ..reference.gather import windows as windows_in_memory
from .conv_pool_backward import (
    backward_windows,
    conv1d_relu_global_max_pool1d_backward,
    conv1d_relu_max_pool1d_backward,
)
from .dense_gradients import dense_gradients
from .gather_backward_direct import backward_direct
from .gather_backward_folded import backward_folded
from .gather_plans import backward_plan
from .gathered import Index, Layer, describe, of_tokens, of_windows, split_argmaxes, windows_of
from .occurrences import copy_rows_of

__all__ = [
    "embedding_conv1d_relu_global_max_pool1d_backward",
    "embedding_conv1d_relu_max_pool1d_backward",
    "embedding_conv1ds_relu_global_max_pool1d_backward",
    "window_conv1d_relu_global_max_pool1d_backward",
    "window_conv1d_relu_max_pool1d_backward",
]

Gradients = tuple[Tensor | None, Tensor | None, Tensor | None]


def embedding_conv1d_relu_max_pool1d_backward(
    gradient: Tensor,
    argmax: Tensor,
    tokens: Tensor,
    table: Tensor,
    weight: Tensor,
    convolution: Convolution,
    pool: Pool,
    padding_idx: int | None = None,
    *,
    wanted: tuple[bool, bool, bool],
    plan: str | None = None,
) -> Gradients:
    """Return the gradients of ``table``, ``weight`` and ``bias``, of those that are wanted, ``None`` for the others.

    ``gradient`` ``(N, O, Q)``, of any strides, is that of the forward pass' result, ``argmax`` what it kept. Row
    ``padding_idx`` of the table gets zeros. ``plan`` is ``"folded"`` or ``"direct"`` if it is not to be chosen.
    """
    index = of_tokens(tokens)
    return _backward(gradient, argmax, index, table, weight, convolution, pool, padding_idx, wanted, plan)


def embedding_conv1d_relu_global_max_pool1d_backward(
    gradient: Tensor,
    argmax: Tensor,
    tokens: Tensor,
    table: Tensor,
    weight: Tensor,
    convolution: Convolution,
    padding_idx: int | None = None,
    *,
    wanted: tuple[bool, bool, bool],
    plan: str | None = None,
) -> Gradients:
    """Return the global layer's, ``gradient`` ``(N, O)``, as :func:`embedding_conv1d_relu_max_pool1d_backward` does."""
    index, upstream = of_tokens(tokens), gradient.unsqueeze(2)
    return _backward(upstream, argmax, index, table, weight, convolution, None, padding_idx, wanted, plan)


def embedding_conv1ds_relu_global_max_pool1d_backward(
    gradient: Tensor,
    argmax: Tensor,
    tokens: Tensor,
    table: Tensor,
    weights: Sequence[Tensor],
    convolutions: Sequence[Convolution],
    padding_idx: int | None = None,
    *,
    wanted: tuple[bool, bool, bool],
    plan: str | None = None,
) -> tuple[Tensor | None, list[Tensor] | None, list[Tensor] | None]:
    """Return the gradients of ``table``, of all ``weights`` and of all biases, of those that are wanted.

    ``gradient`` is ``(N, O_0 + O_1 + ..)``. The rest is as in :func:`embedding_conv1d_relu_max_pool1d_backward`.
    """
    index, outputs = of_tokens(tokens), [weight.size(0) for weight in weights]
    argmaxes = split_argmaxes(argmax, tokens.size(0), outputs, table.dtype)
    dtable: Tensor | None = None
    dweights, dbiases = [], []
    for i, upstream in enumerate(gradient.unsqueeze(2).split(outputs, 1)):
        given = (upstream, argmaxes[i], index, table, weights[i], convolutions[i], None, padding_idx, wanted, plan)
        one, dweight, dbias = _backward(*given, dtable)
        dtable = one
        dweights += [] if dweight is None else [dweight]
        dbiases += [] if dbias is None else [dbias]
    return dtable, dweights if wanted[1] else None, dbiases if wanted[2] else None


def window_conv1d_relu_max_pool1d_backward(
    gradient: Tensor,
    argmax: Tensor,
    series: Tensor,
    starts: Tensor,
    weight: Tensor,
    convolution: Convolution,
    pool: Pool,
    length: int,
    step: int,
    *,
    wanted: tuple[bool, bool, bool],
    plan: str | None = None,
) -> Gradients:
    """Return the gradients of ``series``, ``weight`` and ``bias`` that are wanted.

    The rest is as in :func:`embedding_conv1d_relu_max_pool1d_backward`.
    """
    if not wanted[0] and plan != "folded" and series.size(1):
        return _windows(gradient, argmax, series, starts, weight, convolution, pool, length, step, wanted)
    index = of_windows(starts, length, step)
    return _backward(gradient, argmax, index, series, weight, convolution, pool, None, wanted, plan)


def window_conv1d_relu_global_max_pool1d_backward(
    gradient: Tensor,
    argmax: Tensor,
    series: Tensor,
    starts: Tensor,
    weight: Tensor,
    convolution: Convolution,
    length: int,
    step: int,
    *,
    wanted: tuple[bool, bool, bool],
    plan: str | None = None,
) -> Gradients:
    """Return the global layer's, ``gradient`` ``(N, O)``, as :func:`window_conv1d_relu_max_pool1d_backward` does."""
    upstream = gradient.unsqueeze(2)
    if not wanted[0] and plan != "folded" and series.size(1):
        return _windows(upstream, argmax, series, starts, weight, convolution, None, length, step, wanted)
    index = of_windows(starts, length, step)
    return _backward(upstream, argmax, index, series, weight, convolution, None, None, wanted, plan)


def _windows(
    gradient: Tensor,
    argmax: Tensor,
    series: Tensor,
    starts: Tensor,
    weight: Tensor,
    convolution: Convolution,
    pool: Pool | None,
    length: int,
    step: int,
    wanted: tuple[bool, bool, bool],
) -> Gradients:
    """Return the gradients of weight and bias, by the conv stack's own kernel."""
    if series.stride(1) == 1 or series.size(1) == 1:
        windows = windows_of(series, starts, length, step)
        found = backward_windows(gradient, argmax, windows, weight, convolution, pool, wanted=wanted[1:])
        if found is not None:
            return None, *found
    rows = windows_in_memory(series.detach(), starts, length, step)
    if pool is None:
        return conv1d_relu_global_max_pool1d_backward(
            gradient.squeeze(2), argmax, rows, weight, convolution, wanted=wanted
        )
    return conv1d_relu_max_pool1d_backward(gradient, argmax, rows, weight, convolution, pool, wanted=wanted)


def _backward(
    gradient: Tensor,
    argmax: Tensor,
    index: Index,
    table: Tensor,
    weight: Tensor,
    convolution: Convolution,
    pool: Pool | None,
    padding_idx: int | None,
    wanted: tuple[bool, bool, bool],
    plan: str | None,
    others: Tensor | None = None,
) -> Gradients:
    """Return the gradients; that of the table is added to ``others`` if there are, whose memory it may take."""
    if not gradient.numel() or not weight.numel():
        dtable = table.new_zeros(table.shape) if wanted[0] and others is None else others
        return (
            dtable,
            weight.new_zeros(weight.shape) if wanted[1] else None,
            gradient.sum((0, 2)) if wanted[2] else None,
        )
    layer = describe(index, gradient.size(0), weight, convolution, pool, gradient)
    if plan is None:
        rows = min(table.size(0), layer.samples * layer.length)  # at most
        plan = backward_plan(
            layer.samples,
            layer.length,
            layer.windows,
            rows,
            table.size(1),
            layer.outputs,
            layer.size,
            wanted=wanted[:2],
        ).name
    given = (gradient, argmax, layer, index, table, weight, padding_idx, wanted)
    if plan == "direct":
        found = backward_direct(*given, others)
        if found is not None:
            return found
    else:
        found = backward_folded(*given)
    dtable, dweight, dbias = found or _dense(*given, convolution, pool)
    if dtable is not None and others is not None:
        dtable += others
    return dtable, dweight, dbias


def _dense(
    gradient: Tensor,
    argmax: Tensor,
    layer: Layer,
    index: Index,
    table: Tensor,
    weight: Tensor,
    padding_idx: int | None,
    wanted: tuple[bool, bool, bool],
    convolution: Convolution,
    pool: Pool | None,
) -> Gradients:
    """Return torch's own gradients."""
    rows = torch.empty(layer.samples, layer.length, dtype=torch.int64, device=table.device)
    copy_rows_of(index, layer.samples, rows.numpy())
    x = table.detach()[rows].transpose(1, 2)
    dx, dweight, dbias = dense_gradients(gradient, argmax, x, weight, convolution, pool, wanted)
    if dx is None:
        return None, dweight, dbias
    skipped = -1 if padding_idx is None else padding_idx
    at_rows = dx.transpose(1, 2).contiguous()
    dtable = torch.ops.aten.embedding_dense_backward(at_rows, rows, table.size(0), skipped, False)
    return dtable, dweight, dbias
