"""Windows and rows of a series: every backend against plain loops, what is rejected, and who is chosen."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seqconv import BackendError, backends
from seqconv.data import SlidingWindows, gathering, seed_generator

BACKENDS = pytest.mark.parametrize("backend", ["reference", "numba"])
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


@BACKENDS
@settings(deadline=None)  # the first call compiles
@given(case=gathers())
def test_windows_equal_loops(backend: str, case: dict[str, Any]) -> None:
    series = LAYOUTS[case["layout"]](case["series"])
    before = series.tobytes()
    out = np.full((len(case["starts"]), case["length"], series.shape[1]), -1, series.dtype)
    expected = out.copy()
    for b, start in enumerate(case["starts"]):
        for s in range(case["length"]):
            expected[b, s] = case["series"][start + s * case["step"]]
    gathering.gather_windows(series, case["starts"], case["length"], case["step"], out, backend=backend)
    assert out.tobytes() == expected.tobytes()
    assert series.tobytes() == before


@BACKENDS
@settings(deadline=None)  # the first call compiles
@given(data=st.data(), layout=st.sampled_from(sorted(LAYOUTS)), dtype=st.sampled_from([np.float32, np.float64]))
def test_rows_equal_loops(backend: str, data: st.DataObject, layout: str, dtype: Any) -> None:
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
    gathering.gather_rows(LAYOUTS[layout](plain), rows, columns, out, backend=backend)
    assert out.tobytes() == expected.tobytes()


@BACKENDS
@pytest.mark.parametrize("dtype", [np.int8, np.int16, np.int32, np.int64])
def test_index_types(backend: str, dtype: Any) -> None:
    series = np.arange(600, dtype=np.float32).reshape(300, 2)
    out = np.empty((3, 4, 2), np.float32)
    gathering.gather_windows(series, np.array([120, 9, 5, 0, 1, 0], dtype)[::2], 4, 50, out, backend=backend)
    np.testing.assert_array_equal(out[:, :, 0], 2 * (np.array([[120], [5], [1]]) + 50 * np.arange(4)))


@BACKENDS
@pytest.mark.parametrize("start", [-1, -(2**62), 8, 2**63 - 1])
def test_window_outside(backend: str, start: int) -> None:
    series, out = np.ones((10, 2), np.float32), np.full((2, 2, 2), 5, np.float32)
    with pytest.raises(IndexError, match=f"starts must lie within 0 to 7, got {start}"):
        gathering.gather_windows(series, np.array([0, start]), 2, 2, out, backend=backend)
    assert (out == 5).all()


@BACKENDS
def test_window_longer_than_series(backend: str) -> None:
    with pytest.raises(IndexError, match="starts"):
        gathering.gather_windows(np.ones((3, 1)), np.array([0]), 2, 2**61, np.empty((1, 2, 1)), backend=backend)


@BACKENDS
@pytest.mark.parametrize(("rows", "columns", "name"), [([3], [0], "rows"), ([-1], [0], "rows"), ([0], [2], "columns")])
def test_cell_outside(backend: str, rows: list[int], columns: list[int], name: str) -> None:
    with pytest.raises(IndexError, match=f"{name} must lie within 0 to"):
        gathering.gather_rows(
            np.ones((3, 2)), np.array([rows]), np.array(columns), np.empty((1, 1, 1)), backend=backend
        )


@BACKENDS
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
def test_bad_arguments(backend: str, changes: dict[str, Any], error: type[Exception], message: str) -> None:
    arguments = {
        "series": np.ones((9, 2)),
        "starts": np.array([0]),
        "length": 3,
        "step": 1,
        "out": np.empty((1, 3, 2)),
    }
    with pytest.raises(error, match=message):
        gathering.gather_windows(**{**arguments, **changes}, backend=backend)


@BACKENDS
def test_addresses_beyond_31_bits(backend: str, tmp_path: Any) -> None:
    """A file of holes: more than 2**31 numbers, of which only the last rows take room."""
    rows = 2**28 + 10
    series = np.memmap(tmp_path / "holes", np.float32, mode="w+", shape=(rows, 9))
    series[-4:] = np.arange(36).reshape(4, 9)
    out = np.empty((1, 2, 9), np.float32)
    gathering.gather_windows(series, np.array([rows - 3]), 2, 2, out, backend=backend)
    np.testing.assert_array_equal(out[0], np.arange(36).reshape(4, 9)[1::2])
    cell = np.empty((1, 1, 1), np.float32)
    gathering.gather_rows(series, np.array([[rows - 1]]), np.array([8]), cell, backend=backend)
    assert cell[0, 0, 0] == 35


def series(rows: int = 40) -> np.ndarray:
    return np.arange(3.0 * rows).reshape(rows, 3)


def loader(**changes: Any) -> SlidingWindows:
    return SlidingWindows(series(), lookback=4, delay=1, target_column=0, batch_size=8, **changes)


def generated(backend: str) -> Any:
    return next(seed_generator(series(), 6, 1, 0, 20, step=2, backend=backend))


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Note which backend serves which operation."""
    calls: list[tuple[str, str]] = []
    monkeypatch.setattr(backends, "_candidates", dict(backends._candidates))
    for operation in ("gather_rows", "gather_windows"):
        for backend in ("reference", "numba"):
            kernel = backends.choose(operation, backend, ())

            def note(*arguments: Any, kernel: Any = kernel, key: tuple[str, str] = (operation, backend)) -> None:
                calls.append(key)
                kernel(*arguments)

            candidate = next(one for one in backends._candidates[operation] if one.backend == backend)
            backends.register(operation, backend, lambda note=note: note, candidate.refuse)
    return calls


