"""Checks before timing: right providers pass in every mode and layout, planted errors do not, and stop a run."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from benchmarks import conftest, suites
from benchmarks.checking import Wrong, check, errors_beside_torch, expectation, tf32
from benchmarks.operations import layers, operation
from benchmarks.operations.steps import MODES
from benchmarks.registry import Case, Contender, Operation, Provider
from tests.kernels.triton import gather_cases

ROOT = Path(__file__).resolve().parents[2]
SMALL = {"N": 3, "C": 4, "L": 20, "O": 8, "K": 3, "P": 2}


def small(mode: str, layout: str = "contiguous", dtype: str = "float32") -> Case:
    return Case("conv1d_relu_max_pool1d", "small", SMALL, mode, dtype, layout)


def provider(function) -> Provider:
    return Provider("planted", lambda case: function)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_torch_and_the_reference_are_right(mode, layout, dtype):
    case = small(mode, layout, dtype)
    for name in ("torch eager", "seqconv reference"):
        report = check(Contender(case, operation(case.operation).providers[name]))
        gradients = {"weight gradient, exact", "bias gradient, exact", "input gradient, exact"}
        expected = {"output, random", "output, exact"} | (gradients if mode in MODES[2:] else set())
        assert report.keys() == expected


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_torch_is_right_in_its_better_layout_whatever_the_case_s(layout):
    case = small("forward_backward", layout)
    candidate = Contender(case, operation(case.operation).providers[layers.BETTER])
    assert candidate.placed.layout == layers.better_layout(small("forward_backward")) != "any"
    assert "input gradient, exact" in check(candidate)


@pytest.mark.parametrize("options", [{"stride": 2}, {"padding": 3}, {"dilation": 2, "stride": 3, "padding": 1}])
@pytest.mark.parametrize("pool", [0, 2])
def test_a_shape_s_options_reach_everyone(options, pool):
    name = "conv1d_relu_max_pool1d" if pool else "conv1d_relu_global_max_pool1d"
    case = Case(name, "small", {**SMALL, "P": pool, **options}, "forward_backward")
    for one in ("torch eager", "seqconv reference"):
        assert check(Contender(case, operation(name).providers[one]))
    compose = operation(name).compose
    deaf = Provider("deaf", lambda case: lambda *tensors_and_pool, **options: compose(*tensors_and_pool))
    with pytest.raises(Wrong):
        check(Contender(replace(case, mode="forward"), deaf))


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_errors_beside_torch_are_ratios(layout):
    """Torch's own are 1; who multiplies its error by 3 has 3, over draws that differ; who is exact has 0."""
    case = small("forward", layout)
    kind = operation(case.operation)
    seen = []

    def planted(*operands):
        seen.append(operands[0].clone())
        torchs, exact = kind.compose(*operands), kind.compose(*(one.double() for one in operands[:3]), operands[3])
        return (exact + 3 * (torchs - exact)).to(torch.float64)

    ones, threes = (
        errors_beside_torch(Contender(case, one), 4, 2) for one in (kind.providers["torch eager"], provider(planted))
    )
    assert ones == {"root mean square": [1.0] * 4, "largest": [1.0] * 4}
    assert threes == {name: pytest.approx([3.0] * 4) for name in ones}
    assert not any(torch.equal(one, other) for one, other in itertools.combinations(seen, 2))
    assert all(one.shape == (3, 4, 20) for one in seen)  # the whole batch
    exact = provider(lambda *operands: kind.compose(*(one.double() for one in operands[:3]), operands[3]))
    assert errors_beside_torch(Contender(case, exact), 2) == {"root mean square": [0.0] * 2, "largest": [0.0] * 2}


def test_the_peak_s_suite_has_errors_beside_its_shares(monkeypatch):
    monkeypatch.setattr(suites.timing, "settle", lambda side: None)
    monkeypatch.setattr(suites.timing, "take_turns", lambda sides, rounds: [one.samples.append(1.0) for one in sides])
    monkeypatch.setattr(suites.timing, "choose_rounds", lambda sides, seconds: 1)
    suite = suites.SUITES["peak"]
    quick, full = ({str(one) for one in suite.noted("cpu", is_quick)} for is_quick in (True, False))
    assert quick < full
    assert {one.partition("-")[0] for one in quick} == {"imdb1", "jena1", "jena2", "c64k3", "deepsea2"}
    (subject,) = (one for one in suite.noted("cpu", True) if one.case.name == "jena2")
    found = {}
    for one in suite.measure(subject, True):
        found.setdefault(one["case"], {})[one["quantity"], one["unit"]] = one["samples"]
    for quantities in found.values():
        for name in ("root mean square", "largest"):
            ratios = quantities[f"error / torch's, {name}", "times"]
            assert len(ratios) == 3
            assert all(0 < ratio < 4 for ratio in ratios)
        assert ("share of the peak", "%") in quantities


