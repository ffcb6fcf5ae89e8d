"""Sums over listed rows against numpy, for every length of a run, of the weight's gradient, the input's and both."""

import numpy as np

from seqconv.kernels.numba.micro.simd import lanes
from seqconv.kernels.numba.micro.sparse_products import add_products
from seqconv.kernels.numba.runtime.compilation import compiled
from tests.grids import grid


@compiled
def products(dw, weight, x, dx, rows, factors, count, step, numbers, zero):
    add_products(dw, weight, x, dx, rows, factors, count, step, numbers, zero)
    return lanes(zero)


@grid(kinds=["dw", "dx", "both"], dtype=[np.float32, np.float64], events=[1, 2, 3, 4, 5, 11])
def test_runs_of_every_length(dtype, kinds, events):
    """What lies behind a run is left alone, though its last vector is read and written; rows overlap."""
    generator = np.random.default_rng(events)
    room, step = 700, 3
    rows = generator.integers(0, 20, events).astype(np.int32)
    for numbers in [*range(1, 40), 100, 143, 144, 145, 160, 177, 208, 209, 224, 225, 300, 480]:
        x, dx, weight, dw, factors = (
            generator.integers(-5, 6, size).astype(dtype) for size in (room, room, room, room, events)
        )
        expected_dw, expected_dx = dw.copy(), dx.copy()
        for row, factor in zip(rows, factors, strict=True):
            expected_dw[:numbers] += factor * x[row * step : row * step + numbers]
            expected_dx[row * step : row * step + numbers] += factor * weight[:numbers]
        want_dw, want_dx = kinds != "dx", kinds != "dw"
        products(
            dw.ctypes.data if want_dw else 0,
            weight.ctypes.data,
            x.ctypes.data,
            dx.ctypes.data if want_dx else 0,
            rows.ctypes.data,
            factors.ctypes.data,
            events,
            step * x.itemsize,
            numbers,
            dtype(0),
        )
        if want_dw:
            np.testing.assert_array_equal(dw, expected_dw)
        if want_dx:
            np.testing.assert_array_equal(dx, expected_dx)


def test_an_infinite_factor_stays_in_its_run():
    """Zeros behind the run's weights times an infinity would be NaN."""
    x, dx, weight, dw = np.ones(64, np.float32), np.zeros(64, np.float32), np.zeros(64, np.float32), np.zeros(64)
    weight[:3] = 1
    rows, factors = np.zeros(1, np.int32), np.full(1, np.inf, np.float32)
    products(
        0, weight.ctypes.data, x.ctypes.data, dx.ctypes.data, rows.ctypes.data, factors.ctypes.data, 1, 4, 3,
        np.float32(0),
    )  # fmt: skip
    assert dx[:3].tolist() == [np.inf] * 3
    assert not dx[3:].any()
    assert not dw.any()
