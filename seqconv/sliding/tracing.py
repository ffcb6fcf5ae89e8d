"""A model as a program of shared rows, and the rest of it, which runs window by window in batches.

The forward pass is traced as a graph (:mod:`seqconv.fusion.tracing`), and every node of it is worked out on what
windows share (:mod:`.positions`), with torch's own names and arguments for what it does. What cannot be shared, such as
a recurrent layer, and all that depends on it, is left to torch, on the windows' features.
"""

from __future__ import annotations

import inspect
import operator
import weakref
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.modules.module import _has_any_global_hook
from torch.nn.utils.weight_norm import WeightNorm

from seqconv.fusion.guards import own_call_reason, untouched
from seqconv.fusion.program import fuse, plain_forward, tracing_lock
from seqconv.fusion.tracing import IN_PLACE, TENSOR, Fact, Untraceable, switches, trace
from seqconv.kernels.sliding import SlidingProgram, Tap
from seqconv.models.source import WindowSource
from seqconv.sliding.operations import (
    BATCH,
    FUNCTIONS,
    METHODS,
    NAMES,
    POINTWISE,
    Flattened,
    Marker,
    Operations,
    Refused,
)
from seqconv.sliding.positions import ZERO, Features, Misfit, Positions, ProgramBuilder, Unshared

__all__ = ["Analysed", "Rest", "analyse", "traced"]

# What makes no memory of its own, or may not.
VIEWS = frozenset((
    "chunk", "dim", "double", "dropout", "flatten", "float", "getattr", "getitem", "movedim", "narrow", "permute",
    "same", "select", "size", "split", "squeeze", "to", "transpose", "unsqueeze", "view",
))  # fmt: skip
FRESH = frozenset(name for name, of in NAMES.items() if (of or name) not in VIEWS and not name.endswith("_")) | {
    "clone"
}
RANDOM = frozenset((
    "bernoulli", "exponential", "geometric", "multinomial", "normal", "poisson", "rand", "rand_like", "randint",
    "randint_like", "randn", "randn_like", "randperm", "random", "uniform",
))  # fmt: skip

BY_WINDOW = Marker("by window")
STARTS = Marker("starts")


class Rest(NamedTuple):
    """What runs window by window: a function of the values that windows share, as they are at its inputs."""

    run: Callable[..., Any]
    inputs: tuple[Positions | Features | Flattened, ...]
    names: tuple[str, ...]  # of modules and functions


class Analysed(NamedTuple):
    """A model for windows of one length: the program, what is behind it, and what windows share, by name.

    The inputs of ``rest`` count the maps of the program.
    """

    program: SlidingProgram
    rest: Rest
    shared: tuple[str, ...]


class TracedModel(NamedTuple):
    """A model's graph, and the modules that it calls, by name."""

    graph: fx.Graph
    leaves: dict[str, nn.Module]


class Known(NamedTuple):
    """A graph, and what tells whether it still is the model's; nothing here refers to the model itself."""

    traced: TracedModel
    of: tuple[Any, ...]
    is_untouched: Callable[[], bool]


class StandIn:
    """Has a model's attributes, and does not keep it alive."""


_known: weakref.WeakKeyDictionary[nn.Module, Known] = weakref.WeakKeyDictionary()


def traced(model: nn.Module, dtype: torch.dtype) -> TracedModel:
    """Return the graph of a model's forward pass of one tensor of a dtype. Raises :class:`Refused`.

    It is kept while nobody writes to an attribute of the model's modules: to trace a small model takes a third of the
    time of 100,000 windows.
    """
    for name, module in model.named_modules():
        if module.training and (isinstance(module, (_BatchNorm, nn.modules.instancenorm._InstanceNorm))
                                or (isinstance(module, _DropoutNd) and module.p > 0)):  # fmt: skip
            raise Refused(name, f"a {type(module).__name__} in training mode: call model.eval()")
    if (reason := own_call_reason(model)) is not None:
        raise Refused("", reason)
    if _has_any_global_hook():
        raise Refused("", "there are hooks of all modules")
    known, of = _known.get(model), (type(model), dtype, switches())
    if known is not None and known.of == of and known.is_untouched():
        return known.traced
    try:
        with tracing_lock:
            found = trace(model, plain_forward(model), (TENSOR,), {}, frozenset(), [Fact(3, dtype)])
    except Untraceable as error:
        names = {module: name for name, module in model.named_modules()}
        raise Refused(names.get(error.module, ""), error.reason) from error
    root, (_, *inside) = StandIn(), model.modules()
    root.__dict__ = model.__dict__
    _known[model] = Known(TracedModel(found.graph, found.leaves), of, untouched([root, *inside]))  # type: ignore[list-item]
    return _known[model].traced


