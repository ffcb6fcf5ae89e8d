"""The blocking of the backward pass: blocks of channels, segments of a sample, groups of windows, threads' shares."""

from __future__ import annotations

from functools import lru_cache
from math import gcd
from typing import NamedTuple

from ..geometry import Convolution, Pool
from .micro.simd import REGISTERS
from .micro.sparse_products import MOST_SUMS, MOST_VECTORS

__all__ = ["BackwardBlocking", "backward_blocking", "outputs_at_once"]

# Bytes of the rows, of the input and of its gradient, that a group of windows reads: a group is finished for every
# output channel before the next begins. Most of a first-level cache.
GROUP = 24 * 1024

# Bytes of the list of windows, and of the copied rows, of a segment of a sample: part of a second-level cache.
SEGMENT = 128 * 1024

# Average number of terms that are added one by one to an element of the input's gradient, before their sum is carried
# into the total.
TERMS = 32

Sizes = tuple[int, ...]


class BackwardBlocking(NamedTuple):
    """Sizes and strides of a call for the backward kernel. Strides (sample, channel, position) are in bytes.

    ``row`` is the number of elements of a position's row in a full block of channels, ``width`` in all blocks together,
    and ``run`` the number of elements of an output channel's weights. The terms of ``summed`` outputs are added to the
    input's gradient one by one. ``direct`` tells, for the input and for its gradient, whether the tensor's own memory
    has such rows, so that none are copied.
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
    phases: int  # rows so many apart are neighbours in a copy, so that taps are one run: 1 or the dilation
    windows: int
    pool_stride: int
    pool_padding: int
    pool_dilation: int
    pool_span: int
    argmax_width: int
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
    argmax_width: int,
    convolution: Convolution,
    pool: Pool | None,
    itemsize: int,
    threads: int,
) -> BackwardBlocking:
    """Return a call's blocking from shapes and strides in elements; ``dx_strides`` is ``None`` where unwanted.

    ``argmax_width`` is the length of a row of ``argmax``; at most ``threads`` threads share the work.
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
    phases = 1
    if 2 * channels < lanes:  # whole vectors for so few would be mostly empty
        row = width = channels
        phases = dilation
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
        return sample, itemsize if channels == 1 else channel, position  # the stride of a single channel is arbitrary

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
        phases=phases,
        windows=windows,
        pool_stride=pool_stride,
        pool_padding=pool_padding,
        pool_dilation=pool_dilation,
        pool_span=pool_dilation * (pool_size - 1),
        argmax_width=argmax_width,
        row=row,
        width=width,
        run=run,
        summed=summed,
        group=min(group, whole),
        segment=min(max(segment, group), whole),
        shares=threads if by_samples else min(threads, blocks),
        by_samples=by_samples,
        # The input's rows must lie half a page from its gradient's (dense_backward.PAGE): where both are wanted, the
        # input is copied.
        direct=(dx_strides is None and has_rows(strides), has_rows(dx_strides)),
        x_strides=placed(strides),
        dx_strides=placed(dx_strides),
        gradient_strides=(sample_stride, channel_stride, window_stride),
    )


def outputs_at_once(outputs: int, size: int, windows: int, pool_size: int, rows: int) -> int:
    """Return the number of outputs whose terms are added one by one to an element of the input's gradient.

    It divides all outputs into parts of about equal size. ``rows`` is the number of positions that the kernel of
    ``size`` taps can reach from the argmax positions of ``windows``.
    """
    terms = outputs * windows * size // min(rows, windows * pool_size * size)
    return -(-outputs // max(1, -(-terms // TERMS)))
