"""How a kernel's parts are shared among threads: each is done once, by as many threads as were asked for."""

import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from numba import njit

from seqconv.kernels.numba.runtime import threads
from seqconv.kernels.numba.runtime.compilation import compiled
from seqconv.kernels.numba.runtime.threads import share

PARTS = 1000


@njit
def count_part(part, counts, work, failing):
    scratch = np.empty(64)
    for i in range(work):
        scratch[i % 64] = part
    if part == failing:
        raise ValueError("this part fails")
    counts[part] += 1


@compiled
def count_parts(counts, work, failing, begin, end, helpers, launch):
    share(begin, end, helpers, launch, count_part, (counts, work, failing))


def counted(number, failing=-1, parts=PARTS, work=64):
    counts = np.zeros(PARTS)
    threads.run(lambda *shares: count_parts(counts, work, failing, *shares), parts, number)
    return counts


@pytest.fixture(params=[True, False], ids=["OpenMP", "Python"])
def launch(request, monkeypatch):
    """Use the OpenMP library's threads, or Python's."""
    if not request.param:
        monkeypatch.setattr(threads, "_launch", 0)
    return request.param


@pytest.mark.skipif(sys.platform != "linux", reason="torch's OpenMP library has this entry on Linux")
def test_finds_the_threads_that_torch_runs_on():
    assert threads._launch


@pytest.mark.parametrize("number", [1, 2, 3, 7])
@pytest.mark.parametrize("parts", [0, 1, 2, PARTS])
def test_every_part_is_done_once(launch, number, parts):
    counts = counted(number, parts=parts)
    assert (counts[:parts] == 1).all()
    assert not counts[parts:].any()


def test_several_threads_take_part(launch):
    """Part 0 waits for part 1, which another thread must do."""
    arrived = np.zeros(2, np.int64)
    waiter = threading.Thread(target=meet_all, args=(arrived,), daemon=True)
    waiter.start()
    waiter.join(60)
    assert not waiter.is_alive()
    assert arrived.tolist() == [1, 1]


@njit
def meet(part, arrived):
    arrived[part] = 1
    while arrived[1 - part] == 0:
        np.random.random()  # noqa: NPY002  a call that the compiler cannot see through: memory is read again


@compiled
def meet_compiled(arrived, begin, end, helpers, launch):
    share(begin, end, helpers, launch, meet, (arrived,))


def meet_all(arrived):
    threads.run(lambda *shares: meet_compiled(arrived, *shares), 2, 2)


@pytest.mark.parametrize("failing", [0, PARTS - 1])
def test_a_failure_is_raised_and_the_next_call_works(launch, failing):
    """All that can fail in a kernel is memory, and that is what it is called."""
    for _ in range(3):
        with pytest.raises(MemoryError, match="scratch"):
            counted(2, failing)
        assert (counted(2) == 1).all()


def test_callers_on_many_threads_do_not_disturb_each_other(launch):
    with ThreadPoolExecutor(8) as executor:
        for counts in executor.map(counted, [1, 2, 3, 4] * 50):
            assert (counts == 1).all()
