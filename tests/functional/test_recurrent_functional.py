"""The functional GRU and LSTM: their own arguments, and the choice between torch's kernel and the steps."""

from functools import partial

import pytest
import torch
from torch import nn

from seqconv import GRU, backends
from seqconv.functional import recurrent
from seqconv.functional.recurrent import gru, lstm, recurrent_call
from seqconv.kernels.reference import recurrent as reference


@pytest.mark.parametrize(("function", "torchs"), [(gru, nn.GRU), (lstm, nn.LSTM)])
def test_it_is_torchs_layer(function, torchs):
    layer = torchs(4, 5, 2, bidirectional=True, batch_first=True)
    x = torch.randn(3, 6, 4)
    output, _ = function(x, layer.all_weights, bidirectional=True, batch_first=True, backend="reference")
    assert torch.equal(output, layer(x)[0])
    # Two layers of 6 steps, sums of 10 terms below 2.
    output, _ = function(x, layer.all_weights, bidirectional=True, batch_first=True)
    torch.testing.assert_close(output, layer(x)[0], rtol=0, atol=2e-5)


@pytest.mark.parametrize(
    ("masks", "steps"),
    [
        ({}, False),
        ({"input_mask": (3, 4)}, False),
        ({"input_mask": (3, 3, 4)}, True),
        ({"recurrent_mask": (1, 3, 5)}, True),
    ],
    ids=str,
)
def test_the_steps_run_only_where_a_mask_asks_for_them(monkeypatch, masks, steps):
    calls = []
    monkeypatch.setattr(torch, "gru", lambda *arguments, torchs=torch.gru: calls.append("torch") or torchs(*arguments))
    weights = nn.GRU(4, 5).all_weights
    given = {name: torch.ones(shape) for name, shape in masks.items()}
    gru(torch.ones(6, 3, 4), weights, backend="reference", **given)
    assert calls == ([] if steps else ["torch"])


@pytest.mark.parametrize(("function", "operation"), [(gru, "gru"), (lstm, "lstm")])
def test_a_backend_that_cannot_serve_says_so(function, operation):
    weights = (nn.GRU if operation == "gru" else nn.LSTM)(4, 5).all_weights
    with pytest.raises(ValueError, match="backend must be one of auto, triton, numba, reference, got 'cuda'"):
        function(torch.ones(6, 3, 4), weights, backend="cuda")
    call = recurrent_call(operation, torch.ones(6, 3, 4), weights, None, False, False, 0.0, False, None, None)
    explanation = call.explain("reference")
    assert explanation.backend == "reference"
    assert call.explain("auto").backend == "numba"
    weights = nn.LSTM(4, 5, proj_size=2).all_weights
    with pytest.raises(
        backends.BackendError, match=r"'numba' cannot serve lstm: .* without a projection, got proj_size 2"
    ):
        lstm(torch.ones(6, 3, 4), weights, backend="numba")
    mask = torch.ones(1, 3, 5, requires_grad=True)
    weights = nn.GRU(4, 5).all_weights
    with pytest.raises(backends.BackendError, match="got recurrent_mask with requires_grad=True"):
        gru(torch.ones(6, 3, 4), weights, recurrent_mask=mask, backend="numba")
    assert torch.autograd.grad(gru(torch.ones(6, 3, 4), weights, recurrent_mask=mask)[0].sum(), mask)[0].any()


def test_another_backends_kernel_gets_every_layer_and_direction(monkeypatch):
    seen = []

    def spy(*arguments):
        seen.append(arguments)
        return reference.layer(*arguments[:-1])

    monkeypatch.setattr(backends, "choose", lambda operation, backend, arguments: spy)
    layer = nn.GRU(4, 5, 2, bidirectional=True)
    mask = torch.ones(3, 4)
    output, _ = gru(torch.ones(6, 3, 4), layer.all_weights, bidirectional=True, input_mask=mask, recompute=True)
    assert [tuple(input.shape) for _, input, *_ in seen] == [(6, 3, 4), (6, 3, 10)]
    assert [arguments[4].input is None for arguments in seen] == [False, True]
    assert [(len(weights), states[0].shape[0]) for _, _, states, weights, *_ in seen] == [(2, 2), (2, 2)]
    assert all(arguments[-1] for arguments in seen)
    torch.testing.assert_close(output, layer(torch.ones(6, 3, 4))[0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda weights: [], "weights must hold 1 tuples of tensors per layer, got 0 tuples"),
        (lambda weights: [weights[0][:3]], r"weights\[0\] must hold 2 or 4 tensors, all alike, got 3"),
        (lambda weights: [weights[0], weights[1][:2]], r"weights\[1\] must hold 2 or 4 tensors, all alike, got 2"),
        (lambda weights: [weights[0], weights[0]], r"weight_ih of weights\[1\] must have shape \(15, 5\)"),
        (
            lambda weights: [[w.flatten() for w in weights[0]]],
            r"weight_hh of weights\[0\] must have shape \(3 \* H, H\)",
        ),
    ],
)
def test_bad_weights_are_named(change, message):
    weights = nn.GRU(4, 5, 2).all_weights
    with pytest.raises(ValueError, match=message):
        gru(torch.ones(6, 3, 4), change(weights))


def test_weights_that_are_no_tensors_are_named():
    with pytest.raises(TypeError, match=r"weights\[0\] must hold tensors, got NoneType"):
        gru(torch.ones(6, 3, 4), [[None, None]])


def test_bad_dropout_is_named():
    with pytest.raises(ValueError, match=r"dropout must be between 0 and 1, got 1.5"):
        gru(torch.ones(6, 3, 4), nn.GRU(4, 5).all_weights, dropout=1.5)


def test_known_calls_stay_with_their_backend(monkeypatch):
    served, floor = [], recurrent.floor
    monkeypatch.setattr(recurrent, "floor", lambda backend: served.append(backend) or floor("numba"))
    monkeypatch.setattr(backends, "choose_named", lambda *_: ("triton", partial(recurrent.recurrent_layer, "numba")))
    layer, x = GRU(4, 5).eval(), torch.randn(6, 3, 4)
    with torch.no_grad():
        first, again = layer(x)[0], layer(x)[0]
    assert torch.equal(first, again)
    assert served == ["triton"]
