"""``seqconv predict``: the model's numbers, for files and for rows as they come, and what it says of bad ones."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import threading

import numpy as np
import pandas as pd
import pytest
import torch

from seqconv.cli import main
from seqconv.data import SlidingWindows, load_csv
from seqconv.experiments.jena import BUILD
from seqconv.experiments.prediction import Predictor, in_words
from seqconv.training import load_checkpoint, load_weights, save_checkpoint

ROWS, GAP, FAILED = 7500, 3000, 5000
COLUMN = "flow (l/s) 150 rows ahead"


@pytest.fixture(autouse=True)
def _on_torch(monkeypatch, tmp_path):
    monkeypatch.delenv("SEQCONV_DATA", raising=False)
    monkeypatch.setenv("SEQCONV_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("SEQCONV_BACKEND", "reference")  # nothing to compile


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A river's file, with a gap and a failed measurement, and models trained on it for two steps."""
    folder = tmp_path_factory.mktemp("predict")
    hours = np.arange(ROWS)
    when = pd.Timestamp("2023-01-01") + pd.to_timedelta(hours + 5 * (hours >= GAP), unit="h")
    frame = pd.DataFrame({
        "when": when.strftime("%d/%m/%Y %H:%M"),
        "flow (l/s)": 7 + np.sin(hours / 24) + 0.01 * (hours % 7),
        "level": 100 * np.cos(hours / 30),
    })  # fmt: skip
    frame.loc[FAILED, "level"] = -9999
    frame.to_csv(folder / "river.csv", index=False)
    return folder


def trained(folder, name):
    run = folder / name
    if not run.exists():
        line = (
            f"train jena --model {name} --epochs 1 --steps-per-epoch 2 --validation-steps 1 --quiet --json --out {run}"
        )
        file = ["--csv", f"{folder}/river.csv", "--date-format", "%d/%m/%Y %H:%M", "--target", "flow (l/s)"]
        assert main([*line.split(), *file]) == 0
    return run


def expected(folder, name):
    """Return the model's outputs on batches of windows, by the row in which each ends."""
    data = load_csv(folder / "river.csv", target="flow (l/s)", date_format="%d/%m/%Y %H:%M")
    frame = pd.read_csv(folder / "river.csv")
    frame.loc[FAILED, "level"] = frame["level"][FAILED - 1]
    series = ((frame[["flow (l/s)", "level"]].to_numpy() - data.mean) / data.std).astype(np.float32)
    loader = SlidingWindows(series, lookback=1440, step=6, delay=-6, groups=data.groups)
    model = BUILD[name](2).eval()
    load_weights(model, folder / name / "best.pt")
    found = np.full(ROWS, np.nan)
    with torch.no_grad():
        outputs = torch.cat([model(windows) for windows, _ in loader]).numpy()
    found[loader.starts(np.arange(loader.windows)) + 1434] = outputs * data.std[0] + data.mean[0]
    return found


@pytest.mark.parametrize("name", ["convnet", "conv_gru", "gru"])
def test_predictions_are_the_model_s_on_batches_of_windows(folder, name, tmp_path, capsys):
    run = trained(folder, name)
    assert main(["predict", str(run), f"{folder}/river.csv", "--out", f"{tmp_path}/out.csv"]) == 0
    frame = pd.read_csv(tmp_path / "out.csv", dtype={"when": str})
    assert frame.columns.tolist() == ["when", COLUMN]
    assert frame["when"].tolist() == pd.read_csv(folder / "river.csv")["when"].tolist()
    values = expected(folder, name)
    assert np.isnan(values).sum() == 2 * 1434  # in front of the first window, and behind the gap
    np.testing.assert_allclose(frame[COLUMN], values, rtol=1e-5)
    told = capsys.readouterr().err
    assert f"{ROWS} rows, {ROWS - 2868} with a prediction of flow (l/s), 6.25 days ahead" in told
    assert told.endswith("1 failed measurement\n")
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")


class Trickling(io.BytesIO):
    """Hands out a few bytes at a time, as a slow pipe does."""

    def read1(self, size=-1):
        return super().read1(97)


def follow(monkeypatch, run, content, *options):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(content))
    return main(["predict", str(run), "--follow", *options])


