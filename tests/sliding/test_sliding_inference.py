"""``sliding_inference`` against the model itself on batches of all windows."""

import random

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import seqconv
from seqconv import sliding_inference
from seqconv.data import SlidingWindows
from seqconv.models import ConvGRU, JenaConvnet, JenaGRU, WindowSource
from tests.sliding.models import batched, random_model

REASONS = "nothing in front of it is shared", "it changes in place what is used elsewhere"


def leaves(output):
    return output if isinstance(output, tuple) else (output,)


@pytest.mark.parametrize("backend", ["numba", "reference"])
@settings(max_examples=80, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_random_models_equal_batches_or_are_refused(backend, seed):
    """In float64, so that a sum in another order is no difference: 1e-9 of numbers about 1."""
    draw = random.Random(seed + 1)
    columns, length, step = draw.randint(1, 5), draw.randint(1, 40), draw.randint(1, 4)
    model = random_model(seed, columns, length)
    if model is None:
        return
    model = model.double()
    series = torch.randn((length - 1) * step + draw.randint(1, 60), columns, dtype=torch.float64)
    chunk = draw.choice([None, 1, 7])
    try:
        found = sliding_inference(model, series, length=length, step=step, layout="NCL", chunk=chunk, backend=backend)
    except ValueError as error:
        if not any(reason in str(error) for reason in REASONS):
            raise
        return
    wanted = batched(model, series, length, step)
    for one, other in zip(leaves(found), leaves(wanted), strict=True):
        assert one.shape == other.shape
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9, equal_nan=True)


@pytest.mark.parametrize("make", [JenaConvnet, ConvGRU])
@pytest.mark.parametrize("threads", [1, 3])
def test_errors_of_float32_are_at_most_twice_torchs(make, threads):
    torch.manual_seed(0)
    torch.set_num_threads(threads)
    model = make().eval()
    series = torch.randn(1434 + 7000, 14)
    found = sliding_inference(model, series, length=240, step=6)
    places = torch.randint(0, 7000, (300,))
    windows = torch.stack([series[i : i + 1435 : 6] for i in places.tolist()])
    assert found.shape == (7000,)
    with torch.no_grad():
        torchs, exact = make.forward(model, windows), model.double()(windows.double())
    ours, theirs = ((one.double() - exact).abs() for one in (found[places], torchs))
    assert ours.max() <= 2 * theirs.max() + 1e-7
    assert ours.mean() <= 2 * theirs.mean() + 1e-8


def test_batch_norm_is_folded():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv1d(3, 8, 3), nn.BatchNorm1d(8), nn.ReLU(), nn.Conv1d(8, 8, 3), nn.ReLU(), nn.BatchNorm1d(8),
        seqconv.ConvBatchNormReLUMaxPool1d(8, 4, 3, 2), seqconv.ConvReLUGlobalMaxPool1d(4, 5, 3),
    ).eval()  # fmt: skip
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    series = torch.randn(200, 3)
    torch.testing.assert_close(sliding_inference(model, series, length=30), batched(model, series, 30, 1))


@pytest.mark.parametrize("style", ["modules", "fused", "compiled"])
def test_plain_and_fused_models_alike(style):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv1d(4, 8, 5), nn.ReLU(), nn.MaxPool1d(3), nn.Conv1d(8, 8, 3, padding=1), nn.ReLU(),
        nn.AdaptiveMaxPool1d(1), nn.Flatten(), nn.Linear(8, 2),
    ).eval()  # fmt: skip
    series = torch.randn(150, 4)
    used = {"modules": model, "fused": seqconv.fuse(model), "compiled": model}[style]
    torch.testing.assert_close(sliding_inference(used, series, length=50, step=2), batched(model, series, 50, 2))


def test_infinities_and_nan_are_where_batches_have_them(floor):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv1d(2, 4, 3, padding=1), nn.ReLU(), nn.MaxPool1d(7, 1), nn.Conv1d(4, 3, 2), nn.ReLU(), nn.AvgPool1d(2),
    ).eval()  # fmt: skip
    series = torch.randn(120, 2)
    series[40, 1], series[80, 0], series[100, 0] = torch.nan, torch.inf, -torch.inf
    found, wanted = sliding_inference(model, series, length=20, step=2), batched(model, series, 20, 2)
    assert wanted.isnan().any()
    torch.testing.assert_close(found, wanted, equal_nan=True)


def model_of(columns=3):
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv1d(columns, 4, 3), nn.ReLU(), nn.MaxPool1d(2), nn.Flatten(), nn.Linear(16, 1)).eval()


