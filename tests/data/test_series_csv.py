"""CSV files of stations and sensors: whose format, whose columns, and what an error tells of the place."""

from __future__ import annotations

import io
import os
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from seqconv.data import load_csv, load_jena
from seqconv.data.series_csv import read_rows
from seqconv.data.sources import JENA_COLUMNS

SHARED = Path(os.environ.get("SEQCONV_DATA") or Path(__file__).parents[2] / ".." / "shared" / "data")
ROOF = (
    *JENA_COLUMNS,
    "rain (mm)",
    "raining (s)",
    "SWDR (W/m\u00b2)",
    "PAR (\u00b5mol/m\u00b2/s)",
    "max. PAR (\u00b5mol/m\u00b2/s)",
    "Tlog (degC)",
    "CO2 (ppm)",
)
WEATHER = (*ROOF[:-1], "OT")
DATES = pd.Timestamp("2020-01-01 00:10") + pd.to_timedelta(10 * np.arange(60), unit="min")


@pytest.fixture(autouse=True)
def no_other_data(monkeypatch, tmp_path):
    monkeypatch.delenv("SEQCONV_DATA", raising=False)
    monkeypatch.setenv("SEQCONV_CACHE", str(tmp_path / "cache"))


def measurements(columns):
    return np.round(np.random.default_rng(1).normal(5, 3, (60, columns)), 2)


def roof(folder, values):
    """Write the station's own file: Latin-1, CRLF, quoted names, the date day first."""
    lines = [",".join(f'"{name}"' for name in ("Date Time", *ROOF))]
    lines += [
        ",".join([date.strftime("%d.%m.%Y %H:%M:%S"), *map(str, row)])
        for date, row in zip(DATES, values.tolist(), strict=True)
    ]
    (folder / "mpi_roof.csv").write_bytes("\r\n".join([*lines, ""]).encode("latin-1"))
    return folder / "mpi_roof.csv"


def weather(folder, values, encoding="utf-8"):
    """Write the forecasting benchmarks' file: "date" in ISO form, OT last, rows of only commas at the end."""
    frame = pd.DataFrame(values, columns=list(WEATHER))
    frame.insert(0, "date", DATES.strftime("%Y-%m-%d %H:%M:%S"))
    text = frame.to_csv(index=False) + 3 * ("," * 21 + "\n")
    (folder / "weather.csv").write_bytes(text.encode(encoding))
    return folder / "weather.csv"


def restored(data):
    return data.series * data.std + data.mean


@pytest.mark.parametrize("write", [roof, weather])
def test_the_jena_task_reads_both_files_and_takes_its_14_columns(tmp_path, write):
    values = measurements(21)
    write(tmp_path, values)
    data = load_jena(data_dir=tmp_path)
    assert data.columns == JENA_COLUMNS
    np.testing.assert_allclose(restored(data), values[:, :14], atol=1e-5)
    assert data.times.tolist() == [date.to_pydatetime() for date in DATES]
    assert data.report.clean
    assert not data.groups.any()


@pytest.mark.parametrize(("write", "target", "names"), [(roof, "CO2 (ppm)", ROOF), (weather, "OT", WEATHER)])
def test_all_21_columns_of_both_files_are_read_by_name(tmp_path, write, target, names):
    values = measurements(21)
    data = load_csv(write(tmp_path, values), target=target)
    assert data.columns == names
    assert (data.target_column, data.target, data.series.shape) == (20, target, (60, 21))
    np.testing.assert_allclose(restored(data), values, atol=1e-5)
    assert data.step == np.timedelta64(10, "m")
    np.testing.assert_allclose(data.std, values[data.splits.train].std(axis=0, ddof=1), rtol=1e-12)
    assert data.in_units(2.0) == pytest.approx(2 * data.std[20])
    assert (data.synthetic, data.describe()["target"]) == (False, target)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "latin-1", "cp1252", "utf-16"])
def test_encodings(tmp_path, encoding):
    path = weather(tmp_path, measurements(21), encoding)
    data = load_csv(path, target="OT", encoding=encoding if encoding == "utf-16" else None)
    assert data.columns == WEATHER
    assert load_csv(path, target="OT", encoding=encoding).columns == WEATHER


def small(tmp_path, text, name="sensor.csv"):
    path = tmp_path / name
    path.write_text(text)
    return path


