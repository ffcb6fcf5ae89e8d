"""``Stream`` against ``sliding_inference``."""

import copy
import pickle

import pytest
import torch
from torch import nn

from seqconv import Stream, sliding_inference
from seqconv.models import ConvGRU, JenaConvnet


def convnet(columns=3):
    """Its last position is of no use: results are known before a window is complete, and must wait."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv1d(columns, 4, 3, padding=1), nn.ReLU(), nn.MaxPool1d(3), nn.Conv1d(4, 4, 2), nn.GELU(), nn.Flatten(),
        nn.Linear(8, 2),
    ).eval()  # fmt: skip


@pytest.fixture(params=["numba", "reference"])
def backend(request):
    return request.param


class Hybrid(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.gru = nn.Conv1d(3, 4, 3), nn.GRU(4, 5, batch_first=True)

    def forward(self, x):
        found, last = self.gru(torch.relu(self.conv(x)).transpose(1, 2))
        return found[:, -1], last.transpose(0, 1)


class Normed(nn.Module):
    """A rowwise function with parameters, and a part that runs window by window."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm, self.gru = nn.Conv1d(3, 4, 3), nn.LayerNorm(4), nn.GRU(4, 2, batch_first=True)

    def forward(self, x):
        return self.gru(self.norm(self.conv(x).transpose(1, 2)))[0][:, -1]


@pytest.mark.parametrize("step", [1, 3])
@pytest.mark.parametrize("blocks", [[1], [7, 1, 1, 30, 2], [100]])
def test_every_window_once_its_last_row_is_there(backend, step, blocks):
    model, series = convnet(), torch.randn(150, 3)
    wanted = sliding_inference(model, series, length=11, step=step)
    stream, found, at, span = Stream(model, length=11, step=step, backend=backend), [], 0, 10 * step
    turn = 0
    while at < len(series):
        size = blocks[turn % len(blocks)]
        block = series[at : at + size]
        before, at, turn = at, at + len(block), turn + 1
        outputs = stream.extend(block)
        complete = max(0, at - span) - max(0, before - span)
        assert (0 if outputs is None else len(outputs)) == complete
        found += [] if outputs is None else [outputs]
        assert stream.rows == at
    torch.testing.assert_close(torch.cat(found), wanted)


def test_push_gives_the_newest(backend):
    model, series = convnet(), torch.randn(60, 3)
    wanted = sliding_inference(model, series, length=11)
    stream = Stream(model, length=11, backend=backend)
    assert stream.push(series[:10]) is None
    torch.testing.assert_close(stream.push(series[10]), wanted[0])
    torch.testing.assert_close(stream.push(series[11:20].tolist()), wanted[9])
    assert stream.push(series[20:20]) is None
    torch.testing.assert_close(stream.push(series[20:].double().numpy()), wanted[-1])


def test_many_streams_at_once(backend):
    model, series = JenaConvnet().eval(), torch.randn(5, 600, 14)
    stream = Stream(model, length=80, step=2, streams=5, backend=backend)
    wanted = torch.stack(sliding_inference(model, list(series), length=80, step=2))
    first = stream.extend(series[:, :400])
    rest = [stream.push(series[:, i]) for i in range(400, 600)]
    torch.testing.assert_close(torch.cat([first, torch.stack(rest, 1)], 1), wanted)


def test_several_outputs_and_a_recurrent_part(backend):
    model, series = Hybrid().eval(), torch.randn(40, 3)
    wanted = sliding_inference(model, series, length=8)
    stream = Stream(model, length=8, backend=backend)
    for i in range(40):
        found = stream.push(series[i])
    torch.testing.assert_close(found, tuple(one[-1] for one in wanted))
    model = ConvGRU().eval()
    series = torch.randn(500, 14)
    torch.testing.assert_close(
        Stream(model, length=60, step=6, backend=backend).extend(series),
        sliding_inference(model, series, length=60, step=6),
    )


