"""Encoding and decoding in torch on a device against the kernels of the CPU."""

import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from conftest import make_embeddings
from scipy.sparse import csr_array

from skcompressae import CompresSAETransformer
from skcompressae._core._initialise import data_weights
from skcompressae._core._pursuit import pursuit_codes
from skcompressae._core._rows import unit_rows
from skcompressae._encoding import Encoder
from skcompressae._torch import _device_encoder, _devices, _pursuit, _row_ops
from skcompressae._torch._codes import encode_batch
from skcompressae._torch._device_encoder import DeviceEncoder, drop_kept_encoders, kept_device_encoder
from skcompressae._torch._pursuit import GramTable, pursuit_codes_torch
from skcompressae._torch._row_ops import decoded_norms, gathered_dots, unit_rows_torch
from skcompressae._torch._weights import Weights

CODINGS = ["activations", "least_squares", "pursuit", "refined_pursuit"]


@pytest.fixture(scope="module")
def weights():
    x, _ = unit_rows(make_embeddings(n_rows=300, n_features=24))
    encoder, _, decoder = data_weights(x, 60, 0.5, np.random.RandomState(0))
    return Weights(encoder, (0.05 * np.random.RandomState(1).standard_normal(60)).astype(np.float32), decoder)


def make_encoder(weights, coding, device, precision="float32", scales_mean_apart=False):
    """An encoder whose torch path works on any device, the CPU included."""
    cpu = torch.device("cpu")
    options = {"coding": coding, "precision": precision, "scales_mean_apart": scales_mean_apart, "flattening": 0.3}
    encoder = Encoder(weights, candidate_factor=3.0, device=cpu, **options)
    if device is not None:
        encoder._on_device = DeviceEncoder(weights, torch.device(device), **options)
        encoder._on_device.block_rows = 16
    return encoder


def test_a_device_gets_the_encoder_divided(monkeypatch, weights):
    options = {
        "coding": "activations", "candidate_factor": 3.0, "precision": "float32", "scales_mean_apart": False,
    }  # fmt: skip
    divisors = np.linspace(0.5, 2, 60, dtype=np.float32)
    given = []
    monkeypatch.setattr(_device_encoder, "DeviceEncoder", lambda weights, *_: given.append(weights))
    Encoder(weights, device=torch.device("meta"), divisors=divisors, **options)
    rows = rows_of(np.float32)
    found = Encoder(weights, device=torch.device("cpu"), divisors=divisors, **options)
    expected = Encoder(given[0], device=torch.device("cpu"), **options)
    assert not np.array_equal(given[0].encoder, weights.encoder)
    assert_same_codes(*(encoder.encode(rows, 6, norm="unit", dtype=np.float32) for encoder in (found, expected)))


def test_an_encoder_stays_on_its_device_while_its_weights_are_there(monkeypatch, weights):
    monkeypatch.setattr(_device_encoder, "_kept", [])
    mine, cpu = weights.copy(), torch.device("cpu")

    def kept(coding="pursuit", divisors=None):
        return kept_device_encoder(mine, cpu, "float32", coding, False, divisors=divisors)

    first = kept()
    assert kept() is first
    assert kept("activations") is not first
    divided = kept("activations", np.full(60, 2, dtype=np.float32))
    assert kept("activations", np.full(60, 2, dtype=np.float32)) is divided
    assert kept("activations", np.full(60, 3, dtype=np.float32)) is not divided
    assert kept() is first
    mine.decoder *= 1.5
    changed = kept()
    assert changed is not first
    np.testing.assert_array_equal(changed._decoder.numpy(), mine.decoder)
    for _ in range(2 * _device_encoder._N_KEPT):
        other = weights.copy()
        kept_device_encoder(other, cpu, "float32", "pursuit", False)
        assert len(_device_encoder._kept) <= _device_encoder._N_KEPT
    del mine.decoder, other
    assert _device_encoder._kept == []


def test_threads_that_call_at_once_share_an_encoder(monkeypatch, weights):
    made = []

    def make(*given):
        made.append(given)
        time.sleep(0.05)
        return object()

    monkeypatch.setattr(_device_encoder, "_kept", [])
    monkeypatch.setattr(_device_encoder, "DeviceEncoder", make)
    settings = weights, torch.device("cpu"), "float32", "pursuit", False
    with ThreadPoolExecutor(4) as pool:
        found = {future.result() for future in [pool.submit(kept_device_encoder, *settings) for _ in range(4)]}
    assert len(made) == len(found) == 1


