"""One comparison, from check to samples: whoever runs suites, pytest or a worker on a GPU, runs this."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import cache
from typing import Any

from benchmarks import timing
from benchmarks.checking import check, precision
from benchmarks.operations import operation
from benchmarks.registry import Case, Comparison, Contender, drawn

Errors = dict[str, tuple[float, float]]
Turns = Callable[[timing.Side, timing.Side, int], None]

checked: dict[str, Errors] = {}
made: dict[tuple[str, str], Callable[[Case], Any]] = {}


def verify(candidate: Contender) -> Errors:
    """Check a candidate once; return its errors, or raise :class:`benchmarks.checking.Wrong`."""
    if str(candidate) not in checked:
        with precision(candidate.case):  # a trial for the better layout is a part of it
            checked[str(candidate)] = check(once(candidate))
    return checked[str(candidate)]


def once(candidate: Contender) -> Contender:
    """Return a candidate whose provider makes a case's function once: torch.compile takes long to."""
    provider, kind = candidate.provider, candidate.case.operation
    if operation(kind).stateful or not provider.one_batch:
        return candidate
    return replace(
        candidate, provider=replace(provider, make=made.setdefault((kind, provider.name), cache(provider.make)))
    )


def at_work(candidate: Contender, clock: timing.Clock | None = None) -> timing.Side:
    """Return a candidate at work on its own copy of the inputs."""
    case, kind = candidate.case, operation(candidate.case.operation)
    function, inputs = once(candidate).provider.make(case), drawn(case, kind.values[0])
    step = kind.step(candidate.placed, function, inputs, case.torch_dtype)
    # A step in a process of its own measures itself: what asking it takes is not its work.
    stopwatch = getattr(step, "stopwatch", None) or timing.stopwatch_for(case.device)
    return timing.Side(step, stopwatch, clock or timing.Clock())


def take_turns(own: timing.Side, baseline: timing.Side, rounds: int) -> None:
    """Let both sides take turns, the baseline first."""
    timing.take_turns([baseline, own], rounds)


def compare(
    pair: Comparison,
    suite: str,
    seconds: float,
    *,
    clock: timing.Clock | None = None,
    turns: Turns = take_turns,
    whose: Callable[[str], object] = lambda _provider: None,
) -> dict[str, Any]:
    """Check both sides of a comparison, then time them in turn for about ``seconds``; return a measurement's figures.

    ``whose`` is told the provider whose turn it is to fail; ``turns`` lets settled sides take so many rounds.
    """
    case, sides = pair.candidate.case, []
    for candidate in (pair.against, pair.candidate):
        whose(candidate.provider.name)
        verify(candidate)
    with precision(case):
        for candidate in (pair.against, pair.candidate):
            whose(candidate.provider.name)
            sides.append(at_work(candidate, clock))
            timing.settle(sides[-1])
        baseline, own = sides
        turns(own, baseline, timing.choose_rounds(sides, seconds))
    return {
        "case": case.as_dict(),
        "provider": pair.candidate.provider.name,
        "ours": pair.candidate.provider.ours,
        "baseline": pair.against.provider.name,
        "baseline_layout": pair.against.placed.layout,
        "suite": suite,
        "calls_per_block": own.calls,
        "samples": own.samples,
        "baseline_samples": baseline.samples,
        "errors": checked[str(pair.candidate)],
    }


def line(figures: dict[str, Any]) -> str:
    """Return a comparison's milliseconds and how many times faster it was, in words."""
    milliseconds = timing.quartiles(figures["samples"]).median * 1e3
    ratio = timing.quartiles(timing.ratios(figures["baseline_samples"], figures["samples"]))
    return f"{milliseconds:.4g} ms, {ratio.median:.3g}x ({ratio.q1:.3g}-{ratio.q3:.3g})"


def quantity(suite: str, case: str, provider: str, name: str, unit: str, samples: Iterable[float]) -> dict[str, Any]:
    """Return something measured that is no comparison of two times, as a results file has it."""
    place = {"suite": suite, "case": case, "provider": provider}
    return {**place, "quantity": name, "unit": unit, "samples": list(samples)}
