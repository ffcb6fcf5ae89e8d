"""What ``import seqconv`` brings along, in a process of its own."""

import subprocess
import sys

HEAVY = ("pandas", "numba", "matplotlib", "pooch", "tabulate", "tqdm", "triton")


def python(program):
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_leaves_heavy_packages_alone_and_does_without_some():
    """torch brings some packages itself: those do not count. Triton is not needed to tell that a call is not its.

    pandas and Matplotlib are for tables, plots and the Jena station's files alone, and imported there.
    """
    program = f"""
import sys
import numpy as np, torch
before = set(sys.modules)
import seqconv, seqconv.data, seqconv.training
from seqconv.data import load_csv, load_imdb, load_jena
from seqconv.kernels.geometry import Convolution
from seqconv.kernels.source import Dense
from seqconv.kernels.triton import conv_pool, support
assert support.refuse(Dense(torch.ones(1, 1, 9)), torch.ones(1, 1, 3), Convolution(), None) is not None
print(*(name for name in {HEAVY} if name in set(sys.modules) - before))
assert all(hasattr(seqconv, name) for name in seqconv.__all__)
assert all(hasattr(module, name) for module in (seqconv.functional, seqconv.data) for name in module.__all__)
sys.modules |= {{"pandas": None, "matplotlib": None}}  # an import of them raises ImportError
import seqconv.cli, seqconv.experiments, seqconv.models
from seqconv import data, training
windows = data.SlidingWindows(np.zeros((30, 3), np.float32), lookback=8, delay=1, target_column=0, batch_size=4)
model = seqconv.models.TemperatureNow(0)
model.bias = torch.nn.Parameter(torch.zeros(1))
model.register_forward_hook(lambda module, _, output: output + module.bias)
history = training.fit(
    model, windows, loss=torch.nn.functional.mse_loss, optimizer=training.rmsprop(model.parameters()), epochs=1
)
print(len(history.records))
data.pad_sequences([[1, 2]], maxlen=3)
seqconv.cli.main(["info"])
"""
    assert python(program).splitlines()[:2] == ["", "1"]  # no heavy package, and one epoch's record


def test_works_where_optional_packages_are_missing():
    program = f"""
import sys
for name in {HEAVY}:
    sys.modules[name] = None  # an import of it raises ImportError
import torch, seqconv
layer = seqconv.ConvReLUMaxPool1d(4, 6, 3, 2)
print(tuple(layer(torch.randn(2, 4, 12)).shape), seqconv.explain(layer, torch.randn(2, 4, 12)).backend)
"""
    assert python(program).strip() == "(2, 6, 5) reference"
