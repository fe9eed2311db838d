"""`CodeNearestNeighbors` and its compressor: fitted again or replaced, with outputs and columns of its own."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest

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
