"""What ``make gpu`` times, in which order: what was promised first, what takes long to get ready last.

Behind the promised figures come their reasons (each kernel alone), then a part of everything, then the rest of it: a
run that is cut off at any time has something of each kind.

A stage takes at most its share of the benchmarks' time, and never what later stages have reserved; a stage that is
done sooner leaves the rest to those behind it, and a reserve too short for anything is none. On a CPU the plan is a
rehearsal: every job, on tiny batches.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import product

from benchmarks import dispatch
from benchmarks.jobs import Job, ours
from benchmarks.operations.gather import embedding_case, window_case
from benchmarks.operations.layers import BETTER, LAYERS, has_own_rnns, layer_case, rival_case, sweep_cases
from benchmarks.operations.recurrent_gpu import CUDNN, FLASHRNN, LOOP, RECURRENT, TORCHRL, recurrent_case
from benchmarks.operations.rivals import GRAPH, RNNS, step_case
from benchmarks.operations.sliding import sliding_case
from benchmarks.operations.torch_peers import TUNED
from benchmarks.operations.wild import WILD, wild_case
from benchmarks.registry import Case

AUTO, EAGER, COMPILED = "seqconv auto", "torch eager", "torch.compile"
FIGURES = ("imdb1", "jena1")  # the layers that figures were promised of,
FAST = ("bfloat16", "tf32")  # in these precisions,
LARGE, SMALL = 4096, 128  # at the larger of these batch sizes
PASSES = ("forward", "forward_backward")
SWEPT, SWEPT_FIRST = 200, 25
REHEARSED = 2  # samples of a batch on a CPU, and shapes of the sweep
COMPILING, TUNING = 100.0, 150.0  # seconds of patience with who compiles, and who tunes


@dataclass(frozen=True)
class Stage:
    """Jobs that share a limit: ``most`` and ``reserved`` are shares of the benchmarks' time."""

    name: str
    jobs: list[Job] = field(repr=False)
    most: float = 1.0
    reserved: float = 0.0


def stages(device: str, *, quick: bool = False) -> list[Stage]:
    """Return the plan for a device; ``quick`` leaves out all but the promised figures."""
    large, small = (LARGE, SMALL) if device != "cpu" else (REHEARSED, REHEARSED)
    batches = list(dict.fromkeys((large, small)))
    figures = list(compared("conv_pool", passes(FIGURES, FAST, [large], device), ours(device), BETTER, EAGER))
    eager = [job for job in figures if job.against == EAGER]
    rest = [case for case in every_layer(device, batches) if case not in [job.case for job in figures]]
    swept = [
        replace(case, dtype="tf32") for case in sweep_cases(PASSES, SWEPT if large == LARGE else REHEARSED, device)
    ]
    random_shapes = list(compared("sweep", swept, AUTO, BETTER, seconds=0.1))
    first = len(PASSES) * (SWEPT_FIRST if device != "cpu" else 1)
    steps = of_models(device, "training_step", [small], [GRAPH], ["tf32", "bfloat16"])
    more_steps = [
        *of_models(device, "training_step", [small], [GRAPH], ["float32"]),
        *of_models(device, "training_step", [one for one in batches if one != small], [GRAPH]),
        *of_models(device, "training_step", batches[::-1], [""]),
    ]
    compiled = [replace(job, provider=COMPILED, patience=COMPILING) for job in eager]
    compiled += of_models(device, "training_step", [small], [GRAPH, ""], provider=COMPILED, patience=COMPILING)
    tuned = [replace(job, provider=TUNED, patience=TUNING) for job in eager]
    tuned += of_models(device, "training_step", [small], [GRAPH], provider=TUNED, patience=TUNING)
    predicted = [job for batch in batches[::-1] for job in of_models(device, "inference", [batch], [GRAPH, ""])]
    overheads = [Job("overhead", "dispatch", provider=mode) for mode in dispatch.MODES]
    plan = [
        Stage("limits", [Job("limits", "roofline"), *overheads]),
        Stage("promised figures", figures),
        Stage("kernels alone", list(parts(device, batches)), most=0.3),
        Stage("training steps", list(steps), most=0.25),
        Stage("models in the wild", list(in_the_wild(device)), most=0.25),
        Stage("sweep", random_shapes[:first], most=0.35),
        Stage("torch.compile", compiled, most=0.3),
        Stage("all layers", list(compared("conv_pool", rest, ours(device), BETTER, seconds=0.2)), most=0.3),
        Stage("convolution or RNN", list(rivals(device, batches)), most=0.2),
        Stage("recurrent layers", list(recurrent_layers(device, small)), most=0.25),
        Stage("gathered rows", list(gathered_layers(device)), most=0.15),
        Stage("sliding inference", list(sliding(device)), most=0.1),
        Stage("other training steps", more_steps, most=0.2),
        Stage("predictions", predicted, most=0.2),
        Stage("other random shapes", random_shapes[first:], most=0.3),
        Stage("max-autotune", tuned, reserved=0.15),
    ]
    return [plan[place] for place in (0, 1, 3, 6, -1)] if quick else plan


def compared(
    suite: str, cases: Iterable[Case], provider: str, *others: str, seconds: float = 0.4, patience: float = 60.0
) -> Iterator[Job]:
    """Yield a provider's comparisons with others, case by case."""
    for case, against in product(cases, others):
        yield Job("comparison", suite, case, provider, against, seconds, patience)


def passes(
    names: Iterable[str], dtypes: Sequence[str], batches: Sequence[int], device: str, layout: str = "channels_last"
) -> Iterator[Case]:
    """Yield layers' cases, those of a layer and batch behind each other: they share their inputs."""
    for batch, name, dtype, mode in product(batches, names, dtypes, PASSES):
        yield layer_case(name, mode, batch=batch, dtype=dtype, layout=layout, device=device)


