"""``seqconv.prepare``: the numbers of the model, whatever happens to it between calls."""

from __future__ import annotations

import copy
import pickle
import threading

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import seqconv
from seqconv.fusion.calls import FrozenCall
from tests.fusion.test_writes import WRITES, Model, made, memory, training


def frozen_calls(prepared):
    runs = [variant.run for variant in prepared.variants if hasattr(variant.run, "__func__")]
    return [one for run in runs for one in run.__func__.__globals__.values() if isinstance(one, FrozenCall)]


def close(found, expected):
    # Float32 rounding of sums of 15 and 24 terms, through scales of about 2: far below 1e-4 of the values.
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("fused", [False, True], ids=["plain", "fused"])
def test_the_models_numbers_without_gradients(fused):
    plain = made()
    model = seqconv.fuse(plain) if fused else plain
    x = torch.randn(1, 3, 40)
    prepared = seqconv.prepare(model, x)
    for shape in ((1, 3, 40), (5, 3, 40), (1, 3, 23), (1, 3, 40)):
        for layout in (lambda x: x, lambda x: x.permute(2, 0, 1).contiguous().permute(1, 2, 0)):
            given = layout(torch.randn(shape)).requires_grad_()
            for _ in range(3):
                output = prepared(given)
                close(output, plain(given))
                assert not output.requires_grad
    assert frozen_calls(prepared)
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("write", [one for one in WRITES if one not in (memory, training)])
def test_the_next_call_sees_a_write(write):
    model, x = made(), torch.randn(4, 3, 40)
    prepared = seqconv.prepare(model, x)
    close(prepared(x), model(x))
    write(model)
    for _ in range(3):
        close(prepared(x), model(x))


def test_steps_of_an_optimizer_are_seen():
    model, x = made(), torch.randn(4, 3, 40)
    prepared, optimizer = seqconv.prepare(model, x), torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        model(x).square().sum().backward()
        optimizer.step()
        close(prepared(x), model(x))


def test_a_model_in_training_mode_is_refused():
    model, x = made(), torch.randn(4, 3, 40)
    with pytest.raises(ValueError, match=r"^model must be in evaluation mode, call its eval"):
        seqconv.prepare(model.train(), x)
    prepared = seqconv.prepare(model.eval(), x)
    model.train()
    with pytest.raises(ValueError, match=r"^model must be in evaluation mode"):
        prepared(x)
    model.eval()
    close(prepared(x), model(x))


def test_what_is_no_model_and_no_tensor_is_refused():
    with pytest.raises(TypeError, match=r"^model must be a torch.nn.Module, got int"):
        seqconv.prepare(3, torch.ones(1))
    for example in ((), (torch.ones(1), 3)):
        with pytest.raises(TypeError, match=r"^example must be the tensors that model is called with"):
            seqconv.prepare(made(), *example)


def test_switches_are_followed():
    model, x = made(), torch.randn(4, 3, 40)
    prepared = seqconv.prepare(model, x)
    with torch.autocast("cpu", torch.bfloat16):
        assert prepared(x).dtype == model(x).dtype
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        close(prepared(x), model(x))
    finally:
        torch.set_num_threads(threads)
    with torch.inference_mode():
        close(prepared(torch.clone(x)), model(x))
    close(torch.vmap(prepared)(x.expand(2, 4, 3, 40)), torch.vmap(model)(x.expand(2, 4, 3, 40)))
    close(prepared(x), model(x))


def test_shapes_that_depend_on_numbers():
    """A frozen call is handed an input of another shape than before, though the model's input has the same."""

    class Chosen(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.pool = nn.Conv1d(3, 4, 3), nn.MaxPool1d(2)

        def forward(self, x, keep):
            return self.pool(F.relu(self.conv(x[:, :, keep])))

    model, x = Chosen().eval(), torch.randn(2, 3, 30)
    prepared = seqconv.prepare(model, x, torch.ones(30, dtype=torch.bool))
    for count in (30, 11, 29, 30):
        keep = torch.arange(30) < count
        close(prepared(x, keep), model(x, keep))


def test_a_text_model():
    torch.manual_seed(0)

    class Text(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(50, 8, padding_idx=0)
            self.convs = nn.ModuleList([nn.Conv1d(8, 6, size) for size in (2, 3)])
            self.one, self.dropout, self.head = nn.Conv1d(8, 4, 3), nn.Dropout(), nn.Linear(16, 2)

        def forward(self, tokens):
            x = self.table(tokens).transpose(1, 2)
            both = torch.cat([F.relu(conv(x)).amax(-1) for conv in self.convs], 1)
            return self.head(self.dropout(torch.cat([both, F.relu(self.one(x)).amax(-1)], 1)))

    model, tokens = Text().eval(), torch.randint(50, (1, 20))
    prepared = seqconv.prepare(model, tokens)
    for _ in range(5):
        tokens = torch.randint(50, (1, 20))
        close(prepared(tokens), model(tokens))
    with pytest.raises(IndexError):
        prepared(torch.full((1, 20), 50))


class Counting(nn.Module):
    """Changes at every call."""

    def __init__(self):
        super().__init__()
        self.conv, self.calls = nn.Conv1d(3, 4, 3), 0

    def forward(self, x):
        self.calls += 1
        return F.max_pool1d(F.relu(self.conv(x)), 2) + self.calls


def test_a_model_that_cannot_be_traced_runs_as_it_is():
    model, x = Counting().eval(), torch.randn(2, 3, 30)
    prepared = seqconv.prepare(model, x)
    assert model.calls == 1
    for number in range(2, 100):
        close(prepared(x), model.conv(x).relu().unfold(2, 2, 2).amax(-1) + number)
    assert model.calls == 99


def test_hooks_run_once_a_call():
    model, x, seen = made(), torch.randn(2, 3, 40), []
    model.layers[0][0].register_forward_hook(lambda *_: seen.append(1))
    prepared = seqconv.prepare(model, x)
    prepared(x)
    assert len(seen) == 2


def test_errors_are_the_models():
    model = made()
    prepared = seqconv.prepare(model, torch.randn(2, 3, 40))
    for given in (torch.randn(2, 4, 40), torch.randn(2, 3, 2), torch.randn(3)):
        with pytest.raises(RuntimeError) as expected:
            model(given)
        with pytest.raises(RuntimeError) as found:
            prepared(given)
        assert str(found.value) == str(expected.value)


def test_copies():
    model, x = made(), torch.randn(2, 3, 40)
    prepared = seqconv.prepare(model, x)
    other = copy.deepcopy(prepared)
    assert other.model is not model
    close(other(x), model(x))
    sequential = nn.Sequential(nn.Conv1d(3, 4, 3), nn.ReLU(), nn.MaxPool1d(2)).eval()
    close(pickle.loads(pickle.dumps(seqconv.prepare(sequential, x)))(x), sequential(x))


def test_threads_share_one():
    model, x = made(), torch.randn(2, 3, 40)
    prepared, expected, found = seqconv.prepare(model, x), model(x), []
    workers = [threading.Thread(target=lambda: found.extend(prepared(x) for _ in range(50))) for _ in range(4)]
    for one in workers:
        one.start()
    for one in workers:
        one.join()
    assert len(found) == 200
    for one in found:
        close(one, expected)


def test_the_promise_ends_with_it():
    from seqconv.functional.folded import is_frozen

    model = Model().eval()
    prepared = seqconv.prepare(model, torch.randn(2, 3, 40))
    assert is_frozen(*model.parameters())
    del prepared
    assert not any(is_frozen(one) for one in model.parameters())
