"""What is fuzzed: for each loader valid files, how they are read, which errors are documented, what is the truth."""

from __future__ import annotations

import copy
import hashlib
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp
from _fuzz_mutations import (
    Editor,
    edit_container,
    edit_index,
    edit_journal,
    edit_model,
    edit_npy,
    edit_npz,
    edit_parquet,
)

from skcompressae import CodeNearestNeighbors, CompresSAETransformer, PackedCodes
from skcompressae._checkpoint import FitCheckpoint
from skcompressae._cli._errors import CommandError
from skcompressae._cli._sources import open_codes, open_rows
from skcompressae._cli._spool import Spool
from skcompressae._torch._training import TrainingState
from skcompressae._torch._weights import Moments, Weights
from skcompressae.exceptions import CodesFormatError, ModelFormatError
from skcompressae.persistence import from_reference_checkpoint, to_reference_checkpoint

N_ROWS, N_FEATURES, N_COMPONENTS, K = 60, 8, 24, 4
_SPOOL_STREAMS = {"lengths": np.dtype("<i4"), "values": np.dtype("<f4")}
_SPOOL_IDENTITY = {"command": "encode", "model": "abc", "options": {"k": 4}}
_FIT_PARAMETERS = {"n_components": N_COMPONENTS, "k": K}


@dataclass(frozen=True)
class Target:
    """A loader.

    Attributes
    ----------
    name : str
    suffix : str
        Valid files are ``<name>-<number><suffix>``.
    read : function of a path
        Loads the file and returns a digest of all that it holds.
    refusals : exceptions
        What is documented for a file that is not as it must be.
    edit : function or None
        Edits a header.
    truth : function of a path or None
        Where the format has no checksums: an independent reader. What `read` accepts must be what this one gives.
    is_verified : bool
        Whether `read` compares checksums; without, another content is no fault, all else is.
    """

    name: str
    suffix: str
    read: Callable[[Path], bytes]
    refusals: tuple[type[Exception], ...]
    edit: Editor | None = None
    truth: Callable[[Path], bytes] | None = None
    is_verified: bool = True


def digest(*parts: Any) -> bytes:
    """Return a digest of arrays, sparse matrices and texts."""
    state = hashlib.sha256()
    for part in parts:
        if sp.issparse(part):
            csr: Any = sp.csr_matrix(part)
            state.update(digest(csr.indptr.astype(np.int64), csr.indices.astype(np.int64), csr.data, repr(csr.shape)))
        elif isinstance(part, np.ndarray):
            state.update(f"{part.dtype.str}{part.shape}".encode() + np.ascontiguousarray(part).tobytes())
        else:
            state.update(repr(part).encode())
    return state.digest()


def _model(path: Path) -> bytes:
    model = CompresSAETransformer.load(path)
    state = {name: value for name, value in vars(model).items() if name.endswith("_")}
    moments = model._moments or ()
    return digest(
        sorted(model.get_params().items()), *(part for item in sorted(state.items()) for part in item), *moments
    )


def _store(store: PackedCodes) -> bytes:
    residual = (
        () if store.residual_codes is None else (np.asarray(store.residual_codes), store.residual_quantizer.centroids)
    )
    csr = store.to_csr()
    csr.check_format(full_check=True)
    parts = (np.asarray(store.rows), np.asarray(store.scales), store.quantizer.levels, store.quantizer.kind)
    return digest(csr, *parts, store.k, store.value_bits, *residual)


def _index(path: Path, **options: Any) -> bytes:
    index = CodeNearestNeighbors.load(path, **options)
    if index.n_features_in_ != N_COMPONENTS:
        raise CodesFormatError("another width than the queries have")  # only a repaired header gets here
    queries = sp.csr_matrix(np.eye(3, N_COMPONENTS, dtype=np.float32))
    # the device and the threads of an edited header are the machine's affair
    found = index.set_params(device="cpu", n_jobs=1).kneighbors(queries, n_neighbors=2)
    return digest(sorted(index.set_params(compressor=None).get_params().items()), *found, index.n_samples_fit_)


def _rows(path: Path) -> bytes:
    return digest(np.concatenate(list(open_rows(path).blocks(0, 16))))


def _codes(path: Path) -> bytes:
    source = open_codes(path)
    blocks = list(source.blocks(0, 16))
    codes = sp.csr_matrix(sp.vstack(blocks, format="csr"))
    codes.check_format(full_check=True)
    return digest(codes.astype(np.float64), source.n_components)


