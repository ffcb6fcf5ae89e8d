"""The pictures of a results file: one a question, that is a suite, a mode and a precision, of at most 12 rows.

A row is a case; its marks are how many times faster each provider was than a baseline, with the quartiles of the pairs.
The sweep has a picture of sorted ratios.
"""

from __future__ import annotations

import importlib.util
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.results import apart
from seqconv.environment import one_line
from seqconv.files import atomic_write

MOST_ROWS = 12
DOTS = 100  # an inch
WRAP = 100  # characters of a line of the caption
OURS = ("green", "blue", "purple", "orange", "cyan", "olive", "red", "brown", "pink")  # matplotlib's tab colours
MARKS = "osD^vPX<>*"

Measurements = Sequence[Mapping[str, Any]]


def write(path: Path, results: Mapping[str, Any]) -> list[Path]:
    """Write a results file's pictures beside it, if matplotlib is installed; return their paths."""
    if importlib.util.find_spec("matplotlib") is None:
        return []
    swept, others = apart(results)
    caption, images = one_line(results["environment"]), []
    drawn = [(name, question, found) for (name, question), found in questions(others).items()]
    for name, question, found in [*drawn, *([("sweep", "random shapes", swept)] if swept else [])]:
        figure = curves(found, caption) if name == "sweep" else rows(found, question, caption)
        images.append(path.with_name(f"{path.stem}-{name}.png"))
        with atomic_write(images[-1]) as temporary:
            figure.savefig(temporary, dpi=DOTS, format="png")
    return images


def questions(measurements: Measurements) -> dict[tuple[str, str], list[Mapping[str, Any]]]:
    """Return measurements by the picture that they belong to: its name and its question."""
    groups: dict[tuple[str, str, str], list[Mapping[str, Any]]] = {}
    for one in measurements:
        if one["provider"] != one["baseline"]:
            case = one["case"]
            groups.setdefault((one.get("suite", case["operation"]), case["mode"], case["dtype"]), []).append(one)
    found = {}
    for (suite, mode, dtype), group in groups.items():
        several = any(key[:2] == (suite, mode) and key[2] != dtype for key in groups)
        cases = list(dict.fromkeys(case_name(one) for one in group))
        parts = -(-len(cases) // MOST_ROWS)
        size = -(-len(cases) // parts)
        for part in range(parts):
            number, spelled = ([str(part + 1)], f" ({part + 1} of {parts})") if parts > 1 else ([], "")
            name = "-".join([suite, mode, *([dtype] if several else []), *number])
            passes = {"forward_backward": "forward + backward"}.get(mode, mode.replace("_", " "))
            kept = cases[part * size : (part + 1) * size]
            found[name, f"{suite}: {passes}, {dtype}{spelled}"] = [one for one in group if case_name(one) in kept]
    return found


def case_name(one: Mapping[str, Any]) -> str:
    """Return a row's name: what its picture's question leaves open."""
    case = one["case"]
    return f"{case['name']}, N {case['shape']['N']}\n{case['layout'].replace('_', ' ')}"


def rows(measurements: Measurements, question: str, caption: str) -> Any:
    """Draw a row for each case: each comparison's ratio with its quartiles, on a logarithmic axis."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    cases = list(dict.fromkeys(case_name(one) for one in measurements))
    pairs = list(dict.fromkeys((bool(one["ours"]), one["provider"], one["baseline"]) for one in measurements))
    pairs.sort(key=lambda pair: not pair[0])
    height = 1.6 + 0.55 * len(cases) + 0.2 * len(pairs)
    figure = Figure(figsize=(9, height), layout="constrained")
    axes = figure.add_subplot()
    for place, (ours, provider, baseline) in enumerate(pairs):
        shift = 0.7 * ((place + 0.5) / len(pairs) - 0.5)
        found = [one for one in measurements if (one["provider"], one["baseline"]) == (provider, baseline)]
        ratios = [one["ratio"] for one in found]
        medians = [ratio["median"] for ratio in ratios]
        spread = [[one["median"] - one["q1"] for one in ratios], [one["q3"] - one["median"] for one in ratios]]
        colour = f"tab:{OURS[place % len(OURS)] if ours else 'gray'}"
        axes.errorbar(
            medians, [cases.index(case_name(one)) + shift for one in found], xerr=spread, fmt=MARKS[place % len(MARKS)],
            color=colour, mfc=None if ours else "white", markersize=5, capsize=2, label=f"{provider} / {baseline}",
        )  # fmt: skip
    axes.set_yticks(range(len(cases)), cases, fontsize=9)
    axes.set_ylim(len(cases) - 0.4, -0.6)
    for edge in range(1, len(cases)):
        axes.axhline(edge - 0.5, color="0.9", linewidth=0.8, zorder=0)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_xlabel("times faster than the baseline (right of 1: faster)")
    titled(figure, question, caption)
    figure.legend(loc="outside lower center", ncols=1 if len(pairs) < 3 else 2, fontsize=8, frameon=False)
    return figure


def curves(measurements: Measurements, caption: str) -> Any:
    """Draw the sorted ratios of each provider and mode over the share of shapes, on a logarithmic axis."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    figure = Figure(figsize=(9, 6), layout="constrained")
    axes = figure.add_subplot()
    for mode, provider in sorted({(one["case"]["mode"], one["provider"]) for one in measurements}):
        group = [one for one in measurements if (one["case"]["mode"], one["provider"]) == (mode, provider)]
        ratios = sorted(one["ratio"]["median"] for one in group)
        share = [100 * (place + 0.5) / len(ratios) for place in range(len(ratios))]
        axes.plot(share, ratios, marker=".", markersize=4, linewidth=0.8, label=f"{provider}, {mode}")
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.axhline(1, color="black", linewidth=0.8)
    axes.axhline(0.8, color="tab:red", linewidth=0.8, linestyle=":")
    axes.set_xlabel("shapes, the worst first (%)")
    axes.set_ylabel("times faster than torch eager in its better layout")
    titled(figure, "sweep over random shapes", caption)
    figure.legend(loc="outside lower center", ncols=2, fontsize=8, frameon=False)
    return figure


def titled(figure: Any, question: str, caption: str) -> None:
    """Write a picture's question and the machine above it."""
    lines = textwrap.wrap(caption, WRAP)
    figure.suptitle("\n".join([question, *lines]), fontsize=8)
