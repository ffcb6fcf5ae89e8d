"""Compile every kernel for GPUs that need not be there, and count what it takes: ``python -m ... .census --help``.

The launches are those of the floor's own functions, recorded on tensors without memory: what is counted is what runs.
A kernel that spills registers (``stack`` above what was measured to be harmless), takes more shared memory than a block
may have, multiplies without the tensor cores where it could use them, or with them where it must not, is a fault.
"""

from __future__ import annotations

import argparse
import itertools
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ..geometry import Convolution, Pool
from ..norm import Norm
from ..recurrence import CELLS, EVERYTHING, Masks, Weights
from ..source import Dense, Source, Tokens, Windows
from . import configurations, conv_norm_pool, conv_pool, loops, recurrent
from .groups import constants
from .launch import Imagined, imagining

__all__ = [
    "KINDS",
    "LAYERS",
    "RECURRENT",
    "TARGETS",
    "Figures",
    "Launch",
    "choices",
    "compiled",
    "faults",
    "figures",
    "launches",
    "main",
]


class Layer(NamedTuple):
    """A layer of the census; ``pool`` is ``None`` for the global maximum.

    ``rows`` is ``"own"`` for an input of its own, or ``"contiguous"`` if its channels are no neighbours; ``"tokens"``
    for rows of a table, ``"folded"`` for those of a folded one, ``"windows"`` for those of a series. ``few`` tells that
    its windows are too few for a GPU, ``norm`` that a batch norm in training mode is behind the convolution.
    """

    channels: int
    outputs: int
    size: int
    convolution: Convolution
    pool: Pool | None
    rows: str = "own"
    few: bool = False
    norm: bool = False


def layer(channels: int, outputs: int, size: int, pool: int | None, **options: Any) -> Layer:
    """Return a layer of stride 1 whose windows do not overlap."""
    convolution = Convolution(1, options.pop("padding", (0, 0)), options.pop("dilation", 1))
    return Layer(channels, outputs, size, convolution, None if pool is None else Pool(pool, pool), **options)


LAYERS = {
    "imdb1": layer(128, 32, 7, 5),
    "imdb2": layer(32, 32, 7, None),
    "jena1": layer(14, 32, 5, 3),
    "jena2": layer(32, 32, 5, 3),
    "jena3": layer(32, 32, 5, None),
    "few windows": layer(390, 130, 9, 7, few=True),
    "few, global": layer(64, 32, 9, None, few=True),
    "long, global": Layer(79, 27, 24, Convolution(3), None),
    "motifs": layer(4, 32, 24, None),
    "imdb1, contiguous": layer(128, 32, 7, 5, rows="contiguous"),
    "univariate": layer(1, 32, 7, 2),
    "four channels": layer(4, 64, 3, 2),
    "64 to 128": layer(64, 128, 3, 2),
    "256 to 256": layer(256, 256, 3, 2),
    "512 to 512": layer(512, 512, 3, 2),
    "padded, dilated": layer(64, 64, 3, 2, padding=(4, 4), dilation=4),
    "wide windows": layer(32, 32, 3, 16),
    "long kernel": layer(8, 16, 31, 4),
    "overlapping": Layer(64, 64, 5, Convolution(1, (2, 2)), Pool(3, 2, 1)),
    "sliding": Layer(32, 40, 5, Convolution(dilation=54), Pool(20, 1, 0, 54)),
    "sliding, folded": Layer(128, 32, 7, Convolution(), Pool(64, 1, 32), rows="folded"),
    "imdb1, tokens": layer(128, 32, 7, 5, rows="tokens"),
    "imdb1, folded": layer(128, 32, 7, 5, rows="folded"),
    "textcnn": layer(300, 100, 3, None, rows="tokens"),
    "textcnn, folded": layer(300, 100, 3, None, rows="folded"),
    "long kernel, folded": layer(64, 70, 31, 2, rows="folded"),
    "padded tokens": layer(64, 64, 3, 2, padding=(1, 1), rows="tokens"),
    "jena1, windows": layer(14, 32, 5, 3, rows="windows"),
    "norm": layer(64, 64, 3, 3, norm=True),
    "norm, contiguous": layer(12, 32, 7, 2, rows="contiguous", norm=True),
    "norm, overlapping": Layer(64, 130, 5, Convolution(1, (2, 2)), Pool(3, 2, 1), norm=True),
    "norm, global": layer(64, 64, 3, None, norm=True),
    "norm, motifs": layer(4, 20, 3, None, rows="contiguous", norm=True),
    "norm, unpooled": layer(128, 256, 3, 1, norm=True),
}


