"""ONNX Runtime: the torch model exported, on the CPU's kernels."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import onnxruntime
import torch

from benchmarks.operations.models import torch_model
from benchmarks.peers import Work
from benchmarks.registry import Case, operation

__all__ = ["make"]


def make(case: Case, threads: int) -> Work:
    """Return the inference on the case's batch."""
    model, batch = torch_model(case).eval(), operation(case.operation).inputs(case, "random")["batch"]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    with tempfile.TemporaryDirectory(prefix="seqconv-onnx-") as folder:
        path = Path(folder, "model.onnx")
        torch.onnx.export(model, (batch,), path, input_names=["batch"], dynamo=True)
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    feed = {"batch": batch.numpy()}

    def infer() -> Any:
        return session.run(None, feed)[0]

    return Work(infer)
