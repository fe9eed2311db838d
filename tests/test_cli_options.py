"""Options of the commands arrive, every kind of input goes on where it was left, impossible leftovers are refused."""

import copy
import errno
import json
import os
import sys
import zipfile
import zlib
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scipy.sparse as sp
import torch
from cli_cases import refuses, refuses_usage

from skcompressae import CodeNearestNeighbors, CompresSAETransformer, PackedCodes, metrics
from skcompressae._cli import _encode, _export, _main, _npz
from skcompressae._cli._main import main
from skcompressae._cli._models import matching_model
from skcompressae._cli._npy import NpyRows
from skcompressae._cli._sources import open_rows
from skcompressae._cli._spool import Spool
from skcompressae._core._threads import effective_n_threads
from skcompressae._plot import _tradeoff_points
from skcompressae.arrow import codes_from_arrow
from skcompressae.packed import ValueQuantizer, _quantizer
from skcompressae.persistence import model_hash


@pytest.mark.parametrize("n_steps", [1, 2, 3])
@pytest.mark.parametrize(
    "source", ["x.npy", "f.npy", "x.parquet", "codes.npz", "codes.parquet", "codes.skc", "codes.ska"]
)
def test_every_kind_of_input_is_gone_on_with_where_it_was_left(
    files, small_blocks, fitted, embeddings, monkeypatch, source, n_steps
):
    """Blocks of 100 rows, row groups of 150."""
    np.save("f.npy", np.asfortranarray(embeddings))
    if source.startswith("codes"):
        packed = fitted.transform_packed(embeddings)
        packed.save("codes.skc")
        Path("codes.ska").write_bytes(packed.to_archive())
        sp.save_npz("codes.npz", packed.to_csr())
        assert main(["encode", "model.safetensors", "x.parquet", "codes.parquet", "-q"]) == 0
        pq.write_table(pq.read_table("codes.parquet"), "codes.parquet", row_group_size=150)
    command = ["decode" if source.startswith("codes") else "encode", "model.safetensors", source]
    output = "out.npy" if source.startswith("codes") else "out.npz"
    assert main([*command, "whole-" + output, "-q"]) == 0
    append, n_left = Spool.append, n_steps

    def interrupted(self, n_rows, arrays):
        nonlocal n_left
        if n_left == 0:
            raise KeyboardInterrupt
        n_left -= 1
        append(self, n_rows, arrays)

    with monkeypatch.context() as patch:
        patch.setattr(Spool, "append", interrupted)
        assert main([*command, output, "-q"]) == 130
    assert main([*command, output, "-q"]) == 0
    assert Path(output).read_bytes() == Path("whole-" + output).read_bytes()