@pytest.mark.parametrize("rows", [0, 4, 25, 90])
@pytest.mark.parametrize("other", ["numba", "reference"])
def test_a_state_goes_on_elsewhere(backend, other, rows, tmp_path):
    model, series = convnet(), torch.randn(150, 3)
    one = Stream(model, length=11, step=2, backend=backend)
    one.extend(series[:rows])
    torch.save(one.state_dict(), tmp_path / "state")
    wanted = one.extend(series[rows:])
    two = Stream(model, length=11, step=2, backend=other)
    two.extend(series[:77])
    two.load_state_dict(torch.load(tmp_path / "state"))
    assert two.rows == rows
    torch.testing.assert_close(two.extend(series[rows:]), wanted)


def test_a_state_is_a_copy():
    model, series = convnet(), torch.randn(150, 3)
    stream = Stream(model, length=11)
    stream.extend(series[:50])
    state = stream.state_dict()
    kept = copy.deepcopy(state)
    stream.extend(series[50:])
    torch.testing.assert_close(state["recent"], kept["recent"])


@pytest.mark.parametrize("how", [copy.copy, copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))])
def test_copies_go_on_by_themselves(backend, how):
    model, series = convnet(), torch.randn(90, 3)
    wanted = sliding_inference(model, series, length=11)
    stream = Stream(model, length=11, backend=backend)
    stream.extend(series[:40])
    other = how(stream)
    for i in range(40, 90):
        if i == 60:  # from here on by itself
            other.push(series[0])
        found = stream.push(series[i])
        torch.testing.assert_close(found, wanted[i - 10])
        if i < 60:
            torch.testing.assert_close(other.push(series[i]), found)


def test_reset_begins_anew():
    model, series = convnet(), torch.randn(50, 3)
    stream = Stream(model, length=11)
    wanted = stream.extend(series)
    stream.reset()
    assert stream.rows == 0
    torch.testing.assert_close(stream.extend(series), wanted)


@pytest.mark.parametrize("make", [convnet, lambda: Normed().eval()])
def test_it_is_of_the_model_as_it_was(make):
    model, series = make(), torch.randn(50, 3)
    stream = Stream(model, length=11)
    wanted = sliding_inference(model, series, length=11)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    torch.testing.assert_close(stream.extend(series), wanted)


class TestRefusals:
    @pytest.mark.parametrize(
        ("options", "error", "words"),
        [
            ({"length": 0}, ValueError, "length must be at least 1"),
            ({"length": 11, "streams": 0}, ValueError, "streams must be at least 1"),
            ({"length": 11, "columns": 2}, ValueError, "it takes 3 channels"),
            ({"length": 11, "layout": "C"}, ValueError, "layout must be one of"),
            ({"length": 11, "backend": "gpu"}, ValueError, "backend must be one of"),
        ],
    )
    def test_arguments(self, options, error, words):
        with pytest.raises(error, match=words):
            Stream(convnet(), **options)

    def test_models(self):
        with pytest.raises(TypeError, match=r"model must be a torch.nn.Module"):
            Stream(torch.relu, length=3)
        with pytest.raises(ValueError, match="columns must be given"):
            Stream(nn.Linear(3, 3), length=3)

    @pytest.mark.parametrize(
        ("rows", "error"),
        [
            (torch.randn(4), ValueError),
            (torch.randn(2, 4), ValueError),
            (torch.randn(1, 2, 3), ValueError),
            (torch.zeros(3, dtype=torch.bool), TypeError),
            ("abc", TypeError),
            (None, TypeError),
        ],
    )
    def test_rows(self, rows, error):
        stream = Stream(convnet(), length=11)
        with pytest.raises(error, match="rows must"):
            stream.push(rows)
        assert stream.rows == 0

    def test_rows_of_several_streams(self):
        stream = Stream(convnet(), length=11, streams=2)
        with pytest.raises(ValueError, match=r"rows must have shape \(2, 3\) or \(2, n, 3\), got \(3,\)"):
            stream.push(torch.randn(3))

    def test_states(self):
        stream, other = Stream(convnet(), length=11), Stream(convnet(), length=11, step=2)
        other.extend(torch.randn(30, 3))
        stream.extend(torch.randn(30, 3))
        for state in (
            other.state_dict(),
            {},
            None,
            {**stream.state_dict(), "rows": 3},
            {**stream.state_dict(), "window": (11,)},
        ):
            with pytest.raises(ValueError, match="state must be"):
                stream.load_state_dict(state)
        assert stream.rows == 30
