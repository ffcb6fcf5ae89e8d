"""The fused conv stack on embedded tokens, as modules.

Letters in the shapes: ``N`` samples, ``O`` output channels, ``L`` positions, ``Q`` pooled positions. Errors are those
of :mod:`seqconv.functional.conv`; options of a layer are checked when it is made.

Of :class:`torch.nn.Embedding`'s options ``max_norm``, ``scale_grad_by_freq`` and ``sparse`` are refused: the rows are
read where they lie, and their gradient is one dense tensor.
"""

from __future__ import annotations

from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seqconv import backends
from seqconv.functional import arguments, conv
from seqconv.functional.arguments import IntOrTuple
from seqconv.kernels.source import Tokens, name_of
from seqconv.layers.children import ChildrenCall, call_reason, pooled
from seqconv.layers.from_torch import check_kind, pool_options
from seqconv.layers.fused import Fused
from seqconv.layers.options import (
    PaddingMode,
    Pooling,
    backend_repr,
    check_convolution,
    check_padding,
    folded_repr,
    pool_repr,
    refuse_lengths,
    set_pool,
)

__all__ = ["Embedded", "EmbeddingConvReLUGlobalMaxPool1d", "EmbeddingConvReLUMaxPool1d", "table_of"]

# Options of nn.Embedding that this layer does not implement, with the values that turn them off.
REFUSED = {"max_norm": None, "scale_grad_by_freq": False, "sparse": False}


class Embedded(Fused):
    """What the layers on embedded tokens share: an ``nn.Embedding``, drawn anew or given."""

    embedding: nn.Embedding

    @classmethod
    def from_pretrained(
        cls,
        embeddings: Tensor,
        *arguments_: Any,
        freeze: bool = True,
        padding_idx: int | None = None,
        **options: Any,
    ) -> Self:
        """Return a layer whose table is ``embeddings``, ``(V, C)``, as :meth:`torch.nn.Embedding.from_pretrained` does.

        The other arguments are the layer's own behind ``embedding_dim``: ``from_pretrained(embeddings, out_channels,
        kernel_size, ...)``. The table shares the memory of ``embeddings``, unless ``device`` or ``dtype`` ask for
        another; they are those of ``embeddings`` where not given. ``freeze=True`` trains all but the table: it gets no
        gradient. Row ``padding_idx`` keeps what it holds, and gets no gradient.
        """
        arguments.tensor("embeddings", embeddings)
        arguments.floating("embeddings", embeddings)
        if embeddings.dim() != 2 or not embeddings.numel():
            raise ValueError(f"embeddings must have shape (num_embeddings, embedding_dim), got {_shape(embeddings)}")
        arguments.flag("freeze", freeze)
        if padding_idx is not None:
            padding_idx = arguments.row("padding_idx", padding_idx, embeddings.size(0))
        for name in REFUSED.keys() & options.keys():
            _refuse(name, options.pop(name))
        table = embeddings.to(device=options.get("device"), dtype=options.get("dtype"))
        options |= {"device": table.device, "dtype": table.dtype}
        layer = cls(1, table.size(1), *arguments_, **options)  # a row to be replaced: tables may be large
        layer.embedding = nn.Embedding.from_pretrained(table, freeze=freeze, padding_idx=padding_idx)
        return layer


