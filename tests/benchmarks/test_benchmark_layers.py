"""One whole layer of each kind: who can serve is told without an error, and all of them are right."""

from __future__ import annotations

from dataclasses import replace

from benchmarks.checking import check
from benchmarks.operations.layers import rival_case
from benchmarks.registry import candidates


def test_all_that_can_serve_are_right():
    case = rival_case("jena1", "training_step", batch=3)
    case = replace(case, shape={**case.shape, "L": 20})
    found = {one.provider.name: one for one in candidates(case)}
    right = [name for name, one in found.items() if one.unavailable is None]
    assert set(right) >= {"LSTM", "GRU", "convolution, torch eager", "convolution, seqconv numba"}
    assert "GPU" in found["convolution, seqconv triton"].unavailable
    for name in right:
        assert check(found[name]).keys() == {"output, random"}
