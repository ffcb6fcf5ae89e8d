"""``seqconv.warmup``: compile the CPU kernels before somebody waits for them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from functools import partial

import torch

from seqconv import functional

__all__ = ["warmup"]

DTYPES = (torch.float32, torch.float64)

# The kernels are compiled per dtype and per width of the integers that number a window's positions: up to 128
# positions there are 8 bits, then 16. Pools of more than 128 positions are rare and left to their first call.
LENGTHS = {"up to 128 positions": 40, "more": 200}


def warmup(
    *dtypes: torch.dtype, gradients: bool = True, report: Callable[[str, float], None] | None = None
) -> dict[str, float]:
    """Make ready what the first calls on the CPU need, and return the seconds that each part took.

    The compiled kernels are kept on disk, where a folder can be written: the first time on a machine takes some ten
    seconds a dtype, afterwards a fresh process loads them in tenths of a second. ``dtypes`` are ``torch.float32`` (the
    default) and ``torch.float64``; ``gradients=False`` leaves out what only training needs. ``report(part, seconds)``
    is called after each part.

    Raises ``TypeError`` for a dtype that no CPU kernel takes, :class:`~seqconv.BackendError` where Numba is missing.
    """
    for dtype in dtypes:
        if dtype not in DTYPES:
            raise TypeError(f"dtypes must be torch.float32 or torch.float64, got {dtype!r}")
    seconds: dict[str, float] = {}
    for part, work in _parts(dtypes or DTYPES[:1], gradients):
        begin = time.perf_counter()
        work()
        seconds[part] = time.perf_counter() - begin
        if report is not None:
            report(part, seconds[part])
    return seconds


def _parts(dtypes: Iterable[torch.dtype], gradients: bool) -> Iterable[tuple[str, Callable[[], None]]]:
    for dtype in dtypes:
        name = str(dtype).removeprefix("torch.")
        yield f"max pool, {name}", partial(_step, dtype, 12, 2, gradients)
        for lengths, length in LENGTHS.items():
            yield f"global max pool, {name}, {lengths}", partial(_step, dtype, length, None, gradients)
    yield "windows", _gather


def _step(dtype: torch.dtype, length: int, pool_size: int | None, gradients: bool) -> None:
    with torch.inference_mode(False), torch.set_grad_enabled(gradients):
        input = torch.zeros(1, 2, length, dtype=dtype, requires_grad=gradients)
        weight = torch.zeros(3, 2, 2, dtype=dtype, requires_grad=gradients)
        if pool_size is None:
            output = functional.conv1d_relu_global_max_pool1d(input, weight, backend="numba")
        else:
            output = functional.conv1d_relu_max_pool1d(input, weight, pool_size=pool_size, backend="numba")
        if gradients:
            torch.autograd.grad(output.sum(), (input, weight))


def _gather() -> None:
    import numpy as np

    from seqconv.data import SlidingWindows

    series = np.zeros((40, 3), np.float32)
    for step, columns in ((1, 3), (2, 3), (2, 2)):
        next(iter(SlidingWindows(series[:, :columns], lookback=8, delay=1, step=step, batch_size=2)))
