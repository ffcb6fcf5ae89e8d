"""Batches of windows and of single rows out of a series, compiled: memory is read once and written once.

A row is moved as bytes, in vectors of which the last two may overlap, so that one loop, compiled once, serves every
dtype, number of columns and row stride. At ``step`` 1 a whole window is one such row. Rows of windows at random starts
are in no cache: the next window's are prefetched while one is copied.

Every loop runs on the calling thread, without the interpreter lock. Addresses are 64-bit. Shapes, dtypes and bounds
are checked by the caller, :mod:`seqconv.data.gathering`: an index outside the series reads foreign memory.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numpy.typing import NDArray

from .micro.memory import prefetch
from .runtime.compilation import compiled, intrinsic

__all__ = ["gather_rows", "gather_windows"]

Array = NDArray[Any]
Indices = NDArray[np.int64]

# Rows ahead of the copy at which single rows are prefetched: about the latency of memory.
ROWS_AHEAD = 64


def gather_windows(series: Array, starts: Indices, length: int, step: int, out: Array) -> None:
    """Fill ``out[b, s, c]`` with ``series[starts[b] + s * step, c]``.

    Shapes: ``series`` ``(R, C)``, ``starts`` ``(B,)``, ``out`` ``(B, length, C)``.
    """
    if not out.size:
        return
    row_stride, column_stride = series.strides
    columns, itemsize = series.shape[1], series.itemsize
    width = columns * itemsize
    if columns > 1 and column_stride != itemsize:
        copy_scattered_windows(
            address(series), row_stride, column_stride, starts, length, step, columns, itemsize, address(out)
        )
    elif step == 1 and row_stride == width:
        copy_windows(address(series), row_stride, starts, 1, 1, length * width, address(out))
    else:
        copy_windows(address(series), row_stride, starts, length, step, width, address(out))


def gather_rows(series: Array, rows: Indices, columns: Indices, out: Array) -> None:
    """Fill ``out[b, s, j]`` with ``series[rows[b, s], columns[j]]``.

    Shapes: ``series`` ``(R, C)``, ``rows`` ``(B, S)``, ``columns`` ``(J,)``, ``out`` ``(B, S, J)``.
    """
    if not out.size:
        return
    row_stride, column_stride = series.strides
    itemsize = series.itemsize
    if len(columns) == 1 or (column_stride == itemsize and (columns[1:] - columns[:-1] == 1).all()):
        begin = address(series) + int(columns[0]) * column_stride
        copy_rows(begin, row_stride, rows.ravel(), len(columns) * itemsize, address(out))
    else:
        copy_cells(address(series), row_stride, column_stride, rows.ravel(), columns, itemsize, address(out))


def address(array: Array) -> int:
    """Return the address of the array's first element; the caller keeps the array alive."""
    data: int = array.__array_interface__["data"][0]
    return data


@intrinsic
def move(_typing: Any, target: Any, source: Any, width: Any) -> Any:
    """Copy ``width`` bytes, a literal, between two addresses of any alignment, by one load and one store."""
    if not isinstance(width, types.IntegerLiteral):
        return None

    def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        pointer = ir.VectorType(ir.IntType(8), width.literal_value).as_pointer()
        content = builder.load(builder.inttoptr(arguments[1], pointer), align=1)
        builder.store(content, builder.inttoptr(arguments[0], pointer), align=1)
        return context.get_dummy_value()

    return types.void(target, source, width), generate


@njit(inline="always")
def move_row(target: int, source: int, ahead: int, width: int) -> None:
    """Copy ``width`` >= 4 bytes, and prefetch as many at ``ahead``."""
    prefetch(ahead, 3)
    prefetch(ahead + width - 1, 3)
    if width < 8:
        move(target, source, 4)
        move(target + width - 4, source + width - 4, 4)
    elif width < 16:
        move(target, source, 8)
        move(target + width - 8, source + width - 8, 8)
    elif width < 32:
        move(target, source, 16)
        move(target + width - 16, source + width - 16, 16)
    elif width < 64:
        move(target, source, 32)
        move(target + width - 32, source + width - 32, 32)
    else:
        for offset in range(0, width - 64, 64):
            prefetch(ahead + offset, 3)
            move(target + offset, source + offset, 64)
        move(target + width - 64, source + width - 64, 64)


@compiled
def copy_windows(series: int, row_stride: int, starts: Indices, length: int, step: int, width: int, out: int) -> None:
    """Copy windows of ``length`` rows, ``step`` apart, each ``width`` bytes in one piece."""
    for b in range(len(starts)):
        source = series + starts[b] * row_stride
        ahead = series + starts[min(b + 1, len(starts) - 1)] * row_stride
        for _ in range(length):
            move_row(out, source, ahead, width)
            source += step * row_stride
            ahead += step * row_stride
            out += width


@compiled
def copy_rows(series: int, row_stride: int, rows: Indices, width: int, out: int) -> None:
    """Copy ``width`` bytes in one piece from the beginning of each of the rows."""
    for i in range(len(rows)):
        ahead = series + rows[min(i + ROWS_AHEAD, len(rows) - 1)] * row_stride
        move_row(out, series + rows[i] * row_stride, ahead, width)
        out += width


@njit(inline="always")
def move_cell(target: int, source: int, itemsize: int) -> None:
    """Copy 4 or 8 bytes."""
    if itemsize == 4:
        move(target, source, 4)
    else:
        move(target, source, 8)


@compiled
def copy_cells(
    series: int, row_stride: int, column_stride: int, rows: Indices, columns: Indices, itemsize: int, out: int
) -> None:
    """Copy the cells in any ``columns`` of the rows."""
    for row in rows:
        for column in columns:
            move_cell(out, series + row * row_stride + column * column_stride, itemsize)
            out += itemsize


@compiled
def copy_scattered_windows(
    series: int,
    row_stride: int,
    column_stride: int,
    starts: Indices,
    length: int,
    step: int,
    columns: int,
    itemsize: int,
    out: int,
) -> None:
    """Copy windows whose columns are not adjacent, column by column: in a transposed series a column is contiguous."""
    width = columns * itemsize
    for start in starts:
        for column in range(columns):
            source = series + start * row_stride + column * column_stride
            target = out + column * itemsize
            for _ in range(length):
                move_cell(target, source, itemsize)
                source += step * row_stride
                target += width
        out += length * width
