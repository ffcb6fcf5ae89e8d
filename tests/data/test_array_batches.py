import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from seqconv.data import ArrayBatches


def numbered(rows):
    return np.arange(rows * 3, dtype=np.int32).reshape(rows, 3), np.arange(rows, dtype=np.float32)


def rows_in(batches):
    return [targets.long().tolist() for _, targets in batches]


@given(st.integers(0, 40), st.integers(1, 15), st.booleans(), st.booleans())
def test_a_pass_brings_every_row_once(rows, batch_size, shuffle, drop_last):
    batches = ArrayBatches(*numbered(rows), batch_size=batch_size, shuffle=shuffle, seed=3, drop_last=drop_last)
    received = list(batches)
    assert len(received) == len(batches)
    seen = [row for batch in rows_in(received) for row in batch]
    assert len(set(seen)) == len(seen) == (rows - rows % batch_size if drop_last else rows)
    assert all(len(targets) == batch_size for _, targets in received[:-1])
    for inputs, targets in received:
        assert inputs.dtype == torch.int32
        assert torch.equal(inputs[:, 0], 3 * targets.int())
    if not shuffle:
        assert seen == sorted(seen)


def test_each_pass_has_its_own_order_which_the_seed_reproduces():
    one, same, other = (ArrayBatches(*numbered(50), batch_size=8, shuffle=True, seed=seed) for seed in (5, 5, 6))
    first, second = rows_in(one), rows_in(one)
    assert first != second
    assert [rows_in(same), rows_in(same)] == [first, second]
    assert rows_in(other) != first


def test_without_a_seed_torchs_generator_decides():
    orders = []
    for _ in range(2):
        torch.manual_seed(11)
        orders.append(rows_in(ArrayBatches(*numbered(50), shuffle=True)))
    assert orders[0] == orders[1]
    assert rows_in(ArrayBatches(*numbered(50), shuffle=True)) != orders[0]


@given(st.integers(1, 30), st.integers(1, 7), st.integers(0, 3), st.integers(0, 30), st.booleans())
def test_a_restored_pass_goes_on_where_the_state_was_taken(rows, batch_size, passes, stop, shuffle):
    whole = ArrayBatches(*numbered(rows), batch_size=batch_size, shuffle=shuffle, seed=1)
    expected = [rows_in(whole) for _ in range(passes + 2)]
    interrupted = ArrayBatches(*numbered(rows), batch_size=batch_size, shuffle=shuffle, seed=1)
    for _ in range(passes):
        list(interrupted)
    stop = min(stop, len(interrupted))
    iterator = iter(interrupted)
    for _ in range(stop):
        next(iterator)
    state = json.loads(json.dumps(interrupted.state_dict()))

    restored = ArrayBatches(*numbered(rows), batch_size=batch_size, shuffle=shuffle)
    restored.load_state_dict(state)
    assert restored.state_dict() == state
    assert rows_in(restored) == expected[passes][stop:]
    assert rows_in(restored) == expected[passes + 1]


def test_a_state_between_passes_leads_to_the_next_pass():
    whole = ArrayBatches(*numbered(20), batch_size=6, shuffle=True, seed=1)
    rows_in(whole)
    restored = ArrayBatches(*numbered(20), batch_size=6, shuffle=True, seed=1)
    restored.load_state_dict(whole.state_dict())
    assert rows_in(restored) == rows_in(whole)


def test_an_abandoned_pass_is_not_finished_by_the_next():
    batches = ArrayBatches(*numbered(20), batch_size=6, shuffle=True, seed=1)
    abandoned = iter(batches)
    next(abandoned)
    reference = ArrayBatches(*numbered(20), batch_size=6, shuffle=True, seed=1)
    rows_in(reference)
    second = iter(batches)
    first_batch = next(second)
    # The abandoned iterator no longer counts, whatever is still drawn from it.
    list(abandoned)
    assert batches.state_dict()["batch"] == 1
    assert rows_in([first_batch, *second]) == rows_in(reference)


@pytest.mark.parametrize("uneven", ["pad", "drop", "keep"])
@given(st.integers(3, 30), st.integers(1, 4), st.integers(1, 3), st.booleans())
def test_ranks_share_out_the_rows_of_one_process(uneven, rows, batch_size, world_size, shuffle):
    arguments = {"shuffle": shuffle, "seed": 3}
    (order,) = rows_in(ArrayBatches(*numbered(rows), batch_size=rows, **arguments))
    arguments |= {"batch_size": batch_size, "world_size": world_size, "uneven": uneven}
    whole = rows // world_size * world_size
    expected = {"pad": [*order, *order[: (whole - rows) % world_size]], "drop": order[:whole], "keep": order}[uneven]
    for rank in range(world_size):
        batches = ArrayBatches(*numbered(rows), rank=rank, **arguments)
        received = rows_in(batches)
        assert [row for batch in received for row in batch] == expected[rank::world_size]
        assert len(received) == len(batches)
        assert all(len(batch) == batch_size for batch in received[:-1])


