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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from benchmarks import fresh, runner, suites, timing
from benchmarks.registry import Comparison, Contender, comparisons

CLOCK = timing.Clock()
QUICK_SECONDS = 0.3  # at most, to spend on the rounds of one comparison
SECONDS_OF_SILENCE = 10  # while all is checked

left_out: list[dict[str, str]] = []
noted: list[dict[str, Any]] = []
began = said = time.monotonic()


@dataclass(frozen=True)
class SuiteItem:
    """What a test is about: a suite's candidate or comparison."""

    suite: suites.Suite
    subject: Contender | Comparison

    def __str__(self) -> str:
        return f"{self.suite.name}-{self.subject}"

    @property
    def candidate(self) -> Contender:
        """The candidate, or the comparison's."""
        return self.subject.candidate if isinstance(self.subject, Comparison) else self.subject


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the suites' options."""
    group = parser.getgroup("seqconv benchmarks")
    group.addoption("--suite", action="append", choices=list(suites.SUITES), help="this suite alone (may be repeated)")
    group.addoption("--quick", action="store_true", help="fewer cases, fewer rounds, no cold figures")
    group.addoption("--device", default="cpu", help="cpu (the default) or cuda")
    group.addoption("--time-budget", type=float, default=float("inf"), help="seconds after which nothing more is begun")
    group.addoption("--notes", type=Path, help="JSON file for quantities, and for what was left out and why")
    group.addoption("--no-cold", action="store_true", help="leave out the first calls in fresh processes")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give a test the suites' candidates or comparisons, as its first argument asks."""
    option = metafunc.config.getoption
    chosen = [suites.SUITES[name] for name in option("--suite") or suites.SUITES]
    for kind in {"checked", "timed", "noted"} & set(metafunc.fixturenames):
        subjects = [(one, getattr(one, kind)(option("--device"), option("--quick"))) for one in chosen]
        metafunc.parametrize(kind, [SuiteItem(suite, one) for suite, found in subjects for one in found], ids=str)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put checks before timings and slow providers behind the rest; give pytest-benchmark our clock."""
    items[:] = [item for item in items if isinstance(next(iter(item.callspec.params.values())), SuiteItem)]
    for item in items:
        if is_timed(item):
            group = str(entry(item).candidate.case)
            item.add_marker(pytest.mark.benchmark(timer=CLOCK, group=group, disable_gc=True))
    items.sort(key=lambda item: (entry(item).candidate.provider.slow, is_timed(item)))


def pytest_runtest_protocol(item: pytest.Item) -> bool | None:
    """Stop before the first timing if a check was red."""
    if is_timed(item) and item.session.testsfailed:
        item.session.shouldfail = "nothing is timed: a check is red"
        return True
    return None


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Write down what was noted and left out."""
    if path := session.config.getoption("--notes"):
        path.write_text(json.dumps({"quantities": noted, "skipped": left_out}), encoding="utf-8")


def pytest_report_teststatus(report: pytest.TestReport) -> tuple[str, str, str] | None:
    """Say nothing of a test that went well: its own line says more."""
    well = report.skipped or (report.passed and report.when == "call")
    return (report.outcome, "", "") if well else None


@pytest.fixture(autouse=True)
def _serves(request: pytest.FixtureRequest) -> None:
    """Leave out what cannot serve, and everything once the time is over."""
    budget, one = request.config.getoption("--time-budget"), entry(request.node)
    late = f"the run's {budget:.0f} s were over" if time.monotonic() - began > budget else None
    if reason := late or one.suite.unavailable() or one.subject.unavailable:
        if is_timed(request.node):
            name = one.candidate.provider.name
            left_out.append({"case": str(one.candidate.case), "provider": name, "reason": reason})
        pytest.skip(reason)


@pytest.fixture
def verify(request: pytest.FixtureRequest) -> Any:
    """Return the function that checks a candidate and remembers that it was right."""

    def run(one: SuiteItem) -> None:
        global said
        if time.monotonic() - said > SECONDS_OF_SILENCE:
            said = time.monotonic()
            say(request, f"checking {one}")
        runner.verify(one.subject)

    return run


@pytest.fixture
def measure(request: pytest.FixtureRequest, benchmark: Any) -> Any:
    """Return the function that times a comparison and leaves its figures in ``benchmark.extra_info``."""
    quick = request.config.getoption("--quick")

    def turns(own: timing.Side, baseline: timing.Side, rounds: int) -> None:
        benchmark.pedantic(own.block, setup=baseline.block, rounds=rounds)

    def run(one: SuiteItem) -> None:
        seconds = min(one.suite.seconds, QUICK_SECONDS) if quick else one.suite.seconds
        figures = runner.compare(one.subject, one.suite.name, seconds, clock=CLOCK, turns=turns)
        benchmark.extra_info.update(figures)
        case, provider = one.candidate.case, one.candidate.provider
        say(request, f"{case}: {provider.name}, against {figures['baseline']}: {runner.line(figures)}")
        first = figures["baseline"] == comparisons(case)[0].against.provider.name
        in_its_layout = provider.layout is None  # else both were tried before this "first" call
        if case.cold and first and in_its_layout and not (quick or request.config.getoption("--no-cold")):
            benchmark.extra_info["cold"] = fresh.first_calls(one.candidate)

    return run


@pytest.fixture
def note(request: pytest.FixtureRequest) -> Any:
    """Return the function that measures a candidate's quantities, keeps and prints them."""

    def run(one: SuiteItem) -> None:
        for found in one.suite.measure(one.subject, request.config.getoption("--quick")):  # type: ignore[misc]
            noted.append(found)
            value, place = timing.quartiles(found["samples"]), f"{found['case']}: {found['provider']}"
            spread = f"{value.median:.4g} {found['unit']} ({value.q1:.4g}-{value.q3:.4g})"
            say(request, f"{place}: {found['quantity']} {spread}")

    return run


def say(request: pytest.FixtureRequest, line: str) -> None:
    """Print a line, with how far the run has come, past pytest's capturing."""
    terminal = request.config.pluginmanager.getplugin("terminalreporter")
    items = request.session.items
    place = f"[{items.index(request.node) + 1:{len(str(len(items)))}}/{len(items)}]"
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        terminal.write_line(f"{place} {line}")


def entry(item: Any) -> SuiteItem:
    """Return what a test is about."""
    return next(one for one in item.callspec.params.values() if isinstance(one, SuiteItem))


def is_timed(item: Any) -> bool:
    """Return whether a test measures something, which waits until all is checked."""
    return not {"timed", "noted"}.isdisjoint(item.callspec.params)
