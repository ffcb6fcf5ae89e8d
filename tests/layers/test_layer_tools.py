"""Tools that go through a model's modules: with the layers they are right, or stopped by an error that says why."""

import copy
import inspect
import pickle
import pydoc
import warnings

import pytest
import torch
from torch import nn
from torch.ao import quantization
from torch.nn.utils import parametrize, prune, spectral_norm, weight_norm
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.utils import mkldnn

import seqconv
from tests.conv_cases import whole

pytestmark = [
    pytest.mark.filterwarnings("ignore:.?torch.(ao|jit).*is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Please use quant_min and quant_max"),
    pytest.mark.filterwarnings("ignore:.*torch.quantize_per_tensor"),
    pytest.mark.filterwarnings("ignore:.*torch.nn.utils.weight_norm. is deprecated"),
    pytest.mark.filterwarnings("ignore:.* is not quantised"),
]
CONVOLUTIONS = {
    "pool": lambda **kw: seqconv.ConvReLUMaxPool1d(4, 6, 3, 2, **kw),
    "global": lambda **kw: seqconv.ConvReLUGlobalMaxPool1d(4, 6, 3, **kw),
}
ALL = CONVOLUTIONS | {
    "embedding": lambda: seqconv.EmbeddingConvReLUMaxPool1d(9, 4, 6, 3, 2),
    "embedded global": lambda: seqconv.EmbeddingConvReLUGlobalMaxPool1d(9, 4, 6, 3),
    "several": lambda: seqconv.EmbeddingConvsReLUGlobalMaxPool1d(9, 4, 6, [3, 2]),
    "gru": lambda: seqconv.GRU(4, 6),
    "lstm": lambda: seqconv.LSTM(4, 6),
}
convolutions = pytest.mark.parametrize("make", CONVOLUTIONS.values(), ids=CONVOLUTIONS)
every_layer = pytest.mark.parametrize("make", ALL.values(), ids=ALL)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(6)


def plain(layer):
    """Return torch's layers of the same convolution, and the convolution."""
    conv = nn.Conv1d(4, 6, 3, dtype=layer.weight.dtype)
    conv.load_state_dict(layer.state_dict())
    pool = [nn.MaxPool1d(2)] if hasattr(layer, "pool_size") else [nn.AdaptiveMaxPool1d(1), nn.Flatten(-2)]
    return nn.Sequential(conv, nn.ReLU(), *pool), conv


@convolutions
@pytest.mark.parametrize("parametrized", [False, True])
def test_no_norm_is_folded_into_it(make, parametrized):
    layer, norm = make().eval(), nn.BatchNorm1d(6).eval()
    if parametrized:
        parametrize.register_parametrization(layer, "weight", nn.Identity())
    with pytest.raises(TypeError, match=r"ConvReLU\w+ is an nn.Conv1d with more behind it: a norm behind it cannot"):
        fuse_conv_bn_eval(layer, norm)
    if not parametrized:  # an assignment like any other
        layer.weight = folded = fuse_conv_bn_eval(nn.Conv1d(4, 6, 3).eval(), norm).weight
        assert layer.weight is folded


@convolutions
def test_tools_that_go_by_the_exact_class_leave_it_alone(make):
    model = nn.Sequential(make(), nn.BatchNorm1d(6)).eval()
    with pytest.raises(AssertionError, match="did not find fuser method"):
        quantization.fuse_modules(model, [["0", "1"]])


@convolutions
def test_is_not_replaced_by_an_mkldnn_convolution(make):
    with pytest.raises(TypeError, match="to_mkldnn would put a convolution without its ReLU and maximum in its place"):
        mkldnn.to_mkldnn(nn.Sequential(nn.Sequential(make())))
    assert list(make().named_children()) == list(make().children()) == []


def lora(package):
    """Return what makes the two convolutions that peft's LoRA layer makes, in code of a package."""
    program = """
def update_layer(base, r):
    conv, one = type(base), (1,)
    first = conv(base.in_channels, r, base.kernel_size, base.stride, base.padding, bias=False)
    return first, conv(r, base.out_channels, one, one, groups=base.groups, bias=False)
"""
    space = {"__name__": package}
    exec(program, space)
    return space["update_layer"]


@convolutions
def test_lora_is_not_added_behind_the_maximum(make):
    with pytest.raises(TypeError, match=r"is an nn.Conv1d with more behind it: LoRA|must be given by name, got \(0,\)"):
        lora("peft.tuners.lora.layer")(make(), 3)


