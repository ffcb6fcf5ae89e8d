"""The GPU's command: its plan, its jobs and their time, what fails on the way, its results file and its report."""

from __future__ import annotations

import contextlib
import importlib
import json
import sys
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from benchmarks import (
    gpu,
    gpu_counters,
    gpu_parts,
    gpu_plan,
    gpu_run,
    gpu_tests,
    gpu_warm,
    jobs,
    promises,
    report,
    results,
    roofline,
    runner,
)  # fmt: skip
from benchmarks.gpu_plan import Stage
from benchmarks.jobs import Job
from benchmarks.operations import operation
from benchmarks.operations.layers import layer_case, max_pool
from benchmarks.operations.rivals import step_case
from benchmarks.registry import Case, Provider
from seqconv.backends import BackendError

SHAPE = {"N": 2, "C": 3, "L": 12, "O": 4, "K": 3, "P": 2}
TINY = Case("conv1d_relu_max_pool1d", "tiny", SHAPE, "forward_backward", "float32")
SMALL = replace(TINY, shape={**SHAPE, "P": 4}, mode="forward")  # 10 positions: two windows, two positions in none


@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_the_plan_has_promised_figures_first_and_what_compiles_for_long_last(device):
    plan = gpu_plan.stages(device)
    first = ["limits", "promised figures", "kernels alone", "training steps", "models in the wild", "sweep"]
    assert [stage.name for stage in plan[:6]] == first
    assert [stage for stage in plan if any("max-autotune" in job.provider for job in stage.jobs)] == [plan[-1]]
    assert sum(stage.reserved for stage in plan) < 0.5
    every = [job for stage in plan for job in stage.jobs]
    assert len({str(job) for job in every}) == len(every)
    for job in every:
        assert Job.from_dict(json.loads(json.dumps(job.as_dict()))) == job
        if job.kind == "parts":
            assert (job.provider, job.against) == (jobs.ours(device), "")
        elif job.case is not None:
            assert job.case.device == device
            providers = operation(job.case.operation).providers
            assert {job.provider, job.against} <= {*providers, "seqconv triton", "convolution, seqconv triton"}
            assert providers[job.against].baseline
    quick = gpu_plan.stages(device, quick=True)
    assert [stage.name for stage in quick[2:]] == ["training steps", "torch.compile", "max-autotune"]


def test_recurrent_layers_meet_who_can_compute_them():
    """cuDNN without dropout, torch's loop with it; every cell, size and precision as one graph first."""
    (stage,) = [one for one in gpu_plan.stages("cuda") if one.name == "recurrent layers"]
    assert all(job.case.shape["N"] == 128 for job in stage.jobs)
    assert all(job.provider.endswith(", CUDA graph") for job in stage.jobs[:36])
    assert {job.against for job in stage.jobs[:36]} == {"torch nn, CUDA graph"}
    for job in stage.jobs:
        assert job.provider.startswith("seqconv triton")
        assert ("torch loop" in job.against) == bool(job.case.shape["dropout"])
    providers = operation("recurrent_gpu").providers
    case = replace(stage.jobs[0].case, device="cpu")
    assert providers["torch nn"].unavailable(case) is None
    assert providers["torch nn"].unavailable(replace(case, shape={**case.shape, "dropout": 1}))
    assert providers["torch loop, CUDA graph"].unavailable(case) == "CUDA graphs are for GPUs"


