"""``seqconv.fuse``: numbers and gradients of the plain model, whatever its style; what must stay plain does."""

from __future__ import annotations

import copy
import inspect
import pickle
import threading

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import seqconv
from seqconv.fusion import calls, program
from seqconv.fusion.backend import compile_graph
from seqconv.fusion.calls import FusedCall, FusedConcatenation

TOKENS, ROWS = "tokens", "rows"


class Functions(nn.Module):
    """Functional calls in ``forward``, pool before ReLU, a whole-length pool."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = nn.Conv1d(4, 8, 5), nn.Conv1d(8, 6, 3, padding="same"), nn.Linear(6, 2)

    def forward(self, x):
        x = F.relu(F.max_pool1d(self.first(x), 3, stride=2, ceil_mode=True))
        x = self.second(x).relu()
        return self.head(F.max_pool1d(x, x.size(2)).squeeze(-1))


class Weights(nn.Module):
    """A functional convolution of a parameter."""

    def __init__(self):
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(8, 4, 3))

    def forward(self, x):
        return torch.relu(F.conv1d(x, self.kernel, stride=2)).max(dim=-1).values


class TextCNN(nn.Module):
    """FusedConcatenation convolutions over one embedding, of either dimension."""

    def __init__(self, wide):
        super().__init__()
        self.wide = wide
        self.embedding, self.dropout = nn.Embedding(30, 8, padding_idx=0), nn.Dropout(0.0)
        kinds = [nn.Conv2d(1, 6, (k, 8)) if wide else nn.Conv1d(8, 6, k) for k in (2, 3, 4)]
        self.convs, self.head = nn.ModuleList(kinds), nn.Linear(18, 2)

    def forward(self, tokens):
        rows = self.dropout(self.embedding(tokens))
        if self.wide:
            maps = [F.relu(conv(rows.unsqueeze(1))).squeeze(3) for conv in self.convs]
        else:
            maps = [F.relu(conv(rows.permute(0, 2, 1))) for conv in self.convs]
        return self.head(torch.cat([F.max_pool1d(one, one.shape[2]).squeeze(2) for one in maps], dim=1))


class Embedded(nn.Module):
    """An embedding whose rows only a convolution and a pool read."""

    def __init__(self):
        super().__init__()
        self.embedding, self.conv = nn.Embedding(30, 8), nn.Conv1d(8, 6, 3)

    def forward(self, tokens):
        return F.max_pool1d(F.relu(self.conv(self.embedding(tokens).transpose(1, 2))), 2).flatten(1)


class Shared(nn.Module):
    """An embedding whose rows are read elsewhere, too."""

    def __init__(self):
        super().__init__()
        self.embedding, self.conv = nn.Embedding(30, 6), nn.Conv1d(6, 6, 3)

    def forward(self, tokens):
        rows = self.embedding(tokens)
        return F.relu(self.conv(rows.mT)).amax(-1) + rows.mean(1)


class AnyRank(nn.Module):
    """Asks how many axes its input has, and is given a sample's channels or a mask, or none."""

    def __init__(self):
        super().__init__()
        self.conv, self.block = nn.Conv1d(4, 8, 3), sequential(nn.Conv1d(8, 8, 3), nn.ReLU(), nn.MaxPool1d(3))

    def forward(self, x, scale=None):
        if x.ndim == 2:
            x = x.unsqueeze(0)
        assert x.dim() == 3, x.shape
        x = F.max_pool1d(F.relu(self.conv(x)), 2)
        return self.block(x if scale is None else x * scale)


class First(nn.Module):
    """The first of two."""

    def forward(self, pair):
        return pair[0]


class Residual(nn.Module):
    """An activation that two read."""

    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Conv1d(4, 8, 3, padding=1), nn.BatchNorm1d(8)
        self.second = nn.Conv1d(8, 8, 3, padding=1)

    def forward(self, x):
        x = F.relu(self.norm(self.first(x)))
        return F.max_pool1d(F.relu(x + self.second(x)), 2)


