"""The GPU's command: its plan, its worker and their time, what fails on the way, its results file and its report."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from benchmarks import (
    checking,
    gpu,
    gpu_parts,
    gpu_plan,
    gpu_run,
    gpu_tests,
    gpu_warm,
    gpu_worker,
    registry,
    report,
    report_gpu,
    results,
)
from benchmarks.gpu_plan import Job, Stage
from benchmarks.operations import steps
from benchmarks.operations.conv_pool import layer_case, max_pool
from benchmarks.registry import Candidate, Case, Provider, operation
from seqconv.backends import BackendError
from seqconv.functional.passes import Passes

ROOT = Path(__file__).resolve().parents[2]
TINY = Case(
    "conv1d_relu_max_pool1d", "tiny", {"N": 2, "C": 3, "L": 12, "O": 4, "K": 3, "P": 2}, "forward_backward", "float32"
)


@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_the_plan_has_promised_figures_first_and_what_compiles_for_long_last(device):
    plan = gpu_plan.stages(device)
    first = ["limits", "promised figures", "kernels alone", "training steps", "sweep", "torch.compile"]
    assert [stage.name for stage in plan[:6]] == first
    tuned = [stage for stage in plan if any("max-autotune" in job.provider for job in stage.jobs)]
    assert tuned == [plan[-1]]
    assert sum(stage.reserved for stage in plan) < 0.5
    for job in (job for stage in plan for job in stage.jobs):
        assert Job.from_dict(json.loads(json.dumps(job.as_dict()))) == job
        if job.case is not None:
            assert job.case.device == device
            providers = operation(job.case.operation).providers
            known = {*providers, "seqconv triton", "convolution, seqconv triton"}
            if job.kind == "parts":
                assert (job.provider, job.against) == (gpu_plan.ours(device), "")
                continue
            assert {job.provider, job.against} <= known
            assert providers[job.against].baseline
    quick = gpu_plan.stages(device, quick=True)
    assert [stage.name for stage in quick[2:]] == ["training steps", "torch.compile", "max-autotune"]


def test_a_plan_that_is_cut_off_has_something_of_each_kind():
    plan = {stage.name: stage.jobs for stage in gpu_plan.stages("cuda")}
    steps = plan["training steps"]
    assert {(job.case.dtype, job.case.shape["N"]) for job in steps} == {("tf32", 128), ("bfloat16", 128)}
    assert all(job.provider.endswith(", CUDA graph") for job in steps)
    assert {job.against for job in steps} >= {"LSTM(32), CUDA graph", "GRU(32), CUDA graph"}
    swept = [job.case for job in plan["sweep"]]
    assert [case.mode for case in swept] == ["forward", "forward_backward"] * 25
    assert [case.name for case in swept[::2]] == [case.name for case in swept[1::2]]
    rest = [job.case for job in plan["other random shapes"]]
    assert len({case.name for case in (*swept, *rest)}) == 200
    assert not {case.name for case in swept} & {case.name for case in rest}
    every = [str(job) for jobs in plan.values() for job in jobs]
    assert len(every) == len(set(every))


def test_the_kernels_alone_are_those_of_all_layers():
    jobs = next(stage.jobs for stage in gpu_plan.stages("cuda") if stage.name == "kernels alone")
    found = [(job.case.name.partition(",")[0], job.case.operation, job.case.dtype, job.case.shape["N"]) for job in jobs]
    assert len(found) == len(set(found)) == 24
    pool, whole = "conv1d_relu_max_pool1d", "conv1d_relu_global_max_pool1d"
    for batch in (128, 4096):
        for dtype in ("bfloat16", "tf32"):
            assert {("imdb2", whole, dtype, batch), ("imdb1", "embedding_" + pool, dtype, batch)} <= set(found)
            assert {(name, pool, dtype, batch) for name in ("imdb1", "jena1", "jena2")} <= set(found)
        assert {name for name, _, dtype, size in found if (dtype, size) == ("float32", batch)} == {"imdb1", "jena1"}
    assert found[0] == ("imdb1", pool, "bfloat16", 4096)


def test_the_plan_has_every_promised_case():
    jobs = {str(job) for stage in gpu_plan.stages("cuda") for job in stage.jobs}
    for dtype in ("bfloat16", "tf32"):
        for layer in ("imdb1", "jena1"):
            for mode in ("forward", "forward_backward"):
                case = layer_case(layer, mode, batch=4096, dtype=dtype, layout="channels_last", device="cuda")
                for peer in ("torch.compile", "torch.compile max-autotune"):
                    assert f"{case}: {peer}, against torch eager" in jobs
                assert f"{case}: seqconv triton, against torch eager" in jobs
    assert sum("sweep" in stage.name for stage in gpu_plan.stages("cuda")) == 1
    for model, rnn in (("imdb_convnet", "LSTM(32)"), ("jena_convnet", "GRU(32)")):
        pair = f"seqconv auto, CUDA graph, against {rnn}, CUDA graph"
        assert any(job.startswith(f"{model}-training_step-tf32") and job.endswith(pair) for job in jobs)


def test_each_kernel_is_compiled_by_one_background_process():
    plan = gpu_plan.stages("cuda")
    parts = [gpu_warm.wanted(plan, number, 3) for number in range(3)]
    ours = [job for part in parts for job in part if "seqconv" in job.provider]
    assert len(ours) == len({(job.kind, str(job.case)) for job in ours})
    names = {"seqconv auto", "seqconv triton", "convolution, seqconv triton"}
    assert {job.provider for part in parts[1:] for job in part} <= names
    assert {job.provider for job in parts[0]} == {"torch.compile"}
    assert {job.case.shape["N"] for job in parts[0]} == {128, 4096}
    (alone,) = (gpu_warm.wanted(plan, 0, 1),)
    assert alone[0] == parts[1][0]
    assert alone[0].case.name == "imdb1"
    assert alone[-1].provider == "torch.compile"


def test_a_batch_is_cut_for_compilation_unless_it_decides_what_runs():
    for job in gpu_warm.wanted(gpu_plan.stages("cuda"), 1, 2):
        tokens = job.case.operation.startswith("embedding") or job.case.name.startswith("imdb_convnet")
        whole = tokens and job.kind != "parts"  # whose plans are named
        assert job.case.shape["N"] in ((128, 4096) if whole else (gpu_warm.SAMPLES,))


@pytest.fixture
def layer():
    """Give the tiny layer's operation three planted providers, and take them away again."""
    kind = operation(TINY.operation)
    before = dict(kind.providers)

    def explode(*_arguments):
        raise RuntimeError("out of\nmemory")

    kind.register(Provider("raising", lambda case: explode))
    kind.register(Provider("wrong", lambda case: lambda x, w, b, p: max_pool(x, w, 2 * b, p)))
    kind.register(Provider("absent", lambda case: None, unavailable=lambda case: "is on holiday"))
    yield kind
    kind.providers = before


