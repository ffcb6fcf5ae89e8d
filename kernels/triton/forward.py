"""Convolution, bias, ReLU and maximum pooling in one pass over memory, on a GPU: the forward pass.

The activation does not exist in memory, see :mod:`.device.conv_pool` for how, unless windows overlap so much that it
had better be computed once and stored (:mod:`.pooling`). Inputs are read in place through their
strides; sums are float32, products of float32 are TF32 or exact as torch's switch for convolutions says. Letters are
those of the reference, whose results these are but for rounding.

``argmax``, kept for the backward pass only, holds for every window the position of its maximum, counted from
the window's beginning in steps of its dilation, or -1 where the activation is 0 and no gradient flows. It is
``(N, Q, O)``, ``(N, 1, O)`` for the global maximum; integers as narrow as the window allows.

A call is one launch, after another one that repacks the weights if there are many; windows that overlap take more.
Nothing waits for the device, and nothing is allocated but the results, the packed weights and such an activation.

Where these kernels are slow: fewer than 16 output channels cost as much as 16; windows that overlap are convolved anew
for each, or the activation is written and read; the global maximum of few samples keeps few multiprocessors busy; in an
``(N, C, L)`` input the positions of neighbouring windows lie apart, so that loads are narrow.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..geometry import Convolution, Pool
from ..plans import GPU, pools_apart
from . import split
from .configurations import Forward, Layer, forward_configuration
from .groups import Access, Blocks, Filters, Steps, windows_alone
from .launch import Layout, architecture, argmax_dtype, device_code, kind_of, on_device, precision, processors
from .pooling import POSITIONS, launch_pool
from .replay import compute, empty, launch, replayed
from .rows import Rows

__all__ = [
    "argmax_format",
    "describe",
    "is_padded",
    "launch_global",
    "launch_over_weights",
    "launch_windows",
    "neighbours",
    "new_argmax",
]

PITCH = 16  # rows of packed weights begin at multiples of so many numbers
FEW = {True: 8192, False: 1024}  # more weights than these are packed, where programs keep them and where they do not
NEAR_BYTES = 8  # loads of at most so many bytes go through the L1 cache
GROUP = 16  # rows of a global maximum's tile that are of one sample
NARROW = 48  # sums a thread, up to which a multiprocessor runs 16 warps at once, else 12
WARPS = {True: 16, False: 12}
# Weights that a program repacks and sums, and partial sums of each that it reads at once. 264 splits of jena1 took 40
# us by 256 x 16 and 5.5 by 64 x 64; of 396, seven steps of 36 programs 12, caches empty.
WEIGHTS, SPLITS = 32, 128


def launch_windows(
    rows: Rows,
    weight: Tensor,
    bias: Tensor | None,
    convolution: Convolution,
    pool: Pool,
    *,
    want_argmax: bool,
    last: bool,
) -> tuple[Tensor, Tensor | None]:
    """Return the pooled activation of rows and, if wanted, ``argmax``; channels-last if ``last``."""
    outputs, channels, size = weight.shape
    positions = convolution.output_length(rows.length, size)
    windows = pool.output_length(positions)
    source, layout = rows.source, cached_layout(rows)
    if last:
        out = empty(source, (rows.samples, windows, outputs)).transpose(1, 2)
    else:
        out = empty(source, (rows.samples, outputs, windows))
    argmax = new_argmax(rows, outputs, windows, pool.size - 1) if want_argmax else None
    if not out.numel():
        return out, argmax
    if pools_apart(GPU[kind_of(weight.dtype)], windows_alone(pool), channels * size):
        activation, _ = launch_windows(rows, weight, bias, convolution, POSITIONS, want_argmax=False, last=True)
        with on_device(source):
            launch_pool(activation, out, argmax, pool, last=last)
        return out, argmax
    phase_step = pool.dilation * convolution.stride
    # A row of the input serves two phases only where these are as far apart as two of the kernel's positions.
    sharing = pool.size if phase_step == convolution.dilation else 1
    padded = is_padded(convolution, pool)
    layer = describe(rows, weight, sharing, padded)
    tile = forward_configuration(layer)
    count = rows.samples * windows
    tiles, tiles_o = -(-count // tile.block_m), -(-outputs // tile.block_o)
    steps = split.steps_of(tile, layer, pool.size)
    splits = rows.mode != "tokens" and split.serves(tiles * tiles_o, steps, source.device)
    with on_device(source):
        resident = keeps_weights(tile, channels) and not splits
        filters, pitch = packed(weight, resident, layer.columns)
        weights = Filters(channels, outputs, size, pitch, pitch * layer.columns)
        if splits:
            sums = split.launch_sums(rows, filters, weights, layer, layout, convolution)
            split.launch_pool(sums, neighbours(bias), out, argmax, positions, pool, last=last)
            return out, argmax
        programs = programs_of(tile, resident, tiles, source.device)
        launch(
            device_code("conv_pool").forward_windows_kernel, (programs * tiles_o,),
            source, filters, neighbours(bias), out, argmax, count, windows, positions, *rows.arguments(layout),
            W=weights,
            STEPS=Steps(
                -pool.padding * convolution.stride - convolution.padding[0], phase_step, convolution.dilation,
                pool.stride * convolution.stride,
            ),
            POOL=windows_alone(pool), ROWS=Access(rows.mode, layout.align, is_dense(layout, channels)),
            TILE=Blocks(tile.block_m, tile.block_o, tile.block_r, phases=tile.phases, resident=resident),
            PRODUCTS=layer.products, CHECK=padded or pool.size % tile.phases > 0, OUT_LAST=last,
            num_warps=tile.num_warps, num_stages=tile.num_stages,
        )  # fmt: skip
    return out, argmax


def launch_global(
    rows: Rows, weight: Tensor, bias: Tensor | None, convolution: Convolution, *, want_argmax: bool
) -> tuple[Tensor, Tensor | None]:
    """Return the global maximum of rows and, if wanted, ``argmax``."""
    outputs, channels, size = weight.shape
    positions = convolution.output_length(rows.length, size)
    source, layout = rows.source, cached_layout(rows)
    out = empty(source, (rows.samples, outputs))
    argmax = new_argmax(rows, outputs, 1, positions - 1) if want_argmax else None
    if not out.numel():
        return out, argmax
    sharing = 0 if convolution.stride == convolution.dilation else -1
    layer = describe(rows, weight, sharing, convolution.padding != (0, 0))
    tile = forward_configuration(layer)
    group = min(GROUP, tile.block_m) if tile.phases > 1 else tile.block_m
    tiles, tiles_o = -(-rows.samples // (tile.block_m // group)), -(-outputs // tile.block_o)
    steps = split.steps_of(tile, layer, -(-positions // group))
    splits = rows.mode != "tokens" and split.serves(tiles * tiles_o, steps, source.device)
    with on_device(source):
        resident = keeps_weights(tile, channels) and not splits
        filters, pitch = packed(weight, resident, layer.columns)
        weights = Filters(channels, outputs, size, pitch, pitch * layer.columns)
        if splits:
            sums = split.launch_sums(rows, filters, weights, layer, layout, convolution)
            split.launch_pool_globally(sums, neighbours(bias), out, argmax, positions)
            return out, argmax
        programs = programs_of(tile, resident, tiles, source.device)
        launch(
            device_code("conv_pool").forward_global_kernel, (programs * tiles_o,),
            source, filters, neighbours(bias), out, argmax, rows.samples, positions, *rows.arguments(layout),
            W=weights,
            STEPS=Steps(-convolution.padding[0], convolution.stride, convolution.dilation),
            ROWS=Access(rows.mode, layout.align, is_dense(layout, channels)),
            TILE=Blocks(tile.block_m, tile.block_o, tile.block_r, phases=tile.phases, group=group, resident=resident),
            PRODUCTS=layer.products,
            num_warps=tile.num_warps, num_stages=tile.num_stages,
        )  # fmt: skip
    return out, argmax


def argmax_format(
    samples: int,
    outputs: int,
    windows: int,
    greatest: int,
    dtype: torch.dtype,  # noqa: ARG001
) -> tuple[tuple[int, int, int], torch.dtype]:
    """Return the shape and dtype of ``argmax`` for tensors of ``dtype``; none of its numbers exceeds ``greatest``."""
    return (samples, windows, outputs), argmax_dtype(greatest, windows)


def packed(weight: Tensor, resident: bool, columns: bool) -> tuple[Tensor, int]:
    """Return weights for the kernels to read and, if they are packed, their pitch, else 0.

    Few weights are read as they are: to gather them costs less than a launch, if it is done once or they are very few.
    """
    if not columns and weight.numel() <= FEW[resident] and weight.is_contiguous():
        return weight, 0
    filters = launch_over_weights(weight, True, columns=columns)
    assert filters is not None
    return filters, filters.size(1)


def neighbours(bias: Tensor | None) -> Tensor | None:
    """Return a bias whose numbers are next to each other, as the kernels read them: itself, or a copy if they are not.

    A stride would be one more argument of four kernels; a copy is of ``O`` numbers, and only for a bias that is a view.
    """
    return bias if bias is None or bias.is_contiguous() else compute(Tensor.contiguous, bias)


def keeps_weights(tile: Forward, channels: int) -> bool:
    """Tell whether a program has all weights it needs at once, and may keep them from tile to tile."""
    return tile.phases > 1 and channels <= tile.block_r


def programs_of(tile: Forward, resident: bool, tiles: int, device: torch.device) -> int:
    """Return how many programs share so many tiles: all that the device runs at once, where they keep their weights."""
    if not resident:
        return tiles
    narrow = tile.phases * tile.block_m * tile.block_o <= NARROW * tile.num_warps * 32
    return min(tiles, max(1, WARPS[narrow] // tile.num_warps) * processors(device))


def cached_layout(rows: Rows) -> Layout:
    """Return the layout of the rows as they are to be loaded: those of tokens through the L1 cache.

    Asynchronous copies of 16 bytes pass it by. Half of all tokens of padded texts are one word, and all multiprocessors
    would read its row from the same lines of the L2 cache: 7.7 ms where rows of their own take 0.37 (imdb1, H100).
    """
    layout = rows.layout
    align = min(layout.align, NEAR_BYTES // rows.source.element_size())
    if rows.mode != "tokens" or layout.align == align:
        return layout
    times = layout.align // align
    return layout._replace(stride_n=layout.stride_n * times, stride_l=layout.stride_l * times, align=align)


def is_dense(layout: Layout, channels: int) -> bool:
    """Tell whether a position's channels begin where those of the position before end."""
    return layout.stride_l * layout.align == channels


