"""A station's or a sensor's CSV file as a series: which column is what, and where in the file something is wrong."""

from __future__ import annotations

import codecs
import io
import os
import re
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from seqconv.data import sources
from seqconv.data.series import SENTINEL, SeriesData, check_choice, prepared

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["CsvRows", "load_csv", "opened", "read_columns", "read_rows"]

# Bytes of a file that are read at a time where it is read row by row.
BLOCK = 2**20

# Bytes at a file's begin that show its encoding.
START = 8

# Formats of a date that are tried where none is given, with an example of each.
FORMATS = {"%d.%m.%Y %H:%M:%S": "31.12.2020 23:50:00", "ISO8601": "2020-12-31 23:50:00"}


def load_csv(
    path: str | os.PathLike[str],
    *,
    target: str,
    date_column: str | None = None,
    date_format: str | None = None,
    columns: Sequence[str] | None = None,
    encoding: str | None = None,
    separator: str = ",",
    decimal: str = ".",
    sentinel: float = SENTINEL,
    sentinels: Literal["interpolate", "mask", "keep"] = "interpolate",
    repeated: Literal["keep", "drop"] = "keep",
    split: tuple[int, int] | tuple[float, float] | None = None,
) -> SeriesData:
    """Return the measurements in a CSV file of one's own, or in the zip of one, as a series to predict ``target`` from.

    The first line holds the columns' names. ``date_column`` is by default the first column. ``date_format`` is that of
    ``datetime.strptime``; without it, ``31.12.2020 23:50:00`` and ISO 8601 are understood, offsets from UTC included,
    which are then taken off. ``columns`` are the measurements, in the order wanted; by default all but the date.
    ``target`` is one of them. ``encoding`` is by default UTF-8 where the file is that, else Latin-1.

    Lines without any content (only commas) are left out. The series' step is the most frequent distance of two
    neighbouring dates. Empty cells, infinite numbers and ``sentinel``, the mark of a failed measurement, are treated as
    ``sentinels`` says; that, ``repeated`` and ``split`` are as in :func:`seqconv.data.load_jena`.

    Raises ``FileNotFoundError``, and ``ValueError`` that names line, column and value, for a file that cannot be read,
    a column that is not there, a date or number that is none, a column that never varies, and bad arguments.
    """
    check_choice("sentinels", sentinels, ("interpolate", "mask", "keep"))
    check_choice("repeated", repeated, ("keep", "drop"))
    path = Path(path)
    rows = read_columns(
        path,
        columns=columns,
        date_column=None if date_column is None else (date_column,),
        date_format=date_format,
        encoding=encoding,
        separator=separator,
        decimal=decimal,
        strict=True,
    )
    if target not in rows.columns:
        raise ValueError(f"target must be one of the columns {', '.join(rows.columns)}, got {target!r}")
    data: SeriesData = prepared(
        SeriesData,
        rows.times,
        rows.values,
        rows.columns,
        target=target,
        step=usual_step(rows.times, path),
        sentinel=sentinel,
        sentinels=sentinels,
        repeated=repeated,
        split=split,
        source=str(path),
        synthetic=False,
        date_column=rows.date_column,
    )
    return data


def read_columns(
    path: Path,
    *,
    columns: Sequence[str] | None = None,
    date_column: tuple[str, ...] | None = None,
    date_format: str | None = None,
    encoding: str | None = None,
    separator: str = ",",
    decimal: str = ".",
    strict: bool = False,
) -> CsvRows:
    """Return a file's rows; arguments as in :func:`load_csv`.

    ``date_column`` may give several names, of which the first that is there counts. A cell that holds text is an error
    where ``strict``, else NaN, as empty cells and infinite numbers are.
    """
    table = read_table(path, encoding, separator, decimal)
    return rows_of(table, path, columns, date_column, date_format, strict=strict)


class CsvRows(NamedTuple):
    """Rows of a file: the date column's name and its texts as they stand, dates ``(rows,)``, measurements
    ``(rows, columns)`` and the columns' names.
    """

    date_column: str
    dates: list[str]
    times: NDArray[np.datetime64]
    values: NDArray[np.float64]
    columns: tuple[str, ...]


