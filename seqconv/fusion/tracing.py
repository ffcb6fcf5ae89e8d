"""A module's forward pass as a graph.

Tracing runs ``forward`` once with stand-ins for its tensors. What Python decides on the way is decided for good, so a
graph is used only while its guards hold (see :mod:`.guards`), and what guards cannot see is refused.
"""

from __future__ import annotations

import random
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import fx, nn
from torch.fx.proxy import TraceError
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from seqconv.fusion.guards import Keeper, own_call_reason

__all__ = ["TENSOR", "Trace", "Untraceable", "trace"]

TENSOR: Any = type("Tensor", (), {"__repr__": lambda _self: "TENSOR"})()  # stands for a tensor among the arguments

# What makes a tensor out of none: recorded, so that every run of the graph makes its own.
FACTORIES = frozenset(
    getattr(torch, name)
    for name in ("arange", "empty", "eye", "full", "linspace", "ones", "rand", "randint", "randn", "tensor", "zeros")
)
CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


class Untraceable(Exception):
    """A forward pass that no graph can stand for: why, and the module whose own code it is."""

    def __init__(self, reason: str, module: nn.Module) -> None:
        super().__init__(reason)
        self.reason, self.module = reason, module


class Trace(NamedTuple):
    """A graph of a root's forward pass: the modules whose own code ran, and by their names those that it calls.

    ``ranks`` are numbers of axes that the forward pass asked for, by the numbers of the tensors.
    """

    root: nn.Module
    graph: fx.Graph
    inlined: list[nn.Module]
    leaves: dict[str, nn.Module]
    ranks: dict[int, int]


def trace(
    root: nn.Module,
    forward: Callable[..., Any],
    given: tuple[Any, ...] = (),
    options: dict[str, Any] | None = None,
    cut: frozenset[nn.Module] = frozenset(),
    ranks: Sequence[int] = (),
) -> Trace:
    """Trace ``forward(*given, **options)``, the plain forward pass of ``root``, with a stand-in for each ``TENSOR``.

    The graph calls modules out of ``cut``, and does not look into them. ``ranks`` are the tensors' numbers of axes,
    where they are known. Raises :class:`Untraceable`.
    """
    tracer = _Tracer(root, cut, ranks)

    def run() -> Any:
        stand_ins = [tracer.stand_in(one) for one in given]  # before those of options, as they are handed over
        return forward(*stand_ins, **{name: tracer.stand_in(one) for name, one in (options or {}).items()})

    tracer.run = run
    keepers = [Keeper(module) for module in root.modules()]
    generators = _generators()
    try:
        with _Factories(tracer), _NothingComputed(tracer):
            graph = tracer.trace(root)
    except Untraceable:
        raise
    except Exception as error:  # whatever a forward pass does when it is handed a stand-in
        kind = "" if isinstance(error, TraceError) else f"{type(error).__name__}: "
        message = str(error).strip().partition("\n")[0]
        raise Untraceable(f"its forward pass cannot be traced ({kind}{message})", tracer.innermost) from error
    finally:
        changed = [keeper.module for keeper in keepers if keeper.restore()]
    if changed:
        raise Untraceable("its forward pass changes attributes of the module", changed[0])
    if generators != _generators():
        raise Untraceable("its forward pass draws random numbers outside of torch", root)
    return Trace(root, graph, tracer.inlined, tracer.leaves, tracer.asked)


class _Tracer(fx.Tracer):
    """Looks into every module but torch's own, those with hooks, and those that are cut."""

    run: Callable[[], Any]

    def __init__(self, root: nn.Module, cut: frozenset[nn.Module], ranks: Sequence[int]) -> None:
        einops: Any = sys.modules.get("einops")
        wrapped = (einops.rearrange, einops.repeat, einops.reduce) if einops else ()
        super().__init__(autowrap_functions=wrapped, param_shapes_constant=True)
        self.cut, self.thread, self.switches = cut, threading.get_ident(), _switches()
        self.leaves: dict[str, nn.Module] = {}
        self.inlined, self.given = [root], 0
        self.innermost, self.ranks = root, ranks
        self.asked: dict[int, int] = {}

    def stand_in(self, value: Any) -> Any:
        if value is not TENSOR:
            return value
        self.given += 1
        node = self.create_node("placeholder", f"given_{self.given}", (), {})
        return _Ranked(node, self, self.given - 1) if self.ranks else self.proxy(node)

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> Any:  # noqa: ARG002
        def run() -> Any:
            return self.run()

        return run, []

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if m in self.cut or own_call_reason(m) is not None or isinstance(m, torch.jit.ScriptModule):
            return True
        return super().is_leaf_module(m, module_qualified_name)

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        # torch.fx replaces nn.Module.__call__, and __getattr__, for all threads.
        if threading.get_ident() != self.thread:
            return forward(*args, **kwargs)
        if not any(isinstance(one, fx.Proxy) for one in tree_leaves((args, kwargs))):
            raise Untraceable(f"its forward pass calls a {type(m).__name__} on no tensor of its input", self.innermost)
        name = self.path_of_module(m)
        outer, self.innermost = self.innermost, m
        if self.is_leaf_module(m, name):
            self.leaves[name], self.innermost = m, outer
        elif m not in self.inlined:
            self.inlined.append(m)
        found = super().call_module(m, forward, args, kwargs)
        self.innermost = outer
        return found

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: Any) -> Any:
        if threading.get_ident() != self.thread:
            return attr_val
        if isinstance(attr_val, torch.Tensor) and not isinstance(attr_val, nn.Parameter):
            # torch.fx itself would take a buffer for a parameter.
            name = next((name for name, one in self.root.named_buffers() if one is attr_val), None)
            if name is not None and name not in parameter_proxy_cache:
                parameter_proxy_cache[name] = self.create_proxy("get_attr", name, (), {})
            return attr_val if name is None else parameter_proxy_cache[name]
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        if _switches() != self.switches:
            raise Untraceable("its forward pass switches gradients, autocast or inference mode", self.innermost)
        return super().create_node(*args, **kwargs)


class _Ranked(fx.Proxy):
    """Stands for a tensor whose number of axes is known."""

    tracer: _Tracer

    def __init__(self, node: fx.Node, tracer: _Tracer, number: int) -> None:
        super().__init__(node, tracer)
        self.number = number

    def dim(self) -> int:
        rank = self.tracer.asked[self.number] = self.tracer.ranks[self.number]
        return rank

    @property
    def ndim(self) -> int:
        return self.dim()


class _Factories(TorchFunctionMode):
    """Records the calls that make tensors out of none."""

    def __init__(self, tracer: _Tracer) -> None:
        super().__init__()
        self.tracer = tracer

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in FACTORIES:
            return self.tracer.create_proxy("call_function", func, args, kwargs or {})
        return func(*args, **(kwargs or {}))


class _NothingComputed(TorchDispatchMode):
    """Refuses what would be computed once, and be a constant of the graph."""

    def __init__(self, tracer: _Tracer) -> None:
        super().__init__()
        self.tracer = tracer

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise Untraceable(f"its forward pass computes {func} of no tensor of its input", self.tracer.innermost)


def _switches() -> tuple[bool, ...]:
    devices = ("cpu", "cuda")
    return torch.is_grad_enabled(), torch.is_inference_mode_enabled(), *map(torch.is_autocast_enabled, devices)


def _generators() -> tuple[Any, ...]:
    state: Any = np.random.get_state(legacy=False)  # noqa: NPY002  (what models may draw from)
    return random.getstate(), state["state"]["key"].tobytes(), state["state"]["pos"]
