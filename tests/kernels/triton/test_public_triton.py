"""The public calls on the GPU floor: functions and layers, autocast, ``torch.compile`` and folded tables."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import seqconv
from seqconv import functional
from seqconv.functional import folded
from tests.conv_cases import composition, median_ratios, ours, wide_layer
from tests.grids import large

CALLS = ["conv", "conv_global", "tokens", "tokens_global", "several", "windows", "windows_global"]


@pytest.fixture(autouse=True)
def _nothing_kept():
    seqconv.clear_cache()


def tensors(device, channels=6):
    """Return source tensors of a call: small, of odd sizes."""
    draw = torch.Generator().manual_seed(0)
    table = torch.randn(23, channels, generator=draw)
    weight, bias = torch.randn(5, channels, 3, generator=draw), torch.randn(5, generator=draw)
    other = torch.randn(4, channels, 2, generator=draw)
    floats = [one.to(device).requires_grad_() for one in (table, weight, bias, other)]
    return *floats, torch.randint(23, (3, 11), generator=draw).to(device)


def call(name, table, weight, bias, other, tokens, backend="triton", **options):
    """Return a public function's result, its input read from ``table``."""
    pool = {} if "global" in name else {"pool_size": 2}
    if name.startswith("conv"):
        x = F.embedding(tokens, table).transpose(1, 2)
        function = functional.conv1d_relu_max_pool1d if pool else functional.conv1d_relu_global_max_pool1d
        return function(x, weight, bias, backend=backend, **pool)
    if name.startswith("tokens"):
        function = getattr(functional, f"embedding_conv1d_relu_{'' if pool else 'global_'}max_pool1d")
        return function(tokens, table, weight, bias, backend=backend, **pool, **options)
    if name == "several":
        weights, biases = [weight, other], [bias, None]
        return functional.embedding_conv1ds_relu_global_max_pool1d(
            tokens, table, weights, biases, backend=backend, **options
        )
    function = getattr(functional, f"window_conv1d_relu_{'' if pool else 'global_'}max_pool1d")
    starts = tokens[:, 0] % 9
    return function(table, starts, weight, bias, length=8, step=2, backend=backend, **pool)


def bound(dtype):
    """Return how far sums of 18 products of numbers around 1, and a backward pass of them, may be apart."""
    return 64 * 18 * torch.finfo(dtype).eps


@pytest.mark.parametrize(
    ("samples", "channels", "length", "outputs", "size", "pool_size"),
    [
        (2, 8, 19, 256, 5, 5),
        *(  # up to a minute each in the interpreter
            pytest.param(*sizes, marks=pytest.mark.large)
            for sizes in (
                (1, 16, 1000, 32, 3, 1),
                (1, 8, 20, 1024, 7, 5),
                (1, 8, 40, 512, 31, 5),
                (1, 1024, 8, 32, 3, 2),
            )
        ),
    ],
)
def test_is_as_precise_as_torch_whatever_is_summed(device, samples, channels, length, outputs, size, pool_size):
    """In the largest error and the root mean square, of the result and all gradients, exact float32 products."""
    pool = None if pool_size is None else {"pool_size": pool_size}

    def draw(seed):
        x, w, b, upstream = wide_layer(seed, samples, channels, length, outputs, size, pool_size)

        def mine(*tensors):
            return ours(*(one.to(device) for one in tensors), pool, backend="triton").cpu()

        return mine, lambda x, w, b: composition(x, w, b, pool), (x, w, b), upstream

    for name, ratios in zip(("result", "input", "weight", "bias"), median_ratios(draw), strict=True):
        assert max(ratios) <= 2, (name, ratios)


@pytest.mark.parametrize("name", CALLS)
def test_equals_the_reference_with_its_gradients(device, name):
    given = tensors(device)
    out = call(name, *given)
    exact = [one.detach().cpu().double().requires_grad_() for one in given[:4]]
    expected = call(name, *exact, given[4].cpu(), backend="reference")
    torch.testing.assert_close(out.cpu().double(), expected, atol=bound(torch.float32), rtol=0)
    upstream = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1))
    wanted = 4 if name == "several" else 3
    got = torch.autograd.grad(out, given[:wanted], upstream.to(device))
    for one, other in zip(got, torch.autograd.grad(expected, exact[:wanted], upstream.double()), strict=True):
        torch.testing.assert_close(one.cpu().double(), other, atol=bound(torch.float32), rtol=0)


@pytest.mark.parametrize("name", CALLS)
def test_autocast_computes_in_its_dtype(device, name):
    given = tensors(device)
    with torch.autocast(device.type, torch.bfloat16):
        out = call(name, *given)
    assert out.dtype == torch.bfloat16
    rounded = [one.detach().bfloat16() for one in given[:4]]
    torch.testing.assert_close(out, call(name, *rounded, given[4]), atol=0, rtol=0)
    (gradient,) = torch.autograd.grad(out, given[1], torch.ones_like(out))
    assert gradient.dtype == torch.float32


