"""The fully convolutional baseline of time series classification."""

from __future__ import annotations

from torch import Tensor, nn


def conv_bn_relu(in_channels: int, out_channels: int, kernel_size: int) -> nn.Sequential:
    """Return a convolution that keeps the length, batch norm and ReLU."""
    return nn.Sequential(
        nn.Conv1d(in_channels, out_channels, kernel_size, padding="same"),
        nn.BatchNorm1d(out_channels),
        nn.ReLU(),
    )


class FCN(nn.Module):
    """Wang, Yan and Oates, "Time Series Classification from Scratch with Deep Neural Networks" (2017).

    ``(N, 1, L)`` to logits ``(N, classes)``; on FordA of the UCR archive 500 moments and 2 classes; batch 16.
    """

    def __init__(self, in_channels: int = 1, num_classes: int = 2) -> None:
        super().__init__()
        self.block1 = conv_bn_relu(in_channels, 128, 8)
        self.block2 = conv_bn_relu(128, 256, 5)
        self.block3 = conv_bn_relu(256, 128, 3)
        self.fc = nn.Linear(128, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        x = self.block3(self.block2(self.block1(x)))
        return self.fc(x.mean(dim=-1))  # type: ignore[no-any-return]
