"""The conv stack with a batch norm between convolution and ReLU, as functions.

Letters in the shapes and errors are those of :mod:`seqconv.functional.conv`. With running statistics that stay as they
are, the norm is folded into the convolution at every call, so that changes of either take effect: the call is one of
``conv1d_relu_max_pool1d``, on every backend. With statistics of the batch it is an operation of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from seqconv import backends
from seqconv.functional import arguments, conv, remembered
from seqconv.functional.arguments import IntOrTuple
from seqconv.functional.floors import tape_of
from seqconv.functional.following import unfollowed
from seqconv.functional.norm_passes import normalised
from seqconv.functional.recent import Recent
from seqconv.functional.tracing import Proxy, TracedCall
from seqconv.kernels.geometry import Convolution, Pool
from seqconv.kernels.norm import Norm, folded
from seqconv.kernels.numba import support
from seqconv.kernels.reference import conv_norm_pool as reference
from seqconv.kernels.source import Dense
from seqconv.kernels.triton import support as triton_support

__all__ = [
    "conv1d_batch_norm_relu_global_max_pool1d",
    "conv1d_batch_norm_relu_max_pool1d",
]

HALVES = (torch.float16, torch.bfloat16)  # whose norm may be float32, as torch's may


def conv1d_batch_norm_relu_max_pool1d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    norm_weight: Tensor | None = None,
    norm_bias: Tensor | None = None,
    *,
    pool_size: IntOrTuple,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    stride: IntOrTuple = 1,
    padding: IntOrTuple | str = 0,
    dilation: IntOrTuple = 1,
    groups: int = 1,
    pool_stride: IntOrTuple | None = None,
    pool_padding: IntOrTuple = 0,
    pool_dilation: IntOrTuple = 1,
    ceil_mode: bool = False,
    memory_format: torch.memory_format = torch.preserve_format,
    lengths: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """Return ``F.max_pool1d(F.relu(F.batch_norm(F.conv1d(input, weight, bias, ...), running_mean, ...)), ...)``.

    Shapes: ``input`` ``(N, C, L)``, ``weight`` ``(O, C / groups, K)``, the other tensors ``(O,)`` or ``None``; the
    result is ``(N, O, Q)``. ``running_mean``, ``running_var``, ``norm_weight``, ``norm_bias``, ``training``,
    ``momentum`` and ``eps`` are the arguments of :func:`torch.nn.functional.batch_norm`, which with ``training`` takes
    mean and variance over the samples and positions of the batch and updates the running statistics in place. The rest,
    memory formats among it, is as in :func:`seqconv.functional.conv1d_relu_max_pool1d`. ``lengths`` go with running
    statistics only.
    """
    norm = Norm(running_mean, running_var, norm_weight, norm_bias, momentum, eps)
    pool = (pool_size, pool_stride, pool_padding, pool_dilation, ceil_mode, memory_format)
    return run(input, weight, bias, norm, training, (stride, padding, dilation, groups), pool, lengths, backend)


def conv1d_batch_norm_relu_global_max_pool1d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    norm_weight: Tensor | None = None,
    norm_bias: Tensor | None = None,
    *,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    stride: IntOrTuple = 1,
    padding: IntOrTuple | str = 0,
    dilation: IntOrTuple = 1,
    groups: int = 1,
    lengths: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """Return ``F.relu(F.batch_norm(F.conv1d(input, weight, bias, ...), running_mean, ...)).max(dim=-1).values``.

    Shapes and arguments: as in :func:`conv1d_batch_norm_relu_max_pool1d`; the result is ``(N, O)``.
    """
    norm = Norm(running_mean, running_var, norm_weight, norm_bias, momentum, eps)
    return run(input, weight, bias, norm, training, (stride, padding, dilation, groups), None, lengths, backend)


def run(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    norm: Norm,
    training: bool,
    convolution: tuple[Any, ...],
    pool: tuple[Any, ...] | None,
    lengths: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """Run the stack on a tensor ``(N, C, L)``: what the functions, the layers and ``fuse`` call.

    ``convolution`` is ``(stride, padding, dilation, groups)``, ``pool`` the values of
    :data:`~seqconv.functional.arguments.POOL_OPTIONS`, ``None`` for the global maximum. Counting batches is the
    caller's.
    """
    if isinstance(input, Proxy):
        recorded: Any = traced(input, weight, bias, norm, training, convolution, pool, lengths).run(backend)
        return recorded  # type: ignore[no-any-return]
    if uses_batch(norm, training):
        return norm_call(input, lengths, weight, bias, norm, convolution, pool).run(backend)
    check_batched(input)
    return run_folded(conv.conv_call, (input, lengths), weight, bias, norm, (convolution, pool), backend)


def run_folded(
    prepare: Callable[..., conv.Call],
    sources: tuple[Tensor | None, ...],
    weight: Tensor,
    bias: Tensor | None,
    norm: Norm,
    options: tuple[Any, ...],
    backend: str,
    recent: Recent | None = None,
) -> Tensor:
    """Run the call that ``prepare(*sources, weight, bias, *options)`` returns, with a norm folded into it.

    Of a call like an earlier one nothing is checked again.
    """
    (*statistics, _, eps), compiling = norm, torch.compiler.is_compiling()
    operands = *sources, weight, bias, *statistics
    if recent is not None and not compiling and (known := recent.find(operands)) is not None:
        return known(*operands)
    # What is folded without gradients is not folded so once one of these wants one.
    folds = not torch.is_grad_enabled() or not any(one is not None and one.requires_grad for one in operands[-6:])
    key = None if compiling else remembered.key_of(prepare, operands, (*options, (eps, folds)), backend)
    if key is not None and (known := remembered.find(key)) is not None:
        if recent is not None:
            recent.add(operands, known)
        return known(*operands)
    given = *sources, *fold(prepare, sources, weight, bias, norm)
    output = conv.run(prepare, given, options, backend)
    found = None if key is None else remembered.key_of(prepare, given, options, backend)
    if key is not None and found is not None and (conv_known := remembered.find(found)) is not None:
        floor = _floor_of(weight, bias, norm)
        tape = None if floor is None else tape_of(floor.folded, weight, bias, *statistics, eps)

        def known(*operands: Any) -> Tensor:
            *first, weight, bias, mean, var, scale, shift = operands
            if tape is not None and tape.may_replay:
                return conv_known(*first, *tape.replay([one for one in operands[len(first) :] if one is not None]))
            return conv_known(*first, *_folded(weight, bias, Norm(mean, var, scale, shift, eps=eps)))

        remembered.keep(key, known)
    return output


def uses_batch(norm: Norm, training: bool) -> bool:
    """Tell whether mean and variance are the batch's: in training, and where there are no running statistics."""
    arguments.flag("training", training)
    return training or norm.running_mean is None


