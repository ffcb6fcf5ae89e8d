"""Passes over a loader's batches, and the position in them that can be saved and found again."""

from __future__ import annotations

import contextlib
from abc import abstractmethod
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from seqconv.data.arguments import integer

__all__ = ["Passes", "Position"]

Batch = TypeVar("Batch", covariant=True)


@dataclass
class Position:
    """The pass under way, or the next one where none is, and the batches of it handed out.

    Each iterator has its own: drawing from an abandoned iterator disturbs no other.
    """

    number: int = 0
    handed_out: int = 0
    under_way: bool = False
    resume: bool = False

    def end(self) -> None:
        """Go to the next pass, behind the last batch of this one."""
        self.number, self.handed_out, self.under_way = self.number + 1, 0, False


class Passes(Generic[Batch]):
    """What the loaders share: passes whose order depends on their number and a seed, and a position to resume from.

    A pass is over samples, which the ranks of ``DistributedDataParallel`` share out: of their order, the loader of
    ``rank`` has those at ``rank``, ``rank + world_size``, ... ``uneven`` tells what becomes of the samples that are
    left where ``world_size`` does not divide them, see :class:`~seqconv.data.SlidingWindows`.

    ``seed_given`` tells a seed of the user's from one drawn from torch's global generator, where ``shuffle`` needs one.
    """

    def __init__(self, *, shuffle: bool, seed: int | None, rank: int, world_size: int, uneven: str) -> None:
        self.world_size = integer("world_size", world_size, 1)
        self.rank = integer("rank", rank, 0, self.world_size - 1)
        if uneven not in ("pad", "drop", "keep"):
            raise ValueError(f"uneven must be 'pad', 'drop' or 'keep', got {uneven!r}")
        self.uneven = uneven
        if shuffle and self.world_size > 1 and seed is None:
            raise ValueError("seed must be given where ranks share out a shuffled order, got None")
        self.shuffle = bool(shuffle)
        self.seed_given = seed is not None
        self.seed = integer("seed", seed, 0) if self.seed_given else int(torch.randint(2**62, ())) if shuffle else None
        self._position = Position()

    @property
    @abstractmethod
    def _total(self) -> int:
        """Samples that there are, over all ranks."""

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of batches in a pass."""

    @abstractmethod
    def _batches(self, number: int, first: int) -> Generator[Batch, None, None]:
        """Yield the batches of pass ``number`` from batch ``first`` on."""

    @abstractmethod
    def _config(self) -> dict[str, Any]:
        """Return what a position depends on beside the ranks, as JSON can hold it."""

    @property
    def _share(self) -> int:
        """Samples in a pass of this rank, repeated ones included."""
        total, ranks = self._total, self.world_size
        shares = {"pad": -(-total // ranks), "drop": total // ranks, "keep": len(range(self.rank, total, ranks))}
        return shares[self.uneven]

    def _require_share(self, sample: str) -> None:
        """Raise ``ValueError`` where ranks without samples are left."""
        if self.uneven == "drop" and self._total < self.world_size:
            raise ValueError(
                f"uneven='drop' needs a {sample} for each of the {self.world_size} ranks, got {self._total} {sample}s; "
                "'pad' repeats them"
            )

    def positions(self, indices: NDArray[Any]) -> NDArray[Any]:
        """Return this rank's samples' positions in a pass over all ranks, which begins again behind its end."""
        positions: NDArray[Any] = (self.rank + self.world_size * indices) % self._total
        return positions

    def _order(self, number: int, *fresh: int) -> NDArray[Any]:
        """Return this rank's samples in the order of pass ``number``, drawn with ``fresh`` beside the seed."""
        mine = self.positions(np.arange(self._share))
        if self.shuffle:
            mine = np.random.default_rng([self.seed or 0, number, *fresh]).permutation(self._total)[mine]
        return mine

    def __iter__(self) -> Iterator[Batch]:
        return self._hand_out(self._begin())

    def _begin(self) -> Position:
        """Begin the next pass, or go on with the one that is resumed."""
        last = self._position
        number, first = (last.number, last.handed_out) if last.resume else (last.number + last.under_way, 0)
        self._position = Position(number, first, under_way=True)
        return self._position

    def _hand_out(self, position: Position) -> Generator[Batch, None, None]:
        with contextlib.closing(self._batches(position.number, position.handed_out)) as batches:
            for batch in batches:
                position.handed_out += 1
                yield batch
        position.end()

    def state_dict(self) -> dict[str, Any]:
        """Return the position, which JSON can hold: the pass, the batches of it handed out, the seed, the arguments."""
        position = self._position
        return {
            "pass": position.number,
            "batch": position.handed_out,
            "under_way": position.under_way,
            "seed": self.seed,
            "config": self._whole_config(),
        }

    def _whole_config(self) -> dict[str, Any]:
        ranks = {"rank": self.rank, "world_size": self.world_size}
        return self._config() | ranks | ({"uneven": self.uneven} if self.world_size > 1 else {})

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to the position that :meth:`state_dict` returned, and take over its seed where none was given here.

        Raises ``ValueError`` where ``state`` is no such thing, or was saved with other arguments, sizes or, where it
        orders the batches, another seed than the one given.
        """
        match state:
            case {
                "pass": int(number),
                "batch": int(handed_out),
                "under_way": bool(under_way),
                "seed": int() | None as seed,
                "config": dict(config),
            }:
                pass
            case _:
                raise ValueError(f"state must be what state_dict returned, got {state!r}")
        # A state from before these loaders had ranks is of one process.
        saved, mine = {"rank": 0, "world_size": 1, **config, "seed": seed}, self._whole_config()
        if self.shuffle and self.seed_given:
            mine["seed"] = self.seed
        differing = [key for key, value in mine.items() if saved.get(key) != value]
        if differing:
            theirs, ours = ({key: each.get(key) for key in differing} for each in (saved, mine))
            raise ValueError(f"state was saved with {theirs}, this loader has {ours}")
        if not 0 <= handed_out <= len(self) or number < 0:
            raise ValueError(f"state must lie within a pass of {len(self)} batches, got {state}")
        self.seed = seed
        self._position = Position(number, handed_out, under_way, resume=under_way)