def test_the_global_layer_is_right_and_has_no_input_gradient_where_none_is_asked_for():
    case = Case("conv1d_relu_global_max_pool1d", "small", {**SMALL, "P": 0}, "training_step", input_gradient=False)
    for one in ("torch eager", "seqconv reference"):
        report = check(Contender(case, operation(case.operation).providers[one]))
        assert "input gradient, exact" not in report
        assert "weight gradient, exact" in report


class LateIndex(torch.autograd.Function):
    """A pool whose gradient goes to the last of equal maxima instead of the first."""

    @staticmethod
    def forward(ctx, x, size):
        windows = x.unfold(2, size, size)
        ctx.size, ctx.length = size, x.shape[2]
        last = size - 1 - windows.flip(-1).argmax(-1)
        ctx.save_for_backward(last)
        return windows.amax(-1)

    @staticmethod
    def backward(ctx, gradient):
        (last,) = ctx.saved_tensors
        result = gradient.new_zeros((*gradient.shape[:2], ctx.length))
        positions = last + ctx.size * torch.arange(gradient.shape[2])
        return result.scatter(2, positions, gradient), None


PLANTED = {
    "forgets the bias": lambda x, w, b, p: F.max_pool1d(F.conv1d(x, w).relu(), p) + 0 * b.sum(),
    "forgets the ReLU": lambda x, w, b, p: F.max_pool1d(F.conv1d(x, w, b), p),
    "rounds to half precision": lambda x, w, b, p: F.max_pool1d(F.conv1d(x.half().float(), w, b).relu(), p),
    "is one position short": lambda x, w, b, p: F.max_pool1d(F.conv1d(x, w, b).relu(), p)[..., :-1],
    "gives doubles": lambda x, w, b, p: F.max_pool1d(F.conv1d(x, w, b).relu(), p).double(),
    "loses to NaN": lambda x, w, b, p: F.max_pool1d(F.conv1d(x, w, b).relu(), p) * float("nan"),
}


@pytest.mark.parametrize("fault", PLANTED)
def test_a_wrong_output_is_seen(fault):
    with pytest.raises(Wrong):
        check(Contender(small("forward"), provider(PLANTED[fault])))


@pytest.mark.parametrize("rounds", [tf32, gather_cases.tf32], ids=["benchmarks", "tests"])
def test_tf32_has_ten_bits_behind_the_first_and_rounds_to_nearest(rounds):
    last, inf, nan = 2.0**-10, float("inf"), float("nan")
    given = [1, 1 + last, 1 + 0.4 * last, 1 + 0.5 * last, 1 + 1.5 * last, -1 - 0.5 * last, 2 - 2**-23, 0, 3e38]
    right = [1, 1 + last, 1, 1 + last, 1 + 2 * last, -1 - last, 2, 0, 3e38]
    found = rounds(torch.tensor([*given, inf, -inf, nan]))
    assert found[:8].tolist() == right[:8]
    assert found[8].item() == pytest.approx(3e38, rel=2**-11)
    assert found[9:11].tolist() == [inf, -inf]
    assert found[11].isnan()
    x = torch.randn(9, 7).t()  # of any strides
    assert ((rounds(x) - x).abs() <= 2**-11 * x.abs()).all()
    assert (rounds(x) != x).any()


def rounds_its_operands(times: float = 1.0) -> Provider:
    return provider(lambda x, w, b, p: times * layers.max_pool(tf32(x), tf32(w), b, p))


@pytest.fixture
def _a_rounding_of_float32(monkeypatch):
    """Allow no more beside the errors of the definition than the last bit of float32."""
    monkeypatch.setattr(Operation, "rounding", lambda self, case: torch.finfo(torch.float32).eps)
    expectation.cache_clear()
    yield
    expectation.cache_clear()


@pytest.mark.usefixtures("_a_rounding_of_float32")
def test_what_rounding_operands_to_tf32_costs_is_allowed_although_the_definition_does_not():
    """A CPU has no TF32, as cuDNN has none for small shapes; in float32 the same provider is wrong."""
    errors = check(Contender(small("forward", dtype="tf32"), rounds_its_operands()))
    assert errors["output, random"][0] > 100 * torch.finfo(torch.float32).eps
    assert errors["output, exact"][0] == 0
    with pytest.raises(Wrong, match="random"):
        check(Contender(small("forward"), rounds_its_operands()))


@pytest.mark.parametrize("times", [1.01, 0.99])
def test_one_percent_is_refused_in_tf32_too(times):
    assert check(Contender(small("forward", dtype="tf32"), rounds_its_operands()))
    with pytest.raises(Wrong, match="output is off by"):
        check(Contender(small("forward", dtype="tf32"), rounds_its_operands(times)))


