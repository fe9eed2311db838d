"""Packed codes in a container file: sections `levels`, `rows`, `scales` and, if present, the residual ones."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from skcompressae._packed_io import Container, SectionSource, write_container
from skcompressae.exceptions import CodesFormatError
from skcompressae.packed._quantizer import KINDS, ValueQuantizer, stored_quantizer
from skcompressae.packed._residual import ResidualQuantizer
from skcompressae.packed._rows import row_bytes
from skcompressae.packed._store import PackedCodes

__all__ = [
    "append",
    "check_meta",
    "from_parts",
    "load",
    "meta_of",
    "quantizer_sections",
    "read_quantizer",
    "read_record",
    "read_residual",
    "save",
    "to_parts",
]


def meta_of(store: PackedCodes, content: str, record: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return the header's description of a store, with what is known of the model that made the codes."""
    return {
        **({"model": record} if record else {}),
        "content": content,
        "n_rows": len(store),
        "n_components": store.n_components,
        "k": store.k,
        "kind": store.quantizer.kind,
        "value_bits": store.value_bits,
        "residual_bytes": 0 if store.residual_codes is None else store.residual_codes.shape[1],
    }


def check_meta(container: Container, content: str) -> tuple[int, int, int]:
    """Return (n_rows, n_components, k) once the description of the store is known to be consistent."""
    meta = container.meta
    if meta.get("content") != content:
        raise CodesFormatError(f"{container.name} holds {meta.get('content')!r}, expected {content!r}")
    sizes = [meta.get(name) for name in ("n_rows", "n_components", "k", "value_bits", "residual_bytes")]
    if not all(type(size) is int and size >= 0 for size in sizes):
        raise CodesFormatError(f"{container.name}: the header describes an impossible store: {meta}")
    n_rows, n_components, k = meta["n_rows"], meta["n_components"], meta["k"]
    if meta.get("kind") not in KINDS:
        raise CodesFormatError(f"{container.name}: unknown kind of quantizer {meta.get('kind')!r}")
    if not 1 <= n_components <= 1 << 20 or not 1 <= k <= n_components or not 1 <= meta["value_bits"] <= 16:
        raise CodesFormatError(f"{container.name}: the header describes an impossible store: {meta}")
    return n_rows, n_components, k


def read_record(container: Container) -> dict[str, Any]:
    """Return what a file says about the model that made its codes; nothing where it says nothing."""
    record = container.meta.get("model", {})
    if not isinstance(record, dict) or not isinstance(record.get("model_hash", ""), str):
        raise CodesFormatError(f"{container.name}: the header describes no model by {record!r}")
    return record


def quantizer_sections(store: PackedCodes) -> list[SectionSource]:
    """Return the sections of the codebooks. Uniform levels are a formula and are not stored."""
    sources = []
    if store.quantizer._is_ranked:
        levels = store.quantizer.levels
        sources.append(SectionSource("levels", "<f4", levels.shape, [levels]))
    if store.residual_quantizer is not None:
        centroids, rotation = store.residual_quantizer.centroids, store.residual_quantizer.rotation
        sources.append(SectionSource("residual_centroids", "<f4", centroids.shape, [centroids]))
        if rotation is not None:
            sources.append(SectionSource("residual_rotation", "<f4", rotation.shape, [rotation]))
    return sources


def read_quantizer(container: Container) -> ValueQuantizer:
    """Read and check the value quantiser."""
    meta = container.meta

    def read_levels() -> Any:
        container.check("levels", "<f4", (meta["k"], 2 ** (meta["value_bits"] - 1)))
        return container.array("levels")

    try:
        return stored_quantizer(meta["kind"], meta["value_bits"], read_levels)
    except CodesFormatError:
        raise
    except ValueError as error:
        raise CodesFormatError(f"{container.name}: {error}") from error


def read_residual(
    container: Container, n_rows: int, *, mmap: bool, verify: bool
) -> tuple[Any, ResidualQuantizer | None]:
    """Read and check the residual codes and their quantiser, or return two None."""
    n_bytes = container.meta["residual_bytes"]
    if not n_bytes:
        return None, None
    container.check("residual_centroids", "<f4", (n_bytes, -1, -1))
    container.check("residual_codes", "|u1", (n_rows, n_bytes))
    rotation = container.array("residual_rotation") if "residual_rotation" in container else None
    try:
        quantizer = ResidualQuantizer(container.array("residual_centroids"), rotation)
    except ValueError as error:
        raise CodesFormatError(f"{container.name}: {error}") from error
    return container.array("residual_codes", mmap=mmap, verify=verify), quantizer


