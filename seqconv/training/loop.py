"""Training: a plain loop, a checkpoint after each epoch, and resuming to the same numbers.

The loop is our own because a step of the Jena convnet should be a millisecond or less. Lightning Fabric 2.6 was
measured instead: 35 to 43 µs on top of each step of a small model (120 µs with plain torch) and 1.0 s on top of
``import torch``, and it leaves atomic checkpoints, resuming inside an epoch and early stopping to its user.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Mapping, Sequence, Sized
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler

from seqconv.training.callbacks import Callback
from seqconv.training.clipping import clipping
from seqconv.training.clock import StepClock
from seqconv.training.evaluation import Loss, Means, evaluate_into, model_device, require_batches
from seqconv.training.feed import Batches, Feed, to_device
from seqconv.training.history import History
from seqconv.training.interrupts import Interrupt, interruptible
from seqconv.training.metrics import Metric
from seqconv.training.modes import mode
from seqconv.training.parallel import in_parallel, share_buffers, unwrapped
from seqconv.training.progress import Progress
from seqconv.training.randomness import random_state
from seqconv.training.ranks import Ranks
from seqconv.training.run import Run
from seqconv.training.schedules import Schedule
from seqconv.training.sliding import Slider, Sliding, check_sliding, slider

__all__ = ["NonFiniteError", "fit"]

SECONDS_BETWEEN_REFRESHES = 0.2


class NonFiniteError(ArithmeticError):
    """A loss, or a weight after the update, is NaN or infinite.

    ``what`` is "the training loss", "the validation loss" or the weight's name; ``epoch`` and ``step`` (a batch of the
    validation pass, where the loss is that; it holds many thousand windows where the model slides over them) count from
    1; ``checkpoint`` is the last good one, or ``None``.
    """

    def __init__(self, what: str, epoch: int, step: int, value: float, checkpoint: Path | None) -> None:
        self.what, self.epoch, self.step, self.value, self.checkpoint = what, epoch, step, value, checkpoint
        kept = f"the last good checkpoint is {checkpoint}" if checkpoint else "no checkpoint was written"
        super().__init__(f"{what} is {value} at epoch {epoch}, step {step}; {kept}")

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.what, self.epoch, self.step, self.value, self.checkpoint)


def fit(
    model: nn.Module,
    train: Batches,
    *,
    loss: Loss,
    optimizer: torch.optim.Optimizer,
    epochs: int,
    validation: Batches | None = None,
    steps_per_epoch: int | None = None,
    validation_steps: int | None = None,
    sliding: Sliding = "auto",
    metrics: Sequence[Metric] = (),
    monitor: str | None = None,
    patience: int | None = None,
    schedule: LRScheduler | None = None,
    schedule_every: str = "epoch",
    clip_norm: float | None = None,
    clip_value: float | None = None,
    callback: Callback | None = None,
    checkpoint_dir: str | os.PathLike[str] | None = None,
    resume: bool = False,
    device: torch.device | str | None = None,
    progress: bool = True,
    seed: int | None = None,
    labels: Mapping[str, str] | None = None,
    settings: Mapping[str, Any] | None = None,
    description: Mapping[str, Any] | None = None,
) -> History:
    """Train ``model`` in place and return the :class:`History`; the model ends with the last epoch's weights.

    Args:
        model: called as ``model(inputs)``, or ``model(*inputs)`` where a batch's inputs are a tuple. It is in training
            mode meanwhile; each submodule's own mode is restored.
        train: a loader: each ``iter()`` is a pass of ``(inputs, targets)`` batches. Epochs follow one another in the
            stream of passes, as with Keras' generators: an epoch of ``steps_per_epoch`` batches ends where it ends
            and the next goes on from there; a pass that is exhausted is followed by a new one. With ``state_dict`` and
            ``load_state_dict`` a loader tells its position, others are replayed when a run is resumed.
        loss: ``loss(outputs, targets)`` returns the batch's mean as a scalar tensor.
        optimizer: over the model's parameters, such as :func:`seqconv.training.rmsprop`.
        epochs: how many epochs the run has in all, those before a resume included.
        validation: a loader whose batches are evaluated after each epoch, a new pass each time. It should not be
            shuffled if ``validation_steps`` is given, or each epoch is judged by other samples.
        steps_per_epoch: training batches in an epoch; by default ``len(train)``, one pass.
        validation_steps: batches from the start of ``validation`` to evaluate; by default the whole pass. Where the
            model slides, every window is evaluated, which takes less time than a few batches: see ``sliding``.
        sliding: how ``validation`` is evaluated. ``"auto"``: where it is a ``SlidingWindows`` and the model can, all of
            its windows by one pass over the rows of their series, by :func:`seqconv.sliding_inference`; else, and with
            ``False``, batch by batch. ``True`` insists. The means are those of all batches but for rounding.
        metrics: means to report beside the loss, :data:`seqconv.training.binary_accuracy` for one.
        monitor: the column of the history that tells the best epoch; by default ``val_loss``, or ``loss`` where there
            is no validation. A metric's own ``larger_is_better`` says which way is better.
        patience: stop once this many epochs have passed without an improvement of ``monitor``; ``None`` never does.
        schedule: one of ``torch.optim.lr_scheduler`` over ``optimizer``, or several in its ``SequentialLR``;
            :func:`seqconv.training.learning_rate_schedule` makes one by name. ``ReduceLROnPlateau`` looks at
            ``monitor``. The history gets a column ``learning_rate``, the rate behind the epoch's last step.
        schedule_every: ``"epoch"`` steps it after each epoch, ``"step"`` after each training step.
        clip_norm: bring all gradients together to a 2-norm of at most this, as ``clip_grad_norm_`` does, each step.
        clip_value: bring every element of a gradient into ``-clip_value .. clip_value`` each step, before that.
        callback: called after each epoch, before its checkpoint is written, with its line of the history, a dictionary.
            Where it has a method ``on_step``, that is called after each training step as ``on_step(epoch, step,
            loss)``, both counted from 1, the loss a tensor on the device, which to read makes a GPU wait. Where it has
            ``state_dict`` and ``load_state_dict``, checkpoints hold its state. An epoch that is made again after a
            failure is told of again.
        checkpoint_dir: a folder for ``last.pt`` (written after each epoch, on Ctrl-C and SIGTERM), ``best.pt`` (when
            ``monitor`` improves) and ``history.csv``. Unless ``resume`` is set it must not hold a run already.
        resume: continue from ``last.pt`` to the same numbers as an unbroken run, on the CPU to the last bit. Model,
            optimizer and schedule with their settings, the callback's state, random states and positions are restored;
            another kind of schedule, other clipping or other lengths are refused. A run that is complete returns its
            history at once; where the folder holds no run yet, a new one begins, so that one command serves both.
        device: where to train; by default where the model is.
        progress: show each epoch on stderr: a bar on a terminal, a line elsewhere.
        seed: seeds torch, NumPy's and Python's global generators before a new run; not used when one is continued.
        labels: columns with one text in every row of the history, where the data are from for one.
        settings: more that the checkpoint holds and that must be the same to resume: numbers and texts by name.
        description: more that the checkpoint holds, for whoever reads it: what the model was trained on, for one.

    Losses and metrics are means over samples: a smaller last batch counts for less, as in Keras. The training figures
    are those of the steps as they were made, with dropout and changing weights.

    In a process group of ``torch.distributed``, as ``torchrun`` scripts make one, all ranks make the call with the same
    arguments, but for loaders and callbacks:

    - The model trains in ``DistributedDataParallel``, one given in it as it is, with gradients that are means over the
      ranks. They, and the history, are those of one process where each rank's loader yields its part of every batch:
      ``SlidingWindows`` and ``ArrayBatches`` with ``rank``, ``world_size``, a ``batch_size`` divided by that, and
      ``uneven="keep"`` for validation. A batch norm sees its rank's part alone; its running statistics are rank 0's.
    - Rank 0 alone shows progress and writes files, to its ``checkpoint_dir``; the others wait for it and resume from
      there. Weights are saved without the wrapper, positions, random states and callbacks' states of each rank. As many
      ranks must resume a run as began it.
    - All start from rank 0's weights. Rank ``r`` is seeded with ``seed + r``, so that each has dropout of its own.
    - ``callback`` is called on every rank, with the same record, so that what it changes is changed everywhere; one
      that prints asks for the rank. ``on_step`` gets the loss of the rank's part.
    - An error on one rank is raised on all of them and a signal stops all of them, at the same step. What ends a
      backward pass on one rank alone ends the others only with its process; a loader that dies of a signal leaves
      ``last.pt`` as it was.

    Raises:
        NonFiniteError: the loss became NaN or infinite. On the CPU the step is not made; on an accelerator losses
            are looked at a few times a second. Losses and weights are always checked before a checkpoint is written.
        Interrupted: Ctrl-C, or SIGTERM, then as its subclass Terminated; the step under way was completed and
            ``last.pt`` written. A second Ctrl-C stops at once. Signals are handled in the main thread only.
        CheckpointError: ``last.pt`` is damaged, missing beside other files of a run, or of another model or run, or
            of another number of ranks.
        FileExistsError: ``checkpoint_dir`` holds a run and ``resume`` is not set.
        OSError: ``checkpoint_dir`` cannot be written to, which is tried before a new run begins.
        ValueError: an argument is out of range, or not the same on all ranks.
        TypeError: a count is no int, or ``schedule`` none of torch's.

    """
    steps = epoch_length(train, steps_per_epoch)
    for name, value in {"epochs": epochs, "validation_steps": validation_steps, "patience": patience}.items():
        require_positive(name, value)
    check_sliding(sliding)
    if validation is train:
        raise ValueError("validation must be a loader of its own, got the one given as train: their positions differ")
    larger_is_better = monitored_columns(metrics, with_validation=validation is not None)
    monitor = monitor or ("loss" if validation is None else "val_loss")
    if monitor not in larger_is_better:
        raise ValueError(f"monitor must be one of {', '.join(larger_is_better)}, got {monitor!r}")

    if schedule is not None:
        better = larger_is_better[monitor]
        scheduled = Schedule(schedule, schedule_every, optimizer, monitor, larger_is_better=better)
    clip = clipping(optimizer, clip_norm, clip_value)

    ranks = Ranks()
    device = model_device(model) if device is None else torch.device(device)
    run = Run(
        model=unwrapped(model.to(device)),
        optimizer=optimizer,
        feed=Feed(train),
        metrics=metrics,
        device=device,
        schedule=None if schedule is None else scheduled,
        callback=callback,
        history=History(monitor, larger_is_better[monitor], labels=labels or {}),
        folder=None if checkpoint_dir is None else Path(checkpoint_dir),
        settings={
            "steps_per_epoch": steps,
            "validation_steps": validation_steps,
            "monitor": monitor,
            "columns": list(larger_is_better),
            "optimizer": type(optimizer).__qualname__,
            "schedule": None if schedule is None else type(schedule).__qualname__,
            "schedule_every": None if schedule is None else schedule_every,
            "clip_norm": clip_norm,
            "clip_value": clip_value,
            **(settings or {}),
        },
        description=None if description is None else dict(description),
        ranks=ranks,
    )
    with (
        ranks.sharing_errors(unless=lambda: run.updating),
        interruptible(ranks) as interrupt,
        contextlib.closing(run.feed),
        mode(model, training=True),
        in_parallel(model, ranks) as model,
    ):
        run.require_same({"epochs": epochs, "patience": patience, "sliding": sliding, **run.settings})
        given = None if validation is None else slider(run.model, validation, sliding) or validation
        run.begin(resume=resume, seed=seed)
        shown = progress and ranks.is_main
        while run.epochs_done < epochs and not (patience and run.history.epochs_since_best >= patience):
            bar = Progress(epoch=run.epochs_done + 1, epochs=epochs, step=run.step, steps=steps, enabled=shown)
            try:
                one_epoch(run, model, steps, loss, clip, given, validation_steps, interrupt, bar)
            finally:
                bar.close()
            interrupt.agree()  # behind rank 0's files, too
            if interrupt.requested:
                raise interrupt.error(run.last)
    return run.history


def one_epoch(
    run: Run,
    model: nn.Module,
    steps: int,
    loss: Loss,
    clip: Callable[[], None] | None,
    validation: Batches | Slider | None,
    validation_steps: int | None,
    interrupt: Interrupt,
    bar: Progress,
) -> None:
    """Make the epoch's steps that are still to be made, validate, and write the checkpoint."""
    began = time.perf_counter() - run.seconds
    milliseconds = train_steps(run, model, steps, loss, clip, interrupt, bar, began)
    figures = run.means.over(run.ranks).result()
    if run.ranks.several:
        share_buffers(run.model)

    if validation is not None:
        # A loader may draw its order from the global generators; a run that is stopped here validates again.
        random = random_state(run.device)
        means = Means(run.metrics)
        refresh_at = 0.0

        def after_batch(step: int) -> bool:
            nonlocal refresh_at
            now = time.perf_counter()
            run.seconds = now - began
            if now >= refresh_at:
                refresh_at = now + SECONDS_BETWEEN_REFRESHES
                means.flush()
                bar.show(run.step, figures, remark=f"validation batch {step}")
            return interrupt.received is None

        try:
            evaluate_into(
                means,
                run.model,
                validation,
                loss=loss,
                steps=None if isinstance(validation, Slider) else validation_steps,
                device=run.device,
                after_batch=after_batch,
            )
        except Exception:
            # A signal may reach a loader's worker processes too, and their end may be the first thing noticed.
            if interrupt.received is None:
                raise
        interrupt.agree()
        if interrupt.requested:
            run.stop(interrupt, random)
        means.flush()
        require_finite(means, "the validation loss", run)
        means = means.over(run.ranks)
        require_batches(means, validation.loader if isinstance(validation, Slider) else validation)
        figures |= {f"val_{name}": value for name, value in means.result().items()}

    record = {"epoch": run.epochs_done + 1, **figures}
    if run.schedule is not None:
        record["learning_rate"] = run.schedule.learning_rate
        run.schedule.after_epoch(record)
    times = {"seconds": time.perf_counter() - began, "ms_per_step": milliseconds}
    record |= run.ranks.gather(times)[0]  # the same record everywhere, whatever a callback makes of it
    bar.finish(run.step, {name: value for name, value in record.items() if name != "epoch"})
    run.history.records.append(record)
    run.begin_epoch()
    if run.callback is not None:
        run.callback(dict(record))
    run.save_epoch()


