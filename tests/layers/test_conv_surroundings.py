"""The conv stack's layers on compiled kernels where models live: workers, threads, copies, modes, installs."""

import copy
import io
import os
import pickle
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import nn

import seqconv
from seqconv import BackendError
from seqconv.kernels.numba.runtime import threads
from tests.conv_cases import same, whole
from tests.grids import others_large

ROOT = Path(seqconv.__file__).parent.parent
LAYERS = [
    (lambda **kw: seqconv.ConvReLUMaxPool1d(4, 6, 3, 2, **kw), lambda: whole(2, 4, 40)),
    (lambda **kw: seqconv.ConvReLUGlobalMaxPool1d(4, 6, 3, **kw), lambda: whole(2, 4, 40)),
    (lambda **kw: seqconv.EmbeddingConvReLUMaxPool1d(9, 4, 6, 3, 2, **kw), lambda: torch.randint(9, (2, 40))),
    (lambda **kw: seqconv.EmbeddingConvReLUGlobalMaxPool1d(9, 4, 6, 3, **kw), lambda: torch.randint(9, (2, 40))),
]
layers = pytest.mark.parametrize(("make", "draw_input"), LAYERS, ids=["pool", "global", "embedding", "embedded global"])


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(6)


def rounded(module):
    """Give a module small whole parameters: sums are exact in any order."""
    for parameter in module.parameters():
        nn.init.uniform_(parameter, -3.5, 3.5).data.round_()
    return module


def python(program, *arguments, **environment):
    done = subprocess.run(
        [sys.executable, *([] if isinstance(program, Path) else ["-c"]), program, *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@layers
def test_the_environment_variable_and_the_argument(make, draw_input, monkeypatch):
    x, layer = draw_input(), rounded(make())
    expected = layer(x)
    assert seqconv.explain(layer, x).backend == "numba"
    for name in ("reference", "numba"):
        monkeypatch.setenv("SEQCONV_BACKEND", name)
        explanation = seqconv.explain(layer, x)
        assert (explanation.backend, explanation.requested) == (name, name)
        assert same(layer(x), expected)
        assert ("seqconv::" in layer(x).grad_fn.name()) == (name == "numba")
    with pytest.raises(BackendError, match=r"'numba' cannot serve .* it serves float32 and float64, got torch.float16"):
        layer.half()(x.half() if x.is_floating_point() else x)
    other = make(backend="reference")
    assert seqconv.explain(other, x).backend == "reference"


@layers
def test_copies_with_compiled_kernels(make, draw_input):
    layer, x = rounded(make(backend="numba")), draw_input()
    expected = layer(x)
    stream = io.BytesIO()
    torch.save(layer.state_dict(), stream)
    stream.seek(0)
    loaded = make(backend="numba")
    loaded.load_state_dict(torch.load(stream))
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), loaded):
        assert twin.backend == "numba"
        assert same(twin(x), expected)
        nn.init.zeros_(next(iter(twin.parameters())))  # the weights are read anew at every call
        assert not same(twin(x), expected)
        assert same(layer(x), expected)


@layers
def test_a_change_of_the_weights_is_seen(make, draw_input):
    """In place, by an optimizer, by new data, through .data: nothing of an earlier call is kept."""
    layer, x = rounded(make()).double(), draw_input()
    x = x.double() if x.is_floating_point() else x  # float32 would round the numbers that come of all the changes
    twin = copy.deepcopy(layer)
    twin.backend = "reference"
    optimizers = [torch.optim.SGD(one.parameters(), lr=1.0) for one in (layer, twin)]
    for change in (
        lambda one: [parameter.data.neg_() for parameter in one.parameters()],
        lambda one: [setattr(parameter, "data", parameter.data.flip(0)) for parameter in one.parameters()],
        lambda one: [nn.init.constant_(parameter, 2) for parameter in one.parameters()],
        lambda one: one.load_state_dict({name: value + 1 for name, value in one.state_dict().items()}),
    ):
        for one, optimizer in zip((layer, twin), optimizers, strict=True):
            with torch.no_grad():
                one(x)
                change(one)
            optimizer.zero_grad()
            one(x).sum().backward()
            optimizer.step()
        with torch.inference_mode():
            assert same(layer(x), twin(x))


