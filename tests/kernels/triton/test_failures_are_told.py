"""What ``conftest.py`` tells of a test that fails on a GPU, before the whole run is over."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.grids import others_large

ROOT = Path(__file__).resolve().parents[3]
PLANTED = """
import pytest

@pytest.mark.gpu
def test_first():
    raise RuntimeError("the reason of " + "it")

def test_second():
    raise RuntimeError("another " + "reason")
"""


@pytest.mark.parametrize("processes", others_large([], ["-n", "1"]), ids=["alone", "xdist"])
def test_a_failure_on_a_gpu_is_told_at_once(tmp_path, processes):
    hooks = "pytest_configure, pytest_runtest_logreport"
    (tmp_path / "conftest.py").write_text(f"from tests.kernels.triton.conftest import {hooks}")
    (tmp_path / "test_planted.py").write_text(PLANTED)
    command = [sys.executable, "-m", "pytest", str(tmp_path), "-v", "--tb=short", "-p", "no:cacheprovider", *processes]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "COV"))}
    done = subprocess.run(
        [*command, "-c", str(ROOT / "pyproject.toml"), "--rootdir", str(ROOT)],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    before, _, after = done.stdout.partition("= FAILURES =")
    assert before.count("RuntimeError: the reason of it") == 1, done.stdout
    assert "another reason" not in before
    assert "another reason" in after
