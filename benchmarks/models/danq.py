"""Chromatin features of a piece of DNA, by one convolution and an LSTM in both directions."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class DanQ(nn.Module):
    """Quang and Xie, "DanQ: a hybrid convolutional and recurrent deep neural network" (2016).

    One-hot bases ``(N, 4, 1000)`` to 919 probabilities; 46,926,479 parameters, and 2,560 more here, as torch's LSTM has
    two biases; batch 100.
    """

    def __init__(self, num_targets: int = 919) -> None:
        super().__init__()
        self.conv = nn.Conv1d(4, 320, 26)
        self.dropout1 = nn.Dropout(0.2)
        self.bilstm = nn.LSTM(320, 320, batch_first=True, bidirectional=True)
        self.dropout2 = nn.Dropout(0.5)
        self.fc1 = nn.Linear(75 * 640, 925)
        self.fc2 = nn.Linear(925, num_targets)

    def forward(self, x: Tensor) -> Tensor:
        """Return the probabilities."""
        x = F.max_pool1d(F.relu(self.conv(x)), 13, 13)
        x = self.dropout1(x)
        x, _ = self.bilstm(x.transpose(1, 2))
        x = self.dropout2(x)
        x = torch.flatten(x, 1)
        return torch.sigmoid(self.fc2(F.relu(self.fc1(x))))
