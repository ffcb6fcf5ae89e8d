"""The CPU's recurrent kernels against the reference in float64, with torch's own rounding as the measure."""

import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from seqconv.kernels.numba import recurrent as floor
from seqconv.kernels.numba.runtime import threads
from seqconv.kernels.recurrence import CELLS, EVERYTHING, NOTHING, STATES, Masks
from tests.kernels.recurrent_cases import Case, cast, check, composed, flat, operands, ours

MASKS = [
    (None, None),
    ("shared", "shared"),
    ("per gate", "per gate"),
    ("shared", "each step"),
    (None, "each step, per gate"),
    ("per gate", None),
]


@pytest.mark.parametrize("keep", [STATES, EVERYTHING])
@pytest.mark.parametrize(("input_mask", "recurrent_mask"), MASKS)
@pytest.mark.parametrize("cell", CELLS)
def test_results_and_gradients_round_as_torchs(cell, input_mask, recurrent_mask, keep):
    case = Case(
        cell, steps=11, batch=70, features=5, hidden=21, directions=2, ragged=recurrent_mask != "per gate",
        input_mask=input_mask, recurrent_mask=recurrent_mask, bias=input_mask != "shared",
        batch_first=input_mask is None,
    )  # fmt: skip
    wide, upstream = operands(case)
    right = composed(cell, wide, upstream)
    narrow = cast(wide)
    check(ours(floor, cell, narrow, cast(upstream), keep), right, composed(cell, narrow, cast(upstream)))