@layers
def test_dtypes_and_modes(make, draw_input):
    layer, x = rounded(make()), draw_input()
    expected = layer(x)
    with torch.inference_mode():
        assert same(layer(x), expected)
        assert layer(x).is_inference()
        assert same(layer(draw_input() * 0 + x), expected)
    if x.is_floating_point():
        with torch.inference_mode():
            inference = x + 0
        with pytest.raises(RuntimeError, match="Inference tensors cannot be saved for backward"):
            layer(inference)
        assert same(layer.requires_grad_(False)(inference), expected)
        layer.requires_grad_(True)
    double = layer.double()
    y = x.double() if x.is_floating_point() else x
    assert seqconv.explain(double, y).backend == "numba"
    assert double(y).dtype == torch.float64
    assert same(double(y).float(), expected)
    assert same(layer.to(torch.float32)(x), expected)
    assert same(layer.eval()(x), expected)


@layers
def test_deterministic_algorithms(make, draw_input):
    layer, x = make(), draw_input()
    torch.use_deterministic_algorithms(True)
    try:
        assert seqconv.explain(layer, x).backend == "numba"
        runs = []
        for _ in range(5):
            layer.zero_grad()
            result = layer(x)
            result.square().sum().backward()
            runs.append([result, *(parameter.grad for parameter in layer.parameters())])
    finally:
        torch.use_deterministic_algorithms(False)
    for run in runs[1:]:
        assert all(map(same, run, runs[0]))


@pytest.mark.parametrize("count", [1, 2, 3])
def test_several_threads_train_at_once(count, monkeypatch):
    """Each its own model; whatever the others do, each ends with the bits that it has alone."""
    monkeypatch.setattr(threads, "WORTH_A_THREAD", 1)
    torch.set_num_threads(count)

    def train(seed):
        generator = torch.Generator().manual_seed(seed)
        model = nn.Sequential(seqconv.ConvReLUMaxPool1d(5, 7, 3, 2), seqconv.ConvReLUGlobalMaxPool1d(7, 1, 3))
        for parameter in model.parameters():
            nn.init.uniform_(parameter, -0.5, 0.5, generator=generator)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        for _ in range(15):
            x = torch.randn(6, 40, 5, generator=generator).transpose(1, 2)
            optimizer.zero_grad()
            (model(x).squeeze() - x.mean((1, 2))).square().sum().backward()
            optimizer.step()
        return [parameter.detach() for parameter in model.parameters()]

    alone = [train(seed) for seed in range(4)]
    with ThreadPoolExecutor(4) as executor:
        together = list(executor.map(train, [0, 1, 2, 3] * 5))
    for i, parameters in enumerate(together):
        assert all(map(same, parameters, alone[i % 4]))


