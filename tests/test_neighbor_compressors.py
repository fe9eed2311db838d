"""`CodeNearestNeighbors` and its compressor: fitted again or replaced, with outputs and columns of its own."""

from __future__ import annotations

import copy
import pickle
from contextlib import nullcontext

import numpy as np
import pytest
import sklearn
from scipy.sparse import csr_array, csr_matrix

from skcompressae import CodeNearestNeighbors, CompresSAETransformer

OTHERS = "compressor must have the weights that the documents were indexed with, but its components_ are others"


@pytest.fixture
def compressor(fitted):
    """The fitted compressor, to be changed."""
    return copy.deepcopy(fitted)


def refit(index, rows):
    index.compressor.set_params(random_state=5).fit(rows)


def train_on(index, rows):
    index.compressor.partial_fit(rows)


def replace(index, rows):
    params = index.compressor.get_params() | {"n_components": 40}
    index.set_params(compressor=CompresSAETransformer(**params).fit(rows))


@pytest.mark.parametrize("change", [refit, train_on, replace])
@pytest.mark.parametrize("mode", ["sparse", "reconstructed"])
def test_queries_are_not_compressed_by_other_weights_than_the_documents(compressor, embeddings, mode, change):
    codes = compressor.transform(embeddings)
    index = CodeNearestNeighbors(3, compressor=compressor, mode=mode).fit(codes)
    found = index.kneighbors(codes[:4], return_distance=False)
    change(index, embeddings)
    for call in (index.kneighbors, index.radius_neighbors, index.kneighbors_graph):
        with pytest.raises(ValueError, match=OTHERS):
            call(embeddings[:4])
    with pytest.raises(ValueError, match=OTHERS):
        index.partial_fit(codes)
    np.testing.assert_array_equal(index.kneighbors(codes[:4], return_distance=False), found)
    index.fit(index.compressor.transform(embeddings))
    assert index.kneighbors(embeddings[:4], return_distance=False).shape == (4, 3)


def test_asymmetric_queries_are_compared_through_the_fitted_components(compressor, embeddings):
    codes = compressor.transform(embeddings)
    index = CodeNearestNeighbors(3, compressor=compressor).fit(codes)
    found = index.kneighbors(embeddings[:4])
    refit(index, embeddings)
    np.testing.assert_array_equal(index.kneighbors(embeddings[:4]), found)
    with pytest.raises(ValueError, match=OTHERS):
        index.partial_fit(codes)


def test_parameters_of_coding_may_change(compressor, embeddings):
    index = CodeNearestNeighbors(3, compressor=compressor, mode="reconstructed").fit(compressor.transform(embeddings))
    before = index.kneighbors(embeddings[:4])[0]
    compressor.set_params(k=1, norm="unit")
    assert (index.kneighbors(embeddings[:4])[0] > before).any()


@pytest.mark.parametrize("again", [copy.copy, copy.deepcopy, lambda index: pickle.loads(pickle.dumps(index))])
def test_equal_components_in_another_array_are_compared_once(compressor, embeddings, again, monkeypatch):
    index = CodeNearestNeighbors(3, compressor=compressor, mode="reconstructed").fit(compressor.transform(embeddings))
    found = index.kneighbors(embeddings[:4])
    del index.__dict__["_verified_components"]  # which pickles of older versions lack
    index = again(index).set_params(compressor=copy.deepcopy(compressor))
    np.testing.assert_array_equal(index.kneighbors(embeddings[:4]), found)
    assert index.__getstate__()["_verified_components"] is None
    with monkeypatch.context() as patch:
        patch.setattr("skcompressae._neighbors_build.np.array_equal", None)  # not called again
        index.kneighbors(embeddings[:4])
    refit(index, embeddings)
    with pytest.raises(ValueError, match=OTHERS):
        index.kneighbors(embeddings[:4])


def test_an_index_loaded_without_its_compressor_takes_it_later(compressor, embeddings, tmp_path):
    codes = compressor.transform(embeddings)
    CodeNearestNeighbors(3, compressor=compressor, mode="sparse").fit(codes).save(tmp_path / "index")
    index = CodeNearestNeighbors.load(tmp_path / "index").set_params(compressor=compressor)
    np.testing.assert_allclose(index.kneighbors(embeddings[:4])[0], index.kneighbors(codes[:4])[0])
    refit(index, embeddings)
    with pytest.raises(ValueError, match=OTHERS):
        index.kneighbors(embeddings[:4])


# ------------------------------------------------------------------------------------------------- outputs, columns
def by_configuration(compressor):
    return sklearn.config_context(transform_output="pandas")