def ask(provider: str, against: str = "torch eager", case: Case = TINY):
    return gpu_worker.answer(Job("comparison", "conv_pool", case, provider, against, seconds=0.01), "cpu")


def test_a_worker_compares_what_passed_its_check(layer):
    figures = ask("seqconv reference")["figures"]
    assert len(figures["samples"]) == len(figures["baseline_samples"]) >= 5
    assert figures["errors"]["weight gradient, exact"][0] == 0
    one = results.measurement(json.loads(json.dumps(figures)))
    assert one["ratio"]["median"] > 0
    assert set(results.MEASUREMENT_KEYS) <= set(one)


def test_a_worker_tells_who_failed_and_goes_on(layer):
    assert ask("raising") == {"failed": "RuntimeError: out of memory", "by": "raising", "broken": False}
    assert ask("seqconv reference", "raising")["by"] == "raising"
    wrong = ask("wrong")
    assert wrong["failed"].startswith("Wrong: ")
    assert wrong["by"] == "wrong"
    assert ask("absent") == {"left_out": "is on holiday", "by": "absent"}
    assert ask("nobody")["left_out"].endswith("has no provider of this name")
    assert "figures" in ask("seqconv reference")


def test_blocks_are_cut_to_what_they_take_in_all(monkeypatch):
    """A call measured as 10 microseconds takes a millisecond with what is around it: 5 a block, not 500."""
    now = [0.0]
    monkeypatch.setattr(gpu_worker, "time", SimpleNamespace(perf_counter=lambda: now[0]))

    def stopwatch(step, calls):
        now[0] += 1e-3 * calls
        return [1e-5] * calls

    step = SimpleNamespace(prepare=lambda: None, call=lambda: None)
    sides = [gpu_worker.timing.Side(step, stopwatch, calls=500) for _ in range(2)]
    gpu_worker.take_turns(sides, 0.12)
    assert [side.calls for side in sides] == [5, 5]
    assert [len(side.samples) for side in sides] == [10, 10]


def test_what_torch_compile_makes_is_made_once_for_check_and_timing(layer, monkeypatch):
    made = []
    planted = Provider("torch.compile, planted", lambda case: made.append(case) or max_pool)
    layer.register(planted)
    assert "figures" in ask(planted.name)
    assert made == [TINY]
    assert "figures" in ask(planted.name)
    assert made == [TINY, TINY]


def test_a_worker_s_device_is_broken_if_it_no_longer_answers(monkeypatch):
    assert not gpu_worker.is_broken("cpu")

    def lost():
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(torch.cuda, "synchronize", lost)
    assert gpu_worker.is_broken("cuda")


def test_overheads_are_quantities(monkeypatch):
    monkeypatch.setattr(gpu_worker.dispatch, "CALLS", 2)
    monkeypatch.setattr(gpu_worker, "OVERHEAD_ROUNDS", 2)
    monkeypatch.setattr(gpu_worker, "ours", lambda device: "seqconv reference")  # which compiles nothing
    found = gpu_worker.answer(Job("overhead", "dispatch", provider="no grad"), "cpu")["quantities"]
    assert {one["quantity"] for one in found} == {"call", "kernel", "torch eager", "dispatch"}
    assert all(one["unit"] == "µs" and len(one["samples"]) == 2 for one in found)


