"""The compiled conv stack on gathered rows against the reference in float64: both plans, every argument and trap."""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from seqconv.kernels import plans
from seqconv.kernels.geometry import Convolution, Pool
from seqconv.kernels.numba import (
    conv_pool,
    conv_pool_blocking,
    dense,
    fold,
    gather,
    gather_backward,
    gather_backward_direct,
    gathered,
)
from seqconv.kernels.reference import conv_pool as reference
from seqconv.kernels.source import Tokens, Windows
from tests.conv_cases import has_clear_argmax, median_ratios, wide_layer
from tests.grids import grid, rounds
from tests.kernels.cases import (
    INDICES,
    INF,
    NAN,
    PLAIN,
    SPECIAL_VALUES,
    TABLES,
    gathered_calls,
    integers,
    overlapping_calls,
    special,
)
from tests.kernels.numba.conftest import THREADS

PLANS = ["folded", "direct", "ready"]


class Case:
    """One layer on rows of ``table``: by tokens ``(N, L)``, or by ``starts``, a length and a step."""

    def __init__(self, index, table, convolution, pool, *, padding_idx=None, length=None, step=None):
        self.index, self.table, self.convolution, self.pool = index, table, convolution, pool
        self.options = (padding_idx,) if length is None else (length, step)
        self.of_tokens = length is None

    def source(self, table=None):
        table = self.table if table is None else table
        return Tokens(self.index, table, *self.options) if self.of_tokens else Windows(table, self.index, *self.options)

    def forward(self, w, b, plan=None, want_argmax=True):
        options = {"plan": plan}
        if plan == "ready":
            options = {"folded": fold.fold(self.table, w)}
        return conv_pool.forward(self.source(), w, b, self.convolution, self.pool, want_argmax=want_argmax, **options)

    def backward(self, upstream, argmax, w, plan=None, wanted=(True, True, True)):
        given = (upstream, argmax, self.source(), w, self.convolution, self.pool)
        return conv_pool.backward(*given, wanted=wanted, plan="folded" if plan == "ready" else plan)

    def reference(self, table, w, b):
        return reference.compose(self.source(table), w, b, self.convolution, self.pool)

    def expected(self, w, b, upstream=None):
        """Return the reference's result, and its gradients of table, weight and bias, computed in float64."""
        tensors = [one.detach().double().requires_grad_() for one in (self.table, w, b)]
        out = self.reference(*tensors)
        if upstream is None:
            return out.detach()
        return out.detach(), torch.autograd.grad(out, tensors, upstream.double())


def build(call, index, table_layout, dtype, is_window, step, seed):
    """Return the case and exact weights and bias."""
    (samples, length, rows, channels), outputs, size, convolution, pool = call
    generator = torch.Generator().manual_seed(seed)
    w, b = integers(generator, outputs, channels, size, dtype=dtype), integers(generator, outputs, dtype=dtype)
    if is_window:
        rows = rows + (length - 1) * step
        numbers, options = torch.randint(rows - (length - 1) * step, (samples,), generator=generator), (length, step)
    else:
        numbers, options = torch.randint(rows, (samples, length), generator=generator), (None, None)
    table = TABLES[table_layout](integers(generator, rows, channels, dtype=dtype))
    if is_window and index == "transposed":
        index = "int64"
    padding_idx = int(numbers.flatten()[0]) if not is_window and numbers.numel() and seed % 2 else None
    case = Case(
        INDICES[index](numbers), table, convolution, pool, padding_idx=padding_idx, length=options[0], step=options[1]
    )
    return case, w, b


