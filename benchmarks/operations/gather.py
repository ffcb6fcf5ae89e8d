"""First layers that read rows of a table: the fused conv stack behind an embedding, and on windows of a series.

Torch gathers the rows and convolves the result. ``inference`` keeps its parameters, so a table folded into the weights
may be kept; in the other modes they change between calls, as in training, and every call folds anew or not at all.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.operations.conv_pool import conv_positions, global_max_pool, max_pool
from benchmarks.operations.steps import TensorStep, grid_values
from benchmarks.operations.tokens import reviews, reviews_origin, zipf
from benchmarks.operations.torch_peers import no_device, torch_providers
from benchmarks.registry import Case, Operation, Provider
from seqconv import functional

__all__ = ["COLUMNS", "EMBEDDINGS", "ROWS", "WINDOWS", "Embedded", "Windowed", "embedding_case", "window_case"]

ROWS, COLUMNS = 420_551, 14  # the full Jena series

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
    operation = "embedding_conv1d_relu_" + kind_of(EMBEDDINGS[name])
    return Case(operation, spelled, EMBEDDINGS[name], mode, device=device, input_gradient=False, cold=cold)


def window_case(name: str, mode: str, *, device: str = "cpu", cold: bool = False) -> Case:
    """Return the case of one of ``WINDOWS``: its series gets no gradient."""
    operation = "window_conv1d_relu_" + kind_of(WINDOWS[name])
    return Case(operation, name, WINDOWS[name], mode, device=device, input_gradient=False, cold=cold)


def kind_of(shape: Mapping[str, int]) -> str:
    """Return the pool's part of an operation's name."""
    return "max_pool1d" if shape["P"] else "global_max_pool1d"


def of_reviews(name: str) -> bool:
    """Return whether a case's tokens are the reviews'."""
    return name.startswith("imdb")


def compose(rows: Tensor, weight: Tensor, bias: Tensor, pool_size: int) -> Tensor:
    """Compose the layer of torch's operations on gathered rows ``(N, L, C)``."""
    features = rows.transpose(1, 2)
    return max_pool(features, weight, bias, pool_size) if pool_size else global_max_pool(features, weight, bias)


def compose_contiguous(rows: Tensor, weight: Tensor, bias: Tensor, pool_size: int) -> Tensor:
    """Compose it on a copy in the layout that torch convolves faster."""
    features = rows.transpose(1, 2).contiguous()
    return max_pool(features, weight, bias, pool_size) if pool_size else global_max_pool(features, weight, bias)


