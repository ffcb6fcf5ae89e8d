"""The first layers that read rows of a table: the notebook's embedding, and windows of a Jena-sized series."""

from __future__ import annotations

from typing import Any

from benchmarks.operations.gather import embedding_case, window_case
from benchmarks.registry import Candidate, Case, Comparison


def cases(device: str, quick: bool) -> list[Case]:
    """Return both layers of the notebook; without the table that is folded for good in a quick run."""
    embedded, windowed = ("inference", "forward_backward")[quick:], ("forward", "forward_backward")
    return [
        *(embedding_case("imdb1", mode, device=device) for mode in embedded),
        *(window_case("jena1", mode, device=device) for mode in windowed),
    ]


def test_check(candidate: Candidate, verify: Any) -> None:
    """Check a provider."""
    verify(candidate)


def test_time(comparison: Comparison, measure: Any) -> None:
    """Time a provider beside a baseline."""
    measure(comparison)