def _packed_parquet(path: Path) -> bytes:
    source: Any = open_codes(path)
    return _codes(path) + (_store(source.read_packed()) if source.is_packed else b"")


def _numpy(path: Path) -> bytes:
    array = np.load(path, allow_pickle=False)
    return digest(np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("=")))


def _scipy(path: Path) -> bytes:
    codes = sp.csr_matrix(sp.load_npz(path))
    codes.sum_duplicates()
    return digest(codes.astype(np.float64), codes.shape[1])


def _arrow_rows(path: Path) -> bytes:
    import pyarrow.parquet as pq

    (name,) = [name for name in pq.read_schema(path).names if name != "id"]
    return digest(np.array(pq.read_table(path, columns=[name])[name].to_pylist(), dtype=np.float32))


def _arrow_codes(path: Path) -> bytes:
    """Read code columns by plain Python; the width is what our reader found, as it is in our own metadata only."""
    import pyarrow.parquet as pq

    table = pq.read_table(path)
    width = open_codes(path).n_components
    codes = sp.lil_matrix((len(table), width))
    for row, (indices, values) in enumerate(
        zip(table["indices"].to_pylist(), table["values"].to_pylist(), strict=True)
    ):
        for index, value in zip(indices, values, strict=True):
            codes[row, index] = value
    csr = sp.csr_matrix(codes)
    csr.eliminate_zeros()
    csr.sort_indices()
    digested = digest(csr, width)
    source: Any = open_codes(path)
    return digested + (_store(source.read_packed()) if source.is_packed else b"")


def _spool(path: Path) -> bytes:
    """Continue unfinished work with a damaged journal, or a damaged stream."""
    folder = path.parent / f"{path.name}-work.partial"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(path.parent / "valid-work.partial", folder)
    shutil.copyfile(path, folder / ("journal" if path.suffix == ".journal" else "values.bin"))
    spool = Spool(path.parent / f"{path.name}-work", _SPOOL_IDENTITY, _SPOOL_STREAMS, restart=False, force=True)
    try:
        return digest(spool.n_rows, spool.state, *(np.array(spool.map_stream(name)) for name in _SPOOL_STREAMS))
    finally:
        spool.close()


def _reference(path: Path) -> bytes:
    model = from_reference_checkpoint(path, k=1)
    return digest(model.encoder_weights_, model.encoder_bias_, model.components_)


def _fit_checkpoint(path: Path) -> bytes:
    """Continue a fit with a damaged checkpoint."""
    folder = path.parent / f"{path.name}-fit"
    checkpoint = FitCheckpoint(folder, _FIT_PARAMETERS, np.ones((N_ROWS, N_FEATURES), np.float32), None)
    shutil.copyfile(path, checkpoint.path)
    saved: Any = checkpoint.load()
    state = saved.state
    arrays = (*state.weights.arrays, *state.moments.arrays, *(state.best_weights.arrays if state.best_weights else ()))
    curves = (state.loss_curve, state.validation_curve, state.validation_steps)
    counts = (state.moments.n_steps, state.best_loss, state.n_without_gain, state.batch_size, state.epoch_position)
    return digest(*arrays, *curves, *counts, saved.has_mean_latent, saved.split_start, state.epoch_start)


TARGETS = [
    Target("model", ".safetensors", _model, (ModelFormatError,), edit_model),
    Target("packed codes", ".skc", lambda path: _store(PackedCodes.load(path)), (CodesFormatError,), edit_container),
    Target(
        "packed codes, mapped without checksums",
        ".skc",
        lambda path: _store(PackedCodes.load(path, mmap=True)),
        (CodesFormatError,),
        edit_container,
        is_verified=False,
    ),
    Target(
        "archive of packed codes",
        ".ska",
        lambda path: _store(PackedCodes.from_archive(path)),
        (CodesFormatError,),
        edit_container,
    ),
    Target("search index", ".index", lambda path: _index(path, verify=True), (CodesFormatError,), edit_index),
    Target(
        "search index, mapped without checksums",
        ".index",
        _index,
        (CodesFormatError,),
        edit_index,
        is_verified=False,
    ),
    Target("command line: .npy", ".npy", _rows, (CommandError,), edit_npy, _numpy),
    Target("command line: .npz", ".npz", _codes, (CommandError,), edit_npz, _scipy),
    Target("command line: Parquet embeddings", ".parquet", _rows, (CommandError,), edit_parquet, _arrow_rows),
    Target("command line: Parquet codes", ".pqc", _packed_parquet, (CommandError,), edit_parquet, _arrow_codes),
    Target("command line: journal of unfinished work", ".journal", _spool, (CommandError,), edit_journal),
    Target("command line: stream of unfinished work", ".bin", _spool, (CommandError,)),
    Target("reference checkpoint", ".pt", _reference, (ModelFormatError,)),
    Target("checkpoint of fit", ".checkpoint", _fit_checkpoint, (ValueError,), edit_model),
]


