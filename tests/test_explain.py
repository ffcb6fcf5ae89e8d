"""seqconv.explain on real layers."""

import copy

import pytest
import torch
from torch import nn

import seqconv


@pytest.mark.parametrize(
    ("make", "shape", "operation"),
    [
        (lambda: seqconv.ConvReLUMaxPool1d(4, 6, 3, 2), (2, 4, 12), "conv1d_relu_max_pool1d"),
        (lambda: seqconv.ConvReLUGlobalMaxPool1d(4, 6, 3), (4, 12), "conv1d_relu_global_max_pool1d"),
        (lambda: seqconv.EmbeddingConvReLUMaxPool1d(9, 4, 6, 3, 2), (12,), "embedding_conv1d_relu_max_pool1d"),
        (
            lambda: seqconv.EmbeddingConvReLUGlobalMaxPool1d(9, 4, 6, 3),
            (2, 12),
            "embedding_conv1d_relu_global_max_pool1d",
        ),
        (lambda: seqconv.GRU(4, 5, recurrent_dropout=0.5), (7, 2, 4), "gru"),
        (lambda: seqconv.LSTM(4, 5, input_dropout=0.5), (7, 2, 4), "lstm"),
    ],
)
def test_explains_every_layer_and_leaves_the_random_state(make, shape, operation):
    layer = make()
    x = torch.randint(9, shape) if "embedding" in operation else torch.randn(shape)
    before = torch.get_rng_state()
    explanation = seqconv.explain(layer, x)
    assert torch.equal(torch.get_rng_state(), before)
    assert explanation.operation == operation
    assert explanation.requested == "auto"
    assert explanation.reasons[explanation.backend] is None
    assert operation in str(explanation)
    layer.backend = "reference"
    assert (seqconv.explain(layer, x).backend, seqconv.explain(layer, x).requested) == ("reference", "reference")


def test_raises_what_the_call_would_raise():
    layer = seqconv.ConvReLUMaxPool1d(4, 6, 3, 2)
    with pytest.raises(ValueError, match=r"^input must have in_channels"):
        seqconv.explain(layer, torch.randn(2, 5, 12))


def test_takes_layers_of_seqconv_and_what_holds_some():
    with pytest.raises(TypeError, match=r"^layer must be one of seqconv's layers, or a model that .*, got Conv1d$"):
        seqconv.explain(nn.Conv1d(4, 6, 3), torch.randn(2, 4, 12))


class Model(nn.Module):
    """Layers of which one is called twice and one never, and what changes as it runs."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(4)
        self.first = seqconv.ConvReLUMaxPool1d(4, 4, 3, 2, padding=1)
        self.rest = nn.ModuleDict({"gru": seqconv.GRU(4, 5, batch_first=True, recurrent_dropout=0.5)})
        self.unused = seqconv.ConvReLUGlobalMaxPool1d(4, 6, 3, backend="reference")

    def forward(self, x):
        x = self.first(self.first(self.norm(x)))
        return self.rest["gru"](x.transpose(1, 2), hx=None)[0]


def test_a_model_has_a_line_for_every_call_of_a_layer():
    model, x = Model(), torch.randn(2, 4, 24)
    state = copy.deepcopy(model.state_dict())
    before = torch.get_rng_state()
    answer = seqconv.explain(model, x)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(one, state[name]) for name, one in model.state_dict().items())
    first, second, gru, unused = answer.calls
    assert [name for name, _ in answer.calls] == ["first", "first", "rest.gru", "unused"]
    assert first[1] == seqconv.explain(model.first, x)
    assert second[1].operation == "conv1d_relu_max_pool1d"
    assert (gru[1].operation, gru[1].backend) == ("gru", "numba")
    assert unused[1] is None
    lines = str(answer).splitlines()
    assert lines[0].startswith(
        f"first: conv1d_relu_max_pool1d: numba, {first[1].plan}; not triton: it serves tensors on"
    )
    assert first[1].plan.startswith("direct: ")
    assert lines[2].startswith("rest.gru: gru: numba; not triton: it serves tensors on a GPU")
    assert lines[3] == "unused: is not called"
    model(x)  # no hook is left
    assert answer == seqconv.explain(model, x)


def test_says_what_input_it_wants():
    layer = seqconv.ConvReLUMaxPool1d(4, 6, 3, 2)
    with pytest.raises(TypeError) as error:
        seqconv.explain(layer)
    assert str(error.value) == (
        "inputs must be those of the call, ConvReLUMaxPool1d.forward(input: Tensor | Windows, "
        "lengths: Tensor | None = None) -> Tensor (nn.Conv1d -> nn.ReLU -> nn.MaxPool1d: (N, C, L) -> (N, O, Q) or "
        "(C, L) -> (O, Q)), got none"
    )
    with pytest.raises(TypeError, match=r"those of the call, GRU.forward\(input: .*: \(L, N, C\), with batch_first"):
        seqconv.explain(seqconv.GRU(4, 5))
    with pytest.raises(TypeError, match=r"those of the call, Model.forward\(x\) \(Layers of which .*\), got none$"):
        seqconv.explain(Model())
