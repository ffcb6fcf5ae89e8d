"""A model that is ready to slide: its program on a backend, and the rest of it on batches of windows."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map

from seqconv import backends
from seqconv.functional.following import active
from seqconv.kernels.numba import support as numba_support
from seqconv.kernels.sliding import Evaluation, SlidingProgram, reaches
from seqconv.kernels.triton import support as triton_support
from seqconv.models.source import WindowSource
from seqconv.sliding.operations import Flattened, Refused
from seqconv.sliding.positions import ZERO, Features, Positions
from seqconv.sliding.tracing import Analysed, Rest, analyse, traced

__all__ = ["LAYOUTS", "OPERATION", "Slide", "SlidingModel", "analysed_for"]

OPERATION = "sliding_inference"
CANNOT = "model cannot be evaluated on all windows at once"
LAYOUTS = {"NCL": True, "NLC": False}

# Windows that a model is tried on, once for each form of its program.
TRIED = 5

_tried: weakref.WeakKeyDictionary[nn.Module, set[Any]] = weakref.WeakKeyDictionary()

# Bytes of the windows that the rest of a model is given at a time, and how many these are at least, however large.
# 10,000 windows of the notebook's hybrid took 80 ms with 1 MiB, 164 with 4 and 107 with 16 on two cores of a Zen 5.
WINDOWS_BYTES, FEWEST_WINDOWS = 2**20, 64


def analysed_for(
    model: nn.Module, columns: int, length: int, step: int, layout: str, like: Tensor, thinned: int = 1
) -> tuple[Analysed, str]:
    """Return what a model shares for windows in a layout, or in the one that it takes, and the layout.

    Raises ``ValueError``.
    """
    found: dict[str, Analysed] = {}
    errors: list[Refused] = []
    try:
        graph = traced(model, like.dtype)
        for name in LAYOUTS if layout == "auto" else [layout]:
            first = LAYOUTS[name]
            try:
                one = analyse(
                    model, graph, columns, length, step, channels_first=first, thinned=thinned, dtype=like.dtype
                )
                if one.rest.names:
                    _require_independence(one.rest, like)
                found[name] = one
            except Refused as error:
                errors.append(error)
    except Refused as error:
        raise ValueError(f"{CANNOT}: {error}") from error
    takes_starts = any(isinstance(one, WindowSource) for one in graph.leaves.values())
    may_be_either = len(found) == 2 or (columns == length and any(not error.misfit for error in errors))
    if layout == "auto" and found and may_be_either and not takes_starts:
        raise ValueError(
            f"layout must be 'NCL' or 'NLC' for a model that may take windows of {columns} columns and {length} rows "
            "either way, got 'auto'"
        )
    if not found:
        nearest = max(errors, key=lambda one: one.progress)
        raise ValueError(f"{CANNOT}: {nearest}") from nearest
    name, one = next(iter(found.items()))
    return one, name


def _require_independence(rest: Rest, like: Tensor) -> None:
    """Raise :class:`Refused` where the rest of a model does not compute each window by itself.

    It is run on three windows of random numbers, together and one by one: every node must give the same.
    """
    generator = torch.Generator().manual_seed(0)
    samples = []
    for one in rest.inputs:
        shape = (one.value.columns * one.value.length,) if isinstance(one, Flattened) else one.shape
        sample = torch.randn(3, *shape, generator=generator)
        sample[1] *= 30  # a window whose numbers are large, and one with a NaN, change no other
        sample.view(3, -1)[2, :1] = torch.nan
        samples.append(sample.to(like))
    together = _values_of(rest, samples)
    alone = [_values_of(rest, [sample[i : i + 1] for sample in samples]) for i in range(3)]
    for (node, value), *others in zip(together, *alone, strict=True):
        leaves = zip(tree_leaves(value), *(tree_leaves(one) for _, one in others), strict=True)
        for whole, *parts in leaves:
            if isinstance(whole, Tensor) and not _is_joined(whole, parts):
                name = str(node.target) if node.op == "call_module" else getattr(node.target, "__name__", node.target)
                raise Refused(str(name), "its result for a window depends on the other windows of the batch")


def _values_of(rest: Rest, samples: list[Tensor]) -> list[tuple[fx.Node, Any]]:
    """Return what every node of the rest gives for samples."""
    recorder = _Recorder(rest.run)  # type: ignore[arg-type]
    try:
        with torch.no_grad():
            recorder.run(*(one.clone() for one in samples))
    except Exception as error:  # whatever a model raises for what it does not take
        node = recorder.node
        name = str(node.target) if node is not None else ""
        raise Refused(name, f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}") from error
    return recorder.values


class _Recorder(fx.Interpreter):
    """Runs a graph and keeps what every node gave."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module, garbage_collect_values=False)
        self.values: list[tuple[fx.Node, Any]] = []
        self.node: fx.Node | None = None
        self.extra_traceback = False

    def run_node(self, n: fx.Node) -> Any:
        self.node = n
        found = super().run_node(n)
        self.values.append((n, tree_map(lambda one: one.clone() if isinstance(one, Tensor) else one, found)))
        return found