@pytest.mark.parametrize("name", ["tokens", "several"])
def test_autocast_folds_no_tables_that_are_gone_with_the_call(device, name):
    given = tensors(device)
    with torch.no_grad(), torch.autocast(device.type, torch.bfloat16):
        for _ in range(6):
            call(name, *given)
    assert not folded._kept


@pytest.mark.parametrize("name", [pytest.param(name, marks=large(number % 3)) for number, name in enumerate(CALLS)])
def test_serves_compiled_graphs(device, name):
    given = tensors(device)
    compiled = torch.compile(lambda *given: call(name, *given), backend="aot_eager", fullgraph=True)
    out = compiled(*given)
    expected = call(name, *given)
    torch.testing.assert_close(out, expected, atol=0, rtol=0)
    got, wanted = (torch.autograd.grad(one, given[:3], torch.ones_like(one)) for one in (out, expected))
    torch.testing.assert_close(got, wanted, atol=0, rtol=0)


@pytest.mark.parametrize("name", ["tokens", "tokens_global", "several"])
def test_inference_keeps_a_folded_table_until_the_weights_change(device, name, monkeypatch):
    table, weight, bias, other, tokens = tensors(device, channels=40)  # more than an addition costs
    seqconv.frozen([table, weight, other])
    monkeypatch.setattr(folded, "_fold_operations", lambda *_: 1)  # worth it at once; the first call sees to itself
    with torch.no_grad():
        given = (table, weight, bias, other, tokens.repeat(4, 1))
        for _ in range(3):
            out = call(name, *given)
        assert len(folded._kept) == (2 if name == "several" else 1)
        kept = next(iter(folded._kept.values())).folded
        assert kept.dtype == torch.float32
        expected = call(name, *given, backend="reference")
        torch.testing.assert_close(out, expected, atol=bound(torch.float32), rtol=0)
        weight.mul_(2)
        changed = call(name, *given, backend="reference")
        assert (changed - expected).abs().max() > 100 * bound(torch.float32)
        torch.testing.assert_close(call(name, *given), changed, atol=bound(torch.float32), rtol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_narrow_folded_table_is_read(device, dtype):
    *given, tokens = tensors(device)
    table, weight, bias = (one.detach() for one in given[:3])
    out = call("tokens", *given, tokens).detach()
    with torch.no_grad(), seqconv.frozen(given):
        narrow = call("tokens", *given, tokens, folded_dtype=dtype)
        assert next(iter(folded._kept.values())).folded.dtype == dtype
    products = torch.einsum("vc,ock->vko", table.double(), weight.double()).to(dtype).double()
    rows = products[tokens]
    sums = sum(rows[:, k : k + 9, k] for k in range(3)) + bias.double()
    expected = F.max_pool1d(torch.relu(sums).transpose(1, 2), 2)
    # of what float32 rounds before the table does, a few numbers fall to the other side
    tolerance = 3 * products.abs().max().item() * torch.finfo(dtype).eps + bound(torch.float32)
    assert (narrow - expected).abs().max() <= tolerance
    if device.type == "cuda" or dtype == torch.float16:  # the interpreter cuts a bfloat16 where a device rounds it
        assert (narrow - expected).abs().mean() < (out - expected).abs().mean() / 4


@pytest.mark.parametrize("name", ["tokens", "several"])
def test_explain_tells_the_plan(device, name):
    layer = (
        seqconv.EmbeddingConvReLUMaxPool1d(23, 6, 5, 3, 2, backend="triton")
        if name == "tokens"
        else seqconv.EmbeddingConvsReLUGlobalMaxPool1d(23, 6, 5, (2, 3), backend="triton")
    ).to(device)
    told = str(seqconv.explain(layer, tensors(device)[4]))
    assert "triton" in told
    assert "direct" in told or "folded" in told
    assert "23 rows to fold" in told


def test_layers_read_windows_in_place(device):
    layer = seqconv.ConvReLUMaxPool1d(6, 5, 3, 2, backend="triton").to(device)
    table, *_, tokens = tensors(device)
    windows = seqconv.Windows(table.detach(), tokens[:, 0] % 9, length=8, step=2)
    torch.testing.assert_close(
        layer(windows), layer(windows.gather().transpose(1, 2)), atol=bound(torch.float32), rtol=0
    )
    assert "triton" in str(seqconv.explain(layer, windows))


@pytest.mark.parametrize("number", [-1, 23])
@pytest.mark.parametrize("name", ["tokens", "tokens_global", "several"])
def test_rows_that_are_not_there_are_told_before_anything_is_read(device, name, number):
    if device.type != "cpu":
        pytest.skip("a device stops instead: test_index_check.py")
    *given, tokens = tensors(device)
    tokens[1, 3] = number
    with pytest.raises(IndexError, match=f"tokens must be between 0 and 22 .* got {number}"):
        call(name, *given, tokens)
