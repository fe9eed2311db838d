"""Files that are written under another name first: what is replaced, what is left, and what errors say."""

import errno
import os
import stat
from pathlib import Path

import pytest

from skcompressae._files import atomic_write

posix = pytest.mark.skipif(os.name != "posix", reason="of POSIX")


@posix
def test_a_folder_that_cannot_be_synced_is_no_failure(tmp_path, monkeypatch):
    fsync = os.fsync

    def refuse_folders(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", refuse_folders)
    with atomic_write(tmp_path / "name") as stream:
        stream.write(b"x")
    assert (tmp_path / "name").read_bytes() == b"x"


@posix
def test_a_folder_that_may_not_be_read_is_no_failure(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)  # the file itself is opened by another function
    with atomic_write(tmp_path / "name") as stream:
        stream.write(b"x")
    assert (tmp_path / "name").read_bytes() == b"x"


def test_an_interrupt_while_the_file_is_opened_leaves_none(tmp_path, monkeypatch):
    opened = Path.open

    def interrupted(*arguments):
        opened(*arguments).close()
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "open", interrupted)
    with pytest.raises(KeyboardInterrupt), atomic_write(tmp_path / "name"):
        pass
    assert os.listdir(tmp_path) == []
