"""Convolutions by fewer products: exact on whole numbers, as close to float64 as was promised, the same bits always."""

from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from seqconv.kernels import plans
from seqconv.kernels.geometry import Convolution, Pool
from seqconv.kernels.numba import conv_pool, conv_pool_blocking, dense
from seqconv.kernels.numba.gathered import placed
from seqconv.kernels.numba.runtime import threads
from seqconv.kernels.reference import conv_pool as reference
from seqconv.kernels.source import Dense, Windows
from tests.conv_cases import composition, ours, results, same
from tests.grids import grid
from tests.kernels.cases import INF, LAYOUTS, NAN, PLAIN, integers, special

EPS, MOST = torch.finfo(torch.float32).eps, torch.finfo(torch.float32).max
EACH = Pool(1, 1)  # the activation itself
LAYOUTS = LAYOUTS | {
    "every-other channel": lambda x: x.repeat_interleave(2, 1)[:, ::2],
    "one sample for all": lambda x: x[:1].expand(x.shape),
    "one channel for all": lambda x: x[:, :1].expand(x.shape),
    "one position for all": lambda x: x[..., :1].expand(x.shape),
}
POOLS = [
    EACH, Pool(2, 2), Pool(3, 3), Pool(5, 5, 2), Pool(2, 5), Pool(2, 3, 1, 2, True), Pool(3, 1, 1), Pool(3, 2, 1, 2),
    Pool(4, 3, 2, 1, True), Pool(20, 1, 10), Pool(30, 4, 15, 2, True), None,
]  # fmt: skip
SIZES, DILATIONS = [2, 3, 4, 5, 6, 7, 8, 9, 13, 31], [1, 2, 3, 8, 60]
CHANNELS, OUTPUTS = [1, 3, 14, 16, 17, 40, 130], [9, 16, 17, 32, 33, 70]
PADDINGS = ["none", "both sides", "left", "right", "longer than the input"]


def forget():
    plans.fast_plan.cache_clear()
    dense._prepared.cache_clear()


@pytest.fixture
def fast(monkeypatch):
    """Have every convolution that fast products can serve computed by them."""
    monkeypatch.setattr(plans, "FAST", plans.FastCosts(-(10**12), 0, 0, 0, 0, 0))
    forget()
    yield
    forget()


def products(source, w, b, convolution, pool):
    """Return the number of fast products of a call, 0 where its sums are direct."""
    values = source.values if isinstance(source, Dense) else placed(source)[0]
    return dense.prepared(values, w.contiguous(), b, convolution, pool, want_argmax=True).blocking.args.products


def forward(source, w, b=None, convolution=PLAIN, pool=EACH, want_argmax=True):
    """Return what the kernel does, by fast products."""
    assert products(source, w, b, convolution, pool) > 0
    return conv_pool.forward(source, w, b, convolution, pool, want_argmax=want_argmax)


def activation(x, w, b=None, convolution=PLAIN):
    return forward(Dense(x), w, b, convolution, want_argmax=False)[0]


def assert_exact(source, w, b, convolution, pool):
    """Compare a call whose sums do not round with the reference in float64: values and argmax."""
    out, argmax = forward(source, w, b, convolution, pool)
    alone, _ = forward(source, w, b, convolution, pool, want_argmax=False)
    exact = source._replace(values=source.values.double()), w.double(), None if b is None else b.double()
    value, at = reference.forward(*exact, convolution, pool, want_argmax=True)
    np.testing.assert_array_equal(out.double(), value)
    np.testing.assert_array_equal(argmax[..., : len(w)], at)
    np.testing.assert_array_equal(alone, out)


