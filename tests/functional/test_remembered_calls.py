"""Calls like an earlier one: what makes them another call after all. The first call of each pair is remembered."""

import os
from unittest import mock

import numpy as np
import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

import seqconv
from seqconv import backends, functional
from seqconv.kernels.triton import replay

OPERATIONS = ["conv1d_relu_max_pool1d", "embedding_conv1d_relu_max_pool1d"]


@pytest.fixture
def tensors():
    torch.manual_seed(0)
    replay.forget()
    return torch.randn(2, 3, 20), torch.randn(4, 3, 3), torch.randn(4)


def pooled(tensors, **options):
    return functional.conv1d_relu_max_pool1d(*tensors, **{"pool_size": 2, **options})


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_kernel_of_somebody_elses_serves_every_call(tensors, operation, monkeypatch):
    monkeypatch.setattr(backends, "_candidates", dict(backends._candidates))
    x, w, _ = tensors
    given = (x, w) if operation == OPERATIONS[0] else (torch.randint(9, (2, 20)), torch.randn(9, 3), w)
    backends.register(operation, "numba", lambda: lambda *_, **__: torch.full((2, 4, 9), 7.0))
    try:
        assert [getattr(functional, operation)(*given, pool_size=2).mean().item() for _ in range(3)] == [7.0] * 3
    finally:
        replay.forget()


def test_options_that_change_in_place_are_read_anew(tensors):
    table, w = torch.randn(9, 3, requires_grad=True), tensors[1]
    tokens, skipped = torch.arange(9).repeat(2, 3), torch.tensor(1)
    for row in (1, 1, 2):
        skipped.fill_(row)
        out = functional.embedding_conv1d_relu_max_pool1d(tokens, table, w, pool_size=2, padding_idx=skipped)
        (gradient,) = torch.autograd.grad(out.sum(), table)
        assert (gradient == 0).all(1).nonzero().flatten().tolist() == [row]


@pytest.mark.parametrize(("right", "other"), [
    (np.uint8(200), np.int8(-56)), (np.int8(1), np.True_), (np.int64(2), np.array([2])), (1, 1.0), (1, True),
    (np.int64(3), b"\3\0\0\0\0\0\0\0"), (np.int64(1), np.float64(5e-324)), ("same", "full"),
])  # fmt: skip
def test_an_option_of_another_type_is_refused_as_at_first(tensors, right, other):
    for _ in range(2):
        pooled(tensors, padding=right)
    with pytest.raises((TypeError, ValueError), match="padding"):
        pooled(tensors, padding=other)


def test_numbers_of_other_byte_orders_are_other_numbers(tensors):
    assert pooled(tensors, padding=np.array(1, ">i2")).size(2) == 10
    assert pooled(tensors, padding=np.array(256, "<i2")).size(2) == 265


@pytest.mark.parametrize("place", [0, 1, 2])
def test_tensors_without_strides_are_named(tensors, place):
    given = list(tensors)
    given[place] = torch.eye(3).to_sparse_csr()
    with pytest.raises(TypeError, match=r"dense tensor, got one of layout torch\.sparse_csr"):
        pooled(given)


def test_gradients_that_end_during_a_call_do_not_end_others(tensors):
    x, w, b = tensors

    def pack(saved):
        w.requires_grad_(False)
        return saved

    w.requires_grad_()
    with saved_tensors_hooks(pack, lambda saved: saved):
        assert pooled((x, w, b)).requires_grad
    assert not w.requires_grad
    assert pooled((x, w.clone().requires_grad_(), b)).requires_grad


@pytest.mark.parametrize("layer", [
    seqconv.ConvReLUMaxPool1d(3, 4, 3, 2), seqconv.ConvReLUGlobalMaxPool1d(3, 4, 3),
    torch.compile(seqconv.ConvReLUMaxPool1d(3, 4, 3, 2), backend="aot_eager"),
], ids=["pooled", "global", "compiled"])  # fmt: skip
def test_saved_tensors_may_be_laid_out_anew(tensors, layer):
    """By hooks, as those that keep them elsewhere for a while."""

    def turned(saved):
        return saved.mT.contiguous().mT if saved.dim() > 1 else saved

    def gradients():
        layer.zero_grad()
        layer(tensors[0]).square().sum().backward()
        return [one.grad.clone() for one in layer.parameters()]

    expected = gradients()
    with saved_tensors_hooks(lambda saved: saved, turned):
        found = gradients()
    torch.testing.assert_close(found, expected)


def test_a_replaced_environment_is_seen(tensors):
    pooled(tensors)
    with mock.patch.object(os, "environ", {"SEQCONV_BACKEND": "nobody"}), pytest.raises(ValueError, match="nobody"):
        pooled(tensors)
