"""The kernels as operators of ``torch.library``: what ``torch.compile`` puts into its graphs.

An operator takes plain numbers: ``convolution`` is ``(stride, left padding, right padding, dilation)``, ``pool`` the
fields of a ``Pool``, as integers, empty for the global maximum. ``index`` are tokens or starts, ``None`` where the
source is the input itself; ``rows`` is empty then, ``(padding_idx,)`` or ``(-1,)`` of tokens, ``(length, step)`` of
windows. ``lengths`` is the source's. A result that is not wanted is an empty tensor.
"""

# ruff: noqa: ARG001  (a description of a result takes what its computation takes)

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from seqconv.functional import arguments, folded
from seqconv.functional.floors import floor
from seqconv.kernels.geometry import Convolution, Pool
from seqconv.kernels.reference.conv_pool import is_channels_last
from seqconv.kernels.source import Dense, Source, Tokens, Windows

__all__ = ["fused", "geometry_of", "numbers_of"]


def fused(
    backend: str,
    source: Source,
    weight: Tensor,
    bias: Tensor | None,
    convolution: Convolution,
    pool: Pool | None,
    folded_dtype: torch.dtype | None = None,
) -> Tensor:
    """Do what :func:`seqconv.functional.autograd.fused` does, as an operator."""
    index, rows = None, []
    if isinstance(source, Tokens):
        index, rows = source.tokens, [-1 if source.padding_idx is None else source.padding_idx]
    elif isinstance(source, Windows):
        index, rows = source.starts, [source.length, source.step]
    elif not isinstance(source, Dense):
        raise TypeError(f"source must be of a kind that the operator can be given, got {type(source).__name__}")
    numbers, pools = numbers_of(convolution, pool)
    differentiable = torch.is_grad_enabled() and any(
        one is not None and one.requires_grad for one in (source.values, weight, bias)
    )
    given = (
        source.values,
        weight,
        bias,
        index,
        source.lengths,
        backend,
        rows,
        numbers,
        pools,
        differentiable,
        folded_dtype,
    )
    output: Tensor = _conv_relu_pool(*given)[0]
    return output


def keeps_folded(source: Tensor) -> bool:
    """Tell whether a graph's calls may keep folded tables.

    On a GPU a table made in a graph's call may lie in a CUDA graph's own memory, and must not outlive the call.
    """
    return source.device.type == "cpu"


