"""What ``make gpu`` times, in which order: what was promised first, what takes long to get ready last.

Behind the promised figures come their reasons (each kernel alone), then a part of everything, then the rest of it: a
run that is cut off at any time has something of each kind.

A stage takes at most its share of the benchmarks' time, and never what later stages have reserved; a stage that is
done sooner leaves the rest to those behind it, and a reserve too short for anything is none. On a CPU the plan is a
rehearsal: every job, on tiny batches.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from benchmarks import dispatch
from benchmarks.jobs import Job, ours
from benchmarks.operations.gather import embedding_case, window_case
from benchmarks.operations.layers import BETTER, LAYERS, layer_case, rival_case, sweep_cases
from benchmarks.operations.rivals import GRAPH, RNNS, step_case
from benchmarks.operations.torch_peers import TUNED as SLOW
from benchmarks.registry import Case

AUTO, EAGER, COMPILED = "seqconv auto", "torch eager", "torch.compile"
FIGURES = ("imdb1", "jena1")  # the layers that figures were promised of,
FAST = ("bfloat16", "tf32")  # in these precisions,
LARGE, SMALL = 4096, 128  # at the larger of these batch sizes
PASSES = ("forward", "forward_backward")
SWEPT, SWEPT_FIRST = 200, 25
REHEARSED = 2  # samples of a batch on a CPU, and shapes of the sweep


@dataclass(frozen=True)
class Stage:
    """Jobs that share a limit: ``most`` and ``reserved`` are shares of the benchmarks' time."""

    name: str
    jobs: list[Job] = field(repr=False)
    most: float = 1.0
    reserved: float = 0.0


def stages(device: str, *, quick: bool = False) -> list[Stage]:
    """Return the plan for a device; ``quick`` leaves out all but the promised figures."""
    batches = (LARGE, SMALL) if device != "cpu" else (REHEARSED,)
    figures = [
        Job("comparison", "conv_pool", case, ours(device), against)
        for case in passes(FIGURES, FAST, batches[:1], device)
        for against in (BETTER, EAGER)
    ]
    eager = [job for job in figures if job.against == EAGER]
    every_step, swept = list(steps(device, batches[::-1])), list(sweep(device))
    first_steps = [job for job in every_step if is_first_step(job, batches[-1])]
    first = len(PASSES) * (SWEPT_FIRST if device != "cpu" else 1)
    limits = Stage("limits", [Job("limits", "roofline"), *overheads()])
    promised = Stage("promised figures", figures)
    alone = Stage("kernels alone", list(parts(device, batches)), most=0.3)
    trained = Stage("training steps", first_steps, most=0.25)
    compiled = Stage("torch.compile", [*(peer(job, COMPILED) for job in eager), *compiled_steps(device, batches[-1])],
                     most=0.3)  # fmt: skip
    slow = [replace(peer(job, SLOW), patience=150.0) for job in eager]
    tuned = Stage("max-autotune", [*slow, *slow_steps(device, batches[-1])], reserved=0.15)
    if quick:
        return [limits, promised, trained, compiled, tuned]
    return [
        limits,
        promised,
        alone,
        trained,
        Stage("sweep", swept[:first], most=0.35),
        compiled,
        Stage("all layers", list(layers(device, batches)), most=0.3),
        Stage("convolution or RNN", list(rivals(device, batches)), most=0.2),
        Stage("gathered rows", list(gathered(device)), most=0.15),
        Stage("other training steps", [job for job in every_step if job not in first_steps], most=0.2),
        Stage("predictions", list(predictions(device, batches[::-1])), most=0.2),
        Stage("other random shapes", swept[first:], most=0.3),
        tuned,
    ]


def passes(
    names: tuple[str, ...],
    dtypes: tuple[str, ...],
    batches: tuple[int, ...],
    device: str,
    layout: str = "channels_last",
) -> Iterator[Case]:
    """Yield layers' cases, those of a layer and batch behind each other: they share their inputs."""
    for batch in batches:
        for name in names:
            for dtype in dtypes:
                for mode in PASSES:
                    yield layer_case(name, mode, batch=batch, dtype=dtype, layout=layout, device=device)


def peer(job: Job, name: str) -> Job:
    """Return a job with another provider."""
    return replace(job, provider=name, patience=100.0)


def overheads() -> Iterator[Job]:
    """Yield what a call costs the host, at a tiny shape."""
    for mode in dispatch.MODES:
        yield Job("overhead", "dispatch", provider=mode)


def steps(device: str, batches: tuple[int, ...]) -> Iterator[Job]:
    """Yield training steps: as one graph on both sides, then as eager calls."""
    for suffix in (GRAPH, ""):
        for batch in batches:
            for dtype in ("tf32", "bfloat16", "float32")[: 3 if batch == batches[0] and suffix else 1]:
                for name, rnn in RNNS.items():
                    case = step_case(name, "training_step", batch=batch, dtype=dtype, device=device)
                    for against in (rnn, EAGER):
                        yield Job("comparison", "rivals", case, AUTO + suffix, against + suffix)