@pytest.mark.parametrize("name", ["convnet", "gru"])
def test_rows_as_they_come_give_the_same(folder, name, tmp_path, monkeypatch, capsys):
    run = trained(folder, name)
    lines = (folder / "river.csv").read_bytes().splitlines(keepends=True)
    content = b"".join([lines[0], *lines[GAP - 1400 : GAP + 1500]]).rstrip()  # the last line has no end
    (tmp_path / "some.csv").write_bytes(content)
    assert main(["predict", str(run), f"{tmp_path}/some.csv", "--out", f"{tmp_path}/out.csv", "--quiet"]) == 0
    capsys.readouterr()
    assert follow(monkeypatch, run, Trickling(content)) == 0
    table, other = (pd.read_csv(text) for text in (tmp_path / "out.csv", io.StringIO(capsys.readouterr().out)))
    assert table["when"].tolist() == other["when"].tolist()
    assert table[COLUMN].notna().sum() == 1499 - 1434
    np.testing.assert_allclose(table[COLUMN], other[COLUMN], rtol=1e-5)
    for _ in range(2):  # the second time behind the first
        assert follow(monkeypatch, run, io.BytesIO(content), "--out", f"{tmp_path}/follow.csv") == 0
    assert pd.read_csv(tmp_path / "follow.csv")["when"].tolist() == 2 * table["when"].tolist()


def test_columns_are_found_by_name_and_standard_input_may_be_a_file(folder, tmp_path, monkeypatch):
    run = trained(folder, "convnet")
    frame = pd.read_csv(folder / "river.csv", dtype=str)[:1600]
    first, other = tmp_path / "first.csv", tmp_path / "other.csv"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(frame.to_csv(index=False).encode())))
    assert main(["predict", str(run), "-", "--out", str(first), "--last", "0", "--quiet"]) == 0
    assert not first.with_suffix(".png").exists()
    frame["stat\u00efon"] = "north"
    frame = frame[["when", "level", "stat\u00efon", "flow (l/s)"]]
    frame.to_csv(tmp_path / "river.csv", index=False, encoding="latin-1")
    line = ["predict", f"{run}/best.pt", f"{tmp_path}/river.csv", "--out", str(other), "--plot", f"{tmp_path}/a.png"]
    assert main([*line, "--last", "200", "--quiet"]) == 0
    assert other.read_text() == first.read_text()
    assert (tmp_path / "a.png").exists()


def test_measurements_that_fail_from_the_first_row_on_make_no_prediction(folder, tmp_path, capsys):
    run = trained(folder, "convnet")
    frame = pd.read_csv(folder / "river.csv")[:1500]
    frame.loc[:20, "level"] = np.nan
    frame.to_csv(tmp_path / "river.csv", index=False)
    assert main(["predict", str(run), f"{tmp_path}/river.csv", "--out", f"{tmp_path}/out.csv"]) == 0
    found = pd.read_csv(tmp_path / "out.csv")[COLUMN]
    assert found.first_valid_index() == 1434 + 21
    assert "21 failed measurements" in capsys.readouterr().err
    frame[:50].to_csv(tmp_path / "river.csv", index=False)
    assert main(["predict", str(run), f"{tmp_path}/river.csv", "--out", f"{tmp_path}/out.csv"]) == 0
    assert "a prediction needs 1435 rows, 60 minutes one after the other" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (("level", "depth"), "lacks the columns level; it has when, flow (l/s), depth"),
        (
            ("01/01/2023 05:00,7", "01/01/2023 05:00,seven"),
            "line 7, column 'flow (l/s)': a measurement must be a number",
        ),
        (
            ("01/01/2023 05:00", "yesterday"),
            "line 7, column 'when': a date must be like %d/%m/%Y %H:%M; got 'yesterday'",
        ),
        (("01/01/2023 05:00", "01/01/2023 05:00,1"), "line 7"),
    ],
)
@pytest.mark.parametrize("how", ["file", "rows"])
def test_bad_rows_are_told_by_their_line(folder, tmp_path, monkeypatch, capsys, change, told, how):
    run = trained(folder, "convnet")
    lines = (folder / "river.csv").read_text().splitlines(keepends=True)[:20]
    text = "".join(lines).replace(*change, 1)
    capsys.readouterr()
    if how == "file":
        (tmp_path / "bad.csv").write_text(text)
        assert main(["predict", str(run), f"{tmp_path}/bad.csv", "--out", f"{tmp_path}/out.csv"]) == 1
        assert not (tmp_path / "out.csv").exists()
    else:
        assert follow(monkeypatch, run, Trickling(text.encode())) == 1
    error = capsys.readouterr().err.strip()
    assert error.startswith("seqconv: error: ")
    assert "\n" not in error
    assert told in error
    assert ("bad.csv" if how == "file" else "standard input") in error


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("RUN SERIES", "--out FILE must say where to write"),
        ("RUN --out a.csv", "SERIES must be a CSV file, or - for standard input"),
        ("RUN SERIES --follow", "--follow reads standard input"),
        ("RUN --follow --plot a.png", "--plot goes with a series that ends"),
        ("RUN SERIES --out SERIES", "--out must be another file than SERIES"),
        ("RUN SERIES --out FOLDER", "--out must be a file, got the folder"),
        ("RUN --follow --out FOLDER", "--out must be a file, got the folder"),
        ("RUN SERIES --out a.csv --plot FOLDER", "--plot must be a file, got the folder"),
        ("RUN SERIES --out a.png", "--plot FILE must name the picture, or --last 0 leave it out"),
        ("RUN SERIES --out a.csv --plot ./a.csv", "--plot must be another file than --out, got a.csv"),
        ("RUN SERIES --out a.csv --plot SERIES", "--plot must be another file than SERIES"),
        ("RUN SERIES --out a.csv --encoding klingon", "encoding must be one that Python knows, got 'klingon'"),
        ("RUN UTF16 --out a.csv", "encoding must name what it is, likely utf-16"),
        ("RUN SERIES --out a.csv --last -1", "--last must be at least 0, got -1"),
        ("nowhere SERIES --out a.csv", "there is no checkpoint nowhere"),
        ("RUN nowhere.csv --out a.csv", "nowhere.csv"),
        ("RUN EMPTY --out a.csv", "is empty: its first line must hold the columns' names"),
        ("RUN HEADER --out a.csv", "has no rows"),
    ],
)
def test_failures_are_one_line(folder, tmp_path, monkeypatch, capsys, line, told):
    run = trained(folder, "convnet")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.csv").touch()
    (tmp_path / "header.csv").write_text("when,flow (l/s),level\n")
    (tmp_path / "utf16.csv").write_text("when,flow (l/s),level\n", encoding="utf-16")
    names = {"RUN": run, "SERIES": folder / "river.csv", "EMPTY": "empty.csv", "HEADER": "header.csv"}
    names |= {"FOLDER": folder, "UTF16": "utf16.csv"}
    capsys.readouterr()
    assert main(["predict", *(str(names.get(word, word)) for word in line.split())]) == 1
    error = capsys.readouterr().err.strip()
    assert "\n" not in error
    assert told in error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty.csv", "header.csv", "utf16.csv"]


