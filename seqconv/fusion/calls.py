"""What runs in the place of a chain of layers: a fused call, or where that cannot serve, the chain itself."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from seqconv import backends
from seqconv.functional import conv, norm, recurrent
from seqconv.functional.kernels import is_own
from seqconv.functional.recent import Recent
from seqconv.functional.several import run_recent
from seqconv.kernels.norm import Norm
from seqconv.layers.norm import count_batch, norm_of

__all__ = ["FusedCall", "FusedConcatenation", "FusedRecurrent", "Image", "NormOptions", "image_of", "noted"]

_noting = threading.RLock()
notes: list[tuple[Any, tuple[Any, ...], tuple[Any, ...]]] | None = None


@contextmanager
def noted() -> Iterator[list[tuple[Any, tuple[Any, ...], tuple[Any, ...]]]]:
    """Note all fused calls, of any thread, until the block ends.

    Each is the call, its operands, and what its plain layers would be given.
    """
    global notes
    with _noting:
        before, notes = notes, []
        try:
            yield notes
        finally:
            notes = before


REFUSALS = (IndexError, TypeError, ValueError)  # of calls that torch itself may take, or refuse in its own words


class Image(NamedTuple):
    """How a ``Conv2d`` is a ``Conv1d``: ``axis``, 2 or 3, is the one that it moves along.

    The other one has length 1, or where ``is_wide`` the kernel is as wide as it: ``(N, 1, L, C)`` then.
    """

    axis: int
    is_wide: bool

    @property
    def squeezes(self) -> tuple[int, int]:
        """The axis that remains with length 1, counted either way."""
        return 5 - self.axis, 1 - self.axis

    def convolution(self, options: dict[str, Any]) -> tuple[Any, ...]:
        """Return stride, padding, dilation and groups along the axis."""
        return *(_along(options[one], self.axis) for one in ("stride", "padding", "dilation")), options["groups"]

    def pool(self, options: dict[str, Any]) -> tuple[Any, ...] | None:
        """Return a pool's options along the axis, ``None`` for one that takes more than one position across."""
        size, stride = options["kernel_size"], options["stride"]
        stride = size if stride is None or stride == [] else stride
        across = 5 - self.axis
        if (_along(size, across), _along(stride, across), _along(options["padding"], across)) != (1, 1, 0):
            return None
        sizes = (_along(one, self.axis) for one in (size, stride, options["padding"], options["dilation"]))
        return *sizes, options["ceil_mode"]

    def input(self, input: Tensor, weight: Tensor) -> Tensor | None:
        """Return ``(N, C, L)`` of an input of four axes; ``None`` where it is no sequence."""
        if input.dim() != 4:
            return None
        if not self.is_wide:
            return input.squeeze(5 - self.axis) if input.size(5 - self.axis) == 1 else None
        if input.size(1) != 1 or input.size(3) != weight.size(3):
            return None
        return input.squeeze(1).transpose(1, 2)

    def weight(self, weight: Tensor) -> Tensor:
        """Return ``(O, C, K)``."""
        return weight.squeeze(1).transpose(1, 2) if self.is_wide else weight.squeeze(5 - self.axis)


def image_of(options: dict[str, Any]) -> Image | None:
    """Return how a ``Conv2d`` of these options moves along one axis, ``None`` for another."""
    if "kernel_size" not in options:
        return None
    size, padding = options["kernel_size"], options["padding"]
    for axis in (2, 3):
        across = 5 - axis
        beside = (_along(options["stride"], across), 0 if isinstance(padding, str) else _along(padding, across))
        if _along(size, across) == 1 and beside == (1, 0):
            return Image(axis, is_wide=False)
    if padding in ((0, 0), "valid") and options["dilation"][1] == 1:
        return Image(2, is_wide=True)
    return None


def _along(value: Any, axis: int) -> Any:
    return value[axis - 2] if isinstance(value, (tuple, list)) else value


class NormOptions(NamedTuple):
    """What a batch norm as a function is given besides tensors."""

    training: bool
    momentum: float
    eps: float


