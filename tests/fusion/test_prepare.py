"""``seqconv.prepare``: the numbers of the model, whatever happens to it between calls."""

from __future__ import annotations

import copy
import pickle
import threading
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import seqconv
from seqconv.fusion.calls import FrozenCall
from tests.fusion.test_writes import WRITES, Model, made, memory, training


def frozen_calls(prepared):
    runs = [ready.run for ready in prepared.state.ready]
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
    model, x = made(write), torch.randn(4, 3, 40)
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


def pooled(h):
    return F.max_pool1d(F.relu(h), 2)


class OfInputs(nn.Module):
    """Weights, bias and norm that are inputs, computed, or plain attributes."""

    def __init__(self, kind):
        super().__init__()
        self.kind, self.conv, self.made = kind, nn.Conv1d(3, 4, 5), nn.Linear(1, 60)
        self.held = torch.randn(4, 3, 5)
        self.register_buffer("mean", torch.zeros(4))
        self.register_buffer("var", torch.ones(4))

    def forward(self, x, w):
        if self.kind == "input":
            return pooled(F.conv1d(x, w))
        if self.kind == "computed":
            return pooled(F.conv1d(x, self.made(w.mean()[None]).view(4, 3, 5)))
        if self.kind == "modulated":
            return pooled(F.conv1d(x, self.conv.weight * w.mean(), self.conv.bias))
        if self.kind == "bias":
            return pooled(F.conv1d(x, self.conv.weight, w[:, 0, 0]))
        if self.kind == "norm":
            return pooled(F.batch_norm(self.conv(x), self.mean, self.var, w[:, 0, 0], w[:, 0, 1]))
        return pooled(F.conv1d(x, self.held))


@pytest.mark.parametrize("kind", ["input", "computed", "modulated", "bias", "norm", "attribute"])
def test_what_is_no_parameter_is_not_frozen(kind):
    model, x = OfInputs(kind).eval(), torch.randn(2, 3, 40)
    prepared = seqconv.prepare(model, x, torch.randn(4, 3, 5))
    for number in range(3):
        w = torch.randn(4, 3, 5)
        close(prepared(x, w), model(x, w))
        w.mul_(2)
        close(prepared(x, w), model(x, w))
        model.held = torch.full((4, 3, 5), number / 10)
        close(prepared(x, w), model(x, w))


class Doubling(nn.Sequential):
    """Its class's own call does more."""

    def __call__(self, x):
        return super().__call__(x) * 2


def small(kind=nn.Sequential):
    return kind(nn.Conv1d(3, 4, 3), nn.ReLU(), nn.MaxPool1d(2)).eval()


def double(*arguments):
    return arguments[-1] * 2


@pytest.mark.parametrize("fused", [False, True], ids=["plain", "fused"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_hooks_and_forwards_of_the_model_itself(when, fused):
    x = torch.randn(2, 3, 40)

    def pre(model):
        model.register_forward_pre_hook(lambda _module, given: (given[0] * 2,))

    def behind(model):
        model.register_forward_hook(double)

    def own(model):
        before = model.forward
        model.forward = lambda x: before(x) * 2

    for change in (pre, behind, own):
        model = seqconv.fuse(small()) if fused else small()
        if when == "before":
            change(model)
        prepared = seqconv.prepare(model, x)
        if when == "after":
            prepared(x)
            change(model)
        close(prepared(x), model(x))
    model = small(Doubling)
    close(seqconv.prepare(model, x)(x), model(x))


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW])
def test_steps_that_torch_does_not_count_are_seen(kind):
    model, x = small(), torch.randn(4, 3, 40)
    prepared, optimizer = seqconv.prepare(model, x), kind(model.parameters(), lr=0.1, fused=True)
    for _ in range(3):
        model(x).square().sum().backward()
        optimizer.step()
        close(prepared(x), model(x))


def retyped(model):
    model.bfloat16().float()


def swapped(model):
    torch.utils.swap_tensors(model[0].weight, nn.Parameter(torch.randn_like(model[0].weight)))


def exchanged(model):
    model[0].weight.data = torch.randn_like(model[0].weight)


def from_a_vector(model):
    vector = torch.nn.utils.parameters_to_vector(model.parameters())
    torch.nn.utils.vector_to_parameters(vector * 3, model.parameters())