class FunctionalNorm(nn.Module):
    """A batch norm as a function, whose statistics are buffers."""

    def __init__(self):
        super().__init__()
        self.conv, self.scale = nn.Conv1d(4, 8, 3), nn.Parameter(torch.randn(8))
        self.register_buffer("mean", torch.randn(8))
        self.register_buffer("var", torch.rand(8) + 0.5)

    def forward(self, x):
        x = F.batch_norm(self.conv(x), self.mean, self.var, self.scale, None, self.training, 0.3)
        return torch.amax(F.relu(F.max_pool1d(x, 3, 2)), (2,), keepdim=True)


def sequential(*layers):
    return nn.Sequential(*layers)


def parametrized():
    model = sequential(nn.Conv1d(4, 8, 3), nn.ReLU(), nn.MaxPool1d(2))
    nn.utils.parametrizations.weight_norm(model[0])
    return model


class PositiveNorm(nn.BatchNorm1d):
    """A batch norm of which the tests make one with positive scales."""


def image():
    layers = nn.Conv2d(4, 8, (1, 5)), nn.ReLU(), nn.MaxPool2d((1, 2)), nn.Conv2d(8, 6, (1, 3)), nn.ReLU()
    return sequential(nn.Unflatten(2, (1, 40)), *layers, nn.MaxPool2d((1, 4), (1, 3)), nn.Flatten())


def nested():
    first = sequential(nn.Conv1d(4, 8, 5, stride=2), nn.BatchNorm1d(8), nn.ReLU(inplace=True), nn.MaxPool1d(2))
    second = nn.Sequential()
    for name, layer in {"conv": nn.Conv1d(8, 6, 3), "pool": nn.AdaptiveMaxPool1d(1), "act": nn.ReLU()}.items():
        second.add_module(name, layer)
    return sequential(first, second, nn.Flatten(), nn.Linear(6, 2))


def positive():
    """A norm behind ReLU whose scales are positive, with a pool and without."""
    return sequential(
        nn.Conv1d(4, 8, 3), nn.ReLU(), PositiveNorm(8), nn.Dropout(0.0), nn.MaxPool1d(3, 2, 1),
        nn.Conv1d(8, 8, 3), nn.ReLU(), PositiveNorm(8), nn.ReLU(),
    )  # fmt: skip


