"""The recurrent layers of the floors against what Keras computed, gradients included."""

import numpy as np
import pytest
import torch

from seqconv.functional.recurrent_passes import recurrent_layer
from seqconv.kernels.recurrence import CELLS, Masks, Weights
from seqconv.kernels.reference import recurrent as reference
from tests.kernels import keras_goldens
from tests.kernels.keras_goldens import ORDER

GOLDENS = keras_goldens.load()
# Called as the reference is; gradients are autograd's.
LAYERS = {
    "reference": reference.layer,
    "numba": lambda *given: recurrent_layer("numba", *given, recompute=False),
    "numba, gates computed again": lambda *given: recurrent_layer("numba", *given, recompute=True),
}


def torchs(cell, kernel, recurrent_kernel, bias=None):
    """Return the weights of a Keras layer in torch's layout."""

    def rows(columns):  # (·, G * H) -> (G * H, ·)
        return columns.T.reshape(len(ORDER[cell]), -1, len(columns))[ORDER[cell]].flatten(0, 1)

    biases = [None, None]
    if bias is not None:
        biases = [rows(one[None]).squeeze(1) for one in (bias if bias.dim() == 2 else [bias, torch.zeros_like(bias)])]
    return Weights(rows(kernel), rows(recurrent_kernel), *biases)


@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)
@pytest.mark.parametrize("name", GOLDENS)
def test_it_is_keras(layer, name):
    cell, golden = name.partition(",")[0], GOLDENS[name]
    leaves = [torch.tensor(one, requires_grad=True) for one in (golden.input, *golden.states, *golden.weights)]
    input, states, weights = leaves[0], leaves[1 : 1 + CELLS[cell].states], leaves[1 + CELLS[cell].states :]
    directions = len(golden.states[0])
    own = len(weights) // directions
    weights = [torchs(cell, *weights[d * own : (d + 1) * own]) for d in range(directions)]

    def mask(given):
        return None if given is None else torch.tensor(given if len(given) == 1 else given[ORDER[cell]])

    recurrent_mask = mask(golden.recurrent_mask)
    masks = Masks(mask(golden.input_mask), None if recurrent_mask is None else recurrent_mask[None, None])
    lengths = None if golden.lengths is None else torch.tensor(golden.lengths)

    output, last = layer(cell, input.transpose(0, 1), states, weights, masks, lengths)
    results = [output.transpose(0, 1), *last]
    gradients = torch.autograd.grad(results, leaves, [torch.tensor(one) for one in golden.upstream])

    # Float64 on both sides: 5 steps of sums of at most 15 terms err by less than 450 roundings of 2.2e-16.
    for found, expected in zip([*results, *gradients], [golden.output, *golden.last, *golden.gradients], strict=True):
        np.testing.assert_allclose(found.detach().numpy(), expected, rtol=1e-13, atol=1e-13)


def test_the_goldens_are_of_these_cases():
    kinds = ("dropout", "dropout of the input, no bias", "bidirectional")
    assert list(GOLDENS) == [f"{cell}, {kind}" for cell in CELLS for kind in kinds]
    for cell in CELLS:
        gates = CELLS[cell].gates
        both, one, directions = (GOLDENS[f"{cell}, {kind}"] for kind in kinds)
        assert both.input_mask.shape == (gates, 3, 2)
        assert both.recurrent_mask.shape == (gates, 3, 4)
        assert set(both.input_mask.flat) == {0, 1 / 0.75}
        assert set(both.recurrent_mask.flat) == {0, 2}
        assert one.input_mask.shape == (1, 3, 2)
        assert one.recurrent_mask is None
        assert len(one.weights) == 2
        assert directions.lengths.tolist() == [5, 2, 3]
        assert all(weight.all() for golden in (both, one, directions) for weight in golden.weights)
    with np.load(keras_goldens.PATH) as file:
        assert str(file["versions"]) == "Keras 3.15.1, TensorFlow 2.21.0"
        assert "Keras 3.15.1 computed in float64 on TensorFlow 2.21.0" in keras_goldens.__doc__
    assert keras_goldens.PATH.stat().st_size < 100_000
