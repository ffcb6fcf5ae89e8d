"""Learning rates that change during training: torch's schedulers, made by name and stepped where they should be."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch.optim import Optimizer, lr_scheduler
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

__all__ = ["Schedule", "learning_rate_schedule"]

# These are made of functions or of other schedulers, which have no place in a list of names and numbers.
NOT_BY_NAME = {"LRScheduler", "LambdaLR", "MultiplicativeLR", "SequentialLR", "ChainedScheduler"}


def learning_rate_schedule(optimizer: Optimizer, name: str, **arguments: Any) -> LRScheduler:
    """Return ``torch.optim.lr_scheduler.<name>(optimizer, **arguments)``, for ``fit(..., schedule=...)``.

    Raises ``ValueError`` for an unknown name, naming those that there are, and for arguments that torch refuses.
    """
    names = [
        key
        for key, kind in vars(lr_scheduler).items()
        if inspect.isclass(kind) and issubclass(kind, LRScheduler) and key[0] != "_" and key not in NOT_BY_NAME
    ]
    if name not in names:
        raise ValueError(f"schedule must be one of {', '.join(sorted(names))}, got {name!r}")
    kind = getattr(lr_scheduler, name)
    try:
        schedule: LRScheduler = kind(optimizer, **arguments)
    except (TypeError, ValueError, AttributeError, ZeroDivisionError) as error:
        takes = ", ".join(str(one) for one in list(inspect.signature(kind).parameters.values())[1:])
        raise ValueError(f"schedule {name} cannot be made with {arguments}: {error}. It takes {takes}") from error
    return schedule


class Schedule:
    """A scheduler, with when it is stepped and the column of the history that one waiting for a plateau looks at."""

    def __init__(
        self, scheduler: LRScheduler, every: str, optimizer: Optimizer, monitor: str, *, larger_is_better: bool
    ) -> None:
        self.scheduler, self.every, self.optimizer = scheduler, every, optimizer
        self.monitor = monitor if isinstance(scheduler, ReduceLROnPlateau) else None
        if not isinstance(scheduler, LRScheduler):
            raise TypeError(f"schedule must be one of torch.optim.lr_scheduler, got {type(scheduler).__name__}")
        if getattr(scheduler, "optimizer", optimizer) is not optimizer:
            raise ValueError("schedule must be over the optimizer given to fit, got one over another")
        if every not in ("epoch", "step"):
            raise ValueError(f"schedule_every must be 'epoch' or 'step', got {every!r}")
        if isinstance(scheduler, ReduceLROnPlateau):
            mode = "max" if larger_is_better else "min"
            if scheduler.mode != mode:
                raise ValueError(
                    f"schedule must have mode={mode!r} for the monitor {monitor!r}, got {scheduler.mode!r}"
                )
            if every != "epoch":
                raise ValueError(f"schedule_every must be 'epoch' for ReduceLROnPlateau, got {every!r}")

    @property
    def learning_rate(self) -> float:
        """The learning rate of the first group of parameters."""
        return float(self.optimizer.param_groups[0]["lr"])

    def after_step(self) -> None:
        """Follow a step of the optimizer."""
        if self.every == "step":
            self.scheduler.step()

    def after_epoch(self, record: Mapping[str, float]) -> None:
        """Follow an epoch with the given line of the history."""
        if self.monitor is not None:
            self.scheduler.step(record[self.monitor])  # type: ignore[arg-type]  # a plateau's step takes a metric
        elif self.every == "epoch":
            self.scheduler.step()

    def state_dict(self) -> dict[str, Any]:
        """Return the scheduler's state."""
        state: dict[str, Any] = self.scheduler.state_dict()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from ``state``; the optimizer's own state, its learning rate for one, is restored apart."""
        self.scheduler.load_state_dict(state)
        # Or torch warns of an epoch whose optimizer steps all came before the interruption.
        self.optimizer._opt_called = True  # type: ignore[attr-defined]
