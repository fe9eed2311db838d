"""The command line: what it writes is what the API gives, and what it says about everything else."""

import errno
import io
import json
import os
import subprocess
import sys
import zipfile
from copy import deepcopy
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scipy.sparse as sp
from cli_cases import COMMAND, interrupt_fits, refuses, refuses_usage, same_matrix

from skcompressae import CodeNearestNeighbors, CompresSAETransformer, PackedCodes
from skcompressae._cli._main import main
from skcompressae.arrow import codes_from_arrow
from skcompressae.persistence import model_hash


def test_encode_writes_what_transform_gives(files, small_blocks, fitted, embeddings):
    expected = fitted.transform(embeddings)
    assert main(["encode", "model.safetensors", "x.npy", "codes.npz", "-q"]) == 0
    same_matrix(sp.load_npz("codes.npz"), expected)

    assert main(["encode", "model.safetensors", "x.npy", "codes.skc", "-q", "--value-bits", "6"]) == 0
    assert PackedCodes.load("codes.skc") == fitted.transform_packed(embeddings, value_bits=6)

    assert main(["encode", "model.safetensors", "x.parquet", "codes.parquet", "-q"]) == 0
    table = pq.read_table("codes.parquet")
    assert table.schema.names == ["id", "indices", "values"]
    assert table["id"].to_pylist() == list(range(400))
    same_matrix(codes_from_arrow(table), expected)
    assert not list(files.glob("*.partial"))


def test_encode_takes_the_parameters_of_a_fitted_model(files, fitted, embeddings):
    import copy

    other = copy.deepcopy(fitted).set_params(k=3, coding="activations", norm=None)
    options = ["--k", "3", "--coding", "activations", "--norm", "none"]
    assert main(["encode", "model.safetensors", "x.npy", "codes.npz", "-q", *options]) == 0
    same_matrix(sp.load_npz("codes.npz"), other.transform(embeddings))
    assert main(["encode", "model.safetensors", "x.parquet", "c.parquet", "-q", *options, "--layout", "struct"]) == 0
    same_matrix(codes_from_arrow(pq.read_table("c.parquet")), other.transform(embeddings))
    # another k of the same model is no other model
    assert main(["decode", "model.safetensors", "c.parquet", "back.npy", "-q"]) == 0
    np.testing.assert_array_equal(np.load("back.npy"), other.inverse_transform(other.transform(embeddings)))


def test_codes_of_another_flattening_are_of_the_same_model(files, fitted, embeddings):
    import copy

    other = copy.deepcopy(fitted).set_params(flattening=0.4)
    expected = other.transform(embeddings)
    assert abs(expected - fitted.transform(embeddings)).max() > 1e-3
    assert main(["encode", "model.safetensors", "x.parquet", "c.parquet", "-q", "--flattening", "0.4"]) == 0
    table = pq.read_table("c.parquet")
    expected_meta = table.schema.metadata
    same_matrix(codes_from_arrow(table), expected)
    assert main(["decode", "model.safetensors", "c.parquet", "back.npy", "-q"]) == 0
    np.testing.assert_array_equal(np.load("back.npy"), other.inverse_transform(expected))
    # as tables were written before they said it
    meta = {key: value.replace(b'"flattening": 0.4, ', b"") for key, value in table.schema.metadata.items()}
    assert meta != table.schema.metadata
    pq.write_table(table.replace_schema_metadata(meta), "older.parquet")
    assert main(["decode", "model.safetensors", "older.parquet", "other.npy", "-q"]) == 1
    assert main(["encode", "model.safetensors", "x.parquet", "plain.parquet", "-q", "--flattening", "0"]) == 0
    table = pq.read_table("plain.parquet")
    meta = {key: value.replace(b'"flattening": 0.0, ', b"") for key, value in table.schema.metadata.items()}
    pq.write_table(table.replace_schema_metadata(meta), "plain.parquet")
    assert main(["decode", "model.safetensors", "plain.parquet", "other.npy", "-q"]) == 0
    assert main(["encode", "model.safetensors", "x.npy", "codes.npz", "-q", "--flattening", "1.5"]) == 2
    meta = {key: value.replace(b'"flattening": 0.4', b'"flattening": "x"') for key, value in expected_meta.items()}
    pq.write_table(table.replace_schema_metadata(meta), "damaged.parquet")
    assert main(["decode", "model.safetensors", "damaged.parquet", "other.npy", "-q"]) == 1


