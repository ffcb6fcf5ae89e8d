"""The tests marked ``gpu``, several at a time, and a few of them under compute-sanitizer where there is one."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = ["run_tests", "sanitize", "sanitizer"]

ROOT = Path(__file__).resolve().parent.parent
NO_TESTS = 5  # pytest's exit code where nothing was collected
LARGE = "2_to_the_31"  # tests whose names say so take most of a card's memory: one after the other
MOST_PROCESSES = 8
SANITIZED = tuple(f"tests/kernels/triton/test_{name}.py" for name in ("conv_pool_gpu", "gather_gpu", "gather_triton"))
# Small sizes in both layouts: instrumented kernels take many times as long.
SANITIZED_NAMES = "current_stream or second_batch_size_or_length or out_of_range"
SANITIZER_EXIT = 86
MISSING = "not run: the package pytest is not installed"


def run_tests(limit: float) -> dict[str, Any]:
    """Run the tests for at most ``limit`` seconds; return their exit code, summary and seconds."""
    began = time.monotonic()
    if importlib.util.find_spec("pytest") is None:
        return {"exit_code": 1, "summary": MISSING, "seconds": 0.0}
    many = processes()
    parts = [(["-k", f"not {LARGE}", "-n", str(many)]), ["-k", LARGE]] if many > 1 else [[]]
    codes, texts = [], []
    for words in parts:
        left = limit - (time.monotonic() - began)
        if left <= 0:
            codes.append(1)
            texts.append(f"no time was left for {' '.join(words)}")
            continue
        code, text = pytest(["tests", "-m", "gpu", "-q", *words], left)
        codes.append(0 if code == NO_TESTS else code)
        texts.append(text)
    lines = {line for text in texts for line in text.splitlines()}
    failures = sorted(line for line in lines if line.startswith(("FAILED", "ERROR")))[:20]
    return {
        "exit_code": max(codes),
        "summary": "; then ".join(map(last_line, texts)),
        "failures": failures,
        "seconds": round(time.monotonic() - began, 1),
    }


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
    code, text = pytest(
        [*SANITIZED, "-q", "-x", "-m", "gpu", "-k", SANITIZED_NAMES],
        limit,
        before,
        {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},
    )
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
    return min(MOST_PROCESSES, max((os.cpu_count() or 1) // 2, 1))


def pytest(
    words: Sequence[str], limit: float, before: Sequence[str] = (), variables: Mapping[str, str] | None = None
) -> tuple[int, str]:
    """Run pytest, print its output, and return its exit code, 1 if it took too long, and the output."""
    options = ["-p", "no:cacheprovider"]
    if importlib.util.find_spec("pytest_timeout") is None:
        options += ["-o", "addopts=--import-mode=importlib"]  # with --strict-config its option would be an error
    process = subprocess.Popen(
        [*before, sys.executable, "-m", "pytest", *words, *options],
        cwd=ROOT, env=os.environ | dict(variables or {}), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,
    )  # fmt: skip
    try:
        text, _ = process.communicate(timeout=limit)
        code = process.returncode
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, 9)  # the processes that it started, too: they would keep the card busy
        text, _ = process.communicate()
        text, code = f"{text}\nstopped after {limit:.0f} s", 1
    print(text, flush=True)
    return code, text


def last_line(text: str) -> str:
    """Return the last line, without what frames it."""
    lines = text.strip().splitlines()
    return lines[-1].strip("= ") if lines else "no output"
