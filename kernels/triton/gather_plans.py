"""How a layer on gathered rows is computed on a GPU: *folded* or *direct*, told from counts of operations alone.

*Folded* multiplies every row of the table with the weights once and adds ``K`` of the products at every position, which
the second cache limits; *direct* multiplies at every position, on the tensor cores where they serve. What an addition
costs is derived from the figures that a vendor gives for one card, not measured.
"""

from __future__ import annotations

import torch

from ..numba.gather_plans import PLANS, Plan
from .launch import precision

__all__ = ["PLANS", "Plan", "fold_operations", "forward_plan", "kind_of"]

# Of an H100: bytes that its second cache gives in a second; multiply-adds in a second by kind of number, of which a
# third is taken for what kernels reach on the tensor cores, two thirds of exact float32's.
CACHE = 5.5e12
PRODUCTS = {"16": 495e12 / 3, "tf32": 247e12 / 3, "ieee": 33e12 * 2 / 3}
BYTES = 4  # of a number of a table that is folded in the forward pass, whatever the dtype of its rows

# What it costs to add a number of a folded row, or to write one, in multiply-adds: 120, 60 and 16.
ADDITION = {kind: round(BYTES / CACHE * products) for kind, products in PRODUCTS.items()}


def forward_plan(
    samples: int,
    positions: int,
    rows: int,
    channels: int,
    outputs: int,
    size: int,
    *,
    ready: bool = False,
    kind: str = "tf32",
) -> Plan:
    """Return the plan of a forward pass.

    ``rows`` is the number of rows of the table: finding those that a call uses would cost more than folding all.
    ``positions`` are a sample's, after the convolution; ``ready`` tells that the folded table is there already;
    ``kind`` is the :class:`.configurations.Layer`'s.
    """
    additions = samples * positions * size * outputs
    operations = {
        "folded": (0 if ready else fold_operations(rows, channels, outputs, size, kind=kind))
        + ADDITION[kind] * additions,
        "direct": channels * additions,
    }
    if ready:
        return Plan("folded", "the folded table is there", operations)
    name = min(("direct", "folded"), key=lambda plan: operations[plan])
    counts = f"{rows} rows to fold, {samples * positions} positions to convolve"
    costs = f"{operations[name]:.3g} multiply-adds against {max(operations.values()):.3g}"
    return Plan(name, f"{counts}: {costs}", operations)


def fold_operations(rows: int, channels: int, outputs: int, size: int, *, kind: str = "tf32") -> int:
    """Return what it costs to fold so many rows, in multiply-adds."""
    return rows * (channels + ADDITION[kind]) * size * outputs


def kind_of(dtype: torch.dtype) -> str:
    """Return the kind of number that products of ``dtype`` are, as :class:`.configurations.Layer` has it."""
    return precision(dtype) if dtype == torch.float32 else "16"
