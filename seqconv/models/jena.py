"""Models of the temperature task: windows ``(N, S, C)``, oldest row first, to one standardised temperature ``(N,)``.

Given a :class:`~seqconv.models.WindowSource`, a model takes the windows' starts ``(N,)`` instead; it then takes either.
The convnets' first layer reads them in place, the other models gather them.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from seqconv.functional import arguments
from seqconv.functional.tracing import Proxy
from seqconv.layers import GRU, ConvReLUGlobalMaxPool1d, ConvReLUMaxPool1d, Windows
from seqconv.models.source import WindowSource

__all__ = ["ConvGRU", "Dense", "JenaConvnet", "JenaGRU", "TemperatureNow"]


class _OfWindows(nn.Module):
    """What the models share: where they have their windows from."""

    def __init__(self, source: WindowSource | None) -> None:
        super().__init__()
        if source is not None and not isinstance(source, WindowSource):
            raise TypeError(f"source must be a seqconv.models.WindowSource or None, got {type(source).__name__}")
        self.source = source

    def read(self, windows: Tensor) -> Tensor | Windows:
        """Return what a convolution takes: windows ``(N, S, C)`` seen as ``(N, C, S)``, or those at the starts."""
        if isinstance(windows, Proxy):  # torch.fx knows no shapes: with a source these are starts
            return windows.transpose(1, 2) if self.source is None else self.source(windows)  # type: ignore[no-any-return]
        arguments.tensor("windows", windows)
        if windows.dim() < 1:
            raise ValueError(f"windows must have shape (N, S, C), or (N,) for their starts, got {tuple(windows.shape)}")
        if windows.dim() == 1:
            if self.source is None:
                raise ValueError(
                    f"windows must have shape (N, S, C), got {tuple(windows.shape)}: their starts need the series, "
                    f"{type(self).__name__}(..., source=seqconv.models.WindowSource(series, length, step))"
                )
            found: Windows = self.source(windows)
            return found
        return windows.transpose(1, 2)

    def gather(self, windows: Tensor) -> Tensor:
        """Return windows ``(N, S, C)``, those at the starts where these are given."""
        found = self.at_starts(windows)
        return windows if found is None else found.gather()

    def at_starts(self, windows: Tensor) -> Windows | None:
        """Return the windows at the starts, where these are given."""
        read: Any = self.read(windows)
        given = self.source is not None if isinstance(windows, Proxy) else isinstance(read, Windows)
        return read if given else None


class JenaConvnet(_OfWindows):
    """The notebook's convnet: convolutions of 32 x 5, two with pools of 3, the last with a global maximum, dense."""

    def __init__(self, channels: int = 14, *, backend: str = "auto", source: WindowSource | None = None) -> None:
        super().__init__(source)
        self.first = ConvReLUMaxPool1d(channels, 32, 5, 3, backend=backend)
        self.second = ConvReLUMaxPool1d(32, 32, 5, 3, backend=backend)
        self.third = ConvReLUGlobalMaxPool1d(32, 32, 5, backend=backend)
        self.head = nn.Linear(32, 1)

    def forward(self, windows: Tensor) -> Tensor:
        """Return the predictions ``(N,)`` for ``windows`` ``(N, S, C)``, ``S`` at least 61."""
        pooled = self.third(self.second(self.first(self.read(windows))))
        return self.head(pooled).squeeze(-1)  # type: ignore[no-any-return]


class JenaGRU(_OfWindows):
    """A GRU(32), its last state to a dense layer; the dropouts act on its input and on its recurrent state."""

    def __init__(
        self,
        channels: int = 14,
        *,
        input_dropout: float = 0.0,
        recurrent_dropout: float = 0.0,
        backend: str = "auto",
        source: WindowSource | None = None,
    ) -> None:
        super().__init__(source)
        self.gru = GRU(
            channels,
            32,
            batch_first=True,
            input_dropout=input_dropout,
            recurrent_dropout=recurrent_dropout,
            backend=backend,
        )
        self.head = nn.Linear(32, 1)

    def forward(self, windows: Tensor) -> Tensor:
        """Return the predictions ``(N,)`` for ``windows`` ``(N, S, C)``."""
        _, state = self.gru(self.gather(windows))
        return self.head(state[-1]).squeeze(-1)  # type: ignore[no-any-return]


class ConvGRU(_OfWindows):
    """The notebook's hybrid: convolution 32 x 5, pool 3, convolution 32 x 5, GRU(32) with both dropouts, dense."""

    def __init__(
        self,
        channels: int = 14,
        *,
        input_dropout: float = 0.1,
        recurrent_dropout: float = 0.5,
        backend: str = "auto",
        source: WindowSource | None = None,
    ) -> None:
        super().__init__(source)
        self.first = ConvReLUMaxPool1d(channels, 32, 5, 3, backend=backend)
        # A pool of one position is no pool: convolution and ReLU alone.
        self.second = ConvReLUMaxPool1d(32, 32, 5, 1, backend=backend)
        self.recurrent = JenaGRU(32, input_dropout=input_dropout, recurrent_dropout=recurrent_dropout, backend=backend)

    def forward(self, windows: Tensor) -> Tensor:
        """Return the predictions ``(N,)`` for ``windows`` ``(N, S, C)``, ``S`` at least 19."""
        features = self.second(self.first(self.read(windows)))
        return self.recurrent(features.transpose(1, 2))  # type: ignore[no-any-return]


class Dense(_OfWindows):
    """A baseline without a notion of time: all values of a window to 32 units with ReLU, dense."""

    def __init__(self, steps: int = 240, channels: int = 14, *, source: WindowSource | None = None) -> None:
        super().__init__(source)
        self.hidden = nn.Linear(steps * channels, 32)
        self.head = nn.Linear(32, 1)

    def forward(self, windows: Tensor) -> Tensor:
        """Return the predictions ``(N,)`` for ``windows`` ``(N, S, C)``."""
        return self.head(self.hidden(self.gather(windows).flatten(1)).relu()).squeeze(-1)  # type: ignore[no-any-return]


class TemperatureNow(_OfWindows):
    """The common-sense baseline: in ``delay`` rows it will be as warm as in the window's last row."""

    def __init__(self, column: int = 1, *, source: WindowSource | None = None) -> None:
        super().__init__(source)
        self.column = column

    def forward(self, windows: Tensor) -> Tensor:
        """Return the last row's column ``(N,)`` of ``windows`` ``(N, S, C)``."""
        read = self.at_starts(windows)
        if read is not None:
            read.check()
            return read.series[read.starts + (read.length - 1) * read.step, self.column]
        return windows[:, -1, self.column]
