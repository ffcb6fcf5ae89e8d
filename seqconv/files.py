"""Files that are either whole or not there: written beside their destination, then renamed."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["atomic_write", "is_special", "write_text"]


@contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path in the folder of ``path``; rename it to ``path`` if the block succeeds, else remove it.

    The folder is made if it is missing. The file's bytes are flushed to disk before the rename, so that a power cut
    leaves either the old file or the new one. The temporary path has the suffix of ``path``, since writers such as
    ``numpy.savez`` and ``Figure.savefig`` read it. A symbolic link stays, and the file it points to is replaced.

    A device, a pipe or a socket is yielded itself, to be written to directly. Raises ``IsADirectoryError`` for a
    folder.
    """
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"{path} must be a file to write, but it is a folder")
    if is_special(path):
        yield path
        return
    suffix, path = path.suffix, Path(os.path.realpath(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{secrets.token_hex(8)}{suffix}")
    # Not by tempfile, whose files their owner alone may read: these get the permissions that open() would give.
    os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    try:
        yield temporary
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def is_special(path: str | os.PathLike[str]) -> bool:
    """Tell whether ``path`` is there and is neither a file nor a folder: a device or a pipe, for example."""
    path = Path(path)
    return path.exists() and not path.is_file() and not path.is_dir()


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write ``text`` to ``path`` as UTF-8, atomically."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
