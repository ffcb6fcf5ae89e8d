"""Tables of the embedding layers: given ones, frozen ones, shared ones, and what is refused."""

import copy
import itertools

import pytest
import torch
from torch import nn

import seqconv
from seqconv import EmbeddingConvReLUGlobalMaxPool1d, EmbeddingConvReLUMaxPool1d, EmbeddingConvsReLUGlobalMaxPool1d
from tests.conv_cases import same, whole

pytestmark = pytest.mark.usefixtures("floor")

# The class, and its arguments behind embedding_dim.
LAYERS = [
    (EmbeddingConvReLUMaxPool1d, (6, 3, 2)),
    (EmbeddingConvReLUGlobalMaxPool1d, (6, 3)),
    (EmbeddingConvsReLUGlobalMaxPool1d, (6, (2, 3))),
]
NAMES = ["pool", "global", "convs"]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(7)


def whole_numbers(*layers):
    """Give parameters whose sums are exact in any order."""
    for parameter in itertools.chain.from_iterable(layer.parameters() for layer in layers):
        nn.init.uniform_(parameter, -3.5, 3.5).data.round_()


def tokens(*shape, rows=9, dtype=torch.int64):
    return torch.randint(rows, shape or (3, 12), dtype=dtype)


@pytest.mark.parametrize(("make", "options"), LAYERS, ids=NAMES)
def test_pretrained_tables_are_torchs(make, options):
    table = whole(9, 4)
    for freeze, padding_idx in itertools.product((True, False), (None, 0, -2)):
        layer = make.from_pretrained(table, *options, freeze=freeze, padding_idx=padding_idx, bias=False)
        theirs = nn.Embedding.from_pretrained(table, freeze=freeze, padding_idx=padding_idx)
        assert repr(layer.embedding) == repr(theirs)
        assert layer.embedding.padding_idx == theirs.padding_idx
        assert layer.embedding.weight.requires_grad == theirs.weight.requires_grad == (not freeze)
        assert layer.embedding.weight.data_ptr() == table.data_ptr()
        assert torch.equal(layer.embedding.weight, table)  # the row of the padding, too
        layer(tokens()).sum().backward()
        gradient = layer.embedding.weight.grad
        assert (gradient is None) == freeze
        assert all(parameter.grad is not None for parameter in layer.parameters() if parameter.requires_grad)
        if padding_idx is not None and not freeze:
            assert not gradient[padding_idx].any()
            assert gradient.any()


def test_the_default_freezes():
    assert not EmbeddingConvReLUMaxPool1d.from_pretrained(whole(9, 4), 6, 3, 2).embedding.weight.requires_grad


@pytest.mark.parametrize(("make", "options"), LAYERS, ids=NAMES)
def test_pretrained_tables_bring_their_dtype_unless_another_is_wanted(make, options):
    table = whole(9, 4, dtype=torch.float64)
    layer = make.from_pretrained(table, *options)
    assert {parameter.dtype for parameter in layer.parameters()} == {torch.float64}
    layer = make.from_pretrained(table, *options, dtype=torch.float32, device="meta")
    assert {(one.dtype, one.device.type) for one in layer.parameters()} == {(torch.float32, "meta")}


