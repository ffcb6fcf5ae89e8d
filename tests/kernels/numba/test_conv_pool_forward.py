"""The forward pass' plans: whatever a call's shape makes of it, the reference's numbers, and the same bits."""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from seqconv.kernels.geometry import Convolution, Pool
from seqconv.kernels.numba import conv_pool, conv_pool_blocking, dense
from seqconv.kernels.numba.runtime import threads
from seqconv.kernels.reference import conv_pool as reference
from seqconv.kernels.source import Dense
from tests.grids import grid
from tests.kernels.cases import INF, LAYOUTS, NAN, PLAIN, integers, overlapping_calls, special
from tests.kernels.numba.conftest import THREADS


def forward(x, w, b, convolution, pool, want_argmax=True):
    return conv_pool.forward(Dense(x), w, b, convolution, pool, want_argmax=want_argmax)


def expected(x, w, b, convolution, pool):
    """Return the reference's result in float64, and every window's argmax, -1 where none is active."""
    x, w = x.double(), w.double()
    b = torch.zeros(len(w)).double() if b is None else b.double()
    value = reference.compose(Dense(x), w, b, convolution, pool)
    if pool is None:
        size = convolution.output_length(x.size(2), w.size(2))
        pool = Pool(size, size)
    left, right = convolution.padding
    padded = torch.nn.functional.pad(x, (left, right))
    active = torch.nn.functional.conv1d(padded, w, b, convolution.stride, 0, convolution.dilation).relu()
    arguments = (pool.size, pool.stride, pool.padding, pool.dilation, pool.ceil_mode)
    top, place = torch.nn.functional.max_pool1d(active, *arguments, return_indices=True)
    start = torch.arange(top.size(2)) * pool.stride - pool.padding
    at = torch.where(top > 0, torch.div(place - start, pool.dilation, rounding_mode="floor"), -1)
    return value, at.transpose(1, 2)


# Samples, channels, length, outputs, kernel size, convolution, pool: what each makes the plan do.
SHAPES = {
    "several samples in a part": (37, 3, 9, 20, 3, PLAIN, Pool(2, 2)),
    "one position a sample": (70, 5, 4, 3, 4, PLAIN, Pool(1, 1)),
    "several samples, padded": (11, 6, 10, 33, 4, Convolution(2, (3, 2), 2), Pool(2, 1, 1)),
    "several samples, global": (29, 4, 12, 40, 3, PLAIN, None),
    "several samples, global, padded": (9, 4, 7, 40, 3, Convolution(1, (2, 2)), None),
    "one sample, few windows": (1, 4, 40, 200, 3, PLAIN, Pool(6, 6)),
    "one sample, many windows": (1, 7, 500, 5, 3, PLAIN, Pool(3, 3)),
    "one sample, global": (1, 3, 900, 7, 4, PLAIN, None),
    "two samples, global, padded": (2, 3, 700, 40, 4, Convolution(1, (3, 1)), None),
    "weights beyond a cache": (3, 150, 24, 70, 21, PLAIN, Pool(2, 2)),
    "weights beyond a cache, global": (2, 150, 50, 70, 21, PLAIN, None),
    "padding in the first and last chunk": (2, 5, 700, 33, 9, Convolution(1, (4, 4)), Pool(3, 3)),
    "padding on the right alone": (2, 5, 300, 17, 6, Convolution(1, (0, 5)), Pool(2, 2)),
    "padding longer than the input": (2, 3, 4, 17, 5, Convolution(1, (9, 8)), Pool(4, 2, 2)),
    "padding and strides": (2, 3, 400, 17, 5, Convolution(3, (4, 6), 3), Pool(4, 2, 2, 2, True)),
    "windows longer than a chunk": (2, 3, 900, 8, 3, PLAIN, Pool(300, 7)),
    "overlapping windows of few elements": (1, 4, 2500, 20, 3, PLAIN, Pool(3, 1, 1, 18)),
    "overlapping windows of many elements": (2, 3, 2000, 40, 5, Convolution(1, (2, 2), 3), Pool(20, 1, 10, 7, True)),
    "overlapping windows in each of several samples": (9, 4, 40, 33, 3, PLAIN, Pool(16, 1, 8)),
    "overlapping windows of three outputs": (2, 16, 700, 3, 4, PLAIN, Pool(3, 2, 1)),
    "overlapping windows of many elements, one output": (1, 16, 700, 1, 4, PLAIN, Pool(64, 3)),
    "a position in thousands": (2, 2, 4000, 5, 3, PLAIN, Pool(2, 1500)),
    "one output": (3, 9, 290, 1, 3, PLAIN, Pool(3, 3)),
    "two outputs": (2, 40, 60, 2, 5, PLAIN, Pool(2, 2)),
    "three outputs, padded": (3, 30, 150, 3, 5, Convolution(1, (2, 3), 2), Pool(2, 1, 1)),
    "eight outputs": (2, 20, 290, 8, 2, Convolution(1, (0, 0), 3), Pool(2, 2)),
    "one output of many samples": (30, 20, 20, 1, 2, PLAIN, Pool(2, 2)),
    "seven outputs, global": (3, 20, 333, 7, 4, PLAIN, None),
    "one output, global, padded": (20, 20, 18, 1, 4, Convolution(1, (3, 3)), None),
    "few positions of one output": (4, 20, 19, 1, 9, Convolution(1, (2, 3)), Pool(5, 5)),
    "many taps": (2, 64, 60, 40, 5, PLAIN, Pool(3, 3)),
}


