"""Folded tables that inference keeps: when they are made, and that whatever changes table or weight is noticed."""

import copy
import gc
import math
import threading

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import seqconv
from seqconv.functional import embedding_conv1d_relu_global_max_pool1d, folded
from seqconv.functional.passes import passes
from seqconv.kernels.numba.fold import folded_shape

WORDS, CHANNELS, OUTPUTS, SIZE = 50, 8, 6, 3


@pytest.fixture(autouse=True)
def _empty(monkeypatch):
    torch.manual_seed(5)
    monkeypatch.delenv(folded.VARIABLE, raising=False)
    folded._kept.clear()
    folded._saved.clear()
    yield
    folded._kept.clear()
    folded._saved.clear()


@pytest.fixture
def folds(monkeypatch):
    """Return the list of the tables folded for keeping."""
    made, fold = [], passes("numba", "embedding_conv1d_relu_max_pool1d").fold

    def spy(table, weight, *rest, **options):
        made.append(table)
        return fold(table, weight, *rest, **options)

    found = {
        name: passes("numba", name)._replace(fold=spy)
        for name in ("embedding_conv1d_relu_max_pool1d", "embedding_conv1d_relu_global_max_pool1d")
    }
    monkeypatch.setattr(folded, "passes", lambda backend, name: found.get(name) or passes(backend, name))
    return made


def layer(pool=True, dtype=torch.float32):
    if pool:
        return seqconv.EmbeddingConvReLUMaxPool1d(WORDS, CHANNELS, OUTPUTS, SIZE, 2, dtype=dtype, backend="numba")
    return seqconv.EmbeddingConvReLUGlobalMaxPool1d(WORDS, CHANNELS, OUTPUTS, SIZE, dtype=dtype, backend="numba")


def expected(one, tokens):
    active = F.relu(F.conv1d(one.embedding(tokens).transpose(1, 2), one.conv.weight, one.conv.bias))
    return F.max_pool1d(active, 2) if hasattr(one, "pool_size") else active.max(-1).values


def is_right(one, tokens):
    """Compare in float64: the kept table must be that of today's weights."""
    with torch.no_grad():
        return torch.allclose(one(tokens), expected(one, tokens), rtol=1e-12, atol=1e-12)


def warm(one, tokens=None):
    """Call until the folded table is there, and return tokens."""
    tokens = torch.randint(WORDS, (9, 40)) if tokens is None else tokens
    with torch.no_grad():
        for _ in range(3):
            one(tokens)
    assert folded.is_kept("numba", one.embedding.weight, one.conv.weight)
    return tokens


@pytest.mark.parametrize("pool", [True, False])
def test_folds_once_what_is_used_again(pool, folds):
    one = layer(pool)
    tokens = torch.randint(WORDS, (9, 40))
    with torch.no_grad():
        results = [one(tokens) for _ in range(6)]
    assert len(folds) == 1
    assert all(torch.allclose(result, results[0], rtol=1e-5, atol=1e-6) for result in results)
    with torch.inference_mode():
        one(tokens)
    assert len(folds) == 1


def test_few_tokens_wait_until_folding_has_paid(folds):
    """50 rows cost 50 x (8 + 16) x 18; two positions convolved cost 36 x (8 + 1), and added up 36 x 4: 120 calls."""
    one = layer()
    with torch.no_grad():
        for _ in range(120):
            one(torch.randint(WORDS, (1, 4)))
        assert not folds
        one(torch.randint(WORDS, (1, 4)))
    assert len(folds) == 1


def test_training_keeps_nothing(folds):
    one = layer()
    for _ in range(4):
        one(torch.randint(WORDS, (9, 40))).sum().backward()
    assert not folds
    one.requires_grad_(False)
    warm(one)
    assert len(folds) == 1


def sgd(one):
    optimizer = torch.optim.SGD(one.parameters(), lr=0.1)
    one(torch.randint(WORDS, (9, 40))).sum().backward()
    optimizer.step()


def foreach(one):
    optimizer = torch.optim.Adam(one.parameters(), foreach=True)
    one(torch.randint(WORDS, (9, 40))).sum().backward()
    optimizer.step()


def fused(one):
    optimizer = torch.optim.Adam(one.parameters(), fused=True)
    one(torch.randint(WORDS, (9, 40))).sum().backward()
    optimizer.step()


def load(one):
    one.load_state_dict(layer(dtype=torch.float64).state_dict())


def assign(one):
    one.load_state_dict(layer(dtype=torch.float64).state_dict(), assign=True)


def new_parameter(one):
    one.embedding.weight = nn.Parameter(torch.randn(WORDS, CHANNELS, dtype=torch.float64))


