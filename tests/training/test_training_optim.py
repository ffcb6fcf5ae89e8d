"""RMSprop against the notebook's formula in NumPy, step by step, and against torch's own."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from seqconv.kernels.numba import rmsprop as kernel
from seqconv.training import rmsprop
from seqconv.training.optim import RMSprop


@settings(deadline=None)  # the first call loads torch's optimizers
@given(
    seed=st.integers(0, 99),
    lr=st.sampled_from([1e-3, 0.1]),
    scale=st.sampled_from([1e-7, 1e-3, 1.0]),  # at the smallest, where epsilon stands decides the result
)
def test_follows_the_formula_with_epsilon_outside_the_root(seed, lr, scale):
    generator = np.random.default_rng(seed)
    values = [generator.normal(size=shape) for shape in [(4, 3), (5,), ()]]
    parameters = [torch.nn.Parameter(torch.tensor(value)) for value in values]
    optimizer = rmsprop(parameters, lr=lr)
    mean_squares = [np.zeros_like(value) for value in values]
    for _ in range(5):
        for index, parameter in enumerate(parameters):
            gradient = scale * generator.normal(size=values[index].shape)
            parameter.grad = torch.tensor(gradient)
            mean_squares[index] = 0.9 * mean_squares[index] + 0.1 * gradient**2
            values[index] = values[index] - lr * gradient / (np.sqrt(mean_squares[index]) + 1e-7)
        optimizer.step()
    for parameter, value in zip(parameters, values, strict=True):
        # A few float64 roundings in each of five steps.
        np.testing.assert_allclose(parameter.detach().numpy(), value, rtol=1e-13, atol=1e-14)


def test_groups_keep_their_own_rates():
    first, second = (torch.nn.Parameter(torch.ones(2)) for _ in range(2))
    optimizer = rmsprop([{"params": [first]}, {"params": [second], "lr": 0.5}])
    assert [group["lr"] for group in optimizer.param_groups] == [1e-3, 0.5]


OPTIONS = {"lr": 1e-3, "alpha": 0.9, "eps": 1e-7}
SHAPES = [(40, 8), (), (5,), (0, 2)]


@pytest.fixture
def calls(monkeypatch):
    """Count the tensors that the kernel updates, call by call."""
    counted = []
    plain = kernel.rmsprop_step

    def counting(parameters, *others, **options):
        counted.append(len(parameters))
        plain(parameters, *others, **options)

    monkeypatch.setattr(kernel, "rmsprop_step", counting)
    return counted


def parameters_of(shapes=SHAPES, dtype=torch.float32):
    torch.manual_seed(1)
    return [torch.nn.Parameter(torch.randn(shape, dtype=dtype)) for shape in shapes]


def train(optimizer, parameters, steps=3, seed=2):
    torch.manual_seed(seed)
    for _ in range(steps):
        for parameter in parameters:
            parameter.grad = 1e-3 * torch.randn_like(parameter)
        optimizer.step()
    return [parameter.detach().clone() for parameter in parameters]


def assert_near(ours, theirs, steps=3):
    """Each step moves a float32 parameter by 1e-3 or 3e-3, to the last bits of that and of the parameter, below 4."""
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=steps * (2**-22 + 2**-31))


def test_equals_torchs_and_their_states_are_interchangeable(calls):
    first, second = parameters_of(), parameters_of()
    ours, theirs = RMSprop(first, **OPTIONS), torch.optim.RMSprop(second, **OPTIONS)
    assert_near(train(ours, first), train(theirs, second))
    assert calls == [4, 4, 4]
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    assert ours.state_dict()["param_groups"] == theirs.state_dict()["param_groups"]
    for one, other in zip(ours.state_dict()["state"].values(), theirs.state_dict()["state"].values(), strict=True):
        assert one.keys() == other.keys()
        assert one["step"].item() == other["step"].item() == 3
        assert (one["step"].dtype, one["square_avg"].dtype) == (other["step"].dtype, other["square_avg"].dtype)
        torch.testing.assert_close(one["square_avg"], other["square_avg"], rtol=1e-6, atol=0)
    states = copy.deepcopy([ours.state_dict(), theirs.state_dict()])
    ours.load_state_dict(states[1])
    theirs.load_state_dict(states[0])
    assert_near(train(ours, first), train(theirs, second), steps=6)


def test_tensors_that_the_kernel_does_not_serve_go_to_torch(calls):
    """Of one group, those that it serves go to it."""

    def several():
        plain = parameters_of([(6, 4), (3,)])
        double, half = parameters_of([(4,)], torch.float64), parameters_of([(4,)], torch.bfloat16)
        turned = torch.nn.Parameter(torch.randn(4, 6).t())
        without = torch.nn.Parameter(torch.ones(2))
        return [plain[0], *double, turned, *half, plain[1]], without

    outcomes = []
    for make in (RMSprop, torch.optim.RMSprop):
        parameters, without = several()
        optimizer = make([*parameters, without], **OPTIONS)
        outcomes.append(train(optimizer, parameters))
        assert without not in optimizer.state
        assert (without == 1).all()
        assert all(optimizer.state[one]["step"] == 3 for one in parameters)
    assert calls == [2, 2, 2]
    for number, (one, other) in enumerate(zip(*outcomes, strict=True)):
        if number in (0, 4):
            assert_near([one], [other])
        else:
            assert torch.equal(one, other)


@pytest.mark.parametrize(
    "option",
    [
        {"momentum": 0.9},
        {"weight_decay": 0.1},
        {"centered": True},
        {"maximize": True},
        {"lr": torch.tensor(1e-3)},
        {"momentum": 0.5, "centered": True, "foreach": False},
    ],
    ids=str,
)
def test_unusual_options_go_to_torch(calls, option):
    outcomes = []
    for make in (RMSprop, torch.optim.RMSprop):
        parameters = parameters_of()
        outcomes.append(train(make(parameters, **{**OPTIONS, **option}), parameters))
    assert calls == []
    assert all(torch.equal(one, other) for one, other in zip(*outcomes, strict=True))


def test_complex_and_sparse_ones_are_torchs_matter(calls):
    outcomes = []
    for make in (RMSprop, torch.optim.RMSprop):
        parameters = parameters_of([(3,)], torch.complex64)
        outcomes.append(train(make(parameters, **OPTIONS), parameters))
    assert torch.equal(outcomes[0][0], outcomes[1][0])
    parameter = torch.nn.Parameter(torch.ones(3))
    parameter.grad = torch.ones(3).to_sparse()
    with pytest.raises(RuntimeError, match="sparse"):
        RMSprop([parameter]).step()
    assert calls == []


def test_hooks_and_closures_run_once(calls):
    (parameter,) = parameters_of([(4,)])
    optimizer, seen = rmsprop([parameter]), []
    optimizer.register_step_pre_hook(lambda *_: seen.append("before"))
    optimizer.register_step_post_hook(lambda *_: seen.append("after"))

    def closure():
        seen.append("closure")
        optimizer.zero_grad()
        loss = (parameter**2).sum()
        loss.backward()
        return loss

    before = parameter.detach().clone()
    assert optimizer.step(closure).item() == pytest.approx((before**2).sum().item())
    assert seen == ["before", "closure", "after"]
    assert calls == [1]
    assert optimizer.state[parameter]["step"] == 1


def test_torch_sees_that_parameters_have_changed():
    """What was computed from a parameter knows that it is out of date."""
    (parameter,) = parameters_of([(4,)])
    result = parameter**2
    version = parameter._version
    train(rmsprop([parameter]), [parameter], steps=1)
    assert parameter._version > version
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        result.sum().backward()


def test_copies():
    parameters = parameters_of()
    optimizer = rmsprop(parameters)
    train(optimizer, parameters)
    twin = pickle.loads(pickle.dumps(optimizer))
    assert type(twin) is RMSprop
    theirs = twin.param_groups[0]["params"]
    for one, other in zip(train(optimizer, parameters), train(twin, theirs), strict=True):
        assert torch.equal(one, other)
