"""Tells whether new DataLoader workers begin a pass that earlier workers have begun before them."""

from __future__ import annotations

import multiprocessing
import multiprocessing.context
import multiprocessing.sharedctypes
import os
import warnings
from typing import Any

__all__ = ["WorkerPasses"]


class WorkerPasses:
    """The pass that a loader's workers began last, in memory that the loader's process shares with all its workers.

    Each worker has a copy of the loader, and knows nothing else of workers that have ended. When this is pickled for
    anything but the start of a process, the copy gets new memory.
    """

    def __init__(self) -> None:
        # The worker's process, the number of the pass, whether a warning was given.
        self.last: Any = multiprocessing.sharedctypes.RawArray("q", 3)

    def begin(self, number: int) -> None:
        """Note that this process, the first worker of several, begins pass ``number``; warn once if it is a repeat."""
        process, last, warned = self.last
        repeated = process not in (0, os.getpid()) and number == last
        self.last[:] = os.getpid(), number, warned or repeated
        if repeated and not warned:
            warnings.warn(
                f"SlidingWindows(shuffle=True, seed=...) begins pass {number} again in new DataLoader workers, in the "
                "same order as before: call set_epoch(epoch) before each pass, or give the DataLoader "
                "persistent_workers=True",
                stacklevel=2,
            )

    def __getstate__(self) -> dict[str, Any]:
        starting = multiprocessing.context.get_spawning_popen() is not None
        return {"last": self.last if starting else None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        if state["last"] is None:
            self.__init__()  # type: ignore[misc]
        else:
            self.last = state["last"]
