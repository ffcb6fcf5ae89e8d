"""The notebook's trainings as wholes, wall clock, data loading included: ``python -m benchmarks.epochs``.

The convnet on 20,000 reviews of 500 words, batches of 128, RMSprop, validated on 5,000 after each of ten epochs:
seqconv, the same model on torch's own operations, and Keras as far as it is installed (``seqconv[peers]``). Each side
runs in a process of its own, one after the other, with as many threads. The clock starts when all is imported and stops
after the last epoch: reading the reviews, padding them, building and compiling the model, training, and validating
after each epoch; the test comes after it. Keras 3 adds RMSprop's epsilon inside the root and so learns more slowly, see
:func:`seqconv.training.rmsprop`; a step costs the same either way.

``--task jena`` trains the convnet on windows of the Jena series, 500 steps in each of 20 epochs, validated on all
windows of the validation rows after each: seqconv, which slides over them, the same model on torch's own operations,
and plain torch as most people write it, windows by a ``Dataset`` behind a ``DataLoader``.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks import results
from benchmarks.peers import PEERS, missing, worker_of
from benchmarks.tables import tabulate
from benchmarks.worker import Failed
from seqconv.environment import describe, one_line
from seqconv.files import write_text

HEADERS = ("side", "seconds", "times as long as seqconv", "of it loading", "s per epoch", "validation", "best", "test")
# Two are torch with seqconv's layers on a backend, the others are peers.
BACKENDS = {"seqconv": "auto", "torch": "reference"}
LOADER = "torch, DataLoader"
SIDES = {"imdb": (*BACKENDS, "Keras, TensorFlow", "Keras, JAX"), "jena": (*BACKENDS, LOADER)}
METRICS = {"imdb": "Accuracies are those", "jena": "Mean absolute errors, in standard deviations, are those"}
WORDS = 10_000  # the most frequent ones, as the notebook and its task here keep


def main(arguments: Sequence[str] | None = None) -> int:
    """Train every side that can, print the table and write it with a results file; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.epochs", description=__doc__)
    parser.add_argument("--task", choices=SIDES, default="imdb", help="what to train on (imdb)")
    parser.add_argument("--epochs", type=int, metavar="N", help="epochs to train (the notebook's: 10, or 20 of jena)")
    parser.add_argument("--steps", type=int, metavar="N", help="steps of an epoch, for a trial (all)")
    parser.add_argument(
        "--side",
        action="append",
        choices=[*dict.fromkeys(SIDES["imdb"] + SIDES["jena"])],
        help="this side alone (may be repeated)",
    )
    parser.add_argument("--data-dir", help="folder that holds the reviews (SEQCONV_DATA, or the cache)")
    parser.add_argument("--synthetic", type=int, metavar="N", help="so many made-up reviews, for a trial")
    parser.add_argument("--repeat", type=int, default=1, metavar="N", help="runs of each side, in turn (1)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="results file (benchmarks/results/epochs-DATE.json)")
    options = parser.parse_args(arguments)
    for name in ("epochs", "steps", "repeat", "synthetic"):
        value = getattr(options, name)
        if value is not None and value < 1:
            parser.error(f"--{name} must be at least 1, got {value}")
    asked = {
        "task": options.task,
        "epochs": options.epochs or {"imdb": 10, "jena": 20}[options.task],
        "steps": options.steps,
        "data_dir": options.data_dir,
        "source": "synthetic" if options.synthetic else "auto",
        "reviews": options.synthetic,
        "threads": torch.get_num_threads(),
    }
    load, records = round(os.getloadavg()[0], 2), []
    sides = options.side or SIDES[options.task]
    if unknown := [side for side in sides if side not in SIDES[options.task]]:
        parser.error(f"--side must be one of {', '.join(SIDES[options.task])} for {options.task}, got {unknown[0]}")
    skipped = {side: reason for side in sides if (reason := unavailable(side))}
    for side in [side for side in sides if side not in skipped] * options.repeat:
        print(f"benchmarks: {side}: training", flush=True)
        try:
            records.append(run({"side": side, **asked}))
        except Failed as error:
            print(f"benchmarks: {error}", file=sys.stderr)
            return 1
    created = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    about = {"created": created, "load": load, "environment": describe()}
    found = {**about, **asked, "records": records, "skipped": skipped}
    path = options.out or results.default_path("epochs" if options.task == "imdb" else f"epochs-{options.task}")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(found, indent=1, allow_nan=False) + "\n")
    write_text(path.with_suffix(".md"), markdown(found))
    print(f"\n{table(found, 'simple')}")
    for side, reason in skipped.items():
        print(f"left out: {side}: {reason}")
    print(f"written: {path}\nwritten: {path.with_suffix('.md')}")
    return 0


