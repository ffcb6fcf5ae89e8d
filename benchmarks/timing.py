"""How two sides are timed: in turn, in blocks of calls, each block beside its neighbour.

A machine's speed drifts (clocks, neighbours, caches), so a side's figures from one minute say little beside another's
from the next. Here the sides take turns within one run, A B A B, and a ratio is formed from each pair of neighbours;
the median and quartiles of those ratios are what a report prints.

A block is as many calls as fill ``BLOCK_SECONDS``, after one untimed call that gives the side its caches back. Every
call is timed alone, so that preparation between calls (restoring parameters, dropping gradients, flushing the GPU's
L2) stays outside; where that takes longer than the calls, as a flush does, blocks are cut to what they take in all.
"""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache

import torch

from benchmarks.registry import Step

BLOCK_SECONDS = 0.005
MOST_CALLS = 1000
FEWEST_ROUNDS, MOST_ROUNDS = 5, 25
SETTLED = 0.1  # the last three calls agree to this share
SETTLE_SECONDS = 2.0

Stopwatch = Callable[[Step, int], list[float]]  # seconds of each of so many calls


class Clock:
    """A clock that moves only with what a side measured.

    pytest-benchmark reads its timer before and after a block. With this one as its timer it sees the seconds of one
    call, as the side's own stopwatch (the processor's, or the GPU's) took them, and not the preparation around them.
    """

    __name__ = "benchmarks.timing.Clock"

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        """Return the seconds measured so far."""
        return self.now


@dataclass
class Side:
    """One of the sides that take turns: a step, its stopwatch, and the seconds per call of its blocks so far."""

    step: Step
    stopwatch: Stopwatch
    clock: Clock = field(default_factory=Clock)
    calls: int = 1
    samples: list[float] = field(default_factory=list)

    def block(self) -> None:
        """Time one block, note its mean seconds per call and move the clock by them."""
        self.step.prepare()
        self.step.call()
        seconds = statistics.fmean(self.stopwatch(self.step, self.calls))
        self.samples.append(seconds)
        self.clock.now += seconds


def settle(side: Side, *, block_seconds: float = BLOCK_SECONDS, limit: float = SETTLE_SECONDS) -> float:
    """Call until the last three calls agree (or ``limit`` seconds were measured); return the seconds of a call.

    Sets how many calls make a block of this side. At least four calls are made: the first may compile.
    """
    with collector_off():
        seconds = side.stopwatch(side.step, 1)
        while True:
            seconds += side.stopwatch(side.step, 1)
            last = seconds[-3:]
            agreed = len(seconds) >= 4 and max(last) - min(last) <= SETTLED * min(last)
            if agreed or (len(seconds) >= 4 and sum(seconds[1:]) > limit):
                break
    typical = statistics.median(last)
    side.calls = min(max(math.ceil(block_seconds / typical), 1), MOST_CALLS) if typical > 0 else MOST_CALLS
    return typical


def choose_rounds(sides: Sequence[Side], budget: float) -> int:
    """Cut settled sides' blocks by what stands around their calls; return how many rounds ``budget`` seconds hold."""
    walls = []
    for side in sides:
        start = time.perf_counter()
        own = sum(side.stopwatch(side.step, side.calls))
        wall = time.perf_counter() - start
        calls = min(side.calls, max(1, round(side.calls * own / wall)))
        walls.append(wall * (1 + calls) / side.calls)
        side.calls = calls
    return min(max(int(budget / sum(walls)), FEWEST_ROUNDS), MOST_ROUNDS)


def take_turns(sides: Sequence[Side], rounds: int) -> None:
    """Let settled sides take turns; they note their samples."""
    with collector_off():
        for _ in range(rounds):
            for side in sides:
                side.block()


def fastest(sides: Mapping[str, Side], *, rounds: int = 5, block_seconds: float = 0.002) -> str:
    """Return the name of the side with the smallest median after a few rounds in which all take turns."""
    for side in sides.values():
        settle(side, block_seconds=block_seconds, limit=SETTLE_SECONDS / 10)
    take_turns(list(sides.values()), rounds)
    return min(sides, key=lambda name: statistics.median(sides[name].samples))


@dataclass
class FunctionStep:
    """A step that is one function, without results."""

    call: Callable[[], object]

    def prepare(self) -> None:
        """Do nothing."""

    def results(self) -> dict[str, torch.Tensor]:
        """Return nothing."""
        return {}


def median_seconds(call: Callable[[], object], device: str, *, calls: int, before: int) -> float:
    """Return the median seconds of so many calls, after others ``before`` them."""
    return statistics.median(stopwatch_for(device)(FunctionStep(call), before + calls)[before:])


def ratios(baseline: Sequence[float], own: Sequence[float]) -> list[float]:
    """Return how many times faster ``own`` was than the ``baseline`` block before it, pair by pair."""
    if len(baseline) != len(own):
        raise ValueError(f"sides that take turns have as many blocks: {len(baseline)} of the baseline, {len(own)} own")
    return [theirs / mine for theirs, mine in zip(baseline, own, strict=True)]


@dataclass(frozen=True)
class Quartiles:
    """A median between its quartiles."""

    q1: float
    median: float
    q3: float


def quartiles(samples: Sequence[float]) -> Quartiles:
    """Return the median and quartiles of one or more samples."""
    if len(samples) < 2:
        return Quartiles(*(3 * list(samples)))
    return Quartiles(*statistics.quantiles(samples, n=4, method="inclusive"))


def stopwatch_for(device: str) -> Stopwatch:
    """Return the stopwatch of a device: the wall clock on a CPU, events on the stream of a GPU."""
    return device_stopwatch if device.startswith("cuda") else wall_stopwatch


def wall_stopwatch(step: Step, calls: int) -> list[float]:
    """Time calls on the CPU."""
    seconds = []
    for _ in range(calls):
        step.prepare()
        start = time.perf_counter()
        step.call()
        seconds.append(time.perf_counter() - start)
    return seconds


def device_stopwatch(step: Step, calls: int) -> list[float]:
    """Time calls on the current CUDA device, each from a cold L2 cache.

    The flush also keeps the GPU busy while the call is launched, so that launching counts only where it takes longer.
    """
    flush = l2_flush(torch.cuda.current_device())
    events = []
    for _ in range(calls):
        step.prepare()
        flush.zero_()
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        start.record()
        step.call()
        end.record()
        events.append((start, end))
    torch.cuda.synchronize()
    return [start.elapsed_time(end) / 1e3 for start, end in events]


@lru_cache(maxsize=1)
def l2_flush(device: int) -> torch.Tensor:
    """Return a buffer of four times the device's L2 cache, to be written over between calls."""
    size = getattr(torch.cuda.get_device_properties(device), "L2_cache_size", 0) or 64 << 20
    return torch.empty(4 * size, dtype=torch.int8, device=device)


@contextmanager
def collector_off() -> Iterator[None]:
    """Keep the garbage collector from running inside a timed call."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