class Gathered(Operation):
    """A first layer on rows that an ``index`` names: what both kinds have in common."""

    values = ("random", "exact")
    source: str  # the table's name among the inputs

    def compared(self, values: str) -> tuple[str, ...] | None:
        """Check gradients on exact inputs alone: see :class:`benchmarks.operations.conv_pool.ConvPool`."""
        return ("output",) if values == "random" else None

    def inputs(self, case: Case, values: str) -> dict[str, Tensor]:
        """Return the index, the table, weight and bias, and the gradient of the output."""
        n, rows, c, o, k, p = (case.shape[letter] for letter in "NVCOKP")
        positions = conv_positions(case)
        pooled = (n, o, positions // p) if p else (n, o)
        generator = torch.Generator().manual_seed(zlib.crc32(f"{case.name} {values}".encode()))
        index = self.index(case, generator)
        if values == "exact":
            grid = partial(grid_values, generator)
            tensors = {"weight": grid((o, c, k), 32, 64), "bias": grid((o,), 64, 64), "gradient": grid(pooled, 16, 8)}
            return {**index, self.source: grid((rows, c), 16, 8), **tensors}
        normal = partial(torch.randn, generator=generator)
        tensors = {"weight": normal(o, c, k) / (c * k) ** 0.5, "bias": normal(o) / 10, "gradient": normal(pooled)}
        return {**index, self.source: normal(rows, c), **tensors}

    def index(self, case: Case, generator: torch.Generator) -> dict[str, Tensor]:
        """Return what names the rows."""
        raise NotImplementedError


class Embedded(Gathered):
    """The layer on tokens ``(N, L)``; table, weight and bias are its parameters."""

    source = "table"

    def __init__(self, pool: str) -> None:
        super().__init__()
        self.name = "embedding_conv1d_relu_" + pool
        for provider in torch_providers(embed):
            self.register(provider)
        copied = "torch eager, copied to contiguous"
        self.register(Provider(copied, lambda _case: embed_contiguous, unavailable=no_device, baseline=True))
        self.register(seqconv_provider(getattr(functional, self.name)))

    def definition(self, case: Case) -> Function:  # noqa: ARG002
        """Return torch's composition."""
        return embed

    def index(self, case: Case, generator: torch.Generator) -> dict[str, Tensor]:
        """Return reviews, or words of Zipf's law."""
        n, length, words = (case.shape[letter] for letter in "NLV")
        tokens = reviews(n, length, words)[0] if of_reviews(case.name) else zipf(generator, (n, length), words)
        return {"tokens": tokens}

    def step(self, case: Case, function: Function, inputs: Mapping[str, Tensor], dtype: torch.dtype) -> TensorStep:
        """Return ``function`` at work."""
        tokens = inputs["tokens"].to(case.device, copy=True)
        placed = {name: inputs[name].to(case.device, dtype, copy=True) for name in ("table", "weight", "bias")}
        compute = partial(function, tokens, *placed.values(), case.shape["P"])
        return TensorStep(case, compute, tokens, placed, inputs["gradient"].to(case.device, dtype))


class Windowed(Gathered):
    """The layer on windows of ``L`` rows, ``step`` apart, of a series; weight and bias are its parameters."""

    source = "series"

    def __init__(self, pool: str) -> None:
        super().__init__()
        self.name = "window_conv1d_relu_" + pool
        for provider in torch_providers(cut):
            self.register(provider)
        for name, function in (("torch eager, index_select", select), ("windows filled, then seqconv's layer", filled)):
            self.register(Provider(name, lambda _case, function=function: function, on_cpu, baseline=True))
        self.register(seqconv_provider(in_order(getattr(functional, self.name))))

    def definition(self, case: Case) -> Function:  # noqa: ARG002
        """Return torch's composition."""
        return cut

    def index(self, case: Case, generator: torch.Generator) -> dict[str, Tensor]:
        """Return random starts."""
        last = case.shape["V"] - case.shape["step"] * (case.shape["L"] - 1)
        return {"starts": torch.randint(0, last, (case.shape["N"],), generator=generator)}

    def step(self, case: Case, function: Function, inputs: Mapping[str, Tensor], dtype: torch.dtype) -> TensorStep:
        """Return ``function`` at work."""
        starts = inputs["starts"].to(case.device, copy=True)
        series = inputs["series"].to(case.device, dtype, copy=True)
        parameters = {name: inputs[name].to(case.device, dtype, copy=True) for name in ("weight", "bias")}
        length, step, pool_size = case.shape["L"], case.shape["step"], case.shape["P"]
        compute = partial(function, series, starts, *parameters.values(), length, step, pool_size)
        return TensorStep(case, compute, series, parameters, inputs["gradient"].to(case.device, dtype))


def operations() -> list[Gathered]:
    """Return both first layers, with a pool and with the global maximum."""
    return [kind(pool) for kind in (Embedded, Windowed) for pool in ("max_pool1d", "global_max_pool1d")]


def embed(tokens: Tensor, table: Tensor, weight: Tensor, bias: Tensor, pool_size: int) -> Tensor:
    """Embed with torch."""
    return compose(F.embedding(tokens, table), weight, bias, pool_size)


def embed_contiguous(tokens: Tensor, table: Tensor, weight: Tensor, bias: Tensor, pool_size: int) -> Tensor:
    """Embed with torch, then copy."""
    return compose_contiguous(F.embedding(tokens, table), weight, bias, pool_size)


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
    from seqconv.kernels.numba.windows import gather_windows

    rows = series.new_empty(len(starts), length, series.size(1))
    gather_windows(series.detach().numpy(), starts.numpy(), length, step, rows.numpy())
    features = rows.transpose(1, 2)
    if pool_size:
        return functional.conv1d_relu_max_pool1d(features, weight, bias, pool_size=pool_size)
    return functional.conv1d_relu_global_max_pool1d(features, weight, bias)


def in_order(layer: Function) -> Function:
    """Return seqconv's function of windows with its arguments in the order that all providers share."""

    def bound(
        series: Tensor, starts: Tensor, weight: Tensor, bias: Tensor, length: int, step: int, **options: Any
    ) -> Tensor:
        return layer(series, starts, weight, bias, length=length, step=step, **options)

    return bound


def seqconv_provider(layer: Function) -> Provider:
    """Return seqconv's function, by the backend that it chooses, as a provider; the pool's size comes last."""

    def function(*given: Any) -> Tensor:
        *arguments, pool_size = given
        return layer(*arguments, **({"pool_size": pool_size} if pool_size else {}))

    return Provider("seqconv auto", lambda _case: function, unavailable=no_device, ours=True)


def on_cpu(case: Case) -> str | None:
    """Return why a case is not on the CPU, where windows are filled; or ``None``."""
    return None if case.device == "cpu" else "is for CPUs"
