"""Learning-rate schedules, clipping and callbacks of fit: what they do, and that a resume continues them to the bit."""

from __future__ import annotations

import math
import signal

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

from seqconv.training import CheckpointError, Interrupted, fit, learning_rate_schedule, load_checkpoint, rmsprop
from tests.grids import grid

MSE = nn.functional.mse_loss


def batches():
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(24, 6, generator=generator)
    return list(zip(inputs.split(4), (10 * inputs.sum(1)).split(4), strict=True))


def network():
    generator = torch.Generator().manual_seed(1)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 1), nn.Flatten(0))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return model


def stop_at(call):
    calls = 0

    def loss(outputs, targets):
        nonlocal calls
        calls += 1
        if calls == call:
            signal.raise_signal(signal.SIGTERM)
        return MSE(outputs, targets)

    return loss


class Averaged:
    """A callback with a state: the moving average of the weights, and all that it was told."""

    def __init__(self, model):
        self.model, self.average, self.told = model, torch.zeros(()), []

    def on_step(self, epoch, step, loss):
        self.average = 0.9 * self.average + 0.1 * sum(p.detach().sum() for p in self.model.parameters())
        self.told.append((epoch, step, loss.item()))

    def __call__(self, record):
        self.told.append((record["epoch"], record["loss"]))

    def state_dict(self):
        return {"average": self.average, "told": list(self.told)}

    def load_state_dict(self, state):
        self.average, self.told = state["average"], list(state["told"])


def sequence(optimizer):
    warm_up = lr_scheduler.LinearLR(optimizer, 0.1, total_iters=4)
    return lr_scheduler.SequentialLR(optimizer, [warm_up, lr_scheduler.CosineAnnealingLR(optimizer, 20)], [4])


# 4 epochs of 5 training and 2 validation batches; a pass has 6 batches.
SCHEDULES = {
    "steps": (lambda o: lr_scheduler.StepLR(o, 2, 0.5), "epoch"),
    "milestones": (lambda o: lr_scheduler.MultiStepLR(o, [3, 3, 11]), "step"),
    "one cycle": (lambda o: lr_scheduler.OneCycleLR(o, 0.05, 20), "step"),
    "plateau": (lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=0, factor=0.5), "epoch"),
    "sequence": (sequence, "step"),
    "function": (lambda o: lr_scheduler.LambdaLR(o, lambda n: 1 / (1 + n)), "step"),
}


def run(folder, name, *, loss=MSE, epochs=4, **options):
    model = network()
    optimizer = rmsprop(model.parameters(), lr=0.02)
    make, every = SCHEDULES[name]
    callback = Averaged(model)
    options = {"clip_norm": 2.0, "clip_value": 0.7, **options}
    history = fit(
        model, batches(), loss=loss, optimizer=optimizer, epochs=epochs, steps_per_epoch=5, seed=3, progress=False,
        validation=batches()[:2], schedule=make(optimizer), schedule_every=every, callback=callback,
        checkpoint_dir=folder, **options,
    )  # fmt: skip
    return model, optimizer, history, callback


@grid(together=1, name=SCHEDULES, stops=[[1], [5], [6, 3], [7], [8, 8], [13, 1, 2], [28]])
@pytest.mark.filterwarnings("error")
def test_an_interrupted_run_resumes_to_the_same_bits(tmp_path, name, stops):
    model, optimizer, history, callback = run(None, name)
    for stop in stops:
        with pytest.raises(Interrupted):
            run(tmp_path, name, loss=stop_at(stop), resume=True)
        torch.rand(3)
    resumed, its_optimizer, its_history, its_callback = run(tmp_path, name, resume=True)
    for one, other in zip(resumed.parameters(), model.parameters(), strict=True):
        assert torch.equal(one, other)
    assert [group["lr"] for group in its_optimizer.param_groups] == [g["lr"] for g in optimizer.param_groups]
    for column in ("loss", "val_loss", "learning_rate"):
        assert its_history.frame[column].tolist() == history.frame[column].tolist()
    assert its_callback.told == callback.told
    assert torch.equal(its_callback.average, callback.average)
    assert load_checkpoint(tmp_path / "last.pt")["callback"]["told"] == callback.told


