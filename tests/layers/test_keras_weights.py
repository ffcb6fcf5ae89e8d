"""Weights of Keras' GRU and LSTM in our layers: what Keras computed with them, and every way to pass them wrongly."""

import copy

import numpy as np
import pytest
import torch
from torch.nn.utils import parametrizations, prune
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from seqconv import GRU, LSTM
from seqconv.kernels.recurrence import Masks, Weights
from seqconv.kernels.reference import recurrent as reference
from tests.kernels import keras_goldens

GOLDENS = keras_goldens.load()
RANDOM = np.random.default_rng(3)


def normal(*shape):
    return RANDOM.standard_normal(shape)


def loaded(cell, golden):
    """Return a layer with the weights of a golden."""
    features, hidden, directions = golden.input.shape[-1], golden.states[0].shape[-1], len(golden.states[0])
    layer = (LSTM if cell == "lstm" else GRU)(
        features,
        hidden,
        bias=len(golden.weights) == 3 * directions,
        bidirectional=directions == 2,
        batch_first=True,
        dtype=torch.float64,
    )
    layer.reset_after = cell != "gru_reset_before"
    layer.load_keras_weights(golden.weights)
    return layer


def masks_of(cell, golden):
    """Return the masks in torch's order of gates, (1, N, C) or (G, N, C), and (1, G, N, H)."""
    order = keras_goldens.ORDER[cell]
    input_mask, recurrent_mask = golden.input_mask, golden.recurrent_mask
    if input_mask is not None:
        input_mask = torch.tensor(input_mask if len(input_mask) == 1 else input_mask[order])
    return input_mask, None if recurrent_mask is None else torch.tensor(recurrent_mask[order])[None]


