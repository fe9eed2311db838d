"""Mutations of files: damage that knows nothing of the format, and edits of headers that do."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np

Random = np.random.Generator
# What an edited header may say in the place of a value.
_STRANGE: list[Any] = [
    0, -1, 1, 2, 3, 7, 255, 65536, 2**31 - 1, 2**31, 2**40, 2**62, 2**63, 2**64, 1e308, -0.5, True, False, None,
    "", "x", "<f4", "<i8", "|O", "float32", "inf", [], [0], [2**40, 2**40], [-1], {}, {"a": 1},
]  # fmt: skip


def flip_bytes(data: bytes, random: Random) -> bytes:
    damaged = bytearray(data)
    for at in random.integers(0, len(data), random.integers(1, 9)):
        damaged[at] = random.integers(0, 256)
    return bytes(damaged)


def flip_bit(data: bytes, random: Random) -> bytes:
    damaged = bytearray(data)
    # one in two in the first bytes, where the headers are
    limit = len(data) if random.random() < 0.5 else min(len(data), 512)
    damaged[random.integers(0, limit)] ^= 1 << int(random.integers(0, 8))
    return bytes(damaged)


def truncate(data: bytes, random: Random) -> bytes:
    return data[: random.integers(0, len(data))]


def insert(data: bytes, random: Random) -> bytes:
    at = int(random.integers(0, len(data) + 1))
    return data[:at] + random.bytes(int(random.integers(1, 65))) + data[at:]


def delete(data: bytes, random: Random) -> bytes:
    at = int(random.integers(0, len(data)))
    return data[:at] + data[at + int(random.integers(1, 65)) :]


def repeat(data: bytes, random: Random) -> bytes:
    at, to = (int(random.integers(0, len(data))) for _ in range(2))
    return data[:to] + data[at : at + int(random.integers(1, 257))] + data[to:]


def fill(data: bytes, random: Random) -> bytes:
    at = int(random.integers(0, len(data)))
    size = min(int(random.integers(1, 257)), len(data) - at)
    return data[:at] + bytes([int(random.choice([0, 255]))]) * size + data[at + size :]


def append(data: bytes, random: Random) -> bytes:
    return data + random.bytes(int(random.integers(1, 129)))


BLIND = {
    function.__name__: function for function in (flip_bytes, flip_bit, truncate, insert, delete, repeat, fill, append)
}


def edit_json(value: Any, random: Random) -> Any:
    """Return a JSON value with one of its entries, at any depth, changed, removed or doubled."""
    places: list[tuple[Any, Any]] = []

    def visit(node: Any) -> None:
        keys = list(node) if isinstance(node, dict) else range(len(node))
        for key in keys:
            places.append((node, key))
            if isinstance(node[key], (dict, list)):
                visit(node[key])

    visit(value)
    node, key = places[random.integers(len(places))]
    old, action = node[key], random.integers(6)
    if action == 0:
        del node[key]
    elif action <= 2 and type(old) in (int, float):
        node[key] = [old + 1, old - 1, old * 2, -old, old * 2**20, old + 64][random.integers(6)]
    elif action == 3 and isinstance(old, str) and old:
        node[key] = [old + "x", old[:-1], old.upper(), old[::-1]][random.integers(4)]
    else:
        node[key] = _STRANGE[random.integers(len(_STRANGE))]
    return value


def edit_model(data: bytes, random: Random, is_repaired: bool) -> bytes:
    """Edit the listing of a safetensors file or the header in its metadata; repair its SHA-256 or not."""
    length = int.from_bytes(data[:8], "little")
    listing = json.loads(data[8 : 8 + length])
    if random.random() < 0.7:
        metadata = listing["__metadata__"]
        metadata["skcompressae"] = json.dumps(edit_json(json.loads(metadata["skcompressae"]), random))
    else:
        listing = edit_json(listing, random)
    text = json.dumps(listing, separators=(",", ":")).encode()
    text = text.ljust(-(-len(text) // 8) * 8)
    edited = len(text).to_bytes(8, "little") + text + data[8 + length :]
    at = edited.find(b'"sha256":"') + 10
    if is_repaired and at >= 10:
        blank = edited[:at] + b"0" * 64 + edited[at + 64 :]
        edited = edited[:at] + hashlib.sha256(blank).hexdigest().encode() + edited[at + 64 :]
    return edited


def edit_container(data: bytes, random: Random, is_repaired: bool) -> bytes:
    """Edit the header of packed codes; repair its CRC-32 or not."""
    size = int.from_bytes(data[8:16], "little")
    header = edit_json(json.loads(data[24:size]), random)
    text = json.dumps(header, sort_keys=True).encode()
    body = b"\0\0\0\0" + text.ljust(size - 24)[: size - 24]
    checksum = zlib.crc32(body, zlib.crc32(data[:16])).to_bytes(4, "little") if is_repaired else data[16:20]
    return data[:16] + checksum + body + data[size:]


def edit_index(data: bytes, random: Random, is_repaired: bool) -> bytes:
    """Edit the header of a search index, padded to its old length where that suffices; repair its CRC-32 or not."""
    length = int.from_bytes(data[8:16], "little")
    header = edit_json(json.loads(data[24 : 24 + length]), random)
    text = json.dumps(header, separators=(",", ":")).encode().ljust(length)[:length]
    checksum = zlib.crc32(text, zlib.crc32(data[:16])).to_bytes(8, "little") if is_repaired else data[16:24]
    return data[:16] + checksum + text + data[24 + length :]


def edit_npy(data: bytes, random: Random, is_repaired: bool) -> bytes:
    """Edit the text of a .npy header, at its length or at another."""
    del is_repaired  # nothing in the format could tell
    length = int.from_bytes(data[8:10], "little")
    text = data[10 : 10 + length].decode("latin-1")
    words = [
        "'descr'",
        "'<f4'",
        "'|O'",
        "'<U9'",
        "[('a', '<f4')]",
        "True",
        "False",
        "None",
        "(",
        ")",
        ",",
        "{",
        "}",
        "-",
    ]
    words += [str(number) for number in (0, 1, 2, 7, 40, 2**31, 2**62, 2**64)] + ["9" * 400, "(" * 300, "\\", "\n", "#"]
    at = int(random.integers(0, len(text.rstrip()) + 1))
    text = text[:at] + words[random.integers(len(words))] + text[at + int(random.integers(0, 8)) :]
    edited = text.encode("latin-1")
    if random.random() < 0.7:
        edited = edited.ljust(length)[:length]
    return data[:8] + (len(edited) % 65536).to_bytes(2, "little") + edited + data[10 + length :]


def edit_npz(data: bytes, random: Random, is_repaired: bool) -> bytes:
    """Damage one array inside the archive and close the archive again, with the checksums of what is there now."""
    del is_repaired
    edited = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(edited, "w") as new:
        names = old.namelist()
        chosen = names[random.integers(len(names))]
        for name in names:
            member = old.read(name)
            if name == chosen:
                member = [edit_npy(member, random, True), *(f(member, random) for f in BLIND.values())][
                    random.integers(9)
                ]
            if name != chosen or random.random() < 0.95:
                new.writestr(name, member, compress_type=[zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED][random.integers(2)])
    return edited.getvalue()


def edit_parquet(data: bytes, random: Random, is_repaired: bool) -> bytes:
    """Edit what the schema's metadata says, or a column; the file is written anew."""
    del is_repaired
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.read_table(io.BytesIO(data))
    metadata = dict(table.schema.metadata or {})
    keys = [key for key in metadata if key.startswith(b"skcompressae")]
    if keys and random.random() < 0.6:
        key = keys[random.integers(len(keys))]
        metadata[key] = json.dumps(edit_json(json.loads(metadata[key]), random)).encode()
        table = table.replace_schema_metadata(metadata)
    else:
        at = int(random.integers(table.num_columns))
        name, rows = table.schema.names[at], table.column(at).to_pylist()
        row = int(random.integers(len(rows)))
        strange: list[Any] = [None, [], [None], [1], [-1, 5], [70000] * 3, [float("nan")] * 8]
        if isinstance(rows[row], list):
            rows[row] = strange[random.integers(len(strange))]
        try:
            table = table.set_column(at, name, pa.array(rows, table.schema.field(at).type))
        except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):
            table = table.remove_column(at)
        table = table.replace_schema_metadata(metadata)
    edited = io.BytesIO()
    pq.write_table(table, edited, row_group_size=int(random.integers(1, 40)), write_page_checksum=True)
    return edited.getvalue()


def edit_journal(data: bytes, random: Random, is_repaired: bool) -> bytes:
    """Edit the journal of unfinished work; its checksum stays the old one."""
    del is_repaired
    checksum, _, text = data.partition(b"\n")
    return checksum + b"\n" + json.dumps(edit_json(json.loads(text), random)).encode()


Editor = Callable[[bytes, Random, bool], bytes]