def test_kept_encoders_are_dropped_for_their_memory(monkeypatch, weights):
    monkeypatch.setattr(_device_encoder, "_kept", [])
    monkeypatch.setattr(_device_encoder, "DeviceEncoder", lambda *_: object())
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    kept = [kept_device_encoder(weights, torch.device(name), "float32", "pursuit", False) for name in ("cpu", "cuda")]
    assert not drop_kept_encoders(torch.device("cuda:0"))
    assert drop_kept_encoders(torch.device("cuda"))
    assert not drop_kept_encoders(torch.device("cuda:1"))
    assert [entry.encoder for entry in _device_encoder._kept] == kept[:1]


def test_what_threads_share_is_there_before_they_have_it(monkeypatch, weights):
    """Each may work on a stream of its own, which waits for no other."""
    waits = []
    monkeypatch.setattr(_device_encoder, "wait_for_queued", waits.append)
    cpu = torch.device("cpu")
    encoder = DeviceEncoder(weights, cpu, "bfloat16", "pursuit", False)
    assert waits == [cpu]  # for the rounded weights
    for _ in range(2):
        list(encoder.encode_blocks(rows_of(np.float32), 6, 18, norm="unit", dtype=np.float32))
        assert waits == [cpu] * 2  # and for the products of decoder rows


@pytest.mark.parametrize("order", ["C", "F"])
def test_every_latent_that_is_written_to_is_noticed(monkeypatch, order):
    monkeypatch.setattr(_device_encoder, "_kept", [])
    random_state = np.random.RandomState(0)
    shapes = (3000, 8), 3000, (3000, 8)
    arrays = (random_state.standard_normal(shape).astype(np.float32, order=order) for shape in shapes)
    mine, cpu = Weights(*arrays), torch.device("cpu")
    for array in mine.arrays:
        for latent in (0, 1, 2, 3, 1000, 1001, 1002, 2998, 2999):
            before = kept_device_encoder(mine, cpu, "float32", "activations", False)
            array[latent] += 0.5
            assert kept_device_encoder(mine, cpu, "float32", "activations", False) is not before


def test_a_device_without_a_number_is_the_one_that_is_current(monkeypatch):
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    assert _devices.with_index(torch.device("cuda")) == torch.device("cuda:1")
    assert _devices.with_index(torch.device("cuda:0")) == torch.device("cuda:0")
    assert _devices.with_index(torch.device("cpu")) == torch.device("cpu")


def test_nothing_to_pick_is_least_squares(weights, device):
    """Whose support does not depend on the rounding of a product: of k candidates alone some would be wrong."""
    rows, k = rows_of(np.float32, n_rows=400), 6
    found = make_encoder(weights, "pursuit", device, "bfloat16")._on_device
    expected = make_encoder(weights, "least_squares", device, "bfloat16")._on_device
    given = {"norm": "unit", "dtype": np.float32}
    pairs = zip(found.encode_blocks(rows, k, k, **given), expected.encode_blocks(rows, k, k + 8, **given), strict=True)
    for ours, theirs in pairs:
        np.testing.assert_array_equal(ours[1], theirs[1])
        np.testing.assert_array_equal(ours[2], theirs[2])


def rows_of(dtype, n_rows=70):
    rows = make_embeddings(n_rows=n_rows, seed=3).astype(np.float64)
    rows[5] = 0
    rows[6] *= 1e-4
    if dtype != np.float16:
        rows[7] *= 1e30
    if dtype == np.float64:
        rows[8:10] *= [[1e200], [1e-200]]
    return rows.astype(dtype)


def assert_same_codes(found, expected, min_share=1.0):
    """Equal supports in (nearly) all rows, and there equal values to 1e-5 of the row's largest."""
    same = (found[0] == expected[0]).all(axis=1)
    assert same.mean() >= min_share
    size = np.abs(expected[1]).max(axis=1, keepdims=True)
    difference = np.abs(found[1] - expected[1]) / np.where(size > 0, size, 1)
    assert difference[same].max() < 1e-5


@pytest.mark.parametrize("coding", CODINGS)
@pytest.mark.parametrize("scales_mean_apart", [False, True])
@pytest.mark.parametrize(("dtype", "norm"), [(np.float32, "input"), (np.float16, "unit"), (np.float64, None)])
def test_codes_are_those_of_the_cpu(weights, device, coding, scales_mean_apart, dtype, norm):
    rows = rows_of(dtype)
    kind = np.float64 if dtype == np.float64 else np.float32
    found, expected = (
        make_encoder(weights, coding, where, scales_mean_apart=scales_mean_apart).encode(rows, 6, norm=norm, dtype=kind)
        for where in (device, None)
    )
    assert found[0].dtype == expected[0].dtype == np.int32
    assert found[1].dtype == expected[1].dtype == kind
    assert not found[1][5].any()
    assert_same_codes(found, expected, 0.97)


