"""Saved search indexes: the same answers when loaded, mapped or not, and no damaged file is read."""

from __future__ import annotations

import json
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from neighbor_cases import (
    N_FEATURES,
    fitted_compressor,
    random_codes,
)
from scipy.sparse import csr_matrix

from skcompressae import _neighbors_io
from skcompressae._neighbors import CodeNearestNeighbors
from skcompressae.exceptions import CodesFormatError
from skcompressae.packed import PackedCodes


@pytest.mark.parametrize("mmap", [True, False])
@pytest.mark.parametrize("mode", ["sparse", "reconstructed", "asymmetric"])
def test_a_loaded_index_is_the_saved_one(tmp_path, mode, mmap):
    rng = np.random.default_rng(24)
    documents, embeddings = random_codes(rng, 40, dtype=np.float32), rng.standard_normal((6, N_FEATURES))
    compressor = fitted_compressor("float32")
    index = CodeNearestNeighbors(4, compressor=compressor, mode=mode, n_jobs=2).fit(documents)
    path = tmp_path / "index.skc"
    index.save(path)
    content = path.read_bytes()
    loaded = CodeNearestNeighbors.load(path, mmap=mmap, compressor=compressor)
    assert loaded.get_params()["n_jobs"] == 2
    assert loaded.nbytes_ == index.nbytes_
    for got, expected in zip(loaded.kneighbors(embeddings), index.kneighbors(embeddings), strict=True):
        np.testing.assert_array_equal(got, expected)
    loaded.partial_fit(documents)
    assert loaded.n_samples_fit_ == 80
    assert path.read_bytes() == content


def test_a_loaded_index_needs_no_compressor_for_asymmetric_queries(saved):
    index, documents, path = saved
    loaded = CodeNearestNeighbors.load(path)
    assert isinstance(loaded._chunks[0].store.values.base, np.memmap)
    for X in (np.ones((3, N_FEATURES), np.float32), documents):
        np.testing.assert_array_equal(loaded.kneighbors(X), index.kneighbors(X))


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="descriptors are counted in /proc")
def test_a_mapped_file_takes_one_descriptor(tmp_path):
    documents = random_codes(np.random.default_rng(24), 40, dtype=np.float32)
    packed = PackedCodes.pack(documents)
    CodeNearestNeighbors(4, compressor=fitted_compressor("float32")).fit(documents).save(tmp_path / "index")
    packed.save(tmp_path / "codes")

    def n_descriptors(path):
        return sum(os.path.realpath(f"/proc/self/fd/{number}") == str(path) for number in os.listdir("/proc/self/fd"))

    index = CodeNearestNeighbors.load(tmp_path / "index")
    assert index._chunks[0].store.values.flags.writeable, "copy on write"
    store = PackedCodes.load(tmp_path / "codes", mmap=True)
    assert (n_descriptors(tmp_path / "index"), n_descriptors(tmp_path / "codes")) == (1, 1)
    del index, store
    assert (n_descriptors(tmp_path / "index"), n_descriptors(tmp_path / "codes")) == (0, 0)


def test_saving_replaces_a_file_in_one_step(saved, monkeypatch):
    index, documents, path = saved
    before = path.read_bytes()
    index.partial_fit(documents)

    def fail(*_):
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", fail)
        with pytest.raises(OSError, match="disk full"):
            index.save(path)
    assert path.read_bytes() == before
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]
    index.save(path)
    assert CodeNearestNeighbors.load(path).n_samples_fit_ == 80


def test_parameters_that_came_from_a_numpy_range(tmp_path):
    index = CodeNearestNeighbors(np.int64(3), batch_size=np.int32(7), radius=np.float32(0.5), rerank=None)
    index.fit(random_codes(np.random.default_rng(23), 10)).save(tmp_path / "index.skc")
    loaded = CodeNearestNeighbors.load(tmp_path / "index.skc").get_params()
    assert (loaded["n_neighbors"], loaded["batch_size"], loaded["radius"]) == (3, 7, 0.5)


@pytest.mark.parametrize("mmap", [True, False])
def test_a_file_replaced_while_it_is_opened_is_read_as_it_was(saved, monkeypatch, mmap):
    """Another process saves between the header and the arrays."""
    index, documents, path = saved
    CodeNearestNeighbors(4, compressor=index.components_).fit(-2 * documents[::-1]).save(path.with_name("other"))
    read_header = _neighbors_io._read_header

    def replace_after(*arguments):
        header = read_header(*arguments)
        os.replace(path.with_name("other"), path)
        return header

    monkeypatch.setattr(_neighbors_io, "_read_header", replace_after)
    loaded = CodeNearestNeighbors.load(path, mmap=mmap)
    np.testing.assert_array_equal(loaded.kneighbors(documents), index.kneighbors(documents))


