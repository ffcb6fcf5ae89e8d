"""``torch.compile(model, backend="seqconv")``: fused calls in graphs that Dynamo captures, which then run eagerly."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

from seqconv.fusion.matching import rewrite

__all__ = ["compile_graph"]


def compile_graph(graph: fx.GraphModule, _examples: list[Tensor]) -> Callable[..., Any]:
    """Return a captured graph's forward pass with fused calls in it, as a backend of Dynamo does.

    What is fused is what :func:`seqconv.fuse` fuses, in code of any style, graph breaks included; the rest runs as in
    eager mode. Graphs of changing lengths keep a pool over the whole length plain.
    """
    rewrite(graph.graph, {}, graph, differentiable=torch.is_grad_enabled())
    graph.recompile()
    forward: Callable[..., Any] = graph.forward
    return forward
