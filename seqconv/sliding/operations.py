"""What torch's modules and functions do to values that windows share, by torch's own names and arguments.

Every method takes values of :mod:`.positions` in place of tensors and returns such. It raises ``Unshared`` where the
result is none, and ``Misfit`` where torch would raise, too.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from seqconv.functional import arguments
from seqconv.fusion.guards import own_call_reason
from seqconv.layers import ConvBatchNormReLUGlobalMaxPool1d, ConvReLUGlobalMaxPool1d
from seqconv.layers.fused import Fused
from seqconv.models.source import WindowSource
from seqconv.sliding.positions import Features, Positions, ProgramBuilder, Unshared

__all__ = ["BATCH", "FUNCTIONS", "METHODS", "POINTWISE", "Flattened", "Marker", "Refused"]

# Functions of each number by itself, by the names that they have in torch, torch.nn.functional and as methods.
POINTWISE = (
    "abs", "celu", "clamp", "cos", "elu", "erf", "exp", "expm1", "gelu", "hardshrink", "hardsigmoid", "hardswish",
    "hardtanh", "leaky_relu", "log", "log1p", "logsigmoid", "mish", "neg", "pow", "reciprocal", "relu6", "rsqrt",
    "selu", "sigmoid", "sign", "silu", "sin", "softplus", "softshrink", "softsign", "sqrt", "square", "tanh",
    "tanhshrink", "threshold",
)  # fmt: skip
POINTWISE_MODULES = (
    nn.CELU, nn.ELU, nn.GELU, nn.Hardshrink, nn.Hardsigmoid, nn.Hardswish, nn.Hardtanh, nn.LeakyReLU, nn.LogSigmoid,
    nn.Mish, nn.ReLU6, nn.SELU, nn.Sigmoid, nn.SiLU, nn.Softplus, nn.Softshrink, nn.Softsign, nn.Tanh, nn.Tanhshrink,
    nn.Threshold,
)  # fmt: skip


class Marker:
    """A value that is not worked out: the number of windows, or what is computed window by window."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return self.name


BATCH = Marker("N")


class Flattened(NamedTuple):
    """Positions as features, in the order of their axes."""

    value: Positions


class Refused(Exception):
    """A model whose windows cannot be evaluated together: the module's name, and why."""

    def __init__(self, name: str, reason: str, progress: int = 0, *, misfit: bool = False) -> None:
        super().__init__(f"{name or 'the model'}: {reason}")
        self.name, self.reason, self.progress, self.misfit = name, reason, progress, misfit


