"""What was tried before on this card, with this Triton and these kernels: one JSON file, whole or not there."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.tune_tiles import TileKey
from seqconv.data.sources import cache_folder
from seqconv.files import write_text

SCHEMA = 1
KERNELS = Path(__file__).resolve().parent.parent / "kernels" / "triton"
NO_KERNELS = ("census.py", "configurations.py")  # what chooses tiles, and changes as they are chosen


class Cache:
    """Tiles with what they were found to be: ``faults`` (a list of words) or ``microseconds`` by size."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.trouble: str | None = None
        self.entries: dict[str, dict[str, Any]] = {}
        if path.exists():
            try:
                self.entries = entries_of(json.loads(path.read_text(encoding="utf-8")))
            except (OSError, ValueError) as error:
                self.trouble = f"{path} cannot be used ({error}): all tiles are tried anew"

    def get(self, key: TileKey, tile: Sequence[int]) -> dict[str, Any] | None:
        """Return what is known of a tile, or ``None``."""
        found: dict[str, Any] | None = self.entries.get(name(key, tile))
        return found

    def put(self, key: TileKey, tile: Sequence[int], known: Mapping[str, Any]) -> None:
        """Keep what was found, in the file too."""
        self.entries[name(key, tile)] = dict(known)
        write_text(self.path, json.dumps({"schema": SCHEMA, "entries": self.entries}, indent=0) + "\n")


def entries_of(content: Any) -> dict[str, dict[str, Any]]:
    """Return a file's entries; ``ValueError`` if it holds something else."""
    if not isinstance(content, dict) or content.get("schema") != SCHEMA or not isinstance(content.get("entries"), dict):
        raise ValueError(f"it is no cache of schema {SCHEMA}")
    entries = content["entries"]
    for one in entries.values():
        if not isinstance(one, dict) or not ("faults" in one or "microseconds" in one):
            raise ValueError("it holds an entry without faults and times")
    return dict(entries)


def name(key: TileKey, tile: Sequence[int]) -> str:
    """Return how an entry is called."""
    return f"{key}: {' '.join(map(str, tile))}"


def default_path(card: str, triton: str) -> Path:
    """Return where tiles tried on a card with a version of Triton and today's kernels are kept."""
    spelled = re.sub("[^A-Za-z0-9.]+", "-", f"{card} triton {triton} {source_hash()[:12]}")
    return cache_folder() / "tune" / f"{spelled}.json"


def source_hash(folder: str | os.PathLike[str] = KERNELS) -> str:
    """Return a hash of the kernels' and launches' sources."""
    digest = hashlib.sha256()
    for path in sorted(Path(folder).glob("*.py")):
        if path.name not in NO_KERNELS:
            digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()