def _is_joined(whole: Tensor, parts: list[Tensor]) -> bool:
    """Tell whether a tensor of three windows is those of single ones, one behind the other along one axis."""
    if any(one.dim() != whole.dim() for one in parts):
        return False
    axes = [axis for axis in range(whole.dim()) if whole.size(axis) != parts[0].size(axis)]
    if not axes:
        joined = parts[0]
        if any(not torch.equal(one, joined) for one in parts):
            return False
    elif len(axes) > 1 or whole.size(axes[0]) != sum(one.size(axes[0]) for one in parts):
        return False
    else:
        joined = torch.cat(parts, axes[0])
    if not whole.is_floating_point():
        return bool(torch.equal(whole, joined))
    eps = torch.finfo(whole.dtype).eps
    scale = float(joined.abs().nan_to_num(0, 0, 0).max()) if joined.numel() else 1.0
    return bool(torch.allclose(whole, joined, rtol=0, atol=64 * eps**0.75 * scale, equal_nan=True))


def _leeway(output: Tensor) -> float:
    """Return how much outputs may differ in a trial, in parts of the greatest: more than by rounding."""
    if not output.is_floating_point():
        return 0.0
    rounding: float = 4 * torch.finfo(output.dtype).eps ** 0.5
    return max(rounding, 0.02 if output.is_cuda else 0.0)  # of TF32


class Need(NamedTuple):
    """What the rest of a model reads of a map: from the row of a window's start on, so many rows further."""

    map: int
    reach: int


