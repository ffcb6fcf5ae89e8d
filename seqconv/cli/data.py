"""``seqconv data``: fetch, verify and describe the data sets."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from typing import Any

from seqconv.cli import options

__all__ = ["add_parser"]

EXAMPLES = """  seqconv data fetch all
  seqconv data verify imdb --data-dir ~/data
  seqconv data describe jena
  seqconv data describe jena --csv station.csv --target "T (degC)"
"""


def add_parser(commands: options.Commands) -> None:
    """Add the command."""
    command = options.add_command(commands, "data", "fetch, verify or describe the data sets", EXAMPLES)
    command.add_argument(
        "action",
        choices=("fetch", "verify", "describe"),
        help="fetch: download into the cache; verify: compare checksums; describe: sizes, splits and flaws",
    )
    command.add_argument("task", choices=(*options.TASKS, "all"), help="which data set")
    options.add_data_options(command)
    command.add_argument("--json", action="store_true", help="print JSON")
    command.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Do the action on each data set; 1 if a file is not the one it should be."""
    actions: dict[str, Callable[[argparse.Namespace, str], dict[str, Any]]] = {
        "fetch": fetch,
        "verify": verify,
        "describe": describe,
    }
    if arguments.csv is not None and arguments.action != "describe":
        raise ValueError(f"--csv goes with describe, got {arguments.action}")
    tasks = options.TASKS if arguments.task == "all" else (arguments.task,)
    results = [actions[arguments.action](arguments, name) for name in tasks]
    if arguments.json:
        print(json.dumps(results, indent=2))
    else:
        print("\n\n".join("\n".join(f"{key}: {_text(value)}" for key, value in one.items()) for one in results))
    return 1 if any(one.get("status") == "changed" for one in results) else 0


def fetch(arguments: argparse.Namespace, name: str) -> dict[str, Any]:
    """Download the data set unless it is there."""
    from seqconv.data import sources

    return {"name": name, "path": str(sources.fetch(name, progress=not arguments.json))}


def verify(arguments: argparse.Namespace, name: str) -> dict[str, Any]:
    """Compare the file that would be read with its checksum."""
    from seqconv.data import sources

    return sources.verify(name, data_dir=arguments.data_dir)


def describe(arguments: argparse.Namespace, name: str) -> dict[str, Any]:
    """Load the data set and tell its sizes, splits and flaws."""
    from seqconv.data import load_csv, load_imdb, load_jena

    csv = options.csv_from(arguments)
    if name == "imdb":
        return load_imdb(data_dir=arguments.data_dir, source=arguments.source).describe()
    series = load_jena(data_dir=arguments.data_dir, source=arguments.source) if csv is None else load_csv(**csv)
    description = series.describe()
    return description if arguments.json else description | {"report": f"\n{series.report}"}


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_text(part)}" for key, part in value.items())
    if isinstance(value, list):
        return ", ".join(f"{part:.4g}" if isinstance(part, float) else str(part) for part in value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)