def test_a_plan_that_is_cut_off_has_something_of_each_kind_and_every_promised_case():
    plan = {stage.name: stage.jobs for stage in gpu_plan.stages("cuda")}
    steps = plan["training steps"]
    assert {(job.case.dtype, job.case.shape["N"]) for job in steps} == {("tf32", 128), ("bfloat16", 128)}
    assert all(job.provider.endswith(", CUDA graph") for job in steps)
    assert {job.against for job in steps} >= {"LSTM(32), CUDA graph", "GRU(32), CUDA graph"}
    swept, rest = ([job.case for job in plan[name]] for name in ("sweep", "other random shapes"))
    assert [case.mode for case in swept] == ["forward", "forward_backward"] * 25
    assert [case.name for case in swept[::2]] == [case.name for case in swept[1::2]]
    assert len({case.name for case in (*swept, *rest)}) == 200
    assert not {case.name for case in swept} & {case.name for case in rest}
    every = {str(job) for stage in plan.values() for job in stage}
    for dtype in ("bfloat16", "tf32"):
        for layer in ("imdb1", "jena1"):
            for mode in ("forward", "forward_backward"):
                case = layer_case(layer, mode, batch=4096, dtype=dtype, layout="channels_last", device="cuda")
                for one in ("torch.compile", "torch.compile max-autotune", "seqconv triton"):
                    assert f"{case}: {one}, against torch eager" in every
    for model, rnn in (("imdb_convnet", "LSTM(32)"), ("jena_convnet", "GRU(32)")):
        pair = f"seqconv auto, CUDA graph, against {rnn}, CUDA graph"
        assert any(job.startswith(f"{model}-training_step-tf32") and job.endswith(pair) for job in every)
    alone = [job.case for job in plan["kernels alone"]]
    found = [(one.name.partition(",")[0], one.operation, one.dtype, one.shape["N"]) for one in alone]
    assert len(found) == len(set(found)) == 24
    pool, whole = "conv1d_relu_max_pool1d", "conv1d_relu_global_max_pool1d"
    for batch in (128, 4096):
        for dtype in ("bfloat16", "tf32"):
            assert {("imdb2", whole, dtype, batch), ("imdb1", "embedding_" + pool, dtype, batch)} <= set(found)
            assert {(name, pool, dtype, batch) for name in ("imdb1", "jena1", "jena2")} <= set(found)
        assert {name for name, _, dtype, size in found if (dtype, size) == ("float32", batch)} == {"imdb1", "jena1"}
    assert found[0] == ("imdb1", pool, "bfloat16", 4096)


def test_each_kernel_is_compiled_by_one_background_process_for_a_cut_batch_unless_it_decides_what_runs():
    plan = gpu_plan.stages("cuda")
    parts = [gpu_warm.wanted(plan, number, 3) for number in range(3)]
    ours = [job for part in parts for job in part if "seqconv" in job.provider]
    assert len(ours) == len({(job.kind, str(job.case)) for job in ours})
    names = {"seqconv auto", "seqconv triton", "convolution, seqconv triton", "seqconv", "seqconv sliding_inference"}
    assert {job.provider for part in parts[1:] for job in part} <= names
    assert {job.provider for job in parts[0]} == {"torch.compile"}
    assert {job.case.shape["N"] for job in parts[0]} == {128, 4096}
    alone = gpu_warm.wanted(plan, 0, 1)
    assert alone[0] == parts[1][0]
    assert alone[0].case.name == "imdb1"
    assert alone[-1].provider == "torch.compile"
    for job in ours:
        tokens = job.case.operation.startswith("embedding") or job.case.name.startswith("imdb_convnet")
        whole = tokens and job.kind != "parts"  # whose plans are named
        if job.case.operation != "wild":
            assert job.case.shape["N"] in ((128, 4096) if whole else (gpu_warm.SAMPLES,))


def test_background_processes_end_with_the_block(monkeypatch):
    asked = []
    monkeypatch.setattr(gpu_warm.Worker, "tell", lambda self, *given, **named: asked.append((*given, *named.values())))
    with gpu_warm.beside("cuda", 2):
        assert asked == [("benchmarks.gpu_warm:compile_part", "cuda", number, 2) for number in range(2)]
    module, _, name = asked[0][0].partition(":")
    assert callable(getattr(importlib.import_module(module), name))


@pytest.fixture
def layer(monkeypatch):
    """Give the tiny layer's operation three planted providers, and take them away again."""
    kind = operation(TINY.operation)
    before = dict(kind.providers)

    def explode(*_arguments):
        raise RuntimeError("out of\nmemory")

    kind.register(Provider("raising", lambda case: explode))
    kind.register(Provider("wrong", lambda case: lambda x, w, b, p: max_pool(x, w, 2 * b, p)))
    kind.register(Provider("absent", lambda case: None, unavailable=lambda case: "is on holiday"))
    monkeypatch.setattr(runner, "checked", {})
    yield kind
    kind.providers = before


