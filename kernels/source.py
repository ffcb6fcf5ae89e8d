"""Where a layer's rows come from: a dense input, a table that tokens index, a series that windows are cut from.

A source holds its tensors first, then plain options, then ``lengths``; ``values`` is the floating-point tensor, the one
that may get a gradient. ``V`` rows of ``C`` numbers, ``N`` samples, ``L`` positions.

``lengths`` ``(N,)``, int32 or int64, cut samples off: each gives the result of its first ``lengths[n]`` positions
alone, followed by zeros. ``None``: all samples are whole.
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

# The number of a source's leading fields that are tensors (``lengths`` aside), and the public names of the operation on
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
    """Return a source's plain options."""
    return source[TENSORS[type(source)] : -1]  # type: ignore[return-value]


def source_of(kind: type[Source], tensors: Sequence[Tensor | None], options: Sequence[int | None]) -> Source:
    """Return the source of these tensors and options, which :func:`tensors_of` and :func:`options_of` took apart."""
    *given, lengths = tensors
    make: Any = kind
    return make(*given, *options, lengths)  # type: ignore[no-any-return]


def limits(lengths: Counts, size: int, convolution: Convolution, pool: Pool | None) -> tuple[Counts, Counts]:
    """Return the number of positions and of windows, for a kernel of ``size`` taps, of samples of ``lengths`` ``(N,)``.

    ``lengths`` is a tensor or an array, and so are both results. Without a ``pool`` there is one window, none where
    there is no position.
    """
    counts: Any = lengths
    positions = convolution.output_length(counts, size)
    positions = positions * ((positions > 0) & (counts > 0))
    windows = positions if pool is None else pool.output_length(positions)
    some = (windows > 0) & (positions > 0)
    return positions, (1 if pool is None else windows) * some


def name_of(kind: type[Source], pool: Any) -> str:
    """Return the public name of the operation on a kind of source; ``pool`` is ``None`` for the global maximum."""
    pooled, over_all = NAMES[kind]  # torch 2.11's graphs index no tuple with a bool
    return over_all if pool is None else pooled
