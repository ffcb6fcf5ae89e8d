"""``seqconv.warmup``: afterwards no first call compiles or loads anything."""

import json
import subprocess
import sys
from collections import deque
from importlib import import_module

import pytest
import torch

import seqconv
from seqconv.cli import main

warmup = import_module("seqconv.warmup")  # seqconv.warmup is the function

PROGRAM = """
import json, numba.core.dispatcher, torch, seqconv, seqconv.training
looked_up = []
compile = numba.core.dispatcher.Dispatcher.compile
def look_up(self, given):
    looked_up.append(str(self.py_func))
    return compile(self, given)
numba.core.dispatcher.Dispatcher.compile = look_up
seconds = seqconv.warmup()
during = len(looked_up)
def step(layer, *inputs):
    layer(*inputs).sum().backward()
    with torch.no_grad():
        for _ in range(3):  # from where it is kept, at the latest
            layer(*inputs)
for shape in ((2, 3, 30), (1, 5, 400), (200, 1, 64)):
    for layer in (seqconv.ConvReLUMaxPool1d(shape[1], 33, 3, 2), seqconv.ConvReLUGlobalMaxPool1d(shape[1], 4, 5)):
        for x in (torch.randn(shape), torch.randn(shape[0], shape[2], shape[1]).transpose(1, 2)):
            step(layer, x.requires_grad_())
for rows, channels in ((9, 64), (5000, 3)):
    for samples, length in ((1, 30), (64, 200)):
        for integer in (torch.int32, torch.int64):
            tokens = torch.randint(rows, (samples, length)).to(integer)
            step(seqconv.EmbeddingConvReLUMaxPool1d(rows, channels, 8, 3, 2), tokens)
            step(seqconv.EmbeddingConvReLUGlobalMaxPool1d(rows, channels, 8, 3), tokens)
            step(seqconv.EmbeddingConvsReLUGlobalMaxPool1d(rows, channels, 8, [2, 3]), tokens)
            starts = torch.randint(300, (samples,)).to(integer)
            for series in (torch.randn(5000, channels), torch.randn(5000, channels, requires_grad=True)):
                windows = seqconv.Windows(series, starts, length, 2)
                step(seqconv.ConvReLUMaxPool1d(channels, 8, 3, 2), windows)
                step(seqconv.ConvReLUGlobalMaxPool1d(channels, 8, 3), windows)
for channels, length in ((1, 1000), (3, 100)):
    x = torch.randn(40, channels, length, requires_grad=channels > 1)
    step(seqconv.ConvBatchNormReLUMaxPool1d(channels, 50, 3, 2), x)
    step(seqconv.ConvBatchNormReLUGlobalMaxPool1d(channels, 50, 3, bias=False, norm_affine=False), x)
parameter = torch.nn.Parameter(torch.zeros(30))
parameter.grad = torch.ones(30)
seqconv.training.rmsprop([parameter]).step()
print(json.dumps([seconds, during, looked_up[during:]]))
"""


def test_nothing_is_left_for_the_first_calls():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr
    seconds, during, afterwards = json.loads(done.stdout)
    assert during > 0
    assert afterwards == []
    assert len(seconds) == 12
    assert all(value >= 0 for value in seconds.values())


def test_reports_each_part_and_leaves_torch_as_it_was():
    told = []
    state = torch.random.get_rng_state()
    with torch.no_grad():
        seconds = seqconv.warmup(torch.float32, gradients=False, report=lambda *part: told.append(part))
        assert not torch.is_grad_enabled()
    assert dict(told) == seconds
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("dtype", [torch.bfloat16, "float32"])
def test_names_a_dtype_that_no_kernel_takes(dtype):
    with pytest.raises(TypeError, match=r"^dtypes must be torch.float32 or torch.float64, got "):
        seqconv.warmup(dtype)


def helpers(*waiting):
    """Return what is left to do, and helpers for it."""
    left = deque(waiting)
    return left, warmup._Helpers(left, ["float32"], True, 1)


def test_a_helper_compiles_what_waits(tmp_path, monkeypatch):
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    waiting, helper = helpers("batches of windows")
    helper.start()
    helper.join()
    assert not waiting
    names = {path.name.split("-")[0] for path in tmp_path.rglob("*.nbc")}
    assert names == {"windows.copy_windows", "windows.copy_rows"}


def test_a_helper_that_does_not_start_leaves_the_work(monkeypatch):
    for executable in ("/nowhere", "/bin/false"):
        monkeypatch.setattr(sys, "executable", executable)
        waiting, helper = helpers("batches of windows")
        helper.start()
        helper.join()
        assert len(waiting) == 1


def test_without_anything_to_compile_nobody_helps(monkeypatch):
    seqconv.warmup(gradients=False)
    monkeypatch.setattr(warmup._Helpers, "start", lambda _: pytest.fail("nothing was left to compile"))
    seqconv.warmup(gradients=False)


def test_parts_are_the_same_kernels_for_several_dtypes():
    every = warmup._parts(["float32", "float64"], True)
    assert list(every) == list(warmup._parts(["float32"], True))
    assert [part for part in every if "backward" not in part and part not in ("batch norm", "RMSprop")] == list(
        warmup._parts(["float64"], False)
    )


def test_command(capsys):
    assert main(["warmup", "--inference"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines[:2]] == ["recurrent layers, forward", "convolution, forward"]
    assert lines[-1].startswith("all: ")