class TestSeries:
    def test_arrays_frames_maps_and_strides_give_the_same(self, tmp_path):
        model, series = model_of(), torch.randn(60, 3)
        wanted = batched(model, series, 10, 1)
        array = np.asarray(series)
        mapped = np.memmap(tmp_path / "series", np.float32, "w+", shape=array.shape)
        mapped[:] = array
        wide = np.zeros((120, 6), np.float32)
        wide[::2, ::2] = array
        for one in (series, array, mapped, pd.DataFrame(array), wide[::2, ::2], series.T.contiguous().T):
            torch.testing.assert_close(sliding_inference(model, one, length=10), wanted)

    def test_float64_rows_are_rounded_to_the_models_dtype(self):
        model, series = model_of(), torch.randn(60, 3, dtype=torch.float64)
        found = sliding_inference(model, series, length=10)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, batched(model, series.float(), 10, 1))

    def test_one_column_may_go_without_an_axis(self):
        model, series = model_of(1), torch.randn(60)
        torch.testing.assert_close(sliding_inference(model, series, length=10), batched(model, series[:, None], 10, 1))

    def test_several(self):
        model, many = model_of(), [torch.randn(rows, 3) for rows in (10, 40, 25)]
        found = sliding_inference(model, many, length=10)
        for one, series in zip(found, many, strict=True):
            torch.testing.assert_close(one, batched(model, series, 10, 1))

    @pytest.mark.parametrize("backend", ["numba", "reference"])
    @pytest.mark.parametrize("chunk", [1, 13, 4000])
    def test_every_number_of_windows_in_every_chunk(self, backend, chunk):
        model = model_of()
        for rows in (10, 11, 12, 100, 700):
            series = torch.randn(rows, 3)
            found = sliding_inference(model, series, length=10, chunk=chunk, backend=backend)
            torch.testing.assert_close(found, batched(model, series, 10, 1))

    def test_the_bits_do_not_depend_on_threads_or_chunks(self):
        torch.manual_seed(0)
        model, series = JenaConvnet().eval(), torch.randn(20_000, 14)
        found = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found += [sliding_inference(model, series, length=240, step=6, chunk=chunk) for chunk in (None, 1000)]
        for one in found[1:]:
            assert torch.equal(one, found[0])


class TestStarts:
    @pytest.mark.parametrize(
        "starts", [[0], [0, 500, 490, 200, 203, 1000], [5, 3, 3, 30], list(range(0, 40, 4)), list(range(3, 40, 2)), []]
    )
    def test_chosen_windows_in_their_order(self, starts):
        model, series = model_of(), torch.randn(1100, 3)
        found = sliding_inference(model, series, length=10, step=4, starts=starts)
        torch.testing.assert_close(found, batched(model, series, 10, 4)[torch.tensor(starts, dtype=torch.long)])

    def test_groups_leave_out_windows_with_a_change(self):
        model, series = model_of(), torch.randn(80, 3)
        groups = np.repeat([0, 1, 0], [30, 9, 41])
        found = sliding_inference(model, series, length=10, step=1, groups=groups)
        loader = SlidingWindows(series, lookback=10, delay=-1, groups=groups, batch_size=None)
        with torch.no_grad():
            wanted = torch.cat([model(window.T[None]) for window, _ in loader])
        torch.testing.assert_close(found, wanted)

    def test_a_source_takes_starts(self):
        torch.manual_seed(0)
        series = torch.randn(2000, 14)
        model = JenaConvnet(source=WindowSource(series, 240, 6)).eval()
        wanted = batched(JenaConvnet.forward.__get__(model), series, 240, 6, "NLC")
        torch.testing.assert_close(sliding_inference(model, series, length=240, step=6), wanted)
        some = sliding_inference(model, series, length=240, step=6, starts=[3, 15, 9])
        torch.testing.assert_close(some, wanted[[3, 15, 9]])
        with pytest.raises(ValueError, match="its windows are 240 rows, 6 apart, not 120 rows, 6 apart"):
            sliding_inference(model, series, length=120, step=6)


class Mixing(nn.Module):
    def __init__(self, how):
        super().__init__()
        self.conv, self.how = nn.Conv1d(3, 4, 3), how
        self.norm = nn.BatchNorm1d(4, track_running_stats=False)

    def forward(self, x):
        y = self.conv(x)
        if self.how == "mean":
            return y.max(-1).values - y.max(-1).values.mean()
        if self.how == "norm":
            return self.norm(y).amax(2)
        if self.how == "windows":
            return y.amax(2).flip(0)
        if self.how == "number":
            return y.amax(2) * x.size(0)
        return y.amax(2).sum(0)


