"""The conv stack's layers against nn.Sequential of torch's own; their state, copies, compilation and errors."""

import copy
import io
import itertools
import pickle

import numpy as np
import pytest
import torch
from torch import nn

import seqconv
from seqconv import (
    ConvReLUGlobalMaxPool1d,
    ConvReLUMaxPool1d,
    EmbeddingConvReLUGlobalMaxPool1d,
    EmbeddingConvReLUMaxPool1d,
)
from seqconv.functional.kernels import register
from tests.conv_cases import same, whole
from tests.grids import grid

MODES = ["zeros", "reflect", "replicate", "circular"]
POOLS = [
    {"pool_size": 3},
    {"pool_size": 2, "pool_stride": 1},
    {"pool_size": 3, "pool_stride": 2, "pool_padding": 1, "pool_dilation": 2, "ceil_mode": True},
    None,
]
LAYERS = [
    (lambda **kw: ConvReLUMaxPool1d(4, 6, 3, 2, **kw), (2, 4, 12)),
    (lambda **kw: ConvReLUGlobalMaxPool1d(4, 6, 3, **kw), (2, 4, 12)),
    (lambda **kw: EmbeddingConvReLUMaxPool1d(9, 4, 6, 3, 2, **kw), (2, 12)),
    (lambda **kw: EmbeddingConvReLUGlobalMaxPool1d(9, 4, 6, 3, **kw), (2, 12)),
]
NAMES = ["pool", "global", "embedding_pool", "embedding_global"]
pytestmark = [
    pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths"),
    pytest.mark.usefixtures("floor"),
]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(5)


def inputs(shape):
    return whole(shape) if len(shape) == 3 else torch.randint(9, shape)


class Transposed(nn.Module):
    def forward(self, embedded):
        return embedded.transpose(-1, -2)


def torch_pool(pool):
    if pool is None:
        return nn.Sequential(nn.AdaptiveMaxPool1d(1), nn.Flatten(-2))
    names = {"pool_stride": "stride", "pool_padding": "padding", "pool_dilation": "dilation", "ceil_mode": "ceil_mode"}
    return nn.MaxPool1d(pool["pool_size"], **{names[name]: value for name, value in pool.items() if name in names})


def our_layer(pool, *arguments, **options):
    if pool is None:
        return ConvReLUGlobalMaxPool1d(*arguments, **options)
    return ConvReLUMaxPool1d(*arguments, **pool, **options)


def our_embedding_layer(pool, *arguments, **options):
    if pool is None:
        return EmbeddingConvReLUGlobalMaxPool1d(*arguments, **options)
    return EmbeddingConvReLUMaxPool1d(*arguments, **pool, **options)


def whole_numbers(*modules):
    """Give all the modules the same small whole parameters, whose sums are exact in any order."""
    for module in modules:
        torch.manual_seed(8)
        for parameter in module.parameters():
            nn.init.uniform_(parameter, -3.5, 3.5).data.round_()


def assert_same(ours, theirs, *tensors):
    """Compare outputs, gradients of all parameters and of floating inputs, exactly."""
    outcomes = []
    for module in (ours, theirs):
        module.zero_grad()
        leaves = [t.detach().clone().requires_grad_(t.is_floating_point()) for t in tensors]
        result = module(*leaves)
        weighting = torch.arange(result.numel(), dtype=result.dtype).remainder(7).sub(3).reshape(result.shape)
        (result * weighting).sum().backward()
        gradients = [leaf.grad for leaf in leaves if leaf.requires_grad]
        outcomes.append([result, *gradients, *(parameter.grad for parameter in module.parameters())])
    for one, other in zip(*outcomes, strict=True):
        assert same(one, other)


