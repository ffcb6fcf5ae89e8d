"""Other frameworks at work on the same models: optional, each in a process of its own.

``python -m pip install 'seqconv[peers]'`` installs them; none is imported here, but in :mod:`benchmarks.frameworks`, in
the process that does the work. Building, converting and compiling a model is preparation and not timed. They get
float32, as many threads as torch has, and the same weights and batch.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.registry import Case, Step
from benchmarks.worker import Worker


@dataclass(frozen=True)
class Peer:
    """A framework: what it needs, the function of :mod:`benchmarks.frameworks` for it, and whether it can train."""

    name: str
    packages: tuple[str, ...]
    function: str
    trains: bool = False
    environment: tuple[tuple[str, str], ...] = ()


KERAS = "keras"
QUIET = ("TF_CPP_MIN_LOG_LEVEL", "3")
PEERS = {
    peer.name: peer
    for peer in (
        Peer("OpenVINO", ("openvino",), "openvino"),
        Peer("ONNX Runtime", ("onnxruntime", "onnx", "onnxscript"), "onnxruntime"),
        Peer("Keras, TensorFlow", ("keras", "tensorflow"), KERAS, True, (("KERAS_BACKEND", "tensorflow"), QUIET)),
        Peer("Keras, JAX", ("keras", "jax"), KERAS, True, (("KERAS_BACKEND", "jax"), QUIET)),
    )
}


def missing(packages: Sequence[str]) -> str | None:
    """Return which of ``packages`` are not installed, and how to install them; or ``None``."""
    absent = [name for name in packages if importlib.util.find_spec(name) is None]
    return f"not installed ({', '.join(absent)}): pip install 'seqconv[peers]'" if absent else None


def worker_of(name: str, threads: int, *, paused: bool = False) -> Worker:
    """Return a process with a peer's environment, if it is a peer's, that keeps to so many cores."""
    worker = Worker(name, environment=dict(PEERS[name].environment) if name in PEERS else None, paused=paused)
    worker.ask("benchmarks.worker:limit_cores", threads=threads)
    return worker


class RemoteStep:
    """A peer's work on a case, which measures its own seconds; ``module`` has the functions that do it."""

    def __init__(self, peer: str, case: Case, module: str = "benchmarks.frameworks") -> None:
        threads = torch.get_num_threads()
        self.module, self.worker = module, worker_of(peer, threads, paused=True)
        self.worker.name = f"{case}-{peer}"
        self.worker.ask(f"{module}:start", function=PEERS[peer].function, case=case.as_dict(), threads=threads)

    def prepare(self) -> None:
        """Do nothing: the process restores what it must between calls."""

    def call(self) -> None:
        """Do the work once."""
        self.stopwatch(self, 1)

    def results(self) -> dict[str, Tensor]:
        """Return the output of the last call."""
        return {"output": torch.tensor(self.worker.ask(f"{self.module}:results"), dtype=torch.float32)}

    def stopwatch(self, _step: Step, calls: int) -> list[float]:
        """Return the seconds of each of so many calls as the process measured them."""
        seconds: list[float] = self.worker.ask(f"{self.module}:seconds", calls=calls)
        return seconds
