"""``seqconv.warmup``: compile the CPU kernels ahead of the first calls, on all cores."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch

from seqconv import backends
from seqconv.functional.floors import floor
from seqconv.kernels.geometry import Convolution, Pool
from seqconv.kernels.source import Dense, Source, Tokens, Windows

__all__ = ["serve", "warmup"]

DTYPES = {"float32": torch.float32, "float64": torch.float64}

# The kernels are compiled per dtype and per width of the integers that number a window's positions: up to 128
# positions there are 8 bits, then 16. Pools of more than 128 positions are rare and left to their first call.
POOLS = ((Pool(2, 2), 12), (None, 200))

SAMPLES, CHANNELS, OUTPUTS, SIZE, ROWS = 1, 2, 3, 2, 400


def warmup(
    *dtypes: torch.dtype, gradients: bool = True, report: Callable[[str, float], None] | None = None
) -> dict[str, float]:
    """Compile or load the kernels that the first calls on the CPU need; return the seconds that each part took.

    These are the kernels of convolutions on tensors, on tokens and on windows of a series, of recurrent layers, of
    batch norms in training, those that fill batches of windows, of sliding inference, and RMSprop's. They are kept on
    disk, where a folder can be written. The first time on a machine they take a minute or more of CPU time, shared
    among all cores, one process each; afterwards a fresh process loads them in a second. ``dtypes`` are
    ``torch.float32`` (the default) and ``torch.float64``; ``gradients=False`` leaves out what only training needs.
    ``report(part, seconds)`` is called after each part.

    Raises ``TypeError`` for a dtype that no CPU kernel takes, :class:`~seqconv.BackendError` where Numba is missing.
    """
    for dtype in dtypes:
        if dtype not in DTYPES.values():
            raise TypeError(f"dtypes must be torch.float32 or torch.float64, got {dtype!r}")
    if "numba" in (missing := backends.unavailable()):
        raise backends.BackendError(f"backend 'numba' cannot be warmed up: {missing['numba']}")
    from seqconv.kernels.numba.runtime import compilation

    names = [name for name, dtype in DTYPES.items() if dtype in (dtypes or (torch.float32,))]
    parts = _parts(names, gradients)
    waiting, seconds = deque(parts), dict[str, float]()

    def run(part: str) -> None:
        begin = time.perf_counter()
        parts[part]()
        seconds[part] = time.perf_counter() - begin
        if report is not None:
            report(part, seconds[part])

    helpers = _Helpers(waiting, names, gradients, _cores() - 1 if compilation.folder() else 0)
    try:
        with compilation.watched(helpers.start), torch.inference_mode(False), torch.no_grad():
            for part in _taken(waiting):
                run(part)
            helpers.join()
            for part in parts:
                if part not in seconds:  # compiled elsewhere, and loaded here
                    run(part)
    finally:
        waiting.clear()
    return seconds


def serve(names: Sequence[str], gradients: bool) -> None:
    """Run the parts named on standard input, one a line; write a line to standard output when ready for another."""
    parts = _parts(names, gradients)
    print("ready", flush=True)
    for line in sys.stdin:
        with torch.no_grad():
            parts[line.strip()]()
        print("ready", flush=True)


class _Helpers:
    """Processes that take waiting parts, once there is something to compile: Numba compiles one kernel at a time."""

    def __init__(self, waiting: deque[str], names: Sequence[str], gradients: bool, count: int) -> None:
        self.waiting, self.count = waiting, count
        self.command = [sys.executable, "-c", f"from seqconv.warmup import serve; serve({names!r}, {gradients})"]
        self.threads: list[threading.Thread] = []

    def start(self) -> None:
        """Start the processes, unless they run."""
        if not self.threads:
            self.threads = [
                threading.Thread(target=self._work, daemon=True) for _ in range(min(self.count, len(self.waiting)))
            ]
            for thread in self.threads:
                thread.start()

    def join(self) -> None:
        """Wait until the parts under way are done."""
        for thread in self.threads:
            thread.join()

    def _work(self) -> None:
        paths = os.pathsep.join(path or os.getcwd() for path in sys.path)  # where this process finds its packages
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
        try:
            with subprocess.Popen(self.command, env={**os.environ, "PYTHONPATH": paths}, **pipes) as process:  # type: ignore[call-overload]
                while process.stdout.readline():
                    part = next(_taken(self.waiting), None)
                    if part is None:
                        break
                    process.stdin.write(f"{part}\n")
                    process.stdin.flush()
        except OSError:  # the process could not start, or died: this process compiles what it has not
            pass


def _taken(waiting: deque[str]) -> Iterator[str]:
    """Take the waiting parts, one by one, until none is left."""
    while True:
        try:
            yield waiting.popleft()
        except IndexError:
            return


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _parts(names: Sequence[str], gradients: bool) -> dict[str, Callable[[], None]]:
    """Return what each part does, the longest first.

    Each part has kernels of its own, in all dtypes: if two processes stored the same kernel on disk, one would be lost.
    """
    dtypes = [DTYPES[name] for name in names]
    forward: dict[str, Any] = {
        "recurrent layers, forward": [(_recurrent_forward, Dense, {})],
        "convolution, forward": [(_forward, Dense, {})],
        "tokens, forward, direct": [(_forward, Tokens, {"plan": "direct"})],
        "tokens, forward, folded": [(_forward, Tokens, {"plan": "folded"})],
    }
    backward: dict[str, Any] = {
        "recurrent layers, backward": [(_recurrent_backward, Dense, {})],
        "convolution, backward": [(_backward, Dense, {})],
        "tokens, backward, direct": [(_backward, one, {"plan": "direct"}) for one in (Tokens, Windows)],
        "tokens, backward, folded": [(_backward, Tokens, {"plan": "folded"})],
    }
    passes_ = [part for pair in zip(forward.items(), backward.items(), strict=True) for part in pair[: 1 + gradients]]
    parts: dict[str, Callable[[], None]] = {part: partial(_each, dtypes, steps) for part, steps in passes_}
    training: dict[str, Callable[[], None]] = {"batch norm": partial(_each, dtypes, [(_norm, Dense, {})])}
    training["RMSprop"] = _rmsprop
    sliding = {"sliding inference": partial(_sliding, dtypes)}
    return parts | sliding | (training if gradients else {}) | {"batches of windows": _batches}


def _each(dtypes: Sequence[torch.dtype], steps: Sequence[tuple[Callable[..., None], Any, dict[str, str]]]) -> None:
    for step, kind, plan in steps:
        for dtype in dtypes:
            for pool, length in POOLS:
                step(_source(kind, dtype, length), dtype, pool, plan)


def _forward(source: Source, dtype: torch.dtype, pool: Pool | None, plan: dict[str, str]) -> None:
    weight = torch.zeros(OUTPUTS, CHANNELS, SIZE, dtype=dtype)
    for want_argmax in (False, True):
        floor("numba").forward(source, weight, None, Convolution(), pool, want_argmax=want_argmax, **plan)


def _backward(source: Source, dtype: torch.dtype, pool: Pool | None, plan: dict[str, str]) -> None:
    """Run a backward pass alone: the forward pass is another part's."""
    positions, kernels = source.length - SIZE + 1, floor("numba")
    windows, greatest = (1, positions - 1) if pool is None else (pool.output_length(positions), pool.size - 1)
    shape, kind = kernels.argmax_format(SAMPLES, OUTPUTS, windows, greatest, dtype)
    gradient = torch.ones(SAMPLES, OUTPUTS, *(() if pool is None else (windows,)), dtype=dtype)
    weight, argmax = torch.zeros(OUTPUTS, CHANNELS, SIZE, dtype=dtype), torch.zeros(shape, dtype=kind)
    kernels.backward(gradient, argmax, source, weight, Convolution(), pool, wanted=(True, True, True), **plan)


