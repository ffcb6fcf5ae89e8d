"""A measured series as models see it: gaps found, failed measurements filled, rows parted, columns standardised."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from seqconv.data.series_report import SeriesReport, inspect

__all__ = ["SENTINEL", "SeriesData", "Splits", "check_choice", "prepared", "split_rows"]

SENTINEL = -9999.0
# The notebook takes the first 200,000 of its 420,551 rows for training and the next 100,000 for validation.
NOTEBOOK_ROWS, NOTEBOOK_TRAIN, NOTEBOOK_VALIDATION = 420_551, 200_000, 100_000


class Splits(NamedTuple):
    """The rows of each part, in order of time."""

    train: slice
    validation: slice
    test: slice


@dataclass(frozen=True, eq=False)
class SeriesData:
    """The series that models see, and what is needed to read their errors in its own units.

    ``series`` is float32 of shape (rows, C), C-contiguous, ``(measurement - mean) / std``; ``mean`` and ``std`` (n -
    1, as R's ``sd``) are float64 of shape (C,), taken over ``splits.train`` alone. ``times`` is datetime64 of
    shape (rows,). ``groups`` is int64 of shape (rows,): rows of one number follow each other by exactly ``step``, so
    a window within one group straddles no gap. ``source`` says where the rows are from, ``synthetic`` whether they are
    made up. ``date_column`` is the name of the dates' column in a CSV file of one's own.
    """

    series: NDArray[np.float32]
    mean: NDArray[np.float64]
    std: NDArray[np.float64]
    columns: tuple[str, ...]
    target_column: int
    times: NDArray[np.datetime64]
    step: np.timedelta64
    groups: NDArray[np.int64]
    splits: Splits
    report: SeriesReport
    sentinels: str
    source: str
    synthetic: bool
    date_column: str | None = None

    task: ClassVar[str] = "csv"

    @property
    def target(self) -> str:
        """The name of the column to predict."""
        return self.columns[self.target_column]

    def in_units(self, error: float) -> float:
        """Return an absolute error of the standardised target in the target's own units."""
        return float(error * self.std[self.target_column])

    def describe(self) -> dict[str, Any]:
        """Return sizes, origin and flaws as a dictionary that JSON can hold."""
        return {
            "task": self.task,
            "source": self.source,
            "synthetic": self.synthetic,
            "rows": len(self.series),
            "splits": {name: [part.start, part.stop] for name, part in self.splits._asdict().items()},
            "columns": list(self.columns),
            "target": self.target,
            "mean": self.mean.tolist(),
            "std": self.std.tolist(),
            "sentinels": self.sentinels,
            "report": self.report.as_dict(),
        }


def prepared(
    kind: type[SeriesData],
    times: NDArray[np.datetime64],
    values: NDArray[np.float64],
    columns: tuple[str, ...],
    *,
    target: str,
    step: np.timedelta64,
    sentinel: float,
    sentinels: str,
    repeated: str,
    split: tuple[float, float] | None,
    source: str,
    synthetic: bool,
    date_column: str | None = None,
) -> Any:
    """Return a ``kind`` of ``values`` (rows, columns), NaN where a cell holds no number; they are changed in place.

    Options are those of :func:`seqconv.data.load_jena`, ``sentinel`` the number that marks a failed measurement.
    """
    report = inspect(times, values, columns, sentinel, step)
    if repeated == "drop" and report.repeated:
        times, values = np.delete(times, report.repeated), np.delete(values, report.repeated, axis=0)
    splits = split_rows(len(times), split)
    fill_missing(values, columns, sentinel, sentinels)
    mean, std = statistics(values[splits.train], columns)
    return kind(
        series=np.ascontiguousarray((values - mean) / std, dtype=np.float32),
        mean=mean,
        std=std,
        columns=columns,
        target_column=columns.index(target),
        times=times,
        step=step,
        groups=np.concatenate([[0], np.cumsum(np.diff(times) != step)]).astype(np.int64),
        splits=splits,
        report=report,
        sentinels=sentinels,
        source=source,
        synthetic=synthetic,
        date_column=date_column,
    )


def split_rows(rows: int, split: tuple[float, float] | None) -> Splits:
    """Return the rows of the three parts; none of them may be empty."""
    if split is None:
        # In integers, so that 420,551 rows give the notebook's 200,000 and 300,000 exactly.
        train = rows * NOTEBOOK_TRAIN // NOTEBOOK_ROWS
        stop = rows * (NOTEBOOK_TRAIN + NOTEBOOK_VALIDATION) // NOTEBOOK_ROWS
    elif len(split) != 2 or not all(map(math.isfinite, split)):
        raise ValueError(f"split must be two counts or two fractions of rows, got {split}")
    elif all(isinstance(part, (int, np.integer)) for part in split):
        train, stop = int(split[0]), int(split[0] + split[1])
    else:
        train, stop = round(rows * split[0]), round(rows * (split[0] + split[1]))
    if not 2 <= train < stop < rows:
        raise ValueError(
            f"split must leave two rows for training and one each for validation and test of the {rows} rows, got "
            f"{'the default' if split is None else split}"
        )
    return Splits(slice(0, train), slice(train, stop), slice(stop, rows))


def fill_missing(values: NDArray[np.float64], columns: tuple[str, ...], sentinel: float, sentinels: str) -> None:
    """Replace sentinels, and cells without a number, in place."""
    unreadable = np.isnan(values)
    if sentinels == "keep":
        if unreadable.any():
            row, column = np.argwhere(unreadable)[0]
            raise ValueError(
                f"sentinels='keep' needs a number in every cell, but row {row} has none in {columns[column]!r}; "
                f"use 'mask' or 'interpolate'"
            )
        return
    values[values == sentinel] = np.nan
    if sentinels == "mask":
        return
    rows = np.arange(len(values))
    for index, column in enumerate(values.T):
        bad = np.isnan(column)
        if bad.all():
            raise ValueError(f"column {columns[index]!r} has no valid value to interpolate from")
        column[bad] = np.interp(rows[bad], rows[~bad], column[~bad])


def statistics(
    training: NDArray[np.float64], columns: tuple[str, ...]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return each column's mean and standard deviation (n - 1) over its values that are not NaN."""
    counts = np.sum(~np.isnan(training), axis=0)
    mean = np.nansum(training, axis=0) / np.maximum(counts, 1)
    std = np.sqrt(np.nansum((training - mean) ** 2, axis=0) / np.maximum(counts - 1, 1))
    for column, deviation in zip(columns, std, strict=True):
        if not deviation > 0:
            raise ValueError(f"column {column!r} does not vary over the training rows, so it cannot be standardised")
    return mean, std


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise ``ValueError`` unless ``value`` is one of ``choices``."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")
