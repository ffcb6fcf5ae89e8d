"""Which rows of a table a call uses, and where: counted and sorted by row, in order of their occurrence."""

from __future__ import annotations

from typing import Any

from numba import njit
from numpy.typing import NDArray

from .compilation import compiled
from .gathered import Index, row_of

__all__ = ["count_rows", "list_rows", "sort_positions"]


@njit
def count_rows(index: Index, samples: int, counts: NDArray[Any]) -> None:
    """Count how often each row occurs; ``counts`` holds a zero for every row of the table."""
    for n in range(samples):
        for position in range(index.length):
            counts[row_of(index, n, position)] += 1


@compiled
def list_rows(index: Index, samples: int, counts: NDArray[Any], rows: NDArray[Any]) -> int:
    """Write the rows that occur to ``rows`` and each one's place there to ``counts``, zeros before; return how many."""
    count_rows(index, samples, counts)
    found = 0
    for row in range(len(counts)):
        if counts[row]:
            counts[row] = found
            rows[found] = row
            found += 1
    return found


@compiled
def sort_positions(
    index: Index, samples: int, last: int, counts: NDArray[Any], rows: NDArray[Any], begins: NDArray[Any],
    order: NDArray[Any],
) -> int:  # fmt: skip
    """Write the rows that occur to ``rows`` and where, row by row, to ``order``; return how many rows they are.

    Occurrence ``order[i]`` is ``n * length + position``, those of row ``rows[r]`` begin at ``begins[r]`` and stand in
    rising order. Positions behind ``last`` are left out. ``counts`` holds a zero for every row of the table.
    """
    for n in range(samples):
        for position in range(min(index.length, last + 1)):
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
        for position in range(min(index.length, last + 1)):
            row = row_of(index, n, position)
            order[counts[row]] = n * index.length + position
            counts[row] += 1
    return found
