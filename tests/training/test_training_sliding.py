"""Evaluation by sliding: the figures of all batches, where a model can, and batches where it cannot."""

from __future__ import annotations

import logging
import math
import signal

import numpy as np
import pytest
import torch
from torch import nn

from seqconv import models
from seqconv.data import SlidingWindows
from seqconv.training import (
    Interrupted,
    Metric,
    NonFiniteError,
    evaluate,
    fit,
    mean_absolute_error,
    rmsprop,
    sliding,
)

CHANNELS, LENGTH, STEP = 3, 80, 2
MAE = nn.functional.l1_loss


@pytest.fixture(autouse=True)
def pieces(monkeypatch):
    """Several pieces for each evaluation; return their sizes."""
    sizes = []
    inference = sliding.sliding_inference

    def counted(*args, **options):
        found = inference(*args, **options)
        sizes.append(len(found))
        return found

    counted.check = inference.check
    monkeypatch.setattr(sliding, "sliding_inference", counted)
    monkeypatch.setattr(sliding, "WINDOWS", 100)
    monkeypatch.setattr(sliding, "WINDOWS_ONE_BY_ONE", 90)
    return sizes


def windows(rows=600, **options):
    series = np.random.default_rng(0).standard_normal((rows, CHANNELS)).astype(np.float32)
    options = {"start": 20, "stop": rows - 30, "target_column": 1, "batch_size": 32, "delay": 3, **options}
    return SlidingWindows(
        options.pop("series", series), lookback=LENGTH * STEP + 1, step=STEP, materialise=False, **options
    )


def reading(loader):
    return models.WindowSource(loader.series_tensor(), loader.length, loader.step)


def gathered(loader):
    loader.materialise = True
    return loader


def figures(model, loader, how, **options):
    return evaluate(model, loader, loss=MAE, metrics=[mean_absolute_error], sliding=how, **options)


MODELS = {
    "convnet": lambda source=None: models.JenaConvnet(CHANNELS, source=source, backend="reference"),
    "hybrid": lambda source=None: models.ConvGRU(CHANNELS, source=source, backend="reference"),
}
GROUPS = np.repeat([0, 1, 2], [250, 10, 340])
LOADERS = {
    "plain": {},
    "groups": {"groups": GROUPS},
    "stride": {"stride": 2},
    "both": {"groups": GROUPS, "stride": 2, "delay": -7},
    "drop_last": {"drop_last": True},
    "shuffled": {"shuffle": True, "seed": 3, "drop_last": True},
    "rank": {"rank": 1, "world_size": 2, "uneven": "keep"},
    "padded": {"rank": 1, "world_size": 2, "uneven": "pad"},
    "nan": {},
}


@pytest.mark.parametrize("by", ["starts", "windows"])
@pytest.mark.parametrize("options", LOADERS)
@pytest.mark.parametrize("name", MODELS)
def test_figures_are_those_of_batches(name, options, by, pieces):
    loader, other = (windows(**LOADERS[options]) for _ in range(2))
    if by == "windows":
        gathered(loader), gathered(other)
    model = MODELS[name](None if by == "windows" else reading(loader)).eval()
    assert figures(model, loader, True) == pytest.approx(figures(model, other, False), rel=1e-5)
    assert len(pieces) == 1 if options == "shuffled" else len(pieces) > 1


def test_the_first_steps_and_the_passes_are_those_of_batches():
    loader, other = (windows(shuffle=True, seed=3) for _ in range(2))
    model = MODELS["convnet"](reading(loader))
    means = []
    for _ in range(2):
        means.append(figures(model, loader, True, steps=2))
        assert means[-1] == pytest.approx(figures(model, other, False, steps=2), rel=1e-5)
        assert loader.state_dict()["pass"] == other.state_dict()["pass"]
    assert means[0] != means[1]
    state = windows(shuffle=True, seed=3)
    batches = iter(state)
    next(batches), next(batches), next(batches)
    loader.load_state_dict(state.state_dict())
    other.load_state_dict(state.state_dict())
    assert figures(model, loader, True) == pytest.approx(figures(model, other, False), rel=1e-5)


