"""Human activity from a phone's sensors."""

from __future__ import annotations

from torch import Tensor, nn


class HarCnnLstm(nn.Module):
    """Convolutions in front of an LSTM, after Ordóñez and Roggen's DeepConvLSTM (2016), as met on UCI-HAR, with pools.

    Windows of 128 moments of 9 sensors as the data has them, ``(N, 128, 9)``, to logits ``(N, 6)``; batch 64.
    """

    def __init__(self, n_channels: int = 9, n_hidden: int = 128, n_classes: int = 6) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv1d(n_channels, 64, kernel_size=5),
            nn.ReLU(),
            nn.MaxPool1d(2),
            nn.Conv1d(64, 64, kernel_size=5),
            nn.ReLU(),
            nn.MaxPool1d(2),
            nn.Dropout(0.5),
        )
        self.lstm = nn.LSTM(64, n_hidden, batch_first=True)
        self.classifier = nn.Linear(n_hidden, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        x = self.features(x.permute(0, 2, 1))
        output, _ = self.lstm(x.permute(0, 2, 1))
        return self.classifier(output[:, -1])  # type: ignore[no-any-return]
