"""Give the plan's jobs to a worker, within a time; start another worker where one breaks or does not answer."""

from __future__ import annotations

import json
import math
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from benchmarks import gpu_parts, timing
from benchmarks.gpu_plan import Job, Stage

__all__ = ["Found", "run"]

ROOT = Path(__file__).resolve().parent.parent
MOST_STARTS = 12  # of workers: who breaks more often is not worth the time that a start takes
WORKER = (sys.executable, "-m", "benchmarks.gpu_worker")
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
    save: Callable[[Found], None] = lambda _found: None,
    command: Sequence[str] = WORKER,
) -> Found:
    """Do the plan's stages within ``seconds``; call ``save`` with what is known after each."""
    found, began = Found(), time.monotonic()
    deadline, number, total = began + seconds, 0, sum(len(stage.jobs) for stage in plan)
    wrong: dict[tuple[str, str], str] = {}
    worker = Worker([*command, device])
    try:
        for place, stage in enumerate(plan):
            reserved = sum(later.reserved for later in plan[place + 1 :]) * seconds
            reserved = reserved if reserved >= LEAST_RESERVED else 0.0
            end = min(time.monotonic() + stage.most * seconds, deadline - reserved)
            print(f"benchmarks: {stage.name}: {len(stage.jobs)} jobs", flush=True)
            for job in stage.jobs:
                number += 1
                left = end - time.monotonic()
                known = next((wrong[str(job.case), one] for one in sides(job) if (str(job.case), one) in wrong), None)
                if left <= 0:
                    answer = {"left_out": f"the time for {stage.name!r} was over"}
                elif known is not None:
                    answer = {"left_out": known}
                else:
                    answer = worker.ask(job, job.patience, max(deadline - time.monotonic(), 1.0))
                take(found, job, answer, wrong)
                if left > 0:
                    text = line(job, answer, found.limits)
                    print(f"[{number}/{total}, {time.monotonic() - began:.0f} s] {text}", flush=True)
            save(found)
    finally:
        worker.stop()
    return found


def sides(job: Job) -> tuple[str, ...]:
    """Return the providers whose failure a job would meet again."""
    return (job.provider, job.against) if job.kind == "comparison" else ()


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
            named = {**place, "provider": f"{job.provider}: {one['part']}"}
            if "failed" in one:
                found.failed.append({**named, "reason": one["failed"]})
            else:
                found.left_out.append({**named, "reason": one["left_out"]})
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
        figures = answer["figures"]
        milliseconds = timing.quartiles(figures["samples"]).median * 1e3
        ratio = timing.quartiles(timing.ratios(figures["baseline_samples"], figures["samples"]))
        return f"{job}: {milliseconds:.4g} ms, {ratio.median:.3g}x ({ratio.q1:.3g}-{ratio.q3:.3g})"
    if "quantities" in answer:
        medians = ((one, timing.quartiles(one["samples"]).median) for one in answer["quantities"])
        return f"{job}: " + ", ".join(f"{one['quantity']} {median:.4g} {one['unit']}" for one, median in medians)
    if "parts" in answer:
        return "\n".join([f"{job}: {len(answer['parts'])} parts", *lines(answer, limits)])
    if "limits" in answer:
        rates = (f"{dtype} {rate / 1e12:.4g} TFLOP/s" for dtype, rate in answer["limits"]["matrix"].items())
        return f"{job}: copy {answer['limits']['copy'] / 1e12:.4g} TB/s, matrix products {', '.join(rates)}"
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


class Worker:
    """A process that answers jobs, started at the first and again after a break."""

    def __init__(self, command: Sequence[str]) -> None:
        self.command = list(command)
        self.process: subprocess.Popen[str] | None = None
        self.answers: queue.Queue[str] = queue.Queue()
        self.errors: IO[str] = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115
        self.starts = 0

    def ask(self, job: Job, patience: float, left: float = math.inf) -> dict[str, Any]:
        """Return the answer, or what became of it within ``patience`` seconds, and those that are ``left``."""
        if self.process is None and not self.start():
            return {"left_out": f"{MOST_STARTS} workers broke before"}
        assert self.process is not None
        assert self.process.stdin is not None
        try:
            print(json.dumps(job.as_dict()), file=self.process.stdin, flush=True)
            text = self.answers.get(timeout=min(patience, left))
        except queue.Empty:
            self.stop()
            if left < patience:
                return {"left_out": "the run's time was over while it was under way"}
            return {"failed": f"no answer within {patience:.0f} s", "by": job.provider}
        except OSError:
            text = ""
        if not text:
            self.stop()
            return {"failed": f"the process ended: {self.last_words()}", "by": job.provider}
        answer: dict[str, Any] = json.loads(text)
        if answer.get("broken"):
            self.stop()
        return answer

    def start(self) -> bool:
        """Start a process, unless too many were; return whether there is one."""
        if self.starts == MOST_STARTS:
            return False
        self.starts += 1
        self.answers = queue.Queue()
        self.process = subprocess.Popen(
            self.command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, text=True
        )
        threading.Thread(target=listen, args=(self.process.stdout, self.answers), daemon=True).start()
        return True

    def stop(self) -> None:
        """End the process, if there is one."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def last_words(self) -> str:
        """Return the end of what the processes wrote to their error stream."""
        self.errors.seek(0)
        return " ".join(self.errors.read()[-TAIL:].split()) or "it said nothing"


def listen(stream: IO[str], answers: queue.Queue[str]) -> None:
    """Hand lines on as they come, an empty one at the end."""
    for text in stream:
        answers.put(text)
    answers.put("")
