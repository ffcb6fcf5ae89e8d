"""The fold of a batch norm on the CPU against its definition in float64."""

from __future__ import annotations

import pytest
import torch

from seqconv.kernels.norm import Norm
from seqconv.kernels.norm import folded as composed
from seqconv.kernels.numba.norm import folded

# Per number: a square root, a quotient, two products and two sums, each off by half an ulp of intermediate results.
ULPS = 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("absent", [(), (1,), (4,), (5,), (1, 4, 5)], ids=str)
@pytest.mark.parametrize("shape", [(1, 1, 1), (5, 3, 4), (33, 7, 9), (3, 0, 2)], ids=str)
def test_fold(shape, absent, dtype):
    generator = torch.Generator().manual_seed(0)
    outputs = shape[0]
    given = [torch.randn(shape, generator=generator, dtype=dtype)]
    given += [torch.randn(outputs, generator=generator, dtype=dtype) for _ in range(5)]
    given[3] = given[3].abs() + 0.1
    given = [None if place in absent else one for place, one in enumerate(given)]
    weight, bias, *norm = (None if one is None else one.double() for one in given)
    expected = composed(weight, bias, Norm(*norm, eps=1e-3))
    scaled, shift = folded(*given, 1e-3)
    assert (scaled.dtype, scaled.shape, shift.shape) == (dtype, shape, (outputs,))
    bound = ULPS * torch.finfo(dtype).eps
    torch.testing.assert_close(scaled.double(), expected[0], rtol=bound, atol=0)
    terms = (expected[1].abs() + 10).max().item()  # of the difference that the shift is
    torch.testing.assert_close(shift.double(), expected[1], rtol=0, atol=bound * terms)


def test_nan_and_infinity_stay_where_they_are():
    weight, ones = torch.ones(3, 2, 2), torch.ones(3)
    mean, var = torch.tensor([0.0, float("nan"), 0.0]), torch.tensor([1.0, 1.0, float("inf")])
    scaled, shift = folded(weight, None, mean, var, ones, ones, 0.0)
    expected = composed(weight, None, Norm(mean, var, ones, ones, eps=0.0))
    torch.testing.assert_close(scaled, expected[0], equal_nan=True)
    torch.testing.assert_close(shift, expected[1], equal_nan=True)
