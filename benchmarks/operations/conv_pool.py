"""conv1d + ReLU + max pool, and + global max: the layers of the notebook's models."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.operations.steps import TensorStep, grid_values, place, seeded
from benchmarks.operations.torch_peers import no_device, torch_providers
from benchmarks.registry import Case, Operation, Provider, drawn, operation
from benchmarks.timing import Side, fastest, stopwatch_for
from seqconv import backends
from seqconv.functional.conv import conv1d_relu_global_max_pool1d, conv1d_relu_max_pool1d
from seqconv.kernels.geometry import Convolution

__all__ = [
    "BETTER",
    "LAYERS",
    "LAYOUTS",
    "ConvPool",
    "better_layout",
    "conv_positions",
    "global_max_pool",
    "globally",
    "layer_case",
    "max_pool",
    "operations",
    "options",
    "pooled",
    "refused",
]

# N is the batch; P = 0 stands for the global maximum. The first layer of the Jena model reads the data itself and
# needs no gradient for it; the IMDB model's reads an embedding, which does.
LAYERS: dict[str, tuple[dict[str, int], bool]] = {
    "imdb1": ({"C": 128, "L": 500, "O": 32, "K": 7, "P": 5}, True),
    "imdb2": ({"C": 32, "L": 94, "O": 32, "K": 7, "P": 0}, True),
    "jena1": ({"C": 14, "L": 240, "O": 32, "K": 5, "P": 3}, False),
    "jena2": ({"C": 32, "L": 78, "O": 32, "K": 5, "P": 3}, True),
}


BETTER = "torch eager, better layout"
LAYOUTS = ("contiguous", "channels_last")
OPTIONS = ("stride", "padding", "dilation")


def layer_case(
    name: str,
    mode: str,
    *,
    batch: int = 128,
    dtype: str = "float32",
    layout: str = "contiguous",
    device: str = "cpu",
    cold: bool = False,
) -> Case:
    """Return the case of one of ``LAYERS``."""
    shape, input_gradient = LAYERS[name]
    kind = "conv1d_relu_max_pool1d" if shape["P"] else "conv1d_relu_global_max_pool1d"
    return Case(kind, name, {"N": batch, **shape}, mode, dtype, layout, device, input_gradient, cold)


def max_pool(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    pool_size: int,
    *,
    stride: int = 1,
    padding: int = 0,
    dilation: int = 1,
) -> Tensor:
    """Compose the layer of torch's operations."""
    return F.max_pool1d(F.conv1d(input, weight, bias, stride, padding, dilation).relu(), pool_size)


def global_max_pool(
    input: Tensor, weight: Tensor, bias: Tensor, *, stride: int = 1, padding: int = 0, dilation: int = 1
) -> Tensor:
    """Compose the global layer of torch's operations."""
    return F.conv1d(input, weight, bias, stride, padding, dilation).relu().max(2).values


def options(case: Case) -> dict[str, int]:
    """Return those of the convolution's options that the case's shape names: they are not the usual ones."""
    return {name: case.shape[name] for name in OPTIONS if name in case.shape}


def better_layout(case: Case) -> str:
    """Return the memory layout in which torch's composition is the faster, by a short trial of both."""
    return _better_layout(replace(case, layout=LAYOUTS[0]))


@cache
def _better_layout(case: Case) -> str:
    kind = operation(case.operation)
    inputs, compose, stopwatch = drawn(case, "random"), kind.definition(case), stopwatch_for(case.device)
    steps = {one: kind.step(replace(case, layout=one), compose, inputs, case.torch_dtype) for one in LAYOUTS}
    return fastest({one: Side(step, stopwatch) for one, step in steps.items()})


def conv_positions(case: Case) -> int:
    """Return the output positions of the case's convolution."""
    given = options(case)
    padding = given.get("padding", 0)
    convolution = Convolution(given.get("stride", 1), (padding, padding), given.get("dilation", 1))
    return convolution.output_length(case.shape["L"], case.shape["K"])


