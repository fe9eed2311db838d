"""`search`: which models, options and kinds of queries fit each other, and what is said where they do not."""

from copy import deepcopy

import pyarrow.parquet as pq
import pytest
from cli_cases import refuses

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
def test_an_index_refuses_the_codes_of_another_model(tables, fitted, other, capsys, made_of, is_named):
    assert main(["export", "own.parquet", "codes.npz", "-q"]) == 0
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
