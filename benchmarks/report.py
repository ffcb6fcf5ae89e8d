"""A results file as a table in the terminal, as Markdown and as plots: ``python -m benchmarks.report FILE``.

Ratios are how many times faster a provider was than its baseline, with the quartiles of the pairs; what seqconv loses
stands in the table like everything else, and once more below it. The sweep's hundreds of shapes are summed up: shares,
quantiles, and the losers, the worst first. Of a run on a GPU, what was promised stands beside what was measured.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import plots, promises
from benchmarks.results import apart, label, loses, read
from benchmarks.tables import tabulate
from seqconv.environment import one_line
from seqconv.files import write_text

HEADERS = ("case", "provider", "ms per call", "quartiles", "times faster", "quartiles", "than", "first call")
FAR = 0.8  # below this ratio a shape of the sweep is counted by itself
SWEEP_HEADERS = (
    "mode",
    "provider",
    "shapes",
    "faster",
    f"below {FAR}x",
    "least",
    "5 %",
    "25 %",
    "median",
    "75 %",
    "95 %",
)
MEAN_HEADERS = ("work", "provider", "models", "geometric mean", "least", "of", "most")
LOSER_HEADERS = ("times faster", "quartiles", "ms per call", "mode", "provider", "shape", "layout", "torch's")
TITLES = {
    "kernels alone": "Kernels alone, each out of a CUDA graph of several calls, beside its own bytes or operations:",
    "counters": "Launches under Nsight Compute, in their order:",
    "peak": "Forward pass beside the CPU's multiply-add peak, a loop in registers, and its errors beside torch's:",
    "dispatch": "A call beside its kernel alone, at a tiny shape:",
    "memory": "Memory of one forward and backward pass, each side in a process of its own:",
}

Measurements = Sequence[Mapping[str, Any]]


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
    """Write ``.md`` and, where matplotlib is installed, pictures beside a results file; return their paths."""
    images = plots.write(path, results)
    write_text(path.with_suffix(".md"), markdown(results, [image.name for image in images]))
    return [path.with_suffix(".md"), *images]


def terminal(results: Mapping[str, Any]) -> str:
    """Return the report for a terminal."""
    return "\n\n".join(section for section in sections(results, "simple") if section)


def markdown(results: Mapping[str, Any], images: Sequence[str] = ()) -> str:
    """Return the report as Markdown, with the plots called ``images``."""
    shown = [f"![times faster than the baseline]({image})" for image in images]
    parts = [f"# Benchmarks of {results['created'][:10]}", *sections(results, "github"), *shown]
    return "\n\n".join(section for section in parts if section) + "\n"


def sections(results: Mapping[str, Any], style: str) -> list[str]:
    """Return the report's parts: caption, tests, promises, failures, table, losses, means, sweep, quantities, rest."""
    swept, others = apart(results)
    lost = [one for one in others if loses(one)]
    ours = sum(bool(one["ours"]) for one in others)
    verdict = f"seqconv loses {len(lost)} of its {ours} comparisons" + (":" if lost else ".") if ours else ""
    reasons = Counter((one["provider"], one["reason"]) for one in results["skipped"])
    left_out = [(provider, cases, reason) for (provider, reason), cases in reasons.items()]
    failed = [(one["provider"], one["case"], one["reason"]) for one in results["failed"]]
    headers = HEADERS + ("x roofline",) * any(one.get("roofline") for one in others)

    def table(measurements: Measurements) -> str:
        return tabulate([row(one)[: len(headers)] for one in measurements], headers, style)

    return [
        f"{one_line(results['environment'])}; load {results['load']}; {results['created']}; `{results['command']}`",
        *tests(results["tests"]),
        *promises.sections(results, style),
        "Failed:" if failed else "",
        tabulate(failed, ("provider", "case", "why"), style),
        table(others),
        verdict,
        table(lost),
        *against_rnns(others, style),
        *means([one for one in others if one.get("suite") == "wild"], style),
        *(sweep(swept, style) if swept else ()),
        *quantities(results["quantities"], style),
        "Left out:" if left_out else "",
        tabulate(left_out, ("provider", "tests", "why"), style),
    ]


def tests(found: Mapping[str, Any] | None) -> list[str]:
    """Return the lines on the GPU tests, and on the sanitizer's if it was asked."""
    if not found:
        return []
    lines = [f"GPU tests: {found['summary']}"]
    return lines + ([f"compute-sanitizer: {found['sanitizer']['summary']}"] if found.get("sanitizer") else [])


def row(one: Mapping[str, Any]) -> tuple[str, ...]:
    """Return a measurement's line of the table; the baseline with its memory layout where that is not the case's."""
    seconds, ratio, cold = one["seconds"], one["ratio"], one["cold"]
    layout = one.get("baseline_layout", one["case"]["layout"])
    than = str(one["baseline"]) + (f": {layout}" if layout != one["case"]["layout"] else "")
    return (
        label(one["case"]),
        one["provider"],
        f"{seconds['median'] * 1e3:.4g}",
        f"{seconds['q1'] * 1e3:.4g}-{seconds['q3'] * 1e3:.4g}",
        f"{ratio['median']:.3g}" + (" (loses)" if loses(one) else ""),
        f"{ratio['q1']:.3g}-{ratio['q3']:.3g}",
        "itself: noise" if one["provider"] == one["baseline"] else than,
        f"{cold['empty_caches']:.2f} s, cached {cold['warm_caches']:.2f} s" if cold else "",
        f"{one['roofline']:.3g}" if one.get("roofline") else "",
    )


