"""What training writes: checkpoints, the history's table, its plots."""

from __future__ import annotations

import contextlib
import math

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from seqconv.training import CheckpointError, History, load_checkpoint, load_weights, plot_history, save_checkpoint


def test_checkpoint_comes_back_as_it_was(tmp_path):
    state = {"model": nn.Linear(2, 3).state_dict(), "list": [1, 2.5, None, "word", (True, 2**80)], "nan": math.nan}
    save_checkpoint(tmp_path / "c.pt", state)
    found = load_checkpoint(tmp_path / "c.pt")
    assert found.keys() == state.keys()
    assert torch.equal(found["model"]["weight"], state["model"]["weight"])
    assert found["list"] == state["list"]


def test_a_full_disk_is_an_os_error_and_leaves_the_old_file(tmp_path):
    resource = pytest.importorskip("resource", reason="limits a file's size as POSIX systems can")
    path = tmp_path / "c.pt"
    save_checkpoint(path, {"model": {"weight": torch.ones(3)}})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    try:
        with pytest.raises(OSError, match="too large"):
            save_checkpoint(path, {"model": {"weight": torch.zeros(100_000)}})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert torch.equal(load_checkpoint(path)["model"]["weight"], torch.ones(3))
    assert list(tmp_path.iterdir()) == [path]


def test_missing_and_foreign_files_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match="there is no checkpoint"):
        load_checkpoint(tmp_path / "none.pt")
    torch.save({"model": {}}, tmp_path / "foreign.pt")
    with pytest.raises(CheckpointError, match="must be a checkpoint of the format 'seqconv training 1', got None"):
        load_checkpoint(tmp_path / "foreign.pt")
    torch.save(torch.ones(2), tmp_path / "tensor.pt")
    with pytest.raises(CheckpointError, match="must be a checkpoint of the format"):
        load_checkpoint(tmp_path / "tensor.pt")


class Dangerous:
    def __reduce__(self):
        return print, ("this ran",)


def test_code_in_a_file_is_not_run(tmp_path, capsys):
    torch.save({"format": "seqconv training 1", "model": Dangerous()}, tmp_path / "c.pt")
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_checkpoint(tmp_path / "c.pt")
    assert "this ran" not in capsys.readouterr().out


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_damage_is_noticed(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("damage") / "c.pt"
    weights = torch.arange(64.0)
    save_checkpoint(path, {"model": {"weight": weights}})
    whole = path.read_bytes()
    if data.draw(st.booleans(), label="truncate"):
        path.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
        with pytest.raises(CheckpointError, match=r"cannot be read, it may be damaged"):
            load_checkpoint(path)
        return
    position, bit = data.draw(st.integers(0, len(whole) - 1)), data.draw(st.integers(0, 7))
    path.write_bytes(whole[:position] + bytes([whole[position] ^ (1 << bit)]) + whole[position + 1 :])
    # A bit of the archive's padding may flip unnoticed; a bit of what is stored may not.
    with contextlib.suppress(CheckpointError):
        assert torch.equal(load_checkpoint(path)["model"]["weight"], weights)


def test_flipped_bit_in_a_weight_is_noticed(tmp_path):
    path = tmp_path / "c.pt"
    save_checkpoint(path, {"model": {"weight": torch.full((64,), 1.5)}})
    whole = bytearray(path.read_bytes())
    whole[whole.index(np.full(64, 1.5, np.float32).tobytes()) + 10] ^= 1
    path.write_bytes(whole)
    with pytest.raises(CheckpointError, match="damaged"):
        load_checkpoint(path)


@pytest.mark.parametrize("bad", [np.float64(1.0), {1, 2}, Dangerous(), np.zeros(2), {"deep": [b"bytes"]}])
def test_what_could_not_be_loaded_is_not_saved(tmp_path, bad):
    with pytest.raises(TypeError, match=r"state\['value'\].* must be a tensor"):
        save_checkpoint(tmp_path / "c.pt", {"value": bad})
    assert not list(tmp_path.iterdir())


def test_weights_of_another_model_are_refused(tmp_path):
    save_checkpoint(tmp_path / "c.pt", {"model": nn.Linear(2, 3).state_dict()})
    with pytest.raises(CheckpointError, match="does not fit the model"):
        load_weights(nn.Linear(2, 4), tmp_path / "c.pt")
    save_checkpoint(tmp_path / "empty.pt", {})
    with pytest.raises(CheckpointError, match="does not fit the model"):
        load_weights(nn.Linear(2, 4), tmp_path / "empty.pt")


def history(values, *, larger_is_better=False):
    records = [{"epoch": epoch, "loss": 1.0, "val_loss": value} for epoch, value in enumerate(values, start=1)]
    return History("val_loss", larger_is_better, records)


@pytest.mark.parametrize(
    ("values", "larger", "best", "since"),
    [
        ([], False, None, 0),
        ([3.0, 1.0, 2.0, 1.0], False, 2, 2),
        ([3.0, 1.0, 3.0], True, 1, 2),
        ([math.nan, 2.0, math.nan], False, 2, 1),
        ([math.nan, math.nan], True, None, 2),
    ],
)
def test_best_epoch_is_the_first_with_the_best_number(values, larger, best, since):
    made = history(values, larger_is_better=larger)
    assert made.best_epoch == best
    assert made.epochs_since_best == since


def test_history_is_a_table(tmp_path):
    made = history([0.1, 1 / 3])
    assert made.frame["val_loss"].tolist() == [0.1, 1 / 3]
    made.save(tmp_path / "history.csv")
    assert (tmp_path / "history.csv").read_text().splitlines() == [
        "epoch,loss,val_loss", "1,1.0,0.1", "2,1.0,0.3333333333333333",
    ]  # fmt: skip
    assert isinstance(made.frame, pd.DataFrame)


def test_plot_shows_training_as_points_and_validation_as_a_line(tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    drawn = []
    savefig = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **k: (drawn.append(self), savefig(self, *a, **k)))
    records = [
        {"epoch": e, "loss": 1 / e, "accuracy": 0.5, "val_loss": 2 / e, "val_accuracy": 0.4, "seconds": 1.0, "ms_per_step": 2.0}  # noqa: E501
        for e in (1, 2, 3)
    ]  # fmt: skip
    plot_history(History("val_loss", False, records), tmp_path / "plots" / "history.png", title="IMDB")
    assert (tmp_path / "plots" / "history.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    loss, accuracy = drawn[0].axes
    assert [axes.get_ylabel() for axes in (loss, accuracy)] == ["loss", "accuracy"]
    points, line = loss.lines
    assert (points.get_linestyle(), points.get_marker(), list(points.get_ydata())) == ("None", "o", [1, 1 / 2, 1 / 3])
    assert (line.get_linestyle(), list(line.get_ydata())) == ("-", [2, 1, 2 / 3])
    assert [text.get_text() for text in loss.get_legend().get_texts()] == ["training", "validation"]
    with pytest.raises(ValueError, match="at least one epoch"):
        plot_history(History("loss"), tmp_path / "none.png")


def test_single_epoch_without_validation_is_plotted(tmp_path):
    plot_history(History("loss", False, [{"epoch": 1, "loss": 1.0}]), tmp_path / "one.png")
    assert (tmp_path / "one.png").stat().st_size > 1000
