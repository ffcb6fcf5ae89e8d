"""Whole models beside everything one would take instead: on GPUs as graphs, on CPUs in other frameworks.

``rivals``: the notebook's convnets beside the recurrent models that they would replace, and beside torch's own.
Each side is there as eager calls and as one CUDA graph, so that a launch-bound rival is not beaten for being
launch-bound. On a GPU torch's LSTM and GRU are cuDNN's. ``peers``: seqconv is timed in turn with torch, torch.compile,
an RNN and each of :mod:`benchmarks.peers`; they are not timed beside each other. torch.compile leaves a GRU to torch
and compiles what is around it. Keras draws masks of its own for the dropout of a GRU's input and state, for each gate
as seqconv does: a training step is timed with them, and its loss checked without.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.operations.layers import no_own_kernel
from benchmarks.operations.models import (
    GRU,
    LSTM,
    Models,
    model_case,
    name_of,
    no_dropout,
    own_rnn_model,
    rnn_model,
    seqconv_model,
    torch_model,
)  # fmt: skip
from benchmarks.operations.steps import GraphStep
from benchmarks.operations.torch_peers import COMPILE_MODES, TUNED, cannot_compile, no_device, on_cpu
from benchmarks.peers import PEERS, Peer, RemoteStep, missing
from benchmarks.registry import Case, Operation, Provider

RNNS = {"imdb_convnet": LSTM, "jena_convnet": GRU}
GRAPH = ", CUDA graph"
# The models that other frameworks have.
CONVERTED = (*RNNS, "conv_gru", "conv_gru_dropout", "jena_gru_dropout", "textcnn")
# Other frameworks add in an order of their own: their errors were up to so many times what seqconv's may be.
LEEWAY = 8.0


def step_case(name: str, mode: str, *, batch: int = 128, dtype: str = "float32", device: str = "cpu") -> Case:
    """Return the case of one of ``RNNS``."""
    case = model_case(name, mode, batch=batch, device=device)
    return replace(case, operation="rivals", name=name, dtype=dtype)


@dataclass(frozen=True)
class Made:
    """A model, and whether its step is to be one graph."""

    model: nn.Module
    graphed: bool = False


class Rivals(Models):
    """A model's predictions, or a step of its training, eager and as a graph."""

    name = "rivals"
    noise = False

    def __init__(self) -> None:
        Operation.__init__(self)
        for graphed in (True, False):
            for model, rnn in RNNS.items():
                marks: dict[str, Any] = {"baseline": True, "definition": partial(made, rnn_model)}
                self.add(rnn, rnn_model, graphed, partial(another, model), **marks)
                self.add(f"seqconv {rnn}", own_rnn_model, graphed, partial(another_or_torch_s, model), **marks)
            self.add("torch eager", torch_model, graphed, baseline=True)
            for name, mode in COMPILE_MODES.items():
                make, unable = partial(compiled_model, {"mode": mode}), partial(cannot_compile, name)
                self.add(name, make, graphed, unable, slow=name == TUNED, one_batch=True)
            self.add("seqconv auto", seqconv_model, graphed, ours=True)

    def add(
        self,
        name: str,
        make: Callable[[Case], nn.Module],
        graphed: bool,
        unable: Callable[[Case], str | None] = lambda _case: None,
        **marks: Any,
    ) -> None:
        """Register a provider."""

        def unavailable(case: Case) -> str | None:
            no_graphs = "CUDA graphs are for GPUs" if graphed and not case.device.startswith("cuda") else None
            return no_device(case) or no_graphs or unable(case)

        name += GRAPH if graphed else ""
        self.register(Provider(name, partial(made, make, graphed=graphed), unavailable=unavailable, **marks))

    def definition(self, case: Case) -> Made:
        """Return torch's convnet."""
        return Made(torch_model(case))

    def step(self, case: Case, function: Made, inputs: Mapping[str, Tensor], dtype: torch.dtype) -> Any:
        """Return the model at work."""
        step = super().step(case, function.model, inputs, dtype)
        return GraphStep(step) if function.graphed else step


def made(make: Callable[[Case], nn.Module], case: Case, graphed: bool = False) -> Made:
    """Return what a provider makes."""
    return Made(make(case), graphed)


def another(model: str, case: Case) -> str | None:
    """Return that a case is of another model than an RNN's, or ``None``."""
    return None if case.name == model else f"is the rival of {model}"


def another_or_torch_s(model: str, case: Case) -> str | None:
    """Return that a case is of another model than an RNN's, or has the kernels of torch's RNN; or ``None``."""
    return another(model, case) or no_own_kernel(case)


def compiled_model(options: Mapping[str, Any], case: Case) -> nn.Module:
    """Return torch's convnet, compiled."""
    return torch.compile(torch_model(case), dynamic=False, **options)  # type: ignore[return-value]


class Peers(Models):
    """A model's predictions, or a step of its training, here or in another framework."""

    name = "peers"
    noise = False
    rivals_meet = False

    def __init__(self) -> None:
        super().__init__()
        self.register(Provider("torch.compile", with_eager_numbers, cannot_compile_model, baseline=True))
        for peer in PEERS.values():
            marks: dict[str, Any] = {"baseline": True, "leeway": LEEWAY, "definition": torch_model}
            make, reason = partial(RemoteStep, peer.name), partial(unserved, peer)
            self.register(Provider(peer.name, lambda _case, make=make: make, reason, **marks))  # type: ignore[misc]

    def step(self, case: Case, function: Any, inputs: Mapping[str, Tensor], dtype: torch.dtype) -> Any:
        """Return the model at work."""
        remote = isinstance(function, partial)
        return function(case) if remote else super().step(case, function, inputs, dtype)


def cannot_compile_model(case: Case) -> str | None:
    """Return why torch.compile cannot serve a case, or ``None``."""
    return no_dropout(case) or cannot_compile("torch.compile", case)


def with_eager_numbers(case: Case) -> nn.Module:
    """Return torch's model, compiled, with the eager model's numbers for the dropout."""
    torch.compiler.reset()  # what was compiled for other cases counts against a limit, beyond which nothing is
    return compiled_model({"options": {"fallback_random": True}}, case)


def unserved(peer: Peer, case: Case) -> str | None:
    """Return why a peer cannot serve a case, or ``None``."""
    if reason := on_cpu(case):
        return reason
    if name_of(case) not in CONVERTED:
        return f"has no {name_of(case)}"
    if case.mode == "training_step":
        if not peer.trains:
            return "does not train"
        if name_of(case) == "textcnn":
            return "draws other numbers for the dropout: its loss cannot be checked"
    reason = missing(peer.packages)
    return f"{peer.name} is {reason}" if reason else None


def operations() -> list[Operation]:
    """Return both operations."""
    return [Rivals(), Peers()]
