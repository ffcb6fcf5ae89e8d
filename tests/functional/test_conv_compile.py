"""torch.compile: the CPU kernels are one operator of the graph, and give the bits that they give in eager calls."""

import ast
import inspect
import itertools

import pytest
import torch
from torch import nn
from torch._dynamo import lookup_backend
from torch._inductor import config as inductor

import seqconv
from seqconv.functional import conv, library
from seqconv.kernels import source
from seqconv.layers import embedding
from tests.conv_cases import LAYOUTS, channels_last, ours, same, whole
from tests.grids import large, marked, others_large

POOL = {"pool_size": 3, "pool_stride": 2, "pool_padding": 1}
OPERATORS = ("seqconv.conv_relu_max_pool.default", "seqconv.conv_relu_max_pool_with_argmax.default")


@pytest.fixture(autouse=True)
def _fresh():
    torch.manual_seed(3)
    torch.compiler.reset()


@pytest.fixture
def compiler(request):
    """Return what compiles to one graph of torch's operators, and the list of those of every graph."""
    graphs = []

    def backend(module, inputs):
        graphs.append([str(node.target) for node in module.graph.nodes if node.op == "call_function"])
        return lookup_backend("aot_eager")(module, inputs)

    return lambda function, **options: torch.compile(function, fullgraph=True, backend=backend, **options), graphs


def step(function, *tensors):
    """Return a result and the gradients of all floating-point tensors that want one."""
    result = function(*tensors)
    upstream = torch.randn(result.shape, dtype=result.dtype, generator=torch.manual_seed(1))
    wanted = [one for one in tensors if one.requires_grad]
    return result.detach(), *(torch.autograd.grad(result, wanted, upstream) if wanted else ())


def assert_same_step(compiled, function, *tensors):
    outcomes = [
        step(one, *(t.detach().requires_grad_(t.requires_grad) for t in tensors)) for one in (compiled, function)
    ]
    assert outcomes[0][0].stride() == outcomes[1][0].stride()
    for one, other in zip(*outcomes, strict=True):
        assert same(one, other)


@pytest.mark.parametrize(
    ("layout", "dtype", "pools", "is_padded"),
    marked([
        *itertools.product(["contiguous", "channels_last"], [torch.float32], [True, False], [True, False]),
        *itertools.product(["channels_last"], [torch.float64], [True], [True, False]),
        *itertools.product(["unbatched", "batch_last"], [torch.float32], [True], [True, False]),
        *itertools.product(["every_second_position"], [torch.float32], [False], [True, False]),
    ], together=1),
)  # fmt: skip
def test_one_operator_and_the_same_bits(layout, dtype, pools, is_padded, compiler):
    compile_, graphs = compiler
    x = LAYOUTS[layout](torch.randn(2, 4, 13, dtype=dtype))
    w, bias = torch.randn(6, 4, 3, dtype=dtype), torch.randn(6, dtype=dtype) if is_padded else None

    def function(x, w):
        return ours(x, w, bias, POOL if pools else None, padding=2 if is_padded else 0, dilation=2)

    assert_same_step(compile_(function), function, x, w)
    assert_same_step(compile_(function), function, x.requires_grad_(), w.requires_grad_())
    assert len(graphs) == 2
    assert all(sum(target in OPERATORS for target in graph) == 1 for graph in graphs)
    assert not any("conv1d" in target for graph in graphs for target in graph)


@pytest.mark.parametrize("wanted", others_large([0, 1, 0], [0, 0, 0], [0, 1, 1], [0, 0, 1], [1, 0, 0]))
def test_frozen_parameters(wanted, compiler):
    compile_, graphs = compiler
    tensors = torch.randn(2, 4, 13), torch.randn(6, 4, 3), torch.randn(6)
    for tensor, want in zip(tensors, wanted, strict=True):
        tensor.requires_grad_(bool(want))
    function = lambda x, w, b: ours(x, w, b, POOL)  # noqa: E731
    assert_same_step(compile_(function), function, *tensors)
    with torch.no_grad():
        assert same(compile_(function)(*tensors), function(*tensors))
    assert all(set(OPERATORS) & {*graph} for graph in graphs)


