"""Chromatin features of a piece of DNA, by convolutions alone."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class DeepSEA(nn.Module):
    """Zhou and Troyanskaya, "Predicting effects of noncoding variants with deep learning-based sequence model" (2015).

    One-hot bases ``(N, 4, 1000)`` to 919 probabilities; 52,843,119 parameters, as Quang and Xie count them; batch 64.
    """

    def __init__(self, num_targets: int = 919) -> None:
        super().__init__()
        self.Conv1 = nn.Conv1d(4, 320, kernel_size=8)
        self.Conv2 = nn.Conv1d(320, 480, kernel_size=8)
        self.Conv3 = nn.Conv1d(480, 960, kernel_size=8)
        self.Maxpool = nn.MaxPool1d(kernel_size=4, stride=4)
        self.Drop1 = nn.Dropout(p=0.2)
        self.Drop2 = nn.Dropout(p=0.5)
        self.Linear1 = nn.Linear(53 * 960, 925)
        self.Linear2 = nn.Linear(925, num_targets)

    def forward(self, input: Tensor) -> Tensor:
        """Return the probabilities."""
        x = self.Conv1(input)
        x = F.relu(x)
        x = self.Maxpool(x)
        x = self.Drop1(x)
        x = self.Conv2(x)
        x = F.relu(x)
        x = self.Maxpool(x)
        x = self.Drop1(x)
        x = self.Conv3(x)
        x = F.relu(x)
        x = self.Drop2(x)
        x = x.view(-1, 53 * 960)
        x = F.relu(self.Linear1(x))
        return torch.sigmoid(self.Linear2(x))
