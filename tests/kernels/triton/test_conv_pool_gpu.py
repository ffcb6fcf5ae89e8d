"""What only a GPU can show of the kernels: devices, streams, graphs, compilations, TF32, more than 2**31 elements."""

import pytest
import torch

from seqconv.kernels.geometry import Convolution, Pool
from seqconv.kernels.reference import conv_pool as reference
from seqconv.kernels.source import Dense
from seqconv.kernels.triton import launch
from tests.kernels.triton.gather_cases import tf32

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU"),
]

PLAIN = Convolution()
CUDA = torch.device("cuda")
POOLS = [Pool(3, 3), Pool(5, 2, 2), None]


def tensors(shape=(9, 20, 77), outputs=40, size=5, device=CUDA, dtype=torch.float32, seed=0):
    """Return a channels-last input, weights and a bias."""
    generator = torch.Generator(device).manual_seed(seed)

    def normal(*shape):
        return torch.randn(shape, generator=generator, device=device).to(dtype)

    samples, channels, length = shape
    x = normal(samples, length, channels).transpose(1, 2)
    return x, normal(outputs, channels, size) / (channels * size) ** 0.5, normal(outputs)


def upstream_of(floor, x, w, b, pool):
    out, _ = floor.forward(x, w, b, PLAIN, pool)
    return torch.randn(out.shape, generator=torch.Generator(out.device).manual_seed(3), device=out.device).to(out.dtype)


def same(results, others):
    return all(map(torch.equal, results, others))


@pytest.mark.parametrize("pool", POOLS)
def test_waits_for_nothing(floor, pool):
    """No call makes the host wait for the device."""
    x, w, b = tensors()
    upstream = upstream_of(floor, x, w, b, pool)
    floor.step(x, w, b, PLAIN, pool, upstream)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        floor.step(x, w, b, PLAIN, pool, upstream)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("pool", POOLS)
def test_runs_on_the_current_stream(floor, pool):
    """The inputs are ready only late on a side stream: kernels on another one would read what was there before."""
    x, w, b = tensors()
    upstream = upstream_of(floor, x, w, b, pool)
    expected = floor.step(x, w, b, PLAIN, pool, upstream)
    late = torch.zeros_like(x)
    assert late.stride() == x.stride()
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        late.copy_(x)
        results = floor.step(late, w, b, PLAIN, pool, upstream)
    stream.synchronize()
    assert same(results, expected)


@pytest.mark.parametrize("pool", POOLS)
def test_a_captured_graph_replays_on_new_numbers(floor, pool):
    x, w, b = tensors()
    upstream = upstream_of(floor, x, w, b, pool)
    floor.step(x, w, b, PLAIN, pool, upstream)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = floor.step(x, w, b, PLAIN, pool, upstream)
    for seed in (5, 6):
        for one, new in zip((x, w, b), tensors(seed=seed), strict=True):
            one.copy_(new)
        graph.replay()
        torch.cuda.synchronize()
        assert same([one.clone() for one in results], floor.step(x, w, b, PLAIN, pool, upstream))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="torch sees one GPU")
@pytest.mark.parametrize("pool", POOLS)
def test_runs_on_the_tensors_device_whatever_the_current_one_is(floor, pool):
    x, w, b = tensors()
    upstream = upstream_of(floor, x, w, b, pool)
    expected = floor.step(x, w, b, PLAIN, pool, upstream)
    other = torch.device("cuda", 1)
    results = floor.step(*(one.to(other) for one in (x, w, b)), PLAIN, pool, upstream.to(other))
    assert torch.cuda.current_device() == 0
    assert all(one.device == other for one in results)
    assert same([one.to(CUDA) for one in results], expected)


def compilations():
    """Return how many kernels were compiled in this process."""
    kernels = [
        getattr(module, name)
        for module in map(launch.device_code, ("conv_pool", "conv_pool_backward", "weights"))
        for name in module.__all__
        if name.endswith("_kernel")
    ]
    return sum(len(caches[0]) for kernel in kernels for caches in kernel.device_caches.values())


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("channels_last", [False, True])
def test_a_second_batch_size_or_length_compiles_nothing(floor, pool, channels_last):
    def step(samples, length):
        x, w, b = tensors((samples, 23, length), outputs=19 + channels_last)  # else the kernels are there already
        x = x if channels_last else x.contiguous()
        floor.step(x, w, b, PLAIN, pool, upstream_of(floor, x, w, b, pool))

    before = compilations()
    step(4, 90)
    first = compilations()
    assert first > before
    for samples, length in ((1, 90), (16, 90), (4, 97), (4, 128), (3, 1000), (64, 16)):
        step(samples, length)
    assert compilations() == first


