import json
import os
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from seqconv.data import load_jena, sources
from seqconv.data.jena import split_rows
from seqconv.data.sources import JENA_COLUMNS

SHARED = Path(os.environ.get("SEQCONV_DATA") or Path(__file__).parents[2] / ".." / "shared" / "data")
NAME = "jena_climate_2009_2016.csv"
WIND = JENA_COLUMNS.index("wv (m/s)")


@pytest.fixture(autouse=True)
def no_other_data(monkeypatch, tmp_path):
    monkeypatch.delenv("SEQCONV_DATA", raising=False)
    monkeypatch.setenv("SEQCONV_CACHE", str(tmp_path / "cache"))


def measurements(rows=40):
    return np.round(np.random.default_rng(1).normal(5, 3, (rows, 14)), 2)


def table(values, minutes=None):
    minutes = 10 * np.arange(len(values)) if minutes is None else np.asarray(minutes)
    times = pd.Timestamp("2009-01-01 00:10") + pd.to_timedelta(minutes, unit="min")
    frame = pd.DataFrame(values, columns=JENA_COLUMNS)
    frame.insert(0, "Date Time", times.strftime("%d.%m.%Y %H:%M:%S"))
    return frame


def write(folder, values=None, minutes=None, text=None, name=NAME):
    text = table(measurements() if values is None else values, minutes).to_csv(index=False) if text is None else text
    (folder / name).write_text(text)
    return folder


def restored(data):
    return data.series * data.std + data.mean


def test_the_series_is_standardised_with_the_training_rows_alone(tmp_path):
    values = measurements()
    values[30:] *= 50
    data = load_jena(data_dir=write(tmp_path, values), split=(20, 10))
    training = pd.DataFrame(values[:20])
    np.testing.assert_allclose(data.mean, training.mean(), rtol=1e-12)
    np.testing.assert_allclose(data.std, training.std(ddof=1), rtol=1e-12)
    np.testing.assert_allclose(data.series, (values - data.mean) / data.std, rtol=1e-6)
    assert data.series.dtype == np.float32
    assert data.series.flags.c_contiguous
    assert data.columns[data.target_column] == "T (degC)"
    assert data.degrees(2.0) == pytest.approx(2 * training[1].std(), rel=1e-12)
    assert data.times[1] == np.datetime64("2009-01-01T00:20:00")
    assert (data.synthetic, data.source) == (False, str(tmp_path / NAME))
    assert data.report.clean
    assert "nothing wrong" in str(data.report)


@pytest.mark.parametrize("year", ["2009_2016", "2020"])
@pytest.mark.parametrize("zipped", [False, True])
def test_either_year_range_plain_or_zipped_with_columns_in_any_order(tmp_path, year, zipped):
    values = measurements()
    frame = table(values)
    frame["extra"] = "x"
    text = frame[[*reversed(frame.columns)]].to_csv(index=False, quoting=1)
    name = f"jena_climate_{year}.csv"
    if zipped:
        with zipfile.ZipFile(tmp_path / f"{name}.zip", "w") as archive:
            archive.writestr(name, text)
            archive.writestr(f"__MACOSX/{name}", "")
    else:
        write(tmp_path, text=text, name=name)
    np.testing.assert_allclose(restored(load_jena(data_dir=tmp_path)), values, atol=1e-5)


def flawed():
    values = measurements()
    values[[3, 4, 39], WIND] = -9999
    return values


def test_sentinels_are_interpolated_by_default(tmp_path):
    values = flawed()
    data = load_jena(data_dir=write(tmp_path, values))
    wind = restored(data)[:, WIND]
    third = (values[5, WIND] - values[2, WIND]) / 3
    np.testing.assert_allclose(wind[3:5], values[2, WIND] + third * np.array([1, 2]), atol=1e-5)
    np.testing.assert_allclose(wind[39], values[38, WIND], atol=1e-5)
    assert data.report.sentinels == {"wv (m/s)": [3, 4, 39]}
    assert "wv (m/s): -9999 in 3 rows (3, 4, 39)" in str(data.report)
    assert np.array_equal(data.series, load_jena(data_dir=tmp_path, sentinels="interpolate").series)


def test_sentinels_can_be_masked(tmp_path):
    values = flawed()
    data = load_jena(data_dir=write(tmp_path, values), sentinels="mask", split=(20, 10))
    assert np.argwhere(np.isnan(data.series)).tolist() == [[3, WIND], [4, WIND], [39, WIND]]
    valid = np.delete(values[:20, WIND], [3, 4])
    np.testing.assert_allclose([data.mean[WIND], data.std[WIND]], [valid.mean(), valid.std(ddof=1)], rtol=1e-12)


