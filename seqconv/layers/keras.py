"""The weights of Keras' GRU and LSTM in the layout of torch's."""

from __future__ import annotations

from itertools import chain
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

__all__ = ["load"]

# Torch's gates among Keras': r, z, n among z, r, h, and i, f, g, o among i, f, c, o.
ORDER = {"GRU": (1, 0, 2), "LSTM": (0, 1, 2, 3)}


def load(layer: nn.RNNBase, arrays: Any, *, reset_after: bool = True) -> None:
    """Copy what ``keras_layer.get_weights()`` returns into the parameters of a GRU or an LSTM, in place.

    ``arrays`` is a list of NumPy arrays. It holds for each layer, and there for the forward and the backward direction,
    with the gates side by side in Keras' order (z, r, h or i, f, c, o):

    - kernel: (C, G * H), where C is D * H behind the first layer.
    - recurrent_kernel: (H, G * H).
    - bias, where the layer has one: (2, 3 * H), of input and state, in a GRU with ``reset_after``, else (G * H,). A
      single bias goes into ``bias_ih``, and ``bias_hh`` is zero.

    C is the number of input features, H the hidden size, G the number of gates, D the number of directions. Arrays of
    stacked Keras layers are joined: ``first.get_weights() + second.get_weights()``.

    Raises ``TypeError`` for what is no list or no array of numbers, and ``ValueError`` for another number of arrays,
    another shape, a layer with a projection, which Keras has not, or with weights that are parametrized or pruned. Then
    no parameter has changed.
    """
    if layer.proj_size:
        raise ValueError(f"proj_size must be 0 to load weights of Keras' LSTM, got {layer.proj_size}")
    if [*layer._parameters] != layer._flat_weights_names:
        raise ValueError(
            f"layer must have its weights as plain parameters, {', '.join(layer._flat_weights_names)}, got "
            f"{', '.join(layer._parameters) or 'none'}: load before it is parametrized or pruned"
        )
    if not isinstance(arrays, (list, tuple)):
        raise TypeError(f"arrays must be a list, as keras_layer.get_weights() returns, got {type(arrays).__name__}")
    names = ("kernel", "recurrent_kernel", "bias")[: 3 if layer.bias else 2]
    directions = ("forward", "backward")[: 2 if layer.bidirectional else 1]
    expected = layer.num_layers * len(directions) * len(names)
    if len(arrays) != expected:
        raise ValueError(
            f"arrays must hold {expected} arrays, {', '.join(names)} for each layer and direction (num_layers="
            f"{layer.num_layers}, bidirectional={layer.bidirectional}, bias={layer.bias}), got {len(arrays)}"
        )

    order, hidden = ORDER[layer.mode], layer.hidden_size
    width = len(order) * hidden
    two_biases = layer.mode == "GRU" and reset_after
    values: list[NDArray[np.float64]] = []
    for i, array in enumerate(arrays):
        place, name = divmod(i, len(names))
        number, direction = divmod(place, len(directions))
        features = len(directions) * hidden if number else layer.input_size
        shape = ((features, width), (hidden, width), (2, width) if two_biases else (width,))[name]
        what = f"arrays[{i}] ({names[name]} of layer {number}, {directions[direction]})"
        if not isinstance(array, np.ndarray):
            raise TypeError(f"{what} must be a NumPy array, got {type(array).__name__}")
        if not np.can_cast(array.dtype, np.float64):
            raise TypeError(f"{what} must have a dtype that float64 holds, got {array.dtype}")
        if array.shape != shape:
            option = f" with reset_after={reset_after}" if name == 2 and layer.mode == "GRU" else ""
            raise ValueError(f"{what} must have shape {shape}{option}, got {array.shape}")
        gates = array.astype(np.float64).reshape(*shape[:-1], len(order), hidden)
        columns = gates[..., order, :].reshape(shape)
        if name < 2:
            values.append(columns.T)
        else:
            values.extend(columns if two_biases else (columns, np.zeros_like(columns)))

    with torch.no_grad():
        for parameter, value in zip(chain(*layer.all_weights), values, strict=True):
            parameter.copy_(torch.from_numpy(value))