@pytest.mark.parametrize("dtype", ["<f2", ">f4", "<f8", "<i4"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_every_kind_of_array_is_encoded(files, small_blocks, fitted, embeddings, dtype, order):
    array = np.asarray(embeddings * 50, dtype=dtype, order=order)
    np.save("other.npy", array)
    assert main(["encode", "model.safetensors", "other.npy", "codes.npz", "-q"]) == 0
    same_matrix(
        sp.load_npz("codes.npz"),
        fitted.transform(np.ascontiguousarray(array).astype(np.dtype(dtype).newbyteorder("="))),
    )


@pytest.mark.parametrize("kind", ["fixed", "large", "float64"])
def test_every_kind_of_embedding_column_is_encoded(files, fitted, embeddings, kind):
    flat = pa.array(embeddings.ravel().astype(np.float64 if kind == "float64" else np.float32))
    if kind == "large":
        column = pa.LargeListArray.from_arrays(pa.array(np.arange(0, 9601, 24)), flat)
    else:
        column = pa.FixedSizeListArray.from_arrays(flat, 24)
    ragged = pa.array([[1.0]] * 400)
    pq.write_table(pa.table({"other": ragged, "vector": column}), "y.parquet", row_group_size=90)
    assert main(["encode", "model.safetensors", "y.parquet", "codes.npz", "-q", "--column", "vector"]) == 0
    expected = fitted.transform(embeddings.astype(flat.type.to_pandas_dtype()))
    same_matrix(sp.load_npz("codes.npz"), expected)


@pytest.mark.parametrize("suffix", ["npz", "parquet", "skc", "ska"])
def test_decode_gives_what_inverse_transform_gives(files, small_blocks, fitted, embeddings, suffix):
    codes = fitted.transform(embeddings)
    if suffix in ("npz", "parquet"):
        assert main(["encode", "model.safetensors", "x.parquet", f"codes.{suffix}", "-q"]) == 0
    else:
        packed = fitted.transform_packed(embeddings)
        codes = packed.to_csr()
        packed.save("codes.skc")
        Path("codes.ska").write_bytes(packed.to_archive())
    expected = fitted.inverse_transform(codes)
    assert main(["decode", "model.safetensors", f"codes.{suffix}", "back.npy", "-q"]) == 0
    np.testing.assert_array_equal(np.load("back.npy"), expected)
    assert main(["decode", "model.safetensors", f"codes.{suffix}", "back.parquet", "-q", "--column", "v"]) == 0
    table = pq.read_table("back.parquet")
    np.testing.assert_array_equal(np.array(table["v"].to_pylist(), np.float32), expected)
    assert table.schema.names == (["id", "v"] if suffix == "parquet" else ["v"])


# ------------------------------------------------------------------------------------------------- the other commands
@pytest.mark.parametrize("source", ["x.npy", "x.parquet"])
def test_fit_saves_the_model_that_the_api_fits(files, source):
    options = ["--n-components", "32", "--k", "4", "--max-iter", "12", "--random-state", "3", "--device", "cpu"]
    options += ["--checkpoint-dir", "training"]
    command = ["fit", source, "new.safetensors", "-q", *options, "--param", "init=kaiming", "--param", "norm=null"]
    assert main(command) == 0
    expected = CompresSAETransformer(
        n_components=32, k=4, max_iter=12, random_state=3, init="kaiming", norm=None, device="cpu"
    ).fit(np.load("x.npy", mmap_mode="r"))
    assert model_hash(CompresSAETransformer.load("new.safetensors")) == model_hash(expected)
    assert sorted(path.name for path in files.iterdir() if path.name.startswith(".")) == []


def test_an_interrupted_fit_saves_what_it_has(files, monkeypatch, capsys):
    interrupt_fits(monkeypatch)
    options = ["--n-components", "32", "--k", "4", "--device", "cpu"]
    assert main(["fit", "x.npy", "new.safetensors", *options]) == 130
    assert "skcompressae: warning: fit was interrupted after" in capsys.readouterr().err
    assert 0 < CompresSAETransformer.load("new.safetensors").n_iter_ < 10


@pytest.mark.parametrize("how", [["--checkpoint-dir", "checkpoints"], ["--param", "checkpoint_dir=checkpoints"]])
def test_an_interrupted_fit_with_checkpoints_goes_on_by_the_same_command(files, monkeypatch, capsys, how):
    from skcompressae._checkpoint import FitCheckpoint

    save = FitCheckpoint.save

    def save_and_interrupt(self, *arguments):
        save(self, *arguments)
        raise KeyboardInterrupt

    options = ["--n-components", "32", "--k", "4", "--device", "cpu", "--max-iter", "20", "--random-state", "0", "-q"]
    command = ["fit", "x.parquet", "new.safetensors", *options, *how]
    with monkeypatch.context() as patch:
        patch.setattr(FitCheckpoint, "save", save_and_interrupt)
        assert main(command) == 130
    assert CompresSAETransformer.load("new.safetensors").n_iter_ < 20
    Path("precious.safetensors").write_text("precious")
    other = [text.replace("new.", "precious.") for text in command]
    assert "precious.safetensors exists; give --force" in refuses(capsys, *other)
    assert main(command) == 0
    found = CompresSAETransformer.load("new.safetensors")
    assert main(["fit", "x.parquet", "whole.safetensors", *options]) == 0
    np.testing.assert_array_equal(found.components_, CompresSAETransformer.load("whole.safetensors").components_)
    capsys.readouterr()
    assert "new.safetensors exists; give --force" in refuses(capsys, *command)
    assert not list(Path().glob(".fit-*"))


def test_a_disk_that_is_full_is_named(files, monkeypatch, capsys):
    """A scratch file that is stored to through a map would end the process instead."""

    class Full(io.BytesIO):
        def write(self, data):
            if self.tell() > 0:  # the header still went in
                raise OSError(errno.ENOSPC, "No space left on device", "rows.npy")
            return super().write(data)

    unchanged = Path.open
    monkeypatch.setattr(
        Path, "open", lambda path, *rest, **more: Full() if path.name == "rows.npy" else unchanged(path, *rest, **more)
    )
    assert "No space left on device" in refuses(capsys, "fit", "x.parquet", "new.safetensors", "-q")
    assert not list(Path().glob(".fit-*"))


def test_search_finds_what_the_api_finds(files, fitted, embeddings, capsys):
    queries = np.load("queries.npy")
    codes = fitted.transform(embeddings)
    sp.save_npz("codes.npz", codes)
    index = CodeNearestNeighbors(4, compressor=fitted).fit(codes)
    distances, indices = index.kneighbors(queries)
    search = ["search", "codes.npz", "queries.npy", "--model", "model.safetensors", "-n", "4", "-q"]
    assert main([*search, "--save-index", "codes.index"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "query\trank\tdocument\tdistance"
    table = np.array([line.split("\t") for line in lines[1:]], dtype=float)
    np.testing.assert_array_equal(table[:, :2], [(query, rank) for query in range(15) for rank in range(1, 5)])
    np.testing.assert_array_equal(table[:, 2].reshape(15, 4), indices)
    np.testing.assert_allclose(table[:, 3].reshape(15, 4), distances, rtol=1e-5, atol=1e-6)

    assert main(["search", "codes.index", "queries.npy", "-n", "4", "-q", "found.npz"]) == 0
    found = np.load("found.npz")
    np.testing.assert_array_equal(found["indices"], indices)
    np.testing.assert_array_equal(found["distances"], distances)

    assert main([*search[:2], "x.parquet", "found.parquet", *search[3:], "--mode", "sparse"]) == 0
    expected = CodeNearestNeighbors(4).fit(codes).kneighbors(codes)[1]
    np.testing.assert_array_equal(np.array(pq.read_table("found.parquet")["documents"].to_pylist()), expected)


def test_codes_of_any_layout_are_queries_too(files, fitted, capsys):
    assert main(["encode", "model.safetensors", "x.parquet", "c.parquet", "-q", "--layout", "struct"]) == 0
    assert main(["encode", "model.safetensors", "x.npy", "c.npz", "-q"]) == 0
    capsys.readouterr()
    found = []
    for codes in ("c.parquet", "c.npz"):
        assert main(["search", codes, codes, f"{codes}.npz", "-n", "3", "-q"]) == 0
        found.append(np.load(f"{codes}.npz")["indices"])
    np.testing.assert_array_equal(*found)
    other = deepcopy(fitted)
    other.encoder_weights_ = other.encoder_weights_[::-1].copy()
    other.save("other.safetensors")
    for pair in (("c.parquet", "x.npy"), ("c.npz", "c.parquet")):
        message = refuses(capsys, "search", *pair, "out.tsv", "--model", "other.safetensors", "-q")
        assert "c.parquet was encoded by another model" in message


def test_packed_codes_are_searched_as_they_are(files, fitted, embeddings, capsys):
    packed = fitted.transform_packed(embeddings)
    packed.save("codes.skc")
    assert main(["search", "codes.skc", "codes.skc", "found.npz", "-n", "2", "-q"]) == 0
    expected = CodeNearestNeighbors(2).fit(packed).kneighbors(packed)[1]
    np.testing.assert_array_equal(np.load("found.npz")["indices"], expected)


def test_evaluate_measures_held_out_queries(files, capsys):
    command = ["evaluate", "model.safetensors", "x.npy", "-n", "10", "--nonzeros", "2", "6", "-q"]
    assert main([*command, "--json", "recall.json", "--picture", "recall.png"]) == 0
    table = capsys.readouterr().out.splitlines()
    assert table[0].split() == ["bytes", "times", "smaller", "recall@10", "setting", "method"]
    record = json.loads(Path("recall.json").read_text())
    assert len(table) == 1 + len(record["results"])
    assert (record["n_queries"], record["n_documents"]) == (80, 320)
    recall = {(point["series"], point["label"]): point["recall"] for point in record["results"]}
    packed, dense = (recall[f"CompresSAE, asymmetric{kind}", "k=6"] for kind in (", packed", ""))
    assert abs(packed - dense) < 0.1
    assert dense > recall["CompresSAE, asymmetric", "k=2"] > 0.1
    assert Path("recall.png").read_bytes().startswith(b"\x89PNG")
    # queries that are documents would all find themselves first
    assert main([*command, "--queries", "queries.npy", "--json", "other.json"]) == 0
    other = json.loads(Path("other.json").read_text())
    assert (other["n_queries"], other["n_documents"], other["queries"]) == (15, 400, "queries.npy")


def test_evaluate_measures_what_is_above_the_number_of_latents_once(files, fitted, capsys):
    n_latents = len(fitted.components_)
    command = ["-n", "10", "--nonzeros", str(n_latents), str(n_latents + 9), "--modes", "sparse", "packed", "-q"]
    assert main(["evaluate", "model.safetensors", "x.npy", *command]) == 0
    table = capsys.readouterr().out
    assert table.count(f"k={n_latents} ") == 2
    assert f"k={n_latents + 9}" not in table


def test_evaluate_takes_rows_of_any_length(files, capsys):
    command = ["-n", "10", "--nonzeros", "6", "--modes", "asymmetric", "sparse", "packed", "-q"]
    np.save("tiny.npy", np.load("x.npy").astype(np.float64) * 1e-50)
    np.save("long.npy", np.load("x.npy") * np.float32(2.0**110))
    tables = []
    for rows in ("x.npy", "tiny.npy", "long.npy"):
        assert main(["evaluate", "model.safetensors", rows, *command]) == 0
        tables.append(capsys.readouterr().out)
    assert tables[0] == tables[1] == tables[2]


def test_export_there_and_back_is_the_same(files, fitted, embeddings):
    packed = fitted.transform_packed(embeddings)
    packed.save("codes.skc")
    for source, target in (
        ("codes.skc", "a.npz"),
        ("codes.skc", "b.ska"),
        ("b.ska", "c.parquet"),
        ("c.parquet", "d.skc"),
        ("a.npz", "e.parquet"),
        ("e.parquet", "f.npz"),
        ("a.npz", "g.skc"),
    ):
        assert main(["export", source, target, "-q"]) == 0
    same_matrix(sp.load_npz("a.npz"), packed.to_csr())
    assert Path("d.skc").read_bytes() == Path("codes.skc").read_bytes()
    assert Path("f.npz").read_bytes() == Path("a.npz").read_bytes()
    assert PackedCodes.load("g.skc") == PackedCodes.pack(packed.to_csr(), value_bits=4)
    assert main(["export", "model.safetensors", "small.safetensors", "--k", "2", "-q"]) == 0
    assert CompresSAETransformer.load("small.safetensors").k == 2


def test_reference_checkpoints_come_and_go(files, fitted, capsys):
    assert main(["export", "model.safetensors", "checkpoint.pt", "-q"]) == 0
    assert "give --k" in refuses_usage(capsys, "export", "checkpoint.pt", "again.safetensors")
    assert main(["export", "checkpoint.pt", "again.safetensors", "-q", "--k", "5"]) == 0
    again = CompresSAETransformer.load("again.safetensors")
    assert (again.k, again.recipe, again.norm) == (5, "paper", None)
    options = ["--k", "4", "--coding", "pursuit", "--flattening", "0.3", "--precision", "bfloat16"]
    assert main(["export", "checkpoint.pt", "other.safetensors", "-q", *options]) == 0
    other = CompresSAETransformer.load("other.safetensors")
    assert (other.k, other.coding, other.flattening, other.precision) == (4, "pursuit", 0.3, "bfloat16")
    options = ["checkpoint.pt", "third.safetensors", "--k", "4", "--device", "foo"]
    assert "device must be" in refuses_usage(capsys, "export", *options)
    sp.save_npz("codes.npz", fitted.transform(np.eye(3, fitted.n_features_in_)))
    for name, value in (("k", 2), ("norm", "unit"), ("coding", "activations"), ("flattening", 0), ("device", "cpu")):
        message = refuses_usage(capsys, "export", "codes.npz", "small.npz", f"--{name}", value)
        assert f"--{name} is for models; codes.npz holds codes" in message
    capsys.readouterr()
    assert main(["info", "--json", "again.safetensors"]) == 0
    (record,) = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert record["dead_latents_fraction"] is None
    np.testing.assert_array_equal(again.components_, fitted.components_)


def test_info_describes_every_kind_of_file(files, fitted, embeddings, capsys):
    codes = fitted.transform(embeddings)
    sp.save_npz("codes.npz", codes)
    CodeNearestNeighbors(compressor=fitted).fit(codes).save("codes.index")
    fitted.transform_packed(embeddings).save("codes.skc")
    assert main(["encode", "model.safetensors", "x.parquet", "codes.parquet", "-q"]) == 0
    paths = ["model.safetensors", "x.npy", "x.parquet", "codes.npz", "codes.skc", "codes.parquet", "codes.index"]
    assert main(["info", "--json", *paths]) == 0
    records = {record["file"]: record for record in json.loads(capsys.readouterr().out)}
    assert records["model.safetensors"]["model_hash"] == model_hash(fitted) == records["codes.parquet"]["model_hash"]
    assert {records[path]["n_rows"] for path in paths[1:6]} == {400}
    assert {records[path].get("n_components") for path in paths if path[0] in "cm"} == {48}
    assert main(["info", *paths]) == 0
    assert "nonzeros_per_row  6" in capsys.readouterr().out


# ------------------------------------------------------------------------------------------------- refusals
def test_outputs_are_not_overwritten_unasked(files, capsys):
    Path("codes.npz").write_text("precious")
    command = ["encode", "model.safetensors", "x.npy", "codes.npz", "-q"]
    assert "codes.npz exists; give --force" in refuses(capsys, *command)
    assert Path("codes.npz").read_text() == "precious"
    assert main([*command, "--force"]) == 0
    assert zipfile.is_zipfile("codes.npz")
    assert "does not exist" in refuses(capsys, *command[:3], "nowhere/codes.npz")


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["encode", "nothing.safetensors", "x.npy", "c.npz"], "nothing.safetensors: No such file or directory"),
        (["encode", "model.safetensors", "nan.npy", "c.npz"], "nan.npy must hold finite numbers; row 7 has NaN"),
        (["encode", "model.safetensors", "wide.npy", "c.npz"], "embeddings of 25 features, the model model.safet"),
        (["encode", "model.safetensors", "cut.npy", "c.npz"], "it is truncated or damaged"),
        (["encode", "model.safetensors", "objects.npy", "c.npz"], "must hold plain numbers; its dtype is object"),
        (["encode", "model.safetensors", "text.txt", "c.npz"], "text.txt is no file that this command knows"),
        (["encode", "pickle.pkl", "x.npy", "c.npz"], "is a pickle, which runs code when it is opened"),
        (["encode", "x.npy", "x.npy", "c.npz"], "x.npy must be a model"),
        (["encode", "cut.safetensors", "x.npy", "c.npz"], "cut.safetensors"),
        (
            ["encode", "model.safetensors", "nulls.parquet", "c.npz"],
            "nulls.parquet: column 'v' holds a null in its first row",
        ),
        (["decode", "model.safetensors", "x.npy", "back.npy"], "x.npy must hold codes"),
        (["decode", "model.safetensors", "other.npz", "back.npy"], "codes of 9 components, the model"),
        (["decode", "model.safetensors", "dense.npz", "back.npy"], "format is missing"),
        (["decode", "model.safetensors", "foreign.parquet", "back.npy"], "was encoded by another model"),
        (["search", "other.npz", "other.npz", "--metric", "dot"], None),
        (["evaluate", "model.safetensors", "text.txt"], "text.txt is no file"),
        (["info", "text.txt"], "text.txt is no file"),
        (
            ["decode", "model.safetensors", "x.parquet", "back.npy"],
            "holds no codes: it has the columns id, vector, not",
        ),
        (["fit", "nan.npy", "new.safetensors"], "nan.npy must hold finite numbers; row 7 has NaN"),
        (["evaluate", "model.safetensors", "nan.npy"], "nan.npy must hold finite numbers; row 7 has NaN"),
        (["evaluate", "model.safetensors", "wide.npy"], "wide.npy has embeddings of 25 features, the model"),
        (["search", "mine.npz", "wide.npy", "--model", "model.safetensors"], "of 25 features, the model model.safet"),
        (["search", "mine.npz", "nan.npy", "--model", "model.safetensors"], "must hold finite numbers; row 7 has NaN"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_1(files, fitted, embeddings, capsys, command, message):
    spoiled = embeddings.copy()
    spoiled[7, 3] = np.nan
    np.save("nan.npy", spoiled)
    np.save("wide.npy", np.zeros((5, 25)))
    np.save("objects.npy", np.array([[None]]), allow_pickle=True)
    Path("cut.npy").write_bytes(Path("x.npy").read_bytes()[:-4])
    Path("cut.safetensors").write_bytes(Path("model.safetensors").read_bytes()[:-4])
    Path("text.txt").write_text("hello, world")
    Path("pickle.pkl").write_bytes(b"\x80\x04.")
    pq.write_table(pa.table({"v": pa.array([None, [1.0] * 24])}), "nulls.parquet")
    sp.save_npz("other.npz", sp.csr_matrix(np.eye(9)))
    sp.save_npz("mine.npz", fitted.transform(embeddings))
    np.savez("dense.npz", x=embeddings)
    import copy

    foreign = copy.deepcopy(fitted)
    foreign.encoder_bias_ = foreign.encoder_bias_ + 1
    foreign.save("foreign.safetensors")
    main(["encode", "foreign.safetensors", "x.npy", "foreign.parquet", "-q"])
    if message is None:
        command = [*command, "-n", "10"]
        assert "-n 10 is more than the 9 documents" in refuses(capsys, *command, code=2)
        return
    assert message in refuses(capsys, *command, "-q")
    assert not Path(command[-1]).exists() or command[0] in ("evaluate", "info", "search")
    assert not list(files.glob("*.partial"))


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["encode", "model.safetensors", "x.npy", "codes.csv"], "must end in one of .npz, .parquet, .skc; got .csv"),
        (["encode", "model.safetensors", "x.npy", "c.npz", "--value-bits", "4"], "--value-bits is for packed codes"),
        (["encode", "model.safetensors", "x.npy", "c.npz", "--threads", "0"], "0 is not positive"),
        (["encode", "model.safetensors", "x.parquet", "c.npz", "--column", "id"], "no column 'id' of float lists"),
        (["encode", "model.safetensors", "x.npy", "c.npz", "--layout", "int32"], "--layout is for an output that ends"),
        (["encode", "model.safetensors", "x.npy", "c.skc", "--value-bits", "17"], "invalid choice: 17"),
        (["encode", "model.safetensors", "x.npy", "c.npz", "--k", "0"], "0 is not positive"),
        (["encode", "model.safetensors", "x.npy", "c.npz", "--device", "gpu"], "device must be 'auto', 'cpu', 'cuda'"),
        (
            ["encode", "model.safetensors", "x.npy", "c.npz", "more"],
            "skcompressae encode: error: unrecognized arguments: m",
        ),
        (
            ["decode", "model.safetensors", "codes.npz", "back.npy", "--column", "v"],
            "--column is for an output that ends",
        ),
        (["fit", "x.npy", "new.pkl"], "must end in .safetensors; got .pkl"),
        (["fit", "x.npy", "new.safetensors", "--param", "init=3"], "The 'init' parameter"),
        (["fit", "x.npy", "new.safetensors", "--param", "width=3"], "--param takes NAME=VALUE with one of the names"),
        (["search", "codes.npz", "queries.npy"], "name the model that compresses them with --model"),
        (["export", "codes.npz", "model.safetensors"], "must end in one of .npz, .parquet, .skc, .ska"),
    ],
)
def test_bad_arguments_are_exit_code_2(files, fitted, embeddings, capsys, command, message):
    sp.save_npz("codes.npz", fitted.transform(embeddings))
    assert main(command) == 2
    assert message in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------- as installed
def test_the_installed_command_starts_fast_and_teaches():
    run = {"capture_output": True, "text": True, "check": True, "env": {**os.environ, "COLUMNS": "100"}}
    assert subprocess.run([COMMAND, "--version"], **run).stdout.startswith("skcompressae 0.")
    code = "import sys; from skcompressae._cli._main import main; main(['--help']); sys.exit('torch' in sys.modules)"
    listing = subprocess.run([sys.executable, "-c", code], **run).stdout
    for command in ("fit", "encode", "decode", "evaluate", "search", "info", "export"):
        assert f"\n    {command} " in listing
    assert "Exit codes: 0 done" in listing


@pytest.mark.parametrize("command", ["fit", "encode", "decode", "evaluate", "search", "info", "export"])
def test_every_command_is_taught_by_examples(capsys, command):
    assert main([command, "--help"]) == 0
    assert f"examples:\n  skcompressae {command} " in capsys.readouterr().out


def test_a_closed_pipe_ends_the_command_quietly(files, fitted, embeddings):
    sp.save_npz("codes.npz", fitted.transform(np.tile(embeddings, (8, 1))))
    search = subprocess.Popen(
        [COMMAND, "search", "codes.npz", "codes.npz", "-n", "300"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    search.stdout.read(100)
    search.stdout.close()
    assert search.stderr.read() == b""
    search.stderr.close()
    assert search.wait() == 141


@pytest.mark.parametrize(
    ("module", "output", "command"),
    [("pyarrow", "c.parquet", "encode"), ("matplotlib", "p.png", "evaluate")],
)
def test_a_missing_package_is_named_before_any_work(files, capsys, monkeypatch, module, output, command):
    # a name that is None in sys.modules cannot be imported, nor is it found
    monkeypatch.setitem(sys.modules, module, None)
    arguments = ["x.npy", output] if command == "encode" else ["x.npy", "--picture", output]
    assert "install the extra " in refuses(capsys, command, "model.safetensors", *arguments)
    assert not list(files.glob(f"{output}*"))
