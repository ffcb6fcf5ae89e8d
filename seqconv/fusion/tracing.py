"""A module's forward pass as a graph.

Tracing runs ``forward`` once with stand-ins for its tensors. What Python decides on the way is decided for good, so a
graph is used only while its guards hold (see :mod:`.guards`), and what guards cannot see is refused.
"""

from __future__ import annotations

import operator
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

__all__ = ["IN_PLACE", "TENSOR", "Fact", "Trace", "Untraceable", "switches", "trace"]

TENSOR: Any = type("Tensor", (), {"__repr__": lambda _self: "TENSOR"})()  # stands for a tensor among the arguments

# What makes a tensor out of none: recorded, so that every run of the graph makes its own.
FACTORIES = frozenset(
    getattr(torch, name)
    for name in ("arange", "empty", "eye", "full", "linspace", "ones", "rand", "randint", "randn", "tensor", "zeros")
)
GENERATORS = (torch.Generator, np.random.Generator, np.random.RandomState, random.Random)
IN_PLACE = (
    "iadd", "isub", "imul", "imatmul", "itruediv", "ifloordiv", "imod", "ipow", "iand", "ior", "ixor", "ilshift",
    "irshift",
)  # fmt: skip
ANSWERED_ELSEWHERE = frozenset(("grad", "grad_fn", "requires_grad", "is_leaf", "names", "data_ptr", "_version"))


class Untraceable(Exception):
    """A forward pass that no graph can stand for: why, and the module whose own code it is."""

    def __init__(self, reason: str, module: nn.Module) -> None:
        super().__init__(reason)
        self.reason, self.module = reason, module


class Trace(NamedTuple):
    """A graph of a root's forward pass: the modules whose own code ran, and by their names those that it calls.

    ``asked`` is what the forward pass asked of its tensors, by their numbers and the names of a :class:`Fact`.
    """

    root: nn.Module
    graph: fx.Graph
    inlined: list[nn.Module]
    leaves: dict[str, nn.Module]
    asked: dict[tuple[int, str], Any]


class Fact(NamedTuple):
    """What is known of a tensor among the arguments: its number of axes, and its dtype."""

    ndim: int
    dtype: torch.dtype


def trace(
    root: nn.Module,
    forward: Callable[..., Any],
    given: tuple[Any, ...] = (),
    options: dict[str, Any] | None = None,
    cut: frozenset[nn.Module] = frozenset(),
    facts: Sequence[Fact] = (),
) -> Trace:
    """Trace ``forward(*given, **options)``, the plain forward pass of ``root``, with a stand-in for each ``TENSOR``.

    The graph calls modules out of ``cut``, and does not look into them. ``facts`` are those of the tensors, where they
    are known. Raises :class:`Untraceable`.
    """
    for module in root.modules():
        if any(isinstance(one, GENERATORS) for one in vars(module).values()):
            raise Untraceable("it has a generator of random numbers of its own", module)
    tracer = _Tracer(root, cut, facts)

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

    def __init__(self, root: nn.Module, cut: frozenset[nn.Module], facts: Sequence[Fact]) -> None:
        einops: Any = sys.modules.get("einops")
        wrapped = (einops.rearrange, einops.repeat, einops.reduce) if einops else ()
        super().__init__(autowrap_functions=wrapped)
        self.cut, self.thread, self.switches = cut, threading.get_ident(), switches()
        self.saved_elsewhere = _saved_elsewhere()
        self.leaves: dict[str, nn.Module] = {}
        self.inlined, self.given = [root], 0
        self.innermost, self.facts = root, facts
        self.asked: dict[tuple[int, str], Any] = {}

    def stand_in(self, value: Any) -> Any:
        if value is not TENSOR:
            return value
        self.given += 1
        return _Given(self.create_node("placeholder", f"given_{self.given}", (), {}), self, self.given - 1)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _StandIn(node, self)

    def create_arg(self, a: Any) -> Any:
        if isinstance(a, fx.Proxy):
            return a.node
        if isinstance(a, np.generic):  # whose text is no Python
            return a.item()
        if isinstance(a, dict) and type(a) is not dict:  # a graph would give a plain one
            raise Untraceable(f"its forward pass makes a {type(a).__name__}", self.innermost)
        return super().create_arg(a)

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
        if switches() != self.switches:
            raise Untraceable("its forward pass switches gradients, autocast or inference mode", self.innermost)
        if _saved_elsewhere() != self.saved_elsewhere:
            raise Untraceable("its forward pass saves activations in a way of its own (a checkpoint)", self.innermost)
        return super().create_node(*args, **kwargs)


