"""fit and evaluate on two processes: the numbers of one with the whole batch, and all stop where one does."""

from __future__ import annotations

import datetime
import gc
import math
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import distributed, nn

from seqconv.data import ArrayBatches
from seqconv.training import (
    CheckpointError,
    Interrupted,
    NonFiniteError,
    evaluate,
    fit,
    load_checkpoint,
    mean_absolute_error,
    rmsprop,
)

TIMES = {"seconds", "ms_per_step"}
WAITS = datetime.timedelta(seconds=60)  # a rank that waits for ever fails its test, and frees its process
ROWS, BATCH = 44, 8  # batches of 8, the last of 4: no row is repeated on two ranks


@pytest.fixture(scope="module")
def executor() -> Iterator[ProcessPoolExecutor]:
    """Two processes for all tests: each takes seconds to import torch."""
    # Not forked: other tests of this process may have left threads, and locks that these would have to release.
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn"), prepare) as executor:
        yield executor


def prepare() -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    os.fsync = lambda descriptor: None  # these tests break processes off, not machines
    torch.set_num_threads(1)


@pytest.fixture
def both(executor: ProcessPoolExecutor, tmp_path: Path) -> Callable[..., list[Any]]:
    """Return what calls a function on both ranks, as ``function(rank, *arguments)``, and returns what they return."""
    calls = 0

    def call(function: Callable[..., Any], *arguments: Any) -> list[Any]:
        nonlocal calls
        calls += 1
        meeting = tmp_path / f"meeting{calls}"
        futures = [executor.submit(of_a_rank, rank, meeting, function, arguments) for rank in range(2)]
        return [future.result(timeout=120) for future in futures]

    return call


def of_a_rank(rank: int, meeting: Path, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2, timeout=WAITS)
    try:
        return function(rank, *arguments)
    finally:
        gc.collect()  # a DistributedDataParallel would keep the group's connections
        distributed.destroy_process_group()


def rows() -> tuple[np.ndarray, np.ndarray]:
    inputs = np.random.default_rng(0).standard_normal((ROWS, 6)).astype(np.float32)
    return inputs, np.sin(inputs.sum(1))


def batches(rank: int, world_size: int, *, shuffle: bool = True) -> ArrayBatches:
    """Return the part of batches of 8 rows over all ranks."""
    return ArrayBatches(
        *rows(), batch_size=BATCH // world_size, shuffle=shuffle, seed=5, rank=rank, world_size=world_size,
        uneven="pad" if shuffle else "keep",
    )  # fmt: skip


def network(rank: int = 0, *, dropout: float = 0.0) -> nn.Sequential:
    """Return a model whose weights differ between ranks: rank 0's count."""
    torch.manual_seed(1 + rank)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Dropout(dropout), nn.Linear(8, 1), nn.Flatten(0))


def train(rank: int, world_size: int, model: nn.Module, **options: Any) -> list[dict[str, float]]:
    """Train three epochs of five steps; return the records without their times."""
    options = {"loss": nn.functional.mse_loss, "epochs": 3, "steps_per_epoch": 5, "progress": False, **options}
    history = fit(
        model, options.pop("train", None) or batches(rank, world_size), metrics=[mean_absolute_error],
        optimizer=rmsprop(model.parameters(), lr=0.01), validation=batches(rank, world_size, shuffle=False), **options,
    )  # fmt: skip
    return [{name: value for name, value in record.items() if name not in TIMES} for record in history.records]


def scores_of(rank: int, world_size: int, model: nn.Module) -> dict[str, float]:
    loader = batches(rank, world_size, shuffle=False)
    return evaluate(model, loader, loss=nn.functional.mse_loss, metrics=[mean_absolute_error])


def weights(model: nn.Module) -> dict[str, np.ndarray]:
    return {name: value.numpy().copy() for name, value in model.state_dict().items()}


def plainly(rank: int, folder: Path, wrapped: bool = False) -> Any:
    model = network(rank)
    called: list[dict[str, float]] = []
    given = nn.parallel.DistributedDataParallel(model) if wrapped else model
    with pytest.MonkeyPatch.context() as patch:
        if rank == 1:  # where every file would be written
            for module in ("checkpoint", "history"):
                patch.delattr(f"seqconv.training.{module}.atomic_write")
        records = train(rank, 2, given, checkpoint_dir=folder, callback=called.append)
    scores = scores_of(rank, 2, given)
    return records, weights(model), scores, called


