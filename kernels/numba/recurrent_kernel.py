"""Recurrent layers over time, compiled for the CPU: what is done for a tile of sequences in one direction.

A tile's sequences go through all time steps together: their states, the products of a step and the gates stay in the
first cache levels. A step reads, for each gate, one row of numbers per sequence::

    1, x (C, masked), 1, h (H, masked)

whose product with the packed weights, biases among them, is the gate before its activation. Gates lie in slots of
``padded`` units each. In a GRU these are n's product with x, r, z, and n's product with h, which the reset gate
multiplies; in an LSTM i, f, g, o. Products of x take the GRU's first three slots, those of h the last three.

Where the GRU resets the state in front of the product (:data:`RESET_BEFORE`), the candidate's row holds ``r * h`` and
the first slot the whole product; the last one is not used, but by gradients, for a copy of the first.

The backward pass goes through the steps in the other order, some of them at a time (``chunk``): the gradients of a
chunk's gates are kept until they are multiplied, all at once, with the rows above, which gives the gradients of weights
and biases, and with the weights of x. Each tile has its own sums of the former, added in the order of tiles in the end.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from .micro.activations import sigmoid, tanh
from .micro.channel_blocks import carry_sums
from .micro.gemm import IN_ROWS, gemm
from .micro.memory import LINE, aligned, keep, prefetch
from .micro.packing import clear, copy_row, pack_panel
from .micro.simd import (
    broadcast,
    bytes_of,
    lanes,
    load,
    load_first,
    load_number,
    multiply_add,
    store,
    store_first,
    store_number,
    store_past_caches,
)
from .micro.tile import VECTORS
from .micro.transposition import transpose
from .runtime.compilation import compiled, inner
from .runtime.threads import share

__all__ = [
    "GRU",
    "LSTM",
    "RESET_BEFORE",
    "Layer",
    "Places",
    "backward_tiles",
    "forward_tiles",
    "pack_transposed",
    "pack_weights",
    "unpack_weights",
]

GRU, RESET_BEFORE, LSTM = 0, 1, 2  # cells

# Chunks of steps whose gradients of weights are added up before the sum, and later its rounding error, is carried to
# the total. Without that the bias gradients of LSTM(32) over 500 steps of 128 sequences err 1.5 to 6 times as torch's.
CARRIED = 8


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


# --- Rows of numbers ---


@inner(inline="always")
def load_part(address: int, count: int, zero: Any) -> Any:
    """Return the first ``count`` numbers at ``address``, a vector's lanes or fewer."""
    return load(address, zero) if count >= lanes(zero) else load_first(address, count, zero)


@inner(inline="always")
def store_part(vector: Any, address: int, count: int, zero: Any) -> None:
    """Write the first ``count`` numbers of a vector, all of its lanes or fewer."""
    if count >= lanes(zero):
        store(vector, address)
    else:
        store_first(vector, address, count)


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


# --- Products and gates ---


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
def multiply_inputs(
    layer: Layer, places: Places, tile: BatchTile, inputs: int, count: int, target: int, zero: Any
) -> None:
    """Write the products of all gates with the inputs of ``count`` rows."""
    for gate in range(layer.gates):
        slot = gate if layer.cell == LSTM else (gate + 1) % 3
        multiply(layer, places, tile, inputs, count, gate, slot, 0, layer.features + 1, target, True, zero)


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
def keep_vector(layer: Layer, vector: Any, address: int) -> None:
    """Write a vector of what the backward pass needs."""
    if layer.past_caches:
        store_past_caches(vector, address)
    else:
        store(vector, address)


@inner(inline="always")
def gru_gates(layer: Layer, place: int, line: int, zero: Any) -> Any:
    """Return r, z, n and n's product with h of the vector at ``place``, in the first slot."""
    if layer.cell == RESET_BEFORE:
        n = tanh(load(place, zero))
        return load(place + line, zero), load(place + 2 * line, zero), n, n
    r, z = sigmoid(load(place + line, zero)), sigmoid(load(place + 2 * line, zero))
    q = load(place + 3 * line, zero)
    return r, z, tanh(multiply_add(r, q, load(place, zero))), q


