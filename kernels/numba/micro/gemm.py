"""Matrix products in Numba kernels, a register tile at a time; both operands are read in place, of any strides.

A tile of ``TILE`` rows x ``VECTORS`` vectors of columns keeps its sums in registers while the inner index runs: on a
Zen 4 every multiply-add needs a cycle of 512 bits, and the ``TILE + VECTORS`` loads of an inner step hide behind them.
What a tile reads should stay in the first two caches: callers cut their operands into blocks.
"""
# ruff: noqa: ARG001  (an intrinsic's parameters are types)

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types

from ..runtime.compilation import intrinsic
from .control import chosen, of_size, repeat
from .memory import LINE
from .simd import REGISTERS, byte_pointer, bytes_of, lanes, llvm_vector, vector_of
from .tile import TILE, VECTORS, Step, emit_sums, store_sums, vector_places

__all__ = ["IN_ROWS", "TAPS", "gemm", "odd_lines"]

# Sums that a lone row's taps are shared among: with one, of two vectors, a multiply-add waits for the one before.
APART = 4

# Bytes between panels of which each row's are contiguous.
IN_ROWS = VECTORS * REGISTERS.width

# Inner steps that are summed in registers before the sum is added to the total: longer sums round worse than torch's.
TAPS = 128

LONE = 0  # the size of a tile whose one row is all that is multiplied
TILES = (*(rows for rows in (14, 12, 10, 8, 6, 4, 2, 1) if rows <= TILE), LONE)


