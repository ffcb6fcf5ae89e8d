"""GRU and LSTM, one layer in one direction, with dropout masks on the input and on the recurrent state.

The equations and the order of the gates are torch's (``nn.GRU``: r, z, n; ``nn.LSTM``: i, f, g, o). The masks act as
``dropout`` and ``recurrent_dropout`` do in Keras: a gate g sees ``x * input_mask[g]`` and ``h * recurrent_mask[g]`` in
its two products and nowhere else. What is carried from step to step (``z * h`` in the GRU, ``c`` in the LSTM) is never
masked. One mask holds for all time steps of a sequence (Gal and Ghahramani, 2016). A mask already holds the factor
1 / (1 - p).

Keras 2.15 and Keras 3.8 to 3.15 draw one mask per gate of the state, ``(G, N, H)`` here, and then of the input, too;
goldens of 3.15.1 are among the tests. Keras 3.0 to 3.7 drew one for all gates, ``(N, H)``, and their GRU carried the
masked state on, ``z * (h * mask)``, which this one does not.

:func:`layer` runs what the kernels of other floors run, see :mod:`seqconv.kernels.recurrence`.

Letters: L time steps, N sequences, C input features, G gates (3 or 4), H hidden size, P size of ``h`` (H without a
projection). Everything is time-major. Tensors share one floating dtype and device; arguments are taken as valid.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn.functional import linear

from ..recurrence import CELLS, Masks, Weights

__all__ = ["gru", "layer", "lstm"]

T = TypeVar("T")


def layer(
    cell: str,
    input: Tensor,
    states: Sequence[Tensor],
    weights: Sequence[Weights],
    masks: Masks,
    lengths: Tensor | None,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Run one layer in its one or two directions; return the output (L, N, D * P) and the last states, (D, N, ·)."""
    outputs, lasts = [], []
    for d, own in enumerate(weights):
        recurrent = None if masks.recurrent is None else masks.recurrent[d]
        given: list[Any] = [input, *(state[d] for state in states), *own[: 5 if cell == "lstm" else 4]]
        given += [masks.input, recurrent, None if lengths is None else lengths.to(input.device), d == 1]
        if cell == "lstm":
            output, *last = lstm(*given)
        else:
            output, *last = gru(*given, reset_after=CELLS[cell].reset_after)
        outputs.append(output)
        lasts.append(last)
    output = outputs[0] if len(outputs) == 1 else torch.cat(outputs, -1)
    return output, tuple(torch.stack(last) for last in zip(*lasts, strict=True))


def gru(
    input: Tensor,
    h0: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None = None,
    bias_hh: Tensor | None = None,
    input_mask: Tensor | None = None,
    recurrent_mask: Tensor | None = None,
    lengths: Tensor | None = None,
    reverse: bool = False,
    *,
    reset_after: bool = True,
) -> tuple[Tensor, Tensor]:
    """Run a GRU over a batch of sequences; without masks the same as ``torch.nn.GRU(C, H)``.

    With ``x_g = x * input_mask[g]`` and ``h_g = h * recurrent_mask[g]`` for each gate g::

        r = sigmoid(W_ir x_r + b_ir + W_hr h_r + b_hr)
        z = sigmoid(W_iz x_z + b_iz + W_hz h_z + b_hz)
        n = tanh(W_in x_n + b_in + r * (W_hn h_n + b_hn))
        h = (1 - z) * n + z * h

    Without ``reset_after`` the reset gate acts on the state, in front of the product::

        n = tanh(W_in x_n + b_in + W_hn (r * h_n) + b_hn)

    Shapes and meanings:

    - input: (L, N, C), L at least 1.
    - h0: (N, H), the state before the first step.
    - weight_ih: (3H, C), gates r, z, n below each other.
    - weight_hh: (3H, H).
    - bias_ih: (3H,) or None.
    - bias_hh: (3H,) or None.
    - input_mask: (N, C) for all gates, or (3, N, C).
    - recurrent_mask: (N, H) for all gates, or (3, N, H); with a mask for each step (L, 1, N, H) or (L, 3, N, H).
    - lengths: (N,) int64, the steps that each sequence has; None where all have L. Steps past a sequence's end leave
      its state alone and give zeros.
    - reverse: go from the last step to the first, as the second direction of a bidirectional layer does.

    Returns the states (L, N, H) after each step, and the last state (N, H).
    """
    projected = _project(input, weight_ih, bias_ih, input_mask, gates=3)
    # unbind, since the backward of indexing would fill a gradient of all time steps at every step
    length = input.size(0)
    steps = zip(
        projected[:, :2].unbind(0),
        projected[:, 2].unbind(0),
        _by_step(recurrent_mask, length),
        _active(lengths, length),
        strict=True,
    )
    weight = _by_gate(weight_hh, 3)
    bias = weight.new_zeros(3, 1, 1) if bias_hh is None else bias_hh.reshape(3, 1, -1)

    h = h0
    outputs = []
    for x_rz, x_n, mask, active in _ordered(steps, reverse):
        h_g = _for_each_gate(h, mask, gates=3)
        if reset_after:
            h_rz, h_n = torch.baddbmm(bias, h_g, weight).split((2, 1))
            r, z = torch.sigmoid(x_rz + h_rz).unbind(0)
            n = torch.tanh(x_n + r * h_n[0])
        else:
            r, z = torch.sigmoid(x_rz + torch.baddbmm(bias[:2], h_g[:2], weight[:2])).unbind(0)
            n = torch.tanh(x_n + (bias[2] + torch.mm(r * h_g[2], weight[2])))
        output = n + z * (h - n)
        h, output = (output, output) if active is None else _hold(active, h, output)
        outputs.append(output)
    return torch.stack(_ordered(outputs, reverse)), h


