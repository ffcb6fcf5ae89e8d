"""Convolution, bias, ReLU and maximum pooling in one pass over memory, compiled for the CPU: the forward pass.

A chunk of positions is convolved into a scratch that stays in the first-level cache, a register tile of positions x
output channels at a time, and pooled from there: the activation never reaches memory. Inputs are read in place through
their strides; a padded convolution reads a padded copy. Letters are those of the reference, whose results these are but
for rounding. Not served (see :func:`refuse`): more than one group, dtypes other than float32 and float64.

``argmax``, kept for the backward pass only, holds for every window the number of the position that won, counted from
the window's beginning in steps of its dilation, or -1 where the activation is 0 and no gradient flows. It is
``(N, Q, O)``, its rows padded to whole vectors; integers as narrow as the window allows.

Where these kernels are slow: output channels fill vectors, so one alone costs as much as a vector of them; windows that
overlap by more than a chunk are convolved anew in each chunk; positions between windows are convolved for nothing; the
global maximum of a single sample keeps one thread busy for every 32 output channels (in float32 with AVX-512).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numba import njit
from torch import Tensor

from ..geometry import Convolution, Pool
from ..reference.conv_pool import is_channels_last
from .compilation import compiled
from .simd import (
    REGISTERS,
    accumulate_taps,
    broadcast,
    bytes_of,
    either,
    greater,
    is_nan,
    lanes,
    load,
    load_codes,
    load_number,
    select,
    store,
    store_codes,
    store_first,
    store_number,
)
from .threads import run, share, thread_count

__all__ = ["argmax_format", "conv1d_relu_global_max_pool1d_forward", "conv1d_relu_max_pool1d_forward", "refuse"]

DTYPES = {torch.float32: np.float32(0), torch.float64: np.float64(0)}
CODES: list[tuple[torch.dtype, Any]] = [
    (torch.int8, np.int8(0)),
    (torch.int16, np.int16(0)),
    (torch.int32, np.int32(0)),
]

# Positions of a register tile two vectors wide. With 32 registers 14 x 2 sums, 2 weights and the input fill all but
# one: 250 of 258 GFLOP/s on one core of a Zen 5, whose multiply-adds need 2 x 4 sums under way. With 16, 6 x 2.
TILE = 14 if REGISTERS.number == 32 else 6
VECTORS = 2

# So many taps are summed in registers before their sum is added to the others. A single sum over imdb1's 896 taps has
# three times the rounding error of torch's, blocks of 128 have less than twice; they cost 5 % of imdb1's speed. A
# block's weights, 16 KiB, stay in the first cache for a whole chunk.
TAPS = 128

# Work that threads share is cut into so many blocks a thread: one that the system holds up leaves its rest to others.
BLOCKS = 8

# A chunk spans about so many positions: 16 KiB of scratch.
CHUNK = 128


class Layer(NamedTuple):
    """What the kernels need to know of a call. Strides are in bytes, a position's is that of the convolution."""

    samples: int
    positions: int
    outputs: int
    outer: int
    inner: int
    sample_stride: int
    position_stride: int
    outer_stride: int
    inner_stride: int
    pool_size: int
    pool_stride: int
    pool_padding: int
    pool_dilation: int
    windows: int
    chunk: int
    rows: int
    out_sample_stride: int
    out_channel_stride: int
    out_window_stride: int


def conv1d_relu_max_pool1d_forward(
    input: Tensor, weight: Tensor, bias: Tensor | None, convolution: Convolution, pool: Pool, *, want_argmax: bool
) -> tuple[Tensor, Tensor | None]:
    """Return the reference's ``conv1d_relu_max_pool1d`` and, if wanted, ``argmax``. The arguments must be checked.

    ``input`` ``(N, C, L)``, ``weight`` ``(O, C, K)``, ``bias`` ``(O,)`` or ``None``; the result is ``(N, O, Q)`` in the
    input's memory format. A window without a position, which ``ceil_mode`` can leave, is minus infinity.
    """
    channels_last = is_channels_last(input)
    positions = convolution.output_length(input.size(2), weight.size(2))
    windows, outputs = pool.output_length(positions), weight.size(0)
    if channels_last:
        out = input.new_empty(input.size(0), windows, outputs).transpose(1, 2)
    else:
        out = input.new_empty(input.size(0), outputs, windows)
    limit = (pool.size - 1) if want_argmax else None
    return out, _forward(input, weight, bias, convolution, pool, positions, out, limit)