def read_rows(
    file: IO[bytes],
    name: str,
    *,
    columns: Sequence[str] | None = None,
    date_column: tuple[str, ...] | None = None,
    date_format: str | None = None,
    encoding: str | None = None,
    separator: str = ",",
    decimal: str = ".",
) -> Iterator[CsvRows]:
    """Yield the rows of an open file as they come: all lines that are there already, of 1 MiB at a time.

    ``name`` is the file's in errors; the other arguments are those of :func:`read_columns`, with text in a cell an
    error. Memory does not grow with the file.
    """
    header, line = None, 2
    for text in whole_lines(file, name, encoding):
        if header is None:
            header, _, text = text.partition("\n")
        if text.strip():
            table = parsed(io.StringIO(f"{header}\n{text}"), name, separator, decimal, line=line)
            if len(table):
                yield rows_of(table, name, columns, date_column, date_format, strict=True)
        line += text.count("\n")
    if header is None:
        raise ValueError(f"{name} is empty: its first line must hold the columns' names")


def whole_lines(file: IO[bytes], name: str, encoding: str | None) -> Iterator[str]:
    """Yield the text of a file as it comes, each time to the end of a line: UTF-8 or Latin-1 without ``encoding``."""
    try:
        decoder = codecs.getincrementaldecoder(encoding or "utf-8-sig")()
    except LookupError as error:
        raise ValueError(f"encoding must be one that Python knows, got {encoding!r}") from error
    rest, is_first = "", True
    while content := file.read1(BLOCK):  # type: ignore[attr-defined]
        if is_first and encoding is None:
            require_bytes(content, name)
        is_first = False
        try:
            text = decoder.decode(content)
        except UnicodeDecodeError as error:
            if encoding is not None:
                raise ValueError(f"{name} is not encoded as {encoding}: {error}") from error
            encoding, content = "latin-1", decoder.getstate()[0] + content
            decoder = codecs.getincrementaldecoder(encoding)()
            text = decoder.decode(content)
        lines, newline, rest = (rest + text).rpartition("\n")
        if newline:
            yield lines + newline
    if rest:
        yield rest


def rows_of(
    table: pd.DataFrame,
    path: Path | str,
    columns: Sequence[str] | None,
    date_column: tuple[str, ...] | None,
    date_format: str | None,
    *,
    strict: bool,
) -> CsvRows:
    """Return a table's dates and measurements; arguments as in :func:`read_columns`."""
    present = [str(column) for column in table.columns]
    dates = date_column or (present[0],)
    date = next((name for name in dates if name in present), dates[0])
    wanted = [name for name in present if name != date] if columns is None else list(columns)
    missing = [name for name in (date, *wanted) if name not in present]
    if missing:
        raise ValueError(f"{path} lacks the columns {', '.join(missing)}; it has {', '.join(present)}{hint(table)}")
    doubled = [name for name in wanted if [date, *wanted].count(name) > 1]
    if doubled:
        raise ValueError(f"columns must name each measurement once, and not the date, got {doubled[0]!r} twice")
    if not wanted:
        raise ValueError(f"{path} has no column beside {date!r}{hint(table)}")
    if table.empty:
        raise ValueError(f"{path} has no rows")
    values = np.column_stack([numbers(table[name], path, strict=strict) for name in wanted])
    texts = table[date].astype(str).str.strip()
    return CsvRows(date, texts.tolist(), parse_dates(table[date], date_format, path), values, tuple(wanted))


