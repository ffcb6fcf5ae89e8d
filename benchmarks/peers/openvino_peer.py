"""OpenVINO: the torch model converted, in float32, tuned for latency."""

from __future__ import annotations

from typing import Any

import openvino

from benchmarks.operations.models import torch_model
from benchmarks.peers import Work
from benchmarks.registry import Case, operation

__all__ = ["make"]


def make(case: Case, threads: int) -> Work:
    """Return the inference on the case's batch."""
    model, batch = torch_model(case).eval(), operation(case.operation).inputs(case, "random")["batch"]
    converted = openvino.convert_model(model, example_input=batch, input=[tuple(batch.shape)])
    options = {
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",  # CPUs with bfloat16 would take that
    }
    request = openvino.Core().compile_model(converted, "CPU", options).create_infer_request()
    array = batch.numpy()

    def infer() -> Any:
        return request.infer([array], share_inputs=True, share_outputs=True)[0]

    return Work(infer)
