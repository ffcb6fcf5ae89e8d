"""GRU and LSTM as drop-in layers: torch's numbers without dropout, Keras' dropout semantics with it."""

import copy
import io
import math
import pickle

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import prune
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pack_sequence, pad_packed_sequence

from seqconv.layers.recurrent import GRU, LSTM

PAIRS = [(GRU, nn.GRU), (LSTM, nn.LSTM)]
VARIANTS = [
    {},
    {"num_layers": 2, "bidirectional": True},
    {"num_layers": 3, "bias": False, "batch_first": True},
    {"bidirectional": True, "batch_first": True, "bias": False},
]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(7)


def flat(result):
    """Give a layer's result as a list of tensors."""
    if isinstance(result, torch.Tensor):
        return [result]
    if isinstance(result, PackedSequence):
        return [result.data, result.batch_sizes]
    return [tensor for part in result for tensor in flat(part)]


def same(result, expected):
    pairs = list(zip(flat(result), flat(expected), strict=True))
    return all(torch.equal(one, other) and one.stride() == other.stride() for one, other in pairs)


def near(result, expected):
    """Compare with torch's own kernel in float32: values and strides."""
    # At most 6 steps and 2 layers of sums of 10 terms below 2: each errs by less than 10 * 2 * 6e-8.
    for one, other in zip(flat(result), flat(expected), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=2e-5, check_stride=True)


def close(result, expected):
    # Float64, at most 6 steps and 2 layers of products with 10 terms below 1: 120 sums of 10 terms err by less than
    # 120 * 10 * 2.2e-16 = 2.7e-13.
    for one, other in zip(flat(result), flat(expected), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


def ones_masks(layer, *batch):
    directions = 2 if layer.bidirectional else 1
    return torch.ones(layer.num_layers * directions, *batch, layer.proj_size or layer.hidden_size, dtype=torch.float64)


def states(layer, *batch):
    stack = layer.num_layers * (2 if layer.bidirectional else 1)
    h = torch.randn(stack, *batch, layer.proj_size or layer.hidden_size, dtype=torch.float64)
    c = torch.randn(stack, *batch, layer.hidden_size, dtype=torch.float64)
    return h if isinstance(layer, nn.GRU) else (h, c)


@pytest.mark.parametrize("options", VARIANTS, ids=str)
@pytest.mark.parametrize(("ours", "torchs"), PAIRS)
def test_state_dicts_and_numbers_are_torchs(ours, torchs, options):
    layer, plain = ours(4, 5, **options, recurrent_dropout=0.5, input_dropout=0.2), torchs(4, 5, **options)
    assert list(layer.state_dict()) == list(plain.state_dict())
    plain.load_state_dict(layer.state_dict())
    for shape in [(6, 3, 4), (6, 4), (3, 1, 4)]:
        x = torch.randn(shape)
        near(layer.eval()(x), plain(x))
    other = ours(4, 5, **options)
    other.load_state_dict(plain.state_dict())
    x, hx = torch.randn(6, 3, 4), states(layer, 6 if layer.batch_first else 3)
    hx = hx.float() if ours is GRU else tuple(state.float() for state in hx)
    near(other.train()(x, hx), plain.train()(x, hx))


@pytest.mark.parametrize(("ours", "torchs"), PAIRS)
def test_gradients_in_training_without_dropout_are_torchs(ours, torchs):
    layer, plain = ours(4, 5, 2), torchs(4, 5, 2)
    plain.load_state_dict(layer.state_dict())
    x = torch.randn(6, 3, 4)
    for one in (layer, plain):
        one(x)[0].square().sum().backward()
    for one, other in zip(layer.parameters(), plain.parameters(), strict=True):
        # Sums of 18 products of gradients below 10.
        torch.testing.assert_close(one.grad, other.grad, rtol=0, atol=18 * 10 * 2**-22)


@pytest.mark.parametrize(
    ("ours", "torchs", "options"),
    [
        *[(*pair, options) for pair in PAIRS for options in VARIANTS],
        (LSTM, nn.LSTM, {"num_layers": 2, "bidirectional": True, "proj_size": 3}),
    ],
    ids=str,
)
def test_the_steps_are_torch_where_every_mask_is_one(ours, torchs, options):
    layer, plain = ours(4, 5, **options, dtype=torch.float64), torchs(4, 5, **options, dtype=torch.float64)
    plain.load_state_dict(layer.state_dict())
    x = torch.randn(6, 3, 4, dtype=torch.float64)
    batch = 6 if layer.batch_first else 3
    hx = states(layer, batch)
    close(layer(x, hx, recurrent_mask=ones_masks(layer, batch)), plain(x, hx))
    close(layer(x, recurrent_mask=ones_masks(layer, batch)), plain(x))
    unbatched, hx = torch.randn(6, 4, dtype=torch.float64), states(layer)
    close(layer(unbatched, hx, recurrent_mask=ones_masks(layer)), plain(unbatched, hx))


@pytest.mark.parametrize("enforce_sorted", [True, False])
@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True}], ids=str)
@pytest.mark.parametrize(("ours", "torchs"), PAIRS)
def test_packed_sequences_are_torchs(ours, torchs, options, enforce_sorted):
    layer, plain = ours(4, 5, **options, dtype=torch.float64), torchs(4, 5, **options, dtype=torch.float64)
    plain.load_state_dict(layer.state_dict())
    lengths = [6, 4, 1] if enforce_sorted else [4, 1, 6]
    x = torch.randn(6, 3, 4, dtype=torch.float64)
    packed = pack_padded_sequence(x, lengths, enforce_sorted=enforce_sorted)
    hx = states(layer, 3)
    close(layer(packed, hx), plain(packed, hx))
    result = layer(packed, hx, recurrent_mask=ones_masks(layer, 3))
    close(result, plain(packed, hx))
    assert pad_packed_sequence(result[0])[1].tolist() == lengths


