"""GRU and LSTM under torch.compile: an operator of its graphs, or outside them, with the numbers of eager mode."""

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.utils.rnn import pack_padded_sequence

import seqconv

LAYERS = [seqconv.GRU, seqconv.LSTM]
DROPOUTS = [
    {},
    {"input_dropout": 0.3},
    {"recurrent_dropout": 0.4},
    {"num_layers": 2, "bidirectional": True, "dropout": 0.2, "input_dropout": 0.3, "recurrent_dropout": 0.4},
]


class Model(nn.Module):
    """A recurrent layer between what a graph holds."""

    def __init__(self, layer, **options):
        super().__init__()
        self.inner = nn.Linear(4, 4)
        self.layer = layer(4, 5, batch_first=True, **options)
        self.outer = nn.Linear(10 if self.layer.bidirectional else 5, 1)

    def forward(self, x):
        return self.outer(self.layer(torch.relu(self.inner(x)))[0][:, -1])


@pytest.fixture(autouse=True)
def _fresh():
    torch.manual_seed(7)
    torch.compiler.reset()


@pytest.fixture
def graphs():
    """Return a list that fills with the operators of every graph, and the backend that fills it."""
    found = []

    def backend(module, inputs):
        found.append([str(node.target) for node in module.graph.nodes if node.op == "call_function"])
        return module

    return found, backend


def step(function, model, x):
    """Return a result with its gradients, and the random state after it, from a fixed seed."""
    torch.manual_seed(3)
    x = x.detach().requires_grad_()
    result = function(x)
    return result, *torch.autograd.grad(result.square().sum(), [x, *model.parameters()]), torch.get_rng_state()


@pytest.mark.parametrize("options", DROPOUTS, ids=str)
@pytest.mark.parametrize("layer", LAYERS)
def test_bits_gradients_and_random_numbers_are_those_of_eager_mode(layer, options, graphs):
    _, backend = graphs
    model = Model(layer, **options)
    compiled = torch.compile(model, backend=backend)
    for shape in ((2, 6, 4), (3, 9, 4)):
        x = torch.randn(shape)
        for one, other in zip(step(compiled, model, x), step(model, model, x), strict=True):
            assert torch.equal(one, other)


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("allow_rnn", [False, True])
@pytest.mark.parametrize("options", DROPOUTS[::2], ids=str)
@pytest.mark.parametrize("layer", LAYERS)
def test_no_graph_has_the_steps(layer, options, allow_rnn, backend, graphs):
    """Dynamo itself skips a function that holds an ``nn.GRU``, unless allowed to look."""
    found, recorder = graphs
    model = Model(layer, **options, backend=backend)
    with torch._dynamo.config.patch(allow_rnn=allow_rnn):
        torch.compile(model, backend=recorder)(torch.randn(2, 20, 4))
    assert all(len(graph) < 20 for graph in found)
    names = [sorted(name for name in map(short, graph) if name) for graph in found]
    if not allow_rnn:
        assert names == []
    elif backend == "reference":
        assert [one for one in names if one] == [["linear", "relu"], ["linear"]]
    else:
        assert names == [["linear", "linear", "recurrent_layer", "relu"]]


def short(target):
    """Return the name of an operator out of its text, <built-in function linear>, if it is one of these."""
    return next((name for name in ("relu", "linear", "recurrent_layer") if name in target), None)


@pytest.mark.parametrize("layer", LAYERS)
def test_the_functions_are_operators_of_a_full_graph(layer, graphs):
    found, backend = graphs
    weights = layer(4, 5).all_weights
    function = getattr(seqconv.functional.recurrent, layer.__name__.lower())
    x, mask = torch.randn(30, 2, 4), torch.rand(1, 2, 5)

    def call(x):
        return function(x * 2, weights, recurrent_mask=mask)[0] + 1

    assert torch.equal(torch.compile(call, backend=backend, fullgraph=True)(x), call(x))
    assert len(found) == 1
    assert sum("recurrent_layer" in target for target in found[0]) == 1


@pytest.mark.parametrize("options", DROPOUTS, ids=str)
@pytest.mark.parametrize("layer", LAYERS)
def test_compiled_gradients_are_those_of_eager_mode(layer, options):
    model = Model(layer, **options)
    with torch._dynamo.config.patch(allow_rnn=True):
        compiled = torch.compile(model, backend="aot_eager", fullgraph=True, dynamic=True)
        for shape in ((2, 6, 4), (3, 9, 4)):
            x = torch.randn(shape)
            for one, other in zip(step(compiled, model, x), step(model, model, x), strict=True):
                assert torch.equal(one, other)


