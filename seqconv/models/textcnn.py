"""The convnet for sentences of Kim (2014), on tokens ``(N, L)``, int32 or int64."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from seqconv.functional import arguments
from seqconv.layers import EmbeddingConvsReLUGlobalMaxPool1d

__all__ = ["TextCNN"]


class TextCNN(nn.Module):
    """Kim, "Convolutional Neural Networks for Sentence Classification" (EMNLP 2014), with one channel.

    An embedding; for each kernel size a convolution to ``filters`` features, ReLU and the maximum over all positions;
    these side by side, dropout, a dense layer. All kernel sizes read one table. The paper's bound on the norm of the
    dense layer's weights is left to the user. ``folded_dtype`` is that of
    :class:`~seqconv.EmbeddingConvsReLUGlobalMaxPool1d`.

    Pretrained vectors, frozen (the paper's CNN-static) or not (CNN-non-static)::

        model.features = EmbeddingConvsReLUGlobalMaxPool1d.from_pretrained(vectors, 100, (3, 4, 5), freeze=True)
    """

    def __init__(
        self,
        num_words: int,
        embedding_dim: int = 128,
        filters: int = 100,
        kernel_sizes: list[int] | tuple[int, ...] = (3, 4, 5),
        dropout: float = 0.5,
        num_classes: int = 1,
        padding_idx: int | None = None,
        backend: str = "auto",
        *,
        folded_dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        arguments.integer("num_words", num_words, 1)
        arguments.integer("filters", filters, 1)
        arguments.integer("num_classes", num_classes, 1)
        if not isinstance(dropout, (int, float)) or not 0 <= dropout <= 1:
            raise ValueError(f"dropout must be a number between 0 and 1, got {dropout!r}")
        self.features = EmbeddingConvsReLUGlobalMaxPool1d(
            num_words,
            embedding_dim,
            filters,
            kernel_sizes,
            padding_idx=padding_idx,
            folded_dtype=folded_dtype,
            backend=backend,
        )
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(len(kernel_sizes) * filters, num_classes)

    def forward(self, tokens: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Return the logits of ``tokens`` ``(N, L)``, ``L`` at least the largest kernel size; of the first ``lengths``.

        They are ``(N,)`` for one class, positive above zero, and ``(N, num_classes)`` for several.
        """
        logits: Tensor = self.head(self.dropout(self.features(tokens, lengths)))
        return logits.squeeze(-1) if self.head.out_features == 1 else logits