def fold(
    prepare: Callable[..., conv.Call],
    sources: tuple[Tensor | None, ...],
    weight: Tensor,
    bias: Tensor | None,
    norm: Norm,
) -> tuple[Tensor, Tensor]:
    """Check what is folded into the call of ``sources`` and return :func:`seqconv.kernels.norm.folded`."""
    source_name, place = SOURCES[prepare]
    source: Any = sources[place]
    arguments.tensor(source_name, source)
    arguments.operands(source_name, source, weight, bias)
    _check_norm(weight, norm)
    return _folded(weight, bias, norm)


def _folded(weight: Tensor, bias: Tensor | None, norm: Norm) -> tuple[Tensor, Tensor]:
    floor = _floor_of(weight, bias, norm)
    if floor is None:
        return folded(weight, bias, norm)
    made: tuple[Tensor, Tensor] = floor.folded(weight, bias, *norm[:4], norm.eps)
    return made


def _floor_of(weight: Tensor, bias: Tensor | None, norm: Norm) -> Any:
    """Return the floor that folds a norm in one pass, without gradients and in plain memory; ``None`` for torch's."""
    if torch.compiler.is_compiling() or not (weight.is_cuda or weight.is_cpu):
        return None
    tensors = [one for one in (weight, bias, *norm[:4]) if one is not None]
    if torch.is_grad_enabled() and any(one.requires_grad for one in tensors):
        return None
    floor = backends.load(f"seqconv.kernels.{'triton' if weight.is_cuda else 'numba'}.norm")
    is_served = (
        floor.SERVES
        and weight.dtype in floor.DTYPES
        and weight.numel() <= floor.MOST
        and all(one.is_contiguous() and (weight.is_cuda or one.dtype is weight.dtype) for one in tensors)
        and unfollowed(*tensors, autocast=True) is None
    )
    return floor if is_served else None


def norm_call(
    input: Tensor,
    lengths: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    norm: Norm,
    convolution: tuple[Any, ...],
    pool: tuple[Any, ...] | None,
) -> conv.Call:
    """Check a call that normalises by the batch's statistics; ``pool`` is ``None`` for the global maximum."""
    check_batched(input)
    if lengths is not None:
        raise ValueError("lengths must be None where mean and variance are the batch's, got a tensor")
    call = conv.conv_call(input, None, weight, bias, convolution, pool)
    source, _, _, geometry, windows = call.arguments
    _check_norm(weight, norm)
    positions = geometry.output_length(input.size(2), weight.size(2))
    if input.size(0) * positions == 1:
        raise ValueError(
            "input must give more than 1 value per channel when mean and variance are the batch's, got 1 sample of 1 "
            "position"
        )
    left, right = geometry.padding
    if left != right:  # as torch pads for a kernel of even length that keeps it
        both = min(left, right)
        source = Dense(F.pad(input, (left - both, right - both)))
        geometry = geometry._replace(padding=(both, both))
    return conv.Call(name_of(pool), (source, weight, bias, norm, geometry, windows))


