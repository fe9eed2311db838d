"""What the tests of the command line share."""

import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

from skcompressae._cli._main import main
from skcompressae._progress import StepReporter

COMMAND = Path(sys.executable).with_name("skcompressae")


def refuses(capsys, *arguments, code=1):
    """Run a command that must fail; return its one line."""
    assert main([str(argument) for argument in arguments]) == code
    error = capsys.readouterr().err
    lines = [line for line in error.splitlines() if line.startswith("skcompressae: error: ")]
    if code == 1:
        assert error.splitlines() == lines
    assert len(lines) == 1
    return lines[0].removeprefix("skcompressae: error: ")


def refuses_usage(capsys, *arguments):
    return refuses(capsys, *arguments, code=2)


def interrupt_fits(monkeypatch):
    """Let Ctrl-C end every training at its third step."""

    def stop(self, step, *_):
        if step >= 3:
            raise KeyboardInterrupt
        return False

    monkeypatch.setattr(StepReporter, "__call__", stop)


def same_matrix(found, expected):
    assert found.shape == expected.shape
    assert found.dtype == expected.dtype
    assert (found != expected).nnz == 0


@contextmanager
def file_size_limit(n_bytes):
    """Let no file grow beyond so many bytes, as a disk would that is full then."""
    resource = pytest.importorskip("resource", reason="no limits on the size of files on Windows")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