@pytest.mark.parametrize("per_gate_input", [True, False])
@pytest.mark.parametrize("ours", [GRU, LSTM])
def test_packed_masks_belong_to_the_callers_sequences(ours, per_gate_input):
    layer = ours(4, 5, 2, bidirectional=True, dtype=torch.float64)
    sequences = [torch.randn(length, 4, dtype=torch.float64) for length in (3, 1, 5)]
    drawing = copy.deepcopy(layer)
    drawing.input_dropout = drawing.recurrent_dropout = 0.5
    drawing.recurrent_dropout_mode = "per_gate" if per_gate_input else "shared"
    input_mask, recurrent_mask = drawing.draw_masks(torch.empty(9, 3, 4))
    for recurrent in (recurrent_mask, None):
        output, last = layer(
            pack_sequence(sequences, enforce_sorted=False), input_mask=input_mask, recurrent_mask=recurrent
        )
        padded, _ = pad_packed_sequence(output)
        for n, sequence in enumerate(sequences):
            alone, alone_last = layer(
                sequence,
                input_mask=input_mask[..., n, :],
                recurrent_mask=None if recurrent is None else recurrent[..., n, :],
            )
            close(padded[: len(sequence), n], alone)
            close([state[:, n] for state in flat(last)], flat(alone_last))


@pytest.mark.parametrize("ours", [GRU, LSTM])
def test_layers_and_directions_compose_from_single_ones(ours):
    layer = ours(4, 3, 2, bidirectional=True, batch_first=True, dtype=torch.float64)
    layer.recurrent_dropout = layer.input_dropout = 0.5
    x = torch.randn(2, 6, 4, dtype=torch.float64)
    input_mask, recurrent_mask = layer.draw_masks(x)
    output, last = layer(x, input_mask=input_mask, recurrent_mask=recurrent_mask)
    level, lasts = x, []
    for number in range(2):
        directions = []
        for suffix in ("", "_reverse"):
            single = ours(level.size(-1), 3, batch_first=True, dtype=torch.float64)
            names = [name.removesuffix("_l0") for name in single.state_dict()]
            single.load_state_dict({f"{name}_l0": getattr(layer, f"{name}_l{number}{suffix}") for name in names})
            index = 2 * number + bool(suffix)
            result, state = single(
                level.flip(1) if suffix else level,
                input_mask=None if number else input_mask,
                recurrent_mask=recurrent_mask[index : index + 1],
            )
            directions.append(result.flip(1) if suffix else result)
            lasts.append(flat(state))
        level = torch.cat(directions, -1)
    close(output, level)
    close(flat(last), [torch.cat(parts) for parts in zip(*lasts, strict=True)])