def is_first_step(job: Job, batch: int) -> bool:
    """Tell whether a training step is one of those that come first: graphs of small batches in the usual precisions."""
    assert job.case is not None
    return job.provider.endswith(GRAPH) and job.case.shape["N"] == batch and job.case.dtype in FAST


def compiled_steps(device: str, batch: int) -> Iterator[Job]:
    """Yield training steps of compiled models."""
    for suffix in (GRAPH, ""):
        for name in RNNS:
            case = step_case(name, "training_step", batch=batch, dtype="tf32", device=device)
            yield Job("comparison", "rivals", case, COMPILED + suffix, EAGER + suffix, patience=100.0)


def slow_steps(device: str, batch: int) -> Iterator[Job]:
    """Yield training steps under max-autotune."""
    for name in RNNS:
        case = step_case(name, "training_step", batch=batch, dtype="tf32", device=device)
        yield Job("comparison", "rivals", case, SLOW + GRAPH, EAGER + GRAPH, patience=150.0)


def parts(device: str, batches: tuple[int, ...]) -> Iterator[Job]:
    """Yield the kernels alone: those of promised figures first, exact float32 last."""
    first = [(name, dtype) for name in FIGURES for dtype in FAST]
    others = [(name, dtype) for name in LAYERS if name not in FIGURES for dtype in FAST]
    exact = [(name, "float32") for name in FIGURES]
    mode, layout = "forward_backward", "channels_last"
    for group, tokens in ((first, FAST), (others, ()), (exact, ())):
        cases = [
            layer_case(name, mode, batch=batch, dtype=dtype, layout=layout, device=device)
            for batch in batches
            for name, dtype in group
        ]
        case = embedding_case("imdb1", mode, device=device)
        cases += [
            replace(case, dtype=dtype, shape={**case.shape, "N": batch}) for batch in batches[::-1] for dtype in tokens
        ]
        for one in cases:
            yield Job("parts", "kernels alone", one, ours(device), seconds=0.15)


def predictions(device: str, batches: tuple[int, ...]) -> Iterator[Job]:
    """Yield predictions of whole models, parameters as they are."""
    for batch in batches:
        for suffix in (GRAPH, ""):
            for name, rnn in RNNS.items():
                case = step_case(name, "inference", batch=batch, dtype="tf32", device=device)
                for against in (rnn, EAGER):
                    yield Job("comparison", "rivals", case, AUTO + suffix, against + suffix)


def layers(device: str, batches: tuple[int, ...]) -> Iterator[Job]:
    """Yield what the promised figures leave of layers, precisions, batches and layouts."""
    done = list(passes(FIGURES, FAST, batches[:1], device))
    for layout in ("channels_last", "contiguous"):
        for case in passes(tuple(LAYERS), (*FAST, "float32"), batches, device, layout):
            if case not in done:
                yield Job("comparison", "conv_pool", case, ours(device), BETTER, seconds=0.2)


def rivals(device: str, batches: tuple[int, ...]) -> Iterator[Job]:
    """Yield one layer beside the recurrent one that it would replace."""
    for name, rnn in zip(FIGURES, ("LSTM", "GRU"), strict=True):
        for batch in batches:
            for dtype in (*FAST, "float32"):
                for mode in ("inference", "training_step"):
                    case = rival_case(name, mode, batch=batch, dtype=dtype, device=device)
                    yield Job("comparison", "layers", case, f"convolution, {ours(device)}", rnn, seconds=0.2)


def gathered(device: str) -> Iterator[Job]:
    """Yield first layers on embedded tokens and on windows of a series, alone."""
    cases = [embedding_case("imdb1", mode, device=device) for mode in ("inference", *PASSES)]
    cases += [window_case("jena1", mode, device=device) for mode in PASSES]
    for case in cases:
        samples = REHEARSED if device == "cpu" else case.shape["N"]
        case = replace(case, dtype="tf32", shape={**case.shape, "N": samples})
        yield Job("comparison", "gather", case, AUTO, EAGER)
        yield Job("comparison", "gather", case, COMPILED, EAGER, patience=100.0)


def sweep(device: str) -> Iterator[Job]:
    """Yield the random shapes, in TF32, which torch's convolutions use by default.

    Both passes of a shape come behind each other: a sweep that is cut off has as many of one as of the other.
    """
    for case in sweep_cases(PASSES, SWEPT if device != "cpu" else REHEARSED, device):
        yield Job("comparison", "sweep", replace(case, dtype="tf32"), AUTO, BETTER, seconds=0.1)
