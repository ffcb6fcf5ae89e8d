"""conv1d + ReLU + max pool, and + global max: the notebook's layers, random shapes, and the RNN in a layer's place.

A shape has ``N C L O K`` and the pool's size ``P``, 0 for the global maximum; it may name ``stride``, ``padding`` and
``dilation`` too. In the sweep torch gets each case in its better memory layout, seqconv in the case's own. ``seqconv
auto`` is what users get; ``seqconv numba`` is timed beside it where ``auto`` chooses something else, as the call would
otherwise be the same. An LSTM and a GRU compute something else, so each answers to its own definition (the same module
in float64), and only the time and the task are common: ``(N, C, L)`` in, 32 features out. On a GPU they are cuDNN's.
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
import torch.nn.functional as F
from torch import Tensor, nn

import seqconv
from benchmarks.operations.steps import TensorStep, layer_tensors, place, seeded
from benchmarks.operations.torch_peers import no_device, torch_providers
from benchmarks.registry import Case, Operation, Provider, drawn, operation
from benchmarks.timing import Side, fastest, stopwatch_for
from seqconv import backends
from seqconv.functional.conv import conv1d_relu_global_max_pool1d, conv1d_relu_max_pool1d, conv_call
from seqconv.kernels.geometry import Convolution

# The first layer of the Jena model reads the data itself and needs no gradient for it; the IMDB model's reads an
# embedding, which does.
LAYERS: dict[str, tuple[dict[str, int], bool]] = {
    "imdb1": ({"C": 128, "L": 500, "O": 32, "K": 7, "P": 5}, True),
    "imdb2": ({"C": 32, "L": 94, "O": 32, "K": 7, "P": 0}, True),
    "jena1": ({"C": 14, "L": 240, "O": 32, "K": 5, "P": 3}, False),
    "jena2": ({"C": 32, "L": 78, "O": 32, "K": 5, "P": 3}, True),
}
# Deeper layers, beside the CPU's peak: many channels behind few taps, and many channels of many outputs.
DEEP: dict[str, tuple[dict[str, int], int]] = {  # with the batch
    "c64k3": ({"C": 64, "L": 500, "O": 64, "K": 3, "P": 2}, 32),
    "deepsea2": ({"C": 320, "L": 248, "O": 480, "K": 8, "P": 4}, 16),
}
BETTER = "torch eager, better layout"
LAYOUTS = ("contiguous", "channels_last")
OPTIONS = ("stride", "padding", "dilation")

SEED = 20
RANGES = {"C": (1, 512), "O": (1, 512), "K": (1, 31), "L": (8, 4096), "N": (1, 256)}
POOLS = (0, 0, 1, 2, 3, 4, 5, 6, 7, 8)  # one in five is the global maximum
# Larger batches are halved until they fit: on two cores a call then takes torch some 10 ms, a training step 100.
MULTIPLY_ADDS = 500_000_000
NUMBERS = 2**22  # of the input, and of the convolution's output
CHECKED_MULTIPLY_ADDS = 10_000_000

Function = Callable[..., Tensor]


def fused_name(shape: Mapping[str, int]) -> str:
    """Return the name of the fused layer of a shape."""
    return "conv1d_relu_max_pool1d" if shape["P"] else "conv1d_relu_global_max_pool1d"


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
    return Case(fused_name(shape), name, {"N": batch, **shape}, mode, dtype, layout, device, input_gradient, cold)


def deep_case(name: str, mode: str, *, layout: str = "contiguous") -> Case:
    """Return the case of one of ``DEEP``, on the CPU."""
    shape, batch = DEEP[name]
    return Case(fused_name(shape), name, {"N": batch, **shape}, mode, layout=layout)


def rival_case(name: str, mode: str, **options: Any) -> Case:
    """Return the case of one of ``LAYERS`` beside RNNs, on batches as they come: ``(N, L, C)`` in memory."""
    return replace(layer_case(name, mode, layout="channels_last", **options), operation="layers")


def sweep_cases(modes: tuple[str, ...], count: int, device: str = "cpu") -> list[Case]:
    """Return the first ``count`` random cases in every mode, always the same ones."""
    layouts = random.Random(SEED)
    choices = [(shape, layouts.choice(LAYOUTS)) for shape in shapes(count)]
    random_shapes = [(shape, LAYOUTS[0] if must_be_contiguous(shape) else layout) for shape, layout in choices]
    return [
        Case("sweep", f"{number:03d} {spelled(shape)}", shape, mode, layout=layout, device=device)
        for number, (shape, layout) in enumerate(random_shapes)
        for mode in modes
    ]


def must_be_contiguous(shape: Mapping[str, int]) -> bool:
    """Tell whether torch cannot be timed on a shape in channels-last memory.

    Its gradients (2.13, oneDNN) of strided kernels of one position write beyond their memory there: of loops over 44
    such shapes one in two ended with glibc's "double linked list corrupted"; none did on contiguous memory.
    """
    return shape["K"] == 1 and shape.get("stride", 1) > 1


def spelled(shape: Mapping[str, int]) -> str:
    """Return a shape without its batch in words: those of its case."""
    letters = " ".join(f"{letter} {shape[letter]}" for letter in "COKL")
    pool = f"pool {shape['P']}" if shape["P"] else "global"
    return " ".join([letters, pool, *(f"{name} {shape[name]}" for name in OPTIONS if name in shape)])


def shapes(count: int) -> list[dict[str, int]]:
    """Return random shapes: sizes uniform on a logarithmic scale, now and then a stride, a padding or a dilation.

    Three in ten are single samples.
    """
    generator = random.Random(SEED)

    def log_uniform(least: int, greatest: int) -> int:
        return int(math.exp(generator.uniform(math.log(least), math.log(greatest + 1))))

    found: list[dict[str, int]] = []
    while len(found) < count:
        shape = {letter: log_uniform(*bounds) for letter, bounds in RANGES.items()}
        shape["P"] = generator.choice(POOLS)
        if generator.random() < 0.3:
            shape["N"] = 1
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


def fit(shape: dict[str, int], positions: int, multiply_adds: int = MULTIPLY_ADDS) -> bool:
    """Halve the batch until the case is small enough; return whether it came to that."""
    sample = shape["O"] * positions
    work, numbers = sample * shape["C"] * shape["K"], max(sample, shape["C"] * shape["L"])
    while shape["N"] * work > multiply_adds or shape["N"] * numbers > NUMBERS:
        shape["N"] //= 2
    return shape["N"] > 0


def options(case: Case) -> dict[str, int]:
    """Return those of the convolution's options that the case's shape names: they are not the usual ones."""
    return {name: case.shape[name] for name in OPTIONS if name in case.shape}


def conv_positions(case: Case) -> int:
    """Return the output positions of the case's convolution."""
    given = options(case)
    padding = given.get("padding", 0)
    convolution = Convolution(given.get("stride", 1), (padding, padding), given.get("dilation", 1))
    return convolution.output_length(case.shape["L"], case.shape["K"])