@pytest.mark.parametrize("horizon", [1, 4])
def test_targets_may_be_several(horizon):
    class Several(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.head = nn.Conv1d(CHANNELS, 8, 5), nn.Linear(8, horizon * 2)

        def forward(self, windows):
            found = self.head(self.conv(windows.transpose(1, 2)).relu().amax(-1))
            return found.unflatten(1, (horizon, 2)) if horizon > 1 else found

    loader = gathered(windows(horizon=horizon, target_column=[0, 2]))
    model = Several()
    assert next(iter(loader))[1].shape == ((32, 4, 2) if horizon > 1 else (32, 2))
    assert figures(model, loader, True) == pytest.approx(figures(model, loader, False), rel=1e-5)


def test_missing_rows_are_missing_in_the_same_windows():
    def numbers(outputs, targets):
        errors = (outputs - targets).abs()
        return errors.nansum(), int((~errors.isnan()).sum())

    series = np.random.default_rng(0).standard_normal((600, CHANNELS)).astype(np.float32)
    series[[100, 333]] = np.nan
    loader = windows(series=series)
    model, known = MODELS["convnet"](reading(loader)), [Metric("known", numbers, larger_is_better=False)]
    found, expected = (evaluate(model, loader, loss=MAE, metrics=known, sliding=how) for how in (True, False))
    assert math.isnan(found["loss"])
    assert math.isnan(expected["loss"])
    assert 0 < found["known"] == pytest.approx(expected["known"], rel=1e-5)


@pytest.mark.parametrize("source", [False, True])
def test_a_recurrent_model_is_evaluated_in_batches(source, pieces, caplog):
    loader = windows() if source else gathered(windows())
    model = models.JenaGRU(CHANNELS, source=reading(loader) if source else None, backend="reference")
    with caplog.at_level(logging.INFO, "seqconv.training"):
        assert figures(model, loader, "auto") == figures(model, loader, False)
    assert "JenaGRU is evaluated in batches" in caplog.text
    assert not pieces


class Centred(nn.Module):
    """Its windows depend on each other."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(CHANNELS, 1, 5)

    def forward(self, windows):
        found = self.conv(windows.transpose(1, 2)).amax(-1)[:, 0]
        return found - found.mean()


class Reversed(SlidingWindows):
    """Other batches than those of the class it is derived from."""


@pytest.mark.parametrize(
    ("model", "loader", "reason"),
    [
        (Centred, lambda: gathered(windows()), "depends on the other windows"),
        (MODELS["convnet"], lambda: [(torch.zeros(2, LENGTH, CHANNELS), torch.zeros(2))], "a SlidingWindows, got list"),
        (
            MODELS["convnet"],
            lambda: Reversed(np.zeros((300, CHANNELS), np.float32), lookback=LENGTH, delay=0, target_column=0),
            "got Reversed",
        ),
        (
            lambda: MODELS["convnet"](models.WindowSource(torch.zeros(600, CHANNELS), LENGTH - 1, STEP)),
            windows,
            "its windows are 79 rows",
        ),
    ],
)
def test_what_cannot_slide_is_evaluated_in_batches(model, loader, reason, pieces):
    given, model = loader(), model()
    assert figures(model, given, "auto") == figures(model, given, False)
    assert not pieces
    with pytest.raises(ValueError, match=f"sliding must be 'auto' or False here, got True: .*{reason}"):
        figures(model, given, True)


def test_windows_with_few_rows_in_common_slide_where_asked_to(pieces):
    loader = gathered(windows(stride=LENGTH // 2))
    model = MODELS["convnet"]()
    found = figures(model, loader, "auto")
    assert not pieces
    assert figures(model, loader, True) == pytest.approx(found, rel=1e-5)
    assert pieces


def test_a_backend_that_does_not_slide_is_a_reason_for_batches(monkeypatch, pieces):
    loader = windows()
    model = MODELS["convnet"](reading(loader))
    monkeypatch.setenv("SEQCONV_BACKEND", "triton")
    assert figures(model, loader, "auto")["loss"] > 0
    assert not pieces


def test_other_values_are_refused():
    with pytest.raises(ValueError, match="sliding must be 'auto', True or False, got 'always'"):
        figures(Centred(), [], "always")
    model = Centred()
    with pytest.raises(ValueError, match="sliding must be 'auto', True or False, got None"):
        fit(model, [], loss=MAE, optimizer=rmsprop(model.parameters()), epochs=1, steps_per_epoch=1, sliding=None)


def train(folder=None, *, how="auto", epochs=3, loss=MAE, validation=None, **options):
    torch.manual_seed(0)
    loader = windows(shuffle=True, seed=1)
    model = MODELS["convnet"](reading(loader))
    history = fit(
        model, loader, loss=loss, optimizer=rmsprop(model.parameters()), epochs=epochs, steps_per_epoch=2,
        validation=validation or windows(groups=GROUPS), metrics=[mean_absolute_error], sliding=how, progress=False,
        checkpoint_dir=folder, **options,
    )  # fmt: skip
    return history.frame.drop(columns=["seconds", "ms_per_step"]), model


def test_fit_validates_on_every_window(pieces):
    slid, model = train(validation_steps=1)
    assert len(pieces) == 3 * -(-windows(groups=GROUPS).windows // 96)  # three batches of 32
    batches, _ = train(how=False)
    np.testing.assert_allclose(slid, batches, rtol=1e-5)
    sample, _ = train(how=False, validation_steps=1)
    assert (sample["loss"] == slid["loss"]).all()
    assert (sample["val_loss"] != slid["val_loss"]).all()
    assert model.training  # as it was
    assert figures(model, windows(groups=GROUPS), True)["loss"] == slid["val_loss"].iloc[-1]


@pytest.mark.parametrize("piece", [1, 2, 4])
def test_a_validation_that_was_stopped_is_made_again(tmp_path, piece):
    calls = 0

    def loss(outputs, targets):
        nonlocal calls
        calls += not outputs.requires_grad
        if not outputs.requires_grad and calls == piece:
            signal.raise_signal(signal.SIGINT)
        return MAE(outputs, targets)

    with pytest.raises(Interrupted):
        train(tmp_path, loss=loss)
    assert calls == piece
    resumed, _ = train(tmp_path, resume=True)
    assert resumed.equals(train()[0])


def test_a_loss_that_is_not_finite_stops_training():
    series = np.zeros((600, CHANNELS), np.float32)
    series[500] = np.nan
    told = []
    for how in (True, False):
        with pytest.raises(NonFiniteError, match="the validation loss is nan at epoch 1, step") as error:
            train(how=how, validation=windows(series=series, start=0, stop=600))
        told.append(error.value.step)
    assert told[0] == told[1] > 1


def root_mean_square(outputs, targets):
    return (outputs - targets).square().mean().sqrt()


def total(outputs, targets):
    return MAE(outputs, targets, reduction="sum")


@pytest.mark.parametrize("loss", [root_mean_square, total])
@pytest.mark.parametrize("options", LOADERS)
def test_a_loss_that_is_no_mean_over_samples_gets_the_loader_s_batches(loss, options, pieces):
    greatest = Metric("greatest", lambda outputs, targets: ((outputs - targets).abs().max(), 1), larger_is_better=False)
    found = []
    for how in (True, False):
        loader = windows(**LOADERS[options])
        model = MODELS["convnet"](reading(loader))
        torch.manual_seed(0)
        models.initialise(model)
        sizes = []

        def kept(outputs, targets, sizes=sizes):
            sizes.append(len(targets))
            return loss(outputs, targets)

        found.append((evaluate(model, loader, loss=kept, metrics=[greatest], sliding=how), sizes))
    assert pieces
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-5)
    assert found[0][1] == found[1][1]


@pytest.mark.parametrize("size", [7, 32, 250])
def test_batches_of_any_size_are_the_loader_s(size):
    loader = windows(batch_size=size)
    model = MODELS["convnet"](reading(loader))
    found, expected = (evaluate(model, loader, loss=root_mean_square, sliding=how) for how in (True, False))
    assert found == pytest.approx(expected, rel=1e-5)


class Two(nn.Module):
    """Two outputs, in a tuple or a dictionary."""

    def __init__(self, form):
        super().__init__()
        self.conv, self.form = nn.Conv1d(CHANNELS, 2, 5), form

    def forward(self, windows):
        found = self.conv(windows.transpose(1, 2)).relu().amax(-1)
        one, other = found[:, 0], found[:, 1]
        return (one, other) if self.form == "tuple" else {"mean": one, "rest": other}


@pytest.mark.parametrize("form", ["tuple", "dict"])
def test_outputs_may_be_several(form):
    def loss(outputs, targets):
        one, other = outputs if form == "tuple" else (outputs["mean"], outputs["rest"])
        return root_mean_square(one, targets) + root_mean_square(other, targets)

    loader, model = gathered(windows()), Two(form)
    found, expected = (evaluate(model, loader, loss=loss, sliding=how) for how in ("auto", False))
    assert found == pytest.approx(expected, rel=1e-5)


def test_a_series_of_another_dtype_than_the_model_s_is_evaluated_in_batches(pieces):
    series = np.random.default_rng(0).standard_normal((600, CHANNELS))
    loader, model = gathered(windows(series=series)), MODELS["convnet"]()
    for how in ("auto", False):
        with pytest.raises(TypeError, match="weight must have the dtype of input"):
            figures(model, loader, how)
    assert not pieces
    assert figures(model.double(), loader, "auto") == pytest.approx(figures(model, loader, False), rel=1e-9)
    assert pieces
