"""Every window of a series through a model: batch by batch, by dilated operations, and by ``sliding_inference``.

A case has ``N`` windows of ``L`` rows, ``step`` apart, of a series of ``C`` columns; one window begins in each row. All
sides have the same weights. Those that work batch by batch gather 128 windows at a time, which is part of the work.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.models import jena_convnet
from benchmarks.models.notebook import NotebookHybrid
from benchmarks.operations.steps import seeded
from benchmarks.registry import Case, Operation, Provider
from seqconv import fuse, sliding_inference

BATCH = 128
CHECKED = 1000  # windows, where each is computed by itself in float64

# The models by name, and the layout of the windows that they take.
MODELS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "jena_convnet": (jena_convnet, "NCL"),
    "jena_conv_gru": (NotebookHybrid, "NLC"),
}


def sliding_case(name: str, windows: int, device: str = "cpu") -> Case:
    """Return the case of one of ``MODELS`` on so many windows of the notebook's size."""
    return Case("sliding", name, {"N": windows, "L": 240, "C": 14, "step": 6}, "inference", device=device)


class SlidingOutputs(Operation):
    """What a model gives for all windows; a provider's function is given the series ``(R, C)``."""

    name = "sliding"
    noise = False
    rivals_meet = False

    def __init__(self) -> None:
        super().__init__()
        self.register(Provider("torch eager, batches", partial(Batches, fused=False), baseline=True))
        self.register(Provider("seqconv, batches", partial(Batches, fused=True), baseline=True))
        self.register(Provider("torch, dilated", Dilated, no_dilated, baseline=True))
        self.register(Provider("seqconv sliding_inference", Sliding, ours=True))

    def checked(self, case: Case) -> Case:
        """Return the case of fewer windows."""
        return replace(case, shape={**case.shape, "N": min(case.shape["N"], CHECKED)})

    def inputs(self, case: Case, values: str) -> dict[str, Tensor]:
        """Return the series."""
        windows, length, columns, step = (case.shape[one] for one in ("N", "L", "C", "step"))
        generator = seeded(case, values)
        rows = windows + (length - 1) * step
        return {"series": torch.randn(rows, columns, generator=generator, device=generator.device)}

    def definition(self, case: Case) -> Any:
        """Return torch's own model on batches."""
        return Batches(case, fused=False)

    def step(self, case: Case, function: Any, inputs: Mapping[str, Tensor], dtype: torch.dtype) -> OutputsStep:
        """Return a side at work on a copy of the series."""
        function.model.to(case.device, dtype)
        return OutputsStep(function, inputs["series"].to(case.device, dtype, copy=True))


class OutputsStep:
    """One side at work."""

    def __init__(self, function: Callable[[Tensor], Tensor], series: Tensor) -> None:
        self.function, self.series = function, series
        self.outputs = torch.empty(0)

    def prepare(self) -> None:
        """Do nothing."""

    def call(self) -> None:
        """Compute all windows' outputs."""
        with torch.no_grad():
            self.outputs = self.function(self.series)

    def results(self) -> dict[str, Tensor]:
        """Return the outputs."""
        return {"outputs": self.outputs}


def model_of(case: Case) -> nn.Module:
    """Return the case's model, the same weights every time, in evaluation mode."""
    torch.manual_seed(0)
    return MODELS[case.name][0]().eval()


class Batches:
    """The model on batches of gathered windows."""

    def __init__(self, case: Case, *, fused: bool) -> None:
        self.case, model = case, model_of(case)
        self.model = fuse(model) if fused else model

    def __call__(self, series: Tensor) -> Tensor:
        """Return the outputs of all windows."""
        length, step = self.case.shape["L"], self.case.shape["step"]
        within = torch.arange(length, device=series.device) * step
        starts = torch.arange(len(series) - (length - 1) * step, device=series.device)
        found = []
        for some in starts.split(BATCH):
            windows = series[some[:, None] + within]
            if MODELS[self.case.name][1] == "NCL":
                windows = windows.transpose(1, 2)
            found.append(self.model(windows))
        return torch.cat(found)


class Dilated:
    """The convnet by torch's operations on the whole series: strides of pools are dilations behind them."""

    def __init__(self, case: Case) -> None:
        self.model: Any = model_of(case)
        self.step, self.length = case.shape["step"], case.shape["L"]

    def __call__(self, series: Tensor) -> Tensor:
        """Return the outputs of all windows."""
        rows, apart, length = series.T.unsqueeze(0), self.step, self.length
        for conv in (self.model[0], self.model[3]):
            rows = F.relu(F.conv1d(rows, conv.weight, conv.bias, dilation=apart))
            rows = F.max_pool1d(rows, 3, 1, 0, apart)
            apart, length = 3 * apart, (length - 4) // 3
        last = self.model[6]
        rows = F.relu(F.conv1d(rows, last.weight, last.bias, dilation=apart))
        rows = F.max_pool1d(rows, length - 4, 1, 0, apart)
        windows = len(series) - (self.length - 1) * self.step
        found: Tensor = self.model[10](rows[0].T[:windows])
        return found


def no_dilated(case: Case) -> str | None:
    """Return why a case is not written in dilated operations, or ``None``."""
    return None if case.name == "jena_convnet" else "has a recurrent layer"


class Sliding:
    """``sliding_inference``, from the model as it is."""

    def __init__(self, case: Case) -> None:
        self.model, self.window = (
            model_of(case),
            {name: case.shape[of] for name, of in (("length", "L"), ("step", "step"))},
        )

    def __call__(self, series: Tensor) -> Tensor:
        """Return the outputs of all windows."""
        found: Tensor = sliding_inference(self.model, series, **self.window)
        return found


def operations() -> list[Operation]:
    """Return the operation."""
    return [SlidingOutputs()]
