"""Convolution, batch norm by the batch's statistics, ReLU and maximum pooling on a GPU.

torch convolves. Of what is behind, nothing of the convolution's size is written: it is read once for mean and variance,
and once for norm, ReLU and pool (:mod:`.device.norm_pool`). The backward pass reads it once more and writes its
gradient; for the norm's own gradients it reads what was kept of the windows.

``values``, ``argmax`` and the convolution have channels next to each other in memory where the input has, positions
where it has not. ``argmax`` is as in :mod:`.forward`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..geometry import Convolution, Pool
from ..norm import Norm, NormSaved
from ..reference.conv_pool import convolved, is_channels_last
from .backward import UNBOUNDED, overlap
from .configurations import power_of_two
from .forward import neighbours
from .groups import windows_alone
from .launch import argmax_dtype, device_code, on_device, processors
from .replay import compute, empty, launch, replayed

__all__ = ["NormSaved", "backward", "empty_results", "forward"]

# Numbers of a tile, whose channels are neighbours or positions are: 16 or 8 for each of 128 threads. With 16, addresses
# of positions, 64 bits each, took up to 186 registers.
NUMBERS = {True: 2048, False: 1024}
NEIGHBOURS = {True: 64, False: 128}  # channels of a tile whose channels are neighbours, positions of the others'
MOST_ROWS = 128  # positions of a tile whatever the channels
# Programs of a sum for each multiprocessor, whose loads together cover the memory's latency; sums that are joined at
# once, of so many channels.
PROGRAMS, SPLITS, CHANNELS = 8, 256, 8


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
    """Return the result and what the backward pass needs: but for ``statistics`` empty unless ``want_argmax``.

    ``input`` is ``(N, C, L)`` of float32, float16 or bfloat16. ``values`` and ``argmax`` are ``(N, Q, O)`` for a
    channels-last input, else ``(N, O, Q)``; ``activation`` is ``(N, T, O)`` or ``(N, O, 1, T)``: by its axes the
    backward pass tells which. ``values`` of windows without a gradient are 0. ``statistics`` are ``(5, O)``, float32.
    The running statistics stay as they are. Of a channel with a number that is not finite everything is NaN.
    """
    output, *saved = _forward(
        input, weight, bias, norm.weight, norm.bias, float(norm.eps), convolution, pool, want_argmax
    )
    return output, NormSaved(*saved)


@replayed
def _forward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    gamma: Tensor | None,
    beta: Tensor | None,
    eps: float,
    convolution: Convolution,
    pool: Pool | None,
    want_argmax: bool,
) -> tuple[Tensor, ...]:
    (samples, outputs), last = (input.size(0), weight.size(0)), is_channels_last(input)
    positions, windows = lengths_of(input, weight, convolution, pool)
    y = compute(_convolution, input, weight, bias, convolution, last)
    rows, channels = tile_of(outputs, last)
    tiles_o = -(-outputs // channels)
    splits, tiles_of_split = splits_of(samples * -(-positions // rows), tiles_o, input.device)
    partials = empty(input, (splits, 3, outputs), torch.float32)
    statistics = empty(input, (5, outputs), torch.float32)
    out_last = last and (pool is None or not pool.contiguous)
    output = empty(input, (samples, windows, outputs) if out_last else (samples, outputs, windows))
    kept = kept_shape(samples, windows, outputs, last) if want_argmax else (0,)
    values = empty(input, kept)
    argmax = empty(input, kept, kept_dtype(positions, pool))
    code, tile = device_code("norm_pool"), {"LAST": last, "M": rows, "CHANNELS": channels}
    into = (output, values, argmax) if want_argmax else (output, None, None)
    with on_device(input):
        launch(
            code.survey_kernel, (splits * tiles_o,),
            y, partials, samples, positions, tiles_of_split, O=outputs, **tile, num_warps=4,
        )  # fmt: skip
        launch(
            code.finish_survey_kernel, (-(-outputs // CHANNELS),),
            partials, neighbours(gamma), neighbours(beta), statistics, splits, eps,
            O=outputs, SPLITS=SPLITS, CHANNELS=CHANNELS, num_warps=4,
        )  # fmt: skip
        if pool is None:
            launch(
                code.normalise_globally_kernel, (samples * tiles_o,),
                y, statistics, *into, positions, O=outputs, **tile, num_warps=4,
            )  # fmt: skip
        else:
            launch(
                code.normalise_windows_kernel, (samples * -(-windows // rows) * tiles_o,),
                y, statistics, *into, positions, windows,
                O=outputs, POOL=windows_alone(pool), OUT_LAST=out_last, **tile, num_warps=4,
            )  # fmt: skip
    if pool is None:
        output = output.view(samples, outputs)
    elif out_last:
        output = output.transpose(1, 2)
    return output, values, argmax, statistics, y if want_argmax else empty(input, (0,))


def empty_results(
    input: Tensor, weight: Tensor, convolution: Convolution, pool: Pool | None, *, want_argmax: bool
) -> tuple[Tensor, NormSaved]:
    """Return tensors of the shapes, strides and dtypes of :func:`forward`'s results."""
    (samples, outputs), last = (input.size(0), weight.size(0)), is_channels_last(input)
    positions, windows = lengths_of(input, weight, convolution, pool)
    if pool is None:
        output = input.new_empty(samples, outputs)
    elif last and not pool.contiguous:
        output = input.new_empty(samples, windows, outputs).transpose(1, 2)
    else:
        output = input.new_empty(samples, outputs, windows)
    kept = kept_shape(samples, windows, outputs, last) if want_argmax else (0,)
    activation = (samples, positions, outputs) if last else (samples, outputs, 1, positions)
    return output, NormSaved(
        input.new_empty(kept),
        input.new_empty(kept, dtype=kept_dtype(positions, pool)),
        input.new_empty(5, outputs, dtype=torch.float32),
        input.new_empty(activation if want_argmax else (0,)),
    )