def asked_for(job: Job) -> dict:
    """Return the answer to a job, both as they go from one process to the other."""
    return json.loads(json.dumps(jobs.answer(json.loads(json.dumps(job.as_dict())), "cpu")))


def ask(provider: str, against: str = "torch eager", case: Case = TINY):
    return asked_for(Job("comparison", "conv_pool", case, provider, against, seconds=0.01))


def test_what_passed_its_check_is_compared_and_who_failed_is_told(layer):
    figures = ask("seqconv reference")["figures"]
    assert len(figures["samples"]) == len(figures["baseline_samples"]) >= 5
    assert figures["errors"]["weight gradient, exact"][0] == 0
    one = results.measurement(figures)
    assert one["ratio"]["median"] > 0
    assert set(results.MEASUREMENT_KEYS) <= set(one)
    assert ask("raising") == {"failed": "RuntimeError: out of memory", "by": "raising", "broken": False}
    assert ask("seqconv reference", "raising")["by"] == "raising"
    wrong = ask("wrong")
    assert wrong["failed"].startswith("Wrong: ")
    assert wrong["by"] == "wrong"
    assert ask("absent") == {"left_out": "is on holiday", "by": "absent"}
    assert ask("nobody")["left_out"].endswith("has no provider of this name")
    assert "figures" in ask("seqconv reference")


def test_what_torch_compile_makes_is_made_once_for_check_and_timing(layer):
    made = []
    layer.register(Provider("torch.compile, planted", lambda case: made.append(case) or max_pool, one_batch=True))
    assert "figures" in ask("torch.compile, planted")
    assert made == [TINY]
    assert "figures" in ask("torch.compile, planted")
    assert made == [TINY, TINY]


def test_a_device_is_broken_if_it_no_longer_answers(monkeypatch):
    assert not jobs.is_broken("cpu")

    def lost():
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(torch.cuda, "synchronize", lost)
    assert jobs.is_broken("cuda")


def test_overheads_are_quantities_and_what_they_miss_is_left_out(monkeypatch):
    monkeypatch.setattr(jobs.dispatch, "CALLS", 2)
    monkeypatch.setattr(jobs, "OVERHEAD_ROUNDS", 2)
    monkeypatch.setattr(jobs, "ours", lambda device: "seqconv reference")  # which compiles nothing
    overhead = Job("overhead", "dispatch", provider="no grad")
    found = asked_for(overhead)["quantities"]
    assert {one["quantity"] for one in found} == {"call", "kernel", "torch eager", "dispatch"}
    assert all(one["unit"] == "µs" and len(one["samples"]) == 2 for one in found)

    def refuse(*_):
        raise BackendError("the package numba is not installed")

    monkeypatch.setattr(jobs.dispatch, "calls", refuse)
    assert asked_for(overhead) == {"left_out": "the package numba is not installed", "by": "no grad"}


class Kernels:
    """Two passes that do what torch does, and note what they were asked for."""

    def __init__(self, monkeypatch):
        self.asked, self.fails = [], {}
        self.dense_backward = SimpleNamespace()
        monkeypatch.setattr(gpu_parts, "floor", lambda backend: self)
        refuse = lambda *_: (_ for _ in ()).throw(BackendError("not today"))  # noqa: E731
        monkeypatch.setattr(gpu_parts.backends, "explain_call", refuse)

    def note(self, name):
        self.asked.append(name)
        if name in self.fails:
            raise RuntimeError(self.fails[name])

    def forward(self, source, weight, bias, convolution, pool, *, want_argmax):
        self.note("argmax" if want_argmax else "forward")
        output = max_pool(source.values, weight, bias, pool.size)
        return output, torch.zeros(output.shape, dtype=torch.int8) if want_argmax else None

    def backward(self, gradient, argmax, source, weight, convolution, pool, *, wanted):
        self.note(wanted)
        if hasattr(self.dense_backward, "launch_over_weights"):
            partials = None if wanted[0] else torch.zeros(7, weight.numel())
            self.dense_backward.launch_over_weights(weight, wanted[0], partials)


