"""The report of a comparison: one table for the terminal, as Markdown, CSV and JSON, and a plot."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from seqconv import environment
from seqconv.experiments.comparison import Outcome
from seqconv.experiments.task import Task
from seqconv.files import atomic_write, write_text

__all__ = ["as_json", "table", "write_report"]


def table(task: Task, outcomes: Sequence[Outcome], style: str = "simple") -> str:
    """Return the outcomes as a table in one of tabulate's styles (``"github"`` is Markdown)."""
    from tabulate import tabulate

    rows = [_row(task, outcome) for outcome in outcomes]
    aligned = ("left", "left", *["right"] * (len(rows[0]) - 2))
    text: str = tabulate(rows, headers="keys", tablefmt=style, disable_numparse=True, colalign=aligned)
    return text


def as_json(task: Task, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Return the outcomes, what they were measured on and the settings, as a dictionary that JSON can hold."""
    return {
        "task": task.name,
        "title": task.title,
        "data": task.source,
        "synthetic": task.synthetic,
        "metric": task.metric.name,
        "units": task.units,
        "rival": task.rival,
        "settings": asdict(task.settings),
        "environment": environment.describe(),
        "outcomes": [asdict(outcome) for outcome in outcomes],
    }


def write_report(task: Task, outcomes: Sequence[Outcome], folder: Path) -> list[Path]:
    """Write ``compare.md``, ``compare.csv``, ``compare.json`` and ``compare.png`` to ``folder``; return their paths."""
    import pandas as pd

    report = as_json(task, outcomes)
    paths = [folder / f"compare.{suffix}" for suffix in ("md", "csv", "json", "png")]
    write_text(paths[0], markdown(task, outcomes, report["environment"]))
    with atomic_write(paths[1]) as temporary:
        frame = pd.DataFrame([asdict(outcome) for outcome in outcomes])
        measured_on = environment.one_line(report["environment"])
        frame.assign(task=task.name, data=task.source, measured_on=measured_on).to_csv(temporary, index=False)
    write_text(paths[2], json.dumps(report, indent=2) + "\n")
    plot(task, outcomes, paths[3])
    return paths


def markdown(task: Task, outcomes: Sequence[Outcome], measured_on: dict[str, Any]) -> str:
    """Return the report as Markdown: title, table and what it was measured on."""
    settings = task.settings
    steps = "one pass" if settings.steps_per_epoch is None else f"{settings.steps_per_epoch} steps"
    return (
        f"## {task.title} ({task.origin})\n\n{table(task, outcomes, 'github')}\n\n"
        f"Data: {task.source}. {settings.epochs} epochs of {steps}, batches of {settings.batch_size}; figures are "
        f"those of the best epoch. A step is forward, loss, backward and optimizer on one batch, models in turn; "
        f"speed is against {task.rival} on torch's operations or on the backend, whichever is faster.\n\n"
        f"Machine: {environment.one_line(measured_on)}.\n"
    )


def plot(task: Task, outcomes: Sequence[Outcome], path: Path) -> None:
    """Write the picture of a comparison."""
    with atomic_write(path) as temporary:
        figure(task, outcomes).savefig(temporary, dpi=120)


def figure(task: Task, outcomes: Sequence[Outcome]) -> Any:
    """Draw test metric over milliseconds per step, one point a model, untrained baselines as lines."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogFormatter

    picture = Figure(figsize=(8, 4.5), layout="constrained")
    FigureCanvasAgg(picture)
    axes = picture.subplots()
    for number, outcome in enumerate(outcomes):
        if outcome.ms_per_step is None:
            axes.axhline(outcome.test, linestyle="--", color="grey", label=outcome.model)
        else:
            axes.plot(outcome.ms_per_step, outcome.test, "o", color=f"C{number}", label=outcome.model)
    picture.legend(loc="outside right center")  # names at the points would cover each other where two are close
    axes.margins(x=0.25, y=0.15)
    axes.set_xscale("log")
    for which in (axes.xaxis.set_major_formatter, axes.xaxis.set_minor_formatter):
        which(LogFormatter(minor_thresholds=(2, 0.5)))
    axes.set_xlabel("milliseconds per training step (log)")
    axes.set_ylabel(f"test {task.metric.name.replace('_', ' ')}")
    picture.suptitle(f"{task.title}\n({task.origin})", fontsize=10)  # above the legend too, however long it is
    return picture


def _row(task: Task, outcome: Outcome) -> dict[str, str]:
    row = {
        "model": outcome.model,
        "backend": outcome.backend,
        "parameters": f"{outcome.parameters:,}",
        "validation": f"{outcome.validation:.4f}",
        "test": f"{outcome.test:.4f}",
    }
    if task.units is not None:
        row[f"test, {task.units}"] = _number(outcome.test_in_units, ".2f")
    return row | {
        "best epoch": _number(outcome.best_epoch, "d"),
        "ms per step": _number(outcome.ms_per_step, ".2f"),
        "s per epoch": _number(outcome.seconds_per_epoch, ".1f"),
        "speed": _number(outcome.speed, ".2f") + ("x" if outcome.speed is not None else ""),
    }


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
