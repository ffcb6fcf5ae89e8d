"""Memory of a layer's forward and backward pass at batch 128 on channels-last inputs, beside torch eager's."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks import memory
from benchmarks.operations.conv_pool import LAYERS, layer_case
from benchmarks.registry import Candidate, operation

PROVIDERS = ("torch eager", "seqconv numba")
NAMES = {"saved": "saved", "saved_beside": "saved beside input and parameters", "peak": "peak above before"}


def subjects(device: str, quick: bool) -> list[Candidate]:
    """Return both sides of all layers, of one in a quick run; on the CPU."""
    names = [] if device != "cpu" else ["imdb1"] if quick else list(LAYERS)
    cases = [layer_case(name, "forward_backward", layout="channels_last") for name in names]
    return [Candidate(case, operation(case.operation).providers[name]) for case in cases for name in PROVIDERS]


def test_check(subject: Candidate, verify: Any) -> None:
    """Check a provider."""
    verify(subject)


@pytest.mark.skipif(memory.unavailable() is not None, reason=str(memory.unavailable()))
def test_memory(subject: Candidate, note: Any) -> None:
    """Measure a provider's step."""
    for name, size in memory.measure(subject).items():
        note(str(subject.case), subject.provider.name, NAMES[name], "MiB", [size / 2**20])
