"""Whole models: seqconv's beside the same model composed of torch's modules, with the same weights.

A training step is loss, backward and RMSprop, as :mod:`seqconv.training` would do it: the same loss and optimizer on
both sides. The RNN that one would take instead of a convnet, torch's or seqconv's, answers to its own definition: only
the task is common.

Torch's GRU has no dropout of its input and state, so ``conv_gru`` has none. ``conv_gru_dropout`` and
``jena_gru_dropout`` have the notebook's: they meet a loop of torch's operations with the same masks, and torch's own
layers without dropout, which have less to do and another loss.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.operations.gather import COLUMNS, ROWS, fill_windows, random_starts, reviews, reviews_origin
from benchmarks.operations.layers import no_own_kernel
from benchmarks.operations.steps import TensorStep, seeded
from benchmarks.operations.torch_peers import no_device, on_cpu
from benchmarks.registry import Case, Operation, Provider
from seqconv import functional, models

STEP = 6  # rows between two of a window
EMBEDDED = 128


class TorchConvnet(nn.Module):
    """A convnet of torch's modules, on tokens where ``words``, else on windows ``(N, L, C)``; one number a sample.

    ``pools`` has a size for each convolution's pool, 0 for none; the last features go through a GRU, or their maximum.
    ``contiguous`` copies the first layer's input into the layout that torch convolves faster.
    """

    def __init__(
        self,
        width: int,
        *,
        words: bool,
        size: int,
        pools: tuple[int, ...],
        recurrent: bool = False,
        contiguous: bool = False,
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(width, EMBEDDED) if words else nn.Identity()
        channels = [EMBEDDED if words else width] + [32] * len(pools)
        self.convs = nn.ModuleList(nn.Conv1d(one, 32, size) for one in channels[:-1])
        self.rnn = nn.GRU(32, 32, batch_first=True) if recurrent else None
        self.head = nn.Linear(32, 1)
        self.pools, self.contiguous = pools, contiguous

    def forward(self, batch: Tensor) -> Tensor:
        """Return ``(N,)`` for tokens ``(N, L)`` or windows."""
        features = self.embedding(batch).transpose(1, 2)
        features = features.contiguous() if self.contiguous else features
        for conv, pool in zip(self.convs, self.pools, strict=True):
            features = conv(features).relu()
            features = F.max_pool1d(features, pool) if pool else features
        last = features.max(2).values if self.rnn is None else self.rnn(features.transpose(1, 2))[1][-1]
        output: Tensor = self.head(last)
        return output.squeeze(-1)


class TorchTextCNN(nn.Module):
    """Kim's model (2014): convolutions of three sizes over one embedding, their maxima through dropout and dense."""

    def __init__(self, words: int, *, contiguous: bool = False) -> None:
        super().__init__()
        self.embedding = nn.Embedding(words, EMBEDDED)
        self.convs = nn.ModuleList(nn.Conv1d(EMBEDDED, 100, size) for size in (3, 4, 5))
        self.dropout = nn.Dropout(0.5)
        self.head = nn.Linear(300, 1)
        self.contiguous = contiguous

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the logits ``(N,)`` of ``tokens`` ``(N, L)``."""
        features = self.embedding(tokens).transpose(1, 2)
        features = features.contiguous() if self.contiguous else features
        maxima = torch.cat([conv(features).relu().max(2).values for conv in self.convs], 1)
        output: Tensor = self.head(self.dropout(maxima))
        return output.squeeze(-1)


class TorchRNN(nn.Module):
    """The rival: the last state of an LSTM(32) on embedded tokens, or of a GRU(32) on windows, to a dense layer."""

    def __init__(self, width: int, *, words: bool) -> None:
        super().__init__()
        self.embedding = nn.Embedding(width, EMBEDDED) if words else nn.Identity()
        self.rnn: Any = nn.LSTM(EMBEDDED, 32, batch_first=True) if words else nn.GRU(width, 32, batch_first=True)
        self.head = nn.Linear(32, 1)

    def forward(self, batch: Tensor) -> Tensor:
        """Return ``(N,)`` for tokens ``(N, L)`` or windows ``(N, L, C)``."""
        state = self.rnn(self.embedding(batch))[1]
        output: Tensor = self.head((state[0] if isinstance(state, tuple) else state)[-1])
        return output.squeeze(-1)


class FromStarts(nn.Module):
    """A temperature model on windows of a ``series``, which are given by their starts ``(N,)``."""

    series: Tensor
    reach: Tensor

    def __init__(self, model: nn.Module, series: Tensor, length: int, step: int) -> None:
        super().__init__()
        self.model: Any = model
        self.register_buffer("series", series)
        self.register_buffer("reach", step * torch.arange(length))
        self.length, self.step = length, step

    def forward(self, starts: Tensor) -> Tensor:
        """Return the predictions ``(N,)`` for windows that are gathered by index."""
        output: Tensor = self.model(self.series[starts[:, None] + self.reach])
        return output


class FromFilled(FromStarts):
    """The windows filled by seqconv's loader."""

    def forward(self, starts: Tensor) -> Tensor:
        """Return the predictions ``(N,)``."""
        output: Tensor = self.model(fill_windows(self.series, starts, self.length, self.step))
        return output


