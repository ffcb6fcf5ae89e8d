"""Alternating sides, blocks, ratios and quartiles, on clocks that are told what to show."""

from __future__ import annotations

import gc
import itertools
import time
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from benchmarks import timing
from benchmarks.timing import Side, quartiles, ratios, settle


class Recorded:
    """A step whose calls take the seconds it is told, and which notes what was done to it."""

    def __init__(self, name: str, seconds: Iterator[float], log: list[str]) -> None:
        self.name, self.seconds, self.log = name, seconds, log

    def prepare(self) -> None:
        self.log.append(f"prepare {self.name}")

    def call(self) -> None:
        self.log.append(f"call {self.name}")

    def results(self):
        return {}


def stopwatch(step: Recorded, calls: int) -> list[float]:
    seconds = []
    for _ in range(calls):
        step.prepare()
        step.call()
        seconds.append(next(step.seconds))
    return seconds


def test_a_block_s_first_call_is_not_timed_and_its_mean_moves_the_clock():
    log: list[str] = []
    clock = timing.Clock()
    side = Side(Recorded("a", iter([1.0, 3.0]), log), stopwatch, clock, calls=2)
    side.block()
    assert log == ["prepare a", "call a"] * 3
    assert side.samples == [2.0]
    assert clock() == 2.0


def test_ratios_are_formed_pair_by_pair():
    # A machine that slows down fourfold on the way: unpaired samples would give anything from 0.5 to 8.
    assert ratios([2.0, 4.0, 8.0], [1.0, 2.0, 4.0]) == [2.0, 2.0, 2.0]
    with pytest.raises(ValueError, match="2 of the baseline, 1 own"):
        ratios([1.0, 2.0], [1.0])


def test_quartiles_of_hand_made_samples():
    assert quartiles([5.0, 1.0, 3.0, 2.0, 4.0]) == timing.Quartiles(2.0, 3.0, 4.0)
    assert quartiles([7.0]) == timing.Quartiles(7.0, 7.0, 7.0)


def test_settling_waits_for_calls_that_agree_and_sets_the_block():
    seconds = iter([9.0, 4.0, 2.0, 0.5, 0.001, 0.001, 0.00102, 99.0])
    side = Side(Recorded("a", seconds, []), stopwatch)
    assert settle(side, block_seconds=0.005, limit=100.0) == 0.001
    assert side.calls == 5
    assert next(seconds) == 99.0
    assert gc.isenabled()


def test_settling_gives_up_at_its_limit():
    side = Side(Recorded("a", iter([60.0, 1.0, 2.0, 4.0, 8.0, 16.0]), []), stopwatch)
    assert settle(side, limit=5.0) == 2.0
    assert side.calls == 1


def test_the_fastest_is_found_in_turns():
    log: list[str] = []
    slow = Side(Recorded("slow", itertools.cycle([3.0, 3.1]), log), stopwatch)
    quick = Side(Recorded("quick", itertools.cycle([2.0, 2.1]), log), stopwatch)
    assert timing.fastest({"slow": slow, "quick": quick}, rounds=3) == "quick"
    turns = [name for name, _ in itertools.groupby(entry.split()[1] for entry in log)]
    assert turns == ["slow", "quick"] * 4  # settled one after the other, then three rounds


@pytest.mark.parametrize(
    ("around", "calls", "rounds"), [(0.0, 500, 12), (1e-3, 5, 12), (1.0, 1, 5), (-9.9e-6, 500, 25)]
)
def test_blocks_are_cut_to_what_they_take_in_all_and_rounds_fit_the_budget(monkeypatch, around, calls, rounds):
    """A call measured as 10 microseconds takes a millisecond with what is around it: 5 a block, not 500."""
    now = [0.0]
    monkeypatch.setattr(timing, "time", SimpleNamespace(perf_counter=lambda: now[0]))

    def stopwatch(step, calls):
        now[0] += (1e-5 + around) * calls
        return [1e-5] * calls

    step = timing.FunctionStep(lambda: None)
    sides = [Side(step, stopwatch, calls=500) for _ in range(2)]
    assert timing.choose_rounds(sides, 0.15 if around == 1e-3 else 0.125) == rounds
    assert [side.calls for side in sides] == [calls, calls]
    timing.take_turns(sides, 3)
    assert [len(side.samples) for side in sides] == [3, 3]


def test_seconds_are_the_median_of_those_behind_the_first():
    waits = iter([0.05, 0.0, 0.0, 0.01])
    assert timing.median_seconds(lambda: time.sleep(next(waits)), "cpu", calls=3, before=1) < 0.005
