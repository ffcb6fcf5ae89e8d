"""The fused conv stack as modules: convolution, ReLU and maximum pooling, of a tensor or of windows of a series.

Letters in the shapes: ``N`` samples, ``C`` input and ``O`` output channels, ``L`` positions, ``Q`` pooled positions.
Errors are those of :mod:`seqconv.functional.conv`; options of a layer are checked when it is made.

Instead of a tensor a layer takes :class:`~seqconv.Windows`, which it reads in place: the same layer, so that weights
trained either way are the same parameters, and the same call, so that hooks and :func:`seqconv.explain` see it.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seqconv import backends
from seqconv.functional import arguments, conv
from seqconv.functional.arguments import IntOrTuple
from seqconv.kernels.reference.conv_pool import is_channels_last
from seqconv.layers.options import (
    PaddingMode,
    backend_repr,
    check_convolution,
    check_padding,
    convolution_of,
    pool_of,
    pool_repr,
    set_pool,
)
from seqconv.layers.windows import Windows

__all__ = ["ConvReLUGlobalMaxPool1d", "ConvReLUMaxPool1d"]


class ConvReLUGlobalMaxPool1d(nn.Conv1d):
    """``nn.Conv1d -> nn.ReLU -> maximum over all positions``: ``(N, C, L) -> (N, O)`` or ``(C, L) -> (O,)``.

    The arguments, parameters and ``state_dict`` are those of :class:`torch.nn.Conv1d`; ``backend`` is ``"auto"`` or a
    name out of :data:`seqconv.backends.BACKENDS`. In torch:
    ``F.relu(F.conv1d(input, weight, bias, ...)).max(dim=-1).values``. :class:`~seqconv.Windows` give ``(N, O)``, too.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: IntOrTuple,
        *,
        stride: IntOrTuple = 1,
        padding: IntOrTuple | str = 0,
        dilation: IntOrTuple = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: PaddingMode = "zeros",
        backend: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        check_convolution(in_channels, out_channels, kernel_size, stride, padding, dilation, groups)
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,  # type: ignore[arg-type]  # torch takes a tuple of one, too
            stride=stride,  # type: ignore[arg-type]
            padding=padding,  # type: ignore[arg-type]
            dilation=dilation,  # type: ignore[arg-type]
            groups=groups,
            bias=bias,
            padding_mode=padding_mode,
            device=device,
            dtype=dtype,
        )
        self.backend = backends.check_name(backend)

    def forward(self, input: Tensor | Windows) -> Tensor:
        """Return the pooled activation of ``input``."""
        return conv.run(*self._given(input), self.backend)

    def prepare(self, input: Tensor | Windows) -> conv.Call:
        """Check ``input`` and return the call that :meth:`forward` runs."""
        prepare, operands, options = self._given(input)
        return prepare(*operands, *options)

    def _given(self, input: Tensor | Windows) -> tuple[Any, ...]:
        """Return what checks a call, its operands and its options."""
        padding: Any = self.padding
        if isinstance(input, Windows):
            if self.padding_mode == "zeros":
                options = (input.length, input.step, convolution_of(self, padding), self._pool())
                return conv.window_call, (input.series, input.starts, self.weight, self.bias), options
            input = input.gather().transpose(1, 2)
        if self.padding_mode != "zeros":
            input, padding = _pad(input, self), 0
        return conv.conv_call, (input, self.weight, self.bias), (convolution_of(self, padding), self._pool())

    def extra_repr(self) -> str:
        """Return the options that differ from their defaults."""
        options: str = nn.Conv1d.extra_repr(self)
        return options + backend_repr(self.backend)

    def _pool(self) -> tuple[Any, ...] | None:
        return None


class ConvReLUMaxPool1d(ConvReLUGlobalMaxPool1d):
    """``nn.Conv1d -> nn.ReLU -> nn.MaxPool1d``: ``(N, C, L) -> (N, O, Q)`` or ``(C, L) -> (O, Q)``.

    The arguments, parameters and ``state_dict`` are those of :class:`torch.nn.Conv1d`, and behind ``pool_`` the
    arguments of :class:`torch.nn.MaxPool1d`; ``pool_stride=None`` means ``pool_size``. A channels-last input gives a
    channels-last result, and so do :class:`~seqconv.Windows`. ``backend`` is ``"auto"`` or a name out of
    :data:`seqconv.backends.BACKENDS`. In torch: ``F.max_pool1d(F.relu(F.conv1d(input, weight, bias, ...)), pool_size,
    ...)``.
    """

    pool_size: int
    pool_stride: int
    pool_padding: int
    pool_dilation: int
    ceil_mode: bool

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: IntOrTuple,
        pool_size: IntOrTuple,
        *,
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
        backend: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
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
        set_pool(self, pool_size, pool_stride, pool_padding, pool_dilation, ceil_mode)

    def extra_repr(self) -> str:
        """Return the options that differ from their defaults."""
        options: str = nn.Conv1d.extra_repr(self)
        return options + pool_repr(self) + backend_repr(self.backend)

    def _pool(self) -> tuple[Any, ...] | None:
        return pool_of(self)


def _pad(input: Tensor, layer: nn.Conv1d) -> Tensor:
    arguments.tensor("input", input)
    if input.dim() not in (2, 3):
        raise ValueError(f"input must have shape (N, C, L) or (C, L), got {tuple(input.shape)}")
    arguments.floating("input", input)
    check_padding("input", input.size(-1), layer)
    padded = F.pad(input, layer._reversed_padding_repeated_twice, mode=layer.padding_mode)
    if is_channels_last(input if input.dim() == 3 else input.unsqueeze(0)):
        return padded.transpose(-1, -2).contiguous().transpose(-1, -2)
    return padded
