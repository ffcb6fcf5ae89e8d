"""What a traced graph takes for granted of its modules, and whether it still holds."""

from __future__ import annotations

import copy
from array import array
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from itertools import chain
from operator import is_, itemgetter
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

__all__ = ["Keeper", "guards", "own_call_reason", "untouched"]

_version_of: Callable[[Any], int] | None = getattr(torch._C._dynamo.guards, "dict_version", None)

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
INTERNAL = frozenset(nn.Module().__dict__) - {"training"}
PLAIN = (int, float, bool, str, bytes, complex, type(None), torch.dtype, torch.device, torch.memory_format)
QUICK = frozenset((int, bool, str, bytes, type(None)))  # told from others by type and value alone
FOREIGN = ("forward", "_is_torch_compile", "_compiled_call_impl")  # put there by fuse, and by torch.compile
PATIENCE = 4  # times that modules are found alike but written to, before that is taken for how they are
MOST_WATCHED = 32  # containers and objects in the attributes of a module, on average: more are compared anew
OPAQUE = (Tensor, type, ModuleType)  # objects that are not looked into
BYTES = (np.ndarray, array, bytearray)  # compared number by number
BUILT_IN = (list, tuple, dict, OrderedDict, set, frozenset)
DEPTH = 4  # of containers and objects in an attribute


def own_call_reason(module: nn.Module) -> str | None:
    """Return why a module must be called itself, or ``None`` where its class's ``forward`` says all that it does."""
    own = module.__dict__
    if any(own[name] for name in HOOKS):
        return "hooks need the module's own call"
    if "_conv_forward" in own or _has_own_forward(own):
        return "the module has a forward of its own"
    return None


def _has_own_forward(own: dict[str, Any]) -> bool:
    return not hasattr(own.get("forward", guards), "is_replaceable")


def guards(modules: Iterable[nn.Module]) -> Callable[[], bool]:
    """Return a function that tells whether all modules are as they are now, but for the numbers in their tensors.

    Compared are classes, hooks, children, which parameters and buffers exist, and every attribute: numbers, words and
    containers of them by value, objects by identity and by their own attributes.
    """
    modules = [*modules]
    checks = [_guard(module) for module in modules]
    if (tied := _ties(modules)) is not None:
        checks.append(lambda: _ties(modules) == tied)
    is_untouched, touched = untouched(modules), 0

    def are_alike() -> bool:
        try:
            for check in checks:
                if not check():
                    return False
        except (KeyError, RuntimeError, TypeError, ValueError):  # an attribute is gone, or is a tensor now
            return False
        return True

    def hold() -> bool:
        nonlocal is_untouched, touched
        if is_untouched():
            return True
        if not are_alike():
            return False
        touched += 1
        if touched % PATIENCE == 0:
            now = untouched(modules)
            if are_alike():  # still: another thread may have written in between
                is_untouched = now
        return True

    return hold


