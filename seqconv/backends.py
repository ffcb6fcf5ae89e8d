"""The one place that chooses which backend serves a call: per call, from its tensors, never from the machine at import.

Every operation has candidates in order of preference, ``reference`` last. Under ``auto`` the first one serves that
does not refuse and does not know itself to be slower; why a preferred one does not is logged once. A backend asked for
by name, by the argument ``backend=`` or else by the environment variable ``SEQCONV_BACKEND``, serves or raises
:class:`BackendError`.
"""

from __future__ import annotations

import gc
import importlib
import importlib.util
import logging
import os
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from seqconv.kernels.triton import replay
from seqconv.kernels.triton.launch import interpreted

__all__ = [
    "BACKENDS",
    "VARIABLE",
    "BackendError",
    "Candidate",
    "Explanation",
    "attribute",
    "check_name",
    "choose",
    "choose_named",
    "explain_call",
    "load",
    "names",
    "operations",
    "register",
    "unavailable",
]

BACKENDS = ("triton", "numba", "reference")
VARIABLE = "SEQCONV_BACKEND"

logger = logging.getLogger("seqconv")

Kernel = Callable[..., Any]


class BackendError(RuntimeError):
    """A backend that was asked for by name cannot serve the call."""


class Loaded:
    """Where a kernel is kept: an object, for torch.compile copies lists and dictionaries when it first sees them."""

    kernel: Kernel | None = None


class Candidate(NamedTuple):
    """A backend's kernel for one operation.

    ``load`` returns the kernel and runs at the first call that needs it. ``refuse`` takes the kernel's own arguments
    and returns why it cannot serve them, or ``None``; ``avoid`` why it should not unless asked for by name. ``plan``
    returns how it would serve them, where it has a choice; it takes the kernel's keywords, too. ``loaded`` holds the
    kernel from then on.
    """

    backend: str
    load: Callable[[], Kernel]
    refuse: Callable[..., str | None]
    avoid: Callable[..., str | None] | None
    plan: Callable[..., str] | None
    loaded: Loaded


@dataclass(frozen=True)
class Explanation:
    """Which backend serves a call, and why the others do not.

    ``reasons`` maps every backend to why it does not serve, ``None`` for the one that does. ``plan`` tells how that one
    serves the call, and why so, where it has a choice.
    """

    operation: str
    backend: str
    requested: str
    reasons: Mapping[str, str | None]
    plan: str | None = None

    def __str__(self) -> str:
        lines = [f"{self.operation}: {self.backend} (asked for: {self.requested})"]
        lines += [f"  plan: {self.plan}"] if self.plan else []
        lines += [f"  {name}: {reason or 'serves this call'}" for name, reason in self.reasons.items()]
        return "\n".join(lines)


def nothing(*_arguments: Any) -> None:
    """Return ``None``: the reason of a kernel that refuses nothing."""


def register(
    operation: str,
    backend: str,
    load: Callable[[], Kernel],
    refuse: Callable[..., str | None] = nothing,
    avoid: Callable[..., str | None] | None = None,
    plan: Callable[..., str] | None = None,
) -> None:
    """Add ``backend``'s candidate for ``operation``, kept in order of preference; see :class:`Candidate`."""
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, got {backend!r}")
    candidates = [one for one in _candidates.get(operation, ()) if one.backend != backend]
    candidates.append(Candidate(backend, load, refuse, avoid, plan, Loaded()))
    _candidates[operation] = tuple(sorted(candidates, key=lambda one: BACKENDS.index(one.backend)))
    replay.forget()  # calls that another candidate has served


def attribute(module: str, name: str) -> Callable[[], Kernel]:
    """Return what loads ``name`` from a module that is imported no sooner."""
    return lambda: getattr(load(module), name)


def load(module: str) -> Any:
    """Import a module of kernels while Python does not look for garbage.

    Numba makes many objects and drops few. To look through them beside torch's took half of a first call: 0.46 and then
    0.22 s.
    """
    found = sys.modules.get(module)
    if found is not None and not getattr(found.__spec__, "_initializing", False):
        return found
    with _at_rest:
        return importlib.import_module(module)


class _AtRest:
    """Within such a block of any thread, Python does not look for garbage; behind the last one as before the first."""

    def __init__(self) -> None:
        self.lock, self.blocks, self.was_enabled = threading.Lock(), 0, False

    def __enter__(self) -> None:
        with self.lock:
            if not self.blocks:
                self.was_enabled = gc.isenabled()
                gc.disable()
            self.blocks += 1

    def __exit__(self, *_error: object) -> None:
        with self.lock:
            self.blocks -= 1
            if not self.blocks and self.was_enabled:
                gc.enable()

    def leave_to_child(self) -> None:
        """Begin anew in a forked process, where the threads that would have left their blocks are not."""
        if self.blocks and self.was_enabled:
            gc.enable()
        self.__init__()  # type: ignore[misc]


_at_rest = _AtRest()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_at_rest.leave_to_child)


def operations() -> tuple[str, ...]:
    """Return the names of all operations."""
    return tuple(sorted(_candidates))


def unavailable() -> dict[str, str]:
    """Return the backends that cannot run on this machine at all, each with the reason."""
    reasons = {
        name: f"the package {name} is not installed"
        for name in ("triton", "numba")
        if importlib.util.find_spec(name) is None
    }
    if "triton" not in reasons and not torch.cuda.is_available() and not interpreted():
        reasons["triton"] = "torch sees no GPU"
    return reasons


def names(operation: str) -> tuple[str, ...]:
    """Return the backends that have a kernel for ``operation``, the preferred one first."""
    return tuple(candidate.backend for candidate in _of(operation))


