"""``seqconv.sliding_inference``: a model's output for every window of a series, in one pass over its rows."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from seqconv import backends
from seqconv.data.windows_series import rows_and_names, tensor_of
from seqconv.functional import arguments
from seqconv.kernels.sliding import Convolve, Rowwise, SlidingProgram, widths
from seqconv.sliding.model import LAYOUTS, SlidingModel

__all__ = ["SlidingReport", "check", "check_layout", "columns_of", "like_of", "sliding_inference"]

# Rows of each stream that are computed at a time: kernels keep blocks of them in the caches, so that more cost nothing.
CHUNK = 2**15

# Bytes that a chunk's maps may take where all rows of a chunk go through a step before the next.
CHUNK_BYTES = 2**26

# Least windows for which a thread has a part of the series of its own, which begins with rows that two parts compute.
# A guess, as are the two above: none of them has been timed.
WORTH_A_PART = 2048


def sliding_inference(
    model: nn.Module,
    series: Any,
    *,
    length: int,
    step: int = 1,
    starts: Any = None,
    groups: Any = None,
    chunk: int | None = None,
    progress: bool = False,
    layout: str = "auto",
    backend: str = "auto",
) -> Any:
    """Return what ``model`` gives for the windows of ``series``: ``(windows, ...)``, the same numbers within rounding.

    The window that starts at row ``t`` holds the ``length`` rows ``t, t + step, ...``. Windows have most of their rows
    in common, and so most of a convnet's work: a convolution is computed once for each row of the series, for all
    windows, a pool becomes a running maximum, and the result is that of ``model`` on batches of all windows.

    ``model`` takes windows as ``(N, C, L)`` or ``(N, L, C)`` (``layout`` ``"NCL"`` or ``"NLC"``, ``"auto"``: as it
    can). It is in evaluation mode. Convolutions, pointwise functions, batch norms, maximum and average pools, dense
    layers and what moves axes are shared, in torch's modules and functions or in this library's, with any stride,
    dilation and padding. Behind what windows cannot share, such as a recurrent layer, the model runs window by window,
    in batches. A model of which nothing can be shared, or whose windows depend on each other, is refused:
    :func:`sliding_inference.check <check>` tells beforehand.

    ``series`` is ``(rows, columns)`` or ``(rows,)``: a tensor on any device, a NumPy array, a memory map or a
    DataFrame, of float32 or float64; a list of series gives a list of results. It is read in pieces of ``chunk``
    windows, so that besides the result memory does not grow with it. ``starts`` are the first rows of the windows that
    are wanted, in their order; else it is all rows where a window fits. With ``groups``, an id for each row, windows
    that contain a change of id are left out. ``progress`` shows a bar on stderr. ``backend`` is ``"auto"`` or a name
    out of :data:`seqconv.backends.BACKENDS`.

    What the forward pass reads besides its argument and its modules' attributes (globals, files) is taken for what it
    was at the first call of a model, as by :func:`seqconv.fuse`.

    The result, a tensor or what the model has of them, is on the series' device, of the model's dtype. Raises
    ``TypeError`` and ``ValueError`` for arguments that do not fit, and for a model that is refused, by the name of the
    module and the reason.
    """
    _check_model(model)
    length, step = arguments.integer("length", length, 1), arguments.integer("step", step, 1)
    if chunk is not None:
        chunk = arguments.integer("chunk", chunk, 1)
    check_layout(layout)
    arguments.flag("progress", progress)
    backends.check_name(backend)
    several = isinstance(series, (list, tuple))
    given = list(series) if several else [series]
    if several and (starts is not None or groups is not None):
        raise ValueError("starts and groups must be None for several series: call it for each of them")
    like = like_of(model)
    known: dict[tuple[int, int], SlidingModel] = {}

    def ready(columns: int, thinned: int) -> SlidingModel:
        if (columns, thinned) not in known:
            known[columns, thinned] = SlidingModel(
                model, columns, length, step // thinned, layout=layout, backend=backend, like=like, thinned=thinned
            )
        return known[columns, thinned]

    found = []
    with torch.no_grad():
        for one in given:
            rows = _rows_of(one)
            span = (length - 1) * step
            if len(rows) <= span:
                raise ValueError(f"series must have the {span + 1} rows of a window, got {len(rows)}")
            wanted = _starts_of(starts, groups, len(rows), span)
            found.append(_evaluated(ready, rows, length, step, wanted, chunk, progress))
    return found if several else found[0]


class SlidingReport(NamedTuple):
    """Whether a model can slide: ``reason`` is why not. ``shared`` are the modules that windows share, ``by_window``
    the modules and functions that run window by window.
    """

    reason: str | None
    shared: tuple[str, ...] = ()
    by_window: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return self.reason is None

    def __str__(self) -> str:
        if self.reason is not None:
            return self.reason
        lines = [f"shared by all windows: {', '.join(self.shared) or 'functions alone'}"]
        if self.by_window:
            lines.append(f"window by window: {', '.join(self.by_window)}")
        return "\n".join(lines)


def check(
    model: nn.Module, *, columns: int | None = None, length: int | None = None, step: int = 1, layout: str = "auto"
) -> SlidingReport:
    """Tell whether :func:`sliding_inference` can evaluate ``model``: a report that is true if so, and says why not.

    ``columns`` of the series are those that the first convolution takes, unless given. Without a ``length`` it is the
    first power of 2 from 8 to 4096 that works; a model that takes one length alone needs it.
    """
    _check_model(model)
    check_layout(layout)
    step = arguments.integer("step", step, 1)
    if columns is None and (columns := columns_of(model)) is None:
        return SlidingReport("model has no nn.Conv1d whose channels tell the columns of the series: pass columns=")
    columns = arguments.integer("columns", columns, 1)
    lengths = [2**i for i in range(3, 13)] if length is None else [arguments.integer("length", length, 1)]
    reason = ""
    for one in lengths:
        if layout == "auto" and length is None and one == columns:
            continue  # either way
        try:
            found = SlidingModel(model, columns, one, step, layout=layout, backend="auto", like=like_of(model)).found
        except backends.BackendError as error:
            return SlidingReport(str(error))
        except ValueError as error:
            reason = str(error)
            continue
        return SlidingReport(None, found.shared, found.rest.names)
    return SlidingReport(reason + ("" if length is not None else " (no length from 8 to 4096 works; pass length=)"))


sliding_inference.check = check  # type: ignore[attr-defined]


def check_layout(layout: str) -> None:
    """Raise ``ValueError`` for what is no layout."""
    if layout != "auto" and layout not in LAYOUTS:
        raise ValueError(f"layout must be one of auto, {', '.join(LAYOUTS)}, got {layout!r}")


def columns_of(model: nn.Module) -> int | None:
    """Return how many columns of a series the first convolution takes, ``None`` for a model without one."""
    return next((one.in_channels for one in model.modules() if isinstance(one, nn.Conv1d)), None)


def like_of(model: nn.Module) -> Tensor:
    """Return an empty tensor of the dtype and on the device of a model's first floating-point parameter or buffer."""
    for one in (*model.parameters(), *model.buffers()):
        if one.is_floating_point():
            return one.detach().new_empty(0)
    return torch.empty(0)


