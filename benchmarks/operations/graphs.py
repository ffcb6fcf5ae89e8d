"""A step captured as a CUDA graph and replayed: what a training loop at small batches needs to keep a GPU busy."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from benchmarks.operations.steps import TensorStep
from benchmarks.registry import Case

__all__ = ["GraphStep", "no_graphs"]

WARM_UPS = 3  # calls before the capture, on a side stream, as torch asks for


class GraphStep:
    """A step whose calls replay one captured call.

    Between calls parameters go back to their first values, as for any step; gradients are not dropped, since the graph
    writes them anew, always in the same place.
    """

    def __init__(self, step: TensorStep) -> None:
        self.step, self.graph = step, None
        if hasattr(step, "optimizer"):
            for group in step.optimizer.param_groups:
                group["capturable"] = True

    def prepare(self) -> None:
        """Capture the graph at the first time; restore the parameters."""
        if self.graph is None:
            self.graph = self.capture()
        if not self.step.fixed:
            with torch.no_grad():
                for name, tensor in self.step.parameters.items():
                    tensor.copy_(self.step.first[name])

    def call(self) -> None:
        """Replay the graph."""
        self.graph.replay()  # type: ignore[attr-defined]

    def results(self) -> dict[str, Tensor]:
        """Return the output and the gradients there are."""
        return self.step.results()

    def capture(self) -> Any:
        """Return the step as a graph, after a few calls on a side stream."""
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UPS):
                self.step.prepare()
                self.step.call()
            self.step.prepare()  # without gradients the captured backward pass writes them instead of adding to them
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self.step.call()
        return graph


def no_graphs(case: Case) -> str | None:
    """Return that a case's device has no CUDA graphs, or ``None``."""
    return None if case.device.startswith("cuda") else "CUDA graphs are for GPUs"