def train_steps(
    run: Run,
    model: nn.Module,
    steps: int,
    loss: Loss,
    clip: Callable[[], None] | None,
    interrupt: Interrupt,
    bar: Progress,
    began: float,
) -> float:
    """Make the steps from ``run.step`` to ``steps``; return the milliseconds of one."""
    optimizer, means, feed, device, several = run.optimizer, run.means, run.feed, run.device, run.ranks.several
    on_step = getattr(run.callback, "on_step", None)
    clock = StepClock(device)
    refresh_at = 0.0
    while run.step < steps:
        try:
            batch = next(feed)
        except Exception:
            if interrupt.received is None:
                raise
            require_good(run)
            if several:  # the others have their batch already: a state saved now would be of two steps
                raise interrupt.error(run.last_saved) from None
            run.stop(interrupt)
        inputs, targets = to_device(batch, device)
        outputs = model(*inputs)
        value = loss(outputs, targets)
        means.add(value, outputs, targets)
        if means.non_finite is not None:
            require_good(run)
        if several:
            interrupt.agree()
            run.agreed_step = run.step
        optimizer.zero_grad()
        value.backward()
        if clip is not None:
            clip()
        optimizer.step()
        run.step += 1
        if run.schedule is not None:
            run.schedule.after_step()
        if on_step is not None:
            on_step(run.epochs_done + 1, run.step, value.detach())
        now = clock.tick()
        run.seconds = now - began
        if now >= refresh_at:
            refresh_at = now + SECONDS_BETWEEN_REFRESHES
            bar.show(run.step, means.result())
        if interrupt.requested:
            require_good(run)
            run.stop(interrupt)
    milliseconds = clock.milliseconds()
    require_good(run)
    return milliseconds


