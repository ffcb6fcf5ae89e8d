"""Gradients kept within bounds between the backward pass and the optimizer's step."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import nn
from torch.optim import Optimizer

__all__ = ["clipping"]


def clipping(optimizer: Optimizer, norm: float | None, value: float | None) -> Callable[[], None] | None:
    """Return what clips the gradients of the optimizer's parameters, ``None`` where both bounds are ``None``.

    First every element is brought into ``-value .. value``, then all gradients together to a 2-norm of at most
    ``norm``: torch's ``clip_grad_value_`` and ``clip_grad_norm_``. Raises ``TypeError`` and ``ValueError`` for bounds
    that are no finite numbers above 0.
    """
    for name, bound in {"clip_norm": norm, "clip_value": value}.items():
        if bound is None:
            continue
        if isinstance(bound, bool) or not isinstance(bound, (int, float)):
            raise TypeError(f"{name} must be a number or None, got {bound!r}")
        if not 0 < bound < math.inf:
            raise ValueError(f"{name} must be a finite number above 0, got {bound}")
    if norm is None and value is None:
        return None
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]

    def clip() -> None:
        if value is not None:
            nn.utils.clip_grad_value_(parameters, value)
        if norm is not None:
            nn.utils.clip_grad_norm_(parameters, norm)

    return clip
