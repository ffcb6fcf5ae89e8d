"""``seqconv.fuse``: a model's forward pass with fused calls in it, the model itself left as it is.

A fused module keeps its class, children, parameters and buffers. Its attribute ``forward`` is a :class:`Program`, which
runs a graph of the class's ``forward`` where one is known to stand for it, and else that ``forward``.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import itertools
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, Self, TypeVar

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.module import _has_any_global_hook

from seqconv.functional.following import is_watched
from seqconv.fusion.calls import FusedCall, FusedConcatenation, FusedRecurrent
from seqconv.fusion.guards import PLAIN, guards, own_call_reason
from seqconv.fusion.matching import Match, compiled, resolved, rewrite
from seqconv.fusion.tracing import TENSOR, Fact, Untraceable, switches, trace

__all__ = ["Program", "analysed", "fuse", "fused_calls", "plain_forward", "required", "tracing_lock", "unfuse"]

Module = TypeVar("Module", bound=nn.Module)

EXPECTED = [Fact(ndim, torch.float32) for ndim in (3, 2, 4)]  # of arguments, where a forward pass asks
MOST = 32  # variants that are kept: each holds code of a few kilobytes
MOST_MADE = 256  # variants of a module that are made, which takes milliseconds: it is given other numbers every time

tracing_lock = threading.RLock()  # torch.fx replaces methods of nn.Module while it traces


class Analysis(NamedTuple):
    """A module's graph with fused calls, what was found in it, and what it takes for granted: see :class:`Variant`.

    ``called`` are the modules that were not looked into.
    """

    graph: fx.Graph
    matches: list[Match]
    holds: Callable[[], bool]
    modes: list[tuple[nn.Module, bool]]
    called: frozenset[str]
    asked: dict[tuple[int, str], Any]

    @property
    def is_fused(self) -> bool:
        return any(match.fused for match in self.matches)


@dataclass
class Variant:
    """What runs while ``holds``, ``None`` where the class's ``forward`` does; ``name`` is its own.

    ``run`` looks modules up at every call, as torch.compile wants it; ``quick`` has them at hand. ``modes`` are those
    of the modules; ``asked`` are the facts that the tensors must have, by their numbers.
    """

    name: str
    graph: fx.Graph | None
    run: Callable[..., Any] | None
    holds: Callable[[], bool]
    modes: list[tuple[nn.Module, bool]]
    asked: tuple[tuple[int, str, Any], ...]

    @cached_property
    def quick(self) -> Callable[..., Any]:
        """What runs in eager mode."""
        assert self.graph is not None
        assert self.run is not None
        root = self.run.__self__  # type: ignore[attr-defined]
        return resolved(self.graph, root, {module for module, _ in self.modes})  # type: ignore[no-any-return]

    def takes(self, tensors: list[Tensor]) -> bool:
        return all(getattr(tensors[number], name) == value for number, name, value in self.asked)


def plain_forward(module: nn.Module) -> Callable[..., Any]:
    """Return the forward pass of a module's class."""
    return type(module).forward.__get__(module)  # type: ignore[no-any-return]


def analysed(
    module: nn.Module,
    given: tuple[Any, ...],
    options: dict[str, Any],
    *,
    differentiable: bool,
    facts: Sequence[Fact] = (),
) -> Analysis:
    """Trace a module's plain forward pass and put fused calls into it. Raises :class:`Untraceable`.

    ``TENSOR`` stands for a tensor among the arguments, ``facts`` are theirs, where these are known. Modules inside that
    cannot be traced are called by the graph.
    """
    cut: set[nn.Module] = set()
    while True:
        try:
            with tracing_lock:
                traced = trace(module, plain_forward(module), given, options, frozenset(cut), facts)
            break
        except Untraceable as error:
            if error.module is module or error.module in cut:
                raise
            cut.add(error.module)
    graph, matches = rewrite(traced.graph, traced.leaves, module, differentiable)
    # What is inside of modules that the graph calls is their own; containers count, and what is read without a call.
    inside = {one for leaf in traced.leaves.values() for one in leaf.modules() if one is not leaf}
    seen = [one for one in module.modules() if one not in inside]
    modes = [(one, one.training) for one in seen]
    return Analysis(graph, matches, guards(seen), modes, frozenset(traced.leaves), traced.asked)


