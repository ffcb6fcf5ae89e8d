"""What a CPU can multiply and add at most: a loop that touches registers alone, on as many threads as asked for."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from numba import njit

from seqconv.kernels.numba.micro.simd import REGISTERS, broadcast, bytes_of, lanes, multiply_add, store
from seqconv.kernels.numba.runtime.compilation import compiled
from seqconv.kernels.numba.runtime.threads import run, share

SUMS = 12  # under way at once: two units of four cycles need 8; with two factors they fit into 16 registers
ROUNDS = 250_000  # of all sums, in one part: about half a millisecond
PARTS = 8  # a thread, so that one that the system holds up leaves its rest to others


class PeakStep:
    """Multiply-adds in registers as a step of the benchmarks; ``multiply_adds`` tells how many make a call."""

    def __init__(self, threads: int) -> None:
        self.threads, self.parts = threads, threads * PARTS
        numbers = REGISTERS.width // np.float32().itemsize
        self.sums = np.zeros((self.parts, numbers), np.float32)
        self.multiply_adds = self.parts * ROUNDS * SUMS * numbers

    def prepare(self) -> None:
        """Do nothing: the sums are never read."""

    def call(self) -> None:
        """Multiply and add."""
        run(partial(multiply_and_add, self.sums.ctypes.data, ROUNDS, np.float32(0)), self.parts, self.threads)

    def results(self) -> dict[str, Any]:
        """Return nothing."""
        return {}


@njit
def part_of_sums(part: int, target: int, rounds: int, zero: Any) -> None:
    """Sum in ``SUMS`` vectors that do not wait for one another, and keep what they come to."""
    factor, addend = broadcast(0.5, zero), broadcast(1.0, zero)
    a = b = c = d = e = f = g = h = i = j = k = m = addend
    for _ in range(rounds):
        a = multiply_add(a, factor, addend)
        b = multiply_add(b, factor, addend)
        c = multiply_add(c, factor, addend)
        d = multiply_add(d, factor, addend)
        e = multiply_add(e, factor, addend)
        f = multiply_add(f, factor, addend)
        g = multiply_add(g, factor, addend)
        h = multiply_add(h, factor, addend)
        i = multiply_add(i, factor, addend)
        j = multiply_add(j, factor, addend)
        k = multiply_add(k, factor, addend)
        m = multiply_add(m, factor, addend)
    a = multiply_add(multiply_add(a, b, c), multiply_add(d, e, f), multiply_add(g, h, i))
    store(multiply_add(multiply_add(j, k, m), factor, a), target + part * lanes(zero) * bytes_of(zero))


@compiled
def multiply_and_add(target: int, rounds: int, zero: Any, begin: int, end: int, threads: int, launch: int) -> None:
    """Compute the parts ``begin`` to ``end``, each into its vector of ``target``."""
    share(begin, end, threads, launch, part_of_sums, (target, rounds, zero))