def require_good(run: Run) -> None:
    """Raise unless all training losses of the epoch so far, and the weights, are finite: a state worth saving."""
    run.means.flush()
    require_finite(run.means, "the training loss", run)
    # The last gradient may be NaN though its loss was not.
    for name, weight in run.model.named_parameters():
        bad = weight[~torch.isfinite(weight)]
        if len(bad):
            raise NonFiniteError(f"weight {name}", run.epochs_done + 1, run.step, bad[0].item(), run.last_saved)


def require_finite(means: Means, what: str, run: Run) -> None:
    if means.non_finite is not None:
        step, value = means.non_finite
        raise NonFiniteError(what, run.epochs_done + 1, step, value, run.last_saved)


def epoch_length(train: Batches, steps_per_epoch: int | None) -> int:
    if steps_per_epoch is None:
        try:
            steps_per_epoch = len(cast(Sized, train))
        except TypeError:
            raise ValueError(
                f"steps_per_epoch must be given for a loader without a length, got {type(train)}"
            ) from None
        if steps_per_epoch == 0:
            raise ValueError(f"train must yield at least one batch in a pass, got none from {type(train)}")
    require_positive("steps_per_epoch", steps_per_epoch)
    return steps_per_epoch


def require_positive(name: str, value: Any) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, got {value!r}")
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")


def monitored_columns(metrics: Sequence[Metric], *, with_validation: bool) -> dict[str, bool]:
    """Return the columns that can be monitored, and whether larger is better in each."""
    columns = {"loss": False}
    for metric in metrics:
        if metric.name in {*columns, "epoch", "seconds", "ms_per_step", "learning_rate"} or metric.name.startswith(
            "val_"
        ):
            raise ValueError(f"metrics must have names of their own, got {metric.name!r} twice or as another column's")
        columns[metric.name] = metric.larger_is_better
    if with_validation:
        columns |= {f"val_{name}": larger for name, larger in columns.items()}
    return columns
