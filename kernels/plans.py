"""Plans that are chosen by counts of operations alone: how rows are gathered, how convolutions on the CPU are summed,
where overlapping windows are pooled.

A layer on gathered rows has two plans, *folded* and *direct*.

*Folded* multiplies rows of the table with the weights once and adds ``K`` of the products at every position; *direct*
multiplies at every position. Backward, *folded* sums the gradients of each row of the folded table, then multiplies the
sums with table and weights; *direct* multiplies for every window. All floors share the model; each has its own costs,
in multiply-adds.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

from .geometry import Pool

__all__ = [
    "CPU",
    "FAST",
    "GPU",
    "PANELS_AT_ONCE",
    "PLANS",
    "POSITIONS_AT_ONCE",
    "Costs",
    "FastCosts",
    "Plan",
    "backward_plan",
    "fast_plan",
    "fold_operations",
    "forward_plan",
    "passes_of",
    "pools_apart",
    "products_at_once",
    "products_of",
]

PLANS = ("direct", "folded")

fast_products = True  # whether convolutions on the CPU may be summed by fewer products, see fast_plan


class Costs(NamedTuple):
    """The cost of adding a number of a folded row at a position, of writing one, and of pooling a position's number.

    ``scattered`` is the cost of adding a product to a random place in memory, ``stored`` of writing a number of a
    gradient and reading it again, for floors that do not keep it nearby.
    """

    addition: int
    write: int
    pooling: int
    scattered: int = 1
    stored: int = 0


# Measured on a Zen 4, where most rows come from the third cache.
CPU = Costs(addition=4, write=16, pooling=1, scattered=2)

# Seconds on an H100 and an H200, imdb1 from tokens: multiply-adds of the direct plan, by kind of product (N 4096: 499
# and 785 us, dense float32 3,116); an addition (N 128: 10.5 us, N 4096: 128 to 191); a number of a folded table written
# (7.5 and 9.5 us for 2.2 million). What is stored is taken for 8 bytes at the speed of copies.
PRODUCTS = {"16": 117e12, "tf32": 74e12, "ieee": 19e12}
ADDITION, WRITE, STORED = 0.5e-12, 2.4e-12, 2e-12
GPU = {
    kind: Costs(round(ADDITION * products), round(WRITE * products), pooling=0, stored=round(STORED * products))
    for kind, products in PRODUCTS.items()
}


class Plan(NamedTuple):
    """The plan that serves a call, why, and what each plan's operations would cost, in multiply-adds."""

    name: str
    reason: str
    operations: dict[str, int]


@lru_cache(maxsize=1024)
def forward_plan(
    costs: Costs,
    samples: int,
    positions: int,
    rows: int,
    channels: int,
    outputs: int,
    size: int,
    *,
    ready: bool = False,
) -> Plan:
    """Return the plan of a forward pass.

    ``rows`` is the number of rows that would be folded: those that the call uses, where a floor finds them, else all.
    ``positions`` counts a sample's positions after the convolution; ``ready`` tells that the folded table exists
    already.
    """
    additions = samples * positions * size * outputs
    fold = 0 if ready else fold_operations(costs, rows, channels, outputs, size)
    operations = {"folded": fold + costs.addition * additions, "direct": (channels + costs.pooling) * additions}
    if ready:
        return Plan("folded", "the folded table is there", operations)
    return _cheaper(operations, f"{rows} rows to fold, {samples * positions} positions to convolve")


def fold_operations(costs: Costs, rows: int, channels: int, outputs: int, size: int) -> int:
    """Return the cost of folding ``rows`` rows, in multiply-adds."""
    return rows * (channels + costs.write) * size * outputs