def by_set_output(compressor):
    compressor.set_output(transform="pandas")
    return nullcontext()


@pytest.mark.parametrize("ask", [by_configuration, by_set_output])
@pytest.mark.parametrize("sparse_output", [True, False])
@pytest.mark.parametrize("is_frozen", [False, True])
@pytest.mark.parametrize("mode", ["sparse", "reconstructed"])
def test_data_frames_as_output_do_not_reach_the_search(compressor, embeddings, mode, ask, sparse_output, is_frozen):
    pytest.importorskip("pandas")
    codes = compressor.transform(embeddings)
    given = pytest.importorskip("sklearn.frozen").FrozenEstimator(compressor) if is_frozen else compressor
    index = CodeNearestNeighbors(3, compressor=given, mode=mode).fit(codes)
    expected = index.kneighbors(embeddings[:4])
    compressor.set_params(sparse_output=sparse_output)
    with ask(compressor):
        for found, wanted in zip(index.kneighbors(embeddings[:4]), expected, strict=True):
            np.testing.assert_array_equal(found, wanted)


def test_compressed_queries_are_not_asked_for_the_names_of_the_fitted_codes(compressor, embeddings):
    pytest.importorskip("pandas")
    compressor.set_params(sparse_output=False).set_output(transform="pandas")
    codes = compressor.transform(embeddings)
    index = CodeNearestNeighbors(3, compressor=compressor, mode="reconstructed").fit(codes)
    assert index.feature_names_in_[0] == "compressaetransformer0"
    for found, wanted in zip(index.kneighbors(embeddings[:4]), index.kneighbors(codes[:4]), strict=True):
        np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("mode", ["sparse", "reconstructed", "asymmetric", "auto"])
def test_columns_of_queries_are_those_of_the_compressor(compressor, embeddings, mode):
    pd = pytest.importorskip("pandas")
    rows = pd.DataFrame(embeddings, columns=[f"dim{j}" for j in range(embeddings.shape[1])])
    index = CodeNearestNeighbors(3, compressor=compressor, mode=mode).fit(compressor.transform(embeddings))
    expected = index.kneighbors(embeddings[:4])
    compressor.feature_names_in_ = rows.columns.to_numpy(dtype=object)
    for found, wanted in zip(index.kneighbors(rows[:4]), expected, strict=True):
        np.testing.assert_array_equal(found, wanted)
    with pytest.raises(ValueError, match="Feature names must be in the same order as they were in fit"):
        index.kneighbors(rows.iloc[:4, ::-1])
    with pytest.raises(ValueError, match="The feature names should match those that were passed during fit"):
        index.radius_neighbors(rows[:4].rename(columns={"dim3": "other"}))


def test_codes_of_another_width_than_the_components_are_named(compressor, embeddings, monkeypatch):
    index = CodeNearestNeighbors(3, compressor=compressor, mode="sparse").fit(compressor.transform(embeddings))
    monkeypatch.setattr(compressor, "transform", lambda X: np.ones((len(X), 5)), raising=False)
    with pytest.raises(ValueError, match="compressor must give codes of 48 components, got 5 columns"):
        index.kneighbors(embeddings[:4])


@pytest.mark.skipif(
    "sparse_interface" not in sklearn.get_config(), reason="this scikit-learn has no sparse_interface setting"
)
def test_graphs_obey_the_sparse_interface_setting(fitted, embeddings):
    codes = fitted.transform(embeddings)
    index = CodeNearestNeighbors(3).fit(codes)
    graphs = index.kneighbors_graph, index.radius_neighbors_graph, index.transform
    with sklearn.config_context(sparse_interface="sparray"):
        arrays = [graph(codes[:4]) for graph in graphs]
    for graph, array in zip(graphs, arrays, strict=True):
        matrix = graph(codes[:4])
        assert (type(matrix), type(array)) == (csr_matrix, csr_array)
        assert matrix.indices.dtype == array.indices.dtype == np.int32
        np.testing.assert_array_equal(array.toarray(), matrix.toarray())


def test_components_may_come_in_a_data_frame(fitted, embeddings):
    pandas = pytest.importorskip("pandas")
    codes = fitted.transform(embeddings)
    frame = pandas.DataFrame(fitted.components_)
    index, expected = (CodeNearestNeighbors(3, compressor=each).fit(codes) for each in (frame, fitted))
    np.testing.assert_array_equal(index.kneighbors(embeddings[:5])[1], expected.kneighbors(embeddings[:5])[1])
    with pytest.raises(ValueError, match="an array of components without transform"):
        index.set_params(mode="reconstructed").fit(codes).kneighbors(embeddings[:5])
