"""A model in training or evaluation mode for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

__all__ = ["mode"]


@contextmanager
def mode(model: nn.Module, *, training: bool) -> Iterator[None]:
    """Put ``model`` in training or evaluation mode; give each submodule its own mode back at the end."""
    before = [(module, module.training) for module in model.modules()]
    model.train(training)
    try:
        yield
    finally:
        for module, was in before:
            module.training = was
