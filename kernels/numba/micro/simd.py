"""Vectors for Numba kernels: values of a vector register's width.

A vector has the lanes of one register of the CPU that Numba compiles for, and is a local variable like any other.
Addresses are integers, of any alignment. An argument ``like`` is any number: only its type counts, which is the
vector's element type. Counts that shape the generated code are literal arguments, so that one intrinsic of this module
serves them all: Numba's disk cache can name it, unlike a closure.

An intrinsic's parameters are types; the values come to the function that it returns, which writes the code.
"""
# ruff: noqa: ARG001

from __future__ import annotations

import operator
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import extending, njit, types
from numba.core import cgutils
from numba.core.datamodel import models
from numba.core.registry import cpu_target
from numba.core.typing import templates

from ..runtime.compilation import intrinsic

__all__ = [
    "DOUBLE",
    "REGISTERS",
    "add",
    "add_to_doubles",
    "any_of",
    "broadcast",
    "bytes_of",
    "either",
    "equal",
    "greater",
    "horizontal_sum",
    "is_nan",
    "lanes",
    "load",
    "load_first",
    "load_integers",
    "load_number",
    "load_part",
    "maximum",
    "multiply_add",
    "select",
    "store",
    "store_first",
    "store_integers",
    "store_number",
    "store_part",
    "store_past_caches",
]


class Registers(NamedTuple):
    """The vector registers of a CPU: how wide one is in bytes, and how many there are."""

    width: int
    number: int


# The first of these features that the CPU has decides. For a CPU with none of them LLVM splits the vectors as needed.
FEATURES = {"avx512f": Registers(64, 32), "avx": Registers(32, 16), "neon": Registers(16, 32)}
FALLBACK = Registers(16, 16)


def registers(features: str) -> Registers:
    """Return the vector registers of a CPU of which LLVM says ``"+this,-that,..."``."""
    have = features.split(",")
    return next((found for name, found in FEATURES.items() if f"+{name}" in have), FALLBACK)


# Numba's own description of the CPU it compiles for. It is part of the disk cache's key, so it may enter compiled code.
REGISTERS = registers(cpu_target.target_context.codegen().magic_tuple()[2])


# A number of the type in which sums of many terms are kept, whatever the terms' type.
DOUBLE = np.float64(0)


class Vector(types.Type):
    """Numba's type of a vector of ``lanes`` numbers of one type."""

    def __init__(self, element: Any, lanes: int) -> None:
        self.element, self.lanes = element, lanes
        super().__init__(f"Vector({element} x {lanes})")


@extending.register_model(Vector)
class VectorModel(models.PrimitiveModel):
    """A vector is LLVM's vector, in registers and in memory."""

    def __init__(self, manager: Any, vector: Vector) -> None:
        super().__init__(manager, vector, llvm_vector(vector))


def define_operator(symbol: Any, instruction: str) -> None:
    """Let an operator of Python stand for an instruction on two vectors; sums of products may be rounded once."""

    @templates.infer_global(symbol)
    class Operator(templates.AbstractTemplate):
        def generic(self, args: Any, _kws: Any) -> Any:
            if len(args) == 2 and isinstance(args[0], Vector) and args[0] == args[1]:
                return templates.signature(args[0], *args)
            return None

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return getattr(builder, instruction)(*arguments, flags=("contract",))

    extending.lower_builtin(symbol, Vector, Vector)(generate)


for symbol, instruction in ((operator.add, "fadd"), (operator.sub, "fsub"), (operator.mul, "fmul")):
    define_operator(symbol, instruction)


def element_of(number: Any) -> Any:
    """Return the plain type of a number, literal or not."""
    return types.unliteral(number)


