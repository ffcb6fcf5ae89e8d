"""What only a GPU can show of gathered rows: torch's composition there, streams, graphs, compilations, large tables."""

import pytest
import torch

from seqconv import functional
from seqconv.kernels.geometry import Convolution, Pool
from seqconv.kernels.triton import launch
from tests.kernels.cases import PLAIN
from tests.kernels.triton.gather_cases import PLANS, Case, tf32

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU"),
]

CUDA = torch.device("cuda")
POOLS = [Pool(3, 3), Pool(5, 2, 2), None]
KINDS = ["tokens", "windows"]


def layer(kind, pool, shape=(9, 77), rows=300, channels=20, outputs=40, size=5, dtype=torch.float32, seed=0, **options):
    """Return a case on rows of a table, its weights and bias, and an upstream gradient."""
    device = options.pop("device", CUDA)
    generator = torch.Generator(device).manual_seed(seed)

    def normal(*shape):
        return torch.randn(shape, generator=generator, device=device).to(dtype)

    convolution, (samples, length) = options.pop("convolution", PLAIN), shape
    if kind == "windows":
        options |= {"length": length, "step": 2}
        rows += 2 * length
        numbers = torch.randint(rows - 2 * length, (samples,), generator=generator, device=device)
    else:
        numbers = torch.randint(rows, shape, generator=generator, device=device)
        numbers = torch.where(numbers < rows // 2, 0, numbers)  # as padding is
    case = Case(numbers, normal(rows, channels), convolution, pool, **options)
    w, b = normal(outputs, channels, size) / (channels * size) ** 0.5, normal(outputs)
    positions = convolution.output_length(length, size)
    return case, w, b, normal(samples, outputs, *(() if pool is None else (pool.output_length(positions),)))


def same(results, others):
    return all(map(torch.equal, results, others))


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("kind", KINDS)
def test_waits_for_nothing(kind, pool, plan):
    """No call makes the host wait for the device."""
    case, w, b, upstream = layer(kind, pool)
    case.step(w, b, upstream, plan)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        case.step(w, b, upstream, plan)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("kind", KINDS)
def test_runs_on_the_current_stream(kind, pool, plan):
    """The rows are ready only late on a side stream: kernels on another one would read what was there before."""
    case, w, b, upstream = layer(kind, pool)
    expected = case.step(w, b, upstream, plan)
    table, late = case.table, torch.zeros_like(case.table)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        late.copy_(table)
        case.table = late
        results = case.step(w, b, upstream, plan)
    stream.synchronize()
    assert same(results, expected)


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_captured_graph_replays_on_new_numbers(kind, pool, plan):
    case, w, b, upstream = layer(kind, pool)
    case.step(w, b, upstream, plan)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = case.step(w, b, upstream, plan)
    for seed in (5, 6):
        other, *new = layer(kind, pool, seed=seed)
        for one, value in zip((case.index, case.table, w, b, upstream), (other.index, other.table, *new), strict=True):
            one.copy_(value)
        graph.replay()
        torch.cuda.synchronize()
        assert same([one.clone() for one in results], case.step(w, b, upstream, plan))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="torch sees one GPU")
@pytest.mark.parametrize("plan", PLANS)
def test_runs_on_the_tensors_device_whatever_the_current_one_is(plan):
    case, w, b, upstream = layer("tokens", Pool(3, 3))
    expected = case.step(w, b, upstream, plan)
    other = torch.device("cuda", 1)
    case.index, case.table = case.index.to(other), case.table.to(other)
    results = case.step(*(one.to(other) for one in (w, b, upstream)), plan)
    assert torch.cuda.current_device() == 0
    assert all(one.device == other for one in results)
    assert same([one.to(CUDA) for one in results], expected)


def compilations():
    """Return how many kernels were compiled in this process."""
    names = ("conv_pool", "conv_pool_backward", "folded_backward", "gather", "gather_backward", "weights")
    modules = [launch.device_code(name) for name in names]
    kernels = [getattr(module, name) for module in modules for name in module.__all__ if name.endswith("_kernel")]
    return sum(len(caches[0]) for kernel in kernels for caches in kernel.device_caches.values())


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_second_batch_size_or_length_compiles_nothing(kind, pool, plan):
    def step(samples, length, rows):
        case, w, b, upstream = layer(kind, pool, (samples, length), rows, channels=24, outputs=19)
        case.step(w, b, upstream, plan)

    step(4, 90, 100)
    first = compilations()
    for samples, length, rows in ((1, 90, 100), (16, 90, 1), (4, 97, 16), (3, 1000, 1001), (64, 16, 5000)):
        step(samples, length, rows)
    assert compilations() == first


