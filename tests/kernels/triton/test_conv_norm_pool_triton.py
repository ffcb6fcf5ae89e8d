"""The GPU kernels behind a convolution with a batch norm, against torch's composition in float64."""

import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch._dynamo import lookup_backend

from seqconv import BackendError
from seqconv.functional import (
    conv1d_batch_norm_relu_global_max_pool1d,
    conv1d_batch_norm_relu_max_pool1d,
    norm,
    norm_passes,
)
from seqconv.kernels.geometry import Convolution, Pool
from seqconv.kernels.norm import Norm
from seqconv.kernels.triton import conv_norm_pool
from tests.conv_cases import LAYOUTS, channels_last
from tests.grids import grid
from tests.kernels import norm_cases
from tests.kernels.norm_cases import assert_near, composed, upstream_of

CONVOLUTIONS = [Convolution(), Convolution(2, (2, 2)), Convolution(1, (1, 1), 2, 2)]
POOLS = [None, Pool(3, 3), Pool(3, 2, 1, 1, True), Pool(2, 3, 0, 2), Pool(1, 1), Pool(4, 1, 2)]
SAME, LAST = LAYOUTS["contiguous"], LAYOUTS["channels_last"]
operands = partial(norm_cases.operands, samples=3, length=40)


def ours(device, leaves, convolution, pool, dtype=torch.float32, **options):
    """Return the result, its gradients and what is kept, computed on the device."""
    leaves = [None if one is None else to(device, one, dtype) for one in leaves]
    found, saved = norm_cases.ours(conv_norm_pool, leaves, convolution, pool, **options)
    return [None if one is None else one.cpu() for one in found], saved


def to(device, tensor, dtype):
    """Return a tensor of the same strides elsewhere."""
    made = torch.empty_strided(tensor.shape, tensor.stride(), dtype=dtype, device=device)
    return made.copy_(tensor)


@grid(convolution=CONVOLUTIONS, pool=POOLS, layout=[SAME, LAST], outputs=[2, 20])
def test_equals_torch(device, convolution, pool, layout, outputs):
    leaves = operands(outputs, groups=convolution.groups)
    leaves[0] = layout(leaves[0])
    exact, dy, _ = composed(leaves, convolution, pool)
    mine, _ = ours(device, leaves, convolution, pool)
    assert_near(mine, exact, dy, 12)
    assert pool is None or mine[0].transpose(1, 2).is_contiguous() == (layout is LAST)
    assert mine[1].transpose(1, 2).is_contiguous()
    assert mine[2].is_contiguous()