def untouched(modules: list[nn.Module]) -> Callable[[], bool]:
    """Return a function that tells whether nothing of modules was written to since now, in a quarter of the time.

    CPython counts the changes of a dictionary, or tells who watches it: torch.compile asks for that as well.
    """
    if _version_of is None:
        return lambda: False
    kinds = [*map(type, modules)]
    dictionaries: list[Any] = []
    lists: list[Any] = []
    sets: list[Any] = []
    ordered: list[Any] = []
    objects: list[Any] = []
    unwatched: list[Any] = []
    empty: list[Any] = []  # what it is cheaper to see empty
    seen: dict[int, int] = {}  # how deep what was seen was looked into

    def watch(value: Any, depth: int) -> None:
        """Note what :func:`_state` looks at."""
        if _is_plain(value) or seen.get(id(value), -1) >= depth:
            return
        seen[id(value)] = depth
        if isinstance(value, (set, frozenset)):
            sets.append(value)
        elif not depth or isinstance(value, OPAQUE):
            return
        elif isinstance(value, (list, tuple)):
            if isinstance(value, list):
                lists.append(value)
            for one in value:
                watch(one, depth - 1)
        elif isinstance(value, dict):
            dictionaries.append(value)
            if isinstance(value, OrderedDict):  # whose order may change without its contents
                ordered.append(value)
            for one in value.values():
                watch(one, depth - 1)
        elif isinstance(value, (*BYTES, deque)) or _slots_of(type(value)):
            unwatched.append(value)
        if depth and type(value) not in BUILT_IN and not isinstance(value, OPAQUE) and hasattr(value, "__dict__"):
            objects.append(value)
            watch(vars(value), depth - 1)

    for module in modules:
        own = module.__dict__
        dictionaries.append(own)
        for name in (*HOOKS, "_modules", "_parameters", "_buffers"):
            (dictionaries if own[name] else empty).append(own[name])
            if isinstance(own[name], OrderedDict):
                ordered.append(own[name])
        for name, value in own.items():
            if name not in INTERNAL and name not in FOREIGN:
                watch(value, DEPTH)
        if unwatched or len(seen) > MOST_WATCHED * len(modules):
            return lambda: False
    versions, kept_sets = [*map(_version_of, dictionaries)], [*map(frozenset, sets)]
    lengths, items = [*map(len, lists)], [*chain.from_iterable(lists)]
    orders, inside, classes = [*map(list, ordered)], [*map(vars, objects)], [*map(type, objects)]

    def is_untouched() -> bool:
        return (
            [*map(_version_of, dictionaries)] == versions
            and not any(empty)
            and [*map(type, modules)] == kinds
            and [*map(type, objects)] == classes
            and [*map(len, lists)] == lengths
            and all(map(is_, chain.from_iterable(lists), items))
            and sets == kept_sets
            and [*map(list, ordered)] == orders
            and all(map(is_, map(vars, objects), inside))
        )

    return is_untouched


def _ties(modules: list[nn.Module]) -> list[list[int]] | None:
    """Return which parameters and buffers are one object, by their places; ``None`` where all differ."""
    places: dict[int, list[int]] = {}
    held = (one for module in modules for one in (*module._parameters.values(), *module._buffers.values()))
    for place, tensor in enumerate(held):
        if tensor is not None:
            places.setdefault(id(tensor), []).append(place)
    return [one for one in places.values() if len(one) > 1] or None


guards.is_replaceable = True  # type: ignore[attr-defined]  # what stands for no forward at all


def _guard(module: nn.Module) -> Callable[[], bool]:
    own, kind = module.__dict__, type(module)
    rest_of = (*INTERNAL, *FOREIGN)
    compared = [name for name in own if name not in rest_of and not isinstance(own[name], Tensor)]
    tensors = [name for name in own if name not in rest_of and isinstance(own[name], Tensor)]
    simple = [name for name in compared if _is_plain(own[name])]
    rest = [name for name in compared if name not in simple]
    get, hooks = itemgetter(*simple, "training"), itemgetter(*HOOKS)  # two of them at least: a tuple
    size, bare, values, states = len(own), _size(own), get(own), _states(own, rest)
    types = [*map(type, values)]  # 1 is 1.0, and True
    hooked = [*map(bool, hooks(own))]
    is_bare = not any(hooked)
    children, names, missing = list(own["_modules"].items()), *_slots(own)
    parameters, buffers, has_own_forward = own["_parameters"], own["_buffers"], _has_own_forward(own)

    def holds() -> bool:
        return (
            type(module) is kind
            and (len(own) == size or _size(own) == bare)
            and get(own) == values
            and [*map(type, get(own))] == types
            and own["_parameters"] is parameters
            and own["_buffers"] is buffers
            and _has_own_forward(own) is has_own_forward
            and (not any(hooks(own)) if is_bare else [*map(bool, hooks(own))] == hooked)
            and (not tensors or all(isinstance(own[name], Tensor) for name in tensors))
            and list(own["_modules"].items()) == children
            and _slots(own) == (names, missing)
            and (not rest or _states(own, rest) == states)
        )

    return holds


