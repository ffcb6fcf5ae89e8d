"""Sliding evaluation: what a model computes for every window of a series, as a program of shared rows.

A *map* is a matrix with a row for each row of the series and some columns. Row ``t`` belongs to the window that starts
there. Map 0 is the series itself; every step makes the next map. A *tap* reads a map ``offset`` rows further down, so
what windows have in common is computed once: a convolution's position ``j`` in window ``t`` is row ``t + j * step`` of
one map. Row ``t`` of a map needs the series up to row ``t + reach``.

A floor evaluates a program from row to row: :class:`Evaluation` takes rows as they come and keeps, of each map, no more
rows than later ones need. Several series of one length (``streams``) advance together.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any, NamedTuple, Protocol, TypeAlias

from torch import Tensor

__all__ = [
    "Convolve",
    "Evaluation",
    "Maximum",
    "Rowwise",
    "SlidingProgram",
    "Step",
    "Tap",
    "Total",
    "reaches",
    "spacing",
    "tails",
    "widths",
]


class Tap(NamedTuple):
    """Row ``t + offset`` of a map, as row ``t`` sees it; ``offset`` is 0 or more."""

    map: int
    offset: int


class Convolve(NamedTuple):
    """The sum of the taps' rows times ``weight`` ``(taps, C, O)``, and ``bias`` ``(O,)``, with or without ReLU."""

    taps: tuple[Tap, ...]
    weight: Tensor
    bias: Tensor | None
    relu: bool = False


class Maximum(NamedTuple):
    """The maximum of the taps' rows, and of 0 with ReLU; a NaN in one of them is the maximum."""

    taps: tuple[Tap, ...]
    relu: bool = False


class Total(NamedTuple):
    """The sum of the taps' rows times ``factor``, with or without ReLU."""

    taps: tuple[Tap, ...]
    factor: float = 1.0
    relu: bool = False


class Rowwise(NamedTuple):
    """What ``function`` makes of the taps' rows, ``(rows, C)`` each: ``(rows, columns)``, each row by itself."""

    taps: tuple[Tap, ...]
    function: Callable[..., Tensor]
    columns: int


Step: TypeAlias = Convolve | Maximum | Total | Rowwise


class SlidingProgram(NamedTuple):
    """The steps on a series of ``columns``, in order: step ``i`` makes map ``i + 1``.

    ``outputs`` are the maps wanted. ``recent`` is the least number of the series' last rows that an evaluation keeps.
    """

    columns: int
    steps: tuple[Step, ...]
    outputs: tuple[int, ...]
    recent: int = 0


class Evaluation(Protocol):
    """A program on its way along series, every floor's."""

    def advance(self, rows: Tensor) -> list[Tensor]:
        """Take the next rows ``(streams, n, columns)``; return the rows of every output that are known by now and were
        not before: ``(streams, m, O)``, newly allocated.
        """

    def recent(self) -> Tensor:
        """Return a copy of the last rows of the series, ``(streams, n, columns)``: as many as any map reaches over, and
        the program's ``recent``, or all. A new evaluation that has advanced over them goes on as this one does.
        """


def widths(program: SlidingProgram) -> list[int]:
    """Return the number of columns of every map."""
    found = [program.columns]
    for step in program.steps:
        if isinstance(step, Convolve):
            found.append(step.weight.size(2))
        else:
            found.append(getattr(step, "columns", found[step.taps[0].map]))
    return found


def reaches(program: SlidingProgram) -> list[int]:
    """Return, for every map, how many rows of the series its row 0 needs behind row 0."""
    found = [0]
    for step in program.steps:
        found.append(max(found[tap.map] + tap.offset for tap in step.taps))
    return found


def tails(program: SlidingProgram) -> list[int]:
    """Return how many of a map's last rows are kept: what the steps that read it need when all are as far as they can
    be, and of the series what a window reaches over.
    """
    reach = reaches(program)
    found = [max(*reach, program.recent), *[0] * len(program.steps)]
    for number, step in enumerate(program.steps, 1):
        for tap in step.taps:
            found[tap.map] = max(found[tap.map], reach[number] - reach[tap.map])
    return found


def spacing(taps: tuple[Tap, ...]) -> int | None:
    """Return how far apart taps of one map are, where they are evenly spaced; 1 for a single one, else ``None``."""
    if any(tap.map != taps[0].map for tap in taps):
        return None
    apart: set[Any] = {after.offset - before.offset for before, after in pairwise(taps)}
    if len(apart) > 1:
        return None
    found: int = apart.pop() if apart else 1
    return found if found > 0 else None
