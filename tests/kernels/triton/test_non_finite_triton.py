"""NaN and infinities in inputs and weights: every gradient has them where torch's dense convolution has them.

All other numbers are small and whole, so that no sum depends on its order. The Triton floor is tested on a GPU or in
the interpreter, as in all files here; the Numba floor serves the same calls in a plain process.
"""

import os

import numpy as np
import pytest
import torch

from tests.conv_cases import whole
from tests.grids import large
from tests.kernels.triton.test_strides_triton import composed, served

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
LAYERS = ["dense", "dense_global", "tokens", "tokens_global", "windows", "windows_global"]
CONVOLUTIONS = {
    "plain": {},
    "padded": {"padding": 1},  # torch's own convolutions differ in whether they multiply the padding's zeros
    "dilated": {"dilation": 3},
    "strided": {"stride": 2},
}
POOLS = [{"pool_size": 3}, {"pool_size": 4, "pool_padding": 1}, {"pool_size": 3, "pool_stride": 2}]
DTYPES = {"float32": torch.float32, "tf32": torch.float32, "bfloat16": torch.bfloat16}
SAMPLES, LENGTH, STEP, ROWS, SIZE = 3, 20, 2, 60, 3
# A value, its position in a sample, and the weight's tap that has it.
PLACES = [(float("nan"), 0, 0), (float("inf"), LENGTH // 2, 1), (float("-inf"), LENGTH - 1, 2)]
CASES = [
    pytest.param(layer, convolution, pool, dtype, outputs, id=f"{layer}-{convolution}-{number}-{dtype}-{outputs}")
    for turn, layer in enumerate(LAYERS)
    for again, convolution in enumerate(CONVOLUTIONS)
    for number, pool in enumerate(POOLS if "global" not in layer else [None])
    for dtype in [list(DTYPES)[(turn + again + number) % 3]]
    for outputs in [(5, 40)[(turn + again) % 2]]  # one block of outputs or two
]


def operands(layer, outputs, value, position, tap):
    """Return index, source and weight, with ``value`` in one channel of a position's row, and in another of a tap."""
    torch.manual_seed(0)
    kind, channels = layer.partition("_")[0], 3
    weight = whole(outputs, channels, SIZE, largest=1)
    weight[1, 2, tap] = value
    if kind == "dense":
        index, source = None, whole(SAMPLES, channels, LENGTH)
        source[1, 0, position] = value
        return index, source, weight
    source = whole(ROWS, channels)
    if kind == "tokens":
        index = torch.randperm(ROWS).view(SAMPLES, LENGTH)
        source[index[1, position], 0] = value
    else:
        index = torch.tensor([0, 5, 1])
        source[index[1] + STEP * position, 0] = value
    return index, source, weight


def check(layer, convolution, pool, dtype, outputs, value, position, tap, backend, device):
    index, source, weight = operands(layer, outputs, value, position, tap)
    options = {**CONVOLUTIONS[convolution], **(pool or {})}
    exact = [t.double().requires_grad_() for t in (source, weight)]
    expected = composed(layer, index, *exact, None, length=LENGTH, **options)
    upstream = whole(*expected.shape, largest=1)
    wanted = torch.autograd.grad(expected, exact, upstream.double())
    leaves = [t.to(device, DTYPES[dtype]).requires_grad_() for t in (source, weight)]
    index = None if index is None else index.to(device)
    own = {"length": LENGTH} if layer.startswith("windows") else {}
    out = served(layer, backend, index, *leaves, None, **options, **own)
    got = torch.autograd.grad(out, leaves, upstream.to(out))
    for name, one, other in zip(("result", "source", "weight"), (out, *got), (expected, *wanted), strict=True):
        right = other.detach().to(DTYPES[dtype]).double()
        np.testing.assert_array_equal(one.detach().cpu().double(), right, err_msg=name)


@pytest.mark.parametrize(
    ("layer", "convolution", "pool", "dtype", "outputs", "place"),
    [
        pytest.param(*case.values, place, id=f"{case.id}-{place}", marks=large(number % 3 or number // 3 % 3 != place))
        for number, case in enumerate(CASES)
        for place in range(len(PLACES))
    ],
)
def test_they_stand_where_torch_has_them(device, layer, convolution, pool, dtype, outputs, place):
    torch.backends.cudnn.allow_tf32 = dtype == "tf32"  # the fixture that all tests have here puts it back
    check(layer, convolution, pool, dtype, outputs, *PLACES[place], "triton", device)


@pytest.mark.skipif(INTERPRETED, reason="nothing of Triton's: a plain process runs it")
@pytest.mark.parametrize(("layer", "convolution", "pool", "dtype", "outputs"), CASES)
def test_they_do_on_the_cpu(layer, convolution, pool, dtype, outputs):
    for place in PLACES:
        check(layer, convolution, pool, "float32", outputs, *place, "numba", "cpu")
