"""The forward pass of a recurrent layer, compiled for the CPU: a tile of sequences goes through all steps."""

from __future__ import annotations

from typing import Any

import numpy as np

from .micro.activations import sigmoid, tanh
from .micro.gemm import IN_ROWS
from .micro.memory import LINE, aligned, keep
from .micro.packing import clear, copy_row, pack_panel
from .micro.simd import bytes_of, lanes, load, multiply_add, store, store_part, store_past_caches
from .micro.tile import VECTORS
from .recurrent_kernel import (
    LSTM,
    RESET_BEFORE,
    BatchTile,
    Layer,
    Places,
    activate_resets,
    copy_inputs,
    copy_state,
    gru_gates,
    kept_at,
    length_of,
    mask_at,
    multiply,
    multiply_candidate,
    multiply_states,
    output_at,
    reset_inputs,
    step_of,
    store_state,
    write_ones,
)
from .runtime.compilation import compiled, inner
from .runtime.threads import share

__all__ = ["forward_tiles", "pack_weights"]


@inner(inline="always")
def multiply_inputs(
    layer: Layer, places: Places, tile: BatchTile, inputs: int, count: int, target: int, zero: Any
) -> None:
    """Write the products of all gates with the inputs of ``count`` rows."""
    for gate in range(layer.gates):
        slot = gate if layer.cell == LSTM else (gate + 1) % 3
        multiply(layer, places, tile, inputs, count, gate, slot, 0, layer.features + 1, target, True, zero)


@inner(inline="always")
def keep_vector(layer: Layer, vector: Any, address: int) -> None:
    """Write a vector of what the backward pass needs."""
    if layer.past_caches:
        store_past_caches(vector, address)
    else:
        store(vector, address)


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
