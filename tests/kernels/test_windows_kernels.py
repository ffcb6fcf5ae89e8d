"""Window kernels: the NumPy reference against plain loops, the compiled kernels against the same loops."""

from __future__ import annotations

import errno
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numba.core import caching

import seqconv.kernels.numba.runtime.compilation as compilation
import seqconv.kernels.numba.windows as numba_windows
import seqconv.kernels.reference.windows as reference_windows

FLOORS = pytest.mark.parametrize("floor", [reference_windows, numba_windows], ids=["reference", "numba"])
LAYOUTS = {
    "rows": lambda a: a,
    "read-only": lambda a: read_only(a.copy()),
    "transposed": lambda a: np.asfortranarray(a),
    "column slice": lambda a: np.pad(a, ((0, 0), (1, 2)), constant_values=-7)[:, 1:-2],
    "every other column": lambda a: np.repeat(a, 2, axis=1)[:, ::2],
    "every other row": lambda a: np.repeat(a, 2, axis=0)[::2],
    "backwards": lambda a: a[::-1, ::-1].copy()[::-1, ::-1],
    "unaligned": lambda a: unaligned(a),
}


def read_only(array: np.ndarray) -> np.ndarray:
    array.flags.writeable = False
    return array


def unaligned(array: np.ndarray) -> np.ndarray:
    content = np.frombuffer(b"\0" + array.tobytes(), np.uint8)[1:]
    return content.view(array.dtype).reshape(array.shape)


def numbers(rows: int, columns: int, dtype: Any) -> np.ndarray:
    """Every element names its row and column; a few are NaN of both signs, infinite, subnormal and -0.0."""
    series = (1000 * np.arange(rows)[:, None] + np.arange(columns)).astype(dtype)
    odd = np.array([np.nan, -np.nan, np.inf, -0.0, np.finfo(dtype).smallest_subnormal], dtype)
    spots = np.arange(0, series.size, 7)
    series.flat[spots] = np.resize(odd, len(spots))
    return series


@st.composite
def gathers(draw: st.DrawFn) -> dict[str, Any]:
    length, step = draw(st.integers(1, 9)), draw(st.integers(1, 5))
    starts = draw(st.integers(1, 30))
    rows = (length - 1) * step + starts
    return {
        "series": numbers(rows, draw(st.integers(1, 40)), draw(st.sampled_from([np.float32, np.float64]))),
        "layout": draw(st.sampled_from(sorted(LAYOUTS))),
        "starts": np.array(draw(st.lists(st.integers(0, starts - 1), max_size=6)), np.int64),
        "length": length,
        "step": step,
    }


@FLOORS
@settings(deadline=None)  # the first call compiles
@given(case=gathers())
def test_windows_equal_loops(floor: ModuleType, case: dict[str, Any]) -> None:
    series = LAYOUTS[case["layout"]](case["series"])
    before = series.tobytes()
    out = np.full((len(case["starts"]), case["length"], series.shape[1]), -1, series.dtype)
    expected = out.copy()
    for b, start in enumerate(case["starts"]):
        for s in range(case["length"]):
            expected[b, s] = case["series"][start + s * case["step"]]
    floor.gather_windows(series, case["starts"], case["length"], case["step"], out)
    assert out.tobytes() == expected.tobytes()
    assert series.tobytes() == before


@FLOORS
@settings(deadline=None)  # the first call compiles
@given(data=st.data(), layout=st.sampled_from(sorted(LAYOUTS)), dtype=st.sampled_from([np.float32, np.float64]))
def test_rows_equal_loops(floor: ModuleType, data: st.DataObject, layout: str, dtype: Any) -> None:
    plain = numbers(data.draw(st.integers(1, 20)), data.draw(st.integers(1, 12)), dtype)
    shape = data.draw(st.tuples(st.integers(0, 4), st.integers(0, 5)))
    size = shape[0] * shape[1]
    rows = data.draw(st.lists(st.integers(0, len(plain) - 1), min_size=size, max_size=size))
    columns = data.draw(st.lists(st.integers(0, plain.shape[1] - 1), max_size=5))
    rows, columns = np.array(rows, np.int64).reshape(shape), np.array(columns, np.int64)
    out = np.full((*shape, len(columns)), -1, dtype)
    expected = out.copy()
    for b, s, j in np.ndindex(*expected.shape):
        expected[b, s, j] = plain[rows[b, s], columns[j]]
    floor.gather_rows(LAYOUTS[layout](plain), rows, columns, out)
    assert out.tobytes() == expected.tobytes()


