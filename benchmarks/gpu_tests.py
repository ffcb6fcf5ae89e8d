"""The tests marked ``gpu``, several at a time, and a few of them under compute-sanitizer where there is one."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
NO_TESTS = 5  # pytest's exit code where nothing was collected
LARGE = "2_to_the_31"  # tests whose names say so take most of a card's memory: one after the other
MOST_PROCESSES = 14
MOST_RESTARTS = 20
MOST_SECONDS = 90  # for a test
MOST_LARGE = 30  # for all of the large ones
STOPPED = 124  # the exit code of tests that took too long
TESTS = ("tests/kernels/triton",)  # whose modules import nothing that a GPU's machine may lack
DENSE, GATHERED = "tests/kernels/triton/test_conv_pool_gpu.py", "tests/kernels/triton/test_gather_gpu.py"
# Both passes of dense, global, direct and folded layers: instrumented kernels take many times as long.
SANITIZED = (
    f"{DENSE}::test_runs_on_the_current_stream[pool0]",
    f"{DENSE}::test_runs_on_the_current_stream[pool1]",
    f"{DENSE}::test_runs_on_the_current_stream[None]",
    f"{GATHERED}::test_runs_on_the_current_stream[tokens-pool0-direct]",
    f"{GATHERED}::test_runs_on_the_current_stream[tokens-None-folded]",
    f"{GATHERED}::test_runs_on_the_current_stream[windows-pool0-folded]",
)
SANITIZER_EXIT = 86
MISSING = "not run: the package pytest is not installed"


def run_tests(limit: float) -> dict[str, Any]:
    """Run the tests for at most ``limit`` seconds; return their exit code, summary and seconds.

    What was told of a test until then stands in the result, also where the time was over.
    """
    began = time.monotonic()
    if importlib.util.find_spec("pytest") is None:
        return {"exit_code": 1, "summary": MISSING, "seconds": 0.0}
    many = processes()
    # Another process takes the place of one whose device is lost.
    several = ["-k", f"not {LARGE}", "-n", str(many), "--max-worker-restart", str(MOST_RESTARTS)]
    codes, summaries, failures, under_way = [], [], [], []
    for words in [several, ["-k", LARGE]] if many > 1 else [[]]:
        left = limit - (time.monotonic() - began)
        if left <= 0:
            codes.append(1)
            summaries.append(f"no time was left for {' '.join(words)}")
            continue
        left = min(left, MOST_LARGE) if words == ["-k", LARGE] else left
        # A module that cannot be imported is an error, and the others' tests run.
        given = [*TESTS, "-m", "gpu", "-v", "--tb=short", "--continue-on-collection-errors", *words]
        code, text = pytest(given, left)
        outcomes = outcomes_of(text)
        codes.append(0 if code == NO_TESTS else code)
        counts = ", ".join(f"{len(names)} {outcome}" for outcome, names in outcomes.items())
        summaries.append(last_line(text) if code != STOPPED else f"{last_line(text)}: {counts or 'nothing'} until then")
        failures += outcomes.get("FAILED", []) + outcomes.get("ERROR", [])
        under_way += running(text) if code == STOPPED else []
    return {
        "exit_code": max(codes),
        "summary": "; then ".join(summaries),
        "failures": sorted(set(failures))[:40],
        "running": under_way,
        "seconds": round(time.monotonic() - began, 1),
    }


def outcomes_of(text: str) -> dict[str, list[str]]:
    """Return the tests by outcome, as ``pytest -v`` tells them one by one, alone or from several processes."""
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        told = re.match(r"(?:\[gw\d+\] \[ *\d+%\] )?(PASSED|FAILED|ERROR|SKIPPED) (tests/\S.*)", line)
        alone = re.match(r"(tests/\S.*?) (PASSED|FAILED|ERROR|SKIPPED)\b", line)
        if told:
            outcome, name = told.groups()
        elif alone:
            name, outcome = alone.groups()
        else:
            continue
        name = name.partition(" - ")[0].strip()
        if name not in found.setdefault(outcome, []):
            found[outcome].append(name)
    return found


def running(text: str) -> list[str]:
    """Return the tests that were begun and not ended: ``pytest -v`` writes a test's name when it begins."""
    ended = {name for names in outcomes_of(text).values() for name in names}
    begun = re.findall(r"^(tests/\S*\.py::.*?) *$", text, re.MULTILINE)
    return [name for name in dict.fromkeys(begun) if name not in ended and not outcomes_of(name)]


def sanitize(limit: float) -> dict[str, Any]:
    """Run a few tests under compute-sanitizer's memcheck; return exit code (``None`` if it did not run) and summary."""
    began = time.monotonic()
    tool = sanitizer()
    if tool is None:
        return {"exit_code": None, "summary": "not run: compute-sanitizer is not on PATH, nor in CUDA_HOME/bin"}
    if importlib.util.find_spec("pytest") is None:
        return {"exit_code": None, "summary": MISSING}
    before = [tool, "--tool", "memcheck", "--report-api-errors", "no", "--error-exitcode", str(SANITIZER_EXIT)]
    # Each tensor as an allocation of its own: beyond one in torch's pool nothing would be seen.
    code, text = pytest([*SANITIZED, "-q", "-x"], limit, before, {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"})
    found = re.findall(r"ERROR SUMMARY: .*", text)
    summary = f"{found[-1]}; pytest: {last_line(text)}" if found else last_line(text)
    return {"exit_code": code, "summary": summary, "seconds": round(time.monotonic() - began, 1)}


def sanitizer() -> str | None:
    """Return the path of compute-sanitizer, or ``None``."""
    folders = [os.path.join(home, "bin") for home in (os.environ.get("CUDA_HOME"), "/usr/local/cuda") if home]
    return shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path=os.pathsep.join(folders))


def processes() -> int:
    """Return how many tests run at a time."""
    if importlib.util.find_spec("xdist") is None:
        return 1
    return min(MOST_PROCESSES, max((os.cpu_count() or 1) - 2, 1))


def pytest(
    words: Sequence[str], limit: float, before: Sequence[str] = (), variables: Mapping[str, str] | None = None
) -> tuple[int, str]:
    """Run pytest, print its output as it comes, and return its exit code, ``STOPPED`` if it took too long, and it."""
    options = ["-p", "no:cacheprovider"]
    if importlib.util.find_spec("pytest_timeout") is None:
        options += ["-o", "addopts=--import-mode=importlib"]  # with --strict-config its option would be an error
    else:
        # Who waits for a kernel that never ends hears no signal; pytest-xdist replaces the process that a thread ends.
        options += ["--timeout", str(MOST_SECONDS), "--timeout-method", "thread" if "-n" in words else "signal"]
    process = subprocess.Popen(
        [*before, sys.executable, "-m", "pytest", *words, *options],
        cwd=ROOT, env=os.environ | dict(variables or {}), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,
    )  # fmt: skip
    late = threading.Event()

    def stop() -> None:
        late.set()
        os.killpg(process.pid, signal.SIGKILL)  # the processes that it started, too: they would keep the card busy

    timer = threading.Timer(limit, stop)
    timer.start()
    lines = []
    try:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            lines.append(line)
        code = process.wait()
    finally:
        timer.cancel()
    if late.is_set():
        lines.append(f"\nstopped after {limit:.0f} s")
        code = STOPPED
    return code, "".join(lines)


def last_line(text: str) -> str:
    """Return the last line, without what frames it."""
    lines = text.strip().splitlines()
    return lines[-1].strip("= ") if lines else "no output"
