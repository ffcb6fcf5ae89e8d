"""Results files, what the report makes of them, and its pictures."""

from __future__ import annotations

import datetime
import json
import re
import sys

import pytest

from benchmarks import plots, report, results, tables
from benchmarks.operations.layers import layer_case, sweep_cases


def figure(provider: str, samples: list[float], baseline_samples: list[float], **more):
    return {
        "case": layer_case("jena1", "forward").as_dict(), "provider": provider, "ours": False,
        "baseline": "torch eager", "calls_per_block": 3, "samples": samples, "baseline_samples": baseline_samples,
        "errors": {"output, random": (1e-7, 3e-7)}, **more,
    }  # fmt: skip


def swept(number: int, ratio: float, mode: str = "forward"):
    case = sweep_cases((mode,), 10)[number].as_dict()
    more = {"case": case, "ours": True, "suite": "sweep", "baseline_layout": "channels_last"}
    return figure("seqconv auto", [1e-3] * 3, [ratio * 1e-3] * 3, **more)


def collected(figures, skipped=(), **more):
    return results.collect(figures, skipped, command="python -m benchmarks", load=0.25, exit_code=0, **more)


@pytest.fixture(scope="module")
def run():
    figures = [
        figure("torch eager", [2e-3, 2e-3], [2e-3, 2e-3]),
        figure("torch.compile", [4e-3, 4e-3], [2e-3, 2e-3], cold={"empty_caches": 12.5, "warm_caches": 1.25}),
        figure("seqconv numba", [1e-3, 1e-3, 1e-3], [2e-3, 3e-3, 4e-3], ours=True),
        figure("seqconv triton", [4e-3, 4e-3], [2e-3, 2e-3], ours=True),
    ]
    return collected(figures, [{"case": "jena1", "provider": "max-autotune", "reason": "is for GPUs"}] * 2)


def test_figures_are_those_of_the_samples_and_only_what_is_ours_can_lose(run):
    numba = run["measurements"][2]
    assert numba["ratio"] == pytest.approx({"q1": 2.5, "median": 3.0, "q3": 3.5})
    assert numba["seconds"] == {"q1": 1e-3, "median": 1e-3, "q3": 1e-3}
    assert numba["baseline_seconds"] == pytest.approx({"q1": 2.5e-3, "median": 3e-3, "q3": 3.5e-3})
    assert numba["cold"] is None
    assert run["environment"].keys() >= {"machine", "versions", "threads", "commit"}
    assert [results.loses(one) for one in run["measurements"]] == [False, False, False, True]


def test_convnets_are_told_against_the_faster_rnn_where_both_were_timed():
    def against(baseline, ratio, **more):
        return results.measurement(
            figure("seqconv auto", [1e-3] * 3, [ratio * 1e-3] * 3, ours=True, **{**more, "baseline": baseline})
        )

    found = [against("torch GRU(32)", 8), against("seqconv GRU(32)", 2), against("torch eager", 1.5)]
    title, table = report.against_rnns(found, "github")
    assert "faster RNN" in title
    assert table.count("seqconv auto") == 1
    assert re.search(r"seqconv auto +\| 2 +\| seqconv GRU\(32\)", table)
    assert report.against_rnns(found[:1], "github") == ["", ""]


def test_a_file_gives_back_what_was_written_and_others_are_refused(tmp_path, run):
    path = tmp_path / "new" / "run.json"
    results.write(path, run)
    assert results.read(path) == json.loads(json.dumps(run))
    assert [one.name for one in path.parent.iterdir()] == ["run.json"]
    results.write(path, {key: value for key, value in run.items() if key not in ("quantities", "failed", "gpu")})
    assert results.read(path) == json.loads(json.dumps(run))  # as older files are
    for content, words in (
        ({**run, "schema": 0}, "schema 1"),
        ({key: value for key, value in run.items() if key != "skipped"}, "lacks skipped"),
    ):
        results.write(path, content)
        with pytest.raises(ValueError, match=words):
            results.read(path)
    path.write_text("no JSON")
    with pytest.raises(ValueError, match="is not a results file"):
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
    (numba,) = (line for line in text.splitlines() if "seqconv numba" in line)
    assert "2.5-3.5" in numba
    for words in ("itself: noise", "12.50 s, cached 1.25 s", "is for GPUs", "load 0.25"):
        assert words in text
    assert "is for GPUs" in render({**run, "measurements": []})


def test_the_command_writes_table_and_pictures_beside_the_file(tmp_path, run, capsys):
    path = tmp_path / "run.json"
    results.write(path, run)
    assert report.main([str(path)]) == 0
    assert "seqconv numba" in capsys.readouterr().out
    picture = tmp_path / "run-conv1d_relu_max_pool1d-forward.png"
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert f"]({picture.name})" in (tmp_path / "run.md").read_text()
    assert report.write_report(path, {**run, "measurements": []}) == [tmp_path / "run.md"]
    assert report.main([str(tmp_path / "none.json")]) == 2
    assert "none.json" in capsys.readouterr().err


