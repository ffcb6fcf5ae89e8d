"""Sliding evaluation on a GPU: a convolution, its ReLU and the running maximum behind it are one call.

All else is torch's own. A maximum keeps no rows of the convolution in front of it: those that two pieces of a series
have in common are convolved twice, so pieces should be long.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from ..geometry import Convolution, Pool
from ..reference.sliding import PlainEvaluation
from ..sliding import Convolve, Maximum, SlidingProgram, Step, Tap, spacing
from ..source import Dense
from .conv_pool import forward

__all__ = ["FusedEvaluation", "fused", "start"]


class ConvolvedMaximum(NamedTuple):
    """A convolution of evenly spaced taps with ReLU, and the maximum of ``size`` rows ``pooled_apart`` of it.

    ``taps`` are the first and the last row that it sees.
    """

    taps: tuple[Tap, ...]
    weight: Tensor  # (O, C, K)
    bias: Tensor | None
    apart: int
    size: int
    pooled_apart: int
    columns: int


def start(program: SlidingProgram, streams: int, like: Tensor) -> FusedEvaluation:
    """Return the evaluation of a program from row 0 on, with the dtype and on the device of ``like``."""
    return FusedEvaluation(fused(program), streams, like)


def fused(program: SlidingProgram) -> SlidingProgram:
    """Return a program in which convolutions with ReLU are one step with the maximum that alone reads them."""
    readers: dict[int, set[int]] = {}
    for number, step in enumerate(program.steps, 1):
        for tap in step.taps:
            readers.setdefault(tap.map, set()).add(number)
    steps: list[Any] = []
    numbers = {0: 0}
    for number, step in enumerate(program.steps, 1):
        taken = len(readers.get(number, ())) == 1 and number not in program.outputs
        if taken and _is_pair(step, program.steps[min(readers[number]) - 1]):
            continue
        of: Any = program.steps[step.taps[0].map - 1] if step.taps[0].map not in numbers else None
        found: Any = step
        if of is not None:
            found = _convolved(of, step)
        elif isinstance(step, Convolve) and step.relu and spacing(step.taps):
            found = _convolved(step, None)
        taps = tuple(Tap(numbers[tap.map], tap.offset) for tap in found.taps)
        steps.append(found._replace(taps=taps))
        numbers[number] = len(steps)
    return SlidingProgram(program.columns, tuple(steps), tuple(numbers[one] for one in program.outputs), program.recent)


def _is_pair(step: Step, reader: Step) -> bool:
    """Tell whether a convolution and what reads it are one call: the maximum's ReLU is the convolution's."""
    if not isinstance(step, Convolve) or not isinstance(reader, Maximum):
        return False
    return (step.relu or reader.relu) and spacing(step.taps) is not None and spacing(reader.taps) is not None


def _convolved(step: Convolve, reader: Step | None) -> ConvolvedMaximum:
    """Return a convolution with ReLU, and the maximum that reads it, if there is one, as one step."""
    first, last = step.taps[0], step.taps[-1]
    apart, weight = spacing(step.taps) or 1, step.weight.permute(2, 1, 0).contiguous()
    size, pooled_apart, begin = 1, 1, 0
    if reader is not None:
        size, pooled_apart, begin = len(reader.taps), spacing(reader.taps) or 1, reader.taps[0].offset
    taps = (
        Tap(first.map, first.offset + begin),
        Tap(last.map, last.offset + begin + (size - 1) * pooled_apart),
    )
    return ConvolvedMaximum(taps, weight, step.bias, apart, size, pooled_apart, weight.size(0))


class FusedEvaluation(PlainEvaluation):
    """A program on its way along series: see :class:`~..sliding.Evaluation`."""

    def step(self, step: Any, maps: list[Tensor], begins: list[int], count: int) -> Tensor:
        """Return ``count`` rows of a step's map."""
        if not isinstance(step, ConvolvedMaximum):
            return super().step(step, maps, begins, count)
        first, last = (tap.offset + begin for tap, begin in zip(step.taps, begins, strict=True))
        rows = maps[step.taps[0].map][:, first : last + count]
        pool = Pool(step.size, 1, 0, step.pooled_apart)
        source = Dense(rows.transpose(1, 2))
        found, _ = forward(source, step.weight, step.bias, Convolution(dilation=step.apart), pool, want_argmax=False)
        return found.transpose(1, 2)
