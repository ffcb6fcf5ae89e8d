"""Windows of a series, given by where they start: what a layer reads in place instead of a tensor of their content."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from seqconv.functional import arguments

__all__ = ["Windows"]


class Windows(NamedTuple):
    """``N`` windows of ``series``: window ``n`` holds the ``length`` rows ``starts[n], starts[n] + step, ...``.

    ``series`` is ``(V, C)``, ``starts`` ``(N,)``, int32 or int64, on the same device. The conv stack's layers take it
    in place of ``windows.gather().transpose(1, 2)`` and give the same numbers. It copies nothing, and any number of
    them may share a series, which a GPU then holds once.
    """

    series: Tensor
    starts: Tensor
    length: int
    step: int = 1

    def gather(self) -> Tensor:
        """Return the content, ``(N, length, C)``, newly allocated. Raises as :meth:`check` does."""
        self.check()
        rows = self.starts.unsqueeze(1) + self.step * torch.arange(self.length, device=self.starts.device)
        # Half the time of series[rows], on a CPU.
        return self.series.index_select(0, rows.flatten()).view(*rows.shape, self.series.size(1))

    def check(self) -> None:
        """Raise what a layer raises where a window is not of the series, or these are no windows at all."""
        arguments.tensor("series", self.series)
        arguments.tensor("starts", self.starts)
        if self.starts.dim() != 1:
            raise ValueError(f"starts must have shape (N,), got {tuple(self.starts.shape)}")
        length, step = arguments.integer("length", self.length, 1), arguments.integer("step", self.step, 1)
        arguments.row_index("starts", self.starts, "series", self.series, reach=(length - 1) * step)

    def to(self, *args: Any, **options: Any) -> Windows:
        """Return the windows on another device or of another dtype: ``series.to(...)``, with the starts beside it."""
        series = self.series.to(*args, **options)
        return self._replace(series=series, starts=self.starts.to(series.device))
