"""Vectors of float32 from float16 or bfloat16 in memory, widened in registers."""

from __future__ import annotations

from typing import Any, NamedTuple

from llvmlite import ir
from numba import types
from numba.core.registry import cpu_target

from .simd import element_of, llvm_number, read, size_of, splat

__all__ = ["Stored", "stored_as"]

# CPUs without such an instruction convert by arithmetic: the function that LLVM would call is in no library of Numba's.
WIDENS = bool({"+f16c", "+neon"} & set(cpu_target.target_context.codegen().magic_tuple()[2].split(",")))


class Stored(NamedTuple):
    """How numbers lie in memory: ``number`` is LLVM's type, ``None`` for bfloat16, which llvmlite does not know."""

    number: Any
    size: int

    def load(self, builder: Any, pointer: Any, kind: ir.VectorType) -> Any:
        """Return the numbers at a byte pointer as a vector of ``kind``."""
        if self.number == kind.element:
            return read(builder, pointer, kind, self.size)
        bits = read(builder, pointer, ir.VectorType(ir.IntType(16), kind.count), self.size)
        if self.number is None:
            return builder.bitcast(_shifted(builder, bits, 16), kind)
        if WIDENS:
            return builder.fpext(builder.bitcast(bits, ir.VectorType(self.number, kind.count)), kind)
        return _of_half(builder, bits, kind)


def stored_as(kept: Any) -> Stored:
    """Return what the type of one of :data:`~seqconv.kernels.numba.fold.KEPT` stands for."""
    element = element_of(kept)
    if element == types.int16:
        return Stored(None, 2)
    if element == types.uint16:
        return Stored(ir.HalfType(), 2)
    number = llvm_number(element)
    return Stored(number, size_of(number))


def _of_half(builder: Any, bits: Any, kind: ir.VectorType) -> Any:
    """Return float16's bits as float32: exponent and fraction are shifted into place, the exponent's bias corrected."""
    wide = ir.VectorType(ir.IntType(32), kind.count)

    def every(number: int) -> Any:
        return ir.Constant(wide, [number] * kind.count)

    sign = builder.and_(_shifted(builder, bits, 16), every(0x80000000))
    rest = builder.and_(_shifted(builder, bits, 13), every(0x7FFF << 13))
    scale = splat(builder, ir.Constant(kind.element, 2.0**112), kind.count)  # exact, of subnormal numbers too
    scaled = builder.bitcast(builder.fmul(builder.bitcast(rest, kind), scale), wide)
    special = builder.icmp_unsigned(">=", rest, every(0x7C00 << 13))
    found = builder.select(special, builder.or_(rest, every(0x7F800000)), scaled)
    return builder.bitcast(builder.or_(found, sign), kind)


def _shifted(builder: Any, bits: Any, count: int) -> Any:
    wide = ir.VectorType(ir.IntType(32), bits.type.count)
    return builder.shl(builder.zext(bits, wide), ir.Constant(wide, [count] * bits.type.count))
