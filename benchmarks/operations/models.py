"""The notebook's whole models: seqconv's beside the same model composed of torch's modules, with the same weights.

A training step is loss, backward and RMSprop, as :mod:`seqconv.training` would do it: the same loss and optimizer on
both sides. The hybrid has no dropout here, as torch's GRU knows none between its time steps.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.operations.steps import TensorStep
from benchmarks.operations.torch_peers import no_device
from benchmarks.registry import Case, Operation, Provider
from seqconv import models

__all__ = ["MODELS", "Models", "model_case"]


class TorchImdbConvnet(nn.Module):
    """The review model; ``contiguous`` copies each layer's input into the layout that torch convolves faster."""

    def __init__(self, words: int, *, contiguous: bool) -> None:
        super().__init__()
        self.embedding = nn.Embedding(words, 128)
        self.first, self.second = nn.Conv1d(128, 32, 7), nn.Conv1d(32, 32, 7)
        self.head = nn.Linear(32, 1)
        self.contiguous = contiguous

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the logits ``(N,)`` of ``tokens`` ``(N, L)``."""
        features = self.embedding(tokens).transpose(1, 2)
        features = F.max_pool1d(self.first(features.contiguous() if self.contiguous else features).relu(), 5)
        output: Tensor = self.head(self.second(features).relu().max(2).values)
        return output.squeeze(-1)


class TorchJenaConvnet(nn.Module):
    """The temperature model; ``contiguous`` as above."""

    def __init__(self, channels: int, *, contiguous: bool) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Conv1d(channels, 32, 5), nn.Conv1d(32, 32, 5), nn.Conv1d(32, 32, 5)
        self.head = nn.Linear(32, 1)
        self.contiguous = contiguous

    def forward(self, windows: Tensor) -> Tensor:
        """Return the predictions ``(N,)`` for ``windows`` ``(N, L, C)``."""
        features = windows.transpose(1, 2)
        features = F.max_pool1d(self.first(features.contiguous() if self.contiguous else features).relu(), 3)
        features = F.max_pool1d(self.second(features).relu(), 3)
        output: Tensor = self.head(self.third(features).relu().max(2).values)
        return output.squeeze(-1)


class TorchConvGRU(nn.Module):
    """The hybrid; ``contiguous`` as above."""

    def __init__(self, channels: int, *, contiguous: bool) -> None:
        super().__init__()
        self.first, self.second = nn.Conv1d(channels, 32, 5), nn.Conv1d(32, 32, 5)
        self.gru = nn.GRU(32, 32, batch_first=True)
        self.head = nn.Linear(32, 1)
        self.contiguous = contiguous

    def forward(self, windows: Tensor) -> Tensor:
        """Return the predictions ``(N,)`` for ``windows`` ``(N, L, C)``."""
        features = windows.transpose(1, 2)
        features = F.max_pool1d(self.first(features.contiguous() if self.contiguous else features).relu(), 3)
        output: Tensor = self.head(self.gru(self.second(features).relu().transpose(1, 2))[1][-1])
        return output.squeeze(-1)


@dataclass(frozen=True)
class Model:
    """A model on both sides, from its width (words or columns), its length and its loss."""

    ours: Callable[..., nn.Module]
    torch: Callable[..., nn.Module]
    width: int
    length: int
    loss: Callable[[Tensor, Tensor], Tensor]


MODELS = {
    "imdb_convnet": Model(models.ImdbConvnet, TorchImdbConvnet, 10_000, 500, F.binary_cross_entropy_with_logits),
    "jena_convnet": Model(models.JenaConvnet, TorchJenaConvnet, 14, 240, F.l1_loss),
    "conv_gru": Model(
        partial(models.ConvGRU, input_dropout=0.0, recurrent_dropout=0.0), TorchConvGRU, 14, 240, F.l1_loss
    ),
}


def model_case(name: str, mode: str, *, batch: int = 128, device: str = "cpu") -> Case:
    """Return the case of one of ``MODELS`` on a batch as it comes from its loader."""
    model = MODELS[name]
    shape = {"N": batch, "C": model.width, "L": model.length}
    return Case("models", name, shape, mode, layout="channels_last", device=device, input_gradient=False)


class Models(Operation):
    """A model's predictions, or a step of its training."""

    name = "models"

    def __init__(self) -> None:
        super().__init__()
        for name, contiguous in (("torch eager", False), ("torch eager, copied to contiguous", True)):
            make = partial(torch_model, contiguous=contiguous)
            self.register(Provider(name, make, unavailable=no_device, baseline=True))
        self.register(Provider("seqconv auto", seqconv_model, unavailable=no_device, ours=True))

    def definition(self, case: Case) -> nn.Module:
        """Return torch's model."""
        return torch_model(case, contiguous=False)

    def compared(self, values: str) -> tuple[str, ...] | None:  # noqa: ARG002
        """Check predictions, or the loss: gradients are checked layer by layer, where no rounding moves a maximum."""
        return ("output",)

    def rounding(self, case: Case) -> float:
        """Return TF32's own rounding for ``tf32``: a loss is one number, which can be right by chance."""
        return 2**-10 if case.dtype == "tf32" else super().rounding(case)

    def inputs(self, case: Case, values: str) -> dict[str, Tensor]:
        """Return the batch and its targets."""
        n, width, length = (case.shape[letter] for letter in "NCL")
        generator = torch.Generator().manual_seed(zlib.crc32(f"{case.name} {values}".encode()))
        if case.name == "imdb_convnet":
            tokens = torch.randint(0, width, (n, length), generator=generator)
            return {"batch": tokens, "targets": torch.randint(0, 2, (n,), generator=generator).float()}
        normal = partial(torch.randn, generator=generator)
        return {"batch": normal(n, length, width), "targets": normal(n)}

    def step(self, case: Case, function: nn.Module, inputs: Mapping[str, Tensor], dtype: torch.dtype) -> TensorStep:
        """Return the model at work."""
        model, loss = function.to(case.device, dtype), MODELS[case.name].loss
        targets = inputs["targets"].to(case.device, dtype, copy=True)
        batch = inputs["batch"].to(case.device, dtype if inputs["batch"].is_floating_point() else None, copy=True)

        def compute() -> Any:
            return loss(model(batch), targets) if case.mode == "training_step" else model(batch)

        return TensorStep(case, compute, batch, dict(model.named_parameters()), torch.ones((), dtype=dtype))


def seqconv_model(case: Case) -> nn.Module:
    """Return seqconv's model with the notebook's weights, always the same ones."""
    model = MODELS[case.name].ours(case.shape["C"], backend="auto")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return models.initialise(model)


def torch_model(case: Case, *, contiguous: bool) -> nn.Module:
    """Return torch's model with the weights of seqconv's."""
    model = MODELS[case.name].torch(case.shape["C"], contiguous=contiguous)
    with torch.no_grad():
        for own, given in zip(model.parameters(), seqconv_model(case).parameters(), strict=True):
            assert own.shape == given.shape
            own.copy_(given)
    return model