class Program:
    """The forward pass of a fused module: callable as the class's is."""

    is_replaceable = True

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.variants: dict[Any, list[Variant]] = {}
        self.made = 0
        with contextlib.suppress(TypeError, ValueError):  # of a forward pass without one
            self.__signature__ = inspect.signature(plain_forward(module))  # which trainers look at

    def __call__(self, *given: Any, **options: Any) -> Any:
        """Return what the class's ``forward`` returns."""
        key = self._key(given, options)
        if key is None:
            return plain_forward(self.module)(*given, **options)
        tensors = [one for one in given if isinstance(one, Tensor)]
        if options:
            tensors += [one for one in options.values() if isinstance(one, Tensor)]
        variant = self._known(key, tensors)
        if variant is None and not torch.compiler.is_compiling() and self.made < MOST_MADE:
            variant = self._made(key, given, options, [Fact(one.dim(), one.dtype) for one in tensors])
        if variant is None or variant.run is None:
            return plain_forward(self.module)(*given, **options)
        return variant.run(*tensors) if torch.compiler.is_compiling() else variant.quick(*tensors)

    @property
    def __code__(self) -> Any:
        """What ``torch.export`` looks at: an exported program is of the class's own forward pass."""
        forward: Any = plain_forward(self.module)
        return forward.__code__

    def _known(self, key: Any, tensors: list[Tensor]) -> Variant | None:
        known = self.variants.get(key)
        if not known:
            return None
        if torch.compiler.is_compiling():  # which looks at modes itself, and at the rest when it compiles
            for variant in known:
                same = all(module.training is mode for module, mode in variant.modes) and variant.takes(tensors)
                if same and _still(variant.name):
                    return variant
            return None
        for variant in known:
            if variant.holds() and variant.takes(tensors):
                return variant
        return None

    def _key(self, given: tuple[Any, ...], options: dict[str, Any]) -> Any:
        """Return what a graph depends on besides its modules; ``None`` for calls that no graph serves."""
        if torch.compiler.is_compiling():
            if torch.compiler._is_exporting_flag:
                return None
        elif _has_any_global_hook() or is_watched():
            return None
        parts: list[Any] = [*switches(), *options]
        for one in (*given, *options.values()):
            if isinstance(one, Tensor):
                parts.append(TENSOR)
            elif type(one) in PLAIN:
                parts += (type(one), one)
            else:
                return None
        return tuple(parts)

    def _made(self, key: Any, given: tuple[Any, ...], options: dict[str, Any], facts: Sequence[Fact]) -> Variant:
        """Make the variant of a call whose tensors have these facts, and keep it."""
        self.made += 1
        marked = tuple(TENSOR if isinstance(one, Tensor) else one for one in given)
        named = {name: TENSOR if isinstance(one, Tensor) else one for name, one in options.items()}
        try:
            found = analysed(self.module, marked, named, differentiable=key[0], facts=facts)
        except Untraceable:
            found = None
        modules = [*self.module.modules()]
        if found is None:
            holds, kept_modes = guards(modules), [(one, one.training) for one in modules]
            asked = {(number, name): value for number, one in enumerate(facts) for name, value in one._asdict().items()}
        else:
            holds, kept_modes, asked = found.holds, found.modes, found.asked
        run = compiled(found.graph, self.module) if found is not None and found.is_fused else None
        facts_asked = tuple((*fact, value) for fact, value in asked.items())
        name, graph = f"variant {next(_numbers)}", found.graph if found is not None else None
        variant = Variant(name, graph, run, holds, kept_modes, facts_asked)
        _holding[variant.name] = holds
        kept = self.variants.get(key, [])
        if sum(map(len, self.variants.values())) >= MOST:
            self.variants, kept = {}, []
        self.variants[key] = [variant, *kept][: MOST // 2]
        return variant

    def prepare(self, *, differentiable: bool) -> bool:
        """Make variants of a call with the required arguments, all tensors; tell whether anything is fused in one."""
        given, found = (TENSOR,) * required(self.module), False
        with torch.set_grad_enabled(differentiable):
            for fact in EXPECTED:
                variant = self._made((*switches(), *given), (torch.empty(0),) * len(given), {}, [fact] * len(given))
                found |= variant.run is not None
                if not variant.asked:
                    break
        return found

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return type(self)(copy.deepcopy(self.module, memo))

    def __reduce__(self) -> tuple[Any, ...]:
        return Program, (self.module,)


_numbers = itertools.count()
_holding: weakref.WeakValueDictionary[str, Callable[[], bool]] = weakref.WeakValueDictionary()


def _still(name: str) -> bool:
    """Tell whether a variant holds, by its name: torch 2.11 takes nothing but words and numbers for constants."""
    holds = _holding.get(name)
    return holds is not None and holds()


# Asked once, while torch.compile traces: what torch.compiler.assume_constant_result sets, which imports Dynamo.
_still._dynamo_marked_constant = True  # type: ignore[attr-defined]


def fused_calls(module: nn.Module) -> list[FusedCall | FusedConcatenation | FusedRecurrent]:
    """Return the fused calls in a module's own program, of all its variants."""
    program = module.__dict__.get("forward")
    if not isinstance(program, Program):
        return []
    runs = [variant.run for known in program.variants.values() for variant in known if variant.run is not None]
    kinds = FusedCall, FusedConcatenation, FusedRecurrent
    return [one for run in runs for one in run.__func__.__globals__.values() if isinstance(one, kinds)]  # type: ignore[attr-defined]


def required(module: nn.Module) -> int:
    """Return the number of arguments that a module's forward pass must be given."""
    empty, kinds = inspect.Parameter.empty, (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = inspect.signature(plain_forward(module)).parameters.values()
    return sum(one.default is empty and one.kind in kinds for one in parameters)


def fuse(model: Module, *, inplace: bool = False) -> Module:
    """Return ``model`` with fused calls in its forward pass; the numbers, within rounding, stay the same.

    Convolution, batch norm in eval mode, ReLU and maximum pooling, and an embedding in front, become one call wherever
    they follow each other, in any style: ``nn.Sequential``, attributes, functions. Classes, modules, parameters, the
    state dict, hooks and all training code stay as they are; :func:`unfuse` takes the fused calls out again, and
    :func:`fusion_report` tells what was fused, and why the rest was not. A fused model may be fused again.

    What a forward pass reads besides its arguments, its modules' attributes and torch's switches (globals, attributes
    of classes, files, what functions hold) is taken for what it was at a first call of the kind, and so is what an
    attribute holds more than 4 containers deep. Shallow copies, ``copy.copy`` and the replicas of ``nn.DataParallel``
    among them, run the original: unfuse a model before. Second derivatives need an unfused model.

    A deep copy is fused unless ``inplace``. Raises ``TypeError`` for what is no module, and for one that torch cannot
    copy.
    """
    model = _own(model, inplace)
    for module in model.modules():
        if "forward" in module.__dict__ or not _may_have(module):
            continue
        program = Program(module)
        modes = [(one, one.training) for one in module.modules()]
        found = False
        with contextlib.suppress(Exception):  # of a forward pass whose arguments are no tensors
            for training in (not module.training, None):  # the mode that it is in comes last
                with _mode(modes, training):
                    for differentiable in (False, True):
                        found |= program.prepare(differentiable=differentiable)
        if found:
            module.forward = program
    return model


def unfuse(model: Module, *, inplace: bool = False) -> Module:
    """Return ``model`` without what :func:`fuse` put into it: its classes' own forward passes run again.

    A deep copy is changed unless ``inplace``. Raises as :func:`fuse` does.
    """
    model = _own(model, inplace)
    for module in model.modules():
        if isinstance(module.__dict__.get("forward"), Program):
            del module.forward
    return model


def _own(model: Module, inplace: bool) -> Module:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    if not isinstance(inplace, bool):
        raise TypeError(f"inplace must be True or False, got {inplace!r}")
    if inplace:
        return model
    try:
        return copy.deepcopy(model)
    except Exception as error:
        raise TypeError(
            f"model cannot be copied by copy.deepcopy ({error}): pass inplace=True to change it itself"
        ) from error


def _may_have(module: nn.Module) -> bool:
    """Tell whether a module's own code may hold anything to fuse."""
    if own_call_reason(module) not in (None, "hooks need the module's own call"):
        return False
    is_torch = type(module).__module__.startswith("torch.nn") and not isinstance(module, nn.Sequential)
    return (
        not is_torch
        and not isinstance(module, torch.jit.ScriptModule)
        and type(module).forward is not nn.Module.forward
    )


@contextlib.contextmanager
def _mode(modes: list[tuple[nn.Module, bool]], training: bool | None) -> Iterator[None]:
    """Put modules into training or evaluation mode, ``None`` for the mode that each is in, and back."""
    try:
        if training is not None:
            for module, _ in modes:
                module.training = training
        yield
    finally:
        for module, mode in modes:
            module.training = mode
