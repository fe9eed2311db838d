"""Interrupted and killed runs of the command line continue to the same bytes; foreign leftovers are refused."""

import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from cli_cases import file_size_limit, refuses

from skcompressae._cli._errors import CommandError
from skcompressae._cli._main import main
from skcompressae._cli._spool import Spool


@pytest.mark.parametrize(
    ("output", "when"),
    [
        ("codes.npz", "before a step"),
        ("codes.npz", "at the end"),
        ("codes.skc", "within a step"),
        ("codes.skc", "at the end"),
        ("codes.parquet", "within a step"),
        ("back.npy", "within a step"),
    ],
)
def test_an_interrupted_run_continues_to_the_same_bytes(files, small_blocks, monkeypatch, capsys, output, when):
    main(["encode", "model.safetensors", "x.npy", "source.npz", "-q"])
    command = ["encode", "model.safetensors", "x.npy"]
    if output == "back.npy":
        command = ["decode", "model.safetensors", "source.npz"]
    assert main([*command, "whole-" + output, "-q"]) == 0

    append, finish, n_steps = Spool.append, Spool.finish, 0

    def interrupted_append(self, n_rows, arrays):
        nonlocal n_steps
        n_steps += 1
        if n_steps == 3:
            if when == "within a step":  # bytes are on the disk, the journal does not count them
                for name, array in arrays.items():
                    self._files[name].write(np.ascontiguousarray(array).tobytes()[:77])
            raise KeyboardInterrupt
        append(self, n_rows, arrays)

    def interrupted_finish(self, path, write):
        def half(result):
            result.write_bytes(b"half a file")
            raise KeyboardInterrupt

        finish(self, path, half)

    with monkeypatch.context() as patch:
        if when == "at the end":
            patch.setattr(Spool, "finish", interrupted_finish)
        else:
            patch.setattr(Spool, "append", interrupted_append)
        assert main([*command, output]) == 130
    assert not Path(output).exists()
    assert capsys.readouterr().err.splitlines()[-1].startswith("skcompressae: interrupted")

    assert main([*command, output]) == 0
    assert f"continuing after row {400 if when == 'at the end' else 200} of 400" in capsys.readouterr().err
    assert Path(output).read_bytes() == Path("whole-" + output).read_bytes()
    assert not list(files.glob("*.partial"))


def leave(command, monkeypatch):
    """Run a command that ends in its third step."""
    steps = []
    append = Spool.append
    with monkeypatch.context() as patch:
        patch.setattr(
            Spool,
            "append",
            lambda self, *step: steps.append(step) or (append(self, *step) if len(steps) < 3 else 1 / 0),
        )
        with pytest.raises(ZeroDivisionError):
            main(command)


@pytest.fixture
def leftover(files, small_blocks, monkeypatch):
    """Unfinished work of an encode."""
    leave(["encode", "model.safetensors", "x.npy", "codes.npz", "-q"], monkeypatch)
    return files / "codes.npz.partial"


@pytest.mark.parametrize(
    ("changed", "difference"),
    [
        (["--k", "2"], "model (k=6 there, 2 here)"),
        (["--norm", "unit"], "model (norm='input' there, 'unit' here)"),
        (["--flattening", "0"], "model (flattening=0.2 there, 0.0 here)"),
        (["--coding", "least_squares"], "model (coding='pursuit' there, 'least_squares' here)"),
        (["--precision", "bfloat16"], "model (precision='float32' there, 'bfloat16' here)"),
        ([], "input"),
    ],
)
def test_the_leftover_of_other_work_is_refused(leftover, embeddings, capsys, changed, difference):
    command = ["encode", "model.safetensors", "x.npy", "codes.npz", "-q", *changed]
    if not changed:
        np.save("x.npy", embeddings[::-1])
    assert f"unfinished work with another {difference}; give --restart" in refuses(capsys, *command)
    assert (leftover / "journal").exists()
    assert main([*command, "--restart"]) == 0
    assert not leftover.exists()


def test_the_leftover_of_other_options_is_refused(files, small_blocks, monkeypatch, capsys):
    command = ["encode", "model.safetensors", "x.npy", "codes.skc", "-q"]
    leave(command, monkeypatch)
    message = refuses(capsys, *command, "--value-bits", "6")
    assert "unfinished work with another options (value_bits=None there, 6 here); give --restart" in message


def test_the_leftover_of_another_kind_of_values_is_refused(files, small_blocks, monkeypatch, capsys):
    command = ["encode", "model.safetensors", "x.npy", "codes.skc", "-q", "--norm", "unit"]
    leave([*command, "--value-kind", "fixed"], monkeypatch)
    for kind, here in (([], None), (["--value-kind", "auto"], None), (["--value-kind", "ranked"], "ranked")):
        message = refuses(capsys, *command, *kind)
        assert f"with another options (value_kind='fixed' there, {here!r} here); give --restart" in message
    leave([*command, "--restart"], monkeypatch)
    assert main([*command, "--value-kind", "auto"]) == 0  # which is the default


@pytest.mark.parametrize("damage", ["journal", "stream", "stranger"])
def test_a_damaged_leftover_is_refused(leftover, capsys, damage):
    if damage == "stranger":
        (leftover / "thesis.txt").write_text("mine")
    else:
        path = leftover / ("journal" if damage == "journal" else "values.bin")
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    expected = {"journal": "journal is damaged", "stream": "values.bin is damaged", "stranger": "is left alone"}[damage]
    assert expected in refuses(capsys, "encode", "model.safetensors", "x.npy", "codes.npz", "-q")
    restarted = main(["encode", "model.safetensors", "x.npy", "codes.npz", "-q", "--restart"])
    assert restarted == (1 if damage == "stranger" else 0)
    assert damage != "stranger" or (leftover / "thesis.txt").read_text() == "mine"


