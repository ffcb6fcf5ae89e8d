"""Batch norm, ReLU and maximum pooling of a convolution's positions, compiled for the CPU: what is done to a sample.

The convolution ``y`` is ``(N, T, O)`` in memory, so that a vector holds one position of neighbouring channels. Norm
and ReLU are monotonic in every channel: the maximum behind them is the largest value of a window where the norm's
weight is positive, the smallest where it is negative, and the first where it is zero. So one pass over ``y``, before
mean and variance are known, gives both these values and the sums for mean and variance (:func:`survey_sample`).

Behind the upstream gradient ``dz``, zero but at each window's argmax, and with ``a = weight * rstd``,

    dbias = sum(dz)        dweight = rstd * sum(dz * (y - mean))
    dy = a * (dz - dbias / M - (y - mean) * rstd * dweight / M)

where sums run over the ``M`` values of a channel: the first line needs the windows' values alone, the second is one
pass over ``y`` (:func:`spread_sample`). A NaN or an infinity makes a channel's mean NaN, and so all its results.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import njit

from .argmax_lists import load_argmax
from .micro.argmaxpool import store_argmax
from .micro.channel_blocks import clear_vectors
from .micro.memory import keep
from .micro.simd import (
    DOUBLE,
    add,
    add_to_doubles,
    broadcast,
    bytes_of,
    either,
    equal,
    greater,
    is_nan,
    lanes,
    load,
    load_number,
    load_part,
    multiply_add,
    select,
    store,
    store_number,
    store_part,
)
from .micro.transposition import transpose
from .runtime.compilation import compiled, inner
from .runtime.threads import share

__all__ = [
    "NormPooling",
    "finish_sums",
    "finish_survey",
    "normalise_samples",
    "spread_samples",
    "sum_samples",
    "survey_samples",
]

# Positions whose values are added up in a register before the sum is carried into a float64.
RUN = 64

# Positions, spread over a sample, whose mean is subtracted before squares are added up: a variance is then precise,
# however far from zero a channel's values are.
GUESS = 8

# Where the guesses' mean squared error exceeds FAR times the variance, squares are added up again around the exact
# means: the variance's own error would be three times as large. Of 64 channels of noise in a single sample, one does in
# 1 of 250 calls. A guess that is off by less than ROUNDING times the mean is as good as float32 allows.
FAR, ROUNDING = 2.0, 2.0**-20


class NormPooling(NamedTuple):
    """The sizes of a call: positions, outputs, windows, the pool, and how a sample is cut into blocks.

    ``padded`` are the outputs rounded up to whole vectors. A block is ``rows`` positions and ``hops`` windows, all of
    whose positions it contains.
    """

    positions: int
    outputs: int
    padded: int
    windows: int
    size: int
    stride: int
    padding: int
    dilation: int
    rows: int
    hops: int


@compiled
def survey_samples(
    layer: NormPooling, places: Any, guessing: int, zero: Any, argmax_zero: Any, begin: int, end: int, threads: int,
    launch: int,
) -> None:  # fmt: skip
    """Survey the samples ``begin`` to ``end``, see :func:`survey_sample`."""
    share(begin, end, threads, launch, survey_sample, (layer, places, guessing, zero, argmax_zero))


@njit
def survey_sample(n: int, layer: NormPooling, places: Any, guessing: int, zero: Any, argmax_zero: Any) -> None:
    """Write each window's greatest value, its argmax and the sums over a sample's positions.

    ``places`` are the addresses of ``y``, of the signs of the norm's weights ``(padded,)``, of the windows' values and
    argmax ``(N, Q, padded)``, the latter 0 where it is not wanted, of what is to be subtracted from a sample's values
    ``(N, padded)``, negative and written here if ``guessing``, and of the float64 sums of these differences and of
    their squares ``(N, 2, padded)``.
    """
    source, signs, values, argmax, shifts, sums = places
    size, width = bytes_of(zero), lanes(zero)
    step = layer.outputs * size
    rows = source + n * layer.positions * step
    values += n * layer.windows * layer.padded * size
    kinds = argmax + n * layer.windows * layer.padded * bytes_of(argmax_zero)
    shifts += n * layer.padded * size
    sums += n * 2 * layer.padded * 8
    clear_vectors(sums, 2 * layer.padded * 8, DOUBLE)
    for o in range(0, layer.outputs if guessing else 0, width):
        store(guess(rows + o * size, step, layer.positions, layer.outputs - o, zero), shifts + o * size)
    for block in range((layer.positions + layer.rows - 1) // layer.rows):
        first, low = block * layer.rows, block * layer.hops
        last, high = min(first + layer.rows, layer.positions), min(low + layer.hops, layer.windows)
        for o in range(0, layer.outputs, width):
            some, column = layer.outputs - o, rows + o * size
            goals = sums + o * 8, sums + (layer.padded + o) * 8
            add_rows(column, step, first, last, some, load(shifts + o * size, zero), goals, zero)
            sign = load(signs + o * size, zero)
            for q in range(low, high):
                goal = q * layer.padded + o
                place = kinds + goal * bytes_of(argmax_zero) if argmax else 0
                choose(column, step, q, layer, sign, some, values + goal * size, place, zero, argmax_zero)


@inner(inline="always")
def guess(column: int, step: int, positions: int, some: int, zero: Any) -> Any:
    """Return minus the mean of some rows of one vector, 0 where it is not finite."""
    total, nothing, count = broadcast(zero, zero), broadcast(zero, zero), min(positions, GUESS)
    for i in range(count):
        total = add(total, load_part(column + (2 * i + 1) * positions // (2 * count) * step, some, zero))
    shift = multiply_add(total, broadcast(-1 / count, zero), nothing)
    return select(is_nan(multiply_add(shift, nothing, nothing)), nothing, shift)


@inner(inline="always")
def add_rows(column: int, step: int, first: int, last: int, some: int, shift: Any, goals: Any, zero: Any) -> None:
    """Add the rows ``first`` to ``last`` of one vector, shifted, to the first of two sums, their squares to the other.

    Lanes behind the outputs hold sums of no meaning.
    """
    for begin in range(first, last, RUN):
        total, squares = broadcast(zero, zero), broadcast(zero, zero)
        for t in range(begin, min(begin + RUN, last)):
            value = add(load_part(column + t * step, some, zero), shift)
            total, squares = add(total, value), multiply_add(value, value, squares)
        add_to_doubles(total, goals[0])
        add_to_doubles(squares, goals[1])


@inner(inline="always")
def choose(
    column: int, step: int, q: int, layer: NormPooling, sign: Any, some: int, target: int, argmax: int, zero: Any,
    argmax_zero: Any,
) -> None:  # fmt: skip
    """Write the value of one vector that ``sign`` times is the greatest of window ``q``, and unless 0 its argmax."""
    skipped, inside = inside_of(q, layer)
    hop, nothing = layer.dilation * step, broadcast(zero, zero)
    place = column + (q * layer.stride - layer.padding) * step
    chosen = load_part(place + skipped * hop, some, zero)
    most, at = multiply_add(chosen, sign, nothing), broadcast(np.int32(skipped), zero)
    for p in range(skipped + 1, inside):
        value = load_part(place + p * hop, some, zero)
        signed = multiply_add(value, sign, nothing)
        more = greater(signed, most)
        chosen, most = select(more, value, chosen), select(more, signed, most)
        at = select(more, broadcast(np.int32(p), zero), at)
    store(chosen, target)
    if argmax:
        store_argmax(at, argmax, bytes_of(argmax_zero))


@inner(inline="always")
def inside_of(q: int, layer: NormPooling) -> tuple[int, int]:
    """Return which of a window's elements are the first inside the sample and the first behind it."""
    start = q * layer.stride - layer.padding
    skipped = max(-start + layer.dilation - 1, 0) // layer.dilation
    return skipped, min((layer.positions - start + layer.dilation - 1) // layer.dilation, layer.size)


@compiled
def finish_survey(layer: NormPooling, samples: int, places: Any, eps: float, zero: Any) -> bool:
    """Write mean, variance and rstd of each channel, and ``a`` and ``b`` of the norm ``a * y + b``.

    Return whether a variance is not precise: its channel's shifts, now exact, then want another survey.

    ``places`` are the addresses of shifts and sums (see :func:`survey_sample`), of the norm's weight and bias
    ``(O,)``, each 0 where there is none, and of the results ``(5, padded)``, zeros.
    """
    shifts, sums, weight, bias, results = places
    size, row = bytes_of(zero), layer.padded * bytes_of(zero)
    count = layer.positions
    again = False
    for o in range(layer.outputs):
        mean, squares, total, excess = 0.0, 0.0, 0.0, 0.0
        for n in range(samples):  # means of samples so far, and the squares of differences to them: Chan et al. (1979)
            at = sums + (n * 2 * layer.padded + o) * 8
            difference = load_number(at, DOUBLE) / count
            excess += difference * difference * count
            squares += load_number(at + layer.padded * 8, DOUBLE) - difference * difference * count
            own = difference - load_number(shifts + (n * layer.padded + o) * size, zero)
            squares += (own - mean) * (own - mean) * count * n / (n + 1)
            mean += (own - mean) / (n + 1)
            total += own
        mean = total / samples  # infinite where the other one is inf - inf
        if excess > FAR * max(squares, 0.0) + (ROUNDING * mean) ** 2 * count * samples:
            again = True
            for n in range(samples):
                at = shifts + (n * layer.padded + o) * size
                difference = load_number(sums + (n * 2 * layer.padded + o) * 8, DOUBLE) / count
                store_number(type(zero)(load_number(at, zero) - difference), at, zero)
        variance = max(squares, 0.0) / (count * samples) if squares == squares else squares
        rstd = 1 / np.sqrt(variance + eps)
        scale = rstd * (load_number(weight + o * size, zero) if weight else 1.0)
        offset = (load_number(bias + o * size, zero) if bias else 0.0) - mean * scale
        at = results + o * size
        for number in (mean, variance, rstd, scale, offset):
            store_number(type(zero)(number), at, zero)
            at += row
    return again


@compiled
def normalise_samples(
    layer: NormPooling, places: Any, contiguous: int, zero: Any, begin: int, end: int, threads: int, launch: int
) -> None:
    """Normalise the samples ``begin`` to ``end``, see :func:`normalise_sample`."""
    share(begin, end, threads, launch, normalise_sample, (layer, places, contiguous, zero))


@njit
def normalise_sample(n: int, layer: NormPooling, places: Any, contiguous: int, zero: Any) -> None:
    """Write ``relu(a * value + b)`` of a sample's windows, ``(O, Q)`` if ``contiguous``, else ``(Q, O)``.

    ``places`` are the addresses of the windows' values ``(N, Q, padded)``, of ``a`` and ``b`` and of the result.
    """
    values, scales, offsets, target = places
    size, width = bytes_of(zero), lanes(zero)
    step = layer.padded * size
    values += n * layer.windows * step
    target += n * layer.windows * layer.outputs * size
    memory = np.empty(width * width * size, np.uint8)
    square = memory.ctypes.data
    nothing = broadcast(zero, zero)
    for first in range(0, layer.windows, width):
        count = min(width, layer.windows - first)
        for o in range(0, layer.outputs, width):
            scale, offset = load(scales + o * size, zero), load(offsets + o * size, zero)
            some = min(width, layer.outputs - o)
            for i in range(count):
                z = multiply_add(load(values + (first + i) * step + o * size, zero), scale, offset)
                z = select(either(greater(z, nothing), is_nan(z)), z, nothing)
                if contiguous:
                    store(z, square + i * width * size)
                else:
                    store_part(z, target + ((first + i) * layer.outputs + o) * size, some, zero)
            if contiguous:
                goal = target + (o * layer.windows + first) * size
                transpose(square, width * size, goal, layer.windows * size, count, some, zero)
    keep(memory)


@compiled
def sum_samples(layer: NormPooling, places: Any, zero: Any, begin: int, end: int, threads: int, launch: int) -> None:
    """Sum the gradients of the samples ``begin`` to ``end``, see :func:`sum_sample`."""
    share(begin, end, threads, launch, sum_sample, (layer, places, zero))


@njit
def sum_sample(n: int, layer: NormPooling, places: Any, zero: Any) -> None:
    """Write a sample's sums of ``dz`` and of ``dz * (y - mean)``, float64 ``(N, 2, padded)``.

    ``places`` are the addresses of the result's gradient ``(N, Q, O)``, of the windows' values, of the statistics
    ``(5, padded)`` and of the sums.
    """
    gradient, values, statistics, sums = places
    size, width = bytes_of(zero), lanes(zero)
    row = layer.padded * size
    sums += n * 2 * layer.padded * 8
    clear_vectors(sums, 2 * layer.padded * 8, DOUBLE)
    for begin in range(0, layer.windows, RUN):
        for o in range(0, layer.outputs, width):
            at = statistics + o * size
            scale, offset = load(at + 3 * row, zero), load(at + 4 * row, zero)
            shift = multiply_add(load(at, zero), broadcast(-1.0, zero), broadcast(zero, zero))
            total, products = broadcast(zero, zero), broadcast(zero, zero)
            for q in range(n * layer.windows + begin, n * layer.windows + min(begin + RUN, layer.windows)):
                value = load(values + (q * layer.padded + o) * size, zero)
                upstream = load_part(gradient + (q * layer.outputs + o) * size, layer.outputs - o, zero)
                dz = alive(value, scale, offset, upstream, zero)
                total, products = add(total, dz), multiply_add(dz, add(value, shift), products)
            add_to_doubles(total, sums + o * 8)
            add_to_doubles(products, sums + (layer.padded + o) * 8)


@inner(inline="always")
def alive(value: Any, scale: Any, offset: Any, upstream: Any, zero: Any) -> Any:
    """Return the upstream gradient where a window's result is not 0, else 0."""
    nothing = broadcast(zero, zero)
    z = multiply_add(value, scale, offset)
    return select(either(greater(z, nothing), is_nan(z)), upstream, nothing)


@compiled
def finish_sums(layer: NormPooling, samples: int, places: Any, zero: Any) -> None:
    """Write the gradients of the norm's weight and bias, and ``c`` and ``d`` of ``dy = a * dz + c * (y - mean) + d``.

    ``places`` are the addresses of a call's sums (see :func:`sum_sample`), of the statistics and of the results ``(4,
    padded)``, zeros.
    """
    sums, statistics, results = places
    size, row = bytes_of(zero), layer.padded * bytes_of(zero)
    count = layer.positions * samples
    for o in range(layer.outputs):
        total, products = 0.0, 0.0
        for n in range(samples):
            at = sums + (n * 2 * layer.padded + o) * 8
            total += load_number(at, DOUBLE)
            products += load_number(at + layer.padded * 8, DOUBLE)
        rstd = load_number(statistics + 2 * row + o * size, zero)
        scale = load_number(statistics + 3 * row + o * size, zero)
        at = results + o * size
        for number in (products * rstd, total, -scale * rstd * rstd * products / count, -scale * total / count):
            store_number(type(zero)(number), at, zero)
            at += row


@compiled
def spread_samples(
    layer: NormPooling, places: Any, zero: Any, argmax_zero: Any, begin: int, end: int, threads: int, launch: int
) -> None:
    """Spread the gradients of the samples ``begin`` to ``end``, see :func:`spread_sample`."""
    share(begin, end, threads, launch, spread_sample, (layer, places, zero, argmax_zero))


@njit
def spread_sample(n: int, layer: NormPooling, places: Any, zero: Any, argmax_zero: Any) -> None:
    """Write the gradient ``(T, O)`` of a sample's convolution.

    ``places`` are the addresses of ``y``, of its gradient, of the result's ``(N, Q, O)``, of the windows' values and
    argmax ``(N, Q, padded)``, of the statistics ``(5, padded)`` and of :func:`finish_sums`'s results.
    """
    source, target, gradient, values, argmax, statistics, factors = places
    size, width = bytes_of(zero), lanes(zero)
    step, row = layer.outputs * size, layer.padded * size
    source += n * layer.positions * step
    target += n * layer.positions * step
    nothing = broadcast(zero, zero)
    for block in range((layer.positions + layer.rows - 1) // layer.rows):
        first, low = block * layer.rows, block * layer.hops
        last, high = min(first + layer.rows, layer.positions), min(low + layer.hops, layer.windows)
        for o in range(0, layer.outputs, width):
            some = min(width, layer.outputs - o)
            at = statistics + o * size
            shift = multiply_add(load(at, zero), broadcast(-1.0, zero), nothing)
            scale, offset = load(at + 3 * row, zero), load(at + 4 * row, zero)
            factor, constant = load(factors + 2 * row + o * size, zero), load(factors + 3 * row + o * size, zero)
            for t in range(first, last):
                value = add(load_part(source + t * step + o * size, some, zero), shift)
                store_part(multiply_add(value, factor, constant), target + t * step + o * size, some, zero)
            for q in range(low, high):
                window = (n * layer.windows + q) * layer.padded + o
                upstream = load_part(gradient + ((n * layer.windows + q) * layer.outputs + o) * size, some, zero)
                dz = alive(load(values + window * size, zero), scale, offset, upstream, zero)
                at_of = load_argmax(argmax + window * bytes_of(argmax_zero), argmax_zero, zero)
                place = target + (q * layer.stride - layer.padding) * step + o * size
                skipped, inside = inside_of(q, layer)
                for p in range(skipped, inside):
                    goal = place + p * layer.dilation * step
                    here = select(equal(at_of, broadcast(np.int32(p), zero)), dz, nothing)
                    store_part(multiply_add(here, scale, load_part(goal, some, zero)), goal, some, zero)
