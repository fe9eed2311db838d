"""Encoding and decoding on a device that is not the CPU: rows go there and codes come back, block by block.

Everything between stays on the device: norms, the encoder's product, the selection, the recomputed activations that
decide, the fitted values, the scale.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from dataclasses import replace
from threading import Lock, RLock
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from skcompressae._core._arrays import FloatArray, IndexArray
from skcompressae._core._rows import scales_apart
from skcompressae._core._threads import copy_rows, row_blocks
from skcompressae._torch import _devices
from skcompressae._torch._codes import Codes, encode_unit_rows, flattened, scale_factors
from skcompressae._torch._device_choice import Device
from skcompressae._torch._encode_graph import EncodeGraphs
from skcompressae._torch._products import Products
from skcompressae._torch._pursuit import GramTable
from skcompressae._torch._row_ops import decoded_norms, gathered_dots, unit_rows_torch
from skcompressae._torch._staging import RowStream, download_blocks, tensor_of, wait_for_queued
from skcompressae._torch._weights import Weights

__all__ = ["DeviceEncoder", "drop_kept_encoders", "kept_device_encoder"]

# Bytes of one dense (block, n_components) array: small beside any device, large enough for a product at full speed.
_BLOCK_BYTES = 256 * 2**20
_MIN_BLOCK_ROWS, _MAX_BLOCK_ROWS = 256, 16384
# Up to so many rows are encoded by CUDA graphs, without pinned buffers and a second stream: those would take longer.
_FEW_ROWS = 1024
# Encoders that stay on their devices.
_N_KEPT = 4


class DeviceEncoder:
    """Encode and decode on a device.

    Parameters
    ----------
    weights : Weights
    device : torch.device
    precision : {"float32", "tf32", "bfloat16"}
        Of the encoder's product. Activations are recomputed, and values fitted, in float32.
    coding : {"pursuit", "refined_pursuit", "least_squares", "activations"}
    scales_mean_apart : bool
        See `skcompressae._core._rows.scales_apart`.
    flattening : float, default=0
        Of fitted values, where they are scaled.
    """

    def __init__(
        self,
        weights: Weights,
        device: torch.device,
        precision: str,
        coding: str,
        scales_mean_apart: bool,
        flattening: float = 0.0,
    ) -> None:
        products = Products(precision, device)
        with _devices.own_modes(device):
            # copies, as the caller may write to arrays
            tensors = (tensor_of(array).to(device, copy=True) for array in weights.arrays)
            self._encoder, self._bias, self._decoder = tensors
            self._factor = self._encoder.to(products.dtype)
            self._decoder_factor = self._decoder.to(products.dtype) if coding == "refined_pursuit" else self._decoder
        wait_for_queued(device)  # as other threads, whose streams may be others, will take it as it is
        self._device = device
        self._coding = coding
        self._scales_mean_apart = scales_mean_apart
        self._flattening = flattening
        self._products = products
        self._grams: GramTable | None = None  # of the decoder, once values are fitted
        self._filling = Lock()
        self._graphs = EncodeGraphs(device)
        n_rows = _BLOCK_BYTES // (4 * weights.n_components)
        self.block_rows = max(_MIN_BLOCK_ROWS, min(_MAX_BLOCK_ROWS, n_rows))

    def encode_blocks(
        self, rows: NDArray[Any], k: int, n_candidates: int, *, norm: str | None, dtype: type[np.floating[Any]]
    ) -> Iterator[tuple[slice, IndexArray, FloatArray, NDArray[np.float64]]]:
        """Encode rows of any scale; copies in both directions overlap with the work where the device can.

        Parameters
        ----------
        rows : array of shape (n_rows, n_features)
        k : int
        n_candidates : int
            At least k; candidates that the product proposes for each row.
        norm : {"input", "unit", None}
        dtype : float32 or float64, of the values

        Yields
        ------
        where : slice
            Of the rows of the block.
        indices : int32 array of shape (n_block_rows, k), ascending in each row
        values : array of shape (n_block_rows, k)
        norms : float64 array of shape (n_block_rows,)
            Of the rows.
        """

        def encode(x: torch.Tensor, norms: torch.Tensor) -> tuple[torch.Tensor, ...]:
            kind = torch.float64 if dtype == np.float64 else torch.float32
            with _devices.own_modes(self._device):
                codes = self._encode(x, k, n_candidates, norm)
                return codes.indices.to(torch.int32), self._scale(codes, norms, norm).to(kind), norms

        if 0 < len(rows) <= min(_FEW_ROWS, self.block_rows) and self._is_recorded(n_candidates):
            asked = k, n_candidates, norm, dtype
            with _devices.own_modes(self._device):
                self._table()  # not first on the stream of a recording, which other threads would not wait for
                indices, values, norms = self._graphs(
                    np.asarray(rows), asked, lambda given: encode(*unit_rows_torch(given))
                )
            yield slice(0, len(rows)), indices, values, norms
            return
        blocks = ((where, encode(x, norms)) for where, x, norms in self._fetch(rows))
        for where, (indices, values, norms) in download_blocks(blocks, self._device):
            yield where, indices, values, norms

    def cosines(self, rows: NDArray[Any], k: int, n_candidates: int, *, norm: str | None) -> NDArray[np.float64]:
        """Return the cosine similarity of each row with its reconstruction at `norm`, 1 for an all-zero row."""
        is_kept = scales_apart(self._scales_mean_apart, self._coding, norm)

        def compare(x: torch.Tensor, norms: torch.Tensor) -> tuple[torch.Tensor]:
            with _devices.own_modes(self._device):
                codes = self._encode(x, k, n_candidates, norm)
                if is_kept:
                    factors = scale_factors(codes.indices, codes.values, codes.norms[:, None], keeps_mean=True)
                    found = (codes.values * factors * gathered_dots(x, self._decoder, codes.indices)).sum(dim=1)
                else:
                    found = codes.overlaps / torch.where(codes.norms > 0, codes.norms, 1.0)
                # compared where the norms are, as the device may have no float64
                return (torch.where((norms > 0).to(found.device), found.clamp(-1, 1), 1.0),)

        cosines = np.empty(len(rows))
        blocks = ((where, compare(x, norms)) for where, x, norms in self._fetch(rows))
        for where, (found,) in download_blocks(blocks, self._device):
            cosines[where] = found
        return cosines

    def decode(self, codes: Any) -> FloatArray:
        """Multiply codes, a CSR matrix or a dense block, by the decoder, in the precision of the codes."""
        n_rows, n_components = codes.shape
        x_hat = np.empty((n_rows, self._decoder.shape[1]), dtype=codes.dtype)

        def decoded_block(start: int, stop: int) -> tuple[torch.Tensor]:
            with _devices.own_modes(self._device):
                if isinstance(codes, np.ndarray):
                    dense = tensor_of(codes[start:stop]).to(self._device)
                else:
                    # Only what is stored travels. Slices of its arrays: one of the matrix would be a copy.
                    low, high = int(codes.indptr[start]), int(codes.indptr[stop])
                    lengths = torch.from_numpy(np.diff(codes.indptr[start : stop + 1]).astype(np.int64))
                    lengths = lengths.to(self._device)
                    columns = torch.from_numpy(codes.indices[low:high].astype(np.int64)).to(self._device)
                    values = torch.tensor(codes.data[low:high], device=self._device)
                    numbers = torch.arange(stop - start, device=self._device)
                    of_row = torch.repeat_interleave(numbers, lengths, output_size=len(columns))
                    dense = values.new_zeros((stop - start, n_components))
                    dense.index_put_((of_row, columns), values, accumulate=True)
                with _devices.matmul_precision("float32", self._device):
                    return (dense @ self._decoder.to(dense.dtype),)

        blocks = ((slice(*block), decoded_block(*block)) for block in row_blocks(n_rows, self.block_rows))
        for where, (decoded,) in download_blocks(blocks, self._device):
            copy_rows(x_hat[where], decoded)
        return x_hat

    def _fetch(self, rows: NDArray[Any]) -> Iterator[tuple[slice, torch.Tensor, torch.Tensor]]:
        stream = RowStream(rows, self._device, self.block_rows)
        for start, stop in row_blocks(len(rows), self.block_rows):
            yield slice(start, stop), *stream.fetch(slice(start, stop))

    def _is_recorded(self, n_candidates: int) -> bool:
        """Tell whether few rows may be encoded by a graph: where kernels do all, and so ask the device for nothing.

        Those of a refined pursuit are not: it gathers decoder rows in plain torch.
        """
        if not _devices.uses_triton(self._encoder) or self._coding == "refined_pursuit":
            return False
        from skcompressae._torch._triton_pursuit import can_pursue
        from skcompressae._torch._triton_selection import can_select

        return can_pursue(n_candidates) and can_select(len(self._encoder), n_candidates)

    def _encode(self, x: torch.Tensor, k: int, n_candidates: int, norm: str | None) -> Codes:
        """Encode unit rows, with values that remain to be scaled to `norm`."""
        proposals = self._products.multiply(x, self._factor.T)
        codes = encode_unit_rows(
            x,
            proposals,
            self._encoder,
            self._bias,
            self._table(),
            k,
            n_candidates,
            self._coding,
            lambda rest: self._products.multiply(rest, self._decoder_factor.T),
        )
        if norm is None or self._flattening == 0 or self._coding == "activations":
            return codes
        is_kept = scales_apart(self._scales_mean_apart, self._coding, norm)
        indices, decoded = codes.indices, codes.norms[:, None]
        values = flattened(indices, codes.values, decoded, self._flattening, keeps_mean=is_kept)
        return Codes(indices, values, *decoded_norms(x, values, self._decoder, indices))

    def _table(self) -> GramTable:
        """Return the products of decoder rows, made at the first call."""
        with self._filling:
            if self._grams is None:
                grams = GramTable(self._decoder, is_kept=self._coding != "activations")
                wait_for_queued(self._device)
                self._grams = grams
            return self._grams

    def _scale(self, codes: Codes, norms: torch.Tensor, norm: str | None) -> torch.Tensor:
        """Scale codes of unit rows to the wanted norm of the reconstruction, in float64; those of zero rows to zero.

        Float64 is where `norms` are, as not every device has it.
        """
        indices, values, decoded = (part.to(norms.device) for part in (codes.indices, codes.values, codes.norms))
        values, is_nonzero = values.to(torch.float64), (norms > 0).to(torch.float64)
        if norm is None:
            return values * is_nonzero[:, None]
        is_kept = scales_apart(self._scales_mean_apart, self._coding, norm)
        factors = scale_factors(indices, values, decoded[:, None].to(torch.float64), keeps_mean=is_kept)
        return values * factors * (norms if norm == "input" else is_nonzero)[:, None]


class _Kept(NamedTuple):
    settings: tuple[Any, ...]
    sources: list[weakref.ref[Any]]
    sampled: list[NDArray[Any]]
    encoder: DeviceEncoder


_kept: list[_Kept] = []
# Threads that call first at once make one encoder. Arrays may be collected in the thread that holds it.
_keeping = RLock()


def _sample(array: NDArray[Any]) -> NDArray[Any]:
    """Copy an entry or two of each row, of one column after another; of a vector all."""
    return array.flat[:: max(1, array.shape[-1] - 1) if array.ndim > 1 else 1]


def kept_device_encoder(
    weights: Weights, device: Device, *settings: Any, divisors: FloatArray | None = None
) -> DeviceEncoder:
    """Return an encoder of these arrays, the one of an earlier call where there was one.

    Bringing the weights to the device, and the products of all decoder rows, take many times as long as a few rows. An
    encoder leaves the device with its arrays, or as the oldest of five. Arrays that were written to are new ones
    where the bias or all of a row of the encoder or decoder changed; finer changes need a new array to be seen.

    Parameters
    ----------
    weights, device, *settings
        As :class:`DeviceEncoder` takes them.
    divisors : array of shape (n_components,), optional
        What the rows of the encoder and its bias are divided by; for activations, as they are the values of a code.
    """
    settings = _devices.with_index(device), *settings
    sampled = [_sample(array) for array in weights.arrays]
    sampled.append(np.empty(0) if divisors is None else divisors.copy())
    with _keeping:
        for kept in list(_kept):
            is_same = all(source() is array for source, array in zip(kept.sources, weights.arrays, strict=True))
            if is_same and kept.settings == settings and all(map(np.array_equal, kept.sampled, sampled)):
                return kept.encoder
        scaled = weights
        if divisors is not None:
            scaled = replace(weights, encoder=weights.encoder / divisors[:, None], bias=weights.bias / divisors)
        encoder = DeviceEncoder(scaled, *settings)
        sources = [weakref.ref(array, _forget) for array in weights.arrays]
        _kept.append(_Kept(settings, sources, sampled, encoder))
        del _kept[:-_N_KEPT]
        return encoder


def _forget(source: weakref.ref[Any]) -> None:
    with _keeping:
        _kept[:] = [kept for kept in _kept if all(source is not other for other in kept.sources)]


def drop_kept_encoders(device: Device) -> bool:
    """Let go of the encoders that are kept on a device, for their memory; tell whether there were any."""
    device = _devices.with_index(device)
    with _keeping:
        others = [kept for kept in _kept if kept.settings[0] != device]
        has_dropped = len(others) < len(_kept)
        _kept[:] = others
    return has_dropped
