"""Convolution, batch norm by the batch's statistics, ReLU and maximum pooling on the CPU.

torch convolves, in channels-last memory, where its kernels are fastest; the rest is one pass over the convolution and
one over the windows, and as many in the backward pass (:mod:`.norm_pool_kernel`). torch itself
passes over tensors of the convolution's size for mean and variance, norm, ReLU and pool, and for each of their
gradients.

A convolution with few taps costs less than memory that is fresh from the system. Such a one is computed again in the
backward pass, a few samples at a time in both (:func:`chunk_size`).
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from ..geometry import Convolution, Pool
from ..norm import Norm, NormSaved
from ..reference.conv_pool import is_channels_last
from .dense import DTYPES, address, argmax_integers, lane_count
from .dense_backward import LIKE
from .norm_pool_kernel import (
    NormPooling,
    finish_sums,
    finish_survey,
    normalise_samples,
    spread_samples,
    sum_samples,
    survey_samples,
)
from .runtime.threads import run, thread_count

__all__ = ["NormSaved", "backward", "empty_results", "forward"]

# Multiply-adds that a pass over one number of the convolution costs.
COST = 8

# Positions of a block: its rows stay in the first cache levels between the sums, the maxima and the gradient.
BLOCK_ROWS = 64

# Bytes from which a convolution may be computed again, and of a chunk of samples. So M5's first layer (124 MiB) takes
# 97 ms instead of 124, Basset's (85 MiB) 63 instead of 93, both of 80 taps or fewer. The first of a network on ECGs (23
# MiB), whose memory the C library keeps from step to step, takes 14.3 instead of 11.8.
LARGE, CHUNK = 2**25, 2**23

# Multiply-adds of a convolution's number up to which it is computed again rather than kept: with 480 of them, a
# layer of the network on ECGs, the whole then takes 1.2 times as long.
FEW_TAPS = 128


def forward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    norm: Norm,
    convolution: Convolution,
    pool: Pool | None,
    *,
    want_argmax: bool,
) -> tuple[Tensor, NormSaved]:
    """Return the result and what the backward pass needs: ``argmax`` and ``activation`` are empty if not wanted.

    ``values`` and ``argmax`` are ``(N, Q, padded)``, ``statistics`` ``(5, padded)``, ``activation`` is ``(N, T, O)``,
    empty also where it is to be computed again. The running statistics stay as they are.
    """
    samples, outputs = input.size(0), weight.size(0)
    layer = layer_of(input, weight, convolution, pool)
    like, (kind, argmax_like) = DTYPES[input.dtype], argmax_integers(layer.size - 1)
    rows, filters = channels_last(input), channels_last(weight)
    signs = input.new_zeros(layer.padded)
    signs[:outputs] = 1 if norm.weight is None else norm.weight.sign()
    values = input.new_empty(samples, layer.windows, layer.padded)
    argmax = input.new_empty(values.shape if want_argmax else 0, dtype=kind)
    gamma, beta = (None if one is None else one.contiguous() for one in (norm.weight, norm.bias))
    shifts = input.new_empty(samples, layer.padded)
    sums = input.new_empty(samples, 2, layer.padded, dtype=torch.float64)
    activation = input.new_empty(0)
    statistics = input.new_zeros(5, layer.padded)
    chunk = chunk_size(input, weight, layer)
    for guessing in (1, 0):  # the second survey, around the mean, is rarely needed
        for begin in range(0, samples, chunk):
            if guessing or chunk < samples:
                part = convolve(rows[begin : begin + chunk], filters, bias, convolution)
            places: tuple[int, ...] = (
                part.data_ptr(), signs.data_ptr(), values[begin:].data_ptr(),
                argmax[begin:].data_ptr() if want_argmax else 0, shifts[begin:].data_ptr(), sums[begin:].data_ptr(),
            )  # fmt: skip
            run(partial(survey_samples, layer, places, guessing, like, argmax_like), part.size(0), threads_of(part))
        places = shifts.data_ptr(), sums.data_ptr(), address(gamma), address(beta), statistics.data_ptr()
        if not finish_survey(layer, samples, places, float(norm.eps), like):
            break
    if want_argmax and chunk == samples:
        activation = part
    output = empty_output(input, layer, pool)
    places = values.data_ptr(), statistics[3].data_ptr(), statistics[4].data_ptr(), output.data_ptr()
    transposed = pool is not None and output.is_contiguous() and layer.windows > 1
    run(partial(normalise_samples, layer, places, int(transposed), like), samples, threads_of(values))
    return output, NormSaved(values, argmax, statistics, activation)


def empty_results(
    input: Tensor, weight: Tensor, convolution: Convolution, pool: Pool | None, *, want_argmax: bool
) -> tuple[Tensor, NormSaved]:
    """Return tensors of the shapes, strides and dtypes of :func:`forward`'s results."""
    layer = layer_of(input, weight, convolution, pool)
    samples = input.size(0)
    shape = samples, layer.windows, layer.padded
    kind, _ = argmax_integers.__wrapped__(layer.size - 1)  # without the cache: numbers may be symbols of a graph
    kept = want_argmax and chunk_size(input, weight, layer) == samples
    return empty_output(input, layer, pool), NormSaved(
        input.new_empty(shape),
        input.new_empty(shape if want_argmax else 0, dtype=kind),
        input.new_empty(5, layer.padded),
        input.new_empty((samples, layer.positions, layer.outputs) if kept else 0),
    )


