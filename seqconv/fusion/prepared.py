"""``seqconv.prepare``: a model's inference, with all that can be done before a call done before."""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import chain
from operator import is_
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.modules.module import _has_any_global_hook

from seqconv.functional.folded import frozen
from seqconv.functional.following import is_watched
from seqconv.fusion.calls import FrozenCall, FusedCall
from seqconv.fusion.guards import guards
from seqconv.fusion.links import link_of
from seqconv.fusion.matching import resolved
from seqconv.fusion.program import Analysis, analysed
from seqconv.fusion.tracing import TENSOR, Fact

__all__ = ["PreparedModel", "prepare"]

MOST = 8  # formats of inputs that are kept
MOST_LOOKS = 64  # of a model that changes at every call

_guards: Any = torch._C._dynamo.guards


def prepare(model: nn.Module, *example: Tensor) -> PreparedModel:
    """Return a function that computes what ``model(*inputs)`` does, without gradients, at the least cost of a call.

    ``model`` is any module in evaluation mode, fused or not, and ``example`` are inputs as it will be given; it is not
    changed. The calls that :func:`fuse` would make are made. Batch norms are folded into weights, and these are packed,
    once, and what does not depend on the inputs is not done again: what a small batch waits for otherwise. Inputs of
    other shapes and dtypes are served, too; the first call of a kind takes milliseconds.

    Changes of the model are noticed at the next call, but for writes into its parameters and buffers that torch does
    not count: through ``.data``, a NumPy view or a kernel of one's own. The parameters are :class:`frozen` meanwhile,
    so that folded tables of embeddings are kept. A model that cannot be traced runs as it is: :func:`fuse` it before,
    for its parts.

    Raises ``TypeError`` for what is no module, or no tensors, and ``ValueError`` for a model in training mode, then or
    at a call.
    """
    return PreparedModel(model, *example)


class Ready(NamedTuple):
    """What runs for inputs of one format, and what tells them, and torch's switches, from others."""

    run: Callable[..., Any]
    is_like: Callable[..., bool]
    has_switches: Callable[[], bool]


class PreparedModel:
    """The inference of ``model``, see :func:`prepare`."""

    def __init__(self, model: nn.Module, *example: Tensor) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
        if not example or not all(isinstance(one, Tensor) for one in example):
            kinds = ", ".join(type(one).__name__ for one in example) or "none"
            raise TypeError(f"example must be the tensors that model is called with, got {kinds}")
        self.model, self.example = model, example
        self.looks, self.promise = 0, frozen(model)
        self._look()
        self(*example)

    def __call__(self, *inputs: Tensor) -> Any:
        """Return the model's output."""
        if torch.compiler.is_compiling() or _has_any_global_hook() or is_watched():
            return self._plain(inputs)
        with torch.no_grad():
            if not self._is_as_it_was():
                self._look()
            for variant in self.variants:
                if variant.is_like(*inputs) and variant.has_switches():
                    return variant.run(*inputs)
            return self._first(inputs)

    def __del__(self) -> None:
        if (promise := self.__dict__.get("promise")) is not None:
            promise.end()

    def __reduce__(self) -> tuple[Any, ...]:
        return prepare, (self.model, *self.example)

    def _plain(self, inputs: tuple[Any, ...]) -> Any:
        with torch.no_grad():
            return self.model(*inputs)

    def _is_as_it_was(self) -> bool:
        if [one._version for one in self.tensors] != self.versions or not self.holds():
            return False
        return all(map(is_, chain.from_iterable(map(dict.values, self.held)), self.kept))

    def _look(self) -> None:
        """Note how the model is now; what was prepared is of no use any more."""
        if self.model.training:
            raise ValueError("model must be in evaluation mode, call its eval(): got one in training mode")
        self.looks += 1
        self.promise.end()
        self.promise = frozen(self.model)
        self.held: list[Any] = [
            one for module in self.model.modules() for one in (module._parameters, module._buffers) if one
        ]
        self.kept: list[Any] = [*chain.from_iterable(map(dict.values, self.held))]
        tensors: list[Tensor] = [one for one in self.kept if one is not None]
        self.is_counted = not any(one.is_inference() for one in tensors)
        self.tensors = tensors if self.is_counted else []
        self.versions = [one._version for one in self.tensors]
        self.holds = guards(self.model.modules())
        self.variants: list[Ready] = []

    def _first(self, inputs: tuple[Any, ...]) -> Any:
        """Serve inputs of a format that is new, and prepare for it."""
        is_plain = all(isinstance(one, Tensor) for one in inputs) and len({*map(id, inputs)}) == len(inputs)
        if not is_plain or not inputs or not self.is_counted or self.looks > MOST_LOOKS:
            return self._plain(inputs)
        facts = [Fact(one.dim(), one.dtype) for one in inputs]
        try:
            found = analysed(self.model, (TENSOR,) * len(inputs), {}, differentiable=False, facts=facts)
            freezer = _Freezer(found, self.model)
            output = freezer.run(*inputs)
        except Exception:  # the model's own to raise, as it does without us
            found, output = None, self._plain(inputs)
        run = self.model if found is None else freezer.code()
        tensors = _guards.TensorGuards(*inputs, dynamic_dims_sizes=None, dynamic_dims_strides=None)
        variant = Ready(run, tensors.check, _guards.GlobalStateGuard().check)
        self.variants = [variant, *self.variants[: MOST - 1]]
        return output


class _Freezer(fx.Interpreter):
    """Runs a graph once, and freezes its fused calls as they come to be called."""

    def __init__(self, found: Analysis, root: nn.Module) -> None:
        super().__init__(root, graph=found.graph)
        self.extra_traceback = False
        self.root, self.found = root, found
        self.frozen: dict[FusedCall, FrozenCall | None] = {}

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if isinstance(target, FusedCall):
            self.frozen[target] = target.frozen(*args[0])
        return super().call_function(target, args, kwargs)

    def code(self) -> Callable[..., Any]:
        """Return the graph as a function, with frozen calls, and without modules that do nothing."""
        graph = copy.deepcopy(self.found.graph)
        leaves = {name: self.root.get_submodule(name) for name in self.found.called}
        for node in [*graph.nodes]:
            node.target = self.frozen.get(node.target) or node.target
            link = link_of(node, leaves)
            is_call = node.op == "call_module" or node.target is F.dropout
            if is_call and link is not None and link.kind == "nothing" and link.reason is None:
                node.replace_all_uses_with(link.source)
                graph.erase_node(node)
        return resolved(graph, self.root, {module for module, _ in self.found.modes})  # type: ignore[no-any-return]
