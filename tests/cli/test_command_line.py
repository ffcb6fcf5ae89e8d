"""The command, as a user types it: what it prints, what it writes, and its exit codes."""

from __future__ import annotations

import io
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from seqconv.cli import main
from seqconv.data.imdb import synthetic_arrays


@pytest.fixture(autouse=True)
def _no_real_data(monkeypatch, tmp_path):
    monkeypatch.delenv("SEQCONV_DATA", raising=False)
    monkeypatch.setenv("SEQCONV_CACHE", str(tmp_path / "cache"))


def test_help_has_examples_for_every_command(capsys):
    for command in ([], ["compare"], ["train"], ["predict"], ["data"], ["info"]):
        with pytest.raises(SystemExit) as exit:
            main([*command, "--help"])
        assert exit.value.code == 0
        assert "examples:" in capsys.readouterr().out


@pytest.mark.parametrize("line", ["", "compare mnist", "compare imdb --epochs 0", "train jena --backend cuda", "data"])
def test_wrong_usage_is_exit_code_2(line):
    with pytest.raises(SystemExit) as exit:
        main(line.split())
    assert exit.value.code == 2


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("train imdb --model transformer", "'transformer'"),
        ("compare jena --models gru,arima", "'arima'"),
        ("compare all --models gru", "--models goes with one task"),
        ("train imdb --resume", "--resume needs --out"),
        ("train imdb --model bag --schedule Cosine --out run", "schedule must be one of ConstantLR"),
        ("train imdb --model bag --schedule StepLR 3 --out run", "--schedule takes a name and then KEY=VALUE, got '3'"),
        ("train imdb --model bag --schedule StepLR size=3 --out run", "It takes step_size: 'int', gamma"),
        ("train imdb --model bag --learning-rate 0 --out run", "learning_rate must be a finite number above 0, got 0"),
        ("train imdb --model bag --clip-norm -1 --out run", "clip_norm must be a finite number above 0, got -1.0"),
        ("compare imdb --data-dir nowhere", "nowhere"),
        ("train jena --csv nowhere.csv --target T", "nowhere.csv"),
        ("train jena --csv nowhere.csv", "--csv goes with --target NAME"),
        ("train imdb --csv nowhere.csv --target T", "--csv goes with the task jena, got imdb"),
        ("compare all --csv nowhere.csv --target T", "--csv goes with the task jena, got all"),
        ("train jena --date-column date", "--date-column goes with --csv FILE"),
        ("train jena --csv a.csv --target T --data-dir .", "leave out --data-dir and --source"),
        ("compare imdb --source real", "no imdb data"),
        pytest.param(
            "train jena --backend triton --steps-per-epoch 1 --epochs 1 --out run",
            "backend 'triton' cannot serve",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="Triton may serve where there is a GPU"),
        ),
    ],
)
def test_failure_is_one_line_and_exit_code_1(line, told, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main([*line.split(), "--quiet"]) == 1
    error = capsys.readouterr().err.strip()
    assert error.startswith("seqconv: error: ")
    assert "\n" not in error
    assert told in error


def test_data_that_are_missing_for_a_later_task_stop_compare_before_any_training(capsys, tmp_path):
    np.savez(tmp_path / "imdb.npz", **synthetic_arrays(40, 10))
    assert main(f"compare all --data-dir {tmp_path} --out {tmp_path}/out".split()) == 1
    assert "no jena data" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("closed", ["stdout", "stderr"])
def test_a_closed_stream_is_no_failure(closed, monkeypatch):
    monkeypatch.setattr(sys, closed, None)
    assert main(["data", "verify", "imdb"]) == 0
    assert main(["data", "verify", "imdb", "--data-dir", "nowhere"]) == 1


def test_letters_that_the_terminal_lacks_are_escaped(tmp_path, monkeypatch):
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii"))
    folder = tmp_path / "d\u00e4ta"
    folder.mkdir()
    (folder / "imdb.npz").write_bytes(b"not the reviews")
    assert main(["data", "verify", "imdb", "--data-dir", str(folder)]) == 0
    assert b"d\\xe4ta" in written.getvalue()


def test_json_of_an_epoch_resumed_in_its_validation_has_null_for_its_time(capsys, tmp_path, monkeypatch):
    def no_steps_timed(clock):
        return math.nan

    monkeypatch.setattr("seqconv.training.clock.StepClock.milliseconds", no_steps_timed)
    assert main(f"train imdb --model bag --epochs 1 --steps-per-epoch 1 --quiet --json --out {tmp_path}".split()) == 0
    (record,) = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)["history"]
    assert record["ms_per_step"] is None


