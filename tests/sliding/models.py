"""Random models of windows, and the oracle: the model itself, on a batch of all windows."""

import random

import torch
import torch.nn.functional as F
from torch import nn


def windows_of(series, length, step, layout="NCL"):
    """Return every window of a series, as a batch."""
    span = (length - 1) * step
    found = torch.stack([series[i : i + span + 1 : step] for i in range(len(series) - span)])
    return found.transpose(1, 2).contiguous() if layout == "NCL" else found


def batched(model, series, length, step, layout="NCL"):
    """Return what a model gives for every window, computed window by window."""
    with torch.no_grad():
        return model(windows_of(series, length, step, layout))


class Residual(nn.Module):
    """A sum, or a concatenation, of what goes through and what goes past."""

    def __init__(self, channels, kernel_size, how):
        super().__init__()
        self.conv = nn.Conv1d(channels, channels, kernel_size, padding="same")
        self.norm = nn.BatchNorm1d(channels)
        self.how = how

    def forward(self, x):
        y = self.norm(self.conv(x))
        if self.how == "cat":
            return torch.cat([x, F.relu(y)], dim=1)
        if self.how == "product":
            return x * torch.sigmoid(y)
        return F.relu(x + y, inplace=True)


class Crop(nn.Module):
    """Some positions, as a causal convolution's padding is cut off."""

    def __init__(self, begin, end):
        super().__init__()
        self.begin, self.end = begin, end

    def forward(self, x):
        return x[:, :, self.begin : x.size(-1) - self.end].contiguous()


class Head(nn.Module):
    """The end of a model, in one of many forms."""

    KINDS = (
        "max", "mean", "amax", "last", "flatten", "view", "adaptive", "positions", "gru", "attention", "two", "dense",
    )  # fmt: skip

    def __init__(self, kind, channels, length):
        super().__init__()
        self.kind = kind
        self.out = nn.Linear(channels * length if kind in ("flatten", "view") else channels, 3)
        if kind == "gru":
            self.gru = nn.GRU(channels, channels, batch_first=True)
        if kind == "attention":
            self.score = nn.Linear(channels, 1)
        if kind == "adaptive":
            self.out = nn.Linear(2 * channels, 3)

    def forward(self, x):
        if self.kind == "max":
            return self.out(x.max(dim=-1).values)
        if self.kind == "mean":
            return self.out(torch.relu(x.mean(2)))
        if self.kind == "amax":
            return self.out(torch.amax(x, 2, keepdim=True).squeeze(-1)).squeeze(-1)
        if self.kind == "last":
            return self.out(x[..., -1])
        if self.kind == "flatten":
            return F.log_softmax(self.out(x.flatten(1)), dim=1)
        if self.kind == "view":
            return self.out(x.contiguous().view(x.size(0), -1))
        if self.kind == "adaptive":
            return self.out(F.adaptive_avg_pool1d(x, 2).flatten(1))
        if self.kind == "positions":
            return x
        if self.kind == "dense":
            return self.out(x.transpose(1, 2)).mean(dim=1)
        if self.kind == "gru":
            return self.out(self.gru(x.transpose(1, 2))[0][:, -1])
        if self.kind == "attention":
            rows = x.permute(0, 2, 1)
            return self.out((torch.softmax(self.score(rows), dim=1) * rows).sum(1))
        return self.out(x.max(-1)[0]), x.mean(-1)


def random_model(seed, columns, length):
    """Return a random model for windows ``(N, columns, length)``, in evaluation mode, or ``None`` where none fits."""
    draw = random.Random(seed)
    torch.manual_seed(seed)
    layers, channels = [], columns
    probe = torch.randn(2, columns, length)
    for _ in range(draw.randint(1, 6)):
        layer = random_layer(draw, channels)
        try:
            with torch.no_grad():
                after = layer.eval()(probe)
        except RuntimeError:
            continue
        if 0 in after.shape or torch.isinf(after).any():
            continue
        layers.append(layer)
        probe, channels = after, after.size(1)
    if not layers:
        return None
    head = Head(draw.choice(Head.KINDS), channels, probe.size(2))
    try:
        with torch.no_grad():
            head(probe)
    except RuntimeError:
        return None
    model = nn.Sequential(nn.Sequential(*layers[:2]), *layers[2:], head).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
            module.weight.data.uniform_(-1, 1)
            module.bias.data.normal_()
    return model


def random_layer(draw, channels):
    size = draw.randint(1, 5)
    kind = draw.choice(("conv", "conv", "conv", "max", "avg", "point", "norm", "residual", "crop", "pad", "adaptive"))
    if kind == "conv":
        groups = draw.choice([1, 1, 1, channels])
        outputs = draw.randint(1, 6) * groups
        mode = draw.choice(["zeros", "zeros", "zeros", "reflect", "replicate", "circular"])
        return nn.Conv1d(
            channels, outputs, size, stride=draw.choice([1, 1, 2, 3]), padding=draw.randint(0, size - 1),
            dilation=draw.choice([1, 1, 2]), groups=groups, bias=draw.random() < 0.7, padding_mode=mode,
        )  # fmt: skip
    if kind == "max":
        return nn.MaxPool1d(
            size, draw.randint(1, 3), draw.randint(0, size // 2), draw.choice([1, 1, 2]),
            ceil_mode=draw.random() < 0.3,
        )  # fmt: skip
    if kind == "avg":
        return nn.AvgPool1d(
            size, draw.randint(1, 3), draw.randint(0, size // 2), ceil_mode=draw.random() < 0.3,
            count_include_pad=draw.random() < 0.5,
        )  # fmt: skip
    if kind == "point":
        return draw.choice([
            nn.ReLU(), nn.ReLU(inplace=True), nn.GELU(), nn.Tanh(), nn.LeakyReLU(0.1), nn.Dropout(), nn.Softmax(1),
            nn.Identity(), nn.ELU(),
        ])  # fmt: skip
    if kind == "norm":
        return nn.BatchNorm1d(channels)
    if kind == "residual":
        return Residual(channels, draw.choice([1, 3, 5]), draw.choice(["sum", "cat", "product"]))
    if kind == "crop":
        return Crop(draw.randint(0, 2), draw.randint(0, 2))
    if kind == "pad":
        return draw.choice([nn.ZeroPad1d((1, 2)), nn.ReplicationPad1d(1), nn.ReflectionPad1d(1)])
    return draw.choice([nn.AdaptiveMaxPool1d(3), nn.AdaptiveAvgPool1d(4)])
