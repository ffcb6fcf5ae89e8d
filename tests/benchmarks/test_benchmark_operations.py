"""The operations: who meets whom and why not, the same numbers and gradients on all sides, cases and tokens as said."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from benchmarks import registry, suites
from benchmarks.checking import Wrong, check
from benchmarks.operations import gather, layers, operation, steps
from benchmarks.operations import models as kinds
from benchmarks.operations.layers import LAYERS, layer_case, rival_case
from benchmarks.operations.models import MODELS, model_case, seqconv_model, torch_model
from benchmarks.operations.rivals import RNNS, step_case
from benchmarks.operations.steps import MODES
from benchmarks.registry import Case, Contender, Provider, candidates, comparisons

GATHERED = {
    "embedding": {"N": 3, "L": 30, "V": 11, "C": 5, "O": 8, "K": 3},
    "window": {"N": 3, "L": 30, "V": 100, "C": 5, "O": 8, "K": 3, "step": 2},
}


@pytest.fixture(autouse=True)
def _small_and_uncompiled(monkeypatch):
    """Read windows in a series that is quickly drawn; compile nothing: the kernels have tests of their own."""
    rows = torch.randn(3000, kinds.COLUMNS)
    monkeypatch.setattr(kinds, "ROWS", len(rows))
    monkeypatch.setattr(kinds, "series", lambda: rows)
    monkeypatch.setenv("SEQCONV_BACKEND", "reference")


@pytest.fixture
def pool():
    """Give the pooled layer's operation, and its own providers back to it afterwards."""
    kind = operation("conv1d_relu_max_pool1d")
    providers = dict(kind.providers)
    yield kind
    kind.providers = providers


def plain(name: str, **marks) -> Provider:
    return Provider(name, lambda case: None, **marks)


def serving(case: Case) -> list[Contender]:
    return [one for one in candidates(case) if one.unavailable is None and "compile" not in one.provider.name]


def met(case: Case) -> list[str]:
    """Return whom seqconv meets."""
    pairs = [one for one in comparisons(case) if one.unavailable is None and one.candidate.provider.ours]
    return [one.against.provider.name for one in pairs]


def test_peers_meet_the_first_baseline_and_ours_meets_every_one(pool):
    case = layer_case("jena1", "forward")
    pool.providers = {}
    pool.register(plain("peer"))
    with pytest.raises(ValueError, match="no baseline"):
        comparisons(case)
    for provider in (plain("first", baseline=True), plain("ours", ours=True), plain("second", baseline=True)):
        pool.register(provider)
    pairs = [(pair.candidate.provider.name, pair.against.provider.name) for pair in comparisons(case)]
    ours = [("ours", "first"), ("ours", "second")]
    assert pairs == [("first", "first"), ("second", "first"), ("peer", "first"), *ours]
    with pytest.raises(ValueError, match="first"):
        pool.register(plain("first"))
    pool.register(plain("away", unavailable=lambda case: "is on holiday"))
    assert next(one for one in comparisons(case) if "away" in str(one)).unavailable == "is on holiday"


def test_unknown_operations_and_unavailable_providers_give_their_reason():
    with pytest.raises(ValueError, match=r"operation must be one of .*windows.*, got 'nothing'"):
        operation("nothing")
    case = layer_case("jena1", "forward")
    providers = operation(case.operation).providers
    assert providers["torch eager"].unavailable(case) is providers["seqconv reference"].unavailable(case) is None
    assert providers["torch.compile max-autotune"].unavailable(case) == "is for GPUs"
    if not torch.cuda.is_available():
        on_gpu = {one.unavailable for one in candidates(replace(case, device="cuda"))}
        assert on_gpu == {"there is no CUDA device"}


@pytest.mark.parametrize("name", suites.SUITES)
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_suites_have_cases_that_survive_json_some_of_them_in_a_quick_run(name, device):
    suite = suites.SUITES[name]
    cases = suite.cases(device, False)
    assert len({str(case) for case in cases}) == len(cases)
    assert set(map(str, suite.cases(device, True))) <= set(map(str, cases))
    assert cases or device == "cuda"
    for case in cases:
        assert Case.from_dict(case.as_dict()) == case
        assert case.device == device
    if device == "cpu":
        assert bool(suite.noted(device, True)) == bool(suite.measure)
        assert suite.checked(device, False)


def test_all_sizes_of_gathered_rows_are_in_a_suite():
    cases = [case for name in ("gather", "gather_shapes") for case in suites.SUITES[name].cases("cpu", False)]
    names = {case.name.partition(", made")[0].partition(", real")[0] for case in cases}
    assert names == {*gather.EMBEDDINGS, *gather.WINDOWS}
    assert not any(case.input_gradient for case in cases)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("pool_size", [0, 2])
