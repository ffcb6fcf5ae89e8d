"""What the main loop of a compiled kernel costs, told from its machine code, and the time that follows from that.

The main loop is the innermost one with the most multiply-adds. Its *issue* clocks are those in which the schedulers of
a multiprocessor, four, issue the instructions of all warps of a program: one a clock, of integers, comparisons and
selections one in two. Its *product* clocks are those that the multiply-adds take at the hardware's rate. Where other
programs fill every wait, the longer of both passes. The time of a launch is estimated from the loop, or from its bytes
where these take longer; its floor knows the useful multiply-adds and the bytes alone. Both tell where a kernel stands
and whether a change made it worse, not what a clock would show: see benchmarks/gpu_notes.md for that.
"""

from __future__ import annotations

import math
import re
import subprocess
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

__all__ = ["Instruction", "Loop", "Machine", "Times", "disassembled", "instructions", "main_loop", "times"]


class Machine(NamedTuple):
    """A GPU: multiprocessors, clocks a second, bytes a second, multiply-adds of a multiprocessor and clock by kind."""

    processors: int
    clock: float
    bandwidth: float
    rates: dict[str, int]
    registers: int = 65536
    shared: int = 228 * 1024
    warps: int = 64


H100 = Machine(132, 1.755e9, 3.0e12, {"16": 2048, "tf32": 1024, "ieee": 128})
# Multiply-adds of one instruction; of HGMMA for a warpgroup, four warps, of the others for a warp.
SHAPED = re.compile(r"^(HGMMA\.|HMMA\.)(\d+)x(\d+)x(\d+)")
PACKED_SHAPES = {"HMMA.16816": 16 * 8 * 16, "HMMA.1688": 16 * 8 * 8, "HMMA.1684": 16 * 8 * 4}
# Operations of the units that have half a warp's lanes.
HALVED = {
    "IADD3", "IMAD", "IMNMX", "VIADD", "VIMNMX", "ISETP", "LEA", "LOP3", "SHF", "PRMT", "PLOP3", "SEL", "FSEL", "FSETP",
    "FMNMX", "IABS", "P2R", "R2P", "FCHK",
}  # fmt: skip
WIDTHS = {"128": 16, "64": 8, "U16": 2, "S16": 2, "U8": 1, "S8": 1}
LINE = re.compile(r"/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.x]*)([^;]*);")


class Instruction(NamedTuple):
    """An instruction at its address, with what it is given as text."""

    address: int
    operation: str
    operands: str


class Loop(NamedTuple):
    """A loop: instructions of one turn of a warp, multiply-adds of a program's turn, loads by their bytes a thread.

    ``halved`` of the instructions take two clocks; ``spilled`` are the loads and stores of registers that did not
    suffice; ``waits`` tells that a turn which copies to shared memory waits for all copies, those that it began last
    too.
    """

    instructions: int
    halved: int
    multiply_adds: int
    loads: dict[int, int]
    spilled: int
    waits: bool

    def clocks(self, warps: int, rate: int) -> tuple[float, float]:
        """Return the issue and the product clocks of a turn."""
        return max(self.instructions, 2 * self.halved) * warps / 4, self.multiply_adds / rate


class Times(NamedTuple):
    """Programs that a multiprocessor holds; clocks for 65,536 useful multiply-adds; seconds, estimated and at best."""

    programs: int
    issue: float
    products: float
    estimate: float
    floor: float


def disassembled(binary: bytes) -> str:
    """Return the text that the disassembler in Triton's package makes of a kernel for NVIDIA's GPUs."""
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "kernel.cubin")
        path.write_bytes(binary)
        return subprocess.run([str(tool), "-sass", str(path)], capture_output=True, text=True, check=True).stdout


def instructions(text: str) -> list[Instruction]:
    """Return the instructions of a disassembled kernel."""
    return [Instruction(int(at, 16), operation, rest.strip()) for at, operation, rest in LINE.findall(text)]


def main_loop(code: list[Instruction], warps: int) -> Loop | None:
    """Return the innermost loop with the most multiply-adds of a program of so many warps; ``None`` if none has any."""
    found = [
        (int(target[1], 16), one.address)
        for one in code
        if one.operation.split(".")[0] == "BRA" and (target := re.search(r"0x([0-9a-f]+)", one.operands))
    ]
    spans = [span for span in found if span[0] < span[1]]
    innermost = [span for span in spans if not any(other != span and _within(other, span) for other in spans)]
    loops = [_loop([one for one in code if begin <= one.address <= end], warps) for begin, end in innermost]
    best = max(loops, key=lambda loop: loop.multiply_adds, default=None)
    return best if best is not None and best.multiply_adds else None


def _within(inner: tuple[int, int], outer: tuple[int, int]) -> bool:
    return outer[0] <= inner[0] and inner[1] <= outer[1]


def _loop(code: list[Instruction], warps: int) -> Loop:
    loads: Counter[int] = Counter()
    for one in code:
        name, *parts = one.operation.split(".")
        if name in ("LDG", "LDGSTS"):
            loads[next((WIDTHS[part] for part in parts if part in WIDTHS), 4)] += 1
    halved = sum(one.operation.split(".")[0] in HALVED for one in code)
    spilled = sum(one.operation.startswith(("LDL", "STL")) for one in code)
    copies = any(one.operation.startswith("LDGSTS") for one in code)
    waits = any(one.operation == "DEPBAR.LE" and re.fullmatch(r"SB0, 0x0", one.operands) for one in code)
    products = sum(_multiply_adds(one.operation, warps) for one in code)
    return Loop(len(code), halved, products, dict(loads), spilled, copies and waits)


def _multiply_adds(operation: str, warps: int) -> int:
    """Return the multiply-adds of an instruction that all warps of a program execute."""
    if shape := SHAPED.match(operation):
        return math.prod(int(one) for one in shape.groups()[1:]) * (warps // 4 if shape[1] == "HGMMA." else warps)
    packed = next((number for name, number in PACKED_SHAPES.items() if operation.startswith(name)), 0)
    return (packed or 32 * (operation.split(".")[0] == "FFMA")) * warps


def times(
    loop: Loop, kind: str, warps: int, taken: Any, useful: float, executed: float, moved: float, machine: Machine = H100
) -> Times:
    """Return what a launch takes by its main loop.

    ``taken`` has the kernel's ``registers`` a thread and ``shared`` bytes; ``useful`` are the multiply-adds that the
    result needs, ``executed`` those of whole tiles; ``moved`` are the bytes of all its tensors.
    """
    rate = machine.rates[kind]
    issue, products = (executed / loop.multiply_adds * clocks for clocks in loop.clocks(warps, rate))
    registers = -(-taken.registers // 8) * 8 * 32 * warps
    held = min(machine.registers // registers, machine.shared // (taken.shared + 1024), machine.warps // warps)
    speed, least = machine.processors * machine.clock, moved / machine.bandwidth
    unit = useful / 2**16
    return Times(
        held,
        issue / unit,
        products / unit,
        max(issue / speed, products / speed, least),
        max(useful / rate / speed, least),
    )
