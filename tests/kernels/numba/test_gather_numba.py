"""The compiled conv stack on gathered rows against the reference in float64: both plans, every argument and trap."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from seqconv.kernels.geometry import Convolution, Pool
from seqconv.kernels.numba import fold, gather, gather_backward, threads
from seqconv.kernels.reference import gather as reference

NAN, INF = float("nan"), float("inf")
PLAIN = Convolution()
PLANS = ["folded", "direct", "ready"]


@pytest.fixture(params=[(1, True), (2, True), (3, True), (3, False)], ids=["1", "2", "3", "3 of Python"])
def shared(request, monkeypatch):
    """Share even the smallest work among so many threads, of OpenMP's or of Python's."""
    count, has_openmp = request.param
    monkeypatch.setattr(threads, "WORTH_A_THREAD", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: count)
    if not has_openmp:
        monkeypatch.setattr(threads, "_launch", 0)
    return count


def integers(generator, *shape, dtype=torch.float32):
    """Return small integers: every sum of their products is exact, and ties abound."""
    return torch.randint(-3, 4, shape, generator=generator).to(dtype)


class Case:
    """One layer on rows of ``table``: by tokens ``(N, L)``, or by ``starts``, a length and a step."""

    def __init__(self, index, table, convolution, pool, *, padding_idx=None, length=None, step=None):
        self.index, self.table, self.convolution, self.pool = index, table, convolution, pool
        self.geometry = (convolution,) if pool is None else (convolution, pool)
        self.options = (padding_idx,) if length is None else (length, step)
        self.of_tokens = length is None
        self.name = ("embedding" if self.of_tokens else "window") + "_conv1d_relu_"
        self.name += "global_max_pool1d" if pool is None else "max_pool1d"

    def sources(self, table=None):
        table = self.table if table is None else table
        return (self.index, table) if self.of_tokens else (table, self.index)

    def forward(self, w, b, plan=None, want_argmax=True):
        function = getattr(gather, self.name + "_forward")
        options = {"plan": plan}
        if plan == "ready":
            options = {"folded": fold.fold(self.table, w)}
        return function(*self.sources(), w, b, *self.geometry, *self.options, want_argmax=want_argmax, **options)

    def backward(self, upstream, argmax, w, plan=None, wanted=(True, True, True)):
        function = getattr(gather_backward, self.name + "_backward")
        plan = "folded" if plan == "ready" else plan
        return function(upstream, argmax, *self.sources(), w, *self.geometry, *self.options, wanted=wanted, plan=plan)

    def reference(self, table, w, b):
        return getattr(reference, self.name)(*self.sources(table), w, b, *self.geometry, *self.options)

    def expected(self, w, b, upstream=None):
        """Return the reference's result, and its gradients of table, weight and bias, computed in float64."""
        tensors = [one.detach().double().requires_grad_() for one in (self.table, w, b)]
        out = self.reference(*tensors)
        if upstream is None:
            return out.detach()
        return out.detach(), torch.autograd.grad(out, tensors, upstream.double())


def every_window_has_a_position(length, pool):
    """Where one has none, torch's gradient goes to a neighbouring sample, or behind the tensor's end."""
    windows = pool.output_length(length)
    starts = range(-pool.padding, windows * pool.stride - pool.padding, pool.stride)
    return windows > 0 and all(
        any(0 <= start + p * pool.dilation < length for p in range(pool.size)) for start in starts
    )


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


@st.composite
def calls(draw):
    """Draw a layer whose convolution and pool windows have at least one position."""
    size, dilation = draw(st.integers(1, 6)), draw(st.integers(1, 3))
    padding = (draw(st.integers(0, 4)), draw(st.integers(0, 4)))
    shortest = max(1, dilation * (size - 1) + 1 - sum(padding))
    length = draw(st.integers(shortest, shortest + 90))
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
    rows = draw(st.sampled_from([1, 2, 7, 200]))
    return (
        (draw(st.integers(0, 4)), length, rows, draw(st.integers(1, 20))),
        draw(st.integers(1, 40)),
        size,
        convolution,
        pool,
    )


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


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    call=calls(),
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
def test_equals_the_reference_on_exact_sums(
    shared, call, index, table_layout, dtype, has_bias, is_window, step, plan, upstream_layout, seed
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
