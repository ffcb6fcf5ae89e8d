"""The suites as pytest sees them: which tests there are, in which order, how alternating sides use pytest-benchmark.

pytest-benchmark times one function in a row of rounds, which is right for following one function over time and wrong
for a ratio: the two sides would be minutes apart. Here a test is one *comparison*: its rounds are the provider's, its
per-round ``setup``, which pytest-benchmark does not time, is a block of the baseline, so that the sides alternate A B
A B. The timer is :class:`benchmarks.timing.Clock`, which moves by what a side's own stopwatch measured, so that
pytest-benchmark's statistics and ``--benchmark-json`` hold the same seconds per call as ours; the pairs' ratios
travel in ``extra_info``.

All checks run before the first timing; after a red one nothing is timed and the run fails. Providers marked ``slow``
come last, each checked and then timed, and are left out once ``--time-budget`` is spent.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from benchmarks import cold, timing
from benchmarks.checking import check
from benchmarks.precision import precision
from benchmarks.registry import Candidate, Comparison, candidates, comparisons, operation

CLOCK = timing.Clock()
SECONDS, QUICK_SECONDS = 0.75, 0.3  # to spend on the rounds of one comparison

checked: dict[str, dict[str, tuple[float, float]]] = {}
left_out: list[dict[str, str]] = []
noted: list[dict[str, Any]] = []
began = time.monotonic()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the suites' options."""
    group = parser.getgroup("seqconv benchmarks")
    group.addoption("--quick", action="store_true", help="fewer cases, fewer rounds, no cold figures")
    group.addoption("--device", default="cpu", help="cpu (the default) or cuda")
    group.addoption("--time-budget", type=float, default=float("inf"), help="seconds after which nothing more is begun")
    group.addoption("--skips", type=Path, help="JSON file for what was left out, and why")
    group.addoption("--quantities", type=Path, help="JSON file for what is measured beside the comparisons")
    group.addoption("--no-cold", action="store_true", help="leave out the first calls in fresh processes")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give a suite's checks their candidates and its timings their comparisons, from the suite's ``cases``.

    A suite that measures something else names its ``subjects`` itself.
    """
    wanted = {"candidate", "comparison", "subject"} & set(metafunc.fixturenames)
    if not wanted:
        return
    asked = metafunc.config.getoption("--device"), metafunc.config.getoption("--quick")
    if "subject" in wanted:
        metafunc.parametrize("subject", metafunc.module.subjects(*asked), ids=str)
        return
    cases = metafunc.module.cases(*asked)
    list_of = candidates if "candidate" in wanted else comparisons
    metafunc.parametrize(wanted.pop(), [one for case in cases for one in list_of(case)], ids=str)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put checks before timings and slow providers behind the rest; give pytest-benchmark our clock."""
    for item in items:
        if comparison := params(item).get("comparison"):
            assert isinstance(comparison, Comparison)
            item.add_marker(pytest.mark.benchmark(timer=CLOCK, group=str(comparison.candidate.case), disable_gc=True))
    items.sort(key=lambda item: (is_slow(item), is_timed(item)))