@pytest.mark.parametrize(
    ("table", "options", "error", "message"),
    [
        ([[1.0]], {}, TypeError, "embeddings must be a tensor, got list"),
        (torch.ones(9), {}, ValueError, r"embeddings must have shape \(num_embeddings, embedding_dim\), got \(9,\)"),
        (torch.ones(0, 4), {}, ValueError, r"embeddings must have shape .*, got \(0, 4\)"),
        (torch.ones(9, 4).int(), {}, TypeError, "embeddings must be float16, bfloat16, float32 or float64, got"),
        (torch.ones(9, 4), {"freeze": 0}, TypeError, "freeze must be True or False, got 0"),
        (torch.ones(9, 4), {"padding_idx": 9}, ValueError, "padding_idx must be between -9 and 8"),
        (torch.ones(9, 4), {"max_norm": 1.0}, ValueError, "max_norm must be None: .* got 1.0"),
        (torch.ones(9, 4), {"scale_grad_by_freq": True}, ValueError, "scale_grad_by_freq must be False: .* got True"),
        (torch.ones(9, 4), {"sparse": True}, ValueError, "sparse must be False: .* got True"),
        (torch.ones(9, 4), {"backend": "cpu"}, ValueError, "backend must be one of"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
@pytest.mark.parametrize(("make", "arguments"), LAYERS, ids=NAMES)
def test_from_pretrained_rejects(make, arguments, table, options, error, message):
    with pytest.raises(error, match=f"^{message}"):
        make.from_pretrained(table, *arguments, **options)


@pytest.mark.parametrize("options", [{"max_norm": 1.0}, {"scale_grad_by_freq": True}, {"sparse": True}], ids=str)
@pytest.mark.parametrize(("make", "arguments"), LAYERS, ids=NAMES)
def test_an_embedding_put_in_with_refused_options_is_refused(make, arguments, options):
    layer = make(9, 4, *arguments)
    layer.embedding = nn.Embedding(9, 4, **options)
    with pytest.raises(ValueError, match=f"^{next(iter(options))} must be "):
        layer(tokens())
    with pytest.raises(TypeError, match=next(iter(options))):
        make(9, 4, *arguments, **options)


def tied(make, options):
    """Two layers and a dense layer over one table, which the second layer reads with another padding_idx."""
    first, second = make(9, 4, *options), make(9, 4, *options, padding_idx=2)
    head = nn.Linear(4, 9, bias=False)
    second.embedding.weight = head.weight = first.embedding.weight
    return nn.ModuleDict({"first": first, "second": second, "head": head}).double()


def outputs(parts, given, features):
    return parts["first"](given).sum() + 2 * parts["second"](given).sum() + 3 * parts["head"](features).sum()


@pytest.mark.parametrize(("make", "options"), LAYERS, ids=NAMES)
def test_gradients_of_a_shared_table_add_up(make, options):
    shared, given, features = tied(make, options), tokens(), whole(5, 4, dtype=torch.float64)
    whole_numbers(shared)
    assert len([name for name, _ in shared.named_parameters() if "embedding" in name or "head" in name]) == 1
    apart = copy.deepcopy(shared)
    for part in ("second", "head"):
        owner = apart[part].embedding if part == "second" else apart[part]
        owner.weight = nn.Parameter(owner.weight.detach().clone())
    for parts in (shared, apart):
        outputs(parts, given, features).backward()
    separate = [apart["first"].embedding.weight, apart["second"].embedding.weight, apart["head"].weight]
    assert all(one.grad.any() for one in separate)
    assert same(shared["first"].embedding.weight.grad, sum(one.grad for one in separate))


@pytest.mark.parametrize(("make", "options"), LAYERS, ids=NAMES)
def test_copies_and_loading_keep_tables_shared(make, options):
    shared, given, features = tied(make, options), tokens(), whole(5, 4, dtype=torch.float64)
    twin = copy.deepcopy(shared)
    loaded = tied(make, options)
    loaded.load_state_dict(shared.state_dict())
    expected = outputs(shared, given, features)
    for parts in (twin, loaded):
        assert parts["first"].embedding.weight is parts["second"].embedding.weight is parts["head"].weight
        assert parts["head"].weight is not shared["head"].weight
        assert torch.equal(outputs(parts, given, features), expected)
        with torch.no_grad():
            parts["head"].weight.zero_()
        assert not torch.equal(parts["first"](given), shared["first"](given))


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64], ids=str)
@pytest.mark.parametrize("mode", ["zeros", "circular"])
@pytest.mark.parametrize(("make", "options"), LAYERS, ids=NAMES)
def test_tokens_without_a_row_are_refused_before_they_are_read(make, options, mode, dtype):
    more = {"padding": 1} if make is EmbeddingConvsReLUGlobalMaxPool1d else {"padding": 1, "padding_mode": mode}
    layer = make(9, 4, *options, **more)
    for wrong in (9, -1, 2**31 - 1, -(2**31)):
        given = tokens(dtype=dtype)
        given[2, 11] = wrong  # the last one read
        with pytest.raises(IndexError, match=f"^tokens must be between 0 and 8 for the 9 rows of table, got {wrong}$"):
            layer(given)
    with pytest.raises(TypeError, match=r"^tokens must be int32 or int64, got"):
        layer(tokens().short())
    assert layer(tokens(0, 12, dtype=dtype)).shape[0] == 0
    with pytest.raises(ValueError, match=r"^tokens must have at least"):
        layer(tokens(2, 0, dtype=dtype))


@pytest.mark.parametrize(("make", "options"), LAYERS, ids=NAMES)
def test_one_word_again_and_again_under_deterministic_algorithms(make, options):
    """Every position adds to the same row: the sum is right, and the same bits each time."""
    layer, given = make(9, 4, *options, padding_idx=0).double(), torch.full((40, 50), 3)
    whole_numbers(layer)
    given[:, ::7] = 0
    expected = gradient_by_torch(layer, given)
    torch.use_deterministic_algorithms(True)
    try:
        gradients = [torch.autograd.grad(layer(given).sum(), layer.embedding.weight)[0] for _ in range(3)]
    finally:
        torch.use_deterministic_algorithms(False)
    for gradient in gradients:
        assert torch.equal(gradient, expected)
        assert gradient[3].any()
        assert not gradient[0].any()


def gradient_by_torch(layer, given):
    embedded = layer.embedding(given).transpose(1, 2)
    size = getattr(layer, "pool_size", None)
    total = 0
    for conv in layer.convs if hasattr(layer, "convs") else [layer.conv]:
        values = nn.functional.relu(conv(embedded))
        # The first of equal values gets the gradient; amax would share it among them.
        total = total + (values.max(-1).values if size is None else nn.functional.max_pool1d(values, size)).sum()
    return torch.autograd.grad(total, layer.embedding.weight)[0]


def test_kernel_sizes_stand_side_by_side():
    sizes = (3, 1, 4)
    layer = EmbeddingConvsReLUGlobalMaxPool1d(9, 4, 5, sizes, padding_idx=1, padding=1)
    assert list(layer.state_dict()) == [
        "embedding.weight",
        *(f"convs.{i}.{name}" for i in range(3) for name in ("weight", "bias")),
    ]
    given = tokens()
    single = []
    for size, conv in zip(sizes, layer.convs, strict=True):
        one = EmbeddingConvReLUGlobalMaxPool1d(9, 4, 5, size, padding_idx=1, padding=1)
        one.embedding.weight, one.conv = layer.embedding.weight, conv
        single.append(one(given))
    assert torch.equal(layer(given), torch.cat(single, -1))
    assert torch.equal(layer(given.int()), layer(given))
    assert layer(given[0]).shape == (15,)
    torch.testing.assert_close(layer(given[0]), layer(given)[0])
    assert "embedding_conv1ds_relu_global_max_pool1d" in str(seqconv.explain(layer, given))
    assert (
        repr(EmbeddingConvsReLUGlobalMaxPool1d(9, 4, 5, sizes, backend="reference")).count("backend='reference'") == 1
    )


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"kernel_sizes": ()}, ValueError, r"kernel_sizes must be a list or tuple of at least one integer, got \(\)"),
        ({"kernel_sizes": 3}, ValueError, "kernel_sizes must be a list or tuple of at least one integer, got 3"),
        ({"kernel_sizes": (3, 0)}, ValueError, r"kernel_sizes\[1\] must be at least 1, got 0"),
        ({"kernel_sizes": (3, 2.0)}, TypeError, r"kernel_sizes\[1\] must be an integer, got 2.0"),
        ({"out_channels": 0}, ValueError, "out_channels must be at least 1, got 0"),
        ({"padding_idx": 9}, ValueError, "padding_idx must be between -9 and 8"),
        ({"num_embeddings": 0}, ValueError, "num_embeddings must be at least 1, got 0"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_options_of_several_kernel_sizes_are_checked(change, error, message):
    options = {"num_embeddings": 9, "embedding_dim": 4, "out_channels": 5, "kernel_sizes": (2, 3), **change}
    with pytest.raises(error, match=f"^{message}"):
        EmbeddingConvsReLUGlobalMaxPool1d(**options)


def test_convolutions_that_the_call_cannot_express_are_refused():
    """They may be replaced after the layer was made; none is left out or computed as another."""
    tokens = torch.randint(9, (2, 8))
    layer = seqconv.EmbeddingConvsReLUGlobalMaxPool1d(9, 4, 6, (2, 3))
    for replaced, message in (
        (torch.nn.Conv1d(4, 6, 3, padding=1), r"convs\[1\].padding must be \(0,\), .* got \(1,\)"),
        (torch.nn.Conv1d(4, 6, 3, dilation=2), r"convs\[1\].dilation must be \(1,\), .* got \(2,\)"),
        (
            torch.nn.Conv1d(4, 6, 3, padding_mode="circular"),
            r"convs\[1\].padding_mode must be 'zeros', .* got 'circular'",
        ),
        (torch.nn.Conv1d(4, 6, 3, groups=2), r"convs\[1\].groups must be 1, .* got 2"),
    ):
        layer.convs[1] = replaced
        with pytest.raises(ValueError, match=message):
            layer(tokens)
