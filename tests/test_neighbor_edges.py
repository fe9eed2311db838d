"""`CodeNearestNeighbors` at the edges: broken matrices, extreme lengths, additions that fail, names that go."""

from __future__ import annotations

import numpy as np
import pytest
from neighbor_cases import (
    N_COMPONENTS,
    N_FEATURES,
    brute_force,
    fitted_compressor,
    random_codes,
)
from scipy.sparse import csr_matrix, issparse
from sklearn.exceptions import NotFittedError

from skcompressae import CodeNearestNeighbors, PackedCodes


@pytest.mark.parametrize(
    ("column", "starts", "message"),
    [
        (40, [0, 1], "X must be a valid CSR matrix, got column indices from 40 to 40 for 40 components"),
        (-1, [0, 1], "X must be a valid CSR matrix, got column indices from -1 to -1 for 40 components"),
        (0, [0, 2, 1], "X must be a valid CSR matrix, got an indptr that decreases"),
    ],
)
def test_matrices_that_point_outside_are_refused(column, starts, message):
    """SciPy does not look; a kernel that did not either would write beyond its arrays."""
    broken = csr_matrix((np.ones(starts[-1]), np.full(starts[-1], 0), [0] * len(starts)), shape=(len(starts) - 1, 40))
    broken.data, broken.indices = np.ones(starts[-1]), np.full(starts[-1], column, np.int32)
    broken.indptr = np.array(starts, np.int32)
    index = CodeNearestNeighbors(1).fit(random_codes(np.random.default_rng(8), 5))
    for call in (CodeNearestNeighbors(1).fit, index.partial_fit, index.kneighbors):
        with pytest.raises(ValueError, match=message):
            call(broken)


@pytest.mark.parametrize("factor", [1e-310, 1e-200, 1e-30, 1e30, 1e200, 1e300])
@pytest.mark.parametrize("mode", ["sparse", "reconstructed", "asymmetric"])
def test_the_length_of_a_query_does_not_matter_to_the_cosine(mode, factor):
    """Squares of such queries leave float64; one of the two keeps its length."""
    rng = np.random.default_rng(8)
    index = CodeNearestNeighbors(5, compressor=fitted_compressor().components_, mode=mode).fit(random_codes(rng, 30))
    queries = rng.standard_normal((3, N_FEATURES)) if mode == "asymmetric" else random_codes(rng, 3) + np.eye(3, 40)
    queries[2] = 0
    factors = np.array([[factor], [1.0], [1.0]])
    for form in [np.asarray] if mode == "asymmetric" else [np.asarray, csr_matrix]:
        expected, expected_indices = index.kneighbors(form(queries))
        distances, indices = index.kneighbors(form(np.asarray(queries) * factors))
        np.testing.assert_array_equal(indices, expected_indices)
        np.testing.assert_allclose(distances, expected, rtol=0, atol=1e-12)
        near = index.radius_neighbors(form(np.asarray(queries) * factors), radius=0.9, return_distance=False)
        for found, wanted in zip(near, index.radius_neighbors(form(queries), 0.9, return_distance=False), strict=True):
            np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("factor", [1e-310, 1e200])
@pytest.mark.parametrize("n_queries", [1, 3])
def test_dot_products_of_queries_of_any_length(factor, n_queries):
    rng = np.random.default_rng(8)
    documents, decoder = random_codes(rng, 30), fitted_compressor().components_
    queries = rng.standard_normal((n_queries, N_FEATURES))
    index = CodeNearestNeighbors(30, compressor=decoder, metric="dot").fit(documents)
    distances, indices = index.kneighbors(queries * factor)
    expected = np.take_along_axis(brute_force(queries, documents @ decoder, "dot"), indices, axis=1)
    np.testing.assert_allclose(distances / factor, expected, rtol=0, atol=1e-9)
    assert (np.diff(distances, axis=1) >= 0).all()