def pytest_runtest_protocol(item: pytest.Item) -> bool | None:
    """Stop before the first timing if a check was red."""
    if is_timed(item) and item.session.testsfailed:
        item.session.shouldfail = "nothing is timed: a check is red"
        return True
    return None


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Write down what was left out."""
    if path := session.config.getoption("--skips"):
        path.write_text(json.dumps(left_out), encoding="utf-8")
    if path := session.config.getoption("--quantities"):
        path.write_text(json.dumps(noted), encoding="utf-8")


def pytest_report_teststatus(report: pytest.TestReport) -> tuple[str, str, str] | None:
    """Say nothing of a test that went well: its own line says more."""
    well = report.skipped or (report.passed and report.when == "call")
    return (report.outcome, "", "") if well else None


@pytest.fixture(autouse=True)
def _serves(request: pytest.FixtureRequest) -> None:
    """Leave out what cannot serve, and everything once the time is over."""
    budget = request.config.getoption("--time-budget")
    for subject in params(request.node).values():
        late = f"the run's {budget:.0f} s were over" if time.monotonic() - began > budget else None
        if reason := late or subject.unavailable:
            candidate = subject.candidate if isinstance(subject, Comparison) else subject
            if is_timed(request.node):
                left_out.append({"case": str(candidate.case), "provider": candidate.provider.name, "reason": reason})
            pytest.skip(reason)


@pytest.fixture
def measure(request: pytest.FixtureRequest, benchmark: Any) -> Any:
    """Return the function that times a comparison and leaves its figures in ``benchmark.extra_info``."""
    quick = request.config.getoption("--quick")
    no_cold = quick or request.config.getoption("--no-cold")

    def run(comparison: Comparison) -> None:
        for candidate in (comparison.candidate, comparison.against):
            if str(candidate) not in checked:
                checked[str(candidate)] = check(candidate)
        suite = suite_of(request)
        seconds = QUICK_SECONDS if quick else getattr(request.module, "SECONDS", SECONDS)
        benchmark.extra_info.update(compare(benchmark, comparison, suite, seconds))
        benchmark.extra_info["errors"] = checked[str(comparison.candidate)]
        show(request, comparison, benchmark.extra_info)
        first = comparison.against.provider == comparisons(comparison.candidate.case)[0].against.provider
        in_its_layout = comparison.candidate.provider.layout is None  # else both were tried before this "first" call
        if comparison.candidate.case.cold and first and in_its_layout and not no_cold:
            benchmark.extra_info["cold"] = cold.measure(comparison.candidate)

    return run


@pytest.fixture
def verify() -> Any:
    """Return the function that checks a candidate and remembers that it was right."""

    def run(candidate: Candidate) -> None:
        checked[str(candidate)] = check(candidate)

    return run


@pytest.fixture
def note(request: pytest.FixtureRequest) -> Any:
    """Return the function that keeps, and prints, a quantity that is no comparison of two times."""

    def keep(case: str, provider: str, quantity: str, unit: str, samples: Sequence[float]) -> None:
        place = {"suite": suite_of(request), "case": case, "provider": provider}
        noted.append({**place, "quantity": quantity, "unit": unit, "samples": list(samples)})
        value = timing.quartiles(samples)
        say(request, f"{case}: {provider}: {quantity} {value.median:.4g} {unit} ({value.q1:.4g}-{value.q3:.4g})")

    return keep


@pytest.fixture
def work() -> Any:
    """Return the function that puts a candidate to work on its own copy of the inputs."""
    return lambda candidate: side(candidate).step


def compare(benchmark: Any, comparison: Comparison, suite: str, seconds: float) -> dict[str, Any]:
    """Let the two sides take turns under pytest-benchmark and return what it does not know."""
    case = comparison.candidate.case
    with precision(case):
        own, baseline = side(comparison.candidate), side(comparison.against)
        calls = [timing.settle(one) for one in (own, baseline)]
        blocks = [call * (1 + one.calls) for call, one in zip(calls, (own, baseline), strict=True)]
        rounds = timing.choose_rounds(blocks, seconds)
        benchmark.pedantic(own.block, setup=baseline.block, rounds=rounds)
    return {
        "case": case.as_dict(),
        "provider": comparison.candidate.provider.name,
        "ours": comparison.candidate.provider.ours,
        "baseline": comparison.against.provider.name,
        "baseline_layout": comparison.against.placed.layout,
        "suite": suite,
        "calls_per_block": own.calls,
        "samples": own.samples,
        "baseline_samples": baseline.samples,
    }


def show(request: pytest.FixtureRequest, comparison: Comparison, figures: dict[str, Any]) -> None:
    """Print a comparison's line as soon as it is known, with how far the run has come."""
    milliseconds = timing.quartiles(figures["samples"]).median * 1e3
    ratio = timing.quartiles(timing.ratios(figures["baseline_samples"], figures["samples"]))
    pair = f"{comparison.candidate.provider.name}, against {comparison.against.provider.name}"
    line = f"{milliseconds:.4g} ms, {ratio.median:.3g}x ({ratio.q1:.3g}-{ratio.q3:.3g})"
    say(request, f"{comparison.candidate.case}: {pair}: {line}")


def say(request: pytest.FixtureRequest, line: str) -> None:
    """Print a line, with how far the run has come, past pytest's capturing."""
    terminal = request.config.pluginmanager.getplugin("terminalreporter")
    items = request.session.items
    place = f"[{items.index(request.node) + 1:{len(str(len(items)))}}/{len(items)}]"
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        terminal.write_line(f"{place} {line}")


def suite_of(request: pytest.FixtureRequest) -> str:
    """Return the name of a test's suite."""
    return str(request.module.__name__.rpartition(".")[2].removeprefix("test_"))


def side(candidate: Candidate) -> timing.Side:
    """Return a candidate at work on its own copy of the inputs, on the clock that pytest-benchmark reads."""
    case = candidate.case
    kind = operation(case.operation)
    function, inputs = candidate.provider.make(case), kind.inputs(case, kind.values[0])
    step = kind.step(candidate.placed, function, inputs, case.torch_dtype)
    # A step in a process of its own measures itself: what asking it takes is not its work.
    return timing.Side(step, getattr(step, "stopwatch", None) or timing.stopwatch_for(case.device), CLOCK)


def params(item: Any) -> dict[str, Candidate | Comparison]:
    """Return the candidate or the comparison of a test, by its fixture's name; nothing where a suite has no cases."""
    found = item.callspec.params if hasattr(item, "callspec") else {}
    return {name: one for name, one in found.items() if isinstance(one, (Candidate, Comparison))}


def is_timed(item: Any) -> bool:
    """Return whether a test measures something, which waits until all is checked."""
    return "comparison" in params(item) or "note" in getattr(item, "fixturenames", ())


def is_slow(item: pytest.Item) -> bool:
    """Return whether a test concerns a provider that takes long to get ready."""
    subjects = params(item).values()
    return any((one.candidate if isinstance(one, Comparison) else one).provider.slow for one in subjects)
