"""The Triton kernels' tests run on a GPU, or in Triton's interpreter on CPU tensors where ``TRITON_INTERPRET`` is set.

Triton decides at its own import, which torch's compiler may bring about at any time, and once for a process, whether it
interprets: ``test_interpreter.py`` therefore runs these files again in processes that set the variable.
"""

import functools
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from seqconv.kernels.reference import conv_pool as reference
from seqconv.kernels.source import Dense

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def quicken(interpreter):
    """Keep what the interpreter looks up of a dtype; patch its language for a kernel, not for every call in it."""
    look_up, patch, language = interpreter._get_np_dtype, interpreter._patch_lang, interpreter.tl
    kept = functools.cache(look_up)
    interpreter._get_np_dtype = lambda of: look_up(of) if of.scalar.is_ptr() else kept(of.scalar)

    def patch_once(function):
        seen = language if language in function.__globals__.values() else language.core
        return patch(function) if language.core.is_builtin(seen.load) else interpreter._LangPatchScope()

    interpreter._patch_lang = patch_once


if INTERPRETED:
    from triton.runtime import interpreter

    quicken(interpreter)


@pytest.fixture(params=["cpu"] if INTERPRETED else [pytest.param("cuda", marks=pytest.mark.gpu)], scope="session")
def device(request):
    """Return the device of the tests' tensors."""
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("torch sees no GPU")
    return torch.device(request.param)


@pytest.fixture(scope="session")
def apart():
    """Run a program in a process of its own: after a failed assertion on the device, no call on it succeeds."""

    def run(program):
        return subprocess.run(
            [sys.executable, "-c", program],
            cwd=Path(__file__).parents[3],
            capture_output=True,
            text=True,
            timeout=50,
            check=False,
        )

    return run


@pytest.fixture(autouse=True)
def _exact_products():
    """Compute float32 products exactly; the switch is put back."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


CONFIGURED = []  # what writes to the terminal can be asked of it, once it is there


def pytest_configure(config):
    """Keep the configuration, unless this process is one of several that run tests for another."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        CONFIGURED[:] = [config]


def pytest_runtest_logreport(report):
    """Tell at once why a test on a GPU failed: a run that a limit ends does not come to its summary."""
    if report.failed and "gpu" in report.keywords:
        for config in CONFIGURED:
            config.pluginmanager.get_plugin("terminalreporter").write_line("\n" + report.longreprtext[-4000:])


BROKEN = []  # what the device said in this process, if it no longer answers


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item):
    """Wait for the device behind each test on it: the test that broke it fails, not the next one that looks."""
    result = yield
    if not BROKEN and item.get_closest_marker("gpu") and torch.cuda.is_available() and torch.cuda.is_initialized():
        try:
            torch.cuda.synchronize()
        except Exception as error:
            BROKEN.append(str(error).partition("\n")[0])
            pytest.fail(f"the device does not answer any more: {BROKEN[0]}", pytrace=False)
    return result


@pytest.hookimpl(trylast=True)
def pytest_runtest_logfinish():
    """Leave a process whose device is lost, once the test is reported: pytest-xdist starts another for the rest."""
    if BROKEN and "PYTEST_XDIST_WORKER" in os.environ:
        os._exit(1)
    elif BROKEN:
        pytest.exit(f"the device does not answer any more: {BROKEN[0]}", returncode=1)


@pytest.fixture(scope="session")
def floor():
    """Return the kernels' two passes, ``pool=None`` standing for the global maximum, and what they must give."""
    return SimpleNamespace(forward=forward, backward=backward, expected=expected, step=step)


def forward(x, w, b, convolution, pool, want_argmax=True):
    from seqconv.kernels.triton import conv_pool

    return conv_pool.forward(Dense(x), w, b, convolution, pool, want_argmax=want_argmax)


def backward(gradient, argmax, x, w, convolution, pool, wanted=(True, True, True)):
    from seqconv.kernels.triton import conv_pool

    return conv_pool.backward(gradient, argmax, Dense(x), w, convolution, pool, wanted=wanted)


def expected(x, w, b, convolution, pool, upstream=None):
    """Return the reference's result and gradients, computed in float64 on the CPU."""
    b = w.new_zeros(w.size(0)) if b is None else b
    tensors = [one.detach().cpu().double().requires_grad_() for one in (x, w, b)]
    out = reference.compose(Dense(tensors[0]), *tensors[1:], convolution, pool)
    if upstream is None:
        return out.detach()
    return out.detach(), torch.autograd.grad(out, tensors, upstream.cpu().double())


def step(x, w, b, convolution, pool, upstream):
    """Return the kernels' result and all gradients."""
    out, argmax = forward(x, w, b, convolution, pool)
    return out, *backward(upstream, argmax, x, w, convolution, pool)
