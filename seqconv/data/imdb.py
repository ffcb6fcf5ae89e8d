"""The IMDB reviews: 25,000 for training, 25,000 for testing, as rows of word numbers with one label each."""

from __future__ import annotations

import hashlib
import io
import os
from collections import Counter
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from seqconv.data import sources
from seqconv.data.arguments import integer
from seqconv.data.sequences import pad_ragged
from seqconv.data.synthetic_imdb import synthetic_reviews
from seqconv.files import atomic_write

__all__ = ["ImdbData", "load_imdb"]

# As keras.datasets.imdb.load_data has them by default. 0 is left for padding.
START, UNKNOWN, INDEX_FROM = 1, 2, 3
SHUFFLE_SEED = 113
VALIDATION_SHARE = 0.2

# Punctuation becomes a space; the apostrophe stays within its word.
SEPARATORS = str.maketrans(dict.fromkeys('!"#$%&()*+,-./:;<=>?@[\\]^_`{|}~\t\n\r', " "))

# Inputs, with their lengths where they have some, and labels.
Split = tuple[NDArray[Any] | tuple[NDArray[Any], NDArray[Any]], NDArray[np.float32]]

# The word ranks (1 = most frequent) of all reviews one after another, and where each review begins and, last, ends.
Ragged = tuple[NDArray[np.int32], NDArray[np.int64]]


@dataclass(frozen=True, eq=False)
class ImdbData:
    """Reviews as word numbers, and whether they praise (1) or blame (0).

    ``x_*`` is int32 of shape (reviews, max_len), padded in front with 0, or, with ``max_len=None``, an object array of
    (reviews,) int32 arrays; ``y_*`` is float32 of shape (reviews,). Every number in ``x_*`` is below ``num_words``, the
    size that an embedding table needs. ``source`` says where they are from, ``synthetic`` whether they are made up.
    Reviews that are padded behind have ``lengths_*``, int64 of shape (reviews,); then the inputs of ``train``,
    ``validation`` and ``test`` are pairs ``(x, lengths)``, which :class:`~seqconv.data.ArrayBatches` and the convnets
    take.
    """

    x_train: NDArray[Any]
    y_train: NDArray[np.float32]
    x_test: NDArray[Any]
    y_test: NDArray[np.float32]
    num_words: int
    max_len: int | None
    source: str
    synthetic: bool
    lengths_train: NDArray[np.int64] | None = None
    lengths_test: NDArray[np.int64] | None = None

    @property
    def train(self) -> Split:
        """The reviews to fit on: the first 80 % of the training reviews."""
        return self._part(self.x_train, self.lengths_train, self.y_train, slice(self._split))

    @property
    def validation(self) -> Split:
        """The last 20 % of the training reviews, as Keras' ``validation_split=0.2`` takes them."""
        return self._part(self.x_train, self.lengths_train, self.y_train, slice(self._split, None))

    @property
    def test(self) -> Split:
        """The test reviews."""
        return self._part(self.x_test, self.lengths_test, self.y_test, slice(None))

    @staticmethod
    def _part(x: NDArray[Any], lengths: NDArray[Any] | None, y: NDArray[np.float32], rows: slice) -> Split:
        return (x[rows] if lengths is None else (x[rows], lengths[rows])), y[rows]

    @property
    def _split(self) -> int:
        return int(len(self.y_train) * (1 - VALIDATION_SHARE))

    def describe(self) -> dict[str, Any]:
        """Return sizes and origin as a dictionary that JSON can hold."""
        return {
            "task": "imdb",
            "source": self.source,
            "synthetic": self.synthetic,
            "train": len(self.train[1]),
            "validation": len(self.validation[1]),
            "test": len(self.y_test),
            "positive": float(np.concatenate([self.y_train, self.y_test]).mean()) if len(self.y_train) else None,
            "num_words": self.num_words,
            "max_len": self.max_len,
        }