class ConvPool(Operation):
    """One of the two layers on ``(N, C, L)``; a shape may name ``stride``, ``padding`` and ``dilation`` too."""

    values = ("random", "exact")

    def __init__(self, name: str, compose: Callable[..., Tensor], bind: Callable[[str], Callable[..., Tensor]]) -> None:
        super().__init__()
        self.name = name
        self.compose = compose
        for provider in torch_providers(compose):
            self.register(provider)
        self.register(
            Provider(BETTER, lambda _case: compose, unavailable=no_device, baseline=True, layout=better_layout)
        )
        for backend in backends.names(name):
            self.register(seqconv_provider(backend, bind))

    def definition(self, case: Case) -> Callable[..., Tensor]:  # noqa: ARG002
        """Return torch's composition."""
        return self.compose

    def compared(self, values: str) -> tuple[str, ...] | None:
        """Check gradients on exact inputs alone.

        Where two positions differ by less than a rounding, the gradient goes to one or to the other, both rightly.
        """
        return ("output",) if values == "random" else None

    def inputs(self, case: Case, values: str) -> dict[str, Tensor]:
        """Return input, weight, bias and the gradient of the output.

        ``random`` ones are what a network sees. ``exact`` ones have so few bits that every sum in every precision is
        exact: then ties are ties on both sides, and gradients can be compared.
        """
        n, c, length, o, k = (case.shape[letter] for letter in "NCLOK")
        positions = conv_positions(case)
        pooled = (n, o, positions // case.shape["P"]) if case.shape["P"] else (n, o)
        generator = seeded(case, values)
        if values == "exact":
            grid = partial(grid_values, generator)
            return {
                "input": grid((n, c, length), 16, 8),
                "weight": grid((o, c, k), 32, 64),
                "bias": grid((o,), 64, 64),
                "gradient": grid(pooled, 16, 8),
            }
        normal = partial(torch.randn, generator=generator, device=generator.device)
        return {
            "input": normal(n, c, length),
            "weight": normal(o, c, k) / (c * k) ** 0.5,
            "bias": normal(o) / 10,
            "gradient": normal(pooled),
        }

    def step(
        self, case: Case, function: Callable[..., Tensor], inputs: Mapping[str, Tensor], dtype: torch.dtype
    ) -> TensorStep:
        """Return ``function`` at work."""
        placed = {name: place(tensor, case, dtype) for name, tensor in inputs.items() if name != "weight"}
        placed["weight"] = inputs["weight"].to(case.device, dtype, copy=True)
        arguments: list[Any] = [placed[name] for name in ("input", "weight", "bias")]
        arguments += [case.shape["P"]] if case.shape["P"] else []
        parameters = {name: placed[name] for name in ("weight", "bias")}
        compute = partial(function, *arguments, **options(case))
        return TensorStep(case, compute, placed["input"], parameters, placed["gradient"])


def operations() -> list[ConvPool]:
    """Return the layer with a pool and the layer with the global maximum."""
    return [
        ConvPool("conv1d_relu_max_pool1d", max_pool, pooled),
        ConvPool("conv1d_relu_global_max_pool1d", global_max_pool, globally),
    ]


def pooled(backend: str) -> Callable[..., Tensor]:
    """Return the layer with a pool on one of seqconv's backends."""

    def layer(input: Tensor, weight: Tensor, bias: Tensor, pool_size: int, **options: int) -> Tensor:
        return conv1d_relu_max_pool1d(input, weight, bias, pool_size=pool_size, backend=backend, **options)

    return layer


def globally(backend: str) -> Callable[..., Tensor]:
    """Return the layer with the global maximum on one of seqconv's backends."""
    return partial(conv1d_relu_global_max_pool1d, backend=backend)


def seqconv_provider(backend: str, bind: Callable[[str], Callable[..., Tensor]]) -> Provider:
    """Return one of seqconv's backends as a provider."""
    return Provider(
        f"seqconv {backend}",
        lambda _case: bind(backend),
        unavailable=lambda case: no_device(case) or refused(case, bind(backend)),
        ours=backend != "reference",
    )


def refused(case: Case, function: Callable[..., Tensor]) -> str | None:
    """Return why a backend does not take the case's tensors, as it says itself for a single sample; or ``None``."""
    kind = operation(case.operation)
    single = replace(case, shape={**case.shape, "N": 1}, mode="forward")
    try:
        kind.step(single, function, kind.inputs(single, "random"), case.torch_dtype).call()
    except backends.BackendError as error:
        return str(error)
    return None
