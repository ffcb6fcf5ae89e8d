"""The register tile of fast products: pairs of positions x vectors of sums, two positions from shared products.

What the products are, and why, see :mod:`..fast_products`.
"""
# ruff: noqa: ARG001  (an intrinsic's parameters are types)

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from llvmlite import ir
from numba import types

from ..runtime.compilation import intrinsic
from .control import chosen, of_size, repeat
from .igemm import opaque
from .simd import byte_pointer, llvm_vector, read, size_of, vector_of, write
from .tile import TILE, adder, store_sums

__all__ = ["PAIRS", "pair_tile"]

# Pairs of a tile: as few sizes as will do, for each takes a second to compile.
PAIRS = (7, 4, 2, 1) if TILE == 14 else (3, 2, 1)


@intrinsic
def pair_tile(
    _typing: Any,
    pairs: Any,
    row_size: Any,
    inputs: Any,
    factors: Any,
    start: Any,
    target: Any,
    flag: Any,
    more: Any,
    last: Any,
    like: Any,
    count: Any,
    vectors: Any,
) -> Any:
    """Compute a tile of ``count`` pairs, one of :data:`PAIRS`, x ``vectors`` of output channels, a literal."""
    if not isinstance(vectors, types.IntegerLiteral):
        return None
    kind, width = llvm_vector(vector_of(like)), vectors.literal_value

    def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        emit = partial(emit_tile, builder, kind, arguments[:9], width=width)
        of_size(builder, arguments[10], PAIRS, emit)
        return context.get_dummy_value()

    integer = types.int64
    form = (integer, integer, types.UniTuple(types.UniTuple(integer, 5), 4), *(integer,) * 4)
    return types.void(*form, types.boolean, types.boolean, like, integer, vectors), generate


def emit_tile(builder: Any, kind: Any, given: Sequence[Any], pairs: int, *, width: int) -> None:
    """Emit a tile of ``pairs`` x ``width`` vectors.

    ``given`` are the first arguments of :func:`pair_tile`. ``pairs`` has two numbers of each pair: those of the input
    row that its first position begins at, and of the row of ``target`` that it is; the second position is ``row_size``
    ``target`` rows behind. ``inputs`` describe the four kinds of products, in the order of their factors: those of
    ``m1`` and ``m2``; of ``m1`` alone; of ``m0`` and ``m3``, twice. A description is the number of products, the
    address of their offsets (of which one more is read), the address of row 0, the bytes of a row, and the bytes from
    the number of one sum to that of the other. ``factors`` has a row of vectors for each product.

    Results are added to what ``target`` holds if ``more``. If ``last``, the vectors at ``start`` are added to them, and
    they to the vector at ``flag``, which is infinite or no number if one of them is.
    """
    table, behind, inputs, factors, start, target, flag, more, last = given
    number, size = ir.IntType(64), size_of(kind.element)
    row_size = kind.count * size

    def constant(value: int) -> Any:
        return ir.Constant(number, value)

    def listed(place: Any, i: Any) -> Any:
        return read(builder, builder.gep(place, [builder.mul(i, constant(8))]), number, 8)

    index = byte_pointer(builder, table)

    def walk(which: int, content: Any, sums: list[Any], sides: int) -> list[Any]:
        """Emit the loop over one kind of products, for one sum or both; return the next factors, and the sums."""
        count, offsets, base, row, apart = (builder.extract_value(inputs, [which, i]) for i in range(5))
        add_tap, place = adder(builder, kind, width, sides), byte_pointer(builder, offsets)

        def loop() -> list[Any]:
            first = byte_pointer(builder, base)
            sources = [builder.gep(first, [builder.mul(listed(index, constant(2 * i)), row)]) for i in range(pairs)]

            def follow(tap: Any, hidden: Any, here: Any, *sums: Any) -> tuple[list[Any], Any]:
                offset = opaque(builder, hidden)  # loaded one tap ahead, there is one behind the last
                places = [builder.gep(source, [offset]) for source in sources]
                if sides == 2:
                    other = builder.add(offset, apart)
                    places += [builder.gep(source, [other]) for source in sources]
                totals = add_tap(places, here, sums)
                ahead = builder.add(tap, constant(1))
                further = builder.gep(here, [constant(row_size * width * sides)])
                seen = opaque(builder, ahead)
                return [seen, listed(place, ahead), further, *totals], builder.icmp_signed("<", seen, count)

            return repeat(builder, [constant(0), listed(place, constant(0)), content, *sums], follow)[2:]

        return chosen(builder, builder.icmp_signed(">", count, constant(0)), loop, lambda: [content, *sums])

    half, begin = pairs * width, byte_pointer(builder, start)
    zero = ir.Constant(kind, [0.0] * kind.count)
    content, *sums = walk(0, byte_pointer(builder, factors), [zero] * (2 * half), 2)
    content, *first = walk(1, content, sums[:half], 1)
    sums = [add(a, b) for add in (builder.fadd, builder.fsub) for a, b in zip(first, sums[half:], strict=True)]
    for which in (2, 3):
        content, *sums = walk(which, content, sums, 2)

    rows = byte_pointer(builder, target)
    goals = [listed(index, constant(2 * i + 1)) for i in range(pairs)]
    goals += [builder.add(goal, behind) for goal in goals]
    places = [builder.gep(rows, [builder.mul(goal, constant(row_size * width))]) for goal in goals]
    places = [builder.gep(place, [constant(v * row_size)]) for place in places for v in range(width)]

    def shifted() -> list[Any]:
        shifts = [read(builder, builder.gep(begin, [constant(v * row_size)]), kind, size) for v in range(width)]
        return [builder.fadd(total, shifts[i % width]) for i, total in enumerate(sums)]

    # Behind all products: in front, each of them would round at the size of the bias.
    sums = chosen(builder, last, shifted, lambda: sums)
    results = store_sums(builder, kind, sums, places, builder.not_(more))
    with builder.if_then(last):
        place = byte_pointer(builder, flag)
        total = read(builder, place, kind, size)
        while len(results) > 1:
            results = [builder.fadd(a, b) for a, b in zip(results[::2], results[1::2], strict=False)] + results[
                len(results) // 2 * 2 :
            ]
        write(builder, builder.fadd(total, results[0]), place, size)
