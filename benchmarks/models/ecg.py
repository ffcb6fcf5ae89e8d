"""Heartbeats, and longer recordings of one lead."""

from __future__ import annotations

from torch import Tensor, nn


class EcgBlock(nn.Module):
    """A convolution that keeps the length, batch norm, ReLU and a pool of 2."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=False)
        self.bn = nn.BatchNorm1d(out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.pool = nn.MaxPool1d(2)

    def forward(self, x: Tensor) -> Tensor:
        """Return half as many positions."""
        return self.pool(self.relu(self.bn(self.conv(x))))  # type: ignore[no-any-return]


class EcgNet(nn.Module):
    """The stack of blocks that notebooks put on the data of Kachuee et al. (2018): beats of MIT-BIH, 187 samples.

    ``(N, 1, L)`` to logits ``(N, classes)``; 5 classes, batch 128. With wider kernels and more blocks the same is met
    on recordings of PhysioNet's challenge of 2017: ten seconds at 300 Hz, 4 classes, batch 64.
    """

    def __init__(self, widths: tuple[int, ...] = (32, 64, 128), kernel_size: int = 5, num_classes: int = 5) -> None:
        super().__init__()
        self.blocks = nn.ModuleList()
        channels = 1
        for width in widths:
            self.blocks.append(EcgBlock(channels, width, kernel_size))
            channels = width
        self.gap = nn.AdaptiveAvgPool1d(1)
        self.dropout = nn.Dropout(0.2)
        self.fc = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        for block in self.blocks:
            x = block(x)
        x = self.gap(x).flatten(1)
        return self.fc(self.dropout(x))  # type: ignore[no-any-return]