def check_name(backend: str, argument: str = "backend") -> str:
    """Return ``backend`` if it is ``"auto"`` or a backend's name, else raise ``ValueError``."""
    if backend != "auto" and backend not in BACKENDS:
        raise ValueError(f"{argument} must be one of auto, {', '.join(BACKENDS)}, got {backend!r}")
    return backend


def choose(operation: str, backend: str, arguments: tuple[Any, ...]) -> Kernel:
    """Return the kernel that serves ``operation`` on ``arguments``, see :func:`choose_named`."""
    return choose_named(operation, backend, arguments)[1]


def choose_named(operation: str, backend: str, arguments: tuple[Any, ...]) -> tuple[str, Kernel]:
    """Return the name of the backend that serves ``operation`` on ``arguments``, and its kernel.

    ``backend`` is ``"auto"`` or a name out of :data:`BACKENDS`. Raises ``ValueError`` for an unknown name and
    :class:`BackendError` where a backend asked for by name cannot serve, with the reason.
    """
    requested = _requested(backend)
    for candidate in _candidates.get(operation) or _of(operation):
        if requested not in ("auto", candidate.backend):
            continue
        reason = candidate.refuse(*arguments)
        if reason is None and requested == "auto" and candidate.avoid is not None:
            reason = candidate.avoid(*arguments)
        if reason is None:
            if torch.compiler.is_compiling() or candidate.loaded.kernel is None:
                _load(operation, candidate.backend)
            return candidate.backend, candidate.loaded.kernel  # type: ignore[return-value]
        if requested != "auto":
            raise BackendError(f"backend {requested!r} cannot serve {operation}: {reason}")
        if not torch.compiler.is_compiling() and (operation, candidate.backend, reason) not in _logged:
            _log_once(operation, candidate.backend, reason)  # in a graph, the set would be one of its guards
    raise _unserved(operation, requested)


def explain_call(operation: str, backend: str, arguments: tuple[Any, ...], **keywords: Any) -> Explanation:
    """Return what :func:`choose` would do, without doing it. Raises as it does.

    ``keywords`` are those that the kernel would be called with: they matter to its plan alone.
    """
    requested = _requested(backend)
    reasons: dict[str, str | None] = {}
    chosen = None
    candidates = {candidate.backend: candidate for candidate in _of(operation)}
    for name in BACKENDS:
        if name not in candidates:
            reasons[name] = f"has no kernel for {operation}"
        elif (reason := _reason(candidates[name], requested, arguments)) is not None:
            reasons[name] = reason
        elif requested not in ("auto", name):
            reasons[name] = f"not asked for: backend {requested!r} was"
        elif chosen is not None:
            reasons[name] = f"could serve, but {chosen} is preferred"
        else:
            chosen, reasons[name] = name, None
    if chosen is None:
        if requested in candidates:
            raise BackendError(f"backend {requested!r} cannot serve {operation}: {reasons[requested]}")
        raise _unserved(operation, requested)
    plan = candidates[chosen].plan
    return Explanation(operation, chosen, requested, reasons, None if plan is None else plan(*arguments, **keywords))


def check_reference(operation: str, backend: str, reason: str) -> Explanation:
    """Return the explanation of a call that torch's own operations alone can serve, for ``reason``, and log that once.

    Raises as :func:`choose` does.
    """
    requested = _requested(backend)
    if requested not in ("auto", "reference"):
        raise BackendError(f"backend {requested!r} cannot serve {operation}: {reason}")
    reasons = {name: None if name == "reference" else reason for name in BACKENDS}
    _log_once(operation, ", ".join(name for name, why in reasons.items() if why), reason)
    return Explanation(operation, "reference", requested, reasons)


_candidates: dict[str, tuple[Candidate, ...]] = {}
_logged: set[tuple[str, str, str]] = set()
_lock = threading.RLock()


def _of(operation: str) -> tuple[Candidate, ...]:
    try:
        return _candidates[operation]
    except KeyError:
        raise ValueError(f"operation must be one of {', '.join(sorted(_candidates))}, got {operation!r}") from None


def _reason(candidate: Candidate, requested: str, arguments: tuple[Any, ...]) -> str | None:
    reason = candidate.refuse(*arguments)
    if reason is None and requested == "auto" and candidate.avoid is not None:
        reason = candidate.avoid(*arguments)
    return reason


def _requested(backend: str) -> str:
    if backend != "auto":
        return backend if backend in BACKENDS else check_name(backend)
    variable = os.environ.get(VARIABLE)
    return check_name(variable, VARIABLE) if variable else "auto"


def variable() -> object:
    """Return the environment variable's value, encoded or not, or ``None``."""
    # Read past os.environ, which takes a microsecond to raise and catch an error where a variable is not set.
    encoded = getattr(os.environ, "_data", None)
    return os.environ.get(VARIABLE) if encoded is None else encoded.get(_VARIABLE)


_VARIABLE = os.environ.encodekey(VARIABLE)


def _load(operation: str, backend: str) -> None:
    candidate = next(candidate for candidate in _of(operation) if candidate.backend == backend)
    with _lock:
        if candidate.loaded.kernel is None:
            candidate.loaded.kernel = candidate.load()


# torch.compile cannot trace an import. This is what torch.compiler.assume_constant_result sets, which itself imports
# all of torch.compile, and Triton: more than a second.
_load._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _unserved(operation: str, requested: str) -> BackendError:
    have = ", ".join(names(operation))
    return BackendError(
        f"backend {requested!r} cannot serve {operation}: it has no kernel for it; those that do: {have}"
    )


def _log_once(operation: str, backend: str, reason: str) -> None:
    if torch.compiler.is_compiling():  # a logger would break the graph
        return
    key = (operation, backend, reason)
    with _lock:
        if key in _logged:
            return
        _logged.add(key)
    logger.info("%s: backend %s does not serve: %s", operation, backend, reason)
