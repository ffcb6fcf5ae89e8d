"""Compiled kernels on disk: kept in the user's cache folder, until something that they are made of changes."""

import errno
import os
import pickle
import re
import shutil
import subprocess
import sys

import numba
import pytest
from numba.core import caching

import seqconv
from seqconv.kernels.numba.runtime import compilation

KERNEL = """
from seqconv.kernels.numba.runtime.compilation import compiled
from helper import twice

@compiled
def kernel(number):
    return twice(number)
"""
HELPER = """
from numba import njit

@njit
def twice(number):
    return {factor} * number
"""
PROGRAM = """
import os, sys, types
sys.modules["seqconv"] = types.ModuleType("seqconv")  # whose own file imports torch, of which nothing is needed here
sys.modules["seqconv"].__path__ = sys.argv[1:]
import numba.core.caching, numba.core.dispatcher
compiled = []
compile = numba.core.compiler.compile_extra
def note(*given, **options):
    compiled.append(1)
    return compile(*given, **options)
numba.core.compiler.compile_extra = note
if "SLOW_DISK" in os.environ:  # the process is looked at between its writing the index and the kernel
    numba.core.caching.IndexDataCacheFile._save_data = lambda *_: None
from kernel import kernel
from seqconv.kernels.numba.runtime.compilation import watched
began = []
with watched(lambda: began.append(1)):
    result = kernel(3.0)
assert len(began) == (len(compiled) > 0)
print(result, len(compiled) > 0)
"""


def run(sources, level="WARNING", **environment):
    """Call the kernel in a process of its own; return what it printed, and what it told on stderr."""
    program = f"import logging; logging.basicConfig(level='{level}', format='%(message)s')\n{PROGRAM}"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(sources), *sys.path]), **environment}
    done = subprocess.run(
        [sys.executable, "-c", program, *seqconv.__path__],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split(), done.stderr


@pytest.fixture
def sources(tmp_path, monkeypatch):
    """Write the kernel and its helper into a folder; leave the cache to ``XDG_CACHE_HOME``."""
    monkeypatch.delenv("NUMBA_CACHE_DIR", raising=False)
    folder = tmp_path / "sources"
    folder.mkdir()
    write(folder, 2)
    return folder


def write(folder, factor):
    (folder / "kernel.py").write_text(KERNEL)
    (folder / "helper.py").write_text(HELPER.format(factor=factor))


def kept(folder):
    """Return the compiled kernels below a folder."""
    return [path for pattern in ("*.nbi", "*.nbc") for path in folder.rglob(pattern)]


def test_kernels_are_kept_until_what_they_are_made_of_changes(sources, tmp_path):
    """In the user's cache folder, each checkout's its own; to compile is told once, and to load is not."""
    cache, other = {"XDG_CACHE_HOME": str(tmp_path / "cache")}, tmp_path / "other"
    shutil.copytree(sources, other)
    write(other, 5)
    printed, told = run(sources, "INFO", **cache)
    assert printed == ["6.0", "True"]
    line, second = (one for one in told.splitlines() if one.startswith("seqconv: "))
    assert line.startswith("seqconv: compiling CPU kernels, each at its first call, 20 to 60 seconds in all; once on")
    assert line.endswith(f"kept in {tmp_path}/cache/seqconv/kernels")
    assert re.fullmatch(r"seqconv: compiled kernel in \d+\.\d s", second)
    assert len(kept(tmp_path / "cache" / "seqconv" / "kernels")) == 2
    assert run(other, **cache)[0] == ["15.0", "True"]
    assert run(sources, "INFO", **cache) == (["6.0", "False"], "")
    times = (sources / "helper.py").stat()
    write(sources, 3)
    os.utime(sources / "helper.py", ns=(times.st_atime_ns, times.st_mtime_ns))  # of the same size and time, too
    assert run(sources, **cache)[0] == ["9.0", "True"]
    assert not kept(sources)


def test_a_kernel_that_another_process_is_writing_is_not_taken_from_older_sources(sources, tmp_path):
    assert run(sources, NUMBA_CACHE_DIR=str(tmp_path))[0] == ["6.0", "True"]
    (sources / "helper.py").write_text(HELPER.format(factor=5))
    assert run(sources, NUMBA_CACHE_DIR=str(tmp_path), SLOW_DISK="1")[0] == ["15.0", "True"]
    assert run(sources, NUMBA_CACHE_DIR=str(tmp_path))[0] == ["15.0", "True"]
    assert run(sources, NUMBA_CACHE_DIR=str(tmp_path))[0] == ["15.0", "False"]
    assert len(list(tmp_path.rglob("*.nbc"))) == 1


@pytest.mark.parametrize("content", [b"", b"no pickle", b"cgone\nClass\n."])
@pytest.mark.parametrize("ending", ["nbi", "nbc"])
def test_a_damaged_cache_is_none(sources, tmp_path, ending, content):
    """So is an index whose entries are of classes that older sources had, and that are gone."""
    run(sources, NUMBA_CACHE_DIR=str(tmp_path))
    (path,) = tmp_path.rglob(f"*.{ending}")
    path.write_bytes(pickle.dumps(numba.__version__) + content if ending == "nbi" and content else content)
    assert run(sources, NUMBA_CACHE_DIR=str(tmp_path))[0] == ["6.0", "True"]
    assert run(sources, NUMBA_CACHE_DIR=str(tmp_path))[0] == ["6.0", "False"]


def test_numbas_own_variable_is_followed(sources, tmp_path):
    run(sources, NUMBA_CACHE_DIR=str(tmp_path / "cache"))
    assert not kept(sources)
    assert len(kept(tmp_path / "cache")) == 2


def test_without_a_folder_to_write_kernels_are_compiled_in_every_process(sources, tmp_path):
    (tmp_path / "file").touch()
    printed, told = run(sources, XDG_CACHE_HOME=str(tmp_path / "file"))  # no folder, whoever asks
    assert printed == ["6.0", "True"]
    assert "no folder can be written to keep them, so every process will (set NUMBA_CACHE_DIR)" in told
    assert not kept(tmp_path)


def test_compiles_without_a_cache_folder(monkeypatch):
    njit = compilation.njit

    def no_folder(*arguments, cache=False, **options):
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return njit(*arguments, **options)

    monkeypatch.setattr(compilation, "njit", no_folder)
    assert compilation.compiled(lambda value: value + 1)(2) == 3


def test_runs_what_it_compiled_though_the_disk_is_full(monkeypatch):
    attempts = []

    def full(*_):
        attempts.append("save")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(caching.IndexDataCacheFile, "save", full)
    assert compilation.compiled(lambda value: value + 2)(2) == 4
    assert attempts == ["save"]