def _size(own: dict[str, Any]) -> int:
    return len(own) - sum(name in own for name in FOREIGN)


def _slots(own: dict[str, Any]) -> tuple[list[str], list[bool]]:
    parameters, buffers = own["_parameters"], own["_buffers"]
    missing = [one is None for one in parameters.values()]
    if not buffers:
        return [*parameters], missing
    return [*parameters, *buffers], [*missing, *[one is None for one in buffers.values()]]


class _Same:
    """Equal to what holds the same object."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and other.value is self.value

    def __hash__(self) -> int:
        return id(self.value)


def _states(own: dict[str, Any], names: list[str]) -> list[Any]:
    """Return what tells attributes from what they may become, as far as it can be seen; ``None`` for a missing one."""
    values = [own.get(name) for name in names]
    return [(type(one), one) if type(one) in QUICK else _state(one, DEPTH) for one in values]


def _state(value: Any, depth: int) -> Any:
    if _is_plain(value):
        return type(value), value
    inside: Any
    if depth and isinstance(value, (list, tuple)):
        inside = [_state(one, depth - 1) for one in value]
        return type(value), inside, _state_beside(value, depth)
    if depth and isinstance(value, dict):
        inside = [(_Same(name), _state(one, depth - 1)) for name, one in value.items()]
        return type(value), inside, _state_beside(value, depth)
    if isinstance(value, (set, frozenset)):
        return type(value), frozenset(value)
    if isinstance(value, BYTES):
        return _Same(value), bytes(value)
    if isinstance(value, deque):
        return _Same(value), [_state(one, max(depth - 1, 0)) for one in value]
    if depth and not isinstance(value, OPAQUE) and (own := _own(value)) is not None:
        return type(value), _Same(value), {name: _state(one, depth - 1) for name, one in own.items()}
    return type(value), _Same(value)


def _state_beside(container: Any, depth: int) -> Any:
    """Return the state of the attributes that a container of a class of its own may have, ``None`` without any."""
    own = getattr(container, "__dict__", None)
    return _state(own, depth - 1) if own else None


def _own(value: Any) -> dict[str, Any] | None:
    """Return an object's attributes, those in slots too; ``None`` for one without."""
    slots = _slots_of(type(value))
    own = getattr(value, "__dict__", None)
    if not slots:
        return own
    return {**(own or {}), **{name: getattr(value, name) for name in slots if hasattr(value, name)}}


def _slots_of(kind: type) -> list[str]:
    """Return the names of a class's slots, which no dictionary holds."""
    found = [one.__dict__.get("__slots__", ()) for one in kind.__mro__]
    every = chain.from_iterable([one] if isinstance(one, str) else one for one in found)
    return [name for name in every if not name.startswith("__")]


def _is_plain(value: Any) -> bool:
    if type(value) is tuple:
        return all(map(_is_plain, value))
    return isinstance(value, PLAIN) and value == value  # a NaN would never be what it was


class Keeper:
    """A module's attributes as they are now, to be put back."""

    def __init__(self, module: nn.Module) -> None:
        self.module, self.kept = module, dict(module.__dict__)
        self.contents = {name: copy.copy(one) for name, one in self.kept.items() if isinstance(one, (list, dict, set))}
        self.names = list(self.kept)
        self.states = _states(module.__dict__, self.names)

    def restore(self) -> bool:
        """Put them back, and tell whether one had changed."""
        own = self.module.__dict__
        if list(own) == self.names and _states(own, self.names) == self.states:
            return False
        own.clear()
        own.update(self.kept)
        for name, content in self.contents.items():
            container: Any = own[name]
            container.clear()
            (container.extend if isinstance(content, list) else container.update)(content)
        return True
