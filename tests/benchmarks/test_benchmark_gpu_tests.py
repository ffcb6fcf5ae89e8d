"""The GPU's tests in a process: their time, what they told until then, the sanitizer, a device that is lost."""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from benchmarks import gpu_counters, gpu_tests

ROOT = Path(__file__).resolve().parents[2]


def tool(tmp_path, monkeypatch, text: str, name: str = "compute-sanitizer") -> None:
    path = tmp_path / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")


def test_the_sanitizer_s_summary_is_kept(tmp_path, monkeypatch):
    said = "echo ========= ERROR SUMMARY: 2 errors; echo 3 passed; exit 86"
    tool(tmp_path, monkeypatch, f'echo "$@" > "$(dirname "$0")/words"; {said}')
    found = gpu_tests.sanitize(60.0)
    assert found["exit_code"] == 86
    assert found["summary"] == "ERROR SUMMARY: 2 errors; pytest: 3 passed"
    words = (tmp_path / "words").read_text().split()
    assert words[:2] == ["--tool", "memcheck"]
    assert sys.executable in words


def test_no_sanitizer_is_no_failure(monkeypatch):
    monkeypatch.setattr(gpu_tests, "sanitizer", lambda: None)
    assert gpu_tests.sanitize(1.0) == {
        "exit_code": None,
        "summary": "not run: compute-sanitizer is not on PATH, nor in CUDA_HOME/bin",
    }


def test_tests_that_take_too_long_are_stopped_with_all_that_they_started(tmp_path, monkeypatch):
    tool(tmp_path, monkeypatch, "sleep 60 & sleep 60")
    began = time.monotonic()
    found = gpu_tests.sanitize(0.5)
    assert time.monotonic() - began < 20
    assert found["exit_code"] == gpu_tests.STOPPED
    assert "stopped after 0 s" in found["summary"]


def test_what_was_told_before_the_time_was_over_is_kept(monkeypatch):
    told = """
[gw1] [  1%] PASSED tests/kernels/a.py::test_one[x - y]
[gw0] [  2%] FAILED tests/kernels/a.py::test_two
tests/kernels/b.py::test_three PASSED                    [ 10%]
tests/kernels/b.py::test_four SKIPPED (no GPU)           [ 20%]
tests/kernels/a.py::test_two 
tests/kernels/a.py::test_five[x, y] 
tests/kernels/c.py:12: in test_six
stopped after 9 s"""  # noqa: W291
    monkeypatch.setattr(gpu_tests, "pytest", lambda *_: (gpu_tests.STOPPED, told))
    monkeypatch.setattr(gpu_tests, "processes", lambda: 1)
    found = gpu_tests.run_tests(60.0)
    assert found["summary"] == "stopped after 9 s: 2 PASSED, 1 FAILED, 1 SKIPPED until then"
    assert found["failures"] == ["tests/kernels/a.py::test_two"]
    assert found["running"] == ["tests/kernels/a.py::test_five[x, y]"]
    assert found["exit_code"] == gpu_tests.STOPPED


HANGING = """
import time
import pytest

@pytest.mark.gpu
@pytest.mark.parametrize("number", range(6))
def test_planted(number):
    time.sleep(60 * (number == 2))
    assert number != 1
"""


@pytest.mark.large
@pytest.mark.parametrize(("many", "passed"), [(1, 1), (2, 3)])
def test_what_hangs_and_what_cannot_be_imported_hides_no_other_result(tmp_path, monkeypatch, many, passed):
    """From pytest's own output: alone, and from several processes, of which one has another test waiting."""
    folder = tmp_path / "tests"
    folder.mkdir()
    (folder / "test_hanging.py").write_text(HANGING)
    (folder / "test_absent.py").write_text("import a_package_that_is_absent")
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = gpu\n")
    monkeypatch.setattr(gpu_tests, "ROOT", tmp_path)
    monkeypatch.setattr(gpu_tests, "TESTS", ("tests",))
    monkeypatch.setattr(gpu_tests, "processes", lambda: many)
    for name in [name for name in os.environ if name.startswith(("PYTEST", "COV"))]:
        monkeypatch.delenv(name)
    found = gpu_tests.run_tests(6.0 * many)
    assert found["exit_code"] == gpu_tests.STOPPED
    assert found["failures"] == ["tests/test_hanging.py::test_planted[1]"]
    assert found["running"] == ["tests/test_hanging.py::test_planted[2]"]
    assert f"{passed} PASSED" in found["summary"]
    if many == 1:
        return
    monkeypatch.setattr(gpu_tests, "MOST_SECONDS", 2)
    found = gpu_tests.run_tests(40.0)
    names = [f"tests/test_hanging.py::test_planted[{number}]" for number in (1, 2)]
    assert found["failures"] == ["tests/test_absent.py", *names]
    assert found["running"] == []
    assert "4 passed" in found["summary"]


PLANTED = """
import pytest, torch
from tests.kernels.triton import conftest
from tests.kernels.triton.conftest import pytest_runtest_logfinish, pytest_runtest_teardown

@pytest.mark.gpu
@pytest.mark.parametrize("number", range(12))
def test_planted(number, monkeypatch):
    if number == 3:
        def lost():
            raise RuntimeError("CUDA error: device-side assert triggered")
        torch.cuda.synchronize = lost
    torch.cuda.is_available = torch.cuda.is_initialized = lambda: True
    if number != 3 and torch.cuda.synchronize.__name__ != "lost":
        torch.cuda.synchronize = lambda: None
"""


