"""What windows share: a value of the forward pass as rows of maps, and the operations that keep it so.

A value that has positions, ``(N, C, L)`` for a batch of windows, is here ``L`` taps: position ``j`` of the window that
starts at row ``t`` is row ``t + offset`` of a map. Two positions that are computed from the same taps, one further down
than the other, are rows of one map: so a convolution becomes one step for all positions that see no padding, and one
for each position that does. Nothing is assumed of strides, dilations or padding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from seqconv.kernels.geometry import Convolution, Pool
from seqconv.kernels.sliding import Convolve, Maximum, Rowwise, SlidingProgram, Step, Tap, Total

__all__ = ["ZERO", "Features", "Misfit", "Positions", "ProgramBuilder", "Unshared"]

Numbers: TypeAlias = NDArray[np.int64]

ZERO = -1  # the map of a position that is 0 in every window


class Unshared(Exception):
    """What cannot be computed for all windows at once: why."""


class Misfit(Unshared):
    """What torch does not compute for one window either: why."""


class Positions(NamedTuple):
    """A value ``(N, C, L)``, or ``(N, L, C)`` where ``channels_first`` is not set, by its positions.

    ``maps`` and ``offsets`` are ``(L,)``. A map of ``ZERO`` stands for zeros.
    """

    maps: Numbers
    offsets: Numbers
    columns: int
    channels_first: bool = True

    @property
    def length(self) -> int:
        """The number of positions."""
        return len(self.maps)

    @property
    def shape(self) -> tuple[int, int]:
        """The sizes behind the batch's."""
        return (self.columns, self.length) if self.channels_first else (self.length, self.columns)

    def at(self, index: Any) -> Positions:
        """Return the value at some positions: indices, or a slice."""
        return self._replace(maps=self.maps[index], offsets=self.offsets[index])


class Features(NamedTuple):
    """A value ``(N, *shape)`` without positions: a row of a map, in order."""

    tap: Tap
    shape: tuple[int, ...]


