"""Models that are easily computed wrong by rows: their numbers are those of batches, or they are refused."""

import gc
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import seqconv
from seqconv import sliding_inference
from tests.sliding.models import batched


class Of(nn.Module):
    """A convolution and whatever else a function does with it."""

    def __init__(self, function):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.gru = nn.Conv1d(3, 8, 3), nn.GRU(8, 8, batch_first=True)
        self.place, self.gain = nn.Parameter(torch.randn(8, 40)), nn.Parameter(torch.randn(8))
        self.register_buffer("count", torch.zeros(8))
        self.relu = nn.ReLU(inplace=True)
        self.function = function

    def forward(self, x):
        return self.function(self, x, self.conv(x))


def changed(change):
    def run(_self, _x, y):
        change(y)
        return y.amax(2)

    return run


def in_graph_order(_self, _x, y):
    b = torch.log2(y.clone().abs() + 1)
    return (y.sigmoid_() + b).amax(2)


def behind_gru(change):
    def run(self, _x, y):
        h = self.gru(y.transpose(1, 2))[0]
        change(self, h)
        return h[:, -1]

    return run


def two_positions(_self, _x, y):
    return y[:, :, 0].sigmoid_() + y[:, :, 5]


def a_copy(_self, _x, y):
    a = y.amax(2)
    return a + a.clone().sigmoid_()


def of_buffer(self, _x, y):
    n = self.count
    n += 1
    return y.amax(2) + n


REFUSED_OR_RIGHT = {
    "abs_": changed(lambda y: y.abs_()),
    "copy_": changed(lambda y: y.copy_(y * 2)),
    "out": changed(lambda y: torch.add(y, 1, out=y)),
    "data": changed(lambda y: y.data.mul_(2)),
    "a view nobody knows": changed(lambda y: y.unsqueeze(-1).add_(1)),
    "expanded": changed(lambda y: y.expand_as(y).mul_(3)),
    "unbound": changed(lambda y: y.unbind(2)[0].mul_(3)),
    "graph order": in_graph_order,
    "behind a GRU": behind_gru(lambda _self, h: h.mul_(2)),
    "behind a GRU, by a function": behind_gru(lambda _self, h: F.relu(h, inplace=True)),
    "behind a GRU, by position": behind_gru(lambda _self, h: F.relu(h, True)),
    "behind a GRU, by a module": behind_gru(lambda self, h: self.relu(h)),
    "two positions": two_positions,
    "a copy": a_copy,
    "a buffer": of_buffer,
    "counted": lambda self, _x, y: (self.count.add_(1), y.amax(2))[1],
    "random": lambda _self, _x, y: y.amax(2) + torch.randn(8),
    "softmax of several axes": lambda _self, _x, y: y.amax(2).view(-1, 4, 2).softmax(-1),
    "softmax, flattened": lambda _self, _x, y: y.amax(2).view(-1, 4, 2).softmax(-1).flatten(1),
    "a mask over windows": lambda _self, x, y: torch.where((x.abs() < 20).all(0).all(0)[:30], y[:, :, :30], 0.0).amax(
        2
    ),
    "NaN anywhere": lambda _self, x, y: y.amax(2) * torch.isnan(x).any(),
    "positional": lambda self, _x, y: y + self.place[:, : y.size(2)],
    "computed of parameters": lambda self, _x, y: y * (self.gain * 2).exp().view(8, 1),
    "methods of parameters": lambda self, _x, y: y + self.gain.unsqueeze(-1),
    "by window, of parameters": lambda self, _x, y: self.gru(y.transpose(1, 2))[0] * torch.exp(self.gain),
    "positions counted": lambda _self, _x, y: y * torch.arange(y.size(2)),
    "with None": lambda _self, _x, y: (y, None),
    "with a number": lambda _self, _x, y: (y, 3),
    "with the batch's size": lambda _self, x, y: (y, x.size(0)),
    "with a parameter": lambda self, _x, y: (y, self.gain),
    "a dictionary": lambda _self, _x, y: {"maxima": y.amax(2), "means": y.mean(2)},
    "dtype": lambda _self, x, y: y.amax(2) if x.dtype == torch.float64 else y.amin(2),
    "cast": lambda _self, x, y: y.float().amax(2).to(torch.float32),
    "moved": lambda _self, _x, y: y.movedim(1, 2).mean(1),
    "wide padding": lambda self, _x, y: F.conv1d(y, self.place[:, :24].reshape(8, 8, 3), self.gain, padding=7).amax(2),
    "greater of two": lambda _self, _x, y: torch.maximum(y, -y).amax(2),
}


