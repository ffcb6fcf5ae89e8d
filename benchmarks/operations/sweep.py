"""The fused conv stack at random shapes: where seqconv is faster than torch, and where it is not.

Torch gets each case in its better memory layout, seqconv in the case's own. ``seqconv auto`` is what users get;
``seqconv numba`` is timed beside it where ``auto`` chooses something else, as the call would otherwise be the same.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import replace
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.operations.conv_pool import (
    BETTER,
    LAYOUTS,
    OPTIONS,
    ConvPool,
    better_layout,
    conv_positions,
    global_max_pool,
    globally,
    max_pool,
    options,
    pooled,
    refused,
)
from benchmarks.operations.torch_peers import no_device
from benchmarks.registry import Case, Operation, Provider
from seqconv.functional.conv import conv_call

__all__ = ["RANGES", "Sweep", "shapes", "sweep_cases"]

SEED = 20
RANGES = {"C": (1, 512), "O": (1, 512), "K": (1, 31), "L": (8, 4096), "N": (1, 256)}
POOLS = (0, 0, 1, 2, 3, 4, 5, 6, 7, 8)  # one in five is the global maximum

# Larger batches are halved until they fit: on two cores a call then takes torch some 10 ms, a training step 100.
MULTIPLY_ADDS = 500_000_000
NUMBERS = 2**22  # of the input, and of the convolution's output
CHECKED_MULTIPLY_ADDS = 10_000_000


def sweep_cases(modes: tuple[str, ...], count: int, device: str = "cpu") -> list[Case]:
    """Return the first ``count`` random cases in every mode, always the same ones."""
    layouts = random.Random(SEED)
    drawn = [(shape, layouts.choice(LAYOUTS)) for shape in shapes(count)]
    return [
        Case("sweep", f"{number:03d} {spelled(shape)}", shape, mode, layout=layout, device=device)
        for number, (shape, layout) in enumerate(drawn)
        for mode in modes
    ]


def spelled(shape: Mapping[str, int]) -> str:
    """Return a shape without its batch in words: those of its case."""
    letters = " ".join(f"{letter} {shape[letter]}" for letter in "COKL")
    pool = f"pool {shape['P']}" if shape["P"] else "global"
    return " ".join([letters, pool, *(f"{name} {shape[name]}" for name in OPTIONS if name in shape)])


def shapes(count: int) -> list[dict[str, int]]:
    """Return random shapes: sizes uniform on a logarithmic scale, now and then a stride, a padding or a dilation."""
    generator = random.Random(SEED)
    found: list[dict[str, int]] = []
    while len(found) < count:
        shape = {letter: log_uniform(generator, *bounds) for letter, bounds in RANGES.items()}
        shape["P"] = generator.choice(POOLS)
        if generator.random() < 0.2:
            shape["stride"] = generator.randint(2, 3)
        if generator.random() < 0.2:
            shape["dilation"] = generator.randint(2, 4)
        if shape["K"] > 1 and generator.random() < 0.3:
            shape["padding"] = shape.get("dilation", 1) * generator.randint(1, shape["K"] // 2)
        positions = conv_positions(Case("sweep", "", shape, "forward"))
        if positions >= max(shape["P"], 1) and fit(shape, positions):
            found.append(shape)
    return found


def log_uniform(generator: random.Random, least: int, greatest: int) -> int:
    """Return a random integer from ``least`` to ``greatest``, each octave as likely as any other."""
    return int(math.exp(generator.uniform(math.log(least), math.log(greatest + 1))))


def fit(shape: dict[str, int], positions: int, multiply_adds: int = MULTIPLY_ADDS) -> bool:
    """Halve the batch until the case is small enough; return whether it came to that."""
    sample = shape["O"] * positions
    work, numbers = sample * shape["C"] * shape["K"], max(sample, shape["C"] * shape["L"])
    while shape["N"] * work > multiply_adds or shape["N"] * numbers > NUMBERS:
        shape["N"] //= 2
    return shape["N"] > 0


class Sweep(ConvPool):
    """Both layers, told apart by the case's ``P``."""

    noise = False

    def __init__(self) -> None:
        Operation.__init__(self)
        self.name = "sweep"
        self.register(Provider(BETTER, self.definition, unavailable=no_device, baseline=True, layout=better_layout))
        for backend, unavailable in (("auto", no_device), ("numba", chosen_or_refused)):
            make = partial(layer, backend)
            self.register(Provider(f"seqconv {backend}", make, unavailable=unavailable, ours=True))

    def checked(self, case: Case) -> Case:
        """Return the case with so few samples that its oracle is quick."""
        shape = dict(case.shape)
        fit(shape, conv_positions(case), CHECKED_MULTIPLY_ADDS)
        return replace(case, shape={**shape, "N": max(shape["N"], 1)})

    def definition(self, case: Case) -> Callable[..., Tensor]:
        """Return torch's composition."""
        return max_pool if case.shape["P"] else global_max_pool


def layer(backend: str, case: Case) -> Callable[..., Tensor]:
    """Return the case's layer on a backend."""
    return pooled(backend) if case.shape["P"] else globally(backend)


def chosen_or_refused(case: Case) -> str | None:
    """Return why ``numba`` is not timed by itself, or ``None``."""
    return no_device(case) or (
        "auto chose it: the same call" if chosen(case) == "numba" else refused(case, layer("numba", case))
    )


@cache
def chosen(case: Case) -> str:
    """Return the backend that ``auto`` chooses for the case."""
    n, c, length, o, k = (case.shape[letter] for letter in "NCLOK")
    training = case.mode in ("forward_backward", "training_step")
    empty: Any = partial(torch.empty, device=case.device)
    input = empty(n, length, c).transpose(1, 2) if case.layout == "channels_last" else empty(n, c, length)
    weight, bias = empty(o, c, k, requires_grad=training), empty(o, requires_grad=training)
    given = options(case)
    convolution = (given.get("stride", 1), given.get("padding", 0), given.get("dilation", 1), 1)
    pool = (case.shape["P"], None, 0, 1, False) if case.shape["P"] else None
    with nullcontext() if training else torch.no_grad():
        call = conv_call(input.requires_grad_(training and case.input_gradient), weight, bias, convolution, pool)
        return call.explain("auto").backend
