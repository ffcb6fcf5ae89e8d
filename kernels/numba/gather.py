"""The conv stack on rows gathered from a table, compiled for the CPU: the forward pass.

Two plans give the reference's results but for rounding, see :mod:`~seqconv.kernels.plans`. *Folded* looks up a row's
products with all weights in a folded table. A caller whose table and weight stay the same may :func:`fold` them once
and pass the result in; else the rows that the call uses are folded first. *Direct* gathers the rows of a few samples at
a time, which stay in the cache, and convolves them as :mod:`.dense` does any input. The caller has checked that the
table has every row.

Measured on one core of a Zen 5 (``CHANNELS -> OUTPUTS x K`` of so many tokens, one pass of each in turn): a kernel that
gathered the rows of 128 positions itself took 1.02 to 1.75 times as long as this for 1 to 16 samples, 0.93 to 1.1 times
for 64 and 128; of 256 KiB to 4 MiB at a time, 1 and 2 MiB were fastest on one core, 2 MiB on two.

Where these kernels are slow: a layer of few input channels gains little from folding; folded, a single output costs as
much as a vector of them, and the global maximum of a single sample runs on one thread.
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
from . import dense
from .conv_pool_blocking import BORDER
from .dense import DTYPES, argmax_integers, limits_table, padded_outputs
from .fold import KEPT, fold, folded_shape
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

# Bytes of rows that are gathered at a time.
GATHERED = 2**21

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
    (kind, argmax_zero), argmax = argmax_integers(layer.pool_size - 1), None
    if want_argmax:
        width = padded_outputs(outputs, DTYPES[table.dtype])
        argmax = torch.empty((samples, windows, width), dtype=kind, device=table.device)
    if not out.numel():
        return out.squeeze(2) if pool is None else out, argmax
    used = cache(partial(_used, index, samples, table))
    plan, rows = _chosen(layer, table, folded, plan, used)
    if plan == "direct":
        assert isinstance(source, Tokens)
        if pool is not None and pool.contiguous:
            out = table.new_empty(samples, outputs, windows)
        results = out.squeeze(2) if pool is None else out, argmax
        _convolve(source, [(weight, bias, convolution, pool, results)])
        return results
    if source.lengths is not None:
        cut = limits_table(source.lengths, size, convolution, pool)
        layer = layer._replace(limits=cut.ctypes.data)
    _add(layer, index, table, weight, bias, pool is None, out, argmax, argmax_zero, folded, rows)
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
    begin, direct = 0, []
    for i, weight in enumerate(weights):
        mine = out[:, begin : begin + outputs[i]].unsqueeze(2)
        begin += outputs[i]
        if mine.numel():
            layer = descriptor_of(index, samples, weight, convolutions[i], None, mine)
            ready = None if folded is None else folded[i]
            chosen, rows = _chosen(layer, table, ready, plan, used)
            if chosen == "direct":
                results = table.new_empty(samples, outputs[i]), argmaxes[i]
                direct.append((mine.squeeze(2), (weight, biases[i], convolutions[i], None, results)))
            else:
                if source.lengths is not None:
                    cut = limits_table(source.lengths, kernels[i], convolutions[i], None)
                    layer = layer._replace(limits=cut.ctypes.data)
                _add(layer, index, table, weight, biases[i], True, mine, argmaxes[i], argmax_zero, ready, rows)
    if direct:
        _convolve(source, [one for _, one in direct])
        for mine, one in direct:
            mine.copy_(one[-1][0])
    return out, argmax


def _convolve(source: Tokens, layers: Sequence[tuple[Any, ...]]) -> None:
    """Convolve gathered rows: each layer is a weight, a bias, convolution, pool, and where result and argmax go."""
    table = source.values.detach()
    channels, length = table.size(1), source.length
    at_once = max(1, GATHERED // (length * channels * table.element_size()))
    for begin in range(0, source.samples, at_once):
        some = slice(begin, begin + at_once)
        rows = table.index_select(0, source.tokens[some].reshape(-1)).view(-1, length, channels)
        cut = None if source.lengths is None else source.lengths[some]
        for weight, bias, convolution, pool, (out, argmax) in layers:
            results = out[some], None if argmax is None else argmax[some]
            given = (rows.transpose(1, 2), weight, bias, convolution, pool)
            dense.forward(*given, argmax is not None, lengths=cut, results=results)


@lru_cache(maxsize=1024)
def _windows(length: int, size: int, convolution: Convolution, pool: Pool | None) -> int:
    return 1 if pool is None else pool.output_length(convolution.output_length(length, size))


def _chosen(
    layer: Descriptor, table: Tensor, folded: Tensor | None, plan: str | None, used: Callable[[], Used]
) -> tuple[str, Used]:
    """Return the plan of a call, and if the rows are to be folded, which, and their places."""
    if folded is not None:
        return "folded", (None, None)
    channels = table.size(1)
    if plan is None and channels:  # without any, sums have no terms
        plan, *rows = _choose(layer, table, (layer.samples, layer.positions, channels, layer.outputs, layer.size), used)
        return plan, (rows[0], rows[1])
    return (plan, (None, None)) if plan == "direct" and channels else ("folded", used())


def _add(
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
    used: Used,
) -> None:
    """Add up rows of the folded table."""
    like = DTYPES[table.dtype]
    width = padded_outputs(layer.outputs, like)
    shift = weight.new_zeros(width)
    if bias is not None:
        shift[: layer.outputs] = bias.detach()
    results = (shift.data_ptr(), out.data_ptr(), 0 if argmax is None else argmax.data_ptr())
    parts = layer.samples * -(-layer.windows // layer.chunk)
    threads = thread_count(parts, layer.samples * layer.positions * layer.size * width)
    blocks = min(parts, threads * BLOCKS) if threads > 1 else 1
    span = layer.pool_dilation * (layer.pool_size - 1) + 1
    if not is_global and layer.pool_stride < span:  # a span of positions is summed on both sides of a border
        blocks = min(blocks, max(threads, layer.samples * layer.positions // (BORDER * span)))
    rows, places = used
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
