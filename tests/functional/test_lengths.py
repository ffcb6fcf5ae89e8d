"""Samples of their own lengths: what lies behind them changes nothing, whatever it is, and gets no gradient."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import seqconv
from seqconv import functional, models
from seqconv.data import ArrayBatches, load_imdb
from seqconv.training import evaluate, fit
from tests.grids import grid

N, L, C, OUTPUTS, V, K = 7, 61, 6, 20, 30, 3
LENGTHS = [61, 0, 2, 3, 40, 60, 11]
POOLS = {
    "global": None,
    "plain": {"pool_size": 4},
    "overlapping": {"pool_size": 5, "pool_stride": 2, "pool_padding": 1},
    "ceil": {"pool_size": 4, "pool_stride": 4, "ceil_mode": True},
    "dilated": {"pool_size": 3, "pool_stride": 2, "pool_dilation": 2},
    "padding alone": {"pool_size": 2, "pool_stride": 2, "pool_padding": 1, "pool_dilation": 2},
    "wide": {"pool_size": 25, "pool_stride": 3},
}
CONVOLUTIONS = {
    "plain": {},
    "strided": {"stride": 2},
    "dilated": {"dilation": 3},
    "padded": {"padding": 2},
    "same": {"padding": "same", "dilation": 2},
}


def drawn(dtype=torch.float64, outputs=OUTPUTS):
    """Return an input, a table, tokens, starts, a weight and a bias: small integers, whose sums are exact."""
    draw = torch.Generator().manual_seed(0)
    numbers = [torch.randint(-4, 5, shape, generator=draw).to(dtype) for shape in ((N, C, L), (V, C), (outputs, C, K))]
    bias = torch.randint(-4, 5, (outputs,), generator=draw).to(dtype)
    return *numbers, bias, torch.randint(V, (N, L), generator=draw), torch.randint(V - L // 4, (N,), generator=draw)


def whole(x, weight, bias, convolution, pool):
    activation = F.relu(F.conv1d(x, weight, bias, **convolution))
    if pool is None:
        return activation.max(-1, keepdim=True).values
    names = {
        "pool_size": "kernel_size",
        "pool_stride": "stride",
        "pool_padding": "padding",
        "pool_dilation": "dilation",
    }
    return F.max_pool1d(activation, **{names.get(name, name): value for name, value in pool.items()})


def expected(x, weight, bias, lengths, convolution, pool):
    """Return each sample's result alone, cut off at its length, then zeros."""
    windows = whole(x[:1], weight, bias, convolution, pool).size(2)
    rows = []
    for sample, length in zip(x, lengths.tolist(), strict=True):
        try:
            row = whole(sample[None, :, :length], weight, bias, convolution, pool)
        except RuntimeError:  # too short
            row = x.new_zeros(1, weight.size(0), 0)
        rows.append(F.pad(row, (0, windows - row.size(2))))
    out = torch.cat(rows)
    return out.squeeze(2) if pool is None else out


SOURCES = ["dense", "channels_last", "tokens", "windows"]


