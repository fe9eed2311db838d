"""The other ways to make embeddings smaller, each giving reconstructions or scores and bytes per vector."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse as sp
import torch
from _common import cosine_neighbors, cpu_stopwatch, unit_rows
from sklearn.decomposition import PCA, MiniBatchDictionaryLearning
from sklearn.exceptions import ConvergenceWarning

Array = np.ndarray


class Compressed(NamedTuple):
    """What a peer made of the documents."""

    method: str
    params: dict[str, Any]
    size_bytes: float
    fit_s: float
    encode_s: float
    neighbors: Callable[[Array, int], Array]  # (queries, n_neighbors) -> indices, dense queries
    reconstruction: Array | None


class SparseModel(NamedTuple):
    """A dictionary and the documents' codes in it; encode gives the codes of other rows."""

    decoder: Array
    codes: sp.csr_matrix
    encode: Callable[[Array], sp.csr_matrix]
    fit_s: float
    encode_s: float
    dead_fraction: float
    n_steps: int | None = None


def _from_reconstruction(
    method: str, params: dict[str, Any], size_bytes: float, fit_s: float, encode_s: float, X_hat: Array
) -> Compressed:
    # every peer gets the cosine with its reconstruction: the norm of x_hat follows from its code
    X_hat = unit_rows(X_hat)
    return Compressed(method, params, size_bytes, fit_s, encode_s, lambda Q, n: cosine_neighbors(Q, X_hat, n), X_hat)


def _int8(Z: Array) -> Array:
    scale = np.abs(Z).max(axis=0) / 127.0  # one scale a dimension, shared by all rows
    return np.round(Z / np.where(scale > 0, scale, 1.0)).astype(np.int8) * scale.astype(np.float32)


def pca(documents: Array, size_bytes: int, seed: int, is_int8: bool = False) -> Compressed | None:
    """Keep the leading principal components of the unit rows, as float32 or as int8."""
    rank = size_bytes if is_int8 else size_bytes // 4
    if rank < 1 or rank > min(documents.shape):
        return None
    X = unit_rows(documents)
    with cpu_stopwatch() as fit_s:
        model = PCA(rank, random_state=seed).fit(X)
    with cpu_stopwatch() as encode_s:
        Z = model.transform(X)
        Z = _int8(Z) if is_int8 else Z
    name = "pca_int8" if is_int8 else "pca"
    return _from_reconstruction(
        name, {"n_components": rank}, size_bytes, fit_s(), encode_s(), model.inverse_transform(Z)
    )


def truncation(documents: Array, size_bytes: int, seed: int, is_int8: bool = False) -> Compressed | None:
    """Keep the first dimensions as they come, as float32 or as int8."""
    rank = size_bytes if is_int8 else size_bytes // 4
    if rank < 1 or rank > documents.shape[1]:
        return None
    X_hat = np.zeros_like(documents)
    with cpu_stopwatch() as encode_s:
        kept = unit_rows(documents)[:, :rank]
        X_hat[:, :rank] = _int8(kept) if is_int8 else kept
    name = "truncation_int8" if is_int8 else "truncation"
    return _from_reconstruction(name, {"n_dimensions": rank}, size_bytes, 0.0, encode_s(), X_hat)


def _padded(X: Array, multiple: int) -> Array:
    missing = -X.shape[1] % multiple
    return np.ascontiguousarray(np.pad(X, ((0, 0), (0, missing))) if missing else X)


def product_quantization(documents: Array, size_bytes: int, seed: int) -> Compressed | None:
    """FAISS PQ with 8-bit sub-quantisers; zero columns make the width a multiple of their number."""
    import faiss

    n_features = documents.shape[1]
    if size_bytes > n_features:
        return None
    X = _padded(unit_rows(documents), size_bytes)
    quantizer = faiss.ProductQuantizer(X.shape[1], size_bytes, 8)
    quantizer.cp.seed = 1234 + seed
    with cpu_stopwatch() as fit_s:
        quantizer.train(X)
    with cpu_stopwatch() as encode_s:
        codes = quantizer.compute_codes(X)
    return _from_reconstruction(
        "pq", {"M": size_bytes}, size_bytes, fit_s(), encode_s(), quantizer.decode(codes)[:, :n_features]
    )