def analyse(
    model: nn.Module,
    graph: TracedModel,
    columns: int,
    length: int,
    step: int,
    *,
    channels_first: bool,
    dtype: torch.dtype,
    thinned: int = 1,
) -> Analysed:
    """Return what a model computes for windows of ``length`` rows, ``step`` apart, of a series of ``columns``.

    ``thinned`` tells how many rows of the series that the model's source knows come to one of this series. Raises
    :class:`Refused`, also where nothing is shared.
    """
    return Interpreter(
        model, graph, columns, length, step, channels_first=channels_first, thinned=thinned, dtype=dtype
    ).analysed()


class Interpreter(Operations):
    """Works a graph out, node by node."""

    def __init__(
        self,
        model: nn.Module,
        traced: TracedModel,
        columns: int,
        length: int,
        step: int,
        *,
        channels_first: bool,
        thinned: int,
        dtype: torch.dtype,
    ) -> None:
        builder = ProgramBuilder(columns)
        windows = builder.series(length, step, channels_first=channels_first)
        super().__init__(builder, windows, (length, step * thinned), dtype)
        self.model, self.traced, self.span = model, traced, (length - 1) * step
        self.found: dict[fx.Node, Any] = {}
        self.reasons: dict[fx.Node, str] = {}
        self.shared: list[str] = []

    def analysed(self) -> Analysed:
        """Return the whole."""
        output = None
        for node in self.traced.graph.nodes:
            if node.op == "output":
                output = node.args[0]
            else:
                self.found[node] = self.value(node)
        rest = self._rest(output)
        wanted: list[int] = []
        for one in rest.inputs:
            wanted += _maps_of(one)
        if not any(wanted):
            node = next(iter(self.reasons), None)
            reason = self.reasons.get(node, "it computes nothing")  # type: ignore[arg-type]
            raise Refused(self.name_of(node), f"{reason}, and nothing in front of it is shared", len(self.shared))
        program, numbers = self.builder.program(sorted(set(wanted)), self.span)
        renumbered = dict(zip(sorted(set(wanted)), numbers, strict=True))
        inputs = tuple(_renumbered(one, renumbered) for one in rest.inputs)
        return Analysed(program, rest._replace(inputs=inputs), tuple(dict.fromkeys(self.shared)))

    def name_of(self, node: fx.Node | None) -> str:
        """Return what a node is called in messages: its module's name, or that of its function."""
        if node is None:
            return ""
        return str(node.target) if node.op in ("call_module", "call_method") else getattr(node.target, "__name__", "")

    def value(self, node: fx.Node) -> Any:
        """Return a node's value."""
        if node.op == "placeholder":
            users = list(node.users)
            of_source = len(users) == 1 and users[0].op == "call_module" and isinstance(
                self.traced.leaves.get(str(users[0].target)), WindowSource
            )  # fmt: skip
            return STARTS if of_source else self.input
        if node.op == "get_attr":
            return _attribute(self.model, str(node.target))
        self._check_effects(node)
        given = [self.found[one] for one in node.all_input_nodes]
        if any(one is BY_WINDOW for one in given):
            return BY_WINDOW
        operands: Any = fx.map_arg(node.args, lambda one: self.found[one])
        options: Any = fx.map_arg(node.kwargs, lambda one: self.found[one])
        if node.op != "call_module" and not any(map(_is_of_windows, given)):
            target: Any = getattr(type(operands[0]), str(node.target)) if node.op == "call_method" else node.target
            return target(*operands, **options)
        try:
            found = self._handler(node)(*operands, **options)
        except Misfit as error:
            raise Refused(self.name_of(node), str(error), len(self.shared), misfit=True) from error
        except Unshared as error:
            self.reasons[node] = str(error)
            return BY_WINDOW
        except (AttributeError, IndexError, TypeError, ValueError) as error:  # of arguments that no handler expects
            self.reasons[node] = f"windows do not share {self._kind(node)} of these arguments ({error})"
            return BY_WINDOW
        if node.op == "call_module":
            self.shared.append(str(node.target))
        return found

    def _kind(self, node: fx.Node) -> str:
        if node.op == "call_module":
            return f"a {type(self.traced.leaves[str(node.target)]).__name__}"
        return f"{self.name_of(node)}()"

    def _handler(self, node: fx.Node) -> Callable[..., Any]:
        """Return what works a node out, given its arguments. Raises ``Unshared`` if nothing does."""
        alone = all(len(one.users) == 1 for one in node.all_input_nodes)
        if node.op == "call_module":
            module = self.traced.leaves[str(node.target)]
            reason = None if _is_weight_normed(module) else own_call_reason(module)
            found = None if reason else self.of_module(module, alone=alone)
            if found is None:
                raise Unshared(f"windows do not share {self._kind(node)}" + (f" ({reason})" if reason else ""))
            return found
        name = METHODS.get(str(node.target)) if node.op == "call_method" else FUNCTIONS.get(node.target)
        if name is None or (name == "max" and not _takes_values(node)):
            raise Unshared(f"windows do not share {self._kind(node)}")
        if name in POINTWISE:
            function: Any = node.target if node.op == "call_function" else getattr(Tensor, str(node.target))
            return lambda value, *given, **options: self._pointwise(function, value, *given, **options)
        if name == "relu":
            return lambda value, inplace=False: self._relu(value, alone=alone)  # noqa: ARG005
        return getattr(self, name)  # type: ignore[no-any-return]

    def _check_effects(self, node: fx.Node) -> None:
        """Refuse what draws random numbers, and what changes a value that something else reads, too."""
        name = self.name_of(node)
        if name.rstrip("_") in RANDOM:
            raise Refused(name, "it draws random numbers")
        if not self._changes(node, name):
            return
        waiting = [one for one in node.args[:1] if isinstance(one, fx.Node)]
        out = node.kwargs.get("out")
        waiting += [out] if isinstance(out, fx.Node) else []
        while waiting:
            source = waiting.pop()
            if source.op == "get_attr":
                raise Refused(name, "it changes a parameter or buffer in place")
            if len(source.users) > 1:
                raise Refused(name, "it changes in place what is used elsewhere, too")
            if not self._is_fresh(source):
                waiting += source.all_input_nodes

    def _changes(self, node: fx.Node, name: str) -> bool:
        """Tell whether a node changes its first argument, or its argument ``out``."""
        if node.op == "call_module":
            return bool(getattr(self.traced.leaves[str(node.target)], "inplace", False))
        if "out" in node.kwargs or name in IN_PLACE or (name.endswith("_") and not name.endswith("__")):
            return True
        if True not in (*node.args, *node.kwargs.values()):
            return False
        try:
            return bool(inspect.signature(node.target).bind(*node.args, **node.kwargs).arguments.get("inplace"))  # type: ignore[arg-type]
        except (TypeError, ValueError):  # of a function of torch's that is no Python: it has no such argument
            return False

    def _is_fresh(self, node: fx.Node) -> bool:
        """Tell whether a node's numbers are in memory of their own, as far as can be told."""
        if node.op == "call_module":
            module = self.traced.leaves[str(node.target)]
            views = (nn.Identity, nn.Flatten, nn.Unflatten, _DropoutNd, WindowSource)
            return not isinstance(module, views) and not getattr(module, "inplace", False)
        return self.name_of(node) in FRESH

    def _rest(self, output: Any) -> Rest:
        """Return what runs window by window: nodes that are not worked out, and the form of the output."""
        if isinstance(output, fx.Node) and isinstance(self.found[output], (Positions, Features, Flattened)):
            return Rest(_same, (self.found[output],), ())
        needed: set[fx.Node] = set()
        waiting: list[fx.Node] = []
        fx.map_arg(output, waiting.append)
        while waiting:
            node = waiting.pop()
            if node not in needed:
                needed.add(node)
                waiting += node.all_input_nodes if self._runs(node) else []
        graph, constants = fx.Graph(), dict[str, Any]()
        copied: dict[fx.Node, Any] = {}
        inputs: list[Any] = []
        names: list[str] = []

        def placed(value: Any) -> Any:
            if type(value) in (tuple, list):
                return type(value)(map(placed, value))
            if isinstance(value, Tensor):
                constants[f"constant_{len(constants)}"] = value
                return graph.get_attr(f"constant_{len(constants) - 1}")
            if value is STARTS:
                raise Refused("source", "its starts are used elsewhere, too")
            if not isinstance(value, (Positions, Features, Flattened)):
                return value
            inputs.insert(0, value)
            with graph.inserting_before(next(iter(graph.nodes), graph._root)):  # in front of all else
                return graph.placeholder(f"shared_{len(inputs)}")

        for node in self.traced.graph.nodes:
            if node not in needed:
                continue
            if not self._runs(node):
                copied[node] = placed(self.found[node])
                continue
            copied[node] = graph.node_copy(node, lambda one: copied[one])
            if self.found[node] is BY_WINDOW:
                names.append(self.name_of(node))
            if node.op == "call_module":
                constants[str(node.target)] = self.traced.leaves[str(node.target)]
        graph.output(fx.map_arg(output, lambda one: copied[one]))
        module = fx.GraphModule(constants, graph)
        if any(type(one) in (nn.GRU, nn.LSTM) for one in constants.values()):  # which would take most of the time
            module = fuse(module, inplace=True)
        return Rest(module, tuple(inputs), tuple(dict.fromkeys(names)))

    def _runs(self, node: fx.Node) -> bool:
        """Tell whether a node runs window by window."""
        return self.found[node] is BY_WINDOW or _has_batch(self.found[node])