class Kernels:
    """Two passes that do what torch does, and note what they were asked for."""

    def __init__(self, monkeypatch, module: str = "conv_pool_backward"):
        self.asked, self.fails = [], {}
        self.module = importlib.import_module(f"seqconv.kernels.numba.{module}")
        monkeypatch.setattr(gpu_parts, "passes", lambda backend, operation: Passes(self.forward, self.backward, None))
        monkeypatch.setattr(
            gpu_parts.backends, "explain_call", lambda *_: (_ for _ in ()).throw(BackendError("not today"))
        )

    def note(self, name):
        self.asked.append(name)
        if name in self.fails:
            raise RuntimeError(self.fails[name])

    def forward(self, input, weight, bias, convolution, pool, *, want_argmax):
        self.note("winners" if want_argmax else "forward")
        output = max_pool(input, weight, bias, pool.size)
        return output, torch.zeros(output.shape, dtype=torch.int8) if want_argmax else None

    def backward(self, gradient, argmax, input, weight, convolution, pool, *, wanted):
        self.note(wanted)
        if hasattr(self.module, "launch_over_weights"):
            partials = None if wanted[0] else torch.zeros(7, weight.numel())
            self.module.launch_over_weights(weight, wanted[0], partials)


ALONE = Job("parts", "kernels alone", replace(TINY, layout="channels_last"), "seqconv numba", seconds=0.0)
LIMITS = {"copy": 1e9, "matrix": {"float32": 1e9}}


@pytest.fixture
def kernels(monkeypatch):
    kernels = Kernels(monkeypatch)
    monkeypatch.setattr(gpu_parts, "refused", lambda case, backend: None)
    return kernels


def asked_for(job: Job = ALONE) -> dict:
    """Return a worker's answer to a job, both as they go from one process to the other."""
    return json.loads(json.dumps(gpu_worker.answer(Job.from_dict(json.loads(json.dumps(job.as_dict()))), "cpu")))


def test_kernels_alone_become_quantities_with_their_floors(kernels):
    answer = asked_for()
    assert not answer["broken"]
    found = gpu_run.Found(limits=LIMITS)
    gpu_run.take(found, ALONE, answer, {})
    assert not found.failed
    assert {one["provider"] for one in found.left_out} == {"seqconv numba: partial sums", "seqconv numba: weight pack"}
    names = ["forward", "forward, winners kept", "weight gradient, its sums too", "input gradient, its pack too"]
    assert list(dict.fromkeys(one["provider"] for one in found.quantities)) == names
    floors = [one["samples"][0] for one in found.quantities if one["quantity"] == "its floor"]
    x, w, b, y = 2 * 3 * 12, 4 * 3 * 3, 4, 2 * 4 * 5
    products = 2 * 2 * 4 * 10 * 9 / 1e9  # 10 positions, 9 numbers each: longer than their bytes, but for the last
    size = [4 * (x + w + b + y) / 1e9, (4 * (x + w + b + y) + y) / 1e9] + 2 * [(4 * (y + x + w + b) + y) / 1e9]
    assert floors == pytest.approx([1e6 * max(products, one) for one in size])
    calls = {one["provider"]: one["samples"] for one in found.quantities if one["quantity"] == "a call"}
    over = {one["provider"]: one["samples"] for one in found.quantities if one["quantity"] == "over"}
    assert over["forward"] == pytest.approx([each / floors[0] for each in calls["forward"]])
    assert len(calls["forward"]) == gpu_parts.FEWEST_REPLAYS
    lines = gpu_run.line(ALONE, answer, LIMITS).splitlines()
    assert lines[1].startswith("  tiny float32 N 2, inputs warm in L2: forward: ")
    assert f"times its floor of {floors[0]:.4g} µs" in lines[1]
    assert len(lines) == 7
    run = results.collect([], [], command="", load=0.0, exit_code=0, quantities=found.quantities)
    text = report.terminal(json.loads(json.dumps(run)))
    assert "Kernels alone" in text
    assert "over, floors" in text


def test_without_limits_kernels_alone_have_a_time_only(kernels):
    found = gpu_run.Found()
    gpu_run.take(found, ALONE, asked_for(), {})
    assert {one["quantity"] for one in found.quantities} == {"a call"}


def test_a_layer_without_an_input_gradient_has_no_such_part(kernels):
    answer = asked_for(replace(ALONE, case=replace(ALONE.case, input_gradient=False)))
    assert "input gradient, its pack too" not in {one["part"] for one in answer["parts"]}
    assert (True, False, False) not in kernels.asked


def test_the_launch_over_the_weights_is_timed_alone(kernels, monkeypatch):
    launched = []
    monkeypatch.setattr(kernels.module, "launch_over_weights", lambda *given: launched.append(given[1]), raising=False)
    original = kernels.module.launch_over_weights
    answer = asked_for()
    assert kernels.module.launch_over_weights is original
    sizes = {one["part"]: one["bytes"] for one in answer["parts"]}
    assert sizes["weight pack"] == 2 * 4 * 36
    assert sizes["partial sums"] == 4 * 7 * 36
    timed = len(kernels.asked)
    assert launched.count(True) > kernels.asked.count((True, False, False))  # more often than the whole pass
    assert launched.count(False) > kernels.asked.count((False, True, True))
    assert timed == len(kernels.asked)