class FusedCall:
    """Convolution, norm, ReLU and maximum of an input or of tokens.

    ``plain`` is the chain as it was, of its own arguments, ``names`` has its convolution's name. ``convolution`` and
    ``pool`` are options of :mod:`seqconv.functional.conv`, ``pool`` ``None`` for the global maximum; ``keepdim`` keeps
    the axis of that. ``pad`` is what :func:`torch.nn.functional.pad` is given first, for padding by other numbers than
    zeros. ``norm`` is ``None`` for none, ``"module"`` for a module among the operands, else options of four tensors
    there; it stands between ReLU and pool if it ``is_behind``.
    """

    def __init__(
        self,
        plain: Callable[..., Tensor],
        *,
        names: list[str],
        convolution: tuple[Any, ...],
        pool: tuple[Any, ...] | None,
        contiguous: bool,
        keepdim: bool,
        image: Image | None,
        squeezed: bool,
        pad: tuple[list[int], str] | None,
        norm: NormOptions | str | None,
        is_behind: bool,
        padding_idx: int | None,
        of_tokens: bool,
    ) -> None:
        self.__name__, self.__module__ = "fused", __name__  # how the code of a graph calls it
        memory_format = torch.contiguous_format if contiguous else torch.preserve_format
        self.plain, self.names, self.keepdim, self.image = plain, names, keepdim, image
        self.squeezed, self.norm, self.is_behind = squeezed, norm, is_behind
        self.geometry = convolution, None if pool is None else (*pool, memory_format)
        self.options = (padding_idx, *self.geometry, None) if of_tokens else self.geometry
        self.pad, self.of_tokens, self.is_rank_free = pad, of_tokens, pool is not None and norm is None
        self.is_unpooled = pool is not None and pool[0] == 1
        self.recent = Recent()

    def __call__(self, operands: tuple[Any, ...], given: tuple[Any, ...]) -> Tensor:
        """Run the fused call on ``operands``, or ``plain`` on ``given``."""
        if notes is not None:
            notes.append((self, operands, given))
        output = self.fused(*operands)
        return self.plain(*given) if output is None else output

    def fused(self, *operands: Any) -> Tensor | None:
        """Return the fused call's result, ``None`` where the plain layers must run, or are faster."""
        try:
            return self._fused(*operands)
        except REFUSALS:
            return None

    def _fused(self, source: Any, table: Any, weight: Any, bias: Any, *norm: Any) -> Tensor | None:
        if self.image is not None:
            source = source if self.of_tokens else self.image.input(source, weight)
            if source is None or (self.of_tokens and table.size(1) != weight.size(3)):
                return None
            weight = self.image.weight(weight)
        if self.of_tokens:
            if source.dim() != 2:
                return None
            prepare: Callable[..., conv.Call] = conv.embedding_call
            sources: tuple[Any, ...] = source, table, None
        else:
            if source.dim() != 3 and not (self.is_rank_free and self.image is None):
                return None
            prepare, sources = conv.conv_call, (source, None)
        if self.pad is not None:
            sources = (F.pad(source, *self.pad), None)
        if _is_slow(source, weight, self.is_unpooled):
            return None
        if self.norm is not None:
            output = self._normalised(prepare, sources, weight, bias, *norm)
        else:
            output = conv.run(prepare, (*sources, weight, bias), self.options, "auto", self.recent)
        return None if output is None else self.finished(output)

    def _normalised(
        self, prepare: Any, sources: tuple[Any, ...], weight: Tensor, bias: Tensor | None, *given: Any
    ) -> Tensor | None:
        module = given[0] if self.norm == "module" else None
        stack = norm_of(module) if module is not None else Norm(*given, *self.norm[1:])  # type: ignore[index]
        live = module.training if module is not None else self.norm.training  # type: ignore[union-attr]
        if stack.running_mean is not None and stack.running_mean.dtype != weight.dtype:
            return None
        if self.is_behind:
            if (factors := _factors(stack)) is None:
                return None
            output = conv.run(prepare, (*sources, weight, bias), self.options, "auto", self.recent)
            scale, shift = (one[:, None] if output.dim() == 3 else one for one in factors)
            return output * scale + shift
        if not norm.uses_batch(stack, live):
            return norm.run_folded(prepare, sources, weight, bias, stack, self.options, "auto", self.recent)
        if self.of_tokens or weight.is_cuda or (self.is_unpooled and not _is_worth_a_norm(sources[0], weight)):
            return None
        output = norm.run(sources[0], weight, bias, stack, True, *self.geometry)
        if module is not None:
            count_batch(module)
        return output

    def frozen(self, source: Any, _table: Any, weight: Any, bias: Any, *given: Any) -> FrozenCall | None:
        """Return the call for parameters and running statistics that stay as they are, ``None`` where it gains nothing.

        It serves sources of this one's format; nothing may need gradients.
        """
        if self.of_tokens or self.is_behind or not (self.norm is None or isinstance(self.norm, NormOptions)):
            return None
        try:
            own = self.input_of(source, weight)
            if own is None or _is_slow(own, weight, self.is_unpooled):
                return None
            kernel = weight if self.image is None else self.image.weight(weight)
            if self.norm is not None:
                mean, var, scale, shift = given
                stack = Norm(mean, var, scale, shift, self.norm.momentum, self.norm.eps)
                if norm.uses_batch(stack, self.norm.training):
                    return None
                kernel, bias = norm.fold(conv.conv_call, (own, None), kernel, bias, stack)
            call = conv.conv_call(own, None, kernel, bias, *self.geometry)
            chosen, chosen_kernel = backends.choose_named(call.operation, "auto", call.arguments)
        except REFUSALS:
            return None
        if chosen != "numba" or not is_own(chosen_kernel) or not call.batched:
            return None
        dense = backends.load("seqconv.kernels.numba.dense")
        return FrozenCall(self, weight, dense.Frozen(own, *call.arguments[1:]))

    def input_of(self, source: Tensor, weight: Tensor) -> Tensor | None:
        """Return the sequences ``(N, C, L)`` that a source is, padded as the convolution's mode says."""
        own = source if self.image is None else self.image.input(source, weight)
        return own if own is None or self.pad is None else F.pad(own, *self.pad)

    def finished(self, output: Tensor) -> Tensor:
        """Return the kernel's result with the axes that the chain's has."""
        output = output.unsqueeze(-1) if self.keepdim else output
        return output if self.squeezed else output.unsqueeze(5 - self.image.axis)  # type: ignore[union-attr]


