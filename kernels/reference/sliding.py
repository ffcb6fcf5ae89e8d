"""Sliding evaluation in plain torch, on any device and in any dtype: the specification of the floors' own."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..sliding import Convolve, Maximum, Rowwise, SlidingProgram, Step, Total, reaches, spacing, tails, widths

__all__ = ["PlainEvaluation", "evaluated", "start"]


def start(program: SlidingProgram, streams: int, like: Tensor) -> PlainEvaluation:
    """Return the evaluation of a program from row 0 on, with the dtype and on the device of ``like``."""
    return PlainEvaluation(program, streams, like)


class PlainEvaluation:
    """A program on its way along series: see :class:`~..sliding.Evaluation`."""

    def __init__(self, program: SlidingProgram, streams: int, like: Tensor) -> None:
        self.program, self.rows = program, 0
        self.reach, self.tails = reaches(program), tails(program)
        self.maps = [like.new_empty(streams, 0, width) for width in widths(program)]

    def advance(self, rows: Tensor) -> list[Tensor]:
        """Take the next rows; return the new rows of every output."""
        before, self.rows = self.rows, self.rows + rows.size(1)
        done = [(max(before - reach, 0), max(self.rows - reach, 0)) for reach in self.reach]
        maps = [torch.cat([self.maps[0], rows], 1)]
        for number, step in enumerate(self.program.steps, 1):
            first, last = done[number]
            new = self.maps[number][:, :0]
            if last > first:
                begins = [first - (done[tap.map][1] - maps[tap.map].size(1)) for tap in step.taps]
                new = self.step(step, maps, begins, last - first)
            maps.append(torch.cat([self.maps[number], new], 1))
        self.maps = [one[:, one.size(1) - min(one.size(1), tail) :] for one, tail in zip(maps, self.tails, strict=True)]
        return [
            maps[number][:, maps[number].size(1) - (done[number][1] - done[number][0]) :].contiguous()
            for number in self.program.outputs
        ]

    def step(self, step: Step, maps: list[Tensor], begins: list[int], count: int) -> Tensor:
        """Return ``count`` rows of a step's map; the taps' first rows are ``begins``, offsets aside."""
        given = [
            maps[tap.map][:, begin + tap.offset : begin + tap.offset + count]
            for tap, begin in zip(step.taps, begins, strict=True)
        ]
        apart = spacing(step.taps)
        if apart is not None and not isinstance(step, Rowwise):
            first = begins[0] + step.taps[0].offset
            whole = maps[step.taps[0].map][:, first : first + (len(step.taps) - 1) * apart + count]
            return evenly(step, whole, apart)
        return evaluated(step, given)

    def recent(self) -> Tensor:
        """Return a copy of the last rows of the series."""
        return self.maps[0].clone()


def evenly(step: Convolve | Maximum | Total, rows: Tensor, apart: int) -> Tensor:
    """Return a step of evenly spaced taps of ``rows`` ``(streams, n, C)``, that of the first output row first."""
    across = rows.transpose(1, 2)
    size = len(step.taps)
    if isinstance(step, Convolve):
        found = F.conv1d(across, step.weight.permute(2, 1, 0), step.bias, dilation=apart)
    elif isinstance(step, Maximum):
        found = F.max_pool1d(across, size, 1, 0, apart) if size > 1 else across
    else:
        weight = across.new_full((1, 1, size), step.factor)
        found = F.conv1d(across.flatten(0, 1).unsqueeze(1), weight, dilation=apart).view(*across.shape[:2], -1)
    return (found.relu() if step.relu else found).transpose(1, 2)


def evaluated(step: Step, given: list[Tensor]) -> Tensor:
    """Return a step of what its taps see, ``(streams, n, C)`` each."""
    if isinstance(step, Rowwise):
        streams, count, _ = given[0].shape
        return step.function(*(one.flatten(0, 1) for one in given)).view(streams, count, step.columns)
    if isinstance(step, Convolve):
        found = torch.cat(given, 2) @ step.weight.flatten(0, 1)
        found = found if step.bias is None else found + step.bias
    elif isinstance(step, Maximum):
        found = given[0]
        for one in given[1:]:
            found = torch.maximum(found, one)
    else:
        found = torch.stack(given).sum(0) * step.factor
    return found.relu() if step.relu else found