def unavailable(side: str) -> str | None:
    """Return why a side cannot take part, or ``None``."""
    return None if side in BACKENDS or side == LOADER else missing(PEERS[side].packages)


def run(asked: Mapping[str, Any]) -> dict[str, Any]:
    """Return a side's record from a process of its own, with the ``process_seconds`` from its start to its end."""
    began = time.perf_counter()
    with worker_of(asked["side"], asked["threads"]) as worker:
        record: dict[str, Any] = worker.ask("benchmarks.epochs:train", patience=float("inf"), asked=asked)
    return {**record, "process_seconds": time.perf_counter() - began}


def table(found: Mapping[str, Any], style: str) -> str:
    """Return a line for each side: medians of its runs."""
    sides: dict[str, list[Mapping[str, Any]]] = {}
    for one in found["records"]:
        sides.setdefault(one["side"], []).append(one)

    def median(side: str, quantity: str) -> float:
        return statistics.median(one[quantity] for one in sides[side])

    figures = ("validation", "best_validation", "test")
    lines = [
        (
            side,
            f"{median(side, 'seconds'):.1f}",
            f"{median(side, 'seconds') / median('seqconv', 'seconds'):.2f}" if "seqconv" in sides else "",
            f"{median(side, 'load_seconds'):.1f}",
            f"{statistics.median(second for one in runs for second in one['epoch_seconds']):.2f}",
            *(f"{median(side, name):.4f}" for name in figures),
        )
        for side, runs in sides.items()
    ]
    return tabulate(lines, HEADERS, style)


