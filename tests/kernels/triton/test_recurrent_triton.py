"""The recurrent GPU kernels against the reference in float64: no larger an error than twice torch's own."""

import inspect
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from benchmarks import checking
from benchmarks.operations import operation
from benchmarks.operations.recurrent_gpu import recurrent_case
from benchmarks.registry import Contender
from seqconv.kernels.recurrence import CELLS, EVERYTHING, NOTHING, STATES, Masks, Weights
from seqconv.kernels.triton import recurrent, support
from tests.grids import grid
from tests.kernels.recurrent_cases import Case, cast, check, composed, flat, operands, ours

WAYS = ("kept", "wide")
MASKS = [
    (None, None),
    ("shared", "shared"),
    ("per gate", "per gate"),
    (None, "each step"),
    ("shared", "each step, per gate"),
]


@pytest.fixture
def _rounding(device, monkeypatch):
    """Have the interpreter round numbers to bfloat16, as GPUs do; it cuts them."""
    if device.type == "cpu":
        from triton.language import bfloat16
        from triton.runtime import interpreter

        cut = interpreter._convert_float

        def rounded(input, of, to, mode):
            if to != bfloat16:
                return cut(input, of, to, mode)
            return torch.from_numpy(np.ascontiguousarray(input)).bfloat16().view(torch.int16).numpy().view(np.uint16)

        monkeypatch.setattr(interpreter, "_convert_float", rounded)


@pytest.fixture(params=WAYS)
def way(request, monkeypatch):
    """Run a test on the kernels that keep their weights, and on those that read them anew."""
    if request.param == "wide":
        widen(monkeypatch)
    return request.param


def widen(monkeypatch, block=16):
    """Have all layers served by the kernels for many hidden units, in small blocks."""
    for name in ("FEW", "MANY"):
        monkeypatch.setattr(recurrent, name, {kind: {} for kind in recurrent.WIDE})
    tiles = {kind: one._replace(block_o=block, block_r=block) for kind, one in recurrent.WIDE.items()}
    monkeypatch.setattr(recurrent, "WIDE", tiles)


def compare(device, case, keep=EVERYTHING, dtype=torch.float32, change=None, seed=0):
    """Compare all results with the reference's; ``change`` makes other operands of the drawn ones."""
    given, upstream = cast(operands(case, seed), dtype, device)
    if change is not None:
        given, upstream = change(given, upstream)
    theirs = composed(case.cell, given, upstream)
    exact = [one.cpu() for one in composed(case.cell, *cast((given, upstream), torch.float64, device))]
    mine = ours(recurrent, case.cell, given, upstream, keep)
    assert all(one.dtype == dtype and one.device.type == device.type for one in mine)
    check(mine, exact, theirs)
    return mine


@grid(cell=CELLS, masks=MASKS, keep=[STATES, EVERYTHING], directions=[1, 2], ragged=[False, True])
@pytest.mark.parametrize("way", ["kept", pytest.param("wide", marks=pytest.mark.large)], indirect=True)
def test_equals_the_reference(device, way, cell, masks, keep, directions, ragged):
    input_mask, recurrent_mask = masks
    case = Case(cell, directions=directions, input_mask=input_mask, recurrent_mask=recurrent_mask, ragged=ragged)
    compare(device, case, keep)


@grid(cell=CELLS, masks=MASKS, directions=[1, 2])
def test_several_blocks_of_hidden_units(device, monkeypatch, cell, masks, directions):
    widen(monkeypatch)
    input_mask, recurrent_mask = masks
    case = Case(cell, 3, 3, 4, 21, directions, True, input_mask, recurrent_mask, directions == 2)
    compare(device, case, EVERYTHING if directions == 2 else STATES)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize(("hidden", "batch"), [(1, 1), (5, 17), (16, 2), (33, 3)])
def test_sizes_that_are_no_powers_of_two_and_several_tiles(device, cell, hidden, batch):
    compare(device, Case(cell, 3, batch, 3, hidden, recurrent_mask="shared", ragged=batch == 17))


