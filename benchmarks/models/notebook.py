"""The three models of the notebook *Sequence processing with convnets* (Deep Learning with R, 6.4), in torch."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class NotebookImdb(nn.Module):
    """Tokens ``(N, 500)`` of 10,000 words to a logit ``(N, 1)``; 1,315,937 parameters, batch 128."""

    def __init__(self, words: int = 10_000) -> None:
        super().__init__()
        self.embedding = nn.Embedding(words, 128)
        self.conv1 = nn.Conv1d(128, 32, 7)
        self.pool = nn.MaxPool1d(5)
        self.conv2 = nn.Conv1d(32, 32, 7)
        self.fc = nn.Linear(32, 1)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the logit."""
        x = self.embedding(tokens).transpose(1, 2)
        x = self.pool(torch.relu(self.conv1(x)))
        x = torch.relu(self.conv2(x))
        x, _ = torch.max(x, dim=2)
        return self.fc(x)  # type: ignore[no-any-return]


def jena_convnet(columns: int = 14) -> nn.Sequential:
    """Windows ``(N, 14, 240)`` to a temperature ``(N, 1)``; 12,609 parameters, batch 128."""
    return nn.Sequential(
        nn.Conv1d(columns, 32, 5),
        nn.ReLU(),
        nn.MaxPool1d(3),
        nn.Conv1d(32, 32, 5),
        nn.ReLU(),
        nn.MaxPool1d(3),
        nn.Conv1d(32, 32, 5),
        nn.ReLU(),
        nn.AdaptiveMaxPool1d(1),
        nn.Flatten(),
        nn.Linear(32, 1),
    )


class NotebookHybrid(nn.Module):
    """Windows ``(N, 240, 14)`` through convolutions and a GRU to ``(N, 1)``, without dropout; 13,793, batch 128."""

    def __init__(self, columns: int = 14) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(columns, 32, 5)
        self.conv2 = nn.Conv1d(32, 32, 5)
        self.pool = nn.MaxPool1d(3)
        self.gru = nn.GRU(32, 32, batch_first=True)
        self.fc = nn.Linear(32, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the temperature."""
        x = x.transpose(1, 2)
        x = self.pool(self.conv1(x).relu())
        x = self.conv2(x).relu()
        _, state = self.gru(x.transpose(1, 2))
        return self.fc(state[-1])  # type: ignore[no-any-return]
