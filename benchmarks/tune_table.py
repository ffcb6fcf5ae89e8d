"""The text of ``kernels/triton/table.py``, with tuned entries in their place and all others as they stand."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmarks.tune_tiles import Key

PATH = Path(__file__).resolve().parent.parent / "kernels" / "triton" / "table.py"
WIDTH = 120
TIMED = "    # timed: "
BEGIN = "TABLE: dict[tuple[Any, ...], tuple[int, ...]] = {"
UNTIMED = "No times: none of\nthese tiles has been tried on a GPU."
SOME_TIMED = "A line above an\nentry tells what its tile took on a GPU; ``python -m benchmarks.tune`` writes those."
ENTRY = re.compile(r"^    (\(.*\)): (\([^()]*\)),(  # .*)?$")


@dataclass(frozen=True)
class Tuned:
    """A chosen tile: the layer's name, its figures as compiled (may be empty), and how it was timed."""

    layer: str
    tile: tuple[int, ...]
    figures: str
    timed: str


def updated(text: str, tuned: Mapping[Key, Tuned]) -> str:
    """Return the table's text with the tuned entries: in place of those of their keys, else behind their layer's."""
    head, lines, tail = parts(text)
    left = {spelled(key): one for key, one in tuned.items()}
    section, result = "", list[str]()
    for line in lines:
        if line.startswith("    # ") and not line.startswith(TIMED):
            result += appended(section, left)
            section = line.removeprefix("    # ")
        found = ENTRY.match(line)
        if found and found[1] in left:
            if result and result[-1].startswith(TIMED):
                result.pop()
            result += entry(found[1], left.pop(found[1]))
        else:
            result.append(line)
    result += appended(section, left)
    for layer in dict.fromkeys(one.layer for one in left.values()):
        result += [f"    # {layer}", *appended(layer, left)]
    if tuned:
        head = head.replace(UNTIMED + " ", SOME_TIMED + "\n").replace(UNTIMED, SOME_TIMED)
    return "\n".join([*head.splitlines(), *result, *tail.splitlines()]) + "\n"


def refreshed(text: str, compiled: str) -> str:
    """Return the table's text with the figures of entries as ``compiled``, another such text, has them."""
    head, lines, tail = parts(text)
    figures = {found[1]: found for line in parts(compiled)[1] if (found := ENTRY.match(line))}
    result = []
    for line in lines:
        found = ENTRY.match(line)
        other = found and figures.get(found[1])
        same = found and other and found[2] == other[2]
        result.append(other[0] if same and other else line)
    return "\n".join([*head.splitlines(), *result, *tail.splitlines()]) + "\n"


def parts(text: str) -> tuple[str, list[str], str]:
    """Return what stands before the entries, the lines with them, and the end."""
    head, begin, rest = text.partition(BEGIN + "\n")
    if not begin or not rest.rstrip().endswith("}"):
        raise ValueError(f"{PATH.name} must hold the line {BEGIN!r} and end with a brace")
    return head + begin, rest.rstrip()[:-1].rstrip("\n").splitlines(), "}"


def appended(section: str, left: dict[str, Tuned]) -> list[str]:
    """Return the lines of a section's tuned entries that had none before; they are taken out of ``left``."""
    keys = [key for key, one in left.items() if one.layer == section]
    return [line for key in keys for line in entry(key, left.pop(key))]


def entry(key: str, one: Tuned) -> list[str]:
    """Return an entry's lines: how it was timed, then key, tile and, where there is room, figures."""
    line = f"    {key}: {one.tile},"
    with_figures = f"{line}  # {one.figures}" if one.figures else line
    fits = len(with_figures) <= WIDTH
    timed = f"{TIMED}{one.timed}" if fits else f"{TIMED}{one.timed}; {one.figures}"
    return [timed[:WIDTH], with_figures if fits else line]


def spelled(key: Key) -> str:
    """Return a key as the table has it."""
    words = (f'"{one}"' if isinstance(one, str) else str(one) for one in (key.kernel, *key.layer))
    return f"({', '.join(words)})"
