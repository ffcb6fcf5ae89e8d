"""A batch norm by the batch's statistics, ReLU and maximum pooling of a convolution on the device, and back.

A channel's numbers ``y`` become ``z = a y + b``, with ``a = gamma / sqrt(var + eps)`` and ``b = beta - a mean``, then
the greatest positive ``z`` of every window. With the gradient ``g`` of a window at the position of its maximum, 0
elsewhere, and ``x = (y - mean) / sqrt(var + eps)``, that of ``y`` is ``a (g - E[g] - x E[g x])``: the means are over
all positions of the batch, the sums in them over windows alone.

Naming is as in :mod:`.conv_pool`. A tile is of one sample: ``M`` positions, or windows, by ``CHANNELS`` channels. Where
channels are neighbours in memory (``LAST``) they are its columns, where positions are, these: loads are of neighbours
in either case. Shapes are written ``(M, O)`` for both. Arithmetic is float32, that on sums of programs float64.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .maxima import NOWHERE

__all__ = [
    "finish_sums_kernel",
    "finish_survey_kernel",
    "normalise_globally_kernel",
    "normalise_windows_kernel",
    "spread_kernel",
    "sum_windows_kernel",
    "survey_kernel",
]

# Numbers that differ from call to call.
SIZES = ["samples", "positions", "windows", "tiles_of_split", "splits", "eps", "share"]


@triton.jit
def of_rows(b: tl.tensor, LAST: tl.constexpr) -> tl.tensor:
    """Return ``(M,)`` numbers beside a tile."""
    return b[:, None] if LAST else b[None, :]


@triton.jit
def of_channels(b: tl.tensor, LAST: tl.constexpr) -> tl.tensor:
    """Return ``(O,)`` numbers beside a tile."""
    return b[None, :] if LAST else b[:, None]


@triton.jit
def filled(value: tl.constexpr, M: tl.constexpr, CHANNELS: tl.constexpr, LAST: tl.constexpr) -> tl.tensor:
    """Return a tile of one number."""
    ROWS: tl.constexpr = M if LAST else CHANNELS
    COLUMNS: tl.constexpr = CHANNELS if LAST else M
    return tl.full((ROWS, COLUMNS), value, tl.float32)


@triton.jit
def offsets(
    b_l: tl.tensor,  # (M,), or (M, O)
    b_o: tl.tensor,  # beside it
    length: tl.tensor,
    O: tl.constexpr,  # noqa: E741
    LAST: tl.constexpr,
) -> tl.tensor:
    """Return where numbers of a sample lie, ``(length, O)`` or ``(O, length)`` in memory."""
    return b_l.to(tl.int64) * O + b_o if LAST else b_o.to(tl.int64) * length + b_l


@triton.jit
def channels_of(i_tile: tl.tensor, O: tl.constexpr, CHANNELS: tl.constexpr) -> tl.tensor:  # noqa: E741
    """Return a tile's channels and which of them there are."""
    b_o = i_tile * CHANNELS + tl.arange(0, CHANNELS)
    return b_o, b_o < O


@triton.jit
def row_of(table: tl.tensor, row: tl.constexpr, b_o: tl.tensor, m_o: tl.tensor, O: tl.constexpr) -> tl.tensor:  # noqa: E741
    """Return channels' numbers in a row of a table ``(rows, O)`` of float32."""
    return tl.load(table + row * O + b_o, mask=m_o, other=0.0)


@triton.jit
def next_tile(i_n: tl.tensor, i_l: tl.tensor, length: tl.tensor, M: tl.constexpr) -> tl.tensor:
    """Return the sample and first position of the tile behind another: the next of its sample, or of the next one."""
    i_l += M
    ends = i_l >= length
    return tl.where(ends, i_n + 1, i_n), tl.where(ends, 0, i_l)


