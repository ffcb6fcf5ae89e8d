"""The latest calls of one place: found only where operands and torch's switches are as they were."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from seqconv import backends
from seqconv.functional import conv
from seqconv.functional.recent import MOST_ADDED, NOTHING, Recent


def operands():
    return torch.randn(2, 3, 20), None, nn.Parameter(torch.randn(4, 3, 5)), torch.randn(4)


def known(*given):
    return given


def noted(given):
    recent = Recent()
    recent.add(given, known)
    assert recent.find(given) is known
    return recent


def changed(given, place, one):
    return (*given[:place], one, *given[place + 1 :])


OTHERS = {
    "shape": lambda given: changed(given, 0, torch.randn(2, 3, 21)),
    "strides": lambda given: changed(given, 0, torch.randn(2, 20, 3).transpose(1, 2)),
    "dtype": lambda given: changed(given, 0, given[0].double()),
    "no parameter": lambda given: changed(given, 2, given[2].detach()),
    "frozen": lambda given: changed(given, 2, nn.Parameter(given[2].detach(), requires_grad=False)),
    "no bias": lambda given: changed(given, 3, None),
    "another place": lambda given: (given[0], given[3], given[2], None),
    "lengths": lambda given: changed(given, 1, torch.tensor([3, 4])),
    "negated": lambda given: changed(given, 0, torch._neg_view(given[0])),
    "zeros": lambda given: changed(given, 0, torch._efficientzerotensor((2, 3, 20))),
    "subclass": lambda given: changed(given, 0, given[0].as_subclass(type("Own", (torch.Tensor,), {}))),
    "meta": lambda given: changed(given, 0, given[0].to("meta")),
    "twice": lambda given: changed(given, 0, given[2]),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_operands_are_not_found(name):
    given = operands()
    recent = noted(given)
    assert recent.find(OTHERS[name](given)) is None
    assert recent.find(given) is known


def vmapped(recent, given):
    def call(x):
        assert recent.find(changed(given, 0, x)) is None
        assert recent.find(given) is None
        return x

    torch.vmap(call)(given[0].expand(3, 2, 3, 20))


def differentiated_forward(recent, given):
    with torch.autograd.forward_ad.dual_level():
        assert recent.find(given) is None


def traced(recent, given):
    def call(x):
        assert recent.find(changed(given, 0, x)) is None
        return x + 1

    torch.jit.trace(call, given[0])


def without_gradients(recent, given):
    with torch.no_grad():
        assert recent.find(given) is None


def inferred(recent, given):
    with torch.inference_mode():
        assert recent.find(given) is None


def autocast(recent, given):
    with torch.autocast("cpu", torch.bfloat16):
        assert recent.find(given) is None


def other_threads(recent, given):
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(threads + 1)
        assert recent.find(given) is None
    finally:
        torch.set_num_threads(threads)


def other_backend(recent, given):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(backends.VARIABLE, "reference")
        assert recent.find(given) is None


def fake(recent, given):
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        assert recent.find(given) is None


def precise(recent, given):
    before = torch.backends.cudnn.conv.fp32_precision
    try:
        torch.backends.cudnn.conv.fp32_precision = "ieee" if before != "ieee" else "tf32"
        assert recent.find(given) is None
    finally:
        torch.backends.cudnn.conv.fp32_precision = before


@pytest.mark.parametrize(
    "under",
    [
        vmapped,
        differentiated_forward,
        traced,
        without_gradients,
        inferred,
        autocast,
        other_threads,
        other_backend,
        fake,
        precise,
    ],
)
def test_other_switches_are_not_found(under):
    given = operands()
    recent = noted(given)
    under(recent, given)
    assert recent.find(given) is known


def test_calls_that_always_differ_are_given_up():
    recent = Recent()
    for length in range(10, 20 + MOST_ADDED):
        recent.add((torch.randn(2, 3, length), None), known)
        assert len(recent.entries) <= 4
    assert not recent.entries


def test_more_operands_than_can_be_compared_are_not_noted():
    recent = Recent()
    given = tuple(torch.randn(2) for _ in range(len(NOTHING) + 1))
    recent.add(given, known)
    assert recent.find(given) is None


def test_one_tensor_twice_is_not_noted_and_closes_no_place():
    recent, (input, _, weight, bias) = Recent(), operands()
    for _ in range(2 * MOST_ADDED):
        recent.add((input, None, weight, bias, bias), known)
    assert not recent.entries
    recent.add((input, None, weight, bias), known)
    assert recent.find((input, None, weight, bias)) is known


def test_a_call_that_is_found_gives_the_same_bits():
    recent, options = Recent(), ((1, 0, 1, 1), (2, None, 0, 1, False, torch.preserve_format))
    for _ in range(3):
        given = operands()
        expected = conv.run(conv.conv_call, given, options, "auto")
        output = conv.run(conv.conv_call, given, options, "auto", recent)
        assert torch.equal(output, expected)
        assert output.requires_grad
    assert recent.entries
