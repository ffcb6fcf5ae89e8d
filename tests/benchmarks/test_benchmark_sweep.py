"""The sweep: the same random shapes every time, within their ranges and limits, all right, and summed up."""

from __future__ import annotations

import pytest

from benchmarks import report, report_sweep, results
from benchmarks.checking import check
from benchmarks.operations import sweep
from benchmarks.registry import Candidate, comparisons, operation


def test_shapes_are_the_same_every_time_within_their_ranges_and_limits():
    found = sweep.shapes(200)
    assert found == sweep.shapes(200)
    assert found[:20] == sweep.shapes(20)
    for shape, case in zip(found, sweep.sweep_cases(("forward",), 200), strict=True):
        assert all(least <= shape[letter] <= greatest for letter, (least, greatest) in sweep.RANGES.items())
        positions = sweep.conv_positions(case)
        assert positions >= max(shape["P"], 1)
        work = shape["N"] * shape["O"] * positions * shape["C"] * shape["K"]
        assert work <= sweep.MULTIPLY_ADDS
        assert shape["N"] * max(shape["C"] * shape["L"], shape["O"] * positions) <= sweep.NUMBERS
    assert {shape["P"] for shape in found} == set(range(9))
    assert all(any(name in shape for shape in found) for name in sweep.OPTIONS)
    assert len({str(case) for case in sweep.sweep_cases(("forward", "forward_backward"), 200)}) == 400


def test_sizes_are_spread_over_all_octaves():
    shapes = sweep.shapes(400)
    for letter, (least, greatest) in sweep.RANGES.items():
        if letter != "N":  # cut where a case would be too large
            middle = (least * greatest) ** 0.5
            assert 0.35 < sum(shape[letter] > middle for shape in shapes) / 400 < 0.65


@pytest.mark.parametrize("number", range(4))
def test_all_sides_are_right_and_seqconv_meets_torch_alone(number):
    cases = sweep.sweep_cases(("forward", "forward_backward"), 4)[2 * number : 2 * number + 2]
    for case in cases:
        for provider in operation("sweep").providers.values():
            assert check(Candidate(case, provider))
        pairs = [(one.candidate.provider.name, one.against.provider.name) for one in comparisons(case)]
        assert pairs == [
            ("seqconv auto", "torch eager, better layout"),
            ("seqconv numba", "torch eager, better layout"),
        ]


def test_a_case_is_checked_with_fewer_samples():
    case = next(one for one in sweep.sweep_cases(("forward",), 50) if one.shape["N"] > 100)
    small = operation("sweep").checked(case)
    assert 1 <= small.shape["N"] <= case.shape["N"]
    assert {**small.shape, "N": case.shape["N"]} == case.shape


def test_numba_is_timed_beside_auto_only_where_auto_chose_something_else(monkeypatch):
    case = sweep.sweep_cases(("forward",), 1)[0]
    monkeypatch.setattr(sweep, "chosen", lambda case: "reference")
    assert sweep.chosen_or_refused(case) is None
    monkeypatch.setattr(sweep, "chosen", lambda case: "numba")
    assert sweep.chosen_or_refused(case) == "auto chose it: the same call"


@pytest.mark.parametrize("mode", ["forward", "forward_backward"])
def test_what_auto_chooses_is_known(mode, monkeypatch):
    case = sweep.sweep_cases((mode,), 1)[0]
    monkeypatch.setenv("SEQCONV_BACKEND", "reference")
    sweep.chosen.cache_clear()
    assert sweep.chosen(case) == "reference"
    sweep.chosen.cache_clear()


def figure(number: int, ratio: float, mode: str = "forward") -> dict:
    case = sweep.sweep_cases((mode,), 10)[number]
    return {
        "case": case.as_dict(),
        "provider": "seqconv auto",
        "ours": True,
        "baseline": "torch eager, better layout",
        "baseline_layout": "channels_last",
        "suite": "sweep",
        "calls_per_block": 1,
        "samples": [1e-3] * 3,
        "baseline_samples": [ratio * 1e-3] * 3,
        "errors": {},
    }


@pytest.fixture
def run():
    figures = [figure(number, ratio) for number, ratio in enumerate([0.5, 0.9, 1.5, 2.0, 4.0])]
    figures.append(figure(0, 3.0, "forward_backward"))
    return results.collect(figures, [], command="python -m benchmarks --suite sweep", load=0.0, exit_code=0)


def test_the_report_has_shares_quantiles_and_losers_the_worst_first(run):
    lines = report.terminal(run).splitlines()
    forward = next(line for line in lines if line.startswith("forward "))
    assert forward.split()[3:] == ["5", "60.0%", "20.0%", "0.50", "0.58", "0.90", "1.50", "2.00", "3.60"]
    assert any(line.startswith("forward_backward") and "100.0%" in line for line in lines)
    lost = [line for line in lines if line.startswith(("0.500", "0.900"))]
    assert [line[:5] for line in lost] == ["0.500", "0.900"]
    case = run["measurements"][0]["case"]
    assert f"C {case['shape']['C']} O {case['shape']['O']}" in lost[0]
    assert "1.500" not in "".join(lines)


def test_a_ratio_of_one_is_no_loss():
    assert report_sweep.summary([1.0])[:3] == ("1", "100.0%", "0.0%")


def test_the_sweep_has_a_plot_of_its_own(run, tmp_path):
    path = tmp_path / "run.json"
    results.write(path, run)
    assert report.write_report(path, results.read(path)) == [tmp_path / "run.md", tmp_path / "run-sweep.png"]
    assert (tmp_path / "run-sweep.png").read_bytes().startswith(b"\x89PNG")
    assert "](run-sweep.png)" in (tmp_path / "run.md").read_text()
