"""Quantities beside the comparisons: the peak's loop, the dispatch's sides, the memory's counts, and their report."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from benchmarks import dispatch, memory, peak, report, report_quantities, results
from benchmarks.__main__ import main
from benchmarks.operations.conv_pool import layer_case
from benchmarks.operations.steps import TensorStep
from benchmarks.registry import Candidate, operation


@pytest.mark.parametrize("threads", [1, 2])
def test_the_peak_s_loop_computes_every_part(threads, monkeypatch):
    monkeypatch.setattr(peak, "ROUNDS", 60)
    step = peak.PeakStep(threads)
    assert step.multiply_adds == threads * peak.PARTS * 60 * peak.SUMS * step.sums.shape[1]
    step.call()
    # Every sum x -> x / 2 + 1 ends at 2: a = 6 * 6 + 6, and the last line 6 / 2 + a.
    np.testing.assert_array_equal(step.sums, 45)


@pytest.mark.parametrize("mode", dispatch.MODES)
@pytest.mark.parametrize("backend", ["numba", "reference"])
def test_all_sides_of_a_dispatch_compute_the_same(backend, mode):
    sides = dispatch.calls(backend, mode)
    with torch.set_grad_enabled(mode != "no grad"):
        found = {name: side() for name, side in sides.items()}
    found = {
        name: result if isinstance(result, tuple) and mode == dispatch.MODES[2] else (result,)
        for name, result in found.items()
    }
    assert len(found["call"]) == (3 if mode == dispatch.MODES[2] else 1)
    for name in ("kernel", "torch eager"):
        for one, other in zip(found[name], found["call"], strict=True):
            torch.testing.assert_close(one, other)
    assert found["call"][0].requires_grad == (mode == "with grad")


def test_dispatch_is_the_difference_of_neighbours(monkeypatch):
    monkeypatch.setattr(dispatch, "CALLS", 2)
    seconds = iter([0.0] * 3 + [0, 4e-6, 0, 1e-6, 0, 2e-6] + [0, 8e-6, 0, 6e-6, 0, 2e-6])
    monkeypatch.setattr(dispatch.time, "perf_counter", lambda: next(seconds))
    samples = dispatch.microseconds({name: lambda: None for name in ("call", "kernel", "torch eager")}, "no grad", 2)
    expected = {"call": [2, 4], "kernel": [0.5, 3], "torch eager": [1, 1], "dispatch": [1.5, 1]}
    assert samples == {name: pytest.approx(values) for name, values in expected.items()}


def test_saved_bytes_count_each_storage_once_and_tell_leaves_apart():
    case = layer_case("jena1", "forward_backward", batch=2)
    x, w = torch.randn(10, 10), torch.randn(10, 10)

    def compute():
        product = x * w  # saves both leaves
        return product.exp().t() * product  # saves exp's result twice, once as a view, and the product

    step = TensorStep(case, compute, x, {"weight": w}, torch.ones(10, 10))
    x.requires_grad_(True)
    assert memory.saved_bytes(step) == (4 * 400, 2 * 400)


@pytest.mark.skipif(memory.unavailable() is not None, reason=str(memory.unavailable()))
def test_the_peak_of_a_fresh_process_is_what_the_step_allocates():
    case = layer_case("imdb2", "forward_backward", layout="channels_last")
    torch_eager = Candidate(case, operation(case.operation).providers["torch eager"])
    found = memory.measure(torch_eager)
    n, c, o, length, positions = 128, 32, 32, 94, 88
    activation = 4 * n * o * positions
    assert found["saved"] - found["saved_beside"] == 4 * (n * c * length + o * c * 7 + o * 0)
    assert found["saved_beside"] == activation + 8 * n * o  # the ReLU's result and the maximum's places
    gradients = 4 * n * c * length
    assert activation + gradients < found["peak"] < 6 * (activation + gradients)


def quantity(suite: str, provider: str, name: str, samples: list[float]) -> dict:
    return {"suite": suite, "case": "tiny", "provider": provider, "quantity": name, "unit": "µs", "samples": samples}


@pytest.fixture
def run():
    noted = [
        quantity("dispatch", "ours", "call", [3.0, 1.0, 2.0]),
        quantity("dispatch", "ours", "kernel", [0.5]),
        quantity("dispatch", "theirs", "call", [8.0]),
        quantity("other", "ours", "length", [7.0]),
    ]
    return results.collect([], [], command="", load=0.0, exit_code=0, quantities=noted)


def test_the_report_has_a_table_for_each_suite(run):
    title, table, other_title, other = report_quantities.sections(run["quantities"], "simple")
    assert (title, other_title) == (report_quantities.TITLES["dispatch"], "other:")
    header, _, ours, theirs = table.splitlines()
    assert header.split("  ")[0] == "case"
    assert "call, µs" in header
    assert "kernel, µs" in header
    assert "2 (1.5-2.5)" in ours
    assert ours.endswith("0.5")
    assert theirs.split() == ["tiny", "theirs", "8"]
    assert "length" in other
    assert table in report.terminal(run)


def test_a_file_keeps_quantities_and_an_older_one_has_none(run, tmp_path):
    path = tmp_path / "run.json"
    results.write(path, run)
    assert results.read(path)["quantities"] == run["quantities"]
    assert run["quantities"][0]["value"] == {"q1": 1.5, "median": 2.0, "q3": 2.5}
    results.write(path, {key: value for key, value in run.items() if key != "quantities"})
    assert results.read(path)["quantities"] == []


def test_a_quick_run_of_the_dispatch_suite(tmp_path):
    path = tmp_path / "dispatch.json"
    assert main(["--suite", "dispatch", "--quick", "--out", str(path)]) == 0
    noted = results.read(path)["quantities"]
    assert {(one["provider"], one["quantity"]) for one in noted} >= {("seqconv auto", "dispatch")}
    assert all(one["suite"] == "dispatch" and len(one["samples"]) == 5 for one in noted)