def odd_lines(size: int) -> int:
    """Return ``size`` rounded up to an odd number of cache lines: rows of such a stride use all sets of a cache."""
    return (-(-size // LINE) | 1) * LINE


@njit(inline="always")
def gemm(
    target: int,
    target_stride: int,
    x: int,
    row_stride: int,
    rows: int,
    taps: Any,
    y: int,
    y_stride: int,
    panel_stride: int,
    columns: int,
    fresh: bool,
    zero: Any,
) -> None:
    """Write to ``target[r, v]``, or add unless ``fresh``, the sum over taps ``(a, b)`` of ``x[r, a, b] * y[a, b, v]``.

    ``taps`` are the number and stride of ``a``, then of ``b``, at least one of each; a row of ``y`` stands for each
    pair. ``v`` runs over ``columns`` whole vectors, contiguous in ``target``. In ``y`` these are cut into panels of
    ``VECTORS`` vectors, ``panel_stride`` apart: :data:`IN_ROWS` where all of a row are contiguous. Strides are in
    bytes.
    """
    # Literal arguments become numbers here: Numba would compile the rest for each of their values.
    outer, outer_stride, inner, inner_stride = taps
    counts = np.int64(outer), np.int64(outer_stride), np.int64(inner), np.int64(inner_stride)
    gemm_panels(
        target, np.int64(target_stride), x, np.int64(row_stride), np.int64(rows), counts, y, np.int64(y_stride),
        np.int64(panel_stride), np.int64(columns),
        bool(fresh), zero,
    )  # fmt: skip


@njit
def gemm_panels(
    target: int,
    target_stride: int,
    x: int,
    row_stride: int,
    rows: int,
    taps: Any,
    y: int,
    y_stride: int,
    panel_stride: int,
    columns: int,
    fresh: bool,
    zero: Any,
) -> None:
    """Do what :func:`gemm` says, taps in blocks, panel by panel."""
    outer, outer_stride, inner, inner_stride = taps
    width = lanes(zero) * bytes_of(zero)
    high, wide = max(1, min(TAPS // inner, outer)), min(inner, TAPS)
    for a in range(0, outer, high):
        for b in range(0, inner, wide):
            part = (min(high, outer - a), outer_stride, min(wide, inner - b), inner_stride)
            source, panel = x + a * outer_stride + b * inner_stride, y + (a * inner + b) * y_stride
            first = fresh and a == 0 and b == 0
            for v in range(0, columns - 1, VECTORS):
                place, goal = panel + v // VECTORS * panel_stride, target + v * width
                gemm_panel(goal, target_stride, source, row_stride, rows, part, place, y_stride, first, zero, 2)
            if columns % VECTORS:
                place, goal = panel + columns // VECTORS * panel_stride, target + (columns - 1) * width
                gemm_panel(goal, target_stride, source, row_stride, rows, part, place, y_stride, first, zero, 1)


@njit(inline="always")
def gemm_panel(
    target: int,
    target_stride: int,
    x: int,
    row_stride: int,
    rows: int,
    taps: Any,
    y: int,
    y_stride: int,
    fresh: bool,
    zero: Any,
    vectors: int,
) -> None:
    """Compute all rows of one panel, in tiles as equal in size as possible: small tiles use less of the CPU."""
    done = 0
    while done < rows:
        rest = rows - done
        tiles = (rest + TILE - 1) // TILE
        size = min((rest + tiles - 1) // tiles + 1, rest, TILE)
        size = LONE if rows == 1 else size // 2 * 2 if size > 1 else 1
        goal, source = target + done * target_stride, x + done * row_stride
        gemm_tile(goal, target_stride, source, row_stride, taps, y, y_stride, fresh, zero, size, vectors)
        done += max(size, 1)


@intrinsic
def gemm_tile(
    _typing: Any,
    target: Any,
    target_stride: Any,
    x: Any,
    row_stride: Any,
    taps: Any,
    y: Any,
    y_stride: Any,
    fresh: Any,
    like: Any,
    rows: Any,
    vectors: Any,
) -> Any:
    """Compute ``rows``, one of :data:`TILES`, x ``vectors``, a literal, of :func:`gemm`, in a register each."""
    if not isinstance(vectors, types.IntegerLiteral):
        return None
    kind, wide = llvm_vector(vector_of(like)), vectors.literal_value

    def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        of_size(builder, arguments[9], TILES, partial(emit_tile, builder, kind, arguments[:8], width=wide))
        return context.get_dummy_value()

    integer = types.int64
    form = (*(integer,) * 4, types.UniTuple(integer, 4), integer, integer)
    return types.void(*form, types.boolean, like, integer, vectors), generate


def emit_tile(builder: Any, kind: Any, given: Sequence[Any], rows: int, *, width: int) -> None:
    """Emit the sums of ``rows`` x ``width`` vectors; ``given`` are the first arguments of :func:`gemm_tile`.

    The sums of a :data:`LONE` row are of every :data:`APART`-th tap each, and added up in the end.
    """
    target, target_stride, x, row_stride, taps, y, y_stride, fresh = given
    number, apart, rows = ir.IntType(64), APART if rows == LONE else 1, max(rows, 1)
    outer, outer_stride, inner, inner_stride = (builder.extract_value(taps, i) for i in range(4))
    none, one = (ir.Constant(number, i) for i in (0, 1))
    offsets = [builder.mul(row_stride, ir.Constant(number, i)) for i in range(rows)]

    def walk(add_tap: Step, zeros: list[Any]) -> list[Any]:
        def step(count: int, b: Any, source: Any, row: Any, *sums: Any) -> tuple[list[Any], Any]:
            """Add ``count`` taps to as many groups of sums."""
            totals = list(sums)
            for i in range(count):
                group = slice(i * len(zeros), (i + 1) * len(zeros))
                totals[group] = add_tap([builder.gep(source, [offset]) for offset in offsets], row, sums[group])
                source, row = builder.gep(source, [inner_stride]), builder.gep(row, [y_stride])
            following = builder.add(b, ir.Constant(number, count))
            more = builder.icmp_signed("<=", builder.add(following, ir.Constant(number, count)), inner)
            return [following, source, row, *totals], more

        def some(count: int, variables: list[Any]) -> list[Any]:
            """Add taps, ``count`` at a time, as long as there are so many."""
            enough = builder.icmp_signed("<=", builder.add(variables[0], ir.Constant(number, count)), inner)
            return chosen(builder, enough, lambda: repeat(builder, variables, partial(step, count)), lambda: variables)

        def run(a: Any, source: Any, row: Any, *sums: Any) -> tuple[list[Any], Any]:
            if apart == 1:
                _, _, row, *totals = repeat(builder, [none, source, row, *sums], partial(step, 1))
            else:
                _, _, row, *totals = some(1, some(apart, [none, source, row, *sums]))
            following = builder.add(a, one)
            more = builder.icmp_signed("<", following, outer)
            return [following, builder.gep(source, [outer_stride]), row, *totals], more

        sums = repeat(builder, [none, byte_pointer(builder, x), byte_pointer(builder, y), *zeros * apart], run)[3:]
        while len(sums) > len(zeros):
            half = len(sums) // 2
            sums = [builder.fadd(low, high) for low, high in zip(sums[:half], sums[half:], strict=True)]
        return sums

    sums = emit_sums(builder, kind, rows, width, walk)
    store_sums(builder, kind, sums, vector_places(builder, kind, target, target_stride, rows, width), fresh)
