"""``seqconv.warmup``: afterwards no first call compiles or loads anything."""

import json
import subprocess
import sys

import pytest
import torch

import seqconv
from seqconv.cli import main

PROGRAM = """
import json, numba.core.dispatcher, torch, seqconv
looked_up = []
compile = numba.core.dispatcher.Dispatcher.compile
def look_up(self, given):
    looked_up.append(str(self.py_func))
    return compile(self, given)
numba.core.dispatcher.Dispatcher.compile = look_up
seconds = seqconv.warmup()
during = len(looked_up)
for shape in ((2, 3, 30), (1, 5, 400), (200, 1, 64)):
    for layer in (seqconv.ConvReLUMaxPool1d(shape[1], 33, 3, 2), seqconv.ConvReLUGlobalMaxPool1d(shape[1], 4, 5)):
        for x in (torch.randn(shape), torch.randn(shape[0], shape[2], shape[1]).transpose(1, 2)):
            layer(x.requires_grad_()).sum().backward()
            with torch.no_grad():
                layer(x)
print(json.dumps([seconds, during, looked_up[during:]]))
"""


def test_nothing_is_left_for_the_first_calls():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr
    seconds, during, afterwards = json.loads(done.stdout)
    assert during > 0
    assert afterwards == []
    assert len(seconds) == 4
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


def test_command(capsys):
    assert main(["warmup", "--inference"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines[:1]] == ["max pool, float32"]
    assert lines[-1].startswith("all: ")