@grid(together=1, indirect=["floor"], pool=POOLS, padding_mode=MODES, floor=["reference", "auto"])
def test_equals_torch_for_every_option(padding_mode, pool, floor, draw):
    options_of = itertools.product((0, 3, "same", "valid"), (1, 2), (1, 2), (1, 2), (True, False))
    for number, (padding, stride, dilation, groups, bias) in enumerate(options_of):
        if padding == "same" and stride != 1:
            continue
        size = 3 + number.bit_count() % 2  # any two options meet both
        options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups, "bias": bias}
        options["padding_mode"] = padding_mode
        ours = our_layer(pool, 4, 6, size, **options)
        theirs = nn.Sequential(nn.Conv1d(4, 6, size, **options), nn.ReLU(), torch_pool(pool))
        if floor == "auto":
            whole_numbers(ours)
        theirs[0].load_state_dict(ours.state_dict())
        x = draw(2, 4, 15)
        assert_same(ours, theirs, x)
        assert same(ours(x[0]), theirs(x[0]))
        view = x.transpose(1, 2).contiguous().transpose(1, 2)
        assert same(ours(view), theirs(x))
        if pool is not None:
            assert ours(view).transpose(1, 2).is_contiguous()
            assert ours(x).is_contiguous()


@grid(together=1, indirect=["floor"], pool=POOLS, padding_mode=MODES, floor=["reference", "auto"])
def test_embedding_layers_equal_torch_for_every_option(padding_mode, pool, floor):
    """Whole numbers: padding tokens instead of rows adds the same gradients to the table in another order."""
    options_of = itertools.product((0, 3, "same"), (1, 2), (1, 2), (True, False))
    for number, (padding, dilation, groups, bias) in enumerate(options_of):
        padding_idx = (None, 0, -2)[number % 3]  # in turn: any two options meet each
        options = {"padding": padding, "dilation": dilation, "groups": groups, "bias": bias}
        options["padding_mode"] = padding_mode
        ours = our_embedding_layer(pool, 9, 4, 6, 3, padding_idx=padding_idx, dtype=torch.float64, **options)
        theirs = nn.Sequential(
            nn.Embedding(9, 4, padding_idx),
            Transposed(),
            nn.Conv1d(4, 6, 3, **options),
            nn.ReLU(),
            torch_pool(pool),
        ).double()
        whole_numbers(ours, theirs)
        tokens = torch.randint(9, (3, 15))
        assert_same(ours, theirs, tokens)
        assert_same(ours, theirs, tokens[0])
        assert same(ours(tokens.int()), theirs(tokens))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(("make", "shape"), LAYERS, ids=NAMES)
def test_dtype_and_device(make, shape, dtype):
    layer = make(dtype=dtype)
    assert {parameter.dtype for parameter in layer.parameters()} == {dtype}
    result = layer(inputs(shape).to(dtype if len(shape) == 3 else torch.int64))
    assert result.dtype == dtype
    on_meta = make(dtype=dtype, device="meta")
    again = on_meta(inputs(shape).to("meta", dtype if len(shape) == 3 else torch.int64))
    assert (again.device.type, again.shape, again.dtype) == ("meta", result.shape, dtype)
    if len(shape) == 3:
        other = torch.float64 if dtype != torch.float64 else torch.float32
        with pytest.raises(TypeError, match=r"^weight must have the dtype of input"):
            layer(inputs(shape).to(other))


def test_state_dicts_fit_torch_both_ways():
    ours, theirs = ConvReLUMaxPool1d(4, 6, 3, 2, groups=2), nn.Conv1d(4, 6, 3, groups=2)
    assert list(ours.state_dict()) == list(theirs.state_dict()) == ["weight", "bias"]
    theirs.load_state_dict(ours.state_dict(), strict=True)
    ours.load_state_dict(nn.Conv1d(4, 6, 3, groups=2).state_dict(), strict=True)
    assert isinstance(ours, nn.Conv1d)
    assert list(ConvReLUGlobalMaxPool1d(4, 6, 3, bias=False).state_dict()) == ["weight"]

    ours = EmbeddingConvReLUGlobalMaxPool1d(9, 4, 6, 3, padding_idx=1)
    parts = nn.ModuleDict({"embedding": nn.Embedding(9, 4, padding_idx=1), "conv": nn.Conv1d(4, 6, 3)})
    assert list(ours.state_dict()) == list(parts.state_dict()) == ["embedding.weight", "conv.weight", "conv.bias"]
    parts.load_state_dict(ours.state_dict(), strict=True)
    ours.load_state_dict(parts.state_dict(), strict=True)


