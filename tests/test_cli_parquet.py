"""Parquet in and out of the command line: columns that collide, columns of codes, columns of tensors."""

import json
import os
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scipy.sparse as sp
from cli_cases import refuses, refuses_usage, same_matrix

from skcompressae._cli import _encode
from skcompressae._cli._main import main
from skcompressae.arrow import encode_batch
from skcompressae.persistence import load_model, model_hash


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


@pytest.mark.parametrize("command", ["fit", "evaluate", "encode"])
@pytest.mark.parametrize("is_packed", [False, True])
def test_codes_are_not_taken_for_embeddings(files, fitted, embeddings, capsys, command, is_packed):
    codes = encode_batch(fitted, pq.read_table("x.parquet"), "vector", keep_embedding=True)
    packed = fitted.transform_packed(embeddings).to_arrow()
    packed = packed.append_column("vector", pq.read_table("x.parquet")["vector"])
    pq.write_table(packed if is_packed else codes, "both.parquet")
    pq.write_table((packed if is_packed else codes).drop_columns("vector"), "codes.parquet")
    options = {
        "fit": ["new.safetensors", "--n-components", "16", "--k", "2", "--max-iter", "2"],
        "evaluate": ["-n", "5", "--nonzeros", "2", "--modes", "sparse", "--references"],
        "encode": ["new.npz"],
    }[command]
    model = [] if command == "fit" else ["model.safetensors"]
    start, end = [command, *model], [*options, "-q"]
    expected = "column 'values' holds codes, not embeddings; decode it first"
    assert refuses(capsys, *start, "codes.parquet", *end) == f"codes.parquet: {expected}"
    assert refuses(capsys, *start, "both.parquet", *end, "--column", "values") == f"both.parquet: {expected}"
    assert main([*start, "both.parquet", *end, "--column", "vector"]) == 0


def test_a_column_called_as_those_of_codes_may_hold_embeddings(files, fitted, embeddings):
    """Where metadata says nothing, or names columns that are gone."""
    table = encode_batch(fitted, pq.read_table("x.parquet"), "vector", code_columns=("numbers", "weights"))
    rows = pa.table({"values": pq.read_table("x.parquet")["vector"]})
    for metadata in (None, table.schema.metadata):
        pq.write_table(rows.replace_schema_metadata(metadata), "rows.parquet")
        assert main(["encode", "model.safetensors", "rows.parquet", "codes.npz", "-q", "-f"]) == 0
        same_matrix(sp.load_npz("codes.npz"), fitted.transform(embeddings))


def test_tensors_are_embeddings(files, fitted, embeddings):
    tensors = pa.FixedShapeTensorArray.from_numpy_ndarray(np.ascontiguousarray(embeddings))
    table = pa.table({"id": pa.array(range(400)), "vector": tensors})
    pq.write_table(table, "tensors.parquet", row_group_size=90)
    assert isinstance(pq.read_schema("tensors.parquet").field("vector").type, pa.FixedShapeTensorType)
    for options in ([], ["--column", "vector"]):
        assert main(["encode", "model.safetensors", "tensors.parquet", "codes.npz", "-q", "-f", *options]) == 0
        same_matrix(sp.load_npz("codes.npz"), fitted.transform(embeddings))
    command = ["-q", "--n-components", "16", "--k", "2", "--max-iter", "3", "--random-state", "0", "--device", "cpu"]
    for name in ("x", "tensors"):
        assert main(["fit", f"{name}.parquet", f"{name}.safetensors", *command]) == 0
    # not their bytes: safetensors writes the header in any order
    assert len({model_hash(load_model(f"{name}.safetensors")) for name in ("x", "tensors")}) == 1


def test_a_table_without_embeddings_is_described(files, capsys):
    pq.write_table(pa.table({"id": pa.array([1]), "numbers": pa.array([[1, 2]])}), "none.parquet")
    message = refuses_usage(capsys, "encode", "model.safetensors", "none.parquet", "codes.npz", "-q")
    field = pq.read_schema("none.parquet").field("numbers")
    assert message == f"none.parquet has no column of float lists; it has id: int64, numbers: {field.type}"


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux takes file names that are not UTF-8")
def test_names_that_are_no_text(files, fitted, embeddings, capsys):
    folder = Path(os.fsdecode(b"b\xff"))
    folder.mkdir()
    Path("x.parquet").rename(folder / "x.parquet")
    for command in (
        ["encode", "model.safetensors", f"{folder}/x.parquet", f"{folder}/codes.parquet"],
        ["decode", "model.safetensors", f"{folder}/codes.parquet", f"{folder}/back.parquet"],
        ["export", f"{folder}/codes.parquet", f"{folder}/codes.npz"],
        ["info", "--json", f"{folder}/back.parquet"],
    ):
        assert main([*command, "-q"]) == 0
    same_matrix(sp.load_npz(folder / "codes.npz"), fitted.transform(embeddings))
    assert json.loads(capsys.readouterr().out)[0]["n_rows"] == 400
