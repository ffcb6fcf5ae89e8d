"""Choose the GPU kernels' tiles by timing them, and write them to ``kernels/triton/tiles.json``.

For each layer of the census, kind of number and kernel: starting from the tile in use, tiles around it are compiled;
those that spill, take too much shared memory or miss the tensor cores are dropped, the others checked against the
first one's results and timed on the GPU at several sizes; then on from the best, until no neighbour is better. A tile
is judged by the sum over all sizes of its time over the first one's: a configuration never depends on a batch or a
length. What was tried is kept on disk by card, version of Triton and the kernels' sources, and is not tried again.
Tiles of other architectures, layers and kernels stay as they are.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from importlib import metadata
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from benchmarks.tune_cache import Cache, default_path
from benchmarks.tune_tiles import Record, TileKey, TuningEntry, entries, neighbours, search, using
from seqconv.files import write_text
from seqconv.kernels.triton.configurations import TILES_FILE

KERNELS = ("forward", "weight_gradient", "input_gradient")
Tuned = tuple[tuple[int, ...], str]  # a tile, and how it was timed
MOST_PROCESSES = 12


def main(arguments: Sequence[str] | None = None) -> int:
    """Tune what the command line asks for; return 0, or 2 without a GPU."""
    try:
        from seqconv.kernels.triton import census
    except ImportError as error:
        print(f"tune: {error}", file=sys.stderr)
        return 2
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tune", description=__doc__)
    parser.add_argument("--layers", nargs="+", choices=list(census.LAYERS), default=list(census.LAYERS), metavar="NAME")
    parser.add_argument("--kinds", nargs="+", choices=list(census.KINDS), default=list(census.KINDS))
    parser.add_argument("--kernels", nargs="+", choices=KERNELS, default=list(KERNELS))
    parser.add_argument("--minutes", type=float, default=20.0, help="after so many nothing more is tried (20)")
    parser.add_argument("--dry-run", action="store_true", help="list entries and the tiles around theirs; needs no GPU")
    parser.add_argument("--target", choices=list(census.TARGETS), help="for a dry run without a GPU (sm_90)")
    parser.add_argument("--tiles", type=Path, default=TILES_FILE, metavar="FILE", help="where to write the tiles")
    parser.add_argument("--cache", type=Path, metavar="FILE", help="what was tried (a file in seqconv's cache folder)")
    parser.add_argument("--jobs", type=int, help="processes that compile")
    options = parser.parse_args(arguments)
    target = options.target if options.dry_run and options.target else architecture() or "sm_90"
    if target not in census.TARGETS:
        print(f"tune: the census knows {', '.join(census.TARGETS)}; this GPU is {target}", file=sys.stderr)
        return 2
    found = list(entries(options.layers, options.kinds, options.kernels, target))
    if options.dry_run:
        for one in found:
            around = neighbours(one.tile, one.size)
            print(f"{one.layer}: {one.key}: {tuple(one.tile)}, around it {len(around)}:")
            print(f"  {', '.join(str(tuple(tile)) for tile in around)}")
        print(f"{len(found)} entries for {target}")
        return 0
    if architecture() is None:
        print(f"tune: torch {torch.__version__} sees no GPU to time tiles on; --dry-run lists them", file=sys.stderr)
        return 2
    card = torch.cuda.get_device_name()
    cache = Cache(options.cache or default_path(card, metadata.version("triton")))
    if cache.trouble:
        print(f"tune: {cache.trouble}", file=sys.stderr)
    print(f"tune: {card} ({target}): {len(found)} entries; what was tried: {cache.path}, {len(cache.entries)} tiles")
    tuned = run(found, target, card, cache, 60 * options.minutes, options.jobs)
    write_text(options.tiles, updated(TILES_FILE.read_text(encoding="utf-8"), tuned))
    print(f"written: {options.tiles}, {len(tuned)} of {len(found)} entries timed")
    return 0


def updated(text: str, tuned: Mapping[TileKey, Tuned]) -> str:
    """Return the text of a file of tiles with those that were tuned, in place of their keys' others or behind them."""
    entries = {(one["kernel"], *one["layer"]): one for one in json.loads(text)}
    for key, (tile, timed) in tuned.items():
        entries[key.kernel, *key.layer] = {"kernel": key.kernel, "layer": key.layer, "tile": tile, "timed": timed}
    return "[" + ",".join(f"\n{json.dumps(one)}" for one in entries.values()) + "\n]\n"