def test_checkpoints_of_other_models_are_refused(folder, tmp_path, capsys):
    assert main(f"train imdb --model bag --epochs 1 --steps-per-epoch 1 --quiet --out {tmp_path}/imdb".split()) == 0
    assert main(["predict", f"{tmp_path}/imdb", f"{folder}/river.csv", "--out", f"{tmp_path}/a.csv"]) == 1
    assert "must be of a run of seqconv train jena" in capsys.readouterr().err
    state = load_checkpoint(trained(folder, "convnet") / "best.pt")
    save_checkpoint(tmp_path / "later.pt", state | {"description": {**state["description"], "version": 2}})
    with pytest.raises(RuntimeError, match="in the form of version 1, got 2"):
        Predictor(tmp_path / "later.pt")


WRONG = {
    "model": ("model", "abacus"),
    "model_number": ("model", 3),
    "column_twice": ("columns", ["level", "level"]),
    "column_number": ("columns", [1, 2]),
    "target": ("target", "depth"),
    "mean": ("mean", [1.0]),
    "mean_nan": ("mean", [1.0, float("nan")]),
    "std": ("std", [1.0, 0.0]),
    "std_text": ("std", ["1", "2"]),
    "step": ("step", 0),
    "lookback": ("lookback", 5),
    "delay": ("delay", None),
    "row_ns": ("row_ns", 0.5),
    "sentinel": ("sentinel", "none"),
    "sentinels": ("sentinels", "drop"),
    "reading": ("reading", "utf-8"),
    "reading_key": ("reading", {"colour": "red"}),
    "reading_value": ("reading", {"decimal": 3}),
    "reading_date": ("reading", {"date_column": "when"}),
}


@pytest.mark.parametrize("wrong", [*WRONG, "text", "missing"])
def test_damaged_descriptions_are_told(folder, tmp_path, capsys, wrong):
    state = load_checkpoint(trained(folder, "convnet") / "best.pt")
    description = dict(state["description"])
    told = "must be a dictionary, got str"
    if wrong == "text":
        description = "convnet"
    elif wrong == "missing":
        del description["step"]
        told = "'step' must be a whole number, at least 1, which is missing"
    else:
        name, value = WRONG[wrong]
        description[name], told = value, f"{name!r} must be"
    save_checkpoint(tmp_path / "damaged.pt", state | {"description": description})
    with pytest.raises(ValueError, match="describes its model wrongly"):
        Predictor(tmp_path / "damaged.pt")
    capsys.readouterr()
    line = ["predict", f"{tmp_path}/damaged.pt", f"{folder}/river.csv", "--out", f"{tmp_path}/a.csv"]
    assert main(line) == 1
    error = capsys.readouterr().err.strip()
    assert "\n" not in error
    assert f"{tmp_path}/damaged.pt describes its model wrongly" in error
    assert told in error


