"""``seqconv.prepare``: a model's inference, with all that can be done before a call done before."""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import chain
from operator import is_
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.modules.module import _has_any_global_hook
from torch.nn.parameter import is_lazy

from seqconv.functional import folded, recent
from seqconv.functional.following import active
from seqconv.fusion.calls import FusedCall, noted
from seqconv.fusion.guards import guards, own_call_reason, untouched
from seqconv.fusion.links import link_of
from seqconv.fusion.matching import resolved
from seqconv.fusion.program import Analysis, analysed
from seqconv.fusion.tracing import TENSOR, Fact, Untraceable

__all__ = ["PreparedModel", "prepare"]

MOST = 8  # formats of inputs for which calls are frozen: each holds its own packed weights
MOST_LOOKS = 64  # at a model that changes from call to call, one after the other

_guards: Any = torch._C._dynamo.guards


def prepare(model: nn.Module, *example: Tensor) -> PreparedModel:
    """Return a function that computes what ``model(*inputs)`` does, without gradients, at the least cost of a call.

    ``model`` is a module in evaluation mode, fused or not, that takes tensors, by position; ``example`` are such. It is
    not changed. The calls that :func:`fuse` would make are made. Batch norms are folded into weights, and these are
    packed, once, and what does not depend on the inputs is not done again: what a small batch waits for otherwise. The
    first call of each of the first 8 formats (shapes, strides, dtypes) takes milliseconds; others run as a fused model.

    Changes of the model are noticed at the next call, but for writes into the memory of its parameters and buffers that
    torch does not count: through ``.data``, a NumPy view or a kernel of one's own. The parameters are :class:`frozen`
    meanwhile, for all who use them, so that folded tables of embeddings are kept. A model that cannot be traced, or has
    hooks of its own, runs as it is: :func:`fuse` it before, for its parts.

    Raises ``TypeError`` for what is no module, or no tensors, and ``ValueError`` for a model in training mode, then or
    at a call.
    """
    return PreparedModel(model, *example)


class Ready:
    """What runs for inputs of one format, and what tells them, and torch's switches, from others."""

    def __init__(self, run: Callable[..., Any], inputs: tuple[Tensor, ...]) -> None:
        self.run, self.count = run, len(inputs)
        self.is_like = _guards.TensorGuards(*inputs, dynamic_dims_sizes=None, dynamic_dims_strides=None).check
        self.has_switches, self.switches = _guards.GlobalStateGuard().check, recent.switches()

    def serves(self, inputs: tuple[Tensor, ...]) -> bool:
        """Tell whether it may run on inputs."""
        return (
            len(inputs) == self.count
            and self.is_like(*inputs)
            and self.has_switches()
            and self.switches == recent.switches()
        )


class State:
    """A model as it is at a time, and what was prepared for it."""

    def __init__(self, model: nn.Module) -> None:
        modules = [*model.modules()]
        self.held: list[Any] = [one for module in modules for one in (module._parameters, module._buffers)]
        self.kept: list[Any] = [one for held in self.held for one in held.values()]
        self.tensors: list[Tensor] = [one for one in self.kept if one is not None]
        self.is_plain = (
            own_call_reason(model) is not None
            or type(model).__call__ is not nn.Module.__call__
            or any(isinstance(one, torch.jit.ScriptModule) for one in modules)
            or any(is_lazy(one) or one.is_inference() for one in self.tensors)
        )
        if self.is_plain:
            return
        self.numbers, self.steps = self._numbers(), folded.uncounted_steps()
        self.holds = untouched(modules)
        if not self.holds():  # it cannot tell of these
            self.holds = guards(modules)
        self.ready: list[Ready] = []
        self.graphs: dict[Any, tuple[Analysis | None, Callable[..., Any]]] = {}

    def is_as_it_was(self, model: nn.Module) -> bool:
        """Tell whether nothing was written to the model, as far as torch and Python tell."""
        if self.is_plain:
            return False
        return (
            self._numbers() == self.numbers
            and self.steps == folded.uncounted_steps()
            and not model.training
            and self.holds()
            and all(map(is_, chain.from_iterable(map(dict.values, self.held)), self.kept))
        )

    def _numbers(self) -> list[int]:
        """Return how often torch wrote to the tensors, and where they are."""
        return [one._version for one in self.tensors] + [one.data_ptr() for one in self.tensors]


