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
from seqconv.training.randomness import random_state, restore_random_state, seed_everything
from seqconv.training.ranks import Ranks
from seqconv.training.schedules import Schedule

__all__ = ["Run"]

LAST, BEST, HISTORY = "last.pt", "best.pt", "history.csv"

log = logging.getLogger(__name__)


class Run:
    """The state of a run: all that must be saved for it to be continued, and where it is saved.

    On several ranks each has a run, and rank 0 alone writes: what stands below as coming from all ranks must be called
    on all of them.
    """

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
        description: dict[str, Any] | None,
        ranks: Ranks,
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
        self.settings = {"world_size": ranks.world_size, **settings}
        self.description = description
        self.ranks = ranks
        self.begin_epoch()

    def begin_epoch(self) -> None:
        """Set what is counted within an epoch to nothing."""
        self.step = 0
        self.seconds = 0.0
        self.means = Means(self.metrics)
        self.agreed_step: int | None = None

    @property
    def updating(self) -> bool:
        """Whether all ranks have agreed on a step whose update is not made yet: they wait in its backward pass."""
        return self.agreed_step == self.step

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

    def begin(self, *, resume: bool, seed: int | None) -> None:
        """Restore the run that is in the folder, or begin a new one: all ranks the one that rank 0 finds."""
        self.folder = self.ranks.gather(self.folder)[0]
        if self.ranks.gather(self.ranks.is_main and self.is_on_disk(resume=resume))[0]:
            self.restore()
            return
        if self.ranks.is_main:
            self.make_folder()
        if seed is not None:
            seed_everything((seed + self.ranks.rank) % 2**32)

    def require_same(self, arguments: dict[str, Any]) -> None:
        """Raise ``ValueError`` unless all ranks have the same arguments, from all ranks."""
        everywhere = self.ranks.gather(arguments)
        for name in arguments:
            values = [each.get(name) for each in everywhere]
            if any(value != values[0] for value in values):
                raise ValueError(f"{name} must be the same on all ranks, got {', '.join(map(repr, values))}")

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
        """Write the three files of a completed epoch, from all ranks."""
        if self.folder is not None:
            state = self.state_dict()
            if self.ranks.is_main:
                # last.pt comes at the end: if the machine fails in between, the epoch is made again and all agree.
                if self.history.best_epoch == self.epochs_done:
                    save_checkpoint(self.folder / BEST, state)
                self.history.save(self.folder / HISTORY)
                save_checkpoint(self.folder / LAST, state)

    def stop(self, interrupt: Interrupt, random: dict[str, Any] | None = None) -> NoReturn:
        """Save the state, with the random states ``random`` or those of now, and raise the interrupt's error.

        This is for all ranks to do; none raises it before rank 0 has saved.
        """
        if self.folder is not None:
            state = self.state_dict(random)
            if self.ranks.is_main:
                save_checkpoint(self.folder / LAST, state)
        self.ranks.largest(0)
        raise interrupt.error(self.last)

    def state_dict(self, random: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return all that must be saved, with the random states ``random`` or those of now, from all ranks.

        What each rank has of its own is rank 0's as it would be without others, and theirs under ``"other_ranks"``.
        """
        own = {
            "callback": callback_state(self.callback),
            "random": random or random_state(self.device),
            "feed": self.feed.state_dict(),
            "means": self.means.state_dict(),
        }
        first, *others = self.ranks.gather(own)
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": None if self.schedule is None else self.schedule.state_dict(),
            "step": self.step,
            "seconds": self.seconds,
            "history": self.history.records,
            "settings": self.settings,
            "description": self.description,
            **first,
            "other_ranks": others,
        }

    def restore(self) -> None:
        """Load the state in ``last.pt``."""
        assert self.last is not None
        state = load_checkpoint(self.last)
        try:
            saved = {"world_size": 1, **state["settings"]}
            for name, value in self.settings.items():
                if saved.get(name) != value:  # those of older runs lack what there was not then
                    raise CheckpointError(f"{self.last} is of a run with {name} {saved.get(name)!r}, got {value!r}")
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            if self.schedule is not None:
                self.schedule.load_state_dict(state["schedule"])
            self.step = state["step"]
            self.seconds = state["seconds"]
            self.history.records = state["history"]
            own = state if self.ranks.is_main else state["other_ranks"][self.ranks.rank - 1]
            restore_callback(self.callback, own.get("callback"))
            self.feed.load_state_dict(own["feed"])
            self.means.load_state_dict(own["means"])
            restore_random_state(own["random"], self.device)
        except CheckpointError:
            raise
        except (KeyError, RuntimeError, ValueError, TypeError) as error:
            raise CheckpointError(f"the checkpoint {self.last} does not fit this run: {error}") from error
