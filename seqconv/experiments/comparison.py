"""Training a task's models one after the other, and timing their training steps side by side."""

from __future__ import annotations

import math
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from seqconv import explain, models
from seqconv.experiments.task import Task
from seqconv.layers.fused import Fused
from seqconv.training import (
    Callback,
    History,
    Metric,
    evaluate,
    fit,
    learning_rate_schedule,
    load_weights,
    plot_history,
    rmsprop,
    seed_everything,
)
from seqconv.training.ranks import Ranks
from seqconv.training.sliding import slider

__all__ = ["Outcome", "compare", "served_by", "step_milliseconds", "train_model"]

ROUNDS = 15
TORCHS = "the rival on torch's operations"


@dataclass(frozen=True)
class Outcome:
    """What a model reached.

    ``validation`` and ``test`` are the task's metric with the weights of the best epoch; ``ms_per_step`` is one
    training step on a batch, timed in turn with the other models' (``None`` where nothing is trained);
    ``seconds_per_epoch`` the median epoch with its validation; ``speed`` how many times faster a step is than the
    rival's on the backend or on torch's own operations, whichever is faster.
    """

    model: str
    backend: str
    parameters: int
    validation: float
    test: float
    test_in_units: float | None
    best_epoch: int | None
    ms_per_step: float | None
    seconds_per_epoch: float | None
    speed: float | None


def compare(
    task: Task,
    folder: Path,
    *,
    names: Sequence[str] | None = None,
    backend: str = "auto",
    resume: bool = False,
    progress: bool = True,
    seed: int = 0,
) -> list[Outcome]:
    """Train the task's models, or those of ``names``, and return what they reached, in the task's order.

    Each model's checkpoints, history and plot go to a folder of its name in ``folder``. With ``resume`` a comparison
    that was stopped goes on where it was. Raises ``ValueError`` for an unknown model, and what
    :func:`seqconv.training.fit` raises.
    """
    names = list(task.entries if names is None else dict.fromkeys(names))
    for name in names:
        check_model(task, name)
    trained = {
        name: train_model(task, name, folder / name, backend=backend, resume=resume, progress=progress, seed=seed)
        for name in names
    }
    milliseconds = step_milliseconds(task, [name for name in names if task.entries[name].learning_rate], backend)
    rival = min((milliseconds[name] for name in (task.rival, TORCHS) if name in milliseconds), default=None)
    return [
        Outcome(
            model=name,
            backend=served_by(model, next(iter(task.test))[0]),
            parameters=sum(parameter.numel() for parameter in model.parameters()),
            validation=scores["validation"],
            test=scores["test"],
            test_in_units=None if task.in_units is None else task.in_units(scores["test"]),
            best_epoch=None if history is None else history.best_epoch,
            ms_per_step=milliseconds.get(name),
            seconds_per_epoch=None if history is None else statistics.median(r["seconds"] for r in history.records),
            speed=rival / milliseconds[name] if rival and name in milliseconds else None,
        )
        for name, (model, history, scores) in trained.items()
    ]


def check_model(task: Task, name: str) -> None:
    """Raise ``ValueError`` unless ``name`` is one of the task's models."""
    if name not in task.entries:
        raise ValueError(f"model must be one of {', '.join(task.entries)} for {task.name}, got {name!r}")


