"""Filling one batch of windows from a long series: what feeds the Jena models.

Every side fills the same 64 batches of random starts in turn, so that none has its rows in the cache from the call
before.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from benchmarks.operations.gather import random_starts
from benchmarks.operations.steps import seeded
from benchmarks.registry import Case, Operation, Provider
from seqconv.data.gathering import gather_windows
from seqconv.kernels.numba.support import MISSING

BATCHES = 64

Array = NDArray[Any]
Fill = Callable[[Array], Any]  # starts (N,) to windows (N, length, columns)


class WindowBatches(Operation):
    """``series[starts[:, None] + step * arange(L)]``; ``R`` rows, ``C`` columns, ``N`` starts, ``L`` rows a window.

    A provider's function is given the case and the series, and returns what fills a batch.
    """

    name = "windows"
    exact = True

    def __init__(self) -> None:
        super().__init__()
        # The speed limit is a copy of as many bytes from as random a place; it answers to a definition of its own.
        copied = bound(copied_bytes)
        self.register(Provider("np.copyto, same bytes", bound(copy_bytes), baseline=True, definition=copied))
        self.register(Provider("fancy indexing per sample, np.stack", bound(index_each), baseline=True))
        self.register(Provider("DataLoader over indexed samples", bound(load_indexed), baseline=True))
        self.register(Provider("DataLoader over sliced samples", bound(load_slices), baseline=True))
        numba, reference = (bound(partial(by_backend, one)) for one in ("numba", "reference"))
        self.register(Provider("seqconv numba", numba, unavailable=lambda _: MISSING, ours=True))
        self.register(Provider("seqconv reference", reference))
        self.register(Provider("NumPy slices into a reused buffer", bound(slice_each)))
        self.register(Provider("torch index_select, whole batch", bound(index_select)))

    def inputs(self, case: Case, values: str) -> dict[str, Tensor]:
        """Return the series ``(R, C)`` and the starts of all batches ``(BATCHES, N)``."""
        generator, (n, rows, length, step) = seeded(case, values, "cpu"), (case.shape[one] for one in SIZES)
        starts = random_starts(generator, BATCHES * n, rows, length, step).view(BATCHES, n)
        return {"series": torch.randn(rows, case.shape["C"], generator=generator), "starts": starts}

    def definition(self, case: Case) -> Callable[[Array], Fill]:
        """Return NumPy's fancy indexing of the whole batch."""
        return lambda series: lambda starts: series[starts[:, None] + reach(case)]

    def step(
        self,
        case: Case,  # noqa: ARG002
        function: Callable[[Array], Fill],
        inputs: Mapping[str, Tensor],
        dtype: torch.dtype,
    ) -> FillStep:
        """Return ``function`` at work on a copy of the series."""
        # NumPy's own allocation, as a loaded series has it: large arrays of NumPy's get huge pages, torch's do not.
        series = np.array(inputs["series"].to(dtype).numpy(), copy=True)
        return FillStep(function(series), inputs["starts"].numpy())


SIZES = ("N", "R", "L", "step")


def bound(function: Callable[[Case, Array], Fill]) -> Callable[[Case], Callable[[Array], Fill]]:
    """Return what a provider makes of a function of a case and a series."""
    return lambda case: partial(function, case)


class FillStep:
    """One side at work on one batch of starts after the other."""

    def __init__(self, fill: Fill, batches: Array) -> None:
        self.fill, self.starts = fill, batches[0]
        self.batches = itertools.cycle(batches)
        self.windows: Any = None

    def prepare(self) -> None:
        """Take the next batch of starts."""
        self.starts = next(self.batches)

    def call(self) -> None:
        """Fill the batch."""
        self.windows = self.fill(self.starts)

    def results(self) -> dict[str, Tensor]:
        """Return the windows."""
        return {"windows": torch.as_tensor(self.windows)}


