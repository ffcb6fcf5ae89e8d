"""The series that a model reads its windows from: it moves with the model and is no part of its state."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from seqconv.functional import arguments
from seqconv.layers import Windows
from seqconv.layers.fused import LEAF

__all__ = ["WindowSource"]


class WindowSource(nn.Module):
    """Turns starts ``(N,)`` into :class:`~seqconv.Windows` of ``series`` ``(V, C)``: ``length`` rows, ``step`` apart.

    A model that has one takes the batches of ``SlidingWindows(..., materialise=False)``::

        source = WindowSource(windows.series_tensor(), windows.length, windows.step)
        model = JenaConvnet(source=source)

    ``.to(device)`` and ``.double()`` move the series along, so that it is uploaded once. ``state_dict`` leaves it out,
    so that weights fit models with and without a source. Copies of the model share it. A source belongs to one model;
    several sources may share one series.
    """

    series: Tensor

    def __init__(self, series: Tensor, length: int, step: int = 1) -> None:
        super().__init__()
        self.__module__ = LEAF
        arguments.tensor("series", series)
        arguments.floating("series", series)
        if series.dim() != 2:
            raise ValueError(f"series must have shape (rows, channels), got {tuple(series.shape)}")
        self.length = arguments.integer("length", length, 1)
        self.step = arguments.integer("step", step, 1)
        reach = (self.length - 1) * self.step
        if series.size(0) <= reach:
            raise ValueError(f"series must have the {reach + 1} rows of a window, got {series.size(0)}")
        self.register_buffer("series", series, persistent=False)

    def forward(self, starts: Tensor) -> Windows:
        """Return the windows at ``starts``."""
        return Windows(self.series, starts, self.length, self.step)

    def __deepcopy__(self, memo: dict[int, Any]) -> WindowSource:
        copied = WindowSource(self.series, self.length, self.step).train(self.training)
        memo[id(self)] = copied
        return copied

    def extra_repr(self) -> str:
        """Return the sizes."""
        rows, channels = self.series.shape
        return f"rows={rows}, channels={channels}, length={self.length}, step={self.step}"
