"""What only a fresh process shows: the seconds of a first call, and the memory of a forward and backward pass.

The ``seconds`` of a first call run from the provider's making to the end of its first call, with empty compilation
caches as on a new machine, and with the caches that left. Importing torch, seqconv and Numba and making the inputs come
before, and are the same for every provider; a kernel's own module, which its first call imports, and loading what was
compiled from the disk cache are in it. Who has not imported Numba before waits for that too.

Of memory, ``saved`` is what autograd keeps for the backward pass: the bytes of the storages that it saves, each
counted once, and ``saved_beside`` the same without the input and the parameters, which are there anyway. ``peak`` is
how far the process' resident memory rises above what it was before the step (input and parameters are there, gradients
are not). The resident set, and not torch's profiler, because kernels and oneDNN allocate past torch's allocator. It is
reproducible on Linux alone, where the high-water mark can be set back (``VmHWM`` in ``/proc``; ``getrusage`` reports
the same mark, but cannot forget the imports); where glibc gives large blocks back at once, as it does with a fixed
threshold; and with huge pages off, which round sizes up. A step with one sample comes first and loads all code.
"""

from __future__ import annotations

import ctypes
import gc
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.checking import precision
from benchmarks.operations import operation
from benchmarks.operations.steps import TensorStep
from benchmarks.registry import Case, Contender
from benchmarks.worker import Worker

CACHES = ("NUMBA_CACHE_DIR", "TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR")
STATUS, MARK = Path("/proc/self/status"), Path("/proc/self/clear_refs")
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
NO_HUGE_PAGES = 41  # prctl's PR_SET_THP_DISABLE


def asked(function: str, candidate: Contender, environment: Mapping[str, str]) -> Any:
    """Return what a function of this module gives for a candidate in a process of its own."""
    with Worker(f"the step of {candidate}", environment=environment) as worker:
        arguments = {"case": candidate.case.as_dict(), "provider": candidate.provider.name}
        return worker.ask(f"benchmarks.fresh:{function}", patience=280.0, **arguments)


def first_calls(candidate: Contender) -> dict[str, float]:
    """Return the seconds of a first call with ``empty_caches`` and with ``warm_caches``."""
    with tempfile.TemporaryDirectory(prefix="seqconv-cold-") as folder:
        caches = {name: str(Path(folder, name)) for name in CACHES}
        return {state: asked("first_call", candidate, caches) for state in ("empty_caches", "warm_caches")}


def first_call(case: Mapping[str, Any], provider: str) -> float:
    """Return the seconds of a provider's first call in this process."""
    one = Case.from_dict(case)
    kind = operation(one.operation)
    inputs = kind.inputs(one, kind.values[0])
    with precision(one):
        if one.device != "cpu":
            torch.empty(1, device=one.device)  # the driver's own start is no provider's
        # Nor are torch's own imports at its first backward pass.
        torch.autograd.backward(torch.ones((), requires_grad=True), torch.ones(()))
        start = time.perf_counter()
        kind.step(one, kind.providers[provider].make(one), inputs, one.torch_dtype).call()
        if one.device != "cpu":
            torch.cuda.synchronize()
        return time.perf_counter() - start


def no_memory() -> str | None:
    """Return why resident memory cannot be measured here, or ``None``."""
    return None if MARK.exists() and STATUS.exists() else "needs Linux's /proc"


def memory(candidate: Contender) -> dict[str, int]:
    """Return the bytes ``saved``, ``saved_beside`` and the ``peak`` of the case's step, in a process of its own."""
    found: dict[str, int] = asked("memory_here", candidate, ALLOCATOR)
    return found


def memory_here(case: Mapping[str, Any], provider: str) -> dict[str, int]:
    """Return what :func:`memory` does, for a process that has done nothing else."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(NO_HUGE_PAGES, 1, 0, 0, 0)
    one = Case.from_dict(case)
    prepared(replace(one, shape={**one.shape, "N": 1}), provider).call()
    step = prepared(one, provider)
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
