"""The jobs of a GPU run, and how a worker does one: whatever comes of it, there is an answer.

An answer has ``figures`` (see ``results.measurement``), ``quantities``, ``parts`` (see :mod:`.gpu_parts`) with
``others``, which of them failed or do not exist, ``limits``, ``left_out`` (why a provider does not serve) or ``failed``
(what was raised) with ``by``, whose failure it was; ``broken`` where the process should not be asked again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch

from benchmarks import dispatch, gpu_parts, roofline, runner
from benchmarks.checking import Wrong
from benchmarks.operations import operation
from benchmarks.registry import Case, Comparison, Contender
from seqconv.backends import BackendError

OVERHEAD_ROUNDS = 9
LONGEST = 600  # characters of a message


@dataclass(frozen=True)
class Job:
    """One piece of work.

    ``kind``: ``"comparison"`` of two providers on a case, ``"parts"`` of a case's layer by one provider, ``"limits"``
    of the card, ``"overhead"`` of a call in a mode of :mod:`.dispatch`, which is the ``provider`` then. ``seconds`` go
    to a comparison's rounds, or to each part; ``patience`` is how long the parent waits for an answer.
    """

    kind: str
    suite: str
    case: Case | None = None
    provider: str = ""
    against: str = ""
    seconds: float = 0.4
    patience: float = 60.0

    def __str__(self) -> str:
        if self.case is None:
            return f"{self.suite} {self.provider}".strip()
        return f"{self.case}: {self.provider}" + (f", against {self.against}" if self.against else "")

    def as_dict(self) -> dict[str, Any]:
        """Return what :meth:`from_dict` needs."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Job:
        """Return the job that :meth:`as_dict` described."""
        return cls(**{**values, "case": values["case"] and Case.from_dict(values["case"])})


def ours(device: str) -> str:
    """Return the name of seqconv's backend that is timed by its own name."""
    return "seqconv numba" if device == "cpu" else "seqconv triton"


def answer(job: Mapping[str, Any], device: str) -> dict[str, Any]:
    """Do a job, whatever comes of it."""
    one = Job.from_dict(job)
    whose = [one.provider]
    try:
        return done(one, device, whose)
    except BackendError as error:  # as a call's overhead has it, where a package is missing
        return {"left_out": str(error), "by": whose[-1]}
    except Exception as error:
        message = " ".join(f"{type(error).__name__}: {error}".split())[:LONGEST]
        return {"failed": message, "by": whose[-1], "broken": not isinstance(error, Wrong) and is_broken(device)}
    finally:
        if "torch.compile" in one.provider:
            runner.made.clear()
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


def done(job: Job, device: str, whose: list[str]) -> dict[str, Any]:
    """Do a job; ``whose`` grows by the provider whose turn it is."""
    if job.kind == "limits":
        return {"limits": roofline.measure(device, 1.0 if device != "cpu" else 0.02)}
    if job.kind == "overhead":
        backend = ours(device).removeprefix("seqconv ")
        samples = dispatch.microseconds(dispatch.calls(backend, job.provider, device), job.provider, OVERHEAD_ROUNDS)
        place = ("dispatch", f"tiny, {job.provider}, {device}", f"seqconv {backend}")
        return {"quantities": [runner.quantity(*place, name, "µs", one) for name, one in samples.items()]}
    assert job.case is not None
    if job.kind == "parts":
        backend = job.provider.removeprefix("seqconv ")
        if reason := gpu_parts.refused(job.case, backend):
            return {"left_out": reason, "by": job.provider}
        parts, others, broken = gpu_parts.measure(job.case, backend, job.seconds, lambda: is_broken(device))
        return {"parts": parts, "others": others, "broken": broken}
    providers = operation(job.case.operation).providers
    for name in (job.provider, job.against):
        if name not in providers:
            return {"left_out": f"{job.case.operation} has no provider of this name", "by": name}
        if reason := providers[name].unavailable(job.case):
            return {"left_out": reason, "by": name}
    pair = Comparison(*(Contender(job.case, providers[name]) for name in (job.provider, job.against)))
    return {"figures": runner.compare(pair, job.suite, job.seconds, whose=whose.append)}
