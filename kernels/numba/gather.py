"""The conv stack on rows gathered from a table, compiled for the CPU: the forward pass, without the gathered tensor.

Two plans give the reference's results but for rounding, see :mod:`~seqconv.kernels.numba.gather_plans`. Under *folded*
a row's products with all weights are looked up in a folded table, which a caller that keeps table and weight may
:func:`fold` once and pass in; else the rows that the call uses are folded first. Under *direct* rows are convolved as
they are read: windows, whose rows are equally far apart, by the conv stack's own kernel. Tokens and starts, int32 or
int64, are read in place through their strides; the caller has checked that the table has every row. Not served: what
:mod:`~seqconv.kernels.numba.limits` names.

``argmax`` is that of :mod:`~seqconv.kernels.numba.conv_pool`, for the backward pass.

Where these kernels are slow: outputs fill vectors, so one alone costs as much as a vector of them; the global maximum
of a single sample keeps one thread busy; a first layer of few channels gains little from folding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..geometry import Convolution, Pool
from .conv_pool import CODES, DTYPES, argmax_format, forward_windows, padded_outputs
from .fold import KEPT, fold, folded_shape
from .gather_direct import forward_direct
from .gather_folded import forward_folded
from .gather_plans import forward_plan
from .gathered import (
    Index,
    Layer,
    argmaxes_format,
    describe,
    of_tokens,
    of_windows,
    split_argmaxes,
    windows_of,
)
from .occurrences import list_rows
from .threads import run, thread_count

__all__ = [
    "argmaxes_format",
    "embedding_conv1d_relu_global_max_pool1d_forward",
    "embedding_conv1d_relu_max_pool1d_forward",
    "embedding_conv1ds_relu_global_max_pool1d_forward",
    "fold",
    "folded_shape",
    "window_conv1d_relu_global_max_pool1d_forward",
    "window_conv1d_relu_max_pool1d_forward",
]

# Work that threads share is cut into so many blocks a thread: one that the system holds up leaves its rest to others.
BLOCKS = 8

# Rows are gathered for folding where at most this part of a table is used: a copy costs less than it saves.
WORTH_LISTING = 0.9

# Rows in use are not counted in tables of more than so many times the rows that could be: all are looked at.
WORTH_COUNTING = 8

# The rows that a call uses and every such row's number among them; None for both: all of them.
Used = tuple[Tensor | None, Any]


def embedding_conv1d_relu_max_pool1d_forward(
    tokens: Tensor,
    table: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    convolution: Convolution,
    pool: Pool,
    padding_idx: int | None = None,  # noqa: ARG001  (gradients alone know it)
    *,
    want_argmax: bool,
    folded: Tensor | None = None,
    plan: str | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Return the reference's ``embedding_conv1d_relu_max_pool1d`` and, if wanted, ``argmax``.

    ``tokens`` ``(N, L)``, ``table`` ``(V, C)``, ``weight`` ``(O, C, K)``, ``bias`` ``(O,)`` or ``None``; the result is
    ``(N, O, Q)``, channels-last, or contiguous if ``pool`` says so. ``folded`` is what :func:`fold` made of ``table``
    and ``weight``, in whichever dtype, ``plan`` ``"folded"`` or ``"direct"`` if it is not to be chosen.
    """
    index, samples = of_tokens(tokens), tokens.size(0)
    return _pooled(index, samples, table, weight, bias, convolution, pool, want_argmax, folded, plan)