@pytest.mark.parametrize("layout", [SAME, LAST])
def test_more_than_one_tile_in_every_direction(device, layout):
    """Splits have several tiles, the last one fewer; the second tile of channels is not full."""
    leaves = operands(70, length=310)
    leaves[0] = layout(leaves[0])
    for pool in (None, Pool(2, 2), Pool(2, 2, contiguous=True)):
        exact, dy, _ = composed(leaves, Convolution(), pool)
        mine, _ = ours(device, leaves, Convolution(), pool)
        assert_near(mine, exact, dy, 12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("norm_dtype", [torch.float32, None])
@pytest.mark.parametrize("pool", [None, Pool(3, 2, 1)], ids=str)
def test_half_floats(device, dtype, norm_dtype, pool):
    """A convolution that passes its input on: then no maximum depends on how it rounds."""
    input = torch.randn(3, 20, 38, generator=torch.Generator().manual_seed(0)).to(dtype)
    _, _, _, gamma, beta = operands(20)
    affine = [one.to(norm_dtype or dtype) for one in (gamma, beta)]
    leaves = [input, torch.ones(20, 1, 1, dtype=dtype), torch.zeros(20, dtype=dtype), *affine]
    exact, dy, _ = composed([one.double() for one in leaves], Convolution(groups=20), pool)
    found, saved = norm_cases.ours(
        conv_norm_pool, [one.to(device) for one in leaves], Convolution(groups=20), pool,
        upstream=upstream_of(exact[0]).to(device, dtype),
    )  # fmt: skip
    assert [one.dtype for one in (*found, saved.values, saved.statistics)] == [
        *[dtype] * 4, *[torch.float32] * 2, dtype, torch.float32,
    ]  # fmt: skip
    found = [one.cpu().double() for one in found]
    eps = torch.finfo(dtype).eps
    for i in (0, 1, 4, 5):
        # The sum of squares of roundings, of the upstream gradient's and the result's.
        assert (found[i] - exact[i]).norm() <= 2 * eps * exact[i].norm(), i
    assert (found[3] - exact[3]).abs().max() <= 4 * eps * dy.abs().sum((0, 2)).max()


@pytest.mark.parametrize("layout", [SAME, LAST])
@pytest.mark.parametrize("mean", [0.0, 300.0])
def test_is_as_precise_as_torch(device, mean, layout):
    """Also where a channel's mean is far from zero."""
    leaves = [one.float() for one in operands(16, length=300, mean=mean)]
    exact, theirs = (composed(one, Convolution(), Pool(2, 2))[0] for one in ([one.double() for one in leaves], leaves))
    leaves[0] = layout(leaves[0])
    mine, _ = ours(device, leaves, Convolution(), Pool(2, 2))
    for i in (0, 1, 2, 4, 5):
        errors = [(one[i].double() - exact[i]).norm() for one in (mine, theirs)]
        assert errors[0] <= 2 * errors[1] + 1e-6 * exact[i].norm(), i


@pytest.mark.parametrize("layout", [SAME, LAST])
@pytest.mark.parametrize("places", [0, slice(5), slice(-8, None)], ids=str)
def test_statistics_with_numbers_unlike_the_rest(device, places, layout):
    y = torch.randn(3, 16, 300, generator=torch.Generator().manual_seed(0)) / 10
    y[..., places] = 1000
    leaves = layout(y), torch.ones(16, 1, 1), torch.zeros(16), torch.linspace(-1, 1, 16), torch.zeros(16)
    _, saved = ours(device, leaves, Convolution(groups=16), Pool(2, 2))
    var, mean = torch.var_mean(y.double(), (0, 2), correction=0)
    found = saved.statistics.double().cpu()
    torch.testing.assert_close(found[0], mean, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(found[1], var, rtol=2e-6, atol=0)
    torch.testing.assert_close(found[2], (var + 1e-5).rsqrt(), rtol=2e-6, atol=0)
    torch.testing.assert_close(found[3], found[2] * leaves[3].double(), rtol=1e-6, atol=0)
    torch.testing.assert_close(found[4], -mean * found[3], rtol=4e-6, atol=0)


@pytest.mark.parametrize("pool", [None, Pool(4, 4), Pool(3, 2, 1), Pool(2, 2, 0, 2)], ids=str)
@pytest.mark.parametrize("layout", [SAME, LAST])
def test_of_equal_values_the_first_one_gets_the_gradient(device, pool, layout):
    """Whole inputs and weights of -1 to 1 make most windows have several maxima."""
    generator = torch.Generator().manual_seed(0)
    leaves = operands(20)
    leaves[0] = layout(torch.randint(-1, 2, leaves[0].shape, generator=generator).double())
    leaves[1] = torch.randint(-1, 2, leaves[1].shape, generator=generator).double()
    leaves[2].zero_()
    exact, dy, _ = composed(leaves, Convolution(), pool)
    mine, _ = ours(device, leaves, Convolution(), pool)
    assert_near(mine, exact, dy, 12)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("pool", [None, Pool(3, 3), Pool(3, 2, 1)], ids=str)
@pytest.mark.parametrize("layout", [SAME, LAST])
def test_nan_and_infinities_are_torch_s(device, pool, value, layout):
    """They spoil what they reach, and nothing else: channels of another group stay as they are."""
    leaves = operands(6, groups=2)
    leaves[0][2, 1, 17] = value
    leaves[0] = layout(leaves[0])
    exact, dy, _ = composed(leaves, Convolution(groups=2), pool)
    mine, _ = ours(device, leaves, Convolution(groups=2), pool)
    for one, other in zip(mine, exact, strict=True):
        assert torch.equal(one.isnan(), other.isnan())
    assert exact[0].isnan().any()
    assert not exact[0].isnan().all()
    cleared = [[one.nan_to_num(0) for one in side] for side in (mine, exact)]
    assert_near(*cleared, dy.nan_to_num(0), 12)


@pytest.mark.parametrize("layout", [SAME, LAST])
def test_what_is_not_wanted_is_not_computed(device, layout, monkeypatch):
    leaves = operands(6)
    leaves[0] = layout(leaves[0])
    every, _ = ours(device, leaves, Convolution(), Pool(3, 3))
    for i in range(5):
        wanted = tuple(j == i for j in range(5))
        found, _ = ours(device, leaves, Convolution(), Pool(3, 3), wanted=wanted)
        assert [one is not None for one in found[1:]] == list(wanted)
        torch.testing.assert_close(found[1 + i], every[1 + i], rtol=1e-5, atol=1e-5)  # torch sums in another order
    launched = []
    launch = conv_norm_pool.launch
    monkeypatch.setattr(
        conv_norm_pool, "launch", lambda kernel, *a, **k: launched.append(kernel) or launch(kernel, *a, **k)
    )
    ours(device, leaves, Convolution(), Pool(3, 3), wanted=(False, False, False, True, True))
    assert len(launched) == 5  # no gradient of the convolution
    given = [to(device, one, torch.float32) for one in leaves]
    output, saved = conv_norm_pool.forward(
        *given[:3], Norm(None, None, *given[3:]), Convolution(), Pool(3, 3), want_argmax=False
    )
    assert torch.equal(output.cpu(), every[0])
    assert not any(one.numel() for one in (saved.values, saved.argmax, saved.activation))


@pytest.mark.parametrize("missing", [(2,), (3,), (4,), (2, 3, 4)], ids=str)
def test_without_bias_gamma_or_beta(device, missing):
    leaves, plain = operands(6), (None, None, 0.0, 1.0, 0.0)
    filled = [one if i not in missing else torch.full_like(one, plain[i]) for i, one in enumerate(leaves)]
    exact, dy, _ = composed(filled, Convolution(), Pool(3, 3))
    given = [None if i in missing else one for i, one in enumerate(leaves)]
    wanted = tuple(i not in missing for i in range(5))
    mine, _ = ours(device, given, Convolution(), Pool(3, 3), wanted=wanted)
    kept = [i for i, one in enumerate(mine) if one is not None]
    assert len(kept) == 6 - len(missing)
    mine = [mine[i] if i in kept else exact[i].float() for i in range(6)]
    assert_near(mine, exact, dy, 12)


@pytest.mark.parametrize(
    ("pool", "length", "dtype"),
    [(Pool(128, 3), 140, torch.int8), (Pool(129, 3), 140, torch.int16), (None, 40, torch.int16)],
    ids=str,
)
def test_argmax_is_as_narrow_as_the_window_allows(device, pool, length, dtype):
    leaves = operands(3, size=1, length=length)
    exact, dy, _ = composed(leaves, Convolution(), pool)
    mine, saved = ours(device, leaves, Convolution(), pool)
    assert saved.argmax.dtype == dtype
    assert_near(mine, exact, dy, 12)


def test_argmax_of_long_samples():
    input, weight = torch.empty(2, 4, 2**15 + 2, device="meta"), torch.empty(3, 4, 1, device="meta")
    for length, dtype in ((2**15, torch.int16), (2**15 + 1, torch.int32)):
        _, saved = conv_norm_pool.empty_results(input[..., :length], weight, Convolution(), None, want_argmax=True)
        assert saved.argmax.dtype == dtype


@pytest.mark.parametrize("want_argmax", [True, False])
@pytest.mark.parametrize("layout", [SAME, LAST])
@pytest.mark.parametrize("pool", [None, Pool(3, 3), Pool(3, 3, contiguous=True)], ids=str)
def test_empty_results_are_as_the_results(device, pool, layout, want_argmax):
    input, weight, *_ = (to(device, layout(one) if one.dim() == 3 else one, torch.float32) for one in operands(5))
    weight = weight.contiguous()
    given = input, weight, Convolution(), pool
    output, saved = conv_norm_pool.forward(*given[:2], None, Norm(*[None] * 4), *given[2:], want_argmax=want_argmax)
    promised, empty = conv_norm_pool.empty_results(*given, want_argmax=want_argmax)
    for one, other in zip((output, *saved), (promised, *empty), strict=True):
        assert (one.shape, one.stride(), one.dtype) == (other.shape, other.stride(), other.dtype)


def public(input, weight, bias, mean, var, gamma, beta, pool, **options):
    if pool is None:
        return conv1d_batch_norm_relu_global_max_pool1d(input, weight, bias, mean, var, gamma, beta, **options)
    return conv1d_batch_norm_relu_max_pool1d(input, weight, bias, mean, var, gamma, beta, pool_size=pool, **options)


def public_operands(device, dtype=torch.float32, norm_dtype=None):
    leaves = [one.to(device, dtype if i < 3 else norm_dtype or dtype) for i, one in enumerate(operands(6))]
    return leaves, [leaves[3] * 2, leaves[4].square() + 0.5]


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("pool", [None, 3])
def test_the_public_function_and_its_running_statistics(device, pool, grad):
    leaves, running = public_operands(device)
    theirs = [one.double().cpu() for one in running]
    exact = [one.detach().cpu().double() for one in leaves]
    given = [one.requires_grad_(grad) for one in leaves]
    for momentum in (0.1, 1.0, 0.25):
        options = {"training": True, "momentum": momentum, "padding": 1}
        out = public(*given[:3], *running, *given[3:], pool, backend="triton", **options)
        y = F.conv1d(*exact[:3], padding=1)
        z = F.relu(F.batch_norm(y, *theirs, *exact[3:], training=True, momentum=momentum))
        expected = z.amax(2) if pool is None else F.max_pool1d(z, pool)
        torch.testing.assert_close(out.cpu().double(), expected, rtol=1e-5, atol=1e-5)
        for one, other in zip(running, theirs, strict=True):
            torch.testing.assert_close(one.cpu().double(), other, rtol=1e-5, atol=1e-6)
    if grad:
        first, second = (torch.autograd.grad(out.sum(), given, retain_graph=True) for _ in range(2))
        assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


@pytest.mark.parametrize("norm_dtype", [torch.float32, torch.bfloat16])
def test_gradients_have_the_tensors_dtypes(device, norm_dtype):
    leaves, running = public_operands(device, torch.bfloat16, norm_dtype)
    given = [one.requires_grad_() for one in leaves]
    for function in (public, torch.compile(public, backend="aot_eager", fullgraph=True)):
        out = function(*given[:3], *running, *given[3:], 3, training=True, backend="triton")
        assert out.dtype == torch.bfloat16
        found = torch.autograd.grad(out.sum(), given)
        assert [one.dtype for one in found] == [one.dtype for one in given]


@pytest.mark.parametrize("pool", [None, 3])
def test_one_operator_of_a_graph_and_the_same_bits(device, pool):
    graphs = []

    def backend(module, inputs):
        graphs.append([str(node.target) for node in module.graph.nodes])
        return lookup_backend("aot_eager")(module, inputs)

    leaves, running = public_operands(device)
    for layout in (SAME, channels_last):
        found = []
        for function in (public, torch.compile(public, fullgraph=True, backend=backend)):
            given = [layout(leaves[0]), *leaves[1:]]
            given, state = [one.detach().requires_grad_() for one in given], [one.clone() for one in running]
            out = function(*given[:3], *state, *given[3:], pool, training=True, backend="triton")
            found.append([out, *torch.autograd.grad(out.square().sum(), given)])
        for one, other in zip(*found, strict=True):
            assert torch.equal(one, other)
            assert one.stride() == other.stride()
    assert all(graph.count("seqconv.conv_batch_norm_relu_max_pool.default") == 1 for graph in graphs)


@grid(together=1, geometry=[([2, 1, 1, 2], [3, 2, 1, 1, 1, 0]), ([1, 0, 0, 1], [])], layout=[SAME, channels_last])
def test_the_operators_are_what_they_say(device, layout, geometry):
    leaves, _ = public_operands(device)
    plain = [layout(leaves[0]), *leaves[1:]]
    options = "triton", *geometry, 1, 1e-5
    torch.library.opcheck(
        norm_passes._conv_norm_relu_pool, (*(one.detach().requires_grad_() for one in plain), *options, True)
    )
    with torch.no_grad():
        output, *saved = norm_passes._conv_norm_relu_pool(*plain, *options, True)
        for wanted in ([True] * 5, [False, True, False, True, False]):
            given = (torch.ones_like(output), *saved, *plain[:3], *options[:-1], wanted)
            torch.library.opcheck(norm_passes._conv_norm_relu_pool_backward, given)


@grid(together=1, compiled=[False, True], wanted=range(5))
def test_frozen_tensors_get_no_gradient(device, wanted, compiled):
    """The convolution is what is saved: operands of frozen ones need not be there any more."""
    torch.compiler.reset()
    function = torch.compile(public, backend="aot_eager", fullgraph=True) if compiled else public
    leaves, running = public_operands(device)
    given = [one.clone().requires_grad_() for one in leaves]
    out = public(*given[:3], *running, *given[3:], 3, training=True, backend="triton")
    every = torch.autograd.grad(out.square().sum(), given)
    given = [one.clone().requires_grad_(i == wanted) for i, one in enumerate(leaves)]
    out = function(*given[:3], *running, *given[3:], 3, training=True, backend="triton")
    (found,) = torch.autograd.grad(out.square().sum(), given[wanted])
    torch.testing.assert_close(found, every[wanted], rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    ("change", "options", "reason"),
    [
        ({}, {"pool_padding": 1, "pool_dilation": 2}, "it serves a pool with padding or with dilation, got 1 and 2"),
        ({"dtype": torch.float64}, {}, "it serves float32, float16 and bfloat16, got torch.float64"),
        ({"samples": 0}, {}, "it serves at least one sample and channel, got 0"),
    ],
    ids=str,
)
def test_what_is_not_served(device, change, options, reason):
    dtype, samples = change.get("dtype", torch.float32), change.get("samples", 2)
    given = torch.ones(samples, 4, 9, dtype=dtype, device=device), torch.ones(6, 4, 3, dtype=dtype, device=device)
    with pytest.raises(BackendError, match=reason):
        public(*given, *[None] * 5, 3, training=True, backend="triton", **options)
    with torch.autocast(device.type, torch.bfloat16), pytest.raises(BackendError, match="autocast"):
        public(torch.ones(2, 4, 9, device=device), torch.ones(6, 4, 3, device=device), *[None] * 5, 3, training=True,
               backend="triton")  # fmt: skip


def test_auto_leaves_it_to_others(device):
    given = torch.zeros(16, 2, 1024, device=device), None, torch.zeros(8, 2, 1, device=device), None
    found = norm.norm_call(*given, Norm(*[None] * 4), (1, 0, 1, 1), None).explain("auto")
    assert found.backend != "triton"
    assert found.reasons["triton"] == "not yet measured on a GPU"


gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")]


def on_gpu(test):
    for mark in gpu:
        test = mark(test)
    return test


@on_gpu
@pytest.mark.parametrize("layout", [SAME, channels_last])
@pytest.mark.parametrize("pool", [None, Pool(3, 3), Pool(3, 2, 1)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_large_batches(layout, pool, dtype):
    """Of a size at which programs have many tiles; the convolution passes its input on. Reruns agree to the bit."""
    torch.manual_seed(0)
    input = layout(torch.randn(700, 96, 333, device="cuda")).to(dtype)
    gamma, beta = torch.randn(2, 96, device="cuda")
    leaves = [input, torch.ones(96, 1, 1, device="cuda", dtype=dtype), torch.zeros(96, device="cuda", dtype=dtype)]
    leaves += [gamma, beta]
    exact, dy, _ = composed([one.double() for one in leaves], Convolution(groups=96), pool)
    upstream = upstream_of(exact[0]).to(dtype)
    found, again = (
        norm_cases.ours(conv_norm_pool, leaves, Convolution(groups=96), pool, upstream=upstream)[0] for _ in range(2)
    )
    assert all(torch.equal(found[i], again[i]) for i in (0, 1, 4, 5))
    eps = torch.finfo(dtype).eps
    for i in (0, 1, 4, 5):
        assert (found[i].double() - exact[i]).norm() <= 4 * eps * exact[i].norm() + 1e-6 * dy.norm(), i


@on_gpu
@pytest.mark.parametrize("layout", [SAME, channels_last])
def test_waits_for_nothing_and_compiles_nothing_anew(layout):
    from seqconv.kernels.triton.device import norm_pool

    kernels = [getattr(norm_pool, name) for name in norm_pool.__all__]

    def compilations():
        return sum(len(caches[0]) for kernel in kernels for caches in kernel.device_caches.values())

    def step(samples, length):
        leaves = [torch.ones(samples, 16, length, device="cuda"), torch.ones(24, 16, 3, device="cuda")]
        leaves[0] = layout(leaves[0])
        leaves += [torch.zeros(24, device="cuda") for _ in range(3)]
        for pool in (Pool(3, 3), None):
            windows = () if pool is None else ((length - 2) // 3,)
            upstream = torch.ones(samples, 24, *windows, device="cuda")
            norm_cases.ours(conv_norm_pool, leaves, Convolution(), pool, upstream=upstream)

    step(2, 50)
    before = compilations()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for samples, length in ((2, 50), (1, 17), (16, 64), (300, 1001)):
            step(samples, length)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert compilations() == before


@on_gpu
@pytest.mark.parametrize("layout", [SAME, channels_last])
@pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_properties(0).total_memory < 60 * 2**30,
    reason="it needs a GPU with 60 GiB",
)
def test_more_than_2_to_the_31_elements(layout):
    """The last samples come out as the first ones, whose numbers they have; their gradients, too."""
    samples = 2**31 // (128 * 500) + 100
    samples -= samples % 64
    part = torch.randn(64, 128, 500, device="cuda", dtype=torch.bfloat16)
    input = layout(part.repeat(samples // 64, 1, 1))
    assert input.numel() > 2**31
    weight, bias = torch.eye(128, device="cuda").bfloat16()[..., None], torch.zeros(128, device="cuda").bfloat16()
    affine = torch.ones(2, 128, device="cuda")
    for pool, shape in ((Pool(5, 5), (samples, 128, 100)), (None, (samples, 128))):
        upstream = torch.ones((), device="cuda", dtype=torch.bfloat16).expand(shape)
        found, _ = norm_cases.ours(
            conv_norm_pool, [input, weight, bias, *affine], Convolution(), pool,
            wanted=(True, False, False, True, True), upstream=upstream,
        )  # fmt: skip
        assert torch.equal(found[0][-64:], found[0][:64])
        assert torch.equal(found[1][-64:], found[1][:64])
