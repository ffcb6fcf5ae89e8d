"""Recurrent layers on the CPU: GRU and LSTM through time, with dropout masks inside.

The batch is cut into tiles of sequences, and a thread takes a tile of one direction through all time steps
(:mod:`.recurrent_forward`, :mod:`.recurrent_backward`). Weights are packed once a call, biases among them.

``saved`` is ``(D, L, N, slots, padded)``: for a GRU the gates n, r, z and the candidate's product with the state; for
an LSTM the cell state, then the gates i, f, g, o. With :data:`~..recurrence.STATES` it is the LSTM's cell state alone,
and empty for a GRU; the backward pass computes the gates again.

The bits of an output depend on the size of its batch, and on the number of threads only where a tile has a single
sequence; those of gradients of weights depend on both.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..recurrence import CELLS, EVERYTHING, NOTHING, STATES, Gradients, Masks, Weights
from .dense import CPU, DTYPES, address, aligned, lane_count
from .micro.gemm import IN_ROWS, TAPS, odd_lines
from .micro.tile import TILE, VECTORS
from .recurrent_backward import backward_tiles, pack_transposed, unpack_weights
from .recurrent_forward import forward_tiles, pack_weights
from .recurrent_kernel import GRU, LSTM, RESET_BEFORE, Layer, Places
from .runtime import threads

__all__ = ["backward", "empty_gradient", "forward", "saved_format"]

KINDS = {"gru": GRU, "gru_reset_before": RESET_BEFORE, "lstm": LSTM}

# Most sequences of a tile. Products read a step's weights once for a tile; on one core of a Zen 5, 64 sequences take
# LSTM(32 -> 32) over 500 steps in 3.3 ms as one tile, 3.4 as two, 3.8 as five of 14 or 12.
ROWS = 64

# Rows of inputs that are multiplied together where a batch has fewer: weights are read once for all of them.
AHEAD = 2 * TILE

# Bytes kept for the backward pass from which they are written past the caches, which hold no more than so many.
PAST_CACHES = 2**24


def forward(
    cell: str,
    input: Tensor,
    states: tuple[Tensor, ...],
    weights: Sequence[Weights],
    masks: Masks,
    lengths: Tensor | None,
    *,
    keep: int,
) -> tuple[Tensor, tuple[Tensor, ...], Tensor]:
    """Return the output, the last states and what the backward pass needs: see :mod:`~..recurrence`."""
    given = _in_memory(input, states, weights, masks, lengths)
    layer, like = _layer(cell, given, keep), DTYPES[given.input.dtype]
    output = input.new_empty(layer.steps, layer.batch, layer.directions * layer.hidden)
    last = tuple(torch.empty_like(state) for state in given.states)
    saved = input.new_empty(saved_format(cell, input, weights, keep)[0])
    if output.numel():
        packed = _pack(layer, given.weights, input)
        places = _places(
            given, packed=aligned(packed), output=output.data_ptr(), h_last=last[0].data_ptr(),
            c_last=last[-1].data_ptr(), kept=saved.data_ptr() if saved.numel() else 0,
        )  # fmt: skip
        _run(forward_tiles, layer, places, like)
    return output, last, saved


def saved_format(
    cell: str, input: Tensor, weights: Sequence[Weights], keep: int
) -> tuple[tuple[int, ...], torch.dtype]:
    """Return the shape and dtype of ``saved``."""
    lanes = lane_count(DTYPES[input.dtype])
    padded = -(-weights[0].weight_hh.size(1) // lanes) * lanes
    return (len(weights), input.size(0), input.size(1), _slots(cell, keep), padded), input.dtype


def empty_gradient(input: Tensor, directions: int | None = None) -> Tensor:
    """Return memory as of the gradient of the input, one for each of ``directions`` if given: laid out as the input."""
    lead = () if directions is None else (directions,)
    steps, batch, features = input.shape
    if input.stride(1) > input.stride(0):  # batch first
        return input.new_empty(*lead, batch, steps, features).transpose(-3, -2)
    return input.new_empty(*lead, steps, batch, features)


def backward(
    cell: str,
    gradient: Tensor | None,
    last_gradients: tuple[Tensor, ...] | None,
    input: Tensor,
    states: tuple[Tensor, ...],
    weights: Sequence[Weights],
    masks: Masks,
    lengths: Tensor | None,
    output: Tensor,
    saved: Tensor,
    *,
    wanted: tuple[bool, bool, bool],
) -> Gradients:
    """Return the gradients of input, states and weights: see :mod:`~..recurrence`."""
    given = _in_memory(input, states, weights, masks, lengths)
    keep = EVERYTHING if saved.size(3) == _slots(cell, EVERYTHING) else STATES
    layer, like = _layer(cell, given, keep), DTYPES[given.input.dtype]
    dx = empty_gradient(input if wanted[0] else input[:0], layer.directions)
    dstates = tuple(torch.empty_like(state) for state in given.states)
    numbers = layer.features + layer.hidden + 2
    dweights = input.new_empty(layer.directions, layer.tiles, layer.gates, numbers if wanted[2] else 0, layer.padded)
    if output.numel():
        upstream = None if gradient is None else gradient.contiguous()
        last = () if last_gradients is None else tuple(one.contiguous() for one in last_gradients)
        packed = _pack(layer, given.weights, input) if layer.kept < 4 else None
        by_state, by_input = _pack_transposed(layer, given.weights, input, wanted[0])
        places = _places(
            given, packed=aligned(packed), output=output.data_ptr(), packed_h=aligned(by_state),
            packed_x=aligned(by_input), kept=saved.data_ptr(), d_output=address(upstream),
            dh_last=address(last[0]) if last else 0, dc_last=address(last[1]) if len(last) > 1 else 0,
            dx=dx.data_ptr() if wanted[0] else 0, dh0=dstates[0].data_ptr(), dc0=dstates[-1].data_ptr(),
            d_weights=dweights.data_ptr() if wanted[2] else 0,
        )  # fmt: skip
        direction, step, sample, _ = (one * input.itemsize for one in dx.stride())
        layer = layer._replace(dx_direction=direction, dx_step=step, dx_batch=sample)
        _run(backward_tiles, layer, places, like)
    else:
        dweights.zero_()
        for one in dstates:
            one.zero_()
    found = None
    if wanted[2]:
        totals = dweights.sum(1) if layer.tiles > 1 else dweights[:, 0]
        found = tuple(_unpack(layer, *one, like) for one in zip(totals, given.weights, strict=True))
    whole = None if not wanted[0] else dx[0] if layer.directions == 1 else dx[0] + dx[1]
    return Gradients(whole, dstates if wanted[1] else (), found)


def _unpack(
    layer: Layer, totals: Tensor, weights: Weights, like: Any
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Return the gradients of one direction's weights and biases out of ``(G, C + H + 2, padded)``."""
    of_x, of_h, of_bias, of_other = (None if one is None else torch.empty_like(one) for one in weights[:4])
    assert of_x is not None
    assert of_h is not None
    unpack_weights(layer, totals.data_ptr(), tuple(map(address, (of_x, of_h, of_bias, of_other))), like)
    return of_x, of_h, of_bias, of_other


