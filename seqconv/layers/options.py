"""The options that the conv stack's layers share: checked when a layer is made, kept, and told in its text."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from seqconv.functional import arguments
from seqconv.functional.arguments import IntOrTuple
from seqconv.kernels.source import limits

__all__ = [
    "PaddingMode",
    "Pooling",
    "backend_repr",
    "check_convolution",
    "check_padding",
    "folded_repr",
    "output_lengths",
    "pool_repr",
    "refuse_lengths",
    "set_pool",
]

PaddingMode = Literal["zeros", "reflect", "replicate", "circular"]


class Pooling:
    """A layer with a pool."""

    pool_size: int
    pool_stride: int
    pool_padding: int
    pool_dilation: int
    ceil_mode: bool
    contiguous: bool = False

    @property
    def memory_format(self) -> torch.memory_format:
        """Of the results: ``torch.preserve_format`` or ``torch.contiguous_format``."""
        return torch.contiguous_format if self.contiguous else torch.preserve_format

    @memory_format.setter
    def memory_format(self, value: torch.memory_format) -> None:
        self.contiguous = arguments.contiguous(value)  # torch.save cannot write torch's formats

    def output_lengths(self, lengths: Tensor | None) -> Tensor | None:
        """Return the results' lengths ``(N,)``, int64, for samples of ``lengths`` ``(N,)``: what the next layer takes.

        ``None`` (whole samples) gives ``None``.
        """
        layer: Any = self
        convolution = getattr(layer, "conv", layer)
        sizes = convolution.kernel_size, convolution.stride, convolution.padding, convolution.dilation
        return output_lengths(lengths, convolution.padding_mode, sizes, self.pool())

    def pool(self) -> tuple[Any, ...]:
        """Return the pool's :data:`~seqconv.functional.arguments.POOL_OPTIONS`."""
        sizes = self.pool_size, self.pool_stride, self.pool_padding, self.pool_dilation
        return *sizes, self.ceil_mode, self.memory_format


def check_convolution(
    in_channels: int,
    out_channels: int,
    kernel_size: IntOrTuple,
    stride: IntOrTuple,
    padding: IntOrTuple | str,
    dilation: IntOrTuple,
    groups: int,
) -> None:
    """Raise unless ``nn.Conv1d`` can be made of this; the errors name the argument."""
    arguments.integer("in_channels", in_channels, 1)
    arguments.integer("out_channels", out_channels, 1)
    arguments.integer("groups", groups, 1)
    arguments.single("kernel_size", kernel_size, 1)
    arguments.single("stride", stride, 1)
    arguments.single("dilation", dilation, 1)
    if not isinstance(padding, str):  # torch checks the two words itself
        arguments.single("padding", padding, 0)
    for name, channels in (("in_channels", in_channels), ("out_channels", out_channels)):
        if channels % groups:
            raise ValueError(f"groups must divide {name} = {channels}, got {groups}")


def set_pool(layer: Pooling, *options: Any) -> None:
    """Check a pool's :data:`~seqconv.functional.arguments.POOL_OPTIONS` and keep them on ``layer``."""
    pool = arguments.pool(None, *options)
    layer.pool_size, layer.pool_stride, layer.pool_padding, layer.pool_dilation, layer.ceil_mode = pool[:5]
    layer.contiguous = pool.contiguous


def pool_repr(layer: Pooling) -> str:
    """Return the pool's options that differ from their defaults, as a layer's text goes on with them."""
    defaults = {"pool_stride": layer.pool_size, "pool_padding": 0, "pool_dilation": 1, "ceil_mode": False}
    shown = [f"{name}={getattr(layer, name)}" for name, default in defaults.items() if getattr(layer, name) != default]
    if layer.contiguous:
        shown.append(f"memory_format={layer.memory_format}")
    return "".join(f", {part}" for part in [f"pool_size={layer.pool_size}", *shown])


def backend_repr(backend: str) -> str:
    """Return the backend, if it is not chosen, as a layer's text goes on with it."""
    return "" if backend == "auto" else f", backend={backend!r}"


def folded_repr(folded_dtype: torch.dtype | None) -> str:
    """Return the folded table's dtype, if one is set, as a layer's text goes on with it."""
    return "" if folded_dtype is None else f", folded_dtype={folded_dtype}"


def output_lengths(
    lengths: Tensor | None, padding_mode: str, sizes: tuple[Any, ...], pool: tuple[Any, ...]
) -> Tensor | None:
    """Return the lengths ``(N,)`` of a convolution's pooled results, of samples of ``lengths`` ``(N,)``."""
    if lengths is None:
        return None
    refuse_lengths(padding_mode)
    arguments.tensor("lengths", lengths)
    arguments.whole("lengths", lengths)
    (size,), stride, padding, dilation = sizes
    convolution = arguments.geometry(size, stride, padding, dilation, 1)
    return limits(lengths, size, convolution, arguments.pool(None, *pool))[1].long()


torch.fx.wrap("output_lengths")  # a tracer records the call, whether or not there are lengths


def refuse_lengths(padding_mode: str) -> None:
    """Raise ``ValueError`` where a padding mode would read positions behind a sample's length."""
    if padding_mode != "zeros":
        raise ValueError(f"lengths must be None where padding_mode is not 'zeros', got {padding_mode!r}")


def check_padding(name: str, length: int, layer: nn.Conv1d) -> None:
    """Raise where torch cannot pad so few positions in the layer's mode."""
    padding, mode = max(layer._reversed_padding_repeated_twice), layer.padding_mode
    least = {"reflect": padding + 1, "circular": max(padding, 1)}.get(mode, 1)
    if length < least:
        raise ValueError(f"{name} must have at least {least} positions for a {mode} padding of {padding}, got {length}")
