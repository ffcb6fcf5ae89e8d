"""Every kernel compiles without a GPU: it spills nothing, fits into shared memory, and uses the tensor cores."""

import os

import pytest
import torch

pytest.importorskip("triton", reason="the package triton is not installed")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("the interpreter compiles nothing", allow_module_level=True)

from seqconv.kernels.triton import census, configurations
from seqconv.kernels.triton.configurations import TILES
from tests.grids import grid

SOME = [("imdb1", "16"), ("imdb2", "tf32"), ("jena1", "16"), ("univariate", "ieee")]
SOME += [("imdb1, tokens", "16"), ("imdb1, folded", "tf32"), ("jena1, windows", "16"), ("sliding", "ieee")]
SOME += [("norm", "16"), ("norm, overlapping", "ieee"), ("norm, motifs", "16"), ("norm, contiguous", "ieee")]


SOME_RECURRENT = [("gru 32", "16"), ("lstm 32, masked", "ieee"), ("lstm 64, many", "16"), ("gru 128, many", "tf32")]
SOME_RECURRENT += [("gru_reset_before 128", "16"), ("lstm 256, masked", "tf32")]
EVERY = census.LAYERS | census.RECURRENT


def check(name, kind, target):
    wrong = []
    for launch in census.launches(EVERY[name], kind, target):
        taken = census.figures(launch, target)
        wrong += [f"{launch.name}: {fault}" for fault in census.faults(launch, kind, target, taken)]
    assert not wrong


@grid(together=1, some=SOME + SOME_RECURRENT, target=census.CHECKED)
def test_some_layers_compile_without_spills(some, target):
    check(*some, target)


@pytest.mark.large
@pytest.mark.parametrize("target", census.CHECKED)
@pytest.mark.parametrize("kind", list(census.KINDS))
@pytest.mark.parametrize("name", list(EVERY))
def test_all_layers_compile_without_spills(name, kind, target):
    check(name, kind, target)


@pytest.mark.parametrize("target", ["sm_100", "gfx942"])
def test_other_architectures_compile(target):
    taken = {one.name: census.figures(one, target) for one in census.launches(census.LAYERS["jena2"], "16", target)}
    expected = "mfma" if target == "gfx942" else "tcgen05"
    assert {name: one.matrix for name, one in taken.items()} == {
        "weights_kernel": "fma",
        "forward_windows_kernel": expected,
        "weight_gradient_kernel": expected,
        "input_gradient_kernel": expected,
    }


@pytest.mark.parametrize("kind", list(census.KINDS))
@pytest.mark.parametrize("name", list(EVERY))
def test_no_batch_size_nor_length_compiles_anything_anew(name, kind):
    """All that a compilation depends on is the same; the largest has more than 2**31 elements."""
    layer, is_recurrent = EVERY[name], name in census.RECURRENT

    def compilations(samples, windows):
        return [
            (one.name, one.source(), one.options)
            for one in census.launches(layer, kind, "sm_90", samples, windows)
            if one.name != "transpose_kernel"  # small, and compiled for what a length is a multiple of
        ]

    first = compilations(2, 3)
    # Beyond 2**31 tokens those that are sorted are divided by another kernel.
    most = (2**12, 2**14) if not is_recurrent and layer.rows == "folded" else (2**17, 2**14)
    sizes = ((1, 16), (128, 5), (4096, 97), (1, 1000), most)
    if is_recurrent and not layer.many:
        sizes = ((1, 16), (31, 5), (60, 97), (64, 2**20))
    for samples, windows in sizes:
        assert compilations(samples, windows) == first


def test_no_size_is_specialised_on_its_value():
    """A launch's numbers are of declared types, and their values are not looked at (as 1, or as a multiple of 16)."""
    for name in ("imdb1", "imdb2", "imdb1, tokens", "imdb1, folded", "textcnn, folded", "norm", "norm, motifs",
                 "lstm 32, masked", "gru 256"):  # fmt: skip
        for launch in census.launches(EVERY[name], "16", "sm_90"):
            for parameter in launch.kernel.params:
                if not parameter.is_constexpr and not isinstance(launch.arguments[parameter.name], torch.Tensor | None):
                    assert parameter.do_not_specialize, parameter.name
                    assert parameter.annotation_type in ("i32", "i64", "fp32"), parameter.name


