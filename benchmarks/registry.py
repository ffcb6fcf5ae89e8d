"""What can be benchmarked: cases (a piece of work), operations (how it is done, how checked), providers (by whom)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from typing import Any, Protocol

import torch

MOST_CHECKED = 1024  # samples on a GPU: so many that programs that go from tile to tile have more than one


@dataclass(frozen=True)
class Case:
    """One piece of work: an operation at one shape, dtype, layout, mode and device.

    ``dtype`` is ``float32`` (exact), ``tf32`` (float32 tensors, TF32 products allowed), ``bfloat16`` or ``float16``.
    ``input_gradient``: whether the modes with a backward pass ask for it (a network's first layer does not).
    ``cold`` asks for the first call in a fresh process as well.
    """

    operation: str
    name: str
    shape: Mapping[str, int] = field(hash=False)
    mode: str
    dtype: str = "float32"
    layout: str = "contiguous"
    device: str = "cpu"
    input_gradient: bool = True
    cold: bool = field(default=False, compare=False)

    def __str__(self) -> str:
        return f"{self.name}-{self.mode}-{self.dtype}-{self.layout}-n{self.shape['N']}-{self.device}"

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype of the tensors."""
        dtype = getattr(torch, "float32" if self.dtype == "tf32" else self.dtype)
        assert isinstance(dtype, torch.dtype)
        return dtype

    def as_dict(self) -> dict[str, Any]:
        """Return what :meth:`from_dict` and a results file need."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Case:
        """Return the case that :meth:`as_dict` described."""
        return cls(**values)


class Step(Protocol):
    """One side's work on its own copy of the inputs."""

    def prepare(self) -> None:
        """Do what is neither side's work (restore parameters, drop gradients, draw numbers): never timed."""

    def call(self) -> Any:
        """Do the work: timed."""

    def results(self) -> dict[str, torch.Tensor]:
        """Return what the last call gave, by name: compared with the oracle."""


@dataclass(frozen=True)
class Provider:
    """Someone who can do an operation.

    ``make(case)`` returns what the operation's ``step`` drives: a function of tensors, or a module.
    ``unavailable(case)`` returns why it cannot serve the case, or ``None``. ``baseline``: others are compared with
    it. ``ours``: seqconv's own. ``slow``: takes so long to get ready that it comes last, and is dropped first when
    time is short. ``definition`` replaces the operation's definition for a peer that computes something else by
    design (an LSTM beside a convolution). ``layout(case)`` is the memory layout in which the provider gets its inputs,
    where it is not the case's. ``leeway``: how many times the usual tolerance its errors may reach.
    ``one_batch``: what it makes is compiled for one batch size, so that it is checked with the batch that is timed.
    """

    name: str
    make: Callable[[Case], Any]
    unavailable: Callable[[Case], str | None] = lambda _case: None
    baseline: bool = False
    ours: bool = False
    slow: bool = False
    definition: Callable[[Case], Any] | None = None
    layout: Callable[[Case], str] | None = None
    leeway: float = 1.0
    one_batch: bool = False


class Operation(ABC):
    """A kind of work: its inputs, how a provider is driven through it, and the plain definition it must agree with."""

    name: str
    noise = True  # whether a baseline is timed beside itself
    rivals_meet = True  # whether others than seqconv are timed beside the first baseline
    stateful = False  # whether what a provider makes is changed by a step: it is then made anew for each use
    exact = False  # whether a right answer has no rounding: then nothing but the oracle's own values will do
    values: tuple[str, ...] = ("random",)  # the kinds of inputs to check with; the first one is also timed

    def __init__(self) -> None:
        self.providers: dict[str, Provider] = {}

    def register(self, provider: Provider) -> None:
        """Add a provider; a name stands for one provider only."""
        if provider.name in self.providers:
            raise ValueError(f"{self.name} has a provider named {provider.name!r} already")
        self.providers[provider.name] = provider

    def checked(self, case: Case) -> Case:
        """Return the case to check instead of one whose oracle would take too long."""
        if case.device == "cpu" or case.shape["N"] <= MOST_CHECKED:
            return case
        return replace(case, shape={**case.shape, "N": MOST_CHECKED})

    @abstractmethod
    def inputs(self, case: Case, values: str) -> dict[str, torch.Tensor]:
        """Return the case's input tensors, on the CPU or on its device, in float32, the same ones every time."""

    @abstractmethod
    def definition(self, case: Case) -> Any:
        """Return the plain computation that providers must agree with, usable in any precision."""

    def compared(self, values: str) -> tuple[str, ...] | None:  # noqa: ARG002
        """Return the names of the results that inputs of this kind can check; ``None`` for all of them."""
        return None

    def rounding(self, case: Case) -> float:
        """Return the relative rounding that any right answer may have on top of twice the definition's own error.

        A ``tf32`` case allows TF32 products, whether or not the definition has used them: for some shapes cuDNN's
        fastest algorithm is one in exact float32. Two rounded factors are off by 2**-11 each.
        """
        if case.dtype == "tf32" and not self.exact:
            return 2**-10
        return 0.0 if self.exact else torch.finfo(case.torch_dtype).eps

    @abstractmethod
    def step(self, case: Case, function: Any, inputs: Mapping[str, torch.Tensor], dtype: torch.dtype) -> Step:
        """Return ``function`` at work on copies of ``inputs`` in ``dtype``, on the case's device and in its layout."""


OPERATIONS: dict[str, Operation] = {}


def add(kind: Operation) -> None:
    """Make ``kind`` known by its name; a name stands for one operation only."""
    if kind.name in OPERATIONS:
        raise ValueError(f"there is an operation named {kind.name!r} already")
    OPERATIONS[kind.name] = kind


def operation(name: str) -> Operation:
    """Return the operation called ``name``, with its providers; :mod:`benchmarks.operations` makes them known."""
    if name not in OPERATIONS:
        raise ValueError(f"operation must be one of {', '.join(sorted(OPERATIONS))}, got {name!r}")
    return OPERATIONS[name]


def drawn(case: Case, values: str) -> dict[str, torch.Tensor]:
    """Return the operation's ``inputs`` on the case's device; those of the latest four shapes are kept.

    To draw the 260 million numbers of a layer at batch 4096 takes a CPU seconds, its step on a GPU a millisecond.
    """
    return dict(_drawn(replace(case, mode="", dtype="", layout="", input_gradient=True), values))


@lru_cache(maxsize=4)
def _drawn(case: Case, values: str) -> dict[str, torch.Tensor]:
    return {name: one.to(case.device) for name, one in operation(case.operation).inputs(case, values).items()}


@dataclass(frozen=True)
class Contender:
    """A provider for a case: what is checked."""

    case: Case
    provider: Provider

    def __str__(self) -> str:
        return f"{self.case}-{self.provider.name}"

    @property
    def unavailable(self) -> str | None:
        """Why the provider cannot serve the case, or ``None``."""
        return self.provider.unavailable(self.case)

    @property
    def placed(self) -> Case:
        """The case in the memory layout in which the provider gets its inputs."""
        return replace(self.case, layout=self.provider.layout(self.case)) if self.provider.layout else self.case


@dataclass(frozen=True)
class Comparison:
    """A provider beside a baseline on one case: what is timed. A baseline beside itself shows the run's noise."""

    candidate: Contender
    against: Contender

    def __str__(self) -> str:
        return f"{self.candidate}-vs-{self.against.provider.name}"

    @property
    def unavailable(self) -> str | None:
        """Why one of the two sides cannot serve the case, or ``None``."""
        return self.candidate.unavailable or self.against.unavailable


def candidates(case: Case) -> list[Contender]:
    """Return the providers of the case's operation, baselines first."""
    providers = sorted(operation(case.operation).providers.values(), key=lambda provider: not provider.baseline)
    return [Contender(case, provider) for provider in providers]


def comparisons(case: Case) -> list[Comparison]:
    """Return who is timed beside whom: each provider beside the first baseline, seqconv's own beside every baseline."""
    known = candidates(case)
    baselines = [candidate for candidate in known if candidate.provider.baseline]
    if not baselines:
        raise ValueError(f"{case.operation} has no baseline among its providers")
    kind = operation(case.operation)
    return [
        Comparison(candidate, against)
        for candidate in known
        if candidate.provider.ours or kind.rivals_meet
        for against in (baselines if candidate.provider.ours else baselines[:1])
        if candidate != against or kind.noise
    ]
