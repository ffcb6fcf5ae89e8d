"""The process that is asked, and who asks it: other frameworks at work, first calls, memory."""

from __future__ import annotations

import importlib.util
import sys
import textwrap
import time
import types
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import frameworks, fresh, timing
from benchmarks.checking import check
from benchmarks.frameworks import Work
from benchmarks.operations import operation
from benchmarks.operations.layers import layer_case
from benchmarks.operations.models import model_case, torch_model
from benchmarks.operations.rivals import unserved
from benchmarks.operations.steps import TensorStep
from benchmarks.peers import PEERS, RemoteStep, missing
from benchmarks.registry import Contender, candidates, comparisons
from benchmarks.worker import Failed, Late, Worker

MODULE = """
    import sys, time

    calls = []

    def start(function, case, threads):
        if case["name"] == "conv_gru":
            raise ValueError("no such model")
        calls[:] = [0, threads]

    def seconds(calls):
        time.sleep(0.05)
        globals()["calls"][0] += calls
        return [1e-3] * calls

    def results():
        print("what libraries print")
        return calls

    def end(after):
        time.sleep(after)
        sys.exit("the last words of\\na worker")
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Give the name of a module that a worker can be asked for."""
    tmp_path.joinpath("planted_module.py").write_text(textwrap.dedent(MODULE))
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}")
    return "planted_module"


def peer_case(name: str, mode: str, batch: int = 3):
    return model_case(name, mode, batch=batch, operation="peers")


def test_a_worker_answers_raises_ends_and_starts_again(module):
    with Worker("it") as worker:
        worker.ask(f"{module}:start", function="x", case={"name": "y"}, threads=1)
        assert worker.ask(f"{module}:seconds", calls=2) == [1e-3] * 2
        with pytest.raises(Failed, match=r"it failed in its process:(.|\n)*no such model"):
            worker.ask(f"{module}:start", function="x", case={"name": "conv_gru"}, threads=1)
        assert worker.ask(f"{module}:results") == [2, 1]
        process = worker.process
        with pytest.raises(Failed, match=r"it: the process ended: .*the last words of a worker"):
            worker.ask(f"{module}:end", after=0)
        assert worker.process is None
        with pytest.raises(Late, match="no answer within 0 s"):
            worker.ask(f"{module}:end", patience=0.3, after=60)
        assert worker.starts == 2
    assert process.wait(10) is not None


def test_a_step_in_another_process_measures_itself_is_stopped_between_and_ends(module):
    step = RemoteStep("OpenVINO", peer_case("jena_convnet", "inference"), module)
    step.prepare()
    step.call()
    assert step.results()["output"].tolist() == [1, torch.get_num_threads()]
    assert step.results()["output"].dtype == torch.float32
    side = timing.Side(step, step.stopwatch)
    side.calls = 3
    side.block()  # once to warm up, three times timed
    assert step.results()["output"][0] == 5
    assert side.samples == [pytest.approx(1e-3)]  # the seconds in there, and not those of asking
    process = step.worker.process
    if sys.platform == "linux":
        status = Path(f"/proc/{process.pid}/status")
        for _ in range(100):
            if "T (stopped)" in status.read_text():
                break
            time.sleep(0.02)
        assert "T (stopped)" in status.read_text()
    del step, side
    assert process.wait(10) is not None
    with pytest.raises(Failed, match="no such model"):
        RemoteStep("OpenVINO", peer_case("conv_gru", "inference"), module)


@pytest.fixture
def installed(monkeypatch):
    """Have the packages in the returned set found, and no others."""
    there: set[str] = set()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, package=None: there if name in there else None)
    return there


