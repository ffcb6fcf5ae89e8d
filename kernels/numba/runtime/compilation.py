"""How kernels are compiled: at their first call, to run without the interpreter lock, kept on disk where possible.

They are kept in the folder that ``NUMBA_CACHE_DIR`` names, else in ``seqconv/kernels`` in the user's cache folder
(``XDG_CACHE_HOME``, ``~/.cache``); beside the package they would remain when it is uninstalled. There every
installation or checkout has a folder of its own. Kernels that were compiled from other sources are not used.
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
from numba.core.compiler_lock import global_compiler_lock
from numba.core.registry import cpu_target
from numba.misc.appdirs import AppDirs

__all__ = ["compiled", "folder", "inner", "intrinsic", "watched"]

inner: Any = njit  # for functions that only compiled ones call; njit's result type would say less than their own
intrinsic: Any = extending.intrinsic  # takes the typing context off the signature, unseen by a type checker

config: Any = numba.config

# What Numba would load at the first call: here while nothing looks for garbage, see seqconv.backends.load.
with global_compiler_lock:  # another thread may be compiling a function of its own
    cpu_target.typing_context.refresh()
    cpu_target.target_context.refresh()

logger = logging.getLogger("seqconv")

FLOOR = Path(__file__).parents[1]  # the folder of all CPU kernels

MAKER = uuid.uuid4().hex[:8]  # who made a kernel: this process; a fork of it is told apart by its process number

_setting = threading.Lock()


def compiled(function: Callable[..., Any]) -> Any:
    """Compile ``function`` for calls from Python, at the first of them; keep the result where a folder can be written.

    Division is NumPy's: it does not test for zero.
    """
    options: dict[str, Any] = {"nogil": True, "error_model": "numpy"}
    path = folder()
    if path is None:
        return _told(njit(function, **options))
    with _setting:  # Numba reads the folder once, when a function is decorated
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
    """Within the block, call ``began`` when the compilation of a kernel begins; loading one does not count."""
    _teller.watchers.append(began)
    try:
        yield
    finally:
        _teller.watchers.remove(began)


class _Teller(event.Listener):
    """Logs, once, that kernels are being compiled, and at level INFO how long each took: Numba itself says nothing."""

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
    """Invalidate what is on disk once any file of this floor, or any file beside the function's, has changed.

    Kernels call functions of other files, whose changes Numba does not see. Kernel files are named after a hash of the
    sources and after the process that made them. Numba would number them, and it writes its index before the kernel: of
    two processes that compile at once, one could then load what the other has compiled for other types or from older
    sources.
    """
    file = getattr(getattr(kept, "_cache", None), "_cache_file", None)
    names = ("_source_stamp", "_data_name", "_load_index", "_load_data")
    if file is None or not all(hasattr(file, name) for name in names):
        return  # another version of Numba: its own rules hold
    stamp = _digest(FLOOR, "**/*.py") + _digest(Path(function.__code__.co_filename).parent, "*.py")
    base, sources = file._index_name.removesuffix(".nbi"), hashlib.sha256(stamp.encode()).hexdigest()[:16]
    file._source_stamp = stamp
    file._data_name = lambda number: f"{base}.{sources}.{MAKER}-{os.getpid()}.{number}.nbc"
    load_index, load_data = file._load_index, file._load_data

    def read_index() -> Any:
        try:
            return load_index()
        except Exception:  # damaged, or of types that older sources had: neither is worth more than nothing
            return {}

    def read_data(name: str) -> Any:
        try:
            return load_data(name)
        except Exception as error:
            raise OSError(f"{name} holds no kernel") from error  # Numba compiles what it cannot open

    file._load_index, file._load_data = read_index, read_data
    for old in Path(file._cache_path).glob(f"{glob.escape(base)}.*.nbc"):
        if not old.name.startswith(f"{base}.{sources}."):
            with suppress(OSError):
                old.unlink()


@cache
def _digest(folder: Path, pattern: str) -> str:
    """Return a hash of the names and contents of a folder's sources; times would change when files are copied."""
    found = hashlib.sha256()
    for file in sorted(folder.glob(pattern)):
        name = file.relative_to(folder).as_posix()
        found.update(f"{name}\0".encode() + hashlib.sha256(file.read_bytes()).digest())
    return found.hexdigest()
