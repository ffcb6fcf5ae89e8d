"""Programs of shared rows: every floor against sums and maxima of rows, written out."""

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from seqconv.kernels.numba import sliding as compiled
from seqconv.kernels.reference import sliding as plain
from seqconv.kernels.sliding import (
    Convolve,
    Maximum,
    Rowwise,
    SlidingProgram,
    Tap,
    Total,
    reaches,
    spacing,
    tails,
    widths,
)

FLOORS = {"reference": plain, "numba": compiled}


@pytest.fixture(params=FLOORS)
def floor(request):
    return FLOORS[request.param]


def written_out(program, series):
    """Return the outputs of a program for one series, row by row."""
    maps = [series]
    for step, reach in zip(program.steps, reaches(program)[1:], strict=True):
        rows = []
        for t in range(max(len(series) - reach, 0)):
            seen = [maps[tap.map][t + tap.offset] for tap in step.taps]
            if isinstance(step, Convolve):
                row = sum(one @ weight for one, weight in zip(seen, step.weight, strict=True))
                row = row if step.bias is None else row + step.bias
            elif isinstance(step, Maximum):
                row = torch.stack(seen).amax(0)
            elif isinstance(step, Total):
                row = sum(seen) * step.factor
            else:
                row = step.function(*(one[None] for one in seen))[0]
            rows.append(row.relu() if getattr(step, "relu", False) else row)
        width = widths(program)[len(maps)]
        maps.append(torch.stack(rows) if rows else series.new_zeros(0, width))
    return [maps[number] for number in program.outputs]


def random_program(draw):
    """Return a random program: taps of one map or several, spaced evenly or not, up to 70 of them."""
    columns = draw.choice([1, 3, 14, 16, 17])
    steps, sizes = [], [columns]
    generator = torch.Generator().manual_seed(draw.randint(0, 10**6))
    for _ in range(draw.randint(1, 6)):
        of = draw.randrange(len(sizes))
        alike = [i for i, size in enumerate(sizes) if size == sizes[of]]
        count = draw.choice([1, 2, 3, 4, 5, 9, 20, 70])
        if draw.random() < 0.6:
            apart = draw.randint(1, 4)
            taps = tuple(Tap(of, i * apart) for i in range(count))
        else:
            taps = tuple(Tap(draw.choice(alike), draw.randint(0, draw.choice([1, 12]))) for _ in range(min(count, 9)))
        kind, relu = draw.choice("ccmtr"), draw.random() < 0.5
        if kind == "c":
            outputs = draw.choice([1, 4, 16, 32, 35])
            weight = torch.randn(len(taps), sizes[of], outputs, generator=generator, dtype=torch.float64)
            weight /= (len(taps) * sizes[of]) ** 0.5
            bias = torch.randn(outputs, generator=generator, dtype=torch.float64) if draw.random() < 0.7 else None
            steps.append(Convolve(taps, weight, bias, relu))
        elif kind == "m":
            steps.append(Maximum(taps, relu))
        elif kind == "t":
            steps.append(Total(taps, draw.choice([1.0, 1 / len(taps)]), relu))
        else:
            steps.append(Rowwise(taps, lambda *rows: torch.tanh(torch.cat(rows[:2], 1)), sizes[of] * min(len(taps), 2)))
        sizes.append(widths(SlidingProgram(columns, tuple(steps), ()))[-1])
    outputs = tuple(sorted({len(steps), draw.randrange(len(sizes))}))
    return SlidingProgram(columns, tuple(steps), outputs, draw.choice([0, 40]))


@pytest.mark.parametrize("name", FLOORS)
@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_random_programs_on_pieces_of_any_size(name, seed):
    draw = random.Random(seed)
    program, streams = random_program(draw), draw.randint(1, 3)
    reach = max(reaches(program))
    series = torch.randn(streams, reach + draw.randint(0, 60), program.columns, dtype=torch.float64)
    torch.set_num_threads(draw.choice([1, 2]))
    with pytest.MonkeyPatch.context() as patch:  # blocks so small that rows move to the buffers' fronts
        patch.setattr(compiled, "BLOCK", draw.choice([1, 7, 512]))
        patch.setattr(compiled, "MIXED_BLOCK", draw.choice([3, 512]))
        evaluation = FLOORS[name].start(program, streams, series)
    found = [[] for _ in program.outputs]
    at = 0
    while at < series.size(1):
        size = draw.choice([1, 2, 17, 1000])
        for kept, rows in zip(found, evaluation.advance(series[:, at : at + size]), strict=True):
            kept.append(rows)
        at += size
        recent = evaluation.recent()
        seen = min(at, series.size(1))
        assert torch.equal(recent, series[:, max(seen - max(reach, program.recent), 0) : seen])
    torch.set_num_threads(1)
    for stream in range(streams):
        wanted = written_out(program, series[stream])
        for kept, rows in zip(found, wanted, strict=True):
            torch.testing.assert_close(torch.cat(kept, 1)[stream], rows, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("size", [2, 3, 4, 5, 8, 17, 20, 64, 100])
@pytest.mark.parametrize("apart", [1, 6])
@pytest.mark.parametrize("kind", [Maximum, Total])
def test_levels_give_what_many_taps_give_of_few(kind, size, apart):
    program = SlidingProgram(3, (kind(tuple(Tap(0, i * apart) for i in range(size))),), (1,))
    levels = compiled.in_levels(program)
    assert max(len(step.taps) for step in levels.steps) <= max(3 * len(levels.steps), 4)
    assert reaches(levels)[-1] == reaches(program)[-1]
    series = torch.randint(-9, 10, (200, 3)).double()
    assert torch.equal(written_out(levels, series)[0], written_out(program, series)[0])


def test_nan_and_infinities_are_in_every_window_that_sees_them(floor):
    program = SlidingProgram(2, (Maximum(tuple(Tap(0, i * 2) for i in range(20)), True),), (1,))
    series = torch.randn(1, 200, 2)
    series[0, 77, 0], series[0, 120, 1], series[0, 150, 0] = torch.nan, torch.inf, -torch.inf
    found = floor.start(program, 1, series).advance(series)[0]
    torch.testing.assert_close(found[0], written_out(program, series[0])[0], equal_nan=True, rtol=0, atol=0)


def test_rows_of_any_strides_and_dtypes(floor):
    program = SlidingProgram(3, (Maximum((Tap(0, 0), Tap(0, 2))),), (1,))
    series = torch.randn(1, 3, 50, dtype=torch.float64).transpose(1, 2)
    found = floor.start(program, 1, torch.empty(0)).advance(series.float())[0]
    torch.testing.assert_close(found[0], written_out(program, series[0].float())[0])


def test_taps_evenly_spaced():
    assert spacing((Tap(1, 3),)) == 1
    assert spacing((Tap(1, 3), Tap(1, 5), Tap(1, 7))) == 2
    assert spacing((Tap(1, 3), Tap(1, 5), Tap(1, 6))) is None
    assert spacing((Tap(1, 3), Tap(2, 5))) is None
    assert spacing((Tap(1, 3), Tap(1, 3))) is None


def test_no_more_rows_are_kept_than_later_ones_need():
    taps = (Tap(0, 0), Tap(0, 6))
    program = SlidingProgram(1, (Maximum(taps), Maximum((Tap(1, 0), Tap(1, 10)))), (2,))
    assert reaches(program) == [0, 6, 16]
    assert tails(program) == [16, 10, 0]