@pytest.mark.parametrize("ours", [GRU, LSTM])
def test_drawn_masks_are_what_training_uses(ours):
    options = {"num_layers": 2, "bidirectional": True, "input_dropout": 0.3, "recurrent_dropout": 0.5}
    layer = ours(4, 5, **options)
    x = torch.randn(6, 3, 4)
    torch.manual_seed(3)
    trained = layer(x)
    torch.manual_seed(3)
    assert same(layer(x), trained)
    assert not same(layer(x), trained)
    torch.manual_seed(3)
    input_mask, recurrent_mask = layer.draw_masks(x)
    before = torch.get_rng_state()
    assert same(layer(x, input_mask=input_mask, recurrent_mask=recurrent_mask), trained)
    assert torch.equal(torch.get_rng_state(), before)
    # Masks that are given act in evaluation as well; without them nothing is dropped.
    assert same(layer.eval()(x, input_mask=input_mask, recurrent_mask=recurrent_mask), trained)
    assert not torch.allclose(layer(x)[0], trained[0])

    generator = torch.Generator().manual_seed(5)
    drawn = layer.draw_masks(x, generator=generator)
    generator.manual_seed(5)
    assert same(layer.draw_masks(x, generator=generator), drawn)


@pytest.mark.parametrize("ours", [GRU, LSTM])
def test_masks_have_their_rate_scale_and_shape(ours):
    layer = ours(40, 50, 2, bidirectional=True, input_dropout=0.2, recurrent_dropout=0.6)
    input_mask, recurrent_mask = layer.draw_masks(torch.empty(2, 100, 40))
    gates = layer.gates
    assert input_mask.shape == (gates, 100, 40)
    assert recurrent_mask.shape == (4, gates, 100, 50)
    for mask, p in ((input_mask, 0.2), (recurrent_mask, 0.6)):
        kept = mask != 0
        assert torch.equal(mask[kept], torch.full_like(mask[kept], 1) / (1 - p))
        # Five standard deviations of a mean of numel draws.
        assert abs(kept.double().mean().item() - (1 - p)) < 5 * math.sqrt(p * (1 - p) / mask.numel())
        rows = kept.flatten(0, -3)
        for one in range(len(rows)):
            for other in range(one):
                assert not torch.equal(rows[one], rows[other])
        assert not torch.equal(kept[..., 0, :], kept[..., 1, :])

    layer.recurrent_dropout_mode = "shared"
    shapes = [tuple(mask.shape) for mask in layer.draw_masks(torch.empty(2, 100, 40))]
    assert shapes == [(100, 40), (4, 100, 50)]
    layer.recurrent_dropout_mode, layer.recurrent_dropout = "per_gate", 0.0
    input_mask, recurrent_mask = layer.draw_masks(torch.empty(2, 100, 40))
    assert input_mask.shape == (100, 40)
    assert recurrent_mask is None


@pytest.mark.parametrize("ours", [GRU, LSTM])
def test_a_shared_mask_is_the_same_mask_for_every_gate(ours):
    layer = ours(4, 5, recurrent_dropout=0.5, recurrent_dropout_mode="shared", dtype=torch.float64)
    x = torch.randn(6, 3, 4, dtype=torch.float64)
    _, shared = layer.draw_masks(x)
    per_gate = shared.unsqueeze(1).expand(-1, layer.gates, -1, -1)
    close(layer(x, recurrent_mask=shared), layer(x, recurrent_mask=per_gate))
    # ... and a mask for each gate is something else.
    per_gate = torch.stack([shared, *[torch.ones_like(shared)] * (layer.gates - 1)], 1)
    assert not torch.allclose(layer(x, recurrent_mask=shared)[0], layer(x, recurrent_mask=per_gate)[0])


@pytest.mark.parametrize("ours", [GRU, LSTM])
def test_input_dropout_alone_drops_features_over_all_time_steps(ours):
    layer = ours(4, 5, batch_first=True, input_dropout=0.5)
    x = torch.randn(3, 6, 4)
    torch.manual_seed(1)
    output = layer(x)
    torch.manual_seed(1)
    mask, _ = layer.draw_masks(x)
    plain = ours(4, 5, batch_first=True)
    plain.load_state_dict(layer.state_dict())
    near(output, plain(x * mask.unsqueeze(1)))


@pytest.mark.parametrize("ours", [GRU, LSTM])
def test_probability_one_drops_everything(ours):
    layer = ours(4, 5, input_dropout=1.0, recurrent_dropout=1)
    output, _ = layer(torch.randn(6, 3, 4))
    again, _ = layer(torch.randn(6, 3, 4))
    assert torch.equal(output, again)
    assert output.isfinite().all()


