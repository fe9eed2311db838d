"""The command line and what Parquet files say about their codes: by whom, of whom, in which columns."""

import json
import re
from copy import deepcopy
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import scipy.sparse as sp
from cli_cases import refuses, same_matrix

from skcompressae import CompresSAETransformer, model_hash
from skcompressae._cli._main import main
from skcompressae.arrow import encode_batch


def test_split_signs_are_joined(files, fitted, embeddings, capsys):
    table = encode_batch(fitted, pq.read_table("x.parquet"), "vector", layout="struct", split_signs=True)
    pq.write_table(table, "split.parquet")
    for options in ([], ["--n-components", "48"]):
        assert main(["decode", "model.safetensors", "split.parquet", "back.npy", "-q", "-f", *options]) == 0
        np.testing.assert_allclose(
            np.load("back.npy"), fitted.inverse_transform(fitted.transform(embeddings)), rtol=1e-5, atol=1e-6
        )
    assert main(["export", "split.parquet", "split.npz", "-q"]) == 0
    same_matrix(sp.csr_matrix(sp.load_npz("split.npz")), sp.csr_matrix(fitted.transform(embeddings)))
    capsys.readouterr()
    assert main(["info", "split.parquet"]) == 0
    assert re.search(r"n_components +48\b", capsys.readouterr().out)


def test_metadata_that_spark_wrote_is_read(files, fitted, capsys):
    """Spark keeps the metadata of columns in a schema of its own, and drops what Arrow's schema says."""
    table = encode_batch(fitted, pq.read_table("x.parquet"), "vector")
    text = table.schema.metadata[b"skcompressae.codes"].decode()
    fields = [{"name": name, "metadata": {"skcompressae.codes": text}} for name in ("indices", "values")]
    spark = {b"org.apache.spark.sql.parquet.row.metadata": json.dumps({"type": "struct", "fields": fields}).encode()}
    pq.write_table(table.replace_schema_metadata(spark), "spark.parquet")
    assert main(["decode", "model.safetensors", "spark.parquet", "back.npy", "-q"]) == 0
    capsys.readouterr()
    assert main(["info", "spark.parquet"]) == 0
    assert re.search(r"n_components +48\b", capsys.readouterr().out)
    other = deepcopy(fitted)
    other.encoder_weights_ = other.encoder_weights_[::-1].copy()
    other.save("other.safetensors")
    message = refuses(capsys, "decode", "other.safetensors", "spark.parquet", "other.npy", "-q")
    assert "hash" in message
    assert not Path("other.npy").exists()


@pytest.mark.parametrize("columns", [5, [1, 2], [], None])
def test_names_of_columns_in_metadata_are_checked(files, fitted, embeddings, capsys, columns):
    table = fitted.transform_packed(embeddings).to_arrow()
    meta = json.dumps({**json.loads(table.schema.metadata[b"skcompressae"]), "columns": columns})
    pq.write_table(table.replace_schema_metadata({b"skcompressae": meta.encode()}), "bad.parquet")
    assert main(["info", "bad.parquet"]) == 0
    assert "Parquet table" in capsys.readouterr().out
    assert "damaged metadata of codes: the metadata names the columns" in refuses(
        capsys, "export", "bad.parquet", "out.npz", "-q"
    )


def test_metadata_that_the_columns_contradict_is_refused(files, capsys):
    assert main(["encode", "model.safetensors", "x.parquet", "codes.parquet", "-q"]) == 0
    table = pq.read_table("codes.parquet")
    meta = json.loads(table.schema.metadata[b"skcompressae.codes"]) | {"split_signs": True}
    pq.write_table(table.replace_schema_metadata({b"skcompressae.codes": json.dumps(meta)}), "claims.parquet")
    message = refuses(capsys, "export", "claims.parquet", "codes.npz", "-q")
    assert "do not hold the split signs that their metadata announces" in message


