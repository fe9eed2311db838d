"""Files, archives and Arrow tables of packed codes; damage of every kind raises CodesFormatError."""

import builtins
import os
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp

from skcompressae._core._archive import normalise_counts
from skcompressae._packed_io import Container, SectionSource, container_bytes
from skcompressae.exceptions import CodesFormatError
from skcompressae.packed import PackedCodes, ResidualQuantizer, _archiving

DATA = Path(__file__).parent / "data"


def example(n=20, m=64, k=5, value_bits=4, residual=False, seed=0):
    rng = np.random.default_rng(seed)
    dense = np.zeros((n, m), np.float32)
    for i in range(n):
        chosen = rng.choice(m, size=rng.integers(0, k + 1), replace=False)
        dense[i, chosen] = rng.standard_normal(chosen.size)
    packed = PackedCodes.pack(sp.csr_matrix(dense), value_bits=value_bits, k=k)
    if residual:
        points = rng.standard_normal((n, 8))
        quantizer = ResidualQuantizer.fit(points, 2, n_iter=2)
        packed = packed.with_residual(quantizer.encode(points), quantizer)
    return packed


def golden_codes():
    """Return the codes in the golden files, by formula."""
    rows = [[(7 * i + 11 * j) % 97 for j in range(i % 5)] for i in range(12)]
    dense = np.zeros((12, 97), np.float32)
    for i, row in enumerate(rows):
        for j, index in enumerate(row):
            dense[i, index] = (-1) ** j * 2.0 ** (-j) * (1 + i / 16)
    return dense


@pytest.mark.parametrize("value_bits", [1, 4, 5, 16])
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("mmap", [False, True])
def test_save_and_load(tmp_path, value_bits, residual, mmap):
    packed = example(value_bits=value_bits, residual=residual)
    packed.save(tmp_path / "codes.skc")
    loaded = PackedCodes.load(tmp_path / "codes.skc", mmap=mmap)
    assert loaded == packed
    np.testing.assert_array_equal(loaded[3:9].to_csr().toarray(), packed.to_csr().toarray()[3:9])
    assert os.listdir(tmp_path) == ["codes.skc"]


