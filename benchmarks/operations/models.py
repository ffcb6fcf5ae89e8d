"""Whole models: seqconv's beside the same model composed of torch's modules, with the same weights.

A training step is loss, backward and RMSprop, as :mod:`seqconv.training` would do it: the same loss and optimizer on
both sides. The hybrid has no dropout here, as torch's GRU knows none between its time steps. The RNN that one would
take instead of a convnet answers to its own definition: only the task is common.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.operations.gather import COLUMNS, ROWS
from benchmarks.operations.steps import TensorStep
from benchmarks.operations.tokens import reviews, reviews_origin
from benchmarks.operations.torch_models import (
    TorchConvGRU,
    TorchImdbConvnet,
    TorchImdbLSTM,
    TorchJenaConvnet,
    TorchJenaFromStarts,
    TorchJenaGRU,
    TorchTextCNN,
)
from benchmarks.operations.torch_peers import no_device
from benchmarks.registry import Case, Operation, Provider
from seqconv import functional, models

__all__ = ["MODELS", "Model", "ModelStep", "Models", "model_case", "model_of", "seqconv_model", "torch_model"]

STEP = 6  # rows between two of a window


@dataclass(frozen=True)
class Model:
    """A model on both sides, from its width (words, columns or a series), its length and its loss; and its rival RNN.

    ``takes`` is ``"tokens"``, ``"windows"`` or ``"starts"`` of windows in the series that the model holds.
    """

    ours: Callable[..., nn.Module]
    torch: Callable[..., nn.Module]
    width: int
    length: int
    loss: Callable[[Tensor, Tensor], Tensor]
    takes: str
    rival: tuple[str, Callable[..., nn.Module]] | None = None


class JenaFromStarts(nn.Module):
    """Seqconv's temperature model, its first layer reading the windows in the series."""

    def __init__(self, series: Tensor, length: int, step: int, *, backend: str) -> None:
        super().__init__()
        self.model = models.JenaConvnet(series.size(1), backend=backend)
        self.register_buffer("series", series)
        self.length, self.step = length, step

    def forward(self, starts: Tensor) -> Tensor:
        """Return the predictions ``(N,)`` for the windows that begin at ``starts`` ``(N,)``."""
        first = self.model.first
        options = {"length": self.length, "step": self.step, "pool_size": 3, "backend": first.backend}
        pooled = functional.window_conv1d_relu_max_pool1d(self.series, starts, first.weight, first.bias, **options)
        output: Tensor = self.model.head(self.model.third(self.model.second(pooled)))
        return output.squeeze(-1)


class JenaFilled(nn.Module):
    """Seqconv's temperature model on windows that seqconv's loader fills."""

    def __init__(self, series: Tensor, length: int, step: int, *, backend: str) -> None:
        super().__init__()
        self.model = models.JenaConvnet(series.size(1), backend=backend)
        self.register_buffer("series", series)
        self.length, self.step = length, step

    def forward(self, starts: Tensor) -> Tensor:
        """Return the predictions ``(N,)`` for the windows that begin at ``starts`` ``(N,)``."""
        from seqconv.kernels.numba.windows import gather_windows

        windows = self.series.new_empty(len(starts), self.length, self.series.size(1))
        gather_windows(self.series.numpy(), starts.numpy(), self.length, self.step, windows.numpy())
        output: Tensor = self.model(windows)
        return output


BINARY, ABSOLUTE = F.binary_cross_entropy_with_logits, F.l1_loss
LSTM, GRU = ("torch LSTM(32)", TorchImdbLSTM), ("torch GRU(32)", TorchJenaGRU)
HYBRID = partial(models.ConvGRU, input_dropout=0.0, recurrent_dropout=0.0)

MODELS = {
    "imdb_convnet": Model(models.ImdbConvnet, TorchImdbConvnet, 10_000, 500, BINARY, "tokens", LSTM),
    "jena_convnet": Model(models.JenaConvnet, TorchJenaConvnet, COLUMNS, 240, ABSOLUTE, "windows", GRU),
    "jena_convnet_from_starts": Model(JenaFromStarts, TorchJenaFromStarts, COLUMNS, 240, ABSOLUTE, "starts"),
    "conv_gru": Model(HYBRID, TorchConvGRU, COLUMNS, 240, ABSOLUTE, "windows"),
}
if hasattr(models, "TextCNN"):
    MODELS["textcnn"] = Model(models.TextCNN, TorchTextCNN, 10_000, 500, BINARY, "tokens")


def model_case(name: str, mode: str, *, batch: int = 128, device: str = "cpu", operation: str = "models") -> Case:
    """Return the case of one of ``MODELS`` on a batch as it comes from its loader; reviews say whether they are real.

    Torch's compositions get the batch as it comes, ``(N, L, C)`` in memory.
    """
    model = MODELS[name]
    shape = {"N": batch, "C": model.width, "L": model.length}
    spelled = f"{name}, {reviews_origin()}" if model.takes == "tokens" else name
    return Case(operation, spelled, shape, mode, layout="channels_last", device=device, input_gradient=False)


def model_of(case: Case) -> Model:
    """Return the model of a case."""
    return MODELS[name_of(case)]


