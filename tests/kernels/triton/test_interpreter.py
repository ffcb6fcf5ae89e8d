"""The kernels' tests in Triton's interpreter: without a GPU, in processes of their own (see ``conftest.py``)."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
PROCESSES = [  # that take about as long as each other
    ["gather_triton", "strides_triton", "rmsprop_triton", "norm_triton", "guard_pages", "sliding_triton"],
    ["conv_pool_triton", "remembered", "../test_conv_pool"],
    ["phase_backward", "public_triton", "non_finite_triton", "conv_norm_pool_triton"],
    ["recurrent_triton"],
]


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="this is such a process")
@pytest.mark.timeout(900)
@pytest.mark.parametrize("selected", ["not large", pytest.param("large", marks=pytest.mark.large)])
@pytest.mark.parametrize("modules", PROCESSES, ids=" ".join)
def test_passes_in_the_interpreter(modules, selected):
    files = [str(HERE / (module if "/" in module else f"test_{module}")) + ".py" for module in modules]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "COV"))}
    finished = subprocess.run(
        [sys.executable, "-m", "pytest", *files, "-q", "-p", "no:cacheprovider", "-m", f"not gpu and {selected}"],
        env={**environment, "TRITON_INTERPRET": "1"},
        cwd=HERE.parents[2],
        capture_output=True,
        text=True,
        timeout=880,
        check=False,
    )
    assert finished.returncode == 0, finished.stdout[-20000:] + finished.stderr[-2000:]