@pytest.mark.parametrize("ours", [GRU, LSTM])
def test_dropout_between_layers(ours):
    layer = ours(4, 50, 2, dropout=0.5, recurrent_dropout=0.5)
    x = torch.randn(6, 3, 4)
    _, mask = layer.draw_masks(x)
    assert not same(layer(x, recurrent_mask=mask), layer(x, recurrent_mask=mask))
    layer.eval()
    assert same(layer(x, recurrent_mask=mask), layer(x, recurrent_mask=mask))
    first_layer = flat(layer(x, recurrent_mask=mask)[1])[0][0]
    # At probability 1 the second layer sees zeros, whatever the input, and the first what it always sees.
    layer.train().dropout = 1.0
    output, last = layer(x, recurrent_mask=mask)
    assert torch.equal(output, layer(x + 1, recurrent_mask=mask)[0])
    assert torch.equal(flat(last)[0][0], first_layer)


@pytest.mark.parametrize(("ours", "torchs"), PAIRS)
def test_dropout_between_layers_alone_is_torchs(ours, torchs):
    layer, plain = ours(4, 5, 2, dropout=0.5), torchs(4, 5, 2, dropout=0.5)
    plain.load_state_dict(layer.state_dict())
    x = torch.randn(6, 3, 4)
    torch.manual_seed(4)
    expected = plain(x)
    torch.manual_seed(4)
    near(layer(x), expected)
    assert not same(layer(x), expected)


def test_a_projected_state_has_masks_of_its_size():
    layer = LSTM(4, 5, proj_size=2, recurrent_dropout=0.5)
    x = torch.randn(6, 3, 4)
    assert layer.draw_masks(x)[1].shape == (1, 4, 3, 2)
    assert layer(x)[0].shape == (6, 3, 2)


@pytest.mark.parametrize("ours", [GRU, LSTM])
def test_gradcheck_through_the_layer(ours):
    layer = ours(2, 3, 2, bidirectional=True, recurrent_dropout=0.5, input_dropout=0.5, dtype=torch.float64)
    x = torch.randn(3, 2, 2, dtype=torch.float64, requires_grad=True)
    input_mask, recurrent_mask = layer.draw_masks(x)
    names = [name for name, _ in layer.named_parameters()]

    def run(x, *parameters):
        masks = {"input_mask": input_mask, "recurrent_mask": recurrent_mask}
        return flat(torch.func.functional_call(layer, dict(zip(names, parameters, strict=True)), (x,), masks))

    assert torch.autograd.gradcheck(run, [x, *layer.parameters()], fast_mode=True)


@pytest.mark.parametrize("ours", [GRU, LSTM])
def test_copies_and_pickles_keep_options_and_numbers(ours):
    layer = ours(4, 5, input_dropout=0.25, recurrent_dropout=0.5, recurrent_dropout_mode="shared", backend="reference")
    x = torch.randn(6, 3, 4)
    buffer = io.BytesIO()
    torch.save(layer, buffer)
    buffer.seek(0)
    torch.manual_seed(2)
    expected = layer(x)
    loaded = torch.load(buffer, weights_only=False)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), loaded):
        torch.manual_seed(2)
        assert same(other(x), expected)
        assert repr(other) == repr(layer)


def test_repr_shows_what_is_not_default():
    assert repr(GRU(4, 5)) == "GRU(4, 5)"
    layer = LSTM(4, 5, 2, input_dropout=0.1, recurrent_dropout=0.5, backend="reference")
    assert repr(layer) == (
        "LSTM(4, 5, num_layers=2, input_dropout=0.1, recurrent_dropout=0.5, recurrent_dropout_mode='per_gate', "
        "backend='reference')"
    )


@pytest.mark.parametrize(("ours", "torchs"), PAIRS)
def test_dtype_follows_the_layer(ours, torchs):
    layer = ours(4, 5, recurrent_dropout=0.5, input_dropout=0.5).to(torch.bfloat16)
    output, _ = layer(torch.randn(6, 3, 4, dtype=torch.bfloat16))
    assert output.dtype == torch.bfloat16
    assert all(mask.dtype == torch.bfloat16 for mask in layer.draw_masks(output))


