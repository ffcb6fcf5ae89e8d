"""The recurrent specification against torch's own layers, and with masks against the equations in scalar NumPy."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from seqconv.kernels.recurrence import Masks, Weights
from seqconv.kernels.reference import recurrent
from tests.kernels.recurrent_cases import Case, operands

GATES = {"gru": 3, "gru_reset_before": 3, "lstm": 4}
KERNELS = {
    "gru": recurrent.gru,
    "gru_reset_before": partial(recurrent.gru, reset_after=False),
    "lstm": recurrent.lstm,
}
TORCHS = ["gru", "lstm"]
EPS = torch.finfo(torch.float64).eps


def sigmoid(value):
    return 1 / (1 + math.exp(-value))


def affine(weight, vector, bias, row):
    return sum(weight[row, k] * vector[k] for k in range(len(vector))) + (0.0 if bias is None else bias[row])


def oracle(operation, x, states, weights, input_mask, recurrent_mask, length, reverse):
    """One sequence, (L, C), by the equations, one scalar at a time; masks are (G, C) and (L, G, P)."""
    gates = GATES[operation]
    w_ih, w_hh, b_ih, b_hh, w_hr = weights
    hidden = w_hh.shape[0] // gates
    h, c = list(states[0]), list(states[-1])
    outputs = np.zeros((len(x), len(h)))
    for t in range(length)[::-1] if reverse else range(length):
        inner = np.zeros((gates, hidden))
        outer = np.zeros((gates, hidden))
        for g in range(gates):
            x_g = [value * mask for value, mask in zip(x[t], input_mask[g], strict=True)]
            h_g = [value * mask for value, mask in zip(h, recurrent_mask[t, g], strict=True)]
            for j in range(hidden):
                outer[g, j] = affine(w_ih, x_g, b_ih, g * hidden + j)
                inner[g, j] = affine(w_hh, h_g, b_hh, g * hidden + j)
        r = [sigmoid(outer[0, j] + inner[0, j]) for j in range(hidden)]
        new = []
        for j in range(hidden):
            if operation != "lstm":
                z = sigmoid(outer[1, j] + inner[1, j])
                if operation == "gru":
                    recurrent_part = r[j] * inner[2, j]
                else:  # h_g is the state as the last gate, n, sees it
                    reset = [r[k] * h_g[k] for k in range(hidden)]
                    recurrent_part = affine(w_hh, reset, b_hh, 2 * hidden + j)
                n = math.tanh(outer[2, j] + recurrent_part)
                new.append((1 - z) * n + z * h[j])
            else:
                i, f, o = (sigmoid(outer[g, j] + inner[g, j]) for g in (0, 1, 3))
                c[j] = f * c[j] + i * math.tanh(outer[2, j] + inner[2, j])
                new.append(o * math.tanh(c[j]))
        h = new if w_hr is None else [affine(w_hr, new, None, row) for row in range(w_hr.shape[0])]
        outputs[t] = h
    return outputs, (np.array(h), np.array(c))[: len(states)]


def tolerance(steps, width):
    """Bound the error of ``steps`` steps whose products have ``width`` terms.

    Weights are scaled so that rows have a size near 1, inputs stay below 4 and masks are at most 2: a product of
    ``width`` terms, each below 8, errs by less than 8 * width * eps a term. Sigmoid and tanh do not enlarge it, and a
    step passes on at most a few times the error it was given.
    """
    return (steps + 1) * 4 * 8 * width * width * EPS


def draw(operation, steps, batch, features, hidden, projection=None, bias=True, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape, scale=1.0):
        return torch.randn(shape, generator=generator, dtype=torch.float64) * scale

    gates, size = GATES[operation], projection or hidden
    weights = [
        normal(gates * hidden, features, scale=features**-0.5),
        normal(gates * hidden, size, scale=size**-0.5),
        normal(gates * hidden) if bias else None,
        normal(gates * hidden) if bias else None,
    ]
    states = [normal(batch, size)]
    if operation == "lstm":
        weights.append(normal(size, hidden, scale=hidden**-0.5) if projection else None)
        states.append(normal(batch, hidden))
    return normal(steps, batch, features), states, weights, normal


def mask(shape, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.empty(shape, dtype=torch.float64).bernoulli_(0.5, generator=generator) * 2


def torch_layer(operation, weights, features, hidden, projection=None):
    options = {"proj_size": projection or 0} if operation == "lstm" else {}
    layer = (nn.GRU if operation == "gru" else nn.LSTM)(
        features, hidden, bias=weights[2] is not None, dtype=torch.float64, **options
    )
    with torch.no_grad():
        given = [weight for weight in weights if weight is not None]
        for parameter, weight in zip(layer.all_weights[0], given, strict=True):
            parameter.copy_(weight)
    return layer


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("operation", "projection"), [("gru", None), ("lstm", None), ("lstm", 2)])
@pytest.mark.parametrize("masks", ["absent", "ones", "ones per gate"])
def test_without_masks_it_is_torch(operation, projection, bias, masks):
    x, states, weights, _ = draw(operation, 7, 3, 4, 5, projection, bias)
    lead = () if masks == "ones" else (GATES[operation],)
    given = {}
    if masks != "absent":
        given = {"input_mask": x.new_ones(*lead, 3, 4), "recurrent_mask": x.new_ones(*lead, *states[0].shape)}
    output, *last = KERNELS[operation](x, *states, *weights, **given)

    layer = torch_layer(operation, weights, 4, 5, projection)
    start = tuple(state.unsqueeze(0) for state in states)
    expected, expected_last = layer(x, start[0] if operation == "gru" else start)
    expected_last = (expected_last,) if operation == "gru" else expected_last
    bound = tolerance(7, 5)
    torch.testing.assert_close(output, expected, rtol=0, atol=bound)
    for state, reference in zip(last, expected_last, strict=True):
        torch.testing.assert_close(state, reference[0], rtol=0, atol=bound)


@pytest.mark.parametrize("operation", TORCHS)
def test_gradients_without_masks_are_torchs(operation):
    x, states, weights, normal = draw(operation, 6, 3, 4, 5)
    weight_of_loss = normal(6, 3, 5)
    layer = torch_layer(operation, weights, 4, 5)
    inputs = [x.clone().requires_grad_(), *(s.clone().requires_grad_() for s in states)]
    start = inputs[1].unsqueeze(0) if operation == "gru" else tuple(s.unsqueeze(0) for s in inputs[1:])
    expected = torch.autograd.grad((layer(inputs[0], start)[0] * weight_of_loss).sum(), [*inputs, *layer.parameters()])

    parameters = [weight.requires_grad_() for weight in weights if weight is not None]
    result = KERNELS[operation](*inputs, *weights)[0]
    actual = torch.autograd.grad((result * weight_of_loss).sum(), [*inputs, *parameters])
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-11)


INPUT_MASKS = [None, "shared", "per gate"]
RECURRENT_MASKS = [*INPUT_MASKS, "each step", "each step, per gate"]


def factors(mask, steps, gates, batch, width):
    """Return a mask of either input or state as the factors of every step and gate, (L, G, N, width)."""
    if mask is None:
        return np.ones((steps, gates, batch, width))
    return np.broadcast_to(mask.numpy(), (steps, gates, batch, width))


def check(operation, x, states, weights, input_mask, recurrent_mask, lengths, reverse, output, last):
    """Compare one direction's results with the oracle's, one sequence at a time."""
    (steps, batch, features), size = x.shape, states[0].size(1)
    input_factor = factors(input_mask, steps, GATES[operation], batch, features)
    recurrent_factor = factors(recurrent_mask, steps, GATES[operation], batch, size)
    bound = tolerance(steps, max(features, states[-1].size(1)))
    plain = [None if weight is None else weight.numpy() for weight in weights] + [None] * (5 - len(weights))
    for n in range(batch):
        expected, expected_last = oracle(
            operation,
            x[:, n].numpy(),
            [state[n].numpy() for state in states],
            plain,
            input_factor[0, :, n],
            recurrent_factor[:, :, n],
            steps if lengths is None else int(lengths[n]),
            reverse,
        )
        # Steps past the end give exact zeros, and the rest agrees.
        assert lengths is None or not output[lengths[n] :, n].any()
        np.testing.assert_allclose(output[:, n].numpy(), expected, rtol=0, atol=bound)
        for state, reference in zip(last, expected_last, strict=True):
            np.testing.assert_allclose(state[n].numpy(), reference, rtol=EPS * 8, atol=bound)


@settings(max_examples=80, deadline=None)
@given(
    operation=st.sampled_from(list(GATES)),
    steps=st.integers(1, 5),
    batch=st.integers(1, 3),
    features=st.integers(1, 4),
    hidden=st.integers(1, 4),
    projected=st.booleans(),
    bias=st.booleans(),
    input_mask=st.sampled_from(INPUT_MASKS),
    recurrent_mask=st.sampled_from(RECURRENT_MASKS),
    ragged=st.booleans(),
    reverse=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_masks_follow_the_equations(
    operation, steps, batch, features, hidden, projected, bias, input_mask, recurrent_mask, ragged, reverse, seed
):
    projection = hidden - 1 if projected and operation == "lstm" and hidden > 1 else None
    x, states, weights, _ = draw(operation, steps, batch, features, hidden, projection, bias, seed)
    gates, size = GATES[operation], projection or hidden

    def masks(kind, width, seed):
        kind = kind or ""
        lead = (steps, gates if "per gate" in kind else 1) if "each step" in kind else (gates,) * ("per gate" in kind)
        return mask((*lead, batch, width), seed) if kind else None

    input_mask, recurrent_mask = masks(input_mask, features, seed), masks(recurrent_mask, size, seed + 1)
    lengths = torch.randint(1, steps + 1, (batch,), generator=torch.Generator().manual_seed(seed)) if ragged else None
    output, *last = KERNELS[operation](x, *states, *weights, input_mask, recurrent_mask, lengths, reverse)
    check(operation, x, states, weights, input_mask, recurrent_mask, lengths, reverse, output, last)


@settings(max_examples=80, deadline=None)
@given(
    case=st.builds(
        Case,
        st.sampled_from(list(GATES)),
        st.integers(1, 5),
        st.integers(1, 3),
        st.integers(1, 4),
        st.integers(1, 4),
        st.integers(1, 2),
        bias=st.booleans(),
        input_mask=st.sampled_from(INPUT_MASKS),
        recurrent_mask=st.sampled_from(RECURRENT_MASKS),
        ragged=st.booleans(),
        batch_first=st.booleans(),
        scale=st.just(1.0),
    ),
    seed=st.integers(0, 2**16),
)
def test_a_layer_is_its_directions(case, seed):
    (x, states, weights, masks, lengths), _ = operands(case, seed)
    output, last = recurrent.layer(case.cell, x, states, weights, masks, lengths)
    assert output.shape == (case.steps, case.batch, case.directions * case.hidden)
    assert [state.shape for state in last] == [state.shape for state in states]
    for d in range(case.directions):
        check(
            case.cell,
            x,
            [state[d] for state in states],
            weights[d],
            masks.input,
            None if masks.recurrent is None else masks.recurrent[d],
            lengths,
            d == 1,
            output[:, :, d * case.hidden : (d + 1) * case.hidden],
            [state[d] for state in last],
        )


def test_a_layer_projects_in_each_direction():
    drawn = [draw("lstm", 4, 3, 2, 5, 2, seed=d)[:3] for d in range(2)]
    x, states = drawn[0][0], [torch.stack(state) for state in zip(*(own[1] for own in drawn), strict=True)]
    output, last = recurrent.layer("lstm", x, states, [Weights(*own[2]) for own in drawn], Masks(), None)
    for d, (_, own, weights) in enumerate(drawn):
        check("lstm", x, own, weights, None, None, None, d == 1, output.chunk(2, -1)[d], [state[d] for state in last])


def test_the_carried_state_is_not_masked():
    # All recurrent products are dropped and the update gate is held open: h must come through as it was.
    h0 = torch.tensor([[0.25, -0.5]])
    bias = torch.tensor([0.0, 0.0, 100.0, 100.0, 0.0, 0.0])
    for kernel in (KERNELS["gru"], KERNELS["gru_reset_before"]):
        _, h = kernel(
            torch.ones(3, 1, 1), h0, torch.ones(6, 1), torch.ones(6, 2), bias, None, None, torch.zeros(3, 1, 2)
        )
        assert torch.equal(h, h0)

    # The forget gate alone is open: c must come through.
    c0 = torch.tensor([[0.25, -0.5]])
    bias = torch.tensor([-200.0, -200.0, 100.0, 100.0, 0.0, 0.0, 0.0, 0.0])
    _, _, c = recurrent.lstm(
        torch.ones(3, 1, 1), h0, c0, torch.ones(8, 1), torch.ones(8, 2), bias, None, None, None, torch.zeros(4, 1, 2)
    )
    assert torch.equal(c, c0)


@pytest.mark.parametrize("each_step", [True, False])
@pytest.mark.parametrize("per_gate", [True, False])
@pytest.mark.parametrize(
    ("operation", "projection"), [("gru", None), ("gru_reset_before", None), ("lstm", None), ("lstm", 2)]
)
def test_gradcheck(operation, projection, per_gate, each_step):
    x, states, weights, _ = draw(operation, 4, 3, 2, 3, projection)
    lead = (GATES[operation],) if per_gate else ()
    every = (4, *(lead or (1,))) if each_step else lead
    input_mask, recurrent_mask = mask((*lead, 3, 2), 1), mask((*every, *states[0].shape), 2)
    lengths = torch.tensor([4, 1, 3])
    tensors = [tensor.requires_grad_() for tensor in (x, *states, *weights) if tensor is not None]

    def run(*tensors):
        given = iter(tensors)
        full = [None if tensor is None else next(given) for tensor in (x, *states, *weights)]
        return KERNELS[operation](*full, input_mask, recurrent_mask, lengths, per_gate)

    assert torch.autograd.gradcheck(run, tensors)


@pytest.mark.parametrize("operation", GATES)
@pytest.mark.parametrize("lengths", [None, [2, 4]])
def test_nan_spreads_to_later_steps_of_its_sequence_alone(operation, lengths):
    x, states, weights, _ = draw(operation, 4, 2, 3, 3)
    x[1, 0, 0] = math.nan
    lengths = None if lengths is None else torch.tensor(lengths)
    output, *last = KERNELS[operation](x, *states, *weights, None, mask((2, 3), 0), lengths, False)
    ended = 4 if lengths is None else 2
    assert not output[0].isnan().any()
    assert not output[:, 1].isnan().any()
    assert output[1:ended, 0].isnan().all()
    assert all(state[0].isnan().all() and not state[1].isnan().any() for state in last)


@pytest.mark.parametrize("operation", GATES)
def test_an_empty_batch_gives_empty_results(operation):
    x, states, weights, _ = draw(operation, 3, 0, 2, 4)
    output, *last = KERNELS[operation](x, *states, *weights, None, x.new_ones(GATES[operation], 0, 4))
    assert output.shape == (3, 0, 4)
    assert all(state.shape == (0, 4) for state in last)