# Name: the model, its input, and how many of its convolutions are fused in training and in evaluation.
MODELS = {
    "functions": (Functions, ROWS, 2, 2),
    "weights": (Weights, ROWS, 1, 1),
    "text": (lambda: TextCNN(wide=False), TOKENS, 3, 3),
    "text of images": (lambda: TextCNN(wide=True), TOKENS, 3, 3),
    "embedded": (Embedded, TOKENS, 1, 1),
    "shared rows": (Shared, TOKENS, 1, 1),
    "parametrized": (parametrized, ROWS, 1, 1),
    "images": (image, ROWS, 2, 2),
    "nested, norm": (nested, ROWS, 2, 2),
    "leaky": (lambda: sequential(nn.Conv1d(4, 8, 3), nn.LeakyReLU(), nn.MaxPool1d(2)), ROWS, 0, 0),
    "gelu": (lambda: sequential(nn.Conv1d(4, 8, 3), nn.GELU(), nn.MaxPool1d(2)), ROWS, 0, 0),
    "no pool": (lambda: sequential(nn.Conv1d(4, 8, 3), nn.ReLU()), ROWS, 1, 1),
    "groups": (lambda: sequential(nn.Conv1d(4, 8, 3, groups=2), nn.ReLU(), nn.MaxPool1d(2)), ROWS, 0, 0),
    "idle dropout": (
        lambda: sequential(nn.Conv1d(4, 8, 3), nn.ReLU(), nn.Dropout(0.0), nn.MaxPool1d(2)),
        ROWS, 1, 1,
    ),
    "dropout": (lambda: sequential(nn.Conv1d(4, 8, 3), nn.ReLU(), nn.Dropout(0.5), nn.MaxPool1d(2)), ROWS, 1, 1),
    "dropout behind": (
        lambda: sequential(nn.Conv1d(4, 8, 3), nn.ReLU(), nn.MaxPool1d(2), nn.Dropout(0.5)),
        ROWS, 1, 1,
    ),
    "any rank": (AnyRank, ROWS, 2, 2),
    "residual": (Residual, ROWS, 1, 1),
    "functional norm": (FunctionalNorm, ROWS, 1, 1),
    "statistics of the batch": (
        lambda: sequential(
            nn.Conv1d(4, 8, 3), nn.BatchNorm1d(8, track_running_stats=False), nn.ReLU(), nn.MaxPool1d(2),
            nn.Conv1d(8, 8, 3), nn.BatchNorm1d(8, momentum=None, affine=False), nn.MaxPool1d(2), nn.ReLU(),
        ),
        ROWS, 2, 2,
    ),
    "padding modes": (
        lambda: sequential(
            nn.Conv1d(4, 8, 3, padding=1, padding_mode="circular"), nn.ReLU(), nn.MaxPool1d(2),
            nn.Conv1d(8, 8, 4, padding="same", padding_mode="reflect"), nn.ReLU(), nn.MaxPool1d(2),
            nn.Conv1d(8, 8, 3, padding=2, padding_mode="replicate"), nn.ReLU(),
        ),
        ROWS, 3, 3,
    ),
    "indices": (
        lambda: sequential(nn.Conv1d(4, 8, 3), nn.MaxPool1d(2, return_indices=True), First(), nn.ReLU()),
        ROWS, 0, 0,
    ),
    "norm behind": (positive, ROWS, 2, 2),
}  # fmt: skip


def made(name, training):
    torch.manual_seed(3)
    make, kind, *fused = MODELS[name]
    model = make().train(training)
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm1d):
            for tensor in (norm.running_mean, norm.weight, norm.bias):
                if tensor is not None:
                    tensor.data.copy_(torch.randn(tensor.shape))  # scales of both signs
            if isinstance(norm, PositiveNorm):
                norm.weight.data.abs_()
            if norm.running_var is not None:
                norm.running_var.uniform_(0.5, 2)
    given = torch.randint(0, 30, (9, 12)) if kind == TOKENS else torch.randn(9, 4, 40)
    return model, given, fused[0 if training else 1]


def close(actual, expected, exact):
    """Within four times what float32 rounding does to torch's own result, and a few roundings of the largest value."""
    bound = 4 * (expected.double() - exact).abs().max() + 8 * torch.finfo(torch.float32).eps * exact.abs().max()
    assert (actual.double() - exact).abs().max() <= bound


def fused_calls(model):
    """Return all fused calls in a model's programs."""
    return [call for one in model.modules() for call in program.fused_calls(one)]


def never_plain(model):
    """Let the fused calls fail where they would run the plain layers."""

    def plain(*_):
        raise AssertionError("the plain layers ran")

    for stage in fused_calls(model):
        stage.plain = plain


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("name", MODELS)
def test_numbers_gradients_and_report(name, training, monkeypatch):
    monkeypatch.setattr(calls, "MANY_NUMBERS", 0)  # of small inputs, too, norms of the batch run in one pass
    model, given, count = made(name, training)
    exact = copy.deepcopy(model).double()
    fused = seqconv.fuse(model)
    assert list(fused.state_dict()) == list(model.state_dict())
    assert [type(one) for one in fused.modules()] == [type(one) for one in model.modules()]
    report = seqconv.fusion_report(fused)
    assert sum(row.fused for row in report) == count, str(report)
    assert all(row.fused or row.reason for row in report)
    never_plain(fused)
    results = []
    for one in (fused, model, exact):
        torch.manual_seed(1)  # for dropout
        output = one(given.double() if one is exact and given.is_floating_point() else given)
        output.sin().sum().backward()
        results.append([output, *(parameter.grad for parameter in one.parameters())])
    for ours, torchs, best in zip(*results, strict=True):
        close(ours.detach(), torchs.detach(), best.detach())
    assert results[0][0].stride() == results[1][0].stride()
    with torch.no_grad():
        torch.manual_seed(1)
        ours = fused(given)
        torch.manual_seed(1)
        close(ours, model(given), exact(given.double() if given.is_floating_point() else given))
    for (_, ours), (_, torchs) in zip(fused.named_buffers(), model.named_buffers(), strict=True):
        assert torch.equal(ours, torchs)