@pytest.mark.parametrize("kind", ["embeddings", "codes", "codes alone", "packed", "candidates"])
@pytest.mark.parametrize("factor", [2.0**-120, 2.0**115])
def test_float32_queries_of_any_length(kind, factor):
    """Targets of float32 would overflow, and no score be better than that of a row that is not there."""
    rng = np.random.default_rng(31)
    decoder = fitted_compressor("float32").components_
    documents = random_codes(rng, 30, dtype=np.float32)
    queries = rng.standard_normal((4, N_FEATURES)).astype(np.float32)
    parameters = {"n_neighbors": 6, "compressor": decoder, "metric": "dot"}
    if kind.startswith("codes"):
        queries = documents[:4]
    if kind == "codes alone":
        parameters["compressor"] = None
    if kind in ("packed", "candidates"):
        documents = PackedCodes.pack(documents, value_bits=8)
    if kind == "candidates":
        documents = documents.with_residual_of(documents.to_csr() @ decoder + 0.1, decoder, n_bytes=2, normalize=False)
        parameters["rerank"] = 9
    index = CodeNearestNeighbors(**parameters).fit(documents)
    distances, indices = index.kneighbors(queries)
    long_distances, long_indices = index.kneighbors(queries * np.float32(factor))
    np.testing.assert_array_equal(long_indices, indices)
    np.testing.assert_allclose(long_distances, distances * factor, rtol=1e-6)
    radius = float(np.median(distances))
    within = index.radius_neighbors(queries, radius=radius, return_distance=False)
    for got, expected in zip(
        index.radius_neighbors(queries * np.float32(factor), radius=radius * factor, return_distance=False),
        within,
        strict=True,
    ):
        np.testing.assert_array_equal(got, expected)


def test_products_beyond_float32_are_refused():
    codes = csr_matrix(np.eye(3, dtype=np.float32))
    decoder = np.full((3, 2), 1e30, np.float32)
    index = CodeNearestNeighbors(1, compressor=decoder, metric="dot").fit(codes)
    assert index.kneighbors(np.ones((1, 2), np.float32), return_distance=False).item() == 0
    with pytest.raises(ValueError, match=r"the product of a query with components_ is beyond float32; scale"):
        index.kneighbors(np.full((1, 2), 1e15, np.float32))
    with pytest.raises(ValueError, match="reconstructions must have norms within float32; rescale"):
        CodeNearestNeighbors(1, compressor=decoder).fit(codes * np.float32(1e20))


@pytest.mark.parametrize(("value", "what"), [(np.nan, "NaN"), (np.inf, "infinity")])
@pytest.mark.parametrize("form", [csr_matrix, np.asarray])
def test_codes_that_are_not_finite_are_refused_without_advice_on_other_estimators(form, value, what):
    codes = np.eye(3, N_COMPONENTS)
    index = CodeNearestNeighbors(1).fit(codes)
    codes[1, 1] = value
    for call in (CodeNearestNeighbors(1).fit, index.partial_fit, index.kneighbors, index.radius_neighbors):
        with pytest.raises(ValueError, match=f"^Input X contains {what}") as caught:
            call(form(codes))
        assert "CodeNearestNeighbors" not in str(caught.value)


def test_a_fit_that_fails_leaves_the_index_as_it_was():
    documents = random_codes(np.random.default_rng(32), 12)
    index = CodeNearestNeighbors(3).fit(documents)
    expected = index.kneighbors(documents)
    with pytest.raises(ValueError, match="contains NaN"):
        index.fit(np.full((2, 7), np.nan))
    with pytest.raises(ValueError, match="codes must have norms below"):
        index.fit(np.full((2, 7), 1e31))
    np.testing.assert_array_equal(index.kneighbors(documents), expected)
    never = CodeNearestNeighbors(3)
    with pytest.raises(ValueError, match="codes must have norms below"):
        never.fit(np.full((2, 7), 1e31))
    with pytest.raises(NotFittedError):
        never.kneighbors(documents)


def test_parameters_set_after_fitting_are_checked(tmp_path):
    documents = random_codes(np.random.default_rng(33), 12)
    index = CodeNearestNeighbors(3).fit(documents)
    for name, value in (("batch_size", -1), ("batch_size", 0), ("n_jobs", "all"), ("device", None)):
        before = getattr(index, name)
        index.set_params(**{name: value})
        calls = (index.kneighbors, index.radius_neighbors, index.partial_fit, lambda _: index.save(tmp_path / "index"))
        for call in calls:
            with pytest.raises(ValueError, match=f"The '{name}' parameter of CodeNearestNeighbors must be"):
                call(documents)
        index.set_params(**{name: before})
    index.set_params(rerank=4)
    calls = (index.kneighbors, index.radius_neighbors, index.partial_fit, lambda _: index.save(tmp_path / "index"))
    for call in calls:
        with pytest.raises(ValueError, match="rerank=4 was set after fitting with rerank=None; fit the index again"):
            call(documents)
    assert not any(tmp_path.iterdir())


