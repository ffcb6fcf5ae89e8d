"""Whole models: both sides have the same weights and give the same numbers and gradients; a wrong one is seen."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from benchmarks.checking import Wrong, check
from benchmarks.operations.models import MODELS, model_case, seqconv_model, torch_model
from benchmarks.registry import Candidate, Provider, comparisons, operation


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("mode", ["inference", "training_step"])
def test_all_sides_are_right(name, mode):
    case = model_case(name, mode, batch=3)
    for provider in operation("models").providers.values():
        assert check(Candidate(case, provider)).keys() == {"output, random"}


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
        found.append(list(step.parameters.values()))
    for own, others in zip(*found, strict=True):
        torch.testing.assert_close(own.grad, others.grad, rtol=1e-9, atol=1e-12)


def test_other_weights_are_seen():
    def make(case):
        model = torch_model(case, contiguous=False)
        torch.nn.init.normal_(model.head.bias, std=0.1)
        return model

    with pytest.raises(Wrong):
        check(Candidate(model_case("jena_convnet", "inference", batch=3), Provider("other", make)))


def test_seqconv_meets_torch_as_it_is_and_with_its_input_copied():
    pairs = comparisons(model_case("conv_gru", "inference"))
    ours = [one.against.provider.name for one in pairs if one.candidate.provider.ours]
    assert ours == ["torch eager", "torch eager, copied to contiguous"]


def test_weights_do_not_depend_on_the_case_s_batch_or_mode():
    case = model_case("jena_convnet", "inference")
    first, second = (seqconv_model(one).state_dict() for one in (case, replace(case, mode="training_step")))
    assert all(torch.equal(first[name], second[name]) for name in first)
