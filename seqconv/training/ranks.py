"""The processes that train one model together: which of them this is, and what they tell each other.

Every exchange begins with a number of each rank, the largest of which all of them get. A rank that fails sends
``FAILED`` instead: the others learn of it in the exchange that they come to next, and do not wait for it.
"""

from __future__ import annotations

import contextlib
import pickle
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from torch import distributed

from seqconv.training.interrupts import Interrupted

__all__ = ["Ranks"]

FAILED = 1 << 30

T = TypeVar("T")


class Ranks:
    """The process's place, ``rank`` of ``world_size``: one of one unless ``torch.distributed`` has a process group.

    All ranks must come to the same exchanges in the same order. With one rank an exchange returns what it is given.
    """

    def __init__(self) -> None:
        together = distributed.is_available() and distributed.is_initialized()
        self.rank, self.world_size = (distributed.get_rank(), distributed.get_world_size()) if together else (0, 1)
        self.several = self.world_size > 1
        self.is_main = self.rank == 0
        self.failed = False

    def largest(self, number: int) -> int:
        """Return the largest of the ranks' numbers; raise what another rank has raised in :meth:`sharing_errors`."""
        if not self.several:
            return number
        found = self._largest(number)
        if found == FAILED:
            raise next(error for error in self._exchange_errors(None) if error is not None)
        return found

    def gather(self, value: T) -> list[T]:
        """Return the ranks' values, which are pickled, in the order of the ranks."""
        if not self.several:
            return [value]
        self.largest(0)
        values: list[Any] = [None] * self.world_size
        distributed.all_gather_object(values, value)
        return values

    @contextlib.contextmanager
    def sharing_errors(self, unless: Callable[[], bool] = lambda: False) -> Iterator[None]:
        """Raise an error of the block on all ranks, at the exchange that each of them comes to next.

        Where ``unless()`` is true the others are waiting elsewhere, and are not told.
        """
        try:
            yield
        except (Exception, Interrupted) as error:
            if self.several and not self.failed and not unless():
                with contextlib.suppress(RuntimeError):  # the others may be gone, which is then no news
                    self._largest(FAILED)
                    self._exchange_errors(error)
            raise

    def _largest(self, number: int) -> int:
        # On the CPU where the group serves it: the host does not wait for a GPU's kernels then.
        on_cpu = "cpu:" in distributed.get_backend_config()
        tensor = torch.tensor(number, device="cpu" if on_cpu else torch.accelerator.current_accelerator())
        distributed.all_reduce(tensor, distributed.ReduceOp.MAX)
        return int(tensor.item())

    def _exchange_errors(self, error: BaseException | None) -> list[BaseException | None]:
        self.failed = True
        errors: list[BaseException | None] = [None] * self.world_size
        distributed.all_gather_object(errors, None if error is None else portable(error))
        for rank, found in enumerate(errors):
            if found is not None:
                found.add_note(f"raised on rank {rank} of {self.world_size}")
        return errors


def portable(error: BaseException) -> BaseException:
    """Return the error if it survives pickling, else a ``RuntimeError`` with its text."""
    with contextlib.suppress(Exception):
        if str(pickle.loads(pickle.dumps(error))) == str(error):
            return error
    return RuntimeError(f"{type(error).__name__}: {error}")
