"""Batches of windows over a series: each window once a pass, in a seeded order, with targets at a distance."""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Generator, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from seqconv.backends import Explanation
from seqconv.data.arguments import integer
from seqconv.data.gathering import explain_gathering, gather_rows, gather_windows, load_kernels
from seqconv.data.passes import Passes, Position
from seqconv.data.prefetch import prefetched
from seqconv.data.windows_series import MappedArray, mapped_array, rows_and_names, tensor_of
from seqconv.data.worker_passes import WorkerPasses

__all__ = ["SlidingWindows", "WindowsDataset", "gap_groups"]

Array = NDArray[Any]
Batch: TypeAlias = tuple[Any, Any]  # two tensors, or two arrays with output="numpy"


class SlidingWindows(Passes[Batch], IterableDataset[Batch]):
    """Batches ``(inputs, targets)`` of windows over ``series``, each window once a pass.

    The window that starts at row ``i`` looks back over the ``lookback`` rows ``i .. i + lookback - 1``, of which it
    holds ``S = lookback // step``: rows ``i + s * step``. Its "now" is the row after them, ``i + lookback``, and its
    first target row is ``now + delay``; ``horizon`` rows from there on are targets. ``delay`` may be negative, down to
    ``-lookback``, where the target row is the window's first. Other conventions in these terms:

    =============================================================  ====================================================
    convention                                                     arguments here
    =============================================================  ====================================================
    *Deep Learning with Python*: samples ``range(row - lookback,   the same ``lookback``, ``step`` and ``delay``
    row, step)``, target at ``row + delay``
    target ``d`` rows after the window's last sample               ``lookback = S * step``, ``delay = d - step``
    Keras, ``timeseries_dataset_from_array(data, data[:, j],       ``lookback = S * r``, ``step = r``, ``stride = q``,
    sequence_length=S, sampling_rate=r, sequence_stride=q)``:      ``delay = -lookback``, ``target_column = j``
    targets aligned to the windows' starts
    the same with ``targets=data[d:, j]``                          as above with ``delay = d - lookback``
    =============================================================  ====================================================

    The notebook's R generator spaces its samples otherwise: :func:`seqconv.data.seed_generator`.

    Which windows there are: ``start`` and ``stop`` bound every row that windows *and* targets use, so that splits do
    not leak into each other. Starts are ``start``, ``start + stride``, ... With ``groups``, one id per row of the
    series (see :func:`gap_groups`), no window with its targets contains a change of id, and starts are counted from
    the first row of every run of one id.

    Where the name does not say it all:
        series: ``(R, C)``, or ``(R,)`` for one column; a NumPy array, ``np.memmap``, CPU tensor or DataFrame, of
            float32 or float64. It is read where it lies, through any strides (a DataFrame is copied once, into rows),
            is never changed, and changes to it show. NaN passes through.
        target_column: position of a column, a DataFrame's column name, or a sequence of these; ``None``: all columns.
        batch_size: windows in a batch; ``None`` yields one window at a time, without the batch axis.
        shuffle: draw a new order for every pass from ``(seed, number of the pass)``. ``seed=None`` draws the seed from
            torch's global generator.
        drop_last: leave out the last batch of a pass where it is smaller.
        rank, world_size: of a pass's windows in their order, this loader has those at ``rank``, ``rank + world_size``,
            ... A shuffled order then needs a common ``seed``.
        uneven: what to do where ``world_size`` does not divide the windows. ``"pad"`` repeats the pass's first windows
            at its end, as torch's ``DistributedSampler`` does (all of them again and again where there are fewer than
            ranks), and ``"drop"`` leaves out its last ones, fewer than ``world_size``: every rank has equally many
            batches of equal sizes, without which ``DistributedDataParallel`` waits for ever. ``"keep"`` has each
            window once, as an evaluation without collective calls wants it, and gives some ranks one window more.
        prefetch: fill the next batch in a thread meanwhile.
        reuse: fill the same buffers again and again. A batch's memory is then valid until the next one is asked for.
            Not in worker processes, which pass their batches on.
        output: ``"torch"`` or ``"numpy"``.
        materialise: ``False`` yields the windows' first rows instead of their content, as ``(B,)`` int64, for a model
            that reads the series itself: ``seqconv.functional.window_conv1d_relu_max_pool1d(windows.series_tensor(),
            starts, weight, length=windows.length, step=windows.step, ...)``. All else stays as it is.
        backend: what fills the batches: ``"auto"``, ``"numba"`` or ``"reference"`` (NumPy); see :meth:`explain`.

    Inputs are ``(B, S, C)``, targets ``(B,)`` for one column and ``(B, T)`` for several or all, with a horizon above 1
    ``(B, H)`` and ``(B, H, T)``; of the series' dtype, newly allocated unless ``reuse``.

    Each ``iter()`` starts a pass; iterators do not disturb each other. :meth:`state_dict` holds the position of what
    the newest has handed out; after :meth:`load_state_dict` the next ``iter()`` finishes that pass.

    In a ``DataLoader(windows, batch_size=None, num_workers=...)`` the workers share out the batches, which come in the
    same order as without workers. Where workers do not persist, each pass begins with copies of this loader: count the
    passes with :meth:`set_epoch`, or let ``seed=None`` draw orders from the DataLoader's seed. A worker that begins a
    pass again in the same shuffled order warns, once. A memory map is mapped again by its path in processes that are
    spawned.

    Raises ``TypeError`` for series and arguments of wrong type, ``ValueError`` for values out of range, also where not
    one window fits, and :class:`~seqconv.BackendError` where a backend asked for by name cannot serve.
    """

    def __init__(
        self,
        series: Any,
        *,
        lookback: int,
        delay: int,
        step: int = 1,
        target_column: int | str | Sequence[int | str] | None = None,
        horizon: int = 1,
        stride: int = 1,
        start: int = 0,
        stop: int | None = None,
        groups: Any = None,
        batch_size: int | None = 128,
        shuffle: bool = False,
        seed: int | None = None,
        drop_last: bool = False,
        rank: int = 0,
        world_size: int = 1,
        uneven: str = "pad",
        prefetch: bool = False,
        reuse: bool = False,
        output: str = "torch",
        materialise: bool = True,
        backend: str = "auto",
    ) -> None:
        self.series, names = rows_and_names(series)
        rows = len(self.series)
        self.step = integer("step", step, 1)
        self.lookback = integer("lookback", lookback, self.step)
        self.delay = integer("delay", delay, -self.lookback)
        self.horizon = integer("horizon", horizon, 1)
        self.stride = integer("stride", stride, 1)
        self.start = integer("start", start, 0, rows)
        self.stop = rows if stop is None else integer("stop", stop, self.start, rows)
        self.columns, self.one_column = columns_of(target_column, self.series.shape[1], names)
        self.batch_size = None if batch_size is None else integer("batch_size", batch_size, 1)
        self.drop_last = bool(drop_last)
        self.prefetch, self.reuse, self.output = bool(prefetch), bool(reuse), output
        self.materialise = materialise
        if batch_size is None and drop_last:
            raise ValueError("drop_last must be False with batch_size=None, got True")
        if output not in ("torch", "numpy"):
            raise ValueError(f"output must be 'torch' or 'numpy', got {output!r}")
        if not isinstance(materialise, bool):
            raise TypeError(f"materialise must be True or False, got {materialise!r}")
        self.backend = load_kernels(backend)
        super().__init__(shuffle=shuffle, seed=seed, rank=rank, world_size=world_size, uneven=uneven)
        self._runs, self._counts = self._runs_of_windows(groups)
        if not self._counts.size:
            raise ValueError(
                f"series must have {self.reach + 1} rows in one piece for a window with its targets (lookback "
                f"{lookback}, delay {delay}, horizon {horizon}), got rows {self.start} to {self.stop}"
                + (" in groups" if groups is not None else "")
            )
        self._ends = np.cumsum(self._counts)
        self._require_share("window")
        self._tensors: dict[torch.device, Tensor] = {}
        self._worker_passes = WorkerPasses() if self.shuffle and self.seed_given else None

    @property
    def samples(self) -> int:
        """Rows in a window, ``S``."""
        return self.lookback // self.step

    @property
    def length(self) -> int:
        """Rows in a window, as ``seqconv.functional.window_conv...`` name them: :attr:`samples`."""
        return self.samples

    @property
    def reach(self) -> int:
        """Distance from a window's first row to the last that it or its targets use."""
        return max((self.samples - 1) * self.step, self.lookback + self.delay + self.horizon - 1)

    @property
    def windows(self) -> int:
        """Windows in a pass of this rank, repeated ones included."""
        return self._share

    @property
    def _total(self) -> int:
        """Windows that there are, over all ranks."""
        return int(self._ends[-1])

    def __len__(self) -> int:
        size = self.batch_size or 1
        return self.windows // size if self.drop_last else -(-self.windows // size)

    def series_tensor(self, device: torch.device | str | None = None) -> Tensor:
        """Return the series ``(R, C)`` as a tensor on ``device`` (``None``: the CPU), for windows given by starts.

        It is made once per device. On the CPU it shares the series' memory, which must not be written to where it is
        read-only; only a series whose strides no tensor can have is copied. A copy, as on another device, shows no
        later change of the series. It is not passed on to worker processes.
        """
        device = torch.device("cpu") if device is None else torch.empty(0, device=device).device  # with its number
        if device not in self._tensors:
            shared = self._tensors.get(torch.device("cpu"))
            shared = tensor_of(self.series) if shared is None else shared
            self._tensors[device] = shared.to(device)
        return self._tensors[device]

    def explain(self) -> Explanation:
        """Tell which backend fills the batches, and why the others do not."""
        return explain_gathering("gather_windows" if self.materialise else "gather_rows", self.backend)

    def as_dataset(self) -> WindowsDataset:
        """Return a map-style dataset of this rank's windows in the series' order, for a sampler of one's own."""
        return WindowsDataset(self)

    def starts(self, positions: Array) -> NDArray[np.int64]:
        """Return the first rows of windows, given by their positions in the series' order over all ranks."""
        run = np.searchsorted(self._ends, positions, side="right")
        within = positions - (self._ends - self._counts)[run]
        return np.asarray(self._runs[run] + self.stride * within, np.int64)

    def by_starts(
        self, at_once: int, steps: int | None = None
    ) -> Generator[tuple[NDArray[np.int64], Tensor], None, None]:
        """Begin a pass, as ``iter()`` does, and yield first rows and targets of ``at_once`` windows at a time.

        They are those of the pass's batches, or of its first ``steps``, in the pass's order; where that is not the
        series' order, all come at once. No window is gathered.
        """
        position, size = self._begin(), self.batch_size or 1
        end = len(self) if steps is None else min(position.handed_out + steps, len(self))
        positions = self._order(position.number)[position.handed_out * size : end * size]
        if (positions[1:] < positions[:-1]).any():
            at_once = len(positions)
        for begin in range(0, len(positions), at_once):
            starts = self.starts(positions[begin : begin + at_once])
            yield starts, torch.from_numpy(self._targets(starts, self._empty_targets(len(starts))))
        position.handed_out = end
        if end == len(self):
            position.end()

    def set_epoch(self, epoch: int) -> None:
        """Make the next ``iter()`` start pass number ``epoch``, as torch's ``DistributedSampler`` does."""
        self._position = Position(integer("epoch", epoch, 0))
        self._worker_passes = None  # who sets the epoch repeats one only on purpose

    def __getstate__(self) -> dict[str, Any]:
        state = {**self.__dict__, "_tensors": {}}
        mapped = mapped_array(self.series)
        return state if mapped is None else {**state, "series": mapped}

    def __setstate__(self, state: dict[str, Any]) -> None:
        series = state["series"]
        self.__dict__.update(state)
        self.series = series.open() if isinstance(series, MappedArray) else series

    def _batches(self, number: int, first: int) -> Generator[Batch, None, None]:
        """Yield pass ``number`` from batch ``first`` on: all of it, or a DataLoader worker's share."""
        worker = get_worker_info()
        if worker is not None and worker.id == 0 and self._worker_passes is not None:
            self._worker_passes.begin(number)
        share = range(first, len(self)) if worker is None else range(first + worker.id, len(self), worker.num_workers)
        buffers = None
        if self.reuse and worker is None:
            buffers = [self._empty(min(self.batch_size or 1, self.windows)) for _ in range(2 if self.prefetch else 1)]
        fresh = [] if worker is None or self.seed_given else [worker.seed - worker.id]  # common to all workers
        filled = self._filled(self._order(number, *fresh), share, buffers)
        with contextlib.closing(prefetched(filled) if self.prefetch else filled) as batches:
            yield from batches

    def _filled(
        self, order: Array, share: range, buffers: list[tuple[Array, Array]] | None
    ) -> Generator[Batch, None, None]:
        size = self.batch_size or 1
        for turn, batch in enumerate(share):
            positions = order[batch * size : (batch + 1) * size]
            content = self.gather(positions, buffers[turn % len(buffers)] if buffers else None)
            yield content if self.batch_size else (content[0][0, ...], content[1][0, ...])

    def gather(self, positions: Array, buffers: tuple[Array, Array] | None = None) -> Batch:
        """Return the batch of the windows at these positions in the series' order over all ranks."""
        count = len(positions)
        inputs, targets = (buffer[:count] for buffer in buffers or self._empty(count))
        starts = self.starts(positions)
        if self.materialise:
            gather_windows(self.series, starts, self.samples, self.step, inputs, backend=self.backend)
        else:
            inputs[:] = starts
        targets = self._targets(starts, targets)
        return (inputs, targets) if self.output == "numpy" else (torch.from_numpy(inputs), torch.from_numpy(targets))

    def _targets(self, starts: Array, targets: Array) -> Array:
        """Return the targets of windows, in the memory of ``targets``."""
        rows = starts[:, None] + np.arange(self.lookback + self.delay, self.lookback + self.delay + self.horizon)
        gather_rows(self.series, rows, self.columns, targets, backend=self.backend)
        if self.one_column:
            targets = targets[:, :, 0]
        if self.horizon == 1:
            targets = targets[:, 0]
        return targets

    def _empty(self, count: int) -> tuple[Array, Array]:
        dtype = self.series.dtype
        shape = (count, self.samples, self.series.shape[1])
        inputs: Array = np.empty(shape, dtype) if self.materialise else np.empty(count, np.int64)
        return inputs, self._empty_targets(count)

    def _empty_targets(self, count: int) -> Array:
        return np.empty((count, self.horizon, len(self.columns)), self.series.dtype)

    def _runs_of_windows(self, groups: Any) -> tuple[Array, Array]:
        """Return the first rows of the runs that hold windows, and how many windows each holds."""
        firsts = np.array([self.start])
        if groups is not None:
            ids = np.asarray(groups)
            if ids.shape != (len(self.series),):
                raise ValueError(f"groups must have one id per row, shape ({len(self.series)},), got {ids.shape}")
            missing = np.flatnonzero(ids != ids)  # NaN and NaT, which would make each row a group of its own
            if len(missing):
                raise ValueError(f"groups must have an id for every row, got {ids[missing[0]]} for row {missing[0]}")
            ids = ids[self.start : self.stop]
            firsts = np.append(firsts, self.start + 1 + np.flatnonzero(ids[1:] != ids[:-1]))
        room = np.append(firsts[1:], self.stop) - firsts - self.reach - 1
        fits = room >= 0
        return firsts[fits], room[fits] // self.stride + 1

    def _config(self) -> dict[str, Any]:
        return {
            "rows": list(self.series.shape),
            "lookback": self.lookback,
            "delay": self.delay,
            "step": self.step,
            "target_columns": self.columns.tolist(),
            "horizon": self.horizon,
            "stride": self.stride,
            "start": self.start,
            "stop": self.stop,
            "windows": zlib.crc32(np.stack([self._runs, self._counts]).astype("<i8").tobytes()),
            "batch_size": self.batch_size,
            "shuffle": self.shuffle,
            "drop_last": self.drop_last,
        }