@pytest.mark.parametrize(("shape", "rows", "channels", "outputs", "size", "pool"), [
    ((8, 500), 10_000, 128, 32, 7, Pool(5, 5)), ((8, 60), 2000, 300, 100, 3, None),
    ((8, 240), 2000, 14, 32, 5, Pool(3, 3)), ((8, 94), 100, 32, 32, 7, None),
])  # fmt: skip
@pytest.mark.parametrize("precision", ["tf32", "ieee", "16"])
@pytest.mark.parametrize("plan", ["direct", "folded"])
@pytest.mark.parametrize("kind", KINDS)
def test_is_as_precise_as_torch_in_the_same_precision(
    shape, rows, channels, outputs, size, pool, precision, plan, kind
):
    """Of the result and all gradients; upstream gradients go to windows whose argmax is clear in every precision."""
    torch.backends.cudnn.allow_tf32 = precision == "tf32"
    dtype = torch.bfloat16 if precision == "16" else torch.float32
    case, w, b, upstream = layer(kind, pool, shape, rows, channels, outputs, size, dtype)
    numbers = case.index
    if kind == "windows":
        numbers = numbers[:, None] + 2 * torch.arange(shape[1], device=CUDA)
    x = case.table.double()[numbers].transpose(1, 2)
    active = torch.nn.functional.conv1d(x, w.double(), b.double()).relu()
    if pool is not None:
        active = active[..., : active.size(2) // pool.size * pool.size].unflatten(2, (-1, pool.size))
    highest = active.topk(2, -1).values
    upstream = upstream * (highest[..., 0] - highest[..., 1] > (0.05 if precision == "16" else 0.01))
    value, exact = case.expected(w, b, upstream)
    leaves = [one.detach().requires_grad_() for one in (case.table, w, b)]
    out = case.reference(*leaves)
    theirs = (out.detach(), *torch.autograd.grad(out, leaves, upstream))
    allowed = theirs
    if precision == "tf32":  # for some shapes torch's convolution is exact: what TF32 costs is told from its definition
        value_rounded, gradients_rounded = case.rounded().expected(tf32(w), b, tf32(upstream))
        allowed = (value_rounded, *gradients_rounded[:2], theirs[3])
    mine = case.step(w, b, upstream, plan)
    names = ("out", "dtable", "dweight", "dbias")
    for name, my, their, other, right in zip(names, mine, theirs, allowed, (value, *exact), strict=True):
        error, *others = ((one.cpu().double() - right).norm() / right.norm() for one in (my, their, other))
        assert error <= 2 * max(others) + torch.finfo(dtype).eps / 4, name


@pytest.mark.parametrize("plan", ["direct", "folded"])
def test_obeys_torchs_switch_for_tf32(plan):
    case, w, b, _ = layer("tokens", Pool(5, 5), (8, 100), 1000, 128, 32, 7)
    value = case.expected(w, b)
    errors = {}
    for allowed in (False, True):
        torch.backends.cudnn.allow_tf32 = allowed
        errors[allowed] = (case.forward(w, b, plan)[0].cpu().double() - value).norm() / value.norm()
    assert errors[False] < 1e-6 < 1e-5 < errors[True] < 1e-3


@pytest.mark.skipif(
    torch.cuda.is_available() and torch.cuda.get_device_properties(0).total_memory < 40 * 2**30,
    reason="the GPU has less than 40 GiB of memory",
)
@pytest.mark.parametrize("pool", [Pool(5, 5), None])
def test_tables_of_more_than_2_to_the_31_elements(pool):
    """The last rows come out as they do of a table of their own, and so does their gradient."""
    rows, few = 2**31 // 128 + 1000, 500
    case, w, b, upstream = layer("tokens", pool, (4, 200), few, 128, 32, 7, torch.bfloat16)
    table = torch.zeros(rows, 128, dtype=torch.bfloat16, device=CUDA)
    table[-few:] = case.table
    large = Case(case.index + rows - few, table, Convolution(), pool)
    out, argmax = case.forward(w, b, "direct")
    out_large, argmax_large = large.forward(w, b, "direct")
    assert torch.equal(out, out_large)
    assert torch.equal(argmax, argmax_large)
    for plan in ("direct", "folded"):
        gradients = case.backward(upstream, argmax, w, plan=plan)
        gradients_large = large.backward(upstream, argmax, w, plan=plan)
        assert torch.equal(gradients[0], gradients_large[0][-few:])
        if plan == "direct":  # the other's sums are over the rows of the table, of which there are more
            assert same(gradients[1:], gradients_large[1:])


@pytest.mark.parametrize("folded_dtype", [None, torch.bfloat16])
def test_tables_that_a_graph_computes_are_not_taken_for_each_other(folded_dtype):
    """The compiled graph gives one table's memory to the next, which no counter tells."""
    generator = torch.Generator(CUDA).manual_seed(0)
    table, w, m = (torch.randn(shape, generator=generator, device=CUDA) for shape in ((200, 32), (16, 32, 3), (32, 32)))
    tokens = torch.randint(200, (64, 50), generator=generator, device=CUDA)

    layer_of = functional.embedding_conv1d_relu_global_max_pool1d

    def call(tokens, table, w, m):
        results = []
        for _ in range(4):
            rows = table @ m if not results else table * results[-1].amax().clamp(max=9)
            results.append(layer_of(tokens, rows, w, folded_dtype=folded_dtype))
        return results

    with torch.no_grad():
        for mode in ("default", "reduce-overhead"):
            torch.compiler.reset()
            compiled = torch.compile(call, fullgraph=True, mode=mode)
            for _ in range(4):
                got = [one.clone() for one in compiled(tokens, table, w, m)]
            rows, expected = table.double() @ m.double(), []
            for _ in range(4):
                x = rows[tokens].transpose(1, 2)
                expected.append(torch.nn.functional.conv1d(x, w.double()).relu().amax(-1))
                rows = table.double() * expected[-1].amax().clamp(max=9)
            for one, other in zip(got, expected, strict=True):
                torch.testing.assert_close(one.double(), other, rtol=0.02, atol=0.02 * other.abs().max().item())