@inner
def gru_step(
    layer: Layer, places: Places, tile: BatchTile, t: int, following: int, goals: int, kept: int, zero: Any
) -> None:
    """Activate the gates of time ``t`` and update the states; write them, masked for ``following``, to ``goals``."""
    size, width = bytes_of(zero), lanes(zero)
    line, wide = layer.padded * size, layer.directions * layer.hidden * size
    output = output_at(layer, places, tile, t, zero)
    for r in range(tile.rows):
        place, state, goal = tile.slots + r * 4 * line, tile.h + r * line, kept + r * layer.kept * line
        if t >= length_of(layer, places, tile.first + r):
            rest_step(layer, places, tile, following, r, goals, output + r * wide, goal if kept else 0, zero)
            continue
        mask = mask_at(layer, places, tile.direction, following, 0, tile.first + r, zero)
        target = goals + r * tile.input_row + (layer.features + 2) * size
        for i in range(0, layer.hidden, width):
            at = i * size
            reset, z, n, q = gru_gates(layer, place + at, line, zero)
            h = multiply_add(z, load(state + at, zero) - n, n)
            store(h, state + at)
            store_part(h, output + r * wide + at, layer.hidden - i, zero)
            store_state(layer, tile, h, at, mask, target, zero)
            if kept:
                keep_vector(layer, n, goal + at)
                keep_vector(layer, reset, goal + line + at)
                keep_vector(layer, z, goal + 2 * line + at)
                keep_vector(layer, q, goal + 3 * line + at)


@inner
def lstm_step(
    layer: Layer, places: Places, tile: BatchTile, t: int, following: int, goals: int, kept: int, zero: Any
) -> None:
    """Do for an LSTM what :func:`gru_step` does for a GRU."""
    size, width = bytes_of(zero), lanes(zero)
    line, wide = layer.padded * size, layer.directions * layer.hidden * size
    output = output_at(layer, places, tile, t, zero)
    for r in range(tile.rows):
        place, cell, goal = tile.slots + r * 4 * line, tile.c + r * line, kept + r * layer.kept * line
        if t >= length_of(layer, places, tile.first + r):
            rest_step(layer, places, tile, following, r, goals, output + r * wide, goal if kept else 0, zero)
            continue
        mask = mask_at(layer, places, tile.direction, following, 0, tile.first + r, zero)
        target = goals + r * tile.input_row + (layer.features + 2) * size
        for i in range(0, layer.hidden, width):
            at = i * size
            in_, forget = sigmoid(load(place + at, zero)), sigmoid(load(place + line + at, zero))
            g, out = tanh(load(place + 2 * line + at, zero)), sigmoid(load(place + 3 * line + at, zero))
            c = multiply_add(forget, load(cell + at, zero), in_ * g)
            h = out * tanh(c)
            store(c, cell + at)
            store(h, tile.h + r * line + at)
            store_part(h, output + r * wide + at, layer.hidden - i, zero)
            store_state(layer, tile, h, at, mask, target, zero)
            if kept:
                keep_vector(layer, c, goal + at)
                if layer.kept > 1:
                    keep_vector(layer, in_, goal + line + at)
                    keep_vector(layer, forget, goal + 2 * line + at)
                    keep_vector(layer, g, goal + 3 * line + at)
                    keep_vector(layer, out, goal + 4 * line + at)


@inner(inline="always")
def output_at(layer: Layer, places: Places, tile: BatchTile, t: int, zero: Any) -> Any:
    """Return where the output of a tile's first sequence at time ``t`` is."""
    numbers = (t * layer.batch + tile.first) * layer.directions + tile.direction
    return places.output + numbers * layer.hidden * bytes_of(zero)


@inner
def rest_step(
    layer: Layer, places: Places, tile: BatchTile, following: int, r: int, goals: int, output: int, kept: int, zero: Any
) -> None:
    """Do the step of a sequence that has ended, or not begun: its output is zero, and its state stays."""
    clear(output, layer.hidden, zero)
    if kept:
        clear(kept, layer.kept * layer.padded, zero)
    state = tile.h + r * layer.padded * bytes_of(zero)
    copy_state(layer, places, tile, following, r, state, goals, zero)