class RecurrentLayer(NamedTuple):
    """A recurrent layer of the census: of so few sequences that programs have few, or of ``many``.

    One that is ``masked`` has all that may cost registers: masks for each step and gate, two directions, lengths.
    """

    cell: str
    hidden: int
    many: bool = False
    masked: bool = False


RECURRENT = {
    f"{cell} {hidden}" + ", many" * many + ", masked" * masked: RecurrentLayer(cell, hidden, many, masked)
    for hidden, cell, many, masked in itertools.product((32, 64, 128, 256), CELLS, (False, True), (False, True))
    if hidden <= 128 or not many
}
SAMPLES = 4096  # of the launches whose times are estimated
WINDOWS = {"imdb1": 98, "imdb2": 88, "jena1": 78, "jena2": 24, "jena3": 20}  # of the notebook's; 64 of the others
# Kernels that multiply nothing with tensor cores, or at all.
NO_PRODUCTS = {
    "weights_kernel",
    "folded_windows_kernel",
    "folded_global_kernel",
    "sum_spans_kernel",
    "sum_occurrences_kernel",
    "keys_kernel",
    "join_spans_kernel",
    "check_index_kernel",
    "transpose_kernel",
    "pool_sums_kernel",
    "pool_sums_globally_kernel",
    "pool_activation_kernel",
    "survey_kernel",
    "finish_survey_kernel",
    "normalise_windows_kernel",
    "normalise_globally_kernel",
    "sum_windows_kernel",
    "finish_sums_kernel",
    "spread_kernel",
}
# Bytes of stack a thread that cost less than tiles without: on an H100 imdb1's input gradient in TF32 took 543 us with
# 72 bytes, 609 without any by half as many channels. The input's gradient has its own in the branch that a NaN enters:
# compiled without that, no layer has any.
HARMLESS = {
    "phase_input_gradient_kernel": 96,
    "phase_weight_gradient_kernel": 96,
    "global_weight_gradient_kernel": 48,
    "input_gradient_kernel": 24,
    "sum_occurrences_kernel": 8,  # a frame that nothing reads or writes: ptxas reserves it for TextCNN
    "forward_global_kernel": 8,  # these two: a number that is stored once and loaded once, in no loop
    "sums_kernel": 8,
    # These: addresses, at the registers that let one more program onto a multiprocessor; no loop over products has more
    # than two of their loads.
    "forward_kernel": 8,
    "backward_kernel": 16,
    "wide_forward_kernel": 8,
    "wide_backward_kernel": 24,
}
# What of a tile the rows of a product are, where they are not M.
PRODUCT_ROWS = {
    "weight_gradient_kernel": "R",
    "phase_weight_gradient_kernel": "C",
    "global_weight_gradient_kernel": "C",
    "table_weight_gradient_kernel": "O",
}
KINDS = {"16": torch.bfloat16, "tf32": torch.float32, "ieee": torch.float32}
PROCESSORS = 132  # of an H100
MOST_SEQUENCES = 16  # of a program
# Bytes of shared memory that a block may have.
TARGETS = {"sm_80": 163 * 1024, "sm_90": 227 * 1024, "sm_100": 227 * 1024, "gfx942": 64 * 1024}
CHECKED = ("sm_80", "sm_90")
POINTERS = {torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.float32: "*fp32"} | {
    getattr(torch, f"int{bits}"): f"*i{bits}" for bits in (8, 16, 32, 64)
}
MATRIX = {"wgmma": r"wgmma\.mma_async", "tcgen05": r"tcgen05\.mma", "mma": r"mma\.sync", "mfma": r"v_mfma"}


class Launch(NamedTuple):
    """A recorded launch: the kernel and what it was given."""

    kernel: Any
    grid: tuple[int, ...]
    arguments: dict[str, Any]
    options: dict[str, int]

    @property
    def name(self) -> str:
        """The kernel's name."""
        return str(self.kernel.__name__)

    def source(self) -> tuple[dict[str, str], dict[tuple[int, ...], Any], dict[tuple[int, ...], Any]]:
        """Return what a compilation depends on: types, compile-time values, and what is known of pointers."""
        types: dict[str, str] = {}
        values: dict[tuple[int, ...], Any] = {}
        known: dict[tuple[int, ...], Any] = {}
        for number, parameter in enumerate(self.kernel.params):
            value = self.arguments[parameter.name]
            if parameter.is_constexpr or value is None:
                types[parameter.name] = "constexpr"
                values[(number,)] = constants(value) if isinstance(value, tuple) else value
            elif isinstance(value, torch.Tensor):
                types[parameter.name], known[(number,)] = POINTERS[value.dtype], [["tt.divisibility", 16]]
            else:
                types[parameter.name] = parameter.annotation_type
        return types, values, known