def pooled_shape(case: Case) -> tuple[int, ...]:
    """Return the shape of the layer's output."""
    n, o, p = (case.shape[letter] for letter in "NOP")
    return (n, o, conv_positions(case) // p) if p else (n, o)


def max_pool(
    input: Tensor, weight: Tensor, bias: Tensor, pool_size: int, *, stride: int = 1, padding: int = 0, dilation: int = 1
) -> Tensor:
    """Compose the layer of torch's operations."""
    return F.max_pool1d(F.conv1d(input, weight, bias, stride, padding, dilation).relu(), pool_size)


def global_max_pool(
    input: Tensor, weight: Tensor, bias: Tensor, *, stride: int = 1, padding: int = 0, dilation: int = 1
) -> Tensor:
    """Compose the global layer of torch's operations."""
    return F.conv1d(input, weight, bias, stride, padding, dilation).relu().max(2).values


def seqconv_layer(backend: str, case: Case) -> Function:
    """Return the case's layer on one of seqconv's backends."""
    if not case.shape["P"]:
        return partial(conv1d_relu_global_max_pool1d, backend=backend)

    def layer(input: Tensor, weight: Tensor, bias: Tensor, pool_size: int, **options: int) -> Tensor:
        return conv1d_relu_max_pool1d(input, weight, bias, pool_size=pool_size, backend=backend, **options)

    return layer


def better_layout(case: Case) -> str:
    """Return the memory layout in which torch's composition is the faster, by a short trial of both.

    What must not be channels-last is not tried so.
    """
    if must_be_contiguous(case.shape) and case.device == "cpu":
        return LAYOUTS[0]
    return _better_layout(replace(case, layout=LAYOUTS[0]))


@cache
def _better_layout(case: Case) -> str:
    kind = operation(case.operation)
    inputs, compose, stopwatch = drawn(case, "random"), kind.definition(case), stopwatch_for(case.device)
    steps = {one: kind.step(replace(case, layout=one), compose, inputs, case.torch_dtype) for one in LAYOUTS}
    return fastest({one: Side(step, stopwatch) for one, step in steps.items()})


class ConvPool(Operation):
    """One of the two layers on ``(N, C, L)``."""

    values = ("random", "exact")

    def __init__(self, name: str, compose: Function) -> None:
        super().__init__()
        self.name, self.compose = name, compose
        for provider in torch_providers(compose):
            self.register(provider)
        self.add_better_layout()
        for backend in backends.names(name):
            self.add(backend, partial(refused, backend), ours=backend != "reference")

    def add_better_layout(self) -> None:
        """Register torch in its better layout."""
        better = Provider(BETTER, self.definition, unavailable=no_device, baseline=True, layout=better_layout)
        self.register(better)

    def add(self, backend: str, unable: Callable[[Case], str | None], *, ours: bool = True) -> None:
        """Register one of seqconv's backends."""

        def unavailable(case: Case) -> str | None:
            return no_device(case) or unable(case)

        self.register(Provider(f"seqconv {backend}", partial(seqconv_layer, backend), unavailable, ours=ours))

    def definition(self, case: Case) -> Function:  # noqa: ARG002
        """Return torch's composition."""
        return self.compose

    def compared(self, values: str) -> tuple[str, ...] | None:
        """Check gradients on exact inputs alone.

        Where two positions differ by less than a rounding, the gradient goes to one or to the other, both rightly.
        """
        return ("output",) if values == "random" else None

    def inputs(self, case: Case, values: str) -> dict[str, Tensor]:
        """Return input, weight, bias and the gradient of the output."""
        n, c, length, o, k = (case.shape[letter] for letter in "NCLOK")
        others = {"input": (n, c, length), "gradient": pooled_shape(case)}
        return layer_tensors(seeded(case, values), values, (o, c, k), others)

    def step(self, case: Case, function: Function, inputs: Mapping[str, Tensor], dtype: torch.dtype) -> TensorStep:
        """Return ``function`` at work."""
        placed = {name: place(tensor, case, dtype) for name, tensor in inputs.items() if name != "weight"}
        placed["weight"] = inputs["weight"].to(case.device, dtype, copy=True)
        parameters = {name: placed[name] for name in ("weight", "bias")}
        pool = [case.shape["P"]] if case.shape["P"] else []
        compute = partial(function, placed["input"], *parameters.values(), *pool, **options(case))
        return TensorStep(case, compute, placed["input"], parameters, placed["gradient"])


class Sweep(ConvPool):
    """Both layers, told apart by the case's ``P``."""

    name = "sweep"
    noise = False

    def __init__(self) -> None:
        Operation.__init__(self)
        self.add_better_layout()
        self.add("auto", lambda _case: None)
        self.add("numba", chosen_or_refused)

    def checked(self, case: Case) -> Case:
        """Return the case with so few samples that its oracle is quick."""
        shape = dict(case.shape)
        fit(shape, conv_positions(case), CHECKED_MULTIPLY_ADDS)
        return replace(case, shape={**shape, "N": max(shape["N"], 1)})

    def definition(self, case: Case) -> Function:
        """Return torch's composition."""
        return max_pool if case.shape["P"] else global_max_pool


def refused(backend: str, case: Case) -> str | None:
    """Return why a backend does not take the case's tensors, as it says itself for a single sample; or ``None``."""
    kind = operation(case.operation)
    single = replace(case, shape={**case.shape, "N": 1}, mode="forward")
    try:
        kind.step(single, seqconv_layer(backend, case), kind.inputs(single, "random"), case.torch_dtype).call()
    except backends.BackendError as error:
        return str(error)
    return None


def chosen_or_refused(case: Case) -> str | None:
    """Return why ``numba`` is not timed by itself, or ``None``."""
    return "auto chose it: the same call" if chosen(case) == "numba" else refused("numba", case)


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
        call = conv_call(input.requires_grad_(training and case.input_gradient), None, weight, bias, convolution, pool)
        return call.explain("auto").backend


class Layers(Operation):
    """A convolution with its pool, an LSTM and a GRU of the sizes ``N C L O`` (and ``K P`` for the convolution)."""

    name = "layers"
    stateful = True

    def __init__(self, fused: list[ConvPool]) -> None:
        super().__init__()
        for name, kind, own in (("LSTM", nn.LSTM, seqconv.LSTM), ("GRU", nn.GRU, seqconv.GRU)):
            make = partial(Recurrent, kind)
            self.register(Provider(name, make, unavailable=no_device, baseline=True, definition=make))
            ours = partial(Recurrent, own)
            self.register(Provider(f"seqconv {name}", ours, no_own_kernel, baseline=True, definition=make))
        providers = {one.name: one for layer in fused for one in layer.providers.values()}
        for one in providers.values():
            if one.name == "torch eager" or one.ours:
                made, unable = partial(FusedConvolution, one.name), partial(unavailable_layer, one.name)
                self.register(Provider(f"convolution, {one.name}", made, unable, ours=one.ours))

    def definition(self, case: Case) -> nn.Module:
        """Return the convolution."""
        return FusedConvolution("torch eager", case)

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


def no_own_kernel(case: Case) -> str | None:
    """Return why seqconv's recurrent layers would run torch's kernels on a case, or ``None``."""
    return no_device(case) or (None if has_own_rnns(case.device) else "seqconv has no recurrent kernel for GPUs")


def has_own_rnns(device: str) -> bool:
    """Return whether seqconv has recurrent kernels of its own for a device."""
    return device == "cpu" or "triton" in backends.names("gru")


def unavailable_layer(provider: str, case: Case) -> str | None:
    """Return why a provider of the fused layer cannot serve it, or ``None``."""
    fused = replace(case, operation=fused_name(case.shape))
    return operation(fused.operation).providers[provider].unavailable(fused)


class FusedConvolution(nn.Module):
    """A provider's fused layer, with parameters."""

    def __init__(self, provider: str, case: Case) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.compute = operation(fused_name(case.shape)).providers[provider].make(case)
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


def operations() -> list[Operation]:
    """Return the layer with a pool, the one with the global maximum, random shapes of both, and layers beside RNNs."""
    fused = [ConvPool("conv1d_relu_max_pool1d", max_pool), ConvPool("conv1d_relu_global_max_pool1d", global_max_pool)]
    return [*fused, Sweep(), Layers(fused)]
