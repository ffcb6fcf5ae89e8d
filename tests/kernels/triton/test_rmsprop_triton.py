"""RMSprop's kernel against the reference in float64, and against torch's own optimizer on a GPU."""

import pytest
import torch

from seqconv.kernels.reference import rmsprop as reference
from seqconv.kernels.triton import rmsprop as kernel
from seqconv.training import rmsprop

OPTIONS = {"rate": 1e-2, "decay": 0.9, "epsilon": 1e-7}
SHAPES = [(3000,), (5,), (), (40, 33), (0, 2), (1024,)]


def drawn(shapes, dtype, device):
    """Return parameters, gradients and mean squares."""
    generator = torch.Generator().manual_seed(0)
    three = [[torch.randn(shape, generator=generator) for shape in shapes] for _ in range(2)]
    three.append([torch.rand(shape, generator=generator) for shape in shapes])
    return [[one.to(device, dtype) for one in of] for of in three]


@pytest.mark.parametrize("dtype", kernel.DTYPES)
@pytest.mark.parametrize("times", [1, 4])  # more tensors than a launch takes
def test_follows_the_reference(device, dtype, times):
    tensors = drawn(SHAPES * times, dtype, device)
    exact = [[one.cpu().double() for one in of] for of in tensors]
    versions = [one._version for one in tensors[0] + tensors[2]]
    kernel.rmsprop_step(*tensors, **OPTIONS)
    reference.rmsprop_step(*exact, **OPTIONS)
    # Each of v, its square root, that with epsilon, and p is rounded to the dtype, and a step is far below p.
    roundings = 4 * torch.finfo(dtype).eps
    for of in (0, 2):
        for one, other in zip(tensors[of], exact[of], strict=True):
            torch.testing.assert_close(one.cpu().double(), other, rtol=roundings, atol=roundings / 10)
    assert [one._version for one in tensors[0] + tensors[2]] == [version + 1 for version in versions]


@pytest.mark.parametrize("special", [float("nan"), float("inf")])
def test_special_gradients_reach_their_own_numbers_alone(device, special):
    tensors = drawn([(40,), (7,)], torch.float32, device)
    tensors[1][0][3] = special
    exact = [[one.cpu().double() for one in of] for of in tensors]
    kernel.rmsprop_step(*tensors, **OPTIONS)
    reference.rmsprop_step(*exact, **OPTIONS)
    for one, other in zip(tensors[0] + tensors[2], exact[0] + exact[2], strict=True):
        torch.testing.assert_close(one.cpu().double(), other, rtol=1e-6, atol=1e-7, equal_nan=True)


def test_memory_around_the_tensors_is_not_written(device):
    around = [torch.full((1500,), 7.0, device=device) for _ in range(3)]
    kernel.rmsprop_step(*([one[100:1300]] for one in around), **OPTIONS)
    for one in (around[0], around[2]):
        assert (one[:100] == 7).all()
        assert (one[1300:] == 7).all()
        assert (one[100:1300] != 7).all()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")
@pytest.mark.parametrize("dtype", kernel.DTYPES)
@pytest.mark.parametrize("captured", [False, True])
def test_trains_as_torchs_optimizer_does(monkeypatch, dtype, captured):
    """Steps, state and checkpoint; also out of a CUDA graph."""
    launched = []
    step = kernel.rmsprop_step
    monkeypatch.setattr(kernel, "rmsprop_step", lambda *a, **o: (launched.append(len(a[0])), step(*a, **o)))
    mine, theirs = ([one.requires_grad_() for one in drawn(SHAPES, dtype, "cuda")[0]] for _ in range(2))
    optimizers = [rmsprop(mine), torch.optim.RMSprop(theirs, lr=1e-3, alpha=0.9, eps=1e-7, foreach=True)]
    for optimizer, parameters in zip(optimizers, (mine, theirs), strict=True):
        optimizer.param_groups[0]["capturable"] = captured
        gradients = [torch.zeros_like(one) for one in parameters]
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        optimizer.step()  # of zeros: state is made
        graph = torch.cuda.CUDAGraph()
        if captured:
            torch.cuda.synchronize()
            with torch.cuda.graph(graph):
                optimizer.step()
        generator = torch.Generator("cuda").manual_seed(1)
        for _ in range(3):
            for gradient in gradients:
                gradient.normal_(generator=generator)
            if captured:
                graph.replay()
            else:
                optimizer.step()
    assert set(launched) == {len(SHAPES)}
    states = [one.state_dict()["state"] for one in optimizers]
    assert states[0].keys() == states[1].keys()
    for number in states[0]:
        assert states[0][number]["step"].item() == states[1][number]["step"].item()
        for one, other in ((states[0][number]["square_avg"], states[1][number]["square_avg"]),
                           (mine[number].detach(), theirs[number].detach())):  # fmt: skip
            torch.testing.assert_close(one, other, rtol=4 * torch.finfo(dtype).eps, atol=1e-7)