def keeps_weights(layer):
    """Tell whether the forward pass keeps its weights from tile to tile."""
    tile = census.choices(layer, "16", "sm_90")["forward"][1]
    return tile.phases > 1 and layer.channels <= tile.block_r


@pytest.mark.parametrize("name", list(census.LAYERS))
def test_launches_are_few(name):
    """One forward, before which many weights are repacked; three backward; their grids have one axis.

    To look at an index is one more, to fold two more forward, to sum gradients of rows three more backward, around a
    sort of torch's; through the folded table the same three come first. Two more pool windows of many elements that
    overlap.
    """
    layer = census.LAYERS[name]
    recorded = census.launches(layer, "16", "sm_90", samples=2**17, windows=2**10)
    names = [one.name for one in recorded]
    assert all(len(one.grid) == 1 and one.grid[0] < 2**31 for one in recorded)
    if layer.norm:  # around torch's convolution and its gradients
        normalise = f"normalise_{'globally' if layer.pool is None else 'windows'}_kernel"
        forward = ["survey_kernel", "finish_survey_kernel", normalise]
        assert names == [*forward, "sum_windows_kernel", "finish_sums_kernel", "spread_kernel"]
        return
    pooled = "global_kernel" if layer.pool is None else "windows_kernel"
    forward = [f"forward_{pooled}"]
    if layer.rows == "folded":
        forward = ["weights_kernel", "fold_kernel", f"folded_{pooled}"]
    elif layer.channels * layer.outputs * layer.size > (8192 if keeps_weights(layer) else 1024):
        forward.insert(0, "weights_kernel")
    if name.startswith("sliding"):  # windows of 20 and of 64 elements
        forward += ["pool_activation_kernel"] * 2
    if layer.few:  # in two steps
        forward[-1:] = ["sums_kernel", "pool_sums_globally_kernel" if layer.pool is None else "pool_sums_kernel"]
    backward = ["weight_gradient_kernel", "weights_kernel", "input_gradient_kernel"]
    if layer.pool is None:
        few_rows = name == "motifs"  # four channels: taps share a tile's rows with them
        backward = [backward[0] if few_rows else f"global_{backward[0]}", backward[1], f"global_{backward[2]}"]
    elif name not in (
        "overlapping",
        "sliding",
        "long kernel",
    ):  # windows side by side, and a loop short enough to unroll
        backward = [f"phase_{backward[0]}", backward[1], f"phase_{backward[2]}"]
    if name == "univariate":  # its input is contiguous, too, so that its output is
        backward.insert(0, "transpose_kernel")
    elif layer.rows == "contiguous":  # the input is turned over, twice, and so are the gradients of output and input
        forward.insert(0, "transpose_kernel")
        backward = ["transpose_kernel", "transpose_kernel", *backward, "transpose_kernel"]
    elif layer.rows != "own":
        forward.insert(0, "check_index_kernel")
        backward += ["keys_kernel", "sum_spans_kernel", "join_spans_kernel"]
    if layer.rows == "folded":
        backward = ["keys_kernel", "sum_occurrences_kernel", "join_spans_kernel"]
        backward += ["table_weight_gradient_kernel", "weights_kernel", "table_gradient_kernel"]
    assert names == forward + backward


@pytest.mark.parametrize("name", list(census.RECURRENT))
def test_a_recurrent_pass_is_one_launch(name):
    layer = census.RECURRENT[name]
    for kind in census.KINDS:
        recorded = census.launches(layer, kind, "sm_90", samples=2**20, windows=2**10)
        names = [one.name.removeprefix("wide_") for one in recorded]
        assert names == ["forward_kernel", "backward_kernel"]
        assert all(len(one.grid) == 1 and one.grid[0] < 2**31 for one in recorded)


