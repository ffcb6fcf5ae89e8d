"""Windows and single rows of a series, copied into batches: the two operations behind the loaders.

A series has ``R`` rows of ``C`` columns, float32 or float64, any strides, also read-only or a memory map; it is read in
place. ``out`` is a C-contiguous, writable array of the series' dtype that shares no memory with it, and is filled; its
bytes equal the series', NaN included. Everything is checked before anything is written, and :mod:`seqconv.backends`
chooses the kernel. The kernels serve memory of the host: ``SEQCONV_BACKEND=triton`` leaves the choice to ``auto``.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from numpy.typing import NDArray

from seqconv import backends
from seqconv.kernels.numba import support

__all__ = ["explain_gathering", "gather_rows", "gather_windows", "load_kernels"]

Array = NDArray[Any]
Indices = NDArray[np.integer[Any]]


def gather_windows(
    series: Array, starts: Indices, length: int, step: int, out: Array, *, backend: str = "auto"
) -> None:
    """Fill ``out[b, s, c]`` with ``series[starts[b] + s * step, c]``.

    Shapes: ``series`` ``(R, C)``, ``starts`` ``(B,)`` signed integers, ``out`` ``(B, length, C)``. Raises
    ``ValueError`` where shapes do not fit, ``TypeError`` for other dtypes, ``IndexError`` where a window leaves the
    series, and as :func:`seqconv.backends.choose` does.
    """
    if length < 1 or step < 1:
        raise ValueError(f"length and step must be at least 1, got {length} and {step}")
    first = as_index(starts, 1, "starts")
    check_arrays(series, out, (len(first), length, series.shape[-1]))
    check_within(first, len(series) - step * (length - 1), "starts")
    run("gather_windows", backend, series, first, length, step, out)


def gather_rows(series: Array, rows: Indices, columns: Indices, out: Array, *, backend: str = "auto") -> None:
    """Fill ``out[b, s, j]`` with ``series[rows[b, s], columns[j]]``.

    Shapes: ``series`` ``(R, C)``, ``rows`` ``(B, S)`` and ``columns`` ``(J,)`` signed integers, ``out`` ``(B, S, J)``.
    Raises as :func:`gather_windows` does.
    """
    rows, columns = as_index(rows, 2, "rows"), as_index(columns, 1, "columns")
    check_arrays(series, out, (*rows.shape, len(columns)))
    check_within(rows, series.shape[0], "rows")
    check_within(columns, series.shape[1], "columns")
    run("gather_rows", backend, series, rows, columns, out)


def explain_gathering(operation: str, backend: str) -> backends.Explanation:
    """Tell which backend would serve ``operation``, and why. Raises as :func:`seqconv.backends.choose` does."""
    return backends.explain_call(operation, requested(backend), ())


def load_kernels(backend: str) -> str:
    """Return ``backend`` with its kernels loaded: worker processes that are forked then need not do it.

    Raises as :func:`seqconv.backends.choose` does.
    """
    for operation in OPERATIONS:
        backends.choose(operation, requested(backend), ())
    return backend


def run(operation: str, backend: str, *arguments: Any) -> None:
    """Run the kernel that serves ``operation`` on checked ``arguments``."""
    backends.choose(operation, requested(backend), arguments)(*arguments)


def requested(backend: str) -> str:
    """Return the backend to ask for: ``SEQCONV_BACKEND=triton`` is meant for tensors on a GPU, not for host memory."""
    if backend == "auto" and os.environ.get(backends.VARIABLE) == "triton":
        return "reference" if support.MISSING else "numba"
    return backend


def as_index(index: Indices, dimensions: int, name: str) -> NDArray[np.int64]:
    """Return ``index`` as contiguous int64, itself where it is that. Raises for other types and dimensions."""
    if index.dtype.kind != "i":
        raise TypeError(f"{name} must be signed integers, got dtype {index.dtype}")
    if index.ndim != dimensions:
        raise ValueError(f"{name} must have {dimensions} dimension(s), got shape {index.shape}")
    return np.ascontiguousarray(index, np.int64)


def check_arrays(series: Array, out: Array, shape: tuple[int, ...]) -> None:
    """Raise ``TypeError`` or ``ValueError`` where ``series`` cannot be read or ``out`` cannot take ``shape``."""
    if series.dtype not in (np.float32, np.float64):
        raise TypeError(f"series must be float32 or float64, got dtype {series.dtype}")
    if series.ndim != 2:
        raise ValueError(f"series must have shape (rows, columns), got {series.shape}")
    if out.dtype != series.dtype:
        raise TypeError(f"out must have the series' dtype {series.dtype}, got {out.dtype}")
    if out.shape != shape:
        raise ValueError(f"out must have shape {shape}, got {out.shape}")
    if not (out.flags.c_contiguous and out.flags.writeable):
        raise ValueError("out must be C-contiguous and writable")


def check_within(index: NDArray[np.int64], size: int, name: str) -> None:
    """Raise ``IndexError`` where an index lies outside ``0 .. size - 1``."""
    if index.size and (index.min() < 0 or index.max() >= size):
        wrong = index[(index < 0) | (index >= size)][0]
        raise IndexError(f"{name} must lie within 0 to {size - 1}, got {wrong}")


OPERATIONS = ("gather_rows", "gather_windows")
for _operation in OPERATIONS:
    backends.register(_operation, "reference", backends.attribute("seqconv.kernels.reference.windows", _operation))
    backends.register(
        _operation,
        "numba",
        backends.attribute("seqconv.kernels.numba.windows", _operation),
        lambda *_arguments: support.MISSING,
    )