def test_mapped_rows_are_not_read(tmp_path):
    packed = example(n=300)
    packed.save(tmp_path / "codes.skc")
    mapped = PackedCodes.load(tmp_path / "codes.skc", mmap=True)
    base = mapped.rows
    while base is not None and not isinstance(base, np.memmap):
        base = base.base
    assert isinstance(base, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        mapped.rows[0] = 0


@pytest.mark.parametrize("mmap", [False, True])
def test_a_file_replaced_while_it_is_open_is_read_as_it_was(tmp_path, mmap):
    first, second = example(seed=1), example(seed=2)
    first.save(tmp_path / "codes.skc")
    with Container(tmp_path / "codes.skc") as container:
        second.save(tmp_path / "codes.skc")
        np.testing.assert_array_equal(container.array("rows", mmap=mmap, verify=True), first.rows)
    assert PackedCodes.load(tmp_path / "codes.skc") == second


def test_sizes_in_numpy_types_can_be_saved(tmp_path):
    plain = example()
    packed = PackedCodes.pack(plain.to_csr(), k=np.int64(5), quantizer=plain.quantizer)
    packed.save(tmp_path / "codes.skc")
    assert PackedCodes.load(tmp_path / "codes.skc") == PackedCodes.from_archive(packed.to_archive()) == plain


def test_empty_store(tmp_path):
    packed = PackedCodes.pack(np.zeros((0, 7)))
    packed.save(tmp_path / "codes.skc")
    assert PackedCodes.load(tmp_path / "codes.skc", mmap=True) == packed
    assert PackedCodes.from_archive(packed.to_archive()) == packed


def test_append(tmp_path):
    packed = example(n=30, residual=True)
    path = tmp_path / "codes.skc"
    packed[:10].save(path)
    mapped = PackedCodes.load(path, mmap=True)
    packed[10:].append_to(path)
    assert PackedCodes.load(path) == packed
    assert mapped == packed[:10]
    with pytest.raises(ValueError, match=r"differ from .* in k; repack"):
        example(k=4).append_to(path)


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    packed = example()
    path = tmp_path / "codes.skc"
    packed.save(path)

    def fail(descriptor):
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        packed[:3].save(path)
    assert PackedCodes.load(path) == packed
    assert os.listdir(tmp_path) == ["codes.skc"]


@pytest.mark.parametrize("kind", ["file", "archive"])
def test_truncation_at_every_byte(tmp_path, kind):
    packed = example(n=6, residual=True)
    path = tmp_path / "codes.skc"
    packed.save(path)
    data = path.read_bytes() if kind == "file" else packed.to_archive()
    for size in range(len(data)):
        with pytest.raises(CodesFormatError, match="the buffer"):
            Container(data[:size])
    for size in range(0, len(data), 61):
        path.write_bytes(data[:size])
        with pytest.raises(CodesFormatError, match=r"codes\.skc"):
            PackedCodes.load(path, mmap=True) if kind == "file" else PackedCodes.from_archive(path)
    with pytest.raises(CodesFormatError, match="truncated or damaged"):
        PackedCodes.from_archive(packed.to_archive() + b"\0")


def test_every_changed_byte_is_found(tmp_path):
    packed = example(n=6)
    path = tmp_path / "codes.skc"
    packed.save(path)
    data = path.read_bytes()
    header_size = int.from_bytes(data[8:16], "little")
    # all of the header, and every third byte of the rest
    for position in (*range(header_size), *range(header_size, len(data), 3)):
        changed = bytearray(data)
        changed[position] ^= 1 << (position % 8)
        in_header = position < header_size
        path.write_bytes(changed)
        with pytest.raises(CodesFormatError, match="codes"):
            PackedCodes.load(path, mmap=in_header)


def test_every_changed_byte_of_an_archive_is_found():
    packed = example(n=6)
    data = packed.to_archive()
    for position in range(0, len(data), 3):
        changed = bytearray(data)
        changed[position] ^= 0x80
        with pytest.raises(CodesFormatError, match="the buffer"):
            PackedCodes.from_archive(changed)


def test_a_forged_header_allocates_nothing(tmp_path):
    """A header with a valid checksum that promises exabytes is refused by the size of the file."""
    meta = {"content": "packed", "n_rows": 2**50, "n_components": 64, "k": 5, "kind": "uniform", "value_bits": 8}
    meta["residual_bytes"] = 0
    path = tmp_path / "codes.skc"
    path.write_bytes(container_bytes(meta, [SectionSource("rows", "|u1", (1, 9), [np.zeros((1, 9), np.uint8)])]))
    with pytest.raises(CodesFormatError, match="section 'rows' must be"):
        PackedCodes.load(path)
    with pytest.raises(CodesFormatError, match="expected 'archive'"):
        PackedCodes.from_archive(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": 0}, "impossible store"),
        ({"k": True}, "impossible store"),
        ({"n_components": 2**21}, "impossible store"),
        ({"kind": "other"}, "unknown kind"),
        ({"value_bits": 17}, "impossible store"),
        ({"content": "model"}, "holds 'model'"),
    ],
)
def test_malformed_descriptions(tmp_path, change, message):
    meta = {"content": "packed", "n_rows": 0, "n_components": 64, "k": 5, "kind": "uniform", "value_bits": 8}
    path = tmp_path / "codes.skc"
    path.write_bytes(container_bytes({**meta, "residual_bytes": 0, **change}, []))
    with pytest.raises(CodesFormatError, match=message):
        PackedCodes.load(path)


def test_foreign_and_newer_files(tmp_path):
    path = tmp_path / "codes.skc"
    path.write_bytes(b"PK\x03\x04" + bytes(200))
    with pytest.raises(CodesFormatError, match="is no file of packed codes"):
        PackedCodes.load(path)
    example().save(path)
    data = bytearray(path.read_bytes())
    data[7] = 2
    path.write_bytes(data)
    with pytest.raises(CodesFormatError, match="format version 2; this skcompressae reads version 1"):
        PackedCodes.load(path)


