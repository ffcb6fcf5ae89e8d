"""The suites of :mod:`benchmarks.suites` as pytest runs them: all checks, then all timings; see ``conftest.py``."""

from __future__ import annotations

from typing import Any


def test_check(checked: Any, verify: Any) -> None:
    """Check a provider."""
    verify(checked)


def test_time(timed: Any, measure: Any) -> None:
    """Time a provider beside a baseline."""
    measure(timed)


def test_quantities(noted: Any, note: Any) -> None:
    """Measure what is no comparison of two times."""
    note(noted)
