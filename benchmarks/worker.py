"""A process that is asked, a line of JSON each way: what is measured apart from the process that asks.

The only subprocess protocol here. A request names a function and its arguments, ``{"function": "module:name",
"arguments": {...}}``; the reply is ``{"answer": ...}`` or ``{"raised": traceback}``. A kernel that reads where it must
not leaves its process without a GPU for good, another framework's threads and settings do not mix with torch's, a
first call needs fresh caches: all are functions that a :class:`Worker` is asked for, and another can be started.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).resolve().parent.parent
COMMAND = (sys.executable, "-m", "benchmarks.worker")
LINUX = sys.platform == "linux"
PARENT_DEATH_SIGNAL = 1  # prctl's PR_SET_PDEATHSIG
TAIL = 4000  # characters of what a process that failed had to say


class Failed(RuntimeError):
    """A worker's function raised, or its process ended instead of an answer."""


class Late(Failed):
    """No answer came within the time."""


class Worker:
    """A process that is started at the first question, and again after :meth:`stop`; ``starts`` counts them.

    ``environment`` is added to this process' own. A ``paused`` worker is stopped by a signal while nothing is asked (on
    Linux): ONNX Runtime's threads spin on between calls, and took a model that was timed beside it twice as long.
    """

    def __init__(
        self,
        name: str = "a worker",
        *,
        environment: Mapping[str, str] | None = None,
        paused: bool = False,
        command: Sequence[str] = COMMAND,
    ) -> None:
        self.name, self.command, self.paused = name, list(command), paused and LINUX
        self.environment = os.environ | dict(environment or {})
        self.starts = 0
        self.process: subprocess.Popen[str] | None = None
        self.end: Any = lambda: None

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_error: object) -> None:
        self.stop()

    def ask(self, function: str, /, *, patience: float = 600.0, **arguments: Any) -> Any:
        """Return the function's answer within ``patience`` seconds; else :class:`Late`, or :class:`Failed`."""
        self.tell(function, **arguments)
        try:
            line = self.replies.get(timeout=min(patience, threading.TIMEOUT_MAX))
        except queue.Empty:
            self.stop()
            raise Late(f"no answer within {patience:.0f} s") from None
        if not line:
            said = self.last_words()
            self.stop()
            raise Failed(f"{self.name}: the process ended: {said}")
        if self.paused:
            self.signal(signal.SIGSTOP)
        reply = json.loads(line)
        if "raised" in reply:
            raise Failed(f"{self.name} failed in its process:\n{reply['raised'][-TAIL:]}")
        return reply["answer"]

    def tell(self, function: str, /, **arguments: Any) -> None:
        """Send a request without waiting for its reply."""
        if self.process is None:
            self.start()
        assert self.process is not None
        assert self.process.stdin is not None
        if self.paused:
            self.signal(signal.SIGCONT)
        with contextlib.suppress(OSError):  # a process that has ended shows in the replies
            print(json.dumps({"function": function, "arguments": arguments}), file=self.process.stdin, flush=True)

    def start(self) -> None:
        """Start the process."""
        self.starts += 1
        self.errors: IO[str] = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115
        self.replies: queue.Queue[str] = queue.Queue()
        self.process = subprocess.Popen(
            self.command, cwd=ROOT, env=self.environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=self.errors, text=True,
        )  # fmt: skip
        threading.Thread(target=listen, args=(self.process.stdout, self.replies), daemon=True).start()
        self.end = weakref.finalize(self, end, self.process)  # also where nobody calls stop

    def stop(self) -> None:
        """End the process, if there is one."""
        self.end()
        self.process = None

    def signal(self, number: int) -> None:
        """Send the process a signal, unless it has ended."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.process.pid, number)  # type: ignore[union-attr]

    def last_words(self) -> str:
        """Return the end of what the process wrote to its error stream, in one line."""
        self.errors.seek(0)
        return " ".join(self.errors.read().split())[-TAIL:] or "it said nothing"


def listen(stream: IO[str], replies: queue.Queue[str]) -> None:
    """Hand lines on as they come, an empty one at the end."""
    for line in stream:
        replies.put(line)
    replies.put("")


def end(process: subprocess.Popen[str]) -> None:
    """End a process."""
    process.kill()
    process.wait()
    with contextlib.suppress(OSError):
        process.stdin.close()  # type: ignore[union-attr]


def main() -> None:
    """Answer until the input ends; what libraries print goes to the error stream."""
    if LINUX:  # end with the process that asks, even while stopped
        ctypes.CDLL(None).prctl(PARENT_DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0)
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    for line in sys.stdin:
        print(json.dumps(reply(json.loads(line))), file=replies, flush=True)


def reply(request: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a request is answered by."""
    module, _, name = request["function"].partition(":")
    try:
        return {"answer": getattr(importlib.import_module(module), name)(**request["arguments"])}
    except Exception:
        return {"raised": traceback.format_exc()}


def limit_cores(threads: int) -> None:
    """Keep this process to so many cores: not every framework can be told how many threads to start."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])


if __name__ == "__main__":
    main()
