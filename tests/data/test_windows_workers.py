"""SlidingWindows in DataLoader workers and with its prefetch thread."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from seqconv.data import SlidingWindows
from seqconv.data.prefetch import prefetched
from tests.grids import others_large


def loader(**changes: Any) -> SlidingWindows:
    series = (10 * np.arange(90)[:, None] + np.arange(2)).astype(np.float32)
    arguments = {"lookback": 6, "delay": 1, "step": 2, "target_column": 0, "batch_size": 8, "shuffle": True, "seed": 2}
    return SlidingWindows(changes.pop("series", series), **{**arguments, **changes})


def lists(batches: Any) -> list[Any]:
    return [(inputs.tolist(), targets.tolist()) for inputs, targets in batches]


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_share_out_a_pass(method: str, tmp_path: Any) -> None:
    """Two workers of the second of two ranks give the batches of a loader without workers, in the same order."""
    windows = loader(rank=1, world_size=2, prefetch=True, reuse=True)
    windows.series.tofile(tmp_path / "series")
    mapped = np.memmap(tmp_path / "series", np.float32, mode="r", shape=windows.series.shape)
    of_workers = loader(rank=1, world_size=2, prefetch=True, reuse=True, series=mapped)
    workers = DataLoader(
        of_workers, batch_size=None, num_workers=2, multiprocessing_context=method, persistent_workers=True
    )
    assert len(workers) == len(windows)
    for _ in range(2):  # workers that persist count the passes themselves
        assert lists(list(workers)) == lists(windows)


def test_workers_that_do_not_persist_follow_set_epoch() -> None:
    windows, plain = loader(), loader()
    workers = DataLoader(windows, batch_size=None, num_workers=2, multiprocessing_context="fork")
    first = lists(plain)
    assert lists(workers) == lists(workers) == first
    windows.set_epoch(1)
    assert lists(workers) == lists(plain) != first


def test_workers_without_a_seed_draw_new_orders() -> None:
    workers = DataLoader(loader(seed=None), batch_size=None, num_workers=2, multiprocessing_context="fork")
    orders = [lists(workers) for _ in range(2)]
    assert orders[0] != orders[1]
    targets = [sorted(target for _, batch in order for target in batch) for order in orders]
    assert targets[0] == targets[1] == sorted(target for _, batch in lists(loader()) for target in batch)


PASSES = """
import copy, gc, sys
import numpy as np
from torch.utils.data import DataLoader
from seqconv.data import SlidingWindows

def windows(**changes):
    return SlidingWindows(np.arange(40.0), lookback=3, delay=1, **{"shuffle": True, "seed": 0, **changes})

def passes(name, loader, count=2, each=None, **options):
    options = {"num_workers": 1, "multiprocessing_context": sys.argv[1], **options}
    print(name, file=sys.stderr)
    workers = DataLoader(loader, batch_size=None, **options)
    for epoch in range(count):
        if each is not None:
            each(epoch)
        list(workers)

if __name__ == "__main__":
    gc.freeze()  # or every worker that ends copies the memory of torch's modules
    passes("repeated", windows())
    if sys.argv[1] == "fork":  # a process that is spawned imports torch again
        passes("several workers", windows(), count=3, num_workers=2)
        counted = windows()
        passes("counted", counted, each=counted.set_epoch)
        again = windows()
        passes("twice on purpose", again, each=lambda epoch: again.set_epoch(0))
        passes("copied", copy.deepcopy(windows()))
        passes("persistent", windows(), persistent_workers=True)
        passes("in this process", windows(), num_workers=0, multiprocessing_context=None)
        passes("in order", windows(shuffle=False))
        passes("no seed", windows(seed=None))
        passes("one pass", windows(), count=1)
"""


@pytest.mark.parametrize("method", others_large("fork", "spawn"))
def test_a_pass_repeated_by_new_workers_is_warned_of_once(method: str, tmp_path: Path) -> None:
    script = tmp_path / "passes.py"
    script.write_text(PASSES)
    done = subprocess.run([sys.executable, script, method], capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    told = [line for line in done.stderr.splitlines() if not line.startswith(" ")]
    warned = {}
    for line in told:
        if "Warning" not in line:
            name = line
        warned[name] = warned.get(name, -1) + 1
    assert all("set_epoch" in line for line in told if "Warning" in line)
    assert {name for name, count in warned.items() if count} == (
        {"repeated", "several workers", "copied"} if method == "fork" else {"repeated"}
    )
    assert max(warned.values()) == 1


def test_dataset_in_workers() -> None:
    dataset = loader(shuffle=False).as_dataset()
    workers = DataLoader(dataset, batch_size=8, num_workers=2, multiprocessing_context="fork")
    assert lists(workers) == lists(loader(shuffle=False))


def test_state_counts_what_was_received() -> None:
    """Not what the thread has filled meanwhile."""
    windows = loader(prefetch=True)
    iterator = iter(windows)
    assert windows.state_dict()["batch"] == 0
    for received in range(1, 4):
        next(iterator)
        assert windows.state_dict()["batch"] == received


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("seqconv-prefetch")]


def test_no_thread_is_left_behind() -> None:
    windows = loader(prefetch=True)
    unused = iter(windows)
    assert threads() == []
    closed = iter(windows)
    next(closed)
    assert len(threads()) == 1
    closed.close()
    assert threads() == []
    dropped = iter(windows)
    next(dropped)
    del dropped
    gc.collect()
    assert threads() == []
    list(windows)
    assert threads() == []
    del unused


def test_error_in_the_thread_reaches_the_consumer(monkeypatch: pytest.MonkeyPatch) -> None:
    gather = SlidingWindows.gather
    filled = []

    def failing(self: SlidingWindows, positions: Any, buffers: Any = None) -> Any:
        filled.append(threading.current_thread().name)
        if len(filled) == 3:
            raise OSError("the disk is gone")
        return gather(self, positions, buffers)

    monkeypatch.setattr(SlidingWindows, "gather", failing)
    iterator = iter(loader(prefetch=True))
    next(iterator)
    next(iterator)
    with pytest.raises(OSError, match="the disk is gone"):
        next(iterator)
    assert all(name.startswith("seqconv-prefetch") for name in filled)
    assert threads() == []


def test_prefetched_runs_one_ahead() -> None:
    made = []

    def items() -> Iterator[int]:
        for item in range(5):
            made.append(item)
            yield item

    stream = prefetched(items())
    assert made == []
    assert next(stream) == 0
    stream.close()  # waits for the item being made
    assert made == [0, 1]
    assert list(prefetched(iter([]))) == []
    assert list(prefetched(items())) == [0, 1, 2, 3, 4]


def test_torch_threads_and_fork() -> None:
    """Workers forked after the parent has filled batches and run torch's thread pool."""
    windows = loader(prefetch=True)
    iterator = iter(windows)
    next(iterator)
    torch.ones(400, 400).mm(torch.ones(400, 400))
    workers = DataLoader(loader(), batch_size=None, num_workers=2, multiprocessing_context="fork")
    assert lists(workers) == lists(loader())
    assert len(list(iterator)) == len(windows) - 1
