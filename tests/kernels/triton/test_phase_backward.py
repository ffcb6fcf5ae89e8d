"""Gradients by phases against the reference in float64: whole numbers, every sum of which is exact, so bits agree.

Small whole numbers are TF32 numbers and bfloat16 numbers, so that the same tests run in the interpreter and on a GPU.
"""

import numpy as np
import pytest
import torch

from seqconv.kernels.geometry import Convolution, Pool
from seqconv.kernels.reference import conv_pool as reference
from seqconv.kernels.source import Dense
from seqconv.kernels.triton import conv_pool, phase_backward
from seqconv.kernels.triton.configurations import Layer
from tests.grids import grid, large
from tests.kernels.cases import integers
from tests.kernels.triton.gather_cases import Case

CASES = {
    "fewer outputs than a tile": ((3, 8, 23), 5, 3, Convolution(), Pool(2, 2)),
    "window longer than the kernel": ((2, 16, 37), 32, 3, Convolution(), Pool(5, 5)),
    "kernel over three windows": ((2, 16, 40), 40, 7, Convolution(), Pool(3, 3)),
    "no pooling": ((1, 3, 12), 1, 2, Convolution(), Pool(1, 1)),
    "positions between the windows": ((2, 20, 40), 16, 5, Convolution(), Pool(2, 3)),
    "several tiles of channels and outputs": ((2, 130, 20), 40, 3, Convolution(), Pool(2, 2)),
    "dilated": ((2, 5, 50), 33, 3, Convolution(1, (0, 0), 3), Pool(2, 2)),
    "padded unevenly": ((2, 20, 40), 16, 5, Convolution(1, (2, 1)), Pool(3, 3)),
    "windows over padding alone": ((2, 20, 20), 33, 3, Convolution(1, (9, 9)), Pool(2, 2)),
    "padded windows, a cut one last": ((2, 5, 50), 20, 4, Convolution(1, (1, 1), 2), Pool(4, 4, 1, 1, True)),
    "shorter than a span": ((40, 6, 4), 17, 2, Convolution(), Pool(3, 3)),
    "many samples in a tile": ((70, 4, 9), 8, 3, Convolution(), Pool(2, 2)),
}
KINDS = {"tf32": torch.float32, "16": torch.bfloat16}
# Of the input and of the upstream gradient.
LAYOUTS = [
    ("channels-last", "channels-last"),
    ("contiguous", "contiguous"),
    ("cut", "cut"),
    ("channels-last", "contiguous"),
]


