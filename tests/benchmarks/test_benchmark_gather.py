"""First layers on gathered rows: all sides are right in every mode, wrong ones are seen, tokens are what they say."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from benchmarks import test_gather, test_gather_shapes
from benchmarks.checking import Wrong, check
from benchmarks.operations import gather, tokens
from benchmarks.operations.steps import MODES
from benchmarks.registry import Candidate, Case, Provider, candidates, comparisons, operation

SIZES = {"N": 3, "L": 30, "V": 11, "C": 5, "O": 8, "K": 3, "P": 2}
POOLS = {"max_pool1d": 2, "global_max_pool1d": 0}


def small(kind: str, pool: str, mode: str) -> Case:
    shape = {**SIZES, "P": POOLS[pool], **({"V": 100, "step": 2} if kind == "window" else {})}
    return Case(f"{kind}_conv1d_relu_{pool}", "small", shape, mode, input_gradient=False)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("kind", ["embedding", "window"])
def test_all_sides_are_right(kind, pool, mode):
    case = small(kind, pool, mode)
    gradients = {"weight gradient, exact", "bias gradient, exact"}
    gradients |= {"table gradient, exact"} if kind == "embedding" else set()
    expected = {"output, random", "output, exact"} | (gradients if mode in MODES[2:] else set())
    right = [one for one in candidates(case) if one.unavailable is None and "compile" not in one.provider.name]
    assert len(right) >= 3
    for candidate in right:
        assert check(candidate).keys() == expected


def planted(case: Case, function) -> Candidate:
    return Candidate(case, Provider("planted", lambda case: function))


def test_a_forgotten_repetition_of_a_token_is_seen():
    def embed(rows, table, weight, bias, pool_size):
        last = torch.zeros_like(rows).view(-1).scatter(0, rows.view(-1), 1).view(rows.shape).bool()
        places = torch.where(last[..., None], table[rows], table[rows].detach())
        return gather.compose(places, weight, bias, pool_size)

    assert check(planted(small("embedding", "max_pool1d", "forward"), embed))
    with pytest.raises(Wrong, match="table gradient is off by"):
        check(planted(small("embedding", "max_pool1d", "forward_backward"), embed))


def test_windows_that_begin_a_row_late_are_seen():
    def late(series, starts, *others):
        return gather.cut(series, starts + 1, *others)

    with pytest.raises(Wrong, match="output is off by"):
        check(planted(small("window", "max_pool1d", "forward"), late))


def test_a_table_folded_before_it_changed_is_seen():
    kept = []

    def stale(rows, table, weight, bias, pool_size):
        kept.append(table.clone())
        return gather.embed(rows, kept[0], weight, bias, pool_size)

    case = small("embedding", "max_pool1d", "forward")
    with pytest.raises(Wrong, match="exact inputs"):  # the second kind of inputs has another table
        check(planted(case, stale))


def test_ours_meets_gathering_and_torch():
    pairs = [
        one.against.provider.name
        for one in comparisons(gather.window_case("jena1", "forward"))
        if one.candidate.provider.ours
    ]
    assert pairs == ["torch eager", "torch eager, index_select", "windows filled, then seqconv's layer"]


@pytest.mark.parametrize("suite", [test_gather, test_gather_shapes])
def test_suites_name_known_cases(suite):
    for device in ("cpu", "cuda"):
        cases = suite.cases(device, False)
        assert cases
        assert set(map(str, suite.cases(device, True))) <= set(map(str, cases))
        assert all(operation(case.operation).providers and not case.input_gradient for case in cases)
    names = {
        case.name.partition(",")[0] for suite in (test_gather, test_gather_shapes) for case in suite.cases("cpu", False)
    }
    assert names == {name.partition(",")[0] for name in (*gather.EMBEDDINGS, *gather.WINDOWS)}


def test_a_case_says_where_its_reviews_are_from(monkeypatch, tmp_path):
    monkeypatch.delenv("SEQCONV_DATA", raising=False)
    monkeypatch.setenv("SEQCONV_CACHE", str(tmp_path))
    case = gather.embedding_case("imdb1", "forward")
    assert case.name == "imdb1, made-up reviews"
    tokens.reviews.cache_clear()
    inputs = operation(case.operation).inputs(replace(case, shape={**case.shape, "N": 4}), "random")
    assert inputs["tokens"].shape == (4, 500)
    assert inputs["tokens"].dtype == torch.int64
    tokens.reviews.cache_clear()
    tmp_path.joinpath("imdb.npz").touch()
    assert gather.embedding_case("imdb1", "forward").name == "imdb1, real reviews"


def test_words_follow_zipf_s_law():
    drawn = tokens.zipf(torch.Generator().manual_seed(0), (200, 500), 1000)
    counts = torch.bincount(drawn.view(-1), minlength=1000)
    assert counts.shape == (1000,)
    assert counts[0] / counts[9] == pytest.approx(10, rel=0.1)
    assert counts[1] / counts[99] == pytest.approx(50, rel=0.3)
