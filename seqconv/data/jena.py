"""The Jena weather station: 14 measurements every 10 minutes, standardised, with a report of the file's flaws."""

from __future__ import annotations

import os
from typing import ClassVar, Literal

from seqconv.data import sources
from seqconv.data.series import SENTINEL, SeriesData, Splits, check_choice, prepared, split_rows
from seqconv.data.series_csv import read_columns
from seqconv.data.series_report import STEP
from seqconv.data.sources import JENA_COLUMNS
from seqconv.data.synthetic_jena import synthetic_climate

__all__ = ["JenaData", "Splits", "load_jena", "split_rows"]

TARGET = "T (degC)"
TIMES = ("Date Time", "date")  # the station's own name, and the one in the forecasting benchmarks' weather.csv


class JenaData(SeriesData):
    """The station's 14 measurements, 10 minutes apart, to predict the temperature from."""

    task: ClassVar[str] = "jena"

    def degrees(self, error: float) -> float:
        """Return an absolute error of the standardised temperature in degrees Celsius."""
        return self.in_units(error)


def load_jena(
    *,
    data_dir: str | os.PathLike[str] | None = None,
    source: sources.DataSource = "auto",
    sentinels: Literal["interpolate", "mask", "keep"] = "interpolate",
    repeated: Literal["keep", "drop"] = "keep",
    split: tuple[int, int] | tuple[float, float] | None = None,
    synthetic_rows: int = 52_560,
) -> JenaData:
    """Return the Jena series of 2009-2016 or 2020, from its CSV or the zip of it; without either, a made-up one.

    Read, too, are the station's own file, ``mpi_roof.csv``, and the forecasting benchmarks' ``weather.csv``, of which
    the same 14 columns are taken. For all of theirs, and for other files: :func:`seqconv.data.load_csv`.

    ``sentinels`` says what becomes of -9999, the station's mark of a failed sensor: ``"interpolate"`` puts in the
    straight line between the column's neighbouring values (at either end of the file, the nearest value), ``"mask"``
    puts NaN, ``"keep"`` keeps the number as the notebook did. The default departs from the notebook because one -9999
    among 25,000 wind speeds makes their standard deviation some 35 times too large, which erases that column. (It looks
    ahead to the next good row, usually ten minutes.) Cells that hold no number are treated likewise, except that they
    cannot be kept.

    ``repeated="keep"`` keeps rows whose time stamp was there before, as the notebook did; ``"drop"`` drops all but the
    first. Either way ``report`` tells of the file as it stands, and ``groups`` changes at every step that is not 10
    minutes.

    ``split`` gives the rows for training and validation, as two counts or two fractions; the rest is for testing. The
    default is the notebook's 200,000 and 100,000 of 420,551 rows, in proportion.

    Where the files are looked for: :func:`seqconv.data.sources.find`. Raises ``FileNotFoundError`` where a named folder
    holds none, ``ValueError`` for a damaged file, lacking columns, unreadable time stamps and bad arguments.
    """
    check_choice("sentinels", sentinels, ("interpolate", "mask", "keep"))
    check_choice("repeated", repeated, ("keep", "drop"))
    path = sources.find("jena", data_dir=data_dir, source=source)
    if path is None:
        times, values = synthetic_climate(synthetic_rows)
        origin = f"synthetic (a made-up climate of {synthetic_rows} rows)"
    else:
        rows = read_columns(path, columns=JENA_COLUMNS, date_column=TIMES)
        times, values, origin = rows.times, rows.values, str(path)
    data: JenaData = prepared(
        JenaData,
        times,
        values,
        JENA_COLUMNS,
        target=TARGET,
        step=STEP,
        sentinel=SENTINEL,
        sentinels=sentinels,
        repeated=repeated,
        split=split,
        source=origin,
        synthetic=path is None,
    )
    return data