def empty_output(input: Tensor, layer: NormPooling, pool: Pool | None) -> Tensor:
    """Return memory for the result."""
    if pool is None:
        return input.new_empty(input.size(0), layer.outputs)
    if is_channels_last(input) and not pool.contiguous:
        return input.new_empty(input.size(0), layer.windows, layer.outputs).transpose(1, 2)
    return input.new_empty(input.size(0), layer.outputs, layer.windows)


Gradients = tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None, Tensor | None]


def backward(
    gradient: Tensor,
    saved: NormSaved,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    convolution: Convolution,
    pool: Pool | None,
    *,
    wanted: tuple[bool, bool, bool, bool, bool],
) -> Gradients:
    """Return the gradients of input, weight, bias and the norm's weight and bias that are wanted, ``None`` for others.

    ``gradient``, of any strides, is the result's. The input's gradient is channels-last.
    """
    samples, outputs = input.size(0), weight.size(0)
    layer = layer_of(input, weight, convolution, pool)
    like = DTYPES[input.dtype]
    upstream = (gradient.unsqueeze(2) if pool is None else gradient).transpose(1, 2).contiguous()
    values, argmax, statistics, activation = saved
    sums = input.new_empty(samples, 2, layer.padded, dtype=torch.float64)
    places: tuple[int, ...] = tuple(one.data_ptr() for one in (upstream, values, statistics, sums))
    run(partial(sum_samples, layer, places, like), samples, threads_of(values))
    factors = input.new_zeros(4, layer.padded)
    finish_sums(layer, samples, (sums.data_ptr(), statistics.data_ptr(), factors.data_ptr()), like)
    dgamma, dbeta = (factors[i, :outputs].clone() if wanted[3 + i] else None for i in range(2))
    if not any(wanted[:3]):
        return None, None, None, dgamma, dbeta
    rows, filters = channels_last(input), channels_last(weight)
    stride, (padding, _), dilation, groups = convolution
    chunk = samples if activation.numel() else chunk_size(input, weight, layer)
    dx = input.new_empty(samples, input.size(2), input.size(1)) if wanted[0] and chunk < samples else None
    dw = input.new_zeros(weight.shape) if wanted[1] else None
    db = input.new_zeros(outputs) if wanted[2] else None
    for begin in range(0, samples, chunk):
        few = rows[begin : begin + chunk]
        part = activation if activation.numel() else convolve(few, filters, bias, convolution)
        spread = part.new_empty(part.shape)
        tensors = part, spread, upstream[begin:], values[begin:], argmax[begin:], statistics, factors
        places = tuple(one.data_ptr() for one in tensors)
        run(partial(spread_samples, layer, places, like, LIKE[argmax.dtype]), part.size(0), threads_of(part))
        if db is not None:  # torch's convolution would take as long for it as for the weight
            db += spread.sum((0, 1))
        if not (wanted[0] or wanted[1]):
            continue
        found = torch.ops.aten.convolution_backward(
            spread.transpose(1, 2).unsqueeze(2), few, filters, None, [1, stride], [0, padding], [1, dilation], False,
            [0, 0], groups, [wanted[0], wanted[1], False],
        )  # fmt: skip
        if dx is not None:
            dx[begin : begin + chunk] = found[0].squeeze(2).transpose(1, 2)
        elif wanted[0]:
            dx = found[0].squeeze(2).transpose(1, 2).contiguous()
        if dw is not None:
            dw += found[1].squeeze(2)
    return None if dx is None else dx.transpose(1, 2), dw, db, dgamma, dbeta


def layer_of(input: Tensor, weight: Tensor, convolution: Convolution, pool: Pool | None) -> NormPooling:
    """Return the sizes of a call."""
    positions, outputs = convolution.output_length(input.size(2), weight.size(2)), weight.size(0)
    size, stride, padding, dilation = (positions, positions, 0, 1) if pool is None else pool[:4]
    windows = 1 if pool is None else pool.output_length(positions)
    if padding == 0 and dilation * (size - 1) < stride:
        hops = max(BLOCK_ROWS // stride, 1)
        rows = hops * stride
    else:
        hops, rows = windows, positions
    lanes = lane_count(DTYPES[input.dtype])
    padded = -(-outputs // lanes) * lanes
    return NormPooling(positions, outputs, padded, windows, size, stride, padding, dilation, rows, hops)


def chunk_size(input: Tensor, weight: Tensor, layer: NormPooling) -> int:
    """Return how many samples are convolved at a time: all, where the convolution is kept for the backward pass."""
    sample = layer.positions * layer.outputs * input.itemsize
    if weight.size(1) * weight.size(2) > FEW_TAPS or sample * input.size(0) < LARGE:
        return input.size(0)
    return max(CHUNK // sample, min(8, input.size(0)))


def channels_last(tensor: Tensor) -> Tensor:
    """Return ``(N, C, L)`` as an image ``(N, C, 1, L)`` that torch takes for channels-last, whatever its sizes."""
    samples, channels, length = tensor.shape
    rows = tensor.detach().transpose(1, 2).contiguous()
    return rows.as_strided((samples, channels, 1, length), (channels * length, 1, channels * length, channels))


def convolve(rows: Tensor, filters: Tensor, bias: Tensor | None, convolution: Convolution) -> Tensor:
    """Return the convolution ``(N, T, O)``, contiguous."""
    stride, (padding, _), dilation, groups = convolution
    found = torch.conv2d(rows, filters, bias, (1, stride), (0, padding), (1, dilation), groups)
    return found.squeeze(2).transpose(1, 2).contiguous()


def threads_of(tensor: Tensor) -> int:
    """Return the number of threads for a pass over a tensor whose samples are the parts."""
    return thread_count(tensor.size(0), tensor.numel() * COST)
