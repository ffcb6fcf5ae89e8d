"""What the tests of the floors' recurrent kernels share: operands, torch's composition with its gradients, comparison.

The oracle is the reference in float64 (:func:`seqconv.kernels.reference.recurrent.layer`), which tests of its own
compare with torch's layers and with the equations.
"""

from typing import NamedTuple

import torch

from seqconv.kernels.recurrence import CELLS, EVERYTHING, Masks, Weights
from seqconv.kernels.reference import recurrent as reference


class Case(NamedTuple):
    """A layer's sizes and what it is given beside its input and weights.

    ``input_mask`` and ``recurrent_mask`` are None, "shared", "per gate", and the latter also "each step" (one for all
    gates) and "each step, per gate".
    """

    cell: str
    steps: int = 7
    batch: int = 5
    features: int = 4
    hidden: int = 6
    directions: int = 1
    bias: bool = True
    input_mask: str | None = None
    recurrent_mask: str | None = None
    ragged: bool = False
    batch_first: bool = False
    scale: float = 1.0  # of weights and states


class Operands(NamedTuple):
    """What a floor's kernels take."""

    input: torch.Tensor
    states: tuple[torch.Tensor, ...]
    weights: tuple[Weights, ...]
    masks: Masks
    lengths: torch.Tensor | None


def operands(case, seed=0):
    """Return operands in float64 whose numbers float32 holds, and gradients of the output and of the last states."""
    generator = torch.Generator().manual_seed(seed)
    gates, states = CELLS[case.cell].gates, CELLS[case.cell].states

    def normal(*shape, scale=1.0):
        return (torch.randn(shape, generator=generator) * scale).double()

    def mask(*shape):
        return torch.empty(shape).bernoulli_(0.5, generator=generator).double() * 2

    width = gates * case.hidden
    weights = tuple(
        Weights(
            normal(width, case.features, scale=case.scale * case.features**-0.5),
            normal(width, case.hidden, scale=case.scale * case.hidden**-0.5),
            normal(width) if case.bias else None,
            normal(width) if case.bias else None,
        )
        for _ in range(case.directions)
    )
    own = gates if "per gate" in (case.recurrent_mask or "") else 1
    drawn = case.steps if "each step" in (case.recurrent_mask or "") else 1
    masks = Masks(
        mask(gates if case.input_mask == "per gate" else 1, case.batch, case.features) if case.input_mask else None,
        mask(case.directions, drawn, own, case.batch, case.hidden) if case.recurrent_mask else None,
    )
    input = normal(case.steps, case.batch, case.features)
    if case.batch_first:
        input = input.transpose(0, 1).contiguous().transpose(0, 1)
    h = tuple(normal(case.directions, case.batch, case.hidden, scale=case.scale) for _ in range(states))
    lengths = torch.randint(1, case.steps + 1, (case.batch,), generator=generator) if case.ragged else None
    upstream = normal(case.steps, case.batch, case.directions * case.hidden)
    last = tuple(normal(case.directions, case.batch, case.hidden) for _ in range(states))
    return Operands(input, h, weights, masks, lengths), (upstream, last)


def cast(tree, dtype=torch.float32, device="cpu"):
    """Return operands, or any tuple of them, with floating tensors in another dtype and on another device."""
    if isinstance(tree, torch.Tensor):
        return tree.to(device, dtype) if tree.is_floating_point() else tree
    if isinstance(tree, tuple):
        found = [cast(one, dtype, device) for one in tree]
        return type(tree)(*found) if hasattr(tree, "_fields") else tuple(found)
    return tree


def flat(tree):
    """Return all tensors of nested tuples in order."""
    if isinstance(tree, torch.Tensor):
        return [tree]
    return [] if tree is None else [tensor for one in tree for tensor in flat(one)]


def composed(cell, given, upstream):
    """Return output, last states and gradients of input, states and weights, flat, of the reference in its dtype.

    ``upstream`` are the gradients of the output and of the last states; either may be None.
    """
    leaves = [one.detach().clone().requires_grad_() for one in flat((given.input, given.states, given.weights))]
    rest = iter(leaves)
    input, states = next(rest), tuple(next(rest) for _ in given.states)
    weights = tuple(Weights(*(None if one is None else next(rest) for one in own)) for own in given.weights)
    output, last = reference.layer(cell, input, states, weights, given.masks, given.lengths)
    results = [output, *last]
    grads = [upstream[0], *(upstream[1] or [None] * len(last))]
    used = [(result, grad) for result, grad in zip(results, grads, strict=True) if grad is not None]
    found = torch.autograd.grad([one for one, _ in used], leaves, [one for _, one in used], allow_unused=True)
    gradients = [torch.zeros_like(leaf) if one is None else one for leaf, one in zip(leaves, found, strict=True)]
    return [one.detach() for one in results] + gradients


def ours(floor, cell, given, upstream, keep=EVERYTHING):
    """Return the same of a floor's kernels."""
    output, last, saved = floor.forward(cell, *given, keep=keep)
    wanted = (True, True, True)
    found = floor.backward(cell, *upstream, *given, output, saved, wanted=wanted)
    return [output, *last, *flat((found.input, found.states, found.weights))]


def check(found, expected, torchs, factor=2.0, floor=1e-6):
    """Assert that every result errs at most ``factor`` times as much as torch's, both against float64.

    Both errors are the largest of a tensor, relative to its largest number; ``floor``, some roundings of that number,
    is allowed in any case, for torch's own may be nothing by luck.
    """
    assert len(found) == len(expected) == len(torchs)
    for i, (one, right, other) in enumerate(zip(found, expected, torchs, strict=True)):
        assert one.shape == right.shape, i
        size = right.abs().max().item() if right.numel() else 0.0
        mine, theirs = ((x.double().cpu() - right).abs().max().item() if right.numel() else 0.0 for x in (one, other))
        assert mine <= factor * theirs + floor * size, (i, tuple(right.shape), mine / size, theirs / size)
