"""The fused layers at 200 random shapes, forward and forward + backward; run when asked for: ``--suite sweep``."""

from __future__ import annotations

from typing import Any

from benchmarks.operations.sweep import sweep_cases
from benchmarks.registry import Candidate, Case, Comparison

SECONDS = 0.2  # to spend on the rounds of one comparison
COUNT, QUICK_COUNT = 200, 20


def cases(device: str, quick: bool) -> list[Case]:
    """Return the random shapes in both modes; the first of them in a quick run."""
    return sweep_cases(("forward", "forward_backward"), QUICK_COUNT if quick else COUNT, device)


def test_check(candidate: Candidate, verify: Any) -> None:
    """Check a provider."""
    verify(candidate)


def test_time(comparison: Comparison, measure: Any) -> None:
    """Time a provider beside a baseline."""
    measure(comparison)
