"""Compile while the tests run, in background processes that each do a part of the plan.

Kernels of seqconv do not depend on the batch, so two samples will do, except for tokens, where the batch decides
whether the table is folded; what torch.compile makes does, so that it gets whole batches, in process 0 alone for the
memory's sake. The order is the plan's: what is not reached belongs to its last stages. What is compiled stays in the
caches of Triton and torch on disk; the benchmarks then find it there. Nothing is timed, and what fails here fails there
again, and is recorded.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace

import torch

from benchmarks import gpu_parts, gpu_plan
from benchmarks.checking import precision
from benchmarks.gpu_plan import COMPILED, Stage
from benchmarks.jobs import Job
from benchmarks.operations import operation
from benchmarks.operations.models import model_of
from benchmarks.registry import Case
from benchmarks.worker import COMMAND, Worker

SAMPLES = 2


@contextlib.contextmanager
def beside(device: str, processes: int) -> Iterator[None]:
    """Compile in so many background processes until the block ends."""
    with contextlib.ExitStack() as stack:
        for number in range(processes):
            worker = stack.enter_context(Worker(f"compiler {number}", command=("nice", *COMMAND)))
            worker.tell("benchmarks.gpu_warm:compile_part", device=device, number=number, count=processes)
        yield


def compile_part(device: str, number: int, count: int) -> None:
    """Compile one process' part of the plan: every ``count``-th case from ``number`` on."""
    for job in wanted(gpu_plan.stages(device), number, count):
        with contextlib.suppress(Exception):
            compile_for(job)
        if device != "cpu":
            torch.cuda.empty_cache()


def wanted(plan: list[Stage], number: int, count: int) -> list[Job]:
    """Return a process' jobs: torch.compile's are those of process 0, seqconv's are shared by the others.

    Both are in the plan's order; a single process does seqconv's first.
    """
    jobs = [job for stage in plan for job in stage.jobs if job.case is not None]
    compiled = [job for job in jobs if job.provider == COMPILED]
    known: dict[tuple[str, str], Job] = {}
    for one in map(small, jobs):
        if "seqconv" in one.provider:
            known.setdefault((one.kind, str(one.case)), one)
    ours = list(known.values())
    if count == 1:
        return ours + compiled
    return compiled if number == 0 else ours[number - 1 :: count - 1]


def small(job: Job) -> Job:
    """Return a job as an eager call, of a few samples unless their number decides what runs."""
    assert job.case is not None
    case = job.case
    if job.kind == "parts" or not reads_tokens(case):
        case = replace(case, shape={**case.shape, "N": SAMPLES})
    return replace(job, case=case, provider=job.provider.removesuffix(gpu_plan.GRAPH))


def reads_tokens(case: Case) -> bool:
    """Tell whether a case may begin with an embedding: it is folded if there are samples enough."""
    known = case.operation.startswith("embedding") or case.operation == "wild"
    return known or (case.operation == "rivals" and model_of(case).takes == "tokens")


def compile_for(job: Job) -> None:
    """Call a job's provider once."""
    assert job.case is not None
    kind, case = operation(job.case.operation), job.case
    with precision(case):
        if job.kind == "parts":
            with torch.no_grad():
                for _name, make in gpu_parts.parts(case, job.provider.removeprefix("seqconv ")):
                    with contextlib.suppress(Exception):
                        make().calls[0]()
            return
        step = kind.step(case, kind.providers[job.provider].make(case), kind.inputs(case, "random"), case.torch_dtype)
        step.prepare()
        step.call()
