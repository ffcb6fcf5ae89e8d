"""The conv stack with a batch norm as functions, against torch's composition in float64."""

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
from seqconv.kernels.numba import conv_norm_pool, support
from tests.conv_cases import channels_last
from tests.grids import grid

CONVOLUTIONS = [{}, {"stride": 2, "padding": 2}, {"padding": "same", "dilation": 2}, {"groups": 2}]
POOLS = [{"pool_size": 3}, {"pool_size": 3, "pool_stride": 2, "pool_padding": 1, "ceil_mode": True}, None]
SAMPLES, CHANNELS, LENGTH, OUTPUTS, SIZE = 5, 4, 31, 6, 3
pytestmark = pytest.mark.usefixtures("floor")


@pytest.fixture(autouse=True)
def _any_size(monkeypatch):
    """Have the compiled kernels serve small tensors and float64, where torch is as fast."""
    monkeypatch.setattr(support, "WORTH_A_NORM", 0)
    monkeypatch.setattr(support, "NORM_DTYPES", (torch.float32, torch.float64))


def composition(input, weight, bias, mean, var, gamma, beta, pool, *, training, momentum=0.1, eps=1e-5, **options):
    """Return what torch computes; ``pool`` is ``None`` for the global maximum."""
    activation = F.relu(
        F.batch_norm(F.conv1d(input, weight, bias, **options), mean, var, gamma, beta, training, momentum, eps)
    )
    if pool is None:
        return activation.max(-1).values
    pool = {"pool_stride": None, "pool_padding": 0, "pool_dilation": 1, "ceil_mode": False, **pool}
    return F.max_pool1d(activation, *(pool[f"pool_{one}"] for one in ("size", "stride", "padding", "dilation")),
                        pool["ceil_mode"])  # fmt: skip


def ours(input, weight, bias, mean, var, gamma, beta, pool, **options):
    if pool is None:
        return conv1d_batch_norm_relu_global_max_pool1d(input, weight, bias, mean, var, gamma, beta, **options)
    return conv1d_batch_norm_relu_max_pool1d(input, weight, bias, mean, var, gamma, beta, **pool, **options)


