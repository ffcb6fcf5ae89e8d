"""``seqconv.fusion_report``: what is fused in a model, what is not, and why."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn

from seqconv.fusion.matching import Match
from seqconv.fusion.program import RANKS, Analysis, Program, analysed, required
from seqconv.fusion.tracing import TENSOR, Untraceable

__all__ = ["FusionReport", "Row", "fusion_report"]

SEARCHED = (nn.Conv1d, nn.GRU, nn.LSTM, nn.RNN)


@dataclass(frozen=True)
class Row:
    """What became of a convolution or an RNN.

    ``name`` is the module's in ``named_modules``, or of a functional convolution its weight's; ``kind`` what stands
    together; ``reason`` why it is not fused, or why what stands behind it is not.
    """

    name: str
    fused: bool
    kind: str
    reason: str


@dataclass(frozen=True)
class FusionReport:
    """The rows of a model's convolutions and RNNs; prints as a table."""

    rows: tuple[Row, ...]

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: int) -> Row:
        return self.rows[number]

    def __str__(self) -> str:
        from tabulate import tabulate  # only a report that is printed needs it

        lines = [(row.name, "yes" if row.fused else "no", row.kind, row.reason) for row in self.rows]
        table: str = tabulate(lines, headers=("name", "fused", "what", "why no more"), disable_numparse=True)
        return table


def fusion_report(model: nn.Module) -> FusionReport:
    """Tell what of a model runs as fused calls, in the mode, training or evaluation, that it is in now.

    Of a model that was not fused, the rows tell what :func:`seqconv.fuse` would do, but none is ``fused``. The report
    is of calls with gradients whose arguments are tensors; those of other types may take another way through
    ``forward``. Raises ``TypeError`` for what is no module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    rows = {row.name: row for row in _rows(model, "", is_fused=False)}
    for name, module in model.named_modules():
        if isinstance(module, SEARCHED) and name not in rows:
            rows[name] = Row(name, False, type(module).__name__, "forward does not call it with a tensor of its input")
    return FusionReport(tuple(rows.values()))


def _rows(module: nn.Module, path: str, *, is_fused: bool) -> Iterator[Row]:
    """Yield the rows of a module, from its own graph or, where it has none, from its children's."""
    is_fused = is_fused or isinstance(module.__dict__.get("forward"), Program)
    found, reason = _analysed(module)
    if found is None:
        for name, child in module.named_children():
            if isinstance(child, SEARCHED):
                yield Row(_joined(path, name), False, type(child).__name__, f"in {path or 'the model'}: {reason}")
            else:
                yield from _rows(child, _joined(path, name), is_fused=False)
        return
    for match in found.matches:
        yield _row(match, path, is_fused)
    for name in sorted(found.called):
        inner = module.get_submodule(name)
        if not isinstance(inner, SEARCHED) and any(isinstance(one, SEARCHED) for one in inner.modules()):
            yield from _rows(inner, _joined(path, name), is_fused=False)


def _analysed(module: nn.Module) -> tuple[Analysis | None, str]:
    """Return a module's graph, or why there is none; tensors have as many axes as give the most fused calls."""
    most: Analysis | None = None
    try:
        given = (TENSOR,) * required(module)
        for rank in RANKS:
            with torch.enable_grad():
                found = analysed(module, given, {}, differentiable=True, ranks=[rank] * len(given))
            if most is None or _fused(found) > _fused(most):
                most = found
            if not found.ranks:
                break
    except (Untraceable, TypeError, ValueError) as error:
        return most, str(error)
    return most, ""


def _fused(found: Analysis) -> int:
    return sum(match.fused for match in found.matches)


def _row(match: Match, path: str, is_fused: bool) -> Row:
    reason = match.reason if is_fused or not match.fused else "not yet: seqconv.fuse was not called"
    return Row(_joined(path, match.name), match.fused and is_fused, match.kind, reason)


def _joined(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