def vector_of(number: Any) -> Vector:
    """Return the type of a full vector register of such floating-point numbers."""
    element = element_of(number)
    return Vector(element, REGISTERS.width * 8 // element.bitwidth)


def llvm_number(element: Any) -> Any:
    """Return LLVM's type of a number; a boolean is one bit."""
    if element == types.boolean:
        return ir.IntType(1)
    if element in types.integer_domain:
        return ir.IntType(element.bitwidth)
    return ir.FloatType() if element == types.float32 else ir.DoubleType()


def llvm_vector(vector: Vector) -> ir.VectorType:
    """Return LLVM's type of a vector."""
    return ir.VectorType(llvm_number(vector.element), vector.lanes)


def size_of(number: ir.Type) -> int:
    """Return the bytes of a number in memory."""
    sizes = {ir.FloatType(): 4, ir.DoubleType(): 8}
    return sizes[number] if number in sizes else number.width // 8


def suffix(kind: ir.Type) -> str:
    """Return how LLVM's intrinsics spell a type at the end of their names."""
    if isinstance(kind, ir.VectorType):
        return f"v{kind.count}{suffix(kind.element)}"
    return {"float": "f32", "double": "f64"}.get(str(kind), str(kind))


def call(builder: Any, name: str, result: ir.Type, arguments: list[Any]) -> Any:
    """Call one of LLVM's intrinsics."""
    form = ir.FunctionType(result, [argument.type for argument in arguments])
    return builder.call(cgutils.get_or_insert_function(builder.module, form, name), arguments)


def splat(builder: Any, number: Any, lanes: int) -> Any:
    """Return a vector whose every lane is ``number``."""
    kind = ir.VectorType(number.type, lanes)
    first = builder.insert_element(ir.Constant(kind, ir.Undefined), number, ir.Constant(ir.IntType(32), 0))
    everywhere = ir.Constant(ir.VectorType(ir.IntType(32), lanes), [0] * lanes)
    return builder.shuffle_vector(first, ir.Constant(kind, ir.Undefined), everywhere)


def fmuladd(builder: Any, left: Any, right: Any, addend: Any) -> Any:
    """Return ``left * right + addend``, rounded once where the CPU can."""
    return call(builder, f"llvm.fmuladd.{suffix(left.type)}", left.type, [left, right, addend])


def read(builder: Any, pointer: Any, kind: ir.Type, size: int) -> Any:
    """Load a vector or number from a byte pointer, aligned to the ``size`` of one element."""
    return builder.load(builder.bitcast(pointer, kind.as_pointer()), align=size)


def write(builder: Any, content: Any, pointer: Any, size: int) -> None:
    """Store a vector or number at a byte pointer."""
    builder.store(content, builder.bitcast(pointer, content.type.as_pointer()), align=size)


def add_doubles(builder: Any, terms: Any, pointer: Any) -> None:
    """Add a vector to as many float64 at a byte pointer."""
    kind = ir.VectorType(ir.DoubleType(), terms.type.count)
    wide = terms if terms.type == kind else builder.fpext(terms, kind)
    write(builder, builder.fadd(read(builder, pointer, kind, 8), wide), pointer, 8)


def byte_pointer(builder: Any, address: Any) -> Any:
    """Return an address as a pointer to bytes, so that offsets stay additions that LLVM can fold."""
    return builder.inttoptr(address, ir.IntType(8).as_pointer())


def first_lanes(builder: Any, count: Any, lanes: int) -> Any:
    """Return the mask of the first ``count`` lanes."""
    numbers = ir.Constant(ir.VectorType(count.type, lanes), list(range(lanes)))
    return builder.icmp_signed("<", numbers, splat(builder, count, lanes))


@intrinsic
def lanes(_typing: Any, like: Any) -> Any:
    """Return how many numbers a vector holds."""
    count = vector_of(like).lanes

    def generate(_context: Any, _builder: Any, _signature: Any, _arguments: Any) -> Any:
        return ir.Constant(ir.IntType(64), count)

    return types.int64(like), generate


@intrinsic
def bytes_of(_typing: Any, like: Any) -> Any:
    """Return the bytes of a number in memory."""
    size = size_of(llvm_number(element_of(like)))

    def generate(_context: Any, _builder: Any, _signature: Any, _arguments: Any) -> Any:
        return ir.Constant(ir.IntType(64), size)

    return types.int64(like), generate


@intrinsic
def load_number(_typing: Any, address: Any, like: Any) -> Any:
    """Return the single number at ``address``."""
    element = element_of(like)

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        kind = llvm_number(element)
        return read(builder, byte_pointer(builder, arguments[0]), kind, size_of(kind))

    return element(address, like), generate


@intrinsic
def store_number(_typing: Any, number: Any, address: Any, like: Any) -> Any:
    """Write a single number to ``address``."""
    element = element_of(like)

    def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        write(builder, arguments[0], byte_pointer(builder, arguments[1]), size_of(llvm_number(element)))
        return context.get_dummy_value()

    return types.void(element, address, like), generate


@intrinsic
def load(_typing: Any, address: Any, like: Any) -> Any:
    """Return the vector at ``address``."""
    vector = vector_of(like)

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        kind = llvm_vector(vector)
        return read(builder, byte_pointer(builder, arguments[0]), kind, size_of(kind.element))

    return vector(address, like), generate


@intrinsic
def load_integers(_typing: Any, address: Any, like: Any) -> Any:
    """Return the int32 at ``address``, as many as a vector of ``like`` has lanes."""
    vector = Vector(types.int32, vector_of(like).lanes)

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return read(builder, byte_pointer(builder, arguments[0]), llvm_vector(vector), 4)

    return vector(address, like), generate


@intrinsic
def load_first(_typing: Any, address: Any, count: Any, like: Any) -> Any:
    """Return the first ``count`` numbers at ``address``, then zeros; memory behind them is not touched."""
    vector = vector_of(like)

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        kind = llvm_vector(vector)
        return read_first(builder, byte_pointer(builder, arguments[0]), arguments[1], kind)

    return vector(address, types.int64, like), generate


def read_first(builder: Any, pointer: Any, count: Any, kind: ir.VectorType) -> Any:
    """Load the first ``count`` lanes from a byte pointer, zeros elsewhere."""
    size = ir.Constant(ir.IntType(32), size_of(kind.element))
    mask, zeros = first_lanes(builder, count, kind.count), ir.Constant(kind, [0] * kind.count)
    typed = builder.bitcast(pointer, kind.as_pointer())
    return call(builder, f"llvm.masked.load.{suffix(kind)}.p0", kind, [typed, size, mask, zeros])


def write_masked(builder: Any, content: Any, pointer: Any, mask: Any) -> None:
    """Store the lanes of a mask at a byte pointer."""
    kind = content.type
    typed, size = builder.bitcast(pointer, kind.as_pointer()), ir.Constant(ir.IntType(32), size_of(kind.element))
    call(builder, f"llvm.masked.store.{suffix(kind)}.p0", ir.VoidType(), [content, typed, size, mask])


@intrinsic
def store(_typing: Any, vector: Any, address: Any) -> Any:
    """Write a vector to ``address``."""

    def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        content, size = arguments[0], size_of(llvm_number(vector.element))
        write(builder, content, byte_pointer(builder, arguments[1]), size)
        return context.get_dummy_value()

    return types.void(vector, address), generate


@intrinsic
def store_past_caches(_typing: Any, vector: Any, address: Any) -> Any:
    """Write a vector to an ``address`` that is a multiple of its bytes, without reading it into caches first."""

    def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        content = arguments[0]
        pointer = builder.bitcast(byte_pointer(builder, arguments[1]), content.type.as_pointer())
        written = builder.store(content, pointer, align=REGISTERS.width)
        written.set_metadata("nontemporal", builder.module.add_metadata([ir.Constant(ir.IntType(32), 1)]))
        return context.get_dummy_value()

    return types.void(vector, address), generate


@intrinsic
def store_first(_typing: Any, vector: Any, address: Any, count: Any) -> Any:
    """Write a vector's first ``count`` numbers to ``address``; memory behind them is not touched."""

    def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        mask = first_lanes(builder, arguments[2], llvm_vector(vector).count)
        write_masked(builder, arguments[0], byte_pointer(builder, arguments[1]), mask)
        return context.get_dummy_value()

    return types.void(vector, address, types.int64), generate


@intrinsic
def store_integers(_typing: Any, integers: Any, address: Any, like: Any) -> Any:
    """Write a vector of int32 to ``address`` as the narrower integers of which ``like`` is one."""
    element = element_of(like)

    def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        content, kind = arguments[0], ir.VectorType(llvm_number(element), integers.lanes)
        content = builder.trunc(content, kind) if content.type != kind else content
        write(builder, content, byte_pointer(builder, arguments[1]), size_of(kind.element))
        return context.get_dummy_value()

    return types.void(integers, address, like), generate


@intrinsic
def broadcast(_typing: Any, number: Any, like: Any) -> Any:
    """Return ``number`` in as many lanes as a vector of ``like`` has; integers become int32."""
    element = types.int32 if isinstance(element_of(number), types.Integer) else element_of(like)
    vector = Vector(element, vector_of(like).lanes)

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return splat(builder, arguments[0], vector.lanes)

    return vector(element, like), generate


@intrinsic
def add(_typing: Any, left: Any, right: Any) -> Any:
    """Return ``left + right``."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return (builder.add if isinstance(left.element, types.Integer) else builder.fadd)(*arguments)

    return left(left, right), generate


@intrinsic
def add_to_doubles(_typing: Any, terms: Any, address: Any) -> Any:
    """Add a vector to as many float64 at ``address``."""

    def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        add_doubles(builder, arguments[0], byte_pointer(builder, arguments[1]))
        return context.get_dummy_value()

    return types.void(terms, address), generate


@intrinsic
def multiply_add(_typing: Any, left: Any, right: Any, addend: Any) -> Any:
    """Return ``left * right + addend``, rounded once where the CPU can."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return fmuladd(builder, *arguments)

    return addend(left, right, addend), generate


@intrinsic
def greater(_typing: Any, left: Any, right: Any) -> Any:
    """Return the mask of lanes where ``left > right``; with a NaN it is not."""
    mask = Vector(types.boolean, left.lanes)

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.fcmp_ordered(">", *arguments)

    return mask(left, right), generate


@intrinsic
def equal(_typing: Any, left: Any, right: Any) -> Any:
    """Return the mask of lanes where two vectors of integers are equal."""
    mask = Vector(types.boolean, left.lanes)

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.icmp_signed("==", *arguments)

    return mask(left, right), generate


@intrinsic
def is_nan(_typing: Any, vector: Any) -> Any:
    """Return the mask of lanes that hold a NaN."""
    mask = Vector(types.boolean, vector.lanes)

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.fcmp_unordered("uno", arguments[0], arguments[0])

    return mask(vector), generate


@intrinsic
def either(_typing: Any, left: Any, right: Any) -> Any:
    """Return the mask of lanes that are in one of two masks."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.or_(*arguments)

    return left(left, right), generate


@intrinsic
def any_of(_typing: Any, mask: Any) -> Any:
    """Tell whether a mask has any lane."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        number = ir.IntType(mask.lanes)
        return builder.icmp_unsigned("!=", builder.bitcast(arguments[0], number), ir.Constant(number, 0))

    return types.boolean(mask), generate


@intrinsic
def select(_typing: Any, mask: Any, chosen: Any, other: Any) -> Any:
    """Return ``chosen`` in the lanes of the mask, ``other`` elsewhere."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.select(*arguments)

    return chosen(mask, chosen, other), generate


@njit(inline="always")
def load_part(address: int, count: int, zero: Any) -> Any:
    """Return the first ``count`` numbers at ``address``, all of a vector's lanes or fewer."""
    return load(address, zero) if count >= lanes(zero) else load_first(address, count, zero)


@njit(inline="always")
def store_part(vector: Any, address: int, count: int, zero: Any) -> None:
    """Write the first ``count`` numbers of a vector, all of its lanes or fewer."""
    if count >= lanes(zero):
        store(vector, address)
    else:
        store_first(vector, address, count)


@njit(inline="always")
def maximum(left: Any, right: Any) -> Any:
    """Return the greater of each two lanes; a NaN on either side is the maximum, as in :func:`torch.maximum`."""
    # What the CPU's own maximum gives where one is a NaN is the right one.
    return select(is_nan(left), left, select(greater(left, right), left, right))


@intrinsic
def positive(_typing: Any, vector: Any) -> Any:
    """Return the positive parts of numbers, none of which has a sign then: a NaN neither, nor a zero."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        content, zero = arguments[0], ir.Constant(arguments[0].type, [0.0] * vector.lanes)
        negative = builder.fcmp_ordered("<", content, zero)
        bits = _bits(builder, builder.select(negative, zero, content))
        unsigned = ir.Constant(bits.type, [2 ** (bits.type.element.width - 1) - 1] * vector.lanes)
        return builder.bitcast(builder.and_(bits, unsigned), content.type)

    return vector(vector), generate


@intrinsic
def greatest(_typing: Any, left: Any, right: Any) -> Any:
    """Return the greater of each two :func:`positive` lanes; a NaN is greater than all else.

    Numbers without a sign are in the order of their bits, NaN last, so that it takes one comparison of integers.
    """

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        one, other = (_bits(builder, content) for content in arguments)
        return builder.select(builder.icmp_signed(">", one, other), *arguments)

    return left(left, right), generate


@intrinsic
def exceeds(_typing: Any, left: Any, right: Any) -> Any:
    """Return the mask of :func:`positive` lanes where ``left > right``, or ``left`` is a NaN."""
    mask = Vector(types.boolean, left.lanes)

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        infinity = ir.Constant(arguments[0].type, [float("inf")] * left.lanes)
        one, other, most = (_bits(builder, content) for content in (*arguments, infinity))
        bound = builder.select(builder.icmp_signed("<", other, most), other, most)
        return builder.icmp_signed(">", one, bound)

    return mask(left, right), generate


def _bits(builder: Any, content: Any) -> Any:
    """Return a vector's numbers as integers of the same size."""
    kind = ir.VectorType(ir.IntType(8 * size_of(content.type.element)), content.type.count)
    return builder.bitcast(content, kind)


@intrinsic
def horizontal_sum(_typing: Any, vector: Any) -> Any:
    """Return the sum of all lanes, added in halves."""
    element = vector.element

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        total, count = arguments[0], vector.lanes
        while count > 1:
            count //= 2
            low, high = (
                ir.Constant(ir.VectorType(ir.IntType(32), count), list(range(begin, begin + count)))
                for begin in (0, count)
            )
            total = builder.fadd(*(builder.shuffle_vector(total, total, half) for half in (low, high)))
        return builder.extract_element(total, ir.Constant(ir.IntType(32), 0))

    return element(vector), generate
