"""GRU and LSTM in fused models: torch's numbers, and what is left to torch."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations
from torch.nn.utils.rnn import pack_padded_sequence

import seqconv
from seqconv import backends
from seqconv.functional import recurrent


class Model(nn.Module):
    """A convolution and an RNN over its channels."""

    def __init__(self, layer=nn.GRU, **options):
        super().__init__()
        self.conv = nn.Conv1d(4, 8, 3)
        self.rnn = layer(8, 16, batch_first=True, **options)
        self.head = nn.Linear(16 * (1 + self.rnn.bidirectional), 2)

    def forward(self, x):
        rows = torch.max_pool1d(torch.relu(self.conv(x)), 2).transpose(1, 2)
        output, _ = self.rnn(rows)
        return self.head(output[:, -1])


class WithStates(Model):
    """The same, with the first states given and the last ones used."""

    def forward(self, x):
        rows = torch.relu(self.conv(x)).transpose(1, 2)
        h = x.new_zeros(1, x.size(0), 16) + x.mean()
        _, last = self.rnn(rows, h if isinstance(self.rnn, nn.GRU) else (h, 2 * h))
        return last[0] if isinstance(self.rnn, nn.GRU) else last[0][0] + last[1][0]


@pytest.fixture
def served(monkeypatch):
    """Return a list of what the CPU's kernels were called for."""
    calls = []

    def spy(cell, *arguments):
        calls.append(cell)
        return recurrent.recurrent_layer("numba", cell, *arguments)

    for operation in ("gru", "lstm"):
        candidate = next(one for one in backends._of(operation) if one.backend == "numba")
        monkeypatch.setattr(candidate.loaded, "kernel", spy)
    return calls


def results(model, x):
    torch.manual_seed(3)
    output = model(x)
    found = torch.autograd.grad(output.square().sum(), model.parameters(), materialize_grads=True)
    return [output, *found]


def row(model, name):
    return next(one for one in seqconv.fusion_report(model) if one.name == name)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True, "dropout": 0.4}, {"bias": False}])
@pytest.mark.parametrize("layer", [nn.GRU, nn.LSTM])
def test_numbers_keys_and_report(layer, options, training, served):
    torch.manual_seed(0)
    plain = Model(layer, **options).train(training)
    fused, x = seqconv.fuse(plain), torch.randn(5, 4, 30)
    assert list(fused.state_dict()) == list(plain.state_dict())
    for one, other in zip(results(fused, x), results(plain, x), strict=True):
        # Sums of 32 terms over 14 steps and two layers, below 4 each.
        torch.testing.assert_close(one, other, rtol=1e-4, atol=14 * 2 * 32 * 4 * 2**-24)
    assert served == [layer.__name__.lower()] * options.get("num_layers", 1)
    found = row(fused, "rnn")
    assert (found.fused, found.kind, found.reason) == (True, layer.__name__, "")


@pytest.mark.parametrize("layer", [nn.GRU, nn.LSTM])
def test_first_and_last_states(layer, served):
    torch.manual_seed(0)
    plain, x = WithStates(layer), torch.randn(5, 4, 30)
    fused = seqconv.fuse(plain)
    for one, other in zip(results(fused, x), results(plain, x), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=14 * 2 * 32 * 4 * 2**-24)
    assert len(served) == 1


def test_packed_sequences(served):
    class Packed(Model):
        def forward(self, x, lengths):
            packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
            output, last = self.rnn(packed)
            return output.data, last

    torch.manual_seed(0)
    plain = Packed()
    fused = seqconv.fuse(plain)
    x, lengths = torch.randn(3, 9, 8), torch.tensor([4, 9, 1])
    for one, other in zip(fused(x, lengths), plain(x, lengths), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


def project(model):
    model.rnn, model.head = nn.LSTM(8, 16, batch_first=True, proj_size=12), nn.Linear(12, 2)


class OwnForward(nn.GRU):
    def forward(self, input, hx=None):
        return super().forward(2 * input, hx)


class OwnOrder(nn.GRU):
    def permute_hidden(self, hx, permutation):
        return hx * 0 + 0.5


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (project, "proj_size 12"),
        (
            lambda model: setattr(model, "rnn", OwnForward(8, 16, batch_first=True)),
            "OwnForward has a forward of its own",
        ),
        (lambda model: setattr(model, "rnn", nn.RNN(8, 16, batch_first=True)), "no kernels for RNN"),
        (lambda model: setattr(model, "rnn", OwnOrder(8, 16, batch_first=True)), "has a permute_hidden of its own"),
        (lambda model: parametrizations.weight_norm(model.rnn, "weight_hh_l0"), "parametrized"),
        (lambda model: model.rnn.register_forward_hook(lambda *_: None), "hook"),
    ],
)
def test_what_stays_plain(change, reason, served):
    torch.manual_seed(0)
    plain = Model()
    change(plain)
    fused, x = seqconv.fuse(plain), torch.randn(5, 4, 30)
    torch.testing.assert_close(fused(x), plain(x), rtol=0, atol=1e-5)
    found = row(fused, "rnn")
    assert not found.fused
    assert reason in found.reason
    assert served == []


