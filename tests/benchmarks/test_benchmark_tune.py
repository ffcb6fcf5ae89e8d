"""The tuner without a GPU: candidates, choice by a fake timer, cache, resumption, the table's text, refusals."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", reason="the package triton is not installed")

from benchmarks import tune, tune_cache, tune_tiles, tune_timing
from benchmarks.tune_tiles import TileKey
from seqconv.kernels.triton import configurations
from seqconv.kernels.triton.configurations import TILES, Forward, WeightGradient

ROOT = Path(__file__).resolve().parents[2]
START = Forward(64, 32, 16, 2, 4, 2)


def tiles_of(path: Path) -> dict:
    return {(one["kernel"], *one["layer"]): tuple(one["tile"]) for one in json.loads(path.read_text())}


def test_neighbours_differ_in_a_field_or_two_and_stay_within_bounds():
    around = tune_tiles.neighbours(START, size=7)
    assert START not in around
    assert len(around) == len(set(around))
    assert Forward(128, 32, 16, 2, 4, 2) in around
    assert Forward(128, 32, 16, 2, 8, 2) in around
    assert Forward(64, 32, 32, 2, 4, 1) in around
    for tile in around:
        assert sum(one != other for one, other in zip(tile, START, strict=True)) in (1, 2)
        for name, value in tile._asdict().items():
            least, most, doubles = tune_tiles.FIELDS[name]
            assert least <= value <= most
            assert not doubles or value & (value - 1) == 0
    assert all(tile.phases <= 2 for tile in tune_tiles.neighbours(START, size=2))
    assert all("phases" not in tile._fields for tile in tune_tiles.neighbours(WeightGradient(64, 128, 32, 4, 2), 7))


def test_no_candidate_depends_on_a_batch_or_a_length():
    """A key is a kernel and what its configuration depends on: it has no field for them."""
    (one,) = list(tune.entries(["jena1"], ["16"], ["forward"], "sm_90"))
    assert one.key == TileKey("forward", tuple(configurations.Layer._make(one.key.layer)))
    assert not {"samples", "length", "batch"} & set(configurations.Layer._fields)
    assert one.size == 5


def searched(times):
    """Return the search's best tile, its records, and what was asked, where tiles take what ``times`` says."""
    asked = []
    best, records = tune.search(START, 7, lambda tiles: asked.extend(tiles) or [times(tile) for tile in tiles])
    return best, records, asked


def took(**microseconds):
    return {"microseconds": microseconds}


SPILLS = {"faults": ["spills"]}


def test_search_goes_from_neighbour_to_neighbour_to_the_best():
    def times(tile):
        away = abs(tile.block_m - 256) / 64 + abs(tile.num_warps - 8)
        return took(a=100.0 + away, b=1.0 + away)

    best, records, asked = searched(times)
    assert (best.block_m, best.num_warps) == (256, 8)
    assert len(asked) == len(set(asked)) == len(records)


def test_all_sizes_count_alike_noise_moves_nothing_and_faults_are_no_times():
    """Three times slower at a size of microseconds is not made good by a tenth of the large one's milliseconds."""
    greedy = START._replace(block_m=128)
    alike = searched(lambda tile: took(small=30.0, large=900.0) if tile == greedy else took(small=10.0, large=1000.0))
    assert alike[0] == START
    assert searched(lambda tile: took(a=10.0 if tile == START else 9.9))[0] == START
    assert searched(lambda tile: took(a=9.0) if tile == START else SPILLS)[0] == START
    best, records, _ = searched(lambda tile: SPILLS)
    assert best == START
    assert tune.told(best, START, records, "card") == "kept: spills"
    # Where the tile in use spills, another that does not is better.
    assert searched(lambda tile: SPILLS if tile == START else took(a=sum(tile)))[0] != START