class SlidingModel:
    """A model for windows of one length: its program on a backend.

    ``like`` is a tensor of the model's dtype and device, ``thinned`` as in :func:`.tracing.analyse`. Raises
    ``ValueError`` where the model cannot slide.
    """

    def __init__(
        self, model: nn.Module, columns: int, length: int, step: int, *, layout: str, backend: str, like: Tensor,
        thinned: int = 1,
    ) -> None:  # fmt: skip
        self.found, layout = analysed_for(model, columns, length, step, layout, like, thinned)
        self.like, self.span = like, (length - 1) * step
        with torch.no_grad():
            self.backend, self.start = backends.choose_named(OPERATION, backend, (self.found.program, like))
        self.needs = _needs(self.found)
        # Rows behind a window's first that are looked at: strides may leave the last ones of a window out.
        reach = reaches(self.found.program)
        self.reach = max(reach[need.map] + need.reach for need in self.needs)
        self.is_pure = not self.found.rest.names
        form = tuple((type(one), one.taps, getattr(one, "relu", None)) for one in self.found.program.steps)
        tried = form, self.found.rest.names, columns, length, step, layout, like.dtype, like.device, self.backend
        if tried not in _tried.setdefault(model, set()):
            self._try(model, columns, step, layout)
            _tried[model].add(tried)

    def _try(self, model: nn.Module, columns: int, step: int, layout: str) -> None:
        """Raise ``ValueError`` where the model itself gives other numbers for a few windows.

        What is known of torch's operations may be wrong of one that somebody has replaced.
        """
        like, generator = self.like, torch.Generator().manual_seed(0)
        series = torch.randn(self.span + TRIED, columns, generator=generator).to(like)
        windows = torch.stack([series[i : i + self.span + 1 : step] for i in range(TRIED)])
        with torch.no_grad():
            try:
                wanted = model(windows.transpose(1, 2).contiguous() if layout == "NCL" else windows)
            except Exception as error:
                if any(isinstance(one, WindowSource) for one in model.modules()):
                    return  # it need not take windows themselves
                raise ValueError(f"{CANNOT}: the model itself fails: {type(error).__name__}: {error}") from error
            leaves, form = tree_flatten(wanted)
            if any(not isinstance(one, Tensor) or one.dim() < 1 or len(one) != TRIED for one in leaves):
                kinds = ", ".join(type(one).__name__ for one in leaves)
                raise ValueError(f"{CANNOT}: the model: its output must have a row for each window, got {kinds}")
            found = self.begin(1).advance(series[None, : self.reach + TRIED])
        ours, same = tree_flatten(found)
        if same != form:
            raise ValueError(f"{CANNOT}: the model: its output for windows is {form}, and by rows {same}")
        for own, other in zip(ours, leaves, strict=True):
            if own.shape[1:] != other.shape or own.dtype != other.dtype:
                raise ValueError(
                    f"{CANNOT}: the model: its output for {TRIED} windows is {other.dtype} {tuple(other.shape)}, and "
                    f"by rows {own.dtype} {tuple(own.shape[1:])}"
                )
            difference = (own[0] - other).abs().max() if other.is_floating_point() else (own[0] != other).sum()
            scale = other.abs().max() if other.is_floating_point() else 0
            if other.numel() and difference > _leeway(other) * scale:
                raise ValueError(f"{CANNOT}: the model: by rows its output is another, by {float(difference):.3g}")

    @property
    def program(self) -> SlidingProgram:
        """The program."""
        return self.found.program

    def begin(self, streams: int) -> Slide:
        """Return an evaluation from row 0 on."""
        return Slide(self, self.start(self.program, streams, self.like))


def _needs(found: Analysed) -> list[Need]:
    """Return the rows of each output of the program that a window's inputs are in."""
    reach = dict.fromkeys(found.program.outputs, 0)
    for one in found.rest.inputs:
        value = one.value if isinstance(one, Flattened) else one
        pairs = [value.tap] if isinstance(value, Features) else zip(value.maps, value.offsets, strict=True)
        for number, offset in pairs:
            if number == ZERO:
                continue
            reach[int(number)] = max(reach[int(number)], int(offset))
    return [Need(number, reach[number]) for number in found.program.outputs]