def test_a_missing_peer_says_how_to_install_it(installed):
    case = peer_case("jena_convnet", "inference")
    reasons = {one.provider.name: one.unavailable for one in candidates(case)}
    assert reasons["OpenVINO"] == "OpenVINO is not installed (openvino): pip install 'seqconv[peers]'"
    assert "not installed (keras, jax)" in reasons["Keras, JAX"]
    installed.update({"keras", "jax"})
    assert unserved(PEERS["Keras, JAX"], case) is None
    assert "not installed (tensorflow)" in unserved(PEERS["Keras, TensorFlow"], case)
    assert "onnxruntime, onnx, onnxscript" in unserved(PEERS["ONNX Runtime"], case)
    assert missing(()) is None


def test_peers_that_cannot_serve_say_why(installed):
    installed.update(*(peer.packages for peer in PEERS.values()))
    assert unserved(PEERS["OpenVINO"], peer_case("jena_convnet", "training_step")) == "does not train"
    assert unserved(PEERS["Keras, JAX"], peer_case("jena_convnet", "training_step")) is None
    assert unserved(PEERS["Keras, JAX"], peer_case("jena_convnet_from_starts", "inference")).startswith("has no jena")
    assert unserved(PEERS["Keras, JAX"], peer_case("conv_gru_dropout", "training_step")) is None
    assert unserved(PEERS["Keras, JAX"], peer_case("textcnn", "training_step")).startswith("draws other numbers")
    on_gpu = model_case("jena_convnet", "inference", device="cuda", operation="peers")
    assert unserved(PEERS["OpenVINO"], on_gpu) == "is for CPUs"


def test_seqconv_meets_everyone_and_they_do_not_meet_each_other():
    pairs = comparisons(peer_case("imdb_convnet", "training_step"))
    assert {one.candidate.provider.name for one in pairs} == {"seqconv auto"}
    assert {one.against.provider.name for one in pairs} >= {
        *("torch eager", "torch.compile", "torch LSTM(32)", "seqconv LSTM(32)"), *PEERS,
    }  # fmt: skip


def test_what_is_restored_is_restored_before_every_call(monkeypatch):
    state = []
    work = Work(lambda: state.append(1) or np.array([sum(state)]), state.clear)
    monkeypatch.setattr(frameworks, "planted", lambda case, threads: work, raising=False)
    frameworks.start("planted", peer_case("jena_convnet", "inference").as_dict(), torch.get_num_threads())
    assert len(frameworks.seconds(3)) == 3
    assert frameworks.results() == [1.0]
    frameworks.at_work[:] = [Work(work.call, work.restore, lambda: np.array([len(state)]))]
    assert frameworks.results() == [0.0]  # what is known, from the first state, instead of the last call's
    assert frameworks.trial(work) > 0


def test_openvino_gets_the_model_the_threads_and_float32(monkeypatch):
    asked = {}

    class Core:
        def compile_model(self, model, device, options):
            asked.update(options, device=device)
            infer = lambda arrays, **_: [model(torch.from_numpy(arrays[0])).detach().numpy()]  # noqa: E731
            return types.SimpleNamespace(create_infer_request=lambda: types.SimpleNamespace(infer=infer))

    fake = types.ModuleType("openvino")
    fake.Core, fake.convert_model = Core, lambda model, **_: model
    monkeypatch.setitem(sys.modules, "openvino", fake)
    case = peer_case("jena_convnet", "inference")
    work = frameworks.openvino(case, 2)
    expected = torch_model(case)(operation("peers").inputs(case, "random")["batch"])
    np.testing.assert_array_equal(work.call(), expected.detach().numpy())
    assert asked["INFERENCE_NUM_THREADS"] == 2
    assert asked["INFERENCE_PRECISION_HINT"] == "f32"


def test_keras_gets_torch_s_weights_in_its_own_order():
    given = [[] for _ in range(4)]
    stubs = [types.SimpleNamespace(weights=[1], set_weights=one.extend) for one in given]
    stubs.insert(2, types.SimpleNamespace(weights=[]))  # a pool
    module = torch_model(peer_case("imdb_convnet", "inference"))
    frameworks.copy_weights(module, types.SimpleNamespace(layers=stubs))
    shapes = [[weight.shape for weight in one] for one in given]
    assert shapes == [[(10_000, 128)], [(7, 128, 32), (32,)], [(7, 32, 32), (32,)], [(32, 1), (1,)]]
    np.testing.assert_array_equal(given[1][0][6], module.convs[0].weight[:, :, 6].detach().numpy().T)