def test_documents_are_added_whole_or_not_at_all(monkeypatch):
    """The second block of the packed rows is too long for float32 scores."""
    monkeypatch.setattr("skcompressae._neighbors_build.BLOCK_ROWS", 8)
    documents = random_codes(np.random.default_rng(13), 16)
    index = CodeNearestNeighbors(3).fit(documents)
    expected = index.kneighbors(documents)
    more = np.ones((12, N_COMPONENTS), np.float32)
    more[9] *= 1.2e30
    with pytest.raises(ValueError, match="codes must have norms below 1e"):
        index.partial_fit(PackedCodes.pack(more))
    assert index.n_samples_fit_ == 16
    np.testing.assert_array_equal(index.kneighbors(documents), expected)


def test_packed_codes_have_no_names():
    frame = pytest.importorskip("pandas").DataFrame(np.eye(3), columns=["a", "b", "c"])
    index = CodeNearestNeighbors(1).fit(frame)
    assert list(index.feature_names_in_) == ["a", "b", "c"]
    index.fit(PackedCodes.pack(np.eye(3)))
    assert not hasattr(index, "feature_names_in_")
    assert index.kneighbors(np.eye(3)[:1], return_distance=False).item() == 0


def test_graphs_do_not_fit_into_data_frames():
    pytest.importorskip("pandas")
    index = CodeNearestNeighbors(1).fit(np.eye(3)).set_output(transform="pandas")
    with pytest.raises(ValueError, match="sparse matrix"):
        index.transform(np.eye(3))
    assert issparse(index.set_output(transform="default").transform(np.eye(3)))


@pytest.mark.parametrize("radius", ["far", float("nan"), 1j])
def test_a_radius_that_is_no_number(radius):
    index = CodeNearestNeighbors(1).fit(np.eye(3))
    with pytest.raises(ValueError, match="radius must be a real number, got"):
        index.radius_neighbors(np.eye(3), radius=radius)
    assert len(index.radius_neighbors(np.eye(3)[:1], radius=np.float32(0.5), return_distance=False)[0]) == 1


@pytest.mark.parametrize("n_queries", [1, 20])
def test_scores_beyond_float64_are_refused(n_queries):
    """What is not more than minus infinity would be in no result."""
    rng = np.random.default_rng(9)
    components = 1e290 * rng.standard_normal((16, 4))
    index = CodeNearestNeighbors(3, compressor=components, metric="dot").fit(csr_matrix(1e29 * np.eye(5, 16)))
    with pytest.raises(ValueError, match="the product of a query with a document is beyond float64; scale"):
        index.kneighbors(rng.standard_normal((n_queries, 4)))


def test_any_radius_that_is_a_number():
    documents = random_codes(np.random.default_rng(10), 30, dtype=np.float32)
    index = CodeNearestNeighbors(radius=np.inf, metric="dot").fit(documents)
    for radius in (None, 1e300):  # the second is infinite in float32
        assert {len(rows) for rows in index.radius_neighbors(documents, radius, sort_results=True)[1]} == {30}
    assert {len(rows) for rows in index.radius_neighbors(documents, -1e300)[1]} == {0}
    for radius in (10**400, -(10**400)):
        with pytest.raises(ValueError, match="radius must be a number of float64, got one that is beyond"):
            index.radius_neighbors(documents, radius)
    with pytest.raises(ValueError, match="The 'radius' parameter of CodeNearestNeighbors must be a float"):
        CodeNearestNeighbors(radius=np.nan).fit(documents)


def test_distances_of_float32_stay_float32():
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(11)
    compressor = fitted_compressor("float32")
    index = CodeNearestNeighbors(2, compressor=compressor).fit(random_codes(rng, 30, dtype=np.float32))
    queries = rng.standard_normal((4, N_FEATURES)).astype(np.float32)
    for rows in (queries, torch.from_numpy(queries)):
        assert index.kneighbors(rows)[0].dtype == np.float32
        for mode in ("kneighbors_graph", "radius_neighbors_graph"):
            assert getattr(index, mode)(rows, mode="distance").dtype == np.float32
    assert index.radius_neighbors_graph(queries[:0], mode="distance").shape == (0, 30)
    assert index.radius_neighbors_graph(queries, 0.7, mode="distance", sort_results=True).dtype == np.float32
