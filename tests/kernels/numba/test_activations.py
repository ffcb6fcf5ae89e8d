"""Exponential, sigmoid and tanh of vectors against numpy's in a wider type."""

import numpy as np
import pytest

from seqconv.kernels.numba.micro.activations import exp, sigmoid, tanh
from seqconv.kernels.numba.micro.simd import lanes, load, store
from seqconv.kernels.numba.runtime.compilation import compiled

EXACT = {"exp": np.exp, "sigmoid": lambda x: 1 / (1 + np.exp(-x)), "tanh": np.tanh}
# Units in the last place of float32 and float64.
LARGEST = {"exp": 1.2, "sigmoid": 2.5, "tanh": 2.7}


@compiled
def activate(name, x, count, size, out, zero):
    for i in range(0, count, lanes(zero)):
        vector = load(x + i * size, zero)
        if name == 0:
            store(exp(vector), out + i * size)
        elif name == 1:
            store(sigmoid(vector), out + i * size)
        else:
            store(tanh(vector), out + i * size)


def activated(name, x):
    assert x.size % 16 == 0
    out = np.empty_like(x)
    activate(list(EXACT).index(name), x.ctypes.data, x.size, x.itemsize, out.ctypes.data, x.dtype.type(0))
    return out


def drawn(dtype):
    """Return numbers of all sizes, from those for which 1 + x is 1 to those whose exponential is not finite."""
    random = np.random.default_rng(0)
    scales = (1e-9, 1e-3, 1, 5, 30, 90 if dtype == np.float32 else 710)
    return np.concatenate([random.uniform(-scale, scale, 2**17) for scale in scales]).astype(dtype)


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_they_err_by_few_units_in_the_last_place(dtype, name):
    x = drawn(dtype)
    with np.errstate(over="ignore"):
        exact = EXACT[name](x.astype(np.longdouble))
        rounded = exact.astype(dtype)
    found, least = activated(name, x), np.finfo(dtype).tiny
    errors = np.abs(found - exact)
    finite = np.isfinite(rounded)
    assert np.array_equal(np.isfinite(found), finite) or name != "exp"
    normal = finite & (np.abs(exact) > 2 * least)
    assert (errors[normal] / np.spacing(np.abs(rounded[normal]))).max() <= LARGEST[name]
    assert errors[finite & ~normal].max(initial=0) <= 2 * least
    if name != "exp" and dtype == np.float32:
        assert errors.max() < 1e-7


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_special_values(dtype):
    given = [np.nan, np.inf, -np.inf, 0.0, -0.0, np.finfo(dtype).max, np.finfo(dtype).min, np.finfo(dtype).tiny] * 2
    x = np.array(given, dtype)
    with np.errstate(over="ignore"):
        for name, exact in EXACT.items():
            np.testing.assert_array_equal(activated(name, x), exact(x))
    assert np.array_equal(np.signbit(activated("tanh", x)[3:5]), [False, True])
