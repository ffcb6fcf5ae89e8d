"""First layers on tables and series of other sizes, where folding or gathering pays least; run when asked for."""

from __future__ import annotations

from typing import Any

from benchmarks.operations.gather import EMBEDDINGS, WINDOWS, embedding_case, window_case
from benchmarks.registry import Candidate, Case, Comparison

MODES = ("inference", "forward", "forward_backward")
SECONDS = 0.5  # to spend on the rounds of one comparison
SKIPPED = ("imdb1", "jena1")  # the suite gather has them


def cases(device: str, quick: bool) -> list[Case]:
    """Return all sizes but the notebook's, whose forward pass alone and first call are here; some in a quick run."""
    found = [
        embedding_case("imdb1", "forward", device=device, cold=not quick),
        *(embedding_case(name, mode, device=device) for name in sizes(EMBEDDINGS) for mode in MODES),
        *(window_case(name, mode, device=device) for name in sizes(WINDOWS) for mode in MODES[1:]),
    ]
    return found[:: 5 if quick else 1]


def sizes(all_sizes: dict[str, Any]) -> list[str]:
    """Return the names of the other sizes."""
    return [name for name in all_sizes if name not in SKIPPED]


def test_check(candidate: Candidate, verify: Any) -> None:
    """Check a provider."""
    verify(candidate)


def test_time(comparison: Comparison, measure: Any) -> None:
    """Time a provider beside a baseline."""
    measure(comparison)
