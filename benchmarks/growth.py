"""What a window and a streamed row cost as a series grows: time, and memory beside the result.

The series is a memory map in a file, of numbers that repeat. Memory is what the process holds at most for itself while
it computes, the result and the file's pages aside, sampled every few milliseconds.
"""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.operations.sliding import Sliding, sliding_case
from benchmarks.registry import Case, Contender
from benchmarks.runner import quantity
from benchmarks.worker import Worker
from seqconv import Stream, sliding_inference

CASE = sliding_case("jena_convnet", 1000)
ROWS, QUICK_ROWS = (10_000, 100_000, 1_000_000, 10_000_000), (10_000, 100_000)
STREAMED, QUICK_STREAMED = 1_000_000, 20_000
TOGETHER = 64  # series of one stream
STATUS = Path("/proc/self/status")


def cases(device: str, quick: bool) -> list[Case]:  # noqa: ARG001
    """Return the case, of the CPU alone."""
    return [CASE] if device == "cpu" else []


def no_status() -> str | None:
    """Return why memory cannot be measured, or ``None``."""
    return None if STATUS.exists() else "this system does not tell a process' memory"


def measure(candidate: Contender, quick: bool) -> Iterator[dict[str, Any]]:
    """Yield what a window and a streamed row cost, by the number of rows, each from a process of its own."""
    place = ("growth", candidate.case.name, candidate.provider.name)
    threads = torch.get_num_threads()
    for rows in QUICK_ROWS if quick else ROWS:
        with Worker("sliding_inference") as worker:
            found = worker.ask("benchmarks.growth:windows", rows=rows, threads=threads, rounds=3 if quick else 7)
        named = (place[0], f"{place[1]}, {rows:,} rows", place[2])
        yield quantity(*named, "a window", "ns", found["nanoseconds"])
        yield quantity(*named, "memory beside the result", "MB", [found["megabytes"]])
    for streams in (None, TOGETHER):
        with Worker("a stream") as worker:
            rows = (QUICK_STREAMED if quick else STREAMED) // (streams or 1)
            found = worker.ask("benchmarks.growth:stream", streams=streams, rows=rows)
        named = (place[0], f"{place[1]}, {streams or 1} streams, one thread", place[2])
        for part in ("first", "last"):
            yield quantity(*named, f"a row, {part} tenth of {rows:,}", "µs", found[part])


def windows(rows: int, threads: int, rounds: int) -> dict[str, Any]:
    """Return the nanoseconds of a window, in several runs, and the most megabytes of one."""
    torch.set_num_threads(threads)
    function = Sliding(CASE)
    with tempfile.TemporaryDirectory() as folder:
        series = np.memmap(Path(folder, "series"), np.float32, "w+", shape=(rows, CASE.shape["C"]))
        some = np.random.default_rng(0).standard_normal((10_000, CASE.shape["C"]), np.float32)
        for begin in range(0, rows, len(some)):
            series[begin : begin + len(some)] = some[: rows - begin]
        sliding_inference(function.model, series[: len(some)], **function.window)
        before, sampler = own_megabytes(), Sampler()
        found = sliding_inference(function.model, series, **function.window)
        megabytes = sampler.most() - before - found.nbytes / 1e6
        nanoseconds = []
        for _ in range(rounds):
            began = time.perf_counter()
            found = sliding_inference(function.model, series, **function.window)
            nanoseconds.append((time.perf_counter() - began) / len(found) * 1e9)
        return {"nanoseconds": nanoseconds, "megabytes": megabytes}


def stream(streams: int | None, rows: int) -> dict[str, list[float]]:
    """Return the microseconds of a row of a series, pushed one by one, in the first and last tenth, by blocks."""
    torch.set_num_threads(1)
    function = Sliding(CASE)
    stream = Stream(function.model, streams=streams, **function.window)
    shape = (1000, CASE.shape["C"]) if streams is None else (1000, streams, CASE.shape["C"])
    series = [*torch.randn(shape)]
    blocks = []
    for row in [*series, *series]:  # until windows are complete
        stream.push(row)
    for _ in range(rows // len(series)):
        began = time.perf_counter()
        for row in series:
            stream.push(row)
        blocks.append((time.perf_counter() - began) / len(series) / (streams or 1) * 1e6)
    tenth = max(len(blocks) // 10, 1)
    return {"first": blocks[:tenth], "last": blocks[-tenth:]}


def own_megabytes() -> float:
    """Return the megabytes that the process holds for itself."""
    for line in STATUS.read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024 / 1e6
    raise RuntimeError(f"{STATUS} has no RssAnon")


class Sampler:
    """Notes the most megabytes that the process holds, from another thread."""

    def __init__(self) -> None:
        self.found, self.ended = own_megabytes(), threading.Event()
        self.thread = threading.Thread(target=self.watch, daemon=True)
        self.thread.start()

    def watch(self) -> None:
        """Look every few milliseconds."""
        while not self.ended.wait(0.003):
            self.found = max(self.found, own_megabytes())

    def most(self) -> float:
        """Stop, and return the most."""
        self.ended.set()
        self.thread.join()
        return self.found
