"""Calls that are like an earlier one, run without checking, choosing and planning them again.

All of that follows from the operands' shapes, strides, dtypes and devices, from the options, and from a few of torch's
switches; together they are the key under which a call is remembered. Kernels of a few microseconds would wait for the
host otherwise. What torch may do to a call besides (see :mod:`.following`) is looked at every time, and such calls go
the long way. On the CPU the numbers of rows, and lengths, are checked every time, too.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from functools import partial
from marshal import dumps
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from seqconv import backends
from seqconv.functional import arguments, folded
from seqconv.functional.autograd import FusedPasses, recorded, undifferentiated
from seqconv.functional.floors import Replayable, floor, tape_of
from seqconv.functional.following import active
from seqconv.kernels.source import Dense, Source, Tokens, Windows, name_of, options_of, source_of, tensors_of
from seqconv.kernels.triton import replay

__all__ = ["find", "keep", "key_of", "remember"]

Key = tuple[Any, ...]
Known = Callable[..., Tensor]

MOST = 1024
PLAIN = frozenset((int, bool, str, float, type(None), torch.dtype, torch.memory_format))  # what an option may be

_known: dict[Key, Known] = {}
replay.remembered.append(_known)
_precision = torch._C._get_fp32_precision_getter


def key_of(prepare: Any, operands: tuple[Any, ...], options: tuple[Any, ...], backend: str) -> Key | None:
    """Return the key of a call that ``prepare(*operands, *options)`` would check, ``None`` if it has none.

    ``operands`` are tensors or ``None``, the first of them a tensor.
    """
    first = operands[0]
    if not isinstance(first, Tensor) or not (first.is_cuda or first.is_cpu):
        return None
    if active("cuda" if first.is_cuda else "cpu") is not None:
        return None
    forced = backends.variable() if backend == "auto" else None
    key, needs_gradient = [prepare, backend, forced, _precision("cuda", "conv")], False
    for one in operands:
        kind = type(one)
        if kind is Tensor or kind is Parameter:
            if one.layout is not torch.strided or one.is_nested:
                return None
            key += (one.shape, one.stride(), one.dtype, one.device)
            key += (one.is_neg(), one._is_zerotensor())  # see unfollowed
            needs_gradient |= one.requires_grad
        elif one is None:
            key.append(None)
        else:
            return None
    for option in options:
        rest: tuple[Any, ...] = (option,)
        if type(option) is tuple:
            numbers, rest = _encoded(option[:5]), option[5:]  # behind five numbers of a pool is its memory format
            if numbers is None:
                return None
            key.append(numbers)
        for one in rest:
            if type(one) not in PLAIN:
                return None
        key += (*rest, *map(type, rest))  # types count: 1.0 is no 1
    return (*key, needs_gradient and torch.is_grad_enabled())


def _encoded(numbers: tuple[Any, ...]) -> bytes | None:
    """Return what tells numbers, and tuples of them, from others and from those of other types; ``None`` for others."""
    try:
        found = dumps(numbers, 2)
    except ValueError:  # of another library
        return None
    # Behind an "s" stand the bytes of anything that has some, as NumPy's numbers, whose types they do not tell.
    return found if b"s" not in found or _is_plain(numbers) else None


def _is_plain(option: Any) -> bool:
    return type(option) in PLAIN or (type(option) is tuple and all(map(_is_plain, option)))


def find(key: Key) -> Known | None:
    """Return what runs a call of this key on its operands, if one was remembered."""
    try:
        return _known.get(key)
    except TypeError:  # an option that cannot be looked up
        return None


def remember(key: Key, backend: str, call: tuple[Any, ...], folded_dtype: torch.dtype | None) -> None:
    """Remember a call that the floor of a backend has served, by what its kernel was given."""
    source, weight, bias, convolution, pool = call
    kind, count, options, name = type(source), len(tensors_of(source)), options_of(source), name_of(type(source), pool)
    differentiable = key[-1]
    tape = tape_of(floor(backend).forward, source, weight, bias, convolution, pool, want_argmax=differentiable)
    known: Known
    if differentiable:
        passes = FusedPasses(backend, kind, options, convolution, pool, tape)
        known = partial(passes.apply, passes)
    else:

        def known(*operands: Any) -> Tensor:
            if tape is not None and not (kind is Tokens and folded.is_any_frozen()) and tape.may_replay:
                return recorded(name, _first_of, tape, [one for one in operands if one is not None])
            again, (weight, bias) = source_of(kind, operands[:count], options), operands[count:]
            return undifferentiated(backend, again, weight, bias, convolution, pool, folded_dtype)

    if not source.values.is_cuda and (kind is not Dense or source.lengths is not None):
        run = known

        def known(*operands: Any) -> Tensor:
            _check_numbers(source_of(kind, operands[:count], options))
            return run(*operands)

    keep(key, known)


def keep(key: Key, known: Known) -> None:
    """Remember what runs the calls of a key on their operands."""
    if len(_known) >= MOST:
        _known.clear()
    with contextlib.suppress(TypeError):
        _known[key] = known


def _first_of(tape: Replayable, tensors: list[Tensor]) -> Tensor:
    return tape.replay(tensors)[0]  # type: ignore[no-any-return]


def _check_numbers(source: Source) -> None:
    """Check what is read from memory on the CPU at every call: the numbers of rows, and lengths."""
    values, lengths = source.values, source.lengths
    if isinstance(source, Tokens):
        arguments.row_index("tokens", source.tokens, "table", values)
    elif isinstance(source, Windows):
        arguments.row_index("starts", source.starts, "series", values, (source.length - 1) * source.step)
    if lengths is not None:
        arguments.lengths(lengths, values.device, source.samples, source.length)