def test_a_part_that_fails_leaves_the_others(kernels):
    kernels.fails[False, True, True] = "out of\nresources"
    answer = asked_for()
    found, wrong = gpu_run.Found(), {}
    gpu_run.take(found, ALONE, answer, wrong)
    assert {"forward", "input gradient, its pack too"} <= {one["provider"] for one in found.quantities}
    case = str(ALONE.case)
    assert found.failed[0] == {
        "case": case, "provider": "seqconv numba: weight gradient, its sums too",
        "reason": "RuntimeError: out of resources",
    }  # fmt: skip
    assert not wrong  # a comparison finds out by itself
    assert "weight gradient, its sums too: FAILED: RuntimeError" in gpu_run.line(ALONE, answer)


def test_a_card_that_is_lost_is_not_asked_for_more_parts(kernels, monkeypatch):
    kernels.fails["forward"] = "illegal memory access"
    monkeypatch.setattr(gpu_worker, "is_broken", lambda device: True)
    answer = asked_for()
    assert answer["broken"]
    assert [one["part"] for one in answer["others"]] == ["forward"]
    assert not answer["parts"]


def test_who_refuses_a_layer_is_left_out(monkeypatch):
    Kernels(monkeypatch)
    assert asked_for() == {"left_out": "not today", "by": "seqconv numba"}


def test_large_batches_take_turns_on_copies_that_no_cache_holds(kernels):
    layer = gpu_parts.Layer(replace(ALONE.case, shape={**TINY.shape, "N": gpu_parts.LARGE, "L": 400}), "numba")
    (first,) = layer.inputs[0]
    assert first.nbytes == 4 * gpu_parts.LARGE * 3 * 400
    assert layer.copies == gpu_parts.MOST_COPIES == len({one.data_ptr() for (one,) in layer.inputs})
    assert all(torch.equal(one, first) and one.stride() == first.stride() for (one,) in layer.inputs)
    assert gpu_parts.Layer(ALONE.case, "numba").copies == 1
    assert "warm" in gpu_parts.label(ALONE.case)
    assert "warm" not in gpu_parts.label(layer.case)


def test_a_graph_s_time_is_that_of_its_calls(monkeypatch):
    """A card where each call takes 1 ms: ten a graph, over two copies in turn, none of them while it is replayed."""
    now, captured, called = [0.0], [], []

    class Event:
        def __init__(self, enable_timing):
            pass

        def record(self):
            self.at = now[0]

        def synchronize(self):
            pass

        def elapsed_time(self, other):
            return 1e3 * (other.at - self.at)

    class Graph:
        def replay(self):
            now[0] += 1e-3 * len(captured)

        def reset(self):
            pass

    @contextlib.contextmanager
    def graph(_graph):
        before = len(called)
        yield
        captured.extend(called[before:])

    stream = SimpleNamespace(wait_stream=lambda other: None)
    fake = SimpleNamespace(
        Event=Event, CUDAGraph=Graph, graph=graph, Stream=lambda: stream, current_stream=lambda: stream,
        stream=lambda one: contextlib.nullcontext(), _sleep=lambda cycles: None,
    )  # fmt: skip
    monkeypatch.setattr(torch, "cuda", fake)

    def call(copy):
        called.append(copy)
        now[0] += 1e-3

    samples = gpu_parts.in_a_graph([lambda: call(0), lambda: call(1)], 0.205)
    monkeypatch.undo()
    assert captured == [0, 1] * 5
    assert samples == pytest.approx([1e-3] * 20)
    assert len(called) == gpu_parts.WARM_UPS + 1 + 10


def test_large_batches_on_a_gpu_are_checked_with_fewer_samples_but_what_is_compiled_for_them(monkeypatch):
    kind = operation("conv1d_relu_max_pool1d")
    case = layer_case("jena1", "forward", batch=4096, device="cuda")
    assert kind.checked(case) == replace(case, shape={**case.shape, "N": 1024})
    assert kind.checked(replace(case, device="cpu")).shape["N"] == 4096
    assert kind.checked(layer_case("jena1", "forward", device="cuda")).shape["N"] == 128
    monkeypatch.setattr(checking, "outcome", lambda case, function, values: {})
    monkeypatch.setattr(checking, "expectation", lambda case, *_: checked.append(case) or checking.Expected({}, {}))
    for name, samples in (("torch eager", 1024), ("torch.compile", 4096)):
        checked: list[Case] = []
        checking.check(Candidate(case, kind.providers[name]))
        assert {one.shape["N"] for one in checked} == {samples}


def test_a_definition_in_exact_float32_does_not_forbid_tf32():
    """A CPU has no TF32, as cuDNN has none in its fastest algorithm for some shapes; a provider may still use it."""
    kind = operation(TINY.operation)

    def truncated(case):
        def compute(x, w, b, p):
            x, w = ((one.view(torch.int32) + 4096 & -8192).view(torch.float32) for one in (x, w))
            return max_pool(x, w, b, p)

        return compute

    one = Candidate(replace(TINY, dtype="tf32", mode="forward"), Provider("TF32", truncated))
    errors = checking.check(one)
    assert errors["output, random"][0] > 1e-5
    assert errors["output, exact"][0] == 0
    assert errors["output, exact"][1] < 1e-5
    assert kind.rounding(replace(TINY, dtype="bfloat16")) == 2**-7
    with pytest.raises(checking.Wrong, match="random"):
        checking.check(replace(one, case=replace(one.case, dtype="float32")))