@pytest.mark.parametrize("name", ["functions", "text", "nested, norm"])
def test_fused_calls_are_made(name):
    model, given, _ = made(name, training=False)
    fused = seqconv.fuse(model)
    fused(given)
    kinds = {type(one) for one in fused_calls(fused)}
    assert kinds == ({FusedConcatenation} if name == "text" else {FusedCall})


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("name", ["text", "nested, norm", "any rank", "gelu"])
def test_the_report_tells_gains_of_an_example(name, training):
    model, given, count = made(name, training)
    before = copy.deepcopy(model.state_dict())
    for one in (model, seqconv.fuse(model)):
        report = seqconv.fusion_report(one, given)
        assert [row.name for row in report if row.gain is not None] == [row.name for row in report][:count]
        assert all(row.gain is None or row.gain > 0 for row in report)
        assert ("times faster" in str(report)) == (count > 0)
    for name, ours in model.state_dict().items():
        assert torch.equal(ours, before[name])
    assert all(parameter.grad is None for parameter in model.parameters())


def test_unfuse_and_idempotence():
    model, given, _ = made("nested, norm", training=False)
    once = seqconv.fuse(model)
    twice = seqconv.fuse(once)
    assert torch.equal(once(given), twice(given))
    plain = seqconv.unfuse(twice)
    assert not any("forward" in one.__dict__ for one in plain.modules())
    assert torch.equal(plain(given), model(given))
    assert not any(row.fused for row in seqconv.fusion_report(plain))
    same = seqconv.fuse(model, inplace=True)
    assert same is model
    assert "forward" in model.__dict__
    assert seqconv.unfuse(model, inplace=True) is model
    assert "forward" not in model.__dict__


def test_copies_and_files():
    model, given, _ = made("functions", training=True)
    fused = seqconv.fuse(model)
    expected = fused(given)
    for other in (copy.deepcopy(fused), pickle.loads(pickle.dumps(fused))):
        assert other.forward.module is other
        assert torch.equal(other(given), expected)
        with torch.no_grad():
            other.first.weight.zero_()
        assert not torch.equal(other(given), expected)
    assert torch.equal(fused(given), expected)


def test_the_signature_stays():
    model, _, _ = made("any rank", training=True)
    assert inspect.signature(seqconv.fuse(model).forward) == inspect.signature(model.forward)


def test_changes_are_followed():
    model, given, _ = made("nested, norm", training=False)
    fused = seqconv.fuse(model)

    def same():
        torch.testing.assert_close(fused(given), seqconv.unfuse(fused)(given), rtol=1e-5, atol=1e-5)
        return fused(given)

    first = same()
    fused[0][1].running_mean.add_(1.0)
    second = same()
    fused[0][0].stride = (1,)
    third = same()
    fused[0][2] = nn.GELU()
    fourth = same()
    fused[0][0].register_forward_hook(lambda _module, _given, output: output * 2)
    fifth = same()
    fused.train()
    fused[0][0]._forward_hooks.clear()
    outputs = [first, second, third, fourth, fifth]
    for number, one in enumerate(outputs[1:]):
        assert not torch.allclose(one, outputs[number])
    expected = seqconv.unfuse(fused)(given)
    torch.testing.assert_close(fused(given), expected, rtol=1e-5, atol=1e-5)
    assert fused[0][1].num_batches_tracked == 1


