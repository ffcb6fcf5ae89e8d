"""A process that does the jobs of a GPU run, one a line on its input, and answers with one line of JSON each.

Why a process: a kernel that reads where it must not leaves its process without a GPU for good, and one that never
ends would hold up all others. Whoever started this one can start another and go on (see :mod:`.gpu_run`).

An answer has ``figures`` (see ``results.measurement``), ``quantities``, ``parts`` (see :mod:`.gpu_parts`) with
``others``, which of them failed or do not exist, ``limits``, ``left_out`` (why a provider does not serve) or ``failed``
(what was raised) with ``by``, whose failure it was; ``broken`` where the process should not be asked again.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import torch

from benchmarks import dispatch, gpu_parts, roofline, timing
from benchmarks.checking import Wrong, check
from benchmarks.gpu_plan import Job, ours
from benchmarks.precision import precision
from benchmarks.registry import Candidate, Case, Comparison, Provider, drawn, operation
from seqconv.backends import BackendError

__all__ = ["answer", "compare", "main"]

OVERHEAD_ROUNDS = 9
LONGEST = 600  # characters of a message

BLOCK_WALL = 0.005  # seconds

checked: dict[str, dict[str, tuple[float, float]]] = {}
made: dict[tuple[str, str], Callable[[Case], Any]] = {}


def main() -> None:
    """Answer until the input ends; what libraries print goes to the error stream."""
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    device = sys.argv[1]
    for line in sys.stdin:
        print(json.dumps(answer(Job.from_dict(json.loads(line)), device)), file=replies, flush=True)


def answer(job: Job, device: str) -> dict[str, Any]:
    """Do a job, whatever comes of it."""
    side = [job.provider]
    try:
        if job.kind == "limits":
            return {"limits": roofline.measure(device, 1.0 if device != "cpu" else 0.02)}
        if job.kind == "overhead":
            return {"quantities": overhead(job, device)}
        if job.kind == "parts":
            return alone(job, device)
        return compare(job, side)
    except BackendError as error:  # as a call's overhead has it, where a package is missing
        return {"left_out": str(error), "by": side[0]}
    except Exception as error:
        message = " ".join(f"{type(error).__name__}: {error}".split())[:LONGEST]
        return {"failed": message, "by": side[0], "broken": not isinstance(error, Wrong) and is_broken(device)}
    finally:
        if "torch.compile" in job.provider:
            made.clear()
            torch._dynamo.reset()  # else the ninth case of a model would quietly run eagerly
        if device != "cpu":
            torch.cuda.empty_cache()


def is_broken(device: str) -> bool:
    """Return whether the device no longer answers this process."""
    if device == "cpu":
        return False
    try:
        torch.cuda.synchronize()
        return torch.cuda.is_current_stream_capturing() or torch.ones(1, device=device).item() != 1
    except Exception:
        return True


def overhead(job: Job, device: str) -> list[dict[str, Any]]:
    """Return what a call costs the host, beside its kernels' launches and torch's own composition."""
    backend = ours(device).removeprefix("seqconv ")
    sides = dispatch.calls(backend, job.provider, device)
    samples = dispatch.microseconds(sides, job.provider, OVERHEAD_ROUNDS)
    place = {"suite": "dispatch", "case": f"tiny, {job.provider}, {device}", "provider": f"seqconv {backend}"}
    return [{**place, "quantity": name, "unit": "µs", "samples": one} for name, one in samples.items()]


def alone(job: Job, device: str) -> dict[str, Any]:
    """Time the kernels of a job's layer, each alone."""
    assert job.case is not None
    backend = job.provider.removeprefix("seqconv ")
    if reason := gpu_parts.refused(job.case, backend):
        return {"left_out": reason, "by": job.provider}
    broken: list[bool] = []

    def tell() -> bool:
        broken.append(is_broken(device))
        return broken[-1]

    parts, others = gpu_parts.measure(job.case, backend, job.seconds, tell)
    return {"parts": parts, "others": others, "broken": any(broken)}


def compare(job: Job, side: list[str]) -> dict[str, Any]:
    """Check both providers of a job, then time them in turn; ``side`` holds the name of whose turn it is."""
    assert job.case is not None
    providers = operation(job.case.operation).providers
    for name in (job.provider, job.against):
        side[0] = name
        if name not in providers:
            return {"left_out": f"{job.case.operation} has no provider of this name", "by": name}
        if reason := providers[name].unavailable(job.case):
            return {"left_out": reason, "by": name}
    pair = Comparison(*(Candidate(job.case, once(providers[name], job.case)) for name in (job.provider, job.against)))
    with precision(job.case):
        for candidate in (pair.against, pair.candidate):
            side[0] = candidate.provider.name
            if str(candidate) not in checked:
                checked[str(candidate)] = check(candidate)
        sides = []
        for candidate in (pair.against, pair.candidate):
            side[0] = candidate.provider.name
            sides.append(at_work(candidate))
            timing.settle(sides[-1])
        take_turns(sides, job.seconds)
    baseline, own = sides
    return {
        "figures": {
            "case": job.case.as_dict(),
            "provider": job.provider,
            "ours": pair.candidate.provider.ours,
            "baseline": job.against,
            "baseline_layout": pair.against.placed.layout,
            "suite": job.suite,
            "calls_per_block": own.calls,
            "samples": own.samples,
            "baseline_samples": baseline.samples,
            "errors": checked[str(pair.candidate)],
        }
    }


def take_turns(sides: list[timing.Side], seconds: float) -> None:
    """Let settled sides take turns for about ``seconds`` of the wall clock.

    On a GPU a call of microseconds comes with a flush of the cache and restored parameters, which are not timed but
    take ten times as long: blocks are cut to what they take in all.
    """
    walls = []
    for side in sides:
        start = time.perf_counter()
        side.stopwatch(side.step, side.calls)
        wall = time.perf_counter() - start
        calls = min(side.calls, max(1, int(side.calls * BLOCK_WALL / wall)))
        walls.append(wall * (1 + calls) / side.calls)
        side.calls = calls
    with timing.collector_off():
        for _ in range(timing.choose_rounds(walls, seconds)):
            for side in sides:
                side.block()


def once(provider: Provider, case: Case) -> Provider:
    """Return the provider, one whose functions torch.compile makes as one that makes a case's only once."""
    if "torch.compile" not in provider.name or case.operation == "rivals":  # whose models are changed by their steps
        return provider
    return replace(provider, make=made.setdefault((case.operation, provider.name), cache(provider.make)))


def at_work(candidate: Candidate) -> timing.Side:
    """Return a candidate at work on its own copy of the inputs."""
    case = candidate.case
    kind = operation(case.operation)
    step = kind.step(candidate.placed, candidate.provider.make(case), drawn(case, kind.values[0]), case.torch_dtype)
    return timing.Side(step, timing.stopwatch_for(case.device))


if __name__ == "__main__":
    main()