def reach(case: Case) -> Array:
    """Return a window's rows from its start on."""
    return case.shape["step"] * np.arange(case.shape["L"])


def empty_batch(case: Case, series: Array) -> Array:
    """Return the buffer that those fill who can reuse one."""
    return np.empty((case.shape["N"], case.shape["L"], case.shape["C"]), series.dtype)


def copy_bytes(case: Case, series: Array) -> Fill:
    """Copy as many bytes as the batch has, in one piece that begins at the first start (or as near as it fits)."""
    out = empty_batch(case, series)
    source, flat, columns = series.reshape(-1), out.reshape(-1), case.shape["C"]
    latest = source.size - flat.size

    def fill(starts: Array) -> Array:
        start = min(int(starts[0]) * columns, latest)
        np.copyto(flat, source[start : start + flat.size])
        return out

    return fill


def copied_bytes(case: Case, series: Array) -> Fill:
    """Define what :func:`copy_bytes` gives."""
    shape = empty_batch(case, series).shape
    size = shape[0] * shape[1]
    return lambda starts: series[min(starts[0], len(series) - size) :][:size].reshape(shape).copy()


def index_each(case: Case, series: Array) -> Fill:
    """Index each window, then stack them."""
    rows = reach(case)
    return lambda starts: np.stack([series[start + rows] for start in starts])


def slice_each(case: Case, series: Array) -> Fill:
    """Copy each window's slice into a reused buffer."""
    out, (step, size) = empty_batch(case, series), (case.shape["step"], reach(case)[-1] + 1)

    def fill(starts: Array) -> Array:
        for window, start in zip(out, starts.tolist(), strict=True):
            window[...] = series[start : start + size : step]
        return out

    return fill


class SampleDataset(Dataset[Tensor]):
    """One window an item, by its start."""

    def __init__(self, read: Callable[[int], Tensor]) -> None:
        self.read = read

    def __getitem__(self, start: int) -> Tensor:
        return self.read(start)


def load_slices(case: Case, series: Array) -> Fill:
    """Load samples that are slices of one tensor: the cheapest per-sample Dataset there is."""
    rows, step, size = torch.from_numpy(series), case.shape["step"], int(reach(case)[-1]) + 1
    return loading(lambda start: rows[start : start + size : step])


def load_indexed(case: Case, series: Array) -> Fill:
    """Load samples that are indexed out of a NumPy array, as the notebook's generator indexes its matrix."""
    rows = reach(case)
    return loading(lambda start: torch.from_numpy(series[start + rows]))


def loading(read: Callable[[int], Tensor]) -> Fill:
    """Let a DataLoader, without workers, fetch and collate the windows of given starts."""
    asked: list[list[int]] = []

    def sampler() -> Iterator[list[int]]:
        while True:
            yield asked.pop()

    # One iterator for good: to start one costs extra.
    batches = iter(DataLoader(SampleDataset(read), batch_sampler=sampler()))

    def fill(starts: Array) -> Any:
        asked.append(starts.tolist())
        return next(batches)

    return fill


def index_select(case: Case, series: Array) -> Fill:
    """Let torch gather the rows of all windows at once, into a buffer that is reused."""
    rows, out = torch.from_numpy(series), torch.from_numpy(empty_batch(case, series))
    window, flat = torch.from_numpy(reach(case)), out.view(-1, case.shape["C"])

    def fill(starts: Array) -> Tensor:
        torch.index_select(rows, 0, (torch.from_numpy(starts)[:, None] + window).view(-1), out=flat)
        return out

    return fill


def by_backend(backend: str, case: Case, series: Array) -> Fill:
    """Let one backend's kernel fill a buffer that is reused."""
    out = empty_batch(case, series)

    def fill(starts: Array) -> Array:
        gather_windows(series, starts, case.shape["L"], case.shape["step"], out, backend=backend)
        return out

    return fill


def operations() -> list[Operation]:
    """Return the operation."""
    return [WindowBatches()]
