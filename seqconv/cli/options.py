"""Options that several commands share."""

from __future__ import annotations

import argparse
import ast
from datetime import datetime
from pathlib import Path
from typing import Any

__all__ = [
    "Commands",
    "add_command",
    "add_data_options",
    "add_optimizer_options",
    "add_training_options",
    "csv_from",
    "output_folder",
    "schedule_from",
    "settings_from",
]

Commands = Any  # argparse keeps the type of add_subparsers' result to itself

TASKS = ("imdb", "jena")


def add_command(commands: Commands, name: str, summary: str, examples: str) -> argparse.ArgumentParser:
    """Add a subcommand with its examples under its help."""
    command: argparse.ArgumentParser = commands.add_parser(
        name,
        help=summary,
        description=summary,
        epilog=f"examples:\n{examples}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    return command


def add_data_options(command: argparse.ArgumentParser) -> None:
    """Add the options that say which data are read."""
    command.add_argument(
        "--data-dir",
        type=Path,
        metavar="FOLDER",
        help="folder that holds the real data (else the one that SEQCONV_DATA names, else the download cache)",
    )
    command.add_argument(
        "--source",
        choices=("auto", "real", "synthetic"),
        default="auto",
        help="auto: real data where they are at hand, else the synthetic stand-in (default); the others insist",
    )

    command.add_argument(
        "--csv", type=Path, metavar="FILE", help="a CSV of measurements of your own, or its zip, for the task jena"
    )
    for name, (metavar, meaning) in CSV_OPTIONS.items():
        command.add_argument(f"--{name}", metavar=metavar, help=f"with --csv: {meaning}")
    command.add_argument(
        "--columns", nargs="+", metavar="NAME", help="with --csv: the measurements (default: all but the date)"
    )


CSV_OPTIONS = {
    "target": ("NAME", "the column to predict"),
    "date-column": ("NAME", "the column of the dates (default: the first)"),
    "date-format": ("FORMAT", "of the dates, %%d/%%m/%%Y %%H:%%M for one (default: found out)"),
    "encoding": ("NAME", "the file's encoding (default: UTF-8 where it is that, else Latin-1)"),
    "separator": ("C", "what stands between two cells (default: a comma)"),
    "decimal": ("C", "the decimal point (default: .)"),
}


def csv_from(arguments: argparse.Namespace) -> dict[str, Any] | None:
    """Return the arguments of ``load_csv``, ``None`` where no CSV file was named."""
    names = [name.replace("-", "_") for name in (*CSV_OPTIONS, "columns")]
    given = {name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None}
    if arguments.csv is None:
        if given:
            raise ValueError(f"--{next(iter(given)).replace('_', '-')} goes with --csv FILE")
        return None
    if arguments.task != "jena":
        raise ValueError(f"--csv goes with the task jena, got {arguments.task}")
    if "target" not in given:
        raise ValueError("--csv goes with --target NAME, the column to predict")
    if arguments.data_dir is not None or arguments.source == "synthetic":
        raise ValueError("--csv names the data by itself: leave out --data-dir and --source")
    return {"path": arguments.csv, **given}


def add_training_options(command: argparse.ArgumentParser) -> None:
    """Add the options that say how, for how long, and where to."""
    command.add_argument(
        "--preset",
        choices=("quick", "notebook"),
        default="quick",
        help="quick: minutes on a small CPU (default); notebook: the notebook's epochs and steps",
    )
    for name, unit in (
        ("epochs", "epochs"),
        ("steps-per-epoch", "training batches in an epoch"),
        ("validation-steps", "batches of a validation where a model does not slide over all windows"),
        ("batch-size", "samples in a batch"),
    ):
        command.add_argument(f"--{name}", type=_positive, metavar="N", help=f"{unit}, instead of the preset's")
    command.add_argument(
        "--backend",
        choices=("auto", "triton", "numba", "reference"),
        default="auto",
        help="which kernels serve; one named must serve (default: auto, or the one that SEQCONV_BACKEND names)",
    )
    command.add_argument("--seed", type=int, default=0, metavar="N", help="seed of weights and batches (default 0)")
    command.add_argument("--threads", type=_positive, metavar="N", help="threads that torch and the kernels use")
    command.add_argument(
        "--out", type=Path, metavar="FOLDER", help="folder for results and checkpoints (default: a new one in runs/)"
    )
    command.add_argument("--resume", action="store_true", help="go on with the run that stands in --out")
    command.add_argument("--json", action="store_true", help="print the results as JSON instead of a table")
    command.add_argument("--quiet", action="store_true", help="no progress on stderr")


def add_optimizer_options(command: argparse.ArgumentParser) -> None:
    """Add the options that say how far each step goes. A run is resumed with the same ones."""
    for name, meaning in (
        ("learning-rate", "learning rate, at the start where there is a schedule (default: the model's)"),
        ("clip-norm", "bring all gradients together to a 2-norm of at most X"),
        ("clip-value", "bring each element of a gradient into -X .. X"),
    ):
        command.add_argument(f"--{name}", type=float, metavar="X", help=meaning)
    command.add_argument(
        "--schedule",
        nargs="+",
        metavar=("NAME", "KEY=VALUE"),
        help="one of torch.optim.lr_scheduler with its arguments, StepLR step_size=2 gamma=0.5 for one",
    )
    command.add_argument(
        "--schedule-every",
        choices=("epoch", "step"),
        default="epoch",
        help="when the schedule moves on (default: after each epoch)",
    )


def schedule_from(arguments: argparse.Namespace) -> tuple[str, dict[str, Any]] | None:
    """Return the schedule's name and arguments, ``None`` where none was asked for."""
    if arguments.schedule is None:
        return None
    name, *pairs = arguments.schedule
    given = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals:
            raise ValueError(f"--schedule takes a name and then KEY=VALUE, got {pair!r}")
        try:
            given[key] = ast.literal_eval(text)
        except (SyntaxError, ValueError):
            given[key] = text  # a word, such as linear
    return name, given


def output_folder(arguments: argparse.Namespace) -> Path:
    """Return the folder to write to, and set the number of threads asked for."""
    if arguments.threads is not None:
        import torch

        torch.set_num_threads(arguments.threads)
    if arguments.out is not None:
        return Path(arguments.out)
    if arguments.resume:
        raise ValueError("--resume needs --out, the folder of the run to go on with")
    return Path("runs") / datetime.now().strftime("%Y%m%d-%H%M%S")


def settings_from(arguments: argparse.Namespace, task: str) -> Any:
    """Return the preset's settings for ``task`` with the options given on the command line."""
    from seqconv.experiments import PRESETS

    return PRESETS[arguments.preset][task].with_options(
        arguments.epochs, arguments.steps_per_epoch, arguments.validation_steps, arguments.batch_size
    )


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value
