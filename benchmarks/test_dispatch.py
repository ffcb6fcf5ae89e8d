"""What a call of the functional layer costs beside its kernel, at a shape so small that little else is left."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks import dispatch
from benchmarks.registry import Candidate, Case, operation

ROUNDS, QUICK_ROUNDS = 25, 5


def subjects(device: str, quick: bool) -> list[Candidate]:  # noqa: ARG001
    """Return the compiled kernels at the tiny shape, on the CPU."""
    if device != "cpu":
        return []
    case = Case(dispatch.OPERATION, "tiny", dispatch.SHAPE, "forward_backward")
    return [Candidate(case, operation(case.operation).providers["seqconv numba"])]


def test_check(subject: Candidate, verify: Any) -> None:
    """Check the kernels."""
    verify(subject)


@pytest.mark.parametrize("mode", dispatch.MODES)
@pytest.mark.parametrize("backend", ["auto", "numba"])
def test_dispatch(subject: Candidate, backend: str, mode: str, note: Any, request: pytest.FixtureRequest) -> None:
    """Time call, kernel and torch in turn."""
    rounds = QUICK_ROUNDS if request.config.getoption("--quick") else ROUNDS
    samples = dispatch.microseconds(dispatch.calls(backend, mode), mode, rounds)
    for quantity in ("dispatch", "call", "kernel", "torch eager"):
        note(f"{subject.case.name}, {mode}", f"seqconv {backend}", quantity, "µs", samples[quantity])