@FLOORS
@pytest.mark.parametrize("dtype", [np.int8, np.int16, np.int32, np.int64])
def test_index_types(floor: ModuleType, dtype: Any) -> None:
    series = np.arange(600, dtype=np.float32).reshape(300, 2)
    out = np.empty((3, 4, 2), np.float32)
    floor.gather_windows(series, np.array([120, 9, 5, 0, 1, 0], dtype)[::2], 4, 50, out)
    np.testing.assert_array_equal(out[:, :, 0], 2 * (np.array([[120], [5], [1]]) + 50 * np.arange(4)))


@FLOORS
@pytest.mark.parametrize("start", [-1, -(2**62), 8, 2**63 - 1])
def test_window_outside(floor: ModuleType, start: int) -> None:
    series, out = np.ones((10, 2), np.float32), np.full((2, 2, 2), 5, np.float32)
    with pytest.raises(IndexError, match=f"starts must lie within 0 to 7, got {start}"):
        floor.gather_windows(series, np.array([0, start]), 2, 2, out)
    assert (out == 5).all()


@FLOORS
def test_window_longer_than_series(floor: ModuleType) -> None:
    with pytest.raises(IndexError, match="starts"):
        floor.gather_windows(np.ones((3, 1)), np.array([0]), 2, 2**61, np.empty((1, 2, 1)))


@FLOORS
@pytest.mark.parametrize(("rows", "columns", "name"), [([3], [0], "rows"), ([-1], [0], "rows"), ([0], [2], "columns")])
def test_cell_outside(floor: ModuleType, rows: list[int], columns: list[int], name: str) -> None:
    with pytest.raises(IndexError, match=f"{name} must lie within 0 to"):
        floor.gather_rows(np.ones((3, 2)), np.array([rows]), np.array(columns), np.empty((1, 1, 1)))


@FLOORS
@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"series": np.ones((9, 2), np.int64)}, TypeError, "series must be float32 or float64"),
        ({"series": np.ones((9, 2), ">f4")}, TypeError, "series must be float32 or float64"),
        ({"series": np.ones(9)}, ValueError, "series must have shape"),
        ({"starts": np.array([0.0])}, TypeError, "starts must be signed integers"),
        ({"starts": np.array([[0]])}, ValueError, "starts must have 1 dimension"),
        ({"length": 0}, ValueError, "length and step must be at least 1"),
        ({"step": 0}, ValueError, "length and step must be at least 1"),
        ({"out": np.empty((1, 4, 2))}, ValueError, "out must have shape"),
        ({"out": np.empty((1, 3, 2), np.float32)}, TypeError, "out must have the series' dtype"),
        ({"out": np.empty((1, 3, 4))[:, :, ::2]}, ValueError, "out must be C-contiguous"),
        ({"out": read_only(np.empty((1, 3, 2)))}, ValueError, "writable"),
    ],
)
def test_bad_arguments(floor: ModuleType, changes: dict[str, Any], error: type[Exception], message: str) -> None:
    arguments = {
        "series": np.ones((9, 2)),
        "starts": np.array([0]),
        "length": 3,
        "step": 1,
        "out": np.empty((1, 3, 2)),
    }
    with pytest.raises(error, match=message):
        floor.gather_windows(**{**arguments, **changes})


@FLOORS
def test_addresses_beyond_31_bits(floor: ModuleType, tmp_path: Any) -> None:
    """A file of holes: more than 2**31 numbers, of which only the last rows take room."""
    rows = 2**28 + 10
    series = np.memmap(tmp_path / "holes", np.float32, mode="w+", shape=(rows, 9))
    series[-4:] = np.arange(36).reshape(4, 9)
    out = np.empty((1, 2, 9), np.float32)
    floor.gather_windows(series, np.array([rows - 3]), 2, 2, out)
    np.testing.assert_array_equal(out[0], np.arange(36).reshape(4, 9)[1::2])
    cell = np.empty((1, 1, 1), np.float32)
    floor.gather_rows(series, np.array([[rows - 1]]), np.array([8]), cell)
    assert cell[0, 0, 0] == 35


def test_compiles_without_a_cache_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    njit = compilation.njit

    def no_folder(*arguments: Any, cache: bool = False, **options: Any) -> Any:
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return njit(*arguments, **options)

    monkeypatch.setattr(compilation, "njit", no_folder)
    assert compilation.compiled(lambda value: value + 1)(2) == 3


def test_runs_what_it_compiled_though_the_disk_is_full(monkeypatch: pytest.MonkeyPatch) -> None:
    attempts = []

    def full(*_: Any) -> None:
        attempts.append("save")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(caching.IndexDataCacheFile, "save", full)
    assert compilation.compiled(lambda value: value + 2)(2) == 4
    assert attempts == ["save"]