class EmbeddingConvReLUGlobalMaxPool1d(Embedded):
    """``nn.Embedding -> nn.Conv1d -> nn.ReLU -> maximum over all positions``: tokens ``(N, L) -> (N, O)``.

    Tokens are int32 or int64, one sequence ``(L,)`` gives ``(O,)``. The parameters are ``embedding.weight``
    ``(num_embeddings, embedding_dim)``, ``conv.weight`` and ``conv.bias``; row ``padding_idx`` starts as zeros and gets
    no gradient, as in :class:`torch.nn.Embedding`. The other arguments are those of :class:`ConvReLUGlobalMaxPool1d`.
    A second argument ``lengths`` ``(N,)`` cuts sequences off, see :func:`seqconv.functional.conv1d_relu_max_pool1d`.
    Where a child has hooks, is pruned, normalised or parametrized, or has been replaced by another module, the children
    run themselves. A table may be shared, with another layer or as the weight of an ``nn.Linear``: its gradients add
    up. Calls without gradients are faster where :class:`seqconv.frozen` promises that table and weight stay as they
    are: the folded table is kept then. ``folded_dtype``, ``torch.float16`` or ``torch.bfloat16``, keeps it in that
    dtype, for the error that :func:`seqconv.functional.embedding_conv1d_relu_max_pool1d` states.
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        out_channels: int,
        kernel_size: IntOrTuple,
        *,
        padding_idx: int | None = None,
        stride: IntOrTuple = 1,
        padding: IntOrTuple | str = 0,
        dilation: IntOrTuple = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: PaddingMode = "zeros",
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
        check_convolution(embedding_dim, out_channels, kernel_size, stride, padding, dilation, groups)
        self.embedding = nn.Embedding(num_embeddings, embedding_dim, padding_idx, device=device, dtype=dtype)
        self.conv = nn.Conv1d(
            embedding_dim,
            out_channels,
            kernel_size,  # type: ignore[arg-type]  # torch takes a tuple of one, too
            stride=stride,  # type: ignore[arg-type]
            padding=padding,  # type: ignore[arg-type]
            dilation=dilation,  # type: ignore[arg-type]
            groups=groups,
            bias=bias,
            padding_mode=padding_mode,
            device=device,
            dtype=dtype,
        )
        self.folded_dtype = arguments.folded_dtype(folded_dtype, self.embedding.weight.dtype)
        self.backend = backends.check_name(backend)

    @classmethod
    def from_torch(cls, embedding: nn.Embedding, conv: nn.Conv1d, *, backend: str = "auto") -> Self:
        """Return the layer in place of ``embedding``, ``conv``, a ReLU and a global maximum; its children are these.

        Raises ``TypeError`` for other classes of modules and ``ValueError`` for options that the layer refuses.
        """
        return cls(1, 1, 1, 1, backend=backend, device="meta")._adopt(embedding, conv)

    def _adopt(self, embedding: nn.Embedding, conv: nn.Conv1d) -> Self:
        check_kind("embedding", embedding, nn.Embedding)
        check_kind("conv", conv, nn.Conv1d)
        table_of(embedding)
        if embedding.embedding_dim != conv.in_channels:
            raise ValueError(
                f"conv must have in_channels = embedding.embedding_dim = {embedding.embedding_dim}, got "
                f"{conv.in_channels}"
            )
        self.embedding, self.conv = embedding, conv
        self.training = conv.training
        return self

    def forward(self, tokens: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Return the pooled activation of the embedded ``tokens``, of each sequence's first ``lengths`` ``(N,)``."""
        if (reason := self._call_reason()) is not None:
            return self._children_call(tokens, lengths, reason).run(self.backend)
        return conv.run(conv.embedding_call, *self._given(tokens, lengths), self.backend)

    def prepare(self, tokens: Tensor, lengths: Tensor | None = None) -> conv.Call | ChildrenCall:
        """Check ``tokens`` and return the call that :meth:`forward` runs."""
        if (reason := self._call_reason()) is not None:
            return self._children_call(tokens, lengths, reason)
        operands, options = self._given(tokens, lengths)
        return conv.embedding_call(*operands, *options)

    def _given(self, tokens: Tensor, lengths: Tensor | None) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        """Return a call's operands and its options."""
        embedding, layer = self.embedding, self.conv
        padding: Any = layer.padding
        if lengths is not None:
            refuse_lengths(layer.padding_mode)
        if layer.padding_mode != "zeros":
            tokens, padding = _pad_tokens(tokens, layer), 0
        convolution = layer.stride, padding, layer.dilation, layer.groups
        options = embedding.padding_idx, convolution, self.pool(), self.folded_dtype
        return (tokens, table_of(embedding), lengths, layer.weight, layer.bias), options

    def _call_reason(self) -> str | None:
        children = self._modules
        return call_reason(("embedding", children["embedding"], nn.Embedding), ("conv", children["conv"], nn.Conv1d))

    def _children_call(self, tokens: Tensor, lengths: Tensor | None, reason: str) -> ChildrenCall:
        pool = self.pool()
        name = name_of(Tokens, pool)
        return ChildrenCall(name, reason, lambda: pooled(self.embedding(tokens), lengths, self.conv, pool))

    def extra_repr(self) -> str:
        """Return the options that differ from their defaults; the children tell theirs."""
        return (folded_repr(self.folded_dtype) + backend_repr(self.backend)).removeprefix(", ")

    def pool(self) -> tuple[Any, ...] | None:
        """Return ``None``: the maximum is over all positions."""
        return None


