"""Maxima of overlapping windows, from an activation in memory: positions are convolved once, not for each window.

:func:`~seqconv.kernels.plans.pools_apart` tells where that pays. Windows of many elements take several passes, so that
their cost is logarithmic: the first ones find, for every position, the maximum of a part of a window that begins there.
Of overlapping parts the later one's maximum counts only where it is greater, so that the first of equal values stays.
"""

from __future__ import annotations

from torch import Tensor

from ..geometry import Pool
from ..plans import passes_of
from .configurations import power_of_two
from .groups import windows_alone
from .launch import device_code
from .replay import empty, launch

__all__ = ["POSITIONS", "launch_pool"]

POSITIONS = Pool(1, 1)  # what is pooled apart
BLOCK, OUTPUTS = 2048, 64  # numbers of a tile, and its outputs, at most; 16 numbers a thread (not timed)


def launch_pool(activation: Tensor, out: Tensor, argmax: Tensor | None, pool: Pool, *, last: bool) -> None:
    """Write the maxima ``(N, O, Q)`` of an activation ``(N, O, positions)``, and ``argmax`` unless it is ``None``.

    The activation is channels-last, and ``out`` if it is ``last``.
    """
    samples, outputs, positions = activation.shape
    passes = passes_of(pool.size)
    root = next(number for number in range(1, pool.size + 1) if number**passes >= pool.size)
    values, numbers, each, padding = activation, None, 1, pool.padding
    for done in range(1, passes):  # maxima of windows at every position, those of the padding in front, too
        size, windows = root**done, positions + padding
        found = empty(activation, (samples, windows, outputs))
        found_numbers = None if argmax is None else empty(argmax, (samples, windows, outputs))
        part = Pool(size, 1, padding, pool.dilation)
        _launch(values, numbers, found, found_numbers, (samples, windows, positions, outputs), part, each, last=True)
        values, numbers, each, positions, padding = found, found_numbers, size, windows, 0
    whole = windows_alone(pool)._replace(padding=padding)
    _launch(values, numbers, out, argmax, (samples, out.size(2), positions, outputs), whole, each, last=last)


def _launch(
    values: Tensor,
    numbers: Tensor | None,
    out: Tensor,
    argmax: Tensor | None,
    sizes: tuple[int, int, int, int],
    pool: Pool,
    each: int,
    *,
    last: bool,
) -> None:
    samples, windows, positions, outputs = sizes
    block_o = min(power_of_two(outputs), OUTPUTS)
    block_m = BLOCK // block_o
    launch(
        device_code("pooling").pool_activation_kernel, (-(-samples * windows // block_m) * -(-outputs // block_o),),
        values, numbers, out, argmax, samples * windows, windows, positions,
        O=outputs, POOL=pool, EACH=each, OUT_LAST=last, BLOCK_M=block_m, BLOCK_O=block_o, num_warps=4,
    )  # fmt: skip
