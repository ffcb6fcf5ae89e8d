"""Models on the starts of windows, against the same models on their content; and what becomes of the series."""

import copy
import io

import numpy as np
import pytest
import torch
from torch import nn

from seqconv import Windows, models
from seqconv.data import SlidingWindows
from seqconv.training import evaluate, fit, load_weights, mean_absolute_error, rmsprop

MODELS = [models.JenaConvnet, models.ConvGRU, models.JenaGRU, models.Dense, models.TemperatureNow]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(12)


def loader(materialise, **changes):
    series = np.random.default_rng(1).standard_normal((400, 14)).astype(np.float32)
    arguments = {"lookback": 200, "delay": 3, "step": 2, "target_column": 1, "batch_size": 8, **changes}
    return SlidingWindows(series, **arguments, materialise=materialise)


def build(make, source=None):
    torch.manual_seed(3)
    return make(100, 14, source=source) if make is models.Dense else make(source=source)


def source_of(windows):
    return models.WindowSource(windows.series_tensor(), windows.length, windows.step)


@pytest.mark.parametrize("make", MODELS)
def test_starts_and_content_give_the_same(make):
    """In float64, where sums in another order differ by less than 1e-12 of numbers about 1."""
    starts, content = (next(iter(loader(flag)))[0] for flag in (False, True))
    model, plain = build(make, source_of(loader(False))).double().eval(), build(make).double().eval()
    assert list(model.state_dict()) == list(plain.state_dict())
    assert model.source.series.dtype == torch.float64
    outcomes = []
    for one, inputs in ((model, starts), (model, content.double()), (plain, content.double())):
        one.zero_grad()
        result = one(inputs)
        if any(True for _ in one.parameters()):
            result.sum().backward()
        outcomes.append([result, *(parameter.grad.clone() for parameter in one.parameters())])
    for others in outcomes[1:]:
        for one, other in zip(outcomes[0], others, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
    assert model(starts[:0]).shape == (0,)


@pytest.mark.parametrize("make", MODELS)
def test_starts_without_a_series_and_outside_of_it_are_refused(make):
    with pytest.raises(ValueError, match=r"^windows must have shape \(N, S, C\), got \(3,\): .*source="):
        build(make)(torch.arange(3))
    with pytest.raises(IndexError, match=r"^starts must be between 0 and 201 for the 400 rows of series, got 202"):
        build(make, source_of(loader(False)))(torch.tensor([0, 202]))


def test_trains_to_the_same_curves_and_resumes(tmp_path):
    """The series is in no checkpoint, and weights of either way fit the other."""
    curves = []
    for flag in (True, False):
        model = models.initialise(build(models.JenaConvnet, None if flag else source_of(loader(False))))
        options = {"loss": nn.functional.l1_loss, "metrics": [mean_absolute_error], "progress": False}
        options |= {"optimizer": rmsprop(model.parameters()), "checkpoint_dir": tmp_path / str(flag)}
        options |= {"validation": loader(flag, start=100), "steps_per_epoch": 4}
        fit(model, loader(flag, shuffle=True, seed=1), epochs=1, **options)
        history = fit(model, loader(flag, shuffle=True, seed=1), epochs=2, resume=True, **options)
        curves.append([(record["loss"], record["val_loss"]) for record in history.records])
    np.testing.assert_allclose(curves[0], curves[1], rtol=1e-4)
    scores = []
    for flag in (True, False):
        model = build(models.JenaConvnet, None if flag else source_of(loader(False)))
        load_weights(model, tmp_path / str(not flag) / "last.pt")
        scores.append(evaluate(model, loader(flag), loss=nn.functional.l1_loss)["loss"])
    assert scores[0] == pytest.approx(scores[1], rel=1e-3)


def test_the_series_moves_with_the_model_and_is_shared_by_its_copies():
    source = source_of(loader(False))
    series = source.series
    model = build(models.JenaConvnet, source)
    twin = copy.deepcopy(model)
    assert twin.source is not source
    assert twin.source.series is series
    assert twin.double().source.series.dtype == torch.float64
    assert model.source.series is series
    assert twin.to("meta").source.series.device.type == "meta"
    stream = io.BytesIO()
    torch.save(model.state_dict(), stream)
    assert stream.tell() < 4 * sum(parameter.numel() for parameter in model.parameters()) + 10_000 < series.nbytes * 4
    windows = source(torch.arange(3))
    assert isinstance(windows, Windows)
    assert (windows.series is series, windows.length, windows.step) == (True, 100, 2)
    assert "(source): WindowSource(rows=400, channels=14, length=100, step=2)" in repr(model)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (([[1.0]], 1), TypeError, "series must be a tensor, got list"),
        ((torch.ones(9, 2).int(), 1), TypeError, "series must be float16, bfloat16, float32 or float64"),
        ((torch.ones(9), 1), ValueError, r"series must have shape \(rows, channels\), got \(9,\)"),
        ((torch.ones(9, 2), 0), ValueError, "length must be at least 1, got 0"),
        ((torch.ones(9, 2), 4, 0), ValueError, "step must be at least 1, got 0"),
        ((torch.ones(9, 2), 4, 3), ValueError, "series must have the 10 rows of a window, got 9"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_a_source_rejects(arguments, error, message):
    with pytest.raises(error, match=f"^{message}"):
        models.WindowSource(*arguments)


def test_what_is_no_source_or_no_batch_is_refused():
    with pytest.raises(TypeError, match=r"^source must be a seqconv.models.WindowSource or None, got Tensor$"):
        models.JenaConvnet(4, source=torch.randn(500, 4))
    model = models.JenaConvnet(14, source=models.WindowSource(torch.randn(500, 14), 240))
    with pytest.raises(ValueError, match=r"^windows must have shape \(N, S, C\), or \(N,\) .*, got \(\)$"):
        model(torch.tensor(3))
    with pytest.raises(TypeError, match=r"^windows must be a tensor, got ndarray$"):
        model(torch.zeros(2, 240, 14).numpy())
