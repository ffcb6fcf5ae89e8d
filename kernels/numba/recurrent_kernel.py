"""A time step of a recurrent layer, compiled for the CPU: what both passes do for a tile of sequences.

A tile's sequences go through all time steps together: their states, the products of a step and the gates stay in the
first cache levels. A step reads, for each gate, one row of numbers per sequence::

    1, x (C, masked), 1, h (H, masked)

whose product with the packed weights, biases among them, is the gate before its activation. Gates lie in slots of
``padded`` units each. In a GRU these are n's product with x, r, z, and n's product with h, which the reset gate
multiplies; in an LSTM i, f, g, o. Products of x take the GRU's first three slots, those of h the last three.

Where the GRU resets the state in front of the product (:data:`RESET_BEFORE`), the candidate's row holds ``r * h`` and
the first slot the whole product; the last one is not used, but by gradients, for a copy of the first.

The passes themselves are :mod:`.recurrent_forward` and :mod:`.recurrent_backward`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from .micro.activations import sigmoid, tanh
from .micro.gemm import IN_ROWS, gemm
from .micro.packing import copy_row
from .micro.simd import (
    broadcast,
    bytes_of,
    lanes,
    load,
    load_number,
    load_part,
    multiply_add,
    store,
    store_first,
    store_number,
    store_part,
)
from .micro.tile import VECTORS
from .runtime.compilation import inner

__all__ = [
    "GRU",
    "LSTM",
    "RESET_BEFORE",
    "BatchTile",
    "Layer",
    "Places",
    "activate_resets",
    "buffer_of",
    "copy_inputs",
    "copy_state",
    "gru_gates",
    "kept_at",
    "length_of",
    "mask_at",
    "masked",
    "multiply",
    "multiply_candidate",
    "multiply_states",
    "output_at",
    "reset_inputs",
    "state_before",
    "step_of",
    "store_state",
    "write_ones",
]

GRU, RESET_BEFORE, LSTM = 0, 1, 2  # cells


class Layer(NamedTuple):
    """The sizes of a call. Strides are in bytes; those of masks are 0 along axes that they do not have.

    ``padded`` is the hidden size in whole vectors. ``tiles`` share the batch. ``chunk`` is the number of steps whose
    gradients are multiplied at a time, ``ahead`` that of steps whose inputs are. ``buffers`` is the number of rows of
    numbers that a step reads for a sequence: one for each gate if there is a mask for each; ``input_row`` is the
    distance between two of them. ``kept`` is the number of slots that the forward pass keeps for the backward pass: the
    LSTM's cell state first, then the gates; ``past_caches`` tells whether they go to memory at once.
    """

    cell: int
    gates: int
    steps: int
    batch: int
    features: int
    hidden: int
    padded: int
    directions: int
    tiles: int
    chunk: int
    ahead: int
    buffers: int
    input_row: int
    kept: int
    past_caches: int
    x_step: int
    x_batch: int
    x_feature: int
    dx_direction: int
    dx_step: int
    dx_batch: int
    input_mask_gate: int
    mask_direction: int
    mask_step: int
    mask_gate: int


class Places(NamedTuple):
    """The addresses of a call, 0 for what there is not.

    ``packed`` are the weights of x and h for the forward pass, ``packed_x`` and ``packed_h`` for the backward pass;
    ``h0`` to ``c_last`` the states ``(D, N, H)``; ``kept`` is ``(D, L, N, kept, padded)``; ``lengths`` are int64. The
    rest are gradients: of the output and of the last states, and, written, of the input, dense along C, of the first
    states, and of the weights ``(D, tiles, G, C + H + 2, padded)``, each gate's rows as its products read them.
    """

    x: int
    h0: int
    c0: int
    packed: int
    packed_x: int
    packed_h: int
    input_mask: int
    mask: int
    lengths: int
    output: int
    h_last: int
    c_last: int
    kept: int
    d_output: int
    dh_last: int
    dc_last: int
    dx: int
    dh0: int
    dc0: int
    d_weights: int


class BatchTile(NamedTuple):
    """A tile's direction, first sequence and number of sequences, and where its scratch is.

    ``inputs`` are the rows that a step's products read, ``input_row`` bytes apart, and ``buffer`` those of one buffer
    and the next; ``slots`` are the gates.
    """

    direction: int
    first: int
    rows: int
    steps: int
    inputs: int
    input_row: int
    buffer: int
    slots: int
    h: int
    c: int


@inner(inline="always")
def step_of(layer: Layer, direction: int, number: int) -> int:
    """Return the time of a direction's step of this number."""
    return layer.steps - 1 - number if direction else number


@inner(inline="always")
def length_of(layer: Layer, places: Places, n: int) -> Any:
    """Return the number of steps of a sequence."""
    return load_number(places.lengths + n * 8, 0) if places.lengths else layer.steps


