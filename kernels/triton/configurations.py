"""How large the kernels' tiles are, and how many warps share one: by dtype, channels and windows, never by N or L.

The rules here keep sums in registers and several blocks on a multiprocessor, as the census counts them. What was timed
stands beside them, and in benchmarks/gpu_notes.md. Layers whose tile is another stand in ``tiles.json``, which
``python -m benchmarks.tune`` writes.
"""

from __future__ import annotations

import collections
import functools
import itertools
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from .groups import Products

__all__ = [
    "TILES",
    "TILES_FILE",
    "Folded",
    "Forward",
    "InputGradient",
    "Layer",
    "WeightGradient",
    "folded_configuration",
    "forget",
    "forward_configuration",
    "input_gradient_configuration",
    "noted",
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


class Folded(NamedTuple):
    """A tile of the forward pass on folded rows: windows x outputs; rows that are loaded together for each window."""

    block_m: int
    block_o: int
    unroll: int
    num_warps: int


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


class Layer(NamedTuple):
    """What a configuration may depend on: of a tensor's sizes only the channels.

    ``kind`` is ``"16"`` (float16, bfloat16), ``"tf32"`` or ``"ieee"`` (exact float32); ``phases`` how many of a
    window's phases can share loads of the input at all, 0 for the global maximum, where any can or (-1) none;
    ``padded`` tells whether the input or the windows have padding, ``tokens`` whether rows are looked up, those of
    one tap at a time; ``architecture`` is ``"sm_90"``, ``"gfx942"`` and the like, ``"cpu"`` in the interpreter.
    """

    kind: str
    channels: int
    outputs: int
    size: int
    phases: int
    padded: bool
    tokens: bool
    architecture: str

    @property
    def apart(self) -> bool:
        """Whether sums that meet a NaN are computed again, tap by tap.

        Not for sm_100 and later, for which Triton 3.7 cannot compile matrix products in a branch: there NaN and
        infinities spread to the taps of every position near a sample's ends.
        """
        return not self.architecture.startswith("sm_1")

    @property
    def vectors(self) -> bool:
        """Whether rows can be loaded four numbers at a time: an address for each takes registers."""
        return self.channels % 4 == 0

    @property
    def rounds(self) -> bool:
        """Whether kernels round float32 to TF32 themselves: NVIDIA's tensor cores would cut it."""
        return self.kind == "tf32" and self.architecture.startswith("sm_")

    @property
    def registers(self) -> bool:
        """Whether the forward kernels hold the input in registers for wgmma: that of TF32 is there to be rounded."""
        return self.kind == "16" and self.architecture == "sm_90"

    @property
    def precision(self) -> str:
        """How the gradients' kernels multiply float32.

        Exact products are multiply-adds. As three products of TF32 their errors were 2.2 to 3.2 times torch's (H200),
        in no less time: imdb1 dW 4867 us for 5677, dX 4444 for 3832.
        """
        return "tf32" if self.kind == "tf32" else "ieee"

    @property
    def forward_precision(self) -> str:
        """How the forward kernels multiply float32.

        On sm_90 an exact product is three of TF32, of which both factors have two parts. H100, N 4096: imdb1 3116 us
        and a third of torch's error, where multiply-adds took 4195 and all of it; jena1 177 and 296; 512 samples of 256
        channels to 256 771 and 1141.
        """
        return "tf32x3" if self.kind == "ieee" and self.architecture == "sm_90" else self.precision

    @property
    def products(self) -> Products:
        """What the forward kernels are told of it all."""
        return Products(self.forward_precision, self.rounds, self.registers)

    @property
    def columns(self) -> bool:
        """Whether packed weights have outputs in their columns.

        Threads that multiply and add have four outputs each, and read those of eight of them from different banks then.
        """
        return self.kind == "ieee" and self.forward_precision == "ieee"

    @property
    def gradient_columns(self) -> bool:
        """Whether weights packed for the input's gradient have outputs in their columns.

        Products sum over outputs: tensor cores take TF32 in that order alone, and copies are of 16 bytes whatever the
        channels are. Threads that multiply and add have four channels each.
        """
        return self.kind != "ieee"


T = TypeVar("T")
TILES_FILE = Path(__file__).with_name("tiles.json")
# By the kernel's name and its layer's fields: the fields of a configuration.
TILES: dict[tuple[Any, ...], tuple[int, ...]] = {
    (one["kernel"], *one["layer"]): tuple(one["tile"]) for one in json.loads(TILES_FILE.read_text(encoding="utf-8"))
}


_noted: list[tuple[str, Layer, Any]] | None = None


@contextmanager
def noted() -> Iterator[list[tuple[str, Layer, Any]]]:
    """Give a list of the tiles that are asked for meanwhile: the kernel's name, its layer, its configuration."""
    global _noted
    _noted = []
    try:
        yield _noted
    finally:
        _noted = None


def _tile(kernel: str, layer: Layer, rule: Callable[[Layer], T]) -> T:
    """Return the layer's own tile, or the rule's."""
    tile: T = _chosen(kernel, layer, rule)
    if _noted is not None:
        _noted.append((kernel, layer, tile))
    return tile


@functools.cache
def _chosen(kernel: str, layer: Layer, rule: Callable[[Layer], Any]) -> Any:
    found, own = rule(layer), TILES.get((kernel, *layer))
    return found if own is None else type(found)(*own)


def forget() -> None:
    """Have tiles looked up anew: for those who change :data:`TILES`."""
    _chosen.cache_clear()


def forward_configuration(layer: Layer) -> Forward:
    """Return the tile of the forward pass."""
    return _tile("forward", layer, forward_rule)


def forward_rule(layer: Layer) -> Forward:
    """Return the tile of the forward pass for a layer without one of its own."""
    block_o = min(max(power_of_two(layer.outputs), 16), 64)
    narrow = min(max(power_of_two(layer.channels), 16), 64)
    flat = narrow if layer.tokens else min(max(power_of_two(layer.channels * layer.size), 16), 64)
    if layer.forward_precision == "tf32x3":
        return Forward(64, block_o, min(flat, 32), 1, 4, 2)  # parts of numbers would not fit into registers with phases
    if layer.kind == "ieee":
        block_r = 16 if layer.padded or layer.phases <= 0 else min(flat, 32)
        few = layer.vectors and (block_o < 64 or (layer.padded and not layer.tokens))
        return Forward(64, block_o, block_r, 1, 4 if few else 8, 2 if layer.architecture == "sm_90" else 3)
    # Sums of so many phases fit into the registers; more phases than the kernel's size share nothing new.
    checked = layer.padded or (layer.tokens and (layer.phases <= 0 or block_o > 32))
    most = min((96 if checked else 160) // block_o, layer.size)
    shared = shared_phases(layer.phases, most) if layer.phases > 0 else min(2 + layer.phases * 2, most)
    if shared > 1 and layer.channels > 8 and layer.size <= 8 and layer.architecture == "sm_90" and layer.outputs <= 64:
        if layer.phases == 0 and block_o <= 32:
            shared = min(3, layer.size)
        if (tile := hopper_tile(layer, block_o, narrow, shared)) is not None:
            return tile
    if shared > 1 and layer.channels > 8 and layer.size <= 8:
        # A tile of the global maximum holds one sample's positions, of which there may be few.
        # Of 128 windows Triton 3.7 leaves nothing on sm_100.
        few = layer.phases <= 0 or layer.padded or layer.architecture.startswith("sm_10")
        rows = (64,) if few else (128, 64)
        budget = BUDGET[layer.architecture]
        for block_m, block_r in itertools.product(rows, (64, 32, 16)):
            many = block_m > 64 or layer.padded or (layer.tokens and (block_o > 32 or layer.kind == "tf32"))
            tile = Forward(block_m, block_o, block_r, shared, 8 if many else 4, 2)
            is_last = (block_m, block_r) == (64, 16)
            if block_r <= narrow and staged_bytes(layer, tile) <= (2 * budget if is_last else budget):
                return tile
    block_r = flat if layer.kind == "16" and not (layer.tokens and block_o > 32) else min(flat, 32)
    many = layer.tokens or not layer.architecture.startswith("sm_90")
    few = not (many and checked and block_o > 32)
    return Forward(64, block_o, block_r, 1, 4 if few else 8, 3)


def hopper_tile(layer: Layer, block_o: int, narrow: int, shared: int) -> Forward | None:
    """Return the tile of the forward pass on sm_90 where phases share loads, or ``None`` if none is small enough.

    H100, N 4096, microseconds: imdb1 bfloat16 (64, 32, 32, 5, 4, 2) 282, 16 channels and 3 stages 404, 64 channels 444,
    128 windows, 8 warps and 16 channels 389, 32 channels 404; TF32 (64, 32, 16, 5, 4, 2) 560, 3 stages 1047. Three
    blocks on a multiprocessor hide more than a third stage does, unless a program keeps its weights: then the stage
    costs little, and without it no copy is under way while a tile is computed.
    """
    wide = min(narrow, 32 if layer.kind == "16" else 16)  # 64 bytes
    for block_r, stages in ((wide, 3), (wide, 2), (wide // 2, 2)):
        tile = Forward(64, block_o, block_r, shared, 4, stages)
        prefetches = layer.phases > 0 and layer.channels <= block_r
        limit = HOPPER if stages == 2 else HOPPER * 3 // 4 if prefetches else 0
        if block_r >= 16 and hopper_bytes(layer, tile) <= limit:
            return tile
    return None


def input_gradient_configuration(layer: Layer) -> InputGradient:
    """Return the tile of the input's gradient."""
    return _tile("input_gradient", layer, input_gradient_rule)


def input_gradient_rule(layer: Layer) -> InputGradient:
    """Return the tile of the input's gradient for a layer without one of its own."""
    block_c = min(max(power_of_two(layer.channels), 16), 64 if layer.kind == "ieee" or not layer.vectors else 128)
    block_o = min(max(power_of_two(layer.outputs), 16), 32)
    # Addresses that are no multiples of four take registers, but of Hopper's own instructions.
    wide = block_c >= 64 and not layer.vectors and (layer.kind == "ieee" or layer.architecture != "sm_90")
    # Outputs at no multiples of four are loaded one by one: a thread of four warps would hold 16 rows' addresses.
    # Of two stages' copies the compiler waits for all, those that it began last, too: the second one hides nothing.
    scattered = layer.outputs % 4 > 0
    return InputGradient(64, block_c, block_o, 8 if wide or scattered else 4, 2 if layer.kind == "ieee" else 3)


def weight_gradient_configuration(layer: Layer) -> WeightGradient:
    """Return the tile of the weights' gradient."""
    return _tile("weight_gradient", layer, weight_gradient_rule)


def weight_gradient_rule(layer: Layer) -> WeightGradient:
    """Return the tile of the weights' gradient for a layer without one of its own."""
    weights = layer.channels * (1 if layer.tokens else layer.size)
    block_o = min(max(power_of_two(layer.outputs), 16), 64)
    wide_tokens = layer.tokens and block_o > 32  # the rows' addresses take registers too
    block_r = min(max(power_of_two(weights), 16), 64 if layer.kind == "ieee" or wide_tokens else 128)
    few = layer.vectors and not (layer.kind != "tf32" and wide_tokens)
    # TF32 rows are turned over for sm_90's products: copies that wait in a second stage would be of 4 bytes each. The
    # census counts 738 instead of 1901 instructions (32 channels, windows of 16), 678 instead of 1830 (8, 31 taps).
    stages = 1 if layer.kind == "tf32" and layer.architecture == "sm_90" else 2
    return WeightGradient(64 if layer.kind == "16" else 32, block_r, block_o, 4 if few else 8, stages)


@functools.cache
def folded_configuration(width: int, size: int, is_global: bool) -> Folded:
    """Return the tile of the forward pass on rows of ``width`` numbers: 8 of them for each thread and load.

    A tile of the global maximum is a sample's, alone on its multiprocessor where samples are few: it has more warps.
    """
    block_o = min(power_of_two(width), 128)
    warps = 8 if is_global else 4
    return Folded(warps * 32 * 8 // block_o, block_o, shared_phases(size, 8), warps)


# Bytes of shared memory for each of two blocks on a multiprocessor; little where it is not known.
BUDGET = collections.defaultdict(lambda: 32 * 1024, sm_80=80 * 1024, sm_90=113 * 1024, sm_100=113 * 1024)


def staged_bytes(layer: Layer, tile: Forward) -> int:
    """Return the bytes of input and weights that wait in shared memory where phases share loads."""
    buffers = 1 if layer.architecture.startswith("sm_8") else 2
    numbers = ((layer.size + tile.phases - 1) * tile.block_m + layer.size * tile.block_o) * tile.block_r
    return buffers * numbers * (2 if layer.kind == "16" else 4)


HOPPER = 75 * 1024  # bytes for each of three blocks on a multiprocessor


def hopper_bytes(layer: Layer, tile: Forward) -> int:
    """Return the bytes of input and weights that wait in shared memory on sm_90, where the input goes to registers.

    Weights are read from there by products that may still run when the next ones arrive.
    """
    inputs = (layer.size + tile.phases - 1) * tile.block_m * (tile.num_stages - 1)
    weights = layer.size * tile.block_o * (1 if layer.channels <= tile.block_r else tile.num_stages)
    return (inputs + weights) * tile.block_r * (2 if layer.kind == "16" else 4)


def shared_phases(phases: int, most: int) -> int:
    """Return into how many phases at a time to cut ``phases``: at most ``most``, and as even parts as there are."""
    groups = -(-phases // max(most, 1))
    return -(-phases // groups)


def power_of_two(number: int) -> int:
    """Return the least power of two that is no less."""
    return 1 << max(number - 1, 0).bit_length()
