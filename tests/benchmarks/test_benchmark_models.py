"""Whole models: both sides have the same weights and give the same numbers and gradients; a wrong one is seen."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from benchmarks.checking import Wrong, check
from benchmarks.operations import models as kinds
from benchmarks.operations.models import MODELS, model_case, seqconv_model, torch_model
from benchmarks.registry import Candidate, Provider, candidates, comparisons, operation


@pytest.fixture(autouse=True)
def _small_series(monkeypatch):
    """Read windows in a series that is quickly drawn."""
    rows = torch.randn(3000, kinds.COLUMNS)
    monkeypatch.setattr(kinds, "ROWS", len(rows))
    monkeypatch.setattr(kinds, "series", lambda: rows)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("mode", ["inference", "training_step"])
def test_all_sides_are_right(name, mode):
    case = model_case(name, mode, batch=3)
    right = [one for one in candidates(case) if one.unavailable is None]
    expected = {"torch eager", "torch eager, copied to contiguous", "seqconv auto"}
    assert {one.provider.name for one in right} - set(MODELS[name].rival[:1] if MODELS[name].rival else ()) >= expected
    for candidate in right:
        assert check(candidate).keys() == {"output, random"}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("contiguous", [False, True])
def test_gradients_agree_in_double_precision(name, contiguous):
    case = model_case(name, "training_step", batch=3)
    kind = operation("models")
    inputs = kind.inputs(case, "random")
    found = []
    for model in (seqconv_model(case), torch_model(case, contiguous=contiguous)):
        step = kind.step(case, model, inputs, torch.float64)
        step.prepare()
        step.forward_backward()
        found.append([one.grad for one in step.parameters.values()])
    for own in found[1]:
        place = next(place for place, one in enumerate(found[0]) if one.shape == own.shape)
        torch.testing.assert_close(own, found[0].pop(place), rtol=1e-9, atol=1e-12)


def test_other_weights_are_seen():
    def make(case):
        model = torch_model(case, contiguous=False)
        torch.nn.init.normal_(model.head.bias, std=0.1)
        return model

    with pytest.raises(Wrong):
        check(Candidate(model_case("jena_convnet", "inference", batch=3), Provider("other", make)))


def test_seqconv_meets_torch_as_it_is_with_its_input_copied_and_the_rnn():
    def met(name):
        pairs = [one for one in comparisons(model_case(name, "inference")) if one.unavailable is None]
        return [one.against.provider.name for one in pairs if one.candidate.provider.ours]

    both = ["torch eager", "torch eager, copied to contiguous"]
    assert met("conv_gru") == both
    assert met("imdb_convnet") == [*both, "torch LSTM(32)"]
    assert met("jena_convnet") == [*both, "torch GRU(32)"]
    assert met("jena_convnet_from_starts") == [*both, "windows filled, then seqconv's model"]


def test_weights_do_not_depend_on_the_case_s_batch_or_mode():
    case = model_case("jena_convnet", "inference")
    first, second = (seqconv_model(one).state_dict() for one in (case, replace(case, mode="training_step")))
    assert all(torch.equal(first[name], second[name]) for name in first)