def test_sentinels_can_be_kept_as_in_the_notebook(tmp_path):
    values = flawed()
    data = load_jena(data_dir=write(tmp_path, values), sentinels="keep", split=(20, 10))
    np.testing.assert_allclose(data.mean, values[:20].mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(data.std, values[:20].std(axis=0, ddof=1), rtol=1e-12)
    np.testing.assert_allclose(restored(data)[3, WIND], -9999, rtol=1e-6)


def test_cells_without_numbers_are_reported_and_filled(tmp_path):
    frame = table(measurements()).astype(object)
    frame.iloc[7, 1], frame.iloc[8, 1], frame.iloc[9, 1] = "broken", "", "inf"
    write(tmp_path, text=frame.to_csv(index=False))
    data = load_jena(data_dir=tmp_path)
    assert data.report.unreadable == {"p (mbar)": [7, 8, 9]}
    assert "p (mbar): no number in 3 rows (7, 8, 9)" in str(data.report)
    assert np.isfinite(data.series).all()
    assert np.isnan(load_jena(data_dir=tmp_path, sentinels="mask").series[7:10, 0]).all()
    with pytest.raises(
        ValueError, match=r"sentinels='keep' needs a number in every cell, but row 7 has none in 'p \(mbar\)'"
    ):
        load_jena(data_dir=tmp_path, sentinels="keep")


def test_flaws_in_time_are_reported_and_part_the_groups(tmp_path):
    # Row 3 repeats row 2; 90 minutes lie before row 5; row 7 goes back, to a time not seen yet.
    minutes = [0, 10, 20, 20, 30, 120, 130, 60, 70, *range(140, 450, 10)]
    write(tmp_path, measurements(len(minutes)), minutes)
    data = load_jena(data_dir=tmp_path)
    assert data.report.repeated == [3]
    assert data.report.backwards == [7]
    assert data.report.gaps == [(5, 90.0), (9, 70.0)]
    # 40, 50, 80, 90, 100 and 110 minutes are in no row.
    assert data.report.missing == 6
    assert data.groups[:11].tolist() == [0, 0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    text = str(data.report)
    for phrase in (
        "repeated in 1 row (3)",
        "goes back in 1 row (7)",
        "2 gaps in time, the longest of 90",
        "6 time stamps missing",
    ):
        assert phrase in text
    assert json.loads(json.dumps(data.describe()))["report"]["gaps"] == [[5, 90.0], [9, 70.0]]


def test_repeated_rows_can_be_dropped(tmp_path):
    values = measurements(41)
    write(tmp_path, values, [0, 10, 10, *range(20, 400, 10)])
    kept, dropped = load_jena(data_dir=tmp_path), load_jena(data_dir=tmp_path, repeated="drop")
    assert len(kept.series) == 41
    np.testing.assert_allclose(restored(dropped), np.delete(values, 2, axis=0), atol=1e-5)
    assert not dropped.groups.any()
    assert kept.groups.max() == 1
    assert len(dropped.times) == len(dropped.groups) == 40
    assert kept.report == dropped.report


def test_the_notebooks_split_and_others():
    splits = split_rows(420_551, None)
    assert splits == (slice(0, 200_000), slice(200_000, 300_000), slice(300_000, 420_551))
    assert split_rows(52_560, None) == (slice(0, 24_995), slice(24_995, 37_493), slice(37_493, 52_560))
    assert split_rows(100, (50, 20)) == (slice(0, 50), slice(50, 70), slice(70, 100))
    assert split_rows(100, (0.6, 0.25)) == (slice(0, 60), slice(60, 85), slice(85, 100))


@pytest.mark.parametrize("split", [(0.5,), (0.5, float("nan")), (10, 20, 30)])
def test_what_is_no_pair_of_sizes_is_named(split):
    with pytest.raises(ValueError, match="split must be two counts or two fractions of rows, got"):
        split_rows(100, split)


@pytest.mark.parametrize("split", [(0, 10), (90, 10), (50, 0), (0.5, 0.5), (-3, 20), (1, 3)])
def test_splits_without_rows_are_refused(split):
    with pytest.raises(ValueError, match=r"split must leave .* of the 100 rows, got"):
        split_rows(100, split)


def test_lacking_columns_are_named(tmp_path):
    write(tmp_path, text=table(measurements()).drop(columns=["wv (m/s)", "Date Time"]).to_csv(index=False))
    with pytest.raises(ValueError, match=r"lacks the columns Date Time, wv \(m/s\); it has p \(mbar\)"):
        load_jena(data_dir=tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is not a whole CSV file"),
        (table(measurements()).to_csv(index=False) + "1," * 30 + "\n", "is not a whole CSV file"),
        (table(measurements()).to_csv(index=False).splitlines()[0] + "\n", "has no rows"),
        (
            table(measurements()).to_csv(index=False) + "01.01.20",
            r"line 42, column 'Date Time': a date must be like 31\.12.*; got '01.01.20'; is the file cut off",
        ),
        ("\0\x1f\x8b" * 100, "lacks the columns|is not a whole CSV file"),
    ],
)
def test_damaged_files_are_refused(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        load_jena(data_dir=write(tmp_path, text=text))


def test_a_row_cut_off_within_its_numbers_is_reported(tmp_path):
    text = table(measurements()).to_csv(index=False).rstrip()
    write(tmp_path, text=text[: text.rindex(",", 0, text.rindex(","))])
    assert list(load_jena(data_dir=tmp_path).report.unreadable.items()) == [("max. wv (m/s)", [39]), ("wd (deg)", [39])]


@pytest.mark.parametrize("kept", [0.1, 0.5, 0.99])
def test_a_cut_zip_is_refused(tmp_path, kept):
    path = tmp_path / f"{NAME}.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(NAME, table(measurements()).to_csv(index=False))
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * kept)])
    with pytest.raises(ValueError, match=r"csv.zip is not a whole CSV file, or zip of one"):
        load_jena(data_dir=tmp_path)


