"""Batches of windows and of single rows out of a series, in NumPy: the specification of the compiled kernels.

Shapes, dtypes and bounds are checked by the caller, :mod:`seqconv.data.gathering`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["gather_rows", "gather_windows"]

Array = NDArray[Any]
Indices = NDArray[np.int64]


def gather_windows(series: Array, starts: Indices, length: int, step: int, out: Array) -> None:
    """Fill ``out[b, s, c]`` with ``series[starts[b] + s * step, c]``.

    Shapes: ``series`` ``(R, C)``, ``starts`` ``(B,)``, ``out`` ``(B, length, C)``.
    """
    out[...] = series[starts[:, None] + step * np.arange(length)]


def gather_rows(series: Array, rows: Indices, columns: Indices, out: Array) -> None:
    """Fill ``out[b, s, j]`` with ``series[rows[b, s], columns[j]]``.

    Shapes: ``series`` ``(R, C)``, ``rows`` ``(B, S)``, ``columns`` ``(J,)``, ``out`` ``(B, S, J)``.
    """
    out[...] = series[rows[:, :, None], columns]
