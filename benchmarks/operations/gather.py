"""First layers that read rows of a table: the fused conv stack behind an embedding, and on windows of a series.

Torch gathers the rows and convolves the result. ``inference`` keeps its parameters, so a table folded into the weights
may be kept; in the other modes they change between calls, as in training, and every call folds anew or not at all.

Tokens are the reviews as a model gets them, or words drawn from Zipf's law: how often words repeat, and how much of a
batch is padding, decide what reading rows of a table costs; uniform random tokens would have neither.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.models.examples import zipf
from benchmarks.operations.layers import fused_name, global_max_pool, max_pool, pooled_shape
from benchmarks.operations.steps import TensorStep, layer_tensors, seeded
from benchmarks.operations.torch_peers import no_device, on_cpu, torch_providers
from benchmarks.registry import Case, Operation, Provider
from seqconv import functional
from seqconv.data import load_imdb
from seqconv.data.gathering import gather_windows
from seqconv.data.sources import DataSource, find

ROWS, COLUMNS = 420_551, 14  # the full Jena series
MADE_UP = 1000  # reviews, where there are no real ones

# V rows of C values in the table. The first is the notebook's; the others are where folding or gathering pays least.
EMBEDDINGS: dict[str, dict[str, int]] = {
    "imdb1": {"N": 128, "L": 500, "V": 10_000, "C": 128, "O": 32, "K": 7, "P": 5},
    "single review": {"N": 1, "L": 500, "V": 10_000, "C": 128, "O": 32, "K": 7, "P": 5},
    "letters": {"N": 128, "L": 500, "V": 64, "C": 16, "O": 32, "K": 7, "P": 5},
    "bases": {"N": 128, "L": 1000, "V": 5, "C": 4, "O": 16, "K": 11, "P": 4},
    "huge vocabulary": {"N": 128, "L": 500, "V": 200_000, "C": 128, "O": 32, "K": 7, "P": 5},
    "huge vocabulary, short": {"N": 32, "L": 64, "V": 200_000, "C": 128, "O": 32, "K": 3, "P": 2},
    "few channels": {"N": 128, "L": 500, "V": 10_000, "C": 8, "O": 32, "K": 7, "P": 5},
    "one output": {"N": 128, "L": 500, "V": 10_000, "C": 128, "O": 1, "K": 7, "P": 5},
    "many outputs, global": {"N": 128, "L": 500, "V": 10_000, "C": 128, "O": 100, "K": 5, "P": 0},
    "wide": {"N": 16, "L": 200, "V": 30_000, "C": 300, "O": 256, "K": 3, "P": 2},
}

WINDOWS: dict[str, dict[str, int]] = {
    "jena1": {"N": 128, "V": ROWS, "C": COLUMNS, "L": 240, "step": 6, "O": 32, "K": 5, "P": 3},
    "jena1, each row": {"N": 128, "V": ROWS, "C": COLUMNS, "L": 240, "step": 1, "O": 32, "K": 5, "P": 3},
    "single window": {"N": 1, "V": ROWS, "C": COLUMNS, "L": 240, "step": 6, "O": 32, "K": 5, "P": 3},
    "one column": {"N": 128, "V": ROWS, "C": 1, "L": 240, "step": 6, "O": 32, "K": 5, "P": 3},
    "wide series": {"N": 32, "V": 50_000, "C": 128, "L": 240, "step": 1, "O": 64, "K": 5, "P": 3},
}

Function = Callable[..., Tensor]


def embedding_case(name: str, mode: str, *, device: str = "cpu", cold: bool = False) -> Case:
    """Return the case of one of ``EMBEDDINGS``; that of the reviews says whether they are real."""
    spelled = f"{name}, {reviews_origin()}" if of_reviews(name) else name
    operation, shape = f"embedding_{fused_name(EMBEDDINGS[name])}", EMBEDDINGS[name]
    return Case(operation, spelled, shape, mode, device=device, input_gradient=False, cold=cold)


def window_case(name: str, mode: str, *, device: str = "cpu") -> Case:
    """Return the case of one of ``WINDOWS``: its series gets no gradient."""
    shape = WINDOWS[name]
    return Case(f"window_{fused_name(shape)}", name, shape, mode, device=device, input_gradient=False)


def of_reviews(name: str) -> bool:
    """Return whether a case's tokens are the reviews'."""
    return name.startswith("imdb")


def reviews_origin() -> str:
    """Return whether :func:`reviews` gives real reviews (``SEQCONV_DATA`` or the cache holds them) or made-up ones."""
    return "made-up reviews" if find("imdb", source=source()) is None else "real reviews"


@lru_cache(maxsize=4)
def reviews(count: int, length: int, words: int) -> tuple[Tensor, Tensor]:
    """Return the first ``count`` training reviews ``(N, L)``, int64, padded or cut as the notebook does; and labels.

    Words beyond the ``words - 4`` most frequent are one word, "unknown". Fewer than ``count`` are repeated.
    """
    data = load_imdb(words, length, source=source(), synthetic_size=(MADE_UP, 0))
    rows = torch.arange(count) % len(data.y_train)
    return torch.from_numpy(data.x_train)[rows].long(), torch.from_numpy(data.y_train)[rows]


def source() -> DataSource:
    """Return ``"synthetic"`` where no folder is named and the package that knows the cache's is missing, as on GPUs."""
    named = os.environ.get("SEQCONV_DATA") or os.environ.get("SEQCONV_CACHE")
    return "auto" if named or importlib.util.find_spec("pooch") else "synthetic"