def test_what_is_missing_for_a_call_s_overhead_is_left_out(monkeypatch):
    def refuse(*_):
        raise BackendError("the package numba is not installed")

    monkeypatch.setattr(gpu_worker.dispatch, "calls", refuse)
    answer = gpu_worker.answer(Job("overhead", "dispatch", provider="no grad"), "cpu")
    assert answer == {"left_out": "the package numba is not installed", "by": "no grad"}


def test_numbers_are_drawn_on_the_device_that_is_to_have_them(monkeypatch):
    asked = []

    class Generator:
        def __init__(self, device):
            asked.append(device)

        def manual_seed(self, seed):
            asked.append(seed)

    monkeypatch.setattr(torch, "Generator", Generator)
    case = layer_case("jena1", "forward", device="cuda")
    for available in (True, False):
        monkeypatch.setattr(torch.cuda, "is_available", lambda available=available: available)
        steps.seeded(case, "random")
    monkeypatch.undo()
    assert asked[::2] == ["cuda", "cpu"]
    assert asked[1] == asked[3]


def test_the_inputs_of_two_layers_are_drawn_once(monkeypatch):
    """Random ones and exact ones of each: a check of the second layer must not drop the first layer's."""
    drawn_for = []
    kind = operation(TINY.operation)
    inputs = kind.inputs
    monkeypatch.setattr(kind, "inputs", lambda case, values: drawn_for.append(values) or inputs(case, values))
    registry._drawn.cache_clear()
    for _ in range(2):
        for name in ("first", "second"):
            for values in kind.values:
                registry.drawn(replace(TINY, name=name), values)
    assert drawn_for == [*kind.values, *kind.values]


WORKER = """
import json, sys, time
for line in sys.stdin:
    job = json.loads(line)
    name = job["provider"]
    if name == "hangs":
        time.sleep(60)
    if name == "dies":
        sys.exit("the last words of\\na worker")
    figures = dict(case=job["case"], provider=name, ours=True, baseline=job["against"], suite=job["suite"],
                   calls_per_block=1, samples=[1e-3] * 5, baseline_samples=[2e-3] * 5, errors={}, baseline_layout="any")
    failed = {"failed": "RuntimeError: no", "by": name, "broken": name == "breaks"}
    print(json.dumps(failed if name in ("fails", "breaks") else {"figures": figures}), flush=True)
"""
FAKE = [sys.executable, "-c", WORKER]


def jobs(*names: str) -> list[Job]:
    return [
        Job("comparison", "conv_pool", replace(TINY, name=str(number)), name, "peer", patience=5.0)
        for number, name in enumerate(names)
    ]


def test_a_run_survives_whatever_a_job_does(capsys):
    saved = []
    plan = [Stage("first", jobs("good", "fails", "good", "breaks", "good", "dies")), Stage("second", jobs("good"))]
    found = gpu_run.run(plan, "cpu", 60.0, save=lambda found: saved.append(len(found.figures)), command=FAKE)
    assert saved == [3, 4]
    assert [one["provider"] for one in found.failed] == ["fails", "breaks", "dies"]
    assert found.failed[2]["reason"] == "the process ended: the last words of a worker"
    assert not found.left_out
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "benchmarks: first: 6 jobs"
    assert lines[1].startswith("[1/7, ")
    assert lines[1].endswith("good, against peer: 1 ms, 2x (2-2)")


def test_who_does_not_answer_is_ended_and_the_next_is_asked():
    (slow, *rest) = jobs("hangs", "good")
    began = time.monotonic()
    found = gpu_run.run([Stage("one", [replace(slow, patience=0.5), *rest])], "cpu", 60.0, command=FAKE)
    assert time.monotonic() - began < 20
    assert found.failed[0]["reason"] == "no answer within 0 s"
    assert len(found.figures) == 1


def test_who_is_under_way_at_the_end_did_not_fail():
    found = gpu_run.run([Stage("one", jobs("hangs"))], "cpu", 2.0, command=FAKE)
    assert not found.failed
    assert found.left_out[0]["reason"] == "the run's time was over while it was under way"


def test_a_failure_is_not_met_twice():
    twice = [*jobs("fails"), replace(jobs("good")[0], against="fails"), *jobs("good")]
    found = gpu_run.run([Stage("one", twice)], "cpu", 60.0, command=FAKE)
    assert len(found.failed) == len(found.figures) == 1
    assert found.left_out[0]["reason"] == "fails failed on this case"


def test_workers_are_not_started_for_ever(monkeypatch):
    monkeypatch.setattr(gpu_run, "MOST_STARTS", 2)
    found = gpu_run.run([Stage("one", jobs("breaks", "breaks", "good"))], "cpu", 60.0, command=FAKE)
    assert len(found.failed) == 2
    assert found.left_out[0]["reason"] == "2 workers broke before"


