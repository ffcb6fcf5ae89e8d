"""The fused conv stack's kernels against the reference in float64, in every shape, layout and trap."""

from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from seqconv.kernels.geometry import Convolution, Pool
from seqconv.kernels.reference import conv_pool as reference
from seqconv.kernels.source import Dense
from seqconv.kernels.triton import forward, split, support
from tests.grids import grid, others_large, rounds
from tests.kernels.cases import INF, LAYOUTS, NAN, PLAIN, SPECIAL_VALUES, calls, overlapping_calls, special
from tests.kernels.triton.gather_cases import pooled_apart, reordered

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def integers(seed, *shape, dtype=torch.float32, device="cpu", most=3):
    """Return small integers: every sum of their products is exact, and ties abound."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-most, most + 1, shape, generator=generator).to(device, dtype)


def normal(seed, *shape, dtype=torch.float32, device="cpu", scale=1.0):
    return (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale).to(device, dtype)


# The forward pass in one step, or in two with as many parts as there can be.
WAYS = ["one step", "two steps"]


def in_two_steps(is_so):
    """Do what is asked for, however many windows there are."""
    return mock.patch.multiple(split, serves=lambda *_: is_so, PROGRAMS=1000, LEAST=1)


@pytest.fixture(scope="module")
def way(request):
    with in_two_steps(request.param == "two steps"):
        yield


IN_TURN = grid(together=1, dtype=DTYPES, globally=[False, True], layout=["contiguous", "channels-last"])
SEVERAL_TILES = ((3, 66, 45), 66, 3, Convolution(1, (1, 1)), Pool(2, 2))


@rounds(8)
@settings(max_examples=2, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    call=calls(20),
    layout=st.sampled_from(sorted(LAYOUTS)),
    dtype=st.sampled_from(DTYPES),
    has_bias=st.booleans(),
    seed=st.integers(0, 2**16),
)
@example(((3, 5, 61), 33, 3, Convolution(2, (1, 2), 3), Pool(3, 2, 1, 2, True)), "cut", torch.float32, True, 0)
@example(((2, 4, 1), 1, 1, PLAIN, Pool(1, 1)), "contiguous", torch.float16, False, 0)
@example(((2, 1, 2), 1, 2, Convolution(1, (0, 1)), Pool(3, 5, 1, 2, True)), "channels-last", torch.bfloat16, True, 0)
@example(SEVERAL_TILES, "channels-last", torch.float32, True, 1)
@example(((2, 12, 40), 8, 3, PLAIN, Pool(5, 5)), "channels-last", torch.float16, True, 2)  # 3 and 2 phases
@example(SEVERAL_TILES, "contiguous", torch.bfloat16, False, 1)
@example(((1, 3, 130), 5, 3, PLAIN, Pool(70, 9, 35)), "channels-last", torch.float32, True, 1)
@example(((2, 16, 300), 20, 3, PLAIN, None), "channels-last", torch.float32, True, 1)
def test_equals_the_reference_on_exact_sums(device, floor, turn, call, layout, dtype, has_bias, seed):
    """Values and gradients to the bit: of equal values the first must be the argmax, or the gradients differ."""
    shape, outputs, size, convolution, pool = call
    most = 1 if dtype == torch.bfloat16 else 3  # no sum takes more bits than the dtype has
    x = LAYOUTS[layout](integers(seed, *shape, dtype=dtype, device=device, most=most))
    w = integers(seed + 1, outputs, shape[1], size, dtype=dtype, device=device, most=most)
    b = integers(seed + 2, outputs, dtype=dtype, device=device) if has_bias else None
    with in_two_steps(True):
        in_two = floor.forward(x, w, b, convolution, pool)
    with in_two_steps(False):
        out, argmax = floor.forward(x, w, b, convolution, pool)
    assert all(map(torch.equal, in_two, (out, argmax)))
    upstream = integers(seed + 3, *out.shape, dtype=dtype, device=device, most=1)
    value, gradients = floor.expected(x, w, b, convolution, pool, upstream)
    assert out.dtype == dtype
    assert torch.equal(out.cpu(), value.to(dtype))
    if pool is not None and min(out.shape) > 1:
        assert out.transpose(1, 2).is_contiguous() == reference.is_channels_last(x)
        assert out.is_contiguous() == (not reference.is_channels_last(x))
    assert argmax.shape == (shape[0], 1 if pool is None else out.size(2), outputs)
    mine = floor.backward(upstream, argmax, x, w, convolution, pool)
    if min(x.shape) > 1:
        assert mine[0].is_contiguous() == x.is_contiguous()
        assert mine[0].transpose(1, 2).is_contiguous() != x.is_contiguous()
    for gradient, other in zip(mine, gradients, strict=True):
        assert gradient.dtype == dtype
        assert torch.equal(gradient.cpu(), other.to(dtype))


@rounds(6)
@settings(max_examples=3, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    call=overlapping_calls(40),
    layout=st.sampled_from(["contiguous", "channels-last"]),
    dtype=st.sampled_from(DTYPES),
    is_finite=st.booleans(),
    seed=st.integers(0, 2**16),
)
@example(((2, 3, 90), 70, 2, PLAIN, Pool(70, 1, 35, 1, True)), "contiguous", torch.float32, False, 1)  # three passes
@example(((2, 3, 90), 8, 2, PLAIN, Pool(20, 3, 7, 3)), "channels-last", torch.float16, False, 2)
@example(((3, 3, 30), 5, 2, PLAIN, Pool(3, 1, 1)), "channels-last", torch.bfloat16, False, 3)
@example(((2, 1, 2), 3, 1, PLAIN, Pool(2, 1, 1, 3)), "contiguous", torch.float32, True, 4)  # windows of padding alone
def test_overlapping_windows(device, floor, turn, call, layout, dtype, is_finite, seed):
    """Pooled from a stored activation, to the bit: of equal values the first one, of several NaN the last one."""
    shape, outputs, size, convolution, pool = call
    most = 1 if dtype == torch.bfloat16 else 3
    x = integers(seed, *shape, dtype=dtype, most=most)
    x = LAYOUTS[layout]((x if is_finite else special(torch.Generator().manual_seed(seed), x, 0.03)).to(device))
    w = integers(seed + 1, outputs, shape[1], size, dtype=dtype, device=device, most=most)
    b = integers(seed + 2, outputs, dtype=dtype, device=device)
    with pooled_apart(True):
        out, argmax = floor.forward(x, w, b, convolution, pool)
        alone, _ = floor.forward(x, w, b, convolution, pool, want_argmax=False)
    exact = [one.cpu().double() for one in (x, w, b)]
    value, at = reference.forward(Dense(exact[0]), *exact[1:], convolution, pool, want_argmax=True)
    np.testing.assert_array_equal(out.cpu().double(), value)
    np.testing.assert_array_equal(alone.cpu().double(), value)
    np.testing.assert_array_equal(argmax.cpu(), at)
    if min(out.shape) > 1:
        assert out.is_contiguous() == (not reference.is_channels_last(x))


@IN_TURN
def test_is_as_precise_as_torch(device, floor, dtype, globally, layout):
    """Against float64, at most twice the error of torch's composition in that precision, and the result's rounding."""
    shape, outputs, size, pool = (2, 40, 60), 24, 7, None if globally else Pool(5, 5)
    x = LAYOUTS[layout](normal(7, *shape, dtype=dtype, device=device))
    w = normal(8, outputs, shape[1], size, dtype=dtype, device=device, scale=1 / 17)
    b = normal(9, outputs, dtype=dtype, device=device)
    value = floor.expected(x, w, b, PLAIN, pool)
    mine, theirs = ((out.cpu().double() - value).abs() for out in (
        floor.forward(x, w, b, PLAIN, pool)[0], reference.compose(Dense(x), w, b, PLAIN, pool)
    ))  # fmt: skip
    eps = torch.finfo(dtype).eps
    cut = eps / 2 if device.type == "cpu" and dtype == torch.bfloat16 else 0.0  # the interpreter cuts, a GPU rounds
    assert mine.mean() <= 2 * theirs.mean() + cut * value.mean()
    assert mine.max() <= 2 * theirs.max() + (cut + eps / 2) * value.max()


@grid(indirect=["way"], way=WAYS, values=SPECIAL_VALUES, dtype=DTYPES, globally=[False, True])
def test_special_values_go_where_torch_sends_them(device, floor, way, values, dtype, globally):
    """The weight is one: the activation is the input's positive part; the gradient shows the argmax."""
    x = torch.tensor(values, dtype=dtype, device=device).reshape(1, 1, -1)
    w, b = torch.ones(1, 1, 1, dtype=dtype, device=device), torch.zeros(1, dtype=dtype, device=device)
    pool = None if globally else Pool(len(values), len(values))
    out, argmax = floor.forward(x, w, b, PLAIN, pool)
    upstream = torch.full_like(out, 3)
    value, gradients = floor.expected(x, w, b, PLAIN, pool, upstream)
    np.testing.assert_array_equal(out.cpu().double(), value)
    for mine, other in zip(floor.backward(upstream, argmax, x, w, PLAIN, pool), gradients, strict=True):
        np.testing.assert_array_equal(mine.cpu().double(), other)


