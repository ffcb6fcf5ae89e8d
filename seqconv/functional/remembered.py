"""Calls on a GPU that are like an earlier one, run without checking, choosing and planning them again.

All of that follows from the operands' shapes, strides, dtypes and devices, from the options, and from a few of torch's
switches; together they are the key under which a call is remembered. Kernels of a few microseconds would wait for the
host otherwise. What torch may do to a call besides (see :mod:`.following`) is looked at every time, and such calls go
the long way, as do all on the CPU, where kernels take longer than the way to them.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from seqconv import backends
from seqconv.functional.autograd import differentiable, recorded
from seqconv.functional.floors import floor
from seqconv.functional.following import unfollowed
from seqconv.kernels.geometry import Convolution, Pool
from seqconv.kernels.source import Source, Tokens, name_of, options_of, source_of, tensors_of
from seqconv.kernels.triton import replay

__all__ = ["find", "key_of", "remember"]

Key = tuple[Any, ...]
Known = Callable[[tuple[Any, ...]], Tensor]

MOST = 1024

_known: dict[Key, Known] = {}
replay.remembered.append(_known)
_precision = torch._C._get_fp32_precision_getter
_current_device = torch.cuda.current_device


def key_of(prepare: Any, operands: tuple[Any, ...], options: tuple[Any, ...], backend: str) -> Key | None:
    """Return the key of a call that ``prepare(*operands, *options)`` would check, ``None`` if it has none.

    ``operands`` are tensors or ``None``, the first of them a tensor.
    """
    first = operands[0]
    if not isinstance(first, Tensor) or unfollowed(*operands) is not None:
        return None
    device, needs_gradient = first.get_device(), False
    if device != _current_device() and device >= 0:
        return None
    grad = torch.is_grad_enabled()
    key = [prepare, backend, os.environ.get(backends.VARIABLE), _precision("cuda", "conv")]
    for one in operands:
        kind = type(one)
        if kind is Tensor or kind is Parameter:
            key += (one.shape, one.stride(), one.dtype, one.get_device())
            needs_gradient |= grad and one.requires_grad
        else:
            key.append(one)
    for one in options:
        if type(one) is tuple:
            for each in one:  # torch's layers keep sizes along one axis as tuples of one
                if type(each) is tuple and (len(each) != 1 or type(each[0]) is not int):
                    return None
            key += map(type, one)  # types count: 1.0 is no 1
        key += (one, type(one))
    return (*key, needs_gradient)


def find(key: Key) -> Known | None:
    """Return what runs a call of this key on its operands, if one was remembered."""
    try:
        return None if replay.is_hooked() else _known.get(key)
    except TypeError:  # an option that cannot be looked up
        return None


def remember(key: Key, call: tuple[Source, Tensor, Tensor | None, Convolution, Pool | None]) -> None:
    """Remember a call that Triton's floor has served, by what its kernel was given."""
    source, weight, bias, convolution, pool = call
    kind, count, options, name = type(source), len(tensors_of(source)), options_of(source), name_of(type(source), pool)
    if key[-1]:

        def known(operands: tuple[Any, ...]) -> Tensor:
            again = source_of(kind, operands[:count], options)
            weight, bias = operands[count:]
            return differentiable("triton", again, weight, bias, convolution, pool)

    else:
        if isinstance(source, Tokens):  # whose folded table may come to be kept
            return
        tape = floor("triton").forward.tape_of(source, weight, bias, convolution, pool, want_argmax=False)
        if tape is None:
            return

        def first_result(operands: list[Tensor]) -> Tensor:
            return tape.replay(operands)[0]  # type: ignore[no-any-return]

        def known(operands: tuple[Any, ...]) -> Tensor:
            return recorded(name, first_result, [one for one in operands if one is not None])

    if len(_known) >= MOST:
        _known.clear()
    with contextlib.suppress(TypeError):
        _known[key] = known