@pytest.mark.parametrize("coding", CODINGS)
@pytest.mark.parametrize("scales_mean_apart", [False, True])
def test_cosines_are_those_of_the_cpu(weights, device, coding, scales_mean_apart):
    rows = rows_of(np.float32)
    found, expected = (
        make_encoder(weights, coding, where, scales_mean_apart=scales_mean_apart).cosines(rows, 6, norm="unit")
        for where in (device, None)
    )
    np.testing.assert_allclose(found, expected, atol=2e-5)
    assert found[5] == 1


@pytest.mark.parametrize("coding", CODINGS)
def test_rounded_products_change_few_codes(weights, device, coding):
    rows = make_embeddings(n_rows=200, seed=4)
    rounded, exact = (
        make_encoder(weights, coding, device, precision).encode(rows, 6, norm="unit", dtype=np.float32)
        for precision in ("bfloat16", "float32")
    )
    assert_same_codes(rounded, exact, 0.95)


def test_a_row_has_its_code_whatever_rows_are_beside_it(weights, device):
    rows = make_embeddings(n_rows=40, seed=5)
    encoder = make_encoder(weights, "least_squares", device)
    together = encoder.encode(rows, 6, norm="input", dtype=np.float32)
    for i in (0, 17, 39):
        assert_same_codes(
            encoder.encode(rows[i : i + 1], 6, norm="input", dtype=np.float32), [a[i : i + 1] for a in together]
        )


def test_blocks_cover_the_rows_in_order(weights, device):
    encoder = make_encoder(weights, "least_squares", device)
    rows = make_embeddings(n_rows=37)
    found = [(where.start, where.stop) for where, *_ in encoder.encode_blocks(rows, 6, norm=None, dtype=np.float32)]
    assert found == [(0, 16), (16, 32), (32, 37)]


def test_norms_beyond_float32_are_refused(weights, device):
    rows = np.full((1, 24), 3e38, np.float32)
    with pytest.raises(ValueError, match=r"X has a row of norm .* beyond float32"):
        make_encoder(weights, "activations", device).encode(rows, 6, norm="input", dtype=np.float32)


