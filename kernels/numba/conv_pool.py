"""The conv stack on the CPU: its two passes, whatever their source; arguments and results are the reference's.

A dense input, and windows of a series whose gradient nobody wants, are served by :mod:`.dense` and
:mod:`.dense_backward`; rows of a table by :mod:`.gather` and :mod:`.gather_backward`, under one of two plans (see
:mod:`~seqconv.kernels.plans`). ``argmax`` has rows of whole vectors, see :func:`argmax_format`. Not served: what
:mod:`.support` names. The arguments must be checked.
"""

from __future__ import annotations

from torch import Tensor

from ..geometry import Convolution, Pool
from ..reference import conv_pool as reference
from ..source import Dense, Source, Windows
from . import dense, dense_backward, gather, gather_backward
from .dense import argmax_format
from .fold import fold, folded_shape
from .gathered import placed

__all__ = ["argmax_format", "backward", "fold", "folded_shape", "forward"]


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

    Of rows of a table, ``folded`` is what :func:`fold` made of table and weight, in whichever dtype, and ``plan``
    ``"folded"`` or ``"direct"`` if it is not to be chosen. A window without a position, which ``ceil_mode`` or padding
    under a dilation can leave, is minus infinity.
    """
    if isinstance(source, Dense):
        output, argmax = dense.forward(
            source.values, weight, bias, convolution, pool, want_argmax, lengths=source.lengths
        )
    elif isinstance(source, Windows) and folded is None and plan != "folded" and source.values.size(1):
        input, places = placed(source)
        output, argmax = dense.forward(input, weight, bias, convolution, pool, want_argmax, places, source.lengths)
    else:
        return gather.forward(source, weight, bias, convolution, pool, want_argmax, folded, plan)
    return output, argmax


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

    ``gradient``, of any strides, is that of the forward pass' result, ``argmax`` what it kept.
    """
    upstream = gradient.unsqueeze(2) if pool is None else gradient
    if isinstance(source, Dense):
        input, places = source.values, None
    elif isinstance(source, Windows) and not wanted[0] and plan != "folded" and source.values.size(1):
        input, places = placed(source)
        if input.stride(1) != 1 and input.size(1) != 1:  # the kernel reads rows
            input, places = reference.gathered(source), None
    else:
        return gather_backward.backward(upstream, argmax, source, weight, convolution, pool, wanted, plan)
    found = dense_backward.backward(upstream, argmax, input, weight, convolution, pool, wanted, places)
    return found or reference.backward(gradient, argmax, source, weight, convolution, pool, wanted=wanted)