@pytest.mark.large
def test_a_lost_device_ends_its_process_and_no_other_test(tmp_path):
    """The test that lost it is named, and the others run in another process."""
    (tmp_path / "conftest.py").write_text(
        "from tests.kernels.triton.conftest import pytest_runtest_logfinish, pytest_runtest_teardown\n"
    )
    (tmp_path / "test_planted.py").write_text(PLANTED)
    command = [sys.executable, "-m", "pytest", str(tmp_path), "-v", "-n", "2", "--max-worker-restart", "4"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "COV"))}
    done = subprocess.run(
        [*command, "-p", "no:cacheprovider", "-c", str(ROOT / "pyproject.toml"), "--rootdir", str(ROOT)],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    text = done.stdout + done.stderr
    assert re.search(r"ERROR \S*test_planted\[3\]", text), text[-3000:]
    assert "the device does not answer any more" in text
    assert len(set(re.findall(r"PASSED \S*(test_planted\[\d+\])", text))) == 12, text[-3000:]
    assert done.returncode != 0


def test_large_tests_run_behind_the_others_one_by_one(monkeypatch):
    asked = []

    def pytest_(words, limit, *_):
        asked.append(words)
        return (1, "FAILED tests/a.py::b - no\n= 1 failed in 2 s =") if len(asked) == 1 else (5, "no tests ran in 1 s")

    monkeypatch.setattr(gpu_tests, "pytest", pytest_)
    monkeypatch.setattr(gpu_tests, "processes", lambda: 4)
    found = gpu_tests.run_tests(60.0)
    assert asked[0][-6:-2] == ["-k", "not 2_to_the_31", "-n", "4"]
    assert asked[1][-2:] == ["-k", "2_to_the_31"]
    assert found["exit_code"] == 1
    assert found["summary"] == "1 failed in 2 s; then no tests ran in 1 s"
    assert found["failures"] == ["tests/a.py::b"]


# As ncu 2025.3 wrote it on an H200: a line of units first; columns that nobody asked for are there, too.
COUNTED = """==PROF== Connected to process 5
launches of: a layer
==PROF== Profiling "forward_windows_kernel" - 0: 0%....50%....100% - 5 passes
==PROF== Profiling "vectorized_elementwise_kernel<4, ...>" - 1: 0%....50%....100% - 5 passes
launches of: another
==PROF== Profiling "forward_windows_kernel" - 2: 0%....50%....100% - 5 passes
==PROF== Disconnected from process 5
"ID","Kernel Name","device__attribute_chip","gpu__time_duration.sum","lts__t_bytes.sum","launch__registers_per_thread"
"","","","ns","byte","register/thread"
"0","forward_windows_kernel","","286,144","1,350,314,784","122"
"1","void at::native::vectorized_elementwise_kernel<4, at::native::Add>(int)","","9536","420219136","16"
"2","forward_windows_kernel","","36288","","88"
"""


def test_the_profiler_s_counters_are_told_launch_by_launch(tmp_path, monkeypatch):
    (tmp_path / "said").write_text(COUNTED)
    tool(tmp_path, monkeypatch, f'echo "$@" > {tmp_path}/words; cat {tmp_path}/said; exit 3', "ncu")
    found = gpu_counters.count(60.0)
    assert found["summary"] == "3 launches counted, exit code 3"
    assert "gpu__time_duration.sum" in (tmp_path / "words").read_text()
    values = {(one["case"], one["provider"], one["quantity"]): one["samples"] for one in found["quantities"]}
    assert values == {
        ("a layer", "1. forward_windows_kernel", "time"): [286.144],
        ("a layer", "1. forward_windows_kernel", "second cache"): [1350.314784],
        ("a layer", "1. forward_windows_kernel", "registers"): [122.0],
        ("a layer", "2. void at::native::vectorized_elementwise_kernel", "time"): [9.536],
        ("a layer", "2. void at::native::vectorized_elementwise_kernel", "second cache"): [420.219136],
        ("a layer", "2. void at::native::vectorized_elementwise_kernel", "registers"): [16.0],
        ("another", "1. forward_windows_kernel", "time"): [36.288],
        ("another", "1. forward_windows_kernel", "registers"): [88.0],
    }


def test_counters_that_take_too_long_are_stopped(tmp_path, monkeypatch):
    tool(tmp_path, monkeypatch, "echo launches of: a layer; exec sleep 60", "ncu")
    assert gpu_counters.count(0.5)["summary"] == "0 launches counted, stopped after 0 s"


def test_no_profiler_is_told(monkeypatch):
    monkeypatch.setattr(gpu_counters, "profiler", lambda: None)
    assert gpu_counters.count(1.0)["summary"].startswith("not run: ncu is not on PATH")


def test_what_the_profiler_looks_at_runs(monkeypatch, capsys):
    """On the CPU, a case of two samples."""
    monkeypatch.setattr(gpu_counters, "BACKEND", "numba")
    few = [one for one in gpu_counters.cases("cpu") if one.name == "jena1" and one.dtype == "tf32"]
    monkeypatch.setattr(gpu_counters, "cases", lambda: [dataclasses.replace(few[0], shape={**few[0].shape, "N": 2})])
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "cudart", lambda: SimpleNamespace(cudaProfilerStart=int, cudaProfilerStop=int))
    gpu_counters.main()
    assert capsys.readouterr().out == "launches of: jena1 tf32 N 2\n"