class EmbeddingConvReLUMaxPool1d(Pooling, EmbeddingConvReLUGlobalMaxPool1d):
    """``nn.Embedding -> nn.Conv1d -> nn.ReLU -> nn.MaxPool1d``: tokens ``(N, L) -> (N, O, Q)``.

    The result is channels-last unless ``memory_format`` is ``torch.contiguous_format``. Tokens are int32 or int64, one
    sequence ``(L,)`` gives ``(O, Q)``. Parameters as in :class:`EmbeddingConvReLUGlobalMaxPool1d`, the other arguments
    as in :class:`ConvReLUMaxPool1d`.
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        out_channels: int,
        kernel_size: IntOrTuple,
        pool_size: IntOrTuple,
        *,
        padding_idx: int | None = None,
        stride: IntOrTuple = 1,
        padding: IntOrTuple | str = 0,
        dilation: IntOrTuple = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: PaddingMode = "zeros",
        pool_stride: IntOrTuple | None = None,
        pool_padding: IntOrTuple = 0,
        pool_dilation: IntOrTuple = 1,
        ceil_mode: bool = False,
        folded_dtype: torch.dtype | None = None,
        memory_format: torch.memory_format = torch.preserve_format,
        backend: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            num_embeddings,
            embedding_dim,
            out_channels,
            kernel_size,
            padding_idx=padding_idx,
            stride=stride,
            padding=padding,
            dilation=dilation,
            groups=groups,
            bias=bias,
            padding_mode=padding_mode,
            folded_dtype=folded_dtype,
            backend=backend,
            device=device,
            dtype=dtype,
        )
        set_pool(self, pool_size, pool_stride, pool_padding, pool_dilation, ceil_mode, memory_format)

    @classmethod
    def from_torch(  # type: ignore[override]
        cls,
        embedding: nn.Embedding,
        conv: nn.Conv1d,
        pool: nn.MaxPool1d,
        *,
        memory_format: torch.memory_format = torch.preserve_format,
        backend: str = "auto",
    ) -> Self:
        """Return the layer in place of ``embedding``, ``conv``, a ReLU and ``pool``; its children are the first two.

        Raises as :meth:`EmbeddingConvReLUGlobalMaxPool1d.from_torch` does, and ``ValueError`` for a pool that returns
        indices or has hooks.
        """
        options = pool_options(pool) | {"memory_format": memory_format, "backend": backend}
        return cls(1, 1, 1, 1, **options, device="meta")._adopt(embedding, conv)

    def extra_repr(self) -> str:
        """Return the options that differ from their defaults; the children tell theirs."""
        return pool_repr(self).removeprefix(", ") + folded_repr(self.folded_dtype) + backend_repr(self.backend)


def table_of(embedding: nn.Embedding) -> Tensor:
    """Return the table. Raises ``ValueError`` for refused options: they may have been set meanwhile."""
    if embedding.max_norm is not None or embedding.scale_grad_by_freq or embedding.sparse:
        for name in REFUSED:
            _refuse(name, getattr(embedding, name))
    return embedding.weight


def _refuse(name: str, value: Any) -> None:
    if value is not REFUSED[name]:
        raise ValueError(f"{name} must be {REFUSED[name]}: this layer has no such embedding, got {value!r}")


def _shape(tensor: Tensor) -> tuple[int, ...]:
    return tuple(tensor.shape)


def _pad_tokens(tokens: Tensor, layer: nn.Conv1d) -> Tensor:
    arguments.tensor("tokens", tokens)
    if tokens.dim() not in (1, 2):
        raise ValueError(f"tokens must have shape (N, L) or (L,), got {tuple(tokens.shape)}")
    check_padding("tokens", tokens.size(-1), layer)
    # Padding the embedded rows by copies of rows is padding the tokens by copies of tokens; torch pads floats alone.
    positions = torch.arange(tokens.size(-1), dtype=torch.float64, device=tokens.device)
    padded = F.pad(positions.unsqueeze(0), layer._reversed_padding_repeated_twice, mode=layer.padding_mode)
    return tokens[..., padded.squeeze(0).long()]
