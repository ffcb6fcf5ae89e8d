"""How long a layer takes at least on a GPU: its bytes at a copy's speed, its operations at a matrix product's.

Both speeds are measured on the card in the same run. A share of the roofline is a time over the longer of the two; 1
is the floor. Bytes are those of every tensor once for each pass that must read or write it, as if nothing stayed in a
cache from one pass to the next. Operations are those of dense products: a backward pass could do with one position a
window, but on tensor cores computing all positions is what there is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from benchmarks.operations.layers import conv_positions
from benchmarks.registry import Case
from benchmarks.timing import median_seconds

SIDES = {"bfloat16": 8192, "tf32": 8192, "float32": 4096}  # of the square matrices
COPY_BYTES = 2 << 30
CALLS, BEFORE = 10, 3  # timed, and before them
LAYERS = ("conv1d_relu_max_pool1d", "conv1d_relu_global_max_pool1d", "sweep")
DTYPES = {"float16": "bfloat16"}  # whose rate is measured instead


def measure(device: str, scale: float = 1.0) -> dict[str, Any]:
    """Return ``copy`` (bytes read and written a second) and ``matrix`` (operations a second by precision).

    ``scale`` below 1 shrinks what is copied and multiplied, to try this out.
    """
    before = torch.backends.cuda.matmul.allow_tf32
    try:
        matrix = {}
        for dtype, side in SIDES.items():
            torch.backends.cuda.matmul.allow_tf32 = dtype == "tf32"
            matrix[dtype] = matrix_rate(dtype, max(int(side * scale), 1), device)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
    return {"copy": copy_rate(max(int(COPY_BYTES * scale), 1), device), "matrix": matrix}


def copy_rate(size: int, device: str) -> float:
    """Return the bytes a second that a copy of ``size`` bytes reads and writes."""
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * size / median_seconds(lambda: target.copy_(source), device, calls=CALLS, before=BEFORE)


def matrix_rate(dtype: str, side: int, device: str) -> float:
    """Return the operations a second of a product of square matrices."""
    kind = torch.bfloat16 if dtype == "bfloat16" else torch.float32
    a, b = (torch.randn(side, side, device=device).to(kind) for _ in range(2))
    return 2 * side**3 / median_seconds(lambda: a @ b, device, calls=CALLS, before=BEFORE)


def bytes_moved(case: Case) -> int:
    """Return the bytes that a layer's passes read and write at least."""
    sizes, width = numbers(case), case.torch_dtype.itemsize
    forward = sizes["input"] + sizes["weight"] + sizes["bias"] + sizes["output"]
    if case.mode in ("inference", "forward"):
        return width * forward
    argmax = sizes["output"] * (1 if case.shape["P"] else 2)
    backward = sizes["output"] + sizes["input"] + 2 * sizes["weight"] + sizes["bias"]  # reads, then dw and db
    backward += sizes["input"] if case.input_gradient else 0
    return width * (forward + backward) + 2 * argmax


def operations_done(case: Case) -> int:
    """Return the additions and multiplications of a layer's dense products."""
    n, c, o, k = (case.shape[letter] for letter in "NCOK")
    product = 2 * n * o * c * k * pooled_positions(case)
    return product * (1 if case.mode in ("inference", "forward") else 3 if case.input_gradient else 2)


def floor_seconds(case: Case, limits: Mapping[str, Any]) -> float:
    """Return the least seconds of a layer on a card of these limits."""
    return longer(bytes_moved(case), operations_done(case), case.dtype, limits)


def longer(size: int, operations: int, dtype: str, limits: Mapping[str, Any]) -> float:
    """Return the seconds of so many bytes or of so many operations, whichever take longer."""
    return max(size / limits["copy"], operations / limits["matrix"][DTYPES.get(dtype, dtype)])


def share(case: Mapping[str, Any], seconds: float, limits: Mapping[str, Any] | None) -> float | None:
    """Return how many times a layer's floor ``seconds`` are, ``None`` for anything else than a fused layer's passes."""
    one = Case.from_dict(case)
    if limits is None or one.operation not in LAYERS or one.mode not in ("inference", "forward", "forward_backward"):
        return None
    return seconds / floor_seconds(one, limits)


def numbers(case: Case) -> dict[str, int]:
    """Return how many numbers a layer's tensors hold."""
    n, c, length, o, k = (case.shape[letter] for letter in "NCLOK")
    windows = conv_positions(case) // case.shape["P"] if case.shape["P"] else 1
    return {"input": n * c * length, "weight": o * c * k, "bias": o, "output": n * o * windows}


def pooled_positions(case: Case) -> int:
    """Return the positions of the convolution that a window looks at."""
    positions, size = conv_positions(case), case.shape["P"]
    return positions // size * size if size else positions
