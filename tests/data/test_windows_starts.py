"""SlidingWindows that yields the windows' first rows: the same windows, the same order, and the series to read."""

from __future__ import annotations

import copy
import pickle
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from seqconv.data import SlidingWindows
from seqconv.functional import window_conv1d_relu_global_max_pool1d, window_conv1d_relu_max_pool1d

TRAITS: list[dict[str, Any]] = [
    {},
    {"shuffle": True, "seed": 3},
    {"shuffle": True, "seed": 3, "rank": 1, "world_size": 3, "drop_last": True},
    {"stride": 4, "groups": np.arange(90) // 31, "horizon": 2, "target_column": None},
    {"batch_size": None, "start": 5, "stop": 40},
    {"prefetch": True, "reuse": True},
    {"output": "numpy", "reuse": True},
]


def series_of(rows: int = 90, columns: int = 3, dtype: Any = np.float64) -> np.ndarray:
    return np.random.default_rng(2).standard_normal((rows, columns)).astype(dtype)


def loader(series: Any = None, **changes: Any) -> SlidingWindows:
    arguments = {"lookback": 13, "delay": 1, "step": 2, "target_column": 0, "batch_size": 8, **changes}
    return SlidingWindows(series_of() if series is None else series, **arguments)


def pairs(batches: Any) -> list[Any]:
    return [(inputs.tolist(), targets.tolist()) for inputs, targets in batches]


def gathered(windows: SlidingWindows, batches: Any) -> list[Any]:
    """Return the batches of starts as those of windows."""
    offsets = windows.step * np.arange(windows.length)
    return [(windows.series[np.asarray(i)[..., None] + offsets].tolist(), t.tolist()) for i, t in batches]


@pytest.mark.parametrize("traits", TRAITS, ids=str)
def test_starts_are_those_of_the_windows_in_their_order(traits: dict[str, Any]) -> None:
    windows, plain = loader(**traits, materialise=False), loader(**traits)
    assert len(windows) == len(plain)
    for _ in range(2):  # a second pass has its own order
        assert gathered(windows, windows) == pairs(plain)
    starts, _ = next(iter(windows))
    assert isinstance(starts, np.ndarray if windows.output == "numpy" else torch.Tensor)
    assert str(starts.dtype).removeprefix("torch.") == "int64"
    assert starts.shape == (() if windows.batch_size is None else (8,))
    assert gathered(windows, windows.as_dataset()) == pairs(plain.as_dataset())


@pytest.mark.parametrize("pool", [2, None])
def test_reading_the_series_equals_reading_windows(pool: int | None) -> None:
    """In float64 and whole numbers, whose sums are exact in any order."""
    series = series_of().round()
    weight, bias = (torch.randn(*shape, dtype=torch.float64).round() for shape in ((5, 3, 2), (5,)))
    windows, plain = (loader(series, shuffle=True, seed=0, materialise=flag) for flag in (False, True))
    assert (windows.length, windows.step) == (windows.samples, 2) == (6, 2)
    for (starts, targets), (inputs, same) in zip(windows, plain, strict=True):
        assert torch.equal(targets, same)
        options = {"length": windows.length, "step": windows.step}
        if pool is None:
            found = window_conv1d_relu_global_max_pool1d(windows.series_tensor(), starts, weight, bias, **options)
            expected = torch.relu(torch.conv1d(inputs.transpose(1, 2), weight, bias)).amax(-1)
        else:
            options["pool_size"] = pool
            found = window_conv1d_relu_max_pool1d(windows.series_tensor(), starts, weight, bias, **options)
            expected = torch.max_pool1d(torch.relu(torch.conv1d(inputs.transpose(1, 2), weight, bias)), pool)
        assert torch.equal(found, expected)


def test_workers_pass_on_starts_and_not_the_series() -> None:
    traits = {"shuffle": True, "seed": 2, "materialise": False}
    windows = loader(**traits)
    windows.series_tensor()
    assert pickle.loads(pickle.dumps(windows))._tensors == copy.deepcopy(windows)._tensors == {}
    workers = DataLoader(windows, batch_size=None, num_workers=2, multiprocessing_context="fork")
    assert pairs(workers) == pairs(loader(**traits))
    samples = DataLoader(loader(**traits).as_dataset(), batch_size=8)  # a sampler of the DataLoader's own
    assert pairs(samples) == pairs(loader(materialise=False))


@pytest.mark.parametrize("flags", [(False, False), (False, True), (True, False)], ids=str)
def test_resumes_within_a_pass_also_one_of_the_other_kind(flags: tuple[bool, bool]) -> None:
    before, after = (loader(shuffle=True, seed=4, materialise=flag) for flag in flags)
    whole = pairs(loader(shuffle=True, seed=4, materialise=flags[1]))
    iterator = iter(before)
    next(iterator), next(iterator)
    after.load_state_dict(before.state_dict())
    assert pairs(after) == whole[2:]


def test_the_series_is_a_tensor_over_the_same_memory(tmp_path: Any) -> None:
    array = series_of()
    locked = array.copy()
    locked.flags.writeable = False
    array.tofile(tmp_path / "series")
    mapped = np.memmap(tmp_path / "series", np.float64, mode="r", shape=array.shape)
    wide = series_of(columns=9)
    for series in (array, locked, mapped, torch.from_numpy(array), array[::3], wide[:, 2:7:2], array.T[:, :60]):
        windows = loader(series, lookback=1, delay=0, step=1, target_column=0, materialise=False)
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # torch warns of read-only arrays
            tensor = windows.series_tensor()
        assert np.array_equal(tensor.numpy(), windows.series)
        assert tensor.data_ptr() == windows.series.ctypes.data
        assert tensor.stride() == tuple(stride // 8 for stride in windows.series.strides)
    with pytest.raises(ValueError, match="read-only"):
        locked[0] = 0  # as before


def test_the_series_outlives_what_it_was_read_from(tmp_path: Any) -> None:
    array = series_of(rows=5000)
    array.tofile(tmp_path / "series")
    for make in (array.copy, lambda: np.memmap(tmp_path / "series", np.float64, mode="r", shape=array.shape)):
        series = make()
        series.flags.writeable = False
        tensor = loader(series).series_tensor()
        del series
        assert np.array_equal(tensor.numpy(), array)


def test_strides_that_no_tensor_has_are_copied() -> None:
    records = np.zeros(50, [("mark", "u1"), ("values", np.float64, 3)])
    records["values"] = series_of(50)
    for series in (series_of()[::-1], series_of()[:, ::-1], records["values"]):
        windows = loader(series)
        assert np.array_equal(windows.series_tensor().numpy(), windows.series)
        assert windows.series_tensor() is windows.series_tensor()


def test_the_series_is_made_once_a_device() -> None:
    windows = loader(materialise=False)
    assert windows.series_tensor() is windows.series_tensor("cpu") is windows.series_tensor(torch.device("cpu"))
    there = windows.series_tensor("meta")
    assert (there.device.type, there.shape) == ("meta", (90, 3))
    assert windows.series_tensor(torch.device("meta")) is there
    with pytest.raises(RuntimeError, match="nowhere"):
        windows.series_tensor("nowhere")


@pytest.mark.parametrize("flag", [None, 1, "no"])
def test_anything_but_a_flag_is_refused(flag: Any) -> None:
    with pytest.raises(TypeError, match="materialise must be True or False, got"):
        loader(materialise=flag)