def embedding_conv1d_relu_global_max_pool1d_forward(
    tokens: Tensor,
    table: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    convolution: Convolution,
    padding_idx: int | None = None,  # noqa: ARG001  (gradients alone know it)
    *,
    want_argmax: bool,
    folded: Tensor | None = None,
    plan: str | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Return ``(N, O)``, the maxima over all positions, as :func:`embedding_conv1d_relu_max_pool1d_forward` does."""
    index, samples = of_tokens(tokens), tokens.size(0)
    return _pooled(index, samples, table, weight, bias, convolution, None, want_argmax, folded, plan)


def embedding_conv1ds_relu_global_max_pool1d_forward(
    tokens: Tensor,
    table: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    convolutions: Sequence[Convolution],
    padding_idx: int | None = None,  # noqa: ARG001  (gradients alone know it)
    *,
    want_argmax: bool,
    folded: Sequence[Tensor] | None = None,
    plan: str | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Return ``(N, O_0 + O_1 + ..)``, several layers' maxima over all positions side by side, and, if wanted, argmax.

    ``folded`` has for each weight what :func:`fold` made of it. ``argmax`` is as :func:`argmaxes_format` says; the rest
    is as in :func:`embedding_conv1d_relu_max_pool1d_forward`.
    """
    index, samples = of_tokens(tokens), tokens.size(0)
    outputs = [weight.size(0) for weight in weights]
    kernels = [weight.size(2) for weight in weights]
    out = table.new_empty(samples, sum(outputs))
    code, argmax = CODES[0][1], None
    argmaxes: Sequence[Tensor | None] = [None] * len(outputs)
    if want_argmax:
        positions = [one.output_length(index.length, size) for one, size in zip(convolutions, kernels, strict=True)]
        shape, kind = argmaxes_format(samples, outputs, max(positions), table.dtype)
        code, argmax = dict(CODES)[kind], torch.empty(shape, dtype=kind, device=table.device)
        argmaxes = split_argmaxes(argmax, samples, outputs, table.dtype)
    used = cache(partial(_used, index, samples, table))
    begin = 0
    for i, weight in enumerate(weights):
        mine = out[:, begin : begin + outputs[i]].unsqueeze(2)
        begin += outputs[i]
        if mine.numel():
            layer = describe(index, samples, weight, convolutions[i], None, mine)
            ready = None if folded is None else folded[i]
            _compute(layer, index, table, weight, biases[i], True, mine, argmaxes[i], code, ready, plan, used)
    return out, argmax


def window_conv1d_relu_max_pool1d_forward(
    series: Tensor,
    starts: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    convolution: Convolution,
    pool: Pool,
    length: int,
    step: int,
    *,
    want_argmax: bool,
    folded: Tensor | None = None,
    plan: str | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Return the reference's ``window_conv1d_relu_max_pool1d`` and, if wanted, ``argmax``.

    ``series`` ``(V, C)``, ``starts`` ``(N,)``; the rest is as in :func:`embedding_conv1d_relu_max_pool1d_forward`.
    """
    if folded is None and plan != "folded" and series.size(1):
        windows = windows_of(series, starts, length, step)
        return forward_windows(windows, weight, bias, convolution, pool, want_argmax=want_argmax)
    index, samples = of_windows(starts, length, step), starts.size(0)
    return _pooled(index, samples, series, weight, bias, convolution, pool, want_argmax, folded, plan)


def window_conv1d_relu_global_max_pool1d_forward(
    series: Tensor,
    starts: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    convolution: Convolution,
    length: int,
    step: int,
    *,
    want_argmax: bool,
    folded: Tensor | None = None,
    plan: str | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Return ``(N, O)``, the maxima over all positions, as :func:`window_conv1d_relu_max_pool1d_forward` does."""
    if folded is None and plan != "folded" and series.size(1):
        windows = windows_of(series, starts, length, step)
        return forward_windows(windows, weight, bias, convolution, None, want_argmax=want_argmax)
    index, samples = of_windows(starts, length, step), starts.size(0)
    return _pooled(index, samples, series, weight, bias, convolution, None, want_argmax, folded, plan)


def _pooled(
    index: Index,
    samples: int,
    table: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    convolution: Convolution,
    pool: Pool | None,
    want_argmax: bool,
    folded: Tensor | None,
    plan: str | None,
) -> tuple[Tensor, Tensor | None]:
    outputs, _, size = weight.shape
    positions = convolution.output_length(index.length, size)
    windows = 1 if pool is None else pool.output_length(positions)
    out = table.new_empty(samples, windows, outputs).transpose(1, 2)
    layer = describe(index, samples, weight, convolution, pool, out)
    code, argmax = CODES[0][1], None
    if want_argmax:
        shape, kind = argmax_format(samples, outputs, windows, layer.pool_size - 1, table.dtype)
        code, argmax = dict(CODES)[kind], torch.empty(shape, dtype=kind, device=table.device)
    if out.numel():
        used = cache(partial(_used, index, samples, table))
        _compute(layer, index, table, weight, bias, pool is None, out, argmax, code, folded, plan, used)
    if pool is None:
        return out.squeeze(2), argmax
    return out.contiguous() if pool.contiguous else out, argmax


def _compute(
    layer: Layer,
    index: Index,
    table: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    is_global: bool,
    out: Tensor,
    argmax: Tensor | None,
    code: Any,
    folded: Tensor | None,
    plan: str | None,
    used: Callable[[], Used],
) -> None:
    like, channels, itemsize = DTYPES[table.dtype], table.size(1), table.element_size()
    width = padded_outputs(layer.outputs, like)
    shift = weight.new_zeros(width)
    if bias is not None:
        shift[: layer.outputs] = bias.detach()
    counts = (layer.samples, layer.positions, channels, layer.outputs, layer.size)
    rows, places = None, None
    if not channels:
        plan = "folded"  # a sum of nothing
    if plan is None and folded is None:
        plan, rows, places = _choose(layer, table, counts, used)
    elif folded is None and plan == "folded":
        rows, places = used()
    results = (shift.data_ptr(), out.data_ptr(), 0 if argmax is None else argmax.data_ptr())
    chunks = -(-layer.windows // layer.chunk)
    parts = layer.samples * chunks
    additions = layer.samples * layer.positions * layer.size * width
    threads = thread_count(parts, additions * (1 if plan == "folded" or folded is not None else channels))
    blocks = min(parts, threads * BLOCKS) if threads > 1 else 1
    if plan == "direct" and folded is None:
        packed = weight.new_zeros(layer.size, channels, width)
        packed[..., : layer.outputs] = weight.detach().permute(2, 1, 0)
        source = (table.data_ptr(), table.stride(0) * itemsize, table.stride(1) * itemsize, channels)

        def convolve(begin: int, end: int, threads: int, launch: int) -> None:
            given = (packed.data_ptr(), *results)
            forward_direct(layer, index, source, given, blocks, is_global, like, code, begin, end, threads, launch)

        run(convolve, blocks, threads)
        return
    ready = fold(table, weight, rows) if folded is None else folded
    kept = KEPT[ready.dtype]

    def add(begin: int, end: int, threads: int, launch: int) -> None:
        given = (ready.data_ptr(), 0 if places is None else places.ctypes.data, *results)
        forward_folded(layer, index, given, blocks, is_global, like, code, kept, begin, end, threads, launch)

    run(add, blocks, threads)


def _choose(
    layer: Layer, table: Tensor, counts: tuple[int, ...], used: Callable[[], Used]
) -> tuple[str, Tensor | None, Any]:
    """Return the plan and, if it is to fold, the rows to fold and their places."""
    samples, positions, *sizes = counts
    most = min(table.size(0), samples * layer.length)
    least = 1 if layer.length else 0
    # Rows are counted only where their number decides.
    names = {forward_plan(samples, positions, rows, *sizes).name for rows in (least, most)}
    if names == {"direct"} or ("direct" in names and table.size(0) > WORTH_COUNTING * most):
        return "direct", None, None
    rows, places = used()
    number = table.size(0) if rows is None else rows.size(0)
    if forward_plan(samples, positions, number, *sizes).name == "direct":
        return "direct", None, None
    return "folded", rows, places


def _used(index: Index, samples: int, table: Tensor) -> Used:
    """Return the rows in use and every such row's number among them, ``None`` for both where nearly all are in use."""
    places = np.zeros(table.size(0), np.int32)
    rows = torch.empty(min(table.size(0), samples * index.length), dtype=torch.int64, device=table.device)
    used = list_rows(index, samples, places, rows.numpy())
    if used > WORTH_LISTING * table.size(0):
        return None, None
    return rows[:used], places