cases = st.builds(
    Case,
    cell=st.sampled_from(list(CELLS)),
    steps=st.integers(1, 6),
    batch=st.integers(1, 20),
    features=st.integers(1, 34),
    hidden=st.integers(1, 40),
    directions=st.integers(1, 2),
    bias=st.booleans(),
    input_mask=st.sampled_from([None, "shared", "per gate"]),
    recurrent_mask=st.sampled_from([None, "shared", "per gate", "each step", "each step, per gate"]),
    ragged=st.booleans(),
    batch_first=st.booleans(),
    scale=st.just(1.0),
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(case=cases, keep=st.sampled_from([STATES, EVERYTHING]), upstream=st.sampled_from(["all", "output", "last"]))
def test_any_shape_in_float64(case, keep, upstream, shared):
    given, (output, last) = operands(case)
    gradients = output if upstream != "last" else None, last if upstream != "output" else None
    found, right = ours(floor, case.cell, given, gradients, keep), composed(case.cell, given, gradients)
    for one, other in zip(found, right, strict=True):
        # 6 steps of sums of at most 80 terms of size 4, and gradients of weights over 120 of them.
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("cell", CELLS)
def test_bits_depend_on_no_thread_and_no_place(cell, shared, monkeypatch):
    case = Case(cell, batch=9, features=18, hidden=33, directions=2, recurrent_mask="per gate")
    given, upstream = (cast(one) for one in operands(case))
    found, again = (ours(floor, cell, given, upstream) for _ in range(2))
    assert all(map(torch.equal, found, again))
    monkeypatch.setattr(threads, "thread_count", lambda parts, work: 1)
    floor._cut.cache_clear()
    alone = ours(floor, cell, given, upstream)
    results = 2 + len(given.states) + len(given.states)  # outputs, last states, gradients of input and first states
    for one, other in zip(found[:results], alone[:results], strict=True):
        assert torch.equal(one, other)
    turned = given._replace(
        input=given.input.flip(1), states=tuple(one.flip(1) for one in given.states),
        masks=Masks(None, given.masks.recurrent.flip(3)),
    )  # fmt: skip
    assert torch.equal(floor.forward(cell, *turned, keep=NOTHING)[0].flip(1), found[0])


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("batch", [1, 2, 15])
def test_few_sequences_and_long_sums(cell, batch):
    case = Case(cell, steps=37, batch=batch, features=150, hidden=140, input_mask="per gate", directions=2, ragged=True)
    wide, upstream = operands(case)
    right = composed(cell, wide, upstream)
    narrow = cast(wide)
    check(ours(floor, cell, narrow, cast(upstream)), right, composed(cell, narrow, cast(upstream)))


@pytest.mark.parametrize("hidden", [5, 16])
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_stays_in_its_sequence(cell, value, hidden):
    given, upstream = (cast(one) for one in operands(Case(cell, hidden=hidden, directions=2, features=3)))
    given.input[3, 1, 0] = value
    right, found = composed(cell, given, upstream), ours(floor, cell, given, upstream)
    for one, other in zip(found, right, strict=True):
        assert torch.equal(one.isnan(), other.isnan())
    assert not found[0][:, 0].isnan().any()


@pytest.mark.parametrize("cell", CELLS)
def test_what_lies_behind_a_sequences_end_has_no_effect(cell):
    case = Case(cell, directions=2, ragged=True, input_mask="per gate", recurrent_mask="each step", batch=20)
    given, upstream = (cast(one) for one in operands(case))
    behind = torch.arange(case.steps)[:, None] >= given.lengths
    assert behind.any()
    before = ours(floor, cell, given, upstream)
    given.input[behind] = math.nan
    after = ours(floor, cell, given, upstream)
    assert all(map(torch.equal, before, after))
    assert not before[0][behind].any()


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("wanted", [(False, True, True), (True, False, False), (False, False, True)])
def test_only_what_is_wanted_is_computed(cell, wanted):
    given, upstream = (cast(one) for one in operands(Case(cell, directions=2, bias=False)))
    output, _, saved = floor.forward(cell, *given, keep=EVERYTHING)
    every, some = (
        floor.backward(cell, *upstream, *given, output, saved, wanted=want) for want in ((True, True, True), wanted)
    )
    for group, other, want in zip(some, every, wanted, strict=True):
        assert len(flat(group)) == (len(flat(other)) if want else 0)
        assert all(map(torch.equal, flat(group), flat(other)[: len(flat(group))]))


@pytest.mark.parametrize("cell", CELLS)
def test_a_batch_of_none(cell):
    given, upstream = (cast(one) for one in operands(Case(cell, batch=0, directions=2)))
    right, found = composed(cell, given, upstream), ours(floor, cell, given, upstream)
    assert all(map(torch.equal, found, right))


def test_strides_are_read_in_place():
    case = Case("gru", features=6, batch_first=True)
    given, upstream = (cast(one) for one in operands(case))
    plain = ours(floor, "gru", given, upstream)
    for input in (
        given.input.permute(1, 2, 0).contiguous().permute(2, 0, 1),  # channels outermost
        given.input.repeat_interleave(2, 2)[:, :, ::2],
    ):
        found = ours(floor, "gru", given._replace(input=input), upstream)
        assert all(map(torch.equal, found, plain))
    expanded = given._replace(input=given.input[:1].expand(case.steps, -1, -1))
    copied = given._replace(input=expanded.input.contiguous())
    assert all(map(torch.equal, ours(floor, "gru", expanded, upstream), ours(floor, "gru", copied, upstream)))


@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_long_sums_of_gradients_round_as_torchs(cell):
    """Gradients of biases are sums over all steps and sequences: of 64,000 numbers of one sign here."""
    ratios = []
    for seed in range(3):
        wide, (output, _) = operands(Case(cell, steps=500, batch=128, hidden=16, features=8), seed)
        upstream = torch.ones_like(output), None
        right, narrow = composed(cell, wide, upstream), cast(wide)
        sides = ours(floor, cell, narrow, cast(upstream)), composed(cell, narrow, cast(upstream))
        mine, theirs = ((one[-1].double() - right[-1]).square().mean().sqrt() for one in sides)
        ratios.append((mine / theirs).item())
    assert sorted(ratios)[1] < 1.3, ratios
