"""A run that is broken off and resumed gives the numbers of an unbroken one, bit for bit."""

from __future__ import annotations

import contextlib
import csv
import math
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from seqconv.training import (
    CheckpointError,
    Interrupted,
    Terminated,
    fit,
    load_checkpoint,
    mean_absolute_error,
    rmsprop,
)
from tests.grids import grid, others_large

TIMES = ["seconds", "ms_per_step"]


@pytest.fixture(autouse=True, scope="module")
def no_waiting_for_the_disk():
    """These tests break processes off, not machines: they can do without the flush that each file waits for."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


class ShuffledBatches:
    """A loader with a position: shuffled anew each pass by a generator of its own, a smaller batch at the end."""

    def __init__(self, samples=23, batch_size=4, seed=5):
        generator = torch.Generator().manual_seed(0)
        self.inputs = torch.randn(samples, 6, generator=generator)
        self.targets = self.inputs.sum(1).sin()
        self.batch_size, self.seed, self.passes, self.position, self.pending = batch_size, seed, 0, 0, False

    def __len__(self):
        return math.ceil(len(self.inputs) / self.batch_size)

    def __iter__(self):
        if not self.pending:
            self.passes, self.position = self.passes + 1, 0
        self.pending = False
        order = torch.randperm(len(self.inputs), generator=torch.Generator().manual_seed(self.seed + self.passes))
        while self.position < len(self):
            chosen = order[self.position * self.batch_size :][: self.batch_size]
            self.position += 1
            yield self.inputs[chosen], self.targets[chosen]

    def state_dict(self):
        return {"passes": self.passes, "position": self.position}

    def load_state_dict(self, state):
        self.passes, self.position, self.pending = state["passes"], state["position"], True


class DrawsFromGlobals(nn.Module):
    """Dropout by torch, and noise by NumPy's and Python's global generators: all three must be put back."""

    def forward(self, x):
        noise = np.random.normal() + random.random()  # noqa: NPY002
        return nn.functional.dropout(x, 0.3, self.training) + (0.01 * noise if self.training else 0.0)


def network():
    generator = torch.Generator().manual_seed(1)
    model = nn.Sequential(
        nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), DrawsFromGlobals(), nn.Linear(8, 1), nn.Flatten(0)
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return model


def stop_at(call, number=signal.SIGINT):
    """Return a mean squared error that sends a signal in its ``call``-th call, be it of training or validation."""
    calls = 0

    def loss(outputs, targets):
        nonlocal calls
        calls += 1
        if calls == call:
            signal.raise_signal(number)
        return nn.functional.mse_loss(outputs, targets)

    return loss


def run(folder, *, loss=nn.functional.mse_loss, train=None, epochs=4, optimizer=rmsprop, seed=3, **options):
    model = network()
    history = fit(
        model,
        ShuffledBatches() if train is None else train,
        loss=loss,
        optimizer=optimizer(model.parameters(), lr=0.01),
        epochs=epochs,
        metrics=[mean_absolute_error],
        checkpoint_dir=folder,
        progress=False,
        seed=seed,
        **options,
    )
    return model, history


def adam(parameters, lr):
    return torch.optim.Adam(parameters, lr=lr)


def validation():
    return [(torch.ones(3, 6), torch.ones(3)), (-torch.ones(2, 6), torch.zeros(2))]


def assert_same(one, two):
    (model, history), (other, other_history) = one, two
    for (name, value), (_, expected) in zip(model.state_dict().items(), other.state_dict().items(), strict=True):
        assert torch.equal(value, expected), name
    pd.testing.assert_frame_equal(
        history.frame.drop(columns=TIMES), other_history.frame.drop(columns=TIMES), check_exact=True
    )
    assert history.best_epoch == other_history.best_epoch


# 4 epochs of 5 training and 2 validation batches: 28 calls of the loss. A pass has 6 batches, so epochs end inside one.
@settings(deadline=None, max_examples=25)
@given(stops=st.lists(st.integers(1, 28), min_size=1, max_size=3), optimizer=st.sampled_from([rmsprop, adam]))
def test_interrupted_anywhere_resumes_to_the_same_bits(tmp_path_factory, stops, optimizer):
    folder = tmp_path_factory.mktemp("run")
    options = {"steps_per_epoch": 5, "optimizer": optimizer}
    unbroken = run(None, validation=validation(), **options)
    for stop in stops:
        # Where fewer calls are left the run ends: the next resume must then change nothing.
        with contextlib.suppress(Interrupted):
            run(folder, loss=stop_at(stop), validation=validation(), resume=True, **options)
        assert (folder / "last.pt").exists()
        # What the process did in between must not matter.
        torch.rand(7), np.random.rand(7), random.random()  # noqa: NPY002
    resumed = run(folder, validation=validation(), resume=True, **options)
    assert_same(resumed, unbroken)
    assert_same((resumed[0], resumed[1]), run(folder, validation=validation(), resume=True, **options))
    with (folder / "history.csv").open(newline="") as table:
        rows = [{name: float(value or "nan") for name, value in row.items()} for row in csv.DictReader(table)]
    # As text, for NaN is not equal to itself.
    assert repr(rows) == repr([{name: float(value) for name, value in row.items()} for row in resumed[1].records])
    best = load_checkpoint(folder / "best.pt")
    assert len(best["history"]) == resumed[1].best_epoch


@grid(together=1, steps=[5, 6, 13, None], stop=[1, 5, 6, 7, 12, 17])
def test_epochs_shorter_and_longer_than_a_pass(tmp_path, steps, stop):
    unbroken = run(None, steps_per_epoch=steps, epochs=3)
    with pytest.raises(Interrupted):
        run(tmp_path, steps_per_epoch=steps, epochs=3, loss=stop_at(min(stop, 3 * (steps or 6))))
    assert_same(run(tmp_path, steps_per_epoch=steps, epochs=3, resume=True), unbroken)


@pytest.mark.parametrize("stop", [1, 6, 8, 12])
def test_loader_without_a_position_is_replayed(tmp_path, stop):
    def loader():
        data = ShuffledBatches()
        return torch.utils.data.DataLoader(
            torch.utils.data.TensorDataset(data.inputs, data.targets), batch_size=4, shuffle=True
        )

    unbroken = run(None, train=loader(), steps_per_epoch=5)
    with pytest.raises(Interrupted):
        run(tmp_path, train=loader(), steps_per_epoch=5, loss=stop_at(stop))
    assert_same(run(tmp_path, train=loader(), steps_per_epoch=5, resume=True), unbroken)


def test_random_validation_order_is_redrawn_after_a_stop_inside_validation(tmp_path):
    def shuffled():
        # A torch loader draws from the global generator when a pass begins: the training steps after it see that.
        return torch.utils.data.DataLoader(
            torch.utils.data.TensorDataset(torch.ones(4, 6), torch.ones(4)), batch_size=2, shuffle=True
        )

    unbroken = run(None, validation=shuffled(), steps_per_epoch=5)
    with pytest.raises(Interrupted):
        run(tmp_path, validation=shuffled(), steps_per_epoch=5, loss=stop_at(6))
    state = load_checkpoint(tmp_path / "last.pt")
    assert (state["step"], len(state["history"])) == (5, 0)
    assert_same(run(tmp_path, validation=shuffled(), steps_per_epoch=5, resume=True), unbroken)


def test_more_epochs_continue_a_finished_run(tmp_path):
    run(tmp_path, epochs=2, steps_per_epoch=5)
    assert_same(run(tmp_path, epochs=4, steps_per_epoch=5, resume=True), run(None, epochs=4, steps_per_epoch=5))


def test_finished_run_returns_its_history_without_a_step(tmp_path):
    finished = run(tmp_path, epochs=2)

    def untouched(outputs, targets):
        raise AssertionError("a step was made")

    assert_same(run(tmp_path, epochs=2, resume=True, loss=untouched), finished)
    assert len(run(tmp_path, epochs=1, resume=True, loss=untouched)[1].records) == 2


def test_early_stopping_survives_a_resume(tmp_path):
    constant = [(torch.zeros(2, 6), torch.full((2,), math.nan))]
    worsening = iter([0.5, 0.4, 0.45, 0.41, 0.43, 0.3])

    def loss(outputs, targets):
        if targets.isnan().all():
            value = next(worsening)
            if value == 0.41:
                signal.raise_signal(signal.SIGINT)
            return torch.tensor(value)
        return nn.functional.mse_loss(outputs, targets)

    options = {"validation": constant, "patience": 3, "epochs": 9, "loss": loss}
    with pytest.raises(Interrupted):
        run(tmp_path, **options)
    worsening = iter([0.411, 0.43, 0.3])
    _, history = run(tmp_path, resume=True, **options)
    # The loss is float32.
    assert history.frame["val_loss"].tolist() == pytest.approx([0.5, 0.4, 0.45, 0.411, 0.43], rel=1e-6)
    assert history.best_epoch == 2
    assert len(load_checkpoint(tmp_path / "best.pt")["history"]) == 2


def test_learning_rate_is_the_saved_one(tmp_path):
    model = network()
    fit(model, ShuffledBatches(), loss=nn.functional.mse_loss, optimizer=rmsprop(model.parameters(), lr=0.5), epochs=1,
        checkpoint_dir=tmp_path, progress=False)  # fmt: skip
    optimizer = rmsprop(model.parameters(), lr=0.1)
    fit(model, ShuffledBatches(), loss=nn.functional.mse_loss, optimizer=optimizer, epochs=1,
        checkpoint_dir=tmp_path, progress=False, resume=True)  # fmt: skip
    assert optimizer.param_groups[0]["lr"] == 0.5


def test_folder_with_a_run_is_refused_unless_resumed(tmp_path):
    run(tmp_path, epochs=1)
    with pytest.raises(FileExistsError, match=r"holds a run already.*last\.pt.*resume=True"):
        run(tmp_path, epochs=1)


def test_resume_without_a_run_begins_one_and_says_so(tmp_path, caplog):
    _, history = run(tmp_path / "new", epochs=1, resume=True)
    assert len(history.records) == 1
    assert "a new run begins" in caplog.text
    (tmp_path / "new" / "last.pt").unlink()
    with pytest.raises(CheckpointError, match=r"has no last\.pt to resume from, but best\.pt, history\.csv"):
        run(tmp_path / "new", epochs=1, resume=True)
    with pytest.raises(ValueError, match="resume=True must come with the checkpoint_dir"):
        run(None, resume=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps_per_epoch": 4}, "steps_per_epoch 5, got 4"),
        ({"monitor": "mean_absolute_error"}, "monitor 'loss', got 'mean_absolute_error'"),
        ({"optimizer": adam}, "optimizer 'RMSprop', got 'Adam'"),
        ({"train": [(torch.ones(2, 6), torch.ones(2))]}, "lacks state_dict"),
    ],
)
def test_another_run_is_refused(tmp_path, change, message):
    run(tmp_path, epochs=1, steps_per_epoch=5)
    with pytest.raises(CheckpointError, match=message):
        run(tmp_path, **{"epochs": 2, "steps_per_epoch": 5, "resume": True, **change})


def test_a_shorter_loader_than_the_one_replayed_is_refused(tmp_path):
    batches = [(torch.ones(2, 6), torch.ones(2))] * 6
    with pytest.raises(Interrupted):
        run(tmp_path, train=batches, steps_per_epoch=6, loss=stop_at(5))
    with pytest.raises(CheckpointError, match="train must yield the 5 batches received before, got 3"):
        run(tmp_path, train=batches[:3], steps_per_epoch=6, resume=True)


def test_another_model_is_refused(tmp_path):
    run(tmp_path, epochs=1)
    model = nn.Sequential(nn.Linear(6, 1), nn.Flatten(0))
    with pytest.raises(CheckpointError, match="does not fit this run"):
        fit(model, ShuffledBatches(), loss=nn.functional.mse_loss, optimizer=rmsprop(model.parameters()), epochs=2,
            metrics=[mean_absolute_error], checkpoint_dir=tmp_path, progress=False, resume=True)  # fmt: skip


def test_loader_state_that_could_not_be_loaded_is_refused_when_saved(tmp_path):
    class NumPyPosition(ShuffledBatches):
        def state_dict(self):
            return {"position": np.float64(3)}

    with pytest.raises(TypeError, match=r"state\['feed'\]\['loader'\]\['position'\] must be a tensor.*float64"):
        run(tmp_path, train=NumPyPosition(), epochs=1)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(
    "before", [signal.default_int_handler, lambda number, frame: None, signal.SIG_IGN, signal.SIG_DFL]
)
def test_signal_handler_is_restored(before, number):
    original = signal.signal(number, before)
    try:
        run(None, epochs=1)
        assert signal.getsignal(number) is before
        with pytest.raises(RuntimeError, match="broken"):
            run(None, train=broken_loader(), steps_per_epoch=3)
        assert signal.getsignal(number) is before
        if before is not signal.SIG_IGN and (before, number) != (signal.SIG_DFL, signal.SIGINT):
            with pytest.raises(Interrupted):
                run(None, loss=stop_at(2, number))
            assert signal.getsignal(number) is before
    finally:
        signal.signal(number, original)


@pytest.mark.parametrize("stop", [1, 5, 6, 8, 14, 28])
def test_sigterm_keeps_the_epoch_under_way_as_ctrl_c_does(tmp_path, stop):
    options = {"steps_per_epoch": 5, "validation": validation()}
    with pytest.raises(Terminated, match=r"resume from .*last\.pt") as caught:
        run(tmp_path, loss=stop_at(stop, signal.SIGTERM), **options)
    assert (caught.value.code, caught.value.checkpoint) == (143, tmp_path / "last.pt")
    assert isinstance(caught.value, Interrupted)
    assert_same(run(tmp_path, resume=True, **options), run(None, **options))


def test_an_ignored_sigterm_stops_nothing():
    original = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        assert len(run(None, loss=stop_at(2, signal.SIGTERM))[1].records) == 4
    finally:
        signal.signal(signal.SIGTERM, original)


def test_sigterm_that_comes_twice_stops_once(tmp_path):
    """As timeout(1) sends it: to the process, and to the group that it is in."""

    def loss(outputs, targets):
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        return nn.functional.mse_loss(outputs, targets)

    with pytest.raises(Terminated):
        run(tmp_path, loss=loss)
    assert load_checkpoint(tmp_path / "last.pt")["step"] == 1


def broken_loader():
    class Broken(ShuffledBatches):
        def __iter__(self):
            yield from [next(super().__iter__())]
            raise RuntimeError("broken")

    return Broken()


def test_loader_that_dies_of_ctrl_c_leaves_a_resumable_checkpoint(tmp_path):
    class Dying(ShuffledBatches):
        def __iter__(self):
            for count, batch in enumerate(super().__iter__()):
                if count == 3:
                    self.position -= 1
                    signal.raise_signal(signal.SIGINT)
                    raise RuntimeError("worker died")
                yield batch

    with pytest.raises(Interrupted):
        run(tmp_path, train=Dying())
    assert load_checkpoint(tmp_path / "last.pt")["step"] == 3
    assert_same(run(tmp_path, resume=True), run(None))


def test_second_ctrl_c_stops_in_the_middle_of_a_step(tmp_path):
    def loss(outputs, targets):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        raise AssertionError("not reached")

    with pytest.raises(KeyboardInterrupt) as caught:
        run(tmp_path, loss=loss)
    assert not isinstance(caught.value, Interrupted)
    assert not list(tmp_path.iterdir())


def test_ctrl_c_without_a_folder_says_that_nothing_was_saved():
    with pytest.raises(Interrupted, match="nothing was saved") as caught:
        run(None, loss=stop_at(2))
    assert caught.value.checkpoint is None


SLOW_RUN = """
import sys, time, torch
from torch import nn
from seqconv.training import Interrupted, fit, rmsprop

