"""The conv stack on a GPU: its two passes, whatever their source; arguments and results are the reference's.

A dense input is served by :mod:`.forward` and :mod:`.backward`, rows of a table by :mod:`.gather` and
:mod:`.gather_backward`. Not served: what :mod:`.support` names. The arguments must be checked.
"""

from __future__ import annotations

from torch import Tensor

from ..geometry import Convolution, Pool
from ..reference.conv_pool import is_channels_last
from ..source import Dense, Source
from . import backward as dense_backward
from . import gather, gather_backward
from .fold import fold, folded_shape
from .forward import argmax_format, launch_global, launch_windows
from .replay import replayed
from .rows import rows_of

__all__ = ["argmax_format", "backward", "fold", "folded_shape", "forward"]


@replayed
def forward(
    source: Source,
    weight: Tensor,
    bias: Tensor | None,
    convolution: Convolution,
    pool: Pool | None,
    *,
    want_argmax: bool,
    folded: Tensor | None = None,
    plan: str | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Return the result and, if wanted, ``argmax``.

    Of rows of a table, ``folded`` is what :func:`fold` made of table and weight, ``plan`` ``"folded"`` or ``"direct"``
    if it is not to be chosen; ``ValueError`` for another. A window without a position, which ``ceil_mode`` can leave,
    is minus infinity.
    """
    if not isinstance(source, Dense):
        return gather.forward(source, weight, bias, convolution, pool, want_argmax, folded, plan)
    if pool is None:
        return launch_global(rows_of(source), weight, bias, convolution, want_argmax=want_argmax)
    last = is_channels_last(source.values) and not pool.contiguous
    return launch_windows(rows_of(source), weight, bias, convolution, pool, want_argmax=want_argmax, last=last)


@replayed
def backward(
    gradient: Tensor,
    argmax: Tensor,
    source: Source,
    weight: Tensor,
    convolution: Convolution,
    pool: Pool | None,
    *,
    wanted: tuple[bool, bool, bool],
    plan: str | None = None,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Return the gradients of the source's values, of weight and bias that are wanted, ``None`` for the others.

    ``gradient``, of any strides, is that of the forward pass' result, ``argmax`` what it kept; ``plan`` as in
    :func:`forward`.
    """
    if pool is None:
        gradient = gradient.unsqueeze(1).transpose(1, 2)  # outputs are neighbours of each other
    if isinstance(source, Dense):
        return dense_backward.backward(gradient, argmax, source.values, weight, convolution, pool, wanted)
    return gather_backward.backward(gradient, argmax, source, weight, convolution, pool, wanted, plan)