def test_sizes_by_position():
    """In nn.Conv1d's order, as far as that has one meaning."""
    given = (4, 6, (3,), (2,), (1,), (2,), 2, False, "circular", "cpu", torch.float64)
    ours, theirs = seqconv.ConvReLUGlobalMaxPool1d(*given), nn.Conv1d(*given)
    assert ours.extra_repr() == theirs.extra_repr()
    assert ours.weight.dtype == torch.float64
    again = type(ours)(ours.in_channels, ours.out_channels, ours.kernel_size, ours.stride, ours.padding)
    assert (again.stride, again.padding) == ((2,), (1,))
    lora("another")(ours, 2)
    with pytest.raises(TypeError, match=r"^arguments behind pool_size must be given by name, got \(2,\), \(1,\): in"):
        seqconv.ConvReLUMaxPool1d(4, 6, (3,), 2, (2,), (1,))


class LowRank(nn.Module):
    def __init__(self, up, down):
        super().__init__()
        self.up, self.down = nn.Parameter(up), nn.Parameter(down)

    def forward(self, weight):
        return weight + torch.einsum("or,rck->ock", self.up, self.down)


TOOLS = {
    "initialise": lambda conv: conv.apply(lambda m: isinstance(m, nn.Conv1d) and nn.init.constant_(m.weight, 2)),
    "prune": lambda conv: prune.ln_structured(conv, "weight", 0.5, n=2, dim=0),
    "weight_norm": lambda conv: nn.utils.parametrizations.weight_norm(conv),
    "hooked weight_norm": weight_norm,
    "hooked spectral_norm": spectral_norm,
    "low rank": lambda conv: parametrize.register_parametrization(conv, "weight", LowRank(whole(6, 2), whole(2, 4, 3))),
}


@pytest.mark.parametrize("tool", TOOLS.values(), ids=TOOLS)
@convolutions
def test_tools_that_work_on_its_parameters_are_right(make, tool):
    layer, x = make(dtype=torch.float64), whole(3, 4, 12, dtype=torch.float64)
    model, conv = plain(layer)
    for one in (layer, conv):
        torch.manual_seed(7)
        tool(one)
    for _ in range(2):  # hooks make the weights anew
        outcomes = []
        for one, part in ((layer, layer), (model, conv)):
            result = one(x)
            parameters = list(part.parameters())
            outcomes.append([result, *torch.autograd.grad(result.square().sum(), parameters)])
        for one, other in zip(*outcomes, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-11)


@every_layer
def test_stays_in_floating_point(make):
    name = type(make()).__name__
    for prepare, config in (
        (quantization.prepare, quantization.get_default_qconfig("x86")),
        (quantization.prepare_qat, quantization.get_default_qat_qconfig("x86")),
    ):
        model = nn.Sequential(make())
        model.qconfig = config
        with pytest.warns(UserWarning, match=rf"^{name} is not quantised: it stays in floating point \(put"):
            prepared = prepare(model.train(prepare is quantization.prepare_qat))
        converted = quantization.convert(prepared)
        assert str(converted) == str(model)
        assert list(converted.state_dict()) == list(model.state_dict())
        quantization.convert(converted)  # removes what is not there
    with pytest.warns(UserWarning, match=f"^{name} is not quantised"):
        dynamic = quantization.quantize_dynamic(nn.Sequential(make(), nn.Linear(5, 5)))
    assert str(dynamic[0]) == str(make())
    assert "DynamicQuantized" in str(dynamic[1])
    layer = make()
    with pytest.warns(UserWarning, match=f"^{name} is not quantised"):
        layer.qconfig = quantization.get_default_qconfig("x86")
    assert layer.qconfig is None


@convolutions
def test_a_quantised_input_is_refused(make):
    model = quantization.QuantWrapper(make())
    model.qconfig = quantization.get_default_qconfig("x86")
    model = quantization.prepare(model.eval())
    model(whole(2, 4, 12))
    with pytest.raises(TypeError, match=r"^input must be .* got torch.quint8 \(nothing here is quantised: put a"):
        quantization.convert(model)(whole(2, 4, 12))


@every_layer
def test_copies(make):
    layer = make()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
            assert type(twin) is type(layer)
            assert str(twin) == str(layer)
            assert list(twin.state_dict()) == list(layer.state_dict())


@every_layer
def test_torchscript_is_refused_by_name(make):
    for model in (make(), nn.Sequential(nn.Sequential(make()))):
        with pytest.raises(RuntimeError, match=f"^{type(make()).__name__} does not support TorchScript: use torch"):
            torch.jit.script(model)


@every_layer
def test_help_shows_the_layer_first(make):
    """Of a layer as of its class: its name and arguments, then what it computes, and only then what it has of torch."""
    layer = make()
    kind = type(layer)
    for subject in (kind, layer):
        title, _, header, signature, _, summary, *_ = pydoc.render_doc(subject, renderer=pydoc.plaintext).splitlines()
        assert kind.__name__ in title
        assert header.startswith(f"class {kind.__name__}(")
        assert signature == f" |  {kind.__name__}{inspect.signature(kind)}"
        assert "kernel_size" in signature or "hidden_size" in signature
        assert summary == f" |  {kind.__doc__.splitlines()[0]}"
