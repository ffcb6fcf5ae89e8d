"""Other frameworks at work on the same models: optional, each in a process of its own.

``python -m pip install 'seqconv[peers]'`` installs them; none is imported here. Building, converting and compiling a
model is preparation and not timed. They get float32, as many threads as torch has, and the same weights and batch.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["PEERS", "Peer", "Work", "missing"]


@dataclass(frozen=True)
class Work:
    """A peer at work: ``call()`` is timed and returns an array; ``restore()`` between calls is not."""

    call: Callable[[], Any]
    restore: Callable[[], Any] = lambda: None


@dataclass(frozen=True)
class Peer:
    """A framework: what it needs, the module that puts it to work, and whether it can train."""

    name: str
    packages: tuple[str, ...]
    module: str
    trains: bool = False
    environment: tuple[tuple[str, str], ...] = ()


KERAS = "benchmarks.peers.keras_peer"
QUIET = ("TF_CPP_MIN_LOG_LEVEL", "3")
PEERS = {
    peer.name: peer
    for peer in (
        Peer("OpenVINO", ("openvino",), "benchmarks.peers.openvino_peer"),
        Peer("ONNX Runtime", ("onnxruntime", "onnx", "onnxscript"), "benchmarks.peers.onnxruntime_peer"),
        Peer("Keras, TensorFlow", ("keras", "tensorflow"), KERAS, True, (("KERAS_BACKEND", "tensorflow"), QUIET)),
        Peer("Keras, JAX", ("keras", "jax"), KERAS, True, (("KERAS_BACKEND", "jax"), QUIET)),
    )
}


def missing(packages: Sequence[str]) -> str | None:
    """Return which of ``packages`` are not installed, and how to install them; or ``None``."""
    absent = [name for name in packages if importlib.util.find_spec(name) is None]
    return f"not installed ({', '.join(absent)}): pip install 'seqconv[peers]'" if absent else None