def check(found, golden):
    # Float64 on both sides: 5 steps of sums of at most 15 terms err by less than 450 roundings of 2.2e-16.
    for one, expected in zip(found, [golden.output, *golden.last], strict=True):
        np.testing.assert_allclose(one.detach().numpy(), expected, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("name", GOLDENS)
def test_the_weights_are_those_of_keras(name):
    cell, golden = name.partition(",")[0], GOLDENS[name]
    layer = loaded(cell, golden)
    input_mask, recurrent_mask = masks_of(cell, golden)
    output, last = reference.layer(
        cell,
        torch.tensor(golden.input).transpose(0, 1),
        [torch.tensor(state) for state in golden.states],
        [Weights(*own, *[None] * (4 - len(own))) for own in layer.all_weights],
        Masks(input_mask, None if recurrent_mask is None else recurrent_mask[:, None]),
        None if golden.lengths is None else torch.tensor(golden.lengths),
    )
    check([output.transpose(0, 1), *last], golden)


@pytest.mark.parametrize("name", GOLDENS)
def test_the_layer_computes_what_keras_does(name):
    cell, golden = name.partition(",")[0], GOLDENS[name]
    layer = loaded(cell, golden)
    input_mask, recurrent_mask = masks_of(cell, golden)
    if input_mask is not None and len(input_mask) == 1:
        input_mask = input_mask[0]
    input, states = torch.tensor(golden.input), tuple(torch.tensor(state) for state in golden.states)
    if golden.lengths is not None:
        input = pack_padded_sequence(input, golden.lengths.tolist(), batch_first=True, enforce_sorted=False)
    hx = states if cell == "lstm" else states[0]
    output, last = layer(input, hx, input_mask=input_mask, recurrent_mask=recurrent_mask)
    if golden.lengths is not None:
        output = pad_packed_sequence(output, batch_first=True)[0]
    check([output, *(last if cell == "lstm" else [last])], golden)


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("ours", [GRU, LSTM])
def test_layers_come_one_after_the_other(ours, bias, bidirectional):
    options = {"bias": bias, "bidirectional": bidirectional}
    stacked, arrays, singles = ours(3, 4, 2, **options), [], []
    for features in (3, 8 if bidirectional else 4):
        shapes = [(features, stacked.gates * 4), (4, stacked.gates * 4)]
        if bias:
            shapes.append((2, 12) if ours is GRU else (16,))
        own = [normal(*shape) for shape in shapes * (2 if bidirectional else 1)]
        singles.append(ours(features, 4, **options))
        singles[-1].load_keras_weights(own)
        arrays += own
    stacked.load_keras_weights(tuple(arrays))
    x = torch.randn(5, 2, 3)
    torch.testing.assert_close(stacked(x)[0], singles[1](singles[0](x)[0])[0])


def test_parameters_stay_and_take_the_numbers_in_their_dtype():
    layer = GRU(3, 4, dtype=torch.float32)
    before = {name: (parameter, parameter.data_ptr()) for name, parameter in layer.named_parameters()}
    kernel, recurrent_kernel, bias = normal(3, 12), normal(4, 12), normal(2, 12)
    layer.load_keras_weights([kernel, recurrent_kernel, bias])
    for name, parameter in layer.named_parameters():
        assert parameter is before[name][0]
        assert parameter.data_ptr() == before[name][1]
        assert parameter.requires_grad
        assert parameter.grad_fn is None
        assert parameter.dtype == torch.float32
    z, r, h = np.split(kernel.T.astype(np.float32), 3)
    np.testing.assert_array_equal(layer.weight_ih_l0.detach().numpy(), np.concatenate([r, z, h]))
    z, r, h = np.split(bias[1].astype(np.float32), 3)
    np.testing.assert_array_equal(layer.bias_hh_l0.detach().numpy(), np.concatenate([r, z, h]))


@pytest.mark.parametrize("gru", [True, False])
def test_a_single_bias_is_that_of_the_input(gru):
    layer = GRU(3, 4) if gru else LSTM(3, 4)
    layer.reset_after = False
    width = layer.gates * 4
    layer.load_keras_weights([normal(3, width), normal(4, width), np.arange(1.0, width + 1)])
    assert layer.bias_ih_l0.tolist() == ([*range(5, 9), *range(1, 5), *range(9, 13)] if gru else [*range(1, 17)])
    assert not layer.bias_hh_l0.any()


@pytest.mark.parametrize(
    "stored",
    [
        lambda array: array.astype(np.float16).astype(">f4"),
        lambda array: np.asfortranarray(array.astype(np.float16)),
        lambda array: np.repeat(array.astype(np.float16), 2, axis=-1)[..., ::2],
        lambda array: array.astype(np.float16)[..., ::-1].copy()[..., ::-1],
        lambda array: np.frombuffer(array.astype(np.float16).tobytes(), np.float16).reshape(array.shape),
    ],
    ids=["big endian", "Fortran's order", "strided", "backwards", "read only"],
)
def test_arrays_may_lie_in_memory_as_they_will(stored):
    arrays = [normal(3, 16), normal(4, 16), normal(16)]
    layer, expected = LSTM(3, 4), LSTM(3, 4)
    layer.load_keras_weights([stored(array) for array in arrays])
    expected.load_keras_weights([array.astype(np.float16).astype(np.float32) for array in arrays])
    for one, other in zip(layer.parameters(), expected.parameters(), strict=True):
        assert torch.equal(one, other)


GRU_ARRAYS = [np.ones((3, 12)), np.ones((4, 12)), np.ones((2, 12))]
LSTM_ARRAYS = [np.ones((3, 16)), np.ones((4, 16)), np.ones(16)]


@pytest.mark.parametrize(
    ("layer", "arrays", "error", "message"),
    [
        (LSTM(3, 4, proj_size=2), LSTM_ARRAYS, ValueError, "proj_size must be 0 to load weights of Keras' LSTM, got 2"),
        (
            GRU(3, 4),
            np.ones((3, 12)),
            TypeError,
            r"arrays must be a list, as keras_layer.get_weights\(\) .*got ndarray",
        ),
        (GRU(3, 4), iter(GRU_ARRAYS), TypeError, "arrays must be a list, .*, got list_iterator"),
        (
            GRU(3, 4),
            GRU_ARRAYS[:2],
            ValueError,
            r"arrays must hold 3 arrays, kernel, recurrent_kernel, bias for each layer and direction \(num_layers=1, "
            r"bidirectional=False, bias=True\), got 2",
        ),
        (
            GRU(3, 4, bias=False),
            GRU_ARRAYS,
            ValueError,
            r"must hold 2 arrays, kernel, recurrent_kernel for .*bias=False\), got 3",
        ),
        (GRU(3, 4, bidirectional=True), GRU_ARRAYS, ValueError, "must hold 6 arrays, .*bidirectional=True.*, got 3"),
        (LSTM(3, 4, 2), LSTM_ARRAYS, ValueError, r"must hold 6 arrays, .*\(num_layers=2, .*, got 3"),
        (GRU(3, 4), [], ValueError, "must hold 3 arrays, .*, got 0"),
        (
            LSTM(3, 4),
            [*LSTM_ARRAYS[:2], [1.0] * 16],
            TypeError,
            r"arrays\[2\] \(bias of layer 0, forward\) must be a NumPy array, got list",
        ),
        (
            LSTM(3, 4),
            [*LSTM_ARRAYS[:2], torch.ones(16)],
            TypeError,
            r"arrays\[2\] .* must be a NumPy array, got Tensor",
        ),
        (
            LSTM(3, 4),
            [LSTM_ARRAYS[0], LSTM_ARRAYS[1].astype(complex), LSTM_ARRAYS[2]],
            TypeError,
            r"arrays\[1\] \(recurrent_kernel of layer 0, forward\) must have a dtype that float64 .*, got complex128",
        ),
        (
            LSTM(3, 4),
            [*LSTM_ARRAYS[:2], LSTM_ARRAYS[2].astype(object)],
            TypeError,
            r"arrays\[2\] .*float64.*got object",
        ),
        (
            GRU(3, 4),
            [np.ones((5, 12)), *GRU_ARRAYS[1:]],
            ValueError,
            r"arrays\[0\] \(kernel of layer 0, forward\) must have shape \(3, 12\), got \(5, 12\)",
        ),
        (GRU(3, 4), [GRU_ARRAYS[0].T, *GRU_ARRAYS[1:]], ValueError, r"must have shape \(3, 12\), got \(12, 3\)"),
        (GRU(3, 4), LSTM_ARRAYS, ValueError, r"arrays\[0\] .* must have shape \(3, 12\), got \(3, 16\)"),
        (LSTM(3, 4), GRU_ARRAYS, ValueError, r"arrays\[0\] .* must have shape \(3, 16\), got \(3, 12\)"),
        (
            GRU(3, 4, 2, bidirectional=True),
            [*GRU_ARRAYS * 2, np.ones((8, 12)), *GRU_ARRAYS[1:], np.ones((4, 12)), *GRU_ARRAYS[1:]],
            ValueError,
            r"arrays\[9\] \(kernel of layer 1, backward\) must have shape \(8, 12\), got \(4, 12\)",
        ),
        (
            GRU(3, 4),
            [*GRU_ARRAYS[:2], np.ones(12)],
            ValueError,
            r"arrays\[2\] \(bias of .* must have shape \(2, 12\) with reset_after=True, got \(12,\)",
        ),
        (LSTM(3, 4), [*LSTM_ARRAYS[:2], np.ones((2, 16))], ValueError, r"must have shape \(16,\), got \(2, 16\)"),
    ],
)
def test_what_does_not_fit_is_named_and_nothing_is_written(layer, arrays, error, message):
    before = copy.deepcopy(layer.state_dict())
    with pytest.raises(error, match=message):
        layer.load_keras_weights(arrays)
    assert all(torch.equal(one, before[name]) for name, one in layer.state_dict().items())


def test_a_gru_that_resets_before_the_product_has_one_bias():
    layer = GRU(3, 4, reset_after=False)
    with pytest.raises(ValueError, match=r"must have shape \(12,\) with reset_after=False, got \(2, 12\)"):
        layer.load_keras_weights(GRU_ARRAYS)


def test_parametrized_and_pruned_layers_are_refused():
    arrays = [np.zeros(shape) for shape in ((4, 15), (5, 15), (2, 15))]
    normed, pruned = GRU(4, 5), GRU(4, 5)
    parametrizations.weight_norm(normed, "weight_hh_l0")
    prune.l1_unstructured(pruned, "weight_hh_l0", amount=0.5)
    for layer in (normed, pruned):
        with pytest.raises(
            ValueError, match="layer must have its weights as plain parameters, weight_ih_l0, weight_hh_l0"
        ):
            layer.load_keras_weights(arrays)
