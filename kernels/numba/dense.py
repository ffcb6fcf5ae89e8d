"""Convolution, bias, ReLU and maximum pooling in one pass over memory, compiled for the CPU: the forward pass.

A chunk of positions is convolved into a scratch that stays in the first-level cache, a register tile of positions x
output channels at a time, and pooled from there: the activation never reaches memory. Inputs are read in place through
their strides; only rows beside a convolution's padding are copied. Letters are those of the reference, whose results
these are but for rounding.

``argmax``, kept for the backward pass only, holds for every window the position of its maximum, counted from the
window's beginning in steps of its dilation, or -1 where the activation is 0 and no gradient flows. Its shape is ``(N,
Q, O)``, rows padded to whole vectors; its dtype is the smallest integer that the window allows.

Sums are direct or of fewer products (:mod:`.fast_products`), whichever a count of operations finds faster. In shares of
the multiply-add peak, by the direct count, medians on one core of a Zen 4 (116 GFLOP/s), contiguous and channels-last:
imdb1 0.93 and 0.93 direct, 1.14 and 1.20 fast; jena1 0.81 and 0.85, 0.98 and 1.06; jena2 0.88 and 0.90, 1.09 and 1.15;
64 channels to 64 with 3 taps 0.82 and 0.85, 1.14 and 1.21; 320 to 480 with 8 taps 0.90 and 0.93, 1.30 and 1.32. Fast
products are 0.71, 0.70, 0.70, 0.67 and 0.69 of the direct products; of the rest a pass over the inputs takes
half. In jena1 pooling takes a tenth.

Where windows overlap, every position is convolved once, but for those of a window's span beside a border of threads
that share a sample. Windows of few elements are pooled one by one, others by running maxima, whose cost does not grow
with the windows. On one core of a Zen 5, as many times as long as the same convolution without a pool, medians, and
what it was when chunks shared nothing: windows of 3, stride 1, dilation 18 behind 32 to 32 channels, 5 taps, 101,440
positions 1.02 to 1.03 (1.21 to 1.23), with argmax 1.06 to 1.15 (1.29 to 1.31); of 20, dilation 54 1.16 to 1.18 (1.54 to
1.57), 1.27 to 1.28 (1.55 to 1.58); 128 samples of 500, windows of 64 1.15 (2.05), 1.23 to 1.24 (2.71); imdb1 with such
windows 1.04 (1.52 to 1.55), 1.05 (1.65 to 1.69), with windows of 3 and stride 2 1.00 (1.04), 1.00 (1.05).

Where these kernels are slow: positions that lie between windows are convolved in vain; and fewer output channels than a
vector has lanes cost as much as a vector of them, unless the stride is 1 and there are 16 taps or more (8 where the
input is contiguous). A kernel of one position with one or two outputs reads a channels-last input at a third of the
memory's speed: 0.4 to 0.7 times as fast as torch on a contiguous one.

A result's bits depend on the tensors' values, dtype and strides, not on the number of threads, nor on a sample's place
in the batch. They do on the batch's size, by which the plan of the sums is chosen.
"""

from __future__ import annotations

import functools
from array import array
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .. import plans
from ..geometry import Convolution, Pool
from ..reference.conv_pool import is_channels_last
from ..source import Dense, Source, Windows, limits
from .conv_pool_blocking import ADDRESSES, forward_blocking, sums_plan
from .conv_pool_kernel import COMPUTE, FINISH, PACK, forward_float32, forward_float64
from .micro.simd import REGISTERS
from .runtime import threads

__all__ = [
    "CPU",
    "DTYPES",
    "Frozen",
    "address",
    "aligned",
    "argmax_format",
    "argmax_integers",
    "explain",
    "forward",
    "lane_count",
    "limits_table",
    "padded_outputs",
    "prepared",
]

DTYPES = {torch.float32: np.float32(0), torch.float64: np.float64(0)}
KERNELS = {torch.float32: forward_float32, torch.float64: forward_float64}

# The dtypes of argmax: the greatest number that one holds, the dtype, and a zero of it.
ARGMAX_INTEGERS: list[tuple[int, torch.dtype, Any]] = [
    (2**7 - 1, torch.int8, np.int8(0)),
    (2**15 - 1, torch.int16, np.int16(0)),
    (2**31 - 1, torch.int32, np.int32(0)),
]


CPU = torch.device("cpu")  # memory is made there, whatever device is the default

# What torch.empty_strided comes to there, in half its time.
empty = torch._C._dynamo.guards._empty_strided_cpu  # type: ignore[attr-defined]


