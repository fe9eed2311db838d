"""Files of codes name the model that made them, whatever is made of them, and commands refuse those of another."""

import itertools
import json
import zipfile

import numpy as np
import pytest
import scipy.sparse as sp
from cli_cases import refuses, same_matrix

from skcompressae import CodeNearestNeighbors, CompresSAETransformer, PackedCodes, model_hash
from skcompressae._cli._main import main
from skcompressae._packed_io import Container
from skcompressae.exceptions import CodesFormatError
from skcompressae.packed._files import read_record, save


@pytest.fixture
def other(files, embeddings):
    """A model of the same width, whose codes look the same."""
    model = CompresSAETransformer(n_components=48, k=6, max_iter=2, random_state=1, device="cpu").fit(embeddings)
    model.save("other.safetensors")
    return model


def told_hash(path, capsys):
    """Return the hash that `info` tells of a file."""
    capsys.readouterr()
    assert main(["info", "--json", path]) == 0
    (record,) = json.loads(capsys.readouterr().out)
    return record.get("model_hash")


@pytest.mark.parametrize("suffix", ["npz", "skc", "parquet"])
def test_codes_of_another_model_are_refused(files, fitted, other, capsys, suffix):
    codes = f"codes.{suffix}"
    assert main(["encode", "model.safetensors", "x.npy", codes, "-q"]) == 0
    assert told_hash(codes, capsys) == model_hash(fitted)
    wanted = f"{codes} was encoded by another model, whose hash is {model_hash(fitted)}"
    assert refuses(capsys, "decode", "other.safetensors", codes, "back.npy", "-q") == wanted
    assert refuses(capsys, "search", codes, "queries.npy", "-q", "--model", "other.safetensors") == wanted
    assert main(["encode", "other.safetensors", "queries.npy", f"queries.{suffix}", "-q"]) == 0
    assert "of different hashes" in refuses(capsys, "search", codes, f"queries.{suffix}", "-q")
    assert main(["decode", "model.safetensors", codes, "back.npy", "-q"]) == 0
    assert main(["search", codes, codes, "-q", "--model", "model.safetensors"]) == 0


@pytest.mark.parametrize("suffix", ["npz", "skc"])
def test_settings_that_may_be_set_anew_may_differ(files, capsys, suffix):
    given = ["--k", "3", "--norm", "unit", "--coding", "least_squares", "--flattening", "0.1"]
    codes = f"codes.{suffix}"
    assert main(["encode", "model.safetensors", "x.npy", codes, "-q", *given]) == 0
    assert main(["decode", "model.safetensors", codes, "back.npy", "-q"]) == 0
    assert main(["search", codes, "queries.npy", "-q", "--model", "model.safetensors"]) == 0


def test_a_name_lasts_from_one_format_to_the_next(files, fitted, other, capsys):
    assert main(["encode", "model.safetensors", "x.npy", "0.npz", "-q"]) == 0
    chain = ["0.npz", "1.skc", "2.ska", "3.parquet", "4.skc", "5.npz", "6.parquet", "7.npz"]
    for made_of, made in itertools.pairwise(chain):
        assert main(["export", made_of, made, "-q"]) == 0
        assert told_hash(made, capsys) == model_hash(fitted)
        assert "another model" in refuses(capsys, "decode", "other.safetensors", made, "back.npy", "-q")
    same_matrix(sp.load_npz("7.npz"), PackedCodes.load("4.skc").to_csr())


def test_a_name_lasts_where_rows_are_shorter_than_k(files, fitted, capsys):
    """The store then holds fewer entries a row than the model's k."""
    np.save("zeros.npy", np.zeros((3, fitted.n_features_in_), np.float32))
    assert main(["encode", "model.safetensors", "zeros.npy", "0.npz", "-q"]) == 0
    for made_of, made in (("0.npz", "1.skc"), ("1.skc", "2.parquet"), ("2.parquet", "3.ska")):
        assert main(["export", made_of, made, "-q"]) == 0
        assert main(["decode", "model.safetensors", made, "back.npy", "-q", "--force"]) == 0
    assert PackedCodes.load("1.skc").k == 1


def test_files_that_name_no_model_are_taken(files, fitted, other, embeddings, capsys):
    """As SciPy, the API and versions before write them."""
    sp.save_npz("codes.npz", fitted.transform(embeddings))
    fitted.transform_packed(embeddings).save("codes.skc")
    for codes in ("codes.npz", "codes.skc"):
        assert told_hash(codes, capsys) is None
        assert main(["decode", "other.safetensors", codes, "back.npy", "-q", "--force"]) == 0


def test_rows_that_are_added_take_the_name_away(files, fitted, embeddings, capsys):
    assert main(["encode", "model.safetensors", "x.npy", "codes.skc", "-q"]) == 0
    PackedCodes.load("codes.skc")[:2].append_to("codes.skc")
    assert len(PackedCodes.load("codes.skc")) == len(embeddings) + 2
    assert told_hash("codes.skc", capsys) is None


def test_scipy_reads_a_file_that_names_its_model(files, fitted, embeddings):
    assert main(["encode", "model.safetensors", "x.npy", "codes.npz", "-q"]) == 0
    same_matrix(sp.load_npz("codes.npz"), fitted.transform(embeddings))


# Damage --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("record", [5, {"model_hash": 5}])
def test_a_header_that_names_no_model_is_refused(files, fitted, embeddings, capsys, record):
    save(fitted.transform_packed(embeddings), "codes.skc", record)
    with Container("codes.skc") as container, pytest.raises(CodesFormatError, match="describes no model by"):
        read_record(container)
    message = refuses(capsys, "decode", "model.safetensors", "codes.skc", "back.npy", "-q")
    assert message == f"codes.skc: the header describes no model by {record!r}"


@pytest.mark.parametrize(
    ("text", "said"),
    [(b"{", "Expecting"), (b"[]", "no attribute"), (b'{"model_hash": 5}', "model_hash=5"), (b"\xff{", "codec")],
)
def test_a_member_that_names_no_model_is_refused(files, fitted, embeddings, capsys, text, said):
    sp.save_npz("codes.npz", fitted.transform(embeddings))
    np.save("model.npy", np.array(text))
    with zipfile.ZipFile("codes.npz", "a") as archive:
        archive.write("model.npy")
    message = refuses(capsys, "info", "codes.npz")
    assert message.startswith("codes.npz says of its model what cannot be read (")
    assert said in message


# Packed codes in Parquet ---------------------------------------------------------------------------------------------


def test_packed_codes_in_parquet_keep_their_residual_codes(files, fitted, embeddings, capsys):
    packed = fitted.transform_packed(embeddings).with_residual_of(
        embeddings, fitted.components_, n_bytes=4, normalize=False
    )
    packed.save("codes.skc")
    assert main(["export", "codes.skc", "codes.parquet"]) == 0
    assert "left out" not in capsys.readouterr().err
    for made_of in ("codes.skc", "codes.parquet"):
        assert main(["export", made_of, "codes.npz", "--force"]) == 0
        assert "residual codes are left out: .npz files hold none\n" in capsys.readouterr().err
    expected = CodeNearestNeighbors(3, compressor=fitted, rerank=50).fit(packed).kneighbors(packed)
    search = ["-n", "3", "--model", "model.safetensors", "--rerank", "50", "-q", "--force"]
    for codes, queries in (("codes.parquet", "codes.skc"), ("codes.skc", "codes.parquet")):
        assert main(["search", codes, queries, "found.npz", *search]) == 0
        found = np.load("found.npz")
        np.testing.assert_array_equal(found["indices"], expected[1])
        np.testing.assert_array_equal(found["distances"], expected[0])