ALONE = Job("parts", "kernels alone", replace(TINY, layout="channels_last"), "seqconv numba", seconds=0.0)
LIMITS = {"copy": 1e9, "matrix": {"float32": 1e9}}


@pytest.fixture
def kernels(monkeypatch):
    kernels = Kernels(monkeypatch)
    monkeypatch.setattr(gpu_parts, "refused", lambda case, backend: None)
    return kernels


def test_kernels_alone_become_quantities_with_their_floors(kernels):
    answer = asked_for(ALONE)
    assert not answer["broken"]
    found = gpu_run.Found(limits=LIMITS)
    gpu_run.take(found, ALONE, answer, {})
    assert not found.failed
    assert {one["provider"] for one in found.left_out} == {"seqconv numba: partial sums", "seqconv numba: weight pack"}
    names = ["forward", "forward, argmax kept", "weight gradient, its sums too", "input gradient, its pack too"]
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
    bare = gpu_run.Found()
    gpu_run.take(bare, ALONE, answer, {})  # without limits there are times only
    assert {one["quantity"] for one in bare.quantities} == {"a call"}
    without = replace(ALONE, case=replace(ALONE.case, input_gradient=False))
    kernels.asked.clear()
    assert names[3] not in {one["part"] for one in asked_for(without)["parts"]}
    assert (True, False, False) not in kernels.asked


def test_the_launch_over_the_weights_is_timed_alone(kernels, monkeypatch):
    launched = []
    monkeypatch.setattr(
        kernels.dense_backward, "launch_over_weights", lambda *given: launched.append(given[1]), raising=False
    )
    original = kernels.dense_backward.launch_over_weights
    sizes = {one["part"]: one["bytes"] for one in asked_for(ALONE)["parts"]}
    assert kernels.dense_backward.launch_over_weights is original
    assert sizes["weight pack"] == 2 * 4 * 36
    assert sizes["partial sums"] == 4 * 7 * 36
    assert launched.count(True) > kernels.asked.count((True, False, False))  # more often than the whole pass
    assert launched.count(False) > kernels.asked.count((False, True, True))


def test_a_part_that_fails_leaves_the_others_unless_the_card_is_lost(kernels, monkeypatch):
    kernels.fails[False, True, True] = "out of\nresources"
    answer = asked_for(ALONE)
    found, wrong = gpu_run.Found(), {}
    gpu_run.take(found, ALONE, answer, wrong)
    assert {"forward", "input gradient, its pack too"} <= {one["provider"] for one in found.quantities}
    who = "seqconv numba: weight gradient, its sums too"
    expected = {"case": str(ALONE.case), "provider": who, "reason": "RuntimeError: out of resources"}
    assert found.failed[0] == expected
    assert not wrong  # a comparison finds out by itself
    assert "weight gradient, its sums too: FAILED: RuntimeError" in gpu_run.line(ALONE, answer)
    kernels.fails["forward"] = "illegal memory access"
    monkeypatch.setattr(jobs, "is_broken", lambda device: True)
    answer = asked_for(ALONE)
    assert answer["broken"]
    assert [one["part"] for one in answer["others"]] == ["forward"]
    assert not answer["parts"]


def test_who_refuses_a_layer_is_left_out(monkeypatch):
    Kernels(monkeypatch)
    assert asked_for(ALONE) == {"left_out": "not today", "by": "seqconv numba"}


def test_large_batches_take_turns_on_copies_that_no_cache_holds(kernels):
    layer = gpu_parts.TimedLayer(replace(ALONE.case, shape={**SHAPE, "N": gpu_parts.LARGE, "L": 400}), "numba")
    first = layer.sources[0].values
    assert first.nbytes == 4 * gpu_parts.LARGE * 3 * 400
    assert layer.copies == gpu_parts.MOST_COPIES == len({one.values.data_ptr() for one in layer.sources})
    assert all(torch.equal(one.values, first) and one.values.stride() == first.stride() for one in layer.sources)
    assert gpu_parts.TimedLayer(ALONE.case, "numba").copies == 1
    assert "warm" in gpu_parts.part_label(ALONE.case)
    assert "warm" not in gpu_parts.part_label(layer.case)


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


