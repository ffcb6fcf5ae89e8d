"""The suites: which cases each has, on which device. A new suite is a new entry of ``SUITES``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from benchmarks import dispatch, fresh, growth, timing
from benchmarks.checking import errors_beside_torch
from benchmarks.models import WILD
from benchmarks.operations.gather import COLUMNS, EMBEDDINGS, ROWS, WINDOWS, embedding_case, window_case
from benchmarks.operations.layers import (
    DEEP,
    LAYERS,
    LAYOUTS,
    conv_positions,
    deep_case,
    layer_case,
    rival_case,
    sweep_cases,
)
from benchmarks.operations.models import MODELS, model_case
from benchmarks.operations.recurrent import SEQUENCES, recurrent_case
from benchmarks.operations.sliding import MODELS as SLIDING
from benchmarks.operations.sliding import sliding_case
from benchmarks.operations.wild import wild_case
from benchmarks.registry import Case, Comparison, Contender, candidates, comparisons
from benchmarks.runner import at_work, quantity

BOTH = ("inference", "training_step")
PASSES = ("forward", "forward_backward")
NUMBA = ("seqconv numba",)


@dataclass(frozen=True)
class Suite:
    """Cases of which all providers are checked, then timed.

    ``cases(device, quick)`` lists them; ``seconds`` go to the rounds of one comparison. A suite with ``measure`` has
    quantities instead of comparisons: of those ``providers`` that a case has, unless ``unavailable()`` tells why not.
    ``on_request``: takes several minutes, and runs when it is named.
    """

    name: str
    about: str
    cases: Callable[[str, bool], list[Case]] = field(repr=False)
    seconds: float = 0.75
    on_request: bool = False
    providers: tuple[str, ...] = ()
    measure: Callable[[Contender, bool], Iterator[dict[str, Any]]] | None = None
    unavailable: Callable[[], str | None] = lambda: None

    def checked(self, device: str, quick: bool) -> list[Contender]:
        """Return who is checked."""
        known = [one for case in self.cases(device, quick) for one in candidates(case)]
        return [one for one in known if not self.measure or one.provider.name in self.providers]

    def timed(self, device: str, quick: bool) -> list[Comparison]:
        """Return who is timed beside whom."""
        return [] if self.measure else [one for case in self.cases(device, quick) for one in comparisons(case)]

    def noted(self, device: str, quick: bool) -> list[Contender]:
        """Return of whom quantities are measured."""
        return self.checked(device, quick) if self.measure else []


def windows(device: str, quick: bool) -> list[Case]:
    """Return the two cases of the notebook; windows are filled on the CPU alone."""
    sizes = {"N": 128, "R": ROWS, "C": COLUMNS, "L": 240}
    found = [
        Case("windows", "lookback1440", {**sizes, "step": 6}, "fill", cold=not quick),
        Case("windows", "lookback240", {**sizes, "step": 1}, "fill"),
    ]
    return found if device == "cpu" else []


def conv_pool(device: str, quick: bool) -> list[Case]:
    """Return every layer, layout and mode on a CPU; on a GPU precisions and batch sizes instead of some of them.

    First calls are those of one layer, with and without gradients, and of no training step: torch's optimizers import
    all of torch.compile, a second for every side.
    """
    if device != "cpu":
        return [
            layer_case(name, mode, batch=batch, dtype=dtype, layout=layout, device=device)
            for batch in (4096, 128)[quick:]
            for dtype in ("bfloat16", "tf32", "float32")[: 1 if quick else None]
            for name in LAYERS
            for layout in LAYOUTS[: 2 if name == "imdb1" else 1]
            for mode in PASSES
        ]
    names, modes = (["imdb2", "jena1"], PASSES) if quick else (list(LAYERS), ("inference", *PASSES))
    cold = [("jena1", "contiguous", mode) for mode in ("inference", "forward_backward")]
    return [
        layer_case(name, mode, layout=layout, cold=(name, layout, mode) in cold)
        for name in names
        for layout in LAYOUTS[quick:]
        for mode in modes
    ]


def gather(device: str, quick: bool) -> list[Case]:
    """Return both first layers of the notebook; without the table that is folded for good in a quick run."""
    embedded = [embedding_case("imdb1", mode, device=device) for mode in ("inference", "forward_backward")[quick:]]
    return embedded + [window_case("jena1", mode, device=device) for mode in PASSES]


def gather_shapes(device: str, quick: bool) -> list[Case]:
    """Return all sizes but the notebook's, whose forward pass alone and first call are here; some in a quick run."""
    tables, series = ([one for one in known if one not in ("imdb1", "jena1")] for known in (EMBEDDINGS, WINDOWS))
    found = [embedding_case("imdb1", "forward", device=device, cold=not quick)]
    found += [embedding_case(one, mode, device=device) for one in tables for mode in ("inference", *PASSES)]
    found += [window_case(one, mode, device=device) for one in series for mode in PASSES]
    return found[:: 5 if quick else 1]