class _Operands(NamedTuple):
    """Operands as the kernels read them: dense but for the input, lengths as int64."""

    input: Tensor
    states: tuple[Tensor, ...]
    weights: tuple[Weights, ...]
    masks: Masks
    lengths: Tensor | None


def _in_memory(
    input: Tensor,
    states: tuple[Tensor, ...],
    weights: Sequence[Weights],
    masks: Masks,
    lengths: Tensor | None,
) -> _Operands:
    def dense(tensor: Tensor | None) -> Any:
        return None if tensor is None else tensor.contiguous()

    return _Operands(
        input,
        tuple(map(dense, states)),
        tuple(Weights(*map(dense, own)) for own in weights),
        Masks(*map(dense, masks)),
        None if lengths is None else lengths.to("cpu", torch.int64).contiguous(),
    )


def _slots(cell: str, keep: int) -> int:
    if keep == NOTHING:
        return 0
    states = CELLS[cell].states - 1
    return states + 4 if keep == EVERYTHING else states


def _layer(cell: str, given: _Operands, keep: int) -> Layer:
    """Return the sizes of a call, and how it is cut."""
    input, masks = given.input, given.masks
    of_state = None if masks.recurrent is None else (masks.recurrent.shape[:3], masks.recurrent.stride()[:3])
    return _cut(
        cell, keep, input.shape, input.stride(), input.dtype, given.weights[0].weight_hh.size(1), len(given.weights),
        0 if masks.input is None else masks.input.size(0), of_state, torch.get_num_threads(), threads.WORTH_A_THREAD,
    )  # fmt: skip


