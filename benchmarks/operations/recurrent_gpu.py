"""One GRU or LSTM over all steps: the Triton floor's kernels beside cuDNN's, torch's loop and other people's kernels.

A shape has ``N L C H``; ``dropout`` is 1 where masks, one for each gate, drop half of the state at every step. cuDNN
has no such dropout, torch's loop is what there is then. Masks and initial states are made outside of what is timed.
Tensors are time-major. The floor's functions are called as they are, through an autograd function of this module. Each
of torch's and seqconv's sides is there as eager calls and as one CUDA graph, so that a loop that is bound by launches
is not beaten for being that.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.operations.rivals import GRAPH, LEEWAY
from benchmarks.operations.steps import GraphStep, TensorStep, place, seeded
from benchmarks.operations.torch_peers import no_device
from benchmarks.registry import Case, Operation, Provider
from seqconv.kernels.recurrence import CELLS, EVERYTHING, NOTHING, Masks, Weights
from seqconv.kernels.reference import recurrent as reference
from seqconv.kernels.triton.support import refuse_device

# The notebook's two, and larger ones over fewer steps.
RECURRENT: dict[str, tuple[str, dict[str, int]]] = {
    "GRU, 14 to 32": ("gru", {"L": 240, "C": 14, "H": 32}),
    "LSTM, 32 to 32": ("lstm", {"L": 500, "C": 32, "H": 32}),
    "GRU, 64 to 64": ("gru", {"L": 100, "C": 64, "H": 64}),
    "LSTM, 64 to 64": ("lstm", {"L": 100, "C": 64, "H": 64}),
    "GRU, 128 to 128": ("gru", {"L": 100, "C": 128, "H": 128}),
    "LSTM, 128 to 128": ("lstm", {"L": 100, "C": 128, "H": 128}),
}
CUDNN, LOOP, TORCHRL, FLASHRNN = "torch nn", "torch loop", "TorchRL Triton", "FlashRNN"
PARAMETERS = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")  # of nn.GRU and nn.LSTM

Compute = Callable[[str, nn.RNNBase, Tensor, Tensor | None], Tensor]


def recurrent_case(
    name: str, mode: str, *, batch: int = 128, dtype: str = "float32", dropout: bool = False, device: str = "cpu"
) -> Case:
    """Return the case of one of :data:`RECURRENT`; its input takes a gradient, as behind another layer."""
    shape = {"N": batch, **RECURRENT[name][1], "dropout": int(dropout)}
    return Case("recurrent_gpu", name + ", dropout" * dropout, shape, mode, dtype, device=device)


def cell_of(case: Case) -> str:
    """Return the name of a case's cell."""
    return RECURRENT[case.name.removesuffix(", dropout")][0]


class Layer(nn.Module):
    """A recurrent layer that somebody computes; ``graphed`` if its step is to be one graph."""

    def __init__(self, compute: Compute, case: Case, graphed: bool = False) -> None:
        super().__init__()
        kind = nn.LSTM if cell_of(case) == "lstm" else nn.GRU
        self.rnn = kind(case.shape["C"], case.shape["H"])
        self.compute, self.graphed, self.cell = compute, graphed, cell_of(case)

    def forward(self, input: Tensor, mask: Tensor | None) -> Tensor:
        """Return the output (L, N, H)."""
        return self.compute(self.cell, self.rnn, input, mask)


def in_torch(_cell: str, rnn: nn.RNNBase, input: Tensor, _mask: Tensor | None) -> Tensor:
    """Compute with torch's module, on a GPU cuDNN."""
    output: Tensor = rnn(input)[0]
    return output


def in_a_loop(cell: str, rnn: nn.RNNBase, input: Tensor, mask: Tensor | None) -> Tensor:
    """Compute with torch's operations, step by step."""
    output, _ = reference.layer(cell, input, zeros(cell, rnn, input), weights_of(rnn), Masks(None, mask), None)
    return output


def in_kernels(cell: str, rnn: nn.RNNBase, input: Tensor, mask: Tensor | None) -> Tensor:
    """Compute with the Triton floor."""
    output: Tensor = Floor.apply(cell, input, mask, *(getattr(rnn, name) for name in PARAMETERS))
    return output


