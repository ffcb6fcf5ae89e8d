"""The specification against loops over single numbers, on small integers, whose sums are exact in any order."""

import itertools
import math

import numpy as np
import pytest
import torch

from seqconv.kernels.geometry import Convolution, Pool
from seqconv.kernels.reference import conv_pool
from seqconv.kernels.source import Dense, Tokens, Windows

NAN, INF = float("nan"), float("inf")


def naive_convolution(x, w, b, geometry):
    samples, _, length = x.shape
    outputs, group_channels, size = w.shape
    left, right = geometry.padding
    positions = (length + left + right - geometry.dilation * (size - 1) - 1) // geometry.stride + 1
    y = np.zeros((samples, outputs, positions))
    for n, o, t in np.ndindex(*y.shape):
        group = o // (outputs // geometry.groups)
        y[n, o, t] = 0.0 if b is None else b[o]
        for c, k in np.ndindex(group_channels, size):
            source = t * geometry.stride - left + k * geometry.dilation
            if 0 <= source < length:
                y[n, o, t] += w[o, c, k] * x[n, group * group_channels + c, source]
    return y


def naive_windows(length, pool):
    """List the positions of each window; under ceil_mode also of a last one that starts before the right padding."""
    windows = []
    for start in itertools.count(-pool.padding, pool.stride):
        fits = start + pool.dilation * (pool.size - 1) < length + pool.padding
        if not fits and not (pool.ceil_mode and start < length):
            return windows
        if not fits and start + pool.dilation * (pool.size - 1) - (pool.stride - 1) >= length + pool.padding:
            return windows
        positions = [start + k * pool.dilation for k in range(pool.size)]
        windows.append([position for position in positions if 0 <= position < length])
    return windows


def naive(x, w, b, geometry, windows, upstream):
    """Return the pooled activation and the gradients of its weighted sum for x, w and b."""
    y = np.maximum(naive_convolution(x, w, b, geometry), 0)
    windows = windows(y.shape[2])
    pooled = np.zeros((*y.shape[:2], len(windows)))
    dx, dw, db = np.zeros_like(x), np.zeros_like(w), np.zeros(len(w))
    for n, o, q in np.ndindex(*pooled.shape):
        first = max(windows[q], key=lambda t: y[n, o, t])  # max returns the first of equals
        pooled[n, o, q] = y[n, o, first]
        if pooled[n, o, q] > 0:
            g = upstream.reshape(pooled.shape)[n, o, q]
            db[o] += g
            for c, k in np.ndindex(*w.shape[1:]):
                channel = o // (len(w) // geometry.groups) * w.shape[1] + c
                source = first * geometry.stride - geometry.padding[0] + k * geometry.dilation
                if 0 <= source < x.shape[2]:
                    dx[n, channel, source] += g * w[o, c, k]
                    dw[o, c, k] += g * x[n, channel, source]
    return pooled, dx, dw, db


