"""Made-up batches: functions of a batch size and a generator, once everything else of them is given."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

PADDING = 0  # the index of the word that stands behind a sentence's end


def signals(count: int, generator: Generator, *, shape: tuple[int, ...]) -> Tensor:
    """Return standard normal numbers ``(N, *shape)``."""
    return torch.randn(count, *shape, generator=generator)


def one_hot(count: int, generator: Generator, *, symbols: int, length: int) -> Tensor:
    """Return sequences of uniformly random symbols as ``(N, symbols, length)``, contiguous float32."""
    drawn = torch.randint(symbols, (count, length), generator=generator)
    return F.one_hot(drawn, symbols).float().transpose(1, 2).contiguous()


def sentences(count: int, generator: Generator, *, words: int, length: int) -> Tensor:
    """Return tokens ``(N, length)``, int64: words of Zipf's law, from a quarter of ``length`` on padded behind."""
    ends = torch.randint(length // 4, length + 1, (count, 1), generator=generator)
    tokens = 1 + zipf(generator, (count, length), words - 1)
    return tokens.masked_fill(torch.arange(length) >= ends, PADDING)


def zipf(generator: Generator, shape: tuple[int, int], words: int) -> Tensor:
    """Return random tokens, word ``r`` as frequent as ``1 / (r + 1)``."""
    weights = torch.arange(1, words + 1, dtype=torch.float64).reciprocal().cumsum(0)
    places = torch.rand(shape, generator=generator, dtype=torch.float64) * weights[-1]
    return torch.searchsorted(weights, places).clamp_(max=words - 1)


def classes(count: int, generator: Generator, *, of: int) -> Tensor:
    """Return a class for each sample, ``(N,)``, int64."""
    return torch.randint(of, (count,), generator=generator)


def marks(count: int, generator: Generator, *, of: int) -> Tensor:
    """Return ``of`` yes-or-no answers for each sample, ``(N, of)``, float32; one in twenty is yes."""
    return (torch.rand(count, of, generator=generator) < 0.05).float()


def halves(count: int, generator: Generator) -> Tensor:
    """Return a yes-or-no answer for each sample, ``(N, 1)``, float32."""
    return torch.randint(2, (count, 1), generator=generator).float()
