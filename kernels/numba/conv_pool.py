"""The conv stack on the CPU, for every kind of source: arguments and results are those of the reference floor.

A dense input is served by :mod:`.dense` and :mod:`.dense_backward`, and so are windows of a series, unless the series
needs a gradient. Rows of a table are served by :mod:`.gather` and :mod:`.gather_backward`, under one of two plans (see
:mod:`~seqconv.kernels.plans`). Rows of ``argmax`` are padded to whole vectors, see :func:`argmax_format`.
:mod:`.support` tells which calls are not served. The caller has checked the arguments.
"""

from __future__ import annotations

from typing import Any

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

    For rows of a table, ``folded`` is the result of :func:`fold`, of any dtype that it offers, and ``plan``,
    ``"folded"`` or ``"direct"``, overrides the choice of the plan. A window that contains no position, as ``ceil_mode``
    or padding with a dilation can leave, gives minus infinity.
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


def tape_of(
    source: Source,
    weight: Tensor,
    bias: Tensor | None,
    convolution: Convolution,
    pool: Pool | None,
    *,
    want_argmax: bool,
) -> Any:
    """Return what runs a call again on other tensors of the same formats, ``None`` for calls that are planned anew."""
    if not isinstance(source, Dense) or source.lengths is not None:
        return None
    return dense.prepared(source.values, weight, bias, convolution, pool, want_argmax)


forward.tape_of = tape_of  # type: ignore[attr-defined]


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

    ``gradient``, of any strides, is the gradient of the forward pass's result; ``argmax`` is what that pass returned.
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