def random_starts(generator: torch.Generator, count: int, rows: int, length: int, step: int) -> Tensor:
    """Return where so many random windows of a series begin."""
    return torch.randint(0, rows - step * (length - 1), (count,), generator=generator)


def compose(rows: Tensor, weight: Tensor, bias: Tensor, pool_size: int, *, contiguous: bool = False) -> Tensor:
    """Compose the layer of torch's operations on rows ``(N, L, C)``, or on a copy that torch convolves faster."""
    features = rows.transpose(1, 2)
    features = features.contiguous() if contiguous else features
    return max_pool(features, weight, bias, pool_size) if pool_size else global_max_pool(features, weight, bias)


class Gathered(Operation):
    """A first layer on rows that an ``index`` names: what both kinds have in common."""

    values = ("random", "exact")
    source: str  # the table's name among the inputs
    index: str  # what names its rows

    def __init__(self, name: str, eager: Function, others: Mapping[str, Provider]) -> None:
        super().__init__()
        self.name, self.eager = name, eager
        for provider in (*torch_providers(eager), *others.values()):
            self.register(provider)
        layer = getattr(functional, name)
        self.register(Provider("seqconv auto", lambda _case: self.ours(layer), unavailable=no_device, ours=True))

    def ours(self, layer: Function) -> Function:
        """Return seqconv's function with its arguments in the order that all providers share."""
        raise NotImplementedError

    def definition(self, case: Case) -> Function:  # noqa: ARG002
        """Return torch's composition."""
        return self.eager

    def compared(self, values: str) -> tuple[str, ...] | None:
        """Check gradients on exact inputs alone: see :class:`benchmarks.operations.layers.ConvPool`."""
        return ("output",) if values == "random" else None

    def inputs(self, case: Case, values: str) -> dict[str, Tensor]:
        """Return the index, the table, weight and bias, and the gradient of the output."""
        rows, c, o, k = (case.shape[letter] for letter in "VCOK")
        generator = seeded(case, values, "cpu")
        others = {self.source: (rows, c), "gradient": pooled_shape(case)}
        return {self.index: self.rows(case, generator), **layer_tensors(generator, values, (o, c, k), others)}

    def rows(self, case: Case, generator: torch.Generator) -> Tensor:
        """Return what names the rows."""
        raise NotImplementedError

    def placed(self, case: Case, inputs: Mapping[str, Tensor], dtype: torch.dtype) -> tuple[Tensor, dict[str, Tensor]]:
        """Return copies of the index and of table, weight and bias on the case's device."""
        tensors = {one: inputs[one].to(case.device, dtype, copy=True) for one in (self.source, "weight", "bias")}
        return inputs[self.index].to(case.device, copy=True), tensors


class EmbeddedTokens(Gathered):
    """The layer on tokens ``(N, L)``; table, weight and bias are its parameters."""

    source, index = "table", "tokens"

    def __init__(self, name: str) -> None:
        copied = "torch eager, copied to contiguous"
        make = partial(embed, contiguous=True)
        super().__init__(name, embed, {copied: Provider(copied, lambda _case: make, no_device, baseline=True)})

    def ours(self, layer: Function) -> Function:
        """Return seqconv's function."""
        return lambda *tensors_and_pool: layer(*tensors_and_pool[:-1], **pool_option(tensors_and_pool[-1]))

    def rows(self, case: Case, generator: torch.Generator) -> Tensor:
        """Return reviews, or words of Zipf's law."""
        n, length, words = (case.shape[letter] for letter in "NLV")
        return reviews(n, length, words)[0] if of_reviews(case.name) else zipf(generator, (n, length), words)

    def step(self, case: Case, function: Function, inputs: Mapping[str, Tensor], dtype: torch.dtype) -> TensorStep:
        """Return ``function`` at work."""
        tokens, parameters = self.placed(case, inputs, dtype)
        compute = partial(function, tokens, *parameters.values(), case.shape["P"])
        return TensorStep(case, compute, tokens, parameters, inputs["gradient"].to(case.device, dtype))


