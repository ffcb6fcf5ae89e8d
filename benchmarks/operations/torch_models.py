"""The notebook's models, TextCNN and the RNNs one would take instead, composed of torch's modules.

``contiguous`` copies each first layer's input into the layout that torch convolves faster.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = [
    "TorchConvGRU",
    "TorchImdbConvnet",
    "TorchImdbLSTM",
    "TorchJenaConvnet",
    "TorchJenaFromStarts",
    "TorchJenaGRU",
    "TorchTextCNN",
]


class TorchImdbConvnet(nn.Module):
    """The review model."""

    def __init__(self, words: int, *, contiguous: bool = False) -> None:
        super().__init__()
        self.embedding = nn.Embedding(words, 128)
        self.first, self.second = nn.Conv1d(128, 32, 7), nn.Conv1d(32, 32, 7)
        self.head = nn.Linear(32, 1)
        self.contiguous = contiguous

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the logits ``(N,)`` of ``tokens`` ``(N, L)``."""
        features = self.embedding(tokens).transpose(1, 2)
        features = F.max_pool1d(self.first(features.contiguous() if self.contiguous else features).relu(), 5)
        output: Tensor = self.head(self.second(features).relu().max(2).values)
        return output.squeeze(-1)


class TorchTextCNN(nn.Module):
    """Kim's model (2014): convolutions of three sizes over one embedding, their maxima through dropout and dense."""

    def __init__(self, words: int, *, contiguous: bool = False) -> None:
        super().__init__()
        self.embedding = nn.Embedding(words, 128)
        self.convs = nn.ModuleList(nn.Conv1d(128, 100, size) for size in (3, 4, 5))
        self.dropout = nn.Dropout(0.5)
        self.head = nn.Linear(300, 1)
        self.contiguous = contiguous

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the logits ``(N,)`` of ``tokens`` ``(N, L)``."""
        features = self.embedding(tokens).transpose(1, 2)
        features = features.contiguous() if self.contiguous else features
        maxima = torch.cat([conv(features).relu().max(2).values for conv in self.convs], 1)
        output: Tensor = self.head(self.dropout(maxima))
        return output.squeeze(-1)


class TorchImdbLSTM(nn.Module):
    """The review model's rival: the last state of an LSTM(32)."""

    def __init__(self, words: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(words, 128)
        self.lstm = nn.LSTM(128, 32, batch_first=True)
        self.head = nn.Linear(32, 1)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the logits ``(N,)`` of ``tokens`` ``(N, L)``."""
        output: Tensor = self.head(self.lstm(self.embedding(tokens))[1][0][-1])
        return output.squeeze(-1)


class TorchJenaConvnet(nn.Module):
    """The temperature model."""

    def __init__(self, channels: int, *, contiguous: bool = False) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Conv1d(channels, 32, 5), nn.Conv1d(32, 32, 5), nn.Conv1d(32, 32, 5)
        self.head = nn.Linear(32, 1)
        self.contiguous = contiguous

    def forward(self, windows: Tensor) -> Tensor:
        """Return the predictions ``(N,)`` for ``windows`` ``(N, L, C)``."""
        features = windows.transpose(1, 2)
        features = F.max_pool1d(self.first(features.contiguous() if self.contiguous else features).relu(), 3)
        features = F.max_pool1d(self.second(features).relu(), 3)
        output: Tensor = self.head(self.third(features).relu().max(2).values)
        return output.squeeze(-1)


class TorchJenaFromStarts(nn.Module):
    """The temperature model on windows of a ``series`` that it gathers itself, by index."""

    reach: Tensor

    def __init__(self, series: Tensor, length: int, step: int, *, contiguous: bool = False) -> None:
        super().__init__()
        self.model = TorchJenaConvnet(series.size(1), contiguous=contiguous)
        self.register_buffer("series", series)
        self.register_buffer("reach", step * torch.arange(length))

    def forward(self, starts: Tensor) -> Tensor:
        """Return the predictions ``(N,)`` for the windows that begin at ``starts`` ``(N,)``."""
        output: Tensor = self.model(self.series[starts[:, None] + self.reach])
        return output


class TorchJenaGRU(nn.Module):
    """The temperature model's rival: the last state of a GRU(32)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gru = nn.GRU(channels, 32, batch_first=True)
        self.head = nn.Linear(32, 1)

    def forward(self, windows: Tensor) -> Tensor:
        """Return the predictions ``(N,)`` for ``windows`` ``(N, L, C)``."""
        output: Tensor = self.head(self.gru(windows)[1][-1])
        return output.squeeze(-1)


class TorchConvGRU(nn.Module):
    """The hybrid."""

    def __init__(self, channels: int, *, contiguous: bool = False) -> None:
        super().__init__()
        self.first, self.second = nn.Conv1d(channels, 32, 5), nn.Conv1d(32, 32, 5)
        self.gru = nn.GRU(32, 32, batch_first=True)
        self.head = nn.Linear(32, 1)
        self.contiguous = contiguous

    def forward(self, windows: Tensor) -> Tensor:
        """Return the predictions ``(N,)`` for ``windows`` ``(N, L, C)``."""
        features = windows.transpose(1, 2)
        features = F.max_pool1d(self.first(features.contiguous() if self.contiguous else features).relu(), 3)
        output: Tensor = self.head(self.gru(self.second(features).relu().transpose(1, 2))[1][-1])
        return output.squeeze(-1)
