"""The state of a training run, and its place on disk."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import nn

from seqconv.training.callbacks import Callback, callback_state, restore_callback
from seqconv.training.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from seqconv.training.evaluation import Means
from seqconv.training.feed import Feed
from seqconv.training.history import History
from seqconv.training.interrupts import Interrupt
from seqconv.training.metrics import Metric
from seqconv.training.randomness import random_state, restore_random_state
from seqconv.training.schedules import Schedule

__all__ = ["Run"]

LAST, BEST, HISTORY = "last.pt", "best.pt", "history.csv"

log = logging.getLogger(__name__)


class Run:
    """The state of a run: all that must be saved for it to be continued, and where it is saved."""

    def __init__(
        self,
        *,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        feed: Feed,
        metrics: Sequence[Metric],
        device: torch.device,
        schedule: Schedule | None,
        callback: Callback | None,
        history: History,
        folder: Path | None,
        settings: dict[str, Any],
    ) -> None:
        self.model = model
        self.optimizer = optimizer
        self.feed = feed
        self.metrics = metrics
        self.device = device
        self.schedule = schedule
        self.callback = callback
        self.history = history
        self.folder = folder
        self.settings = settings
        self.begin_epoch()

    def begin_epoch(self) -> None:
        """Set what is counted within an epoch to nothing."""
        self.step = 0
        self.seconds = 0.0
        self.means = Means(self.metrics)

    @property
    def epochs_done(self) -> int:
        """The number of epochs completed."""
        return len(self.history.records)

    @property
    def last(self) -> Path | None:
        """Where ``last.pt`` stands or will stand."""
        return None if self.folder is None else self.folder / LAST

    @property
    def last_saved(self) -> Path | None:
        """Where ``last.pt`` stands, ``None`` if it does not yet."""
        return self.last if self.last is not None and self.last.exists() else None

    def is_on_disk(self, *, resume: bool) -> bool:
        """Return whether there is a run to continue; raise if the folder's files and ``resume`` contradict."""
        if self.folder is None:
            if resume:
                raise ValueError("resume=True must come with the checkpoint_dir to resume from, got None")
            return False
        found = [name for name in (LAST, BEST, HISTORY) if (self.folder / name).exists()]
        if found and not resume:
            raise FileExistsError(
                f"checkpoint_dir {self.folder} holds a run already ({', '.join(found)}): "
                "continue it with resume=True, remove it, or give another folder"
            )
        if found and LAST not in found:
            raise CheckpointError(f"checkpoint_dir {self.folder} has no {LAST} to resume from, but {', '.join(found)}")
        if resume and not found:
            log.warning("%s holds no checkpoint yet: a new run begins", self.folder)
        return bool(found)

    def make_folder(self) -> None:
        """Make the folder; raise ``OSError`` where no file can be written to it, rather than after an epoch's work."""
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.folder):
                pass

    def save_epoch(self) -> None:
        """Write the three files of a completed epoch."""
        if self.folder is not None:
            # last.pt comes at the end: if the machine fails in between, the epoch is made again and all three agree.
            if self.history.best_epoch == self.epochs_done:
                save_checkpoint(self.folder / BEST, self.state_dict())
            self.history.save(self.folder / HISTORY)
            save_checkpoint(self.folder / LAST, self.state_dict())

    def stop(self, interrupt: Interrupt, random: dict[str, Any] | None = None) -> NoReturn:
        """Save the state, with the random states ``random`` or those of now, and raise the interrupt's error."""
        if self.folder is not None:
            save_checkpoint(self.folder / LAST, self.state_dict(random))
        raise interrupt.error(self.last)

    def state_dict(self, random: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return all that must be saved, with the random states ``random`` or those of now."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": None if self.schedule is None else self.schedule.state_dict(),
            "callback": callback_state(self.callback),
            "random": random or random_state(self.device),
            "feed": self.feed.state_dict(),
            "step": self.step,
            "means": self.means.state_dict(),
            "seconds": self.seconds,
            "history": self.history.records,
            "settings": self.settings,
        }

    def restore(self) -> None:
        """Load the state in ``last.pt``."""
        assert self.last is not None
        state = load_checkpoint(self.last)
        try:
            saved = state["settings"]
            for name, value in self.settings.items():
                if saved.get(name) != value:  # those of older runs lack what there was not then
                    raise CheckpointError(f"{self.last} is of a run with {name} {saved.get(name)!r}, got {value!r}")
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            if self.schedule is not None:
                self.schedule.load_state_dict(state["schedule"])
            restore_callback(self.callback, state.get("callback"))
            self.feed.load_state_dict(state["feed"])
            self.step = state["step"]
            self.means.load_state_dict(state["means"])
            self.seconds = state["seconds"]
            self.history.records = state["history"]
            restore_random_state(state["random"], self.device)
        except CheckpointError:
            raise
        except (KeyError, RuntimeError, ValueError, TypeError) as error:
            raise CheckpointError(f"the checkpoint {self.last} does not fit this run: {error}") from error
