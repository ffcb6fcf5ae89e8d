"""Operands of any strides: every layer, operand and layout, forward and backward, against torch in float64.

The Triton floor is tested on a GPU or in the interpreter, as in all files here; the other floors, which need neither,
serve the same calls in a plain process.
"""

import os

import pytest
import torch
import torch.nn.functional as F

from seqconv import functional
from tests.conv_cases import composition, whole
from tests.grids import marked

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
SAMPLES, LENGTH, STEP, ROWS, CHANNELS, OUTPUTS, SIZE = 3, 9, 2, 33, 5, 7, 2
# Of every layer: whether it pools windows or globally, and the plan of its forward pass where there are two.
LAYERS = {
    "dense": (True, None),
    "dense_global": (False, None),
    "tokens": (True, "direct"),
    "tokens_global": (False, "folded"),
    "windows": (True, "folded"),
    "windows_global": (False, "direct"),
}
OPERANDS = {
    "dense": ("source", "weight", "bias", "upstream"),
    "tokens": ("index", "source", "weight", "bias", "upstream"),
    "windows": ("index", "source", "weight", "bias", "upstream"),
}


def within(t, larger, view):
    """Return the numbers of ``t`` as a view of a larger tensor, which holds others wherever the view does not look."""
    memory = torch.full(larger, float("nan") if t.is_floating_point() else 0, dtype=t.dtype, device=t.device)
    placed = view(memory)
    assert placed.shape == t.shape
    return placed.copy_(t)


def every_second(t):
    return within(t, [2 * size for size in t.shape], lambda memory: memory[(slice(None, None, 2),) * t.dim()])


def cut(t):
    return within(t, [size + 3 for size in t.shape], lambda memory: memory[(slice(1, -2),) * t.dim()])


def transposed(t):
    """Return the same numbers with all axes in the other order; a vector becomes a column of a matrix."""
    if t.dim() == 1:
        return within(t, (t.size(0), 5), lambda memory: memory[:, 3])
    return within(t, t.shape[::-1], lambda memory: memory.permute(*range(t.dim())[::-1]))


LAYOUTS = {
    "every second": every_second,
    "cut": cut,
    "transposed": transposed,
    "one for all": lambda t: t[:1].expand_as(t),
    "one number": lambda t: t.flatten()[0].expand_as(t),
}
# Of the layouts those that are no other's where an operand has one axis.
OF_VECTORS = ("every second", "cut", "transposed", "one number")
CASES = [
    (layer, operand, layout)
    for layer in LAYERS
    for operand in OPERANDS[layer.partition("_")[0]]
    for layout in (OF_VECTORS if operand == "bias" or (operand, layer[:7]) == ("index", "windows") else LAYOUTS)
]


def operands(layer, device):
    """Return a layer's operands, contiguous, of whole numbers whose sums are exact."""
    torch.manual_seed(0)
    kind, pools = layer.partition("_")[0], LAYERS[layer][0]
    made = {"weight": whole(OUTPUTS, CHANNELS, SIZE), "bias": torch.arange(OUTPUTS) % 5 - 1.0}
    if kind == "dense":
        made["source"] = whole(SAMPLES, CHANNELS, LENGTH)
    else:
        made["source"] = whole(ROWS, CHANNELS)
        tokens, starts = torch.randint(1, ROWS, (SAMPLES, LENGTH)), torch.tensor([5, 16, 9])
        made["index"] = tokens if kind == "tokens" else starts
    positions = LENGTH - SIZE + 1
    made["upstream"] = whole(SAMPLES, OUTPUTS, positions // 2) if pools else whole(SAMPLES, OUTPUTS)
    return {name: t.to(device) for name, t in made.items()}


def served(layer, backend, index, source, weight, bias, **options):
    """Return what seqconv computes, with windows of two positions unless ``options`` say otherwise."""
    kind, pools = layer.partition("_")[0], LAYERS[layer][0]
    name = {"dense": "", "tokens": "embedding_", "windows": "window_"}[kind]
    function = getattr(functional, f"{name}conv1d_relu_{'' if pools else 'global_'}max_pool1d")
    sources = {"dense": (source,), "tokens": (index, source), "windows": (source, index)}[kind]
    if kind == "windows":
        options = {"length": LENGTH, "step": STEP, **options}
    return function(*sources, weight, bias, backend=backend, **({"pool_size": 2} if pools else {}) | options)


def composed(layer, index, source, weight, bias, length=LENGTH, **options):
    """Return what torch computes."""
    kind, pools = layer.partition("_")[0], LAYERS[layer][0]
    if kind == "windows":
        index = index[:, None] + STEP * torch.arange(length)
    x = source if kind == "dense" else F.embedding(index, source).transpose(1, 2)
    pool = {"pool_size": 2, **{name: options.pop(name) for name in list(options) if name.startswith("pool")}}
    return composition(x, weight, bias, pool if pools else None, **options)


def check(layer, operand, layout, backend, device):
    given = operands(layer, device)
    given[operand] = LAYOUTS[layout](given[operand])
    upstream, index = given.pop("upstream"), given.pop("index", None)
    leaves = {name: t.detach().requires_grad_() for name, t in given.items()}
    if operand in leaves:
        assert leaves[operand].stride() == given[operand].stride()
    out = served(layer, backend, index, **leaves)
    got = torch.autograd.grad(out, list(leaves.values()), upstream)
    exact = {name: t.detach().cpu().double().contiguous().requires_grad_() for name, t in leaves.items()}
    expected = composed(layer, None if index is None else index.cpu(), **exact)
    wanted = torch.autograd.grad(expected, list(exact.values()), upstream.cpu().double())
    assert torch.equal(out.detach().cpu().double(), expected.detach())
    for name, one, other in zip(exact, got, wanted, strict=True):
        assert torch.equal(one.cpu().double(), other), name


@pytest.mark.parametrize(("layer", "operand", "layout"), marked(CASES))
def test_reads_operands_of_any_strides(device, layer, operand, layout, monkeypatch):
    from seqconv.kernels.plans import forward_plan
    from seqconv.kernels.triton import gather

    plan, plans = LAYERS[layer][1], []

    def forced(*counts, **options):
        plans.append(plan)
        return forward_plan(*counts, **options)._replace(name=plan)

    monkeypatch.setattr(gather, "forward_plan", forced)
    check(layer, operand, layout, "triton", device)
    assert plans == ([] if plan is None else [plan])


@pytest.mark.skipif(INTERPRETED, reason="nothing of Triton's: a plain process runs it")
@pytest.mark.parametrize("backend", ["numba", "reference"])
@pytest.mark.parametrize(("layer", "operand", "layout"), CASES)
def test_so_do_the_other_floors(layer, operand, layout, backend):
    check(layer, operand, layout, backend, "cpu")
