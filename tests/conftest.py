"""What every test is given: no backend forced from outside, torch's settings put back, unwritten memory that shows."""

import sys
from pathlib import Path

import pytest
import torch

from seqconv.kernels.triton import replay
from tests.conv_cases import whole


@pytest.fixture(autouse=True)
def _settings(monkeypatch):
    monkeypatch.delenv("SEQCONV_BACKEND", raising=False)
    threads, dtype = torch.get_num_threads(), torch.get_default_dtype()
    torch.set_num_threads(1)  # tests share the cores with each other, and most of their tensors are tiny
    yield
    torch.set_num_threads(threads)
    torch.set_default_dtype(dtype)


@pytest.fixture(autouse=True)
def _first_calls():
    """Have every test's calls made anew: a call that is remembered calls little that the test may have replaced."""
    replay.forget()


FLOORS = ("reference", "auto")


@pytest.fixture(params=FLOORS)
def floor(request, monkeypatch):
    """Run a test on torch's own operations, and on what is chosen: compiled kernels, where they serve."""
    if request.param != "auto":
        monkeypatch.setenv("SEQCONV_BACKEND", request.param)
    return request.param


@pytest.fixture
def draw(floor):
    """Draw a test's numbers: whole ones where they are summed in another order than torch's and must not round."""
    return torch.randn if floor == "reference" else whole


@pytest.fixture(autouse=True)
def _poisoned_memory(monkeypatch):
    """Fill what torch.empty and its kin return, so that an element that nobody writes fails a comparison."""
    for owner, name in ((torch, "empty"), (torch, "empty_like"), (torch.Tensor, "new_empty")):
        monkeypatch.setattr(owner, name, _poisoned(getattr(owner, name)))
    for module in ("dense", "dense_backward"):
        if (owner := sys.modules.get(f"seqconv.kernels.numba.{module}")) is not None:
            monkeypatch.setattr(owner, "empty", _poisoned(owner.empty))


INTEGERS = (torch.int8, torch.int16, torch.int32, torch.int64)


def _poisoned(allocate):
    """Return ``allocate`` with NaN in its floating-point tensors, and numbers close to the least in those of integers.

    To fill is one more kernel on the current stream: the host does not wait for it, and a graph captures it.
    """

    def poisoned(*args, **kwargs):
        tensor = allocate(*args, **kwargs)
        if tensor.is_floating_point():
            with torch.no_grad():
                tensor.fill_(float("nan"))
        elif tensor.dtype in INTEGERS:
            tensor.fill_(torch.iinfo(tensor.dtype).min + 77)
        return tensor

    return poisoned


# Operations have thousands of small tests, and coverage slows Python 3.11 by 45 % (883 tests in 27 and 39 s): what
# they run is measured by the tests of layers, models, data and training, which reach 92 % without them.
UNMEASURED = tuple(Path(__file__).parent / part for part in ("kernels", "functional"))


def pytest_collection_modifyitems(config, items):
    if config.pluginmanager.hasplugin("pytest_cov"):
        for item in items:
            if item.path.is_relative_to(UNMEASURED[0]) or item.path.is_relative_to(UNMEASURED[1]):
                item.add_marker(pytest.mark.no_cover)