class Floor(torch.autograd.Function):
    """The Triton floor's two functions."""

    @staticmethod
    def forward(ctx: Any, cell: str, input: Tensor, mask: Tensor | None, *parameters: Tensor) -> Tensor:
        """Return the output."""
        floor = importlib.import_module("seqconv.kernels.triton.recurrent")
        states = tuple(input.new_zeros(1, input.size(1), parameters[1].size(1)) for _ in range(CELLS[cell].states))
        wanted = any(ctx.needs_input_grad)
        given = (cell, input, states, (Weights(*parameters),), Masks(None, mask), None)
        output, _, saved = floor.forward(*given, keep=EVERYTHING if wanted else NOTHING)
        ctx.cell, ctx.floor = cell, floor
        ctx.save_for_backward(input, mask, output, saved, *states, *parameters)
        result: Tensor = output
        return result

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        """Return the gradients of input and parameters."""
        input, mask, output, saved, *rest = ctx.saved_tensors
        states, weights = tuple(rest[:-4]), (Weights(*rest[-4:]),)
        wanted = (ctx.needs_input_grad[1], False, True)
        found = ctx.floor.backward(
            ctx.cell, gradient, None, input, states, weights, Masks(None, mask), None, output, saved, wanted=wanted
        )
        return None, found.input, None, *found.weights[0]


class TorchRL:
    """TorchRL's kernels, which have a state for each step to begin anew with: zeros here, and no step that does."""

    def __init__(self) -> None:
        self.kept: tuple[Tensor, Tensor] | None = None

    def __call__(self, cell: str, rnn: nn.RNNBase, input: Tensor, _mask: Tensor | None) -> Tensor:
        """Return the output."""
        kernels = importlib.import_module("torchrl.modules.tensordict_module._rnn_triton")
        x = input.transpose(0, 1)
        if self.kept is None:
            begins = torch.zeros(x.shape[:2], dtype=torch.bool, device=x.device)
            self.kept = x.new_zeros(*x.shape[:2], rnn.hidden_size), begins
        zero, begins = self.kept
        states = [zero] * CELLS[cell].states
        parameters = [getattr(rnn, name) for name in PARAMETERS]
        precision = "tf32" if torch.backends.cuda.matmul.allow_tf32 else "ieee"
        output: Tensor = getattr(kernels, f"{cell}_triton")(x, *states, *parameters, begins, input_precision=precision)[
            0
        ]
        return output.transpose(0, 1)


def in_flashrnn(_cell: str, rnn: nn.RNNBase, input: Tensor, _mask: Tensor | None) -> Tensor:
    """Compute an LSTM with FlashRNN, whose tensors are (B, T, G, heads, D)."""
    flashrnn = importlib.import_module("flashrnn").flashrnn
    weight_ih, weight_hh, bias_ih, bias_hh = (getattr(rnn, name) for name in PARAMETERS)
    hidden = rnn.hidden_size
    x = nn.functional.linear(input.transpose(0, 1), weight_ih, bias_ih).unflatten(-1, (4, 1, hidden))
    states, _ = flashrnn(
        x, weight_hh.view(4, 1, hidden, hidden), bias_hh.view(4, 1, hidden), function="lstm", backend="cuda_fused"
    )
    output: Tensor = states[0].squeeze(-2).transpose(0, 1)
    return output


def zeros(cell: str, rnn: nn.RNNBase, input: Tensor) -> tuple[Tensor, ...]:
    """Return initial states."""
    return tuple(input.new_zeros(1, input.size(1), rnn.hidden_size) for _ in range(CELLS[cell].states))


def weights_of(rnn: nn.RNNBase) -> tuple[Weights]:
    """Return a module's weights as kernels take them."""
    return (Weights(*(getattr(rnn, name) for name in PARAMETERS)),)


