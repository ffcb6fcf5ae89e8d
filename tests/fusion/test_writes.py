"""What is changed on a fused model between two calls of one kind: the next call sees it, though nothing is traced anew.

Graphs are kept with the modules at hand, modules are watched for writes, and calls are remembered by their operands.
"""

from __future__ import annotations

import logging
from collections import OrderedDict, deque

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import seqconv


class Group:
    """Holds attributes of its own."""


class Slots:
    """Holds attributes in slots."""

    __slots__ = ("number",)


class Settings(dict):
    """A dictionary with attributes."""


class Model(nn.Module):
    """Reads parameters, children, plain attributes, containers and an object's attributes."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.relu, self.pool = nn.Conv1d(3, 8, 5), nn.BatchNorm1d(8), nn.ReLU(), nn.MaxPool1d(2)
        self.layers = nn.ModuleList([nn.Sequential(nn.Conv1d(8, 8, 3), nn.ReLU(), nn.MaxPool1d(2))])
        self.scale, self.shifts, self.options = 2.0, [0.5], {"slope": 0.1}
        self.names = {"a"}
        self.config = Group()
        self.config.power, self.config.inner = 1.0, Group()
        self.config.inner.shift = 0.0
        self.order = OrderedDict(double=2.0, add=1.0)
        self.flag, self.settings, self.unregistered = 1, Settings(), [nn.Identity()]
        self.settings.number = self.unregistered[0].number = 0.0
        self.register_buffer("offset", torch.tensor(0.25))

    def forward(self, x):
        h = self.pool(self.relu(self.norm(self.conv(x)))) * self.scale + self.shifts[0]
        for layer in self.layers:
            h = layer(h)
        h = F.leaky_relu(h + self.offset, self.options["slope"]) * self.config.power
        for name, number in self.order.items():
            h = h * number if name == "double" else h + number
        h = h * 5 if self.flag is True else h
        h = h + self.settings.number + self.unregistered[0].number
        return h + ("b" in self.names) + self.config.inner.shift


class Unwatched(Model):
    """Has attributes besides that cannot be watched for writes, and are compared."""

    def __init__(self):
        super().__init__()
        self.array, self.queue, self.slots = np.array([0.0]), deque([0.0]), Slots()
        self.slots.number = 0.0

    def forward(self, x):
        return super().forward(x) + float(self.array[0]) + self.queue[0] + self.slots.number


def new_weight(model):
    model.conv.weight = nn.Parameter(model.conv.weight.detach() * 2)


def new_dictionary(model):
    model.conv._parameters = {name: nn.Parameter(one.detach() + 1) for name, one in model.conv._parameters.items()}


def no_bias(model):
    model.conv.bias = None


def assigned(model):
    model.load_state_dict({name: one + 0.5 for name, one in model.state_dict().items()}, assign=True)


def in_place(model):
    with torch.no_grad():
        model.norm.running_mean.add_(1)
        model.norm.weight.data.mul_(0.5)


def memory(model):
    model.norm.bias.data = model.norm.bias.data + 3


def strides(model):
    model.conv.weight.data = model.conv.weight.data.permute(0, 2, 1).contiguous().permute(0, 2, 1)


def hook(model):
    model.conv.register_forward_hook(lambda _module, _args, output: output + 1)


def hook_in_new_dictionary(model):
    model.relu._forward_hooks = OrderedDict()
    model.relu.register_forward_hook(lambda _module, _args, output: output * 3)


def child(model):
    model.layers[0][1] = nn.Tanh()


def class_of_child(model):
    model.pool.__class__ = nn.AvgPool1d
    model.pool.count_include_pad, model.pool.divisor_override, model.pool.kernel_size = True, None, (2,)
    model.pool.stride, model.pool.padding = (2,), (0,)


def own_forward(model):
    model.relu.forward = torch.tanh


def attribute(model):
    model.scale = 3.0


def attribute_past_setattr(model):
    model.__dict__["scale"] = 4.0


def option_of_a_layer(model):
    model.conv.stride = (2,)


def eps(model):
    model.norm.eps = 0.5


def training(model):
    model.norm.train()


def list_item(model):
    model.shifts[0] = 1.5


def dictionary_item(model):
    model.options["slope"] = 0.4


def set_item(model):
    model.names.add("b")


def attribute_of_object(model):
    model.config.power = 2.0


def dictionary_of_object(model):
    model.config.__dict__ = {"power": 3.0, "inner": model.config.inner}


def deep_attribute(model):
    model.config.inner.shift = 1.5


def order(model):
    model.order.move_to_end("double")


def array_item(model):
    model.array[0] = 2.0


def queue_item(model):
    model.queue[0] = 2.0


def slot(model):
    model.slots.number = 2.0


def attribute_of_a_dictionary(model):
    model.settings.number = 2.0


def attribute_of_a_module_in_a_list(model):
    model.unregistered[0].number = 2.0


def equal_of_another_type(model):
    model.flag = True


def buffer_of_same_name(model):
    model.offset = torch.tensor(0.75)


WRITES = [
    new_weight, new_dictionary, no_bias, assigned, in_place, memory, strides, hook, hook_in_new_dictionary, child,
    class_of_child, own_forward, attribute, attribute_past_setattr, option_of_a_layer, eps, training, list_item,
    dictionary_item, set_item, attribute_of_object, dictionary_of_object, deep_attribute, order,
    array_item, queue_item, slot, attribute_of_a_dictionary, attribute_of_a_module_in_a_list,
    equal_of_another_type, buffer_of_same_name,
]  # fmt: skip


def made(write=None):
    torch.manual_seed(0)
    model = (Unwatched if write in (array_item, queue_item, slot) else Model)().eval()
    with torch.no_grad():
        model.norm.running_mean.normal_()
        model.norm.running_var.uniform_(0.5, 1.5)
        model.norm.weight.normal_()
    return model


@pytest.mark.parametrize("grad", [False, True], ids=["inference", "gradients"])
@pytest.mark.parametrize("write", WRITES)
def test_the_next_call_sees_a_write(write, grad):
    plain, fused = made(write), seqconv.fuse(made(write))
    x = torch.randn(4, 3, 40)
    with torch.set_grad_enabled(grad):
        before = fused(x)
        for _ in range(6):  # as often as it takes for everything to be remembered
            torch.testing.assert_close(fused(x), before, rtol=0, atol=0)
        for model in (plain, fused):
            write(model)
        for _ in range(6):
            expected = plain(x)
            # Float32 rounding of sums of 15 and 24 terms, through scales of about 2: far below 1e-4 of the values.
            torch.testing.assert_close(fused(x), expected, rtol=1e-4, atol=1e-5)
    if write is not strides:
        assert not torch.equal(expected, before) if expected.shape == before.shape else True


def test_functional_calls_use_the_tensors_that_they_are_given():
    plain, fused = made(), seqconv.fuse(made())
    x = torch.randn(4, 3, 40)
    for number in range(8):
        given = {name: one.detach() + number for name, one in plain.state_dict().items() if one.is_floating_point()}
        with torch.no_grad():
            expected = torch.func.functional_call(plain, given, (x,))
            torch.testing.assert_close(torch.func.functional_call(fused, given, (x,)), expected, rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(fused(x), plain(x), rtol=1e-4, atol=1e-5)


def test_a_mode_that_changes_at_every_step_is_followed():
    plain, fused = made(), seqconv.fuse(made())
    for number in range(10):
        x = torch.randn(4, 3, 40)
        for model in (plain, fused):
            model.train(number % 2 == 0)
        torch.testing.assert_close(fused(x), plain(x), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(fused.norm.running_var, plain.norm.running_var, rtol=1e-5, atol=1e-6)


def test_parameters_that_begin_to_want_gradients_get_them():
    """A norm was folded without gradients before, while the input alone wanted one."""
    plain, fused = made(), seqconv.fuse(made())
    x = torch.randn(4, 3, 40, requires_grad=True)
    fused.requires_grad_(False)
    for _ in range(3):
        fused(x)
    fused.requires_grad_(True)
    found = []
    for model in (plain, fused):
        model(x).square().sum().backward()
        found.append({name: one.grad for name, one in model.named_parameters()})
    assert all(one is not None for one in found[1].values())
    largest = max(one.abs().max().item() for one in found[0].values())
    for name, one in found[0].items():
        # Sums of 4 x 36 terms in float32; a rounding that moves a maximum is seen in none of these draws.
        torch.testing.assert_close(found[1][name], one, rtol=0, atol=1e-4 * largest)


def test_a_model_may_hold_a_logger_and_a_python_module():
    model = nn.Sequential(nn.Conv1d(3, 4, 3), nn.ReLU(), nn.MaxPool1d(2)).eval()
    model.log, model.functions = logging.getLogger("tests.fusion.writes"), F
    fused, x = seqconv.fuse(model, inplace=True), torch.randn(2, 3, 20)
    expected = seqconv.unfuse(nn.Sequential(*model))(x)
    for _ in range(6):
        close = torch.allclose(fused(x), expected, atol=1e-5)
        assert close
    fused.log.seen = 1
    assert torch.allclose(fused(x), expected, atol=1e-5)
