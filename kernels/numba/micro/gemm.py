"""Matrix products in Numba kernels, a register tile at a time; both operands are read in place, of any strides.

A tile of ``TILE`` rows x ``VECTORS`` vectors of columns keeps its sums in registers while the inner index runs: on a
Zen 4 every gemm-add needs a cycle of 512 bits, and the ``TILE + VECTORS`` loads of an inner step hide behind them.
What a tile reads should stay in the first two caches: callers cut their operands into blocks.
"""
# ruff: noqa: ARG001  (an intrinsic's parameters are types)

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import njit, types

from ..runtime.compilation import intrinsic
from .igemm import TILE, VECTORS
from .memory import LINE
from .simd import (
    byte_pointer,
    bytes_of,
    fmuladd,
    lanes,
    llvm_vector,
    read,
    size_of,
    splat,
    vector_of,
    write,
)

__all__ = ["TAPS", "gemm", "odd_lines"]

# Inner steps that are summed in registers before the sum is added to the total: longer sums round worse than torch's.
TAPS = 128


def odd_lines(size: int) -> int:
    """Return ``size`` rounded up to an odd number of cache lines: rows of such a stride use all sets of a cache."""
    return (-(-size // LINE) | 1) * LINE


@njit
def gemm(
    target: int,
    target_stride: int,
    x: int,
    row_stride: int,
    rows: int,
    taps: Any,
    y: int,
    y_stride: int,
    columns: int,
    fresh: bool,
    zero: Any,
) -> None:
    """Write to ``target[r, v]``, or add unless ``fresh``, the sum over taps ``(a, b)`` of ``x[r, a, b] * y[a, b, v]``.

    ``taps`` are the number and stride of ``a``, then of ``b``, at least one of each; a row of ``y`` stands for each
    pair. ``v`` runs over ``columns`` whole vectors, contiguous in ``y`` and ``target``. Strides are in bytes.
    """
    outer, outer_stride, inner, inner_stride = taps
    width = lanes(zero) * bytes_of(zero)
    high, wide = max(1, min(TAPS // inner, outer)), min(inner, TAPS)
    for a in range(0, outer, high):
        for b in range(0, inner, wide):
            part = (min(high, outer - a), outer_stride, min(wide, inner - b), inner_stride)
            source, panel = x + a * outer_stride + b * inner_stride, y + (a * inner + b) * y_stride
            first = fresh and a == 0 and b == 0
            for v in range(0, columns - 1, VECTORS):
                place, goal = panel + v * width, target + v * width
                gemm_panel(goal, target_stride, source, row_stride, rows, part, place, y_stride, first, zero, 2)
            if columns % VECTORS:
                place, goal = panel + (columns - 1) * width, target + (columns - 1) * width
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
        goal, source = target + done * target_stride, x + done * row_stride
        if TILE >= 14 and size >= 14:
            size = 14
            gemm_tile(goal, target_stride, source, row_stride, taps, y, y_stride, fresh, zero, 14, vectors)
        elif TILE >= 12 and size >= 12:
            size = 12
            gemm_tile(goal, target_stride, source, row_stride, taps, y, y_stride, fresh, zero, 12, vectors)
        elif TILE >= 10 and size >= 10:
            size = 10
            gemm_tile(goal, target_stride, source, row_stride, taps, y, y_stride, fresh, zero, 10, vectors)
        elif TILE >= 8 and size >= 8:
            size = 8
            gemm_tile(goal, target_stride, source, row_stride, taps, y, y_stride, fresh, zero, 8, vectors)
        elif size >= 6:
            size = 6
            gemm_tile(goal, target_stride, source, row_stride, taps, y, y_stride, fresh, zero, 6, vectors)
        elif size >= 4:
            size = 4
            gemm_tile(goal, target_stride, source, row_stride, taps, y, y_stride, fresh, zero, 4, vectors)
        elif size >= 2:
            size = 2
            gemm_tile(goal, target_stride, source, row_stride, taps, y, y_stride, fresh, zero, 2, vectors)
        else:
            size = 1
            gemm_tile(goal, target_stride, source, row_stride, taps, y, y_stride, fresh, zero, 1, vectors)
        done += size


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
    """Compute ``rows`` x ``vectors``, both literals, of :func:`gemm`: each pair has a register, started at 0."""
    if not isinstance(rows, types.IntegerLiteral) or not isinstance(vectors, types.IntegerLiteral):
        return None
    kind, high, wide = llvm_vector(vector_of(like)), rows.literal_value, vectors.literal_value

    def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        size, number = size_of(kind.element), ir.IntType(64)
        target, target_stride, x, row_stride, taps, y, y_stride, fresh = arguments[:8]
        outer, outer_stride, inner, inner_stride = (builder.extract_value(taps, i) for i in range(4))
        none, one = (ir.Constant(number, i) for i in (0, 1))
        steps = [ir.Constant(number, v * kind.count * size) for v in range(wide)]
        offsets = [builder.mul(row_stride, ir.Constant(number, i)) for i in range(high)]
        begin = builder.block
        head, loop, tail, after, old, end = (
            builder.append_basic_block(f"product.{name}") for name in ("outer", "inner", "next", "after", "old", "end")
        )

        def phis(values: list[Any], block: Any) -> list[Any]:
            nodes = [builder.phi(value.type) for value in values]
            for node, value in zip(nodes, values, strict=True):
                node.add_incoming(value, block)
            return nodes

        zeros = [ir.Constant(kind, [0.0] * kind.count)] * (high * wide)
        start = [none, byte_pointer(builder, x), byte_pointer(builder, y), *zeros]
        builder.branch(head)
        builder.position_at_end(head)
        heads = phis(start, begin)
        builder.branch(loop)

        builder.position_at_end(loop)
        state = phis([none, *heads[1:]], head)
        b, source, row, *sums = state
        panel = [read(builder, builder.gep(row, [step]), kind, size) for step in steps]
        totals = []
        for i in range(high):
            scalar = splat(builder, read(builder, builder.gep(source, [offsets[i]]), kind.element, size), kind.count)
            totals += [fmuladd(builder, scalar, panel[v], sums[i * wide + v]) for v in range(wide)]
        following = [builder.add(b, one), builder.gep(source, [inner_stride]), builder.gep(row, [y_stride]), *totals]
        for node, value in zip(state, following, strict=True):
            node.add_incoming(value, loop)
        builder.cbranch(builder.icmp_signed("<", following[0], inner), loop, tail)

        builder.position_at_end(tail)
        ahead = [builder.add(heads[0], one), builder.gep(heads[1], [outer_stride]), *following[2:]]
        for node, value in zip(heads, ahead, strict=True):
            node.add_incoming(value, tail)
        builder.cbranch(builder.icmp_signed("<", ahead[0], outer), head, after)

        builder.position_at_end(after)
        result = byte_pointer(builder, target)
        goals = [builder.gep(result, [builder.mul(target_stride, ir.Constant(number, i))]) for i in range(high)]
        places = [builder.gep(goal, [step]) for goal in goals for step in steps]
        builder.cbranch(fresh, end, old)
        builder.position_at_end(old)
        before = [read(builder, place, kind, size) for place in places]
        added = [builder.fadd(content, total) for content, total in zip(before, totals, strict=True)]
        builder.branch(end)
        builder.position_at_end(end)
        contents = phis(totals, after)
        for content, other in zip(contents, added, strict=True):
            content.add_incoming(other, old)
        for place, content in zip(places, contents, strict=True):
            write(builder, content, place, size)
        return context.get_dummy_value()

    integer = types.int64
    form = (*(integer,) * 4, types.UniTuple(integer, 4), integer, integer)
    return types.void(*form, types.boolean, like, rows, vectors), generate
