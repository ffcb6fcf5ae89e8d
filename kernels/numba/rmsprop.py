"""One step of RMSprop, compiled for the CPU: each number is read once and written once, for all tensors in one call.

torch reads or writes a tensor in five passes and allocates another of its size. Every product and quotient is rounded
as in torch. The square root here is correctly rounded; torch's comes from a library and may be off in the last bit.

It serves contiguous float32 tensors on the CPU. The kernel writes through addresses, so it increments the tensors'
version counters for autograd itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numba import njit
from torch import Tensor

from .micro.simd import (
    add,
    broadcast,
    bytes_of,
    call,
    lanes,
    load,
    load_first,
    load_number,
    multiply_add,
    store,
    store_first,
    suffix,
)
from .runtime.compilation import compiled, intrinsic
from .runtime.threads import run, share, thread_count

__all__ = ["rmsprop_step"]

# Numbers of a part of the work: 64 KiB of each of the three tensors.
BLOCK = 16_384

# Cost of a number's square root and division, in multiply-adds.
COST = 16


def rmsprop_step(
    parameters: Sequence[Tensor],
    gradients: Sequence[Tensor],
    mean_squares: Sequence[Tensor],
    *,
    rate: float,
    decay: float,
    epsilon: float,
) -> None:
    """Change, in place, every ``mean_square`` ``v`` and ``parameter`` ``p`` by its gradient ``g``.

    ``v = decay * v + (1 - decay) * g**2``, then ``p = p - rate * g / (sqrt(v) + epsilon)``: as the reference does.
    """
    rows, parts, total = [], 0, 0
    for parameter, gradient, mean_square in zip(parameters, gradients, mean_squares, strict=True):
        numbers = parameter.numel()
        rows.append((parts, parameter.data_ptr(), gradient.data_ptr(), mean_square.data_ptr(), numbers))
        parts += -(-numbers // BLOCK)
        total += numbers
    if not total:
        return
    table = np.array(rows, np.int64)
    factors = tuple(np.float32(one) for one in (decay, 1 - decay, epsilon, -rate))
    threads = thread_count(parts, total * COST)

    def update(begin: int, end: int, threads: int, launch: int) -> None:
        update_parts(table.ctypes.data, len(rows), factors, np.float32(0), begin, end, threads, launch)

    run(update, parts, threads)
    torch.autograd.graph.increment_version([*parameters, *mean_squares])


@compiled
def update_parts(
    table: int, count: int, factors: Any, zero: Any, begin: int, end: int, threads: int, launch: int
) -> None:
    """Update the parts ``begin`` to ``end``; see :func:`update_part`."""
    share(begin, end, threads, launch, update_part, (table, count, factors, zero))


@njit
def update_part(part: int, table: int, count: int, factors: Any, zero: Any) -> None:
    """Update one block. A row of ``table`` is a tensor's first part, the addresses of p, g and v, its size."""
    row = table
    for _ in range(count - 1):
        if load_number(row + 40, np.int64(0)) > part:
            break
        row += 40
    size = bytes_of(zero)
    done = (part - load_number(row, np.int64(0))) * BLOCK
    numbers = min(BLOCK, load_number(row + 32, np.int64(0)) - done)
    parameter = load_number(row + 8, np.int64(0)) + done * size
    gradient = load_number(row + 16, np.int64(0)) + done * size
    mean_square = load_number(row + 24, np.int64(0)) + done * size
    width = lanes(zero)
    decay, rest = broadcast(factors[0], zero), broadcast(factors[1], zero)
    epsilon, rate = broadcast(factors[2], zero), broadcast(factors[3], zero)
    for i in range(0, numbers - width + 1, width):
        at = i * size
        g = load(gradient + at, zero)
        v = multiply_add(multiply(rest, g), g, multiply(decay, load(mean_square + at, zero)))
        store(v, mean_square + at)
        step = divide(multiply(rate, g), add(square_root(v), epsilon))
        store(add(load(parameter + at, zero), step), parameter + at)
    left = numbers % width
    if left:
        at = (numbers - left) * size
        g = load_first(gradient + at, left, zero)
        v = multiply_add(multiply(rest, g), g, multiply(decay, load_first(mean_square + at, left, zero)))
        store_first(v, mean_square + at, left)
        step = divide(multiply(rate, g), add(square_root(v), epsilon))
        store_first(add(load_first(parameter + at, left, zero), step), parameter + at, left)


@intrinsic
def multiply(_typing: Any, left: Any, right: Any) -> Any:
    """Return ``left * right``."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.fmul(*arguments)

    return left(left, right), generate


@intrinsic
def divide(_typing: Any, left: Any, right: Any) -> Any:
    """Return ``left / right``."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.fdiv(*arguments)

    return left(left, right), generate


@intrinsic
def square_root(_typing: Any, vector: Any) -> Any:
    """Return the square root, rounded to nearest."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        kind = arguments[0].type
        return call(builder, f"llvm.sqrt.{suffix(kind)}", kind, [arguments[0]])

    return vector(vector), generate