def test_draws_the_weights_that_torch_draws():
    for make, torch_layers in (
        (lambda: ConvReLUMaxPool1d(4, 6, 3, 2), lambda: [nn.Conv1d(4, 6, 3)]),
        (lambda: EmbeddingConvReLUMaxPool1d(9, 4, 6, 3, 2), lambda: [nn.Embedding(9, 4), nn.Conv1d(4, 6, 3)]),
    ):
        torch.manual_seed(1)
        ours = list(make().parameters())
        torch.manual_seed(1)
        theirs = [parameter for layer in torch_layers() for parameter in layer.parameters()]
        assert all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))
    assert not EmbeddingConvReLUMaxPool1d(9, 4, 6, 3, 2, padding_idx=-1).embedding.weight[8].any()


@pytest.mark.parametrize(("make", "shape"), LAYERS, ids=NAMES)
def test_copies(make, shape):
    layer, x = make(padding=1, padding_mode="reflect"), inputs(shape)
    stream = io.BytesIO()
    torch.save(layer, stream)
    stream.seek(0)
    for twin in (
        copy.deepcopy(layer),
        pickle.loads(pickle.dumps(layer)),
        torch.load(stream, weights_only=False),
    ):
        assert torch.equal(twin(x), layer(x))
        assert repr(twin) == repr(layer)
        with torch.no_grad():
            next(iter(twin.parameters())).add_(1)
        assert not torch.equal(twin(x), layer(x))


def test_layers_say_what_they_are():
    layer = ConvReLUMaxPool1d(4, 6, 3, 2, pool_stride=1, ceil_mode=True, padding=1, backend="reference")
    assert repr(layer) == (
        "ConvReLUMaxPool1d(4, 6, kernel_size=(3,), stride=(1,), padding=(1,), "
        "pool_size=2, pool_stride=1, ceil_mode=True, backend='reference')"
    )
    assert repr(ConvReLUGlobalMaxPool1d(4, 6, 3)) == "ConvReLUGlobalMaxPool1d(4, 6, kernel_size=(3,), stride=(1,))"
    text = repr(EmbeddingConvReLUMaxPool1d(9, 4, 6, 3, 2, pool_dilation=2))
    for part in ("pool_size=2, pool_dilation=2", "(embedding): Embedding(9, 4)", "(conv): Conv1d(4, 6"):
        assert part in text


@pytest.mark.parametrize(("make", "shape"), LAYERS, ids=NAMES)
def test_frozen_parameters_get_no_gradient(make, shape):
    layer = make()
    first, *rest = layer.parameters()
    first.requires_grad_(False)
    layer(inputs(shape)).sum().backward()
    assert first.grad is None
    assert all(parameter.grad is not None for parameter in rest)


@grid(
    together=1,
    indirect=["floor"],
    layer=LAYERS,
    floor=["reference", "auto"],
    called=[({}, None), ({}, True), ({"padding": "same"}, True), ({"padding": 2, "padding_mode": "circular"}, None)],
)
def test_compiles_to_one_graph(layer, called, floor):
    (make, shape), (options, dynamic) = layer, called
    torch.compiler.reset()
    register()  # anew: as in a process whose first call is the compiled one
    layer = make(**options)
    compiled = torch.compile(layer, fullgraph=True, backend="eager", dynamic=dynamic)
    for size in (shape, (3, *shape[1:-1], 17)):
        x = inputs(size)
        assert torch.equal(compiled(x), layer(x))
        (one,) = torch.autograd.grad(compiled(x).sum(), next(layer.parameters()))
        (other,) = torch.autograd.grad(layer(x).sum(), next(layer.parameters()))
        assert torch.equal(one, other)


@grid(indirect=["floor"], layer=LAYERS, strict=[False, True], floor=["reference", "auto"])
def test_exports_for_batches_of_any_size(layer, strict, floor):
    make, shape = layer
    layer, x = make(padding=1), inputs(shape)
    whole_numbers(layer)
    program = torch.export.export(layer, (x,), dynamic_shapes=({0: torch.export.Dim("N")},), strict=strict)
    more = inputs((5, *shape[1:]))
    assert same(program.module()(more), layer(more))
    assert not any("seqconv" in str(node.target) for node in program.graph.nodes)


