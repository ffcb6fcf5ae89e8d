"""Maximum pooling with ReLU and argmax of a convolution's positions, from a scratch where they are rows of vectors.

A window's maximum and argmax are first found without regard to NaN. The sum of the window's values is computed beside
them: it is NaN if a value is (or if infinities of both signs meet). Such a chunk is pooled again by the rules for NaN,
which cost twice as much.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from .simd import (
    add,
    any_of,
    broadcast,
    bytes_of,
    either,
    greater,
    is_nan,
    load,
    load_integers,
    select,
    store,
    store_integers,
    store_part,
)

__all__ = ["clear_windows", "finish_whole", "pool_whole", "pool_windows"]


@njit
def pool_windows(
    rows: int,
    step: int,
    first: int,
    positions: int,
    windows: Any,
    pool: Any,
    target: int,
    target_step: int,
    outputs: int,
    argmax: int,
    argmax_step: int,
    argmax_itemsize: int,
    zero: Any,
) -> None:
    """Pool the windows from ``windows[0]`` to before ``windows[1]`` of one sample and one vector of outputs.

    ``rows`` holds the positions from ``first`` on, ``step`` bytes apart; the sample has ``positions`` in all. ``pool``
    is size, stride, padding and dilation. The first ``outputs`` maxima of a window go to ``target``, windows
    ``target_step`` bytes apart. Unless ``argmax`` is 0, their argmax goes there, as integers of
    ``argmax_itemsize`` bytes, windows ``argmax_step`` bytes apart.
    """
    size, stride, padding, dilation = pool
    begin, end = windows
    span = dilation * (size - 1) + 1
    # Windows between these two see no padding.
    low = min(max(begin, (padding + stride - 1) // stride), end)
    high = max(low, min(end, (positions + padding - span) // stride + 1)) if positions + padding >= span else low
    for q in range(begin, low):
        pool_window(
            rows, step, first, positions, q, pool, target + (q - begin) * target_step, outputs,
            argmax + (q - begin) * argmax_step if argmax else 0, argmax_itemsize, zero,
        )  # fmt: skip
    place, goal = target + (low - begin) * target_step, argmax + (low - begin) * argmax_step
    hop, jump = dilation * step, stride * step
    row = rows + (low * stride - padding - first) * step
    nothing, nowhere = broadcast(zero, zero), broadcast(np.int32(-1), zero)
    odd = greater(nothing, nothing)
    if argmax:
        for _ in range(low, high):
            best = load(row, zero)
            total, at = best, broadcast(np.int32(0), zero)
            for p in range(1, size):
                value = load(row + p * hop, zero)
                at = select(greater(value, best), broadcast(np.int32(p), zero), at)
                best = select(greater(best, value), best, value)
                total = add(total, value)
            odd = either(odd, is_nan(total))
            alive = greater(best, nothing)
            store_part(select(alive, best, nothing), place, outputs, zero)
            store_argmax(select(alive, at, nowhere), goal, argmax_itemsize)
            row, place, goal = row + jump, place + target_step, goal + argmax_step
    else:
        for _ in range(low, high):
            best = load(row, zero)
            total = best
            for p in range(1, size):
                value = load(row + p * hop, zero)
                best = select(greater(best, value), best, value)
                total = add(total, value)
            odd = either(odd, is_nan(total))
            store_part(select(greater(best, nothing), best, nothing), place, outputs, zero)
            row, place = row + jump, place + target_step
    for q in range(low if any_of(odd) else high, end):
        pool_window(
            rows, step, first, positions, q, pool, target + (q - begin) * target_step, outputs,
            argmax + (q - begin) * argmax_step if argmax else 0, argmax_itemsize, zero,
        )  # fmt: skip


@njit(inline="always")
def clear_windows(
    begin: int,
    first: int,
    end: int,
    target: int,
    target_step: int,
    outputs: int,
    argmax: int,
    argmax_step: int,
    argmax_itemsize: int,
    zero: Any,
) -> None:
    """Write 0 to the windows from ``first`` to before ``end``, whose argmax is -1; see :func:`pool_windows`.

    ``target`` and ``argmax`` are where window ``begin``'s maxima and argmax go.
    """
    for q in range(first - begin, end - begin):
        store_part(broadcast(zero, zero), target + q * target_step, outputs, zero)
        if argmax:
            store_argmax(broadcast(np.int32(-1), zero), argmax + q * argmax_step, argmax_itemsize)


@njit
def pool_window(
    rows: int,
    step: int,
    first: int,
    positions: int,
    q: int,
    pool: Any,
    target: int,
    outputs: int,
    argmax: int,
    argmax_itemsize: int,
    zero: Any,
) -> None:
    """Pool window ``q``, which may see padding and NaN. Of several NaN the last one is the maximum, as in torch."""
    size, stride, padding, dilation = pool
    start = q * stride - padding
    skipped = max(-start + dilation - 1, 0) // dilation
    inside = min((positions - start + dilation - 1) // dilation, size)
    best, at = broadcast(-np.inf, zero), broadcast(np.int32(-1), zero)
    for p in range(skipped, inside):
        value = load(rows + (start + p * dilation - first) * step, zero)
        replaces = either(greater(value, best), is_nan(value))
        best = select(replaces, value, best)
        at = select(replaces, broadcast(np.int32(p), zero), at)
    if inside > skipped:
        alive = either(greater(best, broadcast(zero, zero)), is_nan(best))
        best = select(alive, best, broadcast(zero, zero))
        at = select(alive, at, broadcast(np.int32(-1), zero))
    store_part(best, target, outputs, zero)
    if argmax:
        store_argmax(at, argmax, argmax_itemsize)


@njit
def pool_whole(rows: int, step: int, first: int, count: int, maxima: int, running_argmax: int, zero: Any) -> None:
    """Update one vector's ``maxima``, and their int32 ``running_argmax``, with ``count`` positions from ``first`` on.

    Of several NaN the first one stays, as in torch.
    """
    best, at = load(maxima, zero), load_integers(running_argmax, zero)
    total = best
    for i in range(count):
        value = load(rows + i * step, zero)
        at = select(greater(value, best), broadcast(np.int32(first + i), zero), at)
        best = select(greater(best, value), best, value)
        total = add(total, value)
    if any_of(is_nan(total)):
        best, at = load(maxima, zero), load_integers(running_argmax, zero)
        for i in range(count):
            value = load(rows + i * step, zero)
            best, at = later(best, at, value, broadcast(np.int32(first + i), zero))
    store(best, maxima)
    store_integers(at, running_argmax, np.int32(0))


@njit(inline="always")
def later(best: Any, at: Any, value: Any, place: Any) -> Any:
    """Return maximum and argmax after one more value, the last so far: an earlier NaN or equal value stays."""
    replaces = select(is_nan(best), greater(best, best), either(greater(value, best), is_nan(value)))
    return select(replaces, value, best), select(replaces, place, at)


@njit
def finish_whole(
    maxima: int,
    running_argmax: int,
    pieces: int,
    step: int,
    target: int,
    outputs: int,
    argmax: int,
    argmax_itemsize: int,
    zero: Any,
) -> None:
    """Write one vector's maxima over the ``pieces`` of a sample, in their order, ``step`` numbers apart."""
    best, at = load(maxima, zero), load_integers(running_argmax, zero)
    for i in range(1, pieces):
        value = load(maxima + i * step * bytes_of(zero), zero)
        best, at = later(best, at, value, load_integers(running_argmax + i * step * 4, zero))
    alive = either(greater(best, broadcast(zero, zero)), is_nan(best))
    store_part(select(alive, best, broadcast(zero, zero)), target, outputs, zero)
    if argmax:
        store_argmax(select(alive, at, broadcast(np.int32(-1), zero)), argmax, argmax_itemsize)


@njit(inline="always")
def store_argmax(at: Any, address: int, size: int) -> None:
    """Write argmax as integers of ``size`` bytes."""
    if size == 1:
        store_integers(at, address, np.int8(0))
    elif size == 2:
        store_integers(at, address, np.int16(0))
    else:
        store_integers(at, address, np.int32(0))