def operands(groups=1, dtype=torch.float64, affine=True, bias=True):
    """Return input, weight, bias, gamma and beta, of both signs, and the running statistics."""
    generator = torch.Generator().manual_seed(4)

    def draw(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    leaves = [draw(SAMPLES, CHANNELS, LENGTH), draw(OUTPUTS, CHANNELS // groups, SIZE)]
    leaves += [draw(OUTPUTS) if bias else None, *([draw(OUTPUTS), draw(OUTPUTS)] if affine else [None, None])]
    return leaves, [draw(OUTPUTS), draw(OUTPUTS).square() + 0.2]


def step(function, leaves, running, upstream=None, **options):
    """Return a result, its gradients and the running statistics behind it."""
    leaves = [None if one is None else one.detach().clone().requires_grad_() for one in leaves]
    running = [None if one is None else one.clone() for one in running]
    input, weight, bias, gamma, beta = leaves
    result = function(input, weight, bias, *running, gamma, beta, **options)
    if upstream is None:
        upstream = torch.linspace(-1, 1, result.numel(), dtype=result.dtype).reshape(result.shape)
    gradients = torch.autograd.grad(result, [one for one in leaves if one is not None], upstream)
    return [result.detach(), *gradients, *running]


@pytest.mark.parametrize("pool", POOLS, ids=str)
def test_pads_unequally_as_torch_does(pool):
    (input, weight, *rest), running = operands()
    leaves, options = [input, weight[:, :, :2], *rest], {"pool": pool, "training": True, "padding": "same"}
    found = (step(function, leaves, running, **options) for function in (ours, composition))
    assert_near(*found, 1e-9)


def assert_near(mine, theirs, tolerance):
    for one, other in zip(mine, theirs, strict=True):
        if other is not None:
            torch.testing.assert_close(one, other.to(one.dtype), rtol=tolerance, atol=tolerance)


@grid(
    training=[True, False],
    pool=POOLS,
    convolution=CONVOLUTIONS,
    affine=[True, False],
    bias=[True, False],
    layout=[lambda x: x, channels_last],
    tracked=[True, False],
)
def test_equals_torch_in_float64(training, pool, convolution, affine, bias, layout, tracked):
    """Sums of at most 5 * 31 products, of numbers of size 1: 1e-11 is 200 times what they round."""
    leaves, running = operands(convolution.get("groups", 1), affine=affine, bias=bias)
    leaves[0] = layout(leaves[0])
    options = {"training": training, "pool": pool, "momentum": 0.3, "eps": 1e-3, **convolution}
    running = running if tracked else [None, None]
    if not tracked and not training:  # where torch's function wants to be told
        theirs = step(composition, leaves, running, **{**options, "training": True})
    else:
        theirs = step(composition, leaves, running, **options)
    mine = step(ours, leaves, running, **options)
    assert_near(mine, theirs, 1e-11)
    if pool is not None:
        by_channel = mine[0].transpose(1, 2).is_contiguous()
        assert by_channel if layout is channels_last else mine[0].is_contiguous()


def test_gradients_of_the_running_statistics_are_theirs():
    """As a module with frozen, learnt statistics would need them."""
    (input, weight, bias, gamma, beta), running = operands()
    found = []
    for function in (ours, composition):
        mean, var = (one.clone().requires_grad_() for one in running)
        if function is composition:
            scale = gamma / (var + 1e-5).sqrt()
            z = F.relu((F.conv1d(input, weight, bias) - mean[:, None]) * scale[:, None] + beta[:, None])
            result = F.max_pool1d(z, 3)
        else:
            result = function(input, weight, bias, mean, var, gamma, beta, {"pool_size": 3}, training=False)
        found.append(torch.autograd.grad(result.square().sum(), [mean, var]))
    assert_near(*found, 1e-10)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"input": torch.ones(4, 9)}, ValueError, r"input must have shape \(N, C, L\), got \(4, 9\)"),
        ({"mean": None}, ValueError, "running_mean and running_var must both be .*, got running_var alone"),
        ({"var": torch.ones(5)}, ValueError, r"running_var must have shape \(6,\), .* got \(5,\)"),
        ({"gamma": torch.ones(6).double()}, TypeError, "norm_weight must have the dtype of weight, torch.float32, got"),
        ({"beta": [1.0]}, TypeError, "norm_bias must be a tensor, got list"),
        ({"momentum": None}, TypeError, "momentum must be a number, got None"),
        ({"eps": "1"}, TypeError, "eps must be a number, got '1'"),
        ({"eps": -1.0}, ValueError, "eps must be at least 0, got -1.0"),
        ({"training": 1}, TypeError, "training must be True or False, got 1"),
        ({"lengths": torch.tensor([3, 4])}, ValueError, "lengths must be None where mean and variance are the batch's"),
        ({"input": torch.ones(1, 4, 3), "pool_size": 1}, ValueError, "input must give more than 1 value per channel"),
        ({"groups": 2}, ValueError, "input must have in_channels"),
    ],
    ids=str,
)
def test_errors_name_the_argument(change, error, message):
    given = {"input": torch.ones(2, 4, 9), "mean": torch.zeros(6), "var": torch.ones(6), "gamma": None, "beta": None}
    options = {"pool_size": 2, "training": True} | {name: one for name, one in change.items() if name not in given}
    given |= {name: one for name, one in change.items() if name in given}
    with pytest.raises(error, match=f"^{message}"):
        conv1d_batch_norm_relu_max_pool1d(given["input"], torch.ones(6, 4, 3), None, given["mean"], given["var"],
                                          given["gamma"], given["beta"], **options)  # fmt: skip


def test_an_error_leaves_the_statistics():
    mean, var = torch.zeros(6), torch.ones(6)
    with pytest.raises(ValueError, match="pool_size must fit"):
        conv1d_batch_norm_relu_max_pool1d(
            torch.randn(2, 4, 9), torch.ones(6, 4, 3), None, mean, var, pool_size=8, training=True
        )
    assert not mean.any()
    assert (var == 1).all()


@pytest.mark.parametrize("training", [True, False])
def test_is_one_node_of_a_traced_graph(training):
    leaves, (mean, var) = operands(dtype=torch.float32)

    class Model(torch.nn.Module):
        def forward(self, x):
            return conv1d_batch_norm_relu_max_pool1d(x, *leaves[1:3], mean, var, pool_size=2, training=training)

    model = Model()
    graph = torch.fx.symbolic_trace(model)
    assert [node.target for node in graph.graph.nodes if node.op == "call_function"] == [
        conv1d_batch_norm_relu_max_pool1d
    ]
    assert torch.equal(graph(leaves[0]), model(leaves[0]))


def assert_same(mine, theirs):
    for one, other in zip(mine, theirs, strict=True):
        assert one is other is None or torch.equal(one, other)


