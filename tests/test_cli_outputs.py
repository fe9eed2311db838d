"""Outputs that appear while a command is at work are not replaced without --force, and the work is not lost."""

import os
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp
from cli_cases import refuses, refuses_usage

from skcompressae import CompresSAETransformer, _files
from skcompressae._cli import _encode, _export, _search
from skcompressae._cli._main import main
from skcompressae._cli._spool import Spool

FOREIGN = "of another program"


def appears_before(monkeypatch, owner, name, path):
    """Let a file appear each time before a function is called."""
    unchanged = getattr(owner, name)

    def called(*arguments, **options):
        Path(path).write_text(FOREIGN)
        return unchanged(*arguments, **options)

    monkeypatch.setattr(owner, name, called)


@pytest.fixture(params=["with links", "without links"])
def file_system(request, monkeypatch):
    def refuse(*_):
        raise PermissionError(1, "Operation not permitted")

    if request.param == "without links":
        monkeypatch.setattr(os, "link", refuse)


@pytest.mark.parametrize("output", ["codes.npz", "back.npy"])
def test_streams_of_rows_stay_for_another_try(files, file_system, monkeypatch, capsys, output):
    assert main(["encode", "model.safetensors", "x.npy", "source.npz", "-q"]) == 0
    command = ["encode", "model.safetensors", "x.npy", output]
    if output == "back.npy":
        command = ["decode", "model.safetensors", "source.npz", output]
    capsys.readouterr()
    with monkeypatch.context() as patch:
        appears_before(patch, Spool, "finish", output)
        message = refuses(capsys, *command)
    assert message == (
        f"the output {output} appeared meanwhile and is not replaced; move it away or give --force, and the same "
        f"command makes it of the finished work in {output}.partial"
    )
    assert Path(output).read_text() == FOREIGN
    assert not Path(f"{output}.partial/result.tmp").exists()
    assert main([*command, "--force"]) == 0
    assert "continuing after row 400 of 400" in capsys.readouterr().err
    assert main([*command[:3], f"whole-{output}", "-q"]) == 0
    assert Path(output).read_bytes() == Path(f"whole-{output}").read_bytes()
    assert not list(files.glob("*.partial"))


def test_an_output_made_before_the_work_begins_ends_it(files, monkeypatch, capsys):
    appears_before(monkeypatch, _encode, "_identity", "codes.npz")
    message = refuses(capsys, "encode", "model.safetensors", "x.npy", "codes.npz")
    assert message == "the output codes.npz exists; give --force to replace it, or another name"
    assert not list(files.glob("*.partial"))


@pytest.mark.parametrize(
    ("command", "output"),
    [
        (["search", "codes.npz", "codes.npz", "found.tsv"], "found.tsv"),
        (["search", "codes.npz", "codes.npz", "found.npz"], "found.npz"),
        (["search", "codes.npz", "codes.npz", "found.parquet"], "found.parquet"),
        (["export", "codes.skc", "other.npz"], "other.npz"),
        (["export", "codes.skc", "other.ska"], "other.ska"),
        (["export", "codes.skc", "other.parquet"], "other.parquet"),
        (["export", "codes.npz", "other.parquet"], "other.parquet"),
        (["evaluate", "model.safetensors", "x.npy", "-n", "3", "--json", "recall.json"], "recall.json"),
        (["evaluate", "model.safetensors", "x.npy", "-n", "3", "--picture", "recall.svg"], "recall.svg"),
    ],
)
def test_what_was_written_is_kept_beside_the_output(
    files, file_system, fitted, embeddings, monkeypatch, capsys, command, output
):
    sp.save_npz("codes.npz", fitted.transform(embeddings[:40]))
    fitted.transform_packed(embeddings[:40]).save("codes.skc")
    appears_before(monkeypatch, _files, "put_in_place", output)
    message = refuses(capsys, *command, "-q")
    (kept,) = files.glob(f".{output}.*.tmp")
    assert message == f"{output}: appeared meanwhile and is not replaced; what was to become it is {kept.name}"
    assert Path(output).read_text() == FOREIGN
    assert main([*command, "-q", "--force"]) == 0
    assert Path(output).stat().st_size == pytest.approx(kept.stat().st_size, rel=0.01)