@pytest.fixture
def bench(monkeypatch, tmp_path):
    """Give a GPU that is none: what spills, how long tiles take, and a log of what was compiled and timed."""

    class Bench:
        lost = False
        path, tiles = tmp_path / "cache.json", tmp_path / "tiles.json"

        def main(self, *words: str) -> int:
            files = ["--cache", str(self.path), "--tiles", str(self.tiles)]
            options = ["--layers", "overlapping", "--kinds", "16", *files, "--jobs", "1"]
            return tune.main([*options, *words])

    state = Bench()
    state.compiled, state.timed = [], []

    def inspect(one, target, tile):
        state.compiled.append((one.key.kernel, tile))
        faults = ["spills 8 bytes"] if tile.num_warps == 2 else []
        return {"faults": faults}

    def measure(one, first):
        tile = TILES[(one.key.kernel, *one.key.layer)]
        state.timed.append((one.key.kernel, tile))
        if state.lost and len(state.timed) > 2:
            raise RuntimeError("CUDA error: misaligned address")
        return None, {"128x480": 1.0 + abs(tile[0] - 32), "4096x120": 100.0 + abs(tile[0] - 32)}

    monkeypatch.setattr(tune, "inspect", inspect)
    monkeypatch.setattr(tune_timing, "measure", measure)
    monkeypatch.setattr(tune_timing, "is_lost", lambda: state.lost)
    monkeypatch.setattr(tune, "architecture", lambda: "sm_90")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "Some Card 9000")
    return state


def test_a_run_writes_the_best_tiles(bench, capsys):
    assert bench.main() == 0
    written = tiles_of(bench.tiles)
    assert {key[0] for key in written} == {"forward", "weight_gradient", "input_gradient"}
    assert all(key[1] == "16" and key[-1] == "sm_90" and key[2:5] == (64, 64, 5) for key in written)
    assert all(tile[0] == 32 for tile in written.values())
    assert bench.tiles.read_text().count("Some Card 9000: 1 + 100 us at 128x480, 4096x120") == 3
    assert not TILES  # those in use are as before
    assert not any(tile[-2] == 2 for _, tile in bench.timed)  # spills
    out = capsys.readouterr().out
    assert "[3/3] overlapping: input_gradient" in out
    assert "3 of 3 entries timed" in out


def test_tiles_that_were_not_tuned_stay(bench):
    text = tune.updated(
        "[]", {TileKey("forward", ("16", 1)): ((1, 2), "card: 2 us"), TileKey("other", (3,)): ((4,), "card")}
    )
    text = tune.updated(text, {TileKey("forward", ("16", 1)): ((5, 6), "card: 1 us")})
    bench.tiles.write_text(text)
    assert tiles_of(bench.tiles) == {("forward", "16", 1): (5, 6), ("other", 3): (4,)}
    assert "card: 1 us" in text
    assert "card: 2 us" not in text
    assert tune.updated(text, {}) == text
    assert len(text.splitlines()) == 4


@pytest.mark.parametrize("part", [1.0, 0.5])
def test_another_run_goes_on_where_the_first_was_stopped(bench, part):
    bench.main()
    whole, text = json.loads(bench.path.read_text()), bench.tiles.read_text()
    kept = dict(list(whole["entries"].items())[: int(len(whole["entries"]) * part)])
    bench.path.write_text(json.dumps({**whole, "entries": kept}))
    bench.compiled.clear()
    bench.main()
    assert len(bench.compiled) == len(whole["entries"]) - len(kept)
    assert json.loads(bench.path.read_text())["entries"].keys() == whole["entries"].keys()
    assert bench.tiles.read_text() == text


@pytest.mark.parametrize("content", ["no JSON", '{"schema": 0}', '{"schema": 1, "entries": {"a": {}}}', "[]"])
def test_a_cache_that_is_none_is_named_and_replaced(bench, content, capsys):
    bench.path.write_text(content)
    assert bench.main("--kernels", "forward") == 0
    assert f"{bench.path} cannot be used" in capsys.readouterr().err
    assert not tune_cache.Cache(bench.path).trouble


def test_a_lost_gpu_ends_the_run_and_the_tile_is_not_tried_again(bench):
    bench.lost = True
    with pytest.raises(RuntimeError, match="misaligned"):
        bench.main("--kernels", "forward")
    last = bench.timed[-1]
    known = tune_cache.Cache(bench.path)
    assert sum("CUDA error" in str(one) for one in known.entries.values()) == 1
    bench.lost = False
    bench.timed.clear()
    assert bench.main("--kernels", "forward") == 0
    assert last not in bench.timed


