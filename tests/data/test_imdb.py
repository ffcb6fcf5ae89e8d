import io
import itertools
import json
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from seqconv.data import imdb, load_imdb, sources

SHARED = Path(os.environ.get("SEQCONV_DATA") or Path(__file__).parents[2] / ".." / "shared" / "data")


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.delenv("SEQCONV_DATA", raising=False)
    monkeypatch.setenv("SEQCONV_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def flat():
    return {
        "train_values": np.array([1, 9, 2, 5, 7, 3], dtype=np.int32),
        "train_offsets": np.array([0, 3, 3, 5, 5, 6]),
        "y_train": np.array([1, 0, 0, 1, 0], dtype=np.int8),
        "test_values": np.array([4, 8], dtype=np.int32),
        "test_offsets": np.array([0, 2]),
        "y_test": np.array([1], dtype=np.int8),
    }


def write_flat(folder, **changes):
    arrays = {name: array for name, array in {**flat(), **changes}.items() if array is not None}
    np.savez(folder / "imdb.npz", **arrays)
    return folder


def as_keras_reads(review, num_words):
    marked = [1] + [rank + 3 for rank in review]
    return [2 if num_words is not None and number >= num_words else number for number in marked]


def test_reviews_become_rows_of_numbers(tmp_path):
    data = load_imdb(num_words=10, max_len=4, data_dir=write_flat(tmp_path))
    assert data.x_train.dtype == np.int32
    assert data.x_train.tolist() == [[1, 4, 2, 5], [0, 0, 0, 1], [0, 1, 8, 2], [0, 0, 0, 1], [0, 0, 1, 6]]
    assert data.x_test.tolist() == [[0, 1, 7, 2]]
    assert data.y_train.dtype == np.float32
    assert data.y_train.tolist() == [1, 0, 0, 1, 0]
    assert (data.num_words, data.max_len, data.synthetic) == (10, 4, False)
    assert data.source == f"{tmp_path / 'imdb.npz'} (flat arrays)"
    assert [len(part[1]) for part in (data.train, data.validation, data.test)] == [4, 1, 1]
    assert data.validation[0].tolist() == [[0, 0, 1, 6]]
    assert json.loads(json.dumps(data.describe()))["validation"] == 1


def test_reviews_padded_behind_come_with_their_lengths(tmp_path):
    data = load_imdb(num_words=10, max_len=4, padding="post", data_dir=write_flat(tmp_path))
    assert data.x_train.tolist() == [[1, 4, 2, 5], [1, 0, 0, 0], [1, 8, 2, 0], [1, 0, 0, 0], [1, 6, 0, 0]]
    assert data.lengths_train.tolist() == [4, 1, 3, 1, 2]
    (tokens, lengths), labels = data.validation
    assert (tokens.tolist(), lengths.tolist(), labels.tolist()) == ([[1, 6, 0, 0]], [2], [0])
    assert data.test[0][1].tolist() == [3]
    assert load_imdb(data_dir=write_flat(tmp_path)).lengths_train is None


def test_long_reviews_keep_their_end(tmp_path):
    assert load_imdb(max_len=2, data_dir=write_flat(tmp_path)).x_train[0].tolist() == [12, 5]


def test_all_words_at_full_length(tmp_path):
    data = load_imdb(num_words=None, max_len=None, data_dir=write_flat(tmp_path))
    assert [review.tolist() for review in data.x_train] == [[1, 4, 12, 5], [1], [1, 8, 10], [1], [1, 6]]
    assert data.num_words == 13
    assert data.train[0].shape == (4,)


@given(
    st.lists(st.lists(st.integers(1, 60), max_size=8), min_size=1, max_size=6),
    st.one_of(st.none(), st.integers(4, 70)),
)
def test_numbers_are_those_of_keras_loader(reviews, num_words):
    values, offsets = imdb.encode(*imdb.flatten(reviews), num_words)
    rows = [values[start:stop].tolist() for start, stop in itertools.pairwise(offsets)]
    assert rows == [as_keras_reads(review, num_words) for review in reviews]


def pickled_content(reviews, payload=None):
    def ragged(lists):
        array = np.empty(len(lists), dtype=object)
        array[:] = lists
        return array

    content = io.BytesIO()
    x_train = ragged(reviews)
    if payload is not None:
        x_train[0] = payload
    labels = np.arange(len(reviews)) % 2
    np.savez(content, x_train=x_train, y_train=labels, x_test=ragged(reviews[:3]), y_test=labels[:3])
    return content.getvalue()


class MakesAFolder:
    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_a_pickled_file_that_is_not_keras_own_is_not_unpickled(tmp_path):
    marker = tmp_path / "was-run"
    (tmp_path / "imdb.npz").write_bytes(pickled_content([[1], [2], [3]], MakesAFolder(marker)))
    with pytest.raises(
        ValueError, match=r"holds pickled objects.*SHA-256 is [0-9a-f]{64}, not 69664113.*not unpickled"
    ):
        load_imdb(data_dir=tmp_path)
    assert not marker.exists()
    # The payload is live: unpickled, it does make the folder.
    with np.load(tmp_path / "imdb.npz", allow_pickle=True) as archive:
        archive["x_train"]
    assert marker.exists()


def test_pickles_hidden_in_a_flat_file_are_not_unpickled(tmp_path):
    marker = tmp_path / "was-run"
    payload = np.empty(1, dtype=object)
    payload[0] = MakesAFolder(marker)
    with pytest.raises(ValueError, match=r"not a whole \.npz file of plain arrays"):
        load_imdb(data_dir=write_flat(tmp_path, train_values=payload))
    assert not marker.exists()


def test_keras_own_pickled_file_is_read_in_keras_order(tmp_path, monkeypatch):
    reviews = [[10 + number] * (number % 4 + 1) for number in range(20)]
    content = pickled_content(reviews)
    (tmp_path / "imdb.npz").write_bytes(content)
    monkeypatch.setattr(sources, "KERAS_IMDB_SHA256", sources.sha256_of(tmp_path / "imdb.npz"))
    data = load_imdb(num_words=None, max_len=None, data_dir=tmp_path)

    generator = np.random.RandomState(113)
    train_order, test_order = np.arange(20), np.arange(3)
    generator.shuffle(train_order)
    generator.shuffle(test_order)
    assert [review.tolist() for review in data.x_train] == [as_keras_reads(reviews[row], None) for row in train_order]
    assert data.y_train.tolist() == [row % 2 for row in train_order]
    assert [review.tolist() for review in data.x_test] == [as_keras_reads(reviews[row], None) for row in test_order]
    assert "Keras' pickled file" in data.source


TEXTS = {
    "train/pos/0_9.txt": "Great, GREAT film!<br /><br />I don't mind",
    "train/pos/1_8.txt": "a great film\n",
    "train/neg/0_2.txt": "a dull film... a bore",
    "train/neg/1_1.txt": 'Dull; dull "film"',
    "test/pos/0_10.txt": "great unheard-of film",
    "test/neg/0_3.txt": "Bore",
}


def write_texts(folder, texts=None):
    for name, text in (texts or TEXTS).items():
        path = folder / "aclImdb" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return folder


def test_texts_are_tokenised_by_frequency(tmp_path, cache):
    data = load_imdb(num_words=None, max_len=None, data_dir=write_texts(tmp_path))
    tokenised = {
        "train/pos/0_9.txt": "great great film br br i don't mind",
        "train/pos/1_8.txt": "a great film",
        "train/neg/0_2.txt": "a dull film a bore",
        "train/neg/1_1.txt": "dull dull film",
        "test/pos/0_10.txt": "great film",
        "test/neg/0_3.txt": "bore",
    }
    tokenised = {name: text.split() for name, text in tokenised.items()}
    counts = Counter(word for name, words in tokenised.items() if name.startswith("train") for word in words)
    rank_counts = Counter(number for review in data.x_train for number in review.tolist()[1:])
    by_rank = [count for _, count in sorted(rank_counts.items())]
    assert by_rank == sorted(counts.values(), reverse=True)
    assert sorted(rank_counts) == list(range(4, 4 + len(counts)))

    # film (4 times) is the one word of its frequency, so is rank 1; the others are told by where they stand.
    expected = Counter((len(words), float("pos" in name)) for name, words in tokenised.items() if "train" in name)
    assert Counter(zip((len(x) - 1 for x in data.x_train), data.y_train.tolist(), strict=True)) == expected
    by_label = dict(zip(data.y_test.tolist(), (review.tolist() for review in data.x_test), strict=True))
    assert by_label[1.0][2] == 4
    assert len(by_label[1.0]) == 3
    assert len(by_label[0.0]) == 2
    assert len(list(cache.glob("aclImdb-*.npz"))) == 1


def test_texts_are_read_once_and_again_when_changed(tmp_path, cache, monkeypatch):
    write_texts(tmp_path)
    first = load_imdb(data_dir=tmp_path)
    with monkeypatch.context() as context:
        context.setattr(imdb, "words_of", lambda path: pytest.fail("tokenised again"))
        again = load_imdb(data_dir=tmp_path)
    assert np.array_equal(first.x_train, again.x_train)
    assert np.array_equal(first.y_train, again.y_train)
    write_texts(tmp_path, {"train/pos/0_9.txt": "short"})
    assert not np.array_equal(load_imdb(data_dir=tmp_path).x_train, first.x_train)
    assert len(list(cache.iterdir())) == 2


def test_a_folder_without_reviews_and_texts_that_are_none(tmp_path):
    write_texts(tmp_path)
    (tmp_path / "aclImdb/test/neg/0_3.txt").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(ValueError, match=r"0_3.txt is not UTF-8"):
        load_imdb(data_dir=tmp_path)
    (tmp_path / "aclImdb/test/neg/0_3.txt").unlink()
    with pytest.raises(ValueError, match=r"aclImdb/test/neg must hold reviews"):
        load_imdb(data_dir=tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"y_test": None, "test_offsets": None}, "lacks the arrays test_offsets, y_test"),
        ({"train_offsets": np.array([0, 3, 2, 5, 5, 6])}, "train reviews: offsets must rise from 0 to .* 6"),
        ({"train_offsets": np.array([0, 3, 3, 5, 5, 7])}, "offsets must rise"),
        ({"train_offsets": np.array([1, 3, 3, 5, 5, 6])}, "offsets must rise"),
        ({"y_train": np.array([1, 0])}, "2 labels need 3 offsets, got 6"),
        ({"y_test": np.array([2])}, "test reviews: labels must be 0 or 1"),
        ({"test_values": np.array([0, 5])}, "values must be ranks from 1 on, got 0 to 5"),
        ({"test_values": np.array([1, 2**40])}, "values must be ranks"),
        ({"test_values": np.array([1.5, 2.0])}, "one-dimensional and of integers"),
        ({"y_train": np.zeros((5, 1), dtype=int)}, "one-dimensional and of integers"),
    ],
)
def test_inconsistent_arrays_are_refused(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        load_imdb(data_dir=write_flat(tmp_path, **changes))


def unknown_compression(content):
    entry = content.rindex(b"PK\1\2")
    return content[: entry + 10] + b"\x63" + content[entry + 11 :]


@pytest.mark.parametrize(
    "damage",
    [
        lambda b: b"",
        lambda b: b[: len(b) // 2],
        lambda b: b"not a zip",
        lambda b: b[:150] + b"X" + b[151:],
        unknown_compression,
    ],
)
def test_damaged_files_are_refused(tmp_path, damage):
    path = write_flat(tmp_path) / "imdb.npz"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=r"imdb.npz is not a whole .npz file"):
        load_imdb(data_dir=tmp_path)


@pytest.mark.parametrize("options", [{"num_words": 10.5}, {"max_len": "500"}])
def test_sizes_that_are_no_integers_are_named(options):
    with pytest.raises(TypeError, match=f"{next(iter(options))} must be an int, got"):
        load_imdb(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_words": 3}, "num_words must be at least 4, got 3"),
        ({"max_len": 0}, "max_len must be at least 1, got 0"),
        ({"padding": "both"}, "padding must be 'pre' or 'post', got 'both'"),
    ],
)
def test_bad_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        load_imdb(**options, source="synthetic")


@pytest.mark.skipif(not (SHARED / "imdb.npz").exists(), reason=f"needs the real reviews, imdb.npz in {SHARED}")
def test_the_real_reviews():
    data = load_imdb(data_dir=SHARED)
    assert data.x_train.shape == data.x_test.shape == (25_000, 500)
    assert [len(part[1]) for part in (data.train, data.validation, data.test)] == [20_000, 5_000, 25_000]
    assert data.y_train.mean() == data.y_test.mean() == 0.5
    assert data.x_train.max() == data.x_test.max() == 9_999
    with np.load(SHARED / "imdb.npz", allow_pickle=False) as archive:
        values, offsets = archive["train_values"], archive["train_offsets"]
    for row in (0, 1, 777, 24_999):
        review = as_keras_reads(values[offsets[row] : offsets[row + 1]].tolist(), 10_000)
        assert data.x_train[row].tolist() == ([0] * 500 + review)[-500:]


@pytest.mark.skipif(not (SHARED / "imdb.npz").exists(), reason=f"needs the real reviews, imdb.npz in {SHARED}")
def test_the_real_reviews_are_the_known_file():
    assert sources.verify("imdb", data_dir=SHARED)["status"] == "good"