def test_unfinished_work_of_another_version_is_refused(files, small_blocks, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        patch.setattr(Spool, "finish", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            main(["encode", "model.safetensors", "x.npy", "codes.npz", "-q"])
    monkeypatch.setattr("skcompressae._version.__version__", "99")
    assert "another skcompressae; give --restart" in refuses(
        capsys, "encode", "model.safetensors", "x.npy", "codes.npz", "-q"
    )


def test_blocks_of_few_nonzeros(files, small_blocks, fitted, embeddings, monkeypatch):
    codes = fitted.transform(embeddings)
    sp.save_npz("codes.npz", codes)
    monkeypatch.setattr(_npz, "_BLOCK_NONZEROS", 50)
    assert main(["decode", "model.safetensors", "codes.npz", "back.npy", "-q"]) == 0
    np.testing.assert_array_equal(np.load("back.npy"), fitted.inverse_transform(codes))


@pytest.mark.parametrize("kind", ["ranked", "uniform", "fixed"])
def test_packed_codes_of_any_kind(files, fitted, embeddings, kind):
    command = ["encode", "model.safetensors", "x.npy", "c.skc", "-q", "--norm", "unit", "--value-kind", kind]
    assert main(command) == 0
    unit = copy.copy(fitted).set_params(norm="unit")
    assert PackedCodes.load("c.skc") == unit.transform_packed(embeddings, kind=kind)
    codes = unit.transform(embeddings)
    sp.save_npz("codes.npz", codes)
    for output in ("d.skc", "d.ska"):
        assert main(["export", "codes.npz", output, "-q", "--value-kind", kind]) == 0
    assert PackedCodes.load("d.skc") == PackedCodes.pack(codes, kind=kind)
    assert PackedCodes.from_archive(Path("d.ska").read_bytes()) == PackedCodes.load("d.skc")


def test_kinds_that_rows_cannot_have_are_refused(files, fitted, embeddings, capsys):
    encode = ["encode", "model.safetensors", "x.npy", "c.skc", "-q", "--value-kind"]
    assert "give --norm unit or --norm none with it" in refuses_usage(capsys, *encode, "fixed", "--norm", "input")
    assert "at most 8 with --value-kind ranked" in refuses_usage(capsys, *encode, "ranked", "--value-bits", "9")
    npz = ["encode", "model.safetensors", "x.npy", "c.npz", "-q", "--value-kind", "fixed"]
    assert "--value-kind is for packed codes, an output that ends in .skc" in refuses_usage(capsys, *npz)
    with_zeros = embeddings.copy()
    with_zeros[7] = 0
    np.save("zeros.npy", with_zeros)
    zeros = ["encode", "model.safetensors", "zeros.npy", "c.skc", "-q", "--value-kind", "fixed", "--norm", "unit"]
    message = refuses(capsys, *zeros)
    assert "zeros.npy" in message
    assert "row of zeros" in message
    assert message.rstrip().endswith("give --value-kind ranked")
    sp.save_npz("long.npz", 2.0**20 * fitted.transform(embeddings))
    assert "rows of about unit norm" in refuses(capsys, "export", "long.npz", "d.skc", "-q", "--value-kind", "fixed")
    assert not [path for path in Path().iterdir() if path.suffix == ".skc"]


@pytest.mark.parametrize("value_bits", [1, 8, 9, 16])
def test_packed_codes_of_any_width(files, fitted, embeddings, value_bits):
    for source in ("x.npy", "x.parquet"):
        assert main(["encode", "model.safetensors", source, "c.skc", "-q", "-f", "--value-bits", str(value_bits)]) == 0
        assert PackedCodes.load("c.skc") == fitted.transform_packed(embeddings, value_bits=value_bits)
    codes = fitted.transform(embeddings)
    sp.save_npz("codes.npz", codes)
    assert main(["export", "codes.npz", "d.skc", "-q", "--value-bits", str(value_bits)]) == 0
    assert PackedCodes.load("d.skc") == PackedCodes.pack(codes, value_bits=value_bits)


def test_exports_learn_levels_from_evenly_spaced_rows(files, fitted, embeddings, monkeypatch):
    for module, name, size in ((_quantizer, "_SAMPLE_ROWS", 50), (_export, "_BLOCK_ROWS", 60)):
        monkeypatch.setattr(module, name, size)
    codes = sp.vstack([sp.csr_matrix((100, 48), dtype=np.float32), fitted.transform(embeddings)]).tocsr()
    sp.save_npz("codes.npz", codes)
    assert main(["export", "codes.npz", "d.skc", "-q"]) == 0
    quantizer = ValueQuantizer.fit(codes[np.linspace(0, 499, 50).astype(int)], k=6)
    assert PackedCodes.load("d.skc") == PackedCodes.pack(codes, quantizer=quantizer)


def test_rows_are_taken_from_any_row_group(files, embeddings):
    np.save("f.npy", np.asfortranarray(embeddings))
    rows = np.array([3, 149, 150, 151, 299, 399])
    for name in ("x.npy", "f.npy", "x.parquet"):
        np.testing.assert_array_equal(open_rows(name, None).take(rows), embeddings[rows])


def test_what_a_parquet_file_of_codes_holds(files, fitted, embeddings):
    assert main(["encode", "model.safetensors", "x.parquet", "c.parquet", "-q", "--drop-columns"]) == 0
    assert pq.read_table("c.parquet").schema.names == ["indices", "values"]
    assert main(["encode", "model.safetensors", "x.parquet", "h.parquet", "-q", "--value-type", "float16"]) == 0
    assert pq.read_table("h.parquet").schema.field("values").type == pa.list_(pa.float16())
    for name in ("c.parquet", "h.parquet"):
        codes = codes_from_arrow(pq.read_table(name))
        np.testing.assert_allclose(codes.toarray(), fitted.transform(embeddings).toarray(), rtol=1e-3)


def test_options_of_a_search_arrive(files, fitted, embeddings, capsys, monkeypatch):
    queries, model = np.load("queries.npy"), ["--model", "model.safetensors", "-n", "4", "-q"]
    codes = fitted.transform(embeddings)
    sp.save_npz("codes.npz", codes)
    packed = fitted.transform_packed(embeddings).with_residual_of(
        embeddings, fitted.components_, n_bytes=4, normalize=False
    )
    packed.save("codes.skc")
    for given, options, documents in (
        (["codes.npz", "--metric", "dot"], {"metric": "dot"}, codes),
        (["codes.npz", "--mode", "reconstructed"], {"mode": "reconstructed"}, codes),
        (["codes.skc", "--rerank", "50"], {"rerank": 50}, packed),
    ):
        name, *more = given
        assert main(["search", name, "queries.npy", "found.npz", *model, *more, "-f"]) == 0
        expected = CodeNearestNeighbors(4, compressor=fitted, **options).fit(documents).kneighbors(queries)[1]
        assert (expected != CodeNearestNeighbors(4, compressor=fitted).fit(documents).kneighbors(queries)[1]).any()
        np.testing.assert_array_equal(np.load("found.npz")["indices"], expected)
    assert main(["search", "codes.npz", "queries.npy", "-f", "found.npz", *model, "--save-index", "codes.index"]) == 0
    capsys.readouterr()
    for option in (["--mode", "sparse"], ["--metric", "dot"], ["--rerank", "5"]):
        message = refuses_usage(capsys, "search", "codes.index", "queries.npy", "-n", "4", "-q", *option)
        assert f"{option[0]} is part of a saved index" in message
    assert "--rerank needs packed codes" in refuses_usage(
        capsys, "search", "codes.npz", "queries.npy", *model, "--rerank", "5"
    )
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    message = refuses(capsys, "search", "codes.npz", "codes.npz", "-n", "4", "-q", "--device", "cuda")
    assert "device='cuda' was asked for" in message


@pytest.mark.parametrize("of_file", [True, False])
def test_options_of_an_evaluation_arrive(files, monkeypatch, capsys, of_file):
    seen = []
    measure, exact = _tradeoff_points.measure_tradeoff, metrics.exact_neighbors
    monkeypatch.setattr(
        _tradeoff_points,
        "measure_tradeoff",
        lambda *arguments, **options: seen.append((arguments[1], options)) or measure(*arguments, **options),
    )
    monkeypatch.setattr(
        metrics,
        "exact_neighbors",
        lambda *arguments, **options: seen.append((arguments[0], options)) or exact(*arguments, **options),
    )
    command = ["evaluate", "model.safetensors", "x.npy", "-n", "5", "-q", "--nonzeros", "6", "--max-documents", "100"]
    command += ["--metric", "dot"] + ([] if of_file else ["--queries", "queries.npy"])
    for seed in ("0", "1"):
        assert main([*command, "--seed", seed]) == 0
    assert all(given["metric"] == "dot" for _, given in seen)
    measured = [(documents, given) for documents, given in seen if "random_state" in given]
    assert [given["random_state"] for _, given in measured] == [0, 1]
    assert [len(documents) for documents, _ in measured] == [100, 100]
    assert not np.array_equal(measured[0][0], measured[1][0])


def test_threads_are_as_many_as_asked_for(files, monkeypatch):
    seen, encoded = [], _encode._encoded
    monkeypatch.setattr(_encode, "_encoded", lambda *rest: seen.append(effective_n_threads()) or encoded(*rest))
    assert main(["encode", "model.safetensors", "x.npy", "c.npz", "-q", "--threads", "3"]) == 0
    assert seen == [3]


@pytest.mark.parametrize("before", [None, "7"])
def test_torch_that_is_loaded_later_has_as_many_threads(monkeypatch, before):
    monkeypatch.delitem(sys.modules, "torch")
    monkeypatch.setenv("OMP_NUM_THREADS", "0")  # set back at the end in any case
    if before is None:
        monkeypatch.delenv("OMP_NUM_THREADS")
    else:
        monkeypatch.setenv("OMP_NUM_THREADS", before)
    with ExitStack() as stack:
        _main._limit_threads(3, stack)
        assert os.environ["OMP_NUM_THREADS"] == "3"
        assert effective_n_threads() == 3
    assert os.environ.get("OMP_NUM_THREADS") == before


def test_torch_that_is_loaded_has_as_many_threads():
    before = torch.get_num_threads()
    with ExitStack() as stack:
        _main._limit_threads(before + 1, stack)
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before


def test_models_are_saved_without_what_is_the_machines(files, embeddings):
    assert (
        main(
            [
                "fit",
                "x.npy",
                "new.safetensors",
                "--n-components",
                "32",
                "--k",
                "4",
                "--max-iter",
                "5",
                "--device",
                "cpu",
                "--param",
                "verbose=2",
            ]
        )
        == 0
    )
    assert CompresSAETransformer.load("new.safetensors").verbose == 0
    CompresSAETransformer(16, k=3, random_state=0, device="cpu").partial_fit(embeddings).save("stream.safetensors")
    assert main(["export", "stream.safetensors", "small.safetensors", "-q"]) == 0
    assert CompresSAETransformer.load("small.safetensors")._moments is None


def test_damaged_files_that_are_mapped_are_refused(files, fitted, embeddings, capsys):
    fitted.transform_packed(embeddings).save("codes.skc")
    CodeNearestNeighbors(compressor=fitted).fit(fitted.transform(embeddings)).save("codes.index")
    for name in ("codes.skc", "codes.index"):
        content = bytearray(Path(name).read_bytes())
        content[-5] ^= 1
        Path(name).write_bytes(content)
        assert "checksum" in refuses(capsys, "info", name)
        assert "checksum" in refuses(
            capsys, "search", name, "queries.npy", "-n", "2", "--model", "model.safetensors", "-q"
        )


def test_looking_for_the_model_of_codes_leaves_it_as_it_is(fitted):
    model = copy.deepcopy(fitted)
    before = model.get_params()
    other = copy.deepcopy(fitted).set_params(k=3, coding="activations", norm=None)
    matching_model(model, {"model_hash": model_hash(other), "k": 3, "norm": None}, "codes")
    assert model.get_params() == before


def test_models_of_another_machine_encode_here(files, fitted, embeddings):
    copy.deepcopy(fitted).set_params(device="cuda").save("cuda.safetensors")
    assert main(["encode", "cuda.safetensors", "x.npy", "c.npz", "-q"]) == 0
    assert abs(sp.load_npz("c.npz") - fitted.transform(embeddings)).max() < 1e-4


@pytest.fixture
def leftover(files, small_blocks, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(Spool, "finish", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            main(["encode", "model.safetensors", "x.npy", "codes.npz", "-q"])
    return files / "codes.npz.partial"


def test_an_input_written_anew_is_another(leftover, capsys):
    os.utime("x.npy", ns=(0, 0))
    assert "another input; give --restart" in refuses(capsys, "encode", "model.safetensors", "x.npy", "codes.npz", "-q")


@pytest.mark.parametrize("change", [{"version": 2}, {"sizes": {}}, {"n_rows": -1}])
def test_journals_that_cannot_be(leftover, capsys, change):
    path = leftover / "journal"
    text = json.dumps({**json.loads(path.read_bytes().partition(b"\n")[2]), **change}).encode()
    path.write_bytes(b"%08x\n" % zlib.crc32(text) + text)
    assert "journal is damaged" in refuses(capsys, "encode", "model.safetensors", "x.npy", "codes.npz", "-q")


def test_sources_that_end_early(files, small_blocks, monkeypatch, capsys):
    blocks = NpyRows.blocks
    monkeypatch.setattr(NpyRows, "blocks", lambda self, *rest: list(blocks(self, *rest))[:-1])
    message = refuses(capsys, "encode", "model.safetensors", "x.npy", "codes.npz", "-q")
    assert "gave 300 rows, expected 400; it is damaged" in message
    assert not Path("codes.npz").exists()


@pytest.mark.parametrize(
    ("owner", "name", "path"),
    [
        (zipfile, "ZipFile", "codes.npz"),
        (_npz._Member, "read", "codes.npz"),
        (pa, "OSFile", "x.parquet"),
        (pq.ParquetFile, "iter_batches", "x.parquet"),
    ],
)
@pytest.mark.parametrize("code", [errno.EMFILE, errno.EIO])
def test_a_machine_that_has_no_more_to_give_is_not_called_damage(
    files, fitted, monkeypatch, capsys, owner, name, path, code
):
    sp.save_npz("codes.npz", fitted.transform(np.load("x.npy")))

    def fail(*_, **__):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(owner, name, fail)
    command = ["decode"] if path == "codes.npz" else ["encode"]
    message = refuses(
        capsys, *command, "model.safetensors", path, "new.npz" if path == "x.parquet" else "new.npy", "-q"
    )
    assert message == f"[Errno {code}] {os.strerror(code)}"


def test_sizes_that_no_memory_holds(files, monkeypatch, capsys):
    def fail(*_, **__):
        raise MemoryError("malloc of size 1 failed")

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", fail)
    message = refuses(capsys, "encode", "model.safetensors", "x.parquet", "codes.npz", "-q")
    assert message == "x.parquet is damaged, or too large for the memory: malloc of size 1 failed"


@pytest.mark.parametrize(
    ("command", "got"),
    [
        (["fit", "x.npy", "new.safetensors"], "x.npy"),
        (["encode", "model.safetensors", "x.npy", "c.npz"], "x.npy"),
        (["evaluate", "model.safetensors", "x.npy"], "x.npy"),
        (["evaluate", "model.safetensors", "x.npy", "--queries", "queries.npy"], "x.npy and queries.npy"),
        (["search", "codes.npz", "queries.npy", "--model", "model.safetensors"], "queries.npy"),
        (["search", "codes.npz", "codes.npz"], "codes.npz"),
    ],
)
def test_a_column_of_files_without_columns_is_refused(files, fitted, embeddings, capsys, command, got):
    sp.save_npz("codes.npz", fitted.transform(embeddings))
    message = refuses_usage(capsys, *command, "-q", "--column", "vector")
    assert message == f"--column is for Parquet files; got {got}"


def test_a_column_of_one_of_two_files_is_taken(files):
    for pair in (["x.npy", "--queries", "x.parquet"], ["x.parquet", "--queries", "queries.npy"]):
        options = ["-n", "5", "--nonzeros", "2", "--modes", "sparse", "--references", "--column", "vector", "-q"]
        assert main(["evaluate", "model.safetensors", *pair, *options]) == 0


def test_options_of_codes_are_refused_for_models(files, capsys):
    for name, value in (("value-bits", 6), ("n-components", 7)):
        message = refuses_usage(capsys, "export", "model.safetensors", "new.safetensors", "-q", f"--{name}", value)
        assert message == f"--{name} is for codes; model.safetensors holds a model"


def test_evaluate_refuses_seeds_that_are_none_and_two_kinds_of_k(files, capsys):
    command = ["evaluate", "model.safetensors", "x.npy", "-n", "3"]
    assert refuses_usage(capsys, *command, "--seed", "-1") == "--seed must be from 0 to 2**32 - 1; got -1"
    message = refuses_usage(capsys, *command, "--k", "3", "--nonzeros", "4")
    assert message == "--k is the middle of what is measured where --nonzeros does not name it; give one of the two"