def test_without_time_nothing_is_tried(bench, capsys):
    assert bench.main("--minutes", "-1") == 0
    assert not bench.compiled
    assert tiles_of(bench.tiles) == TILES
    assert "3 entries are left as they are" in capsys.readouterr().out


@pytest.mark.skipif(torch.cuda.is_available(), reason="concerns machines without a GPU")
def test_there_is_a_clear_end_without_a_gpu(capsys):
    assert tune.main(["--layers", "jena1"]) == 2
    assert "sees no GPU" in capsys.readouterr().err
    assert tune.main(["--layers", "jena1", "--kinds", "tf32", "--dry-run", "--target", "sm_80"]) == 0
    out = capsys.readouterr().out
    assert "3 entries for sm_80" in out
    assert "jena1: forward tf32 14 32 5" in out


def test_an_unknown_architecture_is_refused(monkeypatch, capsys):
    monkeypatch.setattr(tune, "architecture", lambda: "sm_75")
    assert tune.main([]) == 2
    assert "this GPU is sm_75" in capsys.readouterr().err


def test_cache_files_are_told_apart_by_card_triton_and_sources(monkeypatch, tmp_path):
    monkeypatch.setenv("SEQCONV_CACHE", str(tmp_path / "cache"))
    path = tune_cache.default_path("NVIDIA H100 80GB HBM3", "3.6.0")
    assert path.parent == tmp_path / "cache" / "tune"
    assert path.name.startswith("NVIDIA-H100-80GB-HBM3-triton-3.6.0-")
    assert tune_cache.default_path("NVIDIA H100 80GB HBM3", "3.7.1") != path
    for name, changes in (("kernel.py", True), ("configurations.py", False)):
        before = tune_cache.source_hash(tmp_path)
        tmp_path.joinpath(name).write_text("x = 1")
        assert (tune_cache.source_hash(tmp_path) != before) == changes


def test_a_tile_is_in_use_for_as_long_as_asked_for():
    (one,) = list(tune.entries(["jena1"], ["16"], ["forward"], "sm_90"))
    layer = configurations.Layer(*one.key.layer)
    other = Forward(16, 16, 16, 1, 2, 1)
    with tune.using(one.key, other):
        assert configurations.forward_configuration(layer) == other
    assert configurations.forward_configuration(layer) == one.tile
    absent = TileKey("forward", (*one.key.layer[:-1], "sm_61"))
    with tune.using(absent, other):
        assert (absent.kernel, *absent.layer) in TILES
    assert (absent.kernel, *absent.layer) not in TILES


def test_a_tile_is_compiled_for_a_card_that_is_not_there():
    if os.environ.get("TRITON_INTERPRET") == "1":
        pytest.skip("the interpreter compiles nothing")
    (one,) = list(tune.entries(["overlapping"], ["16"], ["weight_gradient"], "sm_90"))
    found = tune.inspect(one, "sm_90", one.tile)
    assert found["faults"] == []
    assert tune.inspect(one, "sm_90", one.tile._replace(block_r=48))["faults"]  # no power of two


PASSES = """
import torch
from benchmarks import tune, tune_timing
from seqconv.kernels.triton import configurations
for kernel in tune.KERNELS:
    call = tune_timing.problem("univariate", "ieee", kernel, 2, 12, "cpu")
    first = call()
    assert tune_timing.difference(first, call(), 0.0) is None
    key = {"forward": 1, "weight_gradient": 2, "input_gradient": 1}[kernel]
    assert len(first) == key, kernel
    assert all(one.isfinite().all() and one.abs().sum() > 0 for one in first)
    wrong = tuple(one * 1.01 for one in first)
    assert "results differ by 0.01" in tune_timing.difference(wrong, first, 1e-3)
print("well")
"""


def test_the_passes_that_are_timed_run_in_the_interpreter():
    process = subprocess.run(
        [sys.executable, "-c", PASSES],
        cwd=ROOT,
        env=os.environ | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
    )
    assert process.stdout.strip() == "well", process.stderr