@grid(
    indirect=["way"],
    way=WAYS,
    channels=[1, 16],
    special=[NAN, 9.0],
    places=[[10, 74, 138, 202], [20, 21], [21, 20 + 128]],
)
def test_argmax_is_the_first_of_several_global_maxima(device, floor, way, channels, special, places):
    """Wherever they lie in tiles of positions, and NaN before all."""
    x = integers(0, 1, channels, 210, device=device, most=1)
    x[0, 0, places] = special
    w = torch.zeros(20, channels, 2, device=device)
    w[:, 0, 0] = 1
    x = x.transpose(1, 2).contiguous().transpose(1, 2)
    out, argmax = floor.forward(x, w, None, PLAIN, None)
    np.testing.assert_array_equal(out.cpu(), torch.full((1, 20), special))
    assert argmax.flatten().tolist() == [min(places) - (special != special)] * 20  # the other tap's NaN comes sooner


@grid(together=1, indirect=["way"], way=WAYS, globally=[False, True])
def test_a_nan_reaches_only_the_windows_that_see_it(device, floor, way, globally):
    x = torch.ones(3, 20, 64, device=device)
    x[1, 7, 30] = NAN
    out, _ = floor.forward(x, torch.ones(40, 20, 3, device=device), None, PLAIN, None if globally else Pool(2, 2))
    assert out[1].isnan().reshape(40, -1).any(0).nonzero().flatten().tolist() == ([0] if globally else [14, 15])
    assert not out[[0, 2]].isnan().any()