def _check_model(model: Any) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")


def _rows_of(series: Any) -> Tensor:
    """Return a series as a tensor ``(rows, columns)``, in its own memory."""
    if isinstance(series, Tensor) and (series.device.type != "cpu" or series.dtype in (torch.half, torch.bfloat16)):
        rows = series.detach()
        if not rows.is_floating_point():
            raise TypeError(f"series must be floating-point, got dtype {rows.dtype}")
        rows = rows.unsqueeze(1) if rows.dim() == 1 else rows
        if rows.dim() != 2 or not rows.size(1):
            raise ValueError(f"series must have shape (rows,) or (rows, columns), got {tuple(series.shape)}")
        return rows
    return tensor_of(rows_and_names(series)[0])


def _starts_of(starts: Any, groups: Any, rows: int, span: int) -> NDArray[np.int64] | None:
    """Return the windows' first rows, ``None`` for all; those that contain a change of group are left out."""
    wanted: NDArray[Any] | None = None
    if starts is not None:
        wanted = np.asarray(starts.cpu() if isinstance(starts, Tensor) else starts)
        if wanted.ndim != 1 or (wanted.size and wanted.dtype.kind not in "iu"):
            raise TypeError(f"starts must be whole numbers of shape (windows,), got {wanted.dtype} {wanted.shape}")
        wanted = wanted.astype(np.int64)
        outside = wanted[(wanted < 0) | (wanted >= rows - span)]
        if outside.size:
            raise ValueError(
                f"starts must be from 0 to {rows - span - 1}, for windows over {span + 1} of {rows} rows, "
                f"got {outside[0]}"
            )
    if groups is None:
        return wanted
    ids = np.asarray(groups.cpu() if isinstance(groups, Tensor) else groups)
    if ids.shape != (rows,):
        raise ValueError(f"groups must have shape ({rows},), an id for each row of the series, got {ids.shape}")
    changes = np.concatenate([[0], np.cumsum(ids[1:] != ids[:-1])])
    wanted = np.arange(rows - span) if wanted is None else wanted
    found: NDArray[np.int64] = wanted[changes[wanted] == changes[wanted + span]]
    return found