@pytest.mark.parametrize("write", [retyped, swapped, exchanged, from_a_vector])
def test_exchanged_memory_is_seen(write):
    model, x = small(), torch.randn(4, 3, 40)
    prepared = seqconv.prepare(model, x)
    close(prepared(x), model(x))
    write(model)
    close(prepared(x), model(x))


class OwnNorm(nn.Module):
    """Torch's batch norm writes to these statistics without counting."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(3, 4, 5)
        self.register_buffer("mean", torch.zeros(4))
        self.register_buffer("var", torch.ones(4))

    def forward(self, x):
        return pooled(F.batch_norm(self.conv(x), self.mean, self.var, training=self.training))


def test_statistics_that_torch_does_not_count_are_seen():
    model, x = OwnNorm().eval(), torch.randn(2, 3, 40)
    prepared = seqconv.prepare(model, x)
    for _ in range(2):
        model.train()
        model(x * 5 + 3)
        model.eval()
        close(prepared(x), model(x))


class Options(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = small()

    def forward(self, x, y=None):
        return {"sum": self.inner(x if y is None else x + y), "list": [x]}


def test_other_numbers_of_inputs_and_containers_that_may_be_changed():
    model, x = Options().eval(), torch.randn(2, 3, 40)
    prepared = seqconv.prepare(model, x)
    for given in ((x,), (x, x.clone()), (torch.randn(3, 3, 40),), (x, x), (x, None)):
        for _ in range(2):
            found, expected = prepared(*given), model(*given)
            close(found["sum"], expected["sum"])
            found["own"] = 1
            found["list"].append(2)
    with pytest.raises(TypeError, match="missing 1 required positional argument"):
        prepared()


def test_many_formats_are_served_without_being_prepared_again_and_again():
    model = small()
    prepared = seqconv.prepare(model, torch.randn(1, 3, 20))
    for _ in range(2):
        for length in range(20, 45):
            x = torch.randn(1, 3, length)
            close(prepared(x), model(x))
    assert len(prepared.state.ready) == 8
    assert len(prepared.state.graphs) == 1


def test_many_changes_one_after_the_other():
    model, x = small(), torch.randn(1, 3, 20)
    prepared = seqconv.prepare(model, x)
    for _ in range(150):
        with torch.no_grad():
            model[0].weight.mul_(1.01)
        close(prepared(x), model(x))
    for _ in range(200):
        close(prepared(x), model(x))
    assert prepared.looks == 0


def test_modules_that_cannot_be_prepared_run():
    x = torch.randn(2, 3, 40)
    lazy = nn.Sequential(nn.LazyConv1d(4, 3), nn.ReLU(), nn.MaxPool1d(2)).eval()
    with pytest.warns(DeprecationWarning, match=r"torch.jit.script"):
        scripted = torch.jit.script(small())
    for model in (lazy, scripted):
        prepared = seqconv.prepare(model, x)
        for _ in range(3):
            close(prepared(x), model(x))


def test_tangents_and_the_variable(monkeypatch):
    model, x = small(), torch.randn(2, 3, 40)
    prepared = seqconv.prepare(model, x)
    with torch.autograd.forward_ad.dual_level(), torch.no_grad():
        output = prepared(torch.autograd.forward_ad.make_dual(x, x))
        assert torch.autograd.forward_ad.unpack_dual(output).tangent is not None
    monkeypatch.setenv("SEQCONV_BACKEND", "reference")
    monkeypatch.setattr(FrozenCall, "__call__", lambda *_: pytest.fail("a frozen kernel ran"))
    close(prepared(x), model(x))


def test_no_input_is_kept():
    x = torch.randn(2, 3, 40, requires_grad=True) * 2
    prepared = seqconv.prepare(small(), x)
    copy.deepcopy(prepared)
    gone = weakref.ref(x)
    del x
    assert gone() is None


def test_the_promise_ends_with_it():
    from seqconv.functional.folded import is_frozen

    model = Model().eval()
    prepared = seqconv.prepare(model, torch.randn(2, 3, 40))
    assert is_frozen(*model.parameters())
    del prepared
    assert not any(is_frozen(one) for one in model.parameters())