def test_damaged_rows_of_an_unverified_map_raise():
    packed = example(n=4, m=60, k=3, value_bits=8)
    rows = np.full_like(packed.rows, 255)
    damaged = PackedCodes(rows, np.full(4, 16256, np.uint16), n_components=60, k=3, quantizer=packed.quantizer)
    with pytest.raises(CodesFormatError, match="row 0 is damaged"):
        damaged.to_csr()
    scales = np.full(4, 65535, np.uint16)
    broken = PackedCodes(packed.rows, scales, n_components=60, k=3, quantizer=packed.quantizer)
    with pytest.raises(CodesFormatError, match="not finite"):
        broken.to_csr()


@pytest.mark.parametrize("value_bits", [1, 2, 4, 5, 8, 16])
@pytest.mark.parametrize("m", [1, 64, 2**20])
def test_archive_round_trip(value_bits, m):
    packed = example(n=50, m=m, k=min(m, 5), value_bits=value_bits, residual=True)
    assert PackedCodes.from_archive(packed.to_archive()) == packed


def test_archive_size_is_near_the_entropy(monkeypatch):
    """5,000 rows over three blocks: within 4 % of the entropy of what is encoded, under 1.85 bytes a nonzero."""
    monkeypatch.setattr(_archiving, "_BLOCK_ROWS", 2000)
    rng = np.random.default_rng(1)
    probability = 1 / np.arange(1, 4097) ** 0.6
    keys = np.log(rng.random((5000, 4096), dtype=np.float32) + 1e-9) / probability.astype(np.float32)
    indices = np.argpartition(-keys, 32, axis=1)[:, :32]
    values = (np.exp(rng.standard_normal((5000, 32))) * np.where(indices % 8, 1, -1)).astype(np.float32)
    codes = sp.csr_matrix((values.ravel(), indices.ravel(), np.arange(0, 160001, 32)), shape=(5000, 4096))
    packed = PackedCodes.pack(codes)
    report = packed.archive_report()
    assert PackedCodes.from_archive(packed.to_archive()) == packed
    assert report["bytes_per_nonzero"] == len(packed.to_archive()) / 160000
    assert report["entropy_bytes"] < report["bytes_per_nonzero"] < 1.04 * report["entropy_bytes"]
    assert report["bytes_per_nonzero"] < 1.85


def test_frequencies_sum_and_keep_rare_symbols():
    frequencies = normalise_counts(np.array([[10**9, 1, 0], [0, 0, 0], [0, 0, 5]]))
    np.testing.assert_array_equal(frequencies.sum(axis=1), [65536, 0, 65536])
    assert frequencies[0, 1] >= 1
    assert frequencies[0, 2] == 0


@pytest.mark.parametrize("value_bits", [4, 8])
@pytest.mark.parametrize("m", [64, 65537])
def test_arrow_and_parquet(tmp_path, value_bits, m):
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    packed = example(m=m, value_bits=value_bits, residual=True)
    table = packed.to_arrow()
    assert table.schema.field("indices").type == pa.list_(pa.uint16() if m <= 65536 else pa.int32())
    assert table.column("values").to_pylist()[1] == packed.to_csr()[1].data.tolist()
    pq.write_table(table, tmp_path / "codes.parquet", row_group_size=7)
    assert PackedCodes.from_arrow(pq.read_table(tmp_path / "codes.parquet")) == packed
    assert PackedCodes.from_arrow(table.slice(3, 9)) == packed[3:12]
    assert PackedCodes.from_arrow(table.slice(0, 0)) == packed[:0]
    with pytest.raises(CodesFormatError, match="no 'skcompressae' schema metadata"):
        PackedCodes.from_arrow(table.replace_schema_metadata({}))
    with pytest.raises(TypeError, match=r"must be a pyarrow\.Table, got int"):
        PackedCodes.from_arrow(3)
    uneven = table.set_column(1, "values", pa.array([[1.0]] * len(table), type=pa.list_(pa.float32())))
    with pytest.raises(CodesFormatError, match="different lengths"):
        PackedCodes.from_arrow(uneven)


