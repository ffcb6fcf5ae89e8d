"""How large the kernels' tiles are, and how many warps share one: by dtype, channels and windows, never by N or L."""

from __future__ import annotations

from typing import NamedTuple

__all__ = [
    "Forward",
    "InputGradient",
    "WeightGradient",
    "forward_configuration",
    "input_gradient_configuration",
    "weight_gradient_configuration",
]


class Forward(NamedTuple):
    """A forward kernel's tile: windows x outputs x a block of the reduction; phases that share loads of the input."""

    block_m: int
    block_o: int
    block_r: int
    phases: int
    num_warps: int
    num_stages: int


class InputGradient(NamedTuple):
    """The input gradient's tile: positions x channels, over blocks of outputs."""

    block_m: int
    block_c: int
    block_o: int
    num_warps: int
    num_stages: int


class WeightGradient(NamedTuple):
    """The weight gradient's tile: weights of one output, ``(k, c)``, x outputs, over blocks of positions."""

    block_m: int
    block_r: int
    block_o: int
    num_warps: int
    num_stages: int


def forward_configuration(
    kind: str, channels: int, outputs: int, size: int, phases: int, _architecture: str
) -> Forward:
    """Return the tile for ``kind`` (``"16"`` for float16 and bfloat16, ``"tf32"``, ``"ieee"``).

    ``phases`` is how many phases of a window can share loads at all.
    """
    block_o = min(max(power_of_two(outputs), 16), 64)
    most = min(160 // block_o, size) if channels > 8 and size <= 8 and kind != "ieee" else 1
    shared = shared_phases(phases, most)
    reduction = channels if shared > 1 else size * channels
    widest = 32 if kind == "16" and shared > 1 else 64 if kind == "16" else 16 if shared > 1 else 32
    block_r = min(max(power_of_two(reduction), 16), widest)
    return Forward(64, block_o, block_r, shared, 4, 2 if shared > 1 else 3)


def input_gradient_configuration(
    kind: str, channels: int, outputs: int, _size: int, _architecture: str
) -> InputGradient:
    """Return the tile of the input's gradient."""
    block_c = min(max(power_of_two(channels), 16), 64 if kind == "ieee" else 128)
    block_o = min(max(power_of_two(outputs), 16), 32)
    return InputGradient(64, block_c, block_o, 4, 2)


def weight_gradient_configuration(
    kind: str, channels: int, outputs: int, size: int, _architecture: str
) -> WeightGradient:
    """Return the tile of the weights' gradient."""
    block_r = min(max(power_of_two(channels * size), 16), 64 if kind == "ieee" else 128)
    block_o = min(max(power_of_two(outputs), 16), 64)
    return WeightGradient(64 if kind == "16" else 32, block_r, block_o, 4, 2)


def shared_phases(phases: int, most: int) -> int:
    """Return into how many phases at a time to cut ``phases``: at most ``most``, and as even parts as there are."""
    groups = -(-phases // max(most, 1))
    return -(-phases // groups)


def power_of_two(number: int) -> int:
    """Return the least power of two that is no less."""
    return 1 << max(number - 1, 0).bit_length()
