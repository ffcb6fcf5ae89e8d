"""The layers with a batch norm, and layers made from torch's own modules, against those modules."""

import copy
import io
import math
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

import seqconv
from seqconv import (
    ConvBatchNormReLUGlobalMaxPool1d,
    ConvBatchNormReLUMaxPool1d,
    ConvReLUGlobalMaxPool1d,
    ConvReLUMaxPool1d,
    EmbeddingConvReLUGlobalMaxPool1d,
    EmbeddingConvReLUMaxPool1d,
    Windows,
)
from tests.conv_cases import channels_last
from tests.grids import grid

NEAR = {"rtol": 1e-10, "atol": 1e-10}  # float64: sums of at most 200 products of numbers of size 1


class Torchs(nn.Module):
    """The same layer of torch's modules, with the same names."""

    def __init__(self, is_global=False, padding_mode="zeros", **norm):
        super().__init__()
        self.conv = nn.Conv1d(4, 6, 3, padding=1, padding_mode=padding_mode)
        self.norm = nn.BatchNorm1d(6, **norm)
        self.last = nn.Sequential(nn.AdaptiveMaxPool1d(1), nn.Flatten()) if is_global else nn.MaxPool1d(2)

    def forward(self, x):
        return self.last(torch.relu(self.norm(self.conv(x))))


def pair(is_global=False, padding_mode="zeros", **norm):
    """Return seqconv's layer and torch's, of the same parameters and statistics, in float64."""
    torch.manual_seed(2)
    theirs = Torchs(is_global, padding_mode, **norm)
    if norm.get("affine", True):
        nn.init.normal_(theirs.norm.weight)
        nn.init.normal_(theirs.norm.bias)
    options = {f"norm_{name}": value for name, value in norm.items()} | {"padding": 1, "padding_mode": padding_mode}
    ours = ConvBatchNormReLUGlobalMaxPool1d(4, 6, 3, **options)
    if not is_global:
        ours = ConvBatchNormReLUMaxPool1d(4, 6, 3, 2, **options)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ours.load_state_dict(theirs.state_dict())
    return ours.double(), theirs.double()


def inputs():
    return torch.randn(5, 4, 16, dtype=torch.float64)


def compare(ours, theirs, steps=3):
    """Compare outputs, gradients, parameters and statistics through steps of training, then in evaluation mode."""
    optimizers = [torch.optim.SGD(one.parameters(), lr=0.05) for one in (ours, theirs)]
    for _ in range(steps):
        x = inputs()
        leaves = [x.clone().requires_grad_() for _ in range(2)]
        results = [module(leaf) for module, leaf in zip((ours, theirs), leaves, strict=True)]
        torch.testing.assert_close(*results, **NEAR)
        for optimizer, result in zip(optimizers, results, strict=True):
            optimizer.zero_grad()
            result.square().sum().backward()
            optimizer.step()
        torch.testing.assert_close(leaves[0].grad, leaves[1].grad, **NEAR)
        for one, other in zip(ours.state_dict().items(), theirs.state_dict().items(), strict=True):
            assert one[0] == other[0]
            torch.testing.assert_close(one[1], other[1], **NEAR)
    modes = [module.training for module in ours.modules()]
    ours.eval(), theirs.eval()
    with torch.no_grad():
        x = inputs()
        torch.testing.assert_close(ours(x), theirs(x), **NEAR)
    for module, mode in zip(ours.modules(), modes, strict=True):
        module.training = mode


@grid(
    norm=[
        {},
        {"momentum": None},
        {"affine": False, "eps": 0.1},
        {"track_running_stats": False},
        {"momentum": 0.7},
    ],
    is_global=[False, True],
    padding_mode=["zeros", "reflect"],
    floor=["reference", "auto"],
    indirect=["floor"],
)
def test_trains_and_evaluates_as_torch(norm, is_global, padding_mode, floor):
    compare(*pair(is_global, padding_mode, **norm))


@pytest.mark.parametrize("is_global", [False, True])
def test_a_frozen_norm_trains_as_torchs(is_global):
    """Parameters of convolution and norm get the gradients of the fold; statistics stay."""
    ours, theirs = pair(is_global)
    for module in (ours, theirs):
        nn.init.normal_(module.norm.running_mean)
        module.norm.running_var.fill_(0.5)
    theirs.norm.running_mean.copy_(ours.norm.running_mean)
    ours.norm.eval(), theirs.norm.eval()
    compare(ours, theirs)
    assert ours.norm.num_batches_tracked == 0


