"""The notebook's models and TextCNN as wholes: inference and training steps on batches of 128."""

from __future__ import annotations

from typing import Any

from benchmarks.operations.models import MODELS, model_case
from benchmarks.registry import Candidate, Case, Comparison


def cases(device: str, quick: bool) -> list[Case]:
    """Return the models in both modes; one of them in a quick run."""
    names = ["jena_convnet"] if quick else list(MODELS)
    return [model_case(name, mode, device=device) for name in names for mode in ("inference", "training_step")]


def test_check(candidate: Candidate, verify: Any) -> None:
    """Check a provider."""
    verify(candidate)


def test_time(comparison: Comparison, measure: Any) -> None:
    """Time a provider beside a baseline."""
    measure(comparison)