def test_memory_around_the_tensors_is_not_read_into_results(device, floor):
    """NaN surround the input, its weights and the gradient."""
    room = torch.full((3, 25, 90), NAN, device=device)
    x = room[1:2, 3:20, 10:77].copy_(integers(1, 1, 17, 67))
    w = torch.full((20, 19, 7), NAN, device=device)[1:18, 1:18, 2:5].copy_(integers(2, 17, 17, 3))
    for pool in (Pool(3, 2), Pool(7, 7), None):
        for source in (x, LAYOUTS["channels-last, cut"](x)):
            out, argmax = floor.forward(source, w, None, PLAIN, pool)
            around = torch.full([size + 2 for size in out.shape], NAN, device=device)
            upstream = around[tuple(slice(1, -1) for _ in out.shape)].fill_(1.0)
            value, gradients = floor.expected(x, w, None, PLAIN, pool, upstream)
            assert torch.equal(out.cpu().double(), value)
            for mine, other in zip(floor.backward(upstream, argmax, source, w, PLAIN, pool), gradients, strict=True):
                assert torch.equal(mine.cpu().double(), other)
    assert room.isnan().sum() == room.numel() - x.numel()


def test_windows_of_padding_alone_are_minus_infinity(device, floor):
    """As torch has it: such a window sees no activation at all."""
    x, w, pool = torch.ones(2, 1, 2, device=device), torch.ones(1, 1, 1, device=device), Pool(2, 1, 1, 3)
    out, argmax = floor.forward(x, w, None, PLAIN, pool)
    np.testing.assert_array_equal(out.cpu(), torch.full((2, 1, 1), -INF))
    assert argmax.flatten().tolist() == [-1, -1]
    assert not any(one.any() for one in floor.backward(torch.ones_like(out), argmax, x, w, PLAIN, pool))


@pytest.mark.parametrize(
    ("pool", "dtype"), [(Pool(128, 128), torch.int8), (Pool(129, 129), torch.int16), (None, torch.int16)]
)
def test_argmax_is_as_narrow_as_the_window_allows(device, floor, pool, dtype):
    """The last position of the window has the maximum: its number is the largest that must fit."""
    x = torch.arange(1.0, 261, device=device).reshape(1, 1, -1)
    w = torch.ones(1, 1, 1, device=device)
    out, argmax = floor.forward(x, w, None, PLAIN, pool)
    assert argmax.dtype == dtype
    assert argmax[0, 0, 0] == (259 if pool is None else pool.size - 1)
    dx, _, _ = floor.backward(torch.ones_like(out), argmax, x, w, PLAIN, pool)
    maxima_at = [259] if pool is None else [pool.size - 1, 2 * pool.size - 1]
    assert dx.flatten().nonzero().flatten().tolist() == maxima_at


