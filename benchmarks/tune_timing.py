"""The timing of one kernel with one tile: through the floor's own functions, at several sizes, from a cold L2 cache."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from benchmarks.timing import median_seconds
from benchmarks.tune_tiles import TuningEntry, using
from seqconv.kernels.source import Dense
from seqconv.kernels.triton import census, conv_pool

# Samples and positions of the convolution: small, middling and large.
SIZES = ((128, 480), (1024, 240), (4096, 120))
NUMBERS = 2**28  # of the input and of the positions x outputs: fewer samples where there would be more
CALLS, BEFORE = 12, 2  # timed, and before them
TOLERANCE = {"16": 2e-2, "tf32": 2e-3, "ieee": 1e-5}  # relative difference of two right tiles' results

Pass = Callable[[], tuple[Tensor, ...]]


def measure(one: TuningEntry, first: Any) -> tuple[str | None, dict[str, float]]:
    """Return what is wrong with the results of the tile in use, or ``None``, and its microseconds by size.

    They are compared with the results of the tile ``first``.
    """
    found: dict[str, float] = {}
    for samples, positions in SIZES:
        call = problem(one.layer, one.kind, one.key.kernel, samples, positions)
        results = call()
        with using(one.key, first):
            expected = call()
        if wrong := difference(results, expected, TOLERANCE[one.kind]):
            return f"at {samples} x {positions}: {wrong}", {}
        found[f"{samples}x{positions}"] = 1e6 * median_seconds(call, "cuda", calls=CALLS, before=BEFORE)
    return None, found


@lru_cache(maxsize=2 * len(SIZES))
def problem(name: str, kind: str, kernel: str, samples: int, positions: int, device: str = "cuda") -> Pass:
    """Return a pass over one kernel of a layer, on numbers of its own."""
    layer = census.LAYERS[name]
    torch.backends.cudnn.allow_tf32 = kind == "tf32"
    dtype = census.KINDS[kind]
    length = positions - 1 + layer.convolution.dilation * (layer.size - 1) + 1 - sum(layer.convolution.padding)
    samples = max(min(samples, NUMBERS // max(layer.channels * length, layer.outputs * positions)), 1)
    generator = torch.Generator(device).manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=device).to(dtype)

    x = normal(samples, length, layer.channels).transpose(1, 2)
    w = normal(layer.outputs, layer.channels, layer.size) / (layer.channels * layer.size) ** 0.5
    b = normal(layer.outputs)
    source, geometry = Dense(x), (layer.convolution, layer.pool)

    def pooled() -> tuple[Tensor, ...]:
        torch.backends.cudnn.allow_tf32 = kind == "tf32"
        return (conv_pool.forward(source, w, b, *geometry, want_argmax=True)[0],)

    if kernel == "forward":
        return pooled
    out, argmax = conv_pool.forward(source, w, b, *geometry, want_argmax=True)
    upstream = torch.randn(out.shape, generator=generator, device=device).to(dtype)
    upstream = torch.empty_like(out).copy_(upstream)
    wanted = (True, False, False) if kernel == "input_gradient" else (False, True, True)

    def gradients() -> tuple[Tensor, ...]:
        torch.backends.cudnn.allow_tf32 = kind == "tf32"
        found = conv_pool.backward(upstream, argmax, source, w, *geometry, wanted=wanted)
        return tuple(one for one in found if one is not None)

    return gradients


def difference(results: tuple[Tensor, ...], expected: tuple[Tensor, ...], tolerance: float) -> str | None:
    """Return by how much results differ, if that is more than roundings do."""
    for one, other in zip(results, expected, strict=True):
        error = ((one.float() - other.float()).norm() / other.float().norm().clamp_min(1e-30)).item()
        if not error <= tolerance:
            return f"results differ by {error:.3g}, at most {tolerance:g}"
    return None


def is_lost() -> bool:
    """Return whether the GPU no longer answers this process."""
    try:
        torch.cuda.synchronize()
        return False
    except Exception:
        return torch.cuda.is_available()
