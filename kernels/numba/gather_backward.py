"""The conv stack on gathered rows: gradients of table, weight and bias on the CPU.

Two plans, see :mod:`~seqconv.kernels.plans`: *folded* sums the gradients of all occurrences of a row and then
multiplies once a row, *direct* multiplies once a window. Duplicate rows are summed in a fixed order, without atomics:
the same bits on every run with the same number of threads.

torch's dense gradients also multiply rows and weights by the zero gradients of positions that are no window's argmax,
which gives NaN where those hold an infinity or a NaN. The kernels check the numbers that they read for these; where
there are any, the gradients are the reference's.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ..geometry import Convolution, Pool
from ..plans import CPU, backward_plan
from ..reference import conv_pool as reference
from ..source import Tokens, Windows
from .gather_backward_direct import backward_direct
from .gather_backward_folded import backward_folded
from .gathered import descriptor_of, index_of, split_argmaxes

__all__ = ["backward", "backward_several"]

Gradients = tuple[Tensor | None, Tensor | None, Tensor | None]


def backward_several(
    gradient: Tensor,
    argmax: Tensor,
    source: Tokens,
    weights: Sequence[Tensor],
    convolutions: Sequence[Convolution],
    *,
    wanted: tuple[bool, bool, bool],
    plan: str | None = None,
) -> tuple[Tensor | None, list[Tensor] | None, list[Tensor] | None]:
    """Return the gradients of the table, of all ``weights`` and of all biases, of those that are wanted.

    ``gradient`` is ``(N, O_0 + O_1 + ..)``. The rest is as in :func:`.conv_pool.backward`.
    """
    outputs = [weight.size(0) for weight in weights]
    argmaxes = split_argmaxes(argmax, source.samples, outputs, source.values.dtype)
    dtable: Tensor | None = None
    dweights, dbiases = [], []
    for i, upstream in enumerate(gradient.unsqueeze(2).split(outputs, 1)):
        given = (upstream, argmaxes[i], source, weights[i], convolutions[i], None, wanted, plan)
        dtable, dweight, dbias = backward(*given, dtable)
        dweights += [] if dweight is None else [dweight]
        dbiases += [] if dbias is None else [dbias]
    return dtable, dweights if wanted[1] else None, dbiases if wanted[2] else None


def backward(
    gradient: Tensor,
    argmax: Tensor,
    source: Tokens | Windows,
    weight: Tensor,
    convolution: Convolution,
    pool: Pool | None,
    wanted: tuple[bool, bool, bool],
    plan: str | None,
    others: Tensor | None = None,
) -> Gradients:
    """Return the gradients of table, weight and bias that are wanted; ``gradient`` is ``(N, O, Q)``, or ``(N, O, 1)``.

    If ``others`` are given, the table's gradient is added to them, possibly in place.
    """
    index, table = index_of(source), source.values
    padding_idx = source.padding_idx if isinstance(source, Tokens) else None
    if not gradient.numel() or not weight.numel():
        dtable = table.new_zeros(table.shape) if wanted[0] and others is None else others
        return (
            dtable,
            weight.new_zeros(weight.shape) if wanted[1] else None,
            gradient.sum((0, 2)) if wanted[2] else None,
        )
    layer = descriptor_of(index, gradient.size(0), weight, convolution, pool, gradient)
    if plan is None:
        rows = min(table.size(0), layer.samples * layer.length)  # at most
        counts = (layer.samples, layer.length, layer.windows, rows, table.size(1), layer.outputs, layer.size)
        plan = backward_plan(CPU, *counts, wanted=wanted[:2]).name
    given = (gradient, argmax, layer, index, table, weight, padding_idx, wanted)
    if plan == "direct":
        found = backward_direct(*given, others)
        if found is not None:
            return found
    else:
        found = backward_folded(*given)
    dtable, dweight, dbias = found or reference.backward(
        gradient.squeeze(2) if pool is None else gradient, argmax, source, weight, convolution, pool, wanted=wanted
    )
    if dtable is not None and others is not None:
        dtable += others
    return dtable, dweight, dbias
