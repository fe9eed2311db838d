"""Bits that changed in stores, indices and archives, forged parts, and stores that do not belong together."""

import json
import struct
import zlib

import numpy as np
import pyarrow as pa
import pytest
import scipy.sparse as sp
from test_packed_files import example
from test_packed_search import model

from skcompressae import CodeNearestNeighbors, PackedCodes
from skcompressae._packed_io import Container, SectionSource, container_bytes
from skcompressae.exceptions import CodesFormatError
from skcompressae.packed import ResidualQuantizer, ValueQuantizer, _quantizer


def flip(path, name, position=0):
    with Container(path) as container:
        offset = container._sections[name].offset + position
    content = bytearray(path.read_bytes())
    content[offset] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "name", ["residual_codes", "residual_centroids", "residual_rotation", "levels", "scales", "rows"]
)
def test_a_changed_bit_of_any_section_is_found(tmp_path, name):
    path = tmp_path / "codes.skc"
    example(residual=True).save(path)
    flip(path, name)
    with pytest.raises(CodesFormatError, match=f"checksum of section '{name}' does not match"):
        PackedCodes.load(path)


@pytest.mark.parametrize("name", ["residual_codes", "scales", "rows"])
def test_appending_does_not_bless_damage(tmp_path, name):
    packed, path = example(n=30, residual=True), tmp_path / "codes.skc"
    packed[:10].save(path)
    flip(path, name)
    before = path.read_bytes()
    with pytest.raises(CodesFormatError, match=f"checksum of section '{name}' does not match"):
        packed[10:].append_to(path)
    assert path.read_bytes() == before


def test_stores_of_two_residual_quantizers_are_not_joined(tmp_path):
    packed = example(n=20, residual=True)
    other = packed.with_residual(packed.residual_codes, ResidualQuantizer(2 * packed.residual_quantizer.centroids))
    bare = example(n=20)
    for pair in ((packed, other), (packed, bare), (bare, packed)):
        assert pair[0] != pair[1]
        with pytest.raises(ValueError, match=r"differs from stores\[0\] in residual_quantizer"):
            PackedCodes.concatenate(pair)
        pair[0].save(tmp_path / "codes.skc")
        with pytest.raises(ValueError, match="in residual_quantizer; repack"):
            pair[1].append_to(tmp_path / "codes.skc")


def test_seed_and_steps_of_a_residual_quantizer_count():
    rng = np.random.default_rng(0)
    X, decoder, codes = model(rng, n_rows=600)
    packed = PackedCodes.pack(codes)
    fits = [
        packed.with_residual_of(X, decoder, n_bytes=4, n_iter=n_iter, random_state=seed).residual_quantizer
        for n_iter, seed in ((2, 0), (2, 0), (2, 1), (9, 0))
    ]
    assert fits[0] == fits[1]
    assert fits[0] != fits[2]
    assert fits[0] != fits[3]


def test_levels_are_learned_from_rows_of_all_of_a_matrix(monkeypatch):
    monkeypatch.setattr(_quantizer, "_SAMPLE_ROWS", 50)
    codes = example(n=400, k=5).to_csr()
    rows = sp.vstack([sp.csr_matrix((100, 64), dtype=np.float32), codes]).tocsr()
    expected = ValueQuantizer.fit(rows[np.linspace(0, 499, 50).astype(int)], k=5)
    assert ValueQuantizer.fit(rows, k=5) == expected


