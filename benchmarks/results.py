"""One JSON file per run: the machine, versions, threads and commit, then every figure with the samples behind it.

``schema`` 1: ``created`` (ISO 8601, UTC), ``command``, ``load`` (the machine's load average when the suites began),
``environment`` (``seqconv.environment.describe()``), ``exit_code`` of the suites, ``tests`` (the GPU tests' summary,
or ``None``), ``measurements``, ``skipped`` (``case``, ``provider``, ``reason``) and ``quantities``, which are no ratios
of times (``suite``, ``case``, ``provider``, ``quantity``, ``unit``, ``samples`` and their quartiles, the ``value``). A
measurement has ``case``, ``provider``, ``ours``, ``baseline``, ``seconds`` and ``baseline_seconds`` (``q1``,
``median``, ``q3`` of a call), ``ratio`` (the same of the pairs; above 1 the provider is the faster), ``samples``,
``baseline_samples``, ``calls_per_block``, ``errors`` (largest error and tolerance by tensor) and ``cold`` (seconds of
the first call in a fresh process by state of the caches, or ``None``); since the sweep also ``suite`` and
``baseline_layout``, in which memory layout the baseline got its inputs.

A GPU run adds ``failed`` (as ``skipped``: who raised, or was wrong, and what was said), ``gpu`` (``card``, ``driver``,
``clocks`` before and after, ``limits``: bytes a second of a copy, operations a second of matrix products) and, to a
fused layer's measurements, ``roofline`` (times its floor on that card; see :mod:`.roofline`).
"""

from __future__ import annotations

import datetime
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.timing import quartiles, ratios
from seqconv.environment import describe
from seqconv.files import write_text

SCHEMA = 1
FOLDER = Path(__file__).parent / "results"
KEYS = ("schema", "created", "command", "load", "environment", "exit_code", "tests", "measurements", "skipped")
MEASUREMENT_KEYS = (
    *("case", "provider", "ours", "baseline", "seconds", "baseline_seconds", "ratio"),
    *("samples", "baseline_samples", "calls_per_block", "errors", "cold"),
)


def collect(
    figures: Iterable[Mapping[str, Any]],
    skipped: Iterable[Mapping[str, str]],
    *,
    command: str,
    load: float,
    exit_code: int,
    tests: Mapping[str, Any] | None = None,
    quantities: Iterable[Mapping[str, Any]] = (),
    failed: Iterable[Mapping[str, str]] = (),
    gpu: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return a run's results: its figures as :func:`measurement` takes them, who was left out, and the environment."""
    return {
        "schema": SCHEMA,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": command,
        "load": load,
        "environment": describe(),
        "exit_code": exit_code,
        "tests": tests,
        "measurements": [measurement(figure) for figure in figures],
        "skipped": list(skipped),
        "quantities": [{**one, "value": asdict(quartiles(one["samples"]))} for one in quantities],
        "failed": list(failed),
        "gpu": gpu,
    }


def measurement(figure: Mapping[str, Any]) -> dict[str, Any]:
    """Return a comparison's raw figures with its medians, quartiles and ratios."""
    pairs = ratios(figure["baseline_samples"], figure["samples"])
    return {
        "cold": None,
        **figure,
        "seconds": asdict(quartiles(figure["samples"])),
        "baseline_seconds": asdict(quartiles(figure["baseline_samples"])),
        "ratio": asdict(quartiles(pairs)),
    }


def loses(one: Mapping[str, Any]) -> bool:
    """Return whether a measurement shows seqconv slower than a baseline."""
    return bool(one["ours"]) and one["ratio"]["median"] < 1


def apart(results: Mapping[str, Any]) -> tuple[list[Any], list[Any]]:
    """Return the sweep's measurements and all others: hundreds of rows need a table and a plot of their own."""
    swept = [one for one in results["measurements"] if one.get("suite") == "sweep"]
    return swept, [one for one in results["measurements"] if one.get("suite") != "sweep"]


def label(case: Mapping[str, Any]) -> str:
    """Return a case's name in a table."""
    parts = [case["name"], case["mode"], case["dtype"], case["layout"], f"N {case['shape']['N']}", case["device"]]
    return " ".join(parts)


def default_path(kind: str, now: datetime.datetime | None = None) -> Path:
    """Return where a run's results go if nobody says: ``results/KIND-DATE-TIME.json``."""
    now = now or datetime.datetime.now(datetime.UTC)
    return FOLDER / f"{kind}-{now:%Y%m%d-%H%M%S}.json"


def write(path: str | os.PathLike[str], results: Mapping[str, Any]) -> None:
    """Write results as JSON, whole or not at all."""
    write_text(path, json.dumps(results, indent=1, allow_nan=False) + "\n")


def read(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the results of a file; ``ValueError`` if it holds something else.

    Files from before there were ``quantities``, ``failed`` and ``gpu`` have none.
    """
    try:
        results = json.loads(Path(path).read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not a results file: {error}") from None
    if not isinstance(results, dict) or results.get("schema") != SCHEMA:
        raise ValueError(f"{path} is not a results file of schema {SCHEMA}")
    for key, nothing in (("quantities", []), ("failed", []), ("gpu", None)):
        results.setdefault(key, nothing)
    missing = [key for key in KEYS if key not in results]
    missing += [key for one in results.get("measurements", ()) for key in MEASUREMENT_KEYS if key not in one]
    if missing:
        raise ValueError(f"{path} is not a whole results file: it lacks {', '.join(sorted(set(missing)))}")
    return results
