"""Which entries and tiles to try, the search among them, and a tile in use for a while.

From one tile those are tried that differ in a field or in two that belong together; then on from the best.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

from seqconv.kernels.triton import configurations, replay
from seqconv.kernels.triton.configurations import TILES

BETTER = 0.98  # what another tile's cost must come down to: less is noise
Record = dict[str, Any]  # see Cache
Try = Callable[[list[Any]], list[Record]]

# The least and the most of a field, and whether it is doubled and halved or counted up and down.
FIELDS: dict[str, tuple[int, int, bool]] = {
    "block_m": (16, 256, True),
    "block_o": (16, 128, True),
    "block_r": (16, 128, True),
    "block_c": (16, 128, True),
    "block_k": (1, 16, True),
    "phases": (1, 8, False),
    "unroll": (1, 8, True),
    "num_warps": (1, 8, True),
    "num_stages": (1, 5, False),
}
TOGETHER = (  # larger tiles need more warps, deeper buffers smaller blocks
    {"block_m": 1, "num_warps": 1},
    {"block_m": -1, "num_warps": -1},
    {"block_m": 1, "block_r": -1},
    {"block_r": 1, "num_stages": -1},
    {"block_r": -1, "num_stages": 1},
    {"block_o": 1, "num_warps": 1},
    {"phases": -1, "block_m": 1},
    {"phases": 1, "block_m": -1},
)


class TileKey(NamedTuple):
    """What a tile is of: the kernel's name and what its configuration depends on."""

    kernel: str
    layer: tuple[Any, ...]

    def __str__(self) -> str:
        return " ".join(map(str, (self.kernel, *self.layer)))


def neighbours(tile: Any, size: int) -> list[Any]:
    """Return the tiles around ``tile`` for a kernel of ``size`` positions, each once and not the tile itself.

    ``tile`` is one of the configurations. Phases beyond the kernel's size share nothing new.
    """
    steps = [{name: step} for name in tile._fields if name in FIELDS for step in (1, -1)]
    steps += [one for one in TOGETHER if set(one) <= set(tile._fields)]
    return list(dict.fromkeys(one for one in moved(tile, steps, size) if one != tile))


def moved(tile: Any, steps: list[dict[str, int]], size: int) -> Iterator[Any]:
    """Yield the tile after each of the steps that stay within the fields' bounds."""
    for step in steps:
        values = {}
        for name, direction in step.items():
            least, most, doubles = FIELDS[name]
            before = getattr(tile, name)
            value = (before * 2 if direction > 0 else before // 2) if doubles else before + direction
            if not least <= value <= (min(most, size) if name == "phases" else most):
                break
            values[name] = value
        else:
            yield tile._replace(**values)


@dataclass(frozen=True)
class TuningEntry:
    """One entry to tune: the layer of the census and the kind that it is of, its key, and the tile in use."""

    layer: str
    kind: str
    key: TileKey
    tile: Any

    @property
    def size(self) -> int:
        """The kernel's positions."""
        return int(self.key.layer[configurations.Layer._fields.index("size")])


def entries(layers: Sequence[str], kinds: Sequence[str], kernels: Sequence[str], target: str) -> Iterator[TuningEntry]:
    """Yield the entries of layers, each key once, with the tiles that are in use for them."""
    from seqconv.kernels.triton import census

    seen = set()
    for layer in layers:
        for kind in kinds:
            for kernel, (described, tile) in census.choices(census.LAYERS[layer], kind, target).items():
                key = TileKey(kernel, tuple(described))
                # Rows that are found through an index need tokens, not numbers, to be timed.
                if kernel in kernels and key not in seen and not getattr(described, "tokens", False):
                    seen.add(key)
                    yield TuningEntry(layer, kind, key, tile)


def search(start: Any, size: int, attempt: Try) -> tuple[Any, dict[Any, Record]]:
    """Return the best tile that steps from neighbour to neighbour lead to, and what is known of all that were tried.

    ``attempt`` returns a record for each tile; those that could not be tried, for want of time, have neither faults nor
    times.
    """
    records = {start: attempt([start])[0]}
    best = start
    while True:
        fresh = [tile for tile in neighbours(best, size) if tile not in records]
        records |= dict(zip(fresh, attempt(fresh), strict=True))
        timed = {tile: cost(record, records[start]) for tile, record in records.items() if "microseconds" in record}
        if not timed:
            return start, records
        winner = min(timed, key=timed.__getitem__)
        if winner == best or (best in timed and timed[winner] > BETTER * timed[best]):
            return best, records
        best = winner


def cost(record: Record, first: Record) -> float:
    """Return the sum over all sizes of a tile's time over the first tile's, or of its times if that has none."""
    base = first.get("microseconds", {})
    return sum(value / base.get(size, 1.0) for size, value in record["microseconds"].items())


@contextmanager
def using(key: TileKey, tile: Sequence[int]) -> Iterator[None]:
    """Let a layer's kernel have a tile."""
    name = (key.kernel, *key.layer)
    before = TILES.get(name)
    try:
        TILES[name] = tuple(tile)
        forget()
        yield
    finally:
        if before is None:
            del TILES[name]
        else:
            TILES[name] = before
        forget()


def forget() -> None:
    """Have configurations looked up anew."""
    configurations.forget()
    replay.forget()
