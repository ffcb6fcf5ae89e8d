"""The notebook's IMDB training as a whole, wall clock, data loading included: ``python -m benchmarks.epochs``.

The convnet on 20,000 reviews of 500 words, batches of 128, RMSprop, validated on 5,000 after each of ten epochs:
seqconv, the same model on torch's own operations, and Keras as far as it is installed (``seqconv[peers]``). Each side
runs in a process of its own, one after the other, with as many threads. Keras 3 adds RMSprop's epsilon inside the root
and so learns more slowly, see :func:`seqconv.training.rmsprop`; a step costs the same either way.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate

from benchmarks import results
from benchmarks.epochs_side import SIDES, unavailable
from benchmarks.peers import PEERS
from seqconv.environment import describe, one_line
from seqconv.files import write_text

__all__ = ["main", "markdown", "table"]

ROOT = Path(__file__).resolve().parent.parent
HEADERS = ("side", "seconds", "times as long as seqconv", "of it loading", "s per epoch", "validation", "best", "test")


def main(arguments: Sequence[str] | None = None) -> int:
    """Train every side that can, print the table and write it with a results file; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.epochs", description=__doc__)
    parser.add_argument("--epochs", type=int, default=10, metavar="N", help="epochs to train (10)")
    parser.add_argument("--steps", type=int, metavar="N", help="steps of an epoch, for a trial (all)")
    parser.add_argument("--side", action="append", choices=SIDES, help="this side alone (may be repeated)")
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
        "epochs": options.epochs,
        "steps": options.steps,
        "data_dir": options.data_dir,
        "source": "synthetic" if options.synthetic else "auto",
        "reviews": options.synthetic,
        "threads": torch.get_num_threads(),
    }
    load, records, skipped = round(os.getloadavg()[0], 2), [], {}
    for _ in range(options.repeat):
        for side in options.side or SIDES:
            if reason := unavailable(side):
                skipped[side] = reason
                continue
            print(f"benchmarks: {side}: training", flush=True)
            try:
                records.append(run({"side": side, **asked}))
            except RuntimeError as error:
                print(f"benchmarks: {error}", file=sys.stderr)
                return 1
    found = {
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "load": load,
        "environment": describe(),
        **asked,
        "records": records,
        "skipped": skipped,
    }
    path = options.out or results.default_path("epochs")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(found, indent=1, allow_nan=False) + "\n")
    write_text(path.with_suffix(".md"), markdown(found))
    print(f"\n{table(found, 'simple')}")
    for side, reason in skipped.items():
        print(f"left out: {side}: {reason}")
    print(f"written: {path}\nwritten: {path.with_suffix('.md')}")
    return 0


def run(asked: Mapping[str, Any]) -> dict[str, Any]:
    """Return a side's record from a process of its own, with the ``process_seconds`` from its start to its end."""
    side = asked["side"]
    environment = os.environ | dict(PEERS[side].environment if side in PEERS else ())
    began = time.perf_counter()
    process = subprocess.run(
        [sys.executable, "-m", "benchmarks.epochs_side"],
        input=json.dumps(asked) + "\n",
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=environment,
        check=False,
    )
    if process.returncode:
        raise RuntimeError(f"{side} failed in its process:\n{process.stderr[-4000:]}")
    record: dict[str, Any] = json.loads(process.stdout.splitlines()[-1])
    return {**record, "process_seconds": time.perf_counter() - began}


def table(found: Mapping[str, Any], style: str) -> str:
    """Return a line for each side: medians of its runs."""
    sides = list(dict.fromkeys(one["side"] for one in found["records"]))
    ours = median(found, "seqconv", "seconds") if "seqconv" in sides else None
    lines = []
    for side in sides:
        seconds = median(found, side, "seconds")
        epochs = [one for each in runs(found, side) for one in each["epoch_seconds"]]
        lines.append(
            (
                side,
                f"{seconds:.1f}",
                f"{seconds / ours:.2f}" if ours else "",
                f"{median(found, side, 'load_seconds'):.1f}",
                f"{statistics.median(epochs):.2f}",
                *(
                    f"{median(found, side, name):.4f}"
                    for name in ("validation_accuracy", "best_validation_accuracy", "test_accuracy")
                ),
            )
        )
    return tabulate(lines, HEADERS, tablefmt=style, disable_numparse=True)


def runs(found: Mapping[str, Any], side: str) -> list[Mapping[str, Any]]:
    """Return the records of a side."""
    return [one for one in found["records"] if one["side"] == side]


def median(found: Mapping[str, Any], side: str, quantity: str) -> float:
    """Return the median of a side's runs."""
    return statistics.median(one[quantity] for one in runs(found, side))


def markdown(found: Mapping[str, Any]) -> str:
    """Return the table as Markdown, with what was trained on what machine."""
    data = ", ".join(dict.fromkeys(one["data"] for one in found["records"]))
    steps = "all steps" if found["steps"] is None else f"{found['steps']} steps each"
    skipped = "; ".join(f"{side}: {reason}" for side, reason in found["skipped"].items())
    parts = [
        f"# IMDB training, {found['epochs']} epochs, {steps}, {data}",
        f"{one_line(found['environment'])}; load {found['load']}; {found['created']}",
        table(found, "github"),
        "Accuracies are those of the last epoch and, for validation, of the best; the test is not timed.",
        f"Left out: {skipped}" if skipped else "",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


if __name__ == "__main__":
    sys.exit(main())
