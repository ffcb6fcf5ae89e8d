"""Models in the wild: seqconv's tools put on other people's models, beside torch and what else would run them.

The models are those of :mod:`benchmarks.models`, plain torch. A training step is loss, backward and torch's Adam, the
same on all sides, dropout as published from the same seed. Everyone is timed beside torch eager.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

import seqconv
from benchmarks.models import WILD
from benchmarks.operations.models import ModelStep
from benchmarks.operations.rivals import LEEWAY
from benchmarks.operations.steps import seeded
from benchmarks.operations.torch_peers import cannot_compile, no_device, on_cpu
from benchmarks.peers import PEERS, RemoteStep, missing
from benchmarks.registry import Case, Operation, Provider

CONVERTERS = ("OpenVINO", "ONNX Runtime")
BACKEND = "seqconv"
# Gradients in float32 may be off by so much of their norm. A rounding that moves a maximum moves one position's share:
# for torch eager that was at most 0.7 % of a parameter's gradient, at the usual batches.
MOVED = 0.05
LEAST_NORM = 1e-4  # of all gradients': below it a gradient is rounding alone, as a bias' in front of a batch norm


def wild_case(name: str, mode: str, *, batch: int | None = None, device: str = "cpu") -> Case:
    """Return the case of one of ``WILD``, at its usual batch unless another is given."""
    return Case("wild", name, {"N": batch or WILD[name].batch}, mode, device=device, input_gradient=False)


class InTheWild(Operation):
    """A model's predictions, or a step of its training."""

    name = "wild"
    stateful = True
    noise = False

    def __init__(self) -> None:
        super().__init__()
        self.register(Provider("torch eager", plain, no_device, baseline=True))
        self.register(Provider("seqconv", fused, cannot_fuse, ours=True))
        self.register(Provider("seqconv prepared", prepared, cannot_prepare, ours=True))
        self.register(Provider("seqconv compiled", partial(compiled, backend=BACKEND), no_backend, ours=True))
        cannot = partial(cannot_compile, "torch.compile")
        make = partial(compiled, options={"fallback_random": True})  # the eager model's numbers for the dropout
        self.register(Provider("torch.compile", make, cannot, one_batch=True))
        for name in CONVERTERS:
            reason = partial(cannot_convert, name)
            self.register(Provider(name, remote(name), reason, leeway=LEEWAY))

    def definition(self, case: Case) -> nn.Module:
        """Return the plain model."""
        return plain(case)

    def rounding(self, case: Case) -> float:
        """Return a few roundings: a loss is one number, which can be right by chance."""
        return 8 * super().rounding(case)

    def inputs(self, case: Case, values: str) -> dict[str, Tensor]:
        """Return the batch and its targets."""
        wild, generator, n = WILD[case.name], seeded(case, values, "cpu"), case.shape["N"]
        return {"batch": wild.inputs(n, generator), "targets": wild.targets(n, generator)}

    def step(self, case: Case, function: Any, inputs: Mapping[str, Tensor], dtype: torch.dtype) -> Any:
        """Return the model at work."""
        return function(case) if isinstance(function, partial) else WildStep(case, function, inputs, dtype)


