"""Children of the embedding layers: whatever torch offers for a module has the effect that it has on torch's own."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

import seqconv
from tests.grids import others_large

WORDS, CHANNELS, OUTPUTS = 20, 6, 5
TOKENS = torch.randint(WORDS, (4, 30), generator=torch.Generator().manual_seed(0))
NAMES = ["pool", "global", "convs"]

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Full backward hook is firing"),  # tokens need no gradient
]


class Torchs(nn.Module):
    """The same layer of torch's modules, with the same names."""

    def __init__(self, name):
        super().__init__()
        self.embedding = nn.Embedding(WORDS, CHANNELS)
        sizes = (3, 2) if name == "convs" else (3,)
        convs = [nn.Conv1d(CHANNELS, OUTPUTS, size) for size in sizes]
        if name == "convs":
            self.convs = nn.ModuleList(convs)
        else:
            self.conv = convs[0]
        self.pool = name == "pool"

    def forward(self, tokens):
        rows = self.embedding(tokens).transpose(-1, -2)
        active = [F.relu(conv(rows)) for conv in getattr(self, "convs", None) or [self.conv]]
        return F.max_pool1d(active[0], 2) if self.pool else torch.cat([one.max(-1).values for one in active], -1)


def pair(name, dtype=torch.float64):
    """Return seqconv's layer and torch's, of the same weights."""
    torch.manual_seed(3)
    make = {
        "pool": lambda: seqconv.EmbeddingConvReLUMaxPool1d(WORDS, CHANNELS, OUTPUTS, 3, 2),
        "global": lambda: seqconv.EmbeddingConvReLUGlobalMaxPool1d(WORDS, CHANNELS, OUTPUTS, 3),
        "convs": lambda: seqconv.EmbeddingConvsReLUGlobalMaxPool1d(WORDS, CHANNELS, OUTPUTS, (3, 2)),
    }[name]
    ours, theirs = make().to(dtype), Torchs(name).to(dtype)
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


def conv_of(layer):
    return layer.convs[0] if hasattr(layer, "convs") else layer.conv


def compare(ours, theirs, *, steps=3):
    """Compare outputs, gradients and parameters through several steps of an optimizer.

    Float64: sums of at most 20 x 30 x 6 x 3 products, 1e-10 is 50 times what they round.
    """
    near = {"rtol": 1e-10, "atol": 1e-10}
    optimizers = [torch.optim.SGD(one.parameters(), lr=0.05) for one in (ours, theirs)]
    for _ in range(steps):
        results = [one(TOKENS) for one in (ours, theirs)]
        torch.testing.assert_close(*results, **near)
        for optimizer, result in zip(optimizers, results, strict=True):
            optimizer.zero_grad()
            result.square().sum().backward()
        parameters = [dict(one.named_parameters()) for one in (ours, theirs)]
        assert parameters[0].keys() == parameters[1].keys()
        for name, parameter in parameters[0].items():
            torch.testing.assert_close(parameter.grad, parameters[1][name].grad, **near)
        for optimizer in optimizers:
            optimizer.step()
    with torch.no_grad():
        torch.testing.assert_close(ours(TOKENS), theirs(TOKENS), **near)
    torch.testing.assert_close(ours(TOKENS[0]), theirs(TOKENS[0]), **near)  # unbatched


def prune_conv(layer):
    prune.l1_unstructured(conv_of(layer), "weight", 0.5)


def prune_table(layer):
    prune.l1_unstructured(layer.embedding, "weight", 0.5)


def weight_norm(layer):
    nn.utils.weight_norm(conv_of(layer))


def weight_norm_parametrization(layer):
    parametrizations.weight_norm(conv_of(layer))


def spectral_norm(layer):
    torch.manual_seed(4)
    nn.utils.spectral_norm(conv_of(layer))


def spectral_norm_parametrization(layer):
    torch.manual_seed(4)
    parametrizations.spectral_norm(conv_of(layer))


class Doubled(nn.Conv1d):
    def forward(self, input):
        return 2 * super().forward(input)


class Noisy(nn.Embedding):
    def forward(self, input):
        return super().forward(input) + 0.25


def subclass(layer):
    convs = Doubled(CHANNELS, OUTPUTS, 3).double()
    convs.load_state_dict(conv_of(layer).state_dict())
    if hasattr(layer, "convs"):
        layer.convs[0] = convs
    else:
        layer.conv = convs


def subclass_of_embedding(layer):
    table = Noisy(WORDS, CHANNELS).double()
    table.load_state_dict(layer.embedding.state_dict())
    layer.embedding = table


def sequential(layer):
    layer.embedding = nn.Sequential(layer.embedding, nn.Tanh())


def own_forward(layer):
    conv, forward = conv_of(layer), conv_of(layer).forward
    conv.forward = lambda rows: forward(rows) * 3


def hook(layer):
    layer.embedding.register_forward_hook(lambda _module, _given, result: result * 0.5)


def pre_hook(layer):
    conv_of(layer).register_forward_pre_hook(lambda _module, given: (given[0] + 1,))


def backward_hook(layer):
    conv_of(layer).register_full_backward_hook(lambda _module, given, _outer: (given[0] * 2,))


def backward_pre_hook(layer):
    conv_of(layer).register_full_backward_pre_hook(lambda _module, outer: (outer[0] * 3,))