class Operations:
    """Torch's operations on the values of windows of ``length`` rows, ``step`` apart, into steps of ``builder``.

    A source's windows, of the rows and the distance that ``given`` tells, are ``input``; numbers are of ``dtype``.
    """

    def __init__(self, builder: ProgramBuilder, input: Positions, given: tuple[int, int], dtype: torch.dtype) -> None:
        self.builder, self.input, self.given, self.dtype = builder, input, given, dtype

    # What modules do.

    def of_module(self, module: Any, *, alone: bool) -> Callable[..., Any] | None:
        """Return what a module does, ``None`` if that is not shared; ``alone``: nothing else reads its input."""
        kind = type(module)
        forward = kind.forward
        if isinstance(module, ConvReLUGlobalMaxPool1d) and forward is ConvReLUGlobalMaxPool1d.forward:
            return lambda value: self._conv_stack(value, module, None, module.pool())
        if isinstance(module, ConvBatchNormReLUGlobalMaxPool1d) and forward is ConvBatchNormReLUGlobalMaxPool1d.forward:
            conv, norm = module.conv, module.norm
            plain = type(conv) is nn.Conv1d and type(norm) is nn.BatchNorm1d
            unhooked = own_call_reason(conv) is None and own_call_reason(norm) is None
            return (lambda value: self._conv_stack(value, conv, norm, module.pool())) if plain and unhooked else None
        if isinstance(module, WindowSource) and forward is WindowSource.forward:
            return self._source_of(module)
        if isinstance(module, Fused):
            return None
        if isinstance(module, nn.Conv1d) and (forward, kind._conv_forward) == (
            nn.Conv1d.forward, nn.Conv1d._conv_forward,
        ):  # fmt: skip
            return lambda value: self._conv(value, module)
        if isinstance(module, nn.BatchNorm1d) and forward is _BatchNorm.forward and module.running_mean is not None:
            return lambda value: self._norm(value, module, alone=alone)
        if forward is nn.ReLU.forward:
            return lambda value: self._relu(value, alone=alone)
        if forward in (nn.Identity.forward, *_FORWARDS_OF_DROPOUT):
            return lambda value: value
        if forward is nn.PReLU.forward and module.num_parameters == 1:
            return lambda value: self._pointwise(lambda rows: F.prelu(rows, module.weight), value)
        if kind in POINTWISE_MODULES:
            return lambda value: self._pointwise(lambda rows: forward(module, rows), value)
        if forward is nn.MaxPool1d.forward:
            return lambda value: self.max_pool1d(
                value, module.kernel_size, module.stride, module.padding, module.dilation, module.ceil_mode,
                module.return_indices,
            )  # fmt: skip
        if forward is nn.AvgPool1d.forward:
            return lambda value: self.avg_pool1d(
                value, module.kernel_size, module.stride, module.padding, module.ceil_mode, module.count_include_pad
            )
        if forward is nn.AdaptiveMaxPool1d.forward:
            return lambda value: self.adaptive_max_pool1d(value, module.output_size, module.return_indices)
        if forward is nn.AdaptiveAvgPool1d.forward:
            return lambda value: self.adaptive_avg_pool1d(value, module.output_size)
        if forward is nn.Linear.forward:
            return lambda value: self.linear(value, module.weight, module.bias)
        if forward is nn.Flatten.forward:
            return lambda value: self.flatten(value, module.start_dim, module.end_dim)
        if forward is nn.LayerNorm.forward:
            return lambda value: self._layer_norm(value, module)
        if forward in (nn.Softmax.forward, nn.LogSoftmax.forward) and module.dim is not None:
            function = F.softmax if isinstance(module, nn.Softmax) else F.log_softmax
            return lambda value: self._over_channels(value, module.dim, lambda rows: function(rows, -1))
        if forward is nn.GLU.forward:
            return lambda value: self.glu(value, module.dim)
        for padding, mode in _PADDINGS.items():
            if isinstance(module, padding) and forward is padding.forward:
                return lambda value: self.pad(value, module.padding, mode, getattr(module, "value", 0))
        return None

    def _source_of(self, module: WindowSource) -> Callable[..., Any]:
        def windows(_starts: Any) -> Positions:
            if (module.length, module.step) != self.given:
                raise Refused(
                    "source", f"its windows are {module.length} rows, {module.step} apart, not {self.given[0]} rows, "
                    f"{self.given[1]} apart",
                )  # fmt: skip
            return self.input._replace(channels_first=True)

        return windows

    def _conv_stack(self, value: Any, conv: nn.Conv1d, norm: nn.BatchNorm1d | None, pool: Any) -> Any:
        found = self._conv(value, conv)
        if norm is not None:
            found = self._norm(found, norm, alone=True)
        found = self._relu(found, alone=True)
        if pool is None:
            return self.builder.over_all(found, "max")
        options: Any = arguments.pool(None, *pool)
        return self.builder.maximum(found, options)

    def _conv(self, value: Any, module: nn.Conv1d) -> Positions:
        padding: Any = module.padding
        if module.padding_mode != "zeros":
            value = self.pad(value, tuple(module._reversed_padding_repeated_twice), module.padding_mode)
            padding = 0
        return self.conv1d(value, module.weight, module.bias, module.stride, padding, module.dilation, module.groups)

    def _norm(self, value: Any, module: nn.BatchNorm1d, *, alone: bool) -> Any:
        return self.batch_norm(
            value, module.running_mean, module.running_var, module.weight, module.bias, eps=module.eps, alone=alone
        )

    def _relu(self, value: Any, *, alone: bool) -> Any:
        _require(value, Positions, Features)
        return self.builder.relu(value, alone=alone)

    def _layer_norm(self, value: Any, module: nn.LayerNorm) -> Any:
        if tuple(module.normalized_shape) != value.shape[-1:]:
            raise Unshared("it is over several axes")
        return self._over_channels(value, -1, lambda rows: nn.LayerNorm.forward(module, rows))

    def _over_channels(self, value: Any, dim: int, function: Callable[[Tensor], Tensor], columns: int = 0) -> Any:
        """Return a function of each position's channels, which are the axis ``dim``."""
        if self._axis(value, dim) != self._channel_axis(value):
            raise Unshared("it is over positions")
        _require_one_axis(value)
        return self.builder.rowwise([value], function, columns or self._columns(value))

    def _pointwise(self, function: Callable[..., Tensor], value: Any, *given: Any, **options: Any) -> Any:
        _require(value, Positions, Features)
        if any(isinstance(one, Tensor) for one in (*given, *options.values())):
            raise Unshared("it has tensors for options")
        options.pop("inplace", None)
        keeps_zero = float(function(torch.zeros(1), *given, **options)) == 0
        found = self.builder.rowwise(
            [value], lambda rows: function(rows, *given, **options), self._columns(value), keeps_zero=keeps_zero
        )
        return found._replace(shape=value.shape) if isinstance(found, Features) else found

    # What functions and methods do, by torch's names.

    def conv1d(
        self, input: Any, weight: Tensor, bias: Tensor | None = None, stride: Any = 1, padding: Any = 0,
        dilation: Any = 1, groups: int = 1,
    ) -> Positions:  # fmt: skip
        _require(input, Positions)
        convolution = arguments.geometry(weight.size(2), stride, padding, dilation, groups)
        return self.builder.convolution(input, weight, bias, convolution)

    def max_pool1d(
        self, input: Any, kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1,
        ceil_mode: bool = False, return_indices: bool = False,
    ) -> Positions:  # fmt: skip
        _require(input, Positions)
        _require_channels_first(input)
        if return_indices:
            raise Unshared("it returns indices")
        pool: Any = arguments.pool(None, kernel_size, stride or kernel_size, padding, dilation, ceil_mode)
        return self.builder.maximum(input, pool)

    def avg_pool1d(
        self, input: Any, kernel_size: Any, stride: Any = None, padding: Any = 0, ceil_mode: bool = False,
        count_include_pad: bool = True,
    ) -> Positions:  # fmt: skip
        _require(input, Positions)
        _require_channels_first(input)
        size = _one(kernel_size)
        return self.builder.average(
            input, size, _one(stride or size), _one(padding), ceil_mode=ceil_mode, with_padding=count_include_pad
        )

    def adaptive_max_pool1d(self, input: Any, output_size: Any, return_indices: bool = False) -> Positions:
        if return_indices:
            raise Unshared("it returns indices")
        return self._adaptive(input, output_size, mean=False)

    def adaptive_avg_pool1d(self, input: Any, output_size: Any) -> Positions:
        return self._adaptive(input, output_size, mean=True)

    def _adaptive(self, input: Any, output_size: Any, *, mean: bool) -> Positions:
        _require(input, Positions)
        _require_channels_first(input)
        return self.builder.adaptive(input, _one(output_size), mean=mean)

    def batch_norm(
        self, input: Any, running_mean: Tensor | None, running_var: Tensor | None, weight: Tensor | None = None,
        bias: Tensor | None = None, training: bool = False, momentum: float = 0.1, eps: float = 1e-5, *,  # noqa: ARG002
        alone: bool = False,
    ) -> Any:  # fmt: skip
        _require(input, Positions, Features)
        if training or running_mean is None or running_var is None:
            raise Unshared("it takes its statistics from the batch")
        _require_one_axis(input)
        if isinstance(input, Positions):
            _require_channels_first(input)
        if self._columns(input) != len(running_mean):
            raise Unshared(f"it takes {len(running_mean)} channels, and is given {self._columns(input)}")
        # In float64: the weights that it is folded into are rounded once.
        scale = (running_var.double() + eps).rsqrt()
        scale = scale if weight is None else scale * weight.detach()
        shift = -running_mean.double() * scale
        shift = shift if bias is None else shift + bias.detach()
        return self.builder.scaled(input, scale, shift, alone=alone)

    def dropout(self, input: Any, p: float = 0.5, training: bool = True, inplace: bool = False) -> Any:  # noqa: ARG002
        if training and p:
            raise Refused("dropout", "it is active: call it with training=self.training, and model.eval()")
        return input

    def linear(self, input: Any, weight: Tensor, bias: Tensor | None = None) -> Any:
        if isinstance(input, Flattened):
            return self.builder.flattened_linear(input.value, weight, bias)
        _require(input, Positions, Features)
        return self.builder.linear(input, weight, bias)

    def pad(self, input: Any, pad: Any, mode: str = "constant", value: Any = None) -> Any:
        _require(input, Positions)
        _require_channels_first(input)
        left, right = (pad, pad) if isinstance(pad, int) else pad
        index = np.arange(-left, input.length + right)
        if mode == "constant":
            if value:
                raise Unshared(f"it pads with {value}")
            inside = (index >= 0) & (index < input.length)
            found = input.at(np.where(inside, index, 0))
            return found._replace(maps=np.where(inside, found.maps, -1), offsets=np.where(inside, found.offsets, 0))
        if min(left, right) < 0 or max(left, right) >= input.length + (mode != "reflect"):
            raise Unshared("it pads with more positions than there are")
        if mode == "reflect":
            index = np.abs(index)
            index = np.where(index >= input.length, 2 * (input.length - 1) - index, index)
        elif mode == "replicate":
            index = np.clip(index, 0, input.length - 1)
        else:
            index = index % input.length
        return input.at(index)

    def glu(self, input: Any, dim: int = -1) -> Any:
        columns = self._columns(input)
        if columns % 2:
            raise Unshared("it halves an odd number of channels")
        return self._over_channels(input, dim, lambda rows: F.glu(rows, -1), columns // 2)

    def softmax(self, input: Any, dim: int, dtype: None = None) -> Any:
        return self._over_channels(input, dim, lambda rows: F.softmax(rows, -1, dtype=dtype))

    def log_softmax(self, input: Any, dim: int, dtype: None = None) -> Any:
        return self._over_channels(input, dim, lambda rows: F.log_softmax(rows, -1, dtype=dtype))

    def same(self, input: Any) -> Any:
        return input

    def to(self, input: Any, dtype: Any) -> Any:
        if dtype is not self.dtype:
            raise Unshared(f"it changes the dtype to {dtype}")
        return input

    def float(self, input: Any) -> Any:
        return self.to(input, torch.float32)

    def double(self, input: Any) -> Any:
        return self.to(input, torch.float64)

    def maximum(self, input: Any, other: Any) -> Any:
        return self._binary(torch.maximum, input, other)

    def minimum(self, input: Any, other: Any) -> Any:
        return self._binary(torch.minimum, input, other)

    def gather(self, input: Any) -> Any:
        """What a source's windows give: ``(N, L, C)``."""
        return input._replace(channels_first=False)

    def transpose(self, input: Any, dim0: int, dim1: int) -> Any:
        _require(input, Positions)
        if {dim0 % 3, dim1 % 3} != {1, 2}:
            raise Unshared("it moves the axis of windows")
        return input._replace(channels_first=not input.channels_first)

    def movedim(self, input: Any, source: int, destination: int) -> Any:
        if source % 3 == destination % 3:
            return input
        return self.transpose(input, source, destination)

    def permute(self, input: Any, *dims: Any) -> Any:
        axes = dims[0] if len(dims) == 1 and isinstance(dims[0], (tuple, list)) else dims
        if [one % 3 for one in axes] == [0, 1, 2]:
            return input
        if [one % 3 for one in axes] != [0, 2, 1]:
            raise Unshared("it moves the axis of windows")
        return self.transpose(input, 1, 2)

    def flatten(self, input: Any, start_dim: int = 0, end_dim: int = -1) -> Any:
        _require(input, Positions, Features)
        axes = 1 + len(input.shape)
        if start_dim % axes != 1 or end_dim % axes != axes - 1:
            raise Unshared("it flattens other axes than all behind the first")
        return self._flat(input)

    def _flat(self, input: Any) -> Any:
        return Flattened(input) if isinstance(input, Positions) else input._replace(shape=(math.prod(input.shape),))

    def view(self, input: Any, *shape: Any) -> Any:
        wanted = list(shape[0] if len(shape) == 1 and isinstance(shape[0], (tuple, list, torch.Size)) else shape)
        _require(input, Positions, Features)
        count = math.prod(input.shape)
        behind = wanted[1:]
        counts = wanted[0] is BATCH or (wanted[0] == -1 and all(type(one) is int and one > 0 for one in behind))
        if not counts or any(type(one) is not int for one in behind):
            raise Unshared("it does not keep the axis of windows")
        if -1 in behind:
            others = math.prod(one for one in behind if one != -1)
            behind[behind.index(-1)] = count // max(others, 1)
        if math.prod(behind) != count:
            raise Unshared("it does not keep the axis of windows")
        if tuple(behind) == tuple(input.shape):
            return input
        if isinstance(input, Features):
            return input._replace(shape=tuple(behind))
        if len(behind) != 1:
            raise Unshared("it cuts positions anew")
        return Flattened(input)

    def squeeze(self, input: Any, dim: Any = None) -> Any:
        _require(input, Positions, Features)
        if isinstance(input, Positions):
            if dim is None or self._axis(input, dim) == self._channel_axis(input) or input.length != 1:
                raise Unshared("it takes away another axis than that of one position")
            return self.builder.feature(input, 0)
        if dim is None:
            return input._replace(shape=tuple(one for one in input.shape if one != 1))
        axis = self._axis(input, dim) - 1
        if axis < 0:
            raise Unshared("it takes away the axis of windows")
        return input._replace(shape=input.shape[:axis] + input.shape[axis + (input.shape[axis] == 1) :])

    def unsqueeze(self, input: Any, dim: int) -> Any:
        _require(input, Features)
        axis = dim % (len(input.shape) + 2)
        if axis == 0:
            raise Unshared("it moves the axis of windows")
        if len(input.shape) == 1:  # a sequence of one position
            maps, offsets = (np.array([one], np.int64) for one in input.tap)
            return Positions(maps, offsets, input.shape[0], axis == 2)
        return input._replace(shape=(*input.shape[: axis - 1], 1, *input.shape[axis - 1 :]))

    def cat(self, tensors: Any, dim: int = 0) -> Any:
        first = tensors[0]
        if len({type(one) for one in tensors}) > 1:
            raise Unshared("it joins values of several kinds")
        _require(first, Positions, Features)
        axis = self._axis(first, dim)
        if axis == 0:
            raise Unshared("it joins windows")
        if isinstance(first, Positions):
            if len({one.channels_first for one in tensors}) > 1:
                raise Unshared("it joins channels with positions")
            if axis != self._channel_axis(first):
                if len({one.columns for one in tensors}) > 1:
                    raise Unshared("it joins positions of several numbers of channels")
                return first._replace(
                    maps=np.concatenate([one.maps for one in tensors]),
                    offsets=np.concatenate([one.offsets for one in tensors]),
                )
            if len({one.length for one in tensors}) > 1:
                raise Unshared("it joins several numbers of positions")
        elif any(len(one.shape) != 1 for one in tensors):
            raise Unshared("it joins features of several axes")
        return self.builder.rowwise(tensors, lambda *rows: torch.cat(rows, 1), sum(map(self._columns, tensors)))

    def add(self, input: Any, other: Any, *, alpha: Any = 1) -> Any:
        if alpha == 1 and type(input) is type(other) and isinstance(input, (Positions, Features)):
            self._require_same(input, other)
            return self.builder.total(input, other)
        return self._binary(lambda a, b: torch.add(a, b, alpha=alpha), input, other)

    def sub(self, input: Any, other: Any, *, alpha: Any = 1) -> Any:
        return self._binary(lambda a, b: torch.sub(a, b, alpha=alpha), input, other)

    def mul(self, input: Any, other: Any) -> Any:
        return self._binary(torch.mul, input, other)

    def div(self, input: Any, other: Any, *, rounding_mode: Any = None) -> Any:
        return self._binary(lambda a, b: torch.div(a, b, rounding_mode=rounding_mode), input, other)

    def _require_same(self, input: Any, other: Any) -> None:
        if input.shape != other.shape or getattr(input, "channels_first", 0) != getattr(other, "channels_first", 0):
            raise Unshared("it spreads one of two values over the other")

    def _binary(self, function: Callable[[Any, Any], Tensor], left: Any, right: Any) -> Any:
        of_windows = [isinstance(one, (Positions, Features)) for one in (left, right)]
        if all(of_windows):
            if type(left) is not type(right):
                raise Unshared("it joins a window's features with positions")
            self._require_same(left, right)
            found = self.builder.rowwise([left, right], function, self._columns(left))
            return found._replace(shape=left.shape) if isinstance(found, Features) else found
        value, constant = (left, right) if of_windows[0] else (right, left)
        _require(value, Positions, Features)
        row = self._row(value, constant)
        if of_windows[0]:
            found = self.builder.rowwise([value], lambda rows: function(rows, row), self._columns(value))
        else:
            found = self.builder.rowwise([value], lambda rows: function(row, rows), self._columns(value))
        return found._replace(shape=value.shape) if isinstance(found, Features) else found

    def _row(self, value: Any, constant: Any) -> Any:
        """Return a constant as it meets the channels of a row."""
        if isinstance(constant, (int, float)):
            return constant
        if not isinstance(constant, Tensor):
            raise Unshared("it takes another value")
        if constant.numel() == 1 and constant.dim() <= 1:
            return constant.detach().view(())
        shape = (1,) * (1 + len(value.shape) - constant.dim()) + tuple(constant.shape)
        wanted = [1] * (1 + len(value.shape))
        wanted[self._channel_axis(value)] = self._columns(value)
        if list(shape) != wanted:
            raise Unshared("it takes a tensor with a number for each position")
        return constant.detach().flatten()

    def mean(self, input: Any, dim: Any, keepdim: bool = False) -> Any:
        return self._over_positions(input, dim, keepdim, "mean")

    def sum(self, input: Any, dim: Any, keepdim: bool = False) -> Any:
        return self._over_positions(input, dim, keepdim, "sum")

    def max(self, input: Any, dim: Any, keepdim: bool = False) -> Any:
        return (self._over_positions(input, dim, keepdim, "max"),)

    def amax(self, input: Any, dim: Any, keepdim: bool = False) -> Any:
        return self._over_positions(input, dim, keepdim, "max")

    def _over_positions(self, input: Any, dim: Any, keepdim: bool, kind: str) -> Any:
        _require(input, Positions)
        axes = dim if isinstance(dim, (tuple, list)) else (dim,)
        if len(axes) != 1 or self._axis(input, axes[0]) in (0, self._channel_axis(input)):
            raise Unshared("it is over another axis than that of positions")
        found = self.builder.over_all(input, kind)
        return self.unsqueeze(found, 2 if input.channels_first else 1) if keepdim else found

    def chunk(self, input: Any, chunks: int, dim: int = 0) -> Any:
        size = -(-(1, *input.shape)[self._axis(input, dim)] // chunks)
        return self.split(input, size, dim)

    def split(self, tensor: Any, split_size: Any, dim: int = 0) -> Any:
        axis = self._axis(tensor, dim)
        if axis == 0:
            raise Unshared("it splits the axis of windows")
        whole = tensor.shape[axis - 1]
        sizes = split_size if isinstance(split_size, (tuple, list)) else [
            min(split_size, whole - begin) for begin in range(0, whole, split_size)
        ]  # fmt: skip
        ends = np.cumsum(sizes)
        index: Any = [slice(None)] * (1 + len(tensor.shape))
        found = []
        for size, end in zip(sizes, ends, strict=True):
            index[axis] = slice(int(end - size), int(end))
            found.append(self.getitem(tensor, tuple(index)))
        return tuple(found)

    def narrow(self, input: Any, dim: int, start: int, length: int) -> Any:
        index: Any = [slice(None)] * (1 + len(input.shape))
        index[self._axis(input, dim)] = slice(start, start + length)
        return self.getitem(input, tuple(index))

    def select(self, input: Any, dim: int, index: int) -> Any:
        chosen: Any = [slice(None)] * (1 + len(input.shape))
        chosen[self._axis(input, dim)] = index
        return self.getitem(input, tuple(chosen))

    def flip(self, input: Any, *dims: Any) -> Any:
        axes = dims[0] if isinstance(dims[0], (tuple, list)) else dims
        _require(input, Positions)
        if [self._axis(input, one) for one in axes] != [3 - self._channel_axis(input)]:
            raise Unshared("it turns another axis than that of positions")
        return input.at(slice(None, None, -1))

    def getitem(self, input: Any, index: Any) -> Any:
        if type(input) in (tuple, list, torch.Size):
            return input[index]
        _require(input, Positions, Features)
        axes = 1 + len(input.shape)
        chosen = list(index) if isinstance(index, tuple) else [index]
        if any(not isinstance(one, (int, slice)) and one is not Ellipsis for one in chosen):
            raise Unshared("it picks by something else than numbers and slices")
        if Ellipsis in chosen:
            at = chosen.index(Ellipsis)
            chosen[at : at + 1] = [slice(None)] * (axes - len(chosen) + 1)
        chosen += [slice(None)] * (axes - len(chosen))
        if chosen[0] != slice(None):
            raise Unshared("it picks windows")
        if isinstance(input, Features):
            if len(input.shape) != 1:
                raise Unshared("it picks from features of several axes")
            return self._channels(input, chosen[1])
        channels, positions = chosen[1:] if input.channels_first else chosen[:0:-1]
        found = input
        if channels != slice(None):
            if isinstance(channels, int):
                raise Unshared("it picks a single channel")
            found = self._channels(found, channels)
        if isinstance(positions, int):
            return self.builder.feature(found, range(found.length)[positions])
        return found.at(positions)

    def _channels(self, value: Any, index: Any) -> Any:
        columns = range(self._columns(value))[index]
        if isinstance(columns, int):
            found = self.builder.rowwise([value], lambda rows: rows[:, columns : columns + 1], 1)
            return found._replace(shape=())
        return self.builder.rowwise([value], lambda rows: rows[:, index], len(columns), keeps_zero=True)

    def size(self, input: Any, dim: int | None = None) -> Any:
        _require(input, Positions, Features)
        whole = (BATCH, *input.shape)
        return whole if dim is None else whole[dim]

    def dim(self, input: Any) -> int:
        _require(input, Positions, Features)
        return 1 + len(input.shape)

    def getattr(self, input: Any, name: str) -> Any:
        if name == "values" and type(input) is tuple:
            return input[0]
        if name in ("mT", "shape", "ndim"):
            return {"mT": lambda: self.transpose(input, 1, 2), "shape": lambda: self.size(input),
                    "ndim": lambda: self.dim(input)}[name]()  # fmt: skip
        raise Unshared(f"it asks for {name}")

    def _axis(self, value: Any, dim: int) -> int:
        if not isinstance(dim, int) or not -1 - len(value.shape) <= dim <= len(value.shape):
            raise Unshared(f"it has no axis {dim}")
        return dim % (1 + len(value.shape))

    @staticmethod
    def _channel_axis(value: Any) -> int:
        if isinstance(value, Features):
            return len(value.shape)
        return 1 if value.channels_first else 2

    @staticmethod
    def _columns(value: Any) -> int:
        _require(value, Positions, Features)
        return value.columns if isinstance(value, Positions) else math.prod(value.shape)

    # What is left.


_FORWARDS_OF_DROPOUT = tuple(
    one.forward for one in (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.AlphaDropout, nn.FeatureAlphaDropout)
)
_PADDINGS: Mapping[type[nn.Module], str] = {
    nn.ZeroPad1d: "constant",
    nn.ConstantPad1d: "constant",
    nn.ReflectionPad1d: "reflect",
    nn.ReplicationPad1d: "replicate",
    nn.CircularPad1d: "circular",
}

# Torch's names, and those of the methods here that work them out.
NAMES = dict.fromkeys(POINTWISE) | {
    "conv1d": None, "max_pool1d": None, "avg_pool1d": None, "adaptive_max_pool1d": None, "adaptive_avg_pool1d": None,
    "batch_norm": None, "dropout": None, "dropout1d": "dropout", "alpha_dropout": "dropout", "linear": None,
    "pad": None, "glu": None, "softmax": None, "log_softmax": None, "relu": None, "relu_": "relu", "transpose": None,
    "swapaxes": "transpose", "permute": None, "flatten": None, "view": None, "reshape": "view", "squeeze": None,
    "unsqueeze": None, "cat": None, "concat": "cat", "concatenate": "cat", "add": None, "add_": "add", "sub": None,
    "sub_": "sub", "mul": None, "mul_": "mul", "multiply": "mul", "div": None, "div_": "div", "true_divide": "div",
    "mean": None, "sum": None, "max": None, "amax": None, "chunk": None, "split": None, "narrow": None, "select": None,
    "flip": None, "maximum": None, "minimum": None, "movedim": None, "float": None, "double": None, "to": None,
    "size": None, "dim": None, "contiguous": "same", "clone": "same", "detach": "same", "gather": None,
}  # fmt: skip
METHODS = {name: other or name for name, other in NAMES.items() if hasattr(Tensor, name)}
FUNCTIONS: dict[Any, str] = {
    getattr(owner, name): other or name
    for owner in (torch, F)
    for name, other in NAMES.items()
    if hasattr(owner, name) and name != "gather"
}
FUNCTIONS |= {
    operator.add: "add", operator.iadd: "add", operator.sub: "sub", operator.isub: "sub", operator.mul: "mul",
    operator.imul: "mul", operator.truediv: "div", operator.itruediv: "div", operator.neg: "neg", operator.pow: "pow",
    operator.getitem: "getitem", getattr: "getattr",
}  # fmt: skip


def _require(value: Any, *kinds: type) -> None:
    if not isinstance(value, kinds):
        raise Unshared("it is given another kind of value")


def _require_channels_first(value: Positions) -> None:
    if not value.channels_first:
        raise Unshared(f"it takes channels for positions in shape (N, {value.length}, {value.columns})")


def _require_one_axis(value: Any) -> None:
    if isinstance(value, Features) and len(value.shape) != 1:
        raise Unshared("its features have several axes")


def _one(value: Any) -> int:
    found = value[0] if isinstance(value, (tuple, list)) else value
    if not isinstance(found, int):
        raise Unshared(f"it is given {value!r} for a size")
    return found
