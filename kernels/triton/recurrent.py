"""GRU and LSTM over all time steps on a GPU, in one launch a pass, with dropout masks on input and state.

torch multiplies the input of all steps by its weights at once, and behind the backward kernel, which writes the gates'
gradients of all steps, has from them the gradients of input, weights and biases: no sum is shared by programs, and the
same input gives the same bits. In between a program goes through all steps of a tile of sequences, see
:mod:`.device.recurrent`; programs wait for none but themselves.

States and sums are float32 whatever the tensors are. The state is multiplied in TF32 or exactly as
:func:`.launch.precision` says, torch's own products obey torch's switch for matrix products. ``saved`` is
(D, L, N, S, H): nothing for :data:`~seqconv.kernels.recurrence.NOTHING`; for ``STATES`` an LSTM's cell states before
every step, of a GRU nothing, whose states are the output; for ``EVERYTHING`` the gates, too. Where they were not kept,
torch computes the gates of all steps again, in products that wait for no step.

Where these kernels are slow: weights that do not fit into a program's shared memory (more than 128 hidden units; of an
LSTM in float32 more than 64) are read from the L2 cache by every program at every step. Nothing here was timed on a
GPU.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..recurrence import CELLS, EVERYTHING, NOTHING, Cell, Gradients, Masks, Weights
from .configurations import power_of_two
from .groups import Blocks, Products, Recurrence
from .launch import architecture, device_code, kind_of, on_device, processors
from .replay import empty, launch

__all__ = ["backward", "empty_gradient", "forward", "saved_format"]


class RecurrentTile(NamedTuple):
    """Sequences of a program, its warps; hidden units and numbers of the reduction at a time, 0 if all are one block.

    Where it is ``exact``, products of numbers of whatever dtype are multiply-adds of float32.
    """

    block_m: int
    num_warps: int
    exact: bool = False
    block_o: int = 0
    block_r: int = 0
    num_stages: int = 1


# By kind of number, the tile for at most so many hidden units: where a program for each fits on the device at once, and
# for more sequences. The first ones have few sequences, whose steps are short; the others the least work in all. Chosen
# by the census, not by a clock. A step's instructions of a warp x warps and its barriers, on sm_90, forward and back:
#
#   hidden, tile       GRU                                LSTM                               what bounds the step
#   32,   4,  4 exact  231 x 4, 2      217 x 4, 2         311 x 4, 2      297 x 4, 2         shared memory, 384 clocks
#   32,  16,  4        351 x 4, 16     271 x 4, 26        520 x 4, 20     412 x 4, 28        barriers
#   64,   2,  4 exact  360 x 4, 2      363 x 4, 2         483 x 4, 2      492 x 4, 2         shared memory, 768 clocks
#   64,  16,  8        384 x 8, 16     296 x 8, 26        557 x 8, 20     443 x 8, 28        issue and barriers
#   128, 16, 16        411 x 16, 16    352 x 16, 26       603 x 16, 20    508 x 16, 28       issue
#   128,  1,  4 exact  618 x 4, 2      651 x 4, 2         does not fit                       shared memory, 1536 clocks
#
# Exact products leave every thread one number of the state, where memory has it: only the state crosses a barrier.
# Where a thread has more, or tensor cores multiply, each number read or written does. (16, 8) spilled at 128.
FEW: dict[str, dict[int, RecurrentTile]] = {
    "16": {32: RecurrentTile(4, 4, True), 64: RecurrentTile(2, 4, True), 128: RecurrentTile(16, 16)},
    "tf32": {32: RecurrentTile(4, 4, True), 64: RecurrentTile(2, 4, True), 128: RecurrentTile(1, 4, True)},
    "ieee": {32: RecurrentTile(4, 4, True), 64: RecurrentTile(2, 4, True), 128: RecurrentTile(1, 4, True)},
}
MANY: dict[str, dict[int, RecurrentTile]] = {
    "16": {32: RecurrentTile(16, 4), 64: RecurrentTile(16, 8), 128: RecurrentTile(16, 16)},
    "tf32": {32: RecurrentTile(16, 4), 64: RecurrentTile(16, 8), 128: RecurrentTile(16, 8)},
    "ieee": {32: RecurrentTile(8, 8, True), 64: RecurrentTile(8, 16, True), 128: RecurrentTile(4, 16, True)},
}
WIDE = {
    "16": RecurrentTile(16, 8, False, 64, 64, 3),
    "tf32": RecurrentTile(16, 8, False, 64, 32, 3),
    "ieee": RecurrentTile(16, 8, True, 64, 32, 3),
}
LEAST = 16  # numbers of a reduction that a product has
# Bytes of shared memory that a program may have, what other GPUs have at least, and what it takes beside its weights.
SHARED = {"sm_80": 163 * 1024, "sm_90": 227 * 1024, "sm_100": 227 * 1024, "sm_103": 227 * 1024}
SHARED_ELSEWHERE, SHARED_BESIDE = 64 * 1024, 20 * 1024


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
    """Run a layer; return the output (L, N, D * H), the last states, (D, N, H) each, and what ``keep`` says.

    Operands are those of :mod:`seqconv.kernels.recurrence`; tensors are of one dtype, float32, float16 or bfloat16.
    """
    kind, (steps, samples, _) = CELLS[cell], input.shape
    group = _group(kind, weights, masks, slots=_slots(kind, keep))
    x = _project(input, weights, masks)
    output = empty(input, (steps, samples, group.D * group.H))
    last = tuple(empty(input, (group.D, samples, group.H)) for _ in states)
    saved = empty(input, saved_format(cell, input, weights, keep)[0])
    if samples:
        _launch(
            "forward_kernel", input, group,
            x, _weight(weights, back=False), *_biases(weights), _contiguous(masks.recurrent), _lengths(lengths, input),
            *_pair(tuple(map(_contiguous, states))), output, *_pair(last), saved if group.slots else None,
        )  # fmt: skip
    return output, last, saved


def saved_format(
    cell: str, input: Tensor, weights: Sequence[Weights], keep: int
) -> tuple[tuple[int, ...], torch.dtype]:
    """Return the shape and dtype of ``saved``."""
    slots, hidden = _slots(CELLS[cell], keep), weights[0].weight_hh.size(1)
    return (len(weights), input.size(0), input.size(1), slots, hidden) if slots else (0,), input.dtype


def empty_gradient(input: Tensor) -> Tensor:
    """Return memory as of the gradient of the input."""
    return empty(input, tuple(input.shape))


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
    """Return the gradients of input, states and weights that are ``wanted``, all contiguous.

    ``output`` and ``saved`` are :func:`forward`'s, which must have kept something; gradients may have any strides. The
    gradients of states are none if they are not wanted.
    """
    kind, (steps, samples, _) = CELLS[cell], input.shape
    group = _group(kind, weights, masks, slots=_slots(kind, EVERYTHING))
    there = _lengths(lengths, input)
    before = _states_before(output, states[0], there)
    if saved.dim() < 5 or saved.size(3) < group.slots:
        saved = _gates(kind, input, before, weights, masks, saved)
    dgates = empty(input, (group.D, steps, samples, group.gradients, group.H))
    dstates = tuple(empty(one, tuple(one.shape)) for one in states) if wanted[1] else ()
    if samples and any(wanted):
        dlast = (None,) * len(states) if last_gradients is None else tuple(map(_contiguous, last_gradients))
        _launch(
            "backward_kernel", input, group,
            _contiguous(gradient), *_pair(dlast), saved, None if group.lstm else before, _weight(weights, back=True),
            _contiguous(masks.recurrent), there, dgates, *_pair(dstates or (None,)),
        )  # fmt: skip
    dinput, dweights = None, None
    if wanted[0]:
        dinput = _input_gradient(group, dgates, weights, masks.input)
    if wanted[2]:
        dweights = tuple(
            _weight_gradients(group, d, dgates, input, before, own, masks, saved) for d, own in enumerate(weights)
        )
    return Gradients(dinput, dstates, dweights)


def _slots(kind: Cell, keep: int) -> int:
    """Return how many numbers of each hidden unit and step are kept."""
    if keep == NOTHING:
        return 0
    own = kind.states - 1  # the cell state
    return own if keep != EVERYTHING else own + kind.gates + (kind.name == "gru")


def _group(kind: Cell, weights: Sequence[Weights], masks: Masks, slots: int) -> Recurrence:
    recurrent = masks.recurrent
    return Recurrence(
        lstm=kind.states == 2,
        reset_after=kind.reset_after,
        gates=kind.gates,
        H=weights[0].weight_hh.size(1),
        D=len(weights),
        masks=0 if recurrent is None else recurrent.size(2),
        each_step=recurrent is not None and recurrent.size(1) > 1,
        apart=masks.input is not None and masks.input.size(0) > 1,
        slots=slots,
        gradients=kind.gates + (kind.name == "gru"),
    )


def _launch(name: str, input: Tensor, group: Recurrence, *arguments: Tensor | None) -> None:
    """Launch a pass over all sequences, the one for weights that programs keep or the one for those they do not."""
    steps, samples, _ = input.shape
    tile, width = _tile(input, group), max(power_of_two(group.H), LEAST)
    programs, is_nvidia = -(-samples // tile.block_m) * group.D, architecture(input.device).startswith("sm_")
    if wide := bool(tile.block_o):
        arguments += (empty(input, (programs, 4, tile.block_m, group.H), torch.float32),)
    rounds = kind_of(input.dtype) == "tf32" and not tile.exact and is_nvidia
    with on_device(input):
        launch(
            getattr(device_code("recurrent"), f"wide_{name}" if wide else name), (programs,),
            *arguments, steps, samples, CELL=group,
            TILE=Blocks(tile.block_m, tile.block_o or width, R=tile.block_r),
            PRODUCTS=Products("ieee" if tile.exact else "tf32", rounds),
            num_warps=tile.num_warps, num_stages=tile.num_stages if is_nvidia else 1,  # AMD's have 64 KB
        )  # fmt: skip


def _tile(input: Tensor, group: Recurrence) -> RecurrentTile:
    """Return the tile of a batch: one of three for a kind of number and a number of hidden units."""
    kind, samples = kind_of(input.dtype), input.size(1)
    for tiles in (FEW, MANY):
        found = next(((most, one) for most, one in tiles[kind].items() if most >= group.H), None)
        if found is None:
            break
        width, tile = found
        size = 4 if tile.exact else input.element_size()
        shared = SHARED.get(architecture(input.device), SHARED_ELSEWHERE)
        fits = group.gates * width * width * size + SHARED_BESIDE <= shared
        at_once = -(-samples // tile.block_m) * group.D <= processors(input.device)
        if fits and (tiles is MANY or at_once):
            return tile
    return WIDE[kind]


def _pair(tensors: tuple[Tensor | None, ...]) -> tuple[Tensor | None, Tensor | None]:
    """Return two, the second ``None`` if there is none."""
    return tensors[0], tensors[1] if len(tensors) > 1 else None


def _contiguous(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.contiguous()


def _lengths(lengths: Tensor | None, input: Tensor) -> Tensor | None:
    return None if lengths is None else lengths.to(input.device, non_blocking=True)


def _joined(tensors: list[Tensor]) -> Tensor:
    """Return tensors behind each other."""
    return tensors[0].contiguous() if len(tensors) == 1 else torch.cat(tensors)


def _weight(weights: Sequence[Weights], *, back: bool) -> Tensor:
    """Return the recurrent weights of all directions and gates, each (H, H), those summed over below each other.

    So programs find neighbours in shared memory: rows that are turned over there meet in the same banks.
    """
    if back:
        return _joined([one.weight_hh for one in weights])
    hidden = weights[0].weight_hh.size(1)
    return torch.stack([one.weight_hh.unflatten(0, (-1, hidden)).transpose(1, 2) for one in weights])


def _biases(weights: Sequence[Weights]) -> tuple[Tensor | None, Tensor | None]:
    """Return both biases of all directions, or ``None``."""
    of_input = [one.bias_ih for one in weights if one.bias_ih is not None]
    of_state = [one.bias_hh for one in weights if one.bias_hh is not None]
    return _joined(of_input) if of_input else None, _joined(of_state) if of_state else None


def _project(input: Tensor, weights: Sequence[Weights], masks: Masks) -> Tensor:
    """Multiply the input by its weights: (L, N, D, G, H), or with a mask for each gate (G, L, N, D, H)."""
    mask, weight = masks.input, _joined([one.weight_ih for one in weights])
    if mask is None or mask.size(0) == 1:
        return torch.nn.functional.linear(input if mask is None else input * mask, weight)
    gates, directions = mask.size(0), len(weights)
    of_gates = weight.view(directions, gates, -1, weight.size(1)).transpose(0, 1).flatten(1, 2)  # (G, D * H, C)
    return torch.bmm(_of_gates(input, mask), of_gates.transpose(1, 2))


def _of_gates(input: Tensor, mask: Tensor) -> Tensor:
    """Return the input as each gate sees it, (G, L * N, C)."""
    return (input * mask.unsqueeze(1)).flatten(1, 2)


def _states_before(output: Tensor, h0: Tensor, lengths: Tensor | None) -> Tensor:
    """Return the states before every step, (L, N, D, H); behind a sequence's end what there is."""
    directions, samples, hidden = h0.shape
    states = output.view(output.size(0), samples, directions, hidden)
    before = torch.empty_like(states)
    before[1:, :, 0], before[0, :, 0] = states[:-1, :, 0], h0[0]
    if directions == 2:
        before[:-1, :, 1], before[-1, :, 1] = states[1:, :, 1], h0[1]
        if lengths is not None:
            before[lengths - 1, torch.arange(samples, device=output.device), 1] = h0[1]
    return before


