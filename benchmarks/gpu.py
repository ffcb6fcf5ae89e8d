"""The GPU's part in one command: its tests, then its benchmarks, into ``results/gpu-CARD-DATE.json``.

Without a GPU it says so, says what would run, and ends well. The tests get at most half of ``--minutes``, the
benchmarks what is left; what did not fit (the slow providers come last) is listed in the report.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import __main__ as suites
from benchmarks import results

WHAT = f"the tests marked gpu, then the suites {', '.join(suites.GPU_SUITES)} with --device=cuda"
NO_TESTS = 5  # pytest's exit code where nothing was collected
REPORT_SECONDS = 30.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the GPU tests and benchmarks; return 0 if they passed, or if there is no GPU."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--minutes", type=float, default=8.5, help="the time to stay within (8.5)")
    parser.add_argument("--quick", action="store_true", help="one precision, one batch size")
    parser.add_argument("--out", type=Path, metavar="FILE", help="results file")
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print(f"benchmarks: torch {torch.__version__} sees no GPU here; on a machine with one this runs {WHAT}")
        return 0
    start, budget = time.monotonic(), 60 * options.minutes
    card = torch.cuda.get_device_name()
    print(f"benchmarks: {card}: {WHAT}, within {options.minutes:g} minutes", flush=True)
    tests = run_tests(budget / 2)
    left = budget - (time.monotonic() - start) - REPORT_SECONDS
    path = options.out or results.default_path(f"gpu-{re.sub('[^A-Za-z0-9]+', '-', card)}")
    words = [f"--time-budget={left:.0f}", "--no-cold"] + ["--quick"] * options.quick
    code = suites.run(suites.GPU_SUITES, "cuda", words, path, "python -m benchmarks.gpu", tests)
    return int(tests["exit_code"]) or code


def run_tests(limit: float) -> dict[str, Any]:
    """Run the tests marked ``gpu`` for at most ``limit`` seconds; return their exit code, summary and seconds."""
    began = time.monotonic()
    command = [sys.executable, "-m", "pytest", "tests", "-m", "gpu", "-q", "-p", "no:cacheprovider"]
    try:
        process = subprocess.run(
            command, cwd=suites.ROOT, timeout=limit, stdout=subprocess.PIPE, text=True, check=False
        )
        print(process.stdout, flush=True)
        code = 0 if process.returncode == NO_TESTS else process.returncode
        summary = process.stdout.strip().splitlines()[-1].strip("= ") if process.stdout.strip() else "no output"
    except subprocess.TimeoutExpired as error:
        print(error.stdout or "", flush=True)
        code, summary = 1, f"stopped after {limit:.0f} s"
    return {"exit_code": code, "summary": summary, "seconds": round(time.monotonic() - began, 1)}


if __name__ == "__main__":
    sys.exit(main())