def test_outputs_that_are_saved_at_once(files, fitted, embeddings, monkeypatch, capsys):
    sp.save_npz("codes.npz", fitted.transform(embeddings[:40]))
    with monkeypatch.context() as patch:
        appears_before(patch, _export, "_packed", "other.skc")
        assert "other.skc exists; give --force" in refuses(capsys, "export", "codes.npz", "other.skc", "-q")
    with monkeypatch.context() as patch:
        appears_before(patch, _search, "_make_index", "index")
        command = ["search", "codes.npz", "codes.npz", "--save-index", "index", "-q"]
        assert "the output index exists; give --force" in refuses(capsys, *command)
    assert Path("other.skc").read_text() == Path("index").read_text() == FOREIGN


def test_a_fitted_model_is_saved_beside_an_output_that_appeared(files, monkeypatch, capsys):
    command = ["fit", "x.npy", "new.safetensors", "-q", "--n-components", "32", "--k", "4", "--max-iter", "3"]
    command += ["--device", "cpu", "--random-state", "0"]
    Path("new-2.safetensors").write_text(FOREIGN)
    with monkeypatch.context() as patch:
        appears_before(patch, CompresSAETransformer, "fit", "new.safetensors")
        message = refuses(capsys, *command)
    assert message == (
        "the output new.safetensors appeared meanwhile and is not replaced; the model is saved as new-3.safetensors"
    )
    assert Path("new.safetensors").read_text() == Path("new-2.safetensors").read_text() == FOREIGN
    found = CompresSAETransformer.load("new-3.safetensors")
    assert main([*command, "--force"]) == 0
    np.testing.assert_array_equal(found.components_, CompresSAETransformer.load("new.safetensors").components_)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows makes symbolic links for administrators only")
def test_a_link_that_leads_nowhere_gives_way(files):
    Path("codes.npz").symlink_to("nowhere.npz")
    assert main(["encode", "model.safetensors", "x.npy", "codes.npz", "-q"]) == 0
    assert not Path("codes.npz").is_symlink()
    assert sp.load_npz("codes.npz").shape == (400, 48)


@pytest.mark.parametrize(
    ("command", "output"),
    [
        (["encode", "model.safetensors", "x.parquet", "./x.parquet"], "./x.parquet"),
        (["decode", "model.safetensors", "codes.parquet", "codes.parquet"], "codes.parquet"),
        (["fit", "x.npy", "x.npy"], "x.npy"),
        (["export", "model.safetensors", "link.safetensors", "--k", "3"], "link.safetensors"),
        (["search", "codes.npz", "x.npy", "--model", "model.safetensors", "--save-index", "model.safetensors"],
         "model.safetensors"),
        (["search", "codes.npz", "codes.npz", "codes.npz"], "codes.npz"),
        (["evaluate", "model.safetensors", "x.npy", "--json", "x.npy"], "x.npy"),
    ],
)  # fmt: skip
def test_no_input_is_written_over(files, fitted, embeddings, capsys, command, output):
    sp.save_npz("codes.npz", fitted.transform(embeddings[:40]))
    assert main(["encode", "model.safetensors", "x.npy", "codes.parquet", "-q"]) == 0
    Path("link.safetensors").hardlink_to("model.safetensors")
    before = {path: path.read_bytes() for path in files.iterdir()}
    message = refuses_usage(capsys, *command, "--force")
    assert message == f"the output {output} is an input of this command; give another name"
    assert {path: path.read_bytes() for path in files.iterdir()} == before


def test_two_outputs_are_two_files(files, fitted, embeddings, capsys):
    sp.save_npz("codes.npz", fitted.transform(embeddings[:40]))
    command = ["search", "codes.npz", "codes.npz", "found.tsv", "--save-index", "./found.tsv"]
    message = "two outputs of this command would be the file ./found.tsv; give another name to one"
    assert refuses_usage(capsys, *command) == message
    assert not Path("found.tsv").exists()


def test_values_that_the_output_cannot_hold_are_named_and_leave_nothing(files, embeddings, capsys):
    factors = np.where(np.arange(len(embeddings)) < 7, 1, 1e200)
    np.save("long.npy", embeddings * factors[:, None])
    message = refuses(capsys, "encode", "model.safetensors", "long.npy", "codes.parquet")
    assert message == (
        "long.npy, row 7: the values of its code are beyond float32, which the output holds; give --norm unit, or an "
        "output that ends in .npz"
    )
    message = refuses(capsys, "encode", "model.safetensors", "long.npy", "codes.skc")
    assert message == "long.npy: codes contain NaN, infinity or a value beyond float32; give --norm unit"
    for output in ("codes.parquet", "codes.skc"):
        assert main(["encode", "model.safetensors", "long.npy", output, "--norm", "unit", "-q"]) == 0
    assert not list(files.glob("*.partial"))