def read_table(path: Path, encoding: str | None, separator: str, decimal: str) -> pd.DataFrame:
    """Return the file's table, its rows indexed by their line numbers, without lines that hold nothing."""
    for tried in ("utf-8-sig", "latin-1") if encoding is None else (encoding,):
        try:
            with opened(path) as file:
                if encoding is None:
                    require_bytes(file.peek(START), path)  # type: ignore[attr-defined]
                return parsed(file, path, separator, decimal, encoding=tried)
        except UnicodeDecodeError as error:
            if tried != "utf-8-sig":
                raise ValueError(f"{path} is not encoded as {encoding}: {error}") from error
        except FileNotFoundError:
            raise
        except LookupError as error:
            raise ValueError(f"encoding must be one that Python knows, got {encoding!r}") from error
        except (OSError, RuntimeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise ValueError(f"{path} is not a whole CSV file, or zip of one: {error}") from error
    raise AssertionError  # Latin-1 has a letter for every byte


def require_bytes(start: bytes, path: Path | str) -> None:
    """Raise ``ValueError`` where a file's first bytes are those of UTF-16: its mark, or a zero beside every letter."""
    even, odd = start[:START:2], start[1:START:2]
    if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or (odd and any(even) != any(odd)):
        raise ValueError(f"{path} is neither UTF-8 nor Latin-1: encoding must name what it is, likely utf-16")


def parsed(
    file: IO[Any], path: Path | str, separator: str, decimal: str, *, encoding: str = "utf-8", line: int = 2
) -> pd.DataFrame:
    """Return the table of a header and rows, the first of which is line ``line`` of the whole file."""
    import pandas as pd

    try:
        table = pd.read_csv(
            file,
            sep=separator,
            decimal=decimal,
            skipinitialspace=True,
            encoding=encoding,
            skip_blank_lines=False,
            low_memory=False,
        )
    except UnicodeDecodeError:
        raise
    except ValueError as error:
        told = re.sub(r"(?<=line )\d+", lambda number: str(int(number[0]) + line - 2), str(error))
        raise ValueError(f"{path} is not a whole CSV file, or zip of one: {told}") from error
    if not isinstance(table.index, pd.RangeIndex):  # pandas takes the first cells for names of rows
        names = ", ".join(map(str, table.columns))
        raise ValueError(
            f"{path}, line {line}: the rows have more cells than line 1 has names of columns, {names}{hint(table)}"
        )
    table.columns = [str(column).strip() for column in table.columns]
    table.index += line
    return table.dropna(how="all")


def hint(table: pd.DataFrame) -> str:
    """Return a question to add to an error where all stands in one column."""
    return "; is the separator another one?" if len(table.columns) == 1 else ""


def parse_dates(column: pd.Series[Any], date_format: str | None, path: Path | str) -> NDArray[np.datetime64]:
    """Return the dates, to the second unless they are finer; raise ``ValueError`` with the first that is none."""
    import pandas as pd

    texts = column.astype(str).str.strip()

    def dated(texts: pd.Series[Any], date_format: str) -> pd.Series[Any]:
        return pd.to_datetime(texts, format=date_format, errors="coerce", utc=True)

    likely = next((one for one in FORMATS if dated(texts.iloc[:1], one).notna().all()), None)
    chosen = date_format or likely
    times = pd.Series(pd.NaT, texts.index) if chosen is None else dated(texts, chosen)
    bad = np.flatnonzero(times.isna())
    if len(bad):
        like = " or ".join(FORMATS.values()) if chosen is None else FORMATS.get(chosen, chosen)
        say = "" if date_format else ", or date_format must say how to read it"
        raise ValueError(
            f"{path}, line {texts.index[bad[0]]}, column {column.name!r}: a date must be like {like}{say}; got "
            f"{column.iloc[int(bad[0])]!r}" + ("; is the file cut off?" if bad[0] else "")
        )
    exact: NDArray[np.datetime64] = times.dt.tz_localize(None).to_numpy().astype("datetime64[ns]")
    seconds = exact.astype("datetime64[s]")
    return seconds if (seconds == exact).all() else exact


def numbers(column: pd.Series[Any], path: Path | str, *, strict: bool) -> NDArray[np.float64]:
    """Return the column as numbers, NaN where a cell holds none or an infinite one."""
    import pandas as pd

    values = np.array(pd.to_numeric(column, errors="coerce"), dtype=np.float64)
    text = np.flatnonzero(np.isnan(values) & column.notna().to_numpy())
    if strict and len(text):
        raise ValueError(
            f"{path}, line {column.index[text[0]]}, column {column.name!r}: a measurement must be a number, got "
            f"{column.iloc[int(text[0])]!r}; leave the column out by naming the others as columns, or empty the cell"
        )
    values[np.isinf(values)] = np.nan
    return values


def usual_step(times: NDArray[np.datetime64], path: Path) -> np.timedelta64:
    """Return the most frequent distance of two neighbouring dates, the smallest of these."""
    steps = np.diff(times)
    steps, counts = np.unique(steps[steps > np.timedelta64(0)], return_counts=True)
    if not len(steps):
        raise ValueError(f"{path} must have two rows of different dates, one after the other; it has {len(times)} rows")
    step: np.timedelta64 = steps[np.argmax(counts)]
    return step


@contextmanager
def opened(path: Path) -> Iterator[IO[bytes]]:
    """Open a CSV, or the one CSV within a zip."""
    if path.suffix != ".zip":
        with path.open("rb") as file:
            yield file
        return
    with zipfile.ZipFile(path) as archive, archive.open(sources.csv_member(archive)) as member:
        yield member
