"""The CPU kernels behind a convolution with a batch norm, against torch's composition in float64."""

import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F

from seqconv.kernels.geometry import Convolution, Pool
from seqconv.kernels.norm import Norm
from seqconv.kernels.numba import conv_norm_pool
from tests.conv_cases import LAYOUTS
from tests.kernels import norm_cases
from tests.kernels.norm_cases import assert_near, composed, operands, upstream_of

ours = partial(norm_cases.ours, conv_norm_pool)
assert_as_precise = partial(norm_cases.assert_as_precise, conv_norm_pool)
CONVOLUTIONS = [Convolution(), Convolution(3, (2, 2)), Convolution(1, (2, 2), 2), Convolution(1, (1, 1), 1, 2)]
POOLS = [None, Pool(3, 3), Pool(2, 5), Pool(3, 2, 1, 1, True), Pool(2, 3, 0, 2), Pool(4, 4, 2), Pool(5, 5, 0, 1, True)]
OUTPUTS = [2, 16, 40]  # part of a vector, one or two, several and a part
CASES = [
    pytest.param(convolution, pool, OUTPUTS[(i + j) % 3], id=f"{i}-{j}")
    for i, convolution in enumerate(CONVOLUTIONS)
    for j, pool in enumerate(POOLS)
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("convolution", "pool", "outputs"), CASES)
def test_equals_torch(convolution, pool, outputs, dtype):
    leaves = operands(outputs, groups=convolution.groups)
    exact, dy, _ = composed(leaves, convolution, pool)
    mine, _ = ours([one.to(dtype) for one in leaves], convolution, pool)
    assert_near(mine, exact, dy, 12)


@pytest.mark.parametrize("pool", [None, Pool(3, 3), Pool(3, 2, 1)], ids=str)
def test_any_number_of_threads_gives_the_same(pool, shared):
    leaves = [one.float() for one in operands(40, length=300)]
    exact, dy, _ = composed([one.double() for one in leaves], Convolution(), pool)
    first, _ = ours(leaves, Convolution(), pool)
    again, _ = ours(leaves, Convolution(), pool)
    assert_near(first, exact, dy, 12)
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))


@pytest.mark.parametrize("channels", [1, 4])
@pytest.mark.parametrize(
    "layout",
    ["channels_last", "batch_last", "every_second_position", "every_second_channel", "one_sample_expanded", "flipped"],
)
def test_layouts(layout, channels):
    leaves = [one.float() for one in operands(7, channels=channels)]
    leaves[0] = LAYOUTS[layout](leaves[0])
    exact, dy, _ = composed([one.double() for one in leaves], Convolution(), Pool(3, 3))
    every_second = [torch.stack([one, one], -1)[..., 0] for one in leaves[1:]]
    upstream = upstream_of(exact[0]).float()
    for seen in (
        upstream,
        upstream.transpose(1, 2).contiguous().transpose(1, 2),
        upstream[..., None].expand(-1, -1, -1, 2)[..., 1],
    ):
        mine, _ = ours([leaves[0], *every_second], Convolution(), Pool(3, 3), upstream=seen)
        assert_near(mine, exact, dy, 12)


@pytest.mark.parametrize("mean", [0.0, 300.0])
def test_is_as_precise_as_torch(mean):
    """Also where a channel's mean is far from zero."""
    assert_as_precise(
        [one.float() for one in operands(16, samples=9, length=500, mean=mean)], Convolution(), (0, 1, 2, 4, 5)
    )


def click(y, place):
    y[..., place] = 1000


def silence(y):
    y.zero_()
    click(y, 0)


def marker(y):
    y.mul_(0.1)
    click(y, slice(5))


