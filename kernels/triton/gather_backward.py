"""The conv stack on gathered rows: gradients of table, weight and bias on a GPU.

Those of weight and bias are computed as in :mod:`.backward`, from rows that are read through the index. For
that of the table the gradient of every position's row is written down, in its dtype, the tokens are sorted, and what
meets at a row is added up in the order of its positions, see :mod:`.gather_backward_kernels`: the same bits on every
run, without atomics and without waiting for the device. Numbers out of range get nothing.

Where this is slow: the gradients of all positions take ``N * L * C`` numbers of memory for a while, whether or
not a row is in use often; the table's gradient is dense.
"""

from __future__ import annotations

import functools
from types import ModuleType

import torch
from torch import Tensor

from ..geometry import Convolution, Pool
from ..source import Tokens, Windows
from .backward import Gradients, launch_backward
from .configurations import power_of_two
from .launch import on_device
from .replay import compute, empty, launch
from .rows import rows_of, tokens_of_windows

__all__ = ["backward"]

# A program has so many sorted gradients on their way at once, of so many channels. There are at most so many spans, of
# any number of tokens; so many spans' sums are joined at a time.
STEP = 16
CHANNELS = 128
SPANS = 1024
JOINED, JOINED_CHANNELS = 256, 32


def backward(
    gradient: Tensor,
    argmax: Tensor,
    source: Tokens | Windows,
    weight: Tensor,
    convolution: Convolution,
    pool: Pool | None,
    wanted: tuple[bool, bool, bool],
) -> Gradients:
    """Return the gradients of table, weight and bias that are wanted; ``gradient`` is ``(N, O, Q)``, or ``(N, O, 1)``.

    Row ``padding_idx`` of the table gets zeros, and so do rows that no token names.
    """
    rows = rows_of(source)
    table = rows.source
    dtable = compute(Tensor.new_zeros, table, table.shape) if wanted[0] else None
    dx = None
    if wanted[0]:
        dx = empty(table, (rows.samples, rows.length, table.size(1)))
    given = (gradient, argmax, rows, weight, convolution, pool, wanted[1:], dx)
    dweight, dbias = launch_backward(*given)
    if dx is not None and dtable is not None and gradient.numel():
        tokens = rows.numbers
        skipped = -1
        if isinstance(source, Windows):
            tokens = compute(tokens_of_windows, tokens, rows.length, source.step, rows.below, table.size(0))
        elif source.padding_idx is not None:
            skipped = source.padding_idx
        assert tokens is not None
        _sum_rows(dx, tokens, dtable, skipped)
    return dtable, dweight, dbias


def _sum_rows(dx: Tensor, tokens: Tensor, dtable: Tensor, skipped: int) -> None:
    """Add the gradients of all positions, ``(N, L, C)``, to the rows that ``tokens`` ``(N, L)`` name."""
    total, (count, channels) = tokens.numel(), dtable.shape
    in_order, order = compute(_sorted, tokens, count)
    span = STEP * power_of_two(-(-total // (STEP * SPANS)))
    spans = -(-total // span)
    partials = empty(dx, (spans, 2, channels), torch.float32)
    block_c, joined_c = (min(power_of_two(channels), most) for most in (CHANNELS, JOINED_CHANNELS))
    kernels = _kernels()
    with on_device(dx):
        launch(
            kernels.sum_spans_kernel, (spans * -(-channels // block_c),),
            dx, in_order, order, dtable, partials, total, span, count, skipped,
            C=channels, STEP=STEP, BLOCK_C=block_c, num_warps=1,
        )  # fmt: skip
        launch(
            kernels.join_spans_kernel, (spans * -(-channels // joined_c),),
            in_order, dtable, partials, total, span, count, skipped,
            C=channels, BLOCK_G=JOINED, BLOCK_C=joined_c, num_warps=4,
        )  # fmt: skip


def _sorted(tokens: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the tokens of a table of ``count`` rows in order, and where they stood.

    A radix sort reads them once for every byte: they come in as few as hold all of them, and what is out of range.
    """
    dtype = next((one for one in (torch.int16, torch.int32) if count <= torch.iinfo(one).max), torch.int64)
    in_order, order = torch.sort(tokens.reshape(-1).clamp(-1, count).to(dtype), stable=True)
    return in_order, order


@functools.cache
def _kernels() -> ModuleType:
    from . import gather_backward_kernels

    return gather_backward_kernels
