"""Maximum pooling with ReLU and argmax of a convolution's positions, from a scratch where they are rows of vectors.

A window's maximum and argmax are first found without regard to NaN. The sum of the window's values is computed beside
them: it is NaN if a value is (or if infinities of both signs meet). Such a chunk is pooled again by the rules for NaN,
which cost twice as much.

Where windows have many elements and overlap, they share running maxima (:func:`slide_windows`), which follow the rules
for NaN at once.
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
    exceeds,
    greater,
    greatest,
    is_nan,
    lanes,
    load,
    load_integers,
    positive,
    select,
    store,
    store_integers,
    store_part,
)

__all__ = ["clear_windows", "finish_whole", "pool_some", "pool_whole"]


@njit
def pool_some(
    rows: int,
    step: int,
    first: int,
    behind: int,
    positions: int,
    windows: Any,
    pool: Any,
    running: Any,
    target: int,
    target_step: int,
    outputs: int,
    argmax: int,
    argmax_step: int,
    argmax_itemsize: int,
    zero: Any,
) -> None:
    """Pool windows one by one, or by running maxima if ``running`` has addresses for these and their argmax.

    See :func:`pool_windows` and :func:`slide_windows`, whose arguments these are.
    """
    given, goal = (rows, step, first), (target, target_step, outputs)
    if not running[0]:
        pool_windows(*given, positions, windows, pool, *goal, argmax, argmax_step, argmax_itemsize, zero)
    elif argmax:
        slide_windows(
            *given, behind, positions, windows, pool, *running, *goal, argmax, argmax_step, argmax_itemsize, zero
        )
    else:
        slide_windows(
            *given, behind, positions, windows, pool, *running, *goal, None, argmax_step, argmax_itemsize, zero
        )


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
    dilation = pool[3]
    start, skipped, inside = elements_inside(q, pool, positions)
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


@njit(inline="always")
def elements_inside(q: int, pool: Any, positions: int) -> tuple[int, int, int]:
    """Return window ``q``'s first position, which may be padding, and the range of its elements that are no padding."""
    size, stride, padding, dilation = pool
    start = q * stride - padding
    skipped = max(-start + dilation - 1, 0) // dilation
    return start, skipped, min((positions - start + dilation - 1) // dilation, size)


@njit
def slide_windows(
    rows: int,
    step: int,
    first: int,
    behind: int,
    positions: int,
    windows: Any,
    pool: Any,
    maxima: int,
    argmaxima: int,
    target: int,
    target_step: int,
    outputs: int,
    argmax: Any,
    argmax_step: int,
    argmax_itemsize: int,
    zero: Any,
) -> None:
    """Pool windows as :func:`pool_windows` does, with three comparisons a position whatever the windows' size.

    ``rows`` holds the positions from ``first`` to before ``behind``, which must follow those of the call before; the
    first call of several begins where the first window does. ``windows`` are those that no earlier call could complete.
    ``argmax`` is ``None`` where it is not wanted.

    Positions one dilation apart are a sequence, cut into runs of as many elements as a window has. A window is the end
    of one run and the beginning of the next one. ``maxima`` has, for each element of a run and each sequence, the
    maximum from there to the run's end, which gives way to the next run's element as soon as no window needs it; and
    behind these, for each sequence, the maximum of the present run so far. ``argmaxima`` has the numbers of all these
    within their run, as int32.
    """
    size, stride, padding, dilation = pool
    begin, end = windows
    vector, numbers = lanes(zero) * bytes_of(zero), lanes(zero) * 4
    span = dilation * (size - 1) + 1
    nothing, nowhere = broadcast(zero, zero), broadcast(np.int32(-1), zero)
    # Elements are counted from the beginning of window 0.
    element = first + padding if first > 0 else 0
    stop = max(behind + padding, (end - 1) * stride + span if end > begin else 0)
    number, sequence = element // dilation % size, element % dilation
    # Of a single sequence, some elements of a run are taken together, and maxima stay in registers: 0.5 ms instead of
    # 1.2 for windows of 64 of 128 x 496 positions of 32 channels on a Zen 5. Of several, one element each.
    along = 1 if dilation == 1 else 0
    present = load(maxima + size * dilation * vector, zero)
    at_present = load_integers(argmaxima + size * dilation * numbers, zero) if argmax is not None else nowhere
    while element < stop:
        some = min(size - number if along else dilation - sequence, stop - element)
        for i in range(some):
            value, n = nothing, number + i * along
            if padding <= element + i < positions + padding:
                value = positive(load(rows + (element + i - padding - first) * step, zero))
            row, beside = number * dilation + sequence + i, size * dilation + (sequence + i) * (1 - along)
            n_lanes = broadcast(np.int32(n), zero)
            if n == 0:
                present, at_present = value, n_lanes
            else:
                if not along:
                    present = load(maxima + beside * vector, zero)
                if argmax is not None:
                    if not along:
                        at_present = load_integers(argmaxima + beside * numbers, zero)
                    at_present = select(exceeds(value, present), n_lanes, at_present)
                present = greatest(value, present)
            store(present, maxima + beside * vector)
            if argmax is not None:
                store_integers(at_present, argmaxima + beside * numbers, np.int32(0))
            q = element + i - span + 1
            if stride > 1:
                q = q // stride if q % stride == 0 else -1
            if begin <= q < end:
                best, at, near = present, at_present, row + dilation
                if n < size - 1:  # the window begins in the run before
                    best = load(maxima + near * vector, zero)
                    if argmax is not None:
                        before = add(load_integers(argmaxima + near * numbers, zero), broadcast(np.int32(-n - 1), zero))
                        at = add(at, broadcast(np.int32(size - 1 - n), zero))
                        at = select(exceeds(present, best), at, before)
                    best = greatest(present, best)
                if argmax is not None:
                    at = select(exceeds(best, nothing), at, nowhere)
                    store_argmax(at, argmax + (q - begin) * argmax_step, argmax_itemsize)
                if q * stride < padding or q * stride + span > positions + padding:
                    _, skipped, inside = elements_inside(q, pool, positions)
                    if inside <= skipped:
                        best = broadcast(-np.inf, zero)
                store_part(best, target + (q - begin) * target_step, outputs, zero)
            store(value, maxima + row * vector)
        if number + (some - 1) * along == size - 1:  # a run's end
            for i in range(sequence, sequence + (1 if along else some)):
                best, at = nothing, nowhere
                for k in range(size - 1, -1, -1):
                    row = k * dilation + i
                    value = load(maxima + row * vector, zero)
                    if argmax is not None:
                        at = select(exceeds(best, value), at, broadcast(np.int32(k), zero))
                        store_integers(at, argmaxima + row * numbers, np.int32(0))
                    best = greatest(best, value)
                    store(best, maxima + row * vector)
        element, number, sequence = element + some, number + some * along, sequence + some * (1 - along)
        if sequence == dilation:
            number, sequence = number + 1, 0
        if number == size:
            number = 0


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
