"""The kernels of a layer, each alone and beside its own floor: what ``make gpu`` calls "kernels alone".

A figure is the time of one call of a pass' entry point out of a CUDA graph of several, so that neither Python nor a
launch counts; what a call launches besides (packed weights, a check of tokens) does. At the larger batch the calls of
a graph take turns on so many copies of the inputs that none is still in the L2 cache; at the smaller one all read the
same inputs, which is said in the case's name: such a time may be below the floor, which is of memory. Packed weights
and partial sums are read again and again in either case, as they are in a pass that has just written them. On a CPU
calls are timed in a plain loop, to try this out. Numbers are not checked here: the comparisons and the tests do that.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

from benchmarks import roofline
from benchmarks.checking import precision
from benchmarks.operations.steps import place
from benchmarks.registry import Case, drawn
from benchmarks.runner import quantity
from benchmarks.timing import collector_off
from seqconv import backends
from seqconv.functional.floors import floor
from seqconv.kernels.geometry import Convolution, Pool
from seqconv.kernels.source import Dense, Source, Tokens, tensors_of
from seqconv.kernels.triton import replay

SUITE = "kernels alone"
BEYOND_CACHES = 256 << 20  # bytes of all copies together, beside 50 MiB of an H100's L2
MOST_COPIES = 16
LARGE = 1024  # from so many samples on, inputs are copied
FEWEST_LAUNCHES, MOST_LAUNCHES = 4, 16  # in a graph,
GRAPH_SECONDS = 0.01  # which takes about so long
FEWEST_REPLAYS, MOST_REPLAYS = 7, 25
WARM_UPS = 3
SPIN = 200_000  # cycles that keep the card busy while the host launches a graph
WEIGHTS_LAUNCH = "launch_over_weights"  # packs weights, and sums partial gradients

Thunk = Callable[[], Any]


@dataclass(frozen=True)
class Part:
    """A kernel's calls, the same work on each copy of the inputs; bytes and operations that one needs at least."""

    calls: Sequence[Thunk]
    bytes: int
    operations: int = 0


class Absent(Exception):
    """A part that the kernels do not have."""