@triton.jit(do_not_specialize=SIZES)
def survey_kernel(
    y: tl.tensor,  # (N, T, O) or (N, O, T), contiguous, and so is all else
    partials: tl.tensor,  # (splits, 3, O) float32: a channel's count, mean and sum of squares around it
    samples: tl.int64,  # N
    positions: tl.int32,  # T
    tiles_of_split: tl.int32,
    O: tl.constexpr,  # noqa: E741
    LAST: tl.constexpr,
    M: tl.constexpr,
    CHANNELS: tl.constexpr,
) -> tl.tensor:
    """Survey a split of all tiles, by Welford's recurrence in every place of the tile and Chan's sum of the places.

    So neither a mean far from zero nor a number far from the others costs accuracy. Infinities make NaN of both.
    """
    TILES_O: tl.constexpr = (O + CHANNELS - 1) // CHANNELS
    AXIS: tl.constexpr = 0 if LAST else 1
    b_o, m_o = channels_of(tl.program_id(0) % TILES_O, O, CHANNELS)
    i_split = tl.program_id(0) // TILES_O
    tiles = (positions + M - 1) // M
    i_tile = i_split.to(tl.int64) * tiles_of_split
    i_n, i_t = i_tile // tiles, (i_tile % tiles).to(tl.int32) * M
    b_count = tl.zeros((M,), tl.float32)
    b_mean = filled(0.0, M, CHANNELS, LAST)
    b_squares = b_mean
    for _ in range(tiles_of_split):
        b_t = i_t + tl.arange(0, M)
        m_t = (b_t < positions) & (i_n < samples)
        b_at = offsets(of_rows(b_t, LAST), of_channels(b_o, LAST), positions, O, LAST)
        m = of_rows(m_t, LAST) & of_channels(m_o, LAST)
        b_y = tl.load(y + i_n * positions * O + b_at, mask=m, other=0.0).to(tl.float32)
        b_new = m_t.to(tl.float32)
        b_count += b_new
        b_apart = b_y - b_mean
        b_mean += b_apart * of_rows(b_new / tl.maximum(b_count, 1.0), LAST)
        b_squares += tl.where(m, b_apart * (b_y - b_mean), 0.0)
        i_n, i_t = next_tile(i_n, i_t, positions, M)
    count = tl.sum(b_count, axis=0)
    b_count = of_rows(b_count, LAST)
    b_all = tl.sum(b_mean * b_count, axis=AXIS) / count  # (O,)
    b_all += tl.sum((b_mean - of_channels(b_all, LAST)) * b_count, axis=AXIS) / count  # what the first sum rounded
    b_apart = b_mean - of_channels(b_all, LAST)
    b_squares = tl.sum(b_squares + b_apart * b_apart * b_count, axis=AXIS)
    p = partials + i_split.to(tl.int64) * (3 * O) + b_o
    tl.store(p, tl.zeros((CHANNELS,), tl.float32) + count, mask=m_o)
    tl.store(p + O, b_all, mask=m_o)
    tl.store(p + 2 * O, b_squares, mask=m_o)


