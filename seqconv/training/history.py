"""What a training run measured, epoch by epoch: a table, and which epoch was best."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from seqconv.files import atomic_write

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["History"]


@dataclass
class History:
    """The epochs of a run.

    ``records`` holds one dictionary an epoch: ``epoch`` (from 1), ``loss`` and the metrics over the epoch's training
    batches, the same over the validation batches as ``val_loss`` and so on, ``seconds`` (the whole epoch with its
    validation) and ``ms_per_step`` (one training step, loading of its batch included); with a schedule, the
    ``learning_rate`` behind its last step. ``labels`` are the same in every row of the table, where the data are from
    for one.
    """

    monitor: str
    larger_is_better: bool = False
    records: list[dict[str, float]] = field(default_factory=list)
    labels: Mapping[str, str] = field(default_factory=dict)

    @property
    def frame(self) -> pd.DataFrame:
        """The records as a DataFrame, one row an epoch, the labels in its last columns."""
        import pandas as pd

        return pd.DataFrame(self.records).assign(**self.labels)

    @property
    def best_epoch(self) -> int | None:
        """The first epoch, counted from 1, with the best value of ``monitor``; ``None`` if none has a number there."""
        sign = -1.0 if self.larger_is_better else 1.0
        numbers = [record for record in self.records if not math.isnan(record[self.monitor])]
        return int(min(numbers, key=lambda record: sign * record[self.monitor])["epoch"]) if numbers else None

    @property
    def epochs_since_best(self) -> int:
        """How many epochs have passed without an improvement of ``monitor``."""
        return len(self.records) - (self.best_epoch or 0)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the table to ``path`` as CSV, atomically; every float reads back as the same number."""
        with atomic_write(path) as temporary:
            self.frame.to_csv(temporary, index=False)
