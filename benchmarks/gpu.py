"""The GPU's part in one command: its tests, then its benchmarks, into ``results/gpu-CARD-DATE.json``.

Without a GPU it says so, says what would run, and ends well. The tests get at most 45 % of ``--minutes`` and 100
seconds, the benchmarks what is left (see :mod:`.gpu_plan` for their order); what did not fit is listed in the report.
``--parts sanitizer`` runs a few tests under compute-sanitizer, ``--parts counters`` a few layers under Nsight Compute,
see :mod:`.gpu_counters`. Red tests do not keep the benchmarks from what passes
its own check, nor does a provider that raises, but the exit code is 1.

The packages torch, triton and numpy are needed. Without pytest no test runs, without pytest-xdist they run one by one,
without matplotlib there is no plot; Numba, pandas, pooch, tabulate, tqdm and pytest-benchmark may be missing. A folder
of wheels that the environment variable SEQCONV_WHEELS names is installed before, without a network.
"""

from __future__ import annotations

import argparse
import importlib.util
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import gpu_counters, gpu_plan, gpu_run, gpu_tests, gpu_warm, report, results, roofline

ROOT = Path(__file__).resolve().parent.parent
PARTS = ("tests", "sanitizer", "benchmarks", "counters")
TESTS_SHARE, TESTS_SECONDS = 0.45, 110.0
SANITIZER_SECONDS = 120.0
COUNTERS_SECONDS = 90.0
REPORT_SECONDS = 15.0
NEEDED = ("triton", "numpy")
OF_USE = {
    "pytest": "no tests run",
    "xdist": "tests run one by one",
    "hypothesis": "some tests cannot run",
    "numba": "nothing here misses it",
    "matplotlib": "no plot is drawn",
    "tabulate": "tables are plain",
}
QUERY = "driver_version,clocks.sm,clocks.mem,clocks.max.sm,power.draw,power.limit,temperature.gpu"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the GPU tests and benchmarks; return 0 if all went well, or if there is no GPU."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=5.0, help="the time to stay within (5)")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS[::2]), help="these (tests, benchmarks)")
    parser.add_argument("--stages", nargs="+", metavar="NAME", help=f"only these stages of the benchmarks: {names()}")
    parser.add_argument("--quick", action="store_true", help="only the promised figures and max-autotune")
    parser.add_argument("--device", default="cuda", help="cuda (the default); cpu rehearses the benchmarks")
    parser.add_argument("--out", type=Path, metavar="FILE", help="results file")
    options = parser.parse_args(arguments)
    if options.stages and (unknown := set(options.stages) - {stage.name for stage in gpu_plan.stages("cpu")}):
        parser.error(f"--stages must be of {names()}, got {', '.join(sorted(unknown))}")
    on_gpu = options.device != "cpu"
    if on_gpu and not torch.cuda.is_available():
        print(
            f"benchmarks: torch {torch.__version__} sees no GPU here; on a machine with one this runs the tests marked "
            f"gpu, a few of them under compute-sanitizer, then benchmarks: {names()} "
            f"(layers of the suite conv_pool, whole models, random shapes); --device cpu rehearses those"
        )
        return 0
    if lacking := missing(NEEDED):
        print(
            f"benchmarks: the GPU's part needs the packages {', '.join(lacking)}: install them, or name a folder with"
        )
        print("their wheels in the environment variable SEQCONV_WHEELS and start over")
        return 2
    for package in missing(tuple(OF_USE)):
        print(f"benchmarks: the package {package} is not installed: {OF_USE[package]}")
    start, budget = time.monotonic(), 60 * options.minutes
    card = torch.cuda.get_device_name() if on_gpu else "rehearsal on a CPU"
    print(f"benchmarks: {card}: {', '.join(options.parts)} within {options.minutes:g} minutes", flush=True)
    clocks = {"before": smi(on_gpu)}
    tests = run_tests(options.parts, budget) if on_gpu else None
    kind = f"gpu-{re.sub('[^A-Za-z0-9]+', '-', card)}" if on_gpu else "rehearsal"
    path = options.out or results.default_path(kind)
    command = " ".join(["python -m benchmarks.gpu", *(sys.argv[1:] if arguments is None else arguments)])

    def save(found: gpu_run.Found) -> dict[str, Any]:
        clocks["after"] = smi(on_gpu)
        gpu = {"card": card, "driver": clocks["before"].partition(",")[0], "clocks": clocks, "limits": found.limits}
        whole = results.collect(
            [with_share(one, found.limits) for one in found.figures], found.left_out, command=command, load=0.0,
            exit_code=exit_code(tests, found), tests=tests, quantities=found.quantities, failed=found.failed, gpu=gpu,
        )  # fmt: skip
        results.write(path, whole)
        return whole

    found = gpu_run.Found()
    if "benchmarks" in options.parts:
        plan = gpu_plan.stages(options.device, quick=options.quick)
        plan = [stage for stage in plan if not options.stages or stage.name in ("limits", *options.stages)]
        found = gpu_run.run(plan, options.device, budget - (time.monotonic() - start) - REPORT_SECONDS, save=save)
    if on_gpu and "counters" in options.parts:
        left = max(budget - (time.monotonic() - start), REPORT_SECONDS)
        counted = gpu_counters.count(min(left, COUNTERS_SECONDS))
        print(f"benchmarks: counters: {counted['summary']}")
        found.quantities += counted["quantities"]
    whole = save(found)
    print()
    print(report.terminal(whole))
    for written in (path, *report.write_report(path, whole)):
        print(f"written: {written}")
    return int(whole["exit_code"])


def names() -> str:
    """Return the stages' names."""
    return ", ".join(repr(stage.name) if " " in stage.name else stage.name for stage in gpu_plan.stages("cpu"))


def missing(packages: Sequence[str]) -> list[str]:
    """Return those of the packages that are not installed."""
    return [name for name in packages if importlib.util.find_spec(name) is None]


def run_tests(parts: Sequence[str], budget: float) -> dict[str, Any] | None:
    """Run what is asked for of the tests; return what results files say of them."""
    tests = None
    if "tests" in parts:
        with gpu_warm.beside("cuda", gpu_tests.processes() if "benchmarks" in parts else 0):
            tests = gpu_tests.run_tests(min(TESTS_SHARE * budget, TESTS_SECONDS))
    if "sanitizer" in parts:
        tests = tests or {"exit_code": 0, "summary": "not asked for", "seconds": 0.0}
        tests["sanitizer"] = gpu_tests.sanitize(min(budget, SANITIZER_SECONDS))
    return tests


def exit_code(tests: dict[str, Any] | None, found: gpu_run.Found) -> int:
    """Return 1 if a test, the sanitizer or one of seqconv's own providers failed."""
    red = bool(tests) and bool(tests["exit_code"] or tests.get("sanitizer", {}).get("exit_code"))  # type: ignore[index]
    return int(red or any("seqconv" in one["provider"] for one in found.failed))


def with_share(figures: dict[str, Any], limits: dict[str, Any] | None) -> dict[str, Any]:
    """Return a measurement's figures with how many times the card's floor they are."""
    median = results.measurement(figures)["seconds"]["median"]
    share = roofline.share(figures["case"], median, limits)
    return figures if share is None else {**figures, "roofline": share}


def smi(on_gpu: bool) -> str:
    """Return what nvidia-smi says of the first card (driver, clocks, power, temperature), if it is there."""
    if not on_gpu or shutil.which("nvidia-smi") is None:
        return ""
    command = ["nvidia-smi", f"--query-gpu={QUERY}", "--format=csv,noheader", "--id=0"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