class ProgramBuilder:
    """Collects the steps of a program."""

    def __init__(self, columns: int) -> None:
        self.columns = columns
        self.steps: list[Step] = []
        self.widths = [columns]

    def append(self, step: Step) -> int:
        """Add a step; return its map."""
        self.steps.append(step)
        if isinstance(step, Convolve):
            self.widths.append(step.weight.size(2))
        else:
            self.widths.append(step.columns if isinstance(step, Rowwise) else self.widths[step.taps[0].map])
        return len(self.steps)

    def series(self, length: int, step: int, *, channels_first: bool) -> Positions:
        """Return a model's input: ``length`` rows of the series, ``step`` apart."""
        offsets = np.arange(length, dtype=np.int64) * step
        return Positions(np.zeros(length, np.int64), offsets, self.columns, channels_first)

    def combine(
        self,
        maps: Numbers,
        offsets: Numbers,
        make: Callable[[tuple[Tap, ...], Numbers], Step],
        *,
        empty: Callable[[], Step] | None = None,
    ) -> tuple[Numbers, Numbers]:
        """Return maps and offsets of positions that are made from taps, rows of ``maps`` and ``offsets`` ``(L, K)``.

        ``make`` is given taps, and their places in the row, without the zeros among them. Of zeros alone comes what
        ``empty`` makes, or zeros again.
        """
        there = maps != ZERO
        least = np.where(there, offsets, np.iinfo(np.int64).max).min(1, initial=np.iinfo(np.int64).max)
        none = ~there.any(1)
        least[none] = 0
        keys = np.concatenate([maps, np.where(there, offsets - least[:, None], 0)], 1)
        first, which = _distinct(keys)
        made = np.empty(len(first), np.int64)
        for number in np.argsort(first):  # in the order of positions
            row = first[number]
            if none[row]:
                made[number] = ZERO if empty is None else self.append(empty())
                continue
            places = np.flatnonzero(there[row])
            taps = tuple(
                Tap(int(of), int(offset - least[row]))
                for of, offset in zip(maps[row, places], offsets[row, places], strict=True)
            )
            made[number] = self.append(make(taps, places))
        return made[which], least

    def windows(
        self, value: Positions, index: Numbers, make: Callable[[tuple[Tap, ...], Numbers], Step], columns: int,
        *, empty: Callable[[], Step] | None = None,
    ) -> Positions:  # fmt: skip
        """Return positions made from those of ``value`` that ``index`` ``(L, K)`` names, negative for none."""
        maps = np.where(index >= 0, value.maps[index], ZERO)
        offsets = np.where(index >= 0, value.offsets[index], 0)
        return Positions(*self.combine(maps, offsets, make, empty=empty), columns, value.channels_first)

    def convolution(self, value: Positions, weight: Tensor, bias: Tensor | None, convolution: Convolution) -> Positions:
        """Return the convolution of ``(N, C, L)`` by ``weight`` ``(O, C / groups, K)``."""
        stride, (left, _), dilation, groups = convolution
        outputs, each, size = weight.shape
        if value.shape[0] != each * groups:
            raise Misfit(f"it takes {each * groups} channels, and is given shape (N, {_sizes(value.shape)})")
        if not value.channels_first:
            raise Unshared("it is along the columns")
        count = convolution.output_length(value.length, size)
        if count < 1:
            raise Misfit(f"its kernel of {dilation * (size - 1) + 1} positions does not fit into {value.length}")
        taps = weight.detach().permute(2, 1, 0)  # (K, C, O)
        index = np.arange(count)[:, None] * stride - left + np.arange(size) * dilation
        index = np.where((index >= 0) & (index < value.length), index, -1)

        def make(found: tuple[Tap, ...], places: Numbers) -> Step:
            chosen = taps[torch.from_numpy(places).to(taps.device)]
            if groups == 1:
                return Convolve(found, chosen.contiguous(), bias)
            return Rowwise(found, _grouped(chosen.contiguous(), bias, groups), outputs)

        return self.windows(value, index, make, outputs, empty=_constant(bias, outputs))

    def maximum(self, value: Positions, pool: Pool) -> Positions:
        """Return the maxima of windows of positions."""
        index = self._pooled(value, pool)
        return self._maxima(value, index)

    def _maxima(self, value: Positions, index: Numbers) -> Positions:
        with_zero = (np.where(index >= 0, value.maps[index], 0) == ZERO).any(1)
        found = []
        for relu in (False, True):
            # Zeros among the positions, which a padding put there, take part in the maximum as ReLU's does.
            rows = index[with_zero == relu]
            make = lambda taps, _places, relu=relu: Maximum(taps, relu)  # noqa: E731
            found.append(self.windows(value, rows, make, value.columns))
        maps, offsets = np.empty(len(index), np.int64), np.empty(len(index), np.int64)
        for relu, one in zip((False, True), found, strict=True):
            maps[with_zero == relu], offsets[with_zero == relu] = one.maps, one.offsets
        return value._replace(maps=maps, offsets=offsets)

    def average(
        self, value: Positions, size: int, stride: int, padding: int, *, ceil_mode: bool, with_padding: bool
    ) -> Positions:
        """Return the means of windows of positions, as ``F.avg_pool1d`` has them."""
        index = self._pooled(value, Pool(size, stride, padding, 1, ceil_mode))
        starts = np.arange(len(index)) * stride - padding
        ends = np.minimum(starts + size, value.length + padding)
        inside = np.minimum(ends, value.length) - np.maximum(starts, 0)
        return self._means(value, index, (ends - starts) if with_padding else inside)

    def _means(self, value: Positions, index: Numbers, counts: Numbers) -> Positions:
        maps, offsets = np.empty(len(index), np.int64), np.empty(len(index), np.int64)
        for count in np.unique(counts):
            make = lambda taps, _places, count=count: Total(taps, 1 / float(count))  # noqa: E731
            found = self.windows(value, index[counts == count], make, value.columns)
            maps[counts == count], offsets[counts == count] = found.maps, found.offsets
        return value._replace(maps=maps, offsets=offsets)

    def adaptive(self, value: Positions, count: int, *, mean: bool) -> Positions:
        """Return means or maxima of ``count`` windows that share the positions, as ``F.adaptive_*_pool1d`` does."""
        begins = np.arange(count) * value.length // count
        ends = -(-np.arange(1, count + 1) * value.length // count)
        sizes = ends - begins
        index = begins[:, None] + np.arange(sizes.max())
        index = np.where(index < ends[:, None], index, -1)
        return self._means(value, index, sizes) if mean else self._maxima(value, index)

    def over_all(self, value: Positions, kind: str) -> Features:
        """Return the maximum, mean or sum over all positions."""
        index = np.arange(value.length)[None]
        if kind == "max":
            found = self._maxima(value, index)
        else:
            found = self._means(value, index, np.array([value.length if kind == "mean" else 1]))
        return self.feature(found, 0)

    def feature(self, value: Positions, position: int) -> Features:
        """Return one position as a value without any."""
        if value.maps[position] == ZERO:
            raise Unshared("it takes a position of zeros")
        return Features(Tap(int(value.maps[position]), int(value.offsets[position])), (value.columns,))

    def linear(self, value: Positions | Features, weight: Tensor, bias: Tensor | None) -> Positions | Features:
        """Return a dense layer of the last axis, ``weight`` ``(O, F)``."""
        outputs, columns = weight.shape
        if value.shape[-1] != columns:
            raise Misfit(f"it takes {columns} features, and is given shape (N, {_sizes(value.shape)})")
        taps = weight.detach().T[None].contiguous()
        if isinstance(value, Features):
            if len(value.shape) != 1:
                raise Unshared("its features have several axes")
            return Features(
                Tap(self.append(Convolve((Tap(value.tap.map, 0),), taps, bias)), value.tap.offset), (outputs,)
            )
        if value.channels_first:
            raise Unshared("it mixes positions")
        index = np.arange(value.length)[:, None]
        empty = _constant(bias, outputs)
        return self.windows(value, index, lambda found, _places: Convolve(found, taps, bias), outputs, empty=empty)

    def flattened_linear(self, value: Positions, weight: Tensor, bias: Tensor | None) -> Features:
        """Return a dense layer of all positions and channels, ``weight`` ``(O, C * L)``, in the order of ``value``."""
        outputs, count = weight.shape
        if value.columns * value.length != count:
            raise Misfit(f"it takes {count} features, and is given {value.columns * value.length}")
        by_axis = weight.detach().view(outputs, *value.shape)
        taps = by_axis.permute(2, 1, 0) if value.channels_first else by_axis.permute(1, 2, 0)  # (L, C, O)
        index = np.arange(value.length)[None]

        def make(found: tuple[Tap, ...], places: Numbers) -> Step:
            return Convolve(found, taps[torch.from_numpy(places).to(taps.device)].contiguous(), bias)

        return self.feature(self.windows(value, index, make, outputs, empty=_constant(bias, outputs)), 0)

    def rowwise(
        self, values: Sequence[Any], function: Callable[..., Tensor], columns: int, *, keeps_zero: bool = False
    ) -> Any:
        """Return a function of rows of values of one kind and length; ``keeps_zero``: it makes zeros of zeros."""
        first = values[0]
        if isinstance(first, Features):
            base = min(one.tap.offset for one in values)
            taps = tuple(Tap(one.tap.map, one.tap.offset - base) for one in values)
            return Features(Tap(self.append(Rowwise(taps, function, columns)), base), (columns,))
        maps = np.stack([one.maps for one in values], 1)
        offsets = np.stack([one.offsets for one in values], 1)
        if (maps == ZERO).any() and not (keeps_zero and len(values) == 1):
            raise Unshared("it is given zeros of a padding")
        made = self.combine(maps, offsets, lambda taps, _places: Rowwise(taps, function, columns))
        return Positions(*made, columns, first.channels_first)

    def total(self, left: Any, right: Any) -> Any:
        """Return the sum of two values of one shape."""
        if isinstance(left, Features):
            base = min(left.tap.offset, right.tap.offset)
            taps = tuple(Tap(one.tap.map, one.tap.offset - base) for one in (left, right))
            return Features(Tap(self.append(Total(taps)), base), left.shape)
        maps = np.stack([left.maps, right.maps], 1)
        offsets = np.stack([left.offsets, right.offsets], 1)
        return left._replace(**dict(zip(
            ("maps", "offsets"),
            self.combine(maps, offsets, lambda taps, _places: Total(taps)),
            strict=True,
        )))  # fmt: skip

    def relu(self, value: Any, *, alone: bool) -> Any:
        """Return ReLU of a value, which steps do themselves if it is ``alone``: if nothing else reads the value."""
        return self._revised(value, lambda step: step._replace(relu=True) if alone else None, Maximum, keeps_zero=True)

    def scaled(self, value: Any, scale: Tensor, shift: Tensor, *, alone: bool) -> Any:
        """Return ``value * scale + shift``, each ``(C,)``, folded into convolutions that nothing else reads."""

        def fold(step: Any) -> Step | None:
            if not alone or not isinstance(step, Convolve):
                return None
            kind = step.weight.dtype
            bias = shift if step.bias is None else step.bias.detach() * scale + shift
            return step._replace(weight=(step.weight * scale).to(kind), bias=bias.to(kind))

        def apart(taps: tuple[Tap, ...]) -> Step:
            return Rowwise(taps, lambda rows: (rows * scale + shift).to(rows.dtype), len(scale))

        return self._revised(value, fold, apart, keeps_zero=False)

    def _revised(
        self, value: Any, revise: Callable[[Any], Step | None], apart: Callable[[tuple[Tap, ...]], Any], *,
        keeps_zero: bool,
    ) -> Any:  # fmt: skip
        """Return a value whose steps are revised, those of a step that cannot be by a step of their own."""
        known: dict[int, int] = {ZERO: ZERO}

        def revised(number: int) -> int:
            if number not in known:
                step = self.steps[number - 1] if number else None
                new = None
                if step is not None and not isinstance(step, Rowwise) and not step.relu:
                    new = revise(step)
                if new is None:
                    made = apart((Tap(number, 0),))
                    new = made._replace(relu=True) if isinstance(made, Maximum) else made
                known[number] = self.append(new)
            return known[number]

        if isinstance(value, Features):
            return value._replace(tap=Tap(revised(value.tap.map), value.tap.offset))
        if not keeps_zero and (value.maps == ZERO).any():
            raise Unshared("it is given zeros of a padding")
        return value._replace(maps=np.array([revised(int(one)) for one in value.maps], np.int64))

    def program(self, outputs: Sequence[int], recent: int) -> tuple[SlidingProgram, list[int]]:
        """Return the program of some maps, and their numbers in it, without steps that none of them needs.

        ReLU in front of maxima alone is left to these: it commutes with them.
        """
        steps, needed = [*self.steps], set(outputs)
        readers: dict[int, list[int]] = {}
        for number in range(len(steps), 0, -1):
            if number in needed:
                needed |= {tap.map for tap in steps[number - 1].taps}
                for tap in steps[number - 1].taps:
                    readers.setdefault(tap.map, []).append(number)
        for number in sorted(needed - {0} - set(outputs)):
            step: Any = steps[number - 1]
            read_by = [steps[one - 1] for one in readers[number]]
            if not (isinstance(step, Convolve) and step.relu and all(isinstance(one, Maximum) for one in read_by)):
                continue
            if all(self._is_rectified(steps, tap.map, number) for one in read_by for tap in one.taps):
                steps[number - 1] = step._replace(relu=False)
                for one in readers[number]:
                    steps[one - 1] = steps[one - 1]._replace(relu=True)  # type: ignore[call-arg]
        numbers, kept = {0: 0}, []
        for number in sorted(needed - {0}):
            step = steps[number - 1]
            kept.append(step._replace(taps=tuple(Tap(numbers[tap.map], tap.offset) for tap in step.taps)))
            numbers[number] = len(kept)
        found = [numbers[one] for one in outputs]
        return SlidingProgram(self.columns, tuple(kept), tuple(found), recent), found

    @staticmethod
    def _is_rectified(steps: list[Step], map: int, number: int) -> bool:
        """Tell whether a map is step ``number``'s, or one whose negative numbers a ReLU took."""
        return map == number or (map > 0 and getattr(steps[map - 1], "relu", False))

    def _pooled(self, value: Positions, pool: Pool) -> Numbers:
        count = pool.output_length(value.length)
        if count < 1:
            raise Misfit(f"its windows of {pool.dilation * (pool.size - 1) + 1} do not fit into {value.length}")
        index = np.arange(count)[:, None] * pool.stride - pool.padding + np.arange(pool.size) * pool.dilation
        index = np.where((index >= 0) & (index < value.length), index, -1)
        if (index < 0).all(1).any():
            raise Unshared("a window of its pool has no position")
        return index


def _constant(bias: Tensor | None, outputs: int) -> Callable[[], Step] | None:
    """Return what makes the step of a position that sees zeros alone: the bias, whatever the series."""
    if bias is None:
        return None
    row = bias.detach()
    return lambda: Rowwise((Tap(0, 0),), lambda rows: row.expand(len(rows), outputs), outputs)


def _distinct(rows: Numbers) -> tuple[Numbers, Numbers]:
    """Return the numbers of the first of all rows that are alike, and which of these each row is like."""
    if (rows == rows[:1]).all():  # as without padding: half a millisecond less for a small model
        return np.zeros(min(len(rows), 1), np.int64), np.zeros(len(rows), np.int64)
    _, first, which = np.unique(rows, axis=0, return_index=True, return_inverse=True)
    return first, which.reshape(-1)


def _grouped(weight: Tensor, bias: Tensor | None, groups: int) -> Callable[..., Tensor]:
    """Return a convolution in groups of given taps, ``weight`` ``(K, C / groups, O)``."""
    taps = weight.permute(2, 1, 0)

    def convolve(*rows: Tensor) -> Tensor:
        return F.conv1d(torch.stack(rows, 2), taps, bias, groups=groups).squeeze(2)

    return convolve


def _sizes(shape: tuple[int, ...]) -> str:
    return ", ".join(map(str, shape))
