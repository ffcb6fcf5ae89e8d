"""Results files and what the report makes of them."""

from __future__ import annotations

import datetime
import json
import sys

import pytest

from benchmarks import report, results, tables
from benchmarks.operations.conv_pool import layer_case


def figure(provider: str, samples: list[float], baseline_samples: list[float], *, ours: bool = False, **more):
    return {
        "case": layer_case("jena1", "forward").as_dict(),
        "provider": provider,
        "ours": ours,
        "baseline": "torch eager",
        "calls_per_block": 3,
        "samples": samples,
        "baseline_samples": baseline_samples,
        "errors": {"output, random": (1e-7, 3e-7)},
        **more,
    }


@pytest.fixture(scope="module")
def run():
    figures = [
        figure("torch eager", [2e-3, 2e-3], [2e-3, 2e-3]),
        figure("torch.compile", [4e-3, 4e-3], [2e-3, 2e-3], cold={"empty_caches": 12.5, "warm_caches": 1.25}),
        figure("seqconv numba", [1e-3, 1e-3, 1e-3], [2e-3, 3e-3, 4e-3], ours=True),
        figure("seqconv triton", [4e-3, 4e-3], [2e-3, 2e-3], ours=True),
    ]
    skipped = [{"case": "jena1", "provider": "torch.compile max-autotune", "reason": "is for GPUs"}]
    return results.collect(figures, skipped, command="python -m benchmarks", load=0.25, exit_code=0)


def test_figures_are_those_of_the_samples(run):
    numba = run["measurements"][2]
    assert numba["ratio"] == pytest.approx({"q1": 2.5, "median": 3.0, "q3": 3.5})
    assert numba["seconds"] == {"q1": 1e-3, "median": 1e-3, "q3": 1e-3}
    assert numba["baseline_seconds"] == pytest.approx({"q1": 2.5e-3, "median": 3e-3, "q3": 3.5e-3})
    assert numba["cold"] is None
    assert run["environment"].keys() >= {"machine", "versions", "threads", "commit"}


def test_only_what_is_ours_can_lose(run):
    assert [results.loses(one) for one in run["measurements"]] == [False, False, False, True]


def test_a_file_gives_back_what_was_written(tmp_path, run):
    path = tmp_path / "new" / "run.json"
    results.write(path, run)
    assert results.read(path) == json.loads(json.dumps(run))
    assert [one.name for one in path.parent.iterdir()] == ["run.json"]


def test_what_is_no_results_file_is_refused(tmp_path, run):
    path = tmp_path / "run.json"
    path.write_text("no JSON")
    with pytest.raises(ValueError, match="is not a results file"):
        results.read(path)
    results.write(path, {**run, "schema": 0})
    with pytest.raises(ValueError, match="schema 1"):
        results.read(path)
    results.write(path, {key: value for key, value in run.items() if key != "skipped"})
    with pytest.raises(ValueError, match="lacks skipped"):
        results.read(path)


def test_the_path_names_kind_and_time():
    path = results.default_path("cpu", datetime.datetime(2026, 1, 2, 3, 4, 5, tzinfo=datetime.UTC))
    assert path == results.FOLDER / "cpu-20260102-030405.json"


@pytest.mark.parametrize("render", [report.terminal, report.markdown])
def test_the_report_shows_losses_twice_and_what_was_left_out(run, render):
    text = render(run)
    assert "seqconv loses 1 of its 2 comparisons:" in text
    lost = [line for line in text.splitlines() if "seqconv triton" in line]
    assert len(lost) == 2
    assert all("0.5 (loses)" in line for line in lost)
    numba = [line for line in text.splitlines() if "seqconv numba" in line]
    assert len(numba) == 1
    assert "2.5-3.5" in numba[0]
    assert "itself: noise" in text
    assert "12.50 s, cached 1.25 s" in text
    assert "is for GPUs" in text
    assert "load 0.25" in text


def test_the_command_writes_table_and_plot_beside_the_file(tmp_path, run, capsys):
    path = tmp_path / "run.json"
    results.write(path, run)
    assert report.main([str(path)]) == 0
    assert "seqconv numba" in capsys.readouterr().out
    assert (tmp_path / "run.png").read_bytes().startswith(b"\x89PNG")
    assert "![" in (tmp_path / "run.md").read_text()


def test_the_command_says_what_is_wrong_with_a_file(tmp_path, capsys):
    assert report.main([str(tmp_path / "none.json")]) == 2
    assert "none.json" in capsys.readouterr().err


def test_a_run_without_figures_still_reports(tmp_path, run):
    empty = {**run, "measurements": []}
    assert report.write_report(tmp_path / "run.json", empty) == [tmp_path / "run.md"]
    assert "is for GPUs" in report.terminal(empty)


@pytest.mark.parametrize(("style", "expected"), [
    ("simple", ["case    time", "------  -----", "a       12 ms", "longer  3"]),
    ("github", ["| case   | time  |", "| ------ | ----- |", "| a      | 12 ms |", "| longer | 3     |"]),
])  # fmt: skip
def test_tables_need_no_package(style, expected, monkeypatch):
    monkeypatch.setitem(sys.modules, "tabulate", None)
    rows, headers = [("a", "12 ms"), ("longer", 3)], ("case", "time")
    assert tables.tabulate(rows, headers, tablefmt=style, disable_numparse=True).splitlines() == expected
