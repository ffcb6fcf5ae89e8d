"""Which devices the kernels refuse, eager and where Dynamo traces the question: no GPU is needed."""

import importlib.util

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from seqconv.kernels.triton import launch
from tests.kernels.triton.test_public_triton import call


@pytest.fixture
def card(monkeypatch):
    """Pretend that there is a GPU, and return what sets its compute capability."""
    if torch.backends.cuda.is_built():
        pytest.skip(
            "needs a torch without CUDA, whose device properties can be made up: GPUs have test_public_triton.py"
        )
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    properties = object.__new__(torch.cuda._CudaDeviceProperties)  # a type that Dynamo takes for constant
    monkeypatch.setattr(torch.cuda, "_lazy_init", lambda: None)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "_get_device_properties", lambda _: properties, raising=False)

    def capability(major, minor):
        properties.major, properties.minor = major, minor
        launch._remembered.cache_clear()
        torch.compiler.reset()

    yield capability
    launch._remembered.cache_clear()
    torch.compiler.reset()


@pytest.mark.parametrize(
    ("capability", "refused"), [((7, 5), True), ((8, 0), False), ((9, 0), False), ((12, 0), False)]
)
def test_old_gpus_are_refused_eager_and_traced(card, capability, refused):
    card(*capability)

    def told(x):
        reason = launch.refuse_device(torch.device("cuda", 0))
        return (x + 1 if reason is None else x - 1), reason

    for function in (told, torch.compile(told, backend="eager", fullgraph=True)):
        out, reason = function(torch.zeros(1))
        assert out == (-1 if refused else 1)
        assert reason == ("it serves GPUs of architecture sm_80 or later, got sm_75" if refused else None)


def test_a_traced_question_looks_for_no_package_and_calls_no_cached_function(card, monkeypatch, recwarn):
    """Dynamo of torch 2.11 refuses ``find_spec``, and no release looks into the cache of ``functools``."""

    def find_spec(*_):
        raise AssertionError("looked for a package")

    card(9, 0)
    monkeypatch.setattr(importlib.util, "find_spec", find_spec)
    compiled = torch.compile(lambda x: (x, launch.refuse_device(x.device)), backend="eager", fullgraph=True)
    assert "on a GPU" in compiled(torch.zeros(1))[1]
    compiled = torch.compile(
        lambda x: (x, launch.refuse_device(torch.device("cuda", 0))), backend="eager", fullgraph=True
    )
    assert compiled(torch.zeros(1))[1] is None
    assert not [one for one in recwarn if "lru_cache" in str(one.message)]


@pytest.mark.parametrize("name", ["conv", "conv_global", "tokens", "tokens_global", "several"])
def test_calls_on_a_gpu_are_traced_as_one_operator(card, name):
    """Fake tensors stand for those of a GPU; nothing is computed."""
    card(9, 0)
    shapes, operators = ((23, 6), (5, 6, 3), (5,), (4, 6, 2)), []
    with FakeTensorMode():
        given = [torch.empty(shape, device="cuda:0") for shape in shapes]
        given.append(torch.zeros(3, 11, dtype=torch.int64, device="cuda:0"))

        def record(graph, _):
            operators.extend(str(node.target) for node in graph.graph.nodes if "seqconv" in str(node.target))
            return graph.forward

        torch.compile(lambda *given: call(name, *given), backend=record, fullgraph=True)(*given)
    assert operators == ["seqconv.conv_relu_max_pool.default"] * (2 if name == "several" else 1)
