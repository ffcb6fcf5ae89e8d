"""Where a layer's rows come from: an input of its own, a table that tokens index, a series that windows begin in.

A source holds its tensors first, then plain options; ``values`` is the one of them that holds numbers, of which there
is a gradient. ``V`` rows of ``C`` numbers, ``N`` samples, ``L`` positions.
"""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

from torch import Tensor

from .geometry import Pool

__all__ = ["NAMES", "TENSORS", "Dense", "Source", "Tokens", "Windows", "name_of", "options_of", "tensors_of"]


class Dense(NamedTuple):
    """An input ``(N, C, L)`` of any strides."""

    values: Tensor

    @property
    def samples(self) -> int:
        """The number of samples."""
        return self.values.size(0)

    @property
    def length(self) -> int:
        """The number of positions of a sample."""
        return self.values.size(2)


class Tokens(NamedTuple):
    """Rows of a table ``values`` ``(V, C)`` that ``tokens`` ``(N, L)``, int32 or int64, counts.

    Row ``padding_idx`` is read like any other and gets no gradient.
    """

    tokens: Tensor
    values: Tensor
    padding_idx: int | None = None

    @property
    def samples(self) -> int:
        """The number of samples."""
        return self.tokens.size(0)

    @property
    def length(self) -> int:
        """The number of positions of a sample."""
        return self.tokens.size(1)


class Windows(NamedTuple):
    """Windows of a series ``values`` ``(V, C)``: ``length`` rows, ``step`` apart, from ``starts`` ``(N,)`` on."""

    values: Tensor
    starts: Tensor
    length: int
    step: int

    @property
    def samples(self) -> int:
        """The number of samples."""
        return self.starts.size(0)


Source: TypeAlias = Dense | Tokens | Windows

# How many of a source's fields are tensors, the first ones, and what users call the operation on it, with a pool and
# with the global maximum.
TENSORS: dict[type[Source], int] = {Dense: 1, Tokens: 2, Windows: 2}
NAMES: dict[type[Source], tuple[str, str]] = {
    Dense: ("conv1d_relu_max_pool1d", "conv1d_relu_global_max_pool1d"),
    Tokens: ("embedding_conv1d_relu_max_pool1d", "embedding_conv1d_relu_global_max_pool1d"),
    Windows: ("window_conv1d_relu_max_pool1d", "window_conv1d_relu_global_max_pool1d"),
}


def tensors_of(source: Source) -> tuple[Tensor, ...]:
    """Return a source's tensors."""
    return source[: TENSORS[type(source)]]  # type: ignore[return-value]


def options_of(source: Source) -> tuple[int | None, ...]:
    """Return what a source holds besides its tensors."""
    return source[TENSORS[type(source)] :]  # type: ignore[return-value]


def name_of(source: Source, pool: Pool | None) -> str:
    """Return what users call the operation."""
    return NAMES[type(source)][pool is None]