def sensor(rows=20, header="when,flow,load", date="%Y-%m-%d %H:%M", sep=",", each=60):
    stamps = pd.Timestamp("2024-02-28 22:00") + pd.to_timedelta(each * np.arange(rows), unit="min")
    lines = [sep.join([stamp.strftime(date), f"{row * 0.5}", f"{row * row}"]) for row, stamp in enumerate(stamps)]
    return "\n".join([header.replace(",", sep), *lines]) + "\n", stamps


@pytest.mark.parametrize(
    ("date", "given"),
    [
        ("%Y-%m-%d %H:%M", None),
        ("%Y-%m-%dT%H:%M:%S", None),
        ("%Y-%m-%dT%H:%M:%SZ", None),
        ("%d.%m.%Y %H:%M:%S", None),
        ("%m/%d/%Y %I:%M %p", "%m/%d/%Y %I:%M %p"),
        ("%d/%m/%y %H.%M", "%d/%m/%y %H.%M"),
        ("%Y%m%d%H%M", "%Y%m%d%H%M"),
    ],
)
def test_forms_of_dates(tmp_path, date, given):
    text, stamps = sensor(date=date)
    data = load_csv(small(tmp_path, text), target="load", date_format=given)
    assert data.times.tolist() == [stamp.to_pydatetime() for stamp in stamps]
    assert data.step == np.timedelta64(1, "h")


def test_offsets_from_utc_are_taken_off(tmp_path):
    lines = [
        "t,x",
        *(f"2024-10-27T0{h}:00:00+0{z}:00,{h + z * z}" for h, z in ((1, 2), (2, 2), (2, 1), (3, 1), (4, 1))),
    ]
    data = load_csv(small(tmp_path, "\n".join(lines)), target="x", split=(2, 1))
    assert [str(time)[:16] for time in data.times] == [
        f"2024-10-{d}" for d in ("26T23:00", "27T00:00", "27T01:00", "27T02:00", "27T03:00")
    ]
    assert not data.groups.any()


def test_parts_of_a_second_are_kept(tmp_path):
    lines = ["t,x", *(f"2024-01-01 00:00:00.{k:03d},{k * k}" for k in (0, 10, 20, 30, 60, 70, 80))]
    data = load_csv(small(tmp_path, "\n".join(lines)), target="x", split=(3, 2))
    assert data.step == np.timedelta64(10, "ms")
    assert data.groups.tolist() == [0, 0, 0, 0, 1, 1, 1]
    assert data.report.missing == 2


def test_names_of_columns_in_any_place(tmp_path):
    text, _ = sensor()
    frame = pd.read_csv(io.StringIO(text))
    frame.insert(0, "station", "north")
    path = tmp_path / "sensor.csv"
    frame[["station", "load", "when", "flow"]].to_csv(path, index=False)
    data = load_csv(path, target="flow", date_column="when", columns=["flow", "load"])
    assert (data.columns, data.target_column) == (("flow", "load"), 0)
    np.testing.assert_allclose(restored(data), frame[["flow", "load"]], atol=1e-4)


def test_separator_and_decimal_comma(tmp_path):
    text, _ = sensor(sep=";")
    path = small(tmp_path, text.replace(".", ","))
    data = load_csv(path, target="flow", separator=";", decimal=",")
    np.testing.assert_allclose(restored(data)[:, 0], 0.5 * np.arange(20), atol=1e-5)
    with pytest.raises(ValueError, match=r"more cells than .* columns, when;flow;load; is the separator another one"):
        load_csv(path, target="flow")
    with pytest.raises(
        ValueError, match=r"lacks the columns when; it has when;flow;load; is the separator another one"
    ):
        load_csv(small(tmp_path, text), target="flow", date_column="when")


def test_a_zip_and_lines_without_content_anywhere(tmp_path):
    text, _ = sensor()
    lines = text.splitlines()
    lines[5:5] = ["", ",,"]
    with zipfile.ZipFile(tmp_path / "sensor.zip", "w") as archive:
        archive.writestr("sensor.csv", "\n".join([*lines, ",,", ""]))
    data = load_csv(tmp_path / "sensor.zip", target="load")
    assert len(data.series) == 20
    assert not data.groups.any()
    lines[9] = lines[9].replace("2024", "two")
    with pytest.raises(ValueError, match=r"sensor\.csv, line 10, column 'when'"):  # blank lines count
        load_csv(small(tmp_path, "\n".join(lines)), target="load")


