"""Transposition in registers against numpy, for every remainder of rows and columns, in guarded memory."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from seqconv.kernels.numba.micro import simd
from seqconv.kernels.numba.micro.transposition import transpose
from seqconv.kernels.numba.runtime.compilation import compiled

DTYPES = [np.float32, np.float64]


@compiled
def transposed(source, source_stride, target, target_stride, rows, columns, zero):
    transpose(source, source_stride, target, target_stride, rows, columns, zero)


def check(dtype, rows, columns, gap=3):
    """Transpose numbers of their own each; what surrounds source and target must stay."""
    source = np.full((rows + 2, columns + gap), -1, dtype)
    inner = source[1:-1, 1 : 1 + columns]
    inner[...] = np.arange(rows * columns).reshape(rows, columns) + 1
    target = np.full((columns + 2, rows + gap), -2, dtype)
    goal = target[1:-1, 1 : 1 + rows]
    wanted = target.copy()
    wanted[1:-1, 1 : 1 + rows] = inner.T
    arguments = (inner.ctypes.data, inner.strides[0], goal.ctypes.data, goal.strides[0])
    transposed(*arguments, rows, columns, dtype(0))
    np.testing.assert_array_equal(target, wanted)


@pytest.mark.parametrize("dtype", DTYPES)
def test_equals_numpy_for_every_remainder(dtype):
    width = simd.REGISTERS.width // np.dtype(dtype).itemsize
    for rows in range(2 * width + 2):
        for columns in range(2 * width + 2):
            check(dtype, rows, columns)


@pytest.mark.parametrize("dtype", DTYPES)
def test_reads_nothing_outside_its_rows(dtype):
    """The numbers end where a page ends, behind which reading is forbidden."""
    mmap = pytest.importorskip("mmap")
    ctypes = pytest.importorskip("ctypes")
    page = mmap.PAGESIZE
    memory = mmap.mmap(-1, 3 * page)
    begin = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    library = ctypes.CDLL(None, use_errno=True)
    if not hasattr(library, "mprotect"):
        pytest.skip("this system cannot protect a page")
    size = np.dtype(dtype).itemsize
    assert not library.mprotect(ctypes.c_void_p(begin + 2 * page), ctypes.c_size_t(page), 0)
    try:
        numbers = np.frombuffer(memory, dtype, 2 * page // size)
        for rows, columns in [(1, 1), (3, 5), (16, 7), (7, 16), (17, 33)]:
            source = numbers[-rows * columns :].reshape(rows, columns)
            source[...] = np.arange(rows * columns).reshape(rows, columns)
            target = np.zeros((columns, rows), dtype)
            transposed(source.ctypes.data, columns * size, target.ctypes.data, rows * size, rows, columns, dtype(0))
            np.testing.assert_array_equal(target, source.T)
    finally:
        library.mprotect(ctypes.c_void_p(begin + 2 * page), ctypes.c_size_t(page), 3)


@pytest.mark.large
@pytest.mark.skipif(torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"), reason="not a CPU with AVX2")
@pytest.mark.parametrize(
    ("name", "features", "width"), [("haswell", "+avx,+avx2,+fma,+sse2,+sse4.1", 32), ("x86-64", "+sse2", 16)]
)
def test_serves_smaller_cpus(name, features, width, tmp_path):
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "import numpy, test_transposition as tests\n"
        "assert tests.simd.REGISTERS.width == int(sys.argv[2])\n"
        "for dtype in tests.DTYPES:\n"
        "    tests.test_equals_numpy_for_every_remainder(dtype)\n"
    )
    environment = {"NUMBA_CPU_NAME": name, "NUMBA_CPU_FEATURES": features, "NUMBA_CACHE_DIR": str(tmp_path)}
    arguments = [sys.executable, "-c", code, os.path.dirname(__file__), str(width)]
    finished = subprocess.run(arguments, env={**os.environ, **environment}, capture_output=True, text=True, timeout=240)
    assert finished.returncode == 0, finished.stderr