class WildStep(ModelStep):
    """A model at work, which answers for a training step's gradients in double precision.

    In float32 two right answers differ where a rounding moves a maximum: there only their norms are compared.
    """

    def __init__(self, case: Case, model: nn.Module, inputs: Mapping[str, Tensor], dtype: torch.dtype) -> None:
        self.model = model.to(case.device).train(case.mode == "training_step")
        self.dtype, self.loss = dtype, WILD[case.name].loss
        self.targets = inputs["targets"].to(case.device, copy=True)
        self.input = inputs["batch"].to(case.device, copy=True)
        self.convert(dtype)
        parameters, one = dict(model.named_parameters()), torch.ones((), dtype=dtype, device=case.device)
        super().__init__(case, self.computed, self.input, parameters, one, optimizer=torch.optim.Adam)

    def convert(self, dtype: torch.dtype) -> None:
        """Go on in another precision."""
        self.model.to(dtype)
        self.input, self.targets = (one.to(dtype) if one.is_floating_point() else one
                                    for one in (self.input, self.targets))  # fmt: skip

    def computed(self) -> Tensor:
        """Return the loss, or the predictions."""
        output: Tensor = self.model(self.input)
        return self.loss(output, self.targets) if self.model.training else output

    def results(self) -> dict[str, Tensor]:
        """Return the output; of a training step also statistics, gradients, and how many of them are far off."""
        found = {"output": self.output.detach()}
        if not self.model.training:
            return found
        buffers = dict(self.model.named_buffers())
        kept = [one.clone().flatten() for one in buffers.values() if one.is_floating_point()]
        found |= {"running statistics": torch.cat(kept)} if kept else {}
        own = self.gradients()
        self.convert(torch.float64)
        self.prepare()
        self.computed().backward()  # type: ignore[no-untyped-call]
        exact = self.gradients()
        self.prepare()
        self.convert(self.dtype)
        least = LEAST_NORM * torch.stack([one.norm() for one in exact.values()]).norm()
        off = torch.stack([(own[name] - one).norm() / one.norm().clamp(least) for name, one in exact.items()])
        found["gradients off"] = (~(off <= MOVED)).sum().to(self.dtype)  # NaN is far off, too
        found["gradients"] = torch.cat([one.flatten().to(self.dtype) for one in exact.values()])
        return found

    def gradients(self) -> dict[str, Tensor]:
        """Return the parameters' gradients, zeros where there is none."""
        return {name: torch.zeros_like(one) if one.grad is None else one.grad for name, one in self.parameters.items()}


def plain(case: Case) -> nn.Module:
    """Return the plain model, always with the same weights, and batch norms as after training: of either sign."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        model = WILD[case.name].make()
        norms: Any = (one for one in model.modules() if isinstance(one, _BatchNorm))
        for norm in norms:
            norm.weight.uniform_(-0.5, 1.5)
            norm.bias.normal_(std=0.1)
            norm.running_mean.normal_(std=0.1)
            norm.running_var.uniform_(0.5, 1.5)
    return model


def fused(case: Case) -> nn.Module:
    """Return the model as seqconv fuses it."""
    model: nn.Module = seqconv.fuse(plain(case))  # type: ignore[attr-defined]
    return model


class PreparedAtFirst(nn.Module):
    """A model that is prepared for the inputs that come first."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.prepared: Any = None

    def forward(self, batch: Tensor) -> Tensor:
        """Return the model's predictions."""
        if self.prepared is None:
            self.prepared = seqconv.prepare(self.model, batch)  # type: ignore[attr-defined]
        predictions: Tensor = self.prepared(batch)
        return predictions


def prepared(case: Case) -> nn.Module:
    """Return the model as seqconv prepares it."""
    return PreparedAtFirst(plain(case))


def compiled(case: Case, **options: Any) -> nn.Module:
    """Return the model, compiled."""
    torch.compiler.reset()  # what was compiled for other cases counts against a limit, beyond which nothing is
    return torch.compile(plain(case), dynamic=False, **options)  # type: ignore[return-value]


def remote(name: str) -> Callable[[Case], partial[RemoteStep]]:
    """Return what makes a peer's step in a process of its own."""
    return lambda _case: partial(RemoteStep, name)


def cannot_fuse(case: Case) -> str | None:
    """Return why seqconv does not fuse models, or ``None``."""
    return no_device(case) or (None if hasattr(seqconv, "fuse") else "seqconv has no fuse")


def cannot_prepare(case: Case) -> str | None:
    """Return why seqconv does not prepare models, or ``None``."""
    if reason := no_device(case):
        return reason
    if case.mode == "training_step":
        return "does not train"
    return None if hasattr(seqconv, "prepare") else "seqconv has no prepare"


def no_backend(case: Case) -> str | None:
    """Return why torch.compile cannot take seqconv for its backend, or ``None``."""
    if reason := no_device(case):
        return reason
    return None if BACKEND in torch._dynamo.list_backends(exclude_tags=()) else "seqconv is no backend of torch.compile"


def cannot_convert(name: str, case: Case) -> str | None:
    """Return why a peer cannot serve a case, or ``None``."""
    if reason := on_cpu(case):
        return reason
    if case.mode == "training_step":
        return "does not train"
    reason = missing(PEERS[name].packages)
    return f"{name} is {reason}" if reason else None


def operations() -> list[Operation]:
    """Return the operation."""
    return [InTheWild()]