class Slow(nn.Linear):
    def forward(self, x):
        print("step", flush=True)
        time.sleep(0.02)
        return super().forward(x).squeeze(1)

model = Slow(3, 1)
batches = [(torch.ones(4, 3), torch.ones(4))] * 50
if "workers" in sys.argv:
    batches = torch.utils.data.DataLoader(batches, batch_size=None, num_workers=2, multiprocessing_context="fork")
try:
    fit(model, batches, loss=nn.functional.mse_loss,
        optimizer=rmsprop(model.parameters()), epochs=1000, checkpoint_dir=sys.argv[1])
except Interrupted as stop:
    print(stop)
    if "uncaught" in sys.argv:
        raise
    sys.exit(stop.code)
"""


@pytest.mark.parametrize(
    ("number", "code", "words"),
    others_large((signal.SIGTERM, 143, ["workers"]), (signal.SIGTERM, 143, ["uncaught"]), (signal.SIGINT, 130, [])),
)
def test_real_signal_to_a_process(tmp_path, number, code, words):
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW_RUN, os.fspath(tmp_path / "run"), *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
        start_new_session=True,
    )
    assert process.stdout is not None
    for _ in range(7):
        assert process.stdout.readline() == "step\n"
    # The loader's workers are in the process's group, and get it, too.
    os.killpg(process.pid, number)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == code, errors
    assert output.splitlines()[-1] == f"interrupted: resume from {tmp_path / 'run' / 'last.pt'}"
    assert load_checkpoint(tmp_path / "run" / "last.pt")["step"] == 7 + output.count("step\n")
