"""torch.fx: layers are leaves and operations are nodes; a traced model has the numbers and the names of its model."""

import copy
import pickle

import pytest
import torch
from torch import fx, nn
from torch.ao.quantization import get_default_qconfig_mapping, quantize_fx
from torch.fx.experimental import optimization

import seqconv
from seqconv import models
from seqconv.functional import gru, lstm
from tests.conv_cases import same, whole

LAYERS = {
    "pool": lambda **kw: seqconv.ConvReLUMaxPool1d(4, 6, 3, 2, **kw),
    "global": lambda **kw: seqconv.ConvReLUGlobalMaxPool1d(4, 6, 3, **kw),
    "reflect": lambda **kw: seqconv.ConvReLUMaxPool1d(4, 6, 3, 2, padding=2, padding_mode="reflect", **kw),
    "embedding": lambda **kw: seqconv.EmbeddingConvReLUMaxPool1d(9, 4, 6, 3, 2, **kw),
    "embedded global": lambda **kw: seqconv.EmbeddingConvReLUGlobalMaxPool1d(9, 4, 6, 3, padding_idx=0, **kw),
    "several": lambda **kw: seqconv.EmbeddingConvsReLUGlobalMaxPool1d(9, 4, 6, [3, 2], **kw),
}
pytestmark = [
    pytest.mark.filterwarnings("ignore:.?torch.(ao|jit).*is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Please use quant_min and quant_max"),
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
]
every_layer = pytest.mark.parametrize("name", LAYERS)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(6)


def inputs(name):
    return torch.randint(9, (3, 12)) if name.startswith(("embed", "several")) else whole(3, 4, 12)


def assert_traced(model, *given):
    """Trace a model; compare results, the parameters' gradients and the state's names; return the graph module."""
    traced = fx.symbolic_trace(model)
    assert list(traced.state_dict()) == list(model.state_dict())
    outcomes = []
    for one in (traced, model):
        one.zero_grad()
        torch.manual_seed(3)
        result = one(*given)
        result = result if isinstance(result, torch.Tensor) else result[0]
        result.square().sum().backward()
        outcomes.append([result, *(parameter.grad.clone() for parameter in one.parameters())])
        assert len(outcomes[-1]) > 1
    assert all(same(one, other) for one, other in zip(*outcomes, strict=True))
    traced.load_state_dict(model.state_dict(), strict=True)
    return traced


def calls(traced, op="call_module"):
    return [node.target for node in traced.graph.nodes if node.op == op]


class Scaled(seqconv.ConvReLUMaxPool1d):
    def forward(self, input):
        return 2 * super().forward(input)


@every_layer
@pytest.mark.parametrize("change", [None, copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))])
def test_layers_are_leaves(name, change):
    layer = LAYERS[name]()
    layer = layer if change is None else change(layer)
    traced = assert_traced(nn.Sequential(layer, nn.Flatten(), nn.LazyLinear(2)).eval(), inputs(name))
    assert calls(traced) == ["0", "1", "2"]
    assert type(layer).__module__.startswith("seqconv.layers.")


@every_layer
def test_hooks_run_once_and_a_subclass_is_called_as_it_is(name):
    layer = LAYERS[name]()
    layer.register_forward_hook(lambda module, given, result: 2 * result)
    assert calls(assert_traced(nn.Sequential(layer), inputs(name))) == ["0"]
    assert calls(assert_traced(nn.Sequential(Scaled(4, 6, 3, 2)), whole(3, 4, 12))) == ["0"]


@every_layer
def test_a_layer_traced_by_itself_is_its_function(name):
    if name == "reflect":
        pytest.skip("the padding of the other modes depends on the input's shape, which torch.fx does not know")
    traced = assert_traced(LAYERS[name](backend="numba"), inputs(name))
    (function,) = calls(traced, "call_function")
    assert function is getattr(seqconv.functional, function.__name__)
    assert traced.code.count("backend = 'numba'") == 1