def load_imdb(
    num_words: int | None = 10_000,
    max_len: int | None = 500,
    *,
    padding: str = "pre",
    data_dir: str | os.PathLike[str] | None = None,
    source: sources.DataSource = "auto",
    synthetic_size: tuple[int, int] = (4000, 1000),
) -> ImdbData:
    """Return the IMDB reviews, from files where there are any, else made-up ones.

    A review is the start marker 1 and then its words' frequency ranks plus 3, each 2 instead where that is
    ``num_words`` or more (``None`` keeps all words). It keeps its last ``max_len`` numbers, or is padded in front with
    0 (``None``: neither). This is what ``keras.datasets.imdb.load_data`` and ``pad_sequences`` give by default.
    ``padding="post"`` pads behind instead and gives the lengths, too: with them padding can change no prediction.

    The folder (see :func:`seqconv.data.sources.find` for which) may hold ``imdb.npz`` as flat arrays, taken in its
    stored order; Keras' own pickled ``imdb.npz``, shuffled as Keras does; or the extracted ``aclImdb`` texts, which
    are tokenised, shuffled and kept in the cache folder as flat arrays. Without any, ``synthetic_size`` (training,
    test) reviews are made up; the training reviews include those for validation.

    Raises ``FileNotFoundError`` where a folder was named that holds none of these, ``ValueError`` for a damaged
    file, a pickled file other than Keras' own (a pickle can run code) and sizes out of range, ``TypeError`` for sizes
    that are no integers.
    """
    if padding not in ("pre", "post"):
        raise ValueError(f"padding must be 'pre' or 'post', got {padding!r}")
    for name, value, least in (("num_words", num_words, INDEX_FROM + 1), ("max_len", max_len, 1)):
        if value is not None:
            integer(name, value, least)
    path = sources.find("imdb", data_dir=data_dir, source=source)
    if path is None:
        train_count, test_count = synthetic_size
        arrays, origin = (
            synthetic_arrays(train_count, test_count),
            f"synthetic ({train_count} + {test_count} made-up reviews)",
        )
    elif path.is_dir():
        arrays, origin = read_texts(path), f"{path} (texts)"
    else:
        arrays, origin = read_npz(path)

    tokens = {
        part: encode(arrays[f"{part}_values"], arrays[f"{part}_offsets"], num_words) for part in ("train", "test")
    }
    if num_words is None:
        num_words = 1 + max([INDEX_FROM, *(int(values.max()) for values, _ in tokens.values() if len(values))])
    x = {part: rectangle(values, offsets, max_len, padding) for part, (values, offsets) in tokens.items()}
    y = {part: arrays[f"y_{part}"].astype(np.float32) for part in ("train", "test")}
    lengths = {}
    if padding == "post" and max_len is not None:
        lengths = {f"lengths_{part}": np.diff(offsets).clip(max=max_len) for part, (_, offsets) in tokens.items()}
    return ImdbData(x["train"], y["train"], x["test"], y["test"], num_words, max_len, origin, path is None, **lengths)


def encode(values: NDArray[np.int32], offsets: NDArray[np.int64], num_words: int | None) -> Ragged:
    """Return word ranks as the numbers that models see, with the start marker in front of each review."""
    numbers = values + np.int32(INDEX_FROM)
    if num_words is not None:
        numbers[numbers >= num_words] = UNKNOWN
    marked_offsets = offsets + np.arange(len(offsets))
    marked = np.full(marked_offsets[-1], START, dtype=np.int32)
    is_word = np.ones(len(marked), dtype=bool)
    is_word[marked_offsets[:-1]] = False
    marked[is_word] = numbers
    return marked, marked_offsets


def rectangle(values: NDArray[np.int32], offsets: NDArray[np.int64], max_len: int | None, padding: str) -> NDArray[Any]:
    """Return the reviews as the rows of one array, or as an array of arrays where ``max_len`` is ``None``."""
    if max_len is not None:
        return pad_ragged(values, offsets, max_len, padding=padding)
    reviews = np.empty(len(offsets) - 1, dtype=object)
    reviews[:] = np.split(values, offsets[1:-1]) if len(reviews) else []
    return reviews


