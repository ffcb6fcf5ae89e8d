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

from benchmarks import tune, tune_cache, tune_table, tune_tiles, tune_timing
from benchmarks.tune_table import Tuned
from benchmarks.tune_tiles import Key
from seqconv.kernels.triton import configurations
from seqconv.kernels.triton.configurations import Forward, WeightGradient
from seqconv.kernels.triton.table import TABLE

ROOT = Path(__file__).resolve().parents[2]
START = Forward(64, 32, 16, 2, 4, 2)


def table_of(text: str) -> dict:
    scope: dict = {}
    exec(text, scope)
    return scope["TABLE"]


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
    """A key holds what the table's keys hold: it has no field for them."""
    (one,) = list(tune.entries(["jena1"], ["16"], ["forward"], "sm_90"))
    assert one.key == Key("forward", tuple(configurations.Layer._make(one.key.layer)))
    assert not {"samples", "length", "batch"} & set(configurations.Layer._fields)
    assert (one.key.kernel, *one.key.layer) in TABLE
    assert one.size == 5


def searched(times):
    """Return the search's best tile, its records, and what was asked, where tiles take what ``times`` says."""
    asked = []
    best, records = tune.search(START, 7, lambda tiles: asked.extend(tiles) or [times(tile) for tile in tiles])
    return best, records, asked


def took(**microseconds):
    return {"microseconds": microseconds, "figures": ""}


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
        path, table = tmp_path / "cache.json", tmp_path / "table.py"

        def main(self, *words: str) -> int:
            files = ["--cache", str(self.path), "--table", str(self.table)]
            options = ["--layers", "overlapping", "--kinds", "16", *files, "--jobs", "1"]
            return tune.main([*options, *words])

    state = Bench()
    state.compiled, state.timed = [], []

    def inspect(one, target, tile):
        state.compiled.append((one.key.kernel, tile))
        faults = ["spills 8 bytes"] if tile.num_warps == 2 else []
        return {"faults": faults, "figures": f"{tile.num_warps} regs, 1 B, wgmma"}

    def measure(one, first):
        tile = TABLE[(one.key.kernel, *one.key.layer)]
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


def test_a_run_writes_the_best_tiles_and_keeps_everything_else(bench, capsys):
    before = dict(TABLE)
    assert bench.main() == 0
    assert before == TABLE
    written = table_of(bench.table.read_text())
    changed = {key for key in TABLE if written[key] != TABLE[key]}
    assert written.keys() == TABLE.keys()
    assert {key[0] for key in changed} <= {"forward", "weight_gradient", "input_gradient"}
    assert changed
    assert all(key[1] == "16" and key[-1] == "sm_90" and key[2:5] == (64, 64, 5) for key in changed)
    assert all(written[key][0] == 32 for key in changed)
    text = bench.table.read_text()
    assert text.count("# timed: Some Card 9000: 1 + 100 us at 128x480, 4096x120") == 3
    assert max(map(len, text.splitlines())) <= 120
    assert not any(tile[-2] == 2 for _, tile in bench.timed)  # spills
    out = capsys.readouterr().out
    assert "[3/3] overlapping: input_gradient" in out
    assert "3 of 3 entries timed" in out


@pytest.mark.parametrize("part", [1.0, 0.5])
def test_another_run_goes_on_where_the_first_was_stopped(bench, part):
    bench.main()
    whole, text = json.loads(bench.path.read_text()), bench.table.read_text()
    kept = dict(list(whole["entries"].items())[: int(len(whole["entries"]) * part)])
    bench.path.write_text(json.dumps({**whole, "entries": kept}))
    bench.compiled.clear()
    bench.main()
    assert len(bench.compiled) == len(whole["entries"]) - len(kept)
    assert json.loads(bench.path.read_text())["entries"].keys() == whole["entries"].keys()
    assert bench.table.read_text() == text


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
    assert table_of(bench.table.read_text()) == TABLE
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
    for name, changes in (("kernel.py", True), ("table.py", False)):
        before = tune_cache.source_hash(tmp_path)
        tmp_path.joinpath(name).write_text("x = 1")
        assert (tune_cache.source_hash(tmp_path) != before) == changes


def test_the_table_s_text_round_trips():
    text = tune_table.PATH.read_text()
    assert tune_table.updated(text, {}) == text
    first = next(key for key in TABLE if key[0] == "forward")
    known, new = Key(first[0], first[1:]), Key("forward", (*first[1:-1], "sm_100"))
    tuned = {
        known: Tuned("imdb1", (16, 16, 16, 1, 2, 1), "9 regs, 9 B, mma", "card: 1.5 us"),
        new: Tuned("imdb1", (32, 16, 16, 1, 2, 1), "", "card: 2.5 us"),
        Key("other", (1, "x")): Tuned("a new layer", (1, 2), "9 regs", "card: 3.5 us"),
    }
    written = tune_table.updated(text, tuned)
    expected = {
        **TABLE,
        first: (16, 16, 16, 1, 2, 1),
        (new.kernel, *new.layer): (32, 16, 16, 1, 2, 1),
        ("other", 1, "x"): (1, 2),
    }
    assert table_of(written) == expected
    assert "No times" not in written
    lines = written.splitlines()
    place = next(number for number, line in enumerate(lines) if "(16, 16, 16, 1, 2, 1)" in line)
    assert lines[place - 1] == "    # timed: card: 1.5 us"
    assert lines[place].endswith("# 9 regs, 9 B, mma")
    assert lines.index("    # a new layer") > place
    # again, with another time: the line above is replaced, not added to
    again = tune_table.updated(written, {known: Tuned("imdb1", (16, 16, 16, 1, 2, 1), "", "card: 1.25 us")})
    assert again.count("# timed: ") == 3
    assert "card: 1.5 us" not in again


def test_figures_are_refreshed_where_the_tile_is_the_same():
    text = tune_table.PATH.read_text()
    first, second = [line for line in text.splitlines() if tune_table.ENTRY.match(line)][:2]
    compiled = text.replace(first, first.partition("  # ")[0] + "  # 1 regs, 1 B, fma")
    compiled = compiled.replace(second, second.replace("): (", "): (16, ").partition("  # ")[0])
    found = tune_table.refreshed(text, compiled).splitlines()
    assert first.partition("  # ")[0] + "  # 1 regs, 1 B, fma" in found
    assert second in found


def test_a_tile_is_in_use_for_as_long_as_asked_for():
    (one,) = list(tune.entries(["jena1"], ["16"], ["forward"], "sm_90"))
    layer = configurations.Layer(*one.key.layer)
    other = Forward(16, 16, 16, 1, 2, 1)
    with tune.using(one.key, other):
        assert configurations.forward_configuration(layer) == other
    assert configurations.forward_configuration(layer) == one.tile
    absent = Key("forward", (*one.key.layer[:-1], "sm_61"))
    with tune.using(absent, other):
        assert (absent.kernel, *absent.layer) in TABLE
    assert (absent.kernel, *absent.layer) not in TABLE


def test_a_tile_is_compiled_for_a_card_that_is_not_there():
    if os.environ.get("TRITON_INTERPRET") == "1":
        pytest.skip("the interpreter compiles nothing")
    (one,) = list(tune.entries(["overlapping"], ["16"], ["weight_gradient"], "sm_90"))
    found = tune.inspect(one, "sm_90", one.tile)
    assert found["faults"] == []
    assert found["figures"].endswith("wgmma")
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