def test_compare_prints_a_table_and_writes_it_in_every_form(capsys, tmp_path):
    line = f"compare imdb --models bag,majority --epochs 2 --steps-per-epoch 3 --quiet --out {tmp_path}/out"
    assert main(line.split()) == 0
    printed = capsys.readouterr().out
    folder = tmp_path / "out" / "imdb"
    frame = pd.read_csv(folder / "compare.csv")
    report = json.loads((folder / "compare.json").read_text())
    assert frame["model"].tolist() == ["bag", "majority"]
    assert frame["data"].str.startswith("synthetic").all()
    assert frame["measured_on"].str.contains(f"torch {torch.__version__}", regex=False).all()
    assert pd.read_csv(folder / "bag" / "history.csv")["data"].str.startswith("synthetic").all()
    assert [one["model"] for one in report["outcomes"]] == ["bag", "majority"]
    assert report["synthetic"] is True
    assert "synthetic" in printed
    assert "synthetic" in (folder / "compare.md").read_text()
    for outcome in report["outcomes"]:
        assert f"{outcome['test']:.4f}" in printed
    for picture in (folder / "compare.png", folder / "bag" / "history.png"):
        assert picture.read_bytes().startswith(b"\x89PNG")
    # The majority class of 1,000 made-up reviews, counted without the model.
    from seqconv.data import load_imdb

    data = load_imdb()
    majority = float(np.median(data.train[1]))
    assert report["outcomes"][1]["test"] == pytest.approx(float((data.test[1] == majority).mean()))


def test_json_of_jena_gives_degrees(capsys, tmp_path):
    assert main(f"compare jena --models temperature_now --quiet --json --out {tmp_path}".split()) == 0
    (report,) = json.loads(capsys.readouterr().out)
    from seqconv.data import load_jena

    data = load_jena()
    rows = data.splits.test
    celsius = data.series[:, 1].astype(np.float64) * data.std[1]
    # "now" is the row one step before the window's end, the target 144 rows after the end: 150 rows apart.
    apart = np.abs(celsius[rows.start + 1434 + 150 : rows.stop] - celsius[rows.start + 1434 : rows.stop - 150])
    assert report["outcomes"][0]["test_in_units"] == pytest.approx(apart.mean(), rel=1e-3)


def test_train_resumes_and_then_says_what_it_reached(capsys, tmp_path):
    line = f"train imdb --model bag --epochs 1 --steps-per-epoch 2 --quiet --json --out {tmp_path}/run"
    assert main(line.split()) == 0
    first = json.loads(capsys.readouterr().out)
    assert main(line.split()) == 1  # the folder holds a run, and nothing is overwritten unasked
    assert "resume" in capsys.readouterr().err
    assert main([*line.replace("--epochs 1", "--epochs 2").split(), "--resume"]) == 0
    second = json.loads(capsys.readouterr().out)
    assert [record["epoch"] for record in second["history"]] == [1, 2]
    assert second["history"][0]["loss"] == first["history"][0]["loss"]


def test_train_with_a_schedule_resumes_with_the_same_options_only(capsys, tmp_path):
    base = "train imdb --model bag --steps-per-epoch 3 --quiet --json"
    recipe = "--learning-rate 0.01 --clip-norm 0.1 --clip-value 0.05 --schedule StepLR step_size=1 gamma=0.5"
    assert main(f"{base} --epochs 3 --out {tmp_path}/whole {recipe}".split()) == 0
    whole = json.loads(capsys.readouterr().out)["history"]
    assert [record["learning_rate"] for record in whole] == [0.01, 0.005, 0.0025]
    assert main(f"{base} --epochs 1 --out {tmp_path}/run {recipe}".split()) == 0
    capsys.readouterr()
    for change, told in (
        (recipe.replace("0.01", "0.02"), "learning_rate 0.01, got 0.02"),
        (recipe.replace("gamma=0.5", "gamma=0.1"), "'gamma': 0.5}, got {'step_size': 1, 'gamma': 0.1}"),
        ("", "got None"),
    ):
        assert main(f"{base} --epochs 3 --out {tmp_path}/run --resume {change}".split()) == 1
        assert told in capsys.readouterr().err
    assert main(f"{base} --epochs 3 --out {tmp_path}/run --resume {recipe}".split()) == 0
    resumed = json.loads(capsys.readouterr().out)["history"]
    assert [record["val_loss"] for record in resumed] == [record["val_loss"] for record in whole]
    first, second = (torch.load(tmp_path / name / "last.pt", weights_only=True)["model"] for name in ("whole", "run"))
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_train_waits_for_a_plateau_of_the_metric_in_its_own_direction(capsys, tmp_path):
    line = f"train imdb --model bag --epochs 3 --steps-per-epoch 1 --quiet --json --out {tmp_path}/run"
    schedule = "--schedule ReduceLROnPlateau patience=0 threshold=100 factor=0.5"
    assert main([*line.split(), *schedule.split()]) == 0
    history = json.loads(capsys.readouterr().out)["history"]
    assert [record["learning_rate"] for record in history] == pytest.approx([1e-3, 1e-3, 5e-4])


