"""Rounding: against torch's composition in float64, at most twice the error of torch's own float32 composition."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.conv_cases import LAYOUTS, composition, median_ratios, ours, results, wide_layer

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
EPSILON = torch.finfo(torch.float32).eps
PLAIN = {"pool_stride": None, "pool_padding": 0, "pool_dilation": 1}


@st.composite
def calls(draw):
    """Draw what torch takes: shapes, the arguments of the convolution, those of the pool."""
    size, dilation = draw(st.integers(1, 7)), draw(st.integers(1, 3))
    convolution = {"dilation": dilation, "stride": draw(st.integers(1, 3))}
    convolution["padding"] = draw(st.sampled_from([0, 1, 3] + (["same"] if convolution["stride"] == 1 else [])))
    pool_size = draw(st.integers(1, 5))
    pool = {"pool_size": pool_size, "pool_stride": draw(st.integers(1, 6)), "ceil_mode": draw(st.booleans())}
    pool |= {"pool_padding": draw(st.integers(0, pool_size // 2)), "pool_dilation": draw(st.integers(1, 2))}
    spans = [dilation * (size - 1) + 1, pool["pool_dilation"] * (pool_size - 1) + 1]
    length = spans[0] + (spans[1] - 1) * convolution["stride"] + draw(st.integers(0, 60))
    shape = draw(st.integers(1, 4)), draw(st.integers(1, 40)), length
    return shape, draw(st.integers(1, 40)), size, convolution, draw(st.sampled_from([pool, None]))


def clear(x, w, b, pool, convolution):
    """Return where in the result the maximum is so clear that float32 chooses its position, too."""
    activation = torch.nn.functional.conv1d(x, w, b, **convolution).relu()
    if pool is None:
        windows = activation.unsqueeze(2)
    else:
        step, padding, dilation = (pool[f"pool_{name}"] for name in ("stride", "padding", "dilation"))
        step = step or pool["pool_size"]
        count = composition(x, w, b, pool, **convolution).size(2)
        starts = torch.arange(count).unsqueeze(1) * step - padding + dilation * torch.arange(pool["pool_size"])
        exists = (starts >= 0) & (starts < activation.size(2))
        windows = activation[..., starts.clamp(0, activation.size(2) - 1)].masked_fill(~exists, -1)
    highest = torch.nn.functional.pad(windows, (0, 1), value=0).topk(2, -1).values  # zero: the activation may lose, too
    gap = highest[..., 0] - highest[..., 1] > 1e-4 * (1 + highest[..., 0])
    return gap.squeeze(2) if pool is None else gap


def errors(call, layout, has_bias, seed):
    """Return for the result and each gradient: its name, our largest and mean error, torch's, and the exact numbers."""
    shape, outputs, size, convolution, pool = call
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator)
    w = torch.randn(outputs, shape[1], size, generator=generator)
    b = torch.randn(outputs, generator=generator) if has_bias else torch.zeros(outputs)
    wide = [tensor.double() for tensor in (x, w, b)]
    mask = clear(LAYOUTS[layout](wide[0]), *wide[1:], pool, convolution)

    def torchs(x, w, b):
        return composition(LAYOUTS[layout](x), w, b, pool, **convolution)

    def mine(x, w, b):
        return ours(LAYOUTS[layout](x), w, b, pool, backend="numba", **convolution)

    outcomes = (results(f, t, lambda g: g * mask) for f, t in ((torchs, wide), (mine, [x, w, b]), (torchs, [x, w, b])))
    for name, exact, *others in zip(("result", "input", "weight", "bias"), *outcomes, strict=True):
        apart = [(other.double() - exact).abs() for other in others]
        yield name, [(one.max(), one.mean()) for one in apart], exact


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    call=calls(),
    layout=st.sampled_from(["contiguous", "channels_last", "batch_last", "flipped"]),
    has_bias=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_is_as_precise_as_torch_whatever_the_arguments(call, layout, has_bias, seed):
    """On average. Of a few numbers torch may by luck round none: one rounding of a partial sum is granted for all.

    Terms are products of standard normal numbers, behind the result times upstream gradients of 3 at most. Where pool
    windows overlap, a position that is several windows' argmax is visited several times; torch sums what they send
    back first.
    """
    (_, channels, _), outputs, size, _, pool = call
    overlap = 1.0 if pool is None else max(1.0, pool["pool_dilation"] * pool["pool_size"] / pool["pool_stride"])
    terms = {"result": channels * size + 1, "input": outputs * size}
    for name, ((_, mine), (_, torchs)), exact in errors(call, layout, has_bias, seed):
        if name == "result":
            terms["weight"] = terms["bias"] = exact.numel() // outputs
        partial_sum = 4 * terms[name] ** 0.5 * (1 if name == "result" else 3)
        times = 2 if name == "result" else 2 * overlap**0.5
        # The mean of n errors is off by more where n is small: as a spread of n numbers is, by n - 1.
        spread = max(exact.numel() - 1, 1) ** 0.5
        assert mine <= times * torchs + EPSILON * partial_sum / spread, name


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize(
    "call",
    [
        ((8, 128, 200), 32, 7, {}, {"pool_size": 5, **PLAIN}),
        ((16, 14, 240), 32, 5, {}, {"pool_size": 3, **PLAIN}),
        ((16, 32, 78), 32, 5, {}, {"pool_size": 3, **PLAIN}),
        ((16, 32, 94), 32, 7, {}, None),
    ],
    ids=str,
)
def test_is_as_precise_as_torch_in_the_notebooks_sizes(call, layout):
    for name, (mine, torchs), _ in errors(call, layout, True, 1):
        assert mine[0] <= 2 * torchs[0], name
        assert mine[1] <= 2 * torchs[1], name


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize(
    ("samples", "channels", "length", "outputs", "size", "pool_size"),
    [
        (1, 16, 1000, 32, 3, 1),
        (4, 64, 120, 256, 7, 5),
        (4, 16, 120, 960, 8, 4),
        (4, 16, 60, 1024, 31, None),
        *(
            pytest.param(*sizes, marks=pytest.mark.large)
            for sizes in (
                (4, 64, 120, 64, 7, 5),
                (2, 320, 100, 480, 8, 4),
                (4, 14, 120, 1024, 5, 3),
                (4, 4, 120, 1024, 5, 3),
                (2, 64, 120, 64, 31, 5),
                (2, 64, 120, 1024, 31, 5),
                (2, 32, 80, 1024, 31, 1),
                (2, 1024, 80, 32, 7, 5),
                (2, 1024, 40, 1024, 3, 4),
                (4, 64, 60, 1024, 31, None),
                (4, 64, 100, 1024, 7, None),
            )
        ),
    ],
)
def test_is_as_precise_as_torch_whatever_is_summed(layout, samples, channels, length, outputs, size, pool_size):
    """In the largest error and the root mean square, of the result and all gradients.

    The sums' lengths grow with the channels forward and with the outputs backward: a single float32 sum over 1,024
    outputs x 31 taps has nine times torch's error. One sample's bias gradient is a sum over its positions.
    """
    pool = None if pool_size is None else {"pool_size": pool_size}

    def draw(seed):
        x, w, b, upstream = wide_layer(seed, samples, channels, length, outputs, size, pool_size)
        return (
            lambda x, w, b: ours(LAYOUTS[layout](x), w, b, pool, backend="numba"),
            lambda x, w, b: composition(LAYOUTS[layout](x), w, b, pool),
            (x, w, b),
            upstream,
        )

    for name, ratios in zip(("result", "input", "weight", "bias"), median_ratios(draw), strict=True):
        assert max(ratios) <= 2, (name, ratios)
