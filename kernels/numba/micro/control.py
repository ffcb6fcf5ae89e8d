"""Control flow of emitted code: a loop with its variables in registers, one of two ways, code for each of few sizes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir

__all__ = ["chosen", "of_size", "repeat"]

Values = list[Any]


def repeat(builder: Any, starts: Sequence[Any], body: Callable[..., tuple[Values, Any]]) -> Values:
    """Emit a loop of at least one pass; return its variables' values behind the last.

    ``body`` is given the variables, ``starts`` at first, emits a pass, and returns their next values and whether there
    is a next pass.
    """
    before, block = builder.block, builder.append_basic_block("repeat")
    builder.branch(block)
    builder.position_at_end(block)
    variables = [builder.phi(start.type) for start in starts]
    following, more = body(*variables)
    for variable, start, later in zip(variables, starts, following, strict=True):
        variable.add_incoming(start, before)
        variable.add_incoming(later, builder.block)
    done = builder.append_basic_block("done")
    builder.cbranch(more, block, done)
    builder.position_at_end(done)
    return following


def chosen(builder: Any, condition: Any, first: Callable[[], Values], second: Callable[[], Values]) -> Values:
    """Emit both ways; return the values of the first where ``condition`` holds, else those of the second."""
    found = []
    with builder.if_else(condition) as ways:
        for way, emit in zip(ways, (first, second), strict=True):
            with way:
                values = emit()
                found.append((values, builder.block))
    merged = [builder.phi(value.type) for value in found[0][0]]
    for values, block in found:
        for node, value in zip(merged, values, strict=True):
            node.add_incoming(value, block)
    return merged


def of_size(builder: Any, size: Any, sizes: Sequence[int], emit: Callable[[int], Any]) -> None:
    """Emit code for each of ``sizes``, integers that are known now, and run that of ``size``, which is one of them."""
    *others, last = sizes
    blocks = {one: builder.append_basic_block(f"size.{one}") for one in sizes}
    end = builder.append_basic_block("size.end")
    switch = builder.switch(size, blocks[last])
    for one in others:
        switch.add_case(ir.Constant(size.type, one), blocks[one])
    for one, block in blocks.items():
        builder.position_at_end(block)
        emit(one)
        builder.branch(end)
    builder.position_at_end(end)
