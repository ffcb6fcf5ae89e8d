"""Evaluation on windows that slide: a model's outputs for a loader's windows from one pass over their series."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from seqconv.data.windows import SlidingWindows
from seqconv.models import WindowSource
from seqconv.sliding import sliding_inference
from seqconv.sliding.inference import like_of
from seqconv.training.modes import mode

__all__ = ["Slider", "Sliding", "check_sliding", "slider"]

Sliding = Literal["auto"] | bool
"""Whether to evaluate by sliding: ``True`` insists and ``False`` evaluates batches; ``"auto"`` slides where it can."""

# Windows evaluated at a time: many, as each time the rows of a window are read beside theirs. Where a part of the model
# runs window by window, a signal would wait long for so many.
WINDOWS, WINDOWS_ONE_BY_ONE = 2**16, 2**13

# Rows of a window that take by themselves the time of one row that windows share, at least: the Jena convnet's
# validation, windows of 240 rows, took 10 ms either way with starts 8 rows apart (two threads).
WORTH = 32

log = logging.getLogger(__name__)


class Slider(NamedTuple):
    """The evaluation of ``model`` on the windows of ``loader``, which are rows of ``series``."""

    model: nn.Module
    loader: SlidingWindows
    series: Tensor
    at_once: int
    backend: str

    def batches(self, steps: int | None, device: torch.device) -> Iterator[tuple[Any, Tensor]]:
        """Yield outputs and targets of the batches of a pass, or of its first ``steps``.

        About ``at_once`` windows, whole batches of them, are computed at a time.
        """
        length, step, size = self.loader.length, self.loader.step, self.loader.batch_size or 1
        for starts, targets in self.loader.by_starts(max(self.at_once // size, 1) * size, steps):
            outputs = sliding_inference(
                self.model, self.series, length=length, step=step, starts=starts, layout="NLC", backend=self.backend
            )
            yield from zip(_split(outputs, size, device), targets.to(device).split(size), strict=True)


def _split(outputs: Any, size: int, device: torch.device) -> Iterator[Any]:
    """Yield outputs, a tensor or a tree of them, of ``size`` windows at a time."""
    leaves, tree = tree_flatten(outputs)
    for parts in zip(*(one.to(device).split(size) for one in leaves), strict=True):
        yield tree_unflatten(parts, tree)


def check_sliding(sliding: Any) -> None:
    """Raise ``ValueError`` for what is none of the choices."""
    if sliding != "auto" and not isinstance(sliding, bool):
        raise ValueError(f"sliding must be 'auto', True or False, got {sliding!r}")


def slider(model: nn.Module, loader: Any, sliding: Sliding) -> Slider | None:
    """Return how to evaluate ``model`` by sliding; ``None`` where batches are to be evaluated.

    Raises ``ValueError`` where ``sliding`` insists on what cannot be.
    """
    if sliding is False:
        return None
    with mode(model, training=False):
        found = _slider_or_reason(model, loader, insists=sliding is True)
    if isinstance(found, Slider):
        return found
    if sliding is True:
        raise ValueError(f"sliding must be 'auto' or False here, got True: {found}")
    if isinstance(loader, SlidingWindows):
        log.info("%s is evaluated in batches: %s", type(model).__name__, found)
    return None


def _slider_or_reason(model: nn.Module, loader: Any, *, insists: bool) -> Slider | str:
    if type(loader) is not SlidingWindows:  # one derived from it may yield other batches
        return f"the loader must be a SlidingWindows, got {type(loader).__name__}"
    if loader.output != "torch" or loader.batch_size is None:
        return f"the loader must yield batches of tensors, got output={loader.output!r}, batch_size={loader.batch_size}"
    apart = loader.stride * loader.world_size
    if apart * WORTH > loader.length and not insists:
        return f"windows of {loader.length} rows must have most of them in common, got starts {apart} rows apart"
    if loader.materialise:
        series = loader.series_tensor()
    else:
        sources = [one for one in model.modules() if isinstance(one, WindowSource)]
        if len(sources) != 1:
            return f"the model must have one WindowSource for windows given by their starts, got {len(sources)}"
        series = sources[0].series
    dtype = like_of(model).dtype
    if series.dtype != dtype and not insists:
        return f"the series must be of the model's dtype, {dtype}, got {series.dtype}"
    report = sliding_inference.check(  # type: ignore[attr-defined]
        model, columns=series.size(1), length=loader.length, step=loader.step, layout="NLC"
    )
    if not report:
        return str(report)
    backends = {one.backend for one in model.modules() if hasattr(one, "backend")}
    backend = "reference" if backends == {"reference"} else "auto"
    return Slider(model, loader, series, WINDOWS_ONE_BY_ONE if report.by_window else WINDOWS, backend)
