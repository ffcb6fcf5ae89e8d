"""What torch's composition rejects is rejected, by an error that names the argument; what it accepts is accepted."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from seqconv.functional import (
    conv1d_relu_global_max_pool1d,
    conv1d_relu_max_pool1d,
    embedding_conv1d_relu_max_pool1d,
    window_conv1d_relu_max_pool1d,
)
from tests.conv_cases import same
from tests.grids import rounds

REJECTIONS = (ValueError, TypeError, IndexError)
ARGUMENTS = {
    "stride": 1,
    "padding": 0,
    "dilation": 1,
    "groups": 1,
    "pool_size": 2,
    "pool_stride": None,
    "pool_padding": 0,
    "pool_dilation": 1,
    "ceil_mode": False,
}
pytestmark = [
    pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths"),
    pytest.mark.usefixtures("floor"),
]


def composition(input, weight, bias, *, pool_size, pool_stride, pool_padding, pool_dilation, ceil_mode, **convolution):
    if input.numel() == 0 and convolution["dilation"] in (0, -1):
        raise RuntimeError("torch does not look at the dilation where there are no samples")
    activation = F.relu(F.conv1d(input, weight, bias, **convolution))
    return F.max_pool1d(activation, pool_size, pool_stride, pool_padding, pool_dilation, ceil_mode)


# What torch may take, of every kind that it takes, and what it never does.
def number(least, greatest):
    values = st.integers(least, greatest)
    return st.one_of(values, values, values.map(lambda n: (n,)), values.map(np.int64))


GOOD = {
    "stride": number(1, 3),
    "padding": st.one_of(number(0, 4), st.sampled_from(["same", "valid"])),
    "dilation": number(1, 3),
    "pool_size": number(1, 5),
    "pool_stride": st.one_of(st.none(), number(1, 6)),
    "pool_padding": number(0, 2),
    "pool_dilation": number(1, 3),
    "ceil_mode": st.booleans(),
}
BAD = {name: st.sampled_from([-1, 0, 9, True, 1.0, "SAME", (1, 2), None]) for name in GOOD}
BAD |= {"groups": st.sampled_from([-1, 0, 2, 3, (1,)]), "shape": st.integers(0, 3), "bias": st.integers(0, 2)}


@st.composite
def calls(draw):
    groups, channels, outputs = draw(st.integers(1, 3)), draw(st.integers(1, 2)), draw(st.integers(1, 2))
    shape = (draw(st.integers(0, 2)), channels * groups, draw(st.integers(0, 16)))
    shape = draw(st.sampled_from([shape, shape[1:]]))
    bias = draw(st.sampled_from([None, (outputs * groups,)]))
    weight = (outputs * groups, channels, draw(st.integers(1, 4)))
    arguments = {"groups": groups, **{name: draw(values) for name, values in GOOD.items()}}
    for _ in range(draw(st.sampled_from([0, 0, 1, 2]))):
        name = draw(st.sampled_from(sorted(BAD)))
        value = draw(BAD[name])
        if name == "shape":
            shape = [(1, *shape), shape[1:], (1, channels * groups + 1, 9), (*shape[:-1], 0)][value]
        elif name == "bias":
            bias = [(outputs * groups + 1,), (1, outputs * groups), ()][value]
        else:
            arguments[name] = value
    return tuple(shape), weight, bias, arguments


@rounds(4)
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(calls())
@example(((2, 1, 0), (1, 1, 1), None, {**ARGUMENTS, "padding": 3}))
@example(((0, 1, 0), (1, 1, 1), None, {**ARGUMENTS, "padding": 3}))
@example(((2, 1, 6), (1, 1, 1), None, {**ARGUMENTS, "pool_size": 3, "pool_stride": 9, "ceil_mode": True}))
def test_rejects_what_torch_rejects_and_nothing_else(draw, turn, call):
    input_shape, weight_shape, bias_shape, arguments = call
    torch.manual_seed(0)
    input, weight = draw(input_shape), draw(weight_shape)
    bias = None if bias_shape is None else draw(bias_shape)
    try:
        expected = composition(input, weight, bias, **arguments)
    except (RuntimeError, TypeError):
        with pytest.raises(REJECTIONS) as caught:
            conv1d_relu_max_pool1d(input, weight, bias, **arguments)
        subject = str(caught.value).split()[0]
        assert subject in {*arguments, "input", "weight", "bias", "kernel_size"}
    else:
        # A convolution of one product has torch's sign of zero or not: nothing is added to it there, or 0 is.
        assert same(conv1d_relu_max_pool1d(input, weight, bias, **arguments) + 0, expected + 0)


X, W, B = torch.randn(2, 4, 13), torch.randn(6, 2, 3), torch.randn(6)
TOKENS, TABLE = torch.randint(9, (2, 13)), torch.randn(9, 4)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"stride": 0}, ValueError, "stride must be at least 1, got 0"),
        ({"stride": 1.5}, TypeError, "stride must be an integer, got 1.5"),
        ({"stride": True}, TypeError, "stride must be an integer, got True"),
        ({"stride": (1, 2)}, ValueError, "stride must be one integer, got (1, 2)"),
        ({"stride": ()}, ValueError, "stride must be one integer, got ()"),
        ({"stride": np.float64(1)}, TypeError, "stride must be an integer, got np.float64(1.0)"),
        ({"stride": np.array([1])}, TypeError, "stride must be an integer, got array([1])"),
        ({"stride": torch.tensor(1.0)}, TypeError, "stride must be an integer, got tensor(1.)"),
        ({"padding": -1}, ValueError, "padding must be at least 0, got -1"),
        ({"padding": "full"}, ValueError, "padding must be an integer, 'same' or 'valid', got 'full'"),
        (
            {"padding": "same", "stride": 2},
            ValueError,
            "padding must not be 'same' where stride is not 1, got stride 2",
        ),
        ({"padding": None}, TypeError, "padding must be an integer, got None"),
        ({"dilation": 0}, ValueError, "dilation must be at least 1, got 0"),
        ({"dilation": 7}, ValueError, "kernel_size must fit into the padded input"),
        ({"groups": 0}, ValueError, "groups must be at least 1, got 0"),
        ({"groups": (2,)}, TypeError, "groups must be an integer, got (2,)"),
        ({"groups": 1}, ValueError, "input must have in_channels = weight.shape[1] * groups = 2 channels, got 4"),
        ({"weight": W[:5]}, ValueError, "groups must divide out_channels = 5, got 2"),
        ({"weight": W[0]}, ValueError, "weight must have shape (out_channels, in_channels / groups, kernel_size)"),
        ({"weight": W[:0]}, ValueError, "weight must have no empty axis, got shape (0, 2, 3)"),
        ({"weight": W.double()}, TypeError, "weight must have the dtype of input, torch.float32, got torch.float64"),
        ({"weight": W.to("meta")}, ValueError, "weight must be on the device of input, cpu, got meta"),
        ({"weight": W.tolist()}, TypeError, "weight must be a tensor, got list"),
        ({"bias": B[:5]}, ValueError, "bias must have shape (6,), one value per output channel, got (5,)"),
        ({"bias": B.half()}, TypeError, "bias must have the dtype of input, torch.float32, got torch.float16"),
        ({"bias": B.to("meta")}, ValueError, "bias must be on the device of input, cpu, got meta"),
        ({"bias": True}, TypeError, "bias must be a tensor, got bool"),
        ({"input": X[0, 0]}, ValueError, "input must have shape (N, C, L) or (C, L), got (13,)"),
        ({"input": X[..., :0]}, ValueError, "input must have at least one position, got 2 samples of length 0"),
        ({"input": X.numpy()}, TypeError, "input must be a tensor, got ndarray"),
        ({"input": X.long()}, TypeError, "input must be float16, bfloat16, float32 or float64, got torch.int64"),
        ({"input": X.cfloat()}, TypeError, "input must be float16, bfloat16, float32 or float64, got torch.complex64"),
        ({"pool_size": 0}, ValueError, "pool_size must be at least 1, got 0"),
        ({"pool_size": 12}, ValueError, "pool_size must fit into the padded output of the convolution"),
        ({"pool_size": None}, TypeError, "pool_size must be an integer, got None"),
        ({"pool_stride": 0}, ValueError, "pool_stride must be at least 1, got 0"),
        ({"pool_padding": -1}, ValueError, "pool_padding must be at least 0, got -1"),
        ({"pool_padding": 2}, ValueError, "pool_padding must be at most half of pool_size = 2, got 2"),
        ({"pool_dilation": 0}, ValueError, "pool_dilation must be at least 1, got 0"),
        ({"ceil_mode": 1}, TypeError, "ceil_mode must be True or False, got 1"),
        ({"backend": "cuda"}, ValueError, "backend must be one of auto, triton, numba, reference, got 'cuda'"),
        ({"backend": None}, ValueError, "backend must be one of auto, triton, numba, reference, got None"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_names_the_argument_its_value_and_what_it_may_be(change, error, message):
    call = {"input": X, "weight": W, "bias": B, "groups": 2, "pool_size": 2, **change}
    with pytest.raises(error) as caught:
        conv1d_relu_max_pool1d(call.pop("input"), call.pop("weight"), call.pop("bias"), **call)
    assert str(caught.value).startswith(message)
    if not any(name.startswith("pool") or name == "ceil_mode" for name in change):
        call = {"input": X, "weight": W, "bias": B, "groups": 2, **change}
        with pytest.raises(error) as caught:
            conv1d_relu_global_max_pool1d(call.pop("input"), call.pop("weight"), call.pop("bias"), **call)
        assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"tokens": TOKENS + 1}, IndexError, "tokens must be between 0 and 8 for the 9 rows of table, got 9"),
        ({"tokens": TOKENS - 9}, IndexError, "tokens must be between 0 and 8 for the 9 rows of table, got -"),
        ({"tokens": TOKENS.float()}, TypeError, "tokens must be int32 or int64, got torch.float32"),
        ({"tokens": TOKENS.short()}, TypeError, "tokens must be int32 or int64, got torch.int16"),
        ({"tokens": TOKENS[None]}, ValueError, "tokens must have shape (N, L) or (L,), got (1, 2, 13)"),
        ({"tokens": TOKENS[0, 0]}, ValueError, "tokens must have shape (N, L) or (L,), got ()"),
        ({"tokens": TOKENS[:, :0], "padding": 3}, ValueError, "tokens must have at least one position"),
        ({"tokens": TOKENS.to("meta")}, ValueError, "tokens must be on the device of table, cpu, got meta"),
        ({"tokens": TOKENS.tolist()}, TypeError, "tokens must be a tensor, got list"),
        ({"table": TABLE[0]}, ValueError, "table must have shape (rows, channels), got (4,)"),
        ({"table": TABLE[:, :3]}, ValueError, "table must have in_channels = weight.shape[1] * groups = 4 channels"),
        ({"table": TABLE.long()}, TypeError, "table must be float16, bfloat16, float32 or float64, got torch.int64"),
        ({"table": TABLE.double()}, TypeError, "weight must have the dtype of table, torch.float64, got torch.float32"),
        ({"table": None}, TypeError, "table must be a tensor, got NoneType"),
        ({"padding_idx": 9}, ValueError, "padding_idx must be between -9 and 8 for a table of 9 rows, got 9"),
        ({"padding_idx": -10}, ValueError, "padding_idx must be at least -9, got -10"),
        ({"padding_idx": 0.0}, TypeError, "padding_idx must be an integer, got 0.0"),
        ({"padding_idx": (0,)}, TypeError, "padding_idx must be an integer, got (0,)"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_names_what_is_wrong_with_an_embedding(change, error, message):
    tokens = TOKENS.clone()
    tokens[0, 3] = 8
    call = {"tokens": tokens, "table": TABLE, "weight": W, "groups": 2, "pool_size": 2, **change}
    if "tokens" in change and isinstance(change["tokens"], torch.Tensor) and "got 9" in message:
        call["tokens"] = tokens + 1
    with pytest.raises(error) as caught:
        embedding_conv1d_relu_max_pool1d(call.pop("tokens"), call.pop("table"), call.pop("weight"), **call)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            {"starts": torch.tensor([0, 5])},
            IndexError,
            "starts must be between 0 and 4 for the 9 rows of series, got 5",
        ),
        (
            {"starts": torch.tensor([-1, 0])},
            IndexError,
            "starts must be between 0 and 4 for the 9 rows of series, got -1",
        ),
        ({"starts": torch.tensor([0.0])}, TypeError, "starts must be int32 or int64, got torch.float32"),
        ({"starts": torch.tensor(0)}, ValueError, "starts must have shape (N,), got ()"),
        ({"starts": [0]}, TypeError, "starts must be a tensor, got list"),
        ({"series": TABLE[0]}, ValueError, "series must have shape (rows, channels), got (4,)"),
        ({"series": TABLE.numpy()}, TypeError, "series must be a tensor, got ndarray"),
        ({"length": 0}, ValueError, "length must be at least 1, got 0"),
        ({"length": (5,)}, TypeError, "length must be an integer, got (5,)"),
        (
            {"length": 10},
            IndexError,
            "series must have at least 10 rows for starts to count from, got 9 "
            "(a window reaches over (length - 1) * step + 1 = 10)",
        ),
        ({"step": 0}, ValueError, "step must be at least 1, got 0"),
        ({"length": 2}, ValueError, "kernel_size must fit into the padded input"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_names_what_is_wrong_with_windows(change, error, message):
    call = {"series": TABLE, "starts": torch.tensor([0, 4]), "weight": W, "groups": 2, "pool_size": 2, "length": 5}
    call |= change
    with pytest.raises(error) as caught:
        window_conv1d_relu_max_pool1d(call.pop("series"), call.pop("starts"), call.pop("weight"), **call)
    assert str(caught.value).startswith(message)


def test_takes_integers_of_every_kind():
    expected = conv1d_relu_max_pool1d(X, W, B, groups=2, stride=2, padding=1, pool_size=3, pool_stride=1)
    for kind in (lambda n: (n,), lambda n: [n], np.int32, torch.tensor, lambda n: (np.int64(n),)):
        result = conv1d_relu_max_pool1d(
            X, W, B, groups=2, stride=kind(2), padding=kind(1), pool_size=kind(3), pool_stride=kind(1)
        )
        assert torch.equal(result, expected)


@pytest.mark.parametrize("wrong", [(2.0,), (True,), 2.0, True])
def test_a_remembered_call_does_not_let_wrong_types_pass(wrong):
    x, w = torch.ones(1, 1, 9), torch.ones(1, 1, 1)
    conv1d_relu_max_pool1d(x, w, pool_size=(int(wrong[0] if isinstance(wrong, tuple) else wrong),))
    with pytest.raises(TypeError, match=r"^pool_size must be an integer"):
        conv1d_relu_max_pool1d(x, w, pool_size=wrong)


@pytest.mark.parametrize("shape", [(2, 12, 4), (12, 4)])
def test_an_input_with_its_channels_last_gets_a_hint(shape):
    w = torch.ones(6, 4, 3)
    for function, options in (
        (conv1d_relu_max_pool1d, {"pool_size": 2}),
        (conv1d_relu_global_max_pool1d, {}),
    ):
        with pytest.raises(
            ValueError, match=r"^input must have .* so if it is \(N, L, C\), pass input.transpose\(-1, -2\)$"
        ):
            function(torch.ones(shape), w, **options)
        assert function(torch.ones(shape).transpose(-1, -2), w, **options).shape[-2 if options else -1] == 6
        with pytest.raises(ValueError, match=r"^input must have .* got 12 \(shape \(\d, 12, 5\)\)$"):
            function(torch.ones(*shape[:-1], 5), w, **options)
