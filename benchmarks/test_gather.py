"""The first layers that read rows of a table: the notebook's embedding, and windows of a Jena-sized series."""

from __future__ import annotations

from typing import Any

from benchmarks.operations.gather import embedding_case, window_case
from benchmarks.registry import Candidate, Case, Comparison

MODES = ("inference", "forward", "forward_backward")


def cases(device: str, quick: bool) -> list[Case]:
    """Return both layers of the notebook in every mode; without a folded table that is kept in a quick run."""
    modes = MODES[quick:]
    return [
        *(embedding_case("imdb1", mode, device=device, cold=is_cold(mode, quick)) for mode in modes),
        *(window_case("jena1", mode, device=device) for mode in MODES[1:]),
    ]


def is_cold(mode: str, quick: bool) -> bool:
    """Return whether the first call in a fresh process is measured too."""
    return mode == "inference" and not quick


def test_check(candidate: Candidate, verify: Any) -> None:
    """Check a provider."""
    verify(candidate)


def test_time(comparison: Comparison, measure: Any) -> None:
    """Time a provider beside a baseline."""
    measure(comparison)