def name_of(case: Case) -> str:
    """Return the model's name, without where its data are from."""
    return case.name.partition(",")[0]


class Models(Operation):
    """A model's predictions, or a step of its training."""

    name = "models"

    def __init__(self) -> None:
        super().__init__()
        for name, contiguous in (("torch eager", False), ("torch eager, copied to contiguous", True)):
            make = partial(torch_model, contiguous=contiguous)
            self.register(Provider(name, make, unavailable=no_device, baseline=True))
        for name, rival in (LSTM, GRU):
            make, unavailable = partial(rival_model, rival), partial(not_the_rival, name)
            self.register(Provider(name, make, unavailable, baseline=True, definition=make))
        self.register(Provider("windows filled, then seqconv's model", filled_model, takes_no_starts, baseline=True))
        self.register(Provider("seqconv auto", seqconv_model, unavailable=no_device, ours=True))

    def definition(self, case: Case) -> nn.Module:
        """Return torch's model."""
        return torch_model(case, contiguous=False)

    def compared(self, values: str) -> tuple[str, ...] | None:  # noqa: ARG002
        """Check predictions, or the loss: gradients are checked layer by layer, where no rounding moves a maximum."""
        return ("output",)

    def rounding(self, case: Case) -> float:
        """Return a few roundings, of TF32 for ``tf32``: a loss is one number, which can be right by chance."""
        return 2**-10 if case.dtype == "tf32" else 8 * super().rounding(case)

    def inputs(self, case: Case, values: str) -> dict[str, Tensor]:
        """Return the batch and its targets."""
        n, width, length = (case.shape[letter] for letter in "NCL")
        takes = model_of(case).takes
        if takes == "tokens":
            tokens, labels = reviews(n, length, width)
            return {"batch": tokens, "targets": labels}
        generator = torch.Generator().manual_seed(zlib.crc32(f"{case.name} {values}".encode()))
        targets = torch.randn(n, generator=generator)
        if takes == "starts":
            starts = torch.randint(0, ROWS - STEP * (length - 1), (n,), generator=generator)
            return {"batch": starts, "targets": targets}
        return {"batch": torch.randn(n, length, width, generator=generator), "targets": targets}

    def step(self, case: Case, function: nn.Module, inputs: Mapping[str, Tensor], dtype: torch.dtype) -> ModelStep:
        """Return the model at work."""
        model, loss = function.to(case.device, dtype).train(case.mode == "training_step"), model_of(case).loss
        targets = inputs["targets"].to(case.device, dtype, copy=True)
        batch = inputs["batch"].to(case.device, dtype if inputs["batch"].is_floating_point() else None, copy=True)

        def compute() -> Any:
            return loss(model(batch), targets) if case.mode == "training_step" else model(batch)

        return ModelStep(case, compute, batch, dict(model.named_parameters()), torch.ones((), dtype=dtype))


class ModelStep(TensorStep):
    """A model at work: every call draws the same numbers for its dropout."""

    def prepare(self) -> None:
        """Set the generator back, too."""
        super().prepare()
        torch.manual_seed(0)


def seqconv_model(case: Case) -> nn.Module:
    """Return seqconv's model with the notebook's weights, always the same ones."""
    return initialised(lambda: model_of(case).ours(*arguments(case), backend="auto"))


def filled_model(case: Case) -> nn.Module:
    """Return seqconv's model behind windows that are filled, with the same weights."""
    return initialised(lambda: JenaFilled(*arguments(case), backend="auto"))


def rival_model(build: Callable[..., nn.Module], case: Case) -> nn.Module:
    """Return an RNN with the notebook's weights."""
    return initialised(lambda: build(*arguments(case)))


def initialised(build: Callable[[], nn.Module]) -> nn.Module:
    """Return a model with weights that are drawn the same every time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return models.initialise(build())


def torch_model(case: Case, *, contiguous: bool = False) -> nn.Module:
    """Return torch's model with the weights of seqconv's."""
    model = model_of(case).torch(*arguments(case), contiguous=contiguous)
    given = list(seqconv_model(case).parameters())
    with torch.no_grad():
        for own in model.parameters():
            place = next(place for place, one in enumerate(given) if one.shape == own.shape)
            own.copy_(given.pop(place))
    assert not given
    return model


def arguments(case: Case) -> tuple[Any, ...]:
    """Return what a model is made of: its width, or the series that it reads."""
    if model_of(case).takes == "starts":
        return series(), case.shape["L"], STEP
    return (case.shape["C"],)


@lru_cache(maxsize=1)
def series() -> Tensor:
    """Return a made-up series of the size of Jena's, ``(ROWS, COLUMNS)``."""
    return torch.randn(ROWS, COLUMNS, generator=torch.Generator().manual_seed(0))


def not_the_rival(name: str, case: Case) -> str | None:
    """Return why an RNN is no rival of the case's model, or ``None``."""
    rival = model_of(case).rival
    return no_device(case) or (None if rival and rival[0] == name else "is the rival of another model")


def takes_no_starts(case: Case) -> str | None:
    """Return why windows need not be filled for a model, or cannot be; or ``None``."""
    if case.device != "cpu":
        return "is for CPUs"
    return None if model_of(case).takes == "starts" else "its batch is filled already"
