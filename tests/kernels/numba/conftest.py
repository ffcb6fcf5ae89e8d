"""What the compiled kernels' tests share: threads for even the smallest work."""

import pytest
import torch

from seqconv.kernels.numba.runtime import threads

THREADS = [(1, True), (2, True), (3, True), (3, False)]


@pytest.fixture(params=THREADS, ids=["1", "2", "3", "3 of Python"])
def shared(request, monkeypatch):
    """Share even the smallest work among so many threads, of OpenMP's or of Python's."""
    count, has_openmp = request.param
    monkeypatch.setattr(threads, "WORTH_A_THREAD", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: count)
    if not has_openmp:
        monkeypatch.setattr(threads, "_launch", 0)
    return count