def test_torchs_kernel_serves_where_it_is_faster(served):
    plain = Model(nn.LSTM).to(torch.bfloat16).eval()
    fused, x = seqconv.fuse(plain), torch.randn(2, 4, 30).bfloat16()
    with torch.no_grad():
        for _ in range(2):  # the second call is known
            assert torch.equal(fused(x), plain(x))
    assert served == []


@pytest.mark.parametrize("layer", [nn.GRU, nn.LSTM])
@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True, "bias": False}])
def test_calls_that_are_known(layer, options):
    torch.manual_seed(0)
    plain = Model(layer, **options).eval()
    fused = seqconv.fuse(plain)
    with torch.no_grad():
        for batch in (3, 3, 5, 3):  # known from the second on, and then of another format
            x = torch.randn(batch, 4, 30)
            torch.testing.assert_close(fused(x), plain(x), rtol=0, atol=1e-5)
        plain.rnn.weight_hh_l0.mul_(2)
        fused.rnn.weight_hh_l0.mul_(2)
        torch.testing.assert_close(fused(x), plain(x), rtol=0, atol=1e-5)
    assert fused(x).grad_fn is not None
    assert fused.rnn(x.transpose(1, 2).repeat(1, 1, 2))[0].dtype == torch.float32


def test_weights_that_are_exchanged_are_used(served):
    torch.manual_seed(0)
    plain = Model()
    fused, x = seqconv.fuse(plain), torch.randn(5, 4, 30)
    fused(x)
    other = copy.deepcopy(plain)
    with torch.no_grad():
        for one in other.parameters():
            one.mul_(1.5)
    fused.load_state_dict(other.state_dict())
    torch.testing.assert_close(fused(x), other(x), rtol=0, atol=1e-5)
    fused.rnn.weight_hh_l0 = nn.Parameter(plain.rnn.weight_hh_l0 * 2)
    other.rnn.weight_hh_l0 = nn.Parameter(plain.rnn.weight_hh_l0 * 2)
    torch.testing.assert_close(fused(x), other(x), rtol=0, atol=1e-5)
    assert len(served) == 3


IN_PLACE = [
    lambda output: nn.functional.relu(output, inplace=True),
    lambda output: output.relu_(),
    lambda output: output.transpose(1, 2)[:, :3].mul_(2),
    lambda output: nn.functional.dropout(output, 0.5, True, inplace=True),
]


@pytest.mark.parametrize("change", IN_PLACE)
def test_an_output_that_is_changed_in_place(change, served):
    class Changing(Model):
        def forward(self, x):
            output, last = self.rnn(x)
            return change(output).sum() + last.sum()

    torch.manual_seed(0)
    plain = Changing()
    fused, x = seqconv.fuse(plain), torch.randn(3, 9, 8)
    for one, other in zip(results(fused, x), results(plain, x), strict=True):
        assert torch.equal(one, other)
    assert served == []
    assert row(fused, "rnn").reason == "its output is changed in place"


@pytest.mark.parametrize("layer", [nn.GRU, nn.LSTM])
@pytest.mark.parametrize("dtypes", [(torch.bfloat16, torch.float32), (torch.float32, torch.bfloat16)])
def test_autocast_of_other_dtypes_is_torchs(layer, dtypes):
    torch.manual_seed(0)
    weights, inputs = dtypes
    plain = layer(64, 64).to(weights)

    class Alone(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = plain

        def forward(self, x, h):
            return self.rnn(x, h if isinstance(plain, nn.GRU) else (h, h))[0]

    model, x, h = Alone(), torch.randn(20, 4, 64, dtype=inputs), torch.randn(1, 4, 64, dtype=weights)
    fused = seqconv.fuse(model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected, found = model(x, h), fused(x, h)
    assert found.dtype == expected.dtype
    # Products of bfloat16 over 20 steps, on states within (-1, 1).
    torch.testing.assert_close(found.float(), expected.float(), rtol=0, atol=20 * 2**-8)