def _masked_states(before: Tensor, mask: Tensor | None, d: int) -> Tensor:
    """Return one direction's states before every step as gates see them: (1, L, N, H) for all, or (G, L, N, H)."""
    states = before[:, :, d].unsqueeze(1)
    return (states if mask is None else states * mask[d]).transpose(0, 1)


def _gates(
    kind: Cell, input: Tensor, before: Tensor, weights: Sequence[Weights], masks: Masks, saved: Tensor
) -> Tensor:
    """Return what ``EVERYTHING`` keeps, computed from all states at once."""
    steps, samples, directions, hidden = before.shape
    x = _project(input, weights, masks)
    if masks.input is not None and masks.input.size(0) > 1:
        x = x.view(kind.gates, steps, samples, directions, hidden).permute(3, 0, 1, 2, 4)
    else:
        x = x.view(steps, samples, directions, kind.gates, hidden).permute(2, 3, 0, 1, 4)
    kept: list[tuple[Tensor, ...]] = []
    for d, own in enumerate(weights):
        h = _masked_states(before, masks.recurrent, d)
        zero = own.weight_hh.new_zeros(kind.gates, 1, 1, hidden)
        of_input, of_state = (
            zero if one is None else one.view(kind.gates, 1, 1, hidden) for one in (own.bias_ih, own.bias_hh)
        )
        given, of_state = x[d].float() + of_input, of_state.float()  # half floats are summed as in the kernels
        first = kind.gates if kind.reset_after else 2
        product = _products(h[:first], own.weight_hh[: first * hidden])
        if kind.states == 2:
            i, f, g, o = (given + product + of_state).unbind(0)
            kept.append((saved[d, :, :, 0], i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()))
            continue
        r, z = (given[:2] + product[:2] + of_state[:2]).sigmoid().unbind(0)
        if kind.reset_after:
            behind = product[2] + of_state[2]
            kept.append((r, z, (given[2] + r * behind).tanh(), behind))
        else:
            product = _products((r * h[-1]).to(h.dtype).unsqueeze(0), own.weight_hh[2 * hidden :])
            kept.append((r, z, (given[2] + product[0] + of_state[2]).tanh()))
    return torch.stack([torch.stack([number.to(input.dtype) for number in one], 2) for one in kept])