class PreparedModel:
    """The inference of ``model``, see :func:`prepare`."""

    def __init__(self, model: nn.Module, *example: Tensor) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
        if not example or not all(isinstance(one, Tensor) for one in example):
            kinds = ", ".join(type(one).__name__ for one in example) or "none"
            raise TypeError(f"example must be the tensors that model is called with, got {kinds}")
        self.model, self.looks = model, 0
        self.formats = [(one.shape, one.stride(), one.dtype, one.device) for one in example]
        _require_evaluation(model)
        self.promise, self.state = folded.frozen(model), State(model)
        self(*example)

    def __call__(self, *inputs: Tensor) -> Any:
        """Return the model's output."""
        if torch.compiler.is_compiling() or _has_any_global_hook() or active("cpu", autocast=True) is not None:
            return self._plain(inputs)
        state = self.state
        with torch.no_grad():
            if state.is_as_it_was(self.model):
                self.looks = 0
            else:
                _require_evaluation(self.model)
                self.looks += 1
                if self.looks > MOST_LOOKS and self.looks % MOST_LOOKS:
                    return self._plain(inputs)
                state = self._look()
            if state.is_plain:
                return self._plain(inputs)
            for ready in state.ready:
                if ready.serves(inputs):
                    return ready.run(*inputs)
            return self._first(state, inputs)

    def __del__(self) -> None:
        if (promise := self.__dict__.get("promise")) is not None:
            promise.end()

    def __reduce__(self) -> tuple[Any, ...]:
        example = (torch.empty_strided(*one[:2], dtype=one[2], device=one[3]).zero_() for one in self.formats)
        return prepare, (self.model, *example)

    def _plain(self, inputs: tuple[Any, ...]) -> Any:
        with torch.no_grad():
            return self.model(*inputs)

    def _look(self) -> State:
        """Note how the model is now; what was prepared is of no use any more."""
        before, self.promise = self.promise, folded.frozen(self.model)
        before.end()
        state = self.state = State(self.model)
        return state

    def _first(self, state: State, inputs: tuple[Any, ...]) -> Any:
        """Serve inputs of a format that is new, and prepare for it."""
        if not inputs or not all(isinstance(one, Tensor) for one in inputs) or len({*map(id, inputs)}) < len(inputs):
            return self._plain(inputs)
        facts = tuple(Fact(one.dim(), one.dtype) for one in inputs)
        if facts not in state.graphs:
            state.graphs[facts] = self._graph(facts)
        found, run = state.graphs[facts]
        if found is None or len(state.ready) >= MOST:
            return run(*inputs)
        with noted() as calls:
            output = run(*inputs)
        state.ready.append(Ready(_frozen(found, self.model, calls), inputs))
        return output

    def _graph(self, facts: tuple[Fact, ...]) -> tuple[Analysis | None, Callable[..., Any]]:
        """Return the model's graph for inputs of these facts, and what runs it: the model where there is none."""
        try:
            found = analysed(self.model, (TENSOR,) * len(facts), {}, differentiable=False, facts=facts)
        except (Untraceable, TypeError):  # such as of a forward pass that takes no so many arguments
            return None, self.model
        return found, resolved(found.graph, self.model, {module for module, _ in found.modes})


def _require_evaluation(model: nn.Module) -> None:
    if model.training:
        raise ValueError("model must be in evaluation mode, call its eval(): got one in training mode")


def _frozen(found: Analysis, root: nn.Module, calls: list[Any]) -> Callable[..., Any]:
    """Return a graph as a function, with frozen calls, and without modules that do nothing.

    ``calls`` are the fused calls as they were made.
    """
    operands = {call: given for call, given, _ in calls}
    graph = copy.deepcopy(found.graph)
    leaves = {name: root.get_submodule(name) for name in found.called}
    for node in [*graph.nodes]:
        if isinstance(node.target, FusedCall) and node.target in operands and _is_constant(node, root):
            node.target = node.target.frozen(*operands[node.target]) or node.target
        link = link_of(node, leaves)
        is_call = node.op == "call_module" or node.target is F.dropout
        if is_call and link is not None and link.kind == "nothing" and link.reason is None:
            node.replace_all_uses_with(link.source)
            graph.erase_node(node)
    return resolved(graph, root, {module for module, _ in found.modes})  # type: ignore[no-any-return]


def _is_constant(node: fx.Node, root: nn.Module) -> bool:
    """Tell whether all operands of a fused call but its source are parameters or buffers of modules."""
    given: Any = node.args[0]
    return all(one is None or _is_held(one, root) for one in given[1:])


def _is_held(node: fx.Node, root: nn.Module) -> bool:
    if node.op != "get_attr":
        return False
    path, _, name = str(node.target).rpartition(".")
    try:
        module = root.get_submodule(path)
    except AttributeError:
        return False
    return name in module._parameters or name in module._buffers
