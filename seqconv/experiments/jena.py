"""The temperature task: how warm it is in 24 hours, from the last ten days of 14 measurements.

The same task on a CSV file of one's own counts in rows: its target so many rows ahead, from as many rows back.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch.nn.functional as F
from torch import nn

from seqconv import models
from seqconv.data import SeriesData, SlidingWindows, load_csv, load_jena
from seqconv.data.jena import TIMES
from seqconv.data.series import SENTINEL
from seqconv.data.sources import DataSource
from seqconv.experiments.task import Entry, Settings, Task, shared_out
from seqconv.training import mean_absolute_error

__all__ = ["BUILD", "load"]

# In rows of ten minutes: ten days back, one row an hour, a day ahead.
LOOKBACK, STEP, DELAY = 1440, 6, 144


def _dense(channels: int, *, backend: str = "auto", source: models.WindowSource | None = None) -> nn.Module:  # noqa: ARG001
    return models.Dense(LOOKBACK // STEP, channels, source=source)


# Arguments of load_csv that tell how a file is read, in training and in prediction.
READING = ("date_column", "date_format", "encoding", "separator", "decimal")

# The models that are trained: each is made of a number of channels, a backend and a source of windows.
BUILD: Mapping[str, Callable[..., nn.Module]] = {
    "convnet": models.JenaConvnet,
    "gru": models.JenaGRU,
    "gru_dropout": partial(models.JenaGRU, input_dropout=0.2, recurrent_dropout=0.2),
    "conv_gru": models.ConvGRU,
    "dense": _dense,
}


def load(
    settings: Settings,
    *,
    data_dir: str | os.PathLike[str] | None = None,
    source: DataSource = "auto",
    seed: int = 0,
    csv: Mapping[str, Any] | None = None,
) -> Task:
    """Return the task with its data loaded, standardised by the training rows' statistics.

    ``csv`` holds the arguments of :func:`seqconv.data.load_csv`, whose series then takes the place of Jena's.
    """
    data = load_jena(data_dir=data_dir, source=source) if csv is None else load_csv(**csv)
    channels = data.series.shape[1]

    def windows(rows: slice, *, shuffle: bool = False) -> SlidingWindows:
        return SlidingWindows(
            data.series,
            lookback=LOOKBACK,
            delay=DELAY,
            step=STEP,
            target_column=data.target_column,
            start=rows.start,
            stop=rows.stop,
            shuffle=shuffle,
            seed=seed,
            groups=data.groups,
            materialise=False,
            **shared_out(settings.batch_size, training=shuffle),
        )

    def reading() -> models.WindowSource:
        return models.WindowSource(series, LOOKBACK // STEP, STEP)

    subject, units = "Jena temperature in 24 hours", "degrees Celsius"
    if csv is not None:
        subject, units = f"{data.target} {DELAY} rows ahead", f"in the units of {data.target}"
    validation, test = windows(data.splits.validation), windows(data.splits.test)
    series = validation.series_tensor()
    return Task(
        name="jena",
        title=f"{subject}: mean absolute error, in standard deviations",
        source=data.source,
        synthetic=data.synthetic,
        train=lambda: windows(data.splits.train, shuffle=True),
        validation=validation,
        test=test,
        entries={
            **{name: _entry(build, channels, reading) for name, build in BUILD.items()},
            "temperature_now": Entry(
                lambda _backend: models.TemperatureNow(data.target_column, source=reading()), None
            ),
        },
        rival="gru",
        loss=F.l1_loss,
        metric=mean_absolute_error,
        settings=settings,
        units=units,
        in_units=data.in_units,
        description=described(data, csv),
    )


def _entry(build: Callable[..., nn.Module], channels: int, reading: Callable[[], models.WindowSource]) -> Entry:
    return Entry(lambda backend: build(channels, backend=backend, source=reading()))


def described(data: SeriesData, csv: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return what :class:`seqconv.experiments.prediction.Predictor` needs to know of a model's series."""
    given: dict[str, Any] = {**(csv or {}), "date_column": TIMES if data.date_column is None else (data.date_column,)}
    return {
        "version": 1,
        "task": "jena",
        "columns": list(data.columns),
        "target": data.target,
        "mean": data.mean.tolist(),
        "std": data.std.tolist(),
        "lookback": LOOKBACK,
        "step": STEP,
        "delay": DELAY,
        "row_ns": int(data.step / np.timedelta64(1, "ns")),
        "sentinel": float(given.get("sentinel", SENTINEL)),
        "sentinels": data.sentinels,
        "reading": {name: given[name] for name in READING if name in given},
    }