class FrozenCall:
    """A fused call whose weights are packed, and its norm folded, for good."""

    def __init__(self, call: FusedCall, weight: Tensor, kernel: Any) -> None:
        self.__name__, self.__module__ = "frozen", __name__
        self.call, self.weight, self.kernel = call, weight, kernel

    def __call__(self, operands: tuple[Any, ...], given: tuple[Any, ...]) -> Tensor:
        """Run the call on a source of the format that it was made for, else the fused call."""
        own = self.call.input_of(operands[0], self.weight)
        if own is None or not self.kernel.takes(own):
            return self.call(operands, given)
        return self.call.finished(self.kernel(own))


def _factors(norm: Norm) -> tuple[Tensor, Tensor] | None:
    """Return scale and shift of a norm by running statistics, ``None`` where a scale is not positive: maxima move."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = torch.rsqrt(norm.running_var + norm.eps)
    scale = scale if norm.weight is None else scale * norm.weight
    if scale.is_cuda or not bool((scale > 0).all()):  # to know it, the host would wait for a GPU
        return None
    shift = -norm.running_mean * scale
    return scale, shift if norm.bias is None else shift + norm.bias


# On an H200 in TF32, cuDNN was faster from so many products a number on (C x K). At 1,792 to 3,840 of them our
# kernels took 1.1 to 1.7 times as long on the device, in training 1.2 to 4 times; without a pool in training 1.5
# times at 768. On a CPU torch was faster in training without a pool for few samples, where autograd takes as long as
# the kernels, and for weights that no cache of a core holds.
WIDE, WIDE_WITHOUT_POOL = 1536, 512
FEW_SAMPLES, MANY_WEIGHTS = 8, 2**19
# The same with a norm of the batch. More products: FCN's step of 8, 640 and 768 took 1.09 times as long. Fewer
# numbers, samples x positions x outputs: 0.2 and 1 million took 1.09 and 1.01 times as long, 3.3 to 4.1 million 0.85 to
# 0.97 times.
FEW_PRODUCTS, MANY_NUMBERS = 128, 2**21


def _is_worth_a_norm(source: Tensor, weight: Tensor) -> bool:
    """Tell whether a norm of the batch without a pool behind it is faster in one pass."""
    numbers = source.size(0) * source.size(-1) * weight.size(0)
    return weight[0].numel() <= FEW_PRODUCTS and numbers >= MANY_NUMBERS


def _is_slow(source: Tensor, weight: Tensor, is_unpooled: bool) -> bool:
    """Tell whether the plain layers are known to be faster than one call."""
    training = torch.is_grad_enabled()
    if source.is_cuda:
        if weight.dtype is torch.float32 and not torch.backends.cudnn.allow_tf32:
            return False
        products = weight.size(1) * weight.size(2)
        return products >= (WIDE_WITHOUT_POOL if is_unpooled and training else WIDE)
    return is_unpooled and training and (source.size(0) < FEW_SAMPLES or weight.numel() > MANY_WEIGHTS)


class FusedConcatenation:
    """The global maxima of several convolutions over one embedding, side by side."""

    def __init__(
        self,
        plain: Callable[..., Tensor],
        *,
        names: list[str],
        convolution: tuple[Any, ...],
        padding_idx: int | None,
        images: list[Image | None],
    ) -> None:
        self.__name__, self.__module__ = "fused_several", __name__
        self.plain, self.names, self.images = plain, names, images
        self.convolution, self.padding_idx, self.recent = convolution, padding_idx, Recent()

    def __call__(self, operands: tuple[Any, ...], given: tuple[Any, ...]) -> Tensor:
        """Run the fused call on ``operands``, or ``plain`` on ``given``."""
        if notes is not None:
            notes.append((self, operands, given))
        output = self.fused(*operands)
        return self.plain(*given) if output is None else output

    def fused(self, tokens: Any, table: Any, *tensors: Any) -> Tensor | None:
        """Return the fused call's result, ``None`` where the plain layers must run."""
        weights, biases = [*tensors[: len(self.images)]], tensors[len(self.images) :]
        try:
            weights = [
                one if image is None else image.weight(one) for one, image in zip(weights, self.images, strict=True)
            ]
            if tokens.dim() != 2:
                return None
            operands = tokens, table, *weights, *biases
            return run_recent(operands, len(weights), self.padding_idx, self.convolution, self.recent)
        except REFUSALS:
            return None


class FusedRecurrent:
    """A GRU or LSTM of one or several layers: its kernels in the place of torch's, where they are faster."""

    def __init__(
        self,
        plain: Callable[..., Any],
        *,
        names: list[str],
        operation: str,
        options: tuple[bool, bool, float, bool],
    ) -> None:
        self.__name__, self.__module__ = "fused_recurrent", __name__
        self.plain, self.names, self.operation, self.options = plain, names, operation, options
        self.recent = Recent()

    def __call__(self, operands: tuple[Any, ...], given: tuple[Any, ...]) -> Any:
        """Run the kernels on ``operands``, or ``plain`` on ``given``."""
        if notes is not None:
            notes.append((self, operands, given))
        found = self.fused(*operands)
        return self.plain(*given) if found is None else found

    def fused(self, source: Any, hx: Any, *weights: Tensor) -> Any:
        """Return output and last state, ``None`` where the plain layer must run, or is faster."""
        try:
            states = (hx, None) if self.operation == "gru" or hx is None else hx
            return recurrent.run_recent(self.operation, (source, *states, *weights), self.options, self.recent)
        except REFUSALS:
            return None