WORKER = """
import json, sys, time
for line in sys.stdin:
    job = json.loads(line)["arguments"]["job"]
    name = job["provider"]
    if name == "hangs":
        time.sleep(60)
    if name == "dies":
        sys.exit("the last words of\\na worker")
    figures = dict(case=job["case"], provider=name, ours=True, baseline=job["against"], suite=job["suite"],
                   calls_per_block=1, samples=[1e-3] * 5, baseline_samples=[2e-3] * 5, errors={}, baseline_layout="any")
    failed = {"failed": "RuntimeError: no", "by": name, "broken": name == "breaks"}
    answer = failed if name in ("fails", "breaks") else {"figures": figures}
    print(json.dumps({"answer": answer}), flush=True)
"""
FAKE = [sys.executable, "-c", WORKER]


def plan_of(*names: str) -> list[Job]:
    return [
        Job("comparison", "conv_pool", replace(TINY, name=str(number)), name, "peer", patience=5.0)
        for number, name in enumerate(names)
    ]


def run_of(*planned: Job, seconds: float = 60.0) -> gpu_run.Found:
    return gpu_run.run([Stage("one", list(planned))], "cpu", seconds, command=FAKE)


def test_a_run_survives_whatever_a_job_does(capsys):
    saved = []
    first = Stage("first", plan_of("good", "fails", "good", "breaks", "good", "dies"))
    plan = [first, Stage("second", plan_of("good"))]
    found = gpu_run.run(plan, "cpu", 60.0, save=lambda found: saved.append(len(found.figures)), command=FAKE)
    assert saved == [3, 4]
    assert [one["provider"] for one in found.failed] == ["fails", "breaks", "dies"]
    assert found.failed[2]["reason"] == "the process ended: the last words of a worker"
    assert not found.left_out
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "benchmarks: first: 6 jobs"
    assert lines[1].startswith("[1/7, ")
    assert lines[1].endswith("good, against peer: 1 ms, 2x (2-2)")


def test_who_does_not_answer_is_ended_and_the_next_is_asked_unless_the_time_is_over():
    (slow, *rest), began = plan_of("hangs", "good"), time.monotonic()
    found = run_of(replace(slow, patience=0.5), *rest)
    assert time.monotonic() - began < 20
    assert found.failed[0]["reason"] == "no answer within 0 s"
    assert len(found.figures) == 1
    found = run_of(slow, seconds=1.0)
    assert not found.failed
    assert found.left_out[0]["reason"] == "the run's time was over while it was under way"


def test_a_failure_is_not_met_twice_and_workers_are_not_started_for_ever(monkeypatch):
    found = run_of(*plan_of("fails"), replace(plan_of("good")[0], against="fails"), *plan_of("good"))
    assert len(found.failed) == len(found.figures) == 1
    assert found.left_out[0]["reason"] == "fails failed on this case"
    monkeypatch.setattr(gpu_run, "MOST_STARTS", 2)
    found = run_of(*plan_of("breaks", "breaks", "good"))
    assert len(found.failed) == 2
    assert found.left_out[0]["reason"] == "2 workers broke before"


