"""A layer's floor: bytes and operations counted by hand, limits measured, whose share is told."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from benchmarks import roofline
from benchmarks.operations.conv_pool import layer_case
from benchmarks.operations.rivals import step_case
from benchmarks.registry import Case

SHAPE = {"N": 2, "C": 3, "L": 12, "O": 4, "K": 3, "P": 4}  # 10 positions: two windows, two positions in none
CASE = Case("conv1d_relu_max_pool1d", "tiny", SHAPE, "forward")
X, W, B, Y = 2 * 3 * 12, 4 * 3 * 3, 4, 2 * 4 * 2


def test_bytes_by_hand():
    assert roofline.bytes_moved(CASE) == 4 * (X + W + B + Y)
    assert roofline.bytes_moved(replace(CASE, dtype="bfloat16")) == 2 * (X + W + B + Y)
    forward = X + W + B + Y
    backward = Y + X + 2 * W + B
    both = replace(CASE, mode="forward_backward", input_gradient=False)
    assert roofline.bytes_moved(both) == 4 * (forward + backward) + 2 * Y
    assert roofline.bytes_moved(replace(both, input_gradient=True)) == 4 * (forward + backward + X) + 2 * Y


def test_operations_by_hand():
    product = 2 * 2 * 4 * 8 * 9  # of 8 pooled positions
    assert roofline.operations_done(CASE) == product
    assert roofline.operations_done(replace(CASE, shape={**SHAPE, "P": 0})) == 2 * 2 * 4 * 10 * 9
    assert roofline.operations_done(replace(CASE, mode="forward_backward")) == 3 * product
    assert roofline.operations_done(replace(CASE, mode="forward_backward", input_gradient=False)) == 2 * product


def test_the_floor_is_the_longer_of_both():
    limits = {"copy": 1e3, "matrix": {"float32": 1e9, "tf32": 1.0, "bfloat16": 2.0}}
    assert roofline.floor_seconds(CASE, limits) == 4 * (X + W + B + Y) / 1e3
    assert roofline.floor_seconds(replace(CASE, dtype="tf32"), limits) == 1152
    assert roofline.floor_seconds(replace(CASE, dtype="float16"), limits) == 576
    assert roofline.longer(10, 0, "tf32", limits) == 10 / 1e3
    assert roofline.longer(10, 6, "float16", limits) == 3
    assert roofline.share(CASE.as_dict(), 2 * 4 * (X + W + B + Y) / 1e3, limits) == 2.0


def test_the_imdb_layer_at_batch_4096():
    """Read 4096 x 500 x 128 numbers: 0.18 ms of an H100; 116 GFLOP at its 800 TFLOP/s: 0.15 ms."""
    case = layer_case("imdb1", "forward", batch=4096, dtype="bfloat16")
    assert roofline.bytes_moved(case) == pytest.approx(2 * 4096 * (500 * 128 + 98 * 32), rel=1e-3)
    assert roofline.operations_done(case) == 2 * 4096 * 490 * 32 * 896


def test_only_layers_have_a_floor():
    limits = {"copy": 1.0, "matrix": {"float32": 1.0}}
    assert roofline.share(step_case("imdb_convnet", "training_step").as_dict(), 1.0, limits) is None
    assert roofline.share(replace(CASE, mode="training_step").as_dict(), 1.0, limits) is None
    assert roofline.share(CASE.as_dict(), 1.0, None) is None


def test_limits_are_measured_and_torch_s_switch_is_put_back(monkeypatch):
    allowed = []

    def rate(dtype, side, device):
        allowed.append((dtype, side, torch.backends.cuda.matmul.allow_tf32))
        return 1.0

    monkeypatch.setattr(roofline, "matrix_rate", rate)
    before = torch.backends.cuda.matmul.allow_tf32
    found = roofline.measure("cpu", 1e-3)
    assert torch.backends.cuda.matmul.allow_tf32 == before
    assert allowed == [("bfloat16", 8, False), ("tf32", 8, True), ("float32", 4, False)]
    assert found["copy"] > 0
    assert found["matrix"].keys() == {"bfloat16", "tf32", "float32"}


def test_a_rate_is_operations_over_the_median_time(monkeypatch):
    monkeypatch.setattr(roofline, "seconds_of", lambda call, device: call() is None or 0.5)
    assert roofline.matrix_rate("bfloat16", 10, "cpu") == 4000
    assert roofline.copy_rate(100, "cpu") == 400
