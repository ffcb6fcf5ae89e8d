"""Whole models beside torch.compile, an RNN and other frameworks, as far as they are installed; run when asked for."""

from __future__ import annotations

from typing import Any

from benchmarks.operations.models import MODELS, model_case
from benchmarks.registry import Candidate, Case, Comparison

SECONDS = 2.0  # to spend on the rounds of one comparison


def cases(device: str, quick: bool) -> list[Case]:
    """Return the models in both modes; one of them in a quick run."""
    names = ["jena_convnet"] if quick else [name for name in MODELS if name != "conv_gru"]
    modes = ("inference", "training_step")
    return [model_case(name, mode, device=device, operation="peers") for name in names for mode in modes]


def test_check(candidate: Candidate, verify: Any) -> None:
    """Check a provider."""
    verify(candidate)


def test_time(comparison: Comparison, measure: Any) -> None:
    """Time a provider beside a baseline."""
    measure(comparison)
