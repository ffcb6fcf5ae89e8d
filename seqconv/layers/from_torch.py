"""What layers made of torch's own modules read off these: the options of each, and whether it is more than them."""

from __future__ import annotations

from typing import Any, TypeVar

from torch import nn

from seqconv.layers.children import call_reason

__all__ = ["check_alone", "check_kind", "conv_options", "pool_options", "share"]

Layer = TypeVar("Layer", bound=nn.Conv1d)


def check_kind(name: str, module: nn.Module, kind: type[nn.Module]) -> None:
    """Raise ``TypeError`` unless ``module`` is of the class ``kind`` itself: a subclass may compute something else."""
    if type(module) is not kind:
        raise TypeError(f"{name} must be an nn.{kind.__name__}, got {type(module).__name__}")


def check_alone(name: str, module: nn.Module, kind: type[nn.Module]) -> None:
    """Raise also ``ValueError`` for hooks on ``module``, and what else its own call alone would run."""
    check_kind(name, module, kind)
    if (reason := call_reason((name, module, kind))) is not None:
        raise ValueError(f"{name} must do no more than its class: {reason}")


def conv_options(conv: nn.Conv1d) -> dict[str, Any]:
    """Return the arguments of a layer with the convolution of ``conv``."""
    names = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")
    return {name: getattr(conv, name) for name in names} | {"bias": conv.bias is not None}


def pool_options(pool: nn.MaxPool1d) -> dict[str, Any]:
    """Return the arguments of a layer with the pool ``pool``."""
    check_alone("pool", pool, nn.MaxPool1d)
    if pool.return_indices:
        raise ValueError("pool must have return_indices=False, got True")
    return {
        "pool_size": pool.kernel_size,
        "pool_stride": pool.stride,
        "pool_padding": pool.padding,
        "pool_dilation": pool.dilation,
        "ceil_mode": pool.ceil_mode,
    }


def share(layer: Layer, conv: nn.Conv1d) -> Layer:
    """Return ``layer`` with the parameters, and in the mode, of ``conv``."""
    layer.weight, layer.bias = conv.weight, conv.bias
    return layer.train(conv.training)
