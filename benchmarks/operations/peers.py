"""Whole models beside everything one would take instead: torch eager and compiled, an RNN, and other frameworks.

Seqconv is timed in turn with each of them; they are not timed beside each other. See :mod:`benchmarks.peers`.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.operations.models import Models, name_of, torch_model
from benchmarks.operations.torch_peers import cannot_compile
from benchmarks.peers import PEERS, Peer, missing
from benchmarks.peers.remote import RemoteStep
from benchmarks.registry import Case, Provider

__all__ = ["CONVERTED", "Peers"]

CONVERTED = ("imdb_convnet", "jena_convnet", "textcnn")

# Other frameworks add in an order of their own: their errors were up to so many times what seqconv's may be.
LEEWAY = 8.0


class Peers(Models):
    """A model's predictions, or a step of its training."""

    name = "peers"
    noise = False
    rivals_meet = False

    def __init__(self) -> None:
        super().__init__()
        self.register(Provider("torch.compile", compiled_model, unavailable=cannot_compile, baseline=True))
        for peer in PEERS.values():
            made, reason = partial(Remote, peer), partial(unable, peer)
            self.register(Provider(peer.name, made, unavailable=reason, baseline=True, leeway=LEEWAY))

    def step(self, case: Case, function: Any, inputs: Mapping[str, Tensor], dtype: torch.dtype) -> Any:
        """Return the model at work, here or in a process of its own."""
        return (
            RemoteStep(function.peer.name, case)
            if isinstance(function, Remote)
            else super().step(case, function, inputs, dtype)
        )


class Remote:
    """A model that a peer will build in its own process."""

    def __init__(self, peer: Peer, _case: Case) -> None:
        self.peer = peer


def compiled_model(case: Case) -> nn.Module:
    """Return torch's model, compiled, with the eager model's numbers for the dropout."""
    torch.compiler.reset()  # what was compiled for other cases counts against a limit, beyond which nothing is
    options = {"fallback_random": True}
    made: nn.Module = torch.compile(torch_model(case), dynamic=False, options=options)  # type: ignore[assignment]
    return made


def unable(peer: Peer, case: Case) -> str | None:
    """Return why a peer cannot serve a case, or ``None``."""
    if case.device != "cpu":
        return "is for CPUs"
    if name_of(case) not in CONVERTED:
        return f"has no {name_of(case)}"
    if case.mode == "training_step":
        if not peer.trains:
            return "does not train"
        if name_of(case) == "textcnn":
            return "draws other numbers for the dropout: its loss cannot be checked"
    reason = missing(peer.packages)
    return f"{peer.name} is {reason}" if reason else None
