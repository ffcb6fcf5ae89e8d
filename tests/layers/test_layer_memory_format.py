"""``memory_format``: channels-last results on the way, or torch's contiguous ones wherever a layer replaces torch's."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn

import seqconv
from seqconv import functional
from tests.conv_cases import channels_last, same, whole
from tests.grids import grid

pytestmark = pytest.mark.usefixtures("floor")
CONTIGUOUS = torch.contiguous_format
STARTS = torch.tensor([0, 5, 17])


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(6)


class Transposed(nn.Module):
    def forward(self, embedded):
        return embedded.transpose(-1, -2)


def convolution(**options):
    return seqconv.ConvReLUMaxPool1d(4, 6, 3, 2, dtype=torch.float64, **options)


def embedding(**options):
    return seqconv.EmbeddingConvReLUMaxPool1d(9, 4, 6, 3, 2, dtype=torch.float64, **options)


CASES = {
    "channels-last": (convolution, lambda: channels_last(whole(3, 4, 12, dtype=torch.float64))),
    "contiguous": (convolution, lambda: whole(3, 4, 12, dtype=torch.float64)),
    "unbatched": (convolution, lambda: channels_last(whole(4, 12, dtype=torch.float64))),
    "reflect": (
        lambda **kw: convolution(padding=1, padding_mode="reflect", **kw),
        lambda: channels_last(whole(3, 4, 12, dtype=torch.float64)),
    ),
    "groups": (lambda **kw: convolution(groups=2, **kw), lambda: channels_last(whole(3, 4, 12, dtype=torch.float64))),
    "windows": (convolution, lambda: seqconv.Windows(whole(40, 4, dtype=torch.float64), STARTS, 12, 2)),
    "embedding": (embedding, lambda: torch.randint(9, (3, 12))),
    "one sequence": (embedding, lambda: torch.randint(9, (12,))),
    "no samples": (convolution, lambda: channels_last(whole(0, 4, 12, dtype=torch.float64))),
}
cases = pytest.mark.parametrize(("make", "draw_input"), CASES.values(), ids=CASES)


def whole_numbers(layer):
    for parameter in layer.parameters():
        nn.init.uniform_(parameter, -3.5, 3.5).data.round_()
    return layer


def step(layer, given):
    """Return the result and the gradients of a loss that reads it as a row of numbers a sample."""
    result = layer(given)
    flat = result.view(*result.shape[:-2], result.size(-2) * result.size(-1))  # raises unless contiguous
    weighting = torch.arange(flat.numel(), dtype=flat.dtype).remainder(7).sub(3).reshape(flat.shape)
    return [result, *torch.autograd.grad((flat * weighting).sum(), list(layer.parameters()))]


@cases
def test_contiguous_results(make, draw_input):
    layer, given = whole_numbers(make(memory_format=CONTIGUOUS)), draw_input()
    keeping = copy.deepcopy(layer)
    keeping.memory_format = torch.preserve_format
    with torch.no_grad():
        assert layer(given).is_contiguous()
        assert same(layer(given), keeping(given))
        seqconv.explain(layer, given)
    (result, *gradients), kept = step(layer, given), keeping(given)
    weighting = torch.arange(kept.numel(), dtype=kept.dtype).remainder(7).sub(3).reshape(kept.shape)
    expected = torch.autograd.grad((kept * weighting).sum(), list(keeping.parameters()))
    assert same(result, kept)
    assert all(same(one, other) for one, other in zip(gradients, expected, strict=True))


def test_as_torch_layers_in_their_place():
    """The result's strides are torch's, so a dropout draws torch's mask."""
    for ours, theirs, x in (
        (convolution, [nn.Conv1d(4, 6, 3)], channels_last(whole(3, 4, 12, dtype=torch.float64))),
        (embedding, [nn.Embedding(9, 4), Transposed(), nn.Conv1d(4, 6, 3)], torch.randint(9, (3, 12))),
    ):
        plain = whole_numbers(nn.Sequential(*theirs, nn.ReLU(), nn.MaxPool1d(2)).double())
        layer = ours(memory_format=CONTIGUOUS)
        for one, other in zip(layer.parameters(), plain.parameters(), strict=True):
            one.data.copy_(other)
        outcomes = []
        for model in (layer, plain):
            torch.manual_seed(1)
            result = model(x)
            outcomes.append(nn.functional.dropout(result, 0.5).view(3, -1))
        assert result.stride() == layer(x).stride()
        assert same(*outcomes)
        torch.manual_seed(1)
        assert not same(nn.functional.dropout(channels_last(result), 0.5).flatten(1), outcomes[0])


@grid(together=1, indirect=["floor"], case=list(CASES), floor=["reference", "auto"])
def test_under_torch_compile(case, floor):
    torch.compiler.reset()
    make, draw_input = CASES[case]
    layer, given = whole_numbers(make(memory_format=CONTIGUOUS)), draw_input()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    assert compiled(given).stride() == layer(given).stride()
    assert all(same(one, other) for one, other in zip(step(compiled, given), step(layer, given), strict=True))


def test_export_and_meta_tensors():
    layer, x = convolution(memory_format=CONTIGUOUS), channels_last(whole(3, 4, 12, dtype=torch.float64))
    assert torch.export.export(layer, (x,)).module()(x).is_contiguous()
    assert layer.to("meta")(x.to("meta")).is_contiguous()


@pytest.mark.parametrize("make", [convolution, embedding])
def test_is_kept_and_told(make):
    layer = make(memory_format=CONTIGUOUS)
    assert "memory_format=torch.contiguous_format" in repr(layer)
    assert "memory_format" not in repr(make())
    stream = io.BytesIO()
    torch.save(layer, stream)
    stream.seek(0)
    for twin in (
        copy.deepcopy(layer),
        pickle.loads(pickle.dumps(layer)),
        torch.load(stream, weights_only=False),
    ):
        assert twin.memory_format is CONTIGUOUS


@pytest.mark.parametrize(
    ("value", "error"), [(torch.channels_last, ValueError), ("contiguous", TypeError), (None, TypeError)]
)
def test_rejects(value, error):
    message = r"^memory_format must be torch.preserve_format or torch.contiguous_format"
    for make in (convolution, embedding):
        with pytest.raises(error, match=message):
            make(memory_format=value)
        with pytest.raises(error, match=message):
            make().memory_format = value
    x, tokens = torch.randn(3, 4, 12), torch.randint(9, (3, 12))
    table, weight = torch.randn(9, 4), torch.randn(6, 4, 3)
    options = {"pool_size": 2, "memory_format": value}
    with pytest.raises(error, match=message):
        functional.conv1d_relu_max_pool1d(x, weight, **options)
    with pytest.raises(error, match=message):
        functional.embedding_conv1d_relu_max_pool1d(tokens, table, weight, **options)
    with pytest.raises(error, match=message):
        functional.window_conv1d_relu_max_pool1d(table, torch.tensor([0]), weight, length=6, **options)
