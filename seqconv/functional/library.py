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
from seqconv.functional.operators import operator, refuse_to_differentiate
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
    given = source.values, weight, bias, index, source.lengths, backend, rows, *numbers_of(convolution, pool)
    output: Tensor
    if torch.is_grad_enabled() and any(one is not None and one.requires_grad for one in (source.values, weight, bias)):
        output = _differentiable(*given)[0]
    else:
        output = _undifferentiated(*given, folded_dtype)
    return output


def keeps_folded(source: Tensor) -> bool:
    """Tell whether a graph's calls may keep folded tables.

    On a GPU a table made in a graph's call may lie in a CUDA graph's own memory, and must not outlive the call.
    """
    return source.device.type == "cpu"


def _empty_output(
    source: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    index: Tensor | None,
    lengths: Tensor | None,
    backend: str,
    rows: Sequence[int],
    convolution: Sequence[int],
    pool: Sequence[int],
    folded_dtype: torch.dtype | None = None,
) -> Tensor:
    given, (convolved, pooled) = _source(source, index, lengths, rows), geometry_of(convolution, pool)
    samples, outputs = given.samples, weight.size(0)
    if pooled is None:
        return source.new_empty(samples, outputs)
    windows = pooled.output_length(convolved.output_length(given.length, weight.size(2)))
    if (index is not None or is_channels_last(source)) and not pooled.contiguous:
        return source.new_empty(samples, windows, outputs).transpose(1, 2)
    return source.new_empty(samples, outputs, windows)


@operator("conv_relu_max_pool", fake=_empty_output)
def _undifferentiated(
    source: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    index: Tensor | None,
    lengths: Tensor | None,
    backend: str,
    rows: Sequence[int],
    convolution: Sequence[int],
    pool: Sequence[int],
    folded_dtype: torch.dtype | None = None,
) -> Tensor:
    given, geometry = _checked(source, index, lengths, rows), geometry_of(convolution, pool)
    if keeps_folded(source):
        return folded.forward(backend, given, weight, bias, *geometry, folded_dtype)
    output: Tensor = floor(backend).forward(given, weight, bias, *geometry, want_argmax=False)[0]
    return output


def _empty_gradients(
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


@operator("conv_relu_max_pool_backward", fake=_empty_gradients, differentiate=refuse_to_differentiate)
def _backward(
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


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    source, weight, _, index, lengths, backend, rows, convolution, pool = inputs
    ctx.save_for_backward(source, weight, index, lengths, output[1])
    ctx.mark_non_differentiable(output[1])
    ctx.options = backend, rows, convolution, pool


def _differentiate(ctx: Any, gradient: Tensor, _: Any) -> tuple[Tensor | None, ...]:
    source, weight, index, lengths, argmax = ctx.saved_tensors
    wanted = list(ctx.needs_input_grad[:3])
    gradients = _backward(gradient, argmax, source, weight, index, lengths, *ctx.options, wanted)
    return *(one if want else None for one, want in zip(gradients, wanted, strict=True)), *(None,) * 6


def _empty_results(
    source: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    index: Tensor | None,
    lengths: Tensor | None,
    backend: str,
    rows: Sequence[int],
    convolution: Sequence[int],
    pool: Sequence[int],
) -> tuple[Tensor, Tensor]:
    output = _empty_output(source, weight, bias, index, lengths, backend, rows, convolution, pool)
    convolved, pooled = geometry_of(convolution, pool)
    length = _source(source, index, lengths, rows).length
    largest = (convolved.output_length(length, weight.size(2)) if pooled is None else pooled.size) - 1
    samples, outputs, windows = (*output.shape, 1)[:3]
    shape, dtype = floor(backend).argmax_format(samples, outputs, windows, largest, source.dtype)
    return output, source.new_empty(shape, dtype=dtype)


@operator(
    "conv_relu_max_pool_with_argmax", fake=_empty_results, differentiate=_differentiate, setup_context=_setup_context
)
def _differentiable(
    source: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    index: Tensor | None,
    lengths: Tensor | None,
    backend: str,
    rows: Sequence[int],
    convolution: Sequence[int],
    pool: Sequence[int],
) -> tuple[Tensor, Tensor]:
    given, geometry = _checked(source, index, lengths, rows), geometry_of(convolution, pool)
    found: tuple[Tensor, Tensor] = floor(backend).forward(given, weight, bias, *geometry, want_argmax=True)
    return found


def _checked(source: Tensor, index: Tensor | None, lengths: Tensor | None, rows: Sequence[int]) -> Source:
    """Return the source, what the graph did not know of it checked: the numbers of rows, and lengths."""
    given = _source(source, index, lengths, rows)
    if index is not None and len(rows) == 2:
        arguments.row_index("starts", index, "series", source, reach=(rows[0] - 1) * rows[1])
    elif index is not None:
        arguments.row_index("tokens", index, "table", source)
    if lengths is not None:
        arguments.lengths(lengths, source.device, given.samples, given.length)
    return given


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
