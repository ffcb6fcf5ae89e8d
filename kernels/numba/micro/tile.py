"""The register tile: ``rows`` x ``width`` vectors of sums, which stay in registers while a walk over taps feeds them.

    sums[i, v] = sum over taps t of numbers[i, t] * vectors[t, v]

Where the numbers and vectors are is the walk's to say: :mod:`.gemm` walks along strides, :mod:`.igemm` along a list.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir

from .control import chosen
from .simd import REGISTERS, byte_pointer, fmuladd, read, size_of, splat, write

__all__ = ["TILE", "VECTORS", "Step", "adder", "emit_sums", "store_sums", "vector_places"]

# Rows of a register tile two vectors wide. With 32 registers 14 x 2 sums, 2 vectors and the number fill all but one:
# 250 of 258 GFLOP/s on one core of a Zen 5, whose multiply-adds need 2 x 4 sums under way. With 16, 6 x 2.
TILE = 14 if REGISTERS.number == 32 else 6
VECTORS = 2

Step = Callable[[Sequence[Any], Any, Sequence[Any]], list[Any]]
Walk = Callable[[Step, list[Any]], list[Any]]


def emit_sums(builder: Any, kind: Any, rows: int, width: int, walk: Walk) -> list[Any]:
    """Emit a tile's sums, row by row, each of vectors of ``kind``.

    ``walk`` emits the loop over taps. It is given the step that adds one tap and the sums to begin with, and returns
    the sums behind the last tap. The step takes the addresses of the rows' numbers, the address of the contiguous
    vectors and the sums so far, and returns the next sums.
    """
    return walk(adder(builder, kind, width), [ir.Constant(kind, [0.0] * kind.count)] * (rows * width))


def adder(builder: Any, kind: Any, width: int, panels: int = 1) -> Step:
    """Return the step that adds one tap to sums of ``width`` vectors in each row.

    Of several ``panels``, the first so many rows are multiplied with the first ``width`` vectors, and so on.
    """
    size = size_of(kind.element)

    def add_tap(numbers: Sequence[Any], vectors: Any, sums: Sequence[Any]) -> list[Any]:
        totals: list[Any] = []
        rows = len(numbers) // panels
        for i, place in enumerate(numbers):
            if i % rows == 0:
                behind = [
                    ir.Constant(ir.IntType(64), (i // rows * width + v) * kind.count * size) for v in range(width)
                ]
                panel = [read(builder, builder.gep(vectors, [offset]), kind, size) for offset in behind]
            factor = splat(builder, read(builder, place, kind.element, size), kind.count)
            totals += [fmuladd(builder, factor, panel[v], sums[i * width + v]) for v in range(width)]
        return totals

    return add_tap


def vector_places(builder: Any, kind: Any, target: Any, stride: Any, rows: int, width: int) -> list[Any]:
    """Emit the addresses of a tile's vectors, contiguous in rows that are ``stride`` bytes apart from ``target`` on."""
    first, number, step = byte_pointer(builder, target), ir.IntType(64), kind.count * size_of(kind.element)
    starts = [builder.gep(first, [builder.mul(stride, ir.Constant(number, i))]) for i in range(rows)]
    return [builder.gep(row, [ir.Constant(number, v * step)]) for row in starts for v in range(width)]


def store_sums(
    builder: Any, kind: Any, sums: Sequence[Any], goals: Sequence[Any], fresh: Any, begins: Sequence[Any] | None = None
) -> list[Any]:
    """Emit stores of the sums at ``goals``: added to what is there or, if ``fresh``, to what is at ``begins``.

    Return what was stored.
    """
    size = size_of(kind.element)

    def store(before: Sequence[Any] | None) -> list[Any]:
        contents = list(sums)
        if before is not None:
            old = [read(builder, place, kind, size) for place in before]
            contents = [builder.fadd(content, total) for content, total in zip(old, sums, strict=True)]
        for goal, content in zip(goals, contents, strict=True):
            write(builder, content, goal, size)
        return contents

    return chosen(builder, fresh, lambda: store(begins), lambda: store(goals))
