"""What is wrong in a file of measurements: failed sensors, cells without numbers, repeated and missing time stamps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["STEP", "SeriesReport", "inspect"]

STEP = np.timedelta64(600, "s")


@dataclass(frozen=True)
class SeriesReport:
    """The flaws of a file, by row; rows count from 0, the header not among them.

    ``sentinels`` and ``unreadable`` map a column to the rows in which it holds ``sentinel``, -9999 at Jena, or no
    number; columns without any are left out. ``repeated`` are rows whose time stamp stood in an earlier row,
    ``backwards`` those earlier than the row before. ``gaps`` are (row, minutes): that row comes so many minutes, more
    than the series' step, after the one before. ``missing`` counts the time stamps, a step apart, between the first and
    the last that no row has.
    """

    rows: int
    first: str
    last: str
    sentinels: dict[str, list[int]]
    unreadable: dict[str, list[int]]
    repeated: list[int]
    backwards: list[int]
    gaps: list[tuple[int, float]]
    missing: int
    sentinel: float

    @property
    def clean(self) -> bool:
        """Whether nothing is wrong."""
        found = (self.sentinels, self.unreadable, self.repeated, self.backwards, self.gaps)
        return not any(found) and self.missing == 0

    def as_dict(self) -> dict[str, Any]:
        """Return the report as a dictionary that JSON can hold."""
        return {**vars(self), "gaps": [list(gap) for gap in self.gaps]}

    def __str__(self) -> str:
        lines = [f"{self.rows} rows from {self.first} to {self.last}"]
        lines += [f"{column}: {self.sentinel:g} in {shown(rows)}" for column, rows in self.sentinels.items()]
        lines += [f"{column}: no number in {shown(rows)}" for column, rows in self.unreadable.items()]
        if self.repeated:
            lines.append(f"time stamp repeated in {shown(self.repeated)}")
        if self.backwards:
            lines.append(f"time goes back in {shown(self.backwards)}")
        if self.gaps:
            longest = max(self.gaps, key=lambda gap: gap[1])
            lines.append(
                f"{len(self.gaps)} {'gap' if len(self.gaps) == 1 else 'gaps'} in time, the longest of {longest[1]:g} "
                f"minutes before row {longest[0]}"
            )
        if self.missing:
            lines.append(f"{self.missing} time stamps missing")
        if self.clean:
            lines.append("nothing wrong found")
        return "\n".join(lines)


def inspect(
    times: NDArray[np.datetime64],
    values: NDArray[np.float64],
    columns: tuple[str, ...],
    sentinel: float,
    step: np.timedelta64,
) -> SeriesReport:
    """Return the report on rows with the given ``times`` (rows,) and ``values`` (rows, columns), NaN for no number."""
    stamps = times.astype("datetime64[ns]").astype(np.int64)
    apart = int(step.astype("timedelta64[ns]").astype(np.int64))
    steps = np.diff(stamps)
    distinct, first_seen = np.unique(stamps, return_index=True)
    seen_before = np.ones(len(stamps), dtype=bool)
    seen_before[first_seen] = False
    on_grid = (distinct - distinct[0]) % apart == 0
    gaps = np.flatnonzero(steps > apart)
    return SeriesReport(
        rows=len(times),
        first=str(times[0]).replace("T", " "),
        last=str(times[-1]).replace("T", " "),
        sentinels=rows_by_column(values == sentinel, columns),
        unreadable=rows_by_column(np.isnan(values), columns),
        repeated=np.flatnonzero(seen_before).tolist(),
        backwards=(np.flatnonzero(steps < 0) + 1).tolist(),
        gaps=[(int(row) + 1, float(steps[row]) / 60e9) for row in gaps],
        missing=int((distinct[-1] - distinct[0]) // apart + 1 - on_grid.sum()),
        sentinel=sentinel,
    )


def rows_by_column(found: NDArray[np.bool_], columns: tuple[str, ...]) -> dict[str, list[int]]:
    """Return the rows in which each column is marked, without the columns that never are."""
    return {
        column: np.flatnonzero(marked).tolist() for column, marked in zip(columns, found.T, strict=True) if marked.any()
    }


def shown(rows: list[int], most: int = 5) -> str:
    """Return ``rows`` as a phrase that names the first of them."""
    more = ", ..." if len(rows) > most else ""
    return f"{len(rows)} {'row' if len(rows) == 1 else 'rows'} ({', '.join(map(str, rows[:most]))}{more})"
