"""Where a layer's rows come from: an input of its own, a table that tokens index, a series that windows begin in.

A source holds its tensors first, then plain options, then ``lengths``; ``values`` is the tensor that holds numbers, of
which there is a gradient. ``V`` rows of ``C`` numbers, ``N`` samples, ``L`` positions.

``lengths`` ``(N,)``, int32 or int64, cut samples off: each gives what it would give alone, cut off there, and then
zeros. ``None``: all samples are whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias, TypeVar

from torch import Tensor

from .geometry import Convolution, Pool

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = [
    "NAMES",
    "TENSORS",
    "Dense",
    "Source",
    "Tokens",
    "Windows",
    "limits",
    "name_of",
    "options_of",
    "source_of",
    "tensors_of",
]


class Dense(NamedTuple):
    """An input ``(N, C, L)`` of any strides."""

    values: Tensor
    lengths: Tensor | None = None

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
    lengths: Tensor | None = None

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
    lengths: Tensor | None = None

    @property
    def samples(self) -> int:
        """The number of samples."""
        return self.starts.size(0)


Counts = TypeVar("Counts", Tensor, "NDArray[np.int64]")
Source: TypeAlias = Dense | Tokens | Windows

# How many of a source's fields are tensors, the first ones (but for the lengths), and what users call the operation on
# it, with a pool and with the global maximum.
TENSORS: dict[type[Source], int] = {Dense: 1, Tokens: 2, Windows: 2}
NAMES: dict[type[Source], tuple[str, str]] = {
    Dense: ("conv1d_relu_max_pool1d", "conv1d_relu_global_max_pool1d"),
    Tokens: ("embedding_conv1d_relu_max_pool1d", "embedding_conv1d_relu_global_max_pool1d"),
    Windows: ("window_conv1d_relu_max_pool1d", "window_conv1d_relu_global_max_pool1d"),
}


def tensors_of(source: Source) -> tuple[Tensor | None, ...]:
    """Return a source's tensors, the last of them the lengths or ``None``."""
    given: Any = source[: TENSORS[type(source)]]
    return (*given, source.lengths)


def options_of(source: Source) -> tuple[int | None, ...]:
    """Return what a source holds besides its tensors."""
    return source[TENSORS[type(source)] : -1]  # type: ignore[return-value]


def source_of(kind: type[Source], tensors: Sequence[Tensor | None], options: Sequence[int | None]) -> Source:
    """Return the source that :func:`tensors_of` and :func:`options_of` took apart."""
    *given, lengths = tensors
    make: Any = kind
    return make(*given, *options, lengths)  # type: ignore[no-any-return]


def limits(lengths: Counts, size: int, convolution: Convolution, pool: Pool | None) -> tuple[Counts, Counts]:
    """Return how many positions and windows a kernel of ``size`` taps has in samples of some ``lengths`` ``(N,)``.

    ``lengths`` are a tensor or an array, and so are both results. Without a ``pool`` there is one window, none where no
    position is.
    """
    counts: Any = lengths
    positions = convolution.output_length(counts, size)
    positions = positions * ((positions > 0) & (counts > 0))
    windows = positions if pool is None else pool.output_length(positions)
    some = (windows > 0) & (positions > 0)
    return positions, (1 if pool is None else windows) * some


def name_of(kind: type[Source], pool: Any) -> str:
    """Return what users call the operation on a kind of source; ``pool`` is ``None`` for the global maximum."""
    pooled, over_all = NAMES[kind]  # torch 2.11's graphs index no tuple with a bool
    return over_all if pool is None else pooled
