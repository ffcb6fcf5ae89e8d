"""``seqconv.explain``: which kernel a layer, or every layer of a model, would run on an input, and why."""

from __future__ import annotations

import inspect
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, overload

import torch
from torch import nn

from seqconv.backends import BACKENDS, Explanation
from seqconv.layers.fused import Fused

__all__ = ["ModelExplanation", "explain"]


@dataclass(frozen=True)
class ModelExplanation:
    """Which backend serves the calls of a model's layers: ``calls`` are the layers' names, each with its answer.

    A layer that is called several times stands there as often, one that is not called has ``None``.
    """

    calls: tuple[tuple[str, Explanation | None], ...]

    def __str__(self) -> str:
        return "\n".join(f"{name}: {_in_short(answer)}" for name, answer in self.calls)


@overload
def explain(layer: Fused, *inputs: Any) -> Explanation: ...  # type: ignore[overload-overlap]
@overload
def explain(layer: nn.Module, *inputs: Any) -> ModelExplanation: ...
def explain(layer: nn.Module, *inputs: Any) -> Explanation | ModelExplanation:
    """Tell which backend would serve ``layer(*inputs)``, and why the others would not, without running it.

    ``layer`` is one of seqconv's layers, whose answer prints as a few lines, or a model that holds some, whose answer
    prints as a line a layer. A model is run once, hooks included, to see its layers' inputs; its buffers and all random
    number generators are left as they were.

    Raises ``TypeError`` for a module without any such layer and where ``inputs`` are missing, and what the call itself
    would raise for inputs that it rejects.
    """
    layers = {name: one for name, one in layer.named_modules() if isinstance(one, Fused)}
    if not layers:
        raise TypeError(
            f"layer must be one of seqconv's layers, or a model that holds some, got {type(layer).__name__}"
        )
    if not inputs:
        raise TypeError(f"inputs must be those of the call, {_signature(layer)}, got none")
    gpus = {parameter.device for parameter in layer.parameters() if parameter.is_cuda}
    with torch.random.fork_rng(gpus):  # a layer in training draws its dropout masks as it prepares a call
        return _answer(layer, inputs, {}) if isinstance(layer, Fused) else _answers(layer, layers, inputs)


def _answer(layer: Any, inputs: tuple[Any, ...], options: dict[str, Any]) -> Explanation:
    answer: Explanation = layer.prepare(*inputs, **options).explain(layer.backend)
    return answer


def _answers(model: nn.Module, layers: dict[str, Fused], inputs: tuple[Any, ...]) -> ModelExplanation:
    found: dict[str, list[Explanation | None]] = {name: [] for name in layers}
    with ExitStack() as hooks:
        for name, layer in layers.items():

            def look(layer: nn.Module, *given: Any, name: str = name) -> None:
                found[name].append(_answer(layer, *given))

            hooks.enter_context(layer.register_forward_pre_hook(look, with_kwargs=True))
        buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
        torch.func.functional_call(model, buffers, inputs)
    return ModelExplanation(tuple((name, answer) for name, all_ in found.items() for answer in all_ or [None]))


def _signature(layer: nn.Module) -> str:
    """Return how a module is called, and what its docstring's first line says of shapes."""
    called = str(inspect.signature(layer.forward)).replace("'", "")
    summary = (type(layer).__doc__ or "").partition("\n")[0].replace("`", "").rstrip(".")
    return f"{type(layer).__name__}.forward{called}" + (f" ({summary})" if summary else "")


def _in_short(answer: Explanation | None) -> str:
    if answer is None:
        return "is not called"
    line = f"{answer.operation}: {answer.backend}" + (f", {answer.plan}" if answer.plan else "")
    preferred = BACKENDS[: BACKENDS.index(answer.backend)]
    return line + "".join(f"; not {name}: {answer.reasons[name]}" for name in preferred)