@pytest.mark.parametrize("target", ["sm_100", "gfx942"])
def test_recurrent_kernels_fit_into_other_architectures(target):
    """On AMD's some spill: nothing was chosen for them."""
    for name, kind in (("lstm 32", "tf32"), ("gru 64, many", "16"), ("lstm 256", "tf32")):
        for launch in census.launches(census.RECURRENT[name], kind, target):
            assert census.figures(launch, target).shared <= census.TARGETS[target]


def test_weights_are_kept_where_they_fit():
    for name, kind, target, kept in (
        ("lstm 128", "16", "sm_90", True), ("lstm 128", "tf32", "sm_90", False), ("gru 128", "ieee", "sm_90", True),
        ("gru 128", "ieee", "sm_80", False), ("gru 128", "16", "sm_89", False), ("gru 256", "16", "sm_90", False),
        ("lstm 64, many", "16", "gfx942", True), ("lstm 64", "ieee", "gfx942", False),
    ):  # fmt: skip
        launch, _ = census.launches(census.RECURRENT[name], kind, target)
        assert launch.name.startswith("wide") != kept, (name, kind, target)


@pytest.mark.parametrize(("kind", "target", "rounds"), [
    ("tf32", "sm_80", True), ("tf32", "sm_90", True), ("tf32", "gfx942", False),
    ("ieee", "sm_90", False), ("16", "sm_90", False),
])  # fmt: skip
def test_float32_is_rounded_to_tf32_and_not_cut(kind, target, rounds):
    for launch in census.launches(census.LAYERS["imdb1"], kind, target):
        if "PRODUCTS" in launch.arguments:
            assert launch.arguments["PRODUCTS"].rounds == rounds
        elif "ROUND" in launch.arguments:
            assert launch.arguments["ROUND"] == rounds


def test_weights_that_fit_stay_with_a_program():
    """Such programs are as many as the device runs at once, and go from tile to tile."""
    for samples in (2**10, 2**17):
        (launch, *_) = census.launches(census.LAYERS["jena1"], "16", "sm_90", samples=samples, windows=80)
        assert launch.arguments["TILE"].resident
        assert launch.grid == (4 * 132,)


def test_a_tile_of_its_own_is_what_a_launch_gets(monkeypatch):
    (layer, tile) = census.choices(census.LAYERS["jena1"], "16", "sm_90")["forward"]
    assert tile == configurations.forward_rule(layer)
    monkeypatch.setitem(TILES, ("forward", *layer), (16, 16, 16, 1, 2, 1))
    configurations.forget()
    try:
        (_, launch, *_) = census.launches(census.LAYERS["jena1"], "16", "sm_90")  # behind the one that packs weights
        assert (launch.arguments["TILE"].M, launch.options["num_warps"]) == (16, 2)
    finally:
        configurations.forget()


def test_prints_a_table(capsys):
    assert census.main(["--layers", "jena1", "--kinds", "16", "--targets", "sm_90"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:5] == ["layer", "kind", "target", "kernel", "registers"]
    assert [line.split()[3] for line in lines[1:]] == [
        "forward_windows_kernel",
        "phase_weight_gradient_kernel",
        "weights_kernel",
        "phase_input_gradient_kernel",
    ]


@pytest.mark.large
@pytest.mark.parametrize("size", [3, 4, 5])
@pytest.mark.parametrize("channels", [128, 300])
def test_other_kernel_sizes_do_not_spill(channels, size):
    """The text convnet's other kernel sizes, with own embeddings and with pretrained ones."""
    layer = census.layer(channels, 100, size, None, rows="tokens")
    for kind in census.KINDS:
        for target in census.CHECKED:
            for launch in census.launches(layer, kind, target):
                assert not census.faults(launch, kind, target, census.figures(launch, target)), (launch.name, kind)
