"""Sliding evaluation where the conv stack's kernel computes a convolution and its running maximum in one call."""

import pytest
import torch
from torch import nn

import seqconv
from seqconv.kernels.sliding import Convolve, Maximum, SlidingProgram, Tap, Total, reaches
from seqconv.kernels.triton.sliding import ConvolvedMaximum, fused


def even(number, size, apart):
    return tuple(Tap(number, i * apart) for i in range(size))


def convolve(number, size, apart, columns, outputs, relu):
    return Convolve(even(number, size, apart), torch.randn(size, columns, outputs), torch.randn(outputs), relu)


class TestFused:
    @pytest.mark.parametrize("relu", [(True, False), (False, True), (True, True)])
    def test_a_convolution_and_its_maximum_are_one_step(self, relu):
        program = SlidingProgram(
            3, (convolve(0, 2, 3, 3, 4, relu[0]), Maximum(even(1, 5, 2), relu[1]), Total((Tap(2, 0),))), (2, 3)
        )
        found = fused(program)
        assert [type(step) for step in found.steps] == [ConvolvedMaximum, Total]
        assert found.outputs == (1, 2)
        assert reaches(found)[1:] == reaches(program)[2:]

    @pytest.mark.parametrize(
        "steps",
        [
            (convolve(0, 2, 3, 3, 4, False), Maximum(even(1, 5, 2))),
            (convolve(0, 2, 3, 3, 4, True), Maximum(even(1, 5, 2)), Total((Tap(1, 0),))),
            (convolve(0, 2, 3, 3, 4, True), Maximum((Tap(1, 0), Tap(1, 1), Tap(1, 5)))),
        ],
        ids=["no ReLU", "read twice", "unevenly"],
    )
    def test_others_are_not(self, steps):
        found = fused(SlidingProgram(3, steps, (len(steps),)))
        assert len(found.steps) == len(steps)


def test_the_numbers_are_the_references(device):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv1d(3, 16, 3), nn.ReLU(), nn.MaxPool1d(3), nn.Conv1d(16, 16, 2), nn.ReLU(),
        nn.Conv1d(16, 8, 2, padding=1), nn.ReLU(), nn.MaxPool1d(2, 1), nn.Flatten(), nn.LazyLinear(2),
    ).eval()  # fmt: skip
    model(torch.randn(2, 3, 20))
    series = torch.randn(90, 3)
    exact = seqconv.sliding_inference(model.double(), series.double(), length=20, step=2, backend="reference")
    found = seqconv.sliding_inference(
        model.float().to(device), series.to(device), length=20, step=2, chunk=25, backend="triton"
    )
    assert found.device.type == device.type
    torch.testing.assert_close(found.cpu().double(), exact, rtol=1e-2, atol=1e-2)  # products may be in TF32


def test_streams(device):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv1d(3, 16, 3), nn.ReLU(), nn.MaxPool1d(4), nn.Conv1d(16, 16, 2), nn.ReLU()).eval()
    series = torch.randn(2, 40, 3)
    stream = seqconv.Stream(model.to(device), length=12, streams=2, backend="triton")
    assert any(isinstance(step, ConvolvedMaximum) for step in stream.slide.evaluation.program.steps)
    found = torch.cat([stream.extend(series[:, :30].to(device)), stream.extend(series[:, 30:].to(device))], 1)
    wanted = seqconv.sliding_inference(model.cpu(), list(series), length=12, backend="reference")
    torch.testing.assert_close(found.cpu(), torch.stack(wanted), rtol=1e-2, atol=1e-2)
