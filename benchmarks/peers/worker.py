"""The process behind :class:`benchmarks.peers.remote.RemoteStep`: ``python -m benchmarks.peers.worker``."""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import signal
import sys
import time
from typing import IO, Any

from benchmarks.peers import PEERS, Work

__all__ = ["limit_cores", "serve"]

PARENT_DEATH_SIGNAL = 1  # prctl's PR_SET_PDEATHSIG


def main() -> None:
    """Answer on standard output, and let whatever the frameworks print there go to standard error."""
    end_with_parent()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    request = json.loads(sys.stdin.readline())
    serve(make(request), sys.stdin, answers)


def make(request: Any) -> Work:
    """Return the work that a request asks for."""
    limit_cores(request["threads"])
    import torch

    from benchmarks.registry import Case

    torch.set_num_threads(request["threads"])
    module = importlib.import_module(PEERS[request["peer"]].module)
    work: Work = module.make(Case.from_dict(request["case"]), request["threads"])
    return work


def serve(work: Work, commands: IO[str], answers: IO[str]) -> None:
    """Say that all is ready, then answer commands until they end."""
    output: Any = None

    def answer(value: Any) -> None:
        answers.write(json.dumps(value) + "\n")
        answers.flush()

    answer("ready")
    for line in commands:
        word, _, count = line.strip().partition(" ")
        if word == "call":
            seconds = []
            for _ in range(int(count)):
                work.restore()
                start = time.perf_counter()
                output = work.call()
                seconds.append(time.perf_counter() - start)
            answer(seconds)
        else:
            answer(numbers(output))


def numbers(output: Any) -> Any:
    """Return an output as lists of Python numbers."""
    import numpy as np

    return np.asarray(output, dtype=np.float64).tolist()


def end_with_parent() -> None:
    """Have the system end this process with the one that started it, even while it is stopped."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PARENT_DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0)


def limit_cores(threads: int) -> None:
    """Keep to so many cores: not every framework can be told how many threads to start."""
    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, cores[:threads])


if __name__ == "__main__":
    main()