def markdown(found: Mapping[str, Any]) -> str:
    """Return the table as Markdown, with what was trained on what machine."""
    data = ", ".join(dict.fromkeys(one["data"] for one in found["records"]))
    steps = "all steps" if found["steps"] is None else f"{found['steps']} steps each"
    skipped = "; ".join(f"{side}: {reason}" for side, reason in found["skipped"].items())
    parts = [
        f"# {found['task']} training, {found['epochs']} epochs, {steps}, {data}",
        f"{one_line(found['environment'])}; load {found['load']}; {found['created']}",
        table(found, "github"),
        f"{METRICS[found['task']]} of the last epoch and, for validation, of the best; the test is not timed.",
        f"Left out: {skipped}" if skipped else "",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def train(asked: dict[str, Any]) -> dict[str, Any]:
    """Return a side's seconds and accuracies, in the process that does nothing else.

    ``asked``: ``task``, ``side``, ``epochs``, ``steps`` of an epoch (``None`` for all), ``data_dir``, ``source``, the
    ``reviews`` to make up, ``threads``.
    """
    torch.set_num_threads(asked["threads"])
    return (on_torch if asked["side"] in BACKENDS else on_loader if asked["side"] == LOADER else on_keras)(asked)


def task_of(asked: dict[str, Any]) -> Any:
    """Return the notebook's task with its data loaded."""
    from seqconv.experiments import PRESETS, load_task

    settings = replace(PRESETS["notebook"][asked["task"]], epochs=asked["epochs"])
    if asked["steps"] is not None or asked["task"] == "imdb":
        settings = replace(settings, steps_per_epoch=asked["steps"])
    if asked["source"] == "synthetic" and asked["task"] == "imdb":
        settings = replace(settings, sizes=(asked["reviews"], asked["reviews"] // 5))
    return load_task(asked["task"], settings=settings, data_dir=asked["data_dir"], source=asked["source"])


def on_torch(asked: dict[str, Any]) -> dict[str, Any]:
    """Train seqconv's model on a backend, as ``seqconv train`` does."""
    from seqconv import models
    from seqconv.training import evaluate, fit, rmsprop, seed_everything

    began = time.perf_counter()
    task = task_of(asked)
    loaded = time.perf_counter()
    seed_everything(0)
    entry, settings = task.entries["convnet"], task.settings
    model = models.initialise(entry.build(BACKENDS[asked["side"]]))
    history = fit(
        model,
        task.train(),
        loss=task.loss,
        optimizer=rmsprop(model.parameters(), entry.learning_rate),
        epochs=settings.epochs,
        validation=task.validation,
        steps_per_epoch=settings.steps_per_epoch,
        metrics=[task.metric],
        progress=False,
    )
    figures = [one[f"val_{task.metric.name}"] for one in history.records]
    seconds = [one["seconds"] for one in history.records]

    def test() -> float:
        return float(evaluate(model, task.test, loss=task.loss, metrics=[task.metric])[task.metric.name])

    return record(asked, task, (began, loaded), figures, seconds, test)


class IndexedWindows(torch.utils.data.Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """The windows of a task's loader as most people write them: one index, one window ``(C, L)`` and its target."""

    def __init__(self, loader: Any) -> None:
        self.series, self.length, self.step = loader.series_tensor(), loader.length, loader.step
        starts, targets = zip(*loader.by_starts(2**16), strict=True)
        self.starts, self.targets = [int(one) for some in starts for one in some], torch.cat(targets)

    def __len__(self) -> int:
        """Return the number of windows."""
        return len(self.starts)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return a window and its target."""
        start = self.starts[index]
        window = self.series[start : start + (self.length - 1) * self.step + 1 : self.step]
        return window.T, self.targets[index]


def on_loader(asked: dict[str, Any]) -> dict[str, Any]:
    """Train the convnet in plain torch: its layers, its RMSprop, its DataLoader in the same process."""
    import itertools

    from benchmarks.models import jena_convnet
    from seqconv.models import initialise

    began = time.perf_counter()
    task = task_of(asked)
    loaded = time.perf_counter()
    torch.manual_seed(0)
    settings, model = task.settings, initialise(jena_convnet(14))
    optimizer = torch.optim.RMSprop(model.parameters(), task.entries["convnet"].learning_rate, alpha=0.9, eps=1e-7)
    size = settings.batch_size
    train = torch.utils.data.DataLoader(IndexedWindows(task.train()), size, shuffle=True)
    validation = torch.utils.data.DataLoader(IndexedWindows(task.validation), size)

    def batches() -> Iterator[Any]:
        while True:
            yield from train

    def judged(loader: Any) -> float:
        model.eval()
        with torch.no_grad():
            errors = [(model(windows).squeeze(1) - targets).abs() for windows, targets in loader]
        model.train()
        return float(torch.cat(errors).mean())

    endless, figures, seconds = batches(), [], []
    for _ in range(settings.epochs):
        start = time.perf_counter()
        for windows, targets in itertools.islice(endless, settings.steps_per_epoch or len(train)):
            optimizer.zero_grad(set_to_none=True)
            task.loss(model(windows).squeeze(1), targets).backward()
            optimizer.step()
        figures.append(judged(validation))
        seconds.append(time.perf_counter() - start)

    def test() -> float:
        return judged(torch.utils.data.DataLoader(IndexedWindows(task.test), size))

    return record(asked, task, (began, loaded), figures, seconds, test)


def on_keras(asked: dict[str, Any]) -> dict[str, Any]:
    """Train Keras' model by its own ``fit``, on arrays from the same loader."""
    import keras

    from benchmarks.frameworks import keras_model, limit_tensorflow, optimizer

    if keras.backend.backend() == "tensorflow":
        limit_tensorflow(asked["threads"])
    ends: list[float] = []

    class Clock(keras.callbacks.Callback):  # type: ignore[misc, name-defined, unused-ignore]
        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:  # noqa: ARG002
            ends.append(time.perf_counter())

    began = time.perf_counter()
    task = task_of(asked)
    loaded = time.perf_counter()
    keras.utils.set_random_seed(0)
    size, steps = task.settings.batch_size, task.settings.steps_per_epoch
    train, validation, test = ((one.inputs, one.targets) for one in (task.train(), task.validation, task.test))
    (inputs, targets), held_out, last = ((part[0].numpy(), part[1].numpy()) for part in (train, validation, test))
    kept = None if steps is None else steps * size
    model = keras_model("imdb_convnet", WORDS, inputs.shape[1])
    model.compile(
        optimizer=optimizer(task.entries["convnet"].learning_rate),
        loss=keras.losses.BinaryCrossentropy(from_logits=True),
        metrics=[keras.metrics.BinaryAccuracy(name="accuracy", threshold=0.0)],
    )
    history = model.fit(
        inputs[:kept],
        targets[:kept],
        batch_size=size,
        epochs=task.settings.epochs,
        validation_data=held_out,
        verbose=0,
        callbacks=[Clock()],
    ).history
    seconds = [after - before for before, after in zip([loaded, *ends], ends, strict=False)]

    def tested() -> float:
        return float(model.evaluate(*last, batch_size=size, verbose=0, return_dict=True)["accuracy"])

    return record(asked, task, (began, loaded), history["val_accuracy"], seconds, tested)


def record(
    asked: dict[str, Any],
    task: Any,
    times: tuple[float, float],
    figures: list[float],
    epochs: list[float],
    test: Callable[[], float],
) -> dict[str, Any]:
    """Return what a side reached; called when it has trained, so that the clock stops here, before the test."""
    ended = time.perf_counter()
    began, loaded = times
    best = (max if task.metric.larger_is_better else min)(range(len(figures)), key=figures.__getitem__)
    return {
        "side": asked["side"],
        "data": task.origin,
        "seconds": ended - began,
        "load_seconds": loaded - began,
        "epoch_seconds": epochs,
        "validation": float(figures[-1]),
        "best_validation": float(figures[best]),
        "best_epoch": best + 1,
        "test": test(),
    }


if __name__ == "__main__":
    sys.exit(main())
