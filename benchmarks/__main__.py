"""Run the suites, write one results file, print its report: ``python -m benchmarks [--suite NAME] [--quick]``."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import report, results

ROOT = Path(__file__).resolve().parent.parent
BUSY = 0.5  # processes that ran in the last minute, on average
SUITES = ("windows", "conv_pool", "gather", "layers", "models", "peak", "dispatch", "memory")
GPU_SUITES = ("conv_pool", "layers")
ON_REQUEST = ("gather_shapes", "peers", "sweep")  # several minutes each


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what the command line asks for; return the suites' exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Check, then time seqconv and its peers in turn; write a results file and its report.",
        epilog="examples: python -m benchmarks --quick    python -m benchmarks --suite windows --out windows.json",
    )
    parser.add_argument(
        "--suite", action="append", choices=SUITES + ON_REQUEST, help="run this suite alone (may be repeated)"
    )
    parser.add_argument("--quick", action="store_true", help="fewer cases and rounds, no first calls: under 2 minutes")
    parser.add_argument("--device", default="cpu", help="cpu (the default) or cuda")
    parser.add_argument("--select", metavar="EXPRESSION", help="only tests whose names match, as in pytest -k")
    parser.add_argument("--out", type=Path, metavar="FILE", help="results file (benchmarks/results/DEVICE-DATE.json)")
    options = parser.parse_args(arguments)
    words = ["--quick"] * options.quick + (["-k", options.select] if options.select else [])
    command = shlex.join(["python", "-m", "benchmarks", *(sys.argv[1:] if arguments is None else arguments)])
    path = options.out or results.default_path(options.device)
    return run(options.suite or SUITES, options.device, words, path, command)


def run(
    suites: Sequence[str],
    device: str,
    words: Sequence[str],
    path: Path,
    command: str,
    tests: Mapping[str, Any] | None = None,
) -> int:
    """Run suites in a process of their own and write their results and report; return their exit code.

    ``words`` are further options of the suites (see ``conftest``). A run with a red check leaves no results file.
    """
    load = round(os.getloadavg()[0], 2)
    if load > BUSY:
        print(f"benchmarks: this machine is busy (load {load}): the figures will be those of what is left of it")
    with tempfile.TemporaryDirectory(prefix="seqconv-benchmarks-") as folder:
        figures, skips, quantities = (Path(folder, f"{name}.json") for name in ("figures", "skips", "quantities"))
        files = [str(Path("benchmarks", f"test_{suite}.py")) for suite in suites]
        options = [
            "-q",
            "--no-header",
            "--disable-warnings",
            "--benchmark-quiet",
            "-p",
            "no:cacheprovider",
            "-r",
            "fE",
            "-o",
            "timeout=600",
        ]
        process = subprocess.run(
            [
                *(sys.executable, "-m", "pytest", *files, *options, f"--device={device}"),
                *(f"--benchmark-json={figures}", f"--skips={skips}", f"--quantities={quantities}", *words),
            ],
            cwd=ROOT,
            # pytest-benchmark would measure nothing if it thought itself in one of pytest-xdist's workers
            env={name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")},
            check=False,
        )
        if process.returncode:
            print(f"benchmarks: failed (pytest's exit code {process.returncode}): no results were written")
            return process.returncode
        measured = json.loads(figures.read_text(encoding="utf-8"))["benchmarks"] if figures.exists() else []
        skipped, noted = (json.loads(path.read_text(encoding="utf-8")) for path in (skips, quantities))
    found = results.collect(
        [one["extra_info"] for one in measured],
        skipped,
        command=command,
        load=load,
        exit_code=process.returncode,
        tests=tests,
        quantities=noted,
    )
    results.write(path, found)
    print()
    print(report.terminal(found))
    for written in (path, *report.write_report(path, found)):
        print(f"written: {written}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