def every_layer(device: str, batches: Sequence[int]) -> Iterator[Case]:
    """Yield all layers, precisions, batches and layouts."""
    for layout in ("channels_last", "contiguous"):
        yield from passes(LAYERS, (*FAST, "float32"), batches, device, layout)


def of_models(
    device: str,
    mode: str,
    batches: Sequence[int],
    suffixes: Sequence[str],
    dtypes: Sequence[str] = ("tf32",),
    provider: str = AUTO,
    patience: float = 60.0,
) -> Iterator[Job]:
    """Yield whole models: seqconv's beside recurrent ones and torch's, a compiled one beside torch's.

    ``suffixes``: as one graph on both sides, or as eager calls.
    """
    for suffix, batch, dtype, (name, rnn) in product(suffixes, batches, dtypes, RNNS.items()):
        case = step_case(name, mode, batch=batch, dtype=dtype, device=device)
        others = [one + suffix for one in ((*rnns(rnn, device), EAGER) if provider == AUTO else (EAGER,))]
        yield from compared("rivals", [case], provider + suffix, *others, patience=patience)


def rnns(name: str, device: str) -> list[str]:
    """Return the providers of a recurrent layer or model: torch's, and seqconv's where it has kernels of its own."""
    return [name, f"seqconv {name}"] if has_own_rnns(device) else [name]


def in_the_wild(device: str) -> Iterator[Job]:
    """Yield other people's models, fused, at the batch that is usual for them."""
    for mode, name in product(("training_step", "inference"), WILD):
        case = wild_case(name, mode, batch=REHEARSED if device == "cpu" else None, device=device)
        yield from compared("wild", [replace(case, dtype="tf32")], "seqconv", EAGER, seconds=0.3)


def parts(device: str, batches: Sequence[int]) -> Iterator[Job]:
    """Yield the kernels alone: those of promised figures first, exact float32 last."""
    mode, tokens = "forward_backward", embedding_case("imdb1", "forward_backward", device=device)
    others = [name for name in LAYERS if name not in FIGURES]
    for names, dtypes in ((FIGURES, FAST), (others, FAST), (FIGURES, ["float32"])):
        for batch, name, dtype in product(batches, names, dtypes):
            case = layer_case(name, mode, batch=batch, dtype=dtype, layout="channels_last", device=device)
            yield Job("parts", "kernels alone", case, ours(device), seconds=0.15)
        for batch, dtype in product(batches[::-1], FAST if (names, dtypes) == (FIGURES, FAST) else ()):
            case = replace(tokens, dtype=dtype, shape={**tokens.shape, "N": batch})
            yield Job("parts", "kernels alone", case, ours(device), seconds=0.15)


def rivals(device: str, batches: Sequence[int]) -> Iterator[Job]:
    """Yield one layer beside the recurrent one that it would replace."""
    for name, rnn in zip(FIGURES, ("LSTM", "GRU"), strict=True):
        for batch, dtype, mode in product(batches, (*FAST, "float32"), ("inference", "training_step")):
            case = rival_case(name, mode, batch=batch, dtype=dtype, device=device)
            yield from compared("layers", [case], f"convolution, {ours(device)}", *rnns(rnn, device), seconds=0.2)


def recurrent_layers(device: str, batch: int) -> Iterator[Job]:
    """Yield recurrent layers: against cuDNN as one graph, then as calls; with dropout inside against torch's loop.

    The kernels have not run on a GPU: their first figures are those of every cell, size and precision.
    """
    triton = "seqconv triton"  # on a CPU it serves none, and says so
    for suffix, dtype, mode, name in product((GRAPH, ""), (*FAST, "float32"), PASSES, RECURRENT):
        if suffix or dtype != "float32":
            case = recurrent_case(name, mode, batch=batch, dtype=dtype, device=device)
            yield from compared("recurrent_gpu", [case], triton + suffix, CUDNN + suffix, seconds=0.2)
    for suffix, mode, name in product((GRAPH, ""), PASSES, RECURRENT):
        case = recurrent_case(name, mode, batch=batch, dtype="tf32", dropout=True, device=device)
        yield from compared("recurrent_gpu", [case], triton + suffix, LOOP + suffix, seconds=0.2)
    for (dtype, peer), mode, name in product((("tf32", TORCHRL), ("bfloat16", FLASHRNN)), PASSES, RECURRENT):
        case = recurrent_case(name, mode, batch=batch, dtype=dtype, device=device)
        yield from compared("recurrent_gpu", [case], triton, peer, seconds=0.2)


def sliding(device: str) -> Iterator[Job]:
    """Yield all windows of a series at once, beside batches and torch's own dilated operations."""
    case = replace(sliding_case("jena_convnet", 1_000_000 if device != "cpu" else REHEARSED, device), dtype="tf32")
    yield from compared("sliding", [case], "seqconv sliding_inference", "torch, dilated", "torch eager, batches")


def gathered_layers(device: str) -> Iterator[Job]:
    """Yield first layers on embedded tokens and on windows of a series, alone."""
    cases = [embedding_case("imdb1", mode, device=device) for mode in ("inference", *PASSES)]
    for case in [*cases, *(window_case("jena1", mode, device=device) for mode in PASSES)]:
        samples = REHEARSED if device == "cpu" else case.shape["N"]
        one = replace(case, dtype="tf32", shape={**case.shape, "N": samples})
        yield from compared("gather", [one], AUTO, EAGER)
        yield from compared("gather", [one], COMPILED, EAGER, patience=COMPILING)