@pytest.mark.parametrize("wrapped", [False, True])
def test_two_ranks_reach_the_numbers_of_one_process(both, tmp_path, wrapped):
    model = network()
    records = train(0, 1, model, checkpoint_dir=tmp_path / "one")
    expected = scores_of(0, 1, model)
    (first, weights_0, scores, called), (second, weights_1, scores_1, called_1) = both(
        plainly, tmp_path / "two", wrapped
    )
    assert first == second
    assert scores == scores_1
    assert called == called_1  # with the times: a callback that looks at them decides the same everywhere
    for name, value in weights_0.items():
        np.testing.assert_array_equal(value, weights_1[name])
    # Gradients of 8 rows come as the mean of two means of 4: a relative error of a few float32 roundings, 6e-8 each.
    # RMSprop divides by their size, so that each of the 15 steps moves a weight by that part of about 0.03 at most.
    for name, value in weights(model).items():
        np.testing.assert_allclose(weights_0[name], value, atol=15 * 0.03 * 1e-6, rtol=1e-6)
    for record, other in zip(records, first, strict=True):
        assert record == pytest.approx(other, rel=1e-5)
    assert scores == pytest.approx(expected, rel=1e-5)
    assert sorted(path.name for path in (tmp_path / "two").iterdir()) == ["best.pt", "history.csv", "last.pt"]
    for name in ("best.pt", "last.pt"):
        one, two = (load_checkpoint(tmp_path / folder / name) for folder in ("one", "two"))
        assert two["model"].keys() == one["model"].keys()
        assert two["settings"] == one["settings"] | {"world_size": 2}
    with pytest.raises(CheckpointError, match="world_size 2, got 1"):
        train(0, 1, network(), checkpoint_dir=tmp_path / "two", resume=True)


