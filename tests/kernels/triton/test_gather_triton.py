"""The conv stack on gathered rows against the reference in float64: all plans, every argument and trap."""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from seqconv.kernels import plans
from seqconv.kernels.geometry import Convolution, Pool
from seqconv.kernels.reference import conv_pool as reference
from seqconv.kernels.source import Tokens, Windows
from seqconv.kernels.triton import conv_pool, fold, folded_backward, gather_backward, occurrences, support
from seqconv.kernels.triton.rows import rows_of
from tests.grids import grid, others_large, rounds
from tests.kernels.cases import INDICES, INF, NAN, PLAIN, SPECIAL_VALUES, TABLES, gathered_calls, integers
from tests.kernels.triton.gather_cases import PLANS, Case, pooled_apart, reordered

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def build(call, index, table_layout, dtype, is_window, step, seed, device):
    """Return the case and exact weights and bias."""
    (samples, length, rows, channels), outputs, size, convolution, pool = call
    generator = torch.Generator().manual_seed(seed)
    most = 1 if dtype == torch.bfloat16 else 3  # no sum takes more bits than the dtype has
    exact = {"dtype": dtype, "device": device, "most": most}
    w, b = integers(generator, outputs, channels, size, **exact), integers(generator, outputs, **exact)
    if is_window:
        rows = rows + (length - 1) * step
        numbers = torch.randint(rows - (length - 1) * step, (samples,), generator=generator)
        index = "int64" if index == "transposed" else index
    else:
        numbers = torch.randint(rows, (samples, length), generator=generator)
    options = {"length": length, "step": step} if is_window else {}
    if not is_window and numbers.numel() and seed % 2:
        options["padding_idx"] = int(numbers.flatten()[0])
    table = TABLES[table_layout](integers(generator, rows, channels, **exact))
    return Case(INDICES[index](numbers.to(device)), table, convolution, pool, **options), w, b


