"""``seqconv warmup``: compile the CPU kernels now, so that no first call has to."""

from __future__ import annotations

import argparse
import time

from seqconv.cli import options

__all__ = ["add_parser"]

EXAMPLES = """  seqconv warmup
  seqconv warmup --dtype float32 float64
  seqconv warmup --inference              in an image that only ever predicts
"""


def add_parser(commands: options.Commands) -> None:
    """Add the command."""
    command = options.add_command(commands, "warmup", "compile the CPU kernels, or load them if they are", EXAMPLES)
    command.add_argument(
        "--dtype", nargs="+", choices=["float32", "float64"], default=["float32"], help="dtypes to compile for"
    )
    command.add_argument("--inference", action="store_true", help="leave out what only training needs")
    command.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Compile, telling after each part how long it took."""
    import torch

    import seqconv

    dtypes = [getattr(torch, name) for name in dict.fromkeys(arguments.dtype)]
    begin = time.perf_counter()
    seqconv.warmup(
        *dtypes,
        gradients=not arguments.inference,
        report=lambda part, taken: print(f"{part}: {taken:.2f} s", flush=True),
    )
    print(f"all: {time.perf_counter() - begin:.2f} s")
    return 0
