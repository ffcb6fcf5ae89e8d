"""Filling one batch of windows from a long series: what feeds the Jena models.

Every side fills the same 64 batches of random starts in turn, so that none has its rows in the cache from the call
before.
"""

from __future__ import annotations

import importlib.util
import itertools
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from benchmarks.registry import Case, Operation, Provider
from seqconv.kernels.reference import windows as reference_windows

__all__ = ["ROWS", "Windows"]

ROWS, COLUMNS = 420_551, 14  # the full Jena series
BATCHES = 64

Array = NDArray[Any]
Fill = Callable[[Array], Any]  # starts (N,) to windows (N, length, columns)


class Windows(Operation):
    """``series[starts[:, None] + step * arange(L)]``; ``R`` rows, ``C`` columns, ``N`` starts, ``L`` rows a window."""

    name = "windows"
    exact = True

    def __init__(self) -> None:
        super().__init__()
        # The speed limit is a copy of as many bytes from as random a place; it answers to a definition of its own.
        self.register(Provider("np.copyto, same bytes", copy_bytes, baseline=True, definition=copied_bytes))
        self.register(Provider("fancy indexing per sample, np.stack", index_each, baseline=True))
        self.register(Provider("DataLoader over indexed samples", load_indexed, baseline=True))
        self.register(Provider("DataLoader over sliced samples", load_slices, baseline=True))
        self.register(Provider("seqconv numba", make_numba, unavailable=no_numba, ours=True))
        self.register(Provider("seqconv reference", kernel(reference_windows.gather_windows)))
        self.register(Provider("NumPy slices into a reused buffer", slice_each))
        self.register(Provider("torch index_select, whole batch", index_select))

    def inputs(self, case: Case, values: str) -> dict[str, Tensor]:
        """Return the series ``(R, C)`` and the starts of all batches ``(BATCHES, N)``."""
        generator = torch.Generator().manual_seed(zlib.crc32(f"{case.name} {values}".encode()))
        last = case.shape["R"] - case.shape["step"] * (case.shape["L"] - 1)
        starts = torch.randint(0, last, (BATCHES, case.shape["N"]), generator=generator)
        return {"series": torch.randn(case.shape["R"], case.shape["C"], generator=generator), "starts": starts}

    def definition(self, case: Case) -> Callable[[Array], Fill]:
        """Return NumPy's fancy indexing of the whole batch."""
        reach = case.shape["step"] * np.arange(case.shape["L"])
        return lambda series: lambda starts: series[starts[:, None] + reach]

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


def empty_batch(case: Case, series: Array) -> Array:
    """Return the buffer that those fill who can reuse one."""
    return np.empty((case.shape["N"], case.shape["L"], case.shape["C"]), series.dtype)


def copy_bytes(case: Case) -> Callable[[Array], Fill]:
    """Copy as many bytes as the batch has, in one piece that begins at the first start (or as near as it fits)."""

    def bind(series: Array) -> Fill:
        out = empty_batch(case, series)
        source, flat, columns = series.reshape(-1), out.reshape(-1), case.shape["C"]
        latest = source.size - flat.size

        def fill(starts: Array) -> Array:
            start = min(int(starts[0]) * columns, latest)
            np.copyto(flat, source[start : start + flat.size])
            return out

        return fill

    return bind


def copied_bytes(case: Case) -> Callable[[Array], Fill]:
    """Define what :func:`copy_bytes` gives."""
    size = case.shape["N"] * case.shape["L"]
    shape = (case.shape["N"], case.shape["L"], case.shape["C"])
    return lambda series: lambda starts: series[min(starts[0], len(series) - size) :][:size].reshape(shape).copy()


def index_each(case: Case) -> Callable[[Array], Fill]:
    """Index each window, then stack them."""
    reach = case.shape["step"] * np.arange(case.shape["L"])
    return lambda series: lambda starts: np.stack([series[start + reach] for start in starts])


def slice_each(case: Case) -> Callable[[Array], Fill]:
    """Copy each window's slice into a reused buffer."""
    step, reach = case.shape["step"], case.shape["step"] * (case.shape["L"] - 1) + 1

    def bind(series: Array) -> Fill:
        out = empty_batch(case, series)

        def fill(starts: Array) -> Array:
            for window, start in zip(out, starts.tolist(), strict=True):
                window[...] = series[start : start + reach : step]
            return out

        return fill

    return bind


class SampleDataset(Dataset[Tensor]):
    """One window an item, by its start."""

    def __init__(self, read: Callable[[int], Tensor]) -> None:
        self.read = read

    def __getitem__(self, start: int) -> Tensor:
        return self.read(start)


def load_slices(case: Case) -> Callable[[Array], Fill]:
    """Load samples that are slices of one tensor: the cheapest per-sample Dataset there is."""
    step, reach = case.shape["step"], case.shape["step"] * (case.shape["L"] - 1) + 1

    def bind(series: Array) -> Fill:
        rows = torch.from_numpy(series)
        return loading(lambda start: rows[start : start + reach : step])

    return bind


def load_indexed(case: Case) -> Callable[[Array], Fill]:
    """Load samples that are indexed out of a NumPy array, as the notebook's generator indexes its matrix."""
    reach = case.shape["step"] * np.arange(case.shape["L"])
    return lambda series: loading(lambda start: torch.from_numpy(series[start + reach]))


def loading(read: Callable[[int], Tensor]) -> Fill:
    """Let a DataLoader, without workers, fetch and collate the windows of given starts."""
    asked: list[list[int]] = []

    def sampler() -> Iterator[list[int]]:
        while True:
            yield asked.pop()

    # One iterator for good: to start one costs extra.
    batches = iter(DataLoader(SampleDataset(read), batch_sampler=sampler()))

    def fill(starts: Array) -> Tensor:
        asked.append(starts.tolist())
        batch: Tensor = next(batches)
        return batch

    return fill


def index_select(case: Case) -> Callable[[Array], Fill]:
    """Let torch gather the rows of all windows at once, into a buffer that is reused."""

    def bind(series: Array) -> Fill:
        rows, out = torch.from_numpy(series), torch.from_numpy(empty_batch(case, series))
        reach = case.shape["step"] * torch.arange(case.shape["L"])
        flat = out.view(-1, case.shape["C"])

        def fill(starts: Array) -> Tensor:
            index = (torch.from_numpy(starts)[:, None] + reach).view(-1)
            torch.index_select(rows, 0, index, out=flat)
            return out

        return fill

    return bind


def kernel(gather_windows: Callable[..., None]) -> Callable[[Case], Callable[[Array], Fill]]:
    """Return one floor's kernel at work on a buffer that is reused."""

    def make(case: Case) -> Callable[[Array], Fill]:
        def bind(series: Array) -> Fill:
            out = empty_batch(case, series)

            def fill(starts: Array) -> Array:
                gather_windows(series, starts, case.shape["L"], case.shape["step"], out)
                return out

            return fill

        return bind

    return make


def make_numba(case: Case) -> Callable[[Array], Fill]:
    """Return Numba's kernel at work, as :func:`kernel` does; Numba is imported no sooner."""
    from seqconv.kernels.numba.windows import gather_windows

    return kernel(gather_windows)(case)


def no_numba(_case: Case) -> str | None:
    """Return that Numba is missing, or ``None``."""
    return "the package numba is not installed" if importlib.util.find_spec("numba") is None else None