def test_train_prints_history_and_figures(capsys, tmp_path):
    assert main(f"train imdb --model bag --epochs 2 --steps-per-epoch 1 --threads 1 --out {tmp_path}/run".split()) == 0
    printed, progress = capsys.readouterr()
    history = pd.read_csv(tmp_path / "run" / "history.csv")
    assert len(history) == 2
    assert f"validation binary accuracy: {history['val_binary_accuracy'].max():.4f} (synthetic data)" in printed
    assert "test binary accuracy" in printed
    assert "epoch 2/2" in progress
    line = f"train jena --model temperature_now --validation-steps 1 --quiet --out {tmp_path}/none"
    assert main(line.split()) == 0
    assert "degrees Celsius) (synthetic data)" in capsys.readouterr().out
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.large)]
)
def test_a_signal_leaves_a_checkpoint_and_its_exit_code(number, code, tmp_path):
    command = f"train imdb --model bag --epochs 500 --steps-per-epoch 1 --out {tmp_path}/run".split()
    run = [sys.executable, "-c", "import sys; from seqconv.cli import main; sys.exit(main())", *command]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(run, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env=environment)
    checkpoint = tmp_path / "run" / "last.pt"
    until = time.monotonic() + 120
    while not checkpoint.exists():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < until, "no checkpoint in two minutes"
        time.sleep(0.05)
    process.send_signal(number)
    _, error = process.communicate(timeout=60)
    assert process.returncode == code
    assert str(checkpoint) in error
    assert torch.load(checkpoint, weights_only=True)


def test_data_verify_tells_a_changed_file(capsys, tmp_path, monkeypatch):
    assert main(["data", "verify", "all", "--json"]) == 0
    assert [one["status"] for one in json.loads(capsys.readouterr().out)] == ["synthetic", "synthetic"]
    (tmp_path / "imdb.npz").write_bytes(b"not the reviews")
    assert main(["data", "verify", "imdb", "--data-dir", str(tmp_path)]) == 0
    assert "status: unknown" in capsys.readouterr().out
    cache = Path(os.environ["SEQCONV_CACHE"])
    cache.mkdir()
    (cache / "jena_climate_2009_2016.csv.zip").write_bytes(b"other bytes than those that arrived")
    (cache / "jena_climate_2009_2016.csv.zip.sha256").write_text(f"{'0' * 64}  jena_climate_2009_2016.csv.zip\n")
    assert main(["data", "verify", "jena"]) == 1
    assert "status: changed" in capsys.readouterr().out


def test_data_describe_says_synthetic(capsys):
    assert main(["data", "describe", "all"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("source: synthetic") == 2
    assert "rows from" in printed


def test_a_csv_of_ones_own_is_described_and_trained_on(capsys, tmp_path):
    rows = 9000
    hours = np.arange(rows)
    frame = pd.DataFrame({
        "flow (l/s)": np.sin(hours / 24) + 0.01 * (hours % 7),
        "station": "north",
        "when": pd.date_range("2023-01-01", periods=rows, freq="h").strftime("%d/%m/%Y %H:%M"),
        "level": np.cos(hours / 30),
    })  # fmt: skip
    frame.to_csv(tmp_path / "river.csv", index=False, sep=";", encoding="latin-1")
    file = ["--csv", f"{tmp_path}/river.csv", "--date-column", "when", "--date-format", "%d/%m/%Y %H:%M"]
    file += ["--separator", ";", "--target", "flow (l/s)", "--columns", "level", "flow (l/s)"]
    assert main(["data", "describe", "jena", *file, "--json"]) == 0
    described = json.loads(capsys.readouterr().out)[0]
    assert (described["rows"], described["columns"], described["target"]) == (
        9000,
        ["level", "flow (l/s)"],
        "flow (l/s)",
    )
    assert (described["report"]["gaps"], described["report"]["missing"]) == ([], 0)
    assert main(["train", "jena", "--model", "temperature_now", "--validation-steps", "1", "--quiet", *file]) == 0
    assert "in the units of flow (l/s)) (real data)" in capsys.readouterr().out
    # Dense, since a convnet would compile kernels here.
    line = f"train jena --model dense --epochs 1 --steps-per-epoch 2 --validation-steps 1 --json --out {tmp_path}/run"
    assert main([*line.split(), *file]) == 0
    told = capsys.readouterr()
    assert json.loads(told.out)["data"] == f"{tmp_path}/river.csv"
    assert "flow (l/s) 144 rows ahead" in told.err
    assert main(["data", "describe", "jena", *file, "--columns", "level", "station", "--target", "level"]) == 1
    assert "river.csv, line 2, column 'station': a measurement must be a number, got 'north'" in capsys.readouterr().err
    assert main(["data", "verify", "jena", *file]) == 1
    assert "--csv goes with describe, got verify" in capsys.readouterr().err


def test_info_tells_versions_and_backends(capsys):
    assert main(["info", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["versions"]["torch"] == torch.__version__
    assert told["operations"]["conv1d_relu_max_pool1d"][-1] == "reference"
    assert told["operations"]["gather_windows"] == ["numba", "reference"]
    assert main(["info"]) == 0
    assert "conv1d_relu_max_pool1d" in capsys.readouterr().out


def test_reader_that_goes_away_is_no_traceback():
    run = f"{sys.executable} -c 'import sys; from seqconv.cli import main; sys.exit(main())' info | true"
    done = subprocess.run(run, shell=True, capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr
    assert "BrokenPipe" not in done.stderr
