"""The backward pass of a recurrent layer, compiled for the CPU.

It goes through the steps in the other order, some of them at a time (``chunk``). The gradients of a chunk's gates are
kept. Multiplied with the rows that the gates' products read, all at once, they give the gradients of weights and
biases; multiplied with the weights of x, those of the inputs. Each tile has its own sums of the former, added in the
order of tiles in the end.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .micro.activations import sigmoid, tanh
from .micro.channel_blocks import carry_sums
from .micro.gemm import IN_ROWS, gemm
from .micro.memory import LINE, aligned, keep, prefetch
from .micro.packing import clear, copy_row
from .micro.simd import broadcast, bytes_of, lanes, load, load_part, multiply_add, store, store_part
from .micro.tile import VECTORS
from .micro.transposition import transpose
from .recurrent_kernel import (
    LSTM,
    RESET_BEFORE,
    BatchTile,
    Layer,
    Places,
    activate_resets,
    buffer_of,
    copy_inputs,
    copy_state,
    gru_gates,
    kept_at,
    length_of,
    mask_at,
    masked,
    multiply_candidate,
    multiply_states,
    reset_inputs,
    state_before,
    step_of,
    write_ones,
)
from .runtime.compilation import compiled, inner
from .runtime.threads import share

__all__ = ["backward_tiles", "pack_transposed", "unpack_weights"]

# Chunks of steps whose gradients of weights are added up before the sum, and later its rounding error, is carried to
# the total. Without that the bias gradients of LSTM(32) over 500 steps of 128 sequences err 1.5 to 6 times as torch's.
CARRIED = 8


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
    wanted = places.d_weights != 0
    carried = wanted and layer.steps > CARRIED * layer.chunk
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
        if wanted or recomputed:
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
            if wanted and layer.cell == RESET_BEFORE:
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
            if wanted:
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