def optimized_product_quantization(documents: Array, size_bytes: int, seed: int) -> Compressed | None:
    """FAISS OPQ rotation, then PQ with 8-bit sub-quantisers."""
    import faiss

    n_features = documents.shape[1]
    if size_bytes > n_features:
        return None
    X = unit_rows(documents)
    width = math.ceil(n_features / size_bytes) * size_bytes
    rotation = faiss.OPQMatrix(n_features, size_bytes, width)
    quantizer = faiss.ProductQuantizer(width, size_bytes, 8)
    quantizer.cp.seed = 1234 + seed
    with cpu_stopwatch() as fit_s:
        # the rotation needs fewer rows than the codebooks; FAISS's own default caps them at 65,536
        rotation.train(X)
        rotated = rotation.apply(X)
        quantizer.train(rotated)
    with cpu_stopwatch() as encode_s:
        codes = quantizer.compute_codes(rotation.apply(X))
    X_hat = rotation.reverse_transform(quantizer.decode(codes))
    return _from_reconstruction("opq", {"M": size_bytes}, size_bytes, fit_s(), encode_s(), X_hat)


def residual_quantization(documents: Array, size_bytes: int, seed: int) -> Compressed | None:
    """FAISS residual quantisers, whose codewords add up: one for every 16 bytes, each on its part of OPQ's rotation."""
    import faiss

    n_features = documents.shape[1]
    n_parts = math.ceil(size_bytes / 16)  # training takes the square of the codewords that add up
    if size_bytes % n_parts or n_features < 8 * n_parts:
        return None
    X = unit_rows(documents)
    width = math.ceil(n_features / n_parts) * n_parts
    rotation = faiss.OPQMatrix(n_features, n_parts, width)
    quantizer = faiss.ProductResidualQuantizer(width, n_parts, size_bytes // n_parts, 8)
    for part in range(n_parts):
        faiss.downcast_AdditiveQuantizer(quantizer.subquantizer(part)).cp.seed = 1234 + seed
    with cpu_stopwatch() as fit_s:
        rotation.train(X)
        quantizer.train(rotation.apply(X))
    with cpu_stopwatch() as encode_s:
        codes = quantizer.compute_codes(rotation.apply(X))
    X_hat = rotation.reverse_transform(quantizer.decode(codes))
    params = {"n_parts": n_parts, "M": size_bytes // n_parts}
    return _from_reconstruction("rq", params, size_bytes, fit_s(), encode_s(), X_hat)


def scalar_quantization(documents: Array, n_bits: int, seed: int) -> Compressed:
    """FAISS scalar quantiser of 8, 6 or 4 bits a dimension."""
    import faiss

    X = unit_rows(documents)
    quantizer = faiss.ScalarQuantizer(X.shape[1], getattr(faiss.ScalarQuantizer, f"QT_{n_bits}bit"))
    with cpu_stopwatch() as fit_s:
        quantizer.train(X)
    with cpu_stopwatch() as encode_s:
        codes = quantizer.compute_codes(X)
    return _from_reconstruction(
        f"sq{n_bits}", {"n_bits": n_bits}, quantizer.code_size, fit_s(), encode_s(), quantizer.decode(codes)
    )


def rabitq(documents: Array, size_bytes: int | None, seed: int, n_bits: int = 1) -> Compressed | None:
    """FAISS RaBitQ after a random rotation, of the leading principal components to meet a small budget.

    `size_bytes` None keeps every dimension.
    """
    import faiss

    X = unit_rows(documents)
    width = X.shape[1]
    if size_bytes is not None:
        overhead = faiss.IndexRaBitQ(8, faiss.METRIC_INNER_PRODUCT, n_bits).sa_code_size() - n_bits
        width = (size_bytes - overhead) * 8 // n_bits
        if width < 8 or width >= X.shape[1]:
            return None
    inner = faiss.IndexRaBitQ(width, faiss.METRIC_INNER_PRODUCT, n_bits)
    inner.qb = 8  # measured: same recall as with float queries, a hundred times faster
    with cpu_stopwatch() as fit_s:
        model = PCA(width, random_state=seed).fit(X) if width < X.shape[1] else None
        reduced = _reduced(model, X)
        rotation = faiss.RandomRotationMatrix(width, width)
        rotation.init(1234 + seed)
        inner.train(rotation.apply(reduced))
    with cpu_stopwatch() as encode_s:
        inner.add(rotation.apply(_reduced(model, X)))

    def neighbors(queries: Array, n_neighbors: int) -> Array:
        Q = unit_rows(queries)
        if model is not None:  # scores leave out the query's constant part only
            Q = np.ascontiguousarray(Q @ model.components_.T.astype(np.float32))
        return inner.search(rotation.apply(Q), n_neighbors)[1].astype(np.int32)

    params = {"n_bits": n_bits, "n_components": width}
    return Compressed("rabitq", params, inner.sa_code_size(), fit_s(), encode_s(), neighbors, None)


def _reduced(model: PCA | None, X: Array) -> Array:
    """Project without centring, so that inner products approximate those of the full rows."""
    return X if model is None else np.ascontiguousarray(X @ model.components_.T.astype(np.float32))


def rotated_signs(documents: Array, seed: int) -> Compressed:
    """One sign bit a dimension of the centred rows after a random rotation; the query stays dense."""
    X = unit_rows(documents)
    rng = np.random.default_rng(seed)
    with cpu_stopwatch() as fit_s:
        rotation = np.linalg.qr(rng.standard_normal((X.shape[1], X.shape[1])))[0].astype(np.float32)
        mean = X.mean(axis=0)
        scale = np.abs((X - mean) @ rotation.T).mean()  # of least squared error, one for all
    with cpu_stopwatch() as encode_s:
        signs = np.where((X - mean) @ rotation.T >= 0, scale, -scale)
    return _from_reconstruction("signs", {}, math.ceil(X.shape[1] / 8), fit_s(), encode_s(), mean + signs @ rotation)


class PaperModel(torch.nn.Module):
    """CompresSAE as the paper writes it: untied encoder with bias, bias-free decoder of unit-norm rows."""

    def __init__(self, n_features: int, n_components: int, generator: torch.Generator) -> None:
        super().__init__()

        def kaiming(*shape: int) -> torch.nn.Parameter:
            bound = math.sqrt(6.0 / shape[1])  # Kaiming uniform, fan-in
            return torch.nn.Parameter((torch.rand(*shape, generator=generator) * 2 - 1) * bound)

        self.encoder_weight = kaiming(n_components, n_features)
        self.encoder_bias = torch.nn.Parameter(torch.zeros(n_components))
        self.decoder_weight = kaiming(n_components, n_features)
        self.normalize_decoder()

    @torch.no_grad()
    def normalize_decoder(self) -> None:
        """Scale the decoder's rows to unit norm."""
        self.decoder_weight.div_(self.decoder_weight.norm(dim=1, keepdim=True).clamp_min(1e-12))

    def latents_pre_act(self, x: torch.Tensor) -> torch.Tensor:
        """Return W x / ||x|| + b."""
        x = torch.nn.functional.normalize(x, dim=1)
        return torch.addmm(self.encoder_bias, x, self.encoder_weight.T)

    @staticmethod
    def latents(pre_act: torch.Tensor, k: int) -> torch.Tensor:
        """Keep the k entries of largest magnitude, with their sign, in a dense array."""
        chosen = pre_act.abs().topk(min(k, pre_act.shape[1]), dim=1).indices
        return torch.zeros_like(pre_act).scatter(1, chosen, pre_act.gather(1, chosen))

    def loss(self, x: torch.Tensor, k: int) -> torch.Tensor:
        """Return the mean cosine distance at k, plus 1/8 of that at 4k."""
        pre_act = self.latents_pre_act(x)

        def distance(k: int) -> torch.Tensor:
            x_hat = self.latents(pre_act, k) @ self.decoder_weight
            return (1.0 - torch.nn.functional.cosine_similarity(x, x_hat, dim=1)).mean()

        return distance(k) + distance(4 * k) / 8.0


def paper_recipe(
    documents: Array,
    k: int,
    n_components: int,
    n_steps: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
    time_s: float = math.inf,
) -> SparseModel:
    """Train the paper's model: Adam, constant learning rate, decoder renormalised after every step.

    Training ends after `n_steps` steps or, where that comes first, the first step past `time_s` seconds.
    """
    generator = torch.Generator().manual_seed(seed)
    X = torch.from_numpy(np.ascontiguousarray(documents, dtype=np.float32))
    batch_size = min(batch_size, len(X))
    with cpu_stopwatch() as fit_s:
        model = PaperModel(X.shape[1], n_components, generator)
        optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate)
        order = torch.randperm(len(X), generator=generator)
        position, n_taken = 0, 0
        for _ in range(n_steps):
            if position + batch_size > len(X):
                order, position = torch.randperm(len(X), generator=generator), 0
            batch = X[order[position : position + batch_size]]
            position += batch_size
            optimizer.zero_grad()
            model.loss(batch, k).backward()
            optimizer.step()
            model.normalize_decoder()
            n_taken += 1
            if fit_s() >= time_s:
                break

    @torch.no_grad()
    def encode(rows: Array) -> sp.csr_matrix:
        blocks = []
        for start in range(0, len(rows), 4096):
            pre_act = model.latents_pre_act(torch.from_numpy(np.asarray(rows[start : start + 4096], np.float32)))
            indices = pre_act.abs().topk(min(k, n_components), dim=1).indices.sort(dim=1).values
            values = pre_act.gather(1, indices)
            indptr = np.arange(0, indices.numel() + 1, indices.shape[1])
            shape = (len(indices), n_components)
            blocks.append(sp.csr_matrix((values.numpy().ravel(), indices.numpy().ravel(), indptr), shape=shape))
        return sp.vstack(blocks, format="csr")

    with cpu_stopwatch() as encode_s:
        codes = encode(documents)
    is_used = np.bincount(codes.indices, minlength=n_components) > 0
    decoder = model.decoder_weight.detach().numpy().copy()
    return SparseModel(decoder, codes, encode, fit_s(), encode_s(), float(1 - is_used.mean()), n_taken)


def dictionary_learning(documents: Array, k: int, n_components: int, seed: int, n_rows: int = 10_000) -> SparseModel:
    """MiniBatchDictionaryLearning on up to `n_rows` rows, coded by orthogonal matching pursuit."""
    X = unit_rows(documents)
    model = MiniBatchDictionaryLearning(
        n_components,
        alpha=0.1,
        max_iter=2,
        batch_size=256,
        fit_algorithm="cd",
        transform_algorithm="omp",
        transform_n_nonzero_coefs=k,
        random_state=seed,
    )
    with cpu_stopwatch() as fit_s, warnings.catch_warnings():
        # its inner coordinate descent says at almost every batch that it stopped early: two passes are the budget
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(X[:n_rows])

    def encode(rows: Array) -> sp.csr_matrix:
        rows = unit_rows(rows)
        return sp.vstack(
            [sp.csr_matrix(model.transform(rows[i : i + 2048])) for i in range(0, len(rows), 2048)],
            format="csr",
        ).astype(np.float32)

    with cpu_stopwatch() as encode_s:
        codes = encode(documents)
    is_used = np.bincount(codes.indices, minlength=n_components) > 0
    decoder = model.components_.astype(np.float32)
    return SparseModel(decoder, codes, encode, fit_s(), encode_s(), float(1 - is_used.mean()))
