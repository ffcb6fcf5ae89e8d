"""Tensor operations at work in one of four modes, the same for whoever provides them.

``inference``: ``torch.inference_mode``, parameters that stay as they are, so whatever was derived from them may be
kept. ``forward``: ``torch.no_grad``, parameters written between calls as an optimizer would, so nothing derived from
them lasts. ``forward_backward``: output and gradients of the parameters, and of the input where the case asks for it.
``training_step``: the same, and RMSprop over the parameters with the notebook's settings.

Parameters go back to their first values between calls, untimed: an optimizer that pushes the same way for a thousand
calls would kill every ReLU, and a backward pass that profits from zeros would be timed on nothing else.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from benchmarks.registry import Case
from seqconv import frozen
from seqconv.training import rmsprop

__all__ = ["MODES", "TensorStep", "grid_values", "place", "seeded"]

MODES = ("inference", "forward", "forward_backward", "training_step")


class TensorStep:
    """A computation of ``input`` and ``parameters`` in the case's mode; ``gradient`` is its output's."""

    def __init__(
        self,
        case: Case,
        compute: Callable[[], Tensor],
        input: Tensor,
        parameters: Mapping[str, Tensor],
        gradient: Tensor,
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
            self.optimizer = rmsprop(list(parameters.values()))
        self.call = getattr(self, case.mode)

    def prepare(self) -> None:
        """Drop the gradients and restore the parameters."""
        self.input.grad = None
        if self.fixed:
            return
        with torch.no_grad():
            for name, tensor in self.parameters.items():
                tensor.copy_(self.first[name])
                tensor.grad = None

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


def place(tensor: Tensor, case: Case, dtype: torch.dtype) -> Tensor:
    """Return a copy on the case's device; an ``(N, C, L)`` one in the case's layout."""
    if tensor.dim() == 3 and case.layout == "channels_last":
        tensor = tensor.transpose(1, 2)
        return torch.empty(tensor.shape, dtype=dtype, device=case.device).copy_(tensor).transpose(1, 2)
    return torch.empty(tensor.shape, dtype=dtype, device=case.device).copy_(tensor)


def seeded(case: Case, values: str) -> torch.Generator:
    """Return a generator of a case's numbers, always the same ones.

    It is on the case's device, where that is there: a CPU takes 12 seconds for the numbers of a layer at batch 4096.
    """
    device = case.device if torch.cuda.is_available() else "cpu"
    return torch.Generator(device).manual_seed(zlib.crc32(f"{case.name} {values}".encode()))


def grid_values(generator: torch.Generator, shape: tuple[int, ...], most: int, parts: int) -> Tensor:
    """Return random multiples of ``1 / parts``, from ``-most / parts`` to ``most / parts``."""
    return torch.randint(-most, most + 1, shape, generator=generator, device=generator.device).float() / parts
