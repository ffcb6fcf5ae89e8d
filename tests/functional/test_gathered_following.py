"""Gathered rows under what of torch's machinery follows torch's own operations; and compiled graphs under autocast."""

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call, grad, vmap
from torch.fx.experimental.proxy_tensor import make_fx

import seqconv
from seqconv import functional
from seqconv.functional import conv, library

TOKENS = torch.randint(50, (4, 12), generator=torch.Generator().manual_seed(0))


def composed(layer, tokens):
    convs = layer.convs if hasattr(layer, "convs") else [layer.conv]
    x = layer.embedding(tokens).transpose(-1, -2)
    return torch.cat([F.relu(F.conv1d(x, one.weight, one.bias)).amax(-1) for one in convs], -1)


@pytest.fixture(params=["one", "several"])
def layer(request):
    torch.manual_seed(1)
    if request.param == "one":
        return seqconv.EmbeddingConvReLUGlobalMaxPool1d(50, 8, 6, 3)
    return seqconv.EmbeddingConvsReLUGlobalMaxPool1d(50, 8, 6, (3, 4))


def parameters(layer):
    return {name: one.detach() for name, one in layer.named_parameters()}


def test_gradients_of_every_sample(layer):
    def loss(parameters, tokens):
        return functional_call(layer, parameters, (tokens,)).square().sum()

    got = vmap(grad(loss), (None, 0))(parameters(layer), TOKENS)
    for number, tokens in enumerate(TOKENS):
        expected = torch.autograd.grad(composed(layer, tokens).square().sum(), list(layer.parameters()))
        for one, other in zip(got.values(), expected, strict=True):
            torch.testing.assert_close(one[number], other, rtol=1e-4, atol=1e-6)


def test_a_compiled_transform(layer):
    def loss(parameters, tokens):
        return functional_call(layer, parameters, (tokens,)).sum()

    compiled = torch.compile(grad(loss), backend="aot_eager")(parameters(layer), TOKENS)
    expected = grad(loss)(parameters(layer), TOKENS)
    torch.testing.assert_close(compiled, expected, rtol=1e-4, atol=1e-6)


def test_fake_tensors_and_traces(layer):
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        assert layer(mode.from_tensor(TOKENS)).shape == layer(TOKENS).shape
    with torch.no_grad():
        traced = make_fx(layer, tracing_mode="fake", _allow_non_fake_inputs=True)(TOKENS)
        other = TOKENS.flip(0)
        torch.testing.assert_close(traced(other), composed(layer, other), rtol=1e-5, atol=1e-6)


def test_batched_gradients_are_refused_with_a_way_out(layer):
    out = layer(TOKENS)
    upstream = torch.randn(2, *out.shape)
    weight = next(one for name, one in layer.named_parameters() if name.endswith("weight") and "conv" in name)
    with pytest.raises(RuntimeError, match=r"no batched gradients: pass backend='reference'"):
        torch.autograd.grad(out, weight, upstream, is_grads_batched=True)
    layer.backend = "reference"
    (got,) = torch.autograd.grad(layer(TOKENS), weight, upstream, is_grads_batched=True)
    assert got.shape == (2, *weight.shape)


@pytest.mark.parametrize("mixed", [False, True], ids=["one dtype", "two dtypes"])
@pytest.mark.parametrize("name", ["dense", "embedding", "window"])
def test_a_compiled_graph_under_autocast_is_torchs(name, mixed):
    """No kernel may read a bfloat16 weight as if it were float32."""
    torch.manual_seed(2)
    table, w = torch.randn(50, 8), torch.randn(6, 8, 3)
    w = w.bfloat16() if mixed else w

    def call():
        if name == "dense":
            return functional.conv1d_relu_global_max_pool1d(table.t()[None], w)
        if name == "embedding":
            return functional.embedding_conv1d_relu_global_max_pool1d(TOKENS, table, w)
        return functional.window_conv1d_relu_global_max_pool1d(table, torch.arange(4), w, length=20)

    with torch.autocast("cpu", torch.bfloat16):
        eager = call()
        compiled = torch.compile(call, backend="aot_eager")()
    assert eager.dtype == compiled.dtype == torch.bfloat16
    torch.testing.assert_close(compiled, eager, rtol=0, atol=0)


def test_rows_out_of_range_are_told_under_a_mode_too():
    """Torch's own look-up tells; a negative number takes no row from the end."""
    series, w = torch.randn(50, 8), torch.randn(6, 8, 3)
    with torch.utils.flop_counter.FlopCounterMode(display=False):
        for starts in (-1, 40):
            with pytest.raises(IndexError):
                functional.window_conv1d_relu_global_max_pool1d(series, torch.tensor([starts]), w, length=20)


@pytest.mark.parametrize("which", ["tokens", "table", "weight", "bias"])
def test_sparse_tensors_are_refused_by_name(which):
    given = {"tokens": TOKENS, "table": torch.randn(50, 8), "weight": torch.randn(6, 8, 3), "bias": torch.randn(6)}
    given[which] = given[which].to_sparse()
    with pytest.raises(TypeError, match=rf"^{which} must be a dense tensor, got one of layout torch.sparse_coo$"):
        functional.embedding_conv1d_relu_global_max_pool1d(**given)


def test_numbers_beyond_any_memory_are_refused():
    table, w = torch.randn(50, 8), torch.randn(6, 8, 3)
    for options in ({"pool_stride": 2**70}, {"padding": 2**70}, {"dilation": 2**62}):
        (name,) = options
        with pytest.raises(ValueError, match=rf"^{name} must be at most {2**48}, got {options[name]}$"):
            functional.embedding_conv1d_relu_max_pool1d(TOKENS, table, w, **{"pool_size": 2} | options)


def test_tables_that_a_graph_computes_are_not_taken_for_each_other():
    """They may lie in one memory, one after the other, and nobody has promised that they stay."""
    w, m = torch.randn(6, 8, 3), torch.randn(8, 8)
    table = torch.randn(50, 8)

    def call(tokens, table, w, m):
        first = functional.embedding_conv1d_relu_global_max_pool1d(tokens, table @ m, w, folded_dtype=torch.float16)
        rows = table * first.amax()
        return first, functional.embedding_conv1d_relu_global_max_pool1d(tokens, rows, w, folded_dtype=torch.float16)

    expected = [call(TOKENS, table.clone().requires_grad_(), w, m)[i].detach() for i in range(2)]
    with torch.no_grad(), seqconv.frozen([table, w, m]):
        compiled = torch.compile(call, fullgraph=True)
        for _ in range(3):
            got = compiled(TOKENS, table, w, m)
            torch.testing.assert_close(list(got), expected, rtol=1e-5, atol=1e-4)


def test_graphs_elsewhere_than_on_the_cpu_keep_no_tables():
    assert library.keeps_folded(TOKENS)
    assert not library.keeps_folded(torch.empty(0, device="meta"))


def test_explain_under_compilation_and_autocast():
    with torch.autocast("cpu", torch.bfloat16):
        told = conv.embedding_call(
            TOKENS, torch.randn(50, 8), None, torch.randn(6, 8, 3), None, None, (1, 0, 1, 1), None
        )
        assert told.explain("auto").backend == "reference"
