"""The settings of seqconv.numerics: whether convolutions on the CPU are summed by fewer products."""

import re
import threading

import pytest
import torch
from torch import nn

import seqconv
from seqconv.kernels import plans
from seqconv.kernels.geometry import Convolution, Pool
from seqconv.kernels.numba import dense
from tests.conv_cases import same

FASTER = plans.FastCosts(-(10**12), 0, 0, 0, 0, 0)
SLOWER = plans.FastCosts(10**12, 0, 0, 0, 0, 0)


def forget():
    plans.fast_plan.cache_clear()
    dense._prepared.cache_clear()


@pytest.fixture(autouse=True)
def _as_it_was(monkeypatch):
    """Have fast products chosen at these small shapes, and put the setting back."""
    monkeypatch.setattr(plans, "FAST", FASTER)
    forget()
    before = seqconv.are_fast_products_enabled()
    yield
    seqconv.set_fast_products(before)
    forget()


@pytest.fixture
def layer():
    torch.manual_seed(0)
    return seqconv.ConvReLUMaxPool1d(20, 33, 5, 2)


@pytest.fixture
def x():
    return torch.randn(3, 20, 60, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def both(layer, x, monkeypatch):
    """Return the layer's results by fast products and by the direct plan, which the costs choose."""
    seqconv.set_fast_products(True)
    with torch.no_grad():
        operands = x, layer.weight, layer.bias, Convolution(), Pool(2, 2)
        found = [dense.forward(*operands, False)[0]]
        with monkeypatch.context() as patch:
            patch.setattr(plans, "FAST", SLOWER)
            forget()
            assert dense.prepared(*operands, False).blocking.args.products == 0
            found.append(dense.forward(*operands, False)[0])
        forget()
        assert dense.prepared(*operands, False).blocking.args.products > 0
    assert not torch.equal(*found)  # else no test below tells one from the other
    return found


def test_is_on_at_first():
    assert seqconv.are_fast_products_enabled() is True


def test_holds_until_it_is_set_again():
    seqconv.set_fast_products(False)
    assert seqconv.are_fast_products_enabled() is False
    seqconv.set_fast_products(False)
    seqconv.set_fast_products(True)
    assert seqconv.are_fast_products_enabled() is True


@pytest.mark.parametrize("before", [True, False])
def test_holds_within_a_block(before):
    seqconv.set_fast_products(before)
    with seqconv.set_fast_products(not before):
        assert seqconv.are_fast_products_enabled() is not before
        with seqconv.set_fast_products(before):
            assert seqconv.are_fast_products_enabled() is before
            with seqconv.set_fast_products(before):
                pass
            assert seqconv.are_fast_products_enabled() is before
        assert seqconv.are_fast_products_enabled() is not before
    assert seqconv.are_fast_products_enabled() is before
    with pytest.raises(KeyError), seqconv.set_fast_products(not before):
        raise KeyError
    assert seqconv.are_fast_products_enabled() is before


def test_holds_for_all_threads():
    seqconv.set_fast_products(False)
    found = []
    thread = threading.Thread(target=lambda: found.append(seqconv.are_fast_products_enabled()))
    thread.start()
    thread.join()
    assert found == [False]


@pytest.mark.parametrize("enabled", [0, 1, None, "yes", torch.tensor(True)])
def test_takes_true_and_false_alone(enabled):
    with pytest.raises(TypeError, match=r"^enabled must be True or False, got "):
        seqconv.set_fast_products(enabled)
    assert seqconv.are_fast_products_enabled() is True


@pytest.mark.parametrize("needs_gradient", [False, True])
def test_calls_that_are_remembered_notice_it(both, layer, x, needs_gradient):
    fast, direct = both
    with torch.set_grad_enabled(needs_gradient):
        for enabled in (True, True, False, False, True, False):
            seqconv.set_fast_products(enabled)
            assert layer(x).requires_grad == needs_gradient
            assert same(layer(x).detach(), fast if enabled else direct)


def test_off_as_a_layer_is_called_first(both, layer, x):
    fast, direct = both
    with torch.no_grad():
        with seqconv.set_fast_products(False):
            assert same(layer(x), direct)
        assert same(layer(x), fast)


def test_prepared_models_notice_it(both, layer, x):
    fast, direct = both
    plain = nn.Sequential(nn.Conv1d(20, 33, 5), nn.ReLU(), nn.MaxPool1d(2)).eval()
    plain[0].load_state_dict(layer.state_dict())
    ready = seqconv.prepare(plain, x)
    for enabled in (True, True, False, False, True, False):
        seqconv.set_fast_products(enabled)
        assert same(ready(x), fast if enabled else direct)
    with seqconv.set_fast_products(False):
        ready = seqconv.prepare(plain, x)
        assert same(ready(x), direct)
    seqconv.set_fast_products(True)
    assert same(ready(x), fast)


def test_frozen_calls_do_not_serve_under_another_setting(both, layer, x):
    frozen = dense.Frozen(x, layer.weight.detach(), layer.bias.detach(), Convolution(), Pool(2, 2))
    assert frozen.takes(x)
    assert same(frozen(x), both[0])
    with seqconv.set_fast_products(False):
        assert not frozen.takes(x)
    assert frozen.takes(x)


def test_compiled_calls_read_it_as_they_run(both, layer, x):
    fast, direct = both
    compiled = torch.compile(layer, backend="aot_eager")
    with torch.no_grad():
        for enabled in (True, False, True):
            seqconv.set_fast_products(enabled)
            assert same(compiled(x), fast if enabled else direct)


@pytest.mark.parametrize(
    ("make", "shape", "plan"),
    [
        (lambda: seqconv.ConvReLUMaxPool1d(20, 33, 5, 2), (3, 20, 60), "fast: 7 products instead of 10 for two"),
        (lambda: seqconv.ConvReLUGlobalMaxPool1d(20, 33, 3), (3, 20, 60), "fast: 4 products instead of 6 for two"),
        (lambda: seqconv.ConvReLUMaxPool1d(20, 33, 5, 2).double(), (3, 20, 60), "direct: fast products serve float32"),
        (lambda: seqconv.ConvReLUMaxPool1d(20, 33, 5, 2, stride=2), (3, 20, 60), "direct: .* a stride of 1, got 2"),
        (lambda: seqconv.ConvReLUMaxPool1d(20, 33, 1, 2), (3, 20, 60), "direct: .* at least two positions, got one"),
        (lambda: seqconv.ConvReLUMaxPool1d(20, 2, 5, 2), (3, 20, 60), "direct: 2 outputs are fewer than half a vector"),
        (lambda: seqconv.ConvReLUMaxPool1d(20, 33, 5, 2), (0, 20, 60), "direct: the input is empty"),
    ],
)
def test_explain_tells_the_plan_and_why(make, shape, plan):
    layer = make()
    x = torch.zeros(shape, dtype=layer.weight.dtype)
    answer = seqconv.explain(layer, x)
    assert answer.backend == "numba"
    assert re.match(plan, answer.plan)
    with seqconv.set_fast_products(False):
        off = seqconv.explain(layer, x).plan
    assert off == "direct: seqconv.set_fast_products(False)"


def test_explain_counts_operations(monkeypatch):
    """Where costs tell that fast products are slower, the plan says so in numbers."""
    monkeypatch.setattr(plans, "FAST", SLOWER)
    forget()
    layer, x = seqconv.ConvReLUMaxPool1d(20, 33, 5, 2), torch.zeros(3, 20, 60)
    plan = seqconv.explain(layer, x).plan
    assert plan.startswith("direct: 7 products instead of 10 for two positions of a channel: 1e+12 operations against")
    vectors = -(-33 // dense.lane_count(torch.zeros(1).numpy()))
    assert float(plan.rsplit(" ", 1)[1]) == pytest.approx(3 * 56 * 20 * 5 * vectors, rel=0.005)
