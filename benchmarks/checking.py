"""Whether a provider's numbers are right: asked of every provider before anything is timed.

The oracle is the operation's plain definition in float64, on the case's device so that the large GPU cases stay
short. A provider's largest error may be twice that of the same definition in the case's own precision, plus one
rounding of the largest value: where the definition happens to be exact, twice nothing would forbid any rounding at
all. For the same reason a ``tf32`` case allows twice what rounding the operands to TF32 costs, if that is more: cuDNN
multiplies in float32 where it likes to.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache

import torch

from benchmarks.registry import Case, Contender, Step, drawn, operation


class Wrong(AssertionError):
    """A provider's numbers differ from the oracle's by more than they may."""


@dataclass(frozen=True)
class Expected:
    """An oracle's tensors, the definition's own largest error and what a provider's may be, by the tensors' names."""

    tensors: dict[str, torch.Tensor]
    tolerance: dict[str, float]


def check(candidate: Contender) -> dict[str, tuple[float, float]]:
    """Return ``{tensor: (largest error, tolerance)}`` of the provider; raise :class:`Wrong` where it is beyond.

    A missing tensor, another shape or dtype, or a NaN where the oracle has none is wrong too.
    """
    provider = candidate.provider
    kind = operation(candidate.case.operation)
    case = candidate.case if provider.one_batch else kind.checked(candidate.case)
    placed = replace(case, layout=candidate.placed.layout)
    report: dict[str, tuple[float, float]] = {}
    with precision(case):
        function = provider.make(case)
        for values in kind.values:
            expected = expectation(case, values, provider.name if provider.definition else None)
            got = outcome(placed, function, values)
            if got.keys() != expected.tensors.keys():
                raise Wrong(f"{candidate}: gave {sorted(got)}, expected {sorted(expected.tensors)}")
            for name, oracle in expected.tensors.items():
                if got[name].shape != oracle.shape or got[name].dtype != case.torch_dtype:
                    raise Wrong(
                        f"{candidate}: {name} is {tuple(got[name].shape)} of {got[name].dtype}, "
                        f"expected {tuple(oracle.shape)} of {case.torch_dtype}"
                    )
                error = largest_error(got[name], oracle)
                tolerance = expected.tolerance[name] * provider.leeway
                if not error <= tolerance:  # NaN is not within any tolerance
                    raise Wrong(f"{candidate}: {name} is off by {error:.3g}, at most {tolerance:.3g} ({values} inputs)")
                report[f"{name}, {values}"] = (error, tolerance)
    return report


@lru_cache(maxsize=4)
def expectation(case: Case, values: str, peer: str | None) -> Expected:
    """Return the oracle of a case, or of the ``peer`` that has a definition of its own."""
    kind = operation(case.operation)
    define = (kind.providers[peer].definition if peer else None) or kind.definition
    inputs = drawn(case, values)

    def compute(dtype: torch.dtype) -> dict[str, torch.Tensor]:
        return results(kind.step(case, define(case), inputs, dtype), kind.compared(values))

    # The inputs are rounded to the case's dtype first: that rounding is no provider's error.
    inputs = {name: rounded(tensor, case.torch_dtype) for name, tensor in inputs.items()}
    with algorithms_as_they_come():
        oracle = compute(torch.float64)
    own = [compute(case.torch_dtype)]
    if case.dtype == "tf32":
        inputs = {name: tf32(tensor) for name, tensor in inputs.items()}
        own.append(compute(case.torch_dtype))
    # Exact inputs have so few bits that TF32 rounds none of them: there it is no excuse.
    rounding = kind.rounding(replace(case, dtype="float32") if values == "exact" and case.dtype == "tf32" else case)
    tolerance = {}
    for name, tensor in oracle.items():
        largest = tensor.abs().max().item() if tensor.numel() else 0.0
        tolerance[name] = 2 * max(largest_error(one[name], tensor) for one in own) + rounding * largest
    return Expected(oracle, tolerance)


def errors_beside_torch(candidate: Contender, draws: int, samples: int = 4) -> dict[str, list[float]]:
    """Return a layer's errors over those of its definition in the case's precision: a ratio for each draw of inputs.

    Errors are those of the output against float64, as ``root mean square`` and as ``largest``. The provider computes
    the whole batch, whose size may choose how; the first ``samples`` are compared. Inputs are ``input`` and
    ``gradient`` ``(N, ..)``, and parameters.
    """
    case, kind = candidate.case, operation(candidate.case.operation)
    placed = replace(case, layout=candidate.placed.layout)
    function, define = candidate.provider.make(case), kind.definition(case)
    found: dict[str, list[float]] = {"root mean square": [], "largest": []}
    for draw in range(draws):
        drawn_anew = kind.inputs(replace(case, name=f"{case.name} {draw}"), "random")
        inputs = {name: rounded(tensor, case.torch_dtype) for name, tensor in drawn_anew.items()}
        few = {name: one[:samples] if name in ("input", "gradient") else one for name, one in inputs.items()}
        exact, torchs = (
            results(kind.step(case, define, few, dtype), ("output",))["output"].double()
            for dtype in (torch.float64, case.torch_dtype)
        )
        own = results(kind.step(placed, function, inputs, case.torch_dtype), ("output",))["output"][:samples].double()
        for name, size in (("root mean square", torch.linalg.vector_norm), ("largest", torch.Tensor.max)):
            found[name].append(float(size((own - exact).abs()) / size((torchs - exact).abs())))
    return found


@contextmanager
def precision(case: Case) -> Iterator[None]:
    """Allow TF32 products for a ``tf32`` case only, and let cuDNN choose its algorithms by trying them."""
    products, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = products.allow_tf32, cudnn.allow_tf32, cudnn.benchmark
    products.allow_tf32 = cudnn.allow_tf32 = case.dtype == "tf32"
    cudnn.benchmark = True
    try:
        yield
    finally:
        products.allow_tf32, cudnn.allow_tf32, cudnn.benchmark = before


@contextmanager
def algorithms_as_they_come() -> Iterator[None]:
    """Let cuDNN try out nothing: an oracle is computed once, and its slowest algorithms are very slow in float64."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def outcome(case: Case, function: object, values: str) -> dict[str, torch.Tensor]:
    """Return what a provider's function gives for inputs of one kind."""
    kind, dtype = operation(case.operation), case.torch_dtype
    inputs = {name: rounded(tensor, dtype) for name, tensor in drawn(case, values).items()}
    return results(kind.step(case, function, inputs, dtype), kind.compared(values))


