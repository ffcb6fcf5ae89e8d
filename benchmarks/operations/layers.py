"""One whole layer of each kind on the same sequences: the fused convolution beside the RNN one would take instead.

They compute different things, so each answers to its own definition (the same module in float64), and only the time and
the task are common: ``(N, C, L)`` in, 32 features out. On a GPU the LSTM and the GRU are cuDNN's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from benchmarks.operations.conv_pool import LAYERS, operations
from benchmarks.operations.steps import TensorStep, place, seeded
from benchmarks.operations.torch_peers import no_device
from benchmarks.registry import Case, Operation, Provider, operation

__all__ = ["Layers", "rival_case"]


def rival_case(name: str, mode: str, *, batch: int = 128, dtype: str = "float32", device: str = "cpu") -> Case:
    """Return the case of the first layer of a notebook's model, on batches as they come: ``(N, L, C)`` in memory."""
    shape, input_gradient = LAYERS[name]
    return Case("layers", name, {"N": batch, **shape}, mode, dtype, "channels_last", device, input_gradient)


class Layers(Operation):
    """A convolution with its pool, an LSTM and a GRU of the sizes ``N C L O`` (and ``K P`` for the convolution)."""

    name = "layers"

    def __init__(self) -> None:
        super().__init__()
        for name, kind in (("LSTM", nn.LSTM), ("GRU", nn.GRU)):
            make = partial(Recurrent, kind)
            self.register(Provider(name, make, unavailable=no_device, baseline=True, definition=make))
        for fused in operations():
            for provider in fused.providers.values():
                if provider.name == "torch eager" or provider.ours:
                    self.join(provider)

    def join(self, provider: Provider) -> None:
        """Let a provider of the fused layers compete with the RNNs."""
        name = f"convolution, {provider.name}"
        if name not in self.providers:
            made, unavailable = partial(Convolution, provider.name), partial(unable, provider)
            self.register(replace(provider, name=name, make=made, unavailable=unavailable, baseline=False))

    def definition(self, case: Case) -> nn.Module:
        """Return the convolution."""
        return Convolution("torch eager", case)

    def compared(self, values: str) -> tuple[str, ...] | None:  # noqa: ARG002
        """Check the output: gradients of the convolution are checked on inputs made for it, in its own suite."""
        return ("output",)

    def inputs(self, case: Case, values: str) -> dict[str, Tensor]:
        """Return the input; the gradient depends on the layer's output and is drawn with it."""
        generator, shape = seeded(case, values), [case.shape[letter] for letter in "NCL"]
        return {"input": torch.randn(shape, generator=generator, device=generator.device)}

    def step(self, case: Case, function: nn.Module, inputs: Mapping[str, Tensor], dtype: torch.dtype) -> TensorStep:
        """Return the module at work."""
        module = function.to(case.device, dtype)
        sequences = place(inputs["input"], case, dtype)
        with torch.no_grad():
            gradient = torch.ones_like(module(sequences))
        return TensorStep(case, lambda: module(sequences), sequences, dict(module.named_parameters()), gradient)


def fused_name(case: Case) -> str:
    """Return the name of the fused layer that the case's convolution is."""
    return "conv1d_relu_max_pool1d" if case.shape["P"] else "conv1d_relu_global_max_pool1d"


def unable(provider: Provider, case: Case) -> str | None:
    """Return why a provider of the fused layer cannot serve it, or ``None``."""
    return provider.unavailable(replace(case, operation=fused_name(case)))


class Convolution(nn.Module):
    """A provider's fused layer, with parameters."""

    def __init__(self, provider: str, case: Case) -> None:
        super().__init__()
        torch.manual_seed(0)
        fused = operation(fused_name(case))
        self.compute = fused.providers[provider].make(case)
        self.conv = nn.Conv1d(case.shape["C"], case.shape["O"], case.shape["K"])
        self.pool_size = [case.shape["P"]] if case.shape["P"] else []

    def forward(self, input: Tensor) -> Tensor:
        """Return the pooled features of ``(N, C, L)``."""
        output: Tensor = self.compute(input, self.conv.weight, self.conv.bias, *self.pool_size)
        return output


class Recurrent(nn.Module):
    """An LSTM or a GRU over all positions, whose last output is what a classifier reads."""

    def __init__(self, kind: type[nn.LSTM] | type[nn.GRU], case: Case) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.rnn = kind(case.shape["C"], case.shape["O"], batch_first=True)

    def forward(self, input: Tensor) -> Tensor:
        """Return the last output ``(N, O)`` for ``(N, C, L)``."""
        output: Tensor = self.rnn(input.transpose(1, 2))[0]
        return output[:, -1]
