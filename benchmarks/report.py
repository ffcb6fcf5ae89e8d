"""A results file as a table in the terminal, as Markdown and as a plot: ``python -m benchmarks.report FILE``.

Ratios are how many times faster a provider was than its baseline, with the quartiles of the pairs; what seqconv loses
stands in the table like everything else, and once more below it.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import report_gpu, report_quantities
from benchmarks import report_sweep as sweep
from benchmarks.results import loses, read
from benchmarks.tables import tabulate
from seqconv.environment import one_line
from seqconv.files import atomic_write, write_text

__all__ = ["main", "markdown", "plot", "terminal", "write_report"]

HEADERS = ("case", "provider", "ms per call", "quartiles", "times faster", "quartiles", "than", "first call")


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the report of a results file and write it beside the file."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__)
    parser.add_argument("file", type=Path, help="a results file (JSON)")
    path = parser.parse_args(arguments).file
    try:
        results = read(path)
    except (OSError, ValueError) as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 2
    print(terminal(results))
    for written in write_report(path, results):
        print(f"written: {written}")
    return 0


def write_report(path: Path, results: Mapping[str, Any]) -> list[Path]:
    """Write ``.md`` and, where matplotlib is installed, ``.png`` beside a results file; return their paths."""
    text, images = path.with_suffix(".md"), []
    swept, others = apart(results) if importlib.util.find_spec("matplotlib") else ([], [])
    for found, suffix, draw in ((others, ".png", plot), (swept, "-sweep.png", sweep.plot)):
        if found:
            images.append(path.with_name(path.stem + suffix))
            with atomic_write(images[-1]) as temporary:
                draw(found, one_line(results["environment"]), temporary)
    write_text(text, markdown(results, [image.name for image in images]))
    return [text, *images]


def terminal(results: Mapping[str, Any]) -> str:
    """Return the report for a terminal."""
    return "\n\n".join(section for section in sections(results, "simple") if section)


def markdown(results: Mapping[str, Any], images: Sequence[str] = ()) -> str:
    """Return the report as Markdown, with the plots called ``images``."""
    shown = [f"![times faster than the baseline]({image})" for image in images]
    parts = [f"# Benchmarks of {results['created'][:10]}", *sections(results, "github"), *shown]
    return "\n\n".join(section for section in parts if section) + "\n"


def sections(results: Mapping[str, Any], style: str) -> list[str]:
    """Return the report's parts: caption, tests, table, losses, what was left out."""
    swept, others = apart(results)
    lost = [one for one in others if loses(one)]
    ours = sum(bool(one["ours"]) for one in others)
    verdict = f"seqconv loses {len(lost)} of its {ours} comparisons" + (":" if lost else ".") if ours else ""
    reasons: dict[tuple[str, str], int] = {}
    for one in results["skipped"]:
        key = (one["provider"], one["reason"])
        reasons[key] = reasons.get(key, 0) + 1
    left_out = [(provider, cases, reason) for (provider, reason), cases in reasons.items()]
    failed = [(one["provider"], one["case"], one["reason"]) for one in results["failed"]]
    headers = HEADERS + ("x roofline",) * any(one.get("roofline") for one in others)
    return [
        f"{one_line(results['environment'])}; load {results['load']}; {results['created']}; `{results['command']}`",
        *tests(results["tests"]),
        *report_gpu.sections(results, style),
        "Failed:" if failed else "",
        tabulate(failed, ("provider", "case", "why"), tablefmt=style) if failed else "",
        table(others, headers, style),
        verdict,
        table(lost, headers, style),
        *(sweep.sections(swept, style) if swept else ()),
        *report_quantities.sections(results["quantities"], style),
        "Left out:" if left_out else "",
        tabulate(left_out, ("provider", "tests", "why"), tablefmt=style) if left_out else "",
    ]


def tests(found: Mapping[str, Any] | None) -> list[str]:
    """Return the lines on the GPU tests, and on the sanitizer's if it was asked."""
    if not found:
        return []
    lines = [f"GPU tests: {found['summary']}"]
    return lines + ([f"compute-sanitizer: {found['sanitizer']['summary']}"] if found.get("sanitizer") else [])


def table(measurements: Sequence[Mapping[str, Any]], headers: Sequence[str], style: str) -> str:
    """Return measurements as a table, with so many of a row's columns as there are headers."""
    rows = [row(one)[: len(headers)] for one in measurements]
    return tabulate(rows, headers, tablefmt=style, disable_numparse=True) if rows else ""


def apart(results: Mapping[str, Any]) -> tuple[list[Any], list[Any]]:
    """Return the sweep's measurements and all others: hundreds of rows need a table and a plot of their own."""
    swept = [one for one in results["measurements"] if one.get("suite") == "sweep"]
    return swept, [one for one in results["measurements"] if one.get("suite") != "sweep"]


def row(one: Mapping[str, Any]) -> tuple[str, ...]:
    """Return a measurement's line of the table."""
    seconds, ratio, cold = one["seconds"], one["ratio"], one["cold"]
    return (
        label(one["case"]),
        one["provider"],
        f"{seconds['median'] * 1e3:.4g}",
        f"{seconds['q1'] * 1e3:.4g}-{seconds['q3'] * 1e3:.4g}",
        f"{ratio['median']:.3g}" + (" (loses)" if loses(one) else ""),
        f"{ratio['q1']:.3g}-{ratio['q3']:.3g}",
        "itself: noise" if one["provider"] == one["baseline"] else than(one),
        f"{cold['empty_caches']:.2f} s, cached {cold['warm_caches']:.2f} s" if cold else "",
        f"{one['roofline']:.3g}" if one.get("roofline") else "",
    )


def than(one: Mapping[str, Any]) -> str:
    """Return a measurement's baseline, with its memory layout where that is not the case's."""
    layout = one.get("baseline_layout", one["case"]["layout"])
    return str(one["baseline"]) + (f": {layout}" if layout != one["case"]["layout"] else "")


def label(case: Mapping[str, Any]) -> str:
    """Return a case's name in a table."""
    parts = [case["name"], case["mode"], case["dtype"], case["layout"], f"N {case['shape']['N']}", case["device"]]
    return " ".join(parts)


def plot(measurements: Sequence[Mapping[str, Any]], machine: str, path: Path) -> None:
    """Draw each comparison's ratio with its quartiles, one row each, on a logarithmic axis."""
    from matplotlib.figure import Figure

    shown = [one for one in measurements if one["provider"] != one["baseline"]] or list(measurements)
    figure = Figure(figsize=(11, 1.2 + 0.22 * len(shown)), layout="constrained")
    axes = figure.add_subplot()
    for height, one in enumerate(reversed(shown)):
        ratio = one["ratio"]
        spread = [[ratio["median"] - ratio["q1"]], [ratio["q3"] - ratio["median"]]]
        colour = ("tab:red" if loses(one) else "tab:green") if one["ours"] else "tab:gray"
        axes.errorbar(ratio["median"], height, xerr=spread, fmt="o", color=colour, markersize=4, capsize=2)
    names = [f"{label(one['case'])}: {one['provider']} / {one['baseline']}" for one in reversed(shown)]
    axes.set_yticks(range(len(shown)), names, fontsize=6)
    axes.set_xscale("log")
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_xlabel("times faster than the baseline (green: seqconv wins, red: seqconv loses, grey: peers)")
    axes.set_title(machine, fontsize=7)
    axes.margins(y=1 / (len(shown) + 1))
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    sys.exit(main())