def results(step: Step, names: tuple[str, ...] | None) -> dict[str, torch.Tensor]:
    """Take the step once and return those of its results that count."""
    step.prepare()
    step.call()
    return {name: tensor for name, tensor in step.results().items() if names is None or name in names}


def rounded(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return the float ``tensor`` as ``dtype`` can hold it, in float32; integers as they are."""
    return tensor.to(dtype).float() if tensor.is_floating_point() else tensor


def tf32(tensor: torch.Tensor) -> torch.Tensor:
    """Return float32 numbers as products of TF32 see them: rounded to nearest, ties away from zero.

    Infinities, NaN and tensors of other dtypes stay.
    """
    if tensor.dtype != torch.float32:
        return tensor
    bits = (tensor.contiguous().view(torch.int32) + 0x1000) & ~0x1FFF
    return torch.where(tensor.isfinite(), bits.view(torch.float32), tensor)


def largest_error(tensor: torch.Tensor, oracle: torch.Tensor) -> float:
    """Return the largest absolute difference from ``oracle``; NaN if one of them alone has a NaN."""
    if not oracle.numel():
        return 0.0
    difference = (tensor.to(torch.float64) - oracle).abs()
    both = tensor.isnan() & oracle.isnan()
    return difference.masked_fill(both, 0.0).max().item()