@lru_cache(maxsize=1024)
def backward_plan(
    costs: Costs,
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
    """Return the plan of a backward pass; ``wanted`` are the gradients of table and weight.

    Of ``windows`` a sample has so many, or, where zeros are multiplied, too, so many positions.
    """
    each = size * outputs * channels
    maxima, positions = samples * windows, samples * length
    operations = {
        "folded": sum(wanted) * rows * each + (costs.addition * positions + costs.stored * rows) * size * outputs,
        "direct": (wanted[0] * costs.scattered + wanted[1]) * maxima * each
        + wanted[0] * costs.stored * positions * channels,
    }
    return _cheaper(operations, f"{rows} rows to multiply with, {maxima} windows whose maxima have a gradient")


class FastCosts(NamedTuple):
    """What fast products cost beside the products, in multiply-adds of a vector.

    ``call`` is the cost of a call; ``row`` of transforming a vector of an input row, for each
    :data:`PANELS_AT_ONCE` panels of outputs; ``turned`` of turning one around first; ``packed`` of packing a vector
    of factors; ``block`` and ``panel`` of a block of :func:`products_at_once` and :data:`POSITIONS_AT_ONCE`, and of
    each of its panels.
    """

    call: int
    row: int
    turned: int
    packed: int
    block: int
    panel: int


# A least-squares fit to the difference of both plans' times at 900 random shapes (channels to 256, kernels to 31,
# dilations to 8, 8 to 2,048 positions) on one core of a Zen 4, in cycles. Of 466 shapes at which fast products were
# faster it misses 4 by more than 5 %, and it chooses them for 2 at which they are slower by that much: 1.096 times as
# fast in the geometric mean over all, where the best choice would give 1.097.
FAST = FastCosts(call=13_000, row=11, turned=5, packed=8, block=100, panel=62)

# Of fast products: those of a pair of positions whose factors stay in the first-level cache, for two vectors of outputs
# (20 KiB); positions of a sample whose transformed input does so (48 KiB with 32 channels; 56 to 140 differ by up to
# 3 %, as 128 to 240 products do); and panels of two vectors that share a transformed input (2, 4 and 8 panels: 1.22,
# 1.28 and 1.31 of the multiply-add peak for 320 channels to 480, 8 taps).
PRODUCTS_AT_ONCE, POSITIONS_AT_ONCE, PANELS_AT_ONCE = 160, 84, 8


def products_of(size: int) -> int:
    """Return the number of fast products of a pair of positions, for a channel and a kernel of ``size`` positions."""
    return size // 3 * 4 + (0, 2, 3)[size % 3]


def products_at_once(size: int) -> int:
    """Return the number of products of a block of channels, for a kernel of ``size`` positions.

    Of two positions it is less: with 160 the error of a layer of 300 channels was 1.91 times torch's.
    """
    return PRODUCTS_AT_ONCE if size > 2 else 96


@lru_cache(maxsize=1024)
def fast_plan(
    samples: int, positions: int, channels: int, vectors: int, size: int, dilation: int, lanes: int, *, turned: bool
) -> Plan:
    """Return the plan of a convolution's sums on the CPU: ``fast``, of pairs of positions, or ``direct``.

    ``positions`` counts a sample's positions; results fill ``vectors`` of ``lanes``. ``turned`` tells that an input's
    channels are not contiguous. Operations are multiply-adds of vectors.
    """
    pairs = positions // (2 * dilation) * dilation + min(positions % (2 * dilation), dilation)
    products, panels = channels * products_of(size), -(-vectors // 2)
    blocks, pieces = -(-products // products_at_once(size)), -(-positions // POSITIONS_AT_ONCE)
    shares = -(-panels // PANELS_AT_ONCE)
    rows = samples * (positions + pieces * (size - 1) * dilation) * -(-channels // lanes) * shares
    fast = samples * pairs * products * vectors + FAST.call + FAST.packed * vectors * products
    fast += rows * (FAST.row + FAST.turned * turned)
    fast += samples * pieces * blocks * (FAST.block * shares + FAST.panel * panels)
    operations = {"fast": fast, "direct": samples * positions * channels * size * vectors}
    name = min(operations, key=lambda plan: operations[plan])
    products_of_both = f"{products_of(size)} products instead of {2 * size} for two positions of a channel"
    reason = f"{products_of_both}: {fast:.3g} operations against {operations['direct']:.3g}"
    return Plan(name, reason, operations)


ELEMENTS = 8  # of a window, most that one pass over an activation looks at; a guess, not timed


@lru_cache(maxsize=1024)
def passes_of(size: int) -> int:
    """Return the number of passes over an activation that find the maxima of windows of ``size`` elements."""
    return next(passes for passes in range(1, 64) if ELEMENTS**passes >= size)


@lru_cache(maxsize=1024)
def pools_apart(costs: Costs, pool: Pool, operations: int) -> bool:
    """Tell whether an activation had better be stored, and windows be pooled from there.

    Else each window has its own positions computed, of ``operations`` multiply-adds each. Every pass reads numbers that
    were written before.
    """
    return operations * (pool.size - pool.stride) > costs.stored * passes_of(pool.size) * pool.stride


def _cheaper(operations: dict[str, int], counts: str) -> Plan:
    name = min(PLANS, key=lambda plan: operations[plan])
    reason = f"{counts}: {operations[name]:.3g} multiply-adds against {max(operations.values()):.3g}"
    return Plan(name, reason, operations)