def test_a_wrong_gradient_is_seen_although_the_output_is_right():
    late = provider(lambda x, w, b, p: LateIndex.apply(F.conv1d(x, w, b).relu(), p))
    assert check(Contender(small("forward"), late))
    with pytest.raises(Wrong, match="gradient is off by"):
        check(Contender(replace(small("forward_backward"), shape={**SMALL, "L": 400, "C": 1}), late))


def test_errors_may_be_so_many_times_the_tolerance_and_no_more():
    case = small("forward")
    tolerance = check(Contender(case, operation(case.operation).providers["torch eager"]))["output, random"][1]
    off = lambda case: lambda x, w, b, p: layers.max_pool(x, w, b, p) + 3 * tolerance  # noqa: E731
    assert check(Contender(case, Provider("near", off, leeway=8.0)))
    with pytest.raises(Wrong):
        check(Contender(case, Provider("near", off)))


def test_what_is_compiled_for_one_batch_is_checked_with_it(monkeypatch):
    kind, sizes = operation("conv1d_relu_max_pool1d"), []
    monkeypatch.setattr(kind, "checked", lambda case: replace(case, shape={**case.shape, "N": 1}))
    function = lambda x, w, b, p: sizes.append(len(x)) or layers.max_pool(x, w, b, p)  # noqa: E731
    for one_batch in (False, True):
        check(Contender(small("forward"), Provider("planted", lambda case: function, one_batch=one_batch)))
    assert sizes == [1, 1, 3, 3]


def test_a_missing_gradient_is_seen():
    frozen = provider(lambda x, w, b, p: layers.max_pool(x.detach(), w, b, p))
    with pytest.raises(Wrong, match=r"gave .*expected"):
        check(Contender(small("forward_backward"), frozen))


SUITE = """
    from pathlib import Path

    from benchmarks import suites
    from benchmarks.operations import layers, operation
    from benchmarks.registry import Case, Provider
    from benchmarks.test_suites import test_check, test_time

    calls = []


    def noted(name, wrong):
        def layer(x, w, b, p):
            calls.append(name)
            Path(__file__).with_suffix(".calls").write_text(" ".join(calls))
            return layers.max_pool(x, w, 2 * b if wrong else b, p)

        return lambda case: layer


    def cases(device, quick):
        shape = {"N": 3, "C": 4, "L": 20, "O": 8, "K": 3, "P": 2}
        return [Case("conv1d_relu_max_pool1d", "small", shape, "forward")]


    kind = operation("conv1d_relu_max_pool1d")
    kind.providers = {}
    kind.register(Provider("baseline", noted("baseline", False), baseline=True))
    kind.register(Provider("own", noted("own", WRONG), ours=True))
    suites.SUITES.clear()
    suites.SUITES["planted"] = suites.Suite("planted", "", cases, seconds=0.1)
"""


def test_nothing_is_timed_behind_a_red_check():
    session, checked, timed = SimpleNamespace(testsfailed=0, shouldfail=False), {"checked": 1}, {"timed": 1}
    item = SimpleNamespace(session=session, callspec=SimpleNamespace(params=timed))
    assert conftest.pytest_runtest_protocol(item) is None
    session.testsfailed = 1
    assert conftest.pytest_runtest_protocol(item)
    assert session.shouldfail == "nothing is timed: a check is red"
    item.callspec.params = checked
    assert conftest.pytest_runtest_protocol(item) is None


@pytest.mark.parametrize("wrong", [False, pytest.param(True, marks=pytest.mark.large)])
def test_sides_take_turns_and_a_red_check_stops_the_run_before_that(tmp_path, wrong):
    suite = tmp_path / "test_planted.py"
    suite.write_text(textwrap.dedent(SUITE).replace("WRONG", str(wrong)))
    figures = tmp_path / "figures.json"
    command = [sys.executable, "-m", "pytest", suite, "--rootdir", ROOT, "-c", ROOT / "pyproject.toml", "--quick"]
    command += ["-p", "benchmarks.conftest", "-p", "no:cacheprovider", f"--benchmark-json={figures}"]
    outside = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}  # of xdist
    process = subprocess.run(command, cwd=ROOT, env=outside, capture_output=True, text=True, check=False)
    turns = [name for name, _ in itertools.groupby(suite.with_suffix(".calls").read_text().split())]
    if wrong:
        assert process.returncode != 0
        assert "nothing is timed: a check is red" in process.stdout
        assert turns == ["baseline", "own"]  # the checks
        return
    assert process.returncode == 0, process.stdout
    one = json.loads(figures.read_text())["benchmarks"][-1]
    assert one["extra_info"]["provider"] == "own"
    samples, baseline = one["extra_info"]["samples"], one["extra_info"]["baseline_samples"]
    assert len(samples) == len(baseline) >= 5
    # pytest-benchmark's own statistics are those of the same blocks: its clock is ours
    assert one["stats"]["data"] == pytest.approx(samples, rel=1e-6)
    assert turns[-2 * len(samples) :] == ["baseline", "own"] * len(samples)