class Figures(NamedTuple):
    """What a compiled kernel takes: registers and stack bytes a thread, shared bytes a block, how it multiplies."""

    registers: int
    stack: int
    shared: int
    matrix: str


def launches(layer: Layer | RecurrentLayer, kind: str, target: str, samples: int = 2, windows: int = 3) -> list[Launch]:
    """Return the launches of a forward and a backward pass on a GPU.

    Of a convolution they are of ``samples`` x so many windows (or positions), of a recurrent layer of so many steps of
    as many sequences as it says, or more.
    """
    if isinstance(layer, RecurrentLayer):
        return _recurrent_launches(layer, kind, target, samples, windows)
    span = 0 if layer.pool is None else layer.pool.dilation * (layer.pool.size - 1) + 1
    positions = windows if layer.pool is None else (windows - 1) * layer.pool.stride + span - 2 * layer.pool.padding
    length = positions - 1 + layer.convolution.dilation * (layer.size - 1) + 1 - sum(layer.convolution.padding)
    dtype = KINDS[kind]
    w = torch.empty(layer.outputs, layer.channels, layer.size, dtype=dtype, device="meta")
    b = torch.empty(layer.outputs, dtype=dtype, device="meta")
    source = _source(layer, dtype, samples, length)
    plan = None if isinstance(source, Dense) else "folded" if layer.rows == "folded" else "direct"
    with recording(kind, target, layer.few) as recorded:
        if layer.norm:
            norm = Norm(None, None, *torch.empty(2, layer.outputs, device="meta"))
            given = (source.values, w, b, norm, layer.convolution, layer.pool)
            out, saved = conv_norm_pool.forward(*given, want_argmax=True)
            conv_norm_pool.backward(out, saved, *given[:3], *given[4:], wanted=(True,) * 5)
            return recorded
        out, argmax = conv_pool.forward(source, w, b, layer.convolution, layer.pool, want_argmax=True, plan=plan)
        assert argmax is not None
        pooled = (out, argmax, source, w, layer.convolution, layer.pool)
        conv_pool.backward(*pooled, wanted=(True, True, True), plan=plan)
    return recorded


@contextmanager
def recording(kind: str, target: str, few: bool = False) -> Iterator[list[Launch]]:
    """Have a list filled with the launches that would be made."""
    recorded: list[Launch] = []

    def note(kernel: Any, grid: tuple[int, ...], positional: tuple[Any, ...], named: dict[str, Any]) -> None:
        options = {"num_warps": named.pop("num_warps"), "num_stages": named.pop("num_stages", 3)}
        arguments = dict(zip(kernel.arg_names, positional, strict=False)) | named
        recorded.append(Launch(kernel, grid, arguments, {**options, "debug": bool(kernel.debug)}))

    with imagining(Imagined(target, "tf32" if kind == "tf32" else "ieee", PROCESSORS, few, note)):
        yield recorded


def _recurrent_launches(layer: RecurrentLayer, kind: str, target: str, samples: int, steps: int) -> list[Launch]:
    """Return the launches of both passes; a layer of many sequences has so many more."""
    samples += PROCESSORS * MOST_SEQUENCES if layer.many else 0
    cell, hidden, directions = CELLS[layer.cell], layer.hidden, 1 + layer.masked

    def empty(*shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=KINDS[kind], device="meta")

    width = cell.gates * hidden
    weights = [Weights(empty(width, 14), empty(width, hidden), empty(width), empty(width)) for _ in range(directions)]
    states = tuple(empty(directions, samples, hidden) for _ in range(cell.states))
    masks, lengths = Masks(), None
    if layer.masked:
        masks = Masks(None, empty(directions, steps, cell.gates, samples, hidden))
        lengths = torch.empty(samples, dtype=torch.int64, device="meta")
    given = (empty(steps, samples, 14), states, weights, masks, lengths)
    with recording(kind, target) as recorded:
        output, last, saved = recurrent.forward(layer.cell, *given, keep=EVERYTHING)
        recurrent.backward(layer.cell, output, last, *given, output, saved, wanted=(True, True, True))
    return recorded


def _source(layer: Layer, dtype: torch.dtype, samples: int, length: int) -> Source:
    if layer.rows in ("own", "contiguous"):
        x = torch.empty((samples, length, layer.channels), dtype=dtype, device="meta").transpose(1, 2)
        return Dense(x.contiguous() if layer.rows == "contiguous" else x)
    rows = torch.empty(10000, layer.channels, dtype=dtype, device="meta")
    if layer.rows == "windows":
        return Windows(rows, torch.empty(samples, dtype=torch.int64, device="meta"), length, 6)
    return Tokens(torch.empty(samples, length, dtype=torch.int64, device="meta"), rows)