def changed(layer, how):
    if how == "load":
        layer.load_state_dict({name: one * 0.5 + 1 for name, one in layer.state_dict().items()})
    elif how == "in place":
        with torch.no_grad():
            layer.norm.running_mean.add_(1)
    elif how == "unseen":
        layer.norm.running_var.data.mul_(4)  # no version tells
        layer.conv.weight.data.mul_(2)
    elif how == "replaced":
        layer.norm.running_mean = torch.ones(6, dtype=torch.float64)
        layer.norm.weight = nn.Parameter(torch.full((6,), -2.0, dtype=torch.float64))
    else:
        layer.train()
        layer(inputs())
        layer.eval()


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("how", ["load", "in place", "unseen", "replaced", "train"])
def test_the_fold_follows_what_changes(how, compiled):
    ours, theirs = (one.eval() for one in pair())
    function = torch.compile(ours, backend="eager") if compiled else ours
    x = inputs()
    with torch.no_grad():
        before = function(x)
        changed(ours, how)
        theirs.load_state_dict(ours.state_dict())
        after = function(x)
        torch.testing.assert_close(after, theirs(x), **NEAR)
        assert not torch.allclose(after, before)


def test_the_fold_errs_no_more_than_twice_what_torch_does():
    """In float32, where means are many deviations away from 0, so that the shift takes away most of a number."""
    ratios = []
    for _ in range(9):
        ours, theirs = pair(momentum=1.0)
        for parameter in theirs.parameters():
            nn.init.normal_(parameter)
        x = (inputs() + 10).float()
        with torch.no_grad():
            theirs(x.double())  # its own statistics
            theirs.float().double().eval()
            ours.load_state_dict(theirs.state_dict())
            exact = theirs(x.double())
            mine, other = (float((one.float().eval()(x).double() - exact).norm()) for one in (ours, theirs))
        ratios.append(mine / other)
    assert max(ratios) < 2, ratios


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("training", [False, True])
def test_half_floats(dtype, training):
    ours, theirs = (one.train(training) for one in pair())
    exact = theirs(x := inputs().to(dtype).double())
    result = ours.to(dtype)(x.to(dtype))
    assert result.dtype == dtype
    # Rounded: weights, statistics, the convolution's result and the normalised one, each by half of eps of numbers up
    # to 8.
    torch.testing.assert_close(result.double(), exact, rtol=0, atol=16 * torch.finfo(dtype).eps)


def hook(module):
    module.norm.register_forward_hook(lambda _module, _inputs, output: output * 2)


def pruned(module):
    prune.l1_unstructured(module.conv, "weight", 0.5)


def parametrised(module):
    nn.utils.parametrizations.weight_norm(module.conv)


def another_norm(module):
    module.norm = nn.InstanceNorm1d(6).double()


@pytest.mark.parametrize("change", [hook, pruned, parametrised, another_norm])
def test_children_that_do_more_run_themselves(change):
    ours, theirs = pair()
    change(ours), change(theirs)
    compare(ours, theirs)
    assert seqconv.explain(ours, inputs()).backend == "reference"
    ours.backend = "numba"
    with pytest.raises(seqconv.BackendError):
        ours(inputs())


def test_sync_batch_norm_is_left_to_itself():
    ours, _ = pair()
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(ours)
    assert type(converted.norm) is nn.SyncBatchNorm
    assert "norm is a SyncBatchNorm" in str(seqconv.explain(converted.eval(), inputs()))


def test_says_which_operation_runs_and_changes_nothing():
    ours, _ = pair()
    before = copy.deepcopy(ours.state_dict())
    assert seqconv.explain(ours, inputs()).operation == "conv1d_batch_norm_relu_max_pool1d"
    assert seqconv.explain(ours.eval(), inputs()).operation == "conv1d_relu_max_pool1d"
    assert all(torch.equal(one, before[name]) for name, one in ours.state_dict().items())


@pytest.mark.parametrize("training", [True, False])
def test_takes_windows(training):
    ours, _ = pair()
    ours.train(training)
    series = torch.randn(60, 4, dtype=torch.float64)
    windows = Windows(series, torch.tensor([0, 7, 30]), 10, 2)
    torch.testing.assert_close(ours(windows), ours(windows.gather().transpose(1, 2)), **NEAR)