class FromSeries(FromStarts):
    """Seqconv's model, its first layer reading the windows in the series."""

    def forward(self, starts: Tensor) -> Tensor:
        """Return the predictions ``(N,)``."""
        first = self.model.first
        options = {"length": self.length, "step": self.step, "pool_size": 3, "backend": first.backend}
        pooled = functional.window_conv1d_relu_max_pool1d(self.series, starts, first.weight, first.bias, **options)
        output: Tensor = self.model.head(self.model.third(self.model.second(pooled)))
        return output.squeeze(-1)


@dataclass(frozen=True)
class Model:
    """A model on both sides, from its width (words or columns), its length and its loss; and its rival RNN's name.

    ``takes`` is ``"tokens"``, ``"windows"`` or ``"starts"`` of windows in a series that both sides then hold.
    ``drops``: has dropout on a GRU's input and state, which torch's side lacks.
    """

    ours: Callable[..., nn.Module]
    torch: Callable[..., nn.Module]
    width: int
    length: int
    loss: Callable[[Tensor, Tensor], Tensor]
    takes: str
    rival: str | None = None
    drops: bool = False


BINARY, ABSOLUTE = F.binary_cross_entropy_with_logits, F.l1_loss
LSTM, GRU = "LSTM(32)", "GRU(32)"
DROPOUTS: dict[str, Any] = {"input_dropout": 0.1, "recurrent_dropout": 0.5}  # the notebook's
HYBRID = partial(models.ConvGRU, input_dropout=0.0, recurrent_dropout=0.0)
DROPPED_HYBRID, DROPPED_GRU = partial(models.ConvGRU, **DROPOUTS), partial(models.JenaGRU, **DROPOUTS)
TORCH_IMDB = partial(TorchConvnet, words=True, size=7, pools=(5, 0))
TORCH_JENA = partial(TorchConvnet, words=False, size=5, pools=(3, 3, 0))
TORCH_HYBRID = partial(TorchConvnet, words=False, size=5, pools=(3, 0), recurrent=True)
TORCH_GRU = partial(TorchRNN, words=False)

MODELS = {
    "imdb_convnet": Model(models.ImdbConvnet, TORCH_IMDB, 10_000, 500, BINARY, "tokens", LSTM),
    "jena_convnet": Model(models.JenaConvnet, TORCH_JENA, COLUMNS, 240, ABSOLUTE, "windows", GRU),
    "jena_convnet_from_starts": Model(models.JenaConvnet, TORCH_JENA, COLUMNS, 240, ABSOLUTE, "starts"),
    "conv_gru": Model(HYBRID, TORCH_HYBRID, COLUMNS, 240, ABSOLUTE, "windows"),
    "conv_gru_dropout": Model(DROPPED_HYBRID, TORCH_HYBRID, COLUMNS, 240, ABSOLUTE, "windows", drops=True),
    "jena_gru_dropout": Model(DROPPED_GRU, TORCH_GRU, COLUMNS, 240, ABSOLUTE, "windows", drops=True),
    "textcnn": Model(models.TextCNN, TorchTextCNN, 10_000, 500, BINARY, "tokens"),
}


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
    stateful = True

    def __init__(self) -> None:
        super().__init__()
        for name, contiguous in (("torch eager", False), ("torch eager, copied to contiguous", True)):
            model = partial(torch_model, contiguous=contiguous)
            self.register(Provider(name, model, unavailable=no_dropout, baseline=True))
        without, loop = "torch eager without dropout", partial(seqconv_model, backend="reference")
        self.register(Provider(without, torch_model, only_dropout, baseline=True, definition=torch_model))
        self.register(Provider("torch loop", loop, only_dropout, baseline=True))
        for rival in (LSTM, GRU):
            for name, make, unable in (("torch", rnn_model, no_device), ("seqconv", own_rnn_model, no_own_kernel)):
                unavailable = partial(not_the_rival, rival, unable)
                self.register(Provider(f"{name} {rival}", make, unavailable, baseline=True, definition=rnn_model))
        filled = partial(seqconv_model, reads=FromFilled)
        self.register(Provider("windows filled, then seqconv's model", filled, takes_no_starts, baseline=True))
        self.register(Provider("seqconv auto", seqconv_model, unavailable=no_device, ours=True))

    def definition(self, case: Case) -> Any:
        """Return torch's model, or seqconv's on torch's operations where torch has no such dropout."""
        return seqconv_model(case, backend="reference") if model_of(case).drops else torch_model(case)

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
        generator = seeded(case, values, "cpu")
        targets = torch.randn(n, generator=generator)
        if takes == "starts":
            return {"batch": random_starts(generator, n, ROWS, length, STEP), "targets": targets}
        return {"batch": torch.randn(n, length, width, generator=generator), "targets": targets}

    def step(self, case: Case, function: Any, inputs: Mapping[str, Tensor], dtype: torch.dtype) -> Any:
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


