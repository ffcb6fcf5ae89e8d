"""Folded tables in float16 and bfloat16: numbers are widened exactly, whatever they are, and summed in float32."""

import itertools

import pytest
import torch
import torch.nn.functional as F

from seqconv.kernels.geometry import Convolution, Pool
from seqconv.kernels.numba import conv_pool, fold, gather
from seqconv.kernels.source import Tokens, Windows

NARROW = [torch.float16, torch.bfloat16]


def integers(generator, greatest, *shape):
    """Return integers whose products' sums float32 holds exactly, and a narrow dtype does not."""
    return torch.randint(-greatest, greatest + 1, shape, generator=generator).float()


def oracle(folded, tokens, bias, convolution, pool, outputs):
    """Return, in float64, the stack's result from a folded table, read through nothing but indexing."""
    (stride, (left, right), dilation, _), size = convolution, folded.size(1)
    rows = folded.double()[tokens]  # (N, L, K, O)
    rows = F.pad(rows, (0, 0, 0, 0, left, right))
    positions = convolution.output_length(tokens.size(1), size)
    sums = sum(rows[:, k * dilation :][:, : (positions - 1) * stride + 1 : stride, k] for k in range(size))
    active = F.relu(sums[..., :outputs] + bias.double()).transpose(1, 2)
    if pool is None:
        return active.max(-1).values
    return F.max_pool1d(active, pool.size, pool.stride, pool.padding, pool.dilation, pool.ceil_mode)


@pytest.mark.parametrize("shared", [(1, True), (3, True)], indirect=True)
@pytest.mark.parametrize("dtype", NARROW)
def test_sums_what_the_narrow_table_holds(dtype, shared):
    """Exactly: all widths of outputs, pools that overlap and global ones, padding, and both widths of tokens."""
    generator = torch.Generator().manual_seed(1)
    layers = itertools.product(
        (1, 16, 45, 70, 130),
        ((Convolution(), Pool(3, 3)), (Convolution(2, (3, 1), 2), Pool(4, 2, 1)), (Convolution(1, (1, 1)), None)),
        (torch.int32, torch.int64),
    )
    for outputs, (convolution, pool), index in layers:
        table, w = integers(generator, 90, 60, 5), integers(generator, 90, outputs, 5, 3)
        bias, tokens = integers(generator, 900, outputs), torch.randint(60, (3, 41), generator=generator)
        narrow = fold.fold(table, w, dtype=dtype)
        wide = fold.fold(table, w)
        assert narrow.dtype == dtype
        assert narrow.isfinite().all()
        assert torch.equal(narrow, wide.to(dtype))
        source = Tokens(tokens.to(index), table)
        out, _ = conv_pool.forward(source, w, bias, convolution, pool, want_argmax=False, folded=narrow)
        value = oracle(narrow, tokens, bias, convolution, pool, outputs)
        assert out.dtype == torch.float32
        assert torch.equal(out.double(), value)
        assert not torch.equal(value, oracle(wide, tokens, bias, convolution, pool, outputs))


@pytest.mark.parametrize("dtype", NARROW)
def test_every_number_is_widened_as_torch_does(dtype):
    """All 65,536 bit patterns: subnormal numbers, infinities and NaN, of both signs."""
    folded = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(dtype).view(-1, 1, 16)
    table, w = torch.zeros(folded.size(0), 1), torch.zeros(16, 1, 1)
    tokens = torch.arange(folded.size(0)).unsqueeze(0)
    for sign in (1, -1):
        given = (folded * sign).contiguous()
        source = Tokens(tokens, table)
        out, _ = conv_pool.forward(source, w, None, Convolution(), Pool(1, 1), want_argmax=False, folded=given)
        torch.testing.assert_close(out[0].t(), F.relu(given.float().squeeze(1)), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", NARROW)
def test_several_layers_and_windows(dtype):
    generator = torch.Generator().manual_seed(2)
    table, tokens = integers(generator, 90, 60, 5), torch.randint(60, (3, 41), generator=generator)
    weights = [integers(generator, 90, outputs, 5, size) for outputs, size in ((20, 2), (7, 4))]
    folded = [fold.fold(table, one, dtype=dtype) for one in weights]
    layers = [None] * 2, [Convolution()] * 2
    out, _ = gather.forward_several(Tokens(tokens, table), weights, *layers, want_argmax=False, folded=folded)
    pairs = zip(folded, (20, 7), strict=True)
    value = torch.cat([oracle(one, tokens, torch.zeros(n), Convolution(), None, n) for one, n in pairs], 1)
    assert torch.equal(out.double(), value)
    starts = torch.tensor([0, 7, 19])
    source = Windows(table, starts, 14, 3)
    out, _ = conv_pool.forward(source, weights[0], None, Convolution(), Pool(2, 2), want_argmax=False, folded=folded[0])
    rows = starts.unsqueeze(1) + 3 * torch.arange(14)
    assert torch.equal(out.double(), oracle(folded[0], rows, torch.zeros(20), Convolution(), Pool(2, 2), 20))
