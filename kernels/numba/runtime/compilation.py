"""How kernels are compiled: at their first call, to run without the interpreter lock, kept on disk where possible.

They are kept in the folder that ``NUMBA_CACHE_DIR`` names, else in ``seqconv/kernels`` in the user's cache folder
(``XDG_CACHE_HOME``, ``~/.cache``): not beside the package, where an uninstalled one would leave them behind. There
every installation or checkout has a folder of its own, and what was compiled from other sources counts as old.
"""

from __future__ import annotations

import glob
import hashlib
import logging
import os
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

import numba
from numba import extending, njit
from numba.core import event
from numba.misc.appdirs import AppDirs

__all__ = ["compiled", "folder", "inner", "intrinsic", "watched"]

inner: Any = njit  # for functions that only compiled ones call; what they become has a type that says less than theirs
intrinsic: Any = extending.intrinsic  # drops the typing context from the signature, which its type does not say

config: Any = numba.config

logger = logging.getLogger("seqconv")

FLOOR = Path(__file__).parents[1]  # the folder of all CPU kernels

MAKER = uuid.uuid4().hex[:8]  # of kernels: this process, and the number of each that it becomes by a fork

_setting = threading.Lock()


def compiled(function: Callable[..., Any]) -> Any:
    """Compile ``function`` for calls from Python, at the first of them; keep the result where a folder can be written.

    Division is NumPy's: it tests for no zero.
    """
    options: dict[str, Any] = {"nogil": True, "error_model": "numpy"}
    path = folder()
    if path is None:
        return _told(njit(function, **options))
    with _setting:  # a decorated function looks once where its folder is
        before, config.CACHE_DIR = config.CACHE_DIR, str(path)
        try:
            kept = _told(njit(function, cache=True, **options))
        except RuntimeError:  # Numba keeps nothing of a function whose file it cannot find: one typed into a shell, say
            return _told(njit(function, **options))
        finally:
            config.CACHE_DIR = before
    _stamp(kept, function)

    def call(*arguments: Any) -> Any:
        try:
            return kept(*arguments)
        except OSError:  # compiled, but the disk was too full to keep it, and it has not run yet
            return kept(*arguments)

    return call


@cache
def folder() -> Path | None:
    """Return the folder that compiled kernels are kept in, ``None`` if it cannot be written."""
    path = Path(config.CACHE_DIR or Path(AppDirs("seqconv", appauthor=False).user_cache_dir, "kernels"))
    try:
        path.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path).close()
    except OSError:
        return None
    return path


@contextmanager
def watched(began: Callable[[], None]) -> Iterator[None]:
    """Have ``began`` called, meanwhile, when a kernel begins to be compiled, not loaded."""
    _teller.watchers.append(began)
    try:
        yield
    finally:
        _teller.watchers.remove(began)


class _Teller(event.Listener):
    """Says what is silent otherwise: once that kernels are being compiled, and how long each took at level INFO."""

    def __init__(self) -> None:
        self.kernels: set[Any] = set()
        self.watchers: list[Callable[[], None]] = []
        self.has_told = False
        self.began = 0.0

    def on_start(self, event: Any) -> None:
        if event.data["dispatcher"] not in self.kernels:
            return
        self.began = time.perf_counter()
        if not self.has_told:
            self.has_told = True
            path = folder()
            logger.warning(
                "seqconv: compiling CPU kernels, each at its first call, 20 to 60 seconds in all; %s",
                "no folder can be written to keep them, so every process will (set NUMBA_CACHE_DIR)"
                if path is None
                else f"once on this machine: they are kept in {path}",
            )
        for began in self.watchers:
            began()

    def on_end(self, event: Any) -> None:
        if event.data["dispatcher"] in self.kernels:
            seconds = time.perf_counter() - self.began
            logger.info("seqconv: compiled %s in %.1f s", event.data["dispatcher"].__name__, seconds)


_teller = _Teller()
event.register("numba:compile", _teller)


def _told(kernel: Any) -> Any:
    _teller.kernels.add(kernel)
    return kernel


def _stamp(kept: Any, function: Callable[..., Any]) -> None:
    """Have what is on disk count as old once any file of this floor, or beside the function's, has changed.

    Kernels are made of functions from other files, whose changes Numba does not see. Files of kernels are called by
    their sources and the process that made them: Numba counts them, and writes its index first, so that of processes
    that compile at once one could be given what another has made, for other types or of older sources.
    """
    file = getattr(getattr(kept, "_cache", None), "_cache_file", None)
    if file is None or not hasattr(file, "_source_stamp") or not hasattr(file, "_data_name"):
        return  # another Numba: then as it has it
    stamp = _digest(FLOOR, "**/*.py") + _digest(Path(function.__code__.co_filename).parent, "*.py")
    base, sources = file._index_name.removesuffix(".nbi"), hashlib.sha256(stamp.encode()).hexdigest()[:16]
    file._source_stamp = stamp
    file._data_name = lambda number: f"{base}.{sources}.{MAKER}-{os.getpid()}.{number}.nbc"
    for old in Path(file._cache_path).glob(f"{glob.escape(base)}.*.nbc"):
        if not old.name.startswith(f"{base}.{sources}."):
            with suppress(OSError):
                old.unlink()


@cache
def _digest(folder: Path, pattern: str) -> str:
    """Return a hash of a folder's sources, their names and contents: times change when files are copied."""
    found = hashlib.sha256()
    for file in sorted(folder.glob(pattern)):
        name = file.relative_to(folder).as_posix()
        found.update(f"{name}\0".encode() + hashlib.sha256(file.read_bytes()).digest())
    return found.hexdigest()
