"""Other frameworks as peers: who can serve, who meets whom, the process that does their work, weights and settings."""

from __future__ import annotations

import importlib
import importlib.util
import io
import json
import sys
import textwrap
import time
import types
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import peers, timing
from benchmarks.checking import Wrong, check
from benchmarks.operations.models import MODELS, model_case, torch_model
from benchmarks.operations.peers import unable
from benchmarks.peers import PEERS, Work, worker
from benchmarks.peers.remote import RemoteStep
from benchmarks.registry import Candidate, Provider, candidates, comparisons, operation


def peer_case(name: str, mode: str, batch: int = 3):
    return model_case(name, mode, batch=batch, operation="peers")


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
    assert unable(PEERS["Keras, JAX"], case) is None
    assert "not installed (tensorflow)" in unable(PEERS["Keras, TensorFlow"], case)
    installed.update({"tensorflow", "openvino"})
    assert unable(PEERS["OpenVINO"], case) is None
    assert "onnxruntime, onnx, onnxscript" in unable(PEERS["ONNX Runtime"], case)


def test_peers_that_cannot_serve_say_why(installed):
    installed.update(*(peer.packages for peer in PEERS.values()))
    assert unable(PEERS["OpenVINO"], peer_case("jena_convnet", "training_step")) == "does not train"
    assert unable(PEERS["Keras, JAX"], peer_case("jena_convnet", "training_step")) is None
    assert unable(PEERS["Keras, JAX"], peer_case("jena_convnet_from_starts", "inference")).startswith("has no jena")
    on_gpu = model_case("jena_convnet", "inference", device="cuda", operation="peers")
    assert unable(PEERS["OpenVINO"], on_gpu) == "is for CPUs"


def test_seqconv_meets_everyone_and_they_do_not_meet_each_other():
    pairs = comparisons(peer_case("imdb_convnet", "training_step"))
    assert {one.candidate.provider.name for one in pairs} == {"seqconv auto"}
    assert {one.against.provider.name for one in pairs} >= {"torch eager", "torch.compile", "torch LSTM(32)", *PEERS}


FAKE = """
    import json
    import sys

    from benchmarks.peers import Work
    from benchmarks.peers.worker import serve

    asked = json.loads(sys.stdin.readline())
    if asked["case"]["name"] == "conv_gru":
        sys.exit("no such model")
    calls = []
    serve(Work(lambda: calls.append(0) or [len(calls), asked["threads"]]), sys.stdin, sys.stdout)
"""


@pytest.fixture
def fake_worker(tmp_path, monkeypatch):
    """Give the name of a module that serves a count of its calls."""
    tmp_path.joinpath("fake_worker.py").write_text(textwrap.dedent(FAKE))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return "fake_worker"


def test_a_step_in_another_process_measures_itself_and_ends(fake_worker):
    step = RemoteStep("OpenVINO", peer_case("jena_convnet", "inference"), fake_worker)
    step.prepare()
    step.call()
    assert step.results()["output"].tolist() == [1, torch.get_num_threads()]
    assert step.results()["output"].dtype == torch.float32
    side = timing.Side(step, step.stopwatch)
    side.calls = 3
    side.block()  # once to warm up, three times timed
    assert step.results()["output"][0] == 5
    assert 0 < side.samples[0] < 0.01  # the seconds in there, and not those of asking
    process = step.process
    del step, side
    assert process.wait(10) == 0


@pytest.mark.skipif(sys.platform != "linux", reason="processes are stopped on Linux alone")
def test_a_process_is_stopped_while_nothing_is_asked(fake_worker):
    step = RemoteStep("OpenVINO", peer_case("jena_convnet", "inference"), fake_worker)
    step.call()
    status = Path(f"/proc/{step.process.pid}/status")
    for _ in range(100):
        if "T (stopped)" in status.read_text():
            break
        time.sleep(0.02)
    assert "T (stopped)" in status.read_text()
    step.call()
    assert step.results()["output"][0] == 2


def test_a_process_that_fails_shows_its_error(fake_worker):
    with pytest.raises(RuntimeError, match="no such model"):
        RemoteStep("OpenVINO", peer_case("conv_gru", "inference"), fake_worker)


def test_what_is_restored_is_restored_before_every_call():
    state = []
    work = Work(lambda: state.append(1) or np.array([sum(state)]), state.clear)
    answers = io.StringIO()
    worker.serve(work, io.StringIO("call 3\nresults\n"), answers)
    ready, seconds, output = map(json.loads, answers.getvalue().splitlines())
    assert (ready, len(seconds), output) == ("ready", 3, [1.0])


def test_errors_may_be_so_many_times_the_tolerance_and_no_more():
    case = model_case("jena_convnet", "inference", batch=3)
    tolerance = check(Candidate(case, operation("models").providers["torch eager"]))["output, random"][1]

    def off(case):
        model = torch_model(case)
        forward = model.forward
        model.forward = lambda batch: forward(batch) + 3 * tolerance
        return model

    assert check(Candidate(case, Provider("near", off, leeway=8.0)))
    with pytest.raises(Wrong):
        check(Candidate(case, Provider("near", off)))


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
    monkeypatch.delitem(sys.modules, "benchmarks.peers.openvino_peer", raising=False)
    case = peer_case("jena_convnet", "inference")
    work = importlib.import_module("benchmarks.peers.openvino_peer").make(case, 2)
    monkeypatch.delitem(sys.modules, "benchmarks.peers.openvino_peer")
    expected = torch_model(case)(operation("peers").inputs(case, "random")["batch"])
    np.testing.assert_array_equal(work.call(), expected.detach().numpy())
    assert asked["INFERENCE_NUM_THREADS"] == 2
    assert asked["INFERENCE_PRECISION_HINT"] == "f32"


def test_keras_gets_torch_s_weights_in_its_own_order(monkeypatch):
    keras = types.ModuleType("keras")
    keras.layers = types.ModuleType("keras.layers")
    monkeypatch.setitem(sys.modules, "keras", keras)
    monkeypatch.setitem(sys.modules, "keras.layers", keras.layers)
    monkeypatch.delitem(sys.modules, "benchmarks.peers.keras_peer", raising=False)
    peer = importlib.import_module("benchmarks.peers.keras_peer")
    monkeypatch.delitem(sys.modules, "benchmarks.peers.keras_peer")
    given = [[] for _ in range(4)]
    stubs = [types.SimpleNamespace(weights=[1], set_weights=one.extend) for one in given]
    stubs.insert(2, types.SimpleNamespace(weights=[]))  # a pool
    module = torch_model(peer_case("imdb_convnet", "inference"))
    peer.copy_weights(module, types.SimpleNamespace(layers=stubs))
    shapes = [[weight.shape for weight in one] for one in given]
    assert shapes == [[(10_000, 128)], [(7, 128, 32), (32,)], [(7, 32, 32), (32,)], [(32, 1), (1,)]]
    np.testing.assert_array_equal(given[1][0][6], module.first.weight[:, :, 6].detach().numpy().T)


@pytest.mark.parametrize(
    ("name", "mode"),
    [(name, mode) for name, peer in PEERS.items() for mode in ("inference", "training_step")[: 1 + peer.trains]],
)
def test_installed_peers_are_right(name, mode):
    candidate = Candidate(peer_case("jena_convnet", mode), operation("peers").providers[name])
    if candidate.unavailable:
        pytest.skip(candidate.unavailable)
    assert check(candidate)


def test_every_model_is_converted_or_said_to_be_missing():
    assert set(MODELS) >= {"imdb_convnet", "jena_convnet"}
    assert peers.missing(()) is None