def test_a_split_keeps_the_ranks_and_has_each_validation_row_once():
    arguments = {"batch_size": 4, "world_size": 2, "uneven": "drop"}
    parts = [ArrayBatches(*numbered(12), rank=rank, **arguments).split(0.25) for rank in range(2)]
    assert [rows_in(train) for train, _ in parts] == [[[0, 2, 4, 6]], [[1, 3, 5, 7]]]
    assert [rows_in(validation) for _, validation in parts] == [[[9, 11]], [[10]]]


def test_a_position_of_other_ranks_is_refused():
    first, second = (ArrayBatches(*numbered(20), rank=rank, world_size=2) for rank in range(2))
    with pytest.raises(ValueError, match=r"saved with {'rank': 0}, this loader has {'rank': 1}"):
        second.load_state_dict(first.state_dict())
    with pytest.raises(ValueError, match=r"saved with {'world_size': 2}, this loader has {'world_size': 1}"):
        ArrayBatches(*numbered(20)).load_state_dict(first.state_dict())
    old = ArrayBatches(*numbered(20)).state_dict()
    del old["config"]["rank"], old["config"]["world_size"]
    ArrayBatches(*numbered(20)).load_state_dict(old)
    with pytest.raises(ValueError, match=r"saved with {'world_size': 1, .* this loader has {'world_size': 2,"):
        first.load_state_dict(old)


def test_a_state_of_other_batches_is_refused():
    state = ArrayBatches(*numbered(20), batch_size=6).state_dict()
    with pytest.raises(ValueError, match=r"saved with {'batch_size': 6}, this loader has {'batch_size': 7}"):
        ArrayBatches(*numbered(20), batch_size=7).load_state_dict(state)
    with pytest.raises(ValueError, match="within a pass of 4 batches"):
        ArrayBatches(*numbered(20), batch_size=6).load_state_dict({**state, "batch": 5})


def test_an_order_by_another_seed_is_refused():
    state = ArrayBatches(*numbered(20), shuffle=True, seed=1).state_dict()
    with pytest.raises(ValueError, match=r"saved with {'seed': 1}, this loader has {'seed': 2}"):
        ArrayBatches(*numbered(20), shuffle=True, seed=2).load_state_dict(state)
    in_order = ArrayBatches(*numbered(20), seed=1).state_dict()
    ArrayBatches(*numbered(20), seed=2).load_state_dict(in_order)


@pytest.mark.parametrize(
    "change", [{"batch": "1"}, {"pass": None}, {"seed": 0.5}, {"under_way": 1}, {"config": None}, None]
)
def test_what_is_no_state_is_refused(change):
    batches = ArrayBatches(*numbered(20))
    with pytest.raises(ValueError, match="state must be what state_dict returned"):
        batches.load_state_dict({} if change is None else {**batches.state_dict(), **change})


def test_an_iterator_from_before_a_restore_no_longer_counts():
    batches = ArrayBatches(*numbered(20), batch_size=6)
    before = iter(batches)
    next(before)
    batches.load_state_dict(batches.state_dict())
    next(before)
    assert rows_in(batches) == [[6, 7, 8, 9, 10, 11], [12, 13, 14, 15, 16, 17], [18, 19]]


@pytest.mark.parametrize("shuffle", [False, True])
def test_batches_do_not_share_memory_with_the_arrays(shuffle):
    inputs, targets = numbered(10)
    for batch, _ in ArrayBatches(inputs, targets, batch_size=4, shuffle=shuffle):
        batch.fill_(-1)
    assert (inputs >= 0).all()


def test_arrays_are_read_in_place_and_tensors_and_read_only_arrays_taken(recwarn):
    inputs, targets = numbered(4)
    batches = ArrayBatches(inputs[:, ::2], torch.from_numpy(targets))
    inputs[0, 0] = 99
    assert next(iter(batches))[0].tolist() == [[99, 2], [3, 5], [6, 8], [9, 11]]
    inputs.flags.writeable = False
    assert next(iter(ArrayBatches(inputs, targets)))[0].shape == (4, 3)
    assert not recwarn.list


