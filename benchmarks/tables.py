"""Tables as the package tabulate draws them, or plainer ones where it is not installed, as on some GPU machines."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any


def tabulate(rows: Iterable[Sequence[Any]], headers: Sequence[str], style: str) -> str:
    """Return a table in the style ``simple`` (for a terminal) or ``github`` (Markdown); nothing without rows."""
    rows = list(rows)
    if not rows:
        return ""
    try:
        import tabulate as package
    except ImportError:
        return plain(rows, headers, style)
    return str(package.tabulate(rows, headers, tablefmt=style, disable_numparse=True))


def plain(rows: Iterable[Sequence[Any]], headers: Sequence[str], style: str) -> str:
    """Return a table of cells flush left."""
    cells = [[str(cell) for cell in row] for row in (headers, *rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    cells.insert(1, ["-" * width for width in widths])
    left, between, right = ("| ", " | ", " |") if style == "github" else ("", "  ", "")
    return "\n".join(
        (left + between.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + right).rstrip()
        for row in cells
    )
