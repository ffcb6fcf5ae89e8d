"""The vector building blocks against numpy, lane by lane, and the register tiles against sums in float64."""

import numpy as np
import pytest

from seqconv.kernels.numba.micro import simd
from seqconv.kernels.numba.micro.simd import (
    add,
    broadcast,
    bytes_of,
    either,
    greater,
    horizontal_sum,
    is_nan,
    lanes,
    load,
    load_first,
    load_integers,
    load_number,
    maximum,
    multiply_add,
    select,
    store,
    store_first,
    store_integers,
    store_number,
)
from seqconv.kernels.numba.runtime.compilation import compiled

NAN, INF = float("nan"), float("inf")
DTYPES = [np.float32, np.float64]


def address(array):
    return array.ctypes.data


def count(dtype):
    return simd.REGISTERS.width // np.dtype(dtype).itemsize


@compiled
def blocks(a, b, c, out, kept, zero):
    """Write to the rows of ``out``: a * b + c, a + b, the maximum, the greater's a else c; return sums and sizes."""
    x, y, z = load(a, zero), load(b, zero), load(c, zero)
    row = lanes(zero) * bytes_of(zero)
    store(multiply_add(x, y, z), out)
    store(add(x, y), out + row)
    store(maximum(x, y), out + 2 * row)
    store(select(greater(x, y), x, z), out + 3 * row)
    store(select(either(is_nan(x), is_nan(y)), broadcast(1.5, zero), z), out + 4 * row)
    store_first(load_first(a, kept, zero), out + 5 * row, kept)
    store(load_first(a, kept, zero), out + 6 * row)
    store_number(load_number(a, zero) + load_number(b, zero), out + 7 * row, zero)
    store_number(load_number(c, zero), out + 7 * row + bytes_of(zero), zero)
    return horizontal_sum(x), lanes(zero), bytes_of(zero)


@pytest.mark.parametrize("dtype", DTYPES)
def test_blocks_equal_numpy(dtype):
    width = count(dtype)
    generator = np.random.default_rng(1)
    for kept in range(width + 1):
        a, b, c = generator.integers(-9, 10, (3, width)).astype(dtype)
        a[0], b[0] = (NAN, 1.0) if kept % 2 else (1.0, NAN)
        out = np.full((8, width), -7, dtype)
        total, lane_count, size = blocks(address(a), address(b), address(c), address(out), kept, dtype(0))
        assert (lane_count, size) == (width, np.dtype(dtype).itemsize)
        np.testing.assert_array_equal(total, a.sum())
        first = np.arange(width) < kept
        with np.errstate(invalid="ignore"):
            rows = [
                a * b + c,
                a + b,
                np.maximum(a, b),
                np.where(a > b, a, c),
                np.where(np.isnan(a) | np.isnan(b), 1.5, c),
                np.where(first, a, -7),
                np.where(first, a, 0),
            ]
        np.testing.assert_array_equal(out[:7], rows)
        np.testing.assert_array_equal(out[7, :2], [a[0] + b[0], c[0]])
        np.testing.assert_array_equal(out[7, 2:], -7)


@compiled
def narrowed(source, target, zero, integer):
    store_integers(load_integers(source, zero), target, integer)


@pytest.mark.parametrize("kind", [np.int8, np.int16, np.int32])
@pytest.mark.parametrize("dtype", DTYPES)
def test_integers_are_narrowed(dtype, kind):
    source = np.resize(np.array([-1, 0, 127, 5], np.int32), count(dtype))
    target = np.full(count(dtype) + 1, 77, kind)
    narrowed(address(source), address(target), dtype(0), kind(0))
    np.testing.assert_array_equal(target, [*source, 77])


@pytest.mark.parametrize(
    ("features", "expected"),
    [
        ("+sse2,+avx,+avx2,+avx512f", (64, 32)),
        ("+sse2,+avx,+avx2,-avx512f", (32, 16)),
        ("+fp-armv8,+neon", (16, 32)),
        ("+sse2", (16, 16)),
        ("", (16, 16)),
    ],
)
def test_registers_follow_the_features(features, expected):
    assert simd.registers(features) == expected
