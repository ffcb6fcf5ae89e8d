"""The generator of the notebook *Sequence processing with convnets*, trait by trait."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from seqconv.data.arguments import integer
from seqconv.data.gathering import gather_rows, load_kernels
from seqconv.data.windows import column_position
from seqconv.data.windows_series import rows_and_names

__all__ = ["seed_generator"]


def seed_generator(
    data: Any,
    lookback: int,
    delay: int,
    min_index: int,
    max_index: int | None,
    shuffle: bool = False,
    batch_size: int = 128,
    step: int = 6,
    *,
    target_column: int | str = 1,
    seed: int | None = None,
    output: str = "torch",
    corrected: bool = False,
    backend: str = "auto",
) -> Iterator[tuple[Any, Any]]:
    """Return an endless iterator of ``(samples, targets)`` as the notebook's R function ``generator`` gives them.

    Arguments are the R function's, with rows counted from 0: R's ``min_index = 1, max_index = 200`` are 0 and 199, and
    ``max_index=None`` is R's ``NULL``, the last row but ``delay + 1``. What it does, and a reader might not expect:

    - Row ``row`` gives ``S = lookback // step`` samples from ``row - lookback`` to ``row``, both included and evenly
      spaced, so that the spacing is ``lookback / (S - 1)`` and not ``step``; fractional rows are truncated. With
      ``S = 1`` the one sample is row ``row - lookback``.
    - The target is column ``target_column`` of row ``row + delay``, which may lie behind ``max_index``.
    - In order, a batch has ``batch_size + 1`` rows, and the walk goes back to row ``min_index + lookback`` once the
      batch would reach ``max_index``, so that the last rows may never come.
    - With ``shuffle`` a batch is ``batch_size`` rows of ``min_index + lookback .. max_index`` without replacement,
      drawn anew for each batch, so that a pass does not hold every row once. ``seed=None`` draws the seed from
      torch's global generator; the numbers are NumPy's, not R's.

    ``corrected=True`` is the function as the book's erratum has it: the samples lie from ``row - lookback`` to ``row -
    1``, so that "now" is none of them, spaced by ``(lookback - 1) / (S - 1)``, and a batch in order has ``batch_size``
    rows, fewer only where the whole range has fewer.

    For each window once a pass, evenly spaced by ``step``, take :class:`seqconv.data.SlidingWindows`.

    ``data`` is ``(R, C)`` of float32 or float64, as SlidingWindows' series. Yields samples ``(B, S, C)`` and targets
    ``(B,)`` of its dtype, tensors or, with ``output="numpy"``, arrays. Raises ``TypeError`` and ``ValueError`` at the
    call, for arguments of wrong type or out of range. ``backend`` is SlidingWindows' own.
    """
    series, names = rows_and_names(data)
    rows = len(series)
    step = integer("step", step, 1)
    lookback = integer("lookback", lookback, step)
    delay = integer("delay", delay, -lookback)
    first = integer("min_index", min_index, 0) + lookback
    last = rows - delay - 2 if max_index is None else integer("max_index", max_index, 0)
    batch_size = integer("batch_size", batch_size, 1)
    column = column_position(target_column, series.shape[1], names)
    if output not in ("torch", "numpy"):
        raise ValueError(f"output must be 'torch' or 'numpy', got {output!r}")
    if not first <= last < rows - max(delay, 0):
        raise ValueError(
            f"max_index must lie within min_index + lookback to the last row with a target, {first} to "
            f"{rows - 1 - max(delay, 0)}, got {last}"
        )
    if shuffle and batch_size > last - first + 1:
        raise ValueError(f"batch_size must be at most the {last - first + 1} rows to draw from, got {batch_size}")
    if seed is not None:
        seed = integer("seed", seed, 0)
    elif shuffle:
        seed = int(torch.randint(2**62, ()))
    if shuffle:
        chosen = shuffled_rows(first, last, batch_size, seed or 0)
    else:
        chosen = rows_in_order(first, last, batch_size, batch_size if corrected else batch_size + 1)
    span = lookback - 1 if corrected else lookback
    return batches_of(series, chosen, lookback, span, lookback // step, delay, column, output, load_kernels(backend))


def rows_in_order(first: int, last: int, batch_size: int, count: int) -> Iterator[NDArray[np.int64]]:
    """Yield ``count`` rows a batch, walking from ``first`` towards ``last`` again and again."""
    row = first
    while True:
        if row + batch_size >= last:
            row = first
        rows = np.arange(row, min(row + count - 1, last) + 1)
        yield rows
        row += len(rows)


def shuffled_rows(first: int, last: int, batch_size: int, seed: int) -> Iterator[NDArray[np.int64]]:
    """Yield batches of different rows within ``first .. last``."""
    random = np.random.default_rng(seed)
    while True:
        yield first + random.choice(last - first + 1, batch_size, replace=False)


def batches_of(
    series: NDArray[Any],
    chosen: Iterator[NDArray[np.int64]],
    lookback: int,
    span: int,
    samples: int,
    delay: int,
    column: int,
    output: str,
    backend: str,
) -> Iterator[tuple[Any, Any]]:
    """Yield the samples and targets of each batch of rows."""
    columns = np.arange(series.shape[1])
    for rows in chosen:
        inputs = np.empty((len(rows), samples, len(columns)), series.dtype)
        targets = np.empty((len(rows), 1, 1), series.dtype)
        gather_rows(series, time_indices(rows - lookback, span, samples), columns, inputs, backend=backend)
        gather_rows(series, rows[:, None] + delay, columns[column : column + 1], targets, backend=backend)
        targets = targets[:, 0, 0]
        yield (inputs, targets) if output == "numpy" else (torch.from_numpy(inputs), torch.from_numpy(targets))


def time_indices(first: NDArray[np.int64], span: int, samples: int) -> NDArray[np.int64]:
    """Return ``(B, S)``: R's ``seq(first, first + span, length.out = samples)``, truncated."""
    # R counts from 1, and near a whole number the rounding of the sum, hence the row, depends on that.
    begin = (first + 1)[:, None].astype(np.float64)
    indices = begin + np.arange(samples) * (span / max(samples - 1, 1))
    if samples > 1:
        indices[:, -1] = first + span + 1
    return indices.astype(np.int64) - 1
