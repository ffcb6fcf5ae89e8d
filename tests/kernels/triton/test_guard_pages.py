"""No kernel touches memory outside its tensors: in the interpreter, every tensor lies against a page that is locked.

A read or write outside ends the process, so that this file is a program, too: ``TRITON_INTERPRET=1 python -m
tests.kernels.triton.test_guard_pages 8`` makes all fixed calls and 8 drawn ones, with locked pages right behind every
tensor's last number, and again with those before its first one.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import random
import sys
from typing import NamedTuple

import numpy as np
import pytest
import torch

from seqconv.kernels.geometry import Convolution, Pool
from seqconv.kernels.norm import Norm
from seqconv.kernels.source import Dense, Tokens, Windows
from tests.grids import others_large
from tests.kernels.triton.conftest import INTERPRETED

PLAIN = Convolution()


class Call(NamedTuple):
    """A layer on rows of its own (``plan`` is ``None``), or of a table: by tokens, or windows if ``step`` is not 0."""

    samples: int
    length: int
    channels: int
    outputs: int
    size: int
    convolution: Convolution = PLAIN
    pool: Pool | None = None
    plan: str | None = None
    step: int = 0
    rows: int = 7
    dtype: torch.dtype = torch.float32
    numbers: torch.dtype = torch.int64
    norm: bool = False  # by the batch's statistics


FIXED = [
    # Taps that are no multiple of those that are added together; nothing is padded, so that nothing else hides them.
    Call(2, 17, 3, 5, 9, pool=Pool(3, 3), plan="folded"),
    Call(2, 13, 3, 5, 9, plan="folded", numbers=torch.int32),
    Call(2, 14, 3, 5, 11, pool=Pool(2, 2), plan="folded", numbers=torch.int32),
    Call(1, 11, 3, 20, 11, plan="folded"),
    Call(2, 14, 3, 5, 11, pool=Pool(2, 2), plan="folded", step=2),
    Call(2, 40, 4, 5, 13, Convolution(2, (0, 0), 3), plan="folded"),
    # Phases that share loads, more positions than a tile has, and one that is all there is.
    Call(2, 18, 5, 5, 4, pool=Pool(5, 5), plan="direct"),
    Call(2, 18, 14, 5, 4, pool=Pool(5, 5)),
    Call(1, 70, 3, 40, 3, plan="direct", dtype=torch.bfloat16),
    Call(1, 1, 1, 1, 1),
    # Each once by positions that are neighbours, once by channels.
    *[Call(2, 18, 5, 70, 4, pool=Pool(3, 2, 1, 1, True), norm=True)] * 2,
    *[Call(3, 140, 3, 5, 4, norm=True)] * 2,
]


def drawn(seed: int) -> Call:
    """Return a call of a random geometry that has a position."""
    draw = random.Random(seed)
    size, dilation = draw.randint(1, 13), draw.choice([1, 1, 2, 3])
    padding = (draw.randint(0, 3), draw.randint(0, 3)) if draw.random() < 0.3 else (0, 0)
    convolution = Convolution(draw.choice([1, 1, 2, 3]), padding, dilation)
    shortest = max(1, dilation * (size - 1) + 1 - sum(padding))
    length = shortest + draw.randint(0, 30)
    pool = Pool(draw.randint(1, 6), draw.randint(1, 5), 0, draw.choice([1, 1, 2]), draw.random() < 0.3)
    if pool.output_length(convolution.output_length(length, size)) < 1:
        pool = None
    plan = draw.choice([None, "direct", "folded"])
    return Call(
        draw.randint(1, 3), length, draw.choice([1, 3, 8, 20]), draw.choice([1, 5, 20, 40]), size, convolution, pool,
        plan, 0 if plan is None else draw.choice([0, 0, 1, 3]), draw.choice([1, 7, 30]),
        draw.choice([torch.float32, torch.float16, torch.bfloat16]), draw.choice([torch.int32, torch.int64]),
    )  # fmt: skip


class Fence:
    """Memory between locked pages, against the one before it or the one behind."""

    def __init__(self, side: str) -> None:
        self.side = side
        self.kept: list[mmap.mmap] = []
        self.library = ctypes.CDLL(None, use_errno=True)
        self.library.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """Return contiguous memory whose numbers, where there is such a thing, are NaN."""
        page, size = mmap.PAGESIZE, int(np.prod(shape, dtype=int)) * dtype.itemsize
        if not size:
            return torch.zeros(shape, dtype=dtype)
        last = (-(-size // page) + 1) * page
        memory = mmap.mmap(-1, last + page)
        self.kept.append(memory)
        start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        for locked in (start, start + last):
            if self.library.mprotect(locked, page, 0):
                raise OSError(ctypes.get_errno(), "mprotect")
        numbers = np.frombuffer(memory, np.uint8, size, page if self.side == "before" else last - size)
        tensor = torch.from_numpy(numbers).view(dtype).view(shape)
        return tensor.fill_(float("nan")) if dtype.is_floating_point else tensor

    def put(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return a contiguous copy there."""
        return self.empty(tuple(tensor.shape), tensor.dtype).copy_(tensor)

    @contextlib.contextmanager
    def around_all(self):
        """Put there, too, what the passes allocate and what torch sorts."""
        sort = torch.sort

        def new_empty(like, *shape, dtype=None, device=None):
            shape = shape[0] if isinstance(shape[0], tuple | torch.Size) else shape
            return self.empty(tuple(shape), like.dtype if dtype is None else dtype)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch.Tensor, "new_empty", new_empty)
            patch.setattr(torch.Tensor, "new_zeros", lambda *given, **options: new_empty(*given, **options).zero_())
            patch.setattr(torch, "sort", lambda *given, **options: [self.put(one) for one in sort(*given, **options)])
            yield


