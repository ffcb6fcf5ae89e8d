"""The review task: whether a film review of 500 words is positive."""

from __future__ import annotations

import os

import torch
import torch.nn.functional as F

from seqconv import models
from seqconv.data import ArrayBatches, load_imdb
from seqconv.data.sources import DataSource
from seqconv.experiments.task import Entry, Settings, Task, shared_out
from seqconv.training import binary_accuracy

__all__ = ["load"]

# The notebook's rate for its convnet on the full data, where it takes 10 epochs of 157 steps.
NOTEBOOK_RATE = 1e-4


def load(
    settings: Settings, *, data_dir: str | os.PathLike[str] | None = None, source: DataSource = "auto", seed: int = 0
) -> Task:
    """Return the task with its data loaded: the 10,000 most frequent words, reviews cut or padded to 500."""
    data = load_imdb(data_dir=data_dir, source=source, synthetic_size=settings.sizes)

    def batches(part: str, *, shuffle: bool = False) -> ArrayBatches:
        tokens, labels = getattr(data, part)
        return ArrayBatches(
            tokens, labels, shuffle=shuffle, seed=seed, **shared_out(settings.batch_size, training=shuffle)
        )

    words = data.num_words
    labels = torch.from_numpy(data.train[1])
    return Task(
        name="imdb",
        title="IMDB reviews: accuracy",
        source=data.source,
        synthetic=data.synthetic,
        train=lambda: batches("train", shuffle=True),
        validation=batches("validation"),
        test=batches("test"),
        entries={
            # A few hundred steps on a small set need the larger rate that the other models have by default.
            "convnet": Entry(
                lambda backend: models.ImdbConvnet(words, backend=backend), 1e-3 if data.synthetic else NOTEBOOK_RATE
            ),
            "lstm": Entry(lambda backend: models.ImdbLSTM(words, backend=backend)),
            "textcnn": Entry(lambda backend: models.TextCNN(words, backend=backend)),
            "bag": Entry(lambda _backend: models.BagOfEmbeddings(words)),
            "majority": Entry(lambda _backend: models.MajorityClass(labels), None),
        },
        rival="lstm",
        loss=F.binary_cross_entropy_with_logits,
        metric=binary_accuracy,
        settings=settings,
    )
