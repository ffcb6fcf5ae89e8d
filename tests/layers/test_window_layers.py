"""The conv stack's layers on windows of a series, against the same layers on the windows' content."""

import copy

import pytest
import torch

import seqconv
from seqconv import ConvReLUGlobalMaxPool1d, ConvReLUMaxPool1d, Windows
from tests.conv_cases import same, whole

pytestmark = [
    pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths"),
    pytest.mark.usefixtures("floor"),
]
LAYERS = [lambda **kw: ConvReLUMaxPool1d(4, 6, 3, 2, **kw), lambda **kw: ConvReLUGlobalMaxPool1d(4, 6, 3, **kw)]
NAMES = ["pool", "global"]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(6)


def windows(**changes):
    """Overlapping windows, one of them twice, the last to the series' last row."""
    fields = {"series": whole(40, 4, dtype=torch.float64), "starts": torch.tensor([0, 5, 3, 3, 17]), "length": 12}
    return Windows(**{**fields, "step": 2, **changes})


def whole_numbers(layer):
    for parameter in layer.parameters():
        torch.nn.init.uniform_(parameter, -3.5, 3.5).data.round_()
    return layer


@pytest.mark.parametrize(
    "options", [{}, {"padding": 2, "stride": 2, "dilation": 2, "groups": 2, "bias": False}], ids=str
)
@pytest.mark.parametrize("mode", ["zeros", "reflect", "circular"])
@pytest.mark.parametrize("make", LAYERS, ids=NAMES)
def test_equals_the_layer_on_the_content(make, mode, options):
    layer = whole_numbers(make(padding_mode=mode, dtype=torch.float64, **options))
    given, outcomes = windows(), []
    for give in (lambda w: w, lambda w: w.gather().transpose(1, 2)):
        series = given.series.clone().requires_grad_()
        result = layer(give(given._replace(series=series)))
        weighting = torch.arange(result.numel(), dtype=result.dtype).remainder(7).sub(3).reshape(result.shape)
        outcomes.append([result, *torch.autograd.grad((result * weighting).sum(), [series, *layer.parameters()])])
    for one, other in zip(*outcomes, strict=True):
        assert same(one, other)


def test_content_is_that_of_the_definition():
    given = windows()
    expected = torch.stack([given.series[start : start + 23 : 2] for start in given.starts])
    assert torch.equal(given.gather(), expected)
    assert given.gather().is_contiguous()
    assert Windows(given.series, given.starts, 12).step == 1


def test_moves_to_another_device_or_dtype():
    there = windows().to("meta")
    assert (there.series.device.type, there.starts.device.type, there.length, there.step) == ("meta", "meta", 12, 2)
    floats = windows().to(torch.float32)
    assert (floats.series.dtype, floats.starts.dtype) == (torch.float32, torch.int64)
    assert ConvReLUMaxPool1d(4, 6, 3, 2, device="meta")(windows().to("meta", torch.float32)).shape == (5, 6, 5)


@pytest.mark.parametrize("make", LAYERS, ids=NAMES)
def test_explains_and_is_seen_by_hooks(make):
    layer, seen = make(dtype=torch.float64), []
    layer.register_forward_pre_hook(lambda _, arguments: seen.extend(arguments))
    given = windows()
    layer(given)
    assert seen == [given]
    assert "window_conv1d_relu" in str(seqconv.explain(layer, given))
    assert torch.equal(copy.deepcopy(layer)(given), layer(given))


@pytest.mark.parametrize("make", LAYERS, ids=NAMES)
def test_compiles_to_one_graph(make):
    torch.compiler.reset()
    layer, given = make(dtype=torch.float64), windows()
    compiled = torch.compile(layer, fullgraph=True, backend="eager")
    for one in (given, given._replace(starts=given.starts[:2], length=9)):
        assert torch.equal(compiled(one), layer(one))


@pytest.mark.parametrize("mode", ["zeros", "reflect"])
@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (
            {"starts": torch.tensor([18])},
            IndexError,
            "starts must be between 0 and 17 for the 40 rows",
        ),
        ({"starts": torch.tensor([3, -1])}, IndexError, "starts must be between 0 and 17"),
        ({"starts": torch.tensor([[3]])}, ValueError, r"starts must have shape \(N,\), got \(1, 1\)"),
        ({"starts": torch.tensor([3.0])}, TypeError, "starts must be int32 or int64, got torch.float32"),
        ({"starts": [3]}, TypeError, "starts must be a tensor, got list"),
        ({"series": [[1.0]]}, TypeError, "series must be a tensor, got list"),
        ({"series": torch.zeros(9)}, ValueError, r"series must have shape \(rows, channels\), got \(9,\)"),
        ({"length": 0}, ValueError, "length must be at least 1, got 0"),
        ({"step": 1.0}, TypeError, "step must be an integer, got 1.0"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_rejects(changes, error, message, mode):
    layer = ConvReLUMaxPool1d(4, 6, 3, 2, padding=1, padding_mode=mode, dtype=torch.float64)
    with pytest.raises(error, match=f"^{message}"):
        layer(windows(**changes))