def unavailable(name: str, graphed: bool, case: Case) -> str | None:
    """Return why somebody cannot serve a case, or ``None``."""
    if (reason := no_device(case)) is not None:
        return reason
    if graphed and not case.device.startswith("cuda"):
        return "CUDA graphs are for GPUs"
    if name == "seqconv triton":
        return refuse_device(torch.device(case.device))
    if case.shape["dropout"] and name != LOOP:
        return "has no recurrent dropout"
    package = {TORCHRL: "torchrl", FLASHRNN: "flashrnn"}.get(name)
    if package and importlib.util.find_spec(package) is None:
        return f"the package {package} is not installed"
    if package and not case.device.startswith("cuda"):
        return "is for GPUs"
    if name == TORCHRL and case.torch_dtype != torch.float32:
        return "is for float32 tensors"
    if name == FLASHRNN and (cell_of(case), case.dtype) != ("lstm", "bfloat16"):
        return "is taken for an LSTM in bfloat16"
    return None


@dataclass(frozen=True)
class RecurrentSide:
    """Somebody who computes the layer."""

    name: str
    make: Callable[[], Compute]
    graphs: bool = True
    marks: Mapping[str, Any] | None = None


SIDES = (
    RecurrentSide(CUDNN, lambda: in_torch),
    RecurrentSide(LOOP, lambda: in_a_loop),
    RecurrentSide(TORCHRL, TorchRL, False, {"leeway": LEEWAY}),
    RecurrentSide(FLASHRNN, lambda: in_flashrnn, False, {"leeway": LEEWAY}),
    RecurrentSide("seqconv triton", lambda: in_kernels),
)


def made(side: RecurrentSide, graphed: bool, case: Case) -> Layer:
    """Return what a provider makes."""
    return Layer(side.make(), case, graphed)


class RecurrentOnGPUs(Operation):
    """A recurrent layer's output, and its gradients where the mode has any."""

    name = "recurrent_gpu"
    stateful = True
    noise = False
    rivals_meet = False

    def __init__(self) -> None:
        super().__init__()
        for side in SIDES:
            for graphed in (False, True)[: 1 + side.graphs]:
                ours = side.name.startswith("seqconv")
                self.register(Provider(
                    side.name + GRAPH * graphed, partial(made, side, graphed), partial(unavailable, side.name, graphed),
                    baseline=not ours, ours=ours, **(side.marks or {}),
                ))  # fmt: skip

    def checked(self, case: Case) -> Case:
        """Return the case itself: its tile depends on how many sequences there are."""
        return case

    def definition(self, case: Case) -> Layer:
        """Return torch's loop."""
        return Layer(in_a_loop, case)

    def inputs(self, case: Case, values: str) -> dict[str, Tensor]:
        """Return input, parameters, the masks of the state, and the output's gradient."""
        generator, gates = seeded(case, values), CELLS[cell_of(case)].gates
        steps, samples, features, hidden = (case.shape[letter] for letter in "LNCH")

        def normal(*shape: int, scale: float = 1.0) -> Tensor:
            return torch.randn(shape, generator=generator, device=generator.device) * scale

        scale = hidden**-0.5
        shapes = ((gates * hidden, features), (gates * hidden, hidden), (gates * hidden,), (gates * hidden,))
        found = {name: normal(*shape, scale=scale) for name, shape in zip(PARAMETERS, shapes, strict=True)}
        found |= {"input": normal(steps, samples, features), "gradient": normal(steps, samples, hidden)}
        if case.shape["dropout"]:
            mask = torch.empty(1, 1, gates, samples, hidden, device=generator.device)
            found["mask"] = mask.bernoulli_(0.5, generator=generator) * 2
        return found

    def step(self, case: Case, function: Layer, inputs: Mapping[str, Tensor], dtype: torch.dtype) -> Any:
        """Return the layer at work."""
        layer = function.to(case.device, dtype)
        own = {name: place(tensor, case, dtype) for name, tensor in inputs.items()}
        parameters = dict(layer.rnn.named_parameters())
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(own[name])
        input, mask = own["input"], own.get("mask")
        step = TensorStep(case, lambda: layer(input, mask), input, parameters, own["gradient"])
        return GraphStep(step) if function.graphed else step


def operations() -> list[Operation]:
    """Return the recurrent layer."""
    return [RecurrentOnGPUs()]