def test_hooks_watch_what_they_watched():
    model, given, _ = made("functions", training=True)
    seen = []
    fused = seqconv.fuse(model)
    fused.first.register_forward_hook(lambda _module, _given, output: seen.append(output.shape))
    fused(given)
    assert seen == [(9, 8, 36)]
    rows = {row.name: row for row in seqconv.fusion_report(fused)}
    assert not rows["first"].fused
    assert "hooks" in rows["first"].reason
    assert rows["second"].fused


def test_values_and_indices():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv1d(4, 6, 3)

        def forward(self, x):
            values, _ = F.relu(self.conv(x)).max(2)
            return values

    fused, x = seqconv.fuse(Model()), torch.randn(2, 4, 9)
    never_plain(fused)
    torch.testing.assert_close(fused(x), seqconv.unfuse(fused)(x))
    assert seqconv.fusion_report(fused)[0].fused


def test_ties_of_amax_are_shared():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv1d(1, 1, 1)

        def forward(self, x):
            return F.relu(self.conv(x)).amax(dim=-1)

    fused = seqconv.fuse(Model())
    nn.init.ones_(fused.conv.weight)
    x = torch.ones(1, 1, 4, requires_grad=True)
    fused(x).sum().backward()
    assert x.grad.flatten().tolist() == [0.25] * 4
    assert "amax" in seqconv.fusion_report(fused)[0].reason


def test_a_forward_pass_that_cannot_be_traced():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.conv, self.calls = Functions(), nn.Conv1d(4, 4, 1), 0

        def forward(self, x):
            self.calls += 1
            return self.inner(x) if x.mean() > 0 else self.inner(F.relu(self.conv(x)))

    fused = seqconv.fuse(Model())
    for given in (torch.rand(2, 4, 30), -torch.rand(2, 4, 30)):
        torch.testing.assert_close(fused(given), seqconv.unfuse(fused)(given))
    assert fused.calls == 2  # not those of tracing
    rows = {row.name: row for row in seqconv.fusion_report(fused)}
    assert rows["inner.first"].fused
    assert rows["inner.second"].fused
    assert not rows["conv"].fused
    assert "the model" in rows["conv"].reason


def test_arguments():
    class Model(Functions):
        def forward(self, x, scale=1, *, shift=None, mask=None):
            x = super().forward(x) * scale
            if shift is not None:
                x = x + shift
            return x if mask is None else x * mask[0]

    torch.manual_seed(0)
    fused = seqconv.fuse(Model())
    plain, x = seqconv.unfuse(fused), torch.randn(3, 4, 30)
    for given, options in [((x,), {}), ((x, 2), {}), ((x, 2.5), {}), ((x, x.mean()), {"shift": x.std()}),
                           ((x,), {"mask": [x.std()]}), ((x,), {"shift": True})]:  # fmt: skip
        torch.testing.assert_close(fused(*given, **options), plain(*given, **options))


def test_errors_are_torchs_own():
    model, _, _ = made("functions", training=True)
    with pytest.raises(RuntimeError) as expected:
        model(torch.randn(2, 3, 30))
    with pytest.raises(RuntimeError) as found:
        seqconv.fuse(model)(torch.randn(2, 3, 30))
    assert str(found.value) == str(expected.value)


def test_wrong_arguments():
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module, got int"):
        seqconv.fuse(3)
    with pytest.raises(TypeError, match="inplace must be True or False, got 1"):
        seqconv.fuse(nn.ReLU(), inplace=1)
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module, got str"):
        seqconv.fusion_report("model")
    old = sequential(nn.Conv1d(4, 8, 3), nn.ReLU(), nn.MaxPool1d(2))
    old[0].cannot = threading.Lock()
    with pytest.raises(TypeError, match="inplace=True"):
        seqconv.fuse(old)


