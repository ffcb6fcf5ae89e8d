"""The register tile against sums in float64, and against what LLVM could make of it."""

import re

import numpy as np
import pytest
from numba import int64, njit

from seqconv.kernels.numba.micro import igemm, simd
from seqconv.kernels.numba.micro.tile import TILE
from seqconv.kernels.numba.runtime.compilation import compiled


@compiled
def rows(table, count, offsets, taps, weights, start, target, more, zero):
    igemm.igemm(
        table,
        count,
        offsets,
        taps,
        weights,
        start,
        simd.REGISTERS.width,
        target,
        2 * simd.REGISTERS.width,
        more,
        zero,
        2,
    )


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("more", [False, True])
@pytest.mark.parametrize("taps", [1, 2, 7])
def test_every_number_of_rows_from_anywhere(dtype, more, taps):
    """Small integers, so that every sum is exact; nothing is written behind the last row."""
    generator = np.random.default_rng(2)
    lanes = simd.REGISTERS.width // np.dtype(dtype).itemsize
    x = generator.integers(-5, 6, 500).astype(dtype)
    w = generator.integers(-5, 6, (taps, 2 * lanes)).astype(dtype)
    start = generator.integers(-5, 6, 2 * lanes).astype(dtype)
    for count in range(3 * TILE):
        at, behind = generator.integers(0, 250, count), generator.integers(0, 250, taps)
        table, offsets = x.ctypes.data + at * x.itemsize, np.append(behind, 0) * x.itemsize
        target = generator.integers(-5, 6, (count + 1, 2 * lanes)).astype(dtype)
        expected = target.copy()
        expected[:-1] = x[at[:, None] + behind] @ w + (target[:-1] if more else start)
        arguments = (table.ctypes.data, count, offsets.ctypes.data, taps, w.ctypes.data, start.ctypes.data)
        rows(*arguments, target.ctypes.data, more, dtype(0))
        np.testing.assert_array_equal(target, expected)


def test_the_sums_stay_in_registers():
    """LLVM has kept them in memory before, at half the speed, for reasons unrelated to the formula."""

    @njit(error_model="numpy")
    def tile(table, count, offsets, taps, weights, start, target, more):
        step = simd.REGISTERS.width
        igemm.igemm(table, count, offsets, taps, weights, start, step, target, 2 * step, more > 0, np.float32(0), 2)

    tile.compile((int64,) * 8)
    assembly = next(iter(tile.inspect_asm().values()))
    if "vfmadd" not in assembly:
        pytest.skip("the assembly of this CPU is not read here")
    loops = [block for block in re.split(r"\n(?=\.LBB)", assembly) if block.count("vfmadd") >= 2 * TILE]
    assert loops
    for loop in loops:
        body = loop[: max(loop.rfind("\tj" + kind) for kind in ("l", "ne", "ge"))]
        body = body[: body.rfind("vfmadd")]
        assert not re.search(r"\(%rsp\), %[xyz]mm|%[xyz]mm\d+, -?\d*\(%rsp\)", body)
