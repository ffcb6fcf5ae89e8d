"""Token sequences to benchmark with: the reviews as a model gets them, and words drawn from Zipf's law.

How often words repeat, and how much of a batch is padding, decide what reading rows of a table costs; uniform random
tokens would have neither.
"""

from __future__ import annotations

import importlib.util
import os
from functools import lru_cache

import torch
from torch import Tensor

from seqconv.data import load_imdb
from seqconv.data.sources import Source, find

__all__ = ["reviews", "reviews_origin", "zipf"]

MADE_UP = 1000  # reviews, where there are no real ones


def reviews_origin() -> str:
    """Return whether :func:`reviews` gives real reviews (``SEQCONV_DATA`` or the cache holds them) or made-up ones."""
    return "made-up reviews" if find("imdb", source=source()) is None else "real reviews"


@lru_cache(maxsize=4)
def reviews(count: int, length: int, words: int) -> tuple[Tensor, Tensor]:
    """Return the first ``count`` training reviews ``(N, L)``, int64, padded or cut as the notebook does; and labels.

    Words beyond the ``words - 4`` most frequent are one word, "unknown". Fewer than ``count`` are repeated.
    """
    data = load_imdb(words, length, source=source(), synthetic_size=(MADE_UP, 0))
    rows = torch.arange(count) % len(data.y_train)
    return torch.from_numpy(data.x_train)[rows].long(), torch.from_numpy(data.y_train)[rows]


def source() -> Source:
    """Return ``"synthetic"`` where no folder is named and the package that knows the cache's is missing, as on GPUs."""
    named = os.environ.get("SEQCONV_DATA") or os.environ.get("SEQCONV_CACHE")
    return "auto" if named or importlib.util.find_spec("pooch") else "synthetic"


def zipf(generator: torch.Generator, shape: tuple[int, int], words: int) -> Tensor:
    """Return random tokens, word ``r`` as frequent as ``1 / (r + 1)``."""
    weights = torch.arange(1, words + 1, dtype=torch.float64).reciprocal().cumsum(0)
    places = torch.rand(shape, generator=generator, dtype=torch.float64) * weights[-1]
    return torch.searchsorted(weights, places).clamp_(max=words - 1)
