"""Scratch memory of a kernel's parts: alignment, lifetime and prefetching."""
# ruff: noqa: ARG001  (an intrinsic's parameters are types)

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types

from ..runtime.compilation import inner, intrinsic
from .simd import call

__all__ = ["LINE", "aligned", "keep", "prefetch"]

LINE = 64  # bytes of a cache line


@inner(inline="always")
def aligned(address: int) -> int:
    """Return the next address at which a cache line begins."""
    return (address + LINE - 1) // LINE * LINE


@intrinsic
def keep(_typing: Any, array: Any) -> Any:
    """Keep an array alive up to here: Numba frees it after the last use of its name, even if its address is in use."""

    def generate(context: Any, _builder: Any, _signature: Any, _arguments: Any) -> Any:
        return context.get_dummy_value()

    return types.void(array), generate


@intrinsic
def prefetch(_typing: Any, address: Any, level: Any) -> Any:
    """Prefetch the cache line of any address; ``level``, a literal, is 2 for the second cache level, 3 for all."""
    if not isinstance(level, types.IntegerLiteral):
        return None
    nearest = level.literal_value

    def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        number = ir.IntType(32)
        pointer = builder.inttoptr(arguments[0], ir.IntType(8).as_pointer())
        to_read, data = ir.Constant(number, 0), ir.Constant(number, 1)
        given = [pointer, to_read, ir.Constant(number, nearest), data]
        call(builder, "llvm.prefetch.p0", ir.VoidType(), given)
        return context.get_dummy_value()

    return types.void(types.int64, level), generate
