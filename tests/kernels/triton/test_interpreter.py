"""The kernels' tests in Triton's interpreter: without a GPU, in processes of their own (see ``conftest.py``)."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="this is such a process")
@pytest.mark.timeout(900)  # a module takes one to four minutes of a core that it has to itself
@pytest.mark.parametrize(
    "module",
    [
        f"test_{name}.py"
        for name in (
            "conv_pool_triton",
            "gather_triton",
            "phase_backward",
            "public_triton",
            "remembered",
            "rmsprop_triton",
        )
    ],
)
def test_passes_in_the_interpreter(module):
    command = [sys.executable, "-m", "pytest", str(HERE / module), "-q", "-p", "no:cacheprovider"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "COV"))}
    finished = subprocess.run(
        [*command, "-m", "not gpu and not large"],
        env={**environment, "TRITON_INTERPRET": "1"},
        cwd=HERE.parents[2],
        capture_output=True,
        text=True,
        timeout=880,
        check=False,
    )
    assert finished.returncode == 0, finished.stdout[-20000:] + finished.stderr[-2000:]