def synthetic_arrays(train_count: int, test_count: int) -> dict[str, NDArray[Any]]:
    """Return made-up reviews in the flat format."""
    train, test = synthetic_reviews(train_count, seed=0), synthetic_reviews(test_count, seed=1)
    return flat_arrays(train[:2], train[2], test[:2], test[2])


def flat_arrays(train: Ragged, y_train: NDArray[Any], test: Ragged, y_test: NDArray[Any]) -> dict[str, NDArray[Any]]:
    """Return the arrays of a flat ``imdb.npz`` by name."""
    return {
        "train_values": train[0],
        "train_offsets": train[1],
        "y_train": y_train.astype(np.int8),
        "test_values": test[0],
        "test_offsets": test[1],
        "y_test": y_test.astype(np.int8),
    }


def read_npz(path: Path) -> tuple[dict[str, NDArray[Any]], str]:
    """Return the flat arrays of either kind of ``imdb.npz``, and a text that says which it was."""
    content = path.read_bytes()
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as archive:
            pickled = {"x_train", "x_test"} <= set(archive.files)
            arrays = {} if pickled else {name: archive[name] for name in archive.files}
    except Exception as error:  # damaged bytes raise anything, from zlib.error to tokenize.TokenError
        raise ValueError(f"{path} is not a whole .npz file of plain arrays: {error}") from error
    if pickled:
        return shuffled(from_pickled(content, path)), f"{path} (Keras' pickled file)"
    check_flat(arrays, path)
    return arrays, f"{path} (flat arrays)"


def check_flat(arrays: dict[str, NDArray[Any]], path: Path) -> None:
    """Raise ``ValueError`` unless the arrays are reviews in the flat format."""
    missing = [f"{part}_{kind}" for part in ("train", "test") for kind in ("values", "offsets")]
    missing = [name for name in (*missing, "y_train", "y_test") if name not in arrays]
    if missing:
        raise ValueError(f"{path} lacks the arrays {', '.join(missing)}")
    for part in ("train", "test"):
        values, offsets, labels = (arrays[name] for name in (f"{part}_values", f"{part}_offsets", f"y_{part}"))
        problem = None
        if any(array.ndim != 1 or array.dtype.kind not in "iu" for array in (values, offsets, labels)):
            problem = "its arrays must be one-dimensional and of integers"
        elif len(offsets) != len(labels) + 1:
            problem = f"{len(labels)} labels need {len(labels) + 1} offsets, got {len(offsets)}"
        elif offsets[0] != 0 or offsets[-1] != len(values) or np.any(offsets[1:] < offsets[:-1]):
            problem = f"offsets must rise from 0 to the number of values, {len(values)}"
        elif len(values) and (values.min() < 1 or values.max() > np.iinfo(np.int32).max - INDEX_FROM):
            problem = f"values must be ranks from 1 on, got {values.min()} to {values.max()}"
        elif not np.isin(labels, (0, 1)).all():
            problem = "labels must be 0 or 1"
        if problem:
            raise ValueError(f"{path}: {part} reviews: {problem}")
        arrays[f"{part}_values"] = values.astype(np.int32, copy=False)
        arrays[f"{part}_offsets"] = offsets.astype(np.int64, copy=False)