@rounds(4)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    call=gathered_calls(90),
    index=st.sampled_from(sorted(INDICES)),
    table_layout=st.sampled_from(sorted(TABLES)),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    has_bias=st.booleans(),
    is_window=st.booleans(),
    step=st.integers(1, 4),
    plan=st.sampled_from([None, *PLANS]),
    upstream_layout=st.sampled_from(["contiguous", "channels-last", "expanded"]),
    seed=st.integers(0, 2**16),
)
@example(  # the convolution reads nothing but its padding
    ((1, 1, 1, 1), 1, 1, Convolution(2, (3, 0)), None), "int64", "contiguous", torch.float32, True, False, 1, "folded",
    "contiguous", 0,
)  # fmt: skip
def test_equals_the_reference_on_exact_sums(
    shared, turn, call, index, table_layout, dtype, has_bias, is_window, step, plan, upstream_layout, seed
):
    case, w, b = build(call, index, table_layout, dtype, is_window, step, seed)
    out, argmax = case.forward(w, b if has_bias else None, plan)
    generator = torch.Generator().manual_seed(seed + 1)
    upstream = integers(generator, *out.shape, dtype=dtype)
    if upstream_layout == "expanded":
        upstream = upstream[:1, :1].expand_as(out) if upstream.numel() else upstream
    elif upstream_layout == "channels-last" and out.dim() == 3:
        upstream = upstream.transpose(1, 2).contiguous().transpose(1, 2)
    value, gradients = case.expected(w, b if has_bias else torch.zeros_like(b), upstream)
    assert out.dtype == dtype
    assert torch.equal(out.double(), value)
    for backward_plan in ("folded", "direct", None):
        for gradient, other in zip(case.backward(upstream, argmax, w, backward_plan), gradients, strict=True):
            assert gradient.dtype == dtype
            assert torch.equal(gradient.double(), other)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    call=overlapping_calls(500),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    is_window=st.booleans(),
    has_lengths=st.booleans(),
    seed=st.integers(0, 2**16),
)
@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("sliding", [0, 10**9], ids=["running maxima", "one by one"])
def test_overlapping_windows(shared, monkeypatch, sliding, plan, call, dtype, is_window, has_lengths, seed):
    """To the bit, argmax too, however windows are pooled."""
    monkeypatch.setattr(conv_pool_blocking, "SLIDING", sliding)
    gathered._descriptor.cache_clear()
    dense._prepared.cache_clear()
    (samples, channels, length), *geometry = call
    case, w, b = build(((samples, length, 9, channels), *geometry), "int64", "contiguous", dtype, is_window, 2, seed)
    generator = torch.Generator().manual_seed(seed)
    table = special(generator, case.table)
    lengths = torch.randint(0, length + 1, (samples,), generator=generator) if has_lengths else None
    options = {"folded": fold.fold(table, w)} if plan == "ready" else {"plan": plan}
    given = case.source(table)._replace(lengths=lengths), w, b, case.convolution, case.pool
    out, argmax = conv_pool.forward(*given, want_argmax=True, **options)
    exact = case.source(table.double())._replace(lengths=lengths), w.double(), b.double(), *given[3:]
    value, at = reference.forward(*exact, want_argmax=True)
    gathered._descriptor.cache_clear()
    dense._prepared.cache_clear()
    np.testing.assert_array_equal(out.double(), value)
    np.testing.assert_array_equal(argmax[..., : len(w)], at)


def tokens_case(shape, table, convolution=PLAIN, pool=None, *, seed=0, **options):
    generator = torch.Generator().manual_seed(seed)
    return Case(torch.randint(table.size(0), shape, generator=generator), table, convolution, pool, **options)


LAYERS = [
    ((4, 500), 60, 128, 32, 7, PLAIN, Pool(5, 5)),
    ((3, 90), 40, 300, 24, 5, Convolution(1, (2, 2)), Pool(2, 2)),
    ((2, 1200), 90, 3, 5, 31, Convolution(1, (15, 15)), Pool(300, 7, 150)),
    ((2, 400), 50, 64, 100, 3, PLAIN, None),
    ((3, 94), 1000, 32, 32, 7, Convolution(2, (0, 0), 2), Pool(3, 2)),
]


@pytest.mark.parametrize(("shape", "rows", "channels", "outputs", "size", "convolution", "pool"), LAYERS)
@pytest.mark.parametrize("plan", PLANS)
def test_is_as_precise_as_torch(shape, rows, channels, outputs, size, convolution, pool, plan):
    """Against float64, at most twice the error of torch's float32, in the largest and on average."""
    generator = torch.Generator().manual_seed(7)
    case = tokens_case(shape, torch.randn(rows, channels, generator=generator), convolution, pool)
    w = torch.randn(outputs, channels, size, generator=generator) / (channels * size) ** 0.5
    b = torch.randn(outputs, generator=generator)
    value = case.expected(w, b)
    errors = [(out.double() - value).abs() for out in (case.forward(w, b, plan)[0], case.reference(case.table, w, b))]
    assert errors[0].mean() <= 2 * errors[1].mean()
    assert errors[0].max() <= 2 * errors[1].max()


