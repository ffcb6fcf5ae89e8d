"""Forward passes that a graph would get wrong: a fused model computes, and changes, what the plain one does."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import seqconv


class Model(nn.Module):
    """A model whose forward pass is a function of itself and its input."""

    def __init__(self, forward, **attributes):
        super().__init__()
        self.conv, self.norm = nn.Conv1d(3, 8, 5), nn.BatchNorm1d(8)
        self.layers = nn.ModuleList([nn.Conv1d(3, 3, 3, padding=1)])
        self.image = nn.Conv2d(3, 8, (1, 5))
        self.function = (forward,)
        for name, one in attributes.items():
            setattr(self, name, one)

    def forward(self, x):
        return self.function[0](self, x)


def pooled(h):
    return F.max_pool1d(F.relu(h), 2)


def alias(model, x):
    h = pooled(model.conv(x))
    kept = h
    h += 1
    return h + kept


def view(model, x):
    x = x.clone()
    flat = x.view(-1)
    flat *= 2
    return pooled(model.conv(x))


def unpacked(model, x):
    try:
        _, _, _ = x.shape
    except ValueError:
        x = x[None]
    return pooled(model.conv(x))


def through_layers(model, x):
    for layer in model.layers:
        x = F.relu(layer(x))
    return pooled(model.conv(x))


def read_norm(model, x):
    norm = model.norm
    given = norm.running_mean, norm.running_var, norm.weight, norm.bias, norm.training, norm.momentum, norm.eps
    return pooled(F.batch_norm(model.conv(x), *given))


def tied(model, x):
    return pooled(F.conv1d(x, model.one)) + pooled(F.conv1d(x, model.other))


def scale_written(model, x):
    h = model.conv(x)
    model.norm.weight.data.clamp_(min=2.0)
    return pooled(model.norm(h))


def shared_norm(model, x):
    first, second = model.conv(x), F.conv1d(x * 3 + 1, model.conv.weight)
    second = pooled(model.norm(second))
    return pooled(model.norm(first)) + second


def of_image(model, x):
    h = model.image(x.unsqueeze(2))
    return F.max_pool1d(F.relu(h.squeeze(2)), h.size(2))


def frozen_convolution(model, x):
    with torch.no_grad():
        h = model.conv(x)
    return pooled(model.norm(h))


def frozen_pool(model, x):
    h = model.norm(model.conv(x))
    with torch.no_grad():
        h = pooled(h)
    return h + model.conv.bias[:, None]


def in_autocast(model, x):
    h = pooled(model.conv(x))
    return h * 2 if torch.is_autocast_enabled("cpu") else h


def parameter():
    torch.manual_seed(7)
    return nn.Parameter(torch.randn(8, 3, 5))


SHARED = parameter()
FORWARDS = {
    "augmented assignment": (alias, {}),
    "augmented assignment of a view": (view, {}),
    "isinstance": (lambda m, x: pooled(m.conv(x)) * (2 if isinstance(x, torch.Tensor) else 1), {}),
    "is_tensor": (lambda m, x: pooled(m.conv(x)) * (2 if torch.is_tensor(x) else 1), {}),
    "dtype": (lambda m, x: pooled(m.conv(x)) * (2 if x.dtype is torch.float32 else 1), {}),
    "dtype as a key": (lambda m, x: pooled(m.conv(x)) * {torch.float32: 2}.get(x.dtype, 1), {}),
    "size in a set": (lambda m, x: pooled(m.conv(x)) * (2 if x.size(1) in {3, 4} else 1), {}),
    "size as text": (lambda m, x: pooled(m.conv(x)) * (2 if f"{x.size(1)}" == "3" else 1), {}),
    "an attribute of the input": (lambda m, x: pooled(m.conv(x)) * getattr(x, "scale", 2), {}),
    "no gradient yet": (lambda m, x: pooled(m.conv(x)) * (2 if x.grad is None else 1), {}),
    "unpacked shape": (unpacked, {}),
    "through layers": (through_layers, {}),
    "a norm that is read": (read_norm, {}),
    "tied": (tied, {"one": SHARED, "other": SHARED}),
    "a scale that is written": (scale_written, {}),
    "a shared norm": (shared_norm, {}),
    "the other axis of an image": (of_image, {}),
    "a convolution without gradients": (frozen_convolution, {}),
    "a pool without gradients": (frozen_pool, {}),
    "asks for autocast": (in_autocast, {}),
    "a number of NumPy's": (lambda m, x: pooled(m.conv(x)) / np.sqrt(64), {}),
    "a generator": (
        lambda m, x: pooled(m.conv(x)) * m.generator.integers(1000), {"generator": np.random.default_rng(0)},
    ),
    "an attribute that changes": (
        lambda m, x: pooled(m.conv(x)) * (1 if getattr(m, "scale", None) is None else m.scale), {"scale": 2.0},
    ),
}  # fmt: skip


def layer():
    torch.manual_seed(9)
    return nn.Conv1d(3, 3, 3, stride=2)


# What is done to a model between calls, one after the other.
CHANGES = {
    "nothing": lambda m: None,
    "another layer": lambda m: m.layers.append(layer()),
    "a layer of another stride": lambda m: m.layers.__setitem__(0, layer()),
    "no layer": lambda m: m.layers.__setitem__(0, nn.Identity()),
    "another eps": lambda m: setattr(m.norm, "eps", 0.5),
    "a frozen norm": lambda m: m.norm.eval(),
    "untied": lambda m: setattr(m, "other", nn.Parameter(torch.ones(8, 3, 5))),
    "a tensor": lambda m: setattr(m, "scale", torch.full((8, 1), 3.0)),
    "none": lambda m: setattr(m, "scale", None),
    "deleted": lambda m: "scale" in vars(m) and delattr(m, "scale"),
    "hooked": lambda m: m.norm.register_forward_hook(lambda _module, _given, output: output * 2),
}


def result(run, model, x):
    """Return the output of a call, the gradients and the state behind it, and the output under autocast."""
    model.zero_grad()
    output = run(x)
    if output.requires_grad:
        output.square().sum().backward()
    found = [output.detach(), *(None if one.grad is None else one.grad.clone() for one in model.parameters())]
    found += [one.detach().clone() for one in model.state_dict().values()]
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        return [*found, run(x).float()]


def assert_same(mine, theirs, what):
    """Within the rounding of sums of a few hundred numbers, the last within bfloat16's."""
    assert len(mine) == len(theirs)
    for number, (ours, torchs) in enumerate(zip(mine, theirs, strict=True)):
        assert (ours is None) == (torchs is None), what
        if torchs is not None:
            tolerance = 2e-2 if number == len(mine) - 1 else 2e-3
            torch.testing.assert_close(ours, torchs, rtol=tolerance, atol=tolerance, msg=lambda text: f"{what}: {text}")


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("name", FORWARDS)
def test_a_fused_model_is_the_plain_one(name, training):
    forward, attributes = FORWARDS[name]
    torch.manual_seed(3)
    plain = Model(forward, **copy.deepcopy(attributes)).train(training)
    fused, x = seqconv.fuse(plain), torch.randn(9, 3, 40)
    for what, change in CHANGES.items():
        change(plain)
        change(fused)
        assert_same(result(fused, fused, x), result(plain, plain, x), what)


