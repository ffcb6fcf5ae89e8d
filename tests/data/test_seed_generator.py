"""The notebook's generator: value for value as R printed it, and what the files cannot show."""

from __future__ import annotations

import csv
import itertools
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from seqconv.data import seed_generator

ROOT = Path(__file__).parents[2]
GOLDEN = Path(os.environ.get("SEQCONV_DATA", ROOT.parent / "shared" / "data")).parent / "golden" / "seed_generator"
NAMES = ["step_divides", "step_three", "step_one", "step_ragged", "to_the_end", "shuffled", "long_lookback"]

# What R ran on: row i, column j, both counted from 1, is 10 * i + j.
DATA = 10.0 * np.arange(1, 401)[:, None] + np.arange(1, 4)


def golden(name: str) -> tuple[dict[str, Any], list[tuple[np.ndarray, np.ndarray]]]:
    """Return a case's arguments, counted from 0, and R's batches."""
    if not GOLDEN.is_dir():
        pytest.skip(f"R's batches are not at {GOLDEN}")
    with open(GOLDEN / "cases.csv", newline="") as file:
        case = next(line for line in csv.DictReader(file) if line["name"] == name)
    with open(GOLDEN / "batches.csv", newline="") as file:
        lines = [line for line in csv.DictReader(file) if line["name"] == name]
    arguments = {key: int(case[key]) for key in ("lookback", "delay", "batch_size", "step")}
    arguments["min_index"] = int(case["min_index"]) - 1
    arguments["max_index"] = int(case["max_index"]) - 1 if case["max_index"] else None
    arguments["shuffle"] = case["shuffle"] == "TRUE"
    arrays = {
        (int(line["call"]), line["what"]): np.array([float(value) for value in line["values"].split()]).reshape(
            [int(size) for size in line["dims"].split("x")]
        )
        for line in lines
    }
    calls = int(case["calls"])
    assert len(arrays) == 2 * calls
    return arguments, [(arrays[call, "samples"], arrays[call, "targets"]) for call in range(1, calls + 1)]


