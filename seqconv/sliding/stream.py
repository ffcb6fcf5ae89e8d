"""``seqconv.Stream``: a window model on rows as they come, with the work of one row for each."""

from __future__ import annotations

import copy
from collections import deque
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from seqconv import backends
from seqconv.functional import arguments
from seqconv.sliding.inference import check_layout, columns_of, like_of
from seqconv.sliding.model import SlidingModel

__all__ = ["Stream"]


class Stream:
    """What ``model`` gives for the newest window of a series that grows row by row.

    ::

        stream = seqconv.Stream(model, length=240, step=6)
        for row in rows:
            output = stream.push(row)  # of the window that ends in this row; None before there is one

    A window is ``length`` rows, ``step`` apart, of which the row pushed last is the last; the outputs are those of
    :func:`seqconv.sliding_inference`. A row takes the same time however long the series is, a small part of a window's,
    and memory stays as it is. ``streams`` series may go on together, as many sensors' do: one call takes a row of
    each. ``columns`` is the number of columns, by default those that the first convolution takes. ``model`` is taken as
    it is now: later changes of its parameters do not show. ``layout`` and ``backend`` as in ``sliding_inference``.

    Raises ``TypeError`` and ``ValueError`` as ``sliding_inference`` does.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        length: int,
        step: int = 1,
        streams: int | None = None,
        columns: int | None = None,
        layout: str = "auto",
        backend: str = "auto",
    ) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
        length, step = arguments.integer("length", length, 1), arguments.integer("step", step, 1)
        self.streams = None if streams is None else arguments.integer("streams", streams, 1)
        if columns is None and (columns := columns_of(model)) is None:
            raise ValueError("columns must be given for a model without nn.Conv1d, got None")
        check_layout(layout)
        backends.check_name(backend)
        self.columns = arguments.integer("columns", columns, 1)
        try:
            self.model = copy.deepcopy(model)  # later changes do not show
        except Exception as error:
            raise TypeError(f"model must be one that copy.deepcopy can copy: {error}") from error
        self.options = {"length": length, "step": step, "streams": streams, "columns": columns, "layout": layout}
        self.options |= {"backend": backend}
        self.sliding = SlidingModel(
            self.model, self.columns, length, step, layout=layout, backend=backend, like=like_of(model)
        )
        self.window = length, step
        # The program may look less far than a window reaches: its results then wait for the window's last row.
        self.lag = self.sliding.span - self.sliding.reach
        self.reset()

    def reset(self) -> None:
        """Begin anew, in front of the first row."""
        self.rows = 0
        self.slide = self.sliding.begin(self.streams or 1)
        self.early: deque[tuple[int, Any]] = deque()  # results of windows that are not complete, and their numbers
        self.waiting = 0

    def push(self, rows: Any) -> Any:
        """Take a row or a block of rows; return the model's output for the window that ends in the last one.

        A row is ``(columns,)``, a block ``(n, columns)``, with ``streams`` series ``(streams, columns)`` and
        ``(streams, n, columns)``: tensors, arrays or lists of numbers. The output is a batch's without its first axis,
        or with ``streams`` for it; ``None`` where no window is complete yet, or no row was given.
        """
        found = self._advance(rows)
        if found is None:
            return None
        return tree_map(lambda one: one[:, -1] if self.streams else one[0, -1], found)

    def extend(self, rows: Any) -> Any:
        """Take a block of rows; return the outputs for all windows that end in them.

        They are ``(m, ...)``, or ``(streams, m, ...)`` with ``streams``; ``None`` where there is none.
        """
        found = self._advance(rows)
        if found is None or self.streams:
            return found
        return tree_map(lambda one: one[0], found)

    def state_dict(self) -> dict[str, Any]:
        """Return where the stream stands: how many rows it has seen, and the last ones, which are all that matters."""
        return {"rows": self.rows, "recent": self.slide.recent(), "window": self.window}

    def __reduce__(self) -> tuple[Any, ...]:
        """Copy and pickle by the state: a copy goes on by itself."""
        return _restored, (self.model, self.options, self.state_dict())

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state of a stream of the same window and number of series; the model may be another.

        Raises ``ValueError`` for a state that does not fit, and changes nothing then.
        """
        try:
            rows, recent, window = state["rows"], state["recent"], tuple(state["window"])
            fits = type(rows) is int and rows >= 0 and recent.is_floating_point() and len(window) == 2
            shape = tuple(recent.shape)
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(f"state must be a Stream's state_dict(), got {type(state).__name__}") from error
        kept = min(rows, self.sliding.span) if fits else 0
        if window != self.window or not fits or shape != (self.streams or 1, kept, self.columns):
            raise ValueError(
                f"state must be of a window of {self.window[0]} rows, {self.window[1]} apart, and of shape "
                f"{(self.streams or 1, kept, self.columns)}, got window {window}, shape {shape}"
            )
        self.reset()
        self._take(recent.to(self.sliding.like))
        self.rows = rows

    def _advance(self, rows: Any) -> Any:
        given = self._checked(rows)
        found = self._take(given)
        self.rows += given.size(1)
        return found

    def _take(self, given: Tensor) -> Any:
        found = self.slide.advance(given) if given.size(1) else None
        if not self.lag or found is None:
            return found
        count = given.size(1) if self.rows >= self.sliding.reach else tree_leaves(found)[0].size(1)
        self.early.append((count, found))
        self.waiting += count
        complete = []
        while self.waiting > self.lag:
            count, found = self.early.popleft()
            some = min(count, self.waiting - self.lag)
            self.waiting -= some
            if some < count:
                self.early.appendleft((count - some, tree_map(lambda one: one[:, some:], found)))  # noqa: B023
                found = tree_map(lambda one: one[:, :some], found)  # noqa: B023
            complete.append(found)
        if len(complete) < 2:
            return complete[0] if complete else None
        return tree_map(lambda *parts: torch.cat(parts, 1), *complete)

    def _checked(self, given: Any) -> Tensor:
        """Return rows as ``(streams, n, columns)``."""
        like = self.sliding.like
        rows: Any = given
        if not isinstance(rows, Tensor):
            try:
                rows = torch.as_tensor(rows)
            except (TypeError, ValueError, RuntimeError) as error:
                raise TypeError(f"rows must be a tensor, an array or numbers, got {type(rows).__name__}") from error
        if rows.dtype != like.dtype or rows.device != like.device:
            if not rows.is_floating_point() and rows.dtype not in (torch.int32, torch.int64):
                raise TypeError(f"rows must be numbers, got dtype {rows.dtype}")
            rows = rows.to(like)
        if rows.requires_grad:
            rows = rows.detach()
        lead = () if self.streams is None else (self.streams,)
        shape = tuple(rows.shape)
        if shape == (*lead, self.columns):
            rows = rows.reshape(self.streams or 1, 1, self.columns)
        elif len(shape) == len(lead) + 2 and (*shape[: len(lead)], shape[-1]) == (*lead, self.columns):
            rows = rows if self.streams else rows.unsqueeze(0)
        else:
            sizes = ", ".join(map(str, (*lead, self.columns)))
            block = ", ".join(map(str, (*lead, "n", self.columns)))
            raise ValueError(f"rows must have shape ({sizes}) or ({block}), got {shape}")
        found: Tensor = rows
        return found


def _restored(model: nn.Module, options: dict[str, Any], state: dict[str, Any]) -> Stream:
    stream = Stream(model, **options)
    stream.load_state_dict(state)
    return stream
