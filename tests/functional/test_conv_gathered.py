"""The conv stack on embedded tokens and on windows of a series, against torch's composition, bit for bit."""

import itertools

import pytest
import torch
import torch.nn.functional as F

from seqconv.functional import (
    embedding_conv1d_relu_global_max_pool1d,
    embedding_conv1d_relu_max_pool1d,
    window_conv1d_relu_global_max_pool1d,
    window_conv1d_relu_max_pool1d,
)
from tests.conftest import FLOORS
from tests.conv_cases import POOLS, assert_same, channels_last, composition, whole
from tests.grids import grid

pytestmark = [
    pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths"),
    pytest.mark.usefixtures("floor"),
]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(11)


def embedded(tokens, table, weight, bias, pool, padding_idx=None, **convolution):
    return composition(F.embedding(tokens, table, padding_idx).transpose(-1, -2), weight, bias, pool, **convolution)


def embedding(tokens, table, weight, bias, pool, **options):
    if pool is None:
        return embedding_conv1d_relu_global_max_pool1d(tokens, table, weight, bias, **options)
    return embedding_conv1d_relu_max_pool1d(tokens, table, weight, bias, **pool, **options)


@grid(indirect=["floor"], floor=FLOORS, index=[torch.int32, torch.int64], padding_idx=[None, 0, 3, -1], pool=POOLS)
def test_embeddings(pool, padding_idx, index, draw):
    tokens = torch.randint(7, (3, 12), dtype=index)  # far more tokens than words: every row is read several times
    for one, groups, padding in itertools.product((tokens, tokens[0], tokens.t()[:, :2].t()), (1, 2), (0, 2, "same")):
        options = {"padding_idx": padding_idx, "groups": groups, "padding": padding}
        functions = [lambda *t, f=f: f(one, *t, pool, **options) for f in (embedding, embedded)]  # noqa: B023
        assert_same(functions, [draw(7, 4), draw(6, 4 // groups, 3), draw(6)])


def test_embeddings_of_one_row_and_of_no_sample(draw):
    table, w = draw(1, 4), draw(6, 4, 3)
    for tokens in (torch.zeros(2, 5, dtype=torch.int64), torch.zeros(0, 5, dtype=torch.int64)):
        assert_same([lambda *t, f=f: f(tokens, *t, None, POOLS[1]) for f in (embedding, embedded)], [table, w])  # noqa: B023


def test_the_row_of_the_padding_index_is_read_and_gets_no_gradient():
    table = torch.ones(3, 1, requires_grad=True)
    for padding_idx in (2, -1):
        result = embedding(torch.tensor([2, 2]), table, torch.ones(1, 1, 1), None, None, padding_idx=padding_idx)
        assert result.item() == 1
        (gradient,) = torch.autograd.grad(result, table)
        assert not gradient.any()


def test_embeddings_keep_channels_last():
    result = embedding(torch.randint(7, (3, 12)), torch.randn(7, 4), torch.randn(6, 4, 3), None, POOLS[1])
    assert result.transpose(1, 2).is_contiguous()


def windowed(series, starts, weight, bias, pool, length, step=1, **convolution):
    windows = torch.stack([series[start : start + (length - 1) * step + 1 : step] for start in starts.tolist()])
    return composition(windows.transpose(1, 2), weight, bias, pool, **convolution)


def window(series, starts, weight, bias, pool, **options):
    if pool is None:
        return window_conv1d_relu_global_max_pool1d(series, starts, weight, bias, **options)
    return window_conv1d_relu_max_pool1d(series, starts, weight, bias, **pool, **options)


@grid(indirect=["floor"], floor=FLOORS, index=[torch.int32, torch.int64], pool=POOLS)
def test_windows(pool, index):
    """Windows overlap and repeat, so gradients of a row are sums: of small integers, exact in any order."""
    starts = torch.tensor([0, 5, 3, 3, 17], dtype=index)
    tensors = [whole(*shape, dtype=torch.float64) for shape in ((40, 4), (6, 4, 3), (6,))]
    for step, layout in itertools.product((1, 2), ("rows", "columns")):
        options = {"length": 12, "step": step, "padding": 1}
        functions = [
            lambda s, *t, f=f: f(channels_last(s) if layout == "columns" else s, starts, *t, pool, **options)  # noqa: B023
            for f in (window, windowed)
        ]
        assert_same(functions, tensors)
    assert window(tensors[0], starts[:0], *tensors[1:], pool, **options).shape[0] == 0


def test_windows_reach_the_last_row_and_no_further(draw):
    series, w = draw(10, 2), draw(3, 2, 1)
    assert_same(
        [lambda s, w, f=f: f(s, torch.tensor([1]), w, None, None, length=5, step=2) for f in (window, windowed)],
        [series, w],
    )
    with pytest.raises(IndexError, match=r"^starts must be between 0 and 1 for the 10 rows of series, got 2"):
        window(series, torch.tensor([2]), w, None, None, length=5, step=2)
    with pytest.raises(IndexError, match=r"^starts .* got -1"):
        window(series, torch.tensor([0, -1]), w, None, None, length=5, step=2)


def test_works_without_data():
    """On the meta device shapes alone exist."""
    tokens, table = torch.empty(2, 13, dtype=torch.int64, device="meta"), torch.empty(9, 4, device="meta")
    w = torch.empty(6, 4, 3, device="meta")
    assert embedding(tokens, table, w, None, None).shape == (2, 6)
    assert window(table, tokens[:, 0], w, None, POOLS[1], length=5).shape == (2, 6, 1)