@pytest.mark.parametrize(("backend", "variable", "chosen"), [
    ("auto", "", "numba"),
    ("numba", "reference", "numba"),
    ("reference", "", "reference"),
    ("auto", "reference", "reference"),
    ("auto", "triton", "numba"),  # GPU kernels were asked for: memory of the host is none of theirs
])  # fmt: skip
@pytest.mark.parametrize("materialise", [True, False])
def test_the_loaders_batches_are_filled_by_the_backend_that_is_chosen(
    served: Any, monkeypatch: pytest.MonkeyPatch, backend: str, variable: str, chosen: str, materialise: bool
) -> None:
    monkeypatch.setenv("SEQCONV_BACKEND", variable)
    windows = loader(backend=backend, materialise=materialise)
    assert not served
    next(iter(windows))
    operations = ["gather_windows", "gather_rows"] if materialise else ["gather_rows"]
    assert served == [(operation, chosen) for operation in operations]
    explanation = windows.explain()
    assert (explanation.operation, explanation.backend) == (operations[0], chosen)
    assert explanation.reasons["triton"] == f"has no kernel for {operations[0]}"
    served.clear()
    generated(backend)
    assert served == [("gather_rows", chosen)] * 2


@pytest.mark.parametrize("variable", ["", "triton"])
def test_numpy_serves_where_numba_is_missing(served: Any, monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.setenv("SEQCONV_BACKEND", variable)
    monkeypatch.setattr(gathering.support, "MISSING", "it is not there")
    windows = loader()
    next(iter(windows))
    assert served == [("gather_windows", "reference"), ("gather_rows", "reference")]
    assert windows.explain().backend == "reference"
    assert variable or windows.explain().reasons["numba"] == "it is not there"
    with pytest.raises(BackendError, match=r"^backend 'numba' cannot serve gather_\w+: it is not there$"):
        loader(backend="numba")


@pytest.mark.parametrize("make", [lambda backend: loader(backend=backend), generated])
def test_a_backend_that_cannot_serve_is_rejected_at_once(make: Any) -> None:
    with pytest.raises(ValueError, match=r"^backend must be one of auto, triton, numba, reference, got 'cuda'$"):
        make("cuda")
    with pytest.raises(BackendError, match=r"'triton' cannot serve gather_rows.*those that do: numba, reference$"):
        make("triton")
