"""Models in the wild: 1-D convnets as published or as commonly met, in plain torch, one module for each.

Each is written in a style of its own (``nn.Sequential``, blocks, attributes, functions, images of a width of one), as a
tool that fuses other people's models meets them. ``WILD`` is the table; nothing here knows seqconv.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch.nn.functional as F
from torch import Generator, Tensor, nn

from benchmarks.models.basset import basset
from benchmarks.models.char_cnn import CharCNN
from benchmarks.models.danq import DanQ
from benchmarks.models.deepsea import DeepSEA
from benchmarks.models.ecg import EcgNet
from benchmarks.models.examples import classes, halves, marks, one_hot, sentences, signals
from benchmarks.models.fcn import FCN
from benchmarks.models.har import HarCnnLstm
from benchmarks.models.m5 import M5
from benchmarks.models.notebook import NotebookHybrid, NotebookImdb, jena_convnet
from benchmarks.models.text_cnn import KimCNN

__all__ = ["WILD", "Wild"]


@dataclass(frozen=True)
class Wild:
    """A model: how it is made, its inputs and targets for a batch size and a generator, its loss, its usual batch."""

    make: Callable[[], nn.Module]
    inputs: Callable[[int, Generator], Tensor]
    targets: Callable[[int, Generator], Tensor]
    loss: Callable[[Tensor, Tensor], Tensor]
    batch: int


def bases_as_image(count: int, generator: Generator) -> Tensor:
    """Return one-hot bases ``(N, 4, 600, 1)``."""
    return one_hot(count, generator, symbols=4, length=600).unsqueeze(3)


def log_likelihood(output: Tensor, targets: Tensor) -> Tensor:
    """Return the loss of M5, whose output has an axis of one."""
    return F.nll_loss(output.squeeze(1), targets)


DNA, BINARY, LOGITS = partial(one_hot, symbols=4, length=1000), F.binary_cross_entropy, F.cross_entropy
LONG_ECG = partial(EcgNet, (32, 64, 64, 128, 128), 15, 4)
TEMPERATURE = partial(signals, shape=(1,))

WILD = {
    "text_cnn": Wild(KimCNN, partial(sentences, words=18_765, length=64), partial(classes, of=2), LOGITS, 50),
    "char_cnn": Wild(CharCNN, partial(one_hot, symbols=70, length=1014), partial(classes, of=4), LOGITS, 128),
    "deepsea": Wild(DeepSEA, DNA, partial(marks, of=919), BINARY, 64),
    "danq": Wild(DanQ, DNA, partial(marks, of=919), BINARY, 100),
    "basset": Wild(basset, bases_as_image, partial(marks, of=164), BINARY, 128),
    "m5": Wild(M5, partial(signals, shape=(1, 16_000)), partial(classes, of=10), log_likelihood, 64),
    "ecg_beats": Wild(EcgNet, partial(signals, shape=(1, 187)), partial(classes, of=5), LOGITS, 128),
    "ecg_recordings": Wild(LONG_ECG, partial(signals, shape=(1, 3000)), partial(classes, of=4), LOGITS, 64),
    "har_cnn_lstm": Wild(HarCnnLstm, partial(signals, shape=(128, 9)), partial(classes, of=6), LOGITS, 64),
    "fcn": Wild(FCN, partial(signals, shape=(1, 500)), partial(classes, of=2), LOGITS, 16),
    "imdb": Wild(
        NotebookImdb, partial(sentences, words=10_000, length=500), halves, F.binary_cross_entropy_with_logits, 128
    ),
    "jena": Wild(jena_convnet, partial(signals, shape=(14, 240)), TEMPERATURE, F.l1_loss, 128),
    "jena_conv_gru": Wild(NotebookHybrid, partial(signals, shape=(240, 14)), TEMPERATURE, F.l1_loss, 128),
}
