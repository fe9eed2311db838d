"""`search`: which models, options and kinds of queries fit each other, and what is said where they do not."""

from copy import deepcopy

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scipy.sparse as sp
from cli_cases import refuses, refuses_usage

from skcompressae import CodeNearestNeighbors, CompresSAETransformer, model_hash
from skcompressae._cli._main import main
from skcompressae._neighbors_io import read_arrays, read_model_hash, write_arrays
from skcompressae.arrow import encode_batch
from skcompressae.exceptions import CodesFormatError


@pytest.fixture
def other(embeddings):
    return CompresSAETransformer(n_components=48, k=6, max_iter=2, random_state=1, device="cpu").fit(embeddings)


@pytest.fixture
def tables(files, fitted, other):
    """Codes of a model, of the same one with a smaller k, and of another one."""
    table = pq.read_table("x.parquet")
    for name, model in (("own", fitted), ("fewer", deepcopy(fitted).set_params(k=3)), ("other", other)):
        pq.write_table(encode_batch(model, table, "vector"), f"{name}.parquet")


@pytest.mark.parametrize("made_of", ["own.parquet", "codes.npz"])
@pytest.mark.parametrize("is_named", [False, True])
def test_an_index_refuses_the_codes_of_another_model(tables, fitted, other, embeddings, capsys, made_of, is_named):
    sp.save_npz("codes.npz", fitted.transform(embeddings))
    model = ["--model", "model.safetensors"] if is_named else []
    assert main(["search", made_of, "own.parquet", "-q", "--save-index", "saved.index", *model]) == 0
    assert main(["search", "saved.index", "own.parquet", "-q"]) == 0
    search = ["search", "saved.index", "other.parquet", "-q"]
    if made_of == "codes.npz" and not is_named:  # nothing says who made them
        assert read_model_hash("saved.index") is None
        assert main(search) == 0
        return
    assert read_model_hash("saved.index") == model_hash(fitted)
    assert refuses(capsys, *search) == (
        f"saved.index and other.parquet were encoded by models of different hashes, {model_hash(fitted)} and "
        f"{model_hash(other)}; if one model with other parameters made them, name it with --model, here and where the "
        "index is built"
    )
    assert "of different hashes" in refuses(capsys, "search", "saved.index", "fewer.parquet", "-q")
    if is_named:
        assert main(["search", "saved.index", "fewer.parquet", "-q", *model]) == 0
        assert "was encoded by another model" in refuses(capsys, *search, *model)


def test_an_index_keeps_the_hash_of_the_codes_that_it_was_made_of(tables, fitted, capsys):
    command = ["--model", "model.safetensors", "-q", "--save-index"]
    assert main(["search", "fewer.parquet", "queries.npy", *command, "first.index"]) == 0
    assert main(["search", "first.index", "queries.npy", "-q", "--save-index", "second.index"]) == 0
    assert read_model_hash("second.index") == model_hash(deepcopy(fitted).set_params(k=3))
    capsys.readouterr()
    assert main(["info", "second.index"]) == 0
    assert f"model_hash          {read_model_hash('second.index')}\n" in capsys.readouterr().out


def test_an_index_that_tells_no_hash_is_read(tables, fitted, embeddings, capsys):
    """As the API and versions before write them."""
    CodeNearestNeighbors(compressor=fitted).fit(fitted.transform(embeddings)).save("api.index")
    assert read_model_hash("api.index") is None
    assert main(["search", "api.index", "other.parquet", "-q"]) == 0
    capsys.readouterr()
    assert main(["info", "api.index"]) == 0
    assert "model_hash" not in capsys.readouterr().out


def test_a_hash_that_is_none_is_refused(tables, fitted, embeddings):
    CodeNearestNeighbors().fit(fitted.transform(embeddings)).save("api.index")
    meta, arrays = read_arrays("api.index", mmap=False, verify=True)
    write_arrays("bad.index", {**meta, "model_hash": 5}, arrays)
    with pytest.raises(CodesFormatError, match=r"bad\.index has a damaged header: its model_hash is 5"):
        read_model_hash("bad.index")


# What a model is needed for ------------------------------------------------------------------------------------------


@pytest.fixture
def indexes(tables, capsys):
    """Indexes of each mode, and one that was built without a model."""
    assert main(["search", "own.parquet", "own.parquet", "-q", "--save-index", "bare.index"]) == 0
    for mode in ("sparse", "reconstructed", "asymmetric"):
        options = ["--model", "model.safetensors", "--mode", mode, "--save-index", f"{mode}.index", "-q"]
        assert main(["search", "own.parquet", "queries.npy", *options]) == 0
    capsys.readouterr()


@pytest.mark.parametrize("mode", ["sparse", "reconstructed"])
def test_an_index_that_compares_codes_needs_a_model_for_embeddings(indexes, capsys, mode):
    message = refuses_usage(capsys, "search", f"{mode}.index", "queries.npy", "-q")
    assert message == "queries.npy holds embeddings; name the model that compresses them with --model"
    assert main(["search", f"{mode}.index", "queries.npy", "-q", "--model", "model.safetensors"]) == 0
    assert main(["search", "asymmetric.index", "queries.npy", "-q"]) == 0


def test_an_index_that_was_built_without_a_model_takes_codes(indexes, capsys):
    message = refuses_usage(capsys, "search", "bare.index", "queries.npy", "-q")
    assert message == (
        "queries.npy holds embeddings, and bare.index was built without a model; build it with --model, from the codes"
    )
    assert main(["search", "bare.index", "own.parquet", "-q"]) == 0


