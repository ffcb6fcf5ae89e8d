"""How a call of the backward pass is cut up: blocks of channels, segments of a sample, groups of windows, shares."""

from __future__ import annotations

from functools import lru_cache
from math import gcd
from typing import NamedTuple

from ..geometry import Convolution, Pool
from .micro.simd import REGISTERS
from .micro.sparse_products import MOST_SUMS, MOST_VECTORS

__all__ = ["BackwardBlocking", "backward_blocking", "outputs_at_once"]

# Windows whose rows of the input and of its gradient take so many bytes are served for every output channel before the
# next: most of a first cache.
GROUP = 24 * 1024

# A sample's windows are listed, and its rows copied, at most so many bytes of each at a time: part of a second cache.
SEGMENT = 128 * 1024

# A number of the input's gradient has so many terms added one by one, on average, before their sum is added to the
# others.
TERMS = 32

Sizes = tuple[int, ...]


class BackwardBlocking(NamedTuple):
    """What the kernel needs to know of a call. Strides, of sample, channel and position, are in bytes.

    ``row`` numbers make a position's row of a full block of channels, ``width`` of all blocks; ``run`` numbers are an
    output channel's weights; the terms of ``summed`` outputs are added to the input's gradient one by one. ``direct``
    tells that the input's, or its gradient's, own memory has such rows already.
    """

    samples: int
    channels: int
    length: int
    left: int
    padded: int
    outputs: int
    size: int
    stride: int
    dilation: int
    windows: int
    pool_stride: int
    pool_padding: int
    pool_dilation: int
    pool_span: int
    codes: int
    row: int
    width: int
    run: int
    summed: int
    group: int
    segment: int
    shares: int
    by_samples: bool
    direct: tuple[bool, bool]
    x_strides: tuple[int, int, int]
    dx_strides: tuple[int, int, int]
    gradient_strides: tuple[int, int, int]


@lru_cache(maxsize=512)
def backward_blocking(
    shape: Sizes,
    weight: Sizes,
    strides: Sizes,
    dx_strides: Sizes | None,
    gradient: Sizes,
    gradient_strides: Sizes,
    codes: int,
    convolution: Convolution,
    pool: Pool | None,
    itemsize: int,
    threads: int,
) -> BackwardBlocking:
    """Return the plan of a call, from shapes and strides, in numbers; ``dx_strides`` is ``None`` where unwanted.

    ``codes`` are the numbers of a row of ``argmax``; ``threads`` at most share the work.
    """
    (samples, channels, length), (outputs, _, size) = shape, weight
    lanes = REGISTERS.width // itemsize
    left, right = convolution.padding
    dilation, windows = convolution.dilation, gradient[2]
    pool_size, pool_stride, pool_padding, pool_dilation = (
        (convolution.output_length(length, size), 1, 0, 1) if pool is None else pool[:4]
    )
    vectors = -(-channels // lanes)
    by_samples = samples >= threads
    if 2 * channels < lanes:  # whole vectors for so few would be mostly empty
        row = width = channels
        # A run may be read and written up to the end of its last vector.
        run = -(-((size - 1) * channels + lanes) // lanes) * lanes
    else:
        sums = MOST_SUMS if dx_strides is None else MOST_VECTORS
        most = min(8, max(1, sums // (size if dilation == 1 else 2)))
        most = min(most, vectors if by_samples else -(-vectors // threads))
        row = -(-vectors // -(-vectors // most)) * lanes
        width = vectors * lanes
        run = size * width
    blocks = -(-width // row)
    padded = left + length + right
    summed = outputs
    if dx_strides is not None:
        summed = outputs_at_once(outputs, size, windows, pool_size, -(-padded // gcd(convolution.stride, dilation)))

    def placed(given: Sizes | None) -> tuple[int, int, int]:
        sample, channel, position = (0, 0, 0) if given is None else (stride * itemsize for stride in given)
        return sample, itemsize if channels == 1 else channel, position  # one channel has no stride to speak of

    def has_rows(given: Sizes | None) -> bool:
        dense = given is not None and given[1] == 1 and given[2] == row
        return dense and blocks == 1 and width == channels and channels % lanes == 0 and left == right == 0

    window_bytes = pool_stride * convolution.stride * row * itemsize
    group = max(1, GROUP // (window_bytes * lanes * (1 + (dx_strides is not None)))) * lanes
    segment = SEGMENT // max(window_bytes // row * width, outputs * (itemsize + 4)) // group * group
    whole = -(-windows // lanes) * lanes
    sample_stride, channel_stride, window_stride = (stride * itemsize for stride in gradient_strides)
    return BackwardBlocking(
        samples=samples,
        channels=channels,
        length=length,
        left=left,
        padded=padded,
        outputs=outputs,
        size=size,
        stride=convolution.stride,
        dilation=dilation,
        windows=windows,
        pool_stride=pool_stride,
        pool_padding=pool_padding,
        pool_dilation=pool_dilation,
        pool_span=pool_dilation * (pool_size - 1),
        codes=codes,
        row=row,
        width=width,
        run=run,
        summed=summed,
        group=min(group, whole),
        segment=min(max(segment, group), whole),
        shares=threads if by_samples else min(threads, blocks),
        by_samples=by_samples,
        # Rows of the input lie half a page from those of its gradient, which the tensors' own need not.
        direct=(dx_strides is None and has_rows(strides), has_rows(dx_strides)),
        x_strides=placed(strides),
        dx_strides=placed(dx_strides),
        gradient_strides=(sample_stride, channel_stride, window_stride),
    )


def outputs_at_once(outputs: int, size: int, windows: int, pool_size: int, rows: int) -> int:
    """Return how many outputs' terms a number of the input's gradient adds one by one: equal parts of all of them.

    ``rows`` are the positions that the kernel of ``size`` taps can reach from the winners of ``windows``.
    """
    terms = outputs * windows * size // min(rows, windows * pool_size * size)
    return -(-outputs // max(1, -(-terms // TERMS)))
