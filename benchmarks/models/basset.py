"""Accessible DNA of many kinds of cells."""

from __future__ import annotations

from torch import nn


def basset(num_targets: int = 164) -> nn.Sequential:
    """Kelley, Snoek and Rinn, "Basset" (Genome Research 2016), as images of a width of one, as it is handed around.

    One-hot bases ``(N, 4, 600, 1)`` to the probabilities of 164 kinds of cells; batch 128.
    """
    return nn.Sequential(
        nn.Conv2d(4, 300, (19, 1)),
        nn.BatchNorm2d(300),
        nn.ReLU(),
        nn.MaxPool2d((3, 1), (3, 1)),
        nn.Conv2d(300, 200, (11, 1)),
        nn.BatchNorm2d(200),
        nn.ReLU(),
        nn.MaxPool2d((4, 1), (4, 1)),
        nn.Conv2d(200, 200, (7, 1)),
        nn.BatchNorm2d(200),
        nn.ReLU(),
        nn.MaxPool2d((4, 1), (4, 1)),
        nn.Flatten(),
        nn.Linear(10 * 200, 1000),
        nn.BatchNorm1d(1000),
        nn.ReLU(),
        nn.Dropout(0.3),
        nn.Linear(1000, 1000),
        nn.BatchNorm1d(1000),
        nn.ReLU(),
        nn.Dropout(0.3),
        nn.Linear(1000, num_targets),
        nn.Sigmoid(),
    )