@pytest.mark.parametrize("name", ["GRU", "LSTM"])
def test_recurrent_layers_are_leaves(name):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = seqconv.ConvReLUMaxPool1d(4, 6, 3, 2)
            self.rnn = getattr(seqconv, name)(6, 5, batch_first=True, input_dropout=0.3, recurrent_dropout=0.4)

        def forward(self, x):
            output, _ = self.rnn(self.conv(x).transpose(1, 2))
            return output

    assert calls(assert_traced(Model(), whole(3, 4, 12))) == ["conv", "rnn"]

    class Functional(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = getattr(nn, name)(4, 5)

        def forward(self, x):
            function = gru if name == "GRU" else lstm
            return function(x, self.rnn.all_weights)[0]

    assert calls(assert_traced(Functional(), whole(7, 3, 4)), "call_function")[0] in (gru, lstm)


class OfWindows(nn.Module):
    def __init__(self, layer, functional):
        super().__init__()
        self.layer, self.functional = layer, functional
        self.register_buffer("series", torch.randn(40, 4))

    def forward(self, starts):
        if self.functional:
            weight, bias = self.layer.weight, self.layer.bias
            options = {"length": 9, "step": 2}
            if isinstance(self.layer, seqconv.ConvReLUMaxPool1d):
                function = seqconv.functional.window_conv1d_relu_max_pool1d
                return function(self.series, starts, weight, bias, pool_size=2, **options)
            return seqconv.functional.window_conv1d_relu_global_max_pool1d(self.series, starts, weight, bias, **options)
        return self.layer(seqconv.Windows(self.series, starts, 9, 2))


@pytest.mark.parametrize("functional", [False, True])
@pytest.mark.parametrize("name", ["pool", "global"])
def test_windows(name, functional):
    starts = torch.tensor([0, 5, 23])
    traced = assert_traced(OfWindows(LAYERS[name](), functional), starts)
    assert calls(traced) == ([] if functional else ["layer"])
    given_whole = fx.symbolic_trace(nn.Sequential(LAYERS[name]()))
    windows = seqconv.Windows(torch.randn(40, 4), starts, 9, 2)
    assert same(given_whole(windows), given_whole.get_submodule("0")(windows))


MODELS = {
    "ImdbConvnet": (lambda: models.ImdbConvnet(9), lambda: torch.randint(9, (3, 60))),
    "ImdbLSTM": (lambda: models.ImdbLSTM(9), lambda: torch.randint(9, (3, 12))),
    "TextCNN": (lambda: models.TextCNN(9, 4, 5), lambda: torch.randint(9, (3, 12))),
    "JenaConvnet": (models.JenaConvnet, lambda: torch.randn(3, 70, 14)),
    "JenaGRU": (models.JenaGRU, lambda: torch.randn(3, 12, 14)),
    "ConvGRU": (models.ConvGRU, lambda: torch.randn(3, 30, 14)),
}


@pytest.mark.parametrize("name", MODELS)
def test_models(name):
    make, draw = MODELS[name]
    assert_traced(make(), draw())
    if name.startswith(("Jena", "Conv")):
        source = models.WindowSource(torch.randn(200, 14), 70, 2)
        assert_traced(getattr(models, name)(source=source), torch.tensor([0, 3, 60]))


def test_tools_on_the_graph():
    """Fusing norms, which goes by the exact class, and quantisation leave the layers as they are."""
    model = nn.Sequential(
        nn.Conv1d(4, 4, 3), nn.BatchNorm1d(4), seqconv.ConvReLUMaxPool1d(4, 6, 3, 2), nn.BatchNorm1d(6)
    ).eval()
    x = torch.randn(3, 4, 12)
    model[1].running_mean.normal_()
    model[3].running_mean.normal_()
    fused = optimization.fuse(model)
    assert calls(fused) == ["0", "2", "3"]
    torch.testing.assert_close(fused(x), model(x), rtol=1e-5, atol=1e-5)  # sums of 12 products in float32

    with pytest.warns(UserWarning, match="^ConvReLUMaxPool1d is not quantised"):
        prepared = quantize_fx.prepare_fx(model[2:], get_default_qconfig_mapping("x86"), (x,))
    prepared(x)
    assert same(quantize_fx.convert_fx(prepared)(x), model[2:](x))


@pytest.mark.parametrize("name", ["pool", "embedding"])
def test_jit_trace_and_export_go_on(name):
    layer, x = LAYERS[name]().eval(), inputs(name)
    expected = LAYERS[name](backend="reference")
    expected.load_state_dict(layer.state_dict())
    assert same(torch.jit.trace(layer, x)(x), expected(x))
    for strict in (False, True):
        assert same(torch.export.export(layer, (x,), strict=strict).module()(x), expected(x))
