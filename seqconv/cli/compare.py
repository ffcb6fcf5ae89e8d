"""``seqconv compare``: train a task's models, their rivals and baselines, and put them into one table."""

from __future__ import annotations

import argparse
import json
import sys

from seqconv.cli import options
from seqconv.cli.torchrun import world_size

__all__ = ["add_parser"]

EXAMPLES = """  seqconv compare all
  seqconv compare imdb --preset notebook --data-dir ~/data --out runs/imdb
  seqconv compare jena --models convnet,gru --json
"""


def add_parser(commands: options.Commands) -> None:
    """Add the command."""
    command = options.add_command(commands, "compare", "train a task's models and compare them in one table", EXAMPLES)
    command.add_argument("task", choices=(*options.TASKS, "all"), help="what to compare on")
    command.add_argument("--models", metavar="A,B,...", help="only these models (default: all of the task)")
    options.add_data_options(command)
    options.add_training_options(command)
    command.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Compare, print one table a task and write the reports."""
    from seqconv import environment
    from seqconv.experiments import compare, load_task, report

    if world_size() > 1:
        raise ValueError(f"compare runs in one process, got WORLD_SIZE={world_size()}; seqconv train runs in several")
    folder = options.output_folder(arguments)
    names = None if arguments.models is None else arguments.models.split(",")
    tasks = options.TASKS if arguments.task == "all" else (arguments.task,)
    if names is not None and len(tasks) > 1:
        raise ValueError(f"--models goes with one task, {' or '.join(options.TASKS)}, got all")
    # All tasks are loaded first, so that missing data do not show only after hours of training.
    loaded = [
        load_task(
            name,
            settings=options.settings_from(arguments, name),
            data_dir=arguments.data_dir,
            source=arguments.source,
            seed=arguments.seed,
            csv=options.csv_from(arguments),
        )
        for name in tasks
    ]
    results = []
    for task in loaded:
        if not arguments.quiet:
            print(f"{task.title}\ndata: {task.source}", file=sys.stderr)
        outcomes = compare(
            task,
            folder / task.name,
            names=names,
            backend=arguments.backend,
            resume=arguments.resume,
            progress=not arguments.quiet,
            seed=arguments.seed,
        )
        written = report.write_report(task, outcomes, folder / task.name)
        results.append(report.as_json(task, outcomes) | {"files": [str(path) for path in written]})
        if not arguments.json:
            print(f"\n{task.title} ({task.origin}: {task.source})\n\n{report.table(task, outcomes)}\n")
    if arguments.json:
        print(json.dumps(results, indent=2))
    else:
        print(f"{environment.one_line(results[0]['environment'])}\nreports, plots and checkpoints: {folder}")
    return 0