class _StandIn(fx.Proxy):
    """Stands for a value of the forward pass, and refuses questions that it would answer in another way."""

    tracer: _Tracer
    _is_param = False  # asked by isinstance(_, nn.Parameter)

    def __getattr__(self, name: str) -> Any:
        if name in ANSWERED_ELSEWHERE or not hasattr(torch.Tensor, name):
            if _is_asked_by_the_model():
                raise Untraceable(f"its forward pass asks a tensor for {name!r}", self.tracer.innermost)
            raise AttributeError(name)
        return super().__getattr__(name)

    def __hash__(self) -> int:
        self._refuse("as a key")
        return super().__hash__()

    def __str__(self) -> str:
        self._refuse("as text")
        return super().__str__()

    def __format__(self, spec: str) -> str:
        self._refuse("as text")
        return super().__format__(spec)

    def _refuse(self, how: str) -> None:
        if _is_asked_by_the_model(depth=3):
            raise Untraceable(f"its forward pass takes a number of its input {how}", self.tracer.innermost)

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        # torch's own checks of arguments ask in the name of the model's code, too.
        if _is_asked_by_the_model() and "isinstance" in sys._getframe(1).f_code.co_names:
            return self._class()
        return type(self)

    def _class(self) -> type:
        raise Untraceable("its forward pass asks for the type of what it computes", self.tracer.innermost)


def _in_place(name: str) -> Callable[[_StandIn, Any], Any]:
    function = getattr(operator, name)

    def record(self: _StandIn, other: Any) -> Any:
        return self.tracer.create_proxy("call_function", function, (self, other), {})

    return record


for _name in IN_PLACE:
    setattr(_StandIn, f"__{_name}__", _in_place(_name))


class _Given(_StandIn):
    """Stands for a tensor among the arguments, of which facts may be known."""

    def __init__(self, node: fx.Node, tracer: _Tracer, number: int) -> None:
        super().__init__(node, tracer)
        self.number = number

    def _class(self) -> type:
        return torch.Tensor

    def dim(self) -> Any:
        if not self.tracer.facts:
            return self.tracer.create_proxy("call_method", "dim", (self,), {})
        return self._known("ndim")

    @property
    def ndim(self) -> Any:
        return self.dim()

    @property
    def dtype(self) -> Any:
        return self._known("dtype") if self.tracer.facts else fx.proxy.Attribute(self, "dtype")

    @property
    def shape(self) -> Any:
        if not self.tracer.facts:
            return fx.proxy.Attribute(self, "shape")
        return tuple(self.size(axis) for axis in range(self._known("ndim")))

    def _known(self, name: str) -> Any:
        found = self.tracer.asked[self.number, name] = getattr(self.tracer.facts[self.number], name)
        return found


def _is_asked_by_the_model(depth: int = 2) -> bool:
    """Tell whether the caller's caller, or one so deep, is code of a model, not of a tool that traces it."""
    frame = sys._getframe(depth)
    name = frame.f_globals.get("__name__", "")
    if name == "torch" and frame.f_code.co_name == "is_tensor":  # whose code asks with isinstance
        return True
    return not name.startswith(("torch.", "seqconv.", "einops.", "copy", "abc", "typing")) and name != "torch"


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


def switches() -> tuple[bool, ...]:
    """Return torch's switches that a forward pass may ask for; torch.compile knows three of them."""
    known = torch.is_grad_enabled(), torch.is_autocast_enabled("cpu"), torch.is_autocast_enabled("cuda")
    if torch.compiler.is_compiling():
        return *known, False, False
    return *known, torch.is_inference_mode_enabled(), torch.are_deterministic_algorithms_enabled()


def _saved_elsewhere() -> bool:
    return torch._C._autograd._top_saved_tensors_default_hooks(True) is not None


def _generators() -> tuple[Any, ...]:
    state: Any = np.random.get_state(legacy=False)  # noqa: NPY002  (what models may draw from)
    return random.getstate(), state["state"]["key"].tobytes(), state["state"]["pos"]
