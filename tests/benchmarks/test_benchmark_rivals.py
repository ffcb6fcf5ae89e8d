"""The convnets beside recurrent models: who answers to what, and a step as a CUDA graph, on a graph that is none."""

from __future__ import annotations

from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch

from benchmarks.checking import check
from benchmarks.operations import graphs
from benchmarks.operations.rivals import RNNS, step_case
from benchmarks.registry import Candidate, operation

EAGER = ("torch eager", "seqconv auto")


@pytest.fixture(autouse=True)
def _nothing_to_compile(monkeypatch):
    monkeypatch.setenv("SEQCONV_BACKEND", "reference")


@pytest.mark.parametrize(("name", "mode"), [("imdb_convnet", "training_step"), ("jena_convnet", "inference")])
def test_all_sides_answer_to_their_definition(name, mode):
    case = step_case(name, mode, batch=3)
    for provider in (*EAGER, RNNS[name]):
        assert check(Candidate(case, operation("rivals").providers[provider])).keys() == {"output, random"}


def test_who_serves_which_model():
    providers = operation("rivals").providers
    case = step_case("imdb_convnet", "inference")
    assert providers["GRU(32)"].unavailable(case) == "is the rival of jena_convnet"
    assert providers["LSTM(32)"].unavailable(case) is None
    assert providers["LSTM(32), CUDA graph"].unavailable(case) == "CUDA graphs are for GPUs"


class Graph:
    """What a CUDA graph does, by calling the step again."""

    def __init__(self) -> None:
        self.captured = False
        self.again = None

    def replay(self) -> None:
        self.again()


@pytest.fixture
def no_cuda(monkeypatch):
    stream = SimpleNamespace(wait_stream=lambda other: None)

    @contextmanager
    def nothing(_graph):
        yield

    monkeypatch.setattr(torch.cuda, "Stream", lambda: stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: stream)
    monkeypatch.setattr(torch.cuda, "stream", nothing)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", nothing)


def test_a_graph_is_captured_once_without_gradients_and_replayed_from_the_first_parameters(no_cuda):
    case = step_case("jena_convnet", "training_step", batch=3)
    kind = operation("rivals")
    inputs = kind.inputs(case, "random")
    eager = kind.step(case, kind.providers["seqconv auto"].make(case), inputs, torch.float32)
    eager.prepare()
    eager.call()
    graphed = kind.step(case, kind.providers["seqconv auto, CUDA graph"].make(case), inputs, torch.float32)
    assert isinstance(graphed, graphs.GraphStep)
    assert all(group["capturable"] for group in graphed.step.optimizer.param_groups)
    for group in graphed.step.optimizer.param_groups:
        group["capturable"] = False  # which no CPU is
    seen = []
    call = graphed.step.call
    graphed.step.call = lambda: (seen.append([one.grad is None for one in graphed.step.parameters.values()]), call())
    graphed.prepare()
    assert len(seen) == graphs.WARM_UPS + 1
    assert all(seen[-1])  # the captured call: it writes gradients and adds nothing
    graphed.graph.again = call
    first = {key: one.clone() for key, one in graphed.step.first.items()}
    for _ in range(2):
        graphed.prepare()
        for key, one in graphed.step.parameters.items():
            assert torch.equal(one, first[key])
            assert one.grad is not None
        graphed.call()
    assert len(seen) == graphs.WARM_UPS + 1
    for key, value in eager.results().items():
        torch.testing.assert_close(graphed.results()[key], value)
