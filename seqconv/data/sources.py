"""Where the data sets' files are: in a folder the user names, in the cache, or on the network; and their checksums."""

from __future__ import annotations

import csv
import hashlib
import io
import os
import re
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from seqconv.files import write_text

__all__ = ["DATASETS", "DataSource", "cache_folder", "fetch", "find", "sha256_of", "verify"]

DataSource = Literal["auto", "real", "synthetic"]
PathLike = str | os.PathLike[str]

KERAS_IMDB_SHA256 = "69664113be75683a8fe16e3ed0ab59fda8886cb3cd7ada244f7d9544e4676b9f"

# The columns of the Jena weather files, after "Date Time".
JENA_COLUMNS = (
    "p (mbar)",
    "T (degC)",
    "Tpot (K)",
    "Tdew (degC)",
    "rh (%)",
    "VPmax (mbar)",
    "VPact (mbar)",
    "VPdef (mbar)",
    "sh (g/kg)",
    "H2OC (mmol/mol)",
    "rho (g/m**3)",
    "wv (m/s)",
    "max. wv (m/s)",
    "wd (deg)",
)


@dataclass(frozen=True)
class Dataset:
    """The files of a data set: the names to look for, in this order, the one to download, and known contents."""

    candidates: tuple[str, ...]
    download: str
    sha256: str | None
    known: dict[str, str]


BASE_URL = "https://storage.googleapis.com/tensorflow/tf-keras-datasets"
DATASETS = {
    "imdb": Dataset(
        candidates=("imdb.npz", "aclImdb"),
        download="imdb.npz",
        sha256=KERAS_IMDB_SHA256,
        known={
            KERAS_IMDB_SHA256: "Keras' imdb.npz (pickled)",
            "74c6323369a9028429bf69dffea789cf9fb93ccba988a1acd9cb22ffd1fe1b95": "the reviews as flat arrays",
        },
    ),
    "jena": Dataset(
        candidates=(
            "jena_climate_2009_2016.csv",
            "jena_climate_2009_2016.csv.zip",
            "jena_climate_2020.csv",
            "jena_climate_2020.csv.zip",
            "mpi_roof.csv",
            "weather.csv",
        ),
        download="jena_climate_2009_2016.csv.zip",
        # No checksum of this file is published. Its structure is checked instead when it arrives, and its hash is then
        # kept beside it, so that a later change shows.
        sha256=None,
        known={"2d4016a36123b8d6ec2d053be40d949ac9ac152de1fcb5b38c287cef179588f6": "the rows of 2020"},
    ),
}


def find(name: str, *, data_dir: PathLike | None = None, source: DataSource = "auto") -> Path | None:
    """Return the file (or folder) to read the data set ``name`` from, or ``None`` for the synthetic stand-in.

    Looked at in this order: ``source="synthetic"`` (wins over any folder), the folder ``data_dir``, the folder that
    the environment variable ``SEQCONV_DATA`` names, the cache folder that :func:`fetch` writes to. The first of them
    that is set decides: a named folder without the data set is an error, never a reason to look elsewhere. Nothing is
    downloaded. ``source="real"`` never gives the stand-in.

    Raises ``FileNotFoundError`` where the named folder, or with ``source="real"`` the cache, lacks the data set, and
    ``ValueError`` for an unknown ``name`` or ``source``.
    """
    dataset = lookup(name)
    if source not in ("auto", "real", "synthetic"):
        raise ValueError(f"source must be 'auto', 'real' or 'synthetic', got {source!r}")
    if source == "synthetic":
        return None
    folder, given_by = (
        (data_dir, "data_dir") if data_dir is not None else (os.environ.get("SEQCONV_DATA"), "SEQCONV_DATA")
    )
    if folder:
        found = first_of(Path(folder), dataset.candidates)
        if found is None:
            state = f"holds none of {', '.join(dataset.candidates)}" if Path(folder).is_dir() else "is not a folder"
            raise FileNotFoundError(f"no {name} data: {given_by}={os.fspath(folder)} {state}")
        return found
    found = first_of(cache_folder(), dataset.candidates)
    if found is None and source == "real":
        raise FileNotFoundError(
            f"no {name} data: the cache {cache_folder()} holds none of {', '.join(dataset.candidates)}; download it "
            f"with seqconv.data.sources.fetch({name!r}), or name the folder that holds it by data_dir or SEQCONV_DATA"
        )
    return found