@pytest.mark.parametrize("path", sorted(results.FOLDER.glob("[cg]pu-*.json")), ids=lambda path: path.stem)
def test_committed_files_are_reported(path):
    run = results.read(path)
    text = report.markdown(run)
    assert text.count("\n|") >= len(run["measurements"]) or "Random shapes" in text
    found = plots.questions(results.apart(run)[1])
    assert all(len({plots.case_name(one) for one in group}) <= 12 for group in found.values())
    shown = path.with_suffix(".md").read_text(encoding="utf-8")
    for picture in re.findall(r"\]\((.*?\.png)\)", shown):
        assert path.with_name(picture).exists()


@pytest.mark.parametrize(("style", "expected"), [
    ("simple", ["case    time", "------  -----", "a       12 ms", "longer  3"]),
    ("github", ["| case   | time  |", "| ------ | ----- |", "| a      | 12 ms |", "| longer | 3     |"]),
])  # fmt: skip
def test_tables_need_no_package(style, expected, monkeypatch):
    monkeypatch.setitem(sys.modules, "tabulate", None)
    assert tables.tabulate([("a", "12 ms"), ("longer", 3)], ("case", "time"), style).splitlines() == expected
    assert tables.tabulate([], ("case", "time"), style) == ""


def test_the_sweep_s_report_has_shares_quantiles_losers_the_worst_first_and_a_picture_of_its_own(tmp_path):
    figures = [swept(number, ratio) for number, ratio in enumerate([0.5, 0.9, 1.5, 2.0, 4.0])]
    run = collected([*figures, swept(0, 3.0, "forward_backward")])
    lines = report.terminal(run).splitlines()
    forward = next(line for line in lines if line.startswith("forward "))
    assert forward.split()[3:] == ["5", "60.0%", "20.0%", "0.50", "0.58", "0.90", "1.50", "2.00", "3.60"]
    assert any(line.startswith("forward_backward") and "100.0%" in line for line in lines)
    lost = [line for line in lines if line.startswith(("0.500", "0.900"))]
    assert [line[:5] for line in lost] == ["0.500", "0.900"]
    case = run["measurements"][0]["case"]
    assert f"C {case['shape']['C']} O {case['shape']['O']}" in lost[0]
    assert "1.500" not in "".join(lines)
    assert report.summary([1.0])[:3] == ("1", "100.0%", "0.0%")  # a ratio of one is no loss
    assert report.write_report(tmp_path / "run.json", run) == [tmp_path / "run.md", tmp_path / "run-sweep.png"]


def test_quantities_have_a_table_for_each_suite():
    noted = [
        {"suite": suite, "case": "tiny", "provider": provider, "quantity": name, "unit": "µs", "samples": samples}
        for suite, provider, name, samples in (
            ("dispatch", "ours", "call", [3.0, 1.0, 2.0]), ("dispatch", "ours", "kernel", [0.5]),
            ("dispatch", "theirs", "call", [8.0]), ("other", "ours", "length", [7.0]),
        )
    ]  # fmt: skip
    run = collected([], quantities=noted)
    assert run["quantities"][0]["value"] == {"q1": 1.5, "median": 2.0, "q3": 2.5}
    title, table, other_title, other = report.quantities(run["quantities"], "simple")
    assert (title, other_title) == (report.TITLES["dispatch"], "other:")
    header, _, ours, theirs = table.splitlines()
    assert "call, µs" in header
    assert "kernel, µs" in header
    assert "2 (1.5-2.5)" in ours
    assert ours.endswith("0.5")
    assert theirs.split() == ["tiny", "theirs", "8"]
    assert "length" in other
    assert table in report.terminal(run)


def test_a_picture_is_of_one_question_and_at_most_twelve_rows():
    modes, providers = ("forward", "training_step"), ("seqconv numba", "torch eager, better layout")
    figures = [
        figure(provider, [1e-3] * 3, [2e-3] * 3, case={**layer_case("jena1", mode).as_dict(), "name": f"case {number}"})
        for mode in modes for number in range(13) for provider in providers
    ]  # fmt: skip
    found = plots.questions(collected(figures)["measurements"])
    assert [question for _, question in found] == [
        f"conv1d_relu_max_pool1d: {words}, float32 ({part} of 2)"
        for words in ("forward", "training step") for part in (1, 2)
    ]  # fmt: skip
    rows = [len({plots.case_name(one) for one in group}) for group in found.values()]
    assert max(rows) <= 12
    assert sum(rows) == 26
    (name, question), group = next(iter(found.items()))
    assert name == "conv1d_relu_max_pool1d-forward-1"
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    picture = plots.rows(group, question, "a machine " * 30)
    FigureCanvasAgg(picture).draw()
    renderer = picture.canvas.get_renderer()
    (axes,), (legend,) = picture.axes, picture.legends
    parts = [picture._suptitle.get_window_extent(renderer), legend.get_window_extent(renderer)]
    labels = [one.get_window_extent(renderer) for one in axes.get_yticklabels()]
    assert len(labels) == 7
    for place, box in enumerate(boxes := [*parts, *labels]):
        assert not any(box.overlaps(other) for other in boxes[:place])
        assert box.x0 >= 0
        assert box.x1 <= picture.bbox.x1
        assert box.y1 <= picture.bbox.y1
