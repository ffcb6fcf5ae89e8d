"""``seqconv train``: train one model, resumably."""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from seqconv.cli import options
from seqconv.cli.torchrun import process_group

if TYPE_CHECKING:
    from seqconv.experiments import Task
    from seqconv.training import History

__all__ = ["add_parser"]

EXAMPLES = """  seqconv train imdb --model convnet
  seqconv train jena --model conv_gru --preset notebook --patience 3 --out runs/hybrid
  seqconv train jena --model conv_gru --preset notebook --patience 3 --out runs/hybrid --resume
  seqconv train imdb --learning-rate 3e-4 --clip-norm 1 --schedule CosineAnnealingLR T_max=10 eta_min=1e-5
  seqconv train jena --csv station.csv --date-column date --target "T (degC)"
  torchrun --nproc-per-node 2 --no-python seqconv train jena --preset notebook   (two processes share each batch)
"""


def add_parser(commands: options.Commands) -> None:
    """Add the command."""
    command = options.add_command(commands, "train", "train one model, with checkpoints to resume from", EXAMPLES)
    command.add_argument("task", choices=options.TASKS, help="what to train on")
    command.add_argument(
        "--model", default="convnet", metavar="NAME", help="one of the task's models (default convnet)"
    )
    command.add_argument(
        "--patience", type=int, metavar="N", help="stop after N epochs without a better validation metric"
    )
    options.add_data_options(command)
    options.add_training_options(command)
    options.add_optimizer_options(command)
    command.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Train, judge the best epoch's weights on validation and test data, and print the history.

    Under ``torchrun`` its processes do that together, and the first one prints.
    """
    with process_group() as ranks:
        arguments.quiet = arguments.quiet or not ranks.is_main
        folder = ranks.gather(options.output_folder(arguments))[0]  # a new one is named by the time
        task, history, scores = train(arguments, folder)
    if ranks.is_main:
        show(arguments, folder, task, history, scores)
    return 0


def train(arguments: argparse.Namespace, folder: Path) -> tuple[Task, History | None, dict[str, float]]:
    """Return the task, the history, ``None`` where there is nothing to train, and the metric by part of the data."""
    from seqconv.experiments import load_task
    from seqconv.experiments.comparison import train_model

    task = load_task(
        arguments.task,
        settings=options.settings_from(arguments, arguments.task),
        data_dir=arguments.data_dir,
        source=arguments.source,
        seed=arguments.seed,
        csv=options.csv_from(arguments),
    )
    if not arguments.quiet:
        print(f"{task.title}\ndata: {task.source}", file=sys.stderr)
    _, history, scores = train_model(
        task,
        arguments.model,
        folder,
        backend=arguments.backend,
        resume=arguments.resume,
        progress=not arguments.quiet,
        seed=arguments.seed,
        patience=arguments.patience,
        learning_rate=arguments.learning_rate,
        schedule=options.schedule_from(arguments),
        schedule_every=arguments.schedule_every,
        clip_norm=arguments.clip_norm,
        clip_value=arguments.clip_value,
    )
    return task, history, scores


def show(
    arguments: argparse.Namespace, folder: Path, task: Task, history: History | None, scores: dict[str, float]
) -> None:
    """Print the results."""
    if arguments.json:
        result = {
            "task": task.name,
            "model": arguments.model,
            "data": task.source,
            "synthetic": task.synthetic,
            "metric": task.metric.name,
            **scores,
            "best_epoch": history and history.best_epoch,
            "history": [] if history is None else [_without_nan(record) for record in history.records],
            "folder": str(folder),
        }
        print(json.dumps(result, indent=2))
        return
    if history is not None:
        print(history.frame.to_string(index=False))
    metric = task.metric.name.replace("_", " ")
    for part, value in scores.items():
        units = "" if task.in_units is None else f" ({task.in_units(value):.2f} {task.units})"
        print(f"{part} {metric}: {value:.4f}{units} ({task.origin})")
    if history is not None:
        print(f"checkpoints, history and plot: {folder}")


def _without_nan(record: dict[str, float]) -> dict[str, float | None]:
    """Return the record as JSON can hold it: an epoch resumed in its validation has no time per step."""
    return {name: None if math.isnan(value) else value for name, value in record.items()}