def from_pickled(content: bytes, path: Path) -> dict[str, NDArray[Any]]:
    """Return the flat arrays of Keras' pickled file, given its bytes.

    Unpickling runs whatever the file says. So the very bytes that are unpickled are hashed first, rather than the file,
    which could change in between.
    """
    digest = hashlib.sha256(content).hexdigest()
    if digest != sources.KERAS_IMDB_SHA256:
        raise ValueError(
            f"{path} holds pickled objects, which can run code when read, and is not the file that Keras publishes: "
            f"its SHA-256 is {digest}, not {sources.KERAS_IMDB_SHA256}. It was not unpickled"
        )
    with np.load(io.BytesIO(content), allow_pickle=True) as archive:
        parts = {name: archive[name] for name in ("x_train", "y_train", "x_test", "y_test")}
    return flat_arrays(flatten(parts["x_train"]), parts["y_train"], flatten(parts["x_test"]), parts["y_test"])


def flatten(reviews: Any) -> Ragged:
    """Return a sequence of lists of numbers as values and offsets."""
    offsets = np.concatenate([[0], np.cumsum([len(review) for review in reviews], dtype=np.int64)])
    return np.fromiter(chain.from_iterable(reviews), dtype=np.int32, count=int(offsets[-1])), offsets


def shuffled(arrays: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Return the reviews in the order that Keras' ``load_data(seed=113)`` gives them."""
    # The order decides which reviews are for validation, hence the legacy generator that Keras uses.
    random = np.random.RandomState(SHUFFLE_SEED)
    result: dict[str, NDArray[Any]] = {}
    for part in ("train", "test"):
        order = np.arange(len(arrays[f"y_{part}"]))
        random.shuffle(order)
        values, offsets = arrays[f"{part}_values"], arrays[f"{part}_offsets"]
        lengths = np.diff(offsets)[order]
        ends = np.cumsum(lengths)
        within = np.arange(len(values)) - np.repeat(ends - lengths, lengths)
        result[f"{part}_values"] = values[np.repeat(offsets[order], lengths) + within]
        result[f"{part}_offsets"] = np.concatenate([[0], ends])
        result[f"y_{part}"] = arrays[f"y_{part}"][order]
    return result


def read_texts(folder: Path) -> dict[str, NDArray[Any]]:
    """Return the flat arrays of the extracted ``aclImdb`` folder, from the cache where this folder was read before."""
    files = {
        (part, label): sorted((folder / part / name).glob("*.txt"))
        for part in ("train", "test")
        for label, name in ((0, "neg"), (1, "pos"))
    }
    for (part, label), paths in files.items():
        if not paths:
            raise ValueError(f"{folder / part / ('neg', 'pos')[label]} must hold reviews (*.txt), it holds none")
    cached = sources.cache_folder() / f"aclImdb-{fingerprint(folder, chain.from_iterable(files.values()))[:16]}.npz"
    if cached.exists():
        return read_npz(cached)[0]

    words = {part: [words_of(path) for label in (0, 1) for path in files[part, label]] for part in ("train", "test")}
    # Counter.most_common keeps words of equal frequency in the order in which they were met.
    counts = Counter(chain.from_iterable(words["train"]))
    ranks = {word: rank for rank, (word, _) in enumerate(counts.most_common(), start=1)}
    ragged = {
        part: flatten([[ranks[word] for word in review if word in ranks] for review in words[part]]) for part in words
    }
    labels = {part: np.repeat([0, 1], [len(files[part, 0]), len(files[part, 1])]) for part in words}
    arrays = shuffled(flat_arrays(ragged["train"], labels["train"], ragged["test"], labels["test"]))
    with atomic_write(cached) as temporary:
        np.savez_compressed(temporary, allow_pickle=False, **arrays)
    return arrays


def fingerprint(folder: Path, files: Any) -> str:
    """Return a hash that changes when a file of the folder is added, removed or rewritten."""
    digest = hashlib.sha256(str(folder.resolve()).encode())
    for path in files:
        status = path.stat()
        digest.update(f"\n{path.name} {status.st_size} {status.st_mtime_ns}".encode())
    return digest.hexdigest()


def words_of(path: Path) -> list[str]:
    """Return a review's words in lower case without punctuation, as Keras' tokenizer splits them."""
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: {error}") from error
    return text.lower().translate(SEPARATORS).split()
