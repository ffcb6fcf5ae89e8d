"""Lists of windows against numpy: every channel's windows that have a gradient, in order, with their gradients."""

import numpy as np
import pytest

from seqconv.kernels.numba.argmax_lists import list_windows
from seqconv.kernels.numba.micro.simd import lanes
from seqconv.kernels.numba.runtime.compilation import compiled


@compiled
def width_of(zero):
    return lanes(zero)


@compiled
def listed(
    argmax,
    argmax_stride,
    gradient,
    strides,
    outputs,
    windows,
    group,
    steps,
    capacity,
    found,
    scratch,
    zero,
    argmax_zero,
):
    rows, factors, bounds, sums = found
    list_windows(
        argmax, argmax_stride, gradient, strides[0], strides[1], outputs, windows, group, steps[0], steps[1], steps[2],
        capacity, rows.ctypes.data, factors.ctypes.data, bounds, sums.ctypes.data, sums.strides[0],
        scratch.ctypes.data, zero, argmax_zero,
    )  # fmt: skip
    return rows[0], factors[0], scratch[0]  # which keeps them until here


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("kind", [np.int8, np.int16, np.int32])
@pytest.mark.parametrize("layout", ["windows together", "channels together", "neither"])
@pytest.mark.parametrize("windows", [1, 7, 16, 40, 65])
def test_lists_every_window_that_has_a_gradient(dtype, kind, layout, windows):
    generator = np.random.default_rng(windows)
    outputs, width = 21, width_of(dtype(0))
    capacity, group = -(-windows // width) * width + width, 2 * width
    argmax = np.full((windows, -(-outputs // width) * width), -1, kind)
    argmax[:, :outputs] = generator.integers(-1, 3, (windows, outputs))
    gradient = generator.integers(-9, 10, (outputs, windows)).astype(dtype)
    if layout == "channels together":
        gradient = np.ascontiguousarray(gradient.T).T
    if layout == "neither":
        gradient = np.repeat(np.repeat(gradient, 2, 0), 3, 1)[::2, ::3]
    groups = -(-windows // group)
    found = (
        np.zeros((outputs, capacity), np.int32),
        np.zeros((outputs, capacity), dtype),
        np.zeros((outputs, groups + 1), np.int64),
        np.zeros((outputs, width)),  # float64, whatever the gradient's dtype
    )
    scratch = np.empty(capacity * width * 16, np.uint8)
    base, window_step, argmax_step = 5, 6, 2
    strides = (
        gradient.strides if windows > 1 or layout != "windows together" else (gradient.itemsize, gradient.itemsize)
    )
    listed(
        argmax.ctypes.data, argmax.strides[0], gradient.ctypes.data, strides, outputs, windows, group,
        (base, window_step, argmax_step), capacity, found, scratch, dtype(0), kind(0),
    )  # fmt: skip
    rows, factors, bounds, sums = found
    for o in range(outputs):
        for g in range(groups):
            alive = [q for q in range(g * group, min((g + 1) * group, windows)) if argmax[q, o] >= 0]
            expected = [base + q * window_step + int(argmax[q, o]) * argmax_step for q in alive]
            assert rows[o, bounds[o, g] : bounds[o, g + 1]].tolist() == expected
            assert factors[o, bounds[o, g] : bounds[o, g + 1]].tolist() == gradient[o, alive].tolist()
        assert sums[o].sum() == gradient[o, argmax[:, o] >= 0].sum()