def test_time_is_shared_and_what_does_not_fit_is_listed(monkeypatch):
    """Each job takes ten seconds of a clock that we move; 100 seconds, of which the last stage has reserved 30."""
    now = [0.0]
    monkeypatch.setattr(gpu_run, "time", SimpleNamespace(monotonic=lambda: now[0]))

    def slowly(worker, job, device, left):
        now[0] += 10
        return {"figures": {**gpu_figure("seqconv auto", 1.0), "provider": job.provider}}

    monkeypatch.setattr(gpu_run, "ask", slowly)
    many = plan_of(*["good"] * 9)
    plan = [Stage("a", many[:2]), Stage("b", many, most=0.3), Stage("c", many), Stage("d", many, reserved=0.3)]
    found = gpu_run.run(plan, "cpu", 100.0)
    reasons = [one["reason"] for one in found.left_out]
    assert [reasons.count(f"the time for {name!r} was over") for name in "abcd"] == [0, 6, 7, 6]
    assert len(found.figures) == 2 + 3 + 2 + 3
    assert len(gpu_run.run(plan, "cpu", -1.0).left_out) == 29
    now[0] = 0.0
    found = gpu_run.run([Stage("c", many), Stage("d", many, reserved=0.3)], "cpu", 90.0)
    assert [one["reason"] for one in found.left_out] == ["the time for 'd' was over"] * 9  # 27 seconds are no reserve


def gpu_figure(provider: str, seconds: float, baseline: str = "torch eager", **more):
    case = layer_case("jena1", "forward", batch=4096, dtype="bfloat16", layout="channels_last", device="cuda")
    return {
        "case": case.as_dict(), "provider": provider, "ours": "seqconv" in provider, "baseline": baseline,
        "baseline_layout": "channels_last", "suite": "conv_pool", "calls_per_block": 1, "samples": [seconds] * 3,
        "baseline_samples": [4e-3] * 3, "errors": {}, **more,
    }  # fmt: skip


COUNTED = {
    "suite": "counters", "case": "a layer", "provider": "some_kernel",
    "quantity": "time", "unit": "µs", "samples": [3.0],
}  # fmt: skip


@pytest.fixture
def on_a_gpu(monkeypatch, tmp_path):
    """Make the command believe in a card, and return what it does with what is ``found``."""
    limits = {"copy": 3e12, "matrix": {"bfloat16": 6e14}}
    state = SimpleNamespace(found=gpu_run.Found(limits=limits), tests=0, memcheck=None)
    tests = lambda limit: {"exit_code": state.tests, "summary": "7 passed", "seconds": limit}  # noqa: E731
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "Some Card 9000")
    monkeypatch.setattr(gpu, "smi", lambda on_gpu: "550.1, 1980 MHz")
    monkeypatch.setattr(gpu_tests, "run_tests", tests)
    monkeypatch.setattr(gpu_tests, "sanitize", lambda limit: {"exit_code": state.memcheck, "summary": "0 errors"})
    monkeypatch.setattr(gpu_counters, "count", lambda limit: {"quantities": [COUNTED], "summary": "1 launch"})
    monkeypatch.setattr(gpu_warm, "beside", lambda device, processes: contextlib.nullcontext())

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
    clocks = {"before": "550.1, 1980 MHz", "after": "550.1, 1980 MHz"}
    assert found["gpu"] == {
        "card": "Some Card 9000", "driver": "550.1", "clocks": clocks, "limits": on_a_gpu.found.limits,
    }  # fmt: skip
    assert found["tests"]["sanitizer"]["summary"] == "0 errors"
    ours, peer = found["measurements"]
    # 4096 * (14 * 240 + 32 * 78) numbers of two bytes and the parameters, at 3e12 bytes a second: 16 microseconds
    floor = 2 * (4096 * (14 * 240 + 32 * 78) + 32 * 14 * 5 + 32) / 3e12
    assert ours["roofline"] == pytest.approx(1e-3 / floor)
    assert peer["roofline"] == pytest.approx(3e-3 / floor)
    text, written = capsys.readouterr().out, on_a_gpu.path.with_suffix(".md").read_text()
    for words in (
        "GPU tests: 7 passed",
        "compute-sanitizer: 0 errors",
        "copy 3 TB/s",
        "out of memory",
        "x roofline",
        "some_kernel",
    ):
        assert words in text
        assert words in written
    assert on_a_gpu.path.with_name("gpu-conv_pool-forward.png").exists()
    assert 0 < on_a_gpu.seconds <= 4 * 60