CHANGES = [
    prune_conv, prune_table, weight_norm, weight_norm_parametrization, spectral_norm, spectral_norm_parametrization,
    subclass, subclass_of_embedding, sequential, own_forward, hook, pre_hook, backward_hook, backward_pre_hook,
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("change", CHANGES, ids=lambda one: one.__name__)
def test_what_is_done_to_a_child_has_its_effect(change, name):
    ours, theirs = pair(name)
    compare(ours, theirs, steps=1)
    for one in (ours, theirs):
        change(one)
    compare(ours, theirs)
    told = seqconv.explain(ours, TOKENS)
    assert told.backend == "reference"
    assert told.reasons["numba"] == told.reasons["triton"]
    assert told.reasons["reference"] is None


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("change", [prune_conv, prune_table, weight_norm, spectral_norm])
def test_loaded_weights_are_served_at_once(change, name):
    """And copies, which have their hooks."""
    ours, theirs = pair(name)
    for one in (ours, theirs):
        change(one)
    compare(ours, theirs, steps=1)
    fresh = {key: torch.randn_like(value) if "mask" not in key else value for key, value in ours.state_dict().items()}
    for one in (ours, theirs):
        one.eval()
        one.load_state_dict(fresh)
    with torch.no_grad():
        torch.testing.assert_close(ours(TOKENS), theirs(TOKENS), rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(copy.deepcopy(ours)(TOKENS), theirs(TOKENS), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", NAMES)
def test_hooks_see_what_torchs_modules_would_show_them(name):
    seen = [[], []]
    layers = pair(name)
    for layer, calls in zip(layers, seen, strict=True):
        for child in (layer.embedding, conv_of(layer)):
            child.register_forward_hook(lambda _module, given, result, calls=calls: calls.append((*given, result)))
            child.register_full_backward_hook(lambda _module, given, outer, calls=calls: calls.append((*given, *outer)))
        layer(TOKENS).sum().backward()
    assert len(seen[0]) == len(seen[1]) == 4
    for one, other in zip(*seen, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", NAMES)
def test_global_hooks_are_called_for_the_children(name):
    layer, _ = pair(name)
    seen = []
    handle = nn.modules.module.register_module_forward_hook(lambda module, _given, _result: seen.append(module))
    try:
        assert "hooks on all modules" in seqconv.explain(layer, TOKENS).reasons["numba"]
        layer(TOKENS)
    finally:
        handle.remove()
    convs = list(layer.convs) if name == "convs" else [layer.conv]
    assert seen == [layer.embedding, *convs, layer]
    assert seqconv.explain(layer, TOKENS).backend == "numba"


@pytest.mark.parametrize("name", NAMES)
def test_removing_what_was_done_brings_the_kernels_back(name):
    ours, theirs = pair(name)
    handles = [conv_of(one).register_forward_hook(lambda *_: None) for one in (ours, theirs)]
    for one in (ours, theirs):
        weight_norm_parametrization(one)
        prune_table(one)
    compare(ours, theirs)
    for one, handle in zip((ours, theirs), handles, strict=True):
        handle.remove()
        parametrize.remove_parametrizations(conv_of(one), "weight")
        prune.remove(one.embedding, "weight")
    assert seqconv.explain(ours, TOKENS).backend == "numba"
    compare(ours, theirs)


@pytest.mark.parametrize("name", NAMES)
def test_a_backend_asked_for_by_name_says_why_it_cannot(name):
    layer, _ = pair(name)
    hook(layer)
    for backend in ("numba", "triton"):
        layer.backend = backend
        for call in (lambda: layer(TOKENS), lambda: seqconv.explain(layer, TOKENS)):
            with pytest.raises(
                seqconv.BackendError, match=f"^backend '{backend}' cannot serve embedding_.*: hooks on embedding need"
            ):
                call()
    layer.backend = "reference"
    layer(TOKENS)


def test_reasons_name_the_child():
    layer, _ = pair("convs")
    layer.convs[1] = Doubled(CHANNELS, OUTPUTS, 2).double()
    assert seqconv.explain(layer, TOKENS).reasons["numba"] == "convs[1] is a Doubled, not an nn.Conv1d, and runs itself"
    own_forward(layer)
    assert seqconv.explain(layer, TOKENS).reasons["numba"] == "convs[0] has a forward of its own"


@pytest.mark.parametrize("memory_format", [torch.preserve_format, torch.contiguous_format])
@pytest.mark.parametrize("mode", ["reflect", "circular"])
def test_children_pad_by_themselves(mode, memory_format):
    pool = {"pool_stride": 3, "pool_padding": 1, "ceil_mode": True, "memory_format": memory_format}
    layer = seqconv.EmbeddingConvReLUMaxPool1d(
        WORDS, CHANNELS, OUTPUTS, 3, 2, padding=2, padding_mode=mode, **pool
    ).double()
    before = layer(TOKENS)
    layer.conv.register_forward_hook(lambda *_: None)
    after = layer(TOKENS)
    torch.testing.assert_close(after, before, rtol=1e-10, atol=1e-10)
    assert after.stride() == before.stride()


@pytest.mark.parametrize("name", others_large("convs", "pool", "global"))
def test_compiled_layers_and_their_children(name):
    ours, theirs = pair(name)
    for change in (lambda _: None, pre_hook):
        for one in (ours, theirs):
            change(one)
        torch.compiler.reset()
        result = torch.compile(ours, fullgraph=True, backend="aot_eager")(TOKENS)
        torch.testing.assert_close(result, theirs(TOKENS), rtol=1e-10, atol=1e-10)