def _sliding(dtypes: Sequence[torch.dtype]) -> None:
    from seqconv.kernels.numba import sliding
    from seqconv.kernels.sliding import Maximum, SlidingProgram, Tap

    for dtype in dtypes:  # a program of any steps runs through one kernel
        series = torch.zeros(1, 8, CHANNELS, dtype=dtype)
        sliding.start(SlidingProgram(CHANNELS, (Maximum((Tap(0, 0), Tap(0, 1))),), (1,)), 1, series).advance(series)


def _recurrent_forward(_source: Source, dtype: torch.dtype, pool: Pool | None, _plan: dict[str, str]) -> None:
    from seqconv.kernels.numba import recurrent
    from seqconv.kernels.recurrence import NOTHING

    if pool is None:  # the kernels of all cells, and of all sizes, are the same
        recurrent.forward(*_recurrent(dtype), keep=NOTHING)


def _recurrent_backward(_source: Source, dtype: torch.dtype, pool: Pool | None, _plan: dict[str, str]) -> None:
    """Run a backward pass alone, and what it shares with the forward pass: the latter's kernel is another part's."""
    from seqconv.kernels.numba import recurrent
    from seqconv.kernels.recurrence import EVERYTHING

    if pool is None:
        cell, input, states, weights, masks, lengths = _recurrent(dtype)
        shape, _ = recurrent.saved_format(cell, input, weights, EVERYTHING)
        output, saved = torch.zeros(2, 1, 3, dtype=dtype), torch.zeros(shape, dtype=dtype)
        given = cell, None, None, input, states, weights, masks, lengths, output, saved
        recurrent.backward(*given, wanted=(True, True, True))