Gradients = tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None, Tensor | None]


@replayed
def _backward(
    gradient: Tensor,
    values: Tensor,
    argmax: Tensor,
    statistics: Tensor,
    activation: Tensor,
    input: Tensor,
    weight: Tensor,
    convolution: Convolution,
    pool: Pool | None,
    wanted: tuple[bool, ...],
) -> tuple[Tensor | None, ...]:
    last, (samples, outputs) = activation.dim() == 3, (input.size(0), weight.size(0))
    positions, windows = activation.size(1 if last else 3), values.size(1 if last else 2)
    rows, channels = tile_of(outputs, last)
    tiles_o = -(-outputs // channels)
    splits, tiles_of_split = splits_of(samples * -(-windows // rows), tiles_o, input.device)
    partials = empty(input, (splits, 2, outputs), torch.float32)
    dgamma, dbeta = (empty(input, (outputs,), torch.float32) for _ in range(2))
    upstream = gradient.unsqueeze(2) if pool is None else gradient
    upstream = upstream.transpose(1, 2) if last else upstream
    if not upstream.is_contiguous():
        upstream = compute(Tensor.contiguous, upstream)
    code, tile = device_code("norm_pool"), {"LAST": last, "M": rows, "CHANNELS": channels}
    with on_device(input):
        launch(
            code.sum_windows_kernel, (splits * tiles_o,),
            upstream, values, argmax, statistics, partials, samples, windows, tiles_of_split,
            O=outputs, **tile, num_warps=4,
        )  # fmt: skip
        launch(
            code.finish_sums_kernel, (-(-outputs // CHANNELS),),
            partials, dgamma, dbeta, splits, O=outputs, SPLITS=SPLITS, CHANNELS=CHANNELS, num_warps=4,
        )  # fmt: skip
        found: dict[int, Tensor] = {}
        if any(wanted[:3]):
            dy = empty(activation, tuple(activation.shape))
            seen = Pool(UNBOUNDED, UNBOUNDED) if pool is None else windows_alone(pool)
            launch(
                code.spread_kernel, (samples * -(-positions // rows) * tiles_o,),
                activation, upstream, argmax, statistics, dgamma, dbeta, dy, positions, windows,
                1 / (samples * positions), O=outputs, POOL=seen, OVERLAP=overlap(seen), **tile, num_warps=4,
            )  # fmt: skip
            mask = wanted[:3]
            made = compute(_gradients, dy, input, weight, convolution, mask)
            found = dict(zip((i for i in range(3) if mask[i]), made, strict=True))
    return *(found.get(i) for i in range(3)), dgamma if wanted[3] else None, dbeta if wanted[4] else None


def backward(
    gradient: Tensor,
    saved: NormSaved,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,  # noqa: ARG001
    convolution: Convolution,
    pool: Pool | None,
    *,
    wanted: tuple[bool, bool, bool, bool, bool],
) -> Gradients:
    """Return the gradients of input, weight, bias and the norm's weight and bias that are wanted, ``None`` for others.

    ``gradient``, of any strides, is the result's. The input's gradient is channels-last; those of the norm are float32.
    """
    dx, dw, db, dgamma, dbeta = _backward(gradient, *saved, input, weight, convolution, pool, tuple(wanted))
    return dx, dw, db, dgamma, dbeta


def _convolution(input: Tensor, weight: Tensor, bias: Tensor | None, convolution: Convolution, last: bool) -> Tensor:
    """Return torch's convolution as ``activation``: copied only if torch lays it out otherwise."""
    y = convolved(input, weight, bias, convolution)
    return y.transpose(1, 2).contiguous() if last else y.contiguous().unsqueeze(2)


def _gradients(
    dy: Tensor, input: Tensor, weight: Tensor, convolution: Convolution, mask: tuple[bool, ...]
) -> tuple[Tensor, ...]:
    """Return torch's gradients of input, weight and bias that ``mask`` names; the input's is channels-last."""
    stride, (padding, _), dilation, groups = convolution
    dx, dw, db = torch.ops.aten.convolution_backward(
        dy.transpose(1, 2) if dy.dim() == 3 else dy.squeeze(2), input, weight, [weight.size(0)], [stride], [padding],
        [dilation], False, [0], groups, list(mask),
    )  # fmt: skip
    dx = dx.transpose(1, 2).contiguous().transpose(1, 2) if mask[0] else None
    dw = dw.contiguous() if mask[1] else None
    return tuple(one for one, want in zip((dx, dw, db), mask, strict=True) if want)


def lengths_of(input: Tensor, weight: Tensor, convolution: Convolution, pool: Pool | None) -> tuple[int, int]:
    """Return the numbers of the convolution's positions and of windows."""
    positions = convolution.output_length(input.size(2), weight.size(2))
    return positions, 1 if pool is None else pool.output_length(positions)


def kept_shape(samples: int, windows: int, outputs: int, last: bool) -> tuple[int, int, int]:
    """Return the shape of ``values`` and ``argmax``."""
    return (samples, windows, outputs) if last else (samples, outputs, windows)


def kept_dtype(positions: int, pool: Pool | None) -> torch.dtype:
    """Return the dtype of ``argmax``."""
    return argmax_dtype(positions - 1, 1) if pool is None else argmax_dtype(pool.size - 1, 2)


def tile_of(outputs: int, last: bool) -> tuple[int, int]:
    """Return a tile's positions (or windows) and channels: the same for any length."""
    if last:
        channels = min(power_of_two(outputs), NEIGHBOURS[True])
        return min(NUMBERS[True] // channels, MOST_ROWS), channels
    rows = NEIGHBOURS[False]
    return rows, min(power_of_two(outputs), NUMBERS[False] // rows)


def splits_of(tiles: int, tiles_o: int, device: torch.device) -> tuple[int, int]:
    """Return how many programs share the tiles of each block of channels, and how many tiles one has at most."""
    each = -(-tiles // min(tiles, max(1, PROGRAMS * processors(device) // tiles_o)))
    return -(-tiles // each), each