@functools.lru_cache(maxsize=512)
def _cut(
    cell: str,
    keep: int,
    shape: tuple[int, int, int],
    strides: tuple[int, int, int],
    dtype: torch.dtype,
    hidden: int,
    directions: int,
    input_masks: int,
    of_state: tuple[tuple[int, ...], tuple[int, ...]] | None,
    *_limits: int,
) -> Layer:
    """Return the sizes of a call; ``of_state`` are the leading sizes and strides of the masks of the state."""
    (steps, batch, features), gates, size = shape, CELLS[cell].gates, dtype.itemsize
    lanes = lane_count(DTYPES[dtype])
    padded = -(-hidden // lanes) * lanes
    work = directions * batch * steps * gates * hidden * (features + hidden)
    count = threads.thread_count(directions * batch, work)
    tiles = max(-(-batch // ROWS), -(-count // directions), 1)
    while tiles < batch and directions * tiles % count:
        tiles += 1
    of_step = [0, 0, 0]  # bytes from a direction, a step and a gate of the masks to the next
    if of_state is not None:
        of_step = [stride * size if length > 1 else 0 for length, stride in zip(*of_state, strict=True)]
    per_gate = input_masks > 1 or of_step[2] > 0
    return Layer(
        cell=KINDS[cell], gates=gates, steps=steps, batch=batch, features=features, hidden=hidden, padded=padded,
        directions=directions, tiles=tiles, chunk=max(1, min(TAPS // max(-(-batch // tiles), 1), steps)),
        ahead=max(1, min(AHEAD // max(batch, 1), steps)),
        buffers=gates if per_gate else 2 if cell == "gru_reset_before" else 1,
        input_row=odd_lines((features + 2 + padded) * size), kept=_slots(cell, keep),
        past_caches=directions * batch * steps * _slots(cell, keep) * padded * size >= PAST_CACHES,
        x_step=strides[0] * size, x_batch=strides[1] * size, x_feature=strides[2] * size,
        dx_direction=0, dx_step=0, dx_batch=0, input_mask_gate=batch * features * size if input_masks > 1 else 0,
        mask_direction=of_step[0], mask_step=of_step[1], mask_gate=of_step[2],
    )  # fmt: skip


def _places(given: _Operands, **others: int) -> Places:
    """Return the addresses of operands and ``others``, 0 for the rest."""
    states, (of_input, of_state) = given.states, given.masks
    found = dict.fromkeys(Places._fields, 0) | {
        "x": given.input.data_ptr(), "h0": states[0].data_ptr(), "c0": states[-1].data_ptr(),
        "input_mask": address(of_input), "mask": address(of_state), "lengths": address(given.lengths),
    }  # fmt: skip
    return Places(**found | others)


def _pack(layer: Layer, weights: Sequence[Weights], like: Tensor) -> Tensor:
    """Return memory with the weights of all directions as the products of the forward pass read them."""
    zero = DTYPES[like.dtype]
    step = layer.gates * _panels(layer.padded, zero) * (layer.features + layer.hidden + 2) * IN_ROWS
    packed = torch.empty(len(weights) * step + 64, dtype=torch.uint8, device=CPU)
    for d, own in enumerate(weights):
        pack_weights(layer, tuple(address(one) for one in own[:4]), aligned(packed) + d * step, zero)
    return packed


def _pack_transposed(
    layer: Layer, weights: Sequence[Weights], like: Tensor, with_input: bool
) -> tuple[Tensor, Tensor | None]:
    """Return memory with the weights of state and, if asked for, input as gradients are multiplied with them."""
    zero, rows = DTYPES[like.dtype], layer.gates * layer.hidden

    def pack(columns: int, first_gate: int, field: str) -> Tensor:
        step = _panels(columns, zero) * rows * IN_ROWS
        packed = torch.empty(len(weights) * step + 64, dtype=torch.uint8, device=CPU)
        for d, own in enumerate(weights):
            source = getattr(own, field).data_ptr()
            pack_transposed(layer, source, columns, first_gate, aligned(packed) + d * step, zero)
        return packed

    by_input = pack(layer.features, 0 if layer.cell == LSTM else 2, "weight_ih") if with_input else None
    return pack(layer.hidden, 0, "weight_hh"), by_input


def _panels(numbers: int, zero: Any) -> int:
    """Return the number of panels that so many columns fill."""
    return -(-numbers // (VECTORS * lane_count(zero)))


def _run(kernel: Any, layer: Layer, places: Places, like: Any) -> None:
    parts = layer.directions * layer.tiles
    work = layer.batch * layer.directions * layer.steps * layer.gates * layer.hidden * (layer.features + layer.hidden)
    threads.run(functools.partial(kernel, layer, places, like), parts, threads.thread_count(parts, work))
