"""Which tiles to try: from one tile, those that differ in a field or in two that belong together."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

__all__ = ["Key", "neighbours"]

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


class Key(NamedTuple):
    """A kernel's entry in the table: its name and what its configuration depends on."""

    kernel: str
    layer: tuple[Any, ...]

    def __str__(self) -> str:
        return " ".join(map(str, (self.kernel, *self.layer)))


def neighbours(tile: Any, size: int) -> list[Any]:
    """Return the tiles around ``tile`` for a kernel of ``size`` positions, each once and not the tile itself.

    ``tile`` is a named tuple of the table's configurations. Phases beyond the kernel's size share nothing new.
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