def lstm(
    input: Tensor,
    h0: Tensor,
    c0: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None = None,
    bias_hh: Tensor | None = None,
    weight_hr: Tensor | None = None,
    input_mask: Tensor | None = None,
    recurrent_mask: Tensor | None = None,
    lengths: Tensor | None = None,
    reverse: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Run an LSTM over a batch of sequences; without masks the same as ``torch.nn.LSTM(C, H, proj_size=P)``.

    With ``x_g = x * input_mask[g]`` and ``h_g = h * recurrent_mask[g]`` for each gate g::

        i = sigmoid(W_ii x_i + b_ii + W_hi h_i + b_hi)
        f = sigmoid(W_if x_f + b_if + W_hf h_f + b_hf)
        g = tanh(W_ig x_g + b_ig + W_hg h_g + b_hg)
        o = sigmoid(W_io x_o + b_io + W_ho h_o + b_ho)
        c = f * c + i * g
        h = o * tanh(c), with a projection W_hr (o * tanh(c))

    Shapes and meanings:

    - input: (L, N, C), L at least 1.
    - h0: (N, P), the state before the first step; P is H where there is no projection.
    - c0: (N, H), the cell state before the first step.
    - weight_ih: (4H, C), gates i, f, g, o below each other.
    - weight_hh: (4H, P).
    - bias_ih: (4H,) or None.
    - bias_hh: (4H,) or None.
    - weight_hr: (P, H), the projection, or None.
    - input_mask: (N, C) for all gates, or (4, N, C).
    - recurrent_mask: (N, P) for all gates, or (4, N, P); with a mask for each step (L, 1, N, P) or (L, 4, N, P).
    - lengths: (N,) int64, the steps that each sequence has; None where all have L. Steps past a sequence's end leave
      its states alone and give zeros.
    - reverse: go from the last step to the first, as the second direction of a bidirectional layer does.

    Returns the states h (L, N, P) after each step, the last h (N, P) and the last c (N, H).
    """
    bias = bias_ih if bias_hh is None else bias_hh if bias_ih is None else bias_ih + bias_hh
    projected = _project(input, weight_ih, bias, input_mask, gates=4)
    length = input.size(0)
    steps = zip(projected.unbind(0), _by_step(recurrent_mask, length), _active(lengths, length), strict=True)
    weight = _by_gate(weight_hh, 4)

    h, c = h0, c0
    outputs = []
    for x, mask, active in _ordered(steps, reverse):
        i, f, g, o = torch.baddbmm(x, _for_each_gate(h, mask, gates=4), weight).unbind(0)
        cell = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        output = torch.sigmoid(o) * torch.tanh(cell)
        if weight_hr is not None:
            output = linear(output, weight_hr)
        if active is None:
            h, c = output, cell
        else:
            h, output = _hold(active, h, output)
            c = torch.where(active, cell, c)
        outputs.append(output)
    return torch.stack(_ordered(outputs, reverse)), h, c


def _project(input: Tensor, weight: Tensor, bias: Tensor | None, mask: Tensor | None, *, gates: int) -> Tensor:
    """Multiply all steps of the (masked) input by each gate's weight: (L, G, N, H), each step's part contiguous."""
    hidden_size = weight.size(0) // gates
    if mask is not None and mask.dim() == 3 and mask.size(0) > 1:
        masked = (input * mask.unsqueeze(1)).flatten(1, 2)  # (G, L * N, C)
        product = torch.bmm(masked, _by_gate(weight, gates))
        if bias is not None:
            product = product + bias.reshape(gates, 1, hidden_size)
        return product.view(gates, *input.shape[:2], hidden_size).transpose(0, 1).contiguous()
    product = linear(input if mask is None else input * mask, weight, bias)
    return product.view(*input.shape[:2], gates, hidden_size).transpose(1, 2).contiguous()


def _by_gate(weight: Tensor, gates: int) -> Tensor:
    """Return a weight (G * H, P) as each gate's right-hand factor, (G, P, H)."""
    return weight.reshape(gates, weight.size(0) // gates, weight.size(1)).transpose(1, 2)


def _for_each_gate(h: Tensor, mask: Tensor | None, *, gates: int) -> Tensor:
    """Return the state as each gate's product takes it, (G, N, P)."""
    return (h if mask is None else h * mask).expand(gates, -1, -1)


def _by_step(mask: Tensor | None, steps: int) -> Sequence[Tensor | None]:
    """Return the mask of the state at each step: the same one, unless there is one for each."""
    if mask is None or mask.dim() < 4:
        return [mask] * steps
    return (mask.expand(steps, *mask.shape[1:]) if mask.size(0) == 1 else mask).unbind(0)


def _active(lengths: Tensor | None, steps: int) -> Sequence[Tensor] | list[None]:
    """Return for each step which sequences still run, (N, 1) bool, or None where all of them do."""
    if lengths is None:
        return [None] * steps
    return (torch.arange(steps, device=lengths.device)[:, None, None] < lengths[:, None]).unbind(0)


def _hold(active: Tensor, state: Tensor, new: Tensor) -> tuple[Tensor, Tensor]:
    """Return the state, unchanged in sequences that do not run, and the output, zero there."""
    return torch.where(active, new, state), torch.where(active, new, 0)


def _ordered(steps: Iterable[T], reverse: bool) -> list[T]:
    steps = list(steps)
    return steps[::-1] if reverse else steps
