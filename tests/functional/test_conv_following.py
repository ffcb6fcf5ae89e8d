"""What must see torch's own operations gets them: the choice falls back and tells why; a backend asked for refuses."""

import itertools
import os
import subprocess
import sys

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from seqconv import BackendError
from seqconv.functional import conv, conv1d_relu_global_max_pool1d, conv1d_relu_max_pool1d
from tests.conv_cases import composition, ours, same, whole

POOL = {"pool_size": 3, "pool_stride": 2, "pool_padding": 1}
X, W = whole(2, 4, 13), whole(6, 4, 3)


class Marked(torch.Tensor):
    """A tensor that says what it is, and computes as any other."""


class Watched(TorchDispatchMode):
    """See every operation."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.seen.append(str(function))
        return function(*args, **(kwargs or {}))


def exported(f):
    class Module(torch.nn.Module):
        def forward(self, x, w):
            return f(x, w)

    return torch.export.export(Module(), (X, W), strict=False).module()(X, W)


def traced(f):
    return torch.jit.trace(f, (X, W), check_trace=False)(X, W)


def forward_mode(f):
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(f(forward_ad.make_dual(X, X), W)).tangent


def fake(f):
    with FakeTensorMode() as mode:
        result = f(mode.from_tensor(X), mode.from_tensor(W))
    return torch.zeros(result.shape)


def under(mode):
    def run(f):
        with mode():
            return f(X, W)

    return run


def autocast(f):
    with torch.autocast("cpu", torch.bfloat16):
        return f(X, W)


def negated(x):
    """Return the same numbers as a view that is to be read with their signs turned."""
    turned = torch.complex(torch.zeros_like(x), -x).conj().imag
    assert turned.is_neg()
    return turned


FUNCTIONS = "transforms of functions (vmap, grad, jvp) need torch's own operations"
MODE = "a dispatch mode (fake tensors, tracing, counting) needs torch's own operations"
SITUATIONS = {
    "torch.export": (exported, "torch.export needs torch's own operations"),
    "torch.jit.trace": (
        lambda f: torch.jit.trace(f, (X, W), check_trace=False)(X, W),
        "torch.jit.trace needs torch's own operations",
    ),
    "make_fx": (lambda f: make_fx(f)(X, W)(X, W), MODE),
    "symbolic make_fx": (lambda f: make_fx(f, tracing_mode="symbolic")(X, W)(X, W), MODE),
    "fake tensors": (fake, MODE),
    "a mode that counts": (under(lambda: FlopCounterMode(display=False)), MODE),
    "vmap of the input": (lambda f: torch.vmap(lambda x: f(x, W))(X), FUNCTIONS),
    "vmap of the weight": (lambda f: torch.vmap(lambda w: f(X, w))(torch.stack([W, -W])), FUNCTIONS),
    "grad": (lambda f: torch.func.grad(lambda w: f(X, w).sum())(W), FUNCTIONS),
    "jvp": (lambda f: torch.func.jvp(lambda x: f(x, W), (X,), (X,))[1], FUNCTIONS),
    "functional_call in vmap": (lambda f: torch.func.vmap(torch.func.grad(lambda x: f(x, W).sum()))(X), FUNCTIONS),
    "forward-mode AD": (forward_mode, "forward-mode differentiation needs torch's own operations"),
    "autocast": (autocast, "autocast chooses among torch's own operations"),
    "an input of a subclass": (lambda f: f(X.as_subclass(Marked), W), "it serves plain tensors, got Marked"),
    "a weight of a subclass": (lambda f: f(X, W.as_subclass(Marked)), "it serves plain tensors, got Marked"),
    "a negated input": (lambda f: f(negated(X), W), "it serves plain memory, got a negated view"),
    "a negated weight": (lambda f: f(X, negated(W)), "it serves plain memory, got a negated view"),
}


@pytest.mark.filterwarnings("ignore:.*jit.*is deprecated", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("pool", [POOL, None], ids=str)
@pytest.mark.parametrize(("situation", "reason"), SITUATIONS.values(), ids=SITUATIONS)
def test_falls_back_with_a_reason(situation, reason, pool):
    explanations = []

    def function(x, w):
        numbers = None if pool is None else (3, 2, 1, 1, False)
        explanations.append(conv.conv_call(x, None, w, None, (1, 1, 1, 1), numbers).explain("auto"))
        return ours(x, w, None, pool, padding=1)

    result = situation(function)
    assert {(one.backend, one.reasons["numba"]) for one in explanations} == {("reference", reason)}
    expected = situation(lambda x, w: composition(x, w, None, pool, padding=1))
    assert type(result) is type(expected)
    torch.testing.assert_close(result, expected, rtol=0, atol=0)
    with pytest.raises((BackendError, RuntimeError)) as caught:
        situation(lambda x, w: ours(x, w, None, pool, backend="numba"))
    assert f"backend 'numba' cannot serve conv1d_relu_{'global_' if pool is None else ''}max_pool1d: {reason}" in str(
        caught.value
    )


def test_a_mode_sees_torchs_own_operations():
    with Watched() as mode:
        ours(X, W, None, POOL)
    assert any("convolution" in name for name in mode.seen)


@pytest.mark.parametrize("which", range(4))
def test_the_gathering_calls_look_at_every_tensor(which):
    tokens, table, starts = torch.randint(13, (2, 9)), whole(13, 4), torch.tensor([0, 3])
    lengths = torch.tensor([9, 4])
    convolution = (1, 0, 1, 1)
    for call, tensors in (
        (lambda *t: conv.embedding_call(*t, None, None, convolution, None), (tokens, table, lengths, W)),
        (lambda *t: conv.window_call(*t, None, 9, 1, convolution, None), (table, starts, lengths, W)),
    ):
        assert call(*tensors).explain("auto").backend == "numba"
        changed = list(tensors)
        changed[which] = changed[which].as_subclass(Marked)
        assert call(*changed).explain("auto").reasons["numba"] == "it serves plain tensors, got Marked"


def test_parameters_and_buffers_are_plain_tensors():
    for x, w in itertools.product((X, torch.nn.Parameter(X), torch.nn.Buffer(X)), (torch.nn.Parameter(W), W)):
        assert conv.conv_call(x, None, w, None, (1, 0, 1, 1), None).explain("auto").backend == "numba"
        assert same(ours(x, w, None, None).detach(), composition(X, W, None, None))


@pytest.mark.parametrize("operation", [conv1d_relu_max_pool1d, conv1d_relu_global_max_pool1d])
def test_upstream_gradients_that_are_negated_or_have_no_memory(operation):
    """What a complex head sends back: memory holds the numbers with the other sign, or there is none."""
    x, w = (torch.randn(shape, requires_grad=True) for shape in ((2, 4, 13), (6, 4, 3)))
    options = {"pool_size": 2} if operation is conv1d_relu_max_pool1d else {}
    y = operation(x, w, backend="numba", **options)
    plain = torch.randn(y.shape)
    negated = torch.complex(plain, -plain).conj().imag
    assert negated.is_neg()
    assert torch.equal(negated, plain)
    expected = torch.autograd.grad(y, (x, w), plain, retain_graph=True)
    for one, other in zip(torch.autograd.grad(y, (x, w), negated, retain_graph=True), expected, strict=True):
        assert torch.equal(one, other)
    zeros = torch._efficientzerotensor(y.shape)
    assert not any(one.any() for one in torch.autograd.grad(y, (x, w), zeros))
    assert operation(torch._efficientzerotensor(x.shape), w, **options).shape == y.shape


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_a_child_of_a_process_that_used_torch_alone_and_a_default_device():
    """In a process of its own: a kernel that took torch's threads, its parent's, for its own would wait for ever.

    Then, with a default device, kernels that wrote to memory that is not there would end it.
    """
    program = """