@pytest.mark.parametrize("cell", CELLS)
def test_without_biases_and_with_strided_operands(device, way, cell):
    def spread(given, upstream):
        apart = [torch.stack([one, one], -1)[..., 0] for one in (*given.states, upstream[0])]
        masks = Masks(*(None if one is None else torch.stack([one, one], -1)[..., 0] for one in given.masks))
        given = given._replace(states=tuple(apart[:-1]), masks=masks)
        assert not given.input.is_contiguous()
        return given, (apart[-1], tuple(one[:, :1].expand_as(one) for one in upstream[1]))

    case = Case(cell, 4, 3, bias=False, batch_first=True, input_mask="shared", recurrent_mask="per gate")
    compare(device, case, change=spread)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("missing", [(0,), (1,)], ids=["no output", "no last states"])
def test_gradients_that_are_none_stand_for_zeros(device, way, cell, missing):
    def drop(given, upstream):
        return given, tuple(None if i in missing else one for i, one in enumerate(upstream))

    compare(device, Case(cell, 4, 3, directions=2, ragged=True), change=drop)


@pytest.mark.usefixtures("_rounding")
@pytest.mark.parametrize("keep", [STATES, EVERYTHING])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("cell", CELLS)
def test_half_floats(device, way, cell, dtype, keep):
    case = Case(cell, 4, 18 if way == "kept" else 16, recurrent_mask="per gate", ragged=keep == STATES)
    compare(device, case, keep, dtype, seed=1)  # of few numbers, with seed 0, torch's happen to err little


@pytest.mark.parametrize("cell", CELLS)
def test_small_numbers_keep_their_digits(device, cell):
    compare(device, Case(cell, 5, 3, bias=False, scale=1e-3), change=lambda given, upstream: (
        given._replace(input=given.input * 1e-3), upstream
    ))  # fmt: skip


@pytest.mark.parametrize("cell", CELLS)
def test_saturated_gates(device, way, cell):
    """No exponential overflows into a NaN."""
    given, upstream = cast(operands(Case(cell, 4, 3, scale=1e4)))
    mine = ours(recurrent, cell, *cast((given, upstream), device=device))
    for one, other in zip(mine, composed(cell, given, upstream), strict=True):
        torch.testing.assert_close(one.cpu(), other, rtol=1e-4, atol=1e-4 * other.abs().max().item())


@pytest.mark.parametrize("keep", [NOTHING, STATES, EVERYTHING])
@pytest.mark.parametrize("cell", CELLS)
def test_what_is_kept(device, way, cell, keep):
    given, _ = cast(operands(Case(cell, 4, 3, ragged=True)), device=device)
    kind = CELLS[cell]
    every = recurrent.forward(cell, *given, keep=EVERYTHING)
    output, last, saved = recurrent.forward(cell, *given, keep=keep)
    assert torch.equal(output, every[0])
    assert all(torch.equal(one, other) for one, other in zip(last, every[1], strict=True))
    numbers = {NOTHING: 0, STATES: kind.states - 1, EVERYTHING: {"gru_reset_before": 3, "gru": 4, "lstm": 5}[cell]}
    assert saved.numel() == numbers[keep] * output.numel()
    assert output.is_contiguous()


@grid(together=1, cell=CELLS, wanted=[tuple(i in which for i in range(3)) for which in ((), (0,), (1,), (2,), (0, 2))])
def test_what_is_not_wanted_is_none(device, cell, wanted):
    given, upstream = cast(operands(Case(cell, 3, 3)), device=device)
    output, _, saved = recurrent.forward(cell, *given, keep=EVERYTHING)
    every, some = (
        recurrent.backward(cell, *upstream, *given, output, saved, wanted=which) for which in ((True,) * 3, wanted)
    )
    assert (some.input is not None, some.states != (), some.weights is not None) == wanted
    for one, other, want in zip(some, every, wanted, strict=True):
        if want:
            assert all(torch.equal(a, b) for a, b in zip(flat(one), flat(other), strict=True))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("cell", CELLS)
def test_nan_and_infinities_stay_in_their_sequences(device, way, cell, value):
    """Hidden units of the tile that there are not, and steps behind a sequence's end, take nothing and give nothing."""
    given, upstream = cast(operands(Case(cell, 4, 3, hidden=5, directions=2, ragged=True)))
    given = given._replace(lengths=torch.tensor([4, 2, 3]))
    given.states[-1][:, 1, 2] = value
    given.input[3, 2, 1] = value  # behind the end
    expected, last = recurrent_reference(cell, given)
    output, found, _ = recurrent.forward(cell, *cast(given, device=device), keep=NOTHING)
    for one, other in zip((output, *found), (expected, *last), strict=True):
        torch.testing.assert_close(one.cpu(), other, rtol=1e-5, atol=1e-5, equal_nan=True)
    assert output[:, 2].isfinite().all()
    results = ours(recurrent, cell, *cast((given, upstream), device=device))
    gradient = results[1 + len(last)]
    assert gradient[:, [0, 2]].isfinite().all()
    for one, other in zip(results[1 + len(last) :], composed(cell, given, upstream)[1 + len(last) :], strict=True):
        assert not (one.cpu().isnan() & ~other.isnan()).any()