class Layers:
    """Keras' layers, by what they were called with."""

    def __getattr__(self, name):
        return lambda *given, **options: (name, *given, *options.values())


@pytest.mark.parametrize(
    ("name", "words", "pools", "size", "last"),
    [
        ("imdb_convnet", True, [5], 7, ("GlobalMaxPooling1D",)),
        ("jena_convnet", False, [3, 3], 5, ("GlobalMaxPooling1D",)),
        ("conv_gru", False, [3], 5, ("GRU", 32)),
        ("conv_gru_dropout", False, [3], 5, ("GRU", 32, 0.1, 0.5)),
    ],
)
def test_keras_models_are_the_notebook_s(name, words, pools, size, last, monkeypatch):
    keras = types.ModuleType("keras")
    keras.layers, keras.Input, keras.Sequential = Layers(), lambda shape, dtype="float32": (shape, dtype), list
    monkeypatch.setitem(sys.modules, "keras", keras)
    first, *stack = frameworks.keras_model(name, 14, 240)
    assert first == (((240,), "int32") if words else ((240, 14), "float32"))
    convs = [("Conv1D", 32, size, "relu")] * (len(pools) + 1)
    expected = [("Embedding", 14, 128)] if words else []
    for conv, pool in zip(convs, [*pools, 0], strict=True):
        expected += [conv, ("MaxPooling1D", pool) if pool else last]
    assert stack == [*expected, ("Dense", 1)]
    assert frameworks.keras_model("jena_gru_dropout", 14, 240)[1:] == [("GRU", 32, 0.1, 0.5), ("Dense", 1)]
    with pytest.raises(ValueError, match="no Keras model of danq"):
        frameworks.keras_model("danq", 14, 240)


@pytest.mark.parametrize(
    ("name", "mode"),
    [(name, mode) for name, peer in PEERS.items() for mode in ("inference", "training_step")[: 1 + peer.trains]],
)
def test_installed_peers_are_right(name, mode):
    candidate = Contender(peer_case("jena_convnet", mode), operation("peers").providers[name])
    if candidate.unavailable:
        pytest.skip(candidate.unavailable)
    assert check(candidate)


def test_a_first_call_is_timed():
    assert fresh.first_call(layer_case("jena2", "training_step", batch=2).as_dict(), "torch eager") > 0


def test_saved_bytes_count_each_storage_once_and_tell_leaves_apart():
    case = layer_case("jena1", "forward_backward", batch=2)
    x, w = torch.randn(10, 10), torch.randn(10, 10)

    def compute():
        product = x * w  # saves both leaves
        return product.exp().t() * product  # saves exp's result twice, once as a view, and the product

    step = TensorStep(case, compute, x, {"weight": w}, torch.ones(10, 10))
    x.requires_grad_(True)
    assert fresh.saved_bytes(step) == (4 * 400, 2 * 400)


@pytest.mark.skipif(fresh.no_memory() is not None, reason=str(fresh.no_memory()))
def test_the_peak_of_a_fresh_process_is_what_the_step_allocates():
    case = layer_case("imdb2", "forward_backward", layout="channels_last")
    found = fresh.memory(Contender(case, operation(case.operation).providers["torch eager"]))
    n, c, o, length, positions = 128, 32, 32, 94, 88
    activation = 4 * n * o * positions
    assert found["saved"] - found["saved_beside"] == 4 * (n * c * length + o * c * 7)
    assert found["saved_beside"] == activation + 8 * n * o  # the ReLU's result and the maximum's places
    gradients = 4 * n * c * length
    assert activation + gradients < found["peak"] < 6 * (activation + gradients)