@grid(indirect=["shared"], shared=THREADS, name=SHAPES, layout=LAYOUTS)
def test_equals_the_reference_on_exact_sums(shared, name, layout):
    samples, channels, length, outputs, size, convolution, pool = SHAPES[name]
    generator = torch.Generator().manual_seed(4)
    x = LAYOUTS[layout](integers(generator, samples, channels, length))
    w, b = integers(generator, outputs, channels, size), integers(generator, outputs)
    value, at = expected(x, w, b, convolution, pool)
    out, argmax = forward(x, w, b, convolution, pool)
    assert torch.equal(out.double(), value)
    assert torch.equal(argmax[..., :outputs].long(), at)
    assert torch.equal(forward(x, w, b, convolution, pool, want_argmax=False)[0], out)


@pytest.mark.parametrize(
    "name", ["several samples, padded", "one sample, global", "padding and strides", "three outputs, padded"]
)
def test_equals_the_reference_in_float64(shared, name):
    samples, channels, length, outputs, size, convolution, pool = SHAPES[name]
    generator = torch.Generator().manual_seed(5)
    x, w = (
        integers(generator, *one, dtype=torch.float64)
        for one in ((samples, channels, length), (outputs, channels, size))
    )
    value, at = expected(x, w, None, convolution, pool)
    out, argmax = forward(x, w, None, convolution, pool)
    assert torch.equal(out, value)
    assert torch.equal(argmax[..., :outputs].long(), at)


