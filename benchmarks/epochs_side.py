"""One side of :mod:`benchmarks.epochs`, in a process of its own: reads a line of JSON, prints a line of JSON.

The clock starts when all is imported and stops after the last epoch: reading the reviews, padding them, building and
compiling the model, training, and validating after each epoch. The test comes after it.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from benchmarks.peers import PEERS, missing
from benchmarks.peers.worker import limit_cores

__all__ = ["SIDES", "run", "unavailable"]

# Two are torch with seqconv's layers on a backend, the others are peers.
BACKENDS = {"seqconv": "auto", "torch": "reference"}
WORDS = 10_000  # the most frequent ones, as the notebook and its task here keep
SIDES = (*BACKENDS, "Keras, TensorFlow", "Keras, JAX")


def unavailable(side: str) -> str | None:
    """Return why a side cannot take part, or ``None``."""
    return None if side in BACKENDS else missing(PEERS[side].packages)


def main() -> None:
    """Run the side that is asked for, with standard output for the answer alone."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    print(json.dumps(run(json.loads(sys.stdin.readline()))), file=answers, flush=True)


def run(asked: dict[str, Any]) -> dict[str, Any]:
    """Return a side's seconds and accuracies.

    ``asked``: ``side``, ``epochs``, ``steps`` of an epoch (``None`` for all), ``data_dir``, ``source``, the ``reviews``
    to make up, ``threads``.
    """
    limit_cores(asked["threads"])
    import torch

    torch.set_num_threads(asked["threads"])
    return (on_torch if asked["side"] in BACKENDS else on_keras)(asked)


def task_of(asked: dict[str, Any]) -> Any:
    """Return the notebook's task with its data loaded."""
    from seqconv.experiments import PRESETS, load_task

    settings = replace(PRESETS["notebook"]["imdb"], epochs=asked["epochs"], steps_per_epoch=asked["steps"])
    if asked["source"] == "synthetic":
        settings = replace(settings, sizes=(asked["reviews"], asked["reviews"] // 5))
    return load_task("imdb", settings=settings, data_dir=asked["data_dir"], source=asked["source"])


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
    accuracies = [one[f"val_{task.metric.name}"] for one in history.records]
    seconds = [one["seconds"] for one in history.records]

    def test() -> float:
        return float(evaluate(model, task.test, loss=task.loss, metrics=[task.metric])[task.metric.name])

    return record(asked, task, (began, loaded), accuracies, seconds, test)


def on_keras(asked: dict[str, Any]) -> dict[str, Any]:
    """Train Keras' model by its own ``fit``, on arrays from the same loader."""
    import keras

    from benchmarks.peers.keras_peer import imdb_convnet, limit_tensorflow, optimizer

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
    entry = task.entries["convnet"]
    model = imdb_convnet(WORDS, inputs.shape[1])
    model.compile(
        optimizer=optimizer(entry.learning_rate),
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
    accuracies: list[float],
    epochs: list[float],
    test: Callable[[], float],
) -> dict[str, Any]:
    """Return what a side reached; called when it has trained, so that the clock stops here, before the test."""
    ended = time.perf_counter()
    began, loaded = times
    best = max(range(len(accuracies)), key=accuracies.__getitem__)
    return {
        "side": asked["side"],
        "data": task.origin,
        "seconds": ended - began,
        "load_seconds": loaded - began,
        "epoch_seconds": epochs,
        "validation_accuracy": float(accuracies[-1]),
        "best_validation_accuracy": float(accuracies[best]),
        "best_epoch": best + 1,
        "test_accuracy": test(),
    }


if __name__ == "__main__":
    main()
