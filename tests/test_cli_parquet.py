"""Parquet in and out of the command line: columns that collide, columns of codes, columns of tensors."""

import pyarrow.parquet as pq
import pytest
from cli_cases import refuses_usage

from skcompressae._cli import _encode
from skcompressae._cli._main import main


@pytest.fixture
def no_work(files, monkeypatch):
    """Refusals must come before any row is encoded or decoded."""
    monkeypatch.setattr(_encode, "Spool", lambda *_, **__: pytest.fail("work was begun"))


def test_kept_columns_that_are_called_as_those_of_codes_are_refused_first(no_work, capsys):
    table = pq.read_table("x.parquet").rename_columns(["indices", "vector"])
    pq.write_table(table, "taken.parquet")
    message = refuses_usage(capsys, "encode", "model.safetensors", "taken.parquet", "codes.parquet", "-q")
    assert message == (
        "'vector' becomes the columns 'indices', 'values', but the input has 'indices' already; rename it there, or "
        "leave the other columns out by --drop-columns"
    )


def test_columns_that_are_called_as_those_of_codes_can_be_left_out(files):
    table = pq.read_table("x.parquet").rename_columns(["indices", "vector"])
    pq.write_table(table, "taken.parquet")
    assert main(["encode", "model.safetensors", "taken.parquet", "codes.parquet", "-q", "--drop-columns"]) == 0
    assert pq.read_schema("codes.parquet").names == ["indices", "values"]


@pytest.mark.parametrize("layout", ["int32", "struct"])
def test_float16_in_layouts_of_float32_is_refused_first(no_work, capsys, layout):
    options = ["--layout", layout, "--value-type", "float16"]
    message = refuses_usage(capsys, "encode", "model.safetensors", "x.npy", "codes.parquet", "-q", *options)
    assert message == f"--value-type float16 needs --layout compact; got --layout {layout}"


def test_kept_columns_that_are_called_as_the_embeddings_are_refused_first(files, capsys, monkeypatch):
    assert main(["encode", "model.safetensors", "x.parquet", "codes.parquet", "-q"]) == 0
    decode = ["decode", "model.safetensors", "codes.parquet", "back.parquet", "-q", "--column"]
    with monkeypatch.context() as patch:
        patch.setattr(_encode, "Spool", lambda *_, **__: pytest.fail("work was begun"))
        message = refuses_usage(capsys, *decode, "id")
    assert message == "'id' is a column of the input already; choose another name with --column"
    assert main([*decode, "values"]) == 0  # the codes themselves give way
    assert pq.read_schema("back.parquet").names == ["id", "values"]