def test_failed_measurements_and_gaps_are_told_and_filled(tmp_path):
    text, _ = sensor()
    lines = text.splitlines()
    lines[4] = lines[4].rsplit(",", 1)[0] + ",-999"
    lines[6] = lines[6].rsplit(",", 1)[0] + ","
    del lines[10]
    data = load_csv(small(tmp_path, "\n".join(lines)), target="load", sentinel=-999)
    assert data.report.sentinels == {"load": [3]}
    assert data.report.unreadable == {"load": [5]}
    assert data.report.gaps == [(9, 120.0)]
    assert "load: -999 in 1 row (3)" in str(data.report)
    np.testing.assert_allclose(restored(data)[[3, 5], 1], [(4 + 16) / 2, (16 + 36) / 2], atol=1e-4)


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (("2024-02-29 03:00", "soon"), {}, r"line 7, column 'when': a date must be like 2020-12-31.*; got 'soon'"),
        (
            ("2024-02-28 22:00", "28/02/2024"),
            {},
            r"line 2, .* like 31\.12.* or 2020-.*or date_format must .* '28/02/2024'",
        ),
        (("2024-02-29 03:00", ""), {}, r"line 7, column 'when': a date must .* got nan"),
        (
            ("", ""),
            {"date_format": "%d.%m.%Y"},
            r"line 2, column 'when': a date must be like %d.%m.%Y; got '2024-02-28",
        ),
        ((",2.5,", ",2.5 m3,"), {}, r"line 7, column 'flow': a measurement must be a number, got '2\.5 m3'; leave the"),
        (("", ""), {"target": "Load"}, r"target must be one of the columns flow, load, got 'Load'"),
        (("", ""), {"target": "when"}, r"target must be one of the columns flow, load, got 'when'"),
        (("", ""), {"date_column": "date"}, r"lacks the columns date; it has when, flow, load"),
        (("", ""), {"columns": ["flow", "level"]}, r"lacks the columns level; it has when, flow, load"),
        (("", ""), {"columns": ["flow", "flow"]}, r"columns must name each measurement once, .* got 'flow' twice"),
        (("", ""), {"encoding": "latin-0"}, r"encoding must be one that Python knows, got 'latin-0'"),
        (("flow", "fl\u00f6w"), {"encoding": "ascii"}, r"sensor.csv is not encoded as ascii"),
        ((",2.5,", ",2.5,1,"), {}, r"is not a whole CSV file.*line 7"),
        (("when,flow,load", "flow,load"), {}, r"the rows have more cells than line 1 has names of columns, flow, load"),
        (("", ""), {"sentinels": "drop"}, r"sentinels must be one of .*, got 'drop'"),
        (("", ""), {"split": (30, 5)}, r"split must leave .* of the 20 rows, got \(30, 5\)"),
    ],
)
def test_errors_say_what_was_found_where(tmp_path, change, options, message):
    path = tmp_path / "sensor.csv"
    path.write_text(sensor()[0].replace(*change, 1), encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        load_csv(path, **{"target": "load", **options})


def test_files_without_rows_or_without_a_step(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_csv(tmp_path / "nowhere.csv", target="x")
    for text, message in (
        ("", "is not a whole CSV file"),
        ("t,x\n", "has no rows"),
        ("t,x\n,\n", "has no rows"),
        ("t,x\n2020-01-01,1\n", "must have two rows of different dates"),
        ("t\n2020-01-01\n", "has no column beside 't'; is the separator"),
    ):
        with pytest.raises(ValueError, match=message):
            load_csv(small(tmp_path, text), target="x")


@pytest.mark.skipif(not (SHARED / "jena_climate_2020.csv.zip").exists(), reason=f"needs the real rows in {SHARED}")
def test_the_real_rows_by_either_loader():
    data, jena = load_csv(SHARED / "jena_climate_2020.csv.zip", target="T (degC)"), load_jena(data_dir=SHARED)
    assert np.array_equal(data.series, jena.series)
    assert data.report == jena.report
    assert np.array_equal(data.groups, jena.groups)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("how", ["file", "rows"])
def test_utf_16_must_be_named(tmp_path, encoding, how):
    path = tmp_path / "sensor.csv"
    path.write_text("when,flow\n2020-01-01,3\n", encoding=encoding)

    def read():
        if how == "file":
            return load_csv(path, target="flow")
        return list(read_rows(io.BytesIO(path.read_bytes()), "sensor.csv"))

    with pytest.raises(ValueError, match=r"sensor.csv is neither UTF-8 nor Latin-1: encoding must name what it is"):
        read()
