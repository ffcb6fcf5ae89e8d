"""Checks of what a checkpoint says of its model's series."""

from __future__ import annotations

import math
import os
import reprlib
from typing import Any

from seqconv.experiments.jena import BUILD, READING

__all__ = ["check_description"]

SENTINELS = ("interpolate", "mask", "keep")


def check_description(about: Any, path: str | os.PathLike[str]) -> None:
    """Raise ``ValueError`` unless ``about`` is what :func:`seqconv.experiments.jena.described` returns, with a model.

    ``path`` is the checkpoint's, for the error, which names the entry that is wrong. ``"version"`` is not looked at.
    """

    def require(holds: bool, name: str, must: str) -> None:
        if not holds:
            got = f"got {reprlib.repr(about[name])}" if name in about else "which is missing"
            raise ValueError(f"{path} describes its model wrongly: {name!r} must be {must}, {got}")

    columns = about.get("columns")
    require(is_list(columns, str) and len(columns) > 0, "columns", "a list of names")
    require(len({*columns}) == len(columns), "columns", "a list of different names")
    require(is_string(about.get("target")) and about["target"] in columns, "target", "one of the columns")
    models = ", ".join(BUILD)
    require(is_string(about.get("model")) and about["model"] in BUILD, "model", f"one of {models}")
    count = f"{len(columns)} finite numbers, one for each column"
    for name in ("mean", "std"):
        values = about.get(name)
        require(is_list(values, int, float) and len(values) == len(columns), name, count)
        require(all(map(math.isfinite, values)), name, count)
    require(min(about["std"]) > 0, "std", "above 0 for every column")
    for name in ("step", "row_ns"):
        require(is_integer(about.get(name)) and about[name] > 0, name, "a whole number, at least 1")
    step = about["step"]
    require(
        is_integer(about.get("lookback")) and about["lookback"] >= step,
        "lookback",
        f"a whole number, at least the step, {step}",
    )
    least = -about["lookback"]
    require(is_integer(about.get("delay")) and about["delay"] >= least, "delay", f"a whole number, at least {least}")
    require(type(about.get("sentinel")) in (int, float), "sentinel", "a number")
    sentinels = about.get("sentinels")
    require(is_string(sentinels) and sentinels in SENTINELS, "sentinels", f"one of {', '.join(SENTINELS)}")
    reading = about.get("reading")
    require(isinstance(reading, dict), "reading", "a dictionary")
    require(all(name in READING for name in reading), "reading", f"a dictionary of {', '.join(READING)}")
    for name, value in reading.items():
        kind = "a list of names for date_column" if name == "date_column" else f"text for {name}"
        fits = is_list(value, str) and len(value) > 0 if name == "date_column" else value is None or is_string(value)
        require(fits, "reading", f"a dictionary with {kind}")


def is_list(value: Any, *types: type) -> bool:
    """Tell whether ``value`` is a list or tuple of these types alone."""
    return isinstance(value, list | tuple) and all(type(one) in types for one in value)


def is_integer(value: Any) -> bool:
    """Tell whether ``value`` is an integer, ``True`` and ``False`` excluded."""
    return type(value) is int


def is_string(value: Any) -> bool:
    """Tell whether ``value`` is a string."""
    return isinstance(value, str)