def run(call: Call, fence: Fence, seed: int) -> None:
    """Make both passes of a call, every operand at the fence."""
    from seqconv.kernels.triton import conv_pool

    torch.manual_seed(seed)

    def normal(*shape):
        return fence.put(torch.randn(shape).to(call.dtype))

    weight, bias = normal(call.outputs, call.channels, call.size), normal(call.outputs)
    plan = {}
    if call.plan is None:
        source = Dense(normal(call.samples, call.channels, call.length))
        if seed % 2:
            source = Dense(normal(call.samples, call.length, call.channels).transpose(1, 2))
    else:
        plan = {"plan": call.plan}
        rows = call.rows + (call.length - 1) * call.step
        shape = (call.samples,) if call.step else (call.samples, call.length)
        index = torch.randint(call.rows, shape)
        index.view(-1)[0], index.view(-1)[-1] = 0, call.rows - 1  # both ends of the table are read
        index, table = fence.put(index.to(call.numbers)), normal(rows, call.channels)
        source = Windows(table, index, call.length, call.step) if call.step else Tokens(index, table)
    geometry = call.convolution, call.pool
    if call.norm:
        check(*run_norm(source.values, weight, bias, geometry, fence))
        return
    with fence.around_all():
        out, argmax = conv_pool.forward(source, weight, bias, *geometry, want_argmax=True, **plan)
        upstream = normal(*out.shape)
        gradients = conv_pool.backward(upstream, argmax, source, weight, *geometry, wanted=(True, True, True), **plan)
    check(out, *gradients)


def run_norm(input, weight, bias, geometry, fence):
    """Make both passes of a call with a norm, torch's convolution at the fence, too; return what they made."""
    from seqconv.kernels.triton import conv_norm_pool

    convolution = conv_norm_pool._convolution
    norm = Norm(None, None, *(fence.put(one) for one in torch.randn(2, weight.size(0))))
    with fence.around_all(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(conv_norm_pool, "_convolution", lambda *given: fence.put(convolution(*given)))
        out, saved = conv_norm_pool.forward(input, weight, bias, norm, *geometry, want_argmax=True)
        upstream = fence.put(torch.randn(out.shape))
        gradients = conv_norm_pool.backward(upstream, saved, input, weight, bias, *geometry, wanted=(True,) * 5)
    return out, *saved, *gradients


def check(*results):
    """Raise unless all numbers are finite, or minus infinity."""
    for made in results:
        if not made[made != float("-inf")].isfinite().all():  # minus infinity is a window without a position
            raise AssertionError("something was left unwritten, or was computed from what is not there")


def main(seeds: int, sides: int = 2) -> None:
    """Make the calls, on one side in turn or on both, and say which before each."""
    for seed, call in enumerate([*FIXED, *map(drawn, range(seeds))]):
        for side in (("behind", "before") * 2)[seed % 2 :][:sides]:
            print(seed, side, call, flush=True)
            run(call, Fence(side), seed)
    print("all done", flush=True)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="pages are locked by Linux's call")
@pytest.mark.skipif(not INTERPRETED, reason="test_interpreter.py runs it")
@pytest.mark.parametrize(("drawn", "sides"), others_large((2, 1), (12, 2)))
def test_nothing_outside_the_tensors_is_touched(drawn, sides, capsys):
    with capsys.disabled():  # the last line before the process ends is the call that ended it
        main(drawn, sides)


if __name__ == "__main__":
    main(int(sys.argv[1]))
