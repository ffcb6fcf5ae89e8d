"""Files are whole or not there."""

import os
import stat
import threading

import numpy as np
import pytest

from seqconv.files import atomic_write, is_special, write_text


def test_writes_where_nothing_was_and_over_what_was(tmp_path):
    path = tmp_path / "new" / "folder" / "note.txt"
    for text in ("schön", "shorter"):
        write_text(path, text)
        assert path.read_text(encoding="utf-8") == text
    assert os.listdir(path.parent) == ["note.txt"]
    write_text(str(path), "by name")
    assert path.read_text() == "by name"


def fail(path, error):
    with atomic_write(path) as temporary:
        temporary.write_text("half of")
        raise error


def test_a_failure_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "note.txt"
    write_text(path, "old")
    for error in (ValueError, KeyboardInterrupt):
        with pytest.raises(error):
            fail(path, error)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["note.txt"]


def test_a_failure_where_nothing_was_leaves_nothing(tmp_path):
    with pytest.raises(OSError, match="disk full"):
        fail(tmp_path / "note.txt", OSError("disk full"))
    assert os.listdir(tmp_path) == []


def test_the_old_file_stands_until_the_new_one_is_whole(tmp_path):
    path = tmp_path / "note.txt"
    write_text(path, "old")
    with atomic_write(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
        assert temporary.parent == path.parent  # a rename is atomic within one file system alone
    assert path.read_text() == "new"


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_permissions_are_those_that_open_gives(tmp_path, umask):
    previous = os.umask(umask)
    try:
        write_text(tmp_path / "atomic", "")
        (tmp_path / "plain").write_text("")
    finally:
        os.umask(previous)
    modes = {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("atomic", "plain")}
    assert modes == {0o666 & ~umask}


def test_the_suffix_is_what_writers_read(tmp_path):
    with atomic_write(tmp_path / "table.npz") as temporary:
        np.savez(temporary, x=np.arange(3))
    with np.load(tmp_path / "table.npz") as table:
        assert table["x"].tolist() == [0, 1, 2]
    assert os.listdir(tmp_path) == ["table.npz"]


def test_of_many_writers_one_wins(tmp_path):
    path = tmp_path / "note.txt"
    texts = [str(n) * 10_000 for n in range(8)]
    threads = [threading.Thread(target=write_text, args=(path, text)) for text in texts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert path.read_text() in texts
    assert os.listdir(tmp_path) == ["note.txt"]


def test_devices_and_pipes_are_written_directly(tmp_path):
    device = os.stat("/dev/null")
    write_text("/dev/null", "nothing")
    assert os.path.samestat(os.stat("/dev/null"), device)
    pipe, found = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: found.append(pipe.read_text()), daemon=True)
    reader.start()
    write_text(pipe, "through the pipe")
    reader.join(10)
    assert found == ["through the pipe"]
    assert os.listdir(tmp_path) == ["pipe"]
    assert is_special(pipe)
    assert not is_special(tmp_path)
    assert not is_special(tmp_path / "missing")


def test_a_link_stays_and_its_file_is_replaced(tmp_path):
    (tmp_path / "folder").mkdir()
    link, file = tmp_path / "link.txt", tmp_path / "folder" / "file.txt"
    link.symlink_to(file)
    for text in ("new", "newer"):
        write_text(link, text)
        assert link.is_symlink()
        assert file.read_text() == text
    assert os.listdir(file.parent) == ["file.txt"]


def test_a_folder_is_refused(tmp_path):
    with pytest.raises(IsADirectoryError, match="must be a file to write, but it is a folder"):
        write_text(tmp_path, "text")
    assert os.listdir(tmp_path) == []
