"""Replayed calls: their launchers are given what Triton would have given them, and what is not alike goes Triton's way.

Without a GPU the driver is a fake one whose kernels note what they are given; Triton's own way to them is real.
"""

import collections
import importlib
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import seqconv
from seqconv.functional import folded, remembered
from seqconv.functional.autograd import FusedPasses
from seqconv.kernels.geometry import Convolution, Pool
from seqconv.kernels.norm import Norm
from seqconv.kernels.source import Dense, Tokens, Windows, options_of, tensors_of
from seqconv.kernels.triton import conv_norm_pool, conv_pool, device, launch, replay
from tests.kernels.triton.conftest import INTERPRETED

pytestmark = pytest.mark.skipif(INTERPRETED, reason="the interpreter launches nothing")

MODULES = [path.stem for path in Path(device.__file__).parent.glob("*.py") if path.stem != "__init__"]
POOL = Pool(3, 3)


@pytest.fixture
def launched(monkeypatch):
    """Return the list of what launchers are given, and a driver whose stream is ``launched.stream``."""
    from triton import knobs
    from triton.backends.compiler import GPUTarget
    from triton.compiler import CompiledKernel
    from triton.runtime import JITFunction, driver

    found = SimpleNamespace(calls=[], kept=[], compiled=0, looked_up=0, stream=7, hooks=knobs.runtime)

    class Compiled(CompiledKernel):
        run = None

        def __init__(self, kernel):
            found.compiled += 1
            self.name, self.module, self.function, self.packed_metadata = kernel.__name__, 1, found.compiled, (4, 1, 0)
            self.src, self.run = None, lambda *given: found.calls.append((kernel.__name__, given))

    def compile(self, key, signature, device, *_):
        return self.device_caches[device][0].setdefault(key, Compiled(self))

    run, empty_strided = JITFunction.run, replay._empty_strided["cpu"]

    def kept(*given):  # so that no address is used twice
        found.kept.append(empty_strided(*given))
        return found.kept[-1]

    def counted(*given, **named):
        found.looked_up += 1
        return run(*given, **named)

    fake = SimpleNamespace(
        get_current_device=lambda: 0,
        get_current_stream=lambda _: found.stream,
        get_current_target=lambda: GPUTarget("cuda", 90, 32),
    )
    monkeypatch.setattr(driver, "_active", fake)
    monkeypatch.setattr(JITFunction, "_do_compile", compile)
    monkeypatch.setattr(JITFunction, "run", counted)
    monkeypatch.setitem(replay._empty_strided, "cpu", kept)
    for name in MODULES:
        module = launch.device_code(name)
        for kernel in (getattr(module, one) for one in module.__all__ if one.endswith("_kernel")):
            monkeypatch.setattr(kernel, "device_caches", collections.defaultdict(kernel.create_binder))
    for name in ("forward", "backward", "phase_backward", "global_backward", "conv_norm_pool"):
        module = importlib.import_module(f"seqconv.kernels.triton.{name}")
        monkeypatch.setattr(module, "processors", lambda _: 132)
        if hasattr(module, "architecture"):
            monkeypatch.setattr(module, "architecture", lambda _: "sm_90")
    monkeypatch.setattr(replay, "serves", lambda _: True)
    replay.forget()
    yield found
    replay.forget()


def layer(rows="own", pool=POOL, dtype=torch.float32, bias=True, shift=0, channels=64, norm=False):
    """Return a layer's tensors, the first of them ``shift`` numbers behind a multiple of 16 bytes."""
    own = rows in ("own", "contiguous")
    shape = (4, 60, channels) if own else (50, channels)
    x = torch.zeros(shift + torch.Size(shape).numel(), dtype=dtype)[shift:].view(shape)
    source = Dense(x.view(4, channels, 60) if rows == "contiguous" else x.transpose(-1, -2))
    if rows == "windows":
        source = Windows(x, torch.tensor([0, 3, 9, 4]), 20, 2)
    elif not own:
        source = Tokens(torch.zeros(4, 20, dtype=torch.int64), x)
    w = torch.zeros(32, channels, 5, dtype=dtype)
    return SimpleNamespace(
        rows=rows, source=source, inputs=tensors_of(source)[:-1], w=w, b=torch.zeros(32, dtype=dtype) if bias else None,
        geometry=(Convolution(), pool), norm=Norm(None, None, *torch.zeros(2, 32)) if norm else None,
    )  # fmt: skip