@replayed
def launch_over_weights(
    weight: Tensor,
    wants_packed: bool,
    partials: Tensor | None = None,
    splits: int = 0,
    dw: Tensor | None = None,
    db: Tensor | None = None,
    *,
    columns: bool = False,
) -> Tensor | None:
    """Return weights as ``(O, K * C)`` or, if ``columns``, ``(K * C, O)``, and sum ``partials`` into gradients.

    Rows are padded to an aligned pitch, those of ``columns`` with zeros, and rounded to TF32 where tensor cores would
    cut them, so that no tile has to. Whatever of that is wanted is one launch. ``partials`` holds ``splits`` sums of
    ``(O, K, C)`` weights and ``(O,)``.
    """
    outputs, channels, size = weight.shape
    pitch = -(-(outputs if columns else channels * size) // PITCH) * PITCH
    packed = empty(weight, (channels * size if columns else outputs, pitch)) if wants_packed else None
    if packed is None and dw is None and db is None:
        return None
    numbers = max(weight.numel() + outputs, channels * size * pitch if columns and wants_packed else 0)
    launch(
        device_code("weights").weights_kernel, (-(-numbers // WEIGHTS),),
        weight, packed, partials, dw, db, *weight.stride(), splits,
        C=channels, O=outputs, K=size, PITCH=pitch,
        PACK=wants_packed, COLUMNS=columns, ROUND=wants_packed and cuts(weight),
        WANT_W=dw is not None, WANT_B=db is not None, BLOCK=WEIGHTS, BLOCK_S=SPLITS, num_warps=4,
    )  # fmt: skip
    return packed


def is_padded(convolution: Convolution, pool: Pool) -> bool:
    """Tell whether windows or the kernel's positions may lie outside the input."""
    return convolution.padding != (0, 0) or pool.padding > 0 or pool.ceil_mode


def cuts(weight: Tensor) -> bool:
    """Tell whether the products of weights are of TF32 and of hardware that cuts, where it should round."""
    return (
        weight.dtype == torch.float32
        and precision(weight.dtype) == "tf32"
        and architecture(weight.device).startswith("sm_")
    )


def describe(rows: Rows, weight: Tensor, phases: int, padded: bool) -> Layer:
    """Return what the kernels' configurations depend on."""
    kind = kind_of(rows.source.dtype)
    outputs, channels, size = weight.shape
    is_tokens, target = rows.mode == "tokens", architecture(rows.source.device)
    return Layer(kind, channels, outputs, size, phases, padded, is_tokens, target)


def new_argmax(rows: Rows, outputs: int, windows: int, greatest: int) -> Tensor:
    """Return memory for ``argmax``."""
    shape, dtype = argmax_format(rows.samples, outputs, windows, greatest, rows.source.dtype)
    return empty(rows.source, shape, dtype)
