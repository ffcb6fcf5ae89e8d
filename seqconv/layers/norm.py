"""The conv stack with a batch norm between convolution and ReLU, as modules.

Letters in the shapes: ``N`` samples, ``C`` input and ``O`` output channels, ``L`` positions, ``Q`` pooled positions.
Errors are those of :mod:`seqconv.functional.norm`; options of a layer are checked when it is made.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from seqconv import backends
from seqconv.functional import arguments, conv
from seqconv.functional import norm as functional
from seqconv.functional.arguments import IntOrTuple
from seqconv.kernels.norm import Norm
from seqconv.kernels.reference.conv_norm_pool import pooled
from seqconv.kernels.reference.conv_pool import is_channels_last
from seqconv.layers.children import ChildrenCall, call_reason
from seqconv.layers.conv import given, pad
from seqconv.layers.from_torch import check_kind, pool_options
from seqconv.layers.fused import Fused
from seqconv.layers.options import PaddingMode, Pooling, backend_repr, check_convolution, pool_repr, set_pool
from seqconv.layers.windows import Windows

__all__ = ["ConvBatchNormReLUGlobalMaxPool1d", "ConvBatchNormReLUMaxPool1d", "count_batch", "norm_of"]


def norm_of(module: _BatchNorm) -> Norm:
    """Return the norm of a module's next call, as its ``forward`` has it; see :func:`count_batch`."""
    momentum = module.momentum
    tracked = module.num_batches_tracked if module.training and module.track_running_stats else None
    if momentum is None:  # the mean over all batches
        momentum = 0.0 if tracked is None else 1 / (float(tracked) + 1)
    running = (module.running_mean, module.running_var)
    if module.training and not module.track_running_stats:
        running = None, None
    return Norm(*running, module.weight, module.bias, momentum, module.eps)


def count_batch(module: _BatchNorm) -> None:
    """Count a batch that a module's running statistics have taken, as its ``forward`` does."""
    if module.training and module.track_running_stats and module.num_batches_tracked is not None:
        module.num_batches_tracked.add_(1)


class ConvBatchNormReLUGlobalMaxPool1d(Fused):
    """``nn.Conv1d -> nn.BatchNorm1d -> nn.ReLU -> maximum over all positions``: ``(N, C, L) -> (N, O)``.

    The arguments are those of :class:`torch.nn.Conv1d`, and behind ``norm_`` those of :class:`torch.nn.BatchNorm1d`.
    The children ``conv`` and ``norm`` hold parameters and statistics: ``conv.weight``, ``conv.bias``, ``norm.weight``,
    ``norm.bias``, ``norm.running_mean``, ``norm.running_var``, ``norm.num_batches_tracked``.

    In evaluation mode the norm is folded into the convolution, at every call anew: the numbers are torch's within
    rounding. In training mode mean and variance are the batch's, over samples and positions, and the running
    statistics are updated as torch does. The mode is that of ``norm``, so that one can be frozen by ``norm.eval()``.
    Where a child has hooks, is pruned, normalised or parametrized, or has been replaced by another module
    (``SyncBatchNorm``), the children run themselves. :class:`~seqconv.Windows` are taken in place of a tensor, and a
    second argument ``lengths`` ``(N,)`` in evaluation mode, see :func:`seqconv.functional.conv1d_relu_max_pool1d`.
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
        norm_eps: float = 1e-5,
        norm_momentum: float | None = 0.1,
        norm_affine: bool = True,
        norm_track_running_stats: bool = True,
        backend: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_convolution(in_channels, out_channels, kernel_size, stride, padding, dilation, groups)
        self.conv = nn.Conv1d(
            in_channels,
            out_channels,
            kernel_size,  # type: ignore[arg-type]  # torch takes a tuple of one, too
            stride=stride,  # type: ignore[arg-type]
            padding=padding,  # type: ignore[arg-type]
            dilation=dilation,  # type: ignore[arg-type]
            groups=groups,
            bias=arguments.flag("bias", bias),
            padding_mode=padding_mode,
            device=device,
            dtype=dtype,
        )
        self.norm = nn.BatchNorm1d(
            out_channels,
            eps=arguments.number("norm_eps", norm_eps, 0),
            momentum=None if norm_momentum is None else arguments.number("norm_momentum", norm_momentum),
            affine=arguments.flag("norm_affine", norm_affine),
            track_running_stats=arguments.flag("norm_track_running_stats", norm_track_running_stats),
            device=device,
            dtype=dtype,
        )
        self.backend = backends.check_name(backend)

    @classmethod
    def from_torch(cls, conv: nn.Conv1d, norm: nn.BatchNorm1d, *, backend: str = "auto") -> Self:
        """Return the layer in place of ``conv``, ``norm``, a ReLU and a global maximum; its children are these modules.

        Raises ``TypeError`` for other classes of modules (``SyncBatchNorm``, ``InstanceNorm1d``, ...) and
        ``ValueError`` where ``norm`` is of another number of channels.
        """
        return cls(1, 1, 1, backend=backend, device="meta")._adopt(conv, norm)

    def _adopt(self, conv: nn.Conv1d, norm: nn.BatchNorm1d) -> Self:
        check_kind("conv", conv, nn.Conv1d)
        check_kind("norm", norm, nn.BatchNorm1d)
        if norm.num_features != conv.out_channels:
            raise ValueError(
                f"norm must have num_features = conv.out_channels = {conv.out_channels}, got {norm.num_features}"
            )
        self.conv, self.norm = conv, norm
        self.training = norm.training
        return self

    def forward(self, input: Tensor | Windows, lengths: Tensor | None = None) -> Tensor:
        """Return the pooled activation of ``input``, of its samples' first ``lengths`` ``(N,)`` positions."""
        if (reason := self._call_reason()) is not None:
            return self._children_call(input, lengths, reason).run(self.backend)
        norm = norm_of(self.norm)
        prepare, operands, options = self._given(input, lengths, norm)
        if prepare is not functional.norm_call:
            *sources, weight, bias = operands
            return functional.run_folded(prepare, tuple(sources), weight, bias, norm, options, self.backend)
        output = prepare(*operands, norm, *options).run(self.backend)
        count_batch(self.norm)
        return output

    def prepare(self, input: Tensor | Windows, lengths: Tensor | None = None) -> conv.Call | ChildrenCall:
        """Check ``input`` and return the call that :meth:`forward` runs."""
        if (reason := self._call_reason()) is not None:
            return self._children_call(input, lengths, reason)
        norm = norm_of(self.norm)
        prepare, operands, options = self._given(input, lengths, norm)
        if prepare is functional.norm_call:
            return prepare(*operands, norm, *options)
        *sources, weight, bias = operands
        return prepare(*sources, *functional.fold(prepare, tuple(sources), weight, bias, norm), *options)

    def _given(
        self, input: Tensor | Windows, lengths: Tensor | None, norm: Norm
    ) -> tuple[Callable[..., conv.Call], tuple[Any, ...], tuple[Any, ...]]:
        """Return what checks a call, its operands but for the norm and its options."""
        layer = self.conv
        if not functional.uses_batch(norm, self.norm.training):
            if not isinstance(input, Windows):
                functional.check_batched(input)
            return given(layer, layer.weight, layer.bias, self.pool(), input, lengths)
        if isinstance(input, Windows):
            input = input.gather().transpose(1, 2)
        padding: Any = layer.padding
        if layer.padding_mode != "zeros":
            input, padding = pad(input, layer), 0
        geometry = (layer.stride, padding, layer.dilation, layer.groups), self.pool()
        return functional.norm_call, (input, lengths, layer.weight, layer.bias), geometry

    def _call_reason(self) -> str | None:
        children = self._modules
        return call_reason(("conv", children["conv"], nn.Conv1d), ("norm", children["norm"], nn.BatchNorm1d))

    def _children_call(self, input: Tensor | Windows, lengths: Tensor | None, reason: str) -> ChildrenCall:
        if lengths is not None:
            raise ValueError(f"lengths must be None where the children run themselves: {reason}")
        pool = None if (options := self.pool()) is None else arguments.pool(None, *options)

        def compute() -> Tensor:
            rows = input.gather().transpose(1, 2) if isinstance(input, Windows) else input
            functional.check_batched(rows)
            return pooled(F.relu(self.norm(self.conv(rows))), pool, is_channels_last(rows))

        return ChildrenCall(functional.name_of(self.pool()), reason, compute)

    def extra_repr(self) -> str:
        """Return the options that differ from their defaults; the children tell theirs."""
        return backend_repr(self.backend).removeprefix(", ")

    def pool(self) -> tuple[Any, ...] | None:
        """Return ``None``: the maximum is over all positions."""
        return None


