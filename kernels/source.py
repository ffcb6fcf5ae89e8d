"""Where a layer's rows come from: an input of its own, a table that tokens index, a series that windows begin in.

A source holds its tensors first, then plain options; ``values`` is the one of them that holds numbers, of which there
is a gradient. ``names`` is what users call the operation on it, with a pool and with the global maximum. ``V`` rows of
``C`` numbers, ``N`` samples, ``L`` positions.
"""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

from torch import Tensor

from .geometry import Pool

__all__ = ["Dense", "Source", "Tokens", "Windows", "name_of", "tensors_of", "with_tensors"]


class Dense(NamedTuple):
    """An input ``(N, C, L)`` of any strides."""

    values: Tensor

    tensors = 1
    names = ("conv1d_relu_max_pool1d", "conv1d_relu_global_max_pool1d")

    @property
    def samples(self) -> int:
        """The number of samples."""
        return self.values.size(0)

    @property
    def length(self) -> int:
        """The number of positions of a sample."""
        return self.values.size(2)


class Tokens(NamedTuple):
    """Rows of a table ``values`` ``(V, C)`` that ``index`` ``(N, L)``, int32 or int64, counts.

    Row ``padding_idx`` is read like any other and gets no gradient.
    """

    index: Tensor
    values: Tensor
    padding_idx: int | None = None

    tensors = 2
    names = ("embedding_conv1d_relu_max_pool1d", "embedding_conv1d_relu_global_max_pool1d")
    counted = "tokens"

    @property
    def samples(self) -> int:
        """The number of samples."""
        return self.index.size(0)

    @property
    def length(self) -> int:
        """The number of positions of a sample."""
        return self.index.size(1)


class Windows(NamedTuple):
    """Windows of a series ``values`` ``(V, C)``: ``length`` rows, ``step`` apart, from ``index`` ``(N,)`` on."""

    values: Tensor
    index: Tensor
    length: int
    step: int

    tensors = 2
    names = ("window_conv1d_relu_max_pool1d", "window_conv1d_relu_global_max_pool1d")
    counted = "starts"

    @property
    def samples(self) -> int:
        """The number of samples."""
        return self.index.size(0)


Source: TypeAlias = Dense | Tokens | Windows


def tensors_of(source: Source) -> tuple[Tensor, ...]:
    """Return a source's tensors."""
    return source[: source.tensors]  # type: ignore[return-value]


def with_tensors(source: Source, tensors: tuple[Tensor | None, ...]) -> Source:
    """Return the source with other tensors, or none, in the places of its own."""
    return source._make((*tensors, *source[source.tensors :]))  # type: ignore[return-value]


def name_of(source: Source, pool: Pool | None) -> str:
    """Return what users call the operation."""
    return source.names[pool is None]