@pytest.mark.parametrize(("ours", "dtype"), [(GRU, torch.float32), (LSTM, torch.bfloat16)])
def test_autocast_answers_in_the_dtype_of_torchs_kernel(ours, dtype):
    layer = ours(4, 5, 2, recurrent_dropout=0.5, input_dropout=0.5)
    x = torch.randn(6, 3, 4)
    input_mask, recurrent_mask = layer.draw_masks(x)
    full, _ = layer(x, input_mask=input_mask, recurrent_mask=recurrent_mask)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output, last = layer(x, input_mask=input_mask, recurrent_mask=recurrent_mask)
    assert output.dtype == dtype
    assert all(state.dtype == dtype for state in flat(last))
    # Products of bfloat16 (8 bits) over 2 layers of 6 steps, on states within (-1, 1).
    torch.testing.assert_close(output.float(), full, rtol=0, atol=12 * 2 * 2**-8)
    # torch's LSTM is cast, and so is ours; its GRU is not, and ours computes in float32.
    assert torch.equal(output.float(), full) == (ours is GRU)


@pytest.mark.parametrize("ours", [GRU, LSTM])
@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"recurrent_dropout": 1.5}, ValueError, "recurrent_dropout must be between 0 and 1, got 1.5"),
        ({"input_dropout": -0.1}, ValueError, "input_dropout must be between 0 and 1, got -0.1"),
        ({"input_dropout": float("nan")}, ValueError, "input_dropout must be between 0 and 1, got nan"),
        ({"input_dropout": "0.5"}, TypeError, "input_dropout must be a number, got '0.5'"),
        ({"recurrent_dropout": True}, TypeError, "recurrent_dropout must be a number, got True"),
        ({"recurrent_dropout_mode": "gate"}, ValueError, "recurrent_dropout_mode must be one of per_gate, shared, got"),
        ({"backend": "cuda"}, ValueError, "backend must be one of auto, triton, numba, reference, got 'cuda'"),
    ],
    ids=str,
)
def test_bad_options_are_named(ours, options, error, message):
    with pytest.raises(error, match=message):
        ours(4, 5, **options)


@pytest.mark.parametrize("ours", [GRU, LSTM])
def test_shapes_can_be_inferred_without_numbers(ours):
    # The device "meta" has no autocast, and torch refuses to be asked about it.
    layer = ours(3, 4, recurrent_dropout=np.float32(0.5), device="meta")
    assert layer(torch.zeros(7, 5, 3, device="meta"))[0].shape == (7, 5, 4)
    assert layer.eval()(torch.zeros(7, 5, 3, device="meta"))[0].shape == (7, 5, 4)


@pytest.mark.parametrize("ours", [GRU, LSTM])
def test_bad_calls_are_named(ours):
    layer = ours(4, 5, 2, recurrent_dropout=0.5)
    gates = layer.gates
    x = torch.ones(6, 3, 4)
    cases = [
        ({"recurrent_mask": torch.ones(2, 3, 4)}, ValueError, "recurrent_mask must have shape .*2, 3, 5.*got"),
        (
            {"recurrent_mask": torch.ones(3, 5)},
            ValueError,
            rf"recurrent_mask must .* or \(2, {gates}, 3, 5\) or \(2, 6, 1, 3, 5\) or \(2, 6, {gates}, 3, 5\), got",
        ),
        ({"recurrent_mask": torch.ones(2, 3, 5).double()}, TypeError, "recurrent_mask must have the dtype of input"),
        ({"recurrent_mask": torch.ones(2, 3, 5).bool()}, TypeError, "recurrent_mask must have the dtype of input"),
        ({"recurrent_mask": torch.ones(2, 3, 5, device="meta")}, ValueError, "recurrent_mask must be on the device"),
        ({"recurrent_mask": 0.5}, TypeError, "recurrent_mask must be a Tensor, got float"),
        ({"input_mask": torch.ones(6, 4)}, ValueError, r"input_mask must have shape \(3, 4\)"),
        ({"hx": states(layer, 4)}, ValueError, r"hx.* must have shape \(2, 3, 5\), got \(2, 4, 5\)"),
        ({"input": torch.ones(4)}, ValueError, r"input must have shape \(L, N, C\) or \(L, C\), got \(4,\)"),
        ({"input": [1.0]}, TypeError, "input must be a Tensor or a PackedSequence, got list"),
        ({"input": torch.ones(0, 3, 4)}, ValueError, "input must have at least one time step"),
        ({"input": torch.ones(6, 3, 7)}, ValueError, r"input must have .* = 4 features .* 7 \(shape \(6, 3, 7\)\)$"),
        ({"input": torch.ones(3, 4, 6)}, ValueError, r"features .* if it is \(N, C, L\), pass input.transpose\(1, 2\)"),
        ({"input": x.double()}, TypeError, r"weight_ih of weights\[0\] must have the dtype of input, torch.float64"),
    ]
    for change, error, message in cases:
        with pytest.raises(error, match=message):
            layer(**{"input": x, **change})