def _recurrent(dtype: torch.dtype) -> tuple[Any, ...]:
    from seqconv.kernels.recurrence import Masks, Weights

    def zeros(*shape: int) -> torch.Tensor:
        return torch.zeros(shape, dtype=dtype)

    weights = Weights(zeros(9, 2), zeros(9, 3), zeros(9), zeros(9))
    return "gru", zeros(2, 1, 2), (zeros(1, 1, 3),), [weights], Masks(), None


def _source(kind: Any, dtype: torch.dtype, length: int) -> Source:
    if kind is Dense:
        return Dense(torch.zeros(SAMPLES, CHANNELS, length, dtype=dtype))
    rows = torch.zeros(ROWS, CHANNELS, dtype=dtype)
    if kind is Tokens:
        return Tokens(torch.zeros(SAMPLES, length, dtype=torch.int64), rows)
    return Windows(rows, torch.zeros(SAMPLES, dtype=torch.int64), length, 1)


def _norm(source: Source, dtype: torch.dtype, pool: Pool | None, _plan: dict[str, str]) -> None:
    from seqconv.kernels.norm import Norm
    from seqconv.kernels.numba import conv_norm_pool

    given = source.values, torch.zeros(OUTPUTS, CHANNELS, SIZE, dtype=dtype), None
    norm, geometry = Norm(None, None, None, None), (Convolution(), pool)
    output, saved = conv_norm_pool.forward(*given, norm, *geometry, want_argmax=True)
    conv_norm_pool.backward(output, saved, *given, *geometry, wanted=(True,) * 5)


def _rmsprop() -> None:
    from seqconv.kernels.numba.rmsprop import rmsprop_step

    parameter, gradient, mean_square = torch.zeros(3, 3).unbind()
    rmsprop_step([parameter], [gradient], [mean_square], rate=0.0, decay=0.0, epsilon=1.0)


def _batches() -> None:
    import numpy as np

    from seqconv.data import SlidingWindows

    series = np.zeros((40, 3), np.float32)
    for step, columns in ((1, 3), (2, 3), (2, 2)):
        next(iter(SlidingWindows(series[:, :columns], lookback=8, delay=1, step=step, batch_size=2)))
