"""The comparison of models: fair, reproducible, complete."""

from __future__ import annotations

import copy
import json
from dataclasses import replace

import pytest
import torch
from torch import nn

from seqconv import models
from seqconv.experiments import PRESETS, Settings, compare, comparison, load_task, report, write_report
from seqconv.experiments.comparison import served_by, step_milliseconds, train_model
from seqconv.training import load_checkpoint
from tests.grids import others_large

PARTS = ("validation", "test")


@pytest.fixture(scope="module")
def imdb():
    return load_task("imdb", settings=Settings(epochs=2, steps_per_epoch=3, sizes=(400, 100)), source="synthetic")


def test_every_model_sees_the_same_batches(imdb):
    first, second = (torch.cat([tokens for tokens, _ in imdb.train()]) for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(first, torch.cat([tokens for tokens, _ in imdb.validation])[: len(first)])


def test_the_same_seed_gives_the_same_outcome(imdb, tmp_path):
    outcomes = [
        train_model(imdb, "bag", tmp_path / str(number), seed=seed, progress=False)
        for number, seed in enumerate([1, 1, 2])
    ]
    assert all((history.frame["data"] == imdb.source).all() for _, history, _ in outcomes)
    losses = [[record["loss"] for record in history.records] for _, history, _ in outcomes]
    assert losses[0] == losses[1] != losses[2]


def test_figures_are_those_of_the_best_epoch(imdb, tmp_path):
    task = replace(imdb, settings=replace(imdb.settings, epochs=4))
    _, history, scores = train_model(task, "bag", tmp_path, progress=False)
    values = [record["val_binary_accuracy"] for record in history.records]
    assert scores["validation"] == max(values)


def test_outcomes_stand_in_the_order_asked_and_speed_is_against_the_rival(imdb, tmp_path, monkeypatch):
    monkeypatch.setattr(comparison, "ROUNDS", 1)  # an LSTM's step takes most of a second
    outcomes = compare(imdb, tmp_path, names=["bag", "lstm", "bag", "majority"], progress=False)
    assert [outcome.model for outcome in outcomes] == ["bag", "lstm", "majority"]
    bag, lstm, majority = outcomes
    assert lstm.speed <= 1  # against itself on its backend or on torch's operations, whichever is faster
    assert bag.speed == pytest.approx(lstm.speed * lstm.ms_per_step / bag.ms_per_step)
    assert majority.ms_per_step is majority.speed is majority.seconds_per_epoch is None
    assert (bag.parameters, lstm.parameters, majority.parameters) == (1_280_129, 1_300_769, 0)
    assert (bag.backend, lstm.backend) == ("torch", "numba")


def test_timing_steps_train(imdb):
    assert set(step_milliseconds(imdb, ["bag"], "auto")) == {"bag"}


def test_speed_is_against_the_faster_of_the_rival_and_torch_s(imdb, tmp_path, monkeypatch):
    times = {"bag": 1.0, "lstm": 8.0, comparison.TORCHS: 4.0}
    monkeypatch.setattr(comparison, "step_milliseconds", lambda *_: times)
    monkeypatch.setattr(comparison, "train_model", lambda *_, **__: (nn.Identity(), None, dict.fromkeys(PARTS, 0.0)))
    speeds = {one.model: one.speed for one in compare(imdb, tmp_path, names=["bag", "lstm"], progress=False)}
    assert speeds == {"bag": 4.0, "lstm": 0.5}
    times.update({comparison.TORCHS: 16.0})
    speeds = {one.model: one.speed for one in compare(imdb, tmp_path, names=["bag", "lstm"], progress=False)}
    assert speeds == {"bag": 8.0, "lstm": 1.0}


def test_backend_is_told_per_layer(imdb):
    tokens = next(iter(imdb.test))[0]
    assert served_by(models.ImdbConvnet(backend="reference"), tokens) == "reference"
    assert served_by(nn.Embedding(10_000, 2), tokens) == "torch"


def test_a_comparison_that_was_stopped_goes_on(imdb, tmp_path):
    names = ["bag", "majority"]
    whole = compare(imdb, tmp_path / "whole", names=names, progress=False)
    train_model(imdb, "bag", tmp_path / "part" / "bag", progress=False)
    rest = compare(imdb, tmp_path / "part", names=names, resume=True, progress=False)
    assert [one.test for one in whole] == [one.test for one in rest]


def test_the_text_convnet_trains(imdb, tmp_path):
    _, history, scores = train_model(imdb, "textcnn", tmp_path, progress=False)
    assert len(history.records) == 2
    assert 0 <= scores["test"] <= 1
    assert served_by(imdb.entries["textcnn"].build("reference"), next(iter(imdb.test))[0][:2]) == "reference"


@pytest.mark.parametrize("name", others_large("convnet", "conv_gru", "dense"))
def test_models_of_the_temperature_read_the_series_from_starts(tmp_path, name):
    """The same models with windows gathered by the loader get the same figures; the series is in no checkpoint."""
    settings = Settings(epochs=1, steps_per_epoch=3, validation_steps=2, batch_size=16)
    starts = load_task("jena", settings=settings, source="synthetic")
    gathered = replace(
        starts,
        train=lambda: gathering(starts.train()),
        validation=gathering(starts.validation),
        test=gathering(starts.test),
    )
    assert next(iter(starts.test))[0].shape == (16,)
    outcomes = [
        train_model(replace(task, test=task.validation), name, tmp_path / str(number), progress=False)
        for number, task in enumerate((starts, gathered))
    ]
    (_, one, scores), (_, other, again) = outcomes
    columns = ["loss", "mean_absolute_error", "val_loss"]
    assert one.frame[columns].to_numpy() == pytest.approx(other.frame[columns].to_numpy(), rel=1e-4)
    assert scores == pytest.approx(again, rel=1e-4)
    model = starts.entries[name].build("auto")
    weights = load_checkpoint(tmp_path / "0" / "last.pt")["model"]
    assert sum(weight.numel() for weight in weights.values()) == sum(p.numel() for p in model.parameters())
    assert served_by(starts.entries["convnet"].build("reference"), next(iter(starts.test))[0]) == "reference"


def gathering(windows):
    """Return the loader that gathers, as it was before it was told not to."""
    copied = copy.copy(windows)
    copied.materialise = True
    return copied


def test_report_marks_synthetic_data_and_missing_figures(imdb, tmp_path):
    outcomes = compare(imdb, tmp_path, names=["majority"], progress=False)
    markdown, _, as_json, _ = write_report(imdb, outcomes, tmp_path)
    assert "synthetic" in markdown.read_text()
    assert "| majority" in markdown.read_text()
    assert json.loads(as_json.read_text())["outcomes"][0]["ms_per_step"] is None
    assert "1.00x" not in report.table(imdb, outcomes)


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda: load_task("mnist"), "task must be one of imdb, jena, got 'mnist'"),
        (lambda: load_task("imdb", preset="slow"), "preset must be one of quick, notebook, got 'slow'"),
        (lambda: PRESETS["quick"]["imdb"].with_options(0, None, None, None), "epochs must be at least 1, got 0"),
    ],
)
def test_bad_arguments(call, told):
    with pytest.raises(ValueError, match=told):
        call()


def test_unknown_model(imdb, tmp_path):
    with pytest.raises(
        ValueError, match="model must be one of convnet, lstm, textcnn, bag, majority for imdb, got 'svm'"
    ):
        compare(imdb, tmp_path, names=["svm"])
