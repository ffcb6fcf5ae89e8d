"""Run the suites, write one results file, print its report: ``python -m benchmarks [NAME ...] [--quick]``."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks import report, results
from benchmarks.suites import SUITES

ROOT = Path(__file__).resolve().parent.parent
BUSY = 0.5  # processes that ran in the last minute, on average
PYTEST = (
    *("-q", "--no-header", "--disable-warnings", "--benchmark-quiet", "-p", "no:cacheprovider", "-r", "fE"),
    *("-o", "timeout=600"),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what the command line asks for and write results and report; return the suites' exit code.

    A run with a red check leaves no results file.
    """
    about = [f"  {suite.name:14}{suite.about}{' (on request)' * suite.on_request}" for suite in SUITES.values()]
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Check, then time seqconv and its peers in turn; write a results file and its report.",
        epilog="\n".join(["suites:", *about, "\nexample: python -m benchmarks windows --out windows.json"]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="run this suite alone (may be repeated)")
    parser.add_argument("--suite", action="append", choices=SUITES, help="the same by an option")
    parser.add_argument("--quick", action="store_true", help="fewer cases and rounds, no first calls: under 2 minutes")
    parser.add_argument("--device", default="cpu", help="cpu (the default) or cuda")
    parser.add_argument("--select", metavar="EXPRESSION", help="only tests whose names match, as in pytest -k")
    parser.add_argument("--out", type=Path, metavar="FILE", help="results file (benchmarks/results/DEVICE-DATE.json)")
    options = parser.parse_args(arguments)
    if unknown := [name for name in options.names if name not in SUITES]:
        parser.error(f"NAME must be one of {', '.join(SUITES)}, got {unknown[0]!r}")
    chosen = [*options.names, *(options.suite or ())] or [
        name for name, suite in SUITES.items() if not suite.on_request
    ]
    words = [*(f"--suite={name}" for name in chosen), *["--quick"] * options.quick, f"--device={options.device}"]
    words += ["-k", options.select] if options.select else []
    load = round(os.getloadavg()[0], 2)
    if load > BUSY:
        print(f"benchmarks: this machine is busy (load {load}): the figures will be those of what is left of it")
    with tempfile.TemporaryDirectory(prefix="seqconv-benchmarks-") as folder:
        figures, notes = Path(folder, "figures.json"), Path(folder, "notes.json")
        process = subprocess.run(
            [sys.executable, "-m", "pytest", "benchmarks", *PYTEST, *words, f"--benchmark-json={figures}",
             f"--notes={notes}"],
            cwd=ROOT,
            # pytest-benchmark would measure nothing if it thought itself in one of pytest-xdist's workers
            env={name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")},
            check=False,
        )  # fmt: skip
        if process.returncode:
            print(f"benchmarks: failed (pytest's exit code {process.returncode}): no results were written")
            return process.returncode
        measured = json.loads(figures.read_text(encoding="utf-8"))["benchmarks"] if figures.exists() else []
        found = json.loads(notes.read_text(encoding="utf-8"))
    command = shlex.join(["python", "-m", "benchmarks", *(sys.argv[1:] if arguments is None else arguments)])
    run = results.collect(
        [one["extra_info"] for one in measured], found["skipped"], command=command, load=load, exit_code=0,
        quantities=found["quantities"],
    )  # fmt: skip
    path = options.out or results.default_path(options.device)
    results.write(path, run)
    print(f"\n{report.terminal(run)}")
    for written in (path, *report.write_report(path, run)):
        print(f"written: {written}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