CONVOLUTIONS = [
    Convolution(),
    Convolution(stride=2, padding=(1, 1)),
    Convolution(padding=(1, 2), dilation=2),
    Convolution(stride=3, padding=(4, 4), dilation=3, groups=2),
]
POOLS = [
    Pool(1, 1),
    Pool(3, 3),
    Pool(3, 1, 1),
    Pool(2, 3, 1, 2, True),
    Pool(4, 2, 2, 2),
    Pool(3, 5, 1, 1, True),
    Pool(2, 5, 0, 1, True),
]


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("pool", [None, *POOLS])
@pytest.mark.parametrize("geometry", CONVOLUTIONS)
def test_equals_loops_forward_and_backward(geometry, pool, channels_last):
    generator = np.random.default_rng(3)
    x, w, b = (
        generator.integers(-3, 4, shape).astype(float) for shape in ((2, 4, 11), (6, 4 // geometry.groups, 3), 6)
    )
    tensors = [torch.tensor(value, requires_grad=True) for value in (x, w, b)]
    source = tensors[0].transpose(1, 2).contiguous().transpose(1, 2) if channels_last else tensors[0]
    result = conv_pool.compose(Dense(source), *tensors[1:], geometry, pool)
    upstream = generator.integers(-4, 5, result.shape).astype(float)
    gradients = torch.autograd.grad(result, tensors, torch.tensor(upstream))

    windows = (lambda length: [list(range(length))]) if pool is None else lambda length: naive_windows(length, pool)
    expected, *expected_gradients = naive(x, w, b, geometry, windows, upstream)
    np.testing.assert_array_equal(result.detach().numpy(), expected.reshape(result.shape))
    for gradient, other in zip(gradients, expected_gradients, strict=True):
        np.testing.assert_array_equal(gradient.numpy(), other)


@pytest.mark.parametrize("values", [[NAN, 1.0], [1.0, NAN], [INF, NAN], [-INF, 2.0], [-0.0, 0.0], [1e-310, 0.0]])
def test_a_window_holds_what_it_should(values):
    """The weight is one: the activation is the input's positive part, and a NaN is greater than everything."""
    x = torch.tensor(values, dtype=torch.float64).reshape(1, 1, -1)
    weight = torch.ones(1, 1, 1, dtype=torch.float64)
    expected = NAN if any(map(math.isnan, values)) else max(*values, 0.0)
    for result in (
        conv_pool.compose(Dense(x), weight, None, Convolution(), Pool(2, 2)),
        conv_pool.compose(Dense(x), weight, None, Convolution(), None),
    ):
        np.testing.assert_array_equal(result.flatten().numpy(), [expected])


@pytest.mark.parametrize("size", range(1, 6))
def test_geometry_counts_as_torch(size):
    """Every window that torch's pool counts, over lengths, strides, paddings and dilations."""
    for length, stride, padding, dilation, ceil in itertools.product(
        range(1, 12), range(1, 7), range(size // 2 + 1), range(1, 5), (False, True)
    ):
        pool = Pool(size, stride, padding, dilation, ceil)
        try:
            count = torch.nn.functional.max_pool1d(torch.zeros(1, 1, length), *pool).size(2)
        except RuntimeError:
            count = 0
        assert max(pool.output_length(length), 0) == count, (length, pool)


def test_convolution_counts_as_torch():
    for length, size, stride, padding, dilation in itertools.product(
        range(1, 10), range(1, 5), range(1, 5), range(4), range(1, 4)
    ):
        geometry = Convolution(stride, (padding, padding), dilation)
        try:
            count = torch.conv1d(torch.zeros(1, 1, length), torch.zeros(1, 1, size), None, stride, padding, dilation)
        except RuntimeError:
            count = torch.zeros(0)
        assert max(geometry.output_length(length, size), 0) == count.numel(), (length, size, geometry)


@pytest.mark.parametrize(
    ("shape", "strides", "expected"),
    [
        ((2, 4, 6), (24, 6, 1), False),
        ((2, 4, 6), (24, 1, 4), True),
        ((2, 4, 6), (48, 1, 8), True),  # channels cut out of a wider tensor
        ((2, 4, 6), (4, 1, 8), True),  # time first
        ((2, 4, 6), (30, 1, 2), False),  # overlapping rows
        ((2, 4, 6), (4, 1, 0), False),  # one row, expanded
        ((2, 1, 6), (6, 1, 1), False),  # both readings fit
        ((2, 4, 1), (4, 1, 4), False),
    ],
)
def test_tells_channels_last(shape, strides, expected):
    assert conv_pool.is_channels_last(torch.zeros(200).as_strided(shape, strides)) is expected


def test_gathered_rows_equal_loops():
    generator = np.random.default_rng(5)
    table = generator.integers(-3, 4, (20, 3)).astype(float)
    weight = torch.tensor(generator.integers(-3, 4, (4, 3, 2)).astype(float))
    tokens = generator.integers(0, 20, (2, 9))
    starts, step, length = np.array([0, 11, 4]), 2, 5

    def expected(rows):
        gathered = np.stack([[table[row] for row in one] for one in rows]).transpose(0, 2, 1)
        y = np.maximum(naive_convolution(gathered, weight.numpy(), None, Convolution()), 0)
        pooled = [y[..., window].max(-1) for window in naive_windows(y.shape[2], Pool(2, 2))]
        return np.stack(pooled, -1), y.max(-1)

    rows = torch.tensor(table)
    token_rows, window_rows = torch.tensor(tokens), torch.tensor(starts)
    pooled, maxima = expected(tokens)
    arguments = (weight, None, Convolution())
    result = conv_pool.compose(Tokens(token_rows, rows), *arguments, Pool(2, 2))
    np.testing.assert_array_equal(result, pooled)
    result = conv_pool.compose(Tokens(token_rows, rows), *arguments, None)
    np.testing.assert_array_equal(result, maxima)
    pooled, maxima = expected([range(start, start + step * length, step) for start in starts])
    result = conv_pool.compose(Windows(rows, window_rows, length, step), *arguments, Pool(2, 2))
    np.testing.assert_array_equal(result, pooled)
    result = conv_pool.compose(Windows(rows, window_rows, length, step), *arguments, None)
    np.testing.assert_array_equal(result, maxima)