@pytest.mark.parametrize("kind", GATHERED)
def test_all_sides_of_gathered_rows_are_right(kind, pool_size, mode):
    shape = {**GATHERED[kind], "P": pool_size}
    case = Case(f"{kind}_{layers.fused_name(shape)}", "small", shape, mode, input_gradient=False)
    gradients = {"weight gradient, exact", "bias gradient, exact"}
    gradients |= {"table gradient, exact"} if kind == "embedding" else set()
    expected = {"output, random", "output, exact"} | (gradients if mode in MODES[2:] else set())
    right = serving(case)
    assert len(right) >= 3
    for candidate in right:
        assert check(candidate).keys() == expected


def stale(kept=[]):  # noqa: B006  one list for all calls
    def embed(rows, table, weight, bias, pool_size):
        kept.append(table.clone())
        return gather.embed(rows, kept[0], weight, bias, pool_size)

    return embed


def forgetful(rows, table, weight, bias, pool_size):
    """Give a token's gradient to its last place alone."""
    last = torch.zeros_like(rows).view(-1).scatter(0, rows.view(-1), 1).view(rows.shape).bool()
    return gather.compose(torch.where(last[..., None], table[rows], table[rows].detach()), weight, bias, pool_size)


def late(series, starts, *others):
    return gather.cut(series, starts + 1, *others)


@pytest.mark.parametrize(("kind", "mode", "function", "words"), [
    ("embedding", "forward_backward", forgetful, "table gradient is off by"),
    ("window", "forward", late, "output is off by"),
    ("embedding", "forward", stale(), "exact inputs"),  # which have another table
])  # fmt: skip
def test_wrong_rows_are_seen(kind, mode, function, words):
    case = Case(f"{kind}_conv1d_relu_max_pool1d", "small", {**GATHERED[kind], "P": 2}, mode, input_gradient=False)
    with pytest.raises(Wrong, match=words):
        check(Contender(case, Provider("planted", lambda case: function)))


def test_a_case_says_where_its_reviews_are_from(monkeypatch, tmp_path):
    monkeypatch.delenv("SEQCONV_DATA", raising=False)
    monkeypatch.setenv("SEQCONV_CACHE", str(tmp_path))
    case = gather.embedding_case("imdb1", "forward")
    assert case.name == "imdb1, made-up reviews"
    gather.reviews.cache_clear()
    inputs = operation(case.operation).inputs(replace(case, shape={**case.shape, "N": 4}), "random")
    assert inputs["tokens"].shape == (4, 500)
    assert inputs["tokens"].dtype == torch.int64
    gather.reviews.cache_clear()
    tmp_path.joinpath("imdb.npz").touch()
    assert gather.embedding_case("imdb1", "forward").name == "imdb1, real reviews"


def test_words_follow_zipf_s_law():
    counts = torch.bincount(gather.zipf(torch.Generator().manual_seed(0), (200, 500), 1000).view(-1), minlength=1000)
    assert counts.shape == (1000,)
    assert counts[0] / counts[9] == pytest.approx(10, rel=0.1)
    assert counts[1] / counts[99] == pytest.approx(50, rel=0.3)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("mode", ["inference", "training_step"])
def test_all_sides_of_a_model_are_right(name, mode):
    case = model_case(name, mode, batch=2)
    rival = {f"torch {MODELS[name].rival}"} if MODELS[name].rival else set()
    right = serving(case)
    torchs = {"torch eager", "torch eager, copied to contiguous"}
    torchs = {"torch eager without dropout", "torch loop"} if MODELS[name].drops else torchs
    expected = torchs | {"seqconv auto"} | rival | {one.replace("torch", "seqconv") for one in rival}
    assert {one.provider.name for one in right} >= expected
    for candidate in right:
        assert check(candidate).keys() == {"output, random"}


@pytest.mark.parametrize("name", [name for name, model in MODELS.items() if not model.drops])
def test_a_model_s_gradients_agree_in_double_precision(name):
    case = replace(model_case(name, "training_step", batch=2), shape={"N": 2, "C": MODELS[name].width, "L": 100})
    kind, found = operation("models"), []
    inputs = kind.inputs(case, "random")
    for model in (seqconv_model(case), torch_model(case), torch_model(case, contiguous=True)):
        step = kind.step(case, model, inputs, torch.float64)
        step.prepare()
        step.forward_backward()
        found.append([one.grad for one in step.parameters.values()])
    for ours in found[1:]:
        given = list(found[0])
        for own in ours:
            place = next(place for place, one in enumerate(given) if one.shape == own.shape)
            torch.testing.assert_close(own, given.pop(place), rtol=1e-9, atol=1e-12)


