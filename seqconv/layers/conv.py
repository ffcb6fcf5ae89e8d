"""The fused conv stack as modules: convolution, ReLU and maximum pooling, of a tensor or of windows of a series.

Letters in the shapes: ``N`` samples, ``C`` input and ``O`` output channels, ``L`` positions, ``Q`` pooled positions.
Errors are those of :mod:`seqconv.functional.conv`; options of a layer are checked when it is made.

Instead of a tensor a layer takes :class:`~seqconv.Windows`, which it reads in place: the same layer, so that weights
trained either way are the same parameters, and the same call, so that hooks and :func:`seqconv.explain` see it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seqconv import backends
from seqconv.functional import arguments, conv
from seqconv.functional.arguments import IntOrTuple
from seqconv.kernels.reference.conv_pool import is_channels_last
from seqconv.layers.from_torch import check_alone, conv_options, pool_options, share
from seqconv.layers.fused import FusedConv1d
from seqconv.layers.options import (
    PaddingMode,
    Pooling,
    backend_repr,
    check_convolution,
    check_padding,
    pool_repr,
    refuse_lengths,
    set_pool,
)
from seqconv.layers.windows import Windows

__all__ = ["ConvReLUGlobalMaxPool1d", "ConvReLUMaxPool1d", "given", "pad"]


class ConvReLUGlobalMaxPool1d(FusedConv1d):
    """``nn.Conv1d -> nn.ReLU -> maximum over all positions``: ``(N, C, L) -> (N, O)`` or ``(C, L) -> (O,)``.

    The arguments, by position too, the parameters and the ``state_dict`` are those of :class:`torch.nn.Conv1d`;
    ``backend`` is ``"auto"`` or a name out of :data:`seqconv.backends.BACKENDS`. In torch:
    ``F.relu(F.conv1d(input, weight, bias, ...)).max(dim=-1).values``. :class:`~seqconv.Windows` give ``(N, O)``, too.
    A second argument ``lengths`` ``(N,)`` cuts samples off, see :func:`seqconv.functional.conv1d_relu_max_pool1d`.

    The layer is an ``nn.Conv1d`` by its parameters, not by its result. What looks for ``nn.Conv1d`` to initialise,
    prune, normalise, parametrise or decay ``weight`` and ``bias`` is right: they are the convolution's, and read anew
    at every call. What takes the result for the convolution's is not: ReLU and maximum come between. So
    ``fuse_conv_bn_eval``, ``to_mkldnn`` and peft's LoRA are stopped by a ``TypeError``, and torch's quantisation leaves
    the layer in floating point, with a warning; ``fuse_modules`` and ``torch.fx``'s ``fuse``, which go by the exact
    class, do not fold it. A tool that folds a norm by assigning new weights on its own cannot be stopped.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: IntOrTuple,
        stride: IntOrTuple = 1,
        padding: IntOrTuple | str = 0,
        dilation: IntOrTuple = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: PaddingMode = "zeros",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        backend: str = "auto",
    ) -> None:
        self._refuse_tools("peft")
        check_convolution(in_channels, out_channels, kernel_size, stride, padding, dilation, groups)
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride=stride,
            padding=padding,
            dilation=dilation,
            groups=groups,
            bias=bias,
            padding_mode=padding_mode,
            device=device,
            dtype=dtype,
        )
        self.backend = backends.check_name(backend)

    @classmethod
    def from_torch(cls, conv: nn.Conv1d, *, backend: str = "auto") -> Self:
        """Return the layer in place of ``conv``, a ReLU and a global maximum; weight and bias are the same objects.

        Raises ``TypeError`` for another class of module, ``ValueError`` for one with hooks or pruned, whose parameters
        are not all.
        """
        check_alone("conv", conv, nn.Conv1d)
        return share(cls(**conv_options(conv), backend=backend, device="meta"), conv)

    def forward(self, input: Tensor | Windows, lengths: Tensor | None = None) -> Tensor:
        """Return the pooled activation of ``input``, of its samples' first ``lengths`` ``(N,)`` positions."""
        return conv.run(*given(self, self.weight, self.bias, self.pool(), input, lengths), self.backend)

    def prepare(self, input: Tensor | Windows, lengths: Tensor | None = None) -> conv.Call:
        """Check ``input`` and return the call that :meth:`forward` runs."""
        prepare, operands, options = given(self, self.weight, self.bias, self.pool(), input, lengths)
        return prepare(*operands, *options)

    def extra_repr(self) -> str:
        """Return the options that differ from their defaults."""
        options: str = nn.Conv1d.extra_repr(self)
        return options + backend_repr(self.backend)

    def pool(self) -> tuple[Any, ...] | None:
        """Return ``None``: the maximum is over all positions."""
        return None