WORKERS = """
import sys
from functools import partial
import torch
from torch.utils.data import DataLoader, Dataset
import seqconv
from seqconv.kernels.numba.runtime import threads

class Rows(Dataset):
    def __init__(self, layers):
        self.layers = layers

    def __len__(self):
        return 8

    def __getitem__(self, i):
        assert torch.utils.data.get_worker_info() is None or torch.get_num_threads() == THREADS, torch.get_num_threads()
        x = torch.arange(3 * 4 * 40).mul(i + 5).remainder(11).sub(5).float().reshape(3, 4, 40).requires_grad_()
        results = []
        for layer in self.layers:
            assert seqconv.explain(layer, x).backend == "numba"
            result = layer(x)
            gradients = torch.autograd.grad(result.square().sum(), [x, *layer.parameters()])
            results += [one.detach().flatten() for one in (result, *gradients)]
        return torch.cat(results)

def prepare(count, _worker):
    global THREADS
    THREADS = count
    if count != 1:  # what DataLoader sets
        torch.set_num_threads(count)
    threads.WORTH_A_THREAD = 1

if __name__ == "__main__":
    method = sys.argv[1]
    layers = [seqconv.ConvReLUMaxPool1d(4, 6, 3, 2), seqconv.ConvReLUGlobalMaxPool1d(4, 6, 3)]
    for layer in layers:
        for parameter in layer.parameters():
            torch.nn.init.uniform_(parameter, -3.5, 3.5).data.round_()
    torch.set_num_threads(2)
    threads.WORTH_A_THREAD = 1
    rows = Rows(layers)
    expected = [rows[i] for i in range(len(rows))]  # threads exist when the workers are forked
    spawned = method == "spawn"  # a process that is spawned imports torch again
    for count in (2,) if spawned else (1, 2):
        options = {"multiprocessing_context": method, "worker_init_fn": partial(prepare, count)}
        loader = DataLoader(rows, 2, num_workers=1 if spawned else 2, **options)
        assert torch.equal(torch.cat(list(loader)), torch.stack(expected))
    assert all(torch.equal(rows[i], one) for i, one in enumerate(expected))
    print("as expected")
"""


@pytest.mark.parametrize("method", others_large("fork", "spawn"))
def test_workers_of_a_data_loader(method, tmp_path):
    """Forward and backward in workers, on their one thread and on two, as in the parent, whose threads are awake."""
    if method == "fork" and not hasattr(os, "fork"):
        pytest.skip("this system cannot fork")
    script = tmp_path / "workers.py"
    script.write_text(WORKERS)
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    assert python(script, method, PYTHONPATH=path).strip() == "as expected"


READ_ONLY = """
import torch, seqconv
windows = seqconv.data.SlidingWindows(torch.arange(9.0)[:, None], lookback=3, delay=1, target_column=0, batch_size=5)
inputs, targets = next(iter(windows))
assert torch.equal(inputs.squeeze(2) + torch.tensor([4.0, 3.0, 2.0]), targets[:, None].expand(-1, 3)), (inputs, targets)
"""
READ_ONLY_LAYER = """
import torch, seqconv
layer = seqconv.ConvReLUMaxPool1d(4, 6, 3, 2, backend="numba")
with torch.no_grad():
    result = layer(torch.ones(2, 4, 12))
    layer.backend = "reference"
    torch.testing.assert_close(result, layer(torch.ones(2, 4, 12)))
"""


@pytest.mark.parametrize(
    "program", [READ_ONLY, pytest.param(READ_ONLY_LAYER, marks=pytest.mark.large)], ids=["windows", "layer"]
)
def test_a_read_only_install(tmp_path, program):
    """Files stand where folders for compiled code would be made: neither the package nor the home can be written."""
    package = tmp_path / "seqconv"
    ignore = shutil.ignore_patterns("__pycache__", "kernels")
    shutil.copytree(ROOT / "seqconv", package, ignore=ignore)
    shutil.copytree(
        Path(threads.__file__).parents[2], package / "kernels", ignore=shutil.ignore_patterns("__pycache__")
    )
    (package / "kernels" / "numba" / "__pycache__").touch()
    nowhere = tmp_path / "a file"
    nowhere.touch()
    program += "print(seqconv.__file__)"
    places = dict.fromkeys(("HOME", "XDG_CACHE_HOME", "NUMBA_CACHE_DIR"), str(nowhere))
    told = python(program, PYTHONPATH=str(tmp_path), PYTHONDONTWRITEBYTECODE="1", PYTHONSAFEPATH="1", **places)
    assert Path(told.strip()).parent == package
    assert not list(tmp_path.rglob("*.nbi"))
