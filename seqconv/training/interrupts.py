"""Signals that let the training step under way finish, so that what is saved is the state between two steps."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from seqconv.training.ranks import Ranks

__all__ = ["Interrupt", "Interrupted", "Terminated", "interruptible"]


class Interrupted(KeyboardInterrupt):
    """Training was stopped by Ctrl-C (SIGINT), or by SIGTERM, then as :class:`Terminated`.

    ``checkpoint`` is the file to resume from, ``None`` if there is none; ``code`` the exit code that tells a shell of
    the signal, 130 or 143.
    """

    code = 128 + signal.SIGINT

    def __init__(self, checkpoint: Path | None) -> None:
        self.checkpoint = checkpoint
        kept = f"resume from {checkpoint}" if checkpoint else "nothing was saved, since no checkpoint_dir was given"
        super().__init__(f"interrupted: {kept}")

    def __reduce__(self) -> tuple[type[Interrupted], tuple[Path | None]]:
        return type(self), (self.checkpoint,)


class Terminated(Interrupted, SystemExit):
    """Training was stopped by SIGTERM, as clusters send it. Where nobody catches it, the exit code is 143."""

    code = 128 + signal.SIGTERM


class Interrupt:
    """The ``signal`` that asks for a stop, ``None`` until then: on several ranks one that they have agreed on.

    ``received`` is the one that came to this process.
    """

    def __init__(self, ranks: Ranks) -> None:
        self.ranks = ranks
        self.received: int | None = None
        self.signal: int | None = None

    def receive(self, number: int) -> None:
        """Take note of a signal."""
        self.received = number
        if not self.ranks.several:
            self.signal = number

    def agree(self) -> None:
        """Have all ranks stop where one of them has received a signal."""
        self.signal = self.ranks.largest(self.received or 0) or None

    @property
    def requested(self) -> bool:
        """Whether a stop was asked for."""
        return self.signal is not None

    def error(self, checkpoint: Path | None) -> Interrupted:
        """Return what to raise once ``checkpoint`` is written."""
        return (Terminated if self.signal == signal.SIGTERM else Interrupted)(checkpoint)


@contextmanager
def interruptible(ranks: Ranks) -> Iterator[Interrupt]:
    """Yield a flag that the first SIGINT or SIGTERM sets.

    A further SIGINT raises ``KeyboardInterrupt`` wherever the program is. A further SIGTERM does nothing: ``timeout``
    and job managers send it to a process and to its group, and what cannot wait is killed anyway.

    The handlers that were there before are restored at the end. Signals reach the main thread only, so elsewhere
    nothing is changed; nor is it where a signal is ignored or handled outside Python.
    """
    interrupt = Interrupt(ranks)
    before: dict[int, Any] = {}

    def replace(number: int, handler: Callable[[int, FrameType | None], None]) -> None:
        before[number] = signal.getsignal(number)
        signal.signal(number, handler)

    def handle(number: int, _frame: FrameType | None) -> None:
        if interrupt.received is not None:
            if number == signal.SIGINT:
                raise KeyboardInterrupt
            return
        interrupt.receive(number)
        # The signal may have reached a DataLoader's workers, too. torch raises as soon as one of them has died,
        # wherever the program is: that would break off the step, which needs no worker any more.
        died = getattr(signal, "SIGCHLD", None)
        if died is not None and callable(signal.getsignal(died)):
            replace(died, lambda _number, _frame: None)

    try:
        # SIGINT has Python's own handler unless somebody took it away; SIGTERM has none.
        for number in (signal.SIGINT, signal.SIGTERM):
            handler = signal.getsignal(number)
            if callable(handler) or (number == signal.SIGTERM and handler is signal.SIG_DFL):
                replace(number, handle)
    except ValueError:  # not the main thread
        before.clear()
    try:
        yield interrupt
    finally:
        for replaced, handler in before.items():
            signal.signal(replaced, handler)