@pytest.mark.parametrize(("tests", "memcheck", "failed", "code"), [
    (0, None, [], 0), (1, 0, [], 1), (0, 86, [], 1), (0, 0, ["seqconv auto"], 1), (0, 0, ["torch.compile"], 0),
])  # fmt: skip
def test_the_exit_code_tells_of_our_own_failures(on_a_gpu, tests, memcheck, failed, code, monkeypatch):
    monkeypatch.setattr(report, "write_report", lambda path, run: [])
    on_a_gpu.tests, on_a_gpu.memcheck = tests, memcheck
    on_a_gpu.found.failed += [{"case": "x", "provider": name, "reason": "no"} for name in failed]
    on_a_gpu.found.figures.append(gpu_figure("seqconv triton", 1e-3))
    assert on_a_gpu.main("--parts", *gpu.PARTS) == code
    assert results.read(on_a_gpu.path)["exit_code"] == code
    assert results.read(on_a_gpu.path)["measurements"]


def test_parts_and_stages_can_be_asked_for_and_what_is_missing_is_named(on_a_gpu, monkeypatch, capsys):
    on_a_gpu.tests = 1
    assert on_a_gpu.main("--parts", "benchmarks", "--stages", "sweep") == 0
    assert [stage.name for stage in on_a_gpu.plan] == ["limits", "sweep"]
    assert results.read(on_a_gpu.path)["tests"] is None
    with pytest.raises(SystemExit):
        on_a_gpu.main("--stages", "nothing")
    on_a_gpu.tests = 0
    monkeypatch.setattr(gpu, "missing", lambda packages: [one for one in packages if one in ("triton", "pytest")])
    assert on_a_gpu.main() == 2
    assert "needs the packages triton" in capsys.readouterr().out
    monkeypatch.setattr(gpu, "missing", lambda packages: [one for one in packages if one == "pytest"])
    assert on_a_gpu.main() == 0
    assert "the package pytest is not installed: no tests run" in capsys.readouterr().out


@pytest.mark.skipif(torch.cuda.is_available(), reason="concerns machines without a GPU")
def test_without_a_gpu_it_is_said_what_would_run(capsys):
    assert gpu.main([]) == 0
    text = capsys.readouterr().out
    assert all(words in text for words in ("sees no GPU", "conv_pool", "max-autotune"))


def test_a_rehearsal_on_the_cpu(tmp_path, monkeypatch):
    path = tmp_path / "rehearsal.json"
    assert gpu.main(["--device", "cpu", "--minutes", "0", "--out", str(path)]) == 0  # no time for any job
    found = results.read(path)
    assert not found["measurements"]
    assert len(found["skipped"]) == sum(len(stage.jobs) for stage in gpu_plan.stages("cpu"))
    # and one real job in a real worker, which compiles nothing
    job = Job("comparison", "conv_pool", TINY, "seqconv reference", "torch eager", seconds=0.01)
    found = gpu_run.run([Stage("one", [job])], "cpu", 120.0)
    assert len(found.figures) == 1, found.failed


def test_promises_are_held_against_torch_at_its_best():
    figures = [
        gpu_figure("seqconv triton", 1e-3, roofline=1.5),
        gpu_figure("torch.compile", 3e-3),
        gpu_figure("torch.compile max-autotune", 1.5e-3),
    ]
    rows = promises.promised([results.measurement(one) for one in figures])
    case = "jena1 forward bfloat16 N 4096"
    assert ("at most x of the roofline", case, "1.5", "1.6", "reached") in rows
    assert ("times faster than torch's best (torch.compile max-autotune)", case, "1.5", "2", "short") in rows
    rows = promises.promised([results.measurement(one) for one in figures[:2]])
    best = "times faster than torch's best (torch.compile; max-autotune was not measured)"
    assert (best, case, "3", "2", "reached") in rows
    assert all(row[2] == "not measured" for row in promises.promised([]))
    case = step_case("jena_convnet", "training_step", device="cuda").as_dict()
    both = [
        gpu_figure("seqconv auto, CUDA graph", 1e-3, suite="rivals", case=case, baseline=f"{rnn}GRU(32), CUDA graph",
                   ours=True, baseline_samples=[seconds] * 3)
        for rnn, seconds in (("", 20e-3), ("seqconv ", 5e-3))
    ]  # fmt: skip
    (row,) = [one for one in promises.promised([results.measurement(one) for one in both]) if "GRU(32)" in one[0]]
    assert row[2:] == ("5", "10", "short")
    on_a_cpu = results.collect([], [], command="", load=0.0, exit_code=0)
    assert promises.sections(on_a_cpu, "simple") == []