import os, torch
from seqconv import functional
torch.set_num_threads(2)
(torch.randn(4_000_000) * 2).sin().sum()
pid = os.fork()
if not pid:
    torch.set_num_threads(1)
    x, w = torch.ones(64, 32, 200), torch.ones(32, 32, 7)
    torch.set_num_threads(2)
    y = functional.conv1d_relu_max_pool1d(x, w, pool_size=2, backend="numba")
    torch.set_num_threads(1)  # torch's own operations would wait
    os._exit(0 if float(y.max()) == 32 * 7 else 1)
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
x, w = (torch.randn(shape, requires_grad=True) for shape in ((2, 4, 13), (6, 4, 3)))
table, infinite = torch.randn(30, 4, requires_grad=True), torch.randn(30, 4)
infinite[3] = torch.inf
tokens, starts = torch.randint(30, (2, 13)), torch.tensor([0, 9])
outcomes = []
for device in ("cpu", "meta"):
    with torch.device(device):
        results = [functional.conv1d_relu_max_pool1d(x, w, pool_size=2, backend="numba")]
        for rows in (table, infinite.requires_grad_()):
            results += [
                functional.embedding_conv1d_relu_max_pool1d(tokens, rows, w, pool_size=2, backend="numba"),
                functional.embedding_conv1ds_relu_global_max_pool1d(tokens, rows, [w, w], backend="numba"),
                functional.window_conv1d_relu_max_pool1d(rows, starts, w, length=13, pool_size=2, backend="numba"),
            ]
        gradients = torch.autograd.grad(results, [x, w, table, infinite], [one.detach() for one in results])
        outcomes.append([one.nan_to_num() for one in (*results, *gradients)])
assert all(torch.equal(one, other) for one, other in zip(*outcomes))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
