"""How kernels are compiled: at their first call, to run without the interpreter lock, kept on disk where possible."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from numba import extending, njit

__all__ = ["compiled", "inner", "intrinsic"]

inner: Any = njit  # for functions that only compiled ones call; what they become has a type that says less than theirs
intrinsic: Any = extending.intrinsic  # drops the typing context from the signature, which its type does not say


def compiled(function: Callable[..., Any]) -> Any:
    """Compile ``function`` for calls from Python, at the first of them; keep the result where a folder can be written.

    Division is NumPy's: it tests for no zero.
    """
    options: dict[str, Any] = {"nogil": True, "error_model": "numpy"}
    try:
        kept = njit(function, cache=True, **options)
        _stamp(kept, function)
    except RuntimeError:  # neither beside the function's file nor in the user's cache folder
        return njit(function, **options)

    def call(*arguments: Any) -> Any:
        try:
            return kept(*arguments)
        except OSError:  # compiled, but the disk was too full to keep it, and it has not run yet
            return kept(*arguments)

    return call


def _stamp(kept: Any, function: Callable[..., Any]) -> None:
    """Have what is on disk count as old once any file beside the function's has changed, not its own alone.

    Kernels are made of functions from other files, whose changes Numba does not see.
    """
    file = getattr(getattr(kept, "_cache", None), "_cache_file", None)
    if file is None or not hasattr(file, "_source_stamp"):  # another Numba: then as it has it
        return
    with os.scandir(os.path.dirname(function.__code__.co_filename)) as entries:
        files = sorted((one.name, one.stat()) for one in entries if one.name.endswith(".py"))
    file._source_stamp = tuple((name, found.st_mtime, found.st_size) for name, found in files)
