"""Sliding evaluation on the CPU: blocks of rows go through all steps of a program while they are in the caches.

Steps that the kernel does not know (:class:`~..sliding.Rowwise`) are run by torch, between two calls of the kernel.
Maxima of many evenly spaced taps, and their sums, are made in levels: of a few taps each, then of a few of those, so
that their cost grows with the logarithm of the number of taps alone.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..reference.sliding import evaluated
from ..sliding import Convolve, Maximum, Rowwise, SlidingProgram, Step, Tap, Total, reaches, spacing, tails, widths
from .dense import CPU, DTYPES, aligned, lane_count
from .micro.simd import REGISTERS
from .micro.tile import VECTORS
from .runtime import threads
from .sliding_kernel import (
    ADDRESS,
    CAPACITY,
    CONVOLVE,
    DONE,
    FIRST,
    GREATEST,
    LARGEST,
    MAXIMUM,
    TOTAL,
    Block,
    advance_float32,
    advance_float64,
)

__all__ = ["BufferedEvaluation", "in_levels", "start"]

KERNELS = {torch.float32: advance_float32, torch.float64: advance_float64}

# Rows that go through all steps at a time: of 100,000 Jena windows on two cores of a Zen 5, 128 took 7.8 ms, and 256 to
# 2,048 took 7.5 to 7.6.
BLOCK = 512

# The same where torch runs some of them, which costs microseconds a call; not timed.
MIXED_BLOCK = 4096


def start(program: SlidingProgram, streams: int, like: Tensor) -> BufferedEvaluation:
    """Return the evaluation of a program from row 0 on, with the dtype of ``like``, float32 or float64."""
    return BufferedEvaluation(program, streams, like.dtype)


def in_levels(program: SlidingProgram) -> SlidingProgram:
    """Return a program of the same outputs, in which no maximum and no sum has many evenly spaced taps.

    The maps of the given one are among its maps, in the same order.
    """
    steps: list[Step] = []
    number = {0: 0}

    def append(step: Step) -> int:
        steps.append(step)
        return len(steps)

    for old, given in enumerate(program.steps, 1):
        step: Step = given._replace(taps=tuple(Tap(number[tap.map], tap.offset) for tap in given.taps))
        apart = spacing(step.taps)
        if isinstance(step, (Maximum, Total)) and apart is not None and len(step.taps) > LARGEST:
            step = step._replace(taps=tuple(_levels(step, apart, append)))
        number[old] = append(step)
    return SlidingProgram(program.columns, tuple(steps), tuple(number[one] for one in program.outputs), program.recent)


def _levels(step: Maximum | Total, apart: int, append: Any) -> list[Tap]:
    """Return the few taps of levels, which are appended, that come to the many of a step."""
    (base, first), count = step.taps[0], len(step.taps)
    levels = [(1, base)]  # taps that a row of a level covers, and its map
    while levels[-1][0] * LARGEST < count:
        size, below = levels[-1]
        taps = tuple(Tap(below, (first if size == 1 else 0) + i * size * apart) for i in range(LARGEST))
        level = Maximum(taps, step.relu) if isinstance(step, Maximum) else Total(taps)
        levels.append((size * LARGEST, append(level)))
    found, done = [], 0
    size, top = levels[-1]
    if isinstance(step, Maximum):  # whose taps may overlap
        for begin in range(0, count, size):
            found.append(Tap(top, min(begin, count - size) * apart))
        return found
    for size, below in levels[::-1]:
        while count - done >= size:
            found.append(Tap(below, (first if size == 1 else 0) + done * apart))
            done += size
    return found


class StepRun(NamedTuple):
    """Steps that one call of the kernel does, or one that torch does."""

    begin: int
    end: int
    step: Rowwise | None = None


class BufferedEvaluation:
    """A program on its way along series: see :class:`~..sliding.Evaluation`."""

    def __init__(self, given: SlidingProgram, streams: int, dtype: torch.dtype) -> None:
        program = in_levels(given)
        self.program, self.streams, self.dtype = program, streams, dtype
        self.kernel = KERNELS[dtype]
        self.like: Any = DTYPES[dtype]
        self.widths, self.reach, self.tails = widths(program), reaches(program), tails(program)
        lanes = lane_count(self.like)
        self.padded = [-(-width // lanes) * lanes for width in self.widths]
        self.stages = _stages(program)
        self.block = BLOCK if len(self.stages) == 1 else MIXED_BLOCK
        capacities = [tail + max(self.block, 2 * tail) for tail in self.tails]
        sizes = [capacity * width * dtype.itemsize for capacity, width in zip(capacities, self.padded, strict=True)]
        self.stream_bytes = sum(sizes)
        # Zeros: the lanes beyond a map's columns are read, and must be numbers that cost no time.
        self.memory = torch.zeros(streams * self.stream_bytes + REGISTERS.width, dtype=torch.uint8, device=CPU)
        begins = np.cumsum([0, *sizes[:-1]])
        self.maps: NDArray[np.int64] = np.array(
            [
                (aligned(self.memory) + begin, width * dtype.itemsize, 0, 0, capacity, tail, reach)
                for begin, width, capacity, tail, reach in zip(
                    begins, self.padded, capacities, self.tails, self.reach, strict=True
                )
            ],
            np.int64,
        )
        self.after = self.maps.copy()
        self.views = [self._view(i) for i in range(len(sizes))]
        self._write_steps()
        multiplied = [one.weight.numel() for one in program.steps if isinstance(one, Convolve)]
        self.work = sum(multiplied) + sum(self.padded)  # multiply-adds of a row, roughly

    def __reduce__(self) -> Any:
        """Refuse copies: they would write to the memory of this one."""
        raise TypeError("a running evaluation cannot be copied: begin another one, and advance it over recent()")

    def _view(self, number: int) -> Tensor:
        """Return a map's buffers, ``(streams, capacity, columns)``."""
        begin = (self.maps[number, ADDRESS] - self.memory.data_ptr()) // self.dtype.itemsize
        stream, row = self.stream_bytes // self.dtype.itemsize, self.padded[number]
        shape = self.streams, int(self.maps[number, CAPACITY]), self.widths[number]
        content = self.memory[: self.memory.numel() // 8 * 8].view(self.dtype)
        return content.as_strided(shape, (stream, row, 1), int(begin))

    def _write_steps(self) -> None:
        """Write the tables of steps and taps; pack the weights."""
        self.weights: list[Tensor] = []
        rows: list[tuple[int, ...]] = []
        taps: list[Tap] = []
        most = 1
        positive: set[int] = set()  # maps of positive parts
        self.factors = np.ones(max(len(self.program.steps), 1), self.like.dtype)
        for number, step in enumerate(self.program.steps):
            kind = {Convolve: CONVOLVE, Maximum: MAXIMUM, Total: TOTAL}.get(type(step), 0)
            if isinstance(step, Maximum) and positive.issuperset(tap.map for tap in step.taps):
                kind = GREATEST
            if kind == GREATEST or (isinstance(step, Maximum) and step.relu):
                positive.add(number + 1)
            weight = bias = relu = 0
            columns = self.widths[step.taps[0].map]
            if isinstance(step, Convolve):
                most = max(most, len(step.taps) * columns)
                packed, biases = self._pack(step)
                self.weights += [packed, biases]
                weight, bias = aligned(packed), aligned(biases)
            if not isinstance(step, Rowwise):
                relu = int(step.relu)
            if isinstance(step, Total):
                self.factors[number] = step.factor
            rows.append((kind, number + 1, len(taps), len(step.taps), columns, weight, bias, relu))
            taps += step.taps
        self.steps = np.array(rows, np.int64).reshape(-1, 8)
        self.taps = np.array(taps, np.int64).reshape(-1, 2)
        self.most_taps = most
        self.numbers = [self.widths[number] for number in self.program.outputs]

    def _pack(self, step: Convolve) -> tuple[Tensor, Tensor]:
        """Return weights, panel by panel, and biases, in whole vectors; both begin with a cache line."""
        lanes = lane_count(self.like)
        outputs = step.weight.size(2)
        padded = -(-outputs // lanes) * lanes
        weight = torch.zeros(step.weight.size(0) * step.weight.size(1), padded, dtype=self.dtype, device=CPU)
        weight[:, :outputs] = step.weight.detach().flatten(0, 1)
        bias = torch.zeros(padded, dtype=self.dtype, device=CPU)
        if step.bias is not None:
            bias[:outputs] = step.bias.detach()
        panels = torch.cat([one.flatten() for one in weight.split(VECTORS * lanes, 1)])
        return _aligned_copy(panels), _aligned_copy(bias)

    def advance(self, rows: Tensor) -> list[Tensor]:
        """Take the next rows; return the new rows of every output."""
        count = rows.size(1)
        rows = rows.to(self.dtype)
        before = int(self.maps[0, DONE])
        found, table = [], []
        for number, columns in zip(self.program.outputs, self.numbers, strict=True):
            done = int(self.maps[number, DONE])
            new = max(before + count - self.reach[number], 0) - done
            output = torch.empty((self.streams, new, columns), dtype=self.dtype, device=CPU)
            found.append(output)
            table.append((number, output.data_ptr(), columns, new * columns * self.dtype.itemsize, done, done))
        if not count or not self.streams:
            return found
        outputs = np.array(table, np.int64).reshape(-1, 6)
        if len(self.stages) == 1:
            self._run(self.stages[0], rows, outputs)
            return found
        for piece in rows.split(self.block, 1):
            for stage in self.stages:
                if stage.step is None:
                    self._run(stage, piece, outputs)
                else:
                    self._call(stage, stage.step)
            outputs[:, 5] = self.maps[outputs[:, 0], DONE]
        return found

    def _run(self, stage: StepRun, rows: Tensor, outputs: NDArray[np.int64]) -> None:
        """Run the kernel's steps of a stage; the first one takes the rows."""
        count = rows.size(1)
        size = self.dtype.itemsize
        parts = threads.thread_count(self.streams, self.work * count * self.streams)
        block = Block(
            self.stream_bytes, count if stage.begin == 0 else 0, self.block, rows.data_ptr(), rows.stride(0) * size,
            rows.stride(1) * size, rows.stride(2) * size, rows.size(2), self.most_taps, stage.begin, stage.end,
            self.streams, parts,
        )  # fmt: skip
        kernel = functools.partial(
            self.kernel, self.maps, self.after, self.steps, self.taps, self.factors, outputs, block
        )
        if parts == 1:
            kernel(0, 1, 1, 0)
        else:
            threads.run(kernel, parts, parts)
        self.maps, self.after = self.after, self.maps

    def _call(self, stage: StepRun, step: Rowwise) -> None:
        """Run a step of torch's."""
        number = stage.begin + 1
        done = int(self.maps[number, DONE])
        count = max(int(self.maps[0, DONE]) - self.reach[number], 0) - done
        if count <= 0:
            return
        if done + count - self.maps[number, FIRST] > self.maps[number, CAPACITY]:
            view, first = self.views[number], int(self.maps[number, FIRST])
            kept = min(self.tails[number], done - first)
            view[:, :kept] = view[:, done - first - kept : done - first].clone()
            self.maps[number, FIRST] = done - kept
        given = []
        for tap in step.taps:
            begin = done + tap.offset - int(self.maps[tap.map, FIRST])
            given.append(self.views[tap.map][:, begin : begin + count])
        begin = done - int(self.maps[number, FIRST])
        self.views[number][:, begin : begin + count] = evaluated(step, given)
        self.maps[number, DONE] += count

    def recent(self) -> Tensor:
        """Return a copy of the last rows of the series."""
        done, first = int(self.maps[0, DONE]), int(self.maps[0, FIRST])
        return self.views[0][:, max(done - first - self.tails[0], 0) : done - first].clone()


def _stages(program: SlidingProgram) -> list[StepRun]:
    """Return the steps in runs of the kernel's own, the first and the last of which may be empty, and torch's."""
    found, begin = [], 0
    for number, step in enumerate(program.steps):
        if isinstance(step, Rowwise):
            found += [StepRun(begin, number), StepRun(number, number + 1, step)]
            begin = number + 1
    return [*found, StepRun(begin, len(program.steps))]


def _aligned_copy(content: Tensor) -> Tensor:
    """Return memory with a copy of numbers from its first cache line on."""
    memory = torch.empty(content.numel() * content.itemsize + 64, dtype=torch.uint8, device=CPU)
    begin = aligned(memory) - memory.data_ptr()
    memory[begin : begin + content.numel() * content.itemsize] = content.contiguous().view(torch.uint8).flatten()
    return memory