@pytest.mark.parametrize("pool", [POOL, None], ids=str)
@pytest.mark.parametrize("layout", [lambda x: x, channels_last], ids=["contiguous", "channels_last"])
def test_one_graph_for_all_sizes(layout, pool, compiler):
    compile_, graphs = compiler
    w, b = torch.randn(6, 4, 3, requires_grad=True), torch.randn(6, requires_grad=True)
    function = lambda x, w, b: ours(x, w, b, pool, padding=1)  # noqa: E731
    compiled = compile_(function, dynamic=True)
    for samples, length in ((2, 13), (3, 30), (5, 101)):
        assert_same_step(compiled, function, layout(torch.randn(samples, 4, length)).requires_grad_(), w, b)
    assert len(graphs) == 1
    assert_same_step(compiled, function, layout(torch.randn(2, 4, 300)).requires_grad_(), w, b)
    assert len(graphs) == (1 if pool else 2)  # argmax of more than 128 positions has wider integers


@pytest.mark.parametrize("globally", [True, False])
def test_layers_with_an_embedding(globally, compiler):
    compile_, graphs = compiler
    if globally:
        layer = seqconv.EmbeddingConvReLUGlobalMaxPool1d(50, 4, 6, 3, padding_idx=0)
    else:
        layer = seqconv.EmbeddingConvReLUMaxPool1d(50, 4, 6, 3, 2, padding_idx=0)
    model = nn.Sequential(layer, nn.Flatten(), nn.LazyLinear(1))
    compiled = compile_(model)
    tokens = torch.randint(50, (3, 13))
    model(tokens)
    gradients = []
    for one in (compiled, model):
        model.zero_grad()
        one(tokens).sum().backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
    assert all(same(one, other) for one, other in zip(*gradients, strict=True))
    assert len(graphs) == 1
    assert OPERATORS[1] in graphs[0]


def test_windows_of_a_series(compiler):
    compile_, graphs = compiler
    series, w = torch.randn(40, 4, requires_grad=True), torch.randn(6, 4, 3, requires_grad=True)
    starts = torch.tensor([0, 7, 21])
    function = lambda series, w: seqconv.functional.window_conv1d_relu_max_pool1d(  # noqa: E731
        series, starts, w, length=9, step=2, pool_size=2
    )
    assert_same_step(compile_(function), function, series, w)
    assert OPERATORS[1] in graphs[0]