def test_lengths_go_with_running_statistics():
    ours, _ = pair()
    ours.conv.padding = (0,)
    x, lengths = inputs(), torch.tensor([16, 9, 3, 2, 12])
    with pytest.raises(ValueError, match=r"^lengths must be None where mean and variance are the batch's"):
        ours(x, lengths)
    result = ours.eval()(x, lengths)
    for row, sample, length in zip(result, x, lengths, strict=True):
        kept = ours(sample[None, :, :length])[0] if length > 3 else row[:, :0]
        torch.testing.assert_close(row[:, : kept.size(1)], kept, **NEAR)
        assert not row[:, kept.size(1) :].any()
    assert ours.output_lengths(lengths).tolist() == [7, 3, 0, 0, 5]


@pytest.mark.parametrize("layout", [lambda x: x, channels_last])
@pytest.mark.parametrize("training", [True, False])
def test_keeps_the_memory_format(layout, training):
    ours, _ = pair()
    result = ours.train(training)(layout(inputs()))
    assert (result.transpose(1, 2) if layout is channels_last else result).is_contiguous()
    ours.memory_format = torch.contiguous_format
    assert ours(layout(inputs())).is_contiguous()


def test_copies_and_text():
    layer = ConvBatchNormReLUMaxPool1d(4, 6, 3, 2, norm_eps=0.1, pool_stride=1, backend="reference")
    stream = io.BytesIO()
    torch.save(layer, stream)
    stream.seek(0)
    x = torch.randn(2, 4, 12)
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), torch.load(stream, weights_only=False)):
        assert torch.equal(twin.eval()(x), layer.eval()(x))
        assert repr(twin) == repr(layer)
    for part in ("pool_size=2, pool_stride=1, backend='reference'", "(conv): Conv1d(4, 6", "BatchNorm1d(6, eps=0.1"):
        assert part in repr(layer)


def test_draws_what_torch_draws():
    torch.manual_seed(1)
    ours = ConvBatchNormReLUMaxPool1d(4, 6, 3, 2)
    torch.manual_seed(1)
    assert torch.equal(ours.conv.weight, nn.Conv1d(4, 6, 3).weight)


@pytest.mark.parametrize("training", [True, False])
def test_compiles_to_one_graph(training):
    torch.compiler.reset()
    ours, theirs = (one.train(training) for one in pair())
    compiled = torch.compile(ours, fullgraph=True, backend="eager")
    for _ in range(2):
        x = inputs()
        torch.testing.assert_close(compiled(x), theirs(x), **NEAR)
    torch.testing.assert_close(ours.norm.running_var, theirs.norm.running_var, **NEAR)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"norm_eps": None}, TypeError, "norm_eps must be a number, got None"),
        ({"norm_eps": -1.0}, ValueError, "norm_eps must be at least 0, got -1.0"),
        ({"norm_eps": math.nan}, ValueError, "norm_eps must be at least 0, got nan"),
        ({"norm_momentum": True}, TypeError, "norm_momentum must be a number, got True"),
        ({"norm_affine": "x"}, TypeError, "norm_affine must be True or False, got 'x'"),
        ({"norm_track_running_stats": None}, TypeError, "norm_track_running_stats must be True or False, got None"),
        ({"bias": "no"}, TypeError, "bias must be True or False, got 'no'"),
        ({"pool_size": "2"}, TypeError, "pool_size must be an integer, got '2'"),
    ],
)
def test_options_are_checked(change, error, message):
    options = {"in_channels": 4, "out_channels": 6, "kernel_size": 3} | change
    with pytest.raises(error, match=f"^{message}"):
        ConvBatchNormReLUMaxPool1d(**{"pool_size": 2} | options)
    if "pool_size" not in change:
        with pytest.raises(error, match=f"^{message}"):
            ConvBatchNormReLUGlobalMaxPool1d(**options)