@pytest.mark.skipif(sys.platform == "win32", reason="no flock")
def test_two_processes_do_not_write_one_output(leftover, capsys):
    import fcntl

    with open(leftover / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        message = refuses(capsys, "encode", "model.safetensors", "x.npy", "codes.npz", "-q")
    assert "another process is at work" in message


def spool_of_two_rows():
    spool = Spool("codes.npz", {"command": "encode"}, {"rows": np.dtype("<f4")}, restart=False, force=True)
    spool.append(2, {"rows": np.ones(2)})
    return spool


def finish(spool):
    spool.finish("codes.npz", lambda path: path.write_bytes(b"finished"))


@pytest.mark.skipif(sys.platform == "win32", reason="no flock")
def test_work_that_is_being_deleted_is_not_gone_on_with(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    spool, unlink, n_refused = spool_of_two_rows(), Path.unlink, 0

    def refused_meanwhile(path, **options):
        nonlocal n_refused
        with pytest.raises(CommandError, match="another process is at work on"):
            spool_of_two_rows()
        n_refused += 1
        unlink(path, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", refused_meanwhile)
        finish(spool)
    assert n_refused >= 3  # the journal, the stream, the lock
    assert [path.name for path in tmp_path.iterdir()] == ["codes.npz"]


@pytest.mark.skipif(sys.platform == "win32", reason="no flock")
@pytest.mark.parametrize("deleted", ["folder", "lock", "both"])
def test_a_lock_that_was_deleted_before_it_was_taken_locks_nothing(tmp_path, monkeypatch, deleted):
    import fcntl

    monkeypatch.chdir(tmp_path)
    folder, mkdir, flock = Path("codes.npz.partial"), Path.mkdir, fcntl.flock

    def deleted_before_the_lock_is_made(path, **options):
        mkdir(path, **options)
        patch.undo()
        folder.rmdir()

    def deleted_before_the_lock_is_taken(*arguments):
        patch.undo()
        (folder / "lock").unlink()
        if deleted == "both":
            folder.rmdir()
        flock(*arguments)

    with monkeypatch.context() as patch:
        if deleted == "folder":
            patch.setattr(Path, "mkdir", deleted_before_the_lock_is_made)
        else:
            patch.setattr(fcntl, "flock", deleted_before_the_lock_is_taken)
        spool = spool_of_two_rows()
    with pytest.raises(CommandError, match="another process is at work"):
        spool_of_two_rows()
    finish(spool)
    assert Path("codes.npz").read_bytes() == b"finished"


def test_a_process_that_is_done_leaves_the_work_of_the_next_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    spool, rmdir, others = spool_of_two_rows(), Path.rmdir, []

    def rmdir_too_late(path):
        patch.undo()
        others.append(spool_of_two_rows())
        rmdir(path)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rmdir", rmdir_too_late)
        finish(spool)
    spool.close()
    others[0].close()
    assert sorted(path.name for path in Path("codes.npz.partial").iterdir()) == ["journal", "lock", "rows.bin"]
    others.append(spool_of_two_rows())
    assert others[1].n_rows == 4
    others[1].close()


def test_where_no_row_could_be_packed_other_options_need_no_restart(files, embeddings, capsys):
    np.save("x.npy", embeddings * np.float32(1e32))
    command = ["encode", "model.safetensors", "x.npy", "codes.skc"]
    assert refuses(capsys, *command).endswith("counted from row 0; give --norm unit")
    assert not Path("codes.skc.partial").exists()
    assert main([*command, "--norm", "unit"]) == 0


def test_a_full_disk_is_named_and_the_work_goes_on(files, small_blocks, capsys):
    command = ["encode", "model.safetensors", "x.npy", "codes.npz"]
    with file_size_limit(6_000):  # of 9,600 bytes of values
        message = refuses(capsys, *command)
    assert message.startswith("codes.npz could not be written: File too large; the same command goes on from the rows")
    assert main(command) == 0
    assert "continuing after row 200 of 400" in capsys.readouterr().err
    assert main([*command[:3], "whole.npz", "-q"]) == 0
    assert Path("codes.npz").read_bytes() == Path("whole.npz").read_bytes()


# The process kills itself, without a chance to clean up, in the place of a call of os.fsync: within a step (three
# streams, the journal, its folder), or where the output is whole but has not taken its name.
KILLED = """
import os, signal, sys
from skcompressae._cli import _sources
from skcompressae._cli._main import main

n_left, fsync = int(sys.argv[1]), os.fsync

def fsync_or_die(descriptor):
    global n_left
    n_left -= 1
    if n_left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    fsync(descriptor)

os.fsync = fsync_or_die
_sources._MAX_BLOCK_ROWS = 100
main(sys.argv[2:])
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
@pytest.mark.parametrize(("n_calls", "n_rows"), [(5 * 2 + 2, 200), (5 * 2 + 4, 200), (5 * 4 + 1, 400)])
def test_a_killed_encode_continues_to_the_same_bytes(files, small_blocks, capsys, n_calls, n_rows):
    command = ["encode", "model.safetensors", "x.npy", "codes.npz"]
    killed = subprocess.run([sys.executable, "-c", KILLED, str(n_calls), *command], capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not Path("codes.npz").exists()
    assert (files / "codes.npz.partial").is_dir()
    assert main(command) == 0
    assert f"continuing after row {n_rows} of 400" in capsys.readouterr().err
    assert main([*command[:3], "whole.npz", "-q"]) == 0
    assert Path("codes.npz").read_bytes() == Path("whole.npz").read_bytes()
    assert not list(files.glob("*.partial"))