def test_another_compressor_is_refused(saved):
    path = saved[2]
    other = fitted_compressor("float32")
    other.components_ = other.components_[::-1]
    with pytest.raises(ValueError, match="must have the components_ of the saved index, got others"):
        CodeNearestNeighbors.load(path, compressor=other)
    CodeNearestNeighbors().fit(random_codes(np.random.default_rng(1), 5)).save(path)
    with pytest.raises(ValueError, match="compressor must be None, as the saved index has no components_"):
        CodeNearestNeighbors.load(path, compressor=other)


def header_of(content):
    """Return the header and the place that its offsets count from."""
    length = struct.unpack("<Q", content[8:16])[0]
    return json.loads(content[24 : 24 + length]), -(-(24 + length) // 64) * 64


def rewrite(path, change):
    """Apply `change` to the header and write the file anew, header padded to its old length."""
    content = path.read_bytes()
    length = struct.unpack("<Q", content[8:16])[0]
    header, _ = header_of(content)
    change(header)
    encoded = json.dumps(header, separators=(",", ":")).encode()
    assert len(encoded) <= length
    encoded = encoded.ljust(length)
    checksum = struct.pack("<Q", zlib.crc32(content[:16] + encoded))
    path.write_bytes(content[:16] + checksum + encoded + content[24 + length :])


def set_first_column(value):
    def change(path):
        content = bytearray(path.read_bytes())
        header, base = header_of(content)
        struct.pack_into("<H", content, base + header["arrays"]["0.indices"]["offset"], value)
        path.write_bytes(content)

    return change


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda p: p.write_bytes(b""), "is not a saved search index"),
        (lambda p: p.write_bytes(b"\x93NUMPY" + bytes(200)), "is not a saved search index"),
        (lambda p: p.write_bytes(p.read_bytes()[:100]), "is truncated: its header should have"),
        (lambda p: p.write_bytes(p.read_bytes()[:-8]), "is truncated or damaged"),
        (lambda p: p.write_bytes(p.read_bytes()[:16] + b"\xff" + p.read_bytes()[17:]), "has a damaged header"),
        (lambda p: rewrite(p, lambda h: h.update(format_version=9)), "has format version 9; this release reads 2"),
        (lambda p: rewrite(p, lambda h: h.pop("arrays")), "has a damaged header: KeyError"),
        (lambda p: rewrite(p, lambda h: h["arrays"].pop("0.scale")), "lies outside of its place"),
        (lambda p: rewrite(p, lambda h: h["meta"]["chunks"][0].pop("reach")), "has a damaged header: KeyError"),
        (lambda p: rewrite(p, lambda h: h["arrays"]["0.scale"].update(dtype="|O")), "has dtype '|O'"),
        (lambda p: rewrite(p, lambda h: h["arrays"]["0.scale"].update(shape=[9])), "lies outside of its place"),
        (lambda p: rewrite(p, lambda h: h["meta"]["chunks"][0].update(n_rows=39)), "arrays that do not fit"),
        (lambda p: rewrite(p, lambda h: h["arrays"]["0.scale"].update(shape=[1000])), "lies outside of its place"),
        (lambda p: rewrite(p, lambda h: h["arrays"]["0.scale"].update(shape=[0, 10**30])), "and shape"),
        (lambda p: rewrite(p, lambda h: h["arrays"]["0.scale"].update(offset=0)), "lies outside of its place"),
        (lambda p: rewrite(p, lambda h: h["meta"]["params"].update(batch_size=-1)), "damaged header: InvalidParameter"),
        (lambda p: rewrite(p, lambda h: h["meta"]["params"].update(device=None)), "damaged header: InvalidParameter"),
        (lambda p: rewrite(p, lambda h: h["meta"]["chunks"][0].update(kind="x")), "chunk 0 has kind 'x'"),
        (lambda p: rewrite(p, lambda h: h["meta"]["chunks"].clear()), "it holds no documents"),
        (lambda p: rewrite(p, lambda h: h["meta"].update(n_features_in=9)), r"numbers outside of range\(9\)"),
        (set_first_column(65_535), r"numbers outside of range\(40\)"),
    ],
)
def test_damaged_files_are_refused(saved, damage, message):
    path = saved[2]
    damage(path)
    with pytest.raises(CodesFormatError, match=message.replace("|O", r"\|O")):
        CodeNearestNeighbors.load(path)


