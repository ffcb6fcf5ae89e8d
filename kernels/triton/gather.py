"""The conv stack on rows gathered from a table, on a GPU: the forward pass, without the gathered tensor.

Two plans give the reference's results but for rounding, see :mod:`~seqconv.kernels.plans`. Under *direct* the kernels
of :mod:`.forward` read the rows through the index; under *folded* a row's products with all weights are looked up in a
folded table, which a caller that keeps table and weight may :func:`fold` once and pass in; else the whole table is
folded first, into float32, so that nothing is rounded that *direct* would not round. Tokens and starts, int32 or int64,
are read in place through their strides.

A number out of range stops the device with a message, as torch's own look-ups do (see :mod:`.device.index`): an
error on the host would mean to wait for the device at every call. Nothing outside the table is read. In the
interpreter, whose caller has looked at the numbers, a token without a row counts as a row of zeros, and so do all rows
of a window that leaves its series.

Where these kernels are slow: as in :mod:`.forward`; in *direct*, blocks of channels are cut for each kernel position,
so that few channels waste products; a folded table that is larger than the second cache is read from memory.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..geometry import Convolution, Pool
from ..plans import GPU, PLANS, forward_plan, pools_apart
from ..source import Tokens, Windows
from .configurations import folded_configuration
from .fold import fold
from .forward import is_padded, launch_global, launch_windows, neighbours, new_argmax
from .groups import windows_alone
from .launch import device_code, kind_of, on_device
from .pooling import POSITIONS, launch_pool
from .replay import compute, empty, launch
from .rows import Rows, rows_of

__all__ = ["check_index", "forward"]

NUMBERS = 1024  # so many of an index a program checks


def forward(
    source: Tokens | Windows,
    weight: Tensor,
    bias: Tensor | None,
    convolution: Convolution,
    pool: Pool | None,
    want_argmax: bool,
    folded: Tensor | None,
    plan: str | None,
) -> tuple[Tensor, Tensor | None]:
    """Return :func:`.conv_pool.forward`'s result and, if wanted, ``argmax``."""
    if plan is not None and plan not in PLANS:
        raise ValueError(f"plan must be one of {', '.join(PLANS)}, or None, got {plan!r}")
    outputs, channels, size = weight.shape
    rows = rows_of(source)
    check_index(rows)
    if folded is None:
        if plan is None:
            positions, kind = convolution.output_length(rows.length, size), kind_of(weight.dtype)
            counts = (rows.samples, positions, rows.source.size(0), channels, outputs, size)
            plan = forward_plan(GPU[kind], *counts).name
        if plan == "direct":
            if pool is None:
                return launch_global(rows, weight, bias, convolution, want_argmax=want_argmax)
            return launch_windows(
                rows, weight, bias, convolution, pool, want_argmax=want_argmax, last=not pool.contiguous
            )
    step = source.step if isinstance(source, Windows) else 0
    return _add(rows, step, weight, bias, convolution, pool, want_argmax, folded)


def _add(
    rows: Rows,
    step: int,
    weight: Tensor,
    bias: Tensor | None,
    convolution: Convolution,
    pool: Pool | None,
    want_argmax: bool,
    folded: Tensor | None,
) -> tuple[Tensor, Tensor | None]:
    """Return the result and ``argmax`` from a folded table, which is made if there is none."""
    outputs, _, size = weight.shape
    positions = convolution.output_length(rows.length, size)
    windows = 1 if pool is None else pool.output_length(positions)
    out = empty(rows.source, (rows.samples, windows, outputs))
    costs = GPU[kind_of(weight.dtype)]
    greatest = positions if pool is None else pool.size
    argmax = new_argmax(rows, outputs, windows, greatest - 1) if want_argmax else None
    result = out.squeeze(1) if pool is None else out.transpose(1, 2)
    if not out.numel():
        return result, argmax
    if folded is None:
        folded = fold(rows.source, weight)
    if pool is not None and pools_apart(costs, windows_alone(pool), costs.addition * size):
        activation, _ = _add(rows, step, weight, bias, convolution, POSITIONS, False, folded)
        with on_device(folded):
            launch_pool(activation, result, argmax, pool, last=True)
        return compute(_turned, out) if pool.contiguous else result, argmax
    tile, kernels = folded_configuration(folded.size(2), size, pool is None), device_code("gather")
    tiles_o = -(-outputs // tile.block_o)
    index = (rows.numbers, rows.index_n, rows.index_l, rows.below, step, folded.size(0) - 1)
    shape = {"O": outputs, "K": size, "WIDTH": folded.size(2), "TOKENS": rows.mode == "tokens"}
    blocks = {"UNROLL": tile.unroll, "BLOCK_M": tile.block_m, "BLOCK_O": tile.block_o, "num_warps": tile.num_warps}
    with on_device(folded):
        if pool is None:
            launch(
                kernels.folded_global_kernel, (rows.samples * tiles_o,),
                folded, neighbours(bias), out, argmax, rows.length, positions, *index,
                window_start=-convolution.padding[0], phase_step=convolution.stride, tap_step=convolution.dilation,
                CHECK=convolution.padding != (0, 0), **shape, **blocks,
            )  # fmt: skip
        else:
            count = rows.samples * windows
            launch(
                kernels.folded_windows_kernel, (-(-count // tile.block_m) * tiles_o,),
                folded, neighbours(bias), out, argmax, count, windows, rows.length, positions, *index,
                window_step=pool.stride * convolution.stride,
                window_start=-pool.padding * convolution.stride - convolution.padding[0],
                phase_step=pool.dilation * convolution.stride, tap_step=convolution.dilation,
                pool_stride=pool.stride, pool_padding=pool.padding, pool_dilation=pool.dilation,
                P=pool.size, CHECK=is_padded(convolution, pool), **shape, **blocks,
            )  # fmt: skip
    if pool is not None and pool.contiguous:
        result = compute(_turned, out)
    return result, argmax


def _turned(pooled: Tensor) -> Tensor:
    """Return ``(N, Q, O)`` as a contiguous ``(N, O, Q)``."""
    return pooled.transpose(1, 2).clone(memory_format=torch.contiguous_format)


def check_index(rows: Rows) -> None:
    """Stop the device where a number is no row of the table, or a window leaves its series."""
    index, kernels = rows.numbers, device_code("index")
    if index is None or not index.numel() or kernels.INTERPRETED:
        return
    length = 1 if rows.mode == "windows" else rows.length
    with on_device(index):
        launch(
            kernels.check_index_kernel, (-(-index.numel() // NUMBERS),),
            index, index.numel(), length, rows.index_n, rows.index_l, rows.below, BLOCK=NUMBERS, num_warps=4,
        )  # fmt: skip