class ConvBatchNormReLUMaxPool1d(Pooling, ConvBatchNormReLUGlobalMaxPool1d):
    """``nn.Conv1d -> nn.BatchNorm1d -> nn.ReLU -> nn.MaxPool1d``: ``(N, C, L) -> (N, O, Q)``.

    Children and the arguments of convolution and norm are as in :class:`ConvBatchNormReLUGlobalMaxPool1d`, pool and
    ``memory_format`` as in :class:`~seqconv.ConvReLUMaxPool1d`.
    """

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
        norm_eps: float = 1e-5,
        norm_momentum: float | None = 0.1,
        norm_affine: bool = True,
        norm_track_running_stats: bool = True,
        pool_stride: IntOrTuple | None = None,
        pool_padding: IntOrTuple = 0,
        pool_dilation: IntOrTuple = 1,
        ceil_mode: bool = False,
        memory_format: torch.memory_format = torch.preserve_format,
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
            norm_eps=norm_eps,
            norm_momentum=norm_momentum,
            norm_affine=norm_affine,
            norm_track_running_stats=norm_track_running_stats,
            backend=backend,
            device=device,
            dtype=dtype,
        )
        set_pool(self, pool_size, pool_stride, pool_padding, pool_dilation, ceil_mode, memory_format)

    @classmethod
    def from_torch(  # type: ignore[override]
        cls,
        conv: nn.Conv1d,
        norm: nn.BatchNorm1d,
        pool: nn.MaxPool1d,
        *,
        memory_format: torch.memory_format = torch.preserve_format,
        backend: str = "auto",
    ) -> Self:
        """Return the layer in place of ``conv``, ``norm``, a ReLU and ``pool``; its children are ``conv`` and ``norm``.

        Raises as :meth:`ConvBatchNormReLUGlobalMaxPool1d.from_torch` does, and ``ValueError`` for a pool that returns
        indices or has hooks.
        """
        options = pool_options(pool) | {"memory_format": memory_format, "backend": backend}
        return cls(1, 1, 1, **options, device="meta")._adopt(conv, norm)

    def extra_repr(self) -> str:
        """Return the options that differ from their defaults; the children tell theirs."""
        return pool_repr(self).removeprefix(", ") + backend_repr(self.backend)
