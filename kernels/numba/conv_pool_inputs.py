"""What the forward pass of the fused conv stack reads: arguments, samples, and the tables of an indirect product."""
# ruff: noqa: ARG001  (an intrinsic's parameters are types)

from __future__ import annotations

from typing import Any

from numba import types

from .conv_pool_blocking import KernelArguments
from .micro.packing import copy_padded_rows
from .micro.simd import bytes_of, load_number, store_number
from .runtime.compilation import inner, intrinsic

__all__ = ["limits_of", "load_arguments", "sample_at", "write_indirection", "write_offsets"]


@intrinsic
def load_arguments(_typing: Any, address: Any) -> Any:
    """Return the arguments that are stored at ``address``."""
    result = types.NamedUniTuple(types.int64, len(KernelArguments._fields), KernelArguments)

    def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.load(builder.inttoptr(arguments[0], context.get_value_type(result).as_pointer()), align=8)

    return result(types.int64), generate


@inner(inline="always")
def sample_at(args: Any, n: int) -> Any:
    """Return the address of sample ``n``."""
    return load_number(args.places + n * 8, 0) if args.places else args.x + n * args.sample_stride


@inner(inline="always")
def limits_of(call: Any, n: int) -> tuple[int, int]:
    """Return how many positions and windows sample ``n`` of a call has: KernelArguments, or a Descriptor."""
    if call.limits:
        return load_number(call.limits + n * 16, 0), load_number(call.limits + n * 16 + 8, 0)
    return call.positions, call.windows


@inner
def write_indirection(args: Any, table: int, samples: Any, first: int, count: int, place: int, zero: Any) -> int:
    """Write the addresses of ``count`` positions of each sample, from position ``first`` on, to ``table``.

    Where one of them sees padding, the samples' rows are copied to ``place``, zeros around them, and the addresses are
    those of the copies. Return the bytes between the copies' channels, 0 without copies.
    """
    begin = first * args.stride - args.padding
    seen = (count - 1) * args.stride + args.reach
    copied = begin < 0 or begin + seen > args.length
    size = bytes_of(zero)
    at = table
    for n in range(samples[0], samples[1]):
        source = sample_at(args, n)
        step = args.position_stride
        if copied:
            copy_padded_rows(
                source, args.channel_stride, args.row_stride, args.channels, begin, args.length, seen, place,
                args.by_channel != 0, zero,
            )  # fmt: skip
            source, step = place, args.stride * size * (1 if args.by_channel else args.channels)
            place += seen * args.channels * size
        else:
            source += begin * args.row_stride
        for i in range(count):
            store_number(source + i * step, at, 0)
            at += 8
    return seen * size if copied else 0


@inner
def write_offsets(args: Any, table: int, apart: int, zero: Any) -> None:
    """Write each tap's offset from its position, in bytes: in the input or, unless ``apart`` is 0, in a copy."""
    size = bytes_of(zero)
    outer_stride, inner_stride = args.outer_stride, args.inner_stride
    if apart and args.by_channel:
        outer_stride, inner_stride = apart, args.dilation * size
    elif apart:
        outer_stride, inner_stride = args.dilation * args.channels * size, size
    at = table
    for a in range(args.outer):
        for b in range(args.inner):
            store_number(a * outer_stride + b * inner_stride, at, 0)
            at += 8
