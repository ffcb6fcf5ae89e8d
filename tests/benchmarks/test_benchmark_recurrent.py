"""GRU and LSTM: who serves which case and why not, all sides right, planted errors seen, a run of the suite."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from benchmarks import frameworks, results, suites
from benchmarks.__main__ import main
from benchmarks.checking import Wrong, check
from benchmarks.operations import operation
from benchmarks.operations.models import DROPOUTS, model_case, torch_model
from benchmarks.operations.recurrent import SEQUENCES, recurrent_case, seqconv_layer
from benchmarks.peers import PEERS
from benchmarks.registry import Case, Contender, Provider, candidates, comparisons
from seqconv import GRU

GRADIENTS = {f"rnn.{name}_l0 gradient, random" for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")}


def small(name: str, mode: str, **options) -> Case:
    case = recurrent_case(name, mode, batch=3, **options)
    return replace(case, shape={**case.shape, "L": 6})


def reasons(case: Case) -> dict[str, str | None]:
    return {one.provider.name: one.unavailable for one in candidates(case)}


@pytest.mark.parametrize("name", ["gru32", "lstm32"])
@pytest.mark.parametrize(("mode", "dropout"), [("inference", False), ("training_step", False), ("training_step", True)])
def test_all_sides_of_a_recurrent_layer_are_right(name, mode, dropout):
    case = small(name, mode, dropout=dropout)
    right = [one for one in candidates(case) if one.unavailable is None and "compile" not in one.provider.name]
    torchs = ["torch loop", "seqconv without dropout"] if dropout else ["torch eager"]
    assert [one.provider.name for one in right][: len(torchs) + 1] == [*torchs, "seqconv auto"]
    expected = {"output, random"} | (GRADIENTS if mode == "training_step" else set())
    for candidate in right:
        assert check(candidate).keys() - {"input gradient, random"} == expected
        assert ("input gradient, random" in check(candidate)) == (name == "lstm32" and mode == "training_step")


def test_who_cannot_serve_says_why(monkeypatch):
    inference, plain = (reasons(small("gru32", mode)) for mode in ("inference", "training_step"))
    dropped = reasons(small("gru32", "training_step", dropout=True))
    assert dropped["torch eager"] == dropped["torch.compile"] == "has no dropout of input and state"
    assert plain["torch loop"] == plain["seqconv without dropout"] == "is for cases with dropout"
    assert "unrolls the steps" in plain["torch.compile"]
    assert inference["seqconv numba recompute"] == "keeps nothing without a backward pass"
    assert plain["seqconv numba recompute"] is None
    assert plain["seqconv numba"] == "auto chose it: the same call"
    monkeypatch.setenv("SEQCONV_BACKEND", "reference")
    assert reasons(small("gru128", "training_step"))["seqconv numba"] is None
    monkeypatch.setattr("seqconv.kernels.numba.support.MISSING", "numba is not here")
    numba = reasons(small("gru32", "training_step"))["seqconv numba"]
    assert numba == "backend 'numba' cannot serve gru: numba is not here"
    whole = reasons(model_case("conv_gru_dropout", "training_step", operation="peers"))
    no_dropout = "has no dropout of a GRU's input and state"
    assert whole["torch eager"] == whole["torch.compile"] == no_dropout
    assert whole["OpenVINO"] == "does not train"
    without = reasons(model_case("conv_gru", "training_step"))["torch eager without dropout"]
    assert without == "is for models with dropout of input and state"


def test_dropout_meets_the_loop_the_step_without_it_and_keras():
    case = recurrent_case("gru32", "training_step", dropout=True)
    met = {one.against.provider.name for one in comparisons(case) if one.candidate.provider.name == "seqconv auto"}
    assert met - {"torch eager"} == {"torch loop", "seqconv without dropout"}
    case = model_case("conv_gru_dropout", "training_step", operation="peers")
    met = {one.against.provider.name for one in comparisons(case)}
    assert met >= {"torch eager without dropout", "torch loop", "Keras, TensorFlow", "Keras, JAX"}


class Mutant(GRU):
    """A layer whose kernel would be wrong in one place."""

    def __init__(self, *given, mutation: str, **options) -> None:
        options.pop("recompute")
        super().__init__(*given, **options)
        self.mutation = mutation

    def draw(self, sound: torch.Tensor) -> torch.Tensor:
        if self.mutation == "one mask for all gates":
            return sound[:, :1].expand_as(sound)
        if self.mutation == "unscaled mask":
            return sound.bool().to(sound.dtype)
        return sound

    def forward(self, input, hx=None):
        masks = {}
        if self.recurrent_dropout:
            of_input, of_state = self.draw_masks(input)
            masks = {"input_mask": of_input, "recurrent_mask": self.draw(of_state)}
        output, state = super().forward(input, hx, **masks)
        if self.mutation == "a late step":
            output = output.roll(1, 1)
        if self.mutation == "a gradient lost" and output.requires_grad:
            output.register_hook(lambda gradient: torch.cat([gradient[:-1], 0 * gradient[-1:]]))
        return output, state


@pytest.mark.parametrize(("mutation", "dropout", "words"), [
    ("a late step", False, "output is off"),
    ("a gradient lost", False, "gradient is off"),
    ("one mask for all gates", True, "is off"),
    ("unscaled mask", True, "is off"),
    ("none", True, None),
])  # fmt: skip
def test_a_mutated_kernel_is_caught(mutation, dropout, words, monkeypatch):
    def make(case):
        layer = seqconv_layer("reference", case)
        own = Mutant(layer.rnn.input_size, layer.rnn.hidden_size, batch_first=True, mutation=mutation,
                     recompute=False, backend="reference", **(DROPOUTS if dropout else {}))  # fmt: skip
        own.load_state_dict(layer.rnn.state_dict())
        layer.rnn = own
        return layer

    candidate = Contender(small("gru32", "training_step", dropout=dropout), Provider("planted", make))
    if words is None:
        assert check(candidate)
        return
    with pytest.raises(Wrong, match=words):
        check(candidate)


def test_the_suite_has_the_promised_cases():
    cases = suites.SUITES["recurrent"].cases("cpu", False)
    alone = {(one.name, one.mode, one.shape["N"]) for one in cases if one.operation == "recurrent"}
    both = ("inference", "training_step")
    assert alone >= {(name, mode, one.batch) for name, one in SEQUENCES.items() for mode in both}
    assert alone >= {(name, mode, 1) for name in ("gru32", "lstm32") for mode in both}
    assert alone >= {(f"{name}_dropout", "training_step", 128) for name in ("gru32", "lstm32")}
    wholes = {(one.name, one.mode) for one in cases if one.operation == "peers"}
    assert wholes == {(name, both[1]) for name in ("jena_gru_dropout", "conv_gru_dropout")} | {("conv_gru", both[0])}


@pytest.mark.parametrize(
    ("name", "peer"), [(name, peer) for name in ("conv_gru_dropout", "jena_gru_dropout") for peer in PEERS]
)
def test_installed_peers_train_with_dropout(name, peer):
    case = model_case(name, "training_step", batch=3, operation="peers")
    candidate = Contender(case, operation("peers").providers[peer])
    if candidate.unavailable:
        pytest.skip(candidate.unavailable)
    assert check(candidate)


def test_keras_weights_are_those_that_seqconv_loads():
    gru = torch_model(model_case("conv_gru", "inference")).rnn
    torch.nn.init.normal_(gru.bias_ih_l0)
    torch.nn.init.normal_(gru.bias_hh_l0)
    own = GRU(32, 32)
    own.load_keras_weights(frameworks.gru_arrays(gru))
    for name, value in gru.state_dict().items():
        assert torch.equal(own.state_dict()[name], value)


@pytest.mark.large
def test_a_quick_run_of_the_recurrent_suite(tmp_path):
    path = tmp_path / "recurrent.json"
    assert main(["recurrent", "--quick", "--select", "gru32", "--out", str(path)]) == 0
    found = results.read(path)["measurements"]
    pairs = {(one["case"]["name"], one["provider"], one["baseline"]) for one in found}
    assert pairs >= {
        ("gru32", "seqconv auto", "torch eager"),
        ("gru32", "seqconv numba recompute", "torch eager"),
        ("gru32_dropout", "seqconv auto", "torch loop"),
        ("gru32_dropout", "seqconv auto", "seqconv without dropout"),
    }
