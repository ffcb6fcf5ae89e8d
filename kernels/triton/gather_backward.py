"""The conv stack on gathered rows: gradients of table, weight and bias on a GPU.

Two plans, see :mod:`~seqconv.kernels.plans`. Under *folded* what meets at a row of the table is added up before it is
multiplied, see :mod:`.folded_backward`. Under *direct* the gradients of weight and bias are computed as in
:mod:`.backward`, from rows that are read through the index; for that of the table the gradient of every position's row
is written down, in its dtype, and what meets at a row is added up in the order of its positions, see
:mod:`.device.gather_backward`. The same bits on every run, without atomics and without waiting for the device. Numbers
out of range get nothing.

Where this is slow: under *direct* the gradients of all positions take ``N * L * C`` numbers of memory for a while,
whether or not a row is in use often; the table's gradient is dense.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..geometry import Convolution, Pool
from ..plans import GPU, PLANS, backward_plan
from ..source import Tokens, Windows
from . import folded_backward
from .backward import Gradients, launch_backward
from .configurations import power_of_two
from .launch import device_code, kind_of, on_device
from .occurrences import join_spans, sorted_tokens, spans_of
from .replay import compute, empty, launch
from .rows import Rows, rows_of

__all__ = ["backward"]

# A program has so many sorted gradients on their way at once, of so many channels; there are at most so many spans.
STEP = 16
CHANNELS = 128
SPANS = 1024


def backward(
    gradient: Tensor,
    argmax: Tensor,
    source: Tokens | Windows,
    weight: Tensor,
    convolution: Convolution,
    pool: Pool | None,
    wanted: tuple[bool, bool, bool],
    plan: str | None,
) -> Gradients:
    """Return the gradients of table, weight and bias that are wanted; ``gradient`` is ``(N, O, Q)``, or ``(N, O, 1)``.

    Row ``padding_idx`` of the table gets zeros, and so do rows that no token names.
    """
    if plan is not None and plan not in PLANS:
        raise ValueError(f"plan must be one of {', '.join(PLANS)}, or None, got {plan!r}")
    rows = rows_of(source)
    plan = _chosen(rows, weight, convolution, wanted) if plan is None else plan
    step, padding_idx = (source.step, None) if isinstance(source, Windows) else (0, source.padding_idx)
    if plan == "folded" and gradient.numel():
        given = (gradient, argmax, rows, step, padding_idx, weight, convolution, pool, wanted)
        return folded_backward.backward(*given)
    table = rows.source
    dtable = compute(Tensor.new_zeros, table, table.shape) if wanted[0] else None
    dx = empty(table, (rows.samples, rows.length, table.size(1))) if wanted[0] else None
    dweight, dbias = launch_backward(gradient, argmax, rows, weight, convolution, pool, wanted[1:], dx)
    if dx is not None and dtable is not None and gradient.numel():
        _sum_rows(dx, rows, step, dtable, -1 if padding_idx is None else padding_idx)
    return dtable, dweight, dbias


def _chosen(rows: Rows, weight: Tensor, convolution: Convolution, wanted: tuple[bool, bool, bool]) -> str:
    """Return the plan for a call: without a table's gradient none needs its tokens sorted."""
    if not wanted[0]:
        return "direct"
    outputs, channels, size = weight.shape
    positions = convolution.output_length(rows.length, size)  # zeros are multiplied, too: as if each were a maximum
    counts = (rows.samples, rows.length, positions, rows.source.size(0), channels, outputs, size)
    return backward_plan(GPU[kind_of(weight.dtype)], *counts, wanted=wanted[:2]).name


def _sum_rows(dx: Tensor, rows: Rows, step: int, dtable: Tensor, skipped: int) -> None:
    """Add the gradients of all positions, ``(N, L, C)``, to their rows."""
    count, channels = dtable.shape
    block_c = min(power_of_two(channels), CHANNELS)
    with on_device(dx):
        in_order, order = sorted_tokens(rows, step)
        total = in_order.numel()
        span, spans = spans_of(total, STEP, SPANS)
        partials = empty(dx, (spans, 2, channels), torch.float32)
        launch(
            device_code("gather_backward").sum_spans_kernel, (spans * -(-channels // block_c),),
            dx, in_order, order, dtable, partials, total, span, count, skipped,
            C=channels, STEP=STEP, BLOCK_C=block_c, num_warps=1,
        )  # fmt: skip
        join_spans(in_order, dtable, partials, span, count, skipped)
