"""``seqconv.fusion_report``: what is fused in a model, what is not, and why, and what that gains."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from seqconv.fusion.calls import noted
from seqconv.fusion.matching import Match
from seqconv.fusion.program import EXPECTED, Analysis, Program, analysed, fuse, fused_calls, required
from seqconv.fusion.tracing import TENSOR, Untraceable

__all__ = ["FusionReport", "Row", "fusion_report"]

ROUNDS, SECONDS = 5, 0.02  # of timing a call, and of a round
SEARCHED = (nn.Conv1d, nn.GRU, nn.LSTM, nn.RNN)


@dataclass(frozen=True)
class Row:
    """What became of a convolution or an RNN.

    ``name`` is the module's in ``named_modules``, or of a functional convolution its weight's; ``kind`` what stands
    together; ``reason`` why it is not fused, or why what stands behind it is not. ``gain`` tells how many times faster
    the fused call is, 1 where the plain layers run; ``None`` where nothing was timed.
    """

    name: str
    fused: bool
    kind: str
    reason: str
    gain: float | None = None


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

        timed = any(row.gain is not None for row in self.rows)
        headers = ["name", "fused", "what", *(["times faster"] if timed else []), "why no more"]
        lines = []
        for row in self.rows:
            gain = "" if row.gain is None else f"{row.gain:.2f}"
            lines.append([row.name, "yes" if row.fused else "no", row.kind, *([gain] if timed else []), row.reason])
        table: str = tabulate(lines, headers=headers, disable_numparse=True)
        return table


def fusion_report(model: nn.Module, *example: Any) -> FusionReport:
    """Tell what of a model runs as fused calls, in the mode, training or evaluation, that it is in now.

    Of a model that was not fused, the rows tell what :func:`seqconv.fuse` would do, but none is ``fused``. The report
    is of calls with gradients whose arguments are tensors; those of other types may take another way through
    ``forward``. With an ``example``, arguments of a call of the model, every fused call is timed on what it gets there
    beside the layers that it replaces, with the backward pass in training mode: the rows have a ``gain``. That calls a
    copy of the model. Raises ``TypeError`` for what is no module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    rows = {row.name: row for row in _rows(model, "", is_fused=False)}
    for name, module in model.named_modules():
        if isinstance(module, SEARCHED) and name not in rows:
            rows[name] = Row(name, False, type(module).__name__, "forward does not call it with a tensor of its input")
    if example:
        gains = _gains(model, example)
        rows = {name: replace(row, gain=gains.get(name)) for name, row in rows.items()}
    return FusionReport(tuple(rows.values()))


def _gains(model: nn.Module, example: tuple[Any, ...]) -> dict[str, float]:
    """Return how many times faster fused calls are, by the names of their convolutions."""
    model = fuse(model)  # a copy: its statistics change
    with noted() as seen, torch.set_grad_enabled(model.training):
        model(*example)
    paths = {id(call): path for path, module in model.named_modules() for call in fused_calls(module)}
    gains: dict[str, float] = {}
    for call, operands, given in seen:
        gain = _gain(call, operands, given, differentiable=model.training)
        gains.update({_joined(paths[id(call)], name): gain for name in call.names})
    return gains


def _gain(call: Any, operands: tuple[Any, ...], given: tuple[Any, ...], *, differentiable: bool) -> float:
    with torch.set_grad_enabled(differentiable):
        operands, given = _leaves(operands, differentiable), _leaves(given, differentiable)
        output = call.fused(*operands)
        if output is None:
            return 1.0
        output = _first(output)
        gradient = torch.ones_like(output)

        def run(function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
            result = _first(function(*arguments))
            if differentiable and result.requires_grad:
                result.backward(gradient)

        sides = [(call.plain, given), (call.fused, operands)]
        times: list[list[float]] = [[], []]
        for _ in range(ROUNDS + 1):  # the first gets ready
            for side, found in zip(sides, times, strict=True):
                _synchronize(output)
                began, count = time.perf_counter(), 0
                while not count or time.perf_counter() - began < SECONDS:
                    run(*side)
                    count += 1
                _synchronize(output)
                found.append((time.perf_counter() - began) / count)
    plain, fused = (statistics.median(found[1:]) for found in times)
    return plain / fused


def _first(result: Any) -> Tensor:
    """Return the result of a convolution, or the output of an RNN; packed sequences' data."""
    found: Tensor = result if isinstance(result, Tensor) else _first(result[0])
    return found


def _leaves(arguments: tuple[Any, ...], differentiable: bool) -> tuple[Any, ...]:
    """Return arguments whose tensors, but for parameters, have no history."""
    return tuple(
        one.detach().requires_grad_(differentiable and one.requires_grad)
        if isinstance(one, Tensor) and not isinstance(one, nn.Parameter)
        else one
        for one in arguments
    )


def _synchronize(output: Tensor) -> None:
    if output.is_cuda:
        torch.cuda.synchronize(output.device)


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
    """Return a module's graph, or why there is none; of facts, those that give the most fused calls."""
    most: Analysis | None = None
    try:
        given = (TENSOR,) * required(module)
        for fact in EXPECTED:
            with torch.enable_grad():
                found = analysed(module, given, {}, differentiable=True, facts=[fact] * len(given))
            if most is None or _fused(found) > _fused(most):
                most = found
            if not found.asked:
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