@pytest.mark.parametrize(("index", "model"), [("bare", "model"), ("sparse", "other"), ("sparse", "narrow")])
def test_a_model_that_an_index_was_not_built_with_is_refused(indexes, embeddings, other, capsys, index, model):
    other.save("other.safetensors")
    CompresSAETransformer(n_components=32, k=6, max_iter=2, random_state=0).fit(embeddings).save("narrow.safetensors")
    message = refuses(capsys, "search", f"{index}.index", "queries.npy", "-q", "--model", f"{model}.safetensors")
    assert message == (
        f"{index}.index was built with another model than {model}.safetensors, or without one; build it with --model, "
        "from the codes"
    )


@pytest.mark.parametrize("option", ["--mode reconstructed", "--mode asymmetric", "--rerank"])
def test_options_that_need_a_model_say_so(tables, capsys, option):
    given = [*option.split(), *(["5"] if option == "--rerank" else [])]
    message = refuses_usage(capsys, "search", "own.parquet", "own.parquet", "-q", *given)
    assert message == f"{option} needs the model that encoded the codes; name it with --model"


# Options that would do nothing ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "option",
    [("k", 1), ("norm", "unit"), ("coding", "activations"), ("flattening", 0.5), ("precision", "bfloat16")],
)
@pytest.mark.parametrize("codes", ["own.parquet", "asymmetric.index"])
def test_parameters_of_a_model_that_is_not_named_are_refused(indexes, capsys, option, codes):
    name, value = option
    message = refuses_usage(capsys, "search", codes, "own.parquet", "-q", f"--{name}", value)
    assert message == f"--{name} is a parameter of the model; name that with --model"


def test_devices_of_a_search(indexes, capsys):
    search = ["search", "sparse.index", "queries.npy", "-q", "--device", "cpu"]
    message = refuses_usage(capsys, *search)
    assert message == "--device is part of a saved index; build one from codes for another"
    assert main([*search, "--model", "model.safetensors"]) == 0
    assert main(["search", "own.parquet", "own.parquet", "-q", "--device", "auto"]) == 0
    capsys.readouterr()
    assert main(["search", "own.parquet", "own.parquet", "-q", "--device", "mps"]) == 2
    assert "argument --device: 'mps' is none of auto, cpu, cuda and cuda:NUMBER" in capsys.readouterr().err
    assert main(["search", "--help"]) == 0
    assert "mps" not in capsys.readouterr().out
    assert main(["encode", "--help"]) == 0
    assert "--device DEVICE       auto, cpu, cuda, cuda:1, mps" in capsys.readouterr().out


def test_distances_are_kept_as_they_are_found(files, fitted, embeddings, capsys):
    codes = fitted.transform(embeddings[:40].astype(np.float64)) * 1e24
    sp.save_npz("long.npz", codes)
    for output in ("found.npz", "found.parquet"):
        assert main(["search", "long.npz", "long.npz", output, "-n", "2", "--metric", "dot", "-q"]) == 0
    distances = np.load("found.npz")["distances"]
    assert np.isfinite(distances).all()
    assert (distances < -1e40).all()
    np.testing.assert_array_equal(np.stack(pq.read_table("found.parquet")["distances"].to_numpy()), distances)


def test_codes_of_doubles_are_exported_as_such(files, capsys):
    columns = {"indices": pa.array([[1, 3]], pa.list_(pa.int32())), "values": pa.array([[1e200, 1e-60]])}
    for name, table in (
        ("lists", pa.table(columns)),
        (
            "struct",
            pa.table(
                {
                    "code": pa.StructArray.from_arrays(
                        [column.combine_chunks() for column in pa.table(columns).columns], ["indices", "values"]
                    )
                }
            ),
        ),
    ):
        pq.write_table(table, f"{name}.parquet")
    assert main(["export", "lists.parquet", "codes.npz", "--n-components", "5", "-q"]) == 0
    np.testing.assert_array_equal(sp.load_npz("codes.npz").toarray(), [[0, 1e200, 0, 1e-60, 0]])


def test_arguments_that_cannot_be_are_told_before_any_work(tables, capsys):
    assert main(["export", "own.parquet", "codes.skc", "-q"]) == 0
    model = ["--model", "model.safetensors"]
    message = refuses_usage(capsys, "search", "codes.skc", "x.parquet", *model, "--rerank", "20")
    assert message == "--rerank needs packed codes with residual codes"
    message = refuses_usage(capsys, "search", "codes.skc", "own.parquet", *model, "--mode", "asymmetric")
    assert message == "--mode asymmetric compares embeddings with codes, and own.parquet holds codes"


def test_packed_queries_keep_their_residual_codes(files, fitted, embeddings):
    packed = fitted.transform_packed(embeddings).with_residual_of(
        embeddings, fitted.components_, n_bytes=4, normalize=False
    )
    packed.save("codes.skc")
    index = CodeNearestNeighbors(3, compressor=fitted, rerank=50).fit(packed)
    expected = index.kneighbors(packed)
    assert (expected[1] != index.kneighbors(packed.to_csr())[1]).any()
    command = ["search", "codes.skc", "codes.skc", "found.npz", "-n", "3", "--model", "model.safetensors", "-q"]
    assert main([*command, "--rerank", "50", "--save-index", "codes.index"]) == 0
    assert main(["search", "codes.index", "codes.skc", "again.npz", "-n", "3", "-q"]) == 0
    for name in ("found.npz", "again.npz"):
        found = np.load(name)
        np.testing.assert_array_equal(found["indices"], expected[1])
        np.testing.assert_array_equal(found["distances"], expected[0])
