"""What the floors share of the recurrent kernels: the cells, their weights, and what a layer is given.

A layer is one or two directions over the same input; the second one, if any, goes from the last step to the first.
Letters: L time steps, N sequences, C input features, G gates, H hidden size, P size of ``h`` (H without a projection),
D directions.

Every floor's module ``recurrent`` has these functions::

    forward(cell, input, states, weights, masks, lengths, *, keep)        -> (output, last states, saved)
    backward(cell, gradient, last_gradients, input, states, weights, masks, lengths, output, saved, *, wanted)
                                                                          -> Gradients
    saved_format(cell, input, weights, keep)                              -> (shape of saved, its dtype)
    empty_gradient(input)                                                 -> memory as of the gradient of the input

with ``cell`` one of :data:`CELLS`, ``input`` (L, N, C) of any strides, ``states`` ``(h0,)`` or ``(h0, c0)``, each
(D, N, H), ``weights`` of every direction, ``lengths`` (N,) int64 on the CPU or ``None`` where every sequence has L
steps, ``output`` (L, N, D * H) contiguous. ``saved`` is one tensor, empty if there is nothing in it; each floor says
what lies in it. ``keep`` is one of :data:`NOTHING`, :data:`STATES` and :data:`EVERYTHING`. ``gradient`` is the
output's, ``last_gradients`` those of the last states, in a tuple; either may be ``None``, which stands for zeros.
``wanted`` tells whether the gradients of input, states and weights are. Steps behind a sequence's end leave its state
alone and give zeros.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

__all__ = ["CELLS", "EVERYTHING", "NOTHING", "STATES", "Cell", "Gradients", "Masks", "Weights"]


class Cell(NamedTuple):
    """A recurrence: how many gates it has, how many states it carries, and where its reset gate acts.

    ``reset_after`` tells a GRU that resets behind the recurrent product, as torch's and cuDNN's does, from one that
    resets the state in front of it (Cho et al., 2014; ``reset_after=False`` in Keras). An LSTM has no reset gate.
    """

    name: str
    gates: int
    states: int
    reset_after: bool = True


CELLS = {cell.name: cell for cell in (Cell("gru", 3, 1), Cell("gru_reset_before", 3, 1, False), Cell("lstm", 4, 2))}

# What a forward pass keeps for the backward pass: nothing, the states that the results do not hold, from which the
# backward pass computes the gates again, or the gates too.
NOTHING, STATES, EVERYTHING = 0, 1, 2


class Weights(NamedTuple):
    """The weights of one layer in one direction, gates below each other in torch's order: r, z, n or i, f, g, o.

    ``weight_ih`` is (G * H, C), ``weight_hh`` (G * H, P), the biases (G * H,) or both ``None``, ``weight_hr``, the
    projection of an LSTM, (P, H) or ``None``.
    """

    weight_ih: Tensor
    weight_hh: Tensor
    bias_ih: Tensor | None
    bias_hh: Tensor | None
    weight_hr: Tensor | None = None


class Masks(NamedTuple):
    """Dropout masks of a layer, which hold the factor 1 / (1 - p) already; ``None`` where nothing is dropped.

    ``input`` is (1, N, C), or (G, N, C) with one for each gate, the same in both directions. ``recurrent`` is
    (D, T, 1, N, P) or (D, T, G, N, P), where T is 1 for masks that hold for all steps of a sequence, else L.
    """

    input: Tensor | None = None
    recurrent: Tensor | None = None


class Gradients(NamedTuple):
    """Gradients of a layer's operands; ``None`` for those that are not wanted.

    ``weights`` holds the four of every direction: of both weights and both biases.
    """

    input: Tensor | None
    states: tuple[Tensor, ...]
    weights: tuple[tuple[Tensor, Tensor, Tensor | None, Tensor | None], ...] | None