def test_threads():
    model, given, _ = made("nested, norm", training=False)
    fused = seqconv.fuse(model)
    for one in fused.modules():
        if "forward" in one.__dict__:
            one.forward.variants.clear()
    expected, found = model(given), []
    workers = [threading.Thread(target=lambda: found.append(fused(given))) for _ in range(8)]
    for one in workers:
        one.start()
    for one in workers:
        one.join()
    assert len(found) == 8
    for one in found:
        torch.testing.assert_close(one, expected)


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_compiled(training):
    model, given, count = made("nested, norm", training)
    fused = seqconv.fuse(model)
    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(fused, backend=backend, fullgraph=True)
    torch.testing.assert_close(compiled(given), model(given))
    targets = [str(node.target) for node in graphs[0].graph.nodes]
    operators = [one for one in targets if one.startswith("seqconv.conv_relu_max_pool")]
    assert len(operators) == count - training  # a norm of batches is composed


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("name", ["functions", "weights", "text", "text of images", "images", "nested, norm", "gelu"])
def test_backend_of_torch_compile(name, training):
    model, given, count = made(name, training)
    exact, plain = copy.deepcopy(model).double(), copy.deepcopy(model)
    calls = []

    def backend(graph, examples):
        forward = compile_graph(graph, examples)
        found = [node.target for node in graph.graph.nodes if isinstance(node.target, FusedCall | FusedConcatenation)]
        for call in found:
            call.plain = never
        calls.extend(found)
        return forward

    def never(*_):
        raise AssertionError("the plain layers ran")

    torch._dynamo.reset()
    compiled = torch.compile(model, backend=backend)
    results = []
    for one in (compiled, plain, exact):
        torch.manual_seed(1)
        output = one(given.double() if one is exact and given.is_floating_point() else given)
        output.sin().sum().backward()
        results.append([output, *(parameter.grad for parameter in one.parameters())])
    for ours, torchs, best in zip(*results, strict=True):
        close(ours.detach(), torchs.detach(), best.detach())
    assert len(calls) == (1 if count == 3 else count)
    torch._dynamo.reset()


def test_backend_of_changing_shapes():
    model, _, _ = made("functions", training=True)
    compiled = torch.compile(model, backend=compile_graph, dynamic=True)
    for length in (40, 41, 57):
        x = torch.randn(3, 4, length)
        torch.testing.assert_close(compiled(x), model(x))
    torch._dynamo.reset()


def test_backend_is_registered():
    assert "seqconv" in torch._dynamo.list_backends(exclude_tags=())


def test_exported_programs_are_of_torchs_operations():
    model, given, _ = made("functions", training=False)
    program = torch.export.export(seqconv.fuse(model), (given,))
    assert not any("seqconv" in str(node.target) for node in program.graph.nodes)
    torch.testing.assert_close(program.module()(given), model(given))


def test_numbers_of_axes_have_graphs_of_their_own():
    model, given, _ = made("any rank", training=False)
    fused = seqconv.fuse(model)
    never_plain(fused)
    for rows, scale in [(given, None), (given[0], None), (given, torch.tensor(2.0)), (given[:3], None)]:
        torch.testing.assert_close(fused(rows, scale), model(rows, scale), rtol=1e-5, atol=1e-5)
    for wrong in (given[0, 0], given[None]):
        with pytest.raises(Exception, match=r"torch\.Size"):
            fused(wrong)


