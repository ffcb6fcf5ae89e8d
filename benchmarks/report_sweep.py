"""The report's part on the sweep over random shapes: shares, quantiles, losers, a curve per provider and mode."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.results import loses
from benchmarks.tables import tabulate

__all__ = ["plot", "sections"]

FAR = 0.8  # below this ratio a shape is counted by itself
HEADERS = ("mode", "provider", "shapes", "faster", f"below {FAR}x", "least", "5 %", "25 %", "median", "75 %", "95 %")
LOSER_HEADERS = ("times faster", "quartiles", "ms per call", "mode", "provider", "shape", "layout", "torch's")

Measurements = Sequence[Mapping[str, Any]]


def sections(measurements: Measurements, style: str) -> list[str]:
    """Return what a report says of the sweep: a table of shares and quantiles, and the losers, the worst first."""
    lost = sorted((one for one in measurements if loses(one)), key=lambda one: one["ratio"]["median"])
    shares = [
        (mode, provider, *summary([one["ratio"]["median"] for one in group]))
        for (mode, provider), group in groups(measurements).items()
    ]
    table = tabulate(shares, HEADERS, tablefmt=style, disable_numparse=True)
    losers = tabulate([loser(one) for one in lost], LOSER_HEADERS, tablefmt=style, disable_numparse=True)
    return ["Random shapes, times faster than torch eager in its better layout:", table, *([losers] if lost else ())]


def groups(measurements: Measurements) -> dict[tuple[str, str], list[Mapping[str, Any]]]:
    """Return the measurements by mode and provider."""
    found: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for one in measurements:
        found.setdefault((one["case"]["mode"], one["provider"]), []).append(one)
    return dict(sorted(found.items()))


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
    return (
        f"{ratio['median']:.3f}",
        f"{ratio['q1']:.3f}-{ratio['q3']:.3f}",
        f"{one['seconds']['median'] * 1e3:.4g}",
        case["mode"],
        one["provider"],
        f"{case['name']} N {case['shape']['N']}",
        case["layout"],
        one["baseline_layout"],
    )


def plot(measurements: Measurements, machine: str, path: Path) -> None:
    """Draw the sorted ratios of each provider and mode over the share of shapes, on a logarithmic axis."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot()
    for (mode, provider), group in groups(measurements).items():
        ratios = sorted(one["ratio"]["median"] for one in group)
        share = [100 * (place + 0.5) / len(ratios) for place in range(len(ratios))]
        axes.plot(share, ratios, marker=".", markersize=4, linewidth=0.8, label=f"{provider}, {mode}")
    axes.set_yscale("log")
    axes.axhline(1, color="black", linewidth=0.8)
    axes.axhline(FAR, color="tab:red", linewidth=0.8, linestyle=":")
    axes.set_xlabel("shapes, the worst first (%)")
    axes.set_ylabel("times faster than torch eager in its better layout")
    axes.set_title(machine, fontsize=7)
    axes.legend()
    figure.savefig(path, dpi=120)
