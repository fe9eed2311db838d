"""Streams that the caller of the command line has closed, or that take nothing: what is done stays done."""

import errno
import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp
from cli_cases import COMMAND, interrupt_fits

from skcompressae import CompresSAETransformer
from skcompressae._cli._main import main


class Full(io.StringIO):
    """A stream to a full disk."""

    def write(self, text):
        raise OSError(errno.ENOSPC, "No space left on device")


no_stderr = pytest.mark.parametrize("stderr", [None, Full()], ids=["closed", "full"])


@no_stderr
def test_commands_do_their_work_without_stderr(files, stderr, fitted, embeddings, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stderr", stderr)
    for command in (
        ["encode", "model.safetensors", "x.npy", "codes.npz"],
        ["decode", "model.safetensors", "codes.npz", "back.npy"],
        ["export", "codes.npz", "codes.skc"],
        ["fit", "x.parquet", "new.safetensors", "--n-components", "32", "--k", "4", "--max-iter", "3"],
    ):
        assert main(command) == 0
    assert (sp.load_npz("codes.npz") != fitted.transform(embeddings)).nnz == 0
    assert np.load("back.npy").shape == (400, 24)
    assert CompresSAETransformer.load("new.safetensors").n_iter_ == 3
    assert main(["encode", "model.safetensors", "nowhere.npy", "codes.npz", "--force"]) == 1
    assert main(["encode", "model.safetensors"]) == 2
    assert capsys.readouterr().out == ""
    assert sys.stderr is stderr


@no_stderr
def test_a_warning_that_nobody_sees_costs_no_model(files, stderr, monkeypatch):
    interrupt_fits(monkeypatch)
    monkeypatch.setattr(sys, "stderr", stderr)
    assert main(["fit", "x.npy", "new.safetensors", "--n-components", "32", "--k", "4"]) == 130
    assert 0 < CompresSAETransformer.load("new.safetensors").n_iter_ < 10


def test_a_result_for_a_closed_stdout_is_no_success(files, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdout", None)
    assert main(["encode", "model.safetensors", "x.npy", "codes.npz", "-q"]) == 0
    assert main(["search", "codes.npz", "codes.npz", "found.tsv", "-q"]) == 0
    assert Path("found.tsv").exists()
    for command in (["search", "codes.npz", "codes.npz"], ["info", "codes.npz"], ["info", "codes.npz", "--json"]):
        assert main([*command, "-q"]) == 141
    assert capsys.readouterr().err == ""
    assert sys.stdout is None


@pytest.mark.skipif(sys.platform == "win32", reason="no sh")
def test_files_do_not_get_the_descriptors_of_closed_streams():
    """What libraries print would go into them."""
    code = (
        "import os, sys\n"
        "from skcompressae._cli._messages import stand_ins_for_closed_streams\n"
        "with stand_ins_for_closed_streams():\n"
        "    sys.exit(10 + os.open(os.devnull, os.O_RDONLY))\n"
    )
    closed = ["sh", "-c", 'exec "$@" >&- 2>&-', "sh", sys.executable, "-c", code]
    assert subprocess.run(closed, stdin=subprocess.DEVNULL, check=False).returncode == 10 + 3


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_full_stderr_does_not_change_the_exit_code(files, fitted, embeddings):
    sp.save_npz("codes.npz", fitted.transform(embeddings))
    with open("/dev/full", "w") as full:
        exported = subprocess.run([COMMAND, "export", "codes.npz", "codes.skc"], stderr=full, check=False)
        refused = subprocess.run([COMMAND, "info", "nowhere.npz"], stderr=full, check=False)
    assert (exported.returncode, refused.returncode) == (0, 1)


def test_a_name_that_stdout_has_no_characters_for_is_escaped(files, monkeypatch):
    Path("x.npy").rename("\N{GREEK SMALL LETTER XI}.npy")
    written = io.BytesIO()
    stdout = io.TextIOWrapper(written, encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stdout)
    assert main(["info", "model.safetensors", "\N{GREEK SMALL LETTER XI}.npy"]) == 0
    lines = written.getvalue().decode("ascii").splitlines()
    assert [line.split()[1] for line in lines if line.startswith("file")] == ["model.safetensors", r"\u03be.npy"]
    assert stdout.errors == "strict"
