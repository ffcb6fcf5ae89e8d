"""The commands: runs of suites, what a call costs beside its kernel, and the GPU's environment."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy
import pytest
import torch

from benchmarks import __main__, dispatch, peak, results
from benchmarks.__main__ import ROOT, main
from benchmarks.operations.layers import layer_case


@pytest.mark.large
def test_a_quick_run_of_the_windows_suite(tmp_path):
    path = tmp_path / "windows.json"
    assert main(["--suite", "windows", "--quick", "--select", "lookback240", "--out", str(path)]) == 0
    found = results.read(path)
    providers = {one["provider"] for one in found["measurements"]}
    assert {
        "seqconv numba",
        "seqconv reference",
        "np.copyto, same bytes",
        "torch index_select, whole batch",
    } <= providers
    numba = {one["baseline"] for one in found["measurements"] if one["provider"] == "seqconv numba"}
    loaders = {"DataLoader over indexed samples", "DataLoader over sliced samples"}
    assert numba == {"np.copyto, same bytes", "fancy indexing per sample, np.stack"} | loaders
    for one in found["measurements"]:
        assert len(one["samples"]) == len(one["baseline_samples"]) >= 5
        assert all(seconds > 0 for seconds in one["samples"] + one["baseline_samples"])
    assert path.with_suffix(".md").exists()
    assert path.with_name("windows-windows-fill.png").exists()


@pytest.mark.large
def test_a_quick_run_of_the_dispatch_suite(tmp_path):
    path = tmp_path / "dispatch.json"
    assert main(["--suite", "dispatch", "--quick", "--out", str(path)]) == 0
    noted = results.read(path)["quantities"]
    assert {(one["provider"], one["quantity"]) for one in noted} >= {("seqconv auto", "dispatch")}
    assert all(one["suite"] == "dispatch" and len(one["samples"]) == 5 for one in noted)


@pytest.mark.parametrize("code", [0, 1])
def test_what_pytest_was_asked_and_measured_becomes_results_and_report(tmp_path, monkeypatch, capsys, code):
    path, asked = tmp_path / "one.json", []
    case = layer_case("jena1", "forward").as_dict()
    figures = {"case": case, "provider": "seqconv numba", "ours": True, "baseline": "torch eager", "suite": "conv_pool",
               "calls_per_block": 1, "samples": [1e-3], "baseline_samples": [2e-3], "errors": {}}  # fmt: skip
    notes = {"quantities": [], "skipped": [{"case": "a", "provider": "b", "reason": "c"}]}
    content = {"--benchmark-json": {"benchmarks": [{"extra_info": figures}]}, "--notes": notes}

    def run(command, **_):
        asked.extend(command)
        for name, _, file in (word.partition("=") for word in command):
            if name in content:
                Path(file).write_text(json.dumps(content[name]))
        return subprocess.CompletedProcess(command, code)

    monkeypatch.setattr(__main__, "subprocess", SimpleNamespace(run=run))
    assert main(["--suite", "conv_pool", "--quick", "--select", "jena1", "--out", str(path)]) == code
    text = capsys.readouterr().out
    assert asked[:4] == [sys.executable, "-m", "pytest", "benchmarks"]
    assert {"--suite=conv_pool", "--quick", "--device=cpu", "-k", "jena1"} <= set(asked)
    if code:
        assert "failed (pytest's exit code 1): no results were written" in text
        assert not path.exists()
        return
    found = results.read(path)
    assert found["command"].startswith("python -m benchmarks --suite conv_pool")
    assert found["measurements"][0]["ratio"]["median"] == 2.0
    assert found["skipped"] == notes["skipped"]
    assert f"written: {path.with_suffix('.md')}" in text


def test_a_suite_is_asked_for_by_its_name_alone(monkeypatch, capsys):
    asked = []
    done = subprocess.CompletedProcess([], 1)
    fake = SimpleNamespace(run=lambda command, **_: asked.extend(command) or done)
    monkeypatch.setattr(__main__, "subprocess", fake)
    assert main(["wild", "--suite", "windows", "--quick"]) == 1
    chosen = [word.partition("=")[2] for word in asked if word.startswith("--suite")]
    assert chosen == ["wild", "windows"]
    with pytest.raises(SystemExit):
        main(["wilder"])
    assert "NAME must be one of windows, conv_pool" in capsys.readouterr().err


def test_all_suites_but_those_on_request_run_if_none_is_named(monkeypatch):
    asked = []
    done = subprocess.CompletedProcess([], 1)
    fake = SimpleNamespace(run=lambda command, **_: asked.extend(command) or done)
    monkeypatch.setattr(__main__, "subprocess", fake)
    assert main([]) == 1
    chosen = [word.partition("=")[2] for word in asked if word.startswith("--suite")]
    assert chosen == ["windows", "conv_pool", "gather", "layers", "recurrent", "models", "peak", "dispatch", "memory"]


@pytest.mark.parametrize("threads", [1, 2])
def test_the_peak_s_loop_computes_every_part(threads, monkeypatch):
    monkeypatch.setattr(peak, "ROUNDS", 60)
    step = peak.PeakStep(threads)
    assert step.multiply_adds == threads * peak.PARTS * 60 * peak.SUMS * step.sums.shape[1]
    step.call()
    # Every sum x -> x / 2 + 1 ends at 2: a = 6 * 6 + 6, and the last line 6 / 2 + a.
    numpy.testing.assert_array_equal(step.sums, 45)


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


@pytest.mark.large
def test_the_overlay_has_its_parent_s_packages_and_this_checkout(tmp_path):
    # A parent that finds its packages through a .pth file: a nested --system-site-packages would miss them.
    pytest.importorskip("setuptools", reason="the overlay builds seqconv with its parent's setuptools")
    parent, overlay = tmp_path / "parent", tmp_path / "overlay"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", parent], check=True)
    packages = next(parent.glob("lib/python*/site-packages"))
    packages.joinpath("far.pth").write_text(f"{Path(torch.__file__).parents[1]}\n")
    subprocess.run([parent / "bin" / "python", ROOT / "benchmarks" / "gpu_env.py", overlay], check=True)
    query = "import numpy, seqconv.kernels; print(seqconv.kernels.__path__[0], numpy.__file__)"
    process = subprocess.run([overlay / "bin" / "python", "-c", query], cwd=tmp_path, capture_output=True, text=True)
    kernels, packages = process.stdout.split()
    assert Path(kernels).resolve() == ROOT / "kernels", process.stderr
    assert packages == str(Path(numpy.__file__))


def test_an_overlay_without_pip_finds_seqconv_where_it_stands(tmp_path):
    parent, overlay = tmp_path / "parent", tmp_path / "overlay"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", parent], check=True)
    make = [parent / "bin" / "python", ROOT / "benchmarks" / "gpu_env.py", overlay]
    assert "No module named pip" in subprocess.run(make, check=True, capture_output=True, text=True).stdout
    query = "import seqconv_finder as f; print(*(f.Finder.find_spec(n).origin for n in ('seqconv', 'seqconv.kernels')))"
    process = subprocess.run([overlay / "bin" / "python", "-c", query], cwd=tmp_path, capture_output=True, text=True)
    expected = [str(ROOT / "seqconv" / "__init__.py"), str(ROOT / "kernels" / "__init__.py")]
    assert process.stdout.split() == expected, process.stderr


def test_a_folder_for_wheels_must_hold_some(tmp_path):
    make = [sys.executable, ROOT / "benchmarks" / "gpu_env.py", tmp_path / "overlay"]
    environment = os.environ | {"SEQCONV_WHEELS": str(tmp_path)}
    process = subprocess.run(make, env=environment, capture_output=True, text=True)
    assert process.returncode != 0
    assert "SEQCONV_WHEELS must name a folder with wheels" in process.stderr