@pytest.mark.parametrize("n_bytes", [8, 64])
def test_arrays_are_where_they_are_written(saved, n_bytes):
    """Eight bytes further they are not aligned, 64 bytes further something could hide before them."""
    path = saved[2]
    content = path.read_bytes()
    header, base = header_of(content)
    start = base + header["arrays"]["components"]["offset"]
    path.write_bytes(content[:start] + bytes(n_bytes) + content[start:])

    def move(header):
        assert list(header["arrays"])[-1] == "components"
        header["arrays"]["components"]["offset"] += n_bytes
        header["data_bytes"] += n_bytes

    rewrite(path, move)
    with pytest.raises(CodesFormatError, match="array 'components' lies outside of its place in the file"):
        CodeNearestNeighbors.load(path)


@pytest.mark.parametrize("mmap", [True, False])
def test_bytes_between_arrays_are_zeros(saved, mmap):
    path = saved[2]
    content = path.read_bytes()
    header, base = header_of(content)
    end = 24 + struct.unpack("<Q", content[8:16])[0]
    n_gaps = 0
    for name, entry in header["arrays"].items():
        start = base + entry["offset"]
        for place in {end, start - 1} if start > end else ():
            path.write_bytes(content[:place] + b"\1" + content[place + 1 :])
            with pytest.raises(CodesFormatError, match=f"a byte before array '{name}' is not zero"):
                CodeNearestNeighbors.load(path, mmap=mmap)
            n_gaps += 1
        end = start + np.dtype(entry["dtype"]).itemsize * int(np.prod(entry["shape"]))
    assert n_gaps >= 2


def test_posting_lists_of_more_rows_than_the_scan_has_room_for(tmp_path, monkeypatch):
    index = CodeNearestNeighbors(2).fit(random_codes(np.random.default_rng(34), 12))
    index.save(tmp_path / "index")
    monkeypatch.setattr(_neighbors_io, "BLOCK_ROWS", 11)
    with pytest.raises(CodesFormatError, match="chunk 0 has posting lists of 12 rows, above 11"):
        CodeNearestNeighbors.load(tmp_path / "index")


@pytest.mark.parametrize("name", ["0.values", "0.scale", "components"])
def test_a_changed_bit_is_noticed_where_checksums_are_compared(saved, name):
    path = saved[2]
    content = bytearray(path.read_bytes())
    header, base = header_of(content)
    content[base + header["arrays"][name]["offset"]] ^= 1
    path.write_bytes(content)
    for options in ({"mmap": False}, {"verify": True}):
        with pytest.raises(CodesFormatError, match=f"checksum of array '{name}' does not match"):
            CodeNearestNeighbors.load(path, **options)
    assert CodeNearestNeighbors.load(path).n_samples_fit_ == 40


# Golden files -------------------------------------------------------------------------------------------------------
DATA = Path(__file__).parent / "data"


def golden_documents(kind):
    """Return the documents of a golden file and the rows of a dictionary, by formula."""
    rows, columns = np.indices((12, 33))
    codes = csr_matrix(np.where((5 * rows + 7 * columns) % 11 < 2, (-1.0) ** columns * (1 + rows % 4), 0), dtype="f4")
    components = (np.arange(33 * 4).reshape(33, 4) % 7 - 3).astype(np.float32)
    return (PackedCodes.pack(codes, value_bits=8) if kind == "packed" else codes), components


@pytest.mark.parametrize(
    ("kind", "mode"), [("postings", "sparse"), ("rows", "reconstructed"), ("packed", "asymmetric")]
)
def test_golden_files_of_version_2(kind, mode):
    documents, components = golden_documents(kind)
    loaded = CodeNearestNeighbors.load(DATA / f"index_v2_{kind}.index", verify=True)
    assert loaded.get_params()["mode"] == mode
    np.testing.assert_array_equal(loaded.components_, components)
    fresh = CodeNearestNeighbors(12, compressor=components, mode=mode).fit(documents)
    queries = (np.arange(20, dtype=np.float32).reshape(5, 4) % 7 - 3) if kind == "packed" else documents
    for found, expected in zip(loaded.kneighbors(queries, 12), fresh.kneighbors(queries), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)