@pytest.fixture(params=[0, 10**9], ids=["running maxima", "one by one"])
def sliding(request, monkeypatch):
    """Pool all overlapping windows in one of two ways."""
    monkeypatch.setattr(conv_pool_blocking, "SLIDING", request.param)
    dense._prepared.cache_clear()
    yield
    dense._prepared.cache_clear()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    call=overlapping_calls(400),
    layout=st.sampled_from(["contiguous", "channels-last"]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    is_finite=st.booleans(),
    has_lengths=st.booleans(),
    seed=st.integers(0, 2**16),
)
@pytest.mark.parametrize("shared", [(1, True), (2, True)], indirect=True, ids=["1", "2"])
def test_overlapping_windows(shared, sliding, call, layout, dtype, is_finite, has_lengths, seed):
    """To the bit, argmax too: of equal values the first one, of several NaN the last one."""
    shape, outputs, size, convolution, pool = call
    generator = torch.Generator().manual_seed(seed)
    x = integers(generator, *shape, dtype=dtype)
    x = LAYOUTS[layout](x if is_finite else special(generator, x))
    w, b = integers(generator, outputs, shape[1], size, dtype=dtype), integers(generator, outputs, dtype=dtype)
    lengths = torch.randint(0, shape[2] + 1, shape[:1], generator=generator) if has_lengths else None
    given = Dense(x, lengths), w, b, convolution, pool
    out, argmax = conv_pool.forward(*given, want_argmax=True)
    alone, _ = conv_pool.forward(*given, want_argmax=False)
    value, at = reference.forward(Dense(x.double(), lengths), w.double(), b.double(), *given[3:], want_argmax=True)
    np.testing.assert_array_equal(out.double(), value)
    np.testing.assert_array_equal(alone, out)
    np.testing.assert_array_equal(argmax[..., :outputs], at)