@pytest.mark.parametrize(("shape", "outputs", "size", "pool"), [
    ((8, 128, 500), 32, 7, Pool(5, 5)), ((8, 14, 240), 32, 5, Pool(3, 3)), ((8, 32, 94), 32, 7, None),
    ((4, 512, 64), 512, 3, Pool(2, 2)), ((4, 320, 100), 480, 8, Pool(4, 4)), ((4, 1024, 40), 64, 3, Pool(4, 4)),
    ((4, 64, 120), 1024, 31, Pool(5, 5)),
])  # fmt: skip
@pytest.mark.parametrize("kind", ["tf32", "ieee", "16"])
@pytest.mark.parametrize("channels_last", [False, True])
def test_is_as_precise_as_torch_in_the_same_precision(floor, shape, outputs, size, pool, kind, channels_last):
    """Of the result and all gradients; upstream gradients go to windows whose argmax is clear in every precision."""
    torch.backends.cudnn.allow_tf32 = kind == "tf32"
    x, w, b = tensors(shape, outputs, size, dtype=torch.bfloat16 if kind == "16" else torch.float32)
    x = x if channels_last else x.contiguous()
    active = torch.nn.functional.conv1d(*(one.double() for one in (x, w, b))).relu()
    if pool is not None:
        active = active[..., : active.size(2) // pool.size * pool.size].unflatten(2, (-1, pool.size))
    highest = active.topk(2, -1).values
    clear = highest[..., 0] - highest[..., 1] > (0.05 if kind == "16" else 0.01)
    upstream = upstream_of(floor, x, w, b, pool) * clear
    value, exact = floor.expected(x, w, b, PLAIN, pool, upstream)
    leaves = [one.detach().requires_grad_() for one in (x, w, b)]
    out = reference.compose(Dense(leaves[0]), *leaves[1:], PLAIN, pool)
    theirs = (out.detach(), *torch.autograd.grad(out, leaves, upstream))
    allowed = theirs
    if kind == "tf32":  # for some shapes torch's convolution is exact: what TF32 costs is told from its definition
        rounded, gradients = floor.expected(tf32(x), tf32(w), b, PLAIN, pool, tf32(upstream))
        allowed = (rounded, *gradients[:2], theirs[3])
    mine = floor.step(x, w, b, PLAIN, pool, upstream)
    names = ("out", "dx", "dw", "db")
    for name, my, their, other, right in zip(names, mine, theirs, allowed, (value, *exact), strict=True):
        error, *others = ((one.cpu().double() - right).norm() / right.norm() for one in (my, their, other))
        assert error <= 2 * max(others) + torch.finfo(x.dtype).eps / 4, name


def test_obeys_torchs_switch_for_tf32(floor):
    x, w, b = tensors((8, 128, 100), 32, 7)
    value = floor.expected(x, w, b, PLAIN, Pool(5, 5))
    errors = {}
    for allowed in (False, True):
        torch.backends.cudnn.allow_tf32 = allowed
        out, _ = floor.forward(x, w, b, PLAIN, Pool(5, 5))
        errors[allowed] = (out.cpu().double() - value).norm() / value.norm()
    assert errors[False] < 1e-6 < 1e-5 < errors[True] < 1e-3


needs_memory = pytest.mark.skipif(
    torch.cuda.is_available() and torch.cuda.get_device_properties(0).total_memory < 40 * 2**30,
    reason="the GPU has less than 40 GiB of memory",
)


@needs_memory
@pytest.mark.parametrize("pool", [Pool(5, 5), None])
@pytest.mark.parametrize("channels_last", [False, True])
def test_more_than_2_to_the_31_elements_in_many_samples(floor, pool, channels_last):
    """The last samples come out as on their own."""
    samples = 2**31 // (128 * 500) + 100
    x = torch.randn(64, 500, 128, device=CUDA).bfloat16().repeat(samples // 64 + 1, 1, 1)[:samples]
    x = x.transpose(1, 2) if channels_last else x.transpose(1, 2).contiguous()
    assert x.numel() > 2**31
    _, w, b = tensors((1, 128, 9), 32, 7, dtype=torch.bfloat16)
    out, argmax = floor.forward(x, w, b, PLAIN, pool)
    few = x[-3:]
    out_few, argmax_few = floor.forward(few, w, b, PLAIN, pool)
    assert torch.equal(out[-3:], out_few)
    assert torch.equal(argmax[-3:], argmax_few)
    upstream = torch.ones_like(out)
    dx, _, db = floor.backward(upstream, argmax, x, w, PLAIN, pool, (True, False, True))
    dx_few, _, _ = floor.backward(upstream[-3:], argmax_few, few, w, PLAIN, pool, (True, False, False))
    assert torch.equal(dx[-3:], dx_few)
    assert torch.equal(db.float(), (argmax >= 0).sum((0, 1)).bfloat16().float())


@needs_memory
def test_more_than_2_to_the_31_elements_in_one_sample(floor):
    """Channels lie more than 2**31 numbers apart."""
    length = 2**29 + 1000
    row = torch.randn(1, 5, 2**20, device=CUDA).bfloat16()
    x = row.repeat(1, 1, length // 2**20 + 1)[..., :length].contiguous()
    assert x.stride(1) * 4 > 2**31
    _, w, b = tensors((1, 5, 9), 16, 3, dtype=torch.bfloat16)
    pool = Pool(4, 4)
    out, argmax = floor.forward(x, w, b, PLAIN, pool)
    tail = out.size(2) - 100
    part = x[..., tail * 4 :].contiguous()
    out_part, argmax_part = floor.forward(part, w, b, PLAIN, pool)
    assert torch.equal(out[..., tail:], out_part)
    assert torch.equal(argmax[:, tail:], argmax_part)