def step(one):
    """Run both passes; return all that they return."""
    if one.norm is not None:
        given = one.source.values, one.w, one.b
        out, saved = conv_norm_pool.forward(*given, one.norm, *one.geometry, want_argmax=True)
        gradients = conv_norm_pool.backward(out, saved, *given, *one.geometry, wanted=(True,) * 5)
        one.made = [out, *saved, *gradients]
        return one.made
    own = one.rows in ("own", "contiguous")
    plan = {} if own else {"plan": "folded" if one.rows == "folded" else "direct"}
    out, argmax = conv_pool.forward(one.source, one.w, one.b, *one.geometry, want_argmax=True, **plan)
    wanted = (True, True, one.b is not None)
    one.made = [out, argmax, *conv_pool.backward(out, argmax, one.source, one.w, *one.geometry, wanted=wanted)]
    return one.made


def described(launched, one):
    """Return what launchers were given, with pointers as what they point to, and forget it."""
    tensors = [*one.inputs, one.w, *([] if one.b is None else [one.b]), *([] if one.norm is None else one.norm[2:4])]
    known = {tensor.data_ptr(): number for number, tensor in enumerate(tensors)}
    calls = []
    for name, given in launched.calls:
        plain = []
        for value in (*given[:6], *given[9:]):
            pointer = value.data_ptr() if isinstance(value, torch.Tensor) else value
            is_pointer = type(pointer) is int and pointer > 2**32  # no size is as large
            plain.append(("tensor", known.setdefault(pointer, len(known))) if is_pointer else (type(pointer), pointer))
        calls.append((name, plain))
    launched.calls.clear()
    launched.kept.clear()
    return calls


LAYERS = {
    "jena1": {"channels": 14},
    "packed weights": {},
    "contiguous": {"rows": "contiguous"},
    "bfloat16": {"dtype": torch.bfloat16},
    "no bias": {"bias": False},
    "other windows": {"pool": Pool(3, 2, 1)},
    "global": {"pool": None},
    "tokens": {"rows": "tokens"},
    "tokens, global": {"rows": "tokens", "pool": None},
    "folded": {"rows": "folded"},
    "folded, global": {"rows": "folded", "pool": None},
    "windows": {"rows": "windows"},
    "norm": {"norm": True},
    "norm, contiguous": {"norm": True, "rows": "contiguous", "dtype": torch.bfloat16},
    "norm, global": {"norm": True, "pool": None},
}


@pytest.mark.parametrize("kind", ["tf32", "ieee"])
@pytest.mark.parametrize("name", LAYERS)
def test_launchers_are_given_what_triton_gives_them(launched, name, kind):
    torch.backends.cudnn.allow_tf32 = kind == "tf32"
    first, second = layer(**LAYERS[name]), layer(**LAYERS[name])
    step(first)
    slow, slowly = described(launched, first), launched.looked_up
    step(second)
    assert launched.looked_up == slowly
    assert described(launched, second) == slow
    assert launched.calls == []
    for one, other in zip(first.made, second.made, strict=True):
        if one is None:
            assert other is None
        else:
            assert (one.shape, one.stride(), one.dtype) == (other.shape, other.stride(), other.dtype)
            assert one.data_ptr() != other.data_ptr()


@pytest.mark.parametrize(
    "other",
    [{"dtype": torch.bfloat16}, {"bias": False}, {"channels": 32}, {"pool": Pool(2, 2)}, {"pool": None}],
)
def test_another_layer_is_another_call(launched, other):
    step(layer())
    looked_up = launched.looked_up
    step(layer(**other))
    assert launched.looked_up > looked_up


def test_precision_makes_another_call(launched):
    one = layer()
    torch.backends.cudnn.allow_tf32 = True
    step(one)
    looked_up = launched.looked_up
    torch.backends.cudnn.allow_tf32 = False
    step(one)
    assert launched.looked_up > looked_up


def test_other_addresses_have_kernels_of_their_own(launched):
    first, second, third = layer(), layer(shift=1), layer(shift=1)
    step(first)
    launched.calls.clear()
    looked_up, compiled = launched.looked_up, launched.compiled
    step(second)  # the input is read by the forward pass and by the weights' gradient
    assert (launched.looked_up, launched.compiled) == (looked_up + 2, compiled + 2)
    slow = described(launched, second)
    step(third)
    assert launched.looked_up == looked_up + 2
    assert described(launched, third) == slow
    step(first)
    assert launched.looked_up == looked_up + 2


