"""Predictions of a trained model for the rows of a series, in the series' own units, and their picture."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from seqconv.data.series_csv import CsvRows
from seqconv.experiments.description import check_description
from seqconv.experiments.jena import BUILD
from seqconv.files import atomic_write
from seqconv.sliding import Stream
from seqconv.training import CheckpointError, load_checkpoint, load_weights

__all__ = ["Predictor", "plot_predictions"]

# Windows of a model that cannot slide that are evaluated at a time.
WINDOWS = 1024


class Predictor:
    """A model of ``seqconv train jena``: rows in, predictions of the target out, in the order of time.

    ``path`` is the folder of the run, whose best epoch counts, or one of its checkpoints. ``columns`` are the
    measurements that it takes, and ``reading`` tells how files of them are read. A prediction is for the row that comes
    ``ahead`` rows later, after ``ahead_time``. It needs the last ``rows`` rows, each ``row`` after the one before: at
    any other distance in time a new series begins. A failed measurement takes its column's last good value, since the
    next one is not known yet, to which training draws a line; ``failed`` counts them.

    Raises :class:`~seqconv.training.CheckpointError` for a checkpoint that holds no such model, and ``ValueError`` for
    one that describes its model wrongly.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        path = Path(path)
        checkpoint = path / "best.pt" if path.is_dir() else path
        about = load_checkpoint(checkpoint).get("description")
        if about is None:
            raise CheckpointError(
                f"{checkpoint} must be of a run of seqconv train jena: it does not tell which series its model is for"
            )
        if not isinstance(about, dict):
            raise ValueError(
                f"{checkpoint} describes its model wrongly: a description must be a dictionary, "
                f"got {type(about).__name__}"
            )
        if about.get("version") != 1:
            raise CheckpointError(
                f"{checkpoint} must describe its model in the form of version 1, got {about.get('version')!r}"
            )
        check_description(about, checkpoint)
        self.columns: tuple[str, ...] = tuple(about["columns"])
        self.target: str = about["target"]
        self.target_column = self.columns.index(self.target)
        self.reading: dict[str, Any] = {**about["reading"]}
        self.mean, self.std = np.array(about["mean"]), np.array(about["std"])
        self.sentinel, self.sentinels = about["sentinel"], about["sentinels"]
        length, step = about["lookback"] // about["step"], about["step"]
        self.rows = (length - 1) * step + 1
        self.row = np.timedelta64(about["row_ns"], "ns")
        self.ahead = about["lookback"] + about["delay"] - (length - 1) * step
        self.ahead_time = self.ahead * self.row
        model = BUILD[about["model"]](len(self.columns)).eval()
        load_weights(model, checkpoint)
        window = {"columns": len(self.columns), "length": length, "step": step}
        self.stream: Stream | _WindowByWindow
        try:
            self.stream = Stream(model, layout="NLC", **window)
        except ValueError:  # a model of which windows share nothing
            self.stream = _WindowByWindow(model, **window)
        self.last_time: np.datetime64 | None = None
        self.last_good = np.full(len(self.columns), np.nan)
        self.failed = 0

    def extend(self, rows: CsvRows) -> NDArray[np.float64]:
        """Take the series' next rows; return the predictions that each of them makes, NaN where it makes none."""
        values = self._filled(rows.values)
        series = torch.from_numpy(((values - self.mean) / self.std).astype(np.float32))
        times = rows.times if self.last_time is None else np.insert(rows.times, 0, self.last_time)
        begins = np.flatnonzero(np.diff(times) != self.row) + (self.last_time is None)
        self.last_time = rows.times[-1]
        found: NDArray[np.float64] = np.full(len(values), np.nan)
        for begin, end in zip([0, *begins], [*begins, len(values)], strict=True):
            if begin in begins:
                self.stream.reset()
            if begin == end:
                continue
            outputs = self.stream.extend(series[begin:end])
            if outputs is not None:
                found[end - len(outputs) : end] = outputs.numpy()
        found *= self.std[self.target_column]
        found += self.mean[self.target_column]
        return found

    def _filled(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the values with failed measurements replaced as far as training replaced them."""
        values = np.concatenate([self.last_good[None], values])
        if self.sentinels != "keep":
            values[values == self.sentinel] = np.nan
        failed = np.isnan(values)
        self.failed += int(failed[1:].sum())
        if self.sentinels == "interpolate":
            good = np.maximum.accumulate(np.where(failed, 0, np.arange(len(values))[:, None]))
            values = np.take_along_axis(values, good, axis=0)
            self.last_good = values[-1]
        return values[1:]


class _WindowByWindow:
    """What :class:`~seqconv.Stream` does, for a model that computes each window by itself."""

    def __init__(self, model: nn.Module, *, columns: int, length: int, step: int) -> None:
        self.model, self.columns, self.span, self.step = model, columns, (length - 1) * step, step
        self.reset()

    def reset(self) -> None:
        self.rows = torch.empty(0, self.columns)

    def extend(self, rows: Tensor) -> Tensor | None:
        self.rows = torch.cat([self.rows, rows])
        count = len(self.rows) - self.span
        if count <= 0:
            return None
        windows = self.rows.unfold(0, self.span + 1, 1)[:, :, :: self.step].transpose(1, 2)
        with torch.no_grad():
            found = torch.cat([self.model(part.contiguous()) for part in windows.split(WINDOWS)])
        self.rows = self.rows[count:]
        return found


def plot_predictions(
    predictor: Predictor,
    times: NDArray[np.datetime64],
    measured: NDArray[np.float64],
    predicted: NDArray[np.float64],
    rows: int,
    path: str | os.PathLike[str],
) -> None:
    """Draw the last ``rows`` measurements of the target, and the predictions at the times they are for, to ``path``.

    ``predicted`` are those that the rows at ``times`` made, some of them before the first that is drawn.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
    from matplotlib.figure import Figure

    picture = Figure(figsize=(10, 4.5), layout="constrained")
    FigureCanvasAgg(picture)
    axes = picture.subplots()
    measured = np.where(measured == predictor.sentinel, np.nan, measured)
    shown, due = times[-rows:], times + predictor.ahead_time
    later = due >= shown[0]
    for label, x, y in (("measured", shown, measured[-rows:]), ("predicted", due[later], predicted[later])):
        gaps = np.flatnonzero(np.diff(x) != predictor.row) + 1  # the line breaks there
        axes.plot(np.insert(x, gaps, x[gaps]), np.insert(y, gaps, np.nan), label=label, linewidth=1.2)
    axes.axvline(times[-1], color="grey", linestyle=":", linewidth=1)
    locator = AutoDateLocator()
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))
    axes.set_ylabel(predictor.target)
    axes.grid(alpha=0.3)
    picture.legend(loc="outside right center")
    picture.suptitle(f"{predictor.target}, predicted {in_words(predictor.ahead_time)} ahead")
    with atomic_write(path) as temporary:
        picture.savefig(temporary, dpi=120)


def in_words(time: np.timedelta64) -> str:
    """Return a time as a number of the largest unit of which it is at least two."""
    seconds = time / np.timedelta64(1, "s")
    units = {"days": 86_400, "hours": 3600, "minutes": 60}
    name = next((name for name, size in units.items() if seconds >= 2 * size), None)
    return f"{seconds / units[name]:.4g} {name}" if name else f"{seconds:.4g} seconds"
