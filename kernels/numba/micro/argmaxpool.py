"""Maximum pooling of a convolution's positions, from the scratch where they lie as rows of vectors: ReLU, winners.

A window's maximum and winner are found without a look at NaN, but for the sum of its values, which is NaN if one of
them is (or if infinities of both signs meet): such a chunk is pooled again by the rules for NaN, which cost twice.
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
    lanes,
    load,
    load_codes,
    select,
    store,
    store_codes,
    store_first,
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
    code: int,
    zero: Any,
) -> None:
    """Pool the windows from ``windows[0]`` to before ``windows[1]`` of one sample and one vector of outputs.

    ``rows`` has position ``first``, each next one ``step`` bytes on; there are ``positions`` in all. ``pool`` is size,
    stride, padding and dilation. A window's first ``outputs`` maxima go to ``target``, each window ``target_step``
    bytes on, its winners, if ``argmax`` is not 0, to ``argmax`` as integers of ``code`` bytes.
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
            argmax + (q - begin) * argmax_step if argmax else 0, code, zero,
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
            store_winners(select(alive, at, nowhere), goal, code)
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
            argmax + (q - begin) * argmax_step if argmax else 0, code, zero,
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
    code: int,
    zero: Any,
) -> None:
    """Write 0 to the windows from ``first`` to before ``end``, which have no winner; see :func:`pool_windows`.

    ``target`` and ``argmax`` are where window ``begin``'s maxima and winners go.
    """
    for q in range(first - begin, end - begin):
        store_part(broadcast(zero, zero), target + q * target_step, outputs, zero)
        if argmax:
            store_winners(broadcast(np.int32(-1), zero), argmax + q * argmax_step, code)


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
    code: int,
    zero: Any,
) -> None:
    """Pool window ``q``, which may see padding and NaN: of several the last one wins, as in torch."""
    size, stride, padding, dilation = pool
    start = q * stride - padding
    skipped = max(-start + dilation - 1, 0) // dilation
    inside = min((positions - start + dilation - 1) // dilation, size)
    best, at = broadcast(-np.inf, zero), broadcast(np.int32(-1), zero)
    for p in range(skipped, inside):
        value = load(rows + (start + p * dilation - first) * step, zero)
        wins = either(greater(value, best), is_nan(value))
        best = select(wins, value, best)
        at = select(wins, broadcast(np.int32(p), zero), at)
    if inside > skipped:
        alive = either(greater(best, broadcast(zero, zero)), is_nan(best))
        best = select(alive, best, broadcast(zero, zero))
        at = select(alive, at, broadcast(np.int32(-1), zero))
    store_part(best, target, outputs, zero)
    if argmax:
        store_winners(at, argmax, code)


@njit
def pool_whole(rows: int, step: int, first: int, count: int, maxima: int, winners: int, zero: Any) -> None:
    """Take ``count`` positions from ``first`` on into one vector's ``maxima`` and their int32 ``winners``.

    Of several NaN the first one stays, as in torch.
    """
    best, at = load(maxima, zero), load_codes(winners, zero)
    total = best
    for i in range(count):
        value = load(rows + i * step, zero)
        at = select(greater(value, best), broadcast(np.int32(first + i), zero), at)
        best = select(greater(best, value), best, value)
        total = add(total, value)
    if any_of(is_nan(total)):
        best, at = load(maxima, zero), load_codes(winners, zero)
        for i in range(count):
            value = load(rows + i * step, zero)
            best, at = later(best, at, value, broadcast(np.int32(first + i), zero))
    store(best, maxima)
    store_codes(at, winners, np.int32(0))


@njit(inline="always")
def later(best: Any, at: Any, value: Any, place: Any) -> Any:
    """Return the maximum and its winner of a value after all others: an earlier NaN or equal stays."""
    wins = select(is_nan(best), greater(best, best), either(greater(value, best), is_nan(value)))
    return select(wins, value, best), select(wins, place, at)


@njit
def finish_whole(
    maxima: int, winners: int, pieces: int, step: int, target: int, outputs: int, argmax: int, code: int, zero: Any
) -> None:
    """Write one vector's maximum of so many ``pieces`` of a sample, in their order, each ``step`` numbers on."""
    best, at = load(maxima, zero), load_codes(winners, zero)
    for i in range(1, pieces):
        value = load(maxima + i * step * bytes_of(zero), zero)
        best, at = later(best, at, value, load_codes(winners + i * step * 4, zero))
    alive = either(greater(best, broadcast(zero, zero)), is_nan(best))
    store_part(select(alive, best, broadcast(zero, zero)), target, outputs, zero)
    if argmax:
        store_winners(select(alive, at, broadcast(np.int32(-1), zero)), argmax, code)


@njit(inline="always")
def store_part(vector: Any, address: int, count: int, zero: Any) -> None:
    """Write the first ``count`` numbers of a vector."""
    if count == lanes(zero):
        store(vector, address)
    else:
        store_first(vector, address, count)


@njit(inline="always")
def store_winners(at: Any, address: int, size: int) -> None:
    """Write winners as integers of ``size`` bytes."""
    if size == 1:
        store_codes(at, address, np.int8(0))
    elif size == 2:
        store_codes(at, address, np.int16(0))
    else:
        store_codes(at, address, np.int32(0))
