"""What was promised of a GPU beside what a run measured, and the card with its limits: the report's part on a GPU."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from benchmarks.gpu_plan import EAGER, FAST, FIGURES, LARGE
from benchmarks.operations.rivals import GRAPH, RNNS
from benchmarks.operations.torch_peers import TUNED
from benchmarks.tables import tabulate

ROOFLINE = 1.6
FASTER = {"forward": 2.0, "forward_backward": 1.5}
STEPS = {"imdb_convnet": 20.0, "jena_convnet": 10.0}
LEAST_SWEPT = 0.8
HEADERS = ("promised", "case", "measured", "to reach", "")

Measurement = Mapping[str, Any]


def sections(results: Mapping[str, Any], style: str) -> list[str]:
    """Return the parts, none for a run without a GPU."""
    if not results["gpu"]:
        return []
    rows = promised(results["measurements"])
    return [
        card(results["gpu"]),
        "What was promised (ratios of medians within this run):",
        tabulate(rows, HEADERS, style),
    ]


def card(gpu: Mapping[str, Any]) -> str:
    """Return the card and its limits in a line."""
    parts = [f"{gpu['card']}, driver {gpu['driver'] or 'unknown'}"]
    parts += [f"clocks {name}: {value}" for name, value in gpu["clocks"].items() if value]
    return "; ".join(parts + ([f"measured: {spelled_limits(gpu['limits'])}"] if gpu["limits"] else []))


def spelled_limits(limits: Mapping[str, Any]) -> str:
    """Return a card's limits in words."""
    rates = (f"{dtype} {rate / 1e12:.4g} TFLOP/s" for dtype, rate in limits["matrix"].items())
    return f"copy {limits['copy'] / 1e12:.4g} TB/s, matrix products {', '.join(rates)}"


def promised(measurements: Sequence[Measurement]) -> list[tuple[str, ...]]:
    """Return a row for each promised figure, measured or not."""
    return [*of_layers(measurements), *of_steps(measurements), *of_the_sweep(measurements)]


def of_layers(measurements: Sequence[Measurement]) -> Iterable[tuple[str, ...]]:
    """Yield shares of the roofline, and how many times faster layers are than torch at its best."""
    for name, dtype, (mode, target) in itertools.product(FIGURES, FAST, FASTER.items()):
        case = f"{name} {mode} {dtype} N {LARGE}"
        same = [one for one in measurements if one["suite"] == "conv_pool" and spelled(one) == case]
        best = min((one for one in same if one["ours"]), key=lambda one: one["seconds"]["median"], default=None)
        if mode == "forward":
            yield row("at most x of the roofline", case, best and best.get("roofline"), ROOFLINE, most=True)
        peers = {one["provider"]: one["seconds"]["median"] for one in same if not one["ours"]}
        for one in same:
            before = peers.get(one["baseline"], math.inf)
            peers[one["baseline"]] = min(before, one["baseline_seconds"]["median"])
        ratio, words = None, "times faster than torch's best"
        if best is not None:
            peer = min(peers, key=peers.__getitem__)
            ratio = peers[peer] / best["seconds"]["median"]
            words += f" ({peer})" if TUNED in peers else f" ({peer}; max-autotune was not measured)"
        yield row(words, case, ratio, target)


def of_steps(measurements: Sequence[Measurement]) -> Iterable[tuple[str, ...]]:
    """Yield how many times faster training steps are than the faster recurrent models', graphs on both sides."""
    for model, rnn in RNNS.items():
        found: dict[str, float] = {}
        for one in measurements:
            if (
                one["suite"] == "rivals" and one["ours"] and one["baseline"] in (rnn + GRAPH, f"seqconv {rnn}{GRAPH}")
                and one["case"]["name"] == model and one["case"]["mode"] == "training_step"
            ):  # fmt: skip
                case = spelled(one)
                found[case] = min(found.get(case, math.inf), one["ratio"]["median"])
        for case, ratio in found.items() or [(f"{model} training_step", None)]:
            yield row(f"times faster than the faster {rnn} of cuDNN's and seqconv's", case, ratio, STEPS[model])


def of_the_sweep(measurements: Sequence[Measurement]) -> Iterable[tuple[str, ...]]:
    """Yield the sweep's least ratio."""
    swept = [one for one in measurements if one["suite"] == "sweep" and one["ours"]]
    for mode in FASTER:
        ratios = [one["ratio"]["median"] for one in swept if one["case"]["mode"] == mode]
        words = f"least of {len(ratios)} random shapes, against {EAGER}"
        yield row(words, mode, min(ratios, default=None), LEAST_SWEPT)


def row(what: str, case: str, value: float | None, target: float, *, most: bool = False) -> tuple[str, ...]:
    """Return a row; ``most`` where the target is the most that a figure may be, not the least."""
    if value is None:
        return what, case, "not measured", f"{target:g}", ""
    reached = value <= target if most else value >= target
    return what, case, f"{value:.3g}", f"{target:g}", "reached" if reached else "short"


def spelled(one: Measurement) -> str:
    """Return a measurement's case but for its layout."""
    case = one["case"]
    return f"{case['name']} {case['mode']} {case['dtype']} N {case['shape']['N']}"
