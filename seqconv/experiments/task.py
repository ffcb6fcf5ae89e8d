"""A task: batches to train and judge on, the models that compete, and how long each is trained."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib import import_module
from typing import TYPE_CHECKING, Any, TypeAlias

from torch import Tensor, nn

from seqconv.data.sources import DataSource
from seqconv.training import Metric
from seqconv.training.ranks import Ranks

if TYPE_CHECKING:
    from seqconv.data import ArrayBatches, SlidingWindows

__all__ = ["PRESETS", "TASKS", "Entry", "Settings", "Task", "load_task", "shared_out"]

Loader: TypeAlias = "ArrayBatches | SlidingWindows"


@dataclass(frozen=True)
class Settings:
    """How long a model is trained, and on how much.

    ``steps_per_epoch`` and ``validation_steps`` count batches of ``batch_size``; ``None`` is a whole pass. A model that
    slides over windows is validated on all of them, whatever ``validation_steps`` is. ``sizes`` are the (training,
    test) reviews of the made-up IMDB data.
    """

    epochs: int
    steps_per_epoch: int | None = None
    validation_steps: int | None = None
    batch_size: int = 128
    sizes: tuple[int, int] = (4000, 1000)

    def with_options(
        self, epochs: int | None, steps_per_epoch: int | None, validation_steps: int | None, batch_size: int | None
    ) -> Settings:
        """Return the settings with those options replaced that are not ``None``."""
        given = {
            "epochs": epochs,
            "steps_per_epoch": steps_per_epoch,
            "validation_steps": validation_steps,
            "batch_size": batch_size,
        }
        for name, value in given.items():
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        return replace(
            self,
            epochs=epochs or self.epochs,
            steps_per_epoch=steps_per_epoch or self.steps_per_epoch,
            validation_steps=validation_steps or self.validation_steps,
            batch_size=batch_size or self.batch_size,
        )


@dataclass(frozen=True)
class Entry:
    """A model of a task: how to build it for a backend, and its learning rate, ``None`` where nothing is trained."""

    build: Callable[[str], nn.Module]
    learning_rate: float | None = 1e-3


@dataclass(frozen=True)
class Task:
    """What a comparison needs.

    ``train()`` gives a fresh loader, in the same order each time. ``entries`` maps a model's name to its entry;
    ``rival`` is the recurrent model that the others' speed is told against, on the backend or on torch's operations,
    whichever is faster. ``loss(outputs, targets)`` is the batch's mean. ``in_units`` turns the metric into ``units``
    where it has any beside its own. ``description`` is what a model's checkpoints say of its data, as ``fit`` takes it.
    """

    name: str
    title: str
    source: str
    synthetic: bool
    train: Callable[[], Loader]
    validation: Loader
    test: Loader
    entries: Mapping[str, Entry]
    rival: str
    loss: Callable[[Tensor, Tensor], Tensor]
    metric: Metric
    settings: Settings
    units: str | None = None
    in_units: Callable[[float], float] | None = None
    description: Mapping[str, Any] | None = None

    @property
    def origin(self) -> str:
        """Whether the data are real, in two words for titles."""
        return "synthetic data" if self.synthetic else "real data"


def load_task(
    name: str,
    *,
    preset: str = "quick",
    settings: Settings | None = None,
    data_dir: str | os.PathLike[str] | None = None,
    source: DataSource = "auto",
    seed: int = 0,
    csv: Mapping[str, Any] | None = None,
) -> Task:
    """Return the task ``name`` (``"imdb"`` or ``"jena"``) with its data loaded.

    ``preset`` is ``"notebook"`` (the notebook's epochs and steps) or ``"quick"`` (minutes on a small CPU); ``settings``
    take its place. ``data_dir``, ``source``: see :func:`seqconv.data.sources.find`. ``seed`` orders the batches.
    ``csv``, the arguments of :func:`seqconv.data.load_csv`, puts a file of one's own in the place of Jena's.
    In a process group of ``torch.distributed`` the loaders yield this rank's part of each batch.
    Raises ``ValueError`` for an unknown name or preset, and what the data's loader raises.
    """
    if name not in TASKS:
        raise ValueError(f"task must be one of {', '.join(TASKS)}, got {name!r}")
    if preset not in PRESETS:
        raise ValueError(f"preset must be one of {', '.join(PRESETS)}, got {preset!r}")
    if settings is None:
        settings = PRESETS[preset][name]
    if csv is not None and name != "jena":
        raise ValueError(f"a CSV file goes with the task jena, got {name}")
    module = import_module(f"seqconv.experiments.{name}")
    own = {} if csv is None else {"csv": csv}
    task: Task = module.load(settings, data_dir=data_dir, source=source, seed=seed, **own)
    return task


def shared_out(batch_size: int, *, training: bool) -> dict[str, Any]:
    """Return a loader's arguments for this rank's part of each batch of ``batch_size`` samples.

    Ranks have equally many batches in training, where a pass may repeat a sample for that; elsewhere each sample
    counts once. Raises ``ValueError`` for a batch that cannot be parted equally.
    """
    ranks = Ranks()
    if batch_size % ranks.world_size:
        raise ValueError(
            f"batch_size, which {ranks.world_size} processes share out, must be a multiple of {ranks.world_size}, "
            f"got {batch_size}"
        )
    return {
        "batch_size": batch_size // ranks.world_size,
        "rank": ranks.rank,
        "world_size": ranks.world_size,
        "uneven": "pad" if training else "keep",
    }


TASKS = ("imdb", "jena")

# The quick preset is sized so that both tasks together take well under three minutes on two cores.
PRESETS: Mapping[str, Mapping[str, Settings]] = {
    "quick": {
        "imdb": Settings(epochs=4),
        "jena": Settings(epochs=4, steps_per_epoch=50, validation_steps=30),
    },
    "notebook": {
        "imdb": Settings(epochs=10, sizes=(25_000, 25_000)),
        "jena": Settings(epochs=20, steps_per_epoch=500),
    },
}