@pytest.mark.parametrize("name", REFUSED_OR_RIGHT)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equal_or_refused(name, dtype):
    model, series = Of(REFUSED_OR_RIGHT[name]).eval().to(dtype), torch.randn(70, 3, dtype=dtype)
    buffer = model.count.clone()
    try:
        found = sliding_inference(model, series, length=33, layout="NCL")
    except ValueError as error:
        assert "model cannot be evaluated on all windows at once" in str(error)  # noqa: PT017
        found = None
    assert torch.equal(model.count, buffer)
    if found is not None:
        torch.testing.assert_close(found, batched(model, series, 33, 1))


COMMON = (
    "positional", "computed of parameters", "methods of parameters", "by window, of parameters", "positions counted",
    "a dictionary", "moved", "wide padding", "greater of two",
)  # fmt: skip


@pytest.mark.parametrize("name", COMMON)
def test_common_models_are_served(name):
    assert sliding_inference.check(Of(REFUSED_OR_RIGHT[name]).eval(), length=33, layout="NCL")


def test_a_layer_of_ones_own_is_not_taken_for_what_it_is_made_of():
    class Twice(seqconv.ConvReLUGlobalMaxPool1d):
        def forward(self, input, lengths=None):
            return 2 * super().forward(input, lengths)

    torch.manual_seed(0)
    model, series = nn.Sequential(nn.Conv1d(3, 4, 3), Twice(4, 5, 3)).eval(), torch.randn(60, 3)
    torch.testing.assert_close(sliding_inference(model, series, length=20), batched(model, series, 20, 1))


def test_as_many_columns_as_rows_need_a_layout():
    class Centred(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv1d(32, 8, 3)

        def forward(self, x):
            return self.conv(x - x.mean(1, keepdim=True)).amax(2)

    with pytest.raises(ValueError, match="layout must be 'NCL' or 'NLC'"):
        sliding_inference(Centred().eval(), torch.randn(60, 32), length=32)


def test_weight_norm_by_hooks_is_read():
    torch.manual_seed(0)
    with pytest.warns(FutureWarning):
        conv = nn.utils.weight_norm(nn.Conv1d(3, 4, 3, padding=4, dilation=2))
    model, series = nn.Sequential(conv, nn.ReLU(), nn.AdaptiveMaxPool1d(1)).eval(), torch.randn(60, 3)
    with torch.no_grad():
        conv.weight_g *= 2
    torch.testing.assert_close(sliding_inference(model, series, length=20), batched(model, series, 20, 1))


def test_hooks_of_all_modules_are_not_passed_over():
    handle = nn.modules.module.register_module_forward_hook(lambda _module, _input, output: output * 2)
    try:
        with pytest.raises(ValueError, match="there are hooks of all modules"):
            sliding_inference(nn.Sequential(nn.Conv1d(3, 4, 3)).eval(), torch.randn(60, 3), length=20)
    finally:
        handle.remove()


def test_what_is_found_is_tried_on_the_model(monkeypatch):
    """A fault in what is known of torch shows, whatever it is."""
    from seqconv.sliding.operations import Operations

    model = nn.Sequential(nn.Conv1d(3, 4, 3), nn.LeakyReLU(), nn.AdaptiveAvgPool1d(1)).eval()
    monkeypatch.setattr(Operations, "adaptive_avg_pool1d", lambda self, value, _size: self.max_pool1d(value, 18))
    with pytest.raises(ValueError, match="by rows its output is another"):
        sliding_inference(model, torch.randn(60, 3), length=20)


class Switched(nn.Module):
    """What it computes depends on an attribute, on its class, and on its child."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.mean = nn.Conv1d(3, 4, 3), False

    def forward(self, x):
        y = self.conv(x)
        return y.mean(2) if self.mean else y.amax(2)


def test_changes_of_a_model_show():
    model, series = Switched().eval(), torch.randn(40, 3)

    def are_equal():
        torch.testing.assert_close(sliding_inference(model, series, length=20), batched(model, series, 20, 1))

    are_equal()
    are_equal()
    model.mean = True
    are_equal()
    model.conv = nn.Conv1d(3, 4, 5, padding=2)
    are_equal()
    model.conv.weight = nn.Parameter(torch.randn(4, 3, 5))
    are_equal()
    model.conv.weight.data.normal_()
    are_equal()
    model.conv.padding_mode = "circular"
    model.conv._reversed_padding_repeated_twice = (2, 2)
    are_equal()


def test_models_are_not_kept_alive():
    model = Switched().eval()
    sliding_inference(model, torch.randn(40, 3), length=20)
    reference = weakref.ref(model)
    del model
    gc.collect()
    assert reference() is None