def test_other_weights_are_seen_and_a_model_s_do_not_depend_on_batch_or_mode():
    case = model_case("jena_convnet", "inference", batch=3)

    def make(case):
        model = torch_model(case)
        torch.nn.init.normal_(model.head.bias, std=0.1)
        return model

    with pytest.raises(Wrong):
        check(Contender(case, Provider("other", make)))
    first, second = (seqconv_model(one).state_dict() for one in (case, replace(case, mode="training_step")))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_seqconv_meets_torch_as_it_is_with_its_input_copied_the_rnn_and_gathering():
    both = ["torch eager", "torch eager, copied to contiguous"]
    more = {"imdb_convnet": ["torch LSTM(32)", "seqconv LSTM(32)"], "conv_gru": [], "textcnn": [],
            "jena_convnet": ["torch GRU(32)", "seqconv GRU(32)"],
            "jena_convnet_from_starts": ["windows filled, then seqconv's model"]}  # fmt: skip
    expected = {name: both + found for name, found in more.items()}
    dropped = ["torch eager without dropout", "torch loop"]
    expected |= {name: dropped for name, model in MODELS.items() if model.drops}
    assert {name: met(model_case(name, "inference")) for name in MODELS} == expected
    windows = ["torch eager", "torch eager, index_select", "windows filled, then seqconv's layer"]
    assert met(gather.window_case("jena1", "forward")) == windows


def test_all_layers_that_can_serve_are_right():
    case = rival_case("jena1", "training_step", batch=3)
    case = replace(case, shape={**case.shape, "L": 20})
    found = {one.provider.name: one for one in candidates(case)}
    assert "GPU" in found["convolution, seqconv triton"].unavailable
    for name in (
        "LSTM",
        "seqconv LSTM",
        "GRU",
        "seqconv GRU",
        "convolution, torch eager",
        "convolution, seqconv numba",
    ):
        assert found[name].unavailable is None
        assert check(found[name]).keys() == {"output, random"}


@pytest.mark.parametrize(("name", "mode"), [("imdb_convnet", "training_step"), ("jena_convnet", "inference")])
def test_all_rivals_answer_to_their_definition(name, mode):
    case, providers = step_case(name, mode, batch=3), operation("rivals").providers
    for provider in ("torch eager", "seqconv auto", RNNS[name], f"seqconv {RNNS[name]}"):
        assert check(Contender(case, providers[provider])).keys() == {"output, random"}
    case = step_case("imdb_convnet", "inference")
    assert providers["GRU(32)"].unavailable(case) == "is the rival of jena_convnet"
    assert providers["LSTM(32)"].unavailable(case) is None
    assert providers["LSTM(32), CUDA graph"].unavailable(case) == "CUDA graphs are for GPUs"


def test_a_graph_is_captured_once_without_gradients_and_replayed_from_the_first_parameters(monkeypatch):
    """On a graph that is none: it calls the step again."""
    stream, nothing = SimpleNamespace(wait_stream=lambda other: None), contextmanager(lambda _: iter([None]))
    fakes = {"Stream": lambda: stream, "current_stream": lambda: stream, "stream": nothing, "graph": nothing}
    for name, fake in {**fakes, "CUDAGraph": lambda: SimpleNamespace(replay=lambda: call())}.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    kind, case = operation("rivals"), step_case("jena_convnet", "training_step", batch=3)
    inputs = kind.inputs(case, "random")
    eager = kind.step(case, kind.providers["seqconv auto"].make(case), inputs, torch.float32)
    eager.prepare()
    eager.call()
    graphed = kind.step(case, kind.providers["seqconv auto, CUDA graph"].make(case), inputs, torch.float32)
    assert isinstance(graphed, steps.GraphStep)
    assert all(group["capturable"] for group in graphed.step.optimizer.param_groups)
    for group in graphed.step.optimizer.param_groups:
        group["capturable"] = False  # which no CPU is
    seen, call = [], graphed.step.call
    graphed.step.call = lambda: (seen.append([one.grad is None for one in graphed.step.parameters.values()]), call())
    graphed.prepare()
    assert len(seen) == steps.WARM_UPS + 1
    assert all(seen[-1])  # the captured call: it writes gradients and adds nothing
    first = {key: one.clone() for key, one in graphed.step.first.items()}
    for _ in range(2):
        graphed.prepare()
        for key, one in graphed.step.parameters.items():
            assert torch.equal(one, first[key])
            assert one.grad is not None
        graphed.call()
    assert len(seen) == steps.WARM_UPS + 1
    for key, value in eager.results().items():
        torch.testing.assert_close(graphed.results()[key], value)


