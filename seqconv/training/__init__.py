"""Training and evaluation of torch models on batches of sequences, resumable to the bit."""

from seqconv.training.callbacks import Callback
from seqconv.training.checkpoint import CheckpointError, load_checkpoint, load_weights, save_checkpoint
from seqconv.training.evaluation import evaluate
from seqconv.training.history import History
from seqconv.training.interrupts import Interrupted, Terminated
from seqconv.training.loop import NonFiniteError, fit
from seqconv.training.metrics import Metric, binary_accuracy, mean_absolute_error
from seqconv.training.optim import rmsprop
from seqconv.training.plots import plot_history
from seqconv.training.randomness import seed_everything
from seqconv.training.schedules import learning_rate_schedule

__all__ = [
    "Callback",
    "CheckpointError",
    "History",
    "Interrupted",
    "Metric",
    "NonFiniteError",
    "Terminated",
    "binary_accuracy",
    "evaluate",
    "fit",
    "learning_rate_schedule",
    "load_checkpoint",
    "load_weights",
    "mean_absolute_error",
    "plot_history",
    "rmsprop",
    "save_checkpoint",
    "seed_everything",
]
