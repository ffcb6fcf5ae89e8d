"""The conv stack's functions against torch's composition, bit for bit: every argument, layout, dtype and gradient.

Numbers are small and whole, so that sums are exact in any order and a maximum has ties to choose from.
"""

import itertools

import pytest
import torch

from seqconv import BackendError, backends, functional
from seqconv.functional import conv1d_relu_global_max_pool1d, conv1d_relu_max_pool1d
from tests.conftest import FLOORS
from tests.conv_cases import CONVOLUTIONS, LAYOUTS, POOLS, assert_same, channels_last, composition, ours, same, whole
from tests.grids import grid, rounds

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
pytestmark = [
    pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths"),
    pytest.mark.usefixtures("floor"),
]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(11)


@pytest.mark.parametrize(
    ("number", "pool"), list(enumerate([*POOLS, *({**pool, "ceil_mode": True} for pool in POOLS if pool)])), ids=str
)
@rounds(5)
def test_every_combination_of_arguments(turn, number, pool, draw):
    """A fifth of the convolutions and kernel sizes each, another one of each pool; the layouts take turns."""
    layouts = ("contiguous", "channels_last", "unbatched")
    for case, (convolution, size) in enumerate(itertools.product(CONVOLUTIONS, (2, 3))):
        if case % 5 != (number + turn) % 5:
            continue
        layout = layouts[(number + case) % 3]
        x, b, w = draw(2, 4, 17), draw(6), draw(6, 4 // convolution["groups"], size)
        assert_same(
            [lambda x, w, b, f=f: f(LAYOUTS[layout](x), w, b, pool, **convolution) for f in (ours, composition)],  # noqa: B023
            [x, w, b],
        )


@grid(
    indirect=["floor"],
    floor=FLOORS,
    pool=[POOLS[1], POOLS[5], None],
    layout=LAYOUTS,
    dtype=DTYPES,
    groups=[1, 2],
)
def test_every_layout_and_dtype(groups, dtype, layout, pool, draw):
    x, w = draw(2, 4, 13, dtype=torch.float64).to(dtype), draw(6, 4 // groups, 3, dtype=torch.float64).to(dtype)
    functions = [
        lambda x, w, f=f: f(LAYOUTS[layout](x), w, None, pool, stride=2, padding=2, groups=groups)
        for f in (ours, composition)
    ]
    assert_same(functions, [x, w])


@pytest.mark.parametrize("shape", [(128, 14, 240), (16, 32, 78), (4, 128, 100)], ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_sizes_of_the_notebook(shape, layout, draw):
    tensors = [draw(*shape), draw(32, shape[1], 5), draw(32)]
    functions = [lambda x, w, b, f=f: f(LAYOUTS[layout](x), w, b, POOLS[1]) for f in (ours, composition)]
    assert_same(functions, tensors)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_keeps_the_memory_format(layout):
    x = LAYOUTS[layout](torch.randn(2, 4, 13))
    result = conv1d_relu_max_pool1d(x, torch.randn(6, 4, 3), pool_size=2)
    if layout in ("channels_last", "channels_of_a_wider_tensor", "unbatched_channels_last"):
        assert result.transpose(-1, -2).is_contiguous()
        assert not result.is_contiguous()
    else:
        assert result.is_contiguous()
        result.view(-1)
    pooled = conv1d_relu_global_max_pool1d(x, torch.randn(6, 4, 3))
    assert pooled.is_contiguous()


@pytest.mark.parametrize("padding", [2, "same"])
def test_padding_keeps_channels_last(padding):
    x = channels_last(torch.randn(2, 4, 13))
    result = conv1d_relu_max_pool1d(x, torch.randn(6, 4, 4), pool_size=2, padding=padding)
    assert result.transpose(1, 2).is_contiguous()


@pytest.mark.parametrize("pool", POOLS, ids=str)
def test_of_ties_the_first_gets_the_gradient(pool):
    """All positions are equal, so the pool's choice alone says which ones the gradient reaches."""
    functions = [lambda x, w, f=f: f(x, w, None, pool) for f in (ours, composition)]
    assert_same(functions, [torch.ones(2, 4, 13), torch.ones(6, 4, 1)])
    if pool == {"pool_size": 2}:
        x = torch.ones(1, 1, 5, requires_grad=True)
        conv1d_relu_max_pool1d(x, torch.ones(1, 1, 1), pool_size=2).sum().backward()
        assert x.grad.tolist() == [[[1, 0, 1, 0, 0]]]


@pytest.mark.parametrize(
    "upstream",
    [
        lambda g: g.flatten()[0].expand(g.shape),  # what sum() sends back: strides of zero
        lambda g: g.transpose(0, 1).contiguous().transpose(0, 1),
        lambda g: torch.stack([g, g], -1)[..., 1],
    ],
    ids=["expanded", "transposed", "strided"],
)
@pytest.mark.parametrize("pool", [POOLS[1], POOLS[5], None], ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_gradients_of_any_stride(layout, pool, upstream, draw):
    functions = [lambda x, w, b, f=f: f(LAYOUTS[layout](x), w, b, pool) for f in (ours, composition)]
    assert_same(functions, [draw(2, 4, 13), draw(6, 4, 3), draw(6)], upstream)


@pytest.mark.parametrize("wanted", list(itertools.product([False, True], repeat=3))[1:])
@pytest.mark.parametrize("pool", [POOLS[1], None], ids=str)
def test_gradients_of_those_that_want_one(pool, wanted, draw):
    tensors = [draw(2, 4, 13), draw(6, 4, 3), draw(6)]
    gradients = []
    for function in (ours, composition):
        leaves = [tensor.clone().requires_grad_(want) for tensor, want in zip(tensors, wanted, strict=True)]
        function(*leaves, pool).sum().backward()
        gradients.append([leaf.grad for leaf in leaves])
    for want, one, other in zip(wanted, *gradients, strict=True):
        assert (one is not None) == want
        assert (one is None and other is None) or same(one, other)
    with torch.no_grad():
        assert not ours(*leaves, pool).requires_grad


@grid(
    indirect=["floor"],
    floor=FLOORS,
    groups=[1, 2],
    pool=[POOLS[1], POOLS[3], POOLS[5], None],
    layout=["contiguous", "channels_last", "unbatched"],
)
def test_gradcheck_once_and_twice(layout, pool, groups, floor):
    shapes = ((2, 4, 9), (4, 4 // groups, 3), (4,))
    tensors = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]

    def function(x, w, b):
        return ours(LAYOUTS[layout](x), w, b, pool, padding=1, groups=groups)

    assert torch.autograd.gradcheck(function, tensors)
    if floor == "reference" or groups > 1:
        assert torch.autograd.gradgradcheck(function, tensors)
    else:
        with pytest.raises(RuntimeError, match=r"max_pool1d has no second derivative on backend 'numba': pass backend"):
            torch.autograd.gradgradcheck(function, tensors)


@pytest.mark.parametrize("pool", [POOLS[1], None], ids=str)
def test_autocast_as_torch(pool):
    x, w, b = torch.randn(2, 4, 13), torch.randn(6, 4, 3), torch.randn(6)
    for tensors in ((x, w, b), (x.bfloat16(), w, b), (x, w.bfloat16(), b.half())):
        with torch.autocast("cpu", torch.bfloat16):
            assert_same([lambda x, w, b, f=f: f(x, w, b, pool) for f in (ours, composition)], tensors)
            assert ours(*tensors, pool).dtype == torch.bfloat16
    with torch.autocast("cpu"), pytest.raises(TypeError, match=r"^weight .*float64.*float32"):
        ours(x.double(), w, b, pool)


def test_function_transforms_as_torch():
    x, w = torch.randn(2, 4, 13), torch.randn(5, 6, 4, 3)
    for transform in (
        lambda f: torch.vmap(lambda one: f(x, one, None, POOLS[1]))(w),
        lambda f: torch.vmap(lambda one: f(one, w[0], None, POOLS[1]))(x),
        lambda f: torch.func.jvp(lambda one: f(x, one, None, POOLS[1]), (w[0],), (w[1],))[1],
        lambda f: torch.vmap(torch.func.grad(lambda one: f(x, one, None, None).sum()))(w),
    ):
        torch.testing.assert_close(transform(ours), transform(composition), rtol=0, atol=0)


def test_works_without_data():
    """On the meta device shapes alone exist."""
    x, w = torch.empty(2, 4, 13, device="meta"), torch.empty(6, 4, 3, device="meta")
    assert ours(x, w, None, POOLS[1]).shape == (2, 6, 5)


def test_every_operation_is_served_by_the_reference():
    for name in functional.conv.__all__:
        assert "reference" in backends.names(name)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_compiled_kernels_serve_what_they_can(dtype, groups, floor):
    x, w = whole(2, 4, 13, dtype=dtype), whole(6, 4 // groups, 3, dtype=dtype)
    calls = [
        functional.conv.conv_call(x, None, w, None, (1, 0, 1, groups), pool) for pool in (None, (2, None, 0, 1, False))
    ] + [
        functional.conv.embedding_call(
            torch.zeros(2, 13).long(), x[0].t(), None, w, None, None, (1, 0, 1, groups), None
        ),
        functional.conv.window_call(x[0].t(), torch.zeros(2).long(), None, w, None, 13, 1, (1, 0, 1, groups), None),
    ]
    served = dtype in (torch.float32, torch.float64) and groups == 1
    for call in calls:
        assert call.explain("auto").backend == ("numba" if served and floor == "auto" else "reference")
        if served:
            assert call.explain("numba").backend == "numba"
            assert same(call.run("numba"), call.run("reference"))
        else:
            with pytest.raises(BackendError, match=r"it serves (one group|float32 and float64), got"):
                call.run("numba")