@inner(inline="always")
def buffer_of(layer: Layer, gate: int) -> int:
    """Return which row of numbers a gate, in torch's order, is a product of."""
    if layer.buffers >= layer.gates:
        return gate
    return 1 if layer.cell == RESET_BEFORE and gate == 2 else 0


@inner(inline="always")
def mask_at(layer: Layer, places: Places, direction: int, t: int, gate: int, n: int, zero: Any) -> Any:
    """Return where the mask of a sequence's state is, 0 without one."""
    if places.mask == 0:
        return 0
    of_step = places.mask + direction * layer.mask_direction + t * layer.mask_step + gate * layer.mask_gate
    return of_step + n * layer.hidden * bytes_of(zero)


@inner(inline="always")
def masked(vector: Any, mask: int, at: int, count: int, zero: Any) -> Any:
    """Return a vector times the mask ``at`` bytes behind ``mask``; as it is without one."""
    return vector * load_part(mask + at, count, zero) if mask else vector


@inner
def copy_inputs(layer: Layer, places: Places, tile: BatchTile, t: int, inputs: int, zero: Any) -> None:
    """Write the inputs of time ``t``, masked, where products read them."""
    size, width = bytes_of(zero), lanes(zero)
    for b in range(layer.buffers):
        for r in range(tile.rows):
            n = tile.first + r
            source = places.x + t * layer.x_step + n * layer.x_batch
            target = inputs + b * tile.buffer + r * tile.input_row + size
            mask = 0
            if places.input_mask:
                mask = places.input_mask + b * layer.input_mask_gate + n * layer.features * size
            if mask == 0:
                copy_row(target, source, layer.x_feature, layer.features, zero)
            elif layer.x_feature == size:
                for i in range(0, layer.features, width):
                    some = layer.features - i
                    part = load_part(source + i * size, some, zero) * load_part(mask + i * size, some, zero)
                    store_part(part, target + i * size, some, zero)
            else:
                for i in range(layer.features):
                    number = load_number(source + i * layer.x_feature, zero) * load_number(mask + i * size, zero)
                    store_number(number, target + i * size, zero)


@inner(inline="always")
def store_state(layer: Layer, tile: BatchTile, h: Any, at: int, mask: int, target: int, zero: Any) -> None:
    """Write the units of a state from ``at`` bytes on where products read them.

    ``mask`` is where the sequence's mask is, 0 without one, ``target`` where the state in the first buffer is.
    """
    if mask == 0 and layer.buffers == 1:
        store(h, target + at)
    else:
        for b in range(layer.buffers):
            count = layer.hidden - at // bytes_of(zero)
            store(masked(h, mask + b * layer.mask_gate if mask else 0, at, count, zero), target + at + b * tile.buffer)


@inner(inline="always")
def copy_state(
    layer: Layer, places: Places, tile: BatchTile, t: int, r: int, state: int, inputs: int, zero: Any
) -> None:
    """Write the state ``(H,)`` of sequence ``r`` of a tile, masked for time ``t``, where products read it."""
    size, width = bytes_of(zero), lanes(zero)
    mask = mask_at(layer, places, tile.direction, t, 0, tile.first + r, zero)
    target = inputs + r * tile.input_row + (layer.features + 2) * size
    for i in range(0, layer.hidden, width):
        h = load_part(state + i * size, layer.hidden - i, zero)
        store_state(layer, tile, h, i * size, mask, target, zero)


@inner
def write_ones(layer: Layer, inputs: int, input_row: int, rows: int, zero: Any) -> None:
    """Write what multiplies the biases."""
    one, size = broadcast(1.0, zero), bytes_of(zero)
    for r in range(rows):
        row = inputs + r * input_row
        store_first(one, row, 1)
        store_first(one, row + (layer.features + 1) * size, 1)


@inner(inline="always")
def multiply(
    layer: Layer, places: Places, tile: BatchTile, inputs: int, count: int, gate: int, slot: int, begin: int, end: int,
    target: int, fresh: bool, zero: Any,
) -> None:  # fmt: skip
    """Write, or add, a gate's product over the numbers ``begin`` to ``end`` of ``count`` rows to a slot of theirs."""
    size, width = bytes_of(zero), lanes(zero)
    vectors, taps = layer.padded // width, layer.features + layer.hidden + 2
    panels = (vectors + VECTORS - 1) // VECTORS
    panel = taps * IN_ROWS
    weights = places.packed + (tile.direction * layer.gates + gate) * panels * panel + begin * IN_ROWS
    source = inputs + buffer_of(layer, gate) * tile.buffer + begin * size
    slots = 4 * layer.padded * size
    gemm(
        target + slot * layer.padded * size, slots, source, tile.input_row, count, (1, 0, end - begin, size), weights,
        IN_ROWS, panel, vectors, fresh, zero,
    )  # fmt: skip