@inner
def forward_tile(part: int, layer: Layer, places: Places, zero: Any) -> None:
    """Take a tile's sequences through all steps of a direction."""
    size = bytes_of(zero)
    line = layer.padded * size
    direction, first = part // layer.tiles, layer.batch * (part % layer.tiles) // layer.tiles
    rows = layer.batch * (part % layer.tiles + 1) // layer.tiles - first
    step_inputs, step_slots, buffer = rows * layer.input_row, rows * 4 * line, layer.ahead * rows * layer.input_row
    total = layer.buffers * buffer + layer.ahead * step_slots + 2 * rows * line
    scratch = np.empty(total + 2 * LINE, np.uint8)
    inputs = aligned(scratch.ctypes.data)
    slots = inputs + layer.buffers * buffer
    h = slots + layer.ahead * step_slots
    clear(inputs, total // size, zero)
    write_ones(layer, inputs, layer.input_row, layer.ahead * layer.buffers * rows, zero)
    steps = 0
    for r in range(rows):
        steps = max(steps, length_of(layer, places, first + r))
    tile = BatchTile(direction, first, rows, steps, inputs, layer.input_row, buffer, slots, h, h + rows * line)
    for r in range(rows):
        start = ((direction * layer.batch) + first + r) * layer.hidden * size
        copy_row(h + r * line, places.h0 + start, size, layer.hidden, zero)
        if layer.cell == LSTM:
            copy_row(tile.c + r * line, places.c0 + start, size, layer.hidden, zero)
    for r in range(rows):
        copy_state(layer, places, tile, step_of(layer, direction, 0), r, h + r * line, inputs, zero)
    for number in range(layer.steps):
        k = number % layer.ahead
        if k == 0:
            count = min(layer.ahead, layer.steps - number)
            for i in range(count):
                t = step_of(layer, direction, number + i)
                copy_inputs(layer, places, tile, t, inputs + i * step_inputs, zero)
            if layer.ahead > 1:
                multiply_inputs(layer, places, tile, inputs, count * rows, slots, zero)
        t = step_of(layer, direction, number)
        following = step_of(layer, direction, min(number + 1, layer.steps - 1))
        tile = BatchTile(
            direction, first, rows, steps, inputs + k * step_inputs, layer.input_row, buffer, slots + k * step_slots, h,
            h + rows * line,
        )  # fmt: skip
        if t < steps:
            multiply_states(layer, places, tile, tile.inputs, tile.slots, layer.ahead == 1, zero)
            if layer.cell == RESET_BEFORE:
                activate_resets(layer, tile, zero)
                reset_inputs(layer, places, tile, t, tile.slots, 4 * line, zero)
                multiply_candidate(layer, places, tile, tile.inputs, tile.slots, layer.ahead == 1, zero)
        kept = kept_at(layer, places, tile, t, zero) if places.kept else 0
        goals = inputs + (k + 1) % layer.ahead * step_inputs
        if layer.cell == LSTM:
            lstm_step(layer, places, tile, t, following, goals, kept, zero)
        else:
            gru_step(layer, places, tile, t, following, goals, kept, zero)
    for r in range(rows):
        end = ((direction * layer.batch) + first + r) * layer.hidden * size
        copy_row(places.h_last + end, h + r * line, size, layer.hidden, zero)
        if layer.cell == LSTM:
            copy_row(places.c_last + end, tile.c + r * line, size, layer.hidden, zero)
    keep(scratch)


@compiled
def forward_tiles(layer: Layer, places: Places, zero: Any, begin: int, end: int, threads: int, launch: int) -> None:
    """Take the tiles ``begin`` to ``end``, of the first direction, then of the second, through all steps."""
    share(begin, end, threads, launch, forward_tile, (layer, places, zero))


@compiled
def pack_weights(layer: Layer, source: Any, packed: int, zero: Any) -> None:
    """Write one direction's weights, gate by gate, as the products of the forward pass read them.

    ``source`` are the addresses of weight_ih, weight_hh, bias_ih and bias_hh, dense; 0 for no bias.
    """
    weight_ih, weight_hh, bias_ih, bias_hh = source
    size, width = bytes_of(zero), lanes(zero)
    taps = layer.features + layer.hidden + 2
    for gate in range(layer.gates):
        for o in range(0, layer.padded, VECTORS * width):
            outputs = min(VECTORS * width, layer.hidden - o)
            first = gate * layer.hidden + o
            place = packed
            for weight, bias, count in ((weight_ih, bias_ih, layer.features), (weight_hh, bias_hh, layer.hidden)):
                clear(place, VECTORS * width, zero)
                if bias:
                    copy_row(place, bias + first * size, size, outputs, zero)
                place += IN_ROWS
                pack_panel(weight + first * count * size, count * size, count, 1, outputs, VECTORS, place, zero)
                place += count * IN_ROWS
            packed += taps * IN_ROWS


# --- The backward pass ---


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


@inner(inline="always")
def prefetch_kept(layer: Layer, places: Places, tile: BatchTile, t: int, r: int, zero: Any) -> None:
    """Fetch into the second cache level what was kept of sequence ``r`` before time ``t``: products come first."""
    before = t + 1 if tile.direction else t - 1
    if 0 <= before < layer.steps:
        row = layer.kept * layer.padded * bytes_of(zero)
        place = kept_at(layer, places, tile, before, zero) + r * row
        for i in range(0, row, LINE):
            prefetch(place + i, 2)


@inner(inline="always")
def cell_before(layer: Layer, places: Places, tile: BatchTile, t: int, r: int, zero: Any) -> Any:
    """Return where the LSTM's cell state of sequence ``r`` before time ``t`` is."""
    n, size = tile.first + r, bytes_of(zero)
    before = t + 1 if tile.direction else t - 1
    if before < 0 or before >= length_of(layer, places, n):
        return places.c0 + (tile.direction * layer.batch + n) * layer.hidden * size
    return kept_at(layer, places, tile, before, zero) + r * layer.kept * layer.padded * size


@inner
def prepare_inputs(layer: Layer, places: Places, tile: BatchTile, t: int, zero: Any) -> None:
    """Write what the products of time ``t`` read; zeros for sequences that do not take this step."""
    size = bytes_of(zero)
    copy_inputs(layer, places, tile, t, tile.inputs, zero)
    for r in range(tile.rows):
        if t < length_of(layer, places, tile.first + r):
            state = state_before(layer, places, tile, t, r, zero)
            copy_state(layer, places, tile, t, r, state, tile.inputs, zero)
        else:
            for b in range(layer.buffers):
                row = tile.inputs + b * tile.buffer + r * tile.input_row
                clear(row + size, layer.features, zero)
                clear(row + (layer.features + 2) * size, layer.hidden, zero)


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


@inner
def activate(layer: Layer, tile: BatchTile, zero: Any) -> None:
    """Turn the products in a tile's slots into gates: n, r, z and n's product with h, or i, f, g, o."""
    size, width = bytes_of(zero), lanes(zero)
    line = layer.padded * size
    for r in range(tile.rows):
        for i in range(0, layer.padded, width):
            place = tile.slots + r * 4 * line + i * size
            if layer.cell == LSTM:
                store(sigmoid(load(place, zero)), place)
                store(sigmoid(load(place + line, zero)), place + line)
                store(tanh(load(place + 2 * line, zero)), place + 2 * line)
                store(sigmoid(load(place + 3 * line, zero)), place + 3 * line)
            else:
                reset, z, n, q = gru_gates(layer, place, line, zero)
                store(n, place)
                store(reset, place + line)
                store(z, place + 2 * line)
                store(q, place + 3 * line)


@inner(inline="always")
def upstream_of(layer: Layer, places: Places, tile: BatchTile, t: int, r: int, zero: Any) -> Any:
    """Return where the gradient of the output of sequence ``r`` at time ``t`` is, 0 if there is none."""
    if places.d_output == 0:
        return 0
    row = ((t * layer.batch + tile.first + r) * layer.directions + tile.direction) * layer.hidden
    return places.d_output + row * bytes_of(zero)


@inner
def gru_step_back(
    layer: Layer, places: Places, tile: BatchTile, t: int, gates: int, stride: int, goals: int, zero: Any
) -> None:
    """Write the gradients of a step's products to the slots at ``goals``, and what z passes on to the state's.

    ``tile.h`` holds the gradients of the states behind the step, and then their parts that z passes on. Where the GRU
    resets before, the gradient of r is not written.
    """
    size, width = bytes_of(zero), lanes(zero)
    line, one = layer.padded * size, broadcast(1.0, zero)
    for r in range(tile.rows):
        goal = goals + r * 4 * line
        if t >= length_of(layer, places, tile.first + r):
            clear(goal, 4 * layer.padded, zero)
            continue
        upstream = upstream_of(layer, places, tile, t, r, zero)
        state = state_before(layer, places, tile, t, r, zero)
        prefetch_kept(layer, places, tile, t, r, zero)
        for i in range(0, layer.hidden, width):
            at, some = i * size, layer.hidden - i
            place = gates + r * stride + at
            n, z = load(place, zero), load(place + 2 * line, zero)
            dh = load(tile.h + r * line + at, zero)
            if upstream:
                dh = dh + load_part(upstream + at, some, zero)
            kept = dh * z
            dn = (dh - kept) * (one - n * n)
            store(dn, goal + at)
            store(kept * (load_part(state + at, some, zero) - n) * (one - z), goal + 2 * line + at)
            store(kept, tile.h + r * line + at)
            if layer.cell == RESET_BEFORE:
                store(dn, goal + 3 * line + at)
            else:
                reset, q = load(place + line, zero), load(place + 3 * line, zero)
                dq = dn * reset
                store(dq, goal + 3 * line + at)
                store(dq * q * (one - reset), goal + line + at)


@inner
def reset_step_back(
    layer: Layer, places: Places, tile: BatchTile, t: int, gates: int, stride: int, goals: int, products: int, zero: Any
) -> None:
    """Write the gradients of r's products, and add what r passes on to those of the states.

    ``products`` are the gradients of the reset states.
    """
    size, width = bytes_of(zero), lanes(zero)
    line, one = layer.padded * size, broadcast(1.0, zero)
    for r in range(tile.rows):
        if t >= length_of(layer, places, tile.first + r):
            continue
        mask = mask_at(layer, places, tile.direction, t, 2, tile.first + r, zero)
        state = state_before(layer, places, tile, t, r, zero)
        for i in range(0, layer.hidden, width):
            at, some = i * size, layer.hidden - i
            reset = load(gates + r * stride + line + at, zero)
            dh = reset * masked(load(products + r * line + at, zero), mask, at, some, zero)
            store(dh * load_part(state + at, some, zero) * (one - reset), goals + r * 4 * line + line + at)
            store(load(tile.h + r * line + at, zero) + dh, tile.h + r * line + at)


@inner
def lstm_step_back(
    layer: Layer, places: Places, tile: BatchTile, t: int, gates: int, stride: int, goals: int, zero: Any
) -> None:
    """Do for an LSTM what :func:`gru_step_back` does for a GRU; nothing is passed on but the cell's gradient."""
    size, width = bytes_of(zero), lanes(zero)
    line, one = layer.padded * size, broadcast(1.0, zero)
    cells = kept_at(layer, places, tile, t, zero)
    for r in range(tile.rows):
        goal = goals + r * 4 * line
        if t >= length_of(layer, places, tile.first + r):
            clear(goal, 4 * layer.padded, zero)
            continue
        upstream = upstream_of(layer, places, tile, t, r, zero)
        before = cell_before(layer, places, tile, t, r, zero)
        prefetch_kept(layer, places, tile, t, r, zero)
        for i in range(0, layer.hidden, width):
            at, some = i * size, layer.hidden - i
            place = gates + r * stride + at
            in_, forget = load(place, zero), load(place + line, zero)
            g, out = load(place + 2 * line, zero), load(place + 3 * line, zero)
            squashed = tanh(load(cells + r * layer.kept * line + at, zero))
            dh = load(tile.h + r * line + at, zero)
            if upstream:
                dh = dh + load_part(upstream + at, some, zero)
            passed = dh * out
            dc = multiply_add(passed, one - squashed * squashed, load(tile.c + r * line + at, zero))
            through, forgotten = dc * in_, dc * forget
            store(through * g * (one - in_), goal + at)
            store(forgotten * load_part(before + at, some, zero) * (one - forget), goal + line + at)
            store(through * (one - g * g), goal + 2 * line + at)
            store(passed * squashed * (one - out), goal + 3 * line + at)
            store(forgotten, tile.c + r * line + at)


@inner(inline="always")
def multiply_back(
    layer: Layer,
    places: Places,
    tile: BatchTile,
    goals: int,
    gate: int,
    gates: int,
    target: int,
    fresh: bool,
    zero: Any,
) -> None:
    """Write, or add, the gradient of the states that some gates, in torch's order, read."""
    size, width = bytes_of(zero), lanes(zero)
    line, vectors = layer.padded * size, layer.padded // width
    panel = layer.gates * layer.hidden * IN_ROWS
    weights = places.packed_h + tile.direction * ((vectors + VECTORS - 1) // VECTORS) * panel
    slot = gate if layer.cell == LSTM else gate + 1
    gemm(
        target, line, goals + slot * line, 4 * line, tile.rows, (gates, line, layer.hidden, size),
        weights + gate * layer.hidden * IN_ROWS, IN_ROWS, panel, vectors, fresh, zero,
    )  # fmt: skip


@inner
def add_masked(
    layer: Layer, places: Places, tile: BatchTile, t: int, gates: int, products: int, fresh: bool, zero: Any
) -> None:
    """Add the products of some gates, masked, to the gradients of the states, or begin these with them."""
    size, width = bytes_of(zero), lanes(zero)
    line = layer.padded * size
    for r in range(tile.rows):
        if t >= length_of(layer, places, tile.first + r):
            continue
        mask = mask_at(layer, places, tile.direction, t, 0, tile.first + r, zero)
        for i in range(0, layer.hidden, width):
            at, some = r * line + i * size, layer.hidden - i
            total = broadcast(zero, zero) if fresh else load(tile.h + at, zero)
            for gate in range(gates):
                product = load(products + gate * tile.rows * line + at, zero)
                if mask:
                    factor = load_part(mask + gate * layer.mask_gate + i * size, some, zero)
                    total = multiply_add(product, factor, total)
                else:
                    total = total + product
            store(total, tile.h + at)


@inner
def pass_on(layer: Layer, places: Places, tile: BatchTile, t: int, goals: int, products: int, zero: Any) -> None:
    """Give the states before a step the gradients that the gates read them with; the candidate's, if reset, aside."""
    gates = 2 if layer.cell == RESET_BEFORE else layer.gates
    if places.mask == 0 and places.lengths == 0:
        multiply_back(layer, places, tile, goals, 0, gates, tile.h, layer.cell == LSTM, zero)
        return
    apart = gates if layer.mask_gate else 1
    for gate in range(apart):
        goal = products + gate * tile.rows * layer.padded * bytes_of(zero)
        multiply_back(layer, places, tile, goals, gate, gates // apart, goal, True, zero)
    add_masked(layer, places, tile, t, apart, products, layer.cell == LSTM, zero)


@inner
def add_weights(
    layer: Layer, tile: BatchTile, chunk: int, inputs: int, goals: int, target: int, fresh: bool, zero: Any
) -> None:
    """Add the gradients of weights and biases from a chunk of steps, or write those of the first one."""
    size, width = bytes_of(zero), lanes(zero)
    line, vectors, rows = layer.padded * size, layer.padded // width, layer.features + layer.hidden + 2
    taps = (chunk, layer.buffers * tile.rows * tile.input_row, tile.rows, tile.input_row)
    for gate in range(layer.gates):
        source = inputs + buffer_of(layer, gate) * tile.buffer
        goal = target + gate * rows * line
        slot = gate if layer.cell == LSTM else gate + 1
        begin = 0
        if layer.cell != LSTM and gate == 2:
            begin = layer.features + 1
            gemm(goal, line, source, size, begin, taps, goals, 4 * line, IN_ROWS, vectors, fresh, zero)
        gemm(
            goal + begin * line, line, source + begin * size, size, rows - begin, taps, goals + slot * line, 4 * line,
            IN_ROWS, vectors, fresh, zero,
        )  # fmt: skip


@inner
def write_input_gradients(
    layer: Layer, places: Places, tile: BatchTile, number: int, chunk: int, goals: int, products: int, zero: Any
) -> None:
    """Write the gradients of the inputs of a chunk of steps, the last of which is ``number``."""
    size, width = bytes_of(zero), lanes(zero)
    line, vectors = layer.padded * size, (layer.features + width - 1) // width
    panel = layer.gates * layer.hidden * IN_ROWS
    weights = places.packed_x + tile.direction * ((vectors + VECTORS - 1) // VECTORS) * panel
    wide = vectors * width * size
    apart = layer.gates if places.input_mask != 0 and layer.input_mask_gate != 0 else 1
    count = chunk * tile.rows
    for slot in range(apart):
        gemm(
            products + slot * count * wide, wide, goals + slot * line, 4 * line, count,
            (layer.gates // apart, line, layer.hidden, size), weights + slot * layer.hidden * IN_ROWS, IN_ROWS, panel,
            vectors, True, zero,
        )  # fmt: skip
    for k in range(chunk):
        t = step_of(layer, tile.direction, number - k)
        for r in range(tile.rows):
            n = tile.first + r
            source = products + (k * tile.rows + r) * wide
            target = places.dx + tile.direction * layer.dx_direction + t * layer.dx_step + n * layer.dx_batch
            mask = places.input_mask + n * layer.features * size
            for i in range(0, layer.features, width):
                at, some = i * size, layer.features - i
                total = load(source + at, zero)
                if places.input_mask:
                    first = 0 if layer.cell == LSTM or apart == 1 else 2  # the gate in the first slot
                    total = total * load_part(mask + first * layer.input_mask_gate + at, some, zero)
                    for slot in range(1, apart):
                        gate = slot if layer.cell == LSTM else slot - 1
                        factor = load_part(mask + gate * layer.input_mask_gate + at, some, zero)
                        total = multiply_add(load(source + slot * count * wide + at, zero), factor, total)
                store_part(total, target + at, some, zero)


@inner
def backward_tile(part: int, layer: Layer, places: Places, zero: Any) -> None:
    """Take the gradients of a tile's sequences through all steps of a direction, the last one first."""
    size, width = bytes_of(zero), lanes(zero)
    line = layer.padded * size
    direction, first = part // layer.tiles, layer.batch * (part % layer.tiles) // layer.tiles
    rows = layer.batch * (part % layer.tiles + 1) // layer.tiles - first
    wide = (layer.features + width - 1) // width * width * size
    step_inputs, step_goals = layer.buffers * rows * layer.input_row, rows * 4 * line
    sizes = (
        layer.chunk * step_inputs, layer.chunk * step_goals, rows * 4 * line, rows * line, rows * line,
        rows * 4 * line, layer.chunk * rows * wide * (4 if layer.input_mask_gate else 1),
        layer.gates * (layer.features + layer.hidden + 2) * line,
    )  # fmt: skip
    total = LINE
    for one in sizes:
        total += one + LINE
    scratch = np.empty(total, np.uint8)
    inputs = aligned(scratch.ctypes.data)
    goals = aligned(inputs + sizes[0])
    slots = aligned(goals + sizes[1])
    dh = aligned(slots + sizes[2])
    dc = aligned(dh + sizes[3])
    products = aligned(dc + sizes[4])
    dx = aligned(products + sizes[5])
    sums = aligned(dx + sizes[6])
    clear(inputs, (dx - inputs) // size, zero)
    write_ones(layer, inputs, layer.input_row, layer.chunk * layer.buffers * rows, zero)
    steps = 0
    for r in range(rows):
        n = first + r
        steps = max(steps, length_of(layer, places, n))
        last = (direction * layer.batch + n) * layer.hidden * size
        if places.dh_last:
            copy_row(dh + r * line, places.dh_last + last, size, layer.hidden, zero)
        if places.dc_last:
            copy_row(dc + r * line, places.dc_last + last, size, layer.hidden, zero)
    totals = places.d_weights + part * sizes[7]
    carried = layer.steps > CARRIED * layer.chunk
    if carried:
        clear(totals, sizes[7] // size, zero)
        clear(sums, sizes[7] // size, zero)
    chunks = 0
    recomputed = layer.kept < 4
    done = 0
    for number in range(layer.steps - 1, -1, -1):
        t = step_of(layer, direction, number)
        tile = BatchTile(
            direction, first, rows, steps, inputs + done * step_inputs, layer.input_row, rows * layer.input_row, slots,
            dh, dc,
        )  # fmt: skip
        step = goals + done * step_goals
        prepare_inputs(layer, places, tile, t, zero)
        gates, stride = slots, 4 * line
        if recomputed:
            multiply_states(layer, places, tile, tile.inputs, slots, recomputed, zero)
            if layer.cell == RESET_BEFORE:
                activate_resets(layer, tile, zero)
                reset_inputs(layer, places, tile, t, slots, stride, zero)
                multiply_candidate(layer, places, tile, tile.inputs, slots, recomputed, zero)
            activate(layer, tile, zero)
        else:
            stride = layer.kept * line
            gates = kept_at(layer, places, tile, t, zero) + (line if layer.cell == LSTM else 0)
            if layer.cell == RESET_BEFORE:
                reset_inputs(layer, places, tile, t, gates, stride, zero)
        if layer.cell == LSTM:
            lstm_step_back(layer, places, tile, t, gates, stride, step, zero)
        else:
            gru_step_back(layer, places, tile, t, gates, stride, step, zero)
            if layer.cell == RESET_BEFORE:
                multiply_back(layer, places, tile, step, 2, 1, products, True, zero)
                reset_step_back(layer, places, tile, t, gates, stride, step, products, zero)
        pass_on(layer, places, tile, t, step, products, zero)
        done += 1
        if done == layer.chunk or number == 0:
            fresh = not carried and chunks == 0
            add_weights(layer, tile, done, inputs, goals, sums if carried else totals, fresh, zero)
            chunks += 1
            if carried and (chunks % CARRIED == 0 or number == 0):
                carry_sums(sums, totals, sizes[7], zero)
            if places.dx:
                write_input_gradients(layer, places, tile, number + done - 1, done, goals, dx, zero)
            done = 0
    for r in range(rows):
        start = (direction * layer.batch + first + r) * layer.hidden * size
        copy_row(places.dh0 + start, dh + r * line, size, layer.hidden, zero)
        if layer.cell == LSTM:
            copy_row(places.dc0 + start, dc + r * line, size, layer.hidden, zero)
    keep(scratch)


@compiled
def backward_tiles(layer: Layer, places: Places, zero: Any, begin: int, end: int, threads: int, launch: int) -> None:
    """Take the gradients of the tiles ``begin`` to ``end`` through all steps."""
    share(begin, end, threads, launch, backward_tile, (layer, places, zero))


@compiled
def pack_transposed(layer: Layer, weight: int, columns: int, first_gate: int, packed: int, zero: Any) -> None:
    """Write one direction's weight ``(G * H, columns)``, gates from ``first_gate`` on, as gradients are multiplied."""
    size, width = bytes_of(zero), lanes(zero)
    for o in range(0, (columns + width - 1) // width * width, VECTORS * width):
        for gate in range(layer.gates):
            source = weight + ((gate + first_gate) % layer.gates * layer.hidden * columns + o) * size
            for j in range(layer.hidden):
                clear(packed, VECTORS * width, zero)
                copy_row(packed, source + j * columns * size, size, min(VECTORS * width, columns - o), zero)
                packed += IN_ROWS


@compiled
def unpack_weights(layer: Layer, totals: int, targets: Any, zero: Any) -> None:
    """Write one direction's gradients, ``(G, C + H + 2, padded)`` at ``totals``, to those of its weights and biases.

    ``targets`` are the addresses of the gradients of weight_ih, weight_hh, bias_ih and bias_hh, dense; 0 for no bias.
    """
    d_ih, d_hh, db_ih, db_hh = targets
    size = bytes_of(zero)
    line, hidden = layer.padded * size, layer.hidden
    for gate in range(layer.gates):
        for weight, bias, count in ((d_ih, db_ih, layer.features), (d_hh, db_hh, hidden)):
            if bias:
                copy_row(bias + gate * hidden * size, totals, size, hidden, zero)
            totals += line
            transpose(totals, line, weight + gate * hidden * count * size, count * size, count, hidden, zero)
            totals += count * line
