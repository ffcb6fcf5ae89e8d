"""A step in a process of its own, which measures its own seconds: two frameworks' threads and settings do not mix.

The process takes a request, a line of JSON (``case``, ``peer``, ``threads``), then commands, a line each: ``call N``
is answered by the seconds of so many calls, ``results`` by the last call's output. While nothing is asked it is
stopped, on Linux, where it ends with this process all the same: ONNX Runtime's threads spin on between calls, and took
a model that was timed beside it twice as long.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import weakref
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from benchmarks.peers import PEERS
from benchmarks.registry import Case, Step

__all__ = ["RemoteStep"]

ROOT = Path(__file__).resolve().parents[2]
WORKER = "benchmarks.peers.worker"
STOPS = sys.platform == "linux"


class RemoteStep:
    """A peer's work on a case; ``worker`` is the module that does it."""

    def __init__(self, peer: str, case: Case, worker: str = WORKER) -> None:
        self.name = f"{case}-{peer}"
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115  as long-lived as the process
        self.process = subprocess.Popen(
            [sys.executable, "-m", worker],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
            cwd=ROOT,
            env=os.environ | dict(PEERS[peer].environment),
        )
        self.close = weakref.finalize(self, end, self.process, self.errors)
        self.ask({"case": case.as_dict(), "peer": peer, "threads": torch.get_num_threads()})

    def prepare(self) -> None:
        """Do nothing: the process restores what it must between calls."""

    def call(self) -> None:
        """Do the work once."""
        self.ask("call 1")

    def results(self) -> dict[str, Tensor]:
        """Return the output of the last call."""
        return {"output": torch.tensor(self.ask("results"), dtype=torch.float32)}

    def stopwatch(self, _step: Step, calls: int) -> list[float]:
        """Return the seconds of each of so many calls as the process measured them."""
        seconds: list[float] = self.ask(f"call {calls}")
        return seconds

    def ask(self, command: Any) -> Any:
        """Send a command and return its answer; ``RuntimeError`` if the process ended instead."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        line = command if isinstance(command, str) else json.dumps(command)
        if STOPS:
            self.process.send_signal(signal.SIGCONT)
        try:
            self.process.stdin.write(line + "\n")
            self.process.stdin.flush()
            answer = self.process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            self.process.wait(10)
            self.errors.seek(0)
            raise RuntimeError(f"{self.name} failed in its process:\n{self.errors.read()[-4000:]}")
        if STOPS:
            self.process.send_signal(signal.SIGSTOP)
        return json.loads(answer)


def end(process: subprocess.Popen[str], errors: IO[str]) -> None:
    """End the process, which reads until its input does."""
    if STOPS:
        process.send_signal(signal.SIGCONT)
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            with contextlib.suppress(BrokenPipeError):
                stream.close()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    errors.close()