@pytest.mark.parametrize("is_packed", [False, True])
def test_a_width_that_contradicts_the_metadata_is_refused(files, fitted, embeddings, capsys, is_packed):
    codes = encode_batch(fitted, pq.read_table("x.parquet"), "vector")
    pq.write_table(fitted.transform_packed(embeddings).to_arrow() if is_packed else codes, "codes.parquet")
    wider = CompresSAETransformer(n_components=96, k=6, max_iter=2, random_state=0).fit(embeddings)
    wider.save("wider.safetensors")
    for command in (
        ["export", "codes.parquet", "codes.npz", "-q", "--n-components", "96"],
        ["search", "codes.parquet", "queries.npy", "-q", "--model", "wider.safetensors"],
    ):
        assert refuses(capsys, *command) == "codes.parquet has codes of 48 components, not 96"
    assert main(["export", "codes.parquet", "codes.npz", "-q", "--n-components", "48"]) == 0
    assert sp.load_npz("codes.npz").shape == (400, 48)


@pytest.mark.parametrize("width", [2**70, 0, 48.0, "48"])
def test_a_width_that_no_codes_have_is_refused(files, fitted, embeddings, capsys, width):
    table = fitted.transform_packed(embeddings).to_arrow()
    meta = json.dumps({**json.loads(table.schema.metadata[b"skcompressae"]), "n_components": width})
    pq.write_table(table.replace_schema_metadata({b"skcompressae": meta.encode()}), "bad.parquet")
    message = refuses(capsys, "export", "bad.parquet", "out.npz", "-q", "--n-components", "48")
    assert message.endswith(f"the metadata tells n_components={width!r}, expected a positive int below 2**31")


def test_codes_of_another_candidate_factor_are_of_the_same_model(files, fitted, embeddings, capsys):
    other = deepcopy(fitted).set_params(candidate_factor=5.0, norm="unit")
    table = encode_batch(other, pq.read_table("x.parquet"), "vector")
    pq.write_table(table, "codes.parquet")
    assert main(["search", "codes.parquet", "queries.npy", "--model", "model.safetensors", "-q"]) == 0
    assert main(["decode", "model.safetensors", "codes.parquet", "back.npy", "-q"]) == 0
    np.testing.assert_array_equal(np.load("back.npy"), other.inverse_transform(other.transform(embeddings)))
    meta = json.loads(table.schema.metadata[b"skcompressae.codes"])
    assert meta["candidate_factor"] == 5.0
    capsys.readouterr()
    for factor in (3.0, "x", -1):
        changed = {b"skcompressae.codes": json.dumps({**meta, "candidate_factor": factor})}
        pq.write_table(table.replace_schema_metadata(changed), "other.parquet")
        message = refuses(capsys, "decode", "model.safetensors", "other.parquet", "other.npy", "-q")
        assert message == f"other.parquet was encoded by another model, whose hash is {meta['model_hash']}"
    fitted_values = encode_batch(other.set_params(coding="least_squares"), pq.read_table("x.parquet"), "vector")
    assert json.loads(fitted_values.schema.metadata[b"skcompressae.codes"])["candidate_factor"] is None
    pq.write_table(fitted_values, "least_squares.parquet")
    assert main(["decode", "model.safetensors", "least_squares.parquet", "back.npy", "-q", "-f"]) == 0


def test_codes_of_two_models_are_not_compared(files, fitted, embeddings, capsys):
    table = pq.read_table("x.parquet")
    other = CompresSAETransformer(n_components=48, k=6, max_iter=2, random_state=1).fit(embeddings)
    fewer = deepcopy(fitted).set_params(k=3)
    for name, model in (("documents", fitted), ("fewer", fewer), ("other", other)):
        pq.write_table(encode_batch(model, table, "vector"), f"{name}.parquet")
    message = refuses(capsys, "search", "documents.parquet", "other.parquet", "-q")
    assert message == (
        f"documents.parquet and other.parquet were encoded by models of different hashes, {model_hash(fitted)} and "
        f"{model_hash(other)}; if one model with other parameters made them, name it with --model"
    )
    assert "if one model" in refuses(capsys, "search", "documents.parquet", "fewer.parquet", "-q")
    assert main(["search", "documents.parquet", "fewer.parquet", "-q", "--model", "model.safetensors"]) == 0
    assert main(["search", "documents.parquet", "documents.parquet", "-q"]) == 0
    pq.write_table(fitted.transform_packed(embeddings).to_arrow(), "packed.parquet")
    assert main(["search", "documents.parquet", "packed.parquet", "-q"]) == 0


