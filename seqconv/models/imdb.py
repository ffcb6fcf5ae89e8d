"""Models of the review task: tokens ``(N, L)``, int32 or int64, to one logit a review ``(N,)``, positive above zero."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from seqconv.layers import LSTM, ConvReLUGlobalMaxPool1d, EmbeddingConvReLUMaxPool1d

__all__ = ["BagOfEmbeddings", "ImdbConvnet", "ImdbLSTM", "MajorityClass"]


class ImdbConvnet(nn.Module):
    """The notebook's convnet: embedding 128, convolution 32 x 7, pool 5, convolution 32 x 7, global maximum, dense.

    ``folded_dtype`` is that of :class:`~seqconv.EmbeddingConvReLUMaxPool1d`.
    """

    def __init__(
        self, num_words: int = 10_000, *, folded_dtype: torch.dtype | None = None, backend: str = "auto"
    ) -> None:
        super().__init__()
        self.first = EmbeddingConvReLUMaxPool1d(num_words, 128, 32, 7, 5, folded_dtype=folded_dtype, backend=backend)
        self.second = ConvReLUGlobalMaxPool1d(32, 32, 7, backend=backend)
        self.head = nn.Linear(32, 1)

    def forward(self, tokens: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Return the logits ``(N,)`` of ``tokens`` ``(N, L)``, ``L`` at least 41; of the first ``lengths`` ``(N,)``."""
        pooled = self.first(tokens, lengths)
        return self.head(self.second(pooled, self.first.output_lengths(lengths))).squeeze(-1)  # type: ignore[no-any-return]


class ImdbLSTM(nn.Module):
    """The convnet's rival: an LSTM(32) on the same embedding, its last state to a dense layer."""

    def __init__(self, num_words: int = 10_000, *, backend: str = "auto") -> None:
        super().__init__()
        self.embedding = nn.Embedding(num_words, 128)
        self.lstm = LSTM(128, 32, batch_first=True, backend=backend)
        self.head = nn.Linear(32, 1)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the logits ``(N,)`` of ``tokens`` ``(N, L)``."""
        _, (state, _) = self.lstm(self.embedding(tokens))
        return self.head(state[-1]).squeeze(-1)  # type: ignore[no-any-return]


class BagOfEmbeddings(nn.Module):
    """A baseline that knows no order: the mean of the embeddings to a dense layer."""

    def __init__(self, num_words: int = 10_000) -> None:
        super().__init__()
        self.embedding = nn.Embedding(num_words, 128)
        self.head = nn.Linear(128, 1)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the logits ``(N,)`` of ``tokens`` ``(N, L)``."""
        return self.head(self.embedding(tokens).mean(1)).squeeze(-1)  # type: ignore[no-any-return]


class MajorityClass(nn.Module):
    """The common-sense baseline: always the class that is more frequent in the training labels ``(N,)`` of 0 and 1."""

    logit: Tensor

    def __init__(self, labels: Tensor) -> None:
        super().__init__()
        share = labels.double().mean().clamp(1e-6, 1 - 1e-6)
        self.register_buffer("logit", torch.logit(share).float())

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the same logit ``(N,)`` for each of ``tokens`` ``(N, L)``."""
        return self.logit.expand(tokens.size(0))
