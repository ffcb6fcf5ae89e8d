"""SlidingWindows against windows enumerated from the definition, one row at a time."""

from __future__ import annotations

import itertools
import json
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from seqconv.data import SlidingWindows, gap_groups

Window = tuple[Any, Any]


def numbered(rows: int, columns: int = 3, dtype: Any = np.float64) -> np.ndarray:
    """Row r, column c is 100 * r + c."""
    return (100 * np.arange(rows)[:, None] + np.arange(columns)).astype(dtype)


def plain_lists(windows: SlidingWindows) -> list[Window]:
    """Return one pass, window by window, as lists."""
    if windows.batch_size is None:
        return [(inputs.tolist(), targets.tolist()) for inputs, targets in windows]
    return [pair for batch in windows for pair in zip(*(part.tolist() for part in batch), strict=True)]


def enumerated(
    series: np.ndarray,
    lookback: int,
    delay: int,
    step: int,
    horizon: int,
    stride: int,
    start: int,
    stop: int,
    groups: list[int] | None,
    columns: int | list[int] | None,
) -> list[Window]:
    """Return all windows by the definition."""
    found = []
    since = 0  # rows between this one and the first of its group
    for first in range(start, stop):
        fresh = first == start or (groups is not None and groups[first] != groups[first - 1])
        since = 0 if fresh else since + 1
        samples = [first + step * s for s in range(lookback // step)]
        ahead = [first + lookback + delay + h for h in range(horizon)]
        used = range(first, max(samples + ahead) + 1)
        if since % stride or used[-1] >= stop:
            continue
        if groups is not None and len({groups[row] for row in used}) > 1:
            continue
        if groups is not None and any(groups[row] != groups[row + 1] for row in used[:-1]):
            continue
        chosen = list(range(series.shape[1])) if columns is None else columns
        targets = [series[row, chosen].tolist() for row in ahead]
        found.append((series[samples].tolist(), targets[0] if horizon == 1 else targets))
    return found


@st.composite
def cases(draw: st.DrawFn) -> dict[str, Any]:
    rows = draw(st.integers(1, 60))
    step = draw(st.integers(1, 4))
    lookback = draw(st.integers(step, 14))
    start = draw(st.integers(0, rows))
    cuts = draw(st.one_of(st.none(), st.lists(st.integers(0, rows), max_size=4)))
    return {
        "lookback": lookback,
        "delay": draw(st.integers(-lookback, 8)),
        "step": step,
        "horizon": draw(st.integers(1, 4)),
        "stride": draw(st.integers(1, 6)),
        "start": start,
        "stop": draw(st.integers(start, rows)),
        # ids repeat (0, 1, 0, 1): a group may come back later
        "groups": None if cuts is None else [sum(cut <= row for cut in cuts) % 2 for row in range(rows)],
        "columns": draw(st.one_of(st.none(), st.integers(0, 2), st.lists(st.integers(0, 2), min_size=1, max_size=3))),
        "rows": rows,
    }


@settings(max_examples=300, deadline=None)
@given(
    case=cases(),
    batch_size=st.one_of(st.none(), st.integers(1, 20)),
    world_size=st.integers(1, 4),
    uneven=st.sampled_from(["pad", "drop", "keep"]),
    shuffle=st.booleans(),
    drop_last=st.booleans(),
    prefetch=st.booleans(),
    output=st.sampled_from(["torch", "numpy"]),
)
def test_equals_the_definition(
    case: dict[str, Any],
    batch_size: int | None,
    world_size: int,
    uneven: str,
    shuffle: bool,
    drop_last: bool,
    prefetch: bool,
    output: str,
) -> None:
    series = numbered(case.pop("rows"))
    expected = enumerated(series, **case)
    drop_last = drop_last and batch_size is not None
    arguments = {**case, "target_column": case["columns"], "batch_size": batch_size, "shuffle": shuffle, "seed": 5}
    arguments |= {"drop_last": drop_last, "prefetch": prefetch, "output": output}
    arguments |= {"world_size": world_size, "uneven": uneven}
    del arguments["columns"]
    if not expected:
        with pytest.raises(ValueError, match="series must have"):
            SlidingWindows(series, **arguments)
        return
    if uneven == "drop" and len(expected) < world_size:
        with pytest.raises(ValueError, match=f"needs a window for each of the {world_size} ranks, got {len(expected)}"):
            SlidingWindows(series, **arguments)
        return
    if shuffle:
        alone = {"world_size": 1, "uneven": "keep", "drop_last": False}
        order = plain_lists(SlidingWindows(series, **{**arguments, **alone}))
        assert sorted(order) == sorted(expected)
        expected = order
    whole = len(expected) // world_size * world_size
    if uneven == "drop":
        expected = expected[:whole]
    elif uneven == "pad" and whole < len(expected):
        expected = list(itertools.islice(itertools.cycle(expected), whole + world_size))
    lengths = set()
    for rank in range(world_size):
        windows = SlidingWindows(series, rank=rank, **arguments)
        share = expected[rank::world_size]
        kept = len(share) // batch_size * batch_size if drop_last and batch_size else len(share)
        assert plain_lists(windows) == share[:kept]
        assert len(windows) == len(list(windows)) == (-(-kept // batch_size) if batch_size else kept)
        lengths.add(len(windows))
    assert len(lengths) == 1 or uneven == "keep"


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("batch_size", [1, 2, 63, 64, 65, 200])
@pytest.mark.parametrize("uneven", ["pad", "drop"])
def test_ranks_have_equally_many_batches_of_equal_sizes(uneven: str, batch_size: int, drop_last: bool) -> None:
    arguments = {"lookback": 1, "delay": -1, "batch_size": batch_size, "drop_last": drop_last, "uneven": uneven}
    for count, world_size in itertools.product([1, 2, 5, 64, 65, 127, 128, 129, 130], [2, 3, 4, 8]):
        if uneven == "drop" and count < world_size:
            continue
        sizes = [
            [len(batch) for batch, _ in SlidingWindows(np.zeros(count), rank=rank, world_size=world_size, **arguments)]
            for rank in range(world_size)
        ]
        assert all(each == sizes[0] for each in sizes), (count, world_size)
        assert sizes[0] or drop_last


def test_the_default_repeats_the_first_windows_and_none_are_lost() -> None:
    arguments = {"lookback": 1, "delay": -1, "shuffle": True, "seed": 4, "batch_size": 2, "target_column": 0}
    (alone, ranks) = (
        [
            [int(target) for _, targets in windows for target in targets]
            for windows in [SlidingWindows(np.arange(5.0), rank=r, world_size=size, **arguments) for r in range(size)]
        ]
        for size in (1, 3)
    )
    (order,) = alone
    assert [ranks[place % 3][place // 3] for place in range(6)] == [*order, order[0]]
    by_rank = [SlidingWindows(np.arange(5.0), rank=r, world_size=3, **arguments).as_dataset() for r in range(3)]
    assert [int(dataset[i][1]) for i in range(2) for dataset in by_rank] == [0, 1, 2, 3, 4, 0]


def test_a_position_of_ranks_of_other_shares_is_refused() -> None:
    arguments = {"lookback": 4, "delay": 1, "batch_size": 5, "world_size": 2}
    state = SlidingWindows(numbered(30), **arguments).state_dict()
    with pytest.raises(ValueError, match=r"saved with {'uneven': 'pad'}, this loader has {'uneven': 'keep'}"):
        SlidingWindows(numbered(30), **arguments, uneven="keep").load_state_dict(state)


def test_shapes_and_dtypes() -> None:
    for dtype, torch_dtype in ((np.float32, torch.float32), (np.float64, torch.float64)):
        for column, horizon, shape in ((1, 1, ()), ([1], 1, (1,)), (None, 1, (3,)), (1, 4, (4,)), ([2, 0], 4, (4, 2))):
            arguments = {"lookback": 12, "delay": 0, "step": 5, "target_column": column, "horizon": horizon}
            inputs, targets = next(iter(SlidingWindows(numbered(50, 3, dtype), batch_size=7, **arguments)))
            assert inputs.shape == (7, 2, 3)
            assert targets.shape == (7, *shape)
            assert inputs.dtype == targets.dtype == torch_dtype
            inputs, targets = next(iter(SlidingWindows(numbered(50, 3, dtype), batch_size=None, **arguments)))
            assert inputs.shape == (2, 3)
            assert targets.shape == shape
            arguments["output"] = "numpy"
            for array in next(iter(SlidingWindows(numbered(50, 3, dtype), batch_size=None, **arguments))):
                assert isinstance(array, np.ndarray)


def test_keras_recipe() -> None:
    """The example in the documentation of timeseries_dataset_from_array: 99 rows, 10 samples, every 2nd, stride 3."""
    data = np.arange(99.0)
    windows = SlidingWindows(data, lookback=10 * 2, step=2, stride=3, delay=-20, target_column=0)
    inputs, targets = (torch.cat(parts) for parts in zip(*windows, strict=True))
    assert inputs[0, :, 0].tolist() == [0, 2, 4, 6, 8, 10, 12, 14, 16, 18]
    assert inputs[1, :, 0].tolist() == [3, 5, 7, 9, 11, 13, 15, 17, 19, 21]
    assert inputs[2, :, 0].tolist() == [6, 8, 10, 12, 14, 16, 18, 20, 22, 24]
    assert inputs[-1, :, 0].tolist() == [78, 80, 82, 84, 86, 88, 90, 92, 94, 96]
    assert targets.tolist() == list(range(0, 79, 3))


def test_keras_recipe_with_targets_further_on() -> None:
    """data[:-4] and targets data[4:] in Keras; sequences of 3 rows: the last target is the last row."""
    windows = SlidingWindows(np.arange(8.0), lookback=3, delay=4 - 3, target_column=0, batch_size=None)
    table = [([0, 1, 2], 4), ([1, 2, 3], 5), ([2, 3, 4], 6), ([3, 4, 5], 7)]
    assert [(inputs[:, 0].tolist(), int(target)) for inputs, target in windows] == table


def test_python_book_convention() -> None:
    """range(row - lookback, row, step) and the target at row + delay, for every row from min_index + lookback."""
    series = numbered(40, 2)
    windows = SlidingWindows(series, lookback=6, delay=2, step=3, start=5, stop=30, target_column=1, batch_size=None)
    expected = [(series[range(row - 6, row, 3)].tolist(), series[row + 2, 1]) for row in range(5 + 6, 28)]
    assert plain_lists(windows) == expected


def test_window_that_ends_with_now() -> None:
    """delay = d - step puts the target d rows after the window's last row."""
    inputs, target = next(iter(SlidingWindows(numbered(40, 1), lookback=12, step=4, delay=6 - 4, batch_size=None)))
    assert target[0] - inputs[-1, 0] == 600


def test_splits_do_not_leak() -> None:
    series = numbered(100, 1)
    parts = [(0, 50), (50, 80), (80, 100)]
    for start, stop in parts:
        windows = SlidingWindows(series, lookback=7, delay=3, step=2, horizon=2, start=start, stop=stop)
        rows = [value / 100 for batch in windows for part in batch for value in part.flatten().tolist()]
        assert min(rows) == start
        assert max(rows) == stop - 1


def test_orders_come_from_seed_and_pass() -> None:
    def passes(seed: int | None, count: int = 3) -> list[list[Window]]:
        windows = SlidingWindows(numbered(60), lookback=4, delay=0, shuffle=True, seed=seed, batch_size=8)
        return [plain_lists(windows) for _ in range(count)]

    one = passes(1)
    assert passes(1) == one
    assert one[0] != one[1] != one[2] != one[0]
    assert passes(2) != one
    assert passes(None) != passes(None)
    third = SlidingWindows(numbered(60), lookback=4, delay=0, shuffle=True, seed=1, batch_size=8)
    third.set_epoch(2)
    assert plain_lists(third) == one[2]
    torch.manual_seed(4)
    drawn = passes(None)
    torch.manual_seed(4)
    assert passes(None) == drawn


def test_iterators_are_independent() -> None:
    windows = SlidingWindows(numbered(30), lookback=3, delay=0, shuffle=True, seed=0, batch_size=4)
    apart = SlidingWindows(numbered(30), lookback=3, delay=0, shuffle=True, seed=0, batch_size=4)
    expected = [plain_lists(apart) for _ in range(2)]
    first, second = iter(windows), iter(windows)
    got: list[list[Window]] = [[], []]
    for _ in range(len(windows)):
        for iterator, windows_of in zip((second, first), (got[1], got[0]), strict=True):
            windows_of += zip(*(part.tolist() for part in next(iterator)), strict=True)
    assert got == expected


@pytest.mark.parametrize("prefetch", [False, True])
@pytest.mark.parametrize("batch_size", [5, None])
@pytest.mark.parametrize("seed", [3, None])
def test_resume(prefetch: bool, batch_size: int | None, seed: int | None) -> None:
    def loader() -> SlidingWindows:
        series = numbered(31)
        return SlidingWindows(
            series, lookback=4, delay=1, shuffle=True, seed=seed, batch_size=batch_size, prefetch=prefetch, rank=0
        )

    for received in range(len(loader()) + 1):
        windows = loader()
        list(windows)  # so that the pass under way is not the first
        iterator = iter(windows)
        for _ in range(received):
            next(iterator)
        state = json.loads(json.dumps(windows.state_dict()))
        rest = [(inputs.tolist(), targets.tolist()) for inputs, targets in iterator]
        following = plain_lists(windows)
        resumed = loader()
        resumed.load_state_dict(state)
        assert [(inputs.tolist(), targets.tolist()) for inputs, targets in resumed] == rest
        assert plain_lists(resumed) == following


def test_state_checks() -> None:
    arguments = {"lookback": 4, "delay": 1, "batch_size": 5}
    state = SlidingWindows(numbered(30), **arguments).state_dict()
    for change in ({"delay": 2}, {"batch_size": 6}, {"shuffle": True}, {"groups": [0] * 12 + [1] * 18}):
        with pytest.raises(ValueError, match="state was saved with"):
            SlidingWindows(numbered(30), **{**arguments, **change}).load_state_dict(state)
    with pytest.raises(ValueError, match="state was saved with"):
        SlidingWindows(numbered(31), **arguments).load_state_dict(state)
    with pytest.raises(ValueError, match="state must lie within a pass"):
        SlidingWindows(numbered(30), **arguments).load_state_dict({**state, "batch": 99})
    with pytest.raises(ValueError, match="state must be what state_dict returned"):
        SlidingWindows(numbered(30), **arguments).load_state_dict({})
    shuffled = SlidingWindows(numbered(30), **arguments, shuffle=True, seed=1)
    with pytest.raises(ValueError, match=r"saved with {'seed': 1}, this loader has {'seed': 2}"):
        SlidingWindows(numbered(30), **arguments, shuffle=True, seed=2).load_state_dict(shuffled.state_dict())


def test_set_epoch_starts_a_whole_pass_while_another_is_drawn() -> None:
    windows = SlidingWindows(numbered(30), lookback=4, delay=1, batch_size=5)
    before = iter(windows)
    next(before)
    windows.set_epoch(0)
    next(before)
    assert windows.state_dict()["batch"] == 0
    assert len(list(windows)) == len(windows)


def test_series_types(tmp_path: Any) -> None:
    """Whatever holds the series, the windows are the same, and what can be read in place is."""
    pandas = pytest.importorskip("pandas")
    series = numbered(40, 3, np.float32)
    series[7, 1] = np.nan
    series.tofile(tmp_path / "series")
    arguments = {"lookback": 5, "delay": 2, "step": 2, "target_column": 1}
    expected = [
        batch[0].numpy().tobytes() + batch[1].numpy().tobytes() for batch in SlidingWindows(series, **arguments)
    ]
    wide = np.zeros((40, 6), np.float32)
    wide[:, 1:4] = series
    in_place = {
        "tensor": torch.from_numpy(series.copy()),
        "tensor with gradient": torch.from_numpy(series.copy()).requires_grad_(),
        "transposed tensor": torch.from_numpy(series.T.copy()).T,
        "column slice": wide[:, 1:4],
        "Fortran order": np.asfortranarray(series),
        "memmap": np.memmap(tmp_path / "series", np.float32, mode="r", shape=(40, 3)),
    }
    frame = pandas.DataFrame(series.copy(), columns=["p", "T", "rh"])
    for name, held in {**in_place, "DataFrame": frame}.items():
        windows = SlidingWindows(held, **arguments)
        assert [batch[0].numpy().tobytes() + batch[1].numpy().tobytes() for batch in windows] == expected, name
        if name in in_place:
            shared = held.detach().numpy() if isinstance(held, torch.Tensor) else held
            assert np.shares_memory(windows.series, shared), name
    by_name = SlidingWindows(frame, **{**arguments, "target_column": ["rh", "T"]})
    by_position = SlidingWindows(series, **{**arguments, "target_column": [2, 1]})
    assert [batch[1].nan_to_num().tolist() for batch in by_name] == [b[1].nan_to_num().tolist() for b in by_position]
    assert SlidingWindows(np.arange(9.0), lookback=2, delay=0).series.shape == (9, 1)


def test_changes_to_the_series_show_and_batches_own_their_memory() -> None:
    series = numbered(20)
    kept = series.copy()
    windows = SlidingWindows(series, lookback=3, delay=0, batch_size=4)
    iterator = iter(windows)
    inputs, targets = next(iterator)
    inputs.zero_()
    targets.zero_()
    np.testing.assert_array_equal(series, kept)
    series[:] += 1
    assert next(iterator)[0][0, 0].tolist() == [401, 402, 403]


@pytest.mark.parametrize("prefetch", [False, True])
def test_reuse(prefetch: bool) -> None:
    """A batch stays as it is until the next is asked for, and no pass needs more buffers than one or two."""
    arguments = {"lookback": 4, "delay": 0, "shuffle": True, "seed": 0, "batch_size": 7}
    expected = plain_lists(SlidingWindows(numbered(60), **arguments))
    windows = SlidingWindows(numbered(60), reuse=True, prefetch=prefetch, **arguments)
    assert plain_lists(windows) == expected
    iterator = iter(windows)
    assert len({part.data_ptr() for batch in iterator for part in batch}) == (4 if prefetch else 2)


@pytest.mark.parametrize("place", ["whole", "rows", "columns", "backwards"])
def test_memmap_pickles_by_path(tmp_path: Any, place: str) -> None:
    content = numbered(3000, 4, np.float32)
    with open(tmp_path / "series.bin", "wb") as file:
        file.write(b"x" * 5000 + content.tobytes())
    mapped = np.memmap(tmp_path / "series.bin", np.float32, mode="r", offset=5000, shape=content.shape)
    view = {
        "whole": lambda a: a,
        "rows": lambda a: a[1000:],
        "columns": lambda a: a[:, 1:3],
        "backwards": lambda a: a[::-1],
    }[place]
    windows = SlidingWindows(view(mapped), lookback=5, delay=0)
    data = pickle.dumps(windows)
    assert len(data) < 5000
    again = pickle.loads(data)
    np.testing.assert_array_equal(again.series, view(content))
    assert len(pickle.dumps(again)) < 5000
    assert plain_lists(again)[-1] == plain_lists(windows)[-1]


def test_private_changes_of_a_memmap_are_kept(tmp_path: Any) -> None:
    numbered(10, 2).tofile(tmp_path / "series.bin")
    mapped = np.memmap(tmp_path / "series.bin", np.float64, mode="c", shape=(10, 2))
    mapped[0, 0] = -5
    assert pickle.loads(pickle.dumps(SlidingWindows(mapped, lookback=2, delay=0))).series[0, 0] == -5


def test_gap_groups() -> None:
    times = np.array(["2009-01-01T00:10", "2009-01-01T00:20", "2009-01-01T00:20", "2009-01-01T00:40", "NaT"], "M8[s]")
    assert gap_groups(times, np.timedelta64(10, "m")).tolist() == [0, 0, 0, 1, 2]
    assert gap_groups(times, np.timedelta64(20, "m")).tolist() == [0, 0, 0, 0, 1]
    assert gap_groups([0.0, 1.0, 2.5, 2.0, np.nan, 3.0], 1).tolist() == [0, 0, 1, 2, 3, 4]
    assert gap_groups(np.array([3, 1, 2], np.uint8), 1).tolist() == [0, 1, 1]
    assert gap_groups([], 1).tolist() == []
    pandas = pytest.importorskip("pandas")
    stamps = pandas.Series(pandas.to_datetime(times[:4]))
    assert gap_groups(stamps, pandas.Timedelta("15min")).tolist() == [0, 0, 0, 1]
    assert gap_groups(stamps, pandas.Timedelta("15min").to_pytimedelta()).tolist() == [0, 0, 0, 1]
    for times, gap, error, message in (
        ([1, 2], -1, ValueError, "max_gap must be at least 0"),
        ([[1, 2]], 1, ValueError, "times must have one time stamp per row"),
        (["a", "b"], 1, TypeError, "times must be numbers or datetime64"),
    ):
        with pytest.raises(error, match=message):
            gap_groups(times, gap)


def test_no_window_straddles_a_gap() -> None:
    hours = np.r_[0:20, 30:41, 41:43, 60:64]
    windows = SlidingWindows(
        hours.astype(float), lookback=4, delay=1, groups=gap_groups(hours, 1), batch_size=None, target_column=0
    )
    got = [(inputs[:, 0].tolist(), float(target)) for inputs, target in windows]
    whole = [*range(15), *range(30, 38)]
    assert got == [([hour, hour + 1, hour + 2, hour + 3], hour + 5) for hour in whole]


def test_as_dataset() -> None:
    windows = SlidingWindows(numbered(40), lookback=6, delay=1, target_column=0, step=2, rank=1, world_size=2)
    dataset = windows.as_dataset()
    expected = plain_lists(windows)
    assert len(dataset) == len(expected)
    assert [(dataset[i][0].tolist(), dataset[i][1].tolist()) for i in range(len(dataset))] == expected
    assert [(x.tolist(), y.tolist()) for x, y in dataset.__getitems__([3, -1])] == [expected[3], expected[-1]]
    for index in (len(dataset), -len(dataset) - 1):
        with pytest.raises(IndexError, match=f"index must lie within .* got {index}"):
            dataset[index]
    loader = torch.utils.data.DataLoader(dataset, batch_size=4, shuffle=True)
    got = [pair for x, y in loader for pair in zip(x.tolist(), y.tolist(), strict=True)]
    assert got != expected
    assert sorted(got) == sorted(expected)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"series": [[1.0]]}, TypeError, "series must be a NumPy array, CPU tensor or DataFrame, got list"),
        ({"series": np.ones((9, 2), int)}, TypeError, "series must be float32 or float64, got dtype int64"),
        ({"series": np.ones((9, 2), ">f8")}, TypeError, "series must be float32 or float64, got dtype >f8"),
        ({"series": torch.ones(9, dtype=torch.bfloat16)}, TypeError, "series must be float32 or float64"),
        ({"series": torch.ones(9, 2, device="meta")}, TypeError, "series must lie on the CPU"),
        ({"series": np.ones((9, 2, 2))}, ValueError, r"series must have shape .* got \(9, 2, 2\)"),
        ({"series": np.ones((9, 0))}, ValueError, "series must have shape"),
        ({"series": np.ones((4, 2))}, ValueError, "series must have 5 rows in one piece"),
        ({"lookback": 0}, ValueError, "lookback must be at least 1, got 0"),
        ({"lookback": 3, "step": 4}, ValueError, "lookback must be at least 4, got 3"),
        ({"lookback": 2.0}, TypeError, "lookback must be an int, got 2.0"),
        ({"delay": -5}, ValueError, "delay must be at least -4, got -5"),
        ({"delay": True}, TypeError, "delay must be an int, got True"),
        ({"step": 0}, ValueError, "step must be at least 1, got 0"),
        ({"horizon": 0}, ValueError, "horizon must be at least 1, got 0"),
        ({"stride": 0}, ValueError, "stride must be at least 1, got 0"),
        ({"start": -1}, ValueError, "start must be within 0 to 20, got -1"),
        ({"stop": 21}, ValueError, "stop must be within 0 to 20, got 21"),
        ({"start": 5, "stop": 4}, ValueError, "stop must be within 5 to 20, got 4"),
        ({"target_column": 2}, ValueError, "target_column must be within 0 to 1, got 2"),
        ({"target_column": []}, ValueError, "target_column must name at least one column"),
        ({"target_column": "T"}, TypeError, "target_column must be an int where series is no DataFrame, got 'T'"),
        ({"batch_size": 0}, ValueError, "batch_size must be at least 1, got 0"),
        ({"batch_size": None, "drop_last": True}, ValueError, "drop_last must be False with batch_size=None"),
        ({"rank": 2, "world_size": 2}, ValueError, "rank must be within 0 to 1, got 2"),
        ({"world_size": 0}, ValueError, "world_size must be at least 1, got 0"),
        ({"world_size": 2, "shuffle": True}, ValueError, "seed must be given"),
        ({"uneven": "cut"}, ValueError, "uneven must be 'pad', 'drop' or 'keep', got 'cut'"),
        ({"seed": -1}, ValueError, "seed must be at least 0, got -1"),
        ({"output": "jax"}, ValueError, "output must be 'torch' or 'numpy', got 'jax'"),
        ({"groups": [0] * 19}, ValueError, r"groups must have one id per row, shape \(20,\), got \(19,\)"),
        ({"groups": [0.0] * 7 + [np.nan] * 13}, ValueError, "groups must have an id for every row, got nan for row 7"),
        ({"series": np.ma.masked_all((20, 2))}, TypeError, "got MaskedArray"),
        ({"groups": range(20)}, ValueError, "series must have 5 rows in one piece .* in groups"),
    ],
)
def test_bad_arguments(changes: dict[str, Any], error: type[Exception], message: str) -> None:
    arguments = {"series": np.ones((20, 2)), "lookback": 4, "delay": 0}
    with pytest.raises(error, match=message):
        SlidingWindows(**{**arguments, **changes})


def test_bad_frames() -> None:
    pandas = pytest.importorskip("pandas")
    mixed = pandas.DataFrame({"a": np.ones(9), "b": np.arange(9)})
    with pytest.raises(TypeError, match="all float32 or all float64, got 'b' of dtype int64"):
        SlidingWindows(mixed, lookback=2, delay=0)
    with pytest.raises(ValueError, match=r"target_column must be one of the columns .* got 'c'"):
        SlidingWindows(mixed.astype(float), lookback=2, delay=0, target_column="c")