X, W, B, Y = 2 * 3 * 12, 4 * 3 * 3, 4, 2 * 4 * 2


def test_bytes_and_operations_by_hand():
    forward, backward = X + W + B + Y, Y + X + 2 * W + B
    assert roofline.bytes_moved(SMALL) == 4 * forward
    assert roofline.bytes_moved(replace(SMALL, dtype="bfloat16")) == 2 * forward
    both = replace(SMALL, mode="forward_backward", input_gradient=False)
    assert roofline.bytes_moved(both) == 4 * (forward + backward) + 2 * Y
    assert roofline.bytes_moved(replace(both, input_gradient=True)) == 4 * (forward + backward + X) + 2 * Y
    product = 2 * 2 * 4 * 8 * 9  # of 8 pooled positions
    assert roofline.operations_done(SMALL) == product
    assert roofline.operations_done(replace(SMALL, shape={**SHAPE, "P": 0})) == 2 * 2 * 4 * 10 * 9
    assert roofline.operations_done(replace(both, input_gradient=True)) == 3 * product
    assert roofline.operations_done(both) == 2 * product
    # Read 4096 x 500 x 128 numbers: 0.18 ms of an H100; 116 GFLOP at its 800 TFLOP/s: 0.15 ms.
    case = layer_case("imdb1", "forward", batch=4096, dtype="bfloat16")
    assert roofline.bytes_moved(case) == pytest.approx(2 * 4096 * (500 * 128 + 98 * 32), rel=1e-3)
    assert roofline.operations_done(case) == 2 * 4096 * 490 * 32 * 896


def test_the_floor_is_the_longer_of_both_and_only_layers_have_one():
    limits = {"copy": 1e3, "matrix": {"float32": 1e9, "tf32": 1.0, "bfloat16": 2.0}}
    seconds = 4 * (X + W + B + Y) / 1e3
    assert roofline.floor_seconds(SMALL, limits) == seconds
    assert roofline.floor_seconds(replace(SMALL, dtype="tf32"), limits) == 1152
    assert roofline.floor_seconds(replace(SMALL, dtype="float16"), limits) == 576
    assert roofline.longer(10, 0, "tf32", limits) == 10 / 1e3
    assert roofline.longer(10, 6, "float16", limits) == 3
    assert roofline.share(SMALL.as_dict(), 2 * seconds, limits) == 2.0
    for case in (step_case("imdb_convnet", "training_step"), replace(SMALL, mode="training_step")):
        assert roofline.share(case.as_dict(), 1.0, limits) is None
    assert roofline.share(SMALL.as_dict(), 1.0, None) is None


def test_limits_are_measured_and_torch_s_switch_is_put_back(monkeypatch):
    allowed = []

    def rate(dtype, side, device):
        allowed.append((dtype, side, torch.backends.cuda.matmul.allow_tf32))
        return 1.0

    before = torch.backends.cuda.matmul.allow_tf32
    with monkeypatch.context() as patch:
        patch.setattr(roofline, "matrix_rate", rate)
        found = roofline.measure("cpu", 1e-3)
    assert torch.backends.cuda.matmul.allow_tf32 == before
    assert allowed == [("bfloat16", 8, False), ("tf32", 8, True), ("float32", 4, False)]
    assert found["copy"] > 0
    assert found["matrix"].keys() == {"bfloat16", "tf32", "float32"}
    monkeypatch.setattr(roofline, "median_seconds", lambda call, device, **_: call() is None or 0.5)
    assert roofline.matrix_rate("bfloat16", 10, "cpu") == 4000  # operations over the median time
    assert roofline.copy_rate(100, "cpu") == 400