@pytest.mark.parametrize("grad", [True, False])
def test_an_lstm_needs_both_states(grad):
    layer = LSTM(4, 5).eval()
    with torch.set_grad_enabled(grad):
        with pytest.raises(TypeError, match=r"hx must be a pair of tensors \(h_0, c_0\), got Tensor"):
            layer(torch.ones(2, 3, 4), torch.zeros(1, 3, 5))
        with pytest.raises(TypeError, match=r"hx\[0\] must be a Tensor, got NoneType"):
            layer(torch.ones(2, 3, 4), (None, torch.zeros(1, 3, 5)))
        with pytest.raises(TypeError, match="hx must be a Tensor, got tuple"):
            GRU(4, 5).eval()(torch.ones(2, 3, 4), (torch.zeros(1, 3, 5), torch.zeros(1, 3, 5)))


@pytest.mark.parametrize("ours", [GRU, LSTM])
def test_batch_of_none_and_strided_inputs(ours):
    layer = ours(4, 5, recurrent_dropout=0.5, batch_first=True)
    assert layer(torch.ones(0, 6, 4))[0].shape == (0, 6, 5)
    x = torch.randn(3, 4, 6).transpose(1, 2)
    _, mask = layer.draw_masks(x)
    assert same(layer(x, recurrent_mask=mask), layer(x.contiguous(), recurrent_mask=mask))


@pytest.mark.parametrize(("ours", "torchs"), PAIRS)
def test_known_calls_follow_every_change(ours, torchs):
    layer, plain = ours(4, 5, 2, bidirectional=True).eval(), torchs(4, 5, 2, bidirectional=True).eval()
    plain.load_state_dict(layer.state_dict())
    given = [torch.randn(6, 3, 4), torch.randn(6, 4), torch.randn(2, 7, 4).transpose(0, 1)]

    def compare(hx=None):
        with torch.no_grad():
            for x in (*given, *given):
                near(layer(x, hx), plain(x, hx))

    compare()
    for one in (layer, plain):
        one.weight_hh_l1 = nn.Parameter(one.weight_hh_l1 * 2)
        one.bias_ih_l0.data.add_(0.5)
    compare()
    given = given[:1]
    compare(states(layer, 3).float() if ours is GRU else tuple(one.float() for one in states(layer, 3)))
    layer.batch_first = plain.batch_first = True
    compare()
    for one in (layer, plain):
        prune.l1_unstructured(one, "weight_hh_l0", amount=0.5)
    compare()
    with torch.no_grad(), pytest.raises(ValueError, match="input must have C = weight_ih"):
        layer(torch.randn(6, 3, 5))


@pytest.mark.parametrize("ours", [GRU, LSTM])
def test_another_default_device(ours):
    layer, x = ours(4, 5, 2, bidirectional=True), torch.randn(6, 3, 4)
    packed = pack_padded_sequence(x, [6, 4, 1])
    expected = [flat(layer(one)) for one in (x, packed)]
    with torch.device("meta"):
        for one, other in zip((x, packed), expected, strict=True):
            assert all(map(torch.equal, flat(layer(one)), other))
            flat(layer(one))[0].sum().backward()


@pytest.mark.parametrize(("ours", "torchs"), PAIRS)
def test_dropout_between_layers_of_packed_sequences_is_torchs(ours, torchs):
    layer, plain = ours(4, 5, 2, dropout=0.5, dtype=torch.float64), torchs(4, 5, 2, dropout=0.5, dtype=torch.float64)
    plain.load_state_dict(layer.state_dict())
    packed = pack_padded_sequence(torch.randn(6, 3, 4, dtype=torch.float64), [4, 1, 6], enforce_sorted=False)
    torch.manual_seed(4)
    expected = plain(packed)
    torch.manual_seed(4)
    close(layer(packed), expected)


@pytest.mark.parametrize("ours", [GRU, LSTM])
def test_gradients_without_memory_of_their_own(ours):
    layer, x = ours(4, 5), torch.randn(6, 3, 4, requires_grad=True)
    output, _ = layer(x)
    upstream = torch.randn_like(output)
    negated, right = (
        torch.autograd.grad(output, x, one, retain_graph=True)[0] for one in (torch._neg_view(upstream), -upstream)
    )
    assert torch.equal(negated, right)
    with pytest.raises(RuntimeError, match="kernels take no batched gradients: pass backend='reference'"):
        torch.autograd.grad(output, x, torch.stack([upstream, upstream]), is_grads_batched=True)