def name_of(pool: object | None) -> str:
    """Return the operation's name, that of the global maximum without a ``pool``."""
    return NAMES[0] if pool is None else NAMES[1]


# The name, in errors, and place of the source whose dtype and device the weight must have.
SOURCES = {conv.conv_call: ("input", 0), conv.window_call: ("series", 0), conv.embedding_call: ("table", 1)}
NAMES = "conv1d_batch_norm_relu_global_max_pool1d", "conv1d_batch_norm_relu_max_pool1d"


def traced(
    input: Any,
    weight: Tensor,
    bias: Tensor | None,
    norm: Norm,
    training: bool,
    convolution: tuple[Any, ...],
    pool: tuple[Any, ...] | None,
    lengths: Tensor | None,
) -> TracedCall:
    """Return a call that is recorded."""
    *tensors, momentum, eps = norm
    options = dict(zip(("stride", "padding", "dilation", "groups"), convolution, strict=True))
    options |= {"training": training, "momentum": momentum, "eps": eps, "lengths": lengths}
    function: Callable[..., Tensor] = conv1d_batch_norm_relu_global_max_pool1d
    if pool is not None:
        options |= dict(zip(arguments.POOL_OPTIONS, pool, strict=True))
        function = conv1d_batch_norm_relu_max_pool1d
    return TracedCall(function, (input, weight, bias, *tensors), options)


def check_batched(input: Tensor) -> None:
    """Raise unless ``input`` is a tensor ``(N, C, L)``: a batch norm takes no single sample."""
    arguments.tensor("input", input)
    if input.dim() != 3:
        raise ValueError(f"input must have shape (N, C, L), got {tuple(input.shape)}")


def _check_norm(weight: Tensor, norm: Norm) -> None:
    """Check what belongs to a norm behind a convolution of checked operands."""
    outputs = weight.shape[0]
    names = "running_mean", "running_var", "norm_weight", "norm_bias"
    for name, one in zip(names, (norm.running_mean, norm.running_var, norm.weight, norm.bias), strict=True):
        if one is None:
            continue
        arguments.tensor(name, one)
        arguments.floating(name, one)
        if one.device != weight.device:
            raise ValueError(f"{name} must be on the device of weight, {weight.device}, got {one.device}")
        if one.dtype != weight.dtype and (weight.dtype not in HALVES or one.dtype != torch.float32):
            also = " or be float32" if weight.dtype in HALVES else ""
            raise TypeError(f"{name} must have the dtype of weight, {weight.dtype}{also}, got {one.dtype}")
        if one.shape != (outputs,):
            raise ValueError(
                f"{name} must have shape ({outputs},), one value per output channel, got {tuple(one.shape)}"
            )
    if (norm.running_mean is None) != (norm.running_var is None):
        given = "running_mean" if norm.running_var is None else "running_var"
        raise ValueError(f"running_mean and running_var must both be tensors or both be None, got {given} alone")
    arguments.number("momentum", norm.momentum)
    arguments.number("eps", norm.eps, 0)


def composed(
    source: Dense, weight: Tensor, bias: Tensor | None, norm: Norm, convolution: Convolution, pool: Pool | None
) -> Tensor:
    """Return torch's own composition."""
    return reference.compose(source, weight, bias, norm, convolution, pool)


def refuse(
    source: Dense, weight: Tensor, bias: Tensor | None, norm: Norm, convolution: Convolution, pool: Pool | None
) -> str | None:
    """Return why Numba's floor cannot serve a call, or ``None``."""
    return (
        support.refuse_norm(source, weight, convolution, pool)
        or unfollowed(source.values, weight, bias, *norm[:4])
        or support.refuse_length(source, convolution)
    )


def refuse_on_gpu(
    source: Dense, weight: Tensor, bias: Tensor | None, norm: Norm, convolution: Convolution, pool: Pool | None
) -> str | None:
    """Return why Triton's floor cannot serve a call, or ``None``."""
    reason = triton_support.refuse_norm(source, weight, convolution, pool)
    return reason or unfollowed(source.values, weight, bias, *norm[:4])


def avoid(
    source: Dense,
    weight: Tensor,
    bias: Tensor | None,  # noqa: ARG001
    norm: Norm,  # noqa: ARG001
    convolution: Convolution,
    pool: Pool | None,  # noqa: ARG001
) -> str | None:
    """Return why Numba's floor should not serve a call, or ``None``."""
    return support.avoid_norm(source, weight, convolution)


def register() -> None:
    """Register the kernels of all floors."""
    for operation in NAMES:
        backends.register(operation, "reference", lambda: composed)
        triton = partial(partial, normalised, "triton", operation)
        backends.register(operation, "triton", triton, refuse_on_gpu, triton_support.avoid_norm)
        backends.register(operation, "numba", partial(partial, normalised, "numba", operation), refuse, avoid)


register()