@pytest.mark.parametrize("name", [name for name in NAMES if name != "shuffled"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_golden(name: str, dtype: Any) -> None:
    arguments, batches = golden(name)
    ours = seed_generator(DATA.astype(dtype), **arguments, output="numpy")
    for samples, targets in batches:
        our_samples, our_targets = next(ours)
        assert our_samples.dtype == our_targets.dtype == dtype
        np.testing.assert_array_equal(our_samples, samples)
        np.testing.assert_array_equal(our_targets, targets)


def test_every_golden_case_is_tested() -> None:
    golden(NAMES[0])
    with open(GOLDEN / "cases.csv", newline="") as file:
        assert [line["name"] for line in csv.DictReader(file)] == NAMES


def test_golden_shuffled() -> None:
    """R's random numbers are not ours, but for the rows R drew, its samples and targets are."""
    arguments, batches = golden("shuffled")
    lookback, delay, size = (arguments[key] for key in ("lookback", "delay", "batch_size"))
    possible = set(range(arguments["min_index"] + lookback, arguments["max_index"] + 1))
    for samples, targets in batches:
        rows = samples[:, -1, 0].astype(int) // 10 - 1
        assert set(rows) <= possible
        assert len(set(rows)) == size
        for row, sample, target in zip(rows, samples, targets, strict=True):
            # A walk over this one row is R's sample of it.
            one = seed_generator(DATA, lookback, delay, row - lookback, row, batch_size=1, step=6, output="numpy")
            our_sample, our_target = next(one)
            np.testing.assert_array_equal(our_sample[0], sample)
            assert our_target[0] == target
    for samples, targets in itertools.islice(seed_generator(DATA, **arguments, seed=3, output="numpy"), 20):
        rows = samples[:, -1, 0].astype(int) // 10 - 1
        assert samples.shape == batches[0][0].shape
        assert set(rows) <= possible
        assert len(set(rows)) == size
        np.testing.assert_array_equal(targets, DATA[rows + delay, 1])


def corrected_in_r(lookback, delay, min_index, max_index, batch_size, step, calls):
    """Return what R's function gives with the erratum's two lines, rows counted from 1 as in R."""
    i = min_index + lookback
    for _ in range(calls):
        if i + batch_size >= max_index:
            i = min_index + lookback
        rows = list(range(i, min(i + batch_size - 1, max_index) + 1))
        i += len(rows)
        count = lookback // step
        samples = []
        for row in rows:
            start, end = row - lookback, row - 1  # the erratum; it was row
            by = (end - start) / (count - 1) if count > 1 else 0.0
            places = [start, *(start + k * by for k in range(1, count - 1)), *([end] if count > 1 else [])]
            samples.append([DATA[int(place) - 1] for place in places])
        yield np.array(samples), np.array([DATA[row + delay - 1, 1] for row in rows])


@pytest.mark.parametrize(
    ("lookback", "delay", "min_index", "max_index", "batch_size", "step"),
    [
        (24, 6, 1, 200, 16, 6),
        (24, 6, 1, 200, 16, 1),
        (25, 0, 3, 60, 7, 4),
        (6, 1, 1, 90, 5, 6),
        (12, -3, 10, 150, 32, 5),
        (7, 2, 1, 20, 50, 2),
    ],
)
def test_corrected(lookback, delay, min_index, max_index, batch_size, step) -> None:
    ours = seed_generator(
        DATA, lookback, delay, min_index - 1, max_index - 1, False, batch_size, step, output="numpy", corrected=True
    )
    for samples, targets in corrected_in_r(lookback, delay, min_index, max_index, batch_size, step, 12):
        our_samples, our_targets = next(ours)
        np.testing.assert_array_equal(our_samples, samples)
        np.testing.assert_array_equal(our_targets, targets)
        assert len(samples) == min(batch_size, max_index - min_index - lookback + 1)


def test_corrected_with_shuffle_ends_before_now() -> None:
    arguments = (DATA, 12, 2, 0, 100, True, 16, 3)
    for corrected, behind in ((False, 0), (True, 1)):
        samples, targets = next(seed_generator(*arguments, seed=1, output="numpy", corrected=corrected))
        now = (targets - 2) // 10 - 2
        np.testing.assert_array_equal(samples[:, -1, 0] // 10, now - behind)
        np.testing.assert_array_equal(samples[:, 0, 0] // 10, now - 12)


def test_shuffled_draws_the_whole_range_and_repeats_by_seed() -> None:
    def rows(seed: int | None, batches: int) -> list[list[float]]:
        stream = seed_generator(DATA, 10, 2, 5, 30, True, 16, 5, seed=seed, output="numpy")
        return [(next(stream)[0][:, -1, 0] // 10 - 1).tolist() for _ in range(batches)]

    drawn = rows(1, 30)
    assert {row for batch in drawn for row in batch} == set(range(15, 31))
    assert all(sorted(batch) == list(range(15, 31)) for batch in drawn)  # the whole range, without replacement
    assert len({tuple(batch) for batch in drawn}) == 30
    assert rows(1, 3) == drawn[:3]
    assert rows(2, 3) != drawn[:3]
    assert rows(None, 3) != rows(None, 3)


def test_no_max_index_is_the_last_row_but_delay_and_one() -> None:
    """R's nrow(data) - delay - 1 = 393, counted from 1; the walk of the golden case never gets there."""
    samples, _ = next(seed_generator(DATA, 24, 6, 300, None, True, batch_size=69, output="numpy"))
    assert sorted(samples[:, -1, 0] // 10) == list(range(325, 394))


def test_one_sample_is_the_oldest() -> None:
    samples, targets = next(seed_generator(DATA, 6, 0, 0, 100, batch_size=2, step=6))
    assert samples[:, :, 0].tolist() == [[11.0], [21.0], [31.0]]
    assert targets.tolist() == [72.0, 82.0, 92.0]


def test_faces() -> None:
    samples, targets = next(seed_generator(torch.from_numpy(DATA), 12, 1, 0, None, batch_size=4))
    assert isinstance(samples, torch.Tensor)
    assert samples.shape == (5, 2, 3)
    assert targets.shape == (5,)
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(DATA, columns=["p", "T", "rh"])
    _, named = next(seed_generator(frame, 12, 1, 0, None, batch_size=4, target_column="rh"))
    assert named.tolist() == (targets + 1).tolist()


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"lookback": 5}, ValueError, "lookback must be at least 6, got 5"),
        ({"step": 0}, ValueError, "step must be at least 1, got 0"),
        ({"min_index": -1}, ValueError, "min_index must be at least 0, got -1"),
        ({"max_index": 20}, ValueError, "max_index must lie within .* 24 to 393, got 20"),
        ({"max_index": 394}, ValueError, "max_index must lie within .* 24 to 393, got 394"),
        ({"batch_size": 0}, ValueError, "batch_size must be at least 1, got 0"),
        ({"batch_size": 200, "shuffle": True}, ValueError, "batch_size must be at most the 177 rows"),
        ({"target_column": 3}, ValueError, "target_column must be within 0 to 2, got 3"),
        ({"target_column": "T"}, TypeError, "target_column must be an int"),
        ({"output": "jax"}, ValueError, "output must be 'torch' or 'numpy', got 'jax'"),
        ({"seed": -1}, ValueError, "seed must be at least 0, got -1"),
        ({"delay": 1.5}, TypeError, "delay must be an int, got 1.5"),
        ({"data": DATA.astype(int)}, TypeError, "series must be float32 or float64"),
    ],
)
def test_bad_arguments(changes: dict[str, Any], error: type[Exception], message: str) -> None:
    arguments = {"data": DATA, "lookback": 24, "delay": 6, "min_index": 0, "max_index": 200}
    with pytest.raises(error, match=message):
        seed_generator(**{**arguments, **changes})