@triton.jit(do_not_specialize=SIZES)
def finish_survey_kernel(
    partials: tl.tensor,  # (splits, 3, O)
    gamma: tl.tensor,  # (O,), or None
    beta: tl.tensor,  # (O,), or None
    statistics: tl.tensor,  # (5, O) float32
    splits: tl.int32,
    eps: tl.float32,
    O: tl.constexpr,  # noqa: E741
    SPLITS: tl.constexpr,  # at a time
    CHANNELS: tl.constexpr,
) -> tl.tensor:
    """Join the splits' surveys to ``CHANNELS`` channels' mean, variance, rstd, ``a`` and ``b``."""
    b_o, m_o = channels_of(tl.program_id(0), O, CHANNELS)
    b_count = tl.zeros((CHANNELS,), tl.float64)
    b_sum, b_squares = b_count, b_count
    for s0 in range(0, splits, SPLITS):
        p, m = splits_at(partials, s0, splits, b_o, m_o, 3 * O, SPLITS)
        b_numbers = tl.load(p, mask=m, other=0.0).to(tl.float64)
        b_count += tl.sum(b_numbers, axis=0)
        b_sum += tl.sum(b_numbers * tl.load(p + O, mask=m, other=0.0), axis=0)
    b_count = tl.where(m_o, b_count, 1.0)
    b_mean = b_sum / b_count
    for s0 in range(0, splits, SPLITS):
        p, m = splits_at(partials, s0, splits, b_o, m_o, 3 * O, SPLITS)
        b_apart = tl.load(p + O, mask=m, other=0.0).to(tl.float64) - b_mean[None, :]
        b_apart = b_apart * b_apart * tl.load(p, mask=m, other=0.0)
        b_squares += tl.sum(b_apart + tl.load(p + 2 * O, mask=m, other=0.0), axis=0)
    b_var = b_squares / b_count
    b_rstd = 1.0 / tl.sqrt(b_var + eps)
    b_a, b_b = b_rstd, -b_mean * b_rstd
    if gamma is not None:
        b_a = tl.load(gamma + b_o, mask=m_o, other=0.0).to(tl.float64) * b_rstd
        b_b = -b_mean * b_a
    if beta is not None:
        b_b += tl.load(beta + b_o, mask=m_o, other=0.0).to(tl.float64)
    p = statistics + b_o
    tl.store(p, b_mean.to(tl.float32), mask=m_o)
    tl.store(p + O, b_var.to(tl.float32), mask=m_o)
    tl.store(p + 2 * O, b_rstd.to(tl.float32), mask=m_o)
    tl.store(p + 3 * O, b_a.to(tl.float32), mask=m_o)
    tl.store(p + 4 * O, b_b.to(tl.float32), mask=m_o)


@triton.jit
def splits_at(
    partials: tl.tensor,
    s0: tl.tensor,
    splits: tl.tensor,
    b_o: tl.tensor,
    m_o: tl.tensor,
    PITCH: tl.constexpr,
    SPLITS: tl.constexpr,
) -> tl.tensor:
    """Return where channels' first numbers of the splits from ``s0`` on are, ``(SPLITS, O)``, and which there are."""
    b_s = s0 + tl.arange(0, SPLITS)
    return partials + b_s.to(tl.int64)[:, None] * PITCH + b_o[None, :], (b_s < splits)[:, None] & m_o[None, :]


@triton.jit
def keep(
    out: tl.tensor,
    values: tl.tensor,
    argmax: tl.tensor,  # or None, and values then, too
    b_best: tl.tensor,  # a block of windows
    b_argmax: tl.tensor,
    p_value: tl.tensor,  # where their maxima were found
    b_out: tl.tensor,
    b_kept: tl.tensor,
    m: tl.tensor,
) -> tl.tensor:
    """Store the positive parts of maxima and, where a gradient flows, their places and what the norm was given."""
    b_rounded = b_best.to(out.dtype.element_ty)
    alive = (b_rounded > 0.0) | (b_rounded != b_rounded)
    tl.store(out + b_out, tl.where(alive, b_rounded, 0.0), mask=m)
    if argmax is not None:
        tl.store(argmax + b_kept, tl.where(alive, b_argmax, -1).to(argmax.dtype.element_ty), mask=m)
        tl.store(values + b_kept, tl.load(p_value, mask=m & alive, other=0.0), mask=m)