def test_arrays_that_no_tensor_can_share_are_taken():
    inputs, targets = numbered(4)
    received = next(iter(ArrayBatches(inputs[::-1], targets.astype(">f4"), batch_size=np.int64(4))))
    assert torch.equal(received[0], torch.from_numpy(inputs[::-1].copy()))
    assert torch.equal(received[1], torch.from_numpy(targets))


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((np.zeros(3), np.zeros(2)), {}, ValueError, r"as many rows as inputs \(3\), got 2"),
        ((np.zeros(3), np.zeros(3)), {"batch_size": 0}, ValueError, "batch_size must be at least 1, got 0"),
        ((np.zeros(3), np.zeros(3)), {"batch_size": 2.0}, TypeError, "batch_size must be an int, got 2.0"),
        ((np.zeros(3), np.zeros(3)), {"seed": -1}, ValueError, "seed must be at least 0, got -1"),
        ((np.zeros(3), np.zeros(3)), {"seed": "1"}, TypeError, "seed must be an int, got '1'"),
        ((np.zeros(3), np.array(["a", "b", "c"])), {}, TypeError, "targets must be a numeric array, got dtype <U1"),
        ((np.zeros(3), np.zeros(3)), {"rank": 1}, ValueError, "rank must be within 0 to 0, got 1"),
        (
            (np.zeros(3), np.zeros(3)),
            {"uneven": "cut"},
            ValueError,
            "'pad', 'drop' or 'keep', got 'cut'",
        ),
        ((np.zeros(3), np.zeros(3)), {"world_size": 2, "shuffle": True}, ValueError, "seed must be given"),
        ((np.zeros(1), np.zeros(1)), {"world_size": 2, "uneven": "drop"}, ValueError, "needs a row for each of the 2"),
        (([1, 2], np.zeros(2)), {}, TypeError, "inputs must be a NumPy array or a tensor, got list"),
        ((np.zeros(2), np.array([None, 1])), {}, TypeError, "targets must be a numeric array"),
        ((np.zeros(()), np.zeros(1)), {}, ValueError, "inputs must be on the CPU and have rows"),
    ],
)
def test_bad_arguments_are_named(arguments, options, error, message):
    with pytest.raises(error, match=message):
        ArrayBatches(*arguments, **options)


def test_split_takes_the_last_rows_for_validation_before_shuffling():
    rows = np.arange(10)
    train, validation = ArrayBatches(rows, -rows, batch_size=4, shuffle=True, seed=3).split(0.25)
    assert sorted(torch.cat([inputs for inputs, _ in train]).tolist()) == list(range(7))
    assert [inputs.tolist() for inputs, _ in validation] == [[7, 8, 9]]
    assert [targets.tolist() for _, targets in validation] == [[-7, -8, -9]]
    again = ArrayBatches(rows, -rows, batch_size=4, shuffle=True, seed=3).split(0.25)[0]
    assert torch.equal(
        next(iter(again))[0], next(iter(ArrayBatches(rows[:7], rows[:7], batch_size=4, shuffle=True, seed=3)))[0]
    )


@pytest.mark.parametrize("share", [0.0, 1.0, -0.5, 2.0])
def test_split_leaves_no_part_empty(share):
    with pytest.raises(ValueError, match=f"share must leave some of 10 rows on either side, got {share}"):
        ArrayBatches(np.arange(10), np.arange(10)).split(share)


def test_several_inputs_come_as_a_tuple():
    inputs, targets = numbered(10)
    batches = ArrayBatches((inputs, np.arange(10)), targets, batch_size=4, shuffle=True, seed=0)
    for (rows, numbers), labels in batches:
        assert (
            rows[:, 0].tolist() == [3 * number for number in numbers.tolist()] == [3 * one for one in labels.tolist()]
        )
    train, validation = batches.split(0.2)
    assert [len(one.targets) for one in (train, validation)] == [8, 2]
    ((_, numbers), _) = next(iter(validation))
    assert numbers.tolist() == [8, 9]
    with pytest.raises(ValueError, match=r"targets must have as many rows as inputs \(9\), got 10"):
        ArrayBatches((inputs, np.arange(9)), targets)
    with pytest.raises(TypeError, match=r"inputs\[1\] must be a NumPy array or a tensor, got list"):
        ArrayBatches((inputs, [1]), targets)
    with pytest.raises(ValueError, match=r"inputs must hold at least one array, got \(\)"):
        ArrayBatches((), targets)
