"""What one forward and backward pass keeps and needs at its peak, each side in a fresh process.

``saved`` is what autograd keeps for the backward pass: the bytes of the storages that it saves, each counted once, and
``saved_beside`` the same without the input and the parameters, which are there anyway. ``peak`` is how far the
process' resident memory rises above what it was before the step (input and parameters are there, gradients are not).

The resident set, and not torch's profiler, because kernels and oneDNN allocate past torch's allocator. It is
reproducible on Linux alone, where the high-water mark can be set back (``VmHWM`` in ``/proc``; ``getrusage`` reports
the same mark, but cannot forget the imports); where glibc gives large blocks back at once, as it does with a fixed
threshold; and with huge pages off, which round sizes up. A step with one sample comes first and loads all code.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.operations.steps import TensorStep
from benchmarks.registry import Candidate, Case, operation

__all__ = ["measure", "saved_bytes", "unavailable"]

ROOT = Path(__file__).resolve().parent.parent
STATUS, MARK = Path("/proc/self/status"), Path("/proc/self/clear_refs")
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
NO_HUGE_PAGES = 41  # prctl's PR_SET_THP_DISABLE


def unavailable() -> str | None:
    """Return why resident memory cannot be measured here, or ``None``."""
    return None if MARK.exists() and STATUS.exists() else "needs Linux's /proc"


def measure(candidate: Candidate) -> dict[str, int]:
    """Return the bytes ``saved``, ``saved_beside`` and the ``peak`` of the case's step, in a process of its own."""
    request = json.dumps({"case": candidate.case.as_dict(), "provider": candidate.provider.name})
    process = subprocess.run(
        [sys.executable, "-m", "benchmarks.memory"],
        input=request,
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | ALLOCATOR,
        timeout=280,
        check=False,
    )
    if process.returncode:
        raise RuntimeError(f"the step of {candidate} failed in a fresh process:\n{process.stderr}")
    found: dict[str, int] = json.loads(process.stdout.splitlines()[-1])
    return found


def in_this_process(case: Case, provider: str) -> dict[str, int]:
    """Return what :func:`measure` does, for a process that has done nothing else."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(NO_HUGE_PAGES, 1, 0, 0, 0)
    prepared(replace(case, shape={**case.shape, "N": 1}), provider).call()
    step = prepared(case, provider)
    gc.collect()
    MARK.write_text("5", encoding="ascii")
    before = status("VmRSS")
    step.call()
    peak = status("VmHWM") - before
    saved, beside = saved_bytes(step)
    return {"saved": saved, "saved_beside": beside, "peak": peak}


def prepared(case: Case, provider: str) -> Any:
    """Return a provider's step, its output's gradient laid out as the output is."""
    kind = operation(case.operation)
    step: Any = kind.step(case, kind.providers[provider].make(case), kind.inputs(case, "random"), case.torch_dtype)
    with torch.no_grad():
        step.output = step.compute()
    step.fit_gradient()
    step.output = torch.empty(0)
    step.prepare()
    return step


def saved_bytes(step: TensorStep) -> tuple[int, int]:
    """Return the bytes of all storages that the step's forward pass saves, and of those that are not its leaves'."""
    storages: dict[int, Any] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage  # kept, so that no address is used twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        step.compute()
    leaves = {leaf.untyped_storage().data_ptr() for leaf in (step.input, *step.parameters.values())}
    sizes = {address: storage.nbytes() for address, storage in storages.items()}
    return sum(sizes.values()), sum(size for address, size in sizes.items() if address not in leaves)


def status(name: str) -> int:
    """Return one of the process' sizes, in bytes."""
    line = next(line for line in STATUS.read_text(encoding="ascii").splitlines() if line.startswith(f"{name}:"))
    return 1024 * int(line.split()[1])


if __name__ == "__main__":
    asked = json.load(sys.stdin)
    print(json.dumps(in_this_process(Case.from_dict(asked["case"]), asked["provider"])))
