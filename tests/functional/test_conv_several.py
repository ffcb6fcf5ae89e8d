"""Convolutions of several kernel sizes over the same tokens, against torch's composition."""

import gc
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import seqconv
from seqconv.functional import embedding_conv1ds_relu_global_max_pool1d, folded, several_library
from seqconv.functional.several import embedding_conv1ds_call
from tests.conv_cases import assert_same, whole

SIZES = (3, 1, 5)


def ours(tokens, table, *tensors, **options):
    count = len(tensors) // 2
    return embedding_conv1ds_relu_global_max_pool1d(tokens, table, tensors[:count], tensors[count:], **options)


def composed(tokens, table, *tensors, padding_idx=None, **convolution):
    x, count = F.embedding(tokens, table, padding_idx).transpose(-1, -2), len(tensors) // 2
    layers = zip(tensors[:count], tensors[count:], strict=True)
    return torch.cat([F.relu(F.conv1d(x, w, b, **convolution)).max(-1).values for w, b in layers], -1)


def tensors(draw=whole, groups=1, dtype=torch.float32):
    shapes = [(9, 4), *((6, 4 // groups, size) for size in SIZES), *((6,) for _ in SIZES)]
    return [draw(*shape).to(dtype) for shape in shapes]


@pytest.mark.parametrize("index", [torch.int32, torch.int64])
@pytest.mark.parametrize("options", [
    {}, {"padding_idx": 3}, {"padding": "same", "dilation": 2}, {"stride": 2, "padding": 3}, {"groups": 2},
], ids=str)  # fmt: skip
def test_is_torchs_composition(options, index, draw):
    torch.manual_seed(3)
    given = tensors(draw, options.get("groups", 1))
    tokens = torch.randint(9, (4, 14), dtype=index)
    for one in (tokens, tokens[0], tokens.t().contiguous().t()):
        assert_same([lambda *t, f=f: f(one, *t, **options) for f in (ours, composed)], given)  # noqa: B023


def test_gradcheck_and_frozen_parts():
    torch.manual_seed(3)
    given = [one.requires_grad_() for one in tensors(torch.randn, dtype=torch.float64)]
    tokens = torch.randint(9, (3, 11))
    assert torch.autograd.gradcheck(lambda *t: ours(tokens, *t, backend="numba"), given)
    for frozen in (given[:1], given[1:4], given[2:3], given[4:]):
        for one in frozen:
            one.requires_grad_(False)
        wanted = [one for one in given if one.requires_grad]
        outcomes = [torch.autograd.grad(f(tokens, *given).square().sum(), wanted) for f in (ours, composed)]
        assert all(torch.allclose(one, other, rtol=1e-9) for one, other in zip(*outcomes, strict=True))
        for one in frozen:
            one.requires_grad_()


def test_without_biases_and_without_gradients_from_kept_tables():
    torch.manual_seed(3)
    seqconv.clear_cache()
    table, *weights = tensors(torch.randn, dtype=torch.float64)[:4]
    seqconv.frozen([table, *weights])
    tokens = torch.randint(9, (30, 11))
    right = composed(tokens, table, *weights, *[None] * 3)
    for _ in range(4):
        result = embedding_conv1ds_relu_global_max_pool1d(tokens, table, weights)
        assert torch.allclose(result, right, rtol=1e-12, atol=1e-12)
    assert len(folded._kept) == 3
    weights[1].add_(1)
    right = composed(tokens, table, *weights, *[None] * 3)
    assert torch.allclose(embedding_conv1ds_relu_global_max_pool1d(tokens, table, weights), right, rtol=1e-12)


def test_a_second_derivative_is_refused():
    given = [one.requires_grad_() for one in tensors()]
    result = ours(torch.randint(9, (3, 11)), *given, backend="numba")
    gradients = torch.autograd.grad(result.square().sum(), given[:2], create_graph=True)
    with pytest.raises(RuntimeError, match="embedding_conv1ds_relu_global_max_pool1d has no second derivative"):
        torch.autograd.grad(gradients[0].sum(), given[1])


def test_under_torch_compile():
    torch.manual_seed(3)
    torch.compiler.reset()
    given = [one.requires_grad_() for one in tensors()]
    tokens = torch.randint(9, (3, 11))
    compiled = torch.compile(lambda *t: ours(tokens, *t), fullgraph=True, backend="aot_eager")
    outcomes = [[r := f(*given), *torch.autograd.grad(r.sum(), given)] for f in (compiled, lambda *t: ours(tokens, *t))]
    assert all(map(torch.equal, *outcomes))


@pytest.mark.parametrize("bias", [True, False], ids=["biases", "no second bias"])
@pytest.mark.parametrize("wanted", [(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 1), (0, 0, 0)], ids=str)
def test_under_torch_compile_one_operator_gives_what_is_wanted(wanted, bias):
    torch.manual_seed(3)
    torch.compiler.reset()
    table, *rest = tensors()
    given = [table, *rest]
    given[5] = given[5] if bias else None
    for place, want in zip((0, 2, 6), wanted, strict=True):  # of three weights and three biases one each
        given[place].requires_grad_(bool(want))
    tokens, targets = torch.randint(9, (3, 11)), []

    def backend(graph, inputs):
        targets.extend(str(node.target) for node in graph.graph.nodes if "seqconv" in str(node.target))
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)

    compiled = torch.compile(lambda *t: ours(tokens, *t, padding_idx=2), fullgraph=True, backend=backend)
    outcomes = []
    for function in (compiled, lambda *t: ours(tokens, *t, padding_idx=2)):
        result = function(*given)
        leaves = [one for one in given if one is not None and one.requires_grad]
        outcomes.append([result, *(torch.autograd.grad(result.sum(), leaves) if leaves else [])])
    assert all(map(torch.equal, *outcomes))
    kind = "_with_argmax" if any(wanted) else ""
    assert targets == [f"seqconv.embedding_convs_relu_max_pool{kind}.default"]


def test_numbers_of_rows_are_checked_in_a_graph():
    torch.compiler.reset()
    compiled = torch.compile(lambda tokens: ours(tokens, *tensors()), backend="aot_eager")
    compiled(torch.randint(9, (3, 11)))
    with pytest.raises(IndexError, match="tokens"):
        compiled(torch.full((3, 11), 9))


@pytest.mark.parametrize("lengths", [None, torch.tensor([11, 7, 5])], ids=["whole", "lengths"])
def test_the_operators_are_what_they_say(lengths):
    torch.manual_seed(3)
    table, *rest = tensors()
    tokens, weights, biases = torch.randint(9, (3, 11)), rest[:3], rest[3:]
    convolutions = [1, 0, 0, 1] * 3
    operands = table, tokens, lengths, weights, [biases[0], biases[2]], [True, False, True], 2, convolutions
    with torch.no_grad():
        torch.library.opcheck(several_library._undifferentiated, operands)
        output, argmax = several_library._differentiable(*operands)
        for wanted in ([True, True, True], [False, True, False], [True, False, False]):
            given = (torch.ones_like(output), argmax, table, tokens, lengths, weights, 2, convolutions, wanted)
            torch.library.opcheck(several_library._backward, given)
    for one in (table, *rest):
        one.requires_grad_()
    torch.library.opcheck(several_library._differentiable, operands)


def test_errors_name_the_argument():
    tokens, (table, *rest) = torch.randint(9, (3, 11)), tensors()
    weights, biases = rest[:3], rest[3:]
    for arguments, kind, message in (
        ((tokens, table, weights[0]), TypeError, r"^weights must be a list or tuple of tensors, got Tensor"),
        ((tokens, table, []), ValueError, r"^weights must hold at least one tensor, got none"),
        (
            (tokens, table, weights, biases[:2]),
            ValueError,
            r"^biases must hold one tensor or None for each of 3 .*got 2",
        ),
        ((tokens, table, [weights[0], weights[1][0]]), ValueError, r"^weight must have shape .* \(of weights\[1\]\)$"),
        (
            (tokens, table, [weights[0], None]),
            TypeError,
            r"^weight must be a tensor, got NoneType \(of weights\[1\]\)$",
        ),
        ((tokens[:, :4], table, weights), ValueError, r"^kernel_size must fit .* \(of weights\[2\]\)$"),
        ((tokens + 9, table, weights), IndexError, r"^tokens must be between 0 and 8 for the 9 rows of table"),
    ):
        with pytest.raises(kind, match=message):
            embedding_conv1ds_relu_global_max_pool1d(*arguments)


def test_takes_parameter_lists_and_explains():
    weights, biases = nn.ParameterList(tensors()[1:4]), nn.ParameterList(tensors()[4:])
    table, tokens = whole(9, 4), torch.randint(9, (30, 11))
    call = embedding_conv1ds_call(tokens, table, None, weights, biases, None, (1, 0, 1, 1))
    explanation = call.explain("auto")
    assert explanation.backend == "numba"
    assert explanation.plan.count("rows to fold") == 3
    assert call.run("auto").shape == (30, 18)


def test_a_fused_model_keeps_no_tokens_and_no_table():
    class Text(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.convs = nn.Embedding(9, 4), nn.ModuleList([nn.Conv1d(4, 6, size) for size in SIZES])

        def forward(self, tokens):
            x = self.table(tokens).transpose(1, 2)
            return torch.cat([F.relu(conv(x)).max(-1).values for conv in self.convs], 1)

    model, tokens = seqconv.fuse(Text()), torch.randint(9, (3, 11))
    for _ in range(3):
        model(tokens)
    gone = [weakref.ref(one) for one in (tokens, model.table.weight)]
    model.table.weight = nn.Parameter(torch.randn(9, 4))
    del tokens
    gc.collect()
    assert [one() for one in gone] == [None, None]
