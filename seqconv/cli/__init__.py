"""The ``seqconv`` command: compare and train the notebook's models, predict, look after data, tell about the machine.

Exit codes: 0 for success, 1 for a failure (with one line on stderr that says what failed), 2 for wrong usage, 130 after
Ctrl-C and 143 after SIGTERM (what was trained so far is kept).
"""

from __future__ import annotations

import argparse
import io
import logging
import os
import sys
from collections.abc import Sequence

from seqconv import __version__

__all__ = ["main"]

EXAMPLES = """examples:
  seqconv compare all                                   both tasks on whatever data is at hand
  seqconv compare imdb --preset notebook --data-dir ~/data
  seqconv train jena --model convnet --epochs 5 --out runs/jena --resume
  seqconv predict runs/jena station.csv --out predictions.csv
  seqconv data describe jena
  seqconv warmup                                        compile the kernels before they are needed
  seqconv info --json
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line ``argv`` (by default the process's own) and return its exit code."""
    make_streams_safe()
    arguments = parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO if arguments.verbose else logging.WARNING, format="%(name)s: %(message)s")
    try:
        code: int = arguments.run(arguments)
        sys.stdout.flush()
    except KeyboardInterrupt as interrupt:
        print(f"\n{str(interrupt) or 'interrupted'}", file=sys.stderr)
        return int(getattr(interrupt, "code", 130))
    except BrokenPipeError:
        # The reader, a pager say, has gone; there is nobody left to tell, and nothing more to flush at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (ArithmeticError, OSError, RuntimeError, TypeError, ValueError) as error:
        if arguments.traceback:
            raise
        print(f"seqconv: error: {error}", file=sys.stderr)
        return 1
    return code


def make_streams_safe() -> None:
    """Let every ``print`` succeed: to nowhere where a stream was closed, escaped where its encoding lacks a letter."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115  kept open to the end
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def parser() -> argparse.ArgumentParser:
    """Return the command's parser; each subcommand's file adds its own part."""
    from seqconv.cli import compare, data, info, predict, train, warmup

    top = argparse.ArgumentParser(
        prog="seqconv", description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    top.add_argument("--version", action="version", version=f"seqconv {__version__}")
    top.add_argument("--verbose", action="store_true", help="log which backend was chosen, and why")
    top.add_argument("--traceback", action="store_true", help="show where an error came from")
    commands = top.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for command in (compare, train, predict, data, info, warmup):
        command.add_parser(commands)
    return top
