"""Where the rows of a table occur in a batch: their tokens sorted, and sums over them that are cut into spans."""

from __future__ import annotations

import torch
from torch import Tensor

from .configurations import power_of_two
from .gather import NUMBERS
from .launch import device_code
from .replay import compute, empty, launch
from .rows import Rows

__all__ = ["join_spans", "sorted_tokens", "spans_of"]

# So many spans' sums are joined at a time, of so many numbers each.
JOINED, JOINED_CHANNELS = 256, 32


def sorted_tokens(rows: Rows, step: int) -> tuple[Tensor, Tensor]:
    """Return the tokens of all positions in order, ``V`` for those out of range, and where they stood.

    ``step`` is that of windows. A radix sort reads its keys once for every byte: they have as few as hold all tokens.
    """
    assert rows.numbers is not None
    count, total = rows.source.size(0), rows.samples * rows.length
    dtype = next(one for one in (torch.int16, torch.int32, torch.int64) if count <= torch.iinfo(one).max)
    keys = empty(rows.numbers, (total,), dtype)
    launch(
        device_code("index").keys_kernel, (-(-total // NUMBERS),),
        rows.numbers, keys, total, rows.length, rows.index_n, rows.index_l, rows.below, count, step,
        WINDOWS=rows.mode == "windows", BLOCK=NUMBERS, num_warps=4,
    )  # fmt: skip
    in_order, order = compute(_sort, keys)
    return in_order, order


def spans_of(total: int, step: int, most: int) -> tuple[int, int]:
    """Return the length, a multiple of ``step``, and the number, at most ``most``, of spans of ``total`` tokens."""
    span = step * power_of_two(-(-total // (step * most)))
    return span, -(-total // span)


def join_spans(in_order: Tensor, target: Tensor, partials: Tensor, span: int, count: int, skipped: int) -> None:
    """Add up the spans' heads and tails, ``(spans, 2, C)``, into the first ``count`` rows of ``target`` ``(V, C)``."""
    channels = target.size(1)
    block_c = min(power_of_two(channels), JOINED_CHANNELS)
    launch(
        device_code("gather_backward").join_spans_kernel, (partials.size(0) * -(-channels // block_c),),
        in_order, target, partials, in_order.numel(), span, count, skipped,
        C=channels, BLOCK_G=JOINED, BLOCK_C=block_c, num_warps=4,
    )  # fmt: skip


def _sort(keys: Tensor) -> tuple[Tensor, Tensor]:
    in_order, order = torch.sort(keys, stable=True)
    return in_order, order