def at_the_guess(y):
    """As many as the kernel looks at, in eighths of the sample."""
    y.mul_(0.1)
    click(y, torch.arange(1, 16, 2) * y.size(2) // 16)


def edges(y):
    """As behind zero padding of an input that is far from zero."""
    y.add_(290)
    click(y, slice(8))
    click(y, slice(-8, None))


def one_sample(y):
    at_the_guess(y[:1])


@pytest.mark.parametrize("change", [silence, marker, at_the_guess, edges, one_sample], ids=lambda one: one.__name__)
@pytest.mark.parametrize(("samples", "length", "again"), [(1, 20_000, False), (8, 4000, False), (9, 4000, True)])
def test_positions_unlike_the_rest(change, samples, length, again, monkeypatch):
    """The convolution passes numbers on; torch adds up in float64, so its statistics are exact but for a rounding.

    The gradient of one weight per channel is what rounding leaves of a sum that is zero.
    """
    if again:
        monkeypatch.setattr(conv_norm_pool, "LARGE", 0)
        monkeypatch.setattr(conv_norm_pool, "CHUNK", 1)
    y = torch.randn(samples, 16, length, generator=torch.Generator().manual_seed(0))
    change(y)
    leaves = y, torch.ones(16, 1, 1), torch.zeros(16), torch.linspace(-1, 1, 16), torch.zeros(16)
    saved = assert_as_precise(leaves, Convolution(groups=16), (0, 1, 4, 5))
    var, mean = torch.var_mean(y.double(), (0, 2), correction=0)
    eps = torch.finfo(torch.float32).eps
    torch.testing.assert_close(saved.statistics[1].double(), var, rtol=4 * eps, atol=0)
    assert ((saved.statistics[0] - mean).abs() <= eps * (mean.abs() + var.sqrt())).all()


@pytest.mark.parametrize(("value", "count"), [(math.inf, 1), (-math.inf, 2), (math.nan, 1)])
def test_statistics_of_numbers_that_are_not_finite(value, count):
    """The mean is infinite as torch's is, the variance NaN."""
    for place in (0, 75, 149):
        leaves = [one.float() for one in operands(16, size=1, length=150)]
        leaves[0][:count, 1, place] = value
        theirs = [torch.zeros(16) for _ in range(2)]
        y = F.conv1d(*leaves[:3])
        F.batch_norm(y, *theirs, training=True, momentum=1.0)
        _, saved = ours(leaves, Convolution(), Pool(2, 2))
        for one, other in zip(saved.statistics, theirs, strict=False):
            torch.testing.assert_close(one, other, equal_nan=True)


def test_statistics_are_the_batch_s():
    leaves = operands(16, samples=9, length=700, mean=40.0)
    _, _, y = composed(leaves, Convolution(), None)
    _, saved = ours([one.float() for one in leaves], Convolution(), None)
    var, mean = torch.var_mean(y, (0, 2), correction=0)
    torch.testing.assert_close(saved.statistics[0].double(), mean, rtol=1e-6, atol=0)
    torch.testing.assert_close(saved.statistics[1].double(), var, rtol=1e-5, atol=0)


@pytest.mark.parametrize("pool", [None, Pool(3, 3), Pool(3, 2, 1)], ids=str)
def test_convolutions_that_are_computed_again(pool, monkeypatch):
    """In chunks of 8 samples and a rest."""
    leaves = operands(16, samples=19)
    exact, dy, _ = composed(leaves, Convolution(1, (1, 1)), pool)
    monkeypatch.setattr(conv_norm_pool, "LARGE", 0)
    monkeypatch.setattr(conv_norm_pool, "CHUNK", 1)
    mine, saved = ours(leaves, Convolution(1, (1, 1)), pool)
    assert not saved.activation.numel()
    assert_near(mine, exact, dy, 12)


@pytest.mark.parametrize("pool", [None, Pool(4, 4), Pool(3, 2, 1), Pool(2, 2, 0, 2)], ids=str)
def test_of_equal_values_the_first_one_gets_the_gradient(pool):
    """Whole inputs and weights of -1 to 1 make most windows have several maxima, in both dtypes the same."""
    generator = torch.Generator().manual_seed(0)
    leaves = operands(20, samples=3, length=64)
    leaves[0] = torch.randint(-1, 2, leaves[0].shape, generator=generator).double()
    leaves[1] = torch.randint(-1, 2, leaves[1].shape, generator=generator).double()
    leaves[2].zero_()
    exact, dy, _ = composed(leaves, Convolution(), pool)
    for dtype in (torch.float32, torch.float64):
        mine, _ = ours([one.to(dtype) for one in leaves], Convolution(), pool)
        assert_near(mine, exact, dy, 12)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("pool", [None, Pool(3, 3), Pool(3, 2, 1)], ids=str)
def test_nan_and_infinities_are_torch_s(pool, value):
    """They spoil what they reach, and nothing else: channels of another group stay as they are."""
    leaves = operands(6, groups=2)
    leaves[0][2, 1, 17] = value
    exact, dy, _ = composed(leaves, Convolution(groups=2), pool)
    mine, _ = ours(leaves, Convolution(groups=2), pool)
    for one, other in zip(mine, exact, strict=True):
        assert torch.equal(one.isnan(), other.isnan())
    assert exact[0].isnan().any()
    assert not exact[0].isnan().all()
    cleared = [[one.nan_to_num(0) for one in side] for side in (mine, exact)]
    assert_near(*cleared, dy.nan_to_num(0), 12)


def test_what_is_not_wanted_is_not_computed(monkeypatch):
    leaves = operands(6)
    every, _ = ours(leaves, Convolution(), Pool(3, 3))
    for i in range(3):
        wanted = tuple(j == i for j in range(5))
        found, _ = ours(leaves, Convolution(), Pool(3, 3), wanted)
        assert [one is not None for one in found[1:]] == list(wanted)
        assert torch.equal(found[1 + i], every[1 + i])
    monkeypatch.setattr(conv_norm_pool, "spread_samples", None)
    found, _ = ours(leaves, Convolution(), Pool(3, 3), (False, False, False, True, True))
    assert torch.equal(found[4], every[4])
    assert torch.equal(found[5], every[5])
    output, saved = conv_norm_pool.forward(
        *leaves[:3], Norm(None, None, *leaves[3:]), Convolution(), Pool(3, 3), want_argmax=False
    )
    assert torch.equal(output, every[0])
    assert not saved.argmax.numel()
    assert not saved.activation.numel()


def test_wide_argmax():
    """Windows of more positions than a byte counts, and more than two bytes do."""
    for length in (700, 40_000):
        leaves = operands(3, samples=2, length=length)
        exact, dy, _ = composed(leaves, Convolution(), None)
        mine, saved = ours(leaves, Convolution(), None)
        assert saved.argmax.dtype == (torch.int16 if length == 700 else torch.int32)
        assert_near(mine, exact, dy, 12)


@pytest.mark.parametrize("positions", [1, 15, 64, 65, 129])
def test_every_position_counts(positions):
    """Sums are carried every 64 positions, and samples are cut into blocks of as many."""
    for pool in (None, Pool(1, 1), Pool(2, 2, 0, 1, True)):
        leaves = operands(16, length=positions + 2)
        exact, dy, _ = composed(leaves, Convolution(), pool)
        mine, _ = ours(leaves, Convolution(), pool)
        assert_near(mine, exact, dy, 12)
