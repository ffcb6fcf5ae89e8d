"""The hardware's counters of single launches, by Nsight Compute where it is: ``make gpu ARGS="--parts counters"``.

Both passes of a few layers run once under the profiler, which repeats each launch until it has seen everything: its
times are of empty caches, and longer than those of the stage "kernels alone". What the counters tell is
why: how many bytes and instructions a launch takes, how busy its parts are, what its warps wait for.
"""

from __future__ import annotations

import csv
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.checking import precision
from benchmarks.gpu_parts import TimedLayer
from benchmarks.operations.gather import embedding_case
from benchmarks.operations.layers import layer_case
from benchmarks.registry import Case

ROOT = Path(__file__).resolve().parent.parent
BACKEND = "triton"
EVERYTHING = (True, True, True)  # the gradients that are wanted
# Of each counter what a column is called, its unit, and how many of the profiler's units make one.
COUNTERS = {
    "gpu__time_duration.sum": ("time", "µs", 1e3),
    "dram__bytes.sum": ("memory", "MB", 1e6),
    "lts__t_bytes.sum": ("second cache", "MB", 1e6),
    "smsp__inst_executed.sum": ("instructions", "millions", 1e6),
    "smsp__issue_active.avg.pct_of_peak_sustained_active": ("issuing", "%", 1),
    "sm__pipe_tensor_cycles_active.avg.pct_of_peak_sustained_active": ("tensor cores", "%", 1),
    "l1tex__data_pipe_lsu_wavefronts.avg.pct_of_peak_sustained_elapsed": ("loads and stores", "%", 1),
    "sm__warps_active.avg.pct_of_peak_sustained_active": ("warps", "%", 1),
    "smsp__average_warps_issue_stalled_long_scoreboard_per_issue_active.ratio": ("waiting for memory", "warps", 1),
    "smsp__average_warps_issue_stalled_short_scoreboard_per_issue_active.ratio": ("for shared memory", "warps", 1),
    "smsp__average_warps_issue_stalled_barrier_per_issue_active.ratio": ("at barriers", "warps", 1),
    "launch__registers_per_thread": ("registers", "a thread", 1),
}
MARK = "launches of: "


def cases(device: str = "cuda") -> Iterator[Case]:
    """Yield the layers that are looked at."""
    for name, dtype in (("imdb1", "bfloat16"), ("imdb1", "tf32"), ("jena1", "bfloat16"), ("jena1", "tf32")):
        yield layer_case(name, "forward_backward", batch=4096, dtype=dtype, layout="channels_last", device=device)
    tokens = embedding_case("imdb1", "forward_backward", device=device)
    for batch in (128, 4096):
        yield replace(tokens, dtype="tf32", shape={**tokens.shape, "N": batch})


def count(limit: float) -> dict[str, Any]:
    """Run the passes under the profiler for at most ``limit`` seconds; return quantities, summary and seconds."""
    began = time.monotonic()
    tool = profiler()
    if tool is None:
        return {"quantities": [], "summary": "not run: ncu is not on PATH, nor in /opt/nvidia/nsight-compute"}
    command = [tool, "--clock-control", "none", "--profile-from-start", "off", "--csv", "--page", "raw"]
    command += ["--metrics", ",".join(COUNTERS), sys.executable, "-m", "benchmarks.gpu_counters"]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=limit)
        text, ended = done.stdout, f"exit code {done.returncode}"
    except subprocess.TimeoutExpired as late:
        text, ended = _text(late.stdout), f"stopped after {limit:.0f} s"
    found = quantities(text)
    launches = len({(one["case"], one["provider"]) for one in found})
    return {
        "quantities": found,
        "summary": f"{launches} launches counted, {ended}",
        "seconds": round(time.monotonic() - began, 1),
    }


def quantities(text: str) -> list[dict[str, Any]]:
    """Return what the profiler printed, as results files have it: a case's launches in their order."""
    case, case_of = "", {}
    for line in text.splitlines():
        if line.startswith(MARK):
            case = line.removeprefix(MARK)
        elif told := re.match(r'==PROF== Profiling ".*?" - (\d+)', line):
            case_of[told[1]] = case
    table = list(csv.DictReader(line for line in text.splitlines() if line.startswith('"')))
    found: list[dict[str, Any]] = []
    places: dict[str, int] = {}
    for launch in (one for one in table if one["ID"]):  # the first line has units
        case = case_of.get(launch["ID"], "")
        places[case] = places.get(case, 0) + 1
        name = f"{places[case]}. {launch['Kernel Name'].split('<')[0].split('(')[0]}"
        for counter, (quantity, unit, scale) in COUNTERS.items():
            value = float((launch.get(counter) or "nan").replace(",", ""))
            if value == value:
                entry = {"suite": "counters", "case": case, "provider": name, "quantity": quantity, "unit": unit}
                found.append({**entry, "samples": [value / scale]})
    return found


def profiler() -> str | None:
    """Return the path of Nsight Compute's command, or ``None``."""
    folders = sorted(map(str, Path("/opt/nvidia/nsight-compute").glob("*")), reverse=True)
    places = [os.environ.get("PATH", ""), *folders, "/usr/local/cuda/bin"]
    return shutil.which("ncu", path=os.pathsep.join(places))


def main() -> None:
    """Run the passes: what the profiler looks at."""
    for case in cases():
        with precision(case):
            layer = TimedLayer(case, BACKEND)
            layer.copies = 1
            for watched in (False, True):
                if watched:
                    print(f"{MARK}{case.name} {case.dtype} N {case.shape['N']}", flush=True)
                    torch.cuda.cudart().cudaProfilerStart()  # type: ignore[no-untyped-call]
                layer.forward(0, want_argmax=True)
                layer.backward(0, EVERYTHING)
                torch.cuda.synchronize()
                if watched:
                    torch.cuda.cudart().cudaProfilerStop()  # type: ignore[no-untyped-call]


def _text(output: Any) -> str:
    return output.decode() if isinstance(output, bytes) else output or ""


if __name__ == "__main__":
    main()
