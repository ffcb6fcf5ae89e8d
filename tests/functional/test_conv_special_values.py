"""NaN, infinities, zeros' signs, subnormal and huge numbers: where torch's composition has them, forward and backward.

All other numbers are small and whole, and upstream gradients are positive, so that no sum depends on its order.
"""

import pytest
import torch

from tests.conftest import FLOORS
from tests.conv_cases import LAYOUTS, POOLS, assert_same, composition, ours, same, whole
from tests.grids import grid

NAN, INF = float("nan"), float("inf")
NON_FINITE = [NAN, INF, -INF]
FINITE = [-0.0, 0.0, 1e-45, 3.4e38, -3.4e38]
pytestmark = pytest.mark.usefixtures("floor")


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(11)


def positive(gradient):
    return gradient.abs() + 1


def functions(layout, pool, bias=None, **convolution):
    """Return both functions of an input and a weight."""
    return [lambda x, w, f=f: f(LAYOUTS[layout](x), w, bias, pool, **convolution) for f in (ours, composition)]


def planted(value, *shape):
    """Return whole numbers with ``value`` in one channel at every fourth position: kernels see one of them at most."""
    x = whole(*shape) if abs(value) != 1e-45 else torch.zeros(shape)
    x[:, 1, ::4] = value
    return x


def everywhere(*values):
    return grid(indirect=["floor"], floor=FLOORS, value=values, pool=POOLS, layout=["contiguous", "channels_last"])


@everywhere(*NON_FINITE, *FINITE)
def test_results(value, layout, pool):
    for x in (planted(value, 2, 4, 13), torch.full((2, 4, 13), value)):
        w = whole(6, 4, 3)
        w = w.abs() if abs(value) == 3.4e38 else w  # sums of huge numbers of both signs depend on their order
        for bias in (None, whole(6)):
            one, other = (f(x, w) for f in functions(layout, pool, bias, padding=1))
            assert same(one, other)
        one, other = (f(w[:, :, [0, 1, 2] * 3], x[:, :, :3]) for f in functions(layout, pool))
        assert same(one, other)
        # No sum of products cancels: whether a tiny bias outlives that depends on whether it is added first or last.
        source, weight = whole(2, 4, 13).abs(), whole(4, 4, 3).abs()
        one, other = (f(source, weight) for f in functions(layout, pool, x[0, :, 0]))
        assert same(one, other)


@everywhere(*FINITE)
def test_gradients_of_finite_numbers(value, layout, pool):
    w = whole(6, 4, 3)
    w = w.abs() if abs(value) == 3.4e38 else w
    assert_same(functions(layout, pool, padding=1), [planted(value, 2, 4, 13), w], positive)
    assert_same(functions(layout, pool, padding=1), [torch.full((2, 4, 13), value), w], positive)
    assert_same(functions(layout, pool), [whole(2, 4, 13).abs(), planted(value, 6, 4, 3)], positive)


@everywhere(*NON_FINITE)
def test_gradients_where_the_input_is_not_finite(value, layout, pool):
    assert_same(functions(layout, pool, padding=1), [planted(value, 2, 4, 13), whole(6, 4, 3)], positive)


@everywhere(*NON_FINITE)
def test_gradients_where_a_weight_is_not_finite(value, layout, pool):
    assert_same(functions(layout, pool), [whole(2, 4, 13), planted(value, 6, 4, 3)], positive)


@everywhere(*NON_FINITE, *FINITE)
def test_gradients_where_the_upstream_gradient_is_special(value, layout, pool):
    """In one window of each channel, subnormal ones everywhere: no sum depends on its order."""

    def planted_upstream(gradient):
        gradient = gradient.abs() + 1
        gradient[..., : None if value == 1e-45 else 1].fill_(value)
        return gradient

    x, w = whole(2, 4, 13).abs(), whole(6, 4, 3)
    assert_same(functions(layout, pool), [x, w.abs() if abs(value) == 3.4e38 else w], planted_upstream)


@pytest.mark.parametrize("value", NON_FINITE, ids=str)
def test_padding_times_what_is_not_finite(value, floor):
    """torch itself multiplies the padding's zeros in tiny convolutions and leaves them out of others: both will do."""
    for shape in ((1, 2, 6), (2, 4, 13)):
        x, w = torch.ones(shape), torch.ones(6, shape[1], 3)
        w[:, 0, 0] = value  # this tap sees the padding at the first position
        result = ours(x, w, None, {"pool_size": 1}, padding=1)
        expected = composition(x, w, None, {"pool_size": 1}, padding=1)
        assert same(result[..., 1:], expected[..., 1:])
        assert (result[..., 0].isnan() | (result[..., 0] == 2 * shape[1])).all()
