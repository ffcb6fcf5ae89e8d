"""Descriptors of a call for the kernels on gathered rows: where a sample's rows are found, the layer's sizes.

The row that sample ``n`` has at position ``l`` is ``index[n, l] + l * step``: for tokens ``step`` is 0, for windows
``index`` holds the starts and does not depend on ``l``. Letters are those of the reference.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from numba import njit
from torch import Tensor

from ..geometry import Convolution, Pool
from ..source import Tokens, Windows
from .conv_pool_blocking import running_maxima
from .dense import DTYPES, argmax_format, padded_outputs
from .micro.simd import load_number

__all__ = [
    "Descriptor",
    "Index",
    "argmaxes_format",
    "descriptor_of",
    "index_of",
    "placed",
    "row_of",
    "split_argmaxes",
    "window_range",
]

# Approximate number of positions that a chunk of windows spans.
CHUNK = 128


class Index(NamedTuple):
    """Where a call's row numbers lie in memory. Strides are in bytes, ``itemsize`` is 4 or 8."""

    address: int
    itemsize: int
    sample_stride: int
    position_stride: int
    step: int
    length: int


class Descriptor(NamedTuple):
    """A layer's sizes in a call. ``left`` is the convolution's padding in front; strides of the result are in bytes."""

    samples: int
    length: int
    left: int
    positions: int
    outputs: int
    size: int
    stride: int
    dilation: int
    pool_size: int
    pool_stride: int
    pool_padding: int
    pool_dilation: int
    windows: int
    chunk: int
    sample_stride: int
    channel_stride: int
    window_stride: int
    slides: int = 0  # running maxima of a vector of outputs, see slide_windows; 0 where windows are pooled one by one
    limits: int = 0  # address of the int64 number of positions and of windows per sample, where these differ


def index_of(source: Tokens | Windows) -> Index:
    """Return where a source's row numbers are, which are read in place: the caller must keep the tensors alive."""
    if isinstance(source, Tokens):
        tokens, itemsize = source.tokens, source.tokens.element_size()
        sample, position = tokens.stride()
        return Index(tokens.data_ptr(), itemsize, sample * itemsize, position * itemsize, 0, tokens.size(1))
    starts, itemsize = source.starts, source.starts.element_size()
    return Index(starts.data_ptr(), itemsize, starts.stride(0) * itemsize, 0, source.step, source.length)


def placed(source: Windows) -> tuple[Tensor, Tensor]:
    """Return windows as :func:`.dense.forward` reads them in place: a tensor of their strides, and their addresses."""
    series = source.values
    row, column = series.stride()
    shape = (source.samples, series.size(1), source.length)
    places = source.starts.to(torch.int64) * (row * series.element_size()) + series.data_ptr()
    return series.detach().as_strided(shape, (0, column, source.step * row)), places


def descriptor_of(
    index: Index, samples: int, weight: Tensor, convolution: Convolution, pool: Pool | None, out: Tensor
) -> Descriptor:
    """Return the layer's descriptor; ``pool`` is ``None`` for the global maximum, ``out`` a result ``(N, O, Q)``."""
    return _descriptor(
        samples, index.length, weight.shape[::2], convolution, pool, out.size(2), out.stride(), out.element_size()
    )


@lru_cache(maxsize=1024)
def _descriptor(
    samples: int,
    length: int,
    weight: tuple[int, int],
    convolution: Convolution,
    pool: Pool | None,
    windows: int,
    strides: tuple[int, int, int],
    itemsize: int,
) -> Descriptor:
    outputs, size = weight
    positions = convolution.output_length(length, size)
    pool_size, stride, padding, dilation = (positions, 1, 0, 1) if pool is None else pool[:4]
    span = dilation * (pool_size - 1) + 1
    chunk = max(1, min((CHUNK if stride < span else max(CHUNK, 4 * span)) // stride, windows))
    by_sample, by_channel, by_window = (one * itemsize for one in strides)
    return Descriptor(
        samples, length, convolution.padding[0], positions, outputs, size, convolution.stride,
        convolution.dilation, pool_size, stride, padding, dilation, windows, chunk,
        by_sample, by_channel, by_window, 0 if pool is None else running_maxima(pool),
    )  # fmt: skip


def argmaxes_format(
    samples: int, outputs: Sequence[int], positions: int, dtype: torch.dtype
) -> tuple[tuple[int], torch.dtype]:
    """Return shape and dtype of the argmax of several layers with global maxima over at most ``positions`` positions.

    The layers' parts follow one another, each as :func:`~.dense.argmax_format` describes it.
    """
    _, kind = argmax_format(samples, 0, 1, positions - 1, dtype)
    padded = padded_outputs.__wrapped__  # without the cache: numbers may be symbols of a graph
    return (samples * sum(padded(one, DTYPES[dtype]) for one in outputs),), kind


def split_argmaxes(argmax: Tensor, samples: int, outputs: Sequence[int], dtype: torch.dtype) -> list[Tensor]:
    """Return every layer's part of what :func:`argmaxes_format` describes."""
    widths = [padded_outputs(one, DTYPES[dtype]) for one in outputs]
    parts = argmax.split([samples * width for width in widths])
    return [part.view(samples, 1, width) for part, width in zip(parts, widths, strict=True)]


@njit(inline="always")
def row_of(index: Index, n: int, position: int) -> Any:
    """Return the number of the row that sample ``n`` has at ``position``."""
    place = index.address + n * index.sample_stride + position * index.position_stride
    if index.itemsize == 8:
        return load_number(place, np.int64(0)) + position * index.step
    return np.int64(load_number(place, np.int32(0))) + position * index.step


@njit(inline="always")
def window_range(layer: Descriptor, positions: int, q: int) -> tuple[int, int, int]:
    """Return window ``q``'s first position, which may be padding, and the range of its elements that are inside.

    Inside are the first ``positions`` positions.
    """
    start = q * layer.pool_stride - layer.pool_padding
    first, last = 0, layer.pool_size
    if start < 0 or start + (layer.pool_size - 1) * layer.pool_dilation >= positions:
        first = max(-start + layer.pool_dilation - 1, 0) // layer.pool_dilation
        last = min((positions - start + layer.pool_dilation - 1) // layer.pool_dilation, layer.pool_size)
    return start, first, last