def test_writes_in_between_keep_a_chain_plain():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv1d(4, 6, 3)
            self.register_buffer("mean", torch.zeros(6))
            self.register_buffer("var", torch.ones(6))

        def forward(self, x):
            x = self.conv(x)
            self.mean.add_(1.0)
            return F.relu(F.batch_norm(x, self.mean, self.var))

    model = Model().eval()
    fused, x = seqconv.fuse(model), torch.randn(9, 4, 9)
    for _ in range(2):
        torch.testing.assert_close(fused(x), model(x))
    assert "written" in seqconv.fusion_report(fused)[0].reason


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_the_rest_of_a_compiled_graph_may_be_inductors(training):
    model, given, _ = made("functions", training)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="seqconv", options={"rest": "inductor"})
    results = []
    for one in (compiled, copy.deepcopy(model).double()):
        output = one(given.to(next(model.parameters() if one is compiled else one.parameters()).dtype))
        output.sin().sum().backward()
        parameters = model.parameters() if one is compiled else one.parameters()
        results.append([output.detach(), *(parameter.grad for parameter in parameters)])
    for ours, exact in zip(*results, strict=True):
        torch.testing.assert_close(ours.double(), exact, rtol=1e-4, atol=1e-5)
    torch._dynamo.reset()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"options": {"rest": "aot"}}, "rest, of options, must be one of eager, inductor, got 'aot'"),
        ({"options": {"speed": 1}}, "options must be 'rest' alone"),
        ({"mode": "max-autotune"}, "mode must be None"),
    ],
)
def test_unknown_options_of_the_backend(given, message):
    torch._dynamo.reset()
    with pytest.raises(Exception, match=message):
        torch.compile(nn.ReLU(), backend="seqconv", **given)(torch.ones(3))
    torch._dynamo.reset()


def test_a_norm_behind_relu_moves_maxima_where_a_scale_is_negative():
    torch.manual_seed(0)
    model = sequential(nn.Conv1d(4, 8, 3), nn.ReLU(), nn.BatchNorm1d(8), nn.MaxPool1d(4)).eval()
    fused, x = seqconv.fuse(model), torch.randn(9, 4, 20)
    for weight in (1.0, -1.0, 0.0):
        for one in (model, fused):
            one[2].weight.data[3] = weight
        torch.testing.assert_close(fused(x), model(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backend", ["eager", "seqconv"])
@pytest.mark.parametrize("kind", ["dense", "norm", "text"])
def test_second_derivatives_of_a_compiled_model_are_refused(kind, backend):
    torch.compiler.reset()
    torch.manual_seed(0)
    if kind == "text":
        table = nn.Embedding(9, 4)
        convs = [nn.Conv1d(4, 6, size) for size in (2, 3)]
        model = nn.ModuleList([table, *convs])
        tokens = torch.randint(9, (3, 11))

        def plain(weight):
            x = F.embedding(tokens, weight).transpose(1, 2)
            return torch.cat([F.relu(conv(x)).max(-1).values for conv in convs], 1)

        run, leaf = torch.compile(plain, backend="seqconv"), model[0].weight
    else:
        norms = [nn.BatchNorm1d(64)] if kind == "norm" else []
        model = nn.Sequential(nn.Conv1d(4, 64, 3), *norms, nn.ReLU(), nn.MaxPool1d(2))
        fused = seqconv.fuse(model)
        run, leaf = torch.compile(fused, backend=backend), torch.randn(64, 4, 130, requires_grad=True)
    (gradient,) = torch.autograd.grad(run(leaf).square().sum(), leaf, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        gradient.square().sum().backward()


@pytest.mark.parametrize("dynamic", [None, True])
def test_a_compiled_norm_takes_smaller_batches(dynamic):
    torch.compiler.reset()
    model = nn.Sequential(nn.Conv1d(4, 32, 3, padding=1), nn.BatchNorm1d(32), nn.ReLU(), nn.MaxPool1d(2))
    fused = seqconv.fuse(model)
    compiled = torch.compile(fused, backend="eager", dynamic=dynamic)
    for samples in (64, 64, 5, 40):
        x = torch.randn(samples, 4, 120)
        torch.testing.assert_close(compiled(x), model(x), rtol=1e-4, atol=1e-5)
