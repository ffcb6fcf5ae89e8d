"""Means of the loss and the metrics over a loader's batches, exact for batches of unequal size."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from seqconv.training.feed import Batches, to_device
from seqconv.training.metrics import Metric
from seqconv.training.modes import mode
from seqconv.training.parallel import unwrapped
from seqconv.training.ranks import Ranks
from seqconv.training.sliding import Slider, Sliding, check_sliding, slider

__all__ = ["Loss", "Means", "evaluate", "model_device"]

Loss = Callable[[Tensor, Tensor], Tensor]
"""``loss(outputs, targets)``: the mean over the batch, a scalar tensor."""


def evaluate(
    model: nn.Module,
    loader: Batches,
    *,
    loss: Loss,
    metrics: Sequence[Metric] = (),
    steps: int | None = None,
    device: torch.device | str | None = None,
    sliding: Sliding = "auto",
) -> dict[str, float]:
    """Return ``{"loss": ..., metric name: ...}``: means over a pass of ``loader``, or its first ``steps`` batches.

    The loss is weighted by the number of samples in each batch, as in Keras. The model is in evaluation mode
    meanwhile and every submodule's own mode is restored. ``device`` is the model's unless given; the model is moved
    there. Raises ``ValueError`` if there is no batch.

    ``sliding="auto"`` evaluates all windows of a ``SlidingWindows`` by one pass over the rows of their series, by
    :func:`seqconv.sliding_inference`, where the model can and the series has its dtype. The loss and the metrics get
    the loader's batches either way, and so their values are the same but for rounding. ``False`` evaluates batch by
    batch; ``True`` insists, and raises ``ValueError`` with the reason where the model or the loader cannot.

    In a process group of ``torch.distributed`` every rank must make the call, each with its own part of the samples
    (``SlidingWindows(..., rank=, world_size=, uneven="keep")`` has each sample once): the means are over all of them.
    """
    ranks = Ranks()
    model = unwrapped(model)
    device = model_device(model) if device is None else torch.device(device)
    means = Means(metrics)
    check_sliding(sliding)
    with ranks.sharing_errors():
        given = slider(model.to(device), loader, sliding) or loader
        evaluate_into(means, model, given, loss=loss, steps=steps, device=device)
        means = means.over(ranks)
    require_batches(means, loader)
    return means.result()


def evaluate_into(
    means: Means,
    model: nn.Module,
    given: Batches | Slider,
    *,
    loss: Loss,
    steps: int | None,
    device: torch.device,
    after_batch: Callable[[int], bool] | None = None,
) -> None:
    """Add the batches of one pass, ``steps`` at most, to ``means``.

    ``after_batch`` is called with the number done and returns whether to go on. The model is none in
    ``DistributedDataParallel``, since ranks may have unequal numbers of batches.
    """
    with mode(model, training=False):
        batches = given.batches if isinstance(given, Slider) else partial(evaluated, model, given)
        for step, (outputs, targets) in enumerate(batches(steps, device), start=1):
            with torch.no_grad():
                means.add(loss(outputs, targets), outputs, targets)
            if after_batch is not None and not after_batch(step):
                break


def evaluated(
    model: nn.Module, loader: Batches, steps: int | None, device: torch.device
) -> Iterator[tuple[Any, Tensor]]:
    """Yield outputs and targets of the batches of one pass, ``steps`` at most."""
    for batch in itertools.islice(loader, steps):
        inputs, targets = to_device(batch, device)
        # Not inference_mode: what a layer caches for inference must stay usable in training.
        with torch.no_grad():
            outputs = model(*inputs)
        yield outputs, targets


def require_batches(means: Means, loader: Batches) -> None:
    """Raise ``ValueError`` where ``loader`` had nothing to evaluate."""
    if means.batches == 0:
        raise ValueError(f"the loader to evaluate on must yield at least one batch, got none from {type(loader)}")


class Means:
    """Running means of the loss and of ``metrics``.

    On an accelerator, reading a value would wait for every kernel before it; there values are kept as they are until
    :meth:`flush`. They are added up in the order they came, in Python's float64, so that the sums do not depend on
    when that is. ``non_finite`` is the first non-finite loss flushed: ``(batch, counted from 1, value)``.
    """

    def __init__(self, metrics: Sequence[Metric]) -> None:
        self.metrics = tuple(metrics)
        self.totals = [0.0] * (1 + len(self.metrics))
        self.weights = [0] * (1 + len(self.metrics))
        self.batches = 0
        self.non_finite: tuple[int, float] | None = None
        self.pending: list[tuple[list[Tensor], list[int]]] = []

    def add(self, loss: Tensor, outputs: Tensor, targets: Tensor) -> None:
        """Take in a batch: its mean loss, and what the metrics make of ``outputs`` and ``targets``."""
        values, weights = [loss.detach()], [len(targets)]
        if self.metrics:
            with torch.no_grad():
                outputs = outputs.detach()
                for metric in self.metrics:
                    value, weight = metric.batch_sum(outputs, targets)
                    values.append(value)
                    weights.append(weight)
        self.pending.append((values, weights))
        if values[0].device.type == "cpu":
            self.flush()

    def flush(self) -> None:
        """Add the pending values up; on an accelerator, wait for them first."""
        if len(self.pending) == 1:
            rows = [[value.item() for value in self.pending[0][0]]]
        else:
            # One wait for a whole column, not one for each value.
            columns = [torch.stack(column).tolist() for column in zip(*(row for row, _ in self.pending), strict=True)]
            rows = [list(row) for row in zip(*columns, strict=True)]
        for row, (_, weights) in zip(rows, self.pending, strict=True):
            self.batches += 1
            if self.non_finite is None and not math.isfinite(row[0]):
                self.non_finite = (self.batches, row[0])
            # The loss comes as its batch's mean, the metrics as sums.
            row[0] *= weights[0]
            for index, (value, weight) in enumerate(zip(row, weights, strict=True)):
                self.totals[index] += value
                self.weights[index] += weight
        self.pending.clear()

    def result(self) -> dict[str, float]:
        """Return the means so far by name, the loss as ``loss``; NaN where nothing was added."""
        self.flush()
        names = ["loss", *(metric.name for metric in self.metrics)]
        pairs = zip(self.totals, self.weights, strict=True)
        return dict(zip(names, (total / weight if weight else math.nan for total, weight in pairs), strict=True))

    def over(self, ranks: Ranks) -> Means:
        """Return the means over the batches of all ranks."""
        if not ranks.several:
            return self
        together = Means(self.metrics)
        for state in ranks.gather(self.state_dict()):
            together.totals = [sum(pair) for pair in zip(together.totals, state["totals"], strict=True)]
            together.weights = [sum(pair) for pair in zip(together.weights, state["weights"], strict=True)]
            together.batches += state["batches"]
        return together

    def state_dict(self) -> dict[str, Any]:
        """Return the sums so far."""
        self.flush()
        return {"totals": list(self.totals), "weights": list(self.weights), "batches": self.batches}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from the sums in ``state``."""
        self.totals, self.weights = list(state["totals"]), list(state["weights"])
        self.batches = state["batches"]


def model_device(model: nn.Module) -> torch.device:
    """Return the device of the model's first parameter or buffer; the CPU if it has none."""
    for tensor in itertools.chain(model.parameters(), model.buffers()):
        return tensor.device
    return torch.device("cpu")