def choices(layer: Layer, kind: str, target: str) -> dict[str, tuple[Any, Any]]:
    """Return what a layer's configurations depend on and what they are, by the kernel that they are of."""
    with configurations.noted() as chosen:
        launches(layer, kind, target)
    return {kernel: (described, tile) for kernel, described, tile in chosen}


def compiled(launch: Launch, target: str) -> Any:
    """Return a launch's kernel as Triton compiles it for a target."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    is_amd = target.startswith("gfx")
    chip = GPUTarget("hip", target, 64) if is_amd else GPUTarget("cuda", int(target.removeprefix("sm_")), 32)
    types, values, known = launch.source()
    return triton.compile(ASTSource(launch.kernel, types, values, known), target=chip, options=launch.options)


def figures(launch: Launch, target: str) -> Figures:
    """Compile a launch's kernel for a target and return what it takes."""
    is_amd = target.startswith("gfx")
    made = compiled(launch, target)
    text = made.asm["amdgcn" if is_amd else "ptx"]
    found = [name for name, pattern in MATRIX.items() if re.search(pattern, text)]
    if is_amd:
        registers, stack = (
            int(re.search(rf"\.{name}:\s+(\d+)", text)[1])  # type: ignore[index]
            for name in ("vgpr_count", "private_segment_fixed_size")
        )
    else:
        registers, stack = _resources(made.asm["cubin"])
    return Figures(registers, stack, int(made.metadata.shared), "+".join(found) or "fma")


class Cost(NamedTuple):
    """What a kernel with products takes: its figures, its main loop, its times."""

    figures: Figures
    loop: loops.Loop
    times: loops.Times


def cost(layer: Layer, launch: Launch, kind: str, target: str) -> Cost | None:
    """Compile a launch's kernel for an NVIDIA GPU and return what it costs, ``None`` if it multiplies in no loop."""
    if launch.name in NO_PRODUCTS:
        return None
    made, taken = compiled(launch, target), figures(launch, target)
    warps = int(made.metadata.num_warps)
    loop = loops.main_loop(loops.instructions(loops.disassembled(made.asm["cubin"])), warps)
    if loop is None:
        return None
    useful, executed = _multiply_adds(layer, launch)
    if launch.arguments["PRODUCTS"].precision == "tf32x3":
        kind, useful, executed = "tf32", 3 * useful, 3 * executed
    moved = sum(one.numel() * one.element_size() for one in launch.arguments.values() if isinstance(one, torch.Tensor))
    return Cost(taken, loop, loops.times(loop, kind, warps, taken, useful, executed, moved))


