"""GRU and LSTM alone: seqconv's kernels beside torch's layers, with and without dropout on input and state.

A shape has ``N C L O``: sequences, input features, time steps and hidden units. Input is ``(N, L, C)`` in memory; the
result is the last output ``(N, O)``, which is what a classifier reads, and every side computes all outputs. A training
step is forward, backward and RMSprop. All sides have the same weights; output and all gradients are checked.

A case with dropout draws its masks anew in every call, on every side, as part of the work. The generator is set back
before each call, so that the masks are equal. Torch's layers have no such dropout: a loop over torch's operations has,
which is seqconv's own reference. ``seqconv without dropout`` is the same layer and step with nothing dropped.

``recompute`` keeps no gates for the backward pass: it saves memory and computes more.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.operations.layers import Recurrent
from benchmarks.operations.models import DROPOUTS, ModelStep
from benchmarks.operations.steps import place, seeded
from benchmarks.operations.torch_peers import cannot_compile, no_device
from benchmarks.registry import Case, Operation, Provider
from seqconv import GRU, LSTM, backends

KINDS = {"GRU": (nn.GRU, GRU), "LSTM": (nn.LSTM, LSTM)}
OF_DROPOUT = "_dropout"
TRAINING = "training_step"


@dataclass(frozen=True)
class Sequences:
    """A layer's kind, its sizes, its usual batch, and whether its input needs a gradient."""

    kind: str
    sizes: Mapping[str, int]
    batch: int = 128
    input_gradient: bool = True


# The first one reads the data itself and needs no gradient for them; the others stand behind a layer.
SEQUENCES = {
    "gru32": Sequences("GRU", {"C": 14, "L": 240, "O": 32}, input_gradient=False),
    "lstm32": Sequences("LSTM", {"C": 32, "L": 500, "O": 32}),
    "gru128": Sequences("GRU", {"C": 128, "L": 100, "O": 128}),
    "lstm128": Sequences("LSTM", {"C": 128, "L": 100, "O": 128}),
    "lstm512": Sequences("LSTM", {"C": 512, "L": 100, "O": 512}, batch=64),
}


def recurrent_case(
    name: str, mode: str, *, dropout: bool = False, batch: int | None = None, device: str = "cpu"
) -> Case:
    """Return the case of one of ``SEQUENCES``, at its usual batch unless another is given."""
    one = SEQUENCES[name]
    shape = {"N": batch or one.batch, **one.sizes}
    spelled = name + OF_DROPOUT * dropout
    return Case("recurrent", spelled, shape, mode, "float32", "channels_last", device, one.input_gradient)


def sequences_of(case: Case) -> Sequences:
    """Return the entry of ``SEQUENCES`` that a case is of."""
    return SEQUENCES[case.name.removesuffix(OF_DROPOUT)]


def drops(case: Case) -> bool:
    """Return whether a case has dropout."""
    return case.name.endswith(OF_DROPOUT)


class RecurrentLayers(Operation):
    """The last output of a GRU or an LSTM, or a step of its training."""

    name = "recurrent"
    stateful = True
    noise = False

    def __init__(self) -> None:
        super().__init__()
        loop = partial(seqconv_layer, "reference")
        without = partial(seqconv_layer, "auto", dropout=False)
        self.register(Provider("torch eager", torch_layer, no_dropout, baseline=True))
        self.register(Provider("torch loop", loop, only_dropout, baseline=True))
        self.register(Provider("seqconv without dropout", without, only_dropout, baseline=True, definition=torch_layer))
        self.register(Provider("torch.compile", CompiledLayer, cannot_compile_layer, one_batch=True))
        self.register(Provider("seqconv auto", partial(seqconv_layer, "auto"), no_device, ours=True))
        for backend in backends.names("gru"):
            if backend not in ("auto", "reference"):
                make, unable = partial(seqconv_layer, backend), partial(chosen_or_unserved, backend)
                self.register(Provider(f"seqconv {backend}", make, unable, ours=True))
                make, unable = partial(make, recompute=True), partial(keeps_nothing, backend)
                self.register(Provider(f"seqconv {backend} recompute", make, unable, ours=True))

    def definition(self, case: Case) -> nn.Module:
        """Return torch's layer, or the loop where there is dropout."""
        return seqconv_layer("reference", case) if drops(case) else torch_layer(case)

    def inputs(self, case: Case, values: str) -> dict[str, Tensor]:
        """Return input and the gradient of the last output."""
        generator = seeded(case, values)
        shapes = {"input": "NCL", "gradient": "NO"}
        return {
            name: torch.randn([case.shape[letter] for letter in letters], generator=generator, device=generator.device)
            for name, letters in shapes.items()
        }

    def step(self, case: Case, function: nn.Module, inputs: Mapping[str, Tensor], dtype: torch.dtype) -> ModelStep:
        """Return the module at work."""
        module = function.to(case.device, dtype).train(case.mode == TRAINING)
        sequences, gradient = (place(inputs[name], case, dtype) for name in ("input", "gradient"))
        return ModelStep(case, partial(module, sequences), sequences, dict(module.named_parameters()), gradient)


