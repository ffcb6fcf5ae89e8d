"""The compiled kernels in torch's autograd: what is saved, what is differentiated, and what torch's tools see of it."""

import gc
import itertools
import weakref

import pytest
import torch
from torch import nn
from torch.autograd.graph import save_on_cpu, saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

import seqconv
from seqconv.functional import embedding_conv1d_relu_max_pool1d, window_conv1d_relu_global_max_pool1d
from seqconv.kernels.numba import conv_pool as numba
from tests.conv_cases import LAYOUTS, composition, ours, same, whole

POOLS = [{"pool_size": 2}, {"pool_size": 130, "pool_stride": 3}, None]
pools = pytest.mark.parametrize("pool", POOLS, ids=str)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(4)


def tensors(length=150):
    return [whole(*shape).requires_grad_() for shape in ((2, 4, length), (6, 4, 3), (6,))]


@pools
def test_saves_the_input_the_weight_and_small_numbers(pool):
    x, w, b = tensors()
    saved = []
    with saved_tensors_hooks(lambda tensor: saved.append(tensor) or tensor, lambda tensor: tensor):
        result = ours(x, w, b, pool, backend="numba")
    assert saved[0] is x or saved[0].data_ptr() == x.data_ptr()
    assert saved[1] is w or saved[1].data_ptr() == w.data_ptr()
    (argmax,) = saved[2:]
    assert argmax.dtype == (torch.int8 if pool == POOLS[0] else torch.int16)
    windows = result.numel() // 12
    padded = argmax.size(2)  # rows of whole vectors
    assert argmax.shape == (2, windows, padded)
    assert 6 <= padded <= 16
    gradients = torch.autograd.grad(result.sum(), (x, w, b))
    assert all(map(same, gradients, torch.autograd.grad(composition(x, w, b, pool).sum(), (x, w, b))))


@pytest.mark.parametrize("create_graph", [False, True])
def test_asks_once_for_what_is_saved(create_graph):
    """A checkpoint that has recomputed it raises where it is asked for again."""
    x, w, b = tensors()
    asked = []
    with saved_tensors_hooks(lambda tensor: tensor, lambda tensor: asked.append(tensor) or tensor):
        result = ours(x, w, b, POOLS[0], backend="numba")
    torch.autograd.grad(result.sum(), (x, w, b), create_graph=create_graph)
    assert len(asked) == 3


@pools
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, None])
def test_saves_nothing_where_no_gradient_is_asked_for(mode, pool, monkeypatch):
    asked, forward = [], numba.forward

    def spy(*arguments, want_argmax):
        asked.append(want_argmax)
        return forward(*arguments, want_argmax=want_argmax)

    monkeypatch.setattr(numba, "forward", spy)
    x, w, b = tensors() if mode else [one.detach() for one in tensors()]
    saved = []
    with saved_tensors_hooks(lambda tensor: saved.append(tensor), lambda tensor: tensor):
        if mode is None:
            result = ours(x, w, b, pool, backend="numba")
        else:
            with mode():
                result = ours(x, w, b, pool, backend="numba")
    assert not result.requires_grad
    assert not saved
    assert asked == [False]


@pytest.mark.parametrize("wanted", list(itertools.product([False, True], repeat=3))[1:])
def test_computes_the_gradients_that_are_wanted(wanted, monkeypatch):
    seen, backward = [], numba.backward

    def spy(*arguments, wanted):
        seen.append(wanted)
        return backward(*arguments, wanted=wanted)

    monkeypatch.setattr(numba, "backward", spy)
    leaves = [one.requires_grad_(want) for one, want in zip(tensors(), wanted, strict=True)]
    ours(*leaves, POOLS[0]).sum().backward()
    assert seen == [wanted]
    assert tuple(leaf.grad is not None for leaf in leaves) == wanted


def test_frozen_layers_and_inputs():
    layer, x = seqconv.ConvReLUMaxPool1d(4, 6, 3, 2), whole(2, 4, 13)
    layer.weight.requires_grad_(False)
    layer(x).sum().backward()
    assert layer.weight.grad is None
    assert layer.bias.grad is not None
    layer.requires_grad_(False)
    assert not layer(x).requires_grad
    leaf = x.requires_grad_()
    layer(leaf).sum().backward()
    assert layer.bias.grad is not None
    assert leaf.grad is not None


@pools
def test_a_second_derivative_is_refused_where_it_is_asked_for(pool):
    x, w, b = tensors()
    result = ours(x, w, b, pool, backend="numba")
    plain = torch.autograd.grad(result.square().sum(), (x, w, b), retain_graph=True)
    gradients = torch.autograd.grad(result.square().sum(), (x, w, b), create_graph=True)
    assert all(map(same, plain, gradients))
    assert all(gradient.requires_grad for gradient in gradients)
    for gradient, wanted in itertools.product(gradients, (x, w)):
        with pytest.raises(
            RuntimeError, match=r"_max_pool1d has no second derivative on backend 'numba': pass backend='r"
        ):
            torch.autograd.grad(gradient.sum(), wanted, retain_graph=True)
    penalty = [
        torch.autograd.grad(
            torch.autograd.grad(f(x, w, b, pool).square().sum(), x, create_graph=True)[0].square().sum(), (w, b)
        )
        for f in (lambda *t: ours(*t, backend="reference"), composition)
    ]
    assert all(map(same, *penalty))


def test_a_second_derivative_is_refused_behind_an_upstream_gradient_too():
    """The gradient depends on what is sent back, whether or not the tensors themselves are differentiated again."""
    x, w, b = tensors()
    upstream = torch.ones(2, 6, 74, requires_grad=True)
    (gradient,) = torch.autograd.grad(ours(x, w, b, POOLS[0]), x, upstream, create_graph=True)
    with pytest.raises(RuntimeError, match=r"no second derivative"):
        torch.autograd.grad(gradient.sum(), upstream)


