"""The conv stack on rows gathered from a table, compiled for the CPU: the forward pass, without the gathered tensor.

Two plans give the reference's results but for rounding, see :mod:`~seqconv.kernels.plans`. *Folded* looks up a row's
products with all weights in a folded table. A caller whose table and weight stay the same may :func:`fold` them once
and pass the result in; else the rows that the call uses are folded first. *Direct* convolves the rows as they are read.
Tokens and starts, int32 or int64, are read in place through their strides; the caller has checked that the table has
every row.

Where these kernels are slow: a single output costs as much as a vector of them; the global maximum of a single sample
runs on one thread; a layer of few input channels gains little from folding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, lru_cache, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..geometry import Convolution, Pool
from ..plans import CPU, forward_plan
from ..source import Tokens, Windows
from .dense import DTYPES, argmax_integers, limits_table, padded_outputs
from .fold import KEPT, fold, folded_shape
from .gather_direct import forward_direct
from .gather_folded import forward_folded
from .gathered import Descriptor, Index, argmaxes_format, descriptor_of, index_of, split_argmaxes
from .occurrences import rows_in_use
from .runtime.threads import run, thread_count

__all__ = ["argmaxes_format", "fold", "folded_shape", "forward", "forward_several"]

# Blocks per thread where threads share the work: when the system delays one thread, the others take its blocks.
BLOCKS = 8

# Greatest part of a table's rows in use for which these alone are folded: gathering them then costs less than it saves.
WORTH_LISTING = 0.9

# Tables of more than this many times the rows that could be in use are not searched: a search looks at every row.
WORTH_COUNTING = 8

# The rows that a call uses, and for each row its place among them; None for both: all rows.
Used = tuple[Tensor | None, Any]


def forward(
    source: Tokens | Windows,
    weight: Tensor,
    bias: Tensor | None,
    convolution: Convolution,
    pool: Pool | None,
    want_argmax: bool,
    folded: Tensor | None,
    plan: str | None,
) -> tuple[Tensor, Tensor | None]:
    """Return :func:`.conv_pool.forward`'s result and, if wanted, ``argmax``."""
    index, samples, table = index_of(source), source.samples, source.values
    outputs, _, size = weight.shape
    windows = _windows(index.length, size, convolution, pool)
    out = table.new_empty(samples, windows, outputs).transpose(1, 2)
    layer = descriptor_of(index, samples, weight, convolution, pool, out)
    if source.lengths is not None:
        cut = limits_table(source.lengths, size, convolution, pool)
        layer = layer._replace(limits=cut.ctypes.data)
    (kind, argmax_zero), argmax = argmax_integers(layer.pool_size - 1), None
    if want_argmax:
        width = padded_outputs(outputs, DTYPES[table.dtype])
        argmax = torch.empty((samples, windows, width), dtype=kind, device=table.device)
    if out.numel():
        used = cache(partial(_used, index, samples, table))
        _compute(layer, index, table, weight, bias, pool is None, out, argmax, argmax_zero, folded, plan, used)
    if pool is None:
        return out.squeeze(2), argmax
    return out.contiguous() if pool.contiguous else out, argmax


def forward_several(
    source: Tokens,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    convolutions: Sequence[Convolution],
    *,
    want_argmax: bool,
    folded: Sequence[Tensor] | None = None,
    plan: str | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Return ``(N, O_0 + O_1 + ..)``, several layers' maxima over all positions side by side, and, if wanted, argmax.

    ``folded`` has for each weight what :func:`fold` made of it. ``argmax`` is as :func:`argmaxes_format` says; the rest
    is as in :func:`.conv_pool.forward`.
    """
    index, samples, table = index_of(source), source.samples, source.values
    outputs = [weight.size(0) for weight in weights]
    kernels = [weight.size(2) for weight in weights]
    out = table.new_empty(samples, sum(outputs))
    positions = [one.output_length(index.length, size) for one, size in zip(convolutions, kernels, strict=True)]
    (kind, argmax_zero), argmax = argmax_integers(max(positions) - 1), None
    argmaxes: Sequence[Tensor | None] = [None] * len(outputs)
    if want_argmax:
        shape, _ = argmaxes_format(samples, outputs, max(positions), table.dtype)
        argmax = torch.empty(shape, dtype=kind, device=table.device)
        argmaxes = split_argmaxes(argmax, samples, outputs, table.dtype)
    used = cache(partial(_used, index, samples, table))
    begin = 0
    for i, weight in enumerate(weights):
        mine = out[:, begin : begin + outputs[i]].unsqueeze(2)
        begin += outputs[i]
        if mine.numel():
            layer = descriptor_of(index, samples, weight, convolutions[i], None, mine)
            if source.lengths is not None:
                cut = limits_table(source.lengths, kernels[i], convolutions[i], None)
                layer = layer._replace(limits=cut.ctypes.data)
            ready = None if folded is None else folded[i]
            _compute(layer, index, table, weight, biases[i], True, mine, argmaxes[i], argmax_zero, ready, plan, used)
    return out, argmax


@lru_cache(maxsize=1024)
def _windows(length: int, size: int, convolution: Convolution, pool: Pool | None) -> int:
    return 1 if pool is None else pool.output_length(convolution.output_length(length, size))


def _compute(
    layer: Descriptor,
    index: Index,
    table: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    is_global: bool,
    out: Tensor,
    argmax: Tensor | None,
    argmax_zero: Any,
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
        plan = "folded"  # sums of no terms
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
            forward_direct(
                layer, index, source, given, blocks, is_global, like, argmax_zero, begin, end, threads, launch
            )

        run(convolve, blocks, threads)
        return
    ready = fold(table, weight, rows) if folded is None else folded
    kept = KEPT[ready.dtype]

    def add(begin: int, end: int, threads: int, launch: int) -> None:
        given = (ready.data_ptr(), 0 if places is None else places.ctypes.data, *results)
        forward_folded(layer, index, given, blocks, is_global, like, argmax_zero, kept, begin, end, threads, launch)

    run(add, blocks, threads)


def _choose(
    layer: Descriptor, table: Tensor, counts: tuple[int, ...], used: Callable[[], Used]
) -> tuple[str, Tensor | None, Any]:
    """Return the plan and, if it is to fold, the rows to fold and their places."""
    samples, positions, *sizes = counts
    most = min(table.size(0), samples * layer.length)
    least = 1 if layer.length else 0
    # Rows in use are counted only where their number decides: the fewer they are, the better is folding.
    if forward_plan(CPU, samples, positions, least, *sizes).name == "direct":
        return "direct", None, None
    if forward_plan(CPU, samples, positions, most, *sizes).name == "direct" and table.size(0) > WORTH_COUNTING * most:
        return "direct", None, None
    rows, places = used()
    number = table.size(0) if rows is None else rows.size(0)
    if forward_plan(CPU, samples, positions, number, *sizes).name == "direct":
        return "direct", None, None
    return "folded", rows, places


def _used(index: Index, samples: int, table: Tensor) -> Used:
    """Return the rows in use and each one's place among them, ``None`` for both where nearly all rows are in use."""
    places = np.zeros(table.size(0), np.int32)
    rows = torch.empty(min(table.size(0), samples * index.length), dtype=torch.int64, device=table.device)
    used = rows_in_use(index, samples, places, rows.numpy())
    if used > WORTH_LISTING * table.size(0):
        return None, None
    return rows[:used], places
