"""Convolutions of several sizes over one embedding, for sentences."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class KimCNN(nn.Module):
    """Kim, "Convolutional Neural Networks for Sentence Classification" (EMNLP 2014): CNN-non-static, one channel.

    Tokens ``(N, L)`` to logits ``(N, classes)``; on movie reviews 18,765 words of 300 numbers, 56 words the longest
    sentence, which is padded by 4 on both sides; batch 50.
    """

    def __init__(
        self,
        vocab_size: int = 18_765,
        embed_dim: int = 300,
        num_filters: int = 100,
        filter_sizes: tuple[int, ...] = (3, 4, 5),
        num_classes: int = 2,
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, embed_dim, padding_idx=0)
        self.convs = nn.ModuleList([nn.Conv1d(embed_dim, num_filters, size) for size in filter_sizes])
        self.dropout = nn.Dropout(0.5)
        self.fc = nn.Linear(num_filters * len(filter_sizes), num_classes)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the logits."""
        x = self.embedding(tokens).permute(0, 2, 1)
        maps = [F.relu(conv(x)) for conv in self.convs]
        pooled = [F.max_pool1d(one, one.shape[2]).squeeze(2) for one in maps]
        return self.fc(self.dropout(torch.cat(pooled, dim=1)))  # type: ignore[no-any-return]
