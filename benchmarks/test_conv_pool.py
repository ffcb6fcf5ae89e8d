"""The fused layers of the notebook's models, in both memory layouts, forward and backward."""

from __future__ import annotations

from typing import Any

from benchmarks.operations.conv_pool import LAYERS, layer_case
from benchmarks.registry import Candidate, Case, Comparison

MODES = ("inference", "forward", "forward_backward")
GPU_MODES = ("forward", "forward_backward")
GPU_DTYPES = ("bfloat16", "tf32", "float32")
GPU_BATCHES = (4096, 128)


def cases(device: str, quick: bool) -> list[Case]:
    """Return every layer, layout and mode on a CPU; on a GPU precisions and batch sizes instead of some of them.

    Whole training steps are the models' suite's.
    """
    if device == "cpu":
        names, modes = (["imdb2", "jena1"], MODES[1:]) if quick else (list(LAYERS), MODES)
        layouts = ["channels_last"] if quick else ["contiguous", "channels_last"]
        return [
            layer_case(name, mode, layout=layout, cold=is_cold(name, mode, layout))
            for name in names
            for layout in layouts
            for mode in modes
        ]
    return [
        layer_case(name, mode, batch=batch, dtype=dtype, layout=layout, device=device)
        for batch in GPU_BATCHES[quick:]
        for dtype in GPU_DTYPES[: 1 if quick else None]
        for name in LAYERS
        for layout in ("contiguous", "channels_last")[: 2 if name == "imdb1" else 1]
        for mode in GPU_MODES
    ]


def is_cold(name: str, mode: str, layout: str) -> bool:
    """Return whether the first call in a fresh process is measured too: one layer, with and without gradients.

    Not of a training step: torch's optimizers import all of torch.compile, a second for every side.
    """
    return name == "jena1" and layout == "contiguous" and mode in ("inference", "forward_backward")


def test_check(candidate: Candidate, verify: Any) -> None:
    """Check a provider."""
    verify(candidate)


def test_time(comparison: Comparison, measure: Any) -> None:
    """Time a provider beside a baseline."""
    measure(comparison)
