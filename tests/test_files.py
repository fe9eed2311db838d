"""Files that are written under another name first: what is replaced, what is left, and what errors say."""

import errno
import os
import stat
import sys
from pathlib import Path

import pytest
from cli_cases import file_size_limit, refuses

from skcompressae._files import atomic_write, put_in_place

posix = pytest.mark.skipif(os.name != "posix", reason="folders are synced, and files have permissions, on POSIX only")


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


@posix
@pytest.mark.parametrize("mode", [0o600, 0o664, 0o444])
def test_a_file_that_is_replaced_keeps_its_permissions(tmp_path, mode):
    path = tmp_path / "name"
    path.touch()
    path.chmod(mode)
    with atomic_write(path) as stream:
        assert os.fstat(stream.fileno()).st_mode & 0o777 == mode
        stream.write(b"x")
    assert path.stat().st_mode & 0o777 == mode
    (tmp_path / "other").write_bytes(b"y")
    put_in_place(tmp_path / "other", path, replaces=True)
    assert (path.read_bytes(), path.stat().st_mode & 0o777) == (b"y", mode)


@posix
def test_what_is_no_regular_file_is_not_replaced(tmp_path, capsys):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "pipe")
    (tmp_path / "other").write_bytes(b"y")
    for name in ("pipe", "link"):
        with pytest.raises(FileExistsError, match="is no regular file, and not replaced") as caught:
            atomic_write(tmp_path / name).__enter__()
        assert caught.value.filename == str(tmp_path / name)
        with pytest.raises(FileExistsError, match="is no regular file, and not replaced"):
            put_in_place(tmp_path / "other", tmp_path / name, replaces=True)
    assert sorted(os.listdir(tmp_path)) == ["link", "other", "pipe"]
    (tmp_path / "pipe").rename(tmp_path / "codes.npz")
    message = refuses(capsys, "encode", "model", "x.npy", tmp_path / "codes.npz", "--force")
    assert message == f"the output {tmp_path / 'codes.npz'} is no regular file"


@posix
def test_what_is_no_regular_file_is_not_read(files, capsys):
    """It would be read in part, then anew from there, and called damaged; a pipe without a writer is waited for."""
    os.mkfifo("pipe")
    message = "pipe is no regular file, and files are read more than once; save what it gives to one"
    assert refuses(capsys, "encode", "model.safetensors", "pipe", "codes.npz") == message
    assert refuses(capsys, "encode", "pipe", "x.npy", "codes.npz") == message
    assert refuses(capsys, "search", "pipe", "x.npy") == message
    assert refuses(capsys, "info", "pipe") == message
    assert refuses(capsys, "info", os.devnull) == message.replace("pipe", os.devnull)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows makes symbolic links for administrators only")
def test_a_link_to_a_file_is_replaced_itself(tmp_path):
    (tmp_path / "file").write_bytes(b"old")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    with atomic_write(tmp_path / "link") as stream:
        stream.write(b"new")
    assert not (tmp_path / "link").is_symlink()
    assert ((tmp_path / "file").read_bytes(), (tmp_path / "link").read_bytes()) == (b"old", b"new")


@pytest.mark.parametrize("name", [None, "elsewhere"])
def test_a_full_disk_is_told_of_the_file_that_was_to_be_written(tmp_path, name):
    with pytest.raises(OSError, match="No space left on device") as caught, atomic_write(tmp_path / "name"):
        raise OSError(errno.ENOSPC, "No space left on device", name)
    assert caught.value.filename == (name or str(tmp_path / "name"))
    with pytest.raises(OSError, match="Input/output error") as caught, atomic_write(tmp_path / "name"):
        raise OSError(errno.EIO, "Input/output error")  # of whatever file is read meanwhile
    assert caught.value.filename is None
    assert os.listdir(tmp_path) == []


def test_the_command_line_tells_which_file_was_too_large_in_one_line(files, fitted, embeddings, monkeypatch, capsys):
    fitted.transform_packed(embeddings).save("codes.skc")

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    command = ["search", "codes.skc", "codes.skc", "found.tsv", "-q", "--save-index"]
    assert refuses(capsys, *command, "an\nindex") == "an index could not be written: No space left on device"
    assert refuses(capsys, "info", "no\nfile") == "no file: No such file or directory"


@pytest.mark.parametrize("output", ["model.pt", "other.safetensors", "model.onnx"])
def test_a_model_that_the_disk_has_no_room_for_is_an_error_of_one_line(files, capsys, output):
    if output.endswith(".onnx"):
        pytest.importorskip("onnx")
    before = sorted(os.listdir())
    with file_size_limit(1_000):
        message = refuses(capsys, "export", "model.safetensors", output)
    assert message == f"{output} could not be written: File too large"
    assert sorted(os.listdir()) == before
