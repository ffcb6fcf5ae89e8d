"""Memory of a layer's forward and backward pass, and of a model's training step, at batch 128, beside torch eager's."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks import memory
from benchmarks.operations.conv_pool import LAYERS, layer_case
from benchmarks.operations.gather import embedding_case, window_case
from benchmarks.operations.models import model_case
from benchmarks.registry import Candidate, operation

PROVIDERS = ("torch eager", "seqconv numba", "seqconv auto")
MODELS = ("imdb_convnet", "jena_convnet")
NAMES = {"saved": "saved", "saved_beside": "saved beside input and parameters", "peak": "peak above before"}


def subjects(device: str, quick: bool) -> list[Candidate]:
    """Return both sides of all layers and models, of one layer in a quick run; on the CPU."""
    if device != "cpu":
        return []
    names = ["imdb1"] if quick else list(LAYERS)
    cases = [layer_case(name, "forward_backward", layout="channels_last") for name in names]
    if not quick:
        cases += [embedding_case("imdb1", "forward_backward"), window_case("jena1", "forward_backward")]
        cases += [model_case(name, "training_step") for name in MODELS]
    return [
        Candidate(case, provider)
        for case in cases
        for name, provider in operation(case.operation).providers.items()
        if name in PROVIDERS
    ]


def test_check(subject: Candidate, verify: Any) -> None:
    """Check a provider."""
    verify(subject)


@pytest.mark.skipif(memory.unavailable() is not None, reason=str(memory.unavailable()))
def test_memory(subject: Candidate, note: Any) -> None:
    """Measure a provider's step."""
    for name, size in memory.measure(subject).items():
        note(str(subject.case), subject.provider.name, NAMES[name], "MiB", [size / 2**20])