def test_the_stream_is_that_of_the_call(launched):
    one = layer()
    step(one)
    launched.calls.clear()
    launched.stream = 11
    step(one)
    assert launched.calls
    assert {given[3] for _, given in launched.calls} == {11}


@pytest.mark.parametrize("name", ["launch_enter_hook", "launch_exit_hook"])
def test_hooks_go_the_way_of_triton(launched, name):
    one = layer()
    step(one)
    looked_up, hook = launched.looked_up, getattr(launched.hooks, name)
    hook.add(print)
    try:
        step(one)
        assert launched.looked_up == looked_up + 5
    finally:
        hook.remove(print)
    step(one)
    assert launched.looked_up == looked_up + 5


def test_a_bias_of_any_stride_is_copied_each_time(launched):
    first, second = layer(), layer()
    for one in (first, second):
        one.b = torch.zeros(32, 3)[:, 0]
        step(one)
    half = len(launched.calls) // 2
    assert launched.looked_up == half
    biases = [given[11] for name, given in launched.calls if name == "forward_windows_kernel"]
    assert first.b.data_ptr() not in (biases[0].data_ptr(), biases[1])
    assert second.b.data_ptr() != biases[1]


def differentiated(one):
    """Run a layer's forward pass noted, return a function that runs both as a remembered call does."""
    conv_pool.forward(one.source, one.w, one.b, *one.geometry, want_argmax=True)
    tape = conv_pool.forward.tape_of(one.source, one.w, one.b, *one.geometry, want_argmax=True)
    passes = FusedPasses("triton", type(one.source), options_of(one.source), *one.geometry, tape)
    leaves = [tensor.requires_grad_() for tensor in (one.source.values, one.w, one.b)]

    def call():
        out = passes.apply(passes, *tensors_of(one.source), one.w, one.b)
        return torch.autograd.grad(out, leaves, out.detach())

    return call


PASSES = [
    name for name in LAYERS if name not in ("no bias", "folded", "folded, global") and not name.startswith("norm")
]


@pytest.mark.parametrize("name", PASSES)
def test_remembered_calls_launch_what_the_kernels_do(launched, name):
    one = layer(**LAYERS[name])
    call = differentiated(one)
    launched.calls.clear()
    step(one)
    expected, looked_up = described(launched, one), launched.looked_up
    for _ in range(3):
        call()
        assert described(launched, one) == expected
    assert launched.looked_up == looked_up


def test_what_was_saved_may_come_back_in_another_layout(launched):
    """As from ``save_on_cpu``, or where weights are given other memory through ``.data``: another call."""
    call = differentiated(layer())
    for _ in range(2):
        call()
    looked_up = launched.looked_up
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor, torch.Tensor.contiguous):
        call()
    assert launched.looked_up > looked_up
    looked_up = launched.looked_up
    call()
    assert launched.looked_up == looked_up


def test_tokens_are_replayed_without_gradients_until_weights_are_frozen(launched, monkeypatch):
    one, asked = layer("tokens"), []
    find_or_fold = folded.find_or_fold
    monkeypatch.setattr(folded, "find_or_fold", lambda *given: asked.append(given) or find_or_fold(*given))
    given = (*tensors_of(one.source), one.w, one.b)
    expected = conv_pool.forward(one.source, one.w, one.b, *one.geometry, want_argmax=False)[0]
    remembered.remember(("a key", False), "triton", (one.source, one.w, one.b, *one.geometry), None)
    call, looked_up = remembered.find(("a key", False)), launched.looked_up
    assert call(*given).shape == expected.shape
    assert launched.looked_up == looked_up
    assert not asked
    with seqconv.frozen([one.source.values, one.w]):
        call(*given)
    assert len(asked) == 1


@pytest.mark.parametrize("name", ["launch_enter_hook", "launch_exit_hook"])
def test_remembered_calls_are_seen_by_hooks(launched, name):
    call, hook = differentiated(layer()), getattr(launched.hooks, name)
    call()
    looked_up = launched.looked_up
    hook.add(print)
    try:
        call()
    finally:
        hook.remove(print)
    assert launched.looked_up == looked_up + 5