def new_data(one):
    one.conv.weight.data = torch.randn(OUTPUTS, CHANNELS, SIZE, dtype=torch.float64)


def there_and_back(one):
    one.float()
    one.double()


def row_in_data(one):
    one.embedding.weight.data[7].fill_(0)


def weight_in_data(one):
    one.conv.weight.data.mul_(2)


def numpy_view(one):
    one.embedding.weight.detach().numpy()[:] += 1


def initialise(one):
    nn.init.normal_(one.embedding.weight)


def element(one):
    with torch.no_grad():
        one.conv.weight[1, 2, 1] += 1


CHANGES = [
    sgd, foreach, fused, load, assign, new_parameter, new_data, there_and_back, row_in_data, weight_in_data, numpy_view,
    initialise, element,
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES, ids=lambda one: one.__name__)
def test_notices_a_change(change):
    one = layer(dtype=torch.float64)
    tokens = warm(one)
    tokens[0, :9] = 7
    assert is_right(one, tokens)
    change(one)
    for _ in range(4):
        assert is_right(one, tokens)


def test_notices_a_changed_row_of_a_large_table():
    """Out of every row a number is looked at, of whichever column."""
    one = seqconv.EmbeddingConvReLUMaxPool1d(3001, 32, 4, 3, 2, dtype=torch.float64, backend="numba")
    tokens = torch.randint(3001, (64, 100))
    warm(one, tokens)
    for row in (0, 1, 31, 32, 33, 64, 65, 98, 1500, 2999, 3000):
        tokens[0, 1:4] = row
        one.embedding.weight.data[row].add_(1)
        for _ in range(3):
            assert is_right(one, tokens), row