def _is_weight_normed(module: nn.Module) -> bool:
    """Tell whether all hooks of a module compute its weight, which they do here as they would at a call."""
    hooks = module._forward_pre_hooks.values()
    others = (module._forward_hooks, module._backward_hooks, module._backward_pre_hooks)
    if not hooks or any(others) or not all(isinstance(hook, WeightNorm) for hook in hooks):
        return False
    for hook in hooks:
        hook(module, None)
    return True


def _same(value: Any) -> Any:
    return value


def _is_of_windows(value: Any) -> bool:
    """Tell whether a value is not the same for all windows, or counts them."""
    if isinstance(value, (Positions, Features, Flattened)):
        return True
    return isinstance(value, Marker) or (type(value) in (tuple, list) and any(map(_is_of_windows, value)))


def _has_batch(value: Any) -> bool:
    return value is BATCH or (type(value) in (tuple, list) and any(map(_has_batch, value)))


def _takes_values(node: fx.Node) -> bool:
    """Tell whether what is used of ``tensor.max(dim)`` is its values."""
    return all(
        (user.target is operator.getitem and user.args[1] == 0) or (user.target is getattr and user.args[1] == "values")
        for user in node.users
    )


def _attribute(model: nn.Module, path: str) -> Any:
    owner, _, name = path.rpartition(".")
    return getattr(model.get_submodule(owner), name)


def _maps_of(value: Positions | Features | Flattened) -> list[int]:
    if isinstance(value, Features):
        return [value.tap.map]
    positions = value.value if isinstance(value, Flattened) else value
    return [int(one) for one in np.unique(positions.maps) if one != ZERO]


def _renumbered(value: Any, numbers: Mapping[int, int]) -> Any:
    if isinstance(value, Features):
        return value._replace(tap=Tap(numbers[value.tap.map], value.tap.offset))
    if isinstance(value, Flattened):
        return Flattened(_renumbered(value.value, numbers))
    return value._replace(maps=np.array([numbers[int(one)] if one != ZERO else ZERO for one in value.maps], np.int64))
