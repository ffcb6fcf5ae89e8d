"""More than 2**31 elements: addresses are 64-bit, in every layout and both passes. Needs up to 20 GiB of memory."""

import pytest
import torch

from tests.conv_cases import composition, ours

LAYOUTS = {
    "contiguous": lambda shape: torch.zeros(shape),
    "channels_last": lambda shape: torch.zeros(shape[0], shape[2], shape[1]).transpose(1, 2),
}
pytestmark = pytest.mark.large


@pytest.fixture(autouse=True)
def _plain_memory(monkeypatch):
    """Use both cores, and leave memory unpoisoned: pages that nobody writes cost nothing."""
    monkeypatch.undo()
    monkeypatch.delenv("SEQCONV_BACKEND", raising=False)
    torch.set_num_threads(2)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_input_of_more_than_2_to_the_31_elements(layout):
    """The last samples, behind that border, and the first, where a shorter address would wrap around to."""
    shape = (2**21 + 3, 8, 130)
    assert shape[0] * shape[1] * shape[2] > 2**31
    x = LAYOUTS[layout](shape)
    torch.manual_seed(0)
    parts = torch.cat([torch.arange(3), torch.arange(shape[0] - 5, shape[0])])
    some = torch.randint(-3, 4, (len(parts), *shape[1:])).float()
    x[parts] = some
    w = torch.randint(-3, 4, (2, 8, 3)).float()
    x.requires_grad_()
    w.requires_grad_()
    result = ours(x, w, None, None, backend="numba")
    upstream = torch.zeros_like(result)
    upstream[parts] = torch.randint(-3, 4, (len(parts), 2)).float()
    gradients = torch.autograd.grad(result, (x, w), upstream)

    leaf, weight = some.requires_grad_(), w.detach().requires_grad_()
    expected = composition(leaf, weight, None, None)
    dx, dw = torch.autograd.grad(expected, (leaf, weight), upstream[parts])
    assert torch.equal(result[parts], expected)
    assert not result[3:-5].any()
    assert torch.equal(gradients[0][parts], dx)
    assert torch.equal(gradients[1], dw)
    assert not gradients[0][shape[0] // 2].any()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_result_of_more_than_2_to_the_31_elements(layout):
    shape = (2**19 + 3, 1, 64)
    x = LAYOUTS[layout](shape)
    if layout == "channels_last":  # with one channel both layouts are one
        x = torch.zeros(shape[0], 64, 2).transpose(1, 2)
    torch.manual_seed(0)
    parts = torch.cat([torch.arange(3), torch.arange(shape[0] - 5, shape[0])])
    some = torch.randint(-3, 4, (len(parts), x.size(1), 64)).float()
    x[parts] = some
    w = torch.randint(-3, 4, (64, x.size(1), 1)).float()
    with torch.no_grad():
        result = ours(x, w, None, {"pool_size": 1}, backend="numba")
    assert result.numel() > 2**31
    assert torch.equal(result[parts], composition(some, w, None, {"pool_size": 1}))
    assert not result[shape[0] // 2].any()
    del result
    x.requires_grad_()
    w.requires_grad_()
    result = ours(x, w, None, {"pool_size": 1}, backend="numba")  # argmax too, of one byte each
    upstream = torch.ones(()).expand(result.shape)
    gradients = torch.autograd.grad(result, (x, w), upstream)
    leaf, weight = some.requires_grad_(), w.detach().requires_grad_()
    dx, dw = torch.autograd.grad(composition(leaf, weight, None, {"pool_size": 1}).sum(), (leaf, weight))
    assert torch.equal(gradients[0][parts], dx)
    assert torch.equal(gradients[1], dw)