def test_an_archive_too_short_for_its_rows():
    """A model of one index gives every entry 0 bits: a row of 64 would repeat it."""
    packed = PackedCodes.pack(np.eye(1, 64).repeat(500, axis=0), k=64, value_bits=1)
    with Container(packed.to_archive()) as container:
        parts = {name: np.array(container.array(name)) for name in container._sections}
        parts["lengths"][:] = 64
        sources = [SectionSource(name, part.dtype.str, part.shape, [part]) for name, part in parts.items()]
        archive = container_bytes(container.meta, sources)
    with pytest.raises(CodesFormatError, match="the stream is too short for its rows"):
        PackedCodes.from_archive(archive)


def test_residual_codes_of_a_wider_type_do_not_wrap_around():
    pa = pytest.importorskip("pyarrow")
    packed = example(residual=True)
    table = packed.to_arrow()
    place = table.column_names.index("residual_codes")

    def with_codes(offset):
        flat = pa.array(packed.residual_codes.reshape(-1).astype(np.int64) + offset)
        return table.set_column(place, "residual_codes", pa.FixedSizeListArray.from_arrays(flat, 2))

    assert PackedCodes.from_arrow(with_codes(0)) == packed
    with pytest.raises(CodesFormatError, match="not in range: 0 to 255"):
        PackedCodes.from_arrow(with_codes(256))


def test_joined_tables_of_two_quantizers_are_not_rounded_again():
    """Arrow keeps the metadata of the first table alone."""
    pa = pytest.importorskip("pyarrow")
    first, other = example(n=9, seed=1), example(n=9, seed=2)
    same = PackedCodes.pack(other.to_csr(), k=5, quantizer=first.quantizer)
    joined = PackedCodes.from_arrow(pa.concat_tables([first.to_arrow(), same.to_arrow()]))
    assert joined == PackedCodes.concatenate([first, same])
    with pytest.raises(CodesFormatError, match="values that the table's quantizer does not have; join tables of one"):
        PackedCodes.from_arrow(pa.concat_tables([first.to_arrow(), other.to_arrow()]))


def test_arrow_without_pyarrow(monkeypatch):
    real = builtins.__import__

    def hidden(name, *arguments, **keywords):
        if name == "pyarrow":
            raise ImportError(name)
        return real(name, *arguments, **keywords)

    monkeypatch.setattr(builtins, "__import__", hidden)
    with pytest.raises(ImportError, match="install the extra 'arrow' of skcompressae"):
        example().to_arrow()


@pytest.mark.parametrize("value_bits", [4, 8])
def test_golden_files(value_bits):
    """Version 1 files stay readable, and today's packer still writes the same words."""
    golden = PackedCodes.load(DATA / f"packed_v1_{value_bits}bit.skc")
    codes = sp.csr_matrix(golden_codes())
    assert np.array_equal(golden.to_csr().indices, codes.indices)
    assert PackedCodes.pack(codes, k=4, quantizer=golden.quantizer) == golden
    assert PackedCodes.from_archive(DATA / f"packed_v1_{value_bits}bit.ska") == golden


def test_golden_files_without_scales():
    golden = PackedCodes.load(DATA / "packed_v1_fixed.skc")
    dense = golden_codes()
    codes = sp.csr_matrix(dense[dense.any(axis=1)])
    assert golden.quantizer.kind == "fixed"
    assert golden.quantizer.levels.shape == (4, 8)
    assert np.array_equal(golden.to_csr().indices, codes.indices)
    assert PackedCodes.pack(codes, k=4, quantizer=golden.quantizer) == golden
    assert PackedCodes.from_archive(DATA / "packed_v1_fixed.ska") == golden
