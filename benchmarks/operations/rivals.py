"""The notebook's convnets beside the recurrent models that they would replace, and beside torch's own convnets.

Whole predictions and training steps on the same batches, with the same loss and optimizer. Each side is there as eager
calls and as one CUDA graph, so that a launch-bound rival is not beaten for being launch-bound. On a GPU the LSTM and
the GRU are cuDNN's. The recurrent models compute something else by design and answer to their own definitions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.operations.graphs import GraphStep, no_graphs
from benchmarks.operations.models import MODELS, Models, model_case, seqconv_model, torch_model
from benchmarks.operations.torch_peers import COMPILE_MODES, cannot_compile, no_device
from benchmarks.registry import Case, Operation, Provider

__all__ = ["GRAPH", "RNNS", "Rivals", "step_case"]

RNNS = {"imdb_convnet": "LSTM(32)", "jena_convnet": "GRU(32)"}
GRAPH = ", CUDA graph"
COMPILED = ("torch.compile", "torch.compile max-autotune")


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
    """A model's predictions, or a step of its training."""

    name = "rivals"
    noise = False

    def __init__(self) -> None:
        Operation.__init__(self)
        for graphed in (True, False):
            suffix = GRAPH if graphed else ""
            for model, kind in RNNS.items():
                self.add(kind + suffix, rnn_model, graphed, only=model, baseline=True, definition=definition_of_rnn)
            self.add("torch eager" + suffix, eager_model, graphed, baseline=True)
            for name in COMPILED:
                make = partial(compiled_model, COMPILE_MODES[name])
                slow = name != "torch.compile"
                self.add(name + suffix, make, graphed, slow=slow, one_batch=True, cannot=cannot_compile)
            self.add("seqconv auto" + suffix, seqconv_model, graphed, ours=True)

    def add(
        self,
        name: str,
        make: Callable[[Case], nn.Module],
        graphed: bool,
        *,
        only: str | None = None,
        cannot: Callable[[Case], str | None] = lambda _case: None,
        **marks: Any,
    ) -> None:
        """Register a provider."""

        def unavailable(case: Case) -> str | None:
            another = f"is the rival of {only}" if only not in (None, case.name) else None
            return another or no_device(case) or (no_graphs(case) if graphed else None) or cannot(case)

        self.register(Provider(name, lambda case: Made(make(case), graphed), unavailable=unavailable, **marks))

    def definition(self, case: Case) -> Made:  # type: ignore[override]
        """Return torch's convnet."""
        return Made(eager_model(case))

    def step(self, case: Case, function: Made, inputs: Mapping[str, Tensor], dtype: torch.dtype) -> Any:  # type: ignore[override]
        """Return the model at work."""
        step = super().step(case, function.model, inputs, dtype)
        return GraphStep(step) if function.graphed else step


class Recurrent(nn.Module):
    """An LSTM(32) on embedded tokens, or a GRU(32) on windows; its last state to a dense layer."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        words = case.name == "imdb_convnet"
        self.embedding = nn.Embedding(case.shape["C"], 128) if words else nn.Identity()
        self.rnn: Any = nn.LSTM(128, 32, batch_first=True) if words else nn.GRU(case.shape["C"], 32, batch_first=True)
        self.head = nn.Linear(32, 1)

    def forward(self, batch: Tensor) -> Tensor:
        """Return one number a sample, ``(N,)``."""
        state = self.rnn(self.embedding(batch))[1]
        state = state[0] if isinstance(state, tuple) else state
        output: Tensor = self.head(state[-1])
        return output.squeeze(-1)


def rnn_model(case: Case) -> nn.Module:
    """Return the case's rival, always with the same weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Recurrent(case)


def definition_of_rnn(case: Case) -> Made:
    """Return the rival as its own definition."""
    return Made(rnn_model(case))


def eager_model(case: Case) -> nn.Module:
    """Return torch's convnet, its first convolution's input as it comes."""
    return torch_model(case, contiguous=False)


def compiled_model(mode: str, case: Case) -> nn.Module:
    """Return torch's convnet, compiled."""
    return torch.compile(eager_model(case), mode=mode, dynamic=False)  # type: ignore[return-value]


assert set(RNNS) <= set(MODELS)
