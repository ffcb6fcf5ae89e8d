"""Calls that are remembered: like the first of their kind, and only those.

On the CPU's own floor, and on the GPU's in Triton's interpreter; a GPU has tapes, too.
"""

import gc
import sys
import weakref

import pytest
import torch
from torch import nn

import seqconv
from seqconv import backends
from seqconv.functional import conv, remembered
from tests.kernels.triton.conftest import INTERPRETED


@pytest.fixture
def checked(monkeypatch):
    """Return the names of what was checked."""
    found = []
    for name in ("conv_call", "embedding_call", "window_call"):
        prepare = getattr(conv, name)

        def noted(*given, prepare=prepare, name=name, **options):
            found.append(name)
            return prepare(*given, **options)

        monkeypatch.setattr(conv, name, noted)
    return found


FLOOR = "triton" if INTERPRETED else "numba"


X = torch.randn(2, 3, 20)
TOKENS = torch.randint(0, 9, (2, 20))
CALLS = {
    "conv_call": lambda grad: conv.conv1d_relu_max_pool1d(
        X, torch.ones(4, 3, 3, requires_grad=grad), pool_size=2, backend=FLOOR
    ),
    "embedding_call": lambda grad: conv.embedding_conv1d_relu_global_max_pool1d(
        TOKENS, torch.ones(9, 3), torch.ones(4, 3, 3, requires_grad=grad), torch.ones(4), backend=FLOOR
    ),
    "window_call": lambda grad: conv.window_conv1d_relu_max_pool1d(
        torch.ones(30, 3), torch.arange(4), torch.ones(4, 3, 3, requires_grad=grad), length=8, pool_size=2,
        backend=FLOOR,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_a_second_call_with_gradients_is_not_checked_again(checked, name):
    first, second = CALLS[name](True), CALLS[name](True)
    assert checked == [name]
    assert torch.equal(first, second)
    assert second.grad_fn is not None
    assert CALLS[name](False).grad_fn is None
    assert checked == [name] * 2


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("source", ["dense", "tokens", "many tokens", "windows"])
def test_a_result_that_is_to_be_contiguous_is_so_every_time(checked, source, grad):
    table, w = torch.randn(30, 3), torch.randn(4, 3, 3, requires_grad=grad)
    function, given, options = {
        "dense": (conv.conv1d_relu_max_pool1d, (torch.randn(2, 20, 3).transpose(1, 2),), {}),
        "tokens": (conv.embedding_conv1d_relu_max_pool1d, (torch.randint(30, (2, 9)), table), {}),
        "many tokens": (conv.embedding_conv1d_relu_max_pool1d, (torch.randint(30, (9, 99)), table), {}),
        "windows": (conv.window_conv1d_relu_max_pool1d, (table, torch.arange(4)), {"length": 8}),
    }[source]
    options |= {"pool_size": 2, "backend": FLOOR}
    first, second = (function(*given, w, memory_format=torch.contiguous_format, **options) for _ in range(2))
    kept = function(*given, w, **options)
    assert not kept.is_contiguous()
    for one in (first, second):
        assert one.is_contiguous()
        assert torch.equal(one, kept)


@pytest.mark.skipif(INTERPRETED, reason="the interpreter calls Python for every operation of a kernel")
@pytest.mark.parametrize(("kind", "grad", "most"), [("dense", False, 21), ("embedding", True, 56)])
def test_a_later_call_passes_few_functions(kind, grad, most):
    """The first call is planned, the second found by its key, all later ones by guards."""
    dense = kind == "dense"
    layer = seqconv.ConvReLUMaxPool1d(3, 4, 3, 2) if dense else seqconv.EmbeddingConvReLUMaxPool1d(9, 3, 4, 3, 2)

    def call():
        with torch.set_grad_enabled(grad):
            out = layer(X if dense else TOKENS)
        if grad:
            out.sum().backward()

    call()
    call()
    passed = []
    sys.setprofile(lambda frame, event, _: event == "call" and passed.append(frame.f_globals.get("__name__", "")))
    try:
        call()
    finally:
        sys.setprofile(None)
    ours = [name for name in passed if name.startswith("seqconv.")]
    assert 10 < len(ours) <= most


def variants():
    """Yield names and calls of which none is like another."""
    w, wide, b = torch.randn(4, 3, 3), torch.randn(4, 3, 5), torch.randn(4)

    def call(x=X, w=w, b=b, *, grad=True, **options):
        if grad:
            w = w.detach().requires_grad_()
        return conv.conv1d_relu_max_pool1d(x, w, b, **({"pool_size": 2, "backend": FLOOR} | options))

    yield "as it is", call
    yield "shape", lambda: call(X[:1])
    yield "layout", lambda: call(X.transpose(1, 2).contiguous().transpose(1, 2))
    yield "weight", lambda: call(w=wide)
    yield "bias", lambda: call(b=None)
    yield "no gradient", lambda: call(grad=False)
    for name in ("stride", "dilation", "pool_size", "pool_stride"):
        yield name, lambda name=name: call(**{name: 3})
    yield "padding", lambda: call(padding="same")
    yield "ceil_mode", lambda: call(ceil_mode=True)


def test_calls_that_differ_are_checked_each(checked):
    calls = dict(variants())
    for _ in range(2):
        for name, call in calls.items():
            out = call()
            assert torch.equal(out, call()), name
    assert len(checked) == len(calls)


@pytest.mark.parametrize(
    "wrong", [{"stride": True}, {"stride": 1.0}, {"pool_size": 2.0}, {"pool_size": (2.0,)}, {"groups": (1,)},
              {"ceil_mode": 0}, {"dilation": [1.0]}],
)  # fmt: skip
def test_equal_options_of_wrong_types_are_refused(checked, wrong):
    options = {"stride": 1, "pool_size": 2, "groups": 1, "ceil_mode": False, "dilation": 1, "backend": FLOOR}
    w = torch.ones(4, 3, 3, requires_grad=True)
    conv.conv1d_relu_max_pool1d(X, w, **options)
    with pytest.raises((TypeError, ValueError)):
        conv.conv1d_relu_max_pool1d(X, w, **(options | wrong))


@pytest.mark.parametrize("wrong", [None, b"numba", "Numba", ["auto"]])
def test_unknown_backends_are_refused_behind_known_ones(checked, monkeypatch, wrong):
    w = torch.ones(4, 3, 3)
    for variable in ("", FLOOR):
        monkeypatch.setenv("SEQCONV_BACKEND", variable)
        conv.conv1d_relu_max_pool1d(X, w, pool_size=2)
        with pytest.raises(ValueError, match=r"^backend must be one of auto, triton, numba, reference, got"):
            conv.conv1d_relu_max_pool1d(X, w, pool_size=2, backend=wrong)


def test_wrong_operands_are_refused_behind_right_ones(checked):
    w = torch.ones(4, 3, 3, requires_grad=True)
    conv.conv1d_relu_max_pool1d(X, w, pool_size=2, backend=FLOOR)
    elsewhere = w.detach().to("meta").requires_grad_()
    others = (w.double(), w[0], w.detach().numpy(), elsewhere)
    for operands in ((X.double(), w), (X.numpy(), w), (None, w), *((X, one) for one in others)):
        with pytest.raises((TypeError, ValueError)):
            conv.conv1d_relu_max_pool1d(*operands, pool_size=2, backend=FLOOR)


@pytest.mark.parametrize("grad", [False, True])
def test_numbers_of_rows_are_looked_at_every_time(checked, grad):
    table, starts, w = torch.ones(9, 3), torch.tensor([0, 1]), torch.ones(4, 3, 3, requires_grad=grad)

    def embedded(tokens):
        return conv.embedding_conv1d_relu_global_max_pool1d(tokens, table, w, backend=FLOOR)

    def windows(starts):
        return conv.window_conv1d_relu_global_max_pool1d(table, starts, w, length=4, step=2, backend=FLOOR)

    embedded(TOKENS)
    windows(starts)
    for outside in (9, -1):
        with pytest.raises(IndexError, match=rf"^tokens must be between 0 and 8 .* got {outside}"):
            embedded(torch.full_like(TOKENS, outside))
    with pytest.raises(IndexError, match=r"^starts must be between 0 and 2 .* got 3"):
        windows(starts + 2)
    assert len(checked) == 2


@pytest.mark.skipif(INTERPRETED, reason="the GPU's floor serves no lengths")
@pytest.mark.parametrize("grad", [False, True])
def test_lengths_are_looked_at_every_time(checked, grad):
    w, lengths = torch.ones(4, 3, 3, requires_grad=grad), torch.tensor([20, 7])
    whole, cut = (conv.conv1d_relu_global_max_pool1d(X, w, lengths=one) for one in (lengths, lengths // 2))
    assert torch.equal(whole[0], conv.conv1d_relu_global_max_pool1d(X[:1], w)[0])
    assert torch.equal(cut[1], conv.conv1d_relu_global_max_pool1d(X[1:, :, :3], w)[0])
    for outside in (21, -1):
        with pytest.raises(ValueError, match=rf"^lengths must be between 0 and 20, .* got {outside}"):
            conv.conv1d_relu_global_max_pool1d(X, w, lengths=torch.tensor([20, outside]))
    assert len(checked) == 3


@pytest.mark.parametrize("grad", [False, True])
def test_nothing_of_a_call_is_held(grad):
    x, w = torch.randn(2, 3, 20), torch.randn(4, 3, 3, requires_grad=grad)
    out = conv.conv1d_relu_max_pool1d(x, w, pool_size=2, backend=FLOOR)
    held = [weakref.ref(one) for one in (x, w, out)]
    del x, w, out
    gc.collect()
    assert [one() for one in held] == [None] * 3


@pytest.mark.skipif(INTERPRETED, reason="the choice is the CPU's")
def test_a_kernel_that_is_registered_later_serves(checked):
    operation, w = "conv1d_relu_max_pool1d", torch.ones(4, 3, 3)
    candidate = next(one for one in backends._candidates[operation] if one.backend == "numba")
    conv.conv1d_relu_max_pool1d(X, w, pool_size=2)
    try:
        backends.register(operation, "numba", lambda: lambda *_given: torch.zeros(1))
        assert conv.conv1d_relu_max_pool1d(X, w, pool_size=2).shape == (1,)
    finally:
        backends.register(operation, *candidate[:-1])
    assert conv.conv1d_relu_max_pool1d(X, w, pool_size=2).shape == (2, 4, 9)


def test_what_torch_does_to_a_call_is_looked_at_every_time(checked, monkeypatch):
    layer = seqconv.ConvReLUMaxPool1d(3, 4, 3, 2)
    reference = nn.Sequential(nn.Conv1d(3, 4, 3), nn.ReLU(), nn.MaxPool1d(2))
    reference[0].load_state_dict(layer.state_dict())
    layer(X)
    layer(X)
    assert checked == ["conv_call"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        layer(X)
    mapped = torch.func.vmap(layer)(X.expand(3, *X.shape))
    assert torch.allclose(mapped[0], reference(X), atol=1e-6)
    monkeypatch.setenv("SEQCONV_BACKEND", "reference")
    assert torch.equal(layer(X), reference(X))
    assert len(checked) == 4


def test_an_option_that_is_changed_on_a_layer_counts(checked):
    layer = seqconv.ConvReLUMaxPool1d(3, 4, 3, 2, backend=FLOOR)
    assert layer(X).shape == layer(X).shape == (2, 4, 9)
    layer.pool_stride = 1
    assert layer(X).shape == (2, 4, 17)
    layer.stride = (3,)
    assert layer(X).shape == (2, 4, 5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")
@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("pool", [2, None])
def test_remembered_calls_see_the_numbers_of_today(monkeypatch, grad, pool):
    """Other inputs, weights that were changed in place, other streams, graphs; nothing of the first call is left."""
    keys, known, find = [], [], remembered.find

    def noting(key):
        if key[1] == "auto":  # the layer's, not its reference's
            keys.append(key)
            known.append(find(key))
        return find(key)

    monkeypatch.setattr(remembered, "find", noting)
    given = (3, 8, 3) if pool is None else (3, 8, 3, pool)
    layer = (seqconv.ConvReLUGlobalMaxPool1d if pool is None else seqconv.ConvReLUMaxPool1d)(*given).cuda()
    slow = type(layer)(*given, backend="reference").cuda()
    torch.backends.cudnn.allow_tf32 = False
    for number in range(4):
        x = torch.randn(4, 30, 3, device="cuda").transpose(1, 2)
        with torch.no_grad():
            layer.weight.normal_()
            slow.load_state_dict(layer.state_dict())
        with torch.set_grad_enabled(grad), torch.cuda.stream(torch.cuda.Stream()):
            out, expected = layer(x), slow(x)
        torch.cuda.synchronize()
        torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-5)
        if grad:
            gradients = [
                torch.autograd.grad(one.sum(), two.parameters()) for one, two in ((out, layer), (expected, slow))
            ]
            torch.testing.assert_close(*gradients, atol=1e-4, rtol=1e-5)
        assert (known[-1] is not None) == (number > 0)
    assert len(set(keys)) == 1
