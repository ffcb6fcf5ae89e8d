"""A series as one array of rows, read where it lies, and memory maps that travel between processes by their path."""

from __future__ import annotations

import mmap
import os
import sys
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["MappedArray", "mapped_array", "rows_and_names", "tensor_of"]

Array = NDArray[Any]


def rows_and_names(series: Any) -> tuple[Array, list[Any] | None]:
    """Return the series as an array ``(rows, columns)`` and its columns' names, where it has any.

    Arrays, memory maps and CPU tensors share their memory with the result; a DataFrame, which keeps columns together,
    is copied once, into rows. Raises ``TypeError`` for other types and for dtypes but float32 and float64,
    ``ValueError`` for other shapes than ``(rows,)`` and ``(rows, columns)``.
    """
    names = None
    pandas = sys.modules.get("pandas")  # who has a DataFrame has imported pandas
    if isinstance(series, Tensor):
        if series.device.type != "cpu":
            raise TypeError(f"series must lie on the CPU, got a tensor on {series.device}")
        if series.dtype not in (torch.float32, torch.float64):
            raise TypeError(f"series must be float32 or float64, got dtype {series.dtype}")
        array = series.detach().numpy()
    elif isinstance(series, np.ndarray) and not isinstance(series, np.ma.MaskedArray):  # whose mask would be lost
        array = np.asarray(series)
    elif pandas is not None and isinstance(series, pandas.DataFrame):
        names = list(series.columns)
        for name, dtype in series.dtypes.items():
            if dtype not in (np.float32, np.float64) or dtype != series.dtypes.iloc[0]:
                raise TypeError(f"series must have columns all float32 or all float64, got {name!r} of dtype {dtype}")
        array = np.ascontiguousarray(series.to_numpy())
    else:
        raise TypeError(f"series must be a NumPy array, CPU tensor or DataFrame, got {type(series).__name__}")
    if array.dtype not in (np.float32, np.float64):
        raise TypeError(f"series must be float32 or float64, got dtype {array.dtype}")
    if array.ndim == 1:
        array = array[:, None]
    if array.ndim != 2 or not array.shape[1]:
        raise ValueError(f"series must have shape (rows,) or (rows, columns), got {tuple(series.shape)}")
    return array, names


def tensor_of(array: Array) -> Tensor:
    """Return the array as a tensor that shares its memory. Read-only memory is shared, too: nobody may write to it.

    Arrays with strides that no tensor can have are copied: negative ones, or no multiples of the item size.
    """
    if any(stride < 0 or stride % array.itemsize for stride in array.strides):
        array = array.copy()
    return torch.from_numpy(array if array.flags.writeable else np.asarray(_Writable(array)))


class _Writable:
    """An array's memory declared writable, since torch warns of read-only arrays."""

    def __init__(self, array: Array) -> None:
        self.array = array
        interface = array.__array_interface__
        self.__array_interface__ = {**interface, "data": (interface["data"][0], False)}


class MappedArray(NamedTuple):
    """The place of an array in a file: all that another process needs to map it."""

    filename: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: str

    def open(self) -> Array:
        """Map the array, read-only. Raises ``OSError`` where the file cannot be opened."""
        content = np.memmap(self.filename, np.uint8, mode="r")
        return np.ndarray(self.shape, self.dtype, buffer=content.data, offset=self.offset, strides=self.strides)


def mapped_array(array: Array) -> MappedArray | None:
    """Return where ``array`` lies in its file, if it is a memory map, or a view of one, that shows the file."""
    base: Any = array
    while isinstance(base, np.ndarray) and not isinstance(base.base, mmap.mmap):
        base = base.base
    if not isinstance(base, np.memmap) or base.filename is None or base.mode == "c":
        return None
    # A map begins at a whole page of the file; views of a memmap carry its offset unchanged.
    begin = base.offset - base.offset % mmap.ALLOCATIONGRANULARITY
    pages: Any = base.base
    mapped = np.frombuffer(pages, np.uint8).ctypes.data
    offset = begin + array.ctypes.data - mapped
    return MappedArray(os.fspath(base.filename), offset, array.shape, array.strides, array.dtype.str)