@pytest.mark.parametrize("every", ["epoch", "step"])
@pytest.mark.parametrize("clip", [{}, {"clip_norm": 0.5}, {"clip_value": 0.1}, {"clip_norm": 0.2, "clip_value": 0.1}])
def test_the_steps_are_those_of_a_loop_by_hand(every, clip):
    expected, model = network().eval(), network()
    optimizer = torch.optim.SGD(expected.parameters(), lr=0.01, momentum=0.5)
    factor = {"epoch": lambda step: 0.5 ** (step // 6), "step": lambda step: 0.5**step}[every]
    for step in range(18):
        inputs, targets = batches()[step % 6]
        optimizer.param_groups[0]["lr"] = 0.01 * factor(step)
        optimizer.zero_grad()
        MSE(expected(inputs), targets).backward()
        gradients = [parameter.grad for parameter in expected.parameters()]
        if "clip_value" in clip:
            for gradient in gradients:
                gradient.clamp_(-0.1, 0.1)
        if "clip_norm" in clip:
            norm = math.sqrt(sum(float((gradient.double() ** 2).sum()) for gradient in gradients))
            for gradient in gradients:
                gradient.mul_(min(1.0, clip["clip_norm"] / norm))
        optimizer.step()
    model[2].p = 0.0
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.5)
    schedule = learning_rate_schedule(optimizer, "ExponentialLR", gamma=0.5)
    history = fit(model, batches(), loss=MSE, optimizer=optimizer, epochs=3, schedule=schedule, schedule_every=every,
                  progress=False, **clip)  # fmt: skip
    # float32; torch adds 1e-6 to the norm it divides by, which is a relative 5e-6 of the least clipped one.
    for one, other in zip(model.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    rates = [0.01 * factor(6 * epoch if every == "epoch" else 6 * epoch + 6) for epoch in range(3)]
    assert history.frame["learning_rate"].tolist() == pytest.approx(rates)


def test_a_plateau_lowers_the_rate():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-30)
    schedule = lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=1)
    history = fit(model, batches(), loss=MSE, optimizer=optimizer, epochs=6, schedule=schedule, progress=False,
                  validation=batches()[:1])  # fmt: skip
    assert history.frame["learning_rate"].tolist() == [1e-30] * 6  # eps: no change below 1e-8
    optimizer.param_groups[0]["lr"] = 1e-6
    schedule = lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=1, threshold=0.5, eps=0)
    history = fit(model, batches(), loss=MSE, optimizer=optimizer, epochs=6, schedule=schedule, progress=False,
                  validation=batches()[:1])  # fmt: skip
    # Epoch 1 is the best there is; epochs 2 and 3 are bad, 4 and 5 again.
    assert history.frame["learning_rate"].tolist() == [1e-6] * 3 + [5e-7] * 2 + [2.5e-7]


def test_a_callback_may_be_a_function_and_gets_a_record_of_its_own():
    told = []

    def callback(record):
        told.append(dict(record))
        record.clear()

    model = network()
    history = fit(model, batches(), loss=MSE, optimizer=rmsprop(model.parameters()), epochs=2, progress=False,
                  callback=callback)  # fmt: skip
    assert told == history.records
    assert [record["epoch"] for record in told] == [1, 2]


def test_an_epoch_whose_callback_failed_is_made_again(tmp_path):
    def failing(record):
        if record["epoch"] == 2:
            raise ConnectionError("the tracker is down")

    def fitted(**options):
        model = network()
        fit(model, batches(), loss=MSE, optimizer=rmsprop(model.parameters()), epochs=3, seed=1, progress=False,
            **options)  # fmt: skip
        return model

    with pytest.raises(ConnectionError):
        fitted(checkpoint_dir=tmp_path, callback=failing)
    assert len(load_checkpoint(tmp_path / "last.pt")["history"]) == 1
    resumed = fitted(checkpoint_dir=tmp_path, resume=True)
    assert all(torch.equal(*pair) for pair in zip(resumed.parameters(), fitted().parameters(), strict=True))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"clip_norm": 1.0}, "clip_norm 2.0, got 1.0"),
        ({"clip_value": None}, "clip_value 0.7, got None"),
        ({"settings": {"learning_rate": 0.1}}, "learning_rate None, got 0.1"),
    ],
)
def test_another_recipe_is_refused_on_resume(tmp_path, options, message):
    run(tmp_path, "steps", epochs=1)
    with pytest.raises(CheckpointError, match=message):
        run(tmp_path, "steps", resume=True, **options)