@pools
def test_backward_twice(pool):
    x, w, b = tensors()
    result = ours(x, w, b, pool)
    first = torch.autograd.grad(result.sum(), (x, w, b), retain_graph=True)
    second = torch.autograd.grad(result.sum(), (x, w, b))
    assert all(map(same, first, second))
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        torch.autograd.grad(result.sum(), (x, w, b))
    result = ours(x, w, b, pool)
    for _ in range(2):
        result.sum().backward(retain_graph=True)
    assert same(w.grad, 2 * first[1])


@pytest.mark.parametrize("which", [0, 1])
def test_a_tensor_changed_in_place_between_the_passes_is_noticed(which):
    leaves = tensors()
    copies = [leaf * 1 for leaf in leaves]
    result = ours(*copies, POOLS[0])
    with torch.no_grad():
        copies[which].add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        result.sum().backward()
    result = ours(*(leaf * 1 for leaf in leaves), POOLS[0])
    result.mul_(2)  # of its result nothing is needed
    result.sum().backward()
    assert same(leaves[1].grad, torch.autograd.grad(2 * composition(*leaves, POOLS[0]).sum(), leaves[1])[0])


@pools
def test_hooks_see_and_change_gradients(pool):
    gradients = []
    for function in (ours, composition):
        x, w, b = (one.detach().requires_grad_() for one in tensors())
        torch.manual_seed(4)
        seen = []
        result = function(x, w, b, pool)
        result.register_hook(lambda gradient: 3 * gradient)
        x.register_hook(lambda gradient, seen=seen: seen.append(gradient.clone()))
        w.register_hook(lambda gradient: gradient - 1)
        b.register_post_accumulate_grad_hook(lambda leaf, seen=seen: seen.append(leaf.grad.clone()))
        result.sum().backward()
        gradients.append([*seen, x.grad, w.grad, b.grad])
    assert all(map(same, *gradients))


def test_hooks_of_modules():
    layer, seen = seqconv.ConvReLUMaxPool1d(4, 6, 3, 2), []
    layer.register_full_backward_hook(lambda _, given, got: seen.append((given[0].shape, got[0].shape)))
    layer.register_forward_hook(lambda *_: seen.append("forward"))
    layer(whole(2, 4, 13).requires_grad_()).sum().backward()
    assert seen == ["forward", ((2, 4, 13), (2, 6, 5))]


@pytest.mark.parametrize("reentrant", [False, True])
@pools
def test_checkpoints(pool, reentrant):
    x, w, b = tensors()
    calls = []

    def function(*leaves):
        calls.append(torch.is_grad_enabled())
        return ours(*leaves, pool)

    expected = torch.autograd.grad(composition(x, w, b, pool).sum(), (x, w, b))
    checkpoint(function, x, w, b, use_reentrant=reentrant).sum().backward()
    assert len(calls) == 2
    assert all(map(same, (x.grad, w.grad, b.grad), expected))


def test_saved_tensors_may_be_kept_elsewhere():
    x, w, b = tensors()
    expected = torch.autograd.grad(composition(x, w, b, None).sum(), (x, w, b))
    with save_on_cpu():
        result = ours(x, w, b, None)
    assert all(map(same, torch.autograd.grad(result.sum(), (x, w, b)), expected))


def test_the_graph_keeps_nothing_alive_behind_it():
    """No cycle: memory is given back when the last reference goes, not when the collector comes by."""
    x, w, b = tensors()
    gc.disable()
    try:
        copy = x * 1
        result = ours(copy, w, b, POOLS[0])
        alive = [weakref.ref(one) for one in (copy, result, result.grad_fn)]
        torch.autograd.grad(result.sum(), (x, w, b))
        del copy, result
        assert [one() for one in alive] == [None] * 3
    finally:
        gc.enable()


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "every_second_position", "overlapping_windows"])
def test_gradcheck_through_a_model(layout):
    """Two layers, the second fed by the first, whose results are not leaves."""
    x, w, v, b = (
        torch.randn(shape, dtype=torch.float64, requires_grad=True)
        for shape in ((2, 4, 13), (5, 4, 3), (3, 5, 2), (3,))
    )

    def model(x, w, v, b):
        hidden = ours(LAYOUTS[layout](x), w, None, POOLS[0], padding=2, backend="numba")
        return ours(hidden, v, b, None, dilation=2, backend="numba")

    assert torch.autograd.gradcheck(model, (x, w, v, b))


def test_gradcheck_of_gathered_rows():
    table, w, b = (torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in ((9, 4), (5, 4, 3), (5,)))
    tokens, starts = torch.randint(9, (3, 11)), torch.tensor([0, 1, 2])
    assert torch.autograd.gradcheck(
        lambda t, w, b: embedding_conv1d_relu_max_pool1d(tokens, t, w, b, pool_size=2, padding=1, backend="numba"),
        (table, w, b),
    )
    assert torch.autograd.gradcheck(
        lambda s, w, b: window_conv1d_relu_global_max_pool1d(s, starts, w, b, length=4, step=2, backend="numba"),
        (table, w, b),
    )


def test_a_training_step_under_anomaly_detection():
    model = nn.Sequential(seqconv.ConvReLUMaxPool1d(4, 6, 3, 2), seqconv.ConvReLUGlobalMaxPool1d(6, 1, 3))
    with torch.autograd.set_detect_anomaly(True):
        model(whole(2, 4, 13)).sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