def test_exports_for_any_length_where_torch_can():
    """torch's own max_pool1d fixes the length; the global maximum leaves it free."""
    layer, x = ConvReLUGlobalMaxPool1d(4, 6, 3, padding=1), whole(2, 4, 12)
    whole_numbers(layer)
    shapes = ({0: torch.export.Dim("N"), 2: torch.export.Dim("L", min=3)},)
    program = torch.export.export(layer, (x,), dynamic_shapes=shapes)
    more = whole(3, 4, 30)
    assert same(program.module()(more), layer(more))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"in_channels": 0}, ValueError, "in_channels must be at least 1, got 0"),
        ({"in_channels": (4,)}, TypeError, "in_channels must be an integer, got (4,)"),
        ({"in_channels": 5, "groups": 2}, ValueError, "groups must divide in_channels = 5, got 2"),
        ({"out_channels": 6.0}, TypeError, "out_channels must be an integer, got 6.0"),
        ({"out_channels": 5, "groups": 2}, ValueError, "groups must divide out_channels = 5, got 2"),
        ({"groups": (1,)}, TypeError, "groups must be an integer, got (1,)"),
        ({"kernel_size": 0}, ValueError, "kernel_size must be at least 1, got 0"),
        ({"kernel_size": (3, 3)}, ValueError, "kernel_size must be one integer, got (3, 3)"),
        ({"stride": 0}, ValueError, "stride must be at least 1, got 0"),
        ({"padding": -1}, ValueError, "padding must be at least 0, got -1"),
        ({"padding": "SAME"}, ValueError, "Invalid padding string 'SAME'"),
        ({"padding": "same", "stride": 2}, ValueError, "padding='same' is not supported for strided convolutions"),
        ({"padding_mode": "wrap"}, ValueError, "padding_mode must be one of"),
        ({"dilation": None}, TypeError, "dilation must be an integer, got None"),
        ({"pool_size": 0}, ValueError, "pool_size must be at least 1, got 0"),
        ({"pool_padding": 2}, ValueError, "pool_padding must be at most half of pool_size = 2, got 2"),
        ({"ceil_mode": 1}, TypeError, "ceil_mode must be True or False, got 1"),
        ({"backend": "cpu"}, ValueError, "backend must be one of auto, triton, numba, reference, got 'cpu'"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_options_are_checked_when_a_layer_is_made(change, error, message):
    options = {"in_channels": 4, "out_channels": 6, "kernel_size": 3, "pool_size": 2, **change}
    with pytest.raises(error) as caught:
        ConvReLUMaxPool1d(**options)
    assert str(caught.value).startswith(message)
    if "in_channels" not in change:
        options = {"num_embeddings": 9, "embedding_dim": options.pop("in_channels"), **options}
        with pytest.raises(error) as caught:
            EmbeddingConvReLUMaxPool1d(**options)
        assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"num_embeddings": 0}, ValueError, "num_embeddings must be at least 1, got 0"),
        ({"embedding_dim": None}, TypeError, "embedding_dim must be an integer, got None"),
        ({"padding_idx": 9}, ValueError, "padding_idx must be between -9 and 8 for a table of 9 rows, got 9"),
        ({"padding_idx": -10}, ValueError, "padding_idx must be at least -9, got -10"),
        ({"padding_idx": 1.5}, TypeError, "padding_idx must be an integer, got 1.5"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_options_of_the_embedding_are_checked(change, error, message):
    options = {"num_embeddings": 9, "embedding_dim": 4, "out_channels": 6, "kernel_size": 3, **change}
    with pytest.raises(error) as caught:
        EmbeddingConvReLUGlobalMaxPool1d(**options)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize("mode", MODES)
def test_rejects_the_lengths_that_torch_cannot_pad(mode):
    for length, padding in itertools.product(range(5), range(5)):
        options = {"kernel_size": 1, "padding": padding, "padding_mode": mode}
        conv, ours = nn.Conv1d(4, 6, **options), ConvReLUGlobalMaxPool1d(4, 6, **options)
        layer, tokens = EmbeddingConvReLUGlobalMaxPool1d(9, 4, 6, **options), torch.zeros(2, length, dtype=torch.int64)
        x = torch.randn(2, 4, length)
        try:
            conv(x)
        except RuntimeError:
            for call, name in ((lambda: ours(x), "input"), (lambda: layer(tokens), "tokens")):  # noqa: B023
                with pytest.raises(ValueError, match=rf"^({name}|kernel_size) must "):
                    call()
        else:
            assert ours(x).shape == layer(tokens).shape == (2, 6)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("make", "shape"), LAYERS, ids=NAMES)