def conv1d_relu_global_max_pool1d_forward(
    input: Tensor, weight: Tensor, bias: Tensor | None, convolution: Convolution, *, want_argmax: bool
) -> tuple[Tensor, Tensor | None]:
    """Return the reference's ``conv1d_relu_global_max_pool1d``, ``(N, O)``, and, if wanted, ``argmax``."""
    positions = convolution.output_length(input.size(2), weight.size(2))
    out = input.new_empty(input.size(0), weight.size(0))
    limit = positions - 1 if want_argmax else None
    return out, _forward(input, weight, bias, convolution, None, positions, out.unsqueeze(2), limit)


def refuse(input: Tensor, weight: Tensor, bias: Tensor | None, convolution: Convolution, *_pool: Pool) -> str | None:  # noqa: ARG001
    """Return why the kernels cannot serve a call, or ``None``."""
    if input.device.type != "cpu":
        return f"it serves tensors on the CPU, got one on {input.device}"
    if input.dtype not in DTYPES:
        return f"it serves float32 and float64, got {input.dtype}"
    if convolution.groups != 1:
        return f"it serves one group, got {convolution.groups}"
    if not weight.numel():
        return f"it serves at least one channel, got a weight of shape {tuple(weight.shape)}"
    if input.size(2) + sum(convolution.padding) > np.iinfo(np.int32).max:
        return f"it serves fewer than 2**31 positions, got {input.size(2)}"
    return None


def argmax_format(
    samples: int, outputs: int, windows: int, greatest: int, dtype: torch.dtype
) -> tuple[tuple[int, int, int], torch.dtype]:
    """Return the shape and dtype of ``argmax`` for tensors of ``dtype``; no winner's number exceeds ``greatest``."""
    kind = next(kind for kind, code in CODES if greatest <= np.iinfo(code).max)
    return (samples, windows, padded_outputs(outputs, DTYPES[dtype])), kind