def length_and_padding(padding, positions, size, dilation):
    """Return the input's length and a convolution that has so many positions, or some more."""
    reach = dilation * (size - 1)
    around = {
        "none": (0, 0),
        "both sides": (dilation * (size // 2),) * 2,
        "left": (reach, 0),
        "right": (0, max(reach - 1, 1)),
        "longer than the input": (positions + reach, reach + 2),
    }[padding]
    length = 2 if padding == "longer than the input" else max(1, positions + reach - sum(around))
    return length, Convolution(1, around, dilation)


def operands(generator, shape, outputs, size):
    return integers(generator, *shape), integers(generator, outputs, shape[1], size), integers(generator, outputs)


@grid(size=SIZES, dilation=DILATIONS, padding=PADDINGS)
def test_kernels_on_exact_sums(fast, size, dilation, padding):
    """Few positions, whole and broken blocks of pairs, and numbers beside the 84 that are transformed at once."""
    generator = torch.Generator().manual_seed(size)
    for positions in [*range(1, 6), 2 * dilation - 1, 2 * dilation, 3 * dilation, 4 * dilation + 1, 83, 85, 169]:
        length, convolution = length_and_padding(padding, positions, size, dilation)
        x, w, b = operands(generator, (2, 17, length), 33, size)
        assert_exact(Dense(x), w, b, convolution, EACH)


@grid(channels=CHANNELS, outputs=OUTPUTS, layout=LAYOUTS, size=[2, 3, 5, 13])
def test_channels_and_layouts_on_exact_sums(fast, channels, outputs, layout, size):
    generator = torch.Generator().manual_seed(channels + outputs)
    for samples, length in ((5, 2 * size + 3), (1, 2 * size + 89)):
        x, w, b = operands(generator, (samples, channels, length), outputs, size)
        for convolution in (PLAIN, Convolution(1, (2, 3), 2)):
            assert_exact(Dense(LAYOUTS[layout](x)), w, b, convolution, Pool(2, 2))


@grid(pool=POOLS, positions=[1, 2, 7, 30, 131, 400], size=[2, 4, 6], dilation=[1, 3])
def test_pools_on_exact_sums(fast, pool, positions, size, dilation):
    generator = torch.Generator().manual_seed(positions)
    x, w, b = operands(generator, (3, 14, positions + dilation * (size - 1)), 40, size)
    if pool is not None and pool.output_length(positions) < 1:
        pool = None
    assert_exact(Dense(x), w, b, Convolution(1, (0, 0), dilation), pool)


@st.composite
def calls(draw):
    """Draw a call: the input's shape, outputs, kernel size, convolution and pool."""
    size, dilation = draw(st.sampled_from(SIZES)), draw(st.sampled_from([1, 1, *DILATIONS]))
    positions = draw(st.integers(1, 6) | st.integers(1, 300))
    length, convolution = length_and_padding(draw(st.sampled_from(PADDINGS)), positions, size, dilation)
    pool = draw(st.sampled_from(POOLS))
    if pool is not None and pool.output_length(convolution.output_length(length, size)) < 1:
        pool = None
    shape = draw(st.sampled_from([1, 2, 5])), draw(st.sampled_from(CHANNELS)), length
    return shape, draw(st.sampled_from(OUTPUTS)), size, convolution, pool


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    call=calls(),
    layout=st.sampled_from(sorted(LAYOUTS)),
    chance=st.sampled_from([0, 0, 0.0005, 0.01, 0.2]),
    has_lengths=st.booleans(),
    has_bias=st.booleans(),
    chunk=st.sampled_from([20, 47, 128]),
    seed=st.integers(0, 2**16),
)
@pytest.mark.parametrize("shared", [(1, True), (2, True)], indirect=True, ids=["1", "2"])
def test_all_kinds_of_calls_on_exact_sums(
    shared, fast, call, layout, chance, has_lengths, has_bias, chunk, seed, monkeypatch
):
    """To the bit, argmax too; with numbers that are not finite among the others, too."""
    shape, outputs, size, convolution, pool = call
    monkeypatch.setattr(conv_pool_blocking, "CHUNK", chunk)
    dense._prepared.cache_clear()
    generator = torch.Generator().manual_seed(seed)
    x, w, b = operands(generator, shape, outputs, size)
    x = LAYOUTS[layout](special(generator, x, chance))
    lengths = torch.randint(0, shape[2] + 1, shape[:1], generator=generator)
    lengths = lengths if has_lengths and convolution.padding == (0, 0) else None
    assert_exact(Dense(x, lengths), w, b if has_bias else None, convolution, pool)


@pytest.mark.parametrize("pool", [Pool(3, 3), Pool(3, 1, 1), None])
@pytest.mark.parametrize("step", [1, 2])
@pytest.mark.parametrize("columns", [3, 20])
def test_windows_of_a_series(shared, fast, pool, step, columns):
    """They are read in place; lengths cut some off."""
    generator = torch.Generator().manual_seed(columns)
    series = integers(generator, 500, 2 * columns)
    w, b = integers(generator, 33, columns, 5), integers(generator, 33)
    starts = torch.randint(0, 500 - 100 * step, (7,), generator=generator)
    lengths = torch.tensor([100, 0, 1, 4, 5, 50, 99])
    for values in (series[:, :columns].contiguous(), series[:, columns:], series[:, ::2]):
        for limits in (None, lengths):
            assert_exact(Windows(values, starts, 100, step, limits), w, b, PLAIN, pool)


WEIGHTS = {
    "contiguous": lambda w: w,
    "channels-last": lambda w: w.transpose(1, 2).contiguous().transpose(1, 2),
    "outputs last": lambda w: w.permute(1, 2, 0).contiguous().permute(2, 0, 1),
    "rows apart": lambda w: w.repeat_interleave(2, 0)[::2],
}


@pytest.mark.parametrize("weights", sorted(WEIGHTS))
@pytest.mark.parametrize("layout", ["contiguous", "channels-last"])
@pytest.mark.parametrize(("channels", "size", "outputs"), [(1, 9, 17), (17, 2, 33), (40, 5, 70), (130, 7, 100)])
def test_weights_of_any_strides(shared, fast, weights, layout, channels, size, outputs):
    """Those of the largest layer are packed by several threads."""
    generator = torch.Generator().manual_seed(channels)
    x, w, _ = operands(generator, (3, channels, 40), outputs, size)
    assert_exact(Dense(LAYOUTS[layout](x)), WEIGHTS[weights](w), integers(generator, 3 * outputs)[::3], PLAIN, None)


def test_weights_are_packed_once_for_calls_that_are_frozen(shared, fast):
    generator = torch.Generator().manual_seed(0)
    x, w, b = operands(generator, (3, 17, 50), 40, 8)
    frozen = dense.Frozen(x, w, b, PLAIN, Pool(2, 2))
    assert frozen.prepared.blocking.args.products > 0
    for values in (x, x.flip(0)):
        expected = reference.compose(Dense(values.double()), w.double(), b.double(), PLAIN, Pool(2, 2))
        assert torch.equal(frozen(values).double(), expected)


LAYERS = {  # channels, outputs, kernel size
    "128 -> 32, 7": (128, 32, 7),
    "14 -> 32, 5": (14, 32, 5),
    "32 -> 32, 5": (32, 32, 5),
    "320 -> 480, 8": (320, 480, 8),
    "4 -> 320, 8": (4, 320, 8),
    "64 -> 64, 3": (64, 64, 3),
    "128 -> 256, 3": (128, 256, 3),
    "300 -> 64, 2": (300, 64, 2),
    "17 -> 33, 13": (17, 33, 13),
    "1 -> 16, 2": (1, 16, 2),
}


@pytest.mark.parametrize("bias", [0, 1], ids=["no bias", "bias"])
@pytest.mark.parametrize("behind_a_relu", [False, True], ids=["of both signs", "positive"])
@pytest.mark.parametrize("name", LAYERS)
def test_errors_are_at_most_twice_torchs(fast, name, behind_a_relu, bias):
    """Against float64, as root mean square and as the largest, at the median of 15 draws.

    Sums have a variance of 1, or a half of positive inputs; biases have 0 or 1.
    """
    channels, outputs, size = LAYERS[name]
    ratios = []
    for seed in range(15):
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(2, channels, 40 + size, generator=generator)
        x = x.relu() if behind_a_relu else x
        w = torch.randn(outputs, channels, size, generator=generator) / (channels * size) ** 0.5
        b = bias * torch.randn(outputs, generator=generator)
        exact = reference.compose(Dense(x.double()), w.double(), b.double(), PLAIN, EACH)
        mine = activation(x, w, b).double() - exact
        theirs = reference.compose(Dense(x), w, b, PLAIN, EACH).double() - exact
        ratios.append((mine.norm() / theirs.norm(), mine.abs().max() / theirs.abs().max()))
    in_the_mean, largest = torch.tensor(ratios).median(0).values.tolist()
    assert in_the_mean <= 2, (in_the_mean, largest)
    assert largest <= 2, (in_the_mean, largest)


GEOMETRIES = {
    "2": (2, PLAIN),
    "3": (3, PLAIN),
    "4": (4, Convolution(1, (2, 1))),
    "5, dilated": (5, Convolution(1, (3, 0), 3)),
    "8": (8, PLAIN),
}
ODD = {
    "NaN": [NAN],
    "infinity": [INF],
    "minus infinity": [-INF],
    "both infinities": [INF, -INF],
    "the greatest": [MOST],
    "two, whose sum overflows": [MOST, MOST],
    "two, whose difference overflows": [MOST, -MOST],
    "four": [MOST, -MOST, -MOST, MOST],
}


def assert_like_torch(out, x, w, b, convolution):
    """Compare an activation with torch's in float32 where it is not finite, else with float64.

    The bound is the usual one of a sum, its number of terms x EPS / 2 x the sum of their sizes. A result has at most
    C x K terms, each a weight or a half of three weights times a sum of two inputs: together at most 4 times the
    greatest input times the weights.
    """
    torchs = reference.compose(Dense(x), w, b, convolution, EACH)
    for is_such in (torch.isnan, torch.isinf):
        np.testing.assert_array_equal(is_such(out), is_such(torchs))
    finite = torchs.isfinite()
    exact = reference.compose(Dense(x.double()), w.double(), b.double(), convolution, EACH)
    largest = x.abs().nan_to_num(0, 0).amax().double()
    weights = w.abs().nan_to_num(0, 0).double().sum((1, 2))
    bound = EPS * w[0].numel() * (2 * largest * weights + b.abs().nan_to_num(0, 0)).view(1, -1, 1)
    assert ((out.double() - exact).abs() <= bound)[finite].all()


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("layout", ["contiguous", "channels-last"])
def test_odd_inputs_are_seen_by_their_own_positions_alone(fast, layout, geometry, odd):
    """All other results have the bits that they have without."""
    size, convolution = GEOMETRIES[geometry]
    generator = torch.Generator().manual_seed(size)
    clean = LAYOUTS[layout](torch.randn(3, 20, 100, generator=generator))
    w, b = 0.02 * torch.randn(33, 20, size, generator=generator), torch.randn(33, generator=generator)
    before = activation(clean, w, b, convolution)
    positions, step, (left, _) = torch.arange(before.size(2)), convolution.dilation, convolution.padding
    for channel, place in ((0, 0), (19, 1), (7, 50), (16, 51), (3, 84), (19, 96)):
        numbers = torch.tensor(ODD[odd])
        rows = place + step * torch.arange(len(numbers))  # apart as a kernel sees them
        rows = rows[rows < 100]
        x = clean.clone()
        x[1, channel, rows] = numbers[: len(rows)]
        taps = (rows.view(-1, 1) + left - positions) / step
        sees = ((taps >= 0) & (taps < size) & (taps == taps.floor())).any(0)
        assert sees.any()
        assert not sees.all()
        out = activation(x, w, b, convolution)
        assert same(out[::2], before[::2])
        assert same(out[1][:, ~sees], before[1][:, ~sees])
        assert_like_torch(out, x, w, b, convolution)


@pytest.mark.parametrize(
    "convolution", [Convolution(1, (3, 0), 2), Convolution(1, (0, 9), 8), Convolution(1, (9, 9), 60)]
)
def test_rows_beside_the_padding_have_room(fast, convolution):
    """Those that direct sums read, where a number is not finite: of all positions of a chunk."""
    generator = torch.Generator().manual_seed(0)
    x, w, b = operands(generator, (3, 16, 400), 33, 5)
    args = dense.prepared(x, w, b, convolution, EACH, want_argmax=True).blocking.args
    assert args.copies >= args.group * (args.chunk - 1 + args.reach) * args.channels * x.element_size()
    x[1, 7, 200] = NAN
    assert_exact(Dense(x), w, b, convolution, EACH)


@pytest.mark.parametrize("convolution", [PLAIN, Convolution(1, (2, 2), 3)])
@pytest.mark.parametrize("pool", [Pool(3, 1, 1), Pool(4, 3, 2), Pool(5, 2)])
def test_odd_numbers_in_rows_that_are_kept(fast, shared, pool, convolution):
    """Those of overlapping windows, beside each place where positions are convolved anew."""
    generator = torch.Generator().manual_seed(0)
    x, w, b = operands(generator, (1, 16, 1500), 33, 5)
    x[0, 3, ::7] = INF
    x[0, 4, ::31] = -INF
    assert_exact(Dense(x), w, b, convolution, pool)


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("size", [2, 3, 5, 7])
def test_odd_weights_and_biases_touch_their_own_outputs_alone(fast, size, odd):
    generator = torch.Generator().manual_seed(size)
    x = 0.02 * torch.randn(2, 20, 60, generator=generator)
    w, b = torch.randn(40, 20, size, generator=generator), torch.randn(40, generator=generator)
    before = activation(x, w, b)
    numbers = torch.tensor(ODD[odd])[:size]
    for output, channel, tap in ((0, 0, 0), (17, 19, size - 1), (39, 7, size // 2)):
        others = torch.arange(40) != output
        first = min(tap, size - len(numbers))
        weight, bias = w.clone(), b.clone()
        weight[output, channel, first : first + len(numbers)] = numbers
        bias[output] = numbers[0]
        for kernel, shift in ((weight, b), (w, bias), (weight, bias)):
            if kernel is weight and shift is bias and numbers[0].isfinite():
                continue  # whether it overflows depends on the order of the sums
            out = activation(x, kernel, shift)
            assert same(out[:, others], before[:, others])
            assert_like_torch(out, x, kernel, shift, PLAIN)


@pytest.mark.parametrize("size", [2, 3, 4, 7])
def test_large_and_small_numbers_have_the_digits_of_others(fast, size):
    """Scaled by a power of 2, results are scaled, near either end of float32's range."""
    generator = torch.Generator().manual_seed(size)
    x, w = torch.randn(2, 20, 60, generator=generator), torch.randn(33, 20, size, generator=generator)
    before = activation(x, w)
    assert before.max() < 128
    for power in (120, -60):
        assert torch.equal(activation(x * 2.0**power, w), before * 2.0**power)
        assert torch.equal(activation(x, w * 2.0**power), before * 2.0**power)


@pytest.mark.parametrize("size", [2, 3, 4, 7])
def test_subnormals_and_zeros(fast, size):
    generator = torch.Generator().manual_seed(size)
    x, w, b = operands(generator, (2, 20, 60), 33, size)
    tiny, least = x * 2.0**-145, b * 2.0**-145
    expected = reference.compose(Dense(x.double()), w.double(), b.double(), PLAIN, EACH)
    assert expected.any()
    assert torch.equal(activation(tiny, w, least).double(), expected * 2.0**-145)
    for zero in (0.0, -0.0):
        x.fill_(zero)
        for bias in (None, torch.full((33,), -0.0), torch.zeros(33)):
            out, argmax = forward(Dense(x), w, bias, pool=Pool(2, 2))
            assert same(out, torch.zeros_like(out))  # as torch's float32: no sign is left
            assert (argmax[..., :33] == -1).all()


# Samples, channels, length, outputs, kernel size, convolution, pool.
SHAPES = {
    "several samples in a part": (37, 3, 9, 20, 3, PLAIN, Pool(2, 2)),
    "one position a sample": (70, 5, 4, 17, 4, PLAIN, EACH),
    "one sample": (1, 40, 333, 33, 5, PLAIN, Pool(3, 3)),
    "one sample, many panels": (1, 17, 95, 300, 5, PLAIN, Pool(5, 5)),
    "global": (2, 20, 901, 33, 4, PLAIN, None),
    "global, dilated": (1, 20, 1003, 33, 5, Convolution(1, (7, 6), 3), None),
    "global, several samples in a part": (29, 4, 12, 40, 3, PLAIN, None),
    "padding": (3, 20, 300, 33, 9, Convolution(1, (4, 4)), Pool(2, 2)),
    "overlapping": (1, 16, 2001, 20, 3, PLAIN, Pool(3, 1, 1)),
    "overlapping, dilated": (1, 16, 2511, 20, 2, Convolution(1, (0, 0), 2), Pool(3, 1, 0, 18)),
    "overlapping, running maxima": (1, 16, 2500, 20, 6, PLAIN, Pool(40, 1, 20)),
    "overlapping, several panels": (2, 16, 700, 100, 4, PLAIN, Pool(5, 2, 1)),
    "many channels": (2, 130, 190, 70, 7, PLAIN, Pool(4, 4)),
}


@grid(name=SHAPES, layout=["contiguous", "channels-last"], chance=[0, 0.001, 0.05])
def test_bits_depend_on_no_neighbour_no_thread_and_no_chunk(fast, name, layout, chance, monkeypatch):
    samples, channels, length, outputs, size, convolution, pool = SHAPES[name]
    generator = torch.Generator().manual_seed(6)
    x = special(generator, torch.randn(samples, channels, length, generator=generator), chance)
    x = LAYOUTS[layout](x)
    w, b = torch.randn(outputs, channels, size, generator=generator), torch.randn(outputs, generator=generator)
    call = partial(forward, w=w, b=b, convolution=convolution, pool=pool)
    out, argmax = call(Dense(x))
    rolled = LAYOUTS[layout](x.roll(samples // 2, 0))
    monkeypatch.setattr(threads, "WORTH_A_THREAD", 1)
    for chunk, at_once in ((128, 84), (20, 84), (1000, 84), (50, 10), (77, 300)):
        monkeypatch.setattr(conv_pool_blocking, "CHUNK", chunk)
        monkeypatch.setattr(conv_pool_blocking, "POSITIONS_AT_ONCE", at_once)
        dense._prepared.cache_clear()
        for count in (1, 2, 3):
            monkeypatch.setattr(torch, "get_num_threads", lambda count=count: count)
            for values, shift in ((x, 0), (rolled, samples // 2)):
                other, at = call(Dense(values))
                assert same(other, out.roll(shift, 0)), (chunk, at_once, count, shift)
                assert torch.equal(at, argmax.roll(shift, 0)), (chunk, at_once, count, shift)


@pytest.mark.parametrize("name", ["global", "global, dilated", "overlapping", "overlapping, dilated"])
def test_pieces_begin_amid_a_pair(fast, name, monkeypatch):
    """What threads share begins at positions of all kinds, or the test of their bits would tell little."""
    monkeypatch.setattr(threads, "WORTH_A_THREAD", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    samples, channels, length, outputs, size, convolution, pool = SHAPES[name]
    x, w = torch.empty(samples, channels, length), torch.empty(outputs, channels, size)
    args = dense.prepared(x, w, None, convolution, pool, want_argmax=True).blocking.args
    pieces = range(1, args.pieces)
    starts = [args.positions * piece // args.pieces for piece in pieces]
    if pool is not None:
        starts = [piece * args.piece_windows * pool.stride - pool.padding for piece in pieces]
    assert {start % (2 * convolution.dilation) for start in starts} - {0}


@pytest.mark.parametrize("pool", [{"pool_size": 3}, {"pool_size": 4, "pool_stride": 1, "pool_padding": 2}, None])
@pytest.mark.parametrize("convolution", [{}, {"padding": 3}, {"padding": "same", "dilation": 3}])
@pytest.mark.parametrize("size", [2, 3, 5, 7])
def test_gradients_go_to_the_maxima(fast, pool, convolution, size):
    """Of exact sums, so that ties are where they are in float64."""
    generator = torch.Generator().manual_seed(size)
    tensors = operands(generator, (3, 17, 60), 33, size)
    before, around = Convolution(1, (0, 0), convolution.get("dilation", 1)), convolution.get("padding", 0)
    reach = before.dilation * (size - 1)
    around = (reach // 2, reach - reach // 2) if around == "same" else (around, around)
    own_pool = pool and Pool(pool["pool_size"], pool.get("pool_stride", pool["pool_size"]), pool.get("pool_padding", 0))
    assert products(Dense(tensors[0]), *tensors[1:], before._replace(padding=around), own_pool) > 0
    found = results(lambda *given: ours(*given, pool, backend="numba", **convolution), tensors)
    exact = [one.double() for one in tensors]
    expected = results(lambda *given: composition(*given, pool, **convolution), exact)
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one.double(), other)


@pytest.mark.parametrize("pool", [{"pool_size": 2}, {"pool_size": 3, "pool_stride": 1}, None])
def test_float64_is_computed_directly(fast, pool):
    generator = torch.Generator().manual_seed(0)
    shapes = (2, 3, 9), (9, 3, 3), (9,)
    tensors = [torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True) for shape in shapes]
    x, w, b = (one.detach() for one in tensors)
    assert products(Dense(x), w, b, PLAIN, Pool(2, 2)) == 0
    assert products(Dense(x.float()), w.float(), b.float(), PLAIN, Pool(2, 2)) > 0
    assert torch.autograd.gradcheck(lambda *given: ours(*given, pool, backend="numba"), tensors)
