"""What a call costs beside its kernel: checks, the choice of a backend, autograd; beside torch's own composition."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from benchmarks.operations.layers import max_pool
from benchmarks.registry import Case, Contender
from benchmarks.runner import quantity
from benchmarks.timing import collector_off
from seqconv import backends
from seqconv.functional.conv import conv1d_relu_max_pool1d
from seqconv.functional.floors import floor
from seqconv.kernels.geometry import Convolution, Pool
from seqconv.kernels.reference import conv_pool as reference
from seqconv.kernels.source import Dense

OPERATION = "conv1d_relu_max_pool1d"
CASE = Case(OPERATION, "tiny", {"N": 1, "C": 4, "L": 16, "O": 8, "K": 3, "P": 2}, "forward_backward")
MODES = ("no grad", "with grad", "with grad, and backward")
CALLS = 200  # in a block
ROUNDS, QUICK_ROUNDS = 25, 5

Thunk = Callable[[], Any]


def measure(candidate: Contender, quick: bool) -> Iterator[dict[str, Any]]:
    """Yield the quantities of what users call, and of the compiled kernels by their name."""
    for mode in MODES:
        for backend in ("auto", "numba"):
            place = ("dispatch", f"{candidate.case.name}, {mode}", f"seqconv {backend}")
            samples = microseconds(calls(backend, mode), mode, QUICK_ROUNDS if quick else ROUNDS)
            yield from (quantity(*place, name, "µs", one) for name, one in samples.items())


def calls(backend: str, mode: str, device: str = "cpu") -> dict[str, Thunk]:
    """Return what is timed in a mode: the functional ``call``, its ``kernel`` alone and ``torch eager``.

    On a GPU a call returns when its kernels are launched: what is timed is the host's part.
    With gradients the kernel alone keeps what its backward pass needs, and takes that too where it belongs to the mode.
    """
    training = mode != "no grad"
    torch.manual_seed(0)
    n, c, length, o, k, p = (CASE.shape[letter] for letter in "NCLOKP")
    tensors = [one.to(device) for one in (torch.randn(n, c, length), torch.randn(o, c, k), torch.randn(o))]
    leaves = [tensor.clone().requires_grad_(training) for tensor in tensors]
    geometry = Convolution(), Pool(p, p)
    source, *rest = Dense(leaves[0]), *leaves[1:], *geometry
    served = backends.explain_call(OPERATION, backend, (source, *rest)).backend
    gradient = torch.ones(n, o, (length - k + 1) // p, device=device)

    def differentiated(compute: Thunk) -> Thunk:
        if mode != MODES[2]:
            return compute
        return lambda: torch.autograd.grad(compute(), leaves, gradient)

    sides = {
        "call": differentiated(lambda: conv1d_relu_max_pool1d(*leaves, pool_size=p, backend=backend)),
        "torch eager": differentiated(lambda: max_pool(*leaves, p)),
    }
    if served == "reference":  # torch differentiates it: its kernel alone has no other backward pass than torch's
        return {**sides, "kernel": differentiated(lambda: reference.compose(source, *rest))}
    kernels, plain = floor(served), Dense(tensors[0])

    def kernel() -> Any:
        output, argmax = kernels.forward(plain, *tensors[1:], *geometry, want_argmax=training)
        if mode == MODES[2]:
            return kernels.backward(gradient, argmax, plain, tensors[1], *geometry, wanted=(True, True, True))
        return output

    return {**sides, "kernel": kernel}


def microseconds(sides: Mapping[str, Thunk], mode: str, rounds: int) -> dict[str, list[float]]:
    """Return the microseconds of a call of each side by blocks in which the sides take turns.

    ``dispatch`` is what the call takes longer than the kernel in the block beside it.
    """
    samples: dict[str, list[float]] = {name: [] for name in sides}
    with torch.set_grad_enabled(mode != "no grad"), collector_off():
        for timed in [False] + [True] * rounds:
            for name, call in sides.items():
                if torch.cuda.is_initialized():
                    torch.cuda.synchronize()  # else a queue that is full would hold the next side up
                start = time.perf_counter()
                for _ in range(CALLS):
                    call()
                if timed:
                    samples[name].append((time.perf_counter() - start) / CALLS * 1e6)
    pairs = zip(samples["call"], samples["kernel"], strict=True)
    return {"dispatch": [call - kernel for call, kernel in pairs], **samples}
