"""What kernels are given in groups: numbers that a compilation depends on, and where tensors lie.

The first are passed as they are, ``launch`` makes constants of them; their parameters have names in capitals. The
others are put together by a kernel for its functions, by the fields' names: Triton's cache of compiled kernels does not
see the order of fields. Letters are those of the reference.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

from ..geometry import Convolution, Pool

__all__ = [
    "Access",
    "Blocks",
    "Filters",
    "Input",
    "Outputs",
    "Products",
    "Recurrence",
    "Steps",
    "Taps",
    "Upstream",
    "constants",
    "taps_of",
    "windows_alone",
]


class Filters(NamedTuple):
    """Weights ``(O, C, K)``, and how they lie in memory.

    If ``pitch`` is 0, contiguous as they are. Else packed, in the order of the reduction, and rounded where factors of
    products are: ``(O, pitch)``, of which ``K * C`` are used; or, where ``columns`` is the pitch again and not 0,
    ``(K * C, columns)``, of which ``O`` are.
    """

    C: int
    O: int  # noqa: E741
    K: int
    pitch: int = 0
    columns: int = 0


class Steps(NamedTuple):
    """Input positions from window to window, from phase to phase, from tap to tap; the first one, not positive.

    Of the global maximum there is one window, and every position of the convolution is a phase.
    """

    start: int
    phase: int
    tap: int
    window: int = 0


class Taps(NamedTuple):
    """A convolution's padding before the first position, its stride and its dilation."""

    left: int
    stride: int
    dilation: int


class Access(NamedTuple):
    """How the input's rows are found.

    ``mode`` is ``"own"``, ``"tokens"`` or ``"windows"``, see :class:`.rows.Rows`; strides are in units of ``align``
    elements. Where positions are ``dense``, the channels of one begin behind those of the one before; where the input
    is ``packed``, ``(N, L, C)`` and contiguous.
    """

    mode: str
    align: int
    dense: bool = False
    packed: bool = False


class Blocks(NamedTuple):
    """A tile: ``M`` rows x ``O`` outputs or ``C`` channels, ``R`` numbers of the reduction at a time.

    ``phases`` share what they load; of a global maximum's rows, ``group`` are of one sample. Where weights are
    ``resident``, a program keeps them and goes from tile to tile.
    """

    M: int
    O: int = 0  # noqa: E741
    R: int = 0
    C: int = 0
    phases: int = 1
    group: int = 1
    resident: bool = False


class Products(NamedTuple):
    """How float32 numbers are multiplied: Triton's name for it; whether kernels round them to TF32 first.

    Where it goes through ``registers``, the input does, see :func:`.device.convolution.through_registers`.
    """

    precision: str
    rounds: bool = False
    registers: bool = False


class Recurrence(NamedTuple):
    """A cell in ``D`` directions: its gates, and what of it kernels are compiled for.

    ``masks`` is the number of a step's masks of the state: none, one for all gates, or one for each; there are others
    ``each_step``, or not. The input's products of a gate lie ``apart`` from those of the others, or not. Of each step
    ``slots`` numbers of a hidden unit are kept, and the gradients of so many gates written.
    """

    lstm: bool
    reset_after: bool
    gates: int
    H: int
    D: int
    masks: int
    each_step: bool
    apart: bool
    slots: int
    gradients: int


class Input(NamedTuple):
    """An input ``(N, C, L)``, a table or a series ``(V, C)``, and the index through which rows of these are found.

    Strides are in elements: from sample to sample, or from row to row of a table or a series; from position to
    position. Numbers in the index are below ``count``.
    """

    x: Any
    length: Any
    stride_n: Any
    stride_l: Any
    index: Any
    index_n: Any
    index_l: Any
    count: Any


class Outputs(NamedTuple):
    """A tile's outputs: where the weights of each begin, their numbers, and which of them there are, ``(O,)`` each."""

    p_w: Any
    b: Any
    m: Any


class Upstream(NamedTuple):
    """The pooled gradient ``(N, O, Q)``, its strides from sample to sample and window to window, and ``argmax``."""

    gradient: Any
    argmax: Any
    windows: Any
    stride_n: Any
    stride_q: Any


def windows_alone(pool: Pool) -> Pool:
    """Return a pool without what its kernels need not know, so that fewer are compiled."""
    return pool._replace(ceil_mode=False, contiguous=False)


def taps_of(convolution: Convolution) -> Taps:
    """Return what kernels are told of a convolution."""
    return Taps(convolution.padding[0], convolution.stride, convolution.dilation)


@functools.lru_cache(maxsize=None, typed=True)
def constants(group: Any) -> Any:
    """Return a group whose numbers Triton takes for constants; the interpreter takes them as they are."""
    from triton.language import constexpr

    from .device.convolution import INTERPRETED

    return group if INTERPRETED else type(group)(*map(constexpr, group))
