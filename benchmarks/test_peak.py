"""How much of the CPU's multiply-add peak the compiled forward pass reaches, the peak measured in turn with it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from benchmarks import timing
from benchmarks.operations.conv_pool import LAYOUTS, conv_positions, layer_case
from benchmarks.peak import PeakStep
from benchmarks.registry import Candidate, operation

SECONDS, QUICK_SECONDS = 1.0, 0.2
PROVIDER = "seqconv numba"


def subjects(device: str, quick: bool) -> list[Candidate]:
    """Return the three pooled layers of the notebook in both layouts; they are the CPU's alone."""
    if device != "cpu":
        return []
    cases = [layer_case(name, "forward", layout=layout) for name in ("imdb1", "jena1", "jena2") for layout in LAYOUTS]
    return [Candidate(case, operation(case.operation).providers[PROVIDER]) for case in cases[:: 2 if quick else 1]]


def test_check(subject: Candidate, verify: Any) -> None:
    """Check the kernels."""
    verify(subject)


@pytest.mark.parametrize("threads", ["one", "all"])
def test_share(subject: Candidate, threads: str, work: Any, note: Any, request: pytest.FixtureRequest) -> None:
    """Time the layer and the peak in turn."""
    with thread_limit(1 if threads == "one" else torch.get_num_threads()) as count:
        peak = PeakStep(count)
        own, limit = timing.Side(work(subject), timing.wall_stopwatch), timing.Side(peak, timing.wall_stopwatch)
        timing.take_turns([limit, own], QUICK_SECONDS if request.config.getoption("--quick") else SECONDS)
    shape = subject.case.shape
    work_done = shape["N"] * conv_positions(subject.case) * shape["O"] * shape["C"] * shape["K"]
    reached = [2e-9 * work_done / seconds for seconds in own.samples]
    possible = [2e-9 * peak.multiply_adds / seconds for seconds in limit.samples]
    place = (f"{subject.case}, {count} threads", subject.provider.name)
    note(*place, "share of the peak", "%", [100 * a / b for a, b in zip(reached, possible, strict=True)])
    note(*place, "forward", "GFLOP/s", reached)
    note(*place, "peak", "GFLOP/s", possible)


@contextmanager
def thread_limit(count: int) -> Iterator[int]:
    """Have torch, which the kernels follow, use so many threads for a while."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield count
    finally:
        torch.set_num_threads(before)