class TestRefusals:
    @pytest.mark.parametrize(
        ("how", "name"), [("mean", "mean"), ("norm", "norm"), ("windows", "flip"), ("number", "mul"), ("sum", "sum")]
    )
    def test_windows_that_depend_on_each_other(self, how, name):
        with pytest.raises(ValueError, match=f"{name}: its result for a window depends on the other windows"):
            sliding_inference(Mixing(how).eval(), torch.randn(40, 3), length=10)

    def test_in_place_on_what_is_used_elsewhere(self):
        class Model(nn.Module):
            def __init__(self):
                super().__init__()
                self.conv = nn.Conv1d(3, 3, 3, padding=1)

            def forward(self, x):
                y = self.conv(x)
                z = F.relu(y.transpose(1, 2), inplace=True)
                return y + z.transpose(1, 2)

        with pytest.raises(ValueError, match="it changes in place what is used elsewhere, too"):
            sliding_inference(Model().eval(), torch.randn(40, 3), length=10)

    @pytest.mark.parametrize("module", [nn.Dropout(0.5), nn.BatchNorm1d(4)])
    def test_training_mode(self, module):
        model = nn.Sequential(nn.Conv1d(3, 4, 3), module)
        with pytest.raises(ValueError, match=f"1: a {type(module).__name__} in training mode: call model.eval()"):
            sliding_inference(model, torch.randn(40, 3), length=10)

    def test_a_model_that_shares_nothing(self):
        report = sliding_inference.check(JenaGRU().eval(), columns=14, length=240)
        assert not report
        assert "gru: windows do not share a GRU, and nothing in front of it is shared" in str(report)

    def test_a_forward_pass_that_cannot_be_traced(self):
        class Model(nn.Module):
            def __init__(self):
                super().__init__()
                self.inner = nn.Conv1d(3, 4, 3)

            def forward(self, x):
                return self.inner(x) if x.sum() > 0 else x

        with pytest.raises(ValueError, match="the model: its forward pass cannot be traced"):
            sliding_inference(Model().eval(), torch.randn(40, 3), length=10)

    def test_hooks_are_not_passed_over(self):
        model = model_of()
        model[0].register_forward_hook(lambda _module, _input, output: output * 2)
        series = torch.randn(40, 3)
        with pytest.raises(
            ValueError, match=r"0: windows do not share a Conv1d \(hooks need the module's own call\), and nothing"
        ):
            sliding_inference(model, series, length=10)
        model = model_of()
        model[4].register_forward_hook(lambda _module, _input, output: output * 2)
        torch.testing.assert_close(sliding_inference(model, series, length=10), batched(model, series, 10, 1))

    def test_a_layout_either_way(self):
        model, series = nn.Sequential(nn.Conv1d(5, 2, 3), nn.ReLU()).eval(), torch.randn(40, 5)
        with pytest.raises(ValueError, match="layout must be 'NCL' or 'NLC'"):
            sliding_inference(nn.Sequential(nn.ReLU(), nn.Conv1d(5, 2, 3)).eval(), series[:, :5], length=5)
        torch.testing.assert_close(
            sliding_inference(model, series, length=5, layout="NCL"), batched(model, series, 5, 1)
        )

    @pytest.mark.parametrize(
        ("options", "error", "words"),
        [
            ({"length": 0}, ValueError, "length must be at least 1"),
            ({"length": 10, "step": 0}, ValueError, "step must be at least 1"),
            ({"length": 60}, ValueError, "series must have the 60 rows of a window, got 40"),
            ({"length": 10, "starts": [31]}, ValueError, "starts must be from 0 to 30"),
            ({"length": 10, "starts": [-1]}, ValueError, "starts must be from 0 to 30"),
            ({"length": 10, "starts": [0.5]}, TypeError, "starts must be whole numbers"),
            ({"length": 10, "groups": [0, 1]}, ValueError, r"groups must have shape \(40,\)"),
            ({"length": 10, "chunk": 0}, ValueError, "chunk must be at least 1"),
            ({"length": 10, "layout": "LNC"}, ValueError, "layout must be one of auto, NCL, NLC, got 'LNC'"),
            ({"length": 10, "backend": "cuda"}, ValueError, "backend must be one of"),
            ({"length": 10, "progress": 1}, TypeError, "progress must be"),
        ],
    )
    def test_arguments(self, options, error, words):
        with pytest.raises(error, match=words):
            sliding_inference(model_of(), torch.randn(40, 3), **options)

    def test_a_series_that_does_not_fit(self):
        with pytest.raises(ValueError, match=r"0: it takes 3 channels, and is given shape \(N, 2, 10\)"):
            sliding_inference(model_of(), torch.randn(40, 2), length=10)
        with pytest.raises(TypeError, match="series must be float32 or float64"):
            sliding_inference(model_of(), torch.zeros(40, 3, dtype=torch.int32), length=10)
        with pytest.raises(TypeError, match=r"model must be a torch.nn.Module, got function"):
            sliding_inference(lambda x: x, torch.randn(40, 3), length=10)


class TestCheck:
    def test_tells_what_is_shared(self):
        report = sliding_inference.check(ConvGRU().eval(), length=240)
        assert report
        assert report.shared == ("first", "second")
        assert "recurrent.gru" in report.by_window
        assert "window by window: recurrent.gru" in str(report)

    def test_finds_a_length(self):
        assert sliding_inference.check(JenaConvnet().eval())
        report = sliding_inference.check(model_of())
        assert not report
        assert "pass length=" in report.reason
        assert sliding_inference.check(model_of(), length=10)