def _products(h: Tensor, weight: Tensor) -> Tensor:
    """Multiply states as gates see them, (1, L, N, H) or (G, L, N, H), by the gates' weights: (G, L, N, H)."""
    if h.size(0) == 1:
        product = torch.nn.functional.linear(h[0], weight)
        return product.view(*product.shape[:2], -1, h.size(-1)).permute(2, 0, 1, 3)
    of_gates = weight.unflatten(0, (h.size(0), -1)).transpose(1, 2)
    return torch.bmm(h.flatten(1, 2), of_gates).view_as(h)


class GateRun(NamedTuple):
    """Gates whose operands are the same: the first one, how many there are, and where their gradients lie."""

    gate: int
    gates: int
    slot: int


def _runs(group: Recurrence, *, of_input: bool) -> list[GateRun]:
    """Return the gates' runs in their products with the input, or with the state, in order."""
    behind = group.gradients > group.gates  # n, r, z and n's behind the product
    each = group.apart if of_input else group.masks > 1
    counts = [1] * group.gates if each else [2, 1] if not group.reset_after or (behind and of_input) else [group.gates]
    gates = [sum(counts[:i]) for i in range(len(counts))]
    slots = [gate + behind for gate in gates]
    if behind and of_input:
        slots[-1] = 0
    return [GateRun(*one) for one in zip(gates, counts, slots, strict=True)]


