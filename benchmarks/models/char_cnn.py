"""A text as a sequence of its characters."""

from __future__ import annotations

from torch import Tensor, nn


class CharCNN(nn.Module):
    """Zhang, Zhao and LeCun, "Character-level Convolutional Networks for Text Classification" (2015), the small one.

    One-hot characters ``(N, 70, 1014)`` to logits ``(N, classes)``; the last convolutions leave 34 positions of 256
    features, 8704 numbers; batch 128.
    """

    def __init__(self, num_chars: int = 70, features: int = 256, hidden: int = 1024, num_classes: int = 4) -> None:
        super().__init__()
        self.conv1 = nn.Sequential(nn.Conv1d(num_chars, features, kernel_size=7), nn.ReLU(), nn.MaxPool1d(3))
        self.conv2 = nn.Sequential(nn.Conv1d(features, features, kernel_size=7), nn.ReLU(), nn.MaxPool1d(3))
        self.conv3 = nn.Sequential(nn.Conv1d(features, features, kernel_size=3), nn.ReLU())
        self.conv4 = nn.Sequential(nn.Conv1d(features, features, kernel_size=3), nn.ReLU())
        self.conv5 = nn.Sequential(nn.Conv1d(features, features, kernel_size=3), nn.ReLU())
        self.conv6 = nn.Sequential(nn.Conv1d(features, features, kernel_size=3), nn.ReLU(), nn.MaxPool1d(3))
        self.fc1 = nn.Sequential(nn.Linear(34 * features, hidden), nn.ReLU(), nn.Dropout(0.5))
        self.fc2 = nn.Sequential(nn.Linear(hidden, hidden), nn.ReLU(), nn.Dropout(0.5))
        self.fc3 = nn.Linear(hidden, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        x = self.conv1(x)
        x = self.conv2(x)
        x = self.conv3(x)
        x = self.conv4(x)
        x = self.conv5(x)
        x = self.conv6(x)
        x = x.view(x.size(0), -1)
        return self.fc3(self.fc2(self.fc1(x)))  # type: ignore[no-any-return]