class ConvReLUMaxPool1d(Pooling, ConvReLUGlobalMaxPool1d):
    """``nn.Conv1d -> nn.ReLU -> nn.MaxPool1d``: ``(N, C, L) -> (N, O, Q)`` or ``(C, L) -> (O, Q)``.

    The arguments, parameters and ``state_dict`` are those of :class:`torch.nn.Conv1d`, and behind ``pool_`` the
    arguments of :class:`torch.nn.MaxPool1d`; ``pool_stride=None`` means ``pool_size``. A channels-last input gives a
    channels-last result, and so do :class:`~seqconv.Windows`, unless ``memory_format=torch.contiguous_format`` asks for
    a result that is always contiguous, as torch's own layers give: in their place, it keeps what follows as it was, a
    ``.view(n, -1)`` or the mask that a dropout draws. ``backend`` is ``"auto"`` or a name out of
    :data:`seqconv.backends.BACKENDS`. In torch: ``F.max_pool1d(F.relu(F.conv1d(input, weight, bias, ...)), pool_size,
    ...)``.

    By position come the four arguments without a default; as ``pool_size`` is where ``nn.Conv1d`` has its ``stride``,
    the rest must be named, or a ``TypeError`` says so. What else it means to be an ``nn.Conv1d`` is as in
    :class:`ConvReLUGlobalMaxPool1d`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: IntOrTuple,
        pool_size: IntOrTuple,
        *misplaced: Any,
        stride: IntOrTuple = 1,
        padding: IntOrTuple | str = 0,
        dilation: IntOrTuple = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: PaddingMode = "zeros",
        pool_stride: IntOrTuple | None = None,
        pool_padding: IntOrTuple = 0,
        pool_dilation: IntOrTuple = 1,
        ceil_mode: bool = False,
        memory_format: torch.memory_format = torch.preserve_format,
        backend: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if misplaced:
            raise TypeError(
                f"arguments behind pool_size must be given by name, got {', '.join(map(repr, misplaced))}: in the "
                "order of nn.Conv1d, stride is where pool_size is here (for a plain convolution, make an nn.Conv1d)"
            )
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride=stride,
            padding=padding,
            dilation=dilation,
            groups=groups,
            bias=bias,
            padding_mode=padding_mode,
            backend=backend,
            device=device,
            dtype=dtype,
        )
        set_pool(self, pool_size, pool_stride, pool_padding, pool_dilation, ceil_mode, memory_format)

    @classmethod
    def from_torch(  # type: ignore[override]
        cls,
        conv: nn.Conv1d,
        pool: nn.MaxPool1d,
        *,
        memory_format: torch.memory_format = torch.preserve_format,
        backend: str = "auto",
    ) -> Self:
        """Return the layer in place of ``conv``, a ReLU and ``pool``; weight and bias are the same objects.

        Raises as :meth:`ConvReLUGlobalMaxPool1d.from_torch` does, and ``ValueError`` for a pool that returns indices.
        """
        check_alone("conv", conv, nn.Conv1d)
        options = conv_options(conv) | pool_options(pool) | {"memory_format": memory_format, "backend": backend}
        return share(cls(**options, device="meta"), conv)

    def extra_repr(self) -> str:
        """Return the options that differ from their defaults."""
        options: str = nn.Conv1d.extra_repr(self)
        return options + pool_repr(self) + backend_repr(self.backend)


def given(
    layer: nn.Conv1d,
    weight: Tensor,
    bias: Tensor | None,
    pool: tuple[Any, ...] | None,
    input: Tensor | Windows,
    lengths: Tensor | None,
) -> tuple[Callable[..., conv.Call], tuple[Tensor | None, ...], tuple[Any, ...]]:
    """Return what checks a call with the options of ``layer``, its operands and its options."""
    padding: Any = layer.padding
    if lengths is not None:
        refuse_lengths(layer.padding_mode)
    if isinstance(input, Windows):
        if layer.padding_mode == "zeros":
            geometry = (layer.stride, padding, layer.dilation, layer.groups), pool
            operands = input.series, input.starts, lengths, weight, bias
            return conv.window_call, operands, (input.length, input.step, *geometry)
        input = input.gather().transpose(1, 2)
    if layer.padding_mode != "zeros":
        input, padding = pad(input, layer), 0
    options = (layer.stride, padding, layer.dilation, layer.groups), pool
    return conv.conv_call, (input, lengths, weight, bias), options


def pad(input: Tensor, layer: nn.Conv1d) -> Tensor:
    """Return the input padded in the layer's mode, which is not that of zeros."""
    arguments.tensor("input", input)
    if input.dim() not in (2, 3):
        raise ValueError(f"input must have shape (N, C, L) or (C, L), got {tuple(input.shape)}")
    arguments.floating("input", input)
    check_padding("input", input.size(-1), layer)
    padded = F.pad(input, layer._reversed_padding_repeated_twice, mode=layer.padding_mode)
    if is_channels_last(input if input.dim() == 3 else input.unsqueeze(0)):
        return padded.transpose(-1, -2).contiguous().transpose(-1, -2)
    return padded