class Windowed(Gathered):
    """The layer on windows of ``L`` rows, ``step`` apart, of a series; weight and bias are its parameters."""

    source, index = "series", "starts"

    def __init__(self, name: str) -> None:
        others = {"torch eager, index_select": select, "windows filled, then seqconv's layer": filled}
        providers = {
            one: Provider(one, lambda _case, function=function: function, on_cpu, baseline=True)  # type: ignore[misc]
            for one, function in others.items()
        }
        super().__init__(name, cut, providers)

    def ours(self, layer: Function) -> Function:
        """Return seqconv's function."""

        def bound(series: Tensor, starts: Tensor, weight: Tensor, bias: Tensor, *numbers: int) -> Tensor:
            length, step, pool_size = numbers
            return layer(series, starts, weight, bias, length=length, step=step, **pool_option(pool_size))

        return bound

    def rows(self, case: Case, generator: torch.Generator) -> Tensor:
        """Return random starts."""
        return random_starts(generator, *(case.shape[one] for one in ("N", "V", "L", "step")))

    def step(self, case: Case, function: Function, inputs: Mapping[str, Tensor], dtype: torch.dtype) -> TensorStep:
        """Return ``function`` at work."""
        starts, parameters = self.placed(case, inputs, dtype)
        series = parameters.pop("series")
        numbers = (case.shape[one] for one in ("L", "step", "P"))
        compute = partial(function, series, starts, *parameters.values(), *numbers)
        return TensorStep(case, compute, series, parameters, inputs["gradient"].to(case.device, dtype))


def pool_option(pool_size: int) -> dict[str, Any]:
    """Return seqconv's options of a pool."""
    return {"pool_size": pool_size} if pool_size else {}


def embed(
    tokens: Tensor, table: Tensor, weight: Tensor, bias: Tensor, pool_size: int, contiguous: bool = False
) -> Tensor:
    """Embed with torch."""
    return compose(F.embedding(tokens, table), weight, bias, pool_size, contiguous=contiguous)


def cut(series: Tensor, starts: Tensor, weight: Tensor, bias: Tensor, length: int, step: int, pool_size: int) -> Tensor:
    """Index the windows with torch, as one would write it."""
    reach = step * torch.arange(length, device=starts.device)
    return compose(series[starts[:, None] + reach], weight, bias, pool_size)


def select(
    series: Tensor, starts: Tensor, weight: Tensor, bias: Tensor, length: int, step: int, pool_size: int
) -> Tensor:
    """Gather the windows by torch's fastest means."""
    rows = (starts[:, None] + step * torch.arange(length, device=starts.device)).view(-1)
    return compose(series.index_select(0, rows).view(len(starts), length, -1), weight, bias, pool_size)


def filled(
    series: Tensor, starts: Tensor, weight: Tensor, bias: Tensor, length: int, step: int, pool_size: int
) -> Tensor:
    """Fill the windows by seqconv's kernel, as its loader does, then run seqconv's layer on them."""
    features = fill_windows(series.detach(), starts, length, step).transpose(1, 2)
    if pool_size:
        return functional.conv1d_relu_max_pool1d(features, weight, bias, pool_size=pool_size)
    return functional.conv1d_relu_global_max_pool1d(features, weight, bias)


def fill_windows(series: Tensor, starts: Tensor, length: int, step: int) -> Tensor:
    """Fill windows ``(N, L, C)`` by seqconv's kernel."""
    rows = series.new_empty(len(starts), length, series.size(1))
    gather_windows(series.numpy(), starts.numpy(), length, step, rows.numpy())
    return rows


def operations() -> list[Operation]:
    """Return both first layers, with a pool and with the global maximum."""
    return [
        kind(f"{prefix}_{fused_name({'P': pool})}")
        for kind, prefix in ((EmbeddedTokens, "embedding"), (Windowed, "window"))
        for pool in (1, 0)
    ]
