"""GRU and LSTM under torch.compile: outside its graphs, with the numbers of eager mode."""

import pytest
import torch
from torch import nn

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


@pytest.mark.parametrize("allow_rnn", [False, True])
@pytest.mark.parametrize("options", DROPOUTS[::2], ids=str)
@pytest.mark.parametrize("layer", LAYERS)
def test_no_graph_has_the_steps(layer, options, allow_rnn, graphs):
    """Dynamo itself skips a function that holds an ``nn.GRU``, unless allowed to look, but not what that one calls."""
    found, backend = graphs
    model = Model(layer, **options)
    with torch._dynamo.config.patch(allow_rnn=allow_rnn):
        torch.compile(model, backend=backend)(torch.randn(2, 20, 4))
    around = [["relu", "linear"], ["getitem", "linear"]] if allow_rnn else []
    assert [sorted(map(short, graph)) for graph in found] == [sorted(names) for names in around]


def short(target):
    """Return the name of an operator out of its text, <built-in function linear>."""
    return next(name for name in ("relu", "linear", "getitem", target) if name in target)


@pytest.mark.parametrize("layer", LAYERS)
def test_the_functions_stand_outside_graphs_too(layer, graphs):
    found, backend = graphs
    weights = layer(4, 5).all_weights
    function = getattr(seqconv.functional.recurrent, layer.__name__.lower())
    x, mask = torch.randn(30, 2, 4), torch.rand(1, 2, 5)

    def call(x):
        return function(x * 2, weights, recurrent_mask=mask)[0] + 1

    assert torch.equal(torch.compile(call, backend=backend)(x), call(x))
    assert [len(graph) for graph in found] == [1, 1]


@pytest.mark.parametrize("layer", LAYERS)
def test_a_full_graph_is_refused_with_the_reason(layer, graphs):
    with pytest.raises(torch._dynamo.exc.Unsupported, match="seqconv's GRU and LSTM run in eager mode"):
        torch.compile(layer(4, 5), fullgraph=True, backend=graphs[1])(torch.ones(3, 2, 4))


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("layer", LAYERS)
def test_export_has_the_steps(layer, strict):
    model = layer(4, 5, recurrent_dropout=0.5).eval()
    x = torch.randn(3, 2, 4)
    exported = torch.export.export(model, (x,), strict=strict).module()
    assert torch.equal(exported(x)[0], model(x)[0])