def called(kind, x, table, weight, bias, tokens, starts, **options):
    """Return the function's result on a kind of source, and that source's rows as an input."""
    name = "max_pool1d" if "pool_size" in options else "global_max_pool1d"
    if kind in ("dense", "channels_last"):
        given = x.transpose(1, 2).contiguous().transpose(1, 2) if kind == "channels_last" else x
        return getattr(functional, f"conv1d_relu_{name}")(given, weight, bias, **options), x
    if kind == "windows":
        rows = table[starts[:, None] + torch.arange(L // 4)].transpose(1, 2)
        call = getattr(functional, f"window_conv1d_relu_{name}")
        return call(table, starts, weight, bias, length=L // 4, **options), rows
    call = getattr(functional, f"embedding_conv1d_relu_{name}")
    return call(tokens, table, weight, bias, **options), F.embedding(tokens, table).transpose(1, 2)


@pytest.mark.parametrize("with_gradient", [True, False])
@grid(
    kind=SOURCES,
    convolution=sorted(CONVOLUTIONS),
    pool=sorted(POOLS),
    backend=["auto", "reference"],
    dtype=[torch.float32, torch.float64],
    index=[torch.int32, torch.int64],
)
def test_a_sample_gives_what_it_gives_alone(kind, convolution, pool, backend, dtype, index, with_gradient):
    x, table, weight, bias, tokens, starts = drawn(dtype)
    lengths = torch.tensor(LENGTHS, dtype=index).clamp(max=L // 4 if kind == "windows" else L)
    geometry, pooling = CONVOLUTIONS[convolution], POOLS[pool]
    if kind == "windows" and pool == "wide":
        pooling = {"pool_size": 5, "pool_stride": 2}
    leaves = [one.clone().requires_grad_(with_gradient) for one in (x, table, weight, bias)]
    options = {"lengths": lengths, "backend": backend, **geometry, **(pooling or {})}
    with torch.set_grad_enabled(with_gradient):
        out, rows = called(kind, *leaves, tokens, starts, **options)
        exact = expected(rows, *leaves[2:], lengths, geometry, pooling)
    torch.testing.assert_close(out, exact, atol=0, rtol=0)
    if not with_gradient or pool == "padding alone":  # torch's own gradient of such windows goes anywhere
        return
    upstream = torch.randint(-3, 4, out.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    wanted = [leaves[0] if kind in ("dense", "channels_last") else leaves[1], *leaves[2:]]
    for mine, theirs in zip(*(torch.autograd.grad(one, wanted, upstream) for one in (out, exact)), strict=True):
        torch.testing.assert_close(mine, theirs, atol=0, rtol=0)


@pytest.mark.parametrize("plan", ["folded", "direct"])
@pytest.mark.parametrize("pool", sorted(POOLS))
def test_both_plans_of_gathered_rows_cut_samples_off(plan, pool):
    conv_pool = pytest.importorskip("seqconv.kernels.numba.conv_pool", reason="numba is not installed")
    _, table, weight, bias, tokens, _ = drawn(torch.float32)
    call = functional.conv.embedding_call(
        tokens, table, torch.tensor(LENGTHS), weight, bias, None, (1, 0, 1, 1), _pool_of(POOLS[pool])
    )
    exact = expected(F.embedding(tokens, table).mT, weight, bias, torch.tensor(LENGTHS), {}, POOLS[pool])
    for want_argmax in (True, False):
        out, _ = conv_pool.forward(*call.arguments, want_argmax=want_argmax, plan=plan)
        torch.testing.assert_close(out, exact, atol=0, rtol=0)


def _pool_of(pool):
    if pool is None:
        return None
    sizes = (pool["pool_size"], pool.get("pool_stride"), pool.get("pool_padding", 0), pool.get("pool_dilation", 1))
    return *sizes, pool.get("ceil_mode", False)


@pytest.mark.parametrize("outputs", [1, 3, 40, 100])
@pytest.mark.parametrize(("samples", "length"), [(1, 3000), (40, 30), (3, 700)])
def test_every_way_of_cutting_the_work(outputs, samples, length):
    """Groups of short samples, pieces of a long one, vectors of positions: all beside each other's samples."""
    draw = torch.Generator().manual_seed(outputs)
    x = torch.randint(-4, 5, (samples, 8, length), generator=draw).float()
    weight = torch.randint(-4, 5, (outputs, 8, 5), generator=draw).float()
    lengths = torch.randint(length + 1, (samples,), generator=draw)
    for pool in (None, {"pool_size": 3}):
        name = "conv1d_relu_global_max_pool1d" if pool is None else "conv1d_relu_max_pool1d"
        out = getattr(functional, name)(x, weight, lengths=lengths, **(pool or {}))
        torch.testing.assert_close(out, expected(x, weight, None, lengths, {}, pool), atol=0, rtol=0)


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("pool", ["global", "plain"])
@pytest.mark.parametrize("kind", SOURCES)
def test_nothing_behind_a_sample_gets_a_gradient_of_weights_that_are_not_finite(backend, pool, kind):
    x, table, weight, bias, tokens, starts = drawn(torch.float32)
    weight[0, 0, 0] = torch.inf
    tokens[:, 9:] = 1  # a row that is read behind the samples alone
    tokens[:, :9] += 2 * (tokens[:, :9] < 2)
    values = (x if kind in ("dense", "channels_last") else table).requires_grad_()
    given = (values, table) if values is x else (x, values)
    lengths, options = torch.full((N,), 9), {"backend": backend, **(POOLS[pool] or {})}
    out, _ = called(kind, *given, weight, bias, tokens, starts, lengths=lengths, **options)
    (gradient,) = torch.autograd.grad(out[:, 1:].sum(), values)
    assert gradient.isnan().any()
    if kind == "tokens":
        assert not gradient[1].any()
    elif kind != "windows":
        assert not gradient[..., 9:].any()


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("pool", ["global", "plain"])
@pytest.mark.parametrize("garbage", [float("nan"), float("inf"), 1e30])
def test_what_lies_behind_a_sample_may_be_anything(backend, pool, garbage):
    x, _, weight, bias, *_ = drawn(torch.float32)
    lengths = torch.tensor(LENGTHS)
    behind = (torch.arange(L) >= lengths[:, None])[:, None]
    outs = []
    for one in (x.masked_fill(behind, 0), x.masked_fill(behind, garbage)):
        leaves = [each.clone().requires_grad_() for each in (one, weight, bias)]
        name = "conv1d_relu_global_max_pool1d" if pool == "global" else "conv1d_relu_max_pool1d"
        out = getattr(functional, name)(*leaves, lengths=lengths, backend=backend, **(POOLS[pool] or {}))
        outs.append([out, *torch.autograd.grad(out.square().sum(), leaves)])
    for clean, dirty in zip(*outs, strict=True):
        torch.testing.assert_close(clean, dirty, atol=0, rtol=0)


def test_whole_samples_are_as_without_lengths():
    x, table, weight, bias, tokens, starts = drawn(torch.float32)
    for kind in SOURCES:
        most = L // 4 if kind == "windows" else L
        for pool in POOLS.values():
            if pool and kind == "windows" and pool["pool_size"] > 9:
                continue
            with_lengths, without = (
                called(kind, x, table, weight, bias, tokens, starts, lengths=lengths, **(pool or {}))[0]
                for lengths in (torch.full((N,), most), None)
            )
            torch.testing.assert_close(with_lengths, without, atol=0, rtol=0)
            assert with_lengths.stride() == without.stride()


def test_one_sample_without_a_batch():
    x, table, weight, bias, tokens, _ = drawn(torch.float32)
    lengths = torch.tensor(40)
    alone = functional.conv1d_relu_max_pool1d(x[0], weight, bias, pool_size=4, lengths=lengths)
    among = functional.conv1d_relu_max_pool1d(x[:1], weight, bias, pool_size=4, lengths=lengths[None])
    assert torch.equal(alone, among[0])
    alone = functional.embedding_conv1d_relu_global_max_pool1d(tokens[0], table, weight, bias, lengths=lengths)
    among = functional.embedding_conv1d_relu_global_max_pool1d(tokens[:1], table, weight, bias, lengths=lengths[None])
    assert torch.equal(alone, among[0])


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ([3] * N, TypeError, "lengths must be a tensor, got list"),
        (torch.ones(N), TypeError, "lengths must be int32 or int64, got torch.float32"),
        (
            torch.ones(N - 1).long(),
            ValueError,
            r"lengths must have shape \(7,\), one number for each sample, got \(6,\)",
        ),
        (torch.tensor(3), ValueError, r"lengths must have shape \(7,\)"),
        (torch.full((N,), L + 1), ValueError, "lengths must be between 0 and 61, the number of positions, got 62"),
        (torch.full((N,), -1), ValueError, "lengths must be between 0 and 61, the number of positions, got -1"),
        (torch.ones(N).long().to("meta"), ValueError, "lengths must be on the device of the samples, cpu, got meta"),
    ],
)
def test_wrong_lengths_are_refused(change, error, message):
    x, table, weight, _, tokens, _ = drawn(torch.float32)
    with pytest.raises(error, match=message):
        functional.conv1d_relu_max_pool1d(x, weight, pool_size=2, lengths=change)
    with pytest.raises(error, match=message):
        functional.embedding_conv1d_relu_global_max_pool1d(tokens, table, weight, lengths=change)


def test_explain_tells_what_lengths_cost():
    layer = seqconv.ConvReLUMaxPool1d(C, OUTPUTS, K, 2)
    x, lengths = torch.randn(N, C, L), torch.tensor(LENGTHS)
    assert seqconv.explain(layer, x, lengths).backend == "numba"
    layer.padding = (1,)
    told = seqconv.explain(layer, x, lengths)
    assert told.backend == "reference"
    assert told.reasons["numba"] == "it serves lengths without padding, got padding (1, 1)"
    with pytest.raises(seqconv.backends.BackendError, match="without padding"):
        functional.conv1d_relu_max_pool1d(x, layer.weight, pool_size=2, padding=1, lengths=lengths, backend="numba")


LAYERS = {
    "pooled": lambda: seqconv.EmbeddingConvReLUMaxPool1d(V, C, OUTPUTS, K, 4, pool_stride=3),
    "global": lambda: seqconv.EmbeddingConvReLUGlobalMaxPool1d(V, C, OUTPUTS, K, padding=1),
    "several": lambda: seqconv.EmbeddingConvsReLUGlobalMaxPool1d(V, C, OUTPUTS, (2, 3, 5)),
}


@pytest.mark.parametrize("name", sorted(LAYERS))
def test_embedding_layers_and_their_children_cut_sequences_off(name):
    """With a hook on a child the children run themselves."""
    torch.manual_seed(0)
    layer, lengths = LAYERS[name]().double(), torch.tensor(LENGTHS)
    tokens = torch.randint(V, (N, L))
    out = layer(tokens, lengths)
    for sample, length, row in zip(tokens, LENGTHS, out, strict=True):
        if length > 8:
            alone = layer(sample[None, :length])[0]
            torch.testing.assert_close(row[..., : alone.size(-1)] if alone.dim() == 2 else row, alone)
    called = []
    layer.embedding.register_forward_hook(lambda *_: called.append(1))
    torch.testing.assert_close(layer(tokens, lengths), out)
    torch.testing.assert_close(layer(tokens[4], lengths[4]), out[4])
    assert len(called) == 2
    changed = torch.where(torch.arange(L) < lengths[:, None], tokens, 0)
    torch.testing.assert_close(layer(changed, lengths), out)


def test_layers_refuse_lengths_that_their_padding_would_look_behind():
    lengths, x = torch.tensor(LENGTHS), torch.randn(N, C, L)
    with pytest.raises(ValueError, match="lengths must be None where padding_mode is not 'zeros', got 'reflect'"):
        seqconv.ConvReLUMaxPool1d(C, OUTPUTS, K, 2, padding=1, padding_mode="reflect")(x, lengths)
    layer = seqconv.EmbeddingConvReLUMaxPool1d(V, C, OUTPUTS, K, 2)
    layer.conv = nn.Sequential(layer.conv)
    with pytest.raises(ValueError, match="lengths must be None where the convolution is a Sequential"):
        layer(torch.randint(V, (N, L)), lengths)


@pytest.mark.parametrize("make", [models.ImdbConvnet, lambda words: models.TextCNN(words, 8, 6)])
def test_more_padding_changes_no_prediction(make):
    torch.manual_seed(0)
    model = make(V).eval()
    tokens, lengths = torch.randint(V, (4, 90)), torch.tensor([90, 41, 60, 50])
    longer = torch.cat([tokens, torch.randint(V, (4, 70))], 1)
    torch.testing.assert_close(model(tokens, lengths), model(longer, lengths))
    assert (model(tokens) - model(longer)).abs().max() > 1e-3
    for sample, length, logit in zip(tokens, lengths, model(tokens, lengths), strict=True):
        torch.testing.assert_close(model(sample[None, :length])[0], logit)


def test_windows_take_lengths_in_a_layer():
    _, table, _, _, _, starts = drawn(torch.float32)
    layer, lengths = seqconv.ConvReLUMaxPool1d(C, OUTPUTS, K, 2), torch.tensor([9, 0, 3, 5, 9, 8, 4])
    windows = seqconv.Windows(table, starts, 9)
    torch.testing.assert_close(layer(windows, lengths), layer(windows.gather().mT, lengths))


def test_compiled_models_take_lengths():
    torch.manual_seed(0)
    model = nn.ModuleDict({"first": seqconv.ConvReLUMaxPool1d(C, OUTPUTS, K, 2), "second": LAYERS["several"]()})

    def run(x, tokens, lengths):
        return model["first"](x, lengths).sum((1, 2)) + model["second"](tokens, lengths).sum(1)

    x, tokens, lengths = torch.randn(N, C, L), torch.randint(V, (N, L)), torch.tensor(LENGTHS)
    results = []
    for call in (run, torch.compile(run, fullgraph=True)):
        model.zero_grad()
        out = call(x, tokens, lengths)
        out.sum().backward()
        results.append([out, *(one.grad.clone() for one in model.parameters())])
    for eager, compiled in zip(*results, strict=True):
        torch.testing.assert_close(eager, compiled)


def test_reviews_with_lengths_train_the_convnet():
    data = load_imdb(num_words=V, max_len=60, padding="post", source="synthetic", synthetic_size=(60, 10))
    torch.manual_seed(0)
    model = models.ImdbConvnet(V)
    before = [one.clone() for one in model.parameters()]
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    batches, validation = (ArrayBatches(*part, batch_size=16) for part in (data.train, data.validation))
    loss = F.binary_cross_entropy_with_logits
    record = fit(model, batches, validation=validation, optimizer=optimizer, loss=loss, epochs=1).records[0]
    assert 0 < record["val_loss"] < 2
    assert all((one != other).any() for one, other in zip(before, model.parameters(), strict=True))
    assert evaluate(model, validation, loss=loss)["loss"] == pytest.approx(record["val_loss"])


def test_lengths_that_a_graph_is_given_are_checked():
    """Too great ones would have a kernel read and write behind its memory."""
    _, table, weight, bias, tokens, _ = drawn(torch.float32)

    @torch.compile(backend="aot_eager")
    def run(lengths):
        return functional.embedding_conv1d_relu_max_pool1d(tokens, table, weight, bias, pool_size=4, lengths=lengths)

    assert run(torch.tensor(LENGTHS)).shape == (N, OUTPUTS, 14)
    for wrong in (L + 1, -1):
        with pytest.raises(ValueError, match=f"lengths must be between 0 and 61, the number of positions, got {wrong}"):
            run(torch.full((N,), wrong))


def test_traced_models_take_lengths_or_none():
    model, tokens, lengths = models.ImdbConvnet(V), torch.randint(V, (4, 90)), torch.tensor([90, 41, 60, 50])
    traced = torch.fx.symbolic_trace(model)
    torch.testing.assert_close(traced(tokens), model(tokens))
    torch.testing.assert_close(traced(tokens, lengths), model(tokens, lengths))


def test_output_lengths_are_those_of_the_results():
    layer = seqconv.ConvReLUMaxPool1d(C, OUTPUTS, K, 4, stride=2, padding=1, pool_stride=3, ceil_mode=True)
    lengths = torch.arange(L + 1, dtype=torch.int32)
    found = layer.output_lengths(lengths)
    assert found.dtype == torch.int64
    for length, windows in zip(lengths.tolist(), found.tolist(), strict=True):
        try:
            alone = layer(torch.ones(1, C, length)).size(2)
        except ValueError:  # too short
            alone = 0
        assert windows == alone
    assert layer.output_lengths(None) is None
    for wrong, message in (([3], "a tensor, got list"), (torch.ones(2), "int32 or int64, got torch.float32")):
        with pytest.raises(TypeError, match=f"lengths must be {message}"):
            layer.output_lengths(wrong)


def test_a_data_loader_s_lists_of_inputs_are_taken():
    draw = torch.Generator().manual_seed(0)
    rows = [((torch.randint(V, (60,), generator=draw), torch.tensor(45)), torch.tensor(1.0)) for _ in range(6)]
    model = models.ImdbConvnet(V)
    loader = torch.utils.data.DataLoader(rows, batch_size=3)
    found = evaluate(model, loader, loss=F.binary_cross_entropy_with_logits)["loss"]
    tokens = torch.stack([tokens for (tokens, _), _ in rows])
    logits = model(tokens, torch.full((6,), 45))
    assert found == pytest.approx(F.binary_cross_entropy_with_logits(logits, torch.ones(6)).item(), rel=1e-5)
