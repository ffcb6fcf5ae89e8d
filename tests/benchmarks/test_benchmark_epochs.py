"""The training as a whole: a side's record, the table over all sides, who is left out, and errors of a side."""

from __future__ import annotations

import json

import pytest

from benchmarks import epochs

ASKED = {"task": "imdb", "epochs": 2, "steps": 1, "data_dir": None, "source": "synthetic", "reviews": 40, "threads": 1}


@pytest.mark.parametrize("side", ["torch", "seqconv"])
def test_a_side_trains_and_reports(side):
    found = epochs.train({"side": side, **ASKED})
    assert found["side"] == side
    assert found["data"] == "synthetic data"
    assert len(found["epoch_seconds"]) == 2
    assert found["seconds"] >= found["load_seconds"] + sum(found["epoch_seconds"]) > 0
    for name in ("validation", "best_validation", "test"):
        assert 0 <= found[name] <= 1
    assert found["best_validation"] >= found["validation"]


@pytest.mark.parametrize("side", epochs.SIDES["jena"])
def test_a_side_trains_on_windows_and_reports(side):
    found = epochs.train({**ASKED, "side": side, "task": "jena", "epochs": 1})
    assert len(found["epoch_seconds"]) == 1
    assert 0 < found["best_validation"] == found["validation"] < 10
    assert 0 < found["test"] < 10


def test_sides_train_the_same_model_alike():
    first, second = (epochs.train({"side": side, **ASKED}) for side in ("torch", "seqconv"))
    assert first["test"] == pytest.approx(second["test"], abs=0.13)  # one of eight reviews


def record(side: str, seconds: float) -> dict:
    return {
        "side": side,
        "data": "real data",
        "seconds": seconds,
        "load_seconds": 1.0,
        "epoch_seconds": [2.0, 3.0, 4.0],
        "validation": 0.8,
        "best_validation": 0.85,
        "best_epoch": 1,
        "test": 0.79,
        "process_seconds": seconds + 2,
    }


@pytest.fixture
def sides(monkeypatch):
    """Answer for every side at once; note what was asked."""
    asked = []

    def run(one):
        asked.append(one)
        return record(one["side"], {"seqconv": 20.0, "torch": 90.0}.get(one["side"], 130.0) + len(asked))

    monkeypatch.setattr(epochs, "run", run)
    monkeypatch.setattr(epochs, "unavailable", lambda side: "not installed" if "JAX" in side else None)
    return asked


def test_the_table_and_the_files(sides, tmp_path, capsys):
    path = tmp_path / "epochs.json"
    assert epochs.main(["--epochs", "3", "--repeat", "3", "--out", str(path)]) == 0
    assert [one["side"] for one in sides] == 3 * ["seqconv", "torch", "Keras, TensorFlow"]  # in turn
    assert all(one["epochs"] == 3 and one["source"] == "auto" and one["threads"] >= 1 for one in sides)
    found = json.loads(path.read_text())
    assert len(found["records"]) == 9
    assert found["skipped"] == {"Keras, JAX": "not installed"}
    text = path.with_suffix(".md").read_text()
    assert "3 epochs, all steps, real data" in text
    ours, torch_s, keras = (line for line in text.splitlines() if line.startswith(("| seqconv", "| torch", "| Keras")))
    assert "24.0" in ours  # the median of 21, 24 and 27
    assert "95.0" in torch_s
    assert "3.96" in torch_s
    assert "3.00" in keras  # the median epoch
    assert "left out: Keras, JAX: not installed" in capsys.readouterr().out


def test_one_side_alone_has_nothing_to_be_compared_with(sides, tmp_path, capsys):
    assert epochs.main(["--side", "torch", "--synthetic", "100", "--out", str(tmp_path / "one.json")]) == 0
    assert sides[0]["source"] == "synthetic"
    assert sides[0]["reviews"] == 100
    assert "91.0" in capsys.readouterr().out


@pytest.mark.parametrize("option", ["--epochs", "--steps", "--repeat", "--synthetic"])
def test_counts_are_at_least_one(option, capsys):
    with pytest.raises(SystemExit):
        epochs.main([option, "0"])
    assert f"{option} must be at least 1, got 0" in capsys.readouterr().err


@pytest.mark.large
def test_a_side_that_fails_ends_the_run_with_its_error(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(epochs, "unavailable", lambda side: None)
    path = tmp_path / "none.json"
    assert epochs.main(["--side", "torch", "--data-dir", str(tmp_path / "nowhere"), "--out", str(path)]) == 1
    assert "torch failed in its process" in capsys.readouterr().err
    assert not path.exists()