@pytest.mark.parametrize(("backend", "dynamic"), [("auto", True), ("auto", False), ("reference", True)])
@pytest.mark.parametrize("layer", LAYERS)
def test_packed_sequences_and_symbolic_sizes(layer, dynamic, backend):
    weights = layer(4, 5).all_weights
    function = getattr(seqconv.functional.recurrent, layer.__name__.lower())

    def call(packed):
        output, last = function(packed, weights, backend=backend)
        return output.data * 2, output.batch_sizes, last

    compiled = torch.compile(call, backend="aot_eager", dynamic=dynamic)
    for shape, lengths in (((6, 3, 4), [2, 6, 3]), ((5, 2, 4), [5, 4])):
        x = torch.randn(shape)
        packed = pack_padded_sequence(x, lengths, enforce_sorted=False)
        leaves = (torch.utils._pytree.tree_leaves(run(packed)) for run in (compiled, call))
        for one, other in zip(*leaves, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-6)
    alone = torch.compile(lambda x: function(x, weights, backend=backend)[0], backend="aot_eager", dynamic=dynamic)
    torch.testing.assert_close(alone(x), function(x, weights, backend=backend)[0], rtol=0, atol=1e-6)


@pytest.mark.parametrize("layer", LAYERS)
def test_a_full_graph_of_the_reference_is_refused_with_the_reason(layer, graphs):
    model = torch.compile(layer(4, 5, backend="reference"), fullgraph=True, backend=graphs[1])
    with torch._dynamo.config.patch(allow_rnn=True):  # noqa: SIM117
        with pytest.raises(torch._dynamo.exc.Unsupported, match="seqconv's GRU and LSTM run in eager mode"):
            model(torch.ones(3, 2, 4))


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("name", ["gru", "lstm"])
def test_the_operators_are_what_they_say(name, batch_first):
    gates, states = (3, 1) if name == "gru" else (4, 2)
    weights = [torch.randn(gates * 5, width, requires_grad=True) for width in (4, 5)]
    weights += [torch.randn(gates * 5, requires_grad=True) for _ in range(2)]
    h, c = torch.randn(1, 3, 5, requires_grad=True), torch.randn(1, 3, 5) if states == 2 else None
    x, mask = torch.randn(6, 3, 4), torch.rand(1, 1, gates, 3, 5)
    x = (x.transpose(0, 1).contiguous().transpose(0, 1) if batch_first else x).requires_grad_()
    given = ("numba", name, x, h, c, weights, 1, None, mask, torch.tensor([6, 2, 4]))
    for keep in (1, 2):
        torch.library.opcheck(torch.ops.seqconv.recurrent_layer_with_saved.default, (*given, keep))
    plain = [one.detach() if isinstance(one, torch.Tensor) else one for one in given]
    plain[5] = [one.detach() for one in weights]
    torch.library.opcheck(torch.ops.seqconv.recurrent_layer.default, (*plain, 0))


@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("batch_first", [False, True])
def test_gradients_are_laid_out_as_graphs_expect(batch_first, directions):
    layer = seqconv.GRU(4, 5, bidirectional=directions == 2)
    x = torch.randn(3, 6, 4).transpose(0, 1) if batch_first else torch.randn(6, 3, 4)
    weights = [one.detach() for own in layer.all_weights for one in own]
    h0 = torch.zeros(directions, 3, 5)

    def run(x, h0, weights):
        given = "numba", "gru", x, h0, None, weights, directions, None, None, None
        output, h, _, saved = torch.ops.seqconv.recurrent_layer_with_saved.default(*given, 2)
        upstream = "numba", "gru", torch.ones_like(output), h, None
        rest = x, h0, None, weights, directions, None, None, None, output, saved, [True, True, True]
        return [output, h, saved, *torch.ops.seqconv.recurrent_layer_backward.default(*upstream, *rest)]

    real = run(x, h0, weights)
    with FakeTensorMode() as mode:
        fake = run(*torch.utils._pytree.tree_map(mode.from_tensor, (x, h0, weights)))
    assert [(one.shape, one.stride()) for one in fake] == [(one.shape, one.stride()) for one in real]


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("layer", LAYERS)
def test_export_has_the_steps(layer, strict):
    model = layer(4, 5, recurrent_dropout=0.5).eval()
    x = torch.randn(3, 2, 4)
    exported = torch.export.export(model, (x,), strict=strict).module()
    # 3 steps of sums of 10 terms below 2.
    torch.testing.assert_close(exported(x)[0], model(x)[0], rtol=0, atol=1e-5)
