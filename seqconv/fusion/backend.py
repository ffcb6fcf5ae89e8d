"""``torch.compile(model, backend="seqconv")``: fused calls in the graphs that Dynamo captures."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx

from seqconv.fusion.matching import rewrite

__all__ = ["compile_graph"]

RESTS = ("eager", "inductor")


def compile_graph(
    graph: fx.GraphModule, _examples: list[Tensor], *, mode: str | None = None, options: Mapping[str, Any] | None = None
) -> Callable[..., Any]:
    """Return a captured graph's forward pass with fused calls in it, as a backend of Dynamo does.

    What is fused is what :func:`seqconv.fuse` fuses, in code of any style, graph breaks included. Graphs of changing
    lengths keep a pool over the whole length plain. ``options`` may have ``"rest"``: ``"eager"``, the default, runs all
    else as in eager mode, ``"inductor"`` has torch's own compiler make code of it. ``mode`` must be ``None``.
    """
    rest = _rest(mode, dict(options or {}))
    rewrite(graph.graph, {}, graph, differentiable=torch.is_grad_enabled())
    graph.recompile()
    run: Callable[..., Any] = graph.forward if rest == "eager" else torch.compile(graph, backend=rest)
    return run


def _rest(mode: str | None, options: dict[str, Any]) -> str:
    if mode not in (None, "default"):
        raise ValueError(f"mode must be None with backend='seqconv', got {mode!r}")
    rest = options.pop("rest", "eager")
    if options:
        raise ValueError(f"options must be 'rest' alone with backend='seqconv', got {', '.join(map(repr, options))}")
    if rest not in RESTS:
        raise ValueError(f"rest, of options, must be one of {', '.join(RESTS)}, got {rest!r}")
    return str(rest)