def against_rnns(measurements: Measurements, style: str) -> list[str]:
    """Return how many times faster convnets were than the faster of torch's and seqconv's RNN, if both were timed."""
    groups: dict[tuple[str, str, str], list[tuple[float, str]]] = {}
    for one in measurements:
        rnn = one["baseline"].removeprefix("torch ").removeprefix("seqconv ")
        if one["ours"] and rnn.startswith(("LSTM", "GRU")):
            place = (label(one["case"]), one["provider"], rnn)
            groups.setdefault(place, []).append((one["ratio"]["median"], one["baseline"]))
    rows = [(*place[:2], f"{min(found)[0]:.3g}", min(found)[1]) for place, found in groups.items() if len(found) > 1]
    title = "Convnets against the faster RNN, torch's or seqconv's:" if rows else ""
    return [title, tabulate(rows, ("case", "provider", "times faster", "than"), style)]


def means(measurements: Measurements, style: str) -> list[str]:
    """Return how many times faster than their baseline providers were over all published models, for each work."""
    groups: dict[tuple[str, str], list[tuple[float, str]]] = {}
    for one in measurements:
        case = one["case"]
        work = case["mode"].replace("_", " ") + ", " + ("batch 1" if case["shape"]["N"] == 1 else "usual batch")
        groups.setdefault((work, one["provider"]), []).append((one["ratio"]["median"], case["name"]))
    rows = []
    for (work, provider), found in groups.items():
        ratios, (least, worst) = [ratio for ratio, _ in found], min(found)
        mean = statistics.geometric_mean(ratios)
        rows.append((work, provider, len(found), f"{mean:.3g}", f"{least:.3g}", worst, f"{max(ratios):.3g}"))
    title = "Over all published models, times faster than torch eager:" if rows else ""
    return [title, tabulate(rows, MEAN_HEADERS, style)]


def sweep(measurements: Measurements, style: str) -> list[str]:
    """Return what a report says of the sweep: a table of shares and quantiles, and the losers, the worst first."""
    groups: dict[tuple[str, str], list[float]] = {}
    for one in measurements:
        groups.setdefault((one["case"]["mode"], one["provider"]), []).append(one["ratio"]["median"])
    shares = [(*key, *summary(ratios)) for key, ratios in sorted(groups.items())]
    lost = sorted((one for one in measurements if loses(one)), key=lambda one: one["ratio"]["median"])
    return [
        "Random shapes, times faster than torch eager in its better layout:",
        tabulate(shares, SWEEP_HEADERS, style),
        tabulate([loser(one) for one in lost], LOSER_HEADERS, style),
    ]


def summary(ratios: Sequence[float]) -> tuple[str, ...]:
    """Return how many ratios there are, the shares above 1 and below ``FAR``, and the quantiles."""
    faster = sum(ratio >= 1 for ratio in ratios) / len(ratios)
    far = sum(ratio < FAR for ratio in ratios) / len(ratios)
    cuts = statistics.quantiles(ratios, n=20, method="inclusive") if len(ratios) > 1 else 19 * list(ratios)
    values = (min(ratios), *(cuts[i] for i in (0, 4, 9, 14, 18)))
    return (str(len(ratios)), f"{faster:.1%}", f"{far:.1%}", *(f"{value:.2f}" for value in values))


def loser(one: Mapping[str, Any]) -> tuple[str, ...]:
    """Return a losing shape's line."""
    case, ratio = one["case"], one["ratio"]
    figures = (
        f"{ratio['median']:.3f}",
        f"{ratio['q1']:.3f}-{ratio['q3']:.3f}",
        f"{one['seconds']['median'] * 1e3:.4g}",
    )
    shape = f"{case['name']} N {case['shape']['N']}"
    return (*figures, case["mode"], one["provider"], shape, case["layout"], one["baseline_layout"])


def quantities(noted: Measurements, style: str) -> list[str]:
    """Return a title and a table for each suite that noted quantities: medians, with quartiles where they differ."""
    found = []
    for suite in dict.fromkeys(one["suite"] for one in noted):
        columns: dict[str, None] = {}
        rows: dict[tuple[str, str], dict[str, str]] = {}
        for one in (one for one in noted if one["suite"] == suite):
            column = f"{one['quantity']}, {one['unit']}"
            columns[column] = None
            rows.setdefault((one["case"], one["provider"]), {})[column] = spelled(one["value"])
        lines = [(*key, *(cells.get(column, "") for column in columns)) for key, cells in rows.items()]
        found += [TITLES.get(suite, f"{suite}:"), tabulate(lines, ("case", "provider", *columns), style)]
    return found


def spelled(value: Mapping[str, float]) -> str:
    """Return a median, and its quartiles where they say more."""
    median, spread = f"{value['median']:.4g}", f"{value['q1']:.4g}-{value['q3']:.4g}"
    return median if spread == f"{median}-{median}" else f"{median} ({spread})"


if __name__ == "__main__":
    sys.exit(main())