class WindowsDataset(Dataset[Batch]):
    """A rank's windows one by one: ``dataset[i]`` is ``(inputs, targets)`` without the batch axis.

    Several at once (``__getitems__``, which a DataLoader prefers) are gathered together and come as a list of views.
    """

    def __init__(self, windows: SlidingWindows) -> None:
        self.windows = windows

    def __len__(self) -> int:
        return self.windows.windows

    def __getitem__(self, index: int) -> Batch:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: list[int]) -> list[Batch]:
        """Return the windows at ``indices``, which may be negative. Raises ``IndexError`` outside the dataset."""
        chosen = np.asarray(indices, np.int64)
        outside = (chosen < -len(self)) | (chosen >= len(self))
        if outside.any():
            raise IndexError(f"index must lie within {-len(self)} to {len(self) - 1}, got {chosen[outside][0]}")
        chosen = np.where(chosen < 0, chosen + len(self), chosen)
        inputs, targets = self.windows.gather(self.windows.positions(chosen))
        return [(inputs[b, ...], targets[b, ...]) for b in range(len(chosen))]


def gap_groups(times: Any, max_gap: Any) -> NDArray[np.int64]:
    """Return an id per row that changes wherever more than ``max_gap`` lies between a time stamp and the one before.

    ``times`` ``(R,)``: numbers, ``datetime64``, or a pandas Series or index of them; ``max_gap``: a number, or a
    ``timedelta64``, ``datetime.timedelta`` or ``pandas.Timedelta``. Repeated time stamps stay together; time that runs
    backwards, NaN and NaT begin a new group. For ``groups=`` of :class:`SlidingWindows`.
    """
    stamps = np.asarray(times)
    if stamps.ndim != 1:
        raise ValueError(f"times must have one time stamp per row, got shape {stamps.shape}")
    if stamps.dtype.kind not in "iufM":
        raise TypeError(f"times must be numbers or datetime64, got dtype {stamps.dtype}")
    if stamps.dtype.kind == "M":
        max_gap = np.timedelta64(max_gap)
    elif stamps.dtype.kind == "u":
        stamps = stamps.astype(np.int64)
    zero = max_gap - max_gap
    if not max_gap >= zero:
        raise ValueError(f"max_gap must be at least 0, got {max_gap!r}")
    gaps = stamps[1:] - stamps[:-1]
    new = ~((gaps >= zero) & (gaps <= max_gap))
    return np.concatenate([np.zeros(min(len(stamps), 1), np.int64), np.cumsum(new, dtype=np.int64)])


def columns_of(target_column: Any, count: int, names: list[Any] | None) -> tuple[NDArray[np.int64], bool]:
    """Return the positions of the target columns, and whether one was asked for by itself."""
    if target_column is None:
        return np.arange(count), False
    one = isinstance(target_column, str) or not isinstance(target_column, Sequence | np.ndarray)
    columns = [target_column] if one else list(target_column)
    if not columns:
        raise ValueError("target_column must name at least one column, got none")
    return np.array([column_position(column, count, names) for column in columns]), one


def column_position(column: Any, count: int, names: list[Any] | None) -> int:
    """Return a column's position; an integer is one already."""
    if not isinstance(column, str):
        return integer("target_column", column, 0, count - 1)
    if names is None:
        raise TypeError(f"target_column must be an int where series is no DataFrame, got {column!r}")
    if names.count(column) != 1:
        raise ValueError(f"target_column must be one of the columns {names}, got {column!r}")
    return names.index(column)