class TimedLayer:
    """A layer's tensors on its device, and its two passes."""

    def __init__(self, case: Case, backend: str) -> None:
        self.case, self.backend = case, backend
        shape, tensors = case.shape, drawn(case, "random")
        self.weight, self.bias = (tensors[name].to(case.device, case.torch_dtype) for name in ("weight", "bias"))
        self.geometry = Convolution(), Pool(shape["P"], shape["P"]) if shape["P"] else None
        self.upstream = tensors["gradient"]
        first: Source
        if "input" in tensors:
            first = Dense(place(tensors["input"], case, case.torch_dtype))
        else:
            table = tensors["table"].to(case.device, case.torch_dtype)
            first = Tokens(tensors["tokens"].to(case.device, copy=True), table)
        self.copies = 1
        if shape["N"] >= LARGE:
            self.copies = min(-(-BEYOND_CACHES // first[0].nbytes), MOST_COPIES)
        others = [first._make((torch.empty_like(first[0]).copy_(first[0]), *first[1:])) for _ in range(self.copies - 1)]
        self.sources: list[Source] = [first, *others]

    @property
    def kernels(self) -> Any:
        """The backend's two passes, looked up when they are needed: a backend that refuses may lack what they need."""
        return floor(self.backend)

    @cached_property
    def gradients(self) -> list[tuple[Tensor, Tensor]]:
        """The output's gradient, laid out as the output, and argmax, for each copy."""
        output, argmax = self.forward(0, want_argmax=True)
        gradient = torch.empty_like(output).copy_(self.upstream)
        copies = [(torch.empty_like(gradient).copy_(gradient), argmax.clone()) for _ in range(self.copies - 1)]
        return [(gradient, argmax), *copies]

    @cached_property
    def folded(self) -> Tensor:
        """The folded table."""
        return self.fold()

    @cached_property
    def read(self) -> int:
        """How many bytes a pass reads of its input: of a table, the rows that the tokens name."""
        first = self.sources[0]
        return first[0].nbytes + (self.rows_used * first.values[0].nbytes if isinstance(first, Tokens) else 0)

    @cached_property
    def rows_used(self) -> int:
        """How many rows of the table the tokens name."""
        return int(torch.unique(self.sources[0][0]).numel())

    def forward(self, copy: int, **options: Any) -> Any:
        """Run the forward pass."""
        return self.kernels.forward(self.sources[copy], self.weight, self.bias, *self.geometry, **options)

    def backward(self, copy: int, wanted: tuple[bool, bool, bool]) -> Any:
        """Run the backward pass."""
        given = (*self.gradients[copy], self.sources[copy], self.weight, *self.geometry)
        return self.kernels.backward(*given, wanted=wanted)

    def fold(self) -> Tensor:
        """Fold the table."""
        folded: Tensor = self.kernels.fold(self.sources[0].values, self.weight)
        return folded

    def on_copies(self, call: Callable[..., Any], **options: Any) -> list[Thunk]:
        """Return a call for each copy of the inputs."""
        return [partial(call, copy, **options) for copy in range(self.copies)]

    def launch_over_weights(self, wanted: tuple[bool, bool, bool]) -> tuple[Thunk, int]:
        """Return the launch over the weights that a backward pass makes, alone, and the bytes of its other tensors."""
        module: Any = getattr(self.kernels, "dense_backward", None)
        original = getattr(module, WEIGHTS_LAUNCH, None)
        noted: list[Any] = []

        def note(*given: Any, **named: Any) -> Any:
            noted.append(partial(original, *given, **named))  # type: ignore[arg-type]
            return noted[-1]()

        if original is not None:
            setattr(module, WEIGHTS_LAUNCH, note)
            replay.forget()  # a call that is replayed calls none of its functions
            try:
                self.backward(0, wanted)
            finally:
                setattr(module, WEIGHTS_LAUNCH, original)
        if not noted:
            raise Absent(f"the {self.backend} backward pass has no such launch of its own")
        given = [one for one in (*noted[-1].args, *noted[-1].keywords.values()) if isinstance(one, Tensor)]
        return noted[-1], sum(one.nbytes for one in given if one.data_ptr() != self.weight.data_ptr())


def parts(case: Case, backend: str) -> Iterator[tuple[str, Callable[[], Part]]]:
    """Yield the names of a case's parts, what others need first, and functions that make them.

    These raise :class:`Absent` for what the kernels do not have.
    """
    layer = TimedLayer(case, backend)
    sizes, width = roofline.numbers(case), case.torch_dtype.itemsize
    product = roofline.operations_done(replace(case, mode="forward"))
    weights, output = width * (sizes["weight"] + sizes["bias"]), width * sizes["output"]
    inputs, parameters = (True, False, False), (False, True, True)  # whose gradients are wanted

    def forward(**options: Any) -> Part:
        argmax = layer.gradients[0][1].nbytes if options["want_argmax"] else 0
        return Part(layer.on_copies(layer.forward, **options), layer.read + weights + output + argmax, product)

    def folded() -> Part:
        calls = layer.on_copies(layer.forward, want_argmax=False, folded=layer.folded)
        return Part(calls, layer.sources[0][0].nbytes + layer.rows_used * layer.folded[0].nbytes + output)

    def fold() -> Part:
        table, (outputs, _, size) = layer.sources[0].values, layer.weight.shape
        work = 2 * table.numel() * outputs * size
        return Part([layer.fold], table.nbytes + weights + layer.folded.nbytes, work)

    def backward(wanted: tuple[bool, bool, bool]) -> Part:
        moved = output + layer.gradients[0][1].nbytes + weights
        moved += layer.read if wanted[1] else 0
        moved += sum(one.nbytes for one in tensors_of(layer.sources[0])[:-1]) if wanted[0] else 0
        return Part(layer.on_copies(layer.backward, wanted=wanted), moved, sum(wanted[:2]) * product)

    def over_weights(wanted: tuple[bool, bool, bool]) -> Part:
        call, size = layer.launch_over_weights(wanted)
        return Part([call], size if wanted == parameters else 2 * width * sizes["weight"])

    made: dict[str, Callable[[], Part]]
    if isinstance(layer.sources[0], Tokens):
        made = {
            "forward, direct": partial(forward, want_argmax=False, plan="direct"),
            "fold": fold,
            "forward, folded table ready": folded,
            "weight gradient, its sums too": partial(backward, parameters),
            "table gradient": partial(backward, inputs),
            "all gradients": partial(backward, (True, True, True)),
        }
    else:
        made = {
            "forward": partial(forward, want_argmax=False),
            "forward, argmax kept": partial(forward, want_argmax=True),
            "weight gradient, its sums too": partial(backward, parameters),
            "partial sums": partial(over_weights, parameters),
        }
        if case.input_gradient:
            made["input gradient, its pack too"] = partial(backward, inputs)
            made["weight pack"] = partial(over_weights, inputs)
    yield from made.items()


def refused(case: Case, backend: str) -> str | None:
    """Return why a backend does not serve a case, or ``None``."""
    layer = TimedLayer(replace(case, shape={**case.shape, "N": 1}), backend)
    try:
        given = (layer.sources[0], layer.weight, layer.bias, *layer.geometry)
        backends.explain_call(case.operation, backend, given)
    except backends.BackendError as error:
        return str(error)
    return None


def measure(
    case: Case, backend: str, seconds: float, is_broken: Callable[[], bool] = lambda: False
) -> tuple[list[dict[str, Any]], list[dict[str, str]], bool]:
    """Return a case's parts, each timed for about ``seconds``, and those that failed or do not exist, with the reason.

    A part is a dictionary for :func:`quantities`. Where ``is_broken`` after a failure, which is told last, nothing else
    is tried.
    """
    found: list[dict[str, Any]] = []
    others: list[dict[str, str]] = []
    place = {"case": part_label(case), "dtype": case.dtype}
    with torch.no_grad(), precision(case):
        for name, make in parts(case, backend):
            try:
                part = make()
                samples = seconds_of(part.calls, case.device, seconds)
            except Absent as error:
                others.append({"part": name, "left_out": str(error)})
            except Exception as error:
                message = " ".join(f"{type(error).__name__}: {error}".split())[:600]
                others.append({"part": name, "failed": message})
                if is_broken():
                    return found, others, True
            else:
                floor = {"bytes": part.bytes, "operations": part.operations}
                found.append({**place, "part": name, "samples": samples, **floor})
    return found, others, False


def part_label(case: Case) -> str:
    """Return a case's name in the report."""
    warm = "" if case.shape["N"] >= LARGE else ", inputs warm in L2"
    return f"{case.name} {case.dtype} N {case.shape['N']}{warm}"


def quantities(found: Sequence[Mapping[str, Any]], limits: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """Return what a results file has of parts: microseconds and, of a card whose limits are known, times the floor."""
    noted = []
    for one in found:
        place, samples = (SUITE, one["case"], one["part"]), one["samples"]
        noted.append(quantity(*place, "a call", "µs", (1e6 * each for each in samples)))
        if limits is not None:
            floor = roofline.longer(one["bytes"], one["operations"], one["dtype"], limits)
            noted.append(quantity(*place, "its floor", "µs", [1e6 * floor]))
            noted.append(quantity(*place, "over", "floors", (each / floor for each in samples)))
    return noted


def seconds_of(calls: Sequence[Thunk], device: str, seconds: float) -> list[float]:
    """Return the seconds of a call, block by block: out of a graph on a GPU, out of a plain loop on a CPU."""
    timed = in_a_graph if device.startswith("cuda") else in_a_loop
    with collector_off():
        return timed(calls, seconds)


def in_a_loop(calls: Sequence[Thunk], seconds: float) -> list[float]:
    """Return the seconds of a call on a CPU, of a few blocks of a few calls."""
    for call in calls:
        call()
    samples, began = [], time.perf_counter()
    while len(samples) < FEWEST_REPLAYS or (len(samples) < MOST_REPLAYS and time.perf_counter() - began < seconds):
        start = time.perf_counter()
        for number in range(FEWEST_LAUNCHES):
            calls[number % len(calls)]()
        samples.append((time.perf_counter() - start) / FEWEST_LAUNCHES)
    return samples


def in_a_graph(calls: Sequence[Thunk], seconds: float) -> list[float]:
    """Return the seconds of a call on a GPU, of several replays of one graph of several calls."""
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for number in range(WARM_UPS):
            calls[number % len(calls)]()
        typical = elapsed(calls[0])
    torch.cuda.current_stream().wait_stream(stream)
    launches = min(max(math.ceil(GRAPH_SECONDS / typical), FEWEST_LAUNCHES), MOST_LAUNCHES)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for number in range(launches):
            calls[number % len(calls)]()
    once = elapsed(graph.replay)
    replays = min(max(int(seconds / once), FEWEST_REPLAYS), MOST_REPLAYS)
    samples = [elapsed(graph.replay) / launches for _ in range(replays)]
    graph.reset()
    return samples


def elapsed(call: Thunk) -> float:
    """Return the seconds of a call on the current stream, whose launch the card does not wait for."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    torch.cuda._sleep(SPIN)  # type: ignore[no-untyped-call]
    start.record()
    call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3
