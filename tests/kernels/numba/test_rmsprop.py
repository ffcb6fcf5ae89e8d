"""The compiled step of RMSprop against the reference's, and both against float64."""

import numpy as np
import pytest
import torch

from seqconv.kernels.numba.rmsprop import BLOCK, rmsprop_step
from seqconv.kernels.reference import rmsprop as reference

OPTIONS = {"rate": 1e-3, "decay": 0.9, "epsilon": 1e-7}
SHAPES = [(), (1,), (7,), (0, 3), (16,), (3, 11), (BLOCK,), (2 * BLOCK + 5,), (1,)]


def draw(shapes, scale=1e-3):
    torch.manual_seed(5)
    return [[factor * torch.randn(shape) for shape in shapes] for factor in (1.0, scale)] + [
        [scale**2 * torch.rand(shape) for shape in shapes]
    ]


def copies(tensors):
    return [tensor.clone() for tensor in tensors]


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("scale", [1e-8, 1e-3, 1e3])
def test_equals_the_reference_to_the_last_bits(scale, threads):
    """The mean squares may differ where a CPU rounds a product by itself, the parameters by the square root's last bit.

    That is one unit in the last place of what is added, twice, and one of the sum.
    """
    torch.set_num_threads(threads)
    parameters, gradients, squares = draw(SHAPES, scale)
    ours, theirs = [copies(parameters), copies(squares)], [copies(parameters), copies(squares)]
    rmsprop_step(ours[0], gradients, ours[1], **OPTIONS)
    reference.rmsprop_step(theirs[0], gradients, theirs[1], **OPTIONS)
    for before, *found in zip(parameters, *ours, *theirs, strict=True):
        p, v, q, w, moved = (one.numpy() for one in (*found, found[2] - before))
        assert (np.abs(v - w) <= np.spacing(np.abs(w))).all()
        assert (np.abs(p - q) <= np.spacing(np.abs(q)) + 2 * np.spacing(np.abs(moved))).all()
        assert p.size == 0 or (p != before.numpy()).any()


def test_the_error_is_torchs():
    """Largest error against float64 after ten steps, at most twice the reference's."""
    parameters, _, squares = draw([(5000,)])
    runs, plain = [], reference.rmsprop_step
    for step, dtype in ((rmsprop_step, torch.float32), (plain, torch.float32), (plain, torch.float64)):
        torch.manual_seed(6)
        state = [[one.to(dtype) for one in copies(of)] for of in (parameters, squares)]
        for _ in range(10):
            step(state[0], [(1e-3 * torch.randn(5000)).to(dtype)], state[1], **OPTIONS)
        runs.append(state)
    for part in (0, 1):
        errors = [(run[part][0].double() - runs[2][part][0]).abs().max().item() for run in runs[:2]]
        assert 0 < errors[0] <= 2 * errors[1]


def test_bits_do_not_depend_on_the_threads():
    results = []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        parameters, gradients, squares = draw([(4 * BLOCK + 9,), (30,)])
        rmsprop_step(parameters, gradients, squares, **OPTIONS)
        results.append([*parameters, *squares])
    for other in results[1:]:
        assert all(torch.equal(one, same) for one, same in zip(results[0], other, strict=True))


def test_numbers_that_are_none():
    gradient = torch.tensor([0.0, -0.0, float("inf"), float("nan"), 1e-30, 1e30, 3e-39, -1.0] * 3)
    squares = torch.tensor([0.0, 1.0, 1.0, 1.0, 0.0, 1.0, 0.0, float("nan")] * 3)
    ours, theirs = ([torch.ones(24), squares.clone()] for _ in range(2))
    for step, (parameter, square) in ((rmsprop_step, ours), (reference.rmsprop_step, theirs)):
        step([parameter], [gradient], [square], **OPTIONS)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=0, equal_nan=True)


def test_memory_around_is_left_alone_and_torch_is_told():
    whole = [torch.full((40,), 7.0) for _ in range(3)]
    parameter, gradient, square = (one[3:32] for one in whole)
    versions = [one._version for one in (parameter, gradient, square)]
    rmsprop_step([parameter], [gradient], [square], **OPTIONS)
    for one in (whole[0], whole[2]):
        assert (one[:3] == 7).all()
        assert (one[32:] == 7).all()
        assert (one[3:32] != 7).all()
    assert (whole[1] == 7).all()
    assert [one._version for one in (parameter, gradient, square)] == [versions[0] + 1, versions[1], versions[2] + 1]
    rmsprop_step([], [], [], **OPTIONS)
