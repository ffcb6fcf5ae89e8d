"""Compiled kernels on disk: kept until something that they are made of changes."""

import os
import subprocess
import sys

KERNEL = """
from seqconv.kernels.numba.compilation import compiled
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
import numba.core.dispatcher
compiled = []
compile = numba.core.compiler.compile_extra
def note(*given, **options):
    compiled.append(1)
    return compile(*given, **options)
numba.core.compiler.compile_extra = note
from kernel import kernel
print(kernel(3.0), len(compiled) > 0)
"""


def run(folder):
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(folder / "cache"), "PYTHONPATH": str(folder)}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_a_changed_helper_is_compiled_anew(tmp_path):
    (tmp_path / "kernel.py").write_text(KERNEL)
    (tmp_path / "helper.py").write_text(HELPER.format(factor=2))
    assert run(tmp_path) == ["6.0", "True"]
    assert run(tmp_path) == ["6.0", "False"]
    (tmp_path / "helper.py").write_text(HELPER.format(factor=20))
    assert run(tmp_path) == ["60.0", "True"]