def fetch(name: str, *, base_url: str = BASE_URL, retries: int = 3, progress: bool = True) -> Path:
    """Download the data set ``name`` into the cache, unless a good copy is there, and return its path.

    The file arrives under a temporary name and gets its own only after it has been checked, so an interrupted or
    damaged download leaves nothing behind. ``retries`` further attempts are made, after 1 s, 2 s ...; ``progress``
    draws a bar on stderr.

    Raises ``ConnectionError`` where the server cannot be reached or stops, ``ValueError`` where what it sent is not
    the file wanted.
    """
    import pooch

    dataset = lookup(name)
    if retries < 0:
        raise ValueError(f"retries must be at least 0, got {retries}")
    path = cache_folder() / dataset.download
    expected = dataset.sha256 or pinned_sha256(path)
    if expected is None and path.exists():
        expected = hash_if_whole(path)
    url = f"{base_url.rstrip('/')}/{dataset.download}"
    http = pooch.HTTPDownloader(progressbar=progress, chunk_size=1 << 16, timeout=30)

    def download(address: str, temporary: str, manager: Any) -> None:
        http(address, temporary, manager)
        if dataset.sha256 is None:
            check_jena_zip(Path(temporary), dataset.download)

    registry = {dataset.download: expected}
    try:
        pooch.create(path.parent, "", registry=registry, urls={dataset.download: url}, retry_if_failed=retries).fetch(
            dataset.download, downloader=download
        )
    except OSError as error:
        raise ConnectionError(
            f"could not download {url} in {retries + 1} attempts: {error}. Fetch it by other means, then put it into "
            f"{path.parent}, or name its folder by data_dir or SEQCONV_DATA"
        ) from error
    except ValueError as error:
        raise ValueError(f"{url} did not give the file wanted, nothing was kept: {error}") from error
    if dataset.sha256 is None:
        write_text(pin_of(path), f"{sha256_of(path)}  {path.name}\n")
    return path


def verify(name: str, *, data_dir: PathLike | None = None) -> dict[str, Any]:
    """Return how the file that would be read for the data set ``name`` compares with what is known of it.

    Keys: ``name``, ``path`` (``None`` where only the stand-in is there), ``bytes``, ``sha256``, ``known_as`` and
    ``status``, one of ``"synthetic"``, ``"good"`` (a known file, or the one that was downloaded), ``"changed"`` (not
    the file that was downloaded) and ``"unknown"`` (no checksum to compare with, as for a folder of texts).

    Raises ``FileNotFoundError`` as :func:`find`.
    """
    dataset = lookup(name)
    path = find(name, data_dir=data_dir)
    result: dict[str, Any] = {"name": name, "path": None, "bytes": None, "sha256": None, "known_as": None}
    if path is None:
        return {**result, "status": "synthetic"}
    result["path"] = str(path)
    if path.is_dir():
        return {**result, "status": "unknown"}
    digest = sha256_of(path)
    result |= {"bytes": path.stat().st_size, "sha256": digest, "known_as": dataset.known.get(digest)}
    pinned = pinned_sha256(path)
    if result["known_as"] or digest == pinned:
        return {**result, "status": "good"}
    return {**result, "status": "changed" if pinned else "unknown"}


def cache_folder() -> Path:
    """Return the folder for downloads: ``SEQCONV_CACHE``, or else the user's cache folder. It need not exist yet."""
    folder = os.environ.get("SEQCONV_CACHE")
    if folder:
        return Path(folder)
    try:
        import pooch
    except ImportError:  # on a machine that downloads nothing
        return Path.home() / ".cache" / "seqconv"
    return Path(pooch.os_cache("seqconv"))


def sha256_of(path: PathLike) -> str:
    """Return the SHA-256 of a file's bytes in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def lookup(name: str) -> Dataset:
    """Return the entry of the data set ``name``."""
    if name not in DATASETS:
        raise ValueError(f"name must be one of {', '.join(map(repr, DATASETS))}, got {name!r}")
    return DATASETS[name]


def first_of(folder: Path, names: Sequence[str]) -> Path | None:
    """Return the first of ``names`` that exists in ``folder``."""
    return next((folder / name for name in names if (folder / name).exists()), None)


def pin_of(path: Path) -> Path:
    """Return the path of the file that keeps the hash of ``path`` as it was downloaded."""
    return path.with_name(path.name + ".sha256")


def pinned_sha256(path: Path) -> str | None:
    """Return the hash kept beside ``path``, or ``None`` where there is none that can be read."""
    try:
        digest = pin_of(path).read_text(encoding="utf-8").partition(" ")[0]
    except (OSError, UnicodeDecodeError):
        return None
    return digest if re.fullmatch("[0-9a-f]{64}", digest) else None


def hash_if_whole(path: Path) -> str | None:
    """Return the hash of a Jena zip that somebody put into the cache, or remove it if it is damaged."""
    try:
        check_jena_zip(path, path.name)
    except ValueError:
        path.unlink()
        return None
    return sha256_of(path)


def check_jena_zip(path: Path, name: str) -> None:
    """Raise ``ValueError`` unless the file is a whole zip of one CSV with the Jena columns."""
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
            if damaged is not None:
                raise ValueError(f"{name}: its member {damaged} is damaged")
            with archive.open(csv_member(archive)) as member:
                header = next(csv.reader(io.TextIOWrapper(member, encoding="utf-8")), [])
    except (OSError, RuntimeError, EOFError, csv.Error, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{name} is not a whole zip file: {error}") from error
    missing = [column for column in ("Date Time", *JENA_COLUMNS) if column not in header]
    if missing:
        raise ValueError(f"{name} lacks the columns {', '.join(missing)}")


def csv_member(archive: zipfile.ZipFile) -> str:
    """Return the name of the archive's one CSV."""
    members = [name for name in archive.namelist() if name.endswith(".csv") and not name.startswith("__MACOSX/")]
    if len(members) != 1:
        raise ValueError(f"a zip with one .csv is wanted, {archive.filename} holds {len(members)}")
    return members[0]