@pytest.mark.parametrize("count", [1, 2, 8])
@pytest.mark.parametrize("pool", [Pool(3, 1, 0, 18), Pool(20, 1, 0, 54), Pool(3, 2)])
def test_few_positions_are_convolved_twice(pool, count, monkeypatch):
    """Those at the borders of pieces that threads share: of a long sample alone, an eighth at most."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: count)
    x = torch.empty(1, 101_440, 32).transpose(1, 2)
    args = dense.prepared(x, torch.empty(32, 32, 5), None, PLAIN, pool, want_argmax=False).blocking.args
    span = pool.dilation * (pool.size - 1) + 1
    assert args.pieces >= (count > 1) * count
    assert args.pieces * (args.piece_windows * pool.stride + span) <= args.positions * 9 / 8
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    args = dense.prepared(x, torch.empty(32, 32, 5), None, PLAIN, pool, want_argmax=False).blocking.args
    assert args.pieces == 1


@pytest.mark.parametrize("name", ["one sample, global", "one sample, few windows", "weights beyond a cache"])
def test_the_shapes_are_shared(name, monkeypatch):
    """Few samples leave no thread idle: positions or output channels are shared."""
    monkeypatch.setattr(threads, "WORTH_A_THREAD", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    samples, channels, length, outputs, size, convolution, pool = SHAPES[name]
    given = torch.ones(samples, channels, length), torch.ones(outputs, channels, size), None, convolution, pool
    blocking = dense.prepared(*given, want_argmax=False).blocking
    assert blocking.threads == 2
    assert blocking.args.parts >= 2


@grid(together=1, name=SHAPES, layout=["contiguous", "channels-last"])
def test_bits_depend_on_no_neighbour_and_no_thread(name, layout, monkeypatch):
    samples, channels, length, outputs, size, convolution, pool = SHAPES[name]
    generator = torch.Generator().manual_seed(6)
    x = LAYOUTS[layout](torch.randn(samples, channels, length, generator=generator))
    w, b = torch.randn(outputs, channels, size, generator=generator), torch.randn(outputs, generator=generator)
    out, argmax = forward(x, w, b, convolution, pool)
    for count in (1, 2, 3):
        monkeypatch.setattr(threads, "WORTH_A_THREAD", 1)
        monkeypatch.setattr(torch, "get_num_threads", lambda count=count: count)
        for other, more in zip(forward(x, w, b, convolution, pool), (out, argmax), strict=True):
            assert torch.equal(other, more)
        moved = LAYOUTS[layout](x.roll(samples // 2, 0))
        for other, more in zip(forward(moved, w, b, convolution, pool), (out, argmax), strict=True):
            assert torch.equal(other, more.roll(samples // 2, 0))


WEIGHTS = {
    "dense": lambda w: w.contiguous(),
    "channels-last": lambda w: w.transpose(1, 2).contiguous().transpose(1, 2),
    "outputs last": lambda w: w.permute(1, 2, 0).contiguous().permute(2, 0, 1),
    "cut": lambda w: torch.nn.functional.pad(w, (1, 1, 2, 0, 1, 1)).contiguous()[1:-1, 2:, 1:-1],
    "rows apart": lambda w: w.repeat_interleave(2, 0)[::2],
    "expanded": lambda w: w[:1].expand(w.shape),
}


@pytest.mark.parametrize("weights", sorted(WEIGHTS))
@pytest.mark.parametrize("layout", ["contiguous", "channels-last"])
@pytest.mark.parametrize(
    ("channels", "size", "outputs"),
    [(1, 9, 17), (9, 1, 33), (13, 5, 40), (70, 3, 6), (1, 1, 1), (70, 3, 3), (40, 1, 1)],
)
def test_weights_and_biases_of_any_strides(weights, layout, channels, size, outputs):
    generator = torch.Generator().manual_seed(7)
    x = LAYOUTS[layout](integers(generator, 3, channels, 30))
    w = WEIGHTS[weights](integers(generator, outputs, channels, size))
    b = integers(generator, 3 * outputs)[::3]
    out, _ = forward(x, w, b, PLAIN, Pool(2, 2))
    assert torch.equal(out.double(), expected(x, w, b, PLAIN, Pool(2, 2))[0])


@pytest.mark.parametrize("pool", [Pool(3, 3), Pool(4, 2, 2, 1), Pool(30, 1, 5), Pool(40, 3), None])
@pytest.mark.parametrize("layout", ["contiguous", "channels-last"])
def test_special_values_in_every_place(shared, pool, layout):
    """A weight of one: infinities of both signs meet in windows without a NaN."""
    generator = torch.Generator().manual_seed(8)
    choice = torch.tensor([NAN, INF, -INF, 0.0, -0.0, 1.0, 2.0, 2.0, -3.0])
    w = torch.ones(20, 1, 1)
    for chance in (0.02, 0.3):
        x = torch.randn(4, 1, 400, generator=generator).round()
        special = torch.rand(x.shape, generator=generator) < chance
        x = LAYOUTS[layout](torch.where(special, choice[torch.randint(9, x.shape, generator=generator)], x))
        out, argmax = forward(x, w, None, PLAIN, pool)
        value, at = expected_by_hand(x[:, 0].double(), pool)
        np.testing.assert_array_equal(out[:, 3].double().flatten(), value.flatten())
        np.testing.assert_array_equal(argmax[:, :, 3].flatten(), at.flatten())


def expected_by_hand(x, pool):
    """Pool ``(N, L)`` position by position: of several NaN the last is a window's maximum, the first that of all."""
    size, stride, padding = (x.size(1), 1, 0) if pool is None else (pool.size, pool.stride, pool.padding)
    windows = 1 if pool is None else pool.output_length(x.size(1))
    values, argmax = torch.zeros(len(x), windows).double(), torch.full((len(x), windows), -1)
    for n in range(len(x)):
        for q in range(windows):
            best = 0.0
            for p in range(size):
                at = q * stride - padding + p
                if 0 <= at < x.size(1):
                    value = float(x[n, at])
                    if value > best or (value != value and (pool is not None or best == best)):
                        best, argmax[n, q] = value, p
            values[n, q] = best
    return values, argmax


def test_large_weights_are_packed_by_several_threads(shared):
    generator = torch.Generator().manual_seed(9)
    x, w = integers(generator, 2, 130, 40), integers(generator, 100, 130, 7)
    for layout in ("contiguous", "channels-last"):
        out, _ = forward(LAYOUTS[layout](x), w, None, PLAIN, Pool(2, 2))
        assert torch.equal(out.double(), expected(x, w, None, PLAIN, Pool(2, 2))[0])
    assert w.numel() * 4 > conv_pool_blocking.PACKED_ALONE