def write_valid_files(folder: Path) -> None:
    """Write the valid files of all targets: every variant of every format, small."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from skcompressae.arrow import ArrowEncoder

    X = np.random.RandomState(0).standard_normal((N_ROWS, N_FEATURES)).astype(np.float32)
    model = CompresSAETransformer(n_components=N_COMPONENTS, k=K, max_iter=3, random_state=0, device="cpu").fit(X)
    codes = model.transform(X)
    model.save(folder / "0.safetensors")
    copy.deepcopy(model).partial_fit(X).save(folder / "1.safetensors")
    to_reference_checkpoint(model, folder / "0.pt")
    weights = Weights(model.encoder_weights_, model.encoder_bias_, model.components_)
    numbers = np.random.RandomState(0).get_state(legacy=False)
    rows = np.ones((N_ROWS, N_FEATURES), np.float32)
    for number, best in enumerate((None, weights)):
        checkpoint = FitCheckpoint(folder / "valid-fit", _FIT_PARAMETERS, rows, None)
        state = TrainingState(
            weights, Moments.zeros_like(weights), [0.5, 0.4], [0.3], [2], 0.3, best, 0, 16, numbers, epoch_position=32
        )
        checkpoint.save(state, False, numbers)
        shutil.copyfile(checkpoint.path, folder / f"{number}.checkpoint")
    stores = [PackedCodes.pack(codes, value_bits=value_bits) for value_bits in (4, 8, 12)]
    stores.append(stores[0].with_residual_of(X, model.components_, n_bytes=4, normalize=False))
    stores.append(copy.copy(model).set_params(norm="unit", residual_bytes=None).transform_packed(X, kind="fixed"))
    for number, store in enumerate(stores):
        store.save(folder / f"{number}.skc")
        (folder / f"{number}.ska").write_bytes(store.to_archive())
    indexes = [
        CodeNearestNeighbors().fit(codes),
        CodeNearestNeighbors(compressor=model).fit(codes).partial_fit(codes),
        CodeNearestNeighbors(compressor=model).fit(stores[0]),
        CodeNearestNeighbors(compressor=model, rerank=5).fit(stores[3]),
    ]
    for number, index in enumerate(indexes):
        index.save(folder / f"{number}.index")
    for number, array in enumerate((X, X.astype(">f8"), np.asfortranarray(X.astype(np.float16)))):
        np.save(folder / f"{number}.npy", array)
    sp.save_npz(folder / "0.npz", codes)
    sp.save_npz(folder / "1.npz", codes.astype(np.float64), compressed=False)
    column = pa.FixedSizeListArray.from_arrays(pa.array(X.ravel()), N_FEATURES)
    for number, lists in enumerate((pa.array(list(X)), column)):
        table = pa.table({"id": pa.array(range(N_ROWS)), "embedding": lists})
        pq.write_table(table, folder / f"{number}.parquet", row_group_size=25, write_page_checksum=True)
    encoded = ArrowEncoder(model)(pa.table({"embedding": pa.array(list(X))}))
    for number, table in enumerate((encoded, stores[0].to_arrow())):
        pq.write_table(table, folder / f"{number}.pqc", row_group_size=25, write_page_checksum=True)
    spool = Spool(folder / "valid-work", _SPOOL_IDENTITY, _SPOOL_STREAMS, restart=False, force=True)
    spool.state["levels"] = [1.5, 2.5]
    for start in (0, 20):
        part = codes[start : start + 20]
        spool.append(20, {"lengths": np.diff(part.indptr), "values": part.data})
    spool.close()
    shutil.copyfile(spool.folder / "journal", folder / "0.journal")
    shutil.copyfile(spool.folder / "values.bin", folder / "0.bin")
