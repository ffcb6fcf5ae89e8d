"""The report's part on what is no ratio of times: one table a suite, a line per case and provider."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.tables import tabulate

__all__ = ["TITLES", "sections"]

TITLES = {
    "kernels alone": "Kernels alone, each out of a CUDA graph of several calls, beside its own bytes or operations:",
    "peak": "Forward pass beside the CPU's multiply-add peak, a loop in registers, both in the same run:",
    "dispatch": "A call beside its kernel alone, at a tiny shape:",
    "memory": "Memory of one forward and backward pass, each side in a process of its own:",
}


def sections(quantities: Sequence[Mapping[str, Any]], style: str) -> list[str]:
    """Return a title and a table for each suite that noted quantities: medians, with quartiles where they differ."""
    found = []
    for suite in dict.fromkeys(one["suite"] for one in quantities):
        noted = [one for one in quantities if one["suite"] == suite]
        columns = list(dict.fromkeys((one["quantity"], one["unit"]) for one in noted))
        rows: dict[tuple[str, str], dict[tuple[str, str], str]] = {}
        for one in noted:
            cells = rows.setdefault((one["case"], one["provider"]), {})
            cells[one["quantity"], one["unit"]] = spelled(one["value"])
        lines = [(*key, *(cells.get(column, "") for column in columns)) for key, cells in rows.items()]
        headers = ("case", "provider", *(f"{quantity}, {unit}" for quantity, unit in columns))
        found += [TITLES.get(suite, f"{suite}:"), tabulate(lines, headers, tablefmt=style, disable_numparse=True)]
    return found


def spelled(value: Mapping[str, float]) -> str:
    """Return a median, and its quartiles where they say more."""
    median, spread = f"{value['median']:.4g}", f"{value['q1']:.4g}-{value['q3']:.4g}"
    return median if spread == f"{median}-{median}" else f"{median} ({spread})"
