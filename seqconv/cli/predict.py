"""``seqconv predict``: a trained model's prediction for every row of a CSV file, or for rows as they come."""

from __future__ import annotations

import argparse
import contextlib
import csv
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from seqconv.cli import options

if TYPE_CHECKING:
    from seqconv.data.series_csv import CsvRows
    from seqconv.experiments.prediction import Predictor

__all__ = ["add_parser"]

EXAMPLES = """  seqconv predict runs/jena station.csv --out predictions.csv
  seqconv predict runs/jena/best.pt station.csv --out predictions.csv --last 300 --plot last.png
  tail -f -n +1 station.csv | seqconv predict runs/jena --follow
  sensor | seqconv predict runs/jena --follow --out predictions.csv   (more rows are put behind those of the file)

The measurements are found by their names, in any order, and dates are read as in training. A prediction is of the
target, in its units, as many rows ahead as its column says. It is empty where no window is complete: at the begin, and
behind a gap in time. A measurement that failed takes the last good value of its column.
"""


def add_parser(commands: options.Commands) -> None:
    """Add the command."""
    command = options.add_command(
        commands, "predict", "predict for every row of a CSV, or for rows as they come", EXAMPLES
    )
    command.add_argument(
        "model", type=Path, metavar="MODEL", help="the folder that seqconv train jena wrote, or a checkpoint in it"
    )
    command.add_argument(
        "series", type=Path, metavar="SERIES", nargs="?", help="a CSV file, or the zip of one; - for standard input"
    )
    command.add_argument("--out", type=Path, metavar="FILE", help="the CSV file to write")
    command.add_argument(
        "--follow", action="store_true", help="read standard input, and write each prediction at once, if not to --out"
    )
    command.add_argument(
        "--plot",
        type=Path,
        metavar="FILE",
        help="picture of the last stretch (default: FILE.png beside --out, unless that is a device)",
    )
    command.add_argument(
        "--last", type=int, default=1000, metavar="N", help="rows in the picture (default 1000; 0 draws none)"
    )
    command.add_argument("--encoding", metavar="NAME", help="encoding of the series (default: as in training)")
    command.add_argument("--quiet", action="store_true", help="no summary on stderr")
    command.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Predict for a file, or follow standard input to its end."""
    from seqconv.experiments.prediction import Predictor

    check(arguments)
    predictor = Predictor(arguments.model)
    if arguments.encoding is not None:
        predictor.reading["encoding"] = arguments.encoding
    (follow if arguments.follow else predict)(arguments, predictor)
    return 0


def check(arguments: argparse.Namespace) -> None:
    """Raise ``ValueError`` for options that do not go together."""
    if arguments.last < 0:
        raise ValueError(f"--last must be at least 0, got {arguments.last}")
    for name, path in (("--out", arguments.out), ("--plot", arguments.plot)):
        if path is not None and path.is_dir():
            raise ValueError(f"{name} must be a file, got the folder {path}")
    if arguments.follow:
        if str(arguments.series or "-") != "-":
            raise ValueError(f"--follow reads standard input: leave SERIES out, or give -, got {arguments.series}")
        if arguments.plot is not None:
            raise ValueError("--plot goes with a series that ends: leave out --follow")
        return
    if arguments.series is None:
        raise ValueError("SERIES must be a CSV file, or - for standard input; with --follow it may be left out")
    if arguments.out is None:
        raise ValueError("--out FILE must say where to write, unless with --follow")
    if is_same_file(arguments.out, arguments.series):
        raise ValueError(f"--out must be another file than SERIES, got {arguments.out}")
    picture = picture_of(arguments)
    if picture is None:
        return
    named = (
        "--plot" if arguments.plot is not None else "--plot FILE must name the picture, or --last 0 leave it out: it"
    )
    for name, path in (("--out", arguments.out), ("SERIES", arguments.series)):
        if is_same_file(picture, path):
            raise ValueError(f"{named} must be another file than {name}, got {picture}")


def picture_of(arguments: argparse.Namespace) -> Path | None:
    """Return where the picture is drawn, ``None`` for no picture: beside --out, unless that is a device or a pipe."""
    from seqconv.files import is_special

    if not arguments.last or (arguments.plot is None and is_special(arguments.out)):
        return None
    path: Path = arguments.plot or arguments.out.with_suffix(".png")
    return path


def is_same_file(one: Path, other: Path) -> bool:
    """Tell whether two paths are of one file, there or not; a device or a pipe may be written twice."""
    from seqconv.files import is_special

    if is_special(one):
        return False
    if one.exists() and other.exists():
        return one.samefile(other)
    return one.resolve() == other.resolve()


def predict(arguments: argparse.Namespace, predictor: Predictor) -> None:
    """Write a prediction for each row of the series, and the picture of the last ones."""
    import numpy as np

    from seqconv.experiments.prediction import in_words, plot_predictions
    from seqconv.files import atomic_write

    count = made = 0
    picture = picture_of(arguments)
    kept = 0 if picture is None else arguments.last + predictor.ahead
    recent: list[Any] = [np.empty(0, "datetime64[ns]"), np.empty(0), np.empty(0)]
    with atomic_write(arguments.out) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        for rows in rows_of(arguments.series, predictor):
            found = predictor.extend(rows)
            if count == 0:
                table.writerow(header(rows, predictor))
            table.writerows(lines(rows, found))
            count, made = count + len(found), made + int(np.isfinite(found).sum())
            new = rows.times, rows.values[:, predictor.target_column], found
            recent = [np.concatenate(pair)[-kept:] for pair in zip(recent, new, strict=True)] if kept else recent
        if count == 0:
            raise ValueError(f"{arguments.series} has no rows")
    if picture is not None:
        times, measured, found = recent
        plot_predictions(predictor, times, measured, found, arguments.last, picture)
    if not arguments.quiet:
        print(
            f"{counted(count, 'row')}, {made} with a prediction of {predictor.target}, "
            f"{in_words(predictor.ahead_time)} ahead\n{counted(predictor.failed, 'failed measurement')}",
            file=sys.stderr,
        )
        if not made:
            print(
                f"a prediction needs {counted(predictor.rows, 'row')}, {in_words(predictor.row)} one after the other",
                file=sys.stderr,
            )


def follow(arguments: argparse.Namespace, predictor: Predictor) -> None:
    """Write a prediction for each row of standard input as it comes."""
    with appended(arguments.out) as (file, is_new):
        table = csv.writer(file, lineterminator="\n")
        for rows in rows_of(Path("-"), predictor):
            if is_new:
                table.writerow(header(rows, predictor))
                is_new = False
            table.writerows(lines(rows, predictor.extend(rows)))
            file.flush()


@contextlib.contextmanager
def appended(path: Path | None) -> Iterator[tuple[IO[str], bool]]:
    """Open a file to write behind what is there, or standard output; tell whether there is nothing yet."""
    if path is None:
        yield sys.stdout, True
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8", newline="") as file:
        yield file, not file.seekable() or file.tell() == 0


def rows_of(series: Path, predictor: Predictor) -> Iterator[CsvRows]:
    """Yield the rows of a file, or of standard input as they come."""
    from seqconv.data.series_csv import opened, read_rows

    if str(series) == "-":
        yield from read_rows(sys.stdin.buffer, "standard input", columns=predictor.columns, **predictor.reading)
        return
    with opened(series) as file:
        yield from read_rows(file, str(series), columns=predictor.columns, **predictor.reading)


def counted(number: int, name: str) -> str:
    """Return a number of things, in the singular for one."""
    return f"{number} {name}" if number == 1 else f"{number} {name}s"


def header(rows: CsvRows, predictor: Predictor) -> list[str]:
    """Return the names of the columns that are written."""
    return [rows.date_column, f"{predictor.target} {predictor.ahead} rows ahead"]


def lines(rows: CsvRows, found: Any) -> Iterator[tuple[str, str]]:
    """Yield each row's date as it stands, and its prediction, empty where there is none."""
    return ((date, "" if value != value else f"{value:.7g}") for date, value in zip(rows.dates, found, strict=True))