def test_time_is_shared_and_what_does_not_fit_is_listed(monkeypatch):
    """Each job takes ten seconds of a clock that we move; 100 seconds, of which the last stage has reserved 30."""
    now = [0.0]
    monkeypatch.setattr(gpu_run, "time", SimpleNamespace(monotonic=lambda: now[0]))

    def slowly(self, job, patience, left):
        now[0] += 10
        return {"figures": {**gpu_figure("seqconv auto", 1.0), "provider": job.provider}}

    monkeypatch.setattr(gpu_run.Worker, "ask", slowly)
    many = jobs(*["good"] * 9)
    plan = [Stage("a", many[:2]), Stage("b", many, most=0.3), Stage("c", many), Stage("d", many, reserved=0.3)]
    found = gpu_run.run(plan, "cpu", 100.0, command=FAKE)
    reasons = [one["reason"] for one in found.left_out]
    assert [reasons.count(f"the time for {name!r} was over") for name in "abcd"] == [0, 6, 7, 6]
    assert len(found.figures) == 2 + 3 + 2 + 3
    assert len(gpu_run.run(plan, "cpu", -1.0, command=FAKE).left_out) == 29
    now[0] = 0.0
    found = gpu_run.run([Stage("c", many), Stage("d", many, reserved=0.3)], "cpu", 90.0, command=FAKE)
    assert [one["reason"] for one in found.left_out] == ["the time for 'd' was over"] * 9  # 27 seconds are no reserve


def gpu_figure(provider: str, seconds: float, baseline: str = "torch eager", **more):
    case = layer_case("jena1", "forward", batch=4096, dtype="bfloat16", layout="channels_last", device="cuda")
    return {
        "case": case.as_dict(), "provider": provider, "ours": "seqconv" in provider, "baseline": baseline,
        "baseline_layout": "channels_last", "suite": "conv_pool", "calls_per_block": 1, "samples": [seconds] * 3,
        "baseline_samples": [4e-3] * 3, "errors": {}, **more,
    }  # fmt: skip


@pytest.fixture
def on_a_gpu(monkeypatch, tmp_path):
    """Make the command believe in a card, and return what it does with what is ``found``."""
    limits = {"copy": 3e12, "matrix": {"bfloat16": 6e14}}
    state = SimpleNamespace(found=gpu_run.Found(limits=limits), tests=0, memcheck=None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "Some Card 9000")
    monkeypatch.setattr(gpu, "smi", lambda on_gpu: "550.1, 1980 MHz")
    monkeypatch.setattr(
        gpu_tests, "run_tests", lambda limit: {"exit_code": state.tests, "summary": "7 passed", "seconds": limit}
    )
    monkeypatch.setattr(gpu_tests, "sanitize", lambda limit: {"exit_code": state.memcheck, "summary": "0 errors"})
    monkeypatch.setattr(gpu_warm, "beside", lambda device, processes: pytest.MonkeyPatch.context())

    def run(plan, device, seconds, *, save):
        state.plan, state.seconds = plan, seconds
        save(state.found)
        return state.found

    monkeypatch.setattr(gpu_run, "run", run)
    state.path = tmp_path / "gpu.json"
    state.main = lambda *words: gpu.main(["--out", str(state.path), *words])
    return state


def test_a_results_file_has_the_card_its_limits_and_shares_of_the_roofline(on_a_gpu, capsys):
    on_a_gpu.found.figures += [gpu_figure("seqconv triton", 1e-3), gpu_figure("torch.compile max-autotune", 3e-3)]
    on_a_gpu.found.failed.append({"case": "x", "provider": "torch.compile", "reason": "RuntimeError: out of memory"})
    on_a_gpu.found.left_out.append({"case": "y", "provider": "z", "reason": "no time"})
    assert on_a_gpu.main("--minutes", "4", "--parts", *gpu.PARTS) == 0
    found = results.read(on_a_gpu.path)
    assert found["gpu"]["card"] == "Some Card 9000"
    assert found["gpu"]["driver"] == "550.1"
    assert found["gpu"]["clocks"] == {"before": "550.1, 1980 MHz", "after": "550.1, 1980 MHz"}
    assert found["tests"]["sanitizer"]["summary"] == "0 errors"
    assert found["failed"][0]["reason"] == "RuntimeError: out of memory"
    ours, peer = found["measurements"]
    # 4096 * (14 * 240 + 32 * 78) numbers of two bytes and the parameters, at 3e12 bytes a second: 16 microseconds
    floor = 2 * (4096 * (14 * 240 + 32 * 78) + 32 * 14 * 5 + 32) / 3e12
    assert ours["roofline"] == pytest.approx(1e-3 / floor)
    assert peer["roofline"] == pytest.approx(3e-3 / floor)
    text = capsys.readouterr().out
    for words in ("GPU tests: 7 passed", "compute-sanitizer: 0 errors", "copy 3 TB/s", "out of memory", "x roofline"):
        assert words in text
        assert words in on_a_gpu.path.with_suffix(".md").read_text()
    assert on_a_gpu.path.with_suffix(".png").exists()
    assert 0 < on_a_gpu.seconds <= 4 * 60