def sliding(device: str, quick: bool) -> list[Case]:
    """Return the notebook's models, the convnet on more windows, too; that one alone on few in a quick run."""
    few = [sliding_case(name, 10_000, device) for name in SLIDING]
    return few[:1] if quick else [*few, sliding_case("jena_convnet", 100_000, device)]


def layers(device: str, quick: bool) -> list[Case]:
    """Return the first layers of both models; on a GPU also in bfloat16 and TF32, and at batch 4096."""
    names = ("imdb1", "jena1")
    if device == "cpu":
        return [] if quick else [rival_case(name, mode) for name in names for mode in BOTH]
    return [
        rival_case(name, mode, batch=batch, dtype=dtype, device=device)
        for batch in (128, 4096)[: 1 if quick else None]
        for dtype in ("bfloat16", "tf32", "float32")[: 1 if quick else None]
        for name in names
        for mode in BOTH
    ]


def models(device: str, quick: bool) -> list[Case]:
    """Return the models in both modes, of those with dropout the training step; one of them in a quick run."""
    names = ["jena_convnet"] if quick else list(MODELS)
    return [model_case(name, mode, device=device) for name in names for mode in BOTH[MODELS[name].drops :]]


def peers(device: str, quick: bool) -> list[Case]:
    """Return the same cases beside other frameworks."""
    return [replace(case, operation="peers") for case in models(device, quick)]


def recurrent(device: str, quick: bool) -> list[Case]:
    """Return layers, lone sequences, dropout, and models with a GRU beside other frameworks; four in a quick run."""
    if quick:
        few = [recurrent_case("gru32", mode, device=device) for mode in BOTH]
        few += [recurrent_case("gru32", BOTH[1], dropout=True, device=device)]
        return [*few, model_case("conv_gru", BOTH[0], device=device, operation="peers")]
    small = ("gru32", "lstm32")
    found = [recurrent_case(name, mode, device=device) for name in SEQUENCES for mode in BOTH]
    found += [recurrent_case(name, mode, batch=1, device=device) for name in small for mode in BOTH]
    found += [recurrent_case(name, BOTH[1], dropout=True, device=device) for name in small]
    wholes = [("jena_gru_dropout", BOTH[1]), ("conv_gru_dropout", BOTH[1]), ("conv_gru", BOTH[0])]
    return found + [model_case(name, mode, device=device, operation="peers") for name, mode in wholes]


def wild(device: str, quick: bool) -> list[Case]:
    """Return every model's training step and inference, and inference of single samples; one model in a quick run."""
    return [
        wild_case(name, mode, batch=batch, device=device)
        for mode, batch in (("training_step", None), ("inference", None), ("inference", 1))
        for name in (["ecg_beats"] if quick else WILD)
    ]


def sweep(device: str, quick: bool) -> list[Case]:
    """Return 1,000 random shapes in both modes; the first 20 of them in a quick run."""
    return sweep_cases(PASSES, 20 if quick else 1000, device)


def peak(device: str, quick: bool) -> list[Case]:
    """Return the three pooled layers of the notebook and deeper ones, in both layouts; they are the CPU's alone."""
    if device != "cpu":
        return []
    found = [layer_case(name, "forward", layout=layout) for name in ("imdb1", "jena1", "jena2") for layout in LAYOUTS]
    found += [deep_case(name, "forward", layout=layout) for name in DEEP for layout in LAYOUTS]
    return found[:: 2 if quick else 1]