def _multiply_adds(layer: Layer, launch: Launch) -> tuple[float, float]:
    """Return the multiply-adds that a launch's result needs, and those of its tiles, which cover more than there is."""
    given = launch.arguments
    weights, tile = given["W"], given["TILE"]
    if launch.name in ("fold_kernel", "table_gradient_kernel", "table_weight_gradient_kernel"):
        table = given["dtable"] if launch.name == "table_gradient_kernel" else given["table"]
        rows = computed = table.size(0)
    else:
        like = given.get("gradient", given.get("out"))
        rows = computed = given["rows"] if like is None else like.size(0) * _positions(layer, given)
        if launch.name.startswith("global_"):  # tiles of one sample's positions
            computed = given["gradient"].size(0) * -(-given["length"] // tile.M) * tile.M
        if launch.name == "forward_windows_kernel":
            computed = given["rows"] * given["POOL"].size
    numbers, block = weights.C, tile.C or tile.R
    if not tile.C and tile.phases == 1 and layer.rows != "tokens" and launch.name != "fold_kernel":
        numbers *= weights.K  # taps and channels are one axis
    whole = -(-numbers // block) * block / numbers * -(-weights.O // tile.O) * tile.O / weights.O
    each = weights.K * weights.C * weights.O
    return rows * each, computed * each * whole


def _positions(layer: Layer, given: dict[str, Any]) -> int:
    """Return the convolution's positions in a launch that has the input's length."""
    return given.get("positions") or layer.convolution.output_length(given["length"], layer.size)


def _resources(binary: bytes) -> tuple[int, int]:
    """Return registers and stack bytes a thread, as the disassembler in Triton's package reads them."""
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "kernel.cubin")
        Path(path).write_bytes(binary)
        command = [str(tool), "-res-usage", path]
        report = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", report)
    if found is None:
        raise RuntimeError(f"cuobjdump reports no resources: {report}")
    return int(found[1]), int(found[2])


def faults(launch: Launch, kind: str, target: str, taken: Figures) -> list[str]:
    """Return what is wrong with a compiled kernel, nothing if all is well."""
    wrong = []
    if taken.stack > HARMLESS.get(launch.name, 0):
        wrong.append(f"spills {taken.stack} bytes")
    if taken.shared > TARGETS[target]:
        wrong.append(f"takes {taken.shared} of {TARGETS[target]} bytes of shared memory")
    if "CELL" in launch.arguments and launch.arguments["PRODUCTS"].precision == "ieee":
        kind = "ieee"  # of few sequences, whatever their numbers are
    multiplies = launch.name not in NO_PRODUCTS
    expected = {"sm_80": "mma", "sm_90": "wgmma", "sm_100": "tcgen05"}.get(target, "mfma")
    if multiplies and getattr(launch.arguments["TILE"], PRODUCT_ROWS.get(launch.name, "M")) < 64:
        expected = "mfma" if expected == "mfma" else "mma"  # the larger instructions take 64 rows
    if multiplies and kind != "ieee" and expected not in taken.matrix.split("+"):
        wrong.append(f"multiplies by {taken.matrix}, not {expected}")
    exact = taken.matrix in ("fma", "mfma") or (multiplies and launch.arguments["PRODUCTS"].precision == "tf32x3")
    if kind == "ieee" and not exact:  # of these matrix instructions only AMD's have float32 products
        wrong.append(f"multiplies by {taken.matrix}, which is not exact")
    return wrong


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; return 1 if there are faults on the architectures that are checked."""
    parser = argparse.ArgumentParser(prog="python -m seqconv.kernels.triton.census", description=__doc__)
    every = LAYERS | RECURRENT
    parser.add_argument("--layers", nargs="*", default=list(every), choices=list(every), metavar="NAME")
    parser.add_argument("--kinds", nargs="*", default=list(KINDS), choices=list(KINDS))
    parser.add_argument("--targets", nargs="*", default=list(CHECKED), choices=list(TARGETS))
    parser.add_argument("--loops", action="store_true", help="main loops instead, and estimated times on an H100")
    options = parser.parse_args(arguments)
    if options.loops:
        print_loops([name for name in options.layers if name in LAYERS], options.kinds)
        return 0
    wrong = 0
    print(f"{'layer':26}{'kind':6}{'target':8}{'kernel':26}{'registers':>10}{'stack':>7}{'shared':>8}  multiplies by")
    for name in options.layers:
        for kind in options.kinds:
            for target in options.targets:
                for launch in launches(every[name], kind, target):
                    taken = figures(launch, target)
                    found = faults(launch, kind, target, taken)
                    wrong += bool(found) and target in CHECKED
                    words = "".join(f" ({fault})" for fault in found)
                    print(
                        f"{name:26}{kind:6}{target:8}{launch.name:26}{taken.registers:10}{taken.stack:7}"
                        f"{taken.shared:8}  {taken.matrix}{words}",
                        flush=True,
                    )
    return int(wrong > 0)


def print_loops(layers: Sequence[str], kinds: Sequence[str]) -> None:
    """Print what the main loops cost, on sm_90, and the times that follow for :data:`SAMPLES` samples."""
    print(
        f"{'layer':18}{'kind':6}{'kernel':30}{'blocks':>7}{'loop':>10}  {'loads: bytes x':18}{'spilled':8}{'waits':6}"
        f"{'issue':>7}{'products':>10}{'us':>8}{'floor':>8}{'x':>6}"
    )
    for name in layers:
        for kind in kinds:
            for launch in launches(LAYERS[name], kind, "sm_90", SAMPLES, WINDOWS.get(name.partition(",")[0], 64)):
                if (found := cost(LAYERS[name], launch, kind, "sm_90")) is None:
                    continue
                loop, times = found.loop, found.times
                widths = " ".join(f"{width}x{count}" for width, count in sorted(loop.loads.items()))
                print(
                    f"{name:18}{kind:6}{launch.name:30}{times.programs:7}"
                    f"{loop.instructions:6}x{launch.options['num_warps']:<3}  {widths:18}"
                    f"{loop.spilled or '':<8}{'all' * loop.waits:6}"
                    f"{times.issue:7.1f}{times.products:10.1f}{times.estimate * 1e6:8.1f}{times.floor * 1e6:8.1f}"
                    f"{times.estimate / times.floor:6.2f}",
                    flush=True,
                )


if __name__ == "__main__":
    sys.exit(main())