def seqconv_model(case: Case, reads: type[FromStarts] = FromSeries, *, backend: str = "auto") -> nn.Module:
    """Return seqconv's model with the notebook's weights, always the same ones."""
    return around(case, reads, initialised(lambda: model_of(case).ours(case.shape["C"], backend=backend)))


def rnn_model(case: Case) -> nn.Module:
    """Return the case's RNN of torch's, with the notebook's weights."""
    return initialised(lambda: TorchRNN(case.shape["C"], words=model_of(case).takes == "tokens"))


def own_rnn_model(case: Case) -> nn.Module:
    """Return the case's RNN of seqconv's, with the same weights."""
    own = models.ImdbLSTM if model_of(case).takes == "tokens" else models.JenaGRU
    return initialised(lambda: own(case.shape["C"]))


def initialised(build: Callable[[], nn.Module]) -> nn.Module:
    """Return a model with weights that are drawn the same every time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return models.initialise(build())


def torch_model(case: Case, *, contiguous: bool = False) -> nn.Module:
    """Return torch's model with the weights of seqconv's."""
    model = model_of(case).torch(case.shape["C"], **({"contiguous": True} if contiguous else {}))
    given = list(seqconv_model(case).parameters())
    with torch.no_grad():
        for own in model.parameters():
            place = next(place for place, one in enumerate(given) if one.shape == own.shape)
            own.copy_(given.pop(place))
    assert not given
    return around(case, FromStarts, model)


def around(case: Case, reads: type[FromStarts], model: nn.Module) -> nn.Module:
    """Return a model, behind what reads its windows in a series where its case takes starts."""
    return reads(model, series(), case.shape["L"], STEP) if model_of(case).takes == "starts" else model


@lru_cache(maxsize=1)
def series() -> Tensor:
    """Return a made-up series of the size of Jena's, ``(ROWS, COLUMNS)``."""
    return torch.randn(ROWS, COLUMNS, generator=torch.Generator().manual_seed(0))


def not_the_rival(rival: str, unable: Callable[[Case], str | None], case: Case) -> str | None:
    """Return why an RNN is no rival of the case's model, or cannot serve it; or ``None``."""
    return unable(case) or (None if model_of(case).rival == rival else "is the rival of another model")


def no_dropout(case: Case) -> str | None:
    """Return why a model of torch's layers alone cannot serve a case, or ``None``."""
    return no_device(case) or ("has no dropout of a GRU's input and state" if model_of(case).drops else None)


def only_dropout(case: Case) -> str | None:
    """Return why a side that is there for such dropout does not serve a case, or ``None``."""
    return no_device(case) or (None if model_of(case).drops else "is for models with dropout of input and state")


def takes_no_starts(case: Case) -> str | None:
    """Return why windows need not be filled for a model, or cannot be; or ``None``."""
    return on_cpu(case) or (None if model_of(case).takes == "starts" else "its batch is filled already")


def operations() -> list[Operation]:
    """Return the models."""
    return [Models()]