def run(
    found: Sequence[TuningEntry], target: str, card: str, cache: Cache, seconds: float, jobs: int | None = None
) -> dict[TileKey, Tuned]:
    """Tune entries until the time is over or all are done; an interrupt ends it early, with what is known."""
    deadline = time.monotonic() + seconds
    tuned: dict[TileKey, Tuned] = {}
    with compilers(jobs) as compile_all:
        try:
            for number, one in enumerate(found):
                if time.monotonic() > deadline:
                    rest = len(found) - number
                    print(f"tune: {seconds / 60:g} minutes were over: {rest} entries are left as they are")
                    break
                attempt = partial(trying, one, target, cache, compile_all, deadline)
                best, records = search(one.tile, one.size, attempt)
                line = told(best, one.tile, records, card)
                print(f"[{number + 1}/{len(found)}] {one.layer}: {one.key}: {tuple(best)}: {line}", flush=True)
                if "microseconds" in records[best]:
                    tuned[one.key] = tuple(best), line
        except KeyboardInterrupt:
            print("tune: interrupted")
    return tuned


def trying(
    one: TuningEntry, target: str, cache: Cache, compile_all: Callable[..., Any], deadline: float, tiles: list[Any]
) -> list[Record]:
    """Return what is known of tiles, from the cache or by compiling and timing them; both are kept."""
    unknown = [tile for tile in tiles if cache.get(one.key, tile) is None]
    if unknown and time.monotonic() < deadline:
        for tile, compiled in zip(unknown, compile_all(partial(inspect, one, target), unknown), strict=True):
            if compiled["faults"]:
                cache.put(one.key, tile, compiled)
            elif time.monotonic() < deadline:
                cache.put(one.key, tile, timing_of(one, tile, cache))
    return [cache.get(one.key, tile) or {} for tile in tiles]


def timing_of(one: TuningEntry, tile: Any, cache: Cache) -> Record:
    """Return a tile's times, or why there are none; a GPU that is lost is kept as that tile's fault, then raised."""
    from benchmarks import tune_timing

    try:
        with using(one.key, tile):
            wrong, microseconds = tune_timing.measure(one, one.tile)
    except Exception as error:
        fault = {"faults": [" ".join(f"{type(error).__name__}: {error}".split())[:300]]}
        if tune_timing.is_lost():
            cache.put(one.key, tile, fault)
            raise
        return fault
    return {"faults": [wrong]} if wrong else {"microseconds": microseconds}


def inspect(one: TuningEntry, target: str, tile: Any) -> Record:
    """Compile a kernel with a tile for a target; return its ``faults``."""
    from seqconv.kernels.triton import census

    try:
        with using(one.key, tile):
            for launch in census.launches(census.LAYERS[one.layer], one.kind, target):
                kernel = "forward" if launch.name.startswith("forward") else launch.name.removesuffix("_kernel")
                if kernel == one.key.kernel:
                    return {"faults": census.faults(launch, one.kind, target, census.figures(launch, target))}
    except Exception as error:  # what the compiler raises is no tile to use
        return {"faults": [" ".join(f"{type(error).__name__}: {error}".split())[:300]]}
    return {"faults": ["no such launch"]}


@contextmanager
def compilers(jobs: int | None) -> Iterator[Callable[[Callable[[Any], Record], list[Any]], list[Record]]]:
    """Give what applies a function to tiles in several processes, in this one if ``jobs`` is 1."""
    count = jobs or min(MOST_PROCESSES, max((os.cpu_count() or 1) - 1, 1))
    with ExitStack() as stack:
        if count == 1:
            yield lambda function, tiles: [function(tile) for tile in tiles]
        else:
            pool = stack.enter_context(ProcessPoolExecutor(count, mp_context=get_context("spawn")))
            yield lambda function, tiles: list(pool.map(function, tiles))


def told(best: Any, start: Any, records: dict[Any, Record], card: str) -> str:
    """Return how a tile was found, in a line."""
    tried = sum("microseconds" in record for record in records.values())
    record, first = records[best], records[start]
    if "microseconds" not in record:
        return f"kept: {'; '.join(record.get('faults', ['there was no time']))}"
    spelled = " + ".join(f"{value:.3g}" for value in record["microseconds"].values())
    line = f"{card}: {spelled} us at {', '.join(record['microseconds'])}; {tried} of {len(records)} tiles timed"
    if best != start and "microseconds" in first:
        line += f"; {tuple(start)}: {' + '.join(f'{value:.3g}' for value in first['microseconds'].values())}"
    return line


def architecture() -> str | None:
    """Return the current GPU's architecture as a layer names it, ``None`` without a GPU."""
    if not torch.cuda.is_available():
        return None
    from seqconv.kernels.triton import launch

    return launch.architecture(torch.device("cuda", torch.cuda.current_device()))


if __name__ == "__main__":
    sys.exit(main())