def _evaluated(
    ready: Callable[[int, int], SlidingModel],
    rows: Tensor,
    length: int,
    step: int,
    starts: NDArray[np.int64] | None,
    chunk: int | None,
    progress: bool,
) -> Any:
    """Return the outputs of windows of one series."""
    columns, span = rows.size(1), (length - 1) * step
    if starts is None:
        return _all(ready(columns, 1), rows, chunk, progress)
    if not len(starts):
        return tree_map(lambda one: one[:0], _all(ready(columns, 1), rows[: span + 1], chunk, False))
    wanted, places = np.unique(starts, return_inverse=True)
    # Windows that start so many rows apart, and rows of a window: what lies between is no one's.
    apart = math.gcd(step, *(int(one) for one in np.unique(wanted - wanted[0])))
    sliding, pieces = ready(columns, apart), []
    for some in np.split(wanted, np.flatnonzero(np.diff(wanted) > 2 * span) + 1):  # nor is it between these
        part = _all(sliding, rows[int(some[0]) : int(some[-1]) + span + 1 : apart], chunk, progress)
        at = torch.from_numpy((some - some[0]) // apart)
        pieces.append(part if len(at) == at[-1] + 1 else tree_map(lambda one: one[at.to(one.device)], part))  # noqa: B023
    found = pieces[0] if len(pieces) == 1 else tree_map(lambda *parts: torch.cat(parts), *pieces)
    if len(starts) == len(wanted) and bool((places[1:] > places[:-1]).all()):
        return found
    order = torch.from_numpy(places)
    return tree_map(lambda one: one[order.to(one.device)], found)


def _all(sliding: SlidingModel, rows: Tensor, chunk: int | None, progress: bool) -> Any:
    """Return the outputs of all windows of a series."""
    windows = len(rows) - sliding.span
    streams = 1
    if sliding.backend == "numba" and sliding.is_pure:
        streams = max(1, min(torch.get_num_threads(), windows // max(WORTH_A_PART, 2 * sliding.span)))
    apart = windows // streams
    each = windows - (streams - 1) * apart  # windows of each part, a few of which two parts have
    row, column = rows.stride()
    seen = each + sliding.reach
    parts = rows.as_strided((streams, seen, rows.size(1)), (apart * row, row, column), rows.storage_offset())
    at_once = chunk if chunk is not None else chunk_of(sliding)
    slide, found, done = sliding.begin(streams), Collected(windows, apart, rows.device), 0
    bar = None
    if progress:
        from tqdm import tqdm  # here, as it is needed by nothing else

        bar = tqdm(total=windows, unit="window", unit_scale=True)
    # The first piece has the rows of a window more than the others, so that all but the last give as many windows.
    for begin, end in _pieces(seen, sliding.reach, at_once):
        given = parts[:, begin:end].to(sliding.like.device, sliding.like.dtype)
        count = found.take(slide.advance(given), done)
        done += count
        if bar is not None:
            bar.update(min(count * streams, bar.total - bar.n))
    if bar is not None:
        bar.close()
    return found.result


def _pieces(rows: int, reach: int, at_once: int) -> list[tuple[int, int]]:
    ends = [*range(min(reach + at_once, rows), rows, at_once), rows]
    return list(zip([0, *ends[:-1]], ends, strict=True))


class Collected:
    """The outputs of all windows, put together piece by piece in memory that the first piece shows the shape of."""

    def __init__(self, windows: int, apart: int, device: torch.device) -> None:
        self.windows, self.apart, self.device = windows, apart, device
        self.result: Any = None

    def take(self, piece: Any, done: int) -> int:
        """Take outputs ``(streams, m, ...)`` of the windows from ``done`` on of every part; return ``m``."""
        if piece is None:
            return 0
        if self.result is None:
            self.result = tree_map(
                lambda one: torch.empty(self.windows, *one.shape[2:], dtype=one.dtype, device=self.device), piece
            )
        count = 0

        def put(target: Tensor, source: Tensor) -> Tensor:
            nonlocal count
            count = source.size(1)
            for part in range(source.size(0)):
                begin = part * self.apart + done
                target[begin : begin + count] = source[part]
            return target

        tree_map(put, self.result, piece)
        return count


def chunk_of(sliding: SlidingModel) -> int:
    """Return how many rows to compute at a time."""
    if sliding.backend == "numba" and sliding.is_pure and not _is_mixed(sliding.program):
        return CHUNK
    numbers = sum(widths(sliding.program)) + max(
        (len(one.taps) * one.weight.size(1) for one in sliding.program.steps if isinstance(one, Convolve)), default=0
    )
    return max(CHUNK_BYTES // (numbers * sliding.like.itemsize), sliding.reach // 4, 256)


def _is_mixed(program: SlidingProgram) -> bool:
    return any(isinstance(one, Rowwise) for one in program.steps)
