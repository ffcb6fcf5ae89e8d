"""What every floor of the conv stack promises: the same functions, and the reference's results and gradients.

Whole numbers, every sum of which is exact in any order: results agree to the bit with torch's composition in float64.
The Triton floor runs on CPU tensors in Triton's interpreter, where ``TRITON_INTERPRET`` is set.
"""

import importlib
import inspect
import os

import pytest
import torch

from seqconv.kernels.geometry import Convolution, Pool
from seqconv.kernels.reference import conv_pool as reference
from seqconv.kernels.source import Dense, Tokens, Windows, name_of, options_of, source_of, tensors_of

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
FLOORS = ["triton"] if INTERPRETED else ["reference", "numba"]
CONVOLUTIONS = [Convolution(), Convolution(2, (1, 2)), Convolution(1, (0, 3), 2)]
POOLS = [None, Pool(3, 3), Pool(3, 2, 1), Pool(2, 3, 0, 2), Pool(4, 4, 2, 1, True), Pool(9, 1, 4)]
SIZES = [(5, 3), (17, 1), (33, 4)]  # outputs and taps
ROWS, CHANNELS, SAMPLES, LENGTH = 40, 6, 3, 21


def whole(generator, *shape):
    return torch.randint(-3, 4, shape, generator=generator).float()


def sources(generator):
    table = whole(generator, ROWS, CHANNELS)
    dense = whole(generator, SAMPLES, CHANNELS, LENGTH)
    return {
        "contiguous": Dense(dense),
        "channels-last": Dense(dense.transpose(1, 2).contiguous().transpose(1, 2)),
        "tokens": Tokens(torch.randint(ROWS, (SAMPLES, LENGTH), generator=generator), table, 7),
        "windows": Windows(table, torch.tensor([0, 9, 4], dtype=torch.int32), 16, 1),
        "overlapping windows": Windows(table, torch.tensor([1, 0, 2]), LENGTH - 8, 3),
    }


# Any two of source, convolution, pool and sizes meet in some case.
CASES = [
    pytest.param(source, convolution, pool, *SIZES[(i + j + k) % 3], id=f"{source}-{j}-{k}")
    for i, source in enumerate(sources(torch.Generator()))
    for j, convolution in enumerate(CONVOLUTIONS)
    for k, pool in enumerate(POOLS)
][:: 8 if INTERPRETED else 1]  # the interpreter takes a second for each, and the floor's own tests have more


def floor_of(name):
    return importlib.import_module(f"seqconv.kernels.{name}.conv_pool")


@pytest.mark.parametrize("floor", FLOORS)
@pytest.mark.parametrize(("source", "convolution", "pool", "outputs", "size"), CASES)
def test_equals_torchs_composition(floor, source, convolution, pool, outputs, size):
    generator = torch.Generator().manual_seed(0)
    source = sources(generator)[source]
    w, b = whole(generator, outputs, CHANNELS, size), whole(generator, outputs)
    leaves = [one.double().requires_grad_() for one in (source.values, w, b)]
    exact = source._replace(values=leaves[0])
    expected = reference.compose(exact, *leaves[1:], convolution, pool)
    output, argmax = floor_of(floor).forward(source, w, b, convolution, pool, want_argmax=True)
    assert torch.equal(output.double(), expected)
    alone, nothing = floor_of(floor).forward(source, w, b, convolution, pool, want_argmax=False)
    assert nothing is None
    assert torch.equal(alone, output)
    assert alone.stride() == output.stride()
    positions = convolution.output_length(source.length, size)
    windows, greatest = (1, positions - 1) if pool is None else (pool.output_length(positions), pool.size - 1)
    shape, dtype = floor_of(floor).argmax_format(SAMPLES, outputs, windows, greatest, output.dtype)
    assert (argmax.shape, argmax.dtype) == (shape, dtype)
    _, right = reference.forward(source, w, b, convolution, pool, want_argmax=True)
    assert torch.equal(argmax[..., :outputs], right)
    upstream = whole(generator, *output.shape)
    gradients = torch.autograd.grad(expected, leaves, upstream.double())
    for wanted in ((True, True, True), (True, False, False), (False, True, True)):
        given = floor_of(floor).backward(upstream, argmax, source, w, convolution, pool, wanted=wanted)
        for mine, other, want in zip(given, gradients, wanted, strict=True):
            assert (mine is not None) == want
            assert mine is None or torch.equal(mine.double(), other)


@pytest.mark.skipif(INTERPRETED, reason="a plain process compares them")
@pytest.mark.parametrize("function", ["forward", "backward", "argmax_format", "fold", "folded_shape"])
def test_the_floors_have_the_same_signatures(function):
    """The reference folds nothing and has no plans: that is all that may be missing there."""
    numba, triton = (inspect.signature(getattr(floor_of(name), function)) for name in ("numba", "triton"))
    assert [str(one) for one in numba.parameters.values()] == [str(one) for one in triton.parameters.values()]
    if hasattr(floor_of("reference"), function):
        theirs = inspect.signature(getattr(floor_of("reference"), function)).parameters
        more = {name: one for name, one in numba.parameters.items() if name not in ("folded", "plan")}
        assert [str(one) for one in theirs.values()] == [str(one) for one in more.values()]


@pytest.mark.skipif(INTERPRETED, reason="it is the same there")
@pytest.mark.parametrize("source", list(sources(torch.Generator())))
def test_a_source_holds_its_tensors_first(source):
    source = sources(torch.Generator())[source]
    assert tensors_of(source)[-1] is None
    source = source._replace(lengths=torch.ones(source.samples, dtype=torch.int64))
    tensors = tensors_of(source)
    assert tensors[-1] is source.lengths
    assert all(isinstance(one, torch.Tensor) for one in tensors)
    assert not any(isinstance(one, torch.Tensor) for one in options_of(source))
    assert source_of(type(source), tensors, options_of(source)) == source
    assert name_of(type(source), None).endswith("conv1d_relu_global_max_pool1d")
    assert (source.samples, source.length) == tuple(reference.gathered(source).shape)[::2]