def _sources(stores: list[PackedCodes]) -> list[SectionSource]:
    first = stores[0]
    n = sum(map(len, stores))
    sources = quantizer_sections(first)
    if first.quantizer._has_scales:
        sources.append(SectionSource("scales", first.quantizer.scale_dtype.str, (n,), [s._scales for s in stores]))
    width = first.rows.shape[1]
    blocks = (block.rows for store in stores for block in store.iter_blocks(1 << 16))
    sources.append(SectionSource("rows", "|u1", (n, width), blocks))
    if first.residual_codes is not None:
        codes = [s.residual_codes for s in stores if s.residual_codes is not None]
        sources.append(SectionSource("residual_codes", "|u1", (n, first.residual_codes.shape[1]), codes))
    return sources


def save(store: PackedCodes, path: str | os.PathLike[str], record: dict[str, Any] | None = None) -> None:
    """Write a store atomically, with what is known of the model that made the codes."""
    write_container(path, meta_of(store, "packed", record), _sources([store]))


def append(store: PackedCodes, path: str | os.PathLike[str]) -> None:
    """Write a new file with the rows of the old one and of `store`, and put it in the old one's place."""
    # verified: the new file gets new checksums, which must not bless damage in the old rows
    old = load(path, mmap=True, verify=True)
    difference = old._layout_difference(store)
    if difference:
        raise ValueError(f"the rows to append differ from {os.fspath(path)} in {difference}; repack them first")
    meta = meta_of(old, "packed")  # of no model: these rows may be of another one
    meta["n_rows"] = len(old) + len(store)
    write_container(path, meta, _sources([old, store]))


def load(path: str | os.PathLike[str], *, mmap: bool, verify: bool) -> PackedCodes:
    """Open a store; what is wrong with the file raises CodesFormatError."""
    with Container(path) as container:
        n_rows, n_components, k = check_meta(container, "packed")
        quantizer = read_quantizer(container)
        container.check("rows", "|u1", (n_rows, row_bytes(n_components, k, quantizer.value_bits)))
        if quantizer._has_scales:
            container.check("scales", quantizer.scale_dtype.str, (n_rows,))
        residual, residual_quantizer = read_residual(container, n_rows, mmap=mmap, verify=verify)
        return PackedCodes(
            container.array("rows", mmap=mmap, verify=verify),
            container.array("scales", mmap=mmap, verify=verify) if quantizer._has_scales else None,
            n_components=n_components,
            k=k,
            quantizer=quantizer,
            residual_codes=residual,
            residual_quantizer=residual_quantizer,
        )


def to_parts(store: PackedCodes) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the description and the arrays of a store, for a file that holds it among others."""
    arrays: dict[str, Any] = {"words": np.asarray(store.rows)}
    if store.quantizer._has_scales:
        arrays["row_scales"] = np.asarray(store._scales)
    if store.quantizer._is_ranked:
        arrays["levels"] = store.quantizer.levels
    if store.residual_quantizer is not None:
        arrays["residual_codes"] = np.asarray(store.residual_codes)
        arrays["residual_centroids"] = store.residual_quantizer.centroids
        if store.residual_quantizer.rotation is not None:
            arrays["residual_rotation"] = store.residual_quantizer.rotation
    return {"k": store.k, "quantizer": store.quantizer.kind, "value_bits": store.value_bits}, arrays


def from_parts(meta: dict[str, Any], arrays: dict[str, Any], n_components: int) -> PackedCodes:
    """Undo `to_parts`; what does not fit raises CodesFormatError."""
    try:
        quantizer = stored_quantizer(meta["quantizer"], meta["value_bits"], lambda: arrays["levels"])
        residual = None
        if "residual_codes" in arrays:
            residual = ResidualQuantizer(arrays["residual_centroids"], arrays.get("residual_rotation"))
        scales = arrays["row_scales"] if quantizer._has_scales else None
        store = PackedCodes(
            arrays["words"],
            scales,
            n_components=n_components,
            k=meta["k"],
            quantizer=quantizer,
            residual_codes=arrays.get("residual_codes"),
            residual_quantizer=residual,
        )
    except (TypeError, ValueError) as error:
        raise CodesFormatError(f"packed documents do not fit: {error}") from error
    if not (np.isfinite(store.scales).all() and (store.scales >= 0).all()):
        raise CodesFormatError("packed documents have a scale that is negative or not finite")
    return store