def _forward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    convolution: Convolution,
    pool: Pool | None,
    positions: int,
    out: Tensor,
    limit: int | None,
) -> Tensor | None:
    padded = pad(input, convolution)
    layer = describe(padded, weight, convolution, pool, positions, out)
    like = DTYPES[input.dtype]
    code, argmax = CODES[0][1], None
    if limit is not None:
        shape, kind = argmax_format(layer.samples, layer.outputs, layer.windows, limit, input.dtype)
        code = dict(CODES)[kind]
        argmax = torch.empty(shape, dtype=kind)
    if not out.numel():
        return argmax
    packed = pack(weight, bias, like, channels_first=channels_apart(padded, convolution))
    chunks = -(-layer.windows // layer.chunk)
    parts = layer.samples * (chunks if pool is not None else -(-layer.outputs // (VECTORS * lane_count(like))))
    taps = layer.outer * layer.inner
    threads = thread_count(parts, layer.samples * positions * layer.outputs * taps)
    kernel = forward_windows if pool is not None else forward_whole
    places = (padded.data_ptr(), packed.ctypes.data, out.data_ptr(), 0 if argmax is None else argmax.data_ptr())
    blocks = min(parts, threads * BLOCKS) if threads > 1 else 1

    def call(begin: int, end: int, threads: int, launch: int) -> None:
        kernel(layer, *places, parts, blocks, like, code, begin, end, threads, launch)

    run(call, blocks, threads)
    return argmax


def pad(input: Tensor, convolution: Convolution) -> Tensor:
    """Return the input with the convolution's zeros around it, in its memory format; itself where there are none."""
    if convolution.padding == (0, 0):
        return input
    if is_channels_last(input):
        return F.pad(input.transpose(1, 2), (0, 0, *convolution.padding)).transpose(1, 2)
    return F.pad(input, convolution.padding)


def channels_apart(input: Tensor, convolution: Convolution) -> bool:
    """Tell whether a channel's next number lies farther off than a kernel position's: taps are visited accordingly."""
    return input.stride(1) > input.stride(2) * convolution.dilation


def lane_count(like: Any) -> int:
    """Return how many such numbers a vector register holds."""
    return REGISTERS.width // int(like.itemsize)


def padded_outputs(outputs: int, like: Any) -> int:
    """Return the output channels rounded up to whole vectors."""
    return -(-outputs // lane_count(like)) * lane_count(like)


def describe(
    input: Tensor, weight: Tensor, convolution: Convolution, pool: Pool | None, positions: int, out: Tensor
) -> Layer:
    """Return the call's numbers; ``input`` is padded already, ``pool`` is ``None`` for the global maximum.

    Taps are visited as they lie in memory, channel after channel or kernel position after kernel position, and as one
    run where they are neighbours throughout.
    """
    samples, channels, _ = input.shape
    outputs, _, size = weight.shape
    itemsize = input.element_size()
    sample_stride, channel_stride, row_stride = (stride * itemsize for stride in input.stride())
    taps = ((size, row_stride * convolution.dilation), (channels, channel_stride))
    (outer, outer_stride), (inner, inner_stride) = taps[::-1] if channels_apart(input, convolution) else taps
    if outer_stride == inner * inner_stride:
        outer, inner = 1, outer * inner
    size, stride, padding, dilation = (positions, 1, 0, 1) if pool is None else pool[:4]
    windows = out.size(2)
    span = dilation * (size - 1) + 1
    if stride * TILE <= 2 * CHUNK and span <= CHUNK:
        chunk = TILE * max(1, round(CHUNK / (TILE * stride)))  # whole tiles where windows do not overlap
    else:
        chunk = max(1, 4 * span // stride)
    chunk = min(chunk, max(windows, 1))
    rows = CHUNK if pool is None else min((chunk - 1) * stride + span, positions)
    return Layer(
        samples, positions, outputs, outer, inner, sample_stride, row_stride * convolution.stride, outer_stride,
        inner_stride, size, stride, padding, dilation, windows, chunk, rows, *(s * itemsize for s in out.stride()),
    )  # fmt: skip


def pack(weight: Tensor, bias: Tensor | None, like: Any, *, channels_first: bool) -> Any:
    """Return weights panel by panel, tap by tap, outputs side by side and zeros behind the last; the bias comes first.

    A panel is ``VECTORS`` vectors of outputs wide, the last one a single vector if that holds the rest.
    """
    outputs, channels, size = weight.shape
    width = padded_outputs(outputs, like)
    packed = np.empty((channels * size + 1) * width, like.dtype)
    source = weight.detach()
    stride_output, stride_channel, stride_size = source.stride()
    outer, inner = (channels, size) if channels_first else (size, channels)
    strides = (stride_channel, stride_size) if channels_first else (stride_size, stride_channel)
    flat = source.as_strided((1 + sum((n - 1) * s for n, s in zip(source.shape, source.stride(), strict=True)),), (1,))
    shift = np.zeros(outputs, like.dtype) if bias is None else bias.detach().numpy()
    pack_panels(flat.numpy(), outputs, stride_output, outer, strides[0], inner, strides[1], shift, width, packed)
    return packed


@compiled
def pack_panels(
    weight: Any,
    outputs: int,
    output_stride: int,
    outer: int,
    outer_stride: int,
    inner: int,
    inner_stride: int,
    bias: Any,
    width: int,
    packed: Any,
) -> None:
    """Fill ``packed``: ``width`` shifts, then the panels. Strides count elements."""
    packed[:width] = 0
    packed[:outputs] = bias
    panel = VECTORS * lanes(packed[0])
    at = width
    for begin in range(0, width, panel):
        end = min(begin + panel, width)
        for a in range(outer):
            for b in range(inner):
                source = a * outer_stride + b * inner_stride
                for o in range(begin, end):
                    packed[at] = weight[source + o * output_stride] if o < outputs else 0
                    at += 1


@njit(inline="always")
def aligned(address: int) -> int:
    """Return the next address at which a vector begins a cache line."""
    return (address + 63) // 64 * 64


@njit
def windows_block(
    block: int,
    layer: Layer,
    x: int,
    packed: int,
    out: int,
    argmax: int,
    parts: int,
    blocks: int,
    zero: Any,
    code: Any,
) -> None:
    """Compute one of the ``blocks`` of all samples' chunks of windows, of which there are ``parts``.

    ``argmax`` 0 is not wanted; ``zero`` and ``code`` are zeros of the tensor's and the argmax's type.
    """
    begin, end = parts * block // blocks, parts * (block + 1) // blocks
    width = lanes(zero)
    size = bytes_of(zero)
    padded = (layer.outputs + width - 1) // width * width
    taps = layer.outer * layer.inner
    scratch = np.empty((layer.rows + layer.chunk) * VECTORS * width * size + 128, np.uint8)
    rows = aligned(scratch.ctypes.data)
    pooled = rows + layer.rows * VECTORS * width * size
    chunks = (layer.windows + layer.chunk - 1) // layer.chunk
    span = (layer.pool_size - 1) * layer.pool_dilation + 1
    for part in range(begin, end):
        n = part // chunks
        from_window = part % chunks * layer.chunk
        to_window = min(from_window + layer.chunk, layer.windows)
        first = max(from_window * layer.pool_stride - layer.pool_padding, 0)
        last = min((to_window - 1) * layer.pool_stride - layer.pool_padding + span, layer.positions)
        source = x + n * layer.sample_stride + first * layer.position_stride
        for o in range(0, padded, VECTORS * width):
            vectors = min(VECTORS, (padded - o) // width)
            weights = packed + (padded + o * taps) * size
            convolve(layer, rows, source, last - first, weights, packed + o * size, vectors, zero)
            for v in range(vectors):
                of = o + v * width
                outputs = min(width, layer.outputs - of)
                target = out + n * layer.out_sample_stride + of * layer.out_channel_stride
                for q in range(from_window, to_window):
                    start = q * layer.pool_stride - layer.pool_padding
                    skipped, inside = 0, layer.pool_size
                    if start < 0 or start + span > layer.positions:
                        skipped = max(-start + layer.pool_dilation - 1, 0) // layer.pool_dilation
                        ending = (layer.positions - start + layer.pool_dilation - 1) // layer.pool_dilation
                        inside = min(ending, layer.pool_size)
                    best = broadcast(-np.inf, zero)
                    at = broadcast(np.int32(-1), zero)
                    row = rows + ((start + skipped * layer.pool_dilation - first) * vectors + v) * width * size
                    for p in range(skipped, inside):
                        value = load(row, zero)
                        wins = either(greater(value, best), is_nan(value))  # of several NaN the last one, as in torch
                        best = select(wins, value, best)
                        at = select(wins, broadcast(np.int32(p), zero), at)
                        row += layer.pool_dilation * vectors * width * size
                    if inside > skipped:
                        alive = either(greater(best, broadcast(zero, zero)), is_nan(best))
                        best = select(alive, best, broadcast(zero, zero))
                        at = select(alive, at, broadcast(np.int32(-1), zero))
                    if argmax:
                        store_codes(at, argmax + ((n * layer.windows + q) * padded + of) * bytes_of(code), code)
                    if layer.out_channel_stride == size:
                        place = target + q * layer.out_window_stride
                        if outputs == width:
                            store(best, place)
                        else:
                            store_first(best, place, outputs)
                    else:
                        store(best, pooled + (q - from_window) * width * size)
                if layer.out_channel_stride != size:
                    place = target + from_window * layer.out_window_stride
                    transpose(pooled, to_window - from_window, outputs, place, layer.out_channel_stride, zero)
    scratch[0] = 0  # Numba frees an array after the last use of its name, whoever still has its address


@compiled
def forward_windows(
    layer: Layer,
    x: int,
    packed: int,
    out: int,
    argmax: int,
    parts: int,
    blocks: int,
    zero: Any,
    code: Any,
    begin: int,
    end: int,
    threads: int,
    launch: int,
) -> None:
    """Compute the blocks ``begin`` to ``end``; see :func:`windows_block`."""
    arguments = (layer, x, packed, out, argmax, parts, blocks, zero, code)
    share(begin, end, threads, launch, windows_block, arguments)


@njit
def whole_block(
    block: int,
    layer: Layer,
    x: int,
    packed: int,
    out: int,
    argmax: int,
    parts: int,
    blocks: int,
    zero: Any,
    code: Any,
) -> None:
    """Compute one of the ``blocks`` of all samples' panels of output channels, ``parts`` of them: the global maximum.

    The rest is as in :func:`windows_block`; a panel's positions are convolved and compared chunk by chunk.
    """
    begin, end = parts * block // blocks, parts * (block + 1) // blocks
    width = lanes(zero)
    size = bytes_of(zero)
    padded = (layer.outputs + width - 1) // width * width
    taps = layer.outer * layer.inner
    scratch = np.empty(layer.rows * VECTORS * width * size + 64, np.uint8)
    winners = np.empty(VECTORS * width, np.int32)
    maxima = np.empty(VECTORS * width * size, np.uint8)
    rows = aligned(scratch.ctypes.data)
    panels = (padded + VECTORS * width - 1) // (VECTORS * width)
    for part in range(begin, end):
        n, o = part // panels, part % panels * VECTORS * width
        vectors = min(VECTORS, (padded - o) // width)
        weights = packed + (padded + o * taps) * size
        for v in range(vectors):
            store(broadcast(-np.inf, zero), maxima.ctypes.data + v * width * size)
        winners[:] = -1
        for first in range(0, layer.positions, layer.rows):
            last = min(first + layer.rows, layer.positions)
            source = x + n * layer.sample_stride + first * layer.position_stride
            convolve(layer, rows, source, last - first, weights, packed + o * size, vectors, zero)
            for v in range(vectors):
                best = load(maxima.ctypes.data + v * width * size, zero)
                at = load_codes(winners.ctypes.data + v * width * 4, zero)
                for p in range(first, last):
                    value = load(rows + ((p - first) * vectors + v) * width * size, zero)
                    wins = select(is_nan(best), greater(best, best), either(greater(value, best), is_nan(value)))
                    best = select(wins, value, best)  # of several NaN the first one, as in torch
                    at = select(wins, broadcast(np.int32(p), zero), at)
                store(best, maxima.ctypes.data + v * width * size)
                store_codes(at, winners.ctypes.data + v * width * 4, np.int32(0))
        for v in range(vectors):
            best = load(maxima.ctypes.data + v * width * size, zero)
            at = load_codes(winners.ctypes.data + v * width * 4, zero)
            alive = either(greater(best, broadcast(zero, zero)), is_nan(best))
            of = o + v * width
            best = select(alive, best, broadcast(zero, zero))
            store_first(best, out + n * layer.out_sample_stride + of * size, min(width, layer.outputs - of))
            if argmax:
                at = select(alive, at, broadcast(np.int32(-1), zero))
                store_codes(at, argmax + (n * padded + of) * bytes_of(code), code)
    scratch[0] = 0  # Numba frees an array after the last use of its name, whoever still has its address


@compiled
def forward_whole(
    layer: Layer,
    x: int,
    packed: int,
    out: int,
    argmax: int,
    parts: int,
    blocks: int,
    zero: Any,
    code: Any,
    begin: int,
    end: int,
    threads: int,
    launch: int,
) -> None:
    """Compute the blocks ``begin`` to ``end``; see :func:`whole_block`."""
    arguments = (layer, x, packed, out, argmax, parts, blocks, zero, code)
    share(begin, end, threads, launch, whole_block, arguments)


@njit
def convolve(layer: Layer, rows: int, x: int, count: int, weights: int, bias: int, vectors: int, zero: Any) -> None:
    """Fill ``rows``, dense, with ``count`` positions x ``vectors`` of convolution and bias.

    Every block of taps is summed from 0 in registers before it is added, which keeps rounding errors small.
    """
    width = REGISTERS.width
    for i in range(count):
        for v in range(vectors):
            store(load(bias + v * width, zero), rows + (i * vectors + v) * width)
    outer, inner = max(1, min(TAPS // layer.inner, layer.outer)), min(layer.inner, TAPS)
    for a in range(0, layer.outer, outer):
        for b in range(0, layer.inner, inner):
            source = x + a * layer.outer_stride + b * layer.inner_stride
            panel = weights + (a * layer.inner + b) * vectors * width
            taps = (min(outer, layer.outer - a), min(inner, layer.inner - b))
            if vectors == VECTORS:
                convolve_block(layer, rows, source, count, taps, panel, zero, VECTORS)
            else:
                convolve_block(layer, rows, source, count, taps, panel, zero, 1)


@njit(inline="always")
def convolve_block(
    layer: Layer, rows: int, x: int, count: int, taps: Any, weights: int, zero: Any, vectors: int
) -> None:
    """Add a block of taps to all positions, in tiles of as equal sizes as there are: small tiles waste the CPU."""
    done = 0
    while done < count:
        rest = count - done
        tiles = (rest + TILE - 1) // TILE
        size = min((rest + tiles - 1) // tiles + 1, rest, TILE)
        target = rows + done * vectors * REGISTERS.width
        source = x + done * layer.position_stride
        step, outer, inner = layer.position_stride, layer.outer_stride, layer.inner_stride
        if TILE >= 14 and size >= 14:
            size = 14
            accumulate_taps(target, source, step, taps[0], outer, taps[1], inner, weights, zero, 14, vectors)
        elif TILE >= 12 and size >= 12:
            size = 12
            accumulate_taps(target, source, step, taps[0], outer, taps[1], inner, weights, zero, 12, vectors)
        elif TILE >= 10 and size >= 10:
            size = 10
            accumulate_taps(target, source, step, taps[0], outer, taps[1], inner, weights, zero, 10, vectors)
        elif TILE >= 8 and size >= 8:
            size = 8
            accumulate_taps(target, source, step, taps[0], outer, taps[1], inner, weights, zero, 8, vectors)
        elif size >= 6:
            size = 6
            accumulate_taps(target, source, step, taps[0], outer, taps[1], inner, weights, zero, 6, vectors)
        elif size >= 4:
            size = 4
            accumulate_taps(target, source, step, taps[0], outer, taps[1], inner, weights, zero, 4, vectors)
        elif size >= 2:
            size = 2
            accumulate_taps(target, source, step, taps[0], outer, taps[1], inner, weights, zero, 2, vectors)
        else:
            size = 1
            accumulate_taps(target, source, step, taps[0], outer, taps[1], inner, weights, zero, 1, vectors)
        done += size


@njit
def transpose(rows: int, count: int, outputs: int, out: int, channel_stride: int, zero: Any) -> None:
    """Copy ``outputs`` numbers of each of ``count`` rows, a vector apart, to channels of neighbouring positions."""
    size = bytes_of(zero)
    for o in range(outputs):
        for q in range(count):
            store_number(
                load_number(rows + q * REGISTERS.width + o * size, zero), out + o * channel_stride + q * size, zero
            )