def recurrent_reference(cell, given):
    from seqconv.kernels.reference import recurrent as reference

    return reference.layer(cell, *given)


@pytest.mark.parametrize("cell", CELLS)
def test_an_empty_batch(device, way, cell):
    compare(device, Case(cell, 3, 0, directions=2, input_mask="per gate", recurrent_mask="per gate", ragged=True))


@pytest.mark.parametrize("cell", CELLS)
def test_the_same_input_gives_the_same_bits(device, way, cell):
    given, upstream = cast(operands(Case(cell, 3, 5, directions=2)), device=device)
    first, second = (ours(recurrent, cell, given, upstream) for _ in range(2))
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


def test_steps_behind_the_longest_sequence_of_a_tile_are_zeros(device, way):
    for cell in CELLS:
        given, upstream = cast(operands(Case(cell, 6, 3, directions=2)), device=device)
        given = given._replace(lengths=torch.tensor([2, 1, 3]))
        output, _, saved = recurrent.forward(cell, *given, keep=EVERYTHING)
        found = recurrent.backward(cell, *upstream, *given, output, saved, wanted=(True,) * 3)
        assert not output[3:].any()
        assert not found.input[3:].any()
        assert all(one.isfinite().all() for one in flat(tuple(found)))


@pytest.mark.parametrize("lengths", [[3, 0, 2], [0, 0, 0]])
@pytest.mark.parametrize("cell", CELLS)
def test_sequences_without_a_step(device, way, cell, lengths):
    compare(device, Case(cell, 3, 3, ragged=True), change=lambda given, upstream: (
        given._replace(lengths=torch.tensor(lengths)), upstream
    ))  # fmt: skip


def test_tiles_by_hidden_units_and_sequences():
    """Three tiles for a kind of number and a number of hidden units, no matter the lengths."""
    for cell in ("gru", "lstm"):
        found = {}
        for hidden in (1, 32, 33, 64, 128, 129, 1024):
            weights = [Weights(*torch.empty(2, 1, hidden), None, None)]
            group = recurrent._group(CELLS[cell], weights, Masks(), slots=0)
            found[hidden] = {
                recurrent._tile(torch.empty(steps, 1, 1).expand(-1, samples, -1), group)
                for steps in (1, 100) for samples in (1, 3, 64, 10**6)
            }  # fmt: skip
        assert all(len(tiles) <= 2 for tiles in found.values())
        assert found[129] == found[1024] == {recurrent.WIDE["ieee"]}
        assert found[1] == found[32] != found[33]


def test_two_floors_have_the_same_signatures():
    expected = ("cell", "input", "states", "weights", "masks", "lengths", "keep")
    assert tuple(inspect.signature(recurrent.forward).parameters) == expected
    expected = ("cell", "gradient", "last_gradients", *expected[1:-1], "output", "saved", "wanted")
    assert tuple(inspect.signature(recurrent.backward).parameters) == expected
    assert tuple(inspect.signature(support.refuse_recurrent).parameters) == ("cell", *expected[3:8])


def refused(device, change=lambda given: given, case=None):
    case = Case("lstm", 3, 2) if case is None else case
    return support.refuse_recurrent(case.cell, *change(cast(operands(case)[0], device=device)))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda given: cast(given, torch.float64), "it serves float32, float16 and bfloat16, got torch.float64"),
        (lambda given: given._replace(states=cast(given.states, torch.float16)), "of the input's dtype, torch.float32"),
        (lambda given: given._replace(states=cast(given.states, device="meta")), "on the input's device"),
        (
            lambda given: given._replace(weights=(given.weights[0]._replace(weight_hr=given.input[0, :1]),)),
            "it serves no projection, got weight_hr",
        ),
        (lambda given: given._replace(input=given.input[:0]), "at least one step and feature, got an input"),
        (
            lambda given: given._replace(masks=Masks(torch.ones_like(given.input[:1]).requires_grad_())),
            "it serves masks without gradients",
        ),
        (lambda given: given._replace(lengths=torch.ones(2, dtype=torch.int32)), "it serves lengths of int64"),
    ],
)  # fmt: skip
def test_what_is_not_served(device, change, reason):
    assert reason in refused(device, change)


