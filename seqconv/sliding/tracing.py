"""A model as a program of shared rows, and the rest of it, which runs window by window in batches.

The forward pass is traced as a graph (:mod:`seqconv.fusion.tracing`), and every node of it is worked out on what
windows share (:mod:`.positions`), with torch's own names and arguments for what it does. What cannot be shared, such as
a recurrent layer, and all that depends on it, is left to torch, on the windows' features.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from seqconv.fusion.guards import own_call_reason
from seqconv.fusion.program import plain_forward, tracing_lock
from seqconv.fusion.tracing import IN_PLACE, TENSOR, Fact, Trace, Untraceable, trace
from seqconv.kernels.sliding import SlidingProgram, Tap
from seqconv.models.source import WindowSource
from seqconv.sliding.operations import BATCH, FUNCTIONS, METHODS, POINTWISE, Flattened, Marker, Operations, Refused
from seqconv.sliding.positions import ZERO, Features, Misfit, Positions, ProgramBuilder, Unshared

__all__ = ["Analysed", "Rest", "analyse", "traced"]

# What gives the same numbers again, in another view of them or none.
VIEWS = frozenset((
    "chunk", "contiguous", "detach", "expand_as", "flatten", "getitem", "mT", "narrow", "permute", "reshape", "split",
    "squeeze", "swapaxes", "transpose", "unsqueeze", "view",
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


def traced(model: nn.Module) -> Trace:
    """Return the graph of a model's forward pass of one tensor. Raises :class:`Refused`."""
    names = {module: name for name, module in model.named_modules()}
    for name, module in model.named_modules():
        if module.training and (isinstance(module, (_BatchNorm, nn.modules.instancenorm._InstanceNorm))
                                or (isinstance(module, _DropoutNd) and module.p > 0)):  # fmt: skip
            raise Refused(name, f"a {type(module).__name__} in training mode: call model.eval()")
    if (reason := own_call_reason(model)) is not None:
        raise Refused("", reason)
    try:
        with tracing_lock:
            facts = [Fact(3, torch.float32)]
            return trace(model, plain_forward(model), (TENSOR,), {}, frozenset(), facts)
    except Untraceable as error:
        raise Refused(names.get(error.module, ""), error.reason) from error


def analyse(
    model: nn.Module, graph: Trace, columns: int, length: int, step: int, *, channels_first: bool, thinned: int = 1
) -> Analysed:
    """Return what a model computes for windows of ``length`` rows, ``step`` apart, of a series of ``columns``.

    ``thinned`` tells how many rows of the series that the model's source knows come to one of this series. Raises
    :class:`Refused`, also where nothing is shared.
    """
    made = Interpreter(model, graph, columns, length, step, channels_first=channels_first, thinned=thinned)
    return made.analysed()


class Interpreter(Operations):
    """Works a graph out, node by node."""

    def __init__(
        self,
        model: nn.Module,
        traced: Trace,
        columns: int,
        length: int,
        step: int,
        *,
        channels_first: bool,
        thinned: int,
    ) -> None:
        builder = ProgramBuilder(columns)
        super().__init__(builder, builder.series(length, step, channels_first=channels_first), (length, step * thinned))
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
        operands: Any = fx.map_arg(node.args, lambda one: self.found[one])
        options: Any = fx.map_arg(node.kwargs, lambda one: self.found[one])
        given = [self.found[one] for one in node.all_input_nodes]
        if any(one is BY_WINDOW for one in given):
            return BY_WINDOW
        try:
            if node.op != "call_module" and not any(map(_is_of_windows, given)):
                return node.target(*operands, **options)  # type: ignore[operator]
            handler = self._handler(node)
            if handler is None:
                raise Unshared(f"windows do not share {self._kind(node)}")
            self._check_in_place(node)
            found = handler(*operands, **options)
        except Misfit as error:
            raise Refused(self.name_of(node), str(error), len(self.shared)) from error
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

    def _handler(self, node: fx.Node) -> Callable[..., Any] | None:
        """Return what works a node out, given its arguments; ``None`` if nothing does."""
        if node.op == "call_module":
            module = self.traced.leaves[str(node.target)]
            if own_call_reason(module) is not None:
                return None
            return self.of_module(module, alone=len(node.users) == 1)
        name = METHODS.get(str(node.target)) if node.op == "call_method" else FUNCTIONS.get(node.target)
        if name is None:
            return None
        if name in POINTWISE:
            function: Any = node.target if node.op == "call_function" else getattr(Tensor, str(node.target))
            return lambda value, *given, **options: self._pointwise(function, value, *given, **options)
        if name in ("max", "min") and not _takes_values(node):
            return None
        if name == "relu":
            return lambda value, inplace=False: self._relu(value, alone=len(node.users) == 1)  # noqa: ARG005
        return getattr(self, name)  # type: ignore[no-any-return]

    def _check_in_place(self, node: fx.Node) -> None:
        """Refuse what changes a value that something else reads, too."""
        name = self.name_of(node)
        if node.op == "call_module":
            changes = getattr(self.traced.leaves[str(node.target)], "inplace", False)
        else:
            changes = node.kwargs.get("inplace") or name in IN_PLACE or (name.endswith("_") and not name.endswith("__"))
        source = node.args[0] if node.args else None
        while changes and isinstance(source, fx.Node):
            if len(source.users) > 1:
                raise Refused(name, "it changes in place what is used elsewhere, too")
            if source.op == "call_module":
                is_view = isinstance(self.traced.leaves[str(source.target)], (nn.Identity, nn.Flatten, _DropoutNd))
            else:
                is_view = self.name_of(source) in VIEWS
            source = source.args[0] if is_view else None

    # What modules do.

    def _rest(self, output: Any) -> Rest:
        """Return what runs window by window: nodes that are not worked out, and the form of the output."""
        graph = fx.Graph()
        copied: dict[fx.Node, Any] = {}
        inputs: list[Any] = []
        names: list[str] = []

        def carried(node: fx.Node) -> Any:
            if node in copied:
                return copied[node]
            value = self.found[node]
            if isinstance(value, (Positions, Features, Flattened)):
                copied[node] = placed(value)
            elif value is BY_WINDOW or _has_batch(value) or node.op == "get_attr":
                for one in node.all_input_nodes:
                    carried(one)
                if value is BY_WINDOW:
                    names.append(self.name_of(node))
                copied[node] = graph.node_copy(node, lambda one: copied[one])
            elif value is STARTS:
                raise Refused("source", "its starts are used elsewhere, too")
            else:  # worked out to plain numbers, or to a tuple of values
                copied[node] = placed(value)
            return copied[node]

        def placed(value: Any) -> Any:
            if type(value) in (tuple, list):
                return type(value)(map(placed, value))
            if not isinstance(value, (Positions, Features, Flattened)):
                return value
            inputs.insert(0, value)
            with graph.inserting_before(next(iter(graph.nodes), graph._root)):  # in front of all else
                return graph.placeholder(f"shared_{len(inputs)}")

        if isinstance(output, fx.Node) and isinstance(self.found[output], (Positions, Features, Flattened)):
            return Rest(_same, (self.found[output],), ())
        result = fx.map_arg(output, carried)
        graph.output(result)
        return Rest(fx.GraphModule(self.model, graph), tuple(inputs), tuple(dict.fromkeys(names)))


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