def test_the_date_column_is_found_by_its_name(folder, tmp_path):
    frame = pd.read_csv(folder / "river.csv", dtype=str)[["level", "when", "flow (l/s)"]]
    frame.to_csv(tmp_path / "river.csv", index=False)
    line = f"train jena --epochs 1 --steps-per-epoch 2 --validation-steps 1 --quiet --json --out {tmp_path}/middle"
    file = ["--date-format", "%d/%m/%Y %H:%M", "--target", "flow (l/s)", "--csv"]
    assert main([*line.split(), *file, f"{tmp_path}/river.csv", "--date-column", "when"]) == 0
    for run in (tmp_path / "middle", trained(folder, "convnet")):
        assert Predictor(run).reading["date_column"] == ("when",)
        texts = []
        for series in (folder, tmp_path):
            given = ["predict", str(run), f"{series}/river.csv", "--last", "0", "--quiet"]
            assert main([*given, "--out", f"{tmp_path}/out.csv"]) == 0
            texts.append((tmp_path / "out.csv").read_text())
        assert texts[0] == texts[1]


def test_the_encoding_may_be_another_one_than_in_training(folder, tmp_path):
    run = trained(folder, "convnet")
    text = "".join((folder / "river.csv").read_text().splitlines(keepends=True)[:1500])
    found = []
    for encoding, option in (("utf-8", []), ("utf-16", ["--encoding", "utf-16"])):
        (tmp_path / "river.csv").write_text(text, encoding=encoding)
        line = ["predict", str(run), f"{tmp_path}/river.csv", "--out", f"{tmp_path}/out.csv", "--last", "0"]
        assert main([*line, *option]) == 0
        found.append((tmp_path / "out.csv").read_text())
    assert found[0] == found[1]


def test_a_device_may_take_the_predictions(folder, tmp_path, capsys):
    run = trained(folder, "convnet")
    device = os.stat("/dev/null")
    (tmp_path / "null.csv").symlink_to("/dev/null")
    for options in ([], ["--plot", f"{tmp_path}/a.png"]):
        assert main(["predict", str(run), f"{folder}/river.csv", "--out", f"{tmp_path}/null.csv", *options]) == 0
        assert os.path.samestat(os.stat("/dev/null"), device)
        assert len(list(tmp_path.glob("*.png"))) == bool(options)  # none beside a device
    assert main(["predict", str(run), f"{folder}/river.csv", "--out", "/dev/full"]) == 1
    assert "No space left" in capsys.readouterr().err


@pytest.mark.parametrize("how", ["file", "rows"])
def test_a_pipe_may_take_the_predictions(folder, tmp_path, monkeypatch, how):
    run, pipe, found = trained(folder, "convnet"), tmp_path / "pipe", []
    content = b"".join((folder / "river.csv").read_bytes().splitlines(keepends=True)[:3])
    (tmp_path / "some.csv").write_bytes(content)
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: found.append(pipe.read_text()), daemon=True)
    reader.start()
    if how == "file":
        assert main(["predict", str(run), f"{tmp_path}/some.csv", "--out", str(pipe)]) == 0
    else:
        assert follow(monkeypatch, run, io.BytesIO(content), "--out", str(pipe)) == 0
    reader.join(10)
    assert found == [f"when,{COLUMN}\n01/01/2023 00:00,\n01/01/2023 01:00,\n"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pipe", "some.csv"]


@pytest.mark.parametrize(("end", "code"), [("signal", 130), ("reader", 1)])
def test_following_ends_without_a_traceback(folder, end, code):
    command = [sys.executable, "-c", "import sys; from seqconv.cli import main; sys.exit(main())"]
    command += ["predict", str(trained(folder, "convnet")), "--follow"]
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    process = subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, **pipes)
    lines = (folder / "river.csv").read_bytes().splitlines(keepends=True)
    process.stdin.write(b"".join(lines[:2]))
    process.stdin.flush()
    assert process.stdout.readline() == f"when,{COLUMN}\n".encode()
    assert process.stdout.readline() == b"01/01/2023 00:00,\n"  # while there is more to come
    if end == "signal":
        process.send_signal(signal.SIGINT)
    else:
        process.stdout.close()
        process.stdin.write(lines[2])
        process.stdin.flush()
    assert process.wait(timeout=60) == code
    assert b"Traceback" not in process.stderr.read()


@pytest.mark.parametrize(
    ("time", "words"),
    [((25, "h"), "25 hours"), ((10, "m"), "10 minutes"), ((90, "s"), "90 seconds"), ((9, "D"), "9 days")],
)
def test_times_in_words(time, words):
    assert in_words(np.timedelta64(*time)) == words
