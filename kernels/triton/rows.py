"""Where the kernels find the rows of a batch: in the input itself, or in a table or a series through an index."""

from __future__ import annotations

import math
from typing import NamedTuple

from torch import Tensor

from ..source import Dense, Source, Tokens
from .launch import VECTOR_BYTES, Layout, layout_of
from .transposition import channels_together, columns_together

__all__ = ["Rows", "layout_of_rows", "rows_of"]


class Rows(NamedTuple):
    """A batch of ``samples`` x ``length`` rows of ``source``.

    ``mode`` is ``"own"`` where ``source`` is the input ``(N, C, L)``; else ``source`` is ``(V, C)``, ``layout`` that of
    its rows, and ``mode`` ``"tokens"`` or ``"windows"``: ``numbers``, of the strides ``index_n`` and ``index_l``, holds
    the number of every position's row, or of every window's first one. Rows whose number is not in 0 .. ``below`` - 1
    read as zeros, and so do windows whose first row's is not: they would leave the series.
    """

    mode: str
    source: Tensor
    layout: Layout
    numbers: Tensor | None
    index_n: int
    index_l: int
    below: int
    samples: int
    length: int

    def arguments(self, layout: Layout) -> tuple[int, int, int, Tensor | None, int, int, int]:
        """Return what kernels are given of rows, loaded as ``layout`` tells: ``length`` to ``count``."""
        return (
            self.length, layout.stride_n, layout.stride_l, self.numbers, self.index_n, self.index_l, self.below
        )  # fmt: skip


def rows_of(source: Source) -> Rows:
    """Return a source's rows; an input or a table is copied if its channels are no neighbours in memory."""
    if isinstance(source, Dense):
        input = channels_together(source.values)
        return Rows("own", input, layout_of(input), None, 0, 0, 0, input.size(0), input.size(2))
    table = columns_together(source.values)
    if isinstance(source, Tokens):
        layout, (samples, length) = layout_of_rows(table, 0), source.tokens.shape
        index_n, index_l = source.tokens.stride()
        return Rows("tokens", table, layout, source.tokens, index_n, index_l, table.size(0), samples, length)
    below = table.size(0) - (source.length - 1) * source.step
    layout = layout_of_rows(table, source.step)
    starts = source.starts
    return Rows("windows", table, layout, starts, starts.stride(0), 0, below, starts.size(0), source.length)


def layout_of_rows(table: Tensor, step: int) -> Layout:
    """Return the layout of rows that are ``step`` rows of a table apart from position to position."""
    row = table.stride(0)
    align = math.gcd(VECTOR_BYTES // table.element_size(), row)
    return Layout(row // align, step * row // align, align)
