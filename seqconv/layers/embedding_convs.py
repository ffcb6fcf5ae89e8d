"""Convolutions of several kernel sizes on the same embedded tokens, as a module."""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

import torch
from torch import Tensor, nn

from seqconv import backends
from seqconv.functional import arguments, conv
from seqconv.functional.arguments import IntOrTuple
from seqconv.functional.several import OPERATION, embedding_conv1ds_call
from seqconv.layers.children import ChildrenCall, call_reason, pooled
from seqconv.layers.embedding import Embedded, table_of
from seqconv.layers.options import backend_repr, check_convolution, folded_repr

__all__ = ["EmbeddingConvsReLUGlobalMaxPool1d"]


class EmbeddingConvsReLUGlobalMaxPool1d(Embedded):
    """``nn.Embedding``, then for each kernel size ``nn.Conv1d -> nn.ReLU -> maximum over all positions``.

    Tokens ``(N, L)``, int32 or int64, give ``(N, len(kernel_sizes) * out_channels)``, one sequence ``(L,)`` the same
    without ``N``: first the ``out_channels`` of the first kernel size. The parameters are ``embedding.weight``
    ``(num_embeddings, embedding_dim)``, ``convs.i.weight`` and ``convs.i.bias``; all convolutions read the one table.
    ``stride``, ``padding`` and ``dilation`` are those of :class:`torch.nn.Conv1d`, the same for every kernel size, the
    rest is as in :class:`~seqconv.EmbeddingConvReLUGlobalMaxPool1d`.
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        out_channels: int,
        kernel_sizes: list[int] | tuple[int, ...],
        *,
        padding_idx: int | None = None,
        stride: IntOrTuple = 1,
        padding: IntOrTuple | str = 0,
        dilation: IntOrTuple = 1,
        bias: bool = True,
        folded_dtype: torch.dtype | None = None,
        backend: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        arguments.integer("num_embeddings", num_embeddings, 1)
        arguments.integer("embedding_dim", embedding_dim, 1)
        if padding_idx is not None:
            arguments.row("padding_idx", padding_idx, num_embeddings)
        if not isinstance(kernel_sizes, (list, tuple)) or not kernel_sizes:
            raise ValueError(f"kernel_sizes must be a list or tuple of at least one integer, got {kernel_sizes!r}")
        for number, size in enumerate(kernel_sizes):
            arguments.integer(f"kernel_sizes[{number}]", size, 1)
            check_convolution(embedding_dim, out_channels, size, stride, padding, dilation, 1)
        self.embedding = nn.Embedding(num_embeddings, embedding_dim, padding_idx, device=device, dtype=dtype)
        self.convs = nn.ModuleList(
            nn.Conv1d(
                embedding_dim,
                out_channels,
                size,
                stride=stride,  # type: ignore[arg-type]  # torch takes a tuple of one, too
                padding=padding,  # type: ignore[arg-type]
                dilation=dilation,  # type: ignore[arg-type]
                bias=bias,
                device=device,
                dtype=dtype,
            )
            for size in kernel_sizes
        )
        self.folded_dtype = arguments.folded_dtype(folded_dtype, self.embedding.weight.dtype)
        self.backend = backends.check_name(backend)

    def forward(self, tokens: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Return the pooled activations of the embedded ``tokens``, those of all kernel sizes side by side.

        ``lengths`` ``(N,)`` are as in :class:`~seqconv.EmbeddingConvReLUGlobalMaxPool1d`.
        """
        return self.prepare(tokens, lengths).run(self.backend)

    def prepare(self, tokens: Tensor, lengths: Tensor | None = None) -> conv.Call | ChildrenCall:
        """Check ``tokens`` and return the call that :meth:`forward` runs."""
        if (reason := self._call_reason()) is not None:
            return ChildrenCall(OPERATION, reason, lambda: self._composed(tokens, lengths))
        layers = _checked(self.convs)
        return embedding_conv1ds_call(
            tokens,
            table_of(self.embedding),
            lengths,
            [layer.weight for layer in layers],
            [layer.bias for layer in layers],
            self.embedding.padding_idx,
            (layers[0].stride, layers[0].padding, layers[0].dilation, layers[0].groups),
            self.folded_dtype,
        )

    def _call_reason(self) -> str | None:
        convs = [(f"convs[{number}]", layer, nn.Conv1d) for number, layer in enumerate(self.convs)]
        return call_reason(("embedding", self.embedding, nn.Embedding), *convs)

    def _composed(self, tokens: Tensor, lengths: Tensor | None) -> Tensor:
        rows = self.embedding(tokens)
        return torch.cat([pooled(rows, lengths, layer, None) for layer in self.convs], -1)

    def extra_repr(self) -> str:
        """Return the options that differ from their defaults; the children tell theirs."""
        return (folded_repr(self.folded_dtype) + backend_repr(self.backend)).removeprefix(", ")


def _checked(convs: nn.ModuleList) -> list[nn.Conv1d]:
    """Return the convolutions. Raises for modules that the call cannot express, which may have been put there since."""
    layers: list[nn.Conv1d] = []
    for number, layer in enumerate(cast(Iterable[nn.Conv1d], convs)):
        first = layers[0] if layers else layer
        for name, wanted in (
            ("stride", first.stride),
            ("padding", first.padding),
            ("dilation", first.dilation),
            ("groups", 1),
            ("padding_mode", "zeros"),
        ):
            if (got := getattr(layer, name)) != wanted:
                raise ValueError(
                    f"convs[{number}].{name} must be {wanted!r}, as for all convolutions here, got {got!r}"
                )
        layers.append(layer)
    return layers