class Slide:
    """A model on its way along series: rows in, the outputs of all windows that end in them out."""

    def __init__(self, sliding: SlidingModel, evaluation: Evaluation) -> None:
        self.sliding, self.evaluation = sliding, evaluation
        (program, self.rest, _), self.needs = sliding.found, sliding.needs
        inputs = self.rest.inputs
        # One value, computed to the end for every row.
        self.is_direct = (
            not self.rest.names
            and len(inputs) == 1
            and isinstance(inputs[0], Features)
            and inputs[0].tap.offset == 0
            and isinstance(self.rest.run(sliding.like.new_zeros(1, *inputs[0].shape)), Tensor)
        )
        self.rows: list[Tensor | None] = [None] * len(program.outputs)

    def advance(self, rows: Tensor) -> Any:
        """Take the next rows ``(streams, n, columns)``; return what the model gives for the windows that end in them.

        Every tensor of it is ``(streams, m, ...)``; ``None`` if there are none yet.
        """
        with torch.no_grad():
            new = self.evaluation.advance(rows)
            if self.is_direct:
                first: Any = self.rest.inputs[0]
                return new[0].view(*new[0].shape[:2], *first.shape) if new[0].size(1) else None
            kept = [one if old is None else torch.cat([old, one], 1) for old, one in zip(self.rows, new, strict=True)]
            count = min(one.size(1) - need.reach for one, need in zip(kept, self.needs, strict=True))
            self.rows = [one[:, max(count, 0) :] for one in kept]
            if count <= 0:
                return None
            maps = dict(zip((need.map for need in self.needs), kept, strict=True))
            pieces = [self._run(maps, begin, some) for begin, some in self._batches(kept[0].size(0), count)]
            return pieces[0] if len(pieces) == 1 else tree_map(lambda *parts: torch.cat(parts, 1), *pieces)

    def recent(self) -> Tensor:
        """Return a copy of the last rows of the series, from which a new one goes on."""
        return self.evaluation.recent()

    def _batches(self, streams: int, count: int) -> Iterator[tuple[int, int]]:
        """Return the windows of batches, by first window and number of each stream."""
        numbers = sum(
            one.value.columns * one.value.length if isinstance(one, Flattened) else int(np.prod(one.shape))
            for one in self.rest.inputs
        )
        each = max(numbers, 1) * self.sliding.like.itemsize * streams
        most = max(WINDOWS_BYTES // each, FEWEST_WINDOWS // streams, 1)
        for begin in range(0, count, most):
            yield begin, min(most, count - begin)

    def _run(self, maps: dict[int, Tensor], begin: int, count: int) -> Any:
        """Return what the rest of the model gives for some windows of each stream."""
        given = [self._input(one, maps, begin, count) for one in self.rest.inputs]
        streams = given[0].size(0)
        # Copies: the model may change what it is given.
        found = self.rest.run(*(one.flatten(0, 1).clone() for one in given))
        return tree_map(lambda one: one.view(streams, count, *one.shape[1:]), found)

    def _input(self, value: Any, maps: dict[int, Tensor], begin: int, count: int) -> Tensor:
        """Return a value of ``count`` windows of each stream, ``(streams, count, ...)``."""
        if isinstance(value, Flattened):
            return self._input(value.value, maps, begin, count).flatten(2)
        if isinstance(value, Features):
            at = begin + value.tap.offset
            rows = maps[value.tap.map][:, at : at + count]
            return rows.reshape(*rows.shape[:2], *value.shape)
        found = _positions(value, maps, begin, count)
        return found.transpose(2, 3) if value.channels_first else found


def _positions(value: Positions, maps: dict[int, Tensor], begin: int, count: int) -> Tensor:
    """Return the positions of windows, ``(streams, count, L, C)``: in place where they are evenly spaced in one map."""
    apart = np.unique(np.diff(value.offsets))
    rows = maps[int(value.maps.max())]
    if len(np.unique(value.maps)) == 1 and len(apart) < 2 and (not len(apart) or apart[0] > 0):
        at = begin + int(value.offsets[0])
        stream, row, column = rows.stride()
        shape = rows.size(0), count, value.length, value.columns
        step = int(apart[0]) if len(apart) else 1
        return rows.as_strided(shape, (stream, row, row * step, column), rows.storage_offset() + at * row)
    taken = [
        rows.new_zeros(rows.size(0), count, value.columns)
        if of == ZERO
        else maps[int(of)][:, begin + int(offset) : begin + int(offset) + count]
        for of, offset in zip(value.maps, value.offsets, strict=True)
    ]
    return torch.stack(taken, 2)


def _unfollowed(refuse: Callable[..., str | None]) -> Callable[..., str | None]:
    """Return why a floor cannot serve a program, what is active in torch included."""

    def reason(program: SlidingProgram, like: Tensor) -> str | None:
        return refuse(program, like) or active(like.device.type)

    return reason


backends.register(OPERATION, "reference", backends.attribute("seqconv.kernels.reference.sliding", "start"))
for _name, _support in (("numba", numba_support), ("triton", triton_support)):
    _start = backends.attribute(f"seqconv.kernels.{_name}.sliding", "start")
    backends.register(OPERATION, _name, _start, _unfollowed(_support.refuse_sliding))