def test_a_zip_with_a_flipped_bit_is_refused(tmp_path):
    path = tmp_path / f"{NAME}.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(NAME, table(measurements()).to_csv(index=False))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"csv.zip is not a whole CSV file"):
        load_jena(data_dir=tmp_path)


def test_a_zip_by_an_unknown_method_is_refused(tmp_path):
    path = tmp_path / f"{NAME}.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(NAME, table(measurements()).to_csv(index=False))
    content = bytearray(path.read_bytes())
    content[content.rindex(b"PK\1\2") + 10] = 99
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"csv.zip is not a whole CSV file"):
        load_jena(data_dir=tmp_path)
    with pytest.raises(ValueError, match=r"csv.zip is not a whole zip file"):
        sources.check_jena_zip(path, path.name)


def test_columns_that_cannot_be_standardised_are_named(tmp_path):
    values = measurements()
    values[:, 4] = 7.0
    with pytest.raises(ValueError, match=r"column 'rh \(%\)' does not vary over the training rows"):
        load_jena(data_dir=write(tmp_path, values))
    values[:, 4] = -9999
    with pytest.raises(ValueError, match=r"column 'rh \(%\)' has no valid value to interpolate from"):
        load_jena(data_dir=write(tmp_path, values))


@pytest.mark.parametrize("option", ["sentinels", "repeated"])
def test_bad_choices_are_named(option):
    with pytest.raises(ValueError, match=rf"{option} must be one of .*'keep'.*, got 'nothing'"):
        load_jena(**{option: "nothing"})


needs_real_rows = pytest.mark.skipif(
    not (SHARED / "jena_climate_2020.csv.zip").exists(),
    reason=f"needs the real rows, jena_climate_2020.csv.zip in {SHARED}",
)


@needs_real_rows
def test_the_real_rows_of_2020():
    data = load_jena(data_dir=SHARED)
    assert data.series.shape == (52_696, 14)
    assert np.isfinite(data.series).all()
    report = data.report
    assert report.sentinels == {"wv (m/s)": [7245]}
    assert report.unreadable == {}
    assert [str(data.times[row]) for row in report.repeated] == ["2020-05-12T06:00:00"]
    assert [minutes for _, minutes in report.gaps] == [100.0]
    assert report.missing == 9
    assert sources.verify("jena", data_dir=SHARED)["status"] == "good"


@needs_real_rows
def test_one_sentinel_erases_a_column_when_kept():
    interpolated, kept = (load_jena(data_dir=SHARED, sentinels=choice) for choice in ("interpolate", "keep"))
    assert kept.std[WIND] > 30 * interpolated.std[WIND]
    others = [column for column in range(14) if column != WIND]
    assert np.array_equal(kept.series[:, others], interpolated.series[:, others])