def test_info_describes_the_files_beside_a_bad_one(files, capsys):
    np.save("flat.npy", np.zeros(5))
    Path("no\nsuch.npz").write_bytes(b"")
    for bad in (["flat.npy"], ["flat.npy", "no\nsuch.npz", "nowhere"]):
        assert main(["info", "x.npy", *bad, "queries.npy"]) == 1
        out, err = capsys.readouterr()
        assert [line.split()[1] for line in out.splitlines() if line.startswith("file")] == ["x.npy", "queries.npy"]
        lines = err.splitlines()
        assert len(lines) == len(bad)
        for line, name in zip(lines, bad, strict=True):
            assert line.startswith(f"skcompressae: error: {' '.join(name.split())}")


def test_info_counts_the_bytes_of_a_row_as_the_store_does(files, fitted, embeddings, capsys):
    packed = fitted.transform_packed(embeddings[:3])
    assert packed.nbytes > 3 * packed.bytes_per_row
    packed.save("codes.skc")
    Path("codes.ska").write_bytes(packed.to_archive())
    assert main(["info", "--json", "codes.skc", "codes.ska"]) == 0
    records = json.loads(capsys.readouterr().out)
    assert [record["bytes_per_row"] for record in records] == [packed.bytes_per_row] * 2


def test_the_size_of_a_parquet_file_is_not_that_of_its_codes(files, capsys):
    assert main(["encode", "model.safetensors", "x.parquet", "codes.parquet"]) == 0
    size = Path("codes.parquet").stat().st_size / 400
    assert f"400 codes, {size:.1f} bytes a row with the kept columns" in capsys.readouterr().err
    pq.write_table(pq.read_table("x.parquet", columns=["vector"]), "vectors.parquet")
    # none are kept
    for source, *options in (["x.parquet", "--drop-columns", "--layout", "struct"], ["x.npy"], ["vectors.parquet"]):
        assert main(["encode", "model.safetensors", source, "codes.parquet", "--force", *options]) == 0
        size = Path("codes.parquet").stat().st_size / 400
        assert f"400 codes, {size:.1f} bytes each\n" in capsys.readouterr().err


@pytest.mark.parametrize("changed", [{}, {"recipe": "dense"}, {"flattening": 0.1, "norm": "unit"}])
def test_info_lists_the_parameters_that_were_changed_only(changed, embeddings, tmp_path, capsys):
    path = str(tmp_path / "model.safetensors")
    given = {"n_components": 16, "k": 3, "max_iter": 5, "random_state": 0, **changed}
    CompresSAETransformer(**given).fit(embeddings).save(path)
    assert main(["info", "--json", path]) == 0
    (record,) = json.loads(capsys.readouterr().out)
    assert record["changed_parameters"] == given


def test_evaluate_says_where_its_number_of_neighbours_comes_from(files, embeddings, capsys):
    np.save("few.npy", embeddings[:10])
    message = refuses(capsys, "evaluate", "model.safetensors", "few.npy", "-q", code=2)
    assert message == "-n 100 (100 unless given) is more than the 8 documents"


def test_a_model_hash_that_is_no_text_is_refused(files, fitted, capsys):
    table = encode_batch(fitted, pq.read_table("x.parquet"), "vector")
    meta = json.loads(table.schema.metadata[b"skcompressae.codes"]) | {"model_hash": 5}
    pq.write_table(table.replace_schema_metadata({b"skcompressae.codes": json.dumps(meta)}), "bad.parquet")
    message = refuses(capsys, "decode", "model.safetensors", "bad.parquet", "back.npy", "-q")
    assert message.endswith("the metadata tells model_hash=5, expected a text")
