"""What the floors' tests of the conv stack share: calls to draw, layouts of operands, whole and special numbers."""

import torch
from hypothesis import strategies as st

from seqconv.kernels.geometry import Convolution, Pool

PLAIN = Convolution()
NAN, INF = float("nan"), float("inf")
# What a window may see, where it is not a matter of course which position has the maximum.
SPECIAL_VALUES = [
    [NAN, 1.0], [1.0, NAN, NAN, 2.0], [INF, NAN], [-INF, 2.0], [-INF, -INF], [INF, INF], [-1.0, -0.0],
]  # fmt: skip
LAYOUTS = {
    "contiguous": lambda x: x.contiguous(),
    "channels-last": lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),
    "time-first": lambda x: x.permute(2, 0, 1).contiguous().permute(1, 2, 0),
    "cut": lambda x: torch.nn.functional.pad(x, (1, 2, 1, 1)).contiguous()[:, 1:-1, 1:-2],
    "every-other": lambda x: x.repeat_interleave(2, 2)[:, :, ::2],
    "channels-last, cut": lambda x: torch.nn.functional.pad(x.transpose(1, 2), (1, 2))[..., 1:-2].transpose(1, 2),
}
INDICES = {
    "int64": lambda tokens: tokens,
    "int32": lambda tokens: tokens.int(),
    "transposed": lambda tokens: tokens.t().contiguous().t(),
    "every-other": lambda tokens: tokens.int().repeat_interleave(2, -1)[..., ::2],
    "one for all": lambda tokens: tokens[:1].expand_as(tokens),
}
TABLES = {
    "contiguous": lambda table: table,
    "cut": lambda table: torch.nn.functional.pad(table, (1, 2), value=NAN)[:, 1:-2],
    "transposed": lambda table: table.t().contiguous().t(),
    "every-other row": lambda table: table.repeat_interleave(2, 0)[::2],
}


def integers(generator, *shape, dtype=torch.float32, device="cpu", most=3):
    """Return small integers: every sum of their products is exact, and ties abound."""
    return torch.randint(-most, most + 1, shape, generator=generator).to(device, dtype)


def every_window_has_a_position(length, pool):
    """Where one has none, torch's gradient goes to a neighbouring sample, or behind the tensor's end."""
    windows = pool.output_length(length)
    starts = range(-pool.padding, windows * pool.stride - pool.padding, pool.stride)
    return windows > 0 and all(
        any(0 <= start + p * pool.dilation < length for p in range(pool.size)) for start in starts
    )


def geometries(draw, longest, size):
    """Draw a length, a kernel size, a convolution and a pool whose windows have at least one position each."""
    size, dilation = draw(st.integers(1, size)), draw(st.integers(1, 3))
    padding = (draw(st.integers(0, 4)), draw(st.integers(0, 4)))
    shortest = max(1, dilation * (size - 1) + 1 - sum(padding))
    length = draw(st.integers(shortest, shortest + longest))
    convolution = Convolution(draw(st.integers(1, 3)), padding, dilation)
    pool_size = draw(st.integers(1, 6))
    pool = Pool(
        pool_size,
        draw(st.integers(1, 7)),
        draw(st.integers(0, pool_size // 2)),
        draw(st.integers(1, 3)),
        draw(st.booleans()),
    )
    if draw(st.booleans()) or not every_window_has_a_position(convolution.output_length(length, size), pool):
        pool = None
    return length, size, convolution, pool


@st.composite
def calls(draw, longest, size=6):
    """Draw a call: samples, channels and length, then outputs, kernel size, convolution and pool."""
    length, *geometry = geometries(draw, longest, size)
    return (draw(st.integers(0, 4)), draw(st.integers(1, 20)), length), draw(st.integers(1, 40)), *geometry


@st.composite
def overlapping_calls(draw, longest):
    """Draw what :func:`calls` does, with a pool whose windows overlap; some may have no position."""
    pool_size, dilation = draw(st.integers(2, 30)), draw(st.sampled_from([1, 1, 2, 5, 17]))
    span = dilation * (pool_size - 1) + 1
    pool = Pool(
        pool_size,
        draw(st.integers(1, min(span - 1, 4))),
        draw(st.integers(0, pool_size // 2)),
        dilation,
        draw(st.booleans()),
    )
    positions = draw(st.integers(max(1, span - 2 * pool.padding), max(1, span - 2 * pool.padding) + longest))
    size = draw(st.integers(1, min(3, positions + 2)))
    shape = (draw(st.integers(1, 3)), draw(st.sampled_from([1, 3, 16])), positions + size - 1)
    return shape, draw(st.sampled_from([1, 3, 8, 20, 33, 40])), size, PLAIN, pool


def special(generator, x, chance=0.01):
    """Return a tensor with some numbers that are not finite."""
    chosen = torch.tensor([NAN, INF, -INF], dtype=x.dtype)[torch.randint(3, x.shape, generator=generator)]
    return torch.where(torch.rand(x.shape, generator=generator) < chance, chosen, x)


@st.composite
def gathered_calls(draw, longest, size=6):
    """Draw a call on rows: samples, length, rows and channels, then what :func:`calls` has."""
    length, *geometry = geometries(draw, longest, size)
    rows = draw(st.sampled_from([1, 2, 7, 200]))
    shape = (draw(st.integers(0, 4)), length, rows, draw(st.integers(1, 20)))
    return shape, draw(st.integers(1, 40)), *geometry