def test_what_cannot_be_served_is_the_composition(compiler):
    compile_, graphs = compiler
    x = torch.randn(2, 4, 13)
    function = lambda x, w: ours(x, w, None, POOL, groups=x.size(1) // w.size(1))  # noqa: E731
    assert_same_step(compile_(function), function, x, torch.randn(6, 2, 3, requires_grad=True))
    assert_same_step(compile_(function), function, x.half(), torch.randn(6, 4, 3).half())
    assert len(graphs) == 2
    assert not any("seqconv" in target for graph in graphs for target in graph)


@inductor.patch(force_disable_caches=True)  # what an earlier run compiled proves nothing
def test_inductor_gives_the_same_bits():
    """Padded: the gradient of a channels-last input is cut out of a wider one."""
    model = nn.Sequential(
        seqconv.ConvReLUMaxPool1d(4, 6, 3, 2, padding=1), seqconv.ConvReLUGlobalMaxPool1d(6, 5, 3, padding=2)
    )
    compiled = torch.compile(model, fullgraph=True)
    for layout in (lambda x: x, channels_last):
        x = layout(torch.randn(2, 4, 13))
        outcomes = []
        for one in (compiled, model):
            leaf = x.detach().requires_grad_()
            result = one(leaf)
            outcomes.append([result, *torch.autograd.grad(result.sum(), [leaf, *model.parameters()])])
        assert all(same(one, other) for one, other in zip(*outcomes, strict=True))


GEOMETRIES = [
    ([2, 1, 2, 2], [3, 2, 1, 2, True]),
    ([1, 2, 2, 1], []),
    ([1, 0, 0, 1], [2, 2, 0, 1, False]),
    ([1, 1, 1, 1], [2, 2, 0, 1, False, True]),
]


def with_geometries(*values):
    """Return every value with every geometry: all are large but the first two values with one geometry each."""
    pairs = itertools.product(enumerate(values), enumerate(GEOMETRIES))
    return [pytest.param(value, geometry, marks=large(i != j or i > 1)) for (i, value), (j, geometry) in pairs]


@pytest.mark.parametrize(("layout", "geometry"), with_geometries("channels_last", "contiguous", "batch_last"))
def test_the_operators_are_what_they_say(layout, geometry):
    """Their descriptions, for graphs, tell shapes, strides and dtypes as they come; nothing is aliased or mutated."""
    convolution, pool = geometry
    x, w, b = (tensor.requires_grad_() for tensor in (LAYOUTS[layout](whole(2, 4, 13)), whole(6, 4, 3), whole(6)))
    torch.library.opcheck(library._differentiable, (x, w, b, None, None, "numba", [], convolution, pool))
    with torch.no_grad():
        torch.library.opcheck(
            library._undifferentiated, (x.detach(), w.detach(), None, None, None, "numba", [], convolution, pool)
        )
        output, argmax = library._differentiable(x, w, b, None, None, "numba", [], convolution, pool)
        for wanted in ([True, True, True], [False, True, False]):
            arguments = (
                torch.ones_like(output),
                argmax,
                x.detach(),
                w.detach(),
                None,
                None,
                "numba",
                [],
                convolution,
                pool,
                wanted,
            )
            torch.library.opcheck(library._backward, arguments)


@pytest.mark.parametrize(("rows", "geometry"), with_geometries([2], [11, 2], [-1]))
def test_the_operators_on_gathered_rows_are_what_they_say(rows, geometry):
    convolution, pool = geometry
    index = torch.tensor([0, 7, 3]) if len(rows) == 2 else torch.randint(9, (3, 13), dtype=torch.int32)
    source = whole(40 if len(rows) == 2 else 9, 4).requires_grad_()
    w, b = (whole(*shape).requires_grad_() for shape in ((6, 4, 3), (6,)))
    options = (index, torch.tensor([11, 0, 4]), "numba", rows, convolution, pool)
    torch.library.opcheck(library._differentiable, (source, w, b, *options))
    with torch.no_grad():
        torch.library.opcheck(library._undifferentiated, (source.detach(), w.detach(), None, *options))
        if index.dim() == 2:
            given = (source.detach(), w.detach(), None, *options, torch.bfloat16)
            torch.library.opcheck(library._undifferentiated, given)
        output, argmax = library._differentiable(source, w, b, *options)
        for wanted in ([True, True, True], [False, True, False]):
            arguments = (torch.ones_like(output), argmax, source.detach(), w.detach(), *options, wanted)
            torch.library.opcheck(library._backward, arguments)


def test_rows_that_are_not_there_are_noticed_in_a_graph(compiler):
    compile_, _ = compiler
    table, w = torch.randn(9, 4), torch.randn(6, 4, 3)
    function = compile_(lambda t: seqconv.functional.embedding_conv1d_relu_max_pool1d(t, table, w, pool_size=2))
    function(torch.randint(9, (2, 12)))
    with pytest.raises(IndexError, match=r"^tokens must be between 0 and 8 for the 9 rows of table, got 9"):
        function(torch.full((2, 12), 9))


@pytest.mark.parametrize("module", [conv, embedding, source])
def test_nothing_is_indexed_with_a_truth_value(module):
    """The graphs of torch 2.11, which is not installed here, have none: ``pair[pool is None]``."""
    indices = [node.slice for node in ast.walk(ast.parse(inspect.getsource(module))) if isinstance(node, ast.Subscript)]
    assert indices
    assert not any(isinstance(index, ast.Compare | ast.BoolOp) for index in indices)