@inner(inline="always")
def multiply_states(
    layer: Layer, places: Places, tile: BatchTile, inputs: int, target: int, fresh: bool, zero: Any
) -> None:
    """Add the products of the states to a step's slots, if not ``fresh``; else write those of inputs and states.

    Where the GRU resets before, the candidate's is left out.
    """
    begin, end = 0 if fresh else layer.features + 1, layer.features + layer.hidden + 2
    for gate in range(layer.gates if layer.cell == LSTM else 2):
        slot = gate if layer.cell == LSTM else gate + 1
        multiply(layer, places, tile, inputs, tile.rows, gate, slot, begin, end, target, fresh, zero)
    if layer.cell == GRU:
        multiply(layer, places, tile, inputs, tile.rows, 2, 3, layer.features + 1, end, target, True, zero)
        if fresh:
            multiply(layer, places, tile, inputs, tile.rows, 2, 0, 0, layer.features + 1, target, True, zero)


@inner(inline="always")
def multiply_candidate(
    layer: Layer, places: Places, tile: BatchTile, inputs: int, target: int, fresh: bool, zero: Any
) -> None:
    """Do for the candidate whose state is reset before what :func:`multiply_states` does for the others."""
    begin, end = 0 if fresh else layer.features + 1, layer.features + layer.hidden + 2
    multiply(layer, places, tile, inputs, tile.rows, 2, 0, begin, end, target, fresh, zero)


@inner
def activate_resets(layer: Layer, tile: BatchTile, zero: Any) -> None:
    """Activate r and z."""
    size, width = bytes_of(zero), lanes(zero)
    line = layer.padded * size
    for r in range(tile.rows):
        place = tile.slots + r * 4 * line + line
        for i in range(0, 2 * layer.padded, width):
            store(sigmoid(load(place + i * size, zero)), place + i * size)


@inner(inline="always")
def gru_gates(layer: Layer, place: int, line: int, zero: Any) -> Any:
    """Return r, z, n and n's product with h of the vector at ``place``, in the first slot."""
    if layer.cell == RESET_BEFORE:
        n = tanh(load(place, zero))
        return load(place + line, zero), load(place + 2 * line, zero), n, n
    r, z = sigmoid(load(place + line, zero)), sigmoid(load(place + 2 * line, zero))
    q = load(place + 3 * line, zero)
    return r, z, tanh(multiply_add(r, q, load(place, zero))), q


@inner(inline="always")
def output_at(layer: Layer, places: Places, tile: BatchTile, t: int, zero: Any) -> Any:
    """Return where the output of a tile's first sequence at time ``t`` is."""
    numbers = (t * layer.batch + tile.first) * layer.directions + tile.direction
    return places.output + numbers * layer.hidden * bytes_of(zero)


@inner(inline="always")
def state_before(layer: Layer, places: Places, tile: BatchTile, t: int, r: int, zero: Any) -> Any:
    """Return where the state of sequence ``r`` before time ``t`` is."""
    n, size = tile.first + r, bytes_of(zero)
    before = t + 1 if tile.direction else t - 1
    if before < 0 or before >= length_of(layer, places, n):
        return places.h0 + (tile.direction * layer.batch + n) * layer.hidden * size
    return output_at(layer, places, tile, before, zero) + r * layer.directions * layer.hidden * size


@inner(inline="always")
def kept_at(layer: Layer, places: Places, tile: BatchTile, t: int, zero: Any) -> Any:
    """Return where what the forward pass kept of a tile's first sequence at time ``t`` is."""
    numbers = (tile.direction * layer.steps + t) * layer.batch + tile.first
    return places.kept + numbers * layer.kept * layer.padded * bytes_of(zero)


@inner
def reset_inputs(layer: Layer, places: Places, tile: BatchTile, t: int, gates: int, stride: int, zero: Any) -> None:
    """Write the reset states where the candidate's product reads them, from the reset gates that are known."""
    size, width = bytes_of(zero), lanes(zero)
    inputs = tile.inputs + buffer_of(layer, 2) * tile.buffer + (layer.features + 2) * size
    for r in range(tile.rows):
        if t < length_of(layer, places, tile.first + r):
            mask = mask_at(layer, places, tile.direction, t, 2, tile.first + r, zero)
            state = state_before(layer, places, tile, t, r, zero)
            for i in range(0, layer.hidden, width):
                at, some = i * size, layer.hidden - i
                reset = load(gates + r * stride + layer.padded * size + at, zero) * load_part(state + at, some, zero)
                store(masked(reset, mask, at, some, zero), inputs + r * tile.input_row + at)