@pytest.mark.parametrize(("tests", "memcheck", "failed", "code"), [
    (0, None, [], 0), (1, 0, [], 1), (0, 86, [], 1), (0, 0, ["seqconv auto"], 1), (0, 0, ["torch.compile"], 0),
])  # fmt: skip
def test_the_exit_code_tells_of_our_own_failures(on_a_gpu, tests, memcheck, failed, code):
    on_a_gpu.tests, on_a_gpu.memcheck = tests, memcheck
    on_a_gpu.found.failed += [{"case": "x", "provider": name, "reason": "no"} for name in failed]
    on_a_gpu.found.figures.append(gpu_figure("seqconv triton", 1e-3))
    assert on_a_gpu.main("--parts", *gpu.PARTS) == code
    assert results.read(on_a_gpu.path)["exit_code"] == code
    assert results.read(on_a_gpu.path)["measurements"]


def test_parts_and_stages_can_be_asked_for(on_a_gpu):
    on_a_gpu.tests = 1
    assert on_a_gpu.main("--parts", "benchmarks", "--stages", "sweep") == 0
    assert [stage.name for stage in on_a_gpu.plan] == ["limits", "sweep"]
    assert results.read(on_a_gpu.path)["tests"] is None
    with pytest.raises(SystemExit):
        on_a_gpu.main("--stages", "nothing")


def test_what_is_needed_and_missing_is_named(on_a_gpu, monkeypatch, capsys):
    monkeypatch.setattr(gpu, "missing", lambda packages: [one for one in packages if one in ("triton", "pytest")])
    assert on_a_gpu.main() == 2
    assert "needs the packages triton" in capsys.readouterr().out
    monkeypatch.setattr(gpu, "missing", lambda packages: [one for one in packages if one == "pytest"])
    assert on_a_gpu.main() == 0
    assert "the package pytest is not installed: no tests run" in capsys.readouterr().out


def test_a_rehearsal_on_the_cpu(tmp_path, capsys):
    path = tmp_path / "rehearsal.json"
    assert gpu.main(["--device", "cpu", "--minutes", "0", "--out", str(path)]) == 0  # no time for any job
    found = results.read(path)
    assert not found["measurements"]
    assert len(found["skipped"]) == sum(len(stage.jobs) for stage in gpu_plan.stages("cpu"))


def tool(tmp_path, monkeypatch, text: str) -> None:
    path = tmp_path / "compute-sanitizer"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")


def test_the_sanitizer_s_summary_is_kept(tmp_path, monkeypatch):
    said = "echo ========= ERROR SUMMARY: 2 errors; echo 3 passed; exit 86"
    tool(tmp_path, monkeypatch, f'echo "$@" > "$(dirname "$0")/words"; {said}')
    found = gpu_tests.sanitize(60.0)
    assert found["exit_code"] == 86
    assert found["summary"] == "ERROR SUMMARY: 2 errors; pytest: 3 passed"
    words = (tmp_path / "words").read_text().split()
    assert words[:2] == ["--tool", "memcheck"]
    assert sys.executable in words


def test_no_sanitizer_is_no_failure(monkeypatch):
    monkeypatch.setattr(gpu_tests, "sanitizer", lambda: None)
    assert gpu_tests.sanitize(1.0) == {
        "exit_code": None,
        "summary": "not run: compute-sanitizer is not on PATH, nor in CUDA_HOME/bin",
    }


def test_tests_that_take_too_long_are_stopped_with_all_that_they_started(tmp_path, monkeypatch):
    tool(tmp_path, monkeypatch, "sleep 60 & sleep 60")
    began = time.monotonic()
    found = gpu_tests.sanitize(0.5)
    assert time.monotonic() - began < 20
    assert found["exit_code"] == gpu_tests.STOPPED
    assert "stopped after 0 s" in found["summary"]


def test_what_was_told_before_the_time_was_over_is_kept(monkeypatch):
    told = """
[gw1] [  1%] PASSED tests/kernels/a.py::test_one[x - y]
[gw0] [  2%] FAILED tests/kernels/a.py::test_two
tests/kernels/b.py::test_three PASSED                    [ 10%]
tests/kernels/b.py::test_four SKIPPED (no GPU)           [ 20%]
tests/kernels/a.py::test_two 
tests/kernels/a.py::test_five[x, y] 
tests/kernels/c.py:12: in test_six
stopped after 9 s"""  # noqa: W291
    monkeypatch.setattr(gpu_tests, "pytest", lambda *_: (gpu_tests.STOPPED, told))
    monkeypatch.setattr(gpu_tests, "processes", lambda: 1)
    found = gpu_tests.run_tests(60.0)
    assert found["summary"] == "stopped after 9 s: 2 PASSED, 1 FAILED, 1 SKIPPED until then"
    assert found["failures"] == ["tests/kernels/a.py::test_two"]
    assert found["running"] == ["tests/kernels/a.py::test_five[x, y]"]
    assert found["exit_code"] == gpu_tests.STOPPED


HANGING = """
import time
import pytest

@pytest.mark.gpu
@pytest.mark.parametrize("number", range(6))
def test_planted(number):
    time.sleep(60 * (number == 2))
    assert number != 1
"""