def in_turns(names, layouts):
    """Return every name in every layout, in kinds that take turns: any two of the three meet in some case.

    Beyond one case of each name they are large.
    """
    kinds = list(KINDS)
    return [
        pytest.param(
            name,
            layout,
            kinds[(number // len(layouts) + turn) % len(kinds)],
            marks=large(turn != number % len(layouts)),
        )
        for number, name in enumerate(names)
        for turn, layout in enumerate(layouts)
    ]


@pytest.fixture(autouse=True)
def _tf32(_exact_products):
    torch.backends.cudnn.allow_tf32 = True


@pytest.fixture
def served(monkeypatch):
    """Count the launches of the two kernels."""
    found = []
    for name in ("launch_input_gradient", "launch_weight_gradient"):
        launch = getattr(phase_backward, name)
        monkeypatch.setattr(
            phase_backward, name, lambda *a, name=name, launch=launch, **k: (found.append(name), launch(*a, **k))[1]
        )
    return found


def at_home(tensor, layout):
    """Return an ``(N, C, L)`` tensor of a layout."""
    if layout == "contiguous":
        return tensor.contiguous()
    rows = tensor.transpose(1, 2)
    if layout == "cut":
        rows = torch.nn.functional.pad(rows, (3, 2, 1, 4))[:, 1:-4, 3:-2]
    return (rows if layout == "cut" else rows.contiguous()).transpose(1, 2)


@pytest.mark.parametrize(("name", "layouts", "kind"), in_turns(CASES, LAYOUTS))
def test_equals_the_reference(device, served, kind, name, layouts):
    layout, upstream_layout = layouts
    shape, outputs, size, convolution, pool = CASES[name]
    dtype, generator = KINDS[kind], torch.Generator().manual_seed(0)
    x = at_home(integers(generator, *shape, dtype=dtype, device=device), layout)
    w = integers(generator, outputs, shape[1], size, dtype=dtype, device=device, most=1)
    b = integers(generator, outputs, dtype=dtype, device=device)
    out, argmax = conv_pool.forward(Dense(x), w, b, convolution, pool, want_argmax=True)
    upstream = at_home(integers(generator, *out.shape, dtype=dtype, device=device, most=1), upstream_layout)
    leaves = [one.detach().cpu().double().requires_grad_() for one in (x, w, b)]
    value = reference.compose(Dense(leaves[0]), *leaves[1:], convolution, pool)
    right = torch.autograd.grad(value, leaves, upstream.cpu().double())
    gradients = conv_pool.backward(upstream, argmax, Dense(x), w, convolution, pool, wanted=(True, True, True))
    assert "launch_input_gradient" in served
    assert "launch_weight_gradient" in served
    for gradient, exact in zip(gradients, right, strict=True):
        assert torch.equal(gradient.cpu(), exact.to(dtype))  # the sum is exact, and rounded once


GLOBAL = {
    "one tile": ((3, 8, 23), 5, 3, Convolution()),
    "several tiles of positions, channels and outputs": ((2, 70, 90), 40, 3, Convolution()),
    "strided, dilated, padded": ((2, 20, 70), 33, 4, Convolution(2, (3, 2), 3)),
    "more padding than kernel": ((2, 3, 9), 8, 2, Convolution(1, (5, 5))),
    "long kernel of few channels": ((2, 4, 50), 20, 31, Convolution()),
    "more taps than a program has": ((2, 20, 70), 33, 17, Convolution(2, (3, 2), 3)),
    "taps that programs do not share evenly": ((2, 70, 64), 5, 40, Convolution(3, (1, 7))),
}


@pytest.mark.parametrize(("name", "layout", "kind"), in_turns(GLOBAL, ["channels-last", "contiguous", "cut"]))
def test_the_global_layer_equals_the_reference(device, kind, name, layout):
    shape, outputs, size, convolution = GLOBAL[name]
    dtype, generator = KINDS[kind], torch.Generator().manual_seed(0)
    x = at_home(integers(generator, *shape, dtype=dtype, device=device), layout)
    w = integers(generator, outputs, shape[1], size, dtype=dtype, device=device, most=1)
    b = integers(generator, outputs, dtype=dtype, device=device)
    _, argmax = conv_pool.forward(Dense(x), w, b, convolution, None, want_argmax=True)
    upstream = integers(generator, outputs, len(x), dtype=dtype, device=device, most=1).T
    leaves = [one.detach().cpu().double().requires_grad_() for one in (x, w, b)]
    value = reference.compose(Dense(leaves[0]), *leaves[1:], convolution, None)
    right = torch.autograd.grad(value, leaves, upstream.cpu().double())
    gradients = conv_pool.backward(upstream, argmax, Dense(x), w, convolution, None, wanted=(True, True, True))
    for gradient, exact in zip(gradients, right, strict=True):
        assert torch.equal(gradient.cpu(), exact.to(dtype))


@pytest.mark.parametrize(
    ("kind", "value", "position", "tap"),
    [("tf32", float("nan"), 0, 3), ("16", float("inf"), 33, 12), ("tf32", -float("inf"), 48, 23)],
)
def test_long_global_kernels_have_torchs_nan(device, kind, value, position, tap):
    """One number of the input and one weight: no other program's taps, and no tap beyond the input, gets a NaN."""
    dtype, generator, convolution = KINDS[kind], torch.Generator().manual_seed(2), Convolution(3, (2, 0))
    x = integers(generator, 2, 50, 17, dtype=dtype).transpose(1, 2)
    w = integers(generator, 33, 17, 24, dtype=dtype, most=1)
    x[1, 3, position], w[5, 16, tap] = value, value
    leaves = [one.double().requires_grad_() for one in (x, w)]
    out = reference.compose(Dense(leaves[0]), leaves[1], torch.zeros(33, dtype=torch.float64), convolution, None)
    upstream = integers(generator, *out.shape, dtype=dtype, most=1)
    right = torch.autograd.grad(out, leaves, upstream.double())
    source, w = Dense(x.to(device)), w.to(device)
    _, argmax = conv_pool.forward(source, w, None, convolution, None, want_argmax=True)
    wanted = (True, True, False)
    gradients = conv_pool.backward(upstream.to(device), argmax, source, w, convolution, None, wanted=wanted)
    for gradient, exact in zip(gradients, right, strict=False):
        np.testing.assert_array_equal(gradient.cpu().double(), exact.to(dtype).double())
        assert exact.isnan().any()
        assert not exact.isnan().all()


# A pool and a kernel size: of the global maximum more taps than a program has, too.
GATHERED = [(Pool(3, 3), 5), (None, 5), (None, 17), (None, 24)]


@grid(together=1, kind=list(KINDS), rows=["tokens", "windows"], layer=GATHERED, padding=[0, 2])
def test_equals_the_reference_on_gathered_rows(device, served, kind, rows, layer, padding):
    (pool, size), dtype, generator = layer, KINDS[kind], torch.Generator().manual_seed(1)
    table = integers(generator, 30, 19, dtype=dtype, device=device)
    w = integers(generator, 21, 19, size, dtype=dtype, device=device, most=1)
    if rows == "tokens":
        numbers, options = torch.randint(30, (3, 26), generator=generator), {}
    else:
        numbers = torch.tensor([0, 4, 4, 1])
        options = {"length": 13, "step": 2} if size == 5 else {"length": 26, "step": 1}
    case = Case(numbers.to(device), table, Convolution(1, (padding, padding)), pool, **options)
    out, argmax = case.forward(w, None, "direct")
    upstream = integers(generator, *out.shape, dtype=dtype, device=device, most=1)
    leaves = [one.detach().cpu().double().requires_grad_() for one in (table, w)]
    b = torch.zeros(21, dtype=torch.float64, requires_grad=True)
    value = case.reference(leaves[0], leaves[1], b, case.index.cpu())
    right = torch.autograd.grad(value, [*leaves, b], upstream.cpu().double())
    gradients = case.backward(upstream, argmax, w)
    assert set(served) == ({"launch_input_gradient", "launch_weight_gradient"} if pool else set())
    for gradient, exact in zip(gradients, right, strict=True):
        assert torch.equal(gradient.cpu(), exact.to(dtype))


@pytest.mark.parametrize(
    ("size", "convolution", "pool", "kind"),
    [
        (7, Convolution(2), Pool(5, 5), "16"),
        (7, Convolution(), Pool(5, 4), "16"),
        (7, Convolution(), Pool(5, 20, 0, 3), "16"),
        (17, Convolution(), Pool(5, 5), "16"),
        (9, Convolution(1, (0, 0), 3), Pool(2, 2), "16"),
        (7, Convolution(), Pool(5, 5), "ieee"),
    ],
)
def test_serves_what_it_unrolls(size, convolution, pool, kind):
    """Strides, overlapping or dilated windows, long kernels, many windows a span, exact products: not these kernels."""
    layer = Layer(kind, 32, 32, size, 1, False, False, "sm_90")
    plain = layer._replace(kind="16", size=7)
    assert phase_backward.serves(plain, Convolution(), Pool(5, 5))
    assert not phase_backward.serves(layer, convolution, pool)


def test_a_global_layer_compiles_nothing_for_its_length(device, served):
    """The global maximum is a window as long as its input, which no compilation may depend on."""
    x, w = torch.ones(2, 3, 9, device=device), torch.ones(4, 3, 2, device=device)
    out, argmax = conv_pool.forward(Dense(x), w, None, Convolution(), None, want_argmax=True)
    wanted = (True, True, True)
    conv_pool.backward(torch.ones_like(out), argmax, Dense(x), w, Convolution(), None, wanted=wanted)
    assert not served