@pytest.mark.parametrize("pool", [{"pool_size": 3}, None], ids=str)
def test_one_operator_of_a_graph_and_the_same_bits(pool):
    graphs = []

    def backend(module, inputs):
        graphs.append([str(node.target) for node in module.graph.nodes])
        return lookup_backend("aot_eager")(module, inputs)

    compiled = torch.compile(ours, fullgraph=True, backend=backend)
    leaves, running = operands(dtype=torch.float32)
    for layout in (lambda x: x, channels_last):
        leaves[0] = layout(leaves[0])
        options = {"training": True, "pool": pool, "padding": 1, "backend": "numba"}
        found = [step(one, leaves, running, **options) for one in (compiled, ours)]
        assert_same(*(one[:-2] for one in found))
        # In graphs of torch 2.11 the running variance's product and sum are rounded once: half an ulp of each.
        torch.testing.assert_close(found[0][-2:], found[1][-2:], rtol=2**-23, atol=2**-24)
        assert found[0][0].stride() == found[1][0].stride()
    assert len(graphs) == 2
    assert all(graph.count("seqconv.conv_batch_norm_relu_max_pool.default") == 1 for graph in graphs)


GEOMETRIES = [([2, 1, 1, 2], [3, 2, 1, 1, 1, 0]), ([1, 0, 0, 1], []), ([1, 0, 0, 1], [2, 2, 0, 1, 0, 1])]


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
@pytest.mark.parametrize("layout", [lambda x: x, channels_last], ids=["contiguous", "channels_last"])
def test_the_operators_are_what_they_say(layout, geometry):
    leaves, _ = operands(dtype=torch.float32)
    leaves = [layout(leaves[0]), *leaves[1:]]
    leaves = [one.requires_grad_() for one in leaves]
    options = "numba", *geometry, 1, 1e-5
    torch.library.opcheck(norm_passes._conv_norm_relu_pool, (*leaves, *options, True))
    with torch.no_grad():
        input, weight, bias, *_ = plain = [one.detach() for one in leaves]
        torch.library.opcheck(norm_passes._conv_norm_relu_pool, (*plain[:2], None, None, None, *options, False))
        output, *saved = norm_passes._conv_norm_relu_pool(*plain, *options, True)
        for wanted in ([True] * 5, [False, True, False, True, False]):
            given = (torch.ones_like(output), *saved, input, weight, bias, *options[:-1], wanted)
            torch.library.opcheck(norm_passes._conv_norm_relu_pool_backward, given)