def test_another_schedule_or_callback_is_refused_on_resume(tmp_path):
    run(tmp_path, "steps", epochs=1)
    with pytest.raises(CheckpointError, match="schedule 'StepLR', got 'ReduceLROnPlateau'"):
        run(tmp_path, "plateau", resume=True)
    model = network()
    optimizer = rmsprop(model.parameters())
    options = {"validation": batches()[:2], "steps_per_epoch": 5, "clip_norm": 2.0, "clip_value": 0.7}
    with pytest.raises(CheckpointError, match="the callback None lacks state_dict, unlike the one saved"):
        fit(model, batches(), loss=MSE, optimizer=optimizer, epochs=2, checkpoint_dir=tmp_path, resume=True,
            schedule=lr_scheduler.StepLR(optimizer, 2), progress=False, **options)  # fmt: skip


def test_a_checkpoint_from_before_there_were_schedules_is_continued(tmp_path):
    def fitted(**options):
        model = network()
        fit(model, batches(), loss=MSE, optimizer=rmsprop(model.parameters()), checkpoint_dir=tmp_path, progress=False,
            **options)  # fmt: skip

    fitted(epochs=1)
    state = torch.load(tmp_path / "last.pt", weights_only=True)
    for name in ("schedule", "callback"):
        del state[name]
    for name in ("schedule", "schedule_every", "clip_norm", "clip_value"):
        del state["settings"][name]
    torch.save(state, tmp_path / "last.pt")
    fitted(epochs=2, resume=True)
    assert len(load_checkpoint(tmp_path / "last.pt")["history"]) == 2


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"clip_norm": 0}, ValueError, "clip_norm must be a finite number above 0, got 0"),
        ({"clip_norm": math.nan}, ValueError, "clip_norm must be a finite number above 0, got nan"),
        ({"clip_value": math.inf}, ValueError, "clip_value must be a finite number above 0, got inf"),
        ({"clip_value": "1"}, TypeError, "clip_value must be a number or None, got '1'"),
        ({"schedule": "StepLR"}, TypeError, "schedule must be one of torch.optim.lr_scheduler, got str"),
    ],
)
def test_bad_arguments_are_named(options, error, message):
    model = network()
    with pytest.raises(error, match=message):
        fit(model, batches(), loss=MSE, optimizer=rmsprop(model.parameters()), epochs=1, **options)


def test_schedules_that_do_not_fit_the_run_are_refused():
    model = network()
    optimizer, other = rmsprop(model.parameters()), rmsprop(model.parameters())
    for schedule, every, message in (
        (lr_scheduler.StepLR(other, 2), "epoch", "schedule must be over the optimizer given to fit"),
        (lr_scheduler.StepLR(optimizer, 2), "batch", "schedule_every must be 'epoch' or 'step', got 'batch'"),
        (lr_scheduler.ReduceLROnPlateau(optimizer, "max"), "epoch", "schedule must have mode='min' for the monitor"),
        (lr_scheduler.ReduceLROnPlateau(optimizer), "step", "schedule_every must be 'epoch' for ReduceLROnPlateau"),
    ):
        with pytest.raises(ValueError, match=message):
            fit(model, batches(), loss=MSE, optimizer=optimizer, epochs=1, schedule=schedule, schedule_every=every)


def test_schedules_by_name():
    optimizer = rmsprop([nn.Parameter(torch.zeros(2))], lr=0.1)
    schedule = learning_rate_schedule(optimizer, "StepLR", step_size=2, gamma=0.5)
    assert type(schedule) is lr_scheduler.StepLR
    assert (schedule.step_size, schedule.gamma) == (2, 0.5)
    with pytest.raises(ValueError, match=r"schedule must be one of ConstantLR, .*StepLR, got 'LambdaLR'"):
        learning_rate_schedule(optimizer, "LambdaLR", lr_lambda=1)
    with pytest.raises(ValueError, match=r"schedule StepLR cannot be made with {'size': 2}: .*It takes step_size"):
        learning_rate_schedule(optimizer, "StepLR", size=2)
    with pytest.raises(ValueError, match=r"schedule OneCycleLR cannot be made with {'max_lr': 1}: You must define"):
        learning_rate_schedule(optimizer, "OneCycleLR", max_lr=1)