@pytest.mark.parametrize("turned", [lambda codes: codes[::-1], lambda codes: codes[:, ::-1], np.asfortranarray])
def test_codes_of_any_layout_are_decoded(weights, device, turned):
    dense = turned(np.random.RandomState(0).standard_normal((40, 60)).astype(np.float32))
    dense.setflags(write=False)
    encoder = DeviceEncoder(weights, torch.device(device), "float32", "activations", False)
    np.testing.assert_allclose(encoder.decode(dense), dense @ weights.decoder, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("is_sparse", [True, False])
def test_decoding_is_the_product_with_the_decoder(weights, device, dtype, is_sparse):
    if device == "mps" and dtype == np.float64:
        pytest.skip("MPS has no float64")
    random_state = np.random.RandomState(0)
    dense = np.where(random_state.uniform(size=(40, 60)) < 0.1, random_state.standard_normal((40, 60)), 0).astype(dtype)
    dense[3] = 0
    encoder = DeviceEncoder(weights, torch.device(device), "float32", "activations", False)
    encoder.block_rows = 16
    decoded = encoder.decode(csr_array(dense) if is_sparse else dense)
    assert decoded.dtype == dtype
    np.testing.assert_allclose(decoded, dense @ weights.decoder.astype(dtype), rtol=1e-4, atol=1e-5)


def test_the_estimator_gives_the_same_on_a_device(device):
    if device == "cpu":
        pytest.skip("there the estimator takes the CPU's own path")
    X = make_embeddings(n_rows=300)
    model = CompresSAETransformer(48, k=4, max_iter=20, random_state=0, device=device).fit(X)
    on_device, score = model.transform(X), model.score(X)
    model.set_params(device="cpu")
    expected = model.transform(X)
    assert abs(on_device - expected).max() < 1e-4 * abs(expected).max()
    assert score == pytest.approx(model.score(X), abs=1e-5)


# The parts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n_candidates", "k"), [(7, 7), (20, 6), (33, 33), (40, 1), (30, 29)])
@pytest.mark.parametrize("has_table", [True, False])
def test_elimination_picks_and_fits_as_the_kernel_does(device, monkeypatch, n_candidates, k, has_table):
    if not has_table:
        monkeypatch.setattr(_pursuit, "_TABLE_BYTES", 0)
    monkeypatch.setattr(_pursuit, "TEMPORARY_BYTES", 100_000)  # several blocks of rows
    random_state = np.random.RandomState(n_candidates)
    decoder = unit_rows(random_state.standard_normal((60, 48)))[0]
    x = unit_rows(random_state.standard_normal((50, 48)))[0]
    candidates = np.array([np.sort(random_state.choice(60, n_candidates, replace=False)) for _ in range(50)], np.int32)
    activations = random_state.standard_normal((50, n_candidates)).astype(np.float32)
    expected = pursuit_codes(x, decoder, candidates, activations, k, n_threads=1)
    arrays = (x, decoder, candidates, activations)
    x, decoder, candidates, activations = (torch.from_numpy(array).to(device) for array in arrays)
    indices, values, norms, overlaps = pursuit_codes_torch(x, GramTable(decoder), candidates, activations, k)
    np.testing.assert_array_equal(indices.cpu(), expected[0])
    np.testing.assert_allclose(values.cpu(), expected[1], atol=2e-5)
    np.testing.assert_allclose(norms.cpu(), expected[2], rtol=1e-4)
    decoded = (values[:, :, None] * decoder[indices.long()]).sum(dim=1)
    np.testing.assert_allclose(overlaps.cpu(), (decoded * x).sum(dim=1).cpu(), atol=1e-5)


def test_latents_that_coincide_stay_finite(device):
    random_state = np.random.RandomState(0)
    decoder = unit_rows(random_state.standard_normal((20, 6)))[0]
    decoder[::2] = decoder[0]
    decoder[3::5] = 0
    x = unit_rows(random_state.standard_normal((9, 6)))[0]
    x[2] = 0
    candidates = np.tile(np.arange(12, dtype=np.int32), (9, 1))
    activations = random_state.standard_normal((9, 12)).astype(np.float32)
    for k in (8, 12):  # more than there are features
        x_device, decoder_device, *rest = (
            torch.from_numpy(array).to(device) for array in (x, decoder, candidates, activations)
        )
        found = pursuit_codes_torch(x_device, GramTable(decoder_device), *rest, k)
        assert all(torch.isfinite(part).all() for part in found)
        assert not found[1][2].any()
        expected = pursuit_codes(x, decoder, candidates, activations, k, n_threads=1)
        np.testing.assert_allclose(found[2].cpu(), expected[2], atol=2e-3)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_unit_rows_are_those_of_the_kernel(device, dtype):
    if device == "mps":
        pytest.skip("MPS has no float64, so rows are normalised on the CPU")
    rows = rows_of(dtype)
    expected = unit_rows(rows)
    unit, norms = unit_rows_torch(torch.from_numpy(rows).to(device))
    np.testing.assert_allclose(unit.cpu(), expected[0], rtol=3e-7, atol=1e-12)
    np.testing.assert_allclose(norms.cpu(), expected[1], rtol=1e-12)


def test_gathers_are_cut_into_bounded_blocks(device, monkeypatch):
    random_state = np.random.RandomState(0)
    x, matrix = (random_state.standard_normal((n, 10)).astype(np.float32) for n in (23, 30))
    picks = random_state.randint(0, 30, (23, 4))
    values = random_state.standard_normal((23, 4)).astype(np.float32)
    monkeypatch.setattr(_row_ops, "TEMPORARY_BYTES", 4 * 4 * 10 * 5)
    tensors = [torch.from_numpy(array).to(device) for array in (x, matrix, picks, values)]
    dots = gathered_dots(*tensors[:3])
    np.testing.assert_allclose(dots.cpu(), np.einsum("ij,iaj->ia", x, matrix[picks]), rtol=1e-4, atol=1e-5)
    norms, overlaps = decoded_norms(tensors[0], tensors[3], tensors[1], tensors[2])
    decoded = np.einsum("ia,iaj->ij", values, matrix[picks])
    np.testing.assert_allclose(norms.cpu(), np.linalg.norm(decoded, axis=1), rtol=1e-4)
    np.testing.assert_allclose(overlaps.cpu(), np.einsum("ij,ij->i", decoded, x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("scale", [1e-25, 1e20, 1e30])
@pytest.mark.parametrize("norm", ["input", "unit"])
def test_encoders_of_any_scale(weights, scale, norm):
    """Squares of their activations leave float32."""
    scaled = Weights(weights.encoder * np.float32(scale), weights.bias * np.float32(scale), weights.decoder)
    rows = make_embeddings(n_rows=40)
    found, expected = (
        make_encoder(scaled, "activations", device).encode(rows, 5, norm=norm, dtype=np.float32)
        for device in ("cpu", None)
    )
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_allclose(found[1], expected[1], rtol=1e-5)
    cosines = [make_encoder(scaled, "activations", device).cosines(rows, 5, norm=norm) for device in ("cpu", None)]
    np.testing.assert_allclose(cosines[0], cosines[1], atol=1e-6)
    given = (torch.from_numpy(array) for array in (rows, *scaled.arrays))
    _, values = encode_batch(
        *given, 5, coding="activations", candidate_factor=None, norm=norm, flattening=0.0, keeps_mean=False
    )
    np.testing.assert_allclose(values, expected[1], rtol=1e-5)
