"""Give the plan's jobs to a worker, within a time; start another worker where one breaks or does not answer."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks import gpu_parts, runner, timing
from benchmarks.gpu_plan import Stage
from benchmarks.jobs import Job
from benchmarks.promises import spelled_limits
from benchmarks.worker import COMMAND, Failed, Late, Worker

MOST_STARTS = 12  # of workers: who breaks more often is not worth the time that a start takes
LEAST_RESERVED = 30.0  # seconds: in less nothing gets ready that needs a reserve
TAIL = 500  # characters of what a worker that died had to say


@dataclass
class Found:
    """What a run came to, as :func:`.results.collect` takes it."""

    figures: list[dict[str, Any]] = field(default_factory=list)
    quantities: list[dict[str, Any]] = field(default_factory=list)
    left_out: list[dict[str, str]] = field(default_factory=list)
    failed: list[dict[str, str]] = field(default_factory=list)
    limits: dict[str, Any] | None = None


def run(
    plan: Sequence[Stage],
    device: str,
    seconds: float,
    *,
    save: Callable[[Found], object] = lambda _found: None,
    command: Sequence[str] = COMMAND,
) -> Found:
    """Do the plan's stages within ``seconds``; call ``save`` with what is known after each."""
    found, began = Found(), time.monotonic()
    deadline, number, total = began + seconds, 0, sum(len(stage.jobs) for stage in plan)
    wrong: dict[tuple[str, str], str] = {}
    with Worker(command=command) as worker:
        for place, stage in enumerate(plan):
            reserved = sum(later.reserved for later in plan[place + 1 :]) * seconds
            reserved = reserved if reserved >= LEAST_RESERVED else 0.0
            end = min(time.monotonic() + stage.most * seconds, deadline - reserved)
            print(f"benchmarks: {stage.name}: {len(stage.jobs)} jobs", flush=True)
            for job in stage.jobs:
                number += 1
                left = end - time.monotonic()
                sides = (job.provider, job.against) if job.kind == "comparison" else ()
                known = next((wrong[str(job.case), one] for one in sides if (str(job.case), one) in wrong), None)
                if left <= 0:
                    answer = {"left_out": f"the time for {stage.name!r} was over"}
                elif known is not None:
                    answer = {"left_out": known}
                else:
                    answer = ask(worker, job, device, max(deadline - time.monotonic(), 1.0))
                take(found, job, answer, wrong)
                if left > 0:
                    text = line(job, answer, found.limits)
                    print(f"[{number}/{total}, {time.monotonic() - began:.0f} s] {text}", flush=True)
            save(found)
    return found


def ask(worker: Worker, job: Job, device: str, left: float) -> dict[str, Any]:
    """Return a worker's answer, or what became of it within the job's patience and the seconds that are ``left``."""
    if worker.process is None and worker.starts == MOST_STARTS:
        return {"left_out": f"{MOST_STARTS} workers broke before"}
    patience = min(job.patience, left)
    try:
        answer: dict[str, Any] = worker.ask(
            "benchmarks.jobs:answer", patience=patience, job=job.as_dict(), device=device
        )
    except Late as error:
        if left < job.patience:
            return {"left_out": "the run's time was over while it was under way"}
        return {"failed": str(error), "by": job.provider}
    except Failed as error:
        return {"failed": str(error).removeprefix(f"{worker.name}: ")[-TAIL:], "by": job.provider}
    if answer.get("broken"):
        worker.stop()
    return answer


def take(found: Found, job: Job, answer: dict[str, Any], wrong: dict[tuple[str, str], str]) -> None:
    """Put an answer where it belongs."""
    place = {"case": str(job.case or job.suite), "provider": str(answer.get("by") or job.provider or job.kind)}
    if "figures" in answer:
        found.figures.append(answer["figures"])
    elif "quantities" in answer:
        found.quantities += answer["quantities"]
    elif "parts" in answer:
        found.quantities += gpu_parts.quantities(answer["parts"], found.limits)
        for one in answer["others"]:
            target, reason = (found.failed, "failed") if "failed" in one else (found.left_out, "left_out")
            target.append({**place, "provider": f"{job.provider}: {one['part']}", "reason": one[reason]})
    elif "limits" in answer:
        found.limits = answer["limits"]
    elif "left_out" in answer:
        found.left_out.append({**place, "reason": answer["left_out"]})
    else:
        found.failed.append({**place, "reason": answer["failed"]})
        if job.kind == "comparison":
            wrong[str(job.case), place["provider"]] = f"{place['provider']} failed on this case"


def line(job: Job, answer: dict[str, Any], limits: dict[str, Any] | None = None) -> str:
    """Return an answer in a line, one of several parts in a line for each."""
    if "figures" in answer:
        return f"{job}: {runner.line(answer['figures'])}"
    if "quantities" in answer:
        medians = ((one, timing.quartiles(one["samples"]).median) for one in answer["quantities"])
        return f"{job}: " + ", ".join(f"{one['quantity']} {median:.4g} {one['unit']}" for one, median in medians)
    if "parts" in answer:
        return "\n".join([f"{job}: {len(answer['parts'])} parts", *lines(answer, limits)])
    if "limits" in answer:
        return f"{job}: {spelled_limits(answer['limits'])}"
    if "left_out" in answer:
        return f"{job}: left out: {answer['left_out']}"
    return f"{job}: FAILED: {answer.get('by', '')}: {answer['failed']}"


def lines(answer: dict[str, Any], limits: dict[str, Any] | None) -> Iterator[str]:
    """Yield a line for each part of a layer."""
    for one in answer["parts"]:
        values = gpu_parts.quantities([one], limits)
        spread = [timing.quartiles(value["samples"]) for value in values]
        text = f"{spread[0].median:.4g} µs ({spread[0].q1:.4g}-{spread[0].q3:.4g})"
        text += f", {spread[2].median:.3g} times its floor of {spread[1].median:.4g} µs" if limits else ""
        yield f"  {one['case']}: {one['part']}: {text}"
    for one in answer["others"]:
        reason = f"FAILED: {one['failed']}" if "failed" in one else f"left out: {one['left_out']}"
        yield f"  {one['part']}: {reason}"