@pytest.mark.parametrize(("rows", "columns"), [(70_001, 1), (66_000, 3), (9000, 128), (131_072, 2)])
def test_numbers_are_looked_at_in_as_many_rows_as_allowed(rows, columns):
    """Each out of another row, evenly spaced; out of every column."""
    table = torch.arange(rows * columns, dtype=torch.int32).view(torch.float32).view(rows, columns)
    seen = folded._sample(table)
    assert len(seen) == min(rows, folded.SAMPLED)
    assert len(set((seen // columns).tolist())) == len(seen)
    assert set((seen % columns).tolist()) == set(range(columns))
    if rows <= folded.SAMPLED:
        assert torch.equal(seen // columns, torch.arange(rows, dtype=torch.int32))


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.Adagrad])
def test_notices_the_steps_of_fused_optimizers(optimizer):
    """Which move no counter."""
    one = seqconv.EmbeddingConvReLUMaxPool1d(3001, 32, 4, 3, 2, dtype=torch.float64, backend="numba")
    one.conv.requires_grad_(False)
    tokens = torch.randint(3001, (64, 100))
    tokens[0] = 7
    step = optimizer(one.embedding.parameters(), lr=0.1, fused=True)
    for _ in range(2):
        warm(one, tokens)
        one(tokens[:2]).sum().backward()
        before = one.embedding.weight.detach().clone()
        step.step()
        assert not torch.equal(before, one.embedding.weight)
        assert is_right(one, tokens)
        step.zero_grad()


def test_a_budget_that_is_exceeded_does_not_fold_at_every_call(folds, monkeypatch):
    """Padded outputs count: of one output a whole vector is stored. Tables that take turns save their cost first."""
    single = seqconv.EmbeddingConvReLUGlobalMaxPool1d(WORDS, CHANNELS, 1, SIZE, backend="numba")
    tokens = torch.randint(WORDS, (9, 40))
    monkeypatch.setattr(folded, "limit", lambda: 2 * WORDS * SIZE * 4)
    with torch.no_grad():
        for _ in range(6):
            single(tokens)
    assert not folds
    assert not folded._kept
    pair = [layer(), layer()]
    room = math.prod(folded_shape(WORDS, pair[0].conv.weight)) * 4  # for one: how long a vector is depends on the CPU
    monkeypatch.setattr(folded, "limit", lambda: room)
    with torch.no_grad():
        for _ in range(12):
            for one in pair:
                one(tokens[:1])
    assert 2 <= len(folds) <= 8
    assert len(folded._kept) == 1


def test_deterministic_results_do_not_depend_on_calls_before():
    one = seqconv.EmbeddingConvReLUMaxPool1d(3000, 16, 32, 5, 3, backend="numba")
    few, many = torch.randint(3000, (4, 60)), torch.randint(3000, (256, 500))
    torch.use_deterministic_algorithms(True)
    try:
        with torch.no_grad():
            first = one(few)
            for _ in range(3):
                one(many)
            assert torch.equal(one(few), first)
    finally:
        torch.use_deterministic_algorithms(False)
    assert not folded._kept


def test_tables_of_other_shapes_at_the_same_place():
    """A view of the same memory is another table."""
    table, w = torch.randn(WORDS, CHANNELS, dtype=torch.float64), torch.randn(4, 4, 2, dtype=torch.float64)
    other = table.view(2 * WORDS, 4)
    tokens = torch.randint(WORDS, (9, 40))
    for one in (other, table[:, :4], other[WORDS:], table[:, 4:]) * 4:
        result = embedding_conv1d_relu_global_max_pool1d(tokens, one, w, backend="numba")
        right = F.relu(F.conv1d(F.embedding(tokens, one).transpose(1, 2), w)).max(-1).values
        assert torch.allclose(result, right, rtol=1e-12, atol=1e-12)


def test_memory_that_another_table_takes_over():
    """Tables of one size come and go at the same addresses."""
    tokens = torch.randint(WORDS, (9, 40))
    for _ in range(20):
        one = layer(dtype=torch.float64)
        warm(one, tokens)
        assert is_right(one, tokens)
        del one


def test_gives_memory_back():
    first = layer()
    warm(first)
    (kept,) = folded._kept.values()
    del first
    gc.collect()
    second = layer()
    warm(second)
    assert all(one is not kept for one in folded._kept.values())
    assert len(folded._kept) == 1


def test_keeps_no_more_than_allowed(monkeypatch):
    layers = [layer() for _ in range(3)]
    warm(layers[0])
    (kept,) = folded._kept.values()
    megabytes = 1
    monkeypatch.setattr(folded, "limit", lambda: 2 * kept.folded.nbytes)
    for one in layers[1:]:
        warm(one)
    assert len(folded._kept) == 2  # the oldest went
    assert not folded.is_kept("numba", layers[0].embedding.weight, layers[0].conv.weight)
    monkeypatch.undo()
    monkeypatch.setenv(folded.VARIABLE, str(megabytes))
    assert folded.limit() == 2**20
    monkeypatch.setenv(folded.VARIABLE, "0")
    folded._kept.clear()
    with torch.no_grad():
        for _ in range(4):
            layers[0](torch.randint(WORDS, (9, 40)))
    assert not folded._kept
    monkeypatch.setenv(folded.VARIABLE, "many")
    with pytest.raises(ValueError, match=r"^SEQCONV_FOLDED_MIB must be a whole number of MiB, .*, got 'many'"):
        folded.limit()


def test_copies_and_ties_have_their_own():
    one = layer(dtype=torch.float64)
    tokens = warm(one)
    other = copy.deepcopy(one)
    with torch.no_grad():
        other.embedding.weight.add_(1)
    tied = layer(dtype=torch.float64)
    tied.embedding = one.embedding
    for _ in range(4):
        assert is_right(other, tokens)
        assert is_right(one, tokens)
        assert is_right(tied, tokens)
    with torch.no_grad():
        one.embedding.weight.mul_(3)
    assert is_right(one, tokens)
    assert is_right(tied, tokens)


def test_tensors_made_in_inference_mode_are_served_and_not_kept():
    with torch.inference_mode():
        one = layer(dtype=torch.float64)
        tokens = torch.randint(WORDS, (9, 40))
        for _ in range(4):
            assert is_right(one, tokens)
        one.embedding.weight.add_(1)
        assert is_right(one, tokens)
    assert not folded._kept


def test_threads_and_a_writer_between_their_calls():
    """Every thread reads what was written last; folding itself runs in several threads at once."""
    one = layer(dtype=torch.float64)
    tokens = torch.randint(WORDS, (9, 40))
    gate, failures = threading.Barrier(5), []

    def read():
        for _ in range(12):
            gate.wait()
            failures.extend(["wrong"] if not is_right(one, tokens) else [])
            gate.wait()

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for turn in range(12):
        if turn % 3 == 2:
            with torch.no_grad():
                one.embedding.weight.mul_(1.5)
        gate.wait()
        gate.wait()
    for thread in threads:
        thread.join()
    assert not failures


def test_explain_tells_the_plan_and_why():
    one = layer()
    tokens = torch.randint(WORDS, (9, 40))
    text = str(seqconv.explain(one, tokens))
    assert "plan: folded: " in text
    assert "rows to fold" in text
    warm(one)
    with torch.no_grad():
        assert "plan: folded: the folded table is there" in str(seqconv.explain(one, tokens))
    assert "rows to fold" in str(seqconv.explain(one, tokens))  # with gradients it is not used
    rare = seqconv.EmbeddingConvReLUMaxPool1d(5000, 4, 6, 3, 2)
    assert "plan: direct: " in str(seqconv.explain(rare, torch.arange(5000)[None]))