def test_rejects_inputs_of_the_wrong_kind(make, shape, mode):
    layer, x = make(padding=1, padding_mode=mode), inputs(shape)
    name = "input" if len(shape) == 3 else "tokens"
    for wrong, error in (
        (x[None], ValueError),
        (x.flatten()[0], ValueError),
        (x.numpy(), TypeError),
        (None, TypeError),
        (x.bool(), TypeError),
    ):
        with pytest.raises(error, match=rf"^{name} must "):
            layer(wrong)
    with pytest.raises(IndexError if name == "tokens" else ValueError, match=rf"^{name} must "):
        layer(x + 9 if name == "tokens" else x[:, :3])


def test_takes_tuples_and_integers_of_numpy():
    one = ConvReLUMaxPool1d(
        np.int64(4), np.int64(6), (3,), (2,), stride=[2], pool_stride=np.int32(1), groups=np.int64(2)
    )
    other = ConvReLUMaxPool1d(4, 6, 3, 2, stride=2, pool_stride=1, groups=2)
    other.load_state_dict(one.state_dict())
    x = torch.randn(2, 4, 12)
    assert torch.equal(one(x), other(x))


def test_a_layer_keeps_to_its_backend(monkeypatch):
    monkeypatch.setenv("SEQCONV_BACKEND", "triton")
    x = torch.randn(2, 4, 12)
    assert ConvReLUMaxPool1d(4, 6, 3, 2, backend="reference")(x).shape == (2, 6, 5)
    assert seqconv.explain(ConvReLUMaxPool1d(4, 6, 3, 2, backend="reference"), x).backend == "reference"
    with pytest.raises(seqconv.BackendError, match="triton"):
        ConvReLUMaxPool1d(4, 6, 3, 2)(x)


@pytest.mark.parametrize(
    "call",
    [
        lambda conv: seqconv.ConvReLUMaxPool1d(conv, pool_size=2),
        lambda conv: seqconv.ConvReLUGlobalMaxPool1d(conv),
        lambda conv: seqconv.EmbeddingConvReLUMaxPool1d(nn.Embedding(9, 4), conv, pool_size=2),
        lambda conv: seqconv.EmbeddingConvReLUGlobalMaxPool1d(9, 4, conv),
        lambda conv: seqconv.EmbeddingConvsReLUGlobalMaxPool1d(nn.Embedding(9, 4), [conv]),
        lambda _: seqconv.GRU(nn.GRU(4, 5)),
    ],
)
def test_a_module_in_place_of_sizes_is_told_how_it_is_converted(call):
    with pytest.raises(TypeError, match=r"is made from sizes, got (Conv1d|Embedding|GRU): .*layer.load_state_dict"):
        call(nn.Conv1d(4, 6, 3))


def test_a_conv1d_is_converted_as_the_error_says():
    conv = nn.Conv1d(4, 6, 3)
    layer = seqconv.ConvReLUMaxPool1d(conv.in_channels, conv.out_channels, conv.kernel_size, 2)
    layer.load_state_dict(conv.state_dict())
    x = torch.randn(2, 4, 12)
    # A float32 sum of 12 products and a bias, in any order.
    torch.testing.assert_close(layer(x), nn.functional.max_pool1d(conv(x).relu(), 2), rtol=0, atol=13 * 2**-22)
