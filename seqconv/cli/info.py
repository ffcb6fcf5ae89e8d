"""``seqconv info``: versions, processor, threads, and which backends serve what."""

from __future__ import annotations

import argparse
import json

from seqconv.cli import options

__all__ = ["add_parser"]

EXAMPLES = """  seqconv info
  seqconv info --json
"""


def add_parser(commands: options.Commands) -> None:
    """Add the command."""
    command = options.add_command(commands, "info", "tell versions, CPU features, threads and backends", EXAMPLES)
    command.add_argument("--json", action="store_true", help="print JSON")
    command.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the environment and each operation's backends."""
    from tabulate import tabulate

    from seqconv import backends, environment
    from seqconv.data import gathering  # noqa: F401  (registers its operations)

    described = environment.describe()
    served = {operation: list(backends.names(operation)) for operation in backends.operations()}
    missing = backends.unavailable()
    if arguments.json:
        print(json.dumps(described | {"operations": served, "unavailable": missing}, indent=2))
        return 0
    machine, threads = described["machine"], described["threads"]
    print(f"machine: {machine['cores']} x {machine['cpu']}, {machine['memory_gib']} GiB, {machine['system']}")
    print(f"vector extensions: {', '.join(machine['simd']) or 'none known'}")
    print(f"GPUs: {', '.join(machine['gpus']) or 'none'}")
    print(f"versions: {', '.join(f'{name} {version}' for name, version in described['versions'].items())}")
    print(f"threads: torch {threads['torch']}, numba {threads['numba']}; commit: {described['commit'] or 'none'}")
    print()
    rows = [
        [operation, *["yes" if name in have else "no kernel" for name in backends.BACKENDS]]
        for operation, have in served.items()
    ]
    print(tabulate(rows, headers=["operation", *backends.BACKENDS]))
    for name, reason in missing.items():
        print(f"{name}: cannot run here: {reason}")
    return 0