def put(path, name, place, value):
    """Change one entry of an array; no checksum is compared where a file is mapped."""
    content = bytearray(path.read_bytes())
    length = struct.unpack("<Q", content[8:16])[0]
    entry = json.loads(content[24 : 24 + length])["arrays"][name]
    base = -(-(24 + length) // 64) * 64
    array = np.frombuffer(content, entry["dtype"], int(np.prod(entry["shape"])), base + entry["offset"])
    array[place] = value
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("name", "place", "value", "message"),
    [
        ("0.indptr", 5, 10**6, "row starts out of order"),
        ("0.indptr", 5, -1, "row starts out of order"),
        ("0.indptr", -1, 3, "row starts out of order"),
        ("0.values", 3, np.inf, "values that are not finite"),
        ("0.values", 3, np.nan, "values that are not finite"),
        ("0.scale", 3, -1, "row factors that are negative"),
        ("0.scale", 3, np.nan, "row factors that are negative"),
        ("components", 3, np.nan, "components are not finite"),
    ],
)
def test_mapped_arrays_that_lead_out_of_themselves_are_refused(saved, name, place, value, message):
    put(saved[2], name, place, value)
    with pytest.raises(CodesFormatError, match=message):
        CodeNearestNeighbors.load(saved[2])


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [("0.refined", np.inf, "do not fit"), ("0.refined", -1.0, "do not fit"), ("0.row_scales", 65535, "scale that is")],
)
def test_mapped_factors_of_packed_documents_are_looked_at(tmp_path, name, value, message):
    X, decoder, codes = model(np.random.default_rng(7))
    packed = PackedCodes.pack(codes).with_residual_of(X, decoder, n_bytes=4, n_iter=1)
    CodeNearestNeighbors(compressor=decoder, rerank=50).fit(packed).save(tmp_path / "index")
    put(tmp_path / "index", name, 3, value)
    with pytest.raises(CodesFormatError, match=message):
        CodeNearestNeighbors.load(tmp_path / "index")


def forged(packed, **changes):
    with Container(packed.to_archive()) as container:
        parts = {name: np.array(container.array(name)) for name in container._sections}
        for name, change in changes.items():
            parts[name] = change(parts[name])
        sources = [SectionSource(name, part.dtype.str, part.shape, [part]) for name, part in parts.items()]
        return container_bytes(container.meta, sources)


def raised(part, place, value):
    part[place] = value
    return part


def table_of_halves(part):
    table = np.frombuffer(zlib.decompress(part.tobytes()), np.uint8).copy()
    table[: len(table) // 4] ^= 1  # the lowest bytes
    return np.frombuffer(zlib.compress(table.tobytes()), np.uint8)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lengths": lambda part: raised(part, 0, 6)}, "row length exceeds k=5"),
        ({"lengths": lambda part: np.where(part == 0, 1, part).astype("<u4")}, "blocks do not fit the stream"),
        ({"scales": lambda part: 0 * part}, "blocks do not fit the stream"),
        ({"index_model": table_of_halves}, "does not sum to 65536"),
        ({"block_units": lambda part: part - 1}, "blocks do not fit the stream"),
        ({"units": lambda part: raised(part, 0, part[0] ^ 1)}, "block 0 does not decode"),
    ],
)
def test_forged_archives_are_refused(changes, message):
    packed = example(n=40)
    assert PackedCodes.from_archive(forged(packed)) == packed
    with pytest.raises(CodesFormatError, match=message):
        PackedCodes.from_archive(forged(packed, **changes))


def test_residual_codes_that_are_null():
    table = example(residual=True).to_arrow()
    codes = table.column("residual_codes").to_pylist()
    column = pa.array([None, *codes[1:]], table.schema.field("residual_codes").type)
    place = table.column_names.index("residual_codes")
    with pytest.raises(CodesFormatError, match="'residual_codes' holds nulls"):
        PackedCodes.from_arrow(table.set_column(place, "residual_codes", column))


def test_indices_of_pairs_do_not_wrap_around():
    quantizer = PackedCodes.pack(np.eye(16)[:3] + np.eye(16, k=1)[:3], k=2).quantizer
    for bad in (2**32 + 3, -(2**32) + 3, 2**40):
        with pytest.raises(ValueError, match=r"outside \[0, n_components\)"):
            PackedCodes.from_topk(np.array([[0, bad]]), np.ones((1, 2)), 16, quantizer=quantizer)


def test_archives_of_indices_beyond_their_width():
    packed = example(n=40, m=64)
    with Container(packed.to_archive()) as container:
        sources = [
            SectionSource(name, part.dtype.str, part.shape, [part])
            for name, part in ((name, np.array(container.array(name))) for name in container._sections)
        ]
        archive = container_bytes({**container.meta, "n_components": 40}, sources)
    with pytest.raises(CodesFormatError, match="block 0 does not decode"):
        PackedCodes.from_archive(archive)
