"""Blocks of rows in, (indices, values) codes out: what transform, score and the usage statistics share."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from skcompressae._core._arrays import FloatArray, IndexArray, aligned, aligned_empty
from skcompressae._core._compiling import readable
from skcompressae._core._deciding import ALL, MANY, OPEN
from skcompressae._core._few_products import FEW_VECTORS, count_few_threads
from skcompressae._core._few_rows import encode_few
from skcompressae._core._flattening import AS_FITTED, Flattening
from skcompressae._core._integer_rows import round_decoder, rounded_decoder_pays
from skcompressae._core._kept_rounding import FEW_ROWS, NOT_KEPT, Keeper, encoder_role, keeper_of
from skcompressae._core._pursuit import PURSUITS, Inexact, count_candidates
from skcompressae._core._refinement import N_REFINEMENTS, merged_candidates, unexplained_rows
from skcompressae._core._rounded_fit import fit_codes
from skcompressae._core._rows import (
    codes_to_csr,
    decode_csr,
    decode_norms,
    scale_codes,
    scales_apart,
    unit_rows,
)
from skcompressae._core._sparse_step import reconstruction_gradients
from skcompressae._core._supports import activation_codes, candidate_activations, rounding_margin, supports
from skcompressae._core._threads import effective_n_threads, row_blocks, run_blocks, run_product_blocks
from skcompressae._core._topk import top_k
from skcompressae._torch._cpu_engine import PreActivations
from skcompressae._torch._device_choice import Device
from skcompressae._torch._screened import ScreenedActivations, roundings_worth_screening
from skcompressae._torch._weights import Weights

if TYPE_CHECKING:
    from skcompressae._torch._device_encoder import DeviceEncoder

__all__ = ["BLOCK_ROWS", "Encoder", "codes_to_csr"]

# Rows checked or encoded at a time on the CPU: bounds memory, not speed.
BLOCK_ROWS = 4096

# Candidates beyond k whose activations are recomputed: reduced precision may order neighbours of the k-th wrongly.
_MARGIN = 8
# Rows up to which one thread that reads an encoder kept in 8 bits is faster than one that reads float32.
_KEPT_ROWS_OF_ONE_THREAD = 8
# Rows from which the bound of the rounding errors, which takes a pass over the encoder, saves more than it costs.
_MIN_BOUNDED_ROWS = 512


class Encoder:
    """Encode blocks of rows with fitted weights.

    Parameters
    ----------
    weights : Weights
    coding : {"pursuit", "refined_pursuit", "least_squares", "activations"}
    candidate_factor : float
        Candidates per nonzero for the two pursuits.
    precision : {"float32", "tf32", "bfloat16"}
    device : Device
    scales_mean_apart : bool
        See `skcompressae._core._rows.scales_apart`.
    flattening : float, default=0
        Of fitted values, where they are scaled: see `skcompressae._core._flattening`.
    divisors : array of shape (n_components,), optional
        What pre-activations are divided by: where an encoder was scaled to choose by, and `coding` is "activations",
        whose values they are.
    """

    def __init__(
        self,
        weights: Weights,
        *,
        coding: str,
        candidate_factor: float,
        precision: str,
        device: Device,
        scales_mean_apart: bool,
        flattening: float = 0.0,
        divisors: FloatArray | None = None,
    ) -> None:
        given = weights
        if device.type == "cpu":
            weights = Weights(*map(readable, weights.arrays))
            divisors = None if divisors is None else readable(divisors)
        if divisors is not None:
            weights = replace(weights, bias=weights.bias / divisors)
        self._weights = weights
        self._given = given.encoder  # the user's array, by which what was kept of it is known again
        self._divisors = divisors  # of products: one row would wait for a division of the whole encoder
        self._coding = coding
        self._scales_mean_apart = scales_mean_apart
        self._candidate_factor = candidate_factor
        self._flattening = flattening if coding != "activations" else 0.0
        self._on_device: DeviceEncoder | None = None
        self._precision = precision
        self._has_exact_products = device.type == "cpu" and precision != "bfloat16"
        self._margin: float | None = None
        self._rounded_decoder: IndexArray | None = None
        self._is_decoder_rounded = False  # or its rows are too long for it
        self._screened: dict[str, ScreenedActivations] = {}  # by what factors are rounded to
        self._unit = np.empty((0, weights.encoder.shape[1]), dtype=np.float32)
        self._refiner: Encoder | None = None
        if device.type == "cpu":
            if coding == "refined_pursuit":
                self._refiner = Encoder(
                    Weights(weights.decoder, np.zeros_like(weights.bias), weights.decoder),
                    coding="activations",
                    candidate_factor=candidate_factor,
                    precision=precision,
                    device=device,
                    scales_mean_apart=False,
                )
        else:
            from skcompressae._torch._device_encoder import kept_device_encoder

            settings = precision, coding, scales_mean_apart, self._flattening
            self._on_device = kept_device_encoder(given, device, *settings, divisors=divisors)

    @property
    def n_components(self) -> int:
        """Width of a code."""
        return self._weights.n_components

    @cached_property
    def _n_threads(self) -> int:
        """Threads that may be used, asked for by the one that encodes; a single row needs no answer."""
        return effective_n_threads()

    @cached_property
    def _keeper(self) -> Keeper | None:
        return keeper_of(self._given, encoder_role(self._divisors))

    @cached_property
    def _pre_activations(self) -> PreActivations:
        return PreActivations(self._weights.encoder, self._precision, self._divisors)

    def encode(
        self, rows: NDArray[Any], k: int, *, norm: str | None, dtype: type[np.floating[Any]]
    ) -> tuple[IndexArray, FloatArray]:
        """Encode rows of any scale.

        Parameters
        ----------
        rows : array of shape (n_rows, n_features)
        k : int
        norm : {"input", "unit", None}
        dtype : float32 or float64, of the values

        Returns
        -------
        indices : int32 array of shape (n_rows, k), ascending in each row
        values : array of shape (n_rows, k); all zero for an all-zero row
        """
        indices = np.empty((len(rows), k), dtype=np.int32)
        values = np.empty((len(rows), k), dtype=dtype)
        for where, block_indices, block_values in self.encode_blocks(rows, k, norm=norm, dtype=dtype):
            indices[where], values[where] = block_indices, block_values
        return indices, values

    def encode_blocks(
        self, rows: NDArray[Any], k: int, *, norm: str | None, dtype: type[np.floating[Any]]
    ) -> Iterator[tuple[slice, IndexArray, FloatArray]]:
        """Encode rows block by block: yield which rows, and what :meth:`encode` returns for them.

        On a device the next block is on its way while the caller has one.
        """
        if self._on_device is not None:
            found = self._on_device.encode_blocks(rows, k, self._n_candidates(k), norm=norm, dtype=dtype)
            for where, indices, values, norms in found:
                _check_scaled(values, norms)
                yield where, indices, values
            return
        if self._is_few(rows, dtype):
            yield slice(0, len(rows)), *self._encode_few(rows, k, norm)
            return
        if len(rows) >= BLOCK_ROWS:  # a copy costs a hundredth of what they take, and saves several
            self._weights = replace(self._weights, decoder=aligned(self._weights.decoder))
        for start, stop in row_blocks(len(rows), BLOCK_ROWS):
            _, norms, indices, raw, decoded = self._encode_unit_rows(rows[start:stop], k, norm)
            values = np.empty((stop - start, k), dtype=dtype)
            is_nonzero = norms > 0
            if norm is None:
                np.multiply(raw, is_nonzero[:, None], out=values, casting="same_kind")
            else:
                is_kept = scales_apart(self._scales_mean_apart, self._coding, norm)
                wanted = norms if norm == "input" else is_nonzero.astype(np.float64)
                scale_codes(indices, raw, decoded, wanted, values, keeps_mean=is_kept)
            _check_scaled(values, norms)
            yield slice(start, stop), indices, values

    def cosines(self, rows: NDArray[Any], k: int, *, norm: str | None) -> NDArray[np.float64]:
        """Return the cosine similarity of each row with its reconstruction at `norm`; 1 for an all-zero row."""
        if self._on_device is not None:
            return self._on_device.cosines(rows, k, self._n_candidates(k), norm=norm)
        is_kept = scales_apart(self._scales_mean_apart, self._coding, norm)
        cosines = np.ones(len(rows))
        for start, stop in row_blocks(len(rows), BLOCK_ROWS):
            x, norms, indices, values, decoded = self._encode_unit_rows(rows[start:stop], k, norm)
            # one factor for all entries would not change a cosine, but squares of activations may leave float32
            if is_kept or self._coding == "activations":
                scale_codes(indices, values, decoded, np.ones(stop - start), values, keeps_mean=is_kept)
            _, _, _, found = reconstruction_gradients(
                x, self._weights.decoder, indices, values, k, (1.0, 0.0), n_threads=self._n_threads
            )
            cosines[start:stop][norms > 0] = np.clip(found[norms > 0, 0], -1, 1)
        return cosines

    def decode(self, codes: Any) -> FloatArray:
        """Multiply codes, sparse or dense, by the decoder, in their dtype, on the device."""
        if self._on_device is not None:
            return self._on_device.decode(codes)
        if sp.issparse(codes):
            return decode_csr(codes, self._weights.decoder, n_threads=self._n_threads)
        decoder = self._weights.decoder.astype(codes.dtype, copy=False)
        x_hat: FloatArray = np.empty((codes.shape[0], decoder.shape[1]), dtype=codes.dtype)
        for start, stop in row_blocks(len(codes), BLOCK_ROWS):
            # BLAS may sum columns that lie one after another, as those of data frames do, in another order
            np.matmul(np.ascontiguousarray(codes[start:stop]), decoder, out=x_hat[start:stop])
        return x_hat

    def _n_candidates(self, k: int) -> int:
        """Count the candidates of a row, at least k: the product only proposes, see `_core/_supports.py`."""
        if self._coding in PURSUITS:
            return count_candidates(k, self._candidate_factor, self.n_components)
        return self._n_recomputed(k)

    def _n_recomputed(self, k: int) -> int:
        return min(self.n_components, k + _MARGIN)

    def _flattening_for(self, norm: str | None) -> Flattening:
        if norm is None:
            return AS_FITTED
        return Flattening(self._flattening, scales_apart(self._scales_mean_apart, self._coding, norm))

    def _is_few(self, rows: NDArray[Any], dtype: type[np.floating[Any]]) -> bool:
        """Return whether `_encode_few` encodes these rows, and no second thread would help it."""
        if len(rows) > FEW_VECTORS or self._coding == "refined_pursuit":
            return False
        arrays = list(self._weights.arrays)
        if self._divisors is not None:
            arrays.append(self._divisors)
        if not (dtype is np.float32 and rows.dtype == np.float32):
            return False
        if not all(a.dtype == np.float32 and a.flags.c_contiguous for a in arrays):
            return False
        if len(rows) <= FEW_ROWS and self._keeper is not None and self._keeper.pays:
            return True
        return count_few_threads(len(rows), self._weights.encoder) == 1 or self._n_threads == 1

    def _encode_few(self, rows: FloatArray, k: int, norm: str | None) -> tuple[IndexArray, FloatArray]:
        coding, n_candidates = self._coding, self._n_candidates(k)
        if coding != "activations" and n_candidates == k:  # as in `_fit`
            coding = "least_squares"
        if coding != "pursuit":
            n_candidates = k
        weights, divisors = self._weights, self._divisors
        keeper = self._keeper if len(rows) <= _KEPT_ROWS_OF_ONE_THREAD else None
        kept = NOT_KEPT if keeper is None else keeper.rounded(weights.encoder, weights.bias, divisors)
        codes = encode_few(
            readable(np.ascontiguousarray(rows)),
            *weights.arrays,
            k,
            n_candidates,
            self._n_recomputed(n_candidates),
            coding=coding,
            divisors=divisors,
            flattening=self._flattening_for(norm),
            norm=norm,
            kept=kept,
        )
        if keeper is not None and kept is not NOT_KEPT:
            keeper.learn(codes.outcome)
        if not codes.is_finite:
            _check_scaled(codes.values, codes.norms)
        return codes.indices, codes.values

    def _encode_unit_rows(
        self, rows: NDArray[Any], k: int, norm: str | None
    ) -> tuple[FloatArray, NDArray[np.float64], IndexArray, FloatArray, FloatArray]:
        """Return unit rows and norms, indices and values for the unit rows, and the norms of the reconstructions.

        Values are to be scaled to `norm`.

        All rows pass one stage before any passes the next, so that each stage finds its weights in the cache.
        """
        flattening = self._flattening_for(norm)
        x, norms = self._unit_rows(rows)
        if self._coding == "activations":
            indices, values = self._largest(x, k)
            decoded = decode_norms(self._weights.decoder, indices, values, n_threads=self._n_threads)
            return x, norms, indices, values, decoded
        codes = self._fit(x, k, flattening if self._refiner is None else AS_FITTED)
        if self._refiner is not None:
            for n_left in reversed(range(N_REFINEMENTS)):
                codes = self._refine(self._refiner, x, *codes[:2], AS_FITTED if n_left else flattening)
        return x, norms, *codes

    def _largest(self, x: FloatArray, k: int) -> tuple[IndexArray, FloatArray]:
        """Return the k largest activations of each unit row."""
        screened = self._screen(x, k)
        if screened is not None:
            return screened[:2]
        candidates, _ = self._propose(x, self._n_recomputed(k))
        weights = self._weights
        return activation_codes(
            x, weights.encoder, weights.bias, candidates, k, n_threads=self._n_threads, divisors=self._divisors
        )

    def _fit(self, x: FloatArray, k: int, flattening: Flattening) -> tuple[IndexArray, FloatArray, FloatArray]:
        """Return codes of unit rows with fitted values, of latents that the encoder proposes."""
        weights, n_threads = self._weights, self._n_threads
        decoders = weights.decoder, self._rounded_decoder_for(len(x))
        fitting: Any = {"n_threads": n_threads, "flattening": flattening}
        n_candidates = self._n_candidates(k)
        pursues = self._coding in PURSUITS and n_candidates > k
        screened = self._screen(x, n_candidates if pursues else k)
        if screened is not None:
            candidates, activations, errors = screened
            if pursues:
                inexact = Inexact(errors, weights.encoder, weights.bias)
                return fit_codes(x, *decoders, candidates, activations, k, inexact=inexact, **fitting)
            return fit_codes(x, *decoders, candidates, None, k, **fitting)
        if not pursues:  # with nothing to pick it is least squares, whose support a product's rounding must not decide
            n_candidates = self._n_recomputed(k)
        candidates, proposed = self._propose(x, n_candidates)
        if pursues:
            if not self._has_exact_products:
                proposed = candidate_activations(x, weights.encoder, weights.bias, candidates, n_threads=n_threads)
            return fit_codes(x, *decoders, candidates, proposed, k, **fitting)
        if self._has_exact_products and len(x) >= _MIN_BOUNDED_ROWS:
            if self._margin is None:
                self._margin = rounding_margin(weights.encoder, weights.bias)
            indices = supports(
                x, weights.encoder, weights.bias, candidates, proposed, self._margin, k, n_threads=n_threads
            )
        else:
            indices, _ = activation_codes(x, weights.encoder, weights.bias, candidates, k, n_threads=n_threads)
        return fit_codes(x, *decoders, indices, None, k, **fitting)

    def _rounded_decoder_for(self, n_rows: int) -> IndexArray | None:
        """Return the decoder in integers where values of so many rows are fitted faster with it, if they may be."""
        if self._has_exact_products or not rounded_decoder_pays(n_rows, self._weights.decoder.shape[1]):
            return None
        if not self._is_decoder_rounded:
            self._rounded_decoder = round_decoder(self._weights.decoder, n_threads=self._n_threads)
            self._is_decoder_rounded = True
        return self._rounded_decoder

    def _refine(
        self, refiner: Encoder, x: FloatArray, indices: IndexArray, values: FloatArray, flattening: Flattening
    ) -> tuple[IndexArray, FloatArray, FloatArray]:
        """Return codes pursued among the latents of these and as many others that explain most of what they leave."""
        decoder, n_threads = self._weights.decoder, self._n_threads
        rounded = self._rounded_decoder_for(len(x))
        rest, norms = unexplained_rows(x, decoder if rounded is None else rounded, indices, values, n_threads=n_threads)
        proposed, correlations = refiner._largest(rest, indices.shape[1])
        candidates, activations = merged_candidates(
            indices, values, proposed, correlations, norms, self.n_components, n_threads=n_threads
        )
        k = indices.shape[1]
        return fit_codes(x, decoder, rounded, candidates, activations, k, n_threads=n_threads, flattening=flattening)

    def _unit_rows(self, rows: NDArray[Any]) -> tuple[FloatArray, NDArray[np.float64]]:
        """Return unit rows, valid until the next call, and norms."""
        if len(self._unit) < len(rows):
            self._unit = aligned_empty(rows.shape, np.float32)
        x = self._unit[: len(rows)]
        norms = np.empty(len(rows))

        def scale(start: int, stop: int) -> None:
            _, norms[start:stop] = unit_rows(rows[start:stop], out=x[start:stop])

        run_blocks(scale, len(rows), 512, self._n_threads)
        return x, norms

    def _screen(self, x: FloatArray, n: int) -> tuple[IndexArray, FloatArray, FloatArray] | None:
        """Return the n largest activations of each row by way of a rounded product, or None where that does not pay.

        And how far each row's may be off: least squares needs no exact activations, a pursuit only a few, and none do
        in reduced precision.
        """
        for rounding in self._worth_screening(x.shape):
            if rounding not in self._screened:
                weights = self._weights
                self._screened[rounding] = ScreenedActivations(
                    weights.encoder, weights.bias, self._divisors, rounding=rounding, n_threads=self._n_threads
                )
            screened = self._screened[rounding]
            if self._coding == "activations":
                computes = ALL
            elif not self._has_exact_products:
                computes = MANY
            else:
                computes = ALL if self._coding in PURSUITS and not screened.is_fine else OPEN
            if screened.pays:
                block_rows = self._pre_activations.block_rows
                found = screened.largest(x, n, block_rows, self._n_threads, computes=computes)
                if found is not None:
                    return found
        return None

    def _worth_screening(self, shape: tuple[int, ...]) -> list[str]:
        roundings = roundings_worth_screening(*shape)
        # rounding to bfloat16 was asked for then, so its errors need no mending, but a faster product is welcome
        return roundings if self._has_exact_products else [r for r in roundings if r != "bfloat16"]

    def _propose(self, x: FloatArray, n_candidates: int) -> tuple[IndexArray, FloatArray]:
        """Return latents of each unit row that may be in its code, and their proposed activations."""
        candidates = np.empty((len(x), n_candidates), dtype=np.int32)
        proposed = np.empty((len(x), n_candidates), dtype=np.float32)
        multiply = self._pre_activations
        multiply.round_for(len(x))

        def propose(start: int, stop: int, n_threads: int) -> None:
            candidates[start:stop], proposed[start:stop] = top_k(
                multiply(x[start:stop], n_threads), n_candidates, bias=self._weights.bias, n_threads=n_threads
            )

        with multiply.hold_torch_threads():
            run_product_blocks(propose, len(x), self._pre_activations.block_rows, self._n_threads)
        return candidates, proposed


def _check_scaled(values: FloatArray, norms: NDArray[np.float64]) -> None:
    if np.isnan(norms).any():  # as `unit_rows` says
        raise ValueError("Input X contains NaN or infinity.")
    if not np.isfinite(values).all():
        raise ValueError(
            f"norm='input' scales codes to the rows' L2 norms, but X has a row of norm {norms.max():.3g}, beyond "
            f"{values.dtype.name}. Scale X down, or use norm='unit'."
        )
