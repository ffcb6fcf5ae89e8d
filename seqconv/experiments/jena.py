"""The temperature task: how warm it is in 24 hours, from the last ten days of 14 measurements.

The same task on a CSV file of one's own counts in rows: its target so many rows ahead, from as many rows back.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F

from seqconv import models
from seqconv.data import SlidingWindows, load_csv, load_jena
from seqconv.data.sources import DataSource
from seqconv.experiments.task import Entry, Settings, Task, shared_out
from seqconv.training import mean_absolute_error

__all__ = ["load"]

# In rows of ten minutes: ten days back, one row an hour, a day ahead.
LOOKBACK, STEP, DELAY = 1440, 6, 144


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
    channels, steps = data.series.shape[1], LOOKBACK // STEP

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
        return models.WindowSource(series, steps, STEP)

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
            "convnet": Entry(lambda backend: models.JenaConvnet(channels, backend=backend, source=reading())),
            "gru": Entry(lambda backend: models.JenaGRU(channels, backend=backend, source=reading())),
            "gru_dropout": Entry(
                lambda backend: models.JenaGRU(
                    channels, input_dropout=0.2, recurrent_dropout=0.2, backend=backend, source=reading()
                )
            ),
            "conv_gru": Entry(lambda backend: models.ConvGRU(channels, backend=backend, source=reading())),
            "dense": Entry(lambda _backend: models.Dense(steps, channels, source=reading())),
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
    )