def test_computes_argmax_only_if_asked_for(device, floor):
    x, w = normal(0, 2, 3, 20, device=device), normal(1, 4, 3, 2, device=device)
    for pool in (Pool(2, 2), None):
        assert floor.forward(x, w, None, PLAIN, pool, want_argmax=False)[1] is None


@pytest.mark.parametrize("wanted", [(True, False, False), (False, True, False), (False, False, True), (False,) * 3])
def test_computes_only_the_gradients_asked_for(device, floor, wanted):
    x, w, b = (normal(0, *shape, device=device) for shape in ((2, 3, 20), (4, 3, 2), (4,)))
    out, argmax = floor.forward(x, w, b, PLAIN, Pool(2, 2))
    upstream = normal(1, *out.shape, device=device)
    every = floor.backward(upstream, argmax, x, w, PLAIN, Pool(2, 2))
    some = floor.backward(upstream, argmax, x, w, PLAIN, Pool(2, 2), wanted)
    assert [one is not None for one in some] == list(wanted)
    for gradient, other in zip(some[:2], every[:2], strict=True):
        assert gradient is None or torch.equal(gradient, other)
    if wanted[2]:  # another kernel where it is alone: its threads may add in another order
        assert ((some[2].double() - every[2].double()).abs() <= reordered(upstream)).all()


def test_expanded_inputs_and_gradients(device, floor):
    """Strides of 0: one sample, one row, one weight and one gradient stand for all."""
    x = integers(2, 1, 6, 30, device=device).expand(3, 6, 30)
    w = integers(3, 1, 6, 3, device=device).expand(4, 6, 3)
    row = integers(4, 2, 6, 1, device=device).expand(2, 6, 12)
    for source in (x, row):
        out, argmax = floor.forward(source, w, None, PLAIN, Pool(2, 2))
        upstream = torch.ones((), device=device).expand(out.shape)
        value, gradients = floor.expected(source, w, None, PLAIN, Pool(2, 2), upstream)
        assert torch.equal(out.cpu().double(), value)
        for mine, other in zip(floor.backward(upstream, argmax, source, w, PLAIN, Pool(2, 2)), gradients, strict=True):
            assert torch.equal(mine.cpu().double(), other)


@IN_TURN
def test_gradients_are_as_precise_as_torch(device, floor, dtype, globally, layout):
    """On inputs whose maxima are clear, so that every precision chooses the same positions."""
    pool = None if globally else Pool(4, 4)
    x = LAYOUTS[layout](normal(11, 4, 24, 60, dtype=dtype, device=device))
    w = normal(12, 32, 24, 5, dtype=dtype, device=device, scale=1 / 11)
    b = normal(13, 32, dtype=dtype, device=device)
    out, argmax = floor.forward(x, w, b, PLAIN, pool)
    active = torch.nn.functional.conv1d(*(one.cpu().double() for one in (x, w, b))).relu()
    highest = (active if globally else active.unflatten(2, (-1, 4))).topk(2, -1).values
    clear = highest[..., 0] - highest[..., 1] > (0.05 if dtype == torch.bfloat16 else 0.01)
    upstream = normal(14, *out.shape, dtype=dtype, device=device) * clear.to(device)
    assert clear.float().mean() > 0.5
    _, exact = floor.expected(x, w, b, PLAIN, pool, upstream)
    tensors = [one.detach().requires_grad_() for one in (x, w, b)]
    composed = reference.compose(Dense(tensors[0]), *tensors[1:], PLAIN, pool)
    theirs = torch.autograd.grad(composed, tensors, upstream)
    cut = torch.finfo(dtype).eps / 2 if device.type == "cpu" and dtype == torch.bfloat16 else 0.0
    for mine, their, value in zip(
        floor.backward(upstream, argmax, x, w, PLAIN, pool), theirs, exact, strict=True
    ):  # fmt: skip
        error, other = ((one.cpu().double() - value).abs().mean() for one in (mine, their))
        assert error <= 2 * other + cut * value.abs().mean()