def torch_layer(case: Case) -> nn.Module:
    """Return torch's layer."""
    return Recurrent(KINDS[sequences_of(case).kind][0], case)


def seqconv_layer(backend: str, case: Case, *, dropout: bool | None = None, recompute: bool = False) -> Recurrent:
    """Return seqconv's layer with torch's weights, and with dropout where the case has it and nobody says otherwise."""
    dropouts = DROPOUTS if (drops(case) if dropout is None else dropout) else {}
    kind: Any = partial(KINDS[sequences_of(case).kind][1], backend=backend, recompute=recompute, **dropouts)
    return Recurrent(kind, case)


class CompiledLayer(nn.Module):
    """Torch's layer, compiled; by default torch.compile leaves recurrent layers alone."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        torch.compiler.reset()
        self.layer = torch_layer(case)
        self.compute: Any = torch.compile(self.layer.forward, dynamic=False)
        self.known = False

    def forward(self, input: Tensor) -> Tensor:
        """Return the last output; the first call compiles."""
        with nullcontext() if self.known else torch._dynamo.config.patch(allow_rnn=True):
            output: Tensor = self.compute(input)
        self.known = True
        return output


def no_dropout(case: Case) -> str | None:
    """Return why torch's layers cannot serve a case, or ``None``."""
    return no_device(case) or ("has no dropout of input and state" if drops(case) else None)


def only_dropout(case: Case) -> str | None:
    """Return why a side that is there for dropout does not serve a case, or ``None``."""
    return no_device(case) or (None if drops(case) else "is for cases with dropout")


def cannot_compile_layer(case: Case) -> str | None:
    """Return why torch.compile cannot serve a case, or ``None``."""
    if reason := no_dropout(case) or cannot_compile("torch.compile", case):
        return reason
    if sequences_of(case).kind == "LSTM" and case.mode != TRAINING and case.device == "cpu":
        return None  # one operator of oneDNN
    return "unrolls the steps: 20 of a GRU took a minute to compile"


def unserved(backend: str, case: Case) -> str | None:
    """Return why a backend does not take the case, as it says itself, or ``None``."""
    try:
        return no_device(case) or (serving(backend, case) and None)
    except backends.BackendError as error:
        return str(error)


def serving(backend: str, case: Case) -> str:
    """Return the backend that serves a call for ``backend``."""
    layer: Any = seqconv_layer(backend, case).rnn.to(case.device, case.torch_dtype).train(case.mode == TRAINING)
    sizes = [case.shape[letter] for letter in "NLC"]
    with torch.set_grad_enabled(case.mode == TRAINING):
        call = layer.prepare(torch.empty(sizes, device=case.device, dtype=case.torch_dtype))
        return str(call.explain(backend).backend)


def chosen_or_unserved(backend: str, case: Case) -> str | None:
    """Return why a backend is not timed by itself, or ``None``."""
    if reason := unserved(backend, case):
        return reason
    return "auto chose it: the same call" if serving("auto", case) == backend else None


def keeps_nothing(backend: str, case: Case) -> str | None:
    """Return why nothing is to be computed again, or ``None``."""
    return unserved(backend, case) or (None if case.mode == TRAINING else "keeps nothing without a backward pass")


def operations() -> list[Operation]:
    """Return the operation."""
    return [RecurrentLayers()]