def memory(device: str, quick: bool) -> list[Case]:
    """Return all layers and two models, one layer in a quick run; on the CPU."""
    if device != "cpu":
        return []
    names = ["imdb1"] if quick else list(LAYERS)
    found = [layer_case(name, "forward_backward", layout="channels_last") for name in names]
    if not quick:
        found += [embedding_case("imdb1", "forward_backward"), window_case("jena1", "forward_backward")]
        found += [model_case(name, "training_step") for name in ("imdb_convnet", "jena_convnet")]
    return found


def share_of_peak(subject: Contender, quick: bool) -> Iterator[dict[str, Any]]:
    """Time a layer and the CPU's multiply-add peak in turn, on one thread and on all of them; beside it its errors."""
    from benchmarks.peak import PeakStep

    shape = subject.case.shape
    work = shape["N"] * conv_positions(subject.case) * shape["O"] * shape["C"] * shape["K"]
    errors = errors_beside_torch(subject, draws=3 if quick else 9)
    for threads in (1, torch.get_num_threads()):
        with thread_limit(threads):
            peak = PeakStep(threads)
            limit, own = timing.Side(peak, timing.wall_stopwatch), at_work(subject)
            for side in (limit, own):
                timing.settle(side)
            timing.take_turns([limit, own], timing.choose_rounds([limit, own], 0.2 if quick else 1.0))
        reached = [2e-9 * work / seconds for seconds in own.samples]
        possible = [2e-9 * peak.multiply_adds / seconds for seconds in limit.samples]
        place = ("peak", f"{subject.case}, {threads} threads", subject.provider.name)
        share = [100 * a / b for a, b in zip(reached, possible, strict=True)]
        yield quantity(*place, "share of the peak", "%", share)
        yield quantity(*place, "forward", "GFLOP/s", reached)
        yield quantity(*place, "peak", "GFLOP/s", possible)
        for measure, ratios in errors.items():
            yield quantity(*place, f"error / torch's, {measure}", "times", ratios)


@contextmanager
def thread_limit(count: int) -> Iterator[None]:
    """Have torch, which the kernels follow, use so many threads for a while."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def memory_of_a_step(subject: Contender, _quick: bool) -> Iterator[dict[str, Any]]:
    """Measure a step's memory in a process of its own."""
    names = {"saved": "saved", "saved_beside": "saved beside input and parameters", "peak": "peak above before"}
    for name, size in fresh.memory(subject).items():
        yield quantity("memory", str(subject.case), subject.provider.name, names[name], "MiB", [size / 2**20])


SUITES = {
    suite.name: suite
    for suite in (
        Suite("windows", "filling a batch of windows from a Jena-sized series", windows),
        Suite("conv_pool", "the fused layers of the notebook's models, in both memory layouts", conv_pool),
        Suite("gather", "first layers that read rows: an embedding's, and a series' windows", gather),
        Suite("layers", "one layer beside the LSTM and the GRU that it would replace", layers),
        Suite("recurrent", "GRU and LSTM beside torch's, with dropout beside Keras', alone and behind convolutions",
              recurrent),
        Suite("models", "the notebook's models and TextCNN as wholes", models),
        Suite("peak", "how much of the CPU's multiply-add peak the forward pass reaches, and its errors", peak,
              providers=NUMBA, measure=share_of_peak),
        Suite("dispatch", "what a call costs beside its kernel, at a shape so small that little else is left",
              lambda device, _quick: [dispatch.CASE] if device == "cpu" else [],
              providers=NUMBA, measure=dispatch.measure),
        Suite("memory", "memory of a forward and backward pass beside torch eager's", memory,
              providers=("torch eager", *NUMBA, "seqconv auto"), measure=memory_of_a_step,
              unavailable=fresh.no_memory),
        Suite("sliding", "every window of a series, by batches and by sliding_inference", sliding, 5.0, True),
        Suite("growth", "a window and a streamed row as the series grows: time and memory", growth.cases,
              on_request=True, providers=("seqconv sliding_inference",), measure=growth.measure,
              unavailable=growth.no_status),
        Suite("gather_shapes", "tables and series where folding or gathering pays least", gather_shapes, 0.5, True),
        Suite("peers", "whole models beside torch.compile, an RNN and other frameworks", peers, 2.0, True),
        Suite("wild", "published models as seqconv fuses them, beside torch and other compilers", wild, 1.0, True),
        Suite("sweep", "the fused layers at 1,000 random shapes", sweep, 0.2, True),
    )
}  # fmt: skip
