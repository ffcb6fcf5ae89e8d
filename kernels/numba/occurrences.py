"""Which rows of a table a call uses, and where: counted and sorted by row, in order of their occurrence."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from .gathered import Index, row_of
from .micro.channel_blocks import all_finite
from .micro.simd import bytes_of, load_number
from .runtime.compilation import compiled

__all__ = ["reads_finite", "row_is_finite", "rows_in_use", "sort_positions"]


@compiled
def rows_in_use(index: Index, samples: int, counts: NDArray[Any], rows: NDArray[Any]) -> int:
    """Write the rows that occur to ``rows``, their places there to ``counts``, which are zeros; return their number."""
    for n in range(samples):
        for position in range(index.length):
            counts[row_of(index, n, position)] = 1
    found = 0
    for row in range(len(counts)):
        if counts[row]:
            counts[row] = found
            rows[found] = row
            found += 1
    return found


@compiled
def reads_finite(index: Index, samples: int, source: Any, seen: NDArray[Any], zero: Any) -> bool:
    """Tell whether all rows that occur hold neither infinities nor NaN; ``seen`` has a zero for every row.

    ``source`` are the table's address, the bytes between its rows and between its channels, and their number.
    """
    table, row_stride, channel_stride, channels = source
    for n in range(samples):
        for position in range(index.length):
            row = row_of(index, n, position)
            if not seen[row]:
                seen[row] = 1
                if not row_is_finite(table + row * row_stride, channel_stride, channels, zero):
                    return False
    return True


@njit
def row_is_finite(row: int, channel_stride: int, channels: int, zero: Any) -> bool:
    """Tell whether a row holds neither infinities nor NaN."""
    size = bytes_of(zero)
    if channel_stride == size:
        finite: bool = all_finite(row, channels * size, zero)
        return finite
    whole = True
    for c in range(channels):
        whole &= np.isfinite(load_number(row + c * channel_stride, zero))
    return whole


@njit
def sort_positions(
    index: Index, samples: int, last: int, steps: Any, counts: NDArray[Any], rows: NDArray[Any], begins: NDArray[Any],
    order: NDArray[Any],
) -> int:  # fmt: skip
    """Write the rows that occur to ``rows``, and where they do, row by row, to ``order``; return the number of rows.

    The occurrence at sample ``n``'s position ``l`` is ``n * steps[0] + (last - l) * steps[1]``; positions behind
    ``last`` are left out. The occurrences of row ``rows[r]`` begin at ``begins[r]`` and are in order of sample and
    position. ``counts`` holds a zero for every row of the table.
    """
    length = min(index.length, last + 1)
    for n in range(samples):
        for position in range(length):
            counts[row_of(index, n, position)] += 1
    found, total = 0, 0
    for row in range(len(counts)):
        count = counts[row]
        if count:
            rows[found] = row
            begins[found] = total
            counts[row] = total
            total += count
            found += 1
    begins[found] = total
    for n in range(samples):
        for position in range(length):
            row = row_of(index, n, position)
            order[counts[row]] = n * steps[0] + (last - position) * steps[1]
            counts[row] += 1
    return found