def test_what_is_served(device):
    assert refused(device) is None
    for cell in CELLS:
        case = Case(cell, 3, 2, hidden=1024, directions=2, input_mask="per gate", recurrent_mask="each step")
        assert refused(device, case=case) is None
        assert refused(device, lambda given: cast(given, torch.bfloat16), case) is None
        assert refused(device, case=case._replace(hidden=1025)) == "it serves 1 to 1024 hidden units, got 1025"
    assert support.avoid_recurrent() == "not yet measured on a GPU"


def test_other_devices_are_refused():
    given = cast(operands(Case("gru", 3, 2))[0], device="meta")
    assert "it serves tensors on a GPU" in support.refuse_recurrent("gru", *given)


@pytest.mark.parametrize("dropout", [False, True])
@pytest.mark.parametrize("name", ["GRU, 14 to 32", "LSTM, 32 to 32"])
def test_what_benchmarks_time_is_checked(device, name, dropout):
    """The benchmarks call these functions as they are: their autograd function gives torch's numbers."""
    case = recurrent_case(name, "forward_backward", batch=3, dropout=dropout, device=device.type)
    case = replace(case, shape={**case.shape, "L": 3})
    for provider in ("seqconv triton", "torch loop", *(() if dropout else ("torch nn",))):
        found = Contender(case, operation("recurrent_gpu").providers[provider])
        assert found.unavailable is None
        assert len(checking.check(found)) == 6


gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")]


def on_gpu(test):
    for mark in gpu:
        test = mark(test)
    return test


@on_gpu
@pytest.mark.parametrize("hidden", [32, 64, 100, 128, 200, 512])
@pytest.mark.parametrize("cell", CELLS)
def test_sizes_of_every_tile(cell, hidden):
    """Also in half floats, and with so many sequences that programs have other tiles; reruns agree to the bit."""
    device = torch.device("cuda")
    for batch in (5, 700):
        case = Case(cell, 12, batch, 14, hidden, 2, True, "shared", "per gate", ragged=True)
        compare(device, case)
        compare(device, case, STATES, torch.bfloat16)
        given, upstream = cast(operands(case), device=device)
        first, second = (ours(recurrent, cell, given, upstream) for _ in range(2))
        assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


@on_gpu
@pytest.mark.parametrize("hidden", [32, 64, 128, 256])
@pytest.mark.parametrize("cell", CELLS)
def test_tf32_products(cell, hidden, monkeypatch):
    """Errors are at most twice those of torch's composition with TF32 products."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", True)
    for batch in (5, 3000):
        given, upstream = cast(operands(Case(cell, 10, batch, 14, hidden)))
        on_device = cast((given, upstream), device="cuda")
        exact = composed(cell, *cast((given, upstream), torch.float64, "cuda"))
        check(
            ours(recurrent, cell, *on_device), [one.cpu() for one in exact], composed(cell, *on_device), floor=1e-3,
        )  # fmt: skip


@on_gpu
@pytest.mark.parametrize("hidden", [32, 100, 300])
@pytest.mark.parametrize("cell", CELLS)
def test_waits_for_nothing_and_compiles_nothing_anew(cell, hidden):
    from seqconv.kernels.triton.device import recurrent as code

    kernels = [getattr(code, name) for name in code.__all__]

    def compilations():
        return sum(len(caches[0]) for kernel in kernels for caches in kernel.device_caches.values())

    def step(case):
        given, upstream = drawn[case]
        ours(recurrent, cell, given, upstream)

    cases = [Case(cell, steps, batch, 14, hidden) for steps, batch in ((2, 3), (7, 3), (1, 1), (33, 128), (5, 4000))]
    drawn = {case: cast(operands(case), device="cuda") for case in cases}
    step(cases[0])
    step(cases[-1])  # the tile of many sequences
    before = compilations()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for case in cases:
            step(case)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert compilations() == before