@grid(
    together=2,
    dtype=[torch.float32, torch.bfloat16],
    tf32=[True, False],
    case=[(Pool(2, 2), 1), (Pool(3, 2), 1), (Pool(9, 1), 1), (Pool(1, 1), 2), (None, 1)],
    outputs=[5, 40],
)
def test_reads_nothing_that_was_not_written(device, floor, monkeypatch, dtype, tf32, case, outputs):
    """New memory is full of NaN; outputs that packed weights do not have are zeros."""
    new_empty, (pool, stride) = torch.Tensor.new_empty, case

    def poisoned(*given, **named):
        made = new_empty(*given, **named)
        return made.fill_(NAN) if made.is_floating_point() else made

    torch.backends.cudnn.allow_tf32 = tf32
    monkeypatch.setattr(torch.Tensor, "new_empty", poisoned)
    x, w = (integers(i, *shape, dtype=dtype, device=device) for i, shape in enumerate([(2, 6, 40), (outputs, 6, 3)]))
    convolution = PLAIN._replace(stride=stride)
    out, argmax = floor.forward(x, w, None, convolution, pool)
    upstream = integers(3, *out.shape, dtype=dtype, device=device)
    _, gradients = floor.expected(x, w, None, convolution, pool, upstream)
    for mine, other in zip(floor.backward(upstream, argmax, x, w, convolution, pool), gradients, strict=True):
        assert torch.equal(mine.cpu(), other.to(dtype))


@pytest.mark.parametrize("pool", others_large(Pool(3, 3), Pool(3, 2), None))
def test_reruns_give_the_same_bits(device, floor, pool):
    interpreted = device.type == "cpu"
    x = normal(0, *((2, 3, 30) if interpreted else (500, 20, 90)), device=device)
    w = normal(1, 40, x.size(1), 3, device=device)
    upstream = normal(2, *floor.forward(x, w, None, PLAIN, pool)[0].shape, device=device)
    first = floor.step(x, w, None, PLAIN, pool, upstream)
    for _ in range(1 if interpreted else 50):
        assert all(map(torch.equal, first, floor.step(x, w, None, PLAIN, pool, upstream)))


@pytest.mark.parametrize("splits", others_large(3, 1, 100))
def test_weight_gradients_are_sums_over_splits(device, floor, monkeypatch, splits):
    """However many multiprocessors there are."""
    from seqconv.kernels.triton import backward

    monkeypatch.setattr(backward, "processors", lambda _: splits)
    x, w = integers(0, 3, 20, 90, device=device), integers(1, 20, 20, 5, device=device)
    out, argmax = floor.forward(x, w, None, PLAIN, Pool(2, 2))
    _, gradients = floor.expected(x, w, None, PLAIN, Pool(2, 2), torch.ones_like(out))
    for mine, other in zip(
        floor.backward(torch.ones_like(out), argmax, x, w, PLAIN, Pool(2, 2)), gradients, strict=True
    ):
        assert torch.equal(mine.cpu().double(), other)


@grid(together=2, splits=[1, 63, 64, 65, 200, 300])
def test_partial_sums_are_added_however_many_there_are(device, splits):
    w = torch.empty(6, 5, 4, device=device)
    partials = integers(splits, splits, 6 * 5 * 4 + 6, device=device)
    dw, db = torch.full_like(w, NAN), torch.full((6,), NAN, device=device)
    forward.launch_over_weights(w, False, partials, splits, dw, db)
    assert torch.equal(dw.permute(0, 2, 1).flatten(), partials[:, :-6].sum(0))
    assert torch.equal(db, partials[:, -6:].sum(0))


def test_refuses_with_a_reason(device, monkeypatch):
    x, w = torch.randn(2, 4, 9, device=device), torch.randn(4, 2, 3, device=device)
    assert "group" in support.refuse(Dense(x), w, Convolution(groups=2), Pool(2, 2))
    assert "float64" in support.refuse(Dense(x.double()), w.double(), PLAIN, None)
    assert "meta" in support.refuse(Dense(x.to("meta")), w.to("meta"), PLAIN, None)
    assert "channel" in support.refuse(Dense(x[:, :0]), w[:, :0], PLAIN, None)
    assert "positions" in support.refuse(Dense(x[..., :1].expand(2, 4, 2**31)), w, PLAIN, None)
    assert support.refuse(Dense(x), torch.randn(4, 4, 3, device=device), PLAIN, Pool(2, 2)) is None
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    assert "on a GPU" in support.refuse(Dense(x.cpu()), w.cpu(), PLAIN, None)


def test_follows_torchs_switches_for_tf32():
    """The old one and the new one; they concern float32 alone."""
    from seqconv.kernels.triton.launch import precision

    assert precision(torch.float32) == "ieee"
    torch.backends.cudnn.allow_tf32 = True
    assert precision(torch.float32) == "tf32"
    assert precision(torch.bfloat16) == "ieee"
    before = torch.backends.cudnn.conv.fp32_precision
    try:
        torch.backends.cudnn.conv.fp32_precision = "ieee"
        assert precision(torch.float32) == "ieee"
    finally:
        torch.backends.cudnn.conv.fp32_precision = before