def test_frozen_tensors_get_no_gradient():
    leaves, running = operands()
    every = step(ours, leaves, running, training=True, pool={"pool_size": 3})
    for i in range(5):
        given = [one.detach().clone().requires_grad_(i == j) for j, one in enumerate(leaves)]
        result = ours(*given[:3], *running, *given[3:], {"pool_size": 3}, training=True)
        result.backward(torch.linspace(-1, 1, result.numel(), dtype=result.dtype).reshape(result.shape))
        assert [one.grad is not None for one in given] == [i == j for j in range(5)]
        torch.testing.assert_close(given[i].grad, every[1 + i], rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize(
    ("wanted", "again", "read"),
    [(0, False, {1}), (1, False, {0}), *((i, False, set()) for i in (2, 3, 4)),
     *((i, True, {0, 1, 2}) for i in range(3)), *((i, True, set()) for i in (3, 4))],
)  # fmt: skip
def test_what_no_gradient_reads_may_be_overwritten(wanted, again, read, compiled, monkeypatch):
    """As with torch; a convolution that is computed again for a gradient reads all its operands."""
    monkeypatch.setattr(conv_norm_pool, "LARGE", 0 if again else 2**25)
    torch.compiler.reset()
    function = torch.compile(ours, backend="aot_eager", fullgraph=True) if compiled else ours
    leaves, _ = operands(dtype=torch.float32)
    leaves[wanted].requires_grad_()
    gradients = []
    for written in (None, 0, 1, 2):
        input, weight, bias, gamma, beta = given = [one.clone() for one in leaves]
        options = {"training": True, "backend": "numba"}
        result = function(input, weight, bias, None, None, gamma, beta, {"pool_size": 3}, **options)
        if written is not None:
            given[written].detach().zero_()
        if written in read:
            with pytest.raises(RuntimeError, match="modified by an inplace operation"):
                torch.autograd.grad(result.square().sum(), leaves[wanted])
        else:
            gradients += torch.autograd.grad(result.square().sum(), leaves[wanted])
    assert all(torch.equal(one, gradients[0]) for one in gradients)


@pytest.mark.parametrize("wanted", range(3))
def test_second_derivatives_by_what_is_not_saved(wanted):
    leaves, _ = operands()
    leaves[wanted].requires_grad_()
    input, weight, bias, gamma, beta = leaves
    options = {"training": True, "backend": "numba"}
    result = ours(input, weight, bias, None, None, gamma, beta, {"pool_size": 3}, **options)
    (gradient,) = torch.autograd.grad(result.sum(), leaves[wanted], create_graph=True)
    with pytest.raises(RuntimeError, match="has no second derivative"):
        torch.autograd.grad(gradient.sum(), leaves[wanted], allow_unused=True)


def test_a_graph_that_is_retained_gives_its_gradients_twice():
    (input, weight, bias, gamma, beta), running = operands()
    weight.requires_grad_()
    result = ours(input, weight, bias, *running, gamma, beta, None, training=True)
    first, second = (torch.autograd.grad(result.sum(), weight, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)


def test_second_derivatives(floor):
    (input, weight, bias, gamma, beta), running = operands()
    weight.requires_grad_()
    result = ours(input, weight, bias, *running, gamma, beta, {"pool_size": 3}, training=True)
    (gradient,) = torch.autograd.grad(result.square().sum(), weight, create_graph=True)
    if floor == "reference":
        torch.autograd.grad(gradient.sum(), weight)
        return
    message = "^conv1d_batch_norm_relu_max_pool1d has no second derivative on backend 'numba': pass backend='reference'"
    with pytest.raises(RuntimeError, match=message):
        torch.autograd.grad(gradient.sum(), weight)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("grad", [True, False])
def test_running_statistics_are_torch_s(grad, dtype):
    leaves, running = operands(dtype=dtype)
    mine, theirs = ([one.clone() for one in running] for _ in range(2))
    input, weight, bias, gamma, beta = (one.requires_grad_(grad) for one in leaves)
    for momentum in (0.1, 1.0, 0.0, 0.25):
        ours(input, weight, bias, *mine, gamma, beta, None, training=True, momentum=momentum)
        composition(input, weight, bias, *theirs, gamma, beta, None, training=True, momentum=momentum)
        for one, other in zip(mine, theirs, strict=True):
            torch.testing.assert_close(one, other)


@pytest.mark.parametrize(
    ("change", "options", "reason"),
    [
        ({}, {"pool_padding": 1, "pool_dilation": 2}, "it serves a pool with padding or with dilation, got 1 and 2"),
        ({"dtype": torch.bfloat16}, {}, "it serves float32 and float64, got torch.bfloat16"),
        ({"size": 1}, {"stride": 2}, "it serves a stride of 1 where a kernel has one position, got 2"),
        ({"samples": 0}, {}, "it serves at least one sample and output channel, got 0 and 6"),
    ],
    ids=str,
)
def test_what_is_not_served_is_torch_s_composition(change, options, reason):
    dtype, samples = change.get("dtype", torch.float32), change.get("samples", 2)
    options = dict(options)
    weight = torch.ones(6, 4, change.get("size", 3), dtype=dtype)
    arguments = torch.ones(samples, 4, 9, dtype=dtype), weight, None, None, None
    options = {"pool_size": 3, "training": True, **options}
    with pytest.raises(BackendError, match=reason):
        conv1d_batch_norm_relu_max_pool1d(*arguments, **options, backend="numba")
    if samples:
        assert conv1d_batch_norm_relu_max_pool1d(*arguments, **options).dtype == dtype


def test_auto_takes_torch_where_it_is_as_fast(monkeypatch, floor):
    monkeypatch.undo()
    if floor == "reference":
        monkeypatch.setenv("SEQCONV_BACKEND", floor)
    weight = torch.zeros(8, 2, 1)
    for samples, dtype, reason in (
        (16, torch.float32, None),
        (16, torch.float64, "torch's composition is as fast in torch.float64"),
        (
            15,
            torch.float32,
            "torch's composition is faster on a convolution of fewer than 131,072 numbers, got 122880",
        ),
    ):
        given = torch.zeros(samples, 2, 1024, dtype=dtype), None, weight.to(dtype), None, norm.Norm(*[None] * 4)
        found = norm.norm_call(*given, (1, 0, 1, 1), None).explain("auto")
        assert found.backend == ("numba" if reason is None and floor == "auto" else "reference")
        assert floor == "reference" or found.reasons["numba"] == reason