@pytest.mark.parametrize("name", ["a convolution without gradients", "a pool without gradients", "a shared norm"])
def test_a_compiled_model_is_the_plain_one(name):
    forward, _ = FORWARDS[name]
    torch.manual_seed(3)
    plain = Model(forward)
    compiled, x = copy.deepcopy(plain), torch.randn(9, 3, 40)
    torch._dynamo.reset()
    run = torch.compile(compiled, backend="seqconv")
    for _ in range(2):
        assert_same(result(run, compiled, x), result(plain, plain, x), name)
    torch._dynamo.reset()


class Tokens(nn.Module):
    """An embedding whose tokens change behind it."""

    def __init__(self, together):
        super().__init__()
        self.together, self.embedding = together, nn.Embedding(50, 16)
        self.convs = nn.ModuleList(nn.Conv1d(16, 8, size) for size in (3, 4))

    def forward(self, tokens):
        tokens = tokens.clone()
        rows = self.embedding(tokens).transpose(1, 2)
        if not self.together:
            tokens.zero_()
        maxima = [F.relu(conv(rows)).max(2)[0] for conv in self.convs]
        if self.together:
            tokens.zero_()
        return torch.cat(maxima, 1) if self.together else maxima[0] + maxima[1]


@pytest.mark.parametrize("together", [True, False])
def test_tokens_are_those_that_the_embedding_saw(together):
    plain = Tokens(together)
    tokens = torch.randint(0, 50, (9, 20))
    torch.testing.assert_close(seqconv.fuse(plain)(tokens), plain(tokens), rtol=1e-5, atol=1e-5)


def test_norms_of_other_axes_raise_as_torch_does():
    fused = seqconv.fuse(nn.Sequential(nn.Conv1d(3, 8, 5), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool1d(2)))
    with pytest.raises(ValueError, match="expected 4D input"):
        fused(torch.randn(9, 3, 20))


class Noise(nn.Module):
    def forward(self, weight):
        return weight + torch.randn_like(weight)


def test_parametrizations_are_computed_once():
    plain = nn.Sequential(nn.Conv1d(3, 8, 5), nn.ReLU())
    nn.utils.parametrize.register_parametrization(plain[0], "weight", Noise())
    fused, x, outputs = seqconv.fuse(plain), torch.randn(2, 3, 20), []
    for one in (fused, plain):
        torch.manual_seed(0)
        outputs.append(one(x))
    torch.testing.assert_close(*outputs)


def test_a_hook_put_on_later_is_looked_at_once():
    torch.manual_seed(0)
    fused = seqconv.fuse(nn.Sequential(nn.Conv1d(3, 8, 5), nn.ReLU(), nn.MaxPool1d(2), nn.Conv1d(8, 8, 3), nn.ReLU()))
    fused[3].register_forward_hook(lambda _module, _given, output: output + 1)
    x = torch.randn(9, 3, 20)
    for _ in range(2):
        fused(x)
    made = fused.forward.made
    fused(x)
    assert fused.forward.made == made


def test_numbers_that_never_come_again_are_given_up():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv1d(3, 8, 5)

        def forward(self, x, scale):
            return pooled(self.conv(x)) * scale

    model = Scaled()
    fused, x = seqconv.fuse(model), torch.randn(9, 3, 20)
    for step in range(300):
        torch.testing.assert_close(fused(x, step / 7), model(x, step / 7), rtol=1e-5, atol=1e-4)
    assert fused.forward.made <= 256