CONV = {"stride": 2, "padding": 1, "groups": 2, "bias": False}
POOL = {"kernel_size": 3, "stride": 1, "padding": 1, "ceil_mode": True}


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_layers_of_modules_share_their_parameters(mode):
    conv, embedding, norm, pool = (
        nn.Conv1d(4, 6, 3, **CONV),
        nn.Embedding(9, 4, 0),
        nn.BatchNorm1d(6),
        nn.MaxPool1d(**POOL),
    )
    getattr(conv, mode)(), getattr(norm, mode)()
    modules = {
        ConvReLUMaxPool1d: (conv, pool),
        ConvReLUGlobalMaxPool1d: (conv,),
        EmbeddingConvReLUMaxPool1d: (embedding, conv, pool),
        EmbeddingConvReLUGlobalMaxPool1d: (embedding, conv),
        ConvBatchNormReLUMaxPool1d: (conv, norm, pool),
        ConvBatchNormReLUGlobalMaxPool1d: (conv, norm),
    }
    for kind, given in modules.items():
        layer = kind.from_torch(*given)
        wanted = {id(one) for module in given for one in module.parameters()}
        assert {id(one) for one in layer.parameters()} == wanted, kind
        assert layer.training == (mode == "train")
        x = torch.randint(9, (3, 20)) if embedding in given else torch.randn(3, 4, 20)
        rows = embedding(x).transpose(1, 2) if embedding in given else x
        state_before = None if norm not in given else copy.deepcopy(norm.state_dict())
        result = layer(x)
        if state_before is not None:
            norm.load_state_dict(state_before)
        expected = torch.relu(norm(conv(rows)) if norm in given else conv(rows))
        expected = pool(expected) if pool in given else expected.max(-1).values
        # float32 sums of 6 products; the norm's of 30
        torch.testing.assert_close(result, expected, rtol=0, atol=1e-5)


def test_layers_of_modules_draw_nothing():
    conv, norm, pool = nn.Conv1d(4, 6, 3), nn.BatchNorm1d(6), nn.MaxPool1d(2)
    state = torch.get_rng_state()
    ConvReLUMaxPool1d.from_torch(conv, pool)
    ConvBatchNormReLUMaxPool1d.from_torch(conv, norm, pool)
    assert torch.equal(torch.get_rng_state(), state)


class Doubled(nn.Conv1d):
    def forward(self, input):
        return 2 * super().forward(input)


def hooked(module):
    module.register_forward_hook(lambda _module, _inputs, output: output)
    return module


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: ConvReLUMaxPool1d.from_torch(Doubled(4, 6, 3), nn.MaxPool1d(2)), TypeError,
         "conv must be an nn.Conv1d, got Doubled"),
        (lambda: ConvReLUMaxPool1d.from_torch(hooked(nn.Conv1d(4, 6, 3)), nn.MaxPool1d(2)), ValueError,
         "conv must do no more than its class: hooks on conv"),
        (lambda: ConvReLUMaxPool1d.from_torch(nn.Conv1d(4, 6, 3), hooked(nn.MaxPool1d(2))), ValueError,
         "pool must do no more than its class: hooks on pool"),
        (lambda: ConvReLUMaxPool1d.from_torch(nn.Conv1d(4, 6, 3), nn.AvgPool1d(2)), TypeError,
         "pool must be an nn.MaxPool1d, got AvgPool1d"),
        (lambda: ConvReLUMaxPool1d.from_torch(nn.Conv1d(4, 6, 3), nn.MaxPool1d(2, return_indices=True)), ValueError,
         "pool must have return_indices=False, got True"),
        (lambda: ConvBatchNormReLUGlobalMaxPool1d.from_torch(nn.Conv1d(4, 6, 3), nn.SyncBatchNorm(6)), TypeError,
         "norm must be an nn.BatchNorm1d, got SyncBatchNorm"),
        (lambda: ConvBatchNormReLUGlobalMaxPool1d.from_torch(nn.Conv1d(4, 6, 3), nn.InstanceNorm1d(6)), TypeError,
         "norm must be an nn.BatchNorm1d, got InstanceNorm1d"),
        (lambda: ConvBatchNormReLUGlobalMaxPool1d.from_torch(nn.Conv1d(4, 6, 3), nn.BatchNorm1d(5)), ValueError,
         "norm must have num_features = conv.out_channels = 6, got 5"),
        (lambda: EmbeddingConvReLUGlobalMaxPool1d.from_torch(nn.Embedding(9, 5), nn.Conv1d(4, 6, 3)), ValueError,
         "conv must have in_channels = embedding.embedding_dim = 5, got 4"),
        (lambda: EmbeddingConvReLUGlobalMaxPool1d.from_torch(nn.Embedding(9, 4, sparse=True), nn.Conv1d(4, 6, 3)),
         ValueError, "sparse must be False"),
    ],
)  # fmt: skip
def test_other_modules_are_refused_by_name(make, error, message):
    with pytest.raises(error, match=f"^{message}"):
        make()