def _rows(dgates: Tensor, run: GateRun) -> Tensor:
    """Return one direction's gradients of a run's gates, (L * N, gates * H)."""
    rows: Tensor = dgates[:, :, run.slot : run.slot + run.gates].flatten(2).flatten(0, 1)
    return rows


def _input_gradient(group: Recurrence, dgates: Tensor, weights: Sequence[Weights], mask: Tensor | None) -> Tensor:
    steps, samples = dgates.shape[1:3]
    total = None
    for d, run in itertools.product(range(group.D), _runs(group, of_input=True)):
        own = weights[d].weight_ih[run.gate * group.H : (run.gate + run.gates) * group.H]
        found = _rows(dgates[d], run).mm(own).view(steps, samples, own.size(1))
        if group.apart and mask is not None:
            found = found * mask[run.gate]
        total = found if total is None else total + found
    assert total is not None
    return total if group.apart or mask is None else total * mask


def _weight_gradients(
    group: Recurrence,
    d: int,
    dgates: Tensor,
    input: Tensor,
    before: Tensor,
    weights: Weights,
    masks: Masks,
    saved: Tensor,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Return the gradients of one direction's weights and biases."""
    x = input[None] if masks.input is None else input * masks.input.unsqueeze(1)
    h = _masked_states(before, masks.recurrent, d)
    pieces: tuple[list[Tensor], list[Tensor]] = ([], [])
    for into, operand, of_input in ((pieces[0], x, True), (pieces[1], h, False)):
        for run in _runs(group, of_input=of_input):
            one = operand[run.gate if operand.size(0) > 1 else 0]
            if not of_input and not group.reset_after and run.gate == 2:
                one = one * saved[d, :, :, 0]
            into.append(_rows(dgates[d], run).t().mm(one.flatten(0, 1)))
    dweight_ih, dweight_hh = (one[0] if len(one) == 1 else torch.cat(one) for one in pieces)
    if weights.bias_ih is None:
        return dweight_ih, dweight_hh, None, None
    sums = dgates[d].sum((0, 1))
    of_gates = [torch.cat([sums[run.slot : run.slot + run.gates] for run in _runs(group, of_input=of_input)]).flatten()
                for of_input in (True, False)]  # fmt: skip
    return dweight_ih, dweight_hh, of_gates[0], of_gates[1]