def train_model(
    task: Task,
    name: str,
    folder: Path,
    *,
    backend: str = "auto",
    resume: bool = False,
    progress: bool = True,
    seed: int = 0,
    patience: int | None = None,
    learning_rate: float | None = None,
    schedule: tuple[str, dict[str, Any]] | None = None,
    schedule_every: str = "epoch",
    clip_norm: float | None = None,
    clip_value: float | None = None,
    callback: Callback | None = None,
) -> tuple[nn.Module, History | None, dict[str, float]]:
    """Train one model from weights drawn by ``seed``; return it with its best epoch's weights, history and metrics.

    The metrics are the task's on the ``"validation"`` and ``"test"`` data: those of validation on every window where
    the model slides (see :func:`seqconv.training.fit`), else on the settings' ``validation_steps`` batches. A model
    with nothing to train has no history. Every model sees the same batches in the same order. In a process group of
    ``torch.distributed`` all ranks make the call, with a task loaded there, and rank 0 writes the files.

    ``learning_rate`` takes the place of the model's own. ``schedule`` is the name of one of torch's schedules and its
    arguments, ``("StepLR", {"step_size": 2})``, where ``ReduceLROnPlateau`` looks the right way by default; the rest is
    :func:`seqconv.training.fit`'s. Raises ``ValueError`` for a learning rate that is no finite number above 0.
    """
    check_model(task, name)
    if learning_rate is not None and not 0 < learning_rate < math.inf:
        raise ValueError(f"learning_rate must be a finite number above 0, got {learning_rate}")
    entry, settings = task.entries[name], task.settings
    seed_everything(seed)
    model = models.initialise(entry.build(backend))
    history = None
    if entry.learning_rate is not None:
        if progress:
            print(f"{task.name}, {name}", file=sys.stderr)
        optimizer = rmsprop(model.parameters(), learning_rate or entry.learning_rate)
        history = fit(
            model,
            task.train(),
            loss=task.loss,
            optimizer=optimizer,
            epochs=settings.epochs,
            validation=task.validation,
            steps_per_epoch=settings.steps_per_epoch,
            validation_steps=settings.validation_steps,
            metrics=[task.metric],
            monitor=f"val_{task.metric.name}",
            patience=patience,
            schedule=None if schedule is None else scheduled(optimizer, *schedule, task.metric),
            schedule_every=schedule_every,
            clip_norm=clip_norm,
            clip_value=clip_value,
            callback=callback,
            checkpoint_dir=folder,
            resume=resume,
            progress=progress,
            seed=seed,
            labels={"data": task.source},
            description=None if task.description is None else {**task.description, "model": name},
            settings={"learning_rate": learning_rate, "schedule_arguments": schedule and schedule[1]},
        )
        if Ranks().is_main:
            plot_history(history, folder / "history.png", title=f"{name}, {task.title} ({task.origin})")
        load_weights(model, folder / "best.pt")
    slides = slider(model, task.validation, "auto") is not None  # then it is every window, as in training
    scores = {
        part: evaluate(model, loader, loss=task.loss, metrics=[task.metric], steps=steps)[task.metric.name]
        for part, loader, steps in (
            ("validation", task.validation, None if slides else settings.validation_steps),
            ("test", task.test, None),
        )
    }
    return model, history, scores


def scheduled(optimizer: Optimizer, name: str, arguments: dict[str, Any], metric: Metric) -> LRScheduler:
    """Return the schedule, one that waits for a plateau with the metric's own direction unless another is given."""
    if name == "ReduceLROnPlateau":
        arguments = {"mode": "max" if metric.larger_is_better else "min", **arguments}
    return learning_rate_schedule(optimizer, name, **arguments)


def step_milliseconds(task: Task, names: Sequence[str], backend: str) -> dict[str, float]:
    """Return the median milliseconds of a training step of each model, all on the same batch, timed in turn.

    A step is zeroing gradients, forward, loss, backward and the optimizer; fetching the batch is not part of it. The
    rival, if it is one of them, is there on torch's own operations too, as ``TORCHS``.
    """
    inputs, targets = next(iter(task.train()))
    steps = {name: _training_step(task, name, backend, inputs, targets) for name in names}
    if task.rival in steps:
        steps[TORCHS] = _training_step(task, task.rival, "reference", inputs, targets)
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(2 + ROUNDS):
        for name, step in steps.items():
            began = time.perf_counter()
            next(step)
            if turn >= 2:  # the first two warm up
                seconds[name].append(time.perf_counter() - began)
    return {name: 1e3 * statistics.median(times) for name, times in seconds.items()}


def served_by(model: nn.Module, inputs: Tensor) -> str:
    """Return the backends that serve the model's seqconv layers on ``inputs``, ``"torch"`` if it has none of them."""
    if not any(isinstance(module, Fused) for module in model.modules()):
        return "torch"
    with torch.no_grad():
        calls = explain(nn.Sequential(model), inputs).calls  # held by another module, a lone layer is a model, too
    return " + ".join(dict.fromkeys(answer.backend for _, answer in calls if answer is not None)) or "torch"


def _training_step(task: Task, name: str, backend: str, inputs: Tensor, targets: Tensor) -> Iterator[None]:
    model = models.initialise(task.entries[name].build(backend)).train()
    optimizer = rmsprop(model.parameters())
    while True:
        optimizer.zero_grad()
        task.loss(model(inputs), targets).backward()
        optimizer.step()
        yield