@pytest.mark.parametrize("pool", [POOL, None])
def test_tensors_at_one_address_are_told_apart(launched, pool):
    """Or the call is not noted, where a view of one of them is launched."""
    apart, together = layer(pool=pool), layer(pool=pool)
    upstream, argmax, *_ = step(apart)
    source = Dense(torch.zeros(4 * 64 * 60).view(4, 60, 64).transpose(1, 2))
    at_one = source.values.as_strided(upstream.shape, upstream.stride())
    replay.forget()
    wanted = (True, True, True)
    for _ in range(2):
        conv_pool.backward(at_one, argmax, source, together.w, *together.geometry, wanted=wanted)
    launched.calls.clear()
    conv_pool.backward(upstream, argmax, apart.source, apart.w, *apart.geometry, wanted=wanted)
    given = launched.calls[0][1][9:12]
    addresses = [one.data_ptr() if isinstance(one, torch.Tensor) else one for one in given]
    assert addresses == [upstream.data_ptr(), argmax.data_ptr(), apart.inputs[0].data_ptr()]


def test_nothing_of_a_call_is_held(launched):
    from weakref import ref

    one = layer(rows="tokens")
    step(one)
    step(one)
    held = [ref(tensor) for tensor in (*one.inputs, one.w, one.b, *one.made)]
    launched.calls.clear()
    launched.kept.clear()
    del one
    assert [one() for one in held] == [None] * len(held)


def test_calls_without_elements_are_replayed_or_run(launched):
    for _ in range(3):
        one = layer()
        one.source = Dense(one.source.values[:0])
        out, argmax, dx, dw, db = step(one)
        assert (out.shape, argmax.shape, dx.shape) == ((0, 32, 18), (0, 18, 32), (0, 64, 60))
        assert not dw.any()
        assert not db.any()
    assert launched.calls == []


def test_an_error_leaves_nothing_behind(launched, monkeypatch):
    from triton.runtime import JITFunction

    one = layer()
    with monkeypatch.context() as broken:
        broken.setattr(JITFunction, "_do_compile", lambda *_: 1 // 0)
        with pytest.raises(ZeroDivisionError):
            step(one)
    step(one)
    looked_up = launched.looked_up
    step(one)
    assert launched.looked_up == looked_up


def test_threads_note_calls_of_their_own(launched, monkeypatch):
    layers = [layer(**given) for given in LAYERS.values()]
    with monkeypatch.context() as slow:
        slow.setattr(replay, "serves", lambda _: False)
        for one in layers:  # threads that find a kernel's caches missing make two of them: Triton keeps one
            step(one)
    threads = [threading.Thread(target=lambda one=one: [step(one) for _ in range(20)]) for one in layers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    launched.calls.clear()
    looked_up = launched.looked_up
    for one in layers:
        step(one)
        fast = described(launched, one)
        with monkeypatch.context() as slow:
            slow.setattr(replay, "serves", lambda _: False)
            step(one)
        assert described(launched, one) == fast
    assert launched.looked_up > looked_up


def test_remembers_only_so_many_calls(launched, monkeypatch):
    monkeypatch.setattr(replay, "MOST", 2)
    layers = [layer(channels=channels) for channels in (8, 16, 24, 32, 40)]
    for one in layers:
        step(one)
    looked_up = launched.looked_up
    step(layers[0])
    assert launched.looked_up > looked_up


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")
@pytest.mark.parametrize("name", LAYERS)
def test_replayed_calls_give_the_same_results(name, monkeypatch):
    def drawn(seed):
        generator, one = torch.Generator().manual_seed(seed), layer(**LAYERS[name])
        for tensor in (*one.inputs, one.w, one.b):
            if tensor is not None and tensor.is_floating_point():
                tensor.copy_(torch.randint(-3, 4, tensor.shape, generator=generator))
            elif tensor is not None:
                tensor.copy_(torch.randint(0, 10, tensor.shape, generator=generator))
        one.source = type(one.source)(*(tensor.cuda() for tensor in one.inputs), *options_of(one.source))
        one.inputs = tensors_of(one.source)[:-1]
        one.w, one.b = one.w.cuda(), None if one.b is None else one.b.cuda()
        return one

    replay.forget()
    step(drawn(0))
    for seed in (1, 2):
        found = step(drawn(seed))
        with torch.cuda.stream(torch.cuda.Stream()):
            elsewhere = step(drawn(seed))
        one, graph = drawn(seed), torch.cuda.CUDAGraph()
        torch.cuda.synchronize()
        with torch.cuda.graph(graph):
            captured = step(one)
        graph.replay()
        torch.cuda.synchronize()
        with monkeypatch.context() as slow:
            slow.setattr(replay, "serves", lambda _: False)
            expected = step(drawn(seed))
        for others in (found, elsewhere, captured):
            for other, mine in zip(expected, others, strict=True):
                assert (other is None and mine is None) or torch.equal(other, mine)