def stopped(rank: int, folder: Path, stops: dict[int, int], number: int) -> Any:
    """Train with signals that ranks get in their calls of the loss, ``stops[rank]``-th; then resume and train on."""
    unbroken = network(rank, dropout=0.3)
    expected = train(rank, 2, unbroken, seed=3)
    calls = 0

    def loss(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == stops.get(rank):
            signal.raise_signal(number)
        return nn.functional.mse_loss(outputs, targets)

    with pytest.raises(Interrupted) as caught:
        train(rank, 2, network(rank, dropout=0.3), checkpoint_dir=folder, loss=loss, seed=3)
    assert caught.value.checkpoint == folder / "last.pt"
    state = load_checkpoint(folder / "last.pt")
    at = len(state["history"]), state["step"]
    draws = torch.rand(1 + rank)  # what a process did in between must not matter
    resumed = network(rank, dropout=0.3)
    assert train(rank, 2, resumed, checkpoint_dir=folder, resume=True, seed=3) == expected, draws
    for name, value in weights(unbroken).items():
        np.testing.assert_array_equal(weights(resumed)[name], value)
    return caught.value.code, at


@pytest.mark.parametrize(
    ("stops", "number", "at"),
    [
        ({1: 2}, signal.SIGTERM, (0, 2)),  # the second step
        ({0: 5, 1: 5}, signal.SIGINT, (0, 5)),  # the last step of an epoch
        ({0: 9}, signal.SIGINT, (0, 5)),  # in a validation of six batches, on one rank alone
        ({0: 22, 1: 23}, signal.SIGTERM, (1, 5)),  # in the second validation, not in the same batch
        ({1: 33}, signal.SIGTERM, (2, 5)),  # in the last batch of all
    ],
)
def test_a_signal_on_any_rank_stops_all_and_they_resume_to_the_same_bits(both, tmp_path, stops, number, at):
    assert both(stopped, tmp_path, stops, number) == [(128 + number, at)] * 2


class FailsAt:
    """A loader, a loss, a callback and a disk that fail in their ``step``-th call."""

    def __init__(self, step: int) -> None:
        self.step, self.calls = step, 0

    def count(self) -> None:
        self.calls += 1
        if self.calls == self.step:
            raise LookupError(f"failed in call {self.step}")

    def __iter__(self) -> Iterator[Any]:
        for batch in batches(0, 2):
            self.count()
            yield batch

    def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        self.count()
        return nn.functional.mse_loss(outputs, targets)

    def __call__(self, record: dict[str, float]) -> None:
        self.count()


class StepFailsAt(FailsAt):
    def __call__(self, record: dict[str, float]) -> None:
        pass

    def on_step(self, epoch: int, step: int, loss: torch.Tensor) -> None:
        self.count()


def failing(rank: int, folder: Path, where: str, step: int, bad: int) -> tuple[str, int]:
    fails = (StepFailsAt if where == "on_step" else FailsAt)(step if rank == bad else -1)
    steps = 0
    options: dict[str, Any] = {
        "train": {"train": fails},
        "loss": {"loss": fails.loss},
        "callback": {"callback": fails},
        "on_step": {"callback": fails},
        "disk": {},
    }[where]

    class Counted(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            nonlocal steps
            steps += self.training
            return super().forward(x)[:, 0]

    with pytest.MonkeyPatch.context() as patch:
        if where == "disk" and rank == bad:
            patch.setattr("seqconv.training.run.save_checkpoint", lambda path, state: fails.count())
        with pytest.raises(LookupError) as caught:
            train(rank, 2, Counted(6, 1), checkpoint_dir=folder, **options)
    return str(caught.value), steps


@pytest.mark.parametrize(
    ("where", "step", "bad", "steps"),
    [
        ("train", 1, 1, {0, 1}),  # the second forward pass of DistributedDataParallel exchanges something by itself
        ("train", 2, 0, {1, 2}),
        ("train", 2, 1, {1, 2}),
        ("train", 4, 1, {3, 4}),
        ("loss", 3, 0, {3}),
        ("loss", 7, 1, {5}),  # in the first validation
        ("callback", 1, 0, {5}),
        ("on_step", 2, 1, {2, 3}),
        ("disk", 2, 0, {5}),
    ],
)
def test_an_error_on_one_rank_is_raised_on_both_at_the_same_step(both, tmp_path, where, step, bad, steps):
    told = both(failing, tmp_path, where, step, bad)
    assert [text for text, _ in told] == [f"failed in call {step}"] * 2
    assert {made for _, made in told} <= steps


class FailsBackwards(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        raise LookupError("failed in the backward pass")


def fail_backwards(rank: int, meeting: Path, answers: Any) -> None:
    """Fail while the other waits for gradients, in a process that ends then, as one of torchrun's does."""

    def loss(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return nn.functional.mse_loss(FailsBackwards.apply(outputs) if rank == 0 else outputs, targets)

    prepare()
    distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2, timeout=WAITS)
    with pytest.raises((LookupError, RuntimeError)) as caught:
        train(rank, 2, network(rank), loss=loss)
    answers.put(type(caught.value).__name__)


def test_an_error_in_the_backward_pass_ends_the_other_rank_with_the_connection(tmp_path):
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    processes = [
        context.Process(target=fail_backwards, args=(rank, tmp_path / "meeting", answers)) for rank in range(2)
    ]
    for process in processes:
        process.start()
    assert answers.get(timeout=120) == "LookupError"
    assert answers.get(timeout=WAITS.total_seconds() / 2) == "RuntimeError"  # it has not waited in vain
    for process in processes:
        process.join()


def not_finite(rank: int, folder: Path) -> Any:
    calls = 0

    def loss(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        value = nn.functional.mse_loss(outputs, targets)
        return value * math.nan if (rank, calls) == (1, 14) else value  # the third step of the second epoch

    model = network(rank)
    with pytest.raises(NonFiniteError) as caught:
        train(rank, 2, model, checkpoint_dir=folder, loss=loss)
    # The model serves alone afterwards: a backward pass of it waits for nobody.
    if rank == 0:
        model(torch.ones(2, 6)).sum().backward()
    error = caught.value
    return str(error), error.checkpoint, weights(model)


def test_a_loss_that_is_nan_on_one_rank_stops_both_before_the_step(both, tmp_path):
    told = both(not_finite, tmp_path)
    expected = f"the training loss is nan at epoch 2, step 3; the last good checkpoint is {tmp_path / 'last.pt'}"
    assert [text for text, _, _ in told] == [expected] * 2
    assert told[1][1] == tmp_path / "last.pt"
    for name, value in told[0][2].items():
        assert np.isfinite(value).all()
        np.testing.assert_array_equal(value, told[1][2][name])


def several_things(rank: int) -> Any:
    """What needs no test of its own process group: each item is one below."""
    norm = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Linear(4, 1), nn.Flatten(0))
    train(rank, 2, norm, epochs=1)
    train(rank, 2, norm, epochs=1)  # a second time, behind another DistributedDataParallel
    with pytest.raises(ValueError, match="steps_per_epoch must be the same on all ranks, got 3, 4"):
        train(rank, 2, norm, steps_per_epoch=3 + rank)
    alone = [(torch.ones(3, 6), torch.zeros(3))] if rank == 0 else []
    scores = evaluate(nn.Sequential(nn.Flatten(), nn.Linear(6, 1), nn.Flatten(0)), alone, loss=constant)
    with pytest.raises(ValueError, match="at least one batch"):
        evaluate(norm, [], loss=constant)
    seeds: list[int] = []
    train(rank, 2, norm, seed=2**32 - 1, epochs=1, callback=lambda record: seeds.append(torch.initial_seed()))
    assert seeds == [[2**32 - 1], [0]][rank]
    frozen = nn.Linear(6, 1).requires_grad_(False)
    assert evaluate(frozen, alone, loss=constant) == scores
    with pytest.raises(LookupError, match="failed in call 1"):
        evaluate(norm, FailsAt(1) if rank == 0 else [], loss=constant)
    return weights(norm), scores


def constant(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return torch.tensor(0.5)


def test_statistics_are_rank_0s_and_ranks_may_have_nothing_to_evaluate(both):
    (first, scores), (second, other) = both(several_things)
    assert scores == other == {"loss": 0.5}
    for name, value in first.items():
        np.testing.assert_array_equal(value, second[name])