@torch.library.custom_op("seqconv::conv_relu_max_pool", mutates_args=())
def _conv_relu_pool(
    source: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    index: Tensor | None,
    lengths: Tensor | None,
    backend: str,
    rows: Sequence[int],
    convolution: Sequence[int],
    pool: Sequence[int],
    want_argmax: bool,
    folded_dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    given, geometry = _source(source, index, lengths, rows), geometry_of(convolution, pool)
    if index is not None:  # whose values were unknown to the graph
        _check(source, index, rows)
    if lengths is not None:
        arguments.lengths(lengths, source.device, given.samples, given.length)
    if not want_argmax and keeps_folded(source):
        output = folded.forward(backend, given, weight, bias, *geometry, folded_dtype)
        return output, output.new_empty(0, dtype=torch.int8)
    output, argmax = floor(backend).forward(given, weight, bias, *geometry, want_argmax=want_argmax)
    if not want_argmax:
        return output, output.new_empty(0, dtype=torch.int8)
    assert argmax is not None
    return output, argmax


@_conv_relu_pool.register_fake
def _(
    source: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    index: Tensor | None,
    lengths: Tensor | None,
    backend: str,
    rows: Sequence[int],
    convolution: Sequence[int],
    pool: Sequence[int],
    want_argmax: bool,
    folded_dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    given, (convolved, pooled) = _source(source, index, lengths, rows), geometry_of(convolution, pool)
    samples, outputs = given.samples, weight.size(0)
    positions = convolved.output_length(given.length, weight.size(2))
    if pooled is None:
        output = source.new_empty(samples, outputs)
        windows, largest = 1, positions - 1
    else:
        windows, largest = pooled.output_length(positions), pooled.size - 1
        if (index is not None or is_channels_last(source)) and not pooled.contiguous:
            output = source.new_empty(samples, windows, outputs).transpose(1, 2)
        else:
            output = source.new_empty(samples, outputs, windows)
    if not want_argmax:
        return output, source.new_empty(0, dtype=torch.int8)
    shape, dtype = floor(backend).argmax_format(samples, outputs, windows, largest, source.dtype)
    return output, source.new_empty(shape, dtype=dtype)


@torch.library.custom_op("seqconv::conv_relu_max_pool_backward", mutates_args=())
def _conv_relu_pool_backward(
    gradient: Tensor,
    argmax: Tensor,
    source: Tensor,
    weight: Tensor,
    index: Tensor | None,
    lengths: Tensor | None,
    backend: str,
    rows: Sequence[int],
    convolution: Sequence[int],
    pool: Sequence[int],
    wanted: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    given, geometry, want = _source(source, index, lengths, rows), geometry_of(convolution, pool), tuple(wanted)
    argmax = argmax.contiguous()  # hooks on saved tensors may have laid it out anew
    gradients = floor(backend).backward(gradient, argmax, given, weight, *geometry, wanted=want)
    ds, dw, db = (gradient.new_empty(0) if one is None else one for one in gradients)
    if wanted[0]:  # in the memory format that the graph was promised, whatever the kernel's own is
        if index is not None or source.is_contiguous():
            ds = ds.contiguous()
        else:
            ds = ds.transpose(1, 2).contiguous().transpose(1, 2)
    return ds, dw, db


@_conv_relu_pool_backward.register_fake
def _(
    gradient: Tensor,
    argmax: Tensor,
    source: Tensor,
    weight: Tensor,
    index: Tensor | None,
    lengths: Tensor | None,
    backend: str,
    rows: Sequence[int],
    convolution: Sequence[int],
    pool: Sequence[int],
    wanted: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    if index is not None or source.is_contiguous():
        ds = source.new_empty(source.shape)
    else:
        samples, channels, length = source.shape
        ds = source.new_empty(samples, length, channels).transpose(1, 2)
    shapes = (weight.shape, (weight.size(0),))
    dw, db = (weight.new_empty(shape if want else (0,)) for shape, want in zip(shapes, wanted[1:], strict=True))
    return ds if wanted[0] else source.new_empty(0), dw, db


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    source, weight, _, index, lengths, backend, rows, convolution, pool, *_ = inputs
    ctx.save_for_backward(source, weight, index, lengths, output[1])
    ctx.mark_non_differentiable(output[1])
    ctx.options = backend, rows, convolution, pool


def _differentiate(ctx: Any, gradient: Tensor, _: Any) -> tuple[Tensor | None, ...]:
    source, weight, index, lengths, argmax = ctx.saved_tensors
    wanted = list(ctx.needs_input_grad[:3])
    gradients = _conv_relu_pool_backward(gradient, argmax, source, weight, index, lengths, *ctx.options, wanted)
    given = (one if want else None for one, want in zip(gradients, wanted, strict=True))
    return *given, *(None,) * 8


_conv_relu_pool.register_autograd(_differentiate, setup_context=_setup_context)


def _source(source: Tensor, index: Tensor | None, lengths: Tensor | None, rows: Sequence[int]) -> Source:
    if index is None:
        return Dense(source, lengths)
    if len(rows) == 2:
        length, step = rows
        return Windows(source, index, length, step, lengths)
    return Tokens(index, source, None if rows[0] < 0 else rows[0], lengths)


def numbers_of(convolution: Convolution, pool: Pool | None) -> tuple[list[int], list[int]]:
    """Return a geometry as the numbers that an operator is given."""
    stride, (left, right), dilation, _ = convolution
    return [stride, left, right, dilation], [] if pool is None else [int(number) for number in pool]


def geometry_of(convolution: Sequence[int], pool: Sequence[int], groups: int = 1) -> tuple[Convolution, Pool | None]:
    """Return the geometry that such numbers stand for."""
    stride, left, right, dilation = convolution
    convolved = Convolution(stride, (left, right), dilation, groups)
    if not pool:
        return convolved, None
    size, pool_stride, padding, pool_dilation, *flags = pool
    return convolved, Pool(size, pool_stride, padding, pool_dilation, *map(bool, flags))


def _check(source: Tensor, index: Tensor, rows: Sequence[int]) -> None:
    if len(rows) == 2:
        arguments.row_index("starts", index, "series", source, reach=(rows[0] - 1) * rows[1])
    else:
        arguments.row_index("tokens", index, "table", source)