@rounds(10)
@settings(max_examples=2, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    call=gathered_calls(20, size=10),
    index=st.sampled_from(sorted(INDICES)),
    table_layout=st.sampled_from(sorted(TABLES)),
    dtype=st.sampled_from(DTYPES),
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
@example(  # several tiles of everything, and one token for most of them
    ((2, 70, 2, 66), 66, 3, Convolution(1, (1, 1)), Pool(2, 2)), "int32", "contiguous", torch.float32, True, False, 1,
    "direct", "contiguous", 0,
)  # fmt: skip
@example(  # phases that share loads
    ((2, 30, 9, 20), 8, 3, PLAIN, Pool(5, 5)), "int64", "contiguous", torch.float16, True, False, 1, "direct",
    "channels-last", 1,
)  # fmt: skip
@example(
    ((2, 70, 70, 9), 66, 3, Convolution(1, (1, 1)), None), "int64", "contiguous", torch.float32, True, True, 2,
    "direct", "contiguous", 0,
)  # fmt: skip
@example(
    ((2, 40, 50, 9), 66, 9, Convolution(1, (1, 1)), Pool(3, 2, 1, 1, True)), "int64", "cut", torch.bfloat16, True,
    True, 3, "folded", "expanded", 0,
)  # fmt: skip
def test_equals_the_reference_on_exact_sums(
    device, turn, call, index, table_layout, dtype, has_bias, is_window, step, plan, upstream_layout, seed
):
    case, w, b = build(call, index, table_layout, dtype, is_window, step, seed, device)
    b = b if has_bias else None
    if dtype == torch.bfloat16 and plan == "ready":
        plan = "folded"  # products of which several make a row need more bits
    out, argmax = case.forward(w, b, plan)
    generator = torch.Generator().manual_seed(seed + 1)
    upstream = integers(generator, *out.shape, dtype=dtype, device=device, most=1)
    if upstream_layout == "expanded":
        upstream = upstream[:1, :1].expand_as(out) if upstream.numel() else upstream
    elif upstream_layout == "channels-last" and out.dim() == 3:
        upstream = upstream.transpose(1, 2).contiguous().transpose(1, 2)
    value, gradients = case.expected(w, b, upstream)
    assert out.dtype == dtype
    assert torch.equal(out.cpu(), value.to(dtype))
    assert argmax.shape == (out.size(0), 1 if case.pool is None else out.size(2), out.size(1))
    if case.pool is not None:
        assert out.transpose(1, 2).is_contiguous()
    for gradient, other in zip(case.backward(upstream, argmax, w, plan=plan), gradients, strict=True):
        assert gradient.dtype == dtype
        assert torch.equal(gradient.cpu(), other.to(dtype))


@grid(
    together=1,
    plan=PLANS,
    dtype=DTYPES,
    pool=[Pool(3, 2, 1), Pool(9, 1, 4, 1, True), Pool(20, 1, 0, 2)],
    is_window=[False, True],
    is_contiguous=[False, True],
)
def test_overlapping_windows(device, plan, dtype, pool, is_window, is_contiguous):
    """Pooled from a stored activation, and not: as the reference, argmax too."""
    pool = pool._replace(contiguous=is_contiguous)
    call = (2, 50, 9, 5), 20, 3, Convolution(1, (1, 1)), pool
    case, w, b = build(call, "int64", "contiguous", dtype, is_window, 2, 0, device)
    if dtype == torch.bfloat16 and plan == "ready":
        plan = "folded"
    exact = [one.cpu().double() for one in (case.table, w, b)]
    source = case.source(exact[0], case.index.cpu())
    value, at = reference.forward(source, *exact[1:], case.convolution, pool, want_argmax=True)
    for is_so in (False, True):
        with pooled_apart(is_so):
            out, argmax = case.forward(w, b, plan)
        assert torch.equal(out.cpu().double(), value)
        assert torch.equal(argmax.cpu(), at)
        assert out.is_contiguous() == is_contiguous


def tokens_case(shape, table, convolution=PLAIN, pool=None, *, seed=0, **options):
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(table.size(0), shape, generator=generator).to(table.device)
    return Case(tokens, table, convolution, pool, **options)


def normal(seed, *shape, dtype=torch.float32, device="cpu", scale=1.0):
    return (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale).to(device, dtype)


@grid(together=1, dtype=DTYPES, pool=[Pool(5, 5), None], plan=["direct", "folded"])
def test_is_as_precise_as_torch(device, dtype, pool, plan):
    """Against float64, at most twice the error of torch's composition in that precision, and the result's rounding."""
    case = tokens_case((2, 60), normal(7, 30, 40, dtype=dtype, device=device), PLAIN, pool)
    w = normal(8, 24, 40, 7, dtype=dtype, device=device, scale=1 / 17)
    b = normal(9, 24, dtype=dtype, device=device)
    value = case.expected(w, b)
    results = (case.forward(w, b, plan)[0], case.reference(case.table, w, b))
    mine, theirs = ((out.cpu().double() - value).abs() for out in results)
    eps = torch.finfo(dtype).eps
    cut = eps / 2 if device.type == "cpu" and dtype == torch.bfloat16 else 0.0  # the interpreter cuts, a GPU rounds
    assert mine.mean() <= 2 * theirs.mean() + cut * value.mean()
    assert mine.max() <= 2 * theirs.max() + (cut + eps / 2) * value.max()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("of", [torch.float32, None])
def test_a_folded_tables_dtype_bounds_the_error(device, dtype, of):
    """By eps / 2 for every row that is added, twice as much where the interpreter cuts, and the result's own."""
    of = dtype if of is None else of
    table = normal(1, 30, 40, dtype=of, device=device)
    w, tokens = normal(2, 24, 40, 5, dtype=of, device=device, scale=1 / 14), torch.arange(30, device=device)[None]
    case = Case(tokens, table, PLAIN, Pool(1, 1))
    folded = conv_pool.fold(table, w, dtype=dtype)
    assert folded.dtype == dtype
    out, _ = conv_pool.forward(case.source(), w, None, PLAIN, Pool(1, 1), want_argmax=False, folded=folded)
    assert out.dtype == of
    rows = torch.einsum("vc,ock->vko", table.cpu().double(), w.cpu().double()).abs()
    sums = sum(rows[k : 26 + k, k] for k in range(5)).t()[None]
    eps, own = torch.finfo(dtype).eps, torch.finfo(of).eps
    error = (out.cpu().double() - case.expected(w, None)).abs()
    assert (error <= (eps / 2 if device.type == "cuda" else eps) * sums * 1.001 + own * sums + 1e-6).all()


@grid(together=1, dtype=DTYPES, rows=[30, 600], plan=["direct", "folded"])
def test_gradients_are_as_precise_as_torch(device, dtype, rows, plan):
    """On inputs whose maxima are clear, so that every precision chooses the same positions."""
    case = tokens_case((2, 60), normal(11, rows, 24, dtype=dtype, device=device), PLAIN, Pool(4, 4))
    w = normal(12, 32, 24, 5, dtype=dtype, device=device, scale=1 / 11)
    b = normal(13, 32, dtype=dtype, device=device)
    out, argmax = case.forward(w, b)
    gathered = case.table.cpu().double()[case.index.cpu()].transpose(1, 2)
    active = torch.nn.functional.conv1d(gathered, w.cpu().double(), b.cpu().double()).relu()
    highest = active.unflatten(2, (-1, 4)).topk(2, 3).values
    clear = highest[..., 0] - highest[..., 1] > (0.05 if dtype == torch.bfloat16 else 0.01)
    upstream = normal(14, *out.shape, dtype=dtype, device=device) * clear.to(device)
    assert clear.float().mean() > 0.5
    _, exact = case.expected(w, b, upstream)
    tensors = [one.detach().requires_grad_() for one in (case.table, w, b)]
    theirs = torch.autograd.grad(case.reference(*tensors), tensors, upstream)
    cut = torch.finfo(dtype).eps / 2 if device.type == "cpu" and dtype == torch.bfloat16 else 0.0
    for mine, their, value in zip(case.backward(upstream, argmax, w, plan=plan), theirs, exact, strict=True):
        error, other = ((one.cpu().double() - value).abs().mean() for one in (mine, their))
        assert error <= 2 * other + cut * value.abs().mean()


@grid(together=1, values=SPECIAL_VALUES, dtype=DTYPES, globally=[False, True], plan=PLANS)
def test_special_values_go_where_torch_sends_them(device, values, dtype, globally, plan):
    """The weight is one: the activation is the row's positive part; the gradient shows the argmax."""
    table = torch.tensor(values, dtype=dtype, device=device).reshape(-1, 1)
    pool = None if globally else Pool(len(values), len(values))
    w, b = torch.ones(1, 1, 1, dtype=dtype, device=device), torch.zeros(1, dtype=dtype, device=device)
    of_tokens = Case(torch.arange(len(values), device=device).reshape(1, -1), table, PLAIN, pool)
    of_windows = Case(torch.tensor([0], device=device), table, PLAIN, pool, length=len(values), step=1)
    for case in (of_tokens, of_windows):
        out, argmax = case.forward(w, b, plan)
        upstream = torch.full_like(out, 3)
        value, gradients = case.expected(w, b, upstream)
        np.testing.assert_array_equal(out.cpu().double(), value)
        for mine, other in zip(case.backward(upstream, argmax, w, plan=plan), gradients, strict=True):
            np.testing.assert_array_equal(mine.cpu().double(), other)


@grid(together=1, padding=[0, 2], plan=PLANS)
def test_an_infinite_weight_gives_torchs_nan(device, plan, padding):
    """Also where it meets padding, and in the gradients of rows that only losers read.

    Gradients that meet before they are multiplied may be infinite where torch adds a NaN: zero times infinity.
    """
    table = normal(5, 40, 3, device=device)
    case = tokens_case((3, 11), table, Convolution(1, (padding, padding)), Pool(4, 4), padding_idx=7)
    w = normal(6, 5, 3, 2, device=device)
    w[2, 1, 0] = INF
    out, argmax = case.forward(w, None, plan)
    upstream = normal(7, *out.shape, device=device)
    value, gradients = case.expected(w, None, upstream)
    assert value.isnan().any() == (padding > 0)
    assert gradients[0].isnan().any()
    mine = (out, *case.backward(upstream, argmax, w, plan=plan))
    for number, (one, other) in enumerate(zip(mine, (value, *gradients), strict=True)):
        found = one.cpu().double()
        if plan != "direct" and number == 1:
            assert torch.equal(found.isfinite(), other.isfinite())
            found = torch.where(other.isnan(), other, found)
        np.testing.assert_allclose(found, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("plan", PLANS)
def test_a_nan_reaches_only_the_windows_and_rows_that_see_it(device, plan):
    table = torch.ones(64, 20, device=device)
    table[30, 7] = NAN
    case = Case(torch.arange(64, device=device).reshape(1, -1), table, PLAIN, Pool(2, 2))
    w = torch.ones(40, 20, 3, device=device)
    out, argmax = case.forward(w, None, plan)
    assert out.isnan().any(1).squeeze(0).nonzero().flatten().tolist() == [14, 15]
    assert out[..., 14:16].isnan().all()
    upstream = torch.ones_like(out)
    upstream[..., 3] = NAN
    dtable, _, _ = case.backward(upstream, argmax, w, (True, False, False), plan)
    assert dtable.isnan().all(1).nonzero().flatten().tolist() == [6, 7, 8]  # neighbours in the sorted sum are spared


@grid(together=1, padding=[0, 3], plan=PLANS)
def test_memory_around_the_tensors_is_not_read_into_results_nor_written(device, plan, padding):
    """NaN surround the table and the weights, and rows that no token names are NaN."""
    room = torch.full((90, 25), NAN, device=device)
    table = room[10:77, 3:20]
    used = torch.arange(0, 67, 2)
    table[used] = normal(1, len(used), 17, device=device)
    before = room.clone()
    w = torch.full((20, 19, 7), NAN, device=device)[1:18, 1:18, 2:5].copy_(normal(2, 17, 17, 3))
    index = used[torch.randint(len(used), (2, 40), generator=torch.Generator().manual_seed(3))].to(device)
    case = Case(index, table, Convolution(1, (padding, padding)), Pool(3, 2))
    out, argmax = case.forward(w, None, plan)
    assert torch.allclose(out.cpu().double(), case.expected(w, None), atol=1e-4)
    gradients = case.backward(torch.ones_like(out), argmax, w, plan=plan)
    assert all(one.isfinite().all() for one in gradients)
    assert not gradients[0][1::2].any()
    np.testing.assert_array_equal(room.cpu(), before.cpu())


@grid(together=1, dtype=[torch.int32, torch.int64], pool=[Pool(3, 2), None], plan=PLANS)
def test_numbers_out_of_range_count_as_rows_of_zeros(device, dtype, pool, plan):
    """Of a window that leaves the series all rows; none gets a gradient, and the others theirs."""
    if device.type == "cuda":
        pytest.skip("on a GPU such numbers stop the device: test_index_check.py has that, in a process of its own")
    generator = torch.Generator().manual_seed(0)
    table, w = integers(generator, 9, 5, device=device), integers(generator, 8, 5, 3, device=device)
    far = 2**31 - 1 if dtype == torch.int32 else 2**40
    tokens = torch.randint(9, (2, 20), generator=generator).to(dtype)
    tokens[0, 5:9] = torch.tensor([-1, 9, far, -far], dtype=dtype)
    inside = torch.where((tokens < 0) | (tokens >= 9), 9, tokens)
    starts = torch.tensor([0, 4, -1, far, 2, 5], dtype=dtype)
    rows = torch.where((starts < 0) | (starts > 4), 1000, starts.long())[:, None] + torch.arange(5)
    for case, right in (
        (Case(tokens.to(device), table, PLAIN, pool), inside),
        (Case(starts.to(device), table, PLAIN, pool, length=5, step=1), rows.clamp(max=9)),
    ):
        out, argmax = case.forward(w, None, plan)
        upstream = torch.ones_like(out)
        with_zeros = Case(right, torch.cat([table.cpu(), torch.zeros(1, 5)]), PLAIN, pool)
        value, gradients = with_zeros.expected(w, None, upstream)
        assert torch.equal(out.cpu().double(), value)
        expected = (gradients[0][:9], *gradients[1:])
        for mine, other in zip(case.backward(upstream, argmax, w, plan=plan), expected, strict=True):
            assert torch.equal(mine.cpu().double(), other)


@grid(
    together=1,
    wanted=[(True, False, False), (False, True, False), (False, False, True), (False,) * 3],
    is_window=[False, True],
    plan=["direct", "folded"],
)
def test_computes_only_what_is_asked_for(device, wanted, is_window, plan):
    table, w, b = (normal(0, *shape, device=device) for shape in ((29, 3), (4, 3, 2), (4,)))
    if is_window:
        case = Case(torch.tensor([0, 9], device=device), table, PLAIN, Pool(2, 2), length=20, step=1)
    else:
        case = tokens_case((2, 20), table, PLAIN, Pool(2, 2))
    out, argmax = case.forward(w, b)
    assert case.forward(w, b, want_argmax=False)[1] is None
    upstream = normal(1, *out.shape, device=device)
    every = case.backward(upstream, argmax, w, plan=plan)
    some = case.backward(upstream, argmax, w, wanted, plan)
    assert [one is not None for one in some] == list(wanted)
    for gradient, other in zip(some[:2], every[:2], strict=True):
        assert gradient is None or torch.equal(gradient, other)
    if wanted[2]:  # another kernel where it is alone: its threads may add in another order
        assert ((some[2].double() - every[2].double()).abs() <= reordered(upstream)).all()


@pytest.mark.parametrize("plan", PLANS)
def test_windows_of_padding_alone_are_minus_infinity(device, plan):
    """As torch has it: such a window sees no activation at all. It has no gradient."""
    tokens = torch.zeros(2, 2, dtype=torch.int32, device=device)
    case = Case(tokens, torch.ones(1, 1, device=device), PLAIN, Pool(2, 1, 1, 3))
    w = torch.ones(1, 1, 1, device=device)
    out, argmax = case.forward(w, None, plan)
    np.testing.assert_array_equal(out.cpu(), torch.full((2, 1, 1), -INF))
    assert not any(one.any() for one in case.backward(torch.ones_like(out), argmax, w, plan=plan))


@grid(
    together=1,
    plan=["folded", "direct"],
    narrow=[(Pool(128, 128), torch.int8), (Pool(129, 129), torch.int16), (None, torch.int16)],
)
def test_argmax_is_as_narrow_as_the_window_allows(device, plan, narrow):
    """The last position of the window has the maximum: its number is the largest that must fit."""
    pool, dtype = narrow
    table = torch.arange(1.0, 261, device=device).reshape(-1, 1)
    case = Case(torch.arange(260, device=device).reshape(1, -1), table, PLAIN, pool)
    w = torch.ones(1, 1, 1, device=device)
    out, argmax = case.forward(w, None, plan)
    assert argmax.dtype == dtype
    assert argmax[0, 0, 0] == (259 if pool is None else pool.size - 1)
    dtable, _, _ = case.backward(torch.ones_like(out), argmax, w, plan=plan)
    maxima_at = [259] if pool is None else [pool.size - 1, 2 * pool.size - 1]
    assert dtable.flatten().nonzero().flatten().tolist() == maxima_at


@grid(
    together=1,
    special=[False, True],
    total=[300, 64, 33, 1],
    rows=[3, 40, 1, 5000, 40000],
    spans=[gather_backward.SPANS, 5],
)
def test_gradients_meet_at_rows_however_often_these_recur(device, monkeypatch, rows, total, spans, special):
    """Within a span of sorted tokens, in steps, over a boundary, and over more spans than are joined at a time."""
    monkeypatch.setattr(gather_backward, "SPANS", spans)
    monkeypatch.setattr(occurrences, "JOINED", 2)
    generator = torch.Generator().manual_seed(rows + total)
    tokens = torch.randint(rows, (1, total), generator=generator)
    dtype = torch.float16 if rows in (3, 5000) else torch.float32  # sums of up to 300 numbers are exact in both
    dx = integers(generator, 1, total, 3, dtype=dtype, device=device, most=1)
    if special:
        dx[0, total // 3], dx[0, -1] = float("inf"), float("nan")
    dtable = torch.zeros(rows, 3, dtype=dtype, device=device)
    skipped = int(tokens[0, 0]) if rows > 1 else -1
    gather_backward._sum_rows(dx, rows_of(Tokens(tokens.to(device), dtable)), 0, dtable, skipped)
    expected = torch.zeros(rows, 3, dtype=torch.float64).index_add_(0, tokens[0], dx[0].cpu().double())
    if rows > 1:
        expected[skipped] = 0
    np.testing.assert_array_equal(dtable.cpu().double(), expected)


@grid(
    together=1,
    pool=[Pool(3, 3), Pool(4, 2, 1, 2), None],
    padding=[(0, 0), (2, 1), (9, 9)],  # of a kernel of 3: none of its taps lies inside everywhere
    total=[70, 23],
    rows=[3, 40, 1, 300],
    spans=[folded_backward.SPANS, 5],
)
def test_folded_gradients_meet_at_rows_however_often_these_recur(
    device, monkeypatch, rows, total, padding, pool, spans
):
    monkeypatch.setattr(folded_backward, "SPANS", spans)
    monkeypatch.setattr(occurrences, "JOINED", 2)
    options = {"device": device, "most": 1}
    generator = torch.Generator().manual_seed(rows + total)
    table = integers(generator, rows, 5, **options)
    case = tokens_case((2, total), table, Convolution(1, padding, 2), pool, seed=total, padding_idx=rows // 2)
    w = integers(generator, 9, 5, 3, **options)
    out, argmax = case.forward(w, None, "direct")
    upstream = integers(generator, *out.shape, **options)
    _, gradients = case.expected(w, None, upstream)
    for mine, other in zip(case.backward(upstream, argmax, w, plan="folded"), gradients, strict=True):
        assert torch.equal(mine.cpu().double(), other)


@pytest.mark.parametrize("pool", others_large(Pool(3, 3), Pool(3, 2), None))
@pytest.mark.parametrize("plan", others_large("direct", "folded"))
def test_reruns_give_the_same_bits(device, pool, plan):
    interpreted = device.type == "cpu"
    case = tokens_case((2, 9) if interpreted else (500, 90), normal(0, 30, 20, device=device), PLAIN, pool)
    w = normal(1, 40, 20, 3, device=device)
    upstream = normal(2, *case.forward(w, None, plan)[0].shape, device=device)
    first = case.step(w, None, upstream, plan)
    for _ in range(1 if interpreted else 50):
        assert all(map(torch.equal, first, case.step(w, None, upstream, plan)))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", sorted(TABLES))
def test_folds_every_row_or_those_listed(device, dtype, layout):
    """Of one shape for each pair, in turn, so that each meets every dtype and every layout."""
    turn = DTYPES.index(dtype) + sorted(TABLES).index(layout)
    rows, channels, outputs, size = ((1, 1, 1, 1), (150, 35, 33, 3), (0, 4, 4, 2))[turn % 3]
    generator = torch.Generator().manual_seed(3)
    exact = {"dtype": dtype, "device": device, "most": 1}
    table = TABLES[layout](integers(generator, rows, channels, **exact))
    w = integers(generator, outputs, channels, size, **exact)
    value = torch.einsum("vc,ock->vko", table.cpu().double(), w.cpu().double())
    listed = torch.arange(0, rows, 3)
    for folded, other in ((fold.fold(table, w), value), (fold.fold(table, w, listed.to(device)), value[listed])):
        assert folded.shape == fold.folded_shape(len(other), w)
        assert folded.dtype == torch.float32
        assert torch.equal(folded[:-1, :, :outputs].cpu().double(), other)
        assert not folded[..., outputs:].any()
        assert not folded[-1].any()


def test_plans_follow_the_counts():
    """A vocabulary that recurs is folded; rows that occur once are not, nor rows of few channels."""
    imdb = {"channels": 128, "outputs": 32, "size": 7}
    assert plans.forward_plan(plans.GPU["tf32"], 128, 494, 10_000, **imdb).name == "folded"
    assert plans.forward_plan(plans.GPU["tf32"], 1, 494, 10_000, **imdb).name == "direct"
    assert plans.forward_plan(plans.GPU["tf32"], 1, 494, 10_000, **imdb, ready=True).name == "folded"
    assert plans.forward_plan(plans.GPU["ieee"], 128, 494, 10_000, **imdb).name == "folded"
    assert plans.forward_plan(plans.GPU["ieee"], 128, 236, 1000, 4, 32, 5).name == "direct"
    plan = plans.forward_plan(plans.GPU["tf32"], 128, 494, 10_000, **imdb)
    assert set(plan.operations) == set(plans.PLANS)
    assert "10000 rows" in plan.reason
    fold_operations = plans.fold_operations(plans.GPU["tf32"], 10_000, **imdb)
    ready = plans.forward_plan(plans.GPU["tf32"], 128, 494, 10_000, **imdb, ready=True)
    assert plan.operations["folded"] - ready.operations["folded"] == fold_operations
    for costs in plans.GPU.values():
        assert plans.backward_plan(costs, 128, 500, 494, 10_000, **imdb, wanted=(True, True)).name == "folded"
        assert plans.backward_plan(costs, 1, 500, 494, 10_000, **imdb, wanted=(True, True)).name == "direct"
        assert plans.backward_plan(costs, 128, 500, 494, 2_000_000, **imdb, wanted=(True, True)).name == "direct"


def test_a_plan_that_is_none_is_rejected(device):
    case = tokens_case((2, 9), torch.ones(3, 4, device=device), PLAIN, Pool(2, 2))
    with pytest.raises(ValueError, match="plan must be one of"):
        case.forward(torch.ones(2, 4, 3, device=device), None, "best")
    upstream, argmax = torch.ones(2, 2, 3, device=device), torch.zeros(2, 3, 2, dtype=torch.int8, device=device)
    with pytest.raises(ValueError, match="plan must be one of"):
        case.backward(upstream, argmax, torch.ones(2, 4, 3, device=device), plan="best")


def test_refuses_with_a_reason(device):
    tokens, table = torch.zeros(2, 9, dtype=torch.int64, device=device), torch.ones(4, 4, device=device)
    w = torch.ones(4, 4, 3, device=device)
    embedded, windows = Tokens(tokens, table), Windows(table, tokens[0], 4, 1)
    assert support.refuse(embedded, w, PLAIN, Pool(2, 2)) is None
    assert support.refuse(windows, w, PLAIN, Pool(2, 2)) is None
    assert "group" in support.refuse(embedded, w[:, :2], Convolution(groups=2), None)
    assert "float64" in support.refuse(Tokens(tokens, table.double()), w.double(), PLAIN, None)
    assert "device" in support.refuse(Tokens(tokens.to("meta"), table), w, PLAIN, None)
    for pool in (Pool(1, 2**32), Pool(1, 1, 0, 2**32), Pool(2, 2**31)):
        assert "at most" in support.refuse(embedded, w, PLAIN, pool)
        assert "at most" in support.refuse(windows, w, PLAIN, pool)
    assert "at most" in support.refuse(embedded, w[..., :1], Convolution(2**20), Pool(1, 2**20))
    assert "int16" in support.refuse(Windows(table, tokens[0].short(), 4, 1), w, PLAIN, None)
    assert "positions" in support.refuse(Windows(table, tokens[0], 2**31, 0), w, PLAIN, None)
    assert "positions" in support.refuse(Tokens(tokens[:, :1].expand(2, 2**31), table), w, PLAIN, None)