@triton.jit(do_not_specialize=SIZES)
def normalise_windows_kernel(
    y: tl.tensor,  # (N, T, O) or (N, O, T)
    statistics: tl.tensor,  # (5, O)
    out: tl.tensor,  # (N, Q, O) or (N, O, Q)
    values: tl.tensor,  # in y's order, or None
    argmax: tl.tensor,  # in y's order, or None
    positions: tl.int32,  # T
    windows: tl.int32,  # Q
    O: tl.constexpr,  # noqa: E741
    POOL: tl.constexpr,  # a geometry.Pool
    LAST: tl.constexpr,
    OUT_LAST: tl.constexpr,
    M: tl.constexpr,
    CHANNELS: tl.constexpr,
) -> tl.tensor:
    """Normalise and pool ``M`` windows of a sample."""
    TILES_O: tl.constexpr = (O + CHANNELS - 1) // CHANNELS
    b_o, m_o = channels_of(tl.program_id(0) % TILES_O, O, CHANNELS)
    b_a = of_channels(row_of(statistics, 3, b_o, m_o, O), LAST)
    b_b = of_channels(row_of(statistics, 4, b_o, m_o, O), LAST)
    tiles = (windows + M - 1) // M
    i_rest = tl.program_id(0) // TILES_O
    i_n = (i_rest // tiles).to(tl.int64)
    b_q = i_rest % tiles * M + tl.arange(0, M)
    m_q = b_q < windows
    b_first = b_q * POOL.stride - POOL.padding
    y += i_n * positions * O
    b_best = filled(float("-inf"), M, CHANNELS, LAST)
    b_argmax = tl.zeros_like(b_best).to(tl.int32)
    for p in range(POOL.size):
        b_t = b_first + p * POOL.dilation
        m = of_rows(m_q & (b_t >= 0) & (b_t < positions), LAST) & of_channels(m_o, LAST)
        b_at = offsets(of_rows(b_t, LAST), of_channels(b_o, LAST), positions, O, LAST)
        b_z = tl.load(y + b_at, mask=m, other=0.0).to(tl.float32) * b_a + b_b
        replaces = ((b_z > b_best) | (b_z != b_z)) & m  # of several NaN the last one, as in torch
        b_best, b_argmax = tl.where(replaces, b_z, b_best), tl.where(replaces, p, b_argmax)
    b_at = offsets(
        of_rows(b_first, LAST) + b_argmax * POOL.dilation, of_channels(b_o, LAST), positions, O, LAST
    )  # fmt: skip
    b_kept = i_n * windows * O + offsets(of_rows(b_q, LAST), of_channels(b_o, LAST), windows, O, LAST)
    b_out = i_n * windows * O + offsets(of_rows(b_q, LAST), of_channels(b_o, LAST), windows, O, OUT_LAST)
    m = of_rows(m_q, LAST) & of_channels(m_o, LAST)
    keep(out, values, argmax, b_best, b_argmax, y + b_at, b_out, b_kept, m)


@triton.jit(do_not_specialize=SIZES)
def normalise_globally_kernel(
    y: tl.tensor,  # (N, T, O) or (N, O, T)
    statistics: tl.tensor,  # (5, O)
    out: tl.tensor,  # (N, O)
    values: tl.tensor,  # (N, O), or None
    argmax: tl.tensor,  # (N, O), or None
    positions: tl.int32,  # T
    O: tl.constexpr,  # noqa: E741
    LAST: tl.constexpr,
    M: tl.constexpr,
    CHANNELS: tl.constexpr,
) -> tl.tensor:
    """Normalise a sample and find its greatest numbers, of ``CHANNELS`` channels: ``M`` positions at a time."""
    TILES_O: tl.constexpr = (O + CHANNELS - 1) // CHANNELS
    AXIS: tl.constexpr = 0 if LAST else 1
    b_o, m_o = channels_of(tl.program_id(0) % TILES_O, O, CHANNELS)
    b_a = of_channels(row_of(statistics, 3, b_o, m_o, O), LAST)
    b_b = of_channels(row_of(statistics, 4, b_o, m_o, O), LAST)
    i_n = (tl.program_id(0) // TILES_O).to(tl.int64)
    y += i_n * positions * O
    b_best = filled(float("-inf"), M, CHANNELS, LAST)
    b_argmax = tl.zeros_like(b_best).to(tl.int32) + NOWHERE
    for t0 in range(0, positions, M):
        b_t = t0 + tl.arange(0, M)
        m = of_rows(b_t < positions, LAST) & of_channels(m_o, LAST)
        b_at = offsets(of_rows(b_t, LAST), of_channels(b_o, LAST), positions, O, LAST)
        b_z = tl.load(y + b_at, mask=m, other=0.0).to(tl.float32) * b_a + b_b
        replaces = ((b_z > b_best) | ((b_z != b_z) & (b_best == b_best))) & m  # of several NaN the first one
        b_best, b_argmax = tl.where(replaces, b_z, b_best), tl.where(replaces, of_rows(b_t, LAST), b_argmax)
    is_nan = b_best != b_best
    b_nan_at = tl.min(tl.where(is_nan, b_argmax, NOWHERE), axis=AXIS)  # (O,)
    b_most = tl.max(tl.where(is_nan, float("-inf"), b_best), axis=AXIS)
    b_at = tl.min(tl.where(b_best == of_channels(b_most, LAST), b_argmax, NOWHERE), axis=AXIS)
    b_at = tl.where(b_nan_at < NOWHERE, b_nan_at, b_at)
    b_most = tl.where(b_nan_at < NOWHERE, float("nan"), b_most)
    p_value = y + offsets(b_at, b_o, positions, O, LAST)
    keep(out, values, argmax, b_most, b_at, p_value, i_n * O + b_o, i_n * O + b_o, m_o)


@triton.jit(do_not_specialize=SIZES)
def sum_windows_kernel(
    gradient: tl.tensor,  # (N, Q, O) or (N, O, Q), and so are the next two
    values: tl.tensor,
    argmax: tl.tensor,
    statistics: tl.tensor,  # (5, O)
    partials: tl.tensor,  # (splits, 2, O) float32
    samples: tl.int64,  # N
    windows: tl.int32,  # Q
    tiles_of_split: tl.int32,
    O: tl.constexpr,  # noqa: E741
    LAST: tl.constexpr,
    M: tl.constexpr,
    CHANNELS: tl.constexpr,
) -> tl.tensor:
    """Sum the gradients ``g`` that flow, and ``g x``, over a split of all tiles."""
    TILES_O: tl.constexpr = (O + CHANNELS - 1) // CHANNELS
    AXIS: tl.constexpr = 0 if LAST else 1
    b_o, m_o = channels_of(tl.program_id(0) % TILES_O, O, CHANNELS)
    b_mean = of_channels(row_of(statistics, 0, b_o, m_o, O), LAST)
    b_rstd = of_channels(row_of(statistics, 2, b_o, m_o, O), LAST)
    i_split = tl.program_id(0) // TILES_O
    tiles = (windows + M - 1) // M
    i_tile = i_split.to(tl.int64) * tiles_of_split
    i_n, i_q = i_tile // tiles, (i_tile % tiles).to(tl.int32) * M
    b_sum = filled(0.0, M, CHANNELS, LAST)
    b_product = b_sum
    for _ in range(tiles_of_split):
        b_q = i_q + tl.arange(0, M)
        m = of_rows((b_q < windows) & (i_n < samples), LAST) & of_channels(m_o, LAST)
        b_at = i_n * windows * O + offsets(of_rows(b_q, LAST), of_channels(b_o, LAST), windows, O, LAST)
        m = m & (tl.load(argmax + b_at, mask=m, other=-1) >= 0)
        b_g = tl.load(gradient + b_at, mask=m, other=0.0).to(tl.float32)
        b_x = (tl.load(values + b_at, mask=m, other=0.0).to(tl.float32) - b_mean) * b_rstd
        b_sum += b_g
        b_product += tl.where(m, b_g * b_x, 0.0)
        i_n, i_q = next_tile(i_n, i_q, windows, M)
    p = partials + i_split.to(tl.int64) * (2 * O) + b_o
    tl.store(p, tl.sum(b_sum, axis=AXIS), mask=m_o)
    tl.store(p + O, tl.sum(b_product, axis=AXIS), mask=m_o)


@triton.jit(do_not_specialize=SIZES)
def finish_sums_kernel(
    partials: tl.tensor,  # (splits, 2, O)
    dgamma: tl.tensor,  # (O,) float32
    dbeta: tl.tensor,  # (O,) float32
    splits: tl.int32,
    O: tl.constexpr,  # noqa: E741
    SPLITS: tl.constexpr,  # at a time
    CHANNELS: tl.constexpr,
) -> tl.tensor:
    """Join the splits' sums of ``CHANNELS`` channels: they are the gradients of the norm's weight and bias."""
    b_o, m_o = channels_of(tl.program_id(0), O, CHANNELS)
    b_sum = tl.zeros((CHANNELS,), tl.float64)
    b_product = b_sum
    for s0 in range(0, splits, SPLITS):
        p, m = splits_at(partials, s0, splits, b_o, m_o, 2 * O, SPLITS)
        b_sum += tl.sum(tl.load(p, mask=m, other=0.0).to(tl.float64), axis=0)
        b_product += tl.sum(tl.load(p + O, mask=m, other=0.0).to(tl.float64), axis=0)
    tl.store(dbeta + b_o, b_sum.to(tl.float32), mask=m_o)
    tl.store(dgamma + b_o, b_product.to(tl.float32), mask=m_o)


@triton.jit(do_not_specialize=SIZES)
def spread_kernel(
    y: tl.tensor,  # (N, T, O) or (N, O, T)
    gradient: tl.tensor,  # (N, Q, O) or (N, O, Q)
    argmax: tl.tensor,  # likewise
    statistics: tl.tensor,  # (5, O)
    dgamma: tl.tensor,  # (O,): the sums of g x
    dbeta: tl.tensor,  # (O,): the sums of g
    dy: tl.tensor,  # as y
    positions: tl.int32,  # T
    windows: tl.int32,  # Q
    share: tl.float32,  # 1 / (N * T)
    O: tl.constexpr,  # noqa: E741
    POOL: tl.constexpr,  # a geometry.Pool
    OVERLAP: tl.constexpr,  # windows that may see a position
    LAST: tl.constexpr,
    M: tl.constexpr,
    CHANNELS: tl.constexpr,
) -> tl.tensor:
    """Write the convolution's gradient at ``M`` positions of a sample."""
    TILES_O: tl.constexpr = (O + CHANNELS - 1) // CHANNELS
    b_o, m_o = channels_of(tl.program_id(0) % TILES_O, O, CHANNELS)
    tiles = (positions + M - 1) // M
    i_rest = tl.program_id(0) // TILES_O
    i_n = (i_rest // tiles).to(tl.int64)
    b_t = i_rest % tiles * M + tl.arange(0, M)
    m_t = b_t < positions
    b_y_at = i_n * positions * O + offsets(of_rows(b_t, LAST), of_channels(b_o, LAST), positions, O, LAST)
    m_y = of_rows(m_t, LAST) & of_channels(m_o, LAST)
    b_mean = of_channels(row_of(statistics, 0, b_o, m_o, O), LAST)
    b_rstd = of_channels(row_of(statistics, 2, b_o, m_o, O), LAST)
    b_x = (tl.load(y + b_y_at, mask=m_y, other=0.0).to(tl.float32) - b_mean) * b_rstd
    b_product = of_channels(row_of(dgamma, 0, b_o, m_o, O), LAST) * share
    b_sum = of_channels(row_of(dbeta, 0, b_o, m_o, O), LAST) * share
    b_dy = -b_sum - b_x * b_product
    b_last = (b_t + POOL.padding) // POOL.stride  # of the windows that may see a position
    for i in range(OVERLAP):
        b_q = b_last - i
        b_step = b_t + POOL.padding - b_q * POOL.stride
        m_q = m_t & (b_q >= 0) & (b_q < windows) & (b_step % POOL.dilation == 0)
        m = of_rows(m_q, LAST) & of_channels(m_o, LAST)
        b_at = i_n * windows * O + offsets(of_rows(b_q, LAST), of_channels(b_o, LAST), windows, O, LAST)
        b_argmax = tl.load(argmax + b_at, mask=m, other=-1).to(tl.int32)
        m = b_argmax == of_rows(b_step // POOL.dilation, LAST)
        b_dy += tl.load(gradient + b_at, mask=m, other=0.0).to(tl.float32)
    b_a = of_channels(row_of(statistics, 3, b_o, m_o, O), LAST)
    tl.store(dy + b_y_at, (b_a * b_dy).to(dy.dtype.element_ty), mask=m_y)
