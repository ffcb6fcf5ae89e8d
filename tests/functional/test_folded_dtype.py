"""``folded_dtype``: folded tables of half the width, by choice, with the error that the docstring states."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import seqconv
from seqconv import functional as SF
from seqconv.functional import folded
from seqconv.models import ImdbConvnet, TextCNN

WORDS, CHANNELS, OUTPUTS, SIZE = 60, 12, 21, 4
DTYPES = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])


@pytest.fixture(autouse=True)
def _empty(monkeypatch):
    torch.manual_seed(6)
    monkeypatch.delenv(folded.VARIABLE, raising=False)
    seqconv.clear_cache()
    yield
    seqconv.clear_cache()


def pooled(x, pool):
    return F.max_pool1d(x, pool) if pool else x.max(-1).values


def rounded(fold, dtype):
    """Return the nearest numbers of ``dtype``."""
    return fold.float().to(dtype).double()


def sums(fold, tokens):
    """Return ``(N, O, positions)``, ``sum_k fold[tokens[t + k], :, k]``."""
    rows, positions = fold[tokens], tokens.size(1) - fold.size(2) + 1
    return sum(rows[:, k : k + positions, :, k] for k in range(fold.size(2))).transpose(1, 2)


def tensors(exact=False):
    if exact:  # integers that float32 sums without rounding, and that a narrow dtype does not hold
        draw = [torch.randint(-60, 61, shape).float() for shape in ((WORDS, CHANNELS), (OUTPUTS, CHANNELS, SIZE))]
        draw.append(torch.randint(-99, 99, (OUTPUTS,)).float())
    else:
        draw = [torch.randn(WORDS, CHANNELS), torch.randn(OUTPUTS, CHANNELS, SIZE) / 4, torch.randn(OUTPUTS)]
    seqconv.frozen(draw)
    return torch.randint(WORDS, (5, 33)), *draw


def ours(pool, tokens, table, weight, bias, **options):
    if pool:
        return SF.embedding_conv1d_relu_max_pool1d(tokens, table, weight, bias, pool_size=pool, **options)
    return SF.embedding_conv1d_relu_global_max_pool1d(tokens, table, weight, bias, **options)


@DTYPES
@pytest.mark.parametrize("pool", [3, None])
def test_differs_by_no_more_than_is_stated(pool, dtype):
    tokens, table, weight, bias = given = tensors()
    fold = torch.einsum("vc,ock->vok", table.double(), weight.double())
    value = pooled(F.relu(sums(fold, tokens) + bias.double().view(1, -1, 1)), pool)
    stated = torch.finfo(dtype).eps / 2 * sums(fold.abs(), tokens)
    if dtype == torch.float16:
        stated = stated + SIZE * 2**-25
    # float32's own: a product's sum over the channels, then the bias and one row after the other.
    sizes = torch.einsum("vc,ock->vok", table.double().abs(), weight.double().abs())
    own = torch.finfo(torch.float32).eps * (CHANNELS + SIZE + 1) * (sums(sizes, tokens) + bias.abs().view(1, -1, 1))
    out = ours(pool, *given, folded_dtype=dtype, backend="numba")
    assert out.dtype == torch.float32
    error = (out.double() - value).abs()
    assert (error <= pooled(stated + own, pool)).all()
    assert error.max() > pooled(own, pool).max()  # it is rounded
    assert torch.equal(ours(pool, *given, folded_dtype=dtype, backend="numba"), out)


@DTYPES
@pytest.mark.parametrize("pool", [3, None])
def test_sums_the_rounded_table_from_the_first_call_on(pool, dtype):
    tokens, table, weight, bias = given = tensors(exact=True)
    fold = torch.einsum("vc,ock->vok", table.double(), weight.double())
    plain, narrow = (
        pooled(F.relu(sums(one, tokens) + bias.double().view(1, -1, 1)), pool) for one in (fold, rounded(fold, dtype))
    )
    assert not torch.equal(plain, narrow)
    assert all(torch.equal(ours(pool, *given, folded_dtype=dtype, backend="numba").double(), narrow) for _ in range(3))
    assert all(torch.equal(ours(pool, *given, backend="numba").double(), plain) for _ in range(3))
    assert [kept.folded.dtype for kept in folded._kept.values()] == [dtype, torch.float32]
    table.mul_(2)
    doubled = pooled(F.relu(2 * sums(rounded(fold, dtype), tokens) + bias.double().view(1, -1, 1)), pool)
    assert torch.equal(ours(pool, *given, folded_dtype=dtype, backend="numba").double(), doubled)


@DTYPES
def test_several_kernel_sizes(dtype):
    tokens, table, weight, bias = tensors(exact=True)
    weights, biases = [weight, weight[:7, :, :2].contiguous()], [bias, None]
    seqconv.frozen(weights)
    out = SF.embedding_conv1ds_relu_global_max_pool1d(tokens, table, weights, biases, folded_dtype=dtype)
    singly = [ours(None, tokens, table, *pair, folded_dtype=dtype) for pair in zip(weights, biases, strict=True)]
    assert torch.equal(out, torch.cat(singly, 1))
    plain = SF.embedding_conv1ds_relu_global_max_pool1d(tokens, table, weights, biases)
    assert not torch.equal(out, plain)


@pytest.mark.parametrize("backend", ["numba", "reference"])
@pytest.mark.parametrize("pool", [3, None])
def test_has_no_effect_on_gradients_nor_on_the_reference(pool, backend, monkeypatch):
    tokens, *leaves = tensors()
    leaves = [one.requires_grad_() for one in leaves]
    outcomes = []
    for dtype in (None, torch.bfloat16):
        out = ours(pool, tokens, *leaves, folded_dtype=dtype, backend=backend)
        outcomes.append((out, *torch.autograd.grad(out.square().sum(), leaves)))
    assert all(map(torch.equal, *outcomes))
    assert not folded._kept
    with torch.no_grad():
        unpromised = [one.detach().clone() for one in leaves]
        value, out = (
            ours(pool, tokens, *unpromised, folded_dtype=one, backend=backend) for one in (None, torch.float16)
        )
        assert torch.equal(value, out)
        if backend == "numba":
            monkeypatch.setenv(folded.VARIABLE, "0")  # there is no room
        value, out = (ours(pool, tokens, *leaves, folded_dtype=one, backend=backend) for one in (None, torch.float16))
    assert torch.equal(value, out)


@pytest.mark.parametrize(
    ("value", "dtype", "error", "message"),
    [
        ("bfloat16", torch.float32, TypeError, "must be None, torch.float16 or torch.bfloat16, got 'bfloat16'"),
        (torch.float32, torch.float32, ValueError, "must be None, torch.float16 or torch.bfloat16, got torch.float32"),
        (torch.int8, torch.float32, ValueError, "must be None, torch.float16 or torch.bfloat16, got torch.int8"),
        (torch.float16, torch.float64, TypeError, "must be None unless the table is torch.float32, which is torch.flo"),
    ],
)
def test_errors_name_the_argument(value, dtype, error, message):
    tokens, *numbers = tensors()
    with pytest.raises(error, match=f"^folded_dtype {message}"):
        ours(3, tokens, *(one.to(dtype) for one in numbers), folded_dtype=value)
    for make in (
        lambda **options: seqconv.EmbeddingConvReLUMaxPool1d(9, 4, 6, 3, 2, **options),
        lambda **options: seqconv.EmbeddingConvReLUGlobalMaxPool1d(9, 4, 6, 3, **options),
        lambda **options: seqconv.EmbeddingConvsReLUGlobalMaxPool1d(9, 4, 6, (3, 2), **options),
    ):
        with pytest.raises(error, match=f"^folded_dtype {message}"):
            make(folded_dtype=value, dtype=dtype)


LAYERS = [
    lambda: seqconv.EmbeddingConvReLUMaxPool1d(WORDS, 8, 6, 3, 2, folded_dtype=torch.bfloat16),
    lambda: seqconv.EmbeddingConvReLUGlobalMaxPool1d(WORDS, 8, 6, 3, folded_dtype=torch.bfloat16),
    lambda: seqconv.EmbeddingConvsReLUGlobalMaxPool1d(WORDS, 8, 6, (3, 2), folded_dtype=torch.bfloat16),
    lambda: seqconv.EmbeddingConvReLUMaxPool1d.from_pretrained(
        torch.randn(WORDS, 8), 6, 3, 2, folded_dtype=torch.bfloat16
    ),
]


@pytest.mark.parametrize("make", LAYERS)
def test_layers_tell_and_explain_it(make):
    layer, tokens = make(), torch.randint(WORDS, (9, 40))
    seqconv.frozen(layer)
    assert "folded_dtype=torch.bfloat16" in repr(layer)
    assert "torch.bfloat16" not in str(seqconv.explain(layer, tokens))  # with gradients it has no effect
    with torch.no_grad():
        assert "folded at once and kept, in torch.bfloat16 (folded_dtype)" in str(seqconv.explain(layer, tokens))
        out = layer(tokens)
        assert "the folded table is there, in torch.bfloat16 (folded_dtype)" in str(seqconv.explain(layer, tokens))
        layer.folded_dtype = None
        assert not torch.equal(layer(tokens), out)
        torch.testing.assert_close(layer(tokens), out, rtol=0.02, atol=0.05)


@pytest.mark.parametrize("make", [ImdbConvnet, TextCNN])
def test_models_pass_it_on(make):
    tokens = torch.randint(WORDS, (3, 50))
    model = make(WORDS, folded_dtype=torch.bfloat16).eval()
    with torch.no_grad(), seqconv.frozen(model):
        model(tokens)
        assert {kept.folded.dtype for kept in folded._kept.values()} == {torch.bfloat16}


def test_under_torch_compile():
    tokens, *given = tensors()
    layer = nn.ModuleList([LAYERS[0](), LAYERS[2]()])
    seqconv.frozen(layer)

    def run(tokens):
        return layer[0](tokens), layer[1](tokens), ours(3, tokens, *given, folded_dtype=torch.float16)

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        assert all(map(torch.equal, compiled(tokens), run(tokens)))
    assert {kept.folded.dtype for kept in folded._kept.values()} == {torch.float16, torch.bfloat16}
    loss = [sum(one.sum() for one in f(tokens)[:2]) for f in (compiled, run)]
    outcomes = [torch.autograd.grad(one, tuple(layer.parameters())) for one in loss]
    for one, other in zip(*outcomes, strict=True):
        torch.testing.assert_close(one, other)
