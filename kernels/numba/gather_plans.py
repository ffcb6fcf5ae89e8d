"""How a layer on gathered rows is computed: *folded* or *direct*, told from counts of operations alone.

*Folded* multiplies every row that is used with the weights once and adds ``K`` of the products at every position;
*direct* multiplies at every position. Backward, *folded* sums the gradients that meet at each row of the folded table,
then multiplies those with table and weights; *direct* multiplies for every winner.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

__all__ = ["PLANS", "Plan", "backward_plan", "fold_operations", "forward_plan"]

PLANS = ("folded", "direct")

# In multiply-adds of a register tile, measured on a Zen 4: what it costs to add a number of a folded row, most of which
# come from the third cache; to write one; to pool a position's number; to add a product somewhere in memory.
ADDITION = 4
WRITE = 16
POOLING = 1
SCATTERED = 2


class Plan(NamedTuple):
    """The plan that serves a call, why, and what each plan's operations would cost, in multiply-adds."""

    name: str
    reason: str
    operations: dict[str, int]


@lru_cache(maxsize=1024)
def forward_plan(
    samples: int, positions: int, rows: int, channels: int, outputs: int, size: int, *, ready: bool = False
) -> Plan:
    """Return the plan of a forward pass.

    ``rows`` is the number of rows that the call uses, or at most uses; ``positions`` are a sample's, after the
    convolution; ``ready`` tells that the folded table is there already.
    """
    additions = samples * positions * size * outputs
    operations = {
        "folded": (0 if ready else fold_operations(rows, channels, outputs, size)) + ADDITION * additions,
        "direct": (channels + POOLING) * additions,
    }
    if ready:
        return Plan("folded", "the folded table is there", operations)
    return _cheaper(operations, f"{rows} rows to fold, {samples * positions} positions to convolve")


def fold_operations(rows: int, channels: int, outputs: int, size: int) -> int:
    """Return what it costs to fold so many rows, in multiply-adds."""
    return rows * (channels + WRITE) * size * outputs


@lru_cache(maxsize=1024)
def backward_plan(
    samples: int,
    length: int,
    windows: int,
    rows: int,
    channels: int,
    outputs: int,
    size: int,
    *,
    wanted: tuple[bool, bool],
) -> Plan:
    """Return the plan of a backward pass; ``wanted`` are the gradients of table and weight."""
    each = size * outputs * channels
    winners = samples * windows
    operations = {
        "folded": sum(wanted) * rows * each + ADDITION * samples * length * size * outputs,
        "direct": (wanted[0] * SCATTERED + wanted[1]) * winners * each,
    }
    return _cheaper(operations, f"{rows} rows to multiply with, {winners} windows whose winners have a gradient")


def _cheaper(operations: dict[str, int], counts: str) -> Plan:
    name = min(PLANS, key=lambda plan: operations[plan])
    return Plan(
        name, f"{counts}: {operations[name]:.3g} multiply-adds against {max(operations.values()):.3g}", operations
    )