@pytest.mark.parametrize("plan", ["folded", "direct"])
@pytest.mark.parametrize("rows", [30, 3000])
def test_gradients_are_as_precise_as_torch(plan, rows):
    """On inputs whose maxima are clear, so that float32 and float64 choose the same positions."""
    generator = torch.Generator().manual_seed(11)
    case = tokens_case((16, 200), torch.randn(rows, 24, generator=generator), PLAIN, Pool(4, 4))
    w = torch.randn(32, 24, 5, generator=generator) / 11
    b = torch.randn(32, generator=generator)
    out, argmax = case.forward(w, b, plan)
    upstream = torch.randn(out.shape, generator=generator)
    gathered = case.table.double()[case.index].transpose(1, 2)
    active = torch.nn.functional.conv1d(gathered, w.double(), b.double()).relu()[..., :196].unflatten(2, (-1, 4))
    highest = active.topk(2, 3).values
    clear = (highest[..., 0] - highest[..., 1] > 1e-4) & (highest[..., 0] > 1e-4)
    upstream = upstream * clear
    assert clear.float().mean() > 0.7
    _, exact = case.expected(w, b, upstream)
    tensors = [one.detach().requires_grad_() for one in (case.table, w, b)]
    theirs = torch.autograd.grad(case.reference(*tensors), tensors, upstream)
    for mine, their, value in zip(case.backward(upstream, argmax, w, plan), theirs, exact, strict=True):
        assert (mine.double() - value).abs().mean() <= 2 * (their.double() - value).abs().mean()


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize(
    ("samples", "channels", "length", "outputs", "size", "pool_size"),
    [
        (4, 16, 60, 256, 7, 5),
        (2, 64, 76, 8, 17, 2),
        (1, 16, 1000, 32, 3, 1),
        *(
            pytest.param(*sizes, marks=pytest.mark.large)
            for sizes in (
                (4, 64, 120, 256, 7, 5),
                (4, 64, 120, 1024, 7, 5),
                (2, 320, 100, 480, 8, 4),
                (2, 64, 120, 1024, 31, 5),
                (2, 32, 80, 1024, 31, 1),
                (2, 1024, 80, 32, 7, 5),
                (4, 64, 60, 1024, 31, None),
            )
        ),
    ],
)
@pytest.mark.parametrize("kind", ["each row once", "rows twice", "windows"])
def test_is_as_precise_as_torch_whatever_is_summed(plan, kind, samples, channels, length, outputs, size, pool_size):
    """In the largest error and the root mean square, of the result and all gradients.

    Sums run over many outputs, over many taps of few outputs (torch's own are short there), or over one sample's many
    positions. The rows are those of a dense layer's input, or windows of a series that overlap by a half.
    """
    pool = None if pool_size is None else Pool(pool_size, pool_size)

    def draw(seed):
        x, w, b, _ = wide_layer(seed, samples, channels, length, outputs, size, pool_size)
        table = x.transpose(1, 2).flatten(0, 1)
        if kind == "windows":
            starts = torch.arange(samples) * (length // 2)
            case = Case(starts, table, PLAIN, pool, length=length, step=1)
            rows = starts[:, None] + torch.arange(length)
        else:
            rows = torch.randperm(len(table), generator=torch.Generator().manual_seed(seed)).view(samples, length)
            if kind == "rows twice":
                table, rows = table[: len(table) // 2], rows // 2
            case = Case(rows, table, PLAIN, pool)
        clear = has_clear_argmax(table[rows].transpose(1, 2), w, b, pool_size)
        upstream = torch.randn(clear.shape, generator=torch.Generator().manual_seed(seed)) * clear

        class Step(torch.autograd.Function):
            @staticmethod
            def forward(ctx, table, w, b):
                out, ctx.argmax = case.forward(w, b, plan)
                return out

            @staticmethod
            def backward(ctx, gradient):
                return case.backward(gradient, ctx.argmax, w, plan)

        return Step.apply, case.reference, (table, w, b), upstream

    seeds = range(3 if outputs > 100 else 9)
    for name, ratios in zip(("result", "table", "weight", "bias"), median_ratios(draw, seeds), strict=True):
        assert max(ratios) <= 2, (name, ratios)


@pytest.mark.parametrize("plan", ["folded", "direct"])
def test_is_as_precise_as_torch_where_few_rows_hold_all_maxima(plan):
    """Five rows that thousands of maxima read: positions of the same row are equal, the first is the argmax."""

    def draw(seed):
        generator = torch.Generator().manual_seed(seed)
        table = torch.randn(5, 16, generator=generator)
        w, b = torch.randn(150, 16, 1, generator=generator) / 4, torch.randn(150, generator=generator)
        case = Case(torch.randint(5, (64, 150), generator=generator), table, PLAIN, None)
        upstream = torch.randn(64, 150, generator=generator)

        class Step(torch.autograd.Function):
            @staticmethod
            def forward(ctx, table, w, b):
                out, ctx.argmax = case.forward(w, b, plan)
                return out

            @staticmethod
            def backward(ctx, gradient):
                return case.backward(gradient, ctx.argmax, w, plan)

        return Step.apply, case.reference, (table, w, b), upstream

    for name, ratios in zip(("result", "table", "weight", "bias"), median_ratios(draw, range(5)), strict=True):
        assert max(ratios) <= 2, (name, ratios)


@grid(
    values=SPECIAL_VALUES,
    dtype=[torch.float32, torch.float64],
    globally=[False, True],
    plan=PLANS,
    overlaps=[False, True],
)
def test_special_values_go_where_torch_sends_them(values, dtype, globally, plan, overlaps):
    """The weight is one: the activation is the row's positive part; the gradient shows the argmax."""
    table = torch.tensor(values, dtype=dtype).reshape(-1, 1)
    size = len(values) - overlaps  # windows that overlap are pooled from a scratch
    pool = None if globally else Pool(size, 1 if overlaps else size)
    w, b = torch.ones(1, 1, 1, dtype=dtype), torch.zeros(1, dtype=dtype)
    of_tokens = Case(torch.arange(len(values)).reshape(1, -1), table, PLAIN, pool)
    of_windows = Case(torch.tensor([0]), table, PLAIN, pool, length=len(values), step=1)
    for case in (of_tokens, of_windows):
        out, argmax = case.forward(w, b, plan)
        upstream = torch.full_like(out, 3)
        value, gradients = case.expected(w, b, upstream)
        np.testing.assert_array_equal(out.double(), value)
        for backward_plan in ("folded", "direct", None):
            for wanted in ((True, True, True), (False, True, True)):
                got = case.backward(upstream, argmax, w, backward_plan, wanted)
                for mine, other, want in zip(got, gradients, wanted, strict=True):
                    assert (mine is not None) == want
                    if want:
                        np.testing.assert_array_equal(mine.double(), other)


@pytest.mark.parametrize("plan", ["folded", "direct"])
def test_an_infinite_weight_gives_the_losers_torchs_nan(plan):
    """Rows that only losers read, rows that nobody reads, and row ``padding_idx``."""
    generator = torch.Generator().manual_seed(5)
    case = tokens_case((3, 11), torch.randn(40, 3, generator=generator), PLAIN, Pool(4, 4), padding_idx=7)
    w = torch.randn(5, 3, 2, generator=generator)
    w[2, 1, 0] = INF
    out, argmax = case.forward(w, None, plan)
    upstream = torch.randn(out.shape, generator=generator)
    _, gradients = case.expected(w, torch.zeros(5), upstream)
    assert gradients[0].isnan().any()
    for mine, other in zip(case.backward(upstream, argmax, w, plan), gradients, strict=True):
        np.testing.assert_allclose(mine.double(), other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("plan", PLANS)
def test_a_nan_reaches_only_the_windows_that_see_it(plan):
    table = torch.ones(64, 20)
    table[30, 7] = NAN
    case = Case(torch.arange(64).reshape(1, -1), table, PLAIN, Pool(2, 2))
    out, _ = case.forward(torch.ones(40, 20, 3), None, plan)
    assert out.isnan().any(1).squeeze(0).nonzero().flatten().tolist() == [14, 15]
    assert out[..., 14:16].isnan().all()


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("padding", [0, 3])
def test_memory_around_the_tensors_is_not_read_into_results_nor_written(shared, plan, padding):
    """NaN surround the table and the weights, and rows that no token names are NaN."""
    room = torch.full((90, 25), NAN)
    table = room[10:77, 3:20]
    used = torch.arange(0, 67, 2)
    table[used] = torch.randn(len(used), 17)
    before = room.clone()
    w_room = torch.full((20, 19, 7), NAN)
    w = w_room[1:18, 1:18, 2:5].copy_(torch.randn(17, 17, 3))
    index = used[torch.randint(len(used), (3, 50))]
    case = Case(index, table, Convolution(1, (padding, padding)), Pool(3, 2))
    if plan == "ready":  # that folds every row
        table[1::2] = 0
        before = room.clone()
    out, argmax = case.forward(w, None, plan)
    assert torch.allclose(out.double(), case.expected(w, torch.zeros(17)), atol=1e-4)
    for backward_plan in ("folded", "direct"):
        gradients = case.backward(torch.ones_like(out), argmax, w, backward_plan)
        assert all(one.isfinite().all() for one in gradients)
        assert not gradients[0][1::2].any()
    np.testing.assert_array_equal(room, before)


@pytest.mark.parametrize("plan", ["folded", "direct"])
@pytest.mark.parametrize("wanted", [(True, False, False), (False, True, False), (False, False, True), (False,) * 3])
def test_computes_only_the_gradients_asked_for(wanted, plan, shared):
    case = tokens_case((2, 20), torch.randn(9, 3), PLAIN, Pool(2, 2))
    w, b = torch.randn(4, 3, 2), torch.randn(4)
    out, argmax = case.forward(w, b)
    upstream = torch.randn(out.shape)
    every = case.backward(upstream, argmax, w, plan)
    for gradient, other, want in zip(case.backward(upstream, argmax, w, plan, wanted), every, wanted, strict=True):
        assert (gradient is not None) == want
        if want:
            torch.testing.assert_close(gradient, other, rtol=1e-5, atol=1e-5)
    assert case.forward(w, b, want_argmax=False)[1] is None


@pytest.mark.parametrize("plan", PLANS)
def test_windows_of_padding_alone_are_minus_infinity(plan):
    """As torch has it: such a window sees no activation at all. It has no gradient."""
    case = Case(torch.zeros(2, 2, dtype=torch.int32), torch.ones(1, 1), PLAIN, Pool(2, 1, 1, 3))
    out, argmax = case.forward(torch.ones(1, 1, 1), None, plan)
    np.testing.assert_array_equal(out, torch.full((2, 1, 1), -INF))
    np.testing.assert_array_equal(out.double(), case.expected(torch.ones(1, 1, 1), torch.zeros(1)))
    for backward_plan in ("folded", "direct"):
        gradients = case.backward(torch.ones_like(out), argmax, torch.ones(1, 1, 1), backward_plan)
        assert not any(one.any() for one in gradients)


@pytest.mark.parametrize("plan", ["folded", "direct"])
@pytest.mark.parametrize(
    ("pool", "dtype"), [(Pool(128, 128), torch.int8), (Pool(129, 129), torch.int16), (None, torch.int16)]
)
def test_argmax_is_as_narrow_as_the_window_allows(pool, dtype, plan):
    """The last position of the window has the maximum: its number is the largest that must fit."""
    case = Case(torch.arange(300).reshape(1, -1), torch.arange(1.0, 301).reshape(-1, 1), PLAIN, pool)
    w = torch.ones(1, 1, 1)
    out, argmax = case.forward(w, None, plan)
    assert argmax.dtype == dtype
    assert argmax[0, 0, 0] == (299 if pool is None else pool.size - 1)
    dtable, _, _ = case.backward(torch.ones_like(out), argmax, w, plan)
    assert dtable.flatten().nonzero().flatten().tolist() == (
        [299] if pool is None else [pool.size - 1, 255 if pool.size == 128 else 257]
    )


@grid(
    indirect=["shared"],
    plan=["folded", "direct"],
    pool=[None, Pool(3, 2, 1, 2, True)],
    is_window=[False, True],
    shared=THREADS,
)
def test_gradcheck(pool, plan, is_window, shared):
    """Against differences of the forward pass itself, in float64."""
    generator = torch.Generator().manual_seed(1)
    table = torch.randn(40, 3, dtype=torch.float64, generator=generator).requires_grad_()
    index = torch.tensor([0, 3, 3]) if is_window else torch.randint(40, (3, 17), generator=generator)
    options = {"length": 17, "step": 2} if is_window else {}
    case = Case(index, table, Convolution(2, (1, 2), 2), pool, **options)

    class Layer(torch.autograd.Function):
        @staticmethod
        def forward(ctx, table, w, b):
            case.table = table
            out, argmax = case.forward(w, b, plan)
            ctx.save_for_backward(table, w, argmax)
            return out

        @staticmethod
        def backward(ctx, gradient):
            case.table, w, argmax = ctx.saved_tensors
            return case.backward(gradient, argmax, w, plan)

    w = torch.randn(4, 3, 3, dtype=torch.float64, generator=generator, requires_grad=True)
    b = torch.randn(4, dtype=torch.float64, generator=generator, requires_grad=True)
    assert torch.autograd.gradcheck(Layer.apply, (table, w, b))


def step(seed=0, samples=9, pool=None, plan="folded"):
    """Return a forward pass' result and all gradients on fixed random numbers."""
    generator = torch.Generator().manual_seed(seed)
    case = tokens_case((samples, 150), torch.randn(300, 20, generator=generator), PLAIN, pool, seed=seed)
    w = torch.randn(40, 20, 5, generator=generator)
    out, argmax = case.forward(w, None, plan)
    return out, *case.backward(torch.randn(out.shape, generator=generator), argmax, w, plan)


@grid(indirect=["shared"], shared=THREADS, samples=[1, 2, 9], plan=["folded", "direct"])
def test_reruns_give_the_same_bits(shared, samples, plan):
    first = step(samples=samples, pool=Pool(3, 3), plan=plan)
    for _ in range(20):
        assert all(map(torch.equal, first, step(samples=samples, pool=Pool(3, 3), plan=plan)))


def test_windows_of_many_samples_are_listed_together(shared):
    """In several lists, of which the last is shorter, and over padding; the table's sums do not depend on threads."""
    generator = torch.Generator().manual_seed(3)
    table, w, b = (integers(generator, *shape) for shape in ((50, 19), (9, 19, 3), (9,)))
    case = tokens_case((2 * gather_backward_direct.LISTED + 5, 12), table, Convolution(1, (2, 1), 2), padding_idx=7)
    out, argmax = case.forward(w, b)
    upstream = integers(generator, *out.shape)
    outcomes = case.backward(upstream, argmax, w, "direct")
    for gradient, other in zip(outcomes, case.expected(w, b, upstream)[1], strict=True):
        assert torch.equal(gradient.double(), other)
    rounded = torch.randn(out.shape, generator=generator)
    ours = case.backward(rounded, argmax, w, "direct")[0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "get_num_threads", lambda: 1)
        assert torch.equal(ours, case.backward(rounded, argmax, w, "direct")[0])


@grid(indirect=["shared"], shared=THREADS, pool=[Pool(3, 3), None], plan=["folded", "direct"])
def test_many_python_threads_at_once(shared, pool, plan):
    """Many steps, so that memory a kernel had freed too early would be another's by then."""
    alone = [step(seed, pool=pool, plan=plan) for seed in range(4)]
    with ThreadPoolExecutor(8) as executor:
        together = list(executor.map(lambda seed: step(seed, pool=pool, plan=plan), [0, 1, 2, 3] * 50))
    for i, results in enumerate(together):
        assert all(map(torch.equal, alone[i % 4], results))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("rows", "channels", "outputs", "size"), [(1, 1, 1, 1), (300, 129, 33, 3), (0, 4, 4, 2), (5, 0, 3, 2)]
)
def test_folds_every_row_or_those_listed(shared, dtype, rows, channels, outputs, size):
    generator = torch.Generator().manual_seed(3)
    table = integers(generator, rows, channels, dtype=dtype)
    w = integers(generator, outputs, channels, size, dtype=dtype)
    value = torch.einsum("vc,ock->vko", table, w)
    listed = torch.arange(0, rows, 3)
    for folded, other in ((fold.fold(table, w), value), (fold.fold(table, w, listed), value[listed])):
        assert folded.shape == fold.folded_shape(len(other), w)
        assert torch.equal(folded[..., :outputs], other)
        assert not folded[..., outputs:].any()


def test_plans_follow_the_counts():
    """A vocabulary that recurs is folded, rows that occur once are not; few maxima are multiplied one by one."""
    imdb = {"channels": 128, "outputs": 32, "size": 7}
    assert plans.forward_plan(plans.CPU, 128, 494, 10_000, **imdb).name == "folded"
    assert plans.forward_plan(plans.CPU, 1, 494, 500, **imdb).name == "direct"
    assert plans.forward_plan(plans.CPU, 1, 494, 500, **imdb, ready=True).name == "folded"
    both = {**imdb, "wanted": (True, True)}
    assert plans.backward_plan(plans.CPU, 128, 500, 98, 10_000, **both).name == "folded"
    assert plans.backward_plan(plans.CPU, 128, 500, 1, 10_000, **both).name == "direct"
    plan = plans.backward_plan(plans.CPU, 128, 500, 1, 10_000, **both)
    assert set(plan.operations) == set(plans.PLANS)
    assert plan.operations["direct"] < plan.operations["folded"]
    assert "10000 rows" in plan.reason


def test_a_table_without_channels_leaves_the_bias():
    case = Case(torch.zeros(2, 5, dtype=torch.int64), torch.empty(3, 0), PLAIN, Pool(2, 2))
    out, argmax = case.forward(torch.empty(2, 0, 1), torch.tensor([1.0, -1.0]))
    assert torch.equal(out, torch.tensor([[[1.0], [0.0]]]).expand(2, 2, 2))
    assert torch.equal(case.backward(torch.ones_like(out), argmax, torch.empty(2, 0, 1))[1], torch.empty(2, 0, 1))


@rounds(2)
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    sizes=st.lists(st.tuples(st.integers(1, 5), st.integers(1, 20)), min_size=1, max_size=4),
    shape=st.tuples(st.integers(0, 4), st.sampled_from([9, 150])),
    padding=st.integers(0, 2),
    rows=st.sampled_from([1, 30, 500]),
    plan=st.sampled_from([None, *PLANS]),
    wanted=st.sampled_from([(True, True, True), (True, False, False), (False, True, False), (False, False, True)]),
    has_padding_idx=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_several_layers_equal_the_reference(
    shared, turn, sizes, shape, padding, rows, plan, wanted, has_padding_idx, seed
):
    generator = torch.Generator().manual_seed(seed)
    table = integers(generator, rows, 6)
    tokens = torch.randint(rows, shape, generator=generator)
    weights = [integers(generator, outputs, 6, size) for size, outputs in sizes]
    biases = [integers(generator, outputs) for _, outputs in sizes]
    convolutions = [Convolution(1, (padding, padding), 1 + i % 2) for i in range(len(sizes))]
    padding_idx = 0 if has_padding_idx else None
    folded = [fold.fold(table, w) for w in weights] if plan == "ready" else None
    plan = None if plan == "ready" else plan
    source = Tokens(tokens, table, padding_idx)
    out, argmax = gather.forward_several(
        source, weights, biases, convolutions, want_argmax=True, folded=folded, plan=plan
    )
    count = len(sizes)
    leaves = [one.double().requires_grad_() for one in (table, *weights, *biases)]
    exact = Tokens(tokens, leaves[0], padding_idx)
    value = reference.compose_several(exact, leaves[1 : 1 + count], leaves[1 + count :], convolutions)
    assert torch.equal(out.double(), value)
    upstream = integers(generator, *out.shape)
    expected = torch.autograd.grad(value, leaves, upstream.double())
    expected = (expected[0], expected[1 : 1 + count], expected[1 + count :])
    for backward_plan in ("folded", "direct", None):
        gradients = gather_backward.backward_several(
            upstream, argmax, source, weights, convolutions, wanted=wanted, plan=backward_plan
        )
        for gradient, other, want in zip(gradients, expected, wanted, strict=True):
            assert (gradient is not None) == want
            if want:
                pairs = zip(gradient, other, strict=True) if isinstance(gradient, list) else [(gradient, other)]
                assert all(torch.equal(one.double(), two) for one, two in pairs)


SHORT_STEP = """
import json, torch
from seqconv.kernels.geometry import Convolution, Pool
from seqconv.kernels.numba import conv_pool
from seqconv.kernels.numba.micro import simd
from seqconv.kernels.numba.runtime import threads
from seqconv.kernels.source import Tokens
threads.WORTH_A_THREAD = 1
torch.set_num_threads(2)
def step(plan):
    generator = torch.Generator().manual_seed(3)
    table, w = (torch.randint(-3, 4, shape, generator=generator).float() for shape in ((150, 9), (37, 9, 4)))
    tokens = torch.randint(150, (5, 77), generator=generator)
    layer = Convolution(), Pool(3, 3)
    source = Tokens(tokens, table)
    out, argmax = conv_pool.forward(source, w, None, *layer, want_argmax=True, plan=plan)
    gradients = conv_pool.backward(out, argmax, source, w, *layer, wanted=(True, True, True), plan=plan)
    results = (out, *gradients)
    return [float((one.double() * torch.arange(one.numel()).reshape(one.shape)).sum()) for one in results]
def widened(dtype):
    folded = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(dtype).view(-1, 1, 16)
    tokens = torch.arange(folded.size(0)).unsqueeze(0)
    given = Tokens(tokens, torch.zeros(folded.size(0), 1)), torch.zeros(16, 1, 1), None, Convolution(), Pool(1, 1)
    out, _ = conv_pool.forward(*given, want_argmax=False, folded=folded)
    return torch.allclose(out[0].t(), folded.squeeze(1).float().relu(), rtol=0, atol=0, equal_nan=True)
assert widened(torch.float16)
print(json.dumps([simd.REGISTERS.width, step("folded"), step("direct")]))
"""


@pytest.mark.large
@pytest.mark.skipif(torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"), reason="not a CPU with AVX2")
@pytest.mark.parametrize(
    ("name", "features", "width"), [("haswell", "+avx,+avx2,+fma,+sse2,+sse4.1", 32), ("x86-64", "+sse2", 16)]
)
def test_serves_smaller_cpus(name, features, width, tmp_path):
    """The same results where Numba is told of fewer features than this CPU has."""
    generator = torch.Generator().manual_seed(3)
    table, w = (integers(generator, *shape) for shape in ((150, 9), (37, 9, 4)))
    case = Case(torch.randint(150, (5, 77), generator=generator), table, PLAIN, Pool(3, 3))
    out = case.expected(w, torch.zeros(37))
    _, gradients = case.expected(w, torch.zeros(37), out)
    value = [float((one * torch.arange(one.numel()).reshape(one.shape)).sum()) for one in (out, *gradients)]
    environment = {"NUMBA_CPU_NAME": name, "NUMBA_CPU_FEATURES": features, "NUMBA_CACHE_DIR": str(tmp_path)}
    finished = subprocess.run(
        [sys.executable, "-c", SHORT_STEP],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert finished.returncode == 0, finished.stderr
    assert json.loads(finished.stdout.splitlines()[-1]) == [width, value, value]


@pytest.mark.parametrize("gathered", [1, 700, 2**21], ids=["one sample", "some samples", "all samples"])
@pytest.mark.parametrize("pool", [None, Pool(3, 3), Pool(3, 2, 1, 1, True, True)], ids=str)
def test_rows_are_gathered_for_a_few_samples_at_a_time(pool, gathered, monkeypatch):
    """Each sample has the bits that it has by itself, wherever the batch is cut."""
    generator = torch.Generator().manual_seed(3)
    table, weight = torch.randn(50, 5, generator=generator), torch.randn(6, 5, 3, generator=generator)
    tokens = torch.randint(50, (7, 11), generator=generator, dtype=torch.int32)
    lengths = torch.tensor([11, 3, 0, 7, 11, 5, 10])
    for cut in (None, lengths):
        calls = [Tokens(tokens[n : n + 1], table, None, None if cut is None else cut[n : n + 1]) for n in range(7)]
        given = (weight, None, Convolution(), pool)
        alone = [conv_pool.forward(one, *given, want_argmax=True, plan="direct") for one in calls]
        monkeypatch.setattr(gather, "GATHERED", gathered)
        whole = conv_pool.forward(Tokens(tokens, table, None, cut), *given, want_argmax=True, plan="direct")
        outputs, argmaxes = zip(*alone, strict=True)
        assert torch.equal(whole[0], torch.cat(outputs))
        assert torch.equal(whole[1][..., :6], torch.cat(argmaxes)[..., :6])  # behind them a row is padded