def test_random_shapes_are_the_same_every_time_within_their_ranges_and_limits():
    found = layers.shapes(400)
    assert found[:20] == layers.shapes(20)
    for shape, case in zip(found, layers.sweep_cases(("forward",), 400), strict=True):
        assert all(least <= shape[letter] <= greatest for letter, (least, greatest) in layers.RANGES.items())
        positions = layers.conv_positions(case)
        assert positions >= max(shape["P"], 1)
        assert shape["N"] * shape["O"] * positions * shape["C"] * shape["K"] <= layers.MULTIPLY_ADDS
        assert shape["N"] * max(shape["C"] * shape["L"], shape["O"] * positions) <= layers.NUMBERS
    assert {shape["P"] for shape in found} == set(range(9))
    assert all(any(name in shape for shape in found) for name in layers.OPTIONS)
    for letter, (least, greatest) in layers.RANGES.items():
        if letter != "N":  # cut where a case would be too large
            assert 0.35 < sum(shape[letter] > (least * greatest) ** 0.5 for shape in found) / 400 < 0.65


@pytest.mark.parametrize("number", range(4))
def test_all_sides_of_a_random_shape_are_right_and_seqconv_meets_torch_alone(number):
    case = layers.sweep_cases(("forward_backward",), 4)[number]
    for provider in ("torch eager, better layout", "seqconv auto"):
        assert check(Contender(case, operation("sweep").providers[provider]))
    pairs = [(one.candidate.provider.name, one.against.provider.name) for one in comparisons(case)]
    assert pairs == [(f"seqconv {one}", "torch eager, better layout") for one in ("auto", "numba")]


def test_a_random_shape_is_checked_with_fewer_samples_and_numba_timed_where_auto_chose_something_else(monkeypatch):
    case = next(one for one in layers.sweep_cases(("forward",), 50) if one.shape["N"] > 100)
    small = operation("sweep").checked(case)
    assert 1 <= small.shape["N"] <= case.shape["N"]
    assert {**small.shape, "N": case.shape["N"]} == case.shape
    layers.chosen.cache_clear()
    assert layers.chosen(case) == "reference"  # what the environment says
    layers.chosen.cache_clear()
    monkeypatch.setattr(layers, "refused", lambda backend, case: None)
    assert layers.chosen_or_refused(case) is None
    monkeypatch.setattr(layers, "chosen", lambda case: "numba")
    assert layers.chosen_or_refused(case) == "auto chose it: the same call"


def test_numbers_are_drawn_on_the_device_that_is_to_have_them(monkeypatch):
    asked = []
    generator = SimpleNamespace(manual_seed=asked.append)
    monkeypatch.setattr(torch, "Generator", lambda device: asked.append(device) or generator)
    for available in (True, False):
        monkeypatch.setattr(torch.cuda, "is_available", lambda available=available: available)
        steps.seeded(layer_case("jena1", "forward", device="cuda"), "random")
    monkeypatch.undo()
    assert asked[::2] == ["cuda", "cpu"]
    assert asked[1] == asked[3]


def test_the_inputs_of_two_layers_are_drawn_once(monkeypatch):
    """Random ones and exact ones of each: a check of the second layer must not drop the first layer's."""
    drawn_for = []
    kind, case = operation("conv1d_relu_max_pool1d"), replace(layer_case("jena1", "forward", batch=2), cold=True)
    inputs = kind.inputs
    monkeypatch.setattr(kind, "inputs", lambda case, values: drawn_for.append(values) or inputs(case, values))
    registry._drawn.cache_clear()
    for _ in range(2):
        for name in ("first", "second"):
            for values in kind.values:
                registry.drawn(replace(case, name=name), values)
    assert drawn_for == [*kind.values, *kind.values]


def test_large_batches_on_a_gpu_are_checked_with_fewer_samples():
    kind, case = operation("conv1d_relu_max_pool1d"), layer_case("jena1", "forward", batch=4096, device="cuda")
    assert kind.checked(case) == replace(case, shape={**case.shape, "N": 1024})
    assert kind.checked(replace(case, device="cpu")).shape["N"] == 4096
    assert all(kind.checked(layer_case(name, "forward", device="cuda")).shape["N"] == 128 for name in LAYERS)