def argmax_format(
    samples: int, outputs: int, windows: int, greatest: int, dtype: torch.dtype
) -> tuple[tuple[int, int, int], torch.dtype]:
    """Return the shape and dtype of ``argmax`` for tensors of ``dtype``; none of its numbers exceeds ``greatest``."""
    lanes = REGISTERS.width // dtype.itemsize
    kind, _ = argmax_integers.__wrapped__(greatest)  # without the cache: numbers may be symbols of a graph
    return (samples, windows, -(-outputs // lanes) * lanes), kind


@functools.lru_cache(maxsize=1024)
def argmax_integers(greatest: int) -> tuple[torch.dtype, Any]:
    """Return the narrowest integers that hold ``greatest``: their dtype, and a zero of them."""
    for limit, kind, zero in ARGMAX_INTEGERS:  # noqa: B007
        if greatest <= limit:
            break
    return kind, zero


def forward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    convolution: Convolution,
    pool: Pool | None,
    want_argmax: bool,
    places: Tensor | None = None,
    lengths: Tensor | None = None,
    results: tuple[Tensor, Tensor | None] | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Return :func:`.conv_pool.forward`'s result and, if wanted, ``argmax`` of an ``input`` ``(N, C, L)``.

    ``places`` ``(N,)``, int64, are the addresses of samples that lie anywhere in a series; ``input`` then has their
    shape and strides, and the result is channels-last. ``lengths`` ``(N,)`` cut samples off; the convolution must have
    no padding then. ``results`` is memory to write to, channels-last unless the pool's result is contiguous.
    """
    if not _is_read_in_place(weight):
        weight = weight.contiguous()
    channels_last = places is not None or results is not None or is_channels_last(input)
    kind = None if results is None or results[1] is None else results[1].dtype
    ready = _prepared(*_formats(input, weight, bias), convolution, pool, want_argmax, channels_last, kind)
    cut = None if lengths is None else limits_table(lengths, weight.shape[2], convolution, pool)
    return ready.run(input, weight, bias, places, cut, results)


def prepared(
    input: Tensor, weight: Tensor, bias: Tensor | None, convolution: Convolution, pool: Pool | None, want_argmax: bool
) -> Prepared | None:
    """Return what runs :func:`forward` again on other operands of the same formats; ``None`` if a weight is copied."""
    if not _is_read_in_place(weight):
        return None
    return _prepared(*_formats(input, weight, bias), convolution, pool, want_argmax, is_channels_last(input), None)


def explain(
    source: Source,
    weight: Tensor,
    _bias: Tensor | None,
    convolution: Convolution,
    pool: Pool | None,  # noqa: ARG001
) -> str:
    """Return how the sums of a dense input's convolution are computed, and why so."""
    if not plans.fast_products:
        return "direct: seqconv.set_fast_products(False)"
    values = source.values
    shape = (source.samples, values.size(-1) if isinstance(source, Windows) else values.size(1), source.length)
    strides = values.stride() if isinstance(source, Dense) else (0, *values.stride()[::-1])
    plan = sums_plan(shape, strides, tuple(weight.shape), convolution, values.dtype.itemsize)  # type: ignore[arg-type]
    return f"{plan.name}: {plan.reason}"


def _formats(input: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Any, ...]:
    """Return what a forward pass depends on besides its options: of the operands, and how work is shared."""
    threads_now = torch.get_num_threads(), threads.WORTH_A_THREAD, plans.fast_products
    bias_stride = 0 if bias is None else bias.stride(0)
    return threads_now, input.dtype, input.shape, input.stride(), weight.shape, weight.stride(), bias_stride


class Prepared:
    """A forward pass, all but the addresses of its operands and results: these have the formats of the ones given."""

    def __init__(
        self,
        limits: tuple[int, int, bool],
        dtype: torch.dtype,
        shape: tuple[int, int, int],
        strides: tuple[int, int, int],
        weight: tuple[int, int, int],
        weight_strides: tuple[int, int, int],
        bias_stride: int,
        convolution: Convolution,
        pool: Pool | None,
        want_argmax: bool,
        channels_last: bool,
        kind: torch.dtype | None,
    ) -> None:
        self.threads, _, self.fast_products = limits
        greatest = (pool.size if pool else convolution.output_length(shape[2], weight[2])) - 1
        kind = kind or argmax_integers(greatest)[0]
        channels_last = channels_last and not (pool and pool.contiguous)
        blocking = forward_blocking(
            shape, strides, weight, weight_strides, convolution, pool, dtype.itemsize, kind.itemsize, channels_last,
            self.fast_products and dtype == torch.float32,
        )  # fmt: skip
        self.blocking, self.kernel, self.has_argmax = blocking, KERNELS[dtype], want_argmax
        self.out = blocking.out_shape, blocking.out_strides, dtype
        self.argmax = blocking.argmax_shape, kind
        self.is_empty = 0 in blocking.out_shape
        addresses = (0, 0, 0, bias_stride * dtype.itemsize, *[0] * (ADDRESSES - 4))
        self.numbers = array("q", (*addresses, *blocking.numbers))

    @property
    def may_replay(self) -> bool:
        """Whether :meth:`replay` does what the kernel's call would."""
        return torch.get_num_threads() == self.threads and plans.fast_products == self.fast_products

    def replay(self, tensors: list[Tensor]) -> tuple[Tensor, Tensor | None]:
        """Return the result and, if wanted, ``argmax``, of ``(input, weight)`` or ``(input, weight, bias)``."""
        input, weight, *rest = tensors
        return self.run(input, weight, rest[0] if rest else None)

    def run(
        self,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        places: Tensor | None = None,
        cut: NDArray[np.int64] | None = None,
        results: tuple[Tensor, Tensor | None] | None = None,
        packed: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Return the result and, if wanted, ``argmax``; ``cut`` is a :func:`limits_table`.

        ``packed`` is what :meth:`pack` made of weight and bias, if it is known.
        """
        blocking = self.blocking
        if results is None:
            argmax = torch.empty(self.argmax[0], dtype=self.argmax[1], device=CPU) if self.has_argmax else None
            results = empty(*self.out), argmax
        out, argmax = results
        numbers = self.numbers[:]
        numbers[0], numbers[1], numbers[4] = input.data_ptr(), weight.data_ptr(), out.data_ptr()
        if bias is not None:
            numbers[2] = bias.data_ptr()
        if argmax is not None:
            numbers[5] = argmax.data_ptr()
        if self.is_empty:
            return results
        if packed is None and blocking.packed_bytes:
            packed = self.pack(weight, bias)
        if packed is not None:
            numbers[6] = aligned(packed)
        if blocking.partial_bytes:
            partial = torch.empty(blocking.partial_bytes, dtype=torch.uint8, device=CPU)
            numbers[7] = partial.data_ptr()
        if places is not None:
            numbers[8] = places.data_ptr()
        if cut is not None:
            numbers[9] = cut.ctypes.data
        kernel, (table, _) = self.kernel, numbers.buffer_info()
        if blocking.threads == 1:
            kernel(table, COMPUTE, 0, blocking.args.blocks, 1, 0)
        else:
            threads.run(functools.partial(kernel, table, COMPUTE), blocking.args.blocks, blocking.threads)
        if blocking.partial_bytes:
            kernel(table, FINISH, 0, 0, 1, 0)
        return results

    def pack(self, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return weight and bias as the kernel reads them: memory of bytes, empty where it reads them as they are."""
        packed = torch.empty(self.blocking.packable_bytes, dtype=torch.uint8, device=CPU)
        if self.blocking.packable_bytes:
            numbers = self.numbers[:]
            numbers[1], numbers[2] = weight.data_ptr(), 0 if bias is None else bias.data_ptr()
            numbers[6] = aligned(packed)
            work = functools.partial(self.kernel, numbers.buffer_info()[0], PACK)
            threads.run(work, self.blocking.panels, self.blocking.threads)
        return packed


class Frozen:
    """A forward pass of a weight and a bias that stay as they are: they are packed once.

    It is called with inputs of the first one's shape, strides and dtype.
    """

    def __init__(
        self, input: Tensor, weight: Tensor, bias: Tensor | None, convolution: Convolution, pool: Pool | None
    ) -> None:
        self.format = input.shape, input.stride(), input.dtype
        weight = weight if _is_read_in_place(weight) else weight.contiguous()
        self.prepared = _prepared(
            *_formats(input, weight, bias), convolution, pool, False, is_channels_last(input), None
        )
        packed = self.prepared.pack(weight, bias)
        self.operands = weight, bias, None, None, None, packed if packed.numel() else None

    def takes(self, input: Tensor) -> bool:
        """Tell whether it may be called with an input, and computes as torch's threads are now."""
        return self.prepared.may_replay and (input.shape, input.stride(), input.dtype) == self.format

    def __call__(self, input: Tensor) -> Tensor:
        """Return the result."""
        return self.prepared.run(input, *self.operands)[0]


def address(tensor: Tensor | None) -> int:
    """Return where a tensor's numbers are, 0 without one."""
    return 0 if tensor is None else tensor.data_ptr()


def aligned(memory: Tensor | None) -> int:
    """Return the first cache line of memory, 0 without any."""
    return (address(memory) + 63) // 64 * 64


_prepared = functools.lru_cache(maxsize=512)(Prepared)


def _is_read_in_place(weight: Tensor) -> bool:
    """Tell whether the kernel reads a weight as it lies: each output channel's numbers are dense, in either order."""
    (_, channels, size), (_, by_channel, by_tap) = weight.shape, weight.stride()
    rows_are_kernels = (by_tap == 1 or size <= 1) and by_channel == size
    return rows_are_kernels or ((by_channel == 1 or channels <= 1) and by_tap == channels)


def limits_table(lengths: Tensor, size: int, convolution: Convolution, pool: Pool | None) -> NDArray[np.int64]:
    """Return :func:`~..source.limits` of ``lengths`` as one array, ``(N, 2)``, in a third of the time torch takes."""
    return np.stack(limits(lengths.numpy().astype(np.int64), size, convolution, pool), 1)


def lane_count(like: Any) -> int:
    """Return the number of lanes of a vector register for numbers of this type."""
    return REGISTERS.width // int(like.itemsize)


@functools.lru_cache(maxsize=1024, typed=True)  # 0 of float32 is 0 of float64
def padded_outputs(outputs: int, like: Any) -> int:
    """Return the output channels rounded up to whole vectors."""
    return -(-outputs // lane_count(like)) * lane_count(like)
