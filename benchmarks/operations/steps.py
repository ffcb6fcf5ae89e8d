"""Tensor operations at work in one of four modes, the same for whoever provides them; and a step as a CUDA graph.

``inference``: ``torch.inference_mode``, parameters that stay as they are, so whatever was derived from them may be
kept. ``forward``: ``torch.no_grad``, parameters written between calls as an optimizer would, so nothing derived from
them lasts. ``forward_backward``: output and gradients of the parameters, and of the input where the case asks for it.
``training_step``: the same, and RMSprop over the parameters with the notebook's settings,
or another optimizer that the step is given.

Parameters go back to their first values between calls, untimed: an optimizer that pushes the same way for a thousand
calls would kill every ReLU, and a backward pass that profits from zeros would be timed on nothing else.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from benchmarks.registry import Case
from seqconv import frozen
from seqconv.training import rmsprop

MODES = ("inference", "forward", "forward_backward", "training_step")
WARM_UPS = 3  # calls before a graph's capture, on a side stream, as torch asks for


class TensorStep:
    """A computation of ``input`` and ``parameters`` in the case's mode; ``gradient`` is its output's."""

    def __init__(
        self,
        case: Case,
        compute: Callable[[], Tensor],
        input: Tensor,
        parameters: Mapping[str, Tensor],
        gradient: Tensor,
        *,
        optimizer: Callable[[list[Tensor]], torch.optim.Optimizer] = rmsprop,
    ) -> None:
        if case.mode not in MODES:
            raise ValueError(f"mode must be one of {', '.join(MODES)}, got {case.mode!r}")
        self.compute, self.input, self.parameters, self.gradient = compute, input, dict(parameters), gradient
        self.first = {name: tensor.detach().clone() for name, tensor in parameters.items()}
        self.output = torch.empty(0)
        self.gradient_fits = False
        self.fixed = case.mode == "inference"
        if self.fixed:
            frozen(parameters.values())
        training = case.mode in ("forward_backward", "training_step")
        input.requires_grad_(training and case.input_gradient)
        for tensor in parameters.values():
            tensor.requires_grad_(training)
        if case.mode == "training_step":
            self.optimizer = optimizer(list(parameters.values()))
        self.call = getattr(self, case.mode)

    def prepare(self) -> None:
        """Drop the gradients and restore the parameters."""
        self.input.grad = None
        if not self.fixed:
            self.restore()
            for tensor in self.parameters.values():
                tensor.grad = None

    def restore(self) -> None:
        """Give the parameters their first values."""
        with torch.no_grad():
            for name, tensor in self.parameters.items():
                tensor.copy_(self.first[name])

    def inference(self) -> None:
        """Compute the output for good."""
        with torch.inference_mode():
            self.output = self.compute()

    def forward(self) -> None:
        """Compute the output."""
        with torch.no_grad():
            self.output = self.compute()

    def forward_backward(self) -> None:
        """Compute the output and the gradients."""
        self.output = self.compute()
        if not self.gradient_fits:
            self.fit_gradient()
        self.output.backward(self.gradient)  # type: ignore[no-untyped-call]

    def training_step(self) -> None:
        """Compute the output and the gradients, and step."""
        self.optimizer.zero_grad()
        self.forward_backward()
        self.optimizer.step()

    def fit_gradient(self) -> None:
        """Lay the output's gradient out as the provider lays its output out: the next layer would, too."""
        self.gradient = torch.empty_like(self.output).copy_(self.gradient)
        self.gradient_fits = True

    def results(self) -> dict[str, Tensor]:
        """Return the output and the gradients there are."""
        found = {"output": self.output.detach()}
        leaves = {"input": self.input, **self.parameters}
        return found | {f"{name} gradient": leaf.grad for name, leaf in leaves.items() if leaf.grad is not None}


class GraphStep:
    """A step whose calls replay one captured call: what a loop at small batches needs to keep a GPU busy.

    Between calls parameters go back to their first values, as for any step; gradients are not dropped, since the graph
    writes them anew, always in the same place.
    """

    def __init__(self, step: TensorStep) -> None:
        self.step, self.graph = step, None
        if hasattr(step, "optimizer"):
            for group in step.optimizer.param_groups:
                group["capturable"] = True
        self.results = step.results

    def prepare(self) -> None:
        """Capture the graph at the first time; restore the parameters."""
        if self.graph is None:
            self.graph = self.capture()
        if not self.step.fixed:
            self.step.restore()

    def call(self) -> None:
        """Replay the graph."""
        self.graph.replay()  # type: ignore[attr-defined]

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


def place(tensor: Tensor, case: Case, dtype: torch.dtype) -> Tensor:
    """Return a copy on the case's device; an ``(N, C, L)`` one in the case's layout."""
    if tensor.dim() == 3 and case.layout == "channels_last":
        tensor = tensor.transpose(1, 2)
        return torch.empty(tensor.shape, dtype=dtype, device=case.device).copy_(tensor).transpose(1, 2)
    return torch.empty(tensor.shape, dtype=dtype, device=case.device).copy_(tensor)


def seeded(case: Case, values: str, device: str | None = None) -> torch.Generator:
    """Return a generator of a case's numbers, always the same ones.

    It is on the case's device, where that is there: a CPU takes 12 seconds for the numbers of a layer at batch 4096.
    """
    device = device or (case.device if torch.cuda.is_available() else "cpu")
    return torch.Generator(device).manual_seed(zlib.crc32(f"{case.name} {values}".encode()))


def layer_tensors(
    generator: torch.Generator, values: str, weight: tuple[int, ...], others: Mapping[str, tuple[int, ...]]
) -> dict[str, Tensor]:
    """Return random tensors of a layer: its ``weight`` ``(O, C, K)``, its ``bias`` and ``others`` of these shapes.

    ``random`` ones are what a network sees. ``exact`` ones have so few bits that every sum in every precision is exact:
    then ties are ties on both sides, and gradients can be compared.
    """
    device = generator.device

    def grid(shape: tuple[int, ...], most: int, parts: int) -> Tensor:
        return torch.randint(-most, most + 1, shape, generator=generator, device=device).float() / parts

    def normal(shape: tuple[int, ...], divisor: float = 1.0) -> Tensor:
        return torch.randn(shape, generator=generator, device=device) / divisor

    if values == "exact":
        found = {"weight": grid(weight, 32, 64), "bias": grid(weight[:1], 64, 64)}
        return found | {name: grid(shape, 16, 8) for name, shape in others.items()}
    found = {"weight": normal(weight, (weight[1] * weight[2]) ** 0.5), "bias": normal(weight[:1], 10)}
    return found | {name: normal(shape) for name, shape in others.items()}
