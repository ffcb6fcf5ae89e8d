"""Models in the wild: their shapes and parameters are the published ones; all sides compute the same."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from torch import nn

import seqconv
from benchmarks import report, suites
from benchmarks.checking import Wrong, check
from benchmarks.models import WILD
from benchmarks.models.examples import PADDING, sentences
from benchmarks.operations import operation
from benchmarks.operations.wild import CONVERTERS, plain, wild_case
from benchmarks.registry import Contender, Provider, candidates, comparisons
from tests.test_imports import ROOT

OUTPUTS = {
    "text_cnn": (2,), "char_cnn": (4,), "deepsea": (919,), "danq": (919,), "basset": (164,), "m5": (1, 10),
    "ecg_beats": (5,), "ecg_recordings": (4,), "har_cnn_lstm": (6,), "fcn": (2,), "imdb": (1,), "jena": (1,),
    "jena_conv_gru": (1,),
}  # fmt: skip
# Of DeepSEA and DanQ from Quang and Xie (2016), whose LSTM has one bias where torch's has two; of the notebook's models
# from the notebook, torch's GRU too having two; M5's follows from its
# layers, half a million as Dai et al. (2016) say.
PUBLISHED = {
    "deepsea": 52_843_119, "danq": 46_926_479 + 2 * 4 * 320, "imdb": 1_315_937, "jena": 12_609,
    "jena_conv_gru": 13_793, "m5": 559_114,
}  # fmt: skip


@pytest.mark.parametrize("name", WILD)
def test_shapes_and_parameters_are_the_published_ones(name):
    wild, generator = WILD[name], torch.Generator().manual_seed(0)
    model = wild.make()
    output = model(wild.inputs(2, generator))
    assert output.shape == (2, *OUTPUTS[name])
    loss = wild.loss(output, wild.targets(2, generator))
    assert loss.shape == ()
    loss.backward()
    assert all(one.grad is not None for one in model.parameters())
    if name in PUBLISHED:
        assert sum(one.numel() for one in model.parameters()) == PUBLISHED[name]
    assert wild.batch > 2


def test_sentences_are_words_of_the_vocabulary_padded_behind():
    tokens = sentences(50, torch.Generator().manual_seed(0), words=100, length=40)
    assert tokens.shape == (50, 40)
    assert 0 <= int(tokens.min()) < int(tokens.max()) < 100
    ends = (tokens != PADDING).sum(1)
    assert torch.equal(tokens != PADDING, torch.arange(40) < ends[:, None])
    assert 10 <= int(ends.min()) < int(ends.max()) <= 40


def test_nothing_of_seqconv_knows_the_models_nor_they_seqconv():
    for path in (ROOT / "seqconv").rglob("*.py"):
        assert "benchmarks.models" not in path.read_text(encoding="utf-8")
    for path in (ROOT / "benchmarks" / "models").glob("*.py"):
        assert "import seqconv" not in (text := path.read_text(encoding="utf-8"))
        assert "from seqconv" not in text


def serving(name: str, mode: str, provider: str = "torch eager"):
    return Contender(wild_case(name, mode, batch=4), operation("wild").providers[provider])


@pytest.mark.parametrize("name", [name for name in WILD if name not in ("deepsea", "danq", "char_cnn")])
def test_torch_is_right_in_all_that_is_compared(name):
    assert check(serving(name, "inference")).keys() == {"output, random"}
    expected = {"output", "gradients", "gradients off"}
    if any("running" in key for key in plain(wild_case(name, "inference")).state_dict()):
        expected.add("running statistics")
    assert check(serving(name, "training_step")).keys() == {f"{one}, random" for one in expected}


class Planted(nn.Module):
    """A model whose gradients go through ``gradient``."""

    def __init__(self, model, gradient):
        super().__init__()
        self.model = model
        for one in model.parameters():
            one.register_hook(gradient)

    def forward(self, x):
        return self.model(x)


def forgets_statistics(model):
    for one in model.modules():
        if isinstance(one, nn.BatchNorm1d):
            one.momentum = 0.0
    return model


def takes_norms_for_positive(model):
    for one in model.modules():
        if isinstance(one, nn.BatchNorm1d):
            one.weight.data.abs_()
    return model


PLANTED = {
    "gradients is off": lambda model: Planted(model, lambda one: 1.01 * one),
    "gradients off is off": lambda model: Planted(model, lambda one: 1.2 * one if one.dtype == torch.float32 else one),
    "gradients off is off by": lambda model: Planted(model, lambda one: one / 0 if one.dtype == torch.float32 else one),
    "running statistics is off": forgets_statistics,
    "output is off": takes_norms_for_positive,
}


@pytest.mark.parametrize("words", PLANTED)
def test_a_wrong_training_step_is_seen(words):
    wrong = Provider("wrong", lambda case: PLANTED[words](plain(case)))
    with pytest.raises(Wrong, match=words):
        check(Contender(wild_case("ecg_beats", "training_step", batch=4), wrong))


def test_norms_that_are_taken_for_positive_are_seen_in_inference():
    wrong = Provider("wrong", lambda case: takes_norms_for_positive(plain(case)))
    with pytest.raises(Wrong, match="output is off"):
        check(Contender(wild_case("ecg_beats", "inference", batch=4), wrong))


def test_all_sides_step_with_the_same_optimizer_from_the_same_weights():
    case = wild_case("ecg_beats", "training_step", batch=4)
    kind = operation("wild")
    model = plain(case)
    expected = deepcopy(model).train()
    step = kind.step(case, model, inputs := kind.inputs(case, "random"), torch.float32)
    for _ in range(2):
        step.prepare()
        assert all(torch.equal(*pair) for pair in zip(model.parameters(), expected.parameters(), strict=True))
        assert all(one.grad is None for one in model.parameters())
        step.call()
    optimizer = torch.optim.Adam(expected.parameters())
    torch.manual_seed(0)
    WILD["ecg_beats"].loss(expected(inputs["batch"]), inputs["targets"]).backward()
    step.optimizer.state.clear()
    step.prepare()
    step.call()
    optimizer.step()
    assert all(torch.equal(*pair) for pair in zip(model.parameters(), expected.parameters(), strict=True))


def test_seqconv_waits_for_its_tools_and_is_timed_once_it_has_them(monkeypatch):
    case = wild_case("jena", "training_step", batch=4)
    monkeypatch.delattr(seqconv, "fuse", raising=False)
    monkeypatch.setattr(torch._dynamo, "list_backends", lambda exclude_tags: ["inductor"])
    reasons = {one.provider.name: one.unavailable for one in candidates(case)}
    assert reasons["torch eager"] is None
    assert reasons["seqconv"] == "seqconv has no fuse"
    assert reasons["seqconv compiled"] == "seqconv is no backend of torch.compile"
    assert {reasons[name] for name in CONVERTERS} == {"does not train"}
    monkeypatch.setattr(seqconv, "fuse", lambda model: model, raising=False)
    monkeypatch.setattr(torch._dynamo, "list_backends", lambda exclude_tags: ["inductor", "seqconv"])
    reasons = {one.provider.name: one.unavailable for one in candidates(case)}
    assert reasons["seqconv"] is reasons["seqconv compiled"] is None
    assert "gradients, random" in check(serving("jena", "training_step", "seqconv"))


def test_everyone_is_timed_beside_torch_eager_in_three_works():
    cases = suites.SUITES["wild"].cases("cpu", False)
    works = {(case.name, case.mode, case.shape["N"]) for case in cases}
    usual = {(name, mode, WILD[name].batch) for name in WILD for mode in ("training_step", "inference")}
    assert works == usual | {(name, "inference", 1) for name in WILD}
    for case in cases:
        pairs = {(one.candidate.provider.name, one.against.provider.name) for one in comparisons(case)}
        others = {"seqconv", "seqconv prepared", "seqconv compiled", "torch.compile", *CONVERTERS}
        assert pairs == {(name, "torch eager") for name in others}
    assert suites.SUITES["wild"].on_request


@pytest.mark.parametrize("backend", ["seqconv", "inductor"])
def test_a_backend_gets_the_plain_model(backend, monkeypatch):
    """Not compiled: on a backend that returns the graph as it is."""
    asked = []
    monkeypatch.setattr(torch, "compile", lambda model, **options: asked.append(options) or model)
    name = "seqconv compiled" if backend == "seqconv" else "torch.compile"
    operation("wild").providers[name].make(wild_case("jena", "inference"))
    (options,) = asked
    assert options["dynamic"] is False
    assert options.get("backend", "inductor") == backend


def measured(name: str, mode: str, batch: int, provider: str, ratio: float):
    case = wild_case(name, mode, batch=batch).as_dict()
    return {"case": case, "provider": provider, "suite": "wild", "ratio": {"median": ratio}}


def test_the_report_has_geometric_means_and_the_least_for_each_work():
    figures = [
        measured("jena", "inference", 1, "seqconv", 2.0), measured("fcn", "inference", 1, "seqconv", 0.5),
        measured("jena", "inference", 128, "seqconv", 4.0), measured("fcn", "inference", 16, "seqconv", 1.0),
        measured("fcn", "training_step", 16, "torch.compile", 3.0),
    ]  # fmt: skip
    title, table = report.means(figures, "simple")
    assert title.startswith("Over all published models")
    rows = [line.split() for line in table.splitlines()[2:]]
    assert rows == [
        ["inference,", "batch", "1", "seqconv", "2", "1", "0.5", "fcn", "2"],
        ["inference,", "usual", "batch", "seqconv", "2", "2", "1", "fcn", "4"],
        ["training", "step,", "usual", "batch", "torch.compile", "1", "3", "3", "fcn", "3"],
    ]
    assert report.means([], "simple") == ["", ""]


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("name", WILD)
def test_all_convolutions_are_fused(name, training):
    report = seqconv.fusion_report(seqconv.fuse(WILD[name].make().train(training)))
    assert [row.name for row in report if not row.fused and row.kind not in ("GRU", "LSTM")] == []