@pytest.mark.parametrize(("many", "passed"), [(1, 1), (2, 3)])
def test_what_hangs_and_what_cannot_be_imported_hides_no_other_result(tmp_path, monkeypatch, many, passed):
    """From pytest's own output: alone, and from several processes, of which one has another test waiting."""
    folder = tmp_path / "tests"
    folder.mkdir()
    (folder / "test_hanging.py").write_text(HANGING)
    (folder / "test_absent.py").write_text("import a_package_that_is_absent")
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = gpu\n")
    monkeypatch.setattr(gpu_tests, "ROOT", tmp_path)
    monkeypatch.setattr(gpu_tests, "TESTS", ("tests",))
    monkeypatch.setattr(gpu_tests, "processes", lambda: many)
    for name in [name for name in os.environ if name.startswith(("PYTEST", "COV"))]:
        monkeypatch.delenv(name)
    found = gpu_tests.run_tests(12.0)
    assert found["exit_code"] == gpu_tests.STOPPED
    assert found["failures"] == ["tests/test_hanging.py::test_planted[1]"]
    assert found["running"] == ["tests/test_hanging.py::test_planted[2]"]
    assert f"{passed} PASSED" in found["summary"]
    if many == 1:
        return
    monkeypatch.setattr(gpu_tests, "MOST_SECONDS", 2)
    found = gpu_tests.run_tests(40.0)
    names = [f"tests/test_hanging.py::test_planted[{number}]" for number in (1, 2)]
    assert found["failures"] == ["tests/test_absent.py", *names]
    assert found["running"] == []
    assert "4 passed" in found["summary"]


PLANTED = """
import pytest, torch
from tests.kernels.triton import conftest
from tests.kernels.triton.conftest import pytest_runtest_logfinish, pytest_runtest_teardown

@pytest.mark.gpu
@pytest.mark.parametrize("number", range(12))
def test_planted(number, monkeypatch):
    if number == 3:
        def lost():
            raise RuntimeError("CUDA error: device-side assert triggered")
        torch.cuda.synchronize = lost
    torch.cuda.is_available = torch.cuda.is_initialized = lambda: True
    if number != 3 and torch.cuda.synchronize.__name__ != "lost":
        torch.cuda.synchronize = lambda: None
"""


def test_a_lost_device_ends_its_process_and_no_other_test(tmp_path):
    """The test that lost it is named, and the others run in another process."""
    (tmp_path / "conftest.py").write_text(
        "from tests.kernels.triton.conftest import pytest_runtest_logfinish, pytest_runtest_teardown\n"
    )
    (tmp_path / "test_planted.py").write_text(PLANTED)
    command = [sys.executable, "-m", "pytest", str(tmp_path), "-v", "-n", "2", "--max-worker-restart", "4"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "COV"))}
    done = subprocess.run(
        [*command, "-p", "no:cacheprovider", "-c", str(ROOT / "pyproject.toml"), "--rootdir", str(ROOT)],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    text = done.stdout + done.stderr
    assert re.search(r"ERROR \S*test_planted\[3\]", text), text[-3000:]
    assert "the device does not answer any more" in text
    assert len(set(re.findall(r"PASSED \S*(test_planted\[\d+\])", text))) == 12, text[-3000:]
    assert done.returncode != 0


def test_large_tests_run_behind_the_others_one_by_one(monkeypatch):
    asked = []

    def pytest_(words, limit, *_):
        asked.append(words)
        return (1, "FAILED tests/a.py::b - no\n= 1 failed in 2 s =") if len(asked) == 1 else (5, "no tests ran in 1 s")

    monkeypatch.setattr(gpu_tests, "pytest", pytest_)
    monkeypatch.setattr(gpu_tests, "processes", lambda: 4)
    found = gpu_tests.run_tests(60.0)
    assert asked[0][-6:-2] == ["-k", "not 2_to_the_31", "-n", "4"]
    assert asked[1][-2:] == ["-k", "2_to_the_31"]
    assert found["exit_code"] == 1
    assert found["summary"] == "1 failed in 2 s; then no tests ran in 1 s"
    assert found["failures"] == ["tests/a.py::b"]


def test_promises_are_held_against_torch_at_its_best():
    figures = [
        gpu_figure("seqconv triton", 1e-3, roofline=1.5),
        gpu_figure("torch.compile", 3e-3),
        gpu_figure("torch.compile max-autotune", 1.5e-3),
    ]
    rows = report_gpu.promises([results.measurement(one) for one in figures])
    case = "jena1 forward bfloat16 N 4096"
    assert ("at most x of the roofline", case, "1.5", "1.6", "reached") in rows
    assert ("times faster than torch's best (torch.compile max-autotune)", case, "1.5", "2", "short") in rows
    rows = report_gpu.promises([results.measurement(one) for one in figures[:2]])
    best = "times faster than torch's best (torch.compile; max-autotune was not measured)"
    assert (best, case, "3", "2", "reached") in rows
    assert all(row[2] == "not measured" for row in report_gpu.promises([]))


def test_a_run_on_a_cpu_has_no_such_part():
    run = results.collect([], [], command="", load=0.0, exit_code=0)
    assert report_gpu.sections(run, "simple") == []
    assert "promised" not in report.terminal(run)
